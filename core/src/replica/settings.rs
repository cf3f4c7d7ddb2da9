//! What an operator can set about a replica: when it acts, and how much it holds. Every bound has a name here.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// When a replica acts. All in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How finely time is looked at. Smaller: more distinct election timeouts; larger: fewer wake-ups.
    pub tick_ms: u64,
    /// How often a leader says that it leads. Smaller: faster reads after loss; larger: less traffic.
    pub heartbeat_ms: u64,
    /// Shortest time without a leader before a follower asks around. Larger: fewer false alarms.
    pub election_ms_min: u64,
    /// Longest such time (exclusive). The spread keeps two from asking at once.
    pub election_ms_max: u64,
    /// How long a request may take before it is answered *no quorum* or *unknown*.
    pub request_ms: u64,
    /// How much any replica's clock gains or loses at most against true time, in millionths. Who states it turns leases on: a
    /// leader then answers leased reads by itself for a while. A clock that is worse makes such a read stale. Larger: shorter
    /// leases. None: no read rests on a clock.
    pub lease_drift_ppm: Option<u32>,
}

/// The largest drift that may be stated. A clock that is off by a tenth is broken.
pub const LEASE_DRIFT_PPM_MAX: u32 = 100_000;

impl Timing {
    /// The seed's numbers, for one site: round trips well under 30 ms.
    pub const LAN: Self = Self {
        tick_ms: 10,
        heartbeat_ms: 150,
        election_ms_min: 300,
        election_ms_max: 500,
        request_ms: 5_000,
        lease_drift_ppm: None,
    };
    /// Between sites: round trips up to 300 ms with jitter of the same size.
    pub const WAN: Self = Self {
        tick_ms: 50,
        heartbeat_ms: 600,
        election_ms_min: 3_000,
        election_ms_max: 5_000,
        request_ms: 20_000,
        lease_drift_ppm: None,
    };

    pub(crate) fn ticks(ms: u64, tick_ms: u64) -> usize {
        usize::try_from(ms.div_ceil(tick_ms)).unwrap_or(usize::MAX)
    }

    /// How long a lease lasts on its leader's clock, from the sending of the heartbeats that a quorum acknowledged; none if leases
    /// are off. A follower waits at least the shortest election timeout less one tick, for its first tick may come at once; its
    /// clock may be fast, and the leader's slow.
    pub(crate) fn lease_nanos(&self) -> Option<u64> {
        let drift = u64::from(self.lease_drift_ppm?);
        let surely = u128::from(self.election_ms_min.saturating_sub(self.tick_ms)) * 1_000_000;
        let (slow, fast) = (1_000_000_u64.saturating_sub(drift), 1_000_000 + drift);
        u64::try_from(surely * u128::from(slow) / u128::from(fast)).ok()
    }

    /// All that is wrong with these numbers, in an operator's words; empty if nothing is.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.tick_ms == 0 || self.tick_ms > self.heartbeat_ms {
            problems.push(format!(
                "tick_ms is {}: expected 1 to heartbeat_interval_ms ({})",
                self.tick_ms, self.heartbeat_ms
            ));
        }
        if self.heartbeat_ms * 2 > self.election_ms_min {
            problems.push(format!(
                "heartbeat_interval_ms is {}: expected at most half of election_timeout_min_ms ({})",
                self.heartbeat_ms, self.election_ms_min
            ));
        }
        if self.election_ms_max < self.election_ms_min + 2 * self.tick_ms.max(1) {
            problems.push(format!(
                "election_timeout_max_ms is {}: expected at least {} above election_timeout_min_ms ({})",
                self.election_ms_max,
                2 * self.tick_ms.max(1),
                self.election_ms_min
            ));
        }
        if self.election_ms_max > 600_000 {
            problems.push(format!("election_timeout_max_ms is {}: expected at most 600000", self.election_ms_max));
        }
        if self.request_ms < self.election_ms_max || self.request_ms > 600_000 {
            problems.push(format!(
                "request_timeout_ms is {}: expected election_timeout_max_ms ({}) to 600000",
                self.request_ms, self.election_ms_max
            ));
        }
        if self.lease_drift_ppm.is_some_and(|drift| drift > LEASE_DRIFT_PPM_MAX) {
            problems.push(format!(
                "lease_clock_drift_ppm is {}: expected at most {LEASE_DRIFT_PPM_MAX}",
                self.lease_drift_ppm.unwrap_or_default()
            ));
        }
        problems
    }
}

const _: () = assert!(Timing::LAN.heartbeat_ms * 2 <= Timing::LAN.election_ms_min);
const _: () = assert!(Timing::WAN.heartbeat_ms * 2 <= Timing::WAN.election_ms_min);

/// How much a replica holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest encoded proposal, in bytes. Larger is answered *too large*.
    pub payload_bytes_max: u64,
    /// Client writes waiting for an outcome. More are told *busy*.
    pub writes_waiting_max: usize,
    /// Client reads waiting. More are told *busy*.
    pub reads_waiting_max: usize,
    /// Bytes of entries in one append message.
    pub append_bytes_max: u64,
    /// Append messages on their way to one follower.
    pub appends_inflight_max: usize,
    /// A snapshot is due after this many bytes of log.
    pub snapshot_log_bytes: u64,
    /// A snapshot is due after this many entries, once `snapshot_pause_ms` have passed since the last one.
    pub snapshot_entries: u64,
    /// See `snapshot_entries`.
    pub snapshot_pause_ms: u64,
    /// Bytes of log in memory. At this bound proposals are told *busy*.
    pub log_bytes_max: u64,
    /// Of what lies before the newest snapshot, at most this many bytes stay in memory for followers that lag.
    pub log_bytes_behind_snapshot: u64,
    /// A follower that shows no progress under a snapshot is offered one again after two seconds, then after twice as long each
    /// time, up to this.
    pub snapshot_patience_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload_bytes_max: 4 << 20,
            writes_waiting_max: 65_536,
            reads_waiting_max: 65_536,
            append_bytes_max: 1 << 20,
            appends_inflight_max: 256,
            snapshot_log_bytes: 64 << 20,
            snapshot_entries: 10_000,
            snapshot_pause_ms: 30_000,
            log_bytes_max: 192 << 20,
            log_bytes_behind_snapshot: 16 << 20,
            snapshot_patience_ms: 60_000,
        }
    }
}
