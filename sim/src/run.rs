//! One run: a story at a seed, from an empty disk to the last judgement.
//!
//! ```text
//! set-up   init one replica, the others join through it; the vClusters become known
//! story    clients ask, operators act, things break, as the drawn story says
//! heal     a drawn quorum is healed, the rest stays as broken as it is; a leader must appear, requests must end,
//!          the healed must agree
//! whole    everybody is healed and must agree
//! end      oracles judge the run as a whole
//! ```
//! A run has a thread of its own, so that nothing an earlier one left behind on it counts.

use crate::agents;
use crate::client::{Client, Crowd, SharedSession};
use crate::event::{Event, Fingerprint};
use crate::fault::Faults;
use crate::logs::Listener;
use crate::network::{self, Quality};
use crate::oracles::Violation;
use crate::repair;
use crate::replica;
use crate::scenario::{self, Budget, MS, Neighbour, Operation, OperationItem, Pick, SECOND, Scenario};
use crate::storm::{Storm, StormReport};
use crate::subscriber::Subscriber;
use crate::world::{Found, Trace, World};
use muster_core::ids::{ClusterId, Incarnation, ReplicaId, ReplicaName, Term, Time};
use muster_core::members::{Admission, Member, MemberCommand, MemberWish};
use muster_core::request::{AdminOutcome, AdminRequest, Command, Outcome, Reply};
use muster_core::state::State;
use muster_core::storage::Identity;
use std::collections::BTreeSet;
use std::panic::PanicHookInfo;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Once, PoisonError};

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The story's name.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// The first violation, if any.
    pub found: Option<Found>,
    /// Hash and length of the event stream.
    pub fingerprint: Fingerprint,
    /// How much simulated time passed.
    pub simulated: Time,
    /// Places reached.
    pub marks: BTreeSet<&'static str>,
    /// Requests asked.
    pub asked: u64,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Why a part of the liveness phase was not demanded.
    pub excused: Option<String>,
    /// What the boot storm was like, if there was one.
    pub storm: Option<StormReport>,
    /// Marks and points of crashes that the story wants and this run did not reach, in words. A story must reach them at some
    /// seed, not at every one.
    pub missed: BTreeSet<String>,
}

thread_local! {
    static LAST_PANIC: std::cell::RefCell<Option<String>> = const { std::cell::RefCell::new(None) };
    static IN_RUN: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Panics of a run are its result, not noise.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            if IN_RUN.get() {
                LAST_PANIC.with_borrow_mut(|last| {
                    last.get_or_insert_with(|| info.to_string());
                });
            } else {
                before(info);
            }
        }));
    });
}

/// Plays a story at a seed.
///
/// # Panics
/// If no thread can be started.
#[must_use]
pub fn play(scenario: &Scenario, seed: u64, trace: Option<Trace>) -> Report {
    keep_panics();
    let drawn = scenario.drawn(seed);
    let foretold = drawn.expect.violated.clone();
    let name = scenario.name.clone();
    let thread = std::thread::Builder::new().name("run".into()).stack_size(16 << 20);
    let run = thread.spawn(move || one(drawn, seed, trace)).expect("a thread can be started");
    let (world, outcome) = run.join().expect("a run's panics are kept");
    let mut report = Report {
        scenario: name,
        seed,
        found: None,
        fingerprint: Fingerprint { hash: muster_core::ids::Digest::default(), events: 0 },
        simulated: Time(0),
        marks: BTreeSet::new(),
        asked: 0,
        acknowledged: 0,
        excused: None,
        storm: None,
        missed: BTreeSet::new(),
    };
    let Some(world) = world else {
        report.found = outcome.err().map(|message| broken(message, 0, Time(0)));
        return report;
    };
    report.fingerprint = world.fingerprint();
    report.found = world.found();
    (report.simulated, report.marks) = world.facts(|facts| (facts.now, facts.marks.clone()));
    let points = world.facts(|facts| facts.reached_points.iter().map(|id| scenario::point_of(id)).collect::<Vec<_>>());
    report.missed = scenario.wanted();
    report.missed.retain(|wanted| !points.contains(wanted));
    for mark in &report.marks {
        report.missed.remove(&scenario::mark_of(mark));
    }
    match outcome {
        Ok(tally) => {
            report.asked = tally.crowd.asked.load(Ordering::Relaxed);
            report.acknowledged = tally.crowd.acknowledged.load(Ordering::Relaxed);
            report.excused = tally.excused.or_else(|| world.excused());
            report.storm = tally.storm;
        }
        Err(message) => {
            report.found.get_or_insert_with(|| broken(message, report.fingerprint.events, report.simulated));
        }
    }
    // What a story foretells is what it is about.
    if let Some(found) = report.found.take_if(|found| foretold.as_deref() == Some(found.oracle)) {
        report.missed.remove(&scenario::violation_of(found.oracle));
    }
    report
}

