//! A boot storm: every node boots, in time; and commits go on meanwhile, not slower beyond a stated factor.

use super::{Oracle, Violation, must};
use crate::event::{Event, Told};
use crate::storm::FIRST_CLIENT;
use crate::world::Facts;

/// As few commits as this say nothing about how long they take.
const COMMITS_MIN: u64 = 20;

#[derive(Default)]
pub(super) struct Storm;

impl Oracle for Storm {
    fn name(&self) -> &'static str {
        "in a boot storm every node boots in time, and commits are not slowed beyond a stated factor"
    }
    fn source(&self) -> &'static str {
        "demands P8, D4; simulation, oracles: boot"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        let Event::Answer { client, told, .. } = event else { return Ok(()) };
        let Some(storm) = facts.storm.as_ref().filter(|_| *client >= FIRST_CLIENT) else { return Ok(()) };
        let why = match told {
            Told::Booted { booted, .. } => match &booted.plan {
                Ok(_) => return Ok(()),
                Err(refusal) => refusal.to_string(),
            },
            Told::Nothing(why) => why.clone(),
            Told::Outcome(_) | Told::Head { .. } | Told::Records { .. } => "something else".to_owned(),
        };
        let number = client - FIRST_CLIENT;
        Err(Violation::new(
            format!("node {number} of {} to boot within {} ms", storm.storm.nodes, storm.storm.patience / 1_000_000),
            format!("it told {why}, {} booted", storm.booted),
        ))
    }
    fn at_end(&mut self, facts: &Facts) -> Result<(), Violation> {
        let Some(storm) = &facts.storm else { return Ok(()) };
        must(
            storm.is_over(),
            || format!("all {} nodes to boot", storm.storm.nodes),
            || format!("{} did; the one that waits longest: {:?}", storm.booted, storm.longest()),
        )?;
        for (commits, when) in [(&storm.before, "before"), (&storm.during, "during")] {
            must(
                commits.len() >= COMMITS_MIN,
                || format!("at least {COMMITS_MIN} commits {when} the storm, to compare"),
                || format!("{}", commits.len()),
            )?;
        }
        let (before, during) = (storm.before.value_at_quantile(0.75), storm.during.value_at_quantile(0.75));
        must(
            during <= before * storm.storm.commits_slower,
            || {
                format!(
                    "three of four commits during the storm within {} times the {before} us of before",
                    storm.storm.commits_slower
                )
            },
            || format!("{during} us"),
        )
    }
}
