//! The driver: waits for input, steps the replica, carries its effects out. Boring on purpose, and the same in production and
//! in simulation.
//!
//! Loops, each to be run on a thread or task of its own, joined by queues:
//! - [`Driver::run`]: the replica;
//! - [`run_log`]: the write-ahead log. One batch at a time; what arrives meanwhile forms the next;
//! - [`run_archive`]: snapshots and history;
//! - [`run_fetch`]: snapshots and history segments from peers;
//! - [`keep_overlays`]: rebuilds stale overlays while this replica leads.
//!
//! Every await is a possible crash point. The first storage fault ends all loops.

use crate::clock::Clock;
use crate::front::{Asker, Event, Handle, Shared, Tagged, View};
use crate::ids::{Digest, Index, ReplicaId, Seq, Time, WriteId};
use crate::journal::command::JournalCommand;
use crate::journal::entry::{Author, Principal, Role};
use crate::log::{LogRecord, Write};
use crate::mark::mark;
use crate::network::{FetchError, Network};
use crate::overlay;
use crate::replica::{Answer, Effects, Input, LogTask, Replica, Settings, Staged, Token};
use crate::request::{AdminOutcome, Command, NotApplied, Outcome, RaftRole, RequestId, WriteRequest};
use crate::state::{Finished, State, StateLoader};
use crate::storage::{
    Archive, Identity, Layer, Library, LogStore, Pages, Recovered, Run, Segment, SnapshotMeta, StorageError,
};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::task::Poll;
use event_listener::Event as Signal;
use futures_channel::{mpsc, oneshot};
use futures_util::future::Either;
use futures_util::{StreamExt as _, future};
use tracing::{debug, info, warn};

/// Events handled in one step at most.
const BATCH_MAX: usize = 4_096;

/// Something for the archive, in order.
enum ArchiveTask {
    Extend(Vec<Finished>),
    Save { meta: SnapshotMeta, state: Box<State> },
    Staged { runs: Vec<Run>, done: oneshot::Sender<Vec<u32>> },
    Stage { run: Run, page: Bytes, done: oneshot::Sender<()> },
    StagedPage { run: Run, page: u32, done: oneshot::Sender<Bytes> },
    Install { meta: SnapshotMeta, state: Box<State>, open: Vec<Bytes>, done: oneshot::Sender<()> },
    Fill { segment: Segment, records: Vec<Bytes>, done: oneshot::Sender<()> },
    Missing { done: oneshot::Sender<Vec<Segment>> },
}

#[allow(clippy::large_enum_variant, reason = "a handful exist, each moved once")]
enum FetchTask {
    Snapshot { from: ReplicaId, meta: SnapshotMeta },
    History { after: Index },
}

/// The queues of the log's writer.
pub struct LogEnds {
    tasks: mpsc::UnboundedReceiver<LogTask>,
    archive: mpsc::UnboundedSender<ArchiveTask>,
    shared: Arc<Shared>,
}

/// The queues of the archive.
pub struct ArchiveEnds {
    tasks: mpsc::UnboundedReceiver<ArchiveTask>,
    /// What the first snapshot can rest on.
    newest: Option<Kept>,
    shared: Arc<Shared>,
}

/// The newest snapshot on disk and the view it was taken of.
struct Kept {
    meta: SnapshotMeta,
    state: State,
}

/// The queues of the fetcher.
pub struct FetchEnds {
    tasks: mpsc::UnboundedReceiver<FetchTask>,
    archive: mpsc::UnboundedSender<ArchiveTask>,
    shared: Arc<Shared>,
}

/// A replica with its queues, ready to run.
pub struct Driver {
    replica: Replica,
    inbox: mpsc::UnboundedReceiver<Event>,
    log: mpsc::UnboundedSender<LogTask>,
    /// Writes that nothing waits for: they go to the log's writer with the next one that something waits for, and need not wake it.
    held: Vec<LogTask>,
    archive: mpsc::UnboundedSender<ArchiveTask>,
    fetch: mpsc::UnboundedSender<FetchTask>,
    shared: Arc<Shared>,
    answers: BTreeMap<Token, Waiting>,
    next_token: Token,
    stop_by: Option<Time>,
}

enum Waiting {
    Write(oneshot::Sender<Outcome>),
    Tagged(Asker),
    Read(oneshot::Sender<Result<(), NotApplied>>),
    Admin(oneshot::Sender<AdminOutcome>),
}

