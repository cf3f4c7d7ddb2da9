//! An error-level log line that no fault explains fails the run.

use super::{Oracle, Violation, must};
use crate::event::Event;
use crate::world::Facts;

#[derive(Default)]
pub(super) struct Hygiene;

impl Oracle for Hygiene {
    fn name(&self) -> &'static str {
        "every error in the log is explained by a fault"
    }
    fn source(&self) -> &'static str {
        "style guide: `error` means we stop"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        let Event::Log { error: true, line } = event else { return Ok(()) };
        let explained = !facts.disk_faults.is_empty() && line.contains("storage failed");
        must(explained, || "no error without a disk fault".into(), || line.to_string())
    }
}
