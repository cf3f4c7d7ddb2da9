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
use crate::front::{Asker, Event, Handle, Shared, Tagged};
use crate::ids::{Digest, Index, ReplicaId, Seq, Time, WriteId};
use crate::journal::command::JournalCommand;
use crate::journal::entry::{Author, Principal, Role};
use crate::log::{LogRecord, Write};
use crate::network::{FetchError, Network};
use crate::overlay;
use crate::replica::{Answer, Effects, Input, LogTask, Replica, Settings, Staged, Token};
use crate::request::{AdminOutcome, Command, NotApplied, Outcome, RaftRole, RequestId, WriteRequest};
use crate::state::{Finished, State, StateLoader};
use crate::storage::{Archive, Identity, Library, LogStore, Pages, Recovered, Segment, SnapshotMeta, StorageError};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
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
    Extend { first: Seq, records: Vec<Bytes> },
    Save { meta: SnapshotMeta, state: Box<State> },
    Stage { meta: SnapshotMeta, page: u32, bytes: Bytes, done: oneshot::Sender<()> },
    Install { meta: SnapshotMeta, open: Vec<Bytes>, done: oneshot::Sender<()> },
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
    shared: Arc<Shared>,
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
    for page in 0..meta.pages {
        let bytes = library.page(meta.index, meta.term, page).await?;
        let bytes = bytes.ok_or_else(|| damaged(format!("page {page} is missing")))?;
        loader.page(&bytes).map_err(|error| damaged(format!("page {page}: {error}")))?;
    }
    loader.finish().map_err(|error| damaged(format!("{error}")))
}

