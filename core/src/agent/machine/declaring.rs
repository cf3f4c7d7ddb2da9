//! What the journal declares: how a node boots into it, and how a newer word of it is accepted.
//!
//! A node boots from the journal if it answers, else from what it kept. In a new boot whatever was not committed is lost: it is
//! brought back to what is declared like everything else, and the journal is told what was lost. In the same boot nothing is
//! lost: windows, emergency and spool go on as they were.
//!
//! A newer word is accepted only after the journal was told what differs here. Then a key that was changed here *and* in the
//! journal stands still (a conflict), and all others become what is declared.

use super::{Machine, Returning, Then};
use crate::agent::effects::Level;
use crate::agent::host::BootId;
use crate::agent::ledger::{Cause, Conflict, Declared, Doing, Owner};
use crate::agent::value::agrees;
use crate::ids::Seq;
use crate::journal::key::{Key, Setting};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::sync::Arc;

/// How far this boot of the machine has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Boot {
    /// What is declared is not known yet: the journal is asked first. `gently`: the ledger was lost in the middle of a boot, so
    /// what differs is drift.
    Waiting { gently: bool },
    /// What is declared is being brought about.
    Running,
    /// The agent watches.
    Done,
}

impl Machine {
    /// Finds out how far the boot has come. `found`: there was a ledger.
    pub(super) fn begin_boot(&mut self, boot: BootId, found: bool, gently: bool) {
        let booting = matches!(&self.ledger.doing, Some(Doing::Returning { cause: Cause::Boot, .. }));
        let rebooted = self.ledger.boot != boot;
        if found && !rebooted && !booting {
            self.boot = Boot::Done;
            self.resumes = self.ledger.doing.is_some();
            let managed = self.managed();
            if !managed.is_empty() {
                self.look(managed, Then::Start);
            }
            return;
        }
        self.boot = Boot::Waiting { gently };
        if rebooted {
            let lost: BTreeSet<Key> = self.ledger.changes.keys().cloned().collect();
            self.notice(Level::Info, format!("the machine booted; {} uncommitted changes are lost", lost.len()));
            self.ledger.boot = boot;
            self.ledger.window = None;
            self.ledger.conflicts = BTreeMap::new();
            self.ledger.commit = None;
            let deadline = self.now.boot.plus_seconds(u64::from(self.policy().emergency_window_seconds));
            if let Some(emergency) = &mut self.ledger.emergency {
                emergency.deadline = deadline;
                emergency.alerted = false;
            }
            self.ledger.doing = None;
        }
        if !gently {
            self.ledger.doing = Some(Doing::Returning { cause: Cause::Boot, keys: BTreeSet::new() });
        }
    }

    /// Boots, as soon as it is known into what.
    pub(super) fn try_boot(&mut self) -> bool {
        let Boot::Waiting { gently } = self.boot else { return false };
        if let Some(declared) = self.offered.take() {
            if self.declared.as_ref().is_none_or(|old| old.sequence <= declared.sequence) {
                self.adopt(declared);
            }
        } else if self.declared.is_none() || !self.link.is_down() {
            return false;
        }
        let managed = self.managed();
        if gently {
            self.boot = Boot::Done;
            self.look(managed, Then::Start);
            return true;
        }
        self.boot = Boot::Running;
        let targets = managed.into_iter().filter_map(|key| Some((key.clone(), self.baseline(&key)?))).collect();
        self.bring_back(Returning::new(Cause::Boot, targets));
        true
    }

    pub(super) fn on_declared(&mut self, mut declared: Declared) {
        declared.settings.retain(|key, setting| !key.is_vcluster() && *setting != Setting::Unset);
        self.known = self.known.max(declared.sequence);
        let newest = |known: &Declared| known.sequence;
        let newest = self.offered.as_ref().map(newest).max(self.declared.as_deref().map(newest));
        let waits = matches!(self.boot, Boot::Waiting { .. });
        if newest.is_none_or(|newest| newest < declared.sequence || (waits && newest == declared.sequence)) {
            self.offered = Some(declared);
        }
    }

    /// Accepts what the journal declares since, unless it was not told yet what differs here.
    pub(super) fn try_accept(&mut self) -> bool {
        if self.offered.is_none() || (!self.ledger.changes.is_empty() && !self.spool.is_empty()) {
            return false;
        }
        if self.ledger.changes.values().any(|change| !change.reported) {
            return false;
        }
        let Some(declared) = self.offered.take() else { return false };
        let before: BTreeMap<Key, Option<Setting>> =
            self.managed().into_iter().map(|key| (key.clone(), self.declared_for(&key).cloned())).collect();
        let first = self.declared.is_none();
        self.adopt(declared);
        if first {
            // Nothing was known, in the middle of a boot: what differs is drift.
            let managed = self.managed();
            self.look(managed, Then::Start);
            return true;
        }
        let mut targets = BTreeMap::new();
        let keys: BTreeSet<Key> = self.managed().into_iter().chain(before.keys().cloned()).collect();
        for key in keys {
            let old = before.get(&key).cloned().flatten();
            let new = self.declared_for(&key).cloned();
            if old != new {
                self.on_key_declared(&key, old, new, &mut targets);
            }
        }
        if targets.is_empty() {
            self.reassess();
        } else {
            self.keep_window(false);
            self.bring_back(Returning::new(Cause::Declared, targets));
        }
        true
    }

    /// The journal says something else about a key than it did.
    fn on_key_declared(
        &mut self,
        key: &Key,
        old: Option<Setting>,
        new: Option<Setting>,
        targets: &mut BTreeMap<Key, Setting>,
    ) {
        let Some(change) = self.ledger.changes.get(key) else {
            targets.extend(new.map(|new| (key.clone(), new)));
            return;
        };
        let Some(new) = new else {
            self.ledger.conflicts.remove(key);
            if !matches!(change.owner, Owner::Operator(_)) {
                self.ledger.changes.remove(key);
            }
            return;
        };
        if agrees(key, &new, &super::differences::as_observed(&change.value)) {
            self.ledger.conflicts.remove(key);
            self.ledger.changes.remove(key);
            return;
        }
        if change.owner == Owner::NotReached {
            targets.insert(key.clone(), new);
            return;
        }
        let deadline = self.now.boot.plus_seconds(self.settings.conflict_grace_seconds);
        let before = old.unwrap_or_default();
        let conflict = Conflict { before, declared: new.clone(), deadline };
        let known = self.ledger.conflicts.entry(key.clone()).or_insert(conflict);
        known.declared = new.clone();
        let value = change.value.clone();
        self.notice(
            Level::Warn,
            format!("{key} was changed here to {value} and in the journal to {new}: commit it or roll it back"),
        );
    }

    fn adopt(&mut self, declared: Declared) {
        let sequence = declared.sequence;
        self.ledger.declared = Some(sequence);
        self.ledger.committed.retain(|_, (committed, _): &mut (Seq, Setting)| *committed > sequence);
        let declared = Arc::new(declared);
        self.new_declared = Some(declared.clone());
        self.declared = Some(declared);
    }
}
