//! Questions: asked of one replica after another until one answers or time is up.

use super::connections::Connections;
use super::pipe::Unanswered;
use super::types::{
    Admitted, Answered, Boot, BootAsk, ClientError, LogFilter, StateAt, Status, Tidings, Topic, Verified,
    VerifyProgress,
};
use crate::convert::{Malformed, Wire, digest_bytes, text};
use crate::proto::v1 as wire;
use crate::proto::v1::muster_client::MusterClient;
use crate::tls::{Told, explain};
use bytes::{Bytes, BytesMut};
use muster_core::client::{BootAttempts, Turn, again};
use muster_core::ids::{Age, Digest, Seq, Time};
use muster_core::journal::entry::{Author, Record};
use muster_core::journal::key::Scope;
use muster_core::journal::overlay::BootOverlay;
use muster_core::members::Admission;
use muster_core::query::{Answer, Query};
use muster_core::request::{AdminOutcome, AdminRequest, Freshness, NotApplied, Outcome, Refusal};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

/// How often a subscription asks to be told that it lives, and how long it waits for that.
const HEARTBEAT: Duration = Duration::from_secs(3);
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What is told of a replica that was connected to and said nothing.
const NOT_IN_TIME: &str = "no answer in time";

/// Largest overlay or delta that is accepted.
const BOOT_BYTES_MAX: u64 = 256 << 20;

/// Why one replica gave no answer.
pub(super) enum Miss {
    /// Another one may answer.
    Elsewhere(String),
    /// It did not begin to answer in time. It may be there, and another one may answer.
    Silent,
    /// One end does not accept the other's certificate. Another replica's may be better.
    Denied(String),
    /// So says the replica: try as core advises.
    Advice(NotApplied),
    /// Every replica would say the same.
    Final(ClientError),
}

pub(super) type Asked<T> = Result<T, Miss>;

pub(super) fn of_status(address: &str, status: &tonic::Status) -> Miss {
    let problem = match std::error::Error::source(status).map(explain) {
        Some(Told { problem, denied: true }) => return Miss::Denied(problem),
        Some(Told { problem, denied: false }) => problem,
        None => status.message().to_owned(),
    };
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => Miss::Final(denied(address, problem)),
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => {
            Miss::Final(ClientError::Invalid { problem: status.message().to_owned() })
        }
        Code::Unimplemented | Code::DataLoss | Code::Internal => Miss::Final(broken(address, problem)),
        _ => Miss::Elsewhere(problem),
    }
}

fn denied(address: &str, problem: String) -> ClientError {
    ClientError::Denied { address: address.to_owned(), problem }
}

#[expect(clippy::needless_pass_by_value, reason = "callers hand over what they have at hand")]
fn broken(address: &str, problem: impl ToString) -> ClientError {
    ClientError::Broken { address: address.to_owned(), problem: problem.to_string() }
}

pub(super) fn senseless(address: &str) -> impl Fn(Malformed) -> Miss + '_ {
    move |error| Miss::Final(broken(address, format!("its answer makes no sense: {error}")))
}

pub(super) fn read_deadline(connections: &Connections) -> Time {
    let timeout = u64::try_from(connections.options.read_timeout.as_millis()).unwrap_or(u64::MAX);
    connections.now().plus_ms(timeout)
}

/// Waits for the beginning of an answer, but not for long: a replica that hangs is known by nothing else.
async fn promptly<T>(
    patience: Duration,
    address: &str,
    answer: impl Future<Output = Result<T, tonic::Status>>,
) -> Asked<T> {
    match tokio::time::timeout(patience, answer).await {
        Ok(answer) => answer.map_err(|status| of_status(address, &status)),
        Err(_) => Err(Miss::Silent),
    }
}