fn broken(message: String, step: u64, time: Time) -> Found {
    let violation = Violation::new("no assertion to fail", message);
    Found { oracle: BROKEN, source: "style guide, bugs", violation, step, time }
}

struct Tally {
    crowd: Arc<Crowd>,
    excused: Option<String>,
    storm: Option<StormReport>,
}

type Played = (Option<Arc<World>>, Result<Tally, String>);

fn one(drawn: Scenario, seed: u64, trace: Option<Trace>) -> Played {
    IN_RUN.set(true);
    let (listener, place) = Listener::new();
    let inside = place.clone();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        tracing::subscriber::with_default(listener, || {
            let runtime = madsim::runtime::Runtime::with_seed_and_config(seed, madsim::Config::default());
            runtime.block_on(async move {
                let world = World::new(seed, drawn, trace);
                *inside.lock().unwrap_or_else(PoisonError::into_inner) = Some(world.clone());
                let tally = story(&world).await;
                if let Some(beside) = world.beside() {
                    beside.close();
                }
                world.close();
                // The executor drops killed tasks when it comes to them.
                madsim::time::sleep(std::time::Duration::from_millis(1)).await;
                tally
            })
        })
    }));
    let world = place.lock().unwrap_or_else(PoisonError::into_inner).take();
    let outcome = outcome
        .map_err(|_| LAST_PANIC.with_borrow_mut(Option::take).unwrap_or_else(|| "a panic without a message".into()));
    IN_RUN.set(false);
    (world, outcome)
}

/// The property that fails when the code under test panics.
pub const BROKEN: &str = "no assertion of the code under test fails";
const SETUP: &str = "the cluster forms";
/// The property that fails when a healed cluster stalls.
pub const LIVENESS: &str = "after healing a quorum there is a leader, requests end and replicas agree";
/// The property that fails when a node does not come to rest.
pub const AGENTS_REST: &str = "after healing every node is what is declared, or its agent says why not";
const AGENTS_REST_SOURCE: &str = "simulation, liveness; demands P15 to P17";
const LIVENESS_SOURCE: &str = "simulation, liveness; demand U10";

fn name_of(number: u64) -> ReplicaName {
    ReplicaName::new(&format!("r{number}")).expect("a good name")
}

fn address_of(number: u64) -> Arc<str> {
    format!("r{number}:9443").into()
}

fn admission(world: &World, number: u64, wish: MemberWish, feature_level: Option<u32>) -> Admission {
    Admission {
        name: name_of(number),
        incarnation: Incarnation(u128::from(number) << 64 | u128::from(world.seed)),
        peer_address: format!("r{number}:9444").into(),
        client_address: address_of(number),
        wish,
        feature_level: feature_level.unwrap_or(world.scenario.cluster.feature_level),
    }
}

