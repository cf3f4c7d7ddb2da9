//! What a data directory holds, for people: read-only, without a lock and without a running replica, telling damage rather
//! than stopping at it.
//!
//! Plain structs; how they are printed is the caller's business. A running replica may write while this reads, so a torn or
//! missing end is no alarm then.

use crate::archive::{Places, SNAPSHOTS_KEPT};
use crate::disk::{Access, Disk, printed};
use crate::file::{FileKind, Owner};
use crate::open::wal_of;
use crate::snapshot::Kept;
use crate::wal::{Position, load, scan, segment_path, segments};
use crate::{history, identity, snapshot};
use muster_core::ids::{Index, Term};
use muster_core::log::{HardState, LogEntryKind, LogRecord};
use muster_core::storage::{Identity, Segment, SnapshotMeta, StorageError};
use std::path::Path;

/// What a data directory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Whose it is; none if nobody's or damaged.
    pub identity: Option<Identity>,
    /// The last hard state that could be read, and the log's last position.
    pub hard_state: HardState,
    /// The position before the log's first entry.
    pub log_start: (Index, Term),
    /// The log's last position.
    pub log_last: (Index, Term),
    /// The log's segments, oldest first.
    pub wal: Vec<WalSegment>,
    /// The snapshots, oldest first.
    pub snapshots: Vec<SnapshotFile>,
    /// The history files, oldest first, and the segments of the newest snapshot's manifest that have none.
    pub history: Vec<HistoryFile>,
    /// Everything that is wrong, in the order it was found.
    pub problems: Vec<StorageError>,
}

/// A segment of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalSegment {
    /// Its number.
    pub number: u64,
    /// Its file.
    pub file: String,
    /// The file's length.
    pub bytes: u64,
    /// Its batches that could be read.
    pub batches: Vec<WalBatch>,
    /// The number of a torn batch at its end, which the next start cuts.
    pub torn: Option<u64>,
}

/// A batch of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalBatch {
    /// Its number.
    pub number: u64,
    /// The number of the batch before.
    pub before: u64,
    /// Where it begins in the file.
    pub offset: u64,
    /// Its sectors.
    pub sectors: u64,
    /// Its records.
    pub records: Vec<WalRecord>,
}

/// A record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalRecord {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its encoded length.
    pub bytes: u64,
    /// What it is, an entry's data apart.
    pub content: WalContent,
}

/// What a record of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalContent {
    /// A hard state.
    HardState(HardState),
    /// An entry.
    Entry {
        /// Its position.
        index: Index,
        /// Its term.
        term: Term,
        /// What its data is.
        kind: LogEntryKind,
        /// The length of its data.
        data_bytes: u64,
    },
    /// The log goes on after this position.
    Reset {
        /// The index.
        index: Index,
        /// The term.
        term: Term,
    },
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Its file.
    pub file: String,
    /// What it is; none if that cannot be read.
    pub meta: Option<SnapshotMeta>,
    /// Whether its pages have the digest it names, and the layers it rests on are here.
    pub is_good: bool,
    /// Whether it is one of the newest that are kept, and not only there because one of them rests on it.
    pub is_kept: bool,
}

/// A history segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryFile {
    /// Its file.
    pub file: String,
    /// The file's length; none if it is not here and has to be fetched.
    pub bytes: Option<u64>,
    /// What the newest snapshot's manifest says of it; none if the file goes beyond it.
    pub segment: Option<Segment>,
    /// Whether its records form the chain that the manifest names.
    pub is_good: bool,
}

/// Looks at a data directory.
///
/// # Errors
/// [`StorageError::Empty`] if it is nobody's, and what the disk refuses. What is wrong with the files is in the result.
pub async fn inspect<D: Disk>(disk: &D, root: &Path) -> Result<Inspection, StorageError> {
    let mut problems = Vec::new();
    let identity = match identity::read(disk, root).await {
        Ok(Some(identity)) => Some(identity),
        Ok(None) => return Err(StorageError::Empty { directory: printed(root) }),
        Err(error) => {
            note(&mut problems, error)?;
            None
        }
    };
    let owner = identity.as_ref().map(Owner::of);
    let places = Places::of(root);
    let (wal, mut position) = inspect_wal(disk, &wal_of(root), owner.as_ref(), &mut problems).await?;
    position.settle(&snapshot::positions(disk, &places.snapshots).await?);
    let snapshots = inspect_snapshots(disk, &places, owner.as_ref(), &mut problems).await?;
    let newest = snapshots.iter().rev().find_map(|found| found.meta.as_ref());
    let manifest = newest.map(|meta| &meta.history[..]).unwrap_or_default();
    let history = inspect_history(disk, &places, owner.as_ref(), manifest, &mut problems).await?;
    Ok(Inspection {
        identity,
        hard_state: position.hard_state,
        log_start: position.start,
        log_last: position.last,
        wal,
        snapshots,
        history,
        problems,
    })
}

/// Takes note of what is wrong with a file; an error of the disk ends the inspection.
fn note(problems: &mut Vec<StorageError>, error: StorageError) -> Result<(), StorageError> {
    match error {
        StorageError::Damaged { .. } | StorageError::Format { .. } | StorageError::Foreign { .. } => {
            problems.push(error);
            Ok(())
        }
        StorageError::Io { .. }
        | StorageError::Full { .. }
        | StorageError::Empty { .. }
        | StorageError::Locked { .. } => Err(error),
    }
}

