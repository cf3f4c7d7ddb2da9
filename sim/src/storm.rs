//! A boot storm: very many nodes boot together, as after a power cut, while things break.
//!
//! The nodes and what they boot into are declared before the story begins, through the log like everything else. Every node is
//! a client that does what `core::client` says: asks, is told to wait, asks elsewhere, waits, asks again. Overlays are shared;
//! what crosses the simulated wire is the number of their bytes.
//!
//! Invariants
//! - a node that waits costs a few hundred bytes and no task;
//! - what is measured here decides nothing; [`crate::oracles`] judge by events.

use crate::client::{Crowd, VCLUSTERS};
use crate::draw::Draw;
use crate::event::{Ask, ClientId, Event, Told};
use crate::network::{self, Boot};
use crate::scenario::{self, MS, SECOND};
use crate::world::World;
use futures_util::future::{Either, join_all, select};
use hdrhistogram::Histogram;
use muster_core::client::{BootAttempts, IN_FLIGHT_MAX, Session, Targets, Turn, again};
use muster_core::ids::{NodeId, OneShotId, ReplicaId, Seq, Time, VClusterId};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::entry::{Author, Change, EntryDraft, EntryType, Principal, Role};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::request::{AdminOutcome, AdminRequest, Command, Outcome, Reply, RequestId, WriteRequest};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The first of the storm's clients.
pub const FIRST_CLIENT: ClientId = 4_000_000;

/// How many states of the committed log are kept: they are large, and every one of them makes the next change copy.
const STATES_MAX: usize = 500;

/// How long a node waits for one replica's answer.
const ANSWER_NANOS: u64 = 10 * SECOND;

/// The size of a declared value.
const VALUE_BYTES: usize = 180;

/// How many of a hundred bytes of such values are left when they are compressed.
const COMPRESSED_PERCENT: u64 = 77;

/// How many keys one entry declares.
const CHANGES: usize = 400;

// ---- what is known of it ----

/// What events tell of a storm.
#[derive(Debug)]
pub struct StormFacts {
    /// What the story wants.
    pub storm: scenario::Storm,
    /// When the first node asked.
    pub began: Option<Time>,
    /// When the last node so far was answered.
    pub ended: Option<Time>,
    arrived: BTreeMap<ClientId, Time>,
    writes: BTreeMap<(ClientId, u64), Time>,
    /// Nodes that booted.
    pub booted: u64,
    /// How long each boot took, in microseconds.
    pub boot_micros: Histogram<u64>,
    /// How long acknowledged commits took before the storm, in microseconds.
    pub before: Histogram<u64>,
    /// And during it: those that were asked while nodes were booting.
    pub during: Histogram<u64>,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(3_600_000_000, 3).expect("three digits of an hour fit")
}

fn micros(from: Time, to: Time) -> u64 {
    (to.0.saturating_sub(from.0) / 1_000).clamp(1, 3_600_000_000)
}

impl StormFacts {
    pub(crate) fn new(storm: scenario::Storm) -> Self {
        Self {
            storm,
            began: None,
            ended: None,
            arrived: BTreeMap::new(),
            writes: BTreeMap::new(),
            booted: 0,
            boot_micros: histogram(),
            before: histogram(),
            during: histogram(),
        }
    }

    /// Whether all nodes booted.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.booted >= self.storm.nodes
    }

    /// When a node of the storm arrived, if it has not booted yet.
    #[must_use]
    pub fn arrived(&self, client: ClientId) -> Option<Time> {
        self.arrived.get(&client).copied()
    }

    /// The node that has been waiting for longest.
    #[must_use]
    pub fn longest(&self) -> Option<(ClientId, Time)> {
        self.arrived.iter().map(|(client, time)| (*client, *time)).min_by_key(|(_, time)| *time)
    }

    pub(crate) fn take(&mut self, now: Time, event: &Event) {
        match event {
            Event::Call { client, ask: Ask::Boot { .. }, .. } if *client >= FIRST_CLIENT => {
                self.began.get_or_insert(now);
                self.arrived.insert(*client, now);
            }
            Event::Answer { client, told: Told::Booted { booted, .. }, .. }
                if *client >= FIRST_CLIENT && booted.plan.is_ok() =>
            {
                if let Some(arrived) = self.arrived.remove(client) {
                    self.booted += 1;
                    self.ended = Some(now);
                    self.boot_micros.saturating_record(micros(arrived, now));
                }
            }
            Event::Call { client, number, ask: Ask::Write { .. } } => {
                self.writes.insert((*client, *number), now);
            }
            Event::Answer { client, number, told: Told::Outcome(outcome) } => {
                let Some(asked) = self.writes.remove(&(*client, *number)) else { return };
                if !matches!(outcome, Outcome::Applied { .. }) {
                    return;
                }
                let during = self.began.is_some_and(|began| asked >= began);
                match (during, self.is_over()) {
                    (false, _) => self.before.saturating_record(micros(asked, now)),
                    (true, false) => self.during.saturating_record(micros(asked, now)),
                    (true, true) => {}
                }
            }
            _ => {}
        }
    }
}

