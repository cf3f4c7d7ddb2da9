//! What holds for every life of an agent, however random: crashes between any two effects, a journal that comes and goes,
//! people who meddle, consumers that block.

#[path = "agent/world.rs"]
mod agent_world;
mod common;

use agent_world::{World, bob, k, set, v};
use common::{alice, node, vcluster};
use muster_core::agent::drift::{DriftVector, window_seconds};
use muster_core::agent::host::Observed;
use muster_core::agent::operator::{Consent, Phase, Reply, Request, Which};
use muster_core::agent::plan;
use muster_core::agent::value::agrees;
use muster_core::boot;
use muster_core::journal::command::ConfigState;
use muster_core::journal::entry::{Author, EntryType};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::policy::{Milli, Policy};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const KEYS: [&str; 5] =
    ["kernel:vm.swappiness", "files:/etc/motd", "files:/data/x", "services:web", "kernel:net.core.somaxconn"];
const VALUES: [[&str; 3]; 5] = [
    ["60", "10", "20"],
    ["hello", "bye", "news"],
    ["1", "2", "3"],
    ["running", "stopped", "running enabled"],
    ["128", "256", "512"],
];
/// Nobody declares it at first, and nobody meddles with it.
const FREE: usize = 4;

#[derive(Clone, Debug)]
enum Op {
    Set { bob: bool, keys: Vec<(usize, usize)>, merge: bool },
    Meddle { key: usize, value: usize },
    Commit { bob: bool, all: bool },
    Rollback { bob: bool, all: bool },
    Extend,
    Emergency,
    EndEmergency { force: bool },
    Declare { key: usize, value: usize, own: bool },
    Use { key: usize },
    Leave,
    Up,
    Down,
    LoseAnswers,
    GrowOld,
    Pass(u64),
    CarryOut(Vec<u8>),
    Tell,
    Settle,
    Crash,
    Restart,
    Reboot,
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0..KEYS.len();
    let value = || 0..3_usize;
    prop_oneof![
        6 => (any::<bool>(), prop::collection::vec((key(), value()), 1..3), any::<bool>())
            .prop_map(|(bob, keys, merge)| Op::Set { bob, keys, merge }),
        3 => (0..FREE, value()).prop_map(|(key, value)| Op::Meddle { key, value }),
        3 => (any::<bool>(), any::<bool>()).prop_map(|(bob, all)| Op::Commit { bob, all }),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(bob, all)| Op::Rollback { bob, all }),
        1 => Just(Op::Extend),
        1 => Just(Op::Emergency),
        1 => any::<bool>().prop_map(|force| Op::EndEmergency { force }),
        2 => (key(), value(), any::<bool>()).prop_map(|(key, value, own)| Op::Declare { key, value, own }),
        2 => key().prop_map(|key| Op::Use { key }),
        2 => Just(Op::Leave),
        3 => Just(Op::Up),
        1 => Just(Op::Down),
        1 => Just(Op::LoseAnswers),
        1 => Just(Op::GrowOld),
        4 => (1_u64..400).prop_map(Op::Pass),
        12 => prop::collection::vec(any::<u8>(), 1..12).prop_map(Op::CarryOut),
        3 => Just(Op::Tell),
        4 => Just(Op::Settle),
        2 => Just(Op::Crash),
        3 => Just(Op::Restart),
        1 => Just(Op::Reboot),
    ]
}

fn author(is_bob: bool) -> Author {
    if is_bob { bob() } else { alice() }
}

fn which(all: bool) -> Which {
    if all { Which::All } else { Which::Own }
}

fn play(world: &mut World, op: Op) {
    match op {
        Op::Set { bob, keys, merge } => {
            let keys: BTreeMap<_, _> = keys.into_iter().collect();
            let changes: Vec<_> = keys.iter().map(|(key, value)| (KEYS[*key], VALUES[*key][*value])).collect();
            let Request::Set { changes, consent, message, .. } = set(&changes, Consent::Yes) else { unreachable!() };
            world.ask(author(bob), Request::Set { changes, consent, merge, message });
        }
        Op::Meddle { key, value } => world.meddle(KEYS[key], v(VALUES[key][value])),
        Op::Commit { bob, all } => {
            let message = Arc::from("because");
            world.ask(author(bob), Request::Commit { which: which(all), ttl_seconds: None, message });
        }
        Op::Rollback { bob, all } => {
            world.ask(author(bob), Request::Rollback { which: which(all) });
        }
        Op::Extend => {
            world.ask(alice(), Request::Extend { seconds: 50 });
        }
        Op::Emergency => {
            world.ask(alice(), Request::EmergencyStart { reason: Arc::from("fire") });
        }
        Op::EndEmergency { force } => {
            world.ask(alice(), Request::EmergencyEnd { force });
        }
        Op::Declare { key, value, own } => {
            let scope = if own { Scope::Node(node(0)) } else { Scope::VCluster(vcluster(0)) };
            world.declare(EntryType::Commit, scope, &[(KEYS[key], Some(VALUES[key][value]))]);
        }
        Op::Use { key } => {
            world.host.consumers.insert(k(KEYS[key]), 4711);
        }
        Op::Leave => world.host.consumers.clear(),
        Op::Up => world.connect(),
        Op::Down => world.disconnect(),
        Op::LoseAnswers => world.lost_answers = 2,
        Op::GrowOld => world.age(4_000),
        Op::Pass(seconds) => world.advance(seconds),
        Op::CarryOut(choices) => {
            for choice in choices {
                if !world.todo.is_empty() {
                    world.carry_out(usize::from(choice));
                }
            }
        }
        Op::Tell => {
            world.tell_declared();
        }
        Op::Settle => {
            world.settle();
            world.check_at_rest();
        }
        Op::Crash => world.kill(),
        Op::Restart => {
            if world.machine.is_none() {
                world.start();
            }
        }
        Op::Reboot => world.reboot(),
    }
}

