//! What the write-ahead log holds: hard states and log entries, in the order they were handed out.

use crate::ids::{Index, ReplicaId, Term, WriteId};
use alloc::vec::Vec;
use bytes::Bytes;

/// What a replica may never forget: its term, its vote and how far it knows the log to be committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The current term.
    pub term: Term,
    /// Who got this replica's vote in that term; 0 for nobody.
    pub vote: ReplicaId,
    /// The commit index. A safety matter under joint consensus: every one is written, in order.
    pub commit: Index,
}

/// What an entry's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogEntryKind {
    /// An encoded proposal; empty for a leader's first entry.
    Normal,
    /// A membership change: `data` is the encoded change (empty leaves a joint configuration), `context` the proposal.
    Membership,
}

/// One entry of the Raft log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its term.
    pub term: Term,
    /// Its position.
    pub index: Index,
    /// What `data` is.
    pub kind: LogEntryKind,
    /// The command.
    pub data: Bytes,
    /// Membership changes only: the proposal they belong to.
    pub context: Bytes,
}

/// One record of the write-ahead log. Replaying all of them in order gives the log and the hard state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogRecord {
    /// The hard state from here on.
    HardState(HardState),
    /// Appends; an index that is already there drops it and everything after it first.
    Entries(Vec<LogEntry>),
    /// Drops every entry: the log goes on after this position, which an installed snapshot covers.
    Reset {
        /// The snapshot's index.
        index: Index,
        /// The snapshot's term.
        term: Term,
    },
}

/// A part of the effects that must reach the log. Core withholds what depends on it until it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Names it in the completion.
    pub id: WriteId,
    /// Whether anything waits for it. If not (a commit-only hard state) it may stay in memory and go first into the next
    /// batch that is synced; it is never skipped and never reordered.
    pub sync: bool,
    /// The records, in order.
    pub records: Vec<LogRecord>,
}

/// The members of the configuration in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Voters; the incoming ones while joint.
    pub voters: Vec<ReplicaId>,
    /// The outgoing voters while joint, else empty.
    pub voters_outgoing: Vec<ReplicaId>,
    /// Learners.
    pub learners: Vec<ReplicaId>,
    /// Outgoing voters that become learners when the joint configuration is left.
    pub learners_next: Vec<ReplicaId>,
    /// Whether the joint configuration is left by itself.
    pub auto_leave: bool,
}

impl Configuration {
    /// Whether a joint configuration is in force.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }
    /// Whether `id` votes, in either half.
    #[must_use]
    pub fn is_voter(&self, id: ReplicaId) -> bool {
        self.voters.contains(&id) || self.voters_outgoing.contains(&id)
    }
    /// Everybody, ascending, each once.
    #[must_use]
    pub fn everybody(&self) -> Vec<ReplicaId> {
        let mut all: Vec<_> = self.voters.iter().chain(&self.voters_outgoing).chain(&self.learners).copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}
