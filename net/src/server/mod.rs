//! A replica's two listeners: clients (gRPC and HTTP/1.1 on one port) and peers.
//!
//! Invariants
//! - without TLS nothing but loopback is bound, unless that was asked for in so many words;
//! - nothing is answered that did not pass core's door (`access`);
//! - every stream ends when the replica is ending, so that a server stops without being killed;
//! - a slow reader holds a bounded number of bytes, and nobody else waits for it.

mod access;
mod api;
mod boot;
mod clients;
mod connections;
mod fleet;
mod history;
mod http;
mod lane;
mod outgoing;
mod pages;
mod pipeline;

pub(crate) use access::Access;
pub(crate) use api::MESSAGE_BYTES_MAX;
pub use api::{ClientLimits, MusterApi};
pub use boot::{BootCounts, BootOptions};
pub use clients::{serve_anonymous, serve_clients};
pub use connections::ConnectionCounts;
pub use http::HttpPages;

use crate::peer::{GrpcNetwork, PeerApi};
use crate::tls::accept::incoming;
use crate::tls::{Port, Tls, root_cause};
use boot::Desk;
use connections::Watch;
use muster_core::front::Handle;
use muster_core::storage::{Identity, Library};
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Server;

/// What the servers need of a replica.
#[derive(Clone)]
pub struct Replica<L> {
    /// Its front.
    pub handle: Handle,
    /// Reads of its archive.
    pub library: L,
    /// Who it is.
    pub identity: Arc<Identity>,
    /// The version of the binary, for status.
    pub build_version: &'static str,
    /// What its data directory takes on disk, in bytes. Asked for every status.
    disk_bytes: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// What agents told this replica.
    fleet: fleet::FleetMemory,
    desk: Arc<Desk>,
    watch: Arc<Watch>,
    /// The connections of those without a certificate: they take nobody else's places.
    strangers: Arc<Watch>,
    tls: Option<Tls>,
    ending: watch::Receiver<bool>,
    end: Arc<watch::Sender<bool>>,
}

impl<L: Library> Replica<L> {
    /// Wires a replica's parts together for its servers.
    #[must_use]
    pub fn new(handle: Handle, library: L, identity: Identity, build_version: &'static str) -> Self {
        let (end, ending) = watch::channel(false);
        Self {
            handle,
            library,
            identity: Arc::new(identity),
            build_version,
            disk_bytes: Arc::new(|| 0),
            fleet: fleet::FleetMemory::new(),
            desk: Arc::new(Desk::new(BootOptions::default())),
            watch: Arc::new(Watch::new()),
            strangers: Arc::new(Watch::new()),
            tls: None,
            ending,
            end: Arc::new(end),
        }
    }
}

impl<L> Replica<L> {
    /// The same replica, telling what its data directory takes on disk.
    #[must_use]
    pub fn with_disk_bytes(self, disk_bytes: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self { disk_bytes: Arc::new(disk_bytes), ..self }
    }

    /// The same replica, telling until when its certificate counts.
    #[must_use]
    pub fn with_tls(self, tls: Option<Tls>) -> Self {
        Self { tls, ..self }
    }

    /// The same replica, serving boots so.
    #[must_use]
    pub fn with_boots(self, options: BootOptions) -> Self {
        Self { desk: Arc::new(Desk::new(options)), ..self }
    }

    /// What came of boots so far.
    #[must_use]
    pub fn boots(&self) -> BootCounts {
        self.desk.counts()
    }

    /// What came of clients' connections so far.
    #[must_use]
    pub fn connections(&self) -> ConnectionCounts {
        self.watch.counts() + self.strangers.counts()
    }

    /// Ends every stream and both servers. Call it when the process is asked to stop, or the replica has stopped.
    pub fn end(&self) {
        self.end.send_replace(true);
    }

    /// Whether the servers are ending.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        *self.ending.borrow()
    }

    /// Waits until the servers are ending.
    pub async fn ending(&self) {
        let mut ending = self.ending.clone();
        // The sender lives in `self`: it cannot be gone.
        ending.wait_for(|ending| *ending).await.ok();
    }
}

