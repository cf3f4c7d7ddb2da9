//! Nodes, each with an agent: production's driver and directory over a simulated machine, disk, clock and wire.
//!
//! Read in this order: [`event`] (what happens), [`host`] (the machine), `store` and `link` (disk, clock, journal), this file (an
//! agent's processes), [`operators`] (who asks), [`rollout`] (many nodes at once), [`harm`] (what breaks), [`rest`] (how it must
//! end), [`known`] (what oracles see).
//!
//! Invariants
//! - an agent's process runs on an executor's node of its own; killing that drops it at whatever it awaits, and a device of a
//!   dead process does nothing;
//! - a story without agents has none of this, and draws nothing for it.

pub mod event;
pub mod harm;
pub mod host;
pub mod known;
mod link;
pub mod operators;
pub mod rest;
pub mod rollout;
mod store;

use crate::clock::Oscillator;
use crate::disk::{ROOT, SimDisk, Store};
use crate::event::{Ending, Event, Run};
use crate::fault::RESTART_NANOS;
use crate::freedom::Freedom;
use crate::world::World;
use event::{AgentEvent, AgentId};
use host::{Hardware, SimHost};
use link::SimLink;
use madsim::task::NodeId as SimNode;
use muster_core::agent::driver::{self, Handle};
use muster_core::agent::host::BootTime;
use muster_core::agent::machine::Settings;
use muster_core::agent::operator::{Reply, Request};
use muster_core::ids::{NodeId, Time, VClusterId};
use muster_core::journal::entry::{Author, Principal, Role};
use muster_core::service::{Kind, OneNode, Operation, allow_author};
use muster_core::storage::StorageError;
use muster_storage::agent::{AgentOptions, AgentStore};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::{NodeClock, WatchedStore};

/// The vCluster that every node with an agent is in.
pub const VCLUSTER: &str = "edge";

/// A file of the spool is followed by another after so many bytes: small, so that a short story meets it.
const SPOOL_FILE_BYTES: u64 = 4_096;

/// Where in its work an agent's process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AgentPoint {
    /// Before a save is handed to the disk.
    BeforeSave,
    /// When a save is durable, before the machine knows.
    AfterSave,
    /// Before anything is asked of the host.
    BeforeHostWork,
    /// When the host has done it, before the machine knows.
    AfterHostWork,
    /// Before a write is sent to the journal.
    BeforeWrite,
    /// When the journal has answered, before the machine knows.
    AfterWrite,
    /// When the node's boot was read.
    Booted,
    /// At any disk operation that changes something.
    AnyWrite,
}

impl AgentPoint {
    /// Every point with its word.
    pub const ALL: [(&'static str, Self); 8] = [
        ("before-save", Self::BeforeSave),
        ("after-save", Self::AfterSave),
        ("before-host-work", Self::BeforeHostWork),
        ("after-host-work", Self::AfterHostWork),
        ("before-write", Self::BeforeWrite),
        ("after-write", Self::AfterWrite),
        ("booted", Self::Booted),
        ("any-write", Self::AnyWrite),
    ];

    /// The word used in scenarios.
    #[must_use]
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, point)| *point == self).map_or("", |(word, _)| word)
    }
}

/// One process of an agent: whether it lives.
#[derive(Debug)]
pub struct AgentLife {
    /// Whose.
    pub agent: AgentId,
    /// Which.
    pub run: Run,
    dead: AtomicBool,
}

impl AgentLife {
    /// Whether the process was killed, or ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }
}

struct Trap {
    owner: Arc<str>,
    point: AgentPoint,
    left: u64,
    ending: Ending,
}

/// A node.
struct Node {
    sim: SimNode,
    name: NodeId,
    store: Arc<Store>,
    hardware: Arc<Hardware>,
    oscillator: Oscillator,
    freedom: Arc<Freedom>,
    life: Arc<AgentLife>,
    handle: Option<Handle>,
    held_down: BTreeSet<Arc<str>>,
    trap: Option<Trap>,
    asked: u64,
}

/// Every node of a story.
#[derive(Default)]
pub struct Fleet {
    nodes: Mutex<BTreeMap<AgentId, Node>>,
    /// Nobody asks anything new.
    pub(crate) quiet: AtomicBool,
    /// Requests, acts and rollouts under way.
    pub(crate) busy: AtomicU64,
}

impl Fleet {
    fn nodes(&self) -> MutexGuard<'_, BTreeMap<AgentId, Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every agent's number.
    #[must_use]
    pub fn agents(&self) -> Vec<AgentId> {
        self.nodes().keys().copied().collect()
    }

    /// A node's machine.
    #[must_use]
    pub fn hardware(&self, agent: AgentId) -> Option<Arc<Hardware>> {
        self.nodes().get(&agent).map(|node| node.hardware.clone())
    }

