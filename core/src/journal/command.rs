//! How something gets into the journal: exactly the five commands of the seed.

use super::entry::{EntryDraft, OperationDraft};
use super::overlay::BootOverlay;
use super::policy::Policy;
use crate::ids::{NodeId, VClusterId};

/// What a node's configuration is, as the journal knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConfigState {
    /// It is what was declared.
    Committed,
    /// It differs from what was declared.
    Drifted,
    /// It is being brought back to what was declared.
    Converging,
    /// An operator declared an emergency on it.
    Emergency,
}

impl ConfigState {
    /// The word used in output.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Drifted => "drifted",
            Self::Converging => "converging",
            Self::Emergency => "emergency",
        }
    }
}

/// A command of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JournalCommand {
    /// Appends a configuration entry.
    AppendEntry(EntryDraft),
    /// Moves a node's state. Only legal transitions are accepted; emergencies begin and end by their entries.
    UpdateNodeState {
        /// Which node.
        node: NodeId,
        /// The new state.
        state: ConfigState,
    },
    /// Sets a vCluster's policy (and makes the vCluster known); appends its `PolicyUpdate` entry.
    SetPolicy {
        /// Which vCluster.
        vcluster: VClusterId,
        /// The policy.
        policy: Policy,
    },
    /// Stores a pre-computed overlay.
    SetOverlay {
        /// Which vCluster.
        vcluster: VClusterId,
        /// The overlay.
        overlay: BootOverlay,
    },
    /// Records an operation; an exec or shell appends its entry as well.
    RecordOperation(OperationDraft),
}
