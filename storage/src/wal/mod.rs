//! The write-ahead log: hard states and entries, durable when `append` returns.
//!
//! The log is a series of segments `{number:020}.wal`, numbered without gaps, made zero-filled at their final length before
//! they are needed, so that an append is one write and one sync into space the disk has given already. A segment is a header
//! (`file.rs`) and then batches, one after the other, each a whole number of sectors (`batch.rs`, `sector.rs`). One append is
//! one batch; it is synced before the next is written.
//!
//! ```text
//! segment 7  │ header │ batch 40 │ batch 41 │ batch 42 │ zeros: did not fit batch 43 │
//! segment 8  │ header │ batch 43 │ batch 44 │ zeros: not written yet …               │   <- appended to
//! segment 9  │ header │ zeros                                                        │   made ahead, when 8 is half full
//! ```
//!
//! Assumed of the disk
//! - A sector (512 bytes) is old or new after a crash or a failed write, never a mixture; sectors of one write may survive in
//!   any combination.
//! - What a successful sync covered stays, and does not turn to zero. It may be flipped: that is found, never repaired.
//! - Rewriting a sector with the bytes it has cannot harm it.
//! - A failed sync says nothing about later ones: the page cache may show bytes that are not on disk and that no later sync
//!   writes. A directory is different: once a sync of it succeeds, its names are durable.
//!
//! Invariants
//! - What was acknowledged is replayed, in order. What was not may be replayed too, but only as a whole batch at the end.
//! - A batch counts when all its sectors are there; one that lacks sectors is torn if nothing was written after it, else it
//!   is damage (`scan.rs`). Recovery cuts a torn batch by zeros; damage stops the replica.
//! - Batch numbers grow and are not used again for other bytes, not even those of a batch that was cut.
//! - After a failed or abandoned write the log refuses every further one: nobody knows what is on disk.
//! - The names of segments that count are durable.
//!
//! Left out: any decision about what must be synced, and repair. A damaged log may have lost a vote.

mod batch;
mod position;
mod recover;
mod scan;
mod sector;

use crate::disk::{Disk, printed};
use crate::file::{FileKind, Header, Owner, SECTOR};
use batch::Batch;
use muster_core::ids::Index;
use muster_core::log::LogRecord;
use muster_core::storage::{LogStore, StorageError};
use position::{Holding, note};
use std::path::{Path, PathBuf};
use std::pin::Pin;

pub(crate) use position::Position;
pub(crate) use recover::{Replay, load, replay, segments};
pub(crate) use scan::scan;

/// How segments are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalOptions {
    /// The length of a segment, in bytes. Larger: fewer files, coarser purging, more disk used by an idle replica (up to two
    /// segments). A batch that does not fit gets a segment of its own length.
    pub segment_bytes: u64,
    /// How many bytes of entries at or before the newest snapshot a restarted replica keeps in memory for followers that are
    /// a little behind. Larger: fewer snapshots sent after a restart, more memory.
    pub tail_bytes: usize,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self { segment_bytes: 16 << 20, tail_bytes: 16 << 20 }
    }
}

/// A file in the making.
type Allocation<F> = Pin<Box<dyn Future<Output = Result<F, StorageError>> + Send>>;

/// The segment that is appended to.
struct Active<F> {
    number: u64,
    file: F,
    /// The first sector that is not written.
    end: u64,
    sectors: u64,
}

/// The write-ahead log over a disk.
pub struct Wal<D: Disk> {
    disk: D,
    directory: PathBuf,
    owner: Owner,
    options: WalOptions,
    active: Active<D::File>,
    /// The segment after the active one, once it is being made.
    ahead: Option<Allocation<D::File>>,
    /// All segments, oldest first; the last one is the active one.
    holdings: Vec<Holding>,
    position: Position,
    /// The number of the last batch.
    last_batch: u64,
    /// The number of the next batch.
    next_batch: u64,
    batch: Batch,
    /// Whether what is on disk is unknown: a write failed, or was abandoned half-way.
    doubtful: bool,
}

/// The file of a segment.
pub(crate) fn segment_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:020}.wal"))
}

/// The number of the segment in a file of this name.
pub(crate) fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal")?;
    (digits.len() == 20).then(|| digits.parse().ok()).flatten()
}

