//! The rules of living with the Raft library (`FACTS.md`), each as a story that goes wrong on the naive use.

#[path = "cluster/stage.rs"]
#[allow(dead_code, reason = "each test file uses its part of the stage")]
mod stage;

use muster_core::ids::{Incarnation, Index, ReplicaId, Term};
use muster_core::log::LogRecord;
use muster_core::members::{MemberCommand, MemberWish};
use muster_core::peer::{Envelope, PeerMessage, RaftMessageKind};
use muster_core::replica::{Answer, Input};
use muster_core::request::{AdminRequest, Command, Freshness, NotApplied, Outcome, Reply, UnknownWhy};
use stage::{Disk, Stage, admission, kind, raft_message};

fn between(a: u64, b: u64) -> impl Fn(&Envelope) -> bool {
    move |e| (e.from.0 == a || e.to.0 == a) && (e.from.0 == b || e.to.0 == b)
}

/// Everybody but one hear each other.
fn without(cut: u64) -> impl Fn(&Envelope) -> bool {
    move |e| e.from.0 != cut && e.to.0 != cut
}

// ---- rule 1 -----------------------------------------------------------------------------------------------------------------

#[test]
fn old_acknowledgements_release_no_younger_read() {
    let mut stage = Stage::new(&[1, 2, 3], &[]);
    stage.make_leader(1);
    stage.sent.clear();
    stage.step(1, vec![Input::Read { token: 1, freshness: Freshness::Linearizable }]);
    stage.step(2, vec![Input::Read { token: 2, freshness: Freshness::Linearizable }]);
    stage.play(300, |_| true);
    assert!(stage.players[&1].answers.contains(&(1, Answer::Read(Ok(())))));
    assert!(stage.players[&2].answers.contains(&(2, Answer::Read(Ok(())))));
    let old = stage.sent.clone();
    assert!(old.iter().any(|e| kind(e) == Some(RaftMessageKind::HeartbeatReply)));
    // The others elect one and commit; replica 1 was paused and still believes that it leads.
    let pause = |e: &Envelope| e.from.0 != 1 && e.to.0 != 1;
    while stage.leader() == Some(1) {
        stage.now += 10;
        for id in 2..=3 {
            stage.step(id, vec![Input::Wake]);
            stage.persist(id);
        }
        stage.deliver(pause);
        stage.persist(2);
        stage.persist(3);
        stage.deliver(pause);
        assert!(stage.now < 60_000, "the others elect nobody");
    }
    assert!(stage.replica(1).is_leader());
    // A read that begins now must see what the others commit: everything that was ever said before releases it not.
    stage.step(1, vec![Input::Read { token: 3, freshness: Freshness::Linearizable }]);
    for _ in 0..3 {
        for envelope in &old {
            stage.step(envelope.to.0, vec![Input::Peer(envelope.clone())]);
        }
    }
    assert!(!stage.players[&1].answers.iter().any(|(token, _)| *token == 3), "a stale read");
}

// ---- rule 2 -----------------------------------------------------------------------------------------------------------------

#[test]
fn a_sole_voter_says_nothing_before_its_first_write_is_durable() {
    let mut stage = Stage::new(&[1], &[2]);
    for _ in 0..200 {
        stage.now += 10;
        stage.step(1, vec![Input::Wake]);
    }
    assert!(stage.replica(1).is_leader(), "it wins inside its campaign");
    assert!(!stage.players[&1].tasks.is_empty());
    assert_eq!(stage.sent, [], "a message left before the term was durable");
    stage.crash(1);
    stage.start(1);
    assert_eq!(stage.replica(1).status().last, Index(1));
    stage.play(1_500, |_| true);
    assert_eq!(stage.replica(2).status().applied, stage.replica(1).status().applied);
    assert!(stage.replica(1).is_leader());
}

// ---- rule 4 -----------------------------------------------------------------------------------------------------------------

