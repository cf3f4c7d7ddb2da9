//! A node in a test: the machine, a host that keeps rules, a disk that keeps what was synced, and the real journal's state.
//!
//! Nothing is replaced but devices: everything kept passes through the codec, every write through `State::apply`.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part of it")]

use crate::common::{alice, change, draft, first_member, node, vcluster};
use muster_core::agent::drift;
use muster_core::agent::effects::{
    Effects, HostDone, HostTask, HostWork, Input, JournalNews, JournalTask, Moment, Notice, Save, SaveNumber, Start,
    Ticket,
};
use muster_core::agent::event::{Event, Fact};
use muster_core::agent::host::{BootId, BootTime, Consumer, HostError, Observed};
use muster_core::agent::ledger::{Cause, Declared, Doing, Ledger};
use muster_core::agent::machine::{CONFLICT_GRACE_SECONDS, Machine, Settings};
use muster_core::agent::operator::{Consent, Refused, Reply, Report, Request, Which};
use muster_core::agent::value::agrees;
use muster_core::codec;
use muster_core::ids::{ClusterId, Index, OneShotId, Seq, WallTime};
use muster_core::journal::command::{ConfigState, JournalCommand};
use muster_core::journal::entry::{Author, ConfigEntry, EntryType, Principal, Record, Role};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::policy::{Mode, Policy};
use muster_core::limits::FEATURE_LEVEL;
use muster_core::members::Member;
use muster_core::request::{Command, NotApplied, Outcome, RequestId, UnknownWhy, WriteRequest};
use muster_core::state::{Proposal, State};
use muster_core::{boot, overlay};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub fn k(text: &str) -> Key {
    Key::new(text).unwrap()
}

pub fn v(text: &str) -> Setting {
    Setting::Value(Arc::from(text))
}

pub fn bob() -> Author {
    Author { principal: Principal::Claimed { name: Arc::from("bob") }, role: Role::Operator(vcluster(0)) }
}

pub fn agent() -> Author {
    Author { principal: Principal::Certificate { subject: Arc::from("CN=n0") }, role: Role::Agent(node(0)) }
}

/// The machine under the agent. A mount that has a mount inside is not unmounted; everything else is done as told.
#[derive(Clone, Debug, Default)]
pub struct SimHost {
    pub state: BTreeMap<Key, Setting>,
    /// What is there after a reboot, besides files.
    pub initial: BTreeMap<Key, Setting>,
    pub consumers: BTreeMap<Key, u32>,
    pub refuses: BTreeSet<Key>,
    /// Keys whose changes it says it made, and did not.
    pub pretends: BTreeSet<Key>,
    pub unseen: BTreeSet<Key>,
    /// Keys that had consumers when that was last asked.
    pub used_when_asked: BTreeSet<Key>,
    pub changes: Vec<(Key, Setting)>,
}

impl SimHost {
    pub fn get(&self, key: &Key) -> Setting {
        self.state.get(key).cloned().unwrap_or(Setting::Absent)
    }

    fn observe(&self, keys: &[Key]) -> BTreeMap<Key, Observed> {
        let look = |key: &Key| match self.get(key) {
            _ if self.unseen.contains(key) => Observed::Unseen(Arc::from("no such device")),
            Setting::Value(value) => Observed::Value(value),
            Setting::Absent | Setting::Unset => Observed::Absent,
        };
        keys.iter().map(|key| (key.clone(), look(key))).collect()
    }

    fn change(&mut self, key: &Key, setting: &Setting) -> Result<(), HostError> {
        let refuse = |problem: &str| Err(HostError { key: key.clone(), problem: Arc::from(problem) });
        self.changes.push((key.clone(), setting.clone()));
        if self.refuses.contains(key) {
            return refuse("read-only file system");
        }
        if self.pretends.contains(key) {
            return Ok(());
        }
        let inside = format!("{key}/");
        let has_inside =
            self.state.iter().any(|(other, is)| other.as_str().starts_with(&inside) && matches!(is, Setting::Value(_)));
        if key.as_str().starts_with("mounts:") && *setting == Setting::Absent && has_inside {
            return refuse("device is busy: a mount lies inside");
        }
        match setting {
            Setting::Unset => panic!("{key} is to be made unset"),
            Setting::Absent => self.state.remove(key),
            Setting::Value(_) => self.state.insert(key.clone(), setting.clone()),
        };
        Ok(())
    }
}

