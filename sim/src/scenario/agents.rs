//! What a story says of nodes with agents: how many, under which policy, who works on them, and what breaks around them.

use super::write::time;
use super::{Fault, FaultItem, MS, Problem, SECOND, Scenario};
use crate::agents::AgentPoint;
use crate::draw::Draw;
use muster_core::journal::key::{Key, Setting};
use muster_core::journal::policy::Mode;
use std::fmt::{self, Write as _};
use std::sync::Arc;

/// Nodes, each with an agent.
#[derive(Clone, Debug)]
pub struct Agents {
    /// How many.
    pub count: u32,
    /// Their policy's window without drift, in seconds.
    pub base_window_seconds: u32,
    /// The window of an emergency, in seconds.
    pub emergency_window_seconds: u32,
    /// Whether emergencies are allowed.
    pub emergency_allowed: bool,
    /// What agents do about drift.
    pub mode: Mode,
    /// How long a conflict stands still.
    pub grace: u64,
    /// How many people work on them by chance.
    pub operators: u64,
    /// How much they do, all together, in thousandths of a request per simulated second.
    pub rate_milli: u64,
    /// How often what, relative to the others.
    pub mix: Vec<(Work, u64)>,
    /// What happens by the story.
    pub acts: Vec<ActItem>,
    /// The line in the file.
    pub line: usize,
}

/// The modes and their words.
pub(super) const MODES: [(&str, Mode); 3] =
    [("observe", Mode::Observe), ("warn", Mode::Warn), ("enforce", Mode::Enforce)];

/// What people do by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// Change a node through its agent.
    Set,
    /// Change a node behind its agent's back.
    Behind,
    /// Stand by changes.
    Commit,
    /// Take changes back.
    Rollback,
    /// Move a window's end.
    Extend,
    /// Begin an emergency.
    Emergency,
    /// End it.
    EndEmergency,
    /// Run a command.
    Exec,
    /// A process begins to use something, and ends after some seconds.
    Use,
    /// Declare something through the journal.
    Declare,
}

impl Work {
    /// Every kind with its word.
    pub const ALL: [(&'static str, Self); 10] = [
        ("set", Self::Set),
        ("behind", Self::Behind),
        ("commit", Self::Commit),
        ("rollback", Self::Rollback),
        ("extend", Self::Extend),
        ("emergency", Self::Emergency),
        ("end_emergency", Self::EndEmergency),
        ("exec", Self::Exec),
        ("use", Self::Use),
        ("declare", Self::Declare),
    ];
}

/// What people do if a story does not say.
pub(super) fn usual_mix() -> Vec<(Work, u64)> {
    vec![
        (Work::Set, 8),
        (Work::Behind, 4),
        (Work::Commit, 3),
        (Work::Rollback, 2),
        (Work::Extend, 1),
        (Work::Emergency, 1),
        (Work::EndEmergency, 2),
        (Work::Exec, 1),
        (Work::Use, 2),
        (Work::Declare, 2),
    ]
}

/// What came of an act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActOutcome {
    /// It was done.
    Done,
    /// Nothing was done, and the agent says why.
    Refused,
    /// Somebody uses what was to be taken back.
    Blocked,
    /// The host did not do it.
    Failed,
    /// Nobody knows.
    Unknown,
    /// There was no answer.
    Nothing,
}

impl ActOutcome {
    /// Every outcome with its word.
    pub const ALL: [(&'static str, Self); 6] = [
        ("done", Self::Done),
        ("refused", Self::Refused),
        ("blocked", Self::Blocked),
        ("failed", Self::Failed),
        ("unknown", Self::Unknown),
        ("nothing", Self::Nothing),
    ];

    /// The word used in scenarios.
    #[must_use]
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, outcome)| *outcome == self).map_or("", |(word, _)| word)
    }
}

/// A rollout over all nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutAct {
    /// What is changed.
    pub changes: Vec<(Key, Setting)>,
    /// Nodes in the first wave.
    pub first: usize,
    /// How long every node of a wave must be healthy.
    pub healthy: u64,
    /// The nodes on which the operator's own check fails.
    pub unhealthy: Vec<u32>,
    /// Whether it must abort; else it must reach every node.
    pub aborts: bool,
}

