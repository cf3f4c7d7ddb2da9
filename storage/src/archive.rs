//! Snapshots and history, the writing side.
//!
//! ```text
//! DIR/snapshots/snap-{term}-{index}   the newest three, and the layers they rest on (`snapshot.rs`)
//! DIR/history/{first:020}.seg         the journal's records, one file per segment (`history.rs`)
//! DIR/staging/…                       pages of a snapshot that is being fetched (`staging.rs`)
//! ```
//!
//! Invariants
//! - A snapshot under its name is complete, so are the layers it rests on, and so is the history up to it, except sealed
//!   segments that are still to be fetched (they are absent).
//! - History after the newest snapshot is not durable and need not be: the next start cuts it, replay writes it again.
//! - A layer goes when the snapshot that replaces it is durable under its name, and no kept one rests on it.
//! - Staged pages are never renamed into place: after a restart the page cache may show pages that no sync would write.
//!   Installing writes the state anew.
//! - After a failed or abandoned write everything further is refused.

use crate::disk::{Access, Disk, printed, sweep, write_whole};
use crate::file::{FETCH_AGAIN, Owner, SECTOR, damaged};
use crate::history::{self, Blocks, Packer};
use crate::library::{FileLibrary, Held, Shared, Table, lock};
use crate::snapshot::{self, Kept, Writer};
use crate::staging::Staging;
use bytes::Bytes;
use muster_core::ids::{Digest, Index, Seq};
use muster_core::state::Finished;
use muster_core::storage::{Archive, Page, Pages, Run, Segment, SnapshotMeta, StorageError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// How many snapshots are kept.
pub(crate) const SNAPSHOTS_KEPT: usize = 3;

/// Where an archive's directories are.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) snapshots: PathBuf,
    pub(crate) history: PathBuf,
    pub(crate) staging: PathBuf,
}

impl Places {
    pub(crate) fn of(root: &Path) -> Self {
        Self { snapshots: root.join("snapshots"), history: root.join("history"), staging: root.join("staging") }
    }
}

/// The open segment's file.
struct OpenFile<F> {
    file: F,
    end: u64,
}

/// A snapshot that is being written.
struct Saving<D: Disk> {
    writer: Writer<D>,
    meta: SnapshotMeta,
}

/// Snapshots and history in a data directory.
pub struct FileArchive<D: Disk> {
    disk: D,
    places: Places,
    owner: Owner,
    shared: Shared,
    /// The open segment's file, once it has one.
    open: Option<OpenFile<D::File>>,
    /// Records that are not in the open segment's file yet.
    pending: Packer,
    /// Sealed files that are not synced yet.
    unsynced: Vec<D::File>,
    /// Whether history files were made whose names are not durable.
    has_new_names: bool,
    saving: Option<Saving<D>>,
    staging: Staging<D>,
    /// Whether what is on disk is unknown: a write failed, or was abandoned half-way.
    doubtful: bool,
}

/// The sealed segments of a manifest, and the open one.
fn split(history: &[Segment]) -> (&[Segment], Segment) {
    match history.split_last() {
        Some((open, sealed)) => (sealed, *open),
        None => (&[], Segment::starting(Seq(1), Digest::default())),
    }
}

/// Which of a manifest's sealed segments are here. One that is here must have its length.
async fn look<D: Disk>(
    disk: &D,
    places: &Places,
    owner: &Owner,
    sealed: &[Segment],
) -> Result<BTreeMap<Seq, Held>, StorageError> {
    let mut held = BTreeMap::new();
    for segment in sealed {
        let is_here = history::is_here(disk, &places.history, owner, segment).await?;
        held.insert(segment.first, Held { segment: *segment, is_here });
    }
    Ok(held)
}

/// The kept ones of these snapshots: the newest. The others are there because something rests on them.
pub(crate) fn kept(snapshots: &[Arc<Kept>]) -> &[Arc<Kept>] {
    &snapshots[snapshots.len().saturating_sub(SNAPSHOTS_KEPT)..]
}

/// The kept ones of these snapshots from which a log that begins after `start` goes on. One below it that a newer one rests on is
/// there for that alone: a repair may have moved aside what was kept beside it.
pub(crate) fn kept_above(snapshots: &[Arc<Kept>], start: Index) -> &[Arc<Kept>] {
    let kept = kept(snapshots);
    let bases = kept.iter().take_while(|file| file.meta.index < start && is_base(file, kept)).count();
    &kept[bases..]
}

