//! What core needs of a network: messages that may get lost, and fetches that may fail.

use crate::ids::{Index, ReplicaId, Seq, Term};
use crate::peer::Envelope;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;

/// Sends to peers. Receiving is the driver's inbox, which the implementation is given.
pub trait Network: Clone + Send + Sync + 'static {
    /// Sends a message, or drops it if the peer cannot be reached or its queue is full. Never waits.
    fn send(&self, envelope: Envelope);
    /// Tells where peers are; called whenever the members change.
    fn know(&self, peers: &[crate::members::Member]);
    /// Reads a page of a snapshot that `from` keeps.
    fn fetch_page(
        &self,
        from: ReplicaId,
        index: Index,
        term: Term,
        page: u32,
    ) -> impl Future<Output = Result<Bytes, FetchError>> + Send;
    /// Reads history records after `after` up to and including `upto` that `from` holds; some from the front if not all fit.
    fn fetch_records(
        &self,
        from: ReplicaId,
        after: Seq,
        upto: Seq,
    ) -> impl Future<Output = Result<Vec<(Seq, Bytes)>, FetchError>> + Send;
}

/// Why something could not be fetched. Try again, later or elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchError {
    /// The peer does not have it (any more).
    Gone,
    /// The peer could not be reached, or broke off.
    Unreachable {
        /// What happened.
        problem: String,
    },
}
