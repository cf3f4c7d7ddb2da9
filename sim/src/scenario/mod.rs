//! A story: a cluster, what clients ask of it, what breaks when, and what must come of it.
//!
//! One TOML file, one story. `read` checks everything before anything runs; [`nemesis`] adds faults drawn from the seed, so that
//! what is played is always a story with every fault written out, and can be written as a file of its own.

mod agents;
mod atlas;
mod check;
mod nemesis;
mod read;
mod write;

pub use agents::{Act, ActItem, ActOutcome, AgentFault, AgentPick, Agents, Harm, RolloutAct, Work};
pub(crate) use check::whom;
pub use nemesis::Nemesis;
pub use read::Problem;
pub(crate) use read::usual_mix;
pub(crate) use write::{fault as fault_text, operation as operation_text};

use crate::disk::Point;
use muster_core::members::MemberWish;
use muster_core::replica::{Limits, Timing};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// A second, in nanoseconds.
pub const SECOND: u64 = 1_000_000_000;
/// A millisecond, in nanoseconds.
pub const MS: u64 = 1_000_000;

/// A story.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The file's name without folder and ending.
    pub name: String,
    /// What it is about, in a sentence.
    pub about: String,
    /// Who plays.
    pub cluster: Cluster,
    /// Who lives on the same hosts and must not notice.
    pub neighbour: Option<Neighbour>,
    /// What is asked.
    pub load: Load,
    /// How long.
    pub time: Times,
    /// What breaks.
    pub faults: Vec<FaultItem>,
    /// What operators do.
    pub operations: Vec<OperationItem>,
    /// What breaks besides, drawn from the seed.
    pub nemesis: Option<Nemesis>,
    /// Nodes, each with an agent.
    pub agents: Option<Agents>,
    /// Very many nodes that boot together.
    pub storm: Option<Storm>,
    /// What must come of it.
    pub expect: Expect,
}

/// A boot storm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storm {
    /// How many nodes. They are declared before the story begins.
    pub nodes: u64,
    /// When the first one arrives.
    pub at: u64,
    /// Within which time all arrive.
    pub within: u64,
    /// About how large each vCluster's overlay is, compressed.
    pub overlay_bytes: u64,
    /// What a replica can send to nodes.
    pub bytes_per_second: u64,
    /// How many nodes a replica serves at a time.
    pub streams: u32,
    /// Within which time of its arrival every node must have booted.
    pub patience: u64,
    /// Three of four commits during the storm take at most so many times as long as before it.
    pub commits_slower: u64,
}

/// Who plays.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Voters at the start.
    pub voters: u64,
    /// Learners at the start.
    pub learners: u64,
    /// The preset's name.
    pub timing_name: &'static str,
    /// How fast replicas act.
    pub timing: Timing,
    /// How much they hold.
    pub limits: Limits,
    /// The length of a log segment.
    pub segment_bytes: u64,
    /// The highest feature level that replicas say they support.
    pub feature_level: u32,
}

/// A second, unrelated group on the same hosts: a process, a directory and ports of its own on each of the first `voters`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// How many replicas, all of them voters.
    pub voters: u64,
    /// How many clients of its own.
    pub clients: u32,
    /// Operations per simulated second, all its clients together.
    pub rate: u64,
    /// Whether nothing of the story is to reach it: its leader and its term stay.
    pub undisturbed: bool,
    /// The line in the file.
    pub line: usize,
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Load {
    /// How many clients.
    pub clients: u32,
    /// So many of them share one session, each with a request of its own on its way.
    pub together: u32,
    /// Operations per simulated second, all clients together.
    pub rate: u64,
    /// How often each kind, relative to the others.
    pub mix: Vec<(Kind, u64)>,
    /// The size of a committed value.
    pub value_bytes: u64,
    /// Of how many keys each scope has.
    pub keys: u64,
    /// How long a client tries one request.
    pub patience: u64,
    /// Who follow the journal from its beginning.
    pub subscribers: u32,
    /// Who follow it too, and take their time.
    pub slow_subscribers: u32,
    /// Of how many nodes is spoken.
    pub nodes: u64,
}

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Commits a value, in one of the scopes.
    Commit,
    /// Takes back the newest commit of a scope, as far as the client knows.
    Rollback,
    /// Sets a vCluster's policy.
    Policy,
    /// Reads linearizably.
    Read,
    /// Reads from any replica.
    LocalRead,
    /// Reads from any replica, not before what the client saw last.
    ReadAtLeast,
    /// Commits a value that expires.
    Temporary,
    /// Assigns a node to a vCluster.
    Assign,
    /// Commits a value for one node.
    NodeCommit,
    /// Boots a node from any replica, sometimes not before what the client saw last.
    Boot,
    /// Begins an emergency on a node, or ends it.
    Emergency,
    /// Records an exec, or a shell's start or end, on a node.
    Exec,
    /// Asks for something that the rules refuse: a field is missing, out of bounds or misplaced.
    Malformed,
    /// Commits a value that is too large.
    Oversized,
    /// Opens a session, commits in it and never comes back.
    Abandon,
    /// Stores an overlay that was built from any replica's view, which may be behind, and is late itself.
    Overlay,
}

