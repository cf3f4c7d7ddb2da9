//! A stage for short stories about replicas: every message, write and tick happens when the story says so.
//!
//! Time stands still unless told. A disk holds what was handed to it and called durable; a crash loses the rest.

use bytes::Bytes;
use muster_core::codec;
use muster_core::ids::{
    ClusterId, GroupId, Incarnation, Index, OneShotId, ReplicaId, ReplicaName, Seq, Term, Time, VClusterId, WallTime,
};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::entry::{Author, Principal, Role};
use muster_core::journal::policy::Policy;
use muster_core::log::{Configuration, HardState, LogEntry, LogRecord};
use muster_core::members::{Admission, Member, MemberCommand, MemberWish};
use muster_core::peer::{Envelope, PeerMessage, RaftMessage, RaftMessageKind};
use muster_core::replica::{Answer, Input, Limits, LogTask, Replica, Settings, Staged, Timing, Token};
use muster_core::request::{Command, Outcome, RequestId, WriteRequest};
use muster_core::state::{Proposal, State};
use muster_core::storage::{Identity, Recovered, SnapshotMeta};
use std::collections::BTreeMap;

pub(crate) const MS: u64 = 1_000_000;

#[derive(Default, Clone)]
pub(crate) struct Disk {
    pub(crate) log: Vec<LogRecord>,
    pub(crate) snapshots: Vec<(SnapshotMeta, Vec<Bytes>)>,
}

pub(crate) struct Player {
    pub(crate) replica: Option<Replica>,
    pub(crate) disk: Disk,
    /// Handed to storage, not durable yet.
    pub(crate) tasks: Vec<LogTask>,
    /// Snapshots asked for, not saved yet.
    pub(crate) saves: Vec<(SnapshotMeta, State)>,
    pub(crate) fetches: Vec<(ReplicaId, SnapshotMeta)>,
    pub(crate) answers: Vec<(Token, Answer)>,
    pub(crate) told: Vec<Member>,
    pub(crate) runs: u64,
}

pub(crate) struct Stage {
    pub(crate) now: u64,
    pub(crate) players: BTreeMap<u64, Player>,
    pub(crate) mail: Vec<Envelope>,
    /// Everything that was ever sent, in order.
    pub(crate) sent: Vec<Envelope>,
    pub(crate) limits: Limits,
    /// Whether snapshots are fetched only when the story says so.
    pub(crate) slow_fetches: bool,
    first: (SnapshotMeta, Vec<Bytes>),
    drawn: u128,
}

pub(crate) fn incarnation(id: u64) -> Incarnation {
    Incarnation(u128::from(id) * 1000)
}

pub(crate) fn admission(id: u64, wish: MemberWish) -> Admission {
    Admission {
        name: ReplicaName::new(&format!("r{id}")).unwrap(),
        incarnation: incarnation(id),
        peer_address: format!("h{id}:9444").as_str().into(),
        client_address: format!("h{id}:9443").as_str().into(),
        wish,
        feature_level: 1,
    }
}

pub(crate) fn author() -> Author {
    Author { principal: Principal::Claimed { name: "op".into() }, role: Role::Admin }
}

pub(crate) fn raft_message(envelope: &Envelope) -> Option<&RaftMessage> {
    match &envelope.message {
        PeerMessage::Raft(message) => Some(message),
        _ => None,
    }
}

pub(crate) fn kind(envelope: &Envelope) -> Option<RaftMessageKind> {
    raft_message(envelope).map(|message| message.kind)
}

impl Stage {
    /// A cluster whose first snapshot names these voters and learners; all are members and up.
    pub(crate) fn new(voters: &[u64], learners: &[u64]) -> Self {
        let mut everybody: Vec<u64> = voters.iter().chain(learners).copied().collect();
        everybody.sort_unstable();
        let first = admission(1, MemberWish::Learner);
        let mut state = State::new(
            ClusterId(7),
            Member {
                id: ReplicaId(1),
                name: first.name,
                incarnation: first.incarnation,
                peer_address: first.peer_address,
                client_address: first.client_address,
                wish: MemberWish::Learner,
                feature_level: 1,
            },
        );
        for id in 2..=everybody.last().copied().unwrap() {
            let write = WriteRequest {
                request: RequestId::OneShot { id: OneShotId(u128::from(id)), drawn_at: state.age() },
                author: author(),
                command: Command::Members(MemberCommand::Admit(admission(id, MemberWish::Learner))),
            };
            state.apply(Index(1), Proposal { write, recorded_at: WallTime(0), elapsed: 0 });
        }
        let ids = |list: &[u64]| list.iter().copied().map(ReplicaId).collect::<Vec<_>>();
        let pages: Vec<Bytes> = state.pages().collect();
        let configuration = Configuration { voters: ids(voters), learners: ids(learners), ..Configuration::default() };
        let meta = SnapshotMeta { digest: state.digest(), ..state.snapshot_meta(Index(1), Term(1), configuration) };
        let mut stage = Self {
            now: 0,
            players: BTreeMap::new(),
            mail: Vec::new(),
            sent: Vec::new(),
            limits: Limits::default(),
            slow_fetches: false,
            first: (meta, pages),
            drawn: 1_000,
        };
        for id in everybody {
            let hard_state = HardState { term: Term(1), vote: ReplicaId(0), commit: Index(1) };
            let log = vec![LogRecord::Reset { index: Index(1), term: Term(1) }, LogRecord::HardState(hard_state)];
            let disk = Disk { log, snapshots: vec![stage.first.clone()] };
            stage.add(id, disk);
        }
        stage
    }

