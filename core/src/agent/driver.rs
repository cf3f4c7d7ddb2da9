//! The agent's driver: waits for what happens, steps the machine, carries its effects out. The same in production and in
//! simulation.
//!
//! Loops, each to be run on a thread or task of its own, joined by queues:
//! - [`Driver::run`]: the machine;
//! - [`run_host`]: work on the node, one piece after the other, and what is seen to change;
//! - [`run_store`]: saves. What arrives while one is written goes into the next;
//! - [`run_journal`]: the boot and what follows it, writes, the node's report.
//!
//! Every await is a possible crash point. A storage fault ends all loops: an agent that cannot remember must not promise.
//!
//! Never here: what is right. The order of effects is the machine's business, see [`super::effects`].

use super::effects::{
    Effects, HostDone, HostTask, HostWork, Input, JournalNews, JournalTask, Level, Moment, Notice, Save, SaveNumber,
    Start, Ticket,
};
use super::fleet::{NodeReport, REPORT_SECONDS_MAX};
use super::host::{BootTime, Host};
use super::journal::{Away, Following as _, Journal};
use super::machine::{Machine, Settings};
use super::operator::{Reply, Report, Request};
use super::store::{Store, Stored};
use crate::ids::{NodeId, Seq, WallTime};
use crate::journal::entry::{Author, Record};
use crate::journal::key::Key;
use crate::mark::mark;
use crate::storage::StorageError;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use arc_swap::ArcSwap;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use event_listener::Event as Signal;
use futures_channel::{mpsc, oneshot};
use futures_util::future::Either;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _, future};
use tracing::{error, info, warn};

/// Operators' requests that may wait for the machine.
const ASKED_MAX: usize = 1_024;

/// Time on the node: since it booted, suspend included.
pub trait BootClock: Clone {
    /// Time since the machine booted.
    fn now(&self) -> BootTime;
    /// The wall clock. For people.
    fn wall(&self) -> WallTime;
    /// Waits until `now()` is at least `time`, also if the machine sleeps meanwhile.
    fn sleep_until(&self, time: BootTime) -> impl Future<Output = ()> + Send;
}

enum Event {
    Input(Input),
    Asked { author: Author, request: Request, answer: oneshot::Sender<Reply> },
    Fault(StorageError),
    Stop,
}

/// The last report, and when it was made.
#[derive(Clone, Debug)]
pub struct Published {
    /// The report.
    pub report: Arc<Report>,
    /// When.
    pub at: BootTime,
    /// Grows with every report of this run.
    pub version: u64,
}

struct Shared {
    inbox: mpsc::UnboundedSender<Event>,
    asked: AtomicUsize,
    published: ArcSwap<Published>,
    changed: Signal,
    stopped: AtomicBool,
}

impl Shared {
    fn put(&self, event: Event) {
        // A machine that has ended needs no news.
        let _ = self.inbox.unbounded_send(event);
    }

    fn input(&self, input: Input) {
        self.put(Event::Input(input));
    }
}

/// A request that counts until it is answered, or nobody waits for the answer any more.
struct Asked<'a>(&'a AtomicUsize);

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Talks to an agent's machine from the same process.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    /// Asks in somebody's name. Who it is, and that the role allows it, was checked before. None if the agent is stopping.
    pub async fn ask(&self, author: Author, request: Request) -> Option<Reply> {
        if self.shared.asked.fetch_add(1, Ordering::Relaxed) >= ASKED_MAX {
            self.shared.asked.fetch_sub(1, Ordering::Relaxed);
            return Some(Reply::Refused(super::operator::Refused::Busy));
        }
        let _asked = Asked(&self.shared.asked);
        let (answer, reply) = oneshot::channel();
        self.shared.put(Event::Asked { author, request, answer });
        reply.await.ok()
    }

    /// The newest report.
    #[must_use]
    pub fn published(&self) -> Arc<Published> {
        self.shared.published.load_full()
    }

    /// Waits until there is a report newer than `version`, or the agent stops; gives the newest one then.
    pub async fn changed(&self, version: u64) -> Arc<Published> {
        loop {
            let listener = self.shared.changed.listen();
            let published = self.published();
            if published.version > version || self.stopped() {
                return published;
            }
            listener.await;
        }
    }

    /// Tells the agent to stop. Nothing is undone by it: windows go on when it is started again.
    pub fn stop(&self) {
        self.shared.put(Event::Stop);
    }

    /// Whether it has stopped.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.shared.stopped.load(Ordering::Acquire)
    }
}

