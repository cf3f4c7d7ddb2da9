//! What everybody in a run shares: the agenda, the machines, the wire, the record of what happened and who judges it.
//!
//! Invariants
//! - every lock is held for a moment and never across a call that could come back here;
//! - an event is hashed, noted in [`Facts`] and judged in the order in which it is emitted;
//! - the first violation counts; the run ends after it.

use crate::agenda::Agenda;
use crate::agents::Fleet;
use crate::agents::event::AgentId;
use crate::agents::known::AgentFacts;
use crate::amnesia::Amnesia;
use crate::clock::{Oscillator, SimClock};
use crate::committed::Committed;
use crate::disk::{SimDisk, Store};
use crate::draw::Draw;
use crate::event::{Ending, Event, Fingerprint, Hash, Run};
use crate::freedom::Freedom;
use crate::network::Wire;
use crate::oracles::{Oracles, Violation};
use crate::scenario::{Back, Scenario};
use crate::storm::StormFacts;
use madsim::runtime::Handle as Runtime;
use madsim::task::NodeId;
use muster_core::admission::{BootAdmission, BootLimits};
use muster_core::front::{Handle, View};
use muster_core::ids::{GroupId, Index, ReplicaId, Term, Time};
use muster_core::log::{Configuration, HardState, LogRecord};
use muster_core::members::Member;
use muster_core::replica::Limits;
use muster_core::state::State;
use muster_core::storage::Identity;
use muster_storage::FileLibrary;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A log as far as terms go.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// The position before the first entry.
    pub start: (Index, Term),
    /// The entries' terms.
    pub terms: Vec<Term>,
}

impl Terms {
    /// The last position.
    #[must_use]
    pub fn last(&self) -> Index {
        Index(self.start.0.0 + self.terms.len() as u64)
    }

    /// The term at a position, if it is here.
    #[must_use]
    pub fn at(&self, index: Index) -> Option<Term> {
        if index == self.start.0 {
            return Some(self.start.1);
        }
        let place = index.0.checked_sub(self.start.0.0 + 1)?;
        self.terms.get(usize::try_from(place).ok()?).copied()
    }

    pub(crate) fn take(&mut self, records: &[LogRecord]) {
        for record in records {
            match record {
                LogRecord::HardState(_) => {}
                LogRecord::Reset { index, term } => {
                    self.start = (*index, *term);
                    self.terms.clear();
                }
                LogRecord::Entries(entries) => {
                    for entry in entries {
                        let keep = entry.index.0.saturating_sub(self.start.0.0 + 1);
                        self.terms.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
                        self.terms.push(entry.term);
                    }
                }
            }
        }
    }
}

/// What is known of one replica.
#[derive(Clone, Debug, Default)]
pub struct ReplicaFacts {
    /// Its newest process.
    pub run: Run,
    /// Whether that is up.
    pub up: bool,
    /// What it last published.
    pub view: Option<Arc<View>>,
    /// The log it handed out to be written.
    pub log: Terms,
    /// The log that is durable for sure.
    pub durable: Terms,
    /// The newest hard state that is durable for sure.
    pub hard_state: HardState,
    /// A storage fault stopped it.
    pub fault: Option<String>,
}

/// What is known of the run so far. Made from events alone; oracles look at it.
#[derive(Debug, Default)]
pub struct Facts {
    /// Now.
    pub now: Time,
    /// How many events happened.
    pub step: u64,
    /// The part of the run.
    pub phase: &'static str,
    /// Every replica that ever started.
    pub replicas: BTreeMap<ReplicaId, ReplicaFacts>,
    /// The faults that are on, with what they do.
    pub faults: BTreeMap<Arc<str>, String>,
    /// Every fault there was so far.
    pub past_faults: BTreeSet<Arc<str>>,
    /// Replicas whose disk was made to forget or to fail, by the fault's words: they may stop by themselves.
    pub disk_faults: BTreeMap<ReplicaId, String>,
    /// Those of them whose disk lost for good something that it was told to keep.
    pub forgot: BTreeSet<ReplicaId>,
    /// Those that may not know it: what they promised before says nothing about them.
    pub forgets: BTreeSet<ReplicaId>,
    /// Replicas that started on a file of a newer version.
    pub downgraded: BTreeSet<ReplicaId>,
    /// Faults whose crash came to its point.
    pub reached_points: BTreeSet<Arc<str>>,
    /// Places reached.
    pub marks: BTreeSet<&'static str>,
    /// What replicas are told to hold.
    pub limits: Limits,
    /// The committed log.
    pub committed: Committed,
    /// The configuration at the newest position that anybody published, and that position. Whoever published it may have forgotten.
    pub configuration: (Index, Configuration),
    /// Nodes with agents.
    pub agents: BTreeMap<AgentId, AgentFacts>,
    /// The boot storm, if there is one.
    pub storm: Option<StormFacts>,
}

