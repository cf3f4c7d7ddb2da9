//! Letting connections in: plain ones as they are, TLS ones after their handshake.
//!
//! Handshakes go on beside one another, each bounded in time and all together in number: the oldest unfinished one gives way
//! to the newest, so that connections which never say anything keep nobody out. Whoever does not speak TLS at a TLS port is
//! told so in its own language.

use super::{Port, Shown, Tls};
use rustls::pki_types::CertificateDer;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// How long a handshake may take.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
/// How many may be unfinished. More than there are places for boots: in a storm a handshake that was begun should come to its end.
const HANDSHAKES_MAX: usize = 4_096;
/// How long, and for how many bytes, a refused peer is listened to, so that it reads why before the connection is reset.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: u64 = 64 << 10;
/// How long to wait when the system gives no connection (too many open files).
const PAUSE: Duration = Duration::from_millis(50);
/// The first byte of a TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;

const SPEAK_TLS: &str = "this port speaks TLS 1.3 and wants a client certificate";

/// A connection that was let in.
pub enum Socket {
    /// Without TLS.
    Plain(TcpStream),
    /// With.
    Tls(Box<TlsStream<TcpStream>>, Arc<Shown>),
}

/// What a connection proves of whoever is at its other end. Among every request's extensions.
#[derive(Clone, Debug)]
pub struct Proof(pub(crate) Option<Arc<Shown>>);

impl Connected for Socket {
    type ConnectInfo = Proof;

    fn connect_info(&self) -> Proof {
        match self {
            Self::Plain(_) => Proof(None),
            Self::Tls(_, shown) => Proof(Some(shown.clone())),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream, _) => Pin::new(stream.as_mut()).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream, _) => Pin::new(stream.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tls(stream, _) => Pin::new(stream.as_mut()).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream, _) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream, _) => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream, _) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }
}

/// The connections of a listener, as a server wants them. Accepting ends when the stream is dropped.
#[must_use]
pub fn incoming(listener: TcpListener, tls: Option<(Tls, Port)>) -> ReceiverStream<io::Result<Socket>> {
    let (ready, sockets) = mpsc::channel(64);
    tokio::spawn(accept(listener, tls, ready));
    ReceiverStream::new(sockets)
}

type Ready = mpsc::Sender<io::Result<Socket>>;

async fn accept(listener: TcpListener, tls: Option<(Tls, Port)>, ready: Ready) {
    let mut handshakes: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => break,
        };
        let Ok((stream, address)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // A connection that is gone already is found out when it is used.
        stream.set_nodelay(true).ok();
        let Some((tls, port)) = &tls else {
            if ready.send(Ok(Socket::Plain(stream))).await.is_err() {
                break;
            }
            continue;
        };
        if handshakes.len() >= HANDSHAKES_MAX {
            handshakes.retain(|handshake| !handshake.is_finished());
        }
        if handshakes.len() >= HANDSHAKES_MAX
            && let Some(oldest) = handshakes.pop_front()
        {
            oldest.abort();
            tls.count_given_up();
        }
        handshakes.push_back(tokio::spawn(shake(stream, address, tls.clone(), *port, ready.clone())));
    }
    for handshake in handshakes {
        handshake.abort();
    }
}

async fn shake(stream: TcpStream, address: SocketAddr, tls: Tls, port: Port, ready: Ready) {
    match tokio::time::timeout(HANDSHAKE_PATIENCE, handshake(stream, address, &tls, port)).await {
        Ok(Some(socket)) => {
            ready.send(Ok(socket)).await.ok();
        }
        Ok(None) => {}
        Err(_) => tls.count_given_up(),
    }
}

async fn handshake(stream: TcpStream, address: SocketAddr, tls: &Tls, port: Port) -> Option<Socket> {
    let mut first = [0; 4];
    let seen = stream.peek(&mut first).await.ok().filter(|seen| *seen > 0)?;
    if first[0] != TLS_HANDSHAKE {
        tls.count_refused(&address, "it does not speak TLS");
        tell_plainly(stream, b"PRI ".starts_with(&first[..seen])).await;
        return None;
    }
    let config = match tls.server(port) {
        Ok(config) => config,
        Err(error) => {
            tls.count_refused(&address, &error.to_string());
            return None;
        }
    };
    match TlsAcceptor::from(config).accept(stream).into_fallible().await {
        Ok(made) => {
            let certificate = made.get_ref().1.peer_certificates().and_then(<[CertificateDer<'_>]>::first);
            // It was read in the handshake already.
            let shown = Arc::new(Shown::read(certificate?).ok()?);
            Some(Socket::Tls(Box::new(made), shown))
        }
        Err((error, stream)) => {
            tls.count_refused(&address, &super::explain::of_caller(&error));
            linger(stream).await;
            None
        }
    }
}

/// Tells a peer without TLS what it should do: HTTP/2 by a GOAWAY frame, anybody else as HTTP/1.1.
async fn tell_plainly(mut stream: TcpStream, http2: bool) {
    let message = if http2 {
        let length = u8::try_from(8 + SPEAK_TLS.len()).unwrap_or(u8::MAX);
        let settings: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
        // Frame header, last stream 0, error INADEQUATE_SECURITY, and why.
        let goaway: &[u8] = &[0, 0, length, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xc];
        [settings, goaway, SPEAK_TLS.as_bytes()].concat()
    } else {
        format!(
            "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{SPEAK_TLS}\n",
            SPEAK_TLS.len() + 1
        )
        .into_bytes()
    };
    if stream.write_all(&message).await.is_ok() {
        linger(stream).await;
    }
}

/// Closes a connection so that what was written last is read.
async fn linger(mut stream: TcpStream) {
    if stream.shutdown().await.is_ok() {
        let mut rest = stream.take(LINGER_BYTES);
        tokio::time::timeout(LINGER, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await.ok();
    }
}
