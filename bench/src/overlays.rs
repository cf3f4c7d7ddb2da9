//! Overlays that are written again and again: what it costs those who commit meanwhile, and in memory.
//!
//! Eight writers, each with a vCluster of its own that declares as much as an overlay holds. Each makes its overlay stale by a
//! commit, then stores one of its own making; the leader rebuilds whatever it finds stale, as always. Beside them other clients
//! commit at a fixed pace, first alone. For etcd the same bytes are puts.

use crate::boots::{entry, noise, set};
use crate::child;
use crate::etcd::Etcd;
use crate::load::{Kind, Side, Work};
use crate::machine::Machine;
use crate::muster::{self, Cluster};
use crate::report::{Report, mib};
use crate::storm::{COMMITTERS, commits_at, ms};
use crate::usage;
use crate::{Peer, Sides};
use anyhow::{Result, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use muster_core::ids::{Digest, Seq, VClusterId};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::entry::EntryType;
use muster_core::journal::key::Scope;
use muster_core::journal::overlay::BootOverlay;
use muster_core::journal::policy::Policy;
use muster_core::query::Query;
use muster_core::request::{Command, Freshness, Outcome, Reply};
use muster_net::client::{Client, Options};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Who rewrites overlays.
const WRITERS: u32 = 8;
/// Settings that one entry declares, and the bytes of each.
const CHANGES: usize = 400;
const VALUE_BYTES: usize = 180;

/// How much is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rewriting {
    /// Bytes of an overlay.
    pub(crate) bytes: u32,
    /// How often one is stored, all writers together.
    pub(crate) times: u32,
    /// Commits of others a second.
    pub(crate) pace: u32,
    /// How long the others commit alone.
    pub(crate) seconds: u64,
}

/// How one writer makes its overlay stale and stores another.
trait Rewrite: Clone + Send + Sync + 'static {
    fn once(&self, writer: u32, turn: u32) -> impl Future<Output = Result<()>> + Send;
}

#[derive(Clone)]
struct Ours {
    client: Client,
    bytes: usize,
}

fn vcluster(writer: u32) -> Result<VClusterId> {
    Ok(VClusterId::new(&format!("w{writer}"))?)
}

impl Ours {
    async fn write(&self, command: Command) -> Result<Reply> {
        match self.client.write(&muster::author(), command).await {
            Outcome::Applied { reply, .. } => Ok(reply),
            outcome => bail!("{outcome:?}"),
        }
    }

    async fn head(&self) -> Result<Seq> {
        Ok(self.client.query(Freshness::Linearizable, &Query::Summary).await?.sequence)
    }

    async fn declare(&self, writer: u32) -> Result<()> {
        let policy = JournalCommand::SetPolicy { vcluster: vcluster(writer)?, policy: Policy::default() };
        self.write(Command::Journal(policy)).await?;
        let scope = Scope::VCluster(vcluster(writer)?);
        let values = self.bytes / VALUE_BYTES;
        for first in (0..values).step_by(CHANGES) {
            let values = first..(first + CHANGES).min(values);
            let changes: Result<Vec<_>> =
                values.map(|i| set(&format!("files:/bench/o{i:05}"), &noise(i as u64, VALUE_BYTES))).collect();
            self.write(entry(EntryType::Commit, scope.clone(), changes?, self.head().await?)).await?;
        }
        Ok(())
    }
}

impl Rewrite for Ours {
    async fn once(&self, writer: u32, turn: u32) -> Result<()> {
        let change = set("files:/bench/turn", &noise(u64::from(turn), 256))?;
        // Nobody else writes this scope, so the head of any moment is a parent.
        let commit = entry(EntryType::Commit, Scope::VCluster(vcluster(writer)?), vec![change], self.head().await?);
        let Reply::Recorded { sequence } = self.write(commit).await? else { bail!("a commit was not recorded") };
        let data = Bytes::from(noise((u64::from(writer) << 32) | u64::from(turn), self.bytes));
        let overlay =
            BootOverlay { version: sequence, checksum: Digest::of(&data), content_bytes: data.len() as u64, data };
        self.write(Command::Journal(JournalCommand::SetOverlay { vcluster: vcluster(writer)?, overlay })).await?;
        Ok(())
    }
}

/// Puts of the same bytes.
#[derive(Clone)]
struct Theirs<W> {
    small: W,
    large: W,
}

impl<W: Work> Rewrite for Theirs<W> {
    async fn once(&self, writer: u32, turn: u32) -> Result<()> {
        // Other keys than those who commit use.
        let writer = COMMITTERS + writer;
        self.small.once(writer, turn.into(), &mut self.small.memory()).await.map_err(anyhow::Error::msg)?;
        self.large.once(writer, 1, &mut self.large.memory()).await.map_err(anyhow::Error::msg)
    }
}

