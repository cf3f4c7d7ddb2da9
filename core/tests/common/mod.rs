//! Random lives of a journal: steps that are likely to mean something, played against a real state.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this")]

use muster_core::codec;
use muster_core::ids::{
    ClusterId, Incarnation, Index, NodeId, OneShotId, ReplicaId, ReplicaName, Seq, SessionId, VClusterId, WallTime,
};
use muster_core::journal::command::{ConfigState, JournalCommand};
use muster_core::journal::entry::{
    Author, Change, EntryDraft, EntryType, OperationDraft, OperationKind, Principal, Record, Role,
};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::policy::Policy;
use muster_core::limits::FEATURE_LEVEL;
use muster_core::members::{Admission, Member, MemberCommand, MemberWish};
use muster_core::overlay;
use muster_core::request::{Command, Outcome, Reply, RequestId, WriteRequest};
use muster_core::state::{Finished, Proposal, State};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

pub fn vcluster(n: u8) -> VClusterId {
    VClusterId::new(["hpc-a", "hpc-b", "lab"][usize::from(n) % 3]).unwrap()
}

pub fn node(n: u8) -> NodeId {
    NodeId::new(&format!("n{}", n % 4)).unwrap()
}

pub fn key(n: u8) -> Key {
    let names = ["kernel:vm.swappiness", "files:/etc/motd", "mounts:/scratch", "services:slurmd", "gpu:mode"];
    Key::new(names[usize::from(n) % names.len()]).unwrap()
}

pub fn setting(n: u8) -> Setting {
    match n % 6 {
        0 => Setting::Unset,
        1 => Setting::Absent,
        n => Setting::Value(Arc::from(format!("value {n}\n\\"))),
    }
}

pub fn scope(n: u8) -> Scope {
    match n % 6 {
        0 => Scope::Global,
        1 | 2 => Scope::VCluster(vcluster(n)),
        n => Scope::Node(node(n)),
    }
}

pub fn scopes() -> Vec<Scope> {
    let vclusters = (0..3).map(|n| Scope::VCluster(vcluster(n)));
    [Scope::Global].into_iter().chain(vclusters).chain((0..4).map(|n| Scope::Node(node(n)))).collect()
}

pub fn alice() -> Author {
    Author { principal: Principal::Claimed { name: Arc::from("alice") }, role: Role::Admin }
}

pub fn first_member() -> Member {
    Member {
        id: ReplicaId(1),
        name: ReplicaName::new("r1").unwrap(),
        incarnation: Incarnation(1),
        peer_address: Arc::from("127.0.0.1:9444"),
        client_address: Arc::from("127.0.0.1:9443"),
        wish: MemberWish::Voter,
        feature_level: FEATURE_LEVEL,
    }
}

pub fn draft(entry_type: EntryType, scope: Scope, parent: Seq) -> EntryDraft {
    EntryDraft {
        entry_type,
        scope,
        parent,
        based_on: None,
        changes: Vec::new(),
        ttl_seconds: None,
        emergency_reason: None,
        message: Arc::from("because"),
        occurred_at: None,
    }
}

pub fn change(key: Key, next: Setting) -> Change {
    Change { key, previous: Setting::Unset, next }
}

/// One step of a life.
#[derive(Clone, Debug)]
pub enum Step {
    Push {
        kind: u8,
        scope: u8,
        changes: Vec<(u8, u8)>,
        lag: u8,
        ttl: Option<u32>,
    },
    /// Many pushes onto one stack.
    Burst {
        scope: u8,
        key: u8,
        count: u8,
        temporary: u8,
    },
    /// Many pushes onto one stack, each rolled back at once.
    Cycle {
        scope: u8,
        key: u8,
        count: u8,
    },
    Assign {
        node: u8,
        vcluster: u8,
        ttl: Option<u32>,
    },
    Policy {
        vcluster: u8,
        emergency: bool,
    },
    Rollback {
        scope: u8,
        back: u16,
        stale: bool,
    },
    EmergencyStart(u8),
    EmergencyEnd(u8),
    Drift(u8),
    NodeState(u8, u8),
    Operation(u8, u8),
    Overlay {
        vcluster: u8,
        keep: bool,
    },
    Wait(u32),
    Expire,
    OpenSession,
    CloseSession,
    Member(u8, u8),
    /// An earlier write comes again.
    Repeat(u8),
}