async fn inspect_wal<D: Disk>(
    disk: &D,
    directory: &Path,
    owner: Option<&Owner>,
    problems: &mut Vec<StorageError>,
) -> Result<(Vec<WalSegment>, Position), StorageError> {
    let mut found = Vec::new();
    let mut position: Option<Position> = None;
    for number in segments(disk, directory).await? {
        let path = segment_path(directory, number);
        let scanned = match load(disk, directory, number, owner, Access::Read).await {
            Ok(loaded) => scan(&path, number, &loaded.bytes).map(|scanned| (scanned, loaded.bytes.len())),
            Err(error) => Err(error),
        };
        let mut segment = WalSegment { number, file: printed(&path), bytes: 0, batches: Vec::new(), torn: None };
        match scanned {
            Err(error) => note(problems, error)?,
            Ok((scanned, bytes)) => {
                segment.bytes = bytes as u64;
                segment.torn = scanned.torn.map(|torn| torn.batch);
                for batch in &scanned.batches {
                    let head = batch.head;
                    let position = position.get_or_insert_with(|| Position::before(&head));
                    position.begin_batch();
                    let mut records = Vec::new();
                    for placed in &batch.records {
                        if let Err(problem) = position.follow(&placed.record) {
                            problems.push(crate::file::damaged(&path, batch.offset(), problem, FileKind::Log.remedy()));
                        }
                        records.push(WalRecord {
                            offset: batch.offset_of(placed),
                            bytes: placed.bytes as u64,
                            content: content_of(&placed.record),
                        });
                    }
                    segment.batches.push(WalBatch {
                        number: batch.number,
                        before: head.before,
                        offset: batch.offset(),
                        sectors: batch.sectors as u64,
                        records,
                    });
                }
            }
        }
        found.push(segment);
    }
    Ok((found, position.unwrap_or_default()))
}

fn content_of(record: &LogRecord) -> WalContent {
    match record {
        LogRecord::HardState(state) => WalContent::HardState(*state),
        LogRecord::Reset { index, term } => WalContent::Reset { index: *index, term: *term },
        LogRecord::Entries(entries) => {
            let entry = entries.first().expect("entries are stored one by one");
            WalContent::Entry {
                index: entry.index,
                term: entry.term,
                kind: entry.kind,
                data_bytes: entry.data.len() as u64,
            }
        }
    }
}

async fn inspect_snapshots<D: Disk>(
    disk: &D,
    places: &Places,
    owner: Option<&Owner>,
    problems: &mut Vec<StorageError>,
) -> Result<Vec<SnapshotFile>, StorageError> {
    let mut found = Vec::new();
    let mut files = Vec::new();
    for path in snapshot::list(disk, &places.snapshots).await? {
        let mut file = SnapshotFile { file: printed(&path), meta: None, is_good: false, is_kept: false };
        match snapshot::open(disk, &path, owner).await {
            Err(error) => note(problems, error)?,
            Ok(kept) => {
                file.meta = Some(kept.meta.clone());
                match Kept::verify(&kept, disk).await {
                    Ok(()) => file.is_good = true,
                    Err(error) => note(problems, error)?,
                }
                files.push(kept);
            }
        }
        found.push(file);
    }
    for file in found.iter_mut().rev().take(SNAPSHOTS_KEPT) {
        file.is_kept = true;
        if let Some(kept) = files.iter().find(|kept| printed(&kept.path) == file.file)
            && let Err(error) = kept.check_layers(&files.iter())
        {
            file.is_good = false;
            note(problems, error)?;
        }
    }
    Ok(found)
}

async fn inspect_history<D: Disk>(
    disk: &D,
    places: &Places,
    owner: Option<&Owner>,
    manifest: &[Segment],
    problems: &mut Vec<StorageError>,
) -> Result<Vec<HistoryFile>, StorageError> {
    let mut firsts = history::list(disk, &places.history).await?;
    firsts.extend(manifest.iter().filter(|segment| !segment.is_empty()).map(|segment| segment.first));
    firsts.sort_unstable();
    firsts.dedup();
    let mut found = Vec::new();
    for first in firsts {
        let path = history::path_of(&places.history, first);
        let segment = manifest.iter().find(|segment| segment.first == first).copied();
        let is_sealed = segment.is_some() && manifest.last() != segment.as_ref();
        let bytes = match disk.open(&path, Access::Read).await? {
            Some(file) => Some(disk.length(&file).await?),
            None => None,
        };
        let checked = match segment {
            Some(segment) if is_sealed && bytes.is_some() => {
                history::verify_whole(disk, &places.history, owner, &segment).await
            }
            // A sealed segment that is not here is yet to be fetched; the open one's stored part must be here.
            Some(_) if is_sealed => Ok(()),
            Some(segment) => history::verify(disk, &places.history, owner, &segment).await.map(|_| ()),
            None => Ok(()),
        };
        let is_good = checked.is_ok() && bytes.is_some();
        if let Err(error) = checked {
            note(problems, error)?;
        }
        found.push(HistoryFile { file: printed(&path), bytes, segment, is_good });
    }
    Ok(found)
}
