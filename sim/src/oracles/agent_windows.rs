//! A change's owner and deadline are durable before its effect is there; a window is as long as the policy says, from the moment it
//! opened, in elapsed time; more drift never makes it longer; it ends then and not before, and soon after a restart if nobody was
//! there. While something is being set no window ends: what is set back may yet be taken back.
//!
//! Elapsed time is the run's own since the machine booted; no clock of the node enters.

use super::{Oracle, Violation, must};
use crate::agents::event::{AgentEvent, AgentId, By};
use crate::agents::known::{self, AgentFacts};
use crate::event::Event;
use crate::scenario::SECOND;
use crate::world::Facts;
use muster_core::agent::drift::{weight, window_seconds};
use muster_core::agent::host::BootTime;
use muster_core::agent::ledger::{Cause, Doing, Ledger, Window};
use muster_core::agent::operator::Request;
use muster_core::agent::value::agrees;
use muster_core::ids::Time;
use muster_core::journal::key::{Key, Setting};
use muster_core::journal::policy::{Mode, Policy};
use std::collections::BTreeMap;

/// How long after its decision something may become durable.
const SAVED_NANOS: u64 = 5 * SECOND;

/// How long after a window's end, or the agent's start, its rollback has begun; how long a commit's answer is waited for; and how
/// much longer it takes on a machine that dawdles.
const LATE_NANOS: u64 = 5 * SECOND;
const ANSWER_NANOS: u64 = 12 * SECOND;
const SLOW_NANOS: u64 = 20 * SECOND;

#[derive(Default)]
pub(super) struct AgentWindows {
    /// When each agent must have begun to roll back.
    due: BTreeMap<AgentId, Time>,
    soonest: Option<Time>,
    /// By how much the deadlines of each agent may still move later, because somebody asked.
    granted: BTreeMap<AgentId, u64>,
}

fn counts(policy: &Policy, key: &Key) -> bool {
    key.dimension().is_some_and(|dimension| weight(policy, dimension).0 > 0)
}

fn seconds(policy: &Policy, window: &Window) -> u64 {
    window_seconds(policy, window.drift.magnitude(&policy.weights)) * SECOND
}

impl AgentWindows {
    /// When a window's rollback must have begun at the latest, if it must.
    fn due(facts: &Facts, known: &AgentFacts, ledger: &Ledger) -> Option<Time> {
        let up_since = known.up_since?;
        let policy = known::policy(facts, ledger.declared?);
        let window = ledger.window.as_ref().filter(|window| window.frozen.is_none())?;
        let expires = |key: &&Key| !ledger.conflicts.contains_key(*key) && counts(&policy, key);
        let under_way = matches!(&ledger.doing, Some(Doing::Returning { .. }));
        if under_way || !ledger.changes.keys().any(|key| expires(&key)) {
            return None;
        }
        let slow = facts.faults.values().any(|what| what.contains("agent_host"));
        let late =
            LATE_NANOS + if ledger.commit.is_some() { ANSWER_NANOS } else { 0 } + if slow { SLOW_NANOS } else { 0 };
        Some(Time((known.booted_at.0 + window.deadline.0).max(up_since.0) + late))
    }

    fn plan(&mut self, facts: &Facts, agent: AgentId) {
        let known = known::of(facts, agent);
        match known.ledger.as_ref().and_then(|ledger| Self::due(facts, known, ledger)) {
            Some(due) => self.due.insert(agent, due),
            None => self.due.remove(&agent),
        };
        self.soonest = self.due.values().copied().min();
    }

    fn on_saved(&mut self, facts: &Facts, agent: AgentId, ledger: &Ledger) -> Result<(), Violation> {
        let known = known::of(facts, agent);
        let now = known.boot_now;
        let policy = known::policy(facts, ledger.declared.unwrap_or_default());
        let before = known.previous.as_ref().filter(|previous| previous.boot == ledger.boot);
        let old = before.and_then(|previous| previous.window.as_ref());
        if let Some(window) = &ledger.window {
            match old.filter(|old| old.number == window.number) {
                None => {
                    self.granted.insert(agent, 0);
                    opened(agent, now, window, &policy)?;
                }
                Some(old) => self.went_on(agent, now, old, window, &policy)?,
            }
        }
        // What is being set may yet be taken back, and then the same window goes on.
        let number = |window: &Window| window.number;
        let setting = matches!(&ledger.doing, Some(Doing::Setting { .. }));
        let guarded = policy.mode == Mode::Enforce && ledger.emergency.is_none();
        must(
            !setting || !guarded || old.is_none() || old.map(number) == ledger.window.as_ref().map(number),
            || format!("window {} of a{agent} to stay open while something is being set", old.map_or(0, number)),
            || format!("window {:?}", ledger.window.as_ref().map(number)),
        )?;
        let expires = |ledger: &Ledger| matches!(&ledger.doing, Some(Doing::Returning { cause: Cause::Expired, .. }));
        if expires(ledger) && !before.is_some_and(|previous| expires(previous)) {
            let deadline = ledger.window.as_ref().map(|window| window.deadline);
            must(
                deadline.is_some_and(|deadline| deadline <= now),
                || format!("a{agent} to leave its window open until {deadline:?}"),
                || format!("it roll back at {now:?}"),
            )?;
        }
        Ok(())
    }

