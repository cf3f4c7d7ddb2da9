//! In an emergency nothing rolls back by itself; it needs a reason, is one per node, and ends because somebody ended it.

use super::{Oracle, Violation, must};
use crate::agents::event::{AgentEvent, AgentId, By};
use crate::agents::known;
use crate::event::Event;
use crate::world::Facts;
use muster_core::agent::ledger::{Cause, Doing, Ledger};
use muster_core::agent::operator::{Reply, Request};
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct AgentEmergencies {
    /// Whether somebody asked for what ends an emergency since it began.
    asked: BTreeMap<AgentId, bool>,
}

/// What ends an emergency.
const fn ends(request: &Request) -> bool {
    matches!(request, Request::EmergencyEnd { .. } | Request::Commit { .. } | Request::Rollback { .. })
}

fn by_itself(ledger: &Ledger) -> bool {
    matches!(&ledger.doing, Some(Doing::Returning { cause: Cause::Expired | Cause::Conflict, .. }))
}

impl AgentEmergencies {
    fn on_saved(&mut self, facts: &Facts, agent: AgentId, ledger: &Ledger) -> Result<(), Violation> {
        let known = known::of(facts, agent);
        let was = known.previous.as_ref().and_then(|previous| previous.emergency.as_ref());
        match (&ledger.emergency, was) {
            (Some(emergency), was) => {
                must(
                    ledger.window.is_none() && !by_itself(ledger),
                    || format!("nothing to roll back by itself on a{agent} in its emergency"),
                    || format!("window {:?}, doing {:?}", ledger.window, ledger.doing),
                )?;
                if was.is_none_or(|was| was.event != emergency.event) {
                    let under_way = known.questions.values().any(|question| ends(&question.request));
                    self.asked.insert(agent, under_way || ledger.commit.is_some());
                }
            }
            (None, Some(was)) => must(
                self.asked.get(&agent).copied().unwrap_or(false),
                || format!("the emergency of a{agent} to last until somebody ends it"),
                || format!("it end by itself: {}", was.reason),
            )?,
            (None, None) => {}
        }
        Ok(())
    }

    fn told(facts: &Facts, agent: AgentId, reply: &Reply) -> Result<(), Violation> {
        let known = known::of(facts, agent);
        let Some(question) = &known.answered else { return Ok(()) };
        let Request::EmergencyStart { reason } = &*question.request else { return Ok(()) };
        let event = |ledger: &Ledger| ledger.emergency.as_ref().map(|emergency| emergency.event);
        let was = question.ledger.as_ref().and_then(|ledger| event(ledger));
        let twice = was.is_some() && was == known.ledger.as_ref().and_then(|ledger| event(ledger));
        must(
            (!reason.trim().is_empty() && !twice) || matches!(reply, Reply::Refused(_)),
            || format!("an emergency without a reason, or a second one, to be refused on a{agent}"),
            || format!("{reply:?}"),
        )
    }
}

impl Oracle for AgentEmergencies {
    fn name(&self) -> &'static str {
        "in an emergency nothing rolls back by itself, and it lasts until somebody ends it"
    }
    fn source(&self) -> &'static str {
        "demand P16; the reading \"emergency\""
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        let Event::Agent { agent, what, .. } = event else { return Ok(()) };
        match &**what {
            AgentEvent::Saved { ledger, .. } => self.on_saved(facts, *agent, ledger),
            AgentEvent::Asked { request, .. } if ends(request) => {
                self.asked.insert(*agent, true);
                Ok(())
            }
            AgentEvent::Told { reply: Some(reply), .. } => Self::told(facts, *agent, reply),
            AgentEvent::Changed { key, by: By::Agent, .. } => {
                let ledger = known::of(facts, *agent).ledger.as_ref();
                must(
                    !ledger.is_some_and(|ledger| ledger.emergency.is_some() && by_itself(ledger)),
                    || format!("{key} of a{agent} to stay as it is in the emergency"),
                    || "it be rolled back".into(),
                )
            }
            _ => Ok(()),
        }
    }
}
