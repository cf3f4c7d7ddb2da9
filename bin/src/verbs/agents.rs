//! Finding a node's agent and asking it.
//!
//! Agents tell the replicas where they are, so a node's name is enough while the journal is there. While it is away, an agent is
//! reached by `--agent`, or by the socket of this machine's own.

use crate::agent::config::{AGENT_PORT, AGENT_SOCKET};
use crate::args::AgentArgs;
use crate::exit::{BLOCKED, CONFLICT, Failure, UNKNOWN, USAGE, request_id_text};
use muster_core::agent::operator::{Refused, Reply, Request, Returned};
use muster_core::ids::NodeId;
use muster_core::journal::entry::{Author, Principal, Role};
use muster_net::agent::client::{AgentClient, Place};
use muster_net::client::{Client, ClientError};
use serde_json::json as object;
use std::path::Path;
use std::sync::Arc;

/// What is known of where an agent is.
pub(crate) enum Found {
    /// There.
    Agent(Box<AgentClient>),
    /// The journal answers, and no agent has told it of this node.
    NoneKnown,
}

/// Takes `--agent`: a socket's path, or an address.
fn place(text: &str) -> Result<Place, Failure> {
    if text.starts_with('/') || text.starts_with("./") {
        return Ok(Place::Socket(std::path::absolute(text)?));
    }
    let address = crate::config::check_address(text, AGENT_PORT)
        .map_err(|problem| Failure::usage(format!("--agent: {problem}"), "give HOST:PORT, or a socket's path"))?;
    Ok(Place::Address(address))
}

async fn at(args: &AgentArgs, node: &NodeId, place: Place) -> Result<AgentClient, Failure> {
    let (_, tls) = crate::context::target(&args.client)?;
    let author = match &tls {
        // The certificate says who; what is claimed beside it is not looked at.
        Some(tls) => {
            Author { principal: Principal::Claimed { name: Arc::from(tls.credential().name()) }, role: Role::Admin }
        }
        None => args.author.author()?,
    };
    Ok(AgentClient::connect(node.clone(), place, author, tls.as_ref(), args.client.timeout).await?)
}

/// Looks for a node's agent.
pub(crate) async fn look(args: &AgentArgs, node: &NodeId) -> Result<Found, Failure> {
    let found = |agent| Ok(Found::Agent(Box::new(agent)));
    if let Some(text) = &args.agent {
        return found(at(args, node, place(text)?).await?);
    }
    let away = match super::connect(&args.client).await {
        Ok(client) => return heard(args, &client, node).await,
        Err(failure) => failure,
    };
    let socket = Path::new(AGENT_SOCKET);
    if socket.exists()
        && let Ok(agent) = at(args, node, Place::Socket(socket.to_owned())).await
    {
        return found(agent);
    }
    Err(Failure {
        next: format!("{}; or name the agent itself with --agent HOST:PORT or --agent SOCKET", away.next),
        ..away
    })
}

async fn heard(args: &AgentArgs, client: &Client, node: &NodeId) -> Result<Found, Failure> {
    match client.fleet(Some(node)).await?.remove(node) {
        Some(heard) if heard.report.address.is_empty() => Err(Failure::error(
            format!("the agent of {node} is asked only on {node} itself"),
            format!("do so there, or have it listen (agent.listen in its file); its socket is usually {AGENT_SOCKET}"),
        )),
        Some(heard) => {
            let place = Place::Address(heard.report.address.to_string());
            Ok(Found::Agent(Box::new(at(args, node, place).await?)))
        }
        None => Ok(Found::NoneKnown),
    }
}

/// A node's agent; it is a failure if none is known.
pub(crate) async fn find(args: &AgentArgs, node: &NodeId) -> Result<AgentClient, Failure> {
    match look(args, node).await? {
        Found::Agent(agent) => Ok(*agent),
        Found::NoneKnown => Err(Failure::error(
            format!("no agent has told the journal of {node} lately"),
            format!(
                "start it with `muster agent --config FILE` on {node}, or name it with --agent HOST:PORT or --agent SOCKET"
            ),
        )),
    }
}

/// Asks, and turns what is no answer into a failure.
pub(crate) async fn ask(agent: &AgentClient, request: &Request) -> Result<Reply, Failure> {
    match agent.ask(request).await {
        Ok(Reply::Refused(refused)) => Err(refused_failure(&refused)),
        Ok(Reply::Unknown { request }) => Err(unknown(&request_id_text(request))),
        Ok(Reply::Returned(Returned::Blocked { consumers })) => Err(blocked(&consumers)),
        Ok(reply) => Ok(reply),
        // What was asked may have been done: the connection broke before the answer.
        Err(ClientError::Broken { address, problem }) => Err(Failure {
            code: UNKNOWN,
            outcome: "unknown",
            ..Failure::error(
                format!("nobody knows whether it was done: {address} broke off: {problem}"),
                "see how the node is with `muster drift NODE`, then decide",
            )
        }),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn unknown(request: &str) -> Failure {
    Failure {
        code: UNKNOWN,
        outcome: "unknown",
        ..Failure::error(
            format!("nobody knows yet whether the journal recorded it (request {request})"),
            "the agent goes on asking, and the window goes on; see `muster drift NODE`",
        )
        .with(object!({ "request_id": request }))
    }
}

/// Somebody uses what would change: exit code 10.
pub(crate) fn blocked(consumers: &[muster_core::agent::host::Consumer]) -> Failure {
    let lines: Vec<String> = consumers.iter().map(ToString::to_string).collect();
    let list: Vec<_> = consumers.iter().map(crate::json::consumer).collect();
    Failure {
        code: BLOCKED,
        outcome: "blocked",
        ..Failure::error(
            format!("nothing was rolled back: it is in use\n  {}", lines.join("\n  ")),
            "end what uses it and run this again; until then the window stands still",
        )
        .with(object!({ "consumers": list }))
    }
}

/// A refusal of the agent as the exit codes tell it.
pub(crate) fn refused_failure(refused: &Refused) -> Failure {
    let (code, kind, next) = match refused {
        Refused::Journal(refusal) => return crate::exit::refused(refusal),
        Refused::NoQuorum => (
            crate::exit::NO_QUORUM,
            "no-quorum",
            "the window goes on; see `muster status` for who is missing, then run it again",
        ),
        Refused::Invalid { .. } => (USAGE, "invalid", ""),
        Refused::Host(_) => (crate::exit::ERROR, "host", "nothing was changed"),
        Refused::Owned(_) => (CONFLICT, "owned", "look with `muster drift NODE`"),
        Refused::Forbidden { .. } => {
            (crate::exit::FORBIDDEN, "forbidden", "see what is allowed with `muster policy get VCLUSTER`")
        }
        Refused::NotNow { .. } => (crate::exit::ERROR, "not-now", "see how the node is with `muster drift NODE`"),
        Refused::Busy => (crate::exit::ERROR, "busy", "run it again in a moment"),
    };
    Failure { code, outcome: "refused", ..Failure::error(format!("refused: {refused}"), next) }
        .with(object!({ "refusal": kind }))
}