impl Facts {
    fn take(&mut self, event: &Event) {
        self.committed.fresh.clear();
        if let Some(storm) = &mut self.storm {
            storm.take(self.now, event);
        }
        match event {
            Event::Phase(name) => self.phase = name,
            Event::Start { replica, run, hard_state, log_start, terms, .. } => {
                let facts = self.replicas.entry(*replica).or_default();
                let log = Terms { start: *log_start, terms: terms.to_vec() };
                *facts = ReplicaFacts {
                    run: *run,
                    up: true,
                    view: None,
                    durable: log.clone(),
                    log,
                    hard_state: *hard_state,
                    fault: None,
                };
            }
            Event::Stop { replica, why, .. } => {
                if let Some(facts) = self.replicas.get_mut(replica) {
                    facts.up = false;
                    if let Ending::Fault(problem) = why {
                        facts.fault = Some(problem.clone());
                    }
                }
            }
            Event::Append { replica, records, .. } => {
                if let Some(facts) = self.replicas.get_mut(replica) {
                    facts.log.take(records);
                }
                self.committed.offer(records);
            }
            Event::Durable { replica, records, .. } => {
                if let Some(facts) = self.replicas.get_mut(replica) {
                    facts.durable.take(records);
                    for record in records.iter() {
                        if let LogRecord::HardState(state) = record {
                            facts.hard_state = *state;
                        }
                    }
                }
            }
            Event::View { replica, view, .. } => {
                if let Some(facts) = self.replicas.get_mut(replica) {
                    facts.view = Some(view.clone());
                }
                if view.status.applied >= self.configuration.0 {
                    self.configuration = (view.status.applied, view.status.configuration.clone());
                }
                self.committed.follow(&self.replicas);
            }
            Event::Fault { id, begins, what } => {
                if *begins {
                    self.past_faults.insert(id.clone());
                    self.faults.insert(id.clone(), what.clone());
                } else {
                    self.faults.remove(id);
                }
            }
            Event::Mark(name) => {
                self.marks.insert(name);
            }
            Event::Agent { agent, boot, what } => {
                self.agents.entry(*agent).or_default().take(self.now, self.step, *boot, what);
            }
            Event::Send { .. }
            | Event::Deliver { .. }
            | Event::Drop { .. }
            | Event::Forged { .. }
            | Event::Records { .. }
            | Event::Snapshot { .. }
            | Event::Disk { .. }
            | Event::Operation { .. }
            | Event::Call { .. }
            | Event::Answer { .. }
            | Event::Kept { .. }
            | Event::Inspected { .. }
            | Event::Log { .. } => {}
        }
    }

    /// The newest configuration that anybody published, by applied position.
    #[must_use]
    pub fn newest_view(&self) -> Option<&Arc<View>> {
        self.replicas.values().filter_map(|facts| facts.view.as_ref()).max_by_key(|view| view.status.applied)
    }

    /// Whether some replica published that the entry of a term at a position is committed.
    #[must_use]
    pub fn was_committed(&self, index: Index, term: Term) -> bool {
        self.committed.term(index) == Some(term)
    }
}

/// A violation with its place.
#[derive(Clone, Debug)]
pub struct Found {
    /// The property, in words.
    pub oracle: &'static str,
    /// Where the property comes from.
    pub source: &'static str,
    /// What was expected and seen.
    pub violation: Violation,
    /// The event's number.
    pub step: u64,
    /// When.
    pub time: Time,
}

/// Takes every event's printed line.
pub type Trace = Box<dyn FnMut(u64, Time, &Event) + Send>;

