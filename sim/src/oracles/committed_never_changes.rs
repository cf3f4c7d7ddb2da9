//! What one replica considers committed is there for good: every replica that considers the position committed has the same
//! entry there, no log replaces it, and every leader of a later term has it.

use super::{Oracle, Violation, must};
use crate::event::Event;
use crate::world::{Facts, Terms};
use muster_core::ids::{Index, ReplicaId, Term};
use muster_core::log::LogRecord;
use muster_core::request::RaftRole;
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct CommittedNeverChanges {
    /// The terms of committed entries, from position 1.
    committed: BTreeMap<Index, Term>,
    /// How far each replica's commits were compared, by process.
    compared: BTreeMap<(ReplicaId, u64), Index>,
    led: BTreeMap<Term, ReplicaId>,
}

impl CommittedNeverChanges {
    fn compare(&mut self, replica: ReplicaId, log: &Terms, from: Index, to: Index) -> Result<(), Violation> {
        for index in from.0.max(log.start.0.0 + 1)..=to.0 {
            let Some(term) = log.at(Index(index)) else { continue };
            let known = *self.committed.entry(Index(index)).or_insert(term);
            must(
                known == term,
                || format!("the entry of term {known} at position {index}, which is committed"),
                || format!("replica {replica} consider one of term {term} committed there"),
            )?;
        }
        Ok(())
    }
}

impl Oracle for CommittedNeverChanges {
    fn name(&self) -> &'static str {
        "a committed entry never changes, and every later leader has it"
    }
    fn source(&self) -> &'static str {
        "Raft paper, figure 3: leader completeness, state machine safety"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        match event {
            Event::View { replica, run, view } => {
                let Some(known) = facts.replicas.get(replica) else { return Ok(()) };
                let status = &view.status;
                let from = self.compared.get(&(*replica, *run)).copied().unwrap_or_default();
                // What is applied is committed, whatever the published commit index says.
                let to = status.applied;
                if to > from {
                    // What an installed snapshot covers is not in this log; its records may not even be written yet.
                    let first = Index((from.0 + 1).max(status.first.0));
                    self.compare(*replica, &known.log, first, to)?;
                    self.compared.insert((*replica, *run), to);
                }
                if status.role == RaftRole::Leader && self.led.insert(status.term, *replica).is_none() {
                    for (index, term) in &self.committed {
                        if *term < status.term && *index > known.log.start.0 {
                            must(
                                known.log.at(*index) == Some(*term),
                                || {
                                    format!(
                                        "the leader of term {} to have the committed entry {index} of term {term}",
                                        status.term
                                    )
                                },
                                || format!("replica {replica} lead with {:?} there", known.log.at(*index)),
                            )?;
                        }
                    }
                }
                Ok(())
            }
            Event::Append { replica, records, .. } => {
                let Some(known) = facts.replicas.get(replica) else { return Ok(()) };
                for record in records.iter() {
                    let LogRecord::Entries(entries) = record else { continue };
                    let applied = known.view.as_ref().map_or(Index(0), |view| view.status.applied);
                    // Only a replacement matters: what is there now against what is committed, as far as this replica applied.
                    for entry in entries.iter().take_while(|entry| entry.index <= applied) {
                        let Some(term) = self.committed.get(&entry.index) else { continue };
                        let now = known.log.at(entry.index);
                        must(
                            now.is_none() || now == Some(*term),
                            || format!("position {}, applied by replica {replica}, to stay as it is", entry.index),
                            || format!("its log replace it by an entry of term {now:?}"),
                        )?;
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
