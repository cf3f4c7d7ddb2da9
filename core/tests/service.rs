//! The authorization door: every kind of operation against every caller, and what apply makes of it.

mod common;

use common::{Player, change, draft, first_member, key, node, vcluster};
use muster_core::ids::{ClusterId, NodeId, OneShotId, ReplicaName, Seq, VClusterId};
use muster_core::journal::command::{ConfigState, JournalCommand};
use muster_core::journal::entry::{Author, EntryDraft, EntryType, Principal, Role};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::policy::Policy;
use muster_core::members::{Admission, Member, MemberCommand, MemberWish};
use muster_core::query::Query;
use muster_core::request::{Command, NotApplied, Outcome, Refusal, Reply, RequestId, UnknownWhy, WriteRequest};
use muster_core::service::local::{self, LocalRoles, Process};
use muster_core::service::{
    About, Caller, Credential, Fleet, Kind, OneNode, Operation, allow, allow_anonymous, allow_write, shows, table,
};
use muster_core::state::State;
use std::collections::BTreeMap;
use std::sync::Arc;

/// `gpu1` and `gpu2` are in `ml`, `cpu1` is in `hpc`, `new` is in none.
struct Nodes(BTreeMap<NodeId, VClusterId>);

impl Nodes {
    fn new() -> Self {
        Self([("gpu1", "ml"), ("gpu2", "ml"), ("cpu1", "hpc")].map(|(n, v)| (name(n), in_vcluster(v))).into())
    }
}

impl Fleet for Nodes {
    fn vcluster_of(&self, node: &NodeId) -> Option<&VClusterId> {
        self.0.get(node)
    }
}

fn name(text: &str) -> NodeId {
    NodeId::new(text).unwrap()
}

fn in_vcluster(text: &str) -> VClusterId {
    VClusterId::new(text).unwrap()
}

fn author(role: Role) -> Author {
    Author { principal: Principal::Certificate { subject: Arc::from("somebody") }, role }
}

