//! What happened on a node is in the journal once, in the order in which it happened, and nothing is there that the node does not
//! remember. What differs is told before the journal's newer word is accepted; a key that was changed on both sides stands still
//! until its grace period is over, and then the lost value is in the journal.

use super::{Oracle, Violation, must};
use crate::agents::event::{AgentEvent, AgentId, By};
use crate::agents::known;
use crate::event::Event;
use crate::world::Facts;
use muster_core::agent::event::{Event as Spooled, Fact};
use muster_core::agent::ledger::{Cause, Doing, Ledger, Owner};
use muster_core::codec;
use muster_core::ids::Seq;
use muster_core::journal::entry::{EntryType, Record};
use muster_core::journal::key::{Key, Scope, Setting};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
struct Told {
    /// Where each event was recorded.
    events: BTreeMap<u64, Seq>,
    /// The values that were told to differ.
    drift: BTreeSet<(Key, Setting)>,
    /// The values that were told to be gone.
    undone: BTreeSet<(Key, Setting)>,
    /// The values that gave way to the journal's.
    lost: BTreeSet<(Key, Setting)>,
}

#[derive(Default)]
pub(super) struct AgentJournal {
    read: usize,
    told: BTreeMap<AgentId, Told>,
}

/// Whether a record can only be what an agent said.
fn is_an_agents(record: &Record) -> bool {
    match record {
        Record::Entry(entry) => matches!(entry.entry_type, EntryType::DriftDetected | EntryType::ServiceLifecycle),
        Record::Operation(_) => false,
    }
}

impl AgentJournal {
    fn read(&mut self, facts: &Facts) -> Result<(), Violation> {
        let records = &facts.committed.records;
        for bytes in records.get(self.read..).unwrap_or_default() {
            self.read += 1;
            let Ok(record) = codec::decode_record(bytes) else { continue };
            let Scope::Node(node) = record.scope().clone() else { continue };
            let agent = facts.agents.iter().find(|(_, known)| known.node.as_ref() == Some(&node));
            let Some((agent, known)) = agent else { continue };
            let told = self.told.entry(*agent).or_default();
            let mut fits = known.events.values().filter(|event| event.is_recorded_by(&node, &record));
            let event: Option<&Spooled> = fits.next();
            let at = record.sequence();
            must(
                event.is_some() || !is_an_agents(&record),
                || format!("record {at} to be of an event that a{agent} remembers"),
                || format!("{record:?}"),
            )?;
            if let Record::Entry(entry) = &record {
                let values = entry.delta.iter();
                match entry.entry_type {
                    EntryType::DriftDetected => {
                        told.drift.extend(values.map(|change| (change.key.clone(), change.next.clone())));
                    }
                    EntryType::Rollback => {
                        told.undone.extend(values.map(|change| (change.key.clone(), change.previous.clone())));
                    }
                    _ => {}
                }
            }
            let Some(event) = event else { continue };
            let before = told.events.insert(event.number, at);
            must(
                before.is_none(),
                || format!("event {} of a{agent} to be recorded once, at {}", event.number, before.unwrap_or_default()),
                || format!("it recorded again at {at}"),
            )?;
            let later = told.events.range(event.number + 1..).next();
            must(
                later.is_none(),
                || format!("event {} of a{agent} to be recorded before the later ones", event.number),
                || format!("event {:?} recorded before it", later.map(|(number, _)| number)),
            )?;
        }
        Ok(())
    }

    /// A newer word of the journal is accepted.
    fn accepted(&self, facts: &Facts, agent: AgentId, ledger: &Ledger) -> Result<(), Violation> {
        let known = known::of(facts, agent);
        let Some(before) = known.previous.as_ref().filter(|before| before.boot == ledger.boot) else { return Ok(()) };
        let boots = |ledger: &Ledger| matches!(&ledger.doing, Some(Doing::Returning { cause: Cause::Boot, .. }));
        if before.declared.is_none() || before.declared >= ledger.declared || boots(before) || boots(ledger) {
            return Ok(());
        }
        for (key, change) in &before.changes {
            let still = ledger.changes.get(key).is_some_and(|now| now.value == change.value);
            if change.owner == Owner::NotReached || !still {
                continue;
            }
            let told =
                self.told.get(&agent).is_some_and(|told| told.drift.contains(&(key.clone(), change.value.clone())));
            must(
                told,
                || format!("a{agent} to tell that {key} is {} before it accepts {:?}", change.value, ledger.declared),
                || "nothing in the journal about it".into(),
            )?;
        }
        Ok(())
    }

    fn changed(&mut self, facts: &Facts, agent: AgentId, key: &Key, from: &Setting) -> Result<(), Violation> {
        let known = known::of(facts, agent);
        let Some(ledger) = &known.ledger else { return Ok(()) };
        let Some(Doing::Returning { cause, .. }) = &ledger.doing else { return Ok(()) };
        let conflict = ledger.conflicts.get(key);
        match cause {
            Cause::Declared | Cause::Expired => must(
                conflict.is_none(),
                || format!("{key} of a{agent}, which was changed on both sides, to stand still"),
                || format!("it brought back because {cause:?}"),
            ),
            Cause::Conflict => {
                let over = conflict.is_none_or(|conflict| conflict.deadline <= known.boot_now);
                must(
                    over,
                    || {
                        format!(
                            "{key} of a{agent} to stand still until {:?}",
                            conflict.map(|conflict| conflict.deadline)
                        )
                    },
                    || format!("it given up at {:?}", known.boot_now),
                )?;
                self.told.entry(agent).or_default().lost.insert((key.clone(), from.clone()));
                Ok(())
            }
            Cause::Boot | Cause::Asked(_) | Cause::Unfinished => Ok(()),
        }
    }
}

impl Oracle for AgentJournal {
    fn name(&self) -> &'static str {
        "what happens on a node is told once and in order, before the journal's word is accepted, and conflicts stand still"
    }
    fn source(&self) -> &'static str {
        "demand P6; design, agent; issue \"the node agent\", point 4 and per-key conflicts"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        if facts.agents.is_empty() {
            return Ok(());
        }
        match event {
            Event::View { .. } => self.read(facts),
            Event::Agent { agent, what, .. } => match &**what {
                AgentEvent::Saved { ledger, .. } => self.accepted(facts, *agent, ledger),
                AgentEvent::Changed { key, from, by: By::Agent, .. } => self.changed(facts, *agent, key, from),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
    fn at_end(&mut self, facts: &Facts) -> Result<(), Violation> {
        if facts.agents.is_empty() {
            return Ok(());
        }
        self.read(facts)?;
        let nothing = Told::default();
        for (agent, known) in &facts.agents {
            let told = self.told.get(agent).unwrap_or(&nothing);
            let Some(ledger) = &known.ledger else { continue };
            for (number, event) in known.events.range(..=ledger.spool.delivered) {
                let may_miss = matches!(
                    event.fact,
                    // The journal may refuse what ended there already, and a state leaves no record.
                    Fact::State { .. } | Fact::EmergencyStart { .. } | Fact::EmergencyEnd { .. }
                );
                must(
                    may_miss || told.events.contains_key(number),
                    || format!("event {number} of a{agent}, which was delivered, in the journal: {event:?}"),
                    || "no record of it".into(),
                )?;
            }
            for (key, value) in &told.lost {
                must(
                    told.undone.contains(&(key.clone(), value.clone())),
                    || format!("the lost value {value} of {key} on a{agent} in the journal"),
                    || "no record of it".into(),
                )?;
            }
        }
        Ok(())
    }
}