/// A machine with its queues, ready to run.
pub struct Driver {
    machine: Machine,
    first: Effects,
    inbox: mpsc::UnboundedReceiver<Event>,
    host: mpsc::UnboundedSender<HostOrder>,
    saves: mpsc::UnboundedSender<Save>,
    journal: mpsc::UnboundedSender<JournalTask>,
    shared: Arc<Shared>,
    answers: BTreeMap<Ticket, oneshot::Sender<Reply>>,
    tickets: u64,
    wake_at: Option<BootTime>,
}

enum HostOrder {
    Work(HostTask),
    Watch(Vec<Key>),
}

/// The queues of [`run_host`].
pub struct HostEnds {
    orders: mpsc::UnboundedReceiver<HostOrder>,
    shared: Arc<Shared>,
}

/// The queue of [`run_store`].
pub struct StoreEnds {
    saves: mpsc::UnboundedReceiver<Save>,
    shared: Arc<Shared>,
}

/// The queues of [`run_journal`].
pub struct JournalEnds {
    tasks: mpsc::UnboundedReceiver<JournalTask>,
    shared: Arc<Shared>,
}

/// Everything an agent's loops need of each other.
pub struct Assembly {
    /// For servers and tasks of the same process.
    pub handle: Handle,
    /// The machine's loop.
    pub driver: Driver,
    /// For [`run_host`].
    pub host: HostEnds,
    /// For [`run_store`].
    pub store: StoreEnds,
    /// For [`run_journal`].
    pub journal: JournalEnds,
}

fn moment<C: BootClock>(clock: &C) -> Moment {
    Moment { boot: clock.now(), wall: clock.wall() }
}

/// Puts a machine and its queues together, from what the disk held.
pub async fn assemble<H: Host, C: BootClock>(settings: Settings, stored: Stored, host: &mut H, clock: &C) -> Assembly {
    let Stored { ledger, declared, events, repairs } = stored;
    let repairs = repairs.into_iter().map(Arc::from).collect();
    let start = Start { boot: host.boot_id().await, ledger, declared, spool: events, repairs };
    let now = moment(clock);
    let (machine, first) = Machine::start(settings, now, start);
    let (inbox_in, inbox) = mpsc::unbounded();
    let (orders_in, orders) = mpsc::unbounded();
    let (saves_in, saves) = mpsc::unbounded();
    let (tasks_in, tasks) = mpsc::unbounded();
    let published = Published { report: Arc::new(machine.report(now)), at: now.boot, version: 0 };
    let shared = Arc::new(Shared {
        inbox: inbox_in,
        asked: AtomicUsize::new(0),
        published: ArcSwap::from_pointee(published),
        changed: Signal::new(),
        stopped: AtomicBool::new(false),
    });
    Assembly {
        handle: Handle { shared: shared.clone() },
        host: HostEnds { orders, shared: shared.clone() },
        store: StoreEnds { saves, shared: shared.clone() },
        journal: JournalEnds { tasks, shared: shared.clone() },
        driver: Driver {
            machine,
            first,
            inbox,
            host: orders_in,
            saves: saves_in,
            journal: tasks_in,
            shared,
            answers: BTreeMap::new(),
            tickets: 0,
            wake_at: None,
        },
    }
}

