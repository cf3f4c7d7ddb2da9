//! An agent's directory: what was acknowledged survives every crash, and damage is told and never passed on.

mod common;

use bytes::Bytes;
use common::crash_disk::{CrashDisk, Fault};
use muster_core::agent::store::{Spooled, Store as _, Stored};
use muster_core::ids::{Age, OneShotId};
use muster_core::storage::StorageError;
use muster_storage::agent::{AgentOptions, AgentStore, Opened};
use muster_storage::ready;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const DIR: &str = "/agent";

/// A few events fill a file.
const SMALL: AgentOptions = AgentOptions { spool_file_bytes: 3_000 };

fn open(disk: &CrashDisk) -> Result<Opened<CrashDisk>, StorageError> {
    ready(AgentStore::open(disk.clone(), Path::new(DIR), SMALL))
}

fn event(number: u64, bytes: usize) -> Bytes {
    vec![u8::try_from(number % 251).unwrap(); bytes].into()
}

/// What a run was told to be durable, and what it had asked for when it ended.
#[derive(Clone, Debug, Default)]
struct Told {
    ledgers: u8,
    ledger_asked: u8,
    events: u64,
    events_asked: u64,
    sending: BTreeMap<u64, u128>,
    forwarded: Vec<u64>,
    forwarded_asked: Vec<u64>,
}

/// A day of an agent: ledgers, events of which some are large, forwarding. Ends at the first fault.
fn day(disk: &CrashDisk, told: &mut Told) -> Result<(), StorageError> {
    let mut store = open(disk)?.store;
    for round in 0..4_u64 {
        told.ledger_asked += 1;
        ready(store.save_ledger(&[told.ledger_asked; 700]))?;
        told.ledgers = told.ledger_asked;
        told.events_asked = told.events + 2;
        let bytes = if round == 2 { 3_000 } else { 300 };
        let ordinals = ready(store.spool(&[event(told.events + 1, bytes), event(told.events + 2, bytes)]))?;
        assert_eq!(ordinals, [told.events + 1, told.events + 2]);
        told.events = told.events_asked;
        let ordinal = round + 1;
        ready(store.sending(ordinal, OneShotId(u128::from(ordinal) << 70), Age(ordinal)))?;
        told.sending.insert(ordinal, u128::from(ordinal) << 70);
        told.forwarded_asked.push(ordinal);
        ready(store.forwarded(ordinal))?;
        told.forwarded.push(ordinal);
    }
    Ok(())
}

#[track_caller]
fn check(stored: &Stored, told: &Told, when: &str) {
    let ledger = stored.ledger.as_ref().map_or(0, |ledger| ledger[0]);
    assert!((told.ledgers..=told.ledger_asked).contains(&ledger), "{when}: ledger {ledger}, told {told:?}");
    let there: Vec<u64> = stored.spooled.iter().map(|event| event.ordinal).collect();
    for ordinal in 1..=told.events {
        let waits = there.contains(&ordinal);
        let must_wait = !told.forwarded_asked.contains(&ordinal);
        assert!(waits || !must_wait, "{when}: event {ordinal} is lost");
        assert!(!waits || !told.forwarded.contains(&ordinal), "{when}: event {ordinal} was forwarded and is back");
    }
    assert!(there.iter().all(|ordinal| *ordinal <= told.events_asked), "{when}: {there:?}");
    assert!(there.is_sorted(), "{when}: {there:?}");
    for Spooled { ordinal, bytes, sending } in &stored.spooled {
        assert_eq!(bytes[0], u8::try_from(ordinal % 251).unwrap(), "{when}: event {ordinal} is another one");
        if let Some(id) = told.sending.get(ordinal) {
            assert_eq!(*sending, Some((OneShotId(*id), Age(*ordinal))), "{when}: event {ordinal}");
        }
    }
}

