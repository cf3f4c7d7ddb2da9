//! `write.proto`.

use super::{At, Malformed, Wire, known, need, required, text};
use crate::proto::v1 as wire;
use muster_core::ids::{Age, Index, ReplicaId, Seq, SessionId};
use muster_core::journal::command::{ConfigState, JournalCommand};
use muster_core::journal::key::Setting;
use muster_core::members::MemberCommand;
use muster_core::request::{Command, NotApplied, Outcome, Refusal, Reply, RequestId, UnknownWhy, WriteRequest};

const NOTHING: wire::Nothing = wire::Nothing {};

impl Wire for RequestId {
    type Wire = wire::RequestId;
    fn to_wire(&self) -> wire::RequestId {
        use wire::request_id::Request as W;
        let request = match *self {
            Self::None => return wire::RequestId::default(),
            Self::Session { session, number, acknowledged } => {
                W::Session(wire::SessionRequest { session: session.0, number, acknowledged })
            }
            Self::OneShot { id, drawn_at } => W::OneShot(wire::OneShot { id: id.to_string(), drawn_at: drawn_at.0 }),
        };
        wire::RequestId { request: Some(request) }
    }
    fn from_wire(wire: wire::RequestId) -> Result<Self, Malformed> {
        use wire::request_id::Request as W;
        Ok(match wire.request.ok_or_else(|| Malformed::new("", "give one of session, one_shot"))? {
            W::Session(wire::SessionRequest { session, number, acknowledged }) => {
                Self::Session { session: SessionId(session), number, acknowledged }
            }
            W::OneShot(wire::OneShot { id, drawn_at }) => {
                Self::OneShot { id: text("one_shot.id", &id)?, drawn_at: Age(drawn_at) }
            }
        })
    }
}

/// Expiry and feature levels are the leader's own: they have no place on a client's wire.
fn command_to_wire(command: &Command) -> Option<wire::Command> {
    use wire::command::Command as W;
    let command = match command {
        Command::Journal(command) => match command {
            JournalCommand::AppendEntry(draft) => W::AppendEntry(draft.to_wire()),
            JournalCommand::UpdateNodeState { node, state } => {
                W::UpdateNodeState(wire::UpdateNodeState { node: node.to_string(), state: state.to_wire() })
            }
            JournalCommand::SetPolicy { vcluster, policy } => {
                W::SetPolicy(wire::SetPolicy { vcluster: vcluster.to_string(), policy: Some(policy.to_wire()) })
            }
            JournalCommand::SetOverlay { vcluster, overlay } => {
                W::SetOverlay(wire::SetOverlay { vcluster: vcluster.to_string(), overlay: Some(overlay.to_wire()) })
            }
            JournalCommand::RecordOperation(draft) => W::RecordOperation(draft.to_wire()),
        },
        Command::Members(command) => W::Members(command.to_wire()),
        Command::OpenSession => W::OpenSession(NOTHING),
        Command::CloseSession => W::CloseSession(NOTHING),
        Command::Expire | Command::RaiseFeatureLevel(_) => return None,
    };
    Some(wire::Command { command: Some(command) })
}

impl Wire for Command {
    type Wire = wire::Command;
    /// The leader's own commands come out empty, which every replica refuses.
    fn to_wire(&self) -> wire::Command {
        command_to_wire(self).unwrap_or_default()
    }
    fn from_wire(wire: wire::Command) -> Result<Self, Malformed> {
        use wire::command::Command as W;
        let want = "give one of append_entry, update_node_state, set_policy, set_overlay, record_operation, members, \
                    open_session, close_session";
        Ok(match wire.command.ok_or_else(|| Malformed::new("", want))? {
            W::AppendEntry(draft) => Self::Journal(JournalCommand::AppendEntry(need("append_entry", Some(draft))?)),
            W::UpdateNodeState(update) => Self::Journal(JournalCommand::UpdateNodeState {
                node: text("update_node_state.node", &update.node)?,
                state: ConfigState::from_wire(update.state).at("update_node_state.state")?,
            }),
            W::SetPolicy(set) => Self::Journal(JournalCommand::SetPolicy {
                vcluster: text("set_policy.vcluster", &set.vcluster)?,
                policy: need("policy", set.policy).at("set_policy")?,
            }),
            W::SetOverlay(set) => Self::Journal(JournalCommand::SetOverlay {
                vcluster: text("set_overlay.vcluster", &set.vcluster)?,
                overlay: need("overlay", set.overlay).at("set_overlay")?,
            }),
            W::RecordOperation(draft) => {
                Self::Journal(JournalCommand::RecordOperation(need("record_operation", Some(draft))?))
            }
            W::Members(command) => Self::Members(MemberCommand::from_wire(command).at("members")?),
            W::OpenSession(wire::Nothing {}) => Self::OpenSession,
            W::CloseSession(wire::Nothing {}) => Self::CloseSession,
        })
    }
}

