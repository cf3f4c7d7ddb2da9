//! The properties that must hold, one file each. All of them watch every run; each sees every event, in order.
//!
//! A property is stated in words a person can argue with, and names where it comes from. To add one: a file with a type that
//! is an [`Oracle`], and a line in [`all`].

mod acknowledged_writes;
mod agent_emergencies;
mod agent_journal;
mod agent_reboots;
mod agent_remembers;
mod agent_rollbacks;
mod agent_windows;
mod applied_in_order;
mod audit_log;
mod boots;
mod bounds;
mod commit_is_written;
mod committed_never_changes;
mod durable_on_a_quorum;
mod expiry;
mod features;
mod full_copies;
mod history_chain;
mod hygiene;
mod kept_snapshots;
mod linearizable;
mod local_reads;
mod log_alone;
mod log_matching;
mod one_leader;
mod overlays;
mod promises_are_durable;
mod recovered_is_durable;
mod same_state;
mod sessions_at_most_once;
mod storm;
mod subscriptions;
mod terms_and_votes;
mod who_may;

use crate::event::Event;
use crate::world::Facts;
use std::fmt;

/// What was expected, and what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What should be.
    pub expected: String,
    /// What is.
    pub saw: String,
}

impl Violation {
    /// A violation.
    #[must_use]
    pub fn new(expected: impl Into<String>, saw: impl Into<String>) -> Self {
        Self { expected: expected.into(), saw: saw.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}; saw {}", self.expected, self.saw)
    }
}

/// Fails with a violation unless something holds.
pub(crate) fn must(
    holds: bool,
    expected: impl FnOnce() -> String,
    saw: impl FnOnce() -> String,
) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { expected: expected(), saw: saw() }) }
}

/// Watches a run for one property.
pub trait Oracle: Send {
    /// The property, in words.
    fn name(&self) -> &'static str;
    /// Where it comes from.
    fn source(&self) -> &'static str;
    /// Whether it looks at traffic too, which is most of what happens: messages, and what disks do. Unless it says so, it is
    /// not shown any.
    fn looks_at_traffic(&self) -> bool {
        false
    }
    /// Something happened; `facts` has taken it in already.
    ///
    /// # Errors
    /// The property does not hold.
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation>;
    /// The run is over, everything was healed and nobody asks any more.
    ///
    /// # Errors
    /// The property does not hold for the run as a whole.
    fn at_end(&mut self, _: &Facts) -> Result<(), Violation> {
        Ok(())
    }
}

/// Every oracle of a run.
pub(crate) struct Oracles {
    all: Vec<Box<dyn Oracle>>,
    /// The places of those that look at traffic.
    at_traffic: Vec<usize>,
}

/// Which property does not hold, where it comes from, and why not.
pub(crate) type Broken = (&'static str, &'static str, Violation);

impl Oracles {
    pub(crate) fn new() -> Self {
        let all = all();
        let at_traffic = (0..all.len()).filter(|place| all[*place].looks_at_traffic()).collect();
        Self { all, at_traffic }
    }

    /// Shows an event to everyone who looks at such.
    pub(crate) fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Broken> {
        let judge = |oracle: &mut Box<dyn Oracle>| {
            oracle.on_event(facts, event).map_err(|violation| (oracle.name(), oracle.source(), violation))
        };
        if event.is_traffic() {
            let all = &mut self.all;
            self.at_traffic.iter().try_for_each(|place| judge(&mut all[*place]))
        } else {
            self.all.iter_mut().try_for_each(judge)
        }
    }

    /// Lets everyone judge the run as a whole.
    pub(crate) fn at_end(&mut self, facts: &Facts) -> Result<(), Broken> {
        self.all.iter_mut().try_for_each(|oracle| {
            oracle.at_end(facts).map_err(|violation| (oracle.name(), oracle.source(), violation))
        })
    }
}

/// Every oracle, fresh.
#[must_use]
pub fn all() -> Vec<Box<dyn Oracle>> {
    vec![
        Box::<one_leader::OneLeader>::default(),
        Box::<log_matching::LogMatching>::default(),
        Box::<committed_never_changes::CommittedNeverChanges>::default(),
        Box::<terms_and_votes::TermsAndVotes>::default(),
        Box::<promises_are_durable::PromisesAreDurable>::default(),
        Box::<recovered_is_durable::RecoveredIsDurable>::default(),
        Box::<commit_is_written::CommitIsWritten>::default(),
        Box::<durable_on_a_quorum::DurableOnAQuorum>::default(),
        Box::<applied_in_order::AppliedInOrder>::default(),
        Box::<same_state::SameState>::default(),
        Box::<log_alone::LogAlone>::default(),
        Box::<sessions_at_most_once::SessionsAtMostOnce>::default(),
        Box::<expiry::Expiry>::default(),
        Box::<features::Features>::default(),
        Box::<overlays::Overlays>::default(),
        Box::<boots::Boots>::default(),
        Box::<subscriptions::Subscriptions>::default(),
        Box::<full_copies::FullCopies>::default(),
        Box::<kept_snapshots::KeptSnapshots>::default(),
        Box::<bounds::Bounds>::default(),
        Box::<history_chain::HistoryChain>::default(),
        Box::<who_may::WhoMay>::default(),
        Box::<acknowledged_writes::AcknowledgedWrites>::default(),
        Box::<audit_log::AuditLog>::default(),
        Box::<linearizable::Linearizable>::default(),
        Box::<local_reads::LocalReads>::default(),
        Box::<agent_remembers::AgentRemembers>::default(),
        Box::<agent_windows::AgentWindows>::default(),
        Box::<agent_rollbacks::AgentRollbacks>::default(),
        Box::<agent_emergencies::AgentEmergencies>::default(),
        Box::<agent_journal::AgentJournal>::default(),
        Box::<agent_reboots::AgentReboots>::default(),
        Box::<hygiene::Hygiene>::default(),
        Box::<storm::Storm>::default(),
    ]
}
