//! A sector of the log: a stamp that says which one it is, then its share of the batch's bytes.
//!
//! ```text
//! offset  bytes
//!      0      8  segment number, from 1   ┐
//!      8      8  batch number, from 1     │ the stamp: never all zero
//!     16      4  position within the batch│
//!     20      4  sectors of the batch     ┘
//!     24      4  CRC-32 of everything else in the sector
//!     28    484  the batch's bytes
//! ```
//! Numbers are little-endian. A sector that was never written is zero from end to end; any other must carry its checksum.

use crate::file::{SECTOR, u32_at, u64_at};

const SEGMENT: usize = 0;
const BATCH: usize = SEGMENT + 8;
const POSITION: usize = BATCH + 8;
const COUNT: usize = POSITION + 4;
const CHECKSUM: usize = COUNT + 4;
/// What comes before a sector's share of the batch.
pub(super) const STAMP: usize = CHECKSUM + 4;
/// A sector's share of the batch.
pub(super) const SHARE: usize = SECTOR - STAMP;
const _: () = assert!(STAMP == 28 && SHARE == 484);

const UNWRITTEN: [u8; SECTOR] = [0; SECTOR];

/// Which sector a sector is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) segment: u64,
    pub(super) batch: u64,
    pub(super) position: u32,
    pub(super) count: u32,
}

/// What a sector's bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Zero from end to end.
    Unwritten,
    /// Written, and as written.
    Written(Stamp),
    /// Neither.
    Damaged,
}

impl Stamp {
    /// Stamps a sector whose share is in place, and checksums it.
    pub(super) fn put(self, sector: &mut [u8]) {
        sector[SEGMENT..BATCH].copy_from_slice(&self.segment.to_le_bytes());
        sector[BATCH..POSITION].copy_from_slice(&self.batch.to_le_bytes());
        sector[POSITION..COUNT].copy_from_slice(&self.position.to_le_bytes());
        sector[COUNT..CHECKSUM].copy_from_slice(&self.count.to_le_bytes());
        let checksum = checksum(sector);
        sector[CHECKSUM..STAMP].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// Looks at a sector.
pub(super) fn see(sector: &[u8]) -> Seen {
    if sector == UNWRITTEN {
        return Seen::Unwritten;
    }
    if checksum(sector) != u32_at(sector, CHECKSUM) {
        return Seen::Damaged;
    }
    Seen::Written(Stamp {
        segment: u64_at(sector, SEGMENT),
        batch: u64_at(sector, BATCH),
        position: u32_at(sector, POSITION),
        count: u32_at(sector, COUNT),
    })
}

fn checksum(sector: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sector[..CHECKSUM]);
    hasher.update(&sector[STAMP..]);
    hasher.finalize()
}