pub fn step() -> impl Strategy<Value = Step> {
    let ttl = || prop::option::weighted(0.3, 900..4_000u32);
    prop_oneof![
        12 => (any::<u8>(), any::<u8>(), prop::collection::vec((any::<u8>(), any::<u8>()), 1..4), 0..10u8, ttl())
            .prop_map(|(kind, scope, changes, lag, ttl)| Step::Push { kind, scope, changes, lag, ttl }),
        1 => (any::<u8>(), any::<u8>(), 100..180u8, prop_oneof![0..100u8, Just(100)])
            .prop_map(|(scope, key, count, temporary)| Step::Burst { scope, key, count, temporary }),
        1 => (any::<u8>(), any::<u8>(), 100..160u8).prop_map(|(scope, key, count)| Step::Cycle { scope, key, count }),
        3 => (any::<u8>(), any::<u8>(), ttl()).prop_map(|(node, vcluster, ttl)| Step::Assign { node, vcluster, ttl }),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(vcluster, emergency)| Step::Policy { vcluster, emergency }),
        6 => (any::<u8>(), prop_oneof![3 => 0..40u16, 1 => 0..400u16], prop::bool::weighted(0.1))
            .prop_map(|(scope, back, stale)| Step::Rollback { scope, back, stale }),
        1 => any::<u8>().prop_map(Step::EmergencyStart),
        1 => any::<u8>().prop_map(Step::EmergencyEnd),
        1 => any::<u8>().prop_map(Step::Drift),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(node, state)| Step::NodeState(node, state)),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(node, kind)| Step::Operation(node, kind)),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(vcluster, keep)| Step::Overlay { vcluster, keep }),
        3 => (0..2_000u32).prop_map(Step::Wait),
        3 => Just(Step::Expire),
        1 => Just(Step::OpenSession),
        1 => Just(Step::CloseSession),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(verb, id)| Step::Member(verb, id)),
        2 => any::<u8>().prop_map(Step::Repeat),
    ]
}

/// A life begins with three vClusters and four assigned nodes, so that most of what follows is accepted.
pub fn life(steps: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..steps).prop_map(|mut steps| {
        let policies = (0..3).map(|vcluster| Step::Policy { vcluster, emergency: true });
        let nodes = (0..4).map(|node| Step::Assign { node, vcluster: node, ttl: None });
        let mut whole: Vec<_> = policies.chain(nodes).collect();
        whole.append(&mut steps);
        whole
    })
}

/// What one proposal did.
pub struct Applied {
    pub index: Index,
    pub proposal: Proposal,
    pub outcome: Outcome,
    pub finished: Vec<Finished>,
    pub before: State,
    pub after: State,
}

/// A state with all that led to it.
pub struct Player {
    pub state: State,
    pub log: Vec<Applied>,
    index: u64,
    one_shots: u128,
    sessions: Vec<(SessionId, u64)>,
    elapsed: u64,
}

impl Player {
    pub fn new() -> Self {
        Self::of(first_member())
    }

    /// A cluster that this member began.
    pub fn of(member: Member) -> Self {
        let state = State::new(ClusterId(7), member);
        Self { state, log: Vec::new(), index: 0, one_shots: 0, sessions: Vec::new(), elapsed: 0 }
    }

    pub fn play(steps: &[Step]) -> Self {
        let mut player = Self::new();
        for step in steps {
            player.play_one(step);
        }
        player
    }

    pub fn records(&self) -> Vec<Record> {
        let finished = self.log.iter().flat_map(|applied| &applied.finished);
        finished.map(|finished| codec::decode_record(&finished.bytes).unwrap()).collect()
    }