#[test]
fn a_replica_neither_votes_nor_campaigns_in_its_first_moments() {
    let mut stage = Stage::new(&[1, 2, 3], &[]);
    stage.make_leader(1);
    stage.crash(3);
    stage.start(3);
    // The leader's heartbeat arrives, then its order to campaign at once.
    stage.play(200, |_| true);
    assert_eq!(stage.replica(3).status().leader, ReplicaId(1));
    let term = stage.replica(1).status().term;
    let mut order = stage.sent.iter().rev().find(|e| kind(e) == Some(RaftMessageKind::Heartbeat)).cloned().unwrap();
    order.from = ReplicaId(1);
    order.to = ReplicaId(3);
    order.incarnation = stage::incarnation(1);
    let PeerMessage::Raft(message) = &mut order.message else { unreachable!() };
    message.kind = RaftMessageKind::TimeoutNow;
    message.term = term;
    message.commit = Index(0);
    message.context = bytes::Bytes::new();
    stage.sent.clear();
    stage.step(3, vec![Input::Peer(order.clone())]);
    stage.persist(3);
    assert_eq!(stage.replica(3).status().term, term, "it campaigned {} ms after its start", 200);
    // A vote is not answered either.
    let PeerMessage::Raft(message) = &mut order.message else { unreachable!() };
    message.kind = RaftMessageKind::Vote;
    message.term = Term(term.0 + 5);
    message.index = Index(1_000);
    message.log_term = Term(term.0 + 4);
    message.context = bytes::Bytes::from_static(b"CampaignTransfer");
    stage.step(3, vec![Input::Peer(order)]);
    stage.persist(3);
    assert_eq!(stage.replica(3).status().term, term);
    assert_eq!(stage.sent, []);
}

#[test]
fn a_replica_alone_does_not_campaign_before_the_longest_election_timeout() {
    let mut stage = Stage::new(&[1, 2, 3], &[]);
    stage.alone(2, 500);
    assert_eq!(stage.sent, []);
    stage.alone(2, 600);
    assert!(stage.sent.iter().any(|e| kind(e) == Some(RaftMessageKind::PreVote)));
}

/// Whether a read of the leader is answered at once, by itself.
fn answers_alone(stage: &mut Stage, token: u64, freshness: Freshness) -> bool {
    stage.step(1, vec![Input::Read { token, freshness }]);
    stage.players[&1].answers.contains(&(token, Answer::Read(Ok(()))))
}

/// A leader that a quorum has just acknowledged.
fn leader_with_a_lease() -> Stage {
    let mut stage = Stage::new(&[1, 2, 3], &[]);
    stage.make_leader(1);
    // Who was made leader by a transfer of its own has told nobody to campaign in this term.
    assert!(!answers_alone(&mut stage, 1, Freshness::Leased), "a lease before any round");
    stage.play(20, |_| true);
    assert!(stage.players[&1].answers.contains(&(1, Answer::Read(Ok(())))));
    stage
}

#[test]
fn a_lease_answers_until_it_has_run_out_and_only_who_asks_for_it() {
    let mut stage = leader_with_a_lease();
    assert!(answers_alone(&mut stage, 2, Freshness::Leased));
    assert!(!answers_alone(&mut stage, 3, Freshness::Linearizable), "a linearizable read rested on a clock");
    stage.alone(1, 240);
    assert!(answers_alone(&mut stage, 4, Freshness::Leased));
    stage.alone(1, 40);
    assert!(!answers_alone(&mut stage, 5, Freshness::Leased), "others may lead by now");
}

#[test]
fn there_is_no_lease_in_a_term_in_which_somebody_was_told_to_campaign() {
    let mut stage = leader_with_a_lease();
    stage.step(1, vec![Input::Admin { token: 2, request: AdminRequest::Transfer { to: ReplicaId(2) } }]);
    // The message is late, and leadership is not being handed over any more when it arrives.
    stage.play(2_000, |e| kind(e) != Some(RaftMessageKind::TimeoutNow));
    assert!(stage.sent.iter().any(|e| kind(e) == Some(RaftMessageKind::TimeoutNow)));
    assert!(stage.replica(1).is_leader());
    assert!(!answers_alone(&mut stage, 3, Freshness::Leased));
    stage.play(20, |_| true);
    assert!(!answers_alone(&mut stage, 4, Freshness::Leased), "a campaign that no lease holds up may be under way");
}

// ---- rule 5 -----------------------------------------------------------------------------------------------------------------

