//! The operator's verbs, by what they touch: [`mod@write`] changes the journal, [`apply`] declares a fleet, [`read`] looks,
//! [`cluster`] minds the replicas, [`disk`] and [`mod@certs`] work on files without a server; [`node`], [`exec`], [`watch`] and
//! [`rollout`] ask nodes' agents, which [`agents`] finds.
//!
//! A verb prints its result itself, for people or for programs, and returns a [`Failure`] otherwise.

pub(crate) mod agents;
pub(crate) mod apply;
pub(crate) mod certs;
pub(crate) mod cluster;
pub(crate) mod disk;
pub(crate) mod exec;
pub(crate) mod node;
pub(crate) mod read;
pub(crate) mod rollout;
mod together;
pub(crate) mod watch;
pub(crate) mod write;

use crate::args::ClientArgs;
use crate::exit::Failure;
use muster_core::ids::Seq;
use muster_core::journal::entry::Record;
use muster_core::journal::key::Scope;
use muster_core::query::{Answer, Declared, Query};
use muster_core::request::{Freshness, Refusal};
use muster_net::client::{Client, ClientError, LogFilter, Options};
use serde_json::Value;
use std::time::Duration;

/// Prints JSON for programs or text for people.
pub(crate) fn show(json: bool, value: &Value, text: &str) -> Result<(), Failure> {
    let result = if json { crate::text::print(&format!("{value}\n")) } else { crate::text::print(text) };
    Ok(result?)
}

pub(crate) async fn connect(args: &ClientArgs) -> Result<Client, Failure> {
    let usual = Options::default();
    let (servers, tls) = crate::context::target(args)?;
    let options = Options {
        tls,
        write_timeout: args.timeout,
        read_timeout: args.timeout,
        connect_timeout: args.timeout.min(usual.connect_timeout),
        ..usual
    };
    Ok(Client::connect(servers, options).await?)
}

/// An answer of the wrong kind: the two ends differ in version.
pub(crate) fn senseless() -> Failure {
    Failure::error(
        "the replica answered another question than was asked",
        "compare `muster --version` on both machines",
    )
}

/// A scope's head and its own settings.
pub(crate) async fn scope(
    client: &Client,
    freshness: Freshness,
    scope: &Scope,
) -> Result<(Seq, Vec<Declared>), Failure> {
    let answered = client.query(freshness, &Query::Scope(scope.clone())).await?;
    let Answer::Scope { head, settings } = answered.answer else { return Err(senseless()) };
    Ok((head, settings))
}

/// The same for a scope that may not be known yet: it says nothing, since sequence 0.
pub(crate) async fn scope_or_nothing(
    client: &Client,
    freshness: Freshness,
    scope: &Scope,
) -> Result<(Seq, Vec<Declared>), Failure> {
    match client.query(freshness, &Query::Scope(scope.clone())).await {
        Ok(answered) => {
            let Answer::Scope { head, settings } = answered.answer else { return Err(senseless()) };
            Ok((head, settings))
        }
        Err(ClientError::Refused(Refusal::UnknownScope { .. })) => Ok((Seq(0), Vec::new())),
        Err(error) => Err(error.into()),
    }
}

/// One record. A replica that lags is given two seconds to catch up with what the caller knows to exist.
pub(crate) async fn record(client: &Client, sequence: Seq, exists: bool) -> Result<Option<Record>, Failure> {
    for attempt in 0..40 {
        if attempt > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let filter =
            LogFilter { after: Seq(sequence.0.saturating_sub(1)), upto: Some(sequence), ..LogFilter::default() };
        let mut records = client.log(&filter).await?;
        if let Some(record) = records.next().await? {
            return Ok(Some(record));
        }
        if !exists {
            break;
        }
    }
    Ok(None)
}
