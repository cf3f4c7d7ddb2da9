//! Closed-loop callers: each waits for its answer before it asks again.

use crate::usage::{self, Usage};
use anyhow::Result;
use hdrhistogram::Histogram;
use muster_core::journal::key::Scope;
use muster_core::request::Freshness;
use std::time::{Duration, Instant};

/// What every caller does.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// Writes a value of so many bytes under one of its own keys.
    Commit { bytes: u32, keys: u32, scope: Scope },
    /// Reads one value of so many bytes.
    Read { bytes: u32, freshness: Freshness },
    /// Boots one of so many nodes after another, over gRPC.
    Boot { nodes: u32 },
}

/// Who is measured: processes, and how callers reach them.
pub(crate) trait Side {
    /// How its callers ask.
    type Work: Work;
    /// What it is called in tables.
    fn name(&self) -> &'static str;
    /// Its processes; none if somebody else runs them.
    fn pids(&self) -> Vec<u32>;
    /// Connects, and puts there whatever the callers want to find.
    async fn prepare(&self, kind: &Kind) -> Result<Self::Work>;
}

/// How one caller asks.
pub(crate) trait Work: Clone + Send + Sync + 'static {
    /// What a caller remembers from one operation to the next.
    type Memory: Send;
    /// A new caller's memory.
    fn memory(&self) -> Self::Memory;
    /// One operation; an error says what came instead of success.
    fn once(
        &self,
        caller: u32,
        turn: u64,
        memory: &mut Self::Memory,
    ) -> impl Future<Output = Result<(), String>> + Send;
    /// The last caller is done.
    async fn end(self);
}

/// What one run gave. Latencies in microseconds.
pub(crate) struct Run {
    pub(crate) callers: u32,
    pub(crate) seconds: f64,
    pub(crate) failed: u64,
    pub(crate) first_failure: Option<String>,
    pub(crate) latency: Histogram<u64>,
    /// CPU seconds of the servers, while it was measured.
    pub(crate) server_cpu: f64,
    /// CPU seconds of this process, while it was measured.
    pub(crate) client_cpu: f64,
    /// Resident bytes of the largest server process at the end.
    pub(crate) resident: u64,
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
impl Run {
    pub(crate) fn per_second(&self) -> f64 {
        self.latency.len() as f64 / self.seconds
    }

    /// Milliseconds at a quantile.
    pub(crate) fn at(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1_000.0
    }

    pub(crate) fn max(&self) -> f64 {
        self.latency.max() as f64 / 1_000.0
    }

    /// CPU microseconds an operation, of servers and of this process.
    pub(crate) fn cpu_per_operation(&self) -> (f64, f64) {
        let operations = (self.latency.len() + self.failed).max(1) as f64;
        (self.server_cpu * 1e6 / operations, self.client_cpu * 1e6 / operations)
    }
}

pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are in order")
}

pub(crate) fn micros(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}

struct Caller {
    latency: Histogram<u64>,
    failed: u64,
    first_failure: Option<String>,
}

async fn call<W: Work>(work: W, caller: u32, begin: Instant, end: Instant) -> Caller {
    let mut out = Caller { latency: histogram(), failed: 0, first_failure: None };
    let mut memory = work.memory();
    let mut turn = 0;
    loop {
        let start = Instant::now();
        if start >= end {
            return out;
        }
        let result = work.once(caller, turn, &mut memory).await;
        turn += 1;
        if start < begin {
            continue;
        }
        match result {
            Ok(()) => out.latency.saturating_record(micros(start.elapsed())),
            Err(problem) => {
                out.failed += 1;
                out.first_failure.get_or_insert(problem);
            }
        }
    }
}

fn usage_now(pids: &[u32]) -> (Usage, Usage) {
    (usage::of(pids), usage::of(&[std::process::id()]))
}

/// Runs `callers` closed loops for so many seconds after a warm-up of a tenth of them.
pub(crate) async fn run<S: Side>(side: &S, callers: u32, seconds: u64, kind: &Kind) -> Result<Run> {
    let work = side.prepare(kind).await?;
    let measure = Duration::from_secs(seconds);
    let begin = Instant::now() + measure / 10;
    let end = begin + measure;
    let tasks: Vec<_> = (0..callers).map(|caller| tokio::spawn(call(work.clone(), caller, begin, end))).collect();
    let pids = side.pids();
    tokio::time::sleep_until(begin.into()).await;
    let before = usage_now(&pids);
    tokio::time::sleep_until(end.into()).await;
    let after = usage_now(&pids);
    let mut run = Run {
        callers,
        seconds: measure.as_secs_f64(),
        failed: 0,
        first_failure: None,
        latency: histogram(),
        server_cpu: after.0.cpu.saturating_sub(before.0.cpu).as_secs_f64(),
        client_cpu: after.1.cpu.saturating_sub(before.1.cpu).as_secs_f64(),
        resident: after.0.resident_max,
    };
    for task in tasks {
        let caller = task.await?;
        run.latency.add(&caller.latency)?;
        run.failed += caller.failed;
        run.first_failure = run.first_failure.or(caller.first_failure);
    }
    work.end().await;
    Ok(run)
}
