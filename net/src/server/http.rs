//! HTTP/1.1 for people, probes and scripts, on the clients' port.

use super::Replica;
use super::access::is_grpc;
use super::boot::http as boots;
use super::boot::reply::Answer;
use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use muster_core::storage::Library;
use std::sync::Arc;

/// The pages that the binary gives.
#[derive(Clone)]
pub struct HttpPages {
    /// The text of `/metrics`, in Prometheus' format.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Routes of the binary's own.
    pub more: Router,
}

impl Default for HttpPages {
    fn default() -> Self {
        Self { metrics: Arc::new(String::new), more: Router::new() }
    }
}

/// Where a replica tells how free it is.
pub(super) const FREE: &str = "/v1/free";

/// How free this replica is to serve boots, and how far behind.
pub(super) fn free_answer<L: Library>(replica: &Replica<L>) -> Answer {
    Answer::words(StatusCode::OK, "application/json", boots::free(replica))
}

/// `/health`, `/metrics` and what else the binary gives.
pub(super) fn router<L: Library>(replica: Replica<L>, pages: HttpPages) -> Router {
    let metrics = pages.metrics;
    let free = replica.clone();
    Router::new()
        .route(
            FREE,
            get(move || async move { ([(header::CONTENT_TYPE, "application/json")], format!("{}\n", boots::free(&free))) }),
        )
        .route("/health", get(move || async move { health(&replica) }))
        .route(
            "/metrics",
            get(move || async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics()) }),
        )
        .merge(pages.more)
}

/// A call of a service that is not here is answered as gRPC asks; anything else gets a plain 404.
pub(super) async fn unknown(headers: HeaderMap) -> Response {
    if is_grpc(&headers) {
        tonic::Status::unimplemented("this replica has no such service").into_http()
    } else {
        (StatusCode::NOT_FOUND, "there is no such page: expected /v1/boot/NODE, /v1/free, /health or /metrics\n")
            .into_response()
    }
}

/// 200 while the replica knows a leader; 503 with the reason otherwise. Local reads and boots are served either way.
fn health<L: Library>(replica: &Replica<L>) -> impl IntoResponse + use<L> {
    let view = replica.handle.view();
    let (code, word) = if replica.is_ending() || replica.handle.stopped() {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping")
    } else if view.status.leader.0 == 0 {
        (StatusCode::SERVICE_UNAVAILABLE, "no quorum")
    } else {
        (StatusCode::OK, "ok")
    };
    // Every value is a number or a word of ours: nothing needs escaping.
    let body = format!(
        "{{\"status\":\"{word}\",\"replica\":{},\"role\":\"{}\",\"leader\":{},\"term\":{},\"applied\":{},\"sequence\":{}}}\n",
        view.status.replica,
        view.status.role.word(),
        view.status.leader,
        view.status.term,
        view.status.applied,
        view.state.sequence(),
    );
    (code, [(header::CONTENT_TYPE, "application/json")], body)
}
