//! The clients' port: boots the short way, everything else by axum's routes (gRPC with reflection and health, pages).
//!
//! A boot is answered before any route is looked up and, unless something has to be waited for, within the call: in a storm there
//! is nothing else to do, and what is done here is done a hundred thousand times. Most of them are not even read by the HTTP library
//! (`lane`).

use super::access::Access;
use super::boot::Place;
use super::boot::http as boots;
use super::boot::reply::Answer;
use super::connections::{self, Pulse, Turn, Watch};
use super::lane::Boots;
use super::outgoing::Outgoing;
use super::{ClientLimits, HttpPages, LINGER, Listener, MusterApi, Replica, ServeError, access, http};
use crate::proto::v1;
use crate::tls::Port;
use crate::tls::accept::{Proof, incoming};
use axum::Router;
use axum::http::{Method, Request, Response, StatusCode, Version};
use boots::{Answering, Ask, Door};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::service::Service;
use muster_core::ids::NodeId;
use muster_core::service::{Kind, Operation, allow_anonymous};
use muster_core::state::State;
use muster_core::storage::Library;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::service::Routes;
use tonic::transport::server::Connected as _;
use tower::Service as _;

/// An answer on its way.
enum Answered {
    Now(Option<Answer>),
    Later(BoxFuture<'static, Answer>),
    Routed(BoxFuture<'static, Response<Outgoing>>),
}

impl Future for Answered {
    type Output = Result<Response<Outgoing>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Now(answer) => Poll::Ready(Ok(answer.take().expect("polled after it was ready").into())),
            Self::Later(answer) => answer.as_mut().poll(context).map(|answer| Ok(answer.into())),
            Self::Routed(answer) => answer.as_mut().poll(context).map(Ok),
        }
    }
}

impl Answered {
    /// What is answered to a request of this method: HTTP/2 sends whatever is handed to it.
    fn of(answering: Answering, method: &Method) -> Self {
        match answering {
            Answering::Now(answer) if method == Method::HEAD => Self::Now(Some(answer.head_alone())),
            Answering::Now(answer) => Self::Now(Some(answer)),
            Answering::Later(answer) if method == Method::HEAD => {
                Self::Later(Box::pin(async move { answer.await.head_alone() }))
            }
            Answering::Later(answer) => Self::Later(answer),
        }
    }
}

/// Reads what a request asks of a boot.
fn ask(request: &Request<Incoming>) -> Result<Ask, Box<Answer>> {
    Ask::read(request.method(), request.uri().path(), request.uri().query(), request.headers().into())
}

/// Who may boot what, by what a connection proves.
#[derive(Clone)]
struct Proven(Access);

impl Door for Proven {
    fn may(&self, node: &NodeId, state: &State) -> Result<(), Box<Answer>> {
        let boot = Operation::on_node(Kind::Boot, node.clone());
        self.0.is_in_force().and_then(|()| self.0.may(&boot, state)).map_err(|status| {
            let code = match status.code() {
                tonic::Code::Unauthenticated => StatusCode::UNAUTHORIZED,
                _ => StatusCode::FORBIDDEN,
            };
            Box::new(boots::words(code, status.message()))
        })
    }
}

/// What one connection of the clients' port is answered by.
struct Front<L> {
    replica: Replica<L>,
    routes: Router,
    door: Proven,
    proof: Proof,
    pulse: Arc<Pulse>,
}

impl<L: Library> Boots for Front<L> {
    fn boot(&self, ask: Result<Ask, Box<Answer>>, turn: Turn) -> Answering {
        boots::serve(&self.replica, turn, None, &self.door, ask)
    }
}

impl<L: Library> Service<Request<Incoming>> for Front<L> {
    type Response = Response<Outgoing>;
    type Error = Infallible;
    type Future = Answered;

    fn call(&self, mut request: Request<Incoming>) -> Answered {
        if request.version() == Version::HTTP_2 {
            self.pulse.speaks_http2();
        }
        let turn = Turn::begin(&self.pulse);
        if request.uri().path().starts_with(boots::PREFIX) {
            return Answered::of(self.boot(ask(&request), turn), request.method());
        }
        if request.version() != Version::HTTP_2 && !matches!(*request.method(), Method::GET | Method::HEAD) {
            // What has a body is gRPC, and that is HTTP/2. A body that never comes would keep the connection for good.
            let problem = format!("{} does nothing here: expected GET or HEAD, or gRPC over HTTP/2", request.method());
            let mut refused = boots::words(StatusCode::METHOD_NOT_ALLOWED, problem);
            refused.close = true;
            return Answered::Now(Some(refused));
        }
        request.extensions_mut().insert(self.proof.clone());
        request.extensions_mut().insert(self.pulse.clone());
        let mut routes = self.routes.clone();
        Answered::Routed(Box::pin(async move {
            let answer = match routes.call(request).await {
                Ok(answer) => answer,
                Err(never) => match never {},
            };
            let (mut parts, body) = answer.into_parts();
            let place = parts.extensions.remove::<Arc<Place>>();
            Response::from_parts(parts, Outgoing::routed(body, place, turn))
        }))
    }
}

/// Whoever has no certificate, where `boot.anonymous` is set.
#[derive(Clone)]
struct WithoutCertificate;

impl Door for WithoutCertificate {
    fn may(&self, node: &NodeId, _: &State) -> Result<(), Box<Answer>> {
        let boot = Operation::on_node(Kind::Boot, node.clone());
        allow_anonymous(&boot).map_err(|denied| Box::new(boots::words(StatusCode::FORBIDDEN, denied.problem)))
    }
}