/// Everything a replica's loops need of each other.
pub struct Assembly {
    /// For servers and tasks of the same process.
    pub handle: Handle,
    /// The replica's loop.
    pub driver: Driver,
    /// For [`run_log`].
    pub log: LogEnds,
    /// For [`run_archive`].
    pub archive: ArchiveEnds,
    /// For [`run_fetch`].
    pub fetch: FetchEnds,
}

/// Reads the live state of a recovered snapshot.
///
/// # Errors
/// [`StorageError`] if a page cannot be read or does not decode.
pub async fn load_state<L: Library>(
    identity: &Identity,
    recovered: &Recovered,
    library: &L,
) -> Result<State, StorageError> {
    let Some(meta) = &recovered.snapshot else { return Ok(State::empty(identity.cluster)) };
    let file = || format!("snap-{}-{}", meta.term, meta.index);
    let damaged = |problem| StorageError::Damaged {
        file: file(),
        offset: 0,
        problem,
        remedy: "run `muster repair DIR` to go back to an older snapshot",
    };
    let mut loader = StateLoader::new();
    for Run { layer, from, to } in meta.runs(None) {
        for page in from..to {
            let at = || format!("page {page} of the layer at {}", layer.index);
            let bytes = library.page(layer.index, layer.term, page).await?;
            let bytes = bytes.ok_or_else(|| damaged(format!("{} is missing", at())))?;
            loader.page(&bytes).map_err(|error| damaged(format!("{}: {error}", at())))?;
        }
    }
    let state = loader.finish().map_err(|error| damaged(format!("{error}")))?;
    match problem_of(meta, &state) {
        Some(problem) => Err(damaged(problem)),
        None => Ok(state),
    }
}

/// Why a state is not the one that a snapshot says it is.
fn problem_of(meta: &SnapshotMeta, state: &State) -> Option<String> {
    if state.sequence() != meta.sequence || state.head() != meta.head {
        return Some(format!("it is the state at sequence {}, expected {}", state.sequence(), meta.sequence));
    }
    let digest = meta.has_digest().then(|| state.digest())?;
    (digest != meta.digest).then(|| format!("its state has the digest {digest}, expected {}", meta.digest))
}

/// Puts a replica and its queues together.
#[must_use]
pub fn assemble(identity: Identity, settings: Settings, recovered: Recovered, state: State, now: Time) -> Assembly {
    let recorded = state.sequence();
    let newest = recovered.snapshot.clone().map(|meta| Kept { meta, state: state.clone() });
    let replica = Replica::new(identity, settings, recovered, state, now);
    let (inbox_in, inbox) = mpsc::unbounded();
    let (log_in, log_tasks) = mpsc::unbounded();
    let (archive_in, archive_tasks) = mpsc::unbounded();
    let (fetch_in, fetch_tasks) = mpsc::unbounded();
    let shared = Arc::new(Shared {
        inbox: inbox_in,
        queued: AtomicUsize::new(0),
        dropped: AtomicU64::new(0),
        live: replica.live().clone(),
        published: Signal::new(),
        recorded: AtomicU64::new(recorded.0),
        extended: Signal::new(),
        stopped: AtomicBool::new(false),
    });
    Assembly {
        handle: Handle { shared: shared.clone() },
        log: LogEnds { tasks: log_tasks, archive: archive_in.clone(), shared: shared.clone() },
        archive: ArchiveEnds { tasks: archive_tasks, newest, shared: shared.clone() },
        fetch: FetchEnds { tasks: fetch_tasks, archive: archive_in.clone(), shared: shared.clone() },
        driver: Driver {
            replica,
            inbox,
            log: log_in,
            held: Vec::new(),
            archive: archive_in,
            fetch: fetch_in,
            shared,
            answers: BTreeMap::new(),
            next_token: 0,
            stop_by: None,
        },
    }
}

impl Driver {
    /// Runs the replica until it is told to stop, or a disk fails.
    ///
    /// # Errors
    /// The storage fault that ended it.
    pub async fn run<N: Network, C: Clock>(mut self, network: N, clock: C) -> Result<(), StorageError> {
        let outcome = self.serve(&network, &clock).await;
        for (token, answer) in self.replica.abandon() {
            self.answer(token, answer);
        }
        self.shared.stop();
        outcome
    }

