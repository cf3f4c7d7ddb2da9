//! The driver's loops over devices in memory, polled by hand: every await is a place where the test decides what comes next.

extern crate std;

use super::*;
use crate::ids::{Age, ClusterId, GroupId, Incarnation, OneShotId, ReplicaName, Term, VClusterId, WallTime};
use crate::journal::policy::Policy;
use crate::log::{Configuration, HardState, LogEntry, LogEntryKind};
use crate::members::{Member, MemberWish};
use crate::network::FetchError;
use crate::peer::{Envelope, PeerMessage};
use crate::replica::{Limits, Timing};
use crate::request::{AdminRequest, Freshness, Reply};
use crate::storage::Page;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use std::sync::Mutex;

// ---- devices ----------------------------------------------------------------------------------------------------------------

type Filling = (Segment, Vec<Bytes>);

#[derive(Clone, Default)]
struct Disk {
    records: Arc<Mutex<Vec<Vec<LogRecord>>>>,
    /// Everything that reached a device, in order, by name.
    order: Arc<Mutex<Vec<String>>>,
    /// Appends from now on fail.
    broken: Arc<AtomicBool>,
    /// Appends wait while set.
    hanging: Arc<AtomicBool>,
    missing: Arc<Mutex<Vec<Segment>>>,
    filled: Arc<Mutex<Vec<Filling>>>,
    begun: Arc<Mutex<Option<SnapshotMeta>>>,
}

fn io() -> StorageError {
    StorageError::Io { file: "log".into(), operation: "sync", problem: "input/output error".into() }
}

impl Disk {
    fn note(&self, what: String) {
        self.order.lock().unwrap().push(what);
    }
    fn appended(&self) -> Vec<LogRecord> {
        self.records.lock().unwrap().iter().flatten().cloned().collect()
    }
}

impl LogStore for Disk {
    async fn append(&mut self, records: &[LogRecord]) -> Result<(), StorageError> {
        let hanging = self.hanging.clone();
        future::poll_fn(|_| if hanging.load(Ordering::Relaxed) { Poll::Pending } else { Poll::Ready(()) }).await;
        if self.broken.load(Ordering::Relaxed) {
            return Err(io());
        }
        self.records.lock().unwrap().push(records.to_vec());
        self.note(format!("append {}", records.len()));
        Ok(())
    }
    async fn purge(&mut self, below: Index) -> Result<(), StorageError> {
        self.note(format!("purge {below}"));
        Ok(())
    }
}

impl Archive for Disk {
    async fn extend(&mut self, records: Vec<Finished>) -> Result<(), StorageError> {
        self.note(format!("extend {} by {}", records[0].sequence, records.len()));
        Ok(())
    }
    async fn begin(&mut self, meta: SnapshotMeta) -> Result<(), StorageError> {
        self.note(format!("begin {} over {}", meta.index, meta.layers.len()));
        *self.begun.lock().unwrap() = Some(meta);
        Ok(())
    }
    async fn write(&mut self, _: Page) -> Result<(), StorageError> {
        self.note("page".into());
        Ok(())
    }
    async fn finish(&mut self, digest: Digest) -> Result<(SnapshotMeta, Index), StorageError> {
        let mut meta = self.begun.lock().unwrap().take().unwrap();
        self.note(format!("save {}", meta.index));
        meta.layers.push(layer_of(meta.index, meta.term));
        meta.digest = digest;
        let index = meta.index;
        Ok((meta, index))
    }
    async fn staged(&mut self, runs: &[Run]) -> Result<Vec<u32>, StorageError> {
        Ok(vec![0; runs.len()])
    }
    async fn stage(&mut self, run: &Run, _: Bytes) -> Result<(), StorageError> {
        self.note(format!("stage {}", run.layer.index));
        Ok(())
    }
    async fn staged_page(&mut self, _: &Run, _: u32) -> Result<Bytes, StorageError> {
        unreachable!("nothing is staged here")
    }
    async fn install(&mut self, meta: SnapshotMeta, _: Pages, _: Vec<Bytes>) -> Result<SnapshotMeta, StorageError> {
        self.note(format!("install {}", meta.index));
        Ok(meta)
    }
    async fn fill(&mut self, segment: Segment, records: Vec<Bytes>) -> Result<(), StorageError> {
        self.missing.lock().unwrap().retain(|missing| *missing != segment);
        self.filled.lock().unwrap().push((segment, records));
        Ok(())
    }
    async fn missing(&mut self) -> Result<Vec<Segment>, StorageError> {
        Ok(self.missing.lock().unwrap().clone())
    }
}

