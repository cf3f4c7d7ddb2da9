//! The authorization door: every operation of every interface passes through [`allow`] before anything is done.
//!
//! Who asks is a [`Caller`], proven by a certificate ([`Credential`]), by the kernel ([`local`]), or, on a connection without
//! TLS, merely claimed. What is asked is an [`Operation`]: a [`Kind`] and whom it concerns. Each kind has one row in the table
//! ([`Kind::row`]) that says what each role may; nothing else decides it.
//!
//! Which vCluster a node is in comes from a [`Fleet`]: replicated state at a replica, the agent's own knowledge at an agent.
//! A write is looked at twice: where it arrives, so that what a role may never do costs nothing, and in apply, where
//! membership is what it is at that entry, so every replica decides alike and a node that moves meanwhile is no race.
//!
//! Never here: certificates' signatures and dates, sockets, configuration. Nothing is allowed by default.

mod credential;
pub mod local;
mod operation;
mod witness;

pub use credential::{Credential, CredentialError};
pub use operation::{About, Kind, Operation, Row, Rule, table};
pub use witness::{DOUBTFUL, witnessed};

use crate::agent::value;
use crate::ids::{NodeId, ReplicaName, VClusterId};
use crate::journal::command::JournalCommand;
use crate::journal::entry::{Author, Role};
use crate::journal::key::{Scope, Setting};
use crate::journal::live::Journal;
use crate::limits::FEATURE_DOOR;
use crate::request::{Command, NotApplied, Refusal, WriteRequest};
use crate::state::State;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::fmt;

/// Who stands at the other end, as far as the connection proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Somebody with a role. What they change is recorded in their name.
    Author(Author),
    /// A replica, by the name its certificate gives it.
    Replica(ReplicaName),
    /// Somebody who showed nothing.
    Nobody,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Author(author) => write!(f, "{} ({})", author.principal, Who::of(author)),
            Self::Replica(name) => write!(f, "replica {name}"),
            Self::Nobody => f.write_str("somebody without a certificate"),
        }
    }
}

/// Tells which vCluster a node is in.
pub trait Fleet {
    /// The node's vCluster; none if it is in none, or not known here.
    fn vcluster_of(&self, node: &NodeId) -> Option<&VClusterId>;
}

impl Fleet for Journal {
    fn vcluster_of(&self, node: &NodeId) -> Option<&VClusterId> {
        self.node(node)?.vcluster.as_ref()
    }
}

/// A fleet of which nothing is known, for operations that hang on nothing in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nowhere;

impl Fleet for Nowhere {
    fn vcluster_of(&self, _: &NodeId) -> Option<&VClusterId> {
        None
    }
}

/// What the agent of one node knows of the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneNode {
    /// The node.
    pub node: NodeId,
    /// The vCluster it booted into.
    pub vcluster: Option<VClusterId>,
}

impl Fleet for OneNode {
    fn vcluster_of(&self, node: &NodeId) -> Option<&VClusterId> {
        self.vcluster.as_ref().filter(|_| *node == self.node)
    }
}

/// An operation that is not allowed, and what it would need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// What was asked.
    pub kind: Kind,
    /// Who asked for what, and who may, in one sentence.
    pub problem: String,
    /// Whether another fleet (a node in another vCluster) would change the answer. If not, no replica will ever allow it.
    pub may_change: bool,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

impl core::error::Error for Denied {}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        Self::Forbidden { problem: Arc::from(denied.problem) }
    }
}