    async fn serve<N: Network, C: Clock>(&mut self, network: &N, clock: &C) -> Result<(), StorageError> {
        let _ = self.fetch.unbounded_send(FetchTask::History { after: Index(0) });
        let mut wake_at = clock.now();
        let mut inputs = Vec::new();
        loop {
            self.collect(&mut inputs)?;
            if inputs.is_empty() && clock.now() < wake_at {
                let sleep = clock.sleep_until(wake_at);
                futures_util::pin_mut!(sleep);
                match future::select(self.inbox.next(), sleep).await {
                    Either::Left((Some(event), _)) => self.take(event, &mut inputs)?,
                    Either::Left((None, _)) => return Ok(()),
                    Either::Right(((), _)) => {}
                }
            } else {
                // Whoever shares the thread has a turn: an inbox that fills as fast as it is emptied must not silence the links.
                give_way().await;
            }
            self.collect(&mut inputs)?;
            let now = clock.now();
            for input in &inputs {
                if matches!(input, Input::Stop) && self.stop_by.is_none() {
                    self.stop_by = Some(now.plus_ms(2_000));
                }
            }
            let effects = self.replica.step(now, clock.wall(), inputs.drain(..));
            self.carry_out(effects, network);
            // What is committed is applied while that is written and sent.
            let effects = self.replica.settle();
            wake_at = effects.wake_at;
            self.carry_out(effects, network);
            if self.stop_by.is_some_and(|by| by <= now || !self.replica.is_handing_over()) {
                return Ok(());
            }
        }
    }

