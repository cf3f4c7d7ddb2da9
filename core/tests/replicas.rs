//! Replicas under random loss, crashes, cuts and membership changes: the promises hold, and afterwards the cluster is whole.
//!
//! `MUSTER_SEED=N` replays one seed; `MUSTER_SEEDS=A..B` searches a range.

#[path = "cluster/world.rs"]
mod world;

use muster_core::members::MemberWish;
use world::{Faults, World};

fn seeds(default: std::ops::Range<u64>) -> std::ops::Range<u64> {
    if let Ok(seed) = std::env::var("MUSTER_SEED") {
        let seed: u64 = seed.parse().expect("MUSTER_SEED is a number");
        return seed..seed + 1;
    }
    if let Ok(range) = std::env::var("MUSTER_SEEDS") {
        let (a, b) = range.split_once("..").expect("MUSTER_SEEDS is A..B");
        return a.parse().expect("A is a number")..b.parse().expect("B is a number");
    }
    default
}

fn run(seed: u64, faults: Faults) -> World {
    let mut world = World::new(seed, faults);
    world.run_until(2_000);
    world.join(2, MemberWish::Voter);
    world.join(3, MemberWish::Voter);
    world.join(4, MemberWish::Learner);
    world.policy();
    world.begin_acting();
    world.run_until(20_000);
    world.heal();
    println!("seed {seed}: {}", world.story());
    world
}

#[test]
fn a_quiet_cluster_acknowledges_everything() {
    for seed in seeds(0..5) {
        let world = run(seed, Faults { loss: 0, double: 0, crashes: 0, cuts: 0, members: false, oddities: 0 });
        assert!(world.acknowledged.len() > 300, "seed {seed}: only {} acknowledged", world.acknowledged.len());
        assert!(world.reads > 100, "seed {seed}: only {} reads", world.reads);
    }
}

#[test]
fn loss_crashes_and_cuts_lose_no_acknowledged_write() {
    let mut acknowledged = 0;
    for seed in seeds(0..16) {
        println!("MUSTER_SEED={seed}");
        let world = run(seed, Faults { loss: 4, double: 4, crashes: 1, cuts: 1, members: false, oddities: 0 });
        acknowledged += world.acknowledged.len();
    }
    assert!(acknowledged > 0);
}

#[test]
fn membership_changes_under_faults_keep_every_promise() {
    for seed in seeds(1_000..1_012) {
        println!("MUSTER_SEED={seed}");
        run(seed, Faults { loss: 2, double: 2, crashes: 1, cuts: 1, members: true, oddities: 0 });
    }
}

#[test]
fn pauses_stops_and_old_messages_break_no_promise() {
    let (mut stops, mut replayed) = (0, 0);
    for seed in seeds(2_000..2_010) {
        println!("MUSTER_SEED={seed}");
        let world = run(seed, Faults { loss: 2, double: 2, crashes: 1, cuts: 1, members: seed % 2 == 0, oddities: 3 });
        stops += world.stops;
        replayed += world.replayed;
    }
    assert!(stops > 0 && replayed > 0);
}