/// Asks one replica after another.
pub(super) async fn ask<T, F>(
    connections: &Connections,
    deadline: Time,
    question: impl Fn(Arc<str>, MusterClient<Channel>) -> F,
) -> Result<T, ClientError>
where
    F: Future<Output = Asked<T>>,
{
    let mut tried: Vec<(String, String)> = Vec::new();
    let mut silent: Vec<Arc<str>> = Vec::new();
    // Who said why there is no answer. It outlives others that cannot be reached: a minority is told "no quorum", not "nobody".
    let mut advice: Option<(Arc<str>, NotApplied)> = None;
    let mut refused: Option<ClientError> = None;
    loop {
        let address = connections.current();
        let stub = connections.stub(&address)?;
        let answer = tokio::time::timeout_at(connections.at(deadline), question(address.clone(), stub)).await;
        let pause = match answer {
            Ok(Ok(answer)) => {
                connections.targets().answered();
                return Ok(answer);
            }
            Ok(Err(Miss::Final(error))) => return Err(error),
            Ok(Err(Miss::Elsewhere(problem))) => {
                tried.retain(|(known, _)| **known != *address);
                tried.push((address.to_string(), problem));
                silent.retain(|known| *known != address);
                advice = advice.filter(|(adviser, _)| *adviser != address);
                connections.targets().failed(&address)
            }
            Ok(Err(Miss::Denied(problem))) => {
                refused = Some(denied(&address, problem.clone()));
                tried.retain(|(known, _)| **known != *address);
                silent.retain(|known| *known != address);
                tried.push((address.to_string(), problem));
                connections.targets().failed(&address)
            }
            Ok(Err(Miss::Advice(why))) => {
                let next = again(&why);
                advice = Some((address.clone(), why.clone()));
                match next {
                    None => return Err(ClientError::NotAnswered(why)),
                    Some((Turn::Same, after_ms)) => after_ms,
                    Some((Turn::Next, after_ms)) => connections.targets().failed(&address).max(after_ms),
                    Some((Turn::Leader(leader), after_ms)) => {
                        connections.targets().follow(&leader);
                        after_ms
                    }
                }
            }
            Ok(Err(Miss::Silent)) | Err(_) => {
                tried.retain(|(known, _)| **known != *address);
                tried.push((address.to_string(), NOT_IN_TIME.to_owned()));
                silent.push(address.clone());
                connections.targets().failed(&address)
            }
        };
        let wake = connections.now().plus_ms(pause);
        let everyone_failed = tried.len() >= connections.targets().addresses().len();
        // Servers that refuse connections are told about at once; those that are there but cannot answer get their time.
        if wake >= deadline || (everyone_failed && advice.is_none() && silent.is_empty()) {
            let unreachable = refused.unwrap_or(ClientError::Unreachable { tried });
            return Err(advice.map_or(unreachable, |(_, why)| ClientError::NotAnswered(why)));
        }
        tokio::time::sleep_until(connections.at(wake)).await;
    }
}

/// Asks exactly this replica.
pub(super) async fn ask_one<T>(
    connections: &Connections,
    address: &str,
    deadline: Time,
    answer: impl Future<Output = Asked<T>>,
) -> Result<T, ClientError> {
    let unreachable = |problem: String| ClientError::Unreachable { tried: vec![(address.to_owned(), problem)] };
    match tokio::time::timeout_at(connections.at(deadline), answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(Miss::Final(error))) => Err(error),
        Ok(Err(Miss::Advice(why))) => Err(ClientError::NotAnswered(why)),
        Ok(Err(Miss::Elsewhere(problem))) => Err(unreachable(problem)),
        Ok(Err(Miss::Denied(problem))) => Err(denied(address, problem)),
        Ok(Err(Miss::Silent)) | Err(_) => Err(unreachable(NOT_IN_TIME.to_owned())),
    }
}

pub(super) async fn age(connections: &Connections, deadline: Time) -> Result<Age, ClientError> {
    let patience = connections.options.read_attempt_timeout;
    ask(connections, deadline, |address, mut stub| async move {
        let reply = promptly(patience, &address, stub.age(wire::AgeRequest {})).await?;
        Ok(Age(reply.into_inner().age))
    })
    .await
}

pub(super) async fn age_now(connections: &Connections) -> Result<Age, ClientError> {
    age(connections, read_deadline(connections)).await
}

