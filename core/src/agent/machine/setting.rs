//! An operator's change: checked, foretold, owned, durable, done, looked at.
//!
//! Order is everything here: values are checked and the keys looked at before anything is promised; the window is told before
//! it starts; owner, former value and deadline are on disk before the first key is touched; and what is answered was observed.
//! If the host refuses a part, the rest is taken back.

use super::differences::{as_observed, counts, next_change};
use super::{Activity, Machine, Purpose, Returning, Then, Work};
use crate::agent::drift::{DriftVector, SHORT_WINDOW_SECONDS, explain};
use crate::agent::effects::{HostWork, Ticket};
use crate::agent::host::{HostError, Observed};
use crate::agent::ledger::{Before, Cause, ChangeId, Doing, LocalChange, Owner};
use crate::agent::operator::{Consent, Forecast, Refused, Reply, seen};
use crate::agent::plan;
use crate::agent::value::{self, agrees};
use crate::journal::entry::{Author, Change};
use crate::journal::key::{Key, Setting};
use crate::journal::policy::Mode;
use crate::limits::CHANGES_MAX;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// A change that is asked for.
#[derive(Debug)]
pub(super) struct SetRequest {
    ticket: Ticket,
    author: Author,
    targets: BTreeMap<Key, Setting>,
    consent: Consent,
    merge: bool,
    message: Arc<str>,
}

/// A change that is being made.
#[derive(Debug)]
pub(super) struct Settled {
    ticket: Ticket,
    author: Author,
    change: ChangeId,
    targets: BTreeMap<Key, Setting>,
    message: Arc<str>,
}

impl Machine {
    /// Begins with what can be said without looking at the host.
    pub(super) fn on_set_asked(
        &mut self,
        ticket: Ticket,
        author: Author,
        changes: Vec<(Key, Setting)>,
        (consent, merge): (Consent, bool),
        message: Arc<str>,
    ) {
        match Self::fitting(changes) {
            Err(problem) => self.refuse(ticket, Refused::Invalid { problem: problem.into() }),
            Ok(targets) => {
                if let Some(refused) = self.no_room().filter(|_| consent != Consent::TellOnly) {
                    return self.refuse(ticket, refused);
                }
                let set = SetRequest { ticket, author, targets, consent, merge, message };
                if let Some(refused) = self.foreign(&set) {
                    return self.refuse(ticket, refused);
                }
                let wanted = set.targets.iter().map(|(key, setting)| (key.clone(), setting.clone()));
                let task = self.task(HostWork::Check(wanted.collect()));
                self.activity = Activity::Checking { task, set };
            }
        }
    }

    fn fitting(changes: Vec<(Key, Setting)>) -> Result<BTreeMap<Key, Setting>, alloc::string::String> {
        if changes.is_empty() || changes.len() > CHANGES_MAX {
            return Err(format!("there are {} changes: expected 1 to {CHANGES_MAX}", changes.len()));
        }
        let mut targets = BTreeMap::new();
        for (key, setting) in changes {
            if key.is_vcluster() {
                return Err("the key vcluster is no part of a machine: assign the node with a boot-config entry".into());
            }
            if setting == Setting::Unset {
                return Err(format!("{key} cannot be made unset on a node: expected a value, or absent"));
            }
            let setting = value::check_setting(&key, &setting).map_err(|unfit| format!("{key}: {unfit}"))?;
            if targets.insert(key.clone(), setting).is_some() {
                return Err(format!("{key} is there twice"));
            }
        }
        Ok(targets)
    }

    /// The refusal, if keys belong to somebody else's open change and are not to be taken over.
    fn foreign(&self, set: &SetRequest) -> Option<Refused> {
        if set.merge {
            return None;
        }
        let changed = set.targets.keys().filter_map(|key| Some((key, self.ledger.changes.get(key)?)));
        let others = changed.filter(|(_, change)| match &change.owner {
            Owner::Operator(_) => !change.owner.is(&set.author),
            Owner::BehindItsBack => true,
            Owner::NotReached => false,
        });
        let others: Vec<_> = others.map(|(key, change)| (key.clone(), change.owner.clone(), change.change)).collect();
        (!others.is_empty()).then_some(Refused::Owned(others))
    }

