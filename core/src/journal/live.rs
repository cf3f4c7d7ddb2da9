//! The journal's live state: what counts now, and nothing of the past but the head of its chain.
//!
//! Everything is a structure-sharing ordered map, so a clone is O(1) and stays what it was. Five of the maps are indexes
//! (`touched`, `expiring`, `assigned`, the pair `behind`/`overlays`, and `weights`): they follow from the others, are not stored
//! in snapshots, and exist so that a rollback, a boot, an expiry, a look for stale overlays and the bound on what is declared
//! cost what they change.
//!
//! Only [`super::apply`] moves it.

use super::command::ConfigState;
use super::document::line_bytes;
use super::key::{Key, Scope, Setting};
use super::overlay::BootOverlay;
use super::policy::Policy;
use super::stack::{Pair, Stack};
use crate::ids::{Age, Digest, NodeId, Seq, VClusterId, WallTime};
use crate::request::Refusal;
use crate::storage::Segment;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use imbl::{OrdMap, OrdSet, Vector};

/// A known vCluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VCluster {
    /// The `PolicyUpdate` in force.
    pub policy_sequence: Seq,
    /// The policy.
    pub policy: Arc<Policy>,
    /// The last entry of this scope that its overlay must contain. Global ones count as well: see
    /// [`Journal::config_version`].
    pub(crate) version: Seq,
    /// The stored overlay.
    pub overlay: Option<BootOverlay>,
    /// How many nodes are assigned to it.
    pub nodes: u64,
}

impl VCluster {
    pub(crate) fn overlay_version(&self) -> Seq {
        self.overlay.as_ref().map_or(Seq(0), |overlay| overlay.version)
    }
}

/// An emergency in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emergency {
    /// Why.
    pub reason: Arc<str>,
    /// The state to return to when it is ended by force.
    pub before: ConfigState,
}

/// A known node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its vCluster, if it is assigned to one.
    pub vcluster: Option<VClusterId>,
    /// Its state.
    pub state: ConfigState,
    /// The entry that moved it there; 0 if a bare state update did.
    pub since: Seq,
    /// The emergency it is in.
    pub emergency: Option<Emergency>,
}

/// The journal's live state.
#[derive(Clone, Debug)]
pub struct Journal {
    pub(crate) sequence: Seq,
    pub(crate) head: Digest,
    pub(crate) recorded_at: WallTime,
    pub(crate) sealed: Vector<Segment>,
    pub(crate) open: Segment,
    /// The last entry of the Global scope that every overlay must contain.
    pub(crate) global_version: Seq,
    pub(crate) heads: OrdMap<Scope, Seq>,
    pub(crate) stacks: OrdMap<(Scope, Key), Arc<Stack>>,
    pub(crate) vclusters: OrdMap<VClusterId, Arc<VCluster>>,
    pub(crate) nodes: OrdMap<NodeId, Node>,
    /// Each stack under its last touch.
    pub(crate) touched: OrdSet<(Scope, Seq, Key)>,
    /// Each live pair that can expire, by when and by which entry.
    pub(crate) expiring: OrdSet<(Age, Seq, Scope, Key)>,
    /// Each assigned node under its vCluster.
    pub(crate) assigned: OrdSet<(VClusterId, NodeId)>,
    /// Each vCluster whose overlay misses an entry of its own scope.
    pub(crate) behind: OrdSet<VClusterId>,
    /// Each vCluster under the version of its overlay, 0 for none.
    pub(crate) overlays: OrdSet<(Seq, VClusterId)>,
    /// How many bytes of an overlay Global and each vCluster declare at most, whatever of it expires.
    pub(crate) weights: OrdMap<Scope, u64>,
}

/// How many bytes of an overlay a stack comes to at most without another push: what counts, or what would if the temporary
/// pairs above it expired.
pub(crate) fn weight_of(key: &Key, stack: &Stack) -> u64 {
    let permanent = stack.live.iter().rposition(|pair| pair.expires_at.is_none()).unwrap_or(0);
    stack.live.iter().skip(permanent).map(|pair| line_bytes(key, &pair.setting)).max().unwrap_or(0)
}

