//! The replica: Raft, the replicated state and the requests on their way, behind one door.
//!
//! `step(now, inputs) -> Effects`, and `settle() -> Effects` after it, are the only way in and the only way out. The library (raft-rs) is wrapped so that its sharp
//! edges cannot be reached: peers' messages are validated first ([`validate`]), read index has contexts of our own ([`reads`]),
//! election timeouts are a pure function of the seed, and every promise waits until the write behind it is durable.
//!
//! Invariants
//! - no message leaves while a new term or vote is not durable; no acknowledgement before its entries are;
//! - every hard state handed out is written, in order; only a commit-only one may wait in memory for the next batch;
//! - a replica neither votes nor campaigns until the longest election timeout has passed since its start;
//! - applied <= persisted, applied <= committed;
//! - what an answer rests on is visible, and its records are on their way to the archive, before the answer is given.
//!
//! It never reads a clock, waits, or touches a device.

mod convert;
mod effects;
mod lease;
mod logger;
mod membership;
mod memory;
mod operators;
mod promises;
mod queue;
mod reading;
mod reads;
mod routing;
mod settings;
mod showing;
mod snapshots;
mod ticking;
mod validate;
mod writes;

pub use convert::{MemberChangeKind, MemberChanges};
pub use effects::{Answer, Effects, Input, LogTask, Staged, Token};
pub use settings::{LEASE_DRIFT_PPM_MAX, Limits, Timing};

use crate::ids::{Index, ReplicaId, Term, Time, WallTime, WriteId};
use crate::live::Live;
use crate::log::Configuration;
use crate::mark::mark;
use crate::members::Member;
use crate::peer::{Envelope, PeerMessage, RaftMessage, RaftMessageKind};
use crate::request::{AdminOutcome, NotApplied, Outcome, RaftRole, UnknownWhy};
use crate::state::State;
use crate::storage::{Identity, Recovered, SnapshotMeta};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use convert::{configuration_to_raft, entry_to_raft, hard_state_to_raft, message_from_raft, message_to_raft};
use lease::Lease;
use memory::MemoryLog;
use raft::eraftpb::{Entry, Message};
use raft::{ProgressState, RawNode, SnapshotStatus, StateRole};
use reads::{Reader, Reads, Waiter};
use tracing::{info, warn};
use writes::{Origin, Stage, Writes};

pub use crate::limits::FEATURE_LEVEL;

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
    /// The feature level that was proposed in this term.
    raising: u32,
    reports: BTreeMap<ReplicaId, bool>,
    lease: Lease,
    /// Followers that are under a snapshot, or are probed after they were and have not moved since.
    under_snapshot: BTreeMap<ReplicaId, Offered>,
}

/// A follower's snapshot, as its leader sees it.
#[derive(Clone, Copy)]
struct Offered {
    /// When it was offered last.
    since: Time,
    /// The follower's match then.
    matched: u64,
    /// How long it is waited for before it is offered again.
    patience_ms: u64,
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
#[allow(clippy::struct_excessive_bools, reason = "independent facts, each named")]
pub struct Replica {
    identity: Identity,
    settings: Settings,
    now: Time,
    wall: WallTime,
    raft: RawNode<MemoryLog>,
    live: Arc<Live>,
    applied: Index,
    configuration: Configuration,
    quiet_until: Time,
    /// The last tick that was counted.
    last_tick: Time,
    /// Ticks after it that pass without a step.
    rest_ticks: u64,
    next_tick: Time,
    attempts: u64,
    next_write: u64,
    unwritten: VecDeque<Unwritten>,
    /// The last term and vote handed out to be written.
    promised: (Term, ReplicaId),
    proposals: Vec<u64>,
    /// Handed out by the library and not applied yet.
    committed: Vec<Entry>,
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
    /// An offer that came while another one is being fetched or installed; taken up after that.
    offered: Option<(ReplicaId, RaftMessage)>,
    transfer: Option<(Token, ReplicaId, Time)>,
    full_copy: bool,
    /// The last snapshot installed in this run.
    installed: Index,
    report_due: Time,
    house_due: Time,
    refused: u64,
    stopping: bool,
    publication: Publication,
    members_told: bool,
    /// Who was taken out of the table, for as long as the configuration still needs them.
    leaving: Vec<Member>,
}

/// `SplitMix64`: from one number to an unrelated one.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

const HOUSEKEEPING_MS: u64 = 100;
const REPORT_MS: u64 = 1_000;
const ASK_AGAIN_MS: u64 = 300;
const RETRY_MS: u64 = 30;
/// How long a first offer of a snapshot is waited for; twice as long after every further one, up to the limit.
const SNAPSHOT_PATIENCE_MS: u64 = 2_000;
/// How long replicated time may stand still while something waits for it.
const EXPIRE_PULSE_MICROS: u64 = 60_000_000;

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
            &entries,
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
        let replica = Self {
            quiet_until: now.plus_ms(timing.election_ms_max),
            last_tick: now,
            rest_ticks: 0,
            next_tick: now.plus_ms(timing.tick_ms),
            writes: Writes::new(first_token),
            reads: Reads::new(first_token),
            identity,
            settings,
            now,
            wall: WallTime(0),
            live: Arc::new(Live::new(state, at)),
            raft,
            applied: at,
            configuration,
            attempts: 0,
            next_write: 0,
            unwritten: VecDeque::new(),
            promised: (hard_state.term, hard_state.vote),
            proposals: Vec::new(),
            committed: Vec::new(),
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
            installed: Index(0),
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
        };
        replica.live.publish(replica.status(), 0, now);
        replica
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
    pub fn state(&self) -> State {
        self.live.look(State::clone)
    }

