//! A small world for replicas: messages that get lost, doubled and delayed, disks that lose what was not synced, clocks that
//! jump. Everything is drawn from one seed. It checks the replica's decisions; devices and drivers have the simulator.

use bytes::Bytes;
use muster_core::codec;
use muster_core::ids::{
    Age, ClusterId, Digest, GroupId, Incarnation, Index, OneShotId, ReplicaId, ReplicaName, Seq, Term, Time,
    VClusterId, WallTime,
};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::entry::{Author, Change, EntryDraft, EntryType, Principal, Record, Role};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::policy::Policy;
use muster_core::log::{Configuration, HardState, LogEntry, LogRecord};
use muster_core::members::{Admission, Member, MemberCommand, MemberWish};
use muster_core::peer::Envelope;
use muster_core::replica::{Answer, Effects, Input, Limits, LogTask, Replica, Settings, Staged, Timing, Token};
use muster_core::request::{Command, Freshness, NotApplied, Outcome, Reply, RequestId, WriteRequest};
use muster_core::state::State;
use muster_core::storage::{Identity, Recovered, SnapshotMeta};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub(crate) fn percent(&mut self, p: u64) -> bool {
        self.below(100) < p
    }
}

/// What a disk holds for sure, and what it was told since.
#[derive(Default)]
struct Disk {
    log: Vec<LogRecord>,
    snapshots: Vec<(SnapshotMeta, Vec<Bytes>)>,
    history: BTreeMap<Seq, Bytes>,
}

pub(crate) struct Node {
    identity: Identity,
    replica: Option<Replica>,
    disk: Disk,
    /// Handed to storage, not durable yet, in order.
    log_queue: std::collections::VecDeque<LogTask>,
    log_busy: bool,
    run: u64,
    started: u64,
    wake_at: u64,
    clock_offset: u64,
    history: BTreeMap<Seq, Bytes>,
}

#[derive(PartialEq, Eq)]
enum What {
    Deliver(Envelope),
    LogDone(ReplicaId, u64),
    Saved(ReplicaId, u64, Box<SnapshotMeta>, Vec<Bytes>),
    Fetched(ReplicaId, u64, ReplicaId, Box<SnapshotMeta>),
    Wake(ReplicaId, u64),
    Restart(ReplicaId),
    Heal,
    Act,
}

struct At(u64, u64, What);
impl PartialEq for At {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for At {}
impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.0, other.1).cmp(&(self.0, self.1))
    }
}

pub(crate) struct Faults {
    pub(crate) loss: u64,
    pub(crate) double: u64,
    pub(crate) crashes: u64,
    pub(crate) cuts: u64,
    pub(crate) members: bool,
}

struct Asked {
    /// The highest sequence acknowledged before a read began.
    floor: Seq,
    write: Option<(WriteRequest, u64)>,
}

pub(crate) struct World {
    pub(crate) draw: Draw,
    pub(crate) now: u64,
    order: u64,
    events: BinaryHeap<At>,
    pub(crate) nodes: BTreeMap<ReplicaId, Node>,
    cut: BTreeSet<(ReplicaId, ReplicaId)>,
    faults: Faults,
    asked: BTreeMap<(ReplicaId, u64, Token), Asked>,
    next_token: Token,
    next_write: u64,
    pub(crate) acknowledged: BTreeMap<u64, Seq>,
    pub(crate) highest: Seq,
    pub(crate) unknown: u64,
    pub(crate) refused: u64,
    pub(crate) not_applied: u64,
    pub(crate) reads: u64,
    leaders: BTreeMap<Term, ReplicaId>,
    at_index: BTreeMap<Index, (Seq, Digest, Age)>,
    limits: Limits,
    cluster: ClusterId,
    /// Every record any replica ever finished.
    history: BTreeMap<Seq, Bytes>,
    /// The pages of every snapshot that was fetched.
    staged: BTreeMap<(Index, Digest), Vec<Bytes>>,
    /// Commits that were told *not applied*.
    never: BTreeSet<u64>,
    /// Commits that were told *unknown* once.
    doubted: BTreeSet<u64>,
}

const MS: u64 = 1_000_000;

