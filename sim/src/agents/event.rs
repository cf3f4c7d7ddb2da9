//! What happens to nodes and their agents, as part of the run's one stream of events.

use crate::event::{Ending, Run};
use muster_core::agent::event::Event as Spooled;
use muster_core::agent::host::{BootId, Consumer};
use muster_core::agent::ledger::{Doing, Ledger};
use muster_core::agent::operator::{Refused, Reply, Report, Request, Returned};
use muster_core::ids::NodeId;
use muster_core::journal::entry::Author;
use muster_core::journal::key::{Key, Setting};
use std::fmt;
use std::sync::Arc;

/// Which agent, and so which node, from 1.
pub type AgentId = u32;

/// Who changed a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Its agent.
    Agent,
    /// Somebody behind its back.
    Somebody,
}

/// Something that happened to a node.
#[derive(Clone, Debug)]
pub enum AgentEvent {
    /// The agent's process starts on what its disk holds.
    Start {
        /// Which process.
        run: Run,
        /// Which boot of the node.
        boot: BootId,
        /// The node's name in the journal.
        node: NodeId,
        /// The ledger it found.
        ledger: Option<Arc<Ledger>>,
        /// The events it found that wait.
        spool: Arc<[Spooled]>,
    },
    /// The process ends.
    Stop {
        /// Which.
        run: Run,
        /// Why.
        why: Ending,
    },
    /// The machine boots: whatever does not outlast that is gone.
    Reboot {
        /// The new boot.
        boot: BootId,
    },
    /// A save is handed to the disk.
    Saving {
        /// Its number.
        number: u64,
        /// What is to be remembered.
        ledger: Arc<Ledger>,
        /// What is to be spooled.
        events: Arc<[Spooled]>,
    },
    /// It is durable.
    Saved {
        /// Its number.
        number: u64,
        /// What is remembered.
        ledger: Arc<Ledger>,
        /// What was spooled.
        events: Arc<[Spooled]>,
    },
    /// The agent is told who uses what some keys stand for.
    Consumers {
        /// The keys.
        asked: Arc<[Key]>,
        /// Who.
        found: Arc<[Consumer]>,
    },
    /// A key is something else, from now on, for everybody on the node.
    Changed {
        /// Which.
        key: Key,
        /// What it was.
        from: Setting,
        /// What it is.
        to: Setting,
        /// Whose doing.
        by: By,
    },
    /// The host did not do what its agent wanted.
    Refused {
        /// The key.
        key: Key,
        /// What it said.
        problem: Arc<str>,
    },
    /// Somebody begins, or ends, to use what a key stands for.
    Held {
        /// The key.
        key: Key,
        /// Whether it begins.
        begins: bool,
    },
    /// An operator asks.
    Asked {
        /// Its number, on this node.
        number: u64,
        /// Who.
        author: Author,
        /// What.
        request: Arc<Request>,
    },
    /// An operator has an answer, or none: the agent went away.
    Told {
        /// Which question.
        number: u64,
        /// The answer.
        reply: Option<Arc<Reply>>,
    },
    /// The node when all is over.
    Shown {
        /// What its agent says.
        report: Arc<Report>,
    },
}

fn doing(ledger: &Ledger) -> String {
    match &ledger.doing {
        None => String::new(),
        Some(Doing::Setting { change, keys }) => format!(", sets {} keys for change {}", keys.len(), change.0),
        Some(Doing::Returning { cause, keys }) => format!(", brings back {} keys: {cause:?}", keys.len()),
    }
}

struct Remembered<'a>(&'a Ledger);

impl fmt::Display for Remembered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ledger = self.0;
        write!(f, "declared {}, {} changes", ledger.declared.unwrap_or_default(), ledger.changes.len())?;
        if let Some(window) = &ledger.window {
            let frozen = if window.frozen.is_some() { " (stands still)" } else { "" };
            write!(f, ", window {} until {} ms{frozen}", window.number, window.deadline.0 / 1_000_000)?;
        }
        if !ledger.conflicts.is_empty() {
            write!(f, ", {} conflicts", ledger.conflicts.len())?;
        }
        if ledger.emergency.is_some() {
            f.write_str(", emergency")?;
        }
        if ledger.commit.is_some() {
            f.write_str(", commit under way")?;
        }
        write!(f, "{}, spool {}..{}", doing(ledger), ledger.spool.delivered, ledger.spool.last)
    }
}

