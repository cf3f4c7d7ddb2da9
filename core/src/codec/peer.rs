//! What replicas send each other, format 1, and how a membership entry's change is stored.

use super::log::{decode_snapshot_meta, encode_snapshot_meta};
use super::{
    CodecError, decode, decode_outcome, decode_write_request, encode, encode_outcome, encode_write_request, malformed,
};
use crate::ids::{ClusterId, GroupId, Incarnation, Index, ReplicaId, Term};
use crate::log::{LogEntry, LogEntryKind};
use crate::peer::{Envelope, PeerMessage, RaftMessage, RaftMessageKind};
use crate::replica::{MemberChangeKind, MemberChanges};
use alloc::vec::Vec;
use bytes::Bytes;
use core::fmt;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes where they lie: written from there, and read as a part of what was received.
struct Part<'a>(&'a [u8]);

impl Serialize for Part<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Part<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Here;
        impl<'de> Visitor<'de> for Here {
            type Value = &'de [u8];
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_borrowed_bytes<E: serde::de::Error>(self, bytes: &'de [u8]) -> Result<&'de [u8], E> {
                Ok(bytes)
            }
        }
        deserializer.deserialize_bytes(Here).map(Part)
    }
}

#[derive(Serialize, Deserialize)]
struct EnvelopeV1<'a> {
    cluster: u128,
    group: u64,
    from: u64,
    incarnation: u128,
    to: u64,
    #[serde(borrow)]
    message: MessageV1<'a>,
}

#[derive(Serialize, Deserialize)]
enum MessageV1<'a> {
    #[serde(borrow)]
    Raft(RaftV1<'a>),
    Forward {
        token: u64,
        write: Bytes,
    },
    Forwarded {
        token: u64,
        outcome: Bytes,
    },
    ReadIndex {
        token: u64,
    },
    ReadIndexReply {
        token: u64,
        index: Option<u64>,
    },
    Report {
        full_copy: bool,
        applied: u64,
        feature_level: u32,
    },
}

#[derive(Serialize, Deserialize)]
struct RaftV1<'a> {
    kind: u8,
    term: u64,
    log_term: u64,
    index: u64,
    #[serde(borrow)]
    entries: Vec<EntryV1<'a>>,
    commit: u64,
    commit_term: u64,
    reject: bool,
    reject_hint: u64,
    context: Part<'a>,
    snapshot: Option<Bytes>,
    request_snapshot: u64,
}

#[derive(Serialize, Deserialize)]
struct EntryV1<'a> {
    term: u64,
    index: u64,
    membership: bool,
    #[serde(borrow)]
    data: Part<'a>,
    context: Part<'a>,
}

/// In the order of their numbers on the wire.
const KINDS: [RaftMessageKind; 10] = [
    RaftMessageKind::Append,
    RaftMessageKind::AppendReply,
    RaftMessageKind::Vote,
    RaftMessageKind::VoteReply,
    RaftMessageKind::PreVote,
    RaftMessageKind::PreVoteReply,
    RaftMessageKind::Heartbeat,
    RaftMessageKind::HeartbeatReply,
    RaftMessageKind::Snapshot,
    RaftMessageKind::TimeoutNow,
];

fn kind_number(kind: RaftMessageKind) -> u8 {
    match kind {
        RaftMessageKind::Append => 0,
        RaftMessageKind::AppendReply => 1,
        RaftMessageKind::Vote => 2,
        RaftMessageKind::VoteReply => 3,
        RaftMessageKind::PreVote => 4,
        RaftMessageKind::PreVoteReply => 5,
        RaftMessageKind::Heartbeat => 6,
        RaftMessageKind::HeartbeatReply => 7,
        RaftMessageKind::Snapshot => 8,
        RaftMessageKind::TimeoutNow => 9,
    }
}

fn raft_to_wire(message: &RaftMessage) -> RaftV1<'_> {
    RaftV1 {
        kind: kind_number(message.kind),
        term: message.term.0,
        log_term: message.log_term.0,
        index: message.index.0,
        entries: message
            .entries
            .iter()
            .map(|entry| EntryV1 {
                term: entry.term.0,
                index: entry.index.0,
                membership: entry.kind == LogEntryKind::Membership,
                data: Part(&entry.data),
                context: Part(&entry.context),
            })
            .collect(),
        commit: message.commit.0,
        commit_term: message.commit_term.0,
        reject: message.reject,
        reject_hint: message.reject_hint.0,
        context: Part(&message.context),
        snapshot: message.snapshot.as_ref().map(encode_snapshot_meta),
        request_snapshot: message.request_snapshot.0,
    }
}

