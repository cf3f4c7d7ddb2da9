//! How a command ends: the exit codes of the mission, and for every failure what to do next.
//!
//! A failure says what happened in one line and what to do about it in the next. Whether a write was applied is never left
//! open: *refused* and *not applied* recorded nothing, *unknown* prints the request id to ask again with.

use crate::document::Problems;
use muster_core::request::{NotApplied, Outcome, Refusal, Reply, UnknownWhy};
use muster_net::client::{ClientError, OneShot};
use serde_json::{Value, json};
use std::fmt;

/// It was done.
pub(crate) const DONE: u8 = 0;
/// Something else went wrong.
pub(crate) const ERROR: u8 = 1;
/// The command line is wrong. Also what clap ends with.
pub(crate) const USAGE: u8 = 2;
/// A policy or a role forbids it.
pub(crate) const FORBIDDEN: u8 = 3;
/// Somebody else changed the same key.
pub(crate) const CONFLICT: u8 = 4;
/// No quorum, and nothing was applied.
pub(crate) const NO_QUORUM: u8 = 5;
/// Nobody knows whether it was applied.
pub(crate) const UNKNOWN: u8 = 6;
/// A rollback was blocked: somebody uses what would change.
pub(crate) const BLOCKED: u8 = 10;

/// The outcome when a file that people wrote is wrong: each line of the message begins with its place in it.
const WRONG_FILE: &str = "wrong-file";

/// A command that did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    /// What became of it, as one word for programs.
    pub(crate) outcome: &'static str,
    /// What happened.
    pub(crate) message: String,
    /// What to do next; empty where the message says it.
    pub(crate) next: String,
    /// What programs get besides.
    pub(crate) detail: Value,
}

impl Failure {
    /// An error of the world.
    pub(crate) fn error(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self { code: ERROR, outcome: "error", message: message.into(), next: next.into(), detail: Value::Null }
    }

    /// A command line that cannot be carried out.
    pub(crate) fn usage(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self { code: USAGE, outcome: "usage", ..Self::error(message, next) }
    }

    /// The same with something for programs.
    pub(crate) fn with(self, detail: Value) -> Self {
        Self { detail, ..self }
    }

    /// The same with nothing to say: what ran has said it.
    pub(crate) fn quiet(self) -> Self {
        Self { message: String::new(), next: String::new(), ..self }
    }

    /// Whether everything was said already.
    pub(crate) fn is_quiet(&self) -> bool {
        self.message.is_empty()
    }

