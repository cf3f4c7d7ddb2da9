//! Whether a Raft message may reach the library: some well-formed ones make it panic.
//!
//! A peer's message is never a bug of ours: what does not fit is refused, counted and logged. Lying peers with valid identities
//! are out of scope; broken, old and repeated messages are not.

use crate::ids::{Index, ReplicaId};
use crate::peer::{RaftMessage, RaftMessageKind};

/// What the validation needs to know of the receiver.
pub(super) struct Receiver {
    pub(super) last: Index,
    pub(super) term: u64,
    pub(super) leads: bool,
    pub(super) leader: ReplicaId,
}

/// Longest context of a message. Ours are 16 bytes; the library's own campaign marker is shorter.
const CONTEXT_BYTES_MAX: usize = 64;

/// Checks a message against what an honest peer could send.
pub(super) fn raft_message(from: ReplicaId, message: &RaftMessage, receiver: &Receiver) -> Result<(), &'static str> {
    if message.term.0 == 0 {
        return Err("its term is zero");
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
            Ok(())
        }
        RaftMessageKind::Snapshot => {
            let meta = message.snapshot.as_ref().expect("checked above");
            if meta.index.0 == 0 || meta.term.0 == 0 || meta.term > message.term || meta.configuration.voters.is_empty()
            {
                return Err("its snapshot has no position or no voters");
            }
            Ok(())
        }
        RaftMessageKind::TimeoutNow => {
            if from != receiver.leader {
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
