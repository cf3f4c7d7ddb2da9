//! What one scope says about one key: a stack of pairs, of which the top counts.
//!
//! Invariants:
//! - live pairs ascend by sequence, and there are at most [`STACK_DEPTH_MAX`] of them;
//! - a live pair is forgotten ("dropped") only while a permanent pair above hides it, and a rollback that would uncover it
//!   is refused, so forgetting is never visible in what is declared;
//! - a rolled-back pair is remembered by its sequence, so that a later rollback to a time when it counted is refused rather
//!   than answered wrongly; what is no longer remembered ("faded") is refused as too far back.
//!
//! Never looks at scopes, other keys or records.

use super::key::Setting;
use crate::ids::{Age, Seq};
use crate::limits::{STACK_DEPTH_MAX, TOMBSTONES_MAX};
use alloc::boxed::Box;
use alloc::collections::VecDeque;

/// A setting and the entry that pushed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The entry.
    pub sequence: Seq,
    /// What it says.
    pub setting: Setting,
    /// When it is due to expire; never if none.
    pub expires_at: Option<Age>,
}

/// A pair that an operator's rollback took off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// The pair's entry.
    pub pair: Seq,
    /// The rollback.
    pub taken_off_by: Seq,
}

/// Live pairs that were forgotten: all lie in this range, below a live permanent pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The first one's sequence.
    pub first: Seq,
    /// The last one's.
    pub last: Seq,
}

/// Rolled-back pairs that were forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faded {
    /// The first one's sequence.
    pub first: Seq,
    /// The last one's.
    pub last: Seq,
    /// From this rollback on, none of them counted.
    pub until: Seq,
}

/// Why a stack cannot go back to a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CannotReturn {
    /// What counted then was rolled back since.
    RolledBack(Tombstone),
    /// What counted then may be forgotten; from this sequence on it is remembered.
    TooFarBack { remembered_from: Seq },
}

/// What a stack remembers of pairs that are not live any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Past {
    pub(crate) gone: VecDeque<Tombstone>,
    pub(crate) dropped: Option<Dropped>,
    pub(crate) faded: Option<Faded>,
}

impl Past {
    fn fade(&mut self, first: Seq, last: Seq, until: Seq) {
        let old = self.faded.unwrap_or(Faded { first, last, until });
        self.faded = Some(Faded { first: old.first.min(first), last: old.last.max(last), until: old.until.max(until) });
    }
}

static NO_PAST: Past = Past { gone: VecDeque::new(), dropped: None, faded: None };

/// A stack of pairs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// The entry that last pushed onto it or took off from it. Kept when nothing is live.
    pub(crate) last_touch: Seq,
    pub(crate) live: VecDeque<Pair>,
    /// Apart, and none while it is empty: of all stacks hardly any has one.
    past: Option<Box<Past>>,
}

impl Stack {
    /// The empty stack.
    pub(crate) const fn new() -> Self {
        Self { last_touch: Seq(0), live: VecDeque::new(), past: None }
    }

    /// A stack with room for so many live pairs, and this past.
    pub(crate) fn with_past(last_touch: Seq, room: usize, past: Past) -> Self {
        let past = (past != NO_PAST).then(|| Box::new(past));
        Self { last_touch, live: VecDeque::with_capacity(room), past }
    }

    /// What it remembers of pairs that are not live any more.
    pub(crate) fn past(&self) -> &Past {
        self.past.as_deref().unwrap_or(&NO_PAST)
    }

    /// For something to be remembered.
    fn past_mut(&mut self) -> &mut Past {
        self.past.get_or_insert_default()
    }

    /// The pair that counts.
    #[must_use]
    pub fn top(&self) -> Option<&Pair> {
        self.live.back()
    }

    /// What the scope says: the top's setting, or that it says nothing.
    #[must_use]
    pub fn setting(&self) -> Setting {
        self.top().map_or(Setting::Unset, |pair| pair.setting.clone())
    }

    /// What the scope would say without the pair of one entry.
    pub(crate) fn setting_without(&self, pair: Seq) -> Setting {
        let top = self.live.iter().rev().find(|live| live.sequence != pair);
        top.map_or(Setting::Unset, |pair| pair.setting.clone())
    }

    /// The entry that last pushed onto it or took off from it.
    #[must_use]
    pub const fn last_touch(&self) -> Seq {
        self.last_touch
    }

    /// Whether one more pair fits, if need be by forgetting the oldest.
    pub(crate) fn has_room(&self, temporary: bool) -> bool {
        self.live.len() < STACK_DEPTH_MAX
            || !temporary
            || self.live.iter().skip(1).any(|pair| pair.expires_at.is_none())
    }

