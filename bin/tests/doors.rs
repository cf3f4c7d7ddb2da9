//! The door, over every transport: every operation, asked by every role, is let pass exactly as the table of `core::service` says.
//!
//! What is expected is not written here. It is what [`allow`] says of the caller that a certificate (or a user at the socket) is and
//! of the operation that a request stands for. Written here is only how each kind of operation is asked, and by which transport:
//! a kind without a way does not compile, and a method of an interface that nobody asks fails. Where a list is asked for, what it
//! shows is held against the table too.

mod common;

use common::agent::Agent;
use common::secured::{Secured, Term, curl, openssl_certificate};
use common::{eventually, muster};
use futures_util::{StreamExt as _, stream};
use muster_core::agent::drift::DriftVector;
use muster_core::agent::fleet::NodeReport;
use muster_core::agent::operator::{Consent, Phase, Refused, Reply, Request, Which};
use muster_core::ids::{Digest, Incarnation, NodeId, OneShotId, ReplicaName, Seq, VClusterId};
use muster_core::journal::command::{ConfigState, JournalCommand};
use muster_core::journal::entry::{
    Author, Change, EntryDraft, EntryType, OperationDraft, OperationKind, Principal, Record,
};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::overlay::BootOverlay;
use muster_core::journal::policy::{Mode, Policy};
use muster_core::members::{Admission, MemberCommand, MemberWish};
use muster_core::query::{Answer, Query};
use muster_core::request::{AdminRequest, Command, Freshness, NotApplied, Outcome, Refusal, RequestId, WriteRequest};
use muster_core::service::local::{self, LocalRoles, Process};
use muster_core::service::{About, Caller, Credential, Fleet, Kind, Operation, Rule, allow, shows};
use muster_net::convert::Wire;
use muster_net::proto::agent::v1 as agent;
use muster_net::proto::agent::v1::agent_client::AgentClient;
use muster_net::proto::peer::peer_client::PeerClient;
use muster_net::proto::v1::muster_client::MusterClient;
use muster_net::proto::{peer, v1};
use muster_net::tls::{Expect, KeyFiles, Tls, dial};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// `gpu1` and `gpu2` are in `ml`, `cpu1` is in `hpc`: as `Secured::fleet` makes it.
struct Nodes(BTreeMap<NodeId, VClusterId>);

