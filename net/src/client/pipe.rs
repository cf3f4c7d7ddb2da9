//! One stream of many writes and questions to one replica, shared by every caller in the process.
//!
//! Whatever waits goes into one frame, without waiting to fill one. A pipe lives until its connection breaks or its client
//! goes; then whoever needs one opens another.
//!
//! Invariants
//! - every write that was handed in gets exactly one [`Answer`], or its caller stopped listening; so does every question;
//! - `NotSent` is given only for a write of which no byte was handed to the connection.

use super::connections::endpoint;
use super::types::Options;
use crate::convert::Wire;
use crate::proto::v1::muster_client::MusterClient;
use crate::proto::v1::{
    NotLeader, PipelineReply, PipelineRequest, QueryFailed, QueryReply, QueryRequest, TaggedQuery, TaggedWrite,
    WriteRequest, tagged_answer,
};
use crate::tls::{Expect, Told, dial, explain};
use muster_core::request::Outcome;
use prost::Message;
use std::collections::BTreeMap;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

/// How many writes and questions may wait for a frame.
const WAITING_MAX: usize = 4_096;
/// A frame is closed by the request that brings it to this many bytes, or to this many requests.
pub(super) const FRAME_BYTES: usize = 1 << 20;
const FRAME_REQUESTS: usize = 1_024;

/// What came of handing a write to a replica.
pub(super) enum Answer {
    /// It answered, and named the leader if it is another.
    Outcome(Outcome, Option<NotLeader>),
    /// Nothing was sent.
    NotSent(String),
    /// It may have arrived.
    Lost,
}

/// Why a question got no answer.
#[derive(Clone)]
pub(super) enum Unanswered {
    /// The connection could not be made, or broke.
    Broken(String),
    /// One end does not accept the other's certificate.
    Denied(String),
    /// So says the replica.
    Status(Status),
}

impl Unanswered {
    fn problem(&self) -> &str {
        match self {
            Self::Broken(problem) | Self::Denied(problem) => problem,
            Self::Status(status) => status.message(),
        }
    }
}

impl From<Told> for Unanswered {
    fn from(told: Told) -> Self {
        if told.denied { Self::Denied(told.problem) } else { Self::Broken(told.problem) }
    }
}

type Replied = Result<QueryReply, Unanswered>;

enum Job {
    Write { write: Box<WriteRequest>, answer: oneshot::Sender<Answer> },
    Query { query: QueryRequest, answer: oneshot::Sender<Replied> },
}

/// Who waits for what was sent.
enum Waiter {
    Write(oneshot::Sender<Answer>),
    Query(oneshot::Sender<Replied>),
}

impl Job {
    /// Nothing was sent.
    fn refuse(self, why: &Unanswered) {
        match self {
            Self::Write { answer, .. } => drop(answer.send(Answer::NotSent(why.problem().to_owned()))),
            Self::Query { answer, .. } => drop(answer.send(Err(why.clone()))),
        }
    }
}

fn broke() -> Unanswered {
    Unanswered::Broken("the connection broke".to_owned())
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
        if self.jobs.send(Job::Write { write: Box::new(write), answer }).await.is_err() {
            return Answer::NotSent(broke().problem().to_owned());
        }
        answered.await.unwrap_or(Answer::Lost)
    }

    /// Sends a question and waits for its answer.
    pub(super) async fn query(&self, query: QueryRequest) -> Replied {
        let (answer, answered) = oneshot::channel();
        if self.jobs.send(Job::Query { query, answer }).await.is_err() {
            return Err(broke());
        }
        answered.await.unwrap_or_else(|_| Err(broke()))
    }
}

