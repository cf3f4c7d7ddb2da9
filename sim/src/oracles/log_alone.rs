//! The committed log alone decides: records, snapshots and answers are what applying it from its first entry gives, whatever
//! crashed, was restored or was installed on the way.

use super::{Oracle, Violation, must};
use crate::event::{Event, Told};
use crate::world::Facts;
use bytes::Bytes;
use muster_core::ids::{Digest, Index, ReplicaId, Seq};
use muster_core::request::Outcome;
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct LogAlone {
    /// What was seen before the log was known that far.
    snapshots: BTreeMap<Index, (ReplicaId, Seq, Digest)>,
    records: BTreeMap<Seq, (ReplicaId, Bytes)>,
    answers: BTreeMap<Index, Outcome>,
}

impl LogAlone {
    fn compare(&mut self, facts: &Facts) -> Result<(), Violation> {
        let log = &facts.committed;
        while let Some(entry) = self.records.first_entry().filter(|entry| *entry.key() <= log.sequence()) {
            let (sequence, (replica, bytes)) = entry.remove_entry();
            must(
                log.record(sequence) == Some(&bytes),
                || format!("record {sequence} as the committed log gives it"),
                || format!("replica {replica} record something else"),
            )?;
        }
        while let Some(entry) = self.snapshots.first_entry().filter(|entry| *entry.key() <= log.applied()) {
            let (index, (replica, sequence, digest)) = entry.remove_entry();
            let Some(state) = log.state(index) else { continue };
            let whole = state.digest();
            must(
                whole == digest && state.sequence() == sequence,
                || format!("a snapshot at {index} of sequence {} and digest {whole}", state.sequence()),
                || format!("replica {replica}'s of sequence {sequence} and digest {digest}"),
            )?;
        }
        while let Some(entry) = self.answers.first_entry().filter(|entry| *entry.key() <= log.applied()) {
            let (index, told) = entry.remove_entry();
            let Some(outcome) = log.outcomes.get(&index) else {
                return Err(Violation::new(format!("a write at position {index}"), "none there".to_owned()));
            };
            must(
                *outcome == told,
                || format!("at position {index}: {outcome:?}"),
                || format!("a client told {told:?}"),
            )?;
        }
        Ok(())
    }
}

impl Oracle for LogAlone {
    fn name(&self) -> &'static str {
        "records, snapshots and answers are what the committed log alone gives"
    }
    fn source(&self) -> &'static str {
        "simulation: snapshots equal the log they replace; demand F4"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        match event {
            Event::Records { replica, first, records, .. } => {
                for (offset, bytes) in records.iter().enumerate() {
                    let sequence = Seq(first.0 + offset as u64);
                    self.records.entry(sequence).or_insert_with(|| (*replica, bytes.clone()));
                }
            }
            Event::Snapshot { replica, meta, .. } => {
                self.snapshots.entry(meta.index).or_insert((*replica, meta.sequence, meta.digest));
            }
            Event::Answer { told: Told::Outcome(outcome @ Outcome::Applied { index, .. }), .. } => {
                self.answers.entry(*index).or_insert_with(|| outcome.clone());
            }
            Event::View { .. } => {}
            _ => return Ok(()),
        }
        self.compare(facts)
    }
    fn at_end(&mut self, facts: &Facts) -> Result<(), Violation> {
        self.compare(facts)?;
        let last = self.answers.last_key_value();
        must(
            last.is_none(),
            || format!("every answered write in the committed log, which ends at {}", facts.committed.applied()),
            || format!("{last:?}"),
        )
    }
}