struct Record {
    hash: Hash,
    facts: Facts,
    oracles: Oracles,
    found: Option<Found>,
    /// Why the run ended without a judgement.
    excused: Option<String>,
    amnesia: Amnesia,
    trace: Option<Trace>,
}

impl Record {
    fn new(facts: Facts, trace: Option<Trace>) -> Self {
        let (hash, amnesia) = (Hash::new(), Amnesia::default());
        Self { hash, facts, oracles: Oracles::new(), found: None, excused: None, amnesia, trace }
    }
}

/// One process of a replica: whether it lives. Devices of a dead one do nothing.
#[derive(Debug)]
pub struct Life {
    /// Whose.
    pub replica: ReplicaId,
    /// Which.
    pub run: Run,
    dead: AtomicBool,
}

impl Life {
    /// Whether the process was killed, or ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }
}

/// A machine that carries a replica.
pub struct Machine {
    /// The executor's node.
    pub node: NodeId,
    /// Who lives there.
    pub identity: Identity,
    /// Where clients reach it.
    pub address: Arc<str>,
    /// Its disk.
    pub store: Arc<Store>,
    /// Its clock.
    pub oscillator: Oscillator,
    /// How its devices use the driver's contract.
    pub freedom: Arc<Freedom>,
    /// As whom it starts on an empty disk, if it was wiped.
    pub back: Option<Back>,
    /// The newest process.
    pub life: Arc<Life>,
    /// The newest process' front, while it serves.
    pub handle: Option<Handle>,
    /// Which boots the newest process serves.
    pub admission: Arc<Mutex<BootAdmission>>,
    /// What it kept, readable while it serves.
    pub library: Option<FileLibrary<SimDisk>>,
    /// The member of a new cluster that its directory is made with; none for a replica that joins one.
    pub first: Option<Member>,
    /// Whether its directory was ever complete.
    pub is_made: bool,
    /// Whether nothing starts it before this fault is healed.
    pub held_down: BTreeSet<Arc<str>>,
}

/// What a new process is given.
pub(crate) struct Birth {
    pub(crate) life: Arc<Life>,
    pub(crate) disk: SimDisk,
    pub(crate) clock: SimClock,
    pub(crate) freedom: Arc<Freedom>,
    pub(crate) node: NodeId,
}

/// Everything in a run.
pub struct World {
    /// The run's seed.
    pub seed: u64,
    /// The story, every fault written out.
    pub scenario: Scenario,
    /// What happens when.
    pub agenda: Agenda,
    /// The executor.
    pub runtime: Runtime,
    /// The node of the world itself: clients, operators, observers. Killed when the run is over.
    pub here: NodeId,
    /// When the story began: scenario times count from here.
    pub began: Mutex<Time>,
    /// Every machine.
    machines: Mutex<BTreeMap<ReplicaId, Machine>>,
    /// Nodes with agents.
    pub(crate) fleet: Fleet,
    /// Links and cuts.
    pub(crate) wire: Mutex<Wire>,
    record: Mutex<Record>,
    over: AtomicBool,
    /// The other group on the same hosts, if there is one.
    beside: Mutex<Option<Arc<World>>>,
    group: GroupId,
}

impl World {
    /// An empty world on the current runtime.
    ///
    /// # Panics
    /// Outside of a runtime.
    #[must_use]
    pub fn new(seed: u64, scenario: Scenario, trace: Option<Trace>) -> Arc<Self> {
        let storm = scenario.storm.map(StormFacts::new);
        let facts = Facts { limits: scenario.cluster.limits, storm, ..Facts::default() };
        let record = Record::new(facts, trace);
        Arc::new(Self {
            seed,
            scenario,
            agenda: Agenda::new(),
            runtime: Runtime::current(),
            here: Runtime::current().create_node().name("world").build().id(),
            began: Mutex::new(Time(0)),
            machines: Mutex::new(BTreeMap::new()),
            fleet: Fleet::default(),
            wire: Mutex::new(Wire::new(seed)),
            record: Mutex::new(record),
            over: AtomicBool::new(false),
            beside: Mutex::new(None),
            group: GroupId(1),
        })
    }

