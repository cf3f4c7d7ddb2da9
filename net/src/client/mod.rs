//! The Rust client: shares connections, follows the leader, retries under the same request id, tells outcomes apart exactly.
//!
//! What to do next is decided in `muster_core::client`; here it is done. Callers see core's types, never the wire's.

mod connections;
mod fleet;
mod pipe;
mod reads;
mod types;
mod writes;

pub use reads::{Records, Subscription};
pub use types::{
    Admitted, Answered, Boot, BootAsk, ClientError, LogFilter, OneShot, Options, StateAt, Status, Tidings, Topic,
    Verified, VerifyProgress,
};

use connections::Connections;
use muster_core::agent::fleet::{Heard, NodeReport};
use muster_core::ids::{Age, Digest, NodeId, OneShotId, Seq};
use muster_core::journal::entry::Author;
use muster_core::journal::key::Scope;
use muster_core::members::Admission;
use muster_core::query::Query;
use muster_core::request::{AdminOutcome, AdminRequest, Command, Freshness, Outcome, RequestId};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use writes::Sessions;

/// A client of one cluster. Cheap to clone; clones share connections and the session.
#[derive(Clone)]
pub struct Client {
    connections: Arc<Connections>,
    sessions: Arc<Sessions>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}

/// A random id. An operating system without randomness is one we cannot run on.
pub(crate) fn random_id() -> OneShotId {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    OneShotId(u128::from_le_bytes(bytes))
}

impl Client {
    /// Makes a client of the cluster that these replicas (`host:port`) belong to, and reaches at least one of them.
    ///
    /// # Errors
    /// `Unreachable` names every address tried; `Invalid` an address that is none.
    pub async fn connect(addresses: Vec<String>, options: Options) -> Result<Self, ClientError> {
        let seed = random_id().0.to_le_bytes();
        let seed = u64::from_le_bytes([seed[0], seed[1], seed[2], seed[3], seed[4], seed[5], seed[6], seed[7]]);
        let connections = Arc::new(Connections::new(&addresses, options, seed)?);
        reads::any_status(&connections).await?;
        Ok(Self { connections, sessions: Arc::default() })
    }

    /// Writes within the client's session: pipelined, retried under the same id until the outcome is known or time is up.
    pub async fn write(&self, author: &Author, command: Command) -> Outcome {
        writes::write(&self.connections, &self.sessions, author, &command).await
    }

    /// Writes under an id that survives this process. Asked again with the same id, it is applied at most once.
    pub async fn write_once(&self, request: OneShot, author: &Author, command: Command) -> Outcome {
        let request = RequestId::OneShot { id: request.id, drawn_at: request.drawn_at };
        writes::write_once(&self.connections, request, author, &command, false).await
    }

    /// [`Client::write_once`] under an id under which it was asked before: *not applied* is no answer then, for it says nothing
    /// of what was asked before.
    pub async fn write_again(&self, request: OneShot, author: &Author, command: Command) -> Outcome {
        let request = RequestId::OneShot { id: request.id, drawn_at: request.drawn_at };
        writes::write_once(&self.connections, request, author, &command, true).await
    }

    /// Draws a request id for [`Client::write_once`].
    ///
    /// # Errors
    /// As [`Client::age`].
    pub async fn draw(&self) -> Result<OneShot, ClientError> {
        Ok(OneShot { id: random_id(), drawn_at: self.age().await? })
    }

    /// Replicated time.
    ///
    /// # Errors
    /// `Unreachable` if no replica answers.
    pub async fn age(&self) -> Result<Age, ClientError> {
        reads::age_now(&self.connections).await
    }

    /// Asks a question about live state.
    ///
    /// # Errors
    /// `Refused` if the question does not fit, `NotAnswered` if the freshness cannot be had, else as [`Client::age`].
    pub async fn query(&self, freshness: Freshness, query: &Query) -> Result<Answered, ClientError> {
        reads::query(&self.connections, freshness, query).await
    }

    /// Fetches a boot and checks it against its checksum and sizes.
    ///
    /// # Errors
    /// `Refused` if the node cannot boot as things are declared, `Lagging` if it knows more than every replica.
    pub async fn boot(&self, ask: &BootAsk) -> Result<Boot, ClientError> {
        reads::boot(&self.connections, ask).await
    }

    /// Follows the journal after a sequence. Moves to another replica by itself when one goes away.
    #[must_use]
    pub fn subscribe(&self, topic: Topic, after: Seq) -> Subscription {
        Subscription::new(self.connections.clone(), topic, after)
    }

    /// Reads records of the past.
    ///
    /// # Errors
    /// As [`Client::age`].
    pub async fn log(&self, filter: &LogFilter) -> Result<Records, ClientError> {
        reads::log(&self.connections, filter).await
    }

    /// What a scope declared right after a sequence; at the head if none is given.
    ///
    /// # Errors
    /// `Invalid` for a sequence in the future, else as [`Client::age`].
    pub async fn state_at(&self, scope: &Scope, at: Option<Seq>) -> Result<StateAt, ClientError> {
        reads::state_at(&self.connections, scope, at).await
    }

    /// Has the replica at `address` (any, if none) check its whole history.
    ///
    /// # Errors
    /// `NotVerified` says where and what.
    pub async fn verify(
        &self,
        address: Option<&str>,
        head: Option<(Seq, Digest)>,
        progress: impl FnMut(VerifyProgress) + Send,
    ) -> Result<Verified, ClientError> {
        let address = match address {
            Some(address) => Arc::from(address),
            None => self.connections.current(),
        };
        reads::verify(&self.connections, &address, head, progress).await
    }

    /// The replica at `address`.
    ///
    /// # Errors
    /// `Unreachable` if it does not answer.
    pub async fn status(&self, address: &str) -> Result<Status, ClientError> {
        reads::status(&self.connections, address).await
    }

    /// Asks the replica at `address`, or the leader, for something that is not a write.
    ///
    /// # Errors
    /// `Unreachable` if it does not answer.
    pub async fn admin(&self, address: Option<&str>, request: AdminRequest) -> Result<AdminOutcome, ClientError> {
        reads::admin(&self.connections, address, request).await
    }

    /// Tells one replica how a node is.
    ///
    /// # Errors
    /// As [`Client::age`].
    pub async fn report(&self, author: &Author, report: &NodeReport) -> Result<(), ClientError> {
        fleet::report(&self.connections, author, report).await
    }

    /// How the nodes (or one) are, by the newest word that any replica heard.
    ///
    /// # Errors
    /// As [`Client::age`], if no replica at all answers.
    pub async fn fleet(&self, node: Option<&NodeId>) -> Result<BTreeMap<NodeId, Heard>, ClientError> {
        fleet::fleet(&self.connections, node).await
    }

    /// Asks to be admitted to the cluster, for `muster join`.
    ///
    /// # Errors
    /// `Outcome` if the write behind it was refused or is unknown, `NotAnswered` if it could not be applied in time.
    pub async fn admit(&self, admission: &Admission, author: &Author) -> Result<Admitted, ClientError> {
        reads::admit(&self.connections, admission, author).await
    }

    /// The addresses this client knows, those given and those learnt.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.connections.targets().addresses().iter().map(ToString::to_string).collect()
    }

    /// Closes the session, so that the cluster need not expire it. Call once, at the end.
    pub async fn close(self) {
        writes::close(&self.connections, &self.sessions).await;
    }
}
