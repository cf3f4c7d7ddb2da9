//! `muster server`: one replica on this machine's clock, disk and sockets.
//!
//! ```text
//!   signals ──► stop         (boots 9442)  clients 9443        peers 9444
//!                 │                            │                  │
//!            ┌────▼─────┐   core::front   ┌────▼──────────────────▼───┐
//!            │  driver  │◄────────────────┤ net's servers, on the pool│
//!            └─┬──────┬─┘                 └───────────────────────────┘
//!         log  │      │ archive
//!     (own thread) (own thread)
//! ```
//! The driver, the log's writer and the archive each have a thread of their own, because the disk blocks; everything else runs
//! on the runtime's pool. Both ports are bound before the replica takes part.
//!
//! The end: a signal has the replica hand leadership over and stop; then the servers end their streams; then the process
//! ends with 0. A disk that fails ends it with 1: nothing that was acknowledged is lost, and nothing more is promised.

use crate::clock::RealClock;
use crate::config::Config;
use crate::exit::Failure;
use crate::metrics::{Scrape, TlsFigures};
use crate::threads::{block_on, thread};
use crate::{lifecycle, logging};
use muster_core::clock::Clock as _;
use muster_core::driver::{self, Assembly};
use muster_core::front::Handle;
use muster_core::query::{self, Answer, Query};
use muster_core::replica::{Limits, Settings};
use muster_core::request::ReplicaStatus;
use muster_core::storage::{Identity, Library, StorageError};
use muster_net::peer::{GrpcNetwork, PeerCounters, PeerOptions};
use muster_net::server::{
    ClientLimits, HttpPages, Listener, Protection, Replica, serve_anonymous, serve_clients, serve_peers,
};
use muster_net::tls::Tls;
use muster_storage::{Lock, Opened, RealDisk, WalOptions, ready};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Handle as Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{Instrument as _, Span, error, info, info_span, warn};

/// How long handing leadership over and writing what waits may take before the process ends anyway.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// How often it is checked that the data directory is still there, and the threads of the log and the archive are.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Runs a replica until it is told to stop.
pub(crate) fn run(config: &Config, until_stdin_closes: bool) -> Result<(), Failure> {
    logging::start(config);
    let dir = &config.data_dir;
    if lifecycle::is_empty(dir)? && !dir.join("raft").exists() {
        return Err(StorageError::Empty { directory: dir.display().to_string() }.into());
    }
    let _lock = Lock::take(dir)?;
    allow_many_connections();
    use_small_pages();
    let opened = ready(muster_storage::open(RealDisk, dir, WalOptions::default()))?;
    check_name(config, &opened.identity)?;
    let span = info_span!("replica", id = opened.identity.replica.0, name = %opened.identity.name);
    let pool = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // The replica and its peers' sockets share one thread: a message that arrives is handled, and answered, where it was read.
    // Sockets are looked at after every few polls, for the replica's own can be long.
    let own = tokio::runtime::Builder::new_current_thread().event_interval(4).enable_all().build()?;
    let served = serve(config, opened, until_stdin_closes, pool.handle(), &span);
    let result = own.block_on(served.instrument(span.clone()));
    own.shutdown_timeout(Duration::from_secs(1));
    pool.shutdown_timeout(Duration::from_secs(1));
    result
}

/// As many open files as the system lets this process have: every connection is one, and shells hand on a thousand.
fn allow_many_connections() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limits = getrlimit(Resource::Nofile);
    if limits.current != limits.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits })
    {
        warn!(%error, "the number of open files stays as it was set");
    }
}

/// Memory in the system's smallest pages, as other databases ask for it. A huge page is cleared whole when it is first touched, on the
/// thread that leads, and on a virtual machine its memory may have to be got from the host first: that was a fifth of what a
/// commit cost, for memory of which much was never used.
fn use_small_pages() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        warn!(%error, "huge pages are used where the system likes to");
    }
}

fn check_name(config: &Config, identity: &Identity) -> Result<(), Failure> {
    if identity.name == config.node_id {
        return Ok(());
    }
    Err(Failure::error(
        format!(
            "{} belongs to replica {:?} ({}), raft.node_id says {:?}",
            config.data_dir.display(),
            identity.name.as_str(),
            identity.replica,
            config.node_id.as_str()
        ),
        "set raft.node_id or raft.data_dir to fit",
    ))
}

