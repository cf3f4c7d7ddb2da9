//! Standing by a change: what differs is declared for the node.
//!
//! A commit is done when the journal answered: so it proves that the node still reaches a quorum. Until then the window goes
//! on; if it ends first, what was to be committed is rolled back, and the journal's word counts, whichever it turns out to be.
//! The request is on disk before it is sent, so that after a crash it is asked again under the same id.

use super::differences::as_observed;
use super::forwarding::Ask;
use super::{Machine, Then};
use crate::agent::effects::{Level, Ticket};
use crate::agent::event::Fact;
use crate::agent::host::BootTime;
use crate::agent::ledger::PendingCommit;
use crate::agent::operator::{Refused, Reply, Which};
use crate::agent::value::agrees;
use crate::ids::Seq;
use crate::journal::command::JournalCommand;
use crate::journal::entry::{Author, Change, EntryDraft, EntryType};
use crate::journal::key::{Key, Scope, Setting};
use crate::limits::{CHANGES_MAX, RECORD_BYTES_MAX, TTL_SECONDS_MAX, TTL_SECONDS_MIN};
use crate::request::{Command, NotApplied, Outcome, RequestId, UnknownWhy, WriteRequest};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// How long the window's end waits for the answer to a commit that was sent before it, in seconds.
const ANSWER_SECONDS: u64 = 10;

/// How long after an unknown outcome it is asked again, in seconds.
const AGAIN_SECONDS: u64 = 5;

/// A commit that is asked for and not sent yet.
#[derive(Debug)]
pub(super) struct WantedCommit {
    pub(super) ticket: Ticket,
    author: Author,
    keys: Vec<Key>,
    ttl_seconds: Option<u32>,
    message: Arc<str>,
    /// What is to be declared, once the keys were looked at.
    settings: BTreeMap<Key, Setting>,
}

/// How the answer to a commit is awaited.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CommitLink {
    /// It is on its way for the first time in this run; answered by then at the latest.
    answers_by: Option<BootTime>,
    /// Somebody waits for it to be told again.
    under_way: bool,
    /// When it is asked again.
    again_at: Option<BootTime>,
}

impl Machine {
    pub(super) fn on_commit_asked(
        &mut self,
        ticket: Ticket,
        author: Author,
        which: &Which,
        ttl_seconds: Option<u32>,
        message: Arc<str>,
    ) {
        if let Some(seconds) = ttl_seconds
            && !(TTL_SECONDS_MIN..=TTL_SECONDS_MAX).contains(&seconds)
        {
            let problem = format!("{seconds} s to live is out of bounds: {TTL_SECONDS_MIN} to {TTL_SECONDS_MAX}");
            return self.refuse(ticket, Refused::Invalid { problem: problem.into() });
        }
        if self.ledger.commit.is_some() || self.wanted_commit.is_some() {
            let problem = "another commit is under way, and what became of it is not known yet: try again in a moment";
            return self.refuse(ticket, Refused::NotNow { problem: problem.into() });
        }
        match self.selected(&author, which, "committed") {
            Err(refused) => self.refuse(ticket, refused),
            Ok(_) if !self.link.is_up() => self.refuse(ticket, Refused::NoQuorum),
            Ok(keys) => {
                let settings = BTreeMap::new();
                let commit = WantedCommit { ticket, author, keys: keys.clone(), ttl_seconds, message, settings };
                self.look(keys, Then::Commit(commit));
            }
        }
    }

    pub(super) fn on_looked_before_commit(&mut self, mut commit: WantedCommit) {
        self.reassess();
        let mut bytes = 0;
        for key in &commit.keys {
            let Some(value) = self.difference(key) else { continue };
            let asked = self.ledger.changes.get(key).and_then(|change| change.asked.clone());
            let asked = asked.filter(|asked| agrees(key, asked, &as_observed(&value)));
            let setting = asked.unwrap_or(value);
            bytes += 2 * super::setting_bytes(&setting) + key.as_str().len();
            commit.settings.insert(key.clone(), setting);
        }
        if commit.settings.is_empty() {
            let problem = Arc::from("nothing is left to commit: the keys are what is declared");
            return self.refuse(commit.ticket, Refused::NotNow { problem });
        }
        if commit.settings.len() > CHANGES_MAX || bytes > RECORD_BYTES_MAX / 4 {
            let problem = format!(
                "{} keys with {bytes} bytes do not fit one entry (at most {CHANGES_MAX} keys, {} bytes): name the keys",
                commit.settings.len(),
                RECORD_BYTES_MAX / 4
            );
            return self.refuse(commit.ticket, Refused::Invalid { problem: problem.into() });
        }
        self.wanted_commit = Some(commit);
    }