impl Nodes {
    fn new() -> Self {
        Self([("gpu1", "ml"), ("gpu2", "ml"), ("cpu1", "hpc")].map(|(node, of)| (name(node), vcluster(of))).into())
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

fn vcluster(text: &str) -> VClusterId {
    VClusterId::new(text).unwrap()
}

/// Everybody who has a certificate: role and name.
const HOLDERS: [(&str, &str); 10] = [
    ("admin", "root"),
    ("operator:ml", "olga"),
    ("operator:hpc", "otto"),
    ("viewer:ml", "vera"),
    ("viewer:hpc", "viktor"),
    ("agent", "gpu1"),
    ("agent", "gpu2"),
    ("agent", "cpu1"),
    ("replica", "r1"),
    ("replica", "r2"),
];

/// The policy of `ml`: everything that the tests have run is on the list.
fn policy() -> Policy {
    Policy { exec_allow: vec!["true".into(), "shell".into()], ..Policy::default() }
}

/// How something is asked.
#[allow(clippy::large_enum_variant, reason = "one is asked at a time")]
#[derive(Clone, Debug)]
enum Ask {
    /// At the clients' port, by `Write` and on the pipeline.
    Write(Command),
    /// At the clients' port, by `Query` and on the pipeline.
    Query(Query),
    Age,
    Status,
    Page(String),
    Log(Vec<Scope>),
    Subscribe(v1::subscribe_request::Topic),
    StateAt(Scope),
    Verify,
    Boot(NodeId),
    Admin(AdminRequest),
    Report(NodeReport),
    Fleet,
    Admit(Admission),
    /// At the agent's port and socket.
    Show,
    Watch,
    Node(Request),
    Run(agent::run_begin::What),
    /// At the peers' port.
    Link,
    FetchPage,
    FetchRecords,
}

fn scopes() -> Vec<Scope> {
    ["global", "vcluster:ml", "vcluster:hpc", "node:gpu1", "node:gpu2", "node:cpu1"].map(|s| s.parse().unwrap()).into()
}

fn nodes() -> Vec<NodeId> {
    ["gpu1", "gpu2", "cpu1"].map(name).into()
}

fn entry(entry_type: EntryType, scope: &Scope) -> EntryDraft {
    EntryDraft {
        entry_type,
        scope: scope.clone(),
        parent: Seq(0),
        based_on: None,
        changes: Vec::new(),
        ttl_seconds: None,
        emergency_reason: None,
        message: "asked at every door".into(),
        occurred_at: None,
    }
}

fn append(draft: EntryDraft) -> Ask {
    Ask::Write(Command::Journal(JournalCommand::AppendEntry(draft)))
}

fn change(key: &str, next: &str) -> Change {
    Change { key: Key::new(key).unwrap(), previous: Setting::Unset, next: Setting::Value(next.into()) }
}

fn admission(name: &str, wish: MemberWish) -> Admission {
    let address = || "127.0.0.1:1".into();
    Admission {
        name: ReplicaName::new(name).unwrap(),
        incarnation: Incarnation(9),
        peer_address: address(),
        client_address: address(),
        wish,
        // Too old for the cluster: whom the door lets pass is refused by the rules, and nobody is admitted.
        feature_level: 0,
    }
}

fn overlay() -> BootOverlay {
    let data = bytes::Bytes::from_static(b"none");
    BootOverlay { version: Seq(1), checksum: Digest([0; 32]), data, content_bytes: 4 }
}

/// How each kind of operation is asked, and about whom. Whom the door lets pass does no harm: what is asked changes nothing that
/// the other questions hang on. The match names every kind: one more does not compile until somebody has said how it is asked.
fn ways(kind: Kind) -> Vec<(Operation, Ask)> {
    let of_cluster = |ask| (Operation::of_cluster(kind), ask);
    let of_write = |ask: Ask| match &ask {
        Ask::Write(command) => (Operation::of_command(command), ask),
        other => panic!("{other:?} is no write"),
    };
    let entries = |entry_types: &[EntryType], fill: &dyn Fn(&mut EntryDraft)| {
        let mut ways = Vec::new();
        for scope in scopes() {
            for entry_type in entry_types {
                let mut draft = entry(*entry_type, &scope);
                fill(&mut draft);
                ways.push(of_write(append(draft)));
            }
        }
        ways
    };
    let at_agent = |ask: Ask| (Operation::on_node(kind, name("gpu1")), ask);
    match kind {
        Kind::Declare => entries(&[EntryType::Commit, EntryType::AutoConverge, EntryType::BootConfig], &|draft| {
            draft.changes = vec![change("kernel:a.door", "1")];
        }),
        Kind::AssignNode => nodes()
            .into_iter()
            .map(|node| {
                let stays = Nodes::new().0[&node].to_string();
                let mut draft = entry(EntryType::BootConfig, &Scope::Node(node));
                draft.changes = vec![change(Key::vcluster().as_str(), &stays)];
                of_write(append(draft))
            })
            .collect(),
        Kind::RollBack => entries(&[EntryType::Rollback], &|draft| draft.based_on = Some(Seq(0))),
        Kind::Report => {
            let kinds = [EntryType::DriftDetected, EntryType::CapabilityChange, EntryType::ServiceLifecycle];
            let mut ways = entries(&kinds, &|_| {});
            for node in nodes() {
                let state = ConfigState::Committed;
                let command = JournalCommand::UpdateNodeState { node: node.clone(), state };
                ways.push(of_write(Ask::Write(Command::Journal(command))));
                let report = NodeReport {
                    node: node.clone(),
                    address: "".into(),
                    // Older than whatever the node's own agent tells.
                    word: (0, 0),
                    vcluster: None,
                    phase: Phase::Committed,
                    mode: Mode::Enforce,
                    sequence: Seq(0),
                    drift: DriftVector::default(),
                    window: None,
                    emergency: None,
                    spooled: 0,
                    blocked: 0,
                };
                ways.push((Operation::on_node(kind, node), Ask::Report(report)));
            }
            ways
        }
        // No node is in an emergency: the door comes first.
        Kind::Emergency => entries(&[EntryType::EmergencyEnd], &|_| {}),
        Kind::SetPolicy => ["ml", "hpc"]
            .map(|of| {
                let command = JournalCommand::SetPolicy { vcluster: vcluster(of), policy: policy() };
                of_write(Ask::Write(Command::Journal(command)))
            })
            .into(),
        Kind::StoreOverlay => {
            let command = JournalCommand::SetOverlay { vcluster: vcluster("ml"), overlay: overlay() };
            vec![of_write(Ask::Write(Command::Journal(command)))]
        }
        Kind::RecordOperation => scopes()
            .into_iter()
            .map(|scope| {
                let kind = OperationKind::Exec;
                let draft = OperationDraft { kind, scope, detail: "true".into(), exit_status: None, occurred_at: None };
                of_write(Ask::Write(Command::Journal(JournalCommand::RecordOperation(draft))))
            })
            .collect(),
        Kind::Session => vec![of_write(Ask::Write(Command::OpenSession))],
        Kind::Admit => ["r1", "r2", "r9"]
            .map(|replica| {
                let admission = admission(replica, MemberWish::Learner);
                (Operation::of_admission(&admission), Ask::Admit(admission))
            })
            .into(),
        Kind::ChangeMembers => {
            use muster_core::ids::ReplicaId;
            let nobody = ReplicaId(99);
            let mut ways: Vec<_> = [
                MemberCommand::AddLearner(nobody),
                MemberCommand::Promote(nobody),
                MemberCommand::Demote(nobody),
                MemberCommand::Remove(nobody),
                MemberCommand::Replace { old: nobody, new: ReplicaId(98) },
            ]
            .map(|command| of_write(Ask::Write(Command::Members(command))))
            .into();
            let heir = admission("r9", MemberWish::Replacement { of: nobody });
            ways.push((Operation::of_admission(&heir), Ask::Admit(heir)));
            ways
        }
        // Nobody can ask for it: it has no form on the wire.
        Kind::Keep => {
            for command in [Command::Expire, Command::RaiseFeatureLevel(99)] {
                assert_eq!(Operation::of_command(&command).kind, kind);
                assert!(Command::from_wire(command.to_wire()).is_err(), "{command:?} travels");
            }
            Vec::new()
        }
        Kind::Observe => {
            let mut ways: Vec<_> =
                [Query::Summary, Query::Members].map(|query| (Operation::of_query(&query), Ask::Query(query))).into();
            ways.extend(
                [Ask::Age, Ask::Status, Ask::Page("/health".into()), Ask::Page("/metrics".into())].map(of_cluster),
            );
            ways
        }
        Kind::Read => {
            let mut queries = vec![Query::VClusters, Query::Nodes(None)];
            queries.extend(scopes().into_iter().map(Query::Scope));
            queries.extend(nodes().into_iter().map(Query::Node));
            for of in ["ml", "hpc"].map(vcluster) {
                queries.extend([Query::Policy(of.clone()), Query::Nodes(Some(of))]);
            }
            let mut ways: Vec<_> =
                queries.into_iter().map(|query| (Operation::of_query(&query), Ask::Query(query))).collect();
            ways.extend(scopes().into_iter().map(|scope| (Operation::on(kind, scope.clone()), Ask::StateAt(scope))));
            ways.push(of_cluster(Ask::Fleet));
            ways
        }
        Kind::ReadHistory => {
            use v1::subscribe_request::Topic;
            let topic =
                |scopes: &[Scope]| Topic::Scopes(v1::Scopes { scopes: scopes.iter().map(Wire::to_wire).collect() });
            let mut ways = vec![of_cluster(Ask::Log(Vec::new())), of_cluster(Ask::Subscribe(topic(&[])))];
            for scope in scopes() {
                ways.push((Operation::on(kind, scope.clone()), Ask::Log(vec![scope.clone()])));
                ways.push((Operation::on(kind, scope.clone()), Ask::Subscribe(topic(&[scope]))));
            }
            for node in nodes() {
                let topic = Topic::Node(node.to_string());
                ways.push((Operation::on_node(kind, node), Ask::Subscribe(topic)));
            }
            ways
        }
        Kind::Verify => vec![of_cluster(Ask::Verify)],
        Kind::Boot => {
            let ways = |node: NodeId| {
                [Ask::Page(format!("/v1/boot/{node}")), Ask::Boot(node.clone())]
                    .map(|ask| (Operation::on_node(kind, node.clone()), ask))
            };
            nodes().into_iter().flat_map(ways).collect()
        }
        Kind::AskWhoIsFree => vec![of_cluster(Ask::Page("/v1/free".into()))],
        Kind::MindReplica => vec![of_cluster(Ask::Admin(AdminRequest::Snapshot))],
        Kind::Peer => [Ask::Link, Ask::FetchPage, Ask::FetchRecords].map(of_cluster).into(),
        Kind::LookAtNode => [Ask::Show, Ask::Watch].map(at_agent).into(),
        Kind::SetOnNode => {
            let changes = vec![(Key::new("files:/door").unwrap(), Setting::Value("open".into()))];
            let (consent, merge, message) = (Consent::TellOnly, false, "".into());
            vec![at_agent(Ask::Node(Request::Set { changes, consent, merge, message }))]
        }
        // Nothing differs on the node, no window is open and no emergency is on: the door comes first.
        Kind::CommitOnNode => {
            let request = Request::Commit { which: Which::All, ttl_seconds: None, message: "x".into() };
            vec![at_agent(Ask::Node(request))]
        }
        Kind::RollBackOnNode => vec![at_agent(Ask::Node(Request::Rollback { which: Which::All }))],
        Kind::ExtendWindow => vec![at_agent(Ask::Node(Request::Extend { seconds: 1 }))],
        Kind::EmergencyOnNode => {
            let (reason, force) = (" ".into(), false);
            [Request::EmergencyStart { reason }, Request::EmergencyEnd { force }]
                .map(|request| at_agent(Ask::Node(request)))
                .into()
        }
        Kind::Exec => {
            let arguments = vec!["true".to_owned()];
            vec![at_agent(Ask::Run(agent::run_begin::What::Command(agent::Command { arguments })))]
        }
        Kind::Shell => {
            let shell = agent::Shell { size: None, term: "dumb".to_owned() };
            vec![at_agent(Ask::Run(agent::run_begin::What::Shell(shell)))]
        }
    }
}

/// What somebody was told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    /// The door was passed, whatever came of it then.
    Passed,
    /// The door was passed, and this was shown of what is not to be seen.
    Leaked(Scope),
    /// The door said no.
    Denied(String),
    /// There was no connection.
    Broken(String),
}

fn of_status(status: &Status) -> Told {
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => Told::Denied(status.message().to_owned()),
        _ if std::error::Error::source(status).is_some() => Told::Broken(format!("{status:?}")),
        _ => Told::Passed,
    }
}

