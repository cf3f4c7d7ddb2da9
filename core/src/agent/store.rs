//! What an agent's driver needs of a disk. Production and simulation run the same implementation (`muster-storage`) over
//! different disks.
//!
//! Everything is durable when the call returns. A [`StorageError`] ends the agent: it must not go on as if it remembered.

use crate::ids::{Age, OneShotId};
use crate::storage::StorageError;
use alloc::vec::Vec;
use bytes::Bytes;

/// An event that the journal has not got yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spooled {
    /// Its place: events are forwarded in this order. Never used twice.
    pub ordinal: u64,
    /// What happened, as core's codec wrote it.
    pub bytes: Bytes,
    /// The request under which it was sent, if it was: it may be in the journal already, and is sent under no other.
    pub sending: Option<(OneShotId, Age)>,
}

/// What a disk holds at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// The last ledger.
    pub ledger: Option<Bytes>,
    /// The last boot that was saved.
    pub boot: Option<Bytes>,
    /// What waits for the journal, in order.
    pub spooled: Vec<Spooled>,
}

/// An agent's disk.
pub trait Store {
    /// Replaces the ledger.
    fn save_ledger(&mut self, bytes: &[u8]) -> impl Future<Output = Result<(), StorageError>> + Send;
    /// Replaces the cached boot.
    fn save_boot(&mut self, bytes: &[u8]) -> impl Future<Output = Result<(), StorageError>> + Send;
    /// Appends events; gives their ordinals.
    fn spool(&mut self, events: &[Bytes]) -> impl Future<Output = Result<Vec<u64>, StorageError>> + Send;
    /// Remembers under which request an event is about to be sent.
    fn sending(
        &mut self,
        ordinal: u64,
        id: OneShotId,
        drawn_at: Age,
    ) -> impl Future<Output = Result<(), StorageError>> + Send;
    /// The journal has this event.
    fn forwarded(&mut self, ordinal: u64) -> impl Future<Output = Result<(), StorageError>> + Send;
}
