//! Connecting: TCP, then TLS with the server judged by what it should be.

use super::{Tls, now_seconds, shown};
use hyper_util::rt::TokioIo;
use muster_core::ids::NodeId;
use rustls::pki_types::ServerName;
use std::fmt;
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// What a server should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// A replica of our cluster.
    Replica,
    /// The agent of this node.
    Agent(NodeId),
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replica => f.write_str("a replica"),
            Self::Agent(node) => write!(f, "the agent of {node}"),
        }
    }
}

/// How long a handshake may take.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);

/// A connector that makes TLS connections, as a macro because its type has no name.
macro_rules! connector {
    ($tls:expr, $expect:expr) => {{
        let (tls, expect) = ($tls.clone(), $expect.clone());
        service_fn(move |uri: Uri| {
            let (tls, expect) = (tls.clone(), expect.clone());
            async move {
                let address = uri.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
                dial(&address, &tls, expect).await.map(TokioIo::new)
            }
        })
    }};
}

/// Connects an endpoint when it is first used; over TLS if there are keys.
#[must_use]
pub fn connect_lazy(endpoint: &Endpoint, tls: Option<&Tls>, expect: &Expect) -> Channel {
    match tls {
        None => endpoint.connect_lazy(),
        Some(tls) => endpoint.connect_with_connector_lazy(connector!(tls, expect)),
    }
}

/// Connects an endpoint; over TLS if there are keys.
///
/// # Errors
/// The transport's, whose innermost reason says what was wrong.
pub async fn connect(
    endpoint: &Endpoint,
    tls: Option<&Tls>,
    expect: &Expect,
) -> Result<Channel, tonic::transport::Error> {
    match tls {
        None => endpoint.connect().await,
        Some(tls) => endpoint.connect_with_connector(connector!(tls, expect)).await,
    }
}

/// Makes a connection that is there already speak TLS to a replica, for HTTP/1.1.
///
/// # Errors
/// The system's; or why one end refused the other.
pub async fn over_http1(stream: TcpStream, tls: &Tls) -> io::Result<TlsStream<TcpStream>> {
    let mut config = rustls::ClientConfig::clone(&*tls.client(Expect::Replica).map_err(io::Error::other)?);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::IpAddress(stream.peer_addr()?.ip().into());
    TlsConnector::from(std::sync::Arc::new(config)).connect(name, stream).await
}

/// Makes one connection to `host:port`.
///
/// # Errors
/// The system's; or why one end refused the other.
pub async fn dial(address: &str, tls: &Tls, expect: Expect) -> io::Result<TlsStream<TcpStream>> {
    let own = tls.shown();
    if own.has_ended() {
        // The server would only say that it does not like it.
        let problem = format!("our certificate {} ended {}: renew it", own.credential, shown::ago(own.not_after));
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
    }
    if now_seconds() < own.not_before {
        let problem = format!("our certificate {} is not in force yet: check this machine's clock", own.credential);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
    }
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let config = tls.client(expect).map_err(io::Error::other)?;
    // Not looked at: see `verify`. It only has to be a name.
    let name = ServerName::try_from("muster").map_err(io::Error::other)?;
    match tokio::time::timeout(HANDSHAKE_PATIENCE, TlsConnector::from(config).connect(name, stream)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(io::Error::new(error.kind(), "it ended the connection in the handshake: does it speak TLS there?"))
        }
        Ok(made) => made,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "it did not finish the TLS handshake in time")),
    }
}
