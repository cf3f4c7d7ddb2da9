//! The events that wait for the journal, and how many may.
//!
//! A journal may be away for weeks. What operators do is never left out: when as much of it waits as may, new work is refused,
//! and what was begun can still be rolled back, ended and told. What the agent merely observes gives way before that: while
//! [`SpoolLimits::observations`] wait, drift behind its back is not said value by value, and what drifts and comes back before
//! it could be said is left out. One event says that this was so; when there is room again, the newest values are said.
//!
//! Left out: the disk's own end. An agent that cannot write what it must remember stops (see [`crate::agent::driver`]).

use super::{Machine, setting_bytes};
use crate::agent::event::{Event, Fact};
use crate::agent::operator::Refused;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::sync::Arc;

/// How much may wait for the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpoolLimits {
    /// Events beyond which the agent's own observations give way. More keeps a longer story of what happened meanwhile; less is
    /// forwarded sooner.
    pub observations: usize,
    /// The same in bytes.
    pub observation_bytes: usize,
    /// Events beyond which new work is refused. The difference to `observations` is for operators alone.
    pub events: usize,
    /// The same in bytes. What one request says may exceed it: at most as much as a request may have.
    pub event_bytes: usize,
}

/// The bounds in force.
pub const SPOOL: SpoolLimits =
    SpoolLimits { observations: 1_024, observation_bytes: 8 << 20, events: 4_096, event_bytes: 64 << 20 };

const _: () = assert!(SPOOL.observations < SPOOL.events, "operators have room that observations have not");
const _: () = assert!(SPOOL.observation_bytes < SPOOL.event_bytes, "operators have room that observations have not");

/// What stands in the journal for what was left out.
const LEFT_OUT: &str = "more happened than is kept while the journal is away: from here on, what differed and was as declared \
                        again before it could be told is left out";

/// The events that wait, in order.
#[derive(Debug, Default)]
pub(super) struct Spool {
    events: VecDeque<Event>,
    bytes: usize,
}

impl From<alloc::vec::Vec<Event>> for Spool {
    fn from(events: alloc::vec::Vec<Event>) -> Self {
        let bytes = events.iter().map(size).sum();
        Self { events: events.into(), bytes }
    }
}

/// About what an event takes.
fn size(event: &Event) -> usize {
    let said = match &event.fact {
        Fact::Drift { changes, message } | Fact::Undone { changes, message } => {
            let changes = changes.iter().map(|change| {
                change.key.as_str().len() + setting_bytes(&change.previous) + setting_bytes(&change.next)
            });
            message.len() + changes.sum::<usize>()
        }
        Fact::EmergencyStart { reason: text }
        | Fact::EmergencyEnd { message: text }
        | Fact::Operation { detail: text, .. }
        | Fact::Note { message: text } => text.len(),
        Fact::State { .. } => 0,
    };
    // Number, times and author.
    said + 128
}

impl Spool {
    pub(super) fn first(&self) -> Option<&Event> {
        self.events.front()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Event> {
        self.events.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(super) fn push(&mut self, event: Event) {
        self.bytes += size(&event);
        self.events.push_back(event);
    }

    pub(super) fn pop(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.bytes -= size(&event);
        }
    }

    /// Whether observations give way.
    pub(super) fn is_crowded(&self) -> bool {
        self.events.len() >= SPOOL.observations || self.bytes >= SPOOL.observation_bytes
    }

    /// Whether new work is refused.
    pub(super) fn is_full(&self) -> bool {
        self.events.len() >= SPOOL.events || self.bytes >= SPOOL.event_bytes
    }
}

impl Machine {
    /// The refusal of new work, if what it would have to tell has no room.
    pub(super) fn no_room(&self) -> Option<Refused> {
        let problem = format!(
            "{} events wait for the journal, which is as much as this agent keeps: nothing new is begun until it answers; what \
             differs can be rolled back, and an emergency ended",
            self.spool.len()
        );
        self.spool.is_full().then(|| Refused::NotNow { problem: problem.into() })
    }

    /// Says, once for as long as it waits, that something is left out.
    pub(super) fn leave_out(&mut self) {
        let says = |event: &Event| matches!(&event.fact, Fact::Note { message } if **message == *LEFT_OUT);
        if !self.spool.iter().any(says) {
            let author = self.settings.author.clone();
            self.event(author, Fact::Note { message: Arc::from(LEFT_OUT) });
        }
    }
}
