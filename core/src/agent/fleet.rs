//! How the nodes of a fleet are, as their agents last told a replica: soft state, never in the log.
//!
//! A replica keeps what it was told in memory, for a while. Agents tell one replica each, so who wants to see the whole fleet asks
//! every replica and keeps the newest word of each node ([`merge`]).
//!
//! Invariants
//! - a node's older word never replaces its newer one;
//! - what was not renewed for [`REPORT_SECONDS_MAX`] is gone; there are at most [`REPORTS_MAX`].

use super::drift::DriftVector;
use super::operator::{Phase, Report};
use crate::ids::{NodeId, Seq, Time, VClusterId};
use crate::journal::policy::Mode;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;

/// How long a word is kept, in seconds. Agents renew theirs three times in it.
pub const REPORT_SECONDS_MAX: u64 = 45;

/// Most nodes a replica remembers. Beyond it unknown ones are not taken.
pub const REPORTS_MAX: usize = 200_000;

/// A window, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowBrief {
    /// Its number.
    pub number: u64,
    /// Seconds left when it was told.
    pub seconds_left: u64,
    /// Whether it stands still.
    pub is_frozen: bool,
}

/// An agent's word about its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReport {
    /// The node.
    pub node: NodeId,
    /// Where the agent is reached, `host:port`; empty if only on the node itself.
    pub address: Arc<str>,
    /// Grows with every word: the wall clock of the agent's start in milliseconds, then a count within that run.
    pub word: (u64, u64),
    /// The node's vCluster, if it is known.
    pub vcluster: Option<VClusterId>,
    /// What the agent is at.
    pub phase: Phase,
    /// What the policy wants done about drift.
    pub mode: Mode,
    /// The sequence at which what it takes for declared is right.
    pub sequence: Seq,
    /// Per dimension, how many keys differ.
    pub drift: DriftVector,
    /// The open window.
    pub window: Option<WindowBrief>,
    /// Seconds until the emergency's window passes, and why there is one.
    pub emergency: Option<(u64, Arc<str>)>,
    /// Events that the journal does not have yet.
    pub spooled: u64,
    /// How many keys could not be brought back, or are used by somebody.
    pub blocked: u64,
}

impl NodeReport {
    /// The short form of a report.
    #[must_use]
    pub fn of(report: &Report, address: Arc<str>, word: (u64, u64)) -> Self {
        let frozen = report.window.as_ref().and_then(|window| window.frozen.as_ref());
        let window = report.window.as_ref().map(|window| WindowBrief {
            number: window.number,
            seconds_left: window.seconds_left,
            is_frozen: window.frozen.is_some(),
        });
        Self {
            node: report.node.clone(),
            address,
            word,
            vcluster: report.vcluster.clone(),
            phase: report.phase,
            mode: report.mode,
            sequence: report.sequence,
            drift: report.drift,
            window,
            emergency: report.emergency.as_ref().map(|emergency| (emergency.seconds_left, emergency.reason.clone())),
            spooled: report.spooled,
            blocked: frozen.map_or(0, |frozen| (frozen.consumers.len() + frozen.errors.len()) as u64),
        }
    }

    /// The same after some seconds in which nothing was heard.
    #[must_use]
    pub fn after(mut self, seconds: u64) -> Self {
        if let Some(window) = &mut self.window
            && !window.is_frozen
        {
            window.seconds_left = window.seconds_left.saturating_sub(seconds);
        }
        if let Some((left, _)) = &mut self.emergency {
            *left = left.saturating_sub(seconds);
        }
        self
    }
}

/// A word and how old it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The word, as it was told.
    pub report: NodeReport,
    /// Seconds since it was heard.
    pub seconds_ago: u64,
}

/// What a replica was told.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    heard: BTreeMap<NodeId, (NodeReport, Time)>,
}

impl Fleet {
    /// Takes a word. False if there is no room for another node.
    pub fn take(&mut self, now: Time, report: NodeReport) -> bool {
        if self.heard.len() >= REPORTS_MAX && !self.heard.contains_key(&report.node) {
            self.forget(now);
            if self.heard.len() >= REPORTS_MAX {
                return false;
            }
        }
        match self.heard.get(&report.node) {
            Some((known, at)) if known.word > report.word && seconds(*at, now) <= REPORT_SECONDS_MAX => {}
            Some(_) | None => {
                self.heard.insert(report.node.clone(), (report, now));
            }
        }
        true
    }

