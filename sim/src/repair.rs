//! An operator brings a replica back from an older snapshot: its newest one turns out to be damaged, `muster repair` moves that
//! aside, and the replica starts from the one before and the log after it.
//!
//! Invariants
//! - nothing starts the replica meanwhile, whatever faults end;
//! - the replica is started only when the tool finds nothing more to do, for power may be lost between its work and its sync.

use crate::disk::ROOT;
use crate::event::Ending;
use crate::oracles::Violation;
use crate::replica;
use crate::run::STORY;
use crate::scenario::{MS, SECOND};
use crate::world::World;
use futures_util::future::{Either, select};
use muster_core::ids::ReplicaId;
use muster_core::storage::StorageError;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

/// How long the tool may stand still before it is started anew: a crash at a point of the disk stops it too.
const PATIENCE: u64 = 2 * SECOND;

/// Stops a replica, has it repaired, and starts it again. What came of it, in words.
pub(crate) async fn restore(world: &Arc<World>, id: ReplicaId, operation: &Arc<str>) -> String {
    if let Some(machine) = world.machines().get_mut(&id) {
        machine.held_down.insert(operation.clone());
    }
    world.kill(id, Ending::Killed);
    let told = work(world, id).await;
    if let Some(machine) = world.machines().get_mut(&id) {
        machine.held_down.remove(operation);
    }
    replica::start(world, id, None);
    told
}

async fn work(world: &Arc<World>, id: ReplicaId) -> String {
    let store = world.machines().get(&id).map(|machine| machine.store.clone());
    let Some(file) = store.and_then(|store| store.spoil_newest_snapshot()) else {
        return format!("replica {id} keeps no two snapshots; nothing was done to it");
    };
    while let Some(disk) = world.tool(id).filter(|_| !world.is_over()) {
        let repaired = {
            let repair = pin!(muster_storage::repair(disk, Path::new(ROOT)));
            let late = pin!(world.agenda.sleep(PATIENCE));
            match select(repair, late).await {
                Either::Left((repaired, _)) => repaired,
                Either::Right(_) => continue,
            }
        };
        match repaired {
            Ok(moved) if moved.is_empty() => break,
            Ok(_) => {}
            // Whoever emptied the disk meanwhile left nothing to repair.
            Err(StorageError::Empty { .. }) => break,
            Err(error @ StorageError::Damaged { .. }) => {
                if !world.facts(|facts| facts.disk_faults.contains_key(&id)) {
                    let expected = format!("replica {id} to be made again from an older snapshot and the log after it");
                    world.fail(
                        STORY,
                        "the reading \"any snapshot plus subsequent WAL\"",
                        Violation::new(expected, error.to_string()),
                    );
                }
                break;
            }
            Err(
                StorageError::Io { .. }
                | StorageError::Full { .. }
                | StorageError::Format { .. }
                | StorageError::Foreign { .. }
                | StorageError::Locked { .. },
            ) => world.agenda.sleep(300 * MS).await,
        }
    }
    format!("replica {id} goes on without {file}")
}
