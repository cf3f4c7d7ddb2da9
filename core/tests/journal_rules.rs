//! The journal's rules one by one, in the words of those who meet them.

mod common;

use common::{Player, alice, change, draft, first_member, key, node, setting, vcluster};
use muster_core::boot::{self, BootRefusal};
use muster_core::ids::{
    Age, ClusterId, Digest, Incarnation, Index, OneShotId, ReplicaId, ReplicaName, Seq, SessionId, WallTime,
};
use muster_core::journal::command::{ConfigState, JournalCommand};
use muster_core::journal::entry::{
    Author, Change, EntryDraft, EntryType, OperationDraft, OperationKind, Principal, Record, Role,
};
use muster_core::journal::fold::{Fold, Verifier};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::overlay::BootOverlay;
use muster_core::journal::policy::{Milli, Policy};
use muster_core::journal::stack::Stack;
use muster_core::limits;
use muster_core::members::{Admission, Member, MemberCommand, MemberWish};
use muster_core::overlay;
use muster_core::query::{self, Answer, Query};
use muster_core::request::{Command, NotApplied, Outcome, Refusal, Reply, RequestId, UnknownWhy, WriteRequest};
use muster_core::state::{Proposal, State};
use std::sync::Arc;

fn value(text: &str) -> Setting {
    Setting::Value(Arc::from(text))
}

/// A fleet of one vCluster `hpc-a` and the node `n0` in it, at sequence 2.
fn fleet() -> Player {
    let mut player = Player::new();
    recorded(&player.give(set_policy(Policy::default())));
    recorded(&assign(&mut player, "hpc-a"));
    player
}

fn set_policy(policy: Policy) -> Command {
    Command::Journal(JournalCommand::SetPolicy { vcluster: vcluster(0), policy })
}

fn assign(player: &mut Player, to: &str) -> Outcome {
    let mut assignment = draft(EntryType::BootConfig, Scope::Node(node(0)), player.state.sequence());
    assignment.changes = vec![change(Key::vcluster(), value(to))];
    player.append(assignment)
}

fn commit(scope: Scope, parent: Seq, text: &str) -> EntryDraft {
    let mut commit = draft(EntryType::Commit, scope, parent);
    commit.changes = vec![change(key(0), value(text))];
    commit
}

fn rollback(player: &mut Player, scope: Scope, to: Seq) -> Outcome {
    let mut rollback = draft(EntryType::Rollback, scope, to);
    rollback.based_on = Some(player.state.sequence());
    player.append(rollback)
}

#[track_caller]
fn recorded(outcome: &Outcome) -> Seq {
    match outcome {
        Outcome::Applied { reply: Reply::Recorded { sequence }, .. } => *sequence,
        other => panic!("expected a record, got {other:?}"),
    }
}

