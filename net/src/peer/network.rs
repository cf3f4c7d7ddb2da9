//! Sending: one task per peer and lane keeps its stream up; fetches go beside them.

use super::PeerCounters;
use super::frame::{self, FRAME_BYTES_MAX};
use super::hello::{Caller, check_welcome, hello};
use super::queue::Queue;
use crate::proto::peer as wire;
use crate::proto::peer::peer_client::PeerClient;
use crate::tls::{Expect, Tls, Told, dial, explain, root_cause};
use bytes::{Bytes, BytesMut};
use muster_core::ids::{Incarnation, Index, ReplicaId, Seq, Term};
use muster_core::members::Member;
use muster_core::network::{FetchError, Network};
use muster_core::peer::{Envelope, Lane};
use muster_core::storage::Identity;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle as Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// Bounds and patience of the peer transport.
#[derive(Clone, Debug)]
pub struct PeerOptions {
    /// Where this replica's own peers reach it, told to whoever it calls. Empty: a joiner that knows nobody cannot answer.
    pub peer_address: Arc<str>,
    /// Snapshot pages and records are given to peers in chunks of at most this many bytes. Larger: fewer messages; smaller: less is
    /// sent again after a break.
    pub chunk_bytes: usize,
    /// Bytes of control messages that may wait for one peer.
    pub control_bytes_max: usize,
    /// Bytes of bulk messages that may wait for one peer. More rides out longer stalls; a leader holds this much per follower.
    pub bulk_bytes_max: usize,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// The first and the longest pause before a broken link is made anew.
    pub backoff: (Duration, Duration),
    /// How long a fetch may stand still before it is given up.
    pub fetch_timeout: Duration,
    /// This replica's keys; none without TLS.
    pub tls: Option<Tls>,
    /// Where pages and records are fetched and given, away from the links: reading a disk must not hold up a message. The
    /// runtime of the links, if none.
    pub fetches: Option<Runtime>,
}

impl Default for PeerOptions {
    fn default() -> Self {
        Self {
            peer_address: Arc::from(""),
            chunk_bytes: 1 << 20,
            control_bytes_max: 1 << 20,
            bulk_bytes_max: 64 << 20,
            connect_timeout: Duration::from_secs(1),
            backoff: (Duration::from_millis(20), Duration::from_secs(1)),
            fetch_timeout: Duration::from_secs(10),
            tls: None,
            fetches: None,
        }
    }
}

/// Attempts of one fetch, each going on where the last one broke off.
const FETCH_ATTEMPTS: u32 = 3;
/// The largest page that is accepted.
const PAGE_BYTES_MAX: u64 = 64 << 20;

/// The network of a replica, over gRPC.
#[derive(Clone)]
pub struct GrpcNetwork {
    shared: Arc<Shared>,
}

struct Shared {
    here: Caller,
    options: PeerOptions,
    counters: PeerCounters,
    runtime: Runtime,
    peers: Mutex<BTreeMap<ReplicaId, Peer>>,
}

struct Peer {
    incarnation: Incarnation,
    address: Arc<str>,
    control: Arc<Queue>,
    bulk: Arc<Queue>,
    channel: Option<Channel>,
    links: [JoinHandle<()>; 2],
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.links.iter().for_each(JoinHandle::abort);
    }
}

