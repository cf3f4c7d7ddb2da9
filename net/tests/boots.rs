//! Boots over HTTP as whoever holds a socket sees them: what is in an answer, what is asked for conditionally and in part, and what
//! becomes of those who read slowly, say nothing, or ask without end.

mod cluster;

use axum::http::Request;
use cluster::{
    Running, Sockets, alone, author, connect, entry, identity, join, leads, policy, recorded, small_fleet,
    start_serving,
};
use muster_core::admission::BootLimits;
use muster_core::ids::{NodeId, Seq, VClusterId};
use muster_core::journal::document::{self, Kind};
use muster_core::journal::entry::EntryType;
use muster_core::request::{Outcome, Refusal};
use muster_net::client::{BootAsk, Client};
use muster_net::proto::v1::BootRequest;
use muster_net::proto::v1::muster_client::MusterClient;
use muster_net::server::{BootOptions, ClientLimits, Listener, Protection, serve_anonymous};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tonic::transport::{Channel, Endpoint};
use tower::Service as _;

/// What a server said.
#[derive(Debug)]
struct Said {
    code: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Said {
    #[track_caller]
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("{name} is not there: {self:?}"))
    }
    #[track_caller]
    fn number(&self, name: &str) -> usize {
        self.header(name).parse().unwrap()
    }
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

fn read(answer: &[u8]) -> Said {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a whole head");
    let mut lines = std::str::from_utf8(&answer[..end]).unwrap().split("\r\n");
    let code = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.map(|line| line.split_once(": ").unwrap()).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    Said { code, headers, body: answer[end + 4..].to_vec() }
}

/// Asks on a connection of its own.
async fn ask(address: &str, method: &str, path: &str, headers: &[(&str, &str)]) -> Said {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
    for (name, value) in headers {
        request.extend([*name, ": ", *value, "\r\n"]);
    }
    request += "\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    read(&answer)
}

async fn get(address: &str, path: &str) -> Said {
    ask(address, "GET", path, &[]).await
}

async fn alone_with(limits: ClientLimits, boots: BootOptions) -> (Running, Client) {
    let running = start_serving(Sockets::bind().await, identity(1), &[], limits, boots).await;
    leads(&running.replica.handle).await;
    let client = connect(&[&running]).await;
    (running, client)
}

fn boots(limits: BootLimits) -> BootOptions {
    BootOptions { limits, ..BootOptions::default() }
}

