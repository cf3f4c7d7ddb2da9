//! What clients were told is true: an acknowledged write is recorded at its sequence and stays; no write is recorded twice;
//! what was *not applied* or refused is never recorded. An unanswered write may be there or not.

use super::{Oracle, Violation, must};
use crate::event::{Ask, ClientId, Event, Told};
use crate::world::Facts;
use muster_core::codec;
use muster_core::ids::Seq;
use muster_core::journal::entry::Record;
use muster_core::request::{Outcome, Reply};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Promise {
    Applied(Seq),
    Never(String),
}

#[derive(Default)]
pub(super) struct AcknowledgedWrites {
    asked: BTreeMap<(ClientId, u64), Arc<str>>,
    told: BTreeMap<Arc<str>, Promise>,
    recorded: BTreeMap<Arc<str>, Seq>,
    reached: Seq,
}

impl AcknowledgedWrites {
    fn compare(&self, mark: &str) -> Result<(), Violation> {
        let (Some(promise), Some(at)) = (self.told.get(mark), self.recorded.get(mark)) else { return Ok(()) };
        match promise {
            Promise::Applied(sequence) => must(
                sequence == at,
                || format!("write {mark} at sequence {sequence}, as its client was told"),
                || format!("it at {at}"),
            ),
            Promise::Never(why) => Err(Violation::new(
                format!("write {mark} nowhere: its client was told {why}"),
                format!("it recorded at {at}"),
            )),
        }
    }
}

impl Oracle for AcknowledgedWrites {
    fn name(&self) -> &'static str {
        "an acknowledged write is recorded once and stays; what was not applied never is"
    }
    fn source(&self) -> &'static str {
        "the reading \"not applied or unknown\"; design, errors"
    }
    fn on_event(&mut self, _: &Facts, event: &Event) -> Result<(), Violation> {
        match event {
            Event::Call { client, number, ask: Ask::Refusable { mark } } => {
                self.asked.insert((*client, *number), mark.clone());
                self.told.insert(mark.clone(), Promise::Never("nothing yet, but it must be refused".into()));
                Ok(())
            }
            Event::Call { client, number, ask: Ask::Write { mark } | Ask::Operation { mark } } => {
                self.asked.insert((*client, *number), mark.clone());
                Ok(())
            }
            Event::Answer { client, number, told: Told::Outcome(outcome) } => {
                let Some(mark) = self.asked.remove(&(*client, *number)) else { return Ok(()) };
                if let (Some(Promise::Never(_)), Outcome::Applied { .. }) = (self.told.get(&mark), outcome) {
                    let expected = format!("write {mark}, which breaks the rules, to be refused");
                    return Err(Violation::new(expected, format!("{outcome:?}")));
                }
                let promise = match outcome {
                    Outcome::Applied { reply: Reply::Recorded { sequence }, .. } => Promise::Applied(*sequence),
                    Outcome::Applied { .. } | Outcome::Unknown(_) => return Ok(()),
                    Outcome::Refused(refusal) => Promise::Never(format!("refused: {refusal:?}")),
                    Outcome::NotApplied(why) => Promise::Never(format!("not applied: {why:?}")),
                };
                self.told.insert(mark.clone(), promise);
                self.compare(&mark)
            }
            Event::Records { first, records, .. } => {
                for (offset, bytes) in records.iter().enumerate() {
                    let sequence = Seq(first.0 + offset as u64);
                    if sequence <= self.reached {
                        continue;
                    }
                    self.reached = sequence;
                    let Ok(Record::Entry(entry)) = codec::decode_record(bytes) else { continue };
                    if !entry.message.starts_with(crate::client::MARK) {
                        continue;
                    }
                    let twice = self.recorded.insert(entry.message.clone(), sequence);
                    must(
                        twice.is_none(),
                        || format!("write {} once", entry.message),
                        || format!("it at {} and at {sequence}", twice.unwrap_or_default()),
                    )?;
                    self.compare(&entry.message)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
    fn at_end(&mut self, _: &Facts) -> Result<(), Violation> {
        for (mark, promise) in &self.told {
            if let Promise::Applied(sequence) = promise {
                must(
                    self.recorded.get(mark) == Some(sequence),
                    || format!("write {mark} at sequence {sequence}, as its client was told"),
                    || format!("{:?}", self.recorded.get(mark)),
                )?;
            }
        }
        Ok(())
    }
}