type Fetched = Result<Bytes, FetchError>;
type Records = Result<Vec<(Seq, Bytes)>, FetchError>;

fn layer_of(index: Index, term: Term) -> Layer {
    Layer { index, term, pages: 2, lasting: 1, bytes: 100, digest: Digest::default() }
}

#[derive(Clone, Default)]
struct Wire {
    sent: Arc<Mutex<Vec<Envelope>>>,
    /// Pages that were asked for.
    asked: Arc<Mutex<Vec<(Index, u32)>>>,
    pages: Arc<Mutex<VecDeque<Fetched>>>,
    runs: Arc<Mutex<BTreeMap<ReplicaId, VecDeque<Records>>>>,
}

impl Network for Wire {
    fn send(&self, envelope: Envelope) {
        self.sent.lock().unwrap().push(envelope);
    }
    fn know(&self, _: &[Member]) {}
    fn fetch_page(&self, _: ReplicaId, index: Index, _: Term, page: u32) -> impl Future<Output = Fetched> + Send {
        self.asked.lock().unwrap().push((index, page));
        let page = self.pages.lock().unwrap().pop_front().unwrap_or(Err(FetchError::Gone));
        future::ready(page)
    }
    fn fetch_records(&self, from: ReplicaId, _: Seq, _: Seq) -> impl Future<Output = Records> + Send {
        let run = self.runs.lock().unwrap().get_mut(&from).and_then(VecDeque::pop_front);
        future::ready(run.unwrap_or(Err(FetchError::Gone)))
    }
}

#[derive(Clone, Default)]
struct HandClock(Arc<AtomicU64>);

impl Clock for HandClock {
    fn now(&self) -> Time {
        Time(self.0.load(Ordering::Relaxed))
    }
    fn wall(&self) -> WallTime {
        WallTime(0)
    }
    fn sleep_until(&self, time: Time) -> impl Future<Output = ()> + Send {
        let clock = self.clone();
        future::poll_fn(move |context| {
            if clock.now() >= time {
                return Poll::Ready(());
            }
            // Time is moved by hand, and nobody is told.
            context.waker().wake_by_ref();
            Poll::Pending
        })
    }
}

// ---- polling by hand --------------------------------------------------------------------------------------------------------

struct Task<T> {
    future: Pin<Box<dyn Future<Output = T>>>,
    output: Option<T>,
}

impl<T> Task<T> {
    fn new(future: impl Future<Output = T> + 'static) -> Self {
        Self { future: Box::pin(future), output: None }
    }
    fn poll(&mut self) {
        if self.output.is_none()
            && let Poll::Ready(output) = self.future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        {
            self.output = Some(output);
        }
    }
}

fn identity() -> Identity {
    Identity {
        cluster: ClusterId(7),
        group: GroupId(1),
        replica: ReplicaId(1),
        incarnation: Incarnation(1),
        name: ReplicaName::new("r1").unwrap(),
    }
}

fn member(id: u64) -> Member {
    Member {
        id: ReplicaId(id),
        name: ReplicaName::new(&format!("r{id}")).unwrap(),
        incarnation: Incarnation(id.into()),
        peer_address: "h:1".into(),
        client_address: "h:2".into(),
        wish: MemberWish::Learner,
        feature_level: 1,
    }
}

fn meta_of(state: &State, index: u64) -> SnapshotMeta {
    SnapshotMeta {
        index: Index(index),
        term: Term(1),
        configuration: Configuration { voters: vec![ReplicaId(1)], ..Configuration::default() },
        sequence: state.sequence(),
        head: state.head(),
        age: Age(0),
        history: state.history(),
        layers: vec![layer_of(Index(index), Term(1))],
        digest: state.digest(),
    }
}

struct Machine {
    handle: Handle,
    disk: Disk,
    clock: HandClock,
    driver: Task<Result<(), StorageError>>,
    log: Task<()>,
    archive: Task<()>,
    fetch: Task<()>,
}