    /// The newest process' handle, while it serves.
    #[must_use]
    pub fn handle(&self, agent: AgentId) -> Option<Handle> {
        self.nodes().get(&agent).filter(|node| !node.life.is_over()).and_then(|node| node.handle.clone())
    }

    /// Takes everything apart.
    pub(crate) fn close(&self) {
        let nodes = std::mem::take(&mut *self.nodes());
        drop(nodes);
    }
}

/// The name of an agent's node.
#[must_use]
pub fn name(agent: AgentId) -> NodeId {
    NodeId::new(&format!("a{agent}")).expect("a good name")
}

/// The vCluster's id.
pub(crate) fn vcluster() -> VClusterId {
    VClusterId::new(VCLUSTER).expect("a good name")
}

/// Something happened to a node.
pub(crate) fn tell(world: &World, agent: AgentId, what: AgentEvent) {
    let booted = world.fleet.hardware(agent).map_or(Time(0), |hardware| hardware.booted_at());
    let boot = BootTime(world.now().0.saturating_sub(booted.0));
    world.emit(&Event::Agent { agent, boot, what: Arc::new(what) });
}

/// A process comes to a point; it may be its last.
pub(crate) async fn pass(world: &Arc<World>, life: &AgentLife, point: AgentPoint) {
    if !life.is_over()
        && let Some(ending) = springs(world, life.agent, point)
    {
        kill(world, life.agent, &ending);
    }
    if life.is_over() {
        std::future::pending::<()>().await;
    }
}

fn springs(world: &World, agent: AgentId, point: AgentPoint) -> Option<Ending> {
    let sprung = {
        let mut nodes = world.fleet.nodes();
        let node = nodes.get_mut(&agent)?;
        let trap = node.trap.as_mut().filter(|trap| trap.point == point)?;
        trap.left -= 1;
        if trap.left > 0 {
            return None;
        }
        node.trap.take()?
    };
    world.note_reached_point(&sprung.owner);
    Some(sprung.ending)
}

/// Adds the nodes that a story wants. Nothing runs on them yet.
pub(crate) fn add(world: &Arc<World>, count: AgentId) {
    for agent in 1..=count {
        let which = u64::from(agent);
        let sim = world.runtime.create_node().name(format!("a{agent}")).build().id();
        let node = Node {
            sim,
            name: name(agent),
            store: Arc::new(Store::new(world.draw("agent-disk", which))),
            hardware: Arc::new(Hardware::new(world.draw("hardware", which), world.now())),
            oscillator: Oscillator::new(world.agenda.clone()),
            freedom: Arc::new(Freedom::new(world.draw("agent-freedom", which))),
            life: Arc::new(AgentLife { agent, run: 0, dead: AtomicBool::new(true) }),
            handle: None,
            held_down: BTreeSet::new(),
            trap: None,
            asked: 0,
        };
        world.fleet.nodes().insert(agent, node);
    }
}

struct Birth {
    life: Arc<AgentLife>,
    store: Arc<Store>,
    hardware: Arc<Hardware>,
    clock: NodeClock,
    node: NodeId,
    sim: SimNode,
}

fn begin_life(world: &World, agent: AgentId) -> Option<Birth> {
    let mut nodes = world.fleet.nodes();
    let node = nodes.get_mut(&agent)?;
    if !node.life.is_over() || !node.held_down.is_empty() {
        return None;
    }
    let life = Arc::new(AgentLife { agent, run: node.life.run + 1, dead: AtomicBool::new(false) });
    node.life = life.clone();
    let clock = NodeClock {
        agenda: world.agenda.clone(),
        booted_at: node.hardware.booted_at(),
        wall: node.oscillator.wall(node.freedom.clone()),
    };
    let (store, hardware) = (node.store.clone(), node.hardware.clone());
    Some(Birth { life, store, hardware, clock, node: node.name.clone(), sim: node.sim })
}

/// Starts an agent's process, unless one runs or a fault holds it down.
pub(crate) fn start(world: &Arc<World>, agent: AgentId) {
    let Some(birth) = begin_life(world, agent) else { return };
    if world.runtime.is_exit(birth.sim) {
        world.runtime.restart(birth.sim);
    }
    let Some(sim) = world.runtime.get_node(birth.sim) else { return };
    let world = world.clone();
    drop(sim.spawn(async move {
        let outcome = madsim::task::spawn_local(process(world.clone(), birth)).await;
        let why = match outcome {
            Ok(Ok(())) => Ending::Ended,
            Ok(Err(error)) => Ending::Fault(error.to_string()),
            Err(_) => return,
        };
        let again = world.clone();
        world.agenda.after(RESTART_NANOS, move || start(&again, agent));
        kill(&world, agent, &why);
    }));
}

/// In whose name an agent writes what nobody asked for.
pub(crate) fn own_author(node: &NodeId) -> Author {
    let name = format!("agent@{node}").as_str().into();
    Author { principal: Principal::Claimed { name }, role: Role::Agent(node.clone()) }
}

