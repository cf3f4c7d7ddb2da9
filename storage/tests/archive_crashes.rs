//! A whole data directory under crashes, at random: log, snapshots, history, installs and fetched segments together.
//!
//! A replica's life is played against a model. Power is lost, the process is killed, or a call fails, again and again, also
//! while it starts. Whatever is left opens, without a false alarm, with everything that was acknowledged.

mod common;

use bytes::Bytes;
use common::crash_disk::{CrashDisk, Fault, random};
use common::{Journal, SMALL, complete, entries, entry, hard_state, identity, install, page_list, pages, save};
use muster_core::ids::{Index, Seq, Term};
use muster_core::log::{LogEntry, LogRecord};
use muster_core::state::Finished;
use muster_core::storage::{Archive, Layer, Library, LogStore, SnapshotMeta, StorageError};
use muster_storage::{Opened, init, open, ready};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::path::Path;

const ROOT: &str = "/data";
const TERM: u64 = 2;

/// What a replica does next.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Appends an entry of this size to the log and its record to the history.
    Write { bytes: usize },
    /// Takes a snapshot, of everything or over the newest, and lets the log go below the oldest.
    Save { over: bool },
    /// Has fallen this far behind, and installs a snapshot from a peer.
    Install { behind: u64, bytes: usize },
    /// Fetches one missing segment.
    Fill,
    /// Stops and starts.
    Restart,
}

/// When something goes wrong, and what is left of what was not synced.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    call: u64,
    fault: Fault,
    is_kill: bool,
    seed: u64,
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![8 => 10_usize..700, 1 => Just(1_500_000_usize)];
    prop_oneof![
        8 => size.clone().prop_map(|bytes| Step::Write { bytes }),
        3 => any::<bool>().prop_map(|over| Step::Save { over }),
        1 => (1_u64..6, size).prop_map(|(behind, bytes)| Step::Install { behind, bytes }),
        2 => Just(Step::Fill),
        1 => Just(Step::Restart),
    ]
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let fault = prop_oneof![4 => Just(Fault::Stop), 1 => Just(Fault::Refuse), 1 => Just(Fault::Full)];
    (1_u64..90, fault, any::<bool>(), any::<u64>()).prop_map(|(call, fault, is_kill, seed)| Trouble {
        call,
        fault,
        is_kill,
        seed,
    })
}

/// What the world knows. Entry `index` carries journal record `index - 1`; snapshot `index` holds `index - 1` records.
struct World {
    /// The journal as any replica has it at this many records.
    journal: Journal,
    /// The layers of the newest snapshot.
    layers: Vec<Layer>,
    /// The last index whose append was acknowledged.
    acknowledged: u64,
    /// The last index whose append was begun.
    begun: u64,
    /// The newest snapshot that was acknowledged.
    saved: u64,
}

impl World {
    fn log_entry(&self, index: u64) -> LogEntry {
        let bytes = self.journal.records[usize::try_from(index - 2).unwrap()].len();
        entry(TERM, index, bytes.min(2_000))
    }
    /// The meta of the state at an index, as any replica makes it.
    fn meta_at(&self, index: u64) -> SnapshotMeta {
        let mut journal = Journal::new();
        let count = usize::try_from(index - 1).unwrap();
        self.journal.records[..count].iter().for_each(|record| journal.push(record.clone()));
        complete(journal.meta(index, TERM))
    }
    fn finished(&self, after: u64, upto: u64) -> Vec<Finished> {
        self.journal.finished(usize::try_from(after).unwrap(), usize::try_from(upto).unwrap())
    }

    fn records(&self, after: u64, upto: u64) -> Vec<Bytes> {
        self.finished(after, upto).into_iter().map(|finished| finished.bytes).collect()
    }
}

struct Replica {
    opened: Opened<CrashDisk>,
    /// The last index in log and history.
    last: u64,
}

/// The directory of a cluster's first replica, before its first start.
fn first_of_a_cluster() -> (CrashDisk, World) {
    let disk = CrashDisk::new();
    let journal = Journal::new();
    let first = (journal.meta(1, 1), pages(1));
    ready(init(disk.clone(), Path::new(ROOT), &identity(), Some(first), SMALL)).unwrap();
    (disk, World { journal, layers: Vec::new(), acknowledged: 1, begun: 1, saved: 1 })
}