    pub fn submit(&mut self, write: WriteRequest) -> Outcome {
        self.index += 1;
        let elapsed = std::mem::take(&mut self.elapsed) + 1;
        // The leaders' wall clocks jump about.
        let recorded_at = WallTime(1_000_000 + (self.index * 7919) % 1000);
        let proposal = Proposal { write, recorded_at, elapsed };
        let before = self.state.clone();
        let (outcome, finished) = self.state.apply(Index(self.index), proposal.clone());
        let (index, after) = (Index(self.index), self.state.clone());
        self.log.push(Applied { index, proposal, outcome: outcome.clone(), finished, before, after });
        outcome
    }

    /// Submits a command of alice's, now as a one-shot, now by a session.
    pub fn give(&mut self, command: Command) -> Outcome {
        self.one_shots += 1;
        let request = match self.sessions.last_mut() {
            Some((session, number)) if self.one_shots.is_multiple_of(2) => {
                *number += 1;
                RequestId::Session { session: *session, number: *number, acknowledged: number.saturating_sub(4) }
            }
            _ => RequestId::OneShot { id: OneShotId(self.one_shots), drawn_at: self.state.age() },
        };
        self.submit(WriteRequest { request, author: alice(), command })
    }

    pub fn append(&mut self, draft: EntryDraft) -> Outcome {
        self.give(Command::Journal(JournalCommand::AppendEntry(draft)))
    }

    pub fn system(&mut self, part: &str, command: Command) -> Outcome {
        self.submit(WriteRequest { request: RequestId::None, author: Author::system(part), command })
    }

    /// The leader's proposal to expire what is due, after some time.
    pub fn expire_after(seconds: u64) -> Proposal {
        let write =
            WriteRequest { request: RequestId::None, author: Author::system("expiry"), command: Command::Expire };
        Proposal { write, recorded_at: WallTime(0), elapsed: seconds * 1_000_000 }
    }

    pub fn wait(&mut self, seconds: u32) {
        self.elapsed += u64::from(seconds) * 1_000_000;
    }