#[test]
fn a_known_id_under_a_new_incarnation_is_refused() {
    let mut stage = Stage::new(&[1, 2, 3], &[]);
    stage.make_leader(1);
    let mut heartbeat = stage.sent.iter().rev().find(|e| kind(e) == Some(RaftMessageKind::Heartbeat)).cloned().unwrap();
    let to = heartbeat.to.0;
    heartbeat.incarnation = Incarnation(99);
    let refused = stage.replica(to).status().refused_messages;
    stage.sent.clear();
    stage.step(to, vec![Input::Peer(heartbeat)]);
    assert_eq!(stage.replica(to).status().refused_messages, refused + 1);
    assert_eq!(stage.sent, []);
}

// ---- rule 6 -----------------------------------------------------------------------------------------------------------------

#[test]
fn after_a_long_pause_a_leader_reads_its_mail_before_its_one_tick() {
    let mut stage = Stage::new(&[1, 2, 3], &[]);
    stage.make_leader(1);
    let term = stage.replica(1).status().term;
    stage.now += 20_000;
    for id in 1..=3 {
        stage.step(id, vec![Input::Wake]);
    }
    assert!(stage.replica(1).is_leader());
    stage.play(2_000, |_| true);
    assert_eq!(stage.replica(1).status().term, term, "a pause of everybody cost a term");
    assert!(stage.replica(1).is_leader());
}

#[test]
fn the_same_seeds_give_the_same_run_byte_for_byte() {
    let run = || {
        let mut stage = Stage::new(&[1, 2, 3], &[]);
        stage.play(3_000, |e| (e.from.0 + e.to.0) % 4 != 3 || e.from.0 == 1);
        let write = stage.some_write(1);
        stage.write(1, 1, write, true);
        stage.play(3_000, |_| true);
        stage.sent.iter().flat_map(|e| muster_core::codec::encode_envelope(e).to_vec()).collect::<Vec<u8>>()
    };
    let first = run();
    assert!(!first.is_empty());
    assert!(first == run());
}

// ---- leadership and membership ----------------------------------------------------------------------------------------------

#[test]
fn a_leader_that_inherits_its_own_removal_steps_down_and_the_others_go_on() {
    let mut stage = Stage::new(&[1, 2, 3], &[]);
    stage.make_leader(1);
    let remove = stage.request(1, Command::Members(MemberCommand::Remove(ReplicaId(2))));
    stage.write(1, 1, remove, false);
    // Only replica 2 gets the entry; then the leader dies.
    stage.persist(1);
    stage.deliver(between(1, 2));
    stage.persist(2);
    assert_eq!(stage.replica(2).status().last, stage.replica(1).status().last);
    stage.crash(1);
    stage.mail.clear();
    for token in 0..300 {
        let write = stage.some_write(2);
        stage.write(2, 100 + token, write, false);
        stage.play(10, |_| true);
    }
    // Replica 2 led, for its log was longer; it committed its own removal.
    assert!(!stage.replica(3).status().configuration.is_voter(ReplicaId(2)));
    assert!(!stage.replica(2).is_leader());
    stage.start(1);
    stage.play(3_000, |_| true);
    let leader = stage.leader().expect("the two that are left elect one");
    assert_ne!(leader, 2);
    let write = stage.some_write(leader);
    stage.write(leader, 7, write, false);
    stage.play(500, |_| true);
    assert!(matches!(stage.outcome(leader, 7), Some(Outcome::Applied { .. })));
}

#[test]
fn a_learner_joins_a_quiet_cluster_whose_snapshot_is_older_than_it() {
    let mut stage = Stage::new(&[1], &[]);
    stage.make_leader(1);
    let admit = stage.request(1, Command::Members(MemberCommand::Admit(admission(2, MemberWish::Learner))));
    stage.write(1, 1, admit, false);
    stage.play(300, |_| true);
    stage.add(2, Disk::default());
    stage.play(5_000, |_| true);
    assert_eq!(stage.replica(2).status().applied, stage.replica(1).status().applied);
}