impl Kind {
    /// Every kind with its word.
    pub const ALL: [(&'static str, Self); 16] = [
        ("commit", Self::Commit),
        ("rollback", Self::Rollback),
        ("policy", Self::Policy),
        ("read", Self::Read),
        ("local_read", Self::LocalRead),
        ("read_at_least", Self::ReadAtLeast),
        ("temporary", Self::Temporary),
        ("assign", Self::Assign),
        ("node_commit", Self::NodeCommit),
        ("boot", Self::Boot),
        ("emergency", Self::Emergency),
        ("exec", Self::Exec),
        ("malformed", Self::Malformed),
        ("oversized", Self::Oversized),
        ("abandon", Self::Abandon),
        ("overlay", Self::Overlay),
    ];
}

/// How long.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Faults and load.
    pub run: u64,
    /// After everything was healed, until all must be well.
    pub heal: u64,
}

/// What must come of it.
#[derive(Clone, Debug)]
pub struct Expect {
    /// After healing, somebody leads within this time.
    pub leader_within: u64,
    /// Places in the code that must be reached.
    pub marks: Vec<String>,
    /// At least so many writes are acknowledged.
    pub acknowledged: u64,
    /// The property that fails, at some seed, because the story goes beyond what is promised. No other one may.
    pub violated: Option<String>,
}

/// How much may break at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// At most a minority of voters is unable at once, whatever the reasons, and no disk of more than a minority forgets: the run
    /// stays correct and recovers.
    Standard,
    /// Any number may be unable at once, but no more disks forget: the run stays correct and recovers once a quorum is healed.
    Outage,
    /// It may become unavailable, but never silently wrong.
    Beyond,
}

/// Who is meant. Looked up when the fault begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// This one.
    Replica(u64),
    /// Who leads then.
    Leader,
    /// One that does not lead then, drawn.
    Follower,
    /// Every one.
    All,
    /// Every one that is not on the other side.
    Others,
    /// The clients.
    Clients,
}

/// A direction of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Both.
    Both,
    /// Only what `from` sends.
    Out,
    /// Only what `from` receives.
    In,
}

