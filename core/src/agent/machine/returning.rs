//! Bringing keys back: looked at, asked who uses them, changed step by step, looked at again, and told as it came out.
//!
//! What somebody asked to take back, or a window's end takes back, is all or nothing as far as consumers are concerned: if one
//! key is used, none is touched, and the window stands still until somebody asks again. What the journal declares, and what a
//! booting node becomes, goes as far as it can: used keys are left and counted as drift.
//!
//! Invariant: no step touches a key that had a consumer when that was asked, right before the first step.

use super::differences::counts;
use super::{Activity, Boot, Machine, Purpose, Then, Work, clipped, listed};
use crate::agent::effects::{HostWork, Level, Ticket};
use crate::agent::host::{BootTime, Consumer, HostError, Observed};
use crate::agent::ledger::{Cause, Doing, Frozen, Owner};
use crate::agent::operator::{Reply, Returned, seen};
use crate::agent::plan::{self, Step};
use crate::agent::value::agrees;
use crate::journal::entry::{Author, Change};
use crate::journal::key::{Key, Setting};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Keys on their way back.
#[derive(Clone, Debug)]
pub(super) struct Returning {
    pub(super) cause: Cause,
    /// What each is to be.
    pub(super) targets: BTreeMap<Key, Setting>,
    /// Who waits for the outcome.
    pub(super) ticket: Option<Ticket>,
    /// It takes back a change that the host refused for these reasons.
    pub(super) refused: Vec<HostError>,
    /// What each was, as far as it differed.
    was: BTreeMap<Key, Setting>,
    /// Those that somebody changed on this node.
    changed_here: BTreeSet<Key>,
    /// Those that were changed outside muster, and no event says so yet.
    untold: BTreeSet<Key>,
    /// Keys that are left because they are used.
    left: BTreeMap<Key, Arc<str>>,
}

impl Returning {
    pub(super) const fn new(cause: Cause, targets: BTreeMap<Key, Setting>) -> Self {
        Self {
            cause,
            targets,
            ticket: None,
            refused: Vec::new(),
            was: BTreeMap::new(),
            changed_here: BTreeSet::new(),
            untold: BTreeSet::new(),
            left: BTreeMap::new(),
        }
    }
}

impl Machine {
    /// Begins to bring keys back.
    pub(super) fn bring_back(&mut self, mut returning: Returning) {
        if returning.cause != Cause::Unfinished {
            let keys = returning.targets.keys().cloned().collect();
            self.ledger.doing = Some(Doing::Returning { cause: returning.cause.clone(), keys });
        }
        // How far an unfinished change came is only seen on the host.
        let changed = returning.targets.keys().filter(|_| returning.cause != Cause::Unfinished);
        for key in changed {
            let Some(change) = self.ledger.changes.get(key) else { continue };
            returning.was.insert(key.clone(), change.value.clone());
            if change.owner != Owner::NotReached {
                returning.changed_here.insert(key.clone());
            }
            if change.owner == Owner::BehindItsBack && !change.reported {
                returning.untold.insert(key.clone());
            }
        }
        let keys: Vec<Key> = returning.targets.keys().cloned().collect();
        self.look(keys, Then::Return(returning));
    }

    /// Takes up what was going on when the process ended.
    pub(super) fn resume(&mut self) -> bool {
        match self.ledger.doing.clone() {
            None => false,
            Some(Doing::Setting { keys, .. }) => {
                let targets = keys.into_iter().map(|(key, before)| (key, before.value)).collect();
                self.bring_back(Returning::new(Cause::Unfinished, targets));
                true
            }
            Some(Doing::Returning { cause, keys }) => {
                let targets = keys.into_iter().filter_map(|key| Some((key.clone(), self.baseline(&key)?))).collect();
                self.bring_back(Returning::new(cause, targets));
                true
            }
        }
    }

    // ---- what is due by itself ----

    /// The keys that a window's end brings back: all that count, but for those that wait for somebody to decide.
    fn expiring(&self) -> BTreeMap<Key, Setting> {
        let policy = self.policy();
        let keys = self.ledger.changes.keys();
        let keys = keys.filter(|key| !self.ledger.conflicts.contains_key(*key) && counts(&policy, key));
        keys.filter_map(|key| Some((key.clone(), self.baseline(key)?))).collect()
    }