/// What a storm was like.
#[derive(Clone, Debug)]
pub struct StormReport {
    /// How many nodes.
    pub nodes: u64,
    /// How many booted.
    pub booted: u64,
    /// From the first arrival to the last boot, in nanoseconds.
    pub lasted: u64,
    /// Boot times in microseconds: median, 99 of 100, longest.
    pub boot_micros: (u64, u64, u64),
    /// Questions beyond every node's first.
    pub retries: u64,
    /// Times a node was told to come back.
    pub told_later: u64,
    /// Connections that broke or did not come about.
    pub broken: u64,
    /// What each replica sent to nodes.
    pub bytes: BTreeMap<ReplicaId, u64>,
    /// The overlays' sizes, compressed.
    pub overlay_bytes: Vec<u64>,
    /// Commit latency before, in microseconds: median, 9 of 10, longest.
    pub before_micros: (u64, u64, u64),
    /// And during it.
    pub during_micros: (u64, u64, u64),
}

/// What a running storm counts.
#[derive(Default)]
pub struct Tally {
    questions: u64,
    told_later: u64,
    broken: u64,
    overlay_bytes: Vec<u64>,
}

/// A storm that is under way.
#[derive(Clone, Default)]
pub struct Storm(Arc<Mutex<Tally>>);

impl Storm {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it was like; none in a story without one.
    #[must_use]
    pub fn report(&self, world: &World) -> Option<StormReport> {
        let tally = self.tally();
        let bytes = world.wire().boot_bytes();
        world.facts(|facts| {
            let facts = facts.storm.as_ref()?;
            let three =
                |of: &Histogram<u64>, high: f64| (of.value_at_quantile(0.5), of.value_at_quantile(high), of.max());
            let lasted = facts.began.zip(facts.ended).map_or(0, |(began, ended)| ended.0 - began.0);
            Some(StormReport {
                nodes: facts.storm.nodes,
                booted: facts.booted,
                lasted,
                boot_micros: three(&facts.boot_micros, 0.99),
                retries: tally.questions.saturating_sub(facts.storm.nodes),
                told_later: tally.told_later,
                broken: tally.broken,
                bytes,
                overlay_bytes: tally.overlay_bytes.clone(),
                before_micros: three(&facts.before, 0.9),
                during_micros: three(&facts.during, 0.9),
            })
        })
    }

    /// Declares the nodes and what they boot into, while the cluster is one replica; waits until overlays and a snapshot hold it.
    ///
    /// # Errors
    /// In words.
    pub async fn declare(&self, world: &Arc<World>, storm: &scenario::Storm) -> Result<(), String> {
        world.keep_states(STATES_MAX);
        world.wire().boot_bytes_per_second = storm.bytes_per_second;
        let mut writer = Writer::open(world).await?;
        let mut draw = world.draw("storm", 0);
        for name in VCLUSTERS {
            let vcluster = VClusterId::new(name).expect("a good name");
            let policy = muster_core::journal::policy::Policy::default();
            writer.put(JournalCommand::SetPolicy { vcluster: vcluster.clone(), policy });
            let mut left = usize::try_from(storm.overlay_bytes * 100 / COMPRESSED_PERCENT).unwrap_or(0) / VALUE_BYTES;
            let mut number = 0;
            while left > 0 {
                let changes = (0..left.min(CHANGES)).map(|_| {
                    number += 1;
                    let key = Key::new(&format!("files:s{number:05}")).expect("a good key");
                    Change { key, previous: Setting::Unset, next: Setting::Value(text(&mut draw).as_str().into()) }
                });
                let changes: Vec<Change> = changes.collect();
                left -= changes.len();
                writer.put(JournalCommand::AppendEntry(draft(
                    EntryType::Commit,
                    Scope::VCluster(vcluster.clone()),
                    changes,
                )));
            }
            writer.flush().await?;
        }
        for number in 0..storm.nodes {
            let place = usize::try_from(number).unwrap_or(0) % VCLUSTERS.len();
            let next = Setting::Value(VCLUSTERS[place].into());
            let change = Change { key: Key::vcluster(), previous: Setting::Unset, next };
            writer.put(JournalCommand::AppendEntry(draft(
                EntryType::BootConfig,
                Scope::Node(node(number)),
                vec![change],
            )));
            if writer.is_full() {
                writer.flush().await?;
            }
        }
        writer.flush().await?;
        self.wait_for_overlays(world).await?;
        match network::admin(world, ReplicaId(1), AdminRequest::Snapshot).await {
            Ok(AdminOutcome::Snapshot { .. }) => Ok(()),
            other => Err(format!("a snapshot of what was declared: {other:?}")),
        }
    }

