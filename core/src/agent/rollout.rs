//! A change to many nodes: a few first, more when those stay healthy, all back when too many do not.
//!
//! Run by the operator's verb, which carries the tasks to the nodes' agents and tells what came of them. The machine holds no
//! promise of its own: on every node the change runs under that node's commit window, so if the operator's process dies, the
//! windows expire and the nodes roll back by themselves.
//!
//! Nodes are set wave by wave. A wave is over when every node of it was healthy, without a break, for a time; the next is as
//! large as everything before it, times a factor. When the last wave is over, all are committed. More failures than allowed
//! before the first commit abort the rollout: every node that was, or may have been, touched is rolled back.
//!
//! Invariants
//! - nothing is committed before every node that is left was healthy for its time;
//! - after an abort no node is set or committed, and none that may have been touched is forgotten;
//! - a node that failed is never committed.

use crate::ids::{NodeId, Time};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

/// How often a node is looked at, in milliseconds.
const LOOK_MS: u64 = 1_000;

/// How often a rollback or commit that did not come through is tried.
const ATTEMPTS_MAX: u32 = 5;

/// How a rollout goes about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Nodes in the first wave. More is faster; fewer are hurt by a bad change.
    pub first: usize,
    /// How much larger the nodes reached get with every wave: 2 doubles them. At least 2.
    pub widen: usize,
    /// How long every node of a wave must be healthy before the next, in seconds.
    pub healthy_seconds: u64,
    /// How many nodes may fail without an abort.
    pub failures_max: usize,
    /// How long a node may be out of reach before it counts as failed, in seconds.
    pub silent_seconds: u64,
}

impl Settings {
    /// Everything that is wrong with it for so many nodes, in an operator's words.
    #[must_use]
    pub fn problems(&self, nodes: usize) -> Vec<String> {
        let mut problems = Vec::new();
        if nodes == 0 {
            problems.push("there are no nodes".into());
        }
        if self.first == 0 || self.first > nodes {
            problems.push(format!("the first wave has {} nodes: expected 1 to {nodes}", self.first));
        }
        if self.widen < 2 {
            problems.push(format!("every wave multiplies the nodes reached by {}: expected 2 or more", self.widen));
        }
        problems
    }

    /// The waves for so many nodes.
    #[must_use]
    pub fn waves(&self, nodes: usize) -> usize {
        let (mut reached, mut waves) = (0, 0);
        while reached < nodes {
            reached = self.next(reached, nodes);
            waves += 1;
        }
        waves
    }

    /// How long the first node must hold the change before it can be committed, in seconds: its window must be longer.
    #[must_use]
    pub fn seconds_needed(&self, nodes: usize) -> u64 {
        // A second or two for each wave to be set and looked at.
        self.waves(nodes) as u64 * (self.healthy_seconds + 2)
    }

    fn next(&self, reached: usize, nodes: usize) -> usize {
        let next = if reached == 0 { self.first.max(1) } else { reached.saturating_mul(self.widen.max(2)) };
        next.min(nodes)
    }
}

/// What a look at a node showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// The change is there, and the node's own check is content.
    Healthy,
    /// It is not: why.
    Unhealthy(Arc<str>),
    /// The agent did not answer.
    Silent,
}

/// What came of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done. For a set: how long its window is, if one runs.
    Done {
        /// Seconds until the window ends.
        window_seconds: Option<u64>,
    },
    /// It was certainly not done.
    Failed(Arc<str>),
    /// Nobody knows.
    Unknown(Arc<str>),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A node's agent answered to [`Task::Set`].
    Set(NodeId, Outcome),
    /// A node was looked at.
    Looked(NodeId, Health),
    /// A node's agent answered to [`Task::Commit`].
    Committed(NodeId, Outcome),
    /// A node's agent answered to [`Task::Rollback`].
    RolledBack(NodeId, Outcome),
    /// The operator wants it all back.
    Abort,
    /// The time in [`Effects::wake_at`] has come.
    Wake,
}

