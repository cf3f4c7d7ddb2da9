//! Whatever a peer of this cluster sends, a replica does not panic: what no honest replica could send is refused and counted.

#[path = "cluster/stage.rs"]
#[allow(dead_code, reason = "each test file uses its part of the stage")]
mod stage;

use bytes::Bytes;
use muster_core::ids::{Age, ClusterId, Digest, GroupId, Index, ReplicaId, Seq, Term};
use muster_core::log::{Configuration, LogEntry, LogEntryKind};
use muster_core::peer::{Envelope, PeerMessage, RaftMessage, RaftMessageKind};
use muster_core::replica::Input;
use muster_core::storage::SnapshotMeta;
use proptest::prelude::*;
use stage::{Disk, Stage};

fn message(kind: RaftMessageKind) -> RaftMessage {
    RaftMessage::bare(kind, Term(3))
}

fn envelope(from: u64, to: u64, message: RaftMessage) -> Envelope {
    Envelope {
        cluster: ClusterId(7),
        group: GroupId(1),
        from: ReplicaId(from),
        incarnation: stage::incarnation(from),
        to: ReplicaId(to),
        message: PeerMessage::Raft(message),
    }
}

fn entry(term: u64, index: u64) -> LogEntry {
    LogEntry {
        term: Term(term),
        index: Index(index),
        kind: LogEntryKind::Normal,
        data: Bytes::new(),
        context: Bytes::new(),
    }
}

fn snapshot(index: u64, term: u64, configuration: Configuration) -> SnapshotMeta {
    SnapshotMeta {
        index: Index(index),
        term: Term(term),
        configuration,
        sequence: Seq(0),
        head: Digest::default(),
        age: Age(0),
        history: Vec::new(),
        layers: Vec::new(),
        digest: Digest::default(),
    }
}

fn ids(list: &[u64]) -> Vec<ReplicaId> {
    list.iter().copied().map(ReplicaId).collect()
}