    /// Pushes a pair; gives the one that had to be forgotten for it.
    pub(crate) fn push(&mut self, pair: Pair) -> Option<Pair> {
        assert!(
            pair.sequence > self.last_touch,
            "a push at {} onto a stack last touched at {}",
            pair.sequence,
            self.last_touch
        );
        assert!(self.has_room(pair.expires_at.is_some()), "a push at {} onto a full stack", pair.sequence);
        self.last_touch = pair.sequence;
        if self.live.is_empty() {
            // Most stacks hold one pair for good: there are as many of them as nodes.
            self.live.reserve_exact(1);
        }
        self.live.push_back(pair);
        if self.live.len() <= STACK_DEPTH_MAX {
            return None;
        }
        let oldest = self.live.pop_front()?;
        let dropped = &mut self.past_mut().dropped;
        let first = dropped.map_or(oldest.sequence, |dropped| dropped.first);
        *dropped = Some(Dropped { first, last: oldest.sequence });
        Some(oldest)
    }

    /// Takes off one pair because it expired. No tombstone: what expired stays unset.
    pub(crate) fn expire(&mut self, pair: Seq, by: Seq) -> Option<Pair> {
        let at = self.live.iter().position(|live| live.sequence == pair)?;
        assert!(self.live[at].expires_at.is_some(), "pair {pair} is permanent and cannot expire");
        self.last_touch = by;
        self.live.remove(at)
    }

    /// Whether an operator's rollback may return to `target`, as far as this stack is concerned.
    pub(crate) fn may_return_to(&self, target: Seq) -> Result<(), CannotReturn> {
        let remaining = || self.live.iter().filter(|pair| pair.sequence <= target);
        let counted = remaining().map(|pair| pair.sequence).max();
        let past = self.past();
        let buried = past.gone.iter().filter(|gone| gone.pair <= target && gone.taken_off_by > target);
        if let Some(gone) = buried.max_by_key(|gone| gone.pair)
            && counted.is_none_or(|counted| counted < gone.pair)
        {
            return Err(CannotReturn::RolledBack(*gone));
        }
        if let Some(dropped) = past.dropped
            && target >= dropped.first
            && remaining().all(|pair| pair.expires_at.is_some())
        {
            let permanent = self.live.iter().find(|pair| pair.expires_at.is_none());
            let remembered_from = permanent.map_or(dropped.last.next(), |pair| pair.sequence);
            return Err(CannotReturn::TooFarBack { remembered_from });
        }
        if let Some(faded) = past.faded
            && target >= faded.first
            && target < faded.until
            && counted.is_none_or(|counted| counted < faded.last)
        {
            return Err(CannotReturn::TooFarBack { remembered_from: faded.until });
        }
        Ok(())
    }

    /// Takes off every pair later than `target`, as the rollback `by`; gives them, oldest first.
    pub(crate) fn return_to(&mut self, target: Seq, by: Seq) -> VecDeque<Pair> {
        let keep = self.live.partition_point(|pair| pair.sequence <= target);
        let off = self.live.split_off(keep);
        self.last_touch = by;
        let is_dropped = self.past().dropped.is_some_and(|dropped| dropped.first > target);
        if off.is_empty() && !is_dropped {
            return off;
        }
        let past = self.past_mut();
        if let Some(dropped) = past.dropped.take_if(|_| is_dropped) {
            past.fade(dropped.first, dropped.last, by);
        }
        for pair in &off {
            past.gone.push_back(Tombstone { pair: pair.sequence, taken_off_by: by });
        }
        while past.gone.len() > TOMBSTONES_MAX
            && let Some(oldest) = past.gone.pop_front()
        {
            past.fade(oldest.pair, oldest.pair, oldest.taken_off_by);
        }
        off
    }

    /// What is wrong with it, if anything.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        let ascending = self.live.iter().zip(self.live.iter().skip(1)).all(|(a, b)| a.sequence < b.sequence);
        if !ascending {
            return Some("its pairs do not ascend");
        }
        let past = self.past();
        if self.live.len() > STACK_DEPTH_MAX || past.gone.len() > TOMBSTONES_MAX {
            return Some("it is too deep");
        }
        if self.top().is_some_and(|top| top.sequence > self.last_touch) {
            return Some("its top is later than its last touch");
        }
        if let Some(dropped) = past.dropped {
            if self.live.iter().any(|pair| pair.sequence <= dropped.last) {
                return Some("a live pair lies below a forgotten one");
            }
            if self.live.iter().all(|pair| pair.expires_at.is_some()) {
                return Some("nothing permanent hides what is forgotten");
            }
        }
        None
    }
}
