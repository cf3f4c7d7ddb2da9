//! The client's decisions: which replica to ask next, when to ask again, under which request number.
//!
//! Pure machines; whoever holds the connections (`muster-net`, the simulator) tells them what happened and does what they
//! say. Reading order: [`Targets`] (whom), [`WriteAttempts`] (what became of one write), [`Session`] (its number),
//! [`BootAttempts`] (what a node does that is told to wait).
//!
//! Invariants
//! - a write is *not applied* only if every attempt certainly was not; one doubtful attempt makes it *unknown* until a
//!   replica says what became of it;
//! - every attempt of one write carries the same request id, so it is applied at most once;
//! - a session's numbers stay within [`IN_FLIGHT_MAX`] of what it has acknowledged.

mod boots;

pub use boots::BootAttempts;

use crate::ids::{SessionId, Time};
use crate::request::{NotApplied, Outcome, RequestId, UnknownWhy};
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// How far a session's numbers may run ahead of what it acknowledged: the cluster keeps this many replies.
pub const IN_FLIGHT_MAX: u64 = 1_024;

/// How many addresses a client remembers.
pub const ADDRESSES_MAX: usize = 64;

/// The first pause after every replica failed once, and the longest, in milliseconds.
const PAUSE_MS: (u64, u64) = (20, 1_000);

/// How often a replica that just failed may be named as leader before it is tried again.
const SHUNNED_MENTIONS: u32 = 100;

/// The replicas a client knows, and which of them to ask.
#[derive(Clone, Debug)]
pub struct Targets {
    addresses: Vec<Arc<str>>,
    current: usize,
    failures: u32,
    /// The last one that failed, and how many more mentions of it as leader are not believed: a leader that others reach
    /// may be out of our reach.
    shunned: Option<(Arc<str>, u32)>,
    seed: u64,
}

impl Targets {
    /// Knows these addresses, in the order in which to try them. The seed spreads the pauses of many clients.
    #[must_use]
    pub fn new(addresses: impl IntoIterator<Item = Arc<str>>, seed: u64) -> Self {
        let mut targets = Self { addresses: Vec::new(), current: 0, failures: 0, shunned: None, seed };
        addresses.into_iter().for_each(|address| targets.learn(address));
        targets
    }

    /// Whom to ask. None if no address is known at all.
    #[must_use]
    pub fn current(&self) -> Option<&Arc<str>> {
        self.addresses.get(self.current)
    }

    /// Every known address.
    #[must_use]
    pub fn addresses(&self) -> &[Arc<str>] {
        &self.addresses
    }

    /// Remembers one more address.
    pub fn learn(&mut self, address: Arc<str>) {
        if !address.is_empty() && !self.addresses.contains(&address) && self.addresses.len() < ADDRESSES_MAX {
            self.addresses.push(address);
        }
    }

    /// A replica said that this one leads: asks it from here on.
    pub fn follow(&mut self, leader: &Arc<str>) {
        self.learn(leader.clone());
        if let Some(place) = self.addresses.iter().position(|known| known == leader) {
            self.current = place;
        }
    }

    /// A replica that passed a write on says that this one leads: saves the way round, unless it just failed.
    pub fn prefer(&mut self, leader: &Arc<str>) {
        if let Some((shunned, mentions)) = &mut self.shunned
            && shunned == leader
            && *mentions > 0
        {
            *mentions -= 1;
            return;
        }
        self.follow(leader);
    }

    /// This one answered: the next failure starts counting anew.
    pub fn answered(&mut self) {
        self.failures = 0;
    }

    /// This one did not answer, or cannot serve: asks the next one, after so many milliseconds. No pause until every known one
    /// failed; then it doubles with every round, and is spread so that many clients do not come back at once. Of many callers
    /// that report the same failure, the first one moves on.
    pub fn failed(&mut self, address: &str) -> u64 {
        let known = u32::try_from(self.addresses.len()).unwrap_or(u32::MAX).max(1);
        if self.current().is_some_and(|current| &**current == address) {
            self.current = (self.current + 1) % self.addresses.len();
            self.failures = self.failures.saturating_add(1);
        }
        self.shunned = Some((Arc::from(address), SHUNNED_MENTIONS));
        let rounds = self.failures / known;
        if rounds == 0 {
            return 0;
        }
        let pause = (PAUSE_MS.0 << (rounds - 1).min(16)).min(PAUSE_MS.1);
        self.seed = scramble(self.seed);
        pause / 2 + self.seed % (pause / 2 + 1)
    }
}

