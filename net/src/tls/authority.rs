//! A small certificate authority, for those who have none: one key that signs, in a directory.
//!
//! Certificates are ECDSA P-256 and carry a credential (`muster_core::service::Credential`) as their only `muster://` name.
//! Those of replicas and agents serve both ends of a connection and name their hosts; those of persons only the client's.
//! Renewing keeps the key: only the certificate's file changes, at once, so nobody ever sees half of a pair.

use super::shown::parse;
use super::{KeyError, Shown, certificates, now_seconds, wrong};
use muster_core::journal::entry::Role;
use muster_core::service::{Caller, Credential};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo, date_time_ymd,
};
use std::fs::File;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use x509_parser::prelude::GeneralName;

/// Clocks differ: what is made now counts since a little earlier.
const CLOCKS_APART: u64 = 300;

/// The CA of a directory: `ca.pem` and `ca.key`.
pub struct Authority {
    certificate: PathBuf,
    cluster: String,
    not_after: u64,
    issuer: Issuer<'static, KeyPair>,
}

/// What was made: where, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The certificate's file.
    pub certificate: PathBuf,
    /// The key's file.
    pub key: PathBuf,
    /// What it says.
    pub shown: Shown,
}

fn failed(file: &Path, error: &rcgen::Error) -> KeyError {
    wrong(file, format!("it could not be made: {error}"))
}

/// Parameters that all certificates have in common.
fn params(common_name: &str, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    let now = now_seconds();
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(CLOCKS_APART));
    params.not_after = epoch + Duration::from_secs(now) + life;
    let mut serial = crate::client::random_id().0.to_be_bytes();
    // Positive, and of a fixed length.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

fn ca_params(cluster: &str, life: Duration) -> CertificateParams {
    let mut params = params(&format!("{CA_NAME}{cluster}"), life);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

/// How the CA of a cluster is called, followed by the cluster's name.
const CA_NAME: &str = "Muster CA of ";

fn holder_params(credential: &Credential, hosts: &[String], life: Duration) -> Result<CertificateParams, String> {
    let mut params = params(credential.name(), life);
    let uri = credential.uri().try_into().map_err(|error: rcgen::Error| error.to_string())?;
    params.subject_alt_names.push(SanType::URI(uri));
    for host in hosts {
        params.subject_alt_names.push(if let Ok(ip) = host.parse::<IpAddr>() {
            SanType::IpAddress(ip)
        } else {
            let name = host.as_str().try_into();
            SanType::DnsName(name.map_err(|_| format!("{host:?} is no host name or IP address"))?)
        });
    }
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if serves(credential) {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    Ok(params)
}

/// Whether others connect to the holder.
fn serves(credential: &Credential) -> bool {
    match credential.caller() {
        Caller::Replica(_) => true,
        Caller::Author(author) => matches!(author.role, Role::Agent(_)),
        Caller::Nobody => false,
    }
}

/// Writes a file that is not there yet, for its owner alone if it is secret.
fn write_new(file: &Path, text: &str, secret: bool) -> Result<(), KeyError> {
    let mode = if secret { 0o600 } else { 0o644 };
    let opened = File::options().write(true).create_new(true).mode(mode).open(file);
    let mut opened = opened.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => wrong(file, "it is there already, and nothing is overwritten"),
        _ => wrong(file, format!("it cannot be written: {error}")),
    })?;
    let written = opened.write_all(text.as_bytes()).and_then(|()| opened.sync_all());
    written.map_err(|error| wrong(file, format!("it cannot be written: {error}")))
}

/// Puts a new text in a file's place at once.
fn replace(file: &Path, text: &str) -> Result<(), KeyError> {
    let beside = file.with_extension("pem.new");
    std::fs::remove_file(&beside).ok();
    write_new(&beside, text, false)?;
    std::fs::rename(&beside, file).map_err(|error| wrong(file, format!("it cannot be replaced: {error}")))
}

