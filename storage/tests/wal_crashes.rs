//! The log under every crash: whatever a power loss leaves, all that was acknowledged is there, and nothing else but, whole,
//! the batch that was in flight.

mod common;

use common::crash_disk::{CrashDisk, Fault};
use common::{Journal, SMALL, entries, entry, hard_state, identity, pages, save};
use muster_core::ids::{Index, Term};
use muster_core::log::{HardState, LogEntry, LogRecord};
use muster_core::storage::{LogStore, Recovered, StorageError};
use muster_storage::{Opened, WalOptions, init, open, ready};
use std::collections::BTreeSet;
use std::path::Path;

const ROOT: &str = "/data";

/// A log of a few batches over several segments: entries, a conflict, a reset, batches of one and of many sectors.
fn script() -> Vec<Vec<LogRecord>> {
    vec![
        vec![hard_state(2, 1, 1), entries([entry(2, 2, 100)])],
        vec![entries([entry(2, 3, 900), entry(2, 4, 20)])],
        vec![hard_state(2, 1, 3), entries([entry(2, 5, 1_300)])],
        vec![hard_state(3, 2, 3), entries([entry(3, 4, 700), entry(3, 5, 10)])],
        vec![hard_state(3, 2, 4)],
        vec![entries([entry(3, 6, 2_900)])],
        vec![LogRecord::Reset { index: Index(9), term: Term(4) }, hard_state(4, 2, 9)],
        vec![entries([entry(4, 10, 30)])],
    ]
}

/// What a log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    hard_state: HardState,
    entries: Vec<LogEntry>,
}

impl Model {
    fn apply(&mut self, records: &[LogRecord]) {
        for record in records {
            match record {
                LogRecord::HardState(state) => self.hard_state = *state,
                LogRecord::Reset { .. } => self.entries.clear(),
                LogRecord::Entries(entries) => {
                    for entry in entries {
                        self.entries.retain(|other| other.index < entry.index);
                        self.entries.push(entry.clone());
                    }
                }
            }
        }
    }
    fn of(recovered: &Recovered) -> Self {
        Self { hard_state: recovered.hard_state, entries: recovered.entries.clone() }
    }
}

/// The model after each number of batches. A replica with a snapshot at 1 and no reset yet.
fn models(script: &[Vec<LogRecord>]) -> Vec<Model> {
    let first =
        Model { hard_state: HardState { term: Term(1), commit: Index(1), ..HardState::default() }, entries: vec![] };
    let mut models = vec![first];
    for records in script {
        let mut model = models.last().unwrap().clone();
        model.apply(records);
        models.push(model);
    }
    models
}

/// A reset is preceded by an installed snapshot; in these scripts the log itself is looked at, so it is left out.
fn without_reset(script: Vec<Vec<LogRecord>>) -> Vec<Vec<LogRecord>> {
    script.into_iter().take(6).collect()
}

fn fresh(options: WalOptions) -> CrashDisk {
    let disk = CrashDisk::new();
    let journal = Journal::new();
    ready(init(disk.clone(), Path::new(ROOT), &identity(), Some((journal.meta(1, 1), pages(1))), options)).unwrap();
    assert_eq!(disk.choices(), 0, "init leaves nothing unsynced");
    disk.after_kill()
}

fn open_at(disk: &CrashDisk, options: WalOptions) -> Result<Opened<CrashDisk>, StorageError> {
    ready(open(disk.clone(), Path::new(ROOT), options))
}

/// Opens and appends until something fails; tells how many batches were acknowledged.
fn run(disk: &CrashDisk, script: &[Vec<LogRecord>], options: WalOptions) -> usize {
    let Ok(mut opened) = open_at(disk, options) else { return 0 };
    script.iter().take_while(|records| ready(opened.wal.append(records)).is_ok()).count()
}