fn name(id: u64) -> ReplicaName {
    ReplicaName::new(&format!("r{id}")).unwrap()
}

fn author() -> Author {
    Author { principal: Principal::Claimed { name: "op".into() }, role: Role::Admin }
}

fn admission(id: u64, wish: MemberWish) -> Admission {
    Admission {
        name: name(id),
        incarnation: Incarnation(u128::from(id) * 1000),
        peer_address: format!("h{id}:9444").as_str().into(),
        client_address: format!("h{id}:9443").as_str().into(),
        wish,
        feature_level: 1,
    }
}

impl World {
    /// One voter, as `init` makes it; the others join through the cluster.
    pub(crate) fn new(seed: u64, faults: Faults) -> Self {
        let cluster = ClusterId(7);
        let first = admission(1, MemberWish::Voter);
        let member = Member {
            id: ReplicaId(1),
            name: first.name.clone(),
            incarnation: first.incarnation,
            peer_address: first.peer_address.clone(),
            client_address: first.client_address.clone(),
            wish: MemberWish::Learner,
            feature_level: 1,
        };
        let state = State::new(cluster, member);
        let pages: Vec<Bytes> = state.pages().collect();
        let meta = SnapshotMeta {
            index: Index(1),
            term: Term(1),
            configuration: Configuration { voters: vec![ReplicaId(1)], ..Configuration::default() },
            sequence: state.sequence(),
            head: state.head(),
            age: state.age(),
            history: state.history(),
            pages: u32::try_from(pages.len()).unwrap(),
            bytes: pages.iter().map(|p| p.len() as u64).sum(),
            digest: state.digest(),
        };
        let limits = Limits {
            // Rarer than joins: who joins must get a snapshot that knows it all the same.
            snapshot_entries: 120,
            snapshot_pause_ms: 1_000,
            log_bytes_behind_snapshot: 2_000,
            snapshot_patience_ms: 3_000,
            ..Limits::default()
        };
        let mut world = Self {
            draw: Draw::new(seed),
            now: 0,
            order: 0,
            events: BinaryHeap::new(),
            nodes: BTreeMap::new(),
            cut: BTreeSet::new(),
            faults,
            asked: BTreeMap::new(),
            next_token: 0,
            next_write: 0,
            acknowledged: BTreeMap::new(),
            highest: Seq(0),
            unknown: 0,
            refused: 0,
            not_applied: 0,
            reads: 0,
            leaders: BTreeMap::new(),
            at_index: BTreeMap::new(),
            limits,
            cluster,
            history: BTreeMap::new(),
            staged: BTreeMap::new(),
            never: BTreeSet::new(),
            doubted: BTreeSet::new(),
        };
        let hard_state = HardState { term: Term(1), vote: ReplicaId(0), commit: Index(1) };
        let log = vec![LogRecord::Reset { index: Index(1), term: Term(1) }, LogRecord::HardState(hard_state)];
        let disk = Disk { log, snapshots: vec![(meta, pages)], ..Disk::default() };
        world.add_node(ReplicaId(1), disk);
        world
    }

    fn add_node(&mut self, id: ReplicaId, disk: Disk) {
        let identity = Identity {
            cluster: self.cluster,
            group: GroupId(1),
            replica: id,
            incarnation: Incarnation(u128::from(id.0) * 1000),
            name: name(id.0),
        };
        let node = Node {
            identity,
            replica: None,
            disk,
            log_queue: std::collections::VecDeque::new(),
            log_busy: false,
            run: 0,
            started: 0,
            wake_at: 0,
            clock_offset: 0,
            history: BTreeMap::new(),
        };
        self.nodes.insert(id, node);
        self.start(id);
    }

    fn at(&mut self, delay: u64, what: What) {
        self.order += 1;
        self.events.push(At(self.now + delay, self.order, what));
    }

