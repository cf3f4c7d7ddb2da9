//! A fleet that wakes at once, as the simulated storm has it (`docs/simulation.md`): how long its nodes take and how often they ask, from
//! more replicas and from fewer.
//!
//! What a machine with everything on it cannot show is taken out: places are few, and a node takes its bytes no faster than over a
//! link of its own, so that places are what nodes wait for, not the processors. Every node does what the client library does
//! (`muster_core::client`): asks anybody, elsewhere once when it is told to wait, and then where the wait is shorter.

use crate::boots::{self, Fleet, Head, Way, loopback, node_name, read_head};
use crate::load::{histogram, micros};
use crate::machine::Machine;
use crate::muster::{Cluster, Size};
use crate::report::Report;
use crate::storm::ms;
use anyhow::Result;
use hdrhistogram::Histogram;
use muster_core::client::{BootAttempts, Targets};
use muster_net::client::{Client, Options};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// What is played.
pub(crate) struct Burst<'a> {
    pub(crate) fleet: Fleet,
    /// Replicas that serve, the leader among them; several numbers make several runs.
    pub(crate) replicas: &'a [u32],
    /// Boots that each serves at a time.
    pub(crate) places: u32,
    /// Within which time all nodes come.
    pub(crate) within: Duration,
    /// How long a boot's bytes are on their way.
    pub(crate) takes: Duration,
    pub(crate) program: &'a Path,
}

/// A receive window that is much smaller than a boot: what a node has not taken, its replica has not sent.
const WINDOW_BYTES: u32 = 4_096;

/// How one node fared.
struct Fared {
    took: Duration,
    questions: u64,
    told: u64,
    broken: u64,
}

/// Asks once and takes the answer at the node's pace.
async fn ask(way: &Way, number: u32, takes: Duration) -> Result<Head, String> {
    let broke = |error: std::io::Error| error.to_string();
    let mut stream = way.connect_from(loopback(number), Some(WINDOW_BYTES)).await.map_err(broke)?;
    let request = way.request(&format!("/v1/boot/{}", node_name(number)));
    stream.write_all(&request).await.map_err(broke)?;
    let mut text = Vec::new();
    let (head, had) = loop {
        if stream.read_buf(&mut text).await.map_err(broke)? == 0 {
            return Err("the connection ended in the head".to_owned());
        }
        if let Some(end) = text.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = std::str::from_utf8(&text[..end]).map_err(|error| error.to_string())?;
            break (read_head(head), text.len() - end - 4);
        }
    };
    let mut rest = head.length.saturating_sub(had);
    if head.code == 200 {
        tokio::time::sleep(takes).await;
    }
    let mut buffer = vec![0; 16 << 10];
    while rest > 0 {
        let read = stream.read(&mut buffer).await.map_err(broke)?;
        if read == 0 {
            return Err(format!("the connection ended {rest} bytes early"));
        }
        rest = rest.saturating_sub(read);
    }
    Ok(head)
}

async fn boot(ways: Arc<[Way]>, number: u32, takes: Duration) -> Fared {
    let mut addresses: Vec<Arc<str>> = ways.iter().map(|way| Arc::from(way.address.as_str())).collect();
    let turn = number as usize % addresses.len();
    addresses.rotate_left(turn);
    let mut targets = Targets::new(addresses, number.into());
    let mut attempts = BootAttempts::default();
    let mut fared = Fared { took: Duration::ZERO, questions: 0, told: 0, broken: 0 };
    let began = Instant::now();
    loop {
        let here = targets.current().expect("a node knows somebody").clone();
        let way = Way { address: here.to_string(), tls: None, close: true };
        fared.questions += 1;
        let pause_ms = match ask(&way, number, takes).await {
            Ok(head) if head.code == 200 => {
                fared.took = began.elapsed();
                return fared;
            }
            Ok(head) => {
                fared.told += 1;
                let (next, after_ms) = attempts.on_later(&here, head.retry_after_ms, &head.elsewhere);
                targets.follow(&next);
                after_ms
            }
            Err(_) => {
                fared.broken += 1;
                targets.failed(&here)
            }
        };
        tokio::time::sleep(Duration::from_millis(pause_ms.max(1))).await;
    }
}

/// One run.
async fn play(burst: &Burst<'_>, replicas: u32, dir: &Path, report: &Report) -> Result<()> {
    let Burst { fleet, places, within, takes, .. } = *burst;
    let more = format!("[boot]\nplaces_max = {places}\nwhile_leading = true\n");
    let home = tempfile::tempdir_in(dir)?;
    let cluster =
        Cluster::start_with(burst.program, home.path(), Size::of_voters(usize::try_from(replicas)?), &more, None)
            .await?;
    let client = Client::connect(cluster.addresses(), Options::default()).await?;
    boots::declare(&client, fleet).await?;
    let way = |address: &String| Way { address: address.clone(), tls: None, close: true };
    let ways: Arc<[Way]> = cluster.addresses().iter().map(way).collect();
    let sequence = client.status(&cluster.addresses()[0]).await?.summary.sequence;
    for way in ways.iter() {
        while client.status(&way.address).await?.summary.sequence < sequence {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        boots::ready(way).await?;
    }
    client.close().await;
    let began = Instant::now();
    let nodes: Vec<_> = (0..fleet.nodes)
        .map(|number| {
            // Spread over the time in which they come, in no order.
            let shuffled = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            let arrives = within * u32::try_from(shuffled % 1_000).unwrap_or(0) / 1_000;
            let ways = ways.clone();
            tokio::spawn(async move {
                tokio::time::sleep(arrives).await;
                boot(ways, number, takes).await
            })
        })
        .collect();
    let (mut took, mut questions, mut told, mut broken): (Histogram<u64>, u64, u64, u64) = (histogram(), 0, 0, 0);
    for node in nodes {
        let fared = node.await?;
        took.saturating_record(micros(fared.took));
        (questions, told, broken) = (questions + fared.questions, told + fared.told, broken + fared.broken);
    }
    let lasted = began.elapsed().as_secs_f64();
    let retries = questions - u64::from(fleet.nodes);
    report.give(&json!({
        "replicas": replicas, "nodes": fleet.nodes, "seconds": lasted, "p50_ms": ms(&took, 0.5), "p99_ms": ms(&took, 0.99),
        "max_ms": ms(&took, 1.0), "retries": retries, "told_to_wait": told, "broken": broken,
    }))?;
    report.say(&format!(
        "{replicas:>8}  {:>6}  {lasted:>7.1}  {:>7.0}  {:>7.0}  {:>7.0}  {retries:>7}  {told:>12}  {broken:>6}",
        fleet.nodes,
        ms(&took, 0.5),
        ms(&took, 0.99),
        ms(&took, 1.0),
    ))
}

/// Plays all runs.
pub(crate) async fn run(burst: &Burst<'_>, dir: &Path, report: &Report) -> Result<()> {
    let what = format!(
        "{} nodes come within {} ms to replicas of {} places each; a boot takes {} ms at least",
        burst.fleet.nodes,
        burst.within.as_millis(),
        burst.places,
        burst.takes.as_millis()
    );
    report.begin(&what, &Machine::look(dir))?;
    report.say("replicas   nodes  seconds   p50 ms   p99 ms   max ms  retries  told to wait  broken")?;
    for &replicas in burst.replicas {
        play(burst, replicas, dir, report).await?;
    }
    Ok(())
}