impl Wire for WriteRequest {
    type Wire = wire::WriteRequest;
    fn to_wire(&self) -> wire::WriteRequest {
        wire::WriteRequest {
            request: Some(self.request.to_wire()),
            author: Some(self.author.to_wire()),
            command: Some(self.command.to_wire()),
            do_not_forward: false,
        }
    }
    fn from_wire(wire: wire::WriteRequest) -> Result<Self, Malformed> {
        Ok(Self {
            request: need("request", wire.request)?,
            author: need("author", wire.author)?,
            command: need("command", wire.command)?,
        })
    }
}

impl Wire for Reply {
    type Wire = wire::Reply;
    fn to_wire(&self) -> wire::Reply {
        use wire::reply::Reply as W;
        let reply = match self {
            Self::Recorded { sequence } => W::RecordedSequence(sequence.0),
            Self::NodeState { state } => W::NodeState(state.to_wire()),
            Self::Overlay { version } => W::OverlayVersion(version.0),
            Self::Session { session } => W::Session(session.0),
            Self::SessionClosed => W::SessionClosed(NOTHING),
            Self::Admitted { replica } => W::AdmittedReplica(replica.0),
            Self::Membership => W::Membership(NOTHING),
            Self::Expired { count } => W::Expired(*count),
            Self::FeatureLevel { level } => W::FeatureLevel(*level),
        };
        wire::Reply { reply: Some(reply) }
    }
    fn from_wire(wire: wire::Reply) -> Result<Self, Malformed> {
        use wire::reply::Reply as W;
        Ok(match required("reply", wire.reply)? {
            W::RecordedSequence(sequence) => Self::Recorded { sequence: Seq(sequence) },
            W::NodeState(state) => Self::NodeState { state: ConfigState::from_wire(state).at("node_state")? },
            W::OverlayVersion(version) => Self::Overlay { version: Seq(version) },
            W::Session(session) => Self::Session { session: SessionId(session) },
            W::SessionClosed(wire::Nothing {}) => Self::SessionClosed,
            W::AdmittedReplica(replica) => Self::Admitted { replica: ReplicaId(replica) },
            W::Membership(wire::Nothing {}) => Self::Membership,
            W::Expired(count) => Self::Expired { count },
            W::FeatureLevel(level) => Self::FeatureLevel { level },
        })
    }
}