    fn went_on(
        &mut self,
        agent: AgentId,
        now: BootTime,
        old: &Window,
        new: &Window,
        policy: &Policy,
    ) -> Result<(), Violation> {
        must(
            old.opened_at == new.opened_at,
            || format!("window {} of a{agent} to have opened at {:?}", old.number, old.opened_at),
            || format!("{:?}", new.opened_at),
        )?;
        let thaw = match (&old.frozen, &new.frozen) {
            (Some(frozen), None) => now.0.saturating_sub(frozen.at.0),
            (Some(_) | None, _) => 0,
        };
        let granted = self.granted.entry(agent).or_default();
        let later = new.deadline.0.saturating_sub(old.deadline.0).saturating_sub(thaw);
        must(
            later <= *granted,
            || format!("window {} of a{agent} to end by {:?} unless somebody extends it", old.number, old.deadline),
            || format!("it end at {:?}", new.deadline),
        )?;
        *granted -= later;
        // Brought nearer only by new drift, and then counted from that moment.
        must(
            new.deadline >= old.deadline
                || new.deadline.0 + SAVED_NANOS + thaw >= old_now(old, now) + seconds(policy, new),
            || format!("window {} of a{agent} to be as long as {:?} allows", old.number, new.drift),
            || format!("it end at {:?}, said at {now:?}", new.deadline),
        )
    }
}

/// From when on the length of a window counts that stands still, or does not.
fn old_now(old: &Window, now: BootTime) -> u64 {
    old.frozen.as_ref().map_or(now.0, |frozen| frozen.at.0.min(now.0))
}

fn opened(agent: AgentId, now: BootTime, window: &Window, policy: &Policy) -> Result<(), Violation> {
    must(
        window.opened_at <= now && window.opened_at.0 + SAVED_NANOS >= now.0,
        || format!("window {} of a{agent} to open about {now:?} after the machine booted", window.number),
        || format!("{:?}", window.opened_at),
    )?;
    let (least, most) = (seconds(policy, window), u64::from(policy.base_window_seconds) * SECOND);
    let lasts = window.deadline.0.saturating_sub(window.opened_at.0);
    must(
        (least..=most.max(least) + SAVED_NANOS).contains(&lasts),
        || format!("window {} of a{agent} to last {} s for {:?}", window.number, least / SECOND, window.drift),
        || format!("{} ms", lasts / 1_000_000),
    )
}

/// An agent changes a key of its node.
fn changed(facts: &Facts, agent: AgentId, key: &Key, to: &Setting) -> Result<(), Violation> {
    let known = known::of(facts, agent);
    let nothing = || Violation::new(format!("a{agent} to remember why it changes {key}"), "nothing durable about it");
    let ledger = known.ledger.as_ref().ok_or_else(nothing)?;
    let named = match &ledger.doing {
        None => false,
        Some(Doing::Setting { keys, .. }) => keys.contains_key(key),
        Some(Doing::Returning { keys, .. }) => keys.contains(key),
    };
    if !named {
        return Err(nothing());
    }
    let (Some(Doing::Setting { keys, .. }), Some(node)) = (&ledger.doing, &known.node) else { return Ok(()) };
    let policy = known::policy(facts, ledger.declared.unwrap_or_default());
    let declared = known::declared_to(facts, node, ledger);
    let before = ledger.changes.get(key).map(|change| change.before.clone());
    let baseline = declared.get(key).cloned().or(before).filter(|setting| *setting != Setting::Unset);
    let differs = baseline.is_some_and(|baseline| !agrees(key, &baseline, &known::as_seen(to)));
    let is_return = keys.get(key).is_some_and(|before| before.value == *to);
    let guarded = policy.mode == Mode::Enforce && ledger.emergency.is_none();
    must(
        !differs || is_return || !guarded || !counts(&policy, key) || ledger.window.is_some(),
        || format!("a deadline to be durable on a{agent} before {key} becomes {to}"),
        || "no window".into(),
    )
}

impl Oracle for AgentWindows {
    fn name(&self) -> &'static str {
        "a change's deadline is durable before its effect, and a window ends in elapsed time, then and not before"
    }
    fn source(&self) -> &'static str {
        "demands P13 to P15; the readings \"window\", \"new drift while a window is open\" and \"which clock\""
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        if let Event::Agent { agent, what, .. } = event {
            match &**what {
                AgentEvent::Saved { ledger, .. } => {
                    self.on_saved(facts, *agent, ledger)?;
                    self.plan(facts, *agent);
                }
                AgentEvent::Start { .. } | AgentEvent::Stop { .. } | AgentEvent::Reboot { .. } => {
                    self.plan(facts, *agent);
                }
                AgentEvent::Asked { request, .. } => {
                    if let Request::Extend { seconds } = &**request {
                        *self.granted.entry(*agent).or_default() += u64::from(*seconds) * SECOND;
                    }
                }
                AgentEvent::Changed { key, to, by: By::Agent, .. } => changed(facts, *agent, key, to)?,
                AgentEvent::Changed { .. }
                | AgentEvent::Saving { .. }
                | AgentEvent::Consumers { .. }
                | AgentEvent::Refused { .. }
                | AgentEvent::Held { .. }
                | AgentEvent::Told { .. }
                | AgentEvent::Shown { .. } => {}
            }
        }
        if self.soonest.is_none_or(|soonest| facts.now <= soonest) {
            return Ok(());
        }
        // What makes the machine slow may have begun since.
        let agents: Vec<AgentId> = self.due.keys().copied().collect();
        for agent in agents {
            self.plan(facts, agent);
        }
        let late = self.due.iter().find(|(_, due)| facts.now > **due);
        must(
            late.is_none(),
            || format!("a{} to begin its rollback by {}", late.map_or(0, |l| *l.0), late.map_or(Time(0), |l| *l.1)),
            || format!("a window that is still open at {}", facts.now),
        )
    }
}
