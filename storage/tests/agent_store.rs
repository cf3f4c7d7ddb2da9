//! An agent's directory: what was acknowledged survives every crash, and damage is told and never passed on.

mod common;

use common::crash_disk::{CrashDisk, Fault};
use muster_core::agent::effects::{Save, SaveNumber};
use muster_core::agent::event::{Event, Fact};
use muster_core::agent::host::BootId;
use muster_core::agent::ledger::{ChangeId, Declared, Ledger, Spool};
use muster_core::agent::store::{Store as _, Stored};
use muster_core::ids::{Seq, VClusterId, WallTime};
use muster_core::journal::entry::Author;
use muster_core::journal::policy::Policy;
use muster_core::storage::StorageError;
use muster_storage::agent::{AgentOptions, AgentStore};
use muster_storage::ready;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DIR: &str = "/agent";

/// A few events fill a file.
const SMALL: AgentOptions = AgentOptions { spool_file_bytes: 2_000 };

fn open(disk: &CrashDisk) -> Result<(AgentStore<CrashDisk>, Stored), StorageError> {
    ready(AgentStore::open(disk.clone(), Path::new(DIR), SMALL))
}

/// An event that says which it is and which run wrote it.
fn event(number: u64, run: u64) -> Event {
    Event {
        number,
        occurred_at: WallTime(run),
        after: Seq(0),
        author: Author::system("test"),
        fact: Fact::Drift { changes: Vec::new(), message: "x".repeat(350).into() },
    }
}

fn declared(sequence: u64) -> Declared {
    Declared {
        sequence: Seq(sequence),
        vcluster: VClusterId::new("v").unwrap(),
        policy_sequence: Seq(1),
        policy: Policy::default(),
        settings: BTreeMap::new(),
    }
}

/// Save `n` of a run: one event more than the one before, sometimes a new declared state, and two events behind delivered.
fn save(n: u64, run: u64) -> Save {
    let at = n / 2 * 2;
    let ledger = Ledger {
        declared: (at > 0).then_some(Seq(at)),
        last_change: ChangeId(n),
        spool: Spool { delivered: n.saturating_sub(3), last: n, attempt: None },
        ..Ledger::new(BootId("boot".into()))
    };
    Save {
        number: SaveNumber(n),
        events: vec![event(n, run)],
        declared: (n == at).then(|| Arc::new(declared(at))),
        ledger: Arc::new(ledger),
    }
}

/// Saves until the first fault. Gives how far it was acknowledged.
fn day(disk: &CrashDisk, run: u64) -> (u64, Result<(), StorageError>) {
    let mut done = 0;
    let result = (|| {
        let (mut store, stored) = open(disk)?;
        done = stored.ledger.map_or(0, |ledger| ledger.last_change.0);
        for n in done + 1..=done + 7 {
            ready(store.save(&save(n, run)))?;
            done = n;
        }
        Ok(())
    })();
    (done, result)
}

/// What is there must be one whole save, not before the acknowledged one.
#[track_caller]
fn check(stored: &Stored, least: u64, most: u64, when: &str) -> u64 {
    let Some(ledger) = &stored.ledger else {
        assert_eq!(least, 0, "{when}: the ledger is gone");
        return 0;
    };
    let n = ledger.last_change.0;
    assert!((least..=most).contains(&n), "{when}: it is save {n}, acknowledged were {least} to {most}");
    assert_eq!(*ledger, *save(n, 0).ledger, "{when}");
    assert_eq!(stored.declared.as_ref().map(|declared| declared.sequence), ledger.declared, "{when}");
    let events: Vec<u64> = stored.events.iter().map(|event| event.number).collect();
    let expected: Vec<u64> = (ledger.spool.delivered + 1..=n).collect();
    assert_eq!(events, expected, "{when}");
    n
}