impl Wire for Refusal {
    type Wire = wire::Refusal;
    fn to_wire(&self) -> wire::Refusal {
        use wire::refusal::Refusal as W;
        let refusal = match self {
            Self::Invalid { field, problem } => {
                W::Invalid(wire::InvalidField { field: field.to_string(), problem: problem.to_string() })
            }
            Self::UnknownScope { scope, hint } => {
                W::UnknownScope(wire::UnknownScope { scope: scope.to_string(), hint: hint.to_string() })
            }
            Self::FutureParent { parent, head } => {
                W::FutureParent(wire::FutureParent { parent: parent.0, head: head.0 })
            }
            Self::Conflict { key, theirs, theirs_sequence, yours } => W::Conflict(wire::Conflict {
                key: key.to_string(),
                theirs: Some(theirs.to_wire()),
                theirs_sequence: theirs_sequence.0,
                yours: Some(yours.to_wire()),
            }),
            Self::TargetRolledBack { key, pair, taken_off_by } => W::TargetRolledBack(wire::TargetRolledBack {
                key: key.to_string(),
                pair: pair.0,
                taken_off_by: taken_off_by.0,
            }),
            Self::TooFarBack { key, remembered_from } => {
                W::TooFarBack(wire::TooFarBack { key: key.to_string(), remembered_from: remembered_from.0 })
            }
            Self::NothingToRollBack => W::NothingToRollBack(NOTHING),
            Self::TooManyTemporary { key, max } => {
                W::TooManyTemporary(wire::TooManyTemporary { key: key.to_string(), max: *max })
            }
            Self::IllegalTransition { from, to } => {
                W::IllegalTransition(wire::IllegalTransition { from: from.to_wire(), to: to.to_wire() })
            }
            Self::Emergency { problem } => W::Emergency(problem.to_string()),
            Self::Forbidden { problem } => W::Forbidden(problem.to_string()),
            Self::Overlay { problem } => W::Overlay(problem.to_string()),
            Self::Membership { problem } => W::Membership(problem.to_string()),
        };
        wire::Refusal { refusal: Some(refusal) }
    }
    fn from_wire(wire: wire::Refusal) -> Result<Self, Malformed> {
        use wire::refusal::Refusal as W;
        Ok(match required("refusal", wire.refusal)? {
            W::Invalid(wire::InvalidField { field, problem }) => {
                Self::Invalid { field: field.into(), problem: problem.into() }
            }
            W::UnknownScope(wire::UnknownScope { scope, hint }) => {
                Self::UnknownScope { scope: scope.into(), hint: hint.into() }
            }
            W::FutureParent(wire::FutureParent { parent, head }) => {
                Self::FutureParent { parent: Seq(parent), head: Seq(head) }
            }
            W::Conflict(conflict) => Self::Conflict {
                key: text("conflict.key", &conflict.key)?,
                theirs: Setting::from_wire(conflict.theirs.unwrap_or_default()).at("conflict.theirs")?,
                theirs_sequence: Seq(conflict.theirs_sequence),
                yours: Setting::from_wire(conflict.yours.unwrap_or_default()).at("conflict.yours")?,
            },
            W::TargetRolledBack(target) => Self::TargetRolledBack {
                key: text("target_rolled_back.key", &target.key)?,
                pair: Seq(target.pair),
                taken_off_by: Seq(target.taken_off_by),
            },
            W::TooFarBack(target) => Self::TooFarBack {
                key: text("too_far_back.key", &target.key)?,
                remembered_from: Seq(target.remembered_from),
            },
            W::NothingToRollBack(wire::Nothing {}) => Self::NothingToRollBack,
            W::TooManyTemporary(too_many) => {
                Self::TooManyTemporary { key: text("too_many_temporary.key", &too_many.key)?, max: too_many.max }
            }
            W::IllegalTransition(wire::IllegalTransition { from, to }) => Self::IllegalTransition {
                from: ConfigState::from_wire(from).at("illegal_transition.from")?,
                to: ConfigState::from_wire(to).at("illegal_transition.to")?,
            },
            W::Emergency(problem) => Self::Emergency { problem: problem.into() },
            W::Forbidden(problem) => Self::Forbidden { problem: problem.into() },
            W::Overlay(problem) => Self::Overlay { problem: problem.into() },
            W::Membership(problem) => Self::Membership { problem: problem.into() },
        })
    }
}

