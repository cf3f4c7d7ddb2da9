//! From what is on disk to a log that can be appended to.
//!
//! [`replay`] only reads: it checks every sector of every segment and arrives at the log's position and entries. [`Wal::recover`]
//! then makes what was read durable: reading a batch back proves nothing, because the page cache outlives a killed process and
//! shows writes that never reached the disk.

use super::batch::Batch;
use super::position::{Holding, Position, note};
use super::scan::{Found, Scanned, scan};
use super::{Active, Wal, WalOptions, segment_number, segment_path};
use crate::disk::{Access, Disk, sweep, zero};
use crate::file::{FileKind, Header, Owner, REPLACE, SECTOR, damaged};
use muster_core::ids::{Index, Term};
use muster_core::log::{LogEntry, LogRecord};
use muster_core::storage::StorageError;
use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A segment's file, with its header and length checked.
pub(crate) struct Loaded<F> {
    pub(crate) file: F,
    pub(crate) bytes: Vec<u8>,
}

/// What a log comes to.
pub(crate) struct Replay<F> {
    pub(crate) position: Position,
    /// Contiguous, up to `position.last`.
    pub(crate) entries: VecDeque<LogEntry>,
    /// The position before the first of `entries`: `position.start`, or later where old entries were not kept.
    pub(crate) start: (Index, Term),
    tail: Tail<F>,
    holdings: Vec<Holding>,
    /// The last complete batch.
    last_batch: u64,
    /// The highest number seen on any sector.
    seen_batch: u64,
    /// Segments after the tail, which hold nothing that counts.
    beyond: Vec<PathBuf>,
}

impl<F> Replay<F> {
    /// Whether the log has this position.
    pub(crate) fn has(&self, index: Index, term: Term) -> bool {
        if index == self.start.0 {
            return self.start.1 == term;
        }
        index
            .0
            .checked_sub(self.start.0.0 + 1)
            .and_then(|place| self.entries.get(usize::try_from(place).ok()?))
            .is_some_and(|entry| entry.term == term)
    }
}

/// The segment with the last complete batch.
struct Tail<F> {
    number: u64,
    file: F,
    /// The whole segment, as read.
    bytes: Vec<u8>,
    /// The last complete batch, in sectors.
    last: Range<usize>,
}

/// The numbers of a log's segments, oldest first.
pub(crate) async fn segments<D: Disk>(disk: &D, directory: &Path) -> Result<Vec<u64>, StorageError> {
    let names = disk.list(directory).await?.unwrap_or_default();
    Ok(names.iter().filter_map(|name| segment_number(name)).collect())
}

/// Reads a segment and checks its header and length.
pub(crate) async fn load<D: Disk>(
    disk: &D,
    directory: &Path,
    number: u64,
    owner: Option<&Owner>,
    access: Access,
) -> Result<Loaded<D::File>, StorageError> {
    let path = segment_path(directory, number);
    let wrong = |offset, problem| damaged(&path, offset, problem, REPLACE);
    let file = disk.open(&path, access).await?.ok_or_else(|| wrong(0, "it is missing".into()))?;
    let length = disk.length(&file).await?;
    let bytes = disk.read(&file, 0, usize::try_from(length).expect("a segment fits into memory")).await?;
    let header = Header::decode(FileKind::Log, &path, &bytes, owner)?;
    if header.number != number {
        return Err(wrong(0, format!("it is segment {}, its name says {number}", header.number)));
    }
    if header.length != bytes.len() as u64 || !bytes.len().is_multiple_of(SECTOR) {
        return Err(wrong(
            header.length.min(bytes.len() as u64),
            format!("it has {} bytes, it was made with {}", bytes.len(), header.length),
        ));
    }
    Ok(Loaded { file, bytes })
}

/// Reads a whole log. Of the entries at or before `keep_after` only the last `tail_bytes` bytes are kept. `snapshots` are the
/// positions of those that are kept.
pub(crate) async fn replay<D: Disk>(
    disk: &D,
    directory: &Path,
    owner: &Owner,
    access: Access,
    snapshots: &[(Index, Term)],
    keep_after: Index,
    tail_bytes: usize,
) -> Result<Replay<D::File>, StorageError> {
    let numbers = segments(disk, directory).await?;
    let mut reader = Reader::new(directory, snapshots, keep_after, tail_bytes);
    for (&number, expected) in numbers.iter().zip(numbers.first().copied().unwrap_or(1)..) {
        if number != expected {
            return Err(damaged(
                &segment_path(directory, expected),
                0,
                format!("it is missing, though segment {number} is there"),
                REPLACE,
            ));
        }
        let loaded = load(disk, directory, number, Some(owner), access).await?;
        reader.take(number, loaded)?;
    }
    reader.finish()
}