#[test]
fn what_was_acknowledged_survives_every_crash_and_power_loss() {
    let whole = CrashDisk::new();
    day(&whole, 1).1.unwrap();
    for call in 1..=whole.calls() {
        for fault in [Fault::Stop, Fault::Refuse] {
            let disk = CrashDisk::new();
            disk.fail_at(call, fault);
            let (acknowledged, result) = day(&disk, 1);
            result.unwrap_err();
            let mut after = disk.power_losses(3, call);
            after.push(disk.after_kill());
            for (number, disk) in after.into_iter().enumerate() {
                let when = format!("{fault:?} at call {call}, way {number}");
                let (_, stored) = open(&disk).unwrap_or_else(|error| panic!("{when}: {error}"));
                let n = check(&stored, acknowledged, acknowledged + 1, &when);
                // It goes on from there, and what a crash left of the save that was under way never comes back.
                let (acknowledged, result) = day(&disk, 2);
                result.unwrap();
                let (_, stored) = open(&disk).unwrap();
                check(&stored, acknowledged, acknowledged, &when);
                let mine = stored.events.iter().filter(|event| event.number > n);
                assert!(mine.clone().all(|event| event.occurred_at == WallTime(2)), "{when}: {:?}", stored.events);
            }
        }
    }
}

#[test]
fn any_flipped_bit_is_told_and_nothing_but_it_is_lost() {
    let whole = CrashDisk::new();
    let (last, result) = day(&whole, 1);
    result.unwrap();
    for (path, bytes) in whole.files() {
        for offset in (0..bytes).step_by(3) {
            let disk = whole.after_kill();
            disk.flip(&path, offset, 1 << (offset % 8));
            let when = format!("{} at {offset}", path.display());
            let name = path.file_name().unwrap().to_str().unwrap();
            let (_, stored) = open(&disk).unwrap_or_else(|error| panic!("{when}: {error}"));
            let ledger = stored.ledger.as_ref().unwrap();
            if name.starts_with("ledger") {
                check(&stored, last - 1, last, &when);
            } else {
                assert_eq!(ledger.last_change.0, last, "{when}");
            }
            let known = !name.starts_with("declared") || stored.declared.is_some();
            let of_the_older_generation = !known || name == "declared.00000000000000000004";
            if !of_the_older_generation || !known {
                assert_eq!(stored.repairs.len(), 1, "{when}: {:?}", stored.repairs);
                assert!(stored.repairs[0].contains(&*path.display().to_string()), "{when}: {:?}", stored.repairs);
            }
            // What was mended is whole, and loses nothing more.
            let (_, again) = open(&disk).unwrap();
            assert_eq!(again.events, stored.events, "{when}");
            assert!(
                again.repairs.iter().all(|told| told.contains("missing") || told.contains("lost")),
                "{when}: {:?}",
                again.repairs
            );
        }
    }
}

#[test]
fn a_ledger_without_a_whole_generation_is_refused() {
    let disk = CrashDisk::new();
    day(&disk, 1).1.unwrap();
    for name in ["ledger.0", "ledger.1"] {
        disk.flip(&Path::new(DIR).join(name), 70, 1);
    }
    let Err(error) = open(&disk) else { panic!("it opened") };
    assert!(error.to_string().contains("/agent/ledger.0 is damaged"), "{error}");
    assert!(error.to_string().contains("move the directory aside"), "{error}");
}

#[test]
fn what_the_journal_has_and_what_nobody_names_is_not_kept() {
    let disk = CrashDisk::new();
    let (mut store, _) = open(&disk).unwrap();
    for n in 1..=60 {
        ready(store.save(&save(n, 1))).unwrap();
    }
    let named = |part: &str| -> Vec<PathBuf> {
        let files = disk.files().into_iter().map(|(path, _)| path);
        files.filter(|path| path.to_str().unwrap().contains(part)).collect()
    };
    assert!(named(".spool").len() <= 2, "{:?}", named(".spool"));
    assert!(named("declared.").len() <= 2, "{:?}", named("declared."));
    assert_eq!(named("ledger.").len(), 2);
}