pub(super) async fn query(
    connections: &Connections,
    freshness: Freshness,
    query: &Query,
) -> Result<Answered, ClientError> {
    let request = wire::QueryRequest { freshness: Some(freshness.to_wire()), query: Some(query.to_wire()) };
    let patience = match freshness {
        Freshness::Local | Freshness::Leased | Freshness::Linearizable => connections.options.read_attempt_timeout,
        // It waits for what it was told to wait for, as long as its own request timeout allows.
        Freshness::AtLeast(_) => connections.options.attempt_timeout,
    };
    let answered = ask(connections, read_deadline(connections), |address, _| {
        let request = request.clone();
        async move {
            use wire::query_reply::Result as W;
            let pipe = connections.pipe(&address);
            let reply = match tokio::time::timeout(patience, pipe.query(request)).await {
                Ok(Ok(reply)) => reply,
                Ok(Err(Unanswered::Broken(problem))) => return Err(Miss::Elsewhere(problem)),
                Ok(Err(Unanswered::Denied(problem))) => return Err(Miss::Denied(problem)),
                Ok(Err(Unanswered::Status(status))) => return Err(of_status(&address, &status)),
                Err(_) => return Err(Miss::Silent),
            };
            let sense = senseless(&address);
            match reply.result {
                Some(W::Answer(answer)) => {
                    let answer = Answer::from_wire(answer).map_err(sense)?;
                    Ok(Answered { sequence: Seq(reply.sequence), answer })
                }
                Some(W::Refused(refusal)) => {
                    Err(Miss::Final(ClientError::Refused(Refusal::from_wire(refusal).map_err(sense)?)))
                }
                Some(W::NotAnswered(why)) => Err(Miss::Advice(NotApplied::from_wire(why).map_err(sense)?)),
                None => Err(Miss::Final(broken(&address, "its answer is empty"))),
            }
        }
    })
    .await
    .map_err(|error| match error {
        // It is there, and waits for a quorum longer than we do.
        ClientError::Unreachable { tried }
            if matches!(freshness, Freshness::Leased | Freshness::Linearizable)
                && tried.iter().any(|(_, problem)| problem == NOT_IN_TIME) =>
        {
            ClientError::NotAnswered(NotApplied::NoQuorum)
        }
        error => error,
    })?;
    if let Answer::Members(members) = &answered.answer {
        let mut targets = connections.targets();
        for member in members {
            targets.learn(member.client_address.clone());
        }
    }
    Ok(answered)
}

/// What one replica says to a booting node.
enum Booted {
    Boot(Box<Boot>),
    Lagging(Seq),
    /// It serves as many as it can: come back, or ask one of these.
    Later {
        here: Arc<str>,
        after_ms: u64,
        elsewhere: Vec<Arc<str>>,
    },
}

pub(super) async fn boot(connections: &Connections, ask_for: &BootAsk) -> Result<Boot, ClientError> {
    let mut request = wire::BootRequest {
        insist: false,
        node: ask_for.node.to_string(),
        known: ask_for
            .known
            .as_ref()
            .map(|(vcluster, version)| wire::KnownOverlay { vcluster: vcluster.to_string(), version: version.0 }),
        at_least: ask_for.at_least.0,
    };
    let deadline = read_deadline(connections);
    let patience = match ask_for.at_least {
        Seq(0) => connections.options.read_attempt_timeout,
        // It waits until it has got as far as that.
        Seq(_) => connections.options.attempt_timeout,
    };
    let mut lagging = Vec::new();
    let mut attempts = BootAttempts::default();
    loop {
        let asked =
            ask(connections, deadline, |address, stub| boot_from(address, stub, patience, request.clone())).await;
        let booted = match asked {
            Err(error @ ClientError::Unreachable { .. }) if ask_for.at_least > Seq(0) => {
                return Err(behind(connections, ask_for.at_least).await.unwrap_or(error));
            }
            asked => asked?,
        };
        let sequence = match booted {
            Booted::Boot(boot) => return Ok(*boot),
            Booted::Lagging(sequence) => sequence,
            Booted::Later { here, after_ms, elsewhere } => {
                let (next, after_ms) = attempts.on_later(&here, after_ms, &elsewhere);
                // If the others do not answer, the leader is better than nobody.
                request.insist = true;
                connections.targets().follow(&next);
                let back = tokio::time::Instant::now() + Duration::from_millis(after_ms);
                if back >= connections.at(deadline) {
                    return Err(ClientError::NotAnswered(NotApplied::Busy { retry_after_ms: after_ms }));
                }
                tokio::time::sleep_until(back).await;
                continue;
            }
        };
        let address = connections.current();
        lagging.push(address.clone());
        let everyone = connections.targets().addresses().iter().all(|known| lagging.contains(known));
        if everyone {
            let known = ask_for.known.as_ref().map_or(Seq(0), |(_, version)| *version);
            return Err(ClientError::Lagging { known, sequence });
        }
        connections.targets().failed(&address);
    }
}