impl Authority {
    /// Makes a CA in a directory that has none.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn init(dir: &Path, cluster: &str, life: Duration) -> Result<Self, KeyError> {
        let (certificate, key) = (dir.join("ca.pem"), dir.join("ca.key"));
        // The same rules that names in certificates have.
        Credential::new(cluster, "admin", "a").map_err(|_| {
            wrong(&certificate, format!("{cluster:?} is not a cluster's name: expected letters, digits, '.', '_', '-'"))
        })?;
        std::fs::create_dir_all(dir).map_err(|error| wrong(dir, format!("it cannot be made: {error}")))?;
        if certificate.exists() {
            return Err(wrong(&certificate, "there is a CA already: renew it, or take another directory"));
        }
        let pair = KeyPair::generate().map_err(|error| failed(&key, &error))?;
        let signed = ca_params(cluster, life).self_signed(&pair).map_err(|error| failed(&certificate, &error))?;
        write_new(&key, &pair.serialize_pem(), true)?;
        write_new(&certificate, &signed.pem(), false)?;
        Self::open(dir)
    }

    /// The CA of a directory.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn open(dir: &Path) -> Result<Self, KeyError> {
        let (certificate, key) = (dir.join("ca.pem"), dir.join("ca.key"));
        let text = std::fs::read_to_string(&key)
            .map_err(|error| wrong(&key, format!("it cannot be read: {error}; make a CA with `muster certs init`")))?;
        let pair = KeyPair::from_pem(&text).map_err(|error| wrong(&key, format!("it is no private key: {error}")))?;
        let der = certificates(&certificate)?.remove(0);
        let parsed = parse(&der).map_err(|problem| wrong(&certificate, problem))?;
        let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
        let Some(cluster) = name.strip_prefix(CA_NAME).filter(|_| parsed.is_ca()) else {
            return Err(wrong(&certificate, format!("it is not a CA that `muster certs init` made, but {name:?}")));
        };
        let (cluster, not_after) = (cluster.to_owned(), super::shown::expires(&der).unwrap_or(0));
        let issuer = Issuer::from_ca_cert_der(&der, pair).map_err(|error| wrong(&certificate, error))?;
        Ok(Self { certificate, cluster, not_after, issuer })
    }

    /// The name that its certificates share.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The CA's certificate.
    #[must_use]
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// Makes a key and a certificate: `STEM.pem` and `STEM.key`. One that would outlive the CA ends with it.
    ///
    /// # Errors
    /// [`KeyError`]; what is there already is not touched.
    pub fn issue(
        &self,
        credential: &Credential,
        hosts: &[String],
        life: Duration,
        stem: &Path,
    ) -> Result<Issued, KeyError> {
        let named = |extension: &str| {
            let mut name = stem.as_os_str().to_owned();
            name.push(extension);
            PathBuf::from(name)
        };
        let (certificate, key) = (named(".pem"), named(".key"));
        if certificate.exists() {
            return Err(wrong(&certificate, "it is there already: renew it with `muster certs renew`"));
        }
        let params =
            self.bounded(holder_params(credential, hosts, life).map_err(|problem| wrong(&certificate, problem))?);
        let pair = KeyPair::generate().map_err(|error| failed(&key, &error))?;
        let signed = params.signed_by(&pair, &self.issuer).map_err(|error| failed(&certificate, &error))?;
        write_new(&key, &pair.serialize_pem(), true)?;
        write_new(&certificate, &signed.pem(), false)?;
        let shown = Shown::read(signed.der()).map_err(|problem| wrong(&certificate, problem))?;
        Ok(Issued { certificate, key, shown })
    }

    fn bounded(&self, mut params: CertificateParams) -> CertificateParams {
        let end = date_time_ymd(1970, 1, 1) + Duration::from_secs(self.not_after);
        params.not_after = params.not_after.min(end);
        params
    }

    /// Makes a certificate anew for the same holder, hosts and key, and puts it in the old one's place.
    ///
    /// # Errors
    /// [`KeyError`]; the old one stays then.
    pub fn renew(&self, certificate: &Path, life: Duration) -> Result<Shown, KeyError> {
        let der = certificates(certificate)?.remove(0);
        let shown = Shown::read(&der).map_err(|problem| wrong(certificate, problem))?;
        if shown.credential.cluster() != self.cluster {
            let problem = format!("it is of cluster {:?}, this CA of {:?}", shown.credential.cluster(), self.cluster);
            return Err(wrong(certificate, problem));
        }
        let parsed = parse(&der).map_err(|problem| wrong(certificate, problem))?;
        let hosts = hosts(&parsed);
        let key = SubjectPublicKeyInfo::from_der(parsed.public_key().raw).map_err(|error| wrong(certificate, error))?;
        let params = holder_params(&shown.credential, &hosts, life).map_err(|problem| wrong(certificate, problem))?;
        let signed = self.bounded(params).signed_by(&key, &self.issuer).map_err(|error| failed(certificate, &error))?;
        replace(certificate, &signed.pem())?;
        Shown::read(signed.der()).map_err(|problem| wrong(certificate, problem))
    }

    /// Makes the CA's own certificate anew, with the same key: everything it signed stays good.
    ///
    /// # Errors
    /// [`KeyError`]; the old one stays then.
    pub fn renew_ca(&mut self, life: Duration) -> Result<u64, KeyError> {
        let params = ca_params(&self.cluster, life);
        let signed = params.self_signed(self.issuer.key()).map_err(|error| failed(&self.certificate, &error))?;
        replace(&self.certificate, &signed.pem())?;
        self.not_after = super::shown::expires(signed.der()).map_err(|problem| wrong(&self.certificate, problem))?;
        Ok(self.not_after)
    }
}

/// The hosts that a certificate names.
fn hosts(parsed: &x509_parser::certificate::X509Certificate<'_>) -> Vec<String> {
    let names = parsed.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(host) => Some((*host).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(|ip| IpAddr::from(ip).to_string()),
                16 => <[u8; 16]>::try_from(*bytes).ok().map(|ip| IpAddr::from(ip).to_string()),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

/// A certificate file, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Whom it is of: the CA of a cluster, or a holder.
    pub holder: Result<Credential, String>,
    /// Who signed it.
    pub issuer: String,
    /// From when it counts, in seconds since the Unix epoch.
    pub not_before: u64,
    /// Until when.
    pub not_after: u64,
    /// The hosts it names.
    pub hosts: Vec<String>,
    /// Its serial number.
    pub serial: String,
}

/// Reads every certificate of a file.
///
/// # Errors
/// [`KeyError`].
pub fn describe(file: &Path) -> Result<Vec<Described>, KeyError> {
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    certificates(file)?
        .iter()
        .map(|der| {
            let parsed = parse(der).map_err(|problem| wrong(file, problem))?;
            let holder = match Shown::read(der) {
                Ok(shown) => Ok(shown.credential),
                Err(_) if parsed.is_ca() => Err(parsed.subject().to_string()),
                Err(problem) => return Err(wrong(file, problem)),
            };
            Ok(Described {
                holder,
                issuer: parsed.issuer().to_string(),
                not_before: seconds(parsed.validity().not_before.timestamp()),
                not_after: seconds(parsed.validity().not_after.timestamp()),
                hosts: hosts(&parsed),
                serial: parsed.raw_serial_as_string(),
            })
        })
        .collect()
}
