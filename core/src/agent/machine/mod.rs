//! The agent's machine: told what happens, it says what to do.
//!
//! One thing at a time is done to the host (an *activity*); whatever else is asked waits for it in order. What is going on with
//! the journal goes on beside it.
//!
//! Invariants
//! - nothing leaves before the save it rests on was reported: no change of the host, no request, no reply;
//! - every key that differs has an owner in the ledger, and only those have one;
//! - a window is open exactly while something that counts differs, the policy enforces and there is no emergency; while a change
//!   is being made it stays open, since what is set back may yet be taken back;
//! - the same inputs at the same moments give the same effects: no clock, no entropy but the seed.
//!
//! Read next: [`differences`] (what differs, and the window), [`declaring`] (what the journal says, and booting),
//! [`returning`] (bringing keys back), [`setting`], [`committing`], [`requests`] (what operators ask), [`forwarding`] (the
//! journal's side), [`spool`] (what waits for it), [`showing`].

mod committing;
mod declaring;
mod differences;
mod forwarding;
mod requests;
mod returning;
mod setting;
mod showing;
mod spool;

use super::effects::{
    AskId, Effects, HostDone, HostTask, HostWork, Input, JournalTask, Level, Moment, Notice, Save, SaveNumber, Start,
    TaskId, Ticket, WakeReason,
};
use super::event::{Event, Fact};
use super::host::{BootTime, HostError, Observed};
use super::ledger::{Cause, Declared, Doing, Ledger};
use super::operator::{Refused, Reply, Request};
use super::plan::Step;
use crate::ids::{NodeId, OneShotId, Seq, WallTime};
use crate::journal::entry::{Author, Change};
use crate::journal::key::{Key, Setting};
use crate::journal::policy::{Mode, Policy};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use committing::WantedCommit;
use declaring::Boot;
use forwarding::{Ask, Link};
pub use requests::SHELL_WORD;
use requests::WantedRun;
use returning::Returning;
use setting::{SetRequest, Settled};
use spool::Spool;
pub use spool::{SPOOL, SpoolLimits};

/// Most requests that wait for the host.
const QUEUE_MAX: usize = 64;

/// How long the journal's value waits for somebody to decide about a key that was changed here too, in seconds.
pub const CONFLICT_GRACE_SECONDS: u64 = 300;

/// What a machine is told once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node it looks after.
    pub node: NodeId,
    /// In whose name it writes what nobody asked for.
    pub author: Author,
    /// Drawn for every run: request ids follow from it.
    pub seed: u128,
    /// How long a conflicting key stands still before the journal's value wins. More gives operators time; less keeps the
    /// node closer to its declaration. [`CONFLICT_GRACE_SECONDS`] unless configured.
    pub conflict_grace_seconds: u64,
}

/// What is being done to the host.
#[derive(Debug)]
enum Activity {
    Idle,
    /// Looking at keys.
    Looking {
        task: TaskId,
        then: Then,
    },
    /// Asking whether values fit.
    Checking {
        task: TaskId,
        set: SetRequest,
    },
    /// Asking who uses what would be brought back.
    Asking {
        task: TaskId,
        returning: Returning,
        steps: Vec<Step>,
    },
    /// Carrying out steps, one by one.
    Changing {
        task: TaskId,
        work: Work,
    },
}

/// Why keys are looked at.
#[derive(Debug)]
enum Then {
    /// The process started.
    Start,
    /// They are to be set.
    Set(SetRequest),
    /// They are to be committed.
    Commit(WantedCommit),
    /// They are to be brought back.
    Return(Returning),
    /// They were changed.
    Verify(Work),
}

/// Steps under way.
#[derive(Debug)]
struct Work {
    steps: Vec<Step>,
    next: usize,
    errors: BTreeMap<Key, HostError>,
    purpose: Purpose,
}

#[derive(Debug)]
enum Purpose {
    Set(Settled),
    Return(Returning),
}

/// Something that must not leave before a save.
#[derive(Debug)]
enum Held {
    Host(HostTask),
    Journal(JournalTask),
    Reply(Ticket, Reply),
}

/// An operator's request that waits.
#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    author: Author,
    request: Request,
}

