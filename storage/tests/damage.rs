//! Damage: whatever is flipped, cut or taken away is refused, naming the file and the place, and nothing is written.

mod common;

use common::crash_disk::{CrashDisk, Fault, SECTOR};
use common::{Journal, complete, entries, entry, hard_state, identity, install, pages, save};
use muster_core::ids::{ClusterId, Incarnation, Index, ReplicaId, Seq};
use muster_core::storage::{Archive, Identity, Layer, Library, LogStore, SnapshotMeta, StorageError};
use muster_storage::{Opened, WalOptions, init, inspect, open, ready, repair};
use std::path::{Path, PathBuf};

const ROOT: &str = "/data";
const TINY: WalOptions = WalOptions { segment_bytes: 2048, tail_bytes: 1 << 20 };

fn open_at(disk: &CrashDisk) -> Result<Opened<CrashDisk>, StorageError> {
    ready(open(disk.clone(), Path::new(ROOT), TINY))
}

/// A replica that was made and started, with its first snapshot and nothing else.
fn begun() -> (CrashDisk, Journal, Opened<CrashDisk>) {
    let (disk, journal) = (CrashDisk::new(), Journal::new());
    let first = Some((journal.meta(1, 1), pages(1)));
    ready(init(disk.clone(), Path::new(ROOT), &identity(), first, TINY)).unwrap();
    let opened = open_at(&disk).unwrap();
    (disk, journal, opened)
}

/// A replica with a log over three segments, three snapshots, and history.
fn replica() -> CrashDisk {
    let (disk, mut journal, mut opened) = begun();
    for index in 2..8 {
        ready(opened.wal.append(&[hard_state(1, 3, index - 1), entries([entry(1, index, 350)])])).unwrap();
        let added = journal.grow(2, 50);
        ready(opened.archive.extend(added)).unwrap();
        if index % 2 == 0 {
            ready(save(&mut opened.archive, journal.meta(index, 1))).unwrap();
        }
    }
    // The last batch takes two sectors.
    ready(opened.wal.append(&[entries([entry(1, 8, 500)])])).unwrap();
    drop(opened);
    disk.after_power_loss(|_| false)
}

#[test]
fn a_log_whose_purged_tail_was_replaced_by_what_is_left_is_no_damage() {
    let (disk, mut journal, mut opened) = begun();
    let batches = [
        vec![hard_state(1, 3, 1), entries([entry(1, 2, 50)])],
        vec![entries([entry(1, 3, 50)])],
        // The second segment begins where entry 3 of term 1 is the last, and replaces it.
        vec![entries([entry(1, 4, 50)])],
        // The commit index comes with it, and before it.
        vec![hard_state(2, 1, 3), entries([entry(2, 3, 50)])],
        vec![entries([entry(2, 4, 50)])],
        vec![hard_state(2, 1, 4), entries([entry(2, 5, 50)])],
        vec![hard_state(2, 1, 5), entries([entry(2, 6, 50)])],
    ];
    for batch in &batches {
        ready(opened.wal.append(batch)).unwrap();
    }
    let mut oldest = Index(0);
    for index in 3..=5 {
        let added = journal.grow(2, 50);
        ready(opened.archive.extend(added)).unwrap();
        (_, oldest) = ready(save(&mut opened.archive, journal.meta(index, 2))).unwrap();
    }
    assert_eq!(oldest, Index(3));
    ready(opened.wal.purge(oldest)).unwrap();
    drop(opened);
    let first = files(&disk, "raft/wal").into_iter().next().unwrap().0;
    assert!(first.ends_with("00000000000000000002.wal"), "{}", first.display());

    let found = ready(inspect(&disk, Path::new(ROOT))).unwrap();
    assert_eq!((found.problems, found.log_start.0), (Vec::new(), Index(3)));
    let recovered = open_at(&disk.after_power_loss(|_| false)).unwrap().recovered;
    let kept: Vec<(u64, u64)> = recovered.entries.iter().map(|entry| (entry.term.0, entry.index.0)).collect();
    assert_eq!((recovered.log_start.0, kept), (Index(3), vec![(2, 4), (2, 5), (2, 6)]));
}

fn files(disk: &CrashDisk, under: &str) -> Vec<(PathBuf, usize)> {
    let under = Path::new(ROOT).join(under);
    disk.files().into_iter().filter(|(path, _)| path.starts_with(&under)).collect()
}

