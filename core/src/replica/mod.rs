//! The replica: Raft, the replicated state and the requests on their way, behind one door.
//!
//! `step(now, inputs) -> Effects` is the only way in and the only way out. The library (raft-rs) is wrapped so that its sharp
//! edges cannot be reached: peers' messages are validated first ([`validate`]), read index has contexts of our own ([`reads`]),
//! election timeouts are a pure function of the seed, and every promise waits until the write behind it is durable.
//!
//! Invariants
//! - no message leaves while a new term or vote is not durable; no acknowledgement before its entries are;
//! - every hard state handed out is written, in order; only a commit-only one may wait in memory for the next batch;
//! - a replica neither votes nor campaigns until the longest election timeout has passed since its start;
//! - applied <= persisted, applied <= committed;
//! - a view is published after the records it rests on were handed to the archive.
//!
//! It never reads a clock, waits, or touches a device.

mod convert;
mod effects;
mod logger;
mod memory;
mod reads;
mod settings;
mod validate;
mod writes;

pub use convert::{MemberChangeKind, MemberChanges};
pub use effects::{Answer, Effects, Input, LogTask, Staged, Token};
pub use settings::{Limits, Timing};

use crate::codec;
use crate::front::View;
use crate::ids::{Index, ReplicaId, Term, Time, WallTime, WriteId};
use crate::journal::check::system_part;
use crate::journal::entry::{Author, Principal, Role};
use crate::log::{Configuration, LogRecord, Write};
use crate::mark::mark;
use crate::members::{Member, MemberCommand, MemberWish};
use crate::peer::{Envelope, PeerMessage, RaftMessage, RaftMessageKind};
use crate::request::{
    AdminOutcome, AdminRequest, Command, Freshness, NotApplied, Outcome, Progress, RaftRole, Refusal, ReplicaStatus,
    RequestId, UnknownWhy, WriteRequest,
};
use crate::state::{Proposal, State};
use crate::storage::{Identity, Recovered, SnapshotMeta};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use convert::{
    change_of_entry, change_to_raft, configuration_from_raft, configuration_to_raft, entry_from_raft, entry_to_raft,
    hard_state_from_raft, hard_state_to_raft, message_from_raft, message_to_raft,
};
use memory::{MemoryLog, entry_bytes};
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, Message, MessageType};
use raft::{ProgressState, RawNode, SnapshotStatus, StateRole};
use reads::{Reader, Reads, Waiter};
use tracing::{info, warn};
use writes::{Origin, Pending, Stage, Writes};

/// The highest feature level this binary supports.
pub const FEATURE_LEVEL: u32 = 1;

/// What a replica is made of, besides what its disk holds.
#[derive(Clone, Debug)]
pub struct Settings {
    /// When it acts.
    pub timing: Timing,
    /// How much it holds.
    pub limits: Limits,
    /// Drawn anew for every run; decides election timeouts and where tokens start.
    pub seed: u64,
}

/// A write handed to storage, and what waits for it.
struct Unwritten {
    id: WriteId,
    sync: bool,
    done: bool,
    /// Whether it carries a new term or vote: nothing at all is sent before it is durable.
    votes: bool,
    /// Where the snapshot that it installs is.
    install: Option<Index>,
    ready: u64,
    promises: Vec<Message>,
}

/// What a leader keeps for its term.
struct Leadership {
    term: u64,
    /// When the previous proposal of this term entered the log, or when the term was won.
    stamp: Time,
    /// Where this term's pending `Expire` is.
    expire: Option<Index>,
    reports: BTreeMap<ReplicaId, bool>,
    /// Followers that are under a snapshot: since when, and at which match.
    under_snapshot: BTreeMap<ReplicaId, (Time, u64)>,
}

struct Publication {
    version: u64,
    at: Time,
    applied: Index,
    role: Option<RaftRole>,
    term: u64,
    leader: u64,
}

/// A Raft replica of the journal.
pub struct Replica {
    identity: Identity,
    settings: Settings,
    now: Time,
    wall: WallTime,
    raft: RawNode<MemoryLog>,
    state: State,
    applied: Index,
    configuration: Configuration,
    quiet_until: Time,
    next_tick: Time,
    attempts: u64,
    next_write: u64,
    unwritten: VecDeque<Unwritten>,
    /// The last term and vote handed out to be written.
    promised: (Term, ReplicaId),
    proposals: Vec<u64>,
    writes: Writes,
    reads: Reads,
    minimum_reads: Vec<(crate::ids::Seq, Waiter)>,
    leadership: Option<Leadership>,
    known_leader: ReplicaId,
    snapshot: Option<SnapshotMeta>,
    snapshot_saving: bool,
    snapshot_wanted: bool,
    snapshot_at: Time,
    snapshot_waiters: Vec<(Token, Index)>,
    fetching: Option<(ReplicaId, RaftMessage)>,
    /// An offer that came while another one is being fetched; taken if that comes to nothing.
    offered: Option<(ReplicaId, RaftMessage)>,
    transfer: Option<(Token, ReplicaId, Time)>,
    full_copy: bool,
    report_due: Time,
    house_due: Time,
    refused: u64,
    stopping: bool,
    publication: Publication,
    members_told: bool,
    /// Who was taken out of the table, for as long as the configuration still needs them.
    leaving: Vec<Member>,
}

/// SplitMix64: from one number to an unrelated one.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

const HOUSEKEEPING_MS: u64 = 100;
const REPORT_MS: u64 = 1_000;
const ASK_AGAIN_MS: u64 = 300;
const RETRY_MS: u64 = 30;
/// How long replicated time may stand still while something waits for it.
const EXPIRE_PULSE_MICROS: u64 = 60_000_000;

/// Bytes of a write's proposal, without the times that differ from copy to copy.
fn timeless_bytes(write: &WriteRequest) -> u64 {
    let proposal = Proposal { write: write.clone(), recorded_at: WallTime(0), elapsed: 0 };
    codec::encode_proposal(&proposal).len() as u64
}

impl Replica {
    /// A replica at what its disk holds. `state` is the decoded newest snapshot, or [`State::empty`] without one.
    ///
    /// # Panics
    /// If the recovered log does not decode, which its checksums rule out.
    #[must_use]
    pub fn new(identity: Identity, settings: Settings, recovered: Recovered, state: State, now: Time) -> Self {
        let Recovered { hard_state, snapshot, entries, log_start } = recovered;
        let at = snapshot.as_ref().map_or(Index(0), |meta| meta.index);
        let configuration = snapshot.as_ref().map(|meta| meta.configuration.clone()).unwrap_or_default();
        let mut hard_state = hard_state;
        // A commit-only hard state may have been lost with the memory it waited in; what a snapshot holds was committed.
        hard_state.commit = hard_state.commit.max(at);
        if let Some(meta) = &snapshot {
            hard_state.term = hard_state.term.max(meta.term);
        }
        let raft_configuration = configuration_to_raft(&configuration);
        let entries = entries.iter().map(|e| entry_to_raft(e).expect("a checked log decodes")).collect::<Vec<Entry>>();
        let memory = MemoryLog::new(
            (log_start.0.0, log_start.1.0),
            entries,
            hard_state_to_raft(hard_state),
            raft_configuration.clone(),
            snapshot.as_ref().map(|meta| (meta.index.0, meta.term.0, raft_configuration)),
        );
        let timing = settings.timing;
        let config = raft::Config {
            id: identity.replica.0,
            election_tick: Timing::ticks(timing.election_ms_min, timing.tick_ms),
            min_election_tick: Timing::ticks(timing.election_ms_min, timing.tick_ms),
            max_election_tick: Timing::ticks(timing.election_ms_max, timing.tick_ms),
            heartbeat_tick: Timing::ticks(timing.heartbeat_ms, timing.tick_ms),
            applied: at.0,
            max_size_per_msg: settings.limits.append_bytes_max,
            max_inflight_msgs: settings.limits.appends_inflight_max,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            max_uncommitted_size: raft::NO_LIMIT,
            max_committed_size_per_ready: 8 << 20,
            ..raft::Config::default()
        };
        let raft = RawNode::new(&config, memory, &logger::to_tracing()).expect("a checked configuration is accepted");
        let first_token = mix(settings.seed) << 16;
        let known_term = raft.raft.term;
        Self {
            quiet_until: now.plus_ms(timing.election_ms_max),
            next_tick: now.plus_ms(timing.tick_ms),
            writes: Writes::new(first_token),
            reads: Reads::new(first_token),
            identity,
            settings,
            now,
            wall: WallTime(0),
            raft,
            state,
            applied: at,
            configuration,
            attempts: 0,
            next_write: 0,
            unwritten: VecDeque::new(),
            promised: (hard_state.term, hard_state.vote),
            proposals: Vec::new(),
            minimum_reads: Vec::new(),
            leadership: None,
            known_leader: ReplicaId(0),
            snapshot,
            snapshot_saving: false,
            snapshot_wanted: false,
            snapshot_at: now,
            snapshot_waiters: Vec::new(),
            fetching: None,
            offered: None,
            transfer: None,
            full_copy: false,
            report_due: now,
            house_due: now,
            refused: 0,
            stopping: false,
            publication: Publication {
                version: 0,
                at: now,
                applied: Index(0),
                role: None,
                term: known_term,
                leader: 0,
            },
            members_told: false,
            leaving: Vec::new(),
        }
    }

