//! Pages of a snapshot that is being fetched: `staging/snap-{term}-{index}-{digest}-{first page}`, one file per run of pages.
//!
//! A file is frames as in a snapshot, without a header. Nothing is synced: a fetch that is interrupted, even by the end of the
//! process, goes on after the last page that is whole, and what a loss of power took is fetched again. What is here is only
//! ever read back through the checks of what was offered.

use crate::disk::{Access, Disk};
use crate::file::{FETCH_AGAIN, damaged, frame, u32_at};
use crate::snapshot;
use bytes::Bytes;
use muster_core::storage::{Run, StorageError};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The pages of one run.
struct Pages<F> {
    file: F,
    /// Where each page's frame begins, and last where the next one will.
    offsets: Vec<u64>,
}

/// The directory of what is being fetched.
pub(crate) struct Staging<D: Disk> {
    disk: D,
    directory: PathBuf,
    runs: BTreeMap<PathBuf, Pages<D::File>>,
}

impl<D: Disk> Staging<D> {
    pub(crate) fn new(disk: D, directory: PathBuf) -> Self {
        Self { disk, directory, runs: BTreeMap::new() }
    }

    /// The file of a run. Another layer at the same position gets another.
    fn path_of(&self, run: &Run) -> PathBuf {
        let digest = run.layer.digest.to_string();
        let name = snapshot::name_of(run.layer.index, run.layer.term);
        self.directory.join(format!("{name}-{}-{}", &digest[..16], run.from))
    }

    /// Drops what is not of these runs; tells how many pages of each are here.
    pub(crate) async fn keep_only(&mut self, runs: &[Run]) -> Result<Vec<u32>, StorageError> {
        let paths: Vec<PathBuf> = runs.iter().map(|run| self.path_of(run)).collect();
        self.runs.retain(|path, _| paths.contains(path));
        for name in self.disk.list(&self.directory).await?.unwrap_or_default() {
            let path = self.directory.join(name);
            if !paths.contains(&path) {
                self.disk.remove(&path).await?;
            }
        }
        let mut counts = Vec::new();
        for run in runs {
            let found = self.find(run).await?.map_or(0, |pages| pages.offsets.len() - 1);
            counts.push(u32::try_from(found).unwrap_or(u32::MAX).min(run.to - run.from));
        }
        Ok(counts)
    }

    /// A run's file, if it has one; what is torn at its end does not count.
    async fn find(&mut self, run: &Run) -> Result<Option<&mut Pages<D::File>>, StorageError> {
        let path = self.path_of(run);
        if !self.runs.contains_key(&path) {
            let Some(file) = self.disk.open(&path, Access::Write).await? else { return Ok(None) };
            let mut pages = Pages { file, offsets: vec![0] };
            let mut end = 0;
            while let Some(page) = self.read(&pages.file, run.from + pages.count(), end).await? {
                end += (frame::HEAD + page.len()) as u64;
                pages.offsets.push(end);
            }
            self.runs.insert(path.clone(), pages);
        }
        Ok(self.runs.get_mut(&path))
    }

    /// Puts the next page of a run.
    pub(crate) async fn put(&mut self, run: &Run, page: &Bytes) -> Result<(), StorageError> {
        if self.find(run).await?.is_none() {
            let path = self.path_of(run);
            let file = self.disk.create(&path).await?;
            self.runs.insert(path, Pages { file, offsets: vec![0] });
        }
        let disk = self.disk.clone();
        let pages = self.find(run).await?.expect("it was made");
        let offset = pages.end();
        disk.write(&pages.file, offset, &frame::head((run.from + pages.count()).into(), page)).await?;
        disk.write(&pages.file, offset + frame::HEAD as u64, page).await?;
        pages.offsets.push(offset + (frame::HEAD + page.len()) as u64);
        Ok(())
    }

    /// A page of a run, counted from its front.
    pub(crate) async fn page(&mut self, run: &Run, page: u32) -> Result<Bytes, StorageError> {
        let path = self.path_of(run);
        let place = page as usize;
        let found = self.find(run).await?.filter(|pages| place + 1 < pages.offsets.len());
        let found = found.map(|pages| (pages.file.clone(), pages.offsets[place]));
        let (file, offset) = found.expect("only what is staged is asked for");
        let bytes = self.read(&file, run.from + page, offset).await?;
        bytes.ok_or_else(|| damaged(&path, offset, "a page is not what was staged".into(), FETCH_AGAIN))
    }

    /// Reads a page. None if it is not there, or not whole.
    async fn read(&self, file: &D::File, page: u32, offset: u64) -> Result<Option<Bytes>, StorageError> {
        let head = self.disk.read(file, offset, frame::HEAD).await?;
        if head.len() < frame::HEAD {
            return Ok(None);
        }
        let bytes = frame::HEAD + u32_at(&head, 0) as usize;
        if self.disk.length(file).await? < offset + bytes as u64 {
            return Ok(None);
        }
        let framed = Bytes::from(self.disk.read(file, offset, bytes).await?);
        Ok(frame::read(page.into(), &framed).is_ok().then(|| framed.slice(frame::HEAD..)))
    }
}

impl<F> Pages<F> {
    fn count(&self) -> u32 {
        u32::try_from(self.offsets.len() - 1).expect("a layer has less than 2^32 pages")
    }

    fn end(&self) -> u64 {
        *self.offsets.last().expect("there is always an end")
    }
}
