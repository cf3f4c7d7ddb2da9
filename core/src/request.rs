//! What clients ask of a replica, and the only answers there are.
//!
//! A write's outcome is one of: applied; refused by the rules (identically on every replica, nothing recorded); not applied,
//! with the reason; unknown, to be retried under the same request id. These never mix.

use crate::ids::{Age, Digest, Index, OneShotId, ReplicaId, Seq, SessionId};
use crate::journal::command::{ConfigState, JournalCommand};
use crate::journal::entry::Author;
use crate::journal::key::{Key, Setting};
use crate::members::MemberCommand;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// How a write is recognised when it comes again, so that it is applied at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestId {
    /// A numbered request of an open session.
    Session {
        /// The session.
        session: SessionId,
        /// Its number, from 1, each used once.
        number: u64,
        /// Replies up to this number are no longer needed.
        acknowledged: u64,
    },
    /// A request on its own. Its reply is kept for 3,600 s of replicated time.
    OneShot {
        /// Drawn by the client.
        id: OneShotId,
        /// The replicated age that a replica told when it was drawn.
        drawn_at: Age,
    },
    /// Not recognised when it comes again. Only for the cluster's own proposals, all of which may be repeated.
    None,
}

/// What a write does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Changes the journal.
    Journal(JournalCommand),
    /// Changes the membership.
    Members(MemberCommand),
    /// Opens a session. Carried by a one-shot.
    OpenSession,
    /// Closes the session that carries it.
    CloseSession,
    /// Expires what is due by replicated age, at most 256 things. Proposed by the leader only.
    Expire,
    /// Raises the feature level. Proposed by the leader once every member supports it.
    RaiseFeatureLevel(u32),
}

/// A write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteRequest {
    /// How it is recognised.
    pub request: RequestId,
    /// Who asks.
    pub author: Author,
    /// For what.
    pub command: Command,
}

/// What applying a command gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Recorded; the last sequence it took (an exec or shell takes two).
    Recorded {
        /// The last sequence.
        sequence: Seq,
    },
    /// The node's state is now this one.
    NodeState {
        /// The state.
        state: ConfigState,
    },
    /// The overlay with this version is stored (an equal version keeps the bytes that were there).
    Overlay {
        /// The stored version.
        version: Seq,
    },
    /// The session is open.
    Session {
        /// Its id.
        session: SessionId,
    },
    /// The session is closed.
    SessionClosed,
    /// The replica is admitted under this id.
    Admitted {
        /// The id.
        replica: ReplicaId,
    },
    /// The membership change is in force.
    Membership,
    /// Expired this many things.
    Expired {
        /// How many.
        count: u32,
    },
    /// The feature level is now this one.
    FeatureLevel {
        /// The level.
        level: u32,
    },
}

/// Why the rules refuse a command. Decided in apply from live state only, so every replica gives the same one; nothing is
/// recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A field is missing or does not fit. Do not retry as it is.
    Invalid {
        /// Which field.
        field: Arc<str>,
        /// What is wrong, and what would be accepted.
        problem: Arc<str>,
    },
    /// The vCluster or node of the scope is not known. Set its policy, or assign it to a vCluster, first.
    UnknownScope {
        /// The scope as text.
        scope: Arc<str>,
        /// How it becomes known.
        hint: Arc<str>,
    },
    /// The parent (or `based_on`) lies beyond the journal's head.
    FutureParent {
        /// What was given.
        parent: Seq,
        /// The journal's head.
        head: Seq,
    },
    /// The scope's key moved on since the parent. Look again and decide.
    Conflict {
        /// The key.
        key: Key,
        /// What the scope says now.
        theirs: Setting,
        /// The sequence that last touched the key.
        theirs_sequence: Seq,
        /// What was asked for.
        yours: Setting,
    },
    /// The rollback's target held a pair that was itself rolled back later: commit it again instead.
    TargetRolledBack {
        /// The key.
        key: Key,
        /// The pair's sequence.
        pair: Seq,
        /// The rollback that took it off.
        taken_off_by: Seq,
    },
    /// The rollback's target lies further back than is remembered for this key: commit the value instead.
    TooFarBack {
        /// The key.
        key: Key,
        /// Nothing before this sequence is remembered for it.
        remembered_from: Seq,
    },
    /// There is nothing to take off.
    NothingToRollBack,
    /// The key holds as many temporary values as it can.
    TooManyTemporary {
        /// The key.
        key: Key,
        /// The bound.
        max: u32,
    },
    /// A node cannot go from the one state to the other by this command.
    IllegalTransition {
        /// From.
        from: ConfigState,
        /// To.
        to: ConfigState,
    },
    /// The node is in an emergency already (or is not in one).
    Emergency {
        /// What is wrong.
        problem: Arc<str>,
    },
    /// The policy or the role forbids it.
    Forbidden {
        /// What is forbidden and by what.
        problem: Arc<str>,
    },
    /// The overlay is older than the stored one, newer than the configuration, or damaged.
    Overlay {
        /// What is wrong.
        problem: Arc<str>,
    },
    /// The membership change does not fit the members there are.
    Membership {
        /// What is wrong.
        problem: Arc<str>,
    },
}

