//! What an agent does, story by story.

#[path = "agent/world.rs"]
mod agent_world;
mod common;

use agent_world::{Todo, World, agent, bob, k, refused, set, v};
use common::{alice, node, vcluster};
use muster_core::agent::effects::{Input, Level, Ticket};
use muster_core::agent::host::BootTime;
use muster_core::agent::ledger::Owner;
use muster_core::agent::machine::SPOOL;
use muster_core::agent::operator::{Consent, Phase, Refused, Reply, Request, Returned, Which};
use muster_core::ids::WallTime;
use muster_core::journal::command::{ConfigState, JournalCommand};
use muster_core::journal::entry::EntryType;
use muster_core::journal::key::{Scope, Setting};
use muster_core::journal::policy::{Milli, Mode, Policy};
use std::collections::BTreeSet;
use std::sync::Arc;

const SWAP: &str = "kernel:vm.swappiness";
const MOTD: &str = "files:/etc/motd";
const DATA: &str = "mounts:/data";

fn world() -> World {
    World::new(Policy::default(), &[(SWAP, "60"), (MOTD, "hello"), (DATA, "tmpfs tmpfs")])
}

fn seconds_left(world: &World) -> u64 {
    world.report().window.expect("a window").seconds_left
}

#[test]
fn a_node_boots_into_what_is_declared_and_the_journal_hears_of_no_drift() {
    let world = world();
    assert_eq!((world.is(SWAP), world.is(MOTD), world.is(DATA)), (v("60"), v("hello"), v("tmpfs tmpfs")));
    assert_eq!((world.report().phase, world.report().window), (Phase::Committed, None));
    assert!(world.events.is_empty(), "{:?}", world.events);
}

#[test]
fn a_change_takes_effect_at_once_and_its_window_is_to_the_second() {
    let mut world = world();
    let reply = world.set(alice(), SWAP, "10");
    let Reply::Set { window: Some(window), .. } = reply else { panic!("{reply:?}") };
    assert_eq!((world.is(SWAP), window.seconds_left), (v("10"), 235));
    assert_eq!(world.report().phase, Phase::Drifted);
    assert_eq!(world.node_state(), ConfigState::Drifted);
    let drift = world.entries(EntryType::DriftDetected);
    assert_eq!(
        (&drift[0].delta[0].previous, &drift[0].delta[0].next, &drift[0].author),
        (&v("60"), &v("10"), &alice())
    );
}

#[test]
fn a_window_that_ends_without_a_commit_rolls_back_and_the_journal_says_so() {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    world.pass(234);
    assert_eq!((world.is(SWAP), seconds_left(&world)), (v("10"), 1));
    world.pass(1);
    assert_eq!((world.is(SWAP), world.report().phase), (v("60"), Phase::Committed));
    assert_eq!(world.messages(EntryType::Rollback), ["rolled back: window 1 expired after 235 s"]);
    let undone = &world.entries(EntryType::Rollback)[0];
    assert_eq!((&undone.delta[0].previous, &undone.delta[0].next), (&v("10"), &v("60")));
    assert_eq!(world.node_state(), ConfigState::Committed);
}

#[test]
fn a_key_that_nobody_declares_returns_to_what_it_was() {
    let mut world = world();
    world.host.state.insert(k("kernel:net.core.somaxconn"), v("128"));
    world.set(alice(), "kernel:net.core.somaxconn", "4096");
    assert_eq!(world.report().differences[0].declared, v("128"));
    world.pass(235);
    assert_eq!(world.is("kernel:net.core.somaxconn"), v("128"));
    assert_eq!(world.report().differences, []);
}

#[test]
fn a_commit_declares_what_differs_and_closes_the_window() {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    let reply = world.stand_by(alice(), Which::Own);
    let Reply::Committed { settings, window: None, left, .. } = reply else { panic!("{reply:?}") };
    assert_eq!((settings, left.is_zero()), (vec![(k(SWAP), v("10"))], true));
    world.pass(1_000);
    assert_eq!((world.is(SWAP), world.report().phase), (v("10"), Phase::Committed));
    assert_eq!(world.undeclared(), [""; 0]);
    assert_eq!(world.node_state(), ConfigState::Committed);
}

#[test]
fn without_a_quorum_nothing_is_committed_and_the_window_goes_on() {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    world.disconnect();
    world.pass(100);
    assert_eq!(refused(world.stand_by(alice(), Which::Own)), Refused::NoQuorum);
    assert_eq!(seconds_left(&world), 135);
    world.pass(135);
    assert_eq!(world.is(SWAP), v("60"));
}

#[test]
fn a_commit_whose_answer_is_lost_is_asked_again_under_the_same_id() {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    world.lost_answers = 1;
    let reply = world.stand_by(alice(), Which::Own);
    assert!(matches!(reply, Reply::Unknown { .. }), "{reply:?}");
    assert!(world.report().commit_unknown);
    world.pass(6);
    assert_eq!((world.report().commit_unknown, world.report().phase), (false, Phase::Committed));
    assert_eq!(world.entries(EntryType::Commit).len(), 1);
}

#[test]
fn what_is_changed_behind_the_agents_back_is_rolled_back_too() {
    let mut world = world();
    world.meddle(MOTD, v("owned"));
    world.settle();
    assert_eq!((seconds_left(&world), &world.report().differences[0].owner), (300, &Owner::BehindItsBack));
    let drift = world.entries(EntryType::DriftDetected);
    assert_eq!((&*drift[0].message, &drift[0].author), ("changed outside muster", &agent()));
    world.pass(300);
    assert_eq!(world.is(MOTD), v("hello"));
}

#[test]
fn a_key_that_its_owner_sets_back_needs_no_window_and_the_journal_says_what_it_was() {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    let reply = world.set(alice(), SWAP, "60");
    assert!(matches!(reply, Reply::Set { window: None, .. }), "{reply:?}");
    let undone = &world.entries(EntryType::Rollback)[0];
    assert_eq!((&undone.delta[0].previous, &undone.delta[0].next, &undone.author), (&v("10"), &v("60"), &alice()));
    assert_eq!((world.report().phase, world.node_state()), (Phase::Committed, ConfigState::Committed));
}

#[test]
fn what_changes_again_behind_the_agents_back_is_told_again() {
    let mut world = world();
    for value in ["owned", "owned again"] {
        world.meddle(MOTD, v(value));
        world.settle();
    }
    let told = world.entries(EntryType::DriftDetected);
    let told: Vec<_> = told.iter().map(|entry| &entry.delta[0].next).collect();
    assert_eq!(told, [&v("owned"), &v("owned again")]);
}

