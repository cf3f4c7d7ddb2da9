//! The journal's side: whether it answers, what is on its way, and the spool.
//!
//! Events go one at a time, in order, each under a one-shot id that is on disk before it is sent. An answer that is lost is
//! asked for again under the same id; when the cluster has forgotten the id, the node's records are searched; only when the
//! event is in none of them is it sent under a new id. So nothing is lost and nothing doubled.

use super::committing::{CommitLink, recorded};
use super::{Held, Machine, WantedRun};
use crate::agent::effects::{AskId, JournalNews, JournalTask, Level, Ticket};
use crate::agent::event::{Event, Fact};
use crate::agent::host::BootTime;
use crate::agent::ledger::Attempt;
use crate::agent::operator::{Refused, Reply};
use crate::ids::{Age, Seq};
use crate::request::{Command, NotApplied, Outcome, Refusal, RequestId, UnknownWhy, WriteRequest};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// How long an age that was told serves for drawing requests, in seconds. Replies are kept for an hour of it.
const AGE_SECONDS: u64 = 600;

/// The pauses before something is tried again, in seconds: doubled from the first to the last.
const PAUSE_SECONDS: (u64, u64) = (1, 30);

/// What is asked of the journal.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    /// The first event of the spool.
    Event { number: u64 },
    /// Whether the first event of the spool is recorded.
    Look { number: u64 },
    /// The commit; for whom, the first time.
    Commit { attempt: Attempt, ticket: Option<Ticket> },
    /// The record of an operation.
    Run { run: WantedRun, attempt: Attempt },
}

/// What is known of the journal.
#[derive(Clone, Debug, Default)]
pub(super) struct Link {
    /// Whether it answers; none before the first news.
    up: Option<bool>,
    /// Why it does not.
    why: Option<Arc<str>>,
    /// Replicated time, and when it was told.
    age: Option<(Age, BootTime)>,
    asks_age: bool,
    /// Something of the spool is on its way.
    event_under_way: bool,
    failures: u32,
    again_at: Option<BootTime>,
    /// Events up to this number may have been recorded under ids that were lost: they are searched before they are sent.
    searches_through: u64,
    pub(super) commit: CommitLink,
}

impl Link {
    pub(super) const fn is_up(&self) -> bool {
        matches!(self.up, Some(true))
    }
    pub(super) const fn is_down(&self) -> bool {
        matches!(self.up, Some(false))
    }
    pub(super) const fn why(&self) -> Option<&Arc<str>> {
        self.why.as_ref()
    }
}

impl Machine {
    /// Takes the events that the disk held. Without a ledger all of them count, and each is searched before it is sent.
    pub(super) fn take_up_spool(&mut self, found: bool, spool: Vec<Event>) {
        let counts = self.ledger.spool;
        if found {
            let counting = |event: &Event| (counts.delivered + 1..=counts.last).contains(&event.number);
            self.spool = spool.into_iter().filter(counting).collect::<Vec<_>>().into();
            return;
        }
        if let (Some(first), Some(last)) = (spool.first(), spool.last()) {
            self.ledger.spool.delivered = first.number.saturating_sub(1);
            self.ledger.spool.last = last.number;
            self.link.searches_through = last.number;
        }
        self.spool = spool.into();
    }