/// What is to be done at a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Make the change.
    Set(NodeId),
    /// Look whether it is healthy.
    Look(NodeId),
    /// Commit the change.
    Commit(NodeId),
    /// Roll the change back.
    Rollback(NodeId),
}

/// What came of the rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The change is declared for these; those that failed were rolled back, and why they failed.
    Committed {
        /// Where it is declared.
        nodes: Vec<NodeId>,
        /// Where it failed.
        failed: Vec<(NodeId, Arc<str>)>,
    },
    /// Everything was rolled back, but for the nodes that did not say so: their windows do it.
    Aborted {
        /// Why.
        why: Arc<str>,
        /// Where it failed.
        failed: Vec<(NodeId, Arc<str>)>,
        /// Nodes that did not confirm their rollback, and what they said.
        unconfirmed: Vec<(NodeId, Arc<str>)>,
    },
}

/// What to do next.
#[derive(Debug, Default)]
pub struct Effects {
    /// Tasks, in any order, all at once if one likes. Each is answered.
    pub tasks: Vec<Task>,
    /// Lines for the operator.
    pub told: Vec<String>,
    /// When to wake the rollout.
    pub wake_at: Option<Time>,
    /// It is over.
    pub verdict: Option<Verdict>,
}

/// Where a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Waiting,
    Setting,
    /// The change is there. Healthy since then, and last heard of then.
    Holding {
        healthy_since: Option<Time>,
        heard_at: Time,
        looks_at: Time,
        is_looked_at: bool,
    },
    Committing(u32),
    Committed,
    RollingBack(u32),
    RolledBack,
    /// It did not say that it rolled back.
    Unconfirmed(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Widening { reached: usize },
    Committing,
    Aborting(Arc<str>),
    Over,
}

/// A rollout under way.
#[derive(Debug)]
pub struct Rollout {
    settings: Settings,
    order: Vec<NodeId>,
    places: BTreeMap<NodeId, Place>,
    failures: BTreeMap<NodeId, Arc<str>>,
    phase: Phase,
    started: Time,
    now: Time,
    effects: Effects,
}