    /// The replicated state, where others look at it.
    pub(crate) const fn live(&self) -> &Arc<Live> {
        &self.live
    }

    fn is_admitted(&self, id: ReplicaId) -> bool {
        self.live.look(|state| state.members.get(id).is_some())
    }

    /// Handles everything that happened, then one tick if it is due: gives what is to be written and sent. [`Self::settle`] has to
    /// follow. `wall` is recorded, never decided on.
    pub fn step(&mut self, now: Time, wall: WallTime, inputs: impl IntoIterator<Item = Input>) -> Effects {
        self.now = self.now.max(now);
        self.wall = wall;
        let mut effects = Effects::default();
        self.count_rested();
        for input in inputs {
            self.on_input(input, &mut effects);
        }
        if self.now >= self.next_tick {
            // Missed ticks are dropped: a pause must not look like many silent heartbeats.
            self.last_tick = self.now;
            self.tick(&mut effects);
        }
        self.get_ready(&mut effects);
        effects
    }

    /// Applies what is committed, and gives what comes of that. Apart from [`Self::step`], so that the log is written and peers
    /// are told meanwhile.
    pub fn settle(&mut self) -> Effects {
        let mut effects = Effects::default();
        while !self.committed.is_empty() {
            self.apply_committed(&mut effects);
            self.get_ready(&mut effects);
        }
        self.answer_reads(&mut effects);
        self.try_snapshot(&mut effects);
        self.tell_members(&mut effects);
        self.publish(&mut effects);
        self.check_invariants();
        self.rest();
        effects.wake_at = self.next_tick;
        effects
    }

    /// Passes on what waits and takes from the library what it has ready, until it has no more.
    fn get_ready(&mut self, effects: &mut Effects) {
        loop {
            // First of all: one that led until just now would send its followers' requests to itself.
            self.on_role();
            self.route_writes(effects);
            self.propose(effects);
            self.start_reads(effects);
            if !self.raft.has_ready() {
                break;
            }
            self.on_ready(effects);
        }
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

    pub(super) fn is_installing(&self) -> bool {
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
            Input::SnapshotInstalled(meta) => self.on_snapshot_installed(*meta),
            Input::SnapshotStaged(staged) => self.on_snapshot_staged(*staged, effects),
            Input::SnapshotLost { index } => {
                if self.fetching.as_ref().is_some_and(|(_, m)| m.snapshot.as_ref().is_some_and(|s| s.index == index)) {
                    self.fetching = None;
                    self.fetch_offered(effects);
                }
            }
            Input::HistoryComplete { after, complete } => {
                if after >= self.installed && self.full_copy != complete {
                    self.full_copy = complete;
                    self.report_due = self.now;
                }
            }
            Input::Stop => self.on_stop(effects),
            Input::Wake => {}
        }
    }

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
        let known = self.live.look(|state| state.members.get(from).map(|member| member.incarnation));
        if known.is_some_and(|incarnation| incarnation != envelope.incarnation) {
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

    fn tick(&mut self, effects: &mut Effects) {
        let leads = self.is_leader();
        if self.may_tick() {
            let before = self.raft.raft.election_elapsed;
            self.tick_raft();
            self.on_role();
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
            let report = PeerMessage::Report {
                full_copy: self.full_copy,
                applied: self.applied,
                feature_level: crate::limits::FEATURE_LEVEL,
            };
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
            info!(replica = self.identity.replica.0, term, index = self.applied.0, "leads");
            // The last entry is this term's own first one.
            if self.raft.raft.raft_log.last_index() > self.raft.raft.raft_log.committed + 1 {
                mark!(leader_changed_with_entries_in_flight);
            }
            self.attempts = 0;
            self.leadership = Some(Leadership {
                term,
                stamp: self.now,
                expire: None,
                raising: 0,
                reports: BTreeMap::new(),
                lease: Lease::default(),
                under_snapshot: BTreeMap::new(),
            });
        } else if !leads && self.leadership.is_some() {
            info!(replica = self.identity.replica.0, term, index = self.applied.0, "leads no more");
            self.leadership = None;
            self.reads.abandon_rounds();
        }
        if leader != self.known_leader {
            if leader.0 != 0 {
                info!(
                    replica = self.identity.replica.0,
                    term,
                    index = self.applied.0,
                    leader = leader.0,
                    "follows a leader"
                );
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
        self.try_raise_level();
    }
}
