//! What a replica tells others it may not forget: its term, its vote and the entries it acknowledged are durable before the
//! message leaves.

use super::{Oracle, Violation, must};
use crate::event::Event;
use crate::world::Facts;
use muster_core::peer::{PeerMessage, RaftMessageKind};

#[derive(Default)]
pub(super) struct PromisesAreDurable;

impl Oracle for PromisesAreDurable {
    fn name(&self) -> &'static str {
        "terms, votes and acknowledged entries are durable before they are told"
    }
    fn source(&self) -> &'static str {
        "Raft paper, figure 2; raft-rs rules 2 and 8"
    }
    fn looks_at_traffic(&self) -> bool {
        true
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        let Event::Send { envelope, again: false, .. } = event else { return Ok(()) };
        let PeerMessage::Raft(message) = &envelope.message else { return Ok(()) };
        let Some(sender) = facts.replicas.get(&envelope.from) else { return Ok(()) };
        let from = envelope.from;
        let durable = sender.hard_state;
        match message.kind {
            // Its term is the one it would campaign for, or is answered with; nothing is promised.
            RaftMessageKind::PreVote | RaftMessageKind::PreVoteReply => return Ok(()),
            RaftMessageKind::VoteReply if !message.reject => must(
                durable.term > message.term || (durable.term == message.term && durable.vote == envelope.to),
                || format!("replica {from}'s vote for {} in term {} to be durable", envelope.to, message.term),
                || format!("term {} and a vote for {} on its disk", durable.term, durable.vote),
            )?,
            // What a later leader's entries replaced before it was written cannot be committed any more: whoever leads that term
            // has the votes of a quorum, so its acknowledgement, which comes with the write of what replaced it, says too much
            // and harms nobody.
            RaftMessageKind::AppendReply if !message.reject => must(
                sender.durable.last() >= message.index || sender.durable.at(sender.durable.last()) > Some(message.term),
                || format!("replica {from}'s entries up to {} to be durable", message.index),
                || format!("its disk end at {}", sender.durable.last()),
            )?,
            RaftMessageKind::VoteReply
            | RaftMessageKind::AppendReply
            | RaftMessageKind::Append
            | RaftMessageKind::Vote
            | RaftMessageKind::Heartbeat
            | RaftMessageKind::HeartbeatReply
            | RaftMessageKind::Snapshot
            | RaftMessageKind::TimeoutNow => {}
        }
        must(
            durable.term >= message.term,
            || format!("replica {from}'s term {} to be durable before it speaks in it", message.term),
            || format!("term {} on its disk", durable.term),
        )
    }
}
