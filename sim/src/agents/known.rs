//! What is known of nodes and their agents, made from events alone. Oracles look at it.

use super::event::{AgentEvent, AgentId, By};
use super::vcluster;
use crate::event::Run;
use crate::world::Facts;
use muster_core::agent::event::Event as Spooled;
use muster_core::agent::host::{BootTime, Observed};
use muster_core::agent::ledger::Ledger;
use muster_core::agent::operator::Request;
use muster_core::ids::{NodeId, Seq, Time};
use muster_core::journal::entry::Author;
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::policy::Policy;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A question that waits for its answer.
#[derive(Clone, Debug)]
pub struct Question {
    /// Who asks.
    pub author: Author,
    /// What.
    pub request: Arc<Request>,
    /// At which event of the run.
    pub step: u64,
    /// What the agent remembered for sure then.
    pub ledger: Option<Arc<Ledger>>,
}

/// What is known of one node.
#[derive(Clone, Debug, Default)]
pub struct AgentFacts {
    /// Its name in the journal.
    pub node: Option<NodeId>,
    /// The newest process.
    pub run: Run,
    /// Since when it runs; none if it does not.
    pub up_since: Option<Time>,
    /// When the machine booted, in the run's time.
    pub booted_at: Time,
    /// Now, in the node's own time since it booted.
    pub boot_now: BootTime,
    /// What is remembered for sure.
    pub ledger: Option<Arc<Ledger>>,
    /// What was, before that.
    pub previous: Option<Arc<Ledger>>,
    /// What is handed to the disk and may be there or not.
    pub saving: Option<Arc<Ledger>>,
    /// What was on its way to the disk when the process before ended.
    pub doubtful: Option<Arc<Ledger>>,
    /// The events that were spooled, and are on their way into the spool.
    pub events: BTreeMap<u64, Spooled>,
    /// Per key that was ever changed: what it is, whose doing that was, and at which event of the run.
    pub there: BTreeMap<Key, (Setting, By, u64)>,
    /// When somebody last changed a key behind the agent's back.
    pub tampered: BTreeMap<Key, u64>,
    /// What was asked and not answered.
    pub questions: BTreeMap<u64, Question>,
    /// The question that was answered last.
    pub answered: Option<Question>,
}

impl AgentFacts {
    pub(crate) fn take(&mut self, now: Time, step: u64, boot: BootTime, event: &AgentEvent) {
        self.boot_now = boot;
        self.booted_at = Time(now.0.saturating_sub(boot.0));
        match event {
            AgentEvent::Start { run, node, ledger, .. } => {
                self.node = Some(node.clone());
                self.run = *run;
                self.up_since = Some(now);
                self.previous = std::mem::replace(&mut self.ledger, ledger.clone());
                self.doubtful = self.saving.take();
                let last = ledger.as_ref().map_or(0, |ledger| ledger.spool.last);
                self.events.retain(|number, _| *number <= last);
            }
            AgentEvent::Stop { .. } => self.up_since = None,
            AgentEvent::Reboot { .. } => {
                // Whatever did not outlast it is what the machine begins with.
                self.there.clear();
            }
            AgentEvent::Saving { ledger, events, .. } => {
                self.saving = Some(ledger.clone());
                self.events.extend(events.iter().map(|event| (event.number, event.clone())));
            }
            AgentEvent::Saved { ledger, .. } => {
                self.saving = None;
                self.previous = self.ledger.replace(ledger.clone());
            }
            AgentEvent::Changed { key, to, by, .. } => {
                self.there.insert(key.clone(), (to.clone(), *by, step));
                if *by == By::Somebody {
                    self.tampered.insert(key.clone(), step);
                }
            }
            AgentEvent::Asked { number, author, request } => {
                let question =
                    Question { author: author.clone(), request: request.clone(), step, ledger: self.ledger.clone() };
                self.questions.insert(*number, question);
            }
            AgentEvent::Told { number, .. } => self.answered = self.questions.remove(number),
            AgentEvent::Consumers { .. }
            | AgentEvent::Refused { .. }
            | AgentEvent::Held { .. }
            | AgentEvent::Shown { .. } => {}
        }
    }

    /// Whether somebody changed a key behind the agent's back at or after an event of the run.
    #[must_use]
    pub fn was_tampered(&self, key: &Key, since: u64) -> bool {
        self.tampered.get(key).is_some_and(|step| *step >= since)
    }
}

/// What the journal declares for a node, at a sequence, by records alone.
#[must_use]
pub fn declared(facts: &Facts, node: &NodeId, sequence: Seq) -> BTreeMap<Key, Setting> {
    let declared = &facts.committed.declared;
    let mut settings = declared.common(&vcluster(), sequence);
    for (key, setting) in declared.scope(&Scope::Node(node.clone()), sequence) {
        if setting != Setting::Unset {
            settings.insert(key, setting);
        }
    }
    settings.retain(|key, setting| !key.is_vcluster() && *setting != Setting::Unset);
    settings
}

/// What an agent that remembers a ledger takes for declared, by the journal's records.
#[must_use]
pub fn declared_to(facts: &Facts, node: &NodeId, ledger: &Ledger) -> BTreeMap<Key, Setting> {
    let mut settings = ledger.declared.map(|sequence| declared(facts, node, sequence)).unwrap_or_default();
    settings.extend(ledger.committed.iter().map(|(key, (_, setting))| (key.clone(), setting.clone())));
    settings
}

/// The policy in force for nodes with agents, at a sequence.
#[must_use]
pub fn policy(facts: &Facts, sequence: Seq) -> Policy {
    facts.committed.declared.policy(&vcluster(), sequence).map(|(_, policy)| policy.clone()).unwrap_or_default()
}

/// A setting as if it had been seen.
#[must_use]
pub fn as_seen(setting: &Setting) -> Observed {
    match setting {
        Setting::Value(value) => Observed::Value(value.clone()),
        Setting::Absent | Setting::Unset => Observed::Absent,
    }
}

/// The facts of the agent that an event is about.
#[must_use]
pub fn of(facts: &Facts, agent: AgentId) -> &AgentFacts {
    facts.agents.get(&agent).expect("an event about an agent makes it known")
}
