//! `agent.proto`.

use super::{At as _, Malformed, Wire, all, known, many, need, required, text};
use crate::proto::agent::v1 as wire;
use crate::proto::v1;
use muster_core::agent::drift::{Explanation, Share};
use muster_core::agent::host::{Consumer, HostError};
use muster_core::agent::ledger::{ChangeId, Owner};
use muster_core::agent::operator::{
    Consent, Difference, EmergencyReport, Forecast, FrozenReport, Refused, Reply, Report, Request, Returned, Which,
    WindowReport,
};
use muster_core::ids::{InvalidName, Seq, WallTime};
use muster_core::journal::entry::Change;
use muster_core::journal::key::{Dimension, Key, Setting};
use muster_core::journal::policy::Milli;
use std::str::FromStr;
use std::sync::Arc;

const NOTHING: v1::Nothing = v1::Nothing {};

/// A name that may be left out.
pub(crate) fn optional_text<T: FromStr<Err = InvalidName>>(field: &str, value: &str) -> Result<Option<T>, Malformed> {
    if value.is_empty() { Ok(None) } else { text(field, value).map(Some) }
}

fn optional<T: Wire>(field: &str, value: Option<T::Wire>) -> Result<Option<T>, Malformed> {
    value.map(|value| T::from_wire(value).at(field)).transpose()
}

fn words(text: Option<&Arc<str>>) -> String {
    text.map(|text| &**text).unwrap_or_default().to_owned()
}

fn unless_empty(text: String) -> Option<Arc<str>> {
    Some(text).filter(|text| !text.is_empty()).map(Arc::from)
}

fn keys_to_wire<'a>(keys: impl IntoIterator<Item = &'a Key>) -> Vec<String> {
    keys.into_iter().map(ToString::to_string).collect()
}

fn keys<C: FromIterator<Key>>(field: &str, keys: &[String]) -> Result<C, Malformed> {
    keys.iter().map(|key| text(field, key)).collect()
}

fn pairs_to_wire(pairs: &[(Key, Setting)]) -> Vec<v1::Change> {
    let change = |(key, next): &(Key, Setting)| {
        Change { key: key.clone(), previous: Setting::Unset, next: next.clone() }.to_wire()
    };
    pairs.iter().map(change).collect()
}

fn pairs(field: &str, changes: Vec<v1::Change>) -> Result<Vec<(Key, Setting)>, Malformed> {
    let changes: Vec<Change> = many(field, changes)?;
    Ok(changes.into_iter().map(|change| (change.key, change.next)).collect())
}

impl Wire for Which {
    type Wire = wire::Which;
    fn to_wire(&self) -> Self::Wire {
        use wire::which::Which as W;
        let which = match self {
            Self::Own => W::Own(NOTHING),
            Self::All => W::All(NOTHING),
            Self::Keys(keys) => W::Keys(wire::Keys { keys: keys_to_wire(keys) }),
        };
        wire::Which { which: Some(which) }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        use wire::which::Which as W;
        Ok(match wire.which {
            None | Some(W::Own(v1::Nothing {})) => Self::Own,
            Some(W::All(v1::Nothing {})) => Self::All,
            Some(W::Keys(list)) => Self::Keys(keys("keys", &list.keys)?),
        })
    }
}

