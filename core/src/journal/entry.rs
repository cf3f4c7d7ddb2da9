//! What the journal records: configuration entries and audit records, in one dense sequence and one hash chain.

use super::key::{Key, Scope, Setting};
use super::policy::Policy;
use crate::ids::{NodeId, Seq, VClusterId, WallTime};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

/// The twelve kinds of configuration entry. Only `Commit`, `AutoConverge` and `BootConfig` push settings; `Rollback` only
/// takes off; in every other kind the delta is a record and changes nothing. A node's `Rollback` that takes nothing off records
/// what was undone on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryType {
    /// An operator stands by a change.
    Commit,
    /// Settings are taken off their stacks: by an operator, or by expiry.
    Rollback,
    /// The system adopts a node's drift as declared.
    AutoConverge,
    /// A node was seen to differ from what is declared.
    DriftDetected,
    /// A node's capabilities changed.
    CapabilityChange,
    /// A vCluster's policy was set. Made by `SetPolicy` only.
    PolicyUpdate,
    /// Configuration declared before boot, and a node's assignment to a vCluster.
    BootConfig,
    /// An emergency begins on a node.
    EmergencyStart,
    /// An emergency ends on a node.
    EmergencyEnd,
    /// A command was run on a node. Made by `RecordOperation` only.
    ExecLog,
    /// A shell session began or ended on a node. Made by `RecordOperation` only.
    ShellSession,
    /// A service was started, stopped or failed.
    ServiceLifecycle,
}

impl EntryType {
    /// All twelve, in the order of their stored numbers.
    pub const ALL: [Self; 12] = [
        Self::Commit,
        Self::Rollback,
        Self::AutoConverge,
        Self::DriftDetected,
        Self::CapabilityChange,
        Self::PolicyUpdate,
        Self::BootConfig,
        Self::EmergencyStart,
        Self::EmergencyEnd,
        Self::ExecLog,
        Self::ShellSession,
        Self::ServiceLifecycle,
    ];

    /// The name used in output and filters.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Rollback => "rollback",
            Self::AutoConverge => "auto-converge",
            Self::DriftDetected => "drift-detected",
            Self::CapabilityChange => "capability-change",
            Self::PolicyUpdate => "policy-update",
            Self::BootConfig => "boot-config",
            Self::EmergencyStart => "emergency-start",
            Self::EmergencyEnd => "emergency-end",
            Self::ExecLog => "exec-log",
            Self::ShellSession => "shell-session",
            Self::ServiceLifecycle => "service-lifecycle",
        }
    }

    /// Whether the delta is pushed onto the stacks.
    #[must_use]
    pub const fn pushes(self) -> bool {
        matches!(self, Self::Commit | Self::AutoConverge | Self::BootConfig)
    }
}

/// One key's change: what the scope said before and says after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Key,
    /// What this scope said before. Filled in by apply for kinds that push or take off; the author's word otherwise.
    pub previous: Setting,
    /// What this scope says after.
    pub next: Setting,
}

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Principal {
    /// A certificate's subject.
    Certificate {
        /// The subject.
        subject: Arc<str>,
    },
    /// An OIDC identity.
    Oidc {
        /// The issuer's URL.
        issuer: Arc<str>,
        /// The subject at that issuer.
        subject: Arc<str>,
    },
    /// A name given without proof, over a connection without TLS. Printed `claimed:NAME`.
    Claimed {
        /// The name.
        name: Arc<str>,
    },
    /// The cluster itself, e.g. `system:expiry`.
    System {
        /// Which part of it.
        part: Arc<str>,
    },
}

/// In which capacity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// May do everything.
    Admin,
    /// May change one vCluster and its nodes.
    Operator(VClusterId),
    /// May look at one vCluster and its nodes.
    Viewer(VClusterId),
    /// The agent of one node.
    Agent(NodeId),
    /// The cluster itself.
    System,
}

/// Principal and role: required on every entry and operation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Author {
    /// Who.
    pub principal: Principal,
    /// In which capacity.
    pub role: Role,
}

impl Author {
    /// A part of the cluster itself, printed `system:PART`: `expiry`, `overlay`, `membership` or `features`.
    #[must_use]
    pub fn system(part: &str) -> Self {
        Self { principal: Principal::System { part: Arc::from(part) }, role: Role::System }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate { subject } => write!(f, "certificate:{subject}"),
            Self::Oidc { issuer, subject } => write!(f, "oidc:{issuer}#{subject}"),
            Self::Claimed { name } => write!(f, "claimed:{name}"),
            Self::System { part } => write!(f, "system:{part}"),
        }
    }
}