#[test]
fn what_somebody_changed_unseen_is_found_before_a_set_and_not_overwritten() {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    world.host.state.insert(k(SWAP), v("99"));
    let Refused::Owned(owned) = refused(world.set(alice(), SWAP, "20")) else { panic!("another refusal") };
    assert_eq!((owned[0].1.clone(), world.is(SWAP)), (Owner::BehindItsBack, v("99")));
}

#[test]
fn what_is_reverted_by_hand_needs_no_window() {
    let mut world = world();
    world.meddle(MOTD, v("owned"));
    world.pass(10);
    world.meddle(MOTD, v("hello"));
    world.settle();
    assert_eq!((world.report().window, world.report().phase), (None, Phase::Committed));
    assert_eq!(world.messages(EntryType::Rollback), ["reverted outside muster"]);
    assert_eq!(world.node_state(), ConfigState::Committed);
}

#[test]
fn more_drift_shortens_the_window_and_less_does_not_lengthen_it() {
    let mut world = world();
    world.meddle(MOTD, v("owned"));
    world.settle();
    assert_eq!(seconds_left(&world), 300);
    world.set(alice(), SWAP, "10");
    assert_eq!(seconds_left(&world), 201);
    world.rollback(alice(), Which::Own);
    assert_eq!(seconds_left(&world), 201);
}

#[test]
fn a_key_that_nobody_declares_shortens_an_open_window_as_well() {
    let mut world = world();
    world.set(alice(), MOTD, "owned");
    assert_eq!(seconds_left(&world), 300);
    world.set(alice(), "kernel:vm.overcommit_memory", "1");
    assert_eq!(seconds_left(&world), 201);
}

#[test]
fn a_short_window_is_begun_only_with_consent() {
    let policy = Policy { base_window_seconds: 100, ..Policy::default() };
    let mut world = World::new(policy, &[(SWAP, "60")]);
    let reply = world.answer(alice(), set(&[(SWAP, "10")], Consent::UnlessShort));
    let Reply::Forecast(forecast) = reply else { panic!("{reply:?}") };
    assert_eq!((forecast.seconds, forecast.is_short, world.is(SWAP)), (Some(26), true, v("60")));
    assert_eq!(world.events.len(), 0);
    assert!(matches!(world.answer(alice(), set(&[(SWAP, "10")], Consent::Yes)), Reply::Set { .. }));
}

#[test]
fn a_window_is_told_without_a_change() {
    let mut world = world();
    let reply = world.answer(alice(), set(&[(SWAP, "10"), (MOTD, "bye")], Consent::TellOnly));
    let Reply::Forecast(forecast) = reply else { panic!("{reply:?}") };
    assert_eq!((forecast.seconds, forecast.is_short), (Some(201), false));
    assert_eq!(forecast.explanation.shares.len(), 2);
    assert_eq!((world.is(SWAP), world.report().window), (v("60"), None));
}

#[test]
fn anothers_key_is_refused_unless_it_is_taken_over() {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    let Refused::Owned(owned) = refused(world.set(bob(), SWAP, "20")) else { panic!("another refusal") };
    assert_eq!((owned[0].0.clone(), owned[0].1.clone()), (k(SWAP), Owner::Operator(alice())));
    let named = Which::Keys(BTreeSet::from([k(SWAP)]));
    assert!(matches!(refused(world.rollback(bob(), named.clone())), Refused::Owned(_)), "naming it is not enough");
    assert!(matches!(refused(world.stand_by(bob(), named)), Refused::Owned(_)));
    let merge = Request::Set {
        changes: vec![(k(SWAP), v("20"))],
        consent: Consent::Yes,
        merge: true,
        message: Arc::from("mine now"),
    };
    assert!(matches!(world.answer(bob(), merge), Reply::Set { .. }));
    let nothing = refused(world.rollback(alice(), Which::Own));
    assert!(matches!(nothing, Refused::NotNow { .. }), "{nothing:?}");
    world.rollback(bob(), Which::Own);
    assert_eq!(world.is(SWAP), v("60"));
}

#[test]
fn what_an_operator_set_and_somebody_changed_since_is_not_the_operators_any_more() {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    world.meddle(SWAP, v("99"));
    world.settle();
    assert!(matches!(refused(world.stand_by(alice(), Which::Own)), Refused::NotNow { .. }));
    assert!(matches!(refused(world.set(alice(), SWAP, "10")), Refused::Owned(_)));
    let named = Which::Keys(BTreeSet::from([k(SWAP)]));
    assert!(matches!(world.stand_by(alice(), named), Reply::Committed { .. }));
}

#[test]
fn commit_and_rollback_take_the_callers_own_keys_unless_all_are_meant() {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    world.set(bob(), MOTD, "bye");
    let reply = world.rollback(alice(), Which::Own);
    assert_eq!(reply, Reply::Returned(Returned::Done { keys: vec![k(SWAP)] }));
    assert_eq!((world.is(SWAP), world.is(MOTD)), (v("60"), v("bye")));
    assert_eq!(world.node_state(), ConfigState::Drifted, "bob's key still differs, and the journal knows");
    world.set(alice(), SWAP, "10");
    let reply = world.stand_by(alice(), Which::All);
    let Reply::Committed { settings, .. } = reply else { panic!("{reply:?}") };
    assert_eq!(settings.len(), 2);
}

#[test]
fn a_consumer_blocks_a_rollback_and_the_window_stands_still_until_somebody_asks() {
    let mut world = world();
    world.set(alice(), MOTD, "bye");
    world.host.consumers.insert(k(MOTD), 4711);
    world.pass(300);
    assert_eq!((world.is(MOTD), world.report().phase), (v("bye"), Phase::Blocked));
    let last = world.messages(EntryType::DriftDetected).pop().unwrap();
    assert_eq!(last, "rollback blocked: pid 4711 (vi) uses /somewhere of files:/etc/motd");
    world.host.consumers.clear();
    world.pass(10_000);
    assert_eq!(world.is(MOTD), v("bye"), "it is not tried again silently");
    let reply = world.rollback(alice(), Which::Own);
    assert_eq!(reply, Reply::Returned(Returned::Done { keys: vec![k(MOTD)] }));
    assert_eq!((world.is(MOTD), world.report().phase), (v("hello"), Phase::Committed));
}

#[test]
fn a_consumer_of_one_key_keeps_all_keys_of_the_rollback_untouched() {
    let mut world = world();
    world.set(alice(), MOTD, "bye");
    world.set(alice(), SWAP, "10");
    world.host.consumers.insert(k(MOTD), 4711);
    let before = world.host.changes.len();
    let reply = world.rollback(alice(), Which::Own);
    let Reply::Returned(Returned::Blocked { consumers }) = reply else { panic!("{reply:?}") };
    assert_eq!((consumers[0].pid, world.host.changes.len()), (4711, before));
    let left = seconds_left(&world);
    world.pass(1_000);
    assert_eq!(seconds_left(&world), left, "it stands still");
    assert!(refused(world.answer(alice(), Request::Extend { seconds: 10 })).to_string().contains("still"));
    world.stand_by(alice(), Which::All);
    assert_eq!(world.report().phase, Phase::Committed);
}