async fn rewrite<R: Rewrite>(work: R, times: u32) -> Result<()> {
    let next = Arc::new(AtomicU32::new(0));
    let tasks: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (work, next) = (work.clone(), next.clone());
            tokio::spawn(async move {
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if turn >= times {
                        return Ok::<_, anyhow::Error>(());
                    }
                    work.once(writer, turn).await?;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

fn commits(bytes: u32, keys: u32, scope: Scope) -> Kind {
    Kind::Commit { bytes, keys, scope }
}

/// The others alone, then beside the writers.
async fn one<S: Side, R: Rewrite>(side: &S, work: R, how: Rewriting, report: &Report) -> Result<()> {
    let every = Duration::from_secs_f64(f64::from(COMMITTERS) / f64::from(how.pace));
    let others = commits(256, 100, "vcluster:load".parse()?);
    let begin = async || {
        let (stop, work) = (Arc::new(AtomicBool::new(false)), side.prepare(&others).await?);
        Ok::<_, anyhow::Error>((stop.clone(), tokio::spawn(commits_at(work, every, stop))))
    };
    let (stop, quiet) = begin().await?;
    tokio::time::sleep(Duration::from_secs(how.seconds)).await;
    stop.store(true, Ordering::Relaxed);
    let quiet: Histogram<u64> = quiet.await??;
    let (stop, during) = begin().await?;
    let before = usage::of(&side.pids()).cpu;
    let began = Instant::now();
    rewrite(work, how.times).await?;
    let took = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    let during: Histogram<u64> = during.await??;
    let cpu = usage::of(&side.pids()).cpu.saturating_sub(before);
    let peaks: Vec<f64> = side.pids().into_iter().map(|pid| mib(usage::peak_of(pid))).collect();
    let per_second = f64::from(how.times) / took.as_secs_f64();
    report.give(&json!({
        "side": side.name(), "overlays_per_second": per_second, "server_cpu_seconds": cpu.as_secs_f64(),
        "quiet_p50_ms": ms(&quiet, 0.5), "quiet_p99_ms": ms(&quiet, 0.99),
        "during_p50_ms": ms(&during, 0.5), "during_p99_ms": ms(&during, 0.99), "peak_mib": peaks,
    }))?;
    let peaks = peaks.iter().map(|peak| format!("{peak:.0}")).collect::<Vec<_>>().join(", ");
    report.say(&format!(
        "{:<7} {per_second:>6.0} overlays a second, {:.1} CPU seconds of the servers; others' commits quiet p50 {:.1} ms, p99 {:.1} ms \
         ({}); during p50 {:.1} ms, p99 {:.1} ms ({}), {:.1} times; peak resident MiB {peaks}",
        side.name(),
        cpu.as_secs_f64(),
        ms(&quiet, 0.5),
        ms(&quiet, 0.99),
        quiet.len(),
        ms(&during, 0.5),
        ms(&during, 0.99),
        during.len(),
        ms(&during, 0.99) / ms(&quiet, 0.99),
    ))
}

/// Rewrites overlays, ours and then a peer's.
pub(crate) async fn run(sides: &Sides, how: Rewriting, dir: &Path, report: &Report) -> Result<()> {
    let Rewriting { bytes, times, pace, .. } = how;
    let what =
        format!("{WRITERS} writers store {times} overlays of {bytes} bytes while others commit {pace} times a second");
    report.begin(&what, &Machine::look(dir))?;
    let program = muster::program(sides.muster.as_deref())?;
    let cluster = Cluster::start(&program, dir, 3).await?;
    muster::declare_vcluster(&cluster, "load").await?;
    let client = Client::connect(cluster.addresses(), Options::default()).await?;
    let work = Ours { client: client.clone(), bytes: usize::try_from(bytes)? };
    for writer in 0..WRITERS {
        work.declare(writer).await?;
    }
    one(&cluster, work, how, report).await?;
    client.close().await;
    drop(cluster);
    match sides.against {
        None => Ok(()),
        Some(Peer::Nginx) => bail!("nginx only serves files: compare it with `boot`"),
        Some(Peer::Etcd) => {
            let program = child::find(sides.etcd.as_deref(), "etcd")?;
            let etcd = Etcd::start(&program, dir, sides.connections).await?;
            let small = etcd.prepare(&commits(256, 1, Scope::Global)).await?;
            // The second of two keys; the small ones go to the first.
            let large = etcd.prepare(&commits(bytes, 2, Scope::Global)).await?;
            one(&etcd, Theirs { small, large }, how, report).await
        }
    }
}
