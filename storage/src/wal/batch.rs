//! A batch: the records of one append, laid out over whole sectors.
//!
//! Its bytes (the sectors' shares put together) are a head, the records one after the other, and zeros up to the sector's end:
//! ```text
//! offset  bytes
//!      0      8  number of the batch before; 0 for the first
//!      8     24  term, vote and commit in force before this batch
//!     32     16  index and term of the log's last position before this batch
//!     48      4  length of the records
//!     52      4  CRC-32 of the records
//!     56         records (`muster_core::codec::log`)
//! ```
//! So every batch says where the log stood. Replay can begin at any segment, and checks what it arrives at against every
//! batch that follows.

use super::position::Position;
use super::sector::{SHARE, STAMP, Stamp};
use crate::file::{SECTOR, u32_at, u64_at};
use muster_core::codec::log::{decode_log_record, encode_log_record};
use muster_core::ids::{Index, ReplicaId, Term};
use muster_core::log::{HardState, LogRecord};

const BEFORE: usize = 0;
const HARD_STATE: usize = BEFORE + 8;
const LAST: usize = HARD_STATE + 3 * 8;
const LENGTH: usize = LAST + 2 * 8;
const CHECKSUM: usize = LENGTH + 4;
const HEAD: usize = CHECKSUM + 4;
const _: () = assert!(HEAD == 56 && HEAD <= SHARE);

/// The head's place in the batch's first sector.
const HEAD_AT: usize = STAMP;

/// How much memory a batch keeps between appends.
const KEPT_BYTES: usize = 1 << 20;

/// What a batch says about where the log stood before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHead {
    /// The number of the batch before; 0 for the first.
    pub(crate) before: u64,
    pub(crate) hard_state: HardState,
    pub(crate) last: (Index, Term),
}

/// A batch in the making. Records are encoded straight into their sectors.
#[derive(Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    records_bytes: usize,
}

impl Batch {
    /// Takes the records of one append.
    pub(super) fn fill(&mut self, records: &[LogRecord]) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.put(&[0; HEAD]);
        let mut records_bytes = 0;
        for record in records {
            encode_log_record(record, |piece| {
                records_bytes += piece.len();
                self.put(piece);
            });
        }
        self.records_bytes = records_bytes;
        self.bytes.resize(self.bytes.len().next_multiple_of(SECTOR), 0);
    }

    fn put(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let within = self.bytes.len() % SECTOR;
            if within == 0 {
                self.bytes.extend_from_slice(&[0; STAMP]);
                continue;
            }
            let (here, rest) = bytes.split_at(bytes.len().min(SECTOR - within));
            self.bytes.extend_from_slice(here);
            bytes = rest;
        }
    }

    /// How many sectors it takes.
    pub(super) fn sectors(&self) -> u64 {
        (self.bytes.len() / SECTOR) as u64
    }

    /// Completes head and stamps and gives the bytes to write.
    pub(super) fn seal(&mut self, segment: u64, number: u64, before: u64, position: &Position) -> &[u8] {
        let checksum = self.records_checksum();
        let length = u32::try_from(self.records_bytes).expect("a batch holds less than 4 GiB");
        let head = &mut self.bytes[HEAD_AT..HEAD_AT + HEAD];
        head[BEFORE..HARD_STATE].copy_from_slice(&before.to_le_bytes());
        let state = position.hard_state;
        let words = [state.term.0, state.vote.0, state.commit.0, position.last.0.0, position.last.1.0];
        for (place, word) in head[HARD_STATE..LENGTH].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        head[LENGTH..CHECKSUM].copy_from_slice(&length.to_le_bytes());
        head[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        let count = u32::try_from(self.sectors()).expect("a batch has less than 2^32 sectors");
        for (sector, position) in self.bytes.chunks_exact_mut(SECTOR).zip(0..) {
            Stamp { segment, batch: number, position, count }.put(sector);
        }
        &self.bytes
    }

    fn records_checksum(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        let mut left = self.records_bytes;
        for (number, sector) in self.bytes.chunks_exact(SECTOR).enumerate() {
            let share = &sector[if number == 0 { HEAD_AT + HEAD } else { STAMP }..];
            let here = &share[..left.min(share.len())];
            hasher.update(here);
            left -= here.len();
        }
        hasher.finalize()
    }
}

/// A record of a stored batch and the place of its first byte in the segment.
pub(crate) struct Placed {
    pub(crate) record: LogRecord,
    pub(crate) bytes: usize,
    /// Where it begins among the batch's records.
    pub(crate) offset: usize,
}

/// Reads a batch whose sectors are all there and as written, or tells what is wrong with it.
pub(super) fn read(sectors: &[u8]) -> Result<(BatchHead, Vec<Placed>), String> {
    let mut bytes = Vec::with_capacity(sectors.len() / SECTOR * SHARE);
    for sector in sectors.chunks_exact(SECTOR) {
        bytes.extend_from_slice(&sector[STAMP..]);
    }
    let length = u32_at(&bytes, LENGTH) as usize;
    if (HEAD + length).div_ceil(SHARE) * SECTOR != sectors.len() {
        return Err(format!("the batch's {length} bytes of records do not take its {} bytes", sectors.len()));
    }
    let records = &bytes[HEAD..HEAD + length];
    if crc32fast::hash(records) != u32_at(&bytes, CHECKSUM) {
        return Err("the batch's checksum is wrong".into());
    }
    let head = BatchHead {
        before: u64_at(&bytes, BEFORE),
        hard_state: HardState {
            term: Term(u64_at(&bytes, HARD_STATE)),
            vote: ReplicaId(u64_at(&bytes, HARD_STATE + 8)),
            commit: Index(u64_at(&bytes, HARD_STATE + 16)),
        },
        last: (Index(u64_at(&bytes, LAST)), Term(u64_at(&bytes, LAST + 8))),
    };
    let mut placed = Vec::new();
    let mut offset = 0;
    while offset < length {
        let (record, bytes) = decode_log_record(&records[offset..]).map_err(|error| error.to_string())?;
        placed.push(Placed { record, bytes, offset });
        offset += bytes;
    }
    Ok((head, placed))
}

/// Where in a batch's sectors the byte at `offset` of its records is.
pub(super) fn place_of(offset: usize) -> usize {
    let at = HEAD + offset;
    at / SHARE * SECTOR + STAMP + at % SHARE
}