/// What a client asks to append. Sequence, time, `previous`, `takes_off` and `policy_ref` are filled in by apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryDraft {
    /// The kind. `PolicyUpdate`, `ExecLog` and `ShellSession` are refused here: they have commands of their own.
    pub entry_type: EntryType,
    /// For whom.
    pub scope: Scope,
    /// The sequence the author last saw for that scope; for a Rollback the sequence to return to.
    pub parent: Seq,
    /// Rollback only: the scope's head when the author looked.
    pub based_on: Option<Seq>,
    /// What changes. Empty for a Rollback, unless it records what was undone on a node: then it takes nothing off.
    pub changes: Vec<Change>,
    /// Kinds that push only: seconds of replicated time until it expires, 900 to 864,000.
    pub ttl_seconds: Option<u32>,
    /// `EmergencyStart` only, and required there.
    pub emergency_reason: Option<Arc<str>>,
    /// Why, in the author's words. May be empty.
    pub message: Arc<str>,
    /// When it happened by the author's clock. Informational.
    pub occurred_at: Option<WallTime>,
}

/// A recorded configuration entry. Immutable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigEntry {
    /// Its place in the journal.
    pub sequence: Seq,
    /// The leader's wall clock, clamped to be monotone. For people.
    pub recorded_at: WallTime,
    /// The author's clock.
    pub occurred_at: Option<WallTime>,
    /// The kind.
    pub entry_type: EntryType,
    /// For whom.
    pub scope: Scope,
    /// By whom.
    pub author: Author,
    /// What the author last saw of the scope; for a Rollback the sequence returned to (for expiry: the expired entry).
    pub parent: Seq,
    /// Rollback only: the scope's head it was computed from.
    pub based_on: Option<Seq>,
    /// What changed, in the author's order.
    pub delta: Vec<Change>,
    /// Rollback only: the (key, sequence) pairs removed from their stacks.
    pub takes_off: Vec<(Key, Seq)>,
    /// The `PolicyUpdate` in force for the scope's vCluster, if any.
    pub policy_ref: Option<Seq>,
    /// `PolicyUpdate` only: the policy that was set.
    pub policy: Option<Policy>,
    /// Seconds of replicated time until it expires.
    pub ttl_seconds: Option<u32>,
    /// `EmergencyStart` only.
    pub emergency_reason: Option<Arc<str>>,
    /// Why, in the author's words.
    pub message: Arc<str>,
}

/// What kind of operation was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OperationKind {
    /// A command was run; appends an `ExecLog` entry.
    Exec,
    /// A shell session began; appends a `ShellSession` entry.
    ShellStart,
    /// A shell session ended; appends a `ShellSession` entry.
    ShellEnd,
    /// The cluster's membership changed. Made by apply only.
    Membership,
}

/// What a client asks to record of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationDraft {
    /// The kind.
    pub kind: OperationKind,
    /// Where: a node.
    pub scope: Scope,
    /// The command line, or what the session was about. Not empty.
    pub detail: Arc<str>,
    /// The exit status, where it is known.
    pub exit_status: Option<i32>,
    /// When it happened by the author's clock.
    pub occurred_at: Option<WallTime>,
}

/// A recorded operation: the audit log. Immutable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminOperation {
    /// Its place in the journal.
    pub sequence: Seq,
    /// The leader's wall clock, clamped to be monotone.
    pub recorded_at: WallTime,
    /// The author's clock.
    pub occurred_at: Option<WallTime>,
    /// By whom.
    pub author: Author,
    /// The kind.
    pub kind: OperationKind,
    /// Where.
    pub scope: Scope,
    /// The command line, or what it was about.
    pub detail: Arc<str>,
    /// The exit status, where it is known.
    pub exit_status: Option<i32>,
}

/// One sequence of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A configuration entry.
    Entry(ConfigEntry),
    /// An audit record.
    Operation(AdminOperation),
}

impl Record {
    /// Its place in the journal.
    #[must_use]
    pub const fn sequence(&self) -> Seq {
        match self {
            Self::Entry(entry) => entry.sequence,
            Self::Operation(operation) => operation.sequence,
        }
    }
    /// What it is about.
    #[must_use]
    pub const fn scope(&self) -> &Scope {
        match self {
            Self::Entry(entry) => &entry.scope,
            Self::Operation(operation) => &operation.scope,
        }
    }
}
