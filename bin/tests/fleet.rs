//! Agents and their journal as they come and go: rollouts, failing over, a cut cable, renewed certificates, damage. Real
//! processes; the cable is a relay in the test.

mod common;

use common::agent::Agent;
use common::secured::{Secured, Term, openssl_certificate};
use common::{Cluster, eventually, free_ports};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

fn journal(replicas: usize, policy: &[&str]) -> Cluster {
    let cluster = Cluster::start(replicas, 0);
    cluster.muster(&[&["policy", "set", "v"], policy].concat()).expect(0);
    cluster
}

/// The records of a scope, oldest first.
fn story(cluster: &Cluster, scope: &str) -> Vec<Value> {
    cluster.muster(&["log", "--scope", scope, "--json", "--after", "0"]).expect(0).json_lines()
}

fn count(story: &[Value], kind: &str) -> usize {
    story.iter().filter(|record| record["type"] == kind).count()
}

// ---- rollouts ----

#[test]
fn a_rollout_widens_over_its_nodes_and_ends_in_one_commit_for_the_vcluster_or_in_none() {
    let cluster = journal(1, &[]);
    let nodes = ["n1", "n2", "n3", "n4"];
    let agents: Vec<Agent> = nodes.iter().map(|node| Agent::start(&cluster, node, "v")).collect();
    let everywhere = |text: &str| {
        let found: Vec<_> = agents.iter().map(|agent| agent.read("/app").unwrap_or_default()).collect();
        found.iter().all(|found| found == text)
    };
    let rollout = |more: &[&str]| {
        let fixed = ["rollout", "--first", "1", "--widen", "2", "--healthy", "1", "-m", "newer", "--json"];
        cluster.muster(&[&fixed[..], more].concat())
    };
    let ended = rollout(&["files:/app=1", "--vcluster", "v"]).expect(0);
    let lines = ended.json_lines();
    let waves: Vec<&str> = lines.iter().filter_map(|line| line["told"].as_str()).collect();
    assert_eq!(
        waves,
        ["setting 1 nodes (1 of 4)", "setting 1 nodes (2 of 4)", "setting 2 nodes (4 of 4)", "committing 4 nodes"]
    );
    let verdict = lines.last().unwrap();
    assert_eq!((&verdict["outcome"], &verdict["vcluster"]), (&"committed".into(), &"v".into()), "{verdict}");
    assert!(everywhere("1"));
    // One commit for all, nothing in the nodes' own scopes, and every node is what is declared.
    assert_eq!(count(&story(&cluster, "vcluster:v"), "commit"), 1);
    for (agent, node) in agents.iter().zip(nodes) {
        assert_eq!(count(&story(&cluster, &format!("node:{node}")), "commit"), 0);
        assert_eq!(agent.wait_for_state("committed")["window"], Value::Null);
    }

    // One node in the third wave falls ill: everybody is taken back.
    let ended = rollout(&["files:/app=2", "--vcluster", "v", "--check", "test $MUSTER_NODE != n3"]).expect(1);
    assert_eq!(ended.json_lines().last().unwrap()["outcome"], "aborted", "{ended:?}");
    assert!(ended.stdout.contains("setting 2 nodes (4 of 4)"), "{ended:?}");
    assert!(everywhere("1"), "{ended:?}");
    assert_eq!(count(&story(&cluster, "vcluster:v"), "commit"), 1);
    for agent in &agents {
        agent.wait_for_state("committed");
    }

    // Named nodes get it for themselves; and then say something of their own, which would hide what is said for all.
    rollout(&["files:/app=3", "--node", "n1,n2"]).expect(0);
    assert_eq!(agents.iter().filter(|agent| agent.read("/app").as_deref() == Some("3")).count(), 2);
    assert_eq!(count(&story(&cluster, "node:n1"), "commit"), 1);
    let hidden = rollout(&["files:/app=4", "--vcluster", "v"]).expect(1);
    assert!(hidden.stdout.contains("n1: files:/app (sequence "), "{hidden:?}");
    assert!(!agents.iter().any(|agent| agent.read("/app").as_deref() == Some("4")), "nothing was touched");

    // A vCluster in which somebody else declared the key meanwhile: nobody keeps the change.
    for node in ["n1", "n2"] {
        let scope = format!("node:{node}");
        cluster.muster(&["commit", "--scope", &scope, "--unset", "files:/app", "-m", "x"]).expect(0);
    }
    eventually("they follow the vCluster again", || everywhere("1").then_some(()));
    // The check of the last wave does it, once.
    let script = format!(
        "test $MUSTER_NODE != n4 || test -e {done} || {{ touch {done}; {} commit --server {} --author else --scope \
         vcluster:v files:/app=9 -m first; }}",
        common::MUSTER,
        cluster.servers(),
        done = cluster.path("done").display(),
    );
    let ended = rollout(&["files:/app=5", "--vcluster", "v", "--check", &script]).expect(1);
    assert_eq!(ended.json_lines().last().unwrap()["outcome"], "failed", "{ended:?}");
    eventually("all are what the other one declared", || everywhere("9").then_some(()));
}