impl Machine {
    /// A sole voter.
    fn new() -> Self {
        let state = State::new(ClusterId(7), member(1));
        let recovered = Recovered {
            hard_state: HardState { term: Term(1), vote: ReplicaId(0), commit: Index(1) },
            snapshot: Some(meta_of(&state, 1)),
            entries: Vec::new(),
            log_start: BOOTSTRAP,
        };
        let settings = Settings { timing: Timing::LAN, limits: Limits::default(), seed: 5 };
        let assembly = assemble(identity(), settings, recovered, state, Time(0));
        let (disk, wire, clock) = (Disk::default(), Wire::default(), HandClock::default());
        Self {
            handle: assembly.handle,
            driver: Task::new(assembly.driver.run(wire.clone(), clock.clone())),
            log: Task::new(run_log(disk.clone(), assembly.log)),
            archive: Task::new(run_archive(disk.clone(), assembly.archive)),
            fetch: Task::new(run_fetch(assembly.fetch, wire, clock.clone())),
            disk,
            clock,
        }
    }

    fn poll(&mut self) {
        for _ in 0..8 {
            self.driver.poll();
            self.log.poll();
            self.archive.poll();
            self.fetch.poll();
        }
    }

    fn play(&mut self, ms: u64) {
        for _ in 0..ms / 10 {
            self.clock.0.fetch_add(10_000_000, Ordering::Relaxed);
            self.poll();
        }
    }

    fn leading() -> Self {
        let mut machine = Self::new();
        machine.play(1_500);
        assert_eq!(machine.handle.view().status.role, RaftRole::Leader);
        machine
    }

    fn write(&self, id: u128) -> Task<Outcome> {
        let handle = self.handle.clone();
        let vcluster = VClusterId::new(&format!("v{id}")).unwrap();
        let write = WriteRequest {
            request: RequestId::OneShot { id: OneShotId(id), drawn_at: handle.view().state.age() },
            author: Author { principal: Principal::Claimed { name: "op".into() }, role: Role::Admin },
            command: Command::Journal(JournalCommand::SetPolicy { vcluster, policy: Policy::default() }),
        };
        Task::new(async move { handle.write(write, true).await })
    }
}

// ---- the whole --------------------------------------------------------------------------------------------------------------

#[test]
fn a_write_is_durable_recorded_and_in_the_view_before_it_is_answered() {
    let mut machine = Machine::leading();
    machine.disk.hanging.store(true, Ordering::Relaxed);
    let mut write = machine.write(1);
    let before = machine.handle.view().state.sequence();
    write.poll();
    machine.play(100);
    write.poll();
    assert!(write.output.is_none(), "answered before it was durable");
    machine.disk.hanging.store(false, Ordering::Relaxed);
    for _ in 0..20 {
        machine.driver.poll();
        write.poll();
        if let Some(outcome) = &write.output {
            assert!(matches!(outcome, Outcome::Applied { reply: Reply::Recorded { .. }, .. }), "{outcome:?}");
            assert!(machine.handle.view().state.sequence() > before, "answered before the view");
            break;
        }
        machine.log.poll();
    }
    assert!(write.output.is_some());
    // The archive has not been polled since: what the view names is not readable yet.
    let sequence = machine.handle.view().state.sequence();
    let handle = machine.handle.clone();
    let mut recorded = Task::new(async move { handle.recorded(sequence).await });
    recorded.poll();
    assert!(recorded.output.is_none());
    machine.poll();
    recorded.poll();
    assert!(recorded.output.is_some());
}

/// An install reaches the archive by way of the log's writer: what was recorded before it must be there first.
#[test]
fn what_was_recorded_is_on_its_way_to_the_archive_before_anything_of_the_log_begins() {
    struct Writer {
        archive: Mutex<mpsc::UnboundedReceiver<ArchiveTask>>,
        found: AtomicBool,
    }
    impl std::task::Wake for Writer {
        fn wake(self: Arc<Self>) {
            let found = matches!(self.archive.lock().unwrap().try_recv(), Ok(ArchiveTask::Extend(_)));
            self.found.store(found, Ordering::Relaxed);
        }
    }
    let recovered = Recovered {
        hard_state: HardState::default(),
        snapshot: None,
        entries: Vec::new(),
        log_start: (Index(0), Term(0)),
    };
    let settings = Settings { timing: Timing::LAN, limits: Limits::default(), seed: 1 };
    let mut assembly = assemble(identity(), settings, recovered, State::empty(identity().cluster), Time(0));
    let writer = Arc::new(Writer { archive: Mutex::new(assembly.archive.tasks), found: AtomicBool::new(false) });
    let waker = Waker::from(writer.clone());
    assert!(assembly.log.tasks.poll_next_unpin(&mut Context::from_waker(&waker)).is_pending());
    let record = Finished { sequence: Seq(1), bytes: Bytes::new(), head: Digest::default() };
    let effects = Effects { log: vec![LogTask::Purge(Index(1))], finished: vec![record], ..Effects::default() };
    assembly.driver.carry_out(effects, &Wire::default());
    assert!(writer.found.load(Ordering::Relaxed), "the log's writer was woken before the archive had the records");
}