    #[allow(clippy::too_many_lines, reason = "one arm per kind of step")]
    pub fn play_one(&mut self, step: &Step) {
        let head = self.state.sequence();
        match step {
            Step::Push { kind, scope: at, changes, lag, ttl } => {
                let kinds = [EntryType::Commit, EntryType::AutoConverge, EntryType::BootConfig];
                let mut draft =
                    draft(kinds[usize::from(*kind) % 3], scope(*at), Seq(head.0.saturating_sub(u64::from(*lag))));
                let changes: BTreeMap<_, _> = changes.iter().map(|(k, v)| (key(*k), setting(*v))).collect();
                draft.changes = changes.into_iter().map(|(key, next)| change(key, next)).collect();
                draft.ttl_seconds = *ttl;
                self.append(draft);
            }
            Step::Burst { scope: at, key: k, count, temporary } => {
                for n in 0..*count {
                    let mut draft = draft(EntryType::Commit, scope(*at), self.state.sequence());
                    draft.changes = vec![change(key(*k), setting(n))];
                    draft.ttl_seconds = (n % 100 < *temporary).then_some(900 + u32::from(n));
                    self.append(draft);
                }
            }
            Step::Cycle { scope: at, key: k, count } => {
                for n in 0..*count {
                    let before = self.state.sequence();
                    let mut push = draft(EntryType::Commit, scope(*at), before);
                    push.changes = vec![change(key(*k), setting(n))];
                    self.append(push);
                    let mut rollback = draft(EntryType::Rollback, scope(*at), before);
                    rollback.based_on = Some(self.state.sequence());
                    self.append(rollback);
                }
            }
            Step::Assign { node: id, vcluster: to, ttl } => {
                let mut draft = draft(EntryType::BootConfig, Scope::Node(node(*id)), head);
                draft.changes = vec![change(Key::vcluster(), Setting::Value(Arc::from(vcluster(*to).as_str())))];
                draft.ttl_seconds = *ttl;
                self.append(draft);
            }
            Step::Policy { vcluster: to, emergency } => {
                let policy = Policy { emergency_allowed: *emergency, ..Policy::default() };
                self.give(Command::Journal(JournalCommand::SetPolicy { vcluster: vcluster(*to), policy }));
            }
            Step::Rollback { scope: at, back, stale } => {
                let mut draft = draft(EntryType::Rollback, scope(*at), Seq(head.0.saturating_sub(u64::from(*back))));
                let seen = if *stale { draft.parent } else { head };
                draft.based_on = Some(seen);
                self.append(draft);
            }
            Step::EmergencyStart(id) => {
                let mut draft = draft(EntryType::EmergencyStart, Scope::Node(node(*id)), head);
                draft.emergency_reason = Some(Arc::from("the room is flooded"));
                self.append(draft);
            }
            Step::EmergencyEnd(id) => {
                self.append(draft(EntryType::EmergencyEnd, Scope::Node(node(*id)), head));
            }
            Step::Drift(id) => {
                let mut draft = draft(EntryType::DriftDetected, Scope::Node(node(*id)), head);
                draft.changes = vec![change(key(*id), setting(3))];
                self.append(draft);
            }
            Step::NodeState(id, to) => {
                let states =
                    [ConfigState::Committed, ConfigState::Drifted, ConfigState::Converging, ConfigState::Emergency];
                let state = states[usize::from(*to) % 4];
                self.give(Command::Journal(JournalCommand::UpdateNodeState { node: node(*id), state }));
            }
            Step::Operation(id, kind) => {
                let kinds = [OperationKind::Exec, OperationKind::ShellStart, OperationKind::ShellEnd];
                self.give(Command::Journal(JournalCommand::RecordOperation(OperationDraft {
                    kind: kinds[usize::from(*kind) % 3],
                    scope: Scope::Node(node(*id)),
                    detail: Arc::from("uptime"),
                    exit_status: Some(0),
                    occurred_at: Some(WallTime(5)),
                })));
            }
            Step::Overlay { vcluster: id, keep } => {
                let vcluster = vcluster(*id);
                let Ok(overlay) = overlay::build(&self.state, &vcluster) else { return };
                if *keep {
                    self.system("overlay", Command::Journal(JournalCommand::SetOverlay { vcluster, overlay }));
                }
            }
            Step::Wait(seconds) => self.wait(*seconds),
            Step::Expire => {
                self.system("expiry", Command::Expire);
            }
            Step::OpenSession => {
                self.one_shots += 1;
                let request = RequestId::OneShot { id: OneShotId(self.one_shots), drawn_at: self.state.age() };
                let outcome = self.submit(WriteRequest { request, author: alice(), command: Command::OpenSession });
                if let Outcome::Applied { reply: Reply::Session { session }, .. } = outcome {
                    self.sessions.push((session, 0));
                }
            }
            Step::CloseSession => {
                if let Some((session, number)) = self.sessions.pop() {
                    let request = RequestId::Session { session, number: number + 1, acknowledged: number };
                    self.submit(WriteRequest { request, author: alice(), command: Command::CloseSession });
                }
            }
            Step::Member(verb, id) => {
                let id = ReplicaId(u64::from(*id % 4) + 1);
                let command = match verb % 5 {
                    0 | 1 => MemberCommand::Admit(Admission {
                        name: ReplicaName::new(&format!("r{}", id.0)).unwrap(),
                        incarnation: Incarnation(u128::from(id.0)),
                        peer_address: Arc::from("10.0.0.1:9444"),
                        client_address: Arc::from("10.0.0.1:9443"),
                        wish: MemberWish::Voter,
                        feature_level: FEATURE_LEVEL,
                    }),
                    2 => MemberCommand::Promote(id),
                    3 => MemberCommand::Remove(id),
                    _ => MemberCommand::Replace { old: id, new: ReplicaId(id.0 + 1) },
                };
                self.system("membership", Command::Members(command));
            }
            Step::Repeat(which) => {
                if !self.log.is_empty() {
                    let at = usize::from(*which) % self.log.len();
                    let write = self.log[at].proposal.write.clone();
                    self.submit(write);
                }
            }
        }
    }
}