#[test]
fn a_window_that_stood_still_goes_on_with_what_was_left() {
    let mut world = world();
    world.set(alice(), MOTD, "bye");
    world.set(alice(), SWAP, "10");
    world.pass(100);
    world.host.consumers.insert(k(MOTD), 4711);
    world.rollback(alice(), Which::Own);
    assert_eq!(seconds_left(&world), 101);
    world.pass(1_000);
    world.meddle(MOTD, v("hello"));
    world.settle();
    assert_eq!((world.report().phase, seconds_left(&world)), (Phase::Drifted, 101));
    world.pass(100);
    assert_eq!(world.is(SWAP), v("10"));
    world.pass(1);
    assert_eq!((world.is(SWAP), world.report().phase), (v("60"), Phase::Committed));
}

#[test]
fn a_rollback_that_the_host_refuses_is_told_as_it_came_out() {
    let mut world = world();
    world.set(alice(), MOTD, "bye");
    world.set(alice(), SWAP, "10");
    world.host.refuses.insert(k(MOTD));
    let reply = world.rollback(alice(), Which::Own);
    let Reply::Returned(Returned::Failed { keys, errors }) = reply else { panic!("{reply:?}") };
    assert_eq!((keys, &errors[0].key, &*errors[0].problem), (vec![k(SWAP)], &k(MOTD), "read-only file system"));
    assert_eq!((world.is(SWAP), world.is(MOTD), world.report().phase), (v("60"), v("bye"), Phase::Blocked));
    let last = world.messages(EntryType::DriftDetected).pop().unwrap();
    assert_eq!(last, "rollback failed: files:/etc/motd: read-only file system");
    assert_eq!(world.node_state(), ConfigState::Drifted);
}

#[test]
fn a_change_that_the_host_refuses_in_the_middle_is_taken_back() {
    let mut world = world();
    world.host.refuses.insert(k(MOTD));
    let reply = world.answer(alice(), set(&[(SWAP, "10"), (MOTD, "bye")], Consent::Yes));
    let Reply::NotSet { errors, taken_back, window } = reply else { panic!("{reply:?}") };
    assert_eq!((&errors[0].key, window), (&k(MOTD), None));
    assert_eq!(taken_back, Returned::Done { keys: vec![k(SWAP)] });
    assert_eq!((world.is(SWAP), world.report().phase), (v("60"), Phase::Committed));
}

#[test]
fn what_the_host_only_says_it_did_is_not_told_as_done() {
    let mut world = world();
    world.host.pretends.insert(k(MOTD));
    let reply = world.answer(alice(), set(&[(SWAP, "10"), (MOTD, "bye")], Consent::Yes));
    let Reply::NotSet { errors, taken_back, window: None } = reply else { panic!("{reply:?}") };
    assert_eq!((&errors[0].key, &*errors[0].problem), (&k(MOTD), "it was to become bye and is hello"));
    assert_eq!((taken_back, world.is(SWAP)), (Returned::Done { keys: vec![k(SWAP)] }, v("60")));

    world.set(alice(), SWAP, "10");
    world.host.pretends.insert(k(SWAP));
    let reply = world.rollback(alice(), Which::Own);
    let Reply::Returned(Returned::Failed { errors, .. }) = reply else { panic!("{reply:?}") };
    assert_eq!(&*errors[0].problem, "it should be 60 and is 10");
    assert_eq!((world.report().phase, world.node_state()), (Phase::Blocked, ConfigState::Drifted));
}

#[test]
fn what_cannot_be_seen_is_no_drift_and_cannot_be_set() {
    let mut world = world();
    world.host.unseen.insert(k("gpu:0.power_limit"));
    let refusal = refused(world.set(alice(), "gpu:0.power_limit", "250"));
    assert!(refusal.to_string().contains("cannot be"), "{refusal}");
    world.commit("gpu:0.power_limit", "250");
    world.pass(1);
    assert_eq!((world.report().phase, world.report().unseen.len()), (Phase::Committed, 1));
}

#[test]
fn what_is_taken_back_belongs_to_whom_it_did_before() {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    world.pass(100);
    let before = world.report().differences;
    world.host.refuses.insert(k(MOTD));
    let merge = Request::Set {
        changes: vec![(k(SWAP), v("20")), (k(MOTD), v("bye"))],
        consent: Consent::Yes,
        merge: true,
        message: Arc::from("mine now"),
    };
    let reply = world.answer(bob(), merge);
    assert!(matches!(reply, Reply::NotSet { taken_back: Returned::Done { .. }, .. }), "{reply:?}");
    assert_eq!((world.is(SWAP), seconds_left(&world)), (v("10"), 135));
    assert_eq!(world.report().differences, before, "it is alice's change, with its number");
    assert!(matches!(world.stand_by(alice(), Which::Own), Reply::Committed { .. }));
    world.check_story();
}

#[test]
fn a_service_stops_before_the_mount_it_stands_on_goes() {
    let service = "services:db";
    let mut world = World::new(Policy::default(), &[(DATA, "tmpfs tmpfs"), (service, "running")]);
    let begun = world.host.changes.len();
    let changes = vec![(k(DATA), Setting::Absent), (k(service), v("stopped"))];
    let request = Request::Set { changes, consent: Consent::Yes, merge: false, message: Arc::from("") };
    assert!(matches!(world.answer(alice(), request), Reply::Set { .. }));
    assert_eq!(world.host.changes[begun..], [(k(service), v("stopped")), (k(DATA), Setting::Absent)]);
}

#[test]
fn the_agent_is_woken_by_whatever_ends_by_itself() {
    let mut world = world();
    let wakes_in = |world: &World| world.wake.map(|at| at.seconds_since(world.now.boot));
    assert_eq!(wakes_in(&world), None);
    world.set(alice(), SWAP, "10");
    assert_eq!(wakes_in(&world), Some(235), "the window");
    world.pass(200);
    world.commit(SWAP, "20");
    world.settle();
    assert_eq!(wakes_in(&world), Some(300), "the conflict's grace: its key does not end with the window");
    world.set(alice(), MOTD, "bye");
    assert_eq!(wakes_in(&world), Some(seconds_left(&world)), "what ends first");
    world.emergency(alice(), "fire");
    assert_eq!(wakes_in(&world), Some(14_400), "nothing else ends in an emergency");
    world.pass(14_400);
    assert_eq!(wakes_in(&world), None);
}

// ---- a commit on its way ----