/// One step of splitmix64.
fn scramble(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Whom to ask next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The same one again.
    Same,
    /// Another one.
    Next,
    /// This one: it leads.
    Leader(Arc<str>),
}

/// What to do about an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// This is what became of it.
    Done(Outcome),
    /// Ask again under the same request id.
    Again {
        /// Whom.
        turn: Turn,
        /// Not before so many milliseconds have passed.
        after_ms: u64,
    },
    /// The session is gone, and this write certainly did nothing: open another session and ask there, under a new number.
    Reopen,
}

/// Whether something that was refused for this reason is worth asking again, of whom, and after how many milliseconds.
#[must_use]
pub fn again(why: &NotApplied) -> Option<(Turn, u64)> {
    match why {
        NotApplied::NoQuorum => Some((Turn::Next, 50)),
        NotApplied::NotLeader { address, .. } if address.is_empty() => Some((Turn::Next, 50)),
        NotApplied::NotLeader { address, .. } => Some((Turn::Leader(address.clone()), 0)),
        NotApplied::Busy { retry_after_ms } => Some((Turn::Same, (*retry_after_ms).clamp(1, 1_000))),
        NotApplied::Superseded => Some((Turn::Same, 0)),
        NotApplied::Stopping => Some((Turn::Next, 0)),
        NotApplied::TooLarge { .. } | NotApplied::FeatureLevel { .. } | NotApplied::Refused(_) => None,
    }
}

/// One write on its way: what its attempts so far say together.
#[derive(Clone, Debug)]
pub struct WriteAttempts {
    deadline: Time,
    attempt_ms: u64,
    attempts: u32,
    /// An attempt may have been applied: why that is not known.
    doubt: Option<UnknownWhy>,
    /// Why the last attempt that certainly did nothing did nothing.
    last: NotApplied,
}

impl WriteAttempts {
    /// A write that is given up at `deadline`. A replica answers within `attempt_ms`, so an attempt that could still be under
    /// way at the deadline is not begun: it would only turn what is known into a doubt.
    #[must_use]
    pub const fn new(deadline: Time, attempt_ms: u64) -> Self {
        Self { deadline, attempt_ms, attempts: 0, doubt: None, last: NotApplied::NoQuorum }
    }

    /// The same for a write that was asked before, under the id that it has now: what became of that is not known.
    #[must_use]
    pub const fn again(deadline: Time, attempt_ms: u64) -> Self {
        Self { deadline, attempt_ms, attempts: 0, doubt: Some(UnknownWhy::ConnectionLost), last: NotApplied::NoQuorum }
    }

    /// Until when it is tried.
    #[must_use]
    pub const fn deadline(&self) -> Time {
        self.deadline
    }

    /// It is handed to a connection.
    pub fn on_sent(&mut self) {
        self.attempts = self.attempts.saturating_add(1);
    }

    /// The replica could not be reached, and nothing was sent.
    pub fn on_unreachable(&mut self, now: Time) -> Step {
        self.try_again(now, Turn::Next, 0)
    }

    /// The connection broke after it was sent, before its answer.
    pub fn on_lost(&mut self, now: Time) -> Step {
        self.doubt = Some(UnknownWhy::ConnectionLost);
        self.try_again(now, Turn::Next, 0)
    }

    /// The deadline passed while an attempt was under way.
    #[must_use]
    pub fn on_deadline(&mut self) -> Outcome {
        if self.attempts > 0 && self.doubt.is_none() {
            self.doubt = Some(UnknownWhy::TimedOut);
        }
        self.conclusion()
    }

