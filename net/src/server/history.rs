//! The past: subscriptions, log, earlier states, verification. Everything is read from the archive's library.
//!
//! A subscription reads on from where it is, as far as the archive has recorded, then waits for more. It never looks at
//! live state for records, so it cannot skip or repeat any.

use super::{Access, Replica};
use crate::client::{LogFilter, StateAt, Tidings, Topic};
use crate::convert::Wire;
use crate::proto::v1 as wire;
use bytes::Bytes;
use muster_core::codec::decode_record;
use muster_core::ids::{Digest, NodeId, Seq, VClusterId};
use muster_core::journal::entry::{Principal, Record};
use muster_core::journal::fold::Verifier;
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::past::{self, PastError};
use muster_core::query::{Answer, Declared, Query, answer};
use muster_core::state::State;
use muster_core::storage::Library;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Status;

/// Stored bytes read at once.
const READ_BYTES: usize = 1 << 20;
/// Records read at once when reading backwards.
const WINDOW: u64 = 512;
/// How long to wait before looking again for records that are still being fetched from a peer.
const REFILL_PAUSE: Duration = Duration::from_millis(200);
const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(5);
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);

type Out<T> = mpsc::Sender<Result<T, Status>>;

/// The records after `after` up to `upto` that can be read at once; empty if they are not all here yet.
async fn read<L: Library>(replica: &Replica<L>, after: Seq, upto: Seq) -> Result<Vec<(Seq, Bytes)>, Status> {
    let records = replica.library.records(after, upto, READ_BYTES).await;
    let records = records.map_err(|error| Status::data_loss(error.to_string()))?;
    let mut next = after.next();
    for (sequence, _) in &records {
        if *sequence != next {
            return Err(Status::data_loss(format!("the history here gives {sequence} where {next} is due")));
        }
        next = next.next();
    }
    Ok(records)
}

/// As [`read`], but what is missing is an error that says so.
async fn read_all<L: Library>(replica: &Replica<L>, after: Seq, upto: Seq) -> Result<Vec<(Seq, Bytes)>, Status> {
    replica.handle.recorded(upto).await;
    let records = read(replica, after, upto).await?;
    if records.is_empty() && after < upto {
        return Err(not_here_yet(after.next()));
    }
    Ok(records)
}

fn not_here_yet(sequence: Seq) -> Status {
    Status::unavailable(format!(
        "this replica does not hold record {sequence} yet; it is fetching its history: ask another, or later"
    ))
}

fn decoded(bytes: &Bytes) -> Result<Record, Status> {
    decode_record(bytes).map_err(|error| Status::data_loss(error.to_string()))
}

/// Which records a subscriber wants.
enum Interest {
    Scopes(Vec<Scope>),
    Node { node: NodeId, vcluster: Option<VClusterId> },
}

impl Interest {
    /// Whether the record is wanted. Follows a node from vCluster to vCluster.
    fn wants(&mut self, record: &Record) -> bool {
        match self {
            Self::Scopes(scopes) => scopes.is_empty() || scopes.contains(record.scope()),
            Self::Node { node, vcluster } => match record.scope() {
                Scope::Global => true,
                Scope::VCluster(other) => Some(other) == vcluster.as_ref(),
                Scope::Node(other) if other == node => {
                    if let Some((_, next)) = assignment(record) {
                        *vcluster = next;
                    }
                    true
                }
                Scope::Node(_) => false,
            },
        }
    }
}

impl Interest {
    /// Whether the subscriber may see a record it wants. An agent sees whatever concerned its node, wherever the node was
    /// then; everybody else what they may see at this moment.
    fn shows(&self, access: &Access, record: &Record, state: &State) -> bool {
        match self {
            Self::Node { node, .. } if access.is_agent_of(node) => true,
            Self::Node { .. } | Self::Scopes(_) => access.sees(record.scope(), state),
        }
    }
}