/// What somebody does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Changes a node through its agent.
    Set {
        /// What.
        changes: Vec<(Key, Setting)>,
        /// Whether others' keys are taken over.
        merge: bool,
    },
    /// Changes a node behind its agent's back.
    Behind {
        /// What.
        changes: Vec<(Key, Setting)>,
    },
    /// Declares something in the journal: for the node, or for all if none is named.
    Declare {
        /// What.
        changes: Vec<(Key, Setting)>,
    },
    /// Stands by changes.
    Commit {
        /// Everybody's, not only its own.
        all: bool,
    },
    /// Takes changes back.
    Rollback {
        /// Everybody's, not only its own.
        all: bool,
    },
    /// Moves a window's end.
    Extend {
        /// By so much.
        seconds: u32,
    },
    /// Begins an emergency.
    Emergency {
        /// Why.
        reason: Arc<str>,
    },
    /// Ends it.
    EndEmergency {
        /// Even if something differs.
        force: bool,
    },
    /// Runs a command.
    Exec {
        /// Its words.
        line: String,
    },
    /// Changes all nodes, a few first.
    Rollout(RolloutAct),
}

/// An act of a story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActItem {
    /// Its name.
    pub id: Arc<str>,
    /// When, from the story's start.
    pub at: u64,
    /// On which node; on all if absent.
    pub agent: Option<u32>,
    /// By which person, from 1.
    pub by: u64,
    /// What.
    pub act: Act,
    /// What must come of it; anything is good if absent.
    pub outcome: Option<ActOutcome>,
    /// The line in the file.
    pub line: usize,
}

/// Which agents a fault is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentPick {
    /// These.
    These(Vec<u32>),
    /// Every one.
    All,
    /// One, drawn.
    One,
}

/// What breaks around an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentFault {
    /// Whose.
    pub who: AgentPick,
    /// What.
    pub harm: Harm,
}

/// The kinds of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Harm {
    /// Its process dies; with `power`, its machine loses power.
    Crash {
        /// Where in its work; at once if absent.
        point: Option<AgentPoint>,
        /// At how manieth such place.
        nth: u64,
        /// Whether power is lost with it.
        power: bool,
        /// Whether the story is good without the point ever being reached.
        may_miss: bool,
    },
    /// Its machine boots anew.
    Reboot,
    /// It does not reach any replica.
    Cut,
    /// Its node's wall clock is wrong.
    Clock {
        /// Set by so many milliseconds.
        step_ms: i64,
        /// It gains so much.
        drift_ppm: i64,
    },
    /// Its machine does not do what it is told.
    Host {
        /// So many changes in a hundred are refused.
        refuse_percent: u64,
        /// Everything takes up to so much longer.
        slow: u64,
    },
    /// Somebody uses what a key stands for.
    Hold {
        /// The key.
        key: Key,
    },
}

impl AgentFault {
    /// Whether its victims are down while it lasts.
    pub(super) const fn is_down(&self) -> bool {
        matches!(self.harm, Harm::Crash { .. } | Harm::Reboot)
    }

    /// Whether it wants to come to a point.
    pub(super) const fn wants_point(&self) -> bool {
        matches!(self.harm, Harm::Crash { point: Some(_), may_miss: false, .. })
    }

    /// What it decides alone while it lasts.
    const fn decides(&self) -> &'static str {
        match &self.harm {
            Harm::Crash { .. } | Harm::Reboot => "whether it runs",
            Harm::Cut => "whether it reaches the journal",
            Harm::Clock { .. } => "how its wall clock goes",
            Harm::Host { .. } => "how its machine behaves",
            Harm::Hold { .. } => "who uses its machine",
        }
    }
}

/// How two faults contradict each other, if they do.
pub(super) fn contradiction(ours: &AgentFault, theirs: &AgentFault) -> Option<String> {
    if ours.decides() != theirs.decides() {
        return None;
    }
    let whose = match (&ours.who, &theirs.who) {
        (AgentPick::These(ours), AgentPick::These(theirs)) => {
            format!("agent {}", ours.iter().find(|agent| theirs.contains(agent))?)
        }
        (AgentPick::These(agents), AgentPick::All) | (AgentPick::All, AgentPick::These(agents)) => {
            format!("agent {}", agents.first()?)
        }
        (AgentPick::All | AgentPick::One, _) | (_, AgentPick::One) => "an agent".into(),
    };
    Some(format!("of {whose} {}", ours.decides()))
}

