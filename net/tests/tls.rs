//! TLS between a client and a replica in one process: what certificates say, and when they say it no more.

mod cluster;

use cluster::{Running, Sockets, entry, identity, leads, policy, recorded, start_on};
use muster_core::ids::{NodeId, Seq};
use muster_core::journal::entry::{Author, EntryType, Principal, Record, Role};
use muster_core::journal::key::Key;
use muster_core::query::Query;
use muster_core::request::{Freshness, Outcome, Refusal};
use muster_core::service::Credential;
use muster_net::client::{Client, ClientError, LogFilter, Options};
use muster_net::server::{ClientLimits, Protection};
use muster_net::tls::authority::Authority;
use muster_net::tls::dial::dial;
use muster_net::tls::{Expect, KeyFiles, Tls};
use std::time::Duration;
use tempfile::TempDir;

const LONG: Duration = Duration::from_hours(24);

/// A CA, and a replica that speaks TLS by it.
struct Secured {
    dir: TempDir,
    authority: Authority,
    running: Running,
}

fn keys(dir: &TempDir, authority: &Authority, role: &str, name: &str, life: Duration) -> Tls {
    let credential = Credential::new("prod", role, name).unwrap();
    let stem = dir.path().join(format!("{}-{name}", role.replace(':', "-")));
    let issued = authority.issue(&credential, &[], life, &stem).unwrap();
    let ca = authority.certificate().to_owned();
    Tls::load(KeyFiles { ca, certificate: issued.certificate, key: issued.key }).unwrap()
}

impl Secured {
    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let authority = Authority::init(dir.path(), "prod", LONG).unwrap();
        let tls = keys(&dir, &authority, "replica", "r1", LONG);
        let sockets = Sockets::protected(&Protection::Tls(tls)).await;
        let running = start_on(sockets, identity(1), &[], ClientLimits::default()).await;
        leads(&running.replica.handle).await;
        Self { dir, authority, running }
    }

    async fn client(&self, role: &str, name: &str, life: Duration) -> Client {
        let tls = Some(keys(&self.dir, &self.authority, role, name, life));
        let addresses = vec![self.running.client_address.clone()];
        Client::connect(addresses, Options { tls, ..Options::default() }).await.unwrap()
    }
}

fn nobody() -> Author {
    Author { principal: Principal::Claimed { name: "mallory".into() }, role: Role::Admin }
}

