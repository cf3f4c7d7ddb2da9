//! The engine alone: three replicas in this process, no disk, no network.
//!
//! The drivers, the log's and the archive's loops run as they do in production; a log that is durable at once and a network
//! that hands messages over stand in for devices. Callers write through the leader's front, each waiting for its answer. As in
//! openraft's own in-memory benchmark, callers have one thread and replicas two.

use crate::load::{Run, histogram, micros};
use crate::muster::author;
use crate::usage;
use anyhow::{Result, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use muster_core::clock::Clock;
use muster_core::driver::{Assembly, BOOTSTRAP, assemble, run_archive, run_fetch, run_log};
use muster_core::front::Handle;
use muster_core::ids::{
    ClusterId, Digest, GroupId, Incarnation, Index, OneShotId, ReplicaId, ReplicaName, Seq, SessionId, Term, Time,
    WallTime,
};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::entry::{Author, Change, EntryDraft, EntryType, Principal, Role};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::limits::FEATURE_LEVEL;
use muster_core::log::{Configuration, HardState, LogRecord};
use muster_core::members::{Admission, Member, MemberCommand, MemberWish};
use muster_core::network::{FetchError, Network};
use muster_core::peer::Envelope;
use muster_core::replica::{Limits, Settings, Timing};
use muster_core::request::{Command, Outcome, RaftRole, Reply, RequestId, WriteRequest};
use muster_core::state::{Finished, Proposal, State};
use muster_core::storage::{
    Archive, Identity, Layer, LogStore, Page, Pages, Recovered, Run as SnapshotRun, Segment, SnapshotMeta, StorageError,
};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::{Builder, Runtime};

/// How many keys each caller writes in turn: with 4,096 callers they fit what a scope may declare.
const KEYS: u64 = 4;
const VOTERS: u64 = 3;
/// Numbers of one session that may be under way; callers share sessions up to this many.
const CALLERS_PER_SESSION: u32 = 512;

/// What callers write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// A command without content whose apply finds nothing to do.
    Nothing,
    /// Commits of a value of so many bytes.
    Commits { bytes: usize },
}

#[derive(Clone)]
struct RealClock(Instant);