/// What an `AskRequest` may carry; the other requests have calls of their own.
impl Wire for Request {
    type Wire = Option<wire::ask_request::Request>;
    fn to_wire(&self) -> Self::Wire {
        use wire::ask_request::Request as W;
        Some(match self {
            Self::Set { changes, consent, merge, message } => W::Set(wire::Set {
                changes: pairs_to_wire(changes),
                consent: match consent {
                    Consent::UnlessShort => wire::Consent::UnlessShort,
                    Consent::TellOnly => wire::Consent::TellOnly,
                    Consent::Yes => wire::Consent::Yes,
                }
                .into(),
                merge: *merge,
                message: message.to_string(),
            }),
            Self::Commit { which, ttl_seconds, message } => W::Commit(wire::Commit {
                which: Some(which.to_wire()),
                ttl_seconds: *ttl_seconds,
                message: message.to_string(),
            }),
            Self::Rollback { which } => W::Rollback(wire::Rollback { which: Some(which.to_wire()) }),
            Self::Extend { seconds } => W::Extend(wire::Extend { seconds: *seconds }),
            Self::EmergencyStart { reason } => W::EmergencyStart(wire::EmergencyStart { reason: reason.to_string() }),
            Self::EmergencyEnd { force } => W::EmergencyEnd(wire::EmergencyEnd { force: *force }),
            Self::Show | Self::Exec { .. } | Self::ShellStart | Self::ShellEnd { .. } => return None,
        })
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        use wire::ask_request::Request as W;
        let want = "give one of set, commit, rollback, extend, emergency_start, emergency_end";
        Ok(match wire.ok_or_else(|| Malformed::new("", want))? {
            W::Set(set) => Self::Set {
                changes: pairs("set.changes", set.changes)?,
                consent: match known("set.consent", set.consent, "UNLESS_SHORT, TELL_ONLY or YES")? {
                    wire::Consent::UnlessShort => Consent::UnlessShort,
                    wire::Consent::TellOnly => Consent::TellOnly,
                    wire::Consent::Yes => Consent::Yes,
                },
                merge: set.merge,
                message: set.message.into(),
            },
            W::Commit(commit) => Self::Commit {
                which: need("commit.which", Some(commit.which.unwrap_or_default()))?,
                ttl_seconds: commit.ttl_seconds,
                message: commit.message.into(),
            },
            W::Rollback(rollback) => {
                Self::Rollback { which: need("rollback.which", Some(rollback.which.unwrap_or_default()))? }
            }
            W::Extend(extend) => Self::Extend { seconds: extend.seconds },
            W::EmergencyStart(start) => Self::EmergencyStart { reason: start.reason.into() },
            W::EmergencyEnd(end) => Self::EmergencyEnd { force: end.force },
        })
    }
}

impl Wire for Consumer {
    type Wire = wire::Consumer;
    fn to_wire(&self) -> Self::Wire {
        wire::Consumer {
            key: self.key.to_string(),
            pid: self.pid,
            command: self.command.to_string(),
            path: self.path.to_string(),
        }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        Ok(Self { key: text("key", &wire.key)?, pid: wire.pid, command: wire.command.into(), path: wire.path.into() })
    }
}

impl Wire for HostError {
    type Wire = wire::HostError;
    fn to_wire(&self) -> Self::Wire {
        wire::HostError { key: self.key.to_string(), problem: self.problem.to_string() }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        Ok(Self { key: text("key", &wire.key)?, problem: wire.problem.into() })
    }
}

impl Wire for Owner {
    type Wire = wire::Owner;
    fn to_wire(&self) -> Self::Wire {
        use wire::owner::Owner as W;
        let owner = match self {
            Self::Operator(author) => W::Operator(author.to_wire()),
            Self::BehindItsBack => W::BehindItsBack(NOTHING),
            Self::NotReached => W::NotReached(NOTHING),
        };
        wire::Owner { owner: Some(owner) }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        use wire::owner::Owner as W;
        Ok(match required("owner", wire.owner)? {
            W::Operator(author) => Self::Operator(need("operator", Some(author))?),
            W::BehindItsBack(v1::Nothing {}) => Self::BehindItsBack,
            W::NotReached(v1::Nothing {}) => Self::NotReached,
        })
    }
}

fn dimension(word: &str) -> Result<Dimension, Malformed> {
    let found = Dimension::ALL.into_iter().find(|dimension| dimension.word() == word);
    found.ok_or_else(|| Malformed::new("dimension", format!("{word:?} is none of the seven dimensions")))
}

