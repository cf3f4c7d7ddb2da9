//! A commit index that a replica knows is written with what it writes next: which configuration it knows to be in force after a
//! crash depends on it.
//!
//! It need not be synced for its own sake, and what stands between two batches (a purge, an install) may put it off by one.

use super::{Oracle, Violation, must};
use crate::event::Event;
use crate::world::Facts;
use muster_core::ids::{Index, ReplicaId};
use muster_core::log::LogRecord;
use std::collections::{BTreeMap, VecDeque};

/// So many batches later it must be written.
const BATCHES: usize = 3;

#[derive(Default)]
struct Process {
    /// The highest commit index handed to the log.
    written: Index,
    /// What it had published when each of its last batches was written.
    known: VecDeque<Index>,
}

#[derive(Default)]
pub(super) struct CommitIsWritten(BTreeMap<ReplicaId, Process>);

impl Oracle for CommitIsWritten {
    fn name(&self) -> &'static str {
        "a commit index that is known is written with what is written next"
    }
    fn source(&self) -> &'static str {
        "raft-rs rule 3; Raft dissertation 4.1: configurations; demand F2"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        match event {
            Event::Start { replica, hard_state, snapshot, .. } => {
                let snapshot = snapshot.as_ref().map_or(Index(0), |meta| meta.index);
                let written = hard_state.commit.max(snapshot);
                self.0.insert(*replica, Process { written, known: VecDeque::new() });
                Ok(())
            }
            Event::Append { replica, records, .. } => {
                let process = self.0.entry(*replica).or_default();
                for record in records.iter() {
                    match record {
                        LogRecord::HardState(state) => process.written = process.written.max(state.commit),
                        LogRecord::Reset { index, .. } => process.written = process.written.max(*index),
                        LogRecord::Entries(_) => {}
                    }
                }
                let view = facts.replicas.get(replica).and_then(|known| known.view.as_ref());
                process.known.push_back(view.map_or(Index(0), |view| view.status.commit));
                if process.known.len() <= BATCHES {
                    return Ok(());
                }
                let known = process.known.pop_front().unwrap_or_default();
                must(
                    process.written >= known,
                    || {
                        format!(
                            "replica {replica} to write the commit index {known}, which it knew {BATCHES} batches ago"
                        )
                    },
                    || format!("{} written", process.written),
                )
            }
            _ => Ok(()),
        }
    }
}
