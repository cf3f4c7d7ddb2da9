//! The Rust client: shares connections, follows the leader, retries under the same request id, tells outcomes apart exactly.

mod types;

pub use types::{
    Admitted, Answered, Boot, BootAsk, ClientError, LogFilter, OneShot, Options, StateAt, Status, Tidings, Topic,
    Verified, VerifyProgress,
};

use muster_core::ids::{Age, Digest, Seq};
use muster_core::journal::entry::{Author, Record};
use muster_core::journal::key::Scope;
use muster_core::members::Admission;
use muster_core::query::Query;
use muster_core::request::{AdminOutcome, AdminRequest, Command, Freshness, Outcome};

/// A client of one cluster. Cheap to clone; clones share connections and the session.
#[derive(Clone, Debug)]
pub struct Client {}

/// A running subscription; see [`Client::subscribe`].
#[derive(Debug)]
pub struct Subscription {}

/// Records of the past as they arrive; see [`Client::log`].
#[derive(Debug)]
pub struct Records {}

impl Client {
    /// Makes a client of the cluster that these replicas (`host:port`) belong to, and reaches at least one of them.
    ///
    /// # Errors
    /// `Unreachable` names every address tried; `Invalid` an address that is none.
    pub async fn connect(_addresses: Vec<String>, _options: Options) -> Result<Self, ClientError> {
        unimplemented!()
    }
    /// Writes within the client's session: pipelined, retried under the same id until the outcome is known or time is up.
    pub async fn write(&self, _author: &Author, _command: Command) -> Outcome {
        unimplemented!()
    }
    /// Writes under an id that survives this process. Asked again with the same id, it is applied at most once.
    pub async fn write_once(&self, _request: OneShot, _author: &Author, _command: Command) -> Outcome {
        unimplemented!()
    }
    /// Draws a request id for [`Client::write_once`].
    ///
    /// # Errors
    /// As [`Client::age`].
    pub async fn draw(&self) -> Result<OneShot, ClientError> {
        unimplemented!()
    }
    /// Replicated time.
    ///
    /// # Errors
    /// `Unreachable` if no replica answers.
    pub async fn age(&self) -> Result<Age, ClientError> {
        unimplemented!()
    }
    /// Asks a question about live state.
    ///
    /// # Errors
    /// `Refused` if the question does not fit, `NotAnswered` if the freshness cannot be had, else as [`Client::age`].
    pub async fn query(&self, _freshness: Freshness, _query: &Query) -> Result<Answered, ClientError> {
        unimplemented!()
    }
    /// Fetches a boot and checks it against its checksum and sizes.
    ///
    /// # Errors
    /// `Refused` if the node cannot boot as things are declared, `Lagging` if it knows more than every replica.
    pub async fn boot(&self, _ask: &BootAsk) -> Result<Boot, ClientError> {
        unimplemented!()
    }
    /// Follows the journal after a sequence. Moves to another replica by itself when one goes away.
    #[must_use]
    pub fn subscribe(&self, _topic: Topic, _after: Seq) -> Subscription {
        unimplemented!()
    }
    /// Reads records of the past.
    ///
    /// # Errors
    /// As [`Client::age`].
    pub async fn log(&self, _filter: &LogFilter) -> Result<Records, ClientError> {
        unimplemented!()
    }
    /// What a scope declared right after a sequence; at the head if none is given.
    ///
    /// # Errors
    /// `Invalid` for a sequence in the future, else as [`Client::age`].
    pub async fn state_at(&self, _scope: &Scope, _at: Option<Seq>) -> Result<StateAt, ClientError> {
        unimplemented!()
    }
    /// Has the replica at `address` (any, if none) check its whole history.
    ///
    /// # Errors
    /// `NotVerified` says where and what.
    pub async fn verify(
        &self,
        _address: Option<&str>,
        _head: Option<(Seq, Digest)>,
        _progress: impl FnMut(VerifyProgress) + Send,
    ) -> Result<Verified, ClientError> {
        unimplemented!()
    }
    /// The replica at `address`.
    ///
    /// # Errors
    /// `Unreachable` if it does not answer.
    pub async fn status(&self, _address: &str) -> Result<Status, ClientError> {
        unimplemented!()
    }
    /// Asks the replica at `address`, or the leader, for something that is not a write.
    ///
    /// # Errors
    /// `Unreachable` if it does not answer.
    pub async fn admin(&self, _address: Option<&str>, _request: AdminRequest) -> Result<AdminOutcome, ClientError> {
        unimplemented!()
    }
    /// Asks to be admitted to the cluster, for `muster join`.
    ///
    /// # Errors
    /// `Outcome` if the write behind it was refused, not applied or is unknown.
    pub async fn admit(&self, _admission: &Admission, _author: &Author) -> Result<Admitted, ClientError> {
        unimplemented!()
    }
    /// The addresses this client knows, those given and those learnt.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        unimplemented!()
    }
    /// Closes the session, so that the cluster need not expire it. Call once, at the end.
    pub async fn close(self) {
        unimplemented!()
    }
}

impl Subscription {
    /// The next tidings: records, or a heartbeat.
    ///
    /// # Errors
    /// `Invalid` if the topic is not accepted; losing a replica is no error, another one is asked.
    pub async fn next(&mut self) -> Result<Tidings, ClientError> {
        unimplemented!()
    }
}

impl Records {
    /// The journal's sequence when the question was asked.
    #[must_use]
    pub fn sequence(&self) -> Seq {
        unimplemented!()
    }
    /// The next record; none at the end.
    ///
    /// # Errors
    /// `Broken` if the replica goes away in between.
    pub async fn next(&mut self) -> Result<Option<Record>, ClientError> {
        unimplemented!()
    }
}
