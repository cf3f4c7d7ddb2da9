//! Between the Raft library's types and ours. Nothing outside `replica` sees the library's.
//!
//! The library keeps membership changes as protobuf inside an entry. That encoding never leaves this file: it is written by us
//! on the way in and read back on the way out, so bytes from a peer or a disk are never parsed as protobuf.

use crate::codec::{self, CodecError};
use crate::ids::{Index, ReplicaId, Term};
use crate::log::{Configuration, HardState, LogEntry, LogEntryKind};
use crate::peer::{RaftMessage, RaftMessageKind};
use crate::storage::SnapshotMeta;
use alloc::vec::Vec;
use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, HardState as RaftHardState, Message,
    MessageType, Snapshot,
};

/// What a membership entry does to the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberChangeKind {
    /// Becomes a voter.
    Voter,
    /// Becomes a learner.
    Learner,
    /// Leaves.
    Remove,
}

/// One membership entry's changes. Empty leaves a joint configuration; two or more enter one that is left by itself.
pub type MemberChanges = Vec<(MemberChangeKind, ReplicaId)>;

pub(super) fn change_to_raft(changes: &MemberChanges) -> ConfChangeV2 {
    let mut change = ConfChangeV2::default();
    let singles: Vec<_> = changes
        .iter()
        .map(|(kind, id)| {
            let mut single = ConfChangeSingle::default();
            single.set_change_type(match kind {
                MemberChangeKind::Voter => ConfChangeType::AddNode,
                MemberChangeKind::Learner => ConfChangeType::AddLearnerNode,
                MemberChangeKind::Remove => ConfChangeType::RemoveNode,
            });
            single.node_id = id.0;
            single
        })
        .collect();
    change.set_changes(singles.into());
    change
}

fn change_from_raft(change: &ConfChangeV2) -> MemberChanges {
    change
        .get_changes()
        .iter()
        .map(|single| {
            let kind = match single.get_change_type() {
                ConfChangeType::AddNode => MemberChangeKind::Voter,
                ConfChangeType::AddLearnerNode => MemberChangeKind::Learner,
                ConfChangeType::RemoveNode => MemberChangeKind::Remove,
            };
            (kind, ReplicaId(single.node_id))
        })
        .collect()
}

/// The change inside one of the library's own membership entries.
pub(super) fn change_of_entry(entry: &Entry) -> ConfChangeV2 {
    let mut change = ConfChangeV2::default();
    change.merge_from_bytes(&entry.data).expect("membership entries in memory were written by this file");
    change
}

pub(super) fn entry_to_raft(entry: &LogEntry) -> Result<Entry, CodecError> {
    let mut out = Entry::default();
    out.term = entry.term.0;
    out.index = entry.index.0;
    out.context = entry.context.clone();
    match entry.kind {
        LogEntryKind::Normal => {
            out.set_entry_type(EntryType::EntryNormal);
            out.data = entry.data.clone();
        }
        LogEntryKind::Membership => {
            out.set_entry_type(EntryType::EntryConfChangeV2);
            let changes = codec::decode_changes(&entry.data)?;
            out.data = change_to_raft(&changes).write_to_bytes().expect("a small message encodes").into();
        }
    }
    Ok(out)
}

pub(super) fn entry_from_raft(entry: &Entry) -> LogEntry {
    let (kind, data) = match entry.get_entry_type() {
        EntryType::EntryNormal => (LogEntryKind::Normal, entry.data.clone()),
        EntryType::EntryConfChangeV2 => {
            (LogEntryKind::Membership, codec::encode_changes(&change_from_raft(&change_of_entry(entry))))
        }
        EntryType::EntryConfChange => unreachable!("only the second version of membership changes is proposed"),
    };
    LogEntry { term: Term(entry.term), index: Index(entry.index), kind, data, context: entry.context.clone() }
}

pub(super) fn hard_state_from_raft(state: &RaftHardState) -> HardState {
    HardState { term: Term(state.term), vote: ReplicaId(state.vote), commit: Index(state.commit) }
}

pub(super) fn hard_state_to_raft(state: HardState) -> RaftHardState {
    let mut out = RaftHardState::default();
    out.term = state.term.0;
    out.vote = state.vote.0;
    out.commit = state.commit.0;
    out
}

pub(super) fn configuration_from_raft(state: &ConfState) -> Configuration {
    let ids = |list: &[u64]| {
        let mut ids: Vec<_> = list.iter().copied().map(ReplicaId).collect();
        ids.sort_unstable();
        ids
    };
    Configuration {
        voters: ids(state.get_voters()),
        voters_outgoing: ids(state.get_voters_outgoing()),
        learners: ids(state.get_learners()),
        learners_next: ids(state.get_learners_next()),
        auto_leave: state.auto_leave,
    }
}

