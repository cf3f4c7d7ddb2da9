//! Simulated clients: what they ask and when is drawn; whom they ask, when again and under which number is decided by
//! `core::client`, as in the real one.

use crate::draw::Draw;
use crate::event::{Ask, ClientId, Event, Told};
use crate::network::{self, Boot, Broken};
use crate::scenario::{Kind, SECOND};
use crate::world::World;
use futures_util::future::{Either, select};
use muster_core::client::{BootAttempts, Session, Step, Targets, Turn, WriteAttempts, again};
use muster_core::driver;
use muster_core::ids::{Age, NodeId, OneShotId, ReplicaId, Seq, Time, VClusterId};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::entry::{
    Author, Change, EntryDraft, EntryType, OperationDraft, OperationKind, Principal, Role,
};
use muster_core::journal::key::{Key, Scope, Setting, VALUE_BYTES_MAX};
use muster_core::journal::policy::Policy;
use muster_core::limits::{MESSAGE_BYTES_MAX, TTL_SECONDS_MIN};
use muster_core::overlay;
use muster_core::request::{Command, Freshness, NotApplied, Outcome, Reply, RequestId, UnknownWhy, WriteRequest};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// How the message of every record by which a client's write is recognised begins.
pub const MARK: &str = "w:";

/// The vClusters there are.
pub const VCLUSTERS: [&str; 2] = ["hpc", "ml"];

/// What all clients have in common.
#[derive(Default)]
pub struct Crowd {
    /// Nobody asks anything new.
    pub quiet: AtomicBool,
    /// Requests on their way.
    pub busy: AtomicU64,
    /// Writes that were acknowledged.
    pub acknowledged: AtomicU64,
    /// Requests that were asked.
    pub asked: AtomicU64,
    /// Subscribers that have not seen everything.
    pub behind: AtomicU64,
}

/// A session, and who writes in it: each caller has one request on its way, and they do not wait for each other.
#[derive(Clone)]
pub struct SharedSession {
    /// In whose name everybody writes: a session belongs to whoever opened it.
    holder: ClientId,
    session: Arc<Mutex<Option<Session>>>,
}

impl SharedSession {
    /// A session that nobody opened yet.
    #[must_use]
    pub fn new(holder: ClientId) -> Self {
        Self { holder, session: Arc::default() }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Option<Session>) -> T) -> T {
        look(&mut self.session.lock().expect("nobody panics holding it"))
    }
}

/// A client.
pub struct Client {
    world: Arc<World>,
    id: ClientId,
    draw: Draw,
    targets: Targets,
    session: SharedSession,
    number: u64,
    seen: Seq,
    /// The newest sequence it wrote in each scope.
    wrote: BTreeMap<usize, Seq>,
}

/// Whom a client is. Every fourth of those that bear the load is an operator of one vCluster, who asks for as much as
/// everybody else and is refused what is not its own.
fn author(id: ClientId) -> Author {
    let role = match usize::try_from(id).unwrap_or(0) {
        place @ 1..1_000_000 if place % 4 == 0 => Role::Operator(named(VCLUSTERS[place / 4 % VCLUSTERS.len()])),
        _ => Role::Admin,
    };
    Author { principal: Principal::Claimed { name: format!("client-{id}").as_str().into() }, role }
}

fn named(vcluster: &str) -> VClusterId {
    VClusterId::new(vcluster).expect("a good name")
}

/// The name of a node.
fn node(which: u64) -> NodeId {
    NodeId::new(&format!("n{which}")).expect("a good name")
}

fn scope(which: usize) -> Scope {
    match which.checked_sub(1).and_then(|place| VCLUSTERS.get(place)) {
        Some(name) => Scope::VCluster(named(name)),
        None => Scope::Global,
    }
}

impl Client {
    /// A client that knows every replica there is.
    #[must_use]
    pub fn new(world: Arc<World>, id: ClientId) -> Self {
        let mut draw = world.draw("client", u64::from(id));
        let mut addresses: Vec<Arc<str>> = world.machines().values().map(|machine| machine.address.clone()).collect();
        // Clients begin anywhere.
        let turn = draw.place(addresses.len());
        addresses.rotate_left(turn);
        let targets = Targets::new(addresses, draw.number());
        Self {
            world,
            id,
            draw,
            targets,
            session: SharedSession::new(id),
            number: 0,
            seen: Seq(0),
            wrote: BTreeMap::new(),
        }
    }