impl Rollout {
    /// Begins, with the first nodes in the order given.
    ///
    /// # Errors
    /// Everything that is wrong with the settings, in an operator's words.
    pub fn start(settings: Settings, nodes: Vec<NodeId>, now: Time) -> Result<(Self, Effects), Vec<String>> {
        let mut problems = settings.problems(nodes.len());
        let places: BTreeMap<NodeId, Place> = nodes.iter().map(|node| (node.clone(), Place::Waiting)).collect();
        if places.len() != nodes.len() {
            problems.push("a node is named twice".into());
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut rollout = Self {
            settings,
            order: nodes,
            places,
            failures: BTreeMap::new(),
            phase: Phase::Widening { reached: 0 },
            started: now,
            now,
            effects: Effects::default(),
        };
        rollout.widen(0);
        let effects = rollout.settle();
        Ok((rollout, effects))
    }

    /// Something happened.
    pub fn step(&mut self, now: Time, input: Input) -> Effects {
        self.now = self.now.max(now);
        match input {
            Input::Set(node, outcome) => self.on_set(&node, outcome),
            Input::Looked(node, health) => self.on_looked(&node, health),
            Input::Committed(node, outcome) => self.on_committed(node, outcome),
            Input::RolledBack(node, outcome) => self.on_rolled_back(node, outcome),
            Input::Abort => self.abort("the operator wants it back".into()),
            Input::Wake => {}
        }
        self.settle()
    }

    // ---- one node ----

    fn on_set(&mut self, node: &NodeId, outcome: Outcome) {
        if self.places.get(node) != Some(&Place::Setting) {
            // It came after the abort, whose rollback is asked for anew: it may have overtaken the change.
            if matches!(self.places.get(node), Some(Place::RolledBack | Place::Unconfirmed(_))) {
                self.roll_back(node.clone(), 0);
            }
            return;
        }
        match outcome {
            Outcome::Done { window_seconds } => {
                let (healthy_since, heard_at, looks_at) = (None, self.now, self.now);
                let holding = Place::Holding { healthy_since, heard_at, looks_at, is_looked_at: false };
                self.places.insert(node.clone(), holding);
                let spent = self.now.micros_since(self.started) / 1_000_000;
                let needed = self.settings.seconds_needed(self.order.len()).saturating_sub(spent);
                if let Some(window) = window_seconds.filter(|window| *window < needed) {
                    self.abort(format!(
                        "the window of {node} ends in {window} s, and the rollout needs {needed} s more: take larger waves, \
                         a shorter time of health, or extend the windows"
                    ));
                }
            }
            Outcome::Failed(why) => {
                self.places.insert(node.clone(), Place::RolledBack);
                self.fail(node.clone(), why);
            }
            Outcome::Unknown(why) => {
                self.fail(node.clone(), why);
                self.roll_back(node.clone(), 0);
            }
        }
    }

    fn on_looked(&mut self, node: &NodeId, health: Health) {
        let now = self.now;
        let Some(Place::Holding { healthy_since, heard_at, looks_at, is_looked_at }) = self.places.get_mut(node) else {
            return;
        };
        *is_looked_at = false;
        *looks_at = now.plus_ms(LOOK_MS);
        let why = match health {
            Health::Healthy => {
                *heard_at = now;
                healthy_since.get_or_insert(now);
                return;
            }
            Health::Unhealthy(why) => why,
            Health::Silent => {
                *healthy_since = None;
                let silent = now.micros_since(*heard_at) / 1_000_000;
                if silent < self.settings.silent_seconds {
                    return;
                }
                format!("its agent did not answer for {silent} s").into()
            }
        };
        self.fail(node.clone(), why);
        if matches!(self.places.get(node), Some(Place::Holding { .. })) {
            self.roll_back(node.clone(), 0);
        }
    }

    fn on_committed(&mut self, node: NodeId, outcome: Outcome) {
        let Some(Place::Committing(attempts)) = self.places.get(&node).cloned() else { return };
        match outcome {
            Outcome::Done { .. } => {
                self.places.insert(node, Place::Committed);
            }
            // Asked again: a second commit finds nothing left to commit where the first came through.
            Outcome::Failed(_) | Outcome::Unknown(_) if attempts < ATTEMPTS_MAX => {
                self.places.insert(node.clone(), Place::Committing(attempts + 1));
                self.effects.tasks.push(Task::Commit(node));
            }
            Outcome::Failed(why) | Outcome::Unknown(why) => {
                self.failures.insert(node.clone(), why);
                self.roll_back(node, 0);
            }
        }
    }

    fn on_rolled_back(&mut self, node: NodeId, outcome: Outcome) {
        let Some(Place::RollingBack(attempts)) = self.places.get(&node).cloned() else { return };
        match outcome {
            Outcome::Done { .. } => {
                self.places.insert(node, Place::RolledBack);
            }
            Outcome::Failed(_) | Outcome::Unknown(_) if attempts < ATTEMPTS_MAX => self.roll_back(node, attempts + 1),
            Outcome::Failed(why) | Outcome::Unknown(why) => {
                self.effects.told.push(format!("{node} did not roll back: {why}"));
                self.places.insert(node, Place::Unconfirmed(why));
            }
        }
    }

    fn roll_back(&mut self, node: NodeId, attempts: u32) {
        self.places.insert(node.clone(), Place::RollingBack(attempts));
        self.effects.tasks.push(Task::Rollback(node));
    }

    fn fail(&mut self, node: NodeId, why: Arc<str>) {
        self.effects.told.push(format!("{node} failed: {why}"));
        self.failures.insert(node, why);
        let (count, max) = (self.failures.len(), self.settings.failures_max);
        if count > max && matches!(self.phase, Phase::Widening { .. }) {
            self.abort(format!("{count} nodes failed, {max} may"));
        }
    }

    // ---- all of them ----

    fn abort(&mut self, why: String) {
        match self.phase {
            Phase::Widening { .. } => {}
            // Once something is declared, what is declared is rolled back by the journal's own rollback.
            Phase::Committing | Phase::Aborting(_) | Phase::Over => return,
        }
        self.effects.told.push(format!("aborted: {why}"));
        self.phase = Phase::Aborting(why.into());
        let touched: Vec<NodeId> = self
            .places
            .iter()
            .filter(|(_, place)| matches!(place, Place::Setting | Place::Holding { .. }))
            .map(|(node, _)| node.clone())
            .collect();
        for node in touched {
            self.roll_back(node, 0);
        }
    }

    fn widen(&mut self, reached: usize) {
        let next = self.settings.next(reached, self.order.len());
        self.effects.told.push(format!("setting {} nodes ({next} of {})", next - reached, self.order.len()));
        for node in &self.order[reached..next] {
            self.places.insert(node.clone(), Place::Setting);
            self.effects.tasks.push(Task::Set(node.clone()));
        }
        self.phase = Phase::Widening { reached: next };
    }

    /// Whether every node that was set is over with it: healthy for its time, or failed and back.
    fn wave_is_over(&self) -> bool {
        let patient = self.settings.healthy_seconds * 1_000_000;
        self.places.values().all(|place| match place {
            Place::Waiting | Place::RolledBack | Place::Unconfirmed(_) | Place::Committed => true,
            Place::Setting | Place::Committing(_) | Place::RollingBack(_) => false,
            Place::Holding { healthy_since, .. } => {
                healthy_since.is_some_and(|since| self.now.micros_since(since) >= patient)
            }
        })
    }

    fn settle(&mut self) -> Effects {
        if let Phase::Widening { reached } = self.phase
            && self.wave_is_over()
        {
            if reached < self.order.len() {
                self.widen(reached);
            } else {
                self.commit();
            }
        }
        self.look();
        self.conclude();
        self.effects.wake_at = self.next_wake();
        core::mem::take(&mut self.effects)
    }

    fn commit(&mut self) {
        self.phase = Phase::Committing;
        let holding = self.places.iter_mut().filter(|(_, place)| matches!(place, Place::Holding { .. }));
        let mut count = 0;
        for (node, place) in holding {
            *place = Place::Committing(0);
            self.effects.tasks.push(Task::Commit(node.clone()));
            count += 1;
        }
        self.effects.told.push(format!("committing {count} nodes"));
    }

    fn look(&mut self) {
        for (node, place) in &mut self.places {
            if let Place::Holding { looks_at, is_looked_at, .. } = place
                && !*is_looked_at
                && *looks_at <= self.now
            {
                *is_looked_at = true;
                self.effects.tasks.push(Task::Look(node.clone()));
            }
        }
    }

    fn conclude(&mut self) {
        let is_moving = |place: &Place| match place {
            Place::Setting | Place::Holding { .. } | Place::Committing(_) | Place::RollingBack(_) => true,
            Place::Waiting | Place::Committed | Place::RolledBack | Place::Unconfirmed(_) => false,
        };
        if self.places.values().any(is_moving) {
            return;
        }
        let failed = self.failures.iter().map(|(node, why)| (node.clone(), why.clone())).collect();
        let verdict = match &self.phase {
            Phase::Widening { .. } | Phase::Over => return,
            Phase::Committing => {
                let committed = self.places.iter().filter(|(_, place)| **place == Place::Committed);
                Verdict::Committed { nodes: committed.map(|(node, _)| node.clone()).collect(), failed }
            }
            Phase::Aborting(why) => {
                let unconfirmed = self.places.iter().filter_map(|(node, place)| match place {
                    Place::Unconfirmed(why) => Some((node.clone(), why.clone())),
                    Place::Waiting
                    | Place::Setting
                    | Place::Holding { .. }
                    | Place::Committing(_)
                    | Place::Committed
                    | Place::RollingBack(_)
                    | Place::RolledBack => None,
                });
                Verdict::Aborted { why: why.clone(), failed, unconfirmed: unconfirmed.collect() }
            }
        };
        self.phase = Phase::Over;
        self.effects.verdict = Some(verdict);
    }

    fn next_wake(&self) -> Option<Time> {
        let patient = self.settings.healthy_seconds * 1_000;
        let wakes = self.places.values().filter_map(|place| match place {
            Place::Holding { healthy_since, looks_at, is_looked_at, .. } => {
                let look = (!is_looked_at).then_some(*looks_at);
                let healthy = healthy_since.map(|since| since.plus_ms(patient));
                look.into_iter().chain(healthy).filter(|at| *at > self.now).min()
            }
            Place::Waiting
            | Place::Setting
            | Place::Committing(_)
            | Place::Committed
            | Place::RollingBack(_)
            | Place::RolledBack
            | Place::Unconfirmed(_) => None,
        });
        wakes.min()
    }

    /// How many nodes were reached, of how many, and how many failed.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let reached = self.places.values().filter(|place| **place != Place::Waiting).count();
        Progress { reached, nodes: self.order.len(), failed: self.failures.len() }
    }
}