/// Whether the replicas are there, but have not got as far as was demanded.
async fn behind(connections: &Connections, demanded: Seq) -> Option<ClientError> {
    let sequence = query(connections, Freshness::Local, &Query::Summary).await.ok()?.sequence;
    (sequence < demanded).then_some(ClientError::Lagging { known: demanded, sequence })
}

async fn boot_from(
    address: Arc<str>,
    mut stub: MusterClient<Channel>,
    patience: Duration,
    request: wire::BootRequest,
) -> Asked<Booted> {
    let mut stream = promptly(patience, &address, stub.boot(request)).await?.into_inner();
    let booted = read_boot(&address, &mut stream).await;
    // A stream that is dropped before its end is reset, and one reset too many closes the connection, with everybody's boots on it.
    let _ = tokio::time::timeout(patience, stream.message()).await;
    booted
}

async fn read_boot(address: &Arc<str>, stream: &mut Streaming<wire::BootReply>) -> Asked<Booted> {
    use wire::boot_reply::Reply as W;
    let sense = senseless(address);
    let odd = |problem: &str| Miss::Final(broken(address, format!("its boot makes no sense: {problem}")));
    let mut begin: Option<wire::BootBegin> = None;
    let mut overlay = BytesMut::new();
    let mut delta = BytesMut::new();
    loop {
        let message = stream.message().await.map_err(|status| of_status(address, &status))?;
        let Some(wire::BootReply { reply: Some(reply) }) = message else {
            return Err(Miss::Elsewhere("the boot broke off".to_owned()));
        };
        match (reply, &begin) {
            (W::Begin(told), None) => {
                if told.overlay_bytes > BOOT_BYTES_MAX || told.delta_bytes > BOOT_BYTES_MAX {
                    return Err(odd("it is larger than any boot"));
                }
                begin = Some(told);
            }
            (W::OverlayChunk(chunk), Some(told)) => extend(&mut overlay, &chunk, told.overlay_bytes).map_err(odd)?,
            (W::DeltaChunk(chunk), Some(told)) => extend(&mut delta, &chunk, told.delta_bytes).map_err(odd)?,
            (W::Done(done), Some(told)) => {
                let boot = finish(address, told, overlay.freeze(), delta.freeze(), done.sequence);
                return boot.map(|boot| Booted::Boot(Box::new(boot))).map_err(sense);
            }
            (W::Lagging(lagging), None) => return Ok(Booted::Lagging(Seq(lagging.sequence))),
            (W::Refused(refused), None) => {
                let refusal = crate::convert::need("refusal", refused.refusal).map_err(sense)?;
                return Err(Miss::Final(ClientError::Refused(refusal)));
            }
            (W::NotAnswered(wire::NotApplied { reason: Some(wire::not_applied::Reason::Busy(busy)) }), None) => {
                let wire::Busy { retry_after_ms: after_ms, elsewhere } = busy;
                let elsewhere = elsewhere.into_iter().map(Arc::from).collect();
                return Ok(Booted::Later { here: address.clone(), after_ms, elsewhere });
            }
            (W::NotAnswered(why), None) => return Err(Miss::Advice(NotApplied::from_wire(why).map_err(sense)?)),
            _ => return Err(odd("its parts are out of order")),
        }
    }
}