    pub(crate) fn add(&mut self, id: u64, disk: Disk) {
        let player = Player {
            replica: None,
            disk,
            tasks: Vec::new(),
            saves: Vec::new(),
            fetches: Vec::new(),
            answers: Vec::new(),
            told: Vec::new(),
            runs: 0,
        };
        self.players.insert(id, player);
        self.start(id);
    }

    fn recovered(disk: &Disk) -> Recovered {
        let mut hard_state = HardState::default();
        let mut start = (Index(0), Term(0));
        let mut entries: Vec<LogEntry> = Vec::new();
        for record in &disk.log {
            match record {
                LogRecord::HardState(state) => hard_state = *state,
                LogRecord::Reset { index, term } => {
                    entries.clear();
                    start = (*index, *term);
                }
                LogRecord::Entries(more) => {
                    for entry in more {
                        entries.truncate(usize::try_from(entry.index.0 - start.0.0 - 1).unwrap());
                        entries.push(entry.clone());
                    }
                }
            }
        }
        let snapshot = disk.snapshots.last().map(|(meta, _)| meta.clone());
        if let Some(meta) = &snapshot {
            let there = start == (meta.index, meta.term)
                || entries.iter().any(|e| e.index == meta.index && e.term == meta.term);
            if !there {
                entries.clear();
                start = (meta.index, meta.term);
            }
        }
        Recovered { hard_state, snapshot, entries, log_start: start }
    }

    pub(crate) fn start(&mut self, id: u64) {
        let limits = self.limits;
        let now = Time(self.now * MS);
        let player = self.players.get_mut(&id).unwrap();
        player.runs += 1;
        let state = match player.disk.snapshots.last() {
            Some((_, pages)) => State::from_pages(pages.iter().cloned()).unwrap(),
            None => State::empty(ClusterId(7)),
        };
        let identity = Identity {
            cluster: ClusterId(7),
            group: GroupId(1),
            replica: ReplicaId(id),
            incarnation: incarnation(id),
            name: ReplicaName::new(&format!("r{id}")).unwrap(),
        };
        let timing = Timing { lease_drift_ppm: Some(1_000), ..Timing::LAN };
        let settings = Settings { timing, limits, seed: id * 1_000 + player.runs };
        let recovered = Self::recovered(&player.disk);
        player.replica = Some(Replica::new(identity, settings, recovered, state, now));
    }

    /// What was handed over and is not durable is lost.
    pub(crate) fn crash(&mut self, id: u64) {
        let player = self.players.get_mut(&id).unwrap();
        player.replica = None;
        player.tasks.clear();
        player.saves.clear();
        player.fetches.clear();
        player.answers.clear();
    }

    pub(crate) fn replica(&self, id: u64) -> &Replica {
        self.players[&id].replica.as_ref().unwrap()
    }

    pub(crate) fn step(&mut self, id: u64, inputs: Vec<Input>) {
        let now = Time(self.now * MS);
        let Some(player) = self.players.get_mut(&id) else { return };
        let Some(replica) = player.replica.as_mut() else { return };
        for effects in [replica.step(now, WallTime(self.now), inputs), replica.settle()] {
            player.tasks.extend(effects.log);
            player.saves.extend(effects.snapshot);
            player.fetches.extend(effects.fetch);
            player.answers.extend(effects.answers);
            if let Some(members) = effects.members {
                player.told = members;
            }
            self.sent.extend(effects.sends.iter().cloned());
            for envelope in effects.sends {
                self.mail.push(codec::decode_envelope(&codec::encode_envelope(&envelope)).unwrap());
            }
        }
    }

    /// Everything handed to the log of `id` becomes durable. Gives whether there was anything.
    pub(crate) fn persist(&mut self, id: u64) -> bool {
        let player = self.players.get_mut(&id).unwrap();
        let tasks = std::mem::take(&mut player.tasks);
        let mut last = None;
        let mut staged = None;
        for task in tasks {
            match task {
                LogTask::Write(write) => {
                    player.disk.log.extend(write.records);
                    last = Some(write.id);
                }
                LogTask::Install { meta, write, .. } => {
                    staged = Some(meta);
                    player.disk.log.extend(write.records);
                    last = Some(write.id);
                }
                LogTask::Purge(_) => {}
            }
        }
        if let Some(meta) = staged {
            let pages = self.pages(&meta);
            self.players.get_mut(&id).unwrap().disk.snapshots = vec![(meta, pages)];
        }
        if let Some(last) = last {
            self.step(id, vec![Input::Persisted(last)]);
        }
        last.is_some()
    }