async fn serve(
    config: &Config,
    opened: Opened<RealDisk>,
    until_stdin_closes: bool,
    pool: &Runtime,
    span: &Span,
) -> Result<(), Failure> {
    let Opened { identity, recovered, wal, archive, library } = opened;
    let tls = keys(config)?;
    let protection = match &tls {
        Some(tls) => Protection::Tls(tls.clone()),
        None if config.insecure => Protection::Insecure,
        None => Protection::Loopback,
    };
    let bind = |address: std::net::SocketAddr, purpose| {
        let protection = protection.clone();
        async move {
            let bound = Listener::bind(&address.to_string(), purpose, &protection).await;
            bound.map_err(|error| Failure::error(error.to_string(), ""))
        }
    };
    // A socket is read where it was bound.
    let clients = pool.spawn(bind(config.client_listen, "clients")).await.map_err(std::io::Error::from)??;
    let peers = bind(config.peer_listen, "peers").await?;
    let anonymous = if config.boots.anonymous {
        let address = config.anonymous_listen.to_string();
        let bind = async move { Listener::bind(&address, "nodes without a certificate", &Protection::Insecure).await };
        let bound = pool.spawn(bind).await.map_err(std::io::Error::from)?;
        Some(bound.map_err(|error| Failure::error(error.to_string(), ""))?)
    } else {
        None
    };

    let state = driver::load_state(&identity, &recovered, &library).await?;
    let began = Instant::now();
    let clock = RealClock::start();
    let settings = settings(config);
    let Assembly { handle, driver, log, archive: archive_ends, fetch } =
        driver::assemble(identity.clone(), settings, recovered, state, clock.now());
    warn_of_other_addresses(config, &handle, &identity);

    let counters = PeerCounters::default();
    let options = PeerOptions {
        peer_address: config.peer_address.as_str().into(),
        chunk_bytes: usize::try_from(config.snapshot_chunk_bytes).unwrap_or(usize::MAX),
        tls: tls.clone(),
        fetches: Some(pool.clone()),
        ..PeerOptions::default()
    };
    let network = GrpcNetwork::new(&identity, options, counters.clone());
    let dir = config.data_dir.clone();
    let replica = Replica::new(handle.clone(), library, identity.clone(), env!("CARGO_PKG_VERSION"))
        .with_disk_bytes(move || disk_bytes(&dir))
        .with_tls(tls.clone())
        .with_boots(config.boots);
    let limits = ClientLimits {
        payload_bytes_max: usize::try_from(config.payload_bytes_max).unwrap_or(usize::MAX),
        connections_max: config.connections_max,
        idle_timeout: config.idle_timeout,
        ..ClientLimits::default()
    };
    let pages = pages(replica.clone(), config.data_dir.clone(), began, tls.clone());
    let renewing = pool.spawn(keep_certificates_fresh(tls).instrument(span.clone()));

    let loops = [
        ("log", thread("log", span, move || block_on(driver::run_log(wal, log)))?),
        ("archive", thread("archive", span, move || block_on(driver::run_archive(archive, archive_ends)))?),
    ];
    let (ended, end) = oneshot::channel();
    let (loop_network, peer_network) = (network.clone(), network.clone());
    let replica_loop = async move {
        // Nobody waits for the outcome if the process is being torn down.
        let _ = ended.send(driver.run(loop_network, clock).await);
    };
    let replica_task = tokio::spawn(replica_loop.instrument(span.clone()));
    let fetching = pool.spawn(driver::run_fetch(fetch, network, clock).instrument(span.clone()));
    let overlays = pool.spawn(driver::keep_overlays(handle.clone(), clock, lifecycle::draw).instrument(span.clone()));
    info!(
        cluster = %identity.cluster,
        clients = %clients.address(),
        peers = %peers.address(),
        version = env!("CARGO_PKG_VERSION"),
        "the replica runs"
    );
    let anonymous = anonymous.map(|listener| {
        warn!(address = %listener.address(), "boot.anonymous: whoever reaches this port may read what any node boots");
        pool.spawn(serve_anonymous(listener, replica.clone(), limits.clone()).instrument(span.clone()))
    });
    let clients = pool.spawn(serve_clients(clients, replica.clone(), limits, pages).instrument(span.clone()));
    let peers = tokio::spawn(serve_peers(peers, replica.clone(), peer_network).instrument(span.clone()));

    let outcome = until_the_end(&handle, end, &loops, until_stdin_closes, &config.data_dir).await;
    replica.end();
    for server in [clients, peers] {
        if let Ok(Err(problem)) = server.await {
            warn!(%problem, "a server broke");
        }
    }
    if let Some(anonymous) = anonymous {
        anonymous.await.ok();
    }
    fetching.abort();
    overlays.abort();
    renewing.abort();
    if outcome.is_ok() && replica_task.await.is_err() {
        error!("the replica's loop ended on a bug");
    }
    for (name, thread) in loops {
        if outcome.is_ok() && thread.join().is_err() {
            error!(thread = name, "a thread ended on a bug");
        }
    }
    info!("the replica has stopped");
    outcome
}