    /// The same client, in a session that others may write in too.
    #[must_use]
    pub fn within(self, session: SharedSession) -> Self {
        Self { session, ..self }
    }

    fn now(&self) -> Time {
        self.world.now()
    }

    /// In whose name it asks. Only the cluster itself raises its feature level.
    fn author(&self, command: &Command) -> Author {
        match command {
            Command::RaiseFeatureLevel(_) => {
                Author { principal: Principal::System { part: "features".into() }, role: Role::System }
            }
            _ => author(self.session.holder),
        }
    }

    /// The replica at an address.
    fn replica(&self, address: &str) -> Option<ReplicaId> {
        let machines = self.world.machines();
        machines.iter().find(|(_, machine)| &*machine.address == address).map(|(id, _)| *id)
    }

    fn current(&self) -> (Arc<str>, ReplicaId) {
        let address = self.targets.current().expect("a client knows somebody").clone();
        let id = self.replica(&address).unwrap_or_default();
        (address, id)
    }

    async fn turn(&mut self, turn: Turn, after_ms: u64, asked: &str) {
        let mut pause_ms = after_ms;
        match turn {
            Turn::Same => {}
            Turn::Next => pause_ms += self.targets.failed(asked),
            Turn::Leader(address) => self.targets.follow(&address),
        }
        self.world.agenda.sleep(pause_ms.max(1) * 1_000_000).await;
    }

    /// Asks until there is an answer that counts, or the deadline has passed. None: the session is gone.
    async fn carry(&mut self, request: &WriteRequest, deadline: Time) -> Option<Outcome> {
        let mut attempts = WriteAttempts::new(deadline, self.world.scenario.cluster.timing.request_ms);
        loop {
            let (address, to) = self.current();
            let forward = self.draw.percent(50);
            attempts.on_sent();
            let answer = {
                let call = pin!(network::write(&self.world, network::End::Clients, to, request.clone(), forward));
                let late = pin!(self.world.agenda.sleep_until(deadline));
                match select(call, late).await {
                    Either::Left((answer, _)) => answer,
                    Either::Right(_) => return Some(attempts.on_deadline()),
                }
            };
            let step = match answer {
                Ok(outcome) => {
                    self.targets.answered();
                    attempts.on_outcome(self.now(), outcome)
                }
                Err(Broken::Unreachable) => attempts.on_unreachable(self.now()),
                Err(Broken::Lost) => attempts.on_lost(self.now()),
            };
            match step {
                Step::Done(outcome) => return Some(outcome),
                Step::Reopen => return None,
                Step::Again { turn, after_ms } => self.turn(turn, after_ms, &address).await,
            }
        }
    }

    /// The cluster's age, as some replica knows it.
    async fn age(&mut self, deadline: Time) -> Option<Age> {
        loop {
            let (address, to) = self.current();
            match network::read(&self.world, network::End::Clients, to, Freshness::Local).await {
                Ok(Ok((view, _))) => return Some(view.state.age()),
                Ok(Err(_)) | Err(_) => self.turn(Turn::Next, 0, &address).await,
            }
            if self.now() >= deadline {
                return None;
            }
        }
    }

    async fn one_shot(&mut self, command: Command, deadline: Time) -> Outcome {
        let Some(drawn_at) = self.age(deadline).await else { return Outcome::NotApplied(NotApplied::NoQuorum) };
        let request = RequestId::OneShot { id: OneShotId(self.draw.wide()), drawn_at };
        let request = WriteRequest { request, author: self.author(&command), command };
        self.carry(&request, deadline).await.unwrap_or(Outcome::Unknown(UnknownWhy::SessionUnknown))
    }

