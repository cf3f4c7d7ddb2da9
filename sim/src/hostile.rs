//! Well-formed messages that no honest replica would send at that moment, as if from a peer: what a broken, confused or replaced
//! one says.
//!
//! Three sorts, each of which must be harmless whenever it comes:
//! - whatever one likes, under an identity that is not a peer's: another cluster, group or incarnation, another address;
//! - under a peer's identity, what contradicts itself or what the receiver knows for sure;
//! - under a peer's identity or that of nobody in the configuration, what Raft shrugs off: old and far future terms, votes nobody
//!   counts, answers to what was never asked, snapshots that are nowhere.
//!
//! Never a lie that no receiver could see through, like an acknowledgement of what is not on the liar's disk: Raft trusts its
//! members, and the README says so.

use crate::draw::Draw;
use crate::world::World;
use bytes::Bytes;
use muster_core::ids::{Age, ClusterId, Digest, GroupId, Incarnation, Index, ReplicaId, Seq, Term};
use muster_core::log::{Configuration, LogEntry, LogEntryKind};
use muster_core::peer::{Envelope, PeerMessage, RaftMessage, RaftMessageKind};
use muster_core::request::{NotApplied, Outcome, ReplicaStatus};
use muster_core::storage::SnapshotMeta;
use std::sync::Arc;

/// A message for a replica that runs, as the world is now; none if it does not serve.
pub(crate) fn forge(world: &Arc<World>, draw: &mut Draw, to: ReplicaId) -> Option<Envelope> {
    let status = ReplicaStatus::clone(&world.front(to)?.0.view().status);
    let peers: Vec<(ReplicaId, Incarnation, ClusterId, GroupId)> = world
        .machines()
        .iter()
        .filter(|(id, _)| **id != to)
        .map(|(id, machine)| (*id, machine.identity.incarnation, machine.identity.cluster, machine.identity.group))
        .collect();
    let (own_cluster, own_group) = {
        let machines = world.machines();
        let identity = &machines.get(&to)?.identity;
        (identity.cluster, identity.group)
    };
    let (from, incarnation) = if peers.is_empty() {
        (ReplicaId(77), Incarnation(77))
    } else {
        let place = draw.place(peers.len());
        (peers[place].0, peers[place].1)
    };
    let mut envelope = Envelope {
        cluster: own_cluster,
        group: own_group,
        from,
        incarnation,
        to,
        message: PeerMessage::ReadIndex { token: 0 },
    };
    match draw.below(10) {
        0..4 => {
            envelope.message = lie(draw, &status);
            match draw.below(5) {
                0 => envelope.cluster = ClusterId(own_cluster.0 ^ 1 << draw.below(100)),
                1 => envelope.group = GroupId(own_group.0 + 1 + draw.below(3)),
                2 => envelope.to = ReplicaId(to.0 + 1 + draw.below(5)),
                3 => envelope.from = if draw.percent(50) { to } else { ReplicaId(0) },
                // One that the receiver has heard of: else it may be a member that it is about to hear of.
                _ => {
                    let known = world.front(to)?.0.view().state.members.get(from).is_some();
                    if known {
                        envelope.incarnation = Incarnation(incarnation.0 ^ 1 << draw.below(100));
                    } else {
                        envelope.group = GroupId(own_group.0 + 1);
                    }
                }
            }
        }
        4..7 => envelope.message = nonsense(draw, &status),
        _ => {
            if draw.percent(30) {
                // Somebody who was never admitted, or was removed since.
                envelope.from = ReplicaId(70 + draw.below(20));
                envelope.incarnation = Incarnation(draw.wide());
                envelope.message = from_nobody(draw, &status);
            } else {
                envelope.message = shrugged_off(draw, &status);
            }
        }
    }
    Some(envelope)
}

fn raft(kind: RaftMessageKind, term: u64) -> RaftMessage {
    RaftMessage::bare(kind, Term(term))
}

fn entry(term: u64, index: u64) -> LogEntry {
    let (term, index) = (Term(term), Index(index));
    LogEntry { term, index, kind: LogEntryKind::Normal, data: Bytes::new(), context: Bytes::new() }
}

fn snapshot(index: u64, term: u64, voters: Vec<ReplicaId>) -> SnapshotMeta {
    SnapshotMeta {
        index: Index(index),
        term: Term(term),
        configuration: Configuration { voters, ..Configuration::default() },
        sequence: Seq(index),
        head: Digest::default(),
        age: Age(0),
        history: Vec::new(),
        layers: Vec::new(),
        digest: Digest::default(),
    }
}

/// A far future term that nobody campaigns for: a candidate's own comes right after its last one.
fn far(draw: &mut Draw, term: u64) -> u64 {
    term + 1_000 + draw.below(1_000_000)
}

/// As harmful as can be, for whoever believes it.
fn lie(draw: &mut Draw, status: &ReplicaStatus) -> PeerMessage {
    let (term, last, commit) = (status.term.0, status.last.0, status.commit.0);
    let term = if draw.percent(50) { term } else { term + 1 };
    let message = match draw.below(8) {
        0 => raft(RaftMessageKind::VoteReply, term),
        1 => RaftMessage { index: Index(last), ..raft(RaftMessageKind::AppendReply, term) },
        2 => RaftMessage { commit: Index(last), ..raft(RaftMessageKind::Heartbeat, term) },
        3 => RaftMessage {
            index: Index(commit.saturating_sub(1)),
            log_term: status.term,
            entries: vec![entry(term, commit.max(1))],
            commit: Index(commit),
            ..raft(RaftMessageKind::Append, term)
        },
        4 => raft(RaftMessageKind::TimeoutNow, term),
        5 => RaftMessage {
            index: Index(last + 1_000),
            log_term: Term(term),
            context: Bytes::from_static(b"CampaignTransfer"),
            ..raft(RaftMessageKind::Vote, term + 1)
        },
        6 => {
            let voters = vec![status.replica, ReplicaId(status.replica.0 + 1)];
            RaftMessage { snapshot: Some(snapshot(last, term, voters)), ..raft(RaftMessageKind::Snapshot, term) }
        }
        _ => return PeerMessage::ReadIndexReply { token: draw.number(), index: Some(Index(0)) },
    };
    PeerMessage::Raft(message)
}