impl Wire for NotApplied {
    type Wire = wire::NotApplied;
    fn to_wire(&self) -> wire::NotApplied {
        use wire::not_applied::Reason as W;
        let reason = match self {
            Self::NoQuorum => W::NoQuorum(NOTHING),
            Self::NotLeader { leader, address } => {
                W::NotLeader(wire::NotLeader { leader: leader.0, address: address.to_string() })
            }
            Self::Busy { retry_after_ms } => {
                W::Busy(wire::Busy { retry_after_ms: *retry_after_ms, elsewhere: Vec::new() })
            }
            Self::TooLarge { bytes, bytes_max } => W::TooLarge(wire::TooLarge { bytes: *bytes, bytes_max: *bytes_max }),
            Self::Superseded => W::Superseded(NOTHING),
            Self::Stopping => W::Stopping(NOTHING),
            Self::FeatureLevel { needs, has } => W::FeatureLevel(wire::FeatureLevelTooLow { needs: *needs, has: *has }),
            Self::Refused(refusal) => W::Refused(refusal.to_wire()),
        };
        wire::NotApplied { reason: Some(reason) }
    }
    fn from_wire(wire: wire::NotApplied) -> Result<Self, Malformed> {
        use wire::not_applied::Reason as W;
        Ok(match required("reason", wire.reason)? {
            W::NoQuorum(wire::Nothing {}) => Self::NoQuorum,
            W::NotLeader(wire::NotLeader { leader, address }) => {
                Self::NotLeader { leader: ReplicaId(leader), address: address.into() }
            }
            W::Busy(wire::Busy { retry_after_ms, .. }) => Self::Busy { retry_after_ms },
            W::TooLarge(wire::TooLarge { bytes, bytes_max }) => Self::TooLarge { bytes, bytes_max },
            W::Superseded(wire::Nothing {}) => Self::Superseded,
            W::Stopping(wire::Nothing {}) => Self::Stopping,
            W::FeatureLevel(wire::FeatureLevelTooLow { needs, has }) => Self::FeatureLevel { needs, has },
            W::Refused(refusal) => Self::Refused(Refusal::from_wire(refusal).at("refused")?),
        })
    }
}

impl Wire for UnknownWhy {
    type Wire = wire::Unknown;
    fn to_wire(&self) -> wire::Unknown {
        use wire::UnknownWhy as W;
        let why = match self {
            Self::TimedOut => W::TimedOut,
            Self::ForwardTimedOut => W::ForwardTimedOut,
            Self::SessionUnknown => W::SessionUnknown,
            Self::AlreadyAcknowledged => W::AlreadyAcknowledged,
            Self::OneShotExpired => W::OneShotExpired,
            Self::ConnectionLost => W::ConnectionLost,
        };
        wire::Unknown { why: why.into() }
    }
    fn from_wire(wire: wire::Unknown) -> Result<Self, Malformed> {
        use wire::UnknownWhy as W;
        let want = "a reason why an outcome is unknown";
        Ok(match known("why", wire.why, want)? {
            W::Unspecified => return Err(Malformed::new("why", format!("it is missing: expected {want}"))),
            W::TimedOut => Self::TimedOut,
            W::ForwardTimedOut => Self::ForwardTimedOut,
            W::SessionUnknown => Self::SessionUnknown,
            W::AlreadyAcknowledged => Self::AlreadyAcknowledged,
            W::OneShotExpired => Self::OneShotExpired,
            W::ConnectionLost => Self::ConnectionLost,
        })
    }
}

impl Wire for Outcome {
    type Wire = wire::Outcome;
    fn to_wire(&self) -> wire::Outcome {
        use wire::outcome::Outcome as W;
        let outcome = match self {
            Self::Applied { index, reply } => {
                W::Applied(wire::Applied { index: index.0, reply: Some(reply.to_wire()) })
            }
            Self::Refused(refusal) => W::Refused(refusal.to_wire()),
            Self::NotApplied(why) => W::NotApplied(why.to_wire()),
            Self::Unknown(why) => W::Unknown(why.to_wire()),
        };
        wire::Outcome { outcome: Some(outcome) }
    }
    fn from_wire(wire: wire::Outcome) -> Result<Self, Malformed> {
        use wire::outcome::Outcome as W;
        Ok(match required("outcome", wire.outcome)? {
            W::Applied(applied) => {
                Self::Applied { index: Index(applied.index), reply: need("applied.reply", applied.reply)? }
            }
            W::Refused(refusal) => Self::Refused(Refusal::from_wire(refusal).at("refused")?),
            W::NotApplied(why) => Self::NotApplied(NotApplied::from_wire(why).at("not_applied")?),
            W::Unknown(why) => Self::Unknown(UnknownWhy::from_wire(why).at("unknown")?),
        })
    }
}