struct Reader<'a, F> {
    directory: &'a Path,
    snapshots: &'a [(Index, Term)],
    keep_after: Index,
    tail_bytes: usize,
    position: Option<Position>,
    start: (Index, Term),
    entries: VecDeque<LogEntry>,
    /// The bytes of those entries at or before `keep_after`.
    old_bytes: usize,
    tail: Option<Tail<F>>,
    holdings: Vec<Holding>,
    last_batch: u64,
    seen_batch: u64,
    /// Where the last segment's last batch ends.
    end: Option<(PathBuf, usize)>,
    /// A segment that holds no complete batch, and a sector where one is missing.
    incomplete: Option<(PathBuf, usize)>,
    /// A segment that ends in a torn batch, and a sector that it lacks.
    torn: Option<(PathBuf, usize)>,
}

impl<'a, F> Reader<'a, F> {
    fn new(directory: &'a Path, snapshots: &'a [(Index, Term)], keep_after: Index, tail_bytes: usize) -> Self {
        Self {
            directory,
            snapshots,
            keep_after,
            tail_bytes,
            position: None,
            start: <(Index, Term)>::default(),
            entries: VecDeque::new(),
            old_bytes: 0,
            tail: None,
            holdings: Vec::new(),
            last_batch: 0,
            seen_batch: 0,
            end: None,
            incomplete: None,
            torn: None,
        }
    }

    fn take(&mut self, number: u64, loaded: Loaded<F>) -> Result<(), StorageError> {
        let path = segment_path(self.directory, number);
        let scanned = scan(&path, number, &loaded.bytes)?;
        if let Some((path, sector)) = &self.incomplete {
            return Err(wrong(path, *sector, "no complete batch is in it, though a later segment was made".into()));
        }
        if scanned.is_written()
            && let Some((path, sector)) = &self.torn
        {
            return Err(wrong(
                path,
                *sector,
                "a sector that was on disk before the next segment was written is zero".into(),
            ));
        }
        if let Some(torn) = scanned.torn {
            let last = scanned.batches.last().map_or(self.last_batch, |batch| batch.number);
            if torn.batch <= last {
                return Err(wrong(&path, torn.missing, format!("batch {} follows batch {last}", torn.batch)));
            }
            self.seen_batch = torn.batch;
            self.torn = Some((path.clone(), torn.missing));
        }
        if scanned.batches.is_empty() {
            self.incomplete = Some((path, scanned.torn.map_or(1, |torn| torn.missing)));
            return Ok(());
        }
        self.holdings.push(Holding { segment: number, highest: Index(0) });
        let last = scanned.batches.last().expect("there is a batch");
        let last = last.sector..last.sector + last.sectors;
        self.follow(&path, scanned)?;
        self.end = Some((path, last.end));
        self.tail = Some(Tail { number, file: loaded.file, bytes: loaded.bytes, last });
        Ok(())
    }

    fn follow(&mut self, path: &Path, scanned: Scanned) -> Result<(), StorageError> {
        for batch in scanned.batches {
            let sector = batch.sector;
            let head = batch.head;
            if let Some(position) = &self.position {
                self.check_joint(path, &batch, position)?;
            } else {
                self.start = head.last;
            }
            let position = self.position.get_or_insert_with(|| Position::before(&head));
            position.begin_batch();
            if batch.number <= head.before {
                return Err(wrong(path, sector, format!("batch {} follows batch {}", batch.number, head.before)));
            }
            for placed in batch.records {
                let start = position.start;
                position.follow(&placed.record).map_err(|problem| wrong(path, sector, problem))?;
                position.settle(self.snapshots);
                note(&mut self.holdings, &placed.record);
                match placed.record {
                    LogRecord::HardState(_) => {}
                    LogRecord::Reset { index, term } => {
                        self.entries.clear();
                        self.old_bytes = 0;
                        self.start = (index, term);
                    }
                    LogRecord::Entries(entries) => {
                        if position.start != start {
                            // All that is here so far is replaced, and some that was in segments that are gone.
                            self.entries.clear();
                            self.old_bytes = 0;
                            self.start = position.start;
                        }
                        for entry in entries {
                            if position.start != start && entry.index == self.start.0 {
                                continue;
                            }
                            while let Some(last) = self.entries.pop_back_if(|last| last.index >= entry.index) {
                                self.old_bytes -= old_bytes(&last, self.keep_after);
                            }
                            if entry.index <= self.start.0 {
                                let problem = format!("entry {} was committed and is written again", entry.index);
                                return Err(wrong(path, sector, problem));
                            }
                            self.old_bytes += old_bytes(&entry, self.keep_after);
                            self.entries.push_back(entry);
                        }
                    }
                }
            }
            // Only what is committed can be let go: what is not may still be replaced.
            let droppable = self.keep_after.min(position.hard_state.commit);
            while self.old_bytes > self.tail_bytes
                && let Some(first) = self.entries.pop_front_if(|first| first.index <= droppable)
            {
                self.old_bytes -= old_bytes(&first, self.keep_after);
                self.start = (first.index, first.term);
            }
            self.last_batch = batch.number;
            self.seen_batch = batch.number.max(self.seen_batch);
        }
        Ok(())
    }