pub(super) fn configuration_to_raft(configuration: &Configuration) -> ConfState {
    let ids = |list: &[ReplicaId]| list.iter().map(|id| id.0).collect::<Vec<_>>();
    let mut out = ConfState::default();
    out.set_voters(ids(&configuration.voters));
    out.set_voters_outgoing(ids(&configuration.voters_outgoing));
    out.set_learners(ids(&configuration.learners));
    out.set_learners_next(ids(&configuration.learners_next));
    out.auto_leave = configuration.auto_leave;
    out
}

pub(super) fn snapshot_to_raft(meta: &SnapshotMeta) -> Snapshot {
    let mut out = Snapshot::default();
    let metadata = out.mut_metadata();
    metadata.index = meta.index.0;
    metadata.term = meta.term.0;
    metadata.set_conf_state(configuration_to_raft(&meta.configuration));
    out
}

/// The wire's kinds, and nothing else the library knows.
fn kind_from_raft(kind: MessageType) -> Option<RaftMessageKind> {
    Some(match kind {
        MessageType::MsgAppend => RaftMessageKind::Append,
        MessageType::MsgAppendResponse => RaftMessageKind::AppendReply,
        MessageType::MsgRequestVote => RaftMessageKind::Vote,
        MessageType::MsgRequestVoteResponse => RaftMessageKind::VoteReply,
        MessageType::MsgRequestPreVote => RaftMessageKind::PreVote,
        MessageType::MsgRequestPreVoteResponse => RaftMessageKind::PreVoteReply,
        MessageType::MsgHeartbeat => RaftMessageKind::Heartbeat,
        MessageType::MsgHeartbeatResponse => RaftMessageKind::HeartbeatReply,
        MessageType::MsgSnapshot => RaftMessageKind::Snapshot,
        MessageType::MsgTimeoutNow => RaftMessageKind::TimeoutNow,
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgPropose
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgTransferLeader
        | MessageType::MsgReadIndex
        | MessageType::MsgReadIndexResp => return None,
    })
}

fn kind_to_raft(kind: RaftMessageKind) -> MessageType {
    match kind {
        RaftMessageKind::Append => MessageType::MsgAppend,
        RaftMessageKind::AppendReply => MessageType::MsgAppendResponse,
        RaftMessageKind::Vote => MessageType::MsgRequestVote,
        RaftMessageKind::VoteReply => MessageType::MsgRequestVoteResponse,
        RaftMessageKind::PreVote => MessageType::MsgRequestPreVote,
        RaftMessageKind::PreVoteReply => MessageType::MsgRequestPreVoteResponse,
        RaftMessageKind::Heartbeat => MessageType::MsgHeartbeat,
        RaftMessageKind::HeartbeatReply => MessageType::MsgHeartbeatResponse,
        RaftMessageKind::Snapshot => MessageType::MsgSnapshot,
        RaftMessageKind::TimeoutNow => MessageType::MsgTimeoutNow,
    }
}

/// A message for the wire; none if it is one of those that never travel. `snapshot` is what a snapshot message names.
pub(super) fn message_from_raft(message: &Message, snapshot: Option<&SnapshotMeta>) -> Option<RaftMessage> {
    let kind = kind_from_raft(message.get_msg_type())?;
    let snapshot = match kind {
        RaftMessageKind::Snapshot => {
            let index = message.get_snapshot().get_metadata().index;
            Some(snapshot.filter(|meta| meta.index.0 == index)?.clone())
        }
        RaftMessageKind::Append
        | RaftMessageKind::AppendReply
        | RaftMessageKind::Vote
        | RaftMessageKind::VoteReply
        | RaftMessageKind::PreVote
        | RaftMessageKind::PreVoteReply
        | RaftMessageKind::Heartbeat
        | RaftMessageKind::HeartbeatReply
        | RaftMessageKind::TimeoutNow => None,
    };
    Some(RaftMessage {
        kind,
        term: Term(message.term),
        log_term: Term(message.log_term),
        index: Index(message.index),
        entries: message.entries.iter().map(entry_from_raft).collect(),
        commit: Index(message.commit),
        commit_term: Term(message.commit_term),
        reject: message.reject,
        reject_hint: Index(message.reject_hint),
        context: Bytes::from(message.context.to_vec()),
        snapshot,
        request_snapshot: Index(message.request_snapshot),
    })
}

pub(super) fn message_to_raft(from: ReplicaId, to: ReplicaId, message: &RaftMessage) -> Result<Message, CodecError> {
    let mut out = Message::default();
    out.set_msg_type(kind_to_raft(message.kind));
    out.from = from.0;
    out.to = to.0;
    out.term = message.term.0;
    out.log_term = message.log_term.0;
    out.index = message.index.0;
    let entries = message.entries.iter().map(entry_to_raft).collect::<Result<Vec<_>, _>>()?;
    out.set_entries(entries.into());
    out.commit = message.commit.0;
    out.commit_term = message.commit_term.0;
    out.reject = message.reject;
    out.reject_hint = message.reject_hint.0;
    out.context = message.context.to_vec().into();
    out.request_snapshot = message.request_snapshot.0;
    if let Some(meta) = &message.snapshot {
        out.set_snapshot(snapshot_to_raft(meta));
    }
    Ok(out)
}
