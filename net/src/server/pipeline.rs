//! One stream of many writes and questions, as a replica answers it.
//!
//! Writes go to the replica's loop as the frame they came in, and all linearizable questions of a frame wait for one read of
//! it. Answers go out as they become known: whatever is known when the stream can take a frame goes into it.
//!
//! Invariants
//! - everything that came in is answered once, whatever becomes of the replica;
//! - no more is read while too much waits, and a client that does not take its answers holds up only itself.

use super::api::{Writer, question, reply};
use crate::proto::v1 as wire;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use muster_core::front::View;
use muster_core::query::Query;
use muster_core::request::{Freshness, NotApplied, Outcome};
use muster_core::storage::Library;
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

/// Outcomes that go into one frame at most.
const FRAME_OUTCOMES: usize = 4_096;
/// A frame is closed by the outcome or the answer that brings it to this many bytes.
const FRAME_BYTES: usize = 1 << 20;

type Out = mpsc::Sender<Result<wire::PipelineReply, Status>>;

/// Questions of one frame that share a read, and what the read gave.
struct Asked {
    read: Result<Arc<View>, NotApplied>,
    questions: Vec<(u64, Query)>,
}

/// Answers a pipeline until its client ends it.
pub(super) async fn pipeline<L: Library>(
    writer: Arc<Writer<L>>,
    mut frames: Streaming<wire::PipelineRequest>,
    pipelined_max: usize,
    out: Out,
) {
    let (outcomes, mut known) = futures_channel::mpsc::unbounded();
    let mut reads: FuturesUnordered<BoxFuture<'static, Asked>> = FuturesUnordered::new();
    // Writes and questions without an answer.
    let (mut writes, mut questions) = (0, 0);
    let mut ended = false;
    loop {
        tokio::select! {
            frame = frames.message(), if !ended && writes + questions < pipelined_max => match frame {
                Ok(Some(frame)) => {
                    writes += frame.writes.len();
                    writer.submit(frame.writes, &outcomes);
                    let Some(count) = ask(&writer, frame.queries, &mut reads, &out).await else { return };
                    questions += count;
                }
                // Writes that are under way go on without their client; it may ask again under their ids.
                Ok(None) | Err(_) => ended = true,
            },
            // This end keeps `outcomes`, and every write that was handed in gets one: there is a next.
            Some(first) = known.next(), if writes > 0 => {
                let Some(count) = tell(&writer, first, &mut known, &out).await else { return };
                writes -= count;
            },
            Some(asked) = reads.next(), if !reads.is_empty() => {
                let count = asked.questions.len();
                if answer(&writer, asked, &out).await.is_none() {
                    return;
                }
                questions -= count;
            },
            () = writer.replica.ending(), if !ended => {
                // What is under way is still answered; nothing new is taken.
                ended = true;
            }
            else => return,
        }
        if ended && writes + questions == 0 {
            return;
        }
    }
}

/// Tells outcomes in one frame; how many. None once the client is gone.
async fn tell<L: Library>(
    writer: &Writer<L>,
    first: (u64, Outcome),
    known: &mut futures_channel::mpsc::UnboundedReceiver<(u64, Outcome)>,
    out: &Out,
) -> Option<usize> {
    use crate::convert::Wire as _;
    // The place is taken first: what becomes known meanwhile goes into the same frame.
    let place = out.reserve().await.ok()?;
    let mut frame = wire::PipelineReply::default();
    let mut leader = writer.leader();
    let mut next = Some(first);
    let mut bytes = 0;
    while let Some((tag, outcome)) = next {
        let outcome = wire::TaggedOutcome { tag, outcome: Some(outcome.to_wire()), leader: leader.take() };
        // A conflict tells whose value is there, and that may be large however small the write was.
        bytes += outcome.encoded_len();
        frame.outcomes.push(outcome);
        let room = frame.outcomes.len() < FRAME_OUTCOMES && bytes < FRAME_BYTES;
        next = if room { known.try_recv().ok() } else { None };
    }
    let count = frame.outcomes.len();
    place.send(Ok(frame));
    Some(count)
}

/// Begins a read for the questions of a frame, one for each freshness; gives how many wait for theirs. Malformed ones are told so
/// at once. None once the client is gone.
async fn ask<L: Library>(
    writer: &Arc<Writer<L>>,
    queries: Vec<wire::TaggedQuery>,
    reads: &mut FuturesUnordered<BoxFuture<'static, Asked>>,
    out: &Out,
) -> Option<usize> {
    let mut malformed = wire::PipelineReply::default();
    let mut groups: BTreeMap<Freshness, Vec<(u64, Query)>> = BTreeMap::new();
    for wire::TaggedQuery { tag, query } in queries {
        match question(query.unwrap_or_default()) {
            Ok((freshness, query)) => groups.entry(freshness).or_default().push((tag, query)),
            Err(problem) => {
                let result = Some(failed(&Status::from(problem)));
                malformed.answers.push(wire::TaggedAnswer { tag, result });
            }
        }
    }
    if !malformed.answers.is_empty() {
        out.send(Ok(malformed)).await.ok()?;
    }
    let mut count = 0;
    for (freshness, questions) in groups {
        count += questions.len();
        let writer = writer.clone();
        let read = async move { Asked { read: writer.replica.handle.read(freshness).await, questions } };
        reads.push(read.boxed());
    }
    Some(count)
}

fn failed(status: &Status) -> wire::tagged_answer::Result {
    let code = u32::try_from(i32::from(status.code())).unwrap_or_default();
    wire::tagged_answer::Result::Failed(wire::QueryFailed { code, message: status.message().to_owned() })
}

/// Answers the questions of one read, in frames of a bounded size. None once the client is gone.
async fn answer<L: Library>(writer: &Writer<L>, asked: Asked, out: &Out) -> Option<()> {
    let Asked { read, questions } = asked;
    let mut questions = questions.into_iter().peekable();
    while questions.peek().is_some() {
        let place = out.reserve().await.ok()?;
        let mut frame = wire::PipelineReply::default();
        let mut bytes = 0;
        for (tag, query) in questions.by_ref() {
            let result = Some(match reply(&writer.replica.handle, &writer.access, &read, &query) {
                Ok(reply) => {
                    bytes += reply.encoded_len();
                    wire::tagged_answer::Result::Reply(reply)
                }
                Err(status) => failed(&status),
            });
            frame.answers.push(wire::TaggedAnswer { tag, result });
            if bytes >= FRAME_BYTES {
                break;
            }
        }
        place.send(Ok(frame));
    }
    Some(())
}