    async fn wait_for_overlays(&self, world: &Arc<World>) -> Result<(), String> {
        for _ in 0..1_000 {
            let view = world.front(ReplicaId(1)).map(|(handle, _)| handle.view());
            if let Some(view) = view.filter(|view| view.state.journal.stale_overlays().is_empty()) {
                let sizes = view.state.journal.vclusters().filter_map(|(_, known)| known.overlay.as_ref());
                self.tally().overlay_bytes = sizes.map(|overlay| overlay.data.len() as u64).collect();
                return Ok(());
            }
            world.agenda.sleep(20 * MS).await;
        }
        Err("the vClusters' overlays are not stored".into())
    }

    /// Lets the nodes come.
    pub fn begin(&self, world: &Arc<World>, crowd: &Arc<Crowd>, storm: &scenario::Storm, began: Time) {
        let mut draw = world.draw("arrivals", 0);
        for number in 0..storm.nodes {
            let at = Time(began.0 + storm.at + draw.below(storm.within.max(1)));
            let (me, world, crowd, patience) = (self.clone(), world.clone(), crowd.clone(), storm.patience);
            crowd.busy.fetch_add(1, Ordering::Relaxed);
            world.clone().agenda.at(at, move || Node::arrive(me, world, crowd, number, patience));
        }
    }
}

// ---- what is declared ----

fn node(number: u64) -> NodeId {
    NodeId::new(&format!("s{number:06}")).expect("a good name")
}

/// A value that compresses badly.
fn text(draw: &mut Draw) -> String {
    const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
    let mut text = String::with_capacity(VALUE_BYTES);
    while text.len() < VALUE_BYTES {
        let mut bits = draw.number();
        for _ in 0..10 {
            text.push(char::from(LETTERS[usize::try_from(bits & 63).unwrap_or(0)]));
            bits >>= 6;
        }
    }
    text
}

fn draft(entry_type: EntryType, scope: Scope, changes: Vec<Change>) -> EntryDraft {
    EntryDraft {
        entry_type,
        scope,
        parent: Seq(0),
        based_on: None,
        changes,
        ttl_seconds: None,
        emergency_reason: None,
        message: "declared before the storm".into(),
        occurred_at: None,
    }
}

/// Writes very much, as many at a time as a session allows.
struct Writer {
    world: Arc<World>,
    session: Session,
    commands: Vec<JournalCommand>,
}

fn author() -> Author {
    Author { principal: Principal::Claimed { name: "storm".into() }, role: Role::Admin }
}

impl Writer {
    async fn open(world: &Arc<World>) -> Result<Self, String> {
        let (handle, _) = world.front(ReplicaId(1)).ok_or("the first replica does not serve")?;
        let drawn_at = handle.view().state.age();
        let request = RequestId::OneShot { id: OneShotId(world.draw("storm", 1).wide()), drawn_at };
        let write = WriteRequest { request, author: author(), command: Command::OpenSession };
        match handle.write(write, false).await {
            Outcome::Applied { reply: Reply::Session { session }, .. } => {
                Ok(Self { world: world.clone(), session: Session::new(session), commands: Vec::new() })
            }
            outcome => Err(format!("a session: {outcome:?}")),
        }
    }