/// A commit of [`SWAP`] is on its way to the journal, and its window has 5 s left.
fn committing() -> (World, Ticket, Vec<Todo>) {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    world.pass(230);
    let request = Request::Commit { which: Which::Own, ttl_seconds: None, message: Arc::from("because") };
    let ticket = world.ask(alice(), request);
    let on_its_way = world.on_its_way();
    assert_eq!((on_its_way.len(), seconds_left(&world)), (1, 5));
    (world, ticket, on_its_way)
}

#[test]
fn a_windows_end_waits_a_little_for_the_answer_to_a_commit() {
    let (mut world, ticket, on_its_way) = committing();
    world.pass(9);
    assert_eq!(world.is(SWAP), v("10"));
    world.todo.extend(on_its_way);
    world.pass(1_000);
    assert!(matches!(world.replies[&ticket], Reply::Committed { .. }), "{:?}", world.replies);
    assert_eq!((world.is(SWAP), world.entries(EntryType::Rollback)), (v("10"), vec![]));
}

#[test]
fn a_commit_that_is_not_answered_in_time_is_rolled_back_and_never_asked_for_again() {
    for dies in [true, false] {
        let (mut world, ticket, _) = committing();
        world.pass(10);
        assert_eq!(world.is(SWAP), v("60"));
        let reply = world.replies.get(&ticket);
        assert!(matches!(reply, Some(Reply::Unknown { .. })), "whoever asked is told: {reply:?}");
        if dies {
            world.kill();
            world.start();
        }
        world.pass(60);
        assert_eq!((world.is(SWAP), world.report().commit_unknown), (v("60"), false));
        assert_eq!(world.entries(EntryType::Commit), []);
        world.set(alice(), SWAP, "10");
        let reply = world.stand_by(alice(), Which::Own);
        assert!(matches!(reply, Reply::Committed { .. }), "it does not stand in another's way: {reply:?}");
    }
}

#[test]
fn a_commit_that_the_journal_takes_after_its_rollback_is_what_is_declared() {
    let (mut world, _, on_its_way) = committing();
    world.pass(10);
    assert_eq!(world.is(SWAP), v("60"));
    world.todo.extend(on_its_way);
    world.settle();
    assert_eq!((world.is(SWAP), world.undeclared()), (v("10"), vec![]));
    assert_eq!((world.report().phase, world.node_state()), (Phase::Committed, ConfigState::Committed));
}

#[test]
fn what_its_owner_changes_while_a_commit_is_on_its_way_stays_the_owners() {
    let (mut world, ticket, on_its_way) = committing();
    assert!(matches!(world.set(alice(), SWAP, "20"), Reply::Set { .. }));
    world.todo.extend(on_its_way);
    world.settle();
    assert!(matches!(world.replies[&ticket], Reply::Committed { .. }), "{:?}", world.replies);
    let differs = world.report().differences.remove(0);
    assert_eq!((differs.declared, differs.observed), (v("10"), v("20")));
    assert_eq!((differs.owner, differs.conflict_seconds), (Owner::Operator(alice()), Some(300)));
    assert!(matches!(world.stand_by(alice(), Which::Own), Reply::Committed { .. }));
    assert_eq!((world.is(SWAP), world.undeclared()), (v("20"), vec![]));
    world.check_story();
}

// ---- emergencies ----

#[test]
fn in_an_emergency_all_is_committed_or_rolled_back_or_nothing_is() {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    world.set(bob(), MOTD, "bye");
    world.emergency(alice(), "fire");
    for refusal in [refused(world.stand_by(alice(), Which::Own)), refused(world.rollback(alice(), Which::Own))] {
        assert!(refusal.to_string().contains("of others differ: take all"), "{refusal}");
    }
    assert_eq!((world.is(SWAP), world.is(MOTD), world.report().phase), (v("10"), v("bye"), Phase::Emergency));
    assert!(matches!(world.stand_by(alice(), Which::All), Reply::Committed { .. }));
    assert_eq!((world.report().phase, world.node_state()), (Phase::Committed, ConfigState::Committed));
}

#[test]
fn a_commit_waits_until_the_journal_knows_of_the_emergency_that_it_ends() {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    // No quorum for a moment, and the emergency is told again a second later.
    world.up = false;
    assert!(matches!(world.emergency(alice(), "fire"), Reply::EmergencyStarted { sequence: None, .. }));
    world.up = true;
    let request = Request::Commit { which: Which::All, ttl_seconds: None, message: Arc::from("because") };
    let ticket = world.ask(alice(), request);
    world.settle();
    assert_eq!((world.replies.get(&ticket), world.report().phase), (None, Phase::Emergency));
    world.pass(1);
    assert!(matches!(world.replies[&ticket], Reply::Committed { .. }), "{:?}", world.replies);
    assert_eq!((world.report().phase, world.node_state()), (Phase::Committed, ConfigState::Committed));
    world.check_story();
}

#[test]
fn an_emergency_needs_a_reason_comes_once_and_only_where_the_policy_allows_it() {
    let mut world = world();
    assert!(matches!(refused(world.emergency(alice(), "  ")), Refused::Invalid { .. }));
    let reply = world.emergency(alice(), "fire");
    assert!(matches!(reply, Reply::EmergencyStarted { sequence: Some(_), seconds: 14_400 }), "{reply:?}");
    assert!(matches!(refused(world.emergency(bob(), "fire again")), Refused::NotNow { .. }));
    let policy = Policy { emergency_allowed: false, ..Policy::default() };
    let mut world = World::new(policy, &[(SWAP, "60")]);
    assert!(matches!(refused(world.emergency(alice(), "fire")), Refused::Forbidden { .. }));
}

#[test]
fn nothing_rolls_back_in_an_emergency_and_its_window_only_alerts() {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    world.emergency(alice(), "fire");
    world.meddle(MOTD, v("burning"));
    world.pass(14_400);
    assert_eq!((world.is(SWAP), world.is(MOTD), world.report().phase), (v("10"), v("burning"), Phase::Emergency));
    assert!(world.notices.iter().any(|n| n.level == Level::Alert && n.text.contains("outlasts")));
    assert_eq!(world.messages(EntryType::ServiceLifecycle), ["the emergency outlasts its window: fire"]);
    world.pass(100_000);
    assert_eq!((world.report().phase, world.node_state()), (Phase::Emergency, ConfigState::Emergency));
    assert_eq!(world.entries(EntryType::ServiceLifecycle).len(), 1);
}