/// What was synced.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub ledger: Option<Vec<u8>>,
    pub declared: BTreeMap<Seq, Vec<u8>>,
    pub events: BTreeMap<u64, Vec<u8>>,
}

impl Disk {
    fn save(&mut self, save: &Save) {
        for event in &save.events {
            self.events.insert(event.number, codec::encode_event(event).to_vec());
        }
        if let Some(declared) = &save.declared {
            self.declared.insert(declared.sequence, codec::encode_declared(declared).to_vec());
        }
        self.ledger = Some(codec::encode_ledger(&save.ledger).to_vec());
        self.declared.retain(|sequence, _| Some(*sequence) >= save.ledger.declared);
        self.events.retain(|number, _| *number > save.ledger.spool.delivered);
    }

    pub fn ledger(&self) -> Option<Ledger> {
        self.ledger.as_ref().map(|bytes| codec::decode_ledger(bytes).unwrap())
    }

    fn start(&self, boot: BootId) -> Start {
        let ledger = self.ledger();
        let declared = ledger.as_ref().and_then(|ledger| self.declared.get(&ledger.declared?));
        let declared = declared.map(|bytes| codec::decode_declared(bytes).unwrap());
        let spool = self.events.values().map(|bytes| codec::decode_event(bytes).unwrap()).collect();
        Start { boot, ledger, declared, spool, repairs: Vec::new() }
    }
}

/// Something the driver still has to do.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a handful wait at a time")]
pub enum Todo {
    Save(Save),
    Host(HostTask),
    Journal(JournalTask),
}

pub struct World {
    pub machine: Option<Machine>,
    pub host: SimHost,
    pub disk: Disk,
    pub state: State,
    pub records: Vec<Record>,
    index: u64,
    pub up: bool,
    /// Answers of the journal that get lost on the way back.
    pub lost_answers: u32,
    pub boot: u64,
    pub now: Moment,
    pub wake: Option<BootTime>,
    pub todo: VecDeque<Todo>,
    pub replies: BTreeMap<Ticket, Reply>,
    pub tickets: u64,
    pub notices: Vec<Notice>,
    watched: BTreeSet<Key>,
    told: Seq,
    runs: u128,
    ids: u128,
    /// Every event that a ledger on disk ever counted.
    pub events: BTreeMap<u64, Event>,
    /// The last known end of each window, and whether it may have moved later since, because it was frozen.
    windows: BTreeMap<u64, (BootTime, bool)>,
    /// How often somebody asked for an extension that was not seen yet.
    extensions: u32,
    /// By when keys are to be what is declared again, as was told.
    promised: BTreeMap<Key, BootTime>,
    asked: BTreeMap<Ticket, Request>,
    pub grace: u64,
}

impl World {
    /// A node `n0` of the vCluster `hpc-a`, with these settings declared for the vCluster, booted and idle.
    pub fn new(policy: Policy, declared: &[(&str, &str)]) -> Self {
        let mut world = Self::unbooted(policy, declared);
        world.start();
        world.settle();
        world
    }

    pub fn unbooted(policy: Policy, declared: &[(&str, &str)]) -> Self {
        let mut world = Self::unknown();
        world.assign(policy);
        if !declared.is_empty() {
            let changes: Vec<_> = declared.iter().map(|(key, value)| (*key, Some(*value))).collect();
            world.declare(EntryType::Commit, Scope::VCluster(vcluster(0)), &changes);
        }
        world
    }

    /// A node of which the journal knows nothing.
    pub fn unknown() -> Self {
        let first = Member { feature_level: FEATURE_LEVEL, ..first_member() };
        Self {
            machine: None,
            host: SimHost::default(),
            disk: Disk::default(),
            state: State::new(ClusterId(7), first),
            records: Vec::new(),
            index: 0,
            up: true,
            lost_answers: 0,
            boot: 1,
            now: Moment { boot: BootTime(1_000_000_000), wall: WallTime(1_700_000_000_000) },
            wake: None,
            todo: VecDeque::new(),
            replies: BTreeMap::new(),
            tickets: 0,
            notices: Vec::new(),
            watched: BTreeSet::new(),
            told: Seq(0),
            runs: 0,
            ids: 0,
            events: BTreeMap::new(),
            windows: BTreeMap::new(),
            extensions: 0,
            promised: BTreeMap::new(),
            asked: BTreeMap::new(),
            grace: CONFLICT_GRACE_SECONDS,
        }
    }