/// `whole` is what the message was read from; entries go on lying there.
fn raft_from_wire(message: RaftV1<'_>, whole: &Bytes) -> Result<RaftMessage, CodecError> {
    let kind = KINDS
        .get(usize::from(message.kind))
        .copied()
        .ok_or_else(|| malformed("a peer's message", "its kind is not known"))?;
    Ok(RaftMessage {
        kind,
        term: Term(message.term),
        log_term: Term(message.log_term),
        index: Index(message.index),
        entries: message
            .entries
            .into_iter()
            .map(|entry| LogEntry {
                term: Term(entry.term),
                index: Index(entry.index),
                kind: if entry.membership { LogEntryKind::Membership } else { LogEntryKind::Normal },
                data: whole.slice_ref(entry.data.0),
                context: whole.slice_ref(entry.context.0),
            })
            .collect(),
        commit: Index(message.commit),
        commit_term: Term(message.commit_term),
        reject: message.reject,
        reject_hint: Index(message.reject_hint),
        context: whole.slice_ref(message.context.0),
        snapshot: message.snapshot.map(|bytes| decode_snapshot_meta(&bytes)).transpose()?,
        request_snapshot: Index(message.request_snapshot),
    })
}

/// Encodes a peer's message with its ends.
#[must_use]
pub fn encode_envelope(envelope: &Envelope) -> Bytes {
    let message = match &envelope.message {
        PeerMessage::Raft(message) => MessageV1::Raft(raft_to_wire(message)),
        PeerMessage::Forward { token, write } => {
            MessageV1::Forward { token: *token, write: encode_write_request(write) }
        }
        PeerMessage::Forwarded { token, outcome } => {
            MessageV1::Forwarded { token: *token, outcome: encode_outcome(outcome) }
        }
        PeerMessage::ReadIndex { token } => MessageV1::ReadIndex { token: *token },
        PeerMessage::ReadIndexReply { token, index } => {
            MessageV1::ReadIndexReply { token: *token, index: index.map(|index| index.0) }
        }
        PeerMessage::Report { full_copy, applied, feature_level } => {
            MessageV1::Report { full_copy: *full_copy, applied: applied.0, feature_level: *feature_level }
        }
    };
    encode(&EnvelopeV1 {
        cluster: envelope.cluster.0,
        group: envelope.group.0,
        from: envelope.from.0,
        incarnation: envelope.incarnation.0,
        to: envelope.to.0,
        message,
    })
}

/// Decodes a peer's message. The entries in it are parts of `bytes`, which lives as long as they do.
///
/// # Errors
/// [`CodecError`] if the bytes are not exactly one message of a known format.
pub fn decode_envelope(bytes: &Bytes) -> Result<Envelope, CodecError> {
    let wire: EnvelopeV1<'_> = decode("a peer's message", bytes)?;
    let message = match wire.message {
        MessageV1::Raft(message) => PeerMessage::Raft(raft_from_wire(message, bytes)?),
        MessageV1::Forward { token, write } => PeerMessage::Forward { token, write: decode_write_request(&write)? },
        MessageV1::Forwarded { token, outcome } => PeerMessage::Forwarded { token, outcome: decode_outcome(&outcome)? },
        MessageV1::ReadIndex { token } => PeerMessage::ReadIndex { token },
        MessageV1::ReadIndexReply { token, index } => PeerMessage::ReadIndexReply { token, index: index.map(Index) },
        MessageV1::Report { full_copy, applied, feature_level } => {
            PeerMessage::Report { full_copy, applied: Index(applied), feature_level }
        }
    };
    Ok(Envelope {
        cluster: ClusterId(wire.cluster),
        group: GroupId(wire.group),
        from: ReplicaId(wire.from),
        incarnation: Incarnation(wire.incarnation),
        to: ReplicaId(wire.to),
        message,
    })
}

/// Encodes what a membership entry does to the configuration. Empty (leave a joint configuration) is no bytes at all.
#[must_use]
pub fn encode_changes(changes: &MemberChanges) -> Bytes {
    if changes.is_empty() {
        return Bytes::new();
    }
    let wire: Vec<(u8, u64)> = changes
        .iter()
        .map(|(kind, id)| {
            let kind = match kind {
                MemberChangeKind::Voter => 0,
                MemberChangeKind::Learner => 1,
                MemberChangeKind::Remove => 2,
            };
            (kind, id.0)
        })
        .collect();
    encode(&wire)
}

/// Decodes what a membership entry does to the configuration.
///
/// # Errors
/// [`CodecError`] if the bytes are not exactly one such change.
pub fn decode_changes(bytes: &[u8]) -> Result<MemberChanges, CodecError> {
    const WHAT: &str = "a membership change";
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let wire: Vec<(u8, u64)> = decode(WHAT, bytes)?;
    if wire.is_empty() || wire.iter().any(|(_, id)| *id == 0) {
        return Err(malformed(WHAT, "it changes nothing, or nobody"));
    }
    wire.into_iter()
        .map(|(kind, id)| {
            let kind = match kind {
                0 => MemberChangeKind::Voter,
                1 => MemberChangeKind::Learner,
                2 => MemberChangeKind::Remove,
                _ => return Err(malformed(WHAT, "its kind is not known")),
            };
            Ok((kind, ReplicaId(id)))
        })
        .collect()
}
