//! A node's agent as its operators meet it: real processes, a directory that stands for the machine, short windows.

mod common;

use common::agent::Agent;
use common::{Cluster, eventually};
use serde_json::Value;

/// A journal with one vCluster, whose policy is the default but for these fields.
fn journal(policy: &[&str]) -> Cluster {
    let cluster = Cluster::start(1, 0);
    cluster.muster(&[&["policy", "set", "v"], policy].concat()).expect(0);
    cluster
}

/// The node's records, oldest first.
fn story(cluster: &Cluster, node: &str) -> Vec<Value> {
    let scope = format!("node:{node}");
    cluster.muster(&["log", "--scope", &scope, "--json", "--after", "0"]).expect(0).json_lines()
}

fn kinds(story: &[Value]) -> Vec<String> {
    story.iter().map(|record| record["type"].as_str().or(record["kind"].as_str()).unwrap_or("?").to_owned()).collect()
}

#[test]
fn a_change_takes_effect_at_once_and_a_commit_declares_it() {
    let cluster = journal(&[]);
    let agent = Agent::start(&cluster, "n1", "v");
    let told = cluster.muster(&["set", "files:/motd=hello", "--node", "n1", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(told["forecast"]["seconds"], 300, "{told}");
    assert_eq!(agent.read("/motd"), None);

    let set = cluster.muster(&["set", "files:/motd=hello", "--node", "n1", "--json"]).expect(0).json();
    assert_eq!(agent.read("/motd").as_deref(), Some("hello"));
    assert_eq!(set["forecast"]["seconds"], 300, "{set}");
    // A kernel parameter weighs double: the square root of 1 + 2, and the deadline only ever moves nearer.
    let set = cluster.muster(&["set", "kernel:vm.swappiness=10", "--node", "n1", "--json"]).expect(0).json();
    assert_eq!(set["forecast"]["explanation"]["seconds"], 201, "{set}");
    let left = set["window"]["seconds_left"].as_u64().unwrap();
    assert!((195..=201).contains(&left), "{set}");

    let drift = cluster.muster(&["drift", "n1", "--json"]).expect(0).json();
    assert_eq!(drift["differences"].as_array().unwrap().len(), 2, "{drift}");
    assert_eq!(drift["differences"][0]["owner"]["operator"]["principal"], "claimed:tester", "{drift}");
    eventually("a replica has heard of the agent", || {
        let heard = cluster.muster(&["window", "--json"]).expect(0).json();
        (heard["nodes"][0]["node"] == "n1").then_some(())
    });

    let committed = cluster.muster(&["commit", "n1", "-m", "kinder", "--json"]).expect(0).json();
    assert_eq!(committed["settings"].as_array().unwrap().len(), 2, "{committed}");
    let state = cluster.muster(&["state", "node:n1", "--own", "--json"]).expect(0);
    assert!(state.stdout.contains("files:/motd") && state.stdout.contains("hello"), "{}", state.stdout);
    let report = agent.wait_for_state("committed");
    assert_eq!(report["window"], Value::Null);
    eventually("the journal says the node is as declared", || {
        let node = cluster.muster(&["state", "node:n1", "--json"]).json();
        (node["node"]["state"] == "committed").then_some(())
    });
    let commit = story(&cluster, "n1").into_iter().find(|record| record["type"] == "commit").unwrap();
    assert_eq!(commit["author"]["principal"], "claimed:tester", "{commit}");
    assert_eq!(commit["message"], "kinder");
}

#[test]
fn what_was_changed_behind_its_back_is_seen_and_rolled_back_by_command() {
    let cluster = journal(&[]);
    cluster.muster(&["commit", "--scope", "vcluster:v", "files:/etc/app=good", "-m", "x"]).expect(0);
    let agent = Agent::start(&cluster, "n1", "v");
    eventually("what is declared is there", || (agent.read("/etc/app").as_deref() == Some("good")).then_some(()));
    agent.write("/etc/app", "bad");
    let report = agent.wait_for_state("drifted");
    assert_eq!(report["differences"][0]["owner"], "behind-its-back", "{report}");
    assert_eq!(report["explanation"]["seconds"], 300, "{report}");
    // Nobody's own: a rollback takes it only if it is told to.
    agent.muster(&["rollback", "n1"]).expect(1);
    assert_eq!(agent.read("/etc/app").as_deref(), Some("bad"));
    agent.muster(&["rollback", "n1", "--all"]).expect(0);
    assert_eq!(agent.read("/etc/app").as_deref(), Some("good"));
    eventually("the journal holds the story", || {
        let kinds = kinds(&story(&cluster, "n1"));
        let told = ["boot-config", "drift-detected", "rollback"].iter().all(|kind| kinds.iter().any(|k| k == kind));
        told.then_some(())
    });
}

#[test]
fn a_window_that_nobody_stands_by_rolls_back_by_itself() {
    let cluster = journal(&["base_window_seconds=3", "sensitivity=0"]);
    let agent = Agent::start(&cluster, "n1", "v");
    // Shorter than a minute: not without being told so.
    cluster.muster(&["set", "files:/motd=hello", "--node", "n1"]).expect(1);
    assert_eq!(agent.read("/motd"), None);
    cluster.muster(&["set", "files:/motd=hello", "--node", "n1", "--yes"]).expect(0);
    assert_eq!(agent.read("/motd").as_deref(), Some("hello"));
    eventually("it is rolled back", || agent.read("/motd").is_none().then_some(()));
    agent.wait_for_state("committed");
    eventually("the journal says so", || {
        story(&cluster, "n1").iter().any(|record| record["type"] == "rollback").then_some(())
    });
}

#[test]
fn a_killed_agent_keeps_its_window_and_one_that_expired_meanwhile_rolls_back() {
    let cluster = journal(&[]);
    let mut agent = Agent::start(&cluster, "n1", "v");
    cluster.muster(&["set", "files:/motd=hello", "--node", "n1"]).expect(0);
    let before = agent.report().unwrap();
    agent.kill();
    agent.spawn();
    agent.wait_until_connected();
    let after = agent.report().unwrap();
    assert_eq!(after["window"]["number"], before["window"]["number"]);
    let left = |report: &Value| report["window"]["seconds_left"].as_u64().unwrap();
    assert!(left(&after) <= left(&before), "{before} {after}");
    assert_eq!(after["differences"][0]["owner"], before["differences"][0]["owner"]);
    agent.muster(&["rollback", "n1"]).expect(0);

    cluster.muster(&["policy", "set", "v", "base_window_seconds=2", "sensitivity=0"]).expect(0);
    eventually("the agent knows the policy", || (agent.report()?["explanation"]["base_seconds"] == 2).then_some(()));
    agent.muster(&["set", "files:/motd=again", "--node", "n1", "--yes"]).expect(0);
    agent.kill();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(agent.read("/motd").as_deref(), Some("again"));
    agent.spawn();
    eventually("it is rolled back", || agent.read("/motd").is_none().then_some(()));
}

#[test]
fn a_reboot_ends_in_what_is_declared_and_says_what_was_lost() {
    let cluster = journal(&[]);
    let mut agent = Agent::start(&cluster, "n1", "v");
    cluster.muster(&["set", "files:/kept=1", "--node", "n1"]).expect(0);
    cluster.muster(&["commit", "n1", "-m", "keep"]).expect(0);
    cluster.muster(&["set", "files:/lost=1", "--node", "n1"]).expect(0);
    agent.kill();
    // An emptied root is a new boot of an empty machine.
    std::fs::remove_dir_all(&agent.root).unwrap();
    std::fs::create_dir(&agent.root).unwrap();
    agent.spawn();
    eventually("what was committed is back", || (agent.read("/kept").as_deref() == Some("1")).then_some(()));
    agent.wait_for_state("committed");
    assert_eq!(agent.read("/lost"), None);
    eventually("the journal says what was lost", || {
        let lost = |record: &Value| record["type"] == "rollback" && record.to_string().contains("files:/lost");
        story(&cluster, "n1").iter().any(lost).then_some(())
    });
}

#[test]
fn without_the_journal_it_goes_on_and_tells_it_all_afterwards_once() {
    let mut cluster = journal(&["base_window_seconds=4", "sensitivity=0"]);
    let mut agent = Agent::start(&cluster, "n1", "v");
    cluster.kill(0);
    let set = ["set", "files:/motd=alone", "--node", "n1", "--yes"];
    agent.muster(&set).expect(0);
    assert_eq!(agent.read("/motd").as_deref(), Some("alone"));
    // Confirming proves that the node reaches a quorum: without one nothing is confirmed.
    let ended = agent.muster(&["commit", "n1", "-m", "no"]);
    assert!([5, 6].contains(&ended.code), "{ended:?}");
    eventually("its window expires all the same", || agent.read("/motd").is_none().then_some(()));
    agent.kill();
    agent.spawn();
    let waiting = eventually("its events wait", || agent.report()?["spooled"].as_u64().filter(|count| *count > 0));
    assert!(waiting >= 2, "{waiting}");
    cluster.spawn(0);
    cluster.wait_for_leader();
    eventually("nothing waits any more", || (agent.report()?["spooled"] == 0).then_some(()));
    let story = story(&cluster, "n1");
    let count = |kind: &str| story.iter().filter(|record| record["type"] == kind).count();
    assert_eq!((count("drift-detected"), count("rollback")), (1, 1), "{:?}", kinds(&story));
}

#[test]
fn an_emergency_holds_everything_until_it_is_ended() {
    let mut cluster = journal(&["base_window_seconds=2", "sensitivity=0"]);
    let mut agent = Agent::start(&cluster, "n1", "v");
    cluster.muster(&["emergency", "start", "n1"]).expect(2);
    let viewer = ["emergency", "start", "n1", "-r", "fire", "--role", "viewer:v"];
    cluster.muster(&viewer).expect(3);
    cluster.muster(&["emergency", "start", "n1", "-r", "fire"]).expect(0);
    cluster.muster(&["emergency", "start", "n1", "-r", "again"]).expect(1);
    cluster.muster(&["set", "files:/motd=fix", "--node", "n1"]).expect(0);
    agent.kill();
    cluster.kill(0);
    cluster.spawn(0);
    cluster.wait_for_leader();
    agent.spawn();
    agent.wait_until_connected();
    std::thread::sleep(std::time::Duration::from_millis(2_500));
    assert_eq!(agent.read("/motd").as_deref(), Some("fix"), "{}", agent.words());
    let report = agent.report().unwrap();
    assert_eq!(report["emergency"]["reason"], "fire", "{report}");
    // Something differs: an end must be forced, and then a window begins.
    agent.muster(&["emergency", "end", "n1"]).expect(1);
    agent.muster(&["emergency", "end", "n1", "--force"]).expect(0);
    eventually("its window expires", || agent.read("/motd").is_none().then_some(()));

    cluster.muster(&["policy", "set", "v", "emergency_allowed=false"]).expect(0);
    eventually("the policy forbids it", || {
        (agent.muster(&["emergency", "start", "n1", "-r", "fire"]).code == 3).then_some(())
    });
    eventually("the journal holds both ends", || {
        let kinds = kinds(&story(&cluster, "n1"));
        let both = ["emergency-start", "emergency-end"].iter().all(|kind| kinds.iter().any(|k| k == kind));
        both.then_some(())
    });
}

#[test]
fn a_command_is_recorded_before_it_runs_and_only_what_the_policy_allows() {
    let cluster = journal(&["exec_allow=echo,sh"]);
    let agent = Agent::start(&cluster, "n1", "v");
    let ran = cluster.muster(&["exec", "n1", "--", "echo", "hello", "world"]).expect(0);
    assert_eq!(ran.stdout, "hello world\n");
    cluster.muster(&["exec", "n1", "--", "sh", "-c", "exit 7"]).expect(7);
    // A signal is 128 and its number, as a shell says it; the two streams stay apart.
    cluster.muster(&["exec", "n1", "--", "sh", "-c", "kill -9 $$"]).expect(137);
    let ran = cluster.muster(&["exec", "n1", "--", "sh", "-c", "echo out; echo err >&2; pwd >&2"]).expect(0);
    assert_eq!((ran.stdout.as_str(), ran.stderr.lines().next()), ("out\n", Some("err")));
    assert!(ran.stderr.contains(&agent.root.display().to_string()), "it begins in the agent's root: {}", ran.stderr);
    let ended = cluster.muster(&["exec", "n1", "--", "echo-that-is-not-there"]).expect(3);
    assert!(ended.stderr.contains("only what begins with: echo; sh"), "{}", ended.stderr);
    let refused = cluster.muster(&["exec", "n1", "--", "cat", "/etc/passwd"]).expect(3);
    assert!(refused.stderr.contains("exec_allow") || refused.stderr.contains("policy"), "{}", refused.stderr);
    let ran = cluster.muster(&["exec", "n1", "--json", "--", "echo", "x"]).expect(0).json();
    let record = cluster.muster(&["show", &ran["sequence"].to_string(), "--json"]).expect(0).json();
    assert_eq!(record["message"], "echo x", "{record}");
    cluster.muster(&["exec", "n1", "--role", "viewer:v", "--", "echo", "x"]).expect(3);
    drop(agent);
}

#[test]
fn an_agent_says_what_keeps_it_from_running() {
    let cluster = journal(&[]);
    let agent = Agent::start(&cluster, "n1", "v");
    let config = agent.config.display().to_string();
    let ended = common::muster(&["agent", "--config", &config]).expect(1);
    assert!(ended.stderr.contains("in use by another muster process"), "{}", ended.stderr);
    let ended = common::muster(&["agent"]).expect(2);
    assert!(ended.stderr.contains("--example-config"), "{}", ended.stderr);
    let example = common::muster(&["agent", "--example-config"]).expect(0).stdout;
    let wrong = cluster.write("wrong.toml", &example.replace("node = \"gpu017\"", "nodes = 1"));
    let ended = common::muster(&["agent", "--config", &wrong]).expect(1);
    assert!(ended.stderr.contains("wrong.toml:4: agent.nodes is not a key"), "{}", ended.stderr);
    // The wrong node at the right address is told so, and nothing is done.
    let ended = agent.muster(&["set", "files:/x=1", "--node", "n2"]).expect(1);
    assert!(ended.stderr.contains("this is the agent of n1, not of n2"), "{}", ended.stderr);
}

/// Runs this test again on an island: namespaces for network, mounts and processes that are nobody else's. Whatever happens there
/// ends with it, processes and mounts included.
fn on_an_island(test: &str) -> bool {
    if std::env::var_os("MUSTER_ISLAND").is_some() {
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.is_ok_and(|status| status.success()), "the island has a loopback interface");
        return true;
    }
    if !rustix::process::getuid().is_root() {
        eprintln!("skipped: a real machine of one's own takes root");
        return false;
    }
    let status = std::process::Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("MUSTER_ISLAND", "1")
        .status()
        .unwrap();
    assert!(status.success(), "it failed on the island");
    false
}

#[test]
fn on_a_real_machine_a_process_under_the_mount_blocks_the_rollback_and_is_named() {
    if !on_an_island("on_a_real_machine_a_process_under_the_mount_blocks_the_rollback_and_is_named") {
        return;
    }
    let cluster = journal(&[]);
    cluster.muster(&["commit", "--scope", "node:m1", "--boot-config", "vcluster=v", "-m", "new"]).expect(0);
    let mut agent = Agent::configure(&cluster, "m1", "");
    let text = std::fs::read_to_string(&agent.config).unwrap();
    let socket = agent.dir.join("agent.sock");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("root")).collect();
    let text = lines.join("\n").replace("[journal]", &format!("socket = {socket:?}\n[journal]"));
    std::fs::write(&agent.config, text).unwrap();
    agent.spawn();
    agent.wait_until_connected();

    let sysctl = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap().trim().to_owned();
    let before = sysctl();
    let place = agent.dir.join("mnt");
    std::fs::create_dir(&place).unwrap();
    let mount = format!("mounts:{}=tmpfs tmpfs size=1m", place.display());
    let file = format!("files:{}=hello", agent.dir.join("motd").display());
    let service = "services:muster-test=running command=/bin/sleep 1000";
    let set =
        agent.muster(&["set", "kernel:net.ipv4.ip_default_ttl=33", &mount, &file, service, "--node", "m1", "--json"]);
    let set = set.expect(0).json();
    // One key of each of four dimensions, kernel twice as heavy: 900 / (1 + 2 sqrt 5).
    assert_eq!(set["forecast"]["seconds"], 164, "{set}");
    assert_eq!(sysctl(), "33");
    assert_eq!(std::fs::read_to_string(agent.dir.join("motd")).unwrap(), "hello");
    let mounted = || {
        let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", agent.id())).unwrap();
        mounts.contains(place.to_str().unwrap())
    };
    assert!(mounted());

    // Somebody works under the mount.
    let held = place.join("held");
    let mut holder = std::process::Command::new("sh")
        .args(["-c", "exec 3> \"$0\"; sleep 1000 <&3", held.to_str().unwrap()])
        .spawn()
        .unwrap();
    eventually("the file is held", || held.exists().then_some(()));
    let blocked = agent.muster(&["rollback", "m1", "--json"]).expect(10).json();
    let told = blocked["detail"]["consumers"].as_array().unwrap();
    let names = |consumer: &Value| consumer["path"].as_str().is_some_and(|path| path.contains("held"));
    let consumer = told.iter().find(|consumer| names(consumer)).unwrap_or_else(|| panic!("{blocked}"));
    assert!(consumer["pid"].as_u64().is_some() && consumer["command"].as_str().unwrap().contains("sleep"), "{blocked}");
    assert_eq!((sysctl().as_str(), mounted()), ("33", true), "nothing was touched");
    assert_eq!(agent.report().unwrap()["state"], "blocked");

    // `sh` became `sleep` or its parent: both go.
    let _ = std::process::Command::new("pkill").args(["-P", &holder.id().to_string()]).status();
    holder.kill().unwrap();
    holder.wait().unwrap();
    eventually("the rollback succeeds", || (agent.muster(&["rollback", "m1"]).code == 0).then_some(()));
    assert_eq!(sysctl(), before);
    assert!(!mounted());
    assert!(!agent.dir.join("motd").exists());
    agent.wait_for_state("committed");
    eventually("the journal holds the story", || {
        let kinds = kinds(&story(&cluster, "m1"));
        (kinds.iter().filter(|kind| *kind == "drift-detected").count() >= 2 && kinds.iter().any(|k| k == "rollback"))
            .then_some(())
    });
    // What the kernel refuses is told, and what was done before it is taken back.
    let file = format!("files:{}=hello", agent.dir.join("half").display());
    let refused = agent.muster(&["set", &file, "kernel:net.ipv4.ip_default_ttl=999", "--node", "m1"]).expect(1);
    assert!(
        refused.stderr.contains("kernel:net.ipv4.ip_default_ttl") && refused.stderr.contains("Invalid argument"),
        "{refused:?}"
    );
    assert!(refused.stderr.contains("what was done of it was taken back"), "{refused:?}");
    assert_eq!(sysctl(), before);
    assert!(!agent.dir.join("half").exists());
    // Behind its back.
    std::fs::write("/proc/sys/net/ipv4/ip_default_ttl", "44").unwrap();
    eventually("what nobody manages is nobody's drift", || (agent.report()?["state"] == "committed").then_some(()));
    std::fs::write("/proc/sys/net/ipv4/ip_default_ttl", &before).unwrap();
    cluster.muster(&["commit", "--scope", "node:m1", "kernel:net.ipv4.ip_default_ttl=55", "-m", "x"]).expect(0);
    eventually("what is declared is applied", || (sysctl() == "55").then_some(()));
    std::fs::write("/proc/sys/net/ipv4/ip_default_ttl", "44").unwrap();
    agent.wait_for_state("drifted");
    agent.muster(&["rollback", "m1", "--all"]).expect(0);
    assert_eq!(sysctl(), "55");
}