    // ---- the journal ----

    /// Makes the node known, as one of the vCluster `hpc-a`.
    pub fn assign(&mut self, policy: Policy) {
        self.give(JournalCommand::SetPolicy { vcluster: vcluster(0), policy });
        self.declare(EntryType::BootConfig, Scope::Node(node(0)), &[("vcluster", Some("hpc-a"))]);
    }

    fn apply(&mut self, write: WriteRequest) -> Outcome {
        self.index += 1;
        let proposal = Proposal { write, recorded_at: self.now.wall, elapsed: 1_000 };
        let (outcome, finished) = self.state.apply(Index(self.index), proposal);
        for record in finished {
            self.records.push(codec::decode_record(&record.bytes).unwrap());
        }
        outcome
    }

    pub fn give(&mut self, command: JournalCommand) -> Outcome {
        self.ids += 1;
        let request = RequestId::OneShot { id: OneShotId(self.ids), drawn_at: self.state.age() };
        let outcome = self.apply(WriteRequest { request, author: alice(), command: Command::Journal(command) });
        assert!(matches!(outcome, Outcome::Applied { .. }), "{outcome:?}");
        outcome
    }

    pub fn declare(&mut self, entry_type: EntryType, scope: Scope, changes: &[(&str, Option<&str>)]) {
        let mut entry = draft(entry_type, scope, self.state.sequence());
        let setting = |value: Option<&str>| value.map_or(Setting::Absent, v);
        entry.changes = changes.iter().map(|(key, value)| change(k(key), setting(*value))).collect();
        self.give(JournalCommand::AppendEntry(entry));
    }

    /// Declares for the whole vCluster.
    pub fn commit(&mut self, key: &str, value: &str) {
        self.declare(EntryType::Commit, Scope::VCluster(vcluster(0)), &[(key, Some(value))]);
    }

    /// Lets the cluster grow old.
    pub fn age(&mut self, seconds: u64) {
        let write =
            WriteRequest { request: RequestId::None, author: Author::system("expiry"), command: Command::Expire };
        self.index += 1;
        let proposal = Proposal { write, recorded_at: self.now.wall, elapsed: seconds * 1_000_000 };
        self.state.apply(Index(self.index), proposal);
    }

    pub fn node_state(&self) -> ConfigState {
        self.state.journal.node(&node(0)).unwrap().state
    }

    /// The node's own entries of one kind.
    pub fn entries(&self, kind: EntryType) -> Vec<ConfigEntry> {
        let entries = self.records.iter().filter_map(|record| match record {
            Record::Entry(entry) if entry.entry_type == kind && entry.scope == Scope::Node(node(0)) => {
                Some(entry.clone())
            }
            Record::Entry(_) | Record::Operation(_) => None,
        });
        entries.collect()
    }

    pub fn messages(&self, kind: EntryType) -> Vec<String> {
        self.entries(kind).iter().map(|entry| entry.message.to_string()).collect()
    }

    /// What a boot says at this moment.
    pub fn declared(&self) -> Declared {
        let overlay = overlay::build(&self.state, &vcluster(0)).unwrap();
        let plan = boot::plan_with(&self.state, &node(0), overlay.clone()).unwrap();
        let delta = muster_core::journal::document::parse(std::str::from_utf8(&plan.delta).unwrap()).unwrap();
        Declared::from_boot(&overlay::open(&overlay).unwrap(), &delta).unwrap()
    }

    // ---- the process ----

    pub fn start(&mut self) {
        self.begin(Vec::new());
    }

    /// Starts with something that was repaired.
    pub fn start_after_repair(&mut self, repair: &str) {
        self.begin(vec![Arc::from(repair)]);
    }

