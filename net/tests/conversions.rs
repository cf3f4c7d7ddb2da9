//! What goes over the wire comes back as it was, and what does not fit is refused with its field.

use muster_core::ids::{Age, Index, OneShotId, ReplicaId, Seq, SessionId, WallTime};
use muster_core::journal::command::{ConfigState, JournalCommand};
use muster_core::journal::entry::{
    Author, Change, ConfigEntry, EntryDraft, EntryType, OperationDraft, OperationKind, Principal, Record, Role,
};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::policy::{Milli, Mode, Policy};
use muster_core::members::{MemberCommand, MemberWish};
use muster_core::request::{Command, NotApplied, Outcome, Refusal, Reply, RequestId, UnknownWhy, WriteRequest};
use muster_net::convert::Wire;
use muster_net::proto::v1 as wire;
use proptest::prelude::*;
use std::sync::Arc;

fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9._-]{0,20}"
}

fn scopes() -> impl Strategy<Value = Scope> {
    prop_oneof![
        Just(Scope::Global),
        name().prop_map(|name| Scope::VCluster(name.parse().unwrap())),
        name().prop_map(|name| Scope::Node(name.parse().unwrap())),
    ]
}

fn settings() -> impl Strategy<Value = Setting> {
    prop_oneof![Just(Setting::Unset), Just(Setting::Absent), ".{0,30}".prop_map(|text| Setting::Value(text.into()))]
}

fn keys() -> impl Strategy<Value = Key> {
    prop_oneof![Just(Key::vcluster()), name().prop_map(|name| Key::new(&format!("kernel:{name}")).unwrap())]
}

fn changes() -> impl Strategy<Value = Change> {
    (keys(), settings(), settings()).prop_map(|(key, previous, next)| Change { key, previous, next })
}

fn authors() -> impl Strategy<Value = Author> {
    let principal = prop_oneof![
        ".{0,9}".prop_map(|subject| Principal::Certificate { subject: subject.into() }),
        (".{0,9}", ".{0,9}").prop_map(|(i, s)| Principal::Oidc { issuer: i.into(), subject: s.into() }),
        ".{0,9}".prop_map(|name| Principal::Claimed { name: name.into() }),
        ".{0,9}".prop_map(|part| Principal::System { part: part.into() }),
    ];
    let role = prop_oneof![
        Just(Role::Admin),
        Just(Role::System),
        name().prop_map(|name| Role::Operator(name.parse().unwrap())),
        name().prop_map(|name| Role::Viewer(name.parse().unwrap())),
        name().prop_map(|name| Role::Agent(name.parse().unwrap())),
    ];
    (principal, role).prop_map(|(principal, role)| Author { principal, role })
}

fn policies() -> impl Strategy<Value = Policy> {
    let mode = prop_oneof![Just(Mode::Observe), Just(Mode::Warn), Just(Mode::Enforce)];
    (any::<[u32; 7]>(), any::<[u32; 4]>(), any::<bool>(), mode, prop::collection::vec(".{0,9}", 0..3)).prop_map(
        |(weights, [base, sensitivity, min, emergency], emergency_allowed, mode, exec)| Policy {
            base_window_seconds: base,
            sensitivity: Milli(sensitivity),
            weights: weights.map(Milli),
            min_window_seconds: min,
            emergency_allowed,
            emergency_window_seconds: emergency,
            mode,
            exec_allow: exec.into_iter().map(Arc::from).collect(),
        },
    )
}

fn types() -> impl Strategy<Value = EntryType> {
    prop::sample::select(EntryType::ALL.to_vec())
}