fn identity(world: &World, number: u64) -> Identity {
    Identity {
        cluster: ClusterId(u128::from(world.seed) << 1 | 1),
        group: world.group(),
        replica: ReplicaId(number),
        incarnation: Incarnation(u128::from(number) << 64 | u128::from(world.seed)),
        name: name_of(number),
    }
}

/// Looks again and again until something is so. Whether it came to be in time.
async fn until(world: &Arc<World>, nanos: u64, is_so: impl Fn() -> bool) -> bool {
    let end = Time(world.now().0 + nanos);
    loop {
        if world.is_over() || is_so() {
            return true;
        }
        if world.now() >= end {
            return false;
        }
        world.agenda.sleep(20 * MS).await;
    }
}

async fn story(world: &Arc<World>) -> Tally {
    let crowd = Arc::new(Crowd::default());
    let mut tally = Tally { crowd: crowd.clone(), excused: None, storm: None };
    let storm = Storm::default();
    world.spawn(world.agenda.clone().run());
    world.wire().set_quality(Quality::default());

    world.emit(&Event::Phase("set-up"));
    let neighbour = world.scenario.neighbour.map(|neighbour| settle(world, neighbour));
    for group in [Some(world), neighbour.as_ref()].into_iter().flatten() {
        if let Err(problem) = form(group, &storm).await {
            world.fail(SETUP, "demand U4", Violation::new("a cluster as the story wants it", problem));
            return tally;
        }
    }
    let neighbours = Arc::new(Crowd::default());
    let before = neighbour.as_ref().map(reign);

    world.emit(&Event::Phase("story"));
    *world.began.lock().unwrap_or_else(PoisonError::into_inner) = world.now();
    let faults = Faults::new(world.clone());
    faults.plan(&world.scenario.faults);
    let began = world.now();
    for item in world.scenario.operations.clone() {
        world.spawn(operate(world.clone(), began, item));
    }
    let mut session = SharedSession::new(0);
    for id in 1..=world.scenario.load.clients {
        if (id - 1) % world.scenario.load.together == 0 {
            session = SharedSession::new(id);
        }
        world.spawn(Client::new(world.clone(), id).within(session.clone()).run(crowd.clone()));
    }
    for id in 1..=world.scenario.load.subscribers {
        drop(madsim::task::spawn(Subscriber::new(world.clone(), 3_000_000 + id).run(crowd.clone())));
    }
    for id in 1..=world.scenario.load.slow_subscribers {
        drop(madsim::task::spawn(Subscriber::slow(world.clone(), 4_000_000 + id).run(crowd.clone())));
    }
    if let Some(neighbour) = &neighbour {
        for id in 1..=neighbour.scenario.load.clients {
            neighbour.spawn(Client::new(neighbour.clone(), id).run(neighbours.clone()));
        }
    }
    if let Some(agents) = &world.scenario.agents {
        agents::operators::work(world, agents, began);
    }
    if let Some(wanted) = &world.scenario.storm {
        storm.begin(world, &crowd, wanted, began);
    }
    until(world, world.scenario.time.run, || false).await;

    world.emit(&Event::Phase("heal"));
    heal(world, &faults, &crowd, &mut tally).await;
    if let (Some(neighbour), Some(before)) = (&neighbour, before) {
        part(world, neighbour, &neighbours, before).await;
    }
    world.end();
    expectations(world, &crowd);
    tally.storm = storm.report(world);
    tally
}

/// The property that fails when one group notices another.
pub const APART: &str = "a second group on the same hosts does not notice the first";
const APART_SOURCE: &str = "demand P2";

/// A second group on the same hosts, not formed yet.
fn settle(world: &Arc<World>, neighbour: Neighbour) -> Arc<World> {
    let mut story = world.scenario.clone();
    story.neighbour = None;
    story.storm = None;
    story.agents = None;
    story.faults.clear();
    story.operations.clear();
    (story.cluster.voters, story.cluster.learners) = (neighbour.voters, 0);
    (story.load.clients, story.load.rate) = (neighbour.clients, neighbour.rate);
    (story.load.subscribers, story.load.slow_subscribers) = (0, 0);
    (story.load.value_bytes, story.load.mix) = (40, scenario::usual_mix());
    let beside = world.neighbour(world.draw("neighbour", 0).number() >> 1, story);
    beside.wire().set_quality(Quality::default());
    beside
}