/// Whether what a scope declares is part of overlays.
pub(crate) const fn is_weighed(scope: &Scope) -> bool {
    matches!(scope, Scope::Global | Scope::VCluster(_))
}

impl Journal {
    /// The empty journal.
    pub(crate) fn new() -> Self {
        Self {
            sequence: Seq(0),
            head: Digest::default(),
            recorded_at: WallTime(0),
            sealed: Vector::new(),
            open: Segment::starting(Seq(1), Digest::default()),
            global_version: Seq(0),
            heads: OrdMap::new(),
            stacks: OrdMap::new(),
            vclusters: OrdMap::new(),
            nodes: OrdMap::new(),
            touched: OrdSet::new(),
            expiring: OrdSet::new(),
            assigned: OrdSet::new(),
            behind: OrdSet::new(),
            overlays: OrdSet::new(),
            weights: OrdMap::new(),
        }
    }

    /// The last sequence.
    #[must_use]
    pub const fn sequence(&self) -> Seq {
        self.sequence
    }

    /// The chain's head. Before the first record it is all zeros.
    #[must_use]
    pub const fn head(&self) -> Digest {
        self.head
    }

    /// The wall clock of the last record.
    #[must_use]
    pub const fn recorded_at(&self) -> WallTime {
        self.recorded_at
    }

    /// The history, oldest first; the last segment is the open one, possibly empty.
    #[must_use]
    pub fn history(&self) -> Vec<Segment> {
        self.sealed.iter().copied().chain([self.open]).collect()
    }

    /// The last sequence that is about a scope; 0 if there is none.
    #[must_use]
    pub fn scope_head(&self, scope: &Scope) -> Seq {
        self.heads.get(scope).copied().unwrap_or_default()
    }

    /// The stack of a scope's key, if it was ever touched.
    #[must_use]
    pub fn stack(&self, scope: &Scope, key: &Key) -> Option<&Stack> {
        self.stacks.get(&(scope.clone(), key.clone())).map(|stack| &**stack)
    }

    /// What a scope itself says about each key it says anything about, with the pair that says so.
    pub fn declared(&self, scope: &Scope) -> impl Iterator<Item = (&Key, &Pair)> {
        let from = (scope.clone(), Key::least());
        self.stacks
            .range(from..)
            .map(|((of, key), stack)| (of, key, stack))
            .take_while(move |(of, _, _)| *of == scope)
            .filter_map(|(_, key, stack)| Some((key, stack.top()?)))
            .filter(|(_, pair)| pair.setting != Setting::Unset)
    }

    /// How many bytes of an overlay a scope declares at most; nodes' scopes are not weighed.
    #[must_use]
    pub fn weight(&self, scope: &Scope) -> u64 {
        self.weights.get(scope).copied().unwrap_or(0)
    }

    /// The keys of a scope that were touched after a sequence, in order of the touch.
    pub fn touched_after(&self, scope: &Scope, after: Seq) -> impl Iterator<Item = (Seq, &Key)> {
        let from = (scope.clone(), after.next(), Key::least());
        self.touched.range(from..).take_while(move |(of, _, _)| of == scope).map(|(_, touch, key)| (*touch, key))
    }

    /// A known vCluster.
    #[must_use]
    pub fn vcluster(&self, id: &VClusterId) -> Option<&VCluster> {
        self.vclusters.get(id).map(|vcluster| &**vcluster)
    }

    /// Every known vCluster, by name.
    pub fn vclusters(&self) -> impl Iterator<Item = (&VClusterId, &VCluster)> {
        self.vclusters.iter().map(|(id, vcluster)| (id, &**vcluster))
    }

