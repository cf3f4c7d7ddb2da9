//! The gap that the leader's death leaves: from `kill -9` to the next commit that is acknowledged.
//!
//! A cluster is made for every death, so that no round inherits another's logs. One caller commits without a pause, through a
//! client that knows every member; the gap is the longest time between two of its acknowledgements around the death.

use crate::child;
use crate::etcd::Etcd;
use crate::load::{Kind, Side, Work};
use crate::machine::Machine;
use crate::muster::{self, Cluster};
use crate::report::{Report, median};
use crate::{Peer, Sides};
use anyhow::{Result, bail};
use muster_core::journal::key::Scope;
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the caller commits before and after the death.
const BEFORE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(20);

fn commits() -> Kind {
    Kind::Commit { bytes: 256, keys: 1_000, scope: Scope::Global }
}

/// Commits until `died` was followed by an acknowledgement of a commit begun after it; gives the gap.
async fn gap<W: Work>(work: W, mut kill: impl FnMut()) -> Result<Duration> {
    let mut memory = work.memory();
    let mut turn = 0;
    let begin = Instant::now();
    while begin.elapsed() < BEFORE {
        if let Err(problem) = work.once(0, turn, &mut memory).await {
            bail!("before any death: {problem}");
        }
        turn += 1;
    }
    kill();
    let died = Instant::now();
    loop {
        let outcome = work.once(0, turn, &mut memory).await;
        turn += 1;
        if outcome.is_ok() {
            return Ok(died.elapsed());
        }
        if died.elapsed() > PATIENCE {
            bail!("no commit was acknowledged within {} s: {outcome:?}", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1_000.0
}

/// Kills leaders, and tells every gap and the medians.
pub(crate) async fn run(sides: &Sides, rounds: u32, dir: &Path, report: &Report) -> Result<()> {
    report.begin("the gap that the leader's death leaves", &Machine::look(dir))?;
    let program = muster::program(sides.muster.as_deref())?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let home = tempfile::tempdir_in(dir)?;
        let mut cluster = Cluster::start(&program, home.path(), 3).await?;
        let leader = cluster.leader().await?;
        let work = cluster.prepare(&commits()).await?;
        let found = ms(gap(work, || cluster.kill(leader)).await?);
        drop(cluster);
        report.give(&json!({ "side": "muster", "round": round, "gap_ms": found }))?;
        report.say(&format!("muster  round {round:>3}  {found:>8.0} ms"))?;
        ours.push(found);
        if sides.against == Some(Peer::Etcd) {
            let home = tempfile::tempdir_in(dir)?;
            let program = child::find(sides.etcd.as_deref(), "etcd")?;
            let mut etcd = Etcd::start(&program, home.path(), 1).await?;
            let leader = etcd.leader().await?;
            let work = etcd.balanced(&commits()).await?;
            let found = ms(gap(work, || etcd.kill(leader)).await?);
            report.give(&json!({ "side": "etcd", "round": round, "gap_ms": found }))?;
            report.say(&format!("etcd    round {round:>3}  {found:>8.0} ms"))?;
            theirs.push(found);
        }
    }
    let (ours, theirs) = (median(ours), (!theirs.is_empty()).then(|| median(theirs)));
    report.give(&json!({ "muster_median_ms": ours, "etcd_median_ms": theirs }))?;
    report.say(&format!("\nmuster's median {ours:.0} ms"))?;
    match theirs {
        Some(theirs) => report.say(&format!("etcd's median {theirs:.0} ms; ours is {:.2} of it", ours / theirs)),
        None => Ok(()),
    }
}