#[test]
fn what_arrives_while_a_batch_is_written_forms_one_batch() {
    let mut machine = Machine::leading();
    machine.disk.hanging.store(true, Ordering::Relaxed);
    let mut writes: Vec<_> = (1..=20).map(|id| machine.write(id)).collect();
    for write in &mut writes {
        write.poll();
        machine.play(10);
    }
    let before = machine.disk.records.lock().unwrap().len();
    machine.disk.hanging.store(false, Ordering::Relaxed);
    machine.play(50);
    let batches = machine.disk.records.lock().unwrap().len() - before;
    assert!(batches <= 3, "{batches} batches");
    for write in &mut writes {
        write.poll();
        assert!(matches!(write.output, Some(Outcome::Applied { .. })));
    }
}

#[test]
fn a_disk_fault_ends_every_loop_and_every_client_is_answered() {
    let mut machine = Machine::leading();
    let mut before = machine.write(1);
    before.poll();
    machine.disk.broken.store(true, Ordering::Relaxed);
    let handle = machine.handle.clone();
    let mut read = Task::new(async move { handle.read(Freshness::AtLeast(Seq(99))).await });
    let handle = machine.handle.clone();
    let mut admin = Task::new(async move { handle.admin(AdminRequest::Snapshot).await });
    let handle = machine.handle.clone();
    let mut changed = Task::new(async move { handle.changed(u64::MAX).await });
    read.poll();
    admin.poll();
    changed.poll();
    machine.play(400);
    assert_eq!(machine.driver.output, Some(Err(io())));
    machine.driver = Task::new(future::ready(Ok(())));
    machine.play(2_000);
    assert!(machine.log.output.is_some(), "the log's loop goes on");
    assert!(machine.fetch.output.is_some(), "the fetcher's loop goes on");
    // The archive ends with the last of those that could give it something.
    (machine.log, machine.fetch) = (Task::new(future::ready(())), Task::new(future::ready(())));
    machine.poll();
    assert!(machine.archive.output.is_some(), "the archive's loop goes on");
    before.poll();
    assert!(matches!(before.output, Some(Outcome::Unknown(_))), "{:?}", before.output);
    read.poll();
    assert!(matches!(read.output, Some(Err(NotApplied::Stopping))));
    admin.poll();
    assert!(admin.output.is_some());
    changed.poll();
    assert!(changed.output.is_some());
    let mut after = machine.write(2);
    after.poll();
    assert_eq!(after.output, Some(Outcome::NotApplied(NotApplied::Stopping)));
    assert!(machine.handle.stopped());
}

#[test]
fn a_stop_ends_the_loop_and_answers_who_waits() {
    let mut machine = Machine::leading();
    machine.disk.hanging.store(true, Ordering::Relaxed);
    let mut logged = machine.write(1);
    logged.poll();
    machine.play(10);
    machine.handle.stop();
    let mut late = machine.write(2);
    late.poll();
    machine.play(2_500);
    assert_eq!(machine.driver.output, Some(Ok(())));
    logged.poll();
    late.poll();
    assert!(matches!(logged.output, Some(Outcome::Unknown(_))), "{:?}", logged.output);
    assert_eq!(late.output, Some(Outcome::NotApplied(NotApplied::Stopping)));
}

#[test]
fn the_inbox_is_bounded() {
    let mut machine = Machine::leading();
    let envelope = Envelope {
        cluster: ClusterId(7),
        group: GroupId(1),
        from: ReplicaId(2),
        incarnation: Incarnation(2),
        to: ReplicaId(1),
        message: PeerMessage::ReadIndex { token: 1 },
    };
    for _ in 0..110_000 {
        machine.handle.deliver(envelope.clone());
    }
    assert_eq!(machine.handle.dropped(), 10_000);
    let mut write = machine.write(1);
    write.poll();
    assert!(matches!(write.output, Some(Outcome::NotApplied(NotApplied::Busy { .. }))));
    machine.play(500);
    let mut write = machine.write(2);
    write.poll();
    machine.play(50);
    write.poll();
    assert!(matches!(write.output, Some(Outcome::Applied { .. })), "{:?}", write.output);
}