#[test]
fn an_emergency_ends_by_commit_by_rollback_and_by_force() {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    world.emergency(alice(), "fire");
    assert!(matches!(refused(world.end_emergency(alice(), false)), Refused::NotNow { .. }));
    world.stand_by(alice(), Which::All);
    assert_eq!((world.report().phase, world.node_state()), (Phase::Committed, ConfigState::Committed));

    world.emergency(alice(), "fire again");
    world.set(alice(), SWAP, "20");
    let reply = world.rollback(alice(), Which::All);
    assert_eq!(reply, Reply::Returned(Returned::Done { keys: vec![k(SWAP)] }));
    assert_eq!((world.is(SWAP), world.report().phase), (v("10"), Phase::Committed));
    assert_eq!(world.node_state(), ConfigState::Committed);
    assert_eq!(world.messages(EntryType::EmergencyEnd), ["ended by a rollback"]);

    world.emergency(alice(), "and again");
    world.set(alice(), SWAP, "30");
    world.host.refuses.insert(k(SWAP));
    let reply = world.rollback(alice(), Which::All);
    assert!(matches!(reply, Reply::Returned(Returned::Failed { .. })), "{reply:?}");
    assert_eq!(world.report().phase, Phase::Emergency, "a rollback that failed ends nothing");
    world.host.refuses.clear();
    let reply = world.end_emergency(bob(), true);
    let Reply::EmergencyEnded { window: Some(window) } = reply else { panic!("{reply:?}") };
    assert_eq!((window.seconds_left, world.node_state()), (235, ConfigState::Drifted));
    world.pass(235);
    assert_eq!((world.is(SWAP), world.node_state()), (v("10"), ConfigState::Committed));
}

#[test]
fn an_emergency_survives_the_agent_and_the_machine() {
    let mut world = world();
    world.pass(10_000);
    world.set(alice(), SWAP, "10");
    world.emergency(alice(), "fire");
    world.kill();
    world.start();
    world.pass(1_000);
    assert_eq!((world.is(SWAP), world.report().phase), (v("10"), Phase::Emergency));
    world.reboot();
    world.start();
    world.settle();
    assert_eq!((world.is(SWAP), world.report().phase), (v("60"), Phase::Emergency));
    assert_eq!(world.node_state(), ConfigState::Emergency, "a reboot ends no emergency");
    let left = world.report().emergency.map(|emergency| emergency.seconds_left);
    assert_eq!(left, Some(14_400), "time since boot begins anew, and so does its window");
    assert_eq!(world.messages(EntryType::Rollback), ["lost at a reboot: it was not committed"]);
}

#[test]
fn an_emergency_that_the_journal_refuses_is_over() {
    let mut world = world();
    world.disconnect();
    assert!(matches!(world.emergency(alice(), "fire"), Reply::EmergencyStarted { sequence: None, .. }));
    let policy = Policy { emergency_allowed: false, ..Policy::default() };
    world.give(JournalCommand::SetPolicy { vcluster: vcluster(0), policy });
    world.set(alice(), SWAP, "10");
    world.connect();
    world.settle();
    assert_eq!(world.report().phase, Phase::Drifted);
    world.pass(300);
    assert_eq!(world.is(SWAP), v("60"));
}

// ---- crashes, reboots, clocks ----

#[test]
fn a_window_survives_the_agent_and_one_that_expired_meanwhile_rolls_back() {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    world.pass(100);
    world.kill();
    world.start();
    world.settle();
    assert_eq!((world.is(SWAP), seconds_left(&world)), (v("10"), 135));
    world.kill();
    world.now.boot = world.now.boot.plus_seconds(500);
    world.start();
    world.settle();
    assert_eq!(world.is(SWAP), v("60"));
    assert_eq!(world.entries(EntryType::Rollback).len(), 1);
}

#[test]
fn a_reboot_ends_in_what_is_declared_and_the_journal_says_what_was_lost() {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    world.stand_by(alice(), Which::Own);
    world.set(alice(), MOTD, "bye");
    world.reboot();
    world.start();
    world.settle();
    assert_eq!((world.is(SWAP), world.is(MOTD)), (v("10"), v("hello")));
    assert_eq!((world.report().window, world.report().phase), (None, Phase::Committed));
    let lost = &world.entries(EntryType::Rollback)[0];
    assert_eq!((&lost.delta[0].key, &lost.delta[0].previous), (&k(MOTD), &v("bye")));
    assert_eq!(&*lost.message, "lost at a reboot: it was not committed");
}

#[test]
fn what_a_boot_cannot_bring_back_has_a_window_of_this_boot() {
    let mut world = world();
    world.pass(10_000);
    world.set(alice(), MOTD, "bye");
    world.reboot();
    world.host.refuses.insert(k(MOTD));
    world.start();
    world.settle();
    assert_eq!((world.is(MOTD), world.report().differences[0].owner.clone()), (v("bye"), Owner::NotReached));
    assert_eq!(world.report().window.map(|window| (window.number, window.seconds_left)), Some((2, 300)));
    world.host.refuses.clear();
    world.pass(300);
    assert_eq!((world.is(MOTD), world.report().phase), (v("hello"), Phase::Committed));
}

#[test]
fn a_node_boots_from_what_it_kept_when_the_journal_is_away() {
    let mut world = world();
    world.disconnect();
    world.reboot();
    world.start();
    world.settle();
    assert_eq!((world.is(SWAP), world.report().phase), (v("60"), Phase::Committed));
    let mut fresh = World::unbooted(Policy::default(), &[(SWAP, "60")]);
    fresh.up = false;
    fresh.start();
    fresh.settle();
    assert_eq!(fresh.report().phase, Phase::Booting);
    assert!(matches!(refused(fresh.set(alice(), SWAP, "10")), Refused::NotNow { .. }));
    fresh.connect();
    fresh.settle();
    assert_eq!((fresh.is(SWAP), fresh.report().phase), (v("60"), Phase::Committed));
}

#[test]
fn an_unfinished_change_is_taken_back_after_a_crash() {
    let mut world = world();
    world.ask(alice(), set(&[(SWAP, "10"), (MOTD, "bye")], Consent::Yes));
    let begun = world.host.changes.len();
    while world.host.changes.len() == begun {
        world.carry_out(0);
    }
    assert_eq!(world.is(SWAP), v("10"));
    world.kill();
    world.start();
    world.settle();
    assert_eq!((world.is(SWAP), world.is(MOTD), world.report().phase), (v("60"), v("hello"), Phase::Committed));
    assert_eq!(world.messages(EntryType::Rollback), ["taken back: the agent stopped in the middle of it"]);
}

/// A window 100 s old, then its key is set back to what is declared, and everything about that but the end is as told.
fn set_back(stop_after: usize, refuses: bool) -> Option<World> {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    world.pass(100);
    if refuses {
        world.host.refuses.insert(k(SWAP));
    }
    world.ask(alice(), set(&[(SWAP, "60")], Consent::Yes));
    for _ in 0..stop_after {
        if world.todo.is_empty() {
            return None;
        }
        world.carry_out(0);
    }
    Some(world)
}

