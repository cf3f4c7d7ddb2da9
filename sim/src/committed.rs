//! The committed log, applied once more from its first entry: what every replica must be, have and say.
//!
//! A position is committed once some replica publishes that it applied it; its entry is the one in that replica's log. The
//! state here never starts again and never sees a snapshot or a disk, so it is what those are compared with.
//!
//! Made from events alone. Oracles look at it; what they hold against it may come earlier than the entry does, and waits.

use crate::declared::Declared;
use crate::world::ReplicaFacts;
use bytes::Bytes;
use muster_core::codec;
use muster_core::driver::BOOTSTRAP;
use muster_core::ids::{Age, Index, ReplicaId, Seq, Term};
use muster_core::log::{LogEntry, LogEntryKind, LogRecord};
use muster_core::request::{Outcome, RequestId};
use muster_core::state::State;
use std::collections::BTreeMap;
use std::sync::Arc;

/// States that are kept to compare with, newest first.
const STATES_MAX: usize = 20_000;

/// One applied entry.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its position.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// Under which request it was asked; none for a leader's own first entry.
    pub request: Option<RequestId>,
    /// What became of it.
    pub outcome: Option<Outcome>,
    /// How many records it made.
    pub records: usize,
    /// Replicated time after it.
    pub age: Age,
}

/// The committed log so far.
#[derive(Debug, Default)]
pub struct Committed {
    offered: BTreeMap<(Index, Term), LogEntry>,
    states: BTreeMap<Index, State>,
    states_max: Option<usize>,
    by_sequence: BTreeMap<Seq, Index>,
    terms: BTreeMap<Index, Term>,
    applied: Index,
    /// Every step since the last event was taken.
    pub fresh: Vec<Step>,
    /// What became of the entry at each position.
    pub outcomes: BTreeMap<Index, Outcome>,
    /// Every record, from sequence 1.
    pub records: Vec<Bytes>,
    /// What the records declare.
    pub declared: Declared,
}

impl Committed {
    /// The state that the first replica was made with.
    pub fn begin(&mut self, state: State) {
        self.applied = BOOTSTRAP.0;
        self.states.insert(self.applied, state);
    }

    /// Keeps fewer states than usual: of a large one, every change copies more.
    pub(crate) fn keep_states(&mut self, most: usize) {
        self.states_max = Some(most);
    }

    /// The last position that is known to be committed.
    #[must_use]
    pub const fn applied(&self) -> Index {
        self.applied
    }

    /// The last sequence.
    #[must_use]
    pub fn sequence(&self) -> Seq {
        Seq(self.records.len() as u64)
    }

    /// The state at a position; none if it is not reached yet, or too long ago.
    #[must_use]
    pub fn state(&self, index: Index) -> Option<&State> {
        self.states.get(&index)
    }

    /// The term of the entry at a position; none if it is not reached yet.
    #[must_use]
    pub fn term(&self, index: Index) -> Option<Term> {
        self.terms.get(&index).copied()
    }

    /// The newest state.
    #[must_use]
    pub fn newest(&self) -> Option<&State> {
        self.states.get(&self.applied)
    }

    /// The state right after a record.
    #[must_use]
    pub fn state_at(&self, sequence: Seq) -> Option<&State> {
        self.states.get(self.by_sequence.get(&sequence)?)
    }

    /// The stored bytes of a record.
    #[must_use]
    pub fn record(&self, sequence: Seq) -> Option<&Bytes> {
        self.records.get(usize::try_from(sequence.0.checked_sub(1)?).ok()?)
    }

    /// What a replica hands to its log.
    pub(crate) fn offer(&mut self, records: &Arc<[LogRecord]>) {
        for record in records.iter() {
            let LogRecord::Entries(entries) = record else { continue };
            for entry in entries.iter().filter(|entry| entry.index > self.applied) {
                // The newest counts: a sole voter that forgot a term before anybody heard of it uses it again.
                self.offered.insert((entry.index, entry.term), entry.clone());
            }
        }
    }

    /// Follows what replicas published.
    pub(crate) fn follow(&mut self, replicas: &BTreeMap<ReplicaId, ReplicaFacts>) {
        if self.states.is_empty() {
            return;
        }
        loop {
            let next = self.applied.next();
            // What an installed snapshot covers is not in that replica's log; a commit index that is durable is that of the log
            // beside it, even if everything up to it was dropped since from memory.
            let applied_it = |facts: &&ReplicaFacts| {
                let status = facts.view.as_ref().map(|view| &view.status);
                status.is_some_and(|status| status.applied >= next && status.first <= next)
            };
            let in_memory = replicas.values().filter(applied_it).find_map(|facts| facts.log.at(next));
            let on_disk = || {
                let knows = |facts: &&ReplicaFacts| facts.hard_state.commit >= next;
                replicas.values().filter(knows).find_map(|facts| facts.durable.at(next))
            };
            let term = in_memory.or_else(on_disk);
            let Some(term) = term else { return };
            let Some(entry) = self.offered.get(&(next, term)).cloned() else { return };
            self.apply(&entry);
            self.offered.retain(|(index, _), _| *index > next);
        }
    }

    fn apply(&mut self, entry: &LogEntry) {
        let Some(mut state) = self.newest().cloned() else { return };
        let bytes = match entry.kind {
            LogEntryKind::Normal => &entry.data,
            LogEntryKind::Membership => &entry.context,
        };
        let mut step =
            Step { index: entry.index, term: entry.term, request: None, outcome: None, records: 0, age: state.age() };
        if let Some(proposal) = (!bytes.is_empty()).then(|| codec::decode_proposal(bytes).ok()).flatten() {
            step.request = Some(proposal.write.request);
            // What it marks and says is nobody's doing in the story.
            let nobody = tracing::Dispatch::none();
            let (outcome, finished) = tracing::dispatcher::with_default(&nobody, || state.apply(entry.index, proposal));
            step.records = finished.len();
            step.age = state.age();
            for finished in finished {
                self.declared.take(&finished.bytes, step.age);
                self.records.push(finished.bytes);
            }
            self.outcomes.insert(entry.index, outcome.clone());
            step.outcome = Some(outcome);
        }
        self.by_sequence.insert(state.sequence(), entry.index);
        self.applied = entry.index;
        self.terms.insert(entry.index, entry.term);
        self.states.insert(entry.index, state);
        if self.states.len() > self.states_max.unwrap_or(STATES_MAX) {
            self.states.pop_first();
        }
        self.fresh.push(step);
    }
}
