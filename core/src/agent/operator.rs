//! What people ask of an agent, and the answers.
//!
//! Every answer is true when it is given: what it promises is on the node's disk, and what it says of the host was observed
//! after the host was changed.

use super::drift::{DriftVector, Explanation};
use super::host::{Consumer, HostError, Observed};
use super::ledger::{ChangeId, Owner};
use crate::ids::{NodeId, OneShotId, Seq, VClusterId, WallTime};
use crate::journal::entry::Author;
use crate::journal::key::{Key, Setting};
use crate::journal::policy::Mode;
use crate::request;
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

/// Whether a change may begin, once its window is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    /// Only tell the window.
    TellOnly,
    /// Begin, unless the window would be shorter than [`super::drift::SHORT_WINDOW_SECONDS`].
    UnlessShort,
    /// Begin.
    Yes,
}

/// Which of the keys that differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The caller's own.
    Own,
    /// All.
    All,
    /// These, which must be the caller's own or nobody's.
    Keys(BTreeSet<Key>),
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// How things are: answered by [`Reply::Report`].
    Show,
    /// Change these keys now: answered by [`Reply::Forecast`] or [`Reply::Set`].
    Set {
        /// Key and value, or absent; never unset.
        changes: Vec<(Key, Setting)>,
        /// Whether it may begin.
        consent: Consent,
        /// Whether keys that another's change owns are taken over.
        merge: bool,
        /// Why, in the operator's words. May be empty.
        message: Arc<str>,
    },
    /// Declare what differs for this node: answered by [`Reply::Committed`], which proves that the node reaches a quorum.
    Commit {
        /// Which keys.
        which: Which,
        /// Seconds until it expires, if it does.
        ttl_seconds: Option<u32>,
        /// Why.
        message: Arc<str>,
    },
    /// Bring what differs back to what is declared: answered by [`Reply::Returned`].
    Rollback {
        /// Which keys.
        which: Which,
    },
    /// Move the window's end later: answered by [`Reply::Extended`].
    Extend {
        /// By how many seconds.
        seconds: u32,
    },
    /// Suspend automatic rollback: answered by [`Reply::EmergencyStarted`].
    EmergencyStart {
        /// Why.
        reason: Arc<str>,
    },
    /// End the emergency: without force only when nothing differs. Answered by [`Reply::EmergencyEnded`].
    EmergencyEnd {
        /// Even though something differs: a window begins.
        force: bool,
    },
    /// May this command be run? Answered by [`Reply::Run`] once it is recorded.
    Exec {
        /// The command and its arguments.
        arguments: Vec<Arc<str>>,
    },
    /// May a shell be opened? Answered by [`Reply::Run`] once it is recorded.
    ShellStart,
    /// A shell session ended: answered by [`Reply::Noted`].
    ShellEnd {
        /// Its exit status, where it is known.
        exit_status: Option<i32>,
    },
}

/// The answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// How things are.
    Report(Arc<Report>),
    /// What the window would be; nothing was changed. Sent for [`Consent::TellOnly`], or because it is short.
    Forecast(Forecast),
    /// The keys are what was asked for.
    Set {
        /// The change's number.
        change: ChangeId,
        /// The window that runs from now on; none if nothing differs, in an emergency, or by the policy's mode.
        window: Option<WindowReport>,
        /// Why no window runs although something differs, in words.
        unguarded: Option<Arc<str>>,
    },
    /// The host refused some of it, and what was done was taken back, or was to be.
    NotSet {
        /// What the host refused.
        errors: Vec<HostError>,
        /// What came of taking back the rest.
        taken_back: Returned,
        /// The window that runs for what could not be taken back.
        window: Option<WindowReport>,
    },
    /// Declared for this node by the journal.
    Committed {
        /// The entry.
        sequence: Seq,
        /// What it declares.
        settings: Vec<(Key, Setting)>,
        /// What still differs.
        left: DriftVector,
        /// The window that goes on for it.
        window: Option<WindowReport>,
    },
    /// What came of bringing keys back, after looking at the host again.
    Returned(Returned),
    /// The window ends later.
    Extended {
        /// The window.
        window: WindowReport,
    },
    /// The emergency holds on this node.
    EmergencyStarted {
        /// The journal's entry; none if the journal will learn it later.
        sequence: Option<Seq>,
        /// Seconds until its window passes and an alert is given.
        seconds: u64,
    },
    /// The emergency is over.
    EmergencyEnded {
        /// The window that begins for what differs.
        window: Option<WindowReport>,
    },
    /// Recorded: it may run now.
    Run {
        /// The last sequence of its record; none if it is on the node's disk and the journal will learn it later.
        sequence: Option<Seq>,
    },
    /// On the node's disk; the journal will learn it.
    Noted,
    /// Nothing was done.
    Refused(Refused),
    /// Nobody knows yet whether the journal recorded it. The window goes on; the agent goes on asking.
    Unknown {
        /// The request's id.
        request: OneShotId,
    },
}

