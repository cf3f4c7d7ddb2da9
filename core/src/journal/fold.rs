//! The same truth from records alone: what a scope declared at any sequence, and whether the chain holds.
//!
//! [`Fold`] replays records without any of the live state's machinery (no bounds, no indexes, no expiry of its own), so it
//! answers for the past, and is what live state is tested against. [`Verifier`] recomputes the chain over stored bytes.

use super::entry::{EntryType, Record};
use super::key::{Key, Scope, Setting};
use crate::codec;
use crate::ids::{Digest, Seq};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// What one scope declares, record by record.
#[derive(Clone, Debug)]
pub struct Fold {
    scope: Scope,
    sequence: Seq,
    head: Seq,
    stacks: BTreeMap<Key, Vec<(Seq, Setting)>>,
}

impl Fold {
    /// Before the first record.
    #[must_use]
    pub const fn new(scope: Scope) -> Self {
        Self { scope, sequence: Seq(0), head: Seq(0), stacks: BTreeMap::new() }
    }

    /// After a sequence, from what live state had there: the scope's head and the live pairs of its stacks. What live state had
    /// forgotten by then is never uncovered later, so the fold goes on as one that saw every record.
    #[must_use]
    pub(crate) const fn after(
        scope: Scope,
        sequence: Seq,
        head: Seq,
        stacks: BTreeMap<Key, Vec<(Seq, Setting)>>,
    ) -> Self {
        Self { scope, sequence, head, stacks }
    }

    /// Takes the next record, of whatever scope.
    ///
    /// # Panics
    /// If it is not a later one than the last.
    pub fn push(&mut self, record: &Record) {
        assert!(record.sequence() > self.sequence, "record {} after {}", record.sequence(), self.sequence);
        self.sequence = record.sequence();
        if *record.scope() != self.scope {
            return;
        }
        self.head = self.sequence;
        let Record::Entry(entry) = record else { return };
        if entry.entry_type.pushes() {
            for change in &entry.delta {
                self.stacks.entry(change.key.clone()).or_default().push((entry.sequence, change.next.clone()));
            }
        }
        if entry.entry_type != EntryType::Rollback {
            return;
        }
        for (key, sequence) in &entry.takes_off {
            let Some(stack) = self.stacks.get_mut(key) else { continue };
            // An operator's rollback leaves nothing later than its target, also of what live state had forgotten; an expiry
            // (it is based on nothing) takes off exactly what it lists.
            stack.retain(|(pair, _)| pair != sequence && (entry.based_on.is_none() || *pair <= entry.parent));
        }
    }

    /// The last sequence taken.
    #[must_use]
    pub const fn sequence(&self) -> Seq {
        self.sequence
    }

    /// The last sequence taken that is about the scope.
    #[must_use]
    pub const fn head(&self) -> Seq {
        self.head
    }

    /// What the scope declares here: each key it says something about, with the entry that says so.
    #[must_use]
    pub fn at(&self) -> BTreeMap<Key, (Seq, Setting)> {
        let tops = self.stacks.iter().filter_map(|(key, stack)| Some((key.clone(), stack.last()?.clone())));
        tops.filter(|(_, (_, setting))| *setting != Setting::Unset).collect()
    }
}

/// Where a chain breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The first sequence that is wrong.
    pub sequence: Seq,
    /// What is wrong with it.
    pub problem: String,
}

impl core::fmt::Display for Broken {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "the chain breaks at sequence {}: {}", self.sequence, self.problem)
    }
}

impl core::error::Error for Broken {}

/// Recomputes the chain over stored bytes.
#[derive(Clone, Debug)]
pub struct Verifier {
    next: Seq,
    head: Digest,
}

impl Default for Verifier {
    fn default() -> Self {
        Self::after(Seq(0), Digest::default())
    }
}

impl Verifier {
    /// From the first record on.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From a known head on.
    #[must_use]
    pub const fn after(sequence: Seq, head: Digest) -> Self {
        Self { next: sequence.next(), head }
    }

    /// Takes the next stored record; gives what it says.
    ///
    /// # Errors
    /// [`Broken`] if it does not decode, or says it is another one.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Record, Broken> {
        let broken = |problem: String| Broken { sequence: self.next, problem };
        let record = codec::decode_record(bytes).map_err(|error| broken(error.to_string()))?;
        if record.sequence() != self.next {
            return Err(broken(format!("the record says it is {}", record.sequence())));
        }
        self.head = self.head.chain(bytes);
        self.next = self.next.next();
        Ok(record)
    }

    /// Compares the head here with one that somebody kept.
    ///
    /// # Errors
    /// [`Broken`] names both.
    pub fn expect(&self, head: Digest) -> Result<(), Broken> {
        if self.head == head {
            return Ok(());
        }
        let sequence = self.sequence();
        Err(Broken { sequence, problem: format!("the chain's head here is {}, expected {head}", self.head) })
    }

    /// The last sequence taken.
    #[must_use]
    pub const fn sequence(&self) -> Seq {
        Seq(self.next.0 - 1)
    }

    /// The chain's head there.
    #[must_use]
    pub const fn head(&self) -> Digest {
        self.head
    }
}
