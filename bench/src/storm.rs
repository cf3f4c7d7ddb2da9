//! A boot storm: every node of a fleet boots once, over HTTP on a connection of its own, from learners that are processes of their
//! own, while commits go on at half the pace that was measured before. Then the same with nginx giving the bytes.
//!
//! The nodes are tasks on threads of their own, so that those who commit never wait behind them in this process.

use crate::boots::{self, Fleet, Line, Nginx, Way, loopback, node_name};
use crate::child;
use crate::load::{self, Kind, Side, Work, histogram, micros};
use crate::machine::Machine;
use crate::muster::{self, Cluster, Size};
use crate::report::Report;
use anyhow::{Result, bail};
use hdrhistogram::Histogram;
use muster_core::journal::key::Scope;
use muster_net::client::{Client, Options};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Callers that commit.
pub(crate) const COMMITTERS: u32 = 64;

/// What a storm is made of.
pub(crate) struct Storm<'a> {
    pub(crate) fleet: Fleet,
    pub(crate) seconds: u64,
    /// Learners that serve.
    pub(crate) learners: usize,
    /// By how much whoever serves gives way to others of the machine.
    pub(crate) nice: u8,
    /// Nodes that are booting at the same time.
    pub(crate) together: u32,
    /// A learner's `boot.places_max`, if not its own default.
    pub(crate) places: Option<u32>,
    pub(crate) program: &'a Path,
    pub(crate) nginx: Option<&'a Path>,
}

/// Boots every node once, from threads of their own. Each thread has one queue for its nodes: where threads share them, those that do not
/// fit a thread's own queue are looked at so seldom that they wait for seconds, and the tail that is measured is the bench's own.
async fn boot_all(
    ways: Arc<[Way]>,
    paths: impl Fn(u32) -> String + Send + Sync + 'static,
    (nodes, together): (u32, u32),
) -> Result<Booted> {
    let threads = u32::try_from(std::thread::available_parallelism()?.get())?.min(together);
    let (next, paths) = (Arc::new(AtomicU32::new(0)), Arc::new(paths));
    let running: Vec<_> = (0..threads)
        .map(|thread| {
            let (ways, next, paths) = (ways.clone(), next.clone(), paths.clone());
            let places: Vec<u32> = (thread..together).step_by(threads as usize).collect();
            tokio::task::spawn_blocking(move || {
                let own = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                own.block_on(boot_each(ways, paths, (nodes, next), places))
            })
        })
        .collect();
    let mut all = Booted { took: histogram(), told: 0, failed: 0 };
    for thread in running {
        all.add(&thread.await??)?;
    }
    Ok(all)
}

/// Boots nodes, the next one as soon as one is done, at each of these places.
async fn boot_each(
    ways: Arc<[Way]>,
    paths: Arc<impl Fn(u32) -> String + Send + Sync + 'static>,
    (nodes, next): (u32, Arc<AtomicU32>),
    places: Vec<u32>,
) -> Result<Booted> {
    let tasks: Vec<_> = places
        .into_iter()
        .map(|place| {
            let (ways, next, paths) = (ways.clone(), next.clone(), paths.clone());
            tokio::spawn(async move {
                let mut out = Booted { took: histogram(), told: 0, failed: 0 };
                let mut line = Line::from(loopback(place));
                loop {
                    let node = next.fetch_add(1, Ordering::Relaxed);
                    if node >= nodes {
                        return out;
                    }
                    let began = Instant::now();
                    // The learners are asked in turn.
                    for attempt in 0..1_000_u32 {
                        let way = &ways[(node.wrapping_add(attempt)) as usize % ways.len()];
                        match line.ask(way, &way.request(&paths(node))).await {
                            Ok(head) if head.code == 200 => break,
                            Ok(head) => {
                                out.told += 1;
                                tokio::time::sleep(Duration::from_millis(head.retry_after_ms.max(1))).await;
                            }
                            Err(_) => {
                                out.failed += 1;
                                tokio::time::sleep(Duration::from_millis(20)).await;
                            }
                        }
                    }
                    out.took.saturating_record(micros(began.elapsed()));
                }
            })
        })
        .collect();
    let mut all = Booted { took: histogram(), told: 0, failed: 0 };
    for task in tasks {
        all.add(&task.await?)?;
    }
    Ok(all)
}

/// How the nodes fared.
struct Booted {
    took: Histogram<u64>,
    told: u64,
    failed: u64,
}

impl Booted {
    fn add(&mut self, other: &Self) -> Result<()> {
        self.took.add(&other.took)?;
        self.told += other.told;
        self.failed += other.failed;
        Ok(())
    }
}

