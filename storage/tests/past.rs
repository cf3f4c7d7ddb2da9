//! The past is read from the nearest kept snapshot: the same answers as from the first record, without reading the records before.

mod common;

use bytes::Bytes;
use common::crash_disk::{CrashDisk, SECTOR, random};
use common::{SMALL, identity};
use muster_core::codec::decode_record;
use muster_core::driver::BOOTSTRAP;
use muster_core::ids::{Index, OneShotId, Seq, Term, WallTime};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::entry::{Author, Change, EntryDraft, EntryType, Principal, Role};
use muster_core::journal::fold::Fold;
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::policy::Policy;
use muster_core::limits::FEATURE_LEVEL;
use muster_core::log::Configuration;
use muster_core::members::{Member, MemberWish};
use muster_core::past::scope_at;
use muster_core::request::{Command, Outcome, RequestId, WriteRequest};
use muster_core::state::{Proposal, State};
use muster_core::storage::{Archive, Library, SnapshotMeta, StorageError};
use muster_storage::{Opened, init, open, ready};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

const ROOT: &str = "/data";

/// Counts the records that are read.
#[derive(Clone)]
struct Counting<L> {
    library: L,
    records: Arc<AtomicU64>,
}

impl<L: Library> Library for Counting<L> {
    async fn records(&self, after: Seq, upto: Seq, bytes_max: usize) -> Result<Vec<(Seq, Bytes)>, StorageError> {
        let records = self.library.records(after, upto, bytes_max).await?;
        self.records.fetch_add(records.len() as u64, Relaxed);
        Ok(records)
    }
    async fn page(&self, index: Index, term: Term, page: u32) -> Result<Option<Bytes>, StorageError> {
        self.library.page(index, term, page).await
    }
    fn snapshot_at(&self, at: Seq) -> Option<SnapshotMeta> {
        self.library.snapshot_at(at)
    }
}

/// What a future gives that gives way now and then, and waits for nothing.
fn patiently<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
    }
}

/// A replica without consensus: what is applied is archived.
struct Replica {
    opened: Opened<CrashDisk>,
    state: State,
    index: Index,
    below: (SnapshotMeta, State),
    seed: u64,
}

fn configuration() -> Configuration {
    Configuration { voters: vec![identity().replica], ..Configuration::default() }
}

fn scopes() -> Vec<Scope> {
    ["global", "vcluster:a", "vcluster:b", "node:n1", "node:n2"].map(|scope| scope.parse().unwrap()).into()
}

impl Replica {
    fn new(disk: &CrashDisk) -> Self {
        let member = Member {
            id: identity().replica,
            name: identity().name,
            incarnation: identity().incarnation,
            peer_address: "nowhere:1".into(),
            client_address: "nowhere:2".into(),
            wish: MemberWish::Voter,
            feature_level: FEATURE_LEVEL,
        };
        let state = State::new(identity().cluster, member);
        let (index, term) = BOOTSTRAP;
        let meta = state.snapshot_meta(index, term, configuration());
        ready(init(disk.clone(), Path::new(ROOT), &identity(), Some((meta, state.layer())), SMALL)).unwrap();
        let opened = ready(open(disk.clone(), Path::new(ROOT), SMALL)).unwrap();
        let below = (opened.recovered.snapshot.clone().unwrap(), state.clone());
        Self { opened, state, index, below, seed: 7 }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.seed = random(self.seed);
        self.seed % below
    }

    /// Applies a command, and archives its records. Refusals are part of the story.
    fn write(&mut self, command: Command) {
        self.index = Index(self.index.0 + 1);
        let expires = command == Command::Expire;
        let (principal, role) = if expires {
            (Principal::System { part: "expiry".into() }, Role::System)
        } else {
            (Principal::Claimed { name: "somebody".into() }, Role::Admin)
        };
        let request = if expires {
            RequestId::None
        } else {
            RequestId::OneShot { id: OneShotId(self.index.0.into()), drawn_at: self.state.age() }
        };
        let write = WriteRequest { request, author: Author { principal, role }, command };
        let elapsed = 60_000_000;
        let (outcome, finished) = self.state.apply(self.index, Proposal { write, recorded_at: WallTime(0), elapsed });
        assert!(!matches!(outcome, Outcome::NotApplied(_)), "{outcome:?}");
        ready(self.opened.archive.extend(finished)).unwrap();
    }

    fn entry(&mut self, kind: EntryType, scope: &Scope, changes: Vec<Change>, parent: Seq, ttl: Option<u32>) {
        let based_on = (kind == EntryType::Rollback).then(|| self.state.sequence());
        self.write(Command::Journal(JournalCommand::AppendEntry(EntryDraft {
            entry_type: kind,
            scope: scope.clone(),
            parent,
            based_on,
            changes,
            ttl_seconds: ttl,
            emergency_reason: None,
            message: "".into(),
            occurred_at: None,
        })));
    }

