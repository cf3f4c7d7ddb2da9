//! What an agent made durable it finds again after any end: its changes, window, emergency, conflicts, and the events that wait.
//! And an agent stops for nothing but the end of its process.

use super::{Oracle, Violation, must};
use crate::agents::event::AgentEvent;
use crate::agents::known;
use crate::event::{Ending, Event};
use crate::world::Facts;

#[derive(Default)]
pub(super) struct AgentRemembers;

impl Oracle for AgentRemembers {
    fn name(&self) -> &'static str {
        "an agent finds again what it made durable, after any end"
    }
    fn source(&self) -> &'static str {
        "issue \"the node agent\", point 3; core::agent::ledger"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        let Event::Agent { agent, what, .. } = event else { return Ok(()) };
        match &**what {
            AgentEvent::Start { ledger, spool, .. } => {
                let known = known::of(facts, *agent);
                must(
                    *ledger == known.previous || (known.doubtful.is_some() && *ledger == known.doubtful),
                    || format!("a{agent} to find what it kept: {:?}", known.previous),
                    || format!("{ledger:?}"),
                )?;
                let Some(ledger) = ledger else { return Ok(()) };
                let spooled = &ledger.spool;
                let counts = |number: &u64| (spooled.delivered + 1..=spooled.last).contains(number);
                let waits = known.events.iter().filter(|(number, _)| counts(number));
                must(
                    waits.clone().map(|(_, event)| event).eq(spool.iter()),
                    || format!("a{agent} to find the events that wait: {:?}", waits.map(|w| w.0).collect::<Vec<_>>()),
                    || format!("{:?}", spool.iter().map(|event| event.number).collect::<Vec<_>>()),
                )
            }
            AgentEvent::Stop { why: Ending::Fault(problem), .. } => {
                Err(Violation::new(format!("a{agent}, whose disk does not fail, to go on"), problem.clone()))
            }
            AgentEvent::Stop { why: Ending::Ended, .. } => {
                Err(Violation::new(format!("a{agent} to go on until it is told to stop"), "it end"))
            }
            _ => Ok(()),
        }
    }
}