/// Everything that was in the way goes; then whatever is pending ends, and the node is what is declared.
fn heal(world: &mut World) {
    world.host.consumers.clear();
    world.lost_answers = 0;
    if world.machine.is_none() {
        world.start();
    }
    world.connect();
    world.pass(1_000);
    world.check_at_rest();
    if world.report().emergency.is_some() {
        let reply = world.end_emergency(alice(), true);
        assert!(matches!(reply, Reply::EmergencyEnded { .. }), "{reply:?}");
    }
    world.pass(1_000);
    if world.report().phase == Phase::Blocked {
        let reply = world.rollback(alice(), Which::All);
        assert!(matches!(reply, Reply::Returned(_)), "{reply:?}");
    }
    world.pass(2_000);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_crash_loses_a_promise_and_every_life_ends_in_what_is_declared(ops in prop::collection::vec(op(), 1..120)) {
        let declared = [(KEYS[0], "60"), (KEYS[1], "hello"), (KEYS[2], "1"), (KEYS[3], "running")];
        let mut world = World::unbooted(Policy::default(), &declared);
        world.host.initial.insert(k(KEYS[FREE]), v("128"));
        world.host.state = world.host.initial.clone();
        world.start();
        world.settle();
        for op in ops {
            play(&mut world, op);
        }
        heal(&mut world);
        let report = world.report();
        prop_assert_eq!(world.undeclared(), Vec::<String>::new());
        prop_assert_eq!(&report.differences, &vec![]);
        prop_assert_eq!((report.phase, report.window, report.spooled), (Phase::Committed, None, 0));
        prop_assert_eq!(world.node_state(), ConfigState::Committed);
        if !boot::declared(&world.state, &node(0)).contains_key(&k(KEYS[FREE])) {
            prop_assert_eq!(world.is(KEYS[FREE]), v("128"), "what nobody declares is what it was");
        }
        world.check_story();
    }

    #[test]
    fn more_drift_never_lengthens_a_window(
        counts in prop::array::uniform7(0_u32..50),
        more in prop::array::uniform7(0_u32..50),
        weights in prop::array::uniform7(0_u32..5_000),
        base in 1_u32..864_000,
        sensitivity in 0_u32..10_000,
        minimum in 0_u32..100,
    ) {
        let weights = weights.map(Milli);
        let policy = Policy {
            base_window_seconds: base,
            sensitivity: Milli(sensitivity),
            weights,
            min_window_seconds: minimum.min(base),
            ..Policy::default()
        };
        let less = DriftVector(counts);
        let mut sum = counts;
        sum.iter_mut().zip(more).for_each(|(count, more)| *count += more);
        let more = DriftVector(sum);
        let seconds = |drift: &DriftVector| window_seconds(&policy, drift.magnitude(&weights));
        prop_assert!(seconds(&more) <= seconds(&less));
        prop_assert!(seconds(&less) <= u64::from(base));
        prop_assert!(seconds(&more) >= u64::from(policy.min_window_seconds));
    }

    #[test]
    fn a_plan_applied_to_the_drifted_state_is_the_declared_state_in_the_fewest_steps(
        declared in tree(),
        drifted in tree(),
    ) {
        let mut rigid = Rigid { state: drifted };
        rigid.settle();
        let targets: BTreeMap<Key, Setting> = tree_keys().into_iter().map(|key| {
            let setting = declared.get(&key).cloned().unwrap_or(Setting::Absent);
            (key, setting)
        }).collect();
        let observed: BTreeMap<Key, Observed> = targets.keys().map(|key| (key.clone(), rigid.look(key))).collect();
        let steps = plan::steps(targets.iter().map(|(key, target)| (key, target, observed.get(key))));
        let differing = targets.iter().filter(|(key, target)| !agrees(key, target, &observed[*key])).count();
        prop_assert_eq!(steps.len(), differing);
        for step in &steps {
            rigid.change(&step.key, &step.setting)?;
        }
        for (key, target) in &targets {
            prop_assert!(agrees(key, target, &rigid.look(key)), "{} is {:?}", key, rigid.look(key));
        }
    }
}