    pub(super) fn on_journal(&mut self, news: JournalNews) {
        if let JournalNews::Wrote { outcome: Outcome::Unknown(UnknownWhy::OneShotExpired), .. } = &news {
            // The cluster is much older than was known: the next request is drawn at its present age.
            self.link.age = None;
        }
        match news {
            JournalNews::Up { age } => {
                if !self.link.is_up() {
                    self.link.again_at = None;
                    self.link.failures = 0;
                    self.effects.changed = true;
                }
                self.link.up = Some(true);
                self.link.why = None;
                self.link.age = Some((age, self.now.boot));
                self.link.asks_age = false;
            }
            JournalNews::Down { why } => {
                self.effects.changed |= !self.link.is_down() || self.link.why.as_ref() != Some(&why);
                self.link.up = Some(false);
                self.link.why = Some(why);
                self.link.asks_age = false;
                self.refuse_wanted_commit();
                self.run_without_journal();
                self.stop_awaiting();
            }
            JournalNews::Wrote { ask, outcome } => match self.asks.remove(&ask) {
                None | Some(Ask::Look { .. }) => {}
                Some(Ask::Event { number }) => {
                    self.link.event_under_way = false;
                    self.on_event_answered(number, outcome);
                }
                Some(Ask::Commit { attempt, ticket }) => self.on_commit_answered(attempt, ticket, outcome),
                Some(Ask::Run { run, attempt }) => self.on_run_answered(run, attempt, outcome),
            },
            JournalNews::Looked { ask, found } => {
                if let Some(Ask::Look { number }) = self.asks.remove(&ask) {
                    self.link.event_under_way = false;
                    match found {
                        Ok(Some(sequence)) => self.delivered(number, Some(sequence)),
                        Ok(None) => {
                            self.ledger.spool.attempt = None;
                            self.link.searches_through = self.link.searches_through.min(number - 1);
                        }
                        Err(()) => self.pause(),
                    }
                }
            }
        }
    }

    /// Sends whatever the journal can take now.
    pub(super) fn pump(&mut self) {
        if !self.link.is_up() {
            return;
        }
        self.pump_commit();
        self.pump_runs();
        self.pump_spool();
    }

    fn pump_spool(&mut self) {
        if self.link.event_under_way || self.link.again_at.is_some_and(|at| at > self.now.boot) {
            return;
        }
        let Some(event) = self.spool.first().cloned() else { return };
        if event.number <= self.link.searches_through {
            return self.search(event);
        }
        let Some(attempt) = self.ledger.spool.attempt.or_else(|| self.draw()) else { return };
        self.ledger.spool.attempt = Some(attempt);
        let write = WriteRequest {
            request: RequestId::OneShot { id: attempt.id, drawn_at: attempt.drawn_at },
            author: event.author.clone(),
            command: Command::Journal(event.command(&self.settings.node)),
        };
        self.link.event_under_way = true;
        self.ask(Ask::Event { number: event.number }, write);
    }

    fn search(&mut self, event: Event) {
        self.link.event_under_way = true;
        let ask = self.next_ask(Ask::Look { number: event.number });
        self.fresh.push_back(Held::Journal(JournalTask::Look { ask, event }));
    }

    fn on_event_answered(&mut self, number: u64, outcome: Outcome) {
        match outcome {
            Outcome::Applied { reply, .. } => self.delivered(number, Some(recorded(&reply))),
            // The refusal is kept under this id, and would be met again when the node is known.
            Outcome::Refused(Refusal::UnknownScope { .. }) => {
                self.ledger.spool.attempt = None;
                self.pause();
            }
            Outcome::Refused(refusal) => self.on_event_refused(number, refusal),
            Outcome::NotApplied(NotApplied::TooLarge { bytes, bytes_max }) => {
                let text =
                    format!("an event of {bytes} bytes does not fit the journal (at most {bytes_max}): left out");
                self.notice(Level::Alert, text);
                self.delivered(number, None);
            }
            Outcome::NotApplied(_)
            | Outcome::Unknown(UnknownWhy::TimedOut | UnknownWhy::ForwardTimedOut | UnknownWhy::ConnectionLost) => {
                self.pause();
                self.stop_awaiting();
            }
            Outcome::Unknown(
                UnknownWhy::OneShotExpired | UnknownWhy::SessionUnknown | UnknownWhy::AlreadyAcknowledged,
            ) => match self.spool.first().cloned() {
                // Telling a state twice does no harm, and leaves no record to search for.
                Some(Event { fact: Fact::State { .. }, .. }) => self.ledger.spool.attempt = None,
                Some(event) if event.number == number => self.search(event),
                Some(_) | None => {}
            },
        }
    }

