//! Receiving: links of messages into the replica's inbox, and fetches out of its archive.

use super::frame::{FRAME_BYTES_MAX, open_frame};
use super::hello::{Caller, HelloError, check_hello, welcome};
use super::{GrpcNetwork, PeerCounters};
use crate::proto::peer as wire;
use crate::proto::peer::peer_server::{Peer, PeerServer};
use crate::server::Replica;
use crate::tls::accept::Proof;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use muster_core::ids::{Index, ReplicaName, Seq, Term};
use muster_core::service::{self, Kind, Operation};
use muster_core::state::State;
use muster_core::storage::Library;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Extensions, Request, Response, Status, Streaming};

/// How long a caller may take to say hello.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// About this many bytes of records are given for one question.
const RECORDS_BYTES: usize = 4 << 20;

/// The peers' service of a replica.
pub struct PeerApi<L> {
    replica: Replica<L>,
    network: GrpcNetwork,
    counters: PeerCounters,
}

impl<L: Library> PeerApi<L> {
    /// The service, ready to be served.
    #[must_use]
    pub fn service(replica: Replica<L>, network: GrpcNetwork) -> PeerServer<Self> {
        let counters = network.counters().clone();
        PeerServer::new(Self { replica, network, counters })
            .max_decoding_message_size(FRAME_BYTES_MAX + (64 << 10))
            .max_encoding_message_size(usize::MAX)
    }

    fn check(&self, extensions: &Extensions, hello: Option<&wire::Hello>) -> Result<Caller, Status> {
        let view = self.replica.handle.view();
        let proven = self.proven(extensions, &view.state)?;
        let admitted = |id| view.state.members.get(id).map(|member| member.incarnation);
        check_hello(self.here(), hello, admitted)
            .map_err(|error| {
                self.counters.count(|counts| &counts.refused_peers);
                tracing::warn!(%error, "a peer is refused");
                match error {
                    HelloError::Malformed { .. } => Status::invalid_argument(error.to_string()),
                    HelloError::Cluster { .. }
                    | HelloError::Group { .. }
                    | HelloError::Misdirected { .. }
                    | HelloError::Incarnation { .. } => Status::permission_denied(error.to_string()),
                }
            })
            .and_then(|caller| self.is_proven(caller, proven, &view.state))
    }

    /// The name in the caller's certificate, where there is TLS.
    fn proven(&self, extensions: &Extensions, state: &State) -> Result<Option<ReplicaName>, Status> {
        let Some(Proof(Some(shown))) = extensions.get::<Proof>() else { return Ok(None) };
        let who = shown.credential.caller();
        let refused = |problem: String| {
            self.counters.count(|counts| &counts.refused_peers);
            tracing::warn!(problem, "a peer is refused");
            Status::permission_denied(problem)
        };
        service::allow(who, &Operation::of_cluster(Kind::Peer), &state.journal)
            .map_err(|denied| refused(denied.problem))?;
        match who {
            service::Caller::Replica(name) => Ok(Some(name.clone())),
            service::Caller::Author(_) | service::Caller::Nobody => Err(refused("it is no replica".to_owned())),
        }
    }

    /// A replica speaks for itself alone: where its id is known here, so is its name.
    fn is_proven(&self, caller: Caller, proven: Option<ReplicaName>, state: &State) -> Result<Caller, Status> {
        match (proven, state.members.get(caller.replica)) {
            (Some(name), Some(member)) if member.name != name => {
                self.counters.count(|counts| &counts.refused_peers);
                let problem = format!("replica {} is {}, the certificate is of {name}", caller.replica, member.name);
                tracing::warn!(problem, "a peer is refused");
                Err(Status::permission_denied(problem))
            }
            _ => Ok(caller),
        }
    }

    /// Reads the archive where that holds up no message.
    async fn apart<T: Send + 'static>(&self, reading: impl Future<Output = T> + Send + 'static) -> Result<T, Status> {
        let read = self.network.fetches().spawn(reading).await;
        read.map_err(|_| Status::unavailable("this replica is stopping"))
    }

    fn here(&self) -> Caller {
        Caller::of(&self.replica.identity)
    }
}

/// Everything a link's reader needs, away from the service.
struct Reader<L> {
    replica: Replica<L>,
    counters: PeerCounters,
    caller: Caller,
}

impl<L: Library> Reader<L> {
    async fn read(self, mut frames: Streaming<wire::LinkFrame>) -> Status {
        loop {
            let frame = tokio::select! {
                frame = frames.message() => frame,
                () = self.replica.ending() => return Status::unavailable("this replica is stopping"),
            };
            let frame = match frame {
                Ok(Some(wire::LinkFrame { frame: Some(wire::link_frame::Frame::Messages(frame)) })) => frame,
                Ok(Some(_)) => return Status::invalid_argument("expected a frame of messages"),
                Ok(None) => return Status::ok("the link ended"),
                Err(status) => {
                    if status.code() == tonic::Code::OutOfRange {
                        self.corrupt(&"a frame is larger than any frame");
                    }
                    return status;
                }
            };
            self.counters.count(|counts| &counts.frames_in);
            let envelopes = match open_frame(frame) {
                Ok(envelopes) => envelopes,
                Err(error) => {
                    self.corrupt(&error);
                    return Status::data_loss(error.to_string());
                }
            };
            for envelope in envelopes {
                let named = Caller {
                    cluster: envelope.cluster,
                    group: envelope.group,
                    replica: envelope.from,
                    incarnation: envelope.incarnation,
                };
                if named != self.caller || envelope.to != self.replica.identity.replica {
                    self.counters.count(|counts| &counts.refused_messages);
                    tracing::warn!(peer = %self.caller.replica, "a message names other ends than its link");
                    return Status::permission_denied("a message names other ends than its link");
                }
                self.replica.handle.deliver(envelope);
            }
        }
    }