/// What contradicts itself, or what the receiver has.
fn nonsense(draw: &mut Draw, status: &ReplicaStatus) -> PeerMessage {
    let (term, last) = (status.term.0, status.last.0);
    let huge = (1 << 56) + 1 + draw.below(1_000);
    let append = || raft(RaftMessageKind::Append, term);
    let message = match draw.below(13) {
        0 => raft(RaftMessageKind::Heartbeat, 0),
        1 => RaftMessage { commit: Index(last + 1 + draw.below(1_000)), ..raft(RaftMessageKind::Heartbeat, term) },
        2 => RaftMessage { index: Index(last), log_term: Term(term), entries: vec![entry(term, last + 2)], ..append() },
        3 => RaftMessage {
            index: Index(last),
            log_term: Term(term),
            entries: vec![entry(term, last + 1), entry(term.saturating_sub(1), last + 2)],
            ..append()
        },
        4 => RaftMessage {
            index: Index(last),
            log_term: Term(term),
            entries: vec![entry(term + 1, last + 1)],
            ..append()
        },
        5 => RaftMessage { index: Index(last + 5), ..append() },
        6 => RaftMessage { index: Index(huge), log_term: Term(1), entries: vec![entry(1, huge + 1)], ..append() },
        7 => raft(RaftMessageKind::Vote, huge),
        8 => RaftMessage { entries: vec![entry(1, 1)], ..raft(RaftMessageKind::HeartbeatReply, term) },
        9 => RaftMessage { context: vec![0; 65].into(), ..raft(RaftMessageKind::Heartbeat, term) },
        10 => RaftMessage {
            index: Index(1),
            reject: true,
            reject_hint: Index(1 << 40),
            ..raft(RaftMessageKind::AppendReply, term)
        },
        11 => RaftMessage {
            snapshot: Some(snapshot(last + 9, term, Vec::new())),
            ..raft(RaftMessageKind::Snapshot, term)
        },
        _ => {
            let twice = vec![status.replica, status.replica];
            RaftMessage { snapshot: Some(snapshot(last + 9, term, twice)), ..raft(RaftMessageKind::Snapshot, term) }
        }
    };
    PeerMessage::Raft(message)
}

/// Honest once, or in another world: Raft has a rule that makes nothing of it.
fn shrugged_off(draw: &mut Draw, status: &ReplicaStatus) -> PeerMessage {
    use RaftMessageKind as Kind;
    let (term, last) = (status.term.0, status.last.0);
    let old = 1 + draw.below(term.max(2) - 1);
    let message = match draw.below(12) {
        // Old terms: of elections that are over and leaders that are gone.
        0 if old < term => raft(Kind::VoteReply, old),
        1 if old < term => RaftMessage { index: Index(last + draw.below(9)), ..raft(Kind::AppendReply, old) },
        2 if old < term => RaftMessage { commit: Index(last), ..raft(Kind::Heartbeat, old) },
        3 if old < term => RaftMessage {
            index: Index(last),
            log_term: Term(old),
            entries: vec![entry(old, last + 1)],
            commit: Index(last + 1),
            ..raft(Kind::Append, old)
        },
        4 if old < term => raft(Kind::TimeoutNow, old),
        // A candidate whose log is empty, now and in a term far off.
        5 => raft(Kind::PreVote, term + 1),
        6 if draw.percent(20) => raft(Kind::Vote, far(draw, term)),
        7 if draw.percent(10) => raft(Kind::HeartbeatReply, far(draw, term)),
        8 => RaftMessage { context: draw.wide().to_le_bytes().to_vec().into(), ..raft(Kind::HeartbeatReply, term) },
        9 => RaftMessage { reject: true, ..raft(Kind::VoteReply, term) },
        10 => {
            let voters = (1..=3).map(ReplicaId).collect();
            let far_ahead = snapshot(last + 1_000 + draw.below(1_000), term.max(1), voters);
            RaftMessage { snapshot: Some(far_ahead), ..raft(Kind::Snapshot, term.max(1)) }
        }
        11 => {
            let outcome = Outcome::NotApplied(NotApplied::NoQuorum);
            return PeerMessage::Forwarded { token: draw.number(), outcome };
        }
        _ => return PeerMessage::ReadIndexReply { token: draw.number(), index: Some(Index(last + 7)) },
    };
    PeerMessage::Raft(message)
}

/// What somebody says who is not in the configuration.
fn from_nobody(draw: &mut Draw, status: &ReplicaStatus) -> PeerMessage {
    use RaftMessageKind as Kind;
    let (term, last) = (status.term.0, status.last.0);
    let message = match draw.below(6) {
        0 => raft(Kind::VoteReply, term),
        1 => raft(Kind::PreVoteReply, term + 1),
        2 => RaftMessage { index: Index(last), ..raft(Kind::AppendReply, term) },
        3 => RaftMessage { index: Index(1), log_term: Term(1), ..raft(Kind::PreVote, term + 1) },
        4 => raft(Kind::HeartbeatReply, term),
        _ => return PeerMessage::ReadIndex { token: draw.number() },
    };
    PeerMessage::Raft(message)
}
