//! The quick lane: boots over HTTP/1.1, read, answered and sent on the connection's own task.
//!
//! ```text
//!   connection ──► lane ── GET or HEAD of a boot ──► answer ──► lane
//!                   └───── anything else, with all that was read ──► the HTTP library, from then on
//! ```
//! Every connection begins here. What is read here is a request as every initramfs makes it: `GET` or `HEAD` of a page below `/v1/boot/`,
//! HTTP/1.1, a head and nothing after it. The first request that is anything else (another page, HTTP/2, HTTP/1.0, a body, an upgrade,
//! a head that is long or odd) is not judged here: it goes to the HTTP library as it came, and the connection with it.
//!
//! An answer leaves as full segments: the connection is corked, and what is left of an answer is pushed at its end. Without that the small
//! end of each part would be a segment of its own, for whose acknowledgement the other side takes its time. An overlay's bytes are the
//! kernel's own pages where there is no TLS.
//!
//! Invariants
//! - one answer at a time, in the order of the requests; what is asked meanwhile waits unread, or in at most one read's bytes;
//! - a connection on which nothing is asked holds no buffer;
//! - a boot's place is held until its last byte is handed to the socket, or the connection is gone.

use super::boot::http::{Answering, Ask, PREFIX, Said};
use super::boot::reply::{Answer, Piece};
use super::connections::{HEAD_BYTES_MAX, Pulse, Turn};
use crate::tls::accept::Socket;
use axum::http::Method;
use bytes::{Buf as _, Bytes};
use rustix::net::sockopt::{set_tcp_cork, set_tcp_nodelay};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, Interest, ReadBuf};
use tokio::net::TcpStream;

/// What is read at a time. A boot's request is a few hundred bytes.
const READ_BYTES: usize = 4 << 10;

/// Lines of a head that are read here; more are for the library to refuse.
const LINES_MAX: usize = 32;

/// Answers what is asked of boots on one connection.
pub(super) trait Boots {
    /// An answer to what was read, or to what is wrong with it.
    fn boot(&self, ask: Result<Ask, Box<Answer>>, turn: Turn) -> Answering;
}

/// How a connection left the lane.
pub(super) enum Over {
    /// It is closed, or to be closed.
    Closed,
    /// Something else is asked, of which this was read.
    Other(Vec<u8>),
}

/// A request as it was read.
struct Asked {
    ask: Result<Ask, Box<Answer>>,
    /// The head alone is wanted.
    head: bool,
    /// The connection ends after it.
    ends: bool,
}

enum Read {
    /// A whole request, of so many bytes.
    Whole(Asked, usize),
    /// The beginning of one.
    Part,
    Other,
}

/// Reads a request at the beginning of what came.
fn read(bytes: &[u8]) -> Read {
    let head = bytes.starts_with(b"H");
    let begins = |method: &[u8]| {
        let mut wanted = method.iter().chain(PREFIX.as_bytes());
        bytes.iter().all(|byte| wanted.next().is_none_or(|wanted| wanted == byte))
    };
    if !begins(if head { b"HEAD " } else { b"GET " }) {
        return Read::Other;
    }
    let mut lines = [httparse::EMPTY_HEADER; LINES_MAX];
    let mut request = httparse::Request::new(&mut lines);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Read::Part,
        Err(_) => return Read::Other,
    };
    let (Some(1), Some(path)) = (request.version, request.path) else { return Read::Other };
    if path.contains('#') {
        return Read::Other;
    }
    let mut ends = false;
    let mut said = Said::default();
    for line in request.headers.iter() {
        let is = |name: &str| line.name.eq_ignore_ascii_case(name);
        let text = std::str::from_utf8(line.value)
            .ok()
            .filter(|text| !text.bytes().any(|byte| !matches!(byte, b'\t' | b' '..0x7f)));
        match line.name.len() {
            5 if is("range") => said.range = said.range.or(text),
            6 if is("expect") => return Read::Other,
            7 if is("upgrade") => return Read::Other,
            8 if is("if-range") => said.if_range = said.if_range.or(text),
            10 if is("connection") => match text {
                Some(word) if word.eq_ignore_ascii_case("close") => ends = true,
                Some(word) if word.eq_ignore_ascii_case("keep-alive") => {}
                Some(_) | None => return Read::Other,
            },
            13 if is("if-none-match") => said.none_match = said.none_match.or(text),
            14 if is("content-length") => return Read::Other,
            17 if is("transfer-encoding") => return Read::Other,
            _ => {}
        }
    }
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let method = if head { Method::HEAD } else { Method::GET };
    Read::Whole(Asked { ask: Ask::read(&method, path, query, said), head, ends }, length)
}