#[test]
fn who_leaves_by_a_joint_change_can_be_reached_until_the_change_is_over() {
    let mut stage = Stage::new(&[1, 2, 3], &[4]);
    stage.make_leader(1);
    let hold = stage.request(1, Command::Members(MemberCommand::Replace { old: ReplicaId(2), new: ReplicaId(4) }));
    for id in 2..=4 {
        stage.step(id, vec![Input::HistoryComplete { after: Index(u64::MAX), complete: true }]);
    }
    stage.play(1_500, |_| true);
    stage.crash(3);
    stage.write(1, 1, hold, false);
    for _ in 0..20 {
        if stage.replica(1).status().configuration.is_joint() {
            break;
        }
        stage.persist(1);
        stage.persist(2);
        stage.persist(4);
        stage.deliver(|_| true);
    }
    // Replica 3 is down: without replica 2 the joint configuration cannot be left.
    assert!(stage.replica(1).status().configuration.is_joint());
    assert!(stage.players[&1].told.iter().any(|m| m.id == ReplicaId(2)), "its address is forgotten too early");
    stage.play(1_000, |_| true);
    assert!(!stage.replica(1).status().configuration.is_joint());
    assert!(stage.players[&1].told.iter().all(|m| m.id != ReplicaId(2)));
}

// ---- what writers are told --------------------------------------------------------------------------------------------------

#[test]
fn a_write_that_went_into_the_log_twice_is_not_called_superseded() {
    let mut stage = Stage::new(&[1, 2, 3], &[]);
    stage.make_leader(1);
    let before = stage.sequence(1);
    let applied = stage.replica(1).status().applied;
    // Cut off, it logs a write that nobody sees.
    let write = stage.some_write(1);
    stage.write(1, 1, write, true);
    stage.persist(1);
    stage.mail.clear();
    // The others elect one, whose first entry gets to replica 1 only, uncommitted.
    stage.play(1_500, |e| without(1)(e) && kind(e) != Some(RaftMessageKind::Append));
    let second = [2, 3].into_iter().find(|id| stage.replica(*id).is_leader()).expect("the others elect one");
    let third = 5 - second;
    let last = stage.replica(1).status().last;
    stage.play(600, |e| {
        between(1, second)(e) && raft_message(e).is_some() && kind(e) != Some(RaftMessageKind::AppendReply)
    });
    assert_eq!(stage.replica(1).status().last, last, "the second leader's entry took the place of the write");
    assert_eq!(stage.replica(1).status().leader, ReplicaId(second));
    assert_eq!(stage.replica(1).status().applied, applied);
    stage.crash(second);
    stage.mail.clear();
    // Replica 1 leads again: its write is proposed a second time, behind the entry that took the first one's place.
    stage.play(3_000, between(1, third));
    assert!(stage.replica(1).is_leader());
    stage.start(second);
    stage.play(5_000, |_| true);
    let outcome = stage.outcome(1, 1).expect("answered");
    let applied = stage.sequence(stage.leader().unwrap()) > before;
    match outcome {
        Outcome::Applied { .. } => assert!(applied),
        Outcome::NotApplied(why) => assert!(!applied, "it was applied, and its writer was told {why:?}"),
        Outcome::Unknown(_) => {}
        Outcome::Refused(refusal) => panic!("{refusal:?}"),
    }
}

#[test]
fn busy_from_the_leader_is_not_the_last_word_on_a_write_that_may_be_logged_already() {
    let mut stage = Stage::new(&[1, 2, 3], &[]);
    stage.make_leader(1);
    let write = stage.some_write(2);
    stage.write(2, 1, write, true);
    let forward = stage.mail.iter().find(|e| matches!(e.message, PeerMessage::Forward { .. })).cloned().unwrap();
    let PeerMessage::Forward { token, .. } = &forward.message else { unreachable!() };
    // The leader logs it; a second copy of the message finds the leader busy, and that answer arrives first.
    let mut busy = forward.clone();
    busy.from = ReplicaId(1);
    busy.incarnation = stage::incarnation(1);
    busy.to = ReplicaId(2);
    let outcome = Outcome::NotApplied(NotApplied::Busy { retry_after_ms: 100 });
    busy.message = PeerMessage::Forwarded { token: *token, outcome };
    let before = stage.sequence(1);
    stage.step(2, vec![Input::Peer(busy)]);
    stage.play(7_000, |_| true);
    assert!(stage.sequence(1) > before, "the first copy is applied");
    let outcome = stage.outcome(2, 1).expect("answered");
    assert!(!matches!(outcome, Outcome::NotApplied(_)), "told {outcome:?} of a write that was applied");
}