fn commands() -> impl Strategy<Value = Command> {
    let draft = (
        (types(), scopes(), any::<u64>(), any::<Option<u64>>(), prop::collection::vec(changes(), 0..4)),
        (any::<Option<u32>>(), prop::option::of(".{0,9}"), ".{0,9}", any::<Option<u64>>()),
    )
        .prop_map(|((entry_type, scope, parent, based_on, changes), (ttl_seconds, reason, message, at))| {
            EntryDraft {
                entry_type,
                scope,
                parent: Seq(parent),
                based_on: based_on.map(Seq),
                changes,
                ttl_seconds,
                emergency_reason: reason.map(Arc::from),
                message: message.into(),
                occurred_at: at.map(WallTime),
            }
        });
    let operation = (scopes(), ".{0,9}", any::<Option<i32>>()).prop_map(|(scope, detail, exit_status)| {
        let (kind, detail) = (OperationKind::ShellEnd, detail.into());
        OperationDraft { kind, scope, detail, exit_status, occurred_at: None }
    });
    prop_oneof![
        draft.prop_map(|draft| Command::Journal(JournalCommand::AppendEntry(draft))),
        operation.prop_map(|draft| Command::Journal(JournalCommand::RecordOperation(draft))),
        (name(), policies()).prop_map(|(vcluster, policy)| {
            Command::Journal(JournalCommand::SetPolicy { vcluster: vcluster.parse().unwrap(), policy })
        }),
        name().prop_map(|node| {
            let (node, state) = (node.parse().unwrap(), ConfigState::Converging);
            Command::Journal(JournalCommand::UpdateNodeState { node, state })
        }),
        any::<[u64; 2]>().prop_map(|[old, new]| {
            Command::Members(MemberCommand::Replace { old: ReplicaId(old), new: ReplicaId(new) })
        }),
        Just(Command::OpenSession),
        Just(Command::CloseSession),
    ]
}

proptest! {
    #[test]
    fn writes_come_back_as_they_were(author in authors(), command in commands(), id in any::<u128>(), n in any::<[u64; 3]>()) {
        for request in [
            RequestId::OneShot { id: OneShotId(id), drawn_at: Age(n[0]) },
            RequestId::Session { session: SessionId(n[0]), number: n[1], acknowledged: n[2] },
        ] {
            let write = WriteRequest { request, author: author.clone(), command: command.clone() };
            prop_assert_eq!(&WriteRequest::from_wire(write.to_wire()).unwrap(), &write);
        }
    }

    #[test]
    fn records_come_back_as_they_were(
        author in authors(), scope in scopes(), delta in prop::collection::vec(changes(), 0..4),
        off in prop::collection::vec((keys(), any::<u64>()), 0..3), policy in prop::option::of(policies()),
        entry_type in types(), n in any::<[u64; 4]>(), o in any::<[Option<u64>; 3]>(),
    ) {
        let record = Record::Entry(ConfigEntry {
            sequence: Seq(n[0]), recorded_at: WallTime(n[1]), occurred_at: o[0].map(WallTime), entry_type, scope, author,
            parent: Seq(n[2]), based_on: o[1].map(Seq), delta,
            takes_off: off.into_iter().map(|(key, seq)| (key, Seq(seq))).collect(),
            policy_ref: o[2].map(Seq), policy, ttl_seconds: None, emergency_reason: None, message: "m".into(),
        });
        prop_assert_eq!(&Record::from_wire(record.to_wire()).unwrap(), &record);
    }

    #[test]
    fn conflicts_come_back_as_they_were(key in keys(), theirs in settings(), yours in settings(), n in any::<u64>()) {
        let outcome = Outcome::Refused(Refusal::Conflict { key, theirs, theirs_sequence: Seq(n), yours });
        prop_assert_eq!(&Outcome::from_wire(outcome.to_wire()).unwrap(), &outcome);
    }
}