/// Serves a connection for as long as boots are asked for.
pub(super) async fn serve(socket: &mut Socket, boots: &impl Boots, pulse: &Arc<Pulse>) -> Over {
    let mut held = Vec::new();
    let mut corked = false;
    loop {
        let asked = poll_fn(|context| poll_next(socket, &mut held, pulse, context)).await;
        let Next::Asked(Asked { ask, head, ends }) = asked else {
            let is_other = matches!(asked, Next::Other);
            if corked && let Socket::Plain(stream) = &*socket {
                set_tcp_cork(stream, false).ok();
            }
            return if is_other { Over::Other(held) } else { Over::Closed };
        };
        let answer = match boots.boot(ask, Turn::begin(pulse)) {
            Answering::Now(answer) => answer,
            Answering::Later(answer) => answer.await,
        };
        let ends = ends || answer.close || pulse.is_ending();
        let mut sending = Sending::of(answer, head, ends);
        if poll_fn(|context| sending.poll(socket, &mut corked, context)).await.is_err() {
            return Over::Closed;
        }
        drop(sending);
        if ends {
            socket.shutdown().await.ok();
            return Over::Closed;
        }
    }
}

enum Next {
    Asked(Asked),
    Other,
    Over,
}

/// The next request. `held` is what was read beyond the one before, or of one that is not whole yet.
fn poll_next(socket: &mut Socket, held: &mut Vec<u8>, pulse: &Pulse, context: &mut Context<'_>) -> Poll<Next> {
    if !held.is_empty()
        && let Some(next) = take(held)
    {
        return Poll::Ready(next);
    }
    loop {
        if held.len() >= HEAD_BYTES_MAX {
            return Poll::Ready(Next::Other);
        }
        let mut room = [MaybeUninit::uninit(); READ_BYTES];
        let mut buffer = ReadBuf::uninit(&mut room);
        match Pin::new(&mut *socket).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
            Poll::Ready(Ok(()) | Err(_)) => return Poll::Ready(Next::Over),
            Poll::Pending if pulse.is_ending() => return Poll::Ready(Next::Over),
            Poll::Pending => return Poll::Pending,
        }
        let came = buffer.filled();
        if held.is_empty() {
            // Most requests come whole, and are read where they came.
            match read(came) {
                Read::Whole(asked, length) => {
                    held.extend_from_slice(&came[length..]);
                    return Poll::Ready(Next::Asked(asked));
                }
                Read::Part => held.extend_from_slice(came),
                Read::Other => {
                    held.extend_from_slice(came);
                    return Poll::Ready(Next::Other);
                }
            }
        } else {
            held.extend_from_slice(came);
            if let Some(next) = take(held) {
                return Poll::Ready(next);
            }
        }
    }
}

/// A request off the beginning of what is held; none if it is not whole.
fn take(held: &mut Vec<u8>) -> Option<Next> {
    match read(held) {
        Read::Whole(asked, length) => {
            held.drain(..length);
            if held.is_empty() {
                *held = Vec::new();
            }
            Some(Next::Asked(asked))
        }
        Read::Part => None,
        Read::Other => Some(Next::Other),
    }
}

/// An answer on its way.
struct Sending {
    head: Vec<u8>,
    overlay: Option<Piece>,
    rest: Vec<u8>,
    /// How much of all three is sent.
    sent: usize,
    place: Option<super::boot::Place>,
    waited: bool,
}

impl Sending {
    fn of(answer: Answer, head_alone: bool, ends: bool) -> Self {
        let head = with_date(|date| answer.head(ends, date));
        let Answer { overlay, rest, place, .. } = if head_alone { answer.head_alone() } else { answer };
        Self { head, overlay, rest, sent: 0, place, waited: false }
    }

    /// Sends all of it. Most answers are taken at once, so a place's deadline is not made for them.
    fn poll(&mut self, socket: &mut Socket, corked: &mut bool, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.poll_rest(socket, corked, context);
        if polled.is_pending()
            && let Some(place) = &self.place
            && !self.waited
        {
            self.waited = true;
            place.is_waited_for();
        }
        polled
    }