// ---- the log's loop ---------------------------------------------------------------------------------------------------------

/// The queues of a replica without the replica.
fn queues() -> (Arc<Shared>, mpsc::UnboundedReceiver<Event>) {
    let (inbox, events) = mpsc::unbounded();
    let machine = Machine::new();
    let shared = Shared {
        inbox,
        queued: AtomicUsize::new(0),
        dropped: AtomicU64::new(0),
        live: machine.handle.shared.live.clone(),
        published: Signal::new(),
        recorded: AtomicU64::new(0),
        extended: Signal::new(),
        stopped: AtomicBool::new(false),
    };
    (Arc::new(shared), events)
}

fn hard_state(commit: u64) -> LogRecord {
    LogRecord::HardState(HardState { term: Term(1), vote: ReplicaId(1), commit: Index(commit) })
}

fn entries(index: u64) -> LogRecord {
    let (data, context) = (Bytes::new(), Bytes::new());
    LogRecord::Entries(vec![LogEntry { term: Term(1), index: Index(index), kind: LogEntryKind::Normal, data, context }])
}

fn write(id: u64, sync: bool) -> Write {
    Write { id: WriteId(id), sync, records: vec![if sync { entries(id) } else { hard_state(id) }] }
}

#[test]
fn nothing_is_lost_or_reordered_on_the_way_to_the_log_whatever_the_grouping() {
    let state = State::new(ClusterId(7), member(1));
    for seed in 0..300_u64 {
        let mut draw = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = |n: u64| {
            draw ^= draw << 13;
            draw ^= draw >> 7;
            draw ^= draw << 17;
            draw % n
        };
        let (shared, mut events) = queues();
        let (tasks_in, tasks) = mpsc::unbounded();
        let (archive_in, archive_tasks) = mpsc::unbounded();
        let disk = Disk::default();
        let mut log = Task::new(run_log(disk.clone(), LogEnds { tasks, archive: archive_in, shared: shared.clone() }));
        let mut archive =
            Task::new(run_archive(disk.clone(), ArchiveEnds { tasks: archive_tasks, newest: None, shared }));
        let mut handed = Vec::new();
        let mut synced = 0;
        for id in 1..=20 {
            let task = match next(10) {
                0 => {
                    let records = vec![LogRecord::Reset { index: Index(id), term: Term(1) }, hard_state(id)];
                    handed.extend(records.clone());
                    synced = handed.len();
                    let write = Write { id: WriteId(id), sync: true, records };
                    LogTask::Install { meta: meta_of(&state, id), state: state.clone(), open: Vec::new(), write }
                }
                1 => LogTask::Purge(Index(id)),
                kind => {
                    let write = write(id, kind < 6);
                    handed.extend(write.records.clone());
                    if write.sync {
                        synced = handed.len();
                    }
                    LogTask::Write(write)
                }
            };
            tasks_in.unbounded_send(task).unwrap();
            disk.hanging.store(next(2) == 0, Ordering::Relaxed);
            for _ in 0..next(3) {
                log.poll();
                archive.poll();
            }
        }
        disk.hanging.store(false, Ordering::Relaxed);
        for _ in 0..60 {
            log.poll();
            archive.poll();
        }
        let appended = disk.appended();
        assert!(appended.len() >= synced, "seed {seed}: something that had to be synced was not");
        assert_eq!(appended[..], handed[..appended.len()], "seed {seed}");
        // Completions ascend, and none is for more than what was appended by then.
        let mut last = WriteId(0);
        while let Ok(event) = events.try_recv() {
            let id = match event {
                Event::Input(Input::Persisted(id)) => id,
                Event::Input(Input::SnapshotInstalled(_)) => continue,
                _ => panic!("seed {seed}: not a completion"),
            };
            assert!(id > last, "seed {seed}: completions out of order");
            last = id;
        }
        // A snapshot is installed before the log is reset to it.
        let order = disk.order.lock().unwrap().clone();
        for (at, what) in order.iter().enumerate() {
            if what.starts_with("install") {
                assert!(order[at + 1].starts_with("append"), "seed {seed}: {order:?}");
            }
        }
    }
}

