//! A subscriber sees every record once and in order, as it was recorded, wherever it resumes; and comes to the end of them.

use super::{Oracle, Violation, must};
use crate::event::{ClientId, Event, Told};
use crate::world::Facts;
use bytes::Bytes;
use muster_core::ids::Seq;
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct Subscriptions {
    reached: BTreeMap<ClientId, Seq>,
    waiting: BTreeMap<Seq, Bytes>,
}

impl Subscriptions {
    fn compare(&mut self, facts: &Facts) -> Result<(), Violation> {
        while let Some(entry) = self.waiting.first_entry().filter(|entry| *entry.key() <= facts.committed.sequence()) {
            let (sequence, bytes) = entry.remove_entry();
            must(
                facts.committed.record(sequence) == Some(&bytes),
                || format!("record {sequence} as it was committed"),
                || "a subscriber be told another one".into(),
            )?;
        }
        Ok(())
    }
}

impl Oracle for Subscriptions {
    fn name(&self) -> &'static str {
        "a subscription is complete, ordered, without repetition, and resumes without a gap"
    }
    fn source(&self) -> &'static str {
        "simulation, oracles: clients; design, boot: subscription"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        match event {
            Event::Answer { client, told: Told::Records { replica, records }, .. } => {
                let reached = self.reached.entry(*client).or_default();
                for (sequence, bytes) in records.iter() {
                    must(
                        *sequence == reached.next(),
                        || format!("subscriber {client} to be told {} next", reached.next()),
                        || format!("replica {replica} tell {sequence}"),
                    )?;
                    *reached = *sequence;
                    self.waiting.entry(*sequence).or_insert_with(|| bytes.clone());
                }
                self.compare(facts)
            }
            Event::View { .. } => self.compare(facts),
            _ => Ok(()),
        }
    }
    fn at_end(&mut self, facts: &Facts) -> Result<(), Violation> {
        self.compare(facts)?;
        must(
            self.waiting.is_empty(),
            || format!("every record that was told to be committed, up to {}", facts.committed.sequence()),
            || format!("{:?} told", self.waiting.keys().next()),
        )
    }
}