#[test]
fn a_deposed_leader_does_not_pass_on_what_was_not_to_be_forwarded() {
    let mut stage = Stage::new(&[1, 2, 3], &[]);
    stage.make_leader(1);
    let before = stage.sequence(1);
    let write = stage.some_write(1);
    stage.write(1, 1, write, false);
    stage.persist(1);
    stage.mail.clear();
    stage.play(1_500, without(1));
    stage.play(1_500, |_| true);
    assert_eq!(stage.outcome(1, 1), Some(Outcome::NotApplied(NotApplied::Superseded)));
    stage.play(6_000, |_| true);
    assert_eq!(stage.sequence(1), before);
}

#[test]
fn a_write_in_a_cut_off_leaders_log_is_unknown_at_its_deadline_and_one_never_proposed_is_not_applied() {
    let mut stage = Stage::new(&[1, 2, 3], &[]);
    stage.make_leader(1);
    let write = stage.some_write(1);
    stage.write(1, 1, write, false);
    stage.play(2_000, |_| false);
    assert!(!stage.replica(1).is_leader(), "a leader without a quorum steps down");
    let write = stage.some_write(1);
    stage.write(1, 2, write, true);
    stage.play(5_100, |_| false);
    assert_eq!(stage.outcome(1, 1), Some(Outcome::Unknown(UnknownWhy::TimedOut)));
    assert_eq!(stage.outcome(1, 2), Some(Outcome::NotApplied(NotApplied::NoQuorum)));
}

#[test]
fn a_membership_change_is_not_refused_while_an_earlier_copy_of_it_may_still_be_applied() {
    let mut stage = Stage::new(&[1, 2, 3], &[4]);
    stage.make_leader(1);
    for id in 2..=4 {
        stage.step(id, vec![Input::HistoryComplete { after: Index(u64::MAX), complete: true }]);
    }
    stage.play(1_500, |_| true);
    let promote = stage.request(1, Command::Members(MemberCommand::Promote(ReplicaId(4))));
    stage.write(1, 1, promote.clone(), false);
    stage.persist(1);
    stage.deliver(between(1, 2));
    stage.persist(2);
    stage.crash(1);
    stage.mail.clear();
    // The client asks replica 2 under the same id the moment it leads: it knows no report of replica 4 yet.
    while !stage.replica(2).is_leader() {
        stage.play(10, |_| true);
        assert!(stage.now < 30_000, "replica 2 does not lead");
    }
    stage.write(2, 2, promote, false);
    stage.play(4_000, |_| true);
    let outcome = stage.outcome(2, 2).expect("answered");
    assert!(matches!(outcome, Outcome::Applied { reply: Reply::Membership, .. }), "told {outcome:?}");
    assert!(stage.replica(2).status().configuration.is_voter(ReplicaId(4)));
}

// ---- operators --------------------------------------------------------------------------------------------------------------

#[test]
fn a_second_transfer_answers_the_first() {
    let mut stage = Stage::new(&[1, 2, 3], &[]);
    stage.make_leader(1);
    for token in [1, 2] {
        let request = AdminRequest::Transfer { to: ReplicaId(1 + token) };
        stage.step(1, vec![Input::Admin { token, request }]);
    }
    stage.play(3_000, |_| true);
    for token in [1, 2] {
        let answers = stage.players[&1].answers.iter().filter(|(t, _)| *t == token).count();
        assert_eq!(answers, 1, "request {token} has {answers} answers");
    }
}

