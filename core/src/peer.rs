//! What replicas say to each other.
//!
//! Every message travels in an [`Envelope`] that names cluster, group and both ends. All messages may be lost, repeated,
//! delayed and reordered; none may be corrupted (the transport's checksum sees to that).

use crate::ids::{ClusterId, GroupId, Incarnation, Index, ReplicaId, Term};
use crate::log::LogEntry;
use crate::request::{Outcome, WriteRequest};
use crate::storage::SnapshotMeta;
use alloc::vec::Vec;
use bytes::Bytes;

/// A message with its ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The cluster of the sender.
    pub cluster: ClusterId,
    /// The group of the sender.
    pub group: GroupId,
    /// The sender.
    pub from: ReplicaId,
    /// The sender's incarnation.
    pub incarnation: Incarnation,
    /// The receiver.
    pub to: ReplicaId,
    /// What is said.
    pub message: PeerMessage,
}

/// Over which of a pair's two streams a message goes, so that a heartbeat never waits behind an overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Votes, heartbeats, read index, answers.
    Control,
    /// Entries and forwarded writes.
    Bulk,
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMessage {
    /// Consensus.
    Raft(RaftMessage),
    /// Follower to leader: a client's write. Lost: the client's outcome is unknown.
    Forward {
        /// Names it in the answer; never repeated by the sender's incarnation.
        token: u64,
        /// The write.
        write: WriteRequest,
    },
    /// Leader to follower: what became of it.
    Forwarded {
        /// Which.
        token: u64,
        /// What.
        outcome: Outcome,
    },
    /// Follower to leader: up to where must I have applied to answer reads that began by now?
    ReadIndex {
        /// Names it in the answer; never repeated by the sender's incarnation.
        token: u64,
    },
    /// Leader to follower: up to here. None: I do not lead.
    ReadIndexReply {
        /// Which.
        token: u64,
        /// Up to where.
        index: Option<Index>,
    },
    /// Anyone to its leader, with every heartbeat answer: what Raft does not say.
    Report {
        /// Whether the sender holds every history segment.
        full_copy: bool,
        /// The sender's applied index.
        applied: Index,
        /// The highest feature level the sender supports.
        feature_level: u32,
    },
}

/// The Raft messages that may come over the wire. Everything else the library knows is local and refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RaftMessageKind {
    /// Leader: entries after a position.
    Append,
    /// Follower: they are on disk, or they do not fit.
    AppendReply,
    /// Candidate: your vote?
    Vote,
    /// The vote.
    VoteReply,
    /// Pre-candidate: would I get your vote?
    PreVote,
    /// The answer.
    PreVoteReply,
    /// Leader: I lead, and you know at least this much to be committed.
    Heartbeat,
    /// Follower: heard.
    HeartbeatReply,
    /// Leader: you are too far behind, fetch this snapshot from me.
    Snapshot,
    /// Leader: campaign now, I step aside.
    TimeoutNow,
}

/// A Raft message. Unused fields are zero or empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftMessage {
    /// The kind.
    pub kind: RaftMessageKind,
    /// The sender's term (for a pre-vote: the one it would campaign for).
    pub term: Term,
    /// The term of the entry at `index`.
    pub log_term: Term,
    /// The position before the entries; for replies the position answered.
    pub index: Index,
    /// Entries after `index`, contiguous.
    pub entries: Vec<LogEntry>,
    /// The sender's commit index.
    pub commit: Index,
    /// The term of the entry at `commit`.
    pub commit_term: Term,
    /// Whether the reply is a refusal.
    pub reject: bool,
    /// Where the follower's log ends, in a refusal.
    pub reject_hint: Index,
    /// The context of a heartbeat or vote.
    pub context: Bytes,
    /// The snapshot to fetch.
    pub snapshot: Option<SnapshotMeta>,
    /// Whether the follower asks for a snapshot, and from where.
    pub request_snapshot: Index,
}

impl RaftMessage {
    /// A message of a kind in a term that says nothing else.
    #[must_use]
    pub const fn bare(kind: RaftMessageKind, term: Term) -> Self {
        Self {
            kind,
            term,
            log_term: Term(0),
            index: Index(0),
            entries: Vec::new(),
            commit: Index(0),
            commit_term: Term(0),
            reject: false,
            reject_hint: Index(0),
            context: Bytes::new(),
            snapshot: None,
            request_snapshot: Index(0),
        }
    }
}

impl PeerMessage {
    /// Over which stream it goes.
    #[must_use]
    pub fn lane(&self) -> Lane {
        match self {
            Self::Raft(message) => match message.kind {
                RaftMessageKind::Append | RaftMessageKind::Snapshot => Lane::Bulk,
                RaftMessageKind::AppendReply
                | RaftMessageKind::Vote
                | RaftMessageKind::VoteReply
                | RaftMessageKind::PreVote
                | RaftMessageKind::PreVoteReply
                | RaftMessageKind::Heartbeat
                | RaftMessageKind::HeartbeatReply
                | RaftMessageKind::TimeoutNow => Lane::Control,
            },
            Self::Forward { .. } => Lane::Bulk,
            Self::Forwarded { .. } | Self::ReadIndex { .. } | Self::ReadIndexReply { .. } | Self::Report { .. } => {
                Lane::Control
            }
        }
    }
}