    fn poll_rest(&mut self, socket: &mut Socket, corked: &mut bool, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Socket::Plain(stream) = socket else {
            return self.poll_copied(socket, context);
        };
        loop {
            ready!(stream.poll_write_ready(context))?;
            // What would block is told to the runtime, which waits before the next attempt.
            match stream.try_io(Interest::WRITABLE, || self.send(stream, corked)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    /// Sends as much as the socket takes.
    fn send(&mut self, stream: &TcpStream, corked: &mut bool) -> io::Result<()> {
        let file = self.overlay.as_ref().and_then(|piece| Some((piece.file()?, piece.len())));
        let Some(((pages, first), bytes)) = file else {
            while let Some(runs) = self.left() {
                self.sent += copy(stream, &runs)?;
            }
            return if *corked { push(stream) } else { Ok(()) };
        };
        if !*corked {
            set_tcp_cork(stream, true)?;
            *corked = true;
        }
        let begins = self.head.len();
        let ends = begins + bytes;
        while self.sent < begins {
            self.sent += copy(stream, &[IoSlice::new(&self.head[self.sent..])])?;
        }
        while self.sent < ends {
            self.sent += pages.send(stream, first + (self.sent - begins) as u64, ends - self.sent)?;
        }
        while self.sent < ends + self.rest.len() {
            self.sent += copy(stream, &[IoSlice::new(&self.rest[self.sent - ends..])])?;
        }
        push(stream)
    }

    /// What is not sent yet, if anything.
    fn left(&self) -> Option<[IoSlice<'_>; 3]> {
        let mut skip = self.sent;
        let overlay: &[u8] = self.overlay.as_ref().map_or(&[], Piece::bytes);
        let runs = [&self.head[..], overlay, &self.rest[..]].map(|run| {
            let from = skip.min(run.len());
            skip -= from;
            IoSlice::new(&run[from..])
        });
        runs.iter().any(|run| !run.is_empty()).then_some(runs)
    }

    /// The same where every byte passes through this process.
    fn poll_copied(&mut self, socket: &mut Socket, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(runs) = self.left() {
            match ready!(Pin::new(&mut *socket).poll_write_vectored(context, &runs))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                took => self.sent += took,
            }
        }
        Pin::new(socket).poll_flush(context)
    }
}

/// Has a corked connection send what is left. Setting this option again does that, and leaves the cork where it is.
fn push(stream: &TcpStream) -> io::Result<()> {
    Ok(set_tcp_nodelay(stream, true)?)
}

fn copy(stream: &TcpStream, runs: &[IoSlice<'_>]) -> io::Result<usize> {
    Ok(sendmsg(stream, runs, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?)
}

/// The time as HTTP tells it, written once a second.
fn with_date<T>(tell: impl FnOnce(&str) -> T) -> T {
    thread_local! {
        static WRITTEN: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    WRITTEN.with_borrow_mut(|(written, text)| {
        if *written != second || text.is_empty() {
            (*written, *text) = (second, httpdate::fmt_http_date(now));
        }
        tell(text)
    })
}

/// A connection of which some was read already.
pub(super) struct Rewound {
    read: Bytes,
    socket: Socket,
}

impl Rewound {
    pub(super) fn new(read: Vec<u8>, socket: Socket) -> Self {
        Self { read: Bytes::from(read), socket }
    }
}

impl AsyncRead for Rewound {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.read.is_empty() {
            return Pin::new(&mut this.socket).poll_read(context, buffer);
        }
        let count = this.read.len().min(buffer.remaining());
        buffer.put_slice(&this.read[..count]);
        this.read.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        runs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(context, runs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::{Read, read};

    fn whole(text: &str) -> Option<(usize, bool, bool)> {
        match read(text.as_bytes()) {
            Read::Whole(asked, length) => Some((length, asked.head, asked.ends)),
            Read::Part | Read::Other => None,
        }
    }

    #[test]
    fn a_boots_request_is_read_from_its_first_byte_to_its_last() {
        let text =
            "GET /v1/boot/n1?overlay=plain HTTP/1.1\r\nHost: x\r\nRange: bytes=0-\r\nConnection: Keep-Alive\r\n\r\n";
        for cut in 1..text.len() {
            assert!(matches!(read(&text.as_bytes()[..cut]), Read::Part), "cut at {cut}");
        }
        assert_eq!(whole(text), Some((text.len(), false, false)));
        assert_eq!(whole(&format!("{text}GET /v1/bo")), Some((text.len(), false, false)));
        assert_eq!(whole("HEAD /v1/boot/n1 HTTP/1.1\r\nconnection: close\r\n\r\n"), Some((48, true, true)));
    }

    #[test]
    fn whatever_else_is_said_is_left_to_the_library() {
        for other in [
            "P",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "POST /v1/boot/n1 HTTP/1.1\r\n\r\n",
            "GET /v1/free HTTP/1.1\r\n\r\n",
            "GET /v1/boot/n1 HTTP/1.0\r\n\r\n",
            "GET /v1/boot/n1#a HTTP/1.1\r\n\r\n",
            "GET /v1/boot/n1 HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc",
            "GET /v1/boot/n1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "GET /v1/boot/n1 HTTP/1.1\r\nexpect: 100-continue\r\n\r\n",
            "GET /v1/boot/n1 HTTP/1.1\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n\r\n",
            "GET /v1/boot/n1 HTTP/1.1\r\nodd line\r\n\r\n",
            "GET http://x/v1/boot/n1 HTTP/1.1\r\n\r\n",
        ] {
            assert!(matches!(read(other.as_bytes()), Read::Other), "{other:?}");
        }
        let many = format!("GET /v1/boot/n1 HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(40));
        assert!(matches!(read(many.as_bytes()), Read::Other));
    }
}
