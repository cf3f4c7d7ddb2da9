//! What core needs of a disk. Production and simulation run the same implementation (`muster-storage`) over different disks.
//!
//! Three parts, because they are used at the same time by different loops:
//! - [`LogStore`]: the write-ahead log. One batch at a time; when `append` returns, it is durable.
//! - [`Archive`]: snapshots and history, written beside the log.
//! - [`Library`]: reads of what the archive holds, from anywhere, while it is being written.
//!
//! Faults are not refusals: a [`StorageError`] from a write stops the replica.

use crate::ids::{Age, ClusterId, Digest, GroupId, Incarnation, Index, ReplicaId, ReplicaName, Seq, Term};
use crate::log::{Configuration, HardState, LogEntry, LogRecord};
use crate::state::Finished;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use core::fmt;

/// A run of the journal's records that is kept as one file. Its bounds are a pure function of the records, so it has the same
/// name on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The first sequence it holds.
    pub first: Seq,
    /// The last sequence it holds; `first - 1` while it is empty.
    pub last: Seq,
    /// The sum of its records' stored bytes, without framing.
    pub bytes: u64,
    /// The chain's head before `first`.
    pub before: Digest,
    /// The chain's head at `last`: it covers every stored byte up to here.
    pub head: Digest,
}

/// A segment is sealed by the record that brings it to this many stored bytes.
pub const SEGMENT_BYTES: u64 = 4 << 20;

impl Segment {
    /// The empty segment that follows a chain head.
    #[must_use]
    pub const fn starting(first: Seq, before: Digest) -> Self {
        Self { first, last: Seq(first.0 - 1), bytes: 0, before, head: before }
    }
    /// Whether it holds nothing yet.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.last.0 < self.first.0
    }
    /// Whether the next record belongs to a new segment.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.bytes >= SEGMENT_BYTES
    }
}

/// A file of live state: everything, or what changed since the layer below. Named `snap-{term}-{index}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The last log position it contains.
    pub index: Index,
    /// That position's term.
    pub term: Term,
    /// How many pages it has.
    pub pages: u32,
    /// How many of them, from the first, hold what lasts; the others hold what passes.
    pub lasting: u32,
    /// Its pages' bytes together, as stored.
    pub bytes: u64,
    /// BLAKE3 over all its pages' bytes, in order.
    pub digest: Digest,
}

/// What a snapshot is, without its pages. Written at the end of its topmost layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last log position it contains.
    pub index: Index,
    /// That position's term.
    pub term: Term,
    /// The configuration in force there.
    pub configuration: Configuration,
    /// The journal's last sequence there.
    pub sequence: Seq,
    /// The chain's head there.
    pub head: Digest,
    /// Replicated time there.
    pub age: Age,
    /// The history it rests on, oldest first; the last one is the open segment (possibly empty), all others are sealed.
    pub history: Vec<Segment>,
    /// The layers of live state, the lowest first; the last one is its own. Before it is saved: only those below.
    pub layers: Vec<Layer>,
    /// The digest of the state, see [`State::digest`](crate::state::State::digest). Snapshots of format 1 do not know it: zeros.
    pub digest: Digest,
}

/// Most layers of a snapshot.
pub const LAYERS_MAX: usize = 64;