#[test]
fn a_snapshot_that_is_asked_for_is_answered_even_if_one_from_a_peer_comes_first() {
    let mut stage = Stage::new(&[1, 2, 3], &[]);
    stage.limits.log_bytes_behind_snapshot = 0;
    for id in 1..=3 {
        stage.crash(id);
        stage.start(id);
    }
    stage.make_leader(1);
    let write = stage.some_write(1);
    stage.write(1, 1, write, false);
    stage.play(300, |_| true);
    // Replica 3 is asked for a snapshot, whose save hangs; meanwhile it lags and is sent one.
    stage.step(3, vec![Input::Admin { token: 5, request: AdminRequest::Snapshot }]);
    let hanging = std::mem::take(&mut stage.players.get_mut(&3).unwrap().saves);
    assert_eq!(hanging.len(), 1);
    for _ in 0..3 {
        let write = stage.some_write(1);
        stage.write(1, 10, write, false);
        stage.play(200, without(3));
    }
    stage.players.get_mut(&1).unwrap().answers.clear();
    stage.play(600, without(3));
    stage.step(1, vec![Input::Admin { token: 6, request: AdminRequest::Snapshot }]);
    stage.play(3_000, without(3));
    stage.play(3_000, |_| true);
    assert_eq!(stage.replica(3).status().applied, stage.replica(1).status().applied);
    assert!(stage.replica(3).status().snapshot > Index(2), "it came by snapshot");
    assert!(stage.players[&3].answers.iter().any(|(t, a)| *t == 5 && matches!(a, Answer::Admin(_))), "never answered");
}

// ---- rule 3 -----------------------------------------------------------------------------------------------------------------

#[test]
fn every_commit_index_is_handed_to_the_log_in_order_even_if_nothing_waits_for_it() {
    let mut stage = Stage::new(&[1, 2, 3], &[4]);
    stage.make_leader(1);
    for token in 0..10 {
        let write = stage.some_write(1);
        stage.write(1, token, write, false);
        stage.play(50, |_| true);
    }
    stage.play(500, |_| true);
    for id in 1..=4 {
        let mut commit = Index(0);
        for record in &stage.players[&id].disk.log {
            if let LogRecord::HardState(state) = record {
                assert!(state.commit >= commit, "replica {id}");
                commit = state.commit;
            }
        }
        assert_eq!(commit, stage.replica(id).status().commit, "replica {id}");
    }
}

#[test]
fn all_three_voters_are_replaced_one_by_one_while_everybody_crashes_in_between() {
    let mut stage = Stage::new(&[1, 2, 3], &[4, 5, 6]);
    for (old, new) in [(1, 4), (2, 5), (3, 6)] {
        let leader = if old == 3 { 4 } else { old + 1 };
        stage.make_leader(leader);
        for id in 1..=6 {
            stage.step(id, vec![Input::HistoryComplete { after: Index(u64::MAX), complete: true }]);
        }
        stage.play(1_500, |_| true);
        let replace = MemberCommand::Replace { old: ReplicaId(old), new: ReplicaId(new) };
        let replace = stage.request(leader, Command::Members(replace));
        stage.write(leader, new, replace, false);
        // All lose power somewhere on the way into the joint configuration and out of it.
        for round in 0..6 {
            for _ in 0..=round {
                for id in 1..=6 {
                    stage.persist(id);
                }
                stage.deliver(|_| true);
            }
            stage.mail.clear();
            for id in 1..=6 {
                stage.crash(id);
                stage.start(id);
            }
            stage.play(300 + 200 * round, |_| true);
        }
        stage.play(4_000, |_| true);
        let leader = stage.leader().expect("somebody leads");
        let mut configuration = stage.replica(leader).status().configuration;
        if configuration.is_voter(ReplicaId(old)) {
            // It was lost in the first crash.
            stage.make_leader(if old == 3 { 4 } else { old + 1 });
            let leader = stage.leader().unwrap();
            for id in 1..=6 {
                stage.step(id, vec![Input::HistoryComplete { after: Index(u64::MAX), complete: true }]);
            }
            stage.play(1_500, |_| true);
            let replace = MemberCommand::Replace { old: ReplicaId(old), new: ReplicaId(new) };
            let replace = stage.request(leader, Command::Members(replace));
            stage.write(leader, 50 + new, replace, false);
            stage.play(1_500, |_| true);
            configuration = stage.replica(leader).status().configuration;
        }
        assert!(!configuration.is_joint());
        assert!(!configuration.is_voter(ReplicaId(old)) && configuration.is_voter(ReplicaId(new)), "{configuration:?}");
    }
    let states: Vec<_> =
        [4, 5, 6].map(|id| (stage.replica(id).status().applied, stage.replica(id).state().digest())).into();
    assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "{states:?}");
}