    /// A replica answered.
    pub fn on_outcome(&mut self, now: Time, outcome: Outcome) -> Step {
        match outcome {
            Outcome::Applied { .. } | Outcome::Refused(_) => Step::Done(outcome),
            // Where it arrived is no judge of an attempt that arrived elsewhere.
            Outcome::NotApplied(NotApplied::Refused(_)) if self.doubt.is_some() => self.try_again(now, Turn::Next, 50),
            Outcome::NotApplied(NotApplied::Refused(refusal)) => Step::Done(Outcome::Refused(refusal)),
            Outcome::NotApplied(why) => {
                self.attempts = self.attempts.saturating_sub(1);
                self.last = why;
                match again(&self.last) {
                    Some((turn, after_ms)) => self.try_again(now, turn, after_ms),
                    None => Step::Done(self.conclusion()),
                }
            }
            Outcome::Unknown(why) => match why {
                UnknownWhy::TimedOut | UnknownWhy::ForwardTimedOut | UnknownWhy::ConnectionLost => {
                    self.doubt = Some(why);
                    self.try_again(now, Turn::Next, 0)
                }
                // A session lives far longer than a write is tried. If it is unknown to the only attempt that can have
                // reached a log, no attempt found it alive.
                UnknownWhy::SessionUnknown if self.doubt.is_none() && now < self.deadline => {
                    self.attempts = 0;
                    Step::Reopen
                }
                UnknownWhy::SessionUnknown | UnknownWhy::AlreadyAcknowledged | UnknownWhy::OneShotExpired => {
                    Step::Done(Outcome::Unknown(why))
                }
            },
        }
    }

    fn try_again(&mut self, now: Time, turn: Turn, after_ms: u64) -> Step {
        let room_ms = if self.doubt.is_none() { self.attempt_ms } else { 0 };
        if now.plus_ms(after_ms).plus_ms(room_ms) >= self.deadline {
            return Step::Done(self.conclusion());
        }
        Step::Again { turn, after_ms }
    }

    /// What the attempts so far say together.
    #[must_use]
    pub fn conclusion(&self) -> Outcome {
        match &self.doubt {
            Some(why) => Outcome::Unknown(why.clone()),
            None => Outcome::NotApplied(self.last.clone()),
        }
    }
}

/// An open session: gives out numbers, remembers which are under way.
#[derive(Clone, Debug)]
pub struct Session {
    id: SessionId,
    next: u64,
    under_way: BTreeSet<u64>,
}

impl Session {
    /// A session that was just opened.
    #[must_use]
    pub const fn new(id: SessionId) -> Self {
        Self { id, next: 1, under_way: BTreeSet::new() }
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> SessionId {
        self.id
    }

    /// Everything up to here is answered, or given up.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.under_way.first().map_or(self.next - 1, |first| first - 1)
    }

    /// The next number; none while the oldest one under way is too far behind. Try again after [`Session::end`].
    pub fn begin(&mut self) -> Option<u64> {
        if self.next > self.acknowledged() + IN_FLIGHT_MAX {
            return None;
        }
        let number = self.next;
        self.next += 1;
        self.under_way.insert(number);
        Some(number)
    }

    /// That number is answered, or given up: a copy that still comes is not applied.
    pub fn end(&mut self, number: u64) {
        self.under_way.remove(&number);
    }