/// The vClusters before and after a record that moves its node.
fn assignment(record: &Record) -> Option<(Option<VClusterId>, Option<VClusterId>)> {
    let Record::Entry(entry) = record else { return None };
    let moves = entry.entry_type.pushes() || !entry.takes_off.is_empty();
    let change = entry.delta.iter().rfind(|change| moves && change.key.is_vcluster())?;
    Some((named(&change.previous), named(&change.next)))
}

fn named(setting: &Setting) -> Option<VClusterId> {
    match setting {
        Setting::Value(name) => VClusterId::new(name).ok(),
        Setting::Unset | Setting::Absent => None,
    }
}

/// The vCluster a node was in right after a sequence: what the first later record that moves it says was there before, or what
/// it is in at this moment if there is none.
async fn vcluster_at<L: Library>(
    replica: &Replica<L>,
    node: &NodeId,
    after: Seq,
) -> Result<Option<VClusterId>, Status> {
    let view = replica.handle.view();
    let scope = Scope::Node(node.clone());
    let head = match answer(&view.state, view.status.applied, &Query::Scope(scope.clone())) {
        Ok(Answer::Scope { head, .. }) => head,
        Ok(_) | Err(_) => Seq(0),
    };
    let mut at = after;
    while at < head {
        for (sequence, bytes) in read_all(replica, at, head).await? {
            at = sequence;
            let record = decoded(&bytes)?;
            if *record.scope() == scope
                && let Some((before, _)) = assignment(&record)
            {
                return Ok(before);
            }
        }
    }
    let declared = view.state.journal.node(node).and_then(|known| known.vcluster.clone());
    Ok(declared)
}

pub(super) async fn subscribe<L: Library>(
    replica: Replica<L>,
    access: Access,
    topic: Topic,
    after: Seq,
    heartbeat_ms: u32,
    out: Out<wire::SubscribeReply>,
) {
    let heartbeat = match heartbeat_ms {
        0 => HEARTBEAT_DEFAULT,
        ms => Duration::from_millis(u64::from(ms)).max(HEARTBEAT_MIN),
    };
    let mut interest = match topic {
        Topic::Scopes(scopes) => Interest::Scopes(scopes),
        Topic::Node(node) => match vcluster_at(&replica, &node, after).await {
            Ok(vcluster) => Interest::Node { node, vcluster },
            Err(status) => {
                out.send(Err(status)).await.ok();
                return;
            }
        },
    };
    let mut reached = after;
    let mut told_at = tokio::time::Instant::now();
    loop {
        if replica.is_ending() || replica.handle.stopped() {
            out.send(Err(Status::unavailable("this replica is stopping: resume at another"))).await.ok();
            return;
        }
        if let Err(ended) = access.is_in_force() {
            out.send(Err(ended)).await.ok();
            return;
        }
        match advance(&replica, &access, &mut interest, reached).await {
            Err(status) => {
                out.send(Err(status)).await.ok();
                return;
            }
            Ok(tidings) => {
                let progress = tidings.upto > reached;
                reached = tidings.upto;
                let due = told_at.elapsed() >= heartbeat;
                if !tidings.records.is_empty() || due {
                    // A slow reader holds up only itself: the channel is short and each message bounded.
                    if out.send(Ok(tidings.to_wire())).await.is_err() {
                        return;
                    }
                    told_at = tokio::time::Instant::now();
                }
                if progress {
                    continue;
                }
            }
        }
        let more = async {
            let behind = replica.handle.view().state.sequence() > reached;
            replica.handle.recorded(reached.next()).await;
            if behind {
                tokio::time::sleep(REFILL_PAUSE).await;
            }
        };
        tokio::select! {
            () = more => {}
            () = tokio::time::sleep_until(told_at + heartbeat) => {}
            () = replica.ending() => {}
            () = out.closed() => return,
        }
    }
}