// ---- snapshots --------------------------------------------------------------------------------------------------------------

/// Replica 3 of three lags behind what the others keep, and was offered a snapshot that it is fetching.
fn fetching() -> Stage {
    fetching_within(1_000)
}

/// The same, with a leader of such patience.
fn fetching_within(patience_ms: u64) -> Stage {
    let mut stage = Stage::new(&[1, 2, 3], &[]);
    stage.limits.log_bytes_behind_snapshot = 0;
    stage.limits.snapshot_patience_ms = patience_ms;
    for id in 1..=3 {
        stage.crash(id);
        stage.start(id);
    }
    stage.make_leader(1);
    stage.slow_fetches = true;
    newer_snapshot(&mut stage);
    stage.play(2_000, |_| true);
    assert_eq!(stage.players[&3].fetches.len(), 1);
    stage
}

/// The others write and take snapshots that replica 3 misses.
fn newer_snapshot(stage: &mut Stage) {
    for token in 0..3 {
        let write = stage.some_write(1);
        stage.write(1, 1_000 + stage.now + token, write, false);
        stage.play(700, without(3));
    }
    for id in 1..=2 {
        stage.step(id, vec![Input::Admin { token: 2_000_000 + stage.now, request: AdminRequest::Snapshot }]);
    }
    stage.play(1_000, without(3));
}

#[test]
fn a_slow_fetch_is_not_thrown_away_for_a_newer_offer() {
    let mut stage = fetching();
    let first = stage.players[&3].fetches[0].clone();
    let kept: Vec<_> = stage.players[&1].disk.snapshots.clone();
    newer_snapshot(&mut stage);
    stage.play(3_000, |_| true);
    assert_eq!(stage.players[&3].fetches.len(), 1, "another fetch was begun meanwhile");
    assert_eq!(stage.players[&3].fetches[0], first);
    stage.players.get_mut(&1).unwrap().disk.snapshots.splice(0..0, kept);
    stage.fetch(3);
    stage.persist(3);
    assert_eq!(stage.replica(3).status().applied, first.1.index);
    stage.slow_fetches = false;
    stage.play(4_000, |_| true);
    assert_eq!(stage.replica(3).status().applied, stage.replica(1).status().applied);
}

#[test]
fn a_fetch_that_came_to_nothing_is_offered_again_soon_and_then_less_and_less_often() {
    let mut stage = fetching_within(60_000);
    let mut offers = vec![];
    let mut seen = 0;
    for _ in 0..1_200 {
        stage.play(100, |_| true);
        let fetches = &stage.players[&3].fetches;
        if fetches.len() > seen {
            seen = fetches.len();
            offers.push(stage.now);
            let index = fetches[seen - 1].1.index;
            stage.step(3, vec![Input::SnapshotLost { index }]);
        }
    }
    let waits: Vec<u64> = offers.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let (first, rest) = waits.split_first().expect("it is offered again");
    assert!(*first <= 5_000, "the second offer came after {first} ms");
    assert!(rest.len() >= 3, "offers at {offers:?}");
    assert!(waits.windows(2).all(|pair| pair[1] > pair[0] && pair[1] <= 61_000), "waits of {waits:?}");
}

#[test]
fn a_fetched_snapshot_is_installed_under_the_next_leader_too() {
    let mut stage = fetching();
    stage.step(1, vec![Input::Admin { token: 1, request: AdminRequest::Transfer { to: ReplicaId(2) } }]);
    stage.play(1_000, |_| true);
    assert!(stage.replica(2).is_leader());
    let index = stage.players[&3].fetches[0].1.index;
    stage.fetch(3);
    stage.persist(3);
    assert!(stage.replica(3).status().applied >= index);
    // It crashes before anything else happens.
    stage.crash(3);
    stage.start(3);
    assert_eq!(stage.replica(3).status().applied, index);
    stage.slow_fetches = false;
    stage.play(3_000, |_| true);
    assert_eq!(stage.replica(3).status().applied, stage.replica(2).status().applied);
}

