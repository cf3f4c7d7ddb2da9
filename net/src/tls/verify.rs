//! Which certificates are accepted: of our CA, in force, of our cluster, and of a role that fits the end they were shown at.
//!
//! Names of hosts are not looked at: a replica is a replica wherever it runs. Clients of other makes (curl) do look, so
//! certificates of replicas name their hosts as well.

use super::dial::Expect;
use super::shown::Shown;
use super::{now_seconds, provider};
use muster_core::journal::entry::Role;
use muster_core::service::Caller;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
};
use std::fmt;
use std::sync::Arc;

/// For whom a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Everybody of the cluster; what each may do is the door's to say.
    Anyone,
    /// The cluster's replicas.
    Replicas,
}

/// A certificate that is good, and not for this.
#[derive(Debug)]
struct Unfit(String);

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unfit {}

fn unfit(problem: String) -> Error {
    CertificateError::Other(OtherError(Arc::new(Unfit(problem)))).into()
}

/// No older version is ever negotiated, so nobody asks for its signatures.
fn only_tls13() -> Error {
    Error::General("only TLS 1.3 is spoken here".to_owned())
}

fn shown_to(cluster: &str, certificate: &CertificateDer<'_>) -> Result<Shown, Error> {
    let shown = Shown::read(certificate).map_err(unfit)?;
    if shown.credential.cluster() != cluster {
        let problem = format!("{} is of another cluster than {cluster:?}", shown.credential);
        return Err(unfit(problem));
    }
    Ok(shown)
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    provider().signature_verification_algorithms
}

/// Whether a chain leads to one of these CAs, whatever it is for and whenever it counts.
pub(crate) fn issued_by(chain: &[CertificateDer<'_>], roots: &RootCertStore) -> Result<(), String> {
    let parsed = ParsedCertificate::try_from(&chain[0]).map_err(|error| error.to_string())?;
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now_seconds()));
    let verified = verify_server_cert_signed_by_trust_anchor(&parsed, roots, &chain[1..], now, algorithms().all);
    match verified {
        Err(Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadEncoding | CertificateError::BadSignature,
        )) => Err("another CA signed it".to_owned()),
        // Persons' certificates are not for servers; that says nothing about who signed them.
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Judges whoever connects.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    cluster: Arc<str>,
    port: Port,
}

impl ClientVerifier {
    pub(super) fn new(roots: Arc<RootCertStore>, cluster: &str, port: Port) -> Result<Self, Error> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { chain, cluster: Arc::from(cluster), port })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(certificate, between, now)?;
        let shown = shown_to(&self.cluster, certificate)?;
        match (self.port, shown.credential.caller()) {
            (Port::Anyone, _) | (Port::Replicas, Caller::Replica(_)) => Ok(verified),
            (Port::Replicas, Caller::Author(_) | Caller::Nobody) => {
                Err(unfit(format!("{} is no replica, and this port is for replicas", shown.credential)))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Judges whoever is connected to.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    roots: Arc<RootCertStore>,
    cluster: Arc<str>,
    expect: Expect,
}

impl ServerVerifier {
    pub(super) fn new(roots: Arc<RootCertStore>, cluster: &str, expect: Expect) -> Self {
        Self { roots, cluster: Arc::from(cluster), expect }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, between, now, algorithms().all)?;
        let shown = shown_to(&self.cluster, certificate)?;
        let fits = match (&self.expect, shown.credential.caller()) {
            (Expect::Replica, Caller::Replica(_)) => true,
            (Expect::Agent(node), Caller::Author(author)) => author.role == Role::Agent(node.clone()),
            (Expect::Replica | Expect::Agent(_), _) => false,
        };
        if fits {
            return Ok(ServerCertVerified::assertion());
        }
        Err(unfit(format!("{} answers where {} was expected", shown.credential, self.expect)))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}