fn extend(whole: &mut BytesMut, chunk: &Bytes, bytes_max: u64) -> Result<(), &'static str> {
    whole.extend_from_slice(chunk);
    if whole.len() as u64 > bytes_max { Err("there is more than was announced") } else { Ok(()) }
}

fn finish(
    address: &str,
    told: &wire::BootBegin,
    overlay: Bytes,
    delta: Bytes,
    sequence: u64,
) -> Result<Boot, Malformed> {
    let overlay_checksum = digest_bytes("overlay_checksum", &told.overlay_checksum)?;
    let overlay = if told.overlay_skipped {
        None
    } else {
        if Digest::of(&overlay) != overlay_checksum || overlay.len() as u64 != told.overlay_bytes {
            return Err(Malformed::new("overlay_chunk", "the bytes do not match the announced checksum and size"));
        }
        Some(BootOverlay {
            version: Seq(told.overlay_version),
            checksum: overlay_checksum,
            data: overlay,
            content_bytes: told.overlay_content_bytes,
        })
    };
    if delta.len() as u64 != told.delta_bytes {
        return Err(Malformed::new("delta_chunk", "the bytes do not match the announced size"));
    }
    Ok(Boot {
        node: text("node", &told.node)?,
        vcluster: text("vcluster", &told.vcluster)?,
        overlay_version: Seq(told.overlay_version),
        overlay_checksum,
        overlay,
        delta,
        sequence: Seq(sequence),
        served_by: address.to_owned(),
    })
}

/// A running subscription. Losing a replica is no event: another one is asked, after the last sequence told.
pub struct Subscription {
    connections: Arc<Connections>,
    topic: Topic,
    after: Seq,
    stream: Option<(Arc<str>, Streaming<wire::SubscribeReply>)>,
}

impl Subscription {
    pub(super) fn new(connections: Arc<Connections>, topic: Topic, after: Seq) -> Self {
        Self { connections, topic, after, stream: None }
    }

    /// Everything up to here was told.
    #[must_use]
    pub fn reached(&self) -> Seq {
        self.after
    }

