//! Who is served at once and who is told to come back: how a replica meets a hundred thousand nodes that boot together.
//!
//! A replica serves a bounded number of boots at a time. Whoever comes beyond that is told when to come back: after as long as
//! the replica needs for those that were told before, at the pace at which boots end here, spread so that they do not come
//! back together. A pure machine; servers and the simulator tell it what happened.
//!
//! Invariants
//! - never more than `streams_max` boots under way;
//! - a told wait is never longer than `wait_ms_max`, so a wrong guess of the pace costs one more question, not a long boot;
//! - whoever takes longer for a boot than [`BootLimits::may_take_ms`] gives up its place, so that readers who are slow, or dead,
//!   do not hold the places of those who are not;
//! - who asks for the same node over and over is told to wait by [`AskRates`] before it costs anything.
//!
//! It keeps no list of those that wait: a node that never comes back, or goes elsewhere, costs nothing.

use crate::ids::{ReplicaId, Time};
use crate::members::{MemberWish, Members};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

/// How many boots a replica serves, and what it tells the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootLimits {
    /// Boots under way at a time. Larger: a fast link is used better; smaller: peers' messages wait for fewer streams.
    pub streams_max: u32,
    /// The shortest wait that is told, in milliseconds.
    pub wait_ms_min: u64,
    /// The longest wait that is told, in milliseconds. Larger: fewer questions in a storm; smaller: a node that was told to wait
    /// by a replica that then falls idle waits less.
    pub wait_ms_max: u64,
    /// How long any boot may take, in milliseconds, whatever its size. Larger: a node whose network stalls is borne with for
    /// longer; smaller: dead ones hold their places for less.
    pub patience_ms: u64,
    /// The pace at which a node must take the bytes of its boot beyond that, over the whole boot. Larger: slow links are
    /// turned away; smaller: one that reads a byte at a time holds its place for longer.
    pub bytes_per_second_min: u64,
    /// How often a second the same node may ask, on average. Larger: one that asks without end costs more; smaller: one whose
    /// network breaks often waits more often.
    pub asks_per_second: u32,
    /// How many times the same node may ask at once after it was quiet.
    pub asks_burst: u32,
}

impl Default for BootLimits {
    fn default() -> Self {
        Self {
            streams_max: 2_048,
            wait_ms_min: 20,
            wait_ms_max: 4_000,
            patience_ms: 10_000,
            bytes_per_second_min: 16 << 10,
            asks_per_second: 10,
            asks_burst: 20,
        }
    }
}

impl BootLimits {
    /// How long a boot of so many bytes may take, in milliseconds.
    #[must_use]
    pub const fn may_take_ms(&self, bytes: u64) -> u64 {
        let pace = if self.bytes_per_second_min == 0 { 1 } else { self.bytes_per_second_min };
        self.patience_ms.saturating_add(bytes.saturating_mul(1_000) / pace)
    }
}

/// What a booting node is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admittance {
    /// It is served now; [`BootAdmission::end`] is to be called when that is over, however it ends.
    Now,
    /// It is to come back after so many milliseconds.
    Later {
        /// How many.
        after_ms: u64,
    },
}

/// The boots that a replica serves.
#[derive(Clone, Debug)]
pub struct BootAdmission {
    limits: BootLimits,
    under_way: u32,
    /// Those that were told to come back, as far as they were not served since.
    told: u64,
    /// How long it is from one boot's end to the next while all streams are taken, in nanoseconds; a moving average.
    pace_nanos: u64,
    /// When a boot last ended while all streams were taken.
    last_end: Option<Time>,
    seed: u64,
}

/// The first guess of the pace: two thousand boots a second.
const FIRST_PACE_NANOS: u64 = 500_000;

/// The pace is an average over about so many boots.
const PACE_OVER: u64 = 16;

impl BootAdmission {
    /// Nothing under way. The seed spreads what many are told.
    #[must_use]
    pub const fn new(limits: BootLimits, seed: u64) -> Self {
        Self { limits, under_way: 0, told: 0, pace_nanos: FIRST_PACE_NANOS, last_end: None, seed }
    }