#[test]
fn the_door_of_an_agent_is_the_same_at_its_socket_and_over_tls() {
    let cluster = journal(&[]);
    cluster.muster(&["commit", "--scope", "node:n1", "--boot-config", "vcluster=v", "-m", "new"]).expect(0);
    // Certificates of the agent's own port; the journal of this test has none, so the agent boots from nothing here.
    let certs = cluster.path("certs").display().to_string();
    let other = cluster.path("other").display().to_string();
    for dir in [&certs, &other] {
        common::muster(&["certs", "init", dir]).expect(0);
        for (name, role) in
            [("n1", "agent"), ("ann", "admin"), ("vera", "viewer:v"), ("olga", "operator:v"), ("oleg", "operator:w")]
        {
            common::muster(&["certs", "issue", name, "--role", role, "--dir", dir]).expect(0);
        }
    }
    let security = format!(
        "[security]\nca = \"{certs}/ca.pem\"\ncertificate = \"{certs}/agent-n1.pem\"\nkey = \"{certs}/agent-n1.key\"\n"
    );
    let mut agent = Agent::configure(&cluster, "n1", &security);
    agent.spawn();
    let socket = agent.dir.join("data/agent.sock");
    eventually("the agent listens", || socket.exists().then_some(()));
    let over_tls = |dir: &str, stem: &str, args: &[&str]| {
        let (ca, cert, key) = (format!("{certs}/ca.pem"), format!("{dir}/{stem}.pem"), format!("{dir}/{stem}.key"));
        agent.muster(&[args, &["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key]].concat()).code
    };
    // Whoever is let in is told by the machine what it thinks; whoever is not, by the door: 3.
    let drift = ["drift", "n1"];
    let set = ["set", "files:/x=1", "--node", "n1", "--dry-run"];
    for (stem, look, change) in [
        ("admin-ann", true, true),
        ("operator-v-olga", false, false),
        ("operator-w-oleg", false, false),
        ("viewer-v-vera", false, false),
    ] {
        // Before its first boot the agent knows no vCluster, so nobody is an operator or viewer of it.
        assert_eq!(over_tls(&certs, stem, &drift) == 0, look, "{stem} looks");
        assert_eq!(over_tls(&certs, stem, &set) != 3, change, "{stem} changes");
    }
    assert_eq!(over_tls(&other, "admin-ann", &drift), 3, "another cluster's certificate");
    // No certificate at all.
    assert_ne!(agent.muster(&drift).code, 0);
    // At the socket the kernel says who it is, whatever is claimed.
    let at_socket = |args: &[&str]| {
        common::muster(&[args, &["--agent", socket.to_str().unwrap(), "--role", "viewer:v"]].concat()).code
    };
    if at_socket(&drift) == 0 {
        assert_ne!(at_socket(&set), 3, "root is an admin at the socket");
    } else {
        assert_eq!(at_socket(&drift), 3, "who is not named has no role at the socket");
    }
}
