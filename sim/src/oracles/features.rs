//! The feature level in force never falls, and never is above what a member supports.

use super::{Oracle, Violation, must};
use crate::event::Event;
use crate::world::Facts;

#[derive(Default)]
pub(super) struct Features {
    level: u32,
}

impl Oracle for Features {
    fn name(&self) -> &'static str {
        "the feature level never falls, and every member supports it"
    }
    fn source(&self) -> &'static str {
        "design, versions"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        if !matches!(event, Event::View { .. }) || facts.committed.fresh.is_empty() {
            return Ok(());
        }
        let Some(state) = facts.committed.newest() else { return Ok(()) };
        let (before, level) = (self.level, state.feature_level());
        self.level = level;
        must(level >= before, || format!("feature level {before} or higher"), || format!("{level}"))?;
        // Counted here: the state's own account of it is a part of what is judged.
        let lowest = state.members.all().map(|member| member.feature_level).min().unwrap_or_default();
        must(
            level <= lowest,
            || format!("a feature level of at most {lowest}, which every member supports"),
            || format!("{level}"),
        )
    }
}
