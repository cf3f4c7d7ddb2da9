//! The formats, byte by byte: what is in `tests/golden/` opens, and what is written today is exactly what is in the newest.
//!
//! The files are a data directory each. They change only with a new format version, whose golden files stand beside these.
//! `MUSTER_GOLDEN=write cargo test -p muster-storage --test golden` writes the newest; review the difference like code.

mod common;

use common::{Journal, digest, entries, entry, hard_state, identity, layer, page_list, pages, save};
use muster_core::ids::{Digest, Index, ReplicaId, Seq, Term};
use muster_core::log::{HardState, LogEntry, LogEntryKind, LogRecord};
use muster_core::storage::{Archive, Layer, Library, LogStore, SnapshotMeta};
use muster_storage::{RealDisk, WalOptions, init, open, ready};
use std::fs;
use std::path::{Path, PathBuf};

const FILES: [&str; 5] = [
    "identity",
    "raft/wal/00000000000000000001.wal",
    "snapshots/snap-1-1",
    "snapshots/snap-2-4",
    "history/00000000000000000001.seg",
];

const OPTIONS: WalOptions = WalOptions { segment_bytes: 8192, tail_bytes: 1 << 20 };

fn golden(format: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/format-{format}"))
}

fn is_writing() -> bool {
    std::env::var_os("MUSTER_GOLDEN").is_some_and(|what| what == "write")
}

fn log() -> Vec<LogEntry> {
    let membership = LogEntry { kind: LogEntryKind::Membership, context: vec![1, 2, 3].into(), ..entry(2, 4, 12) };
    vec![entry(1, 2, 0), entry(2, 3, 700), membership]
}

fn write(root: &Path) {
    let mut journal = Journal::new();
    ready(init(RealDisk, root, &identity(), Some((journal.meta(1, 1), pages(1))), OPTIONS)).unwrap();
    let mut opened = ready(open(RealDisk, root, OPTIONS)).unwrap();
    let log = log();
    ready(opened.wal.append(&[hard_state(1, 3, 1), entries([log[0].clone(), entry(1, 3, 5)])])).unwrap();
    ready(opened.wal.append(&[hard_state(2, 1, 2), entries(log[1..].to_vec())])).unwrap();
    ready(opened.wal.append(&[LogRecord::Entries(vec![]), hard_state(2, 1, 4)])).unwrap();
    let records = journal.grow(3, 33);
    ready(opened.archive.extend(records)).unwrap();
    let layers = opened.recovered.snapshot.unwrap().layers;
    ready(save(&mut opened.archive, SnapshotMeta { layers, ..journal.meta(4, 2) })).unwrap();
}

#[test]
fn what_is_written_today_is_format_2_to_the_byte() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("data");
    write(&root);
    for file in FILES {
        let written = fs::read(root.join(file)).unwrap();
        let path = golden(2).join(file);
        if is_writing() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &written).unwrap();
        }
        let expected = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let difference = written.iter().zip(&expected).position(|(new, old)| new != old);
        assert_eq!((difference, written.len()), (None, expected.len()), "{file} differs at this byte, or in length");
    }
}

/// Opens a copy and checks all that does not differ between formats.
fn opens(format: u32) -> SnapshotMeta {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("data");
    for made in ["raft/wal", "snapshots", "history", "staging"] {
        fs::create_dir_all(root.join(made)).unwrap();
    }
    for file in FILES {
        fs::copy(golden(format).join(file), root.join(file)).unwrap();
    }
    let opened = ready(open(RealDisk, &root, OPTIONS)).unwrap();
    assert_eq!(opened.identity, identity());
    let recovered = opened.recovered;
    assert_eq!(recovered.hard_state, HardState { term: Term(2), vote: ReplicaId(1), commit: Index(4) });
    assert_eq!(recovered.log_start, (Index(1), Term(1)));
    assert_eq!(recovered.entries, log());
    for (page, bytes) in (0..).zip(page_list(4)) {
        assert_eq!(ready(opened.library.page(Index(4), Term(2), page)).unwrap(), Some(bytes));
    }
    let read = ready(opened.library.records(Seq(0), Seq(9), 1 << 20)).unwrap();
    assert_eq!(read.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>(), journal().records);
    recovered.snapshot.unwrap()
}

fn journal() -> Journal {
    let mut journal = Journal::new();
    journal.grow(3, 33);
    journal
}

#[test]
fn format_1_opens() {
    let own = Layer { lasting: 3, ..layer(4, 2) };
    let meta = SnapshotMeta { layers: vec![own], digest: Digest::default(), ..journal().meta(4, 2) };
    assert_eq!(opens(1), meta);
}

#[test]
fn format_2_opens() {
    if is_writing() {
        return;
    }
    let layers = vec![layer(1, 1), layer(4, 2)];
    assert_eq!(opens(2), SnapshotMeta { layers, digest: digest(4), ..journal().meta(4, 2) });
}
