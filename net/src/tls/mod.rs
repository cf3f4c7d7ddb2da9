//! TLS: who is at the other end, proven by certificates of one CA.
//!
//! [`Tls`] holds what three files say (the CA, a certificate, its key) and takes them anew when they change. Both ends of every
//! connection show a certificate; [`shown`] reads what it says, [`verify`] accepts it or not, [`accept`] and [`dial`] make the
//! connections, [`authority`] makes certificates for those who have no CA.
//!
//! Invariants
//! - TLS 1.3 only, and every connection is a full handshake: nothing proven once is taken for proven again;
//! - whoever is let in showed a certificate of this CA *and* of this cluster; what it may do then is the door's to say;
//! - a server is known by its role (a replica, a node's agent) and not by its host name, so addresses may change;
//! - a broken new file never replaces what works: it is told, and tried again.
//!
//! Left out: revocation lists. Certificates are made for a short time instead.

pub mod accept;
pub mod authority;
pub mod dial;
mod explain;
mod shown;
mod verify;

pub use dial::Expect;
pub(crate) use explain::{Told, explain, root_cause};
pub use shown::Shown;
pub use verify::Port;

use arc_swap::ArcSwap;
use muster_core::service::Credential;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use verify::{ClientVerifier, ServerVerifier};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Refused connections that are told at level warn, each second.
const TOLD_PER_SECOND: u32 = 10;

/// Where the three files are. All PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFiles {
    /// The CA's certificate, or several, while one CA takes the place of another.
    pub ca: PathBuf,
    /// This end's certificate, and those between it and the CA, if any.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why the files cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyError {
    /// Which file.
    pub file: PathBuf,
    /// What is wrong, and what would be accepted.
    pub problem: String,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.problem)
    }
}

impl std::error::Error for KeyError {}

fn wrong(file: &Path, problem: impl fmt::Display) -> KeyError {
    KeyError { file: file.to_owned(), problem: problem.to_string() }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Seconds since the Unix epoch.
pub(crate) fn now_seconds() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs())
}

/// What the files said when they were last good.
struct Loaded {
    /// Counts how often the files were taken.
    time: u64,
    shown: Shown,
    roots: Arc<RootCertStore>,
    own: Arc<SingleCertAndKey>,
    ca_expires: u64,
}

/// When and how large the files were.
type Stamp = [Option<(SystemTime, u64, u64)>; 3];

struct Shared {
    files: KeyFiles,
    loaded: ArcSwap<Loaded>,
    stamp: Mutex<Stamp>,
    refused: AtomicU64,
    given_up: AtomicU64,
    /// The second in which something was last told, and how often it was.
    told: Mutex<(u64, u32)>,
}

/// This end's keys. Cheap to clone; all clones see what is loaded last.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.0.files).finish_non_exhaustive()
    }
}

