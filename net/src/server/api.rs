//! `muster.v1.Muster` as a replica serves it.

use super::boot::grpc as boot;
use super::connections::Pulse;
use super::pipeline::pipeline;
use super::{Access, Replica, history};
use crate::client::{Admitted, LogFilter, Status as ReplicaReport, Topic, random_id};
use crate::convert::{At, Malformed, Wire, need, text};
use crate::proto::v1 as wire;
use crate::proto::v1::muster_server::{Muster, MusterServer};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use muster_core::front::{Handle, Outcomes, Tagged, View};
use muster_core::ids::{NodeId, ReplicaId, Seq};
use muster_core::journal::entry::Author;
use muster_core::journal::key::Scope;
use muster_core::members::{Admission, MemberCommand};
use muster_core::query::{Answer, Query, answer};
use muster_core::request::{
    AdminRequest, Command, Freshness, NotApplied, Outcome, RaftRole, Refusal, ReplicaStatus, Reply, RequestId,
    WriteRequest,
};
use muster_core::service::{Kind, Operation, allow_author, allow_write};
use muster_core::state::State;
use muster_core::storage::Library;
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// What clients may ask for at once.
#[derive(Clone, Debug)]
pub struct ClientLimits {
    /// Bytes of one write's command. Larger ones are not applied, and told so. Default 4 MiB.
    pub payload_bytes_max: usize,
    /// Streams on one connection. More lets one client hold more at once. Default 1,024.
    pub streams_max: u32,
    /// Writes of one pipeline that wait for their outcome; beyond it the stream is read no further. Default 4,096.
    pub pipelined_max: usize,
    /// Connections at a time; those beyond are closed at once. More serve more nodes that keep theirs, and take more memory.
    /// Default 16,384.
    pub connections_max: usize,
    /// How long an HTTP/1.1 connection may go without a whole request. Longer spares those that come back a new one; shorter frees
    /// what silent ones hold. Default 30 s.
    pub idle_timeout: Duration,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            payload_bytes_max: 4 << 20,
            streams_max: 1_024,
            pipelined_max: 4_096,
            connections_max: 16_384,
            idle_timeout: Duration::from_secs(30),
        }
    }
}

/// The largest message that is read at all. Payloads between this and their own limit are refused with their size; beyond
/// it the stream ends.
pub(crate) const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// Messages a slow reader may be behind.
const STREAM_MESSAGES: usize = 4;
/// How long an admission waits to see itself in the local view.
const ADMISSION_PATIENCE: Duration = Duration::from_secs(5);

/// The client API of a replica.
pub struct MusterApi<L> {
    replica: Replica<L>,
    limits: ClientLimits,
}

impl<L: Library> MusterApi<L> {
    /// The service, ready to be served.
    #[must_use]
    pub fn service(replica: Replica<L>, limits: ClientLimits) -> MusterServer<Self> {
        MusterServer::new(Self { replica, limits })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(usize::MAX)
    }

    fn writer(&self, access: Access) -> Writer<L> {
        Writer { replica: self.replica.clone(), payload_bytes_max: self.limits.payload_bytes_max, access }
    }
}

/// Takes writes off the wire and to the replica.
pub(super) struct Writer<L> {
    pub(super) replica: Replica<L>,
    payload_bytes_max: usize,
    pub(super) access: Access,
}

/// What a write comes to that is refused here, before it is anywhere else.
fn refuse(refusal: Refusal) -> Outcome {
    Outcome::NotApplied(NotApplied::Refused(refusal))
}

/// A write as it came off the wire. In whose name it is has not been looked at.
struct Read {
    request: RequestId,
    claimed: Option<Author>,
    command: Command,
    forward: bool,
}

