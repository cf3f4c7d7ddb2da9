//! What is worth telling of a run: when what broke, who led, who was down, and the last events before the end.
//!
//! Fed by a run's trace; the story in words and the diagram are made of it. Never judges, never changes a run. Of the many events
//! of a run only the newest that can be drawn are kept, so that a long run costs no more than a short one.

use crate::event::{Ending, Event};
use crate::run::Report;
use crate::scenario::{Back, Fault, FaultItem, MS, Pick, SECOND, Scenario, Way};
use crate::world::Trace;
use muster_core::ids::{Index, ReplicaId, Term, Time};
use muster_core::peer::{PeerMessage, RaftMessageKind};
use muster_core::request::RaftRole;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

/// A fault as it came about.
#[derive(Clone, Debug)]
pub struct Broken {
    /// The item's id.
    pub id: Arc<str>,
    /// When it began.
    pub from: Time,
    /// When it ended, if it did.
    pub to: Option<Time>,
    /// What it did, as the scenario writes it.
    pub what: String,
    /// To whom.
    pub victims: Vec<ReplicaId>,
}

/// A time in which one replica led.
#[derive(Clone, Copy, Debug)]
pub struct Reign {
    /// Since when.
    pub from: Time,
    /// Who.
    pub leader: ReplicaId,
    /// In which term.
    pub term: Term,
}

/// A process, from start to end.
#[derive(Clone, Debug)]
pub struct Life {
    /// When it started.
    pub from: Time,
    /// When it ended, and why.
    pub to: Option<(Time, Ending)>,
}

/// An event that can be drawn.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its number.
    pub step: u64,
    /// When.
    pub time: Time,
    /// What.
    pub event: Event,
}

/// What is known of a run.
#[derive(Clone, Debug, Default)]
pub struct Chronicle {
    /// The run's parts.
    pub phases: Vec<(Time, &'static str)>,
    /// What broke, in order.
    pub broken: Vec<Broken>,
    /// What operators did and were told, in order.
    pub operations: Vec<(Time, Arc<str>, String)>,
    /// Who led, in order.
    pub reigns: Vec<Reign>,
    /// Every replica's processes.
    pub lives: BTreeMap<ReplicaId, Vec<Life>>,
    /// The newest events that can be drawn.
    pub kept: VecDeque<Kept>,
    /// How many there were.
    pub drawable: u64,
    /// The last event's time.
    pub end: Time,
    most: usize,
    last_views: BTreeMap<ReplicaId, (RaftRole, Term, Index)>,
}

/// Whether a message only says that somebody is still there.
#[must_use]
pub fn is_heartbeat(message: &PeerMessage) -> bool {
    match message {
        PeerMessage::Raft(raft) => {
            matches!(raft.kind, RaftMessageKind::Heartbeat | RaftMessageKind::HeartbeatReply)
        }
        PeerMessage::Report { .. } => true,
        PeerMessage::Forward { .. }
        | PeerMessage::Forwarded { .. }
        | PeerMessage::ReadIndex { .. }
        | PeerMessage::ReadIndexReply { .. } => false,
    }
}

impl Chronicle {
    /// An empty one, which keeps so many events.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    /// A trace that feeds a new one, and where to find it after the run.
    #[must_use]
    pub fn listen(most: usize) -> (Trace, Arc<Mutex<Self>>) {
        let chronicle = Arc::new(Mutex::new(Self::new(most)));
        let into = chronicle.clone();
        let trace: Trace = Box::new(move |step, time, event| {
            into.lock().unwrap_or_else(PoisonError::into_inner).take(step, time, event);
        });
        (trace, chronicle)
    }

    /// When the story began; the run's begin if it did not.
    #[must_use]
    pub fn began(&self) -> Time {
        self.phases.iter().find(|(_, name)| *name == "story").map_or(Time(0), |(time, _)| *time)
    }

    /// Takes an event in.
    pub fn take(&mut self, step: u64, time: Time, event: &Event) {
        self.end = time;
        if !self.note(time, event) {
            return;
        }
        self.drawable += 1;
        if self.kept.len() >= self.most {
            self.kept.pop_front();
        }
        self.kept.push_back(Kept { step, time, event: event.clone() });
    }