#[test]
fn an_extension_moves_the_end_later_and_is_refused_where_there_is_none_or_too_much_is_asked() {
    let cluster = journal(1, &[]);
    let agent = Agent::start(&cluster, "n1", "v");
    let none = cluster.muster(&["extend", "n1", "60"]).expect(1);
    assert!(none.stderr.contains("no window is open"), "{}", none.stderr);
    cluster.muster(&["set", "files:/motd=hello", "--node", "n1"]).expect(0);
    let extended = cluster.muster(&["extend", "n1", "100", "--json"]).expect(0).json();
    let left = extended["window"]["seconds_left"].as_u64().unwrap();
    assert!((301..=400).contains(&left), "{extended}");
    let refused = cluster.muster(&["extend", "n1", "900"]).expect(2);
    assert!(refused.stderr.contains("never longer than the policy's 900 s: expected 1 to"), "{}", refused.stderr);
    cluster.muster(&["extend", "n1", "10", "--role", "viewer:v"]).expect(3);
    let told = || story(&cluster, "node:n1").iter().any(|record| record["message"] == "window extended by 100 s");
    eventually("the journal says so", || told().then_some(()));
    agent.muster(&["rollback", "n1"]).expect(0);
}

// ---- the journal goes away ----

#[test]
fn an_agent_moves_on_when_its_replica_is_killed_and_nothing_is_lost_or_doubled() {
    let mut cluster = journal(3, &["base_window_seconds=900", "sensitivity=0"]);
    let agent = Agent::start(&cluster, "n1", "v");
    // Whichever replica it speaks with is among those that go.
    for i in 0..3 {
        agent.muster(&["set", &format!("files:/motd={i}"), "--node", "n1"]).expect(0);
        cluster.kill(i);
        agent.muster(&["set", &format!("files:/motd={i}, without r{i}"), "--node", "n1"]).expect(0);
        eventually("what happened is told to another replica", || (agent.report()?["spooled"] == 0).then_some(()));
        cluster.spawn(i);
        cluster.wait_for_leader();
    }
    let committed = eventually("a commit comes through", || {
        let ended = agent.muster(&["commit", "n1", "-m", "after all", "--json"]);
        (ended.code == 0).then_some(ended)
    });
    assert_eq!(committed.json()["settings"][0]["setting"]["value"], "2, without r2");
    let story = story(&cluster, "node:n1");
    let told: Vec<&str> = story
        .iter()
        .filter(|record| record["type"] == "drift-detected")
        .map(|record| record["delta"][0]["next"]["value"].as_str().unwrap().split("text=").last().unwrap())
        .collect();
    assert_eq!(told, ["0", "0, without r0", "1", "1, without r1", "2", "2, without r2"]);
    assert_eq!(count(&story, "commit"), 1);
}

/// A cable between an agent and a replica that can be pulled.
struct Cable {
    address: String,
    plugged: Arc<Mutex<bool>>,
    ends: Arc<Mutex<Vec<TcpStream>>>,
}

impl Cable {
    fn to(address: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", free_ports(1)[0])).unwrap();
        let here = listener.local_addr().unwrap().to_string();
        let (plugged, ends) = (Arc::new(Mutex::new(true)), Arc::new(Mutex::new(Vec::new())));
        let cable = Self { address: here, plugged: plugged.clone(), ends: ends.clone() };
        let address = address.to_owned();
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let Ok(near) = near else { return };
                if !*plugged.lock().unwrap() {
                    continue;
                }
                let Ok(far) = TcpStream::connect(&address) else { continue };
                ends.lock().unwrap().extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                for (mut from, mut to) in
                    [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far.try_clone().unwrap(), near)]
                {
                    std::thread::spawn(move || {
                        let mut piece = [0; 16 << 10];
                        while let Ok(read @ 1..) = from.read(&mut piece) {
                            if to.write_all(&piece[..read]).is_err() {
                                break;
                            }
                        }
                        to.shutdown(Shutdown::Both).ok();
                    });
                }
            }
        });
        cable
    }

    fn pull(&self) {
        *self.plugged.lock().unwrap() = false;
        for end in self.ends.lock().unwrap().drain(..) {
            end.shutdown(Shutdown::Both).ok();
        }
    }

    fn plug(&self) {
        *self.plugged.lock().unwrap() = true;
    }
}

