//! Two entries of the same position and term are the same, and follow the same entry, wherever they are: durable in logs and in
//! messages. Contents are compared, not lengths.

use super::{Oracle, Violation, must};
use crate::event::Event;
use crate::world::Facts;
use muster_core::ids::{Index, Term};
use muster_core::log::{LogEntry, LogRecord};
use muster_core::peer::PeerMessage;
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct LogMatching {
    entries: BTreeMap<(Index, Term), LogEntry>,
    before: BTreeMap<(Index, Term), Term>,
}

impl LogMatching {
    fn entry(&mut self, entry: &LogEntry, before: Option<Term>) -> Result<(), Violation> {
        let key = (entry.index, entry.term);
        let known = self.entries.entry(key).or_insert_with(|| entry.clone());
        // Shared bytes are the same without a look.
        let same = known.data.as_ptr() == entry.data.as_ptr() || known == entry;
        must(
            same,
            || format!("one entry at position {} of term {}", entry.index, entry.term),
            || "two that differ".into(),
        )?;
        let Some(before) = before else { return Ok(()) };
        let known = *self.before.entry(key).or_insert(before);
        must(
            known == before,
            || format!("the entry at {} of term {} to follow one of term {known}", entry.index, entry.term),
            || format!("it follow one of term {before}"),
        )
    }
}

impl Oracle for LogMatching {
    fn name(&self) -> &'static str {
        "entries of the same position and term are the same, and so is what precedes them"
    }
    fn source(&self) -> &'static str {
        "Raft paper, figure 3: log matching"
    }
    fn looks_at_traffic(&self) -> bool {
        true
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        match event {
            Event::Send { envelope, .. } => {
                let PeerMessage::Raft(message) = &envelope.message else { return Ok(()) };
                let mut before = Some(message.log_term);
                for entry in &message.entries {
                    self.entry(entry, before)?;
                    before = Some(entry.term);
                }
                Ok(())
            }
            // What was neither durable nor sent nobody knows of: a sole voter that forgot it uses its term again.
            Event::Durable { replica, records, .. } => {
                let log = facts.replicas.get(replica).map(|facts| &facts.durable);
                for record in records.iter() {
                    let LogRecord::Entries(entries) = record else { continue };
                    for entry in entries {
                        // The log as it is after this append; a later record of it may have replaced this entry.
                        let before = log
                            .filter(|log| log.at(entry.index) == Some(entry.term))
                            .and_then(|log| log.at(Index(entry.index.0 - 1)));
                        self.entry(entry, before)?;
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