impl<L: Library> Writer<L> {
    /// Reads a write, which needs no state.
    fn read(&self, wire: wire::WriteRequest) -> Result<Read, Outcome> {
        let bytes = wire.command.as_ref().map_or(0, Message::encoded_len);
        if bytes > self.payload_bytes_max {
            let why = NotApplied::TooLarge { bytes: bytes as u64, bytes_max: self.payload_bytes_max as u64 };
            return Err(Outcome::NotApplied(why));
        }
        let forward = !wire.do_not_forward;
        let refused = |error: Malformed| refuse(error.into_refusal());
        Ok(Read {
            claimed: wire.author.map(Author::from_wire).transpose().at("author").map_err(refused)?,
            request: need("request", wire.request).map_err(refused)?,
            command: need("command", wire.command).map_err(refused)?,
            forward,
        })
    }

    /// Checks what need not go through the replica, by the state as it is.
    fn accept(&self, state: &State, read: Read) -> Result<(WriteRequest, bool), Outcome> {
        let Read { request, claimed, command, forward } = read;
        let author = self.access.author(claimed, &state.journal).map_err(refuse)?;
        let write = WriteRequest { request, author, command };
        self.access.is_in_force().map_err(|status| refuse(Refusal::Forbidden { problem: status.message().into() }))?;
        allow_write(&write, state).map_err(Outcome::NotApplied)?;
        Ok((write, forward))
    }

    /// What becomes of a write. Reaches the replica's inbox when it is first polled, so writes keep their order.
    async fn write(self: Arc<Self>, wire: wire::WriteRequest) -> Outcome {
        let accepted = self.read(wire).and_then(|read| self.accept(&self.replica.handle.view().state, read));
        match accepted {
            Ok((write, forward)) => self.replica.handle.write(write, forward).await,
            Err(outcome) => outcome,
        }
    }

    /// Hands many writes in, in order; those that need not go through the replica are answered at once.
    pub(super) fn submit(&self, writes: Vec<wire::TaggedWrite>, outcomes: &Outcomes) {
        let or_tell = |tag, outcome| {
            // A client that went away does not wait for its outcomes.
            let _ = outcomes.unbounded_send((tag, outcome));
        };
        let read = |wire::TaggedWrite { tag, write }| match self.read(write.unwrap_or_default()) {
            Ok(read) => Some((tag, read)),
            Err(outcome) => {
                or_tell(tag, outcome);
                None
            }
        };
        let read: Vec<_> = writes.into_iter().filter_map(read).collect();
        // As long as the view is held, the replica copies what it changes: it is taken when everything is read, for the checks
        // alone.
        let view = self.replica.handle.view();
        let accept = |(tag, read)| match self.accept(&view.state, read) {
            Ok((write, forward)) => Some(Tagged { tag, write, forward }),
            Err(outcome) => {
                or_tell(tag, outcome);
                None
            }
        };
        let writes = read.into_iter().filter_map(accept).collect();
        drop(view);
        self.replica.handle.submit(writes, outcomes);
    }

    /// The leader, if it is another replica, and known with its address.
    pub(super) fn leader(&self) -> Option<wire::NotLeader> {
        let view = self.replica.handle.view();
        let leader = view.status.leader;
        if view.status.role == RaftRole::Leader || leader == ReplicaId(0) {
            return None;
        }
        let member = view.state.members.get(leader)?;
        Some(wire::NotLeader { leader: leader.0, address: member.client_address.to_string() })
    }
}

/// A question about live state, and how fresh its answer must be.
pub(super) fn question(wire: wire::QueryRequest) -> Result<(Freshness, Query), Malformed> {
    let freshness = Freshness::from_wire(wire.freshness.unwrap_or_default()).at("freshness")?;
    Ok((freshness, need("query", wire.query)?))
}