#[test]
fn a_crash_while_a_key_is_set_back_begins_no_new_window() {
    let (mut taken_back, mut effects) = (0, 0);
    while let Some(mut world) = set_back(effects, false) {
        effects += 1;
        world.kill();
        world.now.boot = world.now.boot.plus_seconds(10);
        world.start();
        world.settle();
        if let Some(window) = world.report().window {
            taken_back += 1;
            assert_eq!((world.is(SWAP), window.seconds_left), (v("10"), 125), "after {effects} effects");
            world.pass(125);
        }
        assert_eq!((world.is(SWAP), world.report().phase), (v("60"), Phase::Committed), "after {effects} effects");
        world.check_story();
    }
    assert!(taken_back > 2 && effects > taken_back, "{taken_back} of {effects}");
}

#[test]
fn a_host_that_refuses_to_set_a_key_back_begins_no_new_window() {
    let mut world = set_back(0, true).expect("nothing is carried out yet");
    world.settle();
    assert!(world.replies.values().any(|reply| matches!(reply, Reply::NotSet { .. })), "{:?}", world.replies);
    assert_eq!((world.is(SWAP), seconds_left(&world)), (v("10"), 135));
    world.host.refuses.clear();
    world.pass(135);
    assert_eq!(world.is(SWAP), v("60"));
}

#[test]
fn a_lost_ledger_makes_what_differs_drift_and_rolls_nothing_back_at_once() {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    world.kill();
    world.disk.ledger = None;
    world.start_after_repair("its ledger did not read and was set aside");
    world.settle();
    assert_eq!((world.is(SWAP), seconds_left(&world)), (v("10"), 235));
    assert_eq!(world.messages(EntryType::ServiceLifecycle), ["its ledger did not read and was set aside"]);
    world.pass(235);
    assert_eq!(world.is(SWAP), v("60"));
    world.check_story();
}

#[test]
fn a_lost_cache_leaves_the_window_as_it_was() {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    world.disconnect();
    world.kill();
    world.disk.declared.clear();
    world.start();
    world.pass(100);
    assert_eq!((world.is(SWAP), seconds_left(&world)), (v("10"), 135));
    world.connect();
    world.pass(135);
    assert_eq!((world.is(SWAP), world.undeclared()), (v("60"), vec![]));
}

#[test]
fn a_stepped_wall_clock_moves_no_window() {
    for step in [-3_600_000_i64, 3_600_000] {
        let mut world = world();
        world.set(alice(), SWAP, "10");
        world.pass(10);
        world.now.wall = WallTime(world.now.wall.0.saturating_add_signed(step));
        world.pass(224);
        assert_eq!(world.is(SWAP), v("10"));
        world.pass(1);
        assert_eq!(world.is(SWAP), v("60"));
    }
}

#[test]
fn an_extension_moves_the_end_later_within_bounds_and_is_recorded() {
    let mut world = world();
    assert!(matches!(refused(world.answer(alice(), Request::Extend { seconds: 10 })), Refused::NotNow { .. }));
    world.set(alice(), SWAP, "10");
    let refusal = refused(world.answer(alice(), Request::Extend { seconds: 800 })).to_string();
    assert_eq!(refusal, "235 s are left, and a window is never longer than the policy's 900 s: expected 1 to 665 s");
    let reply = world.answer(alice(), Request::Extend { seconds: 100 });
    let Reply::Extended { window } = reply else { panic!("{reply:?}") };
    assert_eq!(window.seconds_left, 335);
    assert_eq!(world.messages(EntryType::DriftDetected).pop().unwrap(), "window extended by 100 s");
    world.pass(334);
    assert_eq!(world.is(SWAP), v("10"));
    world.pass(1);
    assert_eq!(world.is(SWAP), v("60"));
}

// ---- the journal comes and goes ----

#[test]
fn cut_off_a_node_keeps_its_config_and_its_windows_and_loses_and_doubles_nothing() {
    let mut world = world();
    world.disconnect();
    world.set(alice(), SWAP, "10");
    world.pass(235);
    assert_eq!(world.is(SWAP), v("60"));
    world.meddle(MOTD, v("owned"));
    world.pass(10);
    world.kill();
    world.start();
    world.pass(10);
    let known = world.records.len();
    world.lost_answers = 3;
    world.connect();
    world.pass(60);
    world.check_story();
    assert_eq!(world.records.len(), known + 3, "drift, its end, and drift");
    assert_eq!(world.report().spooled, 0);
    assert_eq!(world.node_state(), ConfigState::Drifted);
}

#[test]
fn what_operators_do_is_never_left_out_and_new_work_is_refused_when_too_much_waits() {
    let policy = Policy { exec_allow: vec![Arc::from("dmesg")], ..Policy::default() };
    let mut world = World::new(policy, &[(SWAP, "60"), (MOTD, "hello")]);
    world.emergency(alice(), "the roof leaks");
    world.disconnect();
    let large = |n: usize| format!("{n:04}{}", "x".repeat(1_000_000));
    let mut done = 0;
    let refusal = loop {
        match world.set(alice(), MOTD, &large(done)) {
            Reply::Set { .. } => done += 1,
            other => break refused(other),
        }
    };
    let Refused::NotNow { problem } = &refusal else { panic!("{refusal:?}") };
    assert!(problem.contains(&format!("{done} events wait for the journal")), "{problem}");
    assert!((SPOOL.event_bytes / 1_000_200..=SPOOL.event_bytes / 1_000_000 + 1).contains(&done), "{done}");
    assert_eq!(world.is(MOTD), v(&large(done - 1)), "nothing was changed by what was refused");
    // Whatever would have to be told is refused; what needs not be is not.
    for request in [
        Request::Exec { arguments: vec![Arc::from("dmesg")] },
        Request::Extend { seconds: 60 },
        set(&[(SWAP, "10")], Consent::Yes),
    ] {
        assert_eq!(refused(world.answer(bob(), request)), refusal);
    }
    assert!(matches!(world.answer(alice(), set(&[(SWAP, "10")], Consent::TellOnly)), Reply::Forecast(_)));
    // What was begun can be ended.
    assert!(matches!(world.rollback(alice(), Which::All), Reply::Returned(Returned::Done { .. })));
    assert_eq!((world.is(MOTD), world.report().emergency), (v("hello"), None));
    world.kill();
    world.start();
    assert!(refused(world.set(alice(), MOTD, "again")).to_string().contains("events wait"));
    world.connect();
    world.pass(60);
    assert_eq!(world.report().spooled, 0);
    assert_eq!(world.entries(EntryType::DriftDetected).len(), done);
    world.check_story();
    assert!(matches!(world.set(alice(), MOTD, "again"), Reply::Set { .. }));
}

