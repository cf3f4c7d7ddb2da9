//! Overlays in the kernel's own pages: on connections without TLS it sends those, and copies nothing out of the process.
//!
//! An overlay's bytes are written once into a memory file, and sealed. Whatever cannot be sent from there (TLS, a small overlay, HTTP/2,
//! no file to be had) is sent as it would be without.

use bytes::Bytes;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create, sendfile};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd;

/// Runs shorter than this are copied: one system call more costs as much.
pub(super) const RUN_BYTES_MIN: usize = 32 << 10;

/// A file that holds an overlay's bytes.
pub(super) struct Pages(File);

impl Pages {
    /// Bytes that may be sent often; none if they are few, or the system gives no file.
    pub(super) fn of(bytes: &Bytes) -> Option<Self> {
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
            Ok(file) => Some(Self(file)),
            Err(error) => {
                tracing::warn!(%error, "there is no memory file for an overlay: it is copied to every node");
                None
            }
        }
    }

    /// Sends bytes from a place in the file, as many as the socket takes; how many that were.
    pub(super) fn send(&self, socket: impl AsFd, mut from: u64, bytes: usize) -> io::Result<usize> {
        loop {
            match sendfile(&socket, &self.0, Some(&mut from), bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(sent) => return Ok(sent),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::fs::FileExt as _;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_file_holds_the_same_bytes_and_nobody_can_change_them() {
        let bytes: Bytes = (0..100_000_u32).map(|i| i.to_le_bytes()[i as usize % 3]).collect();
        let pages = Pages::of(&bytes).unwrap();
        let mut read = vec![0; bytes.len()];
        pages.0.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(read, bytes);
        assert!(pages.0.write_at(b"x", 0).is_err(), "it is sealed");
        assert!(pages.0.set_len(1).is_err(), "it is sealed");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let sent = pages.send(&ours, 70_000, 5_000).unwrap();
        let mut got = vec![0; sent];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(got, bytes[70_000..70_000 + sent]);
        assert!(pages.send(&ours, 100_000, 1).is_err(), "there is no more");
    }

    #[test]
    fn few_bytes_are_no_file() {
        assert!(Pages::of(&Bytes::from_static(b"small")).is_none());
    }
}
