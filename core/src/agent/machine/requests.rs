//! What operators ask: what is answered at once, what waits for the host, and the requests that change no key.

use super::committing::recorded;
use super::forwarding::Ask;
use super::{Boot, Machine, QUEUE_MAX, Returning, Waiting, clipped, listed};
use crate::agent::effects::{Level, Ticket};
use crate::agent::event::Fact;
use crate::agent::ledger::{Attempt, Cause, Emergency, Owner};
use crate::agent::operator::{Refused, Reply, Request, Which};
use crate::journal::command::JournalCommand;
use crate::journal::entry::{Author, Change, OperationDraft, OperationKind};
use crate::journal::key::{Key, Scope};
use crate::limits::{MESSAGE_BYTES_MAX, REASON_BYTES_MAX};
use crate::request::{Command, NotApplied, Outcome, RequestId, WriteRequest};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// What a policy's `exec_allow` lists for a shell.
pub const SHELL_WORD: &str = "shell";

/// An operation that is to be recorded before it runs.
#[derive(Clone, Debug)]
pub(super) struct WantedRun {
    ticket: Ticket,
    author: Author,
    kind: OperationKind,
    detail: Arc<str>,
}

impl Machine {
    pub(super) fn on_asked(&mut self, ticket: Ticket, author: Author, request: Request) {
        match request {
            Request::Show => {
                let report = self.report(self.now);
                self.reply(ticket, Reply::Report(Arc::new(report)));
            }
            Request::ShellEnd { exit_status } => {
                let kind = OperationKind::ShellEnd;
                self.event(author, Fact::Operation { kind, detail: Arc::from(SHELL_WORD), exit_status });
                self.reply(ticket, Reply::Noted);
            }
            Request::Exec { .. }
            | Request::ShellStart
            | Request::Set { .. }
            | Request::Commit { .. }
            | Request::Rollback { .. }
            | Request::Extend { .. }
            | Request::EmergencyStart { .. }
            | Request::EmergencyEnd { .. } => match self.boot {
                Boot::Waiting { .. } => {
                    let problem = "the node is booting: what is declared for it is not known yet";
                    self.refuse(ticket, Refused::NotNow { problem: Arc::from(problem) });
                }
                Boot::Running | Boot::Done if self.queue.len() >= QUEUE_MAX => self.refuse(ticket, Refused::Busy),
                Boot::Running | Boot::Done => self.queue.push_back(Waiting { ticket, author, request }),
            },
        }
    }

    /// Serves the request that waits longest.
    pub(super) fn try_serve(&mut self) -> bool {
        let Some(Waiting { ticket, author, request }) = self.queue.pop_front() else { return false };
        match request {
            Request::Set { changes, consent, merge, message } => {
                self.on_set_asked(ticket, author, changes, (consent, merge), message);
            }
            Request::Commit { which, ttl_seconds, message } => {
                self.on_commit_asked(ticket, author, &which, ttl_seconds, message);
            }
            Request::Rollback { which } => self.on_rollback_asked(ticket, author, &which),
            Request::Extend { seconds } => self.on_extend_asked(ticket, &author, seconds),
            Request::EmergencyStart { reason } => self.on_emergency_asked(ticket, &author, &reason),
            Request::EmergencyEnd { force } => self.on_emergency_end_asked(ticket, author, force),
            Request::Exec { arguments } => self.on_exec_asked(ticket, author, &arguments),
            Request::ShellStart => self.on_shell_asked(ticket, author),
            Request::Show | Request::ShellEnd { .. } => unreachable!("answered at once"),
        }
        true
    }

