//! How things are, told.

use super::{Boot, Machine};
use crate::agent::drift::explain;
use crate::agent::effects::Moment;
use crate::agent::host::Observed;
use crate::agent::ledger::Doing;
use crate::agent::operator::{Difference, EmergencyReport, FrozenReport, Phase, Report, WindowReport};
use alloc::vec::Vec;

impl Machine {
    /// How things are at a moment.
    #[must_use]
    pub fn report(&self, now: Moment) -> Report {
        let policy = self.policy();
        let drift = self.drift();
        Report {
            node: self.settings.node.clone(),
            vcluster: self.declared.as_ref().map(|declared| declared.vcluster.clone()),
            phase: self.phase(),
            mode: policy.mode,
            connected: self.link.is_up(),
            away: self.link.why().cloned(),
            sequence: self.ledger.declared.unwrap_or_default(),
            declared: self.declared.as_ref().map_or(0, |declared| declared.settings.len() as u64),
            differences: self.differences(now),
            unseen: self.unseen(),
            drift,
            explanation: explain(&policy, &drift),
            window: self.window_at(now),
            emergency: self.ledger.emergency.as_ref().map(|emergency| EmergencyReport {
                author: emergency.author.clone(),
                reason: emergency.reason.clone(),
                since: emergency.since,
                seconds_left: emergency.deadline.seconds_since(now.boot),
            }),
            spooled: self.spool.len() as u64,
            commit_unknown: self.ledger.commit.is_some(),
        }
    }

    /// What the agent is at.
    #[must_use]
    pub fn phase(&self) -> Phase {
        let frozen = self.ledger.window.as_ref().is_some_and(|window| window.frozen.is_some());
        match (&self.ledger.doing, self.boot) {
            (_, Boot::Waiting { .. } | Boot::Running) => Phase::Booting,
            (Some(Doing::Returning { .. }), Boot::Done) => Phase::RollingBack,
            _ if self.ledger.emergency.is_some() => Phase::Emergency,
            _ if frozen => Phase::Blocked,
            _ if self.ledger.changes.is_empty() => Phase::Committed,
            (Some(Doing::Setting { .. }) | None, Boot::Done) => Phase::Drifted,
        }
    }

    pub(super) fn window_report(&self) -> Option<WindowReport> {
        self.window_at(self.now)
    }

    fn window_at(&self, now: Moment) -> Option<WindowReport> {
        let window = self.ledger.window.as_ref()?;
        let at = window.frozen.as_ref().map_or(now.boot, |frozen| frozen.at);
        Some(WindowReport {
            number: window.number,
            seconds_left: window.deadline.seconds_since(at),
            seconds_open: now.boot.seconds_since(window.opened_at),
            drift: window.drift,
            frozen: window
                .frozen
                .as_ref()
                .map(|frozen| FrozenReport { consumers: frozen.consumers.clone(), errors: frozen.errors.clone() }),
        })
    }

    fn differences(&self, now: Moment) -> Vec<Difference> {
        let changes = self.ledger.changes.iter();
        let differing = changes.filter_map(|(key, change)| Some((key, change, self.difference(key)?)));
        let told = differing.map(|(key, change, observed)| Difference {
            key: key.clone(),
            declared: self.baseline(key).unwrap_or_default(),
            is_declared: self.declared_for(key).is_some(),
            observed,
            change: change.change,
            owner: change.owner.clone(),
            since: change.since,
            conflict_seconds: self.ledger.conflicts.get(key).map(|c| c.deadline.seconds_since(now.boot)),
            problem: change.problem.clone(),
        });
        told.collect()
    }

    fn unseen(&self) -> Vec<(crate::journal::key::Key, alloc::sync::Arc<str>)> {
        let managed = self.managed();
        let unseen = self.observed.iter().filter_map(|(key, observed)| match observed {
            Observed::Unseen(why) => Some((key.clone(), why.clone())),
            Observed::Value(_) | Observed::Absent => None,
        });
        unseen.filter(|(key, _)| managed.contains(key)).collect()
    }
}