    /// When the window's end brings something back: a commit that was sent before it is waited for a little.
    pub(super) fn expires_at(&self) -> Option<BootTime> {
        let window = self.ledger.window.as_ref().filter(|window| window.frozen.is_none())?;
        if self.expiring().is_empty() {
            return None;
        }
        Some(self.commit_answers_by().map_or(window.deadline, |by| window.deadline.max(by)))
    }

    pub(super) fn try_expire(&mut self) -> bool {
        if self.expires_at().is_none_or(|at| at > self.now.boot) {
            return false;
        }
        let targets = self.expiring();
        let number = self.ledger.window.as_ref().map_or(0, |window| window.number);
        self.notice(Level::Warn, format!("window {number} expired: rolling back {}", listed(targets.keys())));
        self.forget_commit();
        self.bring_back(Returning::new(Cause::Expired, targets));
        true
    }

    /// When the first conflict is decided by itself.
    pub(super) fn conflict_ends_at(&self) -> Option<BootTime> {
        self.is_guarded().then(|| self.ledger.conflicts.values().map(|conflict| conflict.deadline).min()).flatten()
    }

    pub(super) fn try_end_conflicts(&mut self) -> bool {
        if self.conflict_ends_at().is_none_or(|at| at > self.now.boot) {
            return false;
        }
        let due = self.ledger.conflicts.iter().filter(|(_, conflict)| conflict.deadline <= self.now.boot);
        let due: Vec<Key> = due.map(|(key, _)| key.clone()).collect();
        let targets = due.into_iter().filter_map(|key| Some((key.clone(), self.baseline(&key)?))).collect();
        self.forget_commit();
        self.bring_back(Returning::new(Cause::Conflict, targets));
        true
    }

    // ---- step by step ----

    pub(super) fn on_looked_before_return(&mut self, mut returning: Returning) {
        let wanted = returning.targets.iter().map(|(key, target)| (key, target, self.observed.get(key)));
        let steps = plan::steps(wanted);
        for step in &steps {
            if let Some(value) = self.observed.get(&step.key).and_then(seen) {
                returning.was.insert(step.key.clone(), value);
            }
        }
        if steps.is_empty() {
            self.on_returned(returning, BTreeMap::new());
            return;
        }
        let task = self.task(HostWork::Consumers(steps.iter().map(|step| step.key.clone()).collect()));
        self.activity = Activity::Asking { task, returning, steps };
    }

    pub(super) fn on_consumers(&mut self, mut returning: Returning, mut steps: Vec<Step>, found: Vec<Consumer>) {
        let keys: BTreeSet<&Key> = steps.iter().map(|step| &step.key).collect();
        let consumers: Vec<Consumer> = found.into_iter().filter(|consumer| keys.contains(&consumer.key)).collect();
        let goes_on = match returning.cause {
            Cause::Boot | Cause::Declared => true,
            Cause::Expired | Cause::Asked(_) | Cause::Conflict | Cause::Unfinished => consumers.is_empty(),
        };
        if !goes_on {
            self.on_blocked(returning, consumers);
            return;
        }
        for consumer in &consumers {
            let problem = Arc::from(format!("{consumer}"));
            returning.left.entry(consumer.key.clone()).or_insert(problem);
        }
        steps.retain(|step| !returning.left.contains_key(&step.key));
        self.carry_out(Work { steps, next: 0, errors: BTreeMap::new(), purpose: Purpose::Return(returning) });
    }

    /// Somebody uses what was to be brought back: nothing was touched.
    fn on_blocked(&mut self, returning: Returning, consumers: Vec<Consumer>) {
        let text = format!("rollback blocked: {}", listed(&consumers));
        self.notice(Level::Alert, text.clone());
        for consumer in &consumers {
            if let Some(change) = self.ledger.changes.get_mut(&consumer.key) {
                change.problem = Some(clipped(&format!("{consumer}")));
            }
        }
        self.end_doing(&returning);
        self.conflict_is_over(&returning);
        self.freeze(consumers.clone(), Vec::new());
        let author = self.author_of(&returning.cause);
        let blocked: BTreeSet<&Key> = returning.targets.keys().collect();
        self.still_differs(&author, &blocked, &clipped(&text));
        let taken_back = Returned::Blocked { consumers };
        self.answer(returning, taken_back);
        self.reassess();
    }

