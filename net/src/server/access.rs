//! Who asks, and the way through core's door: every request of the clients' port comes by here.
//!
//! Over TLS the certificate says who asks, and what is recorded is in its name, whatever the request claims. Only an agent may
//! name for whom it acts at its node: that is recorded as a claim, in the agent's role ([`witnessed`]). Without TLS
//! nothing is proven: who reaches the port may look at everything, and writes in the name and role it claims.

use crate::tls::Shown;
use crate::tls::accept::Proof;
use axum::extract::Request;
use axum::http::{Extensions, HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use muster_core::ids::NodeId;
use muster_core::journal::entry::{Author, Principal, Role};
use muster_core::journal::key::Scope;
use muster_core::request::Refusal;
use muster_core::service::{Caller, Denied, Fleet, Kind, Operation, allow, allow_author, shows, witnessed};
use muster_core::state::State;
use std::sync::Arc;
use tonic::Status;

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    caller: Caller,
    shown: Option<Arc<Shown>>,
}

fn forbidden(problem: &str) -> Refusal {
    Refusal::Forbidden { problem: problem.into() }
}

fn denied(denied: Denied) -> Status {
    Status::permission_denied(denied.problem)
}

impl Access {
    /// Whoever is at the other end of a request's connection.
    pub(crate) fn of(extensions: &Extensions) -> Result<Self, Status> {
        // A request that came over no connection of ours proves nothing and may do nothing.
        match extensions.get::<Proof>() {
            Some(proof) => {
                let access = Self::by(proof);
                access.is_in_force()?;
                Ok(access)
            }
            None => Ok(Self { caller: Caller::Nobody, shown: None }),
        }
    }

    /// Whoever a connection proves to be at its other end. Whether that is still in force is to be asked for every request.
    pub(crate) fn by(Proof(shown): &Proof) -> Self {
        let caller = if let Some(shown) = shown {
            shown.credential.caller().clone()
        } else {
            let principal = Principal::Claimed { name: Arc::from("anybody") };
            Caller::Author(Author { principal, role: Role::Admin })
        };
        Self { caller, shown: shown.clone() }
    }

    /// Certificates end while connections go on.
    pub(crate) fn is_in_force(&self) -> Result<(), Status> {
        match &self.shown {
            Some(shown) if shown.has_ended() => Err(Status::unauthenticated(format!(
                "the certificate of {} has ended: renew it and connect again",
                shown.credential
            ))),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether everything may be seen, so that nothing need be filtered.
    pub(crate) fn sees_everything(&self) -> bool {
        matches!(&self.caller, Caller::Author(Author { role: Role::Admin, .. }))
    }

    /// Whether a thing of this scope is to be shown, where none in particular was asked for.
    pub(crate) fn sees(&self, scope: &Scope, state: &State) -> bool {
        self.sees_everything() || shows(&self.caller, scope, &state.journal)
    }

    /// Whether the agent of this node asks.
    pub(crate) fn is_agent_of(&self, node: &NodeId) -> bool {
        matches!(&self.caller, Caller::Author(Author { role: Role::Agent(own), .. }) if own == node)
    }

    /// The door.
    pub(crate) fn may(&self, operation: &Operation, state: &State) -> Result<(), Status> {
        allow(&self.caller, operation, &state.journal).map_err(denied)
    }

    /// In whose name a write is done. `claimed` is what the request says.
    pub(crate) fn author(&self, claimed: Option<Author>, fleet: &impl Fleet) -> Result<Author, Refusal> {
        match (&self.caller, &self.shown) {
            (Caller::Author(proven), Some(shown)) => match (&proven.role, claimed.map(|claimed| claimed.principal)) {
                (Role::Agent(_), Some(Principal::Claimed { name })) => {
                    Ok(witnessed(proven, name, shown.credential.cluster(), fleet))
                }
                _ => Ok(proven.clone()),
            },
            (Caller::Author(_), None) => claimed_author(claimed),
            (Caller::Replica(name), _) => Err(forbidden(&format!(
                "replica {name} writes nothing here: it takes a person's or an agent's certificate"
            ))),
            (Caller::Nobody, _) => Err(forbidden("somebody without a certificate writes nothing")),
        }
    }

    /// In whose name an admission is asked for: a person's, or, where a replica asks for itself, the cluster's own.
    pub(crate) fn admitting(&self, claimed: Option<Author>, fleet: &impl Fleet) -> Result<Author, Refusal> {
        match &self.caller {
            Caller::Replica(_) => Ok(Author::system("membership")),
            Caller::Author(_) | Caller::Nobody => self.author(claimed, fleet),
        }
    }

    /// The name a replica's certificate gives it, if one asks.
    pub(crate) fn may_admit(&self, author: &Author, operation: &Operation, state: &State) -> Result<(), Refusal> {
        match &self.caller {
            Caller::Replica(_) => allow(&self.caller, operation, &state.journal).map_err(Refusal::from),
            Caller::Author(_) | Caller::Nobody => {
                allow_author(author, operation, &state.journal).map_err(Refusal::from)
            }
        }
    }
}

/// A connection without TLS proves nothing, so all it can carry is a claimed name; the cluster's own parts never come from
/// outside.
fn claimed_author(claimed: Option<Author>) -> Result<Author, Refusal> {
    let author = claimed.ok_or_else(|| Refusal::Invalid {
        field: "author".into(),
        problem: "it is missing: a connection without TLS must claim one".into(),
    })?;
    match (&author.principal, &author.role) {
        (_, Role::System) => {
            Err(forbidden("author.role.system is the cluster's own: give admin, or what the author is"))
        }
        (Principal::Claimed { .. }, Role::Admin | Role::Operator(_) | Role::Viewer(_) | Role::Agent(_)) => Ok(author),
        (Principal::Certificate { .. } | Principal::Oidc { .. }, _) => Err(forbidden(
            "a connection without TLS proves no certificate and no identity: give author.principal.claimed",
        )),
        (Principal::System { .. }, _) => {
            Err(forbidden("author.principal.system is the cluster's own: give author.principal.claimed"))
        }
    }
}

/// The path under which the journal's own service is, which asks the door itself, question by question.
const OWN_SERVICE: &str = "/muster.v1.Muster/";

/// Lets whoever may look at the replicas through to everything beside the journal's service: pages, reflection, health.
pub(super) async fn guard(request: Request, next: Next) -> Response {
    let access = match Access::of(request.extensions()) {
        Ok(access) => access,
        Err(status) => return refuse(request.headers(), status),
    };
    if !request.uri().path().starts_with(OWN_SERVICE) {
        // Looking at the replicas hangs on no node's vCluster.
        let nowhere = muster_core::service::Nowhere;
        let kind = if request.uri().path() == super::http::FREE { Kind::AskWhoIsFree } else { Kind::Observe };
        if let Err(problem) = allow(&access.caller, &Operation::of_cluster(kind), &nowhere) {
            return refuse(request.headers(), denied(problem));
        }
    }
    next.run(request).await
}

/// A refusal in the caller's language.
fn refuse(headers: &HeaderMap, status: Status) -> Response {
    if is_grpc(headers) {
        return status.into_http();
    }
    let code = match status.code() {
        tonic::Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        _ => StatusCode::FORBIDDEN,
    };
    (code, format!("{}\n", status.message())).into_response()
}

/// Whether a request speaks gRPC.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}
