//! Asking a node's agent.
//!
//! A question that was not answered may have been carried out: the caller is told which.

use crate::client::ClientError;
use crate::convert::Wire;
use crate::proto::agent::v1 as wire;
use crate::proto::agent::v1::agent_client::AgentClient as Stub;
use crate::tls::{Expect, Tls, Told, dial, explain, root_cause};
use muster_core::agent::operator::{Refused, Reply, Report, Request};
use muster_core::ids::{NodeId, OneShotId, Seq};
use muster_core::journal::entry::Author;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

pub use super::server::{RunIn, RunOut, What};

/// Where an agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Its socket on this machine.
    Socket(PathBuf),
    /// `host:port`.
    Address(String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Address(address) => f.write_str(address),
        }
    }
}

/// A client of one node's agent.
#[derive(Clone, Debug)]
pub struct AgentClient {
    node: NodeId,
    place: Place,
    author: Author,
    stub: Stub<Channel>,
    timeout: Duration,
}

/// What came of a request to run something.
#[allow(clippy::large_enum_variant, reason = "one exists at a time")]
pub enum RunBegan {
    /// It is recorded and begins.
    Runs {
        /// The last sequence of its record; none if the journal will learn it later.
        sequence: Option<Seq>,
        /// To it.
        input: mpsc::Sender<wire::RunInput>,
        /// From it.
        output: RunOutput,
    },
    /// Nothing was run.
    Refused(Refused),
    /// Nobody knows yet whether it is recorded; nothing was run.
    Unknown(OneShotId),
}

/// What comes from a command that runs.
pub struct RunOutput {
    place: Place,
    stream: Streaming<wire::RunOutput>,
}

impl AgentClient {
    /// Connects to the agent of `node` at `place`; over TLS if there are keys and it is not a socket. On a connection that proves
    /// nobody, `author` is claimed.
    ///
    /// # Errors
    /// `Unreachable`.
    pub async fn connect(
        node: NodeId,
        place: Place,
        author: Author,
        tls: Option<&Tls>,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        let unreachable = |problem: String| ClientError::Unreachable { tried: vec![(place.to_string(), problem)] };
        let uri = match &place {
            Place::Socket(path) => format!("unix://{}", path.display()),
            Place::Address(address) => format!("http://{address}"),
        };
        let endpoint =
            Endpoint::from_shared(uri).map_err(|error| ClientError::Invalid { problem: error.to_string() })?;
        let endpoint = endpoint.connect_timeout(timeout.min(Duration::from_secs(2)));
        let tls = tls.filter(|_| matches!(place, Place::Address(_)));
        let channel = dial::connect(&endpoint, tls, &Expect::Agent(node.clone())).await;
        let channel = channel.map_err(|error| match explain(&error) {
            Told { problem, denied: true } => ClientError::Denied { address: place.to_string(), problem },
            Told { denied: false, .. } => unreachable(root_cause(&error)),
        })?;
        Ok(Self { node, place, author, stub: Stub::new(channel).max_decoding_message_size(usize::MAX), timeout })
    }

    /// Where the agent is.
    #[must_use]
    pub const fn place(&self) -> &Place {
        &self.place
    }

    fn failed(&self, status: &Status) -> ClientError {
        failed(&self.place, status)
    }

