//! Nothing that the authorization door should refuse is ever in the journal.
//!
//! A second account of the rules, in its own words: it shares nothing with `core::service`, and takes from the records alone
//! which vCluster a node was in right before each of them.

use super::{Oracle, Violation, must};
use crate::declared::Declared;
use crate::event::Event;
use crate::world::Facts;
use muster_core::codec;
use muster_core::ids::Seq;
use muster_core::journal::entry::{EntryType, Principal, Record, Role};
use muster_core::journal::key::Scope;

#[derive(Default)]
pub(super) struct WhoMay {
    judged: u64,
}

/// Whether a record moves its node from vCluster to vCluster.
fn moves(record: &Record) -> bool {
    let Record::Entry(entry) = record else { return false };
    let keys = entry.delta.iter().map(|change| &change.key).chain(entry.takes_off.iter().map(|(key, _)| key));
    let counts = entry.entry_type.pushes() || entry.entry_type == EntryType::Rollback;
    counts && keys.into_iter().any(muster_core::journal::key::Key::is_vcluster)
}

fn may(record: &Record, declared: &Declared, before: Seq) -> bool {
    let (author, policy) = match record {
        Record::Entry(entry) => (&entry.author, entry.entry_type == EntryType::PolicyUpdate),
        Record::Operation(operation) => (&operation.author, false),
    };
    match (&author.role, record.scope()) {
        (Role::Admin, _) => true,
        (Role::System, _) => matches!(author.principal, Principal::System { .. }),
        (Role::Operator(own), Scope::VCluster(vcluster)) => own == vcluster,
        (Role::Operator(own), Scope::Node(node)) => {
            declared.vcluster_of(node, before).as_ref() == Some(own) && !moves(record)
        }
        (Role::Agent(own), Scope::Node(node)) => own == node && !moves(record) && !policy,
        (Role::Operator(_) | Role::Agent(_) | Role::Viewer(_), _) => false,
    }
}

impl Oracle for WhoMay {
    fn name(&self) -> &'static str {
        "nothing is recorded that its author's role may not do"
    }
    fn source(&self) -> &'static str {
        "issue \"the node agent\": one authorization door; docs/security.md"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        if !matches!(event, Event::View { .. }) {
            return Ok(());
        }
        while self.judged < facts.committed.sequence().0 {
            let before = Seq(self.judged);
            self.judged += 1;
            let sequence = Seq(self.judged);
            let Some(Ok(record)) = facts.committed.record(sequence).map(|bytes| codec::decode_record(bytes)) else {
                continue; // That every record decodes has its own oracle.
            };
            must(
                may(&record, &facts.committed.declared, before),
                || format!("record {sequence} by somebody who may, with nodes where they were at {before}"),
                || format!("{record:?}"),
            )?;
        }
        Ok(())
    }
}