    /// Notes what an event means; gives whether it can be drawn.
    fn note(&mut self, time: Time, event: &Event) -> bool {
        match event {
            Event::Phase(name) => self.phases.push((time, name)),
            Event::Start { replica, .. } => {
                self.last_views.remove(replica);
                self.lives.entry(*replica).or_default().push(Life { from: time, to: None });
            }
            Event::Stop { replica, why, .. } => {
                if let Some(life) = self.lives.get_mut(replica).and_then(|lives| lives.last_mut())
                    && life.to.is_none()
                {
                    life.to = Some((time, why.clone()));
                }
            }
            Event::View { replica, view, .. } => {
                let status = &view.status;
                if status.role == RaftRole::Leader
                    && self.reigns.iter().all(|reign| (reign.leader, reign.term) != (*replica, status.term))
                {
                    self.reigns.push(Reign { from: time, leader: *replica, term: status.term });
                }
                let new = (status.role, status.term, status.commit);
                return self.last_views.insert(*replica, new) != Some(new);
            }
            Event::Fault { id, begins, what } => {
                if *begins {
                    let (what, on) = what.rsplit_once(" on ").unwrap_or((what, ""));
                    let number = |name: &str| name.strip_prefix('r')?.parse().ok().map(ReplicaId);
                    let victims = on.split(' ').filter_map(number).collect();
                    let (id, what) = (id.clone(), what.to_owned());
                    self.broken.push(Broken { id, from: time, to: None, what, victims });
                } else if let Some(broken) = self.broken.iter_mut().rev().find(|broken| broken.id == *id) {
                    broken.to = Some(time);
                }
            }
            Event::Operation { id, what } => self.operations.push((time, id.clone(), what.clone())),
            Event::Disk { good, .. } => return !good,
            Event::Records { .. } => return false,
            Event::Send { .. }
            | Event::Deliver { .. }
            | Event::Drop { .. }
            | Event::Forged { .. }
            | Event::Append { .. }
            | Event::Durable { .. }
            | Event::Snapshot { .. }
            | Event::Call { .. }
            | Event::Answer { .. }
            | Event::Log { .. }
            | Event::Kept { .. }
            | Event::Inspected { .. }
            | Event::Agent { .. }
            | Event::Mark(_) => {}
        }
        true
    }

    /// What happened, in a paragraph.
    #[must_use]
    pub fn story(&self, scenario: &Scenario, report: &Report) -> String {
        let began = self.began();
        let mut told: Vec<(Time, String)> = Vec::new();
        for broken in &self.broken {
            let item = scenario.faults.iter().find(|item| item.id == broken.id);
            let words = item.map_or_else(|| broken.what.clone(), |item| words(item, &broken.victims));
            told.push((broken.from, words));
        }
        told.extend(self.operations.iter().map(|(time, id, what)| (*time, format!("the operation {id}: {what}"))));
        for reign in self.reigns.iter().filter(|reign| reign.from >= began) {
            told.push((reign.from, format!("r{} leads term {}", reign.leader, reign.term)));
        }
        for (replica, lives) in &self.lives {
            for life in lives {
                if let Some((time, Ending::Fault(problem))) = &life.to {
                    told.push((*time, format!("r{replica} stops itself: {problem}")));
                }
            }
        }
        told.extend(self.phases.iter().filter_map(|(time, name)| match *name {
            "heal" => Some((*time, "a quorum is healed".into())),
            "whole" => Some((*time, "everybody is healed".into())),
            _ => None,
        }));
        told.sort_by_key(|(time, _)| *time);
        let mut out = self.cast(scenario);
        let left_out = told.len().saturating_sub(TOLD_MOST);
        if left_out > 0 {
            let _cannot_fail = write!(out, " {left_out} earlier things are left out here.");
        }
        for (time, words) in told.iter().skip(left_out) {
            let _cannot_fail = write!(out, " At {} {words}.", since(*time, began));
        }
        match &report.found {
            Some(found) => {
                let _cannot_fail = write!(
                    out,
                    " At {} (step {}) this does not hold: {}. Expected {}; saw {}.",
                    since(found.time, began),
                    found.step,
                    found.oracle,
                    found.violation.expected.trim_end_matches('.'),
                    found.violation.saw.trim_end_matches('.'),
                );
            }
            None => out.push_str(" Every property holds."),
        }
        out
    }