impl GrpcNetwork {
    /// A network that knows nobody yet. Its links run on the runtime this is called in.
    #[must_use]
    pub fn new(identity: &Identity, options: PeerOptions, counters: PeerCounters) -> Self {
        let shared = Shared {
            here: Caller::of(identity),
            options,
            counters,
            runtime: Runtime::current(),
            peers: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Messages dropped so far because a peer's queue was full or its link down.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.peers().values().map(|peer| peer.control.dropped() + peer.bulk.dropped()).sum()
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, Peer>> {
        self.shared.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where fetches run.
    pub(super) fn fetches(&self) -> &Runtime {
        self.shared.options.fetches.as_ref().unwrap_or(&self.shared.runtime)
    }

    /// How large the chunks are in which peers are given pages and records.
    pub(super) fn chunk_bytes(&self) -> usize {
        self.shared.options.chunk_bytes.max(1)
    }

    /// What went wrong so far.
    #[must_use]
    pub fn counters(&self) -> &PeerCounters {
        &self.shared.counters
    }

    /// A caller that was let in told where it is. Counts only until the members say who is where.
    pub(super) fn meet(&self, caller: Caller, address: &str) {
        let mut peers = self.peers();
        if !address.is_empty() && !peers.contains_key(&caller.replica) {
            tracing::info!(peer = %caller.replica, address, "met a peer");
            peers.insert(caller.replica, self.open(caller.replica, caller.incarnation, Arc::from(address)));
        }
    }

    fn open(&self, id: ReplicaId, incarnation: Incarnation, address: Arc<str>) -> Peer {
        let options = &self.shared.options;
        let link = |lane: Lane, queue: &Arc<Queue>| {
            let link = Link {
                here: self.shared.here,
                there: (id, incarnation),
                address: address.clone(),
                lane,
                queue: queue.clone(),
                options: options.clone(),
                counters: self.shared.counters.clone(),
            };
            let span = tracing::info_span!("replica", id = self.shared.here.replica.0);
            self.shared.runtime.spawn(tracing::Instrument::instrument(link.keep_up(), span))
        };
        let control = Arc::new(Queue::new(options.control_bytes_max));
        let bulk = Arc::new(Queue::new(options.bulk_bytes_max));
        let links = [link(Lane::Control, &control), link(Lane::Bulk, &bulk)];
        Peer { incarnation, address, control, bulk, channel: None, links }
    }

    /// The connection for fetches: apart from the links, so that a snapshot never delays a message.
    fn fetch_channel(&self, from: ReplicaId) -> Result<Channel, FetchError> {
        let mut peers = self.peers();
        let peer =
            peers.get_mut(&from).ok_or_else(|| unreachable_because(format!("nobody knows where replica {from} is")))?;
        if let Some(channel) = &peer.channel {
            return Ok(channel.clone());
        }
        let _inside = self.fetches().enter();
        let endpoint = endpoint(&peer.address, &self.shared.options).map_err(unreachable_because)?;
        let channel = dial::connect_lazy(&endpoint, self.shared.options.tls.as_ref(), &Expect::Replica);
        peer.channel = Some(channel.clone());
        Ok(channel)
    }

    fn fetcher(&self, from: ReplicaId) -> Result<(PeerClient<Channel>, wire::Hello), FetchError> {
        let client = PeerClient::new(self.fetch_channel(from)?).max_decoding_message_size(FRAME_BYTES_MAX);
        Ok((client, hello(self.shared.here, from, None, &self.shared.options.peer_address)))
    }

    /// Reads on where the last attempt broke off. True once the page is complete.
    async fn read_page(
        &self,
        from: ReplicaId,
        request: &wire::FetchPageRequest,
        page: &mut BytesMut,
    ) -> Result<bool, FetchError> {
        let (mut client, hello) = self.fetcher(from)?;
        let request = wire::FetchPageRequest { hello: Some(hello), offset: page.len() as u64, ..request.clone() };
        let patience = self.shared.options.fetch_timeout;
        let mut stream = patiently(patience, client.fetch_page(request)).await?.into_inner();
        let mut total = None;
        // To the stream's end, though the page may be whole before: see the client's boots.
        while let Some(chunk) = patiently(patience, stream.message()).await? {
            if crc32fast::hash(&chunk.data) != chunk.checksum {
                self.shared.counters.count(|counts| &counts.corrupt_frames);
                return Err(unreachable_because("a chunk's checksum does not match its bytes"));
            }
            if chunk.total > PAGE_BYTES_MAX || page.len() as u64 + chunk.data.len() as u64 > chunk.total {
                return Err(unreachable_because("a page is larger than any page"));
            }
            page.extend_from_slice(&chunk.data);
            total = Some(chunk.total);
        }
        Ok(total == Some(page.len() as u64))
    }

    /// Reads whole records into `records` until the stream ends.
    async fn read_records(
        &self,
        from: ReplicaId,
        after: Seq,
        upto: Seq,
        records: &mut Vec<(Seq, Bytes)>,
    ) -> Result<(), FetchError> {
        let (mut client, hello) = self.fetcher(from)?;
        let request = wire::FetchRecordsRequest { hello: Some(hello), after: after.0, upto: upto.0 };
        let patience = self.shared.options.fetch_timeout;
        let mut stream = patiently(patience, client.fetch_records(request)).await?.into_inner();
        let mut next = after.next();
        let mut part = BytesMut::new();
        while let Some(chunk) = patiently(patience, stream.message()).await? {
            for stored in chunk.records {
                if crc32fast::hash(&stored.data) != stored.checksum {
                    self.shared.counters.count(|counts| &counts.corrupt_frames);
                    return Err(unreachable_because("a record's checksum does not match its bytes"));
                }
                if stored.sequence != next.0 || next > upto || part.len() + stored.data.len() > FRAME_BYTES_MAX {
                    return Err(unreachable_because("the records are not the ones that were asked for"));
                }
                if stored.more || !part.is_empty() {
                    part.extend_from_slice(&stored.data);
                }
                if stored.more {
                    continue;
                }
                let whole = if part.is_empty() { stored.data } else { part.split().freeze() };
                records.push((next, whole));
                next = next.next();
            }
        }
        Ok(())
    }
}

#[expect(clippy::needless_pass_by_value, reason = "callers hand over what they have at hand")]
fn unreachable_because(problem: impl ToString) -> FetchError {
    FetchError::Unreachable { problem: problem.to_string() }
}

async fn patiently<T>(patience: Duration, answer: impl Future<Output = Result<T, Status>>) -> Result<T, FetchError> {
    match tokio::time::timeout(patience, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(status)) if status.code() == Code::NotFound => Err(FetchError::Gone),
        Ok(Err(status)) => Err(unreachable_because(status.message())),
        Err(_) => Err(unreachable_because("the peer fell silent")),
    }
}

impl Network for GrpcNetwork {
    fn send(&self, envelope: Envelope) {
        let lane = envelope.message.lane();
        let queue = match (self.peers().get(&envelope.to), lane) {
            (Some(peer), Lane::Control) => peer.control.clone(),
            (Some(peer), Lane::Bulk) => peer.bulk.clone(),
            (None, Lane::Control | Lane::Bulk) => return,
        };
        queue.put(frame::encode(&envelope));
    }

    /// A table without this replica in it is older than its admission, or only what it was told when it joined: such a
    /// table adds, and takes nobody away.
    fn know(&self, members: &[Member]) {
        let here = self.shared.here.replica;
        let complete = members.iter().any(|member| member.id == here);
        let mut peers = self.peers();
        if complete {
            peers.retain(|id, _| members.iter().any(|member| member.id == *id));
        }
        for member in members.iter().filter(|member| member.id != here) {
            let same = peers
                .get(&member.id)
                .is_some_and(|peer| peer.address == member.peer_address && peer.incarnation == member.incarnation);
            if !same {
                peers.insert(member.id, self.open(member.id, member.incarnation, member.peer_address.clone()));
            }
        }
    }

    async fn fetch_page(&self, from: ReplicaId, index: Index, term: Term, page: u32) -> Result<Bytes, FetchError> {
        let request = wire::FetchPageRequest { hello: None, index: index.0, term: term.0, page, offset: 0 };
        let mut bytes = BytesMut::new();
        let mut problem = unreachable_because("the page broke off");
        for _ in 0..FETCH_ATTEMPTS {
            match self.read_page(from, &request, &mut bytes).await {
                Ok(true) => return Ok(bytes.freeze()),
                Ok(false) => {}
                Err(FetchError::Gone) => return Err(FetchError::Gone),
                Err(error) => problem = error,
            }
        }
        Err(problem)
    }

    async fn fetch_records(&self, from: ReplicaId, after: Seq, upto: Seq) -> Result<Vec<(Seq, Bytes)>, FetchError> {
        let mut records = Vec::new();
        let read = self.read_records(from, after, upto, &mut records).await;
        // What arrived whole counts; the rest is asked for again.
        if records.is_empty() { read.map(|()| records) } else { Ok(records) }
    }
}

fn endpoint(address: &str, options: &PeerOptions) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let endpoint = endpoint.map_err(|error| format!("{address:?} is not a peer's address: {}", root_cause(&error)))?;
    Ok(endpoint
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20))
}