/// Opens what a crash left and checks it; then goes on, crashes again, and checks that.
fn check(disk: &CrashDisk, models: &[Model], acknowledged: usize, options: WalOptions) -> Model {
    let opened = open_at(disk, options);
    let mut opened = opened.unwrap_or_else(|error| panic!("after {acknowledged} batches: {error}"));
    let found = Model::of(&opened.recovered);
    let allowed = &models[acknowledged..(acknowledged + 2).min(models.len())];
    assert!(allowed.contains(&found), "after {acknowledged} batches: {found:?}");

    // What was recovered counts as persisted.
    let again = open_at(&disk.after_power_loss(|_| false), options).unwrap();
    assert_eq!(Model::of(&again.recovered), found, "what recovery returned was not durable");

    let mut model = found.clone();
    let next = found.entries.last().map_or(2, |entry| entry.index.0 + 1);
    for (index, bytes) in [(next, 40), (next + 1, 600)] {
        let records = [entries([entry(9, index, bytes)])];
        ready(opened.wal.append(&records)).unwrap();
        model.apply(&records);
        let again = open_at(&disk.after_power_loss(|_| false), options).unwrap();
        assert_eq!(Model::of(&again.recovered), model, "what was appended after recovery was lost");
    }
    found
}

#[test]
fn every_crash_state_of_a_small_log_recovers() {
    let script = without_reset(script());
    let models = models(&script);
    let base = fresh(SMALL);
    let whole = base.after_kill();
    assert_eq!(run(&whole, &script, SMALL), script.len());
    let calls = whole.calls();
    assert!(whole.files().iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "wal")).count() >= 3);

    let mut seen = BTreeSet::new();
    let mut outcomes = BTreeSet::new();
    for stop in 1..=calls + 1 {
        let disk = base.after_kill();
        disk.fail_at(stop, Fault::Stop);
        let acknowledged = run(&disk, &script, SMALL);
        for crashed in disk.power_losses(9, stop) {
            if seen.insert((acknowledged, crashed.fingerprint())) {
                let found = check(&crashed, &models, acknowledged, SMALL);
                outcomes.insert((acknowledged, found == models[acknowledged]));
            }
        }
    }
    for acknowledged in 0..script.len() {
        assert!(outcomes.contains(&(acknowledged, true)) && outcomes.contains(&(acknowledged, false)));
    }
    println!("{} crash states over {calls} calls", seen.len());
}

#[test]
fn a_crash_during_recovery_is_recovered_from() {
    let script = without_reset(script());
    let models = models(&script);
    let base = fresh(SMALL);
    let calls = {
        let whole = base.after_kill();
        run(&whole, &script, SMALL);
        whole.calls()
    };
    let mut seen = BTreeSet::new();
    for stop in 1..=calls + 1 {
        let disk = base.after_kill();
        disk.fail_at(stop, Fault::Stop);
        let acknowledged = run(&disk, &script, SMALL);
        // The process is killed: the cache survives. Or the power goes.
        let mut left = vec![disk.after_kill()];
        left.extend(disk.power_losses(2, stop));
        for crashed in left {
            for second in 1.. {
                let again = crashed.after_kill();
                again.fail_at(second, Fault::Stop);
                let is_done = open_at(&again, SMALL).is_ok();
                for (third, lost) in (0..).zip(again.power_losses(2, second)) {
                    if seen.insert((acknowledged, lost.fingerprint())) || third == 0 && is_done {
                        check(&lost, &models, acknowledged, SMALL);
                    }
                }
                if is_done {
                    break;
                }
            }
        }
    }
    println!("{} crash states", seen.len());
}

#[test]
fn after_a_failed_call_the_log_refuses_and_a_restart_has_all_that_was_acknowledged() {
    let script = without_reset(script());
    let models = models(&script);
    let base = fresh(SMALL);
    let calls = {
        let whole = base.after_kill();
        run(&whole, &script, SMALL);
        whole.calls()
    };
    for fault in [Fault::Refuse, Fault::Full] {
        for call in 1..=calls {
            let disk = base.after_kill();
            disk.fail_at(call, fault);
            let mut acknowledged = 0;
            if let Ok(mut opened) = open_at(&disk, SMALL) {
                for records in &script {
                    match ready(opened.wal.append(records)) {
                        Ok(()) => acknowledged += 1,
                        Err(error) => {
                            let expected = match fault {
                                Fault::Full => matches!(error, StorageError::Full { .. }),
                                Fault::Refuse | Fault::Stop => matches!(error, StorageError::Io { .. }),
                            };
                            assert!(expected, "{error}");
                            ready(opened.wal.append(records)).unwrap_err();
                            ready(opened.wal.purge(Index(9))).unwrap_err();
                            break;
                        }
                    }
                }
            }
            // The process ends, and starts again on the same kernel, whose cache claims what the disk may not have.
            let killed = disk.after_kill();
            for lost in killed.power_losses(4, call) {
                check(&lost, &models, acknowledged, SMALL);
            }
            check(&killed, &models, acknowledged, SMALL);
        }
    }
}