/// The highest term that a group's replicas know, and who leads.
fn reign(world: &Arc<World>) -> (Term, Option<ReplicaId>) {
    let term = world.facts(|facts| {
        facts.replicas.values().filter_map(|known| known.view.as_ref()).map(|view| view.status.term).max()
    });
    (term.unwrap_or_default(), world.leader())
}

/// The second group is judged like the first: its requests end, it agrees, its oracles hold; and it was not disturbed, if the
/// story says so.
async fn part(world: &Arc<World>, neighbour: &Arc<World>, crowd: &Arc<Crowd>, before: (Term, Option<ReplicaId>)) {
    let all: BTreeSet<ReplicaId> = neighbour.replicas().into_iter().collect();
    crowd.quiet.store(true, Ordering::Relaxed);
    let patience = neighbour.scenario.load.patience + 10 * SECOND;
    let fail = |what: &str, saw: String| world.fail(APART, APART_SOURCE, Violation::new(what, saw));
    if !until(neighbour, patience, || crowd.busy.load(Ordering::Relaxed) == 0).await {
        fail("every request to the second group to end", describe(neighbour));
    }
    if !until(neighbour, neighbour.scenario.time.heal, || agree(neighbour, &all)).await {
        fail("the second group to agree", describe(neighbour));
    }
    let now = reign(neighbour);
    if world.scenario.neighbour.is_some_and(|neighbour| neighbour.undisturbed) && now != before {
        let told =
            |(term, leader): (Term, Option<ReplicaId>)| format!("r{} in term {term}", leader.unwrap_or_default());
        fail(&format!("the second group to be led by {} throughout", told(before)), told(now));
    }
    if crowd.acknowledged.load(Ordering::Relaxed) == 0 && neighbour.scenario.load.clients > 0 {
        fail("the second group to acknowledge writes", "none".into());
    }
    until(neighbour, 50 * MS, || false).await;
    neighbour.end();
    let Fingerprint { hash, events } = neighbour.fingerprint();
    world.emit(&Event::Operation { id: "second-group".into(), what: format!("{events} events, hash {hash}") });
    world.adopt(neighbour);
}

/// One replica begins, the others join it.
async fn form(world: &Arc<World>, storm: &Storm) -> Result<(), String> {
    let cluster = &world.scenario.cluster;
    let first = admission(world, 1, MemberWish::Voter, None);
    let member = Member {
        id: ReplicaId(1),
        name: first.name,
        incarnation: first.incarnation,
        peer_address: first.peer_address,
        client_address: first.client_address,
        wish: MemberWish::Voter,
        feature_level: first.feature_level,
    };
    world.note_first_state(State::new(identity(world, 1).cluster, member.clone()));
    world.add_machine(identity(world, 1), address_of(1));
    replica::start(world, ReplicaId(1), Some(member));
    if !until(world, 30 * SECOND, || world.leader().is_some()).await {
        return Err("the first replica does not lead".into());
    }
    if let Some(wanted) = &world.scenario.storm {
        storm.declare(world, wanted).await?;
    }
    for number in 2..=cluster.voters + cluster.learners {
        let wish = if number <= cluster.voters { MemberWish::Voter } else { MemberWish::Learner };
        let client = Client::new(world.clone(), 1_000_000 + u32::try_from(number).unwrap_or(0));
        join(world, client, wish, None, 30 * SECOND).await?;
    }
    let formed = || {
        world.facts(|facts| {
            facts.newest_view().is_some_and(|view| {
                let configuration = &view.status.configuration;
                !configuration.is_joint()
                    && configuration.voters.len() as u64 == cluster.voters
                    && configuration.learners.len() as u64 == cluster.learners
            })
        })
    };
    if !until(world, 60 * SECOND, formed).await {
        return Err(describe(world));
    }
    let deadline = Time(world.now().0 + 30 * SECOND);
    let mut client = Client::new(world.clone(), 0);
    client.set_policies(deadline).await.map_err(|outcome| format!("a policy: {outcome:?}"))?;
    match &world.scenario.agents {
        Some(agents) => agents::operators::begin(world, agents).await,
        None => Ok(()),
    }
}