/// The certificates, in force.
fn keys(config: &Config) -> Result<Option<Tls>, Failure> {
    let tls = lifecycle::own_keys(config)?;
    if let Some(tls) = &tls
        && tls.shown().has_ended()
    {
        let file = config.keys.as_ref().map(|keys| keys.certificate.display().to_string()).unwrap_or_default();
        return Err(Failure::error(
            format!("{file} has ended: nobody would speak with this replica"),
            format!("renew it: muster certs renew {file}"),
        ));
    }
    Ok(tls)
}

/// Takes certificates anew when their files change, and at once when told by SIGHUP; which ends nothing where there are none.
pub(crate) async fn keep_certificates_fresh(tls: Option<Tls>) {
    let Ok(mut told) = signal(SignalKind::hangup()) else {
        warn!("SIGHUP is not watched; certificates are taken anew when their files change");
        if let Some(tls) = tls {
            tls.keep_fresh().await;
        }
        return;
    };
    let hears = async {
        while told.recv().await.is_some() {
            match tls.as_ref().map(Tls::reload) {
                None => info!("SIGHUP: there are no certificates to take anew"),
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    warn!(%error, "told to take certificates anew, but they are not good; those from before stay in force");
                }
            }
        }
    };
    let looks = async {
        if let Some(tls) = tls.clone() {
            tls.keep_fresh().await;
        }
    };
    tokio::join!(hears, looks);
}

fn settings(config: &Config) -> Settings {
    let limits = Limits {
        payload_bytes_max: config.payload_bytes_max,
        snapshot_entries: config.snapshot_threshold,
        ..Limits::default()
    };
    let seed = u64::try_from(lifecycle::draw() & u128::from(u64::MAX)).unwrap_or_default();
    Settings { timing: config.timing, limits, seed }
}

/// Waits until the replica has ended, by itself or because a signal told it to.
async fn until_the_end(
    handle: &Handle,
    mut end: oneshot::Receiver<Result<(), StorageError>>,
    loops: &[(&str, JoinHandle<()>)],
    until_stdin_closes: bool,
    dir: &Path,
) -> Result<(), Failure> {
    let mut gone = None;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let why = tokio::select! {
        ended = &mut end => return explain(ended),
        name = a_thread_ends(loops) => {
            // One that met a fault has told the replica, which ends by it. One that ended on a bug has not, and without it the replica
            // would go on, acknowledging what it keeps no history of.
            let told = tokio::time::timeout(LOOK_EVERY, &mut end).await;
            return told.map_or_else(|_| Err(loop_broke(name)), explain);
        }
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        () = stdin_closes(), if until_stdin_closes => "standard input closed",
        () = directory_is_gone(dir) => {
            gone = Some(lost_directory(dir));
            "the data directory is gone"
        }
    };
    info!(why, "stopping: leadership is handed over first");
    handle.stop();
    tokio::select! {
        ended = &mut end => gone.map_or_else(|| explain(ended), Err),
        () = tokio::time::sleep(STOP_PATIENCE) => {
            Err(Failure::error(
                format!("the replica did not stop within {} s", STOP_PATIENCE.as_secs()),
                "nothing acknowledged is lost; start it again",
            ))
        }
        _ = terminate.recv() => Err(impatient()),
        _ = interrupt.recv() => Err(impatient()),
    }
}