    /// For people, as the last thing a command prints.
    pub(crate) fn last_words(&self) -> String {
        let prefix = if self.outcome == WRONG_FILE { "" } else { "muster: " };
        format!("{prefix}{self}\n")
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        json!({
            "outcome": self.outcome,
            "exit": self.code,
            "message": self.message,
            "next": self.next,
            "detail": self.detail,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.next.is_empty() { Ok(()) } else { write!(f, "\n  {}", self.next) }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            // Whoever read our output has seen enough (`muster log | head`): that is no failure.
            return Self { code: DONE, outcome: "unread", ..Self::error("nobody reads the output any more", "") };
        }
        Self::error(error.to_string(), "")
    }
}

impl From<muster_core::storage::StorageError> for Failure {
    fn from(error: muster_core::storage::StorageError) -> Self {
        Self::error(error.to_string(), "")
    }
}

impl From<muster_net::tls::KeyError> for Failure {
    fn from(error: muster_net::tls::KeyError) -> Self {
        Self::error(error.to_string(), "")
    }
}

impl From<crate::config::ConfigError> for Failure {
    fn from(error: crate::config::ConfigError) -> Self {
        let detail = match &error {
            crate::config::ConfigError::Unreadable { .. } => Value::Null,
            crate::config::ConfigError::Problems(problems) => problems_json(problems),
        };
        let outcome = if detail.is_null() { "error" } else { WRONG_FILE };
        Self { outcome, ..Self::error(error.to_string(), "").with(detail) }
    }
}

impl From<Vec<Problems>> for Failure {
    fn from(files: Vec<Problems>) -> Self {
        let text = files.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        let failure = Self::error(text, "nothing was changed; mend what is named and apply it again");
        Self { outcome: WRONG_FILE, ..failure }.with(Value::Array(files.iter().map(problems_json).collect()))
    }
}

fn problems_json(problems: &Problems) -> Value {
    let list: Vec<_> = problems.list.iter().map(|p| json!({ "line": p.line, "problem": p.text })).collect();
    json!({ "file": problems.file, "problems": list })
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Unreachable { tried } => {
                let tried: Vec<_> = tried.iter().map(|(address, problem)| format!("{address} ({problem})")).collect();
                Self::error(
                    format!("no replica could be reached: {}", tried.join(", ")),
                    "check that a server runs there, and name others with --server HOST:PORT or MUSTER_SERVERS",
                )
            }
            ClientError::Denied { address, problem } => Self {
                code: FORBIDDEN,
                outcome: "denied",
                ..Self::error(
                    format!("{address} denies it: {problem}"),
                    "ask with another certificate; `muster certs show FILE` tells what one says",
                )
            },
            ClientError::Refused(refusal) => refused(&refusal),
            ClientError::NotAnswered(why) => not_applied(&why),
            ClientError::Lagging { known, sequence } => Self::error(
                format!("sequence {known} is asked for, the replicas asked are at sequence {sequence}"),
                "ask again in a moment, or another replica with --server",
            ),
            ClientError::Invalid { problem } => Self::error(format!("the request is wrong: {problem}"), ""),
            ClientError::Broken { address, problem } => {
                Self::error(format!("{address} broke off: {problem}"), "run the command again; it only reads")
            }
            ClientError::NotVerified { sequence, problem } => Self::error(
                format!("the history does not verify at sequence {sequence}: {problem}"),
                "stop that replica, keep its directory, and compare with `muster verify --on` another replica",
            ),
            ClientError::Outcome(outcome) => match written(outcome, None) {
                Err(failure) => failure,
                Ok(_) => Self::error("the write was applied, but its answer makes no sense", ""),
            },
        }
    }
}

/// What a write gave, or the failure that says why it gave nothing.
pub(crate) fn written(outcome: Outcome, request: Option<OneShot>) -> Result<Reply, Failure> {
    match outcome {
        Outcome::Applied { reply, .. } => Ok(reply),
        Outcome::Refused(refusal) => Err(refused(&refusal)),
        Outcome::NotApplied(why) => Err(not_applied(&why)),
        Outcome::Unknown(why) => Err(unknown(&why, request)),
    }
}

/// A refusal in words, for logs.
pub(crate) fn refusal_text(refusal: &Refusal) -> String {
    refused(refusal).message
}

/// A request's id as it is printed by those who do not know when it was drawn.
pub(crate) fn request_id_text(request: muster_core::ids::OneShotId) -> String {
    request.to_string()
}

/// How a request id is printed and taken.
pub(crate) fn request_text(request: OneShot) -> String {
    format!("{}@{}", request.id, request.drawn_at)
}

/// Takes a request id as it was printed.
pub(crate) fn parse_request(text: &str) -> Result<OneShot, String> {
    let wrong = || {
        format!("{text:?} is not a request id: expected ID@AGE as it was printed, 32 hexadecimal digits, @, a number")
    };
    let (id, age) = text.split_once('@').ok_or_else(wrong)?;
    let id = id.parse().map_err(|_| wrong())?;
    let age = age.parse().map_err(|_| wrong())?;
    Ok(OneShot { id, drawn_at: muster_core::ids::Age(age) })
}