/// One lane to one peer.
struct Link {
    here: Caller,
    there: (ReplicaId, Incarnation),
    address: Arc<str>,
    lane: Lane,
    queue: Arc<Queue>,
    options: PeerOptions,
    counters: PeerCounters,
}

fn ended(told: Told) -> Ended {
    if told.denied { Ended::Refused(told.problem) } else { Ended::Broken(told.problem) }
}

/// Why a link ended.
enum Ended {
    /// It could not be made, or broke.
    Broken(String),
    /// One end refused the other.
    Refused(String),
}

impl Link {
    async fn keep_up(self) {
        let (first, longest) = self.options.backoff;
        let mut pause = first;
        let mut told = false;
        loop {
            let mut welcomed = false;
            let ended = self.run(&mut welcomed).await;
            if welcomed {
                pause = first;
                told = false;
            }
            match ended {
                Ended::Refused(problem) => {
                    if !told {
                        tracing::warn!(peer = %self.there.0, address = %self.address, problem, "a peer is refused");
                    }
                    self.counters.count(|counts| &counts.refused_peers);
                    told = true;
                    pause = longest;
                }
                Ended::Broken(problem) => {
                    tracing::debug!(peer = %self.there.0, address = %self.address, problem, "no link");
                }
            }
            tokio::time::sleep(pause).await;
            self.queue.clear();
            pause = (pause * 2).min(longest);
        }
    }

