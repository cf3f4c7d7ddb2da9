//! What happened on a node that the journal must learn, in order, each thing once.
//!
//! Events wait in the spool on the node's disk and are forwarded when the journal is there: never on an operator's path. Each
//! is carried by a one-shot request, so it is recorded once however often it is sent; when the cluster has forgotten the
//! request, the node's own records are searched for the event before it is sent again. An event is recognised there by what it
//! says and by `occurred_at`, which is different for any two events that wait at the same time.

use crate::ids::{NodeId, Seq, WallTime};
use crate::journal::command::{ConfigState, JournalCommand};
use crate::journal::entry::{Author, Change, EntryDraft, EntryType, OperationDraft, OperationKind, Record};
use crate::journal::key::Scope;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its place in the spool, from 1, dense.
    pub number: u64,
    /// When it happened, by the node's wall clock; different from every other event's that waits.
    pub occurred_at: WallTime,
    /// The journal's sequence that the node knew then: the event's record, if there is one, is later.
    pub after: Seq,
    /// By whom.
    pub author: Author,
    /// What happened.
    pub fact: Fact,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The node differs from what is declared: how, and why that is said now (it was changed, its rollback was blocked by
    /// somebody or failed, its window was extended). Recorded as `DriftDetected`.
    Drift {
        /// What is declared (`previous`) and what is there (`next`).
        changes: Vec<Change>,
        /// In words.
        message: Arc<str>,
    },
    /// What differed was undone on the node: rolled back, lost at a reboot, given up to the journal's value, reverted by
    /// hand. Recorded as a `Rollback` that takes nothing off.
    Undone {
        /// What was there (`previous`) and what is there again (`next`).
        changes: Vec<Change>,
        /// In words.
        message: Arc<str>,
    },
    /// An emergency began.
    EmergencyStart {
        /// Why.
        reason: Arc<str>,
    },
    /// The emergency ended.
    EmergencyEnd {
        /// How.
        message: Arc<str>,
    },
    /// A shell session ended, or a command ran while the journal was away in an emergency.
    Operation {
        /// The kind.
        kind: OperationKind,
        /// The command line, or what the session was about.
        detail: Arc<str>,
        /// The exit status, where it is known.
        exit_status: Option<i32>,
    },
    /// Something about the agent itself that people should find in the journal: what it had to repair, that an emergency
    /// outlasted its window. Recorded as `ServiceLifecycle`.
    Note {
        /// In words.
        message: Arc<str>,
    },
    /// Nothing differs any more because it was declared: the journal's word for the node is brought up to date, nothing is
    /// recorded. May be told twice.
    State {
        /// The state.
        state: ConfigState,
    },
}

impl Event {
    /// The command that records it.
    #[must_use]
    pub fn command(&self, node: &NodeId) -> JournalCommand {
        let scope = Scope::Node(node.clone());
        let entry = |entry_type, changes: &[Change], emergency_reason: Option<&Arc<str>>, message: &Arc<str>| {
            JournalCommand::AppendEntry(EntryDraft {
                entry_type,
                scope: scope.clone(),
                parent: self.after,
                based_on: (entry_type == EntryType::Rollback).then_some(self.after),
                changes: changes.to_vec(),
                ttl_seconds: None,
                emergency_reason: emergency_reason.cloned(),
                message: message.clone(),
                occurred_at: Some(self.occurred_at),
            })
        };
        let silent = Arc::from("");
        match &self.fact {
            Fact::Drift { changes, message } => entry(EntryType::DriftDetected, changes, None, message),
            Fact::Undone { changes, message } => entry(EntryType::Rollback, changes, None, message),
            Fact::Note { message } => entry(EntryType::ServiceLifecycle, &[], None, message),
            Fact::EmergencyStart { reason } => entry(EntryType::EmergencyStart, &[], Some(reason), &silent),
            Fact::EmergencyEnd { message } => entry(EntryType::EmergencyEnd, &[], None, message),
            Fact::Operation { kind, detail, exit_status } => JournalCommand::RecordOperation(OperationDraft {
                kind: *kind,
                scope,
                detail: detail.clone(),
                exit_status: *exit_status,
                occurred_at: Some(self.occurred_at),
            }),
            Fact::State { state } => JournalCommand::UpdateNodeState { node: node.clone(), state: *state },
        }
    }

    /// Whether a record of the journal is this event's.
    #[must_use]
    pub fn is_recorded_by(&self, node: &NodeId, record: &Record) -> bool {
        if record.sequence() <= self.after || *record.scope() != Scope::Node(node.clone()) {
            return false;
        }
        match (record, self.command(node)) {
            (Record::Operation(operation), JournalCommand::RecordOperation(ours)) => {
                (operation.kind, &operation.detail, operation.occurred_at)
                    == (ours.kind, &ours.detail, ours.occurred_at)
            }
            (Record::Entry(entry), JournalCommand::AppendEntry(ours)) => {
                (entry.entry_type, entry.occurred_at) == (ours.entry_type, ours.occurred_at)
                    && (&entry.message, &entry.delta) == (&ours.message, &ours.changes)
                    && entry.emergency_reason == ours.emergency_reason
            }
            (Record::Operation(_) | Record::Entry(_), _) => false,
        }
    }
}