fn unknown(why: &UnknownWhy, request: Option<OneShot>) -> Failure {
    // What the cluster does not keep any more it will not know later.
    let may_be_told_yet = match why {
        UnknownWhy::TimedOut | UnknownWhy::ForwardTimedOut | UnknownWhy::ConnectionLost => true,
        UnknownWhy::SessionUnknown | UnknownWhy::AlreadyAcknowledged | UnknownWhy::OneShotExpired => false,
    };
    let why = match why {
        UnknownWhy::TimedOut => "it is in a log, and no quorum answered in time",
        UnknownWhy::ForwardTimedOut => "it was passed on to the leader, and no answer came in time",
        UnknownWhy::SessionUnknown => "its session is not known any more",
        UnknownWhy::AlreadyAcknowledged => "its answer was acknowledged and is not kept any more",
        UnknownWhy::OneShotExpired => {
            "its request id is older than answers are kept, or younger than the cluster's time"
        }
        UnknownWhy::ConnectionLost => "the connection was lost before the answer",
    };
    let next = request.filter(|_| may_be_told_yet).map_or_else(
        || "look with `muster log` whether it is there, then decide".to_owned(),
        |request| {
            let id = request_text(request);
            format!("ask again with --request-id {id} and the same arguments: it is applied at most once")
        },
    );
    let detail = request.map_or(Value::Null, |request| json!({ "request_id": request_text(request) }));
    Failure {
        code: UNKNOWN,
        outcome: "unknown",
        message: format!("nobody knows whether it was applied: {why}"),
        next,
        detail,
    }
}

fn not_applied(why: &NotApplied) -> Failure {
    let (code, message, next) = match why {
        NotApplied::NoQuorum => (
            NO_QUORUM,
            "no quorum: no leader with a majority of the voters is known".to_owned(),
            "see `muster status` for who is missing, then run it again".to_owned(),
        ),
        NotApplied::NotLeader { leader, address } => (
            NO_QUORUM,
            format!("replica {leader} leads, and it could not be reached"),
            format!("ask it with --server {address}"),
        ),
        NotApplied::Busy { retry_after_ms } => {
            (ERROR, "too much is waiting already".to_owned(), format!("run it again after {retry_after_ms} ms"))
        }
        NotApplied::TooLarge { bytes, bytes_max } => (
            ERROR,
            format!("it has {bytes} bytes and can never fit: at most {bytes_max} are accepted"),
            "split it into smaller commits".to_owned(),
        ),
        NotApplied::Superseded => {
            (ERROR, "another leader's entry took its place".to_owned(), "run it again".to_owned())
        }
        NotApplied::Stopping => (ERROR, "the replica is stopping".to_owned(), "ask another with --server".to_owned()),
        NotApplied::FeatureLevel { needs, has } => (
            ERROR,
            format!("it needs feature level {needs}, the cluster has {has}"),
            "upgrade every replica; the level rises by itself".to_owned(),
        ),
        NotApplied::Refused(refusal) => return refused(refusal),
    };
    Failure { code, outcome: "not-applied", message: format!("not applied: {message}"), next, detail: Value::Null }
}