#[test]
fn after_a_cut_the_keys_changed_on_both_sides_stand_still_and_the_others_go_on() {
    let mut cluster = Cluster::empty();
    cluster.configure("r1", "");
    // Whoever is told where the replica is, is told the cable's end.
    let cable = Cable::to(&cluster.replicas[0].address);
    let text = std::fs::read_to_string(&cluster.replicas[0].config).unwrap();
    let advertise = format!("[client]\nadvertise = {:?}\n", cable.address);
    std::fs::write(&cluster.replicas[0].config, text.replace("[client]\n", &advertise)).unwrap();
    cluster.muster(&["init", "--config", &cluster.config(0)]).expect(0);
    cluster.spawn(0);
    cluster.wait_for_leader();
    cluster.muster(&["policy", "set", "v"]).expect(0);
    cluster.muster(&["commit", "--scope", "vcluster:v", "files:/a=1", "files:/b=1", "files:/c=1", "-m", "x"]).expect(0);
    cluster.muster(&["commit", "--scope", "node:n1", "--boot-config", "vcluster=v", "-m", "new"]).expect(0);
    let mut agent = Agent::of(cluster.path("agent"), "n1", std::slice::from_ref(&cable.address), "");
    let text = std::fs::read_to_string(&agent.config).unwrap();
    std::fs::write(&agent.config, text.replace("[journal]", "conflict_grace_seconds = 4\n[journal]")).unwrap();
    agent.spawn();
    agent.wait_until_connected();
    eventually("it has booted", || (agent.read("/c").as_deref() == Some("1")).then_some(()));

    cable.pull();
    eventually("it notices", || (agent.report()?["connected"] == false).then_some(()));
    agent.muster(&["set", "files:/a=here", "files:/b=here", "--node", "n1"]).expect(0);
    cluster.muster(&["commit", "--scope", "vcluster:v", "files:/a=there", "files:/c=there", "-m", "y"]).expect(0);
    cable.plug();
    eventually("the others go on", || (agent.read("/c").as_deref() == Some("there")).then_some(()));
    let report = agent.report().unwrap();
    let difference = |key: &str| {
        let all = report["differences"].as_array().unwrap();
        all.iter().find(|difference| difference["key"] == key).cloned().unwrap_or_else(|| panic!("{report}"))
    };
    assert!(difference("files:/a")["conflict_seconds"].is_u64(), "{report}");
    assert!(difference("files:/b")["conflict_seconds"].is_null(), "{report}");
    assert_eq!((agent.read("/a").as_deref(), agent.read("/b").as_deref()), (Some("here"), Some("here")));
    // Nobody decides: the journal wins for that key, and what was lost is recorded. The other one keeps its window.
    eventually("the journal's value wins", || (agent.read("/a").as_deref() == Some("there")).then_some(()));
    assert_eq!(agent.read("/b").as_deref(), Some("here"));
    eventually("what was lost is recorded", || {
        let story = story(&cluster, "node:n1");
        let given_up =
            story.iter().find(|record| record["message"].as_str().unwrap_or_default().contains("given up"))?;
        let was = given_up["delta"][0]["previous"]["value"].as_str()?;
        (given_up["delta"][0]["key"] == "files:/a" && was.ends_with("here")).then_some(())
    });
    agent.muster(&["commit", "n1", "-m", "mine"]).expect(0);
    assert_eq!(agent.read("/b").as_deref(), Some("here"));
}

// ---- certificates are renewed ----

