//! What a booting node is told: its vCluster's overlay, then one delta, right together at one sequence.

use crate::ids::{NodeId, Seq, VClusterId};
use crate::journal::document::{Document, Kind, Writer};
use crate::journal::key::{Key, Scope, Setting};
use crate::journal::overlay::BootOverlay;
use crate::journal::stack::Stack;
use crate::query;
use crate::state::State;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
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

/// The vCluster whose overlay a node boots with.
///
/// # Errors
/// [`BootRefusal::UnknownNode`], [`BootRefusal::NoVCluster`].
pub fn vcluster_of<'a>(state: &'a State, node: &NodeId) -> Result<&'a VClusterId, BootRefusal> {
    let known = state.journal.node(node).ok_or_else(|| BootRefusal::UnknownNode { node: node.clone() })?;
    known.vcluster.as_ref().ok_or_else(|| BootRefusal::NoVCluster { node: node.clone() })
}

/// Plans a node's boot from the stored overlay.
///
/// # Errors
/// [`BootRefusal`].
pub fn plan(state: &State, node: &NodeId) -> Result<BootPlan, BootRefusal> {
    let vcluster = vcluster_of(state, node)?;
    let stored = state.journal.vcluster(vcluster).and_then(|known| known.overlay.clone());
    plan_with(state, node, stored.ok_or_else(|| BootRefusal::NoOverlay { vcluster: vcluster.clone() })?)
}

/// Plans a node's boot from an overlay of its vCluster, of this or an earlier version. Costs what was touched since.
///
/// # Errors
/// [`BootRefusal`].
pub fn plan_with(state: &State, node: &NodeId, overlay: BootOverlay) -> Result<BootPlan, BootRefusal> {
    let vcluster = vcluster_of(state, node)?.clone();
    let mut delta = String::new();
    write_delta(state, node, &vcluster, overlay.version, &mut delta)?;
    Ok(BootPlan { node: node.clone(), vcluster, overlay, sequence: state.sequence(), delta: delta.into() })
}

/// Writes phase two alone after whatever `text` holds, for a node of a vCluster that holds its overlay of some version.
///
/// Every boot is of another node, so what is looked up here is in no cache: one look for the scope's head, one for where its settings
/// begin, and what they say.
///
/// # Errors
/// [`BootRefusal::Ahead`].
pub fn write_delta(
    state: &State,
    node: &NodeId,
    vcluster: &VClusterId,
    version: Seq,
    text: &mut String,
) -> Result<(), BootRefusal> {
    if version > state.sequence() {
        return Err(BootRefusal::Ahead { version, sequence: state.sequence() });
    }
    let journal = &state.journal;
    let own = Scope::Node(node.clone());
    let common = [Scope::VCluster(vcluster.clone()), Scope::Global];
    let mut touched = Vec::new();
    // Whatever else happens in the journal leaves the bytes as they are, so that they can be asked for conditionally and resumed.
    let mut sequence = version.max(journal.scope_head(&own));
    for scope in &common {
        let head = journal.scope_head(scope);
        sequence = sequence.max(head);
        if head > version {
            touched.extend(journal.touched_after(scope, version).map(|(_, key)| key));
        }
    }
    touched.sort_unstable();
    touched.dedup();
    let own: Vec<(&Key, &Setting)> = journal.declared(&own).map(|(key, pair)| (key, &pair.setting)).collect();

    text.reserve(
        HEAD_BYTES
            + own.iter().map(|(key, setting)| LINE_BYTES + key.as_str().len() + bytes_of(setting)).sum::<usize>(),
    );
    let mut writer = Writer::begin(text, &Kind::Delta { sequence, node: node.clone() }, vcluster, version);
    if let Some(known) = journal.vcluster(vcluster).filter(|known| known.policy_sequence > version) {
        writer.policy(known.policy_sequence, &known.policy);
    }
    let says = |scope, key| journal.stack(scope, key).and_then(Stack::top).map(|pair| &pair.setting);
    let says_anything = |setting: &&Setting| **setting != Setting::Unset;
    let shared =
        |key| common.iter().filter_map(|scope| says(scope, key)).find(says_anything).unwrap_or(&Setting::Unset);
    let mut touched = touched.into_iter().peekable();
    for (key, setting) in own {
        while let Some(other) = touched.next_if(|other| *other < key) {
            writer.setting(other, shared(other));
        }
        touched.next_if_eq(&key);
        writer.setting(key, setting);
    }
    for other in touched {
        writer.setting(other, shared(other));
    }
    writer.end();
    Ok(())
}

/// About how long the first and the last line of a delta are, and what a setting's line has besides key and value: what is too little
/// costs one more piece of memory.
const HEAD_BYTES: usize = 128;
const LINE_BYTES: usize = 8;

fn bytes_of(setting: &Setting) -> usize {
    match setting {
        Setting::Unset | Setting::Absent => 0,
        Setting::Value(value) => value.len(),
    }
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
