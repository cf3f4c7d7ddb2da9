//! A small world for replicas: messages that get lost, doubled and delayed, disks that lose what was not synced, clocks that
//! jump. Everything is drawn from one seed. It checks the replica's decisions; devices and drivers have the simulator.

use bytes::Bytes;
use muster_core::codec;
use muster_core::ids::{
    Age, ClusterId, Digest, GroupId, Incarnation, Index, OneShotId, ReplicaId, ReplicaName, Seq, SessionId, Term, Time,
    VClusterId, WallTime,
};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::entry::{Author, Change, EntryDraft, EntryType, Principal, Record, Role};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::policy::Policy;
use muster_core::log::{Configuration, HardState, LogEntry, LogRecord};
use muster_core::members::{Admission, Member, MemberCommand, MemberWish};
use muster_core::peer::{Envelope, PeerMessage};
use muster_core::replica::{Answer, Effects, Input, Limits, LogTask, Replica, Settings, Staged, Timing, Token};
use muster_core::request::{AdminRequest, Command, Freshness, NotApplied, Outcome, Reply, RequestId, WriteRequest};
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
    /// What happened while it was paused or about to be told several things at once.
    inbox: Vec<Input>,
    paused_until: u64,
    /// When it last went on after a pause.
    resumed: u64,
    stopping: bool,
    /// The log as handed out, and how far it was compared with what others committed.
    log: BTreeMap<Index, (Term, Digest)>,
    compared: Index,
    view: u64,
    /// The last hard state that reached the disk.
    durable: HardState,
}

#[derive(PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "events are moved once")]
enum What {
    Deliver(Envelope),
    LogDone(ReplicaId, u64),
    Saved(ReplicaId, u64, Box<SnapshotMeta>, Vec<Bytes>),
    Fetched(ReplicaId, u64, ReplicaId, Box<SnapshotMeta>),
    Wake(ReplicaId, u64),
    Flush(ReplicaId, u64),
    Restart(ReplicaId),
    Stopped(ReplicaId, u64),
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
    /// Pauses, stops, replayed and broken messages.
    pub(crate) oddities: u64,
}

struct Asked {
    at: u64,
    session: Option<u64>,
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
    committed: BTreeMap<Index, (Term, Digest)>,
    /// Old messages, to be heard again.
    old: Vec<Envelope>,
    session: Option<ClientSession>,
    next_joiner: u64,
    retrying: bool,
    pub(crate) stops: u64,
    pub(crate) replayed: u64,
}

/// A client with several numbered requests on their way.
struct ClientSession {
    id: SessionId,
    next: u64,
    open: BTreeSet<u64>,
}

const MS: u64 = 1_000_000;

fn name(id: u64) -> ReplicaName {
    ReplicaName::new(&format!("r{id}")).unwrap()
}