#[test]
fn what_no_honest_replica_sends_is_refused_and_counted() {
    use RaftMessageKind as Kind;
    let mut stage = Stage::new(&[1, 2, 3], &[4]);
    stage.make_leader(1);
    let status = stage.replica(1).status();
    let (term, last) = (status.term, status.last);
    let base = |kind| RaftMessage { term, ..message(kind) };
    let voters = |voters: &[u64]| Configuration { voters: ids(voters), ..Configuration::default() };
    let offer = |meta| RaftMessage { snapshot: Some(meta), ..base(Kind::Snapshot) };
    let unsound = |learners: &[u64], outgoing: &[u64], next: &[u64]| Configuration {
        voters: ids(&[1, 2, 3]),
        learners: ids(learners),
        voters_outgoing: ids(outgoing),
        learners_next: ids(next),
        auto_leave: false,
    };
    let table: Vec<(&str, u64, RaftMessage)> = vec![
        ("no term", 2, RaftMessage { term: Term(0), ..base(Kind::Heartbeat) }),
        ("commit beyond the log", 2, RaftMessage { commit: Index(last.0 + 1), ..base(Kind::Heartbeat) }),
        (
            "a gap between entries",
            2,
            RaftMessage { index: last, log_term: term, entries: vec![entry(term.0, last.0 + 2)], ..base(Kind::Append) },
        ),
        (
            "a gap among entries",
            2,
            RaftMessage {
                index: last,
                log_term: term,
                entries: vec![entry(term.0, last.0 + 1), entry(term.0, last.0 + 3)],
                ..base(Kind::Append)
            },
        ),
        (
            "an entry of a later term",
            2,
            RaftMessage {
                index: last,
                log_term: term,
                entries: vec![entry(term.0 + 1, last.0 + 1)],
                ..base(Kind::Append)
            },
        ),
        ("a position without a term", 2, RaftMessage { index: Index(last.0 + 5), ..base(Kind::Append) }),
        (
            "terms that descend",
            2,
            RaftMessage {
                index: last,
                log_term: term,
                entries: vec![entry(term.0, last.0 + 1), entry(term.0 - 1, last.0 + 2)],
                ..base(Kind::Append)
            },
        ),
        (
            "the end of numbers",
            2,
            RaftMessage { index: Index(u64::MAX), entries: vec![entry(1, 0)], ..base(Kind::Append) },
        ),
        ("the last term", 2, RaftMessage { term: Term(u64::MAX), ..base(Kind::Vote) }),
        (
            "an acknowledgement of what is not there",
            1,
            RaftMessage { index: Index(last.0 + 1), ..base(Kind::AppendReply) },
        ),
        (
            "a hint beyond what is rejected",
            1,
            RaftMessage { index: last, reject: true, reject_hint: Index(u64::MAX >> 1), ..base(Kind::AppendReply) },
        ),
        ("entries in a heartbeat", 2, RaftMessage { entries: vec![entry(1, 1)], ..base(Kind::Heartbeat) }),
        ("a context without end", 2, RaftMessage { context: vec![0; 65].into(), ..base(Kind::Heartbeat) }),
        ("a request for a snapshot", 1, RaftMessage { request_snapshot: Index(1), ..base(Kind::AppendReply) }),
        ("a snapshot of nothing", 2, base(Kind::Snapshot)),
        (
            "a snapshot in a heartbeat",
            2,
            RaftMessage { snapshot: Some(snapshot(99, 1, voters(&[1, 2, 3]))), ..base(Kind::Heartbeat) },
        ),
        ("no voters", 2, offer(snapshot(99, 1, voters(&[])))),
        ("nobody votes", 2, offer(snapshot(99, 1, voters(&[0, 2])))),
        ("a voter twice", 2, offer(snapshot(99, 1, voters(&[2, 2])))),
        ("votes and learns", 2, offer(snapshot(99, 1, unsound(&[2], &[], &[])))),
        ("learns next without leaving", 2, offer(snapshot(99, 1, unsound(&[], &[], &[4])))),
        ("a snapshot from the future", 2, offer(snapshot(99, term.0 + 1, voters(&[1, 2, 3])))),
        ("a snapshot at the end of numbers", 2, offer(snapshot(u64::MAX, 1, voters(&[1, 2, 3])))),
        ("a snapshot against what is committed", 2, offer(snapshot(last.0, term.0 - 1, voters(&[1, 2, 3])))),
        ("somebody else's order to campaign", 2, base(Kind::TimeoutNow)),
    ];
    for (what, to, message) in table {
        let before = stage.replica(to).status();
        let from = if to == 1 { 2 } else { 3 };
        stage.step(to, vec![Input::Peer(envelope(from, to, message))]);
        let after = stage.replica(to).status();
        assert_eq!(after.refused_messages, before.refused_messages + 1, "{what}");
        assert_eq!(after.term, before.term, "{what}");
    }
    let mut foreign = envelope(3, 2, message(RaftMessageKind::Heartbeat));
    foreign.cluster = ClusterId(8);
    let before = stage.replica(2).status().refused_messages;
    stage.step(2, vec![Input::Peer(foreign)]);
    assert_eq!(stage.replica(2).status().refused_messages, before + 1);
    let honest: u64 = [1, 3, 4].iter().map(|id| stage.replica(*id).status().refused_messages).sum();
    stage.play(2_000, |_| true);
    let later: u64 = [1, 3, 4].iter().map(|id| stage.replica(*id).status().refused_messages).sum();
    assert_eq!(honest, later, "an honest message was refused");
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![20 => 0..12_u64, 1 => Just(1 << 56), 1 => Just((1 << 56) + 1), 1 => Just(u64::MAX - 1), 1 => Just(u64::MAX)]
}