/// Everything that is wrong with what a story says of agents.
pub(super) fn problems(file: &str, story: &Scenario) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut wrong = |line: usize, problem: String| problems.push(Problem { file: file.to_owned(), line, problem });
    let count = story.agents.as_ref().map_or(0, |agents| agents.count);
    let expected = if count == 0 { "an [agents] table".to_owned() } else { format!("1 to {count}") };
    for item in &story.faults {
        let Fault::Agent(fault) = &item.fault else { continue };
        let strangers = match &fault.who {
            AgentPick::These(agents) => agents.iter().copied().filter(|agent| *agent > count).collect(),
            AgentPick::All | AgentPick::One if count == 0 => vec![1],
            AgentPick::All | AgentPick::One => Vec::new(),
        };
        for agent in strangers {
            wrong(item.line, format!("{} is about agent {agent} of {count}: expected {expected}", item.id));
        }
    }
    let Some(agents) = &story.agents else { return problems };
    for item in &agents.acts {
        if let Some(agent) = item.agent.filter(|agent| *agent > count) {
            wrong(item.line, format!("{} is about agent {agent} of {count}: expected {expected}", item.id));
        }
        if item.at >= story.time.run {
            let (at, run) = (time(item.at), time(story.time.run));
            wrong(item.line, format!("{} is at {at}, after the run's end: expected less than {run}", item.id));
        }
        if let Act::Rollout(rollout) = &item.act {
            if let Some(agent) = rollout.unhealthy.iter().find(|agent| **agent > count) {
                wrong(item.line, format!("{} finds agent {agent} of {count} ill: expected {expected}", item.id));
            }
            if rollout.first > count as usize {
                let first = rollout.first;
                wrong(item.line, format!("{} begins with {first} of {count} nodes: expected {expected}", item.id));
            }
        }
    }
    problems
}

/// Faults around agents drawn from a seed, as the story's nemesis wants them.
pub(super) fn drawn(seed: u64, every: u64, story: &Scenario) -> Vec<FaultItem> {
    let Some(agents) = &story.agents else { return Vec::new() };
    let mut draw = Draw::of(seed, "nemesis-agents", 0);
    let every = every * draw.between(30, 200) / 100;
    let mut kept: Vec<FaultItem> = story.faults.clone();
    let mut at = draw.around(every);
    let mut number = 0;
    while at + SECOND / 2 < story.time.run && number < 200 {
        number += 1;
        let harm = match draw.below(12) {
            0 | 1 => Harm::Crash { point: None, nth: 1, power: draw.percent(40), may_miss: false },
            2..=5 => {
                let point = Some(AgentPoint::ALL[draw.place(AgentPoint::ALL.len())].1);
                Harm::Crash { point, nth: draw.between(1, 8), power: draw.percent(30), may_miss: true }
            }
            6 => Harm::Reboot,
            7 | 8 => Harm::Cut,
            9 => Harm::Clock {
                step_ms: draw.between(0, 7_200_000).cast_signed() - 3_600_000,
                drift_ppm: draw.between(0, 40_000).cast_signed() - 20_000,
            },
            10 => Harm::Host { refuse_percent: draw.between(5, 60), slow: draw.between(0, 1_500) * MS },
            _ => Harm::Hold {
                key: Key::new(["mounts:/data", "files:/etc/motd", "services:web"][draw.place(3)]).expect("a good key"),
            },
        };
        let who = AgentPick::These(vec![u32::try_from(draw.between(1, u64::from(agents.count))).unwrap_or(1)]);
        let lasts = (100 * MS + draw.around(4 * SECOND)).min(story.time.run - at) / MS * MS;
        let fault = Fault::Agent(AgentFault { who, harm });
        let id = format!("nemesis-agent-{number}");
        let item = FaultItem { id: id.into(), at: at / MS * MS, lasts: Some(lasts), fault, line: 0 };
        if super::check::beside(story, &kept, &item).is_none() {
            kept.push(item);
        }
        at += draw.around(every) + 10 * MS;
    }
    kept.split_off(story.faults.len())
}

fn picked(who: &AgentPick) -> String {
    match who {
        AgentPick::All => "\"all\"".into(),
        AgentPick::One => "\"one\"".into(),
        AgentPick::These(agents) => format!("{agents:?}"),
    }
}