    /// Who this is.
    #[must_use]
    pub const fn id(&self) -> ReplicaId {
        self.identity.replica
    }

    /// Whether it leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.raft.raft.state == StateRole::Leader
    }

    /// Whether it leads and is handing leadership over.
    #[must_use]
    pub fn is_handing_over(&self) -> bool {
        self.is_leader() && self.raft.raft.lead_transferee.is_some()
    }

    /// The replicated state at the applied position.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Handles everything that happened, then one tick if it is due. `wall` is recorded, never decided on.
    pub fn step(&mut self, now: Time, wall: WallTime, inputs: impl IntoIterator<Item = Input>) -> Effects {
        self.now = self.now.max(now);
        self.wall = wall;
        let mut effects = Effects::default();
        for input in inputs {
            self.on_input(input, &mut effects);
        }
        if self.now >= self.next_tick {
            // Missed ticks are dropped: a pause must not look like many silent heartbeats.
            self.next_tick = self.now.plus_ms(self.settings.timing.tick_ms);
            self.tick(&mut effects);
        }
        loop {
            self.route_writes(&mut effects);
            self.propose(&mut effects);
            self.start_reads(&mut effects);
            if !self.raft.has_ready() {
                break;
            }
            self.on_ready(&mut effects);
        }
        self.answer_reads(&mut effects);
        self.try_snapshot(&mut effects);
        self.tell_members(&mut effects);
        self.publish(&mut effects);
        self.check_invariants();
        effects.wake_at = self.next_tick;
        effects
    }

    fn check_invariants(&self) {
        let log = &self.raft.raft.raft_log;
        assert!(log.applied <= log.committed, "applied {} which is not committed ({})", log.applied, log.committed);
        assert!(log.applied <= log.persisted, "applied an entry a crash could lose here");
        // An installed snapshot is served at once and counts as applied once it is durable; nothing is applied on top before.
        let applied = if self.is_installing() { self.applied.0 } else { log.applied };
        assert!(self.applied.0 == applied, "state is at {}, Raft thinks {}", self.applied, log.applied);
        assert!(log.committed <= log.last_index(), "committed {} beyond the log ({})", log.committed, log.last_index());
    }

    fn is_installing(&self) -> bool {
        self.unwritten.iter().any(|write| write.install.is_some())
    }

    fn on_input(&mut self, input: Input, effects: &mut Effects) {
        match input {
            Input::Peer(envelope) => self.on_peer(envelope, effects),
            Input::Write { token, write, forward } => self.on_write(Origin::Client(token), write, forward, effects),
            Input::Read { token, freshness } => self.on_read(token, freshness, effects),
            Input::Admin { token, request } => self.on_admin(token, request, effects),
            Input::Persisted(id) => self.on_persisted(id, effects),
            Input::SnapshotSaved { meta, oldest } => self.on_snapshot_saved(meta, oldest, effects),
            Input::SnapshotStaged(staged) => self.on_snapshot_staged(*staged, effects),
            Input::SnapshotLost { index } => {
                if self.fetching.as_ref().is_some_and(|(_, m)| m.snapshot.as_ref().is_some_and(|s| s.index == index)) {
                    self.fetching = None;
                    self.fetch_offered(effects);
                }
            }
            Input::HistoryComplete(complete) => {
                if self.full_copy != complete {
                    self.full_copy = complete;
                    self.report_due = self.now;
                }
            }
            Input::Stop => self.on_stop(effects),
            Input::Wake => {}
        }
    }

    // ---- peers ------------------------------------------------------------------------------------------------------------

    fn refuse(&mut self, envelope_from: ReplicaId, why: &str) {
        self.refused += 1;
        mark!(peer_message_refused);
        warn!(replica = self.identity.replica.0, peer = envelope_from.0, why, "refused a peer's message");
    }

    fn on_peer(&mut self, envelope: Envelope, effects: &mut Effects) {
        let from = envelope.from;
        if envelope.cluster != self.identity.cluster || envelope.group != self.identity.group {
            return self.refuse(from, "it belongs to another cluster or group");
        }
        if envelope.to != self.identity.replica || from == self.identity.replica || from.0 == 0 {
            return self.refuse(from, "it is not addressed to this replica");
        }
        if self.state.members.get(from).is_some_and(|member| member.incarnation != envelope.incarnation) {
            return self.refuse(from, "a known replica speaks under another incarnation");
        }
        match envelope.message {
            PeerMessage::Raft(message) => self.on_raft(from, message, effects),
            PeerMessage::Forward { token, write } => {
                if self.is_leader() && !self.stopping {
                    self.on_write(Origin::Peer { replica: from, token }, write, false, effects);
                } else {
                    let outcome = Outcome::NotApplied(self.not_leader());
                    self.send(from, PeerMessage::Forwarded { token, outcome }, effects);
                }
            }
            PeerMessage::Forwarded { token, outcome } => {
                let here = self.writes.get(token).is_some_and(|p| p.stage == Stage::Forwarded { to: from });
                if !here {
                    return;
                }
                match outcome {
                    Outcome::NotApplied(
                        NotApplied::NotLeader { .. }
                        | NotApplied::NoQuorum
                        | NotApplied::Superseded
                        | NotApplied::Stopping,
                    ) => self.writes.set_waiting(token, self.now.plus_ms(RETRY_MS)),
                    // Only this copy was turned away; an earlier or a repeated one may be in a log.
                    Outcome::NotApplied(NotApplied::Busy { retry_after_ms }) => {
                        self.writes.set_waiting(token, self.now.plus_ms(retry_after_ms.max(RETRY_MS)));
                    }
                    outcome => self.finish_write(token, outcome, effects),
                }
            }
            PeerMessage::ReadIndex { token } => {
                if self.is_leader() {
                    if self.reads.len() >= self.settings.limits.reads_waiting_max {
                        return; // It asks again.
                    }
                    let deadline = self.now.plus_ms(self.settings.timing.request_ms);
                    self.reads.add(Waiter { reader: Reader::Peer { replica: from, token }, deadline });
                } else {
                    self.send(from, PeerMessage::ReadIndexReply { token, index: None }, effects);
                }
            }
            PeerMessage::ReadIndexReply { token, index } => {
                let waiters = self.reads.answered(token);
                match index {
                    Some(index) => waiters.into_iter().for_each(|waiter| self.reads.wait_for(index, waiter)),
                    None if waiters.is_empty() => {}
                    None => {
                        // Asked again at once, the two would do nothing else until they hear of the next leader.
                        let since = self.now.0.saturating_sub((ASK_AGAIN_MS - RETRY_MS) * 1_000_000);
                        self.reads.postpone(from, Time(since), waiters);
                    }
                }
            }
            PeerMessage::Report { full_copy, applied, .. } => {
                if let Some(leadership) = &mut self.leadership {
                    leadership.reports.insert(from, full_copy);
                    // The answer to an install may be lost, and the library waits for it: what was applied shows it as well.
                    let arrived = self.raft.raft.prs().get(from.0).is_some_and(|progress| {
                        progress.state == ProgressState::Snapshot && progress.pending_snapshot <= applied.0
                    });
                    if arrived {
                        self.raft.report_snapshot(from.0, SnapshotStatus::Finish);
                    }
                }
            }
        }
    }

    fn on_raft(&mut self, from: ReplicaId, message: RaftMessage, effects: &mut Effects) {
        let quiet = self.now < self.quiet_until;
        if quiet && matches!(message.kind, RaftMessageKind::Vote | RaftMessageKind::PreVote) {
            // What this replica promised a leader before it stopped is forgotten; by then it has lapsed.
            return;
        }
        let raft = &self.raft.raft;
        let receiver = validate::Receiver {
            last: Index(raft.raft_log.last_index()),
            term: raft.term,
            leads: raft.state == StateRole::Leader,
            leader: ReplicaId(raft.leader_id),
        };
        if let Err(why) = validate::raft_message(from, &message, &receiver) {
            return self.refuse(from, why);
        }
        if message.kind == RaftMessageKind::TimeoutNow {
            // It would campaign on entries that are not durable, in the quiet time after its start, or for somebody it does not
            // know to lead. Whoever asked gives up by itself.
            let heard = message.term.0 == receiver.term && from == receiver.leader;
            if quiet || !heard || !self.unwritten.is_empty() {
                return;
            }
        }
        if message.kind == RaftMessageKind::Append
            && !message.entries.is_empty()
            && self.raft.store().bytes() >= self.settings.limits.log_bytes_max + self.settings.limits.append_bytes_max
        {
            // Lost, as far as the leader can tell, until a snapshot has made room.
            self.snapshot_wanted = true;
            return;
        }
        if let Some(meta) = &message.snapshot {
            if self.needs_fetch(&message) {
                return self.on_offer(from, message, effects);
            }
            if self.contradicts(meta) {
                return self.refuse(from, "its snapshot contradicts what is committed");
            }
        }
        self.step_raft(from, &message);
    }

    fn step_raft(&mut self, from: ReplicaId, message: &RaftMessage) {
        match message_to_raft(from, self.identity.replica, message) {
            // An answer from somebody who is not in the configuration (any more) is dropped by the library.
            Ok(message) => drop(self.raft.step(message)),
            Err(error) => self.refuse(from, &format!("{error}")),
        }
    }

    /// Whether the offered snapshot is ahead of what this replica has; if not, the library answers that by itself.
    fn needs_fetch(&self, message: &RaftMessage) -> bool {
        let Some(meta) = &message.snapshot else { return false };
        let raft = &self.raft.raft;
        message.term.0 >= raft.term
            && meta.index.0 > raft.raft_log.committed
            && !raft.raft_log.match_term(meta.index.0, meta.term.0)
            && meta.configuration.everybody().contains(&self.identity.replica)
    }

    /// Whether the snapshot ends where this replica knows another entry to be committed.
    fn contradicts(&self, meta: &SnapshotMeta) -> bool {
        let log = &self.raft.raft.raft_log;
        meta.index.0 == log.committed && !log.match_term(meta.index.0, meta.term.0)
    }

    fn on_offer(&mut self, from: ReplicaId, message: RaftMessage, effects: &mut Effects) {
        // The term and the leader count at once; the snapshot when it is here.
        let heartbeat = RaftMessage {
            kind: RaftMessageKind::Heartbeat,
            term: message.term,
            log_term: Term(0),
            index: Index(0),
            entries: Vec::new(),
            commit: Index(0),
            commit_term: Term(0),
            reject: false,
            reject_hint: Index(0),
            context: bytes::Bytes::new(),
            snapshot: None,
            request_snapshot: Index(0),
        };
        self.step_raft(from, &heartbeat);
        let committed = self.raft.raft.raft_log.committed;
        let useful = |old: &SnapshotMeta| old.index.0 > committed;
        match &self.fetching {
            // What is being fetched is brought to its end: on a slow link a newer one would never be finished either.
            Some((_, old)) if old.snapshot.as_ref().is_some_and(useful) => {
                if old.snapshot != message.snapshot {
                    self.offered = Some((from, message));
                }
            }
            Some(_) | None => self.begin_fetch(from, message, effects),
        }
    }

    fn begin_fetch(&mut self, from: ReplicaId, message: RaftMessage, effects: &mut Effects) {
        let meta = message.snapshot.clone().expect("snapshot messages name one");
        info!(replica = self.identity.replica.0, from = from.0, index = meta.index.0, "fetching a snapshot");
        self.fetching = Some((from, message));
        self.offered = None;
        effects.fetch = Some((from, meta));
    }

    /// Takes up the offer that waited, if it is still of use.
    fn fetch_offered(&mut self, effects: &mut Effects) {
        if let Some((from, message)) = self.offered.take() {
            if self.needs_fetch(&RaftMessage { term: Term(self.raft.raft.term), ..message.clone() }) {
                self.begin_fetch(from, message, effects);
            }
        }
    }

    fn on_snapshot_staged(&mut self, staged: Staged, effects: &mut Effects) {
        let Some((mut from, mut message)) = self.fetching.take() else { return };
        if message.snapshot.as_ref() != Some(&staged.meta) {
            self.fetching = Some((from, message));
            return;
        }
        // Whatever earlier messages gave goes out first, so that nothing but the snapshot is ready below.
        while self.raft.has_ready() {
            self.on_ready(effects);
        }
        // What is committed stays so when terms change: whoever leads by then is told that it is here.
        let raft = &self.raft.raft;
        if raft.term > message.term.0 && raft.leader_id != 0 {
            (from, message.term) = (ReplicaId(raft.leader_id), Term(raft.term));
        }
        if from != self.identity.replica && !self.contradicts(&staged.meta) {
            self.step_raft(from, &message);
        }
        let pending = self.raft.snap().map(|snapshot| snapshot.get_metadata().index);
        if pending == Some(staged.meta.index.0) {
            self.install(staged, effects);
        }
        self.fetch_offered(effects);
    }

    /// Installs a snapshot that the library has accepted: log, state and configuration start over behind it.
    fn install(&mut self, staged: Staged, effects: &mut Effects) {
        let mut ready = self.raft.ready();
        self.on_role();
        assert_eq!(ready.snapshot().get_metadata().index, staged.meta.index.0, "another snapshot is ready");
        assert!(ready.entries().is_empty(), "entries beside a snapshot");
        let meta = staged.meta;
        let (index, term) = (meta.index, meta.term);
        let mut records = Vec::from([LogRecord::Reset { index, term }]);
        let mut votes = false;
        // The library repeats the hard state only if it changed; behind a reset it is always written.
        let mut hard_state = hard_state_from_raft(&self.raft.raft.hard_state());
        if let Some(state) = ready.hs() {
            hard_state = hard_state_from_raft(state);
            votes = hard_state.term != self.promised.0 || hard_state.vote != self.promised.1;
            self.promised = (hard_state.term, hard_state.vote);
        }
        records.push(LogRecord::HardState(hard_state));
        let id = self.next_write_id();
        effects.log.push(LogTask::Install {
            meta: meta.clone(),
            open: staged.open,
            write: Write { id, sync: true, records },
        });
        let promises = ready.take_persisted_messages();
        assert!(ready.take_messages().is_empty(), "a leader installs no snapshot");
        let number = ready.number();
        let configuration = configuration_to_raft(&meta.configuration);
        let memory = self.raft.mut_store();
        memory.reset(index.0, term.0);
        memory.set_snapshot(index.0, term.0, configuration);
        self.unwritten.push_back(Unwritten {
            id,
            sync: true,
            done: false,
            votes,
            install: Some(index),
            ready: number,
            promises,
        });
        self.raft.advance_append_async(ready);
        info!(replica = self.identity.replica.0, index = index.0, sequence = meta.sequence.0, "installed a snapshot");
        mark!(snapshot_installed);
        self.state = staged.state;
        self.applied = index;
        self.configuration = meta.configuration.clone();
        self.writes.skip_to(index);
        self.snapshot = Some(meta);
        self.snapshot_at = self.now;
        self.full_copy = false;
        self.members_told = false;
        self.report_due = self.now;
        effects.look_for_history = true;
    }

    fn send(&self, to: ReplicaId, message: PeerMessage, effects: &mut Effects) {
        effects.sends.push(Envelope {
            cluster: self.identity.cluster,
            group: self.identity.group,
            from: self.identity.replica,
            incarnation: self.identity.incarnation,
            to,
            message,
        });
    }

    fn send_raft(&self, messages: Vec<Message>, effects: &mut Effects) {
        for message in messages {
            let to = ReplicaId(message.to);
            if let Some(message) = message_from_raft(&message, self.snapshot.as_ref()) {
                self.send(to, PeerMessage::Raft(message), effects);
            }
        }
    }

    // ---- the library's output ---------------------------------------------------------------------------------------------

    fn next_write_id(&mut self) -> WriteId {
        self.next_write += 1;
        WriteId(self.next_write)
    }

    fn on_ready(&mut self, effects: &mut Effects) {
        let mut ready = self.raft.ready();
        assert!(ready.snapshot().is_empty(), "snapshots are installed when they are staged");
        self.on_role();

        let mut records = Vec::new();
        let mut votes = false;
        if let Some(state) = ready.hs() {
            let state = hard_state_from_raft(state);
            // Compared with what was handed out before: only a commit index may go without a sync.
            votes = state.term != self.promised.0 || state.vote != self.promised.1;
            self.promised = (state.term, state.vote);
            records.push(LogRecord::HardState(state));
        }
        if !ready.entries().is_empty() {
            self.raft.mut_store().append(ready.entries());
            records.push(LogRecord::Entries(ready.entries().iter().map(entry_from_raft).collect()));
        }
        let number = ready.number();
        let sync = ready.must_sync();
        let immediate = ready.take_messages();
        let promises = ready.take_persisted_messages();
        for state in ready.take_read_states() {
            self.on_read_state(&state.request_ctx, Index(state.index), effects);
        }
        let committed = ready.take_committed_entries();

        if records.is_empty() && self.unwritten.is_empty() {
            self.send_raft(promises, effects);
            self.raft.advance_append_async(ready);
            self.raft.on_persist_ready(number);
        } else {
            let id = self.next_write_id();
            if !records.is_empty() {
                effects.log.push(LogTask::Write(Write { id, sync, records }));
            }
            self.unwritten.push_back(Unwritten {
                id,
                sync,
                done: false,
                votes,
                install: None,
                ready: number,
                promises,
            });
            self.raft.advance_append_async(ready);
        }
        // While a new term or vote is not durable nothing is sent, leader or not: a sole voter wins before its first write.
        match self.unwritten.iter_mut().rev().find(|write| write.votes) {
            Some(write) => write.promises.extend(immediate),
            None => self.send_raft(immediate, effects),
        }
        self.release(effects);
        self.apply(committed, effects);
    }

    fn on_persisted(&mut self, id: WriteId, effects: &mut Effects) {
        for write in &mut self.unwritten {
            if write.id <= id {
                write.done = true;
            }
        }
        self.release(effects);
    }

    /// Keeps the promises whose writes are durable, in order.
    fn release(&mut self, effects: &mut Effects) {
        while self.unwritten.front().is_some_and(|write| write.done || !write.sync) {
            let Some(write) = self.unwritten.pop_front() else { return };
            self.raft.on_persist_ready(write.ready);
            if let Some(index) = write.install {
                self.raft.advance_apply_to(index.0);
                self.answer_snapshots(effects);
            }
            self.send_raft(write.promises, effects);
        }
    }

    fn apply(&mut self, entries: Vec<Entry>, effects: &mut Effects) {
        for entry in entries {
            let index = Index(entry.index);
            assert_eq!(index, self.applied.next(), "entries are applied in order, once");
            let outcome = match entry.get_entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => None,
                EntryType::EntryNormal => {
                    let proposal =
                        codec::decode_proposal(&entry.data).expect("the feature level admits only known formats");
                    if matches!(proposal.write.command, Command::Members(_)) {
                        self.members_told = false;
                    }
                    let (outcome, finished) = self.state.apply(index, proposal);
                    effects.finished.extend(finished);
                    Some(outcome)
                }
                EntryType::EntryConfChangeV2 => self.apply_membership(index, &entry, effects),
                EntryType::EntryConfChange => unreachable!("only the second version of membership changes is proposed"),
            };
            self.applied = index;
            self.raft.advance_apply_to(index.0);
            if let Some(leadership) = &mut self.leadership {
                if leadership.expire.is_some_and(|at| at <= index) {
                    leadership.expire = None;
                }
            }
            match (self.writes.applied(index, Term(entry.term)), outcome) {
                (Some((key, true)), Some(outcome @ Outcome::NotApplied(_))) => self.finish_copy(key, outcome, effects),
                (Some((key, true)), Some(outcome)) => self.finish_write(key, outcome, effects),
                // Another leader's entry is where ours was: ours can never be.
                (Some((key, _)), _) => self.finish_copy(key, Outcome::NotApplied(NotApplied::Superseded), effects),
                (None, _) => {}
            }
        }
    }

    fn apply_membership(&mut self, index: Index, entry: &Entry, effects: &mut Effects) -> Option<Outcome> {
        let change = change_of_entry(entry);
        if entry.context.is_empty() {
            // Leaving a joint configuration.
            self.change_configuration(&change);
            return None;
        }
        let proposal = codec::decode_proposal(&entry.context).expect("the feature level admits only known formats");
        if let Command::Members(MemberCommand::Remove(old) | MemberCommand::Replace { old, .. }) =
            &proposal.write.command
        {
            // It is needed, and must be reached, until a joint configuration is left.
            self.leaving.extend(self.state.members.get(*old).cloned());
        }
        let (outcome, finished) = self.state.apply(index, proposal);
        // A repeated request is answered from what is kept and changes nothing a second time.
        if !finished.is_empty() && matches!(outcome, Outcome::Applied { .. }) {
            self.change_configuration(&change);
        }
        effects.finished.extend(finished);
        Some(outcome)
    }

    fn change_configuration(&mut self, change: &ConfChangeV2) {
        match self.raft.apply_conf_change(change) {
            Ok(configuration) => {
                self.configuration = configuration_from_raft(&configuration);
                info!(replica = self.identity.replica.0, configuration = ?self.configuration, "configuration changed");
                if self.is_leader() && !self.configuration.is_voter(self.identity.replica) {
                    // It inherited its own removal. The library does not survive a leader that is not part of its configuration.
                    let term = self.raft.raft.term;
                    self.raft.raft.become_follower(term, 0);
                }
            }
            Err(error) => {
                warn!(replica = self.identity.replica.0, %error, "the configuration change does not fit and is skipped")
            }
        }
        self.members_told = false;
    }

    // ---- time and roles ---------------------------------------------------------------------------------------------------

    fn tick(&mut self, effects: &mut Effects) {
        let timing = self.settings.timing;
        let leads = self.is_leader();
        let sole_voter = self.configuration.voters == [self.identity.replica] && !self.configuration.is_joint();
        // A sole voter wins inside its campaign: what it wins with must be durable. So must a snapshot, for whoever campaigns.
        let must_wait = (sole_voter && !self.unwritten.is_empty()) || self.is_installing();
        let may_tick = leads || (self.now >= self.quiet_until && !must_wait);
        if may_tick {
            let (min, max) = (
                Timing::ticks(timing.election_ms_min, timing.tick_ms) as u64,
                Timing::ticks(timing.election_ms_max, timing.tick_ms) as u64,
            );
            let draw =
                mix(self.settings.seed ^ mix(self.identity.replica.0) ^ mix(self.raft.raft.term << 20 ^ self.attempts));
            let timeout = usize::try_from(min + draw % (max - min)).unwrap_or(usize::MAX);
            self.raft.raft.set_randomized_election_timeout(timeout);
            let before = self.raft.raft.election_elapsed;
            self.raft.tick();
            if !leads && self.raft.raft.election_elapsed < before {
                self.attempts += 1;
            }
        }
        for pending in self.writes.overdue(self.now) {
            let outcome = match (pending.may_be_logged(), pending.stage) {
                (false, _) => Outcome::NotApplied(NotApplied::NoQuorum),
                (true, Stage::Forwarded { .. }) => Outcome::Unknown(UnknownWhy::ForwardTimedOut),
                (true, Stage::Proposed | Stage::Waiting { .. }) => Outcome::Unknown(UnknownWhy::TimedOut),
            };
            self.answer_write(&pending, outcome, effects);
        }
        for waiter in self.reads.overdue(self.now) {
            self.answer_read(waiter.reader, Err(NotApplied::NoQuorum), effects);
        }
        let now = self.now;
        let late: Vec<_> = self.minimum_reads.extract_if(.., |(_, waiter)| waiter.deadline <= now).collect();
        for (_, waiter) in late {
            self.answer_read(waiter.reader, Err(NotApplied::NoQuorum), effects);
        }
        let asked_before = Time(self.now.0.saturating_sub(ASK_AGAIN_MS * 1_000_000));
        self.reads.ask_again(self.known_leader, asked_before);
        if let Some((token, to, deadline)) = self.transfer {
            if self.known_leader.0 != 0 && self.known_leader != self.identity.replica {
                let outcome = AdminOutcome::Transferred { leader: self.known_leader };
                effects.answers.push((token, Answer::Admin(outcome)));
                self.transfer = None;
            } else if deadline <= self.now {
                let problem = format!("replica {to} did not take over in time");
                effects.answers.push((token, Answer::Admin(AdminOutcome::Failed { problem })));
                self.transfer = None;
            }
        }
        if !self.is_leader() && self.known_leader.0 != 0 && self.now >= self.report_due {
            self.report_due = self.now.plus_ms(REPORT_MS);
            let report =
                PeerMessage::Report { full_copy: self.full_copy, applied: self.applied, feature_level: FEATURE_LEVEL };
            self.send(self.known_leader, report, effects);
        }
        if self.is_leader() && self.now >= self.house_due {
            self.house_due = self.now.plus_ms(HOUSEKEEPING_MS);
            self.keep_house();
        }
    }

    /// Notices that the role, the term or the leader changed.
    fn on_role(&mut self) {
        let leads = self.is_leader();
        let term = self.raft.raft.term;
        let leader = ReplicaId(self.raft.raft.leader_id);
        if leads && self.leadership.as_ref().is_none_or(|leadership| leadership.term != term) {
            info!(replica = self.identity.replica.0, term, "leads");
            // The last entry is this term's own first one.
            if self.raft.raft.raft_log.last_index() > self.raft.raft.raft_log.committed + 1 {
                mark!(leader_changed_with_entries_in_flight);
            }
            self.attempts = 0;
            self.leadership = Some(Leadership {
                term,
                stamp: self.now,
                expire: None,
                reports: BTreeMap::new(),
                under_snapshot: BTreeMap::new(),
            });
        } else if !leads && self.leadership.is_some() {
            info!(replica = self.identity.replica.0, term, "leads no more");
            self.leadership = None;
            self.reads.abandon_rounds();
        }
        if leader != self.known_leader {
            if leader.0 != 0 {
                info!(replica = self.identity.replica.0, term, leader = leader.0, "follows a leader");
                self.attempts = 0;
            }
            self.known_leader = leader;
            self.report_due = self.now;
            self.writes.reroute(leader, self.identity.replica, self.now);
            self.reads.ask_again(leader, Time(0));
        }
    }

    /// What a leader does without being asked.
    fn keep_house(&mut self) {
        self.try_expire();
        self.watch_snapshots();
        self.try_grant_wish();
    }

    /// Queues a write in the cluster's own name.
    fn own_write(&mut self, command: Command) {
        let part = system_part(&command).expect("the cluster gives only commands of its own");
        let write = WriteRequest {
            request: RequestId::None,
            author: Author { principal: Principal::System { part: Arc::from(part) }, role: Role::System },
            command,
        };
        let deadline = self.now.plus_ms(self.settings.timing.request_ms);
        self.writes.add(Pending::waiting(Origin::Own, write, false, self.now, deadline));
    }

    /// Proposes to expire what is due by replicated time.
    fn try_expire(&mut self) {
        let Some(due) = self.state.next_due() else { return };
        let Some(leadership) = &mut self.leadership else { return };
        if leadership.expire.is_some() {
            return;
        }
        let elapsed = self.now.micros_since(leadership.stamp);
        if self.state.age().0.saturating_add(elapsed) >= due.0 || elapsed >= EXPIRE_PULSE_MICROS {
            // Nothing is proposed twice meanwhile; the real position replaces this one when it is known.
            leadership.expire = Some(Index(u64::MAX));
            self.own_write(Command::Expire);
        }
    }

    /// A follower that shows no progress under a snapshot is probed again.
    fn watch_snapshots(&mut self) {
        let patience = self.settings.limits.snapshot_patience_ms;
        let now = self.now;
        let Some(leadership) = &mut self.leadership else { return };
        let mut stuck = Vec::new();
        let mut seen = BTreeMap::new();
        for (&id, progress) in self.raft.raft.prs().iter() {
            if progress.state != ProgressState::Snapshot {
                continue;
            }
            let since = match leadership.under_snapshot.get(&ReplicaId(id)) {
                Some((since, matched)) if *matched == progress.matched => *since,
                Some(_) | None => now,
            };
            if since.plus_ms(patience) <= now {
                stuck.push(id);
            } else {
                seen.insert(ReplicaId(id), (since, progress.matched));
            }
        }
        leadership.under_snapshot = seen;
        for id in stuck {
            self.raft.report_snapshot(id, SnapshotStatus::Failure);
        }
    }

    /// Adds admitted members as learners and promotes those who wish it, one change at a time.
    fn try_grant_wish(&mut self) {
        if self.raft.raft.has_pending_conf() || !self.raft.raft.apply_to_current_term() {
            return;
        }
        if self.configuration.is_joint() {
            // The library leaves by itself unless the leader that entered is gone before it applied that.
            let _ = self.raft.propose_conf_change(Vec::new(), ConfChangeV2::default());
            return;
        }
        let everybody = self.configuration.everybody();
        let mut wish = None;
        for member in self.state.members.all() {
            if !everybody.contains(&member.id) {
                wish = Some(MemberCommand::AddLearner(member.id));
                break;
            }
            if self.configuration.is_voter(member.id) {
                continue;
            }
            let command = match member.wish {
                MemberWish::Learner => continue,
                MemberWish::Voter => MemberCommand::Promote(member.id),
                MemberWish::Replacement { of } if self.configuration.is_voter(of) && of != self.identity.replica => {
                    MemberCommand::Replace { old: of, new: member.id }
                }
                MemberWish::Replacement { of } if of == self.identity.replica => {
                    // Who is to be replaced cannot lead the change; somebody else will.
                    if self.ready_to_vote(member.id).is_ok() {
                        if let Some(to) = self.furthest_voter() {
                            self.raft.transfer_leader(to.0);
                        }
                        return;
                    }
                    continue;
                }
                MemberWish::Replacement { .. } => MemberCommand::Promote(member.id),
            };
            if self.ready_to_vote(member.id).is_ok() {
                wish = Some(command);
                break;
            }
        }
        if let Some(command) = wish {
            self.own_write(Command::Members(command));
        }
    }

    /// Whether a learner has caught up and holds the whole history.
    fn ready_to_vote(&self, id: ReplicaId) -> Result<(), String> {
        let Some(progress) = self.raft.raft.prs().get(id.0) else {
            return Err(format!("replica {id} is not part of the configuration"));
        };
        let last = self.raft.raft.raft_log.last_index();
        let behind = last.saturating_sub(progress.matched);
        // After a snapshot an idle follower stays in `probe` until there is something to send: what counts is its position.
        let is_following = progress.state != ProgressState::Snapshot && progress.recent_active;
        if !is_following || behind > 1_000 {
            return Err(format!("replica {id} is {behind} entries behind; wait until it has caught up"));
        }
        let full_copy = self.leadership.as_ref().and_then(|l| l.reports.get(&id).copied()).unwrap_or(false);
        if !full_copy {
            return Err(format!("replica {id} does not hold the whole history yet; wait until it does"));
        }
        Ok(())
    }

    // ---- writes -----------------------------------------------------------------------------------------------------------

    fn not_leader(&self) -> NotApplied {
        match self.state.members.get(self.known_leader) {
            Some(member) if self.known_leader != self.identity.replica => {
                NotApplied::NotLeader { leader: self.known_leader, address: member.client_address.clone() }
            }
            Some(_) | None => NotApplied::NoQuorum,
        }
    }

    fn on_write(&mut self, origin: Origin, write: WriteRequest, forward: bool, effects: &mut Effects) {
        let deadline = self.now.plus_ms(self.settings.timing.request_ms);
        let pending = Pending::waiting(origin, write, forward, self.now, deadline);
        if self.stopping {
            return self.answer_write(&pending, Outcome::NotApplied(NotApplied::Stopping), effects);
        }
        if self.writes.len() >= self.settings.limits.writes_waiting_max {
            let busy = Outcome::NotApplied(NotApplied::Busy { retry_after_ms: 100 });
            return self.answer_write(&pending, busy, effects);
        }
        self.writes.add(pending);
    }

    /// Sends every waiting write where it can go now.
    fn route_writes(&mut self, effects: &mut Effects) {
        let leads = self.is_leader() && self.raft.raft.lead_transferee.is_none();
        for key in self.writes.routable(self.now) {
            let Some(pending) = self.writes.get(key) else { continue };
            if leads {
                self.proposals.push(key);
            } else if pending.origin == Origin::Own {
                self.finish_write(key, Outcome::NotApplied(self.not_leader()), effects);
            } else if self.known_leader.0 == 0 || self.is_leader() {
                // Nobody leads, or leadership is being handed over: it waits.
            } else if pending.forward {
                let (to, write) = (self.known_leader, pending.write.clone());
                self.writes.set_forwarded(key, to);
                self.send(to, PeerMessage::Forward { token: key, write }, effects);
            } else {
                let outcome = Outcome::NotApplied(self.not_leader());
                self.finish_write(key, outcome, effects);
            }
        }
    }

    /// Puts everything routed here into the log as one message to the library.
    fn propose(&mut self, effects: &mut Effects) {
        if self.proposals.is_empty() {
            return;
        }
        let keys = core::mem::take(&mut self.proposals);
        let mut batch: Vec<(u64, Entry)> = Vec::with_capacity(keys.len());
        let mut room = self.settings.limits.log_bytes_max.saturating_sub(self.raft.store().bytes());
        for key in keys {
            let Some(pending) = self.writes.get(key) else { continue };
            if let Command::Members(command) = &pending.write.command {
                if !matches!(command, MemberCommand::Admit(_)) {
                    self.propose_batch(&mut batch);
                    self.propose_membership(key, effects);
                    continue;
                }
            }
            let Some(leadership) = &mut self.leadership else { continue };
            let elapsed = self.now.micros_since(leadership.stamp);
            let proposal = Proposal { write: pending.write.clone(), recorded_at: self.wall, elapsed };
            let data = codec::encode_proposal(&proposal);
            let (bytes, bytes_max) = (data.len() as u64, self.settings.limits.payload_bytes_max);
            // The times in a proposal differ from copy to copy and decide nothing: too large is too large for every copy.
            if bytes > bytes_max && timeless_bytes(&pending.write) > bytes_max {
                let outcome = Outcome::NotApplied(NotApplied::TooLarge { bytes, bytes_max });
                self.finish_write(key, outcome, effects);
                continue;
            }
            let mut entry = Entry::default();
            entry.data = data;
            let size = entry_bytes(&entry);
            if size > room {
                self.snapshot_wanted = true;
                let outcome = Outcome::NotApplied(NotApplied::Busy { retry_after_ms: 500 });
                self.finish_write(key, outcome, effects);
                continue;
            }
            room -= size;
            leadership.stamp = Time(leadership.stamp.0 + elapsed * 1_000);
            batch.push((key, entry));
        }
        self.propose_batch(&mut batch);
    }

    fn propose_batch(&mut self, batch: &mut Vec<(u64, Entry)>) {
        if batch.is_empty() {
            return;
        }
        let first = self.raft.raft.raft_log.last_index() + 1;
        let term = Term(self.raft.raft.term);
        let (keys, entries): (Vec<u64>, Vec<Entry>) = core::mem::take(batch).into_iter().unzip();
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.identity.replica.0;
        message.set_entries(entries.into());
        // Whether it leads and hands nothing over was looked at in this very step.
        self.raft.raft.step(message).expect("a leader that hands nothing over takes proposals");
        for (offset, key) in keys.into_iter().enumerate() {
            let index = Index(first + offset as u64);
            if let Some(leadership) = &mut self.leadership {
                let expires = self.writes.get(key).is_some_and(|p| p.write.command == Command::Expire);
                if expires {
                    leadership.expire = Some(index);
                }
            }
            self.writes.set_proposed(key, index, term);
        }
    }

    fn propose_membership(&mut self, key: u64, effects: &mut Effects) {
        let Some(pending) = self.writes.get(key) else { return };
        let Command::Members(command) = pending.write.command.clone() else { return };
        if let Some(outcome) = self.state.sessions.kept(pending.write.request) {
            return self.finish_write(key, outcome, effects);
        }
        let refusal = |problem: String| Outcome::Refused(Refusal::Membership { problem: problem.into() });
        if self.raft.raft.has_pending_conf() || self.configuration.is_joint() || !self.raft.raft.apply_to_current_term()
        {
            // Changes go one at a time; this one waits for the one before, which may be an earlier copy of itself.
            return self.writes.set_waiting(key, self.now.plus_ms(RETRY_MS));
        }
        let changes = match self.membership_changes(&command) {
            Ok(changes) => changes,
            Err(problem) => return self.finish_write(key, refusal(problem), effects),
        };
        let Some(leadership) = &mut self.leadership else { return };
        let elapsed = self.now.micros_since(leadership.stamp);
        let proposal = Proposal { write: pending.write.clone(), recorded_at: self.wall, elapsed };
        let context = codec::encode_proposal(&proposal);
        let index = Index(self.raft.raft.raft_log.last_index() + 1);
        let term = Term(self.raft.raft.term);
        let mut entry = Entry::default();
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        entry.data = change_to_raft(&changes).write_to_bytes().expect("a small message encodes").into();
        entry.context = context;
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.identity.replica.0;
        message.set_entries(Vec::from([entry]).into());
        self.raft.raft.step(message).expect("a leader that hands nothing over takes proposals");
        leadership.stamp = Time(leadership.stamp.0 + elapsed * 1_000);
        self.writes.set_proposed(key, index, term);
    }

    /// What a member command does to the configuration, or why it cannot.
    fn membership_changes(&self, command: &MemberCommand) -> Result<MemberChanges, String> {
        use MemberChangeKind::{Learner, Remove, Voter};
        let present = |id: &ReplicaId| self.configuration.everybody().contains(id);
        let voters = &self.configuration.voters;
        let leaves = |id: &ReplicaId| {
            if *id == self.identity.replica {
                return Err(format!("replica {id} leads; hand leadership over first with `muster members transfer`"));
            }
            if voters.contains(id) && voters.len() == 1 {
                return Err(format!("replica {id} is the only voter"));
            }
            Ok(())
        };
        match command {
            MemberCommand::Admit(_) => Ok(Vec::new()),
            MemberCommand::AddLearner(id) => {
                if self.state.members.get(*id).is_none() {
                    return Err(format!("replica {id} was never admitted; run `muster join` on its host"));
                }
                if present(id) {
                    return Err(format!("replica {id} is already part of the cluster"));
                }
                Ok(Vec::from([(Learner, *id)]))
            }
            MemberCommand::Promote(id) => {
                if voters.contains(id) {
                    return Err(format!("replica {id} votes already"));
                }
                self.ready_to_vote(*id)?;
                Ok(Vec::from([(Voter, *id)]))
            }
            MemberCommand::Demote(id) => {
                if !voters.contains(id) {
                    return Err(format!("replica {id} is not a voter"));
                }
                leaves(id)?;
                Ok(Vec::from([(Learner, *id)]))
            }
            MemberCommand::Remove(id) => {
                if !present(id) && self.state.members.get(*id).is_none() {
                    return Err(format!("there is no replica {id}"));
                }
                leaves(id)?;
                Ok(Vec::from([(Remove, *id)]))
            }
            MemberCommand::Replace { old, new } => {
                if !voters.contains(old) {
                    return Err(format!("replica {old} is not a voter"));
                }
                if voters.contains(new) {
                    return Err(format!("replica {new} votes already"));
                }
                leaves(old)?;
                self.ready_to_vote(*new)?;
                Ok(Vec::from([(Voter, *new), (Remove, *old)]))
            }
        }
    }

    fn finish_write(&mut self, key: u64, outcome: Outcome, effects: &mut Effects) {
        if let Some(pending) = self.writes.remove(key) {
            self.answer_write(&pending, outcome, effects);
        }
    }

    /// One copy of a write came to nothing. That is the write's outcome only if there can be no other.
    fn finish_copy(&mut self, key: u64, outcome: Outcome, effects: &mut Effects) {
        if self.writes.get(key).is_some_and(|pending| pending.stage == Stage::Proposed && !pending.may_be_logged()) {
            self.finish_write(key, outcome, effects);
        }
    }

    fn answer_write(&mut self, pending: &Pending, outcome: Outcome, effects: &mut Effects) {
        match pending.origin {
            Origin::Client(token) => effects.answers.push((token, Answer::Write(outcome))),
            Origin::Peer { replica, token } => self.send(replica, PeerMessage::Forwarded { token, outcome }, effects),
            Origin::Own => {
                if let Some(leadership) = &mut self.leadership {
                    if pending.write.command == Command::Expire {
                        leadership.expire = None;
                    }
                }
                match outcome {
                    Outcome::Applied { .. } => {}
                    Outcome::Refused(_) | Outcome::NotApplied(_) | Outcome::Unknown(_) => {
                        info!(replica = self.identity.replica.0, command = ?pending.write.command, ?outcome, "own write came to nothing");
                    }
                }
            }
        }
    }

    // ---- reads ------------------------------------------------------------------------------------------------------------

    fn on_read(&mut self, token: Token, freshness: Freshness, effects: &mut Effects) {
        let waiter =
            Waiter { reader: Reader::Client(token), deadline: self.now.plus_ms(self.settings.timing.request_ms) };
        if self.reads.len() + self.minimum_reads.len() >= self.settings.limits.reads_waiting_max {
            let busy = NotApplied::Busy { retry_after_ms: 100 };
            return self.answer_read(waiter.reader, Err(busy), effects);
        }
        match freshness {
            Freshness::Local => self.answer_read(waiter.reader, Ok(()), effects),
            Freshness::AtLeast(sequence) => self.minimum_reads.push((sequence, waiter)),
            Freshness::Linearizable => self.reads.add(waiter),
        }
    }

    fn start_reads(&mut self, effects: &mut Effects) {
        if !self.reads.has_fresh() {
            return;
        }
        if self.is_leader() {
            if !self.raft.raft.commit_to_current_term() {
                return;
            }
            if let Some(context) = self.reads.start_round() {
                let mut bytes = self.raft.raft.term.to_be_bytes().to_vec();
                bytes.extend_from_slice(&context.to_be_bytes());
                self.raft.read_index(bytes);
            }
        } else if self.known_leader.0 != 0 {
            if let Some(token) = self.reads.ask(self.known_leader, self.now) {
                self.send(self.known_leader, PeerMessage::ReadIndex { token }, effects);
            }
        }
    }

    fn on_read_state(&mut self, context: &[u8], index: Index, effects: &mut Effects) {
        let Some(tail) = context.get(8..16) else { return };
        let Ok(tail) = <[u8; 8]>::try_from(tail) else { return };
        for waiter in self.reads.finish_round(u64::from_be_bytes(tail)) {
            match waiter.reader {
                Reader::Client(_) => self.reads.wait_for(index, waiter),
                Reader::Peer { replica, token } => {
                    self.send(replica, PeerMessage::ReadIndexReply { token, index: Some(index) }, effects);
                }
            }
        }
    }

    fn answer_reads(&mut self, effects: &mut Effects) {
        for waiter in self.reads.applied(self.applied) {
            self.answer_read(waiter.reader, Ok(()), effects);
        }
        let sequence = self.state.sequence();
        let ripe: Vec<_> = self.minimum_reads.extract_if(.., |(wanted, _)| *wanted <= sequence).collect();
        for (_, waiter) in ripe {
            self.answer_read(waiter.reader, Ok(()), effects);
        }
    }

    fn answer_read(&self, reader: Reader, answer: Result<(), NotApplied>, effects: &mut Effects) {
        match reader {
            Reader::Client(token) => effects.answers.push((token, Answer::Read(answer))),
            Reader::Peer { replica, token } => {
                self.send(replica, PeerMessage::ReadIndexReply { token, index: None }, effects);
            }
        }
    }

    // ---- snapshots --------------------------------------------------------------------------------------------------------

    fn snapshot_index(&self) -> Index {
        self.snapshot.as_ref().map_or(Index(0), |meta| meta.index)
    }

    fn try_snapshot(&mut self, effects: &mut Effects) {
        self.snapshot_wanted |= self.raft.mut_store().take_wanted();
        if self.snapshot_saving || self.applied <= self.snapshot_index() || self.applied.0 == 0 {
            return;
        }
        let limits = &self.settings.limits;
        let entries = self.applied.0 - self.snapshot_index().0;
        let paused = self.snapshot_at.plus_ms(limits.snapshot_pause_ms) <= self.now;
        let due = self.snapshot_wanted
            || (entries >= limits.snapshot_entries && paused)
            || (self.raft.store().bytes() >= limits.snapshot_log_bytes
                && self.raft.store().bytes_after(self.snapshot_index().0) >= limits.snapshot_log_bytes);
        if !due {
            return;
        }
        let term = self.raft.raft.raft_log.term(self.applied.0).expect("the applied entry's term is kept");
        let meta = SnapshotMeta {
            index: self.applied,
            term: Term(term),
            configuration: self.configuration.clone(),
            sequence: self.state.sequence(),
            head: self.state.head(),
            age: self.state.age(),
            history: self.state.history(),
            pages: 0,
            bytes: 0,
            digest: crate::ids::Digest::default(),
        };
        self.snapshot_saving = true;
        self.snapshot_wanted = false;
        self.snapshot_at = self.now;
        effects.snapshot = Some((meta, self.state.clone()));
    }

    fn on_snapshot_saved(&mut self, meta: SnapshotMeta, oldest: Index, effects: &mut Effects) {
        self.snapshot_saving = false;
        if meta.index > self.snapshot_index() {
            info!(replica = self.identity.replica.0, index = meta.index.0, bytes = meta.bytes, "snapshot saved");
            mark!(snapshot_taken);
            let configuration = configuration_to_raft(&meta.configuration);
            self.raft.mut_store().set_snapshot(meta.index.0, meta.term.0, configuration);
            self.snapshot = Some(meta);
            self.compact();
            effects.log.push(LogTask::Purge(oldest));
        }
        self.answer_snapshots(effects);
    }

    /// Answers who asked for a snapshot that the newest durable one covers.
    fn answer_snapshots(&mut self, effects: &mut Effects) {
        if self.is_installing() {
            return; // Answered when that one is durable.
        }
        let index = self.snapshot_index();
        let ripe: Vec<_> = self.snapshot_waiters.extract_if(.., |(_, wanted)| *wanted <= index).collect();
        for (token, _) in ripe {
            effects.answers.push((token, Answer::Admin(AdminOutcome::Snapshot { index })));
        }
        self.snapshot_wanted |= !self.snapshot_waiters.is_empty();
    }

    /// Forgets the log in memory that the snapshot covers, but for what active followers still need, within a bound.
    fn compact(&mut self) {
        let snapshot = self.snapshot_index().0;
        let mut to = snapshot;
        if self.is_leader() {
            for (_, progress) in self.raft.raft.prs().iter() {
                if progress.recent_active && progress.state != ProgressState::Snapshot {
                    to = to.min(progress.matched);
                }
            }
        }
        let bound = self.raft.store().start_within(snapshot, self.settings.limits.log_bytes_behind_snapshot);
        self.raft.mut_store().compact(to.max(bound));
    }

    // ---- operators --------------------------------------------------------------------------------------------------------

    fn on_admin(&mut self, token: Token, request: AdminRequest, effects: &mut Effects) {
        match request {
            AdminRequest::Snapshot => {
                if self.applied <= self.snapshot_index() {
                    let index = self.snapshot_index();
                    effects.answers.push((token, Answer::Admin(AdminOutcome::Snapshot { index })));
                } else {
                    self.snapshot_waiters.push((token, self.applied));
                    self.snapshot_wanted = true;
                }
            }
            AdminRequest::Transfer { to } => {
                let fail = |problem: String| (token, Answer::Admin(AdminOutcome::Failed { problem }));
                if !self.is_leader() {
                    let problem = match self.not_leader() {
                        NotApplied::NotLeader { leader, address } => {
                            format!("replica {leader} at {address} leads; ask it")
                        }
                        _ => String::from("nobody leads"),
                    };
                    return effects.answers.push(fail(problem));
                }
                let to = if to.0 == 0 { self.furthest_voter() } else { Some(to) };
                let Some(to) = to else {
                    return effects.answers.push(fail(String::from("there is no other voter that could take over")));
                };
                if !self.configuration.voters.contains(&to) {
                    return effects.answers.push(fail(format!("replica {to} is not a voter")));
                }
                if to == self.identity.replica {
                    let outcome = AdminOutcome::Transferred { leader: to };
                    return effects.answers.push((token, Answer::Admin(outcome)));
                }
                self.raft.transfer_leader(to.0);
                let deadline = self.now.plus_ms(2 * self.settings.timing.election_ms_max);
                if let Some((before, _, _)) = self.transfer.replace((token, to, deadline)) {
                    let problem = format!("leadership was asked to go to replica {to} instead");
                    effects.answers.push((before, Answer::Admin(AdminOutcome::Failed { problem })));
                }
            }
        }
    }

    fn furthest_voter(&self) -> Option<ReplicaId> {
        let prs = self.raft.raft.prs();
        self.configuration
            .voters
            .iter()
            .filter(|id| **id != self.identity.replica)
            .filter_map(|id| prs.get(id.0).filter(|p| p.recent_active).map(|p| (p.matched, *id)))
            .max()
            .map(|(_, id)| id)
    }

    fn on_stop(&mut self, effects: &mut Effects) {
        self.stopping = true;
        if self.is_leader() {
            if let Some(to) = self.furthest_voter() {
                self.raft.transfer_leader(to.0);
            }
        }
        let waiting: Vec<u64> = self.writes.routable(Time(u64::MAX));
        for key in waiting {
            let unlogged = self.writes.get(key).is_some_and(|p| !p.may_be_logged());
            if unlogged {
                self.finish_write(key, Outcome::NotApplied(NotApplied::Stopping), effects);
            }
        }
    }

    /// Ends every request that is still on its way, for a driver that stops.
    pub fn abandon(&mut self) -> Vec<(Token, Answer)> {
        let mut effects = Effects::default();
        for pending in self.writes.drain() {
            let outcome = if pending.may_be_logged() {
                Outcome::Unknown(UnknownWhy::TimedOut)
            } else {
                Outcome::NotApplied(NotApplied::Stopping)
            };
            self.answer_write(&pending, outcome, &mut effects);
        }
        effects.answers
    }

    // ---- what others see --------------------------------------------------------------------------------------------------

    fn tell_members(&mut self, effects: &mut Effects) {
        if !self.members_told {
            let (configuration, table) = (&self.configuration, &self.state.members);
            self.leaving
                .retain(|member| table.get(member.id).is_none() && configuration.everybody().contains(&member.id));
            let members: Vec<_> = table.all().chain(&self.leaving).cloned().collect();
            self.members_told = true;
            effects.members = Some(members);
        }
    }

    fn role(&self) -> RaftRole {
        match self.raft.raft.state {
            StateRole::Leader => RaftRole::Leader,
            StateRole::PreCandidate => RaftRole::PreCandidate,
            StateRole::Candidate => RaftRole::Candidate,
            StateRole::Follower if self.configuration.is_voter(self.identity.replica) => RaftRole::Follower,
            StateRole::Follower => RaftRole::Learner,
        }
    }

    /// Its Raft state, for operators.
    #[must_use]
    pub fn status(&self) -> ReplicaStatus {
        let raft = &self.raft.raft;
        let progress = if self.is_leader() {
            let mut all: Vec<_> = raft
                .prs()
                .iter()
                .filter(|(id, _)| **id != self.identity.replica.0)
                .map(|(id, progress)| Progress {
                    replica: ReplicaId(*id),
                    match_index: Index(progress.matched),
                    next_index: Index(progress.next_idx),
                    state: match progress.state {
                        ProgressState::Probe => "probe",
                        ProgressState::Replicate => "replicate",
                        ProgressState::Snapshot => "snapshot",
                    },
                    paused: progress.is_paused(),
                    recent_active: progress.recent_active,
                    pending_snapshot: (progress.pending_snapshot != 0).then_some(Index(progress.pending_snapshot)),
                    full_copy: self
                        .leadership
                        .as_ref()
                        .and_then(|l| l.reports.get(&ReplicaId(*id)).copied())
                        .unwrap_or(false),
                })
                .collect();
            all.sort_unstable_by_key(|p| p.replica);
            all
        } else {
            Vec::new()
        };
        ReplicaStatus {
            replica: self.identity.replica,
            role: self.role(),
            leader: ReplicaId(raft.leader_id),
            term: Term(raft.term),
            vote: ReplicaId(raft.vote),
            commit: Index(raft.raft_log.committed),
            applied: self.applied,
            persisted: Index(raft.raft_log.persisted),
            last: Index(raft.raft_log.last_index()),
            first: Index(self.raft.store().first()),
            snapshot: self.snapshot_index(),
            log_bytes: self.raft.store().bytes(),
            full_copy: self.full_copy,
            configuration: self.configuration.clone(),
            progress,
            refused_messages: self.refused,
            snapshot_digest: self.snapshot.as_ref().map(|meta| meta.digest),
        }
    }

    fn publish(&mut self, effects: &mut Effects) {
        let role = self.role();
        let raft = &self.raft.raft;
        let changed = self.publication.applied != self.applied
            || self.publication.role != Some(role)
            || self.publication.term != raft.term
            || self.publication.leader != raft.leader_id;
        if !changed && self.publication.at.plus_ms(HOUSEKEEPING_MS) > self.now {
            return;
        }
        self.publication = Publication {
            version: self.publication.version + 1,
            at: self.now,
            applied: self.applied,
            role: Some(role),
            term: raft.term,
            leader: raft.leader_id,
        };
        effects.view = Some(Arc::new(View {
            state: self.state.clone(),
            status: self.status(),
            version: self.publication.version,
            published: self.now,
        }));
    }
}
