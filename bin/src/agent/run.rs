//! `muster agent`: one node's agent on this machine's clock, disk, kernel and sockets.
//!
//! ```text
//!   people on the node ──► socket ─┐              ┌─► replicas (boot, subscription, writes, report)
//!   people elsewhere ────► port ───┤              │
//!                              ┌───▼──────┐  ┌────┴────┐
//!                              │  driver  ├──┤ journal │   on the pool
//!                              └─┬──────┬─┘  └─────────┘
//!                          saves │      │ work
//!                        (own thread) (own thread)
//! ```
//! The end: a signal stops the agent where it is. Nothing on the node is undone by it: windows go on when it is started again,
//! and supervised services run on.

use super::clock::Boottime;
use super::config::AgentConfig;
use super::host::{HostOptions, LinuxHost};
use super::link::{Link, options};
use super::runner::NodeRunner;
use crate::exit::Failure;
use crate::threads::{block_on, thread};
use crate::{lifecycle, logging};
use muster_core::agent::driver::{self, Assembly, Handle};
use muster_core::agent::machine::Settings;
use muster_core::journal::entry::{Author, Principal, Role};
use muster_core::service::Caller;
use muster_core::storage::StorageError;
use muster_net::agent::server::{AgentService, serve_tcp, serve_unix};
use muster_net::tls::Tls;
use muster_storage::agent::{AgentOptions, AgentStore};
use muster_storage::{Lock, RealDisk, ready};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tracing::{Instrument as _, Span, error, info, info_span, warn};