/// What breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Processes die, and start again after `lasts`.
    Crash {
        /// Whose.
        who: Vec<Pick>,
        /// Where in their work; at once if absent.
        point: Option<Point>,
        /// At how manieth such place.
        nth: u64,
        /// Whether power is lost with it.
        power: bool,
        /// Whether the story is good without the point ever being reached.
        may_miss: bool,
    },
    /// Processes die again and again.
    CrashLoop {
        /// Whose.
        who: Vec<Pick>,
        /// How long each lives.
        every: u64,
        /// Whether power is lost with it.
        power: bool,
    },
    /// Processes stand still.
    Pause {
        /// Whose.
        who: Vec<Pick>,
    },
    /// Processes get only a part of the time.
    SlowProcess {
        /// Whose.
        who: Vec<Pick>,
        /// How much of the time, in percent.
        percent: u64,
    },
    /// Messages do not get through.
    Cut {
        /// One side.
        from: Vec<Pick>,
        /// The other.
        to: Vec<Pick>,
        /// Which way.
        way: Way,
        /// Cut and mended in turns, each this long; always cut if absent.
        flap: Option<u64>,
        /// Whether what peers send meanwhile arrives when it is over; lost if not.
        holds: bool,
    },
    /// Every replica reaches only its two neighbours.
    Ring,
    /// Links get worse.
    Link(LinkChange),
    /// Disks misbehave.
    Disk {
        /// Whose.
        who: Vec<Pick>,
        /// How.
        how: DiskChange,
    },
    /// A bit of what is stored flips, for good.
    Rot {
        /// Whose.
        who: Vec<Pick>,
        /// In a file whose path contains this.
        file: String,
        /// In the last sector that was written to the last such file, not just anywhere.
        last: bool,
    },
    /// A process dies and its disk is empty when it comes back.
    Wipe {
        /// Whose.
        who: Vec<Pick>,
        /// As whom it comes back.
        back: Back,
    },
    /// A process dies and its disk is as it was so long before.
    Rewind {
        /// Whose.
        who: Vec<Pick>,
        /// How long before.
        by: u64,
    },
    /// Clocks are wrong.
    Clock {
        /// Whose.
        who: Vec<Pick>,
        /// The wall clock is set by so many milliseconds.
        step_ms: i64,
        /// It gains so much.
        drift_ppm: i64,
        /// It stands still.
        freeze: bool,
    },
    /// Messages that no honest replica would send, well-formed, arrive as from peers.
    Hostile {
        /// At whom.
        who: Vec<Pick>,
        /// About how often.
        every: u64,
    },
    /// Devices use every freedom that the driver's contract leaves them: what is done is told late, and clocks wake too early.
    Driver {
        /// Whose.
        who: Vec<Pick>,
        /// How late at most.
        late: u64,
        /// Of so many sleeps in a hundred the driver is woken too early.
        early: u64,
    },
    /// A process starts again after a newer version wrote a file; when the fault ends the newer version is back.
    Downgrade {
        /// Whose.
        who: Vec<Pick>,
        /// A file whose path contains this.
        file: String,
    },
    /// Something about nodes with agents.
    Agent(AgentFault),
}

impl Fault {
    /// Whether its victims are down while it lasts.
    #[must_use]
    pub const fn is_down(&self) -> bool {
        match self {
            Self::Crash { .. } | Self::Wipe { .. } | Self::Rewind { .. } => true,
            Self::Agent(fault) => fault.is_down(),
            Self::CrashLoop { .. }
            | Self::Pause { .. }
            | Self::SlowProcess { .. }
            | Self::Cut { .. }
            | Self::Ring
            | Self::Link(_)
            | Self::Disk { .. }
            | Self::Rot { .. }
            | Self::Clock { .. }
            | Self::Hostile { .. }
            | Self::Driver { .. }
            | Self::Downgrade { .. } => false,
        }
    }
}

/// As whom a replica with an empty disk comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Back {
    /// As nobody: a server with an empty directory stops, and says what to do.
    Empty,
    /// Under its old id in a new life of its directory, as if somebody had made one by hand.
    Stranger,
    /// Exactly as it was, but for all it knew: more than Raft can bear.
    Amnesiac,
}

impl Back {
    /// Every way with its word.
    pub const ALL: [(&'static str, Self); 3] =
        [("empty", Self::Empty), ("stranger", Self::Stranger), ("amnesiac", Self::Amnesiac)];
}

/// How links get worse; what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// The usual delay, in microseconds.
    pub latency_us: Option<u64>,
    /// Lost, in a million.
    pub loss_ppm: Option<u32>,
    /// Doubled, in a million.
    pub double_ppm: Option<u32>,
    /// Overtaken, in a million.
    pub late_ppm: Option<u32>,
    /// Damaged, in a million.
    pub corrupt_ppm: Option<u32>,
    /// Old ones repeated, in a million.
    pub replay_ppm: Option<u32>,
    /// Bytes per second.
    pub bytes_per_second: Option<u64>,
    /// Bytes that may wait.
    pub queue_bytes: Option<u64>,
}

/// How disks misbehave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskChange {
    /// So many times slower; 0 for no change.
    pub slow: u64,
    /// Nothing ends.
    pub stalled: bool,
    /// No room.
    pub full: bool,
    /// Failing reads, in a million.
    pub read_error_ppm: u32,
    /// Failing writes, in a million.
    pub write_error_ppm: u32,
    /// Failing syncs, in a million.
    pub sync_error_ppm: u32,
    /// Misdirected writes, in a million.
    pub misdirect_ppm: u32,
}