/// The answer to a question on the view that a read was given.
pub(super) fn reply(
    handle: &Handle,
    access: &Access,
    read: &Result<Arc<View>, NotApplied>,
    query: &Query,
) -> Result<wire::QueryReply, Status> {
    use wire::query_reply::Result as W;
    let (sequence, result) = match read {
        Ok(view) => {
            access.is_in_force()?;
            access.may(&Operation::of_query(query), &view.state)?;
            let result = match answer(&view.state, view.status.applied, query) {
                Ok(answer) => W::Answer(visible(answer, access, &view.state).to_wire()),
                Err(refusal) => W::Refused(refusal.to_wire()),
            };
            (view.state.sequence(), result)
        }
        Err(why) => (handle.view().state.sequence(), W::NotAnswered(why.to_wire())),
    };
    Ok(wire::QueryReply { sequence: sequence.0, result: Some(result) })
}

/// A list, without what its reader may not see.
fn visible(answer: Answer, access: &Access, state: &State) -> Answer {
    match answer {
        Answer::VClusters(mut vclusters) => {
            vclusters.retain(|vcluster| access.sees(&Scope::VCluster(vcluster.vcluster.clone()), state));
            Answer::VClusters(vclusters)
        }
        Answer::Nodes(mut nodes) => {
            nodes.retain(|node| access.sees(&Scope::Node(node.node.clone()), state));
            Answer::Nodes(nodes)
        }
        Answer::Summary(_)
        | Answer::Scope { .. }
        | Answer::Node { .. }
        | Answer::Policy { .. }
        | Answer::Members(_) => answer,
    }
}

fn refusal_words(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Forbidden { problem } => problem.to_string(),
        Refusal::Invalid { field, problem } => format!("{field}: {problem}"),
        other => format!("{other:?}"),
    }
}

/// Scopes that are asked for by name are refused where they may not be seen; where none is named, records are left out.
fn may_read_history(access: &Access, scopes: &[Scope], state: &State) -> Result<(), Status> {
    if scopes.is_empty() {
        return access.may(&Operation::of_cluster(Kind::ReadHistory), state);
    }
    scopes.iter().try_for_each(|scope| access.may(&Operation::on(Kind::ReadHistory, scope.clone()), state))
}

impl<L: Library> MusterApi<L> {
    /// The door for who only looks at the replica.
    fn observed<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let access = Access::of(request.extensions())?;
        access.may(&Operation::of_cluster(Kind::Observe), &self.replica.handle.view().state)
    }
}

#[tonic::async_trait]
impl<L: Library> Muster for MusterApi<L> {
    type PipelineStream = ReceiverStream<Result<wire::PipelineReply, Status>>;
    type BootStream = BoxStream<'static, Result<wire::BootReply, Status>>;
    type SubscribeStream = ReceiverStream<Result<wire::SubscribeReply, Status>>;
    type LogStream = ReceiverStream<Result<wire::LogReply, Status>>;
    type VerifyStream = ReceiverStream<Result<wire::VerifyReply, Status>>;

    async fn write(&self, request: Request<wire::WriteRequest>) -> Result<Response<wire::WriteReply>, Status> {
        let writer = self.writer(Access::of(request.extensions())?);
        let mut write = request.into_inner();
        if write.request.is_none() {
            let drawn_at = self.replica.handle.view().state.age();
            write.request = Some(RequestId::OneShot { id: random_id(), drawn_at }.to_wire());
        }
        let request = write.request.clone();
        let outcome = Arc::new(writer).write(write).await;
        Ok(Response::new(wire::WriteReply { request, outcome: Some(outcome.to_wire()) }))
    }

    async fn pipeline(
        &self,
        request: Request<Streaming<wire::PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        let writer = self.writer(Access::of(request.extensions())?);
        let (out, replies) = mpsc::channel(STREAM_MESSAGES);
        tokio::spawn(pipeline(Arc::new(writer), request.into_inner(), self.limits.pipelined_max, out));
        Ok(Response::new(ReceiverStream::new(replies)))
    }

    async fn query(&self, request: Request<wire::QueryRequest>) -> Result<Response<wire::QueryReply>, Status> {
        let access = Access::of(request.extensions())?;
        let (freshness, query) = question(request.into_inner())?;
        let read = self.replica.handle.read(freshness).await;
        Ok(Response::new(reply(&self.replica.handle, &access, &read, &query)?))
    }

