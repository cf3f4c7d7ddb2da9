//! What a leader considers committed is durable on a quorum of the configuration in force, of both halves while it is joint.

use super::{Oracle, Violation, must};
use crate::event::Event;
use crate::world::Facts;
use muster_core::ids::{Index, ReplicaId, Term};
use muster_core::log::Configuration;
use muster_core::request::RaftRole;
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct DurableOnAQuorum {
    judged: Index,
    /// What each process published last: a commit may be decided under that configuration and published with the next, by a
    /// leader that steps down in the same step because the next one has no vote for it.
    before: BTreeMap<ReplicaId, (u64, RaftRole, Configuration)>,
}

fn holds(facts: &Facts, who: ReplicaId, index: Index, term: Term) -> bool {
    facts.replicas.get(&who).is_some_and(|known| {
        // A snapshot covers what lies before its position.
        known.durable.at(index) == Some(term) || known.durable.start.0 > index
    })
}

fn quorum(facts: &Facts, configuration: &Configuration, index: Index, term: Term) -> bool {
    [&configuration.voters, &configuration.voters_outgoing]
        .into_iter()
        .filter(|voters| !voters.is_empty())
        .all(|voters| voters.iter().filter(|who| holds(facts, **who, index, term)).count() > voters.len() / 2)
}

impl Oracle for DurableOnAQuorum {
    fn name(&self) -> &'static str {
        "what is committed is durable on a quorum of the configuration in force"
    }
    fn source(&self) -> &'static str {
        "Raft paper 5.3, 5.4.2; Raft dissertation 10.2.1; demand F2"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        let Event::View { replica, run, view } = event else { return Ok(()) };
        let status = &view.status;
        let now = (*run, status.role, status.configuration.clone());
        let before = self.before.insert(*replica, now).filter(|(known, ..)| known == run);
        let led = before.as_ref().is_some_and(|(_, role, _)| *role == RaftRole::Leader);
        if !(led || status.role == RaftRole::Leader) || status.commit <= self.judged || !facts.forgets.is_empty() {
            return Ok(());
        }
        self.judged = status.commit;
        let Some(log) = facts.replicas.get(replica).map(|known| &known.log) else { return Ok(()) };
        let Some(term) = log.at(status.commit) else { return Ok(()) };
        let good = |configuration: &Configuration| quorum(facts, configuration, status.commit, term);
        must(
            good(&status.configuration) || before.is_some_and(|(_, _, configuration)| good(&configuration)),
            || format!("position {} of term {term} durable on a quorum", status.commit),
            || {
                let have: Vec<u64> = facts
                    .replicas
                    .keys()
                    .filter(|who| holds(facts, **who, status.commit, term))
                    .map(|who| who.0)
                    .collect();
                format!(
                    "it on {have:?} of {:?} {:?}",
                    status.configuration.voters, status.configuration.voters_outgoing
                )
            },
        )
    }
}
