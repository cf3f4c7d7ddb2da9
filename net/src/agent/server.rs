//! `muster.agent.v1.Agent` as an agent serves it.
//!
//! Every request passes the door (`muster_core::service`) before the agent's machine hears of it. Which node is meant is part of
//! every request: an address that another agent has taken over meanwhile changes nothing on the wrong machine.
//!
//! Never here: running anything. What runs a command is given by the binary, and is asked only after the machine has said that
//! the command is recorded.

use crate::convert::{At as _, Malformed, Wire, text};
use crate::proto::agent::v1 as wire;
use crate::proto::agent::v1::agent_server::{Agent, AgentServer};
use crate::server::{Access, MESSAGE_BYTES_MAX};
use crate::tls::accept::incoming;
use crate::tls::{Port, Tls};
use bytes::Bytes;
use futures_util::Stream;
use muster_core::agent::driver::Handle;
use muster_core::agent::operator::{Refused, Reply, Report, Request as Asked};
use muster_core::ids::NodeId;
use muster_core::journal::entry::Author;
use muster_core::request::Refusal;
use muster_core::service::local::{LocalRoles, Process, caller as local_caller};
use muster_core::service::{Caller, Kind, Nowhere, OneNode, Operation, allow};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Extensions, Request, Response, Status, Streaming};

/// How often a watcher is told, at least.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// Messages a slow reader may be behind.
const STREAM_MESSAGES: usize = 8;

/// What is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A command and its arguments.
    Command(Vec<Arc<str>>),
    /// A shell on a terminal.
    Shell {
        /// Its size, rows and columns.
        size: (u16, u16),
        /// The value of `TERM`.
        term: String,
    },
}

/// What goes to a running command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunIn {
    /// For its standard input.
    Bytes(Bytes),
    /// Standard input ends.
    End,
    /// The terminal has another size.
    Size(u16, u16),
}

/// What comes from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunOut {
    /// Standard output, or the terminal's.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// It ended; nothing follows.
    Exit(i32),
    /// A signal ended it; nothing follows.
    Signal(i32),
    /// It could not be begun, or was lost; nothing follows.
    Failed(String),
}

/// A command that runs. It is ended when `input` is dropped.
pub struct Running {
    /// To it.
    pub input: mpsc::Sender<RunIn>,
    /// From it.
    pub output: mpsc::Receiver<RunOut>,
}

/// Runs commands on the node.
pub trait Runner: Clone + Send + Sync + 'static {
    /// Begins one.
    fn begin(&self, what: What) -> Running;
}

/// An agent and who may ask it what.
#[derive(Clone)]
pub struct AgentService<R> {
    node: NodeId,
    handle: Handle,
    runner: R,
    roles: Arc<LocalRoles>,
}

impl<R: Runner> AgentService<R> {
    /// The service of a node's agent.
    #[must_use]
    pub fn new(node: NodeId, handle: Handle, runner: R, roles: LocalRoles) -> Self {
        Self { node, handle, runner, roles: Arc::new(roles) }
    }

    /// Who asks.
    fn caller(&self, extensions: &Extensions, claimed: Option<Author>) -> Result<Caller, Status> {
        if let Some(info) = extensions.get::<UdsConnectInfo>() {
            let Some(cred) = info.peer_cred else {
                return Err(Status::unauthenticated("the kernel does not say who is at the other end of the socket"));
            };
            let process = Process { uid: cred.uid(), gids: groups(cred.pid(), cred.gid()) };
            return Ok(local_caller(&process, &self.node, &self.roles));
        }
        // Agents ask each other nothing: whom one would act for is of no account here.
        let author = Access::of(extensions)?.author(claimed, &Nowhere);
        author.map(Caller::Author).map_err(|refusal| match refusal {
            Refusal::Forbidden { problem } => Status::permission_denied(&*problem),
            other => Status::invalid_argument(format!("{other:?}")),
        })
    }

