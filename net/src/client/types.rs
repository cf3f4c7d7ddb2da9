//! What the client takes and gives, beyond core's own types.

use crate::tls::Tls;
use bytes::Bytes;
use muster_core::ids::{
    Age, ClusterId, Digest, GroupId, Incarnation, NodeId, OneShotId, ReplicaId, ReplicaName, Seq, VClusterId,
};
use muster_core::journal::entry::{EntryType, Record};
use muster_core::journal::key::Scope;
use muster_core::journal::overlay::BootOverlay;
use muster_core::members::Member;
use muster_core::query::{Answer, Declared, Summary};
use muster_core::request::{NotApplied, Outcome, Refusal, ReplicaStatus};
use std::fmt;
use std::time::Duration;

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a write is retried before its outcome is given as it stands. Longer rides out longer elections; shorter
    /// tells the caller sooner. Default 10 s.
    pub write_timeout: Duration,
    /// How long a read may take over all the replicas that are tried. Default 10 s.
    pub read_timeout: Duration,
    /// How long one replica may take to answer a write before another is asked, under the same id. More than the replicas'
    /// own request timeout (5 s in the LAN preset), else what they would have called *not applied* becomes *unknown*.
    /// Default 6 s.
    pub attempt_timeout: Duration,
    /// How long one replica may take to begin its answer to a question before another is asked. A replica that hangs is known by
    /// nothing else. Shorter turns away from one sooner; longer bears with a slow one. Default 1 s.
    pub read_attempt_timeout: Duration,
    /// How long one connection may take to be made before the next replica is tried. Default 1 s.
    pub connect_timeout: Duration,
    /// The client's keys, for replicas that speak TLS; what it writes is then in its certificate's name. Default none.
    pub tls: Option<Tls>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            write_timeout: Duration::from_secs(12),
            read_timeout: Duration::from_secs(10),
            attempt_timeout: Duration::from_secs(6),
            read_attempt_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            tls: None,
        }
    }
}

/// Why a question got no answer. Writes never give this: their outcome says what became of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientError {
    /// No replica could be reached. Check the addresses and whether the servers run.
    Unreachable {
        /// Each address that was tried, and what happened.
        tried: Vec<(String, String)>,
    },
    /// Whoever we are may not do that, or is not let in at all.
    Denied {
        /// Which replica says so.
        address: String,
        /// Why, and what it takes.
        problem: String,
    },
    /// The question does not fit what is there.
    Refused(Refusal),
    /// The replicas cannot answer at this time.
    NotAnswered(NotApplied),
    /// The node knows more than any replica that was asked. Ask later.
    Lagging {
        /// The overlay version the node holds.
        known: Seq,
        /// The journal's sequence there.
        sequence: Seq,
    },
    /// The request itself is wrong.
    Invalid {
        /// What is wrong and what would be accepted.
        problem: String,
    },
    /// The replica answered something that makes no sense, or broke off. Its version may differ from ours.
    Broken {
        /// Which replica.
        address: String,
        /// What happened.
        problem: String,
    },
    /// The history does not verify.
    NotVerified {
        /// Where.
        sequence: Seq,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A write on the way failed: what became of it.
    Outcome(Outcome),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { tried } => {
                f.write_str("no replica could be reached")?;
                for (address, problem) in tried {
                    write!(f, "; {address}: {problem}")?;
                }
                f.write_str("; check the addresses and whether the servers run")
            }
            Self::Denied { address, problem } => write!(f, "{address} denies it: {problem}"),
            Self::Refused(refusal) => write!(f, "refused: {refusal:?}"),
            Self::NotAnswered(why) => write!(f, "not answered: {why:?}"),
            Self::Lagging { known, sequence } => write!(
                f,
                "the node holds overlay version {known}, the replicas asked are at sequence {sequence}; ask later"
            ),
            Self::Invalid { problem } => write!(f, "the request is wrong: {problem}"),
            Self::Broken { address, problem } => write!(f, "{address} broke off or made no sense: {problem}"),
            Self::NotVerified { sequence, problem } => {
                write!(f, "the history does not verify at sequence {sequence}: {problem}")
            }
            Self::Outcome(outcome) => write!(f, "the write did not get through: {outcome:?}"),
        }
    }
}