    /// A known node.
    #[must_use]
    pub fn node(&self, id: &NodeId) -> Option<&Node> {
        self.nodes.get(id)
    }

    /// Every known node, by name.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeId, &Node)> {
        self.nodes.iter()
    }

    /// How many nodes are known.
    #[must_use]
    pub fn node_count(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// The nodes that are assigned to a vCluster, by name.
    pub fn assigned_to(&self, vcluster: &VClusterId) -> impl Iterator<Item = (&NodeId, &Node)> {
        self.assigned
            .range((vcluster.clone(), NodeId::least())..)
            .take_while(move |(of, _)| of == vcluster)
            .filter_map(|(_, node)| self.nodes.get_key_value(node))
    }

    /// The version that a vCluster's overlay should have: the last entry that it must contain.
    #[must_use]
    pub fn config_version(&self, vcluster: &VCluster) -> Seq {
        vcluster.version.max(self.global_version)
    }

    /// The vClusters whose overlay is missing or older than their configuration, by name. Costs what there is to find.
    #[must_use]
    pub fn stale_overlays(&self) -> Vec<VClusterId> {
        let mut stale: OrdSet<VClusterId> = self.behind.clone();
        for (version, vcluster) in &self.overlays {
            if *version >= self.global_version {
                break;
            }
            stale.insert(vcluster.clone());
        }
        stale.into_iter().collect()
    }

    /// The `PolicyUpdate` in force for a scope's vCluster.
    #[must_use]
    pub fn policy_ref(&self, scope: &Scope) -> Option<Seq> {
        let vcluster = match scope {
            Scope::Global => return None,
            Scope::VCluster(vcluster) => vcluster,
            Scope::Node(node) => self.nodes.get(node)?.vcluster.as_ref()?,
        };
        Some(self.vclusters.get(vcluster)?.policy_sequence)
    }

    /// The policy in force for a node; none if it is in no vCluster.
    #[must_use]
    pub fn policy_of(&self, node: &Node) -> Option<&Policy> {
        Some(&self.vclusters.get(node.vcluster.as_ref()?)?.policy)
    }

    /// Refuses a scope that is not known.
    pub(crate) fn known(&self, scope: &Scope) -> Result<(), Refusal> {
        match scope {
            Scope::Global => Ok(()),
            Scope::VCluster(vcluster) => self.known_vcluster(vcluster).map(|_| ()),
            Scope::Node(node) => self.known_node(node).map(|_| ()),
        }
    }

    /// A vCluster, or the refusal that names how it becomes known.
    pub(crate) fn known_vcluster(&self, id: &VClusterId) -> Result<&VCluster, Refusal> {
        self.vcluster(id).ok_or_else(|| Refusal::UnknownScope {
            scope: Arc::from(Scope::VCluster(id.clone()).to_string()),
            hint: Arc::from("a vCluster becomes known when its policy is set"),
        })
    }

    /// A node, or the refusal that names how it becomes known.
    pub(crate) fn known_node(&self, id: &NodeId) -> Result<&Node, Refusal> {
        self.nodes.get(id).ok_or_else(|| Refusal::UnknownScope {
            scope: Arc::from(Scope::Node(id.clone()).to_string()),
            hint: Arc::from("a node becomes known when a boot-config entry of its scope sets its key vcluster"),
        })
    }

    /// When the next live pair is due to expire.
    pub(crate) fn next_due(&self) -> Option<Age> {
        self.expiring.get_min().map(|(due, _, _, _)| *due)
    }

    // ---- the moves; each keeps the indexes right ----

    /// Replaces a stack by what `change` makes of it.
    pub(crate) fn with_stack<T>(&mut self, scope: &Scope, key: &Key, change: impl FnOnce(&mut Stack) -> T) -> T {
        let at = (scope.clone(), key.clone());
        let weigh = |stack: &Stack| if is_weighed(scope) { weight_of(key, stack) } else { 0 };
        let (before, light, result, after, heavy) = if let Some(stack) = self.stacks.get_mut(&at) {
            let (before, light) = (stack.last_touch, weigh(stack));
            let result = change(Arc::make_mut(stack));
            (before, light, result, stack.last_touch, weigh(stack))
        } else {
            let mut stack = Stack::new();
            let result = change(&mut stack);
            let (after, heavy) = (stack.last_touch, weigh(&stack));
            self.stacks.insert(at, Arc::new(stack));
            (Seq(0), 0, result, after, heavy)
        };
        self.reweigh(scope, light, heavy);
        if before != after {
            if before != Seq(0) {
                self.touched.remove(&(scope.clone(), before, key.clone()));
            }
            self.touched.insert((scope.clone(), after, key.clone()));
        }
        result
    }

    /// One of a scope's stacks came to weigh something else.
    pub(crate) fn reweigh(&mut self, scope: &Scope, before: u64, after: u64) {
        if before != after {
            let weight = self.weights.entry(scope.clone()).or_insert(0);
            *weight = *weight - before + after;
        }
    }

    /// A pair that can expire became live.
    pub(crate) fn will_expire(&mut self, scope: &Scope, key: &Key, pair: &Pair) {
        if let Some(due) = pair.expires_at {
            self.expiring.insert((due, pair.sequence, scope.clone(), key.clone()));
        }
    }

    /// A pair is live no more.
    pub(crate) fn will_not_expire(&mut self, scope: &Scope, key: &Key, pair: &Pair) {
        if let Some(due) = pair.expires_at {
            self.expiring.remove(&(due, pair.sequence, scope.clone(), key.clone()));
        }
    }

    /// Reads a node's assignment from its stack, after that stack moved at `sequence`.
    pub(crate) fn assign(&mut self, id: &NodeId, sequence: Seq) {
        let setting = self.stack(&Scope::Node(id.clone()), &Key::vcluster()).map_or(Setting::Unset, Stack::setting);
        let vcluster = match setting {
            Setting::Value(name) => VClusterId::new(&name).ok(),
            Setting::Unset | Setting::Absent => None,
        };
        let mut node = self.nodes.get(id).cloned().unwrap_or(Node {
            vcluster: None,
            state: ConfigState::Committed,
            since: sequence,
            emergency: None,
        });
        if let Some(old) = &node.vcluster {
            self.assigned.remove(&(old.clone(), id.clone()));
            if let Some(old) = self.vclusters.get_mut(old) {
                Arc::make_mut(old).nodes -= 1;
            }
        }
        if let Some(new) = &vcluster {
            self.assigned.insert((new.clone(), id.clone()));
            if let Some(new) = self.vclusters.get_mut(new) {
                Arc::make_mut(new).nodes += 1;
            }
        }
        node.vcluster = vcluster;
        self.nodes.insert(id.clone(), node);
    }

    /// Stores a vCluster and what the indexes say of its overlay.
    pub(crate) fn put_vcluster(&mut self, id: &VClusterId, vcluster: VCluster) {
        if let Some(old) = self.vclusters.get(id) {
            self.overlays.remove(&(old.overlay_version(), id.clone()));
        }
        self.overlays.insert((vcluster.overlay_version(), id.clone()));
        if vcluster.overlay_version() < vcluster.version {
            self.behind.insert(id.clone());
        } else {
            self.behind.remove(id);
        }
        self.vclusters.insert(id.clone(), Arc::new(vcluster));
    }

    /// An entry that overlays must contain was recorded for a scope.
    pub(crate) fn overlays_must_contain(&mut self, scope: &Scope, sequence: Seq) {
        match scope {
            Scope::Global => self.global_version = sequence,
            Scope::VCluster(id) => {
                if let Some(vcluster) = self.vcluster(id).cloned() {
                    self.put_vcluster(id, VCluster { version: sequence, ..vcluster });
                }
            }
            Scope::Node(_) => {}
        }
    }
}