/// Whether a newer one of these snapshots rests on a file.
pub(crate) fn is_base(file: &Kept, snapshots: &[Arc<Kept>]) -> bool {
    snapshots.iter().any(|newer| newer.own() != file.own() && newer.meta.layers.contains(file.own()))
}

/// Whether a kept one of these snapshots rests on a file.
fn is_needed(snapshots: &[Arc<Kept>], file: &Kept) -> bool {
    kept(snapshots).iter().any(|kept| kept.meta.layers.contains(file.own()))
}

/// Opens the snapshots and what they rest on, oldest first, and reads the newest through and through.
pub(crate) async fn open_snapshots<D: Disk>(
    disk: &D,
    places: &Places,
    owner: &Owner,
) -> Result<Vec<Arc<Kept>>, StorageError> {
    // A name that is not durable yet must not be what an older snapshot is dropped for.
    disk.sync_directory(&places.snapshots).await?;
    let mut found = Vec::new();
    for path in snapshot::list(disk, &places.snapshots).await? {
        found.push(Arc::new(snapshot::open(disk, &path, Some(owner)).await?));
    }
    if let Some(newest) = found.last() {
        newest.check_layers(&found.iter().map(|file| &**file))?;
        for file in found.iter().filter(|file| newest.meta.layers.contains(file.own())) {
            file.verify(disk).await?;
        }
    }
    Ok(found)
}

impl<D: Disk> FileArchive<D> {
    /// Opens what the kept snapshots rest on and cuts history to the newest of them. `is_install_unfinished`: the newest was
    /// fetched, and a crash came before what it replaces was dropped.
    pub(crate) async fn open(
        disk: D,
        places: Places,
        owner: Owner,
        snapshots: Vec<Arc<Kept>>,
        is_install_unfinished: bool,
    ) -> Result<Self, StorageError> {
        sweep(&disk, &places.snapshots).await?;
        sweep(&disk, &places.history).await?;
        sweep(&disk, &places.staging).await?;
        let manifest = snapshots.last().map(|kept| kept.meta.history.clone()).unwrap_or_default();
        let (sealed, open) = split(&manifest);
        let staging = Staging::new(disk.clone(), places.staging.clone());
        let mut archive = Self {
            disk,
            places,
            owner,
            shared: Arc::new(Mutex::new(Table::new(BTreeMap::new(), open, snapshots.clone()))),
            open: None,
            pending: Packer::default(),
            unsynced: Vec::new(),
            has_new_names: false,
            saving: None,
            staging,
            doubtful: false,
        };
        if is_install_unfinished {
            let trusted: Vec<Segment> =
                snapshots.iter().rev().skip(1).flat_map(|kept| split(&kept.meta.history).0).copied().collect();
            let newest = snapshots.last().expect("an install left a snapshot");
            archive.settle(newest, &trusted).await?;
        } else {
            for kept in kept(&snapshots) {
                kept.check_layers(&snapshots.iter().map(|file| &**file))?;
            }
            archive.drop_history_beyond(&manifest).await?;
            let held = look(&archive.disk, &archive.places, &archive.owner, sealed).await?;
            lock(&archive.shared).replace(Table::new(held, open, snapshots));
            archive.drop_unneeded().await?;
        }
        archive.cut_open(&open).await?;
        Ok(archive)
    }

    /// The reading side.
    pub(crate) fn library(&self) -> FileLibrary<D> {
        FileLibrary { disk: self.disk.clone(), history: self.places.history.clone(), shared: Arc::clone(&self.shared) }
    }

    /// Checks the stored part of the open segment and goes on writing after it.
    async fn cut_open(&mut self, open: &Segment) -> Result<(), StorageError> {
        if open.is_empty() {
            return Ok(());
        }
        let path = history::path_of(&self.places.history, open.first);
        let verified = history::verify(&self.disk, &self.places.history, Some(&self.owner), open).await?;
        let end = if let Some(end) = verified.end.filter(|_| verified.is_newest) {
            end
        } else {
            // What is here cannot be gone on with: it is of an older format, or cut within a block.
            let records = history::read_all(&self.disk, &self.places.history, open).await?;
            let bytes = history::encode(self.owner, open.first, &records, false);
            write_whole(&self.disk, &path, &bytes).await?;
            bytes.len() as u64
        };
        let file = self.disk.open(&path, Access::Write).await?.expect("it was read");
        self.disk.set_length(&file, end).await?;
        self.disk.write(&file, 0, &history::header(self.owner, open.first, None)).await?;
        self.open = Some(OpenFile { file, end });
        Ok(())
    }

