//! Every record is linked to all before it: sequences are dense, each record says its own, and the head that anyone tells is the
//! one the records give.

use super::{Oracle, Violation, must};
use crate::event::{Event, Told};
use crate::world::Facts;
use muster_core::codec;
use muster_core::ids::{Digest, Seq};
use muster_core::journal::entry::{Principal, Record};
use std::collections::BTreeMap;

pub(super) struct HistoryChain {
    /// The head at every sequence, from 0.
    heads: Vec<Digest>,
    /// Heads that were told while their records still waited to be finished on every replica.
    waiting: BTreeMap<Seq, (Digest, String)>,
}

impl Default for HistoryChain {
    fn default() -> Self {
        Self { heads: vec![Digest::default()], waiting: BTreeMap::new() }
    }
}

impl HistoryChain {
    fn head(&self, sequence: Seq) -> Option<Digest> {
        self.heads.get(usize::try_from(sequence.0).ok()?).copied()
    }

    fn told(&mut self, sequence: Seq, head: Digest, by: &str) -> Result<(), Violation> {
        let Some(known) = self.head(sequence) else {
            let (other, first) = self.waiting.entry(sequence).or_insert_with(|| (head, by.to_owned()));
            return must(
                *other == head,
                || format!("the head {other} at sequence {sequence}, as {first} told"),
                || format!("{by} tell {head}"),
            );
        };
        must(known == head, || format!("the head {known} at sequence {sequence}"), || format!("{by} tell {head}"))
    }
}

impl Oracle for HistoryChain {
    fn name(&self) -> &'static str {
        "the history is one hash chain, dense, and every record has its author"
    }
    fn source(&self) -> &'static str {
        "the reading \"same immutable log\"; demands P3, P5"
    }
    fn on_event(&mut self, _: &Facts, event: &Event) -> Result<(), Violation> {
        match event {
            Event::Records { first, records, .. } => {
                for (offset, bytes) in records.iter().enumerate() {
                    let sequence = first.0 + offset as u64;
                    if sequence != self.heads.len() as u64 {
                        continue; // Another replica finished it before; that they are the same has its own oracle.
                    }
                    let last = *self.heads.last().unwrap_or(&Digest::default());
                    let record = codec::decode_record(bytes)
                        .map_err(|error| Violation::new("a record that decodes", error.to_string()))?;
                    must(
                        record.sequence() == Seq(sequence),
                        || format!("the record at {sequence} to say so"),
                        || format!("it say {}", record.sequence()),
                    )?;
                    let author = match &record {
                        Record::Entry(entry) => &entry.author,
                        Record::Operation(operation) => &operation.author,
                    };
                    let named = match &author.principal {
                        Principal::Certificate { subject } | Principal::Oidc { subject, .. } => !subject.is_empty(),
                        Principal::Claimed { name } => !name.is_empty(),
                        Principal::System { part } => !part.is_empty(),
                    };
                    must(named, || format!("an author of record {sequence}"), || "none".into())?;
                    self.heads.push(last.chain(bytes));
                    if let Some((head, by)) = self.waiting.remove(&Seq(sequence)) {
                        self.told(Seq(sequence), head, &by)?;
                    }
                }
                Ok(())
            }
            Event::Answer { client, told: Told::Head { sequence, head, .. }, .. } => {
                self.told(*sequence, *head, &format!("client {client}'s replica"))
            }
            Event::Snapshot { replica, meta, .. } => {
                self.told(meta.sequence, meta.head, &format!("replica {replica}'s snapshot"))
            }
            _ => Ok(()),
        }
    }
    fn at_end(&mut self, _: &Facts) -> Result<(), Violation> {
        must(
            self.waiting.is_empty(),
            || format!("heads of the {} records that were finished", self.heads.len() - 1),
            || format!("{:?}", self.waiting.first_key_value()),
        )
    }
}
