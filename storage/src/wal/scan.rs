//! Telling a torn tail from damage: what the bytes of one segment say.
//!
//! ```text
//! sector        │ 0      │ 1 2     │ 3         │ 4 5 6   │ 7 …
//! written       │ header │ batch 4 │ batch 5   │ batch 6 │ zeros to the end
//! found, torn   │ header │ 4 4     │ 5         │ · 6 ·   │ · · ·      cut before sector 4
//! found, damage │ header │ 4 ·     │ 5         │ 6 6 6   │ · · ·      sector 2 was synced before batch 5 was written
//! found, damage │ header │ 4 4     │ ✗         │ 6 6 6   │ · · ·      sector 3 is neither zero nor what was written
//! found, damage │ header │ 4 4     │ 5         │ 6 6 ✗   │ · · ·      even in the last batch
//! ```
//! A batch counts when all its sectors are there. One that lacks sectors is torn only if nothing was written after it, in
//! this segment or (the caller looks) in a later one.

use super::batch::{self, BatchHead, Placed};
use super::sector::{Seen, Stamp, see};
use crate::file::{REPLACE, SECTOR, damaged};
use muster_core::storage::StorageError;
use std::path::Path;

/// A complete batch.
pub(crate) struct Found {
    pub(crate) number: u64,
    /// Its first sector, counted from the segment's beginning.
    pub(crate) sector: usize,
    pub(crate) sectors: usize,
    pub(crate) head: BatchHead,
    pub(crate) records: Vec<Placed>,
}

impl Found {
    /// Where it begins in the segment, in bytes.
    pub(crate) fn offset(&self) -> u64 {
        (self.sector * SECTOR) as u64
    }
    /// Where a record of it begins in the segment, in bytes.
    pub(crate) fn offset_of(&self, placed: &Placed) -> u64 {
        self.offset() + batch::place_of(placed.offset) as u64
    }
}

/// A batch that lacks sectors and after which nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Torn {
    pub(crate) batch: u64,
    /// The first sector it lacks.
    pub(crate) missing: usize,
}

/// What a segment holds.
pub(crate) struct Scanned {
    pub(crate) batches: Vec<Found>,
    /// The first sector after the last complete batch.
    pub(crate) end: usize,
    pub(crate) torn: Option<Torn>,
}

impl Scanned {
    /// Whether anything was ever written to it, as far as can be seen.
    pub(crate) fn is_written(&self) -> bool {
        !self.batches.is_empty() || self.torn.is_some()
    }
}

/// Reads a segment's sectors after its header.
pub(crate) fn scan(path: &Path, segment: u64, bytes: &[u8]) -> Result<Scanned, StorageError> {
    let sectors = Sectors { path, segment, bytes };
    let mut scanned = Scanned { batches: Vec::new(), end: 1, torn: None };
    while scanned.end < sectors.count() {
        let begin = scanned.end;
        let Some(count) = sectors.complete(begin)? else {
            scanned.torn = sectors.torn_from(begin)?;
            break;
        };
        let (number, end) = (count.batch, begin + count.count as usize);
        let (head, records) =
            batch::read(&bytes[begin * SECTOR..end * SECTOR]).map_err(|problem| sectors.wrong(begin, problem))?;
        scanned.batches.push(Found { number, sector: begin, sectors: end - begin, head, records });
        scanned.end = end;
    }
    Ok(scanned)
}

struct Sectors<'a> {
    path: &'a Path,
    segment: u64,
    bytes: &'a [u8],
}

impl Sectors<'_> {
    fn count(&self) -> usize {
        self.bytes.len() / SECTOR
    }

    fn wrong(&self, sector: usize, problem: String) -> StorageError {
        damaged(self.path, (sector * SECTOR) as u64, problem, REPLACE)
    }

    /// A sector's stamp; None if it was never written.
    fn stamp(&self, sector: usize) -> Result<Option<Stamp>, StorageError> {
        match see(&self.bytes[sector * SECTOR..(sector + 1) * SECTOR]) {
            Seen::Unwritten => Ok(None),
            Seen::Damaged => Err(self.wrong(sector, "a sector's checksum is wrong".into())),
            Seen::Written(stamp) if stamp.segment != self.segment => {
                Err(self.wrong(sector, format!("a sector of segment {} is in segment {}", stamp.segment, self.segment)))
            }
            Seen::Written(stamp) if stamp.position >= stamp.count => Err(self
                .wrong(sector, format!("a sector says it is number {} of a batch of {}", stamp.position, stamp.count))),
            Seen::Written(stamp) => Ok(Some(stamp)),
        }
    }

    /// The stamp of the batch that begins here, if all its sectors are there.
    fn complete(&self, begin: usize) -> Result<Option<Stamp>, StorageError> {
        let Some(first) = self.stamp(begin)? else { return Ok(None) };
        if first.position != 0 {
            return Err(self.wrong(begin, format!("batch {} goes on where a batch should begin", first.batch)));
        }
        if first.count as usize > self.count() - begin {
            return Err(self.wrong(begin, format!("batch {} is longer than what is left of the segment", first.batch)));
        }
        for position in 1..first.count {
            let sector = begin + position as usize;
            match self.stamp(sector)? {
                None => return Ok(None),
                Some(stamp) if stamp == (Stamp { position, ..first }) => {}
                Some(stamp) => {
                    return Err(self.wrong(
                        sector,
                        format!("a sector of batch {} is where batch {} goes on", stamp.batch, first.batch),
                    ));
                }
            }
        }
        Ok(Some(first))
    }

    /// The torn batch that begins here. None if nothing was written from here on.
    fn torn_from(&self, begin: usize) -> Result<Option<Torn>, StorageError> {
        let mut torn: Option<Stamp> = None;
        let mut missing = None;
        for sector in begin..self.count() {
            let Some(stamp) = self.stamp(sector)? else {
                missing = missing.or(Some(sector));
                continue;
            };
            let one = torn.is_none_or(|other| other.batch == stamp.batch && other.count == stamp.count);
            if !one || begin + stamp.position as usize != sector {
                return Err(self.wrong(
                    missing.unwrap_or(begin),
                    format!("a sector that was on disk before batch {} was written is zero", stamp.batch),
                ));
            }
            if stamp.count as usize > self.count() - begin {
                return Err(
                    self.wrong(sector, format!("batch {} is longer than what is left of the segment", stamp.batch))
                );
            }
            torn = Some(stamp);
        }
        let Some(stamp) = torn else { return Ok(None) };
        let missing = missing.expect("a batch that is not complete lacks a sector");
        Ok(Some(Torn { batch: stamp.batch, missing }))
    }
}