pub(crate) fn refused(refusal: &Refusal) -> Failure {
    let mut detail = Value::Null;
    let (code, kind, message, next) = match refusal {
        Refusal::Invalid { field, problem } => (ERROR, "invalid", format!("{field}: {problem}"), String::new()),
        Refusal::UnknownScope { scope, hint } => {
            (ERROR, "unknown-scope", format!("{scope} is not known"), hint.to_string())
        }
        Refusal::FutureParent { parent, head } => (
            ERROR,
            "future-parent",
            format!("sequence {parent} lies beyond the journal's head, which is {head}"),
            "give a sequence that `muster log` shows".to_owned(),
        ),
        Refusal::Conflict { key, theirs, theirs_sequence, yours } => {
            detail = json!({
                "key": key.as_str(),
                "theirs": crate::json::setting(theirs),
                "theirs_sequence": theirs_sequence.0,
                "yours": crate::json::setting(yours),
            });
            (
                CONFLICT,
                "conflict",
                format!("conflict on {key}: it is {theirs} since sequence {theirs_sequence}, you want {yours}"),
                format!(
                    "look with `muster show {theirs_sequence}`; to go on knowing it, repeat with --parent {theirs_sequence}"
                ),
            )
        }
        Refusal::TargetRolledBack { key, pair, taken_off_by } => (
            ERROR,
            "target-rolled-back",
            format!("{key} of sequence {pair} was itself rolled back by {taken_off_by}"),
            format!("commit the value of `muster show {pair}` again instead"),
        ),
        Refusal::TooFarBack { key, remembered_from } => (
            ERROR,
            "too-far-back",
            format!("nothing before sequence {remembered_from} is remembered for {key}"),
            "commit the value you want instead".to_owned(),
        ),
        Refusal::NothingToRollBack => (
            ERROR,
            "nothing-to-roll-back",
            "nothing of that scope is live after that sequence".to_owned(),
            "see what was said when with `muster log --scope SCOPE`".to_owned(),
        ),
        Refusal::TooManyTemporary { key, max } => (
            ERROR,
            "too-many-temporary",
            format!("{key} holds {max} temporary values, which is the most it can"),
            "wait until one expires, roll some back, or commit without --ttl".to_owned(),
        ),
        Refusal::IllegalTransition { from, to } => (
            ERROR,
            "illegal-transition",
            format!("a node that is {} does not become {} by this", from.word(), to.word()),
            "see its state with `muster state node:NAME`".to_owned(),
        ),
        Refusal::Emergency { problem } => {
            (ERROR, "emergency", problem.to_string(), "see the node's state with `muster state node:NAME`".to_owned())
        }
        Refusal::Forbidden { problem } => (
            FORBIDDEN,
            "forbidden",
            problem.to_string(),
            "see what the policy allows with `muster policy get VCLUSTER`, or ask with another certificate (without TLS: --role)"
                .to_owned(),
        ),
        Refusal::Overlay { problem } => {
            (ERROR, "overlay", problem.to_string(), "the leader rebuilds overlays by itself; wait a moment".to_owned())
        }
        Refusal::Membership { problem } => {
            (ERROR, "membership", problem.to_string(), "see who is there with `muster members list`".to_owned())
        }
    };
    Failure {
        code,
        outcome: "refused",
        message: format!("refused: {message}"),
        next,
        detail: json!({ "refusal": kind, "about": detail }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_core::ids::{Age, Index, OneShotId, Seq};
    use muster_core::journal::key::{Key, Setting};

    #[test]
    fn each_outcome_has_the_missions_exit_code() {
        let conflict = Refusal::Conflict {
            key: Key::new("kernel:a").unwrap(),
            theirs: Setting::Value("1".into()),
            theirs_sequence: Seq(7),
            yours: Setting::Absent,
        };
        let request = OneShot { id: OneShotId(1), drawn_at: Age(9) };
        let code = |outcome| written(outcome, Some(request)).map_or_else(|failure| failure.code, |_| 0);
        assert_eq!(code(Outcome::Applied { index: Index(1), reply: Reply::Membership }), 0);
        assert_eq!(code(Outcome::Refused(Refusal::NothingToRollBack)), 1);
        assert_eq!(code(Outcome::Refused(Refusal::Forbidden { problem: "".into() })), 3);
        assert_eq!(code(Outcome::Refused(conflict.clone())), 4);
        assert_eq!(code(Outcome::NotApplied(NotApplied::NoQuorum)), 5);
        assert_eq!(code(Outcome::Unknown(UnknownWhy::TimedOut)), 6);
        let text = refused(&conflict).to_string();
        assert!(text.contains("it is 1 since sequence 7, you want (absent)"), "{text}");
    }

    #[test]
    fn a_request_id_is_taken_as_it_is_printed() {
        let request = OneShot { id: OneShotId(0xabc), drawn_at: Age(1_234) };
        assert_eq!(parse_request(&request_text(request)).unwrap(), request);
        assert!(parse_request("abc").unwrap_err().contains("ID@AGE"));
        let failure = written(Outcome::Unknown(UnknownWhy::ConnectionLost), Some(request)).unwrap_err();
        assert!(failure.next.contains(&request_text(request)), "{failure}");
    }
}