/// Has a new replica admitted and starts it.
async fn join(
    world: &Arc<World>,
    mut client: Client,
    wish: MemberWish,
    feature_level: Option<u32>,
    patience: u64,
) -> Result<ReplicaId, String> {
    let number = world.replicas().len() as u64 + 1;
    let deadline = Time(world.now().0 + patience);
    let admission = admission(world, number, wish, feature_level);
    let incarnation = admission.incarnation;
    let command = Command::Members(MemberCommand::Admit(admission));
    match client.write(command, deadline).await {
        Outcome::Applied { reply: Reply::Admitted { replica }, .. } => {
            if world.replicas().contains(&replica) {
                return Err(format!("replica {replica} was admitted twice"));
            }
            let mut identity = identity(world, replica.0);
            identity.incarnation = incarnation;
            identity.name = name_of(number);
            world.add_machine(identity, address_of(number));
            replica::start(world, replica, None);
            Ok(replica)
        }
        outcome => Err(format!("replica {number} was not admitted: {outcome:?}")),
    }
}

fn resolve(world: &Arc<World>, pick: Pick) -> Option<ReplicaId> {
    match pick {
        Pick::Replica(number) => Some(ReplicaId(number)),
        Pick::Leader => world.leader(),
        Pick::Follower => {
            let leader = world.leader();
            world.replicas().into_iter().find(|id| Some(*id) != leader && world.is_up(*id))
        }
        Pick::All | Pick::Others | Pick::Clients => None,
    }
}