    fn cast(&self, scenario: &Scenario) -> String {
        let count = |number: u64, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
        let mut out = count(scenario.cluster.voters, "voter");
        if scenario.cluster.learners > 0 {
            let _cannot_fail = write!(out, " and {}", count(scenario.cluster.learners, "learner"));
        }
        if scenario.load.clients == 0 {
            out.push_str("; nobody asks anything.");
        } else {
            let ask = if scenario.load.clients == 1 { "asks" } else { "ask" };
            let clients = count(scenario.load.clients.into(), "client");
            let rate = count(scenario.load.rate, "operation");
            let _cannot_fail = write!(out, "; {clients} {ask} for {rate} a second.");
        }
        let began = self.began();
        if let Some(first) = self.reigns.iter().rfind(|reign| reign.from < began) {
            let _cannot_fail = write!(out, " When the story begins, r{} leads term {}.", first.leader, first.term);
        }
        out
    }
}

/// A story that is longer than this is cut at its beginning.
const TOLD_MOST: usize = 40;

/// A time from the story's begin, for people.
#[must_use]
pub fn since(time: Time, began: Time) -> String {
    let (sign, nanos) = if time >= began { ("", time.0 - began.0) } else { ("-", began.0 - time.0) };
    format!("{sign}{}.{:03} s", nanos / SECOND, nanos % SECOND / MS)
}

fn names(picks: &[Pick]) -> String {
    let names: Vec<String> = picks
        .iter()
        .map(|pick| match pick {
            Pick::Replica(number) => format!("r{number}"),
            Pick::Leader => "the leader".into(),
            Pick::Follower => "a follower".into(),
            Pick::All => "everybody".into(),
            Pick::Others => "the others".into(),
            Pick::Clients => "the clients".into(),
        })
        .collect();
    names.join(", ")
}

/// A fault in plain words, with whom it met.
fn words(item: &FaultItem, victims: &[ReplicaId]) -> String {
    let met: Vec<String> = victims.iter().map(|id| format!("r{id}")).collect();
    let whom = |who: &[Pick]| match who {
        [Pick::Replica(_)] => names(who),
        _ if met.is_empty() => format!("{} (nobody, as it happens)", names(who)),
        _ => format!("{} ({})", names(who), met.join(", ")),
    };
    let lasts =
        item.lasts.map_or_else(|| "until healing".into(), |nanos| format!("for {}", since(Time(nanos), Time(0))));
    let with_power = |power: bool| if power { ", and its machine loses power" } else { "" };
    match &item.fault {
        Fault::Crash { who, point, nth, power, .. } => {
            let place = point.map_or(String::new(), |point| {
                let nth = if *nth == 1 { String::new() } else { format!(", number {nth}") };
                format!(" when it next comes to the point \"{}\"{nth}", point.word())
            });
            format!("{} is to die{place}{}; down {lasts}", whom(who), with_power(*power))
        }
        Fault::CrashLoop { who, every, power } => {
            let every = since(Time(*every), Time(0));
            format!("{} dies about every {every}{} {lasts}", whom(who), with_power(*power))
        }
        Fault::Pause { who } => format!("{} stands still {lasts}", whom(who)),
        Fault::SlowProcess { who, percent } => format!("{} gets {percent} % of its time {lasts}", whom(who)),
        Fault::Cut { from, to, way, flap, holds } => {
            let (one, other) = (whom(from), names(to));
            let cut = match way {
                Way::Both => format!("nothing passes between {one} and {other}"),
                Way::Out => format!("nothing passes from {one} to {other}, only back"),
                Way::In => format!("nothing passes to {one} from {other}, only back"),
            };
            let flap =
                flap.map_or(String::new(), |every| format!(", on and off every {}", since(Time(every), Time(0))));
            let holds = if *holds { "; what is sent meanwhile arrives when that is over" } else { "" };
            format!("{cut}{flap}, {lasts}{holds}")
        }
        Fault::Ring => format!("each replica reaches only its two neighbours {lasts}"),
        Fault::Link(_) => format!("links get worse {lasts} ({})", crate::scenario::fault_text(&item.fault)),
        Fault::Disk { who, .. } => {
            format!("the disk of {} misbehaves {lasts} ({})", whom(who), crate::scenario::fault_text(&item.fault))
        }
        Fault::Rot { who, file, last } => {
            let place = if *last { "the last written sector of" } else { "" };
            format!("a stored bit of {} flips, in {place} a file like \"{file}\"", whom(who)).replace("  ", " ")
        }
        Fault::Wipe { who, back } => {
            let back = match back {
                Back::Empty => "its disk is empty from then on, and it cannot start",
                Back::Stranger => "comes back with an empty disk under its old id, in another life",
                Back::Amnesiac => "comes back as it was, with an empty disk",
            };
            format!("{} dies, and {back}; down {lasts}", whom(who))
        }
        Fault::Rewind { who, by } => {
            let by = since(Time(*by), Time(0));
            format!("{} dies and comes back with its disk as it was {by} before; down {lasts}", whom(who))
        }
        Fault::Clock { who, step_ms, drift_ppm, freeze } => {
            let frozen = if *freeze { ", standing still" } else { "" };
            format!("the clock of {} is {step_ms} ms off, gaining {drift_ppm} ppm{frozen}, {lasts}", whom(who))
        }
        Fault::Hostile { who, every } => {
            let every = since(Time(*every), Time(0));
            format!("{} hears forged messages about every {every} {lasts}", whom(who))
        }
        Fault::Driver { who, late, early } => {
            let late = since(Time(*late), Time(0));
            format!(
                "the devices of {} tell up to {late} late what is done, and wake it early {early} % of the time, {lasts}",
                whom(who)
            )
        }
        Fault::Agent(_) => format!("{} {lasts}", crate::scenario::fault_text(&item.fault)),
        Fault::Downgrade { who, file } => {
            format!("{} starts on a file like \"{file}\" that a newer version wrote {lasts}", whom(who))
        }
    }
}