    /// Boots under way.
    #[must_use]
    pub const fn under_way(&self) -> u32 {
        self.under_way
    }

    /// What it goes by.
    #[must_use]
    pub const fn limits(&self) -> &BootLimits {
        &self.limits
    }

    /// How many more could begin now.
    #[must_use]
    pub const fn free(&self) -> u32 {
        self.limits.streams_max.saturating_sub(self.under_way)
    }

    /// How many were told to come back and have not been served since, as far as is known.
    #[must_use]
    pub const fn told(&self) -> u64 {
        self.told
    }

    /// A node wants to boot.
    pub fn ask(&mut self) -> Admittance {
        if self.under_way < self.limits.streams_max {
            self.under_way += 1;
            self.told = self.told.saturating_sub(1);
            return Admittance::Now;
        }
        self.told = self.told.saturating_add(1);
        self.seed = crate::replica::mix(self.seed);
        let wait_ms = self.told.saturating_mul(self.pace_nanos) / 1_000_000;
        let wait_ms = wait_ms.clamp(self.limits.wait_ms_min, self.limits.wait_ms_max);
        // From three quarters of it to the whole.
        Admittance::Later { after_ms: wait_ms - self.seed % (wait_ms / 4 + 1) }
    }

    /// A boot is over.
    pub fn end(&mut self, now: Time) {
        if self.under_way == self.limits.streams_max {
            if let Some(last) = self.last_end {
                let took = now.0.saturating_sub(last.0);
                self.pace_nanos = (self.pace_nanos * (PACE_OVER - 1) + took) / PACE_OVER;
            }
            self.last_end = Some(now);
        } else {
            // With streams free, the time between two ends says how seldom somebody comes.
            self.last_end = None;
        }
        self.under_way = self.under_way.saturating_sub(1);
        if self.under_way == 0 {
            self.told = 0;
        }
    }
}

/// How often the same node asks. A fixed table of moments, one for each node by its name's hash: the moment at which what it asked
/// for so far would be due if it asked at the allowed pace. Two nodes may share one, and then share their pace too; with a burst
/// to each that is felt by nobody who boots.
pub struct AskRates {
    every_nanos: u64,
    burst_nanos: u64,
    seed: u64,
    due: Vec<AtomicU64>,
}

/// Moments that are kept: two megabytes.
const RATES_KEPT: usize = 1 << 18;

impl AskRates {
    /// Nobody has asked. The seed decides who shares a moment with whom.
    #[must_use]
    pub fn new(limits: &BootLimits, seed: u64) -> Self {
        let every_nanos = 1_000_000_000 / u64::from(limits.asks_per_second.max(1));
        let burst_nanos = every_nanos.saturating_mul(u64::from(limits.asks_burst.max(1) - 1));
        Self { every_nanos, burst_nanos, seed, due: (0..RATES_KEPT).map(|_| AtomicU64::new(0)).collect() }
    }

