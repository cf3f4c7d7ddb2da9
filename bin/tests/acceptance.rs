//! What an operator meets on a bad day: a minority, frozen replicas, damaged, foreign and vanished directories, wrong requests.

mod common;

use common::{Cluster, eventually, muster};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Every file below a directory with its bytes; locks, which are empty, left out.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.file_name().is_some_and(|name| name != "lock") {
                found.push((path.clone(), std::fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    for (path, bytes) in contents(from) {
        let path = to.join(path.strip_prefix(from).unwrap());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// A cluster of one whose directory holds a file of every kind, stopped.
fn stopped_with_every_kind_of_file() -> Cluster {
    let mut cluster = Cluster::start(1, 0);
    for i in 0..20 {
        cluster.muster(&["commit", "--scope", "global", &format!("kernel:a.{i}=1"), "-m", "x"]).expect(0);
        if i == 10 {
            cluster.muster(&["snapshot"]).expect(0);
        }
    }
    cluster.muster(&["snapshot"]).expect(0);
    cluster.kill(0);
    cluster
}

/// The newest file of each kind.
fn one_of_each(data: &Path) -> Vec<PathBuf> {
    let all = contents(data);
    ["identity", "wal", "snap-", "history"]
        .iter()
        .map(|kind| {
            let is_kind = |path: &Path| path.strip_prefix(data).unwrap().display().to_string().contains(kind);
            all.iter().map(|(path, _)| path.clone()).rfind(|path| is_kind(path)).unwrap()
        })
        .collect()
}

fn reseal(sector: &mut [u8]) {
    let mut crc = !0_u32;
    for byte in &sector[..508] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (0_u32.wrapping_sub(crc & 1)));
        }
    }
    sector[508..512].copy_from_slice(&(!crc).to_le_bytes());
}

#[test]
fn a_flipped_byte_in_any_kind_of_file_is_told_with_its_place_and_harms_nothing_else() {
    let mut cluster = stopped_with_every_kind_of_file();
    let (data, config) = (cluster.replicas[0].data.clone(), cluster.config(0));
    let good = cluster.path("good");
    copy(&data, &good);
    for file in one_of_each(&data) {
        for offset in [100, 530] {
            copy(&good, &data);
            let mut bytes = std::fs::read(&file).unwrap();
            bytes[offset] ^= 0x10;
            std::fs::write(&file, &bytes).unwrap();
            let before = contents(&data);
            let ended = muster(&["server", "--config", &config]).expect(1);
            let place = format!("{} is damaged at offset", file.display());
            assert!(ended.stderr.contains(&place), "{offset}: {}", ended.stderr);
            assert_eq!(contents(&data), before, "{place}: the refusal changed a file");
            let directory = data.display().to_string();
            let inspected = muster(&["inspect", &directory]).expect(1);
            assert!(inspected.stderr.contains(&place), "{}", inspected.stderr);
            if ended.stderr.contains("muster repair") {
                muster(&["repair", &directory]).expect(0);
                cluster.spawn(0);
                cluster.wait_for_leader();
                cluster.muster(&["verify"]).expect(0);
                cluster.kill(0);
                muster(&["inspect", &directory]).expect(0);
            } else {
                assert!(ended.stderr.contains("muster replace"), "{}", ended.stderr);
                muster(&["repair", &directory]).expect(1);
                assert_eq!(contents(&data), before, "{place}: repair changed a file that it cannot repair");
            }
        }
    }
}

#[test]
fn a_repaired_replica_has_every_commit_and_one_chain() {
    let mut cluster = stopped_with_every_kind_of_file();
    let data = cluster.replicas[0].data.clone();
    for file in one_of_each(&data).into_iter().skip(2) {
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[530] ^= 0x10;
        std::fs::write(&file, &bytes).unwrap();
    }
    muster(&["repair", &data.display().to_string()]).expect(0);
    cluster.spawn(0);
    cluster.wait_for_leader();
    let commits = cluster.muster(&["log", "--type", "commit", "--json"]).expect(0).json_lines();
    assert_eq!(commits.len(), 20);
    cluster.muster(&["verify"]).expect(0);
}

#[test]
fn a_file_of_a_future_format_is_left_alone_and_nothing_is_called_damaged() {
    let cluster = stopped_with_every_kind_of_file();
    let (data, config) = (cluster.replicas[0].data.clone(), cluster.config(0));
    let good = cluster.path("good");
    copy(&data, &good);
    for file in one_of_each(&data) {
        copy(&good, &data);
        let mut bytes = std::fs::read(&file).unwrap();
        let known = bytes[8];
        let newer = known + 1;
        bytes[8] = newer;
        reseal(&mut bytes[..512]);
        std::fs::write(&file, &bytes).unwrap();
        let before = contents(&data);
        let directory = data.display().to_string();
        for args in [vec!["server", "--config", &config], vec!["inspect", &directory], vec!["repair", &directory]] {
            let ended = muster(&args).expect(1);
            let told =
                format!("{} has format {newer}, this muster knows up to {known}; start a newer muster", file.display());
            assert!(ended.stderr.contains(&told), "{args:?}: {}", ended.stderr);
            assert!(!ended.stderr.contains("is damaged"), "{args:?}: {}", ended.stderr);
            assert_eq!(contents(&data), before, "{args:?} changed a file");
        }
    }
}

#[test]
fn files_of_another_clusters_directory_are_refused_and_left_alone() {
    let mut cluster = stopped_with_every_kind_of_file();
    let other = cluster.configure("r1", "");
    std::fs::remove_file(cluster.path("r1.log")).unwrap();
    let (data, config) = (cluster.replicas[0].data.clone(), cluster.config(0));
    let second = cluster.path("second");
    let text = std::fs::read_to_string(&config)
        .unwrap()
        .replace(&format!("data_dir = \"{}\"", data.display()), &format!("data_dir = \"{}\"", second.display()));
    let path = cluster.write("second.toml", &text);
    muster(&["init", "--config", &path]).expect(0);
    std::fs::copy(second.join("identity"), data.join("identity")).unwrap();
    let before = contents(&data);
    let ended = muster(&["server", "--config", &cluster.config(other)]).expect(1);
    assert!(ended.stderr.contains("does not belong here") && ended.stderr.contains("put each file back"), "{ended:?}");
    assert_eq!(contents(&data), before);
}

#[test]
fn a_directory_that_vanishes_stops_its_replica_with_the_reason() {
    let mut cluster = Cluster::start(1, 0);
    let data = cluster.replicas[0].data.clone();
    std::fs::rename(&data, cluster.path("moved")).unwrap();
    assert_eq!(cluster.ended(0), Some(1), "{}", cluster.log(0));
    let log = cluster.log(0);
    assert!(log.contains(&format!("{} was removed or moved while the replica ran", data.display())), "{log}");
    std::fs::rename(cluster.path("moved"), &data).unwrap();
    cluster.spawn(0);
    cluster.wait_for_leader();
}

#[test]
fn a_minority_says_5_for_what_reached_no_log_and_6_for_what_did_and_serves_what_it_has() {
    let cluster = Cluster::start(3, 0);
    cluster.muster(&["policy", "set", "v"]).expect(0);
    cluster.muster(&["commit", "--scope", "node:n1", "vcluster=v", "--boot-config", "-m", "x"]).expect(0);
    let leader = cluster.wait_for_leader();
    let others: Vec<_> = (0..3).filter(|i| *i != leader).collect();
    for i in &others {
        cluster.signal(*i, "-STOP");
    }
    // At once: it still leads, and what it is asked goes into its log.
    let id = "000000000000000000000000deadbeef@1000";
    let doubtful = ["commit", "--scope", "global", "kernel:a=1", "-m", "x", "--parent", "0", "--request-id", id];
    let began = Instant::now();
    let ended = cluster.muster_on(leader, &[&doubtful[..], &["--timeout", "3"]].concat()).expect(6);
    assert!(ended.stderr.contains(&format!("--request-id {id}")), "{}", ended.stderr);
    eventually("it steps down", || {
        let metrics = cluster.muster_on(leader, &["status", "--json", "--timeout", "0.5"]).json();
        let own = metrics["replicas"].as_array()?.iter().find(|replica| replica["raft"].is_object())?.clone();
        (own["raft"]["role"] != "leader").then_some(())
    });
    // Two others that cannot be reached do not hide what the one that answers says, however often it is asked.
    for verb in [
        vec!["commit", "--scope", "global", "kernel:b=1", "-m", "x", "--timeout", "3"],
        vec!["commit", "--scope", "global", "kernel:b=1", "-m", "x", "--timeout", "6"],
        vec!["commit", "--scope", "global", "kernel:b=1", "-m", "x", "--parent", "0", "--timeout", "6"],
        vec!["state", "global", "--timeout", "6"],
    ] {
        let ended = cluster.muster_on(leader, &verb).expect(5);
        assert!(ended.stderr.contains("no quorum"), "{verb:?}: {}", ended.stderr);
    }
    assert!(began.elapsed() < Duration::from_mins(1), "--timeout is not kept: {:?}", began.elapsed());
    cluster.muster_on(leader, &["state", "node:n1", "--local"]).expect(0);
    cluster.muster_on(leader, &["boot", "n1"]).expect(0);
    for i in &others {
        cluster.signal(*i, "-CONT");
    }
    cluster.wait_for_leader();
    let first = cluster.muster(&[&doubtful[..], &["--json"]].concat()).expect(0).json();
    let second = cluster.muster(&[&doubtful[..], &["--json"]].concat()).expect(0).json();
    assert_eq!(first["sequence"], second["sequence"]);
    let commits = cluster.muster(&["log", "--type", "commit", "--json"]).expect(0).json_lines();
    assert_eq!(commits.len(), 1, "{commits:?}");
}

#[test]
fn a_frozen_leader_is_replaced_within_5_s_and_obeys_when_it_thaws() {
    let cluster = Cluster::start(3, 0);
    let leader = cluster.wait_for_leader();
    cluster.signal(leader, "-STOP");
    let began = Instant::now();
    let next = (0..3).find(|i| *i != leader).unwrap();
    eventually("another one leads", || {
        let status = cluster.muster_on(next, &["status", "--json", "--timeout", "0.5"]).json();
        let replicas = status["replicas"].as_array()?.clone();
        let leads = replicas.iter().find(|replica| replica["raft"]["role"] == "leader")?;
        (leads["name"] != cluster.replicas[leader].name.as_str()).then_some(())
    });
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    cluster.muster_on(next, &["commit", "--scope", "global", "kernel:a=1", "-m", "x"]).expect(0);
    cluster.signal(leader, "-CONT");
    eventually("the old leader follows and has the commit", || {
        let ended = cluster.muster_on(leader, &["state", "global", "--local", "--json"]);
        ended.stdout.contains("kernel:a").then_some(())
    });
}

#[test]
fn a_question_beyond_the_head_is_told_where_the_head_is() {
    let cluster = Cluster::start(1, 0);
    cluster.muster(&["policy", "set", "v"]).expect(0);
    cluster.muster(&["commit", "--scope", "node:n1", "vcluster=v", "--boot-config", "-m", "x"]).expect(0);
    let ended = cluster.muster(&["boot", "n1", "--at-least", "99999", "--timeout", "1"]).expect(1);
    assert!(ended.stderr.contains("the replicas asked are at sequence 2"), "{}", ended.stderr);
    let ended = cluster.muster(&["verify", "--head", &format!("99999:{}", "0".repeat(64))]).expect(1);
    assert!(ended.stderr.contains("the journal's head here is 2"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("stop that replica"), "{}", ended.stderr);
    cluster.muster(&["show", "0"]).expect(1);
    let ended = cluster.muster(&["state", "global", "--at", "99999"]).expect(1);
    assert!(ended.stderr.contains("the journal's head here is 2"), "{}", ended.stderr);
    // A request id that the cluster cannot know any more is not worth asking with again.
    let old = "00000000000000000000000000000001@999999999999999";
    let ended =
        cluster.muster(&["commit", "--scope", "global", "kernel:a=1", "-m", "x", "--request-id", old]).expect(6);
    assert!(ended.stderr.contains("muster log") && !ended.stderr.contains("ask again"), "{}", ended.stderr);
}

#[test]
fn refusals_leave_all_replicas_with_the_same_journal() {
    let cluster = Cluster::start(3, 0);
    cluster.muster(&["policy", "set", "v"]).expect(0);
    cluster.muster(&["commit", "--scope", "global", "kernel:a=1", "-m", "x"]).expect(0);
    let head = |i: usize| cluster.muster_on(i, &["verify", "--json"]).json()["head"].as_str().map(str::to_owned);
    let before = head(0);
    for (args, code) in [
        (vec!["kernel:a=2", "--parent", "0"], 4),
        (vec!["kernel:a=2", "--parent", "99999"], 1),
        (vec!["kernel:b=1", "--ttl", "899"], 1),
        (vec!["kernel:b=1", "--ttl", "864001"], 1),
        (vec!["kernel:b=1", "--author", ""], 1),
        (vec!["kernel:b=1", "kernel:b=2"], 2),
        (vec!["colour:b=1"], 2),
    ] {
        for i in 0..3 {
            let args = [&["commit", "--scope", "global", "-m", "x"][..], &args].concat();
            let ended = cluster.muster_on(i, &args).expect(code);
            assert!(!ended.stderr.is_empty());
        }
    }
    for i in 0..3 {
        eventually("all have the same head", || (head(i) == before).then_some(()));
    }
}

#[test]
fn a_large_file_is_read_in_time_that_grows_with_its_length() {
    let cluster = Cluster::start(1, 0);
    let mut text = String::from("[global.kernel]\n");
    for i in 0..20_000 {
        writeln!(text, "\"key.{i}\" = \"{}\"", "y".repeat(90)).unwrap();
    }
    let fleet = cluster.write("large.toml", &text);
    let ended = cluster.muster(&["apply", &fleet, "--json"]).expect(0).json();
    assert_eq!(ended["changes"], 20_000);
}

#[test]
fn pages_that_are_not_there_are_told_so() {
    let cluster = Cluster::start(1, 0);
    let get = |path: &str| {
        let mut stream = std::net::TcpStream::connect(&cluster.replicas[0].address).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stream, &mut text).unwrap();
        text
    };
    assert!(get("/helth").starts_with("HTTP/1.1 404"), "{}", get("/helth"));
    let metrics = get("/metrics");
    let (_, body) = metrics.split_once("\r\n\r\n").unwrap();
    for line in body.lines().filter(|line| line.starts_with("muster_")) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(name.split('{').next().unwrap().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
    }
}

#[test]
fn a_server_s_lines_carry_replica_term_and_index() {
    let cluster = Cluster::start(1, 0);
    let log = cluster.log(0);
    for word in ["leads", "configuration changed", "follows a leader"] {
        let Some(line) = log.lines().find(|line| line.contains(word)) else { continue };
        for field in ["replica=1", "term=", "index="] {
            assert!(line.contains(field), "{field} is missing: {line}");
        }
    }
    assert!(log.contains("leads"), "{log}");
}

/// Two vClusters of one node each.
const TWO: &str = r#"
[vcluster.a.kernel]
"x" = 1
[vcluster.b.kernel]
"x" = 10
[[nodes]]
names = "n1"
vcluster = "a"
[[nodes]]
names = "n2"
vcluster = "b"
"#;

#[test]
fn a_nodes_commit_is_in_its_boot_and_moves_no_other_overlay() {
    let cluster = Cluster::start(1, 0);
    let fleet = cluster.write("two.toml", TWO);
    cluster.muster(&["apply", &fleet]).expect(0);
    let version = |vcluster: &str, which: &str| {
        let all = cluster.muster(&["vclusters", "--json"]).expect(0).json();
        let one = all["vclusters"].as_array().unwrap().iter().find(|one| one["vcluster"] == vcluster).cloned().unwrap();
        one[which].as_u64()
    };
    let settled = |vcluster| version(vcluster, "overlay_version") == version(vcluster, "config_version");
    eventually("both overlays are stored", || (settled("a") && settled("b")).then_some(()));
    let (a, b) = (version("a", "overlay_version"), version("b", "overlay_version"));
    let boot = |node: &str| cluster.muster(&["boot", node, "--json"]).expect(0).json();
    let in_delta = |boot: &serde_json::Value, key: &str| {
        let found = boot["delta"].as_array().unwrap().iter().find(|line| line["key"] == key);
        found.map(|line| line["setting"]["value"].clone())
    };

    cluster.muster(&["commit", "--scope", "node:n1", "kernel:mine=7", "-m", "by hand"]).expect(0);
    let one = boot("n1");
    assert_eq!(one["overlay"]["version"].as_u64(), a, "a node's commit moves no overlay");
    assert_eq!(in_delta(&one, "kernel:mine"), Some("7".into()));
    assert_eq!(in_delta(&boot("n2"), "kernel:mine"), None);

    // The second commit comes before the overlay can be rebuilt a second time.
    for x in ["2", "3"] {
        cluster.muster(&["commit", "--scope", "vcluster:a", &format!("kernel:x={x}"), "-m", "again"]).expect(0);
        let booted = boot("n1");
        let overlay = booted["overlay"]["version"].as_u64();
        let right = in_delta(&booted, "kernel:x") == Some(x.into()) || overlay == version("a", "config_version");
        assert!(right, "a boot beside an overlay's rebuild: {booted}");
    }
    eventually("the overlay is rebuilt", || settled("a").then_some(()));
    assert_eq!(in_delta(&boot("n1"), "kernel:x"), None, "a fresh overlay needs no delta");
    assert_eq!(version("b", "overlay_version"), b, "another vCluster's overlay did not change");
}