/// What there is after `reached`, filtered.
async fn advance<L: Library>(
    replica: &Replica<L>,
    access: &Access,
    interest: &mut Interest,
    reached: Seq,
) -> Result<Tidings, Status> {
    let view = replica.handle.view();
    let head = view.state.sequence();
    let mut tidings = Tidings { records: Vec::new(), upto: reached };
    if head > reached {
        for (sequence, bytes) in read(replica, reached, head).await? {
            let record = decoded(&bytes)?;
            if interest.wants(&record) && interest.shows(access, &record, &view.state) {
                tidings.records.push(record);
            }
            tidings.upto = sequence;
        }
    }
    Ok(tidings)
}

fn matches(filter: &LogFilter, record: &Record) -> bool {
    let author = match record {
        Record::Entry(entry) => &entry.author,
        Record::Operation(operation) => &operation.author,
    };
    let name = match &author.principal {
        Principal::Certificate { subject } | Principal::Oidc { subject, .. } => subject,
        Principal::Claimed { name } => name,
        Principal::System { part } => part,
    };
    let kind = match record {
        Record::Entry(entry) => {
            (filter.types.is_empty() && !filter.operations) || filter.types.contains(&entry.entry_type)
        }
        Record::Operation(_) => filter.types.is_empty() || filter.operations,
    };
    kind && (filter.scopes.is_empty() || filter.scopes.contains(record.scope()))
        && filter.author.as_ref().is_none_or(|wanted| **wanted == **name)
}

pub(super) async fn log<L: Library>(replica: Replica<L>, access: Access, filter: LogFilter, out: Out<wire::LogReply>) {
    let head = replica.handle.view().state.sequence();
    let upto = filter.upto.map_or(head, |upto| upto.min(head));
    let first = wire::LogReply { records: Vec::new(), sequence: head.0 };
    if out.send(Ok(first)).await.is_err() {
        return;
    }
    let sent = if filter.newest_first {
        backwards(&replica, &access, &filter, upto, head, &out).await
    } else {
        forwards(&replica, &access, &filter, upto, head, &out).await
    };
    if let Err(status) = sent {
        out.send(Err(status)).await.ok();
    }
}

