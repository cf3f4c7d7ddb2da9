//! Whether a Raft message may reach the library: some well-formed ones make it panic.
//!
//! A peer's message is never a bug of ours: what does not fit is refused, counted and logged. Lying peers with valid identities
//! are out of scope; broken, old and repeated messages are not.

use crate::ids::{Index, ReplicaId};
use crate::log::Configuration;
use crate::peer::{RaftMessage, RaftMessageKind};
use alloc::collections::BTreeSet;

/// What the validation needs to know of the receiver.
pub(super) struct Receiver {
    pub(super) last: Index,
    pub(super) term: u64,
    pub(super) leads: bool,
    pub(super) leader: ReplicaId,
}

/// Longest context of a message. Ours are 16 bytes; the library's own campaign marker is shorter.
const CONTEXT_BYTES_MAX: usize = 64;
/// No term or position ever gets here; the library counts on from what it is told without looking for the end of numbers.
const NUMBER_MAX: u64 = 1 << 56;

/// Checks a message against what an honest peer could send.
pub(super) fn raft_message(from: ReplicaId, message: &RaftMessage, receiver: &Receiver) -> Result<(), &'static str> {
    if message.term.0 == 0 {
        return Err("its term is zero");
    }
    let numbers = [
        message.term.0,
        message.log_term.0,
        message.index.0,
        message.commit.0,
        message.commit_term.0,
        message.reject_hint.0,
    ];
    if numbers.iter().any(|number| *number > NUMBER_MAX) {
        return Err("its terms or positions are beyond any that can be reached");
    }
    if message.context.len() > CONTEXT_BYTES_MAX {
        return Err("its context is too long");
    }
    if message.request_snapshot.0 != 0 {
        return Err("it requests a snapshot, which no replica does");
    }
    if message.kind != RaftMessageKind::Append && !message.entries.is_empty() {
        return Err("only appends carry entries");
    }
    if (message.kind == RaftMessageKind::Snapshot) != message.snapshot.is_some() {
        return Err("snapshot messages, and only they, name a snapshot");
    }
    match message.kind {
        RaftMessageKind::Append => {
            if (message.index.0 == 0) != (message.log_term.0 == 0) {
                // The library takes term zero for that of any position it does not have.
                return Err("it follows a position without a term");
            }
            let mut previous = (message.index.0, message.log_term.0);
            for entry in &message.entries {
                if entry.index.0 != previous.0 + 1 {
                    return Err("its entries are not contiguous");
                }
                if entry.term.0 < previous.1 || entry.term.0 > message.term.0 || entry.term.0 == 0 {
                    return Err("its entries' terms do not ascend to its own");
                }
                previous = (entry.index.0, entry.term.0);
            }
            Ok(())
        }
        RaftMessageKind::Heartbeat => {
            if message.commit > receiver.last {
                return Err("it commits beyond what this replica ever acknowledged");
            }
            Ok(())
        }
        RaftMessageKind::AppendReply | RaftMessageKind::HeartbeatReply => {
            if receiver.leads && message.term.0 == receiver.term && message.index > receiver.last {
                return Err("it acknowledges beyond the leader's log");
            }
            if message.reject_hint > message.index {
                return Err("it hints beyond what it rejects");
            }
            Ok(())
        }
        RaftMessageKind::Snapshot => {
            let meta = message.snapshot.as_ref().expect("checked above");
            if meta.index.0 == 0 || meta.term.0 == 0 || meta.term > message.term || meta.configuration.voters.is_empty()
            {
                return Err("its snapshot has no position or no voters");
            }
            if meta.index.0 > NUMBER_MAX {
                return Err("its snapshot is beyond any position that can be reached");
            }
            if !is_sound(&meta.configuration) {
                return Err("its snapshot's configuration contradicts itself");
            }
            Ok(())
        }
        RaftMessageKind::TimeoutNow => {
            if message.term.0 == receiver.term && receiver.leader.0 != 0 && from != receiver.leader {
                return Err("only the leader may ask for a campaign");
            }
            Ok(())
        }
        RaftMessageKind::Vote
        | RaftMessageKind::VoteReply
        | RaftMessageKind::PreVote
        | RaftMessageKind::PreVoteReply => Ok(()),
    }
}

/// Whether every replica has one place in the configuration. The library does not restore any other.
fn is_sound(configuration: &Configuration) -> bool {
    let Configuration { voters, voters_outgoing, learners, learners_next, auto_leave } = configuration;
    let once =
        |ids: &[ReplicaId]| ids.iter().all(|id| id.0 != 0) && ids.iter().collect::<BTreeSet<_>>().len() == ids.len();
    let votes = |id: &ReplicaId| voters.contains(id) || voters_outgoing.contains(id);
    [voters, voters_outgoing, learners, learners_next].into_iter().all(|ids| once(ids))
        && !learners.iter().any(|id| votes(id) || learners_next.contains(id))
        && learners_next.iter().all(|id| voters_outgoing.contains(id) && !voters.contains(id))
        && (!auto_leave || configuration.is_joint())
}