/// How far a rollout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Nodes that were, or may have been, touched.
    pub reached: usize,
    /// All nodes.
    pub nodes: usize,
    /// Nodes that failed.
    pub failed: usize,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} nodes, {} failed", self.reached, self.nodes, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use alloc::vec;

    /// Nodes that do what they are told; some fall ill once they have the change.
    struct Fleet {
        rollout: Rollout,
        now: Time,
        wake_at: Option<Time>,
        changed: BTreeSet<NodeId>,
        committed: BTreeSet<NodeId>,
        reached: BTreeSet<NodeId>,
        ill: BTreeSet<NodeId>,
        silent: BTreeSet<NodeId>,
        window: u64,
        verdict: Option<Verdict>,
    }

    fn nodes(count: usize) -> Vec<NodeId> {
        (0..count).map(|n| NodeId::new(&format!("n{n:02}")).expect("a name")).collect()
    }

    fn settings() -> Settings {
        Settings { first: 2, widen: 2, healthy_seconds: 30, failures_max: 0, silent_seconds: 10 }
    }

    impl Fleet {
        fn run(settings: Settings, ill: &[usize], silent: &[usize], window: u64) -> Self {
            let all = nodes(20);
            let (rollout, effects) = Rollout::start(settings, all.clone(), Time(0)).expect("fitting settings");
            let some = |which: &[usize]| which.iter().map(|n| all[*n].clone()).collect();
            let mut fleet = Self {
                rollout,
                now: Time(0),
                wake_at: None,
                changed: BTreeSet::new(),
                committed: BTreeSet::new(),
                reached: BTreeSet::new(),
                ill: some(ill),
                silent: some(silent),
                window,
                verdict: None,
            };
            fleet.take(effects);
            for _ in 0..10_000 {
                let Some(at) = fleet.wake_at.filter(|_| fleet.verdict.is_none()) else { break };
                fleet.now = at;
                let effects = fleet.rollout.step(at, Input::Wake);
                fleet.take(effects);
            }
            fleet
        }

        fn take(&mut self, effects: Effects) {
            self.wake_at = effects.wake_at;
            self.verdict = self.verdict.take().or(effects.verdict);
            for task in effects.tasks {
                let done = Outcome::Done { window_seconds: Some(self.window) };
                let input = match task {
                    Task::Set(node) => {
                        self.changed.insert(node.clone());
                        self.reached.insert(node.clone());
                        Input::Set(node, done)
                    }
                    Task::Look(node) if self.silent.contains(&node) => Input::Looked(node, Health::Silent),
                    Task::Look(node) if self.ill.contains(&node) => {
                        Input::Looked(node, Health::Unhealthy("it does not answer on port 80".into()))
                    }
                    Task::Look(node) => Input::Looked(node, Health::Healthy),
                    Task::Commit(node) => {
                        assert!(self.changed.contains(&node), "{node} is committed and was not set");
                        self.committed.insert(node.clone());
                        Input::Committed(node, done)
                    }
                    Task::Rollback(node) => {
                        self.changed.remove(&node);
                        Input::RolledBack(node, done)
                    }
                };
                let effects = self.rollout.step(self.now, input);
                self.take(effects);
            }
        }
    }

    #[test]
    fn a_healthy_change_reaches_all_twenty_wave_by_wave() {
        let fleet = Fleet::run(settings(), &[], &[], 900);
        assert_eq!(fleet.verdict, Some(Verdict::Committed { nodes: nodes(20), failed: vec![] }));
        assert_eq!(fleet.committed.len(), 20);
        // 2, 4, 8, 16, 20: five waves of thirty seconds.
        assert_eq!((settings().waves(20), fleet.now), (5, Time(150_000_000_000)));
    }

    #[test]
    fn two_that_fall_ill_abort_it_and_nobody_keeps_the_change() {
        let fleet = Fleet::run(settings(), &[0, 1], &[], 900);
        assert!(matches!(fleet.verdict, Some(Verdict::Aborted { ref unconfirmed, .. }) if unconfirmed.is_empty()));
        assert_eq!((fleet.changed.len(), fleet.committed.len(), fleet.reached.len()), (0, 0, 2));
    }

    #[test]
    fn one_that_falls_ill_late_takes_back_everybody_reached_so_far() {
        let fleet = Fleet::run(settings(), &[7], &[], 900);
        let Some(Verdict::Aborted { why, failed, .. }) = &fleet.verdict else { panic!("{:?}", fleet.verdict) };
        assert_eq!((&**why, failed.len()), ("1 nodes failed, 0 may", 1));
        assert_eq!((fleet.changed.len(), fleet.reached.len()), (0, 8));
    }

    #[test]
    fn failures_within_the_threshold_are_rolled_back_alone() {
        let fleet = Fleet::run(Settings { failures_max: 2, ..settings() }, &[3, 9], &[], 900);
        let Some(Verdict::Committed { nodes, failed }) = &fleet.verdict else { panic!("{:?}", fleet.verdict) };
        assert_eq!((nodes.len(), failed.len(), fleet.changed.len()), (18, 2, 18));
    }

    #[test]
    fn a_silent_node_fails_after_its_time() {
        let fleet = Fleet::run(settings(), &[], &[1], 900);
        let Some(Verdict::Aborted { failed, .. }) = &fleet.verdict else { panic!("{:?}", fleet.verdict) };
        assert_eq!(&*failed[0].1, "its agent did not answer for 10 s");
        assert_eq!(fleet.changed.len(), 0);
    }

    #[test]
    fn a_window_too_short_for_the_rollout_ends_it_at_once() {
        let fleet = Fleet::run(settings(), &[], &[], 100);
        assert!(matches!(fleet.verdict, Some(Verdict::Aborted { ref why, .. }) if why.contains("needs 160 s more")));
        assert_eq!((fleet.changed.len(), fleet.reached.len()), (0, 2));
    }

    #[test]
    fn a_set_that_is_answered_after_the_abort_is_rolled_back_once_more() {
        let (mut rollout, effects) = Rollout::start(settings(), nodes(4), Time(0)).expect("fitting settings");
        assert_eq!(effects.tasks.len(), 2);
        let [first, second] = [nodes(4).remove(0), nodes(4).remove(1)];
        let failed = Input::Set(first, Outcome::Failed("read-only".into()));
        assert_eq!(rollout.step(Time(1), failed).tasks, [Task::Rollback(second.clone())]);
        let done = || Outcome::Done { window_seconds: None };
        assert!(rollout.step(Time(2), Input::RolledBack(second.clone(), done())).verdict.is_some());
        let late = rollout.step(Time(3), Input::Set(second.clone(), done()));
        assert_eq!(late.tasks, [Task::Rollback(second)]);
    }

    #[test]
    fn impossible_settings_are_refused_all_at_once() {
        let wrong = Settings { first: 9, widen: 1, ..settings() };
        let problems = Rollout::start(wrong, [nodes(1), nodes(1)].concat(), Time(0)).expect_err("refused");
        assert_eq!(problems.len(), 3, "{problems:?}");
    }
}
