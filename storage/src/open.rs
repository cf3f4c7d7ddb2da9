//! A data directory as a whole: making one, opening one, repairing one.
//!
//! ```text
//! DIR/identity                   whose it is            (`identity.rs`)
//! DIR/lock                       held while in use
//! DIR/raft/wal/{number:020}.wal  hard states, entries   (`wal/`)
//! DIR/snapshots, history, staging                       (`archive.rs`)
//! ```
//! Snapshot and log meet here. A snapshot must lie within the log or just before it, or beyond it: then it was fetched, and the
//! log goes on after it.

use crate::archive::{FileArchive, Places, kept_above, open_snapshots};
use crate::disk::{Access, Disk, directory_of, printed};
use crate::file::{Owner, REPLACE, aside, damaged};
use crate::library::FileLibrary;
use crate::snapshot::{self, Writer};
use crate::wal::{Replay, Wal, WalOptions, replay};
use crate::{history, identity};
use muster_core::ids::{Index, Term};
use muster_core::log::{HardState, LogRecord};
use muster_core::storage::{Identity, LogStore, Pages, Recovered, SnapshotMeta, StorageError};
use std::path::{Path, PathBuf};

/// A data directory, ready for use.
pub struct Opened<D: Disk> {
    /// Whose it is.
    pub identity: Identity,
    /// What it holds.
    pub recovered: Recovered,
    /// The log.
    pub wal: Wal<D>,
    /// Snapshots and history, to write.
    pub archive: FileArchive<D>,
    /// Snapshots and history, to read.
    pub library: FileLibrary<D>,
}

/// The directory of the log.
pub(crate) fn wal_of(root: &Path) -> PathBuf {
    root.join("raft").join("wal")
}

/// Makes a data directory: with the snapshot that a new cluster begins with, or with none for a replica that joins one. One
/// that an earlier call left half-made is made again.
///
/// # Errors
/// What the disk says; [`StorageError::Foreign`] if the directory is a replica's already.
pub async fn init<D: Disk>(
    disk: D,
    root: &Path,
    identity: &Identity,
    snapshot: Option<(SnapshotMeta, Pages)>,
    options: WalOptions,
) -> Result<(), StorageError> {
    disk.make_directory(root).await?;
    disk.sync_directory(directory_of(root)).await?;
    if let Some(here) = identity::read(&disk, root).await? {
        return Err(StorageError::Foreign {
            file: printed(&identity::path_of(root)),
            problem: format!("the directory is replica {} ({}) of cluster {}", here.replica, here.name, here.cluster),
        });
    }
    identity::prepare(&disk, root, identity).await?;
    let places = Places::of(root);
    let wal = wal_of(root);
    for directory in [&root.join("raft"), &wal, &places.snapshots, &places.history, &places.staging] {
        disk.make_directory(directory).await?;
    }
    for directory in [&wal, &places.snapshots, &places.history, &places.staging] {
        for name in disk.list(directory).await?.unwrap_or_default() {
            disk.remove(&directory.join(name)).await?;
        }
        disk.sync_directory(directory).await?;
    }
    disk.sync_directory(&root.join("raft")).await?;
    disk.sync_directory(root).await?;

    let owner = Owner::of(identity);
    let mut records = Vec::new();
    let mut hard_state = HardState::default();
    if let Some((meta, mut pages)) = snapshot {
        let (index, term) = (meta.index, meta.term);
        let mut writer = Writer::begin(disk.clone(), &places.snapshots, index, term).await?;
        while let Some(page) = pages.next_page() {
            writer.page(&page).await?;
        }
        writer.finish(owner, SnapshotMeta { digest: pages.digest(), ..meta }).await?;
        records.push(LogRecord::Reset { index, term });
        hard_state = HardState { term, commit: index, ..hard_state };
    }
    records.push(LogRecord::HardState(hard_state));
    Wal::create(disk.clone(), &wal, owner, options).await?.append(&records).await?;
    identity::commit(&disk, root).await
}