fn fingerprint(entry: &LogEntry) -> (Term, Digest) {
    (entry.term, Digest::of(&[&entry.data[..], &entry.context[..]].concat()))
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

/// What both halves of a step give.
fn whole(step: Effects, mut settled: Effects) -> Effects {
    let Effects { log, sends, finished, answers, published, snapshot, fetch, look_for_history, members, wake_at: _ } =
        step;
    settled.log.splice(0..0, log);
    settled.sends.splice(0..0, sends);
    settled.finished.splice(0..0, finished);
    settled.answers.splice(0..0, answers);
    settled.published = settled.published.or(published);
    settled.snapshot = settled.snapshot.or(snapshot);
    settled.fetch = settled.fetch.or(fetch);
    settled.look_for_history = settled.look_for_history.or(look_for_history);
    settled.members = settled.members.or(members);
    settled
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
        let configuration = Configuration { voters: vec![ReplicaId(1)], ..Configuration::default() };
        let meta = SnapshotMeta { digest: state.digest(), ..state.snapshot_meta(Index(1), Term(1), configuration) };
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
            committed: BTreeMap::new(),
            old: Vec::new(),
            session: None,
            next_joiner: 5,
            retrying: true,
            stops: 0,
            replayed: 0,
        };
        let hard_state = HardState { term: Term(1), vote: ReplicaId(0), commit: Index(1) };
        let log = vec![LogRecord::Reset { index: Index(1), term: Term(1) }, LogRecord::HardState(hard_state)];
        let disk = Disk { log, snapshots: vec![(meta, pages)], ..Disk::default() };
        world.add_node(ReplicaId(1), Incarnation(1000), disk);
        world
    }

    fn add_node(&mut self, id: ReplicaId, incarnation: Incarnation, disk: Disk) {
        let identity =
            Identity { cluster: self.cluster, group: GroupId(1), replica: id, incarnation, name: name(id.0) };
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
            inbox: Vec::new(),
            paused_until: 0,
            resumed: 0,
            stopping: false,
            log: BTreeMap::new(),
            compared: Index(0),
            view: 0,
            durable: HardState::default(),
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
        node.inbox.clear();
        node.paused_until = 0;
        node.stopping = false;
        node.view = 0;
        node.durable = hard_state;
        node.log = entries.iter().map(|entry| (entry.index, fingerprint(entry))).collect();
        node.compared = snapshot.as_ref().map_or(Index(0), |meta| meta.index);
        let recovered = Recovered { hard_state, snapshot, entries, log_start: start };
        let settings = Settings { timing: Timing::LAN, limits, seed };
        let local = Time(offset);
        let replica = Replica::new(node.identity.clone(), settings, recovered, state, local);
        node.replica = Some(replica);
        let run = node.run;
        self.step(id, vec![Input::HistoryComplete { after: Index(u64::MAX), complete: true }]);
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

    /// What a disk holds never takes a promise back.
    fn check_durable(&mut self, id: ReplicaId, records: &[LogRecord]) {
        let node = self.nodes.get_mut(&id).unwrap();
        for record in records {
            let LogRecord::HardState(next) = record else { continue };
            let before = node.durable;
            assert!(next.term >= before.term, "the term of {id} went back: {before:?} to {next:?}");
            assert!(next.commit >= before.commit, "the commit index of {id} went back: {before:?} to {next:?}");
            let kept = next.term > before.term || before.vote == ReplicaId(0) || next.vote == before.vote;
            assert!(kept, "{id} voted twice in a term: {before:?} and {next:?}");
            node.durable = *next;
        }
    }

    fn persist(&mut self, id: ReplicaId, task: LogTask) -> Option<muster_core::ids::WriteId> {
        if let LogTask::Write(write) | LogTask::Install { write, .. } = &task {
            self.check_durable(id, &write.records);
        }
        match task {
            LogTask::Write(write) => {
                let node = self.nodes.get_mut(&id).unwrap();
                node.disk.log.extend(write.records);
                Some(write.id)
            }
            LogTask::Install { meta, open, write, .. } => {
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
        if node.replica.is_none() {
            return;
        }
        // Nothing new: what waits is told now.
        let now = inputs.is_empty() || inputs.iter().any(|input| matches!(input, Input::Wake));
        node.inbox.extend(inputs);
        if node.paused_until > self.now {
            return;
        }
        let run = node.run;
        if !now && self.draw.percent(20) {
            // Several things at once, a little later.
            let delay = self.draw.below(2 * MS);
            return self.at(delay, What::Flush(id, run));
        }
        let node = self.nodes.get_mut(&id).unwrap();
        let replica = node.replica.as_mut().unwrap();
        let inputs = std::mem::take(&mut node.inbox);
        let local = Time(self.now - node.started + node.clock_offset);
        let wall = WallTime(1_700_000_000_000 + self.now / MS);
        let effects = whole(replica.step(local, wall, inputs), replica.settle());
        let status = replica.status();
        assert!(status.log_bytes <= self.limits.log_bytes_max + self.limits.append_bytes_max, "{id} holds too much");
        for task in &effects.log {
            let (LogTask::Write(write) | LogTask::Install { write, .. }) = task else { continue };
            for record in &write.records {
                match record {
                    LogRecord::HardState(_) => {}
                    LogRecord::Reset { index, .. } => {
                        node.log.clear();
                        node.compared = *index;
                    }
                    LogRecord::Entries(entries) => {
                        drop(node.log.split_off(&entries[0].index));
                        node.log.extend(entries.iter().map(|entry| (entry.index, fingerprint(entry))));
                    }
                }
            }
        }
        while node.compared < status.commit {
            let index = node.compared.next();
            let mine = node.log[&index];
            let first = *self.committed.entry(index).or_insert(mine);
            assert_eq!(mine, first, "{id} has something else committed at {index}");
            node.compared = index;
        }
        if let Some(version) = effects.published {
            assert!(version > node.view, "views go back");
            node.view = version;
        }
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
            if self.faults.oddities > 0 && self.draw.percent(2) {
                if self.old.len() < 300 {
                    self.old.push(envelope.clone());
                } else {
                    let at = usize::try_from(self.draw.below(300)).unwrap();
                    self.old[at] = envelope.clone();
                }
            }
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
        let Some(asked) = self.asked.remove(&(id, run, token)) else {
            panic!("{id} answers {token}, which nobody waits for: {answer:?}");
        };
        if self.nodes[&id].resumed < asked.at && !matches!(answer, Answer::Admin(_)) {
            let took = (self.now - asked.at) / MS;
            assert!(took <= Timing::LAN.request_ms + 100, "{id} took {took} ms to answer {answer:?}");
        }
        if let (Some(number), Answer::Write(outcome)) = (asked.session, &answer)
            && !matches!(outcome, Outcome::Unknown(_))
            && let Some(session) = &mut self.session
        {
            session.open.remove(&number);
        }
        match answer {
            Answer::Write(Outcome::Applied { reply, .. }) => {
                let (write, number) = asked.write.unwrap();
                if let Reply::Session { session } = &reply {
                    self.session = Some(ClientSession { id: *session, next: 1, open: BTreeSet::new() });
                }
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
                if self.retrying {
                    self.send_write(write, number, asked.session, true);
                }
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

    fn send_write(&mut self, write: WriteRequest, number: u64, session: Option<u64>, forward: bool) {
        let Some(id) = self.random_up() else { return };
        self.next_token += 1;
        let token = self.next_token;
        let run = self.nodes[&id].run;
        self.asked.insert(
            (id, run, token),
            Asked { at: self.now, session, floor: Seq(0), write: Some((write.clone(), number)) },
        );
        self.step(id, vec![Input::Write { token, write, forward }]);
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
        let in_session = self.draw.percent(40);
        let (request, session) = match &mut self.session {
            Some(session) if in_session && session.open.len() < 100 => {
                let number = session.next;
                session.next += 1;
                let acknowledged = session.open.first().map_or(number - 1, |first| first - 1);
                session.open.insert(number);
                (RequestId::Session { session: session.id, number, acknowledged }, Some(number))
            }
            Some(_) | None => match self.one_shot() {
                Some(request) => (request, None),
                None => return,
            },
        };
        self.next_write += 1;
        let number = self.next_write;
        let forward = !self.draw.percent(20);
        self.send_write(WriteRequest { request, author: author(), command }, number, session, forward);
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
        self.asked.insert((id, run, token), Asked { at: self.now, session: None, floor: self.highest, write: None });
        self.step(id, vec![Input::Read { token, freshness: Freshness::Linearizable }]);
    }

    /// Admits a replica and starts it with an empty disk.
    pub(crate) fn join(&mut self, number: u64, wish: MemberWish) {
        self.write(Command::Members(MemberCommand::Admit(admission(number, wish))));
    }

    /// The replicas that were admitted but have not been started.
    fn start_admitted(&mut self) {
        let Some(id) = self.random_up() else { return };
        let admitted: Vec<(ReplicaId, Incarnation)> =
            self.nodes[&id].replica.as_ref().unwrap().state().members.all().map(|m| (m.id, m.incarnation)).collect();
        for (id, incarnation) in admitted {
            if !self.nodes.contains_key(&id) {
                self.add_node(id, incarnation, Disk::default());
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
                    let request = AdminRequest::Transfer { to };
                    let run = self.nodes[&id].run;
                    let asked = Asked { at: self.now, session: None, floor: Seq(0), write: None };
                    self.asked.insert((id, run, token), asked);
                    self.step(id, vec![Input::Admin { token, request }]);
                }
            }
            96 if self.draw.percent(30) => {
                if let Some(id) = self.random_up() {
                    self.next_token += 1;
                    let (token, run) = (self.next_token, self.nodes[&id].run);
                    let asked = Asked { at: self.now, session: None, floor: Seq(0), write: None };
                    self.asked.insert((id, run, token), asked);
                    self.step(id, vec![Input::Admin { token, request: AdminRequest::Snapshot }]);
                }
            }
            97 if self.session.is_none() => {
                if let Some(request) = self.one_shot() {
                    self.next_write += 1;
                    let number = self.next_write;
                    let write = WriteRequest { request, author: author(), command: Command::OpenSession };
                    self.send_write(write, number, None, true);
                }
            }
            _ => {}
        }
        if self.draw.percent(self.faults.oddities) {
            self.something_odd();
        }
        if self.faults.members && self.draw.percent(2) {
            let id = ReplicaId(1 + self.draw.below(self.nodes.len() as u64));
            let command = match self.draw.below(8) {
                0 | 1 => MemberCommand::Demote(id),
                2 | 3 => MemberCommand::Promote(id),
                4 => MemberCommand::Remove(id),
                5 => MemberCommand::Replace { old: id, new: ReplicaId(1 + self.draw.below(self.nodes.len() as u64)) },
                _ if self.next_joiner > 9 => MemberCommand::Demote(id),
                kind => {
                    let wish = if kind == 6 { MemberWish::Voter } else { MemberWish::Replacement { of: id } };
                    self.next_joiner += 1;
                    MemberCommand::Admit(admission(self.next_joiner - 1, wish))
                }
            };
            self.write(Command::Members(command));
        }
        if self.draw.percent(self.faults.crashes)
            && let Some(id) = self.random_up()
        {
            self.crash(id);
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

    fn something_odd(&mut self) {
        let Some(id) = self.random_up() else { return };
        match self.draw.below(5) {
            0 => {
                let until = self.now + self.draw.below(4_000) * MS;
                let node = self.nodes.get_mut(&id).unwrap();
                node.paused_until = until;
                node.resumed = until;
                let run = node.run;
                let delay = until - self.now;
                self.at(delay, What::Wake(id, run));
            }
            1 => {
                self.stops += 1;
                self.nodes.get_mut(&id).unwrap().stopping = true;
                let run = self.nodes[&id].run;
                self.step(id, vec![Input::Stop]);
                let delay = self.draw.below(2_000) * MS;
                self.at(delay, What::Stopped(id, run));
            }
            _ if self.old.is_empty() => {}
            2 | 3 => {
                for _ in 0..5 {
                    let at = usize::try_from(self.draw.below(self.old.len() as u64)).unwrap();
                    self.replayed += 1;
                    self.happen(What::Deliver(self.old[at].clone()));
                }
            }
            _ => {
                // What cannot be right is refused, whoever seems to say it.
                let at = usize::try_from(self.draw.below(self.old.len() as u64)).unwrap();
                let mut envelope = self.old[at].clone();
                let to = envelope.to;
                if self.nodes.get(&to).is_none_or(|node| node.replica.is_none()) {
                    return;
                }
                match (self.draw.below(3), &mut envelope.message) {
                    (0, _) => envelope.cluster = ClusterId(99),
                    (1, PeerMessage::Raft(message)) => message.term = Term(u64::MAX),
                    (_, PeerMessage::Raft(message)) => message.term = Term(0),
                    (_, _) => envelope.group = GroupId(2),
                }
                self.step(to, vec![Input::Peer(envelope)]);
            }
        }
    }

    /// Its driver ends it: whoever still waits is answered.
    fn stopped(&mut self, id: ReplicaId) {
        let node = self.nodes.get_mut(&id).unwrap();
        let run = node.run;
        let Some(replica) = node.replica.as_mut() else { return };
        let answers = replica.abandon();
        for (token, answer) in answers {
            self.on_answer(id, run, token, answer);
        }
        self.crash(id);
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Stopped(id, run) => {
                if self.nodes[&id].run == run {
                    self.stopped(id);
                }
            }
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
                self.step(id, vec![input, Input::HistoryComplete { after: Index(u64::MAX), complete: true }]);
            }
            What::Wake(id, run) => {
                if self.nodes[&id].run == run {
                    self.nodes.get_mut(&id).unwrap().wake_at = 0;
                    self.step(id, vec![Input::Wake]);
                }
            }
            What::Flush(id, run) => {
                if self.nodes[&id].run == run && !self.nodes[&id].inbox.is_empty() {
                    self.step(id, Vec::new());
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
        let last = self
            .nodes
            .values()
            .filter_map(|n| n.replica.as_ref())
            .map(muster_core::replica::Replica::status)
            .max_by_key(|s| s.applied);
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
        self.faults = Faults { loss: 0, double: 0, crashes: 0, cuts: 0, members: false, oddities: 0 };
        self.cut.clear();
        let end = self.now / MS + 8_000;
        self.run_until(end);
        // Nobody asks any more.
        self.retrying = false;
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
        let leader = self.nodes[&leaders[0].0].replica.as_ref().unwrap();
        let everybody: Vec<_> = leader.state().members.all().map(|member| member.id).collect();
        assert_eq!(status.configuration.everybody(), everybody, "who was admitted takes part");
        assert!(!status.configuration.is_joint(), "a joint configuration was never left");
        for (id, other, other_digest, _) in &states {
            if status.configuration.everybody().contains(id) {
                assert_eq!(
                    other.applied, status.applied,
                    "replica {id} has not caught up: {other:?}, leader {status:?}"
                );
                assert_eq!(*other_digest, digest, "replica {id} differs");
            }
        }
        let waiting: Vec<_> =
            self.asked.iter().map(|(key, a)| (key, a.at / MS, a.write.as_ref().map(|w| &w.0))).collect();
        assert!(waiting.is_empty(), "never answered at {}: {waiting:?}", self.now / MS);
        // Every acknowledged write is there once, at its sequence; what was certainly not applied is not there.
        let mut seen: BTreeMap<u64, Seq> = BTreeMap::new();
        for (at, bytes) in self.history.range(..=sequence) {
            let record = codec::decode_record(bytes).unwrap();
            assert_eq!(record.sequence(), *at);
            if let Record::Entry(entry) = record
                && entry.entry_type == EntryType::Commit
            {
                let number = entry.message.strip_prefix("write ").unwrap().parse().unwrap();
                let twice = seen.insert(number, *at);
                assert!(twice.is_none(), "write {number} is recorded twice, at {twice:?} and {at}");
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
