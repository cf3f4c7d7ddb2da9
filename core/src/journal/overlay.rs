//! A vCluster's boot overlay as it is stored: compressed once, shared by reference.

use crate::ids::{Digest, Seq};
use bytes::Bytes;

/// A pre-computed, compressed boot overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootOverlay {
    /// The sequence of the last entry that it contains.
    pub version: Seq,
    /// BLAKE3 over `data`, the stored, compressed bytes.
    pub checksum: Digest,
    /// zstd.
    pub data: Bytes,
    /// Size once uncompressed, in bytes.
    pub content_bytes: u64,
}
