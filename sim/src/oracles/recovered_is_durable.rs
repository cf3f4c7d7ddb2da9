//! What was durable comes back after a restart, and what comes back is durable: whoever starts counts all of it as persisted.
//!
//! A disk that was made to forget (wiped, put back to an old image, writes to other places) is excused. One whose syncs or
//! writes fail is not, nor is one with a rotten bit: there a replica must stop rather than go on with less.

use super::{Oracle, Violation, must};
use crate::event::Event;
use crate::world::{Facts, Terms};
use muster_core::ids::{Index, ReplicaId, Term};
use muster_core::log::{HardState, LogRecord};
use muster_core::storage::SnapshotMeta;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Default)]
struct Kept {
    hard_state: HardState,
    log: Terms,
}

#[derive(Default)]
pub(super) struct RecoveredIsDurable(BTreeMap<ReplicaId, Kept>);

fn hard_state_back(replica: ReplicaId, before: HardState, now: HardState) -> Result<(), Violation> {
    let vote = now.term > before.term || before.vote.0 == 0 || now.vote == before.vote;
    must(
        now.term >= before.term && vote && now.commit >= before.commit,
        || {
            format!(
                "replica {replica} to start in term {} with its vote for {} and commit {}, which were durable",
                before.term, before.vote, before.commit
            )
        },
        || format!("term {}, a vote for {} and commit {}", now.term, now.vote, now.commit),
    )
}

fn log_back(
    replica: ReplicaId,
    before: &Terms,
    now: &Terms,
    snapshot: Option<&Arc<SnapshotMeta>>,
) -> Result<(), Violation> {
    // A snapshot that was installed over another log takes its place.
    let conflicts = |meta: &Arc<SnapshotMeta>| {
        meta.index > before.start.0 && meta.index <= before.last() && before.at(meta.index) != Some(meta.term)
    };
    if snapshot.is_some_and(conflicts) {
        return Ok(());
    }
    for index in before.start.0.0.max(now.start.0.0) + 1..=before.last().0 {
        let (had, has) = (before.at(Index(index)).unwrap_or_default(), now.at(Index(index)));
        if has == Some(had) {
            continue;
        }
        // A later leader's entry may have reached the disk in its place, unacknowledged; what followed it is gone then.
        must(
            has.is_some_and(|term| term > had),
            || format!("replica {replica} to start with entry {index} of term {had}, which was durable"),
            || match has {
                Some(Term(term)) => format!("one of term {term}"),
                None => format!("a log that ends at {}", now.last()),
            },
        )?;
        break;
    }
    Ok(())
}

impl Oracle for RecoveredIsDurable {
    fn name(&self) -> &'static str {
        "what was durable is recovered, and what is recovered is durable"
    }
    fn source(&self) -> &'static str {
        "Raft paper, figure 2: persistent state; design, storage; simulation, disk"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        match event {
            Event::Durable { replica, records, .. } => {
                let kept = self.0.entry(*replica).or_default();
                kept.log.take(records);
                for record in records.iter() {
                    if let LogRecord::HardState(state) = record {
                        kept.hard_state = *state;
                    }
                }
                Ok(())
            }
            Event::Start { replica, hard_state, log_start, terms, snapshot, unsynced, .. } => {
                let log = Terms { start: *log_start, terms: terms.to_vec() };
                let before = self.0.insert(*replica, Kept { hard_state: *hard_state, log });
                if facts.forgets.contains(replica) {
                    return Ok(());
                }
                must(
                    unsynced.is_none(),
                    || format!("replica {replica} to make durable what it recovers before it counts"),
                    || format!("{} that a loss of power would change", unsynced.as_deref().unwrap_or_default()),
                )?;
                let (Some(before), Some(now)) = (before, self.0.get(replica)) else { return Ok(()) };
                hard_state_back(*replica, before.hard_state, now.hard_state)?;
                log_back(*replica, &before.log, &now.log, snapshot.as_ref())
            }
            _ => Ok(()),
        }
    }
}
