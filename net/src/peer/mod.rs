//! Replica to replica: messages in two lanes, and fetches of snapshots and history.
//!
//! Each pair keeps two streams in each direction, one per lane, so that a heartbeat never waits behind an overlay. A message
//! arrives whole or not at all; loss, repetition and reordering between streams are Raft's to bear.
//!
//! Invariants
//! - over TLS, both ends are replicas of this cluster by their certificates before a word is said;
//! - nothing reaches the replica that did not come from a checked caller, in a frame whose checksum held;
//! - queues are bounded by bytes; sending never waits.
//!
//! Left out: who may take part (core's, and the Raft configuration's word).

pub mod frame;
pub mod hello;
mod network;
mod queue;
mod service;

pub use network::{GrpcNetwork, PeerOptions};
pub use service::PeerApi;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What went wrong between replicas since the start. Shared by both directions.
#[derive(Clone, Default)]
pub struct PeerCounters(Arc<Counts>);

#[derive(Default)]
struct Counts {
    refused_peers: AtomicU64,
    corrupt_frames: AtomicU64,
    refused_messages: AtomicU64,
    frames_in: AtomicU64,
    frames_out: AtomicU64,
}

/// The counters' values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounts {
    /// Callers and callees of another cluster, group or incarnation.
    pub refused_peers: u64,
    /// Frames whose bytes were not those that were sent, or do not decode.
    pub corrupt_frames: u64,
    /// Messages that did not come from the caller they name.
    pub refused_messages: u64,
    /// Frames received.
    pub frames_in: u64,
    /// Frames sent.
    pub frames_out: u64,
}

impl PeerCounters {
    /// The values at the moment.
    #[must_use]
    pub fn read(&self) -> PeerCounts {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PeerCounts {
            refused_peers: value(&self.0.refused_peers),
            corrupt_frames: value(&self.0.corrupt_frames),
            refused_messages: value(&self.0.refused_messages),
            frames_in: value(&self.0.frames_in),
            frames_out: value(&self.0.frames_out),
        }
    }
    fn count(&self, counter: impl FnOnce(&Counts) -> &AtomicU64) {
        counter(&self.0).fetch_add(1, Ordering::Relaxed);
    }
}