fn of_result<T>(result: Result<T, Status>) -> Told {
    result.map_or_else(|status| of_status(&status), |_| Told::Passed)
}

/// What was asked for and what was shown with it: of a list only what `shows` says.
fn of_list<T>(caller: &Caller, listed: Result<T, Status>, scopes: impl FnOnce(T) -> Vec<Scope>) -> Told {
    let fleet = Nodes::new();
    match listed.map(scopes) {
        Err(status) => of_status(&status),
        Ok(scopes) => scopes.into_iter().find(|scope| !shows(caller, scope, &fleet)).map_or(Told::Passed, Told::Leaked),
    }
}

/// What the answer to a question lists.
fn listed(reply: v1::QueryReply) -> Vec<Scope> {
    let Some(v1::query_reply::Result::Answer(answer)) = reply.result else { return Vec::new() };
    match Answer::from_wire(answer).unwrap() {
        Answer::VClusters(listed) => listed.into_iter().map(|listed| Scope::VCluster(listed.vcluster)).collect(),
        Answer::Nodes(listed) => listed.into_iter().map(|listed| Scope::Node(listed.node)).collect(),
        _ => Vec::new(),
    }
}

fn scopes_of(records: Vec<v1::Record>) -> Vec<Scope> {
    records.into_iter().map(|record| Record::from_wire(record).unwrap().scope().clone()).collect()
}