    /// The door. Gives in whose name it is done.
    fn author(
        &self,
        extensions: &Extensions,
        node: &str,
        claimed: Option<crate::proto::v1::Author>,
        kind: Kind,
    ) -> Result<Result<Author, Refused>, Status> {
        let asked: NodeId = text("node", node)?;
        if asked != self.node {
            return Err(Status::failed_precondition(format!(
                "this is the agent of {}, not of {asked}: ask a replica again where that one is",
                self.node
            )));
        }
        let claimed = claimed.map(Author::from_wire).transpose().at("author")?;
        let caller = self.caller(extensions, claimed)?;
        let vcluster = self.handle.published().report.vcluster.clone();
        let one = OneNode { node: self.node.clone(), vcluster };
        let allowed = allow(&caller, &Operation::on_node(kind, self.node.clone()), &one);
        Ok(match (allowed, caller) {
            (Err(denied), _) => Err(Refused::Forbidden { problem: denied.problem.into() }),
            (Ok(()), Caller::Author(author)) => Ok(author),
            (Ok(()), Caller::Replica(_) | Caller::Nobody) => {
                Err(Refused::Forbidden { problem: "an agent is asked by people".into() })
            }
        })
    }

    async fn ask(&self, author: Author, request: Asked) -> Result<Reply, Status> {
        self.handle.ask(author, request).await.ok_or_else(|| Status::unavailable("the agent is stopping"))
    }

    async fn report(&self, author: Author) -> Result<Arc<Report>, Status> {
        match self.ask(author, Asked::Show).await? {
            Reply::Report(report) => Ok(report),
            _ => Err(Status::internal("the agent answered another question than was asked")),
        }
    }
}

/// All groups of a process: the kernel's word at the time of the connection, and the others it has.
fn groups(pid: Option<i32>, first: u32) -> Vec<u32> {
    let mut gids = vec![first];
    let status = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok()).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    gids.extend(line.split_whitespace().filter_map(|gid| gid.parse::<u32>().ok()));
    gids
}

const fn kind_of(request: &Asked) -> Kind {
    match request {
        Asked::Show => Kind::LookAtNode,
        Asked::Set { .. } => Kind::SetOnNode,
        Asked::Commit { .. } => Kind::CommitOnNode,
        Asked::Rollback { .. } => Kind::RollBackOnNode,
        Asked::Extend { .. } => Kind::ExtendWindow,
        Asked::EmergencyStart { .. } | Asked::EmergencyEnd { .. } => Kind::EmergencyOnNode,
        Asked::Exec { .. } => Kind::Exec,
        Asked::ShellStart | Asked::ShellEnd { .. } => Kind::Shell,
    }
}

fn forbidden(refused: &Refused) -> Status {
    Status::permission_denied(refused.to_string())
}