async fn operate(world: Arc<World>, began: Time, item: OperationItem) {
    world.agenda.sleep_until(Time(began.0 + item.at)).await;
    let tell = |what: String| world.emit(&Event::Operation { id: item.id.clone(), what });
    tell(crate::scenario::operation_text(&item.operation));
    let judge = |refused: Option<bool>, saw: String| {
        if let (Some(wanted), Some(refused)) = (item.refused, refused)
            && wanted != refused
        {
            let expected =
                format!("the operation {} to be {}", item.id, if wanted { "refused" } else { "carried out" });
            world.fail(STORY, "its own file", Violation::new(expected, saw));
        }
    };
    let client = || {
        let which = item.at ^ u64::from(crc32fast::hash(item.id.as_bytes()));
        Client::new(world.clone(), 2_000_000 + u32::try_from(which % 1_000_000).unwrap_or(0))
    };
    // An operator asks again until they know: a member that was admitted, and whose operator gave up, would be missed for good.
    let patience = (20 * SECOND).max(3 * MS * world.scenario.cluster.timing.request_ms);
    let deadline = Time(world.now().0 + patience);
    let member = |pick: Pick, make: fn(ReplicaId) -> MemberCommand| resolve(&world, pick).map(make);
    let command = match item.operation {
        Operation::Join { wish, feature_level } => {
            match join(&world, client(), wish, feature_level, patience).await {
                Ok(replica) => {
                    tell(format!("replica {replica} is admitted"));
                    judge(Some(false), format!("replica {replica} admitted"));
                }
                Err(problem) => {
                    let refused = problem.contains("Refused").then_some(true);
                    tell(problem.clone());
                    judge(refused, problem);
                }
            }
            return;
        }
        Operation::Promote(pick) => member(pick, MemberCommand::Promote).map(Command::Members),
        Operation::Demote(pick) => member(pick, MemberCommand::Demote).map(Command::Members),
        Operation::Remove(pick) => member(pick, MemberCommand::Remove).map(Command::Members),
        Operation::Raise(level) => Some(Command::RaiseFeatureLevel(level)),
        Operation::Restore(pick) => {
            return match resolve(&world, pick) {
                Some(who) => tell(repair::restore(&world, who, &item.id).await),
                None => tell("nobody to repair".into()),
            };
        }
        Operation::Transfer(_) | Operation::Snapshot(_) => None,
    };
    if let Some(command) = command {
        let outcome = client().write(command, deadline).await;
        tell(format!("{}", crate::event::OutcomeText(&outcome)));
        let refused = match outcome {
            Outcome::Applied { .. } => Some(false),
            Outcome::Refused(_) => Some(true),
            Outcome::NotApplied(_) | Outcome::Unknown(_) => None,
        };
        return judge(refused, format!("{}", crate::event::OutcomeText(&outcome)));
    }
    let (who, request) = match item.operation {
        Operation::Transfer(to) => (world.leader(), AdminRequest::Transfer { to: ReplicaId(to) }),
        Operation::Snapshot(pick) => (resolve(&world, pick), AdminRequest::Snapshot),
        Operation::Join { .. }
        | Operation::Promote(_)
        | Operation::Demote(_)
        | Operation::Remove(_)
        | Operation::Restore(_)
        | Operation::Raise(_) => return,
    };
    let Some(who) = who else { return tell("nobody to ask".into()) };
    match network::admin(&world, who, request).await {
        Ok(AdminOutcome::Snapshot { index }) => tell(format!("a snapshot at {index}")),
        Ok(AdminOutcome::Transferred { leader }) => tell(format!("replica {leader} leads")),
        Ok(AdminOutcome::Failed { problem }) => tell(problem),
        Err(broken) => tell(format!("{broken:?}")),
    }
}

/// Whoever has a say: a majority of each of these is needed. Whoever applied the newest configuration may have forgotten it, and
/// the others have its entry and are yet to find that it is committed: so theirs counts as well.
fn electorates(world: &World) -> Vec<Vec<ReplicaId>> {
    let configurations = world.facts(|facts| {
        let known = facts.newest_view().map(|view| view.status.configuration.clone()).unwrap_or_default();
        [known, facts.configuration.1.clone()]
    });
    if configurations[0].voters.is_empty() {
        return Vec::new();
    }
    let all = configurations.into_iter().flat_map(|known| [known.voters, known.voters_outgoing]);
    all.filter(|voters| !voters.is_empty()).collect()
}

/// Whether these replicas can have a leader among them.
fn is_quorum(world: &World, who: &BTreeSet<ReplicaId>) -> bool {
    let forgot = world.facts(|facts| facts.forgot.clone());
    let counts = |id: &&ReplicaId| who.contains(*id) && !forgot.contains(*id);
    electorates(world).iter().all(|voters| 2 * voters.iter().filter(counts).count() > voters.len())
}

/// A quorum of voters that can be healed, drawn, and some of the others.
fn spare(world: &Arc<World>) -> Result<BTreeSet<ReplicaId>, String> {
    let mut draw = world.draw("heal", 0);
    let forgot = world.facts(|facts| facts.forgot.clone());
    let electorates = electorates(world);
    if electorates.is_empty() {
        return Err("every disk forgot who the voters are".into());
    }
    let all = world.replicas();
    let mut spared = BTreeSet::new();
    for voters in electorates {
        let need = voters.len() / 2 + 1;
        let mut able: Vec<ReplicaId> =
            voters.iter().copied().filter(|id| !forgot.contains(id) && all.contains(id)).collect();
        if able.len() < need {
            return Err(format!("of {} voters only {} have a disk that kept everything", voters.len(), able.len()));
        }
        let mut have = voters.iter().filter(|id| spared.contains(*id)).count();
        while have < need {
            let id = able.swap_remove(draw.place(able.len()));
            if spared.insert(id) {
                have += 1;
            }
        }
    }
    Ok(spared)
}