fn of_outcome(outcome: Option<v1::Outcome>) -> Told {
    match Outcome::from_wire(outcome.expect("an outcome")).unwrap() {
        Outcome::Refused(Refusal::Forbidden { problem })
        | Outcome::NotApplied(NotApplied::Refused(Refusal::Forbidden { problem })) => Told::Denied(problem.to_string()),
        Outcome::Refused(_) | Outcome::Applied { .. } | Outcome::NotApplied(_) => Told::Passed,
        Outcome::Unknown(why) => panic!("it hangs: {why:?}"),
    }
}

/// Somebody at a door.
struct Visitor {
    who: String,
    caller: Caller,
    /// Where it asks, and with what.
    clients: Option<MusterClient<Channel>>,
    agent: Option<AgentClient<Channel>>,
    peers: Option<PeerClient<Channel>>,
    /// For pages: the address and curl's arguments.
    pages: Option<(String, Vec<String>)>,
}

/// The methods that were asked, of all interfaces.
static ASKED: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());

fn asked(method: &'static str) {
    ASKED.lock().unwrap().insert(method);
}

fn one_shot() -> RequestId {
    static DRAWN: AtomicU64 = AtomicU64::new(1);
    let id = OneShotId(u128::from(DRAWN.fetch_add(1, Ordering::Relaxed)) << 64 | u128::from(std::process::id()));
    RequestId::OneShot { id, drawn_at: muster_core::ids::Age(0) }
}

async fn first<T>(stream: Result<tonic::Response<tonic::Streaming<T>>, Status>) -> Told {
    match stream {
        Err(status) => of_status(&status),
        Ok(stream) => of_result(stream.into_inner().message().await),
    }
}

impl Visitor {
    async fn pipeline(&self, frame: v1::PipelineRequest) -> Told {
        use v1::tagged_answer::Result as W;
        asked("Pipeline");
        let frames = stream::iter([frame]).chain(stream::pending());
        let mut replies = match self.clients.clone().unwrap().pipeline(frames).await {
            Ok(replies) => replies.into_inner(),
            Err(status) => return of_status(&status),
        };
        match replies.message().await {
            Err(status) => of_status(&status),
            Ok(reply) => {
                let mut reply = reply.expect("an answer");
                match (reply.outcomes.pop(), reply.answers.pop().and_then(|answer| answer.result)) {
                    (Some(outcome), _) => of_outcome(outcome.outcome),
                    (None, Some(W::Reply(reply))) => of_list(&self.caller, Ok(reply), listed),
                    (None, Some(W::Failed(failed))) => {
                        of_status(&Status::new(Code::from_i32(failed.code.try_into().unwrap()), failed.message))
                    }
                    (None, None) => panic!("an empty reply"),
                }
            }
        }
    }

