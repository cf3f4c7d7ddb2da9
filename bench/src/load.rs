//! Closed-loop callers over one shared client.

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use muster_core::ids::{NodeId, Seq};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::entry::{Author, Change, EntryDraft, EntryType, Principal, Role};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::query::Query;
use muster_core::request::{Command, Freshness, Outcome, Reply};
use muster_net::client::{BootAsk, Client, Options};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What every caller does.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Commit { bytes: u32, scope: Scope },
    Read { local: bool },
    Boot { node: NodeId },
}

/// What one run gave. Latencies in microseconds.
pub(crate) struct Run {
    pub(crate) callers: u32,
    pub(crate) seconds: f64,
    pub(crate) failed: u64,
    pub(crate) first_failure: Option<String>,
    pub(crate) latency: Histogram<u64>,
}

/// What all callers of a run share.
#[derive(Clone)]
struct Work {
    kind: Kind,
    author: Author,
    value: Arc<str>,
}

struct Caller {
    latency: Histogram<u64>,
    failed: u64,
    first_failure: Option<String>,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are in order")
}

/// One operation; an error says what came instead of success. Commits move `seen`, the newest sequence this caller knows.
async fn once(client: &Client, work: &Work, caller: u32, turn: u64, seen: &mut Seq) -> Result<(), String> {
    let Work { kind, author, value } = work;
    match kind {
        Kind::Commit { scope, .. } => {
            // A thousand keys a caller: stacks and state stay at their size however long the run is.
            let key =
                Key::new(&format!("kernel:bench.{caller}.{}", turn % 1_000)).map_err(|error| error.to_string())?;
            let change = Change { key, previous: Setting::Unset, next: Setting::Value(value.clone()) };
            let draft = EntryDraft {
                entry_type: EntryType::Commit,
                scope: scope.clone(),
                parent: *seen,
                based_on: None,
                changes: vec![change],
                ttl_seconds: None,
                emergency_reason: None,
                message: Arc::from("load"),
                occurred_at: None,
            };
            let outcome = client.write(author, Command::Journal(JournalCommand::AppendEntry(draft))).await;
            match outcome {
                Outcome::Applied { reply: Reply::Recorded { sequence }, .. } => {
                    *seen = sequence;
                    Ok(())
                }
                other => Err(format!("{other:?}")),
            }
        }
        Kind::Read { local } => {
            let freshness = if *local { Freshness::Local } else { Freshness::Linearizable };
            client.query(freshness, &Query::Summary).await.map(|_| ()).map_err(|error| error.to_string())
        }
        Kind::Boot { node } => {
            let ask = BootAsk { node: node.clone(), known: None, at_least: Seq(0) };
            client.boot(&ask).await.map(|_| ()).map_err(|error| error.to_string())
        }
    }
}

async fn head(client: &Client) -> Result<Seq> {
    let answered = client.query(Freshness::Linearizable, &Query::Summary).await;
    Ok(answered.context("asking for the journal's head")?.sequence)
}

/// Runs `callers` closed loops for `seconds` after a warm-up.
pub(crate) async fn run(servers: &[String], callers: u32, seconds: u64, kind: &Kind) -> Result<Run> {
    let client = Client::connect(servers.to_vec(), Options::default()).await?;
    // Whatever an earlier run left under these keys was seen.
    let seen = head(&client).await?;
    let value: Arc<str> = match kind {
        Kind::Commit { bytes, .. } => Arc::from("v".repeat(usize::try_from(*bytes)?)),
        Kind::Read { .. } | Kind::Boot { .. } => Arc::from(""),
    };
    let author = Author { principal: Principal::Claimed { name: Arc::from("muster-bench") }, role: Role::Admin };
    let work = Work { kind: kind.clone(), author, value };
    let measure = Duration::from_secs(seconds);
    let begin = Instant::now() + measure / 10;
    let end = begin + measure;
    let mut tasks = Vec::new();
    for caller in 0..callers {
        let (client, work, mut seen) = (client.clone(), work.clone(), seen);
        tasks.push(tokio::spawn(async move {
            let mut out = Caller { latency: histogram(), failed: 0, first_failure: None };
            let mut turn = 0;
            loop {
                let start = Instant::now();
                if start >= end {
                    return out;
                }
                let result = once(&client, &work, caller, turn, &mut seen).await;
                turn += 1;
                if start < begin {
                    continue;
                }
                match result {
                    Ok(()) => {
                        let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
                        out.latency.saturating_record(micros);
                    }
                    Err(problem) => {
                        out.failed += 1;
                        out.first_failure.get_or_insert(problem);
                    }
                }
            }
        }));
    }
    let mut run = Run { callers, seconds: measure.as_secs_f64(), failed: 0, first_failure: None, latency: histogram() };
    for task in tasks {
        let caller = task.await?;
        run.latency.add(&caller.latency)?;
        run.failed += caller.failed;
        run.first_failure = run.first_failure.or(caller.first_failure);
    }
    client.close().await;
    Ok(run)
}