impl Wire for Explanation {
    type Wire = wire::Explanation;
    fn to_wire(&self) -> Self::Wire {
        wire::Explanation {
            shares: self
                .shares
                .iter()
                .map(|share| wire::Share {
                    dimension: share.dimension.word().to_owned(),
                    keys: share.keys,
                    weight_milli: share.weight.0,
                    part: share.part,
                })
                .collect(),
            magnitude: self.magnitude,
            base_seconds: self.base_seconds,
            sensitivity_milli: self.sensitivity.0,
            min_seconds: self.min_seconds,
            seconds: self.seconds,
            text: self.to_string(),
        }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        let share = |share: wire::Share| {
            Ok(Share {
                dimension: dimension(&share.dimension)?,
                keys: share.keys,
                weight: Milli(share.weight_milli),
                part: share.part,
            })
        };
        Ok(Self {
            shares: wire.shares.into_iter().map(share).collect::<Result<_, Malformed>>().at("shares")?,
            magnitude: wire.magnitude,
            base_seconds: wire.base_seconds,
            sensitivity: Milli(wire.sensitivity_milli),
            min_seconds: wire.min_seconds,
            seconds: wire.seconds,
        })
    }
}

impl Wire for WindowReport {
    type Wire = wire::Window;
    fn to_wire(&self) -> Self::Wire {
        wire::Window {
            number: self.number,
            seconds_left: self.seconds_left,
            seconds_open: self.seconds_open,
            drift: self.drift.to_wire(),
            frozen: self
                .frozen
                .as_ref()
                .map(|frozen| wire::Frozen { consumers: all(&frozen.consumers), errors: all(&frozen.errors) }),
        }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        let frozen = wire.frozen.map(|frozen| {
            Ok::<_, Malformed>(FrozenReport {
                consumers: many("frozen.consumers", frozen.consumers)?,
                errors: many("frozen.errors", frozen.errors)?,
            })
        });
        Ok(Self {
            number: wire.number,
            seconds_left: wire.seconds_left,
            seconds_open: wire.seconds_open,
            drift: need("drift", Some(wire.drift))?,
            frozen: frozen.transpose()?,
        })
    }
}

impl Wire for Returned {
    type Wire = wire::Returned;
    fn to_wire(&self) -> Self::Wire {
        use wire::returned::Outcome as W;
        let outcome = match self {
            Self::Done { keys } => W::Done(wire::Keys { keys: keys_to_wire(keys) }),
            Self::Blocked { consumers } => W::Blocked(wire::Consumers { consumers: all(consumers) }),
            Self::Failed { keys, errors } => {
                W::Failed(wire::ReturnFailed { keys: keys_to_wire(keys), errors: all(errors) })
            }
        };
        wire::Returned { outcome: Some(outcome) }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        use wire::returned::Outcome as W;
        Ok(match required("outcome", wire.outcome)? {
            W::Done(list) => Self::Done { keys: keys("keys", &list.keys)? },
            W::Blocked(list) => Self::Blocked { consumers: many("consumers", list.consumers)? },
            W::Failed(failed) => {
                Self::Failed { keys: keys("keys", &failed.keys)?, errors: many("errors", failed.errors)? }
            }
        })
    }
}

impl Wire for Forecast {
    type Wire = wire::Forecast;
    fn to_wire(&self) -> Self::Wire {
        wire::Forecast {
            explanation: Some(self.explanation.to_wire()),
            seconds: self.seconds,
            unguarded: words(self.unguarded.as_ref()),
            is_short: self.is_short,
        }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        Ok(Self {
            explanation: need("explanation", wire.explanation)?,
            seconds: wire.seconds,
            unguarded: unless_empty(wire.unguarded),
            is_short: wire.is_short,
        })
    }
}

