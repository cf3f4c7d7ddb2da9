//! Looks over the shoulder of a process: what it hands to its log and archive, and when that is done, become events.
//!
//! Passes everything through unchanged, and at once unless a fault wants it late; production has the parts below without this one.

use crate::event::Event;
use crate::freedom::Freedom;
use crate::world::{Life, World};
use bytes::Bytes;
use muster_core::front::Handle;
use muster_core::ids::{Digest, Index};
use muster_core::log::LogRecord;
use muster_core::state::Finished;
use muster_core::storage::{Archive, LogStore, Page, Pages, Run, Segment, SnapshotMeta, StorageError};
use std::sync::Arc;

/// A part of a process, watched.
pub struct Watched<P> {
    part: P,
    world: Arc<World>,
    life: Arc<Life>,
    freedom: Arc<Freedom>,
}

impl<P> Watched<P> {
    /// Watches a part.
    #[must_use]
    pub fn new(part: P, world: Arc<World>, life: Arc<Life>, freedom: Arc<Freedom>) -> Self {
        Self { part, world, life, freedom }
    }

    /// As late as the driver must bear, before something is begun or told.
    async fn dawdle(&self) {
        let nanos = self.freedom.lateness();
        if nanos > 0 {
            self.world.agenda.sleep(nanos).await;
        }
    }

    fn tell(&self, event: &Event) {
        if !self.life.is_over() {
            self.world.emit(event);
        }
    }
}

impl<L: LogStore> LogStore for Watched<L> {
    async fn append(&mut self, records: &[LogRecord]) -> Result<(), StorageError> {
        let (replica, run) = (self.life.replica, self.life.run);
        let shared: Arc<[LogRecord]> = records.into();
        self.tell(&Event::Append { replica, run, records: shared.clone() });
        self.dawdle().await;
        self.part.append(records).await?;
        self.tell(&Event::Durable { replica, run, records: shared });
        self.dawdle().await;
        Ok(())
    }

    async fn purge(&mut self, below: Index) -> Result<(), StorageError> {
        self.part.purge(below).await
    }
}

impl<A: Archive> Archive for Watched<A> {
    async fn extend(&mut self, records: Vec<Finished>) -> Result<(), StorageError> {
        let (replica, run) = (self.life.replica, self.life.run);
        if let Some(first) = records.first().map(|record| record.sequence) {
            let records = records.iter().map(|record| record.bytes.clone()).collect();
            self.tell(&Event::Records { replica, run, first, records });
        }
        self.dawdle().await;
        self.part.extend(records).await?;
        self.dawdle().await;
        Ok(())
    }

    async fn begin(&mut self, meta: SnapshotMeta) -> Result<(), StorageError> {
        self.dawdle().await;
        self.part.begin(meta).await
    }

    async fn write(&mut self, page: Page) -> Result<(), StorageError> {
        self.part.write(page).await?;
        self.dawdle().await;
        Ok(())
    }

    async fn finish(&mut self, digest: Digest) -> Result<(SnapshotMeta, Index), StorageError> {
        let (meta, oldest) = self.part.finish(digest).await?;
        let (replica, run) = (self.life.replica, self.life.run);
        self.tell(&Event::Snapshot { replica, run, installed: false, meta: Arc::new(meta.clone()) });
        self.dawdle().await;
        Ok((meta, oldest))
    }

    async fn staged(&mut self, runs: &[Run]) -> Result<Vec<u32>, StorageError> {
        self.part.staged(runs).await
    }

    async fn stage(&mut self, run: &Run, page: Bytes) -> Result<(), StorageError> {
        self.part.stage(run, page).await
    }

    async fn staged_page(&mut self, run: &Run, page: u32) -> Result<Bytes, StorageError> {
        self.part.staged_page(run, page).await
    }

    async fn install(
        &mut self,
        meta: SnapshotMeta,
        pages: Pages,
        open: Vec<Bytes>,
    ) -> Result<SnapshotMeta, StorageError> {
        self.dawdle().await;
        let meta = self.part.install(meta, pages, open).await?;
        let (replica, run) = (self.life.replica, self.life.run);
        self.tell(&Event::Snapshot { replica, run, installed: true, meta: Arc::new(meta.clone()) });
        self.dawdle().await;
        Ok(meta)
    }

    async fn fill(&mut self, segment: Segment, records: Vec<Bytes>) -> Result<(), StorageError> {
        self.dawdle().await;
        self.part.fill(segment, records).await
    }

    async fn missing(&mut self) -> Result<Vec<Segment>, StorageError> {
        self.part.missing().await
    }
}

/// Tells every view that a process publishes, until it is over.
pub async fn views(world: Arc<World>, life: Arc<Life>, handle: Handle) {
    let (mut version, mut full_copy) = (0, false);
    while !life.is_over() && !world.is_over() {
        let view = handle.changed(version).await;
        if life.is_over() {
            return;
        }
        if view.version > version {
            version = view.version;
            let claims = view.status.full_copy && !full_copy;
            full_copy = view.status.full_copy;
            world.emit(&Event::View { replica: life.replica, run: life.run, view });
            if claims {
                world.spawn(crate::audit::claim(world.clone(), handle.clone(), life.clone()));
            }
        } else if handle.stopped() {
            return;
        }
    }
}
