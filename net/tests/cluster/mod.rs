//! Real replicas on real sockets, with archives in memory: what the servers and the client are tested against.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use bytes::Bytes;
use muster_core::clock::Clock;
use muster_core::driver::{assemble, run_archive, run_fetch, run_log};
use muster_core::front::Handle;
use muster_core::ids::{
    ClusterId, Digest, GroupId, Incarnation, Index, ReplicaId, ReplicaName, Seq, Term, Time, WallTime,
};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::entry::{Author, Change, EntryDraft, EntryType, Principal, Role};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::policy::Policy;
use muster_core::log::{Configuration, HardState, LogRecord};
use muster_core::members::{Admission, Member, MemberCommand, MemberWish};
use muster_core::network::Network;
use muster_core::replica::{Limits, Settings, Timing};
use muster_core::request::{Command, Outcome, RaftRole, Refusal, Reply};
use muster_core::state::{Finished, State};
use muster_core::storage::{
    Archive, Identity, Layer, Library, LogStore, Page, Pages, Recovered, Run, Segment, SnapshotMeta, StorageError,
};
use muster_net::client::{Client, Options};
use muster_net::peer::{GrpcNetwork, PeerCounters, PeerOptions};
use muster_net::server::{
    BootOptions, ClientLimits, HttpPages, Listener, Protection, Replica, serve_clients, serve_peers,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

pub const CLUSTER: ClusterId = ClusterId(0x00c0_ffee);

#[derive(Clone)]
pub struct RealClock(Instant);

impl Clock for RealClock {
    fn now(&self) -> Time {
        Time(u64::try_from(self.0.elapsed().as_nanos()).unwrap())
    }
    fn wall(&self) -> WallTime {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        WallTime(u64::try_from(since.as_millis()).unwrap())
    }
    async fn sleep_until(&self, time: Time) {
        tokio::time::sleep_until((self.0 + Duration::from_nanos(time.0)).into()).await;
    }
}

#[derive(Default)]
struct Held {
    history: BTreeMap<Seq, Bytes>,
    snapshots: BTreeMap<(Index, Term), (SnapshotMeta, Vec<Bytes>)>,
    begun: Option<(SnapshotMeta, Vec<Page>)>,
}

impl Held {
    /// Keeps a layer, over those that are named below it.
    fn keep(&mut self, mut meta: SnapshotMeta, pages: &[Page]) -> SnapshotMeta {
        let bytes: Vec<Bytes> = pages.iter().map(|page| page.bytes.clone()).collect();
        let all = bytes.concat();
        meta.layers.push(Layer {
            index: meta.index,
            term: meta.term,
            pages: u32::try_from(pages.len()).unwrap(),
            lasting: u32::try_from(pages.iter().filter(|page| page.lasts).count()).unwrap(),
            bytes: all.len() as u64,
            digest: Digest::of(&all),
        });
        self.snapshots.insert((meta.index, meta.term), (meta.clone(), bytes));
        meta
    }
}

/// An archive in memory. Loses everything with its process, which is all right for what is tested here.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<Held>>);

impl Memory {
    /// Holds these pages as a snapshot's.
    pub fn hold(&self, index: Index, term: Term, pages: Vec<Bytes>) -> (Index, Term) {
        let mut held = self.0.lock().unwrap();
        let (mut meta, _) = held.snapshots.values().next().unwrap().clone();
        (meta.index, meta.term) = (index, term);
        held.snapshots.insert((index, term), (meta, pages));
        (index, term)
    }
    /// Changes one bit of a stored record.
    pub fn flip(&self, sequence: Seq) {
        let mut held = self.0.lock().unwrap();
        let mut bytes = held.history[&sequence].to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        held.history.insert(sequence, bytes.into());
    }
}

impl LogStore for Memory {
    async fn append(&mut self, _: &[LogRecord]) -> Result<(), StorageError> {
        Ok(())
    }
    async fn purge(&mut self, _: Index) -> Result<(), StorageError> {
        Ok(())
    }
}

impl Archive for Memory {
    async fn extend(&mut self, records: Vec<Finished>) -> Result<(), StorageError> {
        let mut held = self.0.lock().unwrap();
        held.history.extend(records.into_iter().map(|record| (record.sequence, record.bytes)));
        Ok(())
    }
    async fn begin(&mut self, meta: SnapshotMeta) -> Result<(), StorageError> {
        self.0.lock().unwrap().begun = Some((meta, Vec::new()));
        Ok(())
    }
    async fn write(&mut self, page: Page) -> Result<(), StorageError> {
        self.0.lock().unwrap().begun.as_mut().unwrap().1.push(page);
        Ok(())
    }
    async fn finish(&mut self, digest: Digest) -> Result<(SnapshotMeta, Index), StorageError> {
        let mut held = self.0.lock().unwrap();
        let (meta, pages) = held.begun.take().unwrap();
        let meta = held.keep(SnapshotMeta { digest, ..meta }, &pages);
        let oldest = held.snapshots.keys().next().map_or(meta.index, |(index, _)| *index);
        Ok((meta, oldest))
    }
    async fn staged(&mut self, runs: &[Run]) -> Result<Vec<u32>, StorageError> {
        Ok(vec![0; runs.len()])
    }
    async fn stage(&mut self, _: &Run, _: Bytes) -> Result<(), StorageError> {
        Ok(())
    }
    async fn staged_page(&mut self, _: &Run, _: u32) -> Result<Bytes, StorageError> {
        unreachable!("nothing is staged here")
    }
    async fn install(
        &mut self,
        meta: SnapshotMeta,
        mut pages: Pages,
        open: Vec<Bytes>,
    ) -> Result<SnapshotMeta, StorageError> {
        let mut all = Vec::new();
        while let Some(page) = pages.next_page() {
            all.push(page);
        }
        let mut held = self.0.lock().unwrap();
        let meta = held.keep(SnapshotMeta { layers: Vec::new(), ..meta }, &all);
        let first = meta.history.last().map_or(Seq(1), |segment| segment.first);
        for (place, bytes) in open.into_iter().enumerate() {
            held.history.insert(Seq(first.0 + place as u64), bytes);
        }
        Ok(meta)
    }
    async fn fill(&mut self, segment: Segment, records: Vec<Bytes>) -> Result<(), StorageError> {
        self.0.lock().unwrap().history.extend((segment.first.0..).map(Seq).zip(records));
        Ok(())
    }
    async fn missing(&mut self) -> Result<Vec<Segment>, StorageError> {
        let held = self.0.lock().unwrap();
        let Some((meta, _)) = held.snapshots.values().next_back() else { return Ok(Vec::new()) };
        let gone = |segment: &&Segment| !segment.is_empty() && !held.history.contains_key(&segment.first);
        Ok(meta.history.iter().rev().skip(1).rev().filter(gone).copied().collect())
    }
}

impl Library for Memory {
    async fn records(&self, after: Seq, upto: Seq, bytes_max: usize) -> Result<Vec<(Seq, Bytes)>, StorageError> {
        let held = self.0.lock().unwrap();
        let mut next = after.next();
        let mut bytes = 0;
        let mut records = Vec::new();
        while next <= upto && bytes < bytes_max {
            let Some(record) = held.history.get(&next) else { break };
            bytes += record.len();
            records.push((next, record.clone()));
            next = next.next();
        }
        Ok(records)
    }
    async fn page(&self, index: Index, term: Term, page: u32) -> Result<Option<Bytes>, StorageError> {
        let held = self.0.lock().unwrap();
        Ok(held.snapshots.get(&(index, term)).and_then(|(_, pages)| pages.get(page as usize)).cloned())
    }
    fn snapshot_at(&self, at: Seq) -> Option<SnapshotMeta> {
        let held = self.0.lock().unwrap();
        held.snapshots.values().rev().map(|(meta, _)| meta).find(|meta| meta.sequence <= at).cloned()
    }
}

/// A running replica with its servers.
pub struct Running {
    pub replica: Replica<Memory>,
    pub network: GrpcNetwork,
    pub counters: PeerCounters,
    pub client_address: String,
    pub peer_address: String,
    pub memory: Memory,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.replica.handle.stop();
        self.replica.end();
    }
}