    pub(super) fn on_checked(&mut self, mut set: SetRequest, checked: Vec<Result<(Key, Setting), HostError>>) {
        let mut errors = Vec::new();
        for result in checked {
            match result {
                Ok((key, setting)) => {
                    if let Some(target) = set.targets.get_mut(&key) {
                        *target = setting;
                    }
                }
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            return self.refuse(set.ticket, Refused::Host(errors));
        }
        let keys: Vec<Key> = set.targets.keys().cloned().collect();
        self.look(keys, Then::Set(set));
    }

    pub(super) fn on_looked_before_set(&mut self, set: SetRequest) {
        self.reassess();
        let unseen = set.targets.keys().filter_map(|key| match self.observed.get(key) {
            Some(Observed::Value(_) | Observed::Absent) => None,
            Some(Observed::Unseen(why)) => Some((key, why.clone())),
            None => Some((key, Arc::from("the host did not look"))),
        });
        let unseen = unseen.map(|(key, why)| HostError {
            key: key.clone(),
            problem: Arc::from(format!("it cannot be seen here, so it could not be taken back: {why}")),
        });
        let unseen: Vec<HostError> = unseen.collect();
        if !unseen.is_empty() {
            return self.refuse(set.ticket, Refused::Host(unseen));
        }
        if let Some(refused) = self.foreign(&set) {
            return self.refuse(set.ticket, refused);
        }
        let forecast = self.forecast(&set.targets);
        let asks = match set.consent {
            Consent::TellOnly => true,
            Consent::UnlessShort => forecast.is_short,
            Consent::Yes => false,
        };
        if asks {
            return self.reply(set.ticket, Reply::Forecast(forecast));
        }
        self.begin_set(set);
    }

    /// What a key is brought back to, if it were changed now.
    fn future_baseline(&self, key: &Key) -> Option<Setting> {
        self.baseline(key).or_else(|| self.observed.get(key).and_then(seen))
    }

    /// What the window would be.
    fn forecast(&self, targets: &BTreeMap<Key, Setting>) -> Forecast {
        let policy = self.policy();
        let differs = |key: &Key, setting: &Setting| {
            self.future_baseline(key).is_some_and(|baseline| !agrees(key, &baseline, &as_observed(setting)))
        };
        let set = targets.iter().filter(|(key, setting)| differs(key, setting)).map(|(key, _)| key);
        let others = self.ledger.changes.keys().filter(|key| !targets.contains_key(*key));
        let others = others.filter(|key| self.difference(key).is_some());
        let differing: Vec<&Key> = set.chain(others).collect();
        let is_new = differing.iter().any(|key| self.difference(key).is_none() && counts(&policy, key));
        let drift = DriftVector::count(differing.iter().filter_map(|key| key.dimension()));
        let explanation = explain(&policy, &drift);
        let unguarded = self.unguarded(differing.iter().any(|key| counts(&policy, key)));
        let left = self.window_report().map(|window| window.seconds_left);
        let seconds = match left {
            Some(left) if is_new => left.min(explanation.seconds),
            Some(left) => left,
            None => explanation.seconds,
        };
        let seconds = unguarded.is_none().then_some(seconds);
        Forecast { explanation, seconds, unguarded, is_short: seconds.is_some_and(|s| s < SHORT_WINDOW_SECONDS) }
    }

    /// Why no window runs although something differs.
    pub(super) fn unguarded(&self, counts: bool) -> Option<Arc<str>> {
        let why = match (self.mode(), &self.ledger.emergency) {
            (_, Some(_)) => "the node is in an emergency: nothing rolls back by itself",
            (Mode::Observe, None) => "the policy only observes: nothing rolls back by itself",
            (Mode::Warn, None) => "the policy only warns: nothing rolls back by itself",
            (Mode::Enforce, None) if !counts => "nothing differs that counts",
            (Mode::Enforce, None) => return None,
        };
        Some(Arc::from(why))
    }

    /// Makes the change's owner, its former values and its deadline part of the ledger, then begins.
    fn begin_set(&mut self, set: SetRequest) {
        let SetRequest { ticket, author, targets, message, .. } = set;
        let steps = plan::steps(targets.iter().map(|(key, target)| (key, target, self.observed.get(key))));
        if steps.is_empty() {
            let change = self.ledger.last_change;
            let (window, unguarded) = (self.window_report(), None);
            return self.reply(ticket, Reply::Set { change, window, unguarded });
        }
        let change = next_change(&mut self.ledger.last_change);
        let mut keys = BTreeMap::new();
        let mut is_new = false;
        let policy = self.policy();
        for step in &steps {
            let Some(value) = self.observed.get(&step.key).and_then(seen) else { continue };
            let known = self.ledger.changes.get(&step.key).cloned();
            is_new |= self.difference(&step.key).is_none() && counts(&policy, &step.key);
            let before = known.as_ref().map_or_else(|| value.clone(), |known| known.before.clone());
            let owner = Owner::Operator(author.clone());
            let local = self.local_change(change, owner, before, step.setting.clone());
            let reported = known.as_ref().is_some_and(|known| known.reported);
            let local = LocalChange { asked: Some(step.setting.clone()), reported, ..local };
            self.ledger.changes.insert(step.key.clone(), local);
            keys.insert(step.key.clone(), Before { value, change: known });
        }
        self.ledger.doing = Some(Doing::Setting { change, keys });
        self.keep_window(is_new);
        let purpose = Purpose::Set(Settled { ticket, author, change, targets, message });
        self.carry_out(Work { steps, next: 0, errors: BTreeMap::new(), purpose });
    }

    /// The steps of a change were done, and the host was looked at.
    pub(super) fn on_set(&mut self, set: Settled, errors: &BTreeMap<Key, HostError>) {
        let Settled { ticket, author, change, targets, message } = set;
        let mut refused = Vec::new();
        for (key, target) in &targets {
            let is = match self.observed.get(key) {
                Some(Observed::Unseen(why)) => format!("it was changed and cannot be seen: {why}"),
                Some(observed) if agrees(key, target, observed) => continue,
                Some(observed) => {
                    let is = seen(observed).unwrap_or_default();
                    format!("it was to become {target} and is {is}")
                }
                None => "it was not looked at".into(),
            };
            let error = HostError { key: key.clone(), problem: is.into() };
            refused.push(errors.get(key).cloned().unwrap_or(error));
        }
        if !refused.is_empty() {
            let Some(Doing::Setting { keys, .. }) = self.ledger.doing.clone() else { return };
            let targets = keys.into_iter().map(|(key, before)| (key, before.value)).collect();
            let mut returning = Returning::new(Cause::Unfinished, targets);
            returning.ticket = Some(ticket);
            returning.refused = refused;
            return self.bring_back(returning);
        }
        let Some(Doing::Setting { keys, .. }) = self.ledger.doing.take() else { return };
        let (mut drifted, mut undone) = (Vec::new(), Vec::new());
        for (key, before) in keys {
            let Some(value) = self.observed.get(&key).and_then(seen) else { continue };
            if self.is_baseline(&key, &value) {
                self.ledger.changes.remove(&key);
                self.ledger.conflicts.remove(&key);
                if before.change.is_some_and(|change| change.reported) {
                    undone.push(Change { key, previous: before.value, next: value });
                }
                continue;
            }
            let previous = self.declared_for(&key).cloned().unwrap_or_default();
            if let Some(local) = self.ledger.changes.get_mut(&key).filter(|local| local.change == change) {
                local.value.clone_from(&value);
                drifted.push(Change { key, previous, next: value });
            }
        }
        let message =
            if message.is_empty() { Arc::from("changed through the agent") } else { super::clipped(&message) };
        if !undone.is_empty() {
            self.undone(&author, undone, &message);
        }
        if !drifted.is_empty() {
            self.drifted(&author, drifted, &message);
        }
        self.reassess();
        let policy = self.policy();
        let matters = self.ledger.changes.keys().any(|key| counts(&policy, key));
        let differs = !self.ledger.changes.is_empty();
        let unguarded = if differs { self.unguarded(matters) } else { None };
        let window = self.window_report();
        self.reply(ticket, Reply::Set { change, window, unguarded });
    }
}