async fn forwards<L: Library>(
    replica: &Replica<L>,
    access: &Access,
    filter: &LogFilter,
    upto: Seq,
    head: Seq,
    out: &Out<wire::LogReply>,
) -> Result<(), Status> {
    let mut left = filter.limit.unwrap_or(u64::MAX);
    let mut at = filter.after;
    while at < upto && left > 0 && !replica.is_ending() {
        let mut records = Vec::new();
        for (sequence, bytes) in read_all(replica, at, upto).await? {
            at = sequence;
            let record = decoded(&bytes)?;
            if left > 0 && matches(filter, &record) && access.sees(record.scope(), &replica.handle.view().state) {
                left -= 1;
                records.push(record.to_wire());
            }
        }
        if !records.is_empty() && out.send(Ok(wire::LogReply { records, sequence: head.0 })).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

async fn backwards<L: Library>(
    replica: &Replica<L>,
    access: &Access,
    filter: &LogFilter,
    upto: Seq,
    head: Seq,
    out: &Out<wire::LogReply>,
) -> Result<(), Status> {
    let mut left = filter.limit.unwrap_or(u64::MAX);
    let mut end = upto;
    let mut window = WINDOW;
    while end > filter.after && left > 0 && !replica.is_ending() {
        let start = Seq(end.0.saturating_sub(window)).max(filter.after);
        let read = read_all(replica, start, end).await?;
        // Only the whole window may be turned round; large records make for smaller windows.
        if read.last().is_some_and(|(last, _)| *last < end) {
            window = (window / 2).max(1);
            continue;
        }
        let mut records = Vec::new();
        for (_, bytes) in read.iter().rev() {
            let record = decoded(bytes)?;
            if left > 0 && matches(filter, &record) && access.sees(record.scope(), &replica.handle.view().state) {
                left -= 1;
                records.push(record.to_wire());
            }
        }
        end = start;
        if !records.is_empty() && out.send(Ok(wire::LogReply { records, sequence: head.0 })).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

pub(super) async fn state_at<L: Library>(
    replica: &Replica<L>,
    scope: Scope,
    at: Option<Seq>,
) -> Result<StateAt, Status> {
    let view = replica.handle.view();
    let journal_head = view.state.sequence();
    let at = at.unwrap_or(journal_head);
    if at > journal_head {
        return Err(Status::out_of_range(format!(
            "sequence {at} lies in the future: the journal's head here is {journal_head}"
        )));
    }
    if at == journal_head {
        return match answer(&view.state, view.status.applied, &Query::Scope(scope)) {
            Ok(Answer::Scope { head, settings }) => Ok(StateAt { at, head, settings }),
            Ok(_) => Err(Status::internal("a question about a scope got another answer")),
            Err(refusal) => Err(Status::failed_precondition(format!("{refusal:?}"))),
        };
    }
    replica.handle.recorded(at).await;
    let fold = past::scope_at(&replica.library, &scope, at).await.map_err(|error| match error {
        PastError::Missing(sequence) => not_here_yet(sequence),
        PastError::Storage(error) => Status::data_loss(error.to_string()),
        PastError::Broken(problem) => Status::data_loss(problem),
    })?;
    let declared =
        |(key, (sequence, setting)): (Key, (Seq, Setting))| Declared { key, setting, sequence, expires_at: None };
    Ok(StateAt { at, head: fold.head(), settings: fold.at().into_iter().map(declared).collect() })
}

pub(super) async fn verify<L: Library>(
    replica: Replica<L>,
    expected: Option<(Seq, Digest)>,
    out: Out<wire::VerifyReply>,
) {
    let answer = match verified(&replica, expected, &out).await {
        Ok(reply) => Ok(wire::VerifyReply { reply: Some(reply) }),
        Err(status) => Err(status),
    };
    out.send(answer).await.ok();
}

async fn verified<L: Library>(
    replica: &Replica<L>,
    expected: Option<(Seq, Digest)>,
    out: &Out<wire::VerifyReply>,
) -> Result<wire::verify_reply::Reply, Status> {
    use wire::verify_reply::Reply as W;
    let failed = |sequence: Seq, problem: String| Ok(W::Failed(wire::VerifyFailed { sequence: sequence.0, problem }));
    let view = replica.handle.view();
    let (upto, head) = (view.state.sequence(), view.state.head());
    drop(view);
    let mut verifier = Verifier::new();
    let mut matched = false;
    if let Some((sequence, digest)) = expected {
        if sequence > upto {
            let problem = format!("sequence {sequence} lies in the future: the journal's head here is {upto}");
            return Err(Status::out_of_range(problem));
        }
        matched = sequence == Seq(0) && digest == Digest::default();
    }
    while verifier.sequence() < upto {
        for (_, bytes) in read_all(replica, verifier.sequence(), upto).await? {
            if let Err(broken) = verifier.push(&bytes) {
                return failed(broken.sequence, damaged(&broken.problem));
            }
            if let Some((sequence, digest)) = expected
                && sequence == verifier.sequence()
            {
                if let Err(broken) = verifier.expect(digest) {
                    return failed(
                        sequence,
                        format!("{}: this is not the history that the head was taken from", broken.problem),
                    );
                }
                matched = true;
            }
        }
        let progress = wire::VerifyProgress { sequence: verifier.sequence().0, of: upto.0 };
        let progress = wire::VerifyReply { reply: Some(W::Progress(progress)) };
        if out.send(Ok(progress)).await.is_err() || replica.is_ending() {
            return Err(Status::cancelled("the verification was broken off"));
        }
    }
    if let Err(broken) = verifier.expect(head) {
        return failed(upto, damaged(&broken.problem));
    }
    if expected.is_some() && !matched {
        return failed(Seq(0), "the given head is not on the chain".to_owned());
    }
    let head = wire::Head { sequence: upto.0, digest: verifier.head().to_string() };
    Ok(W::Verified(wire::Verified { head: Some(head), head_matched: matched }))
}

fn damaged(problem: &str) -> String {
    format!("{problem}; stop this replica and run `muster repair DIR`, then verify again")
}