    /// What is known of one node.
    #[must_use]
    pub fn node(&self, now: Time, node: &NodeId) -> Option<Heard> {
        let (report, at) = self.heard.get(node)?;
        let seconds_ago = seconds(*at, now);
        (seconds_ago <= REPORT_SECONDS_MAX).then(|| Heard { report: report.clone(), seconds_ago })
    }

    /// What is known of every node, by name.
    pub fn all(&self, now: Time) -> impl Iterator<Item = Heard> + '_ {
        self.heard.values().filter_map(move |(report, at)| {
            let seconds_ago = seconds(*at, now);
            (seconds_ago <= REPORT_SECONDS_MAX).then(|| Heard { report: report.clone(), seconds_ago })
        })
    }

    /// Drops what was not renewed.
    pub fn forget(&mut self, now: Time) {
        self.heard.retain(|_, (_, at)| seconds(*at, now) <= REPORT_SECONDS_MAX);
    }
}

fn seconds(from: Time, to: Time) -> u64 {
    to.micros_since(from) / 1_000_000
}

/// The newest word of each node, of what several replicas heard.
#[must_use]
pub fn merge(heard: impl IntoIterator<Item = Heard>) -> BTreeMap<NodeId, Heard> {
    let mut newest: BTreeMap<NodeId, Heard> = BTreeMap::new();
    for heard in heard {
        match newest.get(&heard.report.node) {
            Some(known) if known.report.word >= heard.report.word => {}
            Some(_) | None => {
                newest.insert(heard.report.node.clone(), heard);
            }
        }
    }
    newest
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn word(node: &str, run: u64, count: u64) -> NodeReport {
        NodeReport {
            node: NodeId::new(node).expect("a name"),
            address: Arc::from("127.0.0.1:9"),
            word: (run, count),
            vcluster: None,
            phase: Phase::Committed,
            mode: Mode::Enforce,
            sequence: Seq(1),
            drift: DriftVector::ZERO,
            window: Some(WindowBrief { number: 1, seconds_left: 100, is_frozen: false }),
            emergency: None,
            spooled: 0,
            blocked: 0,
        }
    }

    const fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000_000)
    }

    #[test]
    fn an_older_word_does_not_replace_a_newer_one() {
        let mut fleet = Fleet::default();
        fleet.take(at(1), word("n1", 5, 2));
        fleet.take(at(2), word("n1", 5, 1));
        fleet.take(at(2), word("n1", 4, 9));
        let node = NodeId::new("n1").expect("a name");
        assert_eq!(fleet.node(at(3), &node).map(|heard| heard.report.word), Some((5, 2)));
        fleet.take(at(3), word("n1", 6, 0));
        assert_eq!(fleet.node(at(3), &node).map(|heard| heard.report.word), Some((6, 0)));
    }

    #[test]
    fn what_is_not_renewed_is_gone() {
        let mut fleet = Fleet::default();
        fleet.take(at(1), word("n1", 1, 1));
        fleet.take(at(40), word("n2", 1, 1));
        let names = |fleet: &Fleet, now| fleet.all(now).map(|heard| heard.report.node).collect::<Vec<_>>();
        assert_eq!(names(&fleet, at(46)).len(), 2);
        assert_eq!(names(&fleet, at(47)), [NodeId::new("n2").expect("a name")]);
        fleet.forget(at(47));
        assert_eq!(fleet.heard.len(), 1);
    }

    #[test]
    fn the_newest_word_of_several_replicas_counts() {
        let heard = |run, count, seconds_ago| Heard { report: word("n1", run, count), seconds_ago };
        let merged = merge([heard(1, 7, 0), heard(2, 1, 30), heard(1, 9, 2)]);
        assert_eq!(merged.values().next().map(|heard| heard.report.word), Some((2, 1)));
    }

    #[test]
    fn a_window_goes_on_while_nothing_is_heard_unless_it_stands_still() {
        let left = |report: NodeReport| report.window.map(|window| window.seconds_left);
        assert_eq!(left(word("n1", 1, 1).after(30)), Some(70));
        let mut frozen = word("n1", 1, 1);
        frozen.window = Some(WindowBrief { number: 1, seconds_left: 5, is_frozen: true });
        assert_eq!(left(frozen.after(30)), Some(5));
    }
}