    fn pages(&self, meta: &SnapshotMeta) -> Vec<Bytes> {
        let mut all = self.players.values().flat_map(|player| &player.disk.snapshots);
        all.find(|(kept, _)| kept == meta).unwrap_or_else(|| panic!("nobody keeps {meta:?}")).1.clone()
    }

    /// Every snapshot that `id` was asked to take becomes durable.
    pub(crate) fn save(&mut self, id: u64) {
        let saves = std::mem::take(&mut self.players.get_mut(&id).unwrap().saves);
        for (mut meta, state) in saves {
            let pages: Vec<Bytes> = state.pages().collect();
            meta.digest = state.digest();
            let player = self.players.get_mut(&id).unwrap();
            player.disk.snapshots.push((meta.clone(), pages));
            let oldest = player.disk.snapshots[0].0.index;
            self.step(id, vec![Input::SnapshotSaved { meta, oldest }]);
        }
    }

    /// Every snapshot that `id` was asked to fetch is here.
    pub(crate) fn fetch(&mut self, id: u64) {
        let fetches = std::mem::take(&mut self.players.get_mut(&id).unwrap().fetches);
        for (from, meta) in fetches {
            let state = State::from_pages(self.pages(&meta)).unwrap();
            self.step(id, vec![Input::SnapshotStaged(Box::new(Staged { from, meta, state, open: Vec::new() }))]);
        }
    }

    /// Delivers what is in the mail now and passes; drops what does not.
    pub(crate) fn deliver(&mut self, passes: impl Fn(&Envelope) -> bool) {
        for envelope in std::mem::take(&mut self.mail) {
            if passes(&envelope) {
                self.step(envelope.to.0, vec![Input::Peer(envelope)]);
            }
        }
    }

    /// Lets time pass in ticks; disks and saves finish at once and mail that passes arrives within the tick.
    pub(crate) fn play(&mut self, ms: u64, passes: impl Fn(&Envelope) -> bool) {
        let ids: Vec<u64> = self.players.keys().copied().collect();
        let end = self.now + ms;
        while self.now < end {
            self.now += 10;
            for id in &ids {
                self.step(*id, vec![Input::Wake]);
            }
            for _ in 0..6 {
                for id in &ids {
                    self.persist(*id);
                    self.save(*id);
                    if !self.slow_fetches {
                        self.fetch(*id);
                    }
                }
                self.deliver(&passes);
            }
        }
    }

    /// Lets time pass for one replica only, whose disk is fast; nobody hears it.
    pub(crate) fn alone(&mut self, id: u64, ms: u64) {
        let end = self.now + ms;
        while self.now < end {
            self.now += 10;
            self.step(id, vec![Input::Wake]);
            self.persist(id);
        }
    }

    pub(crate) fn leader(&self) -> Option<u64> {
        let leads = |player: &Player| player.replica.as_ref().is_some_and(Replica::is_leader);
        let leaders = self.players.iter().filter(|(_, player)| leads(player));
        leaders.max_by_key(|(id, _)| self.replica(**id).status().term).map(|(id, _)| *id)
    }

    /// Plays until `id` leads and everybody knows.
    pub(crate) fn make_leader(&mut self, id: u64) {
        for _ in 0..20 {
            self.play(1_000, |_| true);
            match self.leader() {
                Some(leader) if leader == id => return,
                Some(leader) => {
                    let request = muster_core::request::AdminRequest::Transfer { to: ReplicaId(id) };
                    self.step(leader, vec![Input::Admin { token: 999_999, request }]);
                }
                None => {}
            }
        }
        panic!("{id} does not become leader");
    }

    /// A write that anybody accepts, each time another.
    pub(crate) fn some_write(&mut self, at: u64) -> WriteRequest {
        self.drawn += 1;
        let vcluster = VClusterId::new(&format!("v{}", self.drawn)).unwrap();
        self.request(at, Command::Journal(JournalCommand::SetPolicy { vcluster, policy: Policy::default() }))
    }

    pub(crate) fn request(&mut self, at: u64, command: Command) -> WriteRequest {
        self.drawn += 1;
        let drawn_at = self.replica(at).state().age();
        WriteRequest { request: RequestId::OneShot { id: OneShotId(self.drawn), drawn_at }, author: author(), command }
    }

    pub(crate) fn write(&mut self, at: u64, token: Token, write: WriteRequest, forward: bool) {
        self.step(at, vec![Input::Write { token, write, forward }]);
    }

    pub(crate) fn outcome(&self, at: u64, token: Token) -> Option<Outcome> {
        let mut answers = self.players[&at].answers.iter().filter(|(t, _)| *t == token);
        let answer = answers.next().map(|(_, answer)| answer.clone());
        assert!(answers.next().is_none(), "request {token} was answered twice");
        match answer {
            Some(Answer::Write(outcome)) => Some(outcome),
            Some(other) => panic!("not a write's answer: {other:?}"),
            None => None,
        }
    }

    pub(crate) fn sequence(&self, id: u64) -> Seq {
        self.replica(id).state().sequence()
    }
}
