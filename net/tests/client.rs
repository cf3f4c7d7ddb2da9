//! The client against real replicas on real sockets.

mod cluster;

use cluster::{
    alone, author, connect, entry, identity, join, key, leads, policy, recorded, scope, small_fleet, start, value,
};
use futures_util::StreamExt as _;
use muster_core::ids::{NodeId, OneShotId, ReplicaId, Seq, VClusterId};
use muster_core::journal::entry::{EntryType, Record};
use muster_core::members::MemberCommand;
use muster_core::query::{Answer, Query};
use muster_core::request::{
    AdminOutcome, AdminRequest, Command, Freshness, NotApplied, Outcome, Refusal, RequestId, WriteRequest,
};
use muster_net::client::{BootAsk, Client, ClientError, LogFilter, Options, Topic};
use muster_net::convert::Wire as _;
use muster_net::proto::v1::muster_client::MusterClient;
use muster_net::proto::v1::{PipelineRequest, TaggedWrite};
use muster_net::server::{ClientLimits, Listener, Protection, ServeError};
use prost::Message as _;
use std::time::Duration;
use tonic::transport::Endpoint;

fn commit(name: &str, text: &str) -> Command {
    entry(EntryType::Commit, "global", &[(name, text)], Seq(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_applied_and_a_linearizable_read_shows_it() {
    let (_running, client) = alone().await;
    let sequence = recorded(&client.write(&author(), commit("kernel:a", "1")).await);
    let answered = client.query(Freshness::Linearizable, &Query::Scope(scope("global"))).await.unwrap();
    assert_eq!(answered.sequence, sequence);
    let Answer::Scope { settings, .. } = answered.answer else { panic!("{:?}", answered.answer) };
    assert_eq!((&settings[0].key, &settings[0].setting), (&key("kernel:a"), &value("1")));
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_writes_from_many_callers_are_each_applied_once() {
    let (_running, client) = alone().await;
    let writes = (0..1_000).map(|i| {
        let client = client.clone();
        tokio::spawn(async move { recorded(&client.write(&author(), commit(&format!("kernel:k{i}"), "1")).await) })
    });
    let mut sequences = Vec::new();
    for write in writes.collect::<Vec<_>>() {
        sequences.push(write.await.unwrap().0);
    }
    sequences.sort_unstable();
    assert_eq!(sequences, (1..=1_000).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_of_one_caller_keep_their_order() {
    let (_running, client) = alone().await;
    let outcomes = futures_util::future::join_all((0..200).map(|i| {
        let client = client.clone();
        async move { recorded(&client.write(&author(), commit(&format!("kernel:k{i}"), "1")).await) }
    }));
    let sequences: Vec<u64> = outcomes.await.iter().map(|sequence| sequence.0).collect();
    assert!(sequences.is_sorted(), "{sequences:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_one_shot_asked_twice_is_applied_once() {
    let (running, client) = alone().await;
    let request = client.draw().await.unwrap();
    let first = client.write_once(request, &author(), commit("kernel:a", "1")).await;
    let again = connect(&[&running]).await.write_once(request, &author(), commit("kernel:a", "1")).await;
    recorded(&first);
    assert_eq!(first, again);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_comes_back_whole() {
    let (_running, client) = alone().await;
    let outcome =
        client.write(&author(), entry(EntryType::Commit, "vcluster:none", &[("kernel:a", "1")], Seq(0))).await;
    assert!(
        matches!(&outcome, Outcome::Refused(Refusal::UnknownScope { scope, .. }) if &**scope == "vcluster:none"),
        "{outcome:?}"
    );
}

/// A conflict tells whose value is there: a frame of small writes may have answers of a megabyte each.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_frame_of_writes_comes_to_is_told_in_frames_of_a_bounded_size() {
    const WRITES: u64 = 32;
    let (running, client) = alone().await;
    small_fleet(&client).await;
    let large = "x".repeat(1 << 20);
    let change = entry(EntryType::Commit, "node:n1", &[("files:/large", &large)], Seq(2));
    recorded(&client.write(&author(), change).await);
    let drawn_at = running.replica.handle.view().state.age();
    let write = |tag| {
        let request = RequestId::OneShot { id: OneShotId(u128::from(tag)), drawn_at };
        let command = entry(EntryType::Commit, "node:n1", &[("files:/large", "small")], Seq(2));
        let write = WriteRequest { request, author: author(), command };
        TaggedWrite { tag, write: Some(write.to_wire()) }
    };
    let asked = PipelineRequest { writes: (1..=WRITES).map(write).collect(), queries: Vec::new() };
    let channel = Endpoint::from_shared(format!("http://{}", running.client_address)).unwrap().connect().await.unwrap();
    let mut stub = MusterClient::new(channel).max_decoding_message_size(usize::MAX);
    let asking = futures_util::stream::iter([asked]).chain(futures_util::stream::pending());
    let mut frames = stub.pipeline(asking).await.unwrap().into_inner();
    let mut told = 0;
    while told < WRITES {
        let frame = frames.message().await.unwrap().unwrap();
        assert!(frame.encoded_len() < 3 << 20, "a frame of {} bytes", frame.encoded_len());
        told += frame.outcomes.len() as u64;
    }
    assert_eq!(told, WRITES);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_over_the_limit_is_not_applied_and_told_so() {
    let limits = ClientLimits { payload_bytes_max: 1_000, ..ClientLimits::default() };
    let running = start(identity(1), &[], limits).await;
    leads(&running.replica.handle).await;
    let client = connect(&[&running]).await;
    let outcome = client.write(&author(), commit("kernel:a", &"x".repeat(2_000))).await;
    assert!(matches!(outcome, Outcome::NotApplied(NotApplied::TooLarge { bytes_max: 1_000, .. })), "{outcome:?}");
    recorded(&client.write(&author(), commit("kernel:a", "1")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_author_that_cannot_be_proven_is_forbidden() {
    use muster_core::journal::entry::{Author, Principal, Role};
    let (_running, client) = alone().await;
    let forged = Author { principal: Principal::Claimed { name: "ana".into() }, role: Role::System };
    let request = client.draw().await.unwrap();
    let outcome = client.write_once(request, &forged, commit("kernel:a", "1")).await;
    assert!(matches!(outcome, Outcome::Refused(Refusal::Forbidden { .. })), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_gives_the_overlay_once_and_the_delta_always() {
    let (_running, client) = alone().await;
    small_fleet(&client).await;
    recorded(&client.write(&author(), entry(EntryType::Commit, "vcluster:batch", &[("kernel:a", "1")], Seq(0))).await);
    let node = NodeId::new("n1").unwrap();
    let mut ask = BootAsk { node, known: None, at_least: Seq(0) };
    let boot = client.boot(&ask).await.unwrap();
    let overlay = boot.overlay.clone().unwrap();
    assert_eq!(overlay.version, boot.overlay_version);
    muster_core::overlay::open(&overlay).unwrap();
    assert_eq!(boot.sequence, Seq(3));

    // It was built on demand; wait until it is stored, so that the next boot is of the same version.
    let batch = VClusterId::new("batch").unwrap();
    loop {
        let answered = client.query(Freshness::Local, &Query::VClusters).await.unwrap();
        let Answer::VClusters(all) = answered.answer else { panic!() };
        if all[0].overlay_version == Some(boot.overlay_version) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ask.known = Some((batch.clone(), boot.overlay_version));
    let again = client.boot(&ask).await.unwrap();
    assert_eq!((again.overlay, again.sequence), (None, Seq(3)));
    assert!(!again.delta.is_empty());

    ask.known = Some((batch, Seq(99)));
    assert!(matches!(client.boot(&ask).await, Err(ClientError::Lagging { known: Seq(99), .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_boots_without_an_overlay_get_the_same_bytes() {
    let (_running, client) = alone().await;
    small_fleet(&client).await;
    let boots = (0..100).map(|_| {
        let client = client.clone();
        async move {
            let ask = BootAsk { node: NodeId::new("n1").unwrap(), known: None, at_least: Seq(2) };
            client.boot(&ask).await.unwrap()
        }
    });
    let boots = futures_util::future::join_all(boots).await;
    assert!(boots.iter().all(|boot| boot.overlay_checksum == boots[0].overlay_checksum));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_node_is_refused_with_the_way_out() {
    let (_running, client) = alone().await;
    let ask = BootAsk { node: NodeId::new("nobody").unwrap(), known: None, at_least: Seq(0) };
    let error = client.boot(&ask).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Refused(Refusal::UnknownScope { hint, .. }) if hint.contains("boot-config")),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_has_no_gap_while_records_arrive() {
    let (_running, client) = alone().await;
    let mut subscription = client.subscribe(Topic::Scopes(Vec::new()), Seq(0));
    let writer = client.clone();
    let writing = tokio::spawn(async move {
        for i in 0..300 {
            recorded(&writer.write(&author(), commit(&format!("kernel:k{i}"), "1")).await);
        }
    });
    let mut seen = Vec::new();
    while seen.len() < 300 {
        let tidings = subscription.next().await.unwrap();
        seen.extend(tidings.records.iter().map(|record| record.sequence().0));
        if seen.len() == 100 {
            // A new subscription goes on where the old one was.
            subscription = client.subscribe(Topic::Scopes(Vec::new()), subscription.reached());
        }
    }
    writing.await.unwrap();
    assert_eq!(seen, (1..=300).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_hears_of_itself_its_vcluster_and_global_only() {
    let (_running, client) = alone().await;
    small_fleet(&client).await;
    recorded(&client.write(&author(), policy("other")).await);
    let commits = [("global", true), ("vcluster:batch", true), ("vcluster:other", false), ("node:n1", true)];
    for (place, _) in commits {
        recorded(&client.write(&author(), entry(EntryType::Commit, place, &[("kernel:a", "1")], Seq(3))).await);
    }
    let moved = entry(EntryType::BootConfig, "node:n1", &[("vcluster", "other")], Seq(7));
    recorded(&client.write(&author(), moved).await);
    for (place, name) in [("vcluster:batch", "kernel:b"), ("vcluster:other", "kernel:b")] {
        recorded(&client.write(&author(), entry(EntryType::Commit, place, &[(name, "1")], Seq(8))).await);
    }
    let node = NodeId::new("n1").unwrap();
    // From the beginning, and from the middle: before the move it was in `batch`, after it in `other`.
    for (after, expected) in [(Seq(0), vec![2, 4, 5, 7, 8, 10]), (Seq(4), vec![5, 7, 8, 10]), (Seq(8), vec![10])] {
        let mut subscription = client.subscribe(Topic::Node(node.clone()), after);
        let mut seen = Vec::new();
        while seen.last() != Some(&10) {
            seen.extend(subscription.next().await.unwrap().records.iter().map(|record| record.sequence().0));
        }
        assert_eq!(seen, expected, "after {after}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_subscription_tells_how_far_it_is() {
    let (_running, client) = alone().await;
    small_fleet(&client).await;
    let mut subscription = client.subscribe(Topic::Scopes(vec![scope("node:elsewhere")]), Seq(0));
    let tidings = tokio::time::timeout(Duration::from_secs(8), subscription.next()).await.unwrap().unwrap();
    assert_eq!((tidings.records.len(), tidings.upto), (0, Seq(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_filters_limits_and_turns_round() {
    let (_running, client) = alone().await;
    small_fleet(&client).await;
    for i in 0..2_000 {
        let client = client.clone();
        let write = async move { client.write(&author(), commit(&format!("kernel:k{i}"), "1")).await };
        if i % 500 == 0 {
            recorded(&write.await);
        } else {
            tokio::spawn(write);
        }
    }
    let mut summary = client.query(Freshness::Linearizable, &Query::Summary).await.unwrap();
    while summary.sequence < Seq(2_002) {
        summary = client.query(Freshness::Linearizable, &Query::Summary).await.unwrap();
    }
    let all = client.log(&LogFilter::default()).await.unwrap().collect().await.unwrap();
    assert_eq!(all.iter().map(|r| r.sequence().0).collect::<Vec<_>>(), (1..=2_002).collect::<Vec<_>>());
    let newest = LogFilter { newest_first: true, ..LogFilter::default() };
    let mut turned = client.log(&newest).await.unwrap().collect().await.unwrap();
    turned.reverse();
    assert_eq!(turned, all);
    let few = LogFilter { limit: Some(3), types: vec![EntryType::BootConfig, EntryType::Commit], ..newest };
    let few = client.log(&few).await.unwrap().collect().await.unwrap();
    assert_eq!(few.iter().map(|r| r.sequence().0).collect::<Vec<_>>(), [2_002, 2_001, 2_000]);
    let scoped = LogFilter { scopes: vec![scope("node:n1")], ..LogFilter::default() };
    let scoped = client.log(&scoped).await.unwrap().collect().await.unwrap();
    assert!(matches!(&scoped[..], [Record::Entry(entry)] if entry.entry_type == EntryType::BootConfig));
    let nobody = LogFilter { author: Some("bob".to_owned()), ..LogFilter::default() };
    assert!(client.log(&nobody).await.unwrap().collect().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_past_is_what_it_was_and_the_future_is_refused() {
    let (_running, client) = alone().await;
    for text in ["1", "2", "3"] {
        let parent = client.state_at(&scope("global"), None).await.unwrap().head;
        recorded(&client.write(&author(), entry(EntryType::Commit, "global", &[("kernel:a", text)], parent)).await);
    }
    for (at, text) in [(Some(Seq(1)), "1"), (Some(Seq(2)), "2"), (Some(Seq(3)), "3"), (None, "3")] {
        let state = client.state_at(&scope("global"), at).await.unwrap();
        assert_eq!(state.settings[0].setting, value(text));
        assert_eq!(state.head, state.at);
    }
    let error = client.state_at(&scope("global"), Some(Seq(4))).await.unwrap_err();
    assert!(matches!(&error, ClientError::Invalid { problem } if problem.contains("head here is 3")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_finds_the_head_and_a_changed_record() {
    let (running, client) = alone().await;
    small_fleet(&client).await;
    let verified = client.verify(None, None, |_| {}).await.unwrap();
    assert_eq!((verified.sequence, verified.head_matched), (Seq(2), false));
    recorded(&client.write(&author(), commit("kernel:a", "1")).await);
    let kept = (verified.sequence, verified.head);
    assert!(client.verify(None, Some(kept), |_| {}).await.unwrap().head_matched);
    let wrong = (Seq(1), verified.head);
    let error = client.verify(None, Some(wrong), |_| {}).await.unwrap_err();
    assert!(matches!(error, ClientError::NotVerified { sequence: Seq(1), .. }), "{error:?}");
    running.memory.flip(Seq(2));
    let error = client.verify(None, None, |_| {}).await.unwrap_err();
    assert!(matches!(error, ClientError::NotVerified { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joining_replica_is_admitted_catches_up_and_serves() {
    let (_first, client) = alone().await;
    small_fleet(&client).await;
    client.admin(None, AdminRequest::Snapshot).await.unwrap();
    let second = join(&client, 2).await;
    let follower = Client::connect(vec![second.client_address.clone()], Options::default()).await.unwrap();
    let answered = follower.query(Freshness::AtLeast(Seq(2)), &Query::Summary).await.unwrap();
    assert!(answered.sequence >= Seq(2));
    // It follows, and passes writes on.
    assert_eq!(follower.status(&second.client_address).await.unwrap().replica.leader, ReplicaId(1));
    let sequence = recorded(&follower.write(&author(), commit("kernel:a", "1")).await);
    let ask = BootAsk { node: NodeId::new("n1").unwrap(), known: None, at_least: sequence };
    assert!(follower.boot(&ask).await.unwrap().sequence >= sequence);
    let verified = follower.verify(Some(&second.client_address), None, |_| {}).await.unwrap();
    assert!(verified.sequence >= sequence);
    // A subscription on the learner sees everything from the beginning.
    let mut subscription = follower.subscribe(Topic::Scopes(Vec::new()), Seq(0));
    let mut seen = Vec::new();
    while seen.last() != Some(&sequence.0) {
        seen.extend(subscription.next().await.unwrap().records.iter().map(|record| record.sequence().0));
    }
    assert_eq!(seen, (1..=sequence.0).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_and_subscriptions_outlive_the_leader() {
    let (first, client) = alone().await;
    let mut others = Vec::new();
    let by = std::time::Instant::now() + Duration::from_secs(20);
    for number in [2, 3] {
        let running = join(&client, number).await;
        let promote = Command::Members(MemberCommand::Promote(running.replica.identity.replica));
        loop {
            match client.write(&author(), promote.clone()).await {
                Outcome::Applied { .. } => break,
                Outcome::Refused(Refusal::Membership { .. }) if std::time::Instant::now() < by => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                other => panic!("{other:?}"),
            }
        }
        others.push(running);
    }
    let patient = Options { write_timeout: Duration::from_secs(20), ..Options::default() };
    let client = Client::connect(client.addresses(), patient).await.unwrap();
    let mut subscription = client.subscribe(Topic::Scopes(vec![scope("global")]), Seq(0));
    let mut acknowledged = Vec::new();
    for i in 0..50 {
        if i == 25 {
            first.replica.handle.stop();
            first.replica.end();
        }
        acknowledged.push(recorded(&client.write(&author(), commit(&format!("kernel:k{i}"), "1")).await));
    }
    let mut commits = Vec::new();
    while commits.len() < 50 {
        for record in subscription.next().await.unwrap().records {
            if matches!(&record, Record::Entry(entry) if entry.entry_type == EntryType::Commit) {
                commits.push(record.sequence());
            }
        }
    }
    assert_eq!(commits, acknowledged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_taken_on_request_and_transfer_to_nobody_fails() {
    let (_running, client) = alone().await;
    small_fleet(&client).await;
    let outcome = client.admin(None, AdminRequest::Snapshot).await.unwrap();
    assert!(matches!(outcome, AdminOutcome::Snapshot { .. }), "{outcome:?}");
    let outcome = client.admin(None, AdminRequest::Transfer { to: ReplicaId(9) }).await.unwrap();
    assert!(matches!(outcome, AdminOutcome::Failed { .. }), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_told_with_every_address() {
    let addresses = vec!["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()];
    let error = Client::connect(addresses, Options::default()).await.unwrap_err();
    assert!(matches!(&error, ClientError::Unreachable { tried } if tried.len() == 2), "{error:?}");
    let error = Client::connect(vec!["nonsense".to_owned()], Options::default()).await.unwrap_err();
    assert!(error.to_string().contains("HOST:PORT"), "{error}");
}

/// Connections to it are made, and nothing is ever said on them, as by a process that was frozen.
fn frozen() -> std::net::TcpListener {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_turn_away_from_a_replica_that_says_nothing() {
    let (running, _client) = alone().await;
    let frozen = frozen();
    let addresses = vec![frozen.local_addr().unwrap().to_string(), running.client_address.clone()];
    // All questions together have less time than a connection has until it is found dead.
    let options = Options {
        read_timeout: Duration::from_secs(3),
        read_attempt_timeout: Duration::from_millis(200),
        ..Options::default()
    };
    let client = Client::connect(addresses.clone(), options.clone()).await.expect("one of the two answers");
    client.query(Freshness::Linearizable, &Query::Summary).await.expect("a read");
    let silent = client.status(&addresses[0]).await.unwrap_err();
    assert!(matches!(&silent, ClientError::Unreachable { tried } if tried.len() == 1), "{silent:?}");
    drop(running);
    let nobody = Client::connect(addresses[..1].to_vec(), options).await.unwrap_err();
    assert!(matches!(&nobody, ClientError::Unreachable { tried } if tried.len() == 1), "{nobody:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_to_a_stopped_cluster_is_not_applied() {
    let (running, client) = alone().await;
    recorded(&client.write(&author(), commit("kernel:a", "1")).await);
    let options = Options { write_timeout: Duration::from_secs(4), ..Options::default() };
    let hasty = Client::connect(vec![running.client_address.clone()], options).await.unwrap();
    recorded(&hasty.write(&author(), commit("kernel:b", "1")).await);
    drop(running);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let outcome = hasty.write(&author(), commit("kernel:c", "1")).await;
    assert!(matches!(outcome, Outcome::NotApplied(_)), "{outcome:?}");
}

#[tokio::test]
async fn only_loopback_is_bound_without_tls() {
    let error = Listener::bind("0.0.0.0:0", "clients", &Protection::Loopback).await.unwrap_err();
    assert!(matches!(error, ServeError::Unprotected { .. }), "{error}");
    assert!(error.to_string().contains("--insecure"));
    Listener::bind("0.0.0.0:0", "clients", &Protection::Insecure).await.unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let first = Listener::bind("127.0.0.1:0", "clients", &Protection::Loopback).await.unwrap();
    let address = first.address().to_string();
    let error = Listener::bind(&address, "clients", &Protection::Loopback).await.unwrap_err();
    assert!(matches!(error, ServeError::InUse { .. }) && error.to_string().contains(&address), "{error}");
}