    /// A world of its own on the hosts of this one: hosts and links have twice as much to do, and nothing else is shared.
    #[must_use]
    pub fn neighbour(self: &Arc<Self>, seed: u64, scenario: Scenario) -> Arc<Self> {
        let facts = Facts { limits: scenario.cluster.limits, ..Facts::default() };
        let neighbour = Arc::new(Self {
            seed,
            scenario,
            agenda: self.agenda.clone(),
            runtime: self.runtime.clone(),
            here: self.runtime.create_node().name("neighbour").build().id(),
            began: Mutex::new(Time(0)),
            machines: Mutex::new(BTreeMap::new()),
            fleet: Fleet::default(),
            wire: Mutex::new(Wire::new(seed)),
            record: Mutex::new(Record::new(facts, None)),
            over: AtomicBool::new(false),
            beside: Mutex::new(Some(self.clone())),
            group: GroupId(2),
        });
        *self.beside.lock().expect("nobody panics holding it") = Some(neighbour.clone());
        neighbour
    }

    /// The other group on the same hosts.
    pub(crate) fn beside(&self) -> Option<Arc<Self>> {
        self.beside.lock().expect("nobody panics holding it").clone()
    }

    /// The group that lives here.
    pub(crate) const fn group(&self) -> GroupId {
        self.group
    }

    /// Simulated time.
    #[must_use]
    pub fn now(&self) -> Time {
        self.agenda.now()
    }