#[track_caller]
fn refused(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refused(refusal) => refusal,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[track_caller]
fn invalid_field(outcome: Outcome) -> String {
    match refused(outcome) {
        Refusal::Invalid { field, .. } => field.to_string(),
        other => panic!("expected an invalid field, got {other:?}"),
    }
}

fn says(player: &Player, scope: &Scope, of: &Key) -> Setting {
    player.state.journal.stack(scope, of).map_or(Setting::Unset, Stack::setting)
}

fn last_record(player: &Player) -> Record {
    player.records().pop().unwrap()
}

#[test]
fn a_moved_key_is_a_conflict_that_names_both_values_and_a_disjoint_one_is_not() {
    let mut player = fleet();
    let seen = player.state.sequence();
    let first = recorded(&player.append(commit(Scope::Global, seen, "alice's")));
    let conflict = refused(player.append(commit(Scope::Global, seen, "bob's")));
    let expected =
        Refusal::Conflict { key: key(0), theirs: value("alice's"), theirs_sequence: first, yours: value("bob's") };
    assert_eq!(conflict, expected);
    let mut disjoint = commit(Scope::Global, seen, "bob's");
    disjoint.changes = vec![change(key(1), value("bob's"))];
    recorded(&player.append(disjoint));
}

#[test]
fn a_parent_beyond_the_head_is_refused_with_the_head() {
    let mut player = fleet();
    let refusal = refused(player.append(commit(Scope::Global, Seq(99), "x")));
    assert_eq!(refusal, Refusal::FutureParent { parent: Seq(99), head: Seq(2) });
}

#[test]
fn unknown_scopes_are_refused_with_how_they_become_known() {
    let mut player = fleet();
    for (scope, hint) in [(Scope::Node(node(3)), "vcluster"), (Scope::VCluster(vcluster(2)), "policy")] {
        match refused(player.append(commit(scope, Seq(2), "x"))) {
            Refusal::UnknownScope { hint: found, .. } => assert!(found.contains(hint), "{found}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(refused(assign(&mut player, "nowhere")), Refusal::UnknownScope { .. }));
}

#[test]
fn every_field_that_does_not_fit_is_named() {
    let mut player = fleet();
    let head = player.state.sequence();
    let global = || commit(Scope::Global, head, "x");
    let on_node = |kind| draft(kind, Scope::Node(node(0)), head);
    let cases: Vec<(&str, EntryDraft)> = vec![
        ("ttl_seconds", EntryDraft { ttl_seconds: Some(899), ..global() }),
        ("ttl_seconds", EntryDraft { ttl_seconds: Some(864_001), ..global() }),
        ("ttl_seconds", EntryDraft { ttl_seconds: Some(900), ..on_node(EntryType::DriftDetected) }),
        ("message", EntryDraft { message: Arc::from("m".repeat(limits::MESSAGE_BYTES_MAX + 1)), ..global() }),
        ("changes", EntryDraft { changes: vec![], ..global() }),
        ("changes", EntryDraft { changes: vec![change(key(0), setting(1)), change(key(0), setting(2))], ..global() }),
        ("changes", EntryDraft { changes: vec![change(Key::vcluster(), value("hpc-a"))], ..global() }),
        (
            "changes",
            EntryDraft { changes: vec![change(Key::vcluster(), Setting::Absent)], ..on_node(EntryType::BootConfig) },
        ),
        ("next", EntryDraft { changes: vec![change(key(0), value(&"v".repeat((1 << 20) + 1)))], ..global() }),
        ("based_on", EntryDraft { based_on: Some(head), ..global() }),
        ("based_on", draft(EntryType::Rollback, Scope::Global, Seq(1))),
        ("based_on", EntryDraft { based_on: Some(Seq(1)), ..draft(EntryType::Rollback, Scope::Global, Seq(2)) }),
        ("changes", EntryDraft { entry_type: EntryType::Rollback, based_on: Some(head), ..global() }),
        ("entry_type", on_node(EntryType::PolicyUpdate)),
        ("entry_type", on_node(EntryType::ExecLog)),
        ("entry_type", on_node(EntryType::ShellSession)),
        ("scope", draft(EntryType::DriftDetected, Scope::Global, head)),
        ("scope", draft(EntryType::EmergencyStart, Scope::Global, head)),
        ("emergency_reason", on_node(EntryType::EmergencyStart)),
        (
            "emergency_reason",
            EntryDraft { emergency_reason: Some(Arc::from(" ")), ..on_node(EntryType::EmergencyStart) },
        ),
        ("emergency_reason", EntryDraft { emergency_reason: Some(Arc::from("x")), ..global() }),
    ];
    let before = player.state.head();
    for (field, draft) in cases {
        let text = format!("{draft:.200?}");
        assert_eq!(invalid_field(player.append(draft)), field, "{text:.300}");
    }
    assert_eq!(player.state.head(), before, "a refusal recorded something");
}

#[test]
fn a_policy_out_of_bounds_is_refused_by_field() {
    let mut player = fleet();
    let sound = Policy::default;
    let mut heavy = sound();
    heavy.weights[6] = Milli(1_000_001);
    let cases = [
        ("base_window_seconds", Policy { base_window_seconds: 0, ..sound() }),
        ("emergency_window_seconds", Policy { emergency_window_seconds: 864_001, ..sound() }),
        ("min_window_seconds", Policy { min_window_seconds: 901, ..sound() }),
        ("sensitivity", Policy { sensitivity: Milli(1_000_001), ..sound() }),
        ("weights.gpu", heavy),
        ("exec_allow", Policy { exec_allow: vec![Arc::from("")], ..sound() }),
        ("exec_allow", Policy { exec_allow: vec![Arc::from("ls"); 257], ..sound() }),
    ];
    for (field, policy) in cases {
        assert_eq!(invalid_field(player.give(set_policy(policy))), field);
    }
}

#[test]
fn an_author_must_be_named_and_cannot_claim_to_be_the_cluster() {
    let mut player = fleet();
    let claimed = |name: &str| Principal::Claimed { name: Arc::from(name) };
    let mut ask = |author: Author, command: Command| {
        let request =
            RequestId::OneShot { id: OneShotId(u128::from(player.state.age().0) << 64), drawn_at: player.state.age() };
        player.submit(WriteRequest { request, author, command })
    };
    let append = || Command::Journal(JournalCommand::AppendEntry(commit(Scope::Global, Seq(2), "x")));
    let nobody = Author { principal: claimed("  "), role: Role::Admin };
    assert_eq!(invalid_field(ask(nobody, append())), "author.name");
    let long = Author { principal: claimed(&"a".repeat(257)), role: Role::Admin };
    assert_eq!(invalid_field(ask(long, append())), "author.name");
    for (author, command) in [
        (Author { principal: claimed("mallory"), role: Role::System }, append()),
        (Author { role: Role::Admin, ..Author::system("expiry") }, Command::Expire),
        (Author::system("expiry"), append()),
        (Author::system("overlay"), Command::Expire),
        (alice(), Command::Expire),
        (alice(), Command::RaiseFeatureLevel(2)),
    ] {
        assert!(matches!(refused(ask(author, command)), Refusal::Forbidden { .. }));
    }
    let write = WriteRequest { request: RequestId::None, author: alice(), command: append() };
    assert_eq!(invalid_field(player.submit(write)), "request");
}

#[test]
fn a_rollback_takes_off_what_is_later_and_says_what_it_uncovers() {
    let mut player = fleet();
    let first = recorded(&player.append(commit(Scope::Global, Seq(2), "1")));
    let second = recorded(&player.append(commit(Scope::Global, first, "2")));
    let third = recorded(&player.append(commit(Scope::Global, second, "3")));
    let done = recorded(&rollback(&mut player, Scope::Global, first));
    let Record::Entry(entry) = last_record(&player) else { panic!("not an entry") };
    assert_eq!(entry.takes_off, [(key(0), second), (key(0), third)]);
    assert_eq!((&entry.delta[0].previous, &entry.delta[0].next), (&value("3"), &value("1")));
    assert_eq!(says(&player, &Scope::Global, &key(0)), value("1"));
    let refusal = refused(rollback(&mut player, Scope::Global, third));
    assert_eq!(refusal, Refusal::TargetRolledBack { key: key(0), pair: third, taken_off_by: done });
    assert_eq!(refused(rollback(&mut player, Scope::Global, done)), Refusal::NothingToRollBack);
}

fn undone(player: &mut Player, scope: Scope) -> Outcome {
    let head = player.state.sequence();
    let mut undone = draft(EntryType::Rollback, scope, head);
    undone.based_on = Some(head);
    undone.changes = vec![Change { key: key(1), previous: value("10"), next: value("60") }];
    player.append(undone)
}

/// The state of the fleet's first node.
fn node_state(player: &Player) -> ConfigState {
    player.state.journal.node(&node(0)).expect("a known node").state
}

/// A fleet one of whose members knows the first feature level only.
fn oldest_fleet() -> Player {
    let mut player = Player::new();
    player.state = State::new(ClusterId(1), Member { feature_level: 1, ..first_member() });
    recorded(&player.give(set_policy(Policy::default())));
    recorded(&assign(&mut player, "hpc-a"));
    player
}

#[test]
fn what_was_undone_on_a_node_is_recorded_and_takes_nothing_off() {
    let mut player = fleet();
    let node = Scope::Node(node(0));
    let parent = player.state.sequence();
    let committed = recorded(&player.append(commit(node.clone(), parent, "1")));
    let mut drift = draft(EntryType::DriftDetected, node.clone(), committed);
    drift.changes = vec![Change { key: key(1), previous: value("60"), next: value("10") }];
    recorded(&player.append(drift));
    assert_eq!(node_state(&player), ConfigState::Drifted);
    recorded(&undone(&mut player, node.clone()));
    let Record::Entry(entry) = last_record(&player) else { panic!("not an entry") };
    assert_eq!((entry.entry_type, entry.takes_off.len()), (EntryType::Rollback, 0));
    assert_eq!((&entry.delta[0].previous, &entry.delta[0].next), (&value("10"), &value("60")));
    assert_eq!(node_state(&player), ConfigState::Committed);
    assert_eq!(says(&player, &node, &key(0)), value("1"));
    assert_eq!(says(&player, &node, &key(1)), Setting::Unset);
    let mut fold = Fold::new(node);
    player.records().iter().for_each(|record| fold.push(record));
    assert_eq!(fold.at().get(&key(0)), Some(&(committed, value("1"))));
}

#[test]
fn what_was_undone_on_a_node_ends_no_emergency() {
    let mut player = fleet();
    let mut start = draft(EntryType::EmergencyStart, Scope::Node(node(0)), Seq(2));
    start.emergency_reason = Some(Arc::from("fire"));
    recorded(&player.append(start));
    recorded(&undone(&mut player, Scope::Node(node(0))));
    assert_eq!(node_state(&player), ConfigState::Emergency);
}

#[test]
fn a_rollback_with_changes_is_refused_below_its_feature_level_and_for_more_than_a_node() {
    assert_eq!(invalid_field(undone(&mut oldest_fleet(), Scope::Node(node(0)))), "changes");
    assert_eq!(invalid_field(undone(&mut fleet(), Scope::Global)), "changes");
    assert_eq!(invalid_field(undone(&mut fleet(), Scope::VCluster(vcluster(0)))), "changes");
}

#[test]
fn a_rollback_computed_from_an_old_look_is_a_conflict() {
    let mut player = fleet();
    let first = recorded(&player.append(commit(Scope::Global, Seq(2), "1")));
    let second = recorded(&player.append(commit(Scope::Global, first, "2")));
    let third = recorded(&player.append(commit(Scope::Global, second, "3")));
    let mut stale = draft(EntryType::Rollback, Scope::Global, first);
    stale.based_on = Some(second);
    let expected = Refusal::Conflict { key: key(0), theirs: value("3"), theirs_sequence: third, yours: value("1") };
    assert_eq!(refused(player.append(stale)), expected);
}

#[test]
fn beyond_what_is_remembered_a_rollback_is_refused_and_before_it_all_it_is_not() {
    let mut player = fleet();
    let start = player.state.sequence();
    let mut parent = start;
    for n in 0..200 {
        parent = recorded(&player.append(commit(Scope::Global, parent, &n.to_string())));
    }
    let refusal = refused(rollback(&mut player, Scope::Global, Seq(start.0 + 10)));
    let oldest = Seq(parent.0 - limits::STACK_DEPTH_MAX as u64 + 1);
    assert_eq!(refusal, Refusal::TooFarBack { key: key(0), remembered_from: oldest });
    recorded(&rollback(&mut player, Scope::Global, oldest));
    recorded(&rollback(&mut player, Scope::Global, start));
    assert_eq!(says(&player, &Scope::Global, &key(0)), Setting::Unset);
}

#[test]
fn what_was_rolled_back_too_long_ago_to_tell_is_refused_and_anything_since_is_not() {
    let mut player = fleet();
    let kept = recorded(&player.append(commit(Scope::Global, Seq(2), "kept")));
    let mut pairs = Vec::new();
    for n in 0..limits::TOMBSTONES_MAX + 2 {
        let before = player.state.sequence();
        let pair = recorded(&player.append(commit(Scope::Global, before, &n.to_string())));
        pairs.push((pair, recorded(&rollback(&mut player, Scope::Global, before))));
    }
    let (faded, _) = pairs[1];
    let until = pairs[1].1;
    let refusal = refused(rollback(&mut player, Scope::Global, faded));
    assert_eq!(refusal, Refusal::TooFarBack { key: key(0), remembered_from: until });
    let (pair, taken_off_by) = pairs[2];
    let refusal = refused(rollback(&mut player, Scope::Global, pair));
    assert_eq!(refusal, Refusal::TargetRolledBack { key: key(0), pair, taken_off_by });
    let before = player.state.sequence();
    recorded(&player.append(commit(Scope::Global, before, "last")));
    recorded(&rollback(&mut player, Scope::Global, before));
    assert_eq!(says(&player, &Scope::Global, &key(0)), value("kept"));
    assert!(kept < before);
}

#[test]
fn temporary_values_alone_cannot_fill_more_than_a_stack() {
    let mut player = fleet();
    let temporary =
        |player: &Player| EntryDraft { ttl_seconds: Some(900), ..commit(Scope::Global, player.state.sequence(), "t") };
    for _ in 0..limits::STACK_DEPTH_MAX {
        let draft = temporary(&player);
        recorded(&player.append(draft));
    }
    let draft = temporary(&player);
    assert!(matches!(refused(player.append(draft)), Refusal::TooManyTemporary { max: 128, .. }));
    let head = player.state.sequence();
    recorded(&player.append(commit(Scope::Global, head, "permanent")));
}

#[test]
fn what_expires_uncovers_what_was_below_and_stays_unset() {
    let mut player = fleet();
    let first = recorded(&player.append(commit(Scope::Global, Seq(2), "below")));
    let temporary = EntryDraft { ttl_seconds: Some(900), ..commit(Scope::Global, first, "for a while") };
    let second = recorded(&player.append(temporary));
    let third = recorded(&player.append(commit(Scope::Global, second, "above")));
    assert_eq!(
        player.system("expiry", Command::Expire),
        Outcome::Applied { index: Index(player.log.len() as u64), reply: Reply::Expired { count: 0 } }
    );
    player.wait(900);
    player.system("expiry", Command::Expire);
    let Record::Entry(entry) = last_record(&player) else { panic!("not an entry") };
    assert_eq!((entry.author.clone(), entry.parent), (Author::system("expiry"), second));
    assert_eq!(entry.takes_off, [(key(0), second)]);
    assert_eq!(entry.delta, [], "nothing visible changed: it was covered");
    recorded(&rollback(&mut player, Scope::Global, second));
    assert_eq!(says(&player, &Scope::Global, &key(0)), value("below"));
    assert!(third < player.state.sequence());
}

#[test]
fn unset_falls_through_and_absent_does_not() {
    let mut player = fleet();
    let own = Scope::Node(node(0));
    recorded(&player.append(commit(Scope::Global, Seq(2), "wide")));
    let counts = |player: &Player| boot::declared(&player.state, &node(0)).get(&key(0)).cloned();
    for (next, expected) in [(Setting::Absent, Some(Setting::Absent)), (Setting::Unset, Some(value("wide")))] {
        let mut draft = commit(own.clone(), player.state.sequence(), "");
        draft.changes = vec![change(key(0), next)];
        recorded(&player.append(draft));
        assert_eq!(counts(&player), expected);
    }
}

#[test]
fn entries_move_a_nodes_state_and_an_emergency_ends_by_entries_only() {
    use ConfigState::{Committed, Converging, Drifted, Emergency};
    let mut player = fleet();
    let scope = Scope::Node(node(0));
    let state = |player: &Player| player.state.journal.node(&node(0)).unwrap().state;
    let append = |player: &mut Player, kind: EntryType| {
        let mut draft = draft(kind, Scope::Node(node(0)), player.state.sequence());
        if kind == EntryType::EmergencyStart {
            draft.emergency_reason = Some(Arc::from("fire"));
        }
        player.append(draft)
    };
    let update = |player: &mut Player, state| {
        player.give(Command::Journal(JournalCommand::UpdateNodeState { node: node(0), state }))
    };
    recorded(&append(&mut player, EntryType::DriftDetected));
    assert_eq!(state(&player), Drifted);
    assert!(matches!(update(&mut player, Converging), Outcome::Applied { .. }));
    recorded(&append(&mut player, EntryType::EmergencyStart));
    assert_eq!(state(&player), Emergency);
    assert!(matches!(refused(append(&mut player, EntryType::EmergencyStart)), Refusal::Emergency { .. }));
    assert_eq!(refused(update(&mut player, Committed)), Refusal::IllegalTransition { from: Emergency, to: Committed });
    recorded(&append(&mut player, EntryType::DriftDetected));
    assert_eq!(state(&player), Emergency, "drift does not end an emergency");
    recorded(&append(&mut player, EntryType::EmergencyEnd));
    assert_eq!(state(&player), Converging, "it returns to what it was");
    assert!(matches!(refused(append(&mut player, EntryType::EmergencyEnd)), Refusal::Emergency { .. }));
    assert_eq!(refused(update(&mut player, Emergency)), Refusal::IllegalTransition { from: Converging, to: Emergency });
    recorded(&append(&mut player, EntryType::EmergencyStart));
    let head = player.state.sequence();
    recorded(&player.append(commit(scope, head, "stand by it")));
    assert_eq!(state(&player), Committed, "a commit ends an emergency");
    player.give(set_policy(Policy { emergency_allowed: false, ..Policy::default() }));
    assert!(matches!(refused(append(&mut player, EntryType::EmergencyStart)), Refusal::Forbidden { .. }));
}

#[test]
fn an_exec_takes_two_sequences_its_audit_record_then_its_entry() {
    let mut player = fleet();
    let operation = |kind, scope, detail: &str| {
        let (detail, exit_status) = (Arc::from(detail), Some(1));
        Command::Journal(JournalCommand::RecordOperation(OperationDraft {
            kind,
            scope,
            detail,
            exit_status,
            occurred_at: None,
        }))
    };
    let on_node = Scope::Node(node(0));
    let last = recorded(&player.give(operation(OperationKind::Exec, on_node.clone(), "uptime")));
    assert_eq!(last, Seq(4));
    let [.., Record::Operation(audit), Record::Entry(entry)] = &player.records()[..] else { panic!("not both") };
    assert_eq!((audit.sequence, entry.sequence), (Seq(3), Seq(4)));
    assert_eq!((entry.entry_type, entry.policy_ref), (EntryType::ExecLog, Some(Seq(1))));
    let unknown = operation(OperationKind::Exec, Scope::Node(node(3)), "uptime");
    assert!(matches!(refused(player.give(unknown)), Refusal::UnknownScope { .. }));
    for (field, kind, scope, detail) in [
        ("scope", OperationKind::Exec, Scope::Global, "x"),
        ("detail", OperationKind::ShellStart, on_node.clone(), ""),
        ("kind", OperationKind::Membership, on_node, "x"),
    ] {
        assert_eq!(invalid_field(player.give(operation(kind, scope, detail))), field);
    }
}

#[test]
fn an_overlay_older_than_stored_newer_than_config_or_damaged_is_refused_and_an_equal_one_keeps_the_bytes() {
    let mut player = fleet();
    let put = |player: &mut Player, overlay: BootOverlay| {
        player.system("overlay", Command::Journal(JournalCommand::SetOverlay { vcluster: vcluster(0), overlay }))
    };
    let old = overlay::build(&player.state, &vcluster(0)).unwrap();
    recorded(&player.append(commit(Scope::Global, Seq(2), "x")));
    let new = overlay::build(&player.state, &vcluster(0)).unwrap();
    assert_eq!((old.version, new.version), (Seq(1), Seq(3)), "a node's assignment is not in its overlay");
    assert!(matches!(
        put(&mut player, new.clone()),
        Outcome::Applied { reply: Reply::Overlay { version: Seq(3) }, .. }
    ));
    let damaged = BootOverlay { checksum: Digest::default(), ..new.clone() };
    let ahead = BootOverlay { version: Seq(4), ..new.clone() };
    for wrong in [old, damaged, ahead] {
        assert!(matches!(refused(put(&mut player, wrong)), Refusal::Overlay { .. }));
    }
    let other = BootOverlay { data: b"other".as_slice().into(), checksum: Digest::of(b"other"), ..new.clone() };
    assert!(matches!(put(&mut player, other), Outcome::Applied { .. }));
    assert_eq!(player.state.journal.vcluster(&vcluster(0)).unwrap().overlay, Some(new));
}

#[test]
fn a_boot_needs_a_known_node_in_a_vcluster_with_an_overlay() {
    let mut player = fleet();
    assert_eq!(boot::plan(&player.state, &node(3)), Err(BootRefusal::UnknownNode { node: node(3) }));
    assert_eq!(boot::plan(&player.state, &node(0)), Err(BootRefusal::NoOverlay { vcluster: vcluster(0) }));
    let overlay = overlay::build(&player.state, &vcluster(0)).unwrap();
    let plan = boot::plan_with(&player.state, &node(0), overlay.clone()).unwrap();
    let delta = "muster-boot 1 delta vcluster=hpc-a version=1 sequence=2 node=n0\nvcluster=hpc-a\nend 1\n";
    assert_eq!(plan.delta, delta);
    let ahead = BootOverlay { version: Seq(9), ..overlay };
    let refusal = BootRefusal::Ahead { version: Seq(9), sequence: Seq(2) };
    assert_eq!(boot::plan_with(&player.state, &node(0), ahead), Err(refusal));
    recorded(&rollback(&mut player, Scope::Node(node(0)), Seq(1)));
    assert_eq!(boot::plan(&player.state, &node(0)), Err(BootRefusal::NoVCluster { node: node(0) }));
}

#[test]
fn another_vclusters_commit_leaves_an_overlay_alone() {
    let mut player = fleet();
    player.give(Command::Journal(JournalCommand::SetPolicy { vcluster: vcluster(1), policy: Policy::default() }));
    for n in [0, 1] {
        let overlay = overlay::build(&player.state, &vcluster(n)).unwrap();
        player.system("overlay", Command::Journal(JournalCommand::SetOverlay { vcluster: vcluster(n), overlay }));
    }
    assert_eq!(overlay::stale(&player.state), []);
    let head = player.state.sequence();
    recorded(&player.append(commit(Scope::VCluster(vcluster(1)), head, "x")));
    assert_eq!(overlay::stale(&player.state), [vcluster(1)]);
    let head = player.state.sequence();
    recorded(&player.append(commit(Scope::Global, head, "x")));
    assert_eq!(overlay::stale(&player.state), [vcluster(0), vcluster(1)]);
}

// ---- sessions ----

fn propose(state: &mut State, request: RequestId, command: Command, elapsed: u64) -> Outcome {
    let write = WriteRequest { request, author: alice(), command };
    state.apply(Index(1), Proposal { write, recorded_at: WallTime(0), elapsed }).0
}

fn one_shot(id: u128, drawn_at: Age) -> RequestId {
    RequestId::OneShot { id: OneShotId(id), drawn_at }
}

fn open_session(state: &mut State, id: u128) -> SessionId {
    let age = state.age();
    match propose(state, one_shot(id, age), Command::OpenSession, 0) {
        Outcome::Applied { reply: Reply::Session { session }, .. } => session,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_sessions_replies_are_kept_until_acknowledged_in_whatever_order_they_come() {
    let mut state = State::new(ClusterId(7), first_member());
    let session = open_session(&mut state, 1);
    let policy = || set_policy(Policy::default());
    let numbered = |number, acknowledged| RequestId::Session { session, number, acknowledged };
    let third = propose(&mut state, numbered(3, 0), policy(), 0);
    let first = propose(&mut state, numbered(1, 0), policy(), 0);
    assert_eq!((recorded(&third), recorded(&first)), (Seq(1), Seq(2)));
    assert_eq!(propose(&mut state, numbered(3, 1), policy(), 0), third);
    let gone = Outcome::Unknown(UnknownWhy::AlreadyAcknowledged);
    assert_eq!(propose(&mut state, numbered(1, 0), policy(), 0), gone);
    let unknown = RequestId::Session { session: SessionId(99), number: 1, acknowledged: 0 };
    assert_eq!(propose(&mut state, unknown, policy(), 0), Outcome::Unknown(UnknownWhy::SessionUnknown));
    let closed = propose(&mut state, numbered(4, 3), Command::CloseSession, 0);
    assert!(matches!(closed, Outcome::Applied { reply: Reply::SessionClosed, .. }));
    let closed = propose(&mut state, numbered(5, 3), policy(), 0);
    assert_eq!(closed, Outcome::Unknown(UnknownWhy::SessionUnknown));
    assert_eq!((state.sequence(), state.problem()), (Seq(2), None));
}

#[test]
fn a_session_with_too_much_unacknowledged_is_busy_and_can_go_on_once_it_acknowledges() {
    let mut state = State::new(ClusterId(7), first_member());
    let session = open_session(&mut state, 1);
    let numbered = |number, acknowledged| RequestId::Session { session, number, acknowledged };
    for number in 1..=1_024 {
        recorded(&propose(&mut state, numbered(number, 0), set_policy(Policy::default()), 0));
    }
    let busy = propose(&mut state, numbered(1_025, 0), set_policy(Policy::default()), 0);
    assert!(matches!(busy, Outcome::NotApplied(NotApplied::Busy { .. })));
    recorded(&propose(&mut state, numbered(1_025, 1), set_policy(Policy::default()), 0));
}

#[test]
fn a_one_shot_is_unknown_once_its_reply_may_be_gone_and_before_its_time() {
    const HOUR: u64 = 3_600_000_000;
    let mut state = State::new(ClusterId(7), first_member());
    let expired = Outcome::Unknown(UnknownWhy::OneShotExpired);
    let policy = || set_policy(Policy::default());
    assert_eq!(propose(&mut state, one_shot(1, Age(1)), policy(), 0), expired, "drawn at an age not yet reached");
    let first = propose(&mut state, one_shot(1, Age(0)), policy(), HOUR - 1);
    recorded(&first);
    assert_eq!(propose(&mut state, one_shot(1, Age(0)), policy(), HOUR - 1), first, "kept for an hour");
    assert_eq!(propose(&mut state, one_shot(2, Age(0)), policy(), 0), expired);
    assert_eq!(state.next_due(), Some(Age(2 * HOUR - 1)));
    let expire = Player::expire_after(1);
    let (outcome, _) = state.apply(Index(9), expire);
    assert_eq!(outcome, Outcome::Applied { index: Index(9), reply: Reply::Expired { count: 1 } });
    assert_eq!(propose(&mut state, one_shot(1, Age(0)), policy(), 0), expired);
    assert_eq!(state.sequence(), Seq(1), "it was applied once");
}

#[test]
fn an_idle_session_expires_and_a_used_one_does_not() {
    let mut state = State::new(ClusterId(7), first_member());
    let (idle, used) = (open_session(&mut state, 1), open_session(&mut state, 2));
    let numbered = |session| RequestId::Session { session, number: 1, acknowledged: 0 };
    recorded(&propose(&mut state, numbered(used), set_policy(Policy::default()), 1_800_000_000));
    state.apply(Index(2), Player::expire_after(1_800));
    assert_eq!(state.sessions.count(), 1);
    let again = propose(&mut state, numbered(idle), set_policy(Policy::default()), 0);
    assert_eq!(again, Outcome::Unknown(UnknownWhy::SessionUnknown));
}

#[test]
fn one_expire_does_a_bounded_amount() {
    let mut player = fleet();
    for n in 0..300 {
        let head = player.state.sequence();
        let mut temporary = EntryDraft { ttl_seconds: Some(900), ..commit(Scope::Global, head, "t") };
        temporary.changes[0].key = Key::new(&format!("kernel:k{n}")).unwrap();
        recorded(&player.append(temporary));
    }
    player.wait(900);
    let counts = [(); 3].map(|()| match player.system("expiry", Command::Expire) {
        Outcome::Applied { reply: Reply::Expired { count }, .. } => count,
        other => panic!("{other:?}"),
    });
    assert_eq!(counts, [256, 44, 0]);
}

// ---- members ----

fn admission(name: &str, incarnation: u128, wish: MemberWish) -> Admission {
    Admission {
        name: ReplicaName::new(name).unwrap(),
        incarnation: Incarnation(incarnation),
        peer_address: Arc::from("10.0.0.2:9444"),
        client_address: Arc::from("10.0.0.2:9443"),
        wish,
        feature_level: limits::FEATURE_LEVEL,
    }
}

fn admit(player: &mut Player, admission: Admission) -> Outcome {
    player.give(Command::Members(MemberCommand::Admit(admission)))
}

#[test]
fn ids_are_never_reused_and_the_same_data_directory_gets_the_same_one() {
    let mut player = fleet();
    let admitted = |outcome| match outcome {
        Outcome::Applied { reply: Reply::Admitted { replica }, .. } => replica,
        other => panic!("{other:?}"),
    };
    let second = admission("r2", 2, MemberWish::Voter);
    assert_eq!(admitted(admit(&mut player, second.clone())), ReplicaId(2));
    let records = player.state.sequence();
    assert_eq!(admitted(admit(&mut player, second.clone())), ReplicaId(2));
    assert_eq!(player.state.sequence(), records, "asking again changes nothing and records nothing");
    assert!(matches!(refused(admit(&mut player, admission("r2", 3, MemberWish::Learner))), Refusal::Membership { .. }));
    player.give(Command::Members(MemberCommand::Remove(ReplicaId(2))));
    let Record::Operation(audit) = last_record(&player) else { panic!("not an audit record") };
    assert_eq!((audit.kind, &*audit.detail), (OperationKind::Membership, "remove replica 2 (r2)"));
    assert_eq!(admitted(admit(&mut player, second)), ReplicaId(3));
    for (field, wrong) in [
        ("peer_address", Admission { peer_address: Arc::from("nowhere"), ..admission("r4", 4, MemberWish::Voter) }),
        ("client_address", Admission { client_address: Arc::from(":9443"), ..admission("r4", 4, MemberWish::Voter) }),
    ] {
        assert_eq!(invalid_field(admit(&mut player, wrong)), field);
    }
}

#[test]
fn a_replacement_may_bear_the_name_of_the_one_it_replaces() {
    let mut player = fleet();
    admit(&mut player, admission("r2", 2, MemberWish::Voter));
    let heir = admission("r2", 3, MemberWish::Replacement { of: ReplicaId(2) });
    assert!(matches!(admit(&mut player, heir), Outcome::Applied { .. }));
    player.give(Command::Members(MemberCommand::Replace { old: ReplicaId(2), new: ReplicaId(3) }));
    assert!(player.state.members.get(ReplicaId(2)).is_none());
    assert_eq!(player.state.members.get(ReplicaId(3)).unwrap().wish, MemberWish::Voter);
}

#[test]
fn the_last_member_stays_and_a_removed_one_is_named_as_such() {
    let mut player = fleet();
    let remove = |player: &mut Player, id| refused(player.give(Command::Members(MemberCommand::Remove(ReplicaId(id)))));
    assert!(matches!(remove(&mut player, 1), Refusal::Membership { .. }));
    admit(&mut player, admission("r2", 2, MemberWish::Voter));
    player.give(Command::Members(MemberCommand::Remove(ReplicaId(2))));
    let Refusal::Membership { problem } = remove(&mut player, 2) else { panic!("another refusal") };
    assert_eq!(&*problem, "replica 2 was removed; its id is not used again");
}

#[test]
fn the_feature_level_only_rises_and_only_to_what_every_member_supports() {
    let mut player = Player::new();
    player.state = State::new(ClusterId(1), Member { feature_level: 1, ..first_member() });
    let raise = |player: &mut Player, level| player.system("features", Command::RaiseFeatureLevel(level));
    assert_eq!(invalid_field(raise(&mut player, 2)), "feature_level");
    admit(&mut player, admission("r1", 1, MemberWish::Voter));
    assert!(matches!(raise(&mut player, 2), Outcome::Applied { reply: Reply::FeatureLevel { level: 2 }, .. }));
    assert_eq!(invalid_field(raise(&mut player, 1)), "feature_level");
    assert_eq!(player.state.feature_level(), 2);
    // Who does not support what is in force would take new commands for old ones.
    let older = Admission { feature_level: 1, ..admission("older", 7, MemberWish::Learner) };
    assert_eq!(invalid_field(admit(&mut player, older)), "feature_level");
}

// ---- reading ----

#[test]
fn questions_get_answers_of_their_kind_and_unknown_names_are_refused() {
    let mut player = fleet();
    recorded(&player.append(commit(Scope::Global, Seq(2), "x")));
    let ask = |query| query::answer(&player.state, Index(3), &query);
    let Ok(Answer::Summary(summary)) = ask(Query::Summary) else { panic!("not a summary") };
    assert_eq!((summary.sequence, summary.nodes, summary.vclusters, summary.applied), (Seq(3), 1, 1, Index(3)));
    let Ok(Answer::Scope { head, settings }) = ask(Query::Scope(Scope::Global)) else { panic!("not a scope") };
    assert_eq!((head, settings.len(), settings[0].sequence), (Seq(3), 1, Seq(3)));
    let Ok(Answer::Node { node: summary, settings }) = ask(Query::Node(node(0))) else { panic!("not a node") };
    assert_eq!((summary.vcluster, settings.len()), (Some(vcluster(0)), 2));
    let Ok(Answer::Policy { sequence: Seq(1), .. }) = ask(Query::Policy(vcluster(0))) else { panic!("no policy") };
    let Ok(Answer::VClusters(vclusters)) = ask(Query::VClusters) else { panic!("no vclusters") };
    assert_eq!((vclusters[0].config_version, vclusters[0].overlay_version, vclusters[0].nodes), (Seq(3), None, 1));
    let Ok(Answer::Nodes(nodes)) = ask(Query::Nodes(Some(vcluster(0)))) else { panic!("no nodes") };
    assert_eq!(nodes.len(), 1);
    for unknown in [Query::Node(node(3)), Query::Policy(vcluster(2)), Query::Nodes(Some(vcluster(2)))] {
        assert!(matches!(ask(unknown), Err(Refusal::UnknownScope { .. })));
    }
}

#[test]
fn a_state_of_many_pages_loads_in_order_only() {
    let mut player = fleet();
    for n in 0..6 {
        let head = player.state.sequence();
        let mut large = commit(Scope::Global, head, &"v".repeat(1 << 20));
        large.changes[0].key = key(n % 3);
        recorded(&player.append(large));
    }
    let pages: Vec<_> = player.state.pages().collect();
    assert!(pages.len() > 24, "six values of 1 MiB in {} pages", pages.len());
    assert!(pages.iter().all(|page| page.len() <= limits::PAGE_BYTES));
    assert_eq!(State::from_pages(pages.clone()).unwrap().digest(), player.state.digest());
    for wrong in [[&pages[..3], &pages[4..]].concat(), pages[..pages.len() - 1].to_vec(), vec![]] {
        assert!(State::from_pages(wrong).is_err());
    }
}

#[test]
fn history_is_sealed_by_the_record_that_fills_a_segment() {
    let mut player = fleet();
    for _ in 0..5 {
        let head = player.state.sequence();
        recorded(&player.append(commit(Scope::Global, head, &"v".repeat(1 << 20))));
    }
    let history = player.state.history();
    // The first record holds one value, each later one two: what was and what is.
    let bounds: Vec<_> = history.iter().map(|segment| (segment.first, segment.last)).collect();
    assert_eq!(bounds, [(Seq(1), Seq(5)), (Seq(6), Seq(7)), (Seq(8), Seq(7))]);
    assert_eq!((history[1].before, history[2].head), (history[0].head, player.state.head()));
    assert_eq!(player.state.problem(), None);
}

#[test]
fn a_chain_that_was_tampered_with_is_found() {
    let mut player = fleet();
    recorded(&player.append(commit(Scope::Global, Seq(2), "x")));
    let stored: Vec<_> = player.log.iter().flat_map(|applied| &applied.finished).map(|f| f.bytes.clone()).collect();
    let mut verifier = Verifier::new();
    assert!(stored.iter().all(|bytes| verifier.push(bytes).is_ok()));
    verifier.expect(player.state.head()).unwrap();
    let mut verifier = Verifier::new();
    let mut changed = stored[2].to_vec();
    *changed.iter_mut().find(|byte| **byte == b'x').unwrap() = b'y';
    for bytes in [&stored[0], &stored[1], &changed.into()] {
        verifier.push(bytes).unwrap();
    }
    assert_eq!(verifier.expect(player.state.head()).unwrap_err().sequence, Seq(3));
    let mut verifier = Verifier::new();
    assert_eq!(verifier.push(&stored[1]).unwrap_err().sequence, Seq(1));
}

/// Text that does not compress to less than two thirds.
fn noise(bytes: usize, seed: u64) -> Setting {
    let mut drawn = seed;
    let letters = (0..bytes).map(|_| {
        drawn = drawn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'!' + u8::try_from((drawn >> 33) % 59).unwrap())
    });
    value(&letters.collect::<String>())
}

/// A commit of one large value, of this many bytes, to a key of its own.
fn large(player: &mut Player, scope: &Scope, number: u64, bytes: usize) -> Outcome {
    let mut commit = draft(EntryType::Commit, scope.clone(), player.state.sequence());
    commit.changes = vec![change(Key::new(&format!("files:/large/{number}")).unwrap(), noise(bytes, number))];
    player.append(commit)
}

#[test]
fn no_scope_declares_more_than_an_overlay_has_room_for() {
    let mut player = fleet();
    let hpc = Scope::VCluster(vcluster(0));
    for scope in [Scope::Global, hpc.clone()] {
        for number in 0..7 {
            recorded(&large(&mut player, &scope, number, 1_000_000));
        }
        let weight = player.state.journal.weight(&scope);
        let told = refused(large(&mut player, &scope, 8, 1_000_000));
        let Refusal::Invalid { field, problem } = told else { panic!("{told:?}") };
        assert_eq!(&*field, "changes");
        let would = (weight + 1_000_000 + "files:/large/8=\n".len() as u64).to_string();
        for part in [&scope.to_string(), &would, &limits::DECLARED_BYTES_MAX.to_string()] {
            assert!(problem.contains(part.as_str()), "{part} is not in {problem:?}");
        }
        // What takes the place of something as large fits, and so does what fills the bound.
        recorded(&large(&mut player, &scope, 0, 1_000_000));
        let left = usize::try_from(limits::DECLARED_BYTES_MAX - weight).unwrap() - "files:/large/9=\n".len();
        recorded(&large(&mut player, &scope, 9, left));
        assert_eq!(player.state.journal.weight(&scope), limits::DECLARED_BYTES_MAX);
    }
    // Both at their bound, and nothing of it the same: it is built and stored.
    let built = overlay::build(&player.state, &vcluster(0)).unwrap();
    let store = JournalCommand::SetOverlay { vcluster: vcluster(0), overlay: built };
    assert!(matches!(player.system("overlay", Command::Journal(store)), Outcome::Applied { .. }));
}

#[test]
fn what_comes_back_when_something_temporary_expires_counts_all_the_while() {
    let mut player = fleet();
    recorded(&large(&mut player, &Scope::Global, 0, 1_000_000));
    let before = player.state.journal.weight(&Scope::Global);
    let mut short = draft(EntryType::Commit, Scope::Global, player.state.sequence());
    short.changes = vec![change(Key::new("files:/large/0").unwrap(), value("short"))];
    short.ttl_seconds = Some(900);
    recorded(&player.append(short));
    assert_eq!(player.state.journal.weight(&Scope::Global), before);
    for number in 1..7 {
        recorded(&large(&mut player, &Scope::Global, number, 1_000_000));
    }
    assert!(matches!(refused(large(&mut player, &Scope::Global, 7, 1_000_000)), Refusal::Invalid { .. }));
    player.wait(901);
    player.system("expiry", Command::Expire);
    assert!(player.state.journal.weight(&Scope::Global) <= limits::DECLARED_BYTES_MAX);
}

#[test]
fn before_feature_level_3_nothing_is_weighed() {
    let mut player = Player::of(Member { feature_level: 2, ..first_member() });
    for number in 0..8 {
        recorded(&large(&mut player, &Scope::Global, number, 1_000_000));
    }
    assert!(player.state.journal.weight(&Scope::Global) > limits::DECLARED_BYTES_MAX);
}