/// Those of them that are members now: whoever was taken out meanwhile is told nothing any more.
fn members_of(world: &Arc<World>, who: &BTreeSet<ReplicaId>) -> BTreeSet<ReplicaId> {
    let everybody = world.facts(|facts| facts.newest_view().map(|view| view.status.configuration.everybody()));
    who.iter().copied().filter(|id| everybody.as_ref().is_none_or(|all| all.contains(id))).collect()
}

/// Whether these replicas run and follow one leader, who leads.
fn follow(world: &Arc<World>, who: &BTreeSet<ReplicaId>) -> bool {
    let Some(leader) = world.leader() else { return false };
    let who = members_of(world, who);
    let machines = world.machines();
    who.iter().all(|id| {
        let machine = machines.get(id).filter(|machine| !machine.life.is_over());
        machine.and_then(|machine| machine.handle.as_ref()).is_some_and(|handle| handle.view().status.leader == leader)
    })
}

/// Whether these replicas run, follow one leader and have applied the same.
fn agree(world: &Arc<World>, who: &BTreeSet<ReplicaId>) -> bool {
    let who = members_of(world, who);
    let machines = world.machines();
    let views: Vec<_> = who
        .iter()
        .map(|id| {
            machines
                .get(id)
                .filter(|m| !m.life.is_over())
                .and_then(|m| m.handle.as_ref())
                .map(muster_core::front::Handle::view)
        })
        .collect();
    let Some(Some(first)) = views.first() else { return true };
    views.iter().all(|view| {
        view.as_ref().is_some_and(|view| {
            view.status.applied == first.status.applied
                && view.status.commit == first.status.commit
                && view.status.leader == first.status.leader
                && first.status.leader.0 != 0
                && view.state.head() == first.state.head()
        })
    })
}

fn describe(world: &Arc<World>) -> String {
    let mut lines = Vec::new();
    for (id, machine) in world.machines().iter() {
        let up = !machine.life.is_over();
        let line = match machine.handle.as_ref().filter(|_| up).map(muster_core::front::Handle::view) {
            Some(view) => {
                let s = &view.status;
                format!(
                    "r{id} {} term {} leader {} applied {} commit {} last {} of {:?}",
                    s.role.word(),
                    s.term,
                    s.leader,
                    s.applied,
                    s.commit,
                    s.last,
                    s.configuration.voters.iter().map(|id| id.0).collect::<Vec<_>>(),
                )
            }
            None if up => format!("r{id} starts"),
            None => {
                let fault = world.facts(|facts| facts.replicas.get(id).and_then(|known| known.fault.clone()));
                format!("r{id} is down{}", fault.map_or(String::new(), |why| format!(" ({why})")))
            }
        };
        lines.push(line);
    }
    lines.join("; ")
}

/// Waits until those that were healed have a leader, requests have ended and they agree. An error is what did not happen.
async fn calm_down(world: &Arc<World>, crowd: &Arc<Crowd>, healed: &BTreeSet<ReplicaId>) -> Result<(), String> {
    let times = world.scenario.time;
    // Who leads may be one that nothing was wrong with: what counts is that the healed follow somebody.
    if !until(world, world.scenario.expect.leader_within, || follow(world, healed)).await {
        return Err(format!("a leader within {} ms", world.scenario.expect.leader_within / MS));
    }
    until(world, times.heal / 4, || false).await;
    crowd.quiet.store(true, Ordering::Relaxed);
    let patience = world.scenario.load.patience + 10 * SECOND;
    if !until(world, patience, || crowd.busy.load(Ordering::Relaxed) == 0).await {
        return Err("every request to end".into());
    }
    if !until(world, times.heal, || agree(world, healed)).await {
        return Err(format!("the healed to agree within {} ms", times.heal / MS));
    }
    Ok(())
}