#[test]
fn every_outcome_comes_back_as_it_was() {
    let key = || Key::new("kernel:a").unwrap();
    let applied = |reply| Outcome::Applied { index: Index(4), reply };
    let (from, to) = (ConfigState::Committed, ConfigState::Emergency);
    let all = [
        applied(Reply::Recorded { sequence: Seq(3) }),
        applied(Reply::NodeState { state: ConfigState::Drifted }),
        applied(Reply::Overlay { version: Seq(3) }),
        applied(Reply::Session { session: SessionId(3) }),
        applied(Reply::SessionClosed),
        applied(Reply::Admitted { replica: ReplicaId(3) }),
        applied(Reply::Membership),
        applied(Reply::Expired { count: 3 }),
        applied(Reply::FeatureLevel { level: 3 }),
        Outcome::Refused(Refusal::Invalid { field: "f".into(), problem: "p".into() }),
        Outcome::Refused(Refusal::UnknownScope { scope: "s".into(), hint: "h".into() }),
        Outcome::Refused(Refusal::FutureParent { parent: Seq(9), head: Seq(3) }),
        Outcome::Refused(Refusal::TargetRolledBack { key: key(), pair: Seq(1), taken_off_by: Seq(2) }),
        Outcome::Refused(Refusal::TooFarBack { key: key(), remembered_from: Seq(2) }),
        Outcome::Refused(Refusal::NothingToRollBack),
        Outcome::Refused(Refusal::TooManyTemporary { key: key(), max: 3 }),
        Outcome::Refused(Refusal::IllegalTransition { from, to }),
        Outcome::Refused(Refusal::Emergency { problem: "p".into() }),
        Outcome::Refused(Refusal::Forbidden { problem: "p".into() }),
        Outcome::Refused(Refusal::Overlay { problem: "p".into() }),
        Outcome::Refused(Refusal::Membership { problem: "p".into() }),
        Outcome::NotApplied(NotApplied::NoQuorum),
        Outcome::NotApplied(NotApplied::NotLeader { leader: ReplicaId(2), address: "a:1".into() }),
        Outcome::NotApplied(NotApplied::Busy { retry_after_ms: 3 }),
        Outcome::NotApplied(NotApplied::TooLarge { bytes: 9, bytes_max: 3 }),
        Outcome::NotApplied(NotApplied::Superseded),
        Outcome::NotApplied(NotApplied::Stopping),
        Outcome::NotApplied(NotApplied::FeatureLevel { needs: 2, has: 1 }),
        Outcome::NotApplied(NotApplied::Refused(Refusal::NothingToRollBack)),
        Outcome::Unknown(UnknownWhy::TimedOut),
        Outcome::Unknown(UnknownWhy::ForwardTimedOut),
        Outcome::Unknown(UnknownWhy::SessionUnknown),
        Outcome::Unknown(UnknownWhy::AlreadyAcknowledged),
        Outcome::Unknown(UnknownWhy::OneShotExpired),
        Outcome::Unknown(UnknownWhy::ConnectionLost),
    ];
    for outcome in all {
        assert_eq!(Outcome::from_wire(outcome.to_wire()).unwrap(), outcome);
    }
    for wish in [MemberWish::Learner, MemberWish::Voter, MemberWish::Replacement { of: ReplicaId(3) }] {
        assert_eq!(MemberWish::from_wire(wish.to_wire()).unwrap(), wish);
    }
}

#[test]
fn a_wrong_field_is_named_with_its_path() {
    let change = wire::Change { key: "nonsense".to_owned(), ..wire::Change::default() };
    let draft = wire::EntryDraft {
        entry_type: EntryType::Commit.to_wire(),
        scope: Some(Scope::Global.to_wire()),
        changes: vec![wire::Change { key: "kernel:a".to_owned(), ..wire::Change::default() }, change],
        ..wire::EntryDraft::default()
    };
    let command = wire::Command { command: Some(wire::command::Command::AppendEntry(draft)) };
    let error = Command::from_wire(command).unwrap_err();
    assert_eq!(error.field, "append_entry.changes[1].key");
    assert!(error.problem.contains("DIMENSION:NAME"), "{}", error.problem);
    let error = Command::from_wire(wire::Command::default()).unwrap_err();
    assert!(error.problem.contains("append_entry"), "{error}");
}

#[test]
fn the_leaders_own_commands_have_no_place_on_the_wire() {
    for command in [Command::Expire, Command::RaiseFeatureLevel(2)] {
        assert!(Command::from_wire(command.to_wire()).is_err());
    }
}
