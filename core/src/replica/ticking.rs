//! Raft's ticks: which need a step of their own, and which only pass.
//!
//! Most ticks of a replica that has nothing to do move a counter and nothing else. After every step the replica knows how many
//! such ticks lie ahead; it rests through them, and they are counted, before anything else, in the step that comes next.
//!
//! Invariants
//! - a tick that could time something out is taken by itself, after the inbox;
//! - however long a process stood still, no more than [`REST_TICKS_MAX`] ticks and that one are counted; the others are
//!   dropped, for a pause must not look like many silent heartbeats;
//! - while anything waits for its time (a write, a read, a transfer), no tick is rested through.

use super::{Replica, Timing, mix};
use crate::ids::Time;
use raft::StateRole;

/// Ticks that may pass without a step. Larger: fewer wake-ups of an idle replica; smaller: less silence counted after a pause.
const REST_TICKS_MAX: u64 = 4;

impl Replica {
    /// Whether ticks count at the moment.
    pub(super) fn may_tick(&self) -> bool {
        let sole_voter = self.configuration.voters == [self.identity.replica] && !self.configuration.is_joint();
        // A sole voter wins inside its campaign: what it wins with must be durable. So must a snapshot, for whoever campaigns.
        let must_wait = (sole_voter && !self.unwritten.is_empty()) || self.is_installing();
        self.is_leader() || (self.now >= self.quiet_until && !must_wait)
    }

    /// After how many ticks without a leader this replica asks around: a function of seed, replica, term and attempt.
    fn patience_ticks(&self) -> usize {
        let timing = self.settings.timing;
        let (min, max) = (
            Timing::ticks(timing.election_ms_min, timing.tick_ms) as u64,
            Timing::ticks(timing.election_ms_max, timing.tick_ms) as u64,
        );
        let draw =
            mix(self.settings.seed ^ mix(self.identity.replica.0) ^ mix(self.raft.raft.term << 20 ^ self.attempts));
        usize::try_from(min + draw % (max - min)).unwrap_or(usize::MAX)
    }

    /// One tick of the library's.
    pub(super) fn tick_raft(&mut self) {
        // Whenever it likes, the library draws a timeout of its own.
        self.raft.raft.set_randomized_election_timeout(self.patience_ticks());
        self.raft.tick();
    }

    /// Counts the ticks that passed while the replica rested.
    pub(super) fn count_rested(&mut self) {
        let tick_ms = self.settings.timing.tick_ms;
        while self.rest_ticks > 0 && self.last_tick.plus_ms(tick_ms) <= self.now {
            self.rest_ticks -= 1;
            self.last_tick = self.last_tick.plus_ms(tick_ms);
            self.tick_raft();
        }
    }

    /// Decides how many ticks pass before the next one that needs a step.
    pub(super) fn rest(&mut self) {
        let nothing_waits =
            self.writes.len() == 0 && self.reads.len() == 0 && self.minimum_reads.is_empty() && self.transfer.is_none();
        self.rest_ticks = if nothing_waits && self.may_tick() {
            REST_TICKS_MAX.min(self.idle_ticks()).min(self.ticks_before_chores())
        } else {
            0
        };
        self.next_tick = self.last_tick.plus_ms(self.settings.timing.tick_ms * (self.rest_ticks + 1));
    }

    /// How many ticks only count: after them, nothing has timed out yet.
    fn idle_ticks(&self) -> u64 {
        let raft = &self.raft.raft;
        let before = |elapsed: usize, timeout: usize| timeout.saturating_sub(elapsed.saturating_add(1)) as u64;
        if raft.state == StateRole::Leader {
            let quorum_check = before(raft.election_elapsed, raft.election_timeout());
            quorum_check.min(before(raft.heartbeat_elapsed(), raft.heartbeat_timeout()))
        } else if raft.promotable() {
            before(raft.election_elapsed, self.patience_ticks())
        } else {
            u64::MAX
        }
    }

    /// How many ticks pass before a report is due, or a look after the house.
    fn ticks_before_chores(&self) -> u64 {
        let due = if self.is_leader() { self.house_due } else { self.report_due };
        let Time(nanos) = Time(due.0.saturating_sub(self.last_tick.0));
        nanos.div_ceil(self.settings.timing.tick_ms * 1_000_000).saturating_sub(1)
    }
}