    /// Some commits, temporary ones too, and now and then a rollback.
    fn live(&mut self, entries: u64) {
        for _ in 0..entries {
            let scopes = scopes();
            let scope = &scopes[usize::try_from(self.draw(scopes.len() as u64)).unwrap()];
            let head = self.state.sequence();
            match self.draw(12) {
                0 => {
                    let back = self.draw(20);
                    self.entry(EntryType::Rollback, scope, Vec::new(), Seq(head.0.saturating_sub(back)), None);
                }
                1 => self.write(Command::Expire),
                kind => {
                    let key = Key::new(&format!("kernel:k{}", self.draw(12))).unwrap();
                    let next = match self.draw(5) {
                        0 => Setting::Unset,
                        1 => Setting::Absent,
                        _ => Setting::Value(format!("value {} {}", head.0, "x".repeat(300)).into()),
                    };
                    let change = Change { key, previous: Setting::Unset, next };
                    self.entry(EntryType::Commit, scope, vec![change], head, (kind < 4).then_some(900));
                }
            }
        }
    }

    fn save(&mut self) {
        let (below, view) = &self.below;
        let over = below.takes_a_layer();
        let mut pages = if over { self.state.layer_over(view, below.digest) } else { self.state.layer() };
        let layers = if over { below.layers.clone() } else { Vec::new() };
        let meta = self.state.snapshot_meta(self.index, Term(1), configuration());
        let archive = &mut self.opened.archive;
        ready(archive.begin(SnapshotMeta { layers, ..meta })).unwrap();
        while let Some(page) = pages.next_page() {
            ready(archive.write(page)).unwrap();
        }
        let (meta, _) = ready(archive.finish(pages.digest())).unwrap();
        self.below = (meta, self.state.clone());
    }
}

/// A journal with snapshots, of which some rest on others; and what replay of every record gives at every sequence.
fn grown(disk: &CrashDisk) -> (Replica, Vec<Vec<Fold>>) {
    let mut replica = Replica::new(disk);
    for vcluster in ["a", "b"] {
        let policy = JournalCommand::SetPolicy { vcluster: vcluster.parse().unwrap(), policy: Policy::default() };
        replica.write(Command::Journal(policy));
    }
    for node in ["n1", "n2"] {
        let change = Change { key: Key::vcluster(), previous: Setting::Unset, next: Setting::Value(Arc::from("a")) };
        let scope = format!("node:{node}").parse().unwrap();
        replica.entry(EntryType::BootConfig, &scope, vec![change], Seq(0), None);
    }
    for _ in 0..9 {
        replica.live(40);
        replica.save();
    }
    replica.live(25);
    let head = replica.state.sequence();
    let mut folds: Vec<Fold> = scopes().into_iter().map(Fold::new).collect();
    let mut at = vec![folds.clone()];
    for (_, bytes) in ready(replica.opened.library.records(Seq(0), head, usize::MAX)).unwrap() {
        let record = decode_record(&bytes).unwrap();
        for fold in &mut folds {
            fold.push(&record);
        }
        at.push(folds.clone());
    }
    assert_eq!(at.len() as u64, head.0 + 1);
    (replica, at)
}

#[test]
fn the_past_read_from_a_snapshot_is_what_replay_of_every_record_gives_and_reads_no_record_before_it() {
    let disk = CrashDisk::new();
    let (replica, expected) = grown(&disk);
    let records = Arc::new(AtomicU64::new(0));
    let library = Counting { library: replica.opened.library.clone(), records: Arc::clone(&records) };
    let mut from_snapshots = 0;
    for (at, folds) in (0..).map(Seq).zip(&expected) {
        let distance = at.0 - library.snapshot_at(at).map_or(0, |meta| meta.sequence.0);
        for (scope, fold) in scopes().iter().zip(folds) {
            records.store(0, Relaxed);
            let found = patiently(scope_at(&library, scope, at)).unwrap();
            assert_eq!((found.at(), found.head()), (fold.at(), fold.head()), "{scope} at {at}");
            assert_eq!(records.load(Relaxed), distance, "{scope} at {at}");
        }
        from_snapshots += u64::from(distance < at.0);
    }
    assert!(from_snapshots > 100, "only {from_snapshots} of {} sequences lay after a snapshot", expected.len());
    assert!(replica.below.0.layers.len() > 1, "no snapshot rests on another");
}

#[test]
fn the_past_is_read_from_the_first_record_where_the_snapshot_has_rotted() {
    let disk = CrashDisk::new();
    let (replica, expected) = grown(&disk);
    let base = replica.below.0.layers[0];
    let path = Path::new(ROOT).join(format!("snapshots/snap-{}-{}", base.term, base.index));
    disk.flip(&path, SECTOR + 40, 1);
    let records = Arc::new(AtomicU64::new(0));
    let library = Counting { library: replica.opened.library.clone(), records: Arc::clone(&records) };
    let at = replica.state.sequence();
    for (scope, fold) in scopes().iter().zip(expected.last().unwrap()) {
        records.store(0, Relaxed);
        let found = patiently(scope_at(&library, scope, at)).unwrap();
        assert_eq!((found.at(), found.head()), (fold.at(), fold.head()), "{scope} at {at}");
        assert_eq!(records.load(Relaxed), at.0, "{scope} at {at}");
    }
}