/// What is asked of the table: a role with what it is for.
#[derive(Clone, Copy)]
enum Who<'a> {
    Admin,
    Operator(&'a VClusterId),
    Viewer(&'a VClusterId),
    Agent(&'a NodeId),
    Replica(&'a ReplicaName),
    System,
    Nobody,
}

impl<'a> Who<'a> {
    const fn of(author: &'a Author) -> Self {
        match &author.role {
            Role::Admin => Self::Admin,
            Role::Operator(vcluster) => Self::Operator(vcluster),
            Role::Viewer(vcluster) => Self::Viewer(vcluster),
            Role::Agent(node) => Self::Agent(node),
            Role::System => Self::System,
        }
    }

    const fn rule(self, row: Row) -> Rule {
        match self {
            Self::Admin => row.admin,
            Self::Operator(_) => row.operator,
            Self::Viewer(_) => row.viewer,
            Self::Agent(_) => row.agent,
            Self::Replica(_) => row.replica,
            Self::System => row.system,
            Self::Nobody => row.nobody,
        }
    }

    /// Whether a scope is the role's own: its vCluster and the nodes in it, or its node.
    fn owns(self, scope: &Scope, fleet: &impl Fleet) -> bool {
        match (self, scope) {
            (Self::Operator(own) | Self::Viewer(own), Scope::VCluster(vcluster)) => own == vcluster,
            (Self::Operator(own) | Self::Viewer(own), Scope::Node(node)) => fleet.vcluster_of(node) == Some(own),
            (Self::Agent(own), Scope::Node(node)) => own == node,
            _ => false,
        }
    }

    /// Whether what a scope says counts for the role: its own, Global, and for an agent its node's vCluster.
    fn heeds(self, scope: &Scope, fleet: &impl Fleet) -> bool {
        match (self, scope) {
            (Self::Operator(_) | Self::Viewer(_) | Self::Agent(_), Scope::Global) => true,
            (Self::Agent(own), Scope::VCluster(vcluster)) => fleet.vcluster_of(own) == Some(vcluster),
            _ => self.owns(scope, fleet),
        }
    }

    /// Whether the answer about a scope hangs on which vCluster a node is in.
    const fn hangs_on_fleet(self, scope: &Scope) -> bool {
        matches!(
            (self, scope),
            (Self::Operator(_) | Self::Viewer(_), Scope::Node(_)) | (Self::Agent(_), Scope::VCluster(_))
        )
    }
}

impl fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin => f.write_str("admin"),
            Self::Operator(vcluster) => write!(f, "operator of {vcluster}"),
            Self::Viewer(vcluster) => write!(f, "viewer of {vcluster}"),
            Self::Agent(node) => write!(f, "agent of {node}"),
            Self::Replica(name) => write!(f, "replica {name}"),
            Self::System => f.write_str("the cluster itself"),
            Self::Nobody => f.write_str("somebody without a certificate"),
        }
    }
}

/// Lets an operation pass, or says what it would need.
///
/// # Errors
/// [`Denied`].
pub fn allow(caller: &Caller, operation: &Operation, fleet: &impl Fleet) -> Result<(), Denied> {
    let who = match caller {
        Caller::Author(author) => Who::of(author),
        Caller::Replica(name) => Who::Replica(name),
        Caller::Nobody => Who::Nobody,
    };
    decide(who, operation, fleet)
}

/// [`allow`] for an author.
///
/// # Errors
/// [`Denied`].
pub fn allow_author(author: &Author, operation: &Operation, fleet: &impl Fleet) -> Result<(), Denied> {
    decide(Who::of(author), operation, fleet)
}

/// [`allow_author`] for a write where it arrives: what can never be allowed is refused before it costs anybody anything. What
/// hangs on where a node is, a replica may know wrongly; apply decides that, where it asks the door itself.
///
/// What no node could take is refused here as well, and never in apply: what values may say grows with every version, and
/// replicas of different versions must come to the same result.
///
/// # Errors
/// [`NotApplied::Refused`]; [`NotApplied::NoQuorum`] from a replica that has no state yet and does not know where nodes are.
pub fn allow_write(write: &WriteRequest, state: &State) -> Result<(), NotApplied> {
    match allow_author(&write.author, &Operation::of_command(&write.command), &state.journal) {
        Err(denied) if denied.may_change && state.feature_level() >= FEATURE_DOOR => Ok(()),
        Err(denied) if denied.may_change && state.feature_level() == 0 => Err(NotApplied::NoQuorum),
        answer => answer.map_err(|denied| NotApplied::Refused(denied.into())),
    }?;
    can_be_taken(&write.command).map_err(NotApplied::Refused)
}

/// Whether a node could be what a command declares. What is only recorded (drift, what was undone) may say anything, and what is
/// unset needs to fit nothing.
fn can_be_taken(command: &Command) -> Result<(), Refusal> {
    let Command::Journal(JournalCommand::AppendEntry(draft)) = command else { return Ok(()) };
    let declared = draft.changes.iter().filter(|change| draft.entry_type.pushes() && change.next != Setting::Unset);
    for change in declared {
        value::check_setting(&change.key, &change.next).map_err(|unfit| Refusal::Invalid {
            field: Arc::from(change.key.as_str()),
            problem: Arc::from(unfit.to_string()),
        })?;
    }
    Ok(())
}