impl std::error::Error for ClientError {}

/// An answer with the sequence it reflects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The journal's sequence that the answer reflects.
    pub sequence: Seq,
    /// The answer, of the question's kind.
    pub answer: Answer,
}

/// What a node asks for when it boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootAsk {
    /// Which node.
    pub node: NodeId,
    /// The overlay it holds already.
    pub known: Option<(VClusterId, Seq)>,
    /// The answer must reflect at least this sequence; 0 for whatever the replica has.
    pub at_least: Seq,
}

/// A complete boot, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Which node.
    pub node: NodeId,
    /// Its vCluster.
    pub vcluster: VClusterId,
    /// The overlay's version.
    pub overlay_version: Seq,
    /// The checksum of the overlay's compressed bytes.
    pub overlay_checksum: Digest,
    /// The overlay; none if the node holds this version already.
    pub overlay: Option<BootOverlay>,
    /// The delta: a boot document.
    pub delta: Bytes,
    /// Overlay plus delta are right at this sequence; subscribe after it.
    pub sequence: Seq,
    /// Which replica served it.
    pub served_by: String,
}

/// What to subscribe to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Records of any of these scopes; every scope if empty.
    Scopes(Vec<Scope>),
    /// Records that concern this node: its own, its vCluster's and Global.
    Node(NodeId),
}

/// What a subscription tells. Resume after `upto`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tidings {
    /// New records in order, each once; none in a heartbeat.
    pub records: Vec<Record>,
    /// Everything up to here was looked at.
    pub upto: Seq,
}

/// Which records of the past.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// Only of these scopes; every scope if empty.
    pub scopes: Vec<Scope>,
    /// Only entries of these types; every type and audit records if empty.
    pub types: Vec<EntryType>,
    /// Audit records as well as the entries that `types` names.
    pub operations: bool,
    /// Only records whose principal has this name.
    pub author: Option<String>,
    /// After this sequence, exclusive.
    pub after: Seq,
    /// Up to this sequence, inclusive; the journal's head if none.
    pub upto: Option<Seq>,
    /// At most this many.
    pub limit: Option<u64>,
    /// The newest first.
    pub newest_first: bool,
}

/// What a scope declared at a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateAt {
    /// The sequence that this reflects.
    pub at: Seq,
    /// The scope's head there.
    pub head: Seq,
    /// What it declared, by key.
    pub settings: Vec<Declared>,
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Here.
    pub sequence: Seq,
    /// Of this.
    pub of: Seq,
}

/// The hash chain holds together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// How far it was read.
    pub sequence: Seq,
    /// The chain's head there.
    pub head: Digest,
    /// Whether a given head was found on the chain; false if none was given (then it is only consistent with itself).
    pub head_matched: bool,
}

/// A replica as its operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its group.
    pub group: GroupId,
    /// Its display name.
    pub name: ReplicaName,
    /// The life of its data directory.
    pub incarnation: Incarnation,
    /// The version of its binary.
    pub build_version: String,
    /// Its Raft state.
    pub replica: ReplicaStatus,
    /// Its journal.
    pub summary: Summary,
    /// Everybody.
    pub members: Vec<Member>,
    /// What its data directory takes on disk, in bytes; 0 if it was not told.
    pub disk_bytes: u64,
    /// Until when its certificate counts, in seconds since the Unix epoch; none without TLS.
    pub certificate_ends: Option<u64>,
}

/// What a new replica writes into its data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// The cluster.
    pub cluster: ClusterId,
    /// The group.
    pub group: GroupId,
    /// The id allotted to it.
    pub replica: ReplicaId,
    /// Everybody, the new one included.
    pub members: Vec<Member>,
}

/// A request id that can be written down and used again by another process (`--request-id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OneShot {
    /// The id.
    pub id: OneShotId,
    /// The replicated age when it was drawn.
    pub drawn_at: Age,
}