/// Opens, and reads everything that is read only on demand.
fn use_all(disk: &CrashDisk) -> Result<(), StorageError> {
    let opened = open_at(disk)?;
    for index in [4, 6, 2] {
        for page in 0..3 {
            ready(opened.library.page(Index(index), muster_core::ids::Term(1), page))?.unwrap();
        }
    }
    let read = ready(opened.library.records(Seq(0), Seq(100), usize::MAX))?;
    assert_eq!(read.len(), 10, "six rounds, saved after the fifth");
    Ok(())
}

fn assert_refused(outcome: Result<(), StorageError>, path: &Path, offset: usize) {
    match outcome {
        Err(StorageError::Damaged { file, offset: found, remedy, .. }) => {
            assert_eq!(file, path.display().to_string(), "offset {offset}");
            let place = usize::try_from(found).unwrap();
            assert!(place <= offset.max(SECTOR), "{file}: damage at {offset} is reported at {place}");
            assert!(remedy.contains("muster"));
        }
        other => panic!("{} flipped at {offset}: {other:?}", path.display()),
    }
}

#[test]
fn every_flipped_bit_of_log_and_identity_is_refused_at_its_sector() {
    let disk = replica();
    let before = disk.fingerprint();
    open_at(&disk.after_kill()).unwrap();
    let mut found = files(&disk, "raft");
    assert!(found.len() >= 3);
    found.extend(files(&disk, "identity"));
    for (path, length) in found {
        for offset in 0..length {
            for bit in 0..8 {
                disk.flip(&path, offset, 1 << bit);
                match open_at(&disk).map(|_| ()) {
                    Err(StorageError::Damaged { file, offset: found, remedy, .. }) => {
                        assert_eq!(file, path.display().to_string());
                        let found = usize::try_from(found).unwrap();
                        assert_eq!(found / SECTOR, offset / SECTOR, "{file}: damage at {offset} reported at {found}");
                        assert!(remedy.contains("muster replace"));
                    }
                    other => panic!("{} flipped at {offset}: {other:?}", path.display()),
                }
                disk.flip(&path, offset, 1 << bit);
            }
        }
    }
    assert_eq!(disk.fingerprint(), before, "a damaged directory was written to");
}

#[test]
fn every_flipped_bit_of_snapshots_and_history_is_refused() {
    let disk = replica();
    use_all(&disk.after_kill()).unwrap();
    let before = disk.fingerprint();
    let mut found = files(&disk, "snapshots");
    assert_eq!(found.len(), 3);
    let history = files(&disk, "history");
    assert_eq!(history.len(), 1);
    found.extend(history);
    for (path, length) in found {
        for offset in 0..length {
            let bit = 1 << (offset % 8);
            disk.flip(&path, offset, bit);
            assert_refused(use_all(&disk), &path, offset);
            disk.flip(&path, offset, bit);
        }
    }
    assert_eq!(disk.fingerprint(), before);
}

#[test]
fn a_file_of_the_wrong_length_or_a_missing_one_is_refused() {
    let disk = replica();
    let mut found = files(&disk, "raft");
    found.extend(files(&disk, "snapshots").into_iter().last());
    found.extend(files(&disk, "history"));
    found.extend(files(&disk, "identity"));
    let history_end = files(&disk, "history")[0].1;
    for (path, length) in found {
        for other in [0, 1, length / 2, length - 1, length + 1, length + SECTOR] {
            // Records after the snapshot are cut and written again, so a longer open segment is none the worse.
            if path.extension().is_some_and(|ending| ending == "seg") && other > history_end {
                continue;
            }
            let cut = disk.after_kill();
            cut.resize(&path, other);
            assert_refused(open_at(&cut).map(|_| ()), &path, other.max(SECTOR));
        }
    }
    for (path, _) in files(&disk, "raft").iter().rev().skip(1) {
        let lost = disk.after_kill();
        lost.lose_file(path);
        assert!(matches!(open_at(&lost), Err(StorageError::Damaged { .. })), "{}", path.display());
    }
    let lost = disk.after_kill();
    for (path, _) in files(&disk, "raft") {
        lost.lose_file(&path);
    }
    assert!(matches!(open_at(&lost), Err(StorageError::Damaged { .. })), "a log without a vote is no fresh start");
    let lost = disk.after_kill();
    lost.lose_file(Path::new("/data/identity"));
    assert!(matches!(open_at(&lost), Err(StorageError::Damaged { .. })));
    let lost = disk.after_kill();
    for (path, _) in files(&disk, "snapshots") {
        lost.lose_file(&path);
    }
    assert!(matches!(open_at(&lost), Err(StorageError::Damaged { .. })));
}

