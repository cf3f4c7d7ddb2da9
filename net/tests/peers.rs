//! Replica to replica: who is let in, what is refused, and that nothing corrupt gets through.

mod cluster;

use bytes::Bytes;
use cluster::{CLUSTER, identity, leads, start};
use muster_core::ids::{ClusterId, Digest, GroupId, Incarnation, Index, ReplicaId, Seq, Term};
use muster_core::log::{LogEntry, LogEntryKind};
use muster_core::network::{FetchError, Network};
use muster_core::peer::{Envelope, Lane, PeerMessage, RaftMessage, RaftMessageKind};
use muster_core::storage::{Archive, Segment};
use muster_net::peer::frame::{FRAME_BYTES, FrameError, encode, open_frame, take_frame};
use muster_net::peer::hello::{Caller, HelloError, check_hello, check_welcome, hello, welcome};
use muster_net::peer::{GrpcNetwork, PeerCounters, PeerOptions};
use muster_net::proto::peer::link_frame::Frame as Kind;
use muster_net::proto::peer::peer_client::PeerClient;
use muster_net::proto::peer::{Frame, LinkFrame};
use muster_net::server::ClientLimits;
use std::collections::VecDeque;
use std::time::Duration;
use tonic::Code;

fn raft(kind: RaftMessageKind, data: Bytes) -> PeerMessage {
    let entry = LogEntry { term: Term(3), index: Index(8), kind: LogEntryKind::Normal, data, context: Bytes::new() };
    PeerMessage::Raft(RaftMessage {
        kind,
        term: Term(3),
        log_term: Term(2),
        index: Index(7),
        entries: vec![entry],
        commit: Index(6),
        commit_term: Term(2),
        reject: false,
        reject_hint: Index(0),
        context: Bytes::from_static(b"ctx"),
        snapshot: None,
        request_snapshot: Index(0),
    })
}

fn envelope(from: u64, to: u64, message: PeerMessage) -> Envelope {
    Envelope {
        cluster: CLUSTER,
        group: GroupId(1),
        from: ReplicaId(from),
        incarnation: Incarnation(u128::from(from) + 1_000),
        to: ReplicaId(to),
        message,
    }
}

fn frame_of(envelopes: &[Envelope]) -> Frame {
    take_frame(&mut envelopes.iter().map(encode).collect()).unwrap()
}

#[test]
fn what_goes_into_a_frame_comes_out_in_order() {
    let all: Vec<_> = (0..5).map(|token| envelope(1, 2, PeerMessage::ReadIndex { token })).collect();
    assert_eq!(open_frame(frame_of(&all)).unwrap(), all);
}

#[test]
fn frames_stay_within_their_size_and_a_larger_message_goes_alone() {
    let large = envelope(1, 2, raft(RaftMessageKind::Append, vec![7; FRAME_BYTES * 2].into()));
    let small = envelope(1, 2, raft(RaftMessageKind::Append, vec![7; 100_000].into()));
    let mut waiting: VecDeque<_> = [&small, &large, &small, &small, &small].map(encode).into();
    let counts: Vec<usize> =
        std::iter::from_fn(|| take_frame(&mut waiting)).map(|frame| open_frame(frame).unwrap().len()).collect();
    assert_eq!(counts, [1, 1, 2, 1]);
}

#[test]
fn every_changed_byte_of_a_frame_is_refused() {
    let good = frame_of(&[envelope(1, 2, raft(RaftMessageKind::Append, Bytes::from_static(b"data")))]);
    for place in 0..good.payload.len() {
        let mut payload = good.payload.to_vec();
        payload[place] ^= 0x10;
        let bad = Frame { payload: payload.into(), checksum: good.checksum };
        assert_eq!(open_frame(bad).unwrap_err(), FrameError::Checksum, "byte {place}");
    }
}