    /// Asks by every method that carries the question. None where this visitor does not stand at that door.
    async fn ask(&self, ask: &Ask) -> Vec<Told> {
        match ask {
            Ask::Show | Ask::Watch | Ask::Node(_) | Ask::Run(_) => match self.agent.clone() {
                Some(door) => vec![Self::ask_agent(door, ask).await],
                None => Vec::new(),
            },
            Ask::Link | Ask::FetchPage | Ask::FetchRecords => match self.peers.clone() {
                Some(door) => vec![Self::ask_peer(door, ask).await],
                None => Vec::new(),
            },
            _ => match self.clients.clone() {
                Some(door) => self.ask_replica(door, ask).await,
                None => Vec::new(),
            },
        }
    }

    async fn ask_replica(&self, mut door: MusterClient<Channel>, ask: &Ask) -> Vec<Told> {
        let told = match ask {
            Ask::Write(command) => {
                // Nobody's own word counts over TLS: the most is claimed.
                let claimed = Principal::Claimed { name: "mallory".into() };
                let author = Author { principal: claimed, role: muster_core::journal::entry::Role::Admin };
                let write = || WriteRequest { request: one_shot(), author: author.clone(), command: command.clone() };
                asked("Write");
                let wire = write().to_wire();
                let told = match door.write(wire).await {
                    Ok(reply) => of_outcome(reply.into_inner().outcome),
                    Err(status) => of_status(&status),
                };
                let write = Some(write().to_wire());
                let writes = vec![v1::TaggedWrite { tag: 1, write }];
                let piped = self.pipeline(v1::PipelineRequest { writes, queries: Vec::new() }).await;
                return vec![told, piped];
            }
            Ask::Query(query) => {
                let question =
                    || v1::QueryRequest { freshness: Some(Freshness::Local.to_wire()), query: Some(query.to_wire()) };
                asked("Query");
                let told = of_list(&self.caller, door.query(question()).await, |reply| listed(reply.into_inner()));
                let queries = vec![v1::TaggedQuery { tag: 1, query: Some(question()) }];
                let piped = self.pipeline(v1::PipelineRequest { writes: Vec::new(), queries }).await;
                return vec![told, piped];
            }
            Ask::Page(path) => {
                let (address, arguments) = self.pages.as_ref().expect("pages are asked for over TLS");
                let url = format!("https://{address}{path}");
                let mut all: Vec<&str> = arguments.iter().map(String::as_str).collect();
                all.extend(["-o", "/dev/null", "-w", "%{http_code}", &url]);
                match curl(&all) {
                    (0, code) if code != "401" && code != "403" => Told::Passed,
                    (_, code) => Told::Denied(code),
                }
            }
            Ask::Age => {
                asked("Age");
                of_result(door.age(v1::AgeRequest {}).await)
            }
            Ask::Status => {
                asked("Status");
                of_result(door.status(v1::StatusRequest {}).await)
            }
            Ask::Log(scopes) => {
                asked("Log");
                let scopes = scopes.iter().map(Wire::to_wire).collect();
                match door.log(v1::LogRequest { scopes, ..v1::LogRequest::default() }).await {
                    Err(status) => of_status(&status),
                    Ok(replies) => {
                        let replies: Vec<_> = replies.into_inner().collect().await;
                        let replies: Result<Vec<_>, Status> = replies.into_iter().collect();
                        of_list(&self.caller, replies, |replies| {
                            replies.into_iter().flat_map(|reply| scopes_of(reply.records)).collect()
                        })
                    }
                }
            }
            Ask::Subscribe(topic) => {
                asked("Subscribe");
                let is_list = matches!(topic, v1::subscribe_request::Topic::Scopes(_));
                let topic = Some(topic.clone());
                match door.subscribe(v1::SubscribeRequest { topic, after: 0, heartbeat_ms: 100 }).await {
                    Err(status) => of_status(&status),
                    Ok(tidings) => {
                        let first = tidings.into_inner().message().await.map(Option::unwrap_or_default);
                        // Of its own node an agent is told whatever concerned it, wherever the node was then.
                        of_list(
                            &self.caller,
                            first,
                            |first| {
                                if is_list { scopes_of(first.records) } else { Vec::new() }
                            },
                        )
                    }
                }
            }
            Ask::StateAt(scope) => {
                asked("StateAt");
                of_result(door.state_at(v1::StateAtRequest { scope: Some(scope.to_wire()), at: None }).await)
            }
            Ask::Verify => {
                asked("Verify");
                of_result(door.verify(v1::VerifyRequest { head: None }).await)
            }
            Ask::Boot(node) => {
                asked("Boot");
                let request = v1::BootRequest { node: node.to_string(), known: None, at_least: 0, insist: false };
                of_result(door.boot(request).await)
            }
            Ask::Admin(request) => {
                asked("Admin");
                of_result(door.admin(request.to_wire()).await)
            }
            Ask::Report(report) => {
                asked("Report");
                of_result(door.report(v1::ReportRequest { author: None, report: Some(report.to_wire()) }).await)
            }
            Ask::Fleet => {
                asked("Fleet");
                let heard = door.fleet(v1::FleetRequest { node: String::new() }).await;
                of_list(&self.caller, heard, |heard| {
                    let reports = heard.into_inner().nodes.into_iter().filter_map(|heard| heard.report);
                    reports.map(|report| Scope::Node(name(&report.node))).collect()
                })
            }
            Ask::Admit(admission) => {
                use v1::admit_reply::Result as W;
                asked("Admit");
                let request = v1::AdmitRequest { admission: Some(admission.to_wire()), author: None };
                match door.admit(request).await.map(|reply| reply.into_inner().result) {
                    Ok(Some(W::Outcome(outcome))) => of_outcome(Some(outcome)),
                    Ok(admitted) => panic!("nobody was to be admitted: {admitted:?}"),
                    Err(status) => of_status(&status),
                }
            }
            other => panic!("{other:?} is asked at another door"),
        };
        vec![told]
    }

