//! What can be asked of live state, and the answers. Evaluated on a view, away from the replica's loop.

use crate::ids::{Age, Digest, Index, NodeId, Seq, VClusterId, WallTime};
use crate::journal::command::ConfigState;
use crate::journal::key::{Key, Scope, Setting};
use crate::journal::live::Node;
use crate::journal::policy::Policy;
use crate::members::Member;
use crate::request::Refusal;
use crate::state::State;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// A question about live state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// The journal as a whole.
    Summary,
    /// What one scope itself declares.
    Scope(Scope),
    /// What counts on a node, over all scopes.
    Node(NodeId),
    /// The policy of a vCluster.
    Policy(VClusterId),
    /// Every vCluster with its overlay.
    VClusters,
    /// Every known node, of one vCluster or all.
    Nodes(Option<VClusterId>),
    /// Every member.
    Members,
}

/// The journal as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The last sequence.
    pub sequence: Seq,
    /// The chain's head.
    pub head: Digest,
    /// The log position this reflects.
    pub applied: Index,
    /// Replicated time.
    pub age: Age,
    /// The wall clock of the last record.
    pub recorded_at: WallTime,
    /// The feature level.
    pub feature_level: u32,
    /// How many vClusters are known.
    pub vclusters: u64,
    /// How many nodes are known.
    pub nodes: u64,
    /// How many sessions are open.
    pub sessions: u64,
}

/// One live setting of a scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// The key.
    pub key: Key,
    /// What the scope says.
    pub setting: Setting,
    /// The entry that says so.
    pub sequence: Seq,
    /// When it expires, in replicated time.
    pub expires_at: Option<Age>,
}

/// One setting that counts on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The key.
    pub key: Key,
    /// What counts.
    pub setting: Setting,
    /// The scope that says so.
    pub scope: Scope,
    /// The entry that says so.
    pub sequence: Seq,
}

/// What a vCluster's overlay is at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VClusterSummary {
    /// Which.
    pub vcluster: VClusterId,
    /// The `PolicyUpdate` in force.
    pub policy_sequence: Seq,
    /// The version the overlay should have.
    pub config_version: Seq,
    /// The version of the stored overlay; none is stored yet if absent.
    pub overlay_version: Option<Seq>,
    /// Its stored, compressed size in bytes.
    pub overlay_bytes: u64,
    /// How many nodes are assigned to it.
    pub nodes: u64,
}

/// A known node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSummary {
    /// Which.
    pub node: NodeId,
    /// Its vCluster, if it is assigned to one.
    pub vcluster: Option<VClusterId>,
    /// Its state.
    pub state: ConfigState,
    /// The entry or command that moved it there; 0 if a bare state update did.
    pub since: Seq,
    /// Why it is in an emergency.
    pub emergency_reason: Option<Arc<str>>,
}

/// An answer, of the question's kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To `Summary`.
    Summary(Summary),
    /// To `Scope`: the scope's head (the last sequence that touched it) and its live settings, by key.
    Scope {
        /// The last sequence of this scope.
        head: Seq,
        /// Its live settings.
        settings: Vec<Declared>,
    },
    /// To `Node`: the node and what counts on it, by key.
    Node {
        /// The node.
        node: NodeSummary,
        /// What counts.
        settings: Vec<Effective>,
    },
    /// To `Policy`: the `PolicyUpdate` in force and the policy.
    Policy {
        /// The entry.
        sequence: Seq,
        /// The policy.
        policy: Policy,
    },
    /// To `VClusters`.
    VClusters(Vec<VClusterSummary>),
    /// To `Nodes`.
    Nodes(Vec<NodeSummary>),
    /// To `Members`.
    Members(Vec<Member>),
}

/// Answers a question from a state, as it was at a position of the log.
///
/// # Errors
/// [`Refusal::UnknownScope`] if it is about a vCluster or node that is not known.
pub fn answer(state: &State, index: Index, query: &Query) -> Result<Answer, Refusal> {
    let journal = &state.journal;
    Ok(match query {
        Query::Summary => Answer::Summary(summary(state, index)),
        Query::Scope(scope) => {
            journal.known(scope)?;
            let settings = journal.declared(scope).map(|(key, pair)| Declared {
                key: key.clone(),
                setting: pair.setting.clone(),
                sequence: pair.sequence,
                expires_at: pair.expires_at,
            });
            Answer::Scope { head: journal.scope_head(scope), settings: settings.collect() }
        }
        Query::Node(id) => {
            let node = journal.known_node(id)?;
            Answer::Node { node: node_summary(id, node), settings: effective(state, id) }
        }
        Query::Policy(id) => {
            let vcluster = journal.known_vcluster(id)?;
            Answer::Policy { sequence: vcluster.policy_sequence, policy: Policy::clone(&vcluster.policy) }
        }
        Query::VClusters => Answer::VClusters(
            journal
                .vclusters()
                .map(|(id, vcluster)| VClusterSummary {
                    vcluster: id.clone(),
                    policy_sequence: vcluster.policy_sequence,
                    config_version: journal.config_version(vcluster),
                    overlay_version: vcluster.overlay.as_ref().map(|overlay| overlay.version),
                    overlay_bytes: vcluster.overlay.as_ref().map_or(0, |overlay| overlay.data.len() as u64),
                    nodes: vcluster.nodes,
                })
                .collect(),
        ),
        Query::Nodes(None) => Answer::Nodes(journal.nodes().map(|(id, node)| node_summary(id, node)).collect()),
        Query::Nodes(Some(vcluster)) => {
            journal.known(&Scope::VCluster(vcluster.clone()))?;
            Answer::Nodes(journal.assigned_to(vcluster).map(|(id, node)| node_summary(id, node)).collect())
        }
        Query::Members => Answer::Members(state.members.all().cloned().collect()),
    })
}

/// What counts on a node, by key: its own scope, else its vCluster's, else the Global one. Nothing if it is not known.
#[must_use]
pub fn effective(state: &State, node: &NodeId) -> Vec<Effective> {
    let Some(known) = state.journal.node(node) else { return Vec::new() };
    let vcluster = known.vcluster.clone().map(Scope::VCluster);
    let mut found = BTreeMap::new();
    for scope in [Some(Scope::Global), vcluster, Some(Scope::Node(node.clone()))].into_iter().flatten() {
        for (key, pair) in state.journal.declared(&scope) {
            let (setting, sequence) = (pair.setting.clone(), pair.sequence);
            found.insert(key.clone(), Effective { key: key.clone(), setting, scope: scope.clone(), sequence });
        }
    }
    found.into_values().collect()
}

fn summary(state: &State, index: Index) -> Summary {
    Summary {
        sequence: state.sequence(),
        head: state.head(),
        applied: index,
        age: state.age(),
        recorded_at: state.journal.recorded_at(),
        feature_level: state.feature_level(),
        vclusters: state.journal.vclusters.len() as u64,
        nodes: state.journal.node_count(),
        sessions: state.sessions.count(),
    }
}

fn node_summary(id: &NodeId, node: &Node) -> NodeSummary {
    NodeSummary {
        node: id.clone(),
        vcluster: node.vcluster.clone(),
        state: node.state,
        since: node.since,
        emergency_reason: node.emergency.as_ref().map(|emergency| Arc::clone(&emergency.reason)),
    }
}
