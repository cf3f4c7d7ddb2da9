//! Snapshots and history, the writing side.
//!
//! ```text
//! DIR/snapshots/snap-{term}-{index}   the newest three (`snapshot.rs`)
//! DIR/history/{first:020}.seg         the journal's records, one file per segment (`history.rs`)
//! DIR/staging/snap-…                  pages of a snapshot that is being fetched, framed as in a snapshot, unsynced
//! ```
//!
//! Invariants
//! - A snapshot under its name is complete, and so is the history up to it, except sealed segments that are still to be
//!   fetched (they are absent).
//! - History after the newest snapshot is not durable and need not be: the next start cuts it, replay writes it again.
//! - Staged pages are never renamed into place: after a restart the page cache may show pages that no sync would write.
//!   Installing writes them anew.
//! - After a failed or abandoned write everything further is refused.

use crate::disk::{Access, Disk, printed, sweep, write_whole};
use crate::file::{FETCH_AGAIN, Owner, REPAIR, SECTOR, damaged, frame, u32_at};
use crate::history;
use crate::library::{FileLibrary, Held, Shared, Table, lock};
use crate::snapshot::{self, Kept, Writer};
use bytes::Bytes;
use muster_core::ids::{Digest, Index, Seq};
use muster_core::storage::{Archive, Pages, Segment, SnapshotMeta, StorageError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// How many snapshots are kept.
const SNAPSHOTS_KEPT: usize = 3;
/// How many bytes of new records are collected before they are written.
const PENDING_BYTES: usize = 256 << 10;

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

/// A snapshot that is being fetched.
struct Staged<F> {
    digest: Digest,
    file: F,
    pages: u32,
    end: u64,
}

/// Snapshots and history in a data directory.
pub struct FileArchive<D: Disk> {
    disk: D,
    places: Places,
    owner: Owner,
    shared: Shared,
    /// The open segment's file, once it has one.
    open: Option<OpenFile<D::File>>,
    /// Framed records that are not in the open segment's file yet.
    pending: Vec<u8>,
    /// Sealed files that are not synced yet.
    unsynced: Vec<D::File>,
    /// Whether history files were made whose names are not durable.
    has_new_names: bool,
    staged: Option<Staged<D::File>>,
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
async fn look<D: Disk>(disk: &D, places: &Places, sealed: &[Segment]) -> Result<BTreeMap<Seq, Held>, StorageError> {
    let mut held = BTreeMap::new();
    for segment in sealed {
        let path = history::path_of(&places.history, segment.first);
        let file = disk.open(&path, Access::Read).await?;
        if let Some(file) = &file {
            let length = disk.length(file).await?;
            let expected = history::file_bytes(segment);
            if length != expected {
                let problem = format!("it has {length} bytes, a segment up to {} has {expected}", segment.last);
                return Err(damaged(&path, length.min(expected), problem, REPAIR));
            }
        }
        held.insert(segment.first, Held { segment: *segment, is_here: file.is_some() });
    }
    Ok(held)
}

/// Opens the kept snapshots, oldest first, and reads the newest through and through.
pub(crate) async fn open_snapshots<D: Disk>(
    disk: &D,
    places: &Places,
    owner: &Owner,
) -> Result<Vec<Arc<Kept>>, StorageError> {
    // A name that is not durable yet must not be what an older snapshot is dropped for.
    disk.sync_directory(&places.snapshots).await?;
    let mut kept = Vec::new();
    for path in snapshot::list(disk, &places.snapshots).await? {
        kept.push(Arc::new(snapshot::open(disk, &path, Some(owner)).await?));
    }
    if let Some(newest) = kept.last() {
        newest.verify(disk).await?;
    }
    Ok(kept)
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
        let mut archive = Self {
            disk,
            places,
            owner,
            shared: Arc::new(Mutex::new(Table::new(BTreeMap::new(), open, snapshots.clone()))),
            open: None,
            pending: Vec::new(),
            unsynced: Vec::new(),
            has_new_names: false,
            staged: None,
            doubtful: false,
        };
        if is_install_unfinished {
            let trusted: Vec<Segment> =
                snapshots.iter().rev().skip(1).flat_map(|kept| split(&kept.meta.history).0).copied().collect();
            let newest = snapshots.last().expect("an install left a snapshot");
            archive.settle(newest, &trusted).await?;
        } else {
            archive.drop_history_beyond(&manifest).await?;
            let held = look(&archive.disk, &archive.places, sealed).await?;
            lock(&archive.shared).replace(Table::new(held, open, snapshots));
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
        let path = history::path_of(&self.places.history, open.first);
        if open.is_empty() {
            return match self.disk.open(&path, Access::Read).await? {
                Some(_) => self.disk.remove(&path).await,
                None => Ok(()),
            };
        }
        history::verify(&self.disk, &self.places.history, Some(&self.owner), open).await?;
        let file = self.disk.open(&path, Access::Write).await?.expect("it was read");
        let end = history::file_bytes(open);
        self.disk.set_length(&file, end).await?;
        self.open = Some(OpenFile { file, end });
        Ok(())
    }

    /// Removes history files that a manifest does not name.
    async fn drop_history_beyond(&self, manifest: &[Segment]) -> Result<(), StorageError> {
        for first in history::list(&self.disk, &self.places.history).await? {
            if !manifest.iter().any(|segment| segment.first == first) {
                self.disk.remove(&history::path_of(&self.places.history, first)).await?;
            }
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
            let Some(file) = self.disk.open(&path, Access::Read).await? else { continue };
            let has_length = self.disk.length(&file).await? == history::file_bytes(segment);
            let fits = has_length
                && (trusted.contains(segment)
                    || match history::verify(&self.disk, &self.places.history, Some(&self.owner), segment).await {
                        Ok(()) => true,
                        Err(StorageError::Damaged { .. }) => false,
                        Err(error) => return Err(error),
                    });
            if !fits {
                self.disk.remove(&path).await?;
            }
        }
        self.disk.sync_directory(&self.places.history).await?;
        for path in snapshot::list(&self.disk, &self.places.snapshots).await? {
            if path != newest.path {
                self.disk.remove(&path).await?;
            }
        }
        self.disk.sync_directory(&self.places.snapshots).await?;
        let held = look(&self.disk, &self.places, sealed).await?;
        lock(&self.shared).replace(Table::new(held, open, vec![Arc::clone(newest)]));
        Ok(())
    }

    /// Marks what is on disk as unknown until the write that begins is done.
    fn begin(&mut self) -> Result<(), StorageError> {
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
    fn end<T>(&mut self, outcome: Result<T, StorageError>) -> Result<T, StorageError> {
        self.doubtful = outcome.is_err();
        outcome
    }

    /// Writes the records collected.
    async fn flush(&mut self) -> Result<(), StorageError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let segment = lock(&self.shared).open;
        if self.open.is_none() {
            let file = self.disk.create(&history::path_of(&self.places.history, segment.first)).await?;
            self.disk.write(&file, 0, &history::header(self.owner, segment.first)).await?;
            self.has_new_names = true;
            self.open = Some(OpenFile { file, end: SECTOR as u64 });
        }
        let open = self.open.as_mut().expect("it was made");
        self.disk.write(&open.file, open.end, &self.pending).await?;
        open.end += self.pending.len() as u64;
        self.pending.clear();
        lock(&self.shared).written = segment.last;
        Ok(())
    }

    async fn append_records(&mut self, first: Seq, records: Vec<Bytes>) -> Result<(), StorageError> {
        let mut records = records.into_iter().zip(first.0..).peekable();
        while records.peek().is_some() {
            let is_full = self.collect(&mut records);
            if is_full || self.pending.len() >= PENDING_BYTES {
                self.flush().await?;
            }
            // Sealed with the record that fills it, as live state does: a manifest may end right here.
            if is_full {
                self.unsynced.extend(self.open.take().map(|open| open.file));
                lock(&self.shared).seal();
            }
        }
        Ok(())
    }

    /// Takes records until they are to be written, or come to an end; tells whether they fill the open segment.
    fn collect(&mut self, records: &mut impl Iterator<Item = (Bytes, u64)>) -> bool {
        let mut table = lock(&self.shared);
        for (record, sequence) in records {
            assert_eq!(Seq(sequence), table.open.last.next(), "records must follow the history");
            self.pending.extend_from_slice(&frame::head(sequence, &record));
            self.pending.extend_from_slice(&record);
            table.push(record);
            if table.open.is_full() {
                return true;
            }
            if self.pending.len() >= PENDING_BYTES {
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

    async fn write_snapshot(
        &mut self,
        meta: SnapshotMeta,
        pages: Pages,
    ) -> Result<(SnapshotMeta, Index), StorageError> {
        self.check_manifest(&meta.history);
        self.sync_history().await?;
        let mut writer = Writer::begin(self.disk.clone(), &self.places.snapshots, meta.index, meta.term).await?;
        for page in pages {
            writer.page(&page).await?;
        }
        let meta = writer.complete(meta);
        let kept = Arc::new(writer.finish(self.owner, meta.clone()).await?);
        let (dropped, oldest) = {
            let mut table = lock(&self.shared);
            table.snapshots.retain(|other| other.path != kept.path);
            table.snapshots.push(kept);
            table.snapshots.sort_unstable_by_key(|kept| kept.meta.index);
            let excess = table.snapshots.len().saturating_sub(SNAPSHOTS_KEPT);
            let dropped: Vec<_> = table.snapshots.drain(..excess).collect();
            (dropped, table.snapshots[0].meta.index)
        };
        for old in &dropped {
            self.disk.remove(&old.path).await?;
        }
        if !dropped.is_empty() {
            self.disk.sync_directory(&self.places.snapshots).await?;
        }
        Ok((meta, oldest))
    }

    /// The file in which a snapshot is staged. Another state at the same position gets another file.
    fn staging_path(&self, meta: &SnapshotMeta) -> PathBuf {
        let digest = meta.digest.to_string();
        self.places.staging.join(format!("{}-{}", snapshot::name_of(meta.index, meta.term), &digest[..16]))
    }

    async fn drop_staging(&mut self) -> Result<(), StorageError> {
        self.staged = None;
        for name in self.disk.list(&self.places.staging).await?.unwrap_or_default() {
            self.disk.remove(&self.places.staging.join(name)).await?;
        }
        Ok(())
    }

    /// Finds the good pages that were staged before a restart.
    async fn find_staged(&mut self, meta: &SnapshotMeta) -> Result<u32, StorageError> {
        if let Some(staged) = &self.staged
            && staged.digest == meta.digest
        {
            return Ok(staged.pages);
        }
        let path = self.staging_path(meta);
        let Some(file) = self.disk.open(&path, Access::Write).await? else { return Ok(0) };
        let (mut pages, mut end) = (0, 0);
        while let Some(page) = read_staged(&self.disk, &file, pages, end).await? {
            pages += 1;
            end += (frame::HEAD + page.len()) as u64;
        }
        self.staged = Some(Staged { digest: meta.digest, file, pages, end });
        Ok(pages)
    }

    async fn write_staged(&mut self, meta: &SnapshotMeta, page: u32, bytes: Bytes) -> Result<(), StorageError> {
        if page == 0 {
            self.drop_staging().await?;
            let file = self.disk.create(&self.staging_path(meta)).await?;
            self.staged = Some(Staged { digest: meta.digest, file, pages: 0, end: 0 });
        }
        let expected = self.find_staged(meta).await?;
        assert_eq!(page, expected, "pages are staged in order");
        let staged = self.staged.as_mut().expect("a page before this one was staged");
        self.disk.write(&staged.file, staged.end, &frame::head(page.into(), &bytes)).await?;
        self.disk.write(&staged.file, staged.end + frame::HEAD as u64, &bytes).await?;
        staged.pages += 1;
        staged.end += (frame::HEAD + bytes.len()) as u64;
        Ok(())
    }

    async fn install_staged(&mut self, meta: &SnapshotMeta, records: Vec<Bytes>) -> Result<(), StorageError> {
        let path = self.staging_path(meta);
        let (_, open) = split(&meta.history);
        let mut writer = Writer::begin(self.disk.clone(), &self.places.snapshots, meta.index, meta.term).await?;
        self.find_staged(meta).await?;
        let mut end = 0;
        while let Some(staged) = &self.staged
            && let Some(page) = read_staged(&self.disk, &staged.file, writer.pages(), end).await?
        {
            end += (frame::HEAD + page.len()) as u64;
            writer.page(&page).await?;
        }
        if writer.complete(meta.clone()) != *meta || !history::is_made_of(&open, &records) {
            self.drop_staging().await?;
            let problem = format!("what was fetched is not the snapshot {} and its open segment", meta.digest);
            return Err(damaged(&path, end, problem, FETCH_AGAIN));
        }
        self.pending.clear();
        self.unsynced.clear();
        self.open = None;
        if !open.is_empty() {
            let bytes = history::encode(self.owner, open.first, &records);
            write_whole(&self.disk, &history::path_of(&self.places.history, open.first), &bytes).await?;
        }
        let kept = Arc::new(writer.finish(self.owner, meta.clone()).await?);
        let trusted: Vec<Segment> = {
            let table = lock(&self.shared);
            table.sealed.values().filter(|held| held.is_here).map(|held| held.segment).collect()
        };
        self.settle(&kept, &trusted).await?;
        self.has_new_names = false;
        self.cut_open(&open).await?;
        self.drop_staging().await
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
        let bytes = history::encode(self.owner, segment.first, &records);
        write_whole(&self.disk, &history::path_of(&self.places.history, segment.first), &bytes).await?;
        lock(&self.shared).sealed.insert(segment.first, Held { segment, is_here: true });
        Ok(())
    }
}

/// Reads a staged page. None if it is not there, or not whole.
async fn read_staged<D: Disk>(disk: &D, file: &D::File, page: u32, offset: u64) -> Result<Option<Bytes>, StorageError> {
    let head = disk.read(file, offset, frame::HEAD).await?;
    if head.len() < frame::HEAD {
        return Ok(None);
    }
    let bytes = frame::HEAD + u32_at(&head, 0) as usize;
    if disk.length(file).await? < offset + bytes as u64 {
        return Ok(None);
    }
    let framed = Bytes::from(disk.read(file, offset, bytes).await?);
    Ok(frame::read(page.into(), &framed).is_ok().then(|| framed.slice(frame::HEAD..)))
}

impl<D: Disk> Archive for FileArchive<D> {
    async fn extend(&mut self, first: Seq, records: Vec<Bytes>) -> Result<(), StorageError> {
        self.begin()?;
        let outcome = self.append_records(first, records).await;
        self.end(outcome)
    }

    async fn save(&mut self, meta: SnapshotMeta, pages: Pages) -> Result<(SnapshotMeta, Index), StorageError> {
        self.begin()?;
        let outcome = self.write_snapshot(meta, pages).await;
        self.end(outcome)
    }

    async fn stage(&mut self, meta: &SnapshotMeta, page: u32, bytes: Bytes) -> Result<(), StorageError> {
        self.begin()?;
        let outcome = self.write_staged(meta, page, bytes).await;
        self.end(outcome)
    }

    async fn staged(&mut self, meta: &SnapshotMeta) -> Result<u32, StorageError> {
        self.find_staged(meta).await
    }

    async fn install(&mut self, meta: &SnapshotMeta, open: Vec<Bytes>) -> Result<(), StorageError> {
        self.begin()?;
        let outcome = self.install_staged(meta, open).await;
        self.end(outcome)
    }

    async fn fill(&mut self, segment: Segment, records: Vec<Bytes>) -> Result<(), StorageError> {
        self.begin()?;
        let outcome = self.write_segment(segment, records).await;
        self.end(outcome)
    }

    async fn missing(&mut self) -> Result<Vec<Segment>, StorageError> {
        let table = lock(&self.shared);
        Ok(table.sealed.values().filter(|held| !held.is_here).map(|held| held.segment).collect())
    }
}