impl Driver {
    /// Runs the machine until it is told to stop, or the disk fails.
    ///
    /// # Errors
    /// The storage fault that ended it.
    pub async fn run<C: BootClock>(mut self, clock: C) -> Result<(), StorageError> {
        let outcome = self.serve(&clock).await;
        self.shared.stopped.store(true, Ordering::Release);
        self.shared.changed.notify(usize::MAX);
        outcome
    }

    async fn serve<C: BootClock>(&mut self, clock: &C) -> Result<(), StorageError> {
        let first = core::mem::take(&mut self.first);
        self.carry_out(first, moment(clock));
        loop {
            let event = match self.inbox.try_recv() {
                Ok(event) => Some(event),
                Err(_) if self.wake_at.is_some_and(|at| at <= clock.now()) => None,
                Err(_) => {
                    let sleep = async {
                        match self.wake_at {
                            Some(at) => clock.sleep_until(at).await,
                            None => future::pending().await,
                        }
                    };
                    futures_util::pin_mut!(sleep);
                    match future::select(self.inbox.next(), sleep).await {
                        Either::Left((Some(event), _)) => Some(event),
                        Either::Left((None, _)) => return Ok(()),
                        Either::Right(((), _)) => None,
                    }
                }
            };
            let input = match event {
                None => Input::Wake,
                Some(Event::Input(input)) => input,
                Some(Event::Asked { author, request, answer }) => {
                    self.tickets += 1;
                    let ticket = Ticket(self.tickets);
                    self.answers.insert(ticket, answer);
                    Input::Asked { ticket, author, request }
                }
                Some(Event::Fault(error)) => return Err(error),
                Some(Event::Stop) => return Ok(()),
            };
            let now = moment(clock);
            let effects = self.machine.step(now, input);
            self.carry_out(effects, now);
        }
    }

    fn carry_out(&mut self, effects: Effects, now: Moment) {
        self.wake_at = effects.wake_at.map(|(at, _)| at);
        for notice in &effects.notices {
            log(notice);
        }
        // A loop that has ended told its fault already.
        if let Some(save) = effects.save {
            let _ = self.saves.unbounded_send(save);
        }
        if let Some(keys) = effects.watch {
            let _ = self.host.unbounded_send(HostOrder::Watch(keys));
        }
        for task in effects.host {
            let _ = self.host.unbounded_send(HostOrder::Work(task));
        }
        for task in effects.journal {
            let _ = self.journal.unbounded_send(task);
        }
        if effects.changed {
            let version = self.shared.published.load().version + 1;
            let report = Arc::new(self.machine.report(now));
            self.shared.published.store(Arc::new(Published { report, at: now.boot, version }));
            self.shared.changed.notify(usize::MAX);
        }
        for (ticket, reply) in effects.replies {
            if let Some(answer) = self.answers.remove(&ticket) {
                // Who went away does not wait for the answer.
                let _ = answer.send(reply);
            }
        }
    }
}

fn log(notice: &Notice) {
    match notice.level {
        Level::Info => info!("{}", notice.text),
        Level::Warn => warn!("{}", notice.text),
        // The one line of an agent that a human must look at; it goes on.
        Level::Alert => warn!(alert = true, "{}", notice.text),
    }
}

/// Works on the node until the agent ends.
pub async fn run_host<H: Host>(mut host: H, mut ends: HostEnds) {
    loop {
        let changed = {
            let changed = host.changed();
            futures_util::pin_mut!(changed);
            match future::select(ends.orders.next(), changed).await {
                Either::Left((None, _)) => return,
                Either::Left((Some(order), _)) => Either::Left(order),
                Either::Right((keys, _)) => Either::Right(keys),
            }
        };
        match changed {
            Either::Left(HostOrder::Watch(keys)) => host.watch(&keys),
            Either::Left(HostOrder::Work(HostTask { task, work })) => {
                mark!(agent_before_host_work);
                let done = carry_out(&mut host, work).await;
                mark!(agent_after_host_work);
                ends.shared.input(Input::Host { task, done });
            }
            Either::Right(keys) => {
                let observed = host.observe(&keys).await;
                ends.shared.input(Input::Observed(observed));
            }
        }
    }
}