    fn put(&mut self, command: JournalCommand) {
        self.commands.push(command);
    }

    fn is_full(&self) -> bool {
        self.commands.len() as u64 >= IN_FLIGHT_MAX - 1
    }

    async fn flush(&mut self) -> Result<(), String> {
        let (handle, _) = self.world.front(ReplicaId(1)).ok_or("the first replica does not serve")?;
        let mut writes = Vec::new();
        let mut numbers = Vec::new();
        for command in self.commands.drain(..) {
            let number = self.session.begin().ok_or("more is in flight than a session allows")?;
            let request = self.session.request(number);
            let write = WriteRequest { request, author: author(), command: Command::Journal(command) };
            let handle = handle.clone();
            writes.push(async move { handle.write(write, false).await });
            numbers.push(number);
        }
        for outcome in join_all(writes).await {
            if !matches!(outcome, Outcome::Applied { .. }) {
                return Err(format!("a declaration: {outcome:?}"));
            }
        }
        for number in numbers {
            self.session.end(number);
        }
        Ok(())
    }
}

// ---- a node ----

struct Node {
    storm: Storm,
    world: Arc<World>,
    crowd: Arc<Crowd>,
    number: u64,
    id: ClientId,
    targets: Targets,
    attempts: BootAttempts,
    deadline: Time,
}

impl Node {
    fn arrive(storm: Storm, world: Arc<World>, crowd: Arc<Crowd>, number: u64, patience: u64) {
        let id = FIRST_CLIENT + u32::try_from(number).unwrap_or(0);
        let mut draw = world.draw("node", number);
        let mut addresses: Vec<Arc<str>> = world.machines().values().map(|machine| machine.address.clone()).collect();
        let turn = draw.place(addresses.len());
        addresses.rotate_left(turn);
        let targets = Targets::new(addresses, draw.number());
        let deadline = Time(world.now().0 + patience);
        crowd.asked.fetch_add(1, Ordering::Relaxed);
        world.emit(&Event::Call { client: id, number: 1, ask: Ask::Boot { node: node(number), at_least: Seq(0) } });
        let attempts = BootAttempts::default();
        Self { storm, world, crowd, number, id, targets, attempts, deadline }.ask();
    }

    /// One question, in a task of its own.
    fn ask(self) {
        if !self.world.is_over() {
            self.world.clone().spawn(self.question());
        }
    }

    async fn question(mut self) {
        self.storm.tally().questions += 1;
        let here = self.targets.current().expect("a node knows somebody").clone();
        let to = self.replica(&here);
        let answer = {
            let call = pin!(network::boot(&self.world, network::End::Clients, to, node(self.number), Seq(0)));
            let late = pin!(self.world.agenda.sleep(ANSWER_NANOS));
            match select(call, late).await {
                Either::Left((answer, _)) => Some(answer),
                Either::Right(_) => None,
            }
        };
        let pause_ms = match answer {
            Some(Ok(Ok(Boot::Told(told)))) => return self.end(told),
            Some(Ok(Ok(Boot::Later { after_ms, elsewhere }))) => {
                self.storm.tally().told_later += 1;
                let (next, after_ms) = self.attempts.on_later(&here, after_ms, &elsewhere);
                self.targets.follow(&next);
                after_ms
            }
            Some(Ok(Err(why))) => match again(&why) {
                Some((Turn::Same | Turn::Leader(_), after_ms)) => after_ms,
                Some((Turn::Next, after_ms)) => after_ms + self.targets.failed(&here),
                None => return self.end(Told::Nothing(format!("{why:?}"))),
            },
            Some(Err(_)) | None => {
                self.storm.tally().broken += 1;
                self.targets.failed(&here)
            }
        };
        if self.world.now().plus_ms(pause_ms) >= self.deadline {
            return self.end(Told::Nothing("no boot in time".into()));
        }
        self.world.clone().agenda.after(pause_ms.max(1) * MS, move || self.ask());
    }

    fn replica(&self, address: &str) -> ReplicaId {
        let machines = self.world.machines();
        machines.iter().find(|(_, machine)| &*machine.address == address).map(|(id, _)| *id).unwrap_or_default()
    }

    fn end(self, told: Told) {
        self.world.emit(&Event::Answer { client: self.id, number: 1, told });
        self.crowd.busy.fetch_sub(1, Ordering::Relaxed);
    }
}