#[test]
fn a_renewed_certificate_is_taken_on_sighup_by_an_agent_that_goes_on() {
    let secured = Secured::start(1);
    secured.fleet();
    secured.issue("agent", "gpu1");
    let files = ["ca.pem", "agent-gpu1.pem", "agent-gpu1.key"].map(|file| secured.file(file));
    let more = format!("[security]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n", files[0], files[1], files[2]);
    let mut agent = Agent::of(secured.dir.path().join("agent"), "gpu1", &[secured.address(0)], &more);
    agent.spawn();
    let ask = |args: &[&str]| secured.by("admin-root", &[args, &["--agent", &agent.address]].concat());
    eventually("it has booted", || {
        let shown = ask(&["drift", "gpu1", "--json"]);
        (shown.code == 0 && shown.json()["connected"] == true).then_some(())
    });
    ask(&["set", "files:/motd=before", "--node", "gpu1"]).expect(0);
    let id = agent.id();
    let hang_up = |id: u32| {
        assert!(std::process::Command::new("kill").args(["-HUP", &id.to_string()]).status().unwrap().success());
    };
    common::muster(&["certs", "renew", "--days", "7", &files[1]]).expect(0);
    hang_up(id);
    eventually("it says so", || agent.words().contains("certificates are loaded anew").then_some(()));
    // The same process, the same window, over a new certificate, to people and to the journal.
    ask(&["commit", "gpu1", "-m", "after"]).expect(0);
    assert_eq!(agent.id(), id);
    // One that is not good is told, and changes nothing.
    std::fs::write(&files[1], "broken").unwrap();
    hang_up(id);
    eventually("it says so", || agent.words().contains("those from before stay in force").then_some(()));
    ask(&["set", "files:/motd=after", "--node", "gpu1"]).expect(0);
}

#[test]
fn an_agent_whose_certificate_ends_looks_after_its_node_and_tells_it_all_once_it_is_renewed() {
    use std::time::{Duration, SystemTime};
    let secured = Secured::start(1);
    secured.fleet();
    secured.issue("agent", "gpu1");
    let files = ["ca.pem", "agent-gpu1.pem", "agent-gpu1.key"].map(|file| secured.file(file));
    let own = rustix::process::getuid().as_raw();
    let more = format!(
        "[security]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n[security.users]\n{own} = \"admin\"\n",
        files[0], files[1], files[2]
    );
    let mut agent = Agent::of(secured.dir.path().join("agent"), "gpu1", &[secured.address(0)], &more);
    agent.spawn();
    let address = agent.address.clone();
    let socket = agent.dir.join("data/agent.sock").display().to_string();
    let here = |args: &[&str]| common::muster(&[args, &["--agent", &socket]].concat());
    let far = |args: &[&str]| secured.by("admin-root", &[args, &["--agent", &address]].concat());
    let report = || {
        let shown = here(&["drift", "gpu1", "--json"]);
        (shown.code == 0).then(|| shown.json())
    };
    let connected = |is: bool| move |report: &Value| report["connected"] == is && report["state"] != "booting";
    eventually("it has booted", || report().filter(connected(true)));
    far(&["set", "files:/motd=before", "--node", "gpu1"]).expect(0);
    let window =
        eventually("that is told", || report().filter(|report| report["spooled"] == 0))["window"]["number"].clone();

    // It is started again with a certificate that ends soon, and a change is made when it does, on connections that are up.
    let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let (ends, short) = (now().as_secs() + 8, secured.at("short"));
    openssl_certificate(&secured, "muster://prod/agent/gpu1", &short, Term::Until(ends));
    for (end, file) in [("pem", &files[1]), ("key", &files[2])] {
        std::fs::rename(format!("{short}.{end}"), file).unwrap();
    }
    agent.kill();
    agent.spawn();
    // On a machine too busy to boot before that, it ends while the agent boots.
    eventually("it runs", || report().filter(|report| connected(true)(report) || now().as_secs() >= ends));
    std::thread::sleep(Duration::from_secs(ends).saturating_sub(now()));
    here(&["set", "files:/motd=during", "--merge", "--node", "gpu1"]).expect(0);
    let away = eventually("it says so", || report().filter(connected(false)));
    let why = away["away"].as_str().unwrap_or_default();
    assert!(why.contains("agent/gpu1") && why.contains("ended"), "{away}");
    let words = here(&["drift", "gpu1"]).expect(0).stdout;
    assert!(words.contains("the journal is away: ") && words.contains("ended"), "{words}");
    assert!(agent.words().contains("the journal does not answer; the agent goes on"), "{}", agent.words());
    // Nobody speaks with it over the network, and is told why.
    eventually("its certificate counts nowhere any more", || {
        let refused = far(&["drift", "gpu1"]);
        (refused.code == 3 && refused.stderr.contains("its certificate has expired")).then_some(())
    });
    // On the node everything goes on, but for what takes a quorum.
    assert_eq!((&away["window"]["number"], agent.read("/motd").as_deref()), (&window, Some("during")), "{away}");
    here(&["commit", "gpu1", "-m", "no"]).expect(5);
    here(&["rollback", "gpu1"]).expect(0);
    assert_eq!(agent.read("/motd"), None);
    here(&["set", "files:/other=kept", "--node", "gpu1"]).expect(0);
    assert!(report().unwrap()["spooled"].as_u64().unwrap() >= 3, "{:?}", report());
    let spooled = report().unwrap()["spooled"].clone();
    agent.kill();
    agent.spawn();
    let after = eventually("it runs again", &report);
    assert_eq!((&after["spooled"], agent.read("/other").as_deref()), (&spooled, Some("kept")), "{after}");
    assert!(
        agent.words().contains("the certificate has ended: renew it with `muster certs renew`"),
        "{}",
        agent.words()
    );

    // Renewed, it tells everything, in order, each once.
    common::muster(&["certs", "renew", "--days", "7", &files[1]]).expect(0);
    assert!(std::process::Command::new("kill").args(["-HUP", &agent.id().to_string()]).status().unwrap().success());
    eventually("it has told everything", || report().filter(connected(true)).filter(|report| report["spooled"] == 0));
    secured.by("admin-root", &["commit", "gpu1", "--all", "-m", "after", "--agent", &agent.address]).expect(0);
    let story =
        secured.by("admin-root", &["log", "--scope", "node:gpu1", "--json", "--after", "0"]).expect(0).json_lines();
    let told: Vec<String> = story
        .iter()
        .filter(|record| record["type"] != "boot-config")
        .map(|record| {
            let next = &record["delta"][0]["next"]["value"];
            let next = next.as_str().and_then(|value| value.split("text=").last());
            format!("{} {}", record["type"].as_str().unwrap(), next.unwrap_or("-"))
        })
        .collect();
    let expected =
        ["drift-detected before", "drift-detected during", "rollback -", "drift-detected kept", "commit kept"];
    assert_eq!(told, expected, "{story:#?}");
}