async fn carry_out<H: Host>(host: &mut H, work: HostWork) -> HostDone {
    match work {
        HostWork::Observe(keys) => HostDone::Observed(host.observe(&keys).await),
        HostWork::Check(wanted) => {
            let mut checked = Vec::new();
            for (key, setting) in wanted {
                checked.push(host.check(&key, &setting).await.map(|setting| (key, setting)));
            }
            HostDone::Checked(checked)
        }
        HostWork::Consumers(keys) => HostDone::Consumers(host.consumers(&keys).await),
        HostWork::Change { key, setting } => HostDone::Changed(host.change(&key, &setting).await),
    }
}

/// Makes saves durable until the agent ends or the disk fails.
pub async fn run_store<S: Store>(mut store: S, mut ends: StoreEnds) {
    while let Some(mut save) = ends.saves.next().await {
        // A save that was not begun gives way to the next one, but for its events and its declared state.
        while let Ok(next) = ends.saves.try_recv() {
            let mut events = save.events;
            events.extend(next.events);
            save = Save { events, declared: next.declared.or(save.declared), number: next.number, ledger: next.ledger };
        }
        mark!(agent_before_save);
        let number: SaveNumber = save.number;
        if let Err(fault) = store.save(&save).await {
            error!(%fault, "storage failed; the agent stops");
            ends.shared.put(Event::Fault(fault));
            return;
        }
        mark!(agent_after_save);
        ends.shared.input(Input::Saved(number));
    }
}

/// How long a pause between attempts to reach the journal is: it doubles from the first to the last number, in milliseconds.
const PAUSE_MS: (u64, u64) = (200, 5_000);

/// How long to wait before a node that the journal does not know asks again, in milliseconds.
const REFUSED_PAUSE_MS: u64 = 5_000;

/// Reports are told at most this often, in milliseconds.
const REPORT_EVERY_MS: u64 = 100;

const _: () = assert!(REPORT_SECONDS_MAX >= 3, "a report is renewed three times before it is forgotten");

/// Speaks with the journal until the agent ends. `address` is where the agent is reached by others; empty if it is not.
pub async fn run_journal<J: Journal, C: BootClock>(
    node: NodeId,
    address: Arc<str>,
    journal: J,
    clock: C,
    ends: JournalEnds,
) {
    let JournalEnds { tasks, shared } = ends;
    let handle = Handle { shared: shared.clone() };
    let following = follow(&node, &journal, &clock, &shared).fuse();
    let asking = ask(&node, &journal, tasks, &shared).fuse();
    let reporting = report(address, &journal, &clock, &handle).fuse();
    futures_util::pin_mut!(following, asking, reporting);
    // The queue of tasks closes when the machine ends; the others never end by themselves.
    futures_util::select_biased! {
        () = asking => {}
        () = following => {}
        () = reporting => {}
    }
}

async fn pause<C: BootClock>(clock: &C, ms: u64) {
    clock.sleep_until(BootTime(clock.now().0.saturating_add(ms * 1_000_000))).await;
}

fn milliseconds(of: u64) -> u64 {
    of.saturating_mul(1_000)
}

/// Keeps what is declared up to date.
async fn follow<J: Journal, C: BootClock>(node: &NodeId, journal: &J, clock: &C, shared: &Shared) {
    let mut at_least = Seq(0);
    let mut failures = 0_u32;
    let mut told: Option<String> = None;
    loop {
        let away = match follow_once(node, journal, shared, &mut at_least, &mut failures).await {
            Ok(never) => match never {},
            Err(away) => away,
        };
        let ms = match &away {
            Away::Unreachable(_) => (PAUSE_MS.0 << failures.min(16)).min(PAUSE_MS.1),
            Away::Refused(_) => REFUSED_PAUSE_MS,
        };
        let problem = away.problem();
        shared.input(Input::Journal(JournalNews::Down { why: Arc::from(problem.as_str()) }));
        // Said once for as long as it is the same.
        if failures == 0 || told.as_ref() != Some(&problem) {
            warn!(%problem, "the journal does not answer; the agent goes on with what it knows");
            told = Some(problem);
        }
        failures += 1;
        pause(clock, ms).await;
    }
}