#[test]
fn after_a_failed_append_nothing_is_appended_or_acknowledged_any_more() {
    let (shared, mut events) = queues();
    let (tasks_in, tasks) = mpsc::unbounded();
    let (archive, _archive_tasks) = mpsc::unbounded();
    let disk = Disk::default();
    let mut log = Task::new(run_log(disk.clone(), LogEnds { tasks, archive, shared }));
    disk.broken.store(true, Ordering::Relaxed);
    tasks_in.unbounded_send(LogTask::Write(write(1, true))).unwrap();
    log.poll();
    disk.broken.store(false, Ordering::Relaxed);
    let _ = tasks_in.unbounded_send(LogTask::Write(write(2, true)));
    log.poll();
    assert!(log.output.is_some());
    assert_eq!(disk.appended(), []);
    assert!(matches!(events.try_recv(), Ok(Event::Fault(_))));
    assert!(events.try_recv().is_err());
}

// ---- the fetcher's loop -----------------------------------------------------------------------------------------------------

struct Fetching {
    disk: Disk,
    wire: Wire,
    clock: HandClock,
    tasks: mpsc::UnboundedSender<FetchTask>,
    events: mpsc::UnboundedReceiver<Event>,
    fetch: Task<()>,
    archive: Task<()>,
    shared: Arc<Shared>,
}

impl Fetching {
    fn new() -> Self {
        let (shared, events) = queues();
        let mut state = State::new(ClusterId(7), member(1));
        for id in 2..=4 {
            state.members.table.insert(ReplicaId(id), member(id));
        }
        shared.live.advance(Index(1), |live| *live = state);
        let (tasks_in, tasks) = mpsc::unbounded();
        let (archive_in, archive_tasks) = mpsc::unbounded();
        let (disk, wire, clock) = (Disk::default(), Wire::default(), HandClock::default());
        let ends = FetchEnds { tasks, archive: archive_in, shared: shared.clone() };
        Self {
            fetch: Task::new(run_fetch(ends, wire.clone(), clock.clone())),
            archive: Task::new(run_archive(
                disk.clone(),
                ArchiveEnds { tasks: archive_tasks, newest: None, shared: shared.clone() },
            )),
            shared,
            disk,
            wire,
            clock,
            tasks: tasks_in,
            events,
        }
    }

    fn play(&mut self, ms: u64) -> Vec<Input> {
        let mut inputs = Vec::new();
        for _ in 0..=ms / 50 {
            for _ in 0..8 {
                self.fetch.poll();
                self.archive.poll();
            }
            self.clock.0.fetch_add(50_000_000, Ordering::Relaxed);
            while let Ok(Event::Input(input)) = self.events.try_recv() {
                inputs.push(input);
            }
        }
        inputs
    }

    /// The replica has come this far.
    fn applied(&self, index: Index, state: State) {
        self.shared.live.advance(index, |live| *live = state);
    }

    fn offer(&self, meta: &SnapshotMeta) {
        self.tasks.unbounded_send(FetchTask::Snapshot { from: ReplicaId(2), meta: meta.clone() }).unwrap();
    }
}

fn unreachable_peer() -> FetchError {
    FetchError::Unreachable { problem: "broke off".into() }
}

#[test]
fn an_interrupted_fetch_goes_on_where_it_was() {
    let mut fetching = Fetching::new();
    let state = State::new(ClusterId(7), member(1));
    for page in state.pages() {
        fetching.wire.pages.lock().unwrap().extend([Err(unreachable_peer()), Err(unreachable_peer()), Ok(page)]);
    }
    fetching.offer(&meta_of(&state, 9));
    let inputs = fetching.play(3_000);
    assert!(matches!(&inputs[..], [Input::SnapshotStaged(staged)] if staged.meta.index == Index(9)), "{inputs:?}");
    let order = fetching.disk.order.lock().unwrap().clone();
    assert_eq!(order.len(), state.pages().count(), "{order:?}");
}