    fn begin(&mut self, repairs: Vec<Arc<str>>) {
        self.runs += 1;
        let settings = Settings { node: node(0), author: agent(), seed: self.runs, conflict_grace_seconds: self.grace };
        let boot = BootId(Arc::from(format!("boot-{}", self.boot)));
        let (machine, effects) = Machine::start(settings, self.now, Start { repairs, ..self.disk.start(boot) });
        self.machine = Some(machine);
        self.watched = BTreeSet::new();
        self.told = Seq(0);
        self.take(effects);
        if self.up {
            self.connect();
        } else {
            self.input(Input::Journal(JournalNews::Down { why: Arc::from("cut off") }));
        }
    }

    /// The process is killed: what was not carried out never is.
    pub fn kill(&mut self) {
        self.machine = None;
        self.todo.clear();
        self.wake = None;
    }

    /// The machine restarts.
    pub fn reboot(&mut self) {
        self.kill();
        self.boot += 1;
        self.now.boot = BootTime(5_000_000_000);
        self.host.state.retain(|key, _| key.as_str().starts_with("files:"));
        self.host.state.extend(self.host.initial.clone());
        self.host.used_when_asked.clear();
        self.host.consumers.clear();
        self.promised.clear();
    }

    pub fn connect(&mut self) {
        self.up = true;
        if self.machine.is_some() {
            let age = self.state.age();
            self.input(Input::Journal(JournalNews::Up { age }));
            self.told = Seq(0);
        }
    }

    pub fn disconnect(&mut self) {
        self.up = false;
        if self.machine.is_some() {
            self.input(Input::Journal(JournalNews::Down { why: Arc::from("cut off") }));
        }
    }

    pub fn input(&mut self, input: Input) {
        let Some(machine) = &mut self.machine else { return };
        let effects = machine.step(self.now, input);
        self.take(effects);
    }

    fn take(&mut self, effects: Effects) {
        let Effects { save, host, journal, replies, watch, notices, wake_at, changed: _ } = effects;
        self.todo.extend(save.map(Todo::Save));
        self.todo.extend(host.into_iter().map(Todo::Host));
        self.todo.extend(journal.into_iter().map(Todo::Journal));
        for (ticket, reply) in replies {
            self.note_reply(ticket, &reply);
            assert!(self.replies.insert(ticket, reply).is_none(), "{ticket:?} is answered twice");
        }
        if let Some(watch) = watch {
            self.watched = watch.into_iter().collect();
        }
        self.notices.extend(notices);
        self.wake = wake_at.map(|(at, _)| at);
    }

    /// What an answer promises.
    fn note_reply(&mut self, ticket: Ticket, reply: &Reply) {
        let asked = self.asked.remove(&ticket);
        match (asked, reply) {
            (Some(Request::Set { changes, .. }), Reply::Set { window, .. }) => {
                let suspended = self.disk.ledger().is_some_and(|ledger| suspended(&ledger));
                let window = window.as_ref().filter(|_| !suspended);
                for (key, _) in changes {
                    match window.filter(|window| window.frozen.is_none()) {
                        Some(window) => self.promised.insert(key, self.now.boot.plus_seconds(window.seconds_left + 1)),
                        None => self.promised.remove(&key),
                    };
                }
            }
            (_, Reply::Extended { window }) => {
                for by in self.promised.values_mut() {
                    *by = (*by).max(self.now.boot.plus_seconds(window.seconds_left + 1));
                }
            }
            _ => {}
        }
    }

    /// With nothing left to do, whatever was told holds.
    pub fn check_at_rest(&self) {
        let Some(machine) = &self.machine else { return };
        let report = machine.report(self.now);
        let waits_for_commit = report.commit_unknown;
        if let Some(window) = &report.window
            && window.frozen.is_none()
            && window.seconds_left == 0
            && !waits_for_commit
        {
            let overdue: Vec<_> = report.differences.iter().filter(|d| d.conflict_seconds.is_none()).collect();
            assert!(overdue.is_empty(), "the window is over and nothing rolls back: {overdue:?}");
        }
        if waits_for_commit || report.phase == muster_core::agent::operator::Phase::Booting {
            return;
        }
        for (key, by) in &self.promised {
            if *by <= self.now.boot {
                let late = report.differences.iter().find(|d| d.key == *key && d.change.0 > 0);
                let is_new = late.is_some_and(|_| report.window.as_ref().is_some_and(|w| w.seconds_left > 0));
                assert!(late.is_none() || is_new, "{key} was to be back by {by:?}, it is {:?}", self.now.boot);
            }
        }
    }