/// Opens a data directory. The caller holds its [`Lock`](crate::Lock).
///
/// # Errors
/// [`StorageError::Empty`] if it is nobody's, and what is damaged, foreign, of an unknown format, or refused by the disk.
pub async fn open<D: Disk>(disk: D, root: &Path, options: WalOptions) -> Result<Opened<D>, StorageError> {
    let identity = read_identity(&disk, root).await?;
    disk.sync_directory(root).await?;
    let owner = Owner::of(&identity);
    let places = Places::of(root);
    let wal_directory = wal_of(root);

    let snapshots = open_snapshots(&disk, &places, &owner).await?;
    let newest = snapshots.last().map(|kept| kept.meta.clone());
    let position = newest.as_ref().map(|meta| (meta.index, meta.term));
    let keep_after = position.map_or(Index(0), |(index, _)| index);
    let known: Vec<_> = snapshots.iter().map(|file| (file.meta.index, file.meta.term)).collect();
    let replayed = replay(&disk, &wal_directory, &owner, Access::Write, &known, keep_after, options.tail_bytes).await?;
    let oldest = kept_above(&snapshots, replayed.position.start.0).first().map(|kept| kept.meta.index);
    let is_beyond = is_beyond(&wal_directory, &replayed, oldest, position)?;

    let archive = FileArchive::open(disk.clone(), places, owner, snapshots, is_beyond).await?;
    let library = archive.library();
    let mut recovered = Recovered { hard_state: replayed.position.hard_state, snapshot: newest, ..Default::default() };
    let (mut wal, entries, log_start) = Wal::recover(disk, &wal_directory, owner, options, replayed).await?;
    if let Some((index, term)) = position.filter(|_| is_beyond) {
        wal.append(&[LogRecord::Reset { index, term }]).await?;
        recovered.log_start = (index, term);
    } else {
        recovered.log_start = log_start;
        recovered.entries = entries.into();
    }
    Ok(Opened { identity, recovered, wal, archive, library })
}

async fn read_identity<D: Disk>(disk: &D, root: &Path) -> Result<Identity, StorageError> {
    identity::read(disk, root).await?.ok_or_else(|| StorageError::Empty { directory: printed(root) })
}

/// Whether the newest snapshot is not a position of the log, so that the log must go on after it.
///
/// No snapshot lies before the log: it is cut only below the oldest, and what is older than an installed one goes with it.
fn is_beyond<F>(
    wal: &Path,
    replayed: &Replay<F>,
    oldest: Option<Index>,
    newest: Option<(Index, Term)>,
) -> Result<bool, StorageError> {
    let start = replayed.position.start.0;
    if newest.is_some_and(|(index, term)| index >= start && !replayed.has(index, term)) {
        // It was installed, and what it replaces is dropped anew: a crash may have left any of that.
        return Ok(true);
    }
    if oldest.unwrap_or_default() < start {
        let oldest = oldest.map_or("there is no snapshot".into(), |index| format!("the oldest snapshot is at {index}"));
        return Err(damaged(wal, 0, format!("the log begins after index {start}, but {oldest}"), REPLACE));
    }
    Ok(false)
}

/// Something that [`repair`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// The damaged file, now under a name that ends in `.damaged`.
    pub file: String,
    /// What is wrong with it.
    pub problem: String,
    /// What comes of it.
    pub consequence: &'static str,
}