#[test]
fn what_the_agent_only_observes_gives_way_and_the_newest_value_is_said_at_last() {
    let mut world = world();
    world.disconnect();
    for n in 0..SPOOL.observations {
        world.meddle(SWAP, v(&n.to_string()));
        world.pass(236);
        assert_eq!(world.is(SWAP), v("60"), "it is rolled back, told or not");
    }
    let waits = usize::try_from(world.report().spooled).unwrap();
    assert!((SPOOL.observations..=SPOOL.observations + 2).contains(&waits), "{waits}");
    // What nobody was told of ends without a word.
    for value in ["untold", "hello"] {
        world.meddle(MOTD, v(value));
        world.settle();
    }
    assert_eq!(usize::try_from(world.report().spooled).unwrap(), waits);
    // People have room.
    world.set(bob(), MOTD, "still here");
    world.meddle(SWAP, v("99"));
    world.pass(1);
    assert_eq!(usize::try_from(world.report().spooled).unwrap(), waits + 1);
    world.kill();
    world.start();
    world.connect();
    world.pass(60);
    world.check_story();
    let last = world.entries(EntryType::DriftDetected).pop().unwrap();
    assert!(last.delta.iter().any(|change| change.next == v("99")), "{last:?}");
    let notes = world.messages(EntryType::ServiceLifecycle);
    assert_eq!(notes.iter().filter(|note| note.contains("is left out")).count(), 1, "{notes:?}");
}

#[test]
fn an_event_whose_request_the_cluster_forgot_is_searched_before_it_is_sent_again() {
    let mut world = world();
    world.disconnect();
    world.meddle(MOTD, v("owned"));
    world.settle();
    world.lost_answers = 1;
    world.connect();
    world.settle();
    world.disconnect();
    world.age(7_200);
    world.connect();
    world.pass(60);
    assert_eq!(world.entries(EntryType::DriftDetected).len(), 1);
    assert_eq!(world.report().spooled, 0);
    world.check_story();
}

#[test]
fn an_event_that_finds_no_quorum_is_told_once_there_is_one() {
    let mut world = world();
    // The journal still answers questions.
    world.up = false;
    world.meddle(MOTD, v("owned"));
    world.settle();
    assert_eq!((world.report().spooled, world.report().connected), (1, true));
    world.up = true;
    world.pass(60);
    assert_eq!((world.report().spooled, world.entries(EntryType::DriftDetected).len()), (0, 1));
    world.check_story();
}

#[test]
fn what_a_node_says_before_the_journal_knows_it_is_not_lost() {
    let mut world = World::unknown();
    world.start_after_repair("its ledger did not read and was set aside");
    world.pass(10);
    assert_eq!((world.report().spooled, world.report().connected), (1, true));
    world.assign(Policy::default());
    world.pass(60);
    assert_eq!(world.messages(EntryType::ServiceLifecycle), ["its ledger did not read and was set aside"]);
    assert_eq!(world.report().spooled, 0);
    world.check_story();
}

#[test]
fn what_happens_twice_at_the_same_moment_is_not_taken_for_the_same() {
    let mut world = world();
    world.lost_answers = 1;
    for exit_status in [Some(0), Some(1)] {
        world.ask(alice(), Request::ShellEnd { exit_status });
    }
    world.settle();
    assert_eq!((world.report().spooled, world.entries(EntryType::ShellSession).len()), (2, 1));
    // The first is found in the journal, and the second is not there.
    world.kill();
    world.disk.ledger = None;
    world.start_after_repair("its ledger did not read and was set aside");
    world.pass(60);
    assert_eq!((world.report().spooled, world.entries(EntryType::ShellSession).len()), (0, 2));
    world.check_story();
}

#[test]
fn events_of_a_lost_ledger_are_searched_until_the_journal_tells() {
    for recorded in [true, false] {
        let mut world = world();
        (world.lost_answers, world.up) = (1, recorded);
        world.meddle(MOTD, v("owned"));
        world.settle();
        world.kill();
        world.disk.ledger = None;
        world.up = true;
        world.start_after_repair("its ledger did not read and was set aside");
        // It is away again before it was asked.
        world.up = false;
        world.settle();
        world.up = true;
        world.pass(60);
        assert_eq!(world.report().spooled, 0);
        world.check_story();
    }
}

#[test]
fn a_key_changed_here_and_in_the_journal_stands_still_and_the_rest_goes_on() {
    let mut world = world();
    world.disconnect();
    world.set(alice(), SWAP, "10");
    world.commit(SWAP, "20");
    world.commit(MOTD, "news");
    world.connect();
    world.settle();
    assert_eq!((world.is(SWAP), world.is(MOTD)), (v("10"), v("news")));
    assert_eq!(world.report().differences[0].conflict_seconds, Some(300));
    let drift = world.entries(EntryType::DriftDetected).remove(0);
    let news = world.records.iter().rposition(|record| record.sequence() == drift.sequence).unwrap();
    assert_eq!(news, world.records.len() - 1, "told before the journal's state was accepted");
    world.pass(299);
    assert_eq!(world.is(SWAP), v("10"), "a conflict outlives the window");
    world.pass(1);
    assert_eq!((world.is(SWAP), world.report().phase), (v("20"), Phase::Committed));
    let given_up = &world.entries(EntryType::Rollback)[0];
    assert_eq!((&given_up.delta[0].previous, &given_up.delta[0].next), (&v("10"), &v("20")));
}

#[test]
fn what_the_journal_declares_waits_until_it_has_heard_what_differs_here() {
    let mut world = world();
    world.disconnect();
    world.set(alice(), SWAP, "10");
    world.commit(MOTD, "news");
    world.connect();
    assert!(world.tell_declared());
    // Whatever can be done on the host is done before anything is sent.
    while !world.todo.is_empty() {
        let here = world.todo.iter().position(|todo| !matches!(todo, Todo::Journal(_)));
        world.carry_out(here.unwrap_or(0));
        assert!(world.is(MOTD) == v("hello") || world.entries(EntryType::DriftDetected).len() == 1);
    }
    assert_eq!((world.is(SWAP), world.is(MOTD)), (v("10"), v("news")));
}

#[test]
fn an_older_word_of_the_journal_than_what_is_known_changes_nothing() {
    let mut world = world();
    let older = world.declared();
    world.commit(SWAP, "20");
    world.settle();
    let known = world.report().sequence;
    world.input(Input::Declared(older));
    world.settle();
    assert_eq!((world.is(SWAP), world.report().sequence), (v("20"), known));
}

#[test]
fn each_conflict_has_its_own_grace() {
    let mut world = world();
    for (key, here, there) in [(SWAP, "10", "20"), (MOTD, "bye", "news")] {
        world.set(alice(), key, here);
        world.commit(key, there);
        world.pass(100);
    }
    world.pass(100);
    assert_eq!((world.is(SWAP), world.is(MOTD)), (v("20"), v("bye")));
    world.pass(99);
    assert_eq!(world.is(MOTD), v("bye"));
    world.pass(1);
    assert_eq!((world.is(MOTD), world.report().phase), (v("news"), Phase::Committed));
}

