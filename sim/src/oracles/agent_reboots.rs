//! After a boot of its machine a node is what is declared for it: what was committed is back, what was not is gone, and the journal
//! says what was lost.

use super::{Oracle, Violation, must};
use crate::agents::event::{AgentEvent, AgentId};
use crate::agents::known;
use crate::event::Event;
use crate::world::Facts;
use muster_core::agent::ledger::{Cause, Doing, Ledger, Owner};
use muster_core::agent::value::agrees;
use muster_core::codec;
use muster_core::ids::Seq;
use muster_core::journal::entry::Record;
use muster_core::journal::key::{Key, Scope, Setting};
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct AgentReboots {
    /// What every agent had not committed when its machine booted, and the journal's end then.
    lost: BTreeMap<(AgentId, Key), (Setting, Seq)>,
}

fn boots(ledger: &Ledger) -> bool {
    matches!(&ledger.doing, Some(Doing::Returning { cause: Cause::Boot, .. }))
}

/// The boot is over: everything that is declared is there.
fn booted(facts: &Facts, agent: AgentId, ledger: &Ledger) -> Result<(), Violation> {
    let known = known::of(facts, agent);
    let Some(node) = &known.node else { return Ok(()) };
    let in_flux = |key: &Key| match &ledger.doing {
        Some(Doing::Returning { keys, .. }) => keys.contains(key),
        Some(Doing::Setting { keys, .. }) => keys.contains_key(key),
        None => false,
    };
    for (key, setting) in known::declared_to(facts, node, ledger) {
        // What was never touched since the machine booted is what it begins with, and was looked at.
        let Some((there, ..)) = known.there.get(&key) else { continue };
        // The journal may say something newer already, which is being brought about.
        if ledger.changes.contains_key(&key) || known.tampered.contains_key(&key) || in_flux(&key) {
            continue;
        }
        must(
            agrees(&key, &setting, &known::as_seen(there)),
            || format!("{key} of a{agent} to be {setting} after its boot, as is declared"),
            || format!("{there}"),
        )?;
    }
    Ok(())
}

impl Oracle for AgentReboots {
    fn name(&self) -> &'static str {
        "after a reboot what was committed is back, what was not is gone, and the journal says what was lost"
    }
    fn source(&self) -> &'static str {
        "demand P7; the reading \"which clock\"; issue \"the node agent\", point 2"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        let Event::Agent { agent, what, .. } = event else { return Ok(()) };
        let known = known::of(facts, *agent);
        match &**what {
            AgentEvent::Reboot { .. } => {
                let Some(ledger) = &known.ledger else { return Ok(()) };
                for (key, change) in &ledger.changes {
                    if change.owner != Owner::NotReached && change.reported {
                        let lost = (change.value.clone(), facts.committed.sequence());
                        self.lost.insert((*agent, key.clone()), lost);
                    }
                }
                Ok(())
            }
            AgentEvent::Saved { ledger, .. } => {
                let before = known.previous.as_ref();
                if before.is_some_and(|before| boots(before) && before.boot == ledger.boot) && !boots(ledger) {
                    booted(facts, *agent, ledger)?;
                    must(
                        ledger.window.is_none() || !ledger.changes.is_empty(),
                        || format!("no window of a{agent} to outlast the boot of its machine"),
                        || format!("{:?}", ledger.window),
                    )?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
    fn at_end(&mut self, facts: &Facts) -> Result<(), Violation> {
        let records: Vec<Record> = if self.lost.is_empty() {
            Vec::new()
        } else {
            facts.committed.records.iter().filter_map(|bytes| codec::decode_record(bytes).ok()).collect()
        };
        for ((agent, key), (value, after)) in &self.lost {
            let Some(node) = facts.agents.get(agent).and_then(|known| known.node.clone()) else { continue };
            let scope = Scope::Node(node.clone());
            let told = records.iter().any(|record| match record {
                Record::Entry(entry) => {
                    entry.sequence > *after
                        && entry.scope == scope
                        && entry.delta.iter().any(|change| change.key == *key)
                }
                Record::Operation(_) => false,
            });
            // Declared meanwhile, by a commit whose answer came too late, say: nothing was lost.
            let declared = known::declared(facts, &node, facts.committed.sequence());
            let kept = declared.get(key).is_some_and(|setting| agrees(key, setting, &known::as_seen(value)));
            must(
                told || kept,
                || format!("the journal to say that a{agent} lost {key} = {value} at a reboot"),
                || format!("nothing about it after {after}"),
            )?;
        }
        Ok(())
    }
}
