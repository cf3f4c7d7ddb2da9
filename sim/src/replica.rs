//! A replica's process: started exactly as a server starts one, over simulated devices.
//!
//! Everything a process does runs on one of the executor's nodes; killing the node drops it all at whatever it awaits.

use crate::clock::SimClock;
use crate::disk::{ROOT, SimDisk};
use crate::event::{Ending, Event};
use crate::fault::RESTART_NANOS;
use crate::freedom::Freedom;
use crate::network::SimNetwork;
use crate::scenario::Back;
use crate::watch::{Watched, views};
use crate::world::{Life, World};
use muster_core::clock::Clock as _;
use muster_core::driver;
use muster_core::ids::{Index, ReplicaId, Term};
use muster_core::log::Configuration;
use muster_core::members::Member;
use muster_core::replica::Settings;
use muster_core::state::State;
use muster_core::storage::{Identity, Pages, SnapshotMeta, StorageError};
use muster_storage::WalOptions;
use std::path::Path;
use std::sync::Arc;

/// The snapshot that a new cluster begins with: one member, at the position every log starts behind.
fn first_snapshot(identity: &Identity, member: Member) -> (SnapshotMeta, Pages) {
    let state = State::new(identity.cluster, member);
    let (index, term): (Index, Term) = driver::BOOTSTRAP;
    let configuration = Configuration { voters: vec![identity.replica], ..Configuration::default() };
    let meta = state.snapshot_meta(index, term, configuration);
    (meta, state.layer())
}

/// What the log's files are like.
fn wal_options(world: &World) -> WalOptions {
    WalOptions { segment_bytes: world.scenario.cluster.segment_bytes, tail_bytes: 1 << 20 }
}

/// Starts a process on a machine, unless one runs there or a fault holds it down. `first`: the member of a new cluster, whose
/// directory is made before; a joining replica's directory is made empty. Both only on an empty disk.
pub fn start(world: &Arc<World>, id: ReplicaId, first: Option<Member>) {
    let Some(birth) = world.begin_life(id) else { return };
    if world.runtime.is_exit(birth.node) {
        world.runtime.restart(birth.node);
    }
    let Some(node) = world.runtime.get_node(birth.node) else { return };
    let world = world.clone();
    drop(node.spawn(async move {
        let life = birth.life;
        let task = process(world.clone(), life.clone(), birth.disk, birth.clock, birth.freedom, first);
        let outcome = madsim::task::spawn_local(task).await;
        let (why, again) = match outcome {
            Ok(Ok(())) => (Ending::Ended, true),
            Ok(Err(error)) => {
                let again = matches!(error, StorageError::Io { .. } | StorageError::Full { .. });
                (Ending::Fault(error.to_string()), again)
            }
            Err(_) => return,
        };
        if again {
            // As a supervisor would. What is damaged stays down: starting again changes nothing.
            let world = world.clone();
            let id = life.replica;
            world.clone().agenda.after(RESTART_NANOS, move || start(&world, id, None));
        }
        world.kill(life.replica, why);
    }));
}

async fn process(
    world: Arc<World>,
    life: Arc<Life>,
    disk: SimDisk,
    clock: SimClock,
    freedom: Arc<Freedom>,
    first: Option<Member>,
) -> Result<(), StorageError> {
    let id = life.replica;
    let root = Path::new(ROOT);
    let (identity, store, first, is_made, back) = {
        let mut machines = world.machines();
        let machine = machines.get_mut(&id).expect("a process runs on a machine");
        machine.first = machine.first.take().or(first);
        (machine.identity.clone(), machine.store.clone(), machine.first.clone(), machine.is_made, machine.back)
    };
    // Somebody who wiped a disk may make a directory on it by hand; nothing here does so by itself.
    let by_hand = matches!(back, Some(Back::Stranger | Back::Amnesiac));
    let opened = match muster_storage::open(disk.clone(), root, wal_options(&world)).await {
        // What was left half-made is made again, as by whoever makes or joins a cluster. A directory that was made once and is
        // empty now was lost.
        Err(StorageError::Empty { .. }) if !is_made || by_hand => {
            let snapshot = first.filter(|_| !by_hand).map(|member| first_snapshot(&identity, member));
            muster_storage::init(disk.clone(), root, &identity, snapshot, wal_options(&world)).await?;
            muster_storage::open(disk, root, wal_options(&world)).await?
        }
        opened => opened?,
    };
    let state = driver::load_state(&opened.identity, &opened.recovered, &opened.library).await?;
    let recovered = &opened.recovered;
    world.emit(&Event::Start {
        replica: id,
        run: life.run,
        hard_state: recovered.hard_state,
        log_start: recovered.log_start,
        terms: recovered.entries.iter().map(|entry| entry.term).collect(),
        snapshot: recovered.snapshot.clone().map(Arc::new),
        unsynced: store.unsynced("wal").map(Into::into),
    });
    let seed = world.draw("replica", id.0 << 32 | life.run).number();
    let cluster = &world.scenario.cluster;
    let settings = Settings { timing: cluster.timing, limits: cluster.limits, seed };
    let assembly = driver::assemble(opened.identity, settings, opened.recovered, state, clock.now());
    let network = SimNetwork::new(world.clone(), life.clone());
    let handle = assembly.handle.clone();
    {
        let mut machines = world.machines();
        let machine = machines.get_mut(&id).expect("a process runs on a machine");
        machine.is_made = true;
        machine.handle = Some(handle.clone());
        machine.admission = world.admission(id, life.run);
        machine.library = Some(opened.library);
    }
    world.spawn(views(world.clone(), life.clone(), handle.clone()));
    let log = Watched::new(opened.wal, world.clone(), life.clone(), freedom.clone());
    let archive = Watched::new(opened.archive, world.clone(), life.clone(), freedom);
    drop(madsim::task::spawn_local(driver::run_log(log, assembly.log)));
    drop(madsim::task::spawn_local(driver::run_archive(archive, assembly.archive)));
    drop(madsim::task::spawn_local(driver::run_fetch(assembly.fetch, network.clone(), clock.clone())));
    let mut draw = world.draw("overlay", id.0 << 32 | life.run);
    drop(madsim::task::spawn_local(driver::keep_overlays(handle, clock.clone(), move || draw.wide())));
    assembly.driver.run(network, clock).await
}
