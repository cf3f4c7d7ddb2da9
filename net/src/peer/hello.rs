//! Who may talk to whom: both ends of a connection name cluster, group, replica and incarnation, and both check.
//!
//! A replica that this one has not heard of yet is let in (a lagging follower must obey a leader it does not know); one whose
//! id is known under another incarnation is not (its disk was wiped or swapped: it may have forgotten its promises).

use crate::proto::peer::{Hello, Lane as WireLane, Welcome};
use bytes::Bytes;
use muster_core::ids::{ClusterId, GroupId, Incarnation, ReplicaId};
use muster_core::peer::Lane;
use muster_core::storage::Identity;
use std::fmt;

/// Why a peer is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelloError {
    /// The first message was no hello, or lacks something.
    Malformed {
        /// What is wrong.
        problem: &'static str,
    },
    /// It belongs to another cluster.
    Cluster {
        /// Its cluster.
        theirs: ClusterId,
        /// This one.
        ours: ClusterId,
    },
    /// It belongs to another group.
    Group {
        /// Its group.
        theirs: GroupId,
        /// This one.
        ours: GroupId,
    },
    /// It meant somebody else.
    Misdirected {
        /// Whom it meant.
        to: ReplicaId,
        /// Who this is.
        here: ReplicaId,
    },
    /// Its id is known under another incarnation.
    Incarnation {
        /// The replica.
        replica: ReplicaId,
        /// The incarnation it tells.
        theirs: Incarnation,
        /// The incarnation it was admitted with.
        admitted: Incarnation,
    },
}

impl fmt::Display for HelloError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { problem } => write!(f, "the peer's hello makes no sense: {problem}"),
            Self::Cluster { theirs, ours } => write!(
                f,
                "the peer belongs to cluster {theirs}, this replica to {ours}: check the peer addresses in both configurations"
            ),
            Self::Group { theirs, ours } => write!(f, "the peer belongs to group {theirs}, this replica to {ours}"),
            Self::Misdirected { to, here } => write!(
                f,
                "the peer meant replica {to}, this is replica {here}: check the addresses with which they were admitted"
            ),
            Self::Incarnation { replica, theirs, admitted } => write!(
                f,
                "replica {replica} comes with incarnation {theirs}, it was admitted with {admitted}: \
                 its data directory is another one; make it a new member with `muster replace`"
            ),
        }
    }
}

impl std::error::Error for HelloError {}

/// What one end tells of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its group.
    pub group: GroupId,
    /// Its id.
    pub replica: ReplicaId,
    /// The life of its data directory.
    pub incarnation: Incarnation,
}

impl Caller {
    /// What a replica tells of itself.
    #[must_use]
    pub fn of(identity: &Identity) -> Self {
        Self {
            cluster: identity.cluster,
            group: identity.group,
            replica: identity.replica,
            incarnation: identity.incarnation,
        }
    }
}

fn id_bytes(id: u128) -> Bytes {
    Bytes::copy_from_slice(&id.to_be_bytes())
}

fn id_of(bytes: &[u8], problem: &'static str) -> Result<u128, HelloError> {
    <[u8; 16]>::try_from(bytes).map(u128::from_be_bytes).map_err(|_| HelloError::Malformed { problem })
}

/// The hello of a caller.
#[must_use]
pub fn hello(caller: Caller, to: ReplicaId, lane: Option<Lane>, peer_address: &str) -> Hello {
    let lane = match lane {
        None => WireLane::Unspecified,
        Some(Lane::Control) => WireLane::Control,
        Some(Lane::Bulk) => WireLane::Bulk,
    };
    Hello {
        cluster: id_bytes(caller.cluster.0),
        group: caller.group.0,
        replica: caller.replica.0,
        incarnation: id_bytes(caller.incarnation.0),
        to: to.0,
        lane: lane.into(),
        peer_address: peer_address.to_owned(),
    }
}

/// The answer to a hello that was accepted.
#[must_use]
pub fn welcome(here: Caller) -> Welcome {
    Welcome {
        cluster: id_bytes(here.cluster.0),
        group: here.group.0,
        replica: here.replica.0,
        incarnation: id_bytes(here.incarnation.0),
    }
}

/// Checks a caller. `admitted` is the incarnation its id is known under here, if it is known.
///
/// # Errors
/// [`HelloError`] says what to look at.
pub fn check_hello(
    here: Caller,
    hello: Option<&Hello>,
    admitted: impl FnOnce(ReplicaId) -> Option<Incarnation>,
) -> Result<Caller, HelloError> {
    let hello = hello.ok_or(HelloError::Malformed { problem: "there is none" })?;
    let caller = Caller {
        cluster: ClusterId(id_of(&hello.cluster, "the cluster has not 16 bytes")?),
        group: GroupId(hello.group),
        replica: ReplicaId(hello.replica),
        incarnation: Incarnation(id_of(&hello.incarnation, "the incarnation has not 16 bytes")?),
    };
    check(here, caller, admitted)?;
    if hello.to != here.replica.0 {
        return Err(HelloError::Misdirected { to: ReplicaId(hello.to), here: here.replica });
    }
    Ok(caller)
}

/// Checks who answered. `meant` is the replica that was called, with the incarnation it is known under.
///
/// # Errors
/// [`HelloError`] says what to look at.
pub fn check_welcome(here: Caller, welcome: &Welcome, meant: (ReplicaId, Incarnation)) -> Result<(), HelloError> {
    let answered = Caller {
        cluster: ClusterId(id_of(&welcome.cluster, "the cluster has not 16 bytes")?),
        group: GroupId(welcome.group),
        replica: ReplicaId(welcome.replica),
        incarnation: Incarnation(id_of(&welcome.incarnation, "the incarnation has not 16 bytes")?),
    };
    if answered.replica != meant.0 {
        return Err(HelloError::Misdirected { to: meant.0, here: answered.replica });
    }
    check(here, answered, |_| Some(meant.1))
}

fn check(
    here: Caller,
    other: Caller,
    admitted: impl FnOnce(ReplicaId) -> Option<Incarnation>,
) -> Result<(), HelloError> {
    if other.cluster != here.cluster {
        return Err(HelloError::Cluster { theirs: other.cluster, ours: here.cluster });
    }
    if other.group != here.group {
        return Err(HelloError::Group { theirs: other.group, ours: here.group });
    }
    if other.replica.0 == 0 {
        return Err(HelloError::Malformed { problem: "0 is nobody's replica id" });
    }
    match admitted(other.replica) {
        Some(admitted) if admitted != other.incarnation => {
            Err(HelloError::Incarnation { replica: other.replica, theirs: other.incarnation, admitted })
        }
        Some(_) | None => Ok(()),
    }
}