/// Everybody who could ask, in the order of the columns below.
fn callers() -> [(&'static str, Caller); 12] {
    let by = |role| Caller::Author(author(role));
    let replica = |name| Caller::Replica(ReplicaName::new(name).unwrap());
    [
        ("admin", by(Role::Admin)),
        ("operator of ml", by(Role::Operator(in_vcluster("ml")))),
        ("operator of hpc", by(Role::Operator(in_vcluster("hpc")))),
        ("viewer of ml", by(Role::Viewer(in_vcluster("ml")))),
        ("viewer of hpc", by(Role::Viewer(in_vcluster("hpc")))),
        ("agent of gpu1", by(Role::Agent(name("gpu1")))),
        ("agent of gpu2", by(Role::Agent(name("gpu2")))),
        ("agent of cpu1", by(Role::Agent(name("cpu1")))),
        ("replica r1", replica("r1")),
        ("replica r2", replica("r2")),
        ("nobody", Caller::Nobody),
        ("the cluster itself", by(Role::System)),
    ]
}

const ABOUT: [&str; 5] = ["the cluster", "global", "vcluster:ml", "node:gpu1", "member r1"];

fn about(text: &str) -> About {
    match text {
        "the cluster" => About::Cluster,
        "member r1" => About::Member(ReplicaName::new("r1").unwrap()),
        scope => About::Scope(scope.parse().unwrap()),
    }
}

/// Who may, for each of `ABOUT`: a column for each of `callers()`, in order. The match names every kind: one more does not
/// compile until somebody has decided who may.
fn expected(kind: Kind) -> [&'static str; 5] {
    let admin = "A-----------";
    let admin_only = [admin; 5];
    // Operators of the vCluster and agents of the node write their own; nobody but admins writes Global.
    let own = [admin, admin, "AO----------", "AO---a------", admin];
    let through_the_agent = [admin, admin, "AO----------", "AO----------", admin];
    let looking_through_the_agent = [admin, admin, "AO-V--------", "AO-V--------", admin];
    let counts = ["AOOVVaaa----", "AOOVVaaa----", "AO-V-aa-----", "AO-V-a------", admin];
    match kind {
        Kind::Declare | Kind::RollBack | Kind::Report | Kind::Emergency | Kind::RecordOperation => own,
        Kind::AssignNode | Kind::MindReplica => admin_only,
        Kind::StoreOverlay | Kind::ChangeMembers => ["A----------s"; 5],
        Kind::Session => ["AOO--aaa----"; 5],
        Kind::Admit => ["A----------s", "A----------s", "A----------s", "A----------s", "A-------r--s"],
        Kind::Keep => ["-----------s"; 5],
        Kind::Observe | Kind::AskWhoIsFree => ["AOOVVaaarr--"; 5],
        Kind::Read | Kind::ReadHistory => counts,
        Kind::Verify => ["AOOVV-------"; 5],
        Kind::Boot => [admin, admin, "AO-V--------", "AO-V-a------", admin],
        Kind::Peer => ["--------rr--"; 5],
        Kind::LookAtNode => looking_through_the_agent,
        // A vCluster's policy is its operators' too.
        Kind::SetPolicy
        | Kind::SetOnNode
        | Kind::CommitOnNode
        | Kind::RollBackOnNode
        | Kind::ExtendWindow
        | Kind::EmergencyOnNode
        | Kind::Exec
        | Kind::Shell => through_the_agent,
    }
}

#[test]
fn every_operation_is_allowed_to_exactly_the_roles_of_the_table() {
    let fleet = Nodes::new();
    let mut wrong = Vec::new();
    for kind in Kind::ALL {
        for (text, columns) in ABOUT.iter().zip(expected(*kind)) {
            for ((who, caller), column) in callers().iter().zip(columns.chars()) {
                let operation = Operation { kind: *kind, about: about(text) };
                let answer = allow(caller, &operation, &fleet);
                if answer.is_ok() != (column != '-') {
                    wrong.push(format!("{kind:?} about {text} by {who}: {answer:?}"));
                }
                if let Err(denied) = answer {
                    assert!(denied.problem.contains(" may not ") && denied.problem.contains(": it takes "), "{denied}");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nobody_may_boot_where_that_was_set_and_ask_who_is_free_to_and_nothing_else() {
    for kind in Kind::ALL {
        let operation = Operation::on_node(*kind, name("gpu1"));
        let open = matches!(kind, Kind::Boot | Kind::AskWhoIsFree);
        assert_eq!(allow_anonymous(&operation).is_ok(), open, "{kind:?}");
        assert!(allow(&Caller::Nobody, &operation, &Nodes::new()).is_err(), "{kind:?}");
    }
}

#[test]
fn a_denial_names_what_it_takes_and_tells_nobody_where_a_foreign_node_is() {
    let operator = Caller::Author(author(Role::Operator(in_vcluster("ml"))));
    let denied = allow(&operator, &Operation::on_node(Kind::Declare, name("cpu1")), &Nodes::new()).unwrap_err();
    assert_eq!(
        denied.problem,
        "operator of ml may not commit settings (node:cpu1): it takes an admin or an operator of the vCluster that cpu1 is \
         in or the agent of cpu1"
    );
    assert!(denied.may_change);
    let denied = allow(&operator, &Operation::on(Kind::Declare, Scope::Global), &Nodes::new()).unwrap_err();
    assert_eq!(denied.problem, "operator of ml may not commit settings (global): it takes an admin");
    assert!(!denied.may_change);
}

#[test]
fn the_documents_table_is_the_one_in_force() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/security.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (begin, end) = ("<!-- the table of core::service -->\n", "<!-- end of the table -->");
    let (before, rest) = text.split_once(begin).unwrap();
    let (found, after) = rest.split_once(end).unwrap();
    if std::env::var("MUSTER_GOLDEN").is_ok_and(|what| what == "write") {
        std::fs::write(path, format!("{before}{begin}{}{end}{after}", table())).unwrap();
        return;
    }
    assert_eq!(found, table(), "{path} prints another table; MUSTER_GOLDEN=write writes it anew");
}

#[test]
fn a_question_about_nothing_in_particular_is_answered_with_what_counts() {
    let viewer = Caller::Author(author(Role::Viewer(in_vcluster("ml"))));
    let seen = |scope: &str| shows(&viewer, &scope.parse().unwrap(), &Nodes::new());
    assert!(seen("global") && seen("vcluster:ml") && seen("node:gpu2"));
    assert!(!seen("vcluster:hpc") && !seen("node:cpu1") && !seen("node:new"));
    for query in [Query::VClusters, Query::Nodes(None), Query::Summary, Query::Members] {
        assert!(allow(&viewer, &Operation::of_query(&query), &Nodes::new()).is_ok(), "{query:?}");
    }
    for query in [Query::Node(name("cpu1")), Query::Policy(in_vcluster("hpc")), Query::Nodes(Some(in_vcluster("hpc")))]
    {
        assert!(allow(&viewer, &Operation::of_query(&query), &Nodes::new()).is_err(), "{query:?}");
    }
}

#[test]
fn what_no_node_can_be_is_refused_where_it_arrives_naming_key_and_what_would_be_accepted() {
    let player = fleet();
    let asked = |entry_type, scope: &str, key: &str, next: Setting| {
        let mut entry = draft(entry_type, scope.parse().unwrap(), Seq(0));
        entry.changes = vec![change(Key::new(key).unwrap(), next)];
        let request = RequestId::OneShot { id: OneShotId(1), drawn_at: player.state.age() };
        allow_write(&WriteRequest { request, author: author(Role::Admin), command: append(entry) }, &player.state)
    };
    let value = |text: &str| Setting::Value(Arc::from(text));
    for (key, next, wants) in [
        ("services:sshd", value("up"), "'running' or 'stopped'"),
        ("files:etc/motd", value("hello"), "an absolute path"),
        ("mounts:/data", value("/dev/sdb1"), "SOURCE FSTYPE"),
        ("kernel:vm.swappiness", Setting::Absent, "a value"),
        ("files:/etc/motd", value("@muster"), "@file"),
    ] {
        for entry_type in [EntryType::Commit, EntryType::AutoConverge, EntryType::BootConfig] {
            let refusal = asked(entry_type, "global", key, next.clone()).unwrap_err();
            let NotApplied::Refused(Refusal::Invalid { field, problem }) = &refusal else { panic!("{refusal:?}") };
            assert!(**field == *key && problem.contains("expected") && problem.contains(wants), "{key}: {problem}");
        }
        // What was seen is recorded as it was, and what was declared before somebody looked can be taken off.
        asked(EntryType::DriftDetected, "node:n0", key, next).unwrap();
        asked(EntryType::Commit, "global", key, Setting::Unset).unwrap();
    }
    asked(EntryType::Commit, "global", "services:sshd", value("running")).unwrap();
    asked(EntryType::BootConfig, "node:n0", Key::vcluster().as_str(), value(vcluster(0).as_str())).unwrap();
}

#[test]
fn what_may_be_run_in_a_vcluster_its_operators_say_and_nobody_elses() {
    let mut player = fleet();
    let policy = || Policy { exec_allow: vec!["dmesg".into()], ..Policy::default() };
    let set = |of: u8| Command::Journal(JournalCommand::SetPolicy { vcluster: vcluster(of), policy: policy() });
    applied(&by(&mut player, Role::Operator(vcluster(0)), set(0)));
    let refused = [(Role::Operator(vcluster(0)), 1), (Role::Viewer(vcluster(0)), 0), (Role::Agent(node(0)), 0)];
    for (role, of) in refused {
        forbidden(&by(&mut player, role, set(of)));
    }
}

#[test]
fn an_agent_judges_its_own_node_by_what_it_booted_into() {
    let fleet = OneNode { node: name("gpu1"), vcluster: Some(in_vcluster("ml")) };
    let operator = |of| Caller::Author(author(Role::Operator(in_vcluster(of))));
    let exec = |node| Operation::on_node(Kind::Exec, name(node));
    assert!(allow(&operator("ml"), &exec("gpu1"), &fleet).is_ok());
    assert!(allow(&operator("hpc"), &exec("gpu1"), &fleet).is_err());
    assert!(allow(&operator("ml"), &exec("gpu2"), &fleet).is_err());
}

// ---- who that is ----

#[test]
fn a_credential_is_read_as_it_is_printed() {
    for (uri, role, name) in [
        ("muster://prod/admin/alice@example.org", "admin", "alice@example.org"),
        ("muster://prod/operator/ml/bob", "operator:ml", "bob"),
        ("muster://prod/viewer/ml/carol", "viewer:ml", "carol"),
        ("muster://prod/agent/gpu017", "agent", "gpu017"),
        ("muster://prod/replica/journal-1", "replica", "journal-1"),
    ] {
        let credential: Credential = uri.parse().unwrap();
        assert_eq!((credential.to_string().as_str(), credential.cluster()), (uri, "prod"));
        assert_eq!((credential.role().as_str(), credential.name()), (role, name));
        assert_eq!(Credential::new("prod", role, name).unwrap(), credential);
        if let Caller::Author(author) = credential.caller() {
            assert_eq!(author.principal, Principal::Certificate { subject: Arc::from(uri) });
        }
    }
}

#[test]
fn what_is_no_credential_is_refused_with_what_would_be() {
    for wrong in [
        "",
        "muster://",
        "muster://prod",
        "muster://prod/admin",
        "muster://prod/admin/",
        "muster://prod/admin/a/b",
        "muster://prod/root/alice",
        "muster://prod/operator/alice",
        "muster://prod/operator/ml/alice/more",
        "muster:///admin/alice",
        "muster://prod/agent/../admin",
        "muster://prod/agent/gpu 1",
        "https://prod/admin/alice",
        "muster://prod/system/expiry",
        &format!("muster://prod/admin/{}", "a".repeat(300)),
    ] {
        let error = wrong.parse::<Credential>().unwrap_err();
        assert!(error.problem.contains("expected muster://CLUSTER/"), "{wrong}: {error}");
    }
}

#[test]
fn the_kernels_word_is_a_role_for_root_and_whom_the_configuration_names() {
    let role = |uid, gids: &[u32], roles: &LocalRoles| match local::caller(
        &Process { uid, gids: gids.to_vec() },
        &name("gpu1"),
        roles,
    ) {
        Caller::Author(author) => Some((author.principal.to_string(), author.role)),
        Caller::Replica(_) | Caller::Nobody => None,
    };
    let usual = LocalRoles::default();
    assert_eq!(role(0, &[0], &usual), Some(("claimed:uid:0@gpu1".into(), Role::Admin)));
    assert_eq!(role(1_000, &[1_000], &usual), None);
    let operator = Role::Operator(in_vcluster("ml"));
    let roles = LocalRoles {
        users: BTreeMap::from([(1_000, Role::Viewer(in_vcluster("ml"))), (7, Role::System)]),
        groups: BTreeMap::from([(50, operator.clone())]),
    };
    assert_eq!(
        role(1_000, &[50], &roles).unwrap().1,
        Role::Viewer(in_vcluster("ml")),
        "a user counts before its groups"
    );
    assert_eq!(role(1_001, &[1_001, 50], &roles).unwrap().1, operator);
    assert_eq!(role(0, &[0], &roles), None, "root is what the configuration says, once it says anything");
    assert_eq!(role(7, &[], &roles), None, "nobody on a socket is the cluster itself");
}

// ---- in apply ----

/// `n0` is in `hpc-a`, sequence 3; `hpc-b` is known too.
fn fleet() -> Player {
    let mut player = Player::new();
    for which in 0..2 {
        let command = JournalCommand::SetPolicy { vcluster: vcluster(which), policy: Policy::default() };
        applied(&player.give(Command::Journal(command)));
    }
    applied(&assign(&mut player, 0));
    player
}

#[track_caller]
fn applied(outcome: &Outcome) -> Reply {
    match outcome {
        Outcome::Applied { reply, .. } => reply.clone(),
        other => panic!("expected it applied, got {other:?}"),
    }
}

#[track_caller]
fn forbidden(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Refused(Refusal::Forbidden { problem }) => problem.to_string(),
        other => panic!("expected it forbidden, got {other:?}"),
    }
}

fn assign(player: &mut Player, to: u8) -> Outcome {
    let mut assignment = draft(EntryType::BootConfig, Scope::Node(node(0)), player.state.sequence());
    assignment.changes = vec![change(Key::vcluster(), Setting::Value(Arc::from(vcluster(to).as_str())))];
    player.append(assignment)
}

fn by(player: &mut Player, role: Role, command: Command) -> Outcome {
    by_author(player, author(role), command)
}

fn by_author(player: &mut Player, author: Author, command: Command) -> Outcome {
    let id = OneShotId(u128::from(player.state.sequence().0) << 64 | u128::from(player.log.len() as u64) | 1 << 120);
    let request = RequestId::OneShot { id, drawn_at: player.state.age() };
    player.submit(WriteRequest { request, author, command })
}

fn append(draft: EntryDraft) -> Command {
    Command::Journal(JournalCommand::AppendEntry(draft))
}

fn commit(player: &Player, scope: Scope) -> Command {
    let mut commit = draft(EntryType::Commit, scope, player.state.sequence());
    commit.changes = vec![change(key(0), Setting::Value(Arc::from("1")))];
    append(commit)
}

#[test]
fn membership_is_what_it_is_at_the_entry() {
    let mut player = fleet();
    let write = commit(&player, Scope::Node(node(0)));
    applied(&by(&mut player, Role::Operator(vcluster(0)), write));
    // The same operator's next write was on its way when the node moved.
    let write = commit(&player, Scope::Node(node(0)));
    applied(&assign(&mut player, 1));
    let before = player.state.sequence();
    assert!(forbidden(&by(&mut player, Role::Operator(vcluster(0)), write)).contains("operator of hpc-a may not"));
    assert_eq!(player.state.sequence(), before, "a refusal records nothing");
    let write = commit(&player, Scope::Node(node(0)));
    applied(&by(&mut player, Role::Operator(vcluster(1)), write));
}

#[test]
fn an_operator_moves_no_node_not_even_by_a_rollback() {
    let mut player = fleet();
    let moved = applied(&assign(&mut player, 1));
    assert!(matches!(moved, Reply::Recorded { .. }));
    let mut rollback = draft(EntryType::Rollback, Scope::Node(node(0)), Seq(3));
    rollback.based_on = Some(player.state.sequence());
    let problem = forbidden(&by(&mut player, Role::Operator(vcluster(1)), append(rollback.clone())));
    assert!(problem.contains("put a node into a vCluster or take it out"), "{problem}");
    let problem = forbidden(&by(&mut player, Role::Agent(node(0)), append(rollback.clone())));
    assert!(problem.contains("it takes an admin"), "{problem}");
    applied(&by(&mut player, Role::Admin, append(rollback)));
    assert_eq!(player.state.journal.node(&node(0)).unwrap().vcluster, Some(vcluster(0)));
}

#[test]
fn an_agent_reports_on_its_own_node_and_no_other() {
    let mut player = fleet();
    let report = |state| Command::Journal(JournalCommand::UpdateNodeState { node: node(0), state });
    applied(&by(&mut player, Role::Agent(node(0)), report(ConfigState::Drifted)));
    forbidden(&by(&mut player, Role::Agent(node(1)), report(ConfigState::Committed)));
    forbidden(&by(&mut player, Role::Viewer(vcluster(0)), report(ConfigState::Committed)));
}

#[test]
fn a_session_is_its_openers_alone() {
    let mut player = fleet();
    let alice = Author { principal: Principal::Claimed { name: Arc::from("alice") }, role: Role::Admin };
    let mallory = Author { principal: Principal::Claimed { name: Arc::from("mallory") }, role: Role::Admin };
    let Reply::Session { session } = applied(&by_author(&mut player, alice.clone(), Command::OpenSession)) else {
        panic!("not a session");
    };
    let in_session = |author: &Author, number, acknowledged, player: &mut Player| {
        let request = RequestId::Session { session, number, acknowledged };
        let command = commit(player, Scope::Global);
        player.submit(WriteRequest { request, author: author.clone(), command })
    };
    let first = in_session(&alice, 1, 0, &mut player);
    applied(&first);
    // Neither the reply is told, nor is it acknowledged away, nor a number used up, nor the session kept alive.
    for (number, acknowledged) in [(1, 0), (2, 0), (2, 1), (3, u64::MAX)] {
        let problem = forbidden(&in_session(&mallory, number, acknowledged, &mut player));
        assert!(problem.contains("opened by somebody else"), "{problem}");
    }
    assert_eq!(in_session(&alice, 1, 0, &mut player), first, "the reply is still kept");
    applied(&in_session(&alice, 2, 0, &mut player));
    let pages: Vec<_> = player.state.pages().collect();
    let mut again = State::from_pages(pages).unwrap();
    std::mem::swap(&mut player.state, &mut again);
    forbidden(&in_session(&mallory, 3, 0, &mut player));
    assert!(matches!(in_session(&alice, 1, 2, &mut player), Outcome::Unknown(UnknownWhy::AlreadyAcknowledged)));
}

#[test]
fn an_agent_keeps_its_session_whoever_it_speaks_for() {
    let mut player = fleet();
    let agent = author(Role::Agent(node(0)));
    let Reply::Session { session } = applied(&by_author(&mut player, agent, Command::OpenSession)) else {
        panic!("not a session");
    };
    let speaking_for =
        Author { principal: Principal::Claimed { name: Arc::from("uid:0@n0") }, role: Role::Agent(node(0)) };
    let other = Author { role: Role::Agent(node(1)), ..speaking_for.clone() };
    let command = commit(&player, Scope::Node(node(0)));
    let request = |number| RequestId::Session { session, number, acknowledged: 0 };
    applied(&player.submit(WriteRequest { request: request(1), author: speaking_for, command: command.clone() }));
    forbidden(&player.submit(WriteRequest { request: request(2), author: other, command }));
}

#[test]
fn the_cluster_itself_gives_its_own_commands_and_no_others() {
    let mut player = fleet();
    assert!(matches!(player.system("expiry", Command::Expire), Outcome::Applied { .. }));
    let admission = |wish| Admission {
        name: ReplicaName::new("r2").unwrap(),
        incarnation: muster_core::ids::Incarnation(2),
        peer_address: Arc::from("10.0.0.2:9444"),
        client_address: Arc::from("10.0.0.2:9443"),
        wish,
        feature_level: muster_core::limits::FEATURE_LEVEL,
    };
    let admit = |wish| Command::Members(MemberCommand::Admit(admission(wish)));
    assert!(matches!(player.system("membership", admit(MemberWish::Voter)), Outcome::Applied { .. }));
    let command = commit(&player, Scope::Global);
    forbidden(&player.system("expiry", command));
    forbidden(&by(&mut player, Role::Admin, Command::Expire));
    for role in [Role::Operator(vcluster(0)), Role::Viewer(vcluster(0)), Role::Agent(node(0))] {
        forbidden(&by(&mut player, role, admit(MemberWish::Learner)));
    }
}

#[test]
fn below_the_doors_feature_level_apply_decides_as_it_did() {
    let mut player = Player::new();
    player.state = State::new(ClusterId(1), Member { feature_level: 1, ..first_member() });
    let command = JournalCommand::SetPolicy { vcluster: vcluster(0), policy: Policy::default() };
    applied(&by(&mut player, Role::Viewer(vcluster(1)), Command::Journal(command)));
}