#[test]
fn a_hang_up_ends_nobody_who_has_no_certificates() {
    let cluster = journal(1, &[]);
    let agent = Agent::start(&cluster, "n1", "v");
    cluster.signal(0, "-HUP");
    assert!(std::process::Command::new("kill").args(["-HUP", &agent.id().to_string()]).status().unwrap().success());
    eventually("the agent took it", || agent.words().contains("SIGHUP").then_some(()));
    eventually("the replica took it", || cluster.log(0).contains("SIGHUP").then_some(()));
    agent.muster(&["set", "files:/motd=still", "--node", "n1"]).expect(0);
    agent.muster(&["commit", "n1", "-m", "here"]).expect(0);
}

// ---- what does not fit, and what is damaged ----

#[test]
fn what_does_not_fit_is_refused_with_what_would_and_changes_nothing() {
    let cluster = journal(1, &[]);
    let agent = Agent::start(&cluster, "n1", "v");
    std::fs::create_dir(cluster.path("outside")).unwrap();
    std::os::unix::fs::symlink("../../outside", agent.root.join("out")).unwrap();
    for (args, code, words) in [
        (&["set", "bogus:x=1", "--node", "n1"][..], 2, "with one of mounts, files"),
        (&["set", "files:motd=x", "--node", "n1"], 2, "an absolute path"),
        (&["set", "files:/out/x=1", "--node", "n1"], 1, "leaves the root"),
        (&["set", "services:x=up", "--node", "n1"], 2, "'running' or 'stopped'"),
        (&["set", "files:/a=1", "files:/a=2", "--node", "n1"], 2, "there twice"),
        (&["set", "kernel:a.b=1", "files:/motd=@file mode=999", "--node", "n1"], 2, "mode"),
        (&["commit", "--scope", "vcluster:v", "services:x=up", "-m", "x"], 2, "'running' or 'stopped'"),
        (&["policy", "set", "v", "weights.kernel=-1"], 2, "\"-1\" is not a number from 0"),
        (&["policy", "set", "v", "weights.kernal=1"], 2, "is not a field of a policy"),
        (&["policy", "set", "v", "base_window_seconds=0"], 2, "from 1 to 864000"),
        (&["policy", "set", "v", "min_window_seconds=901"], 1, "expected 0 to 900"),
        (&["extend", "n1", "0"], 2, "0 is not in 1..=864000"),
    ] {
        let ended = cluster.muster(args);
        assert!(ended.code == code && ended.stderr.contains(words), "{args:?}: {ended:?}");
    }
    assert!(std::fs::read_dir(cluster.path("outside")).unwrap().next().is_none());
    let report = agent.report().unwrap();
    assert_eq!(
        (&report["state"], report["differences"].as_array().unwrap().len()),
        (&"committed".into(), 0),
        "{report}"
    );
}

