//! The real disk: everything a replica does to its data directory, across restarts.

mod common;

use common::{Journal, complete, entries, entry, hard_state, identity, install, page_list, pages, record, save};
use muster_core::ids::{Index, Seq, Term};
use muster_core::storage::{Archive, Library, LogStore, SEGMENT_BYTES, StorageError};
use muster_storage::{Lock, RealDisk, WalOptions, init, open, ready};
use std::path::Path;

fn begin(root: &Path, journal: &Journal, options: WalOptions) {
    ready(init(RealDisk, root, &identity(), Some((journal.meta(1, 1), pages(1))), options)).unwrap();
}

#[test]
fn a_replica_comes_back_with_what_it_wrote() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("data");
    let mut journal = Journal::new();
    begin(&root, &journal, common::SMALL);
    let mut written = Vec::new();
    for round in 0..20 {
        let mut opened = ready(open(RealDisk, &root, common::SMALL)).unwrap();
        assert_eq!(opened.identity, identity());
        assert_eq!(opened.recovered.entries, written);
        assert_eq!(opened.recovered.log_start, (Index(1), Term(1)));
        for step in 0..3 {
            let next = entry(1, 2 + written.len() as u64, 300 * step);
            let records = [hard_state(1, 3, 1 + written.len() as u64), entries([next.clone()])];
            ready(opened.wal.append(&records)).unwrap();
            written.push(next);
        }
        let added = journal.grow(3, 40);
        if round == 0 {
            ready(opened.archive.extend(added)).unwrap();
            let read = ready(opened.library.records(Seq(0), Seq(10), 1 << 20)).unwrap();
            assert_eq!(read.len(), 3);
        }
    }
}

#[test]
fn a_batch_larger_than_a_segment_gets_a_segment_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("data");
    begin(&root, &Journal::new(), common::SMALL);
    let mut opened = ready(open(RealDisk, &root, common::SMALL)).unwrap();
    let sizes = [3_000, 100_000, 10, 10, 3_000, 3_000, 9_000];
    let written: Vec<_> = (2..).zip(sizes).map(|(index, bytes)| entry(1, index, bytes)).collect();
    for one in &written {
        ready(opened.wal.append(&[entries([one.clone()])])).unwrap();
    }
    drop(opened);
    let opened = ready(open(RealDisk, &root, common::SMALL)).unwrap();
    assert_eq!(opened.recovered.entries, written);
}

#[test]
fn snapshots_cut_history_and_let_the_log_go() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("data");
    let mut journal = Journal::new();
    begin(&root, &journal, common::SMALL);
    let mut opened = ready(open(RealDisk, &root, common::SMALL)).unwrap();
    let mut index = 1;
    let mut oldest = Index(1);
    for _ in 0..5 {
        for _ in 0..10 {
            index += 1;
            ready(opened.wal.append(&[hard_state(1, 3, index - 1), entries([entry(1, index, 600)])])).unwrap();
            let added = journal.grow(1, 900_000);
            ready(opened.archive.extend(added)).unwrap();
        }
        let (meta, kept) = ready(save(&mut opened.archive, journal.meta(index, 1))).unwrap();
        assert_eq!(meta, complete(journal.meta(index, 1)));
        oldest = kept;
        ready(opened.wal.purge(kept)).unwrap();
    }
    assert_eq!(oldest, Index(31));
    assert!(journal.history.len() > 5);
    let cut_at = journal.last();
    let added = journal.clone().grow(2, 500);
    ready(opened.archive.extend(added)).unwrap();
    drop(opened);

    let opened = ready(open(RealDisk, &root, common::SMALL)).unwrap();
    let meta = opened.recovered.snapshot.unwrap();
    assert_eq!(meta.index, Index(51));
    assert!(opened.recovered.log_start.0 <= oldest && opened.recovered.log_start.0 > Index(20));
    assert_eq!(opened.recovered.entries.last().unwrap().index, Index(51));
    for (page, bytes) in (0..).zip(page_list(51)) {
        assert_eq!(ready(opened.library.page(Index(51), Term(1), page)).unwrap(), Some(bytes));
    }
    assert_eq!(ready(opened.library.page(Index(51), Term(1), 3)).unwrap(), None);
    assert_eq!(ready(opened.library.page(Index(21), Term(1), 0)).unwrap(), None);
    let mut after = Seq(0);
    while after < cut_at {
        let read = ready(opened.library.records(after, Seq(1_000), 1 << 20)).unwrap();
        for (sequence, bytes) in read {
            assert_eq!(sequence, after.next());
            assert_eq!(bytes, record(sequence.0, 900_000));
            after = sequence;
        }
    }
    assert!(ready(opened.library.records(cut_at, Seq(1_000), 1 << 20)).unwrap().is_empty());
}

