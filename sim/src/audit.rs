//! Reads, when all is over, what replicas that say they are full copies hold, from their disks.

use crate::event::Event;
use crate::world::World;
use bytes::Bytes;
use muster_core::ids::Seq;
use muster_core::storage::Library as _;
use std::sync::Arc;

/// Tells what every full copy holds.
pub async fn histories(world: &Arc<World>) {
    for replica in world.replicas() {
        let forgot = world.facts(|facts| facts.forgot.contains(&replica));
        let Some((handle, life)) = world.front(replica).filter(|_| !forgot) else { continue };
        let library = world.machines().get(&replica).and_then(|machine| machine.library.clone());
        let Some(library) = library.filter(|_| handle.view().status.full_copy) else { continue };
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
        }
        if !life.is_over() {
            world.emit(&Event::Kept { replica, upto, records: records.into(), problem });
        }
    }
}