/// A state with one more vCluster.
fn grown(state: &State, number: u64) -> State {
    let mut state = state.clone();
    let vcluster = VClusterId::new(&format!("v{number}")).unwrap();
    let write = WriteRequest {
        request: RequestId::OneShot { id: OneShotId(number.into()), drawn_at: state.age() },
        author: Author { principal: Principal::Claimed { name: "op".into() }, role: Role::Admin },
        command: Command::Journal(JournalCommand::SetPolicy { vcluster, policy: Policy::default() }),
    };
    let proposal = crate::state::Proposal { write, recorded_at: WallTime(0), elapsed: 0 };
    let (outcome, _) = state.apply(Index(number), proposal);
    assert!(matches!(outcome, Outcome::Applied { .. }), "{outcome:?}");
    state
}

fn pages_of(mut pages: Pages) -> Vec<Page> {
    core::iter::from_fn(move || pages.next_page()).collect()
}

#[test]
fn of_a_snapshot_only_what_is_lacked_is_fetched() {
    let base = State::new(ClusterId(7), member(1));
    let middle = grown(&grown(&base, 2), 3);
    let top = grown(&middle, 4);
    let upper = pages_of(middle.layer_over(&base, base.digest()));
    let topmost = pages_of(top.layer_over(&middle, middle.digest()));
    let below = pages_of(base.layer());
    let layers = [1, 3, 4].map(|index| layer_of(Index(index), Term(1))).into();
    let meta = SnapshotMeta { layers, history: Vec::new(), ..meta_of(&top, 4) };
    let passing = || [&below, &upper, &topmost].map(|pages| Ok(pages[1].bytes.clone()));

    // It has applied up to 2, between two layers: what lasts of the lowest it has.
    let mut fetching = Fetching::new();
    fetching.applied(Index(2), grown(&base, 2));
    fetching.wire.pages.lock().unwrap().extend([&upper, &topmost].map(|pages| Ok(pages[0].bytes.clone())));
    fetching.wire.pages.lock().unwrap().extend(passing());
    fetching.offer(&meta);
    let inputs = fetching.play(500);
    let [Input::SnapshotStaged(staged)] = &inputs[..] else { panic!("{inputs:?}") };
    assert_eq!((staged.state.digest(), staged.state.problem()), (top.digest(), None));
    let asked = [(3, 0), (4, 0), (1, 1), (3, 1), (4, 1)].map(|(index, page)| (Index(index), page));
    assert_eq!(*fetching.wire.asked.lock().unwrap(), asked);

    // What it has is not what the sender's was: the sum tells, and all of it is fetched.
    let mut fetching = Fetching::new();
    fetching.applied(Index(2), grown(&base, 9));
    fetching.wire.pages.lock().unwrap().extend([&upper, &topmost].map(|pages| Ok(pages[0].bytes.clone())));
    fetching.wire.pages.lock().unwrap().extend(passing());
    fetching.wire.pages.lock().unwrap().extend([&below, &upper, &topmost].map(|pages| Ok(pages[0].bytes.clone())));
    fetching.wire.pages.lock().unwrap().extend(passing());
    fetching.offer(&meta);
    let inputs = fetching.play(500);
    let [Input::SnapshotStaged(staged)] = &inputs[..] else { panic!("{inputs:?}") };
    assert_eq!(staged.state.digest(), top.digest());
}

#[test]
fn what_arrives_while_a_snapshot_is_written_is_done_between_its_pages_and_the_next_is_a_layer() {
    let (shared, mut events) = queues();
    let (tasks_in, tasks) = mpsc::unbounded();
    let disk = Disk::default();
    let mut archive = Task::new(run_archive(disk.clone(), ArchiveEnds { tasks, newest: None, shared }));
    let base = State::new(ClusterId(7), member(1));
    let next = grown(&base, 2);
    let save = |state: &State, index| {
        let meta = SnapshotMeta { layers: Vec::new(), ..meta_of(state, index) };
        tasks_in.unbounded_send(ArchiveTask::Save { meta, state: Box::new(state.clone()) }).unwrap();
    };
    let extend = |first| {
        let record = Finished { sequence: Seq(first), bytes: Bytes::new(), head: Digest::default() };
        tasks_in.unbounded_send(ArchiveTask::Extend(vec![record])).unwrap();
    };
    save(&base, 1);
    extend(1);
    extend(2);
    archive.poll();
    save(&next, 2);
    archive.poll();
    let order = disk.order.lock().unwrap().clone();
    let first = ["begin 1 over 0", "page", "extend 1 by 1", "page", "extend 2 by 1", "save 1"];
    assert_eq!(order[..6], first);
    assert_eq!(order[6..], ["begin 2 over 1", "page", "page", "save 2"]);
    let mut saved = Vec::new();
    while let Ok(Event::Input(Input::SnapshotSaved { meta, .. })) = events.try_recv() {
        saved.push((meta.layers.len(), meta.digest));
    }
    assert_eq!(saved, [(1, base.digest()), (2, next.digest())]);
}