// ---- a host that insists on order ----

/// Mounts lie in mounts; files lie on mounts; a service stands on a mount and reads a file.
const MOUNTS: [&str; 3] = ["mounts:/data", "mounts:/data/inner", "mounts:/other"];
const FILES: [(&str, usize); 3] = [("files:/data/config", 0), ("files:/data/inner/x", 1), ("files:/other/y", 2)];
const SERVICES: [(&str, usize, usize); 2] = [("services:web", 0, 0), ("services:inner", 1, 1)];

fn tree_keys() -> Vec<Key> {
    let files = FILES.iter().map(|(key, _)| *key);
    MOUNTS.into_iter().chain(files).chain(SERVICES.iter().map(|(key, ..)| *key)).map(k).collect()
}

/// A state of the tree that could be declared: what stands on something is there only with it.
fn tree() -> impl Strategy<Value = BTreeMap<Key, Setting>> {
    let picks = prop::array::uniform8(0_u8..3);
    picks.prop_map(|picks| {
        let mut tree = Rigid { state: BTreeMap::new() };
        let kinds = ["tmpfs tmpfs", "tmpfs tmpfs ro"];
        for (mount, pick) in MOUNTS.iter().zip(picks) {
            if pick > 0 {
                tree.state.insert(k(mount), v(kinds[usize::from(pick) - 1]));
            }
        }
        for ((file, _), pick) in FILES.iter().zip(&picks[3..]) {
            if *pick > 0 {
                tree.state.insert(k(file), v(&format!("content {pick}")));
            }
        }
        for ((service, ..), pick) in SERVICES.iter().zip(&picks[6..]) {
            tree.state.insert(k(service), v(if *pick > 0 { "running" } else { "stopped" }));
        }
        tree.settle();
        tree.state
    })
}

struct Rigid {
    state: BTreeMap<Key, Setting>,
}

impl Rigid {
    fn has(&self, key: &str) -> bool {
        matches!(self.state.get(&k(key)), Some(Setting::Value(value)) if &**value != "stopped")
    }

    /// Takes away what cannot be: nothing stands on what is not there.
    fn settle(&mut self) {
        if !self.has(MOUNTS[0]) {
            self.state.remove(&k(MOUNTS[1]));
        }
        for (file, mount) in FILES {
            if !self.has(MOUNTS[mount]) {
                self.state.remove(&k(file));
            }
        }
        for (service, mount, file) in SERVICES {
            if !self.has(MOUNTS[mount]) || !self.has(FILES[file].0) {
                self.state.insert(k(service), v("stopped"));
            }
        }
    }

    fn look(&self, key: &Key) -> Observed {
        match self.state.get(key) {
            Some(Setting::Value(value)) => Observed::Value(value.clone()),
            Some(Setting::Absent | Setting::Unset) | None => Observed::Absent,
        }
    }

    fn change(&mut self, key: &Key, setting: &Setting) -> Result<(), TestCaseError> {
        let goes = *setting == Setting::Absent;
        let text = key.as_str();
        if let Some(at) = MOUNTS.iter().position(|mount| *mount == text) {
            let users = SERVICES.iter().filter(|(service, mount, _)| *mount == at && self.has(service)).count();
            prop_assert!(!goes || users == 0, "{} goes under a running service", key);
            prop_assert!(!goes || at != 0 || !self.has(MOUNTS[1]), "{} goes with a mount inside", key);
            prop_assert!(goes || at != 1 || self.has(MOUNTS[0]), "{} is mounted on nothing", key);
            if goes {
                // What lay on it is gone with it.
                for (file, _) in FILES.iter().filter(|(_, mount)| *mount == at) {
                    self.state.remove(&k(file));
                }
            }
        }
        if let Some((_, mount)) = FILES.iter().find(|(file, _)| *file == text) {
            prop_assert!(goes || self.has(MOUNTS[*mount]), "{} is written under a missing mount", key);
        }
        if let Some((_, mount, file)) = SERVICES.iter().find(|(service, ..)| *service == text)
            && setting == &v("running")
        {
            prop_assert!(self.has(MOUNTS[*mount]) && self.has(FILES[*file].0), "{} starts too early", key);
        }
        if goes {
            self.state.remove(key);
        } else {
            self.state.insert(key.clone(), setting.clone());
        }
        Ok(())
    }
}
