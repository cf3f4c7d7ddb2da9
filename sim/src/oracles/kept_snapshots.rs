//! Every snapshot that is kept is whole, and the log goes on from the oldest of them: the state can be made again from any.

use super::{Oracle, Violation, must};
use crate::event::Event;
use crate::world::Facts;

#[derive(Default)]
pub(super) struct KeptSnapshots;

impl Oracle for KeptSnapshots {
    fn name(&self) -> &'static str {
        "every kept snapshot is whole, and the log goes on from the oldest"
    }
    fn source(&self) -> &'static str {
        "the reading \"any snapshot plus subsequent WAL\"; demand P12"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        let Event::Inspected { replica, log_start, snapshots, problems } = event else { return Ok(()) };
        must(
            problems.is_empty(),
            || format!("replica {replica}'s log, snapshots and history to be whole"),
            || problems.join("; "),
        )?;
        let Some(oldest) = snapshots.first() else {
            // Who was admitted a moment ago has nothing yet.
            let view = facts.replicas.get(replica).and_then(|known| known.view.as_ref());
            if view.is_some_and(|view| view.status.applied.0 == 0) {
                return Ok(());
            }
            return Err(Violation::new(format!("replica {replica} to keep a snapshot"), "none"));
        };
        must(
            log_start <= oldest,
            || format!("replica {replica}'s log to go on from its oldest snapshot, at {oldest}"),
            || format!("it begin after {log_start}"),
        )
    }
}