fn configuration() -> impl Strategy<Value = Configuration> {
    let list = || prop::collection::vec(0..6_u64, 0..4).prop_map(|list| ids(&list));
    (list(), list(), list(), list(), any::<bool>()).prop_map(
        |(voters, voters_outgoing, learners, learners_next, auto_leave)| Configuration {
            voters,
            voters_outgoing,
            learners,
            learners_next,
            auto_leave,
        },
    )
}

fn any_message() -> impl Strategy<Value = RaftMessage> {
    use RaftMessageKind as Kind;
    let kind = prop::sample::select(vec![
        Kind::Append,
        Kind::AppendReply,
        Kind::Vote,
        Kind::VoteReply,
        Kind::PreVote,
        Kind::PreVoteReply,
        Kind::Heartbeat,
        Kind::HeartbeatReply,
        Kind::Snapshot,
        Kind::TimeoutNow,
    ]);
    let entries = prop_oneof![
        1 => prop::collection::vec((number(), number()), 0..3).prop_map(Err),
        3 => prop::collection::vec(0..8_u64, 0..4).prop_map(Ok),
    ];
    let snapshot_of = (number(), number(), configuration()).prop_map(|(i, t, c)| snapshot(i, t, c));
    let context =
        prop::sample::select(vec![Bytes::new(), Bytes::from_static(b"CampaignTransfer"), Bytes::from_static(&[7; 16])]);
    ((kind, number(), number(), number(), entries), (number(), number(), any::<bool>(), number(), context, snapshot_of))
        .prop_map(|((kind, term, log_term, index, entries), (commit, commit_term, reject, hint, context, snapshot))| {
            let entries = match (kind, entries) {
                (Kind::Append, Ok(mut terms)) => {
                    terms.sort_unstable();
                    let next = |i: usize| index.wrapping_add(1 + i as u64);
                    terms.iter().enumerate().map(|(i, term)| entry(*term, next(i))).collect()
                }
                (Kind::Append, Err(pairs)) => pairs.iter().map(|(term, index)| entry(*term, *index)).collect(),
                _ => Vec::new(),
            };
            RaftMessage {
                kind,
                term: Term(term),
                log_term: Term(log_term),
                index: Index(index),
                entries,
                commit: Index(commit),
                commit_term: Term(commit_term),
                reject,
                reject_hint: Index(hint),
                context,
                snapshot: (kind == Kind::Snapshot).then_some(snapshot),
                request_snapshot: Index(0),
            }
        })
}

/// A cluster with a leader, followers, a learner, somebody who campaigns in vain, and somebody who knows nothing yet.
fn everybody() -> Stage {
    let mut stage = Stage::new(&[1, 2, 3], &[4]);
    stage.make_leader(1);
    stage.add(5, Disk::default());
    stage.alone(3, 2_000);
    stage.mail.clear();
    stage.step(1, vec![Input::Wake]);
    stage
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_message_makes_a_replica_panic(
        sends in prop::collection::vec((1..6_u64, 1..10_u64, any_message(), 0..4_u8, any::<bool>()), 1..16)
    ) {
        let mut stage = everybody();
        for (to, from, mut message, then, near) in sends {
            if near {
                // Most terms are far from the receiver's, and fall away early.
                message.term = Term(stage.replica(to).status().term.0 + message.term.0 % 3);
            }
            stage.step(to, vec![Input::Peer(envelope(from, to, message))]);
            match then {
                0 => {}
                1 => drop(stage.persist(to)),
                2 => stage.alone(to, 600),
                _ => {
                    stage.crash(to);
                    stage.start(to);
                }
            }
        }
        for id in 1..=5 {
            stage.alone(id, 1_200);
        }
    }
}

#[test]
fn a_member_nobody_admitted_changes_nothing_by_speaking() {
    let mut stage = everybody();
    let before = stage.replica(1).status();
    let reply = RaftMessage { term: before.term, index: before.last, ..message(RaftMessageKind::AppendReply) };
    stage.step(1, vec![Input::Peer(envelope(9, 1, reply))]);
    assert_eq!(stage.replica(1).status().progress, before.progress);
}