    /// Takes everything that waits, up to a bound.
    fn collect(&mut self, inputs: &mut Vec<Input>) -> Result<(), StorageError> {
        while inputs.len() < BATCH_MAX {
            match self.inbox.try_recv() {
                Ok(event) => self.take(event, inputs)?,
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn take(&mut self, event: Event, inputs: &mut Vec<Input>) -> Result<(), StorageError> {
        self.shared.queued.fetch_sub(event.count(), Ordering::Relaxed);
        match event {
            Event::Peer(envelope) => inputs.push(Input::Peer(*envelope)),
            Event::Input(input) => inputs.push(input),
            Event::Write { write, forward, answer } => {
                let token = self.wait(Waiting::Write(answer));
                inputs.push(Input::Write { token, write, forward });
            }
            Event::Writes(writes) => {
                for (Tagged { write, forward, .. }, asker) in writes {
                    let token = self.wait(Waiting::Tagged(asker));
                    inputs.push(Input::Write { token, write, forward });
                }
            }
            Event::Read { freshness, answer } => {
                let token = self.wait(Waiting::Read(answer));
                inputs.push(Input::Read { token, freshness });
            }
            Event::Admin { request, answer } => {
                let token = self.wait(Waiting::Admin(answer));
                inputs.push(Input::Admin { token, request });
            }
            Event::Fault(error) => return Err(error),
        }
        Ok(())
    }

    fn wait(&mut self, waiting: Waiting) -> Token {
        self.next_token += 1;
        self.answers.insert(self.next_token, waiting);
        self.next_token
    }

    fn answer(&mut self, token: Token, answer: Answer) {
        // A client that went away does not wait for its answer.
        match (self.answers.remove(&token), answer) {
            (Some(Waiting::Write(to)), Answer::Write(outcome)) => drop(to.send(outcome)),
            (Some(Waiting::Tagged(asker)), Answer::Write(outcome)) => asker.answer(outcome),
            (Some(Waiting::Read(to)), Answer::Read(outcome)) => drop(to.send(outcome)),
            (Some(Waiting::Admin(to)), Answer::Admin(outcome)) => drop(to.send(outcome)),
            (Some(_) | None, _) => debug!(token, "an answer nobody waits for"),
        }
    }

    fn carry_out<N: Network>(&mut self, effects: Effects, network: &N) {
        if let Some(members) = &effects.members {
            network.know(members);
        }
        // Before the log's tasks: a snapshot that is installed goes to the archive by way of the log's writer, and the records before it
        // must be there first.
        if !effects.finished.is_empty() {
            let _ = self.archive.unbounded_send(ArchiveTask::Extend(effects.finished));
        }
        for task in effects.log {
            let may_wait = matches!(&task, LogTask::Write(write) if !write.sync);
            self.held.push(task);
            if !may_wait {
                // A loop that ended has reported its fault already.
                self.held.drain(..).for_each(|task| drop(self.log.unbounded_send(task)));
            }
        }
        for envelope in effects.sends {
            network.send(envelope);
        }
        if let Some((meta, state)) = effects.snapshot {
            let _ = self.archive.unbounded_send(ArchiveTask::Save { meta, state: Box::new(state) });
        }
        if let Some((from, meta)) = effects.fetch {
            let _ = self.fetch.unbounded_send(FetchTask::Snapshot { from, meta });
        }
        if let Some(after) = effects.look_for_history {
            let _ = self.fetch.unbounded_send(FetchTask::History { after });
        }
        if effects.published.is_some() {
            self.shared.announce();
        }
        for (token, answer) in effects.answers {
            self.answer(token, answer);
        }
    }
}

/// Lets others on this thread go first, once.
async fn give_way() {
    let mut gave = false;
    future::poll_fn(|context| {
        if core::mem::replace(&mut gave, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Answers a loop that may have ended meanwhile.
fn tell<T>(done: oneshot::Sender<T>, value: T) {
    let _ = done.send(value);
}

fn report<T>(shared: &Shared, result: Result<T, StorageError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::error!(%error, "storage failed; the replica stops");
            shared.put(Event::Fault(error));
            None
        }
    }
}

/// Makes what the replica hands out durable, batch by batch, until the replica ends or the disk fails.
pub async fn run_log<L: LogStore>(mut log: L, mut ends: LogEnds) {
    // What need not be synced waits here and goes first into the next batch.
    let mut held: Vec<LogRecord> = Vec::new();
    let mut stashed: Option<LogTask> = None;
    loop {
        let task = match stashed.take() {
            Some(task) => task,
            None => match ends.tasks.next().await {
                Some(task) => task,
                None => return,
            },
        };
        let persisted = match task {
            LogTask::Write(write) => {
                let mut records = core::mem::take(&mut held);
                let mut last: Option<WriteId> = None;
                let mut next = Some(write);
                let mut sync = false;
                while let Some(Write { id, sync: wanted, records: more }) = next.take() {
                    records.extend(more);
                    sync |= wanted;
                    last = Some(id);
                    match ends.tasks.try_recv() {
                        Ok(LogTask::Write(write)) => next = Some(write),
                        Ok(other) => stashed = Some(other),
                        Err(_) => {}
                    }
                }
                if !sync {
                    held = records;
                    continue;
                }
                if report(&ends.shared, log.append(&records).await).is_none() {
                    return;
                }
                last
            }
            LogTask::Install { meta, state, open, write } => {
                let (done, installed) = oneshot::channel();
                let index = meta.index;
                let _ = ends.archive.unbounded_send(ArchiveTask::Install { meta, state: Box::new(state), open, done });
                if installed.await.is_err() {
                    return;
                }
                let mut records = core::mem::take(&mut held);
                records.extend(write.records);
                if report(&ends.shared, log.append(&records).await).is_none() {
                    return;
                }
                if report(&ends.shared, log.purge(index).await).is_none() {
                    return;
                }
                Some(write.id)
            }
            LogTask::Purge(below) => {
                if report(&ends.shared, log.purge(below).await).is_none() {
                    return;
                }
                None
            }
        };
        if let Some(id) = persisted {
            ends.shared.put(Event::Input(Input::Persisted(id)));
        }
    }
}

/// Keeps snapshots and history, until the replica ends or the disk fails. While a snapshot is written, what arrives is done
/// between its pages.
pub async fn run_archive<A: Archive>(archive: A, ends: ArchiveEnds) {
    let ArchiveEnds { mut tasks, newest, shared } = ends;
    let mut keeper = Keeper { archive, newest, saving: None, shared: shared.clone() };
    loop {
        let task = if keeper.saving.is_none() {
            match tasks.next().await {
                Some(task) => Some(task),
                None => return,
            }
        } else if shared.stopped.load(Ordering::Acquire) {
            return;
        } else {
            tasks.try_recv().ok()
        };
        if let Some(task) = task
            && report(&shared, keeper.carry_out(task).await).is_none()
        {
            return;
        }
        if report(&shared, keeper.save_on().await).is_none() {
            return;
        }
    }
}

/// A snapshot that is being written.
struct Saving {
    pages: Pages,
    state: State,
}

struct Keeper<A> {
    archive: A,
    newest: Option<Kept>,
    saving: Option<Saving>,
    shared: Arc<Shared>,
}

impl<A: Archive> Keeper<A> {
    async fn carry_out(&mut self, task: ArchiveTask) -> Result<(), StorageError> {
        match task {
            ArchiveTask::Extend(records) => {
                let last = records.last().map(|record| record.sequence);
                self.archive.extend(records).await?;
                if let Some(last) = last {
                    self.shared.record(last);
                }
            }
            ArchiveTask::Save { meta, state } => {
                self.save_to_the_end().await?;
                self.begin(meta, *state).await?;
            }
            ArchiveTask::Staged { runs, done } => tell(done, self.archive.staged(&runs).await?),
            ArchiveTask::Stage { run, page, done } => tell(done, self.archive.stage(&run, page).await?),
            ArchiveTask::StagedPage { run, page, done } => tell(done, self.archive.staged_page(&run, page).await?),
            ArchiveTask::Install { meta, state, open, done } => {
                self.save_to_the_end().await?;
                let meta = self.archive.install(meta, state.layer(), open).await?;
                self.shared.record(meta.sequence);
                self.shared.put(Event::Input(Input::SnapshotInstalled(Box::new(meta.clone()))));
                self.newest = Some(Kept { meta, state: *state });
                tell(done, ());
            }
            ArchiveTask::Fill { segment, records, done } => tell(done, self.archive.fill(segment, records).await?),
            ArchiveTask::Missing { done } => tell(done, self.archive.missing().await?),
        }
        Ok(())
    }

    /// Begins a snapshot: of what changed since the newest one, or of everything when that is due.
    async fn begin(&mut self, meta: SnapshotMeta, state: State) -> Result<(), StorageError> {
        let below = self.newest.as_ref().filter(|kept| kept.meta.takes_a_layer());
        let pages = match below {
            Some(Kept { meta, state: below }) => state.layer_over(below, meta.digest),
            None => state.layer(),
        };
        let layers = below.map(|kept| kept.meta.layers.clone()).unwrap_or_default();
        self.archive.begin(SnapshotMeta { layers, ..meta }).await?;
        self.saving = Some(Saving { pages, state });
        Ok(())
    }

    /// Writes the next page, if a snapshot is being written, and ends it after the last.
    async fn save_on(&mut self) -> Result<(), StorageError> {
        let Some(saving) = &mut self.saving else { return Ok(()) };
        if let Some(page) = saving.pages.next_page() {
            return self.archive.write(page).await;
        }
        let (meta, oldest) = self.archive.finish(saving.pages.digest()).await?;
        if let Some(Saving { state, .. }) = self.saving.take() {
            self.newest = Some(Kept { meta: meta.clone(), state });
        }
        self.shared.put(Event::Input(Input::SnapshotSaved { meta, oldest }));
        Ok(())
    }

    async fn save_to_the_end(&mut self) -> Result<(), StorageError> {
        while self.saving.is_some() {
            self.save_on().await?;
        }
        Ok(())
    }
}

const FETCH_PAUSE_MS: u64 = 200;
/// How many pages, or history segments, are asked for before the first of them is here.
const FETCH_AHEAD: usize = 4;
/// Tries at one page or run of records before the peer is given up.
const FETCH_TRIES: u32 = 25;

/// What the fetcher has to do: the newest offer first, for what it replaces is of no use any more; history when there is none.
#[derive(Default)]
struct FetchPlan {
    offer: Option<(ReplicaId, SnapshotMeta)>,
    history: Option<Index>,
}

impl FetchPlan {
    fn add(&mut self, task: FetchTask) {
        match task {
            FetchTask::Snapshot { from, meta } => self.offer = Some((from, meta)),
            FetchTask::History { after } => self.history = Some(after),
        }
    }

    fn collect(&mut self, ends: &mut FetchEnds) {
        while let Ok(task) = ends.tasks.try_recv() {
            self.add(task);
        }
    }
}

/// Fetches offered snapshots and missing history from peers, until the replica ends.
pub async fn run_fetch<N: Network, C: Clock>(mut ends: FetchEnds, network: N, clock: C) {
    let mut plan = FetchPlan::default();
    loop {
        plan.collect(&mut ends);
        if plan.offer.is_none() && plan.history.is_none() {
            match ends.tasks.next().await {
                Some(task) => plan.add(task),
                None => return,
            }
            plan.collect(&mut ends);
        }
        if ends.shared.stopped.load(Ordering::Acquire) {
            return;
        }
        if let Some((from, meta)) = plan.offer.take() {
            match fetch_snapshot(&ends, &network, &clock, from, &meta).await {
                Ok(Some(staged)) => {
                    ends.shared.put(Event::Input(Input::SnapshotStaged(Box::new(staged))));
                }
                Ok(None) => {
                    ends.shared.put(Event::Input(Input::SnapshotLost { index: meta.index }));
                }
                Err(Ended) => return,
            }
            continue;
        }
        let Some(after) = plan.history.take() else { continue };
        match fill_history(&mut ends, &mut plan, &network, &clock).await {
            Ok(Filled::All) => {
                ends.shared.put(Event::Input(Input::HistoryComplete { after, complete: true }));
            }
            Ok(Filled::Interrupted) => plan.history = plan.history.max(Some(after)),
            Ok(Filled::Stuck) => {
                plan.history = plan.history.max(Some(after));
                ends.shared.put(Event::Input(Input::HistoryComplete { after, complete: false }));
                clock.sleep_until(clock.now().plus_ms(5 * FETCH_PAUSE_MS)).await;
            }
            Err(Ended) => return,
        }
    }
}

/// How far a look for missing history got.
enum Filled {
    /// Nothing is missing.
    All,
    /// A snapshot is offered, which comes first.
    Interrupted,
    /// A segment is missing that no peer has now.
    Stuck,
}

/// The archive's loop is gone.
struct Ended;

/// Asks the archive something.
async fn ask<T>(ends: &FetchEnds, task: impl FnOnce(oneshot::Sender<T>) -> ArchiveTask) -> Result<T, Ended> {
    let (done, answer) = oneshot::channel();
    let _ = ends.archive.unbounded_send(task(done));
    answer.await.map_err(|_| Ended)
}

/// A page of a snapshot; none if the peer does not have it (any more).
async fn fetch_page<N: Network, C: Clock>(
    shared: &Shared,
    network: &N,
    clock: &C,
    from: ReplicaId,
    layer: &Layer,
    page: u32,
) -> Result<Option<Bytes>, Ended> {
    for _ in 0..FETCH_TRIES {
        if shared.stopped.load(Ordering::Acquire) {
            return Err(Ended);
        }
        match network.fetch_page(from, layer.index, layer.term, page).await {
            Ok(bytes) => return Ok(Some(bytes)),
            Err(FetchError::Gone) => return Ok(None),
            Err(FetchError::Unreachable { problem }) => {
                debug!(from = from.0, page, problem, "a snapshot page could not be fetched, trying again");
                clock.sleep_until(clock.now().plus_ms(FETCH_PAUSE_MS)).await;
            }
        }
    }
    Ok(None)
}

/// Why a snapshot's state could not be made.
enum Unmade {
    /// The archive's loop is gone.
    Ended,
    /// The peer does not have all of it any more, or cannot be reached.
    Lost,
    /// What came is not what was offered.
    Wrong(String),
}

impl From<Ended> for Unmade {
    fn from(Ended: Ended) -> Self {
        Self::Ended
    }
}

/// Makes a snapshot's state: from nothing, or from what a view of the same journal has of it already.
async fn fetch_state<N: Network, C: Clock>(
    ends: &FetchEnds,
    network: &N,
    clock: &C,
    from: ReplicaId,
    meta: &SnapshotMeta,
    view: Option<(Index, State)>,
) -> Result<State, Unmade> {
    let runs = meta.runs(view.as_ref().map(|(applied, _)| *applied));
    let staged = ask(ends, |done| ArchiveTask::Staged { runs: runs.clone(), done }).await?;
    let mut loader = view.map_or_else(StateLoader::new, |(_, state)| StateLoader::over(state));
    for (run, staged) in runs.into_iter().zip(staged) {
        let mut hasher = blake3::Hasher::new();
        let shared = &ends.shared;
        let ahead = futures_util::stream::iter(run.from + staged..run.to)
            .map(|page| fetch_page(shared, network, clock, from, &run.layer, page))
            .buffered(FETCH_AHEAD);
        futures_util::pin_mut!(ahead);
        for place in 0..run.to - run.from {
            let bytes = if place < staged {
                ask(ends, |done| ArchiveTask::StagedPage { run, page: place, done }).await?
            } else {
                let bytes = ahead.next().await.transpose()?.flatten().ok_or(Unmade::Lost)?;
                ask(ends, |done| ArchiveTask::Stage { run, page: bytes.clone(), done }).await?;
                bytes
            };
            hasher.update(&bytes);
            loader.page(&bytes).map_err(|error| Unmade::Wrong(format!("page {}: {error}", run.from + place)))?;
        }
        let is_whole = (run.from, run.to) == (0, run.layer.pages);
        if is_whole && Digest(*hasher.finalize().as_bytes()) != run.layer.digest {
            return Err(Unmade::Wrong(format!("the layer at {} is another", run.layer.index)));
        }
    }
    let state = loader.finish().map_err(|error| Unmade::Wrong(format!("{error}")))?;
    match problem_of(meta, &state) {
        Some(problem) => Err(Unmade::Wrong(problem)),
        None => Ok(state),
    }
}

async fn fetch_snapshot<N: Network, C: Clock>(
    ends: &FetchEnds,
    network: &N,
    clock: &C,
    from: ReplicaId,
    meta: &SnapshotMeta,
) -> Result<Option<Staged>, Ended> {
    let view = ends.shared.live.view();
    let applied = view.status.applied;
    let base = meta.layers.first().map(|base| base.index);
    let own = (meta.has_digest() && base.is_some_and(|base| base <= applied)).then(|| (applied, view.state.clone()));
    drop(view);
    let is_over = own.is_some();
    let mut made = fetch_state(ends, network, clock, from, meta, own).await;
    if let (Err(Unmade::Wrong(problem)), true) = (&made, is_over) {
        warn!(from = from.0, index = meta.index.0, problem, "a snapshot does not fit what is here; fetching all of it");
        made = fetch_state(ends, network, clock, from, meta, None).await;
    }
    if is_over && made.is_ok() {
        mark!(snapshot_fetched_over_own_state);
    }
    let state = match made {
        Ok(state) => state,
        Err(Unmade::Ended) => return Err(Ended),
        Err(Unmade::Lost) => return Ok(None),
        Err(Unmade::Wrong(problem)) => {
            warn!(from = from.0, index = meta.index.0, problem, "a fetched snapshot is not what was offered");
            ask(ends, |done| ArchiveTask::Staged { runs: Vec::new(), done }).await?;
            return Ok(None);
        }
    };
    let open = match meta.history.last() {
        Some(segment) => match fetch_segment(&ends.shared, network, clock, &[from], segment).await? {
            Some(records) => records,
            None => return Ok(None),
        },
        None => Vec::new(),
    };
    Ok(Some(Staged { from, meta: meta.clone(), state, open }))
}

/// All records of a segment, checked against its digest, from the first peer that has them.
async fn fetch_segment<N: Network, C: Clock>(
    shared: &Shared,
    network: &N,
    clock: &C,
    peers: &[ReplicaId],
    segment: &Segment,
) -> Result<Option<Vec<Bytes>>, Ended> {
    'peers: for &peer in peers {
        let mut records = Vec::new();
        let mut reached = Seq(segment.first.0 - 1);
        let mut head = segment.before;
        let mut tries = 0;
        while reached < segment.last {
            if shared.stopped.load(Ordering::Acquire) {
                return Err(Ended);
            }
            match network.fetch_records(peer, reached, segment.last).await {
                Ok(run) if !run.is_empty() => {
                    for (sequence, bytes) in run {
                        if sequence != reached.next() || sequence > segment.last {
                            warn!(peer = peer.0, "fetched history is not in order");
                            continue 'peers;
                        }
                        head = head.chain(&bytes);
                        records.push(bytes);
                        reached = sequence;
                    }
                }
                Ok(_) | Err(FetchError::Gone) => continue 'peers,
                Err(FetchError::Unreachable { problem }) => {
                    tries += 1;
                    if tries > 2 {
                        debug!(peer = peer.0, problem, "history could not be fetched here");
                        continue 'peers;
                    }
                    clock.sleep_until(clock.now().plus_ms(FETCH_PAUSE_MS)).await;
                }
            }
        }
        if head == segment.head {
            return Ok(Some(records));
        }
        warn!(peer = peer.0, first = segment.first.0, "a fetched history segment is not what the manifest names");
    }
    Ok(None)
}

/// The peers to ask for the `place`th missing segment, in order: each begins with another, so that all give something.
fn peers_for(view: &View, place: usize) -> Vec<ReplicaId> {
    let me = view.status.replica;
    let mut peers: Vec<ReplicaId> = view.state.members.all().map(|member| member.id).filter(|id| *id != me).collect();
    let count = peers.len().max(1);
    peers.rotate_left(place % count);
    peers
}

/// Fetches every missing segment, some at a time, from all peers.
async fn fill_history<N: Network, C: Clock>(
    ends: &mut FetchEnds,
    plan: &mut FetchPlan,
    network: &N,
    clock: &C,
) -> Result<Filled, Ended> {
    let missing = ask(ends, |done| ArchiveTask::Missing { done }).await?;
    let total = missing.len();
    let shared = ends.shared.clone();
    let shared = &*shared;
    let ahead = futures_util::stream::iter(missing.into_iter().enumerate())
        .map(|(place, segment)| async move {
            let peers = peers_for(&shared.live.view(), place);
            (segment, fetch_segment(shared, network, clock, &peers, &segment).await)
        })
        .buffer_unordered(FETCH_AHEAD);
    futures_util::pin_mut!(ahead);
    let mut filled = Filled::All;
    while let Some((segment, fetched)) = ahead.next().await {
        match fetched? {
            Some(records) => {
                ask(ends, |done| ArchiveTask::Fill { segment, records, done }).await?;
                mark!(segment_filled);
            }
            None => filled = Filled::Stuck,
        }
        // A snapshot does not wait behind history that nobody gives.
        plan.collect(ends);
        if plan.offer.is_some() {
            return Ok(Filled::Interrupted);
        }
    }
    if total > 0 && matches!(filled, Filled::All) {
        info!(segments = total, "the history is complete");
    }
    Ok(filled)
}

/// At most one rebuild per second and vCluster.
const OVERLAY_PAUSE_MS: u64 = 1_000;
/// How often is looked for stale overlays at most.
const OVERLAY_LOOK_MS: u64 = 100;

/// While this replica leads: rebuilds stale overlays and has them stored. `draw` gives ids for its requests.
pub async fn keep_overlays<C: Clock>(handle: Handle, clock: C, mut draw: impl FnMut() -> u128) {
    let mut not_before: BTreeMap<crate::ids::VClusterId, Time> = BTreeMap::new();
    let mut version = 0;
    while !handle.stopped() {
        version = handle.changed(version).await.version;
        clock.sleep_until(clock.now().plus_ms(OVERLAY_LOOK_MS)).await;
        let stale = {
            let view = handle.view();
            if view.status.role != RaftRole::Leader {
                continue;
            }
            overlay::stale(&view.state)
        };
        let now = clock.now();
        let mut next: Option<Time> = None;
        for vcluster in stale {
            if let Some(at) = not_before.get(&vcluster).filter(|at| **at > now) {
                next = Some(next.map_or(*at, |n| n.min(*at)));
                continue;
            }
            not_before.insert(vcluster.clone(), now.plus_ms(OVERLAY_PAUSE_MS));
            let state = handle.view().state.clone();
            let built = match overlay::build(&state, &vcluster) {
                Ok(built) => built,
                Err(refusal) => {
                    warn!(%vcluster, ?refusal, "an overlay could not be built");
                    continue;
                }
            };
            let store = store_overlay(&state, vcluster.clone(), built, draw());
            drop(state);
            let outcome = handle.write(store, false).await;
            debug!(%vcluster, ?outcome, "overlay rebuilt");
        }
        not_before.retain(|_, at| *at > now);
        if let Some(at) = next {
            clock.sleep_until(at).await;
            version = version.saturating_sub(1);
        }
    }
}

/// The write that stores an overlay in the cluster's own name.
#[must_use]
pub fn store_overlay(
    state: &State,
    vcluster: crate::ids::VClusterId,
    overlay: crate::journal::overlay::BootOverlay,
    id: u128,
) -> WriteRequest {
    WriteRequest {
        request: RequestId::OneShot { id: crate::ids::OneShotId(id), drawn_at: state.age() },
        author: Author { principal: Principal::System { part: Arc::from("overlay") }, role: Role::System },
        command: Command::Journal(JournalCommand::SetOverlay { vcluster, overlay }),
    }
}

/// The position that a fresh cluster's first snapshot covers: every log starts behind it.
pub const BOOTSTRAP: (Index, crate::ids::Term) = (Index(1), crate::ids::Term(1));

#[cfg(test)]
mod tests;
