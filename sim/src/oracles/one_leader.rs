//! At most one replica leads a term. Seen by what replicas publish, and by who speaks as a leader.

use super::{Oracle, Violation, must};
use crate::event::Event;
use crate::world::Facts;
use muster_core::ids::{ReplicaId, Term};
use muster_core::peer::{PeerMessage, RaftMessageKind};
use muster_core::request::RaftRole;
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct OneLeader(BTreeMap<Term, ReplicaId>);

impl OneLeader {
    fn leads(&mut self, term: Term, replica: ReplicaId) -> Result<(), Violation> {
        let known = *self.0.entry(term).or_insert(replica);
        must(
            known == replica,
            || format!("replica {known} alone to lead term {term}"),
            || format!("replica {replica} lead it too"),
        )
    }
}

impl Oracle for OneLeader {
    fn name(&self) -> &'static str {
        "at most one replica leads a term"
    }
    fn source(&self) -> &'static str {
        "Raft paper, figure 3: election safety"
    }
    fn looks_at_traffic(&self) -> bool {
        true
    }
    fn on_event(&mut self, _: &Facts, event: &Event) -> Result<(), Violation> {
        match event {
            Event::View { replica, view, .. } if view.status.role == RaftRole::Leader => {
                self.leads(view.status.term, *replica)
            }
            Event::Send { envelope, .. } => match &envelope.message {
                PeerMessage::Raft(message)
                    if matches!(
                        message.kind,
                        RaftMessageKind::Append | RaftMessageKind::Heartbeat | RaftMessageKind::Snapshot
                    ) =>
                {
                    self.leads(message.term, envelope.from)
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}
