//! Terms never go back and a vote is never taken back, across restarts too.

use super::{Oracle, Violation, must};
use crate::event::Event;
use crate::world::Facts;
use muster_core::ids::ReplicaId;
use muster_core::log::{HardState, LogRecord};
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct TermsAndVotes(BTreeMap<ReplicaId, HardState>);

impl TermsAndVotes {
    fn next(&mut self, replica: ReplicaId, next: HardState, facts: &Facts) -> Result<(), Violation> {
        let last = self.0.entry(replica).or_insert(next);
        let before = *last;
        *last = next;
        if facts.forgets.contains(&replica) {
            return Ok(());
        }
        must(
            next.term >= before.term,
            || format!("replica {replica} to stay in term {} or later", before.term),
            || format!("term {}", next.term),
        )?;
        let kept = next.term > before.term || before.vote.0 == 0 || next.vote == before.vote;
        must(
            kept,
            || format!("replica {replica} to keep its vote for {} in term {}", before.vote, before.term),
            || format!("a vote for {}", next.vote),
        )
    }
}

impl Oracle for TermsAndVotes {
    fn name(&self) -> &'static str {
        "a replica's term never goes back and its vote stays, across restarts"
    }
    fn source(&self) -> &'static str {
        "Raft paper, figure 2: persistent state; demand F2"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        match event {
            Event::Durable { replica, records, .. } => {
                for record in records.iter() {
                    if let LogRecord::HardState(state) = record {
                        self.next(*replica, *state, facts)?;
                    }
                }
                Ok(())
            }
            Event::Start { replica, hard_state, .. } => self.next(*replica, *hard_state, facts),
            _ => Ok(()),
        }
    }
}