    async fn boot(&self, request: Request<wire::BootRequest>) -> Result<Response<Self::BootStream>, Status> {
        let access = Access::of(request.extensions())?;
        let pulse = request.extensions().get::<Arc<Pulse>>().cloned();
        let pulse = pulse.ok_or_else(|| Status::internal("the request came over no connection of ours"))?;
        let (replies, place) = boot::answer(&self.replica, &access, &pulse, request.into_inner()).await?;
        let mut response = Response::new(stream::iter(replies).map(Ok).boxed());
        // Not the stream's: that is over when its last message is encoded, which may be long before it is sent.
        if let Some(place) = place {
            response.extensions_mut().insert(Arc::new(place));
        }
        Ok(response)
    }

    async fn subscribe(
        &self,
        request: Request<wire::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let access = Access::of(request.extensions())?;
        let request = request.into_inner();
        let topic = Topic::from_wire(request.topic)?;
        let view = self.replica.handle.view();
        match &topic {
            Topic::Scopes(scopes) => may_read_history(&access, scopes, &view.state)?,
            Topic::Node(node) => access.may(&Operation::on_node(Kind::ReadHistory, node.clone()), &view.state)?,
        }
        drop(view);
        let after = Seq(request.after);
        let (out, replies) = mpsc::channel(STREAM_MESSAGES);
        tokio::spawn(history::subscribe(self.replica.clone(), access, topic, after, request.heartbeat_ms, out));
        Ok(Response::new(ReceiverStream::new(replies)))
    }

    async fn log(&self, request: Request<wire::LogRequest>) -> Result<Response<Self::LogStream>, Status> {
        let access = Access::of(request.extensions())?;
        let filter = LogFilter::from_wire(request.into_inner())?;
        may_read_history(&access, &filter.scopes, &self.replica.handle.view().state)?;
        let (out, replies) = mpsc::channel(STREAM_MESSAGES);
        tokio::spawn(history::log(self.replica.clone(), access, filter, out));
        Ok(Response::new(ReceiverStream::new(replies)))
    }

    async fn state_at(&self, request: Request<wire::StateAtRequest>) -> Result<Response<wire::StateAtReply>, Status> {
        let access = Access::of(request.extensions())?;
        let request = request.into_inner();
        let scope: Scope = need("scope", request.scope)?;
        access.may(&Operation::on(Kind::Read, scope.clone()), &self.replica.handle.view().state)?;
        let state = history::state_at(&self.replica, scope, request.at.map(Seq)).await?;
        Ok(Response::new(state.to_wire()))
    }

    async fn verify(&self, request: Request<wire::VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        let access = Access::of(request.extensions())?;
        access.may(&Operation::of_cluster(Kind::Verify), &self.replica.handle.view().state)?;
        let head = request.into_inner().head;
        let head = head.map(|head| text("head.digest", &head.digest).map(|digest| (Seq(head.sequence), digest)));
        let (out, replies) = mpsc::channel(STREAM_MESSAGES);
        tokio::spawn(history::verify(self.replica.clone(), head.transpose()?, out));
        Ok(Response::new(ReceiverStream::new(replies)))
    }

    async fn age(&self, request: Request<wire::AgeRequest>) -> Result<Response<wire::AgeReply>, Status> {
        self.observed(&request)?;
        Ok(Response::new(wire::AgeReply { age: self.replica.handle.view().state.age().0 }))
    }

    async fn status(&self, request: Request<wire::StatusRequest>) -> Result<Response<wire::StatusReply>, Status> {
        self.observed(&request)?;
        let view = self.replica.handle.view();
        let identity = &self.replica.identity;
        let Ok(Answer::Summary(summary)) = answer(&view.state, view.status.applied, &Query::Summary) else {
            return Err(Status::internal("the journal has no summary"));
        };
        let report = ReplicaReport {
            cluster: identity.cluster,
            group: identity.group,
            name: identity.name.clone(),
            incarnation: identity.incarnation,
            build_version: self.replica.build_version.to_owned(),
            replica: ReplicaStatus::clone(&view.status),
            summary,
            members: view.state.members.all().cloned().collect(),
            disk_bytes: (self.replica.disk_bytes)(),
            certificate_ends: self.replica.tls.as_ref().map(|tls| tls.shown().not_after),
        };
        Ok(Response::new(report.to_wire()))
    }