/// Why a write was certainly not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotApplied {
    /// No leader with a quorum is known, and the request was never proposed. Retry later.
    NoQuorum,
    /// Somebody else leads, and forwarding was not wanted.
    NotLeader {
        /// Who leads.
        leader: ReplicaId,
        /// Where its clients reach it.
        address: Arc<str>,
    },
    /// Too much is waiting. Retry after a pause.
    Busy {
        /// After this many milliseconds.
        retry_after_ms: u64,
    },
    /// It can never fit. Do not retry.
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// Another leader's entry took its place in the log. Retry.
    Superseded,
    /// The replica is stopping. Ask another.
    Stopping,
    /// The feature level of the cluster is too low for this command.
    FeatureLevel {
        /// What it needs.
        needs: u32,
        /// What the cluster has.
        has: u32,
    },
    /// Refused where it arrived, before it came near a log. That says nothing of an earlier attempt under the same id, which may
    /// have arrived elsewhere and passed. Do not retry, unless there was one.
    Refused(Refusal),
}

/// Why it is not known whether a write was applied. Retry under the same request id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnknownWhy {
    /// It is in a log, and no quorum answered in time.
    TimedOut,
    /// It was forwarded, and no answer came in time.
    ForwardTimedOut,
    /// The session is not known (any more): what it did before cannot be told.
    SessionUnknown,
    /// Its reply was acknowledged, so it is not kept any more.
    AlreadyAcknowledged,
    /// The one-shot was drawn longer ago than replies are kept, or at an age not yet reached.
    OneShotExpired,
    /// The connection was lost before the answer.
    ConnectionLost,
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Applied at this log index.
    Applied {
        /// Where in the log.
        index: Index,
        /// What it gave.
        reply: Reply,
    },
    /// Refused by the rules.
    Refused(Refusal),
    /// Certainly not applied.
    NotApplied(NotApplied),
    /// Nobody knows.
    Unknown(UnknownWhy),
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Freshness {
    /// Whatever this replica has.
    Local,
    /// Whatever this replica has, but not before this sequence; waits for it, then gives up.
    AtLeast(Seq),
    /// As linearizable, and the leader may answer from its lease, without asking a quorum, where leases are on. Rests on the
    /// stated drift of the replicas' clocks; where they are off it is linearizable as ever.
    Leased,
    /// Everything that was acknowledged before the read began.
    Linearizable,
}

/// A follower's replication as its leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Whose.
    pub replica: ReplicaId,
    /// The highest position known to be on its disk.
    pub match_index: Index,
    /// The next position to send.
    pub next_index: Index,
    /// `probe`, `replicate` or `snapshot`.
    pub state: &'static str,
    /// Whether sending to it is paused until it answers.
    pub paused: bool,
    /// Whether it was heard of within the last election timeout.
    pub recent_active: bool,
    /// The snapshot being sent to it, if any.
    pub pending_snapshot: Option<Index>,
    /// Whether it holds every history segment, by its own last word.
    pub full_copy: bool,
}

/// What a replica is at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RaftRole {
    /// Leads the term.
    Leader,
    /// Follows.
    #[default]
    Follower,
    /// Asks whether it could win.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Takes part without a vote.
    Learner,
}

impl RaftRole {
    /// The word used in output.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::PreCandidate => "pre-candidate",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
        }
    }
}

/// A replica's Raft state, for operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Who.
    pub replica: ReplicaId,
    /// What it is at the moment.
    pub role: RaftRole,
    /// Who leads, as far as it knows; 0 for nobody.
    pub leader: ReplicaId,
    /// Its term.
    pub term: crate::ids::Term,
    /// Its vote in that term; 0 for nobody.
    pub vote: ReplicaId,
    /// Its commit index.
    pub commit: Index,
    /// The last position it applied.
    pub applied: Index,
    /// The last position on its disk.
    pub persisted: Index,
    /// The last position of its log.
    pub last: Index,
    /// The first position its memory still holds.
    pub first: Index,
    /// The newest durable snapshot; 0 for none.
    pub snapshot: Index,
    /// Bytes of log held in memory.
    pub log_bytes: u64,
    /// Whether it holds every history segment.
    pub full_copy: bool,
    /// The configuration in force.
    pub configuration: crate::log::Configuration,
    /// The leader's view of everybody else; empty on others.
    pub progress: Vec<Progress>,
    /// Peer messages refused since the start.
    pub refused_messages: u64,
    /// The state's digest and index at the last snapshot, for comparing replicas.
    pub snapshot_digest: Option<Digest>,
}

/// Something a replica is asked to do that is not a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminRequest {
    /// Take a snapshot now.
    Snapshot,
    /// Hand leadership to another voter.
    Transfer {
        /// To whom; 0 picks the one that is furthest.
        to: ReplicaId,
    },
}

/// What became of an [`AdminRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminOutcome {
    /// A snapshot at this position is durable.
    Snapshot {
        /// Where.
        index: Index,
    },
    /// This one leads now.
    Transferred {
        /// Who.
        leader: ReplicaId,
    },
    /// It was not done.
    Failed {
        /// Why.
        problem: String,
    },
}