pub fn identity(id: u64) -> Identity {
    Identity {
        cluster: CLUSTER,
        group: GroupId(1),
        replica: ReplicaId(id),
        incarnation: Incarnation(u128::from(id) + 1_000),
        name: ReplicaName::new(&format!("replica-{id}")).unwrap(),
    }
}

pub fn member(id: u64, peer_address: &str, client_address: &str) -> Member {
    Member {
        id: ReplicaId(id),
        name: ReplicaName::new(&format!("replica-{id}")).unwrap(),
        incarnation: Incarnation(u128::from(id) + 1_000),
        peer_address: peer_address.into(),
        client_address: client_address.into(),
        wish: MemberWish::Learner,
        feature_level: muster_core::limits::FEATURE_LEVEL,
    }
}

/// Two sockets of a replica that is not there yet.
pub struct Sockets {
    clients: Listener,
    peers: Listener,
}

impl Sockets {
    pub async fn bind() -> Self {
        Self::protected(&Protection::Loopback).await
    }
    pub async fn protected(protection: &Protection) -> Self {
        let clients = Listener::bind("127.0.0.1:0", "clients", protection).await.unwrap();
        let peers = Listener::bind("127.0.0.1:0", "peers", protection).await.unwrap();
        Self { clients, peers }
    }
    pub fn client_address(&self) -> String {
        self.clients.address().to_string()
    }
    pub fn peer_address(&self) -> String {
        self.peers.address().to_string()
    }
}

