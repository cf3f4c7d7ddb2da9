//! Reads of history and snapshots, from any thread, while they are being written.
//!
//! What the archive has is a small table behind a lock that is never held across a disk call. The newest records are answered
//! from memory. A read that runs into an install sees the table's generation change and begins again; before that, what it finds wrong
//! with files that are being replaced is no damage.

use crate::disk::Disk;
use crate::file::{REPAIR, SECTOR, damaged};
use crate::history::{self, Blocks};
use crate::snapshot::Kept;
use bytes::Bytes;
use muster_core::ids::{Index, Seq, Term};
use muster_core::state::Finished;
use muster_core::storage::{Library, Segment, SnapshotMeta, StorageError};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

/// How many bytes of the newest records are kept in memory, beyond those that are not in their file yet.
const TAIL_BYTES: usize = 4 << 20;
/// How many places where readers stopped are remembered.
const PLACES: usize = 64;

/// A sealed segment, here or still to be fetched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) segment: Segment,
    pub(crate) is_here: bool,
}

/// The block in which a reader stopped: whoever goes on reading there need not look for it.
struct Place {
    first: Seq,
    next: Seq,
    offset: u64,
}

/// What the archive has.
pub(crate) struct Table {
    /// Sealed segments by their first sequence.
    pub(crate) sealed: BTreeMap<Seq, Held>,
    /// The segment that records are appended to.
    pub(crate) open: Segment,
    /// The last sequence that is in its file; what is later is in `tail`.
    pub(crate) written: Seq,
    tail: VecDeque<Bytes>,
    tail_bytes: usize,
    /// Kept snapshots and what they rest on, oldest first.
    pub(crate) snapshots: Vec<Arc<Kept>>,
    generation: u64,
    /// Files are being replaced, and the table says what was there before.
    changing: bool,
    places: VecDeque<Place>,
}

/// The table, shared between the archive and its libraries.
pub(crate) type Shared = Arc<Mutex<Table>>;

impl Table {
    pub(crate) fn new(sealed: BTreeMap<Seq, Held>, open: Segment, snapshots: Vec<Arc<Kept>>) -> Self {
        Self {
            sealed,
            written: open.last,
            open,
            tail: VecDeque::new(),
            tail_bytes: 0,
            snapshots,
            generation: 0,
            changing: false,
            places: VecDeque::new(),
        }
    }

    /// From now on until [`Self::replace`], files are not what the table says.
    pub(crate) fn changes(&mut self) {
        self.changing = true;
    }

    /// Takes the place of another table; reads that began before begin again.
    pub(crate) fn replace(&mut self, table: Self) {
        *self = Self { generation: self.generation + 1, ..table };
    }

    /// Takes the next record. The chain's head after it is taken as it is told: whoever reads the record back checks it.
    pub(crate) fn push(&mut self, record: Finished) {
        let Finished { sequence, bytes, head } = record;
        self.open = Segment { last: sequence, bytes: self.open.bytes + bytes.len() as u64, head, ..self.open };
        self.tail_bytes += bytes.len();
        self.tail.push_back(bytes);
        while self.tail_bytes > TAIL_BYTES && self.tail_first() <= self.written {
            let oldest = self.tail.pop_front().expect("its bytes were counted");
            self.tail_bytes -= oldest.len();
        }
    }

    /// Closes the open segment; what follows belongs to the next.
    pub(crate) fn seal(&mut self) {
        let sealed = self.open;
        self.sealed.insert(sealed.first, Held { segment: sealed, is_here: true });
        self.open = Segment::starting(sealed.last.next(), sealed.head);
    }

    fn tail_first(&self) -> Seq {
        Seq(self.open.last.0 + 1 - self.tail.len() as u64)
    }

    fn source(&self, next: Seq) -> Source {
        if next > self.open.last {
            return Source::Nowhere;
        }
        if next >= self.tail_first() {
            return Source::Memory(usize::try_from(next.0 - self.tail_first().0).expect("the tail is in memory"));
        }
        let (first, last) = if next >= self.open.first {
            (self.open.first, self.written)
        } else {
            match self.sealed.range(..=next).next_back() {
                Some((_, held)) if held.is_here && next <= held.segment.last => {
                    (held.segment.first, held.segment.last.min(self.written))
                }
                Some(_) | None => return Source::Nowhere,
            }
        };
        let place = self.places.iter().filter(|place| place.first == first && place.next <= next);
        let (from, offset) =
            place.max_by_key(|place| place.next).map_or((first, SECTOR as u64), |place| (place.next, place.offset));
        Source::File(Readable { first, last, from, offset })
    }

    fn remember(&mut self, place: Place) {
        self.places.push_back(place);
        if self.places.len() > PLACES {
            self.places.pop_front();
        }
    }
}

/// Where the next record is to be had.
enum Source {
    /// In the tail, from this place on.
    Memory(usize),
    /// In a file.
    File(Readable),
    /// Not here.
    Nowhere,
}

/// What can be read of the file of the segment that begins with `first`: up to `last`, and the block of `from` is at `offset`.
struct Readable {
    first: Seq,
    last: Seq,
    from: Seq,
    offset: u64,
}