/// Waits until one of these threads is over, however that came about; gives its name.
async fn a_thread_ends<'a>(threads: &[(&'a str, JoinHandle<()>)]) -> &'a str {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Some((name, _)) = threads.iter().find(|(_, thread)| thread.is_finished()) {
            return name;
        }
    }
}

fn loop_broke(name: &str) -> Failure {
    Failure::error(
        format!("the {name}'s thread ended on a bug, which the lines above tell"),
        "nothing acknowledged is lost; start it again, and report it",
    )
}

/// Waits until the directory that was opened is not there any more under its name. Open files go on taking writes after that,
/// and a restart would find none of them: the sooner it is told, the less is lost.
async fn directory_is_gone(dir: &Path) {
    let identity = dir.join("identity");
    let place = || std::fs::metadata(&identity).map(|found| (found.dev(), found.ino()));
    let Ok(opened) = place() else { return };
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match place() {
            Ok(found) if found == opened => {}
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {}
            Ok(_) | Err(_) => return,
        }
    }
}

fn lost_directory(dir: &Path) -> Failure {
    Failure::error(
        format!("{} was removed or moved while the replica ran", dir.display()),
        "if it was moved, move it back and start again; if it is lost, this replica's promises are lost with it: take its \
         place with `muster replace`",
    )
}

fn impatient() -> Failure {
    Failure::error("told to stop twice: ended at once", "nothing acknowledged is lost; start it again")
}

fn explain(ended: Result<Result<(), StorageError>, oneshot::error::RecvError>) -> Result<(), Failure> {
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(Failure::error(
            "the replica stopped on a bug; its log says where",
            "nothing acknowledged is lost; keep the log and start it again",
        )),
    }
}

/// Waits on a thread of its own: reading standard input blocks, and the runtime would wait for it at the end.
pub(crate) async fn stdin_closes() {
    let (closed, wait) = oneshot::channel();
    let reader = std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut buffer = [0; 64];
        while matches!(std::io::stdin().read(&mut buffer), Ok(read) if read > 0) {}
        let _ = closed.send(());
    });
    if reader.is_err() || wait.await.is_err() {
        warn!("standard input is not watched");
        std::future::pending::<()>().await;
    }
}

/// Members are told an address once, at admission. Another one in the file is not an error, but nobody learns of it.
fn warn_of_other_addresses(config: &Config, handle: &Handle, identity: &Identity) {
    let view = handle.view();
    let Ok(Answer::Members(members)) = query::answer(&view.state, view.status.applied, &Query::Members) else { return };
    let Some(here) = members.iter().find(|member| member.id == identity.replica) else { return };
    for (known, configured) in
        [(&here.peer_address, &config.peer_address), (&here.client_address, &config.client_address)]
    {
        if **known != **configured {
            warn!(%known, %configured, "others know this replica under another address than the configuration's");
        }
    }
}

fn pages<L: Library>(served: Replica<L>, dir: PathBuf, began: Instant, tls: Option<Tls>) -> HttpPages {
    let metrics = move || {
        let view = served.handle.view();
        let Ok(Answer::Summary(summary)) = query::answer(&view.state, view.status.applied, &Query::Summary) else {
            return String::new();
        };
        let scrape = Scrape {
            replica: ReplicaStatus::clone(&view.status),
            summary,
            overlays_behind: view.state.journal.stale_overlays().len() as u64,
            disk_bytes: disk_bytes(&dir),
            uptime_seconds: began.elapsed().as_secs(),
            boots: served.boots(),
            connections: served.connections(),
            tls: tls.as_ref().map(|tls| TlsFigures {
                certificate_expires: tls.shown().not_after,
                ca_expires: tls.ca_expires(),
                counts: tls.counts(),
            }),
        };
        scrape.text().unwrap_or_default()
    };
    HttpPages { metrics: Arc::new(metrics), ..HttpPages::default() }
}

/// What a directory's files take together. Files that go away meanwhile count nothing.
fn disk_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let sizes = entries.filter_map(Result::ok).map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