async fn process(world: Arc<World>, birth: Birth) -> Result<(), StorageError> {
    let Birth { life, store, hardware, clock, node, .. } = birth;
    let agent = life.agent;
    let disk = SimDisk::of_agent(world.clone(), store, life.clone());
    let options = AgentOptions { spool_file_bytes: SPOOL_FILE_BYTES };
    let (store, stored) = AgentStore::open(disk, Path::new(ROOT), options).await?;
    let start = AgentEvent::Start {
        run: life.run,
        boot: hardware.boot_id(),
        node: node.clone(),
        ledger: stored.ledger.clone().map(Arc::new),
        spool: stored.events.clone().into(),
    };
    tell(&world, agent, start);
    let mut host = SimHost::new(world.clone(), life.clone(), hardware);
    let story = world.scenario.agents.as_ref().expect("there is an agent");
    let settings = Settings {
        node: node.clone(),
        author: own_author(&node),
        seed: world.draw("agent", u64::from(agent) << 32 | life.run).wide(),
        conflict_grace_seconds: story.grace / crate::scenario::SECOND,
    };
    let assembly = driver::assemble(settings, stored, &mut host, &clock).await;
    if let Some(node) = world.fleet.nodes().get_mut(&agent) {
        node.handle = Some(assembly.handle.clone());
    }
    let store = WatchedStore { part: store, world: world.clone(), life: life.clone() };
    let link = SimLink::new(world, life);
    drop(madsim::task::spawn_local(driver::run_host(host, assembly.host)));
    drop(madsim::task::spawn_local(driver::run_store(store, assembly.store)));
    let journal = driver::run_journal(node, "".into(), link, clock.clone(), assembly.journal);
    drop(madsim::task::spawn_local(journal));
    assembly.driver.run(clock).await
}

/// Ends an agent's process; a machine that loses power boots with it.
pub(crate) fn kill(world: &World, agent: AgentId, why: &Ending) {
    let (sim, life, store) = {
        let mut nodes = world.fleet.nodes();
        let Some(node) = nodes.get_mut(&agent) else { return };
        node.handle = None;
        (node.sim, node.life.clone(), node.store.clone())
    };
    if !life.dead.swap(true, Ordering::Relaxed) {
        world.runtime.kill(sim);
        store.abandon();
        tell(world, agent, AgentEvent::Stop { run: life.run, why: why.clone() });
    }
    if *why == Ending::PowerLost {
        store.lose_power();
        reboot(world, agent);
    }
}

/// The machine boots anew. Its agent must not run.
pub(crate) fn reboot(world: &World, agent: AgentId) {
    let Some(hardware) = world.fleet.hardware(agent) else { return };
    hardware.reboot(world.now());
    tell(world, agent, AgentEvent::Reboot { boot: hardware.boot_id() });
}

/// Which row of the door's table a request is.
const fn kind(request: &Request) -> Kind {
    match request {
        Request::Show => Kind::LookAtNode,
        Request::Set { .. } => Kind::SetOnNode,
        Request::Commit { .. } => Kind::CommitOnNode,
        Request::Rollback { .. } => Kind::RollBackOnNode,
        Request::Extend { .. } => Kind::ExtendWindow,
        Request::EmergencyStart { .. } | Request::EmergencyEnd { .. } => Kind::EmergencyOnNode,
        Request::Exec { .. } => Kind::Exec,
        Request::ShellStart | Request::ShellEnd { .. } => Kind::Shell,
    }
}

/// Asks an agent as a person does: through its door. None if it is not there, goes away, or the author may not.
pub(crate) async fn ask(world: &Arc<World>, agent: AgentId, author: &Author, request: &Request) -> Option<Reply> {
    let is_told = !matches!(request, Request::Show);
    let latency = world.wire().reach();
    world.agenda.sleep(latency).await;
    let (handle, node, number) = {
        let mut nodes = world.fleet.nodes();
        let node = nodes.get_mut(&agent)?;
        let handle = node.handle.clone().filter(|_| !node.life.is_over())?;
        node.asked += 1;
        (handle, node.name.clone(), node.asked)
    };
    let fleet = OneNode { node: node.clone(), vcluster: handle.published().report.vcluster.clone() };
    allow_author(author, &Operation::on_node(kind(request), node), &fleet).ok()?;
    if is_told {
        let (author, request) = (author.clone(), Arc::new(request.clone()));
        tell(world, agent, AgentEvent::Asked { number, author, request });
    }
    let reply = handle.ask(author.clone(), request.clone()).await;
    if is_told {
        tell(world, agent, AgentEvent::Told { number, reply: reply.clone().map(Arc::new) });
    }
    let latency = world.wire().reach();
    world.agenda.sleep(latency).await;
    reply
}