    /// The next tidings: records, or a heartbeat.
    ///
    /// # Errors
    /// `Invalid` if the topic is not accepted, `Unreachable` if no replica was found within the read timeout (ask again to go
    /// on trying), `Broken` if a replica skips or repeats.
    pub async fn next(&mut self) -> Result<Tidings, ClientError> {
        loop {
            let (address, mut stream) = match self.stream.take() {
                Some(open) => open,
                None => self.open().await?,
            };
            let message = tokio::time::timeout(SILENCE_MAX, stream.message()).await;
            let miss = match message {
                Ok(Ok(Some(reply))) => {
                    let tidings = Tidings::from_wire(reply).map_err(|error| broken(&address, error))?;
                    self.check(&address, &tidings)?;
                    self.after = tidings.upto;
                    self.stream = Some((address, stream));
                    return Ok(tidings);
                }
                Ok(Ok(None)) => Miss::Elsewhere("it ended the subscription".to_owned()),
                Ok(Err(status)) => of_status(&address, &status),
                Err(_) => Miss::Elsewhere("it fell silent".to_owned()),
            };
            if let Miss::Final(error) = miss {
                return Err(error);
            }
            let pause = self.connections.targets().failed(&address);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    fn check(&self, address: &str, tidings: &Tidings) -> Result<(), ClientError> {
        let mut last = self.after;
        for sequence in tidings.records.iter().map(Record::sequence).chain([tidings.upto.next()]) {
            if sequence <= last {
                return Err(broken(address, format!("it told sequence {sequence} after {last}")));
            }
            last = sequence;
        }
        Ok(())
    }

    async fn open(&self) -> Result<(Arc<str>, Streaming<wire::SubscribeReply>), ClientError> {
        let request = wire::SubscribeRequest {
            topic: self.topic.to_wire(),
            after: self.after.0,
            heartbeat_ms: u32::try_from(HEARTBEAT.as_millis()).unwrap_or(u32::MAX),
        };
        let patience = self.connections.options.read_attempt_timeout;
        ask(&self.connections, read_deadline(&self.connections), |address, mut stub| {
            let request = request.clone();
            async move {
                let reply = promptly(patience, &address, stub.subscribe(request)).await?;
                Ok((address, reply.into_inner()))
            }
        })
        .await
    }
}

/// Records of the past as they arrive.
pub struct Records {
    address: Arc<str>,
    stream: Streaming<wire::LogReply>,
    sequence: Seq,
    waiting: VecDeque<wire::Record>,
}

impl Records {
    /// The journal's sequence when the question was asked.
    #[must_use]
    pub fn sequence(&self) -> Seq {
        self.sequence
    }

    /// The next record; none at the end.
    ///
    /// # Errors
    /// `Broken` if the replica goes away in between.
    pub async fn next(&mut self) -> Result<Option<Record>, ClientError> {
        loop {
            if let Some(record) = self.waiting.pop_front() {
                return Record::from_wire(record).map(Some).map_err(|error| broken(&self.address, error));
            }
            match self.stream.message().await {
                Ok(Some(reply)) => self.waiting.extend(reply.records),
                Ok(None) => return Ok(None),
                Err(status) if status.code() == Code::Unauthenticated => {
                    return Err(denied(&self.address, status.message().to_owned()));
                }
                Err(status) => return Err(broken(&self.address, status.message())),
            }
        }
    }

    /// All that are left.
    ///
    /// # Errors
    /// As [`Records::next`].
    pub async fn collect(mut self) -> Result<Vec<Record>, ClientError> {
        let mut records = Vec::new();
        while let Some(record) = self.next().await? {
            records.push(record);
        }
        Ok(records)
    }
}

pub(super) async fn log(connections: &Connections, filter: &LogFilter) -> Result<Records, ClientError> {
    let request = filter.to_wire();
    let patience = connections.options.read_attempt_timeout;
    ask(connections, read_deadline(connections), |address, mut stub| {
        let request = request.clone();
        async move {
            let mut stream = promptly(patience, &address, stub.log(request)).await?.into_inner();
            let first = stream.message().await.map_err(|status| of_status(&address, &status))?.unwrap_or_default();
            let sequence = Seq(first.sequence);
            Ok(Records { address, stream, sequence, waiting: first.records.into() })
        }
    })
    .await
}

pub(super) async fn state_at(
    connections: &Connections,
    scope: &Scope,
    at: Option<Seq>,
) -> Result<StateAt, ClientError> {
    let request = wire::StateAtRequest { scope: Some(scope.to_wire()), at: at.map(|seq| seq.0) };
    ask(connections, read_deadline(connections), |address, mut stub| {
        let request = request.clone();
        async move {
            let reply = stub.state_at(request).await.map_err(|status| of_status(&address, &status))?;
            StateAt::from_wire(reply.into_inner()).map_err(senseless(&address))
        }
    })
    .await
}

pub(super) async fn verify(
    connections: &Connections,
    address: &str,
    head: Option<(Seq, Digest)>,
    mut progress: impl FnMut(VerifyProgress) + Send,
) -> Result<Verified, ClientError> {
    use wire::verify_reply::Reply as W;
    let head = head.map(|(sequence, digest)| wire::Head { sequence: sequence.0, digest: digest.to_string() });
    let deadline = read_deadline(connections);
    let mut stub = connections.stub(address)?;
    let mut stream = ask_one(connections, address, deadline, async {
        let reply = stub.verify(wire::VerifyRequest { head }).await;
        Ok(reply.map_err(|status| of_status(address, &status))?.into_inner())
    })
    .await?;
    loop {
        let message = stream.message().await.map_err(|status| match status.code() {
            Code::OutOfRange => ClientError::Invalid { problem: status.message().to_owned() },
            _ => broken(address, status.message()),
        })?;
        let Some(wire::VerifyReply { reply: Some(reply) }) = message else {
            return Err(broken(address, "the verification broke off"));
        };
        match reply {
            W::Progress(at) => progress(VerifyProgress { sequence: Seq(at.sequence), of: Seq(at.of) }),
            W::Verified(verified) => {
                let head = verified.head.unwrap_or_default();
                let digest = text("head.digest", &head.digest).map_err(|error| broken(address, error))?;
                return Ok(Verified {
                    sequence: Seq(head.sequence),
                    head: digest,
                    head_matched: verified.head_matched,
                });
            }
            W::Failed(failed) => {
                return Err(ClientError::NotVerified { sequence: Seq(failed.sequence), problem: failed.problem });
            }
        }
    }
}

pub(super) async fn status(connections: &Connections, address: &str) -> Result<Status, ClientError> {
    let mut stub = connections.stub(address)?;
    let patience = connections.options.read_attempt_timeout;
    let status = status_from(address, patience, &mut stub);
    let status = ask_one(connections, address, read_deadline(connections), status).await?;
    learn(connections, &status);
    Ok(status)
}

/// The status of whoever answers first.
pub(super) async fn any_status(connections: &Connections) -> Result<Status, ClientError> {
    let patience = connections.options.read_attempt_timeout;
    let status = ask(connections, read_deadline(connections), |address, mut stub| async move {
        status_from(&address, patience, &mut stub).await
    })
    .await?;
    learn(connections, &status);
    Ok(status)
}

async fn status_from(address: &str, patience: Duration, stub: &mut MusterClient<Channel>) -> Asked<Status> {
    let reply = promptly(patience, address, stub.status(wire::StatusRequest {})).await?;
    Status::from_wire(reply.into_inner()).map_err(senseless(address))
}

/// Remembers where everybody is, and turns to the leader.
fn learn(connections: &Connections, status: &Status) {
    let mut targets = connections.targets();
    for member in &status.members {
        targets.learn(member.client_address.clone());
        if member.id == status.replica.leader {
            targets.prefer(&member.client_address);
        }
    }
}

pub(super) async fn admin(
    connections: &Connections,
    address: Option<&str>,
    request: AdminRequest,
) -> Result<AdminOutcome, ClientError> {
    let address = if let Some(address) = address {
        address.to_owned()
    } else {
        any_status(connections).await?;
        connections.current().to_string()
    };
    let mut stub = connections.stub(&address)?;
    ask_one(connections, &address, read_deadline(connections), async {
        let reply = stub.admin(request.to_wire()).await.map_err(|status| of_status(&address, &status))?;
        AdminOutcome::from_wire(reply.into_inner()).map_err(senseless(&address))
    })
    .await
}

pub(super) async fn admit(
    connections: &Connections,
    admission: &Admission,
    author: &Author,
) -> Result<Admitted, ClientError> {
    let author = super::writes::told_author(connections, author);
    let request = wire::AdmitRequest { admission: Some(admission.to_wire()), author };
    ask(connections, read_deadline(connections), |address, mut stub| {
        let request = request.clone();
        async move {
            use wire::admit_reply::Result as W;
            let sense = senseless(&address);
            // Asking again is harmless: the same incarnation gets the same id.
            let reply = stub.admit(request).await.map_err(|status| of_status(&address, &status))?.into_inner();
            match reply.result {
                Some(W::Admitted(admitted)) => Admitted::from_wire(admitted).map_err(sense),
                Some(W::Outcome(outcome)) => match Outcome::from_wire(outcome).map_err(sense)? {
                    Outcome::NotApplied(why) if again(&why).is_some() => Err(Miss::Advice(why)),
                    outcome => Err(Miss::Final(ClientError::Outcome(outcome))),
                },
                None => Err(Miss::Final(broken(&address, "its answer is empty"))),
            }
        }
    })
    .await
}
