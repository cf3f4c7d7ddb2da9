//! Records are finished in order, once, and are the same on every replica.

use super::{Oracle, Violation, must};
use crate::event::Event;
use crate::world::Facts;
use bytes::Bytes;
use muster_core::ids::{ReplicaId, Seq};
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct AppliedInOrder {
    records: Vec<Bytes>,
    last: BTreeMap<ReplicaId, Seq>,
}

impl Oracle for AppliedInOrder {
    fn name(&self) -> &'static str {
        "records are finished in order, once, and are the same on every replica"
    }
    fn source(&self) -> &'static str {
        "demands F4, P3; Raft paper, figure 3: state machine safety"
    }
    fn on_event(&mut self, _: &Facts, event: &Event) -> Result<(), Violation> {
        match event {
            Event::Start { replica, snapshot, .. } => {
                let sequence = snapshot.as_ref().map_or(Seq(0), |meta| meta.sequence);
                self.last.insert(*replica, sequence);
                Ok(())
            }
            Event::Snapshot { replica, installed: true, meta, .. } => {
                self.last.insert(*replica, meta.sequence);
                Ok(())
            }
            Event::Records { replica, first, records, .. } => {
                let last = self.last.entry(*replica).or_default();
                must(
                    *first == last.next(),
                    || format!("replica {replica} to finish sequence {} next", last.next()),
                    || format!("sequence {first}"),
                )?;
                for (offset, record) in records.iter().enumerate() {
                    let sequence = Seq(first.0 + offset as u64);
                    let place = usize::try_from(sequence.0 - 1).unwrap_or(usize::MAX);
                    match self.records.get(place) {
                        Some(known) => must(
                            known == record,
                            || format!("one record at sequence {sequence}"),
                            || format!("replica {replica} finish a different one"),
                        )?,
                        None => self.records.push(record.clone()),
                    }
                    *last = sequence;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