/// Starts, checks what is there, and replays the log into the history.
fn start(disk: &CrashDisk, world: &mut World) -> Result<Replica, StorageError> {
    let mut opened = ready(open(disk.clone(), Path::new(ROOT), SMALL))?;
    let recovered = &opened.recovered;
    let meta = recovered.snapshot.clone().expect("a snapshot was there from the beginning");
    assert!(meta.index.0 >= world.saved, "snapshot {} was acknowledged, {} is the newest", world.saved, meta.index);
    if meta.index.0 > 1 {
        let own = meta.layers.last().copied().into_iter().collect();
        assert_eq!(SnapshotMeta { layers: own, ..meta.clone() }, world.meta_at(meta.index.0));
    }
    world.layers.clone_from(&meta.layers);
    world.saved = meta.index.0;
    let mut last = recovered.log_start.0.0;
    for found in &recovered.entries {
        last += 1;
        assert_eq!(*found, world.log_entry(last));
    }
    assert!(last >= world.acknowledged, "{} was acknowledged, the log ends at {last}", world.acknowledged);
    assert!(last <= world.begun.max(meta.index.0));
    let last = last.max(meta.index.0);
    world.acknowledged = last;
    for layer in &meta.layers {
        for (page, bytes) in (0..).zip(page_list(layer.index.0)) {
            assert_eq!(ready(opened.library.page(layer.index, layer.term, page))?, Some(bytes));
        }
    }
    let replayed = world.finished(meta.sequence.0, last - 1);
    if !replayed.is_empty() {
        ready(opened.archive.extend(replayed))?;
    }
    Ok(Replica { opened, last })
}

/// Reads the whole history and compares it; missing segments are stepped over.
fn check_history(replica: &mut Replica, world: &World) -> Result<(), StorageError> {
    let missing = ready(replica.opened.archive.missing())?;
    let end = Seq(replica.last - 1);
    let mut after = Seq(0);
    while after < end {
        if let Some(segment) = missing.iter().find(|segment| segment.first == after.next()) {
            assert!(ready(replica.opened.library.records(after, end, 1))?.is_empty());
            after = segment.last;
            continue;
        }
        let found = ready(replica.opened.library.records(after, end, 3_000))?;
        assert!(!found.is_empty(), "record {} is neither here nor missing", after.next());
        for (sequence, bytes) in found {
            assert_eq!(sequence, after.next());
            assert_eq!(bytes, world.journal.records[usize::try_from(sequence.0 - 1).unwrap()]);
            after = sequence;
        }
    }
    Ok(())
}

fn take(replica: &mut Replica, world: &mut World, step: Step, disk: &CrashDisk) -> Result<(), StorageError> {
    match step {
        Step::Write { bytes } => {
            let index = replica.last + 1;
            if world.journal.last().0 < index - 1 {
                world.journal.grow(1, bytes.max(8));
            }
            world.begun = world.begun.max(index);
            let records: Vec<LogRecord> = vec![hard_state(TERM, 1, replica.last), entries([world.log_entry(index)])];
            ready(replica.opened.wal.append(&records))?;
            world.acknowledged = index;
            ready(replica.opened.archive.extend(world.finished(index - 2, index - 1)))?;
            replica.last = index;
        }
        Step::Save { over } if replica.last > world.saved => {
            let meta = world.meta_at(replica.last);
            let below = if over { world.layers.clone() } else { Vec::new() };
            let (saved, oldest) =
                ready(save(&mut replica.opened.archive, SnapshotMeta { layers: below.clone(), ..meta.clone() }))?;
            let layers = below.into_iter().chain(meta.layers.clone()).collect();
            assert_eq!(saved, SnapshotMeta { layers, ..meta });
            world.layers = saved.layers;
            world.saved = replica.last;
            ready(replica.opened.wal.purge(oldest))?;
        }
        Step::Install { behind, bytes } => {
            let index = replica.last + behind;
            while world.journal.last().0 < index - 1 {
                world.journal.grow(1, bytes.max(8));
            }
            let meta = world.meta_at(index);
            let open = meta.history.last().unwrap();
            let stored = world.records(open.first.0 - 1, open.last.0);
            let installed = ready(install(&mut replica.opened.archive, &meta, stored))?;
            assert_eq!(installed, meta);
            world.layers = installed.layers;
            world.saved = index;
            let reset = LogRecord::Reset { index: Index(index), term: Term(TERM) };
            ready(replica.opened.wal.append(&[reset, hard_state(TERM, 1, index)]))?;
            world.acknowledged = index;
            replica.last = index;
        }
        Step::Fill => {
            if let Some(segment) = ready(replica.opened.archive.missing())?.first() {
                let records = world.records(segment.first.0 - 1, segment.last.0);
                ready(replica.opened.archive.fill(*segment, records))?;
                assert!(!ready(replica.opened.archive.missing())?.contains(segment));
            }
        }
        Step::Restart => *replica = start(disk, world)?,
        Step::Save { .. } => {}
    }
    Ok(())
}