#[test]
fn a_zeroed_sector_of_any_batch_but_the_last_is_damage() {
    let disk = replica();
    let wal = files(&disk, "raft");
    let mut torn = 0;
    for (path, length) in &wal {
        let bytes = disk.contents(path);
        for sector in 1..length / SECTOR {
            let content = &bytes[sector * SECTOR..(sector + 1) * SECTOR];
            if content.iter().all(|&byte| byte == 0) {
                continue;
            }
            let zeroed = disk.after_kill();
            for (offset, &byte) in content.iter().enumerate() {
                zeroed.flip(path, sector * SECTOR + offset, byte);
            }
            match open_at(&zeroed) {
                Ok(opened) => {
                    torn += 1;
                    assert_eq!(opened.recovered.entries.last().unwrap().index, Index(7));
                }
                Err(StorageError::Damaged { file, offset, .. }) => {
                    assert_eq!(file, path.display().to_string());
                    assert_eq!(offset, (sector * SECTOR) as u64);
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert_eq!(torn, 2, "the last batch has two sectors, and without either it is torn");
}

#[test]
fn another_replicas_files_and_future_formats_are_refused_naming_both() {
    let disk = replica();
    let others: [(&str, Identity); 3] = [
        ("cluster", Identity { cluster: ClusterId(0xc2), ..identity() }),
        ("replica", Identity { replica: ReplicaId(4), ..identity() }),
        ("incarnation", Identity { incarnation: Incarnation(0x20), ..identity() }),
    ];
    for (what, other) in others {
        let foreign = CrashDisk::new();
        let first = Some((Journal::new().meta(1, 1), pages(1)));
        ready(init(foreign.clone(), Path::new(ROOT), &other, first, TINY)).unwrap();
        for path in [Path::new("/data/raft/wal/00000000000000000001.wal"), Path::new("/data/snapshots/snap-1-2")] {
            let mixed = disk.after_kill();
            let source = if path.starts_with("/data/raft") {
                foreign.contents(path)
            } else {
                foreign.contents(Path::new("/data/snapshots/snap-1-1"))
            };
            mixed.resize(path, source.len());
            for (offset, (new, old)) in source.iter().zip(mixed.contents(path)).enumerate() {
                mixed.flip(path, offset, new ^ old);
            }
            match open_at(&mixed).map(|_| ()) {
                Err(StorageError::Foreign { file, problem }) => {
                    assert_eq!(file, path.display().to_string());
                    assert!(problem.contains(what), "{problem}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
    for path in ["/data/identity", "/data/raft/wal/00000000000000000001.wal", "/data/snapshots/snap-1-2"] {
        let path = Path::new(path);
        let newer = with_format(&disk, path, 1 ^ 2);
        let expected = StorageError::Format { file: path.display().to_string(), found: 2, known: 1 };
        assert_eq!(open_at(&newer).map(|_| ()), Err(expected));
    }
}

/// The same disk with a file whose format differs by these bits, as another version would have written it.
fn with_format(disk: &CrashDisk, path: &Path, bits: u8) -> CrashDisk {
    let other = disk.after_kill();
    other.flip(path, 8, bits);
    let header = other.contents(path)[..SECTOR - 4].to_vec();
    let checksum = crc32fast::hash(&header).to_le_bytes();
    for (offset, (new, old)) in checksum.iter().zip(&other.contents(path)[SECTOR - 4..]).enumerate() {
        other.flip(path, SECTOR - 4 + offset, new ^ old);
    }
    other
}

#[test]
fn history_of_a_newer_format_is_refused_even_where_nothing_rests_on_it() {
    let (disk, mut journal, mut opened) = begun();
    // Two segments and a part of a third, behind the only snapshot.
    ready(opened.archive.extend(journal.grow(9, 1 << 20))).unwrap();
    drop(opened);
    let disk = disk.after_power_loss(|_| true);
    let written = files(&disk, "history");
    assert!(written.len() > 2, "{written:?}");
    for (path, _) in &written {
        let newer = with_format(&disk, path, 2 ^ 3);
        let before = newer.fingerprint();
        let expected = StorageError::Format { file: path.display().to_string(), found: 3, known: 2 };
        assert_eq!(open_at(&newer).map(|_| ()), Err(expected));
        assert_eq!(newer.fingerprint(), before, "nothing is removed");
    }
    open_at(&disk).unwrap();
    assert!(files(&disk, "history").is_empty());
}

#[test]
fn repair_goes_back_to_an_older_snapshot_and_is_safe_at_every_crash() {
    let disk = replica();
    let damaged = Path::new("/data/snapshots/snap-1-6");
    disk.flip(damaged, 600, 1);
    assert!(matches!(open_at(&disk), Err(StorageError::Damaged { remedy, .. }) if remedy.contains("muster repair")));
    for stop in 1.. {
        let crashed = disk.after_kill();
        crashed.fail_at(stop, Fault::Stop);
        let outcome = ready(repair(crashed.clone(), Path::new(ROOT)));
        for lost in crashed.power_losses(4, stop) {
            match open_at(&lost) {
                Ok(opened) => {
                    assert_eq!(opened.recovered.snapshot.as_ref().unwrap().index, Index(4));
                    assert_eq!(opened.recovered.entries.last().unwrap().index, Index(8));
                    let read = ready(opened.library.records(Seq(0), Seq(100), usize::MAX)).unwrap();
                    assert_eq!(read.len(), 6, "history is cut to the older snapshot");
                }
                Err(StorageError::Damaged { .. }) => assert!(outcome.is_err()),
                Err(error) => panic!("{error}"),
            }
        }
        if let Ok(done) = outcome {
            assert_eq!(done.len(), 1);
            assert_eq!(done[0].file, damaged.display().to_string());
            assert!(ready(repair(crashed.after_kill(), Path::new(ROOT))).unwrap().is_empty());
            break;
        }
    }
}

/// Takes snapshots at 2 to 6, each a layer on the one before but for that at `rebased`, and cuts the log below those that are kept.
/// Gives the layers of the last.
fn layer_on(journal: &mut Journal, opened: &mut Opened<CrashDisk>, entry_bytes: usize, rebased: u64) -> Vec<Layer> {
    let mut layers = Vec::new();
    for index in 2..=6 {
        if index == rebased {
            layers.clear();
        }
        ready(opened.wal.append(&[hard_state(1, 3, index - 1), entries([entry(1, index, entry_bytes)])])).unwrap();
        let added = journal.grow(2, 50);
        ready(opened.archive.extend(added)).unwrap();
        let meta = SnapshotMeta { layers: layers.clone(), ..journal.meta(index, 1) };
        let (meta, oldest) = ready(save(&mut opened.archive, meta)).unwrap();
        layers.clone_from(&meta.layers);
        ready(opened.wal.purge(oldest)).unwrap();
    }
    layers
}

/// A replica whose log is cut below the oldest of three kept snapshots: one on an old stack of layers, and two on a new base.
fn two_stacks() -> (CrashDisk, Journal) {
    let (disk, mut journal, mut opened) = begun();
    layer_on(&mut journal, &mut opened, 900, 5);
    ready(opened.wal.append(&[entries([entry(1, 7, 100)])])).unwrap();
    drop(opened);
    (disk.after_power_loss(|_| true), journal)
}

#[test]
fn of_a_stack_that_broke_repair_leaves_nothing_that_passes_for_a_log_without_its_beginning() {
    for damaged in ["snap-1-2", "snap-1-3", "snap-1-4"] {
        let (disk, _) = two_stacks();
        let damaged = Path::new("/data/snapshots").join(damaged);
        disk.flip(&damaged, 100, 1);
        assert!(
            matches!(open_at(&disk.after_kill()), Err(StorageError::Damaged { remedy, .. }) if remedy.contains("muster repair"))
        );
        for stop in 1.. {
            let crashed = disk.after_kill();
            crashed.fail_at(stop, Fault::Stop);
            let done = ready(repair(crashed.clone(), Path::new(ROOT)));
            let again = crashed.after_kill();
            ready(repair(again.clone(), Path::new(ROOT))).unwrap();
            let opened = open_at(&again).unwrap();
            assert_eq!(opened.recovered.snapshot.as_ref().unwrap().index, Index(6), "{}", damaged.display());
            assert_eq!(opened.recovered.entries.last().unwrap().index, Index(7));
            if let Ok(done) = done {
                assert!(done.iter().any(|repaired| repaired.file == damaged.display().to_string()), "{done:?}");
                break;
            }
        }
    }
}

#[test]
fn whatever_a_power_loss_leaves_of_an_install_that_drops_two_stacks_is_started_from() {
    let (disk, journal) = two_stacks();
    for stop in 1.. {
        let crashed = disk.after_kill();
        let mut opened = open_at(&crashed).unwrap();
        crashed.fail_at(stop, Fault::Stop);
        let installed = ready(install(&mut opened.archive, &complete(journal.meta(20, 1)), journal.open_records()));
        for lost in crashed.power_losses(6, stop) {
            let opened = open_at(&lost).unwrap_or_else(|error| panic!("stopped at call {stop}: {error}"));
            let newest = opened.recovered.snapshot.as_ref().unwrap().index;
            assert!(newest == Index(20) || newest == Index(6) && installed.is_err(), "{newest}");
        }
        if installed.is_ok() {
            break;
        }
    }
}

#[test]
fn repair_refuses_what_nothing_makes_up_for_and_moves_nothing() {
    let disk = replica();
    for (path, _) in files(&disk, "snapshots") {
        disk.flip(&path, 600, 1);
    }
    let before = disk.fingerprint();
    let error = ready(repair(disk.clone(), Path::new(ROOT))).unwrap_err();
    assert!(matches!(error, StorageError::Damaged { remedy, .. } if remedy.contains("muster replace")));
    assert_eq!(disk.fingerprint(), before);

    let disk = replica();
    disk.flip(Path::new("/data/raft/wal/00000000000000000001.wal"), 700, 1);
    disk.flip(Path::new("/data/snapshots/snap-1-6"), 600, 1);
    let before = disk.fingerprint();
    let error = ready(repair(disk.clone(), Path::new(ROOT))).unwrap_err();
    assert!(matches!(error, StorageError::Damaged { remedy, .. } if remedy.contains("muster replace")));
    assert_eq!(disk.fingerprint(), before);
}

#[test]
fn inspection_tells_everything_and_reports_damage() {
    let disk = replica();
    let before = disk.fingerprint();
    let seen = ready(inspect(&disk, Path::new(ROOT))).unwrap();
    assert_eq!(seen.problems, []);
    assert_eq!(seen.identity, Some(identity()));
    assert_eq!(seen.hard_state.commit, Index(6));
    assert_eq!((seen.log_start.0, seen.log_last.0), (Index(1), Index(8)));
    assert!(seen.wal.len() >= 3);
    assert_eq!(seen.snapshots.iter().filter(|snapshot| snapshot.is_good).count(), 3);
    assert!(seen.history.iter().all(|file| file.is_good && file.bytes.is_some()));
    // A record is where inspection says it is: flipping there is damage in that record's sector.
    let record = &seen.wal[0].batches[1].records[1];
    assert_eq!(disk.contents(Path::new(&seen.wal[0].file))[usize::try_from(record.offset).unwrap()], 1);
    assert_eq!(disk.fingerprint(), before);

    disk.flip(Path::new(&seen.wal[1].file), 900, 4);
    disk.flip(Path::new(&seen.snapshots[0].file), 600, 4);
    disk.flip(Path::new(&seen.history[0].file), 600, 4);
    let seen = ready(inspect(&disk, Path::new(ROOT))).unwrap();
    let files: Vec<_> = seen
        .problems
        .iter()
        .map(|problem| match problem {
            StorageError::Damaged { file, .. } => file.clone(),
            other => panic!("{other}"),
        })
        .collect();
    for file in [&seen.wal[1].file, &seen.snapshots[0].file, &seen.history[0].file] {
        assert!(files.contains(file), "{file} is not among {files:?}");
    }
    assert!(!seen.snapshots[0].is_good && !seen.history[0].is_good);
}

#[test]
fn a_base_that_rots_spoils_every_snapshot_on_it_which_is_told_and_none_of_it_is_served() {
    let (disk, mut journal, mut opened) = begun();
    let layers = layer_on(&mut journal, &mut opened, 350, 2);
    assert_eq!(layers.len(), 5, "all of them rest on the first");
    let base = Path::new("/data/snapshots/snap-1-2");
    for (offset, page) in [(SECTOR + 10, 0), (SECTOR + 50, 1)] {
        disk.flip(base, offset, 4);
        // A replica that runs gives no damaged page to anybody, and all others.
        for asked in 0..3 {
            let read = ready(opened.library.page(Index(2), muster_core::ids::Term(1), asked));
            assert_eq!(read.is_err(), asked == page, "page {asked}: {read:?}");
        }
        // One that starts tells the file and what to do; what to do tells that only others have what is lost.
        assert_refused(open_at(&disk.after_kill()).map(|_| ()), base, offset);
        let before = disk.fingerprint();
        match ready(repair(disk.clone(), Path::new(ROOT))) {
            Err(StorageError::Damaged { file, remedy, .. }) => {
                assert_eq!(file, base.display().to_string());
                assert!(remedy.contains("muster replace"), "{remedy}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(disk.fingerprint(), before);
        disk.flip(base, offset, 4);
    }
    open_at(&disk.after_kill()).unwrap();
}