    /// Whether a batch begins where the log before it ends.
    fn check_joint(&self, path: &Path, batch: &Found, position: &Position) -> Result<(), StorageError> {
        let head = batch.head;
        if batch.sector == 1 && head.before > self.last_batch {
            let (path, end) = self.end.as_ref().expect("a segment came before");
            return Err(wrong(path, *end, format!("batch {} should begin here", head.before)));
        }
        if head.before != self.last_batch {
            let problem = format!("batch {} follows {}, not {}", batch.number, head.before, self.last_batch);
            return Err(wrong(path, batch.sector, problem));
        }
        if (head.hard_state, head.last) != (position.hard_state, position.last) {
            let problem = format!("batch {} does not begin where the log before it ends", batch.number);
            return Err(wrong(path, batch.sector, problem));
        }
        Ok(())
    }

    fn finish(self) -> Result<Replay<F>, StorageError> {
        let (Some(position), Some(tail)) = (self.position, self.tail) else {
            return Err(damaged(
                &segment_path(self.directory, 1),
                SECTOR as u64,
                "no segment holds a hard state, though there is an identity".into(),
                REPLACE,
            ));
        };
        if let Some((path, sector)) = &self.torn {
            tracing::warn!(file = %path.display(), offset = sector * SECTOR, "a torn batch is cut from the end of the log");
        }
        Ok(Replay {
            position,
            entries: self.entries,
            start: self.start,
            tail,
            holdings: self.holdings,
            last_batch: self.last_batch,
            seen_batch: self.seen_batch,
            beyond: self.incomplete.into_iter().map(|(path, _)| path).collect(),
        })
    }
}

fn wrong(path: &Path, sector: usize, problem: String) -> StorageError {
    damaged(path, (sector * SECTOR) as u64, problem, REPLACE)
}

/// What an entry counts towards the entries that are kept although a snapshot contains them.
fn old_bytes(entry: &LogEntry, keep_after: Index) -> usize {
    if entry.index <= keep_after { size_of::<LogEntry>() + entry.data.len() + entry.context.len() } else { 0 }
}

impl<D: Disk> Wal<D> {
    /// Makes what was replayed durable and what follows it zero; gives the log to append to, with position, entries and the
    /// position before them.
    ///
    /// The whole rest of the segment is zeroed, even where it reads as zero: an earlier recovery may have zeroed it in the
    /// page cache only.
    pub(crate) async fn recover(
        disk: D,
        directory: &Path,
        owner: Owner,
        options: WalOptions,
        replay: Replay<D::File>,
    ) -> Result<(Self, VecDeque<LogEntry>, (Index, Term)), StorageError> {
        sweep(&disk, directory).await?;
        for path in &replay.beyond {
            disk.remove(path).await?;
        }
        let Tail { number, file, bytes, last } = replay.tail;
        disk.write(&file, (last.start * SECTOR) as u64, &bytes[last.start * SECTOR..last.end * SECTOR]).await?;
        zero(&disk, &file, (last.end * SECTOR) as u64, bytes.len() as u64).await?;
        disk.sync(&file).await?;
        disk.sync_directory(directory).await?;
        let mut wal = Self {
            disk,
            directory: directory.to_owned(),
            owner,
            options,
            active: Active { number, file, end: last.end as u64, sectors: (bytes.len() / SECTOR) as u64 },
            ahead: None,
            holdings: replay.holdings,
            position: replay.position,
            last_batch: replay.last_batch,
            next_batch: replay.seen_batch + 1,
            batch: Batch::default(),
            doubtful: false,
        };
        wal.make_ahead();
        Ok((wal, replay.entries, replay.start))
    }
}
