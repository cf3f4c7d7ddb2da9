//! How a story with agents must end: nothing breaks any more and nobody asks, so every node becomes what is declared, or its agent
//! says why it is not.
//!
//! Windows still expire meanwhile. Whoever is blocked or in an emergency is then told to roll back, and must be able to.

use super::event::{AgentEvent, AgentId};
use super::operators::{ask_patiently, author};
use super::{harm, start, tell};
use crate::oracles::Violation;
use crate::scenario::{MS, SECOND};
use crate::world::World;
use muster_core::agent::operator::{Phase, Report, Request, Which};
use muster_core::journal::policy::Mode;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a node may need beyond its longest window: a commit's answer that is waited for, the journal's pauses.
const MARGIN: u64 = 60 * SECOND;

fn report(world: &World, agent: AgentId) -> Option<Arc<Report>> {
    world.fleet.handle(agent).map(|handle| handle.published().report.clone())
}

/// Whether a node has come to rest: what is declared, or a reason that its agent tells.
fn rests(report: &Report) -> bool {
    let is_told = match report.phase {
        Phase::Committed => report.differences.is_empty(),
        Phase::Emergency | Phase::Blocked => true,
        // Nothing is brought back by itself there.
        Phase::Drifted => report.mode != Mode::Enforce,
        Phase::Booting | Phase::RollingBack => false,
    };
    is_told && report.connected && report.spooled == 0 && !report.commit_unknown
}

/// What keeps a node from resting, in words.
fn why(report: Option<&Report>) -> String {
    let Some(report) = report else { return "is not there".into() };
    let keys: Vec<&str> = report.differences.iter().map(|difference| difference.key.as_str()).collect();
    format!(
        "is {} at {}, differs in [{}], window {:?}, {} events wait, connected {}, commit unknown {}",
        report.phase.word(),
        report.sequence,
        keys.join(" "),
        report.window.as_ref().map(|window| (window.seconds_left, window.frozen.is_some())),
        report.spooled,
        report.connected,
        report.commit_unknown,
    )
}

async fn until(world: &Arc<World>, nanos: u64, is_so: impl Fn() -> bool) -> bool {
    let end = world.now().0 + nanos;
    while !world.is_over() && !is_so() {
        if world.now().0 >= end {
            return false;
        }
        world.agenda.sleep(100 * MS).await;
    }
    true
}

/// Waits until all nodes rest, takes back what was told to be blocked or an emergency, and shows how all are.
///
/// # Errors
/// What does not come to rest.
pub(crate) async fn all(world: &Arc<World>) -> Result<(), Violation> {
    let Some(story) = &world.scenario.agents else { return Ok(()) };
    world.fleet.quiet.store(true, Ordering::Relaxed);
    let agents = world.fleet.agents();
    for agent in &agents {
        harm::forget(world, *agent);
        start(world, *agent);
    }
    let stall = |what: &str| {
        let restless = agents.iter().filter_map(|agent| {
            let report = report(world, *agent);
            let fine = report.as_ref().is_some_and(|report| rests(report));
            (!fine).then(|| format!("a{agent} {}", why(report.as_deref())))
        });
        Violation::new(what, restless.collect::<Vec<_>>().join("; "))
    };
    if !until(world, MARGIN, || world.fleet.busy.load(Ordering::Relaxed) == 0).await {
        return Err(stall("every request to an agent to end"));
    }
    let patience = u64::from(story.base_window_seconds) * SECOND + story.grace + MARGIN;
    let resting = || agents.iter().all(|agent| report(world, *agent).is_some_and(|report| rests(&report)));
    if !until(world, patience, resting).await {
        return Err(stall("every node to be what is declared, or its agent to say why not"));
    }
    for agent in &agents {
        let phase = report(world, *agent).map(|report| (report.phase, report.differences.is_empty()));
        let request = match phase {
            Some((Phase::Blocked, _) | (Phase::Emergency, false)) => Request::Rollback { which: Which::All },
            Some((Phase::Emergency, true)) => Request::EmergencyEnd { force: false },
            Some(_) | None => continue,
        };
        drop(ask_patiently(world, *agent, &author(1), &request).await);
    }
    let declared = |report: &Report| rests(report) && !matches!(report.phase, Phase::Blocked | Phase::Emergency);
    let all_declared = || agents.iter().all(|agent| report(world, *agent).is_some_and(|report| declared(&report)));
    if !until(world, patience, all_declared).await {
        let what = "every node to be what is declared once nobody uses it and its emergency was ended";
        let restless = agents.iter().map(|agent| format!("a{agent} {}", why(report(world, *agent).as_deref())));
        return Err(Violation::new(what, restless.collect::<Vec<_>>().join("; ")));
    }
    for agent in agents {
        if let Some(report) = report(world, agent) {
            tell(world, agent, AgentEvent::Shown { report });
        }
    }
    Ok(())
}