/// An agent's decisions.
#[derive(Debug)]
pub struct Machine {
    settings: Settings,
    now: Moment,
    ledger: Ledger,
    declared: Option<Arc<Declared>>,
    /// What the journal declares since, not accepted yet.
    offered: Option<Declared>,
    /// What managed keys were when they were last looked at.
    observed: BTreeMap<Key, Observed>,
    /// The events that the journal does not have, in order.
    spool: Spool,
    /// The highest sequence of the journal heard of.
    known: Seq,
    boot: Boot,
    /// What the ledger says was being done is to be taken up again.
    resumes: bool,
    activity: Activity,
    queue: VecDeque<Waiting>,
    wanted_commit: Option<WantedCommit>,
    wanted_runs: VecDeque<WantedRun>,
    link: Link,
    asks: BTreeMap<AskId, Ask>,
    /// Who waits for an event to reach the journal.
    awaiting: BTreeMap<u64, Ticket>,
    watched: BTreeSet<Key>,
    saved: SaveNumber,
    save: SaveNumber,
    /// The ledger as of the last save.
    kept: Arc<Ledger>,
    new_events: Vec<Event>,
    new_declared: Option<Arc<Declared>>,
    held: VecDeque<(SaveNumber, Held)>,
    /// What is held since the last save was numbered.
    fresh: VecDeque<Held>,
    drawn: u64,
    last_task: u64,
    last_ask: u64,
    effects: Effects,
}

impl Machine {
    /// An agent that begins, or goes on, with what its disk held.
    #[must_use]
    pub fn start(settings: Settings, now: Moment, start: Start) -> (Self, Effects) {
        let Start { boot, ledger, declared, spool, repairs } = start;
        let found = ledger.is_some();
        let ledger = ledger.unwrap_or_else(|| Ledger::new(boot.clone()));
        let declared = declared.filter(|declared| ledger.declared == Some(declared.sequence)).map(Arc::new);
        let known = ledger.committed.values().map(|(sequence, _)| *sequence).chain(ledger.declared).max();
        let mut machine = Self {
            settings,
            now,
            declared,
            offered: None,
            observed: BTreeMap::new(),
            spool: Spool::default(),
            known: known.unwrap_or_default(),
            boot: Boot::Done,
            resumes: false,
            activity: Activity::Idle,
            queue: VecDeque::new(),
            wanted_commit: None,
            wanted_runs: VecDeque::new(),
            link: Link::default(),
            asks: BTreeMap::new(),
            awaiting: BTreeMap::new(),
            watched: BTreeSet::new(),
            saved: SaveNumber(0),
            save: SaveNumber(0),
            kept: Arc::new(ledger.clone()),
            ledger,
            new_events: Vec::new(),
            new_declared: None,
            held: VecDeque::new(),
            fresh: VecDeque::new(),
            drawn: 0,
            last_task: 0,
            last_ask: 0,
            effects: Effects::default(),
        };
        machine.take_up_spool(found, spool);
        for repair in &repairs {
            machine.notice(Level::Warn, repair.clone());
            if machine.spool.is_crowded() {
                continue;
            }
            machine.event(machine.settings.author.clone(), Fact::Note { message: clipped(repair) });
        }
        machine.begin_boot(boot, found, !found && !repairs.is_empty());
        machine.proceed();
        let effects = machine.settle();
        (machine, effects)
    }

    /// Something happened.
    ///
    /// # Panics
    /// On a bug of ours, or of a driver that lets time since boot go backwards.
    pub fn step(&mut self, now: Moment, input: Input) -> Effects {
        assert!(now.boot >= self.now.boot, "time since boot went backwards within one boot");
        self.now = now;
        match input {
            Input::Declared(declared) => self.on_declared(declared),
            Input::Observed(seen) => self.on_observed(seen),
            Input::Host { task, done } => self.on_host(task, done),
            Input::Saved(number) => self.saved = self.saved.max(number.min(self.save)),
            Input::Journal(news) => self.on_journal(news),
            Input::Asked { ticket, author, request } => self.on_asked(ticket, author, request),
            Input::Wake => {}
        }
        self.proceed();
        self.settle()
    }

    /// Begins whatever is due, as long as the host is free, and sends whatever the journal can take.
    fn proceed(&mut self) {
        self.alert_emergency();
        while matches!(self.activity, Activity::Idle) && self.begin_next() {}
        self.pump();
    }

    /// Begins the next thing that is due; false if there is none.
    fn begin_next(&mut self) -> bool {
        match self.boot {
            Boot::Waiting { .. } => return self.try_boot(),
            Boot::Running | Boot::Done => {}
        }
        if self.resumes {
            self.resumes = false;
            return self.resume();
        }
        self.try_accept() || self.try_expire() || self.try_end_conflicts() || self.try_serve()
    }

    // ---- the host ----

    fn task(&mut self, work: HostWork) -> TaskId {
        self.last_task += 1;
        let task = TaskId(self.last_task);
        self.fresh.push_back(Held::Host(HostTask { task, work }));
        task
    }

    fn look(&mut self, keys: impl IntoIterator<Item = Key>, then: Then) {
        let task = self.task(HostWork::Observe(keys.into_iter().collect()));
        self.activity = Activity::Looking { task, then };
    }