    async fn ask_agent(mut door: AgentClient<Channel>, ask: &Ask) -> Told {
        let node = "gpu1".to_owned();
        let refused = |refused: &Refused| match refused {
            Refused::Forbidden { problem } => Told::Denied(problem.to_string()),
            _ => Told::Passed,
        };
        match ask {
            Ask::Show => {
                asked("Show");
                of_result(door.show(agent::ShowRequest { node, author: None }).await)
            }
            Ask::Watch => {
                asked("Watch");
                first(door.watch(agent::ShowRequest { node, author: None }).await).await
            }
            Ask::Node(request) => {
                asked("Ask");
                match door.ask(agent::AskRequest { node, author: None, request: request.to_wire() }).await {
                    Err(status) => of_status(&status),
                    Ok(reply) => match Reply::from_wire(reply.into_inner().reply).unwrap() {
                        Reply::Refused(why) => refused(&why),
                        _ => Told::Passed,
                    },
                }
            }
            Ask::Run(what) => {
                use agent::run_output::Output;
                asked("Run");
                let begin = agent::RunBegin { node, author: None, what: Some(what.clone()) };
                let begin = agent::RunInput { input: Some(agent::run_input::Input::Begin(begin)) };
                let mut outputs = match door.run(stream::iter([begin]).chain(stream::pending())).await {
                    Ok(outputs) => outputs.into_inner(),
                    Err(status) => return of_status(&status),
                };
                match outputs.message().await.map(|output| output.and_then(|output| output.output)) {
                    Err(status) => of_status(&status),
                    Ok(Some(Output::Refused(why))) => refused(&Refused::from_wire(why).unwrap()),
                    Ok(Some(Output::Began(_))) => Told::Passed,
                    Ok(other) => panic!("it neither began nor was refused: {other:?}"),
                }
            }
            other => panic!("{other:?} is asked at another door"),
        }
    }

    async fn ask_peer(mut door: PeerClient<Channel>, ask: &Ask) -> Told {
        match ask {
            Ask::Link => {
                asked("Link");
                let hello = peer::link_frame::Frame::Hello(peer::Hello::default());
                let frames = stream::iter([peer::LinkFrame { frame: Some(hello) }]).chain(stream::pending());
                first(door.link(frames).await).await
            }
            Ask::FetchPage => {
                asked("FetchPage");
                first(door.fetch_page(peer::FetchPageRequest::default()).await).await
            }
            Ask::FetchRecords => {
                asked("FetchRecords");
                first(door.fetch_records(peer::FetchRecordsRequest::default()).await).await
            }
            other => panic!("{other:?} is asked at another door"),
        }
    }

    /// Asks everything; gives how often, and every answer that is not the table's.
    async fn ask_everything(&self) -> (usize, Vec<String>) {
        let (mut count, mut wrong) = (0, Vec::new());
        for kind in Kind::ALL {
            for (operation, ask) in ways(*kind) {
                assert_eq!(operation.kind, *kind, "{ask:?} is asked for another kind");
                let expected = allow(&self.caller, &operation, &Nodes::new());
                let answers = tokio::time::timeout(Duration::from_secs(30), self.ask(&ask)).await;
                for told in answers.unwrap_or_else(|_| panic!("{} is not answered: {ask:?}", self.who)) {
                    count += 1;
                    match (&expected, told) {
                        (Ok(()), Told::Passed) => {}
                        (Err(denied), Told::Denied(problem)) => {
                            // Where the door itself speaks it says what the table says.
                            let known = problem == denied.problem || !problem.contains(" may not ");
                            if !known {
                                wrong.push(format!("{} {ask:?}: {problem:?}, expected {denied}", self.who));
                            }
                        }
                        // At the peers' port a certificate of another role ends the handshake.
                        (Err(_), Told::Broken(_)) if *kind == Kind::Peer => {}
                        (expected, told) => {
                            wrong.push(format!("{} {ask:?}: {told:?}, the table: {expected:?}", self.who));
                        }
                    }
                }
            }
        }
        (count, wrong)
    }
}

/// A cluster of one replica and the agent of `gpu1`, with certificates for everybody.
struct House {
    secured: Secured,
    agent: Agent,
    socket: PathBuf,
}