    fn show_request(&self) -> wire::ShowRequest {
        wire::ShowRequest { node: self.node.to_string(), author: Some(self.author.to_wire()) }
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers hand over what they have at hand")]
    fn senseless(&self, error: impl ToString) -> ClientError {
        ClientError::Broken { address: self.place.to_string(), problem: error.to_string() }
    }

    /// How the node is.
    ///
    /// # Errors
    /// As [`AgentClient::ask`].
    pub async fn show(&self) -> Result<Report, ClientError> {
        let reply = self.within(self.stub.clone().show(self.show_request())).await?;
        Report::from_wire(reply).map_err(|error| self.senseless(error))
    }

    /// The same, again whenever it changes.
    ///
    /// # Errors
    /// As [`AgentClient::ask`].
    pub async fn watch(&self) -> Result<Reports, ClientError> {
        let stream = self.within(self.stub.clone().watch(self.show_request())).await?;
        Ok(Reports { place: self.place.clone(), stream })
    }

    /// Asks something of the node. What takes time there (a service that starts) takes it here.
    ///
    /// # Errors
    /// `Unreachable` if it was not asked; `Broken` if it was and did not answer; `Refused` if the agent does not let us in.
    pub async fn ask(&self, request: &Request) -> Result<Reply, ClientError> {
        let request = wire::AskRequest {
            node: self.node.to_string(),
            author: Some(self.author.to_wire()),
            request: request.to_wire(),
        };
        let reply = self.stub.clone().ask(request).await.map_err(|status| self.failed(&status))?;
        Reply::from_wire(reply.into_inner().reply).map_err(|error| self.senseless(error))
    }

    /// Has something run on the node.
    ///
    /// # Errors
    /// As [`AgentClient::ask`].
    pub async fn run(&self, what: What) -> Result<RunBegan, ClientError> {
        use wire::run_begin::What as W;
        use wire::run_output::Output;
        let what = match what {
            What::Command(arguments) => {
                W::Command(wire::Command { arguments: arguments.iter().map(ToString::to_string).collect() })
            }
            What::Shell { size: (rows, columns), term } => {
                let size = wire::TerminalSize { rows: rows.into(), columns: columns.into() };
                W::Shell(wire::Shell { size: Some(size), term })
            }
        };
        let begin =
            wire::RunBegin { node: self.node.to_string(), author: Some(self.author.to_wire()), what: Some(what) };
        let (input, inputs) = mpsc::channel(8);
        let begin = wire::RunInput { input: Some(wire::run_input::Input::Begin(begin)) };
        // The channel is new and has room.
        input.send(begin).await.ok();
        let stream = self.stub.clone().run(ReceiverStream::new(inputs)).await;
        let mut stream = stream.map_err(|status| self.failed(&status))?.into_inner();
        let first = stream.message().await.map_err(|status| self.failed(&status))?;
        match first.and_then(|first| first.output) {
            Some(Output::Began(began)) => Ok(RunBegan::Runs {
                sequence: began.sequence.map(Seq),
                input,
                output: RunOutput { place: self.place.clone(), stream },
            }),
            Some(Output::Refused(refused)) => {
                let refused = Refused::from_wire(refused).map_err(|error| self.senseless(error))?;
                Ok(RunBegan::Refused(refused))
            }
            Some(Output::UnknownRequest(request)) => {
                let request = request.parse().map_err(|error: muster_core::ids::InvalidName| self.senseless(error))?;
                Ok(RunBegan::Unknown(request))
            }
            _ => Err(self.senseless("it did not begin")),
        }
    }

    async fn within<T>(
        &self,
        asking: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, ClientError> {
        match tokio::time::timeout(self.timeout, asking).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.failed(&status)),
            Err(_) => {
                Err(ClientError::Unreachable { tried: vec![(self.place.to_string(), "no answer in time".to_owned())] })
            }
        }
    }
}

fn failed(place: &Place, status: &Status) -> ClientError {
    let problem = match std::error::Error::source(status).map(explain) {
        Some(Told { problem, denied: true }) => return ClientError::Denied { address: place.to_string(), problem },
        Some(Told { problem, denied: false }) => problem,
        None => status.message().to_owned(),
    };
    match status.code() {
        Code::InvalidArgument | Code::FailedPrecondition => ClientError::Invalid { problem },
        Code::PermissionDenied | Code::Unauthenticated => ClientError::Denied { address: place.to_string(), problem },
        Code::Unavailable => ClientError::Unreachable { tried: vec![(place.to_string(), problem)] },
        _ => ClientError::Broken { address: place.to_string(), problem },
    }
}

/// Reports as they come.
pub struct Reports {
    place: Place,
    stream: Streaming<wire::Report>,
}

impl Reports {
    /// The next one.
    ///
    /// # Errors
    /// As [`AgentClient::ask`].
    pub async fn next(&mut self) -> Result<Report, ClientError> {
        let broken = |problem: String| ClientError::Broken { address: self.place.to_string(), problem };
        match self.stream.message().await {
            Ok(Some(report)) => Report::from_wire(report).map_err(|error| broken(error.to_string())),
            Ok(None) => Err(broken("it ended the watch".to_owned())),
            Err(status) => Err(failed(&self.place, &status)),
        }
    }
}

impl RunOutput {
    /// The next piece; the last one says how it ended.
    pub async fn next(&mut self) -> RunOut {
        use wire::run_ended::How;
        use wire::run_output::Output;
        loop {
            let lost = |problem: String| RunOut::Failed(problem);
            return match self.stream.message().await {
                Ok(Some(wire::RunOutput { output: Some(output) })) => match output {
                    Output::Stdout(bytes) => RunOut::Stdout(bytes),
                    Output::Stderr(bytes) => RunOut::Stderr(bytes),
                    Output::Ended(wire::RunEnded { how }) => match how {
                        Some(How::ExitStatus(status)) => RunOut::Exit(status),
                        Some(How::Signal(signal)) => RunOut::Signal(signal),
                        Some(How::Problem(problem)) => RunOut::Failed(problem),
                        None => lost("it does not say how it ended".to_owned()),
                    },
                    Output::Began(_) | Output::Refused(_) | Output::UnknownRequest(_) => continue,
                },
                Ok(Some(wire::RunOutput { output: None })) => continue,
                Ok(None) => lost("the connection ended before it did".to_owned()),
                Err(status) => lost(failed(&self.place, &status).to_string()),
            };
        }
    }
}

/// A piece of input on the wire.
#[must_use]
pub fn input(piece: RunIn) -> wire::RunInput {
    use wire::run_input::Input;
    let input = match piece {
        RunIn::Bytes(bytes) => Input::Stdin(bytes),
        RunIn::End => Input::StdinEnds(crate::proto::v1::Nothing {}),
        RunIn::Size(rows, columns) => Input::Size(wire::TerminalSize { rows: rows.into(), columns: columns.into() }),
    };
    wire::RunInput { input: Some(input) }
}