    /// Removes history files of which a manifest names no record. What a newer version wrote is refused before any is removed.
    async fn drop_history_beyond(&self, manifest: &[Segment]) -> Result<(), StorageError> {
        let mut beyond = history::list(&self.disk, &self.places.history).await?;
        beyond.retain(|first| !manifest.iter().any(|segment| segment.first == *first && !segment.is_empty()));
        for first in &beyond {
            match Blocks::open(&self.disk, &self.places.history, None, *first).await {
                Ok(_) | Err(StorageError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        for first in beyond {
            self.disk.remove(&history::path_of(&self.places.history, first)).await?;
        }
        Ok(())
    }

    /// Makes a fetched snapshot the only one: drops older snapshots and history that does not fit, durably. `trusted` are
    /// sealed segments known to be here and right.
    async fn settle(&mut self, newest: &Arc<Kept>, trusted: &[Segment]) -> Result<(), StorageError> {
        let manifest = &newest.meta.history;
        let (sealed, open) = split(manifest);
        self.drop_history_beyond(manifest).await?;
        for segment in sealed {
            let path = history::path_of(&self.places.history, segment.first);
            if self.disk.open(&path, Access::Read).await?.is_none() {
                continue;
            }
            let checked = if trusted.contains(segment) {
                history::is_here(&self.disk, &self.places.history, &self.owner, segment).await.map(|_| ())
            } else {
                history::verify_whole(&self.disk, &self.places.history, Some(&self.owner), segment).await
            };
            match checked {
                Ok(()) => {}
                Err(StorageError::Damaged { .. }) => self.disk.remove(&path).await?,
                Err(error) => return Err(error),
            }
        }
        self.disk.sync_directory(&self.places.history).await?;
        let mut left = Vec::new();
        for path in snapshot::list(&self.disk, &self.places.snapshots).await? {
            let file = if path == newest.path {
                Arc::clone(newest)
            } else {
                Arc::new(snapshot::open(&self.disk, &path, Some(&self.owner)).await?)
            };
            if newest.meta.layers.contains(file.own()) {
                left.push(file);
            } else {
                self.disk.remove(&path).await?;
            }
        }
        self.disk.sync_directory(&self.places.snapshots).await?;
        let held = look(&self.disk, &self.places, &self.owner, sealed).await?;
        lock(&self.shared).replace(Table::new(held, open, left));
        Ok(())
    }

    /// Marks what is on disk as unknown until the write that begins is done.
    fn enter(&mut self) -> Result<(), StorageError> {
        if self.doubtful {
            return Err(StorageError::Io {
                file: printed(&self.places.history),
                operation: "write to",
                problem: "an earlier write failed, so what is on disk is unknown until the replica starts again".into(),
            });
        }
        self.doubtful = true;
        Ok(())
    }

    /// Ends the write that began; an error leaves what is on disk unknown.
    fn leave<T>(&mut self, outcome: Result<T, StorageError>) -> Result<T, StorageError> {
        self.doubtful = outcome.is_err();
        outcome
    }

    /// Writes the records collected as a block.
    async fn flush(&mut self) -> Result<(), StorageError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let (segment, first) = {
            let table = lock(&self.shared);
            (table.open, table.written.next())
        };
        if self.open.is_none() {
            let file = self.disk.create(&history::path_of(&self.places.history, segment.first)).await?;
            self.disk.write(&file, 0, &history::header(self.owner, segment.first, None)).await?;
            self.has_new_names = true;
            self.open = Some(OpenFile { file, end: SECTOR as u64 });
        }
        let open = self.open.as_mut().expect("it was made");
        let block = self.pending.block(first);
        self.disk.write(&open.file, open.end, &block).await?;
        open.end += block.len() as u64;
        lock(&self.shared).written = segment.last;
        Ok(())
    }

    async fn append_records(&mut self, records: Vec<Finished>) -> Result<(), StorageError> {
        let mut records = records.into_iter().peekable();
        while records.peek().is_some() {
            let is_full = self.collect(&mut records);
            if is_full || self.pending.is_full() {
                self.flush().await?;
            }
            // Sealed with the record that fills it, as live state does: a manifest may end right here.
            if is_full {
                if let Some(OpenFile { file, end }) = self.open.take() {
                    let first = lock(&self.shared).open.first;
                    self.disk.write(&file, 0, &history::header(self.owner, first, Some(end))).await?;
                    self.unsynced.push(file);
                }
                lock(&self.shared).seal();
            }
        }
        Ok(())
    }

    /// Takes records until they are to be written, or come to an end; tells whether they fill the open segment.
    fn collect(&mut self, records: &mut impl Iterator<Item = Finished>) -> bool {
        let mut table = lock(&self.shared);
        for record in records {
            assert_eq!(record.sequence, table.open.last.next(), "records must follow the history");
            self.pending.put(&record.bytes);
            table.push(record);
            if table.open.is_full() {
                return true;
            }
            if self.pending.is_full() {
                return false;
            }
        }
        false
    }

    /// Makes all of the history durable.
    async fn sync_history(&mut self) -> Result<(), StorageError> {
        self.flush().await?;
        for file in self.unsynced.drain(..) {
            self.disk.sync(&file).await?;
        }
        if let Some(open) = &self.open {
            self.disk.sync(&open.file).await?;
        }
        if self.has_new_names {
            self.disk.sync_directory(&self.places.history).await?;
            self.has_new_names = false;
        }
        Ok(())
    }

    /// Refuses a manifest that the history here is not a continuation of.
    fn check_manifest(&self, manifest: &[Segment]) {
        let table = lock(&self.shared);
        let (sealed, open) = split(manifest);
        for segment in sealed {
            let here = table.sealed.get(&segment.first).map(|held| held.segment);
            assert_eq!(here, Some(*segment), "a snapshot's manifest differs from the history at {}", segment.first);
        }
        let here = table.sealed.get(&open.first).map_or(table.open, |held| held.segment);
        assert_eq!(
            (here.first, here.before),
            (open.first, open.before),
            "a snapshot's open segment is not the history's"
        );
        assert!(open.last <= here.last, "a snapshot at {} rests on history up to {}", open.last, here.last);
        if open.last == here.last {
            assert_eq!(here, open, "a snapshot's open segment differs from the history");
        }
    }

    /// What is extended from here on is no part of the snapshot, and must not be where it ends.
    async fn begin_snapshot(&mut self, meta: SnapshotMeta) -> Result<(), StorageError> {
        assert!(self.saving.is_none(), "a snapshot is begun while another is written");
        self.check_manifest(&meta.history);
        self.flush().await?;
        let writer = Writer::begin(self.disk.clone(), &self.places.snapshots, meta.index, meta.term).await?;
        self.saving = Some(Saving { writer, meta });
        Ok(())
    }

    async fn finish_snapshot(&mut self, digest: Digest) -> Result<(SnapshotMeta, Index), StorageError> {
        let Saving { writer, meta } = self.saving.take().expect("a snapshot was begun");
        self.sync_history().await?;
        let file = Arc::new(writer.finish(self.owner, SnapshotMeta { digest, ..meta }).await?);
        let meta = file.meta.clone();
        let oldest = {
            let mut table = lock(&self.shared);
            table.snapshots.retain(|other| other.path != file.path);
            table.snapshots.push(file);
            table.snapshots.sort_unstable_by_key(|file| file.meta.index);
            kept(&table.snapshots)[0].meta.index
        };
        self.drop_unneeded().await?;
        Ok((meta, oldest))
    }

    /// Removes the files that no kept snapshot rests on.
    async fn drop_unneeded(&mut self) -> Result<(), StorageError> {
        let dropped: Vec<_> = {
            let mut table = lock(&self.shared);
            let all = std::mem::take(&mut table.snapshots);
            let (needed, dropped) = all.iter().cloned().partition(|file| is_needed(&all, file));
            table.snapshots = needed;
            dropped
        };
        for old in &dropped {
            self.disk.remove(&old.path).await?;
        }
        if !dropped.is_empty() {
            self.disk.sync_directory(&self.places.snapshots).await?;
        }
        Ok(())
    }

    async fn install_state(
        &mut self,
        meta: SnapshotMeta,
        mut pages: Pages,
        records: Vec<Bytes>,
    ) -> Result<SnapshotMeta, StorageError> {
        let (_, open) = split(&meta.history);
        if !history::is_made_of(&open, &records) {
            self.staging.keep_only(&[]).await?;
            let problem = format!("what was fetched is not the open segment of the snapshot at {}", meta.index);
            return Err(damaged(&self.places.staging, 0, problem, FETCH_AGAIN));
        }
        let mut writer = Writer::begin(self.disk.clone(), &self.places.snapshots, meta.index, meta.term).await?;
        while let Some(page) = pages.next_page() {
            writer.page(&page).await?;
        }
        let digest = pages.digest();
        assert!(!meta.has_digest() || meta.digest == digest, "the state to install is not the one that was offered");
        // Sealed segments may be what the new manifest names, and are not read again before they count.
        for file in self.unsynced.drain(..) {
            self.disk.sync(&file).await?;
        }
        self.pending.clear();
        self.open = None;
        lock(&self.shared).changes();
        if !open.is_empty() {
            let bytes = history::encode(self.owner, open.first, &records, false);
            write_whole(&self.disk, &history::path_of(&self.places.history, open.first), &bytes).await?;
        }
        let meta = SnapshotMeta { layers: Vec::new(), digest, ..meta };
        let newest = Arc::new(writer.finish(self.owner, meta).await?);
        let trusted: Vec<Segment> = {
            let table = lock(&self.shared);
            table.sealed.values().filter(|held| held.is_here).map(|held| held.segment).collect()
        };
        self.settle(&newest, &trusted).await?;
        self.has_new_names = false;
        self.cut_open(&open).await?;
        self.staging.keep_only(&[]).await?;
        Ok(newest.meta.clone())
    }

    async fn write_segment(&mut self, segment: Segment, records: Vec<Bytes>) -> Result<(), StorageError> {
        let awaited = lock(&self.shared).sealed.get(&segment.first).copied();
        if awaited.is_none_or(|held| held.segment != segment || held.is_here) {
            tracing::debug!(first = %segment.first, "a history segment that nobody waits for was dropped");
            return Ok(());
        }
        if !history::is_made_of(&segment, &records) {
            tracing::warn!(first = %segment.first, last = %segment.last, "a fetched history segment does not fit and was dropped");
            return Ok(());
        }
        let bytes = history::encode(self.owner, segment.first, &records, true);
        write_whole(&self.disk, &history::path_of(&self.places.history, segment.first), &bytes).await?;
        lock(&self.shared).sealed.insert(segment.first, Held { segment, is_here: true });
        Ok(())
    }
}

impl<D: Disk> Archive for FileArchive<D> {
    async fn extend(&mut self, records: Vec<Finished>) -> Result<(), StorageError> {
        self.enter()?;
        let outcome = self.append_records(records).await;
        self.leave(outcome)
    }

    async fn begin(&mut self, meta: SnapshotMeta) -> Result<(), StorageError> {
        self.enter()?;
        let outcome = self.begin_snapshot(meta).await;
        self.leave(outcome)
    }

    async fn write(&mut self, page: Page) -> Result<(), StorageError> {
        self.enter()?;
        let outcome = self.saving.as_mut().expect("a snapshot was begun").writer.page(&page).await;
        self.leave(outcome)
    }

    async fn finish(&mut self, digest: Digest) -> Result<(SnapshotMeta, Index), StorageError> {
        self.enter()?;
        let outcome = self.finish_snapshot(digest).await;
        self.leave(outcome)
    }

    async fn staged(&mut self, runs: &[Run]) -> Result<Vec<u32>, StorageError> {
        self.enter()?;
        let outcome = self.staging.keep_only(runs).await;
        self.leave(outcome)
    }

    async fn stage(&mut self, run: &Run, page: Bytes) -> Result<(), StorageError> {
        self.enter()?;
        let outcome = self.staging.put(run, &page).await;
        self.leave(outcome)
    }

    async fn staged_page(&mut self, run: &Run, page: u32) -> Result<Bytes, StorageError> {
        self.staging.page(run, page).await
    }

    async fn install(
        &mut self,
        meta: SnapshotMeta,
        pages: Pages,
        open: Vec<Bytes>,
    ) -> Result<SnapshotMeta, StorageError> {
        self.enter()?;
        let outcome = self.install_state(meta, pages, open).await;
        self.leave(outcome)
    }

    async fn fill(&mut self, segment: Segment, records: Vec<Bytes>) -> Result<(), StorageError> {
        self.enter()?;
        let outcome = self.write_segment(segment, records).await;
        self.leave(outcome)
    }

    async fn missing(&mut self) -> Result<Vec<Segment>, StorageError> {
        let table = lock(&self.shared);
        Ok(table.sealed.values().filter(|held| !held.is_here).map(|held| held.segment).collect())
    }
}
