//! What differs from what is declared, whose it is, and the window that runs for it.
//!
//! A key is *managed* if it is declared, or if it was changed here: then what it was before stands in for a declaration.
//! While the host is being changed for some keys they count as they will be; the rest counts as it was last seen.

use super::{Boot, Machine, listed};
use crate::agent::drift::{DriftVector, explain, weight};
use crate::agent::effects::Level;
use crate::agent::event::Fact;
use crate::agent::host::{BootTime, Observed};
use crate::agent::ledger::{ChangeId, Doing, LocalChange, Owner, Window};
use crate::agent::operator::seen;
use crate::agent::value::agrees;
use crate::journal::command::ConfigState;
use crate::journal::entry::{Author, Change};
use crate::journal::key::{Key, Setting};
use crate::journal::policy::{Mode, Policy};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

impl Machine {
    /// What is declared for a key, by the journal.
    pub(super) fn declared_for(&self, key: &Key) -> Option<&Setting> {
        let committed = self.ledger.committed.get(key).map(|(_, setting)| setting);
        committed.or_else(|| self.declared.as_ref()?.settings.get(key))
    }

    /// What a key is brought back to: what is declared, else what it was before it was changed here.
    pub(super) fn baseline(&self, key: &Key) -> Option<Setting> {
        let before = || self.ledger.changes.get(key).map(|change| &change.before);
        self.declared_for(key).or_else(before).filter(|setting| **setting != Setting::Unset).cloned()
    }

    /// Every key that is looked after.
    pub(super) fn managed(&self) -> BTreeSet<Key> {
        let declared = self.declared.iter().flat_map(|declared| declared.settings.keys());
        declared.chain(self.ledger.committed.keys()).chain(self.ledger.changes.keys()).cloned().collect()
    }

    /// Whether a setting is what is declared.
    pub(super) fn is_baseline(&self, key: &Key, setting: &Setting) -> bool {
        self.baseline(key).is_some_and(|baseline| agrees(key, &baseline, &as_observed(setting)))
    }

    /// What a key is, if that is not what is declared. A key that cannot be seen is what it was; one that nobody declares and nobody
    /// changed does not differ, whatever it is.
    pub(super) fn difference(&self, key: &Key) -> Option<Setting> {
        if self.declared_for(key).is_none() && !self.ledger.changes.contains_key(key) {
            return None;
        }
        let was = || self.ledger.changes.get(key).map(|change| change.value.clone());
        let value = match self.observed.get(key) {
            Some(Observed::Unseen(_)) | None => was()?,
            Some(_) if self.in_flux(key) => was()?,
            Some(observed) => seen(observed)?,
        };
        (!self.is_baseline(key, &value)).then_some(value)
    }

    /// Counts what differs.
    pub(super) fn drift(&self) -> DriftVector {
        let differing = self.ledger.changes.keys().filter(|key| self.difference(key).is_some());
        DriftVector::count(differing.filter_map(Key::dimension))
    }

    /// Something may differ that did not, or no longer: keeps owners, window and what the journal is told up to date.
    pub(super) fn reassess(&mut self) {
        match self.boot {
            Boot::Waiting { .. } | Boot::Running => return,
            Boot::Done => {}
        }
        let mut ended = Vec::new();
        let mut change_number = None;
        let mut is_new = false;
        for key in self.managed() {
            if self.in_flux(&key) {
                continue;
            }
            match (self.difference(&key), self.ledger.changes.contains_key(&key)) {
                (Some(value), false) => {
                    is_new |= counts(&self.policy(), &key);
                    let before = self.baseline(&key).unwrap_or_default();
                    let change = *change_number.get_or_insert_with(|| next_change(&mut self.ledger.last_change));
                    let local = self.local_change(change, Owner::BehindItsBack, before, value);
                    self.ledger.changes.insert(key, local);
                }
                (Some(value), true) => {
                    let Some(local) = self.ledger.changes.get_mut(&key) else { continue };
                    if local.value == value {
                        continue;
                    }
                    local.value = value;
                    local.reported = false;
                    if local.owner != Owner::BehindItsBack {
                        local.owner = Owner::BehindItsBack;
                        local.asked = None;
                        local.change = *change_number.get_or_insert_with(|| next_change(&mut self.ledger.last_change));
                    }
                }
                (None, true) => {
                    let baseline = self.baseline(&key).unwrap_or_default();
                    self.ledger.conflicts.remove(&key);
                    if let Some(local) = self.ledger.changes.remove(&key)
                        && local.reported
                    {
                        ended.push(Change { key, previous: local.value, next: baseline });
                    }
                }
                (None, false) => {}
            }
        }
        if !ended.is_empty() {
            let keys = listed(ended.iter().map(|change| &change.key));
            self.notice(Level::Info, format!("is again what is declared: {keys}"));
            let author = self.settings.author.clone();
            let message: Arc<str> = Arc::from("reverted outside muster");
            self.undone(&author, ended, &message);
        }
        self.keep_window(is_new);
        self.report_drift();
        self.report_end();
    }

    /// If nothing differs and the journal may think otherwise, because what differed was declared or never undone by
    /// anybody, its word for the node is brought up to date.
    fn report_end(&mut self) {
        if self.ledger.told_drift && self.ledger.changes.is_empty() && self.ledger.emergency.is_none() {
            self.ledger.told_drift = false;
            let author = self.settings.author.clone();
            self.event(author, Fact::State { state: ConfigState::Committed });
        }
    }