    async fn run(&self, welcomed: &mut bool) -> Ended {
        let broken = |status: Status| match status.code() {
            Code::PermissionDenied | Code::FailedPrecondition => Ended::Refused(status.message().to_owned()),
            // A certificate that is not accepted is told only after the handshake is over for us.
            _ => match std::error::Error::source(&status) {
                Some(source) => ended(explain(source)),
                None => Ended::Broken(status.message().to_owned()),
            },
        };
        let endpoint = match endpoint(&self.address, &self.options) {
            Ok(endpoint) => endpoint,
            Err(problem) => return Ended::Broken(problem),
        };
        let channel = match dial::connect(&endpoint, self.options.tls.as_ref(), &Expect::Replica).await {
            Ok(channel) => channel,
            Err(error) => return ended(explain(&error)),
        };
        let (frames, outgoing) = mpsc::channel(1);
        let hello = hello(self.here, self.there.0, Some(self.lane), &self.options.peer_address);
        let first = wire::LinkFrame { frame: Some(wire::link_frame::Frame::Hello(hello)) };
        if frames.send(first).await.is_err() {
            return Ended::Broken("the connection broke".to_owned());
        }
        let mut client = PeerClient::new(channel).max_encoding_message_size(usize::MAX);
        let mut answers = match client.link(ReceiverStream::new(outgoing)).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return broken(status),
        };
        let patience = self.options.connect_timeout;
        match tokio::time::timeout(patience, answers.message()).await {
            Ok(Ok(Some(welcome))) => {
                if let Err(error) = check_welcome(self.here, &welcome, self.there) {
                    return Ended::Refused(error.to_string());
                }
            }
            Ok(Ok(None)) => return Ended::Broken("the peer ended the link".to_owned()),
            Ok(Err(status)) => return broken(status),
            Err(_) => return Ended::Broken("the peer did not answer the hello".to_owned()),
        }
        *welcomed = true;
        let pump = async {
            // The place is reserved first, so that what arrives while the stream is busy goes into one frame.
            while let Ok(place) = frames.reserve().await {
                let frame = self.queue.frame().await;
                self.counters.count(|counts| &counts.frames_out);
                place.send(wire::LinkFrame { frame: Some(wire::link_frame::Frame::Messages(frame)) });
            }
        };
        tokio::select! {
            () = pump => Ended::Broken("the stream ended".to_owned()),
            end = answers.message() => match end {
                Ok(_) => Ended::Broken("the peer ended the link".to_owned()),
                Err(status) => broken(status),
            },
        }
    }
}