/// A fault's kind and table.
pub(super) fn fault_text(fault: &AgentFault) -> String {
    let who = picked(&fault.who);
    match &fault.harm {
        Harm::Crash { point, nth, power, may_miss } => {
            let point = point.map_or(String::new(), |point| format!(", point = \"{}\", nth = {nth}", point.word()));
            let power = if *power { ", power = true" } else { "" };
            let may_miss = if *may_miss && !point.is_empty() { ", may_miss = true" } else { "" };
            format!("agent_crash = {{ who = {who}{point}{power}{may_miss} }}")
        }
        Harm::Reboot => format!("agent_reboot = {{ who = {who} }}"),
        Harm::Cut => format!("agent_cut = {{ who = {who} }}"),
        Harm::Clock { step_ms, drift_ppm } => {
            format!("agent_clock = {{ who = {who}, step_ms = {step_ms}, drift_ppm = {drift_ppm} }}")
        }
        Harm::Host { refuse_percent, slow } => {
            format!("agent_host = {{ who = {who}, refuse = {refuse_percent}, slow = \"{}\" }}", time(*slow))
        }
        Harm::Hold { key } => format!("agent_hold = {{ who = {who}, key = \"{key}\" }}"),
    }
}

struct Changes<'a>(&'a [(Key, Setting)]);

impl fmt::Display for Changes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{ ")?;
        for (nth, (key, setting)) in self.0.iter().enumerate() {
            let comma = if nth == 0 { "" } else { ", " };
            match setting {
                Setting::Value(value) => write!(f, "{comma}{:?} = {:?}", key.as_str(), &**value)?,
                Setting::Absent | Setting::Unset => write!(f, "{comma}{:?} = false", key.as_str())?,
            }
        }
        f.write_str(" }")
    }
}

const fn whose(all: bool) -> &'static str {
    if all { "all" } else { "own" }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set { changes, merge } => {
                write!(f, "set = {}{}", Changes(changes), if *merge { "\nmerge = true" } else { "" })
            }
            Self::Behind { changes } => write!(f, "behind = {}", Changes(changes)),
            Self::Declare { changes } => write!(f, "declare = {}", Changes(changes)),
            Self::Commit { all } => write!(f, "commit = \"{}\"", whose(*all)),
            Self::Rollback { all } => write!(f, "rollback = \"{}\"", whose(*all)),
            Self::Extend { seconds } => write!(f, "extend = {seconds}"),
            Self::Emergency { reason } => write!(f, "emergency = {:?}", &**reason),
            Self::EndEmergency { force } => {
                write!(f, "end_emergency = \"{}\"", if *force { "force" } else { "plain" })
            }
            Self::Exec { line } => write!(f, "exec = {line:?}"),
            Self::Rollout(rollout) => write!(
                f,
                "rollout = {{ set = {}, first = {}, healthy = \"{}\", unhealthy = {:?}, aborts = {} }}",
                Changes(&rollout.changes),
                rollout.first,
                time(rollout.healthy),
                rollout.unhealthy,
                rollout.aborts
            ),
        }
    }
}

/// The tables of a story's agents.
pub(super) fn write(out: &mut String, agents: &Agents) -> fmt::Result {
    let mode = MODES.iter().find(|(_, mode)| *mode == agents.mode).map_or("", |(word, _)| word);
    writeln!(out, "\n[agents]\ncount = {}\nbase_window = {}", agents.count, agents.base_window_seconds)?;
    writeln!(out, "emergency_window = {}", agents.emergency_window_seconds)?;
    writeln!(out, "emergency_allowed = {}\nmode = \"{mode}\"", agents.emergency_allowed)?;
    writeln!(out, "grace = \"{}\"\noperators = {}", time(agents.grace), agents.operators)?;
    writeln!(out, "rate = {}.{:03}", agents.rate_milli / 1_000, agents.rate_milli % 1_000)?;
    let word = |work: &Work| Work::ALL.iter().find(|(_, other)| other == work).map_or("", |(word, _)| word);
    let mix: Vec<String> = agents.mix.iter().map(|(work, share)| format!("{} = {share}", word(work))).collect();
    writeln!(out, "mix = {{ {} }}", mix.join(", "))?;
    for item in &agents.acts {
        writeln!(out, "\n[[act]]\nid = {:?}\nat = \"{}\"\nby = {}", &*item.id, time(item.at), item.by)?;
        if let Some(agent) = item.agent {
            writeln!(out, "agent = {agent}")?;
        }
        writeln!(out, "{}", item.act)?;
        if let Some(outcome) = item.outcome {
            writeln!(out, "outcome = \"{}\"", outcome.word())?;
        }
    }
    Ok(())
}
