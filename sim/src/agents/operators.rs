//! Who works on nodes: people who ask agents, people who change nodes behind their agents' backs, processes that use what is
//! there, and others who declare something through the journal.
//!
//! What is scripted (`[[act]]`) happens when the story says; the rest is drawn at the story's rate.

use super::event::{AgentEvent, AgentId, By};
use super::rollout;
use super::{ask, name, tell, vcluster};
use crate::client::Client;
use crate::draw::Draw;
use crate::event::Event;
use crate::oracles::Violation;
use crate::run::STORY;
use crate::scenario::{Act, ActItem, ActOutcome, Agents, SECOND, Work};
use crate::world::World;
use muster_core::agent::operator::{Consent, Reply, Request, Returned, Which};
use muster_core::ids::{Seq, Time};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::entry::{Author, Change, EntryDraft, EntryType, Principal, Role};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::policy::Policy;
use muster_core::request::{Command, Outcome};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What is declared for every node with an agent.
const DECLARED: [(&str, &str); 4] = [
    ("kernel:vm.swappiness", "10"),
    ("files:/etc/motd", "welcome"),
    ("mounts:/data", "tmpfs tmpfs size=64m"),
    ("services:web", "running"),
];

/// Further keys that people work on.
const UNDECLARED: [&str; 3] = ["kernel:net.core.somaxconn", "files:/etc/issue", "files:/data/config"];

/// How long a person waits for an answer.
const PATIENCE: u64 = 30 * SECOND;

fn key(text: &str) -> Key {
    Key::new(text).expect("a good key")
}

fn value(text: &str) -> Setting {
    Setting::Value(text.into())
}

/// A person. The first is an administrator, the others are operators of the nodes' vCluster.
pub(crate) fn author(operator: u64) -> Author {
    let principal = Principal::Claimed { name: format!("operator-{operator}").as_str().into() };
    let role = if operator == 1 { Role::Admin } else { Role::Operator(vcluster()) };
    Author { principal, role }
}

fn draft(entry_type: EntryType, scope: Scope, changes: Vec<Change>, parent: Seq) -> Command {
    Command::Journal(JournalCommand::AppendEntry(EntryDraft {
        entry_type,
        scope,
        parent,
        based_on: None,
        changes,
        ttl_seconds: None,
        emergency_reason: None,
        message: "for the nodes".into(),
        occurred_at: None,
    }))
}

fn change(key: Key, next: Setting) -> Change {
    Change { key, previous: Setting::Unset, next }
}

fn policy(agents: &Agents) -> Policy {
    Policy {
        base_window_seconds: agents.base_window_seconds,
        emergency_window_seconds: agents.emergency_window_seconds,
        emergency_allowed: agents.emergency_allowed,
        mode: agents.mode,
        exec_allow: vec!["uptime".into()],
        ..Policy::default()
    }
}

fn now_declared(world: &World) -> Seq {
    world.facts(|facts| facts.committed.sequence())
}

/// Declares the nodes and what they are to be, and starts their agents.
///
/// # Errors
/// What was not recorded.
pub(crate) async fn begin(world: &Arc<World>, agents: &Agents) -> Result<(), String> {
    let mut client = Client::new(world.clone(), 5_000_000);
    let deadline = Time(world.now().0 + 60 * SECOND);
    let mut commands =
        vec![Command::Journal(JournalCommand::SetPolicy { vcluster: vcluster(), policy: policy(agents) })];
    let changes = DECLARED.map(|(name, is)| change(key(name), value(is))).to_vec();
    commands.push(draft(EntryType::Commit, Scope::VCluster(vcluster()), changes, Seq(0)));
    for agent in 1..=agents.count {
        let assign = vec![change(key("vcluster"), value(super::VCLUSTER))];
        commands.push(draft(EntryType::BootConfig, Scope::Node(name(agent)), assign, Seq(0)));
    }
    for command in commands {
        match client.write(command, deadline).await {
            Outcome::Applied { .. } => {}
            other => return Err(format!("a node was not declared: {other:?}")),
        }
    }
    super::add(world, agents.count);
    for agent in 1..=agents.count {
        super::start(world, agent);
    }
    Ok(())
}

/// Puts everybody to work.
pub(crate) fn work(world: &Arc<World>, agents: &Agents, began: Time) {
    for item in agents.acts.clone() {
        world.spawn(act(world.clone(), began, item));
    }
    if agents.rate_milli > 0 {
        for operator in 1..=agents.operators {
            world.spawn(Operator::new(world.clone(), operator).run());
        }
    }
}

/// Something is under way for as long as this lives.
struct Busy(Arc<World>);