/// How long the loops may take to end.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Runs an agent until it is told to stop.
pub(crate) fn run(config: &AgentConfig, until_stdin_closes: bool) -> Result<(), Failure> {
    logging::begin(&config.log_level, config.log_format);
    let dir = &config.data_dir;
    let cannot = |error: std::io::Error| {
        Failure::error(
            format!("{} cannot be made: {error}", dir.display()),
            "make it writable for this user, or set another agent.data_dir",
        )
    };
    std::fs::create_dir_all(dir).map_err(cannot)?;
    let _lock = Lock::take(dir)?;
    let span = info_span!("agent", node = %config.node);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(serve(config, until_stdin_closes, &span).instrument(span.clone()));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// In whose name the agent writes what nobody asked for: its certificate's, or a claim.
fn own_author(config: &AgentConfig, tls: Option<&Tls>) -> Result<Author, Failure> {
    let role = Role::Agent(config.node.clone());
    let Some(tls) = tls else {
        let name = Arc::from(format!("agent@{}", config.node));
        return Ok(Author { principal: Principal::Claimed { name }, role });
    };
    match tls.credential().caller() {
        Caller::Author(author) if author.role == role => Ok(author.clone()),
        _ => Err(Failure::error(
            format!("security.certificate is {}'s, agent.node is {}", tls.credential(), config.node),
            format!("make one with `muster certs issue {} --role agent`", config.node),
        )),
    }
}

async fn serve(config: &AgentConfig, until_stdin_closes: bool, span: &Span) -> Result<(), Failure> {
    let opened = ready(AgentStore::open(RealDisk, &config.data_dir, AgentOptions::default()));
    let (store, stored) = opened?;
    for repair in &stored.repairs {
        warn!("{repair}");
    }
    let tls = config.keys.clone().map(Tls::load).transpose()?;
    let host =
        HostOptions { root: config.root.clone(), own: config.data_dir.clone(), excluded: config.exclude.clone() };
    let mut host =
        LinuxHost::open(&host).map_err(|problem| Failure::error(problem, "see agent.root and agent.data_dir"))?;
    let unix = bind_socket(&config.socket)?;
    let tcp = match config.listen {
        Some(address) => Some(TcpListener::bind(address).await.map_err(|error| in_use(&address.to_string(), &error))?),
        None => None,
    };
    // Port 0 asks the system for one.
    let address = match &tcp {
        Some(listener) if config.listen.is_some_and(|listen| listen.port() == 0) => listener.local_addr()?.to_string(),
        Some(_) | None => config.address.clone(),
    };

    let author = own_author(config, tls.as_ref())?;
    let settings = Settings {
        node: config.node.clone(),
        author: author.clone(),
        seed: lifecycle::draw(),
        conflict_grace_seconds: config.conflict_grace_seconds,
    };
    let Assembly { handle, driver, host: host_ends, store: store_ends, journal } =
        driver::assemble(settings, stored, &mut host, &Boottime).await;

    let host_thread = thread("host-loop", span, move || block_on(driver::run_host(host, host_ends)))?;
    let store_thread = thread("store", span, move || block_on(driver::run_store(store, store_ends)))?;
    if let Some(tls) = tls.as_ref().filter(|tls| tls.shown().has_ended()) {
        // The node is looked after all the same: nobody speaks with its agent until the certificate is renewed.
        warn!(certificate = %tls.credential(), "the certificate has ended: renew it with `muster certs renew`");
    }
    tokio::spawn(crate::server::keep_certificates_fresh(tls.clone()).instrument(span.clone()));
    let link = Link::new(config.servers.clone(), options(tls.clone()), author);
    let journal = driver::run_journal(config.node.clone(), Arc::from(address.as_str()), link, Boottime, journal);
    let journal = tokio::spawn(journal.instrument(span.clone()));
    let (ended, end) = oneshot::channel();
    let running = driver.run(Boottime);
    tokio::spawn(
        async move {
            // Nobody waits for the outcome if the process is being torn down.
            let _ = ended.send(running.await);
        }
        .instrument(span.clone()),
    );

    let (stop, stopping) = watch::channel(false);
    let over = || {
        let mut stopping = stopping.clone();
        async move {
            // The sender going away is an end, too.
            stopping.wait_for(|stopping| *stopping).await.ok();
        }
    };
    let directory = config.root.clone().unwrap_or_else(|| PathBuf::from("/"));
    let service =
        AgentService::new(config.node.clone(), handle.clone(), NodeRunner { directory }, config.roles.clone());
    let mut servers = vec![tokio::spawn(serve_unix(unix, service.clone(), over()).instrument(span.clone()))];
    if let Some(tcp) = tcp {
        servers.push(tokio::spawn(serve_tcp(tcp, tls, service, over()).instrument(span.clone())));
    }
    info!(
        socket = %config.socket.display(),
        address = %address,
        root = ?config.root,
        version = env!("CARGO_PKG_VERSION"),
        "the agent runs"
    );
    let outcome = until_the_end(&handle, end, until_stdin_closes).await;
    stop.send_replace(true);
    for server in servers {
        // A watcher that does not let go is cut off with the process.
        if let Ok(Ok(Err(problem))) = tokio::time::timeout(STOP_PATIENCE, server).await {
            warn!(%problem, "a server broke");
        }
    }
    journal.abort();
    std::fs::remove_file(&config.socket).ok();
    for (name, thread) in [("host", host_thread), ("store", store_thread)] {
        if outcome.is_ok() && thread.join().is_err() {
            error!(thread = name, "a thread ended on a bug");
        }
    }
    info!("the agent has stopped; windows go on when it is started again");
    outcome
}

fn in_use(what: &str, error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::AddrInUse {
        return Failure::error(format!("{what} is in use by another process"), "stop that one, or set another address");
    }
    Failure::error(format!("cannot listen on {what}: {error}"), "")
}

/// Makes the socket. One that a dead agent left is replaced; everybody may connect, and the door judges who they are.
fn bind_socket(path: &Path) -> Result<UnixListener, Failure> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(|error| {
            Failure::error(format!("{} cannot be made: {error}", directory.display()), "set agent.socket")
        })?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(Failure::error(
            format!("another agent listens on {}", path.display()),
            "stop it, or set another agent.socket",
        ));
    }
    std::fs::remove_file(path).ok();
    let listener = UnixListener::bind(path).map_err(|error| in_use(&path.display().to_string(), &error))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

async fn until_the_end(
    handle: &Handle,
    mut end: oneshot::Receiver<Result<(), StorageError>>,
    until_stdin_closes: bool,
) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let why = tokio::select! {
        ended = &mut end => return explain(ended),
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        () = crate::server::stdin_closes(), if until_stdin_closes => "standard input closed",
    };
    info!(why, "stopping");
    handle.stop();
    match tokio::time::timeout(STOP_PATIENCE, end).await {
        Ok(ended) => explain(ended),
        Err(_) => Err(Failure::error(
            format!("the agent did not stop within {} s", STOP_PATIENCE.as_secs()),
            "nothing is lost; start it again",
        )),
    }
}

fn explain(ended: Result<Result<(), StorageError>, oneshot::error::RecvError>) -> Result<(), Failure> {
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => {
            Err(Failure::error("the agent stopped on a bug; its log says where", "keep the log and start it again"))
        }
    }
}