async fn run(address: String, options: Options, mut jobs: mpsc::Receiver<Job>) {
    let (frames, outgoing) = mpsc::channel(1);
    let opened = async {
        let endpoint = endpoint(&address, &options).map_err(|error| Unanswered::Broken(error.to_string()))?;
        let channel = dial::connect(&endpoint, options.tls.as_ref(), &Expect::Replica);
        let channel = channel.await.map_err(|error| Unanswered::from(explain(&error)))?;
        let mut client = MusterClient::new(channel).max_decoding_message_size(usize::MAX);
        let replies = client.pipeline(ReceiverStream::new(outgoing)).await;
        Ok(replies.map_err(Unanswered::Status)?.into_inner())
    };
    match opened.await {
        Ok(replies) => {
            let mut waiting = BTreeMap::new();
            carry(&mut jobs, &frames, replies, &mut waiting).await;
            jobs.close();
            for (_, waiter) in waiting {
                match waiter {
                    Waiter::Write(answer) => drop(answer.send(Answer::Lost)),
                    Waiter::Query(answer) => drop(answer.send(Err(broke()))),
                }
            }
            refuse(jobs, &broke()).await;
        }
        Err(why) => {
            let why: Unanswered = why;
            jobs.close();
            refuse(jobs, &why).await;
        }
    }
}

/// Answers everything that was never sent.
async fn refuse(mut jobs: mpsc::Receiver<Job>, why: &Unanswered) {
    while let Some(job) = jobs.recv().await {
        job.refuse(why);
    }
}

/// Carries writes out and answers in until the connection breaks or nobody holds the pipe any more.
async fn carry(
    jobs: &mut mpsc::Receiver<Job>,
    frames: &mpsc::Sender<PipelineRequest>,
    mut replies: tonic::Streaming<PipelineReply>,
    waiting: &mut BTreeMap<u64, Waiter>,
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
        while let Some(job) = next {
            tag += 1;
            match job {
                // Nobody waits for it any more: it was given up, and not sending it is the better half of giving up.
                Job::Write { answer, .. } if answer.is_closed() => {}
                Job::Query { answer, .. } if answer.is_closed() => {}
                Job::Write { write, answer } => {
                    bytes += write.encoded_len();
                    waiting.insert(tag, Waiter::Write(answer));
                    frame.writes.push(TaggedWrite { tag, write: Some(*write) });
                }
                Job::Query { query, answer } => {
                    bytes += query.encoded_len();
                    waiting.insert(tag, Waiter::Query(answer));
                    frame.queries.push(TaggedQuery { tag, query: Some(query) });
                }
            }
            let room = bytes < FRAME_BYTES && frame.writes.len() + frame.queries.len() < FRAME_REQUESTS;
            next = if room { jobs.try_recv().ok() } else { None };
        }
        if !frame.writes.is_empty() || !frame.queries.is_empty() {
            permit.send(frame);
        }
    }
}

/// Gives answers to those who wait for them. False once the connection is of no use.
fn take(reply: Result<Option<PipelineReply>, tonic::Status>, waiting: &mut BTreeMap<u64, Waiter>) -> bool {
    let Ok(Some(reply)) = reply else { return false };
    for tagged in reply.outcomes {
        let Some(Waiter::Write(answer)) = waiting.remove(&tagged.tag) else { continue };
        let outcome = tagged.outcome.map(Outcome::from_wire);
        // An answer that makes no sense is no answer.
        let Some(Ok(outcome)) = outcome else {
            answer.send(Answer::Lost).ok();
            continue;
        };
        answer.send(Answer::Outcome(outcome, tagged.leader)).ok();
    }
    for tagged in reply.answers {
        let Some(Waiter::Query(answer)) = waiting.remove(&tagged.tag) else { continue };
        let replied = match tagged.result {
            Some(tagged_answer::Result::Reply(reply)) => Ok(reply),
            Some(tagged_answer::Result::Failed(QueryFailed { code, message })) => {
                Err(Unanswered::Status(Status::new(Code::from(i32::try_from(code).unwrap_or(-1)), message)))
            }
            None => Err(Unanswered::Broken("its answer is empty".to_owned())),
        };
        answer.send(replied).ok();
    }
    true
}
