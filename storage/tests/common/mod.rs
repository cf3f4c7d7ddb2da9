//! What the tests of this crate share: who the replica is, what it writes, what it takes snapshots of.
#![allow(dead_code, unreachable_pub, reason = "every test uses its own part of this")]

pub mod crash_disk;

use bytes::Bytes;
use muster_core::ids::{Age, ClusterId, Digest, GroupId, Incarnation, Index, ReplicaId, ReplicaName, Seq, Term};
use muster_core::log::{Configuration, HardState, LogEntry, LogEntryKind, LogRecord};
use muster_core::state::Finished;
use muster_core::storage::{
    Archive, Identity, Layer, Page, PageSource, Pages, SEGMENT_BYTES, Segment, SnapshotMeta, StorageError,
};
use muster_storage::WalOptions;

/// Segments of one header and seven sectors: a few appends fill one.
pub const SMALL: WalOptions = WalOptions { segment_bytes: 4096, tail_bytes: 1 << 20 };

pub fn identity() -> Identity {
    Identity {
        cluster: ClusterId(0xc1),
        group: GroupId(1),
        replica: ReplicaId(3),
        incarnation: Incarnation(0x1f),
        name: ReplicaName::new("host-3").unwrap(),
    }
}

pub fn entry(term: u64, index: u64, bytes: usize) -> LogEntry {
    let byte = u8::try_from((term * 31 + index * 7) % 251).unwrap();
    LogEntry {
        term: Term(term),
        index: Index(index),
        kind: LogEntryKind::Normal,
        data: vec![byte; bytes].into(),
        context: Bytes::new(),
    }
}

pub fn entries(entries: impl IntoIterator<Item = LogEntry>) -> LogRecord {
    LogRecord::Entries(entries.into_iter().collect())
}

pub fn hard_state(term: u64, vote: u64, commit: u64) -> LogRecord {
    LogRecord::HardState(HardState { term: Term(term), vote: ReplicaId(vote), commit: Index(commit) })
}

/// A journal record: large ones seal segments quickly.
pub fn record(sequence: u64, bytes: usize) -> Bytes {
    let mut content = vec![u8::try_from(sequence % 251).unwrap(); bytes];
    content[..8].copy_from_slice(&sequence.to_le_bytes());
    content.into()
}

/// A journal's manifest, kept the way core keeps it.
#[derive(Clone, Debug)]
pub struct Journal {
    pub history: Vec<Segment>,
    pub records: Vec<Bytes>,
}

impl Journal {
    pub fn new() -> Self {
        Self { history: vec![Segment::starting(Seq(1), Digest::of(b"genesis"))], records: Vec::new() }
    }

    pub fn last(&self) -> Seq {
        Seq(self.records.len() as u64)
    }

    pub fn push(&mut self, record: Bytes) {
        let open = self.history.last_mut().unwrap();
        open.last = open.last.next();
        open.bytes += record.len() as u64;
        open.head = open.head.chain(&record);
        if open.bytes >= SEGMENT_BYTES {
            let next = Segment::starting(open.last.next(), open.head);
            self.history.push(next);
        }
        self.records.push(record);
    }

    /// Adds records and gives them.
    pub fn grow(&mut self, count: u64, bytes: usize) -> Vec<Finished> {
        let before = self.records.len();
        for _ in 0..count {
            self.push(record(self.last().0 + 1, bytes));
        }
        self.finished(before, self.records.len())
    }

    /// The records after one place and up to another, as the archive gets them.
    pub fn finished(&self, after: usize, upto: usize) -> Vec<Finished> {
        let mut head = self.history[0].before;
        let all = self.records.iter().zip(1..).map(|(bytes, sequence)| {
            head = head.chain(bytes);
            Finished { sequence: Seq(sequence), bytes: bytes.clone(), head }
        });
        all.skip(after).take(upto - after).collect()
    }

    pub fn meta(&self, index: u64, term: u64) -> SnapshotMeta {
        SnapshotMeta {
            index: Index(index),
            term: Term(term),
            configuration: Configuration { voters: vec![ReplicaId(3)], ..Configuration::default() },
            sequence: self.last(),
            head: self.history.last().unwrap().head,
            age: Age(index * 1_000),
            history: self.history.clone(),
            layers: Vec::new(),
            digest: Digest::default(),
        }
    }

    /// The stored part of the open segment.
    pub fn open_records(&self) -> Vec<Bytes> {
        let first = usize::try_from(self.history.last().unwrap().first.0 - 1).unwrap();
        self.records[first..].to_vec()
    }

    pub fn segment_records(&self, segment: &Segment) -> Vec<Bytes> {
        let range = usize::try_from(segment.first.0 - 1).unwrap()..usize::try_from(segment.last.0).unwrap();
        self.records[range].to_vec()
    }
}

/// Live state for a layer at this index.
pub fn page_list(index: u64) -> Vec<Bytes> {
    (0..3).map(|page| Bytes::from(format!("page {page} of the state at {index}"))).collect()
}

struct Listed {
    pages: std::vec::IntoIter<Bytes>,
    digest: Digest,
}

impl PageSource for Listed {
    fn next_page(&mut self) -> Option<Page> {
        let lasts = self.pages.len() > 1;
        self.pages.next().map(|bytes| Page { bytes, lasts })
    }
    fn digest(&self) -> Digest {
        self.digest
    }
}

/// The digest of the state at this index.
pub fn digest(index: u64) -> Digest {
    Digest::of(&index.to_le_bytes())
}

pub fn pages(index: u64) -> Pages {
    Box::new(Listed { pages: page_list(index).into_iter(), digest: digest(index) })
}

/// The layer of those pages.
pub fn layer(index: u64, term: u64) -> Layer {
    let all = page_list(index).concat();
    Layer {
        index: Index(index),
        term: Term(term),
        pages: 3,
        lasting: 2,
        bytes: all.len() as u64,
        digest: Digest::of(&all),
    }
}

/// The meta as a peer would send it: one layer of everything.
pub fn complete(meta: SnapshotMeta) -> SnapshotMeta {
    let (index, term) = (meta.index.0, meta.term.0);
    SnapshotMeta { layers: vec![layer(index, term)], digest: digest(index), ..meta }
}

/// Takes a snapshot over the layers in its meta.
pub async fn save<A: Archive>(archive: &mut A, meta: SnapshotMeta) -> Result<(SnapshotMeta, Index), StorageError> {
    let mut pages = pages(meta.index.0);
    archive.begin(meta).await?;
    while let Some(page) = pages.next_page() {
        archive.write(page).await?;
    }
    archive.finish(pages.digest()).await
}

/// Stages what of a fetched snapshot is not staged yet, checks what is, and installs it.
pub async fn install<A: Archive>(
    archive: &mut A,
    meta: &SnapshotMeta,
    open: Vec<Bytes>,
) -> Result<SnapshotMeta, StorageError> {
    let index = meta.index.0;
    let runs = meta.runs(None);
    let staged = archive.staged(&runs).await?;
    for (run, staged) in runs.iter().zip(staged) {
        for page in 0..run.to - run.from {
            let bytes = page_list(run.layer.index.0)[(run.from + page) as usize].clone();
            if page < staged {
                assert_eq!(archive.staged_page(run, page).await?, bytes);
            } else {
                archive.stage(run, bytes).await?;
            }
        }
    }
    archive.install(meta.clone(), pages(index), open).await
}