    /// How a numbered request is recognised.
    #[must_use]
    pub fn request(&self, number: u64) -> RequestId {
        RequestId::Session { session: self.id, number, acknowledged: self.acknowledged() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Index, ReplicaId, Seq};
    use crate::request::{Refusal, Reply};

    const END: Time = Time(10_000_000_000);

    fn targets() -> Targets {
        Targets::new(["a:1", "b:1", "c:1"].map(Arc::from), 7)
    }

    fn current(targets: &Targets) -> &str {
        targets.current().expect("there are addresses")
    }

    fn applied() -> Outcome {
        Outcome::Applied { index: Index(5), reply: Reply::Recorded { sequence: Seq(3) } }
    }

    #[test]
    fn every_replica_is_tried_once_before_the_first_pause() {
        let mut targets = targets();
        assert_eq!(targets.failed("a:1"), 0);
        assert_eq!(current(&targets), "b:1");
        assert_eq!(targets.failed("b:1"), 0);
        assert!(targets.failed("c:1") > 0);
        assert_eq!(current(&targets), "a:1");
    }

    #[test]
    fn many_callers_that_report_one_failure_move_on_once() {
        let mut targets = targets();
        targets.failed("a:1");
        targets.failed("a:1");
        targets.failed("a:1");
        assert_eq!(current(&targets), "b:1");
    }

    #[test]
    fn pauses_grow_and_stay_bounded() {
        let mut targets = targets();
        for _ in 0..200 {
            let address = targets.current().expect("there are addresses").clone();
            assert!(targets.failed(&address) <= PAUSE_MS.1);
        }
        let address = targets.current().expect("there are addresses").clone();
        assert!(targets.failed(&address) >= PAUSE_MS.1 / 2);
        targets.answered();
        let address = targets.current().expect("there are addresses").clone();
        assert_eq!(targets.failed(&address), 0);
    }

    #[test]
    fn a_leader_nobody_named_before_is_learnt_and_followed() {
        let mut targets = targets();
        targets.follow(&Arc::from("d:1"));
        assert_eq!(current(&targets), "d:1");
        assert_eq!(targets.addresses().len(), 4);
    }

    #[test]
    fn a_leader_that_just_failed_is_not_preferred_at_once() {
        let mut targets = targets();
        targets.failed("a:1");
        for _ in 0..SHUNNED_MENTIONS {
            targets.prefer(&Arc::from("a:1"));
            assert_eq!(current(&targets), "b:1");
        }
        targets.prefer(&Arc::from("a:1"));
        assert_eq!(current(&targets), "a:1");
    }

    #[test]
    fn addresses_are_bounded() {
        let mut targets = targets();
        for i in 0..1_000 {
            targets.learn(alloc::format!("x:{i}").into());
        }
        assert_eq!(targets.addresses().len(), ADDRESSES_MAX);
    }

    #[test]
    fn a_write_refused_everywhere_is_not_applied() {
        let mut write = WriteAttempts::new(END, 1_000);
        write.on_sent();
        let step = write.on_outcome(Time(0), Outcome::NotApplied(NotApplied::NoQuorum));
        assert_eq!(step, Step::Again { turn: Turn::Next, after_ms: 50 });
        write.on_sent();
        let step = write.on_outcome(END, Outcome::NotApplied(NotApplied::NoQuorum));
        assert_eq!(step, Step::Done(Outcome::NotApplied(NotApplied::NoQuorum)));
    }

    #[test]
    fn a_lost_connection_makes_a_later_refusal_unknown() {
        let mut write = WriteAttempts::new(END, 1_000);
        write.on_sent();
        assert_eq!(write.on_lost(Time(0)), Step::Again { turn: Turn::Next, after_ms: 0 });
        write.on_sent();
        let step = write.on_outcome(END, Outcome::NotApplied(NotApplied::NoQuorum));
        assert_eq!(step, Step::Done(Outcome::Unknown(UnknownWhy::ConnectionLost)));
    }

    #[test]
    fn a_doubt_ends_when_a_replica_says_what_became_of_it() {
        let mut write = WriteAttempts::new(END, 1_000);
        write.on_sent();
        write.on_lost(Time(0));
        write.on_sent();
        assert_eq!(write.on_outcome(Time(1), applied()), Step::Done(applied()));
        let refused = Outcome::Refused(Refusal::NothingToRollBack);
        assert_eq!(write.on_outcome(Time(1), refused.clone()), Step::Done(refused));
    }

    #[test]
    fn a_replica_never_reached_leaves_no_doubt() {
        let mut write = WriteAttempts::new(END, 1_000);
        assert_eq!(write.on_unreachable(Time(0)), Step::Again { turn: Turn::Next, after_ms: 0 });
        assert_eq!(write.on_unreachable(END), Step::Done(Outcome::NotApplied(NotApplied::NoQuorum)));
        assert_eq!(write.on_deadline(), Outcome::NotApplied(NotApplied::NoQuorum));
    }

    #[test]
    fn what_is_refused_where_it_arrives_is_refused_unless_an_attempt_arrived_elsewhere() {
        let refused = || Outcome::NotApplied(NotApplied::Refused(Refusal::NothingToRollBack));
        let mut write = WriteAttempts::new(END, 1_000);
        write.on_sent();
        assert_eq!(write.on_outcome(Time(0), refused()), Step::Done(Outcome::Refused(Refusal::NothingToRollBack)));
        let lost = || Outcome::Unknown(UnknownWhy::ConnectionLost);
        let mut write = WriteAttempts::new(END, 1_000);
        write.on_sent();
        write.on_lost(Time(0));
        write.on_sent();
        assert_eq!(write.on_outcome(Time(0), refused()), Step::Again { turn: Turn::Next, after_ms: 50 });
        assert_eq!(write.on_outcome(END, refused()), Step::Done(lost()));
        let mut write = WriteAttempts::again(END, 1_000);
        write.on_sent();
        assert_eq!(write.on_outcome(END, refused()), Step::Done(lost()));
    }

    #[test]
    fn a_deadline_with_an_attempt_under_way_is_unknown() {
        let mut write = WriteAttempts::new(END, 1_000);
        write.on_sent();
        assert_eq!(write.on_deadline(), Outcome::Unknown(UnknownWhy::TimedOut));
    }

    #[test]
    fn a_deadline_between_attempts_that_did_nothing_is_not_applied() {
        let mut write = WriteAttempts::new(END, 1_000);
        write.on_sent();
        write.on_outcome(Time(0), Outcome::NotApplied(NotApplied::Busy { retry_after_ms: 5 }));
        assert_eq!(write.on_deadline(), Outcome::NotApplied(NotApplied::Busy { retry_after_ms: 5 }));
    }

    #[test]
    fn no_attempt_is_begun_that_could_end_in_doubt() {
        let late = Time(9_500_000_000);
        let mut write = WriteAttempts::new(END, 1_000);
        write.on_sent();
        let step = write.on_outcome(late, Outcome::NotApplied(NotApplied::NoQuorum));
        assert_eq!(step, Step::Done(Outcome::NotApplied(NotApplied::NoQuorum)));
        let mut write = WriteAttempts::new(END, 1_000);
        write.on_sent();
        assert_eq!(write.on_lost(late), Step::Again { turn: Turn::Next, after_ms: 0 });
    }

    #[test]
    fn a_named_leader_is_asked_at_once() {
        let mut write = WriteAttempts::new(END, 1_000);
        write.on_sent();
        let why = NotApplied::NotLeader { leader: ReplicaId(2), address: Arc::from("b:1") };
        let step = write.on_outcome(Time(0), Outcome::NotApplied(why));
        assert_eq!(step, Step::Again { turn: Turn::Leader(Arc::from("b:1")), after_ms: 0 });
    }

    #[test]
    fn what_can_never_fit_is_not_tried_again() {
        let mut write = WriteAttempts::new(END, 1_000);
        write.on_sent();
        let outcome = Outcome::NotApplied(NotApplied::TooLarge { bytes: 9, bytes_max: 8 });
        assert_eq!(write.on_outcome(Time(0), outcome.clone()), Step::Done(outcome));
    }

    #[test]
    fn a_forgotten_session_is_reopened_only_if_nothing_is_in_doubt() {
        let unknown = || Outcome::Unknown(UnknownWhy::SessionUnknown);
        let mut write = WriteAttempts::new(END, 1_000);
        write.on_sent();
        assert_eq!(write.on_outcome(Time(0), unknown()), Step::Reopen);
        write.on_sent();
        write.on_lost(Time(0));
        write.on_sent();
        assert_eq!(write.on_outcome(Time(0), unknown()), Step::Done(unknown()));
    }

    #[test]
    fn acknowledgement_stops_below_the_oldest_number_under_way() {
        let mut session = Session::new(SessionId(4));
        let numbers: Vec<_> = (0..3).filter_map(|_| session.begin()).collect();
        assert_eq!(numbers, [1, 2, 3]);
        session.end(2);
        assert_eq!(session.acknowledged(), 0);
        session.end(1);
        assert_eq!(session.acknowledged(), 2);
        let request = RequestId::Session { session: SessionId(4), number: 3, acknowledged: 2 };
        assert_eq!(session.request(3), request);
        session.end(3);
        assert_eq!(session.acknowledged(), 3);
    }

    #[test]
    fn numbers_stay_within_the_window() {
        let mut session = Session::new(SessionId(4));
        for _ in 0..IN_FLIGHT_MAX {
            assert!(session.begin().is_some());
        }
        assert_eq!(session.begin(), None);
        session.end(2);
        assert_eq!(session.begin(), None);
        session.end(1);
        assert_eq!(session.begin(), Some(IN_FLIGHT_MAX + 1));
    }
}