    fn start(&mut self, id: ReplicaId) {
        let seed = self.draw.next();
        let now = self.now;
        let limits = self.limits;
        let offset = self.draw.below(5_000) * MS;
        let node = self.nodes.get_mut(&id).unwrap();
        assert!(node.replica.is_none());
        node.run += 1;
        node.started = now;
        node.clock_offset = offset;
        let snapshot = node.disk.snapshots.last().map(|(meta, _)| meta.clone());
        let mut hard_state = HardState::default();
        let mut start = (Index(0), Term(0));
        let mut entries: Vec<LogEntry> = Vec::new();
        for record in &node.disk.log {
            match record {
                LogRecord::HardState(state) => hard_state = *state,
                LogRecord::Reset { index, term } => {
                    entries.clear();
                    start = (*index, *term);
                }
                LogRecord::Entries(more) => {
                    for entry in more {
                        let keep = usize::try_from(entry.index.0 - start.0.0 - 1).unwrap();
                        entries.truncate(keep);
                        assert_eq!(entries.len(), keep, "a gap in the log on disk");
                        entries.push(entry.clone());
                    }
                }
            }
        }
        if let Some(meta) = &snapshot {
            let there = if start.0 == meta.index {
                start.1 == meta.term
            } else {
                entries.iter().any(|e| e.index == meta.index && e.term == meta.term)
            };
            if !there {
                entries.clear();
                start = (meta.index, meta.term);
            }
        }
        let state = match node.disk.snapshots.last() {
            Some((_, pages)) => State::from_pages(pages.iter().cloned()).unwrap(),
            None => State::empty(self.cluster),
        };
        // History is cut to the snapshot; replay writes the rest again.
        let upto = state.sequence();
        node.disk.history.retain(|sequence, _| *sequence <= upto);
        node.history = node.disk.history.clone();
        let recovered = Recovered { hard_state, snapshot, entries, log_start: start };
        let settings = Settings { timing: Timing::LAN, limits, seed };
        let local = Time(offset);
        let replica = Replica::new(node.identity.clone(), settings, recovered, state, local);
        node.replica = Some(replica);
        let run = node.run;
        self.step(id, vec![Input::HistoryComplete(true)]);
        let _ = run;
    }

    fn crash(&mut self, id: ReplicaId) {
        let lose = self.draw.percent(50);
        let node = self.nodes.get_mut(&id).unwrap();
        if node.replica.take().is_none() {
            return;
        }
        // A prefix of what was handed over may have reached the disk all the same.
        let keep = if lose { 0 } else { node.log_queue.len() };
        let mut kept = Vec::new();
        for task in node.log_queue.drain(..).take(keep) {
            kept.push(task);
        }
        node.log_busy = false;
        node.run += 1;
        let cut = self.draw.below(kept.len() as u64 + 1);
        for task in kept.into_iter().take(usize::try_from(cut).unwrap()) {
            self.persist(id, task);
        }
        self.asked.retain(|(at, _, _), _| *at != id);
        let delay = self.draw.below(3_000) * MS;
        self.at(delay, What::Restart(id));
    }

    fn persist(&mut self, id: ReplicaId, task: LogTask) -> Option<muster_core::ids::WriteId> {
        match task {
            LogTask::Write(write) => {
                let node = self.nodes.get_mut(&id).unwrap();
                node.disk.log.extend(write.records);
                Some(write.id)
            }
            LogTask::Install { meta, open, write } => {
                let pages = self.staged[&(meta.index, meta.digest)].clone();
                // Segments below the open one come from peers; this world copies them at once.
                let history: BTreeMap<Seq, Bytes> =
                    self.history.range(..=meta.sequence).map(|(s, b)| (*s, b.clone())).collect();
                let node = self.nodes.get_mut(&id).unwrap();
                let open_first = meta.history.last().unwrap().first;
                node.disk.snapshots = vec![(meta.clone(), pages)];
                node.disk.history = history;
                for (offset, record) in open.iter().enumerate() {
                    assert_eq!(node.disk.history[&Seq(open_first.0 + offset as u64)], *record);
                }
                node.history = node.disk.history.clone();
                node.disk.log.extend(write.records);
                Some(write.id)
            }
            LogTask::Purge(_) => None,
        }
    }