async fn heal(world: &Arc<World>, faults: &Arc<Faults>, crowd: &Arc<Crowd>, tally: &mut Tally) {
    let times = world.scenario.time;
    let spared = match spare(world) {
        Ok(spared) => spared,
        Err(why) => {
            // Operators may have made a minority out of a majority; else only a story beyond the budget comes to this.
            if world.scenario.budget() != Budget::Beyond && world.scenario.operations.is_empty() {
                let expected = "a quorum of disks that kept everything, as the budget wants it";
                return world.fail(LIVENESS, LIVENESS_SOURCE, Violation::new(expected, why));
            }
            tally.excused = Some(why);
            world.replicas().into_iter().collect()
        }
    };
    faults.heal(&spared);
    for id in &spared {
        replica::start(world, *id, None);
    }
    if let Err(what) = calm_down(world, crowd, &spared).await
        && tally.excused.is_none()
    {
        if world.scenario.operations.is_empty() || is_quorum(world, &spared) {
            let within = format!("{what}, with {:?} healed", spared.iter().map(|id| id.0).collect::<Vec<_>>());
            return world.fail(LIVENESS, LIVENESS_SOURCE, Violation::new(within, describe(world)));
        }
        tally.excused = Some("an operation took the quorum away from those that were healed".into());
    }
    world.emit(&Event::Phase("whole"));
    crowd.quiet.store(true, Ordering::Relaxed);
    let all: BTreeSet<ReplicaId> = world.replicas().into_iter().collect();
    faults.heal(&all);
    for id in &all {
        replica::start(world, *id, None);
    }
    let members: BTreeSet<ReplicaId> = world.facts(|facts| {
        let configuration = facts.newest_view().map(|view| view.status.configuration.clone()).unwrap_or_default();
        configuration.everybody().into_iter().filter(|id| !facts.forgot.contains(id)).collect()
    });
    if !until(world, times.heal, || agree(world, &members)).await && tally.excused.is_none() {
        let within = format!("all to agree within {} ms of the last fault's end", times.heal / MS);
        world.fail(LIVENESS, LIVENESS_SOURCE, Violation::new(within, describe(world)));
    }
    if tally.excused.is_none() && !until(world, times.heal, || crowd.behind.load(Ordering::Relaxed) == 0).await {
        let within = format!("every subscriber at the end within {} ms of the last fault's end", times.heal / MS);
        world.fail(LIVENESS, LIVENESS_SOURCE, Violation::new(within, describe(world)));
    }
    if tally.excused.is_none()
        && let Err(violation) = agents::rest::all(world).await
    {
        world.fail(AGENTS_REST, AGENTS_REST_SOURCE, violation);
    }
    // Views are told by their own task; let it.
    until(world, 50 * MS, || false).await;
    crate::audit::disks(world).await;
}

/// The property that fails when a run does not come to what its story is about.
pub const STORY: &str = "the story does what it is about";

fn expectations(world: &Arc<World>, crowd: &Crowd) {
    if world.excused().is_some() {
        return;
    }
    let expect = &world.scenario.expect;
    let acknowledged = crowd.acknowledged.load(Ordering::Relaxed);
    if acknowledged < expect.acknowledged {
        let expected = format!("at least {} acknowledged writes", expect.acknowledged);
        world.judge(STORY, "its own [expect]", Violation::new(expected, acknowledged.to_string()));
    }
}

/// Collects a trace's lines.
#[must_use]
pub fn lines() -> (Trace, Arc<Mutex<Vec<String>>>) {
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let into = lines.clone();
    let trace: Trace = Box::new(move |step, time, event| {
        into.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{step:>7} {time} {event}"));
    });
    (trace, lines)
}