#[test]
fn a_failed_recovery_followed_by_another_leaves_nothing_that_is_not_durable() {
    let script = without_reset(script());
    let models = models(&script);
    let base = fresh(SMALL);
    // The last batch's sync fails: the cache shows it, the disk may not have any of it.
    let calls = {
        let whole = base.after_kill();
        run(&whole, &script[..3], SMALL);
        whole.calls()
    };
    for stop in calls - 3..=calls {
        for first in [Fault::Stop, Fault::Refuse] {
            let disk = base.after_kill();
            disk.fail_at(stop, first);
            let acknowledged = run(&disk, &script[..3], SMALL);
            for call in 1.. {
                let again = disk.after_kill();
                again.fail_at(call, Fault::Refuse);
                let is_done = open_at(&again, SMALL).is_ok() && again.calls() < call;
                check(&again.after_kill(), &models, acknowledged, SMALL);
                for lost in again.power_losses(3, call) {
                    check(&lost, &models, acknowledged, SMALL);
                }
                if is_done {
                    break;
                }
            }
        }
    }
}

#[test]
fn purging_is_safe_at_every_crash() {
    let base = fresh(SMALL);
    let script: Vec<Vec<LogRecord>> =
        (2..14).map(|index| vec![hard_state(1, 1, index - 1), entries([entry(1, index, 900)])]).collect();
    let build = base.after_kill();
    let mut opened = open_at(&build, SMALL).unwrap();
    for records in &script {
        ready(opened.wal.append(records)).unwrap();
    }
    let (meta, oldest) = ready(save(&mut opened.archive, Journal::new().meta(12, 1))).unwrap();
    assert_eq!((meta.index, oldest), (Index(12), Index(1)));
    drop(opened);
    // The older snapshot goes, so that the log may be cut up to the newer one.
    build.lose_file(Path::new("/data/snapshots/snap-1-1"));
    let segments =
        |disk: &CrashDisk| disk.files().iter().filter(|(path, _)| path.starts_with("/data/raft/wal")).count();
    let before = segments(&build);
    for stop in 1.. {
        let disk = build.after_kill();
        let mut opened = open_at(&disk, SMALL).unwrap();
        disk.fail_at(stop, Fault::Stop);
        let is_done = ready(opened.wal.purge(Index(12))).is_ok();
        for lost in disk.power_losses(8, stop) {
            let opened = open_at(&lost, SMALL).unwrap();
            assert!(opened.recovered.log_start.0 <= Index(12));
            let last = opened.recovered.entries.last().unwrap();
            assert_eq!((last.index, opened.recovered.hard_state.commit), (Index(13), Index(12)));
            assert!(!is_done || segments(&lost) < before);
        }
        if is_done {
            break;
        }
    }
}

#[test]
fn making_a_directory_is_all_or_nothing() {
    for stop in 1.. {
        let disk = CrashDisk::new();
        disk.fail_at(stop, Fault::Stop);
        let make = |disk: &CrashDisk| {
            let snapshot = (Journal::new().meta(1, 1), pages(1));
            ready(init(disk.clone(), Path::new(ROOT), &identity(), Some(snapshot), SMALL))
        };
        let is_done = make(&disk).is_ok();
        let mut left = disk.power_losses(6, stop);
        left.push(disk.after_kill());
        for lost in left {
            match open_at(&lost, SMALL) {
                Ok(opened) => assert_eq!(opened.recovered.snapshot.unwrap().index, Index(1)),
                Err(StorageError::Empty { .. }) => {
                    assert!(!is_done);
                    make(&lost).unwrap();
                    open_at(&lost.after_power_loss(|_| false), SMALL).unwrap();
                }
                Err(error) => panic!("{error}"),
            }
        }
        if is_done {
            assert!(matches!(make(&disk.after_kill()), Err(StorageError::Foreign { .. })));
            break;
        }
    }
}
