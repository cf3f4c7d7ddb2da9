//! A leader replaces a tail that spans segments of the log, and the segments before the replacement are purged: what is left is a
//! whole log, and a replica starts on it.

mod common;

use common::crash_disk::CrashDisk;
use common::{Journal, SMALL, entries, entry, hard_state, identity, pages, save};
use muster_core::ids::{Index, Term};
use muster_core::log::LogRecord;
use muster_core::storage::{Archive as _, LogStore as _};
use muster_storage::{Opened, init, inspect, open, ready, repair};
use std::path::Path;

const ROOT: &str = "/data";

fn fresh() -> (CrashDisk, Opened<CrashDisk>, Journal) {
    let disk = CrashDisk::new();
    let journal = Journal::new();
    let first = (journal.meta(1, 1), pages(1));
    ready(init(disk.clone(), Path::new(ROOT), &identity(), Some(first), SMALL)).expect("a directory can be made");
    let opened = ready(open(disk.clone(), Path::new(ROOT), SMALL)).expect("it opens");
    (disk, opened, journal)
}

fn append(opened: &mut Opened<CrashDisk>, records: &[LogRecord]) {
    ready(opened.wal.append(records)).expect("the disk is good");
}

fn segments(disk: &CrashDisk) -> usize {
    ready(inspect(disk, Path::new(ROOT))).expect("it can be looked at").wal.len()
}

/// What is recovered has these entries, and nothing is found to be wrong with it.
fn holds(disk: &CrashDisk, start: (u64, u64), terms: &[u64]) {
    let seen = ready(inspect(disk, Path::new(ROOT))).expect("it can be looked at");
    assert_eq!(seen.problems, Vec::new());
    assert_eq!(seen.log_start, (Index(start.0), Term(start.1)));
    let recovered = ready(open(disk.clone(), Path::new(ROOT), SMALL)).expect("it opens").recovered;
    assert_eq!(recovered.log_start, (Index(start.0), Term(start.1)));
    let has: Vec<(u64, u64)> = recovered.entries.iter().map(|entry| (entry.index.0, entry.term.0)).collect();
    let wanted: Vec<(u64, u64)> = (start.0 + 1..).zip(terms.iter().copied()).collect();
    assert_eq!(has, wanted);
    assert_eq!(ready(repair(disk.clone(), Path::new(ROOT))).expect("nothing is beyond repair"), Vec::new());
}

#[test]
fn a_segment_that_begins_with_a_replacement_is_a_whole_log() {
    let (disk, mut opened, _) = fresh();
    // Entries 2 and 3 fill the first segment and are never committed; a later leader's go to the next one.
    append(&mut opened, &[hard_state(2, 3, 1), entries([entry(2, 2, 1_300)])]);
    append(&mut opened, &[entries([entry(2, 3, 1_300)])]);
    append(&mut opened, &[hard_state(3, 1, 1), entries([entry(3, 2, 700), entry(3, 3, 700)])]);
    append(&mut opened, &[hard_state(3, 1, 3)]);
    assert_eq!(segments(&disk), 2, "the replacement begins a segment");
    ready(opened.wal.purge(Index(1))).expect("the disk is good");
    assert_eq!(segments(&disk), 1);
    drop(opened);
    // The snapshot at 1 tells the term before the replacement.
    holds(&disk, (1, 1), &[3, 3]);
}

#[test]
fn a_replacement_in_the_middle_of_the_first_segment_is_a_whole_log() {
    let (disk, mut opened, mut journal) = fresh();
    append(&mut opened, &[hard_state(2, 3, 1), entries([entry(2, 2, 900), entry(2, 3, 900), entry(2, 4, 900)])]);
    append(&mut opened, &[entries([entry(2, 5, 1_300)])]);
    // In the second segment, after an entry that goes on from the first one.
    append(&mut opened, &[hard_state(3, 1, 2), entries([entry(3, 3, 40), entry(3, 4, 40), entry(3, 5, 40)])]);
    append(&mut opened, &[hard_state(3, 1, 5)]);
    assert_eq!(segments(&disk), 2);
    let records = journal.grow(3, 100);
    ready(opened.archive.extend(records)).expect("the disk is good");
    let saved = ready(save(&mut opened.archive, journal.meta(5, 3)));
    let (_, oldest) = saved.expect("the disk is good");
    assert_eq!(oldest, Index(1), "three are kept");
    for index in [6, 7] {
        append(&mut opened, &[entries([entry(3, index, 30)]), hard_state(3, 1, index)]);
        let meta = journal.meta(index, 3);
        let saved = ready(save(&mut opened.archive, meta));
        let (_, oldest) = saved.expect("the disk is good");
        ready(opened.wal.purge(oldest)).expect("the disk is good");
    }
    assert_eq!(segments(&disk), 1);
    drop(opened);
    // No snapshot is at 2: the log begins after the replacement itself, which the one at 5 has.
    holds(&disk, (3, 3), &[3, 3, 3, 3]);
    let mut opened = ready(open(disk.clone(), Path::new(ROOT), SMALL)).expect("it opens");
    append(&mut opened, &[entries([entry(3, 8, 30)])]);
    drop(opened);
    holds(&disk, (3, 3), &[3, 3, 3, 3, 3]);
}

#[test]
fn what_was_committed_is_not_replaced() {
    let (disk, mut opened, _) = fresh();
    append(&mut opened, &[hard_state(2, 3, 1), entries([entry(2, 2, 1_300)])]);
    append(&mut opened, &[hard_state(2, 3, 3), entries([entry(2, 3, 1_300)])]);
    append(&mut opened, &[hard_state(3, 1, 3), entries([entry(3, 2, 700), entry(3, 3, 700)])]);
    ready(opened.wal.purge(Index(1))).expect("the disk is good");
    assert_eq!(segments(&disk), 1);
    drop(opened);
    let error = ready(open(disk.clone(), Path::new(ROOT), SMALL)).err().expect("that is damage");
    assert!(error.to_string().contains("entry 2 does not follow a log that begins after 3"), "{error}");
}