    /// The keys that a request is about.
    pub(super) fn selected(&self, author: &Author, which: &Which, verb: &str) -> Result<Vec<Key>, Refused> {
        let changes = &self.ledger.changes;
        let keys: Vec<Key> = match which {
            Which::All => changes.keys().cloned().collect(),
            Which::Own => {
                changes.iter().filter(|(_, change)| change.owner.is(author)).map(|(key, _)| key.clone()).collect()
            }
            Which::Keys(keys) => {
                if let Some(key) = keys.iter().find(|key| !changes.contains_key(*key)) {
                    let problem = Arc::from(format!("{key} does not differ from what is declared"));
                    return Err(Refused::NotNow { problem });
                }
                let others = changes.iter().filter(|(key, change)| {
                    keys.contains(*key) && matches!(change.owner, Owner::Operator(_)) && !change.owner.is(author)
                });
                let others: Vec<_> =
                    others.map(|(key, change)| (key.clone(), change.owner.clone(), change.change)).collect();
                if !others.is_empty() {
                    return Err(Refused::Owned(others));
                }
                keys.iter().cloned().collect()
            }
        };
        if keys.is_empty() {
            let others = changes.iter().map(|(key, change)| format!("{key} ({})", change.owner));
            let problem = if changes.is_empty() {
                format!("nothing differs from what is declared, so nothing can be {verb}")
            } else {
                format!("nothing of yours differs; of others: {}: name keys, or take all", listed(others))
            };
            return Err(Refused::NotNow { problem: problem.into() });
        }
        if self.ledger.emergency.is_some() && keys.len() < changes.len() {
            let problem = format!(
                "an emergency ends when something is {verb}, and {} keys of others differ: take all, or end it first",
                changes.len() - keys.len()
            );
            return Err(Refused::NotNow { problem: problem.into() });
        }
        Ok(keys)
    }

    fn on_rollback_asked(&mut self, ticket: Ticket, author: Author, which: &Which) {
        match self.selected(&author, which, "rolled back") {
            Err(refused) => self.refuse(ticket, refused),
            Ok(keys) => {
                let targets = keys.into_iter().filter_map(|key| Some((key.clone(), self.baseline(&key)?))).collect();
                let mut returning = Returning::new(Cause::Asked(author), targets);
                returning.ticket = Some(ticket);
                self.forget_commit();
                self.bring_back(returning);
            }
        }
    }

    /// Moves the window's end later: never further from now than a window without drift would be.
    fn on_extend_asked(&mut self, ticket: Ticket, author: &Author, seconds: u32) {
        if let Some(refused) = self.no_room() {
            return self.refuse(ticket, refused);
        }
        let base = u64::from(self.policy().base_window_seconds);
        let now = self.now.boot;
        let refuse = |problem: &str| Refused::NotNow { problem: Arc::from(problem) };
        let Some(window) = &mut self.ledger.window else {
            return self.refuse(ticket, refuse("no window is open"));
        };
        if window.frozen.is_some() {
            return self.refuse(ticket, refuse("the window stands still: roll back or commit what it is about"));
        }
        let left = window.deadline.seconds_since(now);
        let most = base.saturating_sub(left);
        if seconds == 0 || u64::from(seconds) > most {
            let problem = format!(
                "{left} s are left, and a window is never longer than the policy's {base} s: expected 1 to {most} s"
            );
            return self.refuse(ticket, Refused::Invalid { problem: problem.into() });
        }
        window.deadline = window.deadline.plus_seconds(u64::from(seconds));
        let changes: Vec<Change> = self
            .ledger
            .changes
            .iter()
            .map(|(key, change)| Change {
                key: key.clone(),
                previous: self.declared_for(key).cloned().unwrap_or_default(),
                next: change.value.clone(),
            })
            .collect();
        self.drifted(author, changes, &Arc::from(format!("window extended by {seconds} s")));
        if let Some(window) = self.window_report() {
            self.reply(ticket, Reply::Extended { window });
        }
    }

    // ---- emergencies ----

    fn on_emergency_asked(&mut self, ticket: Ticket, author: &Author, reason: &str) {
        if reason.trim().is_empty() || reason.len() > REASON_BYTES_MAX {
            let problem = Arc::from(format!("an emergency needs a reason of 1 to {REASON_BYTES_MAX} bytes"));
            return self.refuse(ticket, Refused::Invalid { problem });
        }
        if let Some(emergency) = &self.ledger.emergency {
            let problem = format!("the node is in an emergency already: {}", emergency.reason);
            return self.refuse(ticket, Refused::NotNow { problem: problem.into() });
        }
        let policy = self.policy();
        if !policy.emergency_allowed {
            let problem = Arc::from("the node's policy allows no emergency");
            return self.refuse(ticket, Refused::Forbidden { problem });
        }
        if let Some(refused) = self.no_room() {
            return self.refuse(ticket, refused);
        }
        let reason: Arc<str> = Arc::from(reason);
        let is_next = self.spool.is_empty();
        let number = self.event(author.clone(), Fact::EmergencyStart { reason: reason.clone() });
        self.ledger.emergency = Some(Emergency {
            author: author.clone(),
            reason: reason.clone(),
            since: self.now.wall,
            deadline: self.now.boot.plus_seconds(u64::from(policy.emergency_window_seconds)),
            alerted: false,
            event: number,
            recorded: None,
        });
        self.notice(Level::Warn, format!("emergency by {}: {reason}", author.principal));
        self.reassess();
        if is_next && self.link.is_up() {
            self.awaiting.insert(number, ticket);
        } else {
            let seconds = u64::from(policy.emergency_window_seconds);
            self.reply(ticket, Reply::EmergencyStarted { sequence: None, seconds });
        }
    }

