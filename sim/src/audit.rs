//! Reads what replicas hold on their disks: when all is over, all of them their log and snapshots, and those that say they are full
//! copies their whole history. That is read also when one begins to say so.

use crate::disk::{ROOT, SimDisk};
use crate::event::Event;
use crate::world::{Life, World};
use bytes::Bytes;
use muster_core::front::Handle;
use muster_core::ids::{Index, ReplicaId, Seq};
use muster_core::storage::Library as _;
use std::path::Path;
use std::sync::Arc;

/// Tells what every replica holds whose disk nothing was done to.
pub async fn disks(world: &Arc<World>) {
    for replica in world.replicas() {
        let forgot = world.facts(|facts| facts.forgot.contains(&replica));
        let Some((handle, life)) = world.front(replica).filter(|_| !forgot) else { continue };
        inspect(world, replica, &life).await;
        history(world, replica, &handle, &life).await;
    }
}

async fn inspect(world: &Arc<World>, replica: ReplicaId, life: &Arc<Life>) {
    let store = world.machines().get(&replica).map(|machine| machine.store.clone());
    let Some(store) = store else { return };
    let disk = SimDisk::new(world.clone(), store, life.clone());
    let found = match muster_storage::inspect(&disk, Path::new(ROOT)).await {
        Ok(found) => found,
        Err(error) => {
            let problems = [error.to_string()].into();
            return world.emit(&Event::Inspected {
                replica,
                log_start: Index::default(),
                snapshots: [].into(),
                problems,
            });
        }
    };
    let snapshots = found.snapshots.iter().filter(|file| file.is_kept);
    let snapshots = snapshots.filter_map(|file| file.meta.as_ref().map(|meta| meta.index)).collect();
    let problems = found.problems.iter().map(ToString::to_string).collect();
    if !life.is_over() {
        world.emit(&Event::Inspected { replica, log_start: found.log_start.0, snapshots, problems });
    }
}

/// Tells what a replica holds that begins to say that it is a full copy, unless something was done to its disk.
pub async fn claim(world: Arc<World>, handle: Handle, life: Arc<Life>) {
    if world.facts(|facts| !facts.disk_faults.contains_key(&life.replica)) {
        history(&world, life.replica, &handle, &life).await;
    }
}

async fn history(world: &Arc<World>, replica: ReplicaId, handle: &Handle, life: &Arc<Life>) {
    let library = world.machines().get(&replica).and_then(|machine| machine.library.clone());
    let Some(library) = library.filter(|_| handle.view().status.full_copy) else { return };
    let upto = handle.view().state.sequence();
    handle.recorded(upto).await;
    let (mut records, mut problem): (Vec<Bytes>, _) = (Vec::new(), None);
    while (records.len() as u64) < upto.0 && problem.is_none() && !life.is_over() {
        let after = Seq(records.len() as u64);
        match library.records(after, upto, 1 << 20).await {
            Ok(more) if more.is_empty() => problem = Some(format!("nothing after {after}")),
            Ok(more) => records.extend(more.into_iter().map(|(_, bytes)| bytes)),
            Err(error) => problem = Some(error.to_string()),
        }
        // An install takes the claim back before it touches anything.
        if !handle.view().status.full_copy {
            return;
        }
    }
    if !life.is_over() && world.facts(|facts| !facts.forgot.contains(&replica)) {
        world.emit(&Event::Kept { replica, upto, records: records.into(), problem });
    }
}