/// Which user has which role at the agent's socket.
const USERS: [(u32, &str); 5] =
    [(0, "admin"), (2_001, "operator:ml"), (2_002, "operator:hpc"), (2_003, "viewer:ml"), (2_004, "viewer:hpc")];
/// And one that has none.
const STRANGER: u32 = 2_009;

impl House {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let secured = Secured::start(1);
        secured.fleet();
        secured.by("admin-root", &["policy", "set", "ml", "exec_allow=true,shell"]).expect(0);
        for (role, name) in HOLDERS {
            if !Path::new(&secured.file(&format!("{}.pem", stem(role, name)))).exists() {
                secured.issue(role, name);
            }
        }
        let users: Vec<String> = USERS.iter().map(|(uid, role)| format!("{uid} = \"{role}\"")).collect();
        let more = format!(
            "[security]\nca = \"{}\"\ncertificate = \"{}\"\nkey = \"{}\"\n[security.users]\n{}\n",
            secured.file("ca.pem"),
            secured.file("agent-gpu1.pem"),
            secured.file("agent-gpu1.key"),
            users.join("\n")
        );
        let dir = secured.dir.path().join("agent");
        let mut agent = Agent::of(dir.clone(), "gpu1", &[secured.address(0)], &more);
        agent.spawn();
        let socket = dir.join("data/agent.sock");
        for path in [secured.dir.path(), &dir, &dir.join("data")] {
            eventually("it is there", || path.exists().then_some(()));
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let house = Self { secured, agent, socket };
        eventually("the agent has booted", || {
            let shown = house.secured.by("admin-root", &["drift", "gpu1", "--json", "--agent", &house.agent.address]);
            (shown.code == 0 && shown.json()["connected"] == true && shown.json()["state"] == "committed").then_some(())
        });
        house
    }

    fn keys(&self, stem: &str) -> KeyFiles {
        let file = |end: &str| PathBuf::from(self.secured.file(&format!("{stem}.{end}")));
        KeyFiles { ca: self.secured.file("ca.pem").into(), certificate: file("pem"), key: file("key") }
    }

    fn peers(&self) -> String {
        format!("127.0.0.1:{}", self.secured.servers[0].peers)
    }

    /// Whoever holds a certificate, at all three ports.
    fn visitor(&self, role: &str, name: &str) -> Visitor {
        let keys = self.keys(&stem(role, name));
        let tls = Tls::load(keys.clone()).unwrap();
        let to = |address: &str, expect: &Expect| {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
            dial::connect_lazy(&endpoint, Some(&tls), expect)
        };
        let text = |path: &Path| path.display().to_string();
        let pages = vec![
            "--cacert".to_owned(),
            text(&keys.ca),
            "--cert".to_owned(),
            text(&keys.certificate),
            "--key".to_owned(),
            text(&keys.key),
        ];
        Visitor {
            who: format!("{role} {name}"),
            caller: Credential::new("prod", role, name).unwrap().caller().clone(),
            clients: Some(MusterClient::new(to(&self.secured.address(0), &Expect::Replica))),
            agent: Some(AgentClient::new(to(&self.agent.address, &Expect::Agent(crate::name("gpu1"))))),
            peers: Some(PeerClient::new(to(&self.peers(), &Expect::Replica))),
            pages: Some((self.secured.address(0), pages)),
        }
    }
}

fn stem(role: &str, name: &str) -> String {
    format!("{}-{name}", role.replace(':', "-"))
}

/// A user at the agent's socket: the kernel says of a thread whose it is, so this is asked on one that became that user.
fn at_socket(socket: PathBuf, uid: u32) -> (usize, Vec<String>) {
    let asking = move || {
        if uid != rustix::process::getuid().as_raw() {
            let uid = rustix::process::Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        }
        let users = USERS.iter().map(|(uid, role)| (*uid, Credential::new("prod", role, "x").unwrap()));
        let users = users.map(|(uid, of)| match of.caller() {
            Caller::Author(author) => (uid, author.role.clone()),
            Caller::Replica(_) | Caller::Nobody => panic!("a person"),
        });
        let roles = LocalRoles { users: users.collect(), ..LocalRoles::default() };
        let caller = local::caller(&Process { uid, gids: Vec::new() }, &name("gpu1"), &roles);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
            let door = AgentClient::new(endpoint.connect().await.unwrap());
            let who = format!("user {uid}");
            let visitor = Visitor { who, caller, clients: None, agent: Some(door), peers: None, pages: None };
            visitor.ask_everything().await
        })
    };
    std::thread::spawn(asking).join().unwrap()
}