/// What one connection of the port without certificates is answered by: boots, and nothing else.
struct Anonymous<L> {
    replica: Replica<L>,
    port: u16,
    pulse: Arc<Pulse>,
}

impl<L: Library> Boots for Anonymous<L> {
    fn boot(&self, ask: Result<Ask, Box<Answer>>, turn: Turn) -> Answering {
        boots::serve(&self.replica, turn, Some(self.port), &WithoutCertificate, ask)
    }
}

impl<L: Library> Service<Request<Incoming>> for Anonymous<L> {
    type Response = Response<Outgoing>;
    type Error = Infallible;
    type Future = Answered;

    fn call(&self, request: Request<Incoming>) -> Answered {
        if request.version() == Version::HTTP_2 {
            self.pulse.speaks_http2();
        }
        let turn = Turn::begin(&self.pulse);
        let path = request.uri().path();
        if path == http::FREE && matches!(*request.method(), Method::GET | Method::HEAD) {
            let free = match allow_anonymous(&Operation::of_cluster(Kind::AskWhoIsFree)) {
                Ok(()) => http::free_answer(&self.replica),
                Err(denied) => boots::words(StatusCode::FORBIDDEN, denied.problem),
            };
            return Answered::of(Answering::Now(free), request.method());
        }
        if !path.starts_with(boots::PREFIX) {
            let problem = format!("there are only boots here: expected {}NODE", boots::PREFIX);
            let refused = boots::words(StatusCode::NOT_FOUND, problem);
            return Answered::of(Answering::Now(refused), request.method());
        }
        Answered::of(self.boot(ask(&request), turn), request.method())
    }
}

/// Serves clients until the replica is [ending](Replica::end): gRPC with reflection and health, and HTTP/1.1 beside it.
///
/// # Errors
/// [`ServeError::Broken`].
pub async fn serve_clients<L: Library>(
    listener: Listener,
    replica: Replica<L>,
    limits: ClientLimits,
    pages: HttpPages,
) -> Result<(), ServeError> {
    let purpose = listener.purpose;
    let broken = |problem: String| ServeError::Broken { purpose, problem };
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<v1::muster_server::MusterServer<MusterApi<L>>>().await;
    let reflection = |error: tonic_reflection::server::Error| broken(error.to_string());
    let describe = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let routes: Router = Routes::new(MusterApi::service(replica.clone(), limits.clone()))
        .add_service(health_service)
        .add_service(describe().build_v1().map_err(reflection)?)
        .add_service(describe().build_v1alpha().map_err(reflection)?)
        .into_axum_router()
        .merge(http::router(replica.clone(), pages))
        .fallback(http::unknown)
        .layer(axum::middleware::from_fn(access::guard));
    let front_of = |replica: &Replica<L>| {
        let (replica, routes) = (replica.clone(), routes.clone());
        move |proof: Proof, pulse: &Arc<Pulse>| Front {
            door: Proven(Access::by(&proof)),
            replica,
            routes,
            proof,
            pulse: pulse.clone(),
        }
    };
    let watch = replica.watch.clone();
    let looking = watch.look_after(limits.idle_timeout, || replica.desk.look_after());
    serve(listener, &replica, (&watch, looking), &limits, front_of, async {
        health.set_not_serving::<v1::muster_server::MusterServer<MusterApi<L>>>().await;
    })
    .await;
    Ok(())
}

/// Serves boots to nodes without a certificate, over plain HTTP, until the replica is [ending](Replica::end). To be called only
/// where `boot.anonymous` is set.
pub async fn serve_anonymous<L: Library>(listener: Listener, replica: Replica<L>, limits: ClientLimits) {
    let port = listener.address.port();
    let watch = replica.strangers.clone();
    let front_of = |replica: &Replica<L>| {
        let replica = replica.clone();
        move |_: Proof, pulse: &Arc<Pulse>| Anonymous { replica, port, pulse: pulse.clone() }
    };
    let looking = watch.look_after(limits.idle_timeout, || {});
    serve(listener, &replica, (&watch, looking), &limits, front_of, async {}).await;
}

/// Accepts connections until the replica is ending, then waits for them, but not for long.
async fn serve<L, S, F>(
    listener: Listener,
    replica: &Replica<L>,
    (watch, looking): (&Arc<Watch>, impl Future<Output = ()>),
    limits: &ClientLimits,
    front_of: impl Fn(&Replica<L>) -> F,
    at_the_end: impl Future<Output = ()>,
) where
    L: Library,
    F: FnOnce(Proof, &Arc<Pulse>) -> S,
    S: Boots + Service<Request<Incoming>, Response = Response<Outgoing>, Error = Infallible> + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    let speaker = connections::speaker(limits);
    let mut sockets = incoming(listener.socket, listener.tls.map(|tls| (tls, Port::Anyone)));
    let accepting = async {
        while let Some(socket) = sockets.next().await {
            if let Ok(socket) = socket {
                let front = front_of(replica);
                connections::serve(watch, limits, &speaker, socket, |socket, pulse| {
                    front(socket.connect_info(), pulse)
                });
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = looking => {}
        () = replica.ending() => {}
    }
    drop(sockets);
    at_the_end.await;
    watch.end();
    tokio::time::timeout(LINGER, watch.empty()).await.ok();
}