    fn step(&mut self, id: ReplicaId, inputs: Vec<Input>) {
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(replica) = node.replica.as_mut() else { return };
        let local = Time(self.now - node.started + node.clock_offset);
        let wall = WallTime(1_700_000_000_000 + self.now / MS);
        let effects = replica.step(local, wall, inputs);
        let status = replica.status();
        if replica.is_leader() {
            let old = self.leaders.insert(status.term, id);
            assert!(old.is_none_or(|old| old == id), "two leaders in term {}: {old:?} and {id}", status.term);
        }
        let point = (replica.state().sequence(), replica.state().head(), replica.state().age());
        let before = self.at_index.entry(status.applied).or_insert(point);
        assert_eq!(*before, point, "replica {id} differs at {}", status.applied);
        self.carry_out(id, effects);
    }

    fn carry_out(&mut self, id: ReplicaId, effects: Effects) {
        let run = self.nodes[&id].run;
        for finished in &effects.finished {
            let known = self.history.entry(finished.sequence).or_insert_with(|| finished.bytes.clone());
            assert_eq!(*known, finished.bytes, "sequence {} differs between replicas", finished.sequence);
            let node = self.nodes.get_mut(&id).unwrap();
            let last = node.history.keys().next_back().copied().unwrap_or(Seq(0));
            assert_eq!(finished.sequence, last.next(), "history of {id} has a gap");
            node.history.insert(finished.sequence, finished.bytes.clone());
        }
        for envelope in effects.sends {
            // Through the codec, as on a wire.
            let bytes = codec::encode_envelope(&envelope);
            let envelope = codec::decode_envelope(&bytes).unwrap();
            let copies = if self.draw.percent(self.faults.double) { 2 } else { 1 };
            for _ in 0..copies {
                if self.draw.percent(self.faults.loss) {
                    continue;
                }
                let mut delay = MS / 2 + self.draw.below(2 * MS);
                if self.draw.percent(3) {
                    delay += self.draw.below(800 * MS);
                }
                self.at(delay, What::Deliver(envelope.clone()));
            }
        }
        let node = self.nodes.get_mut(&id).unwrap();
        node.log_queue.extend(effects.log);
        let busy = node.log_busy;
        if !busy {
            self.begin_log(id);
        }
        if let Some((meta, state)) = effects.snapshot {
            let pages: Vec<Bytes> = state.pages().collect();
            let mut meta = meta;
            meta.pages = u32::try_from(pages.len()).unwrap();
            meta.bytes = pages.iter().map(|p| p.len() as u64).sum();
            meta.digest = state.digest();
            let delay = self.draw.below(300) * MS;
            self.at(delay, What::Saved(id, run, Box::new(meta), pages));
        }
        if let Some((from, meta)) = effects.fetch {
            let delay = self.draw.below(200) * MS;
            self.at(delay, What::Fetched(id, run, from, Box::new(meta)));
        }
        let node = self.nodes.get_mut(&id).unwrap();
        let local = self.now - node.started + node.clock_offset;
        let delay = effects.wake_at.0.saturating_sub(local).max(1);
        if node.wake_at <= self.now || node.wake_at > self.now + delay {
            node.wake_at = self.now + delay;
            self.at(delay, What::Wake(id, run));
        }
        for (token, answer) in effects.answers {
            self.on_answer(id, run, token, answer);
        }
    }

    fn begin_log(&mut self, id: ReplicaId) {
        let slow = self.draw.percent(5);
        let delay = self.draw.below(if slow { 300 } else { 2 }) * MS + MS / 10;
        let node = self.nodes.get_mut(&id).unwrap();
        if node.log_queue.is_empty() {
            node.log_busy = false;
        } else {
            node.log_busy = true;
            let run = node.run;
            self.at(delay, What::LogDone(id, run));
        }
    }