impl SnapshotMeta {
    /// How many pages it has on all its layers.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.layers.iter().map(|layer| u64::from(layer.pages)).sum()
    }

    /// Their bytes, as stored.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bytes).sum()
    }

    /// Whether the digest of its state is known.
    #[must_use]
    pub fn has_digest(&self) -> bool {
        self.digest != Digest::default()
    }

    /// Whether the next snapshot is to hold only what changed since this one. Otherwise it holds everything, so that layers
    /// never come to more than twice what is live, and a byte that changed is written about twice in all.
    #[must_use]
    pub fn takes_a_layer(&self) -> bool {
        let Some((base, upper)) = self.layers.split_first() else { return false };
        let grown: u64 = upper.iter().map(|layer| layer.bytes).sum();
        self.has_digest() && self.layers.len() < LAYERS_MAX && grown < base.bytes
    }

    /// The pages to read, in order, for its state: all of them, or those that a replica lacks that has applied everything up
    /// to `from`, where that is not before the lowest layer.
    #[must_use]
    pub fn runs(&self, from: Option<Index>) -> Vec<Run> {
        let lasting = self.layers.iter().filter(|layer| from.is_none_or(|from| layer.index > from));
        let lasting = lasting.map(|layer| Run { layer: *layer, from: 0, to: layer.lasting });
        let passing = self.layers.iter().map(|layer| Run { layer: *layer, from: layer.lasting, to: layer.pages });
        lasting.chain(passing).filter(|run| run.from < run.to).collect()
    }
}

/// Pages of a layer that are read one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The layer.
    pub layer: Layer,
    /// The first page.
    pub from: u32,
    /// The page after the last.
    pub to: u32,
}

/// A page of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its bytes, compressed.
    pub bytes: Bytes,
    /// Whether it holds what lasts. All pages that do come before all that do not.
    pub lasts: bool,
}

/// A layer's pages, each made when it is asked for, from an O(1) view.
pub trait PageSource: Send {
    /// The next page; none after the last.
    fn next_page(&mut self) -> Option<Page>;
    /// The digest of the state that the layer leads to. Known after the last page.
    fn digest(&self) -> Digest;
}

/// The pages of a layer.
pub type Pages = Box<dyn PageSource>;

/// Who a data directory belongs to. Written once, by `init` or `join`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub replica: ReplicaId,
    /// This life of the directory.
    pub incarnation: Incarnation,
    /// The display name.
    pub name: ReplicaName,
}

/// What a disk holds at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The last hard state.
    pub hard_state: HardState,
    /// The newest good snapshot. Its pages are read through [`Library::page`].
    pub snapshot: Option<SnapshotMeta>,
    /// Every log entry after the position of `log_start`, contiguous.
    pub entries: Vec<LogEntry>,
    /// The position and term before the first entry.
    pub log_start: (Index, Term),
}

/// The write-ahead log.
pub trait LogStore {
    /// Makes the records durable, in order, as one batch. Nothing may be assumed about a batch whose append failed.
    fn append(&mut self, records: &[LogRecord]) -> impl Future<Output = Result<(), StorageError>>;
    /// Forgets segments that hold nothing after `below`. May keep more.
    fn purge(&mut self, below: Index) -> impl Future<Output = Result<(), StorageError>>;
}

/// Snapshots and history, the writing side.
pub trait Archive {
    /// Appends records to the history; the first one's sequence follows the last one appended. Not synced; readable through the
    /// [`Library`] when it returns.
    fn extend(&mut self, records: Vec<Finished>) -> impl Future<Output = Result<(), StorageError>>;
    /// Begins a snapshot of what was extended so far, which rests on `meta.layers`. One is begun at a time; history may be
    /// extended before it is finished.
    fn begin(&mut self, meta: SnapshotMeta) -> impl Future<Output = Result<(), StorageError>>;
    /// Writes the next page of the snapshot that was begun.
    fn write(&mut self, page: Page) -> impl Future<Output = Result<(), StorageError>>;
    /// Makes the history and the snapshot durable: syncs, renames, syncs the directory; keeps the three newest and the layers
    /// they rest on. `digest` is the state's. Gives the finished meta and the index of the oldest snapshot still kept.
    fn finish(&mut self, digest: Digest) -> impl Future<Output = Result<(SnapshotMeta, Index), StorageError>>;
    /// How many pages of each run, from the front, are staged. Whatever else is staged is dropped.
    fn staged(&mut self, runs: &[Run]) -> impl Future<Output = Result<Vec<u32>, StorageError>>;
    /// Takes a run's next page, fetched from a peer, so that a fetch goes on after a restart where it was.
    fn stage(&mut self, run: &Run, page: Bytes) -> impl Future<Output = Result<(), StorageError>>;
    /// A staged page of a run, counted from its front.
    fn staged_page(&mut self, run: &Run, page: u32) -> impl Future<Output = Result<Bytes, StorageError>>;
    /// Makes a fetched state the newest snapshot, durably, as one layer of everything; drops the older ones and what is staged.
    /// History beyond `meta.sequence` is cut, history that does not fit its manifest is dropped, `open` becomes the stored part
    /// of the open segment. Gives the meta with its own layer.
    fn install(
        &mut self,
        meta: SnapshotMeta,
        pages: Pages,
        open: Vec<Bytes>,
    ) -> impl Future<Output = Result<SnapshotMeta, StorageError>>;
    /// Stores a sealed segment that was fetched from a peer, after checking it against its manifest.
    fn fill(&mut self, segment: Segment, records: Vec<Bytes>) -> impl Future<Output = Result<(), StorageError>>;
    /// The sealed segments of the newest snapshot's manifest that are not here, oldest first.
    fn missing(&mut self) -> impl Future<Output = Result<Vec<Segment>, StorageError>>;
}