    fn on_emergency_end_asked(&mut self, ticket: Ticket, author: Author, force: bool) {
        if self.ledger.emergency.is_none() {
            let problem = Arc::from("the node is in no emergency");
            return self.refuse(ticket, Refused::NotNow { problem });
        }
        if !force && !self.ledger.changes.is_empty() {
            let keys = listed(self.ledger.changes.keys());
            let problem =
                format!("this still differs from what is declared: {keys}: commit, roll back, or end it with --force");
            return self.refuse(ticket, Refused::NotNow { problem: problem.into() });
        }
        let how = if self.ledger.changes.is_empty() { "ended, nothing differs" } else { "ended by force" };
        self.end_emergency(author, how);
        self.reassess();
        let window = self.window_report();
        self.reply(ticket, Reply::EmergencyEnded { window });
    }

    pub(super) fn end_emergency_by_rollback(&mut self) {
        if let Some(emergency) = &self.ledger.emergency {
            let author = emergency.author.clone();
            self.end_emergency(author, "ended by a rollback");
        }
    }

    /// What differs is told again: the journal goes back to what it knew before the emergency.
    fn end_emergency(&mut self, author: Author, how: &str) {
        let Some(emergency) = self.ledger.emergency.take() else { return };
        self.notice(Level::Info, format!("the emergency is over ({how}): {}", emergency.reason));
        let deadline = self.now.boot.plus_seconds(self.settings.conflict_grace_seconds);
        for conflict in self.ledger.conflicts.values_mut() {
            conflict.deadline = conflict.deadline.max(deadline);
        }
        self.event(author, Fact::EmergencyEnd { message: Arc::from(how) });
        self.tell_anew();
        self.ledger.told_drift = true;
    }

    /// An emergency outlasts its window: people are told, once, and it stays.
    pub(super) fn alert_emergency(&mut self) {
        let now = self.now.boot;
        let Some(emergency) = &mut self.ledger.emergency else { return };
        if emergency.alerted || emergency.deadline > now {
            return;
        }
        emergency.alerted = true;
        let text = format!("the emergency outlasts its window: {}", emergency.reason);
        self.notice(Level::Alert, text.clone());
        let author = self.settings.author.clone();
        self.event(author, Fact::Note { message: clipped(&text) });
    }

    // ---- commands and shells ----

    fn on_exec_asked(&mut self, ticket: Ticket, author: Author, arguments: &[Arc<str>]) {
        let detail = arguments.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        if detail.trim().is_empty() || detail.len() > MESSAGE_BYTES_MAX {
            let problem =
                Arc::from(format!("a command line has 1 to {MESSAGE_BYTES_MAX} bytes, this one {}", detail.len()));
            return self.refuse(ticket, Refused::Invalid { problem });
        }
        if !allows(&self.policy().exec_allow, arguments) {
            return self.forbid_run(ticket, &detail);
        }
        self.want_run(WantedRun { ticket, author, kind: OperationKind::Exec, detail: detail.into() });
    }

    fn on_shell_asked(&mut self, ticket: Ticket, author: Author) {
        if !allows(&self.policy().exec_allow, &[Arc::from(SHELL_WORD)]) {
            return self.forbid_run(ticket, SHELL_WORD);
        }
        self.want_run(WantedRun { ticket, author, kind: OperationKind::ShellStart, detail: Arc::from(SHELL_WORD) });
    }