enum Never {}

async fn follow_once<J: Journal>(
    node: &NodeId,
    journal: &J,
    shared: &Shared,
    at_least: &mut Seq,
    failures: &mut u32,
) -> Result<Never, Away> {
    loop {
        let declared = journal.boot(node, *at_least).await?;
        *at_least = declared.sequence.max(*at_least);
        mark!(agent_booted);
        let mut following = journal.follow(node, declared.sequence);
        shared.input(Input::Declared(declared.clone()));
        let mut is_up = false;
        loop {
            if !is_up {
                let age = journal.age().await?;
                shared.input(Input::Journal(JournalNews::Up { age }));
                (is_up, *failures) = (true, 0);
            }
            let records = following.next().await?;
            let touched = records.iter().filter_map(|record| match record {
                Record::Entry(entry) if declared.is_touched_by(node, entry) => Some(entry.sequence),
                Record::Entry(_) | Record::Operation(_) => None,
            });
            if let Some(sequence) = touched.max() {
                *at_least = sequence.max(*at_least);
                break;
            }
        }
    }
}

/// Carries out what the machine asks of the journal; several things may be under way.
async fn ask<J: Journal>(node: &NodeId, journal: &J, mut tasks: mpsc::UnboundedReceiver<JournalTask>, shared: &Shared) {
    let mut under_way = FuturesUnordered::new();
    loop {
        let task = {
            let next = tasks.next();
            if under_way.is_empty() {
                next.await
            } else {
                match future::select(next, under_way.next()).await {
                    Either::Left((task, _)) => task,
                    Either::Right((Some(news), _)) => {
                        shared.input(Input::Journal(news));
                        continue;
                    }
                    Either::Right((None, _)) => continue,
                }
            }
        };
        let Some(task) = task else { return };
        under_way.push(answer(node, journal, task));
    }
}

async fn answer<J: Journal>(node: &NodeId, journal: &J, task: JournalTask) -> JournalNews {
    match task {
        JournalTask::Age => match journal.age().await {
            Ok(age) => JournalNews::Up { age },
            Err(away) => JournalNews::Down { why: away.problem().into() },
        },
        JournalTask::Write { ask, write } => {
            mark!(agent_before_write);
            let outcome = journal.write(write).await;
            mark!(agent_after_write);
            JournalNews::Wrote { ask, outcome }
        }
        JournalTask::Look { ask, event } => {
            let found = match journal.records(node, event.after).await {
                Ok(records) => {
                    Ok(records.iter().find(|record| event.is_recorded_by(node, record)).map(Record::sequence))
                }
                Err(_) => Err(()),
            };
            JournalNews::Looked { ask, found }
        }
    }
}

/// Tells a replica how the node is: whenever that changes, and often enough not to be forgotten.
async fn report<J: Journal, C: BootClock>(address: Arc<str>, journal: &J, clock: &C, handle: &Handle) {
    let run = clock.wall().0;
    let renew_ms = milliseconds(REPORT_SECONDS_MAX) / 3;
    let mut count = 0;
    loop {
        let published = handle.published();
        if published.report.vcluster.is_some() {
            count += 1;
            let told = NodeReport::of(&published.report, address.clone(), (run, count));
            let told = told.after(clock.now().seconds_since(published.at));
            // A replica that is away is noticed by the subscription; the next word is as good.
            let _ = journal.report(&told).await;
        }
        pause(clock, REPORT_EVERY_MS).await;
        let renewal = pause(clock, renew_ms);
        let changed = handle.changed(published.version);
        futures_util::pin_mut!(renewal, changed);
        future::select(changed, renewal).await;
    }
}
