//! The one door of a replica: what goes in, and what comes out.

use crate::ids::{Index, ReplicaId, Time, WriteId};
use crate::log::Write;
use crate::members::Member;
use crate::peer::Envelope;
use crate::request::{AdminOutcome, AdminRequest, Freshness, NotApplied, Outcome, WriteRequest};
use crate::state::{Finished, State};
use crate::storage::SnapshotMeta;
use alloc::boxed::Box;
use alloc::vec::Vec;
use bytes::Bytes;

/// Names a request of this process in its answer.
pub type Token = u64;

/// Everything that can happen to a replica.
#[derive(Clone, Debug)]
pub enum Input {
    /// A peer's message arrived; it may be late, repeated, from the past or hostile.
    Peer(Envelope),
    /// A client wants a command in the log.
    Write {
        /// Names the answer.
        token: Token,
        /// The write. Its author has been checked at the edge.
        write: WriteRequest,
        /// Whether to pass it on to the leader; if not, a follower refuses with the leader's address.
        forward: bool,
    },
    /// A client wants to read.
    Read {
        /// Names the answer.
        token: Token,
        /// How fresh.
        freshness: Freshness,
    },
    /// An operator wants something of this replica.
    Admin {
        /// Names the answer.
        token: Token,
        /// What.
        request: AdminRequest,
    },
    /// Every write up to and including this one is durable. Installs are writes.
    Persisted(WriteId),
    /// A snapshot is durable; the oldest one still kept is at `oldest`.
    SnapshotSaved {
        /// The finished snapshot.
        meta: SnapshotMeta,
        /// Where the oldest kept one is.
        oldest: Index,
    },
    /// A fetched snapshot is the newest one on disk: this is its meta with the layers that are here.
    SnapshotInstalled(Box<SnapshotMeta>),
    /// A snapshot offered by a peer has been fetched, checked and decoded.
    SnapshotStaged(Box<Staged>),
    /// Fetching a snapshot failed for good (the peer no longer has it).
    SnapshotLost {
        /// Which one.
        index: Index,
    },
    /// Whether every history segment that the newest snapshot names is here.
    HistoryComplete {
        /// The snapshot installed when the look began; 0 for none in this run. An answer from before a later install is void.
        after: Index,
        /// Whether nothing is missing.
        complete: bool,
    },
    /// The process is about to stop: hand leadership over, take no new work.
    Stop,
    /// The deadline in `Effects::wake_at` has passed.
    Wake,
}

/// A fetched snapshot.
#[derive(Clone, Debug)]
pub struct Staged {
    /// Who offered it.
    pub from: ReplicaId,
    /// What it is.
    pub meta: SnapshotMeta,
    /// Its live state, decoded.
    pub state: State,
    /// The stored records of its open segment.
    pub open: Vec<Bytes>,
}

/// An answer to a client of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What became of a write.
    Write(Outcome),
    /// A read may be evaluated on the newest view, or not.
    Read(Result<(), NotApplied>),
    /// What became of an operator's request.
    Admin(AdminOutcome),
}

/// Something for the log's writer, in order.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "installs are rare, and tasks are moved once")]
pub enum LogTask {
    /// Make it durable.
    Write(Write),
    /// Make a staged snapshot the newest one, then make `write` durable.
    Install {
        /// Which, as it was offered.
        meta: SnapshotMeta,
        /// Its live state.
        state: State,
        /// The stored records of its open segment.
        open: Vec<Bytes>,
        /// The log's reset and hard state.
        write: Write,
    },
    /// Forget log segments that hold nothing after this position.
    Purge(Index),
}

/// What the driver is asked to do. Each list is ordered; between lists any order is safe, but for one thing: `finished` goes
/// to the archive before anything of `log` begins, `published` is told and `answers` are given.
#[derive(Debug, Default)]
pub struct Effects {
    /// For the log's writer.
    pub log: Vec<LogTask>,
    /// Messages for peers.
    pub sends: Vec<Envelope>,
    /// Records for the history.
    pub finished: Vec<Finished>,
    /// Answers for clients of this process.
    pub answers: Vec<(Token, Answer)>,
    /// The version under which what others see was published anew.
    pub published: Option<u64>,
    /// A snapshot to take of this state; layers and digest of the meta are filled in by the archive.
    pub snapshot: Option<(SnapshotMeta, State)>,
    /// A snapshot to fetch from a peer.
    pub fetch: Option<(ReplicaId, SnapshotMeta)>,
    /// Look for missing history segments.
    pub look_for_history: Option<Index>,
    /// The members changed: these are all of them.
    pub members: Option<Vec<Member>>,
    /// When to wake it at the latest.
    pub wake_at: Time,
}