type Pinned<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl<R: Runner> Agent for AgentService<R> {
    type WatchStream = Pinned<wire::Report>;
    type RunStream = ReceiverStream<Result<wire::RunOutput, Status>>;

    async fn show(&self, request: Request<wire::ShowRequest>) -> Result<Response<wire::Report>, Status> {
        let (_, extensions, asked) = request.into_parts();
        let author = self.author(&extensions, &asked.node, asked.author, Kind::LookAtNode)?;
        let author = author.map_err(|refused| forbidden(&refused))?;
        Ok(Response::new(self.report(author).await?.to_wire()))
    }

    async fn watch(&self, request: Request<wire::ShowRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (_, extensions, asked) = request.into_parts();
        let service = self.clone();
        // Asked for every report: certificates end and nodes move while somebody watches.
        let door = move |service: &Self| {
            let author = service.author(&extensions, &asked.node, asked.author.clone(), Kind::LookAtNode)?;
            author.map_err(|refused| forbidden(&refused))
        };
        door(self)?;
        let (out, reports) = mpsc::channel(STREAM_MESSAGES);
        tokio::spawn(async move {
            loop {
                let version = service.handle.published().version;
                let report = match door(&service) {
                    Ok(author) => service.report(author).await.map(|report| report.to_wire()),
                    Err(refused) => Err(refused),
                };
                let over = report.is_err();
                if out.send(report).await.is_err() || over {
                    return;
                }
                tokio::select! {
                    _ = service.handle.changed(version) => {}
                    () = tokio::time::sleep(WATCH_EVERY) => {}
                    () = out.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(reports))))
    }

    async fn ask(&self, request: Request<wire::AskRequest>) -> Result<Response<wire::AskReply>, Status> {
        let (_, extensions, asked) = request.into_parts();
        let request = Asked::from_wire(asked.request)?;
        let reply = match self.author(&extensions, &asked.node, asked.author, kind_of(&request))? {
            Ok(author) => AgentService::ask(self, author, request).await?,
            Err(refused) => Reply::Refused(refused),
        };
        Ok(Response::new(wire::AskReply { reply: reply.to_wire() }))
    }

    async fn run(&self, request: Request<Streaming<wire::RunInput>>) -> Result<Response<Self::RunStream>, Status> {
        use wire::run_input::Input;
        let (_, extensions, mut inputs) = request.into_parts();
        let first = inputs.message().await?.and_then(|message| message.input);
        let Some(Input::Begin(begin)) = first else {
            return Err(Status::invalid_argument("the first message must be begin"));
        };
        let (what, asked) = what(begin.what)?;
        let author = self.author(&extensions, &begin.node, begin.author, kind_of(&asked))?;
        let (out, outputs) = mpsc::channel(STREAM_MESSAGES);
        tokio::spawn(run(self.clone(), author, what, asked, inputs, out));
        Ok(Response::new(ReceiverStream::new(outputs)))
    }
}

fn size(size: Option<wire::TerminalSize>) -> (u16, u16) {
    let size = size.unwrap_or(wire::TerminalSize { rows: 24, columns: 80 });
    let bounded = |number: u32| u16::try_from(number.clamp(1, 10_000)).unwrap_or(80);
    (bounded(size.rows), bounded(size.columns))
}

fn what(what: Option<wire::run_begin::What>) -> Result<(What, Asked), Malformed> {
    use wire::run_begin::What as W;
    match what {
        Some(W::Command(command)) => {
            let arguments: Vec<Arc<str>> = command.arguments.into_iter().map(Arc::from).collect();
            if arguments.is_empty() {
                return Err(Malformed::new("begin.command.arguments", "expected a command"));
            }
            Ok((What::Command(arguments.clone()), Asked::Exec { arguments }))
        }
        Some(W::Shell(shell)) => Ok((What::Shell { size: size(shell.size), term: shell.term }, Asked::ShellStart)),
        None => Err(Malformed::new("begin", "give one of command, shell")),
    }
}

type Out = mpsc::Sender<Result<wire::RunOutput, Status>>;

#[expect(clippy::unnecessary_wraps, reason = "what the stream carries")]
fn output(output: wire::run_output::Output) -> Result<wire::RunOutput, Status> {
    Ok(wire::RunOutput { output: Some(output) })
}

/// Has it recorded, then runs it, passing bytes both ways.
async fn run<R: Runner>(
    service: AgentService<R>,
    author: Result<Author, Refused>,
    what: What,
    asked: Asked,
    inputs: Streaming<wire::RunInput>,
    out: Out,
) {
    use wire::run_output::Output as W;
    let is_shell = matches!(what, What::Shell { .. });
    let reply = match &author {
        Ok(author) => match AgentService::ask(&service, author.clone(), asked).await {
            Ok(reply) => reply,
            Err(status) => {
                out.send(Err(status)).await.ok();
                return;
            }
        },
        Err(refused) => Reply::Refused(refused.clone()),
    };
    let sequence = match reply {
        Reply::Run { sequence } => sequence,
        Reply::Unknown { request } => {
            out.send(output(W::UnknownRequest(request.to_string()))).await.ok();
            return;
        }
        Reply::Refused(refused) => {
            out.send(output(W::Refused(refused.to_wire()))).await.ok();
            return;
        }
        _ => {
            out.send(Err(Status::internal("the agent answered another question than was asked"))).await.ok();
            return;
        }
    };
    let began = W::Began(wire::RunBegan { sequence: sequence.map(|sequence| sequence.0) });
    let exit_status = if out.send(output(began)).await.is_ok() {
        let running = service.runner.begin(what);
        pass(running, inputs, &out).await
    } else {
        None
    };
    if let Ok(author) = author
        && is_shell
    {
        // A client that went away is no reason not to record the end.
        service.handle.ask(author, Asked::ShellEnd { exit_status }).await;
    }
}

/// Passes bytes until the command ends or the client goes away.
async fn pass(running: Running, mut inputs: Streaming<wire::RunInput>, out: &Out) -> Option<i32> {
    use wire::run_ended::How;
    use wire::run_input::Input;
    use wire::run_output::Output as W;
    let Running { input, output: mut from } = running;
    let mut input = Some(input);
    let mut listening = true;
    loop {
        tokio::select! {
            message = inputs.message(), if listening && input.is_some() => {
                let piece = match message {
                    Ok(Some(message)) => match message.input {
                        Some(Input::Stdin(bytes)) => RunIn::Bytes(bytes),
                        Some(Input::StdinEnds(_)) => RunIn::End,
                        Some(Input::Size(new)) => {
                            let (rows, columns) = size(Some(new));
                            RunIn::Size(rows, columns)
                        }
                        Some(Input::Begin(_)) | None => continue,
                    },
                    Ok(None) => {
                        listening = false;
                        RunIn::End
                    }
                    // The client is gone: without its input the command is ended.
                    Err(_) => {
                        input = None;
                        continue;
                    }
                };
                if let Some(to) = &input
                    && to.send(piece).await.is_err()
                {
                    listening = false;
                }
            }
            piece = from.recv() => {
                let ended = |how| W::Ended(wire::RunEnded { how: Some(how) });
                let (piece, status) = match piece {
                    Some(RunOut::Stdout(bytes)) => (W::Stdout(bytes), None),
                    Some(RunOut::Stderr(bytes)) => (W::Stderr(bytes), None),
                    Some(RunOut::Exit(status)) => (ended(How::ExitStatus(status)), Some(Some(status))),
                    Some(RunOut::Signal(signal)) => (ended(How::Signal(signal)), Some(Some(128 + signal))),
                    Some(RunOut::Failed(problem)) => (ended(How::Problem(problem)), Some(None)),
                    None => (ended(How::Problem("it was lost".to_owned())), Some(None)),
                };
                let sent = out.send(output(piece)).await.is_ok();
                if let Some(status) = status {
                    return status;
                }
                if !sent {
                    return None;
                }
            }
            () = out.closed() => return None,
        }
    }
}

/// Serves a Unix socket until `over` is done.
///
/// # Errors
/// In words, if the server broke.
pub async fn serve_unix<R: Runner>(
    listener: UnixListener,
    service: AgentService<R>,
    over: impl Future<Output = ()> + Send + 'static,
) -> Result<(), String> {
    let serving = Server::builder()
        .add_service(AgentServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), over);
    serving.await.map_err(|error| error.to_string())
}

/// Serves a TCP port until `over` is done: with certificates if there are keys.
///
/// # Errors
/// In words, if the server broke.
pub async fn serve_tcp<R: Runner>(
    listener: TcpListener,
    tls: Option<Tls>,
    service: AgentService<R>,
    over: impl Future<Output = ()> + Send + 'static,
) -> Result<(), String> {
    let serving = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(AgentServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .serve_with_incoming_shutdown(incoming(listener, tls.map(|tls| (tls, Port::Anyone))), over);
    serving.await.map_err(|error| error.to_string())
}