/// Reads of what the archive holds, from any thread, while it is being written.
pub trait Library: Clone + Send + Sync + 'static {
    /// Records after `after` up to and including `upto`, as stored, in order; stops after about `bytes_max` (at least one).
    /// Fewer than asked, from the front, if a segment is missing here.
    fn records(
        &self,
        after: Seq,
        upto: Seq,
        bytes_max: usize,
    ) -> impl Future<Output = Result<Vec<(Seq, Bytes)>, StorageError>> + Send;
    /// One page of a layer of a kept snapshot. None if no kept snapshot rests on it any more.
    fn page(
        &self,
        index: Index,
        term: Term,
        page: u32,
    ) -> impl Future<Output = Result<Option<Bytes>, StorageError>> + Send;
    /// The newest snapshot at or before a sequence of those that are kept or rested on. It may be gone before its pages are
    /// read.
    fn snapshot_at(&self, at: Seq) -> Option<SnapshotMeta>;
}

/// What went wrong with a disk, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorageError {
    /// The operating system refused. The replica stops.
    Io {
        /// Which file.
        file: String,
        /// What was tried.
        operation: &'static str,
        /// What it said.
        problem: String,
    },
    /// There is no room. The replica stops; nothing that was acknowledged is lost.
    Full {
        /// Which file.
        file: String,
        /// What was tried.
        operation: &'static str,
    },
    /// Stored bytes are not what was written.
    Damaged {
        /// Which file.
        file: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        problem: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The file is of a format this binary does not know.
    Format {
        /// Which file.
        file: String,
        /// The format it has.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// The file belongs to another cluster, group, replica or incarnation.
    Foreign {
        /// Which file.
        file: String,
        /// What differs, with both values.
        problem: String,
    },
    /// There is no replica in this directory.
    Empty {
        /// The directory.
        directory: String,
    },
    /// Another process uses the directory.
    Locked {
        /// The directory.
        directory: String,
    },
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { file, operation, problem } => write!(f, "{operation} {file}: {problem}"),
            Self::Full { file, operation } => {
                write!(
                    f,
                    "{operation} {file}: no space left on device; free some and start again, nothing acknowledged is lost"
                )
            }
            Self::Damaged { file, offset, problem, remedy } => {
                write!(f, "{file} is damaged at offset {offset}: {problem}; {remedy}")
            }
            Self::Format { file, found, known } => write!(
                f,
                "{file} has format {found}, this muster knows up to {known}; start a newer muster on this directory"
            ),
            Self::Foreign { file, problem } => write!(f, "{file} does not belong here: {problem}"),
            Self::Empty { directory } => write!(
                f,
                "{directory} holds no replica; make a new cluster with `muster init`, join one with `muster join`, \
                 or take a lost replica's place with `muster replace`"
            ),
            Self::Locked { directory } => write!(f, "{directory} is in use by another muster process"),
        }
    }
}

impl core::error::Error for StorageError {}
