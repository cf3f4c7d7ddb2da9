//! The front of a replica: how servers, tasks and tests in the same process talk to its loop.
//!
//! A [`Handle`] is cheap to clone and usable from any thread. Reads take a [`View`] and are evaluated where they were asked;
//! only writes and read-index rounds pass through the loop.

use crate::ids::{ReplicaId, Time};
use crate::peer::Envelope;
use crate::request::{AdminOutcome, AdminRequest, Freshness, NotApplied, Outcome, ReplicaStatus, WriteRequest};
use crate::state::State;
use alloc::sync::Arc;

/// A consistent view of the replicated state at one log position. Taken in O(1), held as long as one likes.
#[derive(Clone, Debug)]
pub struct View {
    /// The state.
    pub state: State,
    /// The replica's Raft state when it was published.
    pub status: ReplicaStatus,
    /// Grows with every publication of this run.
    pub version: u64,
    /// When it was published.
    pub published: Time,
}