pub(crate) fn lock(shared: &Mutex<Table>) -> MutexGuard<'_, Table> {
    shared.lock().expect("nobody panics while holding the archive's table")
}

/// Reads of what a [`FileArchive`](crate::FileArchive) holds.
#[derive(Clone)]
pub struct FileLibrary<D: Disk> {
    pub(crate) disk: D,
    pub(crate) history: PathBuf,
    pub(crate) shared: Shared,
}

/// What has been found so far.
struct Take {
    records: Vec<(Seq, Bytes)>,
    bytes: usize,
    bytes_max: usize,
    next: Seq,
    upto: Seq,
}

impl Take {
    fn is_done(&self) -> bool {
        self.next > self.upto || (self.bytes >= self.bytes_max && !self.records.is_empty())
    }
    fn put(&mut self, record: Bytes) {
        self.bytes += record.len();
        self.records.push((self.next, record));
        self.next = self.next.next();
    }
}

impl<D: Disk> FileLibrary<D> {
    /// Takes records from a file as far as `place` reaches.
    async fn read(&self, take: &mut Take, place: &Readable, generation: u64) -> Result<(), StorageError> {
        let &Readable { first, last, from, offset } = place;
        let blocks = Blocks::open(&self.disk, &self.history, None, first).await?;
        let mut blocks = blocks
            .ok_or_else(|| damaged(&history::path_of(&self.history, first), 0, "it is missing".into(), REPAIR))?;
        blocks.go_to(from, offset);
        let mut stopped = Place { first, next: from, offset };
        while take.next <= last && !take.is_done() {
            let block = blocks.next().await?;
            stopped = Place { first, next: block.first, offset: block.offset };
            if block.next() <= take.next {
                continue;
            }
            let records = block.records().map_err(|problem| blocks.wrong(block.offset, problem))?;
            let skipped = usize::try_from(take.next.0 - block.first.0).unwrap_or(usize::MAX);
            for record in records.into_iter().skip(skipped) {
                if take.next > last || take.is_done() {
                    break;
                }
                take.put(record);
            }
        }
        let mut table = lock(&self.shared);
        if table.generation == generation {
            table.remember(stopped);
        }
        Ok(())
    }
}

impl<D: Disk> Library for FileLibrary<D> {
    async fn records(&self, after: Seq, upto: Seq, bytes_max: usize) -> Result<Vec<(Seq, Bytes)>, StorageError> {
        let mut take = Take { records: Vec::new(), bytes: 0, bytes_max, next: after.next(), upto };
        while !take.is_done() {
            let (source, generation) = {
                let table = lock(&self.shared);
                let source = table.source(take.next);
                if let Source::Memory(place) = source {
                    for record in table.tail.range(place..) {
                        if take.is_done() {
                            break;
                        }
                        take.put(record.clone());
                    }
                    break;
                }
                (source, table.generation)
            };
            let Source::File(place) = source else { break };
            let read = self.read(&mut take, &place, generation).await;
            let (now, changing) = {
                let table = lock(&self.shared);
                (table.generation, table.changing)
            };
            if now != generation {
                take = Take { records: Vec::new(), bytes: 0, next: after.next(), ..take };
                continue;
            }
            match read {
                Ok(()) => {}
                // It is not here just now: whoever asked asks again.
                Err(StorageError::Damaged { .. }) if changing => break,
                Err(error) => return Err(error),
            }
        }
        Ok(take.records)
    }

    async fn page(&self, index: Index, term: Term, page: u32) -> Result<Option<Bytes>, StorageError> {
        let find = || {
            let table = lock(&self.shared);
            table.snapshots.iter().find(|kept| (kept.meta.index, kept.meta.term) == (index, term)).cloned()
        };
        match find() {
            Some(kept) => kept.page(&self.disk, page).await,
            None => Ok(None),
        }
    }

    fn snapshot_at(&self, at: Seq) -> Option<SnapshotMeta> {
        let table = lock(&self.shared);
        table.snapshots.iter().rev().find(|kept| kept.meta.sequence <= at).map(|kept| kept.meta.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RealDisk, ready};
    use muster_core::ids::Digest;

    #[test]
    fn a_file_that_is_being_replaced_is_not_here_and_one_that_is_gone_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let segment = Segment { last: Seq(9), ..Segment::starting(Seq(1), Digest::default()) };
        let sealed = BTreeMap::from([(Seq(1), Held { segment, is_here: true })]);
        let table = Table::new(sealed, Segment::starting(Seq(10), Digest::default()), Vec::new());
        let shared = Arc::new(Mutex::new(table));
        let library = FileLibrary { disk: RealDisk, history: dir.path().to_owned(), shared: shared.clone() };
        let read = || ready(library.records(Seq(0), Seq(9), 1_000));
        assert!(matches!(read(), Err(StorageError::Damaged { .. })));
        lock(&shared).changes();
        assert_eq!(read().unwrap(), Vec::new());
        lock(&shared).replace(Table::new(
            BTreeMap::from([(Seq(1), Held { segment, is_here: true })]),
            Segment::starting(Seq(10), Digest::default()),
            Vec::new(),
        ));
        assert!(matches!(read(), Err(StorageError::Damaged { .. })), "over, and it is still gone");
    }
}