impl Wire for Refused {
    type Wire = wire::Refused;
    fn to_wire(&self) -> Self::Wire {
        use wire::refused::Why as W;
        let why = match self {
            Self::Invalid { problem } => W::Invalid(problem.to_string()),
            Self::Host(errors) => W::Host(wire::HostErrors { errors: all(errors) }),
            Self::Owned(keys) => W::Owned(wire::OwnedKeys {
                keys: keys
                    .iter()
                    .map(|(key, owner, change)| wire::OwnedKey {
                        key: key.to_string(),
                        owner: Some(owner.to_wire()),
                        change: change.0,
                    })
                    .collect(),
            }),
            Self::Forbidden { problem } => W::Forbidden(problem.to_string()),
            Self::NotNow { problem } => W::NotNow(problem.to_string()),
            Self::Journal(refusal) => W::Journal(refusal.to_wire()),
            Self::NoQuorum => W::NoQuorum(NOTHING),
            Self::Busy => W::Busy(NOTHING),
        };
        wire::Refused { why: Some(why) }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        use wire::refused::Why as W;
        Ok(match required("why", wire.why)? {
            W::Invalid(problem) => Self::Invalid { problem: problem.into() },
            W::Host(errors) => Self::Host(many("errors", errors.errors)?),
            W::Owned(owned) => {
                let key = |owned: wire::OwnedKey| {
                    Ok((text("key", &owned.key)?, need("owner", owned.owner)?, ChangeId(owned.change)))
                };
                Self::Owned(owned.keys.into_iter().map(key).collect::<Result<_, Malformed>>().at("keys")?)
            }
            W::Forbidden(problem) => Self::Forbidden { problem: problem.into() },
            W::NotNow(problem) => Self::NotNow { problem: problem.into() },
            W::Journal(refusal) => Self::Journal(need("journal", Some(refusal))?),
            W::NoQuorum(v1::Nothing {}) => Self::NoQuorum,
            W::Busy(v1::Nothing {}) => Self::Busy,
        })
    }
}

/// The answers to what an `AskRequest` may carry; the others have messages of their own.
impl Wire for Reply {
    type Wire = Option<wire::ask_reply::Reply>;
    fn to_wire(&self) -> Self::Wire {
        use wire::ask_reply::Reply as W;
        let window = |window: &Option<WindowReport>| window.as_ref().map(Wire::to_wire);
        Some(match self {
            Self::Forecast(forecast) => W::Forecast(forecast.to_wire()),
            Self::Set { change, window: open, unguarded } => {
                W::Set(wire::WasSet { change: change.0, window: window(open), unguarded: words(unguarded.as_ref()) })
            }
            Self::NotSet { errors, taken_back, window: open } => W::NotSet(wire::NotSet {
                errors: all(errors),
                taken_back: Some(taken_back.to_wire()),
                window: window(open),
            }),
            Self::Committed { sequence, settings, left, window: open } => W::Committed(wire::Committed {
                sequence: sequence.0,
                settings: pairs_to_wire(settings),
                left: left.to_wire(),
                window: window(open),
            }),
            Self::Returned(returned) => W::Returned(returned.to_wire()),
            Self::Extended { window } => W::Extended(window.to_wire()),
            Self::EmergencyStarted { sequence, seconds } => {
                W::EmergencyStarted(wire::EmergencyStarted { sequence: sequence.map(|seq| seq.0), seconds: *seconds })
            }
            Self::EmergencyEnded { window: open } => W::EmergencyEnded(wire::EmergencyEnded { window: window(open) }),
            Self::Refused(refused) => W::Refused(refused.to_wire()),
            Self::Unknown { request } => W::UnknownRequest(request.to_string()),
            Self::Report(_) | Self::Run { .. } | Self::Noted => return None,
        })
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        use wire::ask_reply::Reply as W;
        let window = |open: Option<wire::Window>| optional::<WindowReport>("window", open);
        Ok(match required("reply", wire)? {
            W::Forecast(forecast) => Self::Forecast(need("forecast", Some(forecast))?),
            W::Set(set) => Self::Set {
                change: ChangeId(set.change),
                window: window(set.window)?,
                unguarded: unless_empty(set.unguarded),
            },
            W::NotSet(not) => Self::NotSet {
                errors: many("errors", not.errors)?,
                taken_back: need("taken_back", not.taken_back)?,
                window: window(not.window)?,
            },
            W::Committed(committed) => Self::Committed {
                sequence: Seq(committed.sequence),
                settings: pairs("settings", committed.settings)?,
                left: need("left", Some(committed.left))?,
                window: window(committed.window)?,
            },
            W::Returned(returned) => Self::Returned(need("returned", Some(returned))?),
            W::Extended(open) => Self::Extended { window: need("extended", Some(open))? },
            W::EmergencyStarted(started) => {
                Self::EmergencyStarted { sequence: started.sequence.map(Seq), seconds: started.seconds }
            }
            W::EmergencyEnded(ended) => Self::EmergencyEnded { window: window(ended.window)? },
            W::Refused(refused) => Self::Refused(need("refused", Some(refused))?),
            W::UnknownRequest(request) => Self::Unknown { request: text("unknown_request", &request)? },
        })
    }
}

