//! `members.proto`.

use super::{At, Malformed, Wire, need, text};
use crate::proto::v1 as wire;
use muster_core::ids::ReplicaId;
use muster_core::members::{Admission, Member, MemberCommand, MemberWish};

const NOTHING: wire::Nothing = wire::Nothing {};

impl Wire for MemberWish {
    type Wire = wire::Wish;
    fn to_wire(&self) -> wire::Wish {
        use wire::wish::Wish as W;
        let wish = match self {
            Self::Learner => W::Learner(NOTHING),
            Self::Voter => W::Voter(NOTHING),
            Self::Replacement { of } => W::ReplacementOf(of.0),
        };
        wire::Wish { wish: Some(wish) }
    }
    fn from_wire(wire: wire::Wish) -> Result<Self, Malformed> {
        use wire::wish::Wish as W;
        Ok(match wire.wish {
            None | Some(W::Learner(wire::Nothing {})) => Self::Learner,
            Some(W::Voter(wire::Nothing {})) => Self::Voter,
            Some(W::ReplacementOf(of)) => Self::Replacement { of: ReplicaId(of) },
        })
    }
}

impl Wire for Member {
    type Wire = wire::Member;
    fn to_wire(&self) -> wire::Member {
        wire::Member {
            replica: self.id.0,
            name: self.name.to_string(),
            incarnation: self.incarnation.to_string(),
            peer_address: self.peer_address.to_string(),
            client_address: self.client_address.to_string(),
            wish: Some(self.wish.to_wire()),
            feature_level: self.feature_level,
        }
    }
    fn from_wire(wire: wire::Member) -> Result<Self, Malformed> {
        Ok(Self {
            id: ReplicaId(wire.replica),
            name: text("name", &wire.name)?,
            incarnation: text("incarnation", &wire.incarnation)?,
            peer_address: wire.peer_address.into(),
            client_address: wire.client_address.into(),
            wish: MemberWish::from_wire(wire.wish.unwrap_or_default()).at("wish")?,
            feature_level: wire.feature_level,
        })
    }
}

impl Wire for Admission {
    type Wire = wire::Admission;
    fn to_wire(&self) -> wire::Admission {
        wire::Admission {
            name: self.name.to_string(),
            incarnation: self.incarnation.to_string(),
            peer_address: self.peer_address.to_string(),
            client_address: self.client_address.to_string(),
            wish: Some(self.wish.to_wire()),
            feature_level: self.feature_level,
        }
    }
    fn from_wire(wire: wire::Admission) -> Result<Self, Malformed> {
        Ok(Self {
            name: text("name", &wire.name)?,
            incarnation: text("incarnation", &wire.incarnation)?,
            peer_address: wire.peer_address.into(),
            client_address: wire.client_address.into(),
            wish: MemberWish::from_wire(wire.wish.unwrap_or_default()).at("wish")?,
            feature_level: wire.feature_level,
        })
    }
}

impl Wire for MemberCommand {
    type Wire = wire::MemberCommand;
    fn to_wire(&self) -> wire::MemberCommand {
        use wire::member_command::Command as W;
        let command = match self {
            Self::Admit(admission) => W::Admit(admission.to_wire()),
            Self::AddLearner(id) => W::AddLearner(id.0),
            Self::Promote(id) => W::Promote(id.0),
            Self::Demote(id) => W::Demote(id.0),
            Self::Remove(id) => W::Remove(id.0),
            Self::Replace { old, new } => W::Replace(wire::Replacement { old: old.0, new: new.0 }),
        };
        wire::MemberCommand { command: Some(command) }
    }
    fn from_wire(wire: wire::MemberCommand) -> Result<Self, Malformed> {
        use wire::member_command::Command as W;
        let want = "give one of admit, add_learner, promote, demote, remove, replace";
        Ok(match wire.command.ok_or_else(|| Malformed::new("", want))? {
            W::Admit(admission) => Self::Admit(need("admit", Some(admission))?),
            W::AddLearner(id) => Self::AddLearner(ReplicaId(id)),
            W::Promote(id) => Self::Promote(ReplicaId(id)),
            W::Demote(id) => Self::Demote(ReplicaId(id)),
            W::Remove(id) => Self::Remove(ReplicaId(id)),
            W::Replace(wire::Replacement { old, new }) => Self::Replace { old: ReplicaId(old), new: ReplicaId(new) },
        })
    }
}