    /// Carries out one thing of the first `choices` (saves stay in order).
    pub fn carry_out(&mut self, choice: usize) {
        let at = choice % self.todo.len();
        let first_of_kind = |todo: &Todo| match (&self.todo[at], todo) {
            (Todo::Save(_), Todo::Save(_)) | (Todo::Host(_), Todo::Host(_)) => true,
            (Todo::Save(_) | Todo::Host(_) | Todo::Journal(_), _) => false,
        };
        let at = self.todo.iter().position(first_of_kind).unwrap_or(at);
        match self.todo.remove(at).unwrap() {
            Todo::Save(save) => {
                self.note_saved(&save);
                self.disk.save(&save);
                self.input(Input::Saved(save.number));
            }
            Todo::Host(task) => self.host_work(task),
            Todo::Journal(task) => self.journal_work(task),
        }
    }

    fn note_saved(&mut self, save: &Save) {
        let SaveNumber(_) = save.number;
        for event in &save.events {
            self.events.insert(event.number, event.clone());
        }
        let ledger = &save.ledger;
        if let Some(before) = self.disk.ledger().filter(|before| before.boot == ledger.boot)
            && let (Some(window), Some(Doing::Setting { .. }), None) =
                (&before.window, &ledger.doing, &ledger.emergency)
        {
            let now = ledger.window.as_ref().map(|window| window.number);
            assert_eq!(now, Some(window.number), "a window ends before what is being set was seen to be done");
        }
        if let Some(window) = &ledger.window {
            let (deadline, may_move) = self.windows.entry(window.number).or_insert((window.deadline, false));
            // One that is over may thaw, and is over then.
            if window.deadline > (*deadline).max(self.now.boot) && !*may_move {
                assert!(self.extensions > 0, "window {} moved later", window.number);
                self.extensions -= 1;
            }
            *deadline = window.deadline;
            *may_move = window.frozen.is_some();
        }
        if suspended(ledger) {
            self.promised.clear();
        }
    }

    fn host_work(&mut self, HostTask { task, work }: HostTask) {
        let done = match work {
            HostWork::Observe(keys) => HostDone::Observed(self.host.observe(&keys)),
            HostWork::Check(wanted) => HostDone::Checked(wanted.into_iter().map(Ok).collect()),
            HostWork::Consumers(keys) => {
                let used = keys.iter().filter(|key| self.host.consumers.contains_key(*key)).cloned();
                self.host.used_when_asked = used.collect();
                let consumers = self.host.used_when_asked.iter().map(|key| Consumer {
                    key: key.clone(),
                    pid: self.host.consumers[key],
                    command: Arc::from("vi"),
                    path: Arc::from("/somewhere"),
                });
                HostDone::Consumers(consumers.collect())
            }
            HostWork::Change { key, setting } => {
                self.check_promises_before(&key);
                HostDone::Changed(self.host.change(&key, &setting))
            }
        };
        self.input(Input::Host { task, done });
    }

    /// A change of the host is begun only with what it needs on disk.
    fn check_promises_before(&self, key: &Key) {
        let ledger = self.disk.ledger().expect("a change of the host before any ledger");
        match ledger.doing.as_ref().expect("a change of the host for nothing that is on disk") {
            Doing::Setting { keys, .. } => {
                assert!(keys.contains_key(key), "{key} is set, and what it was is not on disk");
                let change = ledger.changes.get(key).expect("a key is set, and its owner is not on disk");
                let declared = ledger.declared.and_then(|sequence| self.disk.declared.get(&sequence));
                let declared = declared.map(|bytes| codec::decode_declared(bytes).unwrap());
                let policy = declared.as_ref().map(|declared| declared.policy.clone()).unwrap_or_default();
                let committed = ledger.committed.get(key).map(|(_, setting)| setting.clone());
                let baseline = committed.or_else(|| declared?.settings.get(key).cloned());
                let is = match &change.value {
                    Setting::Value(value) => Observed::Value(value.clone()),
                    Setting::Absent | Setting::Unset => Observed::Absent,
                };
                let drifts = !agrees(key, &baseline.unwrap_or_else(|| change.before.clone()), &is);
                let counts = key.dimension().is_some_and(|dimension| drift::weight(&policy, dimension).0 > 0);
                if drifts && counts && policy.mode == Mode::Enforce && ledger.emergency.is_none() {
                    assert!(ledger.window.is_some(), "{key} is set, and its deadline is not on disk");
                }
            }
            Doing::Returning { keys, cause } => {
                assert!(keys.contains(key) || *cause == Cause::Boot, "{key} is brought back, and disk does not know");
                assert!(!self.host.used_when_asked.contains(key), "{key} is touched and has a consumer");
                if matches!(cause, Cause::Expired | Cause::Conflict) {
                    assert!(ledger.emergency.is_none(), "a rollback by itself in an emergency");
                }
            }
        }
    }