#[test]
fn a_conflict_is_decided_by_whoever_commits_or_rolls_back() {
    for commits in [true, false] {
        let mut world = world();
        world.set(alice(), SWAP, "10");
        world.commit(SWAP, "20");
        world.settle();
        if commits {
            assert!(matches!(world.stand_by(alice(), Which::Own), Reply::Committed { .. }));
        } else {
            world.rollback(alice(), Which::Own);
        }
        world.pass(1_000);
        assert_eq!(world.is(SWAP), if commits { v("10") } else { v("20") });
        assert_eq!((world.report().phase, world.undeclared()), (Phase::Committed, vec![]));
    }
}

#[test]
fn what_the_journal_declares_as_it_is_here_is_no_drift_any_more() {
    let mut world = world();
    world.set(alice(), SWAP, "10");
    world.commit(SWAP, "10");
    world.settle();
    assert_eq!((world.report().phase, world.node_state()), (Phase::Committed, ConfigState::Committed));
}

#[test]
fn what_is_declared_and_used_is_left_as_drift() {
    let mut world = world();
    world.host.consumers.insert(k(MOTD), 4711);
    let changes = [(MOTD, Some("news")), (SWAP, Some("20"))];
    world.declare(EntryType::Commit, Scope::VCluster(vcluster(0)), &changes);
    world.settle();
    assert_eq!((world.is(SWAP), world.is(MOTD)), (v("20"), v("hello")));
    assert_eq!(world.report().differences[0].owner, Owner::NotReached);
    world.host.consumers.clear();
    world.pass(300);
    assert_eq!((world.is(MOTD), world.report().phase), (v("news"), Phase::Committed));
}

// ---- modes, commands ----

#[test]
fn a_policy_that_observes_or_warns_rolls_nothing_back() {
    for (mode, level) in [(Mode::Observe, Level::Info), (Mode::Warn, Level::Warn)] {
        let policy = Policy { mode, ..Policy::default() };
        let mut world = World::new(policy, &[(SWAP, "60"), (MOTD, "hello")]);
        world.meddle(MOTD, v("owned"));
        let reply = world.set(alice(), SWAP, "10");
        assert!(matches!(reply, Reply::Set { window: None, unguarded: Some(_), .. }), "{reply:?}");
        world.pass(100_000);
        assert_eq!((world.is(SWAP), world.is(MOTD)), (v("10"), v("owned")));
        assert_eq!(world.entries(EntryType::DriftDetected).len(), 2);
        assert!(world.notices.iter().any(|notice| notice.level == level && notice.text.contains("owned")));
        world.give(JournalCommand::SetPolicy { vcluster: vcluster(0), policy: Policy::default() });
        world.settle();
        assert_eq!(seconds_left(&world), 201, "a policy that enforces opens a window");
    }
}

#[test]
fn a_dimension_of_weight_zero_opens_no_window() {
    let mut policy = Policy::default();
    policy.weights[1] = Milli(0);
    let mut world = World::new(policy, &[(SWAP, "60"), (MOTD, "hello")]);
    world.meddle(MOTD, v("owned"));
    world.pass(10_000);
    assert_eq!((world.is(MOTD), world.report().window), (v("owned"), None));
    world.set(alice(), SWAP, "10");
    world.pass(235);
    assert_eq!((world.is(SWAP), world.is(MOTD)), (v("60"), v("owned")));
}

#[test]
fn a_command_is_recorded_before_it_runs_and_only_if_the_policy_allows_it() {
    let exec = |line: &str| Request::Exec { arguments: line.split(' ').map(Arc::from).collect() };
    let policy = Policy { exec_allow: vec![Arc::from("uptime"), Arc::from("shell")], ..Policy::default() };
    let no_shell = Policy { exec_allow: vec![Arc::from("uptime")], ..Policy::default() };
    let mut world = World::new(no_shell, &[(SWAP, "60")]);
    assert!(matches!(refused(world.answer(alice(), Request::ShellStart)), Refused::Forbidden { .. }));
    let mut world = World::new(policy, &[(SWAP, "60")]);
    assert!(matches!(refused(world.answer(alice(), exec("reboot now"))), Refused::Forbidden { .. }));
    let reply = world.answer(alice(), exec("uptime -p"));
    assert!(matches!(reply, Reply::Run { sequence: Some(_) }), "{reply:?}");
    assert_eq!(world.messages(EntryType::ExecLog), ["uptime -p"]);
    assert!(matches!(world.answer(alice(), Request::ShellStart), Reply::Run { sequence: Some(_) }));
    assert_eq!(world.answer(alice(), Request::ShellEnd { exit_status: Some(0) }), Reply::Noted);
    assert_eq!(world.entries(EntryType::ShellSession).len(), 2);
    world.disconnect();
    assert_eq!(refused(world.answer(alice(), exec("uptime"))), Refused::NoQuorum);
    world.emergency(alice(), "fire");
    assert_eq!(world.answer(alice(), exec("uptime")), Reply::Run { sequence: None });
    world.connect();
    world.pass(10);
    assert_eq!(world.entries(EntryType::ExecLog).len(), 2);
    world.check_story();
}

#[test]
fn nonsense_is_refused_naming_what_is_accepted() {
    let mut world = world();
    let ask = |changes| Request::Set { changes, consent: Consent::Yes, merge: false, message: Arc::from("") };
    for (changes, says) in [
        (vec![], "expected 1 to 4096"),
        (vec![(k("vcluster"), v("other"))], "boot-config"),
        (vec![(k(SWAP), Setting::Unset)], "expected a value, or absent"),
        (vec![(k(SWAP), Setting::Absent)], "always has a value"),
        (vec![(k(SWAP), v("1")), (k(SWAP), v("2"))], "twice"),
        (vec![(k("mounts:/x"), v("what"))], "expected"),
    ] {
        let refusal = refused(world.answer(alice(), ask(changes))).to_string();
        assert!(refusal.contains(says), "{refusal}");
    }
    assert_eq!(world.host.changes.len(), 3, "only the boot changed anything");
}

#[test]
fn nobody_waits_for_ever_and_a_moment_is_not_a_boot() {
    let mut world = world();
    assert_eq!(world.state.journal.node(&node(0)).unwrap().vcluster, Some(vcluster(0)));
    for n in 0..100 {
        world.ask(alice(), set(&[(SWAP, &n.to_string())], Consent::Yes));
    }
    world.settle();
    assert_eq!(world.replies.len(), 100);
    let busy = world.replies.values().filter(|reply| **reply == Reply::Refused(Refused::Busy)).count();
    assert!(busy > 0 && busy < 50, "{busy} of 100 are told to come back");
    assert!(world.now.boot > BootTime(0));
}
