//! Linearizable reads: many under one quorum round, each under a context that is never repeated.
//!
//! A leader asks the library for a read index under a fresh context per round; a follower asks the leader with a message of its
//! own (never the library's, whose contexts are caller-supplied and can release a younger read with an older index).
//!
//! Invariants
//! - no round starts before the leader committed an entry of its own term;
//! - a read joins only rounds that started after it arrived;
//! - a read is answered only once this replica applied up to the round's index.

use crate::ids::{Index, ReplicaId, Time};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

/// Whom a read index is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// A client of this process: answered once applied that far.
    Client(u64),
    /// A follower: told the index at once.
    Peer { replica: ReplicaId, token: u64 },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Waiter {
    pub(super) reader: Reader,
    pub(super) deadline: Time,
}

/// Rounds that may be under way at once; what arrives meanwhile shares the next.
pub(super) const ROUNDS_MAX: usize = 4;

/// A question to a quorum whether this leader leads still.
#[derive(Debug, Default)]
pub(super) struct Round {
    context: u64,
    /// When it began: its heartbeats were sent no sooner.
    pub(super) since: Time,
    pub(super) waiters: Vec<Waiter>,
}

pub(super) struct Reads {
    /// Not in a round yet.
    fresh: Vec<Waiter>,
    /// Leader: rounds under way, oldest first.
    rounds: VecDeque<Round>,
    /// Leader: a round is wanted that nobody waits for.
    renewal: bool,
    /// Follower: questions under way by token.
    asked: BTreeMap<u64, (ReplicaId, Time, Vec<Waiter>)>,
    /// Waiting for this replica to apply that far.
    applying: BTreeMap<Index, Vec<Waiter>>,
    next: u64,
}

impl Reads {
    /// `first` must differ between runs of one incarnation.
    pub(super) fn new(first: u64) -> Self {
        Self {
            fresh: Vec::new(),
            rounds: VecDeque::new(),
            renewal: false,
            asked: BTreeMap::new(),
            applying: BTreeMap::new(),
            next: first,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.fresh.len()
            + self.rounds.iter().map(|round| round.waiters.len()).sum::<usize>()
            + self.asked.values().map(|asked| asked.2.len()).sum::<usize>()
            + self.applying.values().map(Vec::len).sum::<usize>()
    }

    pub(super) fn add(&mut self, waiter: Waiter) {
        self.fresh.push(waiter);
    }

    pub(super) fn has_fresh(&self) -> bool {
        !self.fresh.is_empty() || self.renewal
    }

    /// Leader: wants a round for its own sake, unless one is under way.
    pub(super) fn renew(&mut self) {
        self.renewal = self.rounds.is_empty();
    }

    fn draw(&mut self) -> u64 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    /// Leader: the context of a new round for everything fresh, if there is room for one.
    pub(super) fn start_round(&mut self, now: Time) -> Option<u64> {
        if !self.has_fresh() || self.rounds.len() >= ROUNDS_MAX {
            return None;
        }
        let context = self.draw();
        let waiters = core::mem::take(&mut self.fresh);
        self.renewal = false;
        self.rounds.push_back(Round { context, since: now, waiters });
        Some(context)
    }

    /// Leader: a finished round.
    pub(super) fn finish_round(&mut self, context: u64) -> Option<Round> {
        let at = self.rounds.iter().position(|round| round.context == context)?;
        self.rounds.remove(at)
    }

    /// Follower: the token of a new question to `leader` for everything fresh.
    pub(super) fn ask(&mut self, leader: ReplicaId, now: Time) -> Option<u64> {
        if self.fresh.is_empty() {
            return None;
        }
        let token = self.draw();
        let waiters = core::mem::take(&mut self.fresh);
        self.asked.insert(token, (leader, now, waiters));
        Some(token)
    }

    /// Follower: the waiters of an answered question.
    pub(super) fn answered(&mut self, token: u64) -> Vec<Waiter> {
        self.asked.remove(&token).map(|asked| asked.2).unwrap_or_default()
    }

    /// Follower: questions older than `before`, or to somebody else than `leader`, are asked again.
    pub(super) fn ask_again(&mut self, leader: ReplicaId, before: Time) {
        let stale: Vec<u64> = self
            .asked
            .iter()
            .filter(|(_, (to, since, _))| *to != leader || *since <= before)
            .map(|(token, _)| *token)
            .collect();
        for token in stale {
            if let Some((_, _, waiters)) = self.asked.remove(&token) {
                self.fresh.extend(waiters);
            }
        }
    }

    /// Follower: `leader` said that it does not lead. Asked again after `since`, or as soon as another one is known.
    pub(super) fn postpone(&mut self, leader: ReplicaId, since: Time, waiters: Vec<Waiter>) {
        let token = self.draw();
        self.asked.insert(token, (leader, since, waiters));
    }

    /// Leadership was lost: the rounds are void. Peers' questions are dropped; they ask again.
    pub(super) fn abandon_rounds(&mut self) {
        self.renewal = false;
        let rounds = core::mem::take(&mut self.rounds);
        self.fresh.extend(rounds.into_iter().flat_map(|round| round.waiters));
        self.fresh.retain(|waiter| matches!(waiter.reader, Reader::Client(_)));
    }

    pub(super) fn wait_for(&mut self, index: Index, waiter: Waiter) {
        self.applying.entry(index).or_default().push(waiter);
    }

    /// The readers that may read now that this replica applied up to `index`.
    pub(super) fn applied(&mut self, index: Index) -> Vec<Waiter> {
        let later = self.applying.split_off(&index.next());
        core::mem::replace(&mut self.applying, later).into_values().flatten().collect()
    }

    /// Takes out what is past its deadline.
    pub(super) fn overdue(&mut self, now: Time) -> Vec<Waiter> {
        let mut out = Vec::new();
        let mut sift = |waiters: &mut Vec<Waiter>| {
            waiters.retain(|waiter| {
                let keep = waiter.deadline > now;
                if !keep {
                    out.push(*waiter);
                }
                keep
            });
        };
        sift(&mut self.fresh);
        self.rounds.iter_mut().for_each(|round| sift(&mut round.waiters));
        self.asked.values_mut().for_each(|asked| sift(&mut asked.2));
        self.applying.values_mut().for_each(sift);
        self.asked.retain(|_, asked| !asked.2.is_empty());
        self.applying.retain(|_, waiters| !waiters.is_empty());
        out
    }
}