    fn on_observed(&mut self, seen: BTreeMap<Key, Observed>) {
        self.observed.extend(seen);
        self.reassess();
    }

    fn on_host(&mut self, task: TaskId, done: HostDone) {
        let awaited = match &self.activity {
            Activity::Idle => None,
            Activity::Looking { task, .. }
            | Activity::Checking { task, .. }
            | Activity::Asking { task, .. }
            | Activity::Changing { task, .. } => Some(*task),
        };
        if awaited != Some(task) {
            return;
        }
        match (core::mem::replace(&mut self.activity, Activity::Idle), done) {
            (Activity::Looking { then, .. }, HostDone::Observed(seen)) => {
                self.observed.extend(seen);
                match then {
                    Then::Start => self.reassess(),
                    Then::Set(set) => self.on_looked_before_set(set),
                    Then::Commit(commit) => self.on_looked_before_commit(commit),
                    Then::Return(returning) => self.on_looked_before_return(returning),
                    Then::Verify(work) => self.on_verified(work),
                }
            }
            (Activity::Checking { set, .. }, HostDone::Checked(checked)) => self.on_checked(set, checked),
            (Activity::Asking { returning, steps, .. }, HostDone::Consumers(consumers)) => {
                self.on_consumers(returning, steps, consumers);
            }
            (Activity::Changing { mut work, .. }, HostDone::Changed(result)) => {
                if let (Err(error), Some(step)) = (result, work.steps.get(work.next)) {
                    work.errors.insert(step.key.clone(), error);
                }
                work.next += 1;
                self.carry_out(work);
            }
            (activity, done) => panic!("the host answered {done:?} to {activity:?}"),
        }
    }

    /// Goes on with the steps; when there are no more, looks at what came of them.
    fn carry_out(&mut self, work: Work) {
        if let Some(step) = work.steps.get(work.next) {
            let task = self.task(HostWork::Change { key: step.key.clone(), setting: step.setting.clone() });
            self.activity = Activity::Changing { task, work };
            return;
        }
        let mut keys: BTreeSet<Key> = work.steps.iter().map(|step| step.key.clone()).collect();
        match &work.purpose {
            Purpose::Set(_) => {}
            Purpose::Return(returning) => keys.extend(returning.targets.keys().cloned()),
        }
        self.look(keys, Then::Verify(work));
    }

    fn on_verified(&mut self, work: Work) {
        let Work { errors, purpose, .. } = work;
        match purpose {
            Purpose::Set(set) => self.on_set(set, &errors),
            Purpose::Return(returning) => self.on_returned(returning, errors),
        }
    }

    // ---- what leaves ----

    /// Everything that leaves at the end of a step.
    fn settle(&mut self) -> Effects {
        self.watch();
        self.check_invariants();
        if *self.kept != self.ledger || !self.new_events.is_empty() || self.new_declared.is_some() {
            self.save = SaveNumber(self.save.0 + 1);
            self.kept = Arc::new(self.ledger.clone());
            self.effects.save = Some(Save {
                number: self.save,
                events: core::mem::take(&mut self.new_events),
                declared: self.new_declared.take(),
                ledger: self.kept.clone(),
            });
            self.effects.changed = true;
        }
        let save = self.save;
        self.held.extend(self.fresh.drain(..).map(|held| (save, held)));
        while let Some((number, _)) = self.held.front()
            && *number <= self.saved
            && let Some((_, held)) = self.held.pop_front()
        {
            match held {
                Held::Host(task) => self.effects.host.push(task),
                Held::Journal(task) => self.effects.journal.push(task),
                Held::Reply(ticket, reply) => self.effects.replies.push((ticket, reply)),
            }
        }
        self.effects.wake_at = self.next_wake();
        core::mem::take(&mut self.effects)
    }

    fn watch(&mut self) {
        let managed = self.managed();
        if matches!(self.activity, Activity::Idle) {
            self.observed.retain(|key, _| managed.contains(key));
        }
        if managed != self.watched {
            self.effects.watch = Some(managed.iter().cloned().collect());
            self.watched = managed;
        }
    }

    fn next_wake(&self) -> Option<(BootTime, WakeReason)> {
        let window = self.expires_at().map(|at| (at, WakeReason::WindowEnds));
        let emergency = self.ledger.emergency.as_ref().filter(|emergency| !emergency.alerted);
        let emergency = emergency.map(|emergency| (emergency.deadline, WakeReason::EmergencyWindowEnds));
        let conflict = self.conflict_ends_at().map(|at| (at, WakeReason::ConflictGraceEnds));
        let again = self.journal_again_at().map(|at| (at, WakeReason::JournalAgain));
        let wakes = [window, emergency, conflict, again].into_iter().flatten();
        wakes.filter(|(at, _)| *at > self.now.boot).min()
    }

