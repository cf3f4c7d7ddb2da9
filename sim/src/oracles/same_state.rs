//! Replicas that applied the same have the same state: sequence, chain head, replicated time and configuration at every
//! published position, the digest of everything at every snapshot, and at the end.

use super::{Oracle, Violation, must};
use crate::event::Event;
use crate::world::Facts;
use muster_core::ids::{Age, Digest, Index, ReplicaId, Seq};
use muster_core::log::Configuration;
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct SameState {
    at: BTreeMap<Index, (Seq, Digest, Age)>,
    whole: BTreeMap<Index, Digest>,
    configured: BTreeMap<Index, Configuration>,
    /// How far each process came.
    reached: BTreeMap<(ReplicaId, u64), (Index, Index)>,
}

impl Oracle for SameState {
    fn name(&self) -> &'static str {
        "replicas that applied the same have the same state, and never go back"
    }
    fn source(&self) -> &'static str {
        "Raft paper, figure 3: state machine safety; apply is a function"
    }
    fn on_event(&mut self, _: &Facts, event: &Event) -> Result<(), Violation> {
        match event {
            Event::View { replica, run, view } => {
                let status = &view.status;
                let state = (view.state.sequence(), view.state.head(), view.state.age());
                let known = *self.at.entry(status.applied).or_insert(state);
                must(
                    known == state,
                    || {
                        format!(
                            "sequence {}, head {}, age {} at position {}",
                            known.0, known.1, known.2, status.applied
                        )
                    },
                    || format!("sequence {}, head {}, age {} on replica {replica}", state.0, state.1, state.2),
                )?;
                let known = self.configured.entry(status.applied).or_insert_with(|| status.configuration.clone());
                must(
                    *known == status.configuration,
                    || format!("the configuration {known:?} at position {}", status.applied),
                    || format!("{:?} on replica {replica}", status.configuration),
                )?;
                let reached = self.reached.entry((*replica, *run)).or_default();
                must(
                    status.applied >= reached.0 && status.commit >= reached.1,
                    || format!("replica {replica} to stay at applied {}, commit {} or beyond", reached.0, reached.1),
                    || format!("applied {}, commit {}", status.applied, status.commit),
                )?;
                *reached = (status.applied, status.commit);
                Ok(())
            }
            Event::Snapshot { replica, meta, .. } => {
                let known = *self.whole.entry(meta.index).or_insert(meta.digest);
                must(
                    known == meta.digest,
                    || format!("the state {known} at position {}", meta.index),
                    || format!("replica {replica} snapshot {}", meta.digest),
                )
            }
            _ => Ok(()),
        }
    }
    fn at_end(&mut self, facts: &Facts) -> Result<(), Violation> {
        for (replica, known) in &facts.replicas {
            let Some(view) = known.view.as_ref().filter(|_| known.up) else { continue };
            let digest = view.state.digest();
            let before = *self.whole.entry(view.status.applied).or_insert(digest);
            must(
                before == digest,
                || format!("the state {before} at position {}", view.status.applied),
                || format!("replica {replica} have {digest}"),
            )?;
            // Who was never told anything, like a stranger under a member's id, has the state from before the first member.
            let problem = view.state.problem().filter(|_| view.status.applied > Index(0));
            if let Some(problem) = problem {
                return Err(Violation::new("a state of valid shape", format!("on replica {replica}: {problem}")));
            }
        }
        Ok(())
    }
}
