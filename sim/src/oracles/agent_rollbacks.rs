//! A rollback touches no key that somebody uses, and no key of another owner unless it was asked to; and what is told of it, and of
//! a change, is what the host shows.

use super::{Oracle, Violation, must};
use crate::agents::event::{AgentEvent, AgentId, By};
use crate::agents::known;
use crate::event::Event;
use crate::world::Facts;
use muster_core::agent::ledger::{Cause, Doing, Ledger};
use muster_core::agent::operator::{Reply, Request, Returned, Which};
use muster_core::agent::value::agrees;
use muster_core::journal::key::{Key, Setting};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub(super) struct AgentRollbacks {
    /// Per agent, the keys that it asked about before its rollback, and whether somebody used them.
    asked: BTreeMap<AgentId, BTreeMap<Key, bool>>,
}

impl AgentRollbacks {
    fn changed(
        &self,
        facts: &Facts,
        agent: AgentId,
        key: &Key,
        (from, to): (&Setting, &Setting),
    ) -> Result<(), Violation> {
        let Some(ledger) = &known::of(facts, agent).ledger else { return Ok(()) };
        let is_return = match &ledger.doing {
            Some(Doing::Returning { .. }) => true,
            // Taken back where it was begun: a change that makes a key what it was has no effect, or is no change.
            Some(Doing::Setting { keys, .. }) => from != to && keys.get(key).is_some_and(|before| before.value == *to),
            None => false,
        };
        if !is_return {
            return Ok(());
        }
        let used = self.asked.get(&agent).and_then(|asked| asked.get(key));
        must(
            used == Some(&false),
            || format!("a{agent} to bring {key} back only after it found that nobody uses it"),
            || match used {
                Some(_) => "it bring it back although somebody does".into(),
                None => "it bring it back without asking".into(),
            },
        )
    }

    fn told(facts: &Facts, agent: AgentId, reply: &Reply) -> Result<(), Violation> {
        let known = known::of(facts, agent);
        let (Some(question), Some(node), Some(ledger)) = (&known.answered, &known.node, &known.ledger) else {
            return Ok(());
        };
        let is = |key: &Key| known.there.get(key).filter(|_| !known.was_tampered(key, question.step));
        let done = match reply {
            Reply::Returned(Returned::Done { keys }) | Reply::NotSet { taken_back: Returned::Done { keys }, .. } => {
                keys
            }
            Reply::Returned(Returned::Blocked { consumers }) => {
                let expected = || format!("a{agent} to name who blocks its rollback");
                return must(!consumers.is_empty(), expected, || "nobody".into());
            }
            Reply::Set { .. } => {
                let Request::Set { changes, .. } = &*question.request else { return Ok(()) };
                for (key, wanted) in changes {
                    let Some((there, ..)) = is(key) else { continue };
                    must(
                        agrees(key, wanted, &known::as_seen(there)),
                        || format!("{key} of a{agent} to be what was set: {wanted}"),
                        || format!("{there}"),
                    )?;
                }
                return Ok(());
            }
            _ => return Ok(()),
        };
        let declared = known::declared_to(facts, node, ledger);
        for key in done {
            let before = question.ledger.as_ref().and_then(|ledger| ledger.changes.get(key)).map(|c| c.before.clone());
            let baseline = declared.get(key).cloned().or(before).filter(|setting| *setting != Setting::Unset);
            let (Some(baseline), Some((there, ..))) = (baseline, is(key)) else { continue };
            // A change that was refused is taken back to what was there, not to what is declared.
            if matches!(reply, Reply::NotSet { .. }) {
                continue;
            }
            must(
                agrees(key, &baseline, &known::as_seen(there)),
                || format!("{key} of a{agent} to be back to {baseline}, as was told"),
                || format!("{there}"),
            )?;
        }
        Ok(())
    }
}

/// A rollback of one's own keys has no others.
fn owned(facts: &Facts, agent: AgentId, ledger: &Ledger) -> Result<(), Violation> {
    let known = known::of(facts, agent);
    let Some(Doing::Returning { cause: Cause::Asked(author), keys }) = &ledger.doing else { return Ok(()) };
    if known.previous.as_ref().is_some_and(|previous| previous.doing == ledger.doing) {
        return Ok(());
    }
    let mut asked = known.questions.values().filter(|question| {
        question.author == *author
            && matches!(&*question.request, Request::Rollback { which: Which::All | Which::Keys(_) })
    });
    if asked.next().is_some() {
        return Ok(());
    }
    let foreign: BTreeSet<&Key> =
        keys.iter().filter(|key| ledger.changes.get(*key).is_some_and(|change| !change.owner.is(author))).collect();
    must(
        foreign.is_empty(),
        || format!("a{agent} to roll back what is {}'s own", author.principal),
        || format!("{foreign:?} among it"),
    )
}

impl Oracle for AgentRollbacks {
    fn name(&self) -> &'static str {
        "a rollback touches nothing that is used or another's, and tells what the host shows"
    }
    fn source(&self) -> &'static str {
        "demand P17; the reading \"rollback with consumers\"; issue \"the node agent\": what commit-confirm gets wrong"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        let Event::Agent { agent, what, .. } = event else { return Ok(()) };
        match &**what {
            AgentEvent::Consumers { asked, found } => {
                let used = |key: &Key| found.iter().any(|consumer| consumer.key == *key);
                self.asked.insert(*agent, asked.iter().map(|key| (key.clone(), used(key))).collect());
            }
            AgentEvent::Start { .. } => {
                self.asked.remove(agent);
            }
            AgentEvent::Saved { ledger, .. } => {
                if ledger.doing.is_none() {
                    self.asked.remove(agent);
                }
                owned(facts, *agent, ledger)?;
            }
            AgentEvent::Changed { key, from, to, by: By::Agent } => self.changed(facts, *agent, key, (from, to))?,
            AgentEvent::Told { reply: Some(reply), .. } => Self::told(facts, *agent, reply)?,
            _ => {}
        }
        Ok(())
    }
}
