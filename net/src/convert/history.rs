//! `history.proto`.

use super::{Malformed, Wire, all, many, text};
use crate::client::{LogFilter, StateAt, Tidings, Topic};
use crate::proto::v1 as wire;
use muster_core::ids::Seq;
use muster_core::journal::entry::EntryType;

impl Wire for Topic {
    type Wire = Option<wire::subscribe_request::Topic>;
    fn to_wire(&self) -> Self::Wire {
        use wire::subscribe_request::Topic as W;
        Some(match self {
            Self::Scopes(scopes) => W::Scopes(wire::Scopes { scopes: all(scopes) }),
            Self::Node(node) => W::Node(node.to_string()),
        })
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        use wire::subscribe_request::Topic as W;
        Ok(match wire {
            None => Self::Scopes(Vec::new()),
            Some(W::Scopes(scopes)) => Self::Scopes(many("scopes", scopes.scopes)?),
            Some(W::Node(node)) => Self::Node(text("node", &node)?),
        })
    }
}

impl Wire for Tidings {
    type Wire = wire::SubscribeReply;
    fn to_wire(&self) -> Self::Wire {
        wire::SubscribeReply { records: all(&self.records), upto: self.upto.0 }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        Ok(Self { records: many("records", wire.records)?, upto: Seq(wire.upto) })
    }
}

impl Wire for LogFilter {
    type Wire = wire::LogRequest;
    fn to_wire(&self) -> Self::Wire {
        wire::LogRequest {
            scopes: all(&self.scopes),
            types: all(&self.types),
            operations: self.operations,
            author: self.author.clone().unwrap_or_default(),
            after: self.after.0,
            upto: self.upto.map_or(0, |seq| seq.0),
            limit: self.limit.unwrap_or(0),
            newest_first: self.newest_first,
        }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        Ok(Self {
            scopes: many("scopes", wire.scopes)?,
            types: many::<EntryType>("types", wire.types)?,
            operations: wire.operations,
            author: Some(wire.author).filter(|author| !author.is_empty()),
            after: Seq(wire.after),
            upto: Some(Seq(wire.upto)).filter(|seq| seq.0 > 0),
            limit: Some(wire.limit).filter(|limit| *limit > 0),
            newest_first: wire.newest_first,
        })
    }
}

impl Wire for StateAt {
    type Wire = wire::StateAtReply;
    fn to_wire(&self) -> Self::Wire {
        wire::StateAtReply { at: self.at.0, head: self.head.0, settings: all(&self.settings) }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        Ok(Self { at: Seq(wire.at), head: Seq(wire.head), settings: many("settings", wire.settings)? })
    }
}