async fn author_of(client: &Client, sequence: Seq) -> Author {
    let filter = LogFilter { after: Seq(sequence.0 - 1), upto: Some(sequence), ..LogFilter::default() };
    match client.log(&filter).await.unwrap().collect().await.unwrap().remove(0) {
        Record::Entry(entry) => entry.author,
        Record::Operation(operation) => operation.author,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_names_for_whom_it_acts_and_nobody_else_does() {
    let secured = Secured::start().await;
    let admin = secured.client("admin", "root", LONG).await;
    recorded(&admin.write(&nobody(), policy("ml")).await);
    let assign = entry(EntryType::BootConfig, "node:gpu1", &[(Key::vcluster().as_str(), "ml")], Seq(1));
    let sequence = recorded(&admin.write(&nobody(), assign).await);
    let root = Principal::Certificate { subject: "muster://prod/admin/root".into() };
    assert_eq!(author_of(&admin, sequence).await, Author { principal: root, role: Role::Admin });

    let agent = secured.client("agent", "gpu1", LONG).await;
    let role = Role::Agent(NodeId::new("gpu1").unwrap());
    let speaking_for = Author { principal: Principal::Claimed { name: "uid:0@gpu1".into() }, role: role.clone() };
    let drift = |parent: Seq| entry(EntryType::DriftDetected, "node:gpu1", &[("kernel:a", "2")], parent);
    let sequence = recorded(&agent.write(&speaking_for, drift(sequence)).await);
    assert_eq!(author_of(&admin, sequence).await, speaking_for);
    // In its own name, over the same session.
    let own = Author { principal: Principal::System { part: "expiry".into() }, role: role.clone() };
    let sequence = recorded(&agent.write(&own, drift(sequence)).await);
    let principal = Principal::Certificate { subject: "muster://prod/agent/gpu1".into() };
    assert_eq!(author_of(&admin, sequence).await, Author { principal, role });
    // Never for another node, whatever it claims.
    let other = Author { role: Role::Agent(NodeId::new("cpu1").unwrap()), ..speaking_for };
    let elsewhere = entry(EntryType::DriftDetected, "node:cpu1", &[("kernel:a", "2")], sequence);
    let outcome = agent.write(&other, elsewhere).await;
    assert!(matches!(outcome, Outcome::Refused(Refusal::Forbidden { .. })), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_the_agents_own_door_would_not_let_in_is_marked() {
    let secured = Secured::start().await;
    let admin = secured.client("admin", "root", LONG).await;
    recorded(&admin.write(&nobody(), policy("ml")).await);
    let assign = entry(EntryType::BootConfig, "node:gpu1", &[(Key::vcluster().as_str(), "ml")], Seq(1));
    let mut sequence = recorded(&admin.write(&nobody(), assign).await);
    let agent = secured.client("agent", "gpu1", LONG).await;
    let role = Role::Agent(NodeId::new("gpu1").unwrap());
    for (name, is_credible) in [
        ("muster://prod/operator/ml/olga", true),
        ("muster://prod/admin/root", true),
        ("uid:1000@gpu1", true),
        ("muster://prod/operator/hpc/otto", false),
        ("muster://prod/viewer/ml/vera", false),
        ("muster://prod/agent/gpu2", false),
        ("muster://prod/replica/r1", false),
        ("muster://test/admin/root", false),
        ("uid:0@gpu2", false),
        ("alice", false),
    ] {
        let claimed = Author { principal: Principal::Claimed { name: name.into() }, role: role.clone() };
        let drift = entry(EntryType::DriftDetected, "node:gpu1", &[("kernel:a", "2")], sequence);
        sequence = recorded(&agent.write(&claimed, drift).await);
        let marked = if is_credible { name.to_owned() } else { format!("doubtful:{name}") };
        let principal = Principal::Claimed { name: marked.into() };
        assert_eq!(author_of(&admin, sequence).await, Author { principal, role: role.clone() });
    }
    // Where the mark has no room, it is the agent's own doing.
    let name = format!("{}@gpu2", "x".repeat(249));
    let claimed = Author { principal: Principal::Claimed { name: name.as_str().into() }, role: role.clone() };
    let drift = entry(EntryType::DriftDetected, "node:gpu1", &[("kernel:a", "2")], sequence);
    let sequence = recorded(&agent.write(&claimed, drift).await);
    let principal = Principal::Certificate { subject: "muster://prod/agent/gpu1".into() };
    assert_eq!(author_of(&admin, sequence).await, Author { principal, role });
}

#[tokio::test(flavor = "multi_thread")]
async fn who_renews_in_time_goes_on_though_the_first_certificate_ends() {
    let secured = Secured::start().await;
    let life = Duration::from_secs(3);
    let tls = keys(&secured.dir, &secured.authority, "admin", "brief", life);
    let addresses = vec![secured.running.client_address.clone()];
    let options = Options { tls: Some(tls.clone()), ..Options::default() };
    let client = Client::connect(addresses, options).await.unwrap();
    recorded(&client.write(&nobody(), policy("ml")).await);
    client.age().await.unwrap();
    let first = tls.shown();
    secured.authority.renew(&secured.dir.path().join("admin-brief.pem"), LONG).unwrap();
    tls.reload().unwrap();
    while !first.has_ended() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    recorded(&client.write(&nobody(), policy("ml")).await);
    client.query(Freshness::Local, &Query::Summary).await.unwrap();
    client.age().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ends_while_its_connection_lasts_is_good_for_nothing_more() {
    let secured = Secured::start().await;
    let life = Duration::from_secs(3);
    let brief = secured.client("admin", "brief", life).await;
    recorded(&brief.write(&nobody(), policy("ml")).await);
    let denied = loop {
        match brief.query(Freshness::Local, &Query::Summary).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => break error,
        }
    };
    assert!(matches!(&denied, ClientError::Denied { problem, .. } if problem.contains("ended")), "{denied:?}");
    let outcome = brief.write(&nobody(), policy("ml")).await;
    let Outcome::Refused(Refusal::Forbidden { problem }) = &outcome else { panic!("{outcome:?}") };
    assert!(problem.contains("renew it"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_must_be_what_was_expected() {
    let secured = Secured::start().await;
    let admin = keys(&secured.dir, &secured.authority, "admin", "root", LONG);
    let address = secured.running.client_address.clone();
    dial(&address, &admin, Expect::Replica).await.unwrap();
    let error = dial(&address, &admin, Expect::Agent(NodeId::new("gpu1").unwrap())).await.unwrap_err();
    assert!(format!("{error:?}").contains("the agent of gpu1"), "{error:?}");

    // An agent's port: its own certificate, and only for its own node.
    let agent = keys(&secured.dir, &secured.authority, "agent", "gpu1", LONG);
    let sockets = Sockets::protected(&Protection::Tls(agent)).await;
    let address = sockets.client_address();
    let running = start_on(sockets, identity(2), &[], ClientLimits::default()).await;
    dial(&address, &admin, Expect::Agent(NodeId::new("gpu1").unwrap())).await.unwrap();
    for wrong in [Expect::Replica, Expect::Agent(NodeId::new("gpu2").unwrap())] {
        let error = dial(&address, &admin, wrong).await.unwrap_err();
        assert!(format!("{error:?}").contains("muster://prod/agent/gpu1 answers where"), "{error:?}");
    }
    running.replica.end();
}