/// A request in a few words.
pub(crate) fn asked(request: &Request) -> String {
    match request {
        Request::Show => "how it is".into(),
        Request::Set { changes, merge, .. } => {
            let keys: Vec<String> = changes.iter().map(|(key, setting)| format!("{key}={setting}")).collect();
            format!("set {}{}", keys.join(" "), if *merge { " (merge)" } else { "" })
        }
        Request::Commit { which, .. } => format!("commit {which:?}"),
        Request::Rollback { which } => format!("roll back {which:?}"),
        Request::Extend { seconds } => format!("extend by {seconds} s"),
        Request::EmergencyStart { reason } => format!("emergency {reason:?}"),
        Request::EmergencyEnd { force } => format!("end the emergency{}", if *force { " by force" } else { "" }),
        Request::Exec { arguments } => format!("run {}", arguments.join(" ")),
        Request::ShellStart => "open a shell".into(),
        Request::ShellEnd { .. } => "a shell ended".into(),
    }
}

/// An answer in a few words.
pub(crate) fn told(reply: &Reply) -> String {
    match reply {
        Reply::Report(report) => format!("it is {}", report.phase.word()),
        Reply::Forecast(forecast) => format!("a window of {:?} s", forecast.seconds),
        Reply::Set { change, window, .. } => {
            format!("set, change {}, {:?} s left", change.0, window.as_ref().map(|window| window.seconds_left))
        }
        Reply::NotSet { errors, .. } => format!("not set, {} errors", errors.len()),
        Reply::Committed { sequence, .. } => format!("committed at {sequence}"),
        Reply::Returned(Returned::Done { keys }) => format!("{} keys are back", keys.len()),
        Reply::Returned(Returned::Blocked { consumers }) => format!("blocked by {} consumers", consumers.len()),
        Reply::Returned(Returned::Failed { errors, .. }) => format!("{} keys could not be brought back", errors.len()),
        Reply::Extended { window } => format!("{} s left", window.seconds_left),
        Reply::EmergencyStarted { sequence, .. } => format!("the emergency holds, recorded at {sequence:?}"),
        Reply::EmergencyEnded { .. } => "the emergency is over".into(),
        Reply::Run { sequence } => format!("it may run, recorded at {sequence:?}"),
        Reply::Noted => "noted".into(),
        Reply::Refused(Refused::Journal(refusal)) => format!("refused by the journal: {refusal:?}"),
        Reply::Refused(refused) => format!("refused: {refused}"),
        Reply::Unknown { .. } => "nobody knows".into(),
    }
}

impl fmt::Display for AgentEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { run, boot, ledger, spool, .. } => {
                write!(f, "starts run {run} in {}: ", boot.0)?;
                match ledger {
                    Some(ledger) => write!(f, "{}, {} events wait", Remembered(ledger), spool.len()),
                    None => f.write_str("nothing remembered"),
                }
            }
            Self::Stop { run, why, .. } => write!(f, "stops run {run}: {why:?}"),
            Self::Reboot { boot } => write!(f, "the machine boots: {}", boot.0),
            Self::Saving { number, ledger, events } => {
                write!(f, "saving {number}: {}, {} new events", Remembered(ledger), events.len())
            }
            Self::Saved { number, .. } => write!(f, "saved {number}"),
            Self::Consumers { asked, found } => write!(f, "{} keys are used by {}", asked.len(), found.len()),
            Self::Changed { key, from, to, by } => write!(f, "{key}: {from} becomes {to}, by {by:?}"),
            Self::Refused { key, problem } => write!(f, "the host refuses {key}: {problem}"),
            Self::Held { key, begins } => write!(f, "{key} {}", if *begins { "is used" } else { "is free" }),
            Self::Asked { number, author, request } => {
                write!(f, "{} asks {number}: {}", author.principal, asked(request))
            }
            Self::Told { number, reply } => {
                write!(f, "told {number}: {}", reply.as_ref().map_or_else(|| "nothing".into(), |reply| told(reply)))
            }
            Self::Shown { report } => {
                write!(f, "is {}, {} differ, {} wait", report.phase.word(), report.differences.len(), report.spooled)
            }
        }
    }
}
