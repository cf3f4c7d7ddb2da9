//! Writes: the session, and one write driven to its outcome by core's machines.

use super::connections::{Connections, lock};
use super::pipe::{Answer, FRAME_BYTES};
use crate::convert::Wire;
use crate::proto::v1 as wire;
use crate::server::MESSAGE_BYTES_MAX;
use muster_core::client::{Session, Step, Turn, WriteAttempts};
use muster_core::ids::{SessionId, Time};
use muster_core::journal::entry::{Author, Principal, Role};
use muster_core::request::{Command, NotApplied, Outcome, Reply, RequestId, UnknownWhy};
use prost::Message;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

/// The session that all clones of a client share. Opened by the first write.
#[derive(Default)]
pub(super) struct Sessions {
    open: Mutex<Option<Session>>,
    /// Who opened it, and is to close it.
    opener: Mutex<Option<Author>>,
    opening: tokio::sync::Mutex<()>,
    ended: Notify,
}

/// A number of the session, under way until it is dropped.
struct Number<'a> {
    sessions: &'a Sessions,
    session: SessionId,
    value: u64,
}

impl Drop for Number<'_> {
    fn drop(&mut self) {
        if let Some(session) = lock(&self.sessions.open).as_mut()
            && session.id() == self.session
        {
            session.end(self.value);
        }
        self.sessions.ended.notify_waiters();
    }
}

impl Number<'_> {
    /// The id of the request, with the newest acknowledgement.
    fn request(&self) -> RequestId {
        match lock(&self.sessions.open).as_ref() {
            Some(session) if session.id() == self.session => session.request(self.value),
            // The session was given up meanwhile; the request keeps its name.
            Some(_) | None => RequestId::Session { session: self.session, number: self.value, acknowledged: 0 },
        }
    }
}

impl Sessions {
    fn is_open(&self) -> bool {
        lock(&self.open).is_some()
    }

    fn try_begin(&self) -> Option<Number<'_>> {
        let mut open = lock(&self.open);
        let session = open.as_mut()?;
        let number = session.begin()?;
        Some(Number { sessions: self, session: session.id(), value: number })
    }

    /// Another write may have opened a new one already: only the session that failed is forgotten.
    fn forget(&self, failed: SessionId) {
        let mut open = lock(&self.open);
        if open.as_ref().is_some_and(|session| session.id() == failed) {
            *open = None;
        }
    }
}

enum Driven {
    Done(Outcome),
    Reopen,
}

/// Writes within the session.
pub(super) async fn write(
    connections: &Connections,
    sessions: &Sessions,
    author: &Author,
    command: &Command,
) -> Outcome {
    let deadline = deadline(connections);
    let mut attempts = attempts_until(connections, deadline);
    let first = wire_request(connections, author, command);
    if let Some(outcome) = too_large(&first) {
        return outcome;
    }
    // Most writes are sent once.
    let mut first = Some(first);
    loop {
        let number = match begin(connections, sessions, author, deadline).await {
            Ok(number) => number,
            Err(why) => return Outcome::NotApplied(why),
        };
        let request = || wire::WriteRequest {
            request: Some(number.request().to_wire()),
            ..first.take().unwrap_or_else(|| wire_request(connections, author, command))
        };
        match drive(connections, &mut attempts, request).await {
            Driven::Done(outcome) => return outcome,
            Driven::Reopen => sessions.forget(number.session),
        }
    }
}

/// Writes under an id of its own, under which it may have been asked before.
pub(super) async fn write_once(
    connections: &Connections,
    request: RequestId,
    author: &Author,
    command: &Command,
    was_asked: bool,
) -> Outcome {
    let (until, attempt) = (deadline(connections), millis(connections.options.attempt_timeout));
    let mut attempts =
        if was_asked { WriteAttempts::again(until, attempt) } else { WriteAttempts::new(until, attempt) };
    let request = wire::WriteRequest { request: Some(request.to_wire()), ..wire_request(connections, author, command) };
    if let Some(outcome) = too_large(&request) {
        return outcome;
    }
    match drive(connections, &mut attempts, || request.clone()).await {
        Driven::Done(outcome) => outcome,
        // Only an answer to a session's request could have led here.
        Driven::Reopen => Outcome::Unknown(UnknownWhy::SessionUnknown),
    }
}

/// Closes the session. Whether it worked does not matter: idle ones expire.
pub(super) async fn close(connections: &Connections, sessions: &Sessions) {
    let opener = lock(&sessions.opener).clone();
    if let (Some(number), Some(author)) = (sessions.try_begin(), opener) {
        let mut attempts = WriteAttempts::new(connections.now().plus_ms(1_000), 1_000);
        let base = wire_request(connections, &author, &Command::CloseSession);
        drive(connections, &mut attempts, || wire::WriteRequest {
            request: Some(number.request().to_wire()),
            ..base.clone()
        })
        .await;
        sessions.forget(number.session);
    }
}

/// What is told of the author. Over TLS the certificate says it; only an agent tells for whom it acts.
pub(super) fn told_author(connections: &Connections, author: &Author) -> Option<wire::Author> {
    let speaks_for = matches!(author, Author { principal: Principal::Claimed { .. }, role: Role::Agent(_) });
    (connections.options.tls.is_none() || speaks_for).then(|| author.to_wire())
}