    /// A node asks. None if it may, else after how many milliseconds it may.
    #[must_use]
    pub fn ask(&self, node: &str, now: Time) -> Option<u64> {
        let hash = node.bytes().fold(self.seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let hash = crate::replica::mix(hash);
        let due = &self.due[usize::try_from(hash % RATES_KEPT as u64).unwrap_or(0)];
        let before = due.load(Ordering::Relaxed).max(now.0);
        let ahead = before - now.0;
        if ahead > self.burst_nanos {
            return Some((ahead - self.burst_nanos).div_ceil(1_000_000).max(1));
        }
        // Two that ask at the same instant may count once: a bound, not an account.
        due.store(before + self.every_nanos, Ordering::Relaxed);
        None
    }
}

/// Who else could serve a node that is told to wait: learners first, for they commit nothing, and from a place that moves on, so
/// that all are named alike.
#[must_use]
pub fn elsewhere(members: &Members, me: ReplicaId, turn: u64) -> Vec<Arc<str>> {
    let others = members.all().filter(|member| member.id != me && !member.client_address.is_empty());
    let (mut learners, mut voters): (Vec<_>, Vec<_>) = others
        .map(|member| (member.wish, member.client_address.clone()))
        .partition(|(wish, _)| *wish == MemberWish::Learner);
    for group in [&mut learners, &mut voters] {
        if !group.is_empty() {
            let by = usize::try_from(turn % group.len() as u64).unwrap_or(0);
            group.rotate_left(by);
        }
    }
    learners.into_iter().chain(voters).map(|(_, address)| address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn later(admittance: Admittance) -> u64 {
        match admittance {
            Admittance::Later { after_ms } => after_ms,
            Admittance::Now => panic!("it is served"),
        }
    }

    fn full(streams_max: u32) -> BootAdmission {
        let mut admission = BootAdmission::new(BootLimits { streams_max, ..BootLimits::default() }, 7);
        for _ in 0..streams_max {
            assert_eq!(admission.ask(), Admittance::Now);
        }
        admission
    }

    #[test]
    fn no_more_are_served_than_there_are_streams() {
        let mut admission = full(2);
        assert!(later(admission.ask()) > 0);
        admission.end(Time(1));
        assert_eq!(admission.ask(), Admittance::Now);
        assert_eq!(admission.under_way(), 2);
    }

    #[test]
    fn who_comes_later_is_told_to_come_later_and_nobody_longer_than_the_limit() {
        let mut admission = full(1);
        let waits: Vec<u64> = (0..100_000).map(|_| later(admission.ask())).collect();
        assert!(waits[0] < 100, "{}", waits[0]);
        assert!(waits[5_000] > 1_000, "{}", waits[5_000]);
        let longest = BootLimits::default().wait_ms_max;
        assert!(waits.iter().all(|wait| *wait <= longest));
        // They do not come back together.
        let together = waits[50_000..].iter().filter(|wait| **wait == longest).count();
        assert!(together < 500, "{together} of 50,000 are told the same");
    }

    #[test]
    fn a_boot_may_take_its_patience_and_what_its_bytes_need() {
        let limits = BootLimits { patience_ms: 1_000, bytes_per_second_min: 100, ..BootLimits::default() };
        assert_eq!(limits.may_take_ms(0), 1_000);
        assert_eq!(limits.may_take_ms(50), 1_500);
        assert_eq!(BootLimits { bytes_per_second_min: 0, ..limits }.may_take_ms(1), 2_000, "no division by nothing");
    }

    #[test]
    fn who_asks_a_thousand_times_a_second_is_served_at_the_allowed_pace_and_holds_up_nobody_else() {
        let rates = AskRates::new(&BootLimits { asks_per_second: 10, asks_burst: 20, ..BootLimits::default() }, 3);
        let at = |ms: u64| Time(0).plus_ms(ms);
        let served = (0..10_000).filter(|ms| rates.ask("n1", at(*ms)).is_none()).count();
        assert!((118..=120).contains(&served), "{served} in ten seconds");
        assert!(rates.ask("n2", at(10_000)).is_none());
        let wait = (0..9).find_map(|_| rates.ask("n1", at(10_000))).expect("it asks too often");
        assert!((1..=100).contains(&wait), "{wait}");
        assert!(rates.ask("n1", at(10_000 + wait)).is_none(), "it was told when it may");
    }

    #[test]
    fn a_hundred_thousand_nodes_that_boot_together_are_held_up_by_nobodys_name() {
        let rates = AskRates::new(&BootLimits::default(), 3);
        for node in 0..100_000 {
            assert!(rates.ask(&alloc::format!("n{node}"), Time(5)).is_none());
        }
    }

    #[test]
    fn the_wait_follows_the_pace_at_which_boots_end() {
        let mut waits = Vec::new();
        for every_ms in [1, 10] {
            let mut admission = full(1);
            for turn in 1..=200 {
                admission.end(Time(0).plus_ms(turn * every_ms));
                assert_eq!(admission.ask(), Admittance::Now);
            }
            let told: Vec<u64> = (0..100).map(|_| later(admission.ask())).collect();
            waits.push(told[99]);
        }
        assert!((70..=100).contains(&waits[0]), "100 at a pace of 1 ms: {}", waits[0]);
        assert!((700..=1_000).contains(&waits[1]), "100 at a pace of 10 ms: {}", waits[1]);
    }
}