    fn on_answer(&mut self, id: ReplicaId, run: u64, token: Token, answer: Answer) {
        let Some(asked) = self.asked.remove(&(id, run, token)) else { return };
        match answer {
            Answer::Write(Outcome::Applied { reply, .. }) => {
                let (write, number) = asked.write.unwrap();
                let commit = matches!(write.command, Command::Journal(JournalCommand::AppendEntry(_)));
                if let (Reply::Recorded { sequence }, true) = (reply, commit) {
                    let old = self.acknowledged.insert(number, sequence);
                    assert!(old.is_none_or(|old| old == sequence), "write {number} acknowledged twice differently");
                    self.highest = self.highest.max(sequence);
                }
            }
            Answer::Write(Outcome::Refused(_)) => self.refused += 1,
            Answer::Write(Outcome::NotApplied(why)) => {
                self.not_applied += 1;
                let (_, number) = asked.write.unwrap();
                assert!(!self.acknowledged.contains_key(&number));
                assert!(!matches!(why, NotApplied::TooLarge { .. }));
                // Of a repeated request it says nothing about the attempts before.
                if !self.doubted.contains(&number) {
                    self.never.insert(number);
                }
            }
            Answer::Write(Outcome::Unknown(_)) => {
                self.unknown += 1;
                let (write, number) = asked.write.unwrap();
                self.doubted.insert(number);
                // Retried elsewhere under the same id.
                self.send_write(write, number);
            }
            Answer::Read(Ok(())) => {
                self.reads += 1;
                let sequence = self.nodes[&id].replica.as_ref().unwrap().state().sequence();
                assert!(sequence >= asked.floor, "a stale read: {sequence} after {} was acknowledged", asked.floor);
            }
            Answer::Read(Err(_)) | Answer::Admin(_) => {}
        }
    }

    fn random_up(&mut self) -> Option<ReplicaId> {
        let up: Vec<ReplicaId> = self.nodes.iter().filter(|(_, n)| n.replica.is_some()).map(|(id, _)| *id).collect();
        if up.is_empty() {
            return None;
        }
        let at = self.draw.below(up.len() as u64);
        Some(up[usize::try_from(at).unwrap()])
    }

    fn send_write(&mut self, write: WriteRequest, number: u64) {
        let Some(id) = self.random_up() else { return };
        self.next_token += 1;
        let token = self.next_token;
        let run = self.nodes[&id].run;
        self.asked.insert((id, run, token), Asked { floor: Seq(0), write: Some((write.clone(), number)) });
        self.step(id, vec![Input::Write { token, write, forward: true }]);
    }

    fn one_shot(&mut self) -> Option<RequestId> {
        let id = self.random_up()?;
        let drawn_at = self.nodes[&id].replica.as_ref()?.state().age();
        Some(RequestId::OneShot {
            id: OneShotId(u128::from(self.draw.next()) << 64 | u128::from(self.draw.next())),
            drawn_at,
        })
    }

    fn write(&mut self, command: Command) {
        let Some(request) = self.one_shot() else { return };
        self.next_write += 1;
        let number = self.next_write;
        self.send_write(WriteRequest { request, author: author(), command }, number);
    }

    pub(crate) fn policy(&mut self) {
        let command = JournalCommand::SetPolicy { vcluster: VClusterId::new("ml").unwrap(), policy: Policy::default() };
        self.write(Command::Journal(command));
    }

    pub(crate) fn commit(&mut self) {
        let number = self.next_write + 1;
        let ttl = self.draw.percent(5).then_some(900);
        let draft = EntryDraft {
            entry_type: EntryType::Commit,
            scope: Scope::Global,
            parent: Seq(0),
            based_on: None,
            changes: vec![Change {
                key: Key::new(&format!("kernel:w{number}")).unwrap(),
                previous: Setting::Unset,
                next: Setting::Value(format!("{number}").as_str().into()),
            }],
            ttl_seconds: ttl,
            emergency_reason: None,
            message: format!("write {number}").as_str().into(),
            occurred_at: None,
        };
        self.write(Command::Journal(JournalCommand::AppendEntry(draft)));
    }

    pub(crate) fn read(&mut self) {
        let Some(id) = self.random_up() else { return };
        self.next_token += 1;
        let token = self.next_token;
        let run = self.nodes[&id].run;
        self.asked.insert((id, run, token), Asked { floor: self.highest, write: None });
        self.step(id, vec![Input::Read { token, freshness: Freshness::Linearizable }]);
    }

    /// Admits a replica and starts it with an empty disk.
    pub(crate) fn join(&mut self, number: u64, wish: MemberWish) {
        self.write(Command::Members(MemberCommand::Admit(admission(number, wish))));
    }