    fn corrupt(&self, problem: &dyn std::fmt::Display) {
        self.counters.count(|counts| &counts.corrupt_frames);
        tracing::warn!(peer = %self.caller.replica, %problem, "a frame is refused and its stream dropped");
    }
}

#[tonic::async_trait]
impl<L: Library> Peer for PeerApi<L> {
    type LinkStream = ReceiverStream<Result<wire::Welcome, Status>>;
    type FetchPageStream = BoxStream<'static, Result<wire::Chunk, Status>>;
    type FetchRecordsStream = BoxStream<'static, Result<wire::RecordsChunk, Status>>;

    async fn link(&self, request: Request<Streaming<wire::LinkFrame>>) -> Result<Response<Self::LinkStream>, Status> {
        let extensions = request.extensions().clone();
        let mut frames = request.into_inner();
        let first = tokio::time::timeout(HELLO_PATIENCE, frames.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came in time"))??;
        let hello = match first.and_then(|first| first.frame) {
            Some(wire::link_frame::Frame::Hello(hello)) => Some(hello),
            Some(wire::link_frame::Frame::Messages(_)) | None => None,
        };
        let caller = self.check(&extensions, hello.as_ref())?;
        self.network.meet(caller, hello.as_ref().map_or("", |hello| &hello.peer_address));
        let (answers, answered) = mpsc::channel(2);
        answers.try_send(Ok(welcome(self.here()))).map_err(|_| Status::internal("no room for the welcome"))?;
        let reader = Reader { replica: self.replica.clone(), counters: self.counters.clone(), caller };
        tokio::spawn(async move {
            let end = reader.read(frames).await;
            if end.code() != tonic::Code::Ok {
                answers.send(Err(end)).await.ok();
            }
        });
        Ok(Response::new(ReceiverStream::new(answered)))
    }

    async fn fetch_page(
        &self,
        request: Request<wire::FetchPageRequest>,
    ) -> Result<Response<Self::FetchPageStream>, Status> {
        let extensions = request.extensions().clone();
        let request = request.into_inner();
        self.check(&extensions, request.hello.as_ref())?;
        let library = self.replica.library.clone();
        let (index, term, page) = (Index(request.index), Term(request.term), request.page);
        let page = self.apart(async move { library.page(index, term, page).await }).await?;
        let page = page.map_err(|error| {
            // Nobody can catch up by this snapshot from here, and nobody else sees it.
            tracing::error!(%error, peer = %request.hello.as_ref().map_or(0, |hello| hello.replica), "a snapshot's page cannot be given");
            Status::unavailable(error.to_string())
        })?;
        let page = page.ok_or_else(|| Status::not_found("that snapshot is not kept here any more"))?;
        let total = page.len() as u64;
        let offset = usize::try_from(request.offset).unwrap_or(usize::MAX);
        if offset > page.len() {
            return Err(Status::out_of_range(format!("the page has {total} bytes, there is nothing at {offset}")));
        }
        let chunks = parts(page.slice(offset..), self.network.chunk_bytes()).map(move |data| {
            let checksum = crc32fast::hash(&data);
            Ok(wire::Chunk { data, checksum, total })
        });
        Ok(Response::new(stream::iter(chunks).boxed()))
    }

    async fn fetch_records(
        &self,
        request: Request<wire::FetchRecordsRequest>,
    ) -> Result<Response<Self::FetchRecordsStream>, Status> {
        let extensions = request.extensions().clone();
        let request = request.into_inner();
        self.check(&extensions, request.hello.as_ref())?;
        let library = self.replica.library.clone();
        let (after, upto) = (Seq(request.after), Seq(request.upto));
        let records = self.apart(async move { library.records(after, upto, RECORDS_BYTES).await }).await?;
        let records = records.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut chunks = vec![wire::RecordsChunk::default()];
        let chunk_bytes = self.network.chunk_bytes();
        let mut room = chunk_bytes;
        for (sequence, bytes) in records {
            let mut parts = parts(bytes, chunk_bytes).peekable();
            while let Some(data) = parts.next() {
                if data.len() > room {
                    chunks.push(wire::RecordsChunk::default());
                    room = chunk_bytes;
                }
                room -= data.len();
                let checksum = crc32fast::hash(&data);
                let more = parts.peek().is_some();
                if let Some(chunk) = chunks.last_mut() {
                    chunk.records.push(wire::StoredRecord { sequence: sequence.0, data, checksum, more });
                }
            }
        }
        Ok(Response::new(stream::iter(chunks.into_iter().map(Ok)).boxed()))
    }
}

/// The bytes in parts of at most `chunk_bytes`; one empty part if there are none.
fn parts(bytes: Bytes, chunk_bytes: usize) -> impl Iterator<Item = Bytes> + Send {
    let count = bytes.len().div_ceil(chunk_bytes).max(1);
    (0..count).map(move |place| bytes.slice(place * chunk_bytes..((place + 1) * chunk_bytes).min(bytes.len())))
}
