//! Overlays in the kernel's own pages: on connections without TLS it sends those, and copies nothing out of the process.
//!
//! An overlay's bytes are written once into a memory file, and sealed. What the HTTP library hands to the socket is still runs of bytes
//! in this process; a run that lies within the bytes that the connection was lent, which shows in its address, is sent by
//! `sendfile` from the same place in the file. So HTTP is spoken by nobody else: lengths, ranges, keep-alive and deadlines are what they
//! are without it.
//!
//! Invariants
//! - a run is sent from a file only while the bytes that it lies within are held, so that nothing else can be at its address; and the
//!   file's bytes are those, and stay;
//! - whatever cannot be lent (TLS, a small overlay, no file to be had) is sent as it would be without this.

use super::connections::Pulse;
use crate::tls::accept::Socket;
use bytes::Bytes;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create, sendfile};
use rustix::io::Errno;
use rustix::net::sockopt::set_tcp_cork;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// Runs shorter than this are copied: two system calls more cost as much. Longer than a frame of HTTP/2.
const RUN_BYTES_MIN: usize = 32 << 10;

/// Bytes, and a file that holds the same.
pub(super) struct Pages {
    bytes: Bytes,
    file: File,
}

impl Pages {
    /// Bytes that may be sent often; none if they are few, or the system gives no file.
    pub(super) fn of(bytes: &Bytes) -> Option<Arc<Self>> {
        if bytes.len() < RUN_BYTES_MIN {
            return None;
        }
        let make = || -> io::Result<File> {
            let mut file = File::from(memfd_create("overlay", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
            file.write_all(bytes)?;
            fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
            Ok(file)
        };
        match make() {
            Ok(file) => Some(Arc::new(Self { bytes: bytes.clone(), file })),
            Err(error) => {
                tracing::warn!(%error, "there is no memory file for an overlay: it is copied to every node");
                None
            }
        }
    }

    /// Where in the file a run of bytes is.
    fn offset(&self, run: &[u8]) -> Option<u64> {
        let offset = run.as_ptr().addr().checked_sub(self.bytes.as_ptr().addr())?;
        let lies_within = offset.checked_add(run.len())? <= self.bytes.len();
        (lies_within && run.len() >= RUN_BYTES_MIN).then_some(offset as u64)
    }
}

/// The pages that a connection's answer may be sent from. It does not keep them: a superseded overlay goes when its last boot is over.
#[derive(Default)]
pub(super) struct Lent(Mutex<Weak<Pages>>);

impl Lent {
    pub(super) fn lend(&self, pages: &Arc<Pages>) {
        let mut lent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::ptr::eq(lent.as_ptr(), Arc::as_ptr(pages)) {
            *lent = Arc::downgrade(pages);
        }
    }

    fn pages(&self) -> Option<Arc<Pages>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }
}

/// A client's connection that sends lent pages as such.
pub(super) struct Line {
    socket: Socket,
    pulse: Arc<Pulse>,
}

impl Line {
    pub(super) fn new(socket: Socket, pulse: Arc<Pulse>) -> Self {
        Self { socket, pulse }
    }
}

/// Sends runs by copying them; an error says that no more of them fits.
fn copy(stream: &TcpStream, runs: &[IoSlice<'_>], sent: &mut usize) -> io::Result<()> {
    let all: usize = runs.iter().map(|run| run.len()).sum();
    if all == 0 {
        return Ok(());
    }
    let took = sendmsg(stream, runs, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?;
    *sent += took;
    if took < all { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
}

/// Sends runs of which one is in a file, as full segments: each of them would otherwise end with a small one, for whose
/// acknowledgement the other side takes its time and which is then sent again.
fn send(
    stream: &TcpStream,
    runs: (&[IoSlice<'_>], usize, &[IoSlice<'_>]),
    file: (&Pages, u64),
    sent: &mut usize,
) -> io::Result<()> {
    set_tcp_cork(stream, true)?;
    let done = send_each(stream, runs, file, sent);
    set_tcp_cork(stream, false)?;
    done
}

/// The same, each as it comes, until all are sent or no more fits.
fn send_each(
    stream: &TcpStream,
    (before, run, after): (&[IoSlice<'_>], usize, &[IoSlice<'_>]),
    (pages, mut offset): (&Pages, u64),
    sent: &mut usize,
) -> io::Result<()> {
    copy(stream, before, sent)?;
    let end = offset + run as u64;
    while offset < end {
        let left = usize::try_from(end - offset).unwrap_or(usize::MAX);
        match sendfile(stream, &pages.file, Some(&mut offset), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(took) => *sent += took,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    copy(stream, after, sent)
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        runs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let lent = runs.iter().any(|run| run.len() >= RUN_BYTES_MIN).then(|| this.pulse.lent()?.pages()).flatten();
        let found = lent.and_then(|pages| {
            let (at, offset) = runs.iter().enumerate().find_map(|(at, run)| Some((at, pages.offset(run)?)))?;
            Some((at, offset, pages))
        });
        let (Socket::Plain(stream), Some((at, offset, pages))) = (&this.socket, found) else {
            return Pin::new(&mut this.socket).poll_write_vectored(context, runs);
        };
        let parts = (&runs[..at], runs[at].len(), &runs[at + 1..]);
        loop {
            ready!(stream.poll_write_ready(context))?;
            let mut sent = 0;
            // What would block is told to the runtime, which waits before the next attempt.
            let tried = stream.try_io(Interest::WRITABLE, || send(stream, parts, (&pages, offset), &mut sent));
            match tried {
                Ok(()) => return Poll::Ready(Ok(sent)),
                Err(_) if sent > 0 => return Poll::Ready(Ok(sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
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

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn a_file_holds_the_same_bytes_and_nobody_can_change_them() {
        let bytes: Bytes = (0..100_000_u32).map(|i| i.to_le_bytes()[i as usize % 3]).collect();
        let pages = Pages::of(&bytes).unwrap();
        let mut read = vec![0; bytes.len()];
        pages.file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(read, bytes);
        assert!(pages.file.write_at(b"x", 0).is_err(), "it is sealed");
        assert!(pages.file.set_len(1).is_err(), "it is sealed");
    }

    #[test]
    fn only_runs_within_the_lent_bytes_are_sent_from_the_file() {
        let bytes = Bytes::from(vec![7; 100_000]);
        let pages = Pages::of(&bytes).unwrap();
        assert_eq!(pages.offset(&bytes), Some(0));
        assert_eq!(pages.offset(&bytes.slice(5..60_000)), Some(5));
        assert_eq!(pages.offset(&bytes.slice(5..10)), None, "that is cheaper to copy");
        let elsewhere = bytes.to_vec();
        assert_eq!(pages.offset(&elsewhere), None, "the same bytes elsewhere are not known to stay");
        let (first, second) = (bytes.slice(..50_000), bytes.slice(50_000..));
        let half = Pages::of(&second).unwrap();
        assert_eq!(half.offset(&first), None);
        assert_eq!(half.offset(&bytes.slice(40_000..90_000)), None, "it begins before");
        assert_eq!(half.offset(&second), Some(0));
        let beginning = Pages::of(&first).unwrap();
        assert_eq!(beginning.offset(&bytes.slice(10_000..60_000)), None, "it ends beyond");
        assert!(Pages::of(&Bytes::from_static(b"small")).is_none());
    }

    #[test]
    fn what_is_lent_is_not_kept() {
        let lent = Lent::default();
        let pages = Pages::of(&Bytes::from(vec![7; 100_000])).unwrap();
        lent.lend(&pages);
        assert!(lent.pages().is_some());
        drop(pages);
        assert!(lent.pages().is_none());
    }
}