    /// Sends what can be sent.
    pub(super) fn pump_commit(&mut self) {
        // The journal must know of an emergency before a commit can end it.
        let waits = self.spool.iter().any(|event| matches!(event.fact, Fact::EmergencyStart { .. }));
        if self.wanted_commit.is_some()
            && !waits
            && let Some(attempt) = self.draw()
            && let Some(wanted) = self.wanted_commit.take()
        {
            self.ledger.commit = Some(PendingCommit {
                attempt,
                author: wanted.author,
                parent: self.known,
                settings: wanted.settings,
                ttl_seconds: wanted.ttl_seconds,
                message: wanted.message,
                occurred_at: self.now.wall,
            });
            self.link.commit = CommitLink {
                answers_by: Some(self.now.boot.plus_seconds(ANSWER_SECONDS)),
                under_way: true,
                again_at: None,
            };
            self.send_commit(Some(wanted.ticket));
            return;
        }
        let due = self.link.commit.again_at.is_none_or(|at| at <= self.now.boot);
        if self.ledger.commit.is_some() && !self.link.commit.under_way && due {
            self.link.commit.under_way = true;
            self.send_commit(None);
        }
    }

    fn send_commit(&mut self, ticket: Option<Ticket>) {
        let Some(commit) = &self.ledger.commit else { return };
        let changes = commit.settings.iter().map(|(key, setting)| Change {
            key: key.clone(),
            previous: Setting::Unset,
            next: setting.clone(),
        });
        let draft = EntryDraft {
            entry_type: EntryType::Commit,
            scope: Scope::Node(self.settings.node.clone()),
            parent: commit.parent,
            based_on: None,
            changes: changes.collect(),
            ttl_seconds: commit.ttl_seconds,
            emergency_reason: None,
            message: commit.message.clone(),
            occurred_at: Some(commit.occurred_at),
        };
        let attempt = commit.attempt;
        let write = WriteRequest {
            request: RequestId::OneShot { id: attempt.id, drawn_at: attempt.drawn_at },
            author: commit.author.clone(),
            command: Command::Journal(JournalCommand::AppendEntry(draft)),
        };
        self.ask(Ask::Commit { attempt, ticket }, write);
    }

    pub(super) fn on_commit_answered(
        &mut self,
        attempt: crate::agent::ledger::Attempt,
        ticket: Option<Ticket>,
        outcome: Outcome,
    ) {
        let current = self.ledger.commit.as_ref().is_some_and(|commit| commit.attempt == attempt);
        let doubted = ticket.is_none();
        if current {
            self.link.commit = CommitLink::default();
        }
        let reply = match outcome {
            Outcome::Applied { reply, .. } => {
                let sequence = recorded(&reply);
                if current { self.committed(sequence, doubted) } else { None }
            }
            Outcome::Refused(refusal) => {
                if current {
                    self.ledger.commit = None;
                }
                Some(Reply::Refused(Refused::Journal(refusal)))
            }
            Outcome::NotApplied(NotApplied::FeatureLevel { .. } | NotApplied::TooLarge { .. }) => {
                if current {
                    self.ledger.commit = None;
                }
                let problem = Arc::from("the journal cannot take this commit: it is too large for it");
                Some(Reply::Refused(Refused::Invalid { problem }))
            }
            Outcome::NotApplied(_) if !doubted => {
                if current {
                    self.ledger.commit = None;
                }
                Some(Reply::Refused(Refused::NoQuorum))
            }
            Outcome::Unknown(UnknownWhy::OneShotExpired | UnknownWhy::AlreadyAcknowledged) => {
                // What is declared tells: it is read again whenever the journal moves.
                if current {
                    self.ledger.commit = None;
                    self.notice(Level::Warn, "what became of a commit cannot be told any more: see what is declared");
                }
                Some(Reply::Unknown { request: attempt.id })
            }
            Outcome::NotApplied(_) | Outcome::Unknown(_) => {
                if current {
                    self.link.commit.again_at = Some(self.now.boot.plus_seconds(AGAIN_SECONDS));
                }
                Some(Reply::Unknown { request: attempt.id })
            }
        };
        if let (Some(ticket), Some(reply)) = (ticket, reply) {
            self.reply(ticket, reply);
        }
    }