/// Has the overlay built on demand, and waits until it is stored.
async fn stored(running: &Running) -> Said {
    assert_eq!(ask(&running.client_address, "GET", "/v1/boot/n1/overlay", &[("range", "bytes=0-0")]).await.code, 206);
    let batch = "batch".parse().unwrap();
    until("the overlay is stored", || {
        running.replica.handle.view().state.journal.vcluster(&batch).is_some_and(|known| known.overlay.is_some())
    })
    .await;
    get(&running.client_address, "/v1/boot/n1").await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_answer_holds_overlay_and_delta_as_its_headers_tell() {
    let (running, client) = alone().await;
    small_fleet(&client).await;
    let here = &running.client_address;
    let said = get(here, "/v1/boot/n1?overlay=plain").await;
    assert_eq!(said.code, 200, "{said:?}");
    let (overlay, delta) = said.body.split_at(said.number("muster-overlay-length"));
    assert_eq!(delta.len(), said.number("muster-delta-length"));
    let overlay = document::parse(std::str::from_utf8(overlay).unwrap()).unwrap();
    let delta = document::parse(std::str::from_utf8(delta).unwrap()).unwrap();
    assert_eq!(overlay.kind, Kind::Overlay);
    assert_eq!(overlay.version.0, said.number("muster-overlay-version") as u64);
    assert!(matches!(delta.kind, Kind::Delta { .. }));
    assert_eq!(said.header("muster-vcluster"), "batch");

    // As stored, and the parts alone, say the same.
    let whole = stored(&running).await;
    let boot = client.boot(&BootAsk { node: NodeId::new("n1").unwrap(), known: None, at_least: Seq(0) }).await.unwrap();
    let bytes = boot.overlay.as_ref().unwrap().data.clone();
    assert_eq!(whole.body, [&bytes[..], &boot.delta[..]].concat());
    assert_eq!(whole.header("muster-overlay-checksum"), boot.overlay_checksum.to_string());
    assert_eq!(get(here, "/v1/boot/n1/overlay").await.body, bytes);
    assert_eq!(get(here, "/v1/boot/n1/delta").await.body, boot.delta);
    let known = format!("/v1/boot/n1/delta?vcluster=batch&version={}", boot.overlay_version);
    assert_eq!(get(here, &known).await.body, boot.delta);
    let head = ask(here, "HEAD", "/v1/boot/n1", &[]).await;
    assert_eq!((head.code, head.number("content-length"), head.body.len()), (200, whole.body.len(), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_where_it_broke_off_unless_something_changed() {
    let (running, client) = alone().await;
    small_fleet(&client).await;
    let whole = stored(&running).await;
    let (here, path) = (&running.client_address, "/v1/boot/n1");
    let whole =
        if whole.header("etag") == get(here, path).await.header("etag") { whole } else { get(here, path).await };
    let tag = whole.header("etag").to_owned();
    let total = whole.body.len();

    assert_eq!(ask(here, "GET", path, &[("if-none-match", &tag)]).await.code, 304);
    let delta_only = ask(here, "GET", "/v1/boot/n1/delta", &[("if-none-match", &tag)]).await;
    assert_eq!(delta_only.code, 200, "other bytes have another tag");
    for cut in [1, whole.number("muster-overlay-length") - 1, whole.number("muster-overlay-length"), total - 1] {
        let rest = ask(here, "GET", path, &[("range", &format!("bytes={cut}-")), ("if-range", &tag)]).await;
        assert_eq!((rest.code, &rest.body[..]), (206, &whole.body[cut..]), "from {cut}");
        assert_eq!(rest.header("content-range"), format!("bytes {cut}-{}/{total}", total - 1));
    }
    let last = ask(here, "GET", path, &[("range", "bytes=-3")]).await;
    assert_eq!(last.body, &whole.body[total - 3..]);
    let beyond = ask(here, "GET", path, &[("range", &format!("bytes={total}-")), ("if-range", &tag)]).await;
    assert_eq!((beyond.code, beyond.header("content-range")), (416, &format!("bytes */{total}")[..]));

    // What is declared for others leaves the bytes as they are; what concerns the node does not.
    recorded(&client.write(&author(), policy("other")).await);
    let still = ask(here, "GET", path, &[("if-none-match", &tag)]).await;
    assert_eq!(still.code, 304);
    assert!(still.number("muster-sequence") > whole.number("muster-sequence"), "it is right later too");
    let change = entry(EntryType::Commit, "node:n1", &[("kernel:a", "1")], Seq(2));
    recorded(&client.write(&author(), change).await);
    assert_eq!(ask(here, "GET", path, &[("if-none-match", &tag)]).await.code, 200);
    let anew = ask(here, "GET", path, &[("range", "bytes=5-"), ("if-range", &tag)]).await;
    assert_eq!((anew.code, anew.body.len()), (200, anew.number("content-length")), "all of the new one");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_booted_is_told_in_words_and_a_number() {
    let (running, client) = alone().await;
    small_fleet(&client).await;
    // A vCluster without a policy has no nodes, so none of them can ask; one that declares nothing else boots with it.
    let nowhere = entry(EntryType::BootConfig, "node:n2", &[("vcluster", "nowhere")], Seq(0));
    let refused = client.write(&author(), nowhere).await;
    assert!(matches!(refused, Outcome::Refused(Refusal::UnknownScope { .. })), "{refused:?}");
    let here = &running.client_address;
    for (path, code, words) in [
        ("/v1/boot/n9", 404, "boot-config entry"),
        ("/v1/boot/n%20x", 400, "expected"),
        ("/v1/boot/n1/kernel", 404, "expected /v1/boot/NODE"),
        ("/v1/boot/n1?overlay=gzip", 400, "expected zstd or plain"),
        ("/v1/boot/n1?colour=red", 400, "no parameter \"colour\""),
        ("/v1/boot/n1/delta?version=3", 400, "takes both"),
        ("/v1/boot/n1/delta?vcluster=batch&version=99", 409, "it lags, ask another"),
        ("/v1/boot/n1/delta?vcluster=idle&version=1", 409, "take the whole boot"),
        ("/v1/boots", 404, "no such page"),
    ] {
        let said = get(here, path).await;
        assert_eq!(said.code, code, "{path}: {said:?}");
        assert!(said.text().contains(words), "{path}: {}", said.text());
    }
    let posted = ask(here, "POST", "/v1/boot/n1", &[("content-length", "0")]).await;
    assert_eq!(posted.code, 405);
    let future = get(here, "/v1/boot/n1?at_least=99").await;
    assert_eq!((future.code, future.number("muster-sequence")), (412, 2));
    assert_eq!(get(here, "/v1/boot/n1?at_least=2").await.code, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_without_end_is_told_to_wait_and_nobody_else_is() {
    let limits = BootLimits { asks_per_second: 5, asks_burst: 5, ..BootLimits::default() };
    let (running, client) = alone_with(ClientLimits::default(), boots(limits)).await;
    small_fleet(&client).await;
    let assign = entry(EntryType::BootConfig, "node:n2", &[("vcluster", "batch")], Seq(0));
    recorded(&client.write(&author(), assign).await);
    let here = &running.client_address;
    let mut refused = None;
    for _ in 0..1_000 {
        let said = get(here, "/v1/boot/n1").await;
        if said.code == 429 {
            refused = Some(said);
            break;
        }
    }
    let refused = refused.expect("it asked a thousand times");
    assert!(refused.number("muster-retry-after-ms") <= 200, "{refused:?}");
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(get(here, "/v1/boot/n2").await.code, 200);
    assert_eq!(running.replica.boots().too_often, 1);
}

/// Declares so much that no socket takes it at once.
async fn large_overlay(client: &Client) {
    small_fleet(client).await;
    let mut state = 7_u64;
    // Less than the largest write, which storing the overlay is.
    for round in 0..4 {
        let mut letters = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'0' + u8::try_from(state >> 58).unwrap())
        };
        let value: String = std::iter::once('x').chain((0..900_000).map(&mut letters)).collect();
        let sequence = client
            .query(muster_core::request::Freshness::Local, &muster_core::query::Query::Summary)
            .await
            .unwrap()
            .sequence;
        let change = entry(EntryType::Commit, "vcluster:batch", &[(&format!("files:/{round}"), &value)], sequence);
        recorded(&client.write(&author(), change).await);
    }
}

/// Asks so many times, and then takes nothing. One answer may fit into the buffers between.
async fn reads_nothing(address: &str, times: usize) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut stream = socket.connect(address.parse().unwrap()).await.unwrap();
    stream.write_all("GET /v1/boot/n1 HTTP/1.1\r\nhost: x\r\n\r\n".repeat(times).as_bytes()).await.unwrap();
    stream
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it did not come to pass that {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_take_nothing_hold_their_places_for_no_longer_than_they_may() {
    let limits =
        BootLimits { streams_max: 2, patience_ms: 5_000, bytes_per_second_min: 1 << 40, ..BootLimits::default() };
    let (running, client) = alone_with(ClientLimits::default(), boots(limits)).await;
    large_overlay(&client).await;
    stored(&running).await;
    let here = &running.client_address;
    let held = [reads_nothing(here, 3).await, reads_nothing(here, 3).await];
    until("both places are taken", || running.replica.boots().under_way == 2).await;
    let told = get(here, "/v1/boot/n1").await;
    if running.replica.boots().stalled == 0 {
        assert_eq!(told.code, 503, "{:?}", told.headers);
        assert!(told.number("muster-retry-after-ms") >= 1);
    }
    until("the places are free again", || running.replica.boots().under_way == 0).await;
    assert_eq!(running.replica.boots().stalled, 2);
    assert_eq!(get(here, "/v1/boot/n1").await.code, 200);
    for mut reader in held {
        // Whatever was on its way arrives, then the end.
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).await.ok();
        assert!(!rest.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_that_keeps_its_pace_gets_all_of_it() {
    // Patience enough for a busy machine to build the overlay.
    let limits = BootLimits { patience_ms: 3_000, bytes_per_second_min: 1 << 20, ..BootLimits::default() };
    let (running, client) = alone_with(ClientLimits::default(), boots(limits)).await;
    large_overlay(&client).await;
    let length = stored(&running).await.number("content-length");
    let mut reader = reads_nothing(&running.client_address, 1).await;
    let mut got = 0;
    let mut buffer = vec![0; 256 << 10];
    while got < length {
        match reader.read(&mut buffer).await.unwrap() {
            0 => panic!("it was cut after {got} of {length}"),
            read => got += read,
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(running.replica.boots().stalled, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_overlay_arrives_as_it_is_however_it_is_read_and_whatever_replaces_it() {
    let (running, client) = alone().await;
    large_overlay(&client).await;
    let whole = stored(&running).await;
    let (here, path) = (&running.client_address, "/v1/boot/n1");
    let whole =
        if whole.header("etag") == get(here, path).await.header("etag") { whole } else { get(here, path).await };
    let (total, overlay) = (whole.body.len(), whole.number("muster-overlay-length"));

    // More than the buffers between take at once: what was begun goes on with the same bytes, from wherever it stopped.
    let mut slow = reads_nothing(here, 2).await;
    let mut got = vec![0; 70_001];
    slow.read_exact(&mut got).await.unwrap();

    for (first, last) in [(0, overlay - 1), (1, overlay), (12_345, overlay - 678), (overlay - 40_000, total - 1)] {
        let part = ask(here, "GET", path, &[("range", &format!("bytes={first}-{last}"))]).await;
        assert_eq!(part.code, 206);
        assert!(part.body == whole.body[first..=last], "from {first} to {last}");
    }

    // Another overlay takes its place, and is asked for.
    let sequence = running.replica.handle.view().state.sequence();
    let more: String = std::iter::repeat_n("another value ", 1_000).collect();
    let change = entry(EntryType::Commit, "vcluster:batch", &[("files:/more", &more)], sequence);
    recorded(&client.write(&author(), change).await);
    let state = running.replica.handle.view().state.clone();
    let batch: VClusterId = "batch".parse().unwrap();
    let newer = muster_core::overlay::build(&state, &batch).unwrap();
    let checksum = newer.checksum;
    let store = muster_core::driver::store_overlay(&state, batch, newer, 77);
    let stored_anew = running.replica.handle.write(store, true).await;
    assert!(matches!(stored_anew, Outcome::Applied { .. }), "{stored_anew:?}");
    assert_eq!(get(here, path).await.header("muster-overlay-checksum"), checksum.to_string());

    let head = got.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    got.resize(head + total, 0);
    slow.read_exact(&mut got[70_001..]).await.unwrap();
    assert!(got[head..] == whole.body, "the boot that was begun before is the one it was");
}

/// Answers on one connection, each read to its length.
struct Line(TcpStream, Vec<u8>);

impl Line {
    async fn open(address: &str) -> Self {
        Self(TcpStream::connect(address).await.unwrap(), Vec::new())
    }
    async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }
    /// The next answer; `head` says that no body comes with it.
    async fn hear(&mut self, head: bool) -> Said {
        loop {
            if let Some(end) = self.1.windows(4).position(|window| window == b"\r\n\r\n") {
                let mut said = read(&self.1[..end + 4]);
                let length = if head || said.code == 304 { 0 } else { said.number("content-length") };
                if self.1.len() >= end + 4 + length {
                    said.body = self.1[end + 4..end + 4 + length].to_vec();
                    self.1.drain(..end + 4 + length);
                    return said;
                }
            }
            assert_ne!(
                self.0.read_buf(&mut self.1).await.unwrap(),
                0,
                "the connection ended in an answer: {:?}",
                self.1
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_asks_for_boots_together_in_pieces_and_then_for_something_else() {
    let (running, client) = alone().await;
    large_overlay(&client).await;
    let whole = stored(&running).await;
    let here = &running.client_address;
    let whole = if whole.header("etag") == get(here, "/v1/boot/n1").await.header("etag") {
        whole
    } else {
        get(here, "/v1/boot/n1").await
    };
    let tag = whole.header("etag");
    let mut line = Line::open(here).await;

    // Together: answers come in the order of the questions, a large one among them.
    let boot = "GET /v1/boot/n1 HTTP/1.1\r\nhost: x\r\n\r\n";
    let unchanged = format!("GET /v1/boot/n1 HTTP/1.1\r\nIf-None-Match: {tag}\r\n\r\n");
    let part = "GET /v1/boot/n1 HTTP/1.1\r\nRANGE: bytes=100000-299999\r\n\r\n";
    let wrong = "GET /v1/boot/n1?colour=red HTTP/1.1\r\n\r\n";
    let alone = "HEAD /v1/boot/n1 HTTP/1.1\r\n\r\n";
    line.say([&unchanged, boot, part, wrong, alone, &unchanged].concat()).await;
    assert_eq!(line.hear(false).await.code, 304);
    let first = line.hear(false).await;
    assert!((first.code, &first.body) == (200, &whole.body), "{:?}", first.headers);
    assert!(first.header("date").ends_with(" GMT"), "{:?}", first.headers);
    let middle = line.hear(false).await;
    assert!((middle.code, &middle.body[..]) == (206, &whole.body[100_000..300_000]), "{:?}", middle.headers);
    assert_eq!(line.hear(false).await.code, 400);
    let head = line.hear(true).await;
    assert_eq!((head.code, head.number("content-length")), (200, whole.body.len()));
    assert_eq!(line.hear(false).await.code, 304);

    // In pieces.
    for byte in unchanged.as_bytes() {
        line.say([*byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(line.hear(false).await.code, 304);

    // Something else, asked together with a boot; then boots again.
    line.say([boot, "GET /health HTTP/1.1\r\nhost: x\r\n\r\n"].concat()).await;
    assert!(line.hear(false).await.body == whole.body);
    assert!(line.hear(false).await.text().contains("\"status\":\"ok\""));
    line.say([boot, "GET /v1/boot/n1/delta HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi", boot].concat()).await;
    assert!(line.hear(false).await.body == whole.body);
    assert_eq!(line.hear(false).await.body, whole.body[whole.number("muster-overlay-length")..]);
    assert!(line.hear(false).await.body == whole.body);
    until("every place is free", || running.replica.boots().under_way == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_end_a_connection_that_asks_nothing_is_closed_and_a_boot_under_way_is_finished() {
    let (running, client) = alone().await;
    large_overlay(&client).await;
    let length = stored(&running).await.number("content-length");
    let here = &running.client_address;
    let mut idle = Line::open(here).await;
    idle.say("GET /v1/boot/n1 HTTP/1.1\r\n\r\n").await;
    assert_eq!(idle.hear(false).await.code, 200);
    let mut slow = reads_nothing(here, 4).await;
    until("a boot is under way", || running.replica.boots().under_way == 1).await;
    running.replica.end();
    let mut rest = Vec::new();
    assert_eq!(idle.0.read_to_end(&mut rest).await.unwrap(), 0);
    // Whatever comes before the end is whole.
    slow.read_to_end(&mut rest).await.unwrap();
    let mut whole = 0;
    while !rest.is_empty() {
        let head = rest.windows(4).position(|window| window == b"\r\n\r\n").expect("a whole head") + 4;
        assert!(rest.len() >= head + length, "{} bytes of {length} after {whole} whole answers", rest.len() - head);
        rest.drain(..head + length);
        whole += 1;
    }
    assert!(whole > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_connection_is_closed_and_so_are_those_beyond_the_limit() {
    let limits =
        ClientLimits { idle_timeout: Duration::from_millis(400), connections_max: 4, ..ClientLimits::default() };
    let (running, client) = alone_with(limits, BootOptions::default()).await;
    small_fleet(&client).await;
    let here = &running.client_address;
    // The client's own connections speak HTTP/2 and stay.
    let before = running.replica.connections().open;
    let mut silent = TcpStream::connect(here).await.unwrap();
    let mut half = TcpStream::connect(here).await.unwrap();
    half.write_all(b"GET /v1/boot/n1 HT").await.unwrap();
    let mut extra = Vec::new();
    for _ in before + 2..6 {
        extra.push(TcpStream::connect(here).await.unwrap());
    }
    until("those beyond the limit are closed", || running.replica.connections().turned_away >= 2).await;
    let mut rest = Vec::new();
    assert_eq!(silent.read_to_end(&mut rest).await.unwrap_or(0), 0);
    assert_eq!(half.read_to_end(&mut rest).await.unwrap_or(0), 0);
    until("only those that speak are left", || running.replica.connections().open == before).await;
    assert!(running.replica.connections().idle >= 2);
    assert_eq!(get(here, "/v1/boot/n1").await.code, 200);
    recorded(&client.write(&author(), policy("still")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_leaves_boots_to_the_others_while_there_are_any() {
    let (leader, client) = alone().await;
    small_fleet(&client).await;
    assert_eq!(get(&leader.client_address, "/v1/boot/n1").await.code, 200, "there is nobody else");
    let learner = join(&client, 2).await;
    let sequence = leader.replica.handle.view().state.sequence();
    until("the leader hears of the learner", || {
        let active =
            leader.replica.handle.view().status.progress.iter().any(|peer| peer.recent_active && peer.replica.0 == 2);
        active && learner.replica.handle.view().state.sequence() >= sequence
    })
    .await;
    let sent = get(&leader.client_address, "/v1/boot/n1").await;
    assert_eq!((sent.code, sent.header("muster-elsewhere")), (503, &learner.client_address[..]));
    assert_eq!(get(&leader.client_address, "/v1/boot/n1?insist=yes").await.code, 200);
    assert_eq!(get(&learner.client_address, "/v1/boot/n1").await.code, 200);
    let ask = BootAsk { node: NodeId::new("n1").unwrap(), known: None, at_least: Seq(0) };
    assert_eq!(connect(&[&leader]).await.boot(&ask).await.unwrap().served_by, learner.client_address);
    let free = get(&learner.client_address, "/v1/free").await;
    assert!(free.text().contains("\"serves\":true,"), "{}", free.text());
    assert!(get(&leader.client_address, "/v1/free").await.text().contains("\"serves\":false,"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_without_certificates_gives_boots_and_nothing_else() {
    let (running, client) = alone().await;
    small_fleet(&client).await;
    let listener = Listener::bind("127.0.0.1:0", "nodes without a certificate", &Protection::Insecure).await.unwrap();
    let here = listener.address().to_string();
    tokio::spawn(serve_anonymous(listener, running.replica.clone(), ClientLimits::default()));
    assert_eq!(get(&here, "/v1/boot/n1").await.code, 200);
    assert_eq!(get(&here, "/v1/free").await.code, 200);
    for path in ["/metrics", "/health", "/", "/muster.v1.Muster/Status"] {
        assert_eq!(get(&here, path).await.code, 404, "{path}");
    }
    // Nor by gRPC.
    let stranger = Client::connect(vec![here], muster_net::client::Options::default()).await;
    assert!(stranger.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_overlay_is_built_once_however_many_ask_in_whatever_way() {
    let (running, client) = alone().await;
    small_fleet(&client).await;
    let asks = (0..100).map(|i| {
        let (client, here) = (client.clone(), running.client_address.clone());
        tokio::spawn(async move {
            if i % 2 == 0 {
                let ask = BootAsk { node: NodeId::new("n1").unwrap(), known: None, at_least: Seq(0) };
                client.boot(&ask).await.map(|boot| boot.overlay_checksum.to_string()).unwrap_or_default()
            } else {
                let path = if i % 4 == 1 { "/v1/boot/n1" } else { "/v1/boot/n1?overlay=plain" };
                let said = get(&here, path).await;
                said.headers.get("muster-overlay-checksum").cloned().unwrap_or_default()
            }
        })
    });
    let mut checksums: Vec<String> = Vec::new();
    for ask in asks.collect::<Vec<_>>() {
        checksums.push(ask.await.unwrap());
    }
    // Those beyond what one node may ask for are told so; all others get the same bytes.
    checksums.retain(|checksum| !checksum.is_empty());
    assert!(checksums.len() >= 20, "{}", checksums.len());
    assert!(checksums.iter().all(|checksum| *checksum == checksums[0]));
    assert_eq!(running.replica.boots().built, 1);
}

/// A stub that is sent a byte at a time.
async fn narrow(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.initial_stream_window_size(1).connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_over_grpc_holds_its_place_until_it_is_read_and_for_no_longer_than_it_may() {
    let limits = BootLimits { patience_ms: 1_500, bytes_per_second_min: 1 << 40, ..BootLimits::default() };
    let (running, client) = alone_with(ClientLimits::default(), boots(limits)).await;
    small_fleet(&client).await;
    stored(&running).await;
    let channel = narrow(&running.client_address).await;
    let request = BootRequest { node: "n1".to_owned(), ..BootRequest::default() };
    let unread = MusterClient::new(channel).boot(request).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(running.replica.boots().under_way, 1, "all of it is still to be sent");
    until("it is cut", || running.replica.boots().stalled == 1).await;
    until("the place is free again", || running.replica.boots().under_way == 0).await;
    drop(unread);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_nodes_wait_for_a_sequence_than_are_served() {
    let limits = BootLimits { streams_max: 2, ..BootLimits::default() };
    let (running, client) = alone_with(ClientLimits::default(), boots(limits)).await;
    small_fleet(&client).await;
    let here = running.client_address.clone();
    let far = "/v1/boot/n1?at_least=1000000";
    let waiting = [(); 2].map(|()| {
        let here = here.clone();
        tokio::spawn(async move { get(&here, far).await })
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let told = get(&here, far).await;
    assert_eq!(told.code, 503, "{told:?}");
    assert!(told.number("muster-retry-after-ms") >= 1);
    for waits in waiting {
        assert_eq!(waits.await.unwrap().code, 412);
    }
    assert_eq!(get(&here, "/v1/boot/n1?at_least=1").await.code, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn those_without_a_certificate_take_nothing_that_is_others() {
    let limits = ClientLimits { connections_max: 4, ..ClientLimits::default() };
    let asks = BootLimits { asks_per_second: 1, asks_burst: 3, ..BootLimits::default() };
    let (running, client) = alone_with(limits.clone(), boots(asks)).await;
    small_fleet(&client).await;
    let listener = Listener::bind("127.0.0.1:0", "nodes without a certificate", &Protection::Insecure).await.unwrap();
    let there = listener.address().to_string();
    tokio::spawn(serve_anonymous(listener, running.replica.clone(), limits));
    while get(&there, "/v1/boot/n1").await.code != 429 {}
    assert_eq!(
        get(&running.client_address, "/v1/boot/n1").await.code,
        200,
        "its own questions are counted for themselves"
    );
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(TcpStream::connect(&there).await.unwrap());
    }
    until("the places for strangers are taken", || running.replica.connections().turned_away >= 2).await;
    assert_eq!(get(&running.client_address, "/health").await.code, 200, "there is room for others");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_alone_is_sent_whatever_is_spoken_and_a_body_that_never_comes_is_not_waited_for() {
    let (running, client) = alone().await;
    small_fleet(&client).await;
    let here = &running.client_address;
    let endpoint = Endpoint::from_shared(format!("http://{here}")).unwrap();
    let mut http2 = endpoint.connect().await.unwrap();
    for (path, code) in [("/v1/boot/n1", 200), ("/v1/boot/nobody", 404), ("/v1/boot/n1?overlay=odd", 400)] {
        let uri = format!("http://{here}{path}");
        let request = Request::builder().method("HEAD").uri(uri).body(tonic::body::Body::empty()).unwrap();
        poll_fn(|context| http2.poll_ready(context)).await.unwrap();
        let said = http2.call(request).await.unwrap();
        assert_eq!(said.status().as_u16(), code, "{path}");
        assert!(said.headers().contains_key("content-length"), "{path}");
        let body = axum::body::to_bytes(axum::body::Body::new(said.into_body()), 1 << 20).await;
        assert!(body.unwrap_or_else(|error| panic!("{path}: {error}")).is_empty(), "{path}");
    }
    let silent = ask(here, "POST", "/muster.v1.Muster/Query", &[("content-length", "100")]);
    let said = tokio::time::timeout(Duration::from_secs(5), silent).await.expect("it is answered at once");
    assert_eq!(said.code, 405, "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_for_an_overlay_of_long_ago_gives_way_to_the_whole_boot() {
    let (running, client) = alone().await;
    large_overlay(&client).await;
    let version = stored(&running).await.header("muster-overlay-version").to_owned();
    let here = &running.client_address;
    let delta = |version: &str| format!("/v1/boot/n1/delta?vcluster=batch&version={version}");
    let told = get(here, &delta("0")).await;
    assert_eq!(told.code, 409);
    assert!(told.text().contains("take the whole boot"), "{}", told.text());
    assert_eq!(get(here, &delta(&version)).await.code, 200);
}