/// Commits at a pace until told to stop; how long each took.
pub(crate) async fn commits_at<W: Work>(work: W, every: Duration, stop: Arc<AtomicBool>) -> Result<Histogram<u64>> {
    let tasks: Vec<_> = (0..COMMITTERS)
        .map(|caller| {
            let (work, stop) = (work.clone(), stop.clone());
            tokio::spawn(async move {
                let (mut took, mut memory, mut turn) = (histogram(), work.memory(), 0);
                tokio::time::sleep(every * caller / COMMITTERS).await;
                let mut due = tokio::time::interval(every);
                due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                while !stop.load(Ordering::Relaxed) {
                    due.tick().await;
                    let began = Instant::now();
                    if work.once(caller, turn, &mut memory).await.is_ok() {
                        took.saturating_record(micros(began.elapsed()));
                    }
                    turn += 1;
                }
                took
            })
        })
        .collect();
    let mut all = histogram();
    for task in tasks {
        all.add(&task.await?)?;
    }
    Ok(all)
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
pub(crate) fn ms(took: &Histogram<u64>, quantile: f64) -> f64 {
    took.value_at_quantile(quantile) as f64 / 1_000.0
}

fn tell(report: &Report, what: &str, commits: &Histogram<u64>, boots: Option<(&Booted, Duration)>) -> Result<()> {
    let mut value = json!({
        "what": what, "commits": commits.len(), "commit_p50_ms": ms(commits, 0.5), "commit_p99_ms": ms(commits, 0.99),
    });
    let mut text = format!(
        "{what:<8} {:>7} commits, p50 {:.1} ms, p99 {:.1} ms",
        commits.len(),
        ms(commits, 0.5),
        ms(commits, 0.99)
    );
    if let Some((booted, took)) = boots {
        value["boots"] = json!({
            "count": booted.took.len(), "seconds": took.as_secs_f64(), "p50_ms": ms(&booted.took, 0.5),
            "p99_ms": ms(&booted.took, 0.99), "max_ms": ms(&booted.took, 1.0), "told_to_wait": booted.told, "failed": booted.failed,
        });
        let of_boots = format!(
            "; {} boots in {:.1} s, p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms, {} told to wait, {} failed",
            booted.took.len(),
            took.as_secs_f64(),
            ms(&booted.took, 0.5),
            ms(&booted.took, 0.99),
            ms(&booted.took, 1.0),
            booted.told,
            booted.failed
        );
        text.push_str(&of_boots);
    }
    report.give(&value)?;
    report.say(&text)
}

/// Plays the storm.
pub(crate) async fn run(storm: &Storm<'_>, dir: &Path, report: &Report) -> Result<()> {
    let Fleet { nodes, .. } = storm.fleet;
    let (learners, together, nice) = (storm.learners, storm.together, storm.nice);
    let gives_way = if nice == 0 { String::new() } else { format!(", which give way by {nice},") };
    let what =
        format!("{nodes} nodes, {together} at a time, boot from {learners} learners{gives_way} while commits go on");
    report.begin(&what, &Machine::look(dir))?;
    let places = storm.places.map_or_else(String::new, |places| format!("[boot]\nplaces_max = {places}\n"));
    let cluster =
        Cluster::start_with(storm.program, dir, Size { voters: 3, learners, learners_nice: nice }, &places, None)
            .await?;
    let client = Client::connect(cluster.addresses(), Options::default()).await?;
    boots::declare(&client, storm.fleet).await?;
    let sequence = client.status(&cluster.addresses()[0]).await?.summary.sequence;
    let way = |address: &String| Way { address: address.clone(), tls: None, close: true };
    let learners: Arc<[Way]> = cluster.addresses()[3..].iter().map(way).collect();
    for (learner, address) in learners.iter().zip(&cluster.addresses()[3..]) {
        let began = Instant::now();
        while client.status(address).await?.summary.sequence < sequence {
            if began.elapsed() > Duration::from_mins(1) {
                bail!("the learner at {address} does not catch up");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        boots::ready(learner).await?;
    }
    client.close().await;
    let commits = Kind::Commit { bytes: 256, keys: 100, scope: Scope::VCluster("load".parse()?) };
    muster::declare_vcluster(&cluster, "load").await?;
    let most = load::run(&cluster, COMMITTERS, storm.seconds, &commits).await?;
    let pace = most.per_second() / 2.0;
    let every = Duration::from_secs_f64(f64::from(COMMITTERS) / pace.max(1.0));
    report.say(&format!("at most {:.0} commits a second; {pace:.0} a second from here on", most.per_second()))?;

    let begin = async || {
        let (stop, work) = (Arc::new(AtomicBool::new(false)), cluster.prepare(&commits).await?);
        Ok::<_, anyhow::Error>((stop.clone(), tokio::spawn(commits_at(work, every, stop))))
    };
    let (stop, quiet) = begin().await?;
    tokio::time::sleep(Duration::from_secs(storm.seconds)).await;
    stop.store(true, Ordering::Relaxed);
    let quiet = quiet.await??;
    tell(report, "quiet", &quiet, None)?;

    let (stop, during) = begin().await?;
    let began = Instant::now();
    let booted = boot_all(learners, |node| format!("/v1/boot/{}", node_name(node)), (nodes, together)).await?;
    let took = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    let during = during.await??;
    tell(report, "muster", &during, Some((&booted, took)))?;

    let Some(nginx) = storm.nginx else { return Ok(()) };
    let program = child::find(Some(nginx), "nginx")?;
    let length = usize::try_from(storm.fleet.overlay_bytes + storm.fleet.delta_bytes)?;
    let nginx = Nginx::start(&program, dir, length, (None, true), nice).await?;
    let (stop, beside) = begin().await?;
    let began = Instant::now();
    let booted = boot_all(Arc::from(vec![nginx.way().clone()]), |_| "/boot".to_owned(), (nodes, together)).await?;
    let took = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    let beside = beside.await??;
    tell(report, "nginx", &beside, Some((&booted, took)))?;
    report.say(&format!(
        "commits' p99 in the storm is {:.1} times the quiet one, and {:.1} times that beside nginx's storm",
        ms(&during, 0.99) / ms(&quiet, 0.99),
        ms(&during, 0.99) / ms(&beside, 0.99)
    ))
}