#[test]
fn what_was_acknowledged_survives_every_crash_and_power_loss() {
    let whole = CrashDisk::new();
    day(&whole, &mut Told::default()).unwrap();
    let calls = whole.calls();
    for call in 1..=calls {
        for fault in [Fault::Stop, Fault::Refuse] {
            let disk = CrashDisk::new();
            disk.fail_at(call, fault);
            let mut told = Told::default();
            day(&disk, &mut told).unwrap_err();
            let mut after = disk.power_losses(3, call);
            after.push(disk.after_kill());
            for (number, disk) in after.into_iter().enumerate() {
                let when = format!("{fault:?} at call {call}, way {number}");
                let opened = open(&disk).unwrap_or_else(|error| panic!("{when}: {error}"));
                check(&opened.stored, &told, &when);
                // It goes on from there, and remembers that too.
                let mut store = opened.store;
                let ordinal = ready(store.spool(&[event(0, 1)])).unwrap()[0];
                assert!(ordinal > told.events, "{when}: ordinal {ordinal} was used before");
                ready(store.save_ledger(&[99])).unwrap();
                let again = open(&disk).unwrap().stored;
                assert_eq!(again.ledger.as_deref(), Some(&[99][..]), "{when}");
                assert_eq!(again.spooled.last().map(|event| event.ordinal), Some(ordinal), "{when}");
            }
        }
    }
}

fn prepared() -> (CrashDisk, Told) {
    let disk = CrashDisk::new();
    let mut told = Told::default();
    day(&disk, &mut told).unwrap();
    ready(open(&disk).unwrap().store.save_boot(b"the boot")).unwrap();
    (disk, told)
}

#[test]
fn any_flipped_bit_is_told_and_nothing_but_it_is_lost() {
    let (whole, told) = prepared();
    for (path, bytes) in whole.files() {
        for offset in (0..bytes).step_by(7) {
            let disk = whole.after_kill();
            disk.flip(&path, offset, 1 << (offset % 8));
            let when = format!("{} at {offset}", path.display());
            let opened = open(&disk).unwrap_or_else(|error| panic!("{when}: {error}"));
            assert_eq!(opened.repairs.len(), 1, "{when}: {:?}", opened.repairs);
            assert!(opened.repairs[0].contains(&*path.display().to_string()), "{when}: {:?}", opened.repairs);
            let name = path.file_name().unwrap().to_str().unwrap();
            if name == "boot" {
                assert_eq!(opened.stored.boot, None, "{when}");
            } else if name.starts_with("ledger") {
                let ledger = opened.stored.ledger.unwrap()[0];
                assert!(ledger + 1 >= told.ledgers, "{when}: fell back to {ledger}");
                assert_eq!(opened.stored.boot.as_deref(), Some(&b"the boot"[..]), "{when}");
            } else {
                for Spooled { ordinal, bytes, .. } in &opened.stored.spooled {
                    assert_eq!(bytes[0], u8::try_from(ordinal % 251).unwrap(), "{when}: event {ordinal} is another one");
                }
            }
            // What was mended is whole.
            assert_eq!(open(&disk).unwrap().repairs, Vec::<String>::new(), "{when}");
        }
    }
}

#[test]
fn a_ledger_without_a_whole_generation_is_refused() {
    let (disk, _) = prepared();
    for name in ["ledger.0", "ledger.1"] {
        disk.flip(&Path::new(DIR).join(name), 100, 1);
    }
    let Err(error) = open(&disk) else { panic!("it opened") };
    assert!(error.to_string().contains("/agent/ledger.0 is damaged"), "{error}");
    assert!(error.to_string().contains("move the directory aside"), "{error}");
}

#[test]
fn what_the_journal_has_is_not_kept() {
    let disk = CrashDisk::new();
    let mut store = open(&disk).unwrap().store;
    for round in 0..40 {
        let ordinal = ready(store.spool(&[event(round, 1_000)])).unwrap()[0];
        ready(store.sending(ordinal, OneShotId(1), Age(1))).unwrap();
        ready(store.forwarded(ordinal)).unwrap();
    }
    let spooled = |disk: &CrashDisk| -> Vec<(PathBuf, usize)> {
        disk.files().into_iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "spool")).collect()
    };
    assert!(spooled(&disk).len() <= 2, "{:?}", spooled(&disk));
    let opened = open(&disk).unwrap();
    assert_eq!(opened.stored.spooled, []);
    let mut store = opened.store;
    assert_eq!(ready(store.spool(&[event(1, 1)])).unwrap(), [41]);
}