impl Clock for RealClock {
    fn now(&self) -> Time {
        Time(u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
    fn wall(&self) -> WallTime {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        WallTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
    async fn sleep_until(&self, time: Time) {
        tokio::time::sleep_until((self.0 + Duration::from_nanos(time.0)).into()).await;
    }
}

/// A disk on which everything is durable at once, and that keeps nothing.
#[derive(Default)]
struct Nowhere {
    begun: Option<SnapshotMeta>,
    bytes: u64,
}

impl LogStore for Nowhere {
    async fn append(&mut self, _: &[LogRecord]) -> Result<(), StorageError> {
        Ok(())
    }
    async fn purge(&mut self, _: Index) -> Result<(), StorageError> {
        Ok(())
    }
}

impl Archive for Nowhere {
    async fn extend(&mut self, _: Vec<Finished>) -> Result<(), StorageError> {
        Ok(())
    }
    async fn begin(&mut self, meta: SnapshotMeta) -> Result<(), StorageError> {
        self.begun = Some(meta);
        Ok(())
    }
    /// Nobody will read the pages: no follower falls behind here.
    async fn write(&mut self, page: Page) -> Result<(), StorageError> {
        self.bytes += page.bytes.len() as u64;
        Ok(())
    }
    async fn finish(&mut self, digest: Digest) -> Result<(SnapshotMeta, Index), StorageError> {
        let mut meta = self.begun.take().expect("a snapshot is begun before it is finished");
        let (index, term, bytes) = (meta.index, meta.term, std::mem::take(&mut self.bytes));
        meta.layers.push(Layer { index, term, pages: 0, lasting: 0, bytes, digest });
        Ok((SnapshotMeta { digest, ..meta }, index))
    }
    async fn staged(&mut self, runs: &[SnapshotRun]) -> Result<Vec<u32>, StorageError> {
        Ok(vec![0; runs.len()])
    }
    async fn stage(&mut self, _: &SnapshotRun, _: Bytes) -> Result<(), StorageError> {
        Ok(())
    }
    async fn staged_page(&mut self, _: &SnapshotRun, _: u32) -> Result<Bytes, StorageError> {
        unreachable!("nothing is staged")
    }
    async fn install(&mut self, meta: SnapshotMeta, _: Pages, _: Vec<Bytes>) -> Result<SnapshotMeta, StorageError> {
        Ok(meta)
    }
    async fn fill(&mut self, _: Segment, _: Vec<Bytes>) -> Result<(), StorageError> {
        Ok(())
    }
    async fn missing(&mut self) -> Result<Vec<Segment>, StorageError> {
        Ok(Vec::new())
    }
}

/// Hands messages over.
#[derive(Clone, Default)]
struct Memory(Arc<OnceLock<Vec<Handle>>>);

impl Network for Memory {
    fn send(&self, envelope: Envelope) {
        let place = usize::try_from(envelope.to.0 - 1).unwrap_or(usize::MAX);
        if let Some(handle) = self.0.get().and_then(|handles| handles.get(place)) {
            handle.deliver(envelope);
        }
    }
    fn know(&self, _: &[Member]) {}
    async fn fetch_page(&self, _: ReplicaId, _: Index, _: Term, _: u32) -> Result<Bytes, FetchError> {
        Err(FetchError::Gone)
    }
    async fn fetch_records(&self, _: ReplicaId, _: Seq, _: Seq) -> Result<Vec<(Seq, Bytes)>, FetchError> {
        Err(FetchError::Gone)
    }
}

fn identity(id: u64) -> Result<Identity> {
    Ok(Identity {
        cluster: ClusterId(1),
        group: GroupId(1),
        replica: ReplicaId(id),
        incarnation: Incarnation(u128::from(id)),
        name: ReplicaName::new(&format!("engine-{id}"))?,
    })
}

/// A state that knows every replica.
fn founded() -> Result<State> {
    let member = |id: u64| -> Result<Member> {
        let identity = identity(id)?;
        Ok(Member {
            id: identity.replica,
            name: identity.name,
            incarnation: identity.incarnation,
            peer_address: Arc::from(format!("memory:{}", 2 * id)),
            client_address: Arc::from(format!("memory:{}", 2 * id + 1)),
            wish: MemberWish::Voter,
            feature_level: FEATURE_LEVEL,
        })
    };
    let mut state = State::new(ClusterId(1), member(1)?);
    for id in 2..=VOTERS {
        let Member { name, incarnation, peer_address, client_address, wish, feature_level, .. } = member(id)?;
        let admission = Admission { name, incarnation, peer_address, client_address, wish, feature_level };
        let write = WriteRequest {
            request: RequestId::OneShot { id: OneShotId(u128::from(id)), drawn_at: state.age() },
            author: author(),
            command: Command::Members(MemberCommand::Admit(admission)),
        };
        let proposal = Proposal { write, recorded_at: WallTime(0), elapsed: 0 };
        let (outcome, _) = state.apply(Index(id), proposal);
        if !matches!(outcome, Outcome::Applied { reply: Reply::Admitted { .. }, .. }) {
            bail!("replica {id} was not admitted: {outcome:?}");
        }
    }
    Ok(state)
}

/// Three replicas on two threads.
struct Engine {
    runtime: Runtime,
    handles: Vec<Handle>,
}

impl Engine {
    fn start() -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("replicas").enable_time().build()?;
        let network = Memory::default();
        let (index, term) = BOOTSTRAP;
        let mut handles = Vec::new();
        let clock = RealClock(Instant::now());
        for id in 1..=VOTERS {
            let state = founded()?;
            let configuration =
                Configuration { voters: (1..=VOTERS).map(ReplicaId).collect(), ..Configuration::default() };
            let meta = state.snapshot_meta(index, term, configuration);
            let recovered = Recovered {
                hard_state: HardState { term, vote: ReplicaId(0), commit: index },
                snapshot: Some(meta),
                entries: Vec::new(),
                log_start: (index, term),
            };
            let settings = Settings { timing: Timing::LAN, limits: Limits::default(), seed: id };
            let Assembly { handle, driver, log, archive, fetch } =
                assemble(identity(id)?, settings, recovered, state, clock.now());
            handles.push(handle);
            runtime.spawn(driver.run(network.clone(), clock.clone()));
            runtime.spawn(run_log(Nowhere::default(), log));
            runtime.spawn(run_archive(Nowhere::default(), archive));
            runtime.spawn(run_fetch(fetch, network.clone(), clock.clone()));
        }
        network.0.set(handles.clone()).map_err(|_| anyhow::anyhow!("the network knows others already"))?;
        Ok(Self { runtime, handles })
    }

    async fn leader(&self) -> Handle {
        loop {
            for handle in &self.handles {
                if handle.view().status.role == RaftRole::Leader {
                    return handle.clone();
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn end(self) {
        for handle in &self.handles {
            handle.stop();
        }
        self.runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

/// Numbers of a session that callers share: each answered number is acknowledged by whichever comes later.
struct Session {
    id: SessionId,
    core: std::sync::Mutex<muster_core::client::Session>,
}

impl Session {
    async fn open(leader: &Handle, place: u32) -> Result<Self> {
        let request =
            RequestId::OneShot { id: OneShotId(1_000 + u128::from(place)), drawn_at: leader.view().state.age() };
        let write = WriteRequest { request, author: author(), command: Command::OpenSession };
        match leader.write(write, false).await {
            Outcome::Applied { reply: Reply::Session { session }, .. } => {
                Ok(Self { id: session, core: std::sync::Mutex::new(muster_core::client::Session::new(session)) })
            }
            outcome => bail!("opening a session: {outcome:?}"),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, muster_core::client::Session> {
        self.core.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn begin(&self) -> (u64, RequestId) {
        let mut core = self.lock();
        let number = core.begin().unwrap_or_else(|| panic!("session {} has room for all its callers", self.id));
        (number, core.request(number))
    }
}

struct Caller {
    leader: Handle,
    session: Option<Arc<Session>>,
    author: Author,
    value: Arc<str>,
    seen: Seq,
}

impl Caller {
    async fn once(&mut self, caller: u32, turn: u64) -> Result<(), String> {
        let Some(session) = &self.session else {
            let write =
                WriteRequest { request: RequestId::None, author: self.author.clone(), command: Command::Expire };
            return match self.leader.write(write, false).await {
                Outcome::Applied { .. } => Ok(()),
                other => Err(format!("{other:?}")),
            };
        };
        let key = Key::new(&format!("kernel:bench.{caller}.{}", turn % KEYS)).map_err(|error| error.to_string())?;
        let change = Change { key, previous: Setting::Unset, next: Setting::Value(self.value.clone()) };
        let draft = EntryDraft {
            entry_type: EntryType::Commit,
            scope: Scope::Global,
            parent: self.seen,
            based_on: None,
            changes: vec![change],
            ttl_seconds: None,
            emergency_reason: None,
            message: Arc::from("load"),
            occurred_at: None,
        };
        let (number, request) = session.begin();
        let command = Command::Journal(JournalCommand::AppendEntry(draft));
        let outcome = self.leader.write(WriteRequest { request, author: self.author.clone(), command }, false).await;
        session.lock().end(number);
        match outcome {
            Outcome::Applied { reply: Reply::Recorded { sequence }, .. } => {
                self.seen = sequence;
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    }

    async fn call(mut self, caller: u32, begin: Instant, end: Instant) -> (Histogram<u64>, u64, Option<String>) {
        let (mut latency, mut failed, mut first_failure) = (histogram(), 0, None);
        let mut turn = 0;
        loop {
            let start = Instant::now();
            if start >= end {
                return (latency, failed, first_failure);
            }
            let outcome = self.once(caller, turn).await;
            turn += 1;
            match outcome {
                Ok(()) if start >= begin => latency.saturating_record(micros(start.elapsed())),
                Ok(()) => {}
                Err(problem) => {
                    failed += 1;
                    first_failure.get_or_insert(problem);
                }
            }
        }
    }
}

/// Runs `callers` closed loops on a fresh engine.
pub(crate) fn run(written: Written, callers: u32, seconds: u64) -> Result<Run> {
    // As a server does.
    rustix::thread::disable_transparent_huge_pages(true)?;
    let engine = Engine::start()?;
    let outside = Builder::new_multi_thread().worker_threads(1).thread_name("callers").enable_time().build()?;
    let run = outside.block_on(outside.spawn(measure(
        engine_parts(&engine, &outside, written, callers)?,
        callers,
        seconds,
    )))?;
    engine.end();
    run
}

/// What the measurement needs, made before it begins.
struct Parts {
    leader: Handle,
    sessions: Vec<Arc<Session>>,
    author: Author,
    value: Arc<str>,
}

fn engine_parts(engine: &Engine, outside: &Runtime, written: Written, callers: u32) -> Result<Parts> {
    outside.block_on(async {
        let leader = engine.leader().await;
        let mut sessions = Vec::new();
        let (author, value) = match written {
            Written::Nothing => {
                let principal = Principal::System { part: Arc::from("expiry") };
                (Author { principal, role: Role::System }, Arc::from(""))
            }
            Written::Commits { bytes } => {
                for place in 0..callers.div_ceil(CALLERS_PER_SESSION) {
                    sessions.push(Arc::new(Session::open(&leader, place).await?));
                }
                (author(), Arc::from("v".repeat(bytes)))
            }
        };
        Ok(Parts { leader, sessions, author, value })
    })
}

async fn measure(parts: Parts, callers: u32, seconds: u64) -> Result<Run> {
    let measure = Duration::from_secs(seconds);
    let begin = Instant::now() + measure / 10;
    let end = begin + measure;
    let seen = parts.leader.view().state.sequence();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let session = parts.sessions.get((caller / CALLERS_PER_SESSION) as usize).cloned();
            let (leader, author, value) = (parts.leader.clone(), parts.author.clone(), parts.value.clone());
            tokio::spawn(Caller { leader, session, author, value, seen }.call(caller, begin, end))
        })
        .collect();
    let me = [std::process::id()];
    tokio::time::sleep_until(begin.into()).await;
    let before = usage::of(&me);
    tokio::time::sleep_until(end.into()).await;
    let after = usage::of(&me);
    let mut run = Run {
        callers,
        seconds: measure.as_secs_f64(),
        failed: 0,
        first_failure: None,
        latency: histogram(),
        server_cpu: 0.0,
        client_cpu: after.cpu.saturating_sub(before.cpu).as_secs_f64(),
        resident: after.resident_max,
    };
    for task in tasks {
        let (latency, failed, first_failure) = task.await?;
        run.latency.add(&latency)?;
        run.failed += failed;
        run.first_failure = run.first_failure.or(first_failure);
    }
    Ok(run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_write_of_the_engine_is_applied() {
        for written in [Written::Nothing, Written::Commits { bytes: 256 }] {
            let run = run(written, 8, 1).unwrap();
            assert_eq!(run.failed, 0, "{written:?}: {:?}", run.first_failure);
            assert!(!run.latency.is_empty(), "{written:?}");
        }
    }
}