    /// Carries out a write: in the session mostly, as a one-shot sometimes.
    pub(crate) async fn write(&mut self, command: Command, deadline: Time) -> Outcome {
        // A session belongs to whoever opened it, and the cluster opens none.
        if matches!(command, Command::RaiseFeatureLevel(_)) || self.draw.percent(20) {
            return self.one_shot(command, deadline).await;
        }
        loop {
            if self.session.with(|session| session.is_none()) {
                match self.one_shot(Command::OpenSession, deadline).await {
                    Outcome::Applied { reply: Reply::Session { session: id }, .. } => {
                        // Somebody else may have opened one meanwhile.
                        self.session.with(|session| session.get_or_insert(Session::new(id)).id());
                    }
                    // The write itself was never sent.
                    _ => return Outcome::NotApplied(NotApplied::NoQuorum),
                }
            }
            let begun = self.session.with(|session| {
                let session = session.as_mut()?;
                let id = session.id();
                Some(session.begin().map(|number| (id, number, session.request(number))))
            });
            let Some(begun) = begun else { continue };
            let Some((id, number, request)) = begun else { return Outcome::NotApplied(NotApplied::NoQuorum) };
            let request = WriteRequest { request, author: self.author(&command), command: command.clone() };
            let outcome = self.carry(&request, deadline).await;
            let gone = matches!(outcome, Some(Outcome::Unknown(UnknownWhy::SessionUnknown)) | None);
            self.session.with(|session| {
                if let Some(same) = session.as_mut().filter(|session| session.id() == id) {
                    same.end(number);
                    if gone {
                        *session = None;
                    }
                }
            });
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }

    async fn read(&mut self, freshness: Freshness, deadline: Time) -> Told {
        loop {
            let (address, to) = self.current();
            let answer = {
                let call = pin!(network::read(&self.world, network::End::Clients, to, freshness));
                let late = pin!(self.world.agenda.sleep_until(deadline));
                match select(call, late).await {
                    Either::Left((answer, _)) => Some(answer),
                    Either::Right(_) => None,
                }
            };
            let (turn, after_ms, why) = match answer {
                None => return Told::Nothing("no answer in time".into()),
                Some(Ok(Ok((_, told)))) => {
                    self.targets.answered();
                    return told;
                }
                Some(Ok(Err(why))) => match again(&why) {
                    Some((turn, after_ms)) => (turn, after_ms, format!("{why:?}")),
                    None => return Told::Nothing(format!("{why:?}")),
                },
                Some(Err(broken)) => (Turn::Next, 0, format!("{broken:?}")),
            };
            if self.now().plus_ms(after_ms) >= deadline {
                return Told::Nothing(why);
            }
            self.turn(turn, after_ms, &address).await;
        }
    }

    async fn boot(&mut self, node: &NodeId, at_least: Seq, deadline: Time) -> Told {
        let mut attempts = BootAttempts::default();
        loop {
            let (address, to) = self.current();
            let answer = {
                let call = pin!(network::boot(&self.world, network::End::Clients, to, node.clone(), at_least));
                let late = pin!(self.world.agenda.sleep_until(deadline));
                match select(call, late).await {
                    Either::Left((answer, _)) => answer,
                    Either::Right(_) => return Told::Nothing("no boot in time".into()),
                }
            };
            match answer {
                Ok(Ok(Boot::Told(told))) => {
                    self.targets.answered();
                    return told;
                }
                answer if self.now() >= deadline => return Told::Nothing(format!("{answer:?}")),
                Ok(Ok(Boot::Later { after_ms, elsewhere })) => {
                    let (next, after_ms) = attempts.on_later(&address, after_ms, &elsewhere);
                    self.turn(Turn::Leader(next), after_ms, &address).await;
                }
                Ok(Err(_)) | Err(_) => self.turn(Turn::Next, 0, &address).await,
            }
        }
    }

    fn draft(&mut self, kind: Kind, mark: &Arc<str>) -> Option<EntryDraft> {
        let which = self.draw.place(1 + VCLUSTERS.len());
        let load = &self.world.scenario.load;
        let draft = EntryDraft {
            entry_type: EntryType::Commit,
            scope: scope(which),
            parent: self.seen,
            based_on: None,
            changes: Vec::new(),
            ttl_seconds: None,
            emergency_reason: None,
            message: mark.clone(),
            occurred_at: None,
        };
        if kind == Kind::Rollback {
            let wrote = *self.wrote.get(&which)?;
            return Some(EntryDraft {
                entry_type: EntryType::Rollback,
                parent: Seq(wrote.0 - 1),
                based_on: Some(self.seen),
                ..draft
            });
        }
        let size = usize::try_from(load.value_bytes).unwrap_or(1);
        let mut value = format!("{mark}-");
        while value.len() < size {
            value.push_str("0123456789abcdef");
        }
        value.truncate(size.max(1));
        // A kernel parameter is never so long.
        let family = if load.value_bytes > 2_000 { "files:/k" } else { "kernel:k" };
        let key = format!("{family}{}", self.draw.below(load.keys));
        let change =
            |key: Key, value: &str| Change { key, previous: Setting::Unset, next: Setting::Value(value.into()) };
        let changes = vec![change(Key::new(&key).expect("a good key"), &value)];
        match kind {
            Kind::Temporary => {
                let ttl_seconds = Some(TTL_SECONDS_MIN + u32::try_from(self.draw.below(60)).unwrap_or(0));
                Some(EntryDraft { changes, ttl_seconds, ..draft })
            }
            Kind::Assign => {
                let which = self.draw.below(self.world.scenario.load.nodes);
                let changes = vec![change(Key::vcluster(), VCLUSTERS[self.draw.place(VCLUSTERS.len())])];
                Some(EntryDraft {
                    entry_type: EntryType::BootConfig,
                    scope: Scope::Node(node(which)),
                    changes,
                    ..draft
                })
            }
            Kind::NodeCommit => {
                let which = self.draw.below(self.world.scenario.load.nodes);
                Some(EntryDraft { scope: Scope::Node(node(which)), changes, ..draft })
            }
            Kind::Emergency => {
                let scope = Scope::Node(node(self.draw.below(self.world.scenario.load.nodes)));
                let starts = self.draw.percent(50);
                let entry_type = if starts { EntryType::EmergencyStart } else { EntryType::EmergencyEnd };
                let emergency_reason = starts.then(|| "the building is on fire".into());
                Some(EntryDraft { entry_type, scope, emergency_reason, ..draft })
            }
            Kind::Malformed => Some(self.malformed(EntryDraft { changes, ..draft })),
            Kind::Oversized => {
                // What the cluster's limits leave no room for; so large a value has no place in an entry either.
                let most = usize::try_from(self.world.scenario.cluster.limits.payload_bytes_max).unwrap_or(usize::MAX);
                let value = "x".repeat(most.saturating_add(1).min(VALUE_BYTES_MAX + 1));
                let changes = vec![change(Key::new("files:/large").expect("a good key"), &value)];
                Some(EntryDraft { changes, ..draft })
            }
            Kind::Commit
            | Kind::Rollback
            | Kind::Policy
            | Kind::Read
            | Kind::LocalRead
            | Kind::ReadAtLeast
            | Kind::Boot
            | Kind::Exec
            | Kind::Abandon
            | Kind::Overlay => Some(EntryDraft { changes, ..draft }),
        }
    }

    /// Something the rules refuse, made of something they would take.
    fn malformed(&mut self, draft: EntryDraft) -> EntryDraft {
        match self.draw.below(9) {
            0 => EntryDraft { changes: Vec::new(), ..draft },
            1 => EntryDraft { changes: [draft.changes.clone(), draft.changes.clone()].concat(), ..draft },
            2 => EntryDraft { ttl_seconds: Some(TTL_SECONDS_MIN - 1), ..draft },
            3 => EntryDraft { ttl_seconds: Some(u32::MAX), ..draft },
            4 => EntryDraft { entry_type: EntryType::PolicyUpdate, ..draft },
            5 => EntryDraft { entry_type: EntryType::EmergencyStart, changes: Vec::new(), ..draft },
            6 => EntryDraft { parent: Seq(u64::MAX), ..draft },
            7 => EntryDraft { based_on: Some(Seq(1)), ..draft },
            _ => {
                EntryDraft { scope: Scope::VCluster(VClusterId::new("nobody-knows-it").expect("a good name")), ..draft }
            }
        }
    }

    fn operation(&mut self, mark: &Arc<str>) -> OperationDraft {
        let kind = [OperationKind::Exec, OperationKind::ShellStart, OperationKind::ShellEnd][self.draw.place(3)];
        let scope = Scope::Node(node(self.draw.below(self.world.scenario.load.nodes)));
        let exit_status = (kind == OperationKind::Exec).then_some(0);
        OperationDraft { kind, scope, detail: mark.clone(), exit_status, occurred_at: None }
    }

    fn tell(&self, told: Told) {
        self.world.emit(&Event::Answer { client: self.id, number: self.number, told });
    }

    fn ask(&mut self, ask: Ask) {
        self.number += 1;
        self.world.emit(&Event::Call { client: self.id, number: self.number, ask });
    }

    /// One request, start to end.
    async fn request(&mut self, kind: Kind, crowd: &Crowd) {
        let deadline = Time(self.now().0 + self.world.scenario.load.patience);
        match kind {
            Kind::Malformed | Kind::Oversized => {
                let mark: Arc<str> = format!("{MARK}c{}-{}", self.id, self.number + 1).into();
                let Some(draft) = self.draft(kind, &mark) else { return };
                self.ask(Ask::Refusable { mark });
                let outcome = self.write(Command::Journal(JournalCommand::AppendEntry(draft)), deadline).await;
                self.tell(Told::Outcome(outcome));
            }
            Kind::Exec => {
                // As long as a value, so that a story can fill the history without filling the state.
                let mark = format!("{MARK}c{}-{}", self.id, self.number + 1);
                let length = usize::try_from(self.world.scenario.load.value_bytes).unwrap_or(0).min(MESSAGE_BYTES_MAX);
                let mark: Arc<str> = format!("{mark:.<length$}").into();
                let draft = self.operation(&mark);
                self.ask(Ask::Operation { mark });
                let outcome = self.write(Command::Journal(JournalCommand::RecordOperation(draft)), deadline).await;
                if let Outcome::Applied { reply: Reply::Recorded { sequence }, .. } = &outcome {
                    self.seen = self.seen.max(*sequence);
                    crowd.acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                self.tell(Told::Outcome(outcome));
            }
            Kind::Commit
            | Kind::Rollback
            | Kind::Temporary
            | Kind::Assign
            | Kind::NodeCommit
            | Kind::Emergency
            | Kind::Abandon => {
                if kind == Kind::Abandon {
                    // It is never heard of again, nor closed.
                    self.session.with(|session| *session = None);
                }
                let mark: Arc<str> = format!("{MARK}c{}-{}", self.id, self.number + 1).into();
                let Some(draft) = self.draft(kind, &mark) else { return };
                let which = (0..=VCLUSTERS.len()).find(|which| scope(*which) == draft.scope);
                self.ask(Ask::Write { mark });
                let outcome = self.write(Command::Journal(JournalCommand::AppendEntry(draft)), deadline).await;
                if let Outcome::Applied { reply: Reply::Recorded { sequence }, .. } = &outcome {
                    self.seen = self.seen.max(*sequence);
                    if let Some(which) = which {
                        self.wrote.insert(which, *sequence);
                    }
                    crowd.acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                self.tell(Told::Outcome(outcome));
            }
            Kind::Policy => {
                let vcluster = named(VCLUSTERS[self.draw.place(VCLUSTERS.len())]);
                let base_window_seconds = u32::try_from(self.draw.between(60, 7_200)).unwrap_or(900);
                let policy = Policy { base_window_seconds, ..Policy::default() };
                self.ask(Ask::OtherWrite { what: "policy" });
                let command = Command::Journal(JournalCommand::SetPolicy { vcluster, policy });
                let outcome = self.write(command, deadline).await;
                self.tell(Told::Outcome(outcome));
            }
            Kind::Overlay => {
                let vcluster = VClusterId::new(VCLUSTERS[self.draw.place(VCLUSTERS.len())]).expect("a good name");
                let (_, to) = self.current();
                let Ok(Ok((view, _))) = network::read(&self.world, network::End::Clients, to, Freshness::Local).await
                else {
                    return;
                };
                let Ok(built) = overlay::build(&view.state, &vcluster) else { return };
                let late = self.draw.around(SECOND / 5);
                self.world.agenda.sleep(late).await;
                self.ask(Ask::OtherWrite { what: "overlay" });
                let store = driver::store_overlay(&view.state, vcluster, built, self.draw.wide());
                let outcome = self.carry(&store, deadline).await;
                self.tell(Told::Outcome(outcome.unwrap_or(Outcome::Unknown(UnknownWhy::SessionUnknown))));
            }
            Kind::Boot => {
                let node = node(self.draw.below(self.world.scenario.load.nodes));
                let at_least = if self.draw.percent(50) { self.seen } else { Seq(0) };
                self.ask(Ask::Boot { node: node.clone(), at_least });
                let told = self.boot(&node, at_least, deadline).await;
                if let Told::Booted { booted, .. } = &told {
                    self.seen = self.seen.max(booted.sequence);
                }
                self.tell(told);
            }
            Kind::Read | Kind::LocalRead | Kind::ReadAtLeast => {
                let (ask, freshness) = match kind {
                    // Where the story has leases, what rests on them is held to the same promise.
                    Kind::Read if self.world.scenario.cluster.timing.lease_drift_ppm.is_some() => {
                        (Ask::Read, Freshness::Leased)
                    }
                    Kind::Read => (Ask::Read, Freshness::Linearizable),
                    Kind::ReadAtLeast => (Ask::ReadAtLeast { sequence: self.seen }, Freshness::AtLeast(self.seen)),
                    Kind::LocalRead
                    | Kind::Commit
                    | Kind::Rollback
                    | Kind::Policy
                    | Kind::Temporary
                    | Kind::Assign
                    | Kind::NodeCommit
                    | Kind::Boot
                    | Kind::Emergency
                    | Kind::Exec
                    | Kind::Malformed
                    | Kind::Oversized
                    | Kind::Abandon
                    | Kind::Overlay => (Ask::LocalRead, Freshness::Local),
                };
                self.ask(ask);
                let told = self.read(freshness, deadline).await;
                if let Told::Head { sequence, .. } = &told {
                    self.seen = self.seen.max(*sequence);
                }
                self.tell(told);
            }
        }
    }

    /// Asks at the story's rate until all is quiet.
    pub async fn run(mut self, crowd: Arc<Crowd>) {
        let load = &self.world.scenario.load;
        let (mix, total) = (load.mix.clone(), load.mix.iter().map(|(_, share)| share).sum::<u64>());
        let pause = SECOND * u64::from(load.clients) / load.rate;
        loop {
            let nanos = self.draw.around(pause);
            self.world.agenda.sleep(nanos.max(1_000)).await;
            if crowd.quiet.load(Ordering::Relaxed) || self.world.is_over() {
                return;
            }
            // Some change their mind about whom to ask.
            if self.draw.percent(3) {
                let (address, _) = self.current();
                self.targets.failed(&address);
            }
            let mut left = self.draw.below(total);
            let kind = mix.iter().find(|(_, share)| {
                let here = left < *share;
                left = left.saturating_sub(*share);
                here
            });
            crowd.busy.fetch_add(1, Ordering::Relaxed);
            crowd.asked.fetch_add(1, Ordering::Relaxed);
            self.request(kind.map_or(Kind::Commit, |(kind, _)| *kind), &crowd).await;
            crowd.busy.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Sets the policies that make the vClusters known.
    ///
    /// # Errors
    /// What became of the first one that was not applied.
    pub async fn set_policies(&mut self, deadline: Time) -> Result<(), Outcome> {
        for name in VCLUSTERS {
            let vcluster = VClusterId::new(name).expect("a good name");
            let command = Command::Journal(JournalCommand::SetPolicy { vcluster, policy: Policy::default() });
            let outcome = self.write(command, deadline).await;
            if !matches!(outcome, Outcome::Applied { .. }) {
                return Err(outcome);
            }
        }
        Ok(())
    }
}