    fn journal_work(&mut self, task: JournalTask) {
        let news = match task {
            JournalTask::Age if self.up => JournalNews::Up { age: self.state.age() },
            JournalTask::Age => JournalNews::Down { why: Arc::from("cut off") },
            JournalTask::Write { ask, .. } if !self.up => {
                JournalNews::Wrote { ask, outcome: Outcome::NotApplied(NotApplied::NoQuorum) }
            }
            JournalTask::Write { ask, write } => {
                let mut outcome = self.apply(write);
                if self.lost_answers > 0 {
                    self.lost_answers -= 1;
                    outcome = Outcome::Unknown(UnknownWhy::ConnectionLost);
                }
                JournalNews::Wrote { ask, outcome }
            }
            JournalTask::Look { ask, .. } if !self.up => JournalNews::Looked { ask, found: Err(()) },
            JournalTask::Look { ask, event } => {
                let found = self.records.iter().rev().find(|record| event.is_recorded_by(&node(0), record));
                JournalNews::Looked { ask, found: Ok(found.map(Record::sequence)) }
            }
        };
        self.input(Input::Journal(news));
    }

    /// Tells what is declared, if an entry touched it since and the journal knows the node.
    pub fn tell_declared(&mut self) -> bool {
        if !self.up || self.machine.is_none() || self.state.sequence() == self.told {
            return false;
        }
        if self.state.journal.node(&node(0)).is_none() {
            return false;
        }
        self.told = self.state.sequence();
        let declared = self.declared();
        self.input(Input::Declared(declared));
        true
    }

    /// Carries out everything but what is for the journal, and gives that: it is on its way.
    pub fn on_its_way(&mut self) -> Vec<Todo> {
        while let Some(at) = self.todo.iter().position(|todo| !matches!(todo, Todo::Journal(_))) {
            self.carry_out(at);
        }
        self.todo.drain(..).collect()
    }

    /// Carries everything out, until nothing is left to do at this moment.
    pub fn settle(&mut self) {
        let mut rounds = 0;
        loop {
            rounds += 1;
            assert!(rounds < 100_000, "the machine never comes to rest: {:?}", self.todo);
            if !self.todo.is_empty() {
                self.carry_out(0);
            } else if !self.tell_declared() {
                break;
            }
        }
    }

    // ---- time ----

    /// Time passes, and nothing is done.
    pub fn advance(&mut self, seconds: u64) {
        self.now.boot = self.now.boot.plus_seconds(seconds);
        self.now.wall = WallTime(self.now.wall.0 + seconds * 1_000);
        self.input(Input::Wake);
    }

    pub fn pass(&mut self, seconds: u64) {
        let until = self.now.boot.plus_seconds(seconds);
        self.settle();
        while let Some(at) = self.wake.filter(|at| *at <= until) {
            let at = at.max(self.now.boot);
            self.now.wall = WallTime(self.now.wall.0 + (at.0 - self.now.boot.0) / 1_000_000);
            self.now.boot = at;
            self.input(Input::Wake);
            self.settle();
        }
        self.now.wall = WallTime(self.now.wall.0 + (until.0 - self.now.boot.0) / 1_000_000);
        self.now.boot = until;
        self.input(Input::Wake);
        self.settle();
    }

    // ---- people ----