/// Moves aside what is damaged and can be had again: snapshots that an older one and the log make up for, and history
/// segments, which are fetched from peers. The caller holds the directory's [`Lock`](crate::Lock).
///
/// # Errors
/// The first damage that nothing makes up for: of the identity, the log, or the only usable snapshot. Nothing was moved then.
pub async fn repair<D: Disk>(disk: D, root: &Path) -> Result<Vec<Repaired>, StorageError> {
    let identity = read_identity(&disk, root).await?;
    let owner = Owner::of(&identity);
    let places = Places::of(root);
    let known = snapshot::positions(&disk, &places.snapshots).await?;
    let replayed = replay(&disk, &wal_of(root), &owner, Access::Read, &known, Index(0), 0).await?;

    let mut repaired = Vec::new();
    let mut moved = Vec::new();
    let mut good = Vec::new();
    let mut newest_problem = None;
    for path in snapshot::list(&disk, &places.snapshots).await?.into_iter().rev() {
        match check_snapshot(&disk, &places, &owner, &path, good.is_empty()).await {
            Ok(kept) => good.push(kept),
            Err(error) => {
                repaired.push(Repaired {
                    file: printed(&path),
                    problem: problem_of(&error)?,
                    consequence: if good.is_empty() {
                        "the replica goes back to an older snapshot and replays the log after it"
                    } else {
                        "a newer snapshot is good"
                    },
                });
                newest_problem = newest_problem.or(Some(error));
                moved.push(path);
            }
        }
    }
    let start = replayed.position.start.0;
    if let Some(error) = newest_problem
        && good.first().is_none_or(|kept| kept.meta.index < start)
    {
        return Err(beyond_repair(error));
    }

    // What is left below the log, of a stack that broke, would pass for the end of a log that lost its beginning.
    let (above, below): (Vec<_>, Vec<_>) = good.iter().partition(|file| file.meta.index >= start);
    for file in below {
        if above.is_empty() || above.iter().any(|newer| newer.meta.layers.contains(file.own())) {
            continue;
        }
        repaired.push(Repaired {
            file: printed(&file.path),
            problem: "it is good, but the log does not go back to it, and nothing rests on it any more".to_owned(),
            consequence: "a newer snapshot is good",
        });
        moved.push(file.path.clone());
    }
    if let Some(newest) = good.first()
        && let Some((_, sealed)) = newest.meta.history.split_last()
    {
        for segment in sealed {
            let path = history::path_of(&places.history, segment.first);
            if disk.open(&path, Access::Read).await?.is_none() {
                continue;
            }
            if let Err(error) = history::verify_whole(&disk, &places.history, Some(&owner), segment).await {
                repaired.push(Repaired {
                    file: printed(&path),
                    problem: problem_of(&error)?,
                    consequence: "the replica fetches it again from a peer",
                });
                moved.push(path);
            }
        }
    }
    for path in &moved {
        disk.rename(path, &aside(path)).await?;
    }
    disk.sync_directory(&places.snapshots).await?;
    disk.sync_directory(&places.history).await?;
    Ok(repaired)
}

/// Checks a snapshot with all it rests on, and if it is the one to start from also the history that cannot be fetched.
async fn check_snapshot<D: Disk>(
    disk: &D,
    places: &Places,
    owner: &Owner,
    path: &Path,
    is_newest: bool,
) -> Result<snapshot::Kept, StorageError> {
    let kept = snapshot::open(disk, path, Some(owner)).await?;
    let mut files = Vec::new();
    for layer in &kept.meta.layers {
        let path = places.snapshots.join(snapshot::name_of(layer.index, layer.term));
        let file = snapshot::open(disk, &path, Some(owner)).await?;
        file.verify(disk).await?;
        files.push(file);
    }
    kept.check_layers(&files.iter())?;
    if is_newest
        && let Some(open) = kept.meta.history.last()
        && !open.is_empty()
    {
        history::verify(disk, &places.history, Some(owner), open).await?;
    }
    Ok(kept)
}

/// What is damaged; any other error ends the repair.
fn problem_of(error: &StorageError) -> Result<String, StorageError> {
    match error {
        StorageError::Damaged { file, offset, problem, .. } => Ok(format!("{file} at offset {offset}: {problem}")),
        StorageError::Io { .. }
        | StorageError::Full { .. }
        | StorageError::Format { .. }
        | StorageError::Foreign { .. }
        | StorageError::Empty { .. }
        | StorageError::Locked { .. } => Err(error.clone()),
    }
}

fn beyond_repair(error: StorageError) -> StorageError {
    match error {
        StorageError::Damaged { file, offset, problem, .. } => StorageError::Damaged {
            file,
            offset,
            problem: format!("{problem}, and no older snapshot with the log after it makes up for it"),
            remedy: REPLACE,
        },
        other => other,
    }
}