    async fn admin(&self, request: Request<wire::AdminRequest>) -> Result<Response<wire::AdminReply>, Status> {
        let access = Access::of(request.extensions())?;
        access.may(&Operation::of_cluster(Kind::MindReplica), &self.replica.handle.view().state)?;
        let request = AdminRequest::from_wire(request.into_inner())?;
        Ok(Response::new(self.replica.handle.admin(request).await.to_wire()))
    }

    async fn report(&self, request: Request<wire::ReportRequest>) -> Result<Response<wire::ReportReply>, Status> {
        let access = Access::of(request.extensions())?;
        let request = request.into_inner();
        let claimed = request.author.map(Author::from_wire).transpose().at("author")?;
        let view = self.replica.handle.view();
        let author = access.author(claimed, &view.state.journal);
        let author = author.map_err(|refusal| Status::permission_denied(refusal_words(&refusal)))?;
        let reply = self.replica.fleet.report(request.report, |node| {
            let operation = Operation::on_node(Kind::Report, node.clone());
            allow_author(&author, &operation, &view.state.journal).map_err(|d| Status::permission_denied(d.problem))
        })?;
        Ok(Response::new(reply))
    }

    async fn fleet(&self, request: Request<wire::FleetRequest>) -> Result<Response<wire::FleetReply>, Status> {
        let access = Access::of(request.extensions())?;
        let view = self.replica.handle.view();
        access.may(&Operation::of_cluster(Kind::Read), &view.state)?;
        let sees = |node: &NodeId| access.sees(&Scope::Node(node.clone()), &view.state);
        Ok(Response::new(self.replica.fleet.heard(&request.into_inner().node, sees)?))
    }

    async fn admit(&self, request: Request<wire::AdmitRequest>) -> Result<Response<wire::AdmitReply>, Status> {
        use wire::admit_reply::Result as W;
        let access = Access::of(request.extensions())?;
        let request = request.into_inner();
        let admission: Admission = need("admission", request.admission)?;
        let claimed = request.author.map(Author::from_wire).transpose().at("author")?;
        let handle = &self.replica.handle;
        let view = handle.view();
        let drawn_at = view.state.age();
        let allowed = access.admitting(claimed, &view.state.journal).and_then(|author| {
            access.may_admit(&author, &Operation::of_admission(&admission), &view.state)?;
            Ok(author)
        });
        drop(view);
        let outcome = match allowed {
            Ok(author) => {
                let request = RequestId::OneShot { id: random_id(), drawn_at };
                let command = Command::Members(MemberCommand::Admit(admission));
                handle.write(WriteRequest { request, author, command }, true).await
            }
            Err(refusal) => Outcome::Refused(refusal),
        };
        let result = match outcome {
            Outcome::Applied { reply: Reply::Admitted { replica }, .. } => {
                let seen = async {
                    let mut view = handle.view();
                    while view.state.members.get(replica).is_none() && !handle.stopped() {
                        view = handle.changed(view.version).await;
                    }
                    view
                };
                let view = tokio::time::timeout(ADMISSION_PATIENCE, seen).await;
                let view = view.map_err(|_| Status::unavailable("admitted, but not seen here yet: ask again"))?;
                let identity = &self.replica.identity;
                let members = view.state.members.all().cloned().collect();
                let admitted = Admitted { cluster: identity.cluster, group: identity.group, replica, members };
                W::Admitted(admitted.to_wire())
            }
            outcome => W::Outcome(outcome.to_wire()),
        };
        Ok(Response::new(wire::AdmitReply { result: Some(result) }))
    }
}