/// Why an agent does not do what it was asked. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A field does not fit. Exit code 2.
    Invalid {
        /// What is wrong, and what would be accepted.
        problem: Arc<str>,
    },
    /// The host cannot do it. Exit code 1.
    Host(Vec<HostError>),
    /// Keys belong to somebody else's open change: wait, or merge. Exit code 4.
    Owned(Vec<(Key, Owner, ChangeId)>),
    /// The policy forbids it. Exit code 3.
    Forbidden {
        /// What is forbidden and by what.
        problem: Arc<str>,
    },
    /// The node is not in a state for it: no window, an emergency already. Exit code 1.
    NotNow {
        /// What is wrong, and what would help.
        problem: Arc<str>,
    },
    /// The journal refused it. Exit code 4 for a conflict, 3 if forbidden, else 1.
    Journal(request::Refusal),
    /// The journal did not answer, or has no quorum; nothing was recorded. The window goes on. Exit code 5.
    NoQuorum,
    /// Too much is waiting. Exit code 1.
    Busy,
}

/// What came of bringing keys back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Returned {
    /// All are what is declared, by observation.
    Done {
        /// The keys that were brought back.
        keys: Vec<Key>,
    },
    /// Nothing was touched: somebody uses what would change. The window stands still. Exit code 10.
    Blocked {
        /// Who uses what.
        consumers: Vec<Consumer>,
    },
    /// Some were brought back, these were not.
    Failed {
        /// The keys that were brought back.
        keys: Vec<Key>,
        /// Why the others were not.
        errors: Vec<HostError>,
    },
}

/// What a change's window would be.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// How it is computed.
    pub explanation: Explanation,
    /// Seconds from now until it would end: shorter than explained if a window is open that ends sooner. None if no window
    /// would run: then [`Forecast::unguarded`] says why.
    pub seconds: Option<u64>,
    /// Why no window would run, in words.
    pub unguarded: Option<Arc<str>>,
    /// Whether consent is needed because it is short.
    pub is_short: bool,
}

/// An open window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowReport {
    /// Its number.
    pub number: u64,
    /// Seconds left.
    pub seconds_left: u64,
    /// Seconds since it was opened.
    pub seconds_open: u64,
    /// What its end was computed from.
    pub drift: DriftVector,
    /// Whether it stands still, and why.
    pub frozen: Option<FrozenReport>,
}

/// Why a window stands still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrozenReport {
    /// Who uses what was to be taken back.
    pub consumers: Vec<Consumer>,
    /// What the host refused.
    pub errors: Vec<HostError>,
}

/// A key that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The key.
    pub key: Key,
    /// What is declared; for a key that nobody declares, what it was before.
    pub declared: Setting,
    /// Whether anybody declares it.
    pub is_declared: bool,
    /// What it is.
    pub observed: Setting,
    /// The change that made it so.
    pub change: ChangeId,
    /// Who made it.
    pub owner: Owner,
    /// When, for people.
    pub since: WallTime,
    /// Whether it was changed in the journal too, and in how many seconds the journal's value wins.
    pub conflict_seconds: Option<u64>,
    /// Why it could not be brought back, if that was tried.
    pub problem: Option<Arc<str>>,
}