    fn reply(&mut self, ticket: Ticket, reply: Reply) {
        self.fresh.push_back(Held::Reply(ticket, reply));
    }

    fn refuse(&mut self, ticket: Ticket, refused: Refused) {
        self.reply(ticket, Reply::Refused(refused));
    }

    fn notice(&mut self, level: Level, text: impl Into<Arc<str>>) {
        self.effects.notices.push(Notice { level, text: text.into() });
        self.effects.changed = true;
    }

    /// Puts an event into the spool; gives its number.
    fn event(&mut self, author: Author, fact: Fact) -> u64 {
        self.ledger.spool.last += 1;
        let number = self.ledger.spool.last;
        let mut occurred_at = self.now.wall;
        while self.spool.iter().any(|event| event.occurred_at == occurred_at) {
            occurred_at = WallTime(occurred_at.0 + 1);
        }
        let event = Event { number, occurred_at, after: self.known, author, fact };
        self.new_events.push(event.clone());
        self.spool.push(event);
        number
    }

    /// Puts an event about keys into the spool, in as many parts as its size asks for.
    fn event_of(&mut self, author: &Author, changes: Vec<Change>, fact: impl Fn(Vec<Change>) -> Fact) {
        let (mut part, mut bytes) = (Vec::new(), 0);
        for change in changes {
            let size = change.key.as_str().len() + setting_bytes(&change.previous) + setting_bytes(&change.next);
            if !part.is_empty() && (part.len() == EVENT_CHANGES_MAX || bytes + size > EVENT_BYTES_MAX) {
                self.event(author.clone(), fact(core::mem::take(&mut part)));
                bytes = 0;
            }
            bytes += size;
            part.push(change);
        }
        if !part.is_empty() {
            self.event(author.clone(), fact(part));
        }
    }

    fn fresh_id(&mut self) -> OneShotId {
        self.drawn += 1;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.settings.seed.to_le_bytes());
        hasher.update(&self.drawn.to_le_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        OneShotId(u128::from_le_bytes(id))
    }

    // ---- what is so ----

    fn policy(&self) -> Policy {
        self.declared.as_ref().map_or_else(Policy::default, |declared| declared.policy.clone())
    }

    fn mode(&self) -> Mode {
        self.declared.as_ref().map_or(Mode::Enforce, |declared| declared.policy.mode)
    }

    /// Whether something brings keys back by itself.
    fn is_guarded(&self) -> bool {
        self.mode() == Mode::Enforce && self.ledger.emergency.is_none()
    }

    /// The keys that the host is being changed for.
    fn in_flux(&self, key: &Key) -> bool {
        match &self.ledger.doing {
            None => false,
            Some(Doing::Setting { keys, .. }) => keys.contains_key(key),
            Some(Doing::Returning { keys, .. }) => keys.contains(key),
        }
    }

    /// States the shape of a valid machine.
    fn check_invariants(&self) {
        let ledger = &self.ledger;
        assert!(self.saved <= self.save, "a save was reported that was never asked for");
        assert!(ledger.spool.delivered <= ledger.spool.last, "more events were delivered than happened");
        for key in ledger.conflicts.keys() {
            assert!(ledger.changes.contains_key(key), "{key} conflicts and is not changed here");
        }
        if ledger.emergency.is_some() {
            assert!(ledger.window.is_none(), "a commit window runs in an emergency");
        }
        if let Some(window) = &ledger.window {
            assert!(!ledger.changes.is_empty(), "window {} is open and nothing differs", window.number);
        }
        if matches!(self.activity, Activity::Changing { .. }) {
            assert!(ledger.doing.is_some(), "the host is changed for nothing that the ledger knows");
        }
        if let Some(Doing::Returning { cause: Cause::Expired | Cause::Conflict, .. }) = &ledger.doing {
            assert!(ledger.emergency.is_none(), "something rolls back by itself in an emergency");
        }
    }
}

/// Most changes in one event.
const EVENT_CHANGES_MAX: usize = 1_024;
/// Most bytes of keys and values in one event that has more than one change.
const EVENT_BYTES_MAX: usize = 512 << 10;

fn setting_bytes(setting: &Setting) -> usize {
    match setting {
        Setting::Unset | Setting::Absent => 0,
        Setting::Value(value) => value.len(),
    }
}

/// A text that fits the message of an entry.
fn clipped(text: &str) -> Arc<str> {
    let max = crate::limits::MESSAGE_BYTES_MAX - 4;
    if text.len() <= max {
        return Arc::from(text);
    }
    let mut end = max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Arc::from(format!("{}...", &text[..end]))
}

/// Items in one line.
fn listed<T: core::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| format!("{item}")).collect();
    items.join("; ")
}
