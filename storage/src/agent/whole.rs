//! A small file that is replaced as a whole.
//!
//! ```text
//! offset  bytes
//!      0      8  magic: MUSTERal (ledger) or MUSTERad (declared state)
//!      8      4  format
//!     12      4  zero
//!     16      8  generation: grows with every replacement of a ledger, else zero
//!     24      8  length of the content
//!     32     32  BLAKE3 over the bytes before, then the content
//!     64         the content
//! ```
//! Numbers are little-endian. It is written beside, synced, renamed, and its directory synced: under its name it is complete or
//! damaged, never torn.

use crate::disk::{Disk, printed, read_whole, write_whole};
use crate::file::{u32_at, u64_at};
use bytes::Bytes;
use muster_core::ids::Digest;
use muster_core::storage::StorageError;
use std::path::Path;

const FORMAT: u32 = 1;

const VERSION: usize = 8;
const GENERATION: usize = VERSION + 4 + 4;
const LENGTH: usize = GENERATION + 8;
const DIGEST: usize = LENGTH + 8;
const CONTENT: usize = DIGEST + 32;
const _: () = assert!(CONTENT == 64);

/// What the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ledger,
    Declared,
}

impl Kind {
    const fn magic(self) -> [u8; 8] {
        match self {
            Self::Ledger => *b"MUSTERal",
            Self::Declared => *b"MUSTERad",
        }
    }
}

fn digest(head: &[u8], content: &[u8]) -> Digest {
    Digest::of(head).chain(content)
}

pub(super) async fn write<D: Disk>(
    disk: &D,
    kind: Kind,
    path: &Path,
    generation: u64,
    content: &[u8],
) -> Result<(), StorageError> {
    let mut bytes = Vec::with_capacity(CONTENT + content.len());
    bytes.extend_from_slice(&kind.magic());
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&generation.to_le_bytes());
    bytes.extend_from_slice(&(content.len() as u64).to_le_bytes());
    let digest = digest(&bytes, content);
    bytes.extend_from_slice(&digest.0);
    bytes.extend_from_slice(content);
    write_whole(disk, path, &bytes).await
}

/// The generation and the content; or what is wrong with the file. None if there is none.
pub(super) async fn read<D: Disk>(
    disk: &D,
    kind: Kind,
    path: &Path,
) -> Result<Option<Result<(u64, Bytes), String>>, StorageError> {
    let Some(bytes) = read_whole(disk, path).await? else { return Ok(None) };
    if bytes.len() < CONTENT {
        return Ok(Some(Err(format!("it ends after {} bytes, its head alone has {CONTENT}", bytes.len()))));
    }
    if bytes[..VERSION] != kind.magic() {
        return Ok(Some(Err("it is another kind of file".to_owned())));
    }
    if digest(&bytes[..DIGEST], &bytes[CONTENT..]).0 != bytes[DIGEST..CONTENT] {
        return Ok(Some(Err("its checksum is wrong".to_owned())));
    }
    let format = u32_at(&bytes, VERSION);
    if format != FORMAT {
        return Err(StorageError::Format { file: printed(path), found: format, known: FORMAT });
    }
    if u64_at(&bytes, LENGTH) != (bytes.len() - CONTENT) as u64 {
        return Ok(Some(Err("it has another length than it says".to_owned())));
    }
    Ok(Some(Ok((u64_at(&bytes, GENERATION), Bytes::from(bytes).slice(CONTENT..)))))
}