/// What came of handshakes so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TlsCounts {
    /// Connections that were refused: no certificate, or one that is not accepted here, or no TLS.
    pub refused: u64,
    /// Handshakes that were not finished in time, or gave way to newer ones.
    pub given_up: u64,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`KeyError`] names the file and what is wrong with it.
    pub fn load(files: KeyFiles) -> Result<Self, KeyError> {
        let stamp = stamp(&files);
        let loaded = ArcSwap::from_pointee(read(&files)?);
        Ok(Self(Arc::new(Shared {
            files,
            loaded,
            stamp: Mutex::new(stamp),
            refused: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
            told: Mutex::new((0, 0)),
        })))
    }

    /// Reads the files again. What is loaded stays if they are not good.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn reload(&self) -> Result<(), KeyError> {
        *self.0.stamp.lock().unwrap_or_else(PoisonError::into_inner) = stamp(&self.0.files);
        let loaded = Loaded { time: self.times_loaded() + 1, ..read(&self.0.files)? };
        tracing::info!(certificate = %loaded.shown.credential, expires = loaded.shown.not_after, "certificates are loaded anew");
        self.0.loaded.store(Arc::new(loaded));
        Ok(())
    }

    /// Takes the files anew whenever they change. Connections that are up stay up: a certificate is looked at when a
    /// connection is made, and its end whenever something is asked.
    pub async fn keep_fresh(self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let found = stamp(&self.0.files);
            if found != *self.0.stamp.lock().unwrap_or_else(PoisonError::into_inner)
                && let Err(error) = self.reload()
            {
                // A file may be half written, or its partner not there yet: the next change is looked at again.
                tracing::warn!(%error, "the changed certificate files are not used; those from before stay in force");
            }
        }
    }

    /// How often the files were taken: what was connected before the last time shows an older certificate.
    pub(crate) fn times_loaded(&self) -> u64 {
        self.0.loaded.load().time
    }

    /// What this end's certificate says.
    #[must_use]
    pub fn shown(&self) -> Shown {
        self.0.loaded.load().shown.clone()
    }

    /// Who this end is.
    #[must_use]
    pub fn credential(&self) -> Credential {
        self.0.loaded.load().shown.credential.clone()
    }

    /// When the CA's certificate ends, in seconds since the Unix epoch; the last of several.
    #[must_use]
    pub fn ca_expires(&self) -> u64 {
        self.0.loaded.load().ca_expires
    }

    /// What came of handshakes so far.
    #[must_use]
    pub fn counts(&self) -> TlsCounts {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TlsCounts { refused: value(&self.0.refused), given_up: value(&self.0.given_up) }
    }

    /// Says that a connection was refused: a few times a second at most for people to read, since anybody can cause it.
    fn count_refused(&self, address: &dyn fmt::Display, problem: &str) {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
        let now = now_seconds();
        let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        *told = if told.0 == now { (now, told.1.saturating_add(1)) } else { (now, 1) };
        if told.1 <= TOLD_PER_SECOND {
            tracing::warn!(%address, problem, "a connection is refused");
        } else {
            tracing::debug!(%address, problem, "a connection is refused");
        }
    }

    fn count_given_up(&self) {
        self.0.given_up.fetch_add(1, Ordering::Relaxed);
    }

    fn server(&self, port: Port) -> Result<Arc<ServerConfig>, rustls::Error> {
        let loaded = self.0.loaded.load();
        let verifier = ClientVerifier::new(loaded.roots.clone(), loaded.shown.credential.cluster(), port)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(loaded.own.clone());
        config.alpn_protocols = match port {
            Port::Anyone => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Port::Replicas => vec![b"h2".to_vec()],
        };
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    fn client(&self, expect: Expect) -> Result<Arc<ClientConfig>, rustls::Error> {
        let loaded = self.0.loaded.load();
        let verifier = ServerVerifier::new(loaded.roots.clone(), loaded.shown.credential.cluster(), expect);
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(loaded.own.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        // Whom we mean is in the certificate we expect, not in a host name.
        config.enable_sni = false;
        Ok(Arc::new(config))
    }
}

fn stamp(files: &KeyFiles) -> Stamp {
    use std::os::unix::fs::MetadataExt as _;
    [&files.ca, &files.certificate, &files.key].map(|file| {
        let found = std::fs::metadata(file).ok()?;
        Some((found.modified().ok()?, found.len(), found.ino()))
    })
}

fn contents(file: &Path) -> Result<Vec<u8>, KeyError> {
    std::fs::read(file).map_err(|error| wrong(file, format!("it cannot be read: {error}")))
}

/// The certificates of a PEM file, at least one.
pub(crate) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, KeyError> {
    let text = contents(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| wrong(file, format!("it is damaged PEM: {error}")))?;
    if found.is_empty() {
        return Err(wrong(file, "it holds no certificate: expected PEM with BEGIN CERTIFICATE"));
    }
    Ok(found)
}

fn read(files: &KeyFiles) -> Result<Loaded, KeyError> {
    let mut roots = RootCertStore::empty();
    let mut ca_expires = 0;
    for ca in certificates(&files.ca)? {
        ca_expires = ca_expires.max(shown::expires(&ca).map_err(|problem| wrong(&files.ca, problem))?);
        roots.add(ca).map_err(|error| wrong(&files.ca, format!("it is not a CA's certificate: {error}")))?;
    }
    let chain = certificates(&files.certificate)?;
    let shown = Shown::read(&chain[0]).map_err(|problem| wrong(&files.certificate, problem))?;
    let key = PrivateKeyDer::from_pem_slice(&contents(&files.key)?).map_err(|error| {
        wrong(&files.key, format!("it holds no private key ({error}): expected PEM with BEGIN PRIVATE KEY"))
    })?;
    let own = CertifiedKey::from_der(chain.clone(), key, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            wrong(&files.key, format!("it is not the key of {}", files.certificate.display()))
        }
        error => wrong(&files.key, format!("it cannot be used: {error}")),
    })?;
    let roots = Arc::new(roots);
    verify::issued_by(&chain, &roots).map_err(|problem| {
        wrong(&files.certificate, format!("{problem}: expected one signed by {}", files.ca.display()))
    })?;
    Ok(Loaded { time: 1, shown, roots, own: Arc::new(SingleCertAndKey::from(own)), ca_expires })
}