/// What the agent is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It does not know yet what is declared, or is applying it for the first time in this boot.
    Booting,
    /// The node is what is declared.
    Committed,
    /// It differs.
    Drifted,
    /// An operator declared an emergency.
    Emergency,
    /// It is being brought back.
    RollingBack,
    /// It could not be brought back: somebody uses it, or the host refused.
    Blocked,
}

impl Phase {
    /// The word used in output.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Booting => "booting",
            Self::Committed => "committed",
            Self::Drifted => "drifted",
            Self::Emergency => "emergency",
            Self::RollingBack => "rolling-back",
            Self::Blocked => "blocked",
        }
    }
}

/// An emergency, told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmergencyReport {
    /// Who declared it.
    pub author: Author,
    /// Why.
    pub reason: Arc<str>,
    /// When, for people.
    pub since: WallTime,
    /// Seconds until its window passes; 0 if it has.
    pub seconds_left: u64,
}

/// How things are.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The node.
    pub node: NodeId,
    /// Its vCluster; none before the first contact with the journal.
    pub vcluster: Option<VClusterId>,
    /// What the agent is at.
    pub phase: Phase,
    /// What the policy wants done about drift.
    pub mode: Mode,
    /// Whether the journal answers.
    pub connected: bool,
    /// Why it does not, if that is known.
    pub away: Option<Arc<str>>,
    /// The sequence at which the declared state is right.
    pub sequence: Seq,
    /// How many keys are declared.
    pub declared: u64,
    /// What differs, by key.
    pub differences: Vec<Difference>,
    /// What cannot be seen on this machine, and why: never counted.
    pub unseen: Vec<(Key, Arc<str>)>,
    /// Per dimension, what counts.
    pub drift: DriftVector,
    /// Why the window is, or would be, as long as it is.
    pub explanation: Explanation,
    /// The open window.
    pub window: Option<WindowReport>,
    /// The emergency.
    pub emergency: Option<EmergencyReport>,
    /// Events that the journal does not have yet.
    pub spooled: u64,
    /// Whether a commit is under way whose outcome is not known.
    pub commit_unknown: bool,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator(author) => write!(f, "{}", author.principal),
            Self::BehindItsBack => f.write_str("somebody outside muster"),
            Self::NotReached => f.write_str("the journal, not reached"),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid { problem } | Self::Forbidden { problem } | Self::NotNow { problem } => f.write_str(problem),
            Self::Host(errors) => {
                f.write_str("the host refuses: ")?;
                separated(f, errors)
            }
            Self::Owned(keys) => {
                for (nth, (key, owner, change)) in keys.iter().enumerate() {
                    let comma = if nth == 0 { "" } else { "; " };
                    write!(f, "{comma}{key} belongs to change {} of {owner}", change.0)?;
                }
                f.write_str(": wait until it is committed or rolled back, or take it over with --merge")
            }
            Self::Journal(_) => f.write_str("the journal refuses it"),
            Self::NoQuorum => {
                f.write_str("no quorum of the journal answers: nothing was recorded, and the window goes on")
            }
            Self::Busy => f.write_str("too many requests are waiting: try again in a moment"),
        }
    }
}

impl core::error::Error for Refused {}

pub(crate) fn separated<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
    for (nth, item) in items.iter().enumerate() {
        let comma = if nth == 0 { "" } else { "; " };
        write!(f, "{comma}{item}")?;
    }
    Ok(())
}

/// What was seen, as a setting; none if it cannot be seen.
#[must_use]
pub fn seen(observed: &Observed) -> Option<Setting> {
    match observed {
        Observed::Value(value) => Some(Setting::Value(value.clone())),
        Observed::Absent => Some(Setting::Absent),
        Observed::Unseen(_) => None,
    }
}