impl Busy {
    fn new(world: &Arc<World>) -> Self {
        world.fleet.busy.fetch_add(1, Ordering::Relaxed);
        Self(world.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fleet.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Asks, and gives up after a while.
pub(crate) async fn ask_patiently(
    world: &Arc<World>,
    agent: AgentId,
    author: &Author,
    request: &Request,
) -> Option<Reply> {
    use futures_util::future::{Either, select};
    let asking = std::pin::pin!(ask(world, agent, author, request));
    let late = std::pin::pin!(world.agenda.sleep(PATIENCE));
    match select(asking, late).await {
        Either::Left((reply, _)) => reply,
        Either::Right(_) => None,
    }
}

/// What came of a request, in the words of stories.
pub(crate) fn outcome(reply: Option<&Reply>) -> ActOutcome {
    match reply {
        None => ActOutcome::Nothing,
        Some(
            Reply::Set { .. }
            | Reply::Committed { .. }
            | Reply::Returned(Returned::Done { .. })
            | Reply::Extended { .. }
            | Reply::EmergencyStarted { .. }
            | Reply::EmergencyEnded { .. }
            | Reply::Run { .. }
            | Reply::Noted
            | Reply::Report(_)
            | Reply::Forecast(_),
        ) => ActOutcome::Done,
        Some(Reply::Returned(Returned::Blocked { .. })) => ActOutcome::Blocked,
        Some(Reply::NotSet { .. } | Reply::Returned(Returned::Failed { .. })) => ActOutcome::Failed,
        Some(Reply::Refused(_)) => ActOutcome::Refused,
        Some(Reply::Unknown { .. }) => ActOutcome::Unknown,
    }
}

fn set(changes: Vec<(Key, Setting)>, merge: bool) -> Request {
    Request::Set { changes, consent: Consent::Yes, merge, message: "as asked".into() }
}

/// Somebody changes a node behind its agent's back.
fn tamper(world: &World, agent: AgentId, key: &Key, setting: &Setting) {
    let Some(hardware) = world.fleet.hardware(agent) else { return };
    let (from, to) = hardware.tamper(key, setting);
    tell(world, agent, AgentEvent::Changed { key: key.clone(), from, to, by: By::Somebody });
}

/// Declares something in the journal, without asking any agent.
async fn declare(world: &Arc<World>, who: u32, scope: Scope, changes: Vec<Change>) -> Outcome {
    let mut client = Client::new(world.clone(), 5_000_000 + who);
    let command = draft(EntryType::Commit, scope, changes, now_declared(world));
    client.write(command, Time(world.now().0 + 12 * SECOND)).await
}

fn targets(world: &World, item: &ActItem) -> Vec<AgentId> {
    item.agent.map_or_else(|| world.fleet.agents(), |agent| vec![agent])
}

async fn act(world: Arc<World>, began: Time, item: ActItem) {
    world.agenda.sleep_until(Time(began.0 + item.at)).await;
    if world.is_over() {
        return;
    }
    let _busy = Busy::new(&world);
    world.emit(&Event::Operation { id: item.id.clone(), what: item.act.to_string() });
    let author = author(item.by);
    let request = match &item.act {
        Act::Set { changes, merge } => set(changes.clone(), *merge),
        Act::Commit { all } => {
            let which = if *all { Which::All } else { Which::Own };
            Request::Commit { which, ttl_seconds: None, message: "it stays".into() }
        }
        Act::Rollback { all } => Request::Rollback { which: if *all { Which::All } else { Which::Own } },
        Act::Extend { seconds } => Request::Extend { seconds: *seconds },
        Act::Emergency { reason } => Request::EmergencyStart { reason: reason.clone() },
        Act::EndEmergency { force } => Request::EmergencyEnd { force: *force },
        Act::Exec { line } => Request::Exec { arguments: line.split_whitespace().map(Arc::from).collect() },
        Act::Behind { changes } => {
            for agent in targets(&world, &item) {
                for (key, setting) in changes {
                    tamper(&world, agent, key, setting);
                }
            }
            return;
        }
        Act::Declare { changes } => {
            let scope = item.agent.map_or_else(|| Scope::VCluster(vcluster()), |agent| Scope::Node(name(agent)));
            let changes = changes.iter().map(|(key, setting)| change(key.clone(), setting.clone())).collect();
            let became = declare(&world, 1_000 + crc32fast::hash(item.id.as_bytes()) % 1_000, scope, changes).await;
            let what = format!("{}", crate::event::OutcomeText(&became));
            return world.emit(&Event::Operation { id: item.id.clone(), what });
        }
        Act::Rollout(wanted) => return rollout::run(&world, &item.id, wanted, &author).await,
    };
    for agent in targets(&world, &item) {
        let reply = ask_patiently(&world, agent, &author, &request).await;
        let what = reply.as_ref().map_or_else(|| "no answer".into(), super::event::told);
        world.emit(&Event::Operation { id: item.id.clone(), what: what.clone() });
        let became = outcome(reply.as_ref());
        if let Some(expected) = item.outcome.filter(|expected| *expected != became) {
            let expected = format!("{} on a{agent} to be {}", item.id, expected.word());
            world.fail(STORY, "its own file", Violation::new(expected, what));
        }
    }
}

/// One person at work.
struct Operator {
    world: Arc<World>,
    number: u64,
    draw: Draw,
}

impl Operator {
    fn new(world: Arc<World>, number: u64) -> Self {
        let draw = world.draw("operator", number);
        Self { world, number, draw }
    }

    fn change(&mut self) -> (Key, Setting) {
        let known = DECLARED.len() + UNDECLARED.len();
        let place = self.draw.place(known);
        let name = DECLARED.get(place).map_or_else(|| UNDECLARED[place - DECLARED.len()], |(name, _)| *name);
        let number = self.draw.below(200_000);
        let setting = match name.split(':').next() {
            Some("kernel") => value(&number.to_string()),
            Some("mounts") if number.is_multiple_of(3) => Setting::Absent,
            Some("mounts") => value(&format!("tmpfs tmpfs size={}m", 16 + number % 100)),
            Some("services") => value(if number.is_multiple_of(2) { "running" } else { "stopped" }),
            Some(_) | None if number.is_multiple_of(7) => Setting::Absent,
            Some(_) | None => value(&format!("text {number}")),
        };
        (key(name), setting)
    }

    async fn run(mut self) {
        let agents = self.world.scenario.agents.clone().expect("there are agents");
        let pause = SECOND * 1_000 * agents.operators / agents.rate_milli;
        let total: u64 = agents.mix.iter().map(|(_, share)| share).sum();
        loop {
            let nanos = self.draw.around(pause).max(1_000_000);
            self.world.agenda.sleep(nanos).await;
            if self.world.is_over() || self.world.fleet.quiet.load(Ordering::Relaxed) {
                return;
            }
            let mut left = self.draw.below(total);
            let drawn = agents.mix.iter().find(|(_, share)| {
                let here = left < *share;
                left = left.saturating_sub(*share);
                here
            });
            let agent = u32::try_from(self.draw.between(1, u64::from(agents.count))).unwrap_or(1);
            let busy = Busy::new(&self.world);
            self.one(drawn.map_or(Work::Set, |(work, _)| *work), agent).await;
            drop(busy);
        }
    }

    async fn one(&mut self, work: Work, agent: AgentId) {
        let all = self.draw.percent(40);
        let which = if all { Which::All } else { Which::Own };
        let request = match work {
            Work::Set => {
                let mut changes = vec![self.change()];
                if self.draw.percent(30) {
                    let other = self.change();
                    changes.extend((other.0 != changes[0].0).then_some(other));
                }
                set(changes, self.draw.percent(20))
            }
            Work::Commit => Request::Commit { which, ttl_seconds: None, message: "it stays".into() },
            Work::Rollback => Request::Rollback { which },
            Work::Extend => Request::Extend { seconds: u32::try_from(self.draw.between(1, 10)).unwrap_or(1) },
            Work::Emergency => {
                let reason = if self.draw.percent(15) { "" } else { "the building is on fire" };
                Request::EmergencyStart { reason: reason.into() }
            }
            Work::EndEmergency => Request::EmergencyEnd { force: self.draw.percent(60) },
            Work::Exec => {
                let line = if self.draw.percent(80) { "uptime" } else { "reboot" };
                Request::Exec { arguments: vec![line.into()] }
            }
            Work::Behind => {
                let (key, setting) = self.change();
                return tamper(&self.world, agent, &key, &setting);
            }
            Work::Use => {
                let (key, _) = self.change();
                let Some(hardware) = self.world.fleet.hardware(agent) else { return };
                let pid = hardware.hold(&key);
                tell(&self.world, agent, AgentEvent::Held { key: key.clone(), begins: true });
                let (world, nanos) = (self.world.clone(), self.draw.around(4 * SECOND));
                self.world.agenda.after(nanos, move || {
                    if hardware.let_go(&key, pid) {
                        tell(&world, agent, AgentEvent::Held { key, begins: false });
                    }
                });
                return;
            }
            Work::Declare => {
                let (key, mut setting) = self.change();
                // What the kernel would cut off cannot be reached: that would be no more than a mistake of whoever declares it.
                if key.as_str().starts_with("kernel:") {
                    setting = value(&self.draw.below(100_000).to_string());
                }
                let scope = if self.draw.percent(60) { Scope::Node(name(agent)) } else { Scope::VCluster(vcluster()) };
                let who = u32::try_from(self.number).unwrap_or(0);
                drop(declare(&self.world, who, scope, vec![change(key, setting)]).await);
                return;
            }
        };
        drop(ask_patiently(&self.world, agent, &author(self.number), &request).await);
    }
}
