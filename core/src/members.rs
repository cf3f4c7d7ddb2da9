//! Who the replicas are: names, addresses, incarnations. Who votes is the Raft configuration's word, not this table's.

use crate::ids::{Incarnation, ReplicaId, ReplicaName};
use alloc::sync::Arc;

/// A replica that was admitted to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id, allotted by the cluster, never used again.
    pub id: ReplicaId,
    /// Its display name, unique among the members.
    pub name: ReplicaName,
    /// The life of its data directory.
    pub incarnation: Incarnation,
    /// Where its peers reach it, `host:port`.
    pub peer_address: Arc<str>,
    /// Where its clients reach it, `host:port`.
    pub client_address: Arc<str>,
    /// What the leader should do once it has caught up.
    pub wish: MemberWish,
    /// The highest feature level it supports.
    pub feature_level: u32,
}

/// What a member is to become once it has caught up and holds the whole history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberWish {
    /// A learner.
    #[default]
    Learner,
    /// A voter.
    Voter,
    /// A voter in the place of another, in one joint change.
    Replacement {
        /// Who leaves.
        of: ReplicaId,
    },
}

/// What a replica tells when it asks to be admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Its display name.
    pub name: ReplicaName,
    /// Drawn for its empty data directory. Asking again with the same one gives the same id.
    pub incarnation: Incarnation,
    /// Where its peers reach it, `host:port`.
    pub peer_address: Arc<str>,
    /// Where its clients reach it, `host:port`.
    pub client_address: Arc<str>,
    /// What it is to become.
    pub wish: MemberWish,
    /// The highest feature level it supports.
    pub feature_level: u32,
}

/// A change of the membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberCommand {
    /// Allots an id and remembers the member. It takes no part until it is added.
    Admit(Admission),
    /// Adds an admitted member as a learner.
    AddLearner(ReplicaId),
    /// Makes a learner a voter. Refused until it has caught up and holds the whole history.
    Promote(ReplicaId),
    /// Makes a voter a learner.
    Demote(ReplicaId),
    /// Takes a member out, for good.
    Remove(ReplicaId),
    /// One joint change: the new one votes, the old one is out.
    Replace {
        /// Who leaves.
        old: ReplicaId,
        /// Who takes its place.
        new: ReplicaId,
    },
}