    /// Everything that could be done was done, and was looked at.
    pub(super) fn on_returned(&mut self, returning: Returning, errors: BTreeMap<Key, HostError>) {
        let mut errors = errors;
        let mut changes = Vec::new();
        let mut keys = Vec::new();
        let mut failed = Vec::new();
        for (key, target) in &returning.targets {
            let problem = match self.observed.get(key) {
                Some(Observed::Unseen(why)) if returning.was.contains_key(key) => {
                    Some(Arc::from(format!("it cannot be seen: {why}")))
                }
                Some(Observed::Unseen(_)) => None,
                Some(observed) if agrees(key, target, observed) => None,
                Some(observed) => Some(returning.left.get(key).cloned().unwrap_or_else(|| {
                    let is = seen(observed).unwrap_or_default();
                    Arc::from(format!("it should be {target} and is {is}"))
                })),
                None => Some(Arc::from("it was not looked at")),
            };
            let Some(problem) = problem else {
                if let Some(was) = returning.was.get(key) {
                    keys.push(key.clone());
                    changes.push(Change { key: key.clone(), previous: was.clone(), next: target.clone() });
                }
                continue;
            };
            failed.push(errors.remove(key).unwrap_or(HostError { key: key.clone(), problem }));
        }
        self.come_back(&returning, &changes);
        if failed.is_empty() && matches!(returning.cause, Cause::Asked(_)) {
            self.end_emergency_by_rollback();
        }
        self.not_reached(&returning, &failed);
        self.end_doing(&returning);
        let author = self.author_of(&returning.cause);
        self.tell_outcome(&returning, &author, changes, &failed);
        let outcome =
            if failed.is_empty() { Returned::Done { keys } } else { Returned::Failed { keys, errors: failed } };
        self.reassess();
        self.answer(returning, outcome);
    }

    /// These keys are what they were to be: they belong to nobody any more, or to whom they did before.
    fn come_back(&mut self, returning: &Returning, changes: &[Change]) {
        let mut before = BTreeMap::new();
        if let (Cause::Unfinished, Some(Doing::Setting { keys, .. })) = (&returning.cause, &self.ledger.doing) {
            before.clone_from(keys);
        }
        let returned = changes.iter().map(|change| &change.key);
        let untouched = returning
            .targets
            .iter()
            .filter(|(key, target)| self.observed.get(*key).is_some_and(|observed| agrees(key, target, observed)));
        let keys: BTreeSet<Key> = returned.chain(untouched.map(|(key, _)| key)).cloned().collect();
        for key in keys {
            self.ledger.conflicts.remove(&key);
            match before.remove(&key).and_then(|before| before.change) {
                Some(change) => self.ledger.changes.insert(key, change),
                None => self.ledger.changes.remove(&key),
            };
        }
    }

    /// These keys are not what they were to be.
    fn not_reached(&mut self, returning: &Returning, failed: &[HostError]) {
        for error in failed {
            let value = self.observed.get(&error.key).and_then(seen);
            let known = self.ledger.changes.get_mut(&error.key);
            if let Some(change) = known {
                change.problem = Some(clipped(&error.problem));
                if let Some(value) = value {
                    change.value = value;
                }
                if returning.cause == Cause::Boot {
                    change.owner = Owner::NotReached;
                }
                continue;
            }
            let Some(value) = value else { continue };
            let number = super::differences::next_change(&mut self.ledger.last_change);
            let before = returning.targets.get(&error.key).cloned().unwrap_or_default();
            let mut change = self.local_change(number, Owner::NotReached, before, value);
            change.problem = Some(clipped(&error.problem));
            self.ledger.changes.insert(error.key.clone(), change);
        }
        self.conflict_is_over(returning);
    }

    /// A conflict whose key could not be brought back is plain drift from here on.
    fn conflict_is_over(&mut self, returning: &Returning) {
        if returning.cause == Cause::Conflict {
            for key in returning.targets.keys() {
                self.ledger.conflicts.remove(key);
            }
        }
    }