    /// The journal will never take this event: people are told, and an emergency it does not allow ends.
    fn on_event_refused(&mut self, number: u64, refusal: Refusal) {
        let Some(event) = self.spool.first().cloned().filter(|event| event.number == number) else { return };
        match event.fact {
            // The state is what it is: an emergency, say, is not ended by a state.
            Fact::State { .. } => {}
            // Somebody ended it in the journal already, by a commit of the node's scope that did not go through its agent.
            Fact::EmergencyEnd { .. } if matches!(refusal, Refusal::Emergency { .. }) => {
                self.notice(Level::Info, "the emergency had ended in the journal before");
            }
            Fact::EmergencyStart { .. } => {
                if self.ledger.emergency.as_ref().is_some_and(|emergency| emergency.event == number) {
                    self.ledger.emergency = None;
                }
                self.notice(Level::Alert, format!("the journal refuses the emergency, it is over: {refusal:?}"));
                if let Some(ticket) = self.awaiting.remove(&number) {
                    self.refuse(ticket, Refused::Journal(refusal));
                }
                self.delivered(number, None);
                return self.reassess();
            }
            Fact::Drift { .. }
            | Fact::Undone { .. }
            | Fact::EmergencyEnd { .. }
            | Fact::Operation { .. }
            | Fact::Note { .. } => {
                self.notice(Level::Alert, format!("the journal refuses event {number}, it is left out: {refusal:?}"));
            }
        }
        self.delivered(number, None);
    }

    /// The first event needs no more sending.
    fn delivered(&mut self, number: u64, sequence: Option<Seq>) {
        if self.spool.first().is_none_or(|event| event.number != number) {
            return;
        }
        self.spool.pop();
        self.ledger.spool.delivered = number;
        self.ledger.spool.attempt = None;
        self.link.failures = 0;
        self.link.again_at = None;
        let sequence = sequence.filter(|sequence| *sequence > Seq(0));
        self.known = self.known.max(sequence.unwrap_or_default());
        if let Some(emergency) = self.ledger.emergency.as_mut().filter(|emergency| emergency.event == number) {
            emergency.recorded = sequence;
        }
        if let Some(ticket) = self.awaiting.remove(&number) {
            self.tell_emergency(ticket, sequence);
        }
        if self.spool.is_empty() {
            self.report_drift();
        }
    }

    /// Nobody waits any longer for an event to reach the journal: it is on disk, and will.
    fn stop_awaiting(&mut self) {
        for ticket in core::mem::take(&mut self.awaiting).into_values() {
            self.tell_emergency(ticket, None);
        }
    }

    fn pause(&mut self) {
        let (first, last) = PAUSE_SECONDS;
        let seconds = (first << self.link.failures.min(10)).min(last);
        self.link.failures = self.link.failures.saturating_add(1);
        self.link.again_at = Some(self.now.boot.plus_seconds(seconds));
    }

    pub(super) fn journal_again_at(&self) -> Option<BootTime> {
        if !self.link.is_up() {
            return None;
        }
        let spool = self.link.again_at.filter(|_| !self.link.event_under_way && !self.spool.is_empty());
        spool.into_iter().chain(self.commit_again_at()).min()
    }

    /// Draws a request id, if replicated time is known well enough; else asks for it.
    pub(super) fn draw(&mut self) -> Option<Attempt> {
        match self.link.age {
            Some((age, told)) if self.now.boot.seconds_since(told) < AGE_SECONDS => {
                Some(Attempt { id: self.fresh_id(), drawn_at: age })
            }
            Some(_) | None => {
                if !self.link.asks_age {
                    self.link.asks_age = true;
                    self.fresh.push_back(Held::Journal(JournalTask::Age));
                }
                None
            }
        }
    }

    pub(super) fn ask(&mut self, ask: Ask, write: WriteRequest) {
        let ask = self.next_ask(ask);
        self.fresh.push_back(Held::Journal(JournalTask::Write { ask, write }));
    }

    fn next_ask(&mut self, ask: Ask) -> AskId {
        self.last_ask += 1;
        let id = AskId(self.last_ask);
        self.asks.insert(id, ask);
        id
    }

    fn tell_emergency(&mut self, ticket: Ticket, sequence: Option<Seq>) {
        let Some(emergency) = &self.ledger.emergency else {
            let problem = Arc::from("the emergency ended before the journal had it");
            return self.refuse(ticket, Refused::NotNow { problem });
        };
        let seconds = emergency.deadline.seconds_since(self.now.boot);
        self.reply(ticket, Reply::EmergencyStarted { sequence, seconds });
    }
}