    fn forbid_run(&mut self, ticket: Ticket, detail: &str) {
        let allowed = self.policy().exec_allow;
        let problem = if allowed.is_empty() {
            format!("the policy allows no command here, so not {detail:?}")
        } else {
            format!("the policy does not allow {detail:?}, only what begins with: {}", listed(&allowed))
        };
        self.refuse(ticket, Refused::Forbidden { problem: problem.into() });
    }

    fn want_run(&mut self, run: WantedRun) {
        self.wanted_runs.push_back(run);
        if !self.link.is_up() {
            self.run_without_journal();
        }
    }

    /// The journal is away. In an emergency an operation is recorded on the node's disk before it runs, and the journal learns
    /// it later; otherwise it does not run.
    pub(super) fn run_without_journal(&mut self) {
        for run in core::mem::take(&mut self.wanted_runs) {
            self.run_spooled(run);
        }
    }

    fn run_spooled(&mut self, run: WantedRun) {
        let WantedRun { ticket, author, kind, detail } = run;
        if self.ledger.emergency.is_none() {
            return self.refuse(ticket, Refused::NoQuorum);
        }
        if let Some(refused) = self.no_room() {
            return self.refuse(ticket, refused);
        }
        self.event(author, Fact::Operation { kind, detail, exit_status: None });
        self.reply(ticket, Reply::Run { sequence: None });
    }

    pub(super) fn pump_runs(&mut self) {
        while !self.wanted_runs.is_empty() {
            let Some(attempt) = self.draw() else { return };
            let Some(run) = self.wanted_runs.pop_front() else { return };
            let draft = OperationDraft {
                kind: run.kind,
                scope: Scope::Node(self.settings.node.clone()),
                detail: run.detail.clone(),
                exit_status: None,
                occurred_at: Some(self.now.wall),
            };
            let write = WriteRequest {
                request: RequestId::OneShot { id: attempt.id, drawn_at: attempt.drawn_at },
                author: run.author.clone(),
                command: Command::Journal(JournalCommand::RecordOperation(draft)),
            };
            self.ask(Ask::Run { run, attempt }, write);
        }
    }

    pub(super) fn on_run_answered(&mut self, run: WantedRun, attempt: Attempt, outcome: Outcome) {
        match outcome {
            Outcome::Applied { reply, .. } => {
                let sequence = recorded(&reply);
                self.known = self.known.max(sequence);
                self.reply(run.ticket, Reply::Run { sequence: Some(sequence) });
            }
            Outcome::Refused(refusal) => self.refuse(run.ticket, Refused::Journal(refusal)),
            Outcome::NotApplied(NotApplied::TooLarge { .. } | NotApplied::FeatureLevel { .. }) => {
                let problem = Arc::from("the journal cannot record this operation: it is too large for it");
                self.refuse(run.ticket, Refused::Invalid { problem });
            }
            Outcome::NotApplied(_) => self.run_spooled(run),
            Outcome::Unknown(_) => self.reply(run.ticket, Reply::Unknown { request: attempt.id }),
        }
    }
}

/// Whether a policy allows a command: one of its lines is how the command begins, word by word.
fn allows(allowed: &[Arc<str>], arguments: &[Arc<str>]) -> bool {
    allowed.iter().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        !words.is_empty()
            && words.len() <= arguments.len()
            && words.iter().zip(arguments).all(|(word, argument)| *word == &**argument)
    })
}

/// A word of a command line, quoted if it would read as several.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<Arc<str>> {
        line.split(' ').map(Arc::from).collect()
    }

    #[test]
    fn a_policy_allows_what_begins_with_one_of_its_lines_word_by_word() {
        let policy = [Arc::from("systemctl status"), Arc::from("uptime")];
        assert!(allows(&policy, &words("uptime")));
        assert!(allows(&policy, &words("uptime -p")));
        assert!(allows(&policy, &words("systemctl status nginx")));
        assert!(!allows(&policy, &words("systemctl stop nginx")));
        assert!(!allows(&policy, &words("systemctl")));
        assert!(!allows(&policy, &words("uptimes")));
        assert!(!allows(&[], &words("uptime")));
        assert!(!allows(&[Arc::from(" ")], &words("uptime")));
    }

    #[test]
    fn a_recorded_command_line_reads_as_it_ran() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted("--all=1"), "--all=1");
        assert_eq!(quoted(""), "''");
    }
}