    /// The replicas that were admitted but have not been started.
    fn start_admitted(&mut self) {
        let Some(id) = self.random_up() else { return };
        let admitted: Vec<ReplicaId> =
            self.nodes[&id].replica.as_ref().unwrap().state().members.all().map(|m| m.id).collect();
        for id in admitted {
            if !self.nodes.contains_key(&id) {
                self.add_node(id, Disk::default());
            }
        }
    }

    fn act(&mut self) {
        self.start_admitted();
        match self.draw.below(100) {
            0..70 => self.commit(),
            70..95 => self.read(),
            95 => {
                if let Some(id) = self.random_up() {
                    self.next_token += 1;
                    let token = self.next_token;
                    let to = ReplicaId(self.draw.below(4));
                    let request = muster_core::request::AdminRequest::Transfer { to };
                    self.step(id, vec![Input::Admin { token, request }]);
                }
            }
            _ => {}
        }
        if self.faults.members && self.draw.percent(2) {
            let id = ReplicaId(1 + self.draw.below(self.nodes.len() as u64));
            let command = match self.draw.below(3) {
                0 => MemberCommand::Demote(id),
                1 => MemberCommand::Promote(id),
                _ => MemberCommand::Demote(id),
            };
            self.write(Command::Members(command));
        }
        if self.draw.percent(self.faults.crashes) {
            if let Some(id) = self.random_up() {
                self.crash(id);
            }
        }
        if self.draw.percent(self.faults.cuts) {
            let ids: Vec<ReplicaId> = self.nodes.keys().copied().collect();
            for a in &ids {
                for b in &ids {
                    if self.draw.percent(40) {
                        self.cut.insert((*a, *b));
                    }
                }
            }
            let delay = self.draw.below(3_000) * MS;
            self.at(delay, What::Heal);
        }
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Deliver(envelope) => {
                if self.cut.contains(&(envelope.from, envelope.to)) {
                    return;
                }
                let to = envelope.to;
                if self.nodes.contains_key(&to) {
                    self.step(to, vec![Input::Peer(envelope)]);
                }
            }
            What::LogDone(id, run) => {
                if self.nodes[&id].run != run {
                    return;
                }
                let task = self.nodes.get_mut(&id).unwrap().log_queue.pop_front().unwrap();
                let done = self.persist(id, task);
                self.begin_log(id);
                if let Some(done) = done {
                    self.step(id, vec![Input::Persisted(done)]);
                }
            }
            What::Saved(id, run, meta, pages) => {
                let node = self.nodes.get_mut(&id).unwrap();
                if node.run != run {
                    return;
                }
                if node.disk.snapshots.last().is_none_or(|(newest, _)| newest.index < meta.index) {
                    node.disk.snapshots.push(((*meta).clone(), pages));
                    if node.disk.snapshots.len() > 3 {
                        node.disk.snapshots.remove(0);
                    }
                    node.disk.history = node.history.range(..=meta.sequence).map(|(s, b)| (*s, b.clone())).collect();
                }
                let oldest = node.disk.snapshots[0].0.index;
                self.step(id, vec![Input::SnapshotSaved { meta: *meta, oldest }]);
            }
            What::Fetched(id, run, from, meta) => {
                if self.nodes[&id].run != run {
                    return;
                }
                let found = self.nodes[&from].disk.snapshots.iter().find(|(kept, _)| *kept == *meta).cloned();
                let input = match found {
                    Some((meta, pages)) => {
                        let state = State::from_pages(pages.iter().cloned()).unwrap();
                        self.staged.insert((meta.index, meta.digest), pages);
                        let open = meta.history.last().unwrap();
                        let open = self
                            .history
                            .range(open.first..)
                            .take_while(|(s, _)| **s <= open.last)
                            .map(|(_, b)| b.clone())
                            .collect();
                        Input::SnapshotStaged(Box::new(Staged { from, meta, state, open }))
                    }
                    None => Input::SnapshotLost { index: meta.index },
                };
                self.step(id, vec![input, Input::HistoryComplete(true)]);
            }
            What::Wake(id, run) => {
                if self.nodes[&id].run == run {
                    self.nodes.get_mut(&id).unwrap().wake_at = 0;
                    self.step(id, vec![Input::Wake]);
                }
            }
            What::Restart(id) => {
                if self.nodes[&id].replica.is_none() {
                    self.start(id);
                }
            }
            What::Heal => self.cut.clear(),
            What::Act => {
                self.act();
                let delay = self.draw.below(60) * MS;
                self.at(delay, What::Act);
            }
        }
    }

    pub(crate) fn run_until(&mut self, ms: u64) {
        while let Some(next) = self.events.peek() {
            if next.0 > ms * MS {
                break;
            }
            let At(time, _, what) = self.events.pop().unwrap();
            self.now = time;
            self.happen(what);
        }
        self.now = ms * MS;
    }

    pub(crate) fn begin_acting(&mut self) {
        self.at(0, What::Act);
    }

    /// What became of everything, in one line.
    pub(crate) fn story(&self) -> String {
        let last = self.nodes.values().filter_map(|n| n.replica.as_ref()).map(|r| r.status()).max_by_key(|s| s.applied);
        let last = last.expect("somebody is up");
        format!(
            "{} asked, {} acknowledged, {} unknown, {} refused, {} not applied, {} reads, {} terms led, applied {}, snapshot {}, first {}",
            self.next_write,
            self.acknowledged.len(),
            self.unknown,
            self.refused,
            self.not_applied,
            self.reads,
            self.leaders.len(),
            last.applied,
            last.snapshot,
            last.first,
        )
    }

    /// Ends all faults, and expects that the cluster is whole again.
    pub(crate) fn heal(&mut self) {
        self.faults = Faults { loss: 0, double: 0, crashes: 0, cuts: 0, members: false };
        self.cut.clear();
        let end = self.now / MS + 8_000;
        self.run_until(end);
        // Nobody asks any more.
        self.events = std::mem::take(&mut self.events).into_iter().filter(|at| at.2 != What::Act).collect();
        let end = self.now / MS + 12_000;
        self.run_until(end);
        let states: Vec<_> = self
            .nodes
            .iter()
            .map(|(id, node)| {
                let replica = node.replica.as_ref().unwrap_or_else(|| panic!("replica {id} is down after healing"));
                (*id, replica.status(), replica.state().digest(), replica.state().sequence())
            })
            .collect();
        let leaders: Vec<_> = states.iter().filter(|s| s.1.role == muster_core::request::RaftRole::Leader).collect();
        assert_eq!(
            leaders.len(),
            1,
            "exactly one leads after healing: {:?}",
            states.iter().map(|s| (s.0, s.1.role)).collect::<Vec<_>>()
        );
        let (_, status, digest, sequence) = leaders[0].clone();
        let everybody: Vec<_> = self.nodes.keys().copied().collect();
        assert_eq!(status.configuration.everybody(), everybody, "who was admitted takes part");
        assert!(!status.configuration.is_joint(), "a joint configuration was never left");
        for (id, other, other_digest, _) in &states {
            if status.configuration.everybody().contains(id) {
                assert_eq!(other.applied, status.applied, "replica {id} has not caught up: {other:?}");
                assert_eq!(*other_digest, digest, "replica {id} differs");
            }
        }
        assert!(self.asked.is_empty(), "{} requests were never answered", self.asked.len());
        // Every acknowledged write is there once, at its sequence; what was certainly not applied is not there.
        let mut seen: BTreeMap<u64, Seq> = BTreeMap::new();
        for (at, bytes) in self.history.range(..=sequence) {
            let record = codec::decode_record(bytes).unwrap();
            assert_eq!(record.sequence(), *at);
            if let Record::Entry(entry) = record {
                if entry.entry_type == EntryType::Commit {
                    let number = entry.message.strip_prefix("write ").unwrap().parse().unwrap();
                    let twice = seen.insert(number, *at);
                    assert!(twice.is_none(), "write {number} is recorded twice, at {twice:?} and {at}");
                }
            }
        }
        for number in &self.never {
            assert!(!seen.contains_key(number), "write {number} was told not applied, and is recorded");
        }
        for (number, at) in &self.acknowledged {
            assert_eq!(seen.get(number), Some(at), "acknowledged write {number} is lost or elsewhere");
        }
    }
}