/// [`allow`] for whoever shows nothing, at a listener that was opened for nobody but them (`boot.anonymous`). It allows what the
/// table marks so, and nothing else.
///
/// # Errors
/// [`Denied`].
pub fn allow_anonymous(operation: &Operation) -> Result<(), Denied> {
    match operation.kind.row().nobody {
        Rule::WhereSet => Ok(()),
        Rule::No | Rule::Yes | Rule::Own | Rule::Counts => Err(denied(Who::Nobody, operation, false)),
    }
}

/// Whether a record or listed thing of this scope is to be shown to a caller whose question named no scope. The past of a node
/// goes with it: who may look at it is who may look at the node at this moment.
#[must_use]
pub fn shows(caller: &Caller, scope: &Scope, fleet: &impl Fleet) -> bool {
    let operation = Operation { kind: Kind::ReadHistory, about: About::Scope(scope.clone()) };
    allow(caller, &operation, fleet).is_ok()
}

fn decide(who: Who<'_>, operation: &Operation, fleet: &impl Fleet) -> Result<(), Denied> {
    let rule = who.rule(operation.kind.row());
    let (allowed, may_change) = match (rule, &operation.about) {
        // A question about nothing in particular is answered, and its answer filtered by `shows`.
        (Rule::Yes, _) | (Rule::Counts, About::Cluster) => (true, false),
        // Where it is set, there is a listener of its own: see `allow_anonymous`.
        (Rule::No | Rule::WhereSet, _) | (Rule::Own, About::Cluster) | (Rule::Counts, About::Member(_)) => {
            (false, false)
        }
        (Rule::Own, About::Scope(scope)) => (who.owns(scope, fleet), who.hangs_on_fleet(scope)),
        (Rule::Own, About::Member(name)) => (matches!(who, Who::Replica(own) if own == name), false),
        (Rule::Counts, About::Scope(scope)) => (who.heeds(scope, fleet), who.hangs_on_fleet(scope)),
    };
    if allowed { Ok(()) } else { Err(denied(who, operation, may_change)) }
}

fn denied(who: Who<'_>, operation: &Operation, may_change: bool) -> Denied {
    let row = operation.kind.row();
    let about = match &operation.about {
        About::Cluster => String::new(),
        About::Scope(scope) => format!(" ({scope})"),
        About::Member(name) => format!(" ({name})"),
    };
    let mut needs = alloc::vec::Vec::new();
    if row.admin == Rule::Yes {
        needs.push("an admin".to_string());
    }
    let vcluster = match &operation.about {
        About::Scope(Scope::VCluster(vcluster)) => Some(format!("vCluster {vcluster}")),
        // Which one that is, is not told to who may not look at it.
        About::Scope(Scope::Node(node)) => Some(format!("the vCluster that {node} is in")),
        About::Scope(Scope::Global) | About::Cluster | About::Member(_) => None,
    };
    for (role, rule) in [("an operator", row.operator), ("a viewer", row.viewer)] {
        match (rule, &vcluster) {
            (Rule::Yes, _) | (Rule::Counts, None) => needs.push(role.to_string()),
            (Rule::Own | Rule::Counts, Some(vcluster)) => needs.push(format!("{role} of {vcluster}")),
            (Rule::No | Rule::WhereSet, _) | (Rule::Own, None) => {}
        }
    }
    match (row.agent, &operation.about) {
        (Rule::Yes, _) => needs.push("an agent".to_string()),
        (Rule::Own | Rule::Counts, About::Scope(Scope::Node(node))) => needs.push(format!("the agent of {node}")),
        (Rule::Counts, About::Scope(Scope::VCluster(vcluster))) => {
            needs.push(format!("the agent of a node in {vcluster}"));
        }
        _ => {}
    }
    match (row.replica, &operation.about) {
        (Rule::Yes, _) => needs.push("a replica".to_string()),
        (Rule::Own, About::Member(name)) => needs.push(format!("replica {name} itself")),
        _ => {}
    }
    if needs.is_empty() {
        needs.push("the cluster itself".to_string());
    }
    let problem = format!("{who} may not {}{about}: it takes {}", operation.kind.words(), needs.join(" or "));
    Denied { kind: operation.kind, problem, may_change }
}