/// Puts a replica and its queues together.
#[must_use]
pub fn assemble(identity: Identity, settings: Settings, recovered: Recovered, state: State, now: Time) -> Assembly {
    let recorded = state.sequence();
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
        archive: ArchiveEnds { tasks: archive_tasks, shared: shared.clone() },
        fetch: FetchEnds { tasks: fetch_tasks, archive: archive_in.clone(), shared: shared.clone() },
        driver: Driver {
            replica,
            inbox,
            log: log_in,
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
        // A loop that ended has reported its fault already.
        for task in effects.log {
            let _ = self.log.unbounded_send(task);
        }
        for envelope in effects.sends {
            network.send(envelope);
        }
        if let Some(first) = effects.finished.first().map(|finished| finished.sequence) {
            let records = effects.finished.into_iter().map(|Finished { bytes, .. }| bytes).collect();
            let _ = self.archive.unbounded_send(ArchiveTask::Extend { first, records });
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
            LogTask::Install { meta, open, write } => {
                let (done, installed) = oneshot::channel();
                let index = meta.index;
                let _ = ends.archive.unbounded_send(ArchiveTask::Install { meta, open, done });
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

/// Keeps snapshots and history, until the replica ends or the disk fails.
pub async fn run_archive<A: Archive>(mut archive: A, mut ends: ArchiveEnds) {
    while let Some(task) = ends.tasks.next().await {
        let shared = &ends.shared;
        let went_well = match task {
            ArchiveTask::Extend { first, records } => {
                let last = Seq(first.0 + records.len() as u64 - 1);
                report(shared, archive.extend(first, records).await).map(|()| shared.record(last))
            }
            ArchiveTask::Save { meta, state } => {
                let pages: Pages = Box::new(state.pages());
                report(shared, archive.save(meta, pages).await).map(|(meta, oldest)| {
                    shared.put(Event::Input(Input::SnapshotSaved { meta, oldest }));
                })
            }
            ArchiveTask::Stage { meta, page, bytes, done } => {
                report(shared, archive.stage(&meta, page, bytes).await).map(|()| tell(done, ()))
            }
            ArchiveTask::Install { meta, open, done } => report(shared, archive.install(&meta, open).await).map(|()| {
                shared.record(meta.sequence);
                let _ = done.send(());
            }),
            ArchiveTask::Fill { segment, records, done } => {
                report(shared, archive.fill(segment, records).await).map(|()| tell(done, ()))
            }
            ArchiveTask::Missing { done } => report(shared, archive.missing().await).map(|missing| tell(done, missing)),
        };
        if went_well.is_none() {
            return;
        }
    }
}

const FETCH_PAUSE_MS: u64 = 200;
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

async fn stage<N: Network, C: Clock>(
    ends: &FetchEnds,
    network: &N,
    clock: &C,
    from: ReplicaId,
    meta: &SnapshotMeta,
    page: u32,
) -> Result<Option<Bytes>, Ended> {
    for _ in 0..FETCH_TRIES {
        if ends.shared.stopped.load(Ordering::Acquire) {
            return Err(Ended);
        }
        match network.fetch_page(from, meta.index, meta.term, page).await {
            Ok(bytes) => {
                let (done, staged) = oneshot::channel();
                let task = ArchiveTask::Stage { meta: meta.clone(), page, bytes: bytes.clone(), done };
                let _ = ends.archive.unbounded_send(task);
                staged.await.map_err(|_| Ended)?;
                return Ok(Some(bytes));
            }
            Err(FetchError::Gone) => return Ok(None),
            Err(FetchError::Unreachable { problem }) => {
                debug!(from = from.0, page, problem, "a snapshot page could not be fetched, trying again");
                clock.sleep_until(clock.now().plus_ms(FETCH_PAUSE_MS)).await;
            }
        }
    }
    Ok(None)
}

async fn fetch_snapshot<N: Network, C: Clock>(
    ends: &FetchEnds,
    network: &N,
    clock: &C,
    from: ReplicaId,
    meta: &SnapshotMeta,
) -> Result<Option<Staged>, Ended> {
    let mut loader = StateLoader::new();
    let mut hasher = blake3::Hasher::new();
    for page in 0..meta.pages {
        let Some(bytes) = stage(ends, network, clock, from, meta, page).await? else { return Ok(None) };
        hasher.update(&bytes);
        if let Err(error) = loader.page(&bytes) {
            warn!(from = from.0, page, %error, "a fetched snapshot page does not decode");
            return Ok(None);
        }
    }
    if Digest(*hasher.finalize().as_bytes()) != meta.digest {
        warn!(from = from.0, index = meta.index.0, "a fetched snapshot is not what was offered");
        return Ok(None);
    }
    let state = match loader.finish() {
        Ok(state) => state,
        Err(error) => {
            warn!(from = from.0, %error, "a fetched snapshot does not decode");
            return Ok(None);
        }
    };
    let open = match meta.history.last() {
        Some(segment) => match fetch_segment(ends, network, clock, &[from], segment).await? {
            Some(records) => records,
            None => return Ok(None),
        },
        None => Vec::new(),
    };
    Ok(Some(Staged { from, meta: meta.clone(), state, open }))
}

/// All records of a segment, checked against its digest, from the first peer that has them.
async fn fetch_segment<N: Network, C: Clock>(
    ends: &FetchEnds,
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
            if ends.shared.stopped.load(Ordering::Acquire) {
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

/// Fetches every missing segment.
async fn fill_history<N: Network, C: Clock>(
    ends: &mut FetchEnds,
    plan: &mut FetchPlan,
    network: &N,
    clock: &C,
) -> Result<Filled, Ended> {
    let (done, missing) = oneshot::channel();
    let _ = ends.archive.unbounded_send(ArchiveTask::Missing { done });
    let missing = missing.await.map_err(|_| Ended)?;
    let total = missing.len();
    for segment in missing {
        let view = ends.shared.live.view();
        let me = view.status.replica;
        let mut peers: Vec<ReplicaId> =
            view.state.members.all().map(|member| member.id).filter(|id| *id != me).collect();
        peers.sort_by_key(|id| *id != view.status.leader);
        let fetched = fetch_segment(ends, network, clock, &peers, &segment).await?;
        let Some(records) = fetched else { return Ok(Filled::Stuck) };
        let (done, filled) = oneshot::channel();
        let _ = ends.archive.unbounded_send(ArchiveTask::Fill { segment, records, done });
        filled.await.map_err(|_| Ended)?;
        plan.collect(ends);
        if plan.offer.is_some() {
            return Ok(Filled::Interrupted);
        }
    }
    if total > 0 {
        info!(segments = total, "the history is complete");
    }
    Ok(Filled::All)
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