/// Starts a replica: the first of its cluster, or one that joins through known members.
pub async fn start(identity: Identity, known: &[Member], limits: ClientLimits) -> Running {
    start_on(Sockets::bind().await, identity, known, limits).await
}

pub async fn start_on(sockets: Sockets, identity: Identity, known: &[Member], limits: ClientLimits) -> Running {
    start_serving(sockets, identity, known, limits, BootOptions::default()).await
}

/// The same, serving boots in some way of its own.
pub async fn start_serving(
    sockets: Sockets,
    identity: Identity,
    known: &[Member],
    limits: ClientLimits,
    boots: BootOptions,
) -> Running {
    let (client_address, peer_address) = (sockets.client_address(), sockets.peer_address());
    let Sockets { clients, peers } = sockets;
    let memory = Memory::default();
    let mut hard_state = HardState::default();
    let (state, snapshot) = if known.is_empty() {
        let mut member = member(identity.replica.0, &peer_address, &client_address);
        member.incarnation = identity.incarnation;
        let state = State::new(identity.cluster, member);
        let configuration = Configuration { voters: vec![identity.replica], ..Configuration::default() };
        let meta = state.snapshot_meta(Index(1), Term(1), configuration);
        let meta = memory.clone().install(meta, state.layer(), Vec::new()).await.unwrap();
        let meta = SnapshotMeta { digest: state.digest(), ..meta };
        hard_state = HardState { term: Term(1), commit: Index(1), ..hard_state };
        (state, Some(meta))
    } else {
        (State::empty(identity.cluster), None)
    };
    let log_start = snapshot.as_ref().map_or((Index(0), Term(0)), |meta| (meta.index, meta.term));
    let recovered = Recovered { hard_state, snapshot, entries: Vec::new(), log_start };
    let clock = RealClock(Instant::now());
    let settings = Settings { timing: Timing::LAN, limits: Limits::default(), seed: identity.replica.0 };
    let assembly = assemble(identity.clone(), settings, recovered, state, clock.now());
    let handle = assembly.handle.clone();
    let counters = PeerCounters::default();
    let network = GrpcNetwork::new(
        &identity,
        PeerOptions { peer_address: peer_address.clone().into(), ..PeerOptions::default() },
        counters.clone(),
    );
    network.know(known);
    let (loops_network, loops_memory) = (network.clone(), memory.clone());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let (log, archive) = (loops_memory.clone(), loops_memory);
            tokio::join!(
                async { assembly.driver.run(loops_network.clone(), clock.clone()).await.unwrap() },
                run_log(log, assembly.log),
                run_archive(archive, assembly.archive),
                run_fetch(assembly.fetch, loops_network.clone(), clock.clone()),
            );
        });
    });
    let replica = Replica::new(handle, memory.clone(), identity, "test").with_boots(boots);
    tokio::spawn(serve_clients(clients, replica.clone(), limits, HttpPages::default()));
    tokio::spawn(serve_peers(peers, replica.clone(), network.clone()));
    Running { replica, network, counters, client_address, peer_address, memory }
}