#[test]
fn every_shortened_frame_is_refused_even_with_a_matching_checksum() {
    let good = frame_of(&[envelope(1, 2, raft(RaftMessageKind::Append, Bytes::from_static(b"data")))]);
    for length in 1..good.payload.len() {
        let payload = good.payload.slice(..length);
        let checksum = crc32fast::hash(&payload);
        assert!(open_frame(Frame { payload, checksum }).is_err(), "length {length}");
    }
}

/// Format 1 of a frame, byte for byte. If this fails, old and new replicas do not understand each other.
#[test]
fn the_frame_of_format_1_is_what_it_was() {
    let messages = [
        envelope(1, 2, raft(RaftMessageKind::Append, Bytes::from_static(b"data"))),
        envelope(1, 2, PeerMessage::ReadIndexReply { token: 9, index: Some(Index(300)) }),
    ];
    let frame = frame_of(&messages);
    let hex = frame.payload.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/frame-1.hex");
    if std::env::var_os("GOLDEN").is_some() {
        std::fs::write(path, format!("{:08x}\n{hex}\n", frame.checksum)).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    assert_eq!(format!("{:08x}\n{hex}\n", frame.checksum), golden, "GOLDEN=1 writes it anew, for a new format only");
    assert_eq!(open_frame(frame).unwrap(), messages);
}

fn caller(id: u64) -> Caller {
    Caller::of(&identity(id))
}

#[test]
fn strangers_are_told_what_differs() {
    let here = caller(1);
    let known = |_| Some(Incarnation(1_002));
    let check =
        |caller: Caller, to: u64| check_hello(here, Some(&hello(caller, ReplicaId(to), Some(Lane::Bulk), "")), known);
    assert_eq!(check(caller(2), 1), Ok(caller(2)));
    let other = Caller { cluster: ClusterId(5), ..caller(2) };
    assert_eq!(check(other, 1), Err(HelloError::Cluster { theirs: ClusterId(5), ours: CLUSTER }));
    let other = Caller { group: GroupId(2), ..caller(2) };
    assert_eq!(check(other, 1), Err(HelloError::Group { theirs: GroupId(2), ours: GroupId(1) }));
    assert_eq!(check(caller(2), 3), Err(HelloError::Misdirected { to: ReplicaId(3), here: ReplicaId(1) }));
    let wiped = Caller { incarnation: Incarnation(7), ..caller(2) };
    let refused =
        HelloError::Incarnation { replica: ReplicaId(2), theirs: Incarnation(7), admitted: Incarnation(1_002) };
    assert_eq!(check(wiped, 1), Err(refused.clone()));
    assert!(refused.to_string().contains("muster replace"));
    assert!(matches!(check_hello(here, None, known), Err(HelloError::Malformed { .. })));
    // A replica not heard of yet is let in.
    assert_eq!(check_hello(here, Some(&hello(wiped, ReplicaId(1), None, "")), |_| None), Ok(wiped));
}

#[test]
fn the_one_that_answers_is_checked_too() {
    let meant = (ReplicaId(2), Incarnation(1_002));
    assert_eq!(check_welcome(caller(1), &welcome(caller(2)), meant), Ok(()));
    assert!(matches!(check_welcome(caller(1), &welcome(caller(3)), meant), Err(HelloError::Misdirected { .. })));
    let wiped = Caller { incarnation: Incarnation(7), ..caller(2) };
    assert!(matches!(check_welcome(caller(1), &welcome(wiped), meant), Err(HelloError::Incarnation { .. })));
}

/// Opens a link by hand, sends these frames, and gives how it ends.
async fn link(address: &str, frames: Vec<Kind>) -> (usize, Code) {
    let mut client = PeerClient::connect(format!("http://{address}")).await.unwrap();
    let frames: Vec<_> = frames.into_iter().map(|frame| LinkFrame { frame: Some(frame) }).collect();
    let outgoing = futures_util::StreamExt::chain(tokio_stream::iter(frames), tokio_stream::pending());
    let mut answers = match client.link(outgoing).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return (0, status.code()),
    };
    let mut welcomes = 0;
    loop {
        match tokio::time::timeout(Duration::from_millis(500), answers.message()).await {
            Ok(Ok(Some(_))) => welcomes += 1,
            Ok(Ok(None)) | Err(_) => return (welcomes, Code::Ok),
            Ok(Err(status)) => return (welcomes, status.code()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_refuses_strangers_corrupt_frames_and_forged_messages() {
    let running = start(identity(1), &[], ClientLimits::default()).await;
    leads(&running.replica.handle).await;
    let say = |caller: Caller| Kind::Hello(hello(caller, ReplicaId(1), Some(Lane::Control), ""));
    let message = |from| frame_of(&[envelope(from, 1, PeerMessage::ReadIndex { token: 1 })]);

    assert_eq!(link(&running.peer_address, vec![say(caller(2)), Kind::Messages(message(2))]).await, (1, Code::Ok));
    let stranger = Caller { cluster: ClusterId(5), ..caller(2) };
    assert_eq!(link(&running.peer_address, vec![say(stranger)]).await, (0, Code::PermissionDenied));
    // Its own id under another incarnation.
    let twin = Caller { incarnation: Incarnation(7), ..caller(1) };
    assert_eq!(link(&running.peer_address, vec![say(twin)]).await, (0, Code::PermissionDenied));
    assert_eq!(link(&running.peer_address, vec![Kind::Messages(message(2))]).await, (0, Code::InvalidArgument));

    let mut corrupt = message(2);
    corrupt.checksum ^= 1;
    assert_eq!(link(&running.peer_address, vec![say(caller(2)), Kind::Messages(corrupt)]).await, (1, Code::DataLoss));
    let forged = vec![say(caller(2)), Kind::Messages(message(3))];
    assert_eq!(link(&running.peer_address, forged).await, (1, Code::PermissionDenied));

    let counts = running.counters.read();
    assert_eq!((counts.refused_peers, counts.corrupt_frames, counts.refused_messages), (3, 1, 1), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_and_records_are_fetched_whole() {
    let running = start(identity(1), &[], ClientLimits::default()).await;
    leads(&running.replica.handle).await;
    let large: Bytes = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let start = Segment::starting(Seq(1), Digest::default());
    let records = vec![large.clone(), Bytes::from_static(b"x"), Bytes::new()];
    running.memory.clone().fill(start, records).await.unwrap();
    let meta = running.memory.hold(Index(77), Term(5), vec![Bytes::from_static(b"first"), large.clone()]);

    let network = GrpcNetwork::new(&identity(2), PeerOptions::default(), PeerCounters::default());
    network.know(&[cluster::member(1, &running.peer_address, &running.client_address)]);
    assert_eq!(network.fetch_page(ReplicaId(1), meta.0, meta.1, 1).await.unwrap(), large);
    assert_eq!(network.fetch_page(ReplicaId(1), meta.0, meta.1, 2).await, Err(FetchError::Gone));
    let records = network.fetch_records(ReplicaId(1), Seq(0), Seq(3)).await.unwrap();
    assert_eq!(records, [(Seq(1), large), (Seq(2), Bytes::from_static(b"x")), (Seq(3), Bytes::new())]);
    assert_eq!(network.fetch_records(ReplicaId(1), Seq(3), Seq(9)).await.unwrap(), []);
    assert!(matches!(network.fetch_page(ReplicaId(9), meta.0, meta.1, 0).await, Err(FetchError::Unreachable { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_peer_costs_bounded_memory_and_no_waiting() {
    let options = PeerOptions { bulk_bytes_max: 1 << 20, ..PeerOptions::default() };
    let network = GrpcNetwork::new(&identity(1), options, PeerCounters::default());
    network.know(&[cluster::member(2, "127.0.0.1:1", "127.0.0.1:1")]);
    let message = envelope(1, 2, raft(RaftMessageKind::Append, vec![7; 100_000].into()));
    let start = std::time::Instant::now();
    for _ in 0..1_000 {
        network.send(message.clone());
    }
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(network.dropped() > 900, "{}", network.dropped());
}