#[test]
fn after_a_lost_fetch_the_offer_that_came_meanwhile_is_taken_up() {
    let mut stage = fetching();
    let (_, lost) = stage.players[&3].fetches[0].clone();
    newer_snapshot(&mut stage);
    stage.play(3_000, |_| true);
    stage.players.get_mut(&3).unwrap().fetches.clear();
    stage.step(3, vec![Input::SnapshotLost { index: lost.index }]);
    assert_eq!(stage.players[&3].fetches.len(), 1);
    assert!(stage.players[&3].fetches[0].1.index > lost.index);
}

#[test]
fn the_next_fetch_begins_once_what_was_fetched_before_is_installed() {
    let mut stage = fetching();
    let first = stage.players[&3].fetches[0].1.index;
    let kept: Vec<_> = stage.players[&1].disk.snapshots.clone();
    newer_snapshot(&mut stage);
    stage.play(3_000, |_| true);
    stage.players.get_mut(&1).unwrap().disk.snapshots.splice(0..0, kept);
    stage.fetch(3);
    assert!(stage.players[&3].fetches.is_empty(), "the install takes away what it would find fetched already");
    stage.persist(3);
    assert_eq!(stage.players[&3].fetches.len(), 1);
    assert!(stage.players[&3].fetches[0].1.index > first);
}

// ---- time, reads, the end ---------------------------------------------------------------------------------------------------

#[test]
fn a_transfer_that_fails_does_not_end_expiry_for_the_rest_of_the_term() {
    let mut stage = Stage::new(&[1, 2, 3], &[]);
    stage.make_leader(1);
    let write = stage.some_write(1);
    stage.write(1, 1, write, false);
    stage.play(500, |_| true);
    stage.crash(3);
    stage.play(58_500, |_| true);
    // Leadership is being handed to somebody who is not there at the moment time is due to be recorded.
    for token in 0..40 {
        stage.step(1, vec![Input::Admin { token: 100 + token, request: AdminRequest::Transfer { to: ReplicaId(3) } }]);
        stage.play(100, |_| true);
    }
    stage.play(3_000, |_| true);
    assert!(stage.replica(1).is_leader());
    let age = stage.replica(1).state().age();
    assert!(age.0 > 55_000_000, "replicated time stands still at {age}");
}

#[test]
fn a_read_at_a_follower_whose_leader_stepped_down_does_not_flood_it() {
    let mut stage = Stage::new(&[1, 2, 3], &[]);
    stage.make_leader(1);
    // Replica 2 has not heard yet that replica 3 leads.
    stage.step(1, vec![Input::Admin { token: 1, request: AdminRequest::Transfer { to: ReplicaId(3) } }]);
    stage.play(200, without(2));
    assert!(stage.replica(3).is_leader());
    stage.sent.clear();
    stage.step(2, vec![Input::Read { token: 9, freshness: Freshness::Linearizable }]);
    for _ in 0..50 {
        stage.deliver(|e| between(1, 2)(e) && raft_message(e).is_none());
        stage.step(2, vec![]);
    }
    let asked = stage.sent.iter().filter(|e| matches!(e.message, PeerMessage::ReadIndex { .. })).count();
    assert!(asked <= 2, "asked {asked} times within an instant");
    stage.play(2_000, |_| true);
    assert!(stage.players[&2].answers.iter().any(|(t, a)| *t == 9 && *a == Answer::Read(Ok(()))));
}

#[test]
fn who_is_told_to_stop_hands_leadership_over_and_takes_nothing_new() {
    let mut stage = Stage::new(&[1, 2, 3], &[]);
    stage.make_leader(1);
    let term = stage.replica(1).status().term;
    stage.step(1, vec![Input::Stop]);
    let write = stage.some_write(1);
    stage.write(1, 1, write, true);
    assert_eq!(stage.outcome(1, 1), Some(Outcome::NotApplied(NotApplied::Stopping)));
    stage.play(100, |_| true);
    let leader = stage.leader().expect("handed over without waiting for an election timeout");
    assert_ne!(leader, 1);
    assert_eq!(stage.replica(leader).status().term, Term(term.0 + 1));
}