pub async fn leads(handle: &Handle) {
    let mut view = handle.view();
    while view.status.role != RaftRole::Leader {
        view = handle.changed(view.version).await;
    }
}

/// One replica that leads itself, and a client of it.
pub async fn alone() -> (Running, Client) {
    let running = start(identity(1), &[], ClientLimits::default()).await;
    leads(&running.replica.handle).await;
    let client = connect(&[&running]).await;
    (running, client)
}

pub async fn connect(replicas: &[&Running]) -> Client {
    let addresses = replicas.iter().map(|running| running.client_address.clone()).collect();
    Client::connect(addresses, Options::default()).await.unwrap()
}

pub fn author() -> Author {
    Author { principal: Principal::Claimed { name: "ana".into() }, role: Role::Admin }
}

pub fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

pub fn scope(text: &str) -> Scope {
    text.parse().unwrap()
}

pub fn value(text: &str) -> Setting {
    Setting::Value(text.into())
}

pub fn entry(entry_type: EntryType, scope_text: &str, changes: &[(&str, &str)], parent: Seq) -> Command {
    let change = |(name, text): &(&str, &str)| Change { key: key(name), previous: Setting::Unset, next: value(text) };
    Command::Journal(JournalCommand::AppendEntry(EntryDraft {
        entry_type,
        scope: scope(scope_text),
        parent,
        based_on: None,
        changes: changes.iter().map(change).collect(),
        ttl_seconds: None,
        emergency_reason: None,
        message: "because".into(),
        occurred_at: None,
    }))
}

pub fn policy(vcluster: &str) -> Command {
    let vcluster = vcluster.parse().unwrap();
    Command::Journal(JournalCommand::SetPolicy { vcluster, policy: Policy::default() })
}

#[track_caller]
pub fn recorded(outcome: &Outcome) -> Seq {
    match outcome {
        Outcome::Applied { reply: Reply::Recorded { sequence }, .. } => *sequence,
        other => panic!("expected it to be recorded: {other:?}"),
    }
}

/// A fleet of one vCluster and one node.
pub async fn small_fleet(client: &Client) {
    recorded(&client.write(&author(), policy("batch")).await);
    let assign = entry(EntryType::BootConfig, "node:n1", &[("vcluster", "batch")], Seq(0));
    recorded(&client.write(&author(), assign).await);
}

/// One more replica, admitted and added through the client.
pub async fn join(client: &Client, number: u64) -> Running {
    let sockets = Sockets::bind().await;
    let mut identity = identity(number);
    let admission = Admission {
        name: identity.name.clone(),
        incarnation: identity.incarnation,
        peer_address: sockets.peer_address().into(),
        client_address: sockets.client_address().into(),
        wish: MemberWish::Learner,
        feature_level: muster_core::limits::FEATURE_LEVEL,
    };
    let admitted = client.admit(&admission, &author()).await.unwrap();
    assert_eq!(client.admit(&admission, &author()).await.unwrap().replica, admitted.replica);
    assert_eq!((admitted.cluster, admitted.group), (CLUSTER, GroupId(1)));
    identity.replica = admitted.replica;
    let running = start_on(sockets, identity, &admitted.members, ClientLimits::default()).await;
    // The leader adds whoever it admitted by itself; asking is for those who do not want to wait, and may come too late.
    let outcome = client.write(&author(), Command::Members(MemberCommand::AddLearner(admitted.replica))).await;
    assert!(matches!(outcome, Outcome::Applied { .. } | Outcome::Refused(Refusal::Membership { .. })), "{outcome:?}");
    running
}