impl<D: Disk> Wal<D> {
    /// Makes a log with nothing in it in an empty directory.
    pub(crate) async fn create(
        disk: D,
        directory: &Path,
        owner: Owner,
        options: WalOptions,
    ) -> Result<Self, StorageError> {
        let file = allocation(&disk, directory, owner, 1, options.segment_bytes).await?;
        Ok(Self {
            disk,
            directory: directory.to_owned(),
            owner,
            options,
            active: Active { number: 1, file, end: 1, sectors: segment_sectors(options.segment_bytes) },
            ahead: None,
            holdings: vec![Holding { segment: 1, highest: Index(0) }],
            position: Position::default(),
            last_batch: 0,
            next_batch: 1,
            batch: Batch::default(),
            doubtful: false,
        })
    }

    async fn write_batch(&mut self, records: &[LogRecord]) -> Result<(), StorageError> {
        self.batch.fill(records);
        if self.batch.sectors() > self.active.sectors - self.active.end {
            self.roll().await?;
        }
        let Active { number, ref file, end, .. } = self.active;
        let bytes = self.batch.seal(number, self.next_batch, self.last_batch, &self.position);
        self.disk.write(file, end * SECTOR as u64, bytes).await?;
        self.disk.sync(file).await
    }

    /// Goes on in the next segment, which is made ahead unless batches come faster than segments or are larger.
    async fn roll(&mut self) -> Result<(), StorageError> {
        let number = self.active.number + 1;
        let bytes = self.options.segment_bytes.max((1 + self.batch.sectors()) * SECTOR as u64);
        let fits = bytes == self.options.segment_bytes;
        let made = match self.ahead.take() {
            // One that could not be made then may be made by now: there may be room again.
            Some(ahead) => ahead.await.ok().filter(|_| fits),
            None => None,
        };
        let file = match made {
            Some(file) => file,
            None => allocation(&self.disk, &self.directory, self.owner, number, bytes).await?,
        };
        self.active = Active { number, file, end: 1, sectors: segment_sectors(bytes) };
        self.holdings.push(Holding { segment: number, highest: Index(0) });
        Ok(())
    }

    fn make_ahead(&mut self) {
        if self.ahead.is_none() && self.active.end > self.active.sectors / 2 {
            let number = self.active.number + 1;
            let segment_bytes = self.options.segment_bytes;
            self.ahead = Some(allocation(&self.disk, &self.directory, self.owner, number, segment_bytes));
        }
    }

    fn refuse_if_doubtful(&self) -> Result<(), StorageError> {
        if self.doubtful {
            return Err(StorageError::Io {
                file: printed(&segment_path(&self.directory, self.active.number)),
                operation: "append to",
                problem: "an earlier write failed, so what is on disk is unknown until the replica starts again".into(),
            });
        }
        Ok(())
    }
}

fn segment_sectors(bytes: u64) -> u64 {
    bytes / SECTOR as u64
}

fn allocation<D: Disk>(disk: &D, directory: &Path, owner: Owner, number: u64, bytes: u64) -> Allocation<D::File> {
    assert!(
        bytes.is_multiple_of(SECTOR as u64) && bytes >= 2 * SECTOR as u64,
        "a segment of {bytes} bytes is not a header and whole sectors"
    );
    let header = Header { kind: FileKind::Log, owner, number, length: bytes, trailer: 0 };
    Box::pin(disk.clone().allocate(segment_path(directory, number), header.encode().to_vec(), bytes))
}

impl<D: Disk> LogStore for Wal<D> {
    async fn append(&mut self, records: &[LogRecord]) -> Result<(), StorageError> {
        self.refuse_if_doubtful()?;
        if records.is_empty() {
            return Ok(());
        }
        let mut position = self.position;
        position.begin_batch();
        for record in records {
            if let Err(problem) = position.follow(record) {
                panic!("asked to append what no log can hold: {problem}");
            }
        }
        // Holds also if this future is dropped before it is done.
        self.doubtful = true;
        self.write_batch(records).await?;
        self.doubtful = false;
        self.position = position;
        for record in records {
            note(&mut self.holdings, record);
        }
        self.active.end += self.batch.sectors();
        self.last_batch = self.next_batch;
        self.next_batch += 1;
        self.make_ahead();
        Ok(())
    }

    async fn purge(&mut self, below: Index) -> Result<(), StorageError> {
        self.refuse_if_doubtful()?;
        // The active segment stays. A segment that follows begins with a batch that says where the log stood.
        while self.holdings.len() > 1 && self.holdings[0].highest <= below {
            let path = segment_path(&self.directory, self.holdings[0].segment);
            self.disk.remove(&path).await?;
            // One by one, so that no crash leaves a gap.
            self.disk.sync_directory(&self.directory).await?;
            self.holdings.remove(0);
        }
        Ok(())
    }
}