    pub fn ask(&mut self, author: Author, request: Request) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        if matches!(request, Request::Extend { .. }) {
            self.extensions += 1;
        }
        self.asked.insert(ticket, request.clone());
        self.input(Input::Asked { ticket, author, request });
        ticket
    }

    pub fn answer(&mut self, author: Author, request: Request) -> Reply {
        let ticket = self.ask(author, request);
        self.settle();
        self.replies.remove(&ticket).unwrap_or_else(|| panic!("{ticket:?} is not answered"))
    }

    pub fn set(&mut self, author: Author, key: &str, value: &str) -> Reply {
        self.answer(author, set(&[(key, value)], Consent::Yes))
    }

    pub fn rollback(&mut self, author: Author, which: Which) -> Reply {
        self.answer(author, Request::Rollback { which })
    }

    pub fn stand_by(&mut self, author: Author, which: Which) -> Reply {
        self.answer(author, Request::Commit { which, ttl_seconds: None, message: Arc::from("because") })
    }

    pub fn emergency(&mut self, author: Author, reason: &str) -> Reply {
        self.answer(author, Request::EmergencyStart { reason: Arc::from(reason) })
    }

    pub fn end_emergency(&mut self, author: Author, force: bool) -> Reply {
        self.answer(author, Request::EmergencyEnd { force })
    }

    /// Somebody changes the machine behind the agent's back.
    pub fn meddle(&mut self, key: &str, setting: Setting) {
        let key = k(key);
        match setting {
            Setting::Value(_) => self.host.state.insert(key.clone(), setting),
            Setting::Absent | Setting::Unset => self.host.state.remove(&key),
        };
        if self.watched.contains(&key) {
            let seen = self.host.observe(std::slice::from_ref(&key));
            self.input(Input::Observed(seen));
        }
    }

    pub fn report(&self) -> Report {
        self.machine.as_ref().unwrap().report(self.now)
    }

    pub fn is(&self, key: &str) -> Setting {
        self.host.get(&k(key))
    }

    /// Whether the host is what the journal declares, for every key it declares.
    pub fn undeclared(&self) -> Vec<String> {
        let declared = boot::declared(&self.state, &node(0));
        let observed = self.host.observe(&declared.keys().cloned().collect::<Vec<_>>());
        let differing =
            declared.iter().filter(|(key, setting)| !key.is_vcluster() && !agrees(key, setting, &observed[*key]));
        differing.map(|(key, setting)| format!("{key} is {}, declared is {setting}", self.host.get(key))).collect()
    }

    /// Every event that counted was recorded, once: each has a record of its own, and no record is left over.
    pub fn check_story(&self) {
        let mut used = BTreeSet::new();
        let matches = |event: &Event, record: &Record| event.is_recorded_by(&node(0), record);
        for event in self.events.values() {
            let mut records = self.records.iter().filter(|record| matches(event, record)).map(Record::sequence);
            let own = records.find(|sequence| used.insert(*sequence));
            match event.fact {
                // A commit that was given to the journal directly may have ended the emergency there.
                Fact::State { .. } | Fact::EmergencyEnd { .. } => {}
                Fact::Drift { .. }
                | Fact::Undone { .. }
                | Fact::EmergencyStart { .. }
                | Fact::Operation { .. }
                | Fact::Note { .. } => assert!(own.is_some(), "event {} is lost: {event:?}", event.number),
            }
        }
        for record in self.records.iter().filter(|record| !used.contains(&record.sequence())) {
            let event = self.events.values().find(|event| matches(event, record));
            assert!(event.is_none(), "{event:?} is recorded twice, the second time at {}", record.sequence());
        }
    }
}

/// Whether what was told of windows is put off.
fn suspended(ledger: &Ledger) -> bool {
    let frozen = ledger.window.as_ref().is_some_and(|window| window.frozen.is_some());
    frozen || ledger.emergency.is_some() || !ledger.conflicts.is_empty()
}

pub fn set(changes: &[(&str, &str)], consent: Consent) -> Request {
    let changes = changes.iter().map(|(key, value)| (k(key), v(value))).collect();
    Request::Set { changes, consent, merge: false, message: Arc::from("") }
}

pub fn refused(reply: Reply) -> Refused {
    match reply {
        Reply::Refused(refused) => refused,
        other => panic!("not refused: {other:?}"),
    }
}
