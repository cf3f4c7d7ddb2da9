//! Every exec and shell that is recorded is in the audit log: its record comes right before its entry, with the same author, place
//! and words. One command, one outcome: no crash leaves half of it.

use super::{Oracle, Violation, must};
use crate::event::Event;
use crate::world::Facts;
use muster_core::codec;
use muster_core::ids::Seq;
use muster_core::journal::entry::{EntryType, OperationKind, Record};

#[derive(Default)]
pub(super) struct AuditLog {
    reached: Seq,
    /// The record before the next one.
    before: Option<Record>,
}

fn judge(before: Option<&Record>, record: &Record) -> Result<(), Violation> {
    let opened = match before {
        Some(Record::Operation(operation)) if operation.kind != OperationKind::Membership => Some(operation),
        Some(Record::Operation(_) | Record::Entry(_)) | None => None,
    };
    let entry = match record {
        Record::Entry(entry) if matches!(entry.entry_type, EntryType::ExecLog | EntryType::ShellSession) => Some(entry),
        Record::Entry(_) | Record::Operation(_) => None,
    };
    match (opened, entry) {
        (None, None) => Ok(()),
        (Some(operation), Some(entry)) => must(
            operation.author == entry.author && operation.scope == entry.scope && operation.detail == entry.message,
            || format!("entry {} to say what its audit record says: {operation:?}", entry.sequence),
            || format!("{entry:?}"),
        ),
        (Some(operation), None) => Err(Violation::new(
            format!("the entry of operation {} right after it", operation.sequence),
            format!("{record:?}"),
        )),
        (None, Some(entry)) => {
            Err(Violation::new(format!("an audit record right before entry {}", entry.sequence), format!("{before:?}")))
        }
    }
}

impl Oracle for AuditLog {
    fn name(&self) -> &'static str {
        "every exec and shell is in the audit log, right before its entry"
    }
    fn source(&self) -> &'static str {
        "the reading \"paired facts\"; demands P3, P6"
    }
    fn on_event(&mut self, _: &Facts, event: &Event) -> Result<(), Violation> {
        let Event::Records { first, records, .. } = event else { return Ok(()) };
        for (offset, bytes) in records.iter().enumerate() {
            let sequence = Seq(first.0 + offset as u64);
            if sequence <= self.reached {
                continue;
            }
            self.reached = sequence;
            let Ok(record) = codec::decode_record(bytes) else { continue };
            judge(self.before.as_ref(), &record)?;
            self.before = Some(record);
        }
        Ok(())
    }
    fn at_end(&mut self, _: &Facts) -> Result<(), Violation> {
        match &self.before {
            Some(Record::Operation(operation)) if operation.kind != OperationKind::Membership => Err(Violation::new(
                format!("the entry of operation {} after it", operation.sequence),
                "the journal's end",
            )),
            Some(Record::Operation(_) | Record::Entry(_)) | None => Ok(()),
        }
    }
}
