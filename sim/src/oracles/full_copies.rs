//! A replica that says it is a full copy holds every record, byte by byte.

use super::{Oracle, Violation, must};
use crate::event::Event;
use crate::world::Facts;
use muster_core::ids::Seq;

#[derive(Default)]
pub(super) struct FullCopies;

impl Oracle for FullCopies {
    fn name(&self) -> &'static str {
        "a replica that says it is a full copy holds every record"
    }
    fn source(&self) -> &'static str {
        "design, history and snapshots; demand P12"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        let Event::Kept { replica, upto, records, problem } = event else { return Ok(()) };
        if let Some(problem) = problem {
            return Err(Violation::new(format!("replica {replica} to read its history"), problem.clone()));
        }
        must(
            records.len() as u64 == upto.0,
            || format!("replica {replica}, a full copy, to hold {upto} records"),
            || format!("{}", records.len()),
        )?;
        for (place, bytes) in records.iter().enumerate() {
            let sequence = Seq(place as u64 + 1);
            must(
                facts.committed.record(sequence).is_none_or(|known| known == bytes),
                || format!("record {sequence} on replica {replica} as it was committed"),
                || "other bytes".into(),
            )?;
        }
        Ok(())
    }
}