    pub(super) fn local_change(&self, change: ChangeId, owner: Owner, before: Setting, value: Setting) -> LocalChange {
        LocalChange { change, owner, before, value, asked: None, since: self.now.wall, reported: false, problem: None }
    }

    /// Opens, tightens or closes the window, as what differs asks for. `is_new`: something differs that did not.
    pub(super) fn keep_window(&mut self, is_new: bool) {
        let policy = self.policy();
        let drift = self.drift();
        let mut differing = self.ledger.changes.keys().filter(|key| self.difference(key).is_some());
        let matters = differing.any(|key| counts(&policy, key));
        let being_set = matches!(self.ledger.doing, Some(Doing::Setting { .. }));
        if !matters && being_set && self.is_guarded() {
            // What is set back may yet turn out not to be: a crash or a refusal takes it back, and the same window goes on.
            return;
        }
        if !matters || !self.is_guarded() {
            if let Some(window) = self.ledger.window.take() {
                self.notice(Level::Info, format!("window {} is closed", window.number));
            }
            return;
        }
        let now = self.now.boot;
        let explanation = explain(&policy, &drift);
        let frozen_still = self.ledger.changes.values().any(|change| change.problem.is_some());
        let Some(window) = &mut self.ledger.window else {
            self.ledger.last_window += 1;
            let number = self.ledger.last_window;
            let deadline = now.plus_seconds(explanation.seconds);
            self.ledger.window = Some(Window { number, opened_at: now, deadline, drift, frozen: None });
            self.notice(Level::Warn, format!("window {number} is open: {explanation}"));
            return;
        };
        window.drift = drift;
        if let Some(frozen) = window.frozen.take_if(|_| !frozen_still) {
            window.deadline = BootTime(window.deadline.0.saturating_add(now.0.saturating_sub(frozen.at.0)));
        }
        let from = window.frozen.as_ref().map_or(now, |frozen| frozen.at);
        let tightened = from.plus_seconds(explanation.seconds);
        if is_new && tightened < window.deadline {
            window.deadline = tightened;
            let number = window.number;
            self.notice(Level::Warn, format!("window {number} ends sooner: {explanation}"));
        }
    }

    /// Tells the journal what differs that it was not told.
    pub(super) fn report_drift(&mut self) {
        if self.spool.is_crowded() {
            // The newest value is said when there is room again.
            return;
        }
        let unreported = |machine: &Self, key: &Key| !machine.in_flux(key) && machine.difference(key).is_some();
        let mut groups: BTreeMap<(Author, Arc<str>), Vec<Change>> = BTreeMap::new();
        for (key, change) in &self.ledger.changes {
            if change.reported || !unreported(self, key) {
                continue;
            }
            let (author, message) = match (&change.owner, &change.problem) {
                (Owner::Operator(author), _) => (author.clone(), Arc::from("changed through the agent")),
                (Owner::BehindItsBack, _) => (self.settings.author.clone(), Arc::from("changed outside muster")),
                (Owner::NotReached, None) => (self.settings.author.clone(), Arc::from("declared and not reached")),
                (Owner::NotReached, Some(problem)) => {
                    (self.settings.author.clone(), super::clipped(&format!("declared and not reached: {problem}")))
                }
            };
            let previous = self.declared_for(key).cloned().unwrap_or_default();
            let change = Change { key: key.clone(), previous, next: change.value.clone() };
            groups.entry((author, message)).or_default().push(change);
        }
        for ((author, message), changes) in groups {
            self.drifted(&author, changes, &message);
        }
    }

    /// Puts into the spool that keys differ.
    pub(super) fn drifted(&mut self, author: &Author, changes: Vec<Change>, message: &Arc<str>) {
        for change in &changes {
            if let Some(local) = self.ledger.changes.get_mut(&change.key) {
                local.reported = true;
            }
            let (key, previous, next) = (&change.key, &change.previous, &change.next);
            let mode = self.mode();
            let level = if mode == Mode::Observe { Level::Info } else { Level::Warn };
            self.notice(level, format!("{key} is {next}, declared is {previous}: {message}"));
        }
        self.ledger.told_drift = true;
        let message = message.clone();
        self.event_of(author, changes, |changes| Fact::Drift { changes, message: message.clone() });
    }

    /// Puts into the spool that keys are what is declared again. What still differs is told anew, because the journal takes
    /// this for the end of all drift.
    pub(super) fn undone(&mut self, author: &Author, changes: Vec<Change>, message: &Arc<str>) {
        let message = message.clone();
        self.event_of(author, changes, |changes| Fact::Undone { changes, message: message.clone() });
        self.ledger.told_drift = false;
        self.tell_anew();
    }

    /// What differs is told to the journal again.
    pub(super) fn tell_anew(&mut self) {
        for change in self.ledger.changes.values_mut() {
            change.reported = false;
        }
    }
}

/// Whether drift in the key's dimension counts for anything.
pub(super) fn counts(policy: &Policy, key: &Key) -> bool {
    key.dimension().is_some_and(|dimension| weight(policy, dimension).0 > 0)
}

/// The next number for a change.
pub(super) fn next_change(last: &mut ChangeId) -> ChangeId {
    last.0 += 1;
    *last
}

/// A setting as if it had been seen.
pub(super) fn as_observed(setting: &Setting) -> Observed {
    match setting {
        Setting::Value(value) => Observed::Value(value.clone()),
        Setting::Absent | Setting::Unset => Observed::Absent,
    }
}