    /// The journal declares what was committed.
    fn committed(&mut self, sequence: Seq, doubted: bool) -> Option<Reply> {
        let commit = self.ledger.commit.take()?;
        let is_newer = self.declared.as_ref().is_none_or(|declared| declared.sequence < sequence);
        for (key, setting) in &commit.settings {
            // A key that was changed again meanwhile is met when what is declared is read anew.
            let change = self.ledger.changes.get(key).filter(|_| !self.in_flux(key));
            if change.is_some_and(|change| agrees(key, setting, &as_observed(&change.value))) {
                self.ledger.changes.remove(key);
                self.ledger.conflicts.remove(key);
                if is_newer {
                    self.ledger.committed.insert(key.clone(), (sequence, setting.clone()));
                }
            }
        }
        let ended = |recorded: Option<Seq>| recorded.is_some_and(|recorded| recorded < sequence);
        if let Some(emergency) = self.ledger.emergency.take_if(|emergency| ended(emergency.recorded)) {
            self.notice(Level::Info, format!("the emergency ended by a commit: {}", emergency.reason));
        }
        self.notice(Level::Info, format!("committed at {sequence}: {}", super::listed(commit.settings.keys())));
        // What is recorded after the commit, or was before its answer came, moves the journal's word for the node again.
        self.tell_anew();
        if !doubted && self.spool.is_empty() && self.known <= sequence {
            self.ledger.told_drift = false;
        }
        self.known = self.known.max(sequence);
        self.reassess();
        let (left, window) = (self.drift(), self.window_report());
        Some(Reply::Committed { sequence, settings: commit.settings.into_iter().collect(), left, window })
    }

    /// Until when the window's end waits for a commit that was sent before it.
    pub(super) fn commit_answers_by(&self) -> Option<BootTime> {
        self.ledger.commit.as_ref()?;
        self.link.commit.answers_by
    }

    /// What was to be committed may be rolled back: it is not asked for again.
    pub(super) fn forget_commit(&mut self) {
        if let Some(commit) = self.wanted_commit.take() {
            let problem = Arc::from("what was to be committed is being rolled back: nothing was recorded");
            self.refuse(commit.ticket, Refused::NotNow { problem });
        }
        let Some(commit) = self.ledger.commit.take() else { return };
        self.link.commit = CommitLink::default();
        self.notice(Level::Warn, "a commit was not answered before what it was about is rolled back");
        let mut waits = Vec::new();
        for ask in self.asks.values_mut() {
            if let Ask::Commit { attempt, ticket } = ask
                && *attempt == commit.attempt
            {
                waits.extend(ticket.take());
            }
        }
        for ticket in waits {
            self.reply(ticket, Reply::Unknown { request: commit.attempt.id });
        }
    }

    pub(super) fn commit_again_at(&self) -> Option<BootTime> {
        self.ledger.commit.as_ref()?;
        self.link.commit.again_at.filter(|_| !self.link.commit.under_way)
    }

    /// The journal is away: nothing is sent.
    pub(super) fn refuse_wanted_commit(&mut self) {
        if let Some(commit) = self.wanted_commit.take() {
            self.refuse(commit.ticket, Refused::NoQuorum);
        }
    }
}

/// The sequence of what was recorded; 0 if the reply is about something else.
pub(super) const fn recorded(reply: &crate::request::Reply) -> Seq {
    match reply {
        crate::request::Reply::Recorded { sequence } => *sequence,
        crate::request::Reply::NodeState { .. }
        | crate::request::Reply::Overlay { .. }
        | crate::request::Reply::Session { .. }
        | crate::request::Reply::SessionClosed
        | crate::request::Reply::Admitted { .. }
        | crate::request::Reply::Membership
        | crate::request::Reply::Expired { .. }
        | crate::request::Reply::FeatureLevel { .. } => Seq(0),
    }
}