fn wire_request(connections: &Connections, author: &Author, command: &Command) -> wire::WriteRequest {
    wire::WriteRequest {
        request: None,
        author: told_author(connections, author),
        command: Some(command.to_wire()),
        do_not_forward: false,
    }
}

/// No replica reads a message of this size: its stream would break, and every other write on it with it.
fn too_large(request: &wire::WriteRequest) -> Option<Outcome> {
    let bytes = request.encoded_len();
    let bytes_max = MESSAGE_BYTES_MAX - FRAME_BYTES - (64 << 10);
    (bytes > bytes_max)
        .then_some(Outcome::NotApplied(NotApplied::TooLarge { bytes: bytes as u64, bytes_max: bytes_max as u64 }))
}

fn deadline(connections: &Connections) -> Time {
    connections.now().plus_ms(millis(connections.options.write_timeout))
}

fn attempts_until(connections: &Connections, deadline: Time) -> WriteAttempts {
    WriteAttempts::new(deadline, millis(connections.options.attempt_timeout))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Takes a number, opening the session if there is none, waiting if too many are under way.
async fn begin<'a>(
    connections: &Connections,
    sessions: &'a Sessions,
    author: &Author,
    deadline: Time,
) -> Result<Number<'a>, NotApplied> {
    loop {
        let ended = sessions.ended.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        if let Some(number) = sessions.try_begin() {
            return Ok(number);
        }
        if sessions.is_open() {
            if tokio::time::timeout_at(connections.at(deadline), ended).await.is_err() {
                return Err(NotApplied::Busy { retry_after_ms: 100 });
            }
            continue;
        }
        let _one_at_a_time = sessions.opening.lock().await;
        if !sessions.is_open() {
            let session = open(connections, author, deadline).await?;
            *lock(&sessions.opener) = Some(author.clone());
            *lock(&sessions.open) = Some(Session::new(session));
        }
    }
}

/// Opens a session. Whatever comes of it, the write that needs it was not sent yet.
async fn open(connections: &Connections, author: &Author, deadline: Time) -> Result<SessionId, NotApplied> {
    loop {
        let age = super::reads::age(connections, deadline).await.map_err(|_| NotApplied::NoQuorum)?;
        let id = super::random_id();
        let request = wire::WriteRequest {
            request: Some(RequestId::OneShot { id, drawn_at: age }.to_wire()),
            ..wire_request(connections, author, &Command::OpenSession)
        };
        let mut attempts = attempts_until(connections, deadline);
        match drive(connections, &mut attempts, || request.clone()).await {
            Driven::Done(Outcome::Applied { reply: Reply::Session { session }, .. }) => return Ok(session),
            Driven::Done(Outcome::NotApplied(why)) => return Err(why),
            // An unknown session may be open: it expires unused. Another is asked for while there is time.
            Driven::Done(Outcome::Unknown(_) | Outcome::Applied { .. }) | Driven::Reopen
                if connections.now() < deadline => {}
            Driven::Done(_) | Driven::Reopen => return Err(NotApplied::NoQuorum),
        }
    }
}

/// Asks replicas, as core's machine says, until the outcome is known or time is up.
async fn drive(
    connections: &Connections,
    attempts: &mut WriteAttempts,
    mut request: impl FnMut() -> wire::WriteRequest,
) -> Driven {
    let deadline = attempts.deadline();
    loop {
        let address = connections.current();
        let until = connections.now().plus_ms(millis(connections.options.attempt_timeout)).min(deadline);
        let pipe = connections.pipe(&address);
        let answer = tokio::time::timeout_at(connections.at(until), pipe.send(request())).await;
        let now = connections.now();
        let step = match answer {
            Ok(Answer::Outcome(outcome, leader)) => {
                let mut targets = connections.targets();
                targets.answered();
                if let Some(leader) = leader.filter(|leader| !leader.address.is_empty()) {
                    targets.prefer(&Arc::from(leader.address));
                }
                drop(targets);
                attempts.on_sent();
                attempts.on_outcome(now, outcome)
            }
            Ok(Answer::NotSent(problem)) => {
                tracing::debug!(%address, problem, "a write was not sent");
                attempts.on_unreachable(now)
            }
            Ok(Answer::Lost) => {
                attempts.on_sent();
                attempts.on_lost(now)
            }
            Err(_) => {
                attempts.on_sent();
                if now >= deadline { Step::Done(attempts.on_deadline()) } else { attempts.on_lost(now) }
            }
        };
        let (turn, after_ms) = match step {
            Step::Done(outcome) => return Driven::Done(outcome),
            Step::Reopen => return Driven::Reopen,
            Step::Again { turn, after_ms } => (turn, after_ms),
        };
        let pause = match turn {
            Turn::Same => after_ms,
            Turn::Next => connections.targets().failed(&address).max(after_ms),
            Turn::Leader(leader) => {
                connections.targets().follow(&leader);
                after_ms
            }
        };
        let wake = connections.now().plus_ms(pause).min(deadline);
        tokio::time::sleep_until(connections.at(wake)).await;
        if connections.now() >= deadline {
            return Driven::Done(attempts.conclusion());
        }
    }
}