/// Changes one byte in the middle of a file.
fn damage(path: &std::path::Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    std::fs::write(path, bytes).unwrap();
}

/// The files of a directory whose name begins so, in order.
fn files(dir: &std::path::Path, prefix: &str) -> Vec<std::path::PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.is_file() && path.file_name().unwrap().to_str().unwrap().starts_with(prefix));
    found.sort();
    found
}

#[test]
fn a_damaged_spool_or_cache_is_mended_and_told_and_the_window_goes_on() {
    let mut cluster = journal(1, &[]);
    let mut agent = Agent::start(&cluster, "n1", "v");
    cluster.kill(0);
    for value in ["one", "two", "three"] {
        agent.muster(&["set", &format!("files:/motd={value}"), "--node", "n1"]).expect(0);
    }
    let before = agent.report().unwrap();
    agent.kill();
    let data = agent.dir.join("data");
    let spool = files(&data.join("spool"), "0").pop().unwrap();
    damage(&spool);
    damage(&files(&data, "declared.").pop().unwrap());
    agent.spawn();
    let report = eventually("it runs", || agent.report());
    let words = agent.words();
    assert!(words.contains("what is declared is fetched from the journal"), "{words}");
    assert!(words.contains("the others were kept") || words.contains("are lost"), "{words}");
    assert_eq!(agent.read("/motd").as_deref(), Some("three"));
    assert_eq!(report["window"]["number"], before["window"]["number"], "{report}");
    cluster.spawn(0);
    cluster.wait_for_leader();
    eventually("what is whole is told", || (agent.report()?["spooled"] == 0).then_some(()));
    let story = story(&cluster, "node:n1");
    assert!(story.iter().any(|record| record["message"].as_str().unwrap_or_default().contains("damaged")), "{story:?}");
    agent.muster(&["rollback", "n1"]).expect(0);
    assert_eq!(agent.read("/motd"), None);
}

/// A small disk, mounted for as long as the test needs it.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// None where one cannot be made.
    fn at(path: &std::path::Path) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        let mount =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(path).status();
        mount.is_ok_and(|status| status.success()).then(|| Self(path.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever still has files open there lets go of them later.
        let unmounted = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(std::thread::panicking() || unmounted.is_ok_and(|status| status.success()), "it is still mounted");
    }
}

#[test]
fn a_full_disk_stops_the_agent_before_anything_is_done_that_it_could_not_remember() {
    if !rustix::process::getuid().is_root() {
        eprintln!("skipped: making a small disk needs root");
        return;
    }
    let cluster = journal(1, &[]);
    cluster.muster(&["commit", "--scope", "node:n1", "--boot-config", "vcluster=v", "-m", "new"]).expect(0);
    let mut agent = Agent::configure(&cluster, "n1", "");
    let data = agent.dir.join("data");
    let Some(_disk) = SmallDisk::at(&data) else {
        eprintln!("skipped: a small disk cannot be made here");
        return;
    };
    agent.spawn();
    agent.wait_until_connected();
    agent.muster(&["set", "files:/kept=1", "--node", "n1"]).expect(0);
    // Somebody else fills the disk.
    std::fs::write(data.join("else"), vec![1; 1 << 20]).ok();
    let large = format!("files:/lost={}", "x".repeat(8_000));
    let ended = agent.muster(&["set", &large, "--node", "n1"]);
    assert!([1, 6].contains(&ended.code), "{ended:?}");
    assert_eq!(agent.read("/lost"), None, "nothing was done that is not remembered");
    eventually("it says why it stopped", || agent.words().contains("no space left on device").then_some(()));
    std::fs::remove_file(data.join("else")).unwrap();
    agent.kill();
    agent.spawn();
    agent.wait_until_connected();
    let report = agent.report().unwrap();
    assert_eq!((agent.read("/kept").as_deref(), agent.read("/lost")), (Some("1"), None));
    assert_eq!(report["differences"].as_array().unwrap().len(), 1, "{report}");
    agent.muster(&["rollback", "n1"]).expect(0);
}