/// A fault of a story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultItem {
    /// Its name.
    pub id: Arc<str>,
    /// When it begins, from the story's start.
    pub at: u64,
    /// How long it lasts; until healing if absent.
    pub lasts: Option<u64>,
    /// What breaks.
    pub fault: Fault,
    /// The line in the file; 0 if it was drawn.
    pub line: usize,
}

/// What an operator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new replica joins.
    Join {
        /// To become what.
        wish: MemberWish,
        /// The feature level it says it supports; the cluster's if absent.
        feature_level: Option<u32>,
    },
    /// A learner becomes a voter.
    Promote(Pick),
    /// A voter becomes a learner.
    Demote(Pick),
    /// A member leaves for good.
    Remove(Pick),
    /// Leadership is handed over; to 0: whoever is furthest.
    Transfer(u64),
    /// A snapshot is taken.
    Snapshot(Pick),
    /// A replica whose newest snapshot is damaged is repaired, and made again from an older one and the log after it.
    Restore(Pick),
    /// The feature level is raised.
    Raise(u32),
}

/// An operation of a story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationItem {
    /// Its name.
    pub id: Arc<str>,
    /// When, from the story's start.
    pub at: u64,
    /// What.
    pub operation: Operation,
    /// Whether it must be refused; any outcome is good if absent.
    pub refused: Option<bool>,
    /// The line in the file; 0 if it was drawn.
    pub line: usize,
}

impl Scenario {
    /// Reads and checks a story.
    ///
    /// # Errors
    /// Everything that is wrong with it, with file and line.
    pub fn read(path: &Path) -> Result<Self, Vec<Problem>> {
        let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| vec![Problem { file: file.clone(), line: 0, problem: error.to_string() }])?;
        Self::parse(&file, &name, &text)
    }

    /// Reads and checks a story's text.
    ///
    /// # Errors
    /// Everything that is wrong with it, with line.
    pub fn parse(file: &str, name: &str, text: &str) -> Result<Self, Vec<Problem>> {
        let scenario = read::scenario(file, name, text)?;
        let problems = check::problems(file, &scenario);
        if problems.is_empty() { Ok(scenario) } else { Err(problems) }
    }

    /// The story that a seed makes of it: every fault written out, nothing left to draw but luck.
    #[must_use]
    pub fn drawn(&self, seed: u64) -> Self {
        let mut drawn = self.clone();
        if let Some(nemesis) = drawn.nemesis.take() {
            drawn.faults.extend(nemesis.faults(seed, self));
            drawn.faults.sort_by_key(|item| item.at);
            // What may break more must still be allowed to when the drawn story is read again.
            drawn.nemesis = (nemesis.budget != Budget::Standard).then_some(Nemesis { every: 0, ..nemesis });
        }
        drawn
    }

    /// What a run is to reach, in words: the marks that the story wants, and the points where its crashes happen.
    #[must_use]
    pub fn wanted(&self) -> BTreeSet<String> {
        let points = self.faults.iter().filter(|item| match &item.fault {
            Fault::Agent(fault) => fault.wants_point(),
            fault => matches!(fault, Fault::Crash { point: Some(_), may_miss: false, .. }),
        });
        let marks = self.expect.marks.iter().map(|mark| mark_of(mark));
        let violated = self.expect.violated.iter().map(|property| violation_of(property));
        marks.chain(points.map(|item| point_of(&item.id))).chain(violated).collect()
    }

    /// The budget the story keeps to.
    #[must_use]
    pub fn budget(&self) -> Budget {
        self.nemesis.as_ref().map_or(Budget::Standard, |nemesis| nemesis.budget)
    }
}

/// How a report calls a mark.
pub(crate) fn mark_of(mark: &str) -> String {
    format!("the mark {mark}")
}

/// How a report calls the failure that a story expects.
pub(crate) fn violation_of(property: &str) -> String {
    format!("a failure of: {property}")
}

/// How a report calls the point at which a crash happens.
pub(crate) fn point_of(fault: &str) -> String {
    format!("the point of the fault {fault}")
}