#[test]
fn entries_that_replace_some_of_purged_segments_are_read_back() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("data");
    let journal = Journal::new();
    begin(&root, &journal, common::SMALL);
    let mut opened = ready(open(RealDisk, &root, common::SMALL)).unwrap();
    for index in 2..=9 {
        let commit = (index - 1).min(3);
        ready(opened.wal.append(&[hard_state(1, 3, commit), entries([entry(1, index, 600)])])).unwrap();
    }
    // Another leader's entries take the place of what was not committed, from a segment of their own on. The hard state that comes
    // with them knows of more than was committed here before.
    let replacing: Vec<_> = (4..=7).map(|index| entry(2, index, 30_000)).collect();
    ready(opened.wal.append(&[hard_state(2, 1, 6), entries(replacing)])).unwrap();
    ready(opened.wal.append(&[entries([entry(2, 8, 10)])])).unwrap();
    let mut oldest = Index(0);
    for index in 5..=7 {
        (_, oldest) = ready(save(&mut opened.archive, journal.meta(index, 2))).unwrap();
    }
    assert_eq!(oldest, Index(5));
    ready(opened.wal.purge(oldest)).unwrap();
    drop(opened);

    let opened = ready(open(RealDisk, &root, common::SMALL)).unwrap();
    assert_eq!(opened.recovered.log_start, (Index(4), Term(2)), "the first entry that is not of a purged segment");
    let last = opened.recovered.entries.last().map(|last| (last.index, last.term));
    assert_eq!(last, Some((Index(8), Term(2))));
    assert_eq!(opened.recovered.entries.len(), 4);
}

#[test]
fn an_installed_snapshot_takes_the_place_of_everything_older() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("data");
    let mut journal = Journal::new();
    begin(&root, &journal, common::SMALL);
    let mut opened = ready(open(RealDisk, &root, common::SMALL)).unwrap();
    let added = journal.grow(2, 100);
    ready(opened.archive.extend(added)).unwrap();
    ready(opened.wal.append(&[entries([entry(1, 2, 10), entry(1, 3, 10)])])).unwrap();

    journal.grow(12, 1 << 20);
    let meta = complete(journal.meta(50, 4));
    let runs = meta.runs(None);
    for run in &runs {
        for page in run.from..run.to {
            let staged = ready(opened.archive.staged(&runs)).unwrap();
            assert_eq!(staged.iter().sum::<u32>(), page);
            ready(opened.archive.stage(run, page_list(50)[page as usize].clone())).unwrap();
            drop(opened);
            opened = ready(open(RealDisk, &root, common::SMALL)).unwrap();
        }
    }
    ready(install(&mut opened.archive, &meta, journal.open_records())).unwrap();
    // The log is not told: a crash came first.
    drop(opened);

    for _ in 0..2 {
        let mut opened = ready(open(RealDisk, &root, common::SMALL)).unwrap();
        assert_eq!(opened.recovered.snapshot.as_ref(), Some(&meta));
        assert_eq!(opened.recovered.log_start, (Index(50), Term(4)));
        assert!(opened.recovered.entries.is_empty());
        assert_eq!(opened.recovered.hard_state.term, Term(1));
        assert!(ready(opened.library.records(Seq(0), Seq(5), 1 << 20)).unwrap().is_empty());
        let missing = ready(opened.archive.missing()).unwrap();
        assert_eq!(missing, journal.history[..journal.history.len() - 1]);
    }
    let mut opened = ready(open(RealDisk, &root, common::SMALL)).unwrap();
    for segment in ready(opened.archive.missing()).unwrap() {
        let mut records = journal.segment_records(&segment);
        records.pop();
        ready(opened.archive.fill(segment, records)).unwrap();
        assert!(ready(opened.archive.missing()).unwrap().contains(&segment), "what does not fit is not taken");
        ready(opened.archive.fill(segment, journal.segment_records(&segment))).unwrap();
    }
    assert!(ready(opened.archive.missing()).unwrap().is_empty());
    let read = ready(opened.library.records(Seq(0), Seq(100), usize::MAX)).unwrap();
    assert_eq!(read.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>(), journal.records);
    ready(opened.wal.append(&[entries([entry(5, 51, 10)])])).unwrap();
    drop(opened);
    let opened = ready(open(RealDisk, &root, common::SMALL)).unwrap();
    assert_eq!(opened.recovered.entries, [entry(5, 51, 10)]);
    assert!(ready(opened.library.records(Seq(14), Seq(100), 10)).unwrap().is_empty());
}

#[test]
fn a_directory_that_is_not_there_is_empty_and_one_in_use_is_locked() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("data");
    assert!(matches!(Lock::take(&root), Err(StorageError::Empty { .. })));
    assert!(matches!(ready(open(RealDisk, &root, common::SMALL)), Err(StorageError::Empty { .. })));
    std::fs::create_dir(&root).unwrap();
    let lock = Lock::take(&root).unwrap();
    assert!(matches!(Lock::take(&root), Err(StorageError::Locked { .. })));
    assert!(matches!(ready(open(RealDisk, &root, common::SMALL)), Err(StorageError::Empty { .. })));
    drop(lock);
    Lock::take(&root).unwrap();
}

#[test]
fn segments_are_sealed_by_the_record_that_fills_them() {
    let mut journal = Journal::new();
    let bytes = usize::try_from(SEGMENT_BYTES).unwrap();
    journal.grow(1, bytes - 1);
    journal.grow(1, 10);
    journal.grow(1, 10);
    assert_eq!(journal.history.iter().map(|segment| segment.last).collect::<Vec<_>>(), [Seq(2), Seq(3)]);
}