    /// The draws for one purpose.
    #[must_use]
    pub fn draw(&self, purpose: &str, which: u64) -> Draw {
        Draw::of(self.seed, purpose, which)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machines. Held for a moment only.
    pub(crate) fn machines(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, Machine>> {
        self.machines.lock().expect("nobody panics holding it")
    }

    /// The links. Held for a moment only.
    pub(crate) fn wire(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().expect("nobody panics holding it")
    }

    /// Something happened.
    pub fn emit(&self, event: &Event) {
        if self.is_over() {
            return;
        }
        let now = self.now();
        let mut record = self.record();
        let record = &mut *record;
        record.hash.take(now, event);
        record.facts.now = now;
        record.facts.step = record.hash.events;
        if let Some(trace) = &mut record.trace {
            trace(record.facts.step, now, event);
        }
        record.facts.take(event);
        if let Some(why) = record.amnesia.look(&record.facts, event) {
            record.excused = Some(why);
            self.over.store(true, Ordering::Relaxed);
            return;
        }
        if let Err((oracle, source, violation)) = record.oracles.on_event(&record.facts, event) {
            self.over.store(true, Ordering::Relaxed);
            record.found = Some(Found { oracle, source, violation, step: record.facts.step, time: now });
        }
    }

    /// Takes over what was found in the other group: the run is one.
    pub(crate) fn adopt(&self, other: &Self) {
        let Some(found) = other.found() else { return };
        let mut record = self.record();
        let step = record.hash.events;
        let saw = format!("in the second group (its step {}): {}", found.step, found.violation.saw);
        let violation = Violation { saw, ..found.violation };
        record.found.get_or_insert(Found { violation, step, ..found });
        self.over.store(true, Ordering::Relaxed);
    }

    /// A property that the runner itself judges does not hold.
    pub fn fail(&self, oracle: &'static str, source: &'static str, violation: Violation) {
        if self.is_over() {
            return;
        }
        let now = self.now();
        let mut record = self.record();
        record.found = Some(Found { oracle, source, violation, step: record.hash.events, time: now });
        self.over.store(true, Ordering::Relaxed);
    }

    /// As [`World::fail`], after the oracles have judged the whole run.
    pub(crate) fn judge(&self, oracle: &'static str, source: &'static str, violation: Violation) {
        let mut record = self.record();
        let (step, time) = (record.hash.events, record.facts.now);
        record.found.get_or_insert(Found { oracle, source, violation, step, time });
    }

    /// Runs something that belongs to no replica.
    pub fn spawn(&self, what: impl Future<Output = ()> + Send + 'static) {
        if let Some(here) = self.runtime.get_node(self.here) {
            drop(here.spawn(what));
        }
    }

    /// Takes everything apart, so that nothing holds on to the world. The executor drops what was killed when it runs next.
    pub(crate) fn close(&self) {
        self.runtime.kill(self.here);
        self.over.store(true, Ordering::Relaxed);
        for id in self.replicas() {
            self.kill(id, Ending::Killed);
        }
        self.agenda.clear();
        self.close_fleet();
        let machines = std::mem::take(&mut *self.machines());
        drop(machines);
        let beside = self.beside.lock().expect("nobody panics holding it").take();
        drop(beside);
    }

    fn close_fleet(&self) {
        for agent in self.fleet.agents() {
            crate::agents::kill(self, agent, &Ending::Killed);
        }
        self.fleet.close();
    }

    /// Lets the oracles judge the run as a whole.
    pub fn end(&self) {
        if self.is_over() {
            return;
        }
        let mut record = self.record();
        let record = &mut *record;
        if let Err((oracle, source, violation)) = record.oracles.at_end(&record.facts) {
            record.found = Some(Found { oracle, source, violation, step: record.facts.step, time: record.facts.now });
        }
        self.over.store(true, Ordering::Relaxed);
    }

    /// Whether nothing counts any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// The first violation.
    #[must_use]
    pub fn found(&self) -> Option<Found> {
        self.record().found.clone()
    }

    /// Hash and length of everything so far.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.record().hash.fingerprint()
    }

    /// Looks at what is known.
    pub fn facts<T>(&self, look: impl FnOnce(&Facts) -> T) -> T {
        look(&self.record().facts)
    }

    /// Why nothing more was demanded of the run.
    #[must_use]
    pub fn excused(&self) -> Option<String> {
        self.record().excused.clone()
    }

    /// Notes that a replica's disk was made to fail, and may stop it.
    pub fn note_disk_fault(&self, replica: ReplicaId, words: &str) {
        self.record().facts.disk_faults.insert(replica, words.to_owned());
    }

    /// Notes that a replica's disk lost something for good.
    pub fn note_loss(&self, replica: ReplicaId, words: &str) {
        let mut record = self.record();
        record.facts.disk_faults.insert(replica, words.to_owned());
        record.facts.forgot.insert(replica);
    }

    /// Notes that a replica's disk loses what it promised with, and that it may not find out.
    pub fn note_forgets(&self, replica: ReplicaId, words: &str) {
        self.note_loss(replica, words);
        let mut record = self.record();
        record.facts.forgets.insert(replica);
        // What a newer version wrote is gone with the rest.
        record.facts.downgraded.remove(&replica);
    }

    /// Notes that a replica is about to forget what it promised, without knowing that it did.
    pub fn note_amnesia(&self, replica: ReplicaId, words: &str) {
        self.note_forgets(replica, words);
        let line = {
            let mut record = self.record();
            let record = &mut *record;
            record.amnesia.forget(&record.facts, replica)
        };
        self.emit(&Event::Log { error: false, line: line.into() });
    }

    /// Notes that a crash came to its point.
    pub fn note_reached_point(&self, fault: &Arc<str>) {
        self.record().facts.reached_points.insert(fault.clone());
    }

    /// Notes that a replica starts on a file of a newer version, or does not any more.
    pub fn note_downgrade(&self, replica: ReplicaId, on: bool) {
        let mut record = self.record();
        let facts = &mut record.facts;
        if on {
            facts.downgraded.insert(replica);
        } else {
            facts.downgraded.remove(&replica);
        }
    }

    /// The cluster begins with this state.
    pub(crate) fn note_first_state(&self, state: State) {
        self.record().facts.committed.begin(state);
    }

    /// How many states of the committed log are kept.
    pub(crate) fn keep_states(&self, most: usize) {
        self.record().facts.committed.keep_states(most);
    }

    /// A place in the code was reached.
    pub fn mark(&self, name: &'static str) {
        let new = self.facts(|facts| !facts.marks.contains(name));
        if new {
            self.emit(&Event::Mark(name));
        }
    }

    /// Adds a machine with an empty disk; nothing runs there yet.
    pub fn add_machine(&self, identity: Identity, address: Arc<str>) {
        let id = identity.replica;
        let node = self.runtime.create_node().name(format!("r{id}")).build().id();
        let life = Arc::new(Life { replica: id, run: 0, dead: AtomicBool::new(true) });
        let machine = Machine {
            node,
            identity,
            address,
            store: Arc::new(Store::new(self.draw("disk", id.0))),
            oscillator: Oscillator::new(self.agenda.clone()),
            freedom: Arc::new(Freedom::new(self.draw("freedom", id.0))),
            back: None,
            life,
            handle: None,
            admission: self.admission(id, 0),
            library: None,
            first: None,
            is_made: false,
            held_down: BTreeSet::new(),
        };
        self.machines().insert(id, machine);
    }

    /// A new process serves nobody yet.
    pub(crate) fn admission(&self, id: ReplicaId, run: Run) -> Arc<Mutex<BootAdmission>> {
        let storm = self.scenario.storm.as_ref();
        let limits = BootLimits::default();
        let limits = BootLimits { streams_max: storm.map_or(limits.streams_max, |storm| storm.streams), ..limits };
        let seed = self.draw("admission", id.0 << 32 | run).number();
        Arc::new(Mutex::new(BootAdmission::new(limits, seed)))
    }

    /// Every machine's replica.
    #[must_use]
    pub fn replicas(&self) -> Vec<ReplicaId> {
        self.machines().keys().copied().collect()
    }

    /// Whether the disk of a replica's directory has something to do.
    pub(crate) fn is_disk_busy(&self, id: ReplicaId) -> bool {
        self.machines().get(&id).is_some_and(|machine| machine.store.is_busy())
    }

    /// Whether a replica's process runs.
    #[must_use]
    pub fn is_up(&self, id: ReplicaId) -> bool {
        self.machines().get(&id).is_some_and(|machine| !machine.life.is_over())
    }

    /// The front of a replica that serves, and its process.
    #[must_use]
    pub fn front(&self, id: ReplicaId) -> Option<(Handle, Arc<Life>)> {
        let machines = self.machines();
        let machine = machines.get(&id)?;
        machine.handle.clone().filter(|_| !machine.life.is_over()).map(|handle| (handle, machine.life.clone()))
    }

    /// Who leads in the highest term, by what the replicas that run say.
    #[must_use]
    pub fn leader(&self) -> Option<ReplicaId> {
        let machines = self.machines();
        let leads = |machine: &Machine| {
            let view = machine.handle.as_ref()?.view();
            (view.status.role == muster_core::request::RaftRole::Leader)
                .then_some((view.status.term, view.status.replica))
        };
        machines.values().filter(|machine| !machine.life.is_over()).filter_map(leads).max().map(|(_, id)| id)
    }

    /// Begins a new process on a machine: gives its life. The one before must be over.
    pub(crate) fn begin_life(self: &Arc<Self>, id: ReplicaId) -> Option<Birth> {
        let mut machines = self.machines();
        let machine = machines.get_mut(&id)?;
        if !machine.life.is_over() || !machine.held_down.is_empty() {
            return None;
        }
        let life = Arc::new(Life { replica: id, run: machine.life.run + 1, dead: AtomicBool::new(false) });
        machine.life = life.clone();
        Some(Birth {
            disk: SimDisk::new(self.clone(), machine.store.clone(), life.clone()),
            clock: machine.oscillator.start(machine.freedom.clone()),
            freedom: machine.freedom.clone(),
            node: machine.node,
            life,
        })
    }

    /// The disk of a replica that does not run, for a tool at work on it.
    pub(crate) fn tool(self: &Arc<Self>, id: ReplicaId) -> Option<SimDisk> {
        let (store, run) = self.machines().get(&id).map(|machine| (machine.store.clone(), machine.life.run))?;
        let life = Arc::new(Life { replica: id, run, dead: AtomicBool::new(false) });
        Some(SimDisk::new(self.clone(), store, life))
    }

    /// Ends a process, from outside or from one of its devices.
    pub fn kill(&self, id: ReplicaId, why: Ending) {
        let (node, life, store) = {
            let mut machines = self.machines();
            let Some(machine) = machines.get_mut(&id) else { return };
            machine.handle = None;
            machine.library = None;
            (machine.node, machine.life.clone(), machine.store.clone())
        };
        let was_up = !life.dead.swap(true, Ordering::Relaxed);
        if was_up {
            self.runtime.kill(node);
            store.abandon();
        }
        if why == Ending::PowerLost {
            store.lose_power();
        }
        if was_up || why == Ending::PowerLost {
            self.emit(&Event::Stop { replica: id, run: life.run, why });
        }
    }
}
