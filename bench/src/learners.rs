//! Many learners on one machine: each boots nodes and feeds a subscription while commits go on, and tells how far behind it is.

use crate::boots::{self, Fleet, Line, Way, node_name};
use crate::load::{Kind, Side as _};
use crate::machine::Machine;
use crate::muster::{self, Cluster, Size};
use crate::report::{Report, mib};
use crate::storm::{COMMITTERS, commits_at, ms};
use crate::usage;
use anyhow::{Context as _, Result, bail};
use muster_core::ids::Seq;
use muster_net::client::{Client, Options, Topic};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What is asked of the learners.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) learners: u32,
    /// The fleet, of which every learner boots every node.
    pub(crate) fleet: Fleet,
    /// Commits a second meanwhile.
    pub(crate) pace: u32,
    pub(crate) seconds: u64,
}

/// How often each learner is asked how far behind it is.
const LOOK: Duration = Duration::from_millis(250);

/// Follows a learner's journal until told to stop; how many records came, each the next one.
async fn follow(address: String, after: Seq, got: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> Result<()> {
    let client = Client::connect(vec![address], Options::default()).await?;
    let mut subscription = client.subscribe(Topic::Scopes(Vec::new()), after);
    let mut last = after;
    while !stop.load(Ordering::Relaxed) {
        let tidings = match tokio::time::timeout(Duration::from_secs(2), subscription.next()).await {
            Ok(tidings) => tidings.context("a subscription ended")?,
            Err(_) => continue,
        };
        for record in &tidings.records {
            if record.sequence() != last.next() {
                bail!("record {} came after {last}", record.sequence());
            }
            last = record.sequence();
        }
        got.fetch_add(tidings.records.len() as u64, Ordering::Relaxed);
    }
    drop(subscription);
    client.close().await;
    Ok(())
}

/// Starts voters and learners and asks all there is to ask of a learner.
pub(crate) async fn run(program: &Path, asked: Asked, dir: &Path, report: &Report) -> Result<()> {
    let Asked { learners, fleet, pace, seconds } = asked;
    report.begin(
        &format!("{learners} learners boot and are followed while {pace} commits a second go on"),
        &Machine::look(dir),
    )?;
    let count = usize::try_from(learners)?;
    let cluster = Cluster::start_with(program, dir, Size { learners: count, ..Size::of_voters(3) }, "", None).await?;
    let client = Client::connect(cluster.addresses(), Options::default()).await?;
    boots::declare(&client, fleet).await?;
    muster::declare_vcluster(&cluster, "load").await?;
    let addresses: Vec<String> = cluster.addresses()[3..].to_vec();
    let head = client.status(&cluster.addresses()[0]).await?.summary.sequence;
    let ways: Vec<Way> =
        addresses.iter().map(|address| Way { address: address.clone(), tls: None, close: false }).collect();
    for (way, address) in ways.iter().zip(&addresses) {
        let began = Instant::now();
        while client.status(address).await?.summary.sequence < head {
            if began.elapsed() > Duration::from_mins(1) {
                bail!("the learner at {address} does not catch up");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        boots::ready(way).await?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let every = Duration::from_secs_f64(f64::from(COMMITTERS) / f64::from(pace));
    let kind = Kind::Commit { bytes: 256, keys: 100, scope: "vcluster:load".parse()? };
    let commits = tokio::spawn(commits_at(cluster.prepare(&kind).await?, every, stop.clone()));
    let got: Vec<Arc<AtomicU64>> = addresses.iter().map(|_| Arc::default()).collect();
    let followers: Vec<_> = addresses
        .iter()
        .zip(&got)
        .map(|(address, got)| tokio::spawn(follow(address.clone(), head, got.clone(), stop.clone())))
        .collect();
    let booted: Vec<_> = ways
        .iter()
        .cloned()
        .map(|way| {
            let stop = stop.clone();
            tokio::spawn(async move {
                let (mut line, mut whole, mut other) = (Line::default(), 0_u64, 0_u64);
                for node in (0..fleet.nodes).cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let request = way.request(&format!("/v1/boot/{}", node_name(node)));
                    match line.ask(&way, &request).await {
                        Ok(head) if head.code == 200 => whole += 1,
                        Ok(_) | Err(_) => other += 1,
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                (whole, other)
            })
        })
        .collect();
    let began = Instant::now();
    let mut behind = vec![(0_u64, 0_u64, 0_u64); count];
    while began.elapsed() < Duration::from_secs(seconds) {
        for (address, (most, sum, looks)) in addresses.iter().zip(&mut behind) {
            // What it knows to be committed and has not applied, as `/v1/free` tells it.
            let replica = client.status(address).await?.replica;
            let lag = replica.commit.0.saturating_sub(replica.applied.0);
            (*most, *sum, *looks) = ((*most).max(lag), *sum + lag, *looks + 1);
        }
        tokio::time::sleep(LOOK).await;
    }
    stop.store(true, Ordering::Relaxed);
    let commits = commits.await??;
    for follower in followers {
        follower.await??;
    }
    report.say("learner  boots  not whole  records followed  behind: mean   most  resident MiB  peak MiB")?;
    let pids = cluster.pids();
    for (place, task) in booted.into_iter().enumerate() {
        let (whole, other) = task.await?;
        let (most, sum, looks) = behind[place];
        let pid = pids[place + 3];
        let (resident, peak) = (mib(usage::of(&[pid]).resident_max), mib(usage::peak_of(pid)));
        let records = got[place].load(Ordering::Relaxed);
        #[allow(clippy::cast_precision_loss, reason = "figures for people")]
        let mean = sum as f64 / looks.max(1) as f64;
        report.give(&json!({
            "learner": place + 1, "boots": whole, "not_whole": other, "records": records, "behind_mean": mean,
            "behind_most": most, "resident_mib": resident, "peak_mib": peak,
        }))?;
        report.say(&format!(
            "{:>7}  {whole:>5}  {other:>9}  {records:>16}  {mean:>12.1}  {most:>5}  {resident:>12.0}  {peak:>8.0}",
            place + 1
        ))?;
    }
    client.close().await;
    report.say(&format!(
        "{} commits, p50 {:.1} ms, p99 {:.1} ms; largest voter {:.0} MiB",
        commits.len(),
        ms(&commits, 0.5),
        ms(&commits, 0.99),
        mib(usage::of(&pids[..3]).resident_max)
    ))
}
