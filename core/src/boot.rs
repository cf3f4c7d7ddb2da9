//! What a booting node is told: its vCluster's overlay, then one delta, right together at one sequence.

use crate::ids::{NodeId, Seq, VClusterId};
use crate::journal::overlay::BootOverlay;
use bytes::Bytes;

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
    /// Phase two: a boot document (`journal::document`), uncompressed: every key, and the policy, that a Global or VCluster
    /// entry touched after the overlay's version, with its value or an explicit unset; then all that is live for the node.
    pub delta: Bytes,
}