/// Why a server does not run.
#[derive(Debug)]
pub enum ServeError {
    /// The address cannot be understood.
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Anybody could reach it, and nothing would check who they are.
    Unprotected {
        /// The address.
        address: SocketAddr,
    },
    /// Another process listens there.
    InUse {
        /// The address.
        address: SocketAddr,
        /// For whom it is: `clients` or `peers`.
        purpose: &'static str,
    },
    /// The operating system refuses.
    Io {
        /// The address.
        address: SocketAddr,
        /// What it said.
        source: std::io::Error,
    },
    /// The server broke while it ran.
    Broken {
        /// For whom it was.
        purpose: &'static str,
        /// What happened.
        problem: String,
    },
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { address, problem } => {
                write!(f, "{address:?} is not an address to listen on ({problem}): expected HOST:PORT")
            }
            Self::Unprotected { address } => write!(
                f,
                "{address} can be reached from other machines, and without TLS anybody there could change everything: \
                 give it certificates, listen on 127.0.0.1, or say --insecure if the network is trusted"
            ),
            Self::InUse { address, purpose } => {
                write!(f, "{address} (for {purpose}) is in use by another process: stop that one, or set another port")
            }
            Self::Io { address, source } => write!(f, "cannot listen on {address}: {source}"),
            Self::Broken { purpose, problem } => write!(f, "the server for {purpose} broke: {problem}"),
        }
    }
}

impl std::error::Error for ServeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Address { .. } | Self::Unprotected { .. } | Self::InUse { .. } | Self::Broken { .. } => None,
        }
    }
}

/// What stands between a port and whoever reaches it.
#[derive(Clone, Debug)]
pub enum Protection {
    /// Nothing, so only this machine may reach it.
    Loopback,
    /// Nothing, and others may reach it: the network is trusted.
    Insecure,
    /// Both ends show certificates.
    Tls(Tls),
}

/// A bound socket, not served yet.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    purpose: &'static str,
    tls: Option<Tls>,
}

impl Listener {
    /// Binds an address for `clients` or `peers`.
    ///
    /// # Errors
    /// [`ServeError`] names the address and what to do.
    pub async fn bind(address: &str, purpose: &'static str, protection: &Protection) -> Result<Self, ServeError> {
        let wrong = |problem: &dyn fmt::Display| ServeError::Address {
            address: address.to_owned(),
            problem: problem.to_string(),
        };
        let resolved = address.to_socket_addrs().map_err(|error| wrong(&error))?.next();
        let resolved = resolved.ok_or_else(|| wrong(&"it resolves to nothing"))?;
        let tls = match protection {
            Protection::Loopback if !resolved.ip().is_loopback() => {
                return Err(ServeError::Unprotected { address: resolved });
            }
            Protection::Loopback | Protection::Insecure => None,
            Protection::Tls(tls) => Some(tls.clone()),
        };
        let socket = TcpListener::bind(resolved).await.map_err(|source| match source.kind() {
            std::io::ErrorKind::AddrInUse => ServeError::InUse { address: resolved, purpose },
            _ => ServeError::Io { address: resolved, source },
        })?;
        let address = socket.local_addr().map_err(|source| ServeError::Io { address: resolved, source })?;
        Ok(Self { socket, address, purpose, tls })
    }

    /// Where it listens; the port is the real one if 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn builder() -> Server {
    Server::builder()
        .max_concurrent_streams(ClientLimits::default().streams_max)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
}

/// Serves peers until the replica is [ending](Replica::end).
///
/// # Errors
/// [`ServeError::Broken`].
pub async fn serve_peers<L: Library>(
    listener: Listener,
    replica: Replica<L>,
    network: GrpcNetwork,
) -> Result<(), ServeError> {
    let purpose = listener.purpose;
    let ending = replica.clone();
    let signal = async move { ending.ending().await };
    let incoming = incoming(listener.socket, listener.tls.map(|tls| (tls, Port::Replicas)));
    let serving = builder()
        .add_service(PeerApi::service(replica.clone(), network))
        .serve_with_incoming_shutdown(incoming, signal);
    finish(&replica, serving).await.map_err(|problem| ServeError::Broken { purpose, problem })
}

/// How long connections may linger after the end was announced.
const LINGER: Duration = Duration::from_secs(2);

/// Runs a server. Once the replica is ending, it waits for its connections, but not for long.
async fn finish<L: Library>(
    replica: &Replica<L>,
    serving: impl Future<Output = Result<(), tonic::transport::Error>>,
) -> Result<(), String> {
    let over = async {
        replica.ending().await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        served = serving => served.map_err(|error| root_cause(&error)),
        () = over => Ok(()),
    }
}
