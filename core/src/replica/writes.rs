//! Client writes on their way: waiting for a leader, in this replica's log, or forwarded.
//!
//! Invariants
//! - every write gets exactly one answer, at its deadline at the latest;
//! - *not applied* is said only of a write that can be in no log: it never was, or another entry took the place of every copy;
//! - of a write that was forwarded once it is never said: the message may be repeated, and any leader may have logged it;
//! - a write may be in the log more than once (after leader changes); its request id makes it apply once.

use crate::ids::{Index, ReplicaId, Term, Time};
use crate::request::WriteRequest;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// Whom the answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A client of this process.
    Client(u64),
    /// A peer that forwarded it.
    Peer { replica: ReplicaId, token: u64 },
    /// This replica's own housekeeping: nobody waits.
    Own,
}

/// Where a write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Until a leader is known, not before a time.
    Waiting { not_before: Time },
    /// In this leader's log.
    Proposed,
    /// Sent to this leader.
    Forwarded { to: ReplicaId },
}

pub(super) struct Pending {
    pub(super) origin: Origin,
    pub(super) write: WriteRequest,
    pub(super) forward: bool,
    pub(super) deadline: Time,
    pub(super) stage: Stage,
    /// Log entries of this replica that hold it and were neither applied nor superseded.
    pub(super) copies: u32,
    /// Whether it was ever sent to a leader: how many copies there are is not known then.
    pub(super) travelled: bool,
}

impl Pending {
    /// A write that waits to be routed and is in no log yet.
    pub(super) fn waiting(origin: Origin, write: WriteRequest, forward: bool, now: Time, deadline: Time) -> Self {
        let stage = Stage::Waiting { not_before: now };
        Self { origin, write, forward, deadline, stage, copies: 0, travelled: false }
    }

    /// Whether it may be in some log.
    pub(super) fn may_be_logged(&self) -> bool {
        self.travelled || self.copies > 0
    }
}

/// All writes on their way.
pub(super) struct Writes {
    pending: BTreeMap<u64, Pending>,
    deadlines: BTreeSet<(Time, u64)>,
    by_index: BTreeMap<Index, (Term, u64)>,
    waiting: BTreeSet<u64>,
    next_key: u64,
}

impl Writes {
    /// `first_key` must differ between runs of one incarnation: keys travel as tokens.
    pub(super) fn new(first_key: u64) -> Self {
        Self {
            pending: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            by_index: BTreeMap::new(),
            waiting: BTreeSet::new(),
            next_key: first_key,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn add(&mut self, pending: Pending) -> u64 {
        let key = self.next_key;
        self.next_key = self.next_key.wrapping_add(1);
        self.deadlines.insert((pending.deadline, key));
        if matches!(pending.stage, Stage::Waiting { .. }) {
            self.waiting.insert(key);
        }
        self.pending.insert(key, pending);
        key
    }

    pub(super) fn get(&self, key: u64) -> Option<&Pending> {
        self.pending.get(&key)
    }

    pub(super) fn remove(&mut self, key: u64) -> Option<Pending> {
        let pending = self.pending.remove(&key)?;
        self.deadlines.remove(&(pending.deadline, key));
        self.waiting.remove(&key);
        Some(pending)
    }

    /// The writes that wait and may be routed now.
    pub(super) fn routable(&self, now: Time) -> Vec<u64> {
        self.waiting
            .iter()
            .copied()
            .filter(|key| matches!(self.pending[key].stage, Stage::Waiting { not_before } if not_before <= now))
            .collect()
    }

    pub(super) fn set_waiting(&mut self, key: u64, not_before: Time) {
        if let Some(pending) = self.pending.get_mut(&key) {
            pending.stage = Stage::Waiting { not_before };
            self.waiting.insert(key);
        }
    }

    pub(super) fn set_proposed(&mut self, key: u64, index: Index, term: Term) {
        if let Some(pending) = self.pending.get_mut(&key) {
            pending.stage = Stage::Proposed;
            pending.copies += 1;
            self.waiting.remove(&key);
            self.by_index.insert(index, (term, key));
        }
    }

    pub(super) fn set_forwarded(&mut self, key: u64, to: ReplicaId) {
        if let Some(pending) = self.pending.get_mut(&key) {
            pending.stage = Stage::Forwarded { to };
            pending.travelled = true;
            self.waiting.remove(&key);
        }
    }

    /// The write that was proposed at this position, and whether it is the one that was applied there. Either way this copy of
    /// it is settled.
    pub(super) fn applied(&mut self, index: Index, term: Term) -> Option<(u64, bool)> {
        let (proposed_term, key) = self.by_index.remove(&index)?;
        let pending = self.pending.get_mut(&key)?;
        pending.copies = pending.copies.saturating_sub(1);
        Some((key, proposed_term == term))
    }

    /// Forgets positions up to `index`, which a snapshot covers: what was proposed there stays unknown until its deadline.
    pub(super) fn skip_to(&mut self, index: Index) {
        self.by_index = self.by_index.split_off(&index.next());
    }

    /// Leadership moved: whatever is with the old leader is routed again. The request id makes that harmless.
    pub(super) fn reroute(&mut self, leader: ReplicaId, me: ReplicaId, now: Time) {
        let keys: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| match pending.stage {
                Stage::Waiting { .. } => false,
                Stage::Proposed => leader != me && pending.forward,
                Stage::Forwarded { to } => to != leader,
            })
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.set_waiting(key, now);
        }
    }

    /// Takes out what is past its deadline.
    pub(super) fn overdue(&mut self, now: Time) -> Vec<Pending> {
        let mut out = Vec::new();
        while let Some((deadline, key)) = self.deadlines.first().copied() {
            if deadline > now {
                break;
            }
            out.extend(self.remove(key));
        }
        out
    }

    /// Takes out everything.
    pub(super) fn drain(&mut self) -> Vec<Pending> {
        let keys: Vec<u64> = self.pending.keys().copied().collect();
        keys.into_iter().filter_map(|key| self.remove(key)).collect()
    }
}
