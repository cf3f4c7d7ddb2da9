//! One stream of many writes to one replica, shared by every caller in the process.
//!
//! Whatever waits goes into one frame, without waiting to fill one. A pipe lives until its connection breaks or its client
//! goes; then whoever needs one opens another.
//!
//! Invariants
//! - every write that was handed in gets exactly one [`Answer`], or its caller stopped listening;
//! - `NotSent` is given only for a write of which no byte was handed to the connection.

use super::connections::endpoint;
use super::types::Options;
use crate::convert::Wire;
use crate::proto::v1::muster_client::MusterClient;
use crate::proto::v1::{NotLeader, PipelineReply, PipelineRequest, TaggedWrite, WriteRequest};
use crate::tls::{Expect, dial, root_cause};
use muster_core::request::Outcome;
use prost::Message;
use std::collections::BTreeMap;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

/// How many writes may wait for a frame.
const WAITING_MAX: usize = 4_096;
/// A frame is closed by the write that brings it to this many bytes, or to this many writes.
pub(super) const FRAME_BYTES: usize = 1 << 20;
const FRAME_WRITES: usize = 1_024;

/// What came of handing a write to a replica.
pub(super) enum Answer {
    /// It answered, and named the leader if it is another.
    Outcome(Outcome, Option<NotLeader>),
    /// Nothing was sent.
    NotSent(String),
    /// It may have arrived.
    Lost,
}

struct Job {
    write: WriteRequest,
    answer: oneshot::Sender<Answer>,
}

/// The sending end of a pipe.
#[derive(Clone)]
pub(super) struct Pipe {
    jobs: mpsc::Sender<Job>,
}

impl Pipe {
    /// Opens one in the background.
    pub(super) fn open(address: &str, options: &Options) -> Self {
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(run(address.to_owned(), options.clone(), waiting));
        Self { jobs }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.jobs.is_closed()
    }

    /// Sends a write and waits for what comes of it.
    pub(super) async fn send(&self, write: WriteRequest) -> Answer {
        let (answer, answered) = oneshot::channel();
        if self.jobs.send(Job { write, answer }).await.is_err() {
            return Answer::NotSent("the connection broke".to_owned());
        }
        answered.await.unwrap_or(Answer::Lost)
    }
}

async fn run(address: String, options: Options, mut jobs: mpsc::Receiver<Job>) {
    let (frames, outgoing) = mpsc::channel(1);
    let opened = async {
        let endpoint = endpoint(&address, &options).map_err(|error| error.to_string())?;
        let channel = dial::connect(&endpoint, options.tls.as_ref(), &Expect::Replica);
        let channel = channel.await.map_err(|error| root_cause(&error))?;
        let mut client = MusterClient::new(channel).max_decoding_message_size(usize::MAX);
        let replies = client.pipeline(ReceiverStream::new(outgoing)).await;
        Ok(replies.map_err(|status| status.message().to_owned())?.into_inner())
    };
    match opened.await {
        Ok(replies) => {
            let mut waiting = BTreeMap::new();
            carry(&mut jobs, &frames, replies, &mut waiting).await;
            jobs.close();
            for (_, answer) in waiting {
                answer.send(Answer::Lost).ok();
            }
            refuse(jobs, "the connection broke").await;
        }
        Err(problem) => {
            let problem: String = problem;
            jobs.close();
            refuse(jobs, &problem).await;
        }
    }
}

/// Answers everything that was never sent.
async fn refuse(mut jobs: mpsc::Receiver<Job>, problem: &str) {
    while let Some(job) = jobs.recv().await {
        job.answer.send(Answer::NotSent(problem.to_owned())).ok();
    }
}

/// Carries writes out and answers in until the connection breaks or nobody holds the pipe any more.
async fn carry(
    jobs: &mut mpsc::Receiver<Job>,
    frames: &mpsc::Sender<PipelineRequest>,
    mut replies: tonic::Streaming<PipelineReply>,
    waiting: &mut BTreeMap<u64, oneshot::Sender<Answer>>,
) {
    let mut tag = 0;
    loop {
        // A frame is filled only when the connection is ready to take it: until then writes gather.
        let permit = tokio::select! {
            permit = frames.reserve() => match permit {
                Ok(permit) => permit,
                Err(_) => return,
            },
            reply = replies.message() => {
                if !take(reply, waiting) {
                    return;
                }
                continue;
            }
        };
        let job = loop {
            tokio::select! {
                job = jobs.recv() => match job {
                    Some(job) => break job,
                    None => return,
                },
                reply = replies.message() => {
                    if !take(reply, waiting) {
                        return;
                    }
                }
            }
        };
        let mut frame = PipelineRequest::default();
        let mut bytes = 0;
        let mut next = Some(job);
        while let Some(Job { write, answer }) = next {
            // Nobody waits for it any more: it was given up, and not sending it is the better half of giving up.
            if !answer.is_closed() {
                tag += 1;
                bytes += write.encoded_len();
                waiting.insert(tag, answer);
                frame.writes.push(TaggedWrite { tag, write: Some(write) });
            }
            let room = bytes < FRAME_BYTES && frame.writes.len() < FRAME_WRITES;
            next = if room { jobs.try_recv().ok() } else { None };
        }
        if !frame.writes.is_empty() {
            permit.send(frame);
        }
    }
}

/// Gives answers to those who wait for them. False once the connection is of no use.
fn take(
    reply: Result<Option<PipelineReply>, tonic::Status>,
    waiting: &mut BTreeMap<u64, oneshot::Sender<Answer>>,
) -> bool {
    let Ok(Some(reply)) = reply else { return false };
    for tagged in reply.outcomes {
        let Some(answer) = waiting.remove(&tagged.tag) else { continue };
        let outcome = tagged.outcome.map(Outcome::from_wire);
        // An answer that makes no sense is no answer.
        let Some(Ok(outcome)) = outcome else {
            answer.send(Answer::Lost).ok();
            continue;
        };
        answer.send(Answer::Outcome(outcome, tagged.leader)).ok();
    }
    true
}