fn play(steps: &[Step], troubles: &[Trouble]) {
    let (mut disk, mut world) = first_of_a_cluster();
    let mut steps = steps.iter();
    for trouble in troubles.iter().map(Some).chain([None]) {
        if let Some(trouble) = trouble {
            disk.fail_at(trouble.call, trouble.fault);
        }
        let outcome = (|| {
            let mut replica = start(&disk, &mut world)?;
            check_history(&mut replica, &world)?;
            for &step in steps.by_ref() {
                take(&mut replica, &mut world, step, &disk)?;
            }
            check_history(&mut replica, &world)
        })();
        match (outcome, trouble) {
            (Ok(()), _) => {}
            (Err(error @ (StorageError::Io { .. } | StorageError::Full { .. })), Some(_)) => drop(error),
            (Err(error), _) => panic!("{trouble:?}: {error}"),
        }
        if let Some(trouble) = trouble {
            let seed = trouble.seed;
            disk = if trouble.is_kill {
                disk.after_kill()
            } else {
                disk.after_power_loss(|choice| random(seed ^ choice as u64) & 1 == 1)
            };
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(9),
        ..ProptestConfig::default()
    })]
    #[test]
    fn whatever_a_crash_leaves_opens_with_all_that_was_acknowledged(
        steps in prop::collection::vec(step(), 4..24),
        troubles in prop::collection::vec(trouble(), 1..5),
    ) {
        play(&steps, &troubles);
    }
}

#[test]
fn an_install_survives_a_crash_at_each_of_its_calls() {
    let steps = [
        Step::Write { bytes: 100 },
        Step::Save { over: true },
        Step::Write { bytes: 1_500_000 },
        Step::Install { behind: 5, bytes: 1_500_000 },
        Step::Fill,
        Step::Write { bytes: 100 },
    ];
    for call in 1..160 {
        for seed in 0..2 {
            let trouble = Trouble { call, fault: Fault::Stop, is_kill: seed == 0, seed: seed * call };
            play(&steps, &[trouble, Trouble { call: 25, fault: Fault::Stop, is_kill: false, seed }]);
        }
    }
}

#[test]
fn sealed_history_is_durable_before_an_installed_snapshot_rests_on_it() {
    let (disk, mut world) = first_of_a_cluster();
    let mut replica = start(&disk, &mut world).unwrap();
    let large = Step::Write { bytes: 1_500_000 };
    for step in [large, large, large, large, Step::Install { behind: 2, bytes: 100 }] {
        take(&mut replica, &mut world, step, &disk).unwrap();
    }
    assert_eq!(world.journal.history.len(), 2, "the first segment was sealed before");
    let left = disk.after_power_loss(|_| false);
    let mut replica = start(&left, &mut world).unwrap();
    check_history(&mut replica, &world).unwrap();
}

#[test]
fn a_segment_that_was_sealed_after_the_newest_snapshot_is_no_damage_when_its_records_are_lost() {
    let (disk, mut world) = first_of_a_cluster();
    let mut replica = start(&disk, &mut world).unwrap();
    let large = Step::Write { bytes: 1_500_000 };
    for step in [large, Step::Save { over: true }, large, large, large] {
        take(&mut replica, &mut world, step, &disk).unwrap();
    }
    assert_eq!(world.journal.history.len(), 2, "the first segment was sealed after the snapshot");
    for left in disk.power_losses(5, 1) {
        let mut replica = start(&left, &mut world).unwrap();
        check_history(&mut replica, &world).unwrap();
        // Started again, it was cut and grew; what that leaves is no damage either.
        for left in left.power_losses(1, 2) {
            let mut replica = start(&left, &mut world).unwrap();
            check_history(&mut replica, &world).unwrap();
        }
    }
}

#[test]
fn a_joiner_begins_with_nothing_and_takes_what_it_is_sent() {
    let disk = CrashDisk::new();
    ready(init(disk.clone(), Path::new(ROOT), &identity(), None, SMALL)).unwrap();
    let mut opened = ready(open(disk.after_kill(), Path::new(ROOT), SMALL)).unwrap();
    assert_eq!(opened.recovered.snapshot, None);
    assert_eq!(opened.recovered.log_start, (Index(0), Term(0)));
    ready(opened.wal.append(&[hard_state(TERM, 0, 0)])).unwrap();
    let mut journal = Journal::new();
    journal.grow(5, 100);
    let meta = complete(journal.meta(6, TERM));
    let mut wrong = journal.open_records();
    wrong.pop();
    assert!(matches!(ready(install(&mut opened.archive, &meta, wrong)), Err(StorageError::Damaged { .. })));
    ready(opened.archive.extend(vec![])).unwrap_err();
}