impl Wire for Difference {
    type Wire = wire::Difference;
    fn to_wire(&self) -> Self::Wire {
        wire::Difference {
            key: self.key.to_string(),
            declared: Some(self.declared.to_wire()),
            is_declared: self.is_declared,
            observed: Some(self.observed.to_wire()),
            change: self.change.0,
            owner: Some(self.owner.to_wire()),
            since_ms: self.since.0,
            conflict_seconds: self.conflict_seconds,
            problem: words(self.problem.as_ref()),
        }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        Ok(Self {
            key: text("key", &wire.key)?,
            declared: need("declared", wire.declared)?,
            is_declared: wire.is_declared,
            observed: need("observed", wire.observed)?,
            change: ChangeId(wire.change),
            owner: need("owner", wire.owner)?,
            since: WallTime(wire.since_ms),
            conflict_seconds: wire.conflict_seconds,
            problem: unless_empty(wire.problem),
        })
    }
}

impl Wire for EmergencyReport {
    type Wire = wire::Emergency;
    fn to_wire(&self) -> Self::Wire {
        wire::Emergency {
            author: Some(self.author.to_wire()),
            reason: self.reason.to_string(),
            since_ms: self.since.0,
            seconds_left: self.seconds_left,
        }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        Ok(Self {
            author: need("author", wire.author)?,
            reason: wire.reason.into(),
            since: WallTime(wire.since_ms),
            seconds_left: wire.seconds_left,
        })
    }
}

impl Wire for Report {
    type Wire = wire::Report;
    fn to_wire(&self) -> Self::Wire {
        wire::Report {
            node: self.node.to_string(),
            vcluster: self.vcluster.as_ref().map(ToString::to_string).unwrap_or_default(),
            phase: self.phase.to_wire(),
            mode: self.mode.to_wire(),
            connected: self.connected,
            sequence: self.sequence.0,
            declared: self.declared,
            differences: all(&self.differences),
            unseen: self
                .unseen
                .iter()
                .map(|(key, problem)| wire::HostError { key: key.to_string(), problem: problem.to_string() })
                .collect(),
            drift: self.drift.to_wire(),
            explanation: Some(self.explanation.to_wire()),
            window: self.window.as_ref().map(Wire::to_wire),
            emergency: self.emergency.as_ref().map(Wire::to_wire),
            spooled: self.spooled,
            commit_unknown: self.commit_unknown,
            away: self.away.as_deref().unwrap_or_default().to_owned(),
        }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        let unseen: Vec<HostError> = many("unseen", wire.unseen)?;
        Ok(Self {
            node: text("node", &wire.node)?,
            vcluster: optional_text("vcluster", &wire.vcluster)?,
            phase: need("phase", Some(wire.phase))?,
            mode: need("mode", Some(wire.mode))?,
            connected: wire.connected,
            away: (!wire.away.is_empty()).then(|| wire.away.into()),
            sequence: Seq(wire.sequence),
            declared: wire.declared,
            differences: many("differences", wire.differences)?,
            unseen: unseen.into_iter().map(|error| (error.key, error.problem)).collect(),
            drift: need("drift", Some(wire.drift))?,
            explanation: need("explanation", wire.explanation)?,
            window: optional("window", wire.window)?,
            emergency: optional("emergency", wire.emergency)?,
            spooled: wire.spooled,
            commit_unknown: wire.commit_unknown,
        })
    }
}
