//! What a booting node is told: its vCluster's overlay, then one delta, right together at one sequence.

use crate::ids::{NodeId, Seq, VClusterId};
use crate::journal::document::{self, Document, Kind};
use crate::journal::key::{Key, Scope, Setting};
use crate::journal::overlay::BootOverlay;
use crate::journal::policy::Policy;
use crate::journal::stack::Stack;
use crate::query;
use crate::state::State;
use alloc::collections::BTreeMap;
use bytes::Bytes;
use core::fmt;

/// A boot, right at `sequence`. Holds the bytes to send, not the view they came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootPlan {
    /// Which node.
    pub node: NodeId,
    /// Its vCluster.
    pub vcluster: VClusterId,
    /// Phase one. Its version may be older than the configuration: the delta makes up for it.
    pub overlay: BootOverlay,
    /// The journal's sequence at which overlay plus delta are right; subscribe after it.
    pub sequence: Seq,
    /// Phase two: a boot document (`journal::document`), uncompressed: every key, and the policy, that a Global or `VCluster`
    /// entry touched after the overlay's version, with its value or an explicit unset; then all that is live for the node.
    pub delta: Bytes,
}

/// Why there is no boot plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootRefusal {
    /// The node was never assigned to a vCluster.
    UnknownNode {
        /// The node.
        node: NodeId,
    },
    /// The node's assignment expired or was rolled back.
    NoVCluster {
        /// The node.
        node: NodeId,
    },
    /// No overlay is stored: build one (`overlay::build`) and call [`plan_with`].
    NoOverlay {
        /// The node's vCluster.
        vcluster: VClusterId,
    },
    /// The overlay is from a later view than this one: take a newer view.
    Ahead {
        /// The overlay's version.
        version: Seq,
        /// This view's sequence.
        sequence: Seq,
    },
}

impl fmt::Display for BootRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownNode { node } => {
                write!(f, "node {node} is not known: assign it with a boot-config entry node:{node} vcluster=NAME")
            }
            Self::NoVCluster { node } => {
                write!(f, "node {node} is in no vCluster any more: assign it with a boot-config entry vcluster=NAME")
            }
            Self::NoOverlay { vcluster } => write!(f, "vcluster {vcluster} has no stored overlay"),
            Self::Ahead { version, sequence } => {
                write!(f, "the overlay's version {version} is newer than this replica's sequence {sequence}")
            }
        }
    }
}

impl core::error::Error for BootRefusal {}

fn vcluster_of(state: &State, node: &NodeId) -> Result<VClusterId, BootRefusal> {
    let known = state.journal.node(node).ok_or_else(|| BootRefusal::UnknownNode { node: node.clone() })?;
    known.vcluster.clone().ok_or_else(|| BootRefusal::NoVCluster { node: node.clone() })
}

/// Plans a node's boot from the stored overlay.
///
/// # Errors
/// [`BootRefusal`].
pub fn plan(state: &State, node: &NodeId) -> Result<BootPlan, BootRefusal> {
    let vcluster = vcluster_of(state, node)?;
    let stored = state.journal.vcluster(&vcluster).and_then(|known| known.overlay.clone());
    plan_with(state, node, stored.ok_or(BootRefusal::NoOverlay { vcluster })?)
}

/// Plans a node's boot from an overlay of its vCluster, of this or an earlier version. Costs what was touched since.
///
/// # Errors
/// [`BootRefusal`].
pub fn plan_with(state: &State, node: &NodeId, overlay: BootOverlay) -> Result<BootPlan, BootRefusal> {
    let (vcluster, delta) = delta(state, node, overlay.version)?;
    Ok(BootPlan { node: node.clone(), vcluster, overlay, sequence: state.sequence(), delta })
}

/// Phase two alone, for a node that holds its vCluster's overlay of some version; and which vCluster that is.
///
/// # Errors
/// [`BootRefusal`].
pub fn delta(state: &State, node: &NodeId, version: Seq) -> Result<(VClusterId, Bytes), BootRefusal> {
    let vcluster = vcluster_of(state, node)?;
    if version > state.sequence() {
        return Err(BootRefusal::Ahead { version, sequence: state.sequence() });
    }
    let common = [Scope::VCluster(vcluster.clone()), Scope::Global];
    let mut settings = BTreeMap::new();
    for scope in &common {
        for (_, key) in state.journal.touched_after(scope, version) {
            let says = |scope| state.journal.stack(scope, key).map(Stack::setting);
            let mut tops = common.iter().filter_map(says).filter(|setting| *setting != Setting::Unset);
            settings.insert(key.clone(), tops.next().unwrap_or(Setting::Unset));
        }
    }
    let own = Scope::Node(node.clone());
    settings.extend(state.journal.declared(&own).map(|(key, pair)| (key.clone(), pair.setting.clone())));
    let policy = state.journal.vcluster(&vcluster).filter(|known| known.policy_sequence > version);
    let policy = policy.map(|known| (known.policy_sequence, Policy::clone(&known.policy)));
    // Whatever else happens in the journal leaves the bytes as they are, so that they can be asked for conditionally and resumed.
    let [vclusters, global] = common;
    let heads = [&global, &vclusters, &own].map(|scope| state.journal.scope_head(scope));
    let sequence = heads.into_iter().fold(version, Seq::max);
    let delta = document::write(&Document {
        kind: Kind::Delta { sequence, node: node.clone() },
        vcluster: vcluster.clone(),
        version,
        policy,
        settings,
    });
    Ok((vcluster, delta.into()))
}

/// What a node makes of the two documents: the overlay, corrected by the delta.
#[must_use]
pub fn assemble(overlay: &Document, delta: &Document) -> BTreeMap<Key, Setting> {
    let mut settings = overlay.settings.clone();
    for (key, setting) in &delta.settings {
        match setting {
            Setting::Unset => settings.remove(key),
            Setting::Absent | Setting::Value(_) => settings.insert(key.clone(), setting.clone()),
        };
    }
    settings
}

/// What counts on a node: what a boot must give.
#[must_use]
pub fn declared(state: &State, node: &NodeId) -> BTreeMap<Key, Setting> {
    query::effective(state, node).into_iter().map(|effective| (effective.key, effective.setting)).collect()
}