#[test]
fn a_snapshot_that_is_gone_or_not_what_was_offered_is_lost() {
    let state = State::new(ClusterId(7), member(1));
    let other = State::new(ClusterId(7), member(2));
    let mut fetching = Fetching::new();
    fetching.wire.pages.lock().unwrap().push_back(Err(FetchError::Gone));
    fetching.offer(&meta_of(&state, 9));
    assert!(matches!(fetching.play(500)[..], [Input::SnapshotLost { index: Index(9) }]));
    fetching.wire.pages.lock().unwrap().extend(other.pages().map(Ok));
    fetching.offer(&meta_of(&state, 10));
    assert!(matches!(fetching.play(500)[..], [Input::SnapshotLost { index: Index(10) }]));
    fetching.wire.pages.lock().unwrap().push_back(Ok(Bytes::from_static(b"noise")));
    fetching.offer(&meta_of(&state, 11));
    assert!(matches!(fetching.play(500)[..], [Input::SnapshotLost { index: Index(11) }]));
}

fn segment_of(records: &[Bytes]) -> Segment {
    let head = records.iter().fold(Digest::default(), |head, bytes| head.chain(bytes));
    let bytes = records.iter().map(|r| r.len() as u64).sum();
    Segment { first: Seq(1), last: Seq(records.len() as u64), bytes, before: Digest::default(), head }
}

#[test]
fn missing_history_comes_from_whichever_peer_has_the_right_bytes() {
    let mut fetching = Fetching::new();
    let records: Vec<Bytes> = (0..3).map(|i| Bytes::from(format!("record {i}"))).collect();
    let segment = segment_of(&records);
    fetching.disk.missing.lock().unwrap().push(segment);
    let numbered = |range: core::ops::Range<usize>| -> Records {
        Ok(range.map(|i| (Seq(i as u64 + 1), records[i].clone())).collect())
    };
    let wrong: Records = Ok((1..=3).map(|i| (Seq(i), Bytes::from_static(b"other"))).collect());
    let mut runs = BTreeMap::new();
    runs.insert(ReplicaId(2), VecDeque::from([wrong, Err(FetchError::Gone)]));
    runs.insert(ReplicaId(3), VecDeque::from([numbered(0..1), Err(FetchError::Gone)]));
    runs.insert(ReplicaId(4), VecDeque::from([Err(unreachable_peer()), numbered(0..2), numbered(2..3)]));
    *fetching.wire.runs.lock().unwrap() = runs;
    fetching.tasks.unbounded_send(FetchTask::History { after: Index(u64::MAX) }).unwrap();
    let inputs = fetching.play(2_000);
    assert!(matches!(inputs[..], [Input::HistoryComplete { after: Index(u64::MAX), complete: true }]), "{inputs:?}");
    assert_eq!(*fetching.disk.filled.lock().unwrap(), [(segment, records)]);
}

#[test]
fn a_lost_offer_does_not_make_it_forget_the_missing_history() {
    let mut fetching = Fetching::new();
    let records = vec![Bytes::from_static(b"record")];
    let segment = segment_of(&records);
    fetching.disk.missing.lock().unwrap().push(segment);
    fetching.tasks.unbounded_send(FetchTask::History { after: Index(u64::MAX) }).unwrap();
    let inputs = fetching.play(300);
    assert!(matches!(inputs[..], [Input::HistoryComplete { after: Index(u64::MAX), complete: false }]), "{inputs:?}");
    // An offer comes while it waits to look again, and comes to nothing.
    fetching.offer(&meta_of(&State::new(ClusterId(7), member(1)), 9));
    let inputs = fetching.play(1_000);
    assert!(inputs.iter().any(|input| matches!(input, Input::SnapshotLost { .. })));
    let run: Records = Ok(vec![(Seq(1), records[0].clone())]);
    fetching.wire.runs.lock().unwrap().insert(ReplicaId(3), VecDeque::from([run]));
    let inputs = fetching.play(5_000);
    assert!(
        inputs.iter().any(|input| matches!(input, Input::HistoryComplete { after: Index(u64::MAX), complete: true })),
        "{inputs:?}"
    );
}
