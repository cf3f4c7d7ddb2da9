//! The command line against real replicas: what an operator does on an ordinary day, and what stops a server.

mod common;

use common::{Cluster, Ended, FLEET, MUSTER, Running, eventually, muster};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn sequence(ended: &Ended) -> u64 {
    ended.json()["sequence"].as_u64().unwrap_or_else(|| panic!("no sequence: {ended:?}"))
}

#[test]
fn dev_once_tells_the_whole_story_in_time() {
    let began = Instant::now();
    let ended = muster(&["dev", "--once", "--json"]).expect(0);
    let story = ended.json();
    let steps: Vec<_> = story["steps"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect();
    assert_eq!(
        steps,
        [
            "elect", "apply", "again", "overlays", "commit", "conflict", "rollback", "boot", "boot", "kill", "go on",
            "restart", "verify"
        ]
    );
    assert!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
}

#[test]
fn dev_leaves_no_process_and_no_directory_behind() {
    let mut child = Running(Command::new(MUSTER).args(["dev", "--json"]).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    let mut output = std::io::BufReader::new(child.0.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
    let server = ready["servers"][0].as_str().unwrap();
    let context = ready["context"].as_str().unwrap();
    let status = muster(&["status", "--json", "--context", context]).expect(0).json();
    assert_eq!(status["replicas"].as_array().unwrap().len(), 4);
    assert!(status["replicas"].as_array().unwrap().iter().all(|replica| replica["tls"] == true));
    assert!(child.interrupt().success());
    muster(&["status", "--timeout", "0.5", "--server", server]).expect(1);
    assert!(!std::path::Path::new(ready["dir"].as_str().unwrap()).exists());
}

#[test]
fn a_day_at_the_command_line() {
    let cluster = Cluster::start(1, 0);
    let fleet = cluster.write("fleet.toml", FLEET);
    let planned = cluster.muster(&["apply", &fleet, "--dry-run", "--json"]).expect(0).json();
    assert_eq!(planned["policies"].as_array().unwrap().len(), 2);
    let applied = cluster.muster(&["apply", &fleet, "--json"]).expect(0);
    assert_eq!(applied.json()["entries"], 22, "{applied:?}");
    assert_eq!(cluster.muster(&["apply", &fleet, "--json"]).expect(0).json()["outcome"], "unchanged");

    let batch = ["commit", "--json", "--scope", "vcluster:batch", "-m", "test"];
    let commit = |more: &[&str]| cluster.muster(&[&batch[..], more].concat());
    let first = sequence(&commit(&["kernel:a=1", "--absent", "services:cups"]).expect(0));
    let second = sequence(&commit(&["kernel:a=2"]).expect(0));
    let conflict = commit(&["kernel:a=3", "--parent", &first.to_string()]).expect(4);
    let about = &conflict.json()["detail"]["about"];
    assert_eq!(about["theirs"]["value"], "2");
    assert_eq!(about["yours"]["value"], "3");
    assert_eq!(about["theirs_sequence"], second);
    // Disjoint keys are no conflict, however old the parent.
    commit(&["kernel:b=1", "--parent", &first.to_string()]).expect(0);

    let back = ["rollback", "--scope", "vcluster:batch", "--to", &first.to_string(), "-m", "back", "--json"];
    let rolled_back = cluster.muster(&back).expect(0).json();
    assert_eq!(rolled_back["record"]["takes_off"].as_array().unwrap().len(), 2);
    let state = cluster.muster(&["state", "vcluster:batch", "--json"]).expect(0).json();
    let says = |key: &str| {
        let settings = state["settings"].as_array().unwrap();
        settings.iter().find(|setting| setting["key"] == key).map(|setting| setting["setting"].clone())
    };
    assert_eq!(says("kernel:a").unwrap()["value"], "1");
    assert_eq!(says("services:cups").unwrap()["absent"], true);
    assert_eq!(says("kernel:b"), None);
    let then = cluster.muster(&["state", "vcluster:batch", "--at", &second.to_string(), "--json"]).expect(0).json();
    assert_eq!(then["settings"][0]["setting"]["value"], "2");
    let diff = ["diff", "vcluster:batch", "--from", &first.to_string(), "--to", &second.to_string(), "--json"];
    assert_eq!(cluster.muster(&diff).expect(0).json()["differences"].as_array().unwrap().len(), 1);

    let boot = cluster.muster(&["boot", "n7", "--json"]).expect(0).json();
    let settings = boot["settings"].as_array().unwrap();
    let swappiness = settings.iter().find(|setting| setting["key"] == "kernel:vm.swappiness").unwrap();
    assert_eq!(swappiness["setting"]["value"], "1");
    assert_eq!(swappiness["from"], "delta");

    cluster.muster(&["emergency", "start", "n7", "--reason", "smoke", "--journal-only"]).expect(0);
    cluster.muster(&["emergency", "start", "n7", "--reason", "smoke", "--journal-only"]).expect(1);
    let node = cluster.muster(&["state", "node:n7", "--json"]).expect(0).json();
    assert_eq!(node["node"]["emergency_reason"], "smoke");
    cluster.muster(&["emergency", "end", "n7", "--journal-only"]).expect(0);
    cluster.muster(&["op", "record", "exec", "--node", "n7", "--exit-status", "-1", "dmesg"]).expect(0);
    let audit = cluster.muster(&["audit", "--json", "--by", "tester", "-n", "1"]).expect(0);
    assert_eq!(audit.json()["detail"], "dmesg");
    assert_eq!(audit.json()["author"]["principal"], "claimed:tester");

    cluster.muster(&["policy", "set", "batch", "sensitivity=5", "mode=warn"]).expect(0);
    let policy = cluster.muster(&["policy", "get", "batch", "--json"]).expect(0).json();
    assert_eq!((&policy["policy"]["mode"], &policy["policy"]["base_window_seconds"]), (&"warn".into(), &600.into()));
    let rollbacks = cluster.muster(&["log", "--type", "rollback", "--json"]).expect(0);
    assert_eq!(rollbacks.json_lines().len(), 1);

    let verified = cluster.muster(&["verify", "--json"]).expect(0).json();
    let head = format!("{}:{}", verified["sequence"], verified["head"].as_str().unwrap());
    commit(&["kernel:c=1"]).expect(0);
    assert_eq!(cluster.muster(&["verify", "--json", "--head", &head]).expect(0).json()["head_matched"], true);
    let other = format!("{}:{}", verified["sequence"], "0".repeat(64));
    cluster.muster(&["verify", "--head", &other]).expect(1);
}

#[test]
fn what_the_rules_refuse_is_told_with_its_reason_and_recorded_nowhere() {
    let cluster = Cluster::start(1, 0);
    let fleet = cluster.write("fleet.toml", FLEET);
    cluster.muster(&["apply", &fleet]).expect(0);
    let head = || cluster.leader_status().unwrap()["journal"]["sequence"].as_u64().unwrap();
    let before = head();
    for (args, reason) in [
        (vec!["commit", "--scope", "node:nobody", "kernel:a=1", "-m", "x"], "node:nobody is not known"),
        (vec!["commit", "--scope", "global", "kernel:a=1", "-m", "x", "--ttl", "899"], "expected 900 to 864000"),
        (
            vec!["commit", "--scope", "global", "kernel:a=1", "-m", "x", "--parent", "99999"],
            "beyond the journal's head",
        ),
        (vec!["commit", "--scope", "global", "kernel:a=1", "-m", "x", "--author", ""], "author"),
        (vec!["rollback", "--scope", "global", "--to", "99999", "-m", "x"], "nothing to take off"),
        (vec!["boot", "nobody"], "not known"),
    ] {
        let ended = cluster.muster(&args).expect(1);
        assert!(ended.stderr.contains(reason), "{args:?}: {}", ended.stderr);
    }
    assert_eq!(head(), before);
}

#[test]
fn following_the_log_shows_what_is_committed_meanwhile() {
    let cluster = Cluster::start(1, 0);
    let follower = Command::new(MUSTER)
        .args(["log", "--follow", "--json", "--type", "commit", "--server", &cluster.servers()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut follower = Running(follower);
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(follower.0.stdout.take().unwrap()));
    for value in ["1", "2", "3"] {
        cluster.muster(&["commit", "--scope", "global", &format!("kernel:a={value}"), "-m", value]).expect(0);
        let record: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(record["message"], value);
    }
}

#[test]
fn without_a_name_in_the_environment_the_account_is_the_author() {
    let cluster = Cluster::start(1, 0);
    let args = ["commit", "--scope", "global", "kernel:a=1", "-m", "x", "--server", &cluster.servers()];
    let mut command = Command::new(MUSTER);
    command.args(args).env_remove("USER").env_remove("LOGNAME").env_remove("MUSTER_AUTHOR");
    assert!(command.output().unwrap().status.success());
    let record = cluster.muster(&["log", "-n", "1", "--json"]).expect(0).json();
    let principal = record["author"]["principal"].as_str().unwrap();
    assert!(principal.starts_with("claimed:") && principal.len() > "claimed:".len(), "{principal}");
}

#[test]
fn a_request_asked_again_under_its_id_is_applied_once() {
    let cluster = Cluster::start(1, 0);
    let commit = ["commit", "--scope", "global", "kernel:a=1", "-m", "once", "--parent", "0", "--json"];
    let first = cluster.muster(&commit).expect(0);
    let id = first.json()["request_id"].as_str().unwrap().to_owned();
    let again = cluster.muster(&[&commit[..], &["--request-id", &id]].concat()).expect(0);
    assert_eq!(sequence(&first), sequence(&again));
}

#[test]
fn without_a_quorum_nothing_is_applied_and_local_reads_go_on() {
    let mut cluster = Cluster::start(3, 0);
    let fleet = cluster.write("fleet.toml", FLEET);
    cluster.muster(&["apply", &fleet]).expect(0);
    cluster.kill(1);
    cluster.kill(2);
    let commit = ["commit", "--scope", "global", "kernel:a=1", "-m", "x", "--parent", "0", "--timeout", "8"];
    eventually("the cut-off leader steps down", || {
        let status = cluster.muster_on(0, &["status", "--json"]).json();
        let alone = status["replicas"].as_array()?.iter().find(|replica| replica["name"] == "r1")?.clone();
        (alone["raft"]["role"] != "leader").then_some(())
    });
    let ended = cluster.muster_on(0, &commit).expect(5);
    assert!(ended.stderr.contains("no quorum"), "{}", ended.stderr);
    cluster.muster_on(0, &["state", "global", "--local"]).expect(0);
    cluster.muster_on(0, &["boot", "n7"]).expect(0);
    cluster.spawn(1);
    cluster.wait_for_leader();
    eventually("commits are taken again", || (cluster.muster(&commit).code == 0).then_some(()));
}

#[test]
fn a_terminated_leader_hands_over_and_ends_with_0() {
    let mut cluster = Cluster::start(3, 0);
    let leader = cluster.wait_for_leader();
    assert_eq!(cluster.terminate(leader), Some(0), "{}", cluster.log(leader));
    assert!(cluster.log(leader).contains("leadership is handed over"), "{}", cluster.log(leader));
    let next = cluster.wait_for_leader();
    assert_ne!(next, leader);
}

#[test]
fn a_fourth_joins_and_a_lost_one_is_replaced() {
    let mut cluster = Cluster::start(3, 0);
    let fourth = cluster.configure("r4", "");
    cluster.join(fourth, false).expect(0);
    // Asked twice, it says whose directory it is.
    let ended = cluster.join(fourth, false).expect(1);
    assert!(ended.stderr.contains("is a replica's already"), "{}", ended.stderr);
    cluster.spawn(fourth);
    let part = |cluster: &Cluster, name: &str| {
        let members = cluster.muster(&["members", "list", "--json"]).json();
        let member = members["members"].as_array()?.iter().find(|member| member["name"] == name)?.clone();
        Some(member["part"].as_str()?.to_owned())
    };
    eventually("the fourth learns", || (part(&cluster, "r4")? == "learner").then_some(()));
    eventually("the fourth is promoted", || (cluster.muster(&["members", "promote", "r4"]).code == 0).then_some(()));
    assert_eq!(part(&cluster, "r4").as_deref(), Some("voter"));

    let leader = cluster.wait_for_leader();
    let lost = (1..4).find(|i| *i != leader).unwrap();
    cluster.kill(lost);
    let config = cluster.config(lost);
    let name = cluster.replicas[lost].name.clone();
    let replaced = muster(&["replace", "--config", &config, "--old", &name, "--json"]).expect(0).json();
    assert!(std::path::Path::new(replaced["moved_aside"].as_str().unwrap()).exists());
    cluster.spawn(lost);
    eventually("the new one votes and the old one is out", || {
        let members = cluster.muster(&["members", "list", "--json"]).json();
        let members = members["members"].as_array()?.clone();
        let new = members.iter().find(|member| member["id"] == replaced["replica"])?;
        let old = members.iter().any(|member| member["id"] == replaced["replaces"]);
        (new["part"] == "voter" && !old).then_some(())
    });
}

#[test]
fn a_server_says_what_keeps_it_from_running() {
    let mut cluster = Cluster::start(1, 0);
    // Its own directory a second time.
    let config = cluster.config(0);
    let ended = muster(&["server", "--config", &config]).expect(1);
    assert!(ended.stderr.contains("in use by another muster process"), "{}", ended.stderr);
    // Another replica's port.
    let second = cluster.configure("r2", "");
    let port = cluster.replicas[0].address.rsplit(':').next().unwrap().to_owned();
    let own = cluster.replicas[second].address.rsplit(':').next().unwrap().to_owned();
    let text = std::fs::read_to_string(&cluster.replicas[second].config).unwrap();
    let busy = cluster.write("busy.toml", &text.replace(&format!("\nport = {own}"), &format!("\nport = {port}")));
    muster(&["init", "--config", &busy]).expect(0);
    let ended = muster(&["server", "--config", &busy]).expect(1);
    assert!(ended.stderr.contains("is in use by another process"), "{}", ended.stderr);
    // Made already.
    let ended = muster(&["init", "--config", &busy]).expect(1);
    assert!(ended.stderr.contains("does not belong here"), "{}", ended.stderr);
    // Another name.
    let renamed = cluster.write("renamed.toml", &text.replace("\"r2\"", "\"r9\""));
    let ended = muster(&["server", "--config", &renamed]).expect(1);
    assert!(ended.stderr.contains("belongs to replica \"r2\""), "{}", ended.stderr);
    // Nobody to join.
    let alone = cluster.write("alone.toml", "[raft]\nnode_id = \"r3\"\ndata_dir = \"/nowhere\"\n");
    let ended = muster(&["join", "--config", &alone]).expect(1);
    assert!(ended.stderr.contains("raft.bootstrap"), "{}", ended.stderr);
}

#[test]
fn inspect_shows_a_directory_and_tells_its_damage() {
    let mut cluster = Cluster::start(1, 0);
    cluster.muster(&["commit", "--scope", "global", "kernel:a=1", "-m", "x"]).expect(0);
    let data = cluster.replicas[0].data.display().to_string();
    let seen = muster(&["inspect", &data, "--json"]).expect(0).json();
    assert_eq!(seen["identity"]["replica"], 1);
    cluster.kill(0);
    let repaired = muster(&["repair", &data, "--json"]).expect(0).json();
    assert_eq!(repaired["moved_aside"].as_array().unwrap().len(), 0);
    let wal = seen["wal"][0]["file"].as_str().unwrap();
    let mut bytes = std::fs::read(wal).unwrap();
    bytes[600] ^= 1;
    std::fs::write(wal, bytes).unwrap();
    let ended = muster(&["inspect", &data]).expect(1);
    assert!(ended.stderr.contains("damaged at offset"), "{}", ended.stderr);
    let config = cluster.config(0);
    let ended = muster(&["server", "--config", &config]).expect(1);
    assert!(ended.stderr.contains(wal) && ended.stderr.contains("muster replace"), "{}", ended.stderr);
}

#[test]
fn metrics_and_health_are_served_beside_the_api() {
    let cluster = Cluster::start(1, 0);
    let get = |path: &str| {
        let mut stream = std::net::TcpStream::connect(&cluster.replicas[0].address).unwrap();
        std::io::Write::write_all(
            &mut stream,
            format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stream, &mut text).unwrap();
        text
    };
    assert!(get("/health").starts_with("HTTP/1.1 200"), "{}", get("/health"));
    assert!(get("/metrics").contains("muster_raft_role{role=\"leader\"} 1"), "{}", get("/metrics"));
}
