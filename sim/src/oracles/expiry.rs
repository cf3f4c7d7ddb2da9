//! What is temporary expires by replicated time: once, never before its time to live has passed, and soon after it has. And
//! replicated time never runs ahead of real time, unless a clock was made to.

use super::{Oracle, Violation, must};
use crate::event::Event;
use crate::world::Facts;
use muster_core::ids::{Seq, Time};
use std::collections::BTreeSet;

/// How long something may be due while there is a leader, in nanoseconds.
const LATE_NANOS: u64 = 10_000_000_000;

#[derive(Default)]
pub(super) struct Expiry {
    judged: BTreeSet<Seq>,
    /// Since when something has been due.
    due_since: Option<Time>,
    /// A clock gained time.
    fast: bool,
}

impl Oracle for Expiry {
    fn name(&self) -> &'static str {
        "what is temporary expires by replicated time, never early and not much later"
    }
    fn source(&self) -> &'static str {
        "the readings \"TTL\" and \"what expires, when\"; design, proposal envelope"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        if let Event::Fault { begins: true, what, .. } = event {
            self.fast |= what.contains("drift_ppm = ") && !what.contains("drift_ppm = 0,");
        }
        if !matches!(event, Event::View { .. }) || facts.committed.fresh.is_empty() {
            return Ok(());
        }
        let Some(state) = facts.committed.newest() else { return Ok(()) };
        must(
            self.fast || state.age().0 <= facts.now.0 / 1_000,
            || format!("replicated time to be at most {}, for so long there was somebody to count it", facts.now),
            || format!("age {}", state.age()),
        )?;
        let due = state.next_due().is_some_and(|due| due <= state.age());
        self.due_since = due.then(|| self.due_since.unwrap_or(facts.now));
        for (entry, expiries) in &facts.committed.declared.expired {
            for (age, by) in expiries {
                if !self.judged.insert(*by) {
                    continue;
                }
                let Some((recorded, seconds)) = facts.committed.declared.temporary.get(entry) else {
                    return Err(Violation::new(
                        format!("record {by} to expire an entry that has a time to live"),
                        format!("it expire {entry}"),
                    ));
                };
                let due = recorded.plus_seconds(u64::from(*seconds));
                must(
                    *age >= due,
                    || format!("entry {entry} of age {recorded} to live {seconds} s, until {due}"),
                    || format!("record {by} expire it at age {age}"),
                )?;
            }
        }
        Ok(())
    }
    fn at_end(&mut self, facts: &Facts) -> Result<(), Violation> {
        let since = self.due_since.filter(|since| facts.now.0 - since.0 > LATE_NANOS);
        must(
            since.is_none(),
            || "what is due to expire soon, once there is a leader".into(),
            || format!("something due since {}, now {}", since.unwrap_or_default(), facts.now),
        )
    }
}