    fn tell_outcome(&mut self, returning: &Returning, author: &Author, changes: Vec<Change>, failed: &[HostError]) {
        let message: Arc<str> = match &returning.cause {
            Cause::Boot => "lost at a reboot: it was not committed".into(),
            Cause::Declared => "reached what is declared".into(),
            Cause::Expired => {
                let window = self.ledger.window.as_ref();
                let seconds = window.map_or(0, |window| window.deadline.seconds_since(window.opened_at));
                format!("rolled back: window {} expired after {seconds} s", window.map_or(0, |window| window.number))
                    .into()
            }
            Cause::Asked(_) => "rolled back by command".into(),
            Cause::Conflict => {
                let seconds = self.settings.conflict_grace_seconds;
                format!("given up: the journal declares something else, and nobody decided within {seconds} s").into()
            }
            Cause::Unfinished if returning.refused.is_empty() => {
                "taken back: the agent stopped in the middle of it".into()
            }
            Cause::Unfinished => {
                clipped(&format!("taken back: the host refused a part of it: {}", listed(&returning.refused)))
            }
        };
        // What a boot or a declaration brings about anew was never a change of this node's.
        let known = |change: &Change| {
            !matches!(returning.cause, Cause::Boot | Cause::Declared) || returning.changed_here.contains(&change.key)
        };
        let mut changes: Vec<Change> = changes.into_iter().filter(known).collect();
        if self.spool.is_crowded() && changes.iter().any(|change| returning.untold.contains(&change.key)) {
            changes.retain(|change| !returning.untold.contains(&change.key));
            self.leave_out();
        }
        if !changes.is_empty() {
            self.notice(Level::Info, format!("{message}: {}", listed(changes.iter().map(|change| &change.key))));
            self.undone(author, changes, &message);
        }
        if failed.is_empty() {
            return;
        }
        self.notice(Level::Alert, format!("could not be brought back: {}", listed(failed)));
        let keys: BTreeSet<&Key> = failed.iter().map(|error| &error.key).collect();
        match returning.cause {
            // Left to the window: tried once more at its end.
            Cause::Boot | Cause::Declared => {}
            Cause::Expired | Cause::Asked(_) | Cause::Conflict | Cause::Unfinished => {
                self.freeze(Vec::new(), failed.to_vec());
                self.still_differs(author, &keys, &clipped(&format!("rollback failed: {}", listed(failed))));
            }
        }
    }

    /// The window stands still until somebody asks.
    fn freeze(&mut self, consumers: Vec<Consumer>, errors: Vec<HostError>) {
        let at = self.now.boot;
        if let Some(window) = &mut self.ledger.window {
            let at = window.frozen.as_ref().map_or(at, |frozen| frozen.at).min(window.deadline);
            window.frozen = Some(Frozen { at, consumers, errors });
        }
    }

    fn still_differs(&mut self, author: &Author, keys: &BTreeSet<&Key>, message: &Arc<str>) {
        let differing = self.ledger.changes.iter().filter(|(key, _)| keys.contains(*key));
        let changes = differing.map(|(key, change)| Change {
            key: key.clone(),
            previous: self.declared_for(key).cloned().unwrap_or_default(),
            next: change.value.clone(),
        });
        let changes: Vec<Change> = changes.collect();
        // That they differ was said before; that somebody tried is said as long as there is room for what people do.
        let own = *author == self.settings.author;
        let has_no_room = if own { self.spool.is_crowded() } else { self.spool.is_full() };
        if has_no_room {
            return self.leave_out();
        }
        self.drifted(author, changes, message);
    }

    fn end_doing(&mut self, returning: &Returning) {
        self.ledger.doing = None;
        if returning.cause == Cause::Boot {
            self.boot = Boot::Done;
        }
    }

    fn author_of(&self, cause: &Cause) -> Author {
        match cause {
            Cause::Asked(author) => author.clone(),
            Cause::Boot | Cause::Declared | Cause::Expired | Cause::Conflict | Cause::Unfinished => {
                self.settings.author.clone()
            }
        }
    }

    fn answer(&mut self, returning: Returning, outcome: Returned) {
        let Some(ticket) = returning.ticket else { return };
        let reply = match (returning.cause, outcome) {
            (Cause::Unfinished, outcome) => {
                Reply::NotSet { errors: returning.refused, taken_back: outcome, window: self.window_report() }
            }
            (_, outcome) => Reply::Returned(outcome),
        };
        self.reply(ticket, reply);
    }
}