/// The methods of the interfaces, as their files say.
fn methods() -> BTreeSet<String> {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("../net/proto/muster");
    let mut methods = BTreeSet::new();
    for file in ["v1/muster.proto", "agent/v1/agent.proto", "peer/v1/peer.proto"] {
        let text = std::fs::read_to_string(proto.join(file)).unwrap();
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
        methods.extend(lines.map(str::to_owned));
    }
    methods
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_by_every_role_over_every_transport_is_as_the_table_says() {
    let house = House::new();
    let (mut count, mut wrong) = (0, Vec::new());
    for (role, name) in HOLDERS {
        let (asked, found) = house.visitor(role, name).ask_everything().await;
        assert!(asked > Kind::ALL.len(), "{role} {name} asked {asked} questions");
        count += asked;
        wrong.extend(found);
    }
    let own = rustix::process::getuid().as_raw();
    for uid in USERS.iter().map(|(uid, _)| *uid).chain([STRANGER]) {
        if own != 0 && uid != own {
            eprintln!("skipped: becoming user {uid} needs root");
            continue;
        }
        let (asked, found) = at_socket(house.socket.clone(), uid);
        count += asked;
        wrong.extend(found);
    }
    assert!(wrong.is_empty(), "{} of {count} answers are not the table's:\n{}", wrong.len(), wrong.join("\n"));
    let asked: BTreeSet<String> = ASKED.lock().unwrap().iter().map(|method| (*method).to_owned()).collect();
    assert_eq!(asked, methods(), "a method is asked by nobody here");
    for kind in Kind::ALL {
        let row = kind.row();
        let somebody = [row.admin, row.operator, row.viewer, row.agent, row.replica, row.nobody];
        let is_open = somebody.iter().any(|rule| *rule != Rule::No);
        assert_eq!(is_open, !ways(*kind).is_empty(), "{kind:?} is asked in no way");
        let about_nobody = |(operation, _): &(Operation, Ask)| matches!(operation.about, About::Cluster);
        // What is somebody's own is asked about another's as well.
        if row.operator == Rule::Own && !ways(*kind).iter().any(about_nobody) {
            let foreign = |caller: &Caller| ways(*kind).iter().any(|(op, _)| allow(caller, op, &Nodes::new()).is_err());
            let of = |role| Credential::new("prod", role, "x").unwrap().caller().clone();
            assert!(foreign(&of("operator:hpc")), "{kind:?} is never asked about another's");
        }
    }
}

/// A certificate that should not be let in, by its name.
fn strangers(secured: &Secured) -> Vec<(&'static str, Option<String>)> {
    let dir = secured.at("strangers");
    std::fs::create_dir(&dir).unwrap();
    let made = |what: &'static str, uri: &str, term: Term| {
        let stem = format!("{dir}/{what}");
        std::fs::create_dir(&stem).unwrap();
        openssl_certificate(secured, uri, &format!("{stem}/it"), term);
        (what, Some(format!("{stem}/it")))
    };
    let other = secured.at("other");
    muster(&["certs", "init", &other, "--cluster", "prod"]).expect(0);
    muster(&["certs", "issue", "--dir", &other, "--role", "replica", "r1"]).expect(0);
    vec![
        ("none", None),
        ("another CA of the same name", Some(format!("{other}/replica-r1"))),
        made("expired", "muster://prod/replica/r1", Term::Over),
        made("future", "muster://prod/replica/r1", Term::ToCome),
        made("unknown-role", "muster://prod/root/r1", Term::InForce),
        made("another-cluster", "muster://test/replica/r1", Term::InForce),
        made("no-credential", "https://prod.example/replica/r1", Term::InForce),
    ]
}

#[test]
fn nobody_without_a_good_certificate_comes_in_at_any_port() {
    let house = House::new();
    let ports = [
        ("the clients' port", house.secured.address(0)),
        ("the agent's port", house.agent.address.clone()),
        ("the peers' port", house.peers()),
    ];
    let knock = |address: &str, stem: Option<&str>| {
        let url = format!("https://{address}/health");
        let files = stem.map(|stem| (format!("{stem}.pem"), format!("{stem}.key")));
        // A client that does not care who answers: only the server objects.
        let mut args = vec!["--insecure", "--http2", "-o", "/dev/null", "-w", "%{http_version}"];
        if let Some((certificate, key)) = &files {
            args.extend(["--cert", certificate, "--key", key]);
        }
        args.push(&url);
        curl(&args)
    };
    let strangers = strangers(&house.secured);
    for (port, address) in &ports {
        let good = house.secured.file("replica-r1");
        let (code, text) = knock(address, Some(&good));
        assert_eq!(code, 0, "a replica's certificate is good at {port}: {text}");
        for (what, stem) in &strangers {
            let (code, text) = knock(address, stem.as_deref());
            assert!(code != 0 && text.contains("alert"), "{what} at {port}: {code} {text}");
        }
    }
    // And in plain words they are told so.
    for (port, address) in &ports {
        let (_, text) = curl(&["-w", "%{http_code}", &format!("http://{address}/v1/boot/gpu1")]);
        assert!(text.contains("this port speaks TLS") && text.ends_with("400"), "{port}: {text}");
    }
}
