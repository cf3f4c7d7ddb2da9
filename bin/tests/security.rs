//! Who is let in, who may do what, and what is said to whom is not: real processes, real certificates, and clients of another
//! make (openssl, curl).

mod common;

use common::secured::{Secured, Term, curl, openssl_certificate, with};
use common::{eventually, muster};
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// What a plain conversation over TCP gives.
fn say(port: u16, words: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(words).unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).ok();
    heard
}

fn mode(path: &str) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

// ---- certificates ----

#[test]
fn a_small_ca_makes_certificates_that_openssl_can_read() {
    let secured = Secured::new();
    let stem = secured.issue("operator:ml", "alice");
    let (certificate, key) = (secured.file(&format!("{stem}.pem")), secured.file(&format!("{stem}.key")));
    assert_eq!((mode(&key), mode(&secured.file("ca.key"))), (0o600, 0o600));
    let output = Command::new("openssl")
        .args(["verify", "-CAfile", &secured.file("ca.pem"), "-purpose", "sslclient", &certificate])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let output = Command::new("openssl").args(["x509", "-noout", "-text", "-in", &certificate]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("URI:muster://prod/operator/ml/alice"), "{text}");
    let shown = muster(&["certs", "show", &certificate, &secured.file("ca.pem"), "--json"]).expect(0).json();
    assert_eq!(shown["certificates"][0]["subject"], "muster://prod/operator/ml/alice");
    assert!((89..=90).contains(&shown["certificates"][0]["days_left"].as_u64().unwrap()), "{shown}");
    assert_eq!(shown["certificates"][1]["role"], "ca");
}

#[test]
fn nothing_is_overwritten_and_nonsense_is_refused() {
    let secured = Secured::new();
    let dir = secured.at("ca");
    assert!(muster(&["certs", "init", &dir]).expect(1).stderr.contains("there is a CA already"));
    secured.issue("agent", "gpu1");
    let again = muster(&["certs", "issue", "--dir", &dir, "--role", "agent", "gpu1"]).expect(1);
    assert!(again.stderr.contains("muster certs renew"), "{}", again.stderr);
    let wrong = muster(&["certs", "issue", "--dir", &dir, "--role", "root", "alice"]).expect(2);
    assert!(wrong.stderr.contains("operator:VCLUSTER"), "{}", wrong.stderr);
    let wrong = muster(&["certs", "issue", "--dir", &dir, "--role", "admin", "a/b"]).expect(2);
    assert!(wrong.stderr.contains("is not a credential"), "{}", wrong.stderr);
    let wrong = muster(&["certs", "issue", "--dir", &secured.at("nowhere"), "--role", "admin", "alice"]).expect(1);
    assert!(wrong.stderr.contains("muster certs init"), "{}", wrong.stderr);
    assert!(muster(&["certs", "show", &secured.file("ca.key")]).expect(1).stderr.contains("holds no certificate"));
}

#[test]
fn a_renewed_certificate_has_the_same_holder_hosts_and_key() {
    let secured = Secured::new();
    let dir = secured.at("ca");
    muster(&["certs", "issue", "--dir", &dir, "--role", "replica", "--host", "10.0.0.7", "--days", "2", "r1"])
        .expect(0);
    let certificate = secured.file("replica-r1.pem");
    let show = || muster(&["certs", "show", &certificate, "--json"]).expect(0).json()["certificates"][0].clone();
    let public = || {
        let args = ["x509", "-noout", "-pubkey", "-in", &certificate];
        Command::new("openssl").args(args).output().unwrap().stdout
    };
    let (before, key) = (show(), public());
    muster(&["certs", "renew", &certificate]).expect(0);
    let after = show();
    assert_eq!((&before["subject"], &before["hosts"]), (&after["subject"], &after["hosts"]));
    assert!(after["hosts"].as_array().unwrap().contains(&"10.0.0.7".into()), "{after}");
    let left = |shown: &Value| shown["days_left"].as_u64().unwrap();
    assert!((1..=2).contains(&left(&before)) && (364..=365).contains(&left(&after)), "{before} {after}");
    assert_ne!(before["serial"], after["serial"]);
    assert_eq!(key, public());
    // The CA too, and what it signed stays good.
    muster(&["certs", "renew", "--days", "4000", &secured.file("ca.pem")]).expect(0);
    let verify = ["verify", "-CAfile", &secured.file("ca.pem"), &certificate];
    assert!(Command::new("openssl").args(verify).status().unwrap().success());
}

#[test]
fn a_server_says_what_is_wrong_with_its_certificates() {
    let mut secured = Secured::new();
    let i = secured.configure("r1");
    let config = secured.servers[i].config.clone();
    let text = std::fs::read_to_string(&config).unwrap();
    muster(&["init", "--config", &config.display().to_string()]).expect(0);
    secured.issue("replica", "r2");
    secured.issue("admin", "root");
    let other = Secured::new();
    other.issue("replica", "r1");
    let run = |text: &str, words: &[&str]| {
        let file = secured.at("broken.toml");
        std::fs::write(&file, text).unwrap();
        let ended = muster(&["server", "--config", &file]).expect(1);
        for word in words {
            assert!(ended.stderr.contains(word), "{word:?} is not in {}", ended.stderr);
        }
    };
    run(&text.replace("replica-r1.key", "replica-r2.key"), &["replica-r2.key: it is not the key of"]);
    run(&text.replace("replica-r1.", "replica-r2."), &["raft.node_id is \"r1\"", "--role replica r1"]);
    run(&text.replace("replica-r1.", "admin-root."), &["muster://prod/admin/root"]);
    run(&text.replace("replica-r1.pem", "nothing.pem"), &["nothing.pem: it cannot be read"]);
    run(&text.replace("ca = ", "#"), &["broken.toml:", "security.ca is missing"]);
    run(&text.replace(&secured.file("ca.pem"), &other.file("ca.pem")), &["another CA signed it"]);
    run(&text.replace("[security]", "[security]\ninsecure = true"), &["insecure too"]);
    std::fs::write(secured.file("empty.pem"), "").unwrap();
    run(&text.replace("ca/ca.pem", "ca/empty.pem"), &["holds no certificate"]);
}

// ---- who is let in ----

#[test]
fn strangers_are_told_why_they_are_not_let_in() {
    let secured = Secured::start(1);
    let (address, ca) = (secured.address(0), secured.file("ca.pem"));
    secured.by("admin-root", &["status"]).expect(0);

    // Another CA: neither end takes the other's certificate.
    let other = Secured::new();
    other.issue("admin", "root");
    let ended = with(&other.file("ca.pem"), &other.file("admin-root"), &address, &["status"]).expect(3);
    assert!(ended.stderr.contains("its certificate is not of our CA"), "{}", ended.stderr);
    // The server knows its client's CA not: cross the files so that only the server objects.
    let mixed = other.at("mixed");
    std::fs::copy(other.file("admin-root.pem"), format!("{mixed}.pem")).unwrap();
    std::fs::copy(other.file("admin-root.key"), format!("{mixed}.key")).unwrap();
    let both = other.at("both.pem");
    let cas = [std::fs::read(&ca).unwrap(), std::fs::read(other.file("ca.pem")).unwrap()].concat();
    std::fs::write(&both, cas).unwrap();
    let ended = with(&both, &mixed, &address, &["status"]).expect(3);
    assert!(ended.stderr.contains("its CA did not sign it"), "{}", ended.stderr);

    // The same CA, another cluster's name in the certificate: the CA's own name is what makes it.
    let foreign = secured.at("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::copy(&ca, format!("{foreign}/ca.pem")).unwrap();
    let uri = "muster://test/admin/root";
    openssl_certificate(&secured, uri, &format!("{foreign}/admin"), Term::InForce);
    let ended = with(&ca, &format!("{foreign}/admin"), &address, &["status"]).expect(3);
    assert!(ended.stderr.contains("of another cluster"), "{}", ended.stderr);
    // A client that does not mind is refused by the server.
    let stem = format!("{foreign}/admin");
    let (certificate, key) = (format!("{stem}.pem"), format!("{stem}.key"));
    let url = format!("https://{address}/health");
    let (code, text) = curl(&["--cacert", &ca, "--cert", &certificate, "--key", &key, &url]);
    assert!(code != 0 && text.contains("certificate unknown"), "{code} {text}");
    eventually("the server tells it too", || secured.log(0).contains("muster://test/admin/root").then_some(()));

    // One that is no credential at all, and one that counts no more.
    openssl_certificate(&secured, "https://example.org/alice", &format!("{foreign}/web"), Term::InForce);
    let ended = with(&ca, &format!("{foreign}/web"), &address, &["status"]).expect(1);
    assert!(ended.stderr.contains("exactly one"), "{}", ended.stderr);
    openssl_certificate(&secured, "muster://prod/admin/old", &format!("{foreign}/old"), Term::Over);
    let ended = with(&ca, &format!("{foreign}/old"), &address, &["status"]).expect(3);
    assert!(ended.stderr.contains("ended") && ended.stderr.contains("renew it"), "{}", ended.stderr);
    let old = format!("{foreign}/old");
    let (code, text) = curl(&[
        "--cacert",
        &ca,
        "--cert",
        &format!("{old}.pem"),
        "--key",
        &format!("{old}.key"),
        &format!("https://{address}/health"),
    ]);
    assert!(code != 0 && text.contains("expired"), "{code} {text}");

    // None at all, by a client of another make.
    let (code, text) = curl(&["--cacert", &ca, &format!("https://{address}/health")]);
    assert!(code != 0 && text.to_lowercase().contains("certificate required"), "{code} {text}");
    eventually("the server tells it too", || secured.log(0).contains("it showed no certificate").then_some(()));
    secured.by("admin-root", &["status"]).expect(0);
}

#[test]
fn the_peers_port_is_for_replicas() {
    let secured = Secured::start(1);
    let servers = format!("127.0.0.1:{}", secured.servers[0].peers);
    let ended = with(&secured.file("ca.pem"), &secured.file("admin-root"), &servers, &["status"]).expect(3);
    assert!(ended.stderr.contains("of a role that this port is not for"), "{}", ended.stderr);
    eventually("the server tells it too", || {
        secured.log(0).contains("muster://prod/admin/root is no replica").then_some(())
    });
}

#[test]
fn plain_text_at_a_tls_port_is_answered_in_its_own_language_and_back() {
    let secured = Secured::start(1);
    let heard = say(secured.servers[0].clients, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    let heard = String::from_utf8_lossy(&heard);
    assert!(heard.starts_with("HTTP/1.1 400") && heard.contains("this port speaks TLS"), "{heard}");
    for port in [secured.servers[0].clients, secured.servers[0].peers] {
        let heard = say(port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        assert!(String::from_utf8_lossy(&heard).contains("this port speaks TLS"), "{heard:?}");
    }
    let ended = muster(&["status", "--timeout", "5", "--server", &secured.address(0)]).expect(3);
    assert!(ended.stderr.contains("this port speaks TLS"), "{}", ended.stderr);

    let plain = common::Cluster::start(1, 0);
    let address = plain.replicas[0].address.clone();
    let ended = with(&secured.file("ca.pem"), &secured.file("admin-root"), &address, &["status"]).expect(1);
    assert!(ended.stderr.contains("does not speak TLS"), "{}", ended.stderr);
}

#[test]
fn handshakes_that_never_finish_keep_nobody_out() {
    let secured = Secured::start(1);
    let port = secured.servers[0].clients;
    // More than may be unfinished at once, and none of them says a word; half a hello is no better.
    let mut idle: Vec<TcpStream> = (0..700).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    for stream in idle.iter_mut().step_by(2) {
        stream.write_all(&[0x16, 3, 1, 2, 0]).ok();
    }
    secured.by("admin-root", &["status"]).expect(0);
    secured.by("admin-root", &["commit", "--scope", "global", "kernel:a=1", "-m", "still here"]).expect(0);
    let mut first = idle.remove(0);
    first.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert!(matches!(first.read(&mut [0]), Ok(0) | Err(_)), "the oldest was let go");
}

// ---- who may do what ----

#[test]
fn each_role_may_what_the_table_says_over_grpc_and_http() {
    let secured = Secured::start(1);
    secured.fleet();
    for (role, name) in [("operator:ml", "olga"), ("viewer:ml", "vera"), ("agent", "gpu1"), ("agent", "cpu1")] {
        secured.issue(role, name);
    }
    let commit = |who: &str, scope: &str, code: i32| {
        let ended = secured.by(who, &["commit", "--scope", scope, "kernel:a=1", "-m", "because"]);
        if code == 3 {
            assert!(ended.stderr.contains("may not"), "{}", ended.stderr);
        }
        ended.expect(code)
    };
    for (who, scope, code) in [
        ("admin-root", "global", 0),
        ("operator-ml-olga", "vcluster:ml", 0),
        ("operator-ml-olga", "node:gpu1", 0),
        ("operator-ml-olga", "vcluster:hpc", 3),
        ("operator-ml-olga", "node:cpu1", 3),
        ("operator-ml-olga", "global", 3),
        ("viewer-ml-vera", "node:gpu1", 3),
        ("agent-gpu1", "node:gpu1", 0),
        ("agent-cpu1", "node:gpu1", 3),
        ("replica-r1", "global", 3),
    ] {
        commit(who, scope, code);
    }
    // Recorded is the certificate's name, whatever the command line claims.
    let ended = secured.by(
        "operator-ml-olga",
        &[
            "commit",
            "--json",
            "--scope",
            "vcluster:ml",
            "kernel:b=1",
            "-m",
            "x",
            "--author",
            "mallory",
            "--role",
            "admin",
        ],
    );
    let sequence = ended.expect(0).json()["sequence"].to_string();
    let shown = secured.by("viewer-ml-vera", &["show", &sequence, "--json"]).expect(0).json();
    assert_eq!(shown["author"]["principal"], "certificate:muster://prod/operator/ml/olga");
    assert_eq!(shown["author"]["role"], "operator:ml");

    let assign = ["commit", "--boot-config", "--scope", "node:cpu1", "vcluster=ml", "-m", "mine now", "--parent", "0"];
    let ended = secured.by("operator-ml-olga", &assign).expect(3);
    assert!(ended.stderr.contains("put a node into a vCluster"), "{}", ended.stderr);
    for (who, args, code) in [
        ("viewer-ml-vera", vec!["state", "node:gpu1"], 0),
        ("viewer-ml-vera", vec!["state", "global"], 0),
        ("viewer-ml-vera", vec!["state", "node:cpu1"], 3),
        ("viewer-ml-vera", vec!["policy", "get", "hpc"], 3),
        ("viewer-ml-vera", vec!["boot", "gpu1"], 0),
        ("viewer-ml-vera", vec!["verify"], 0),
        ("viewer-ml-vera", vec!["snapshot"], 3),
        ("viewer-ml-vera", vec!["log", "--scope", "vcluster:hpc"], 3),
        ("viewer-ml-vera", vec!["emergency", "start", "gpu1", "-r", "fire", "--journal-only"], 3),
        ("operator-ml-olga", vec!["emergency", "start", "gpu1", "-r", "fire", "--journal-only"], 0),
        ("operator-ml-olga", vec!["policy", "set", "ml", "mode=warn"], 0),
        ("operator-ml-olga", vec!["policy", "set", "hpc", "mode=warn"], 3),
        ("operator-ml-olga", vec!["members", "remove", "1"], 3),
        ("operator-ml-olga", vec!["members", "transfer"], 3),
        ("agent-gpu1", vec!["boot", "gpu1"], 0),
        ("agent-gpu1", vec!["boot", "gpu2"], 3),
        ("agent-gpu1", vec!["boot", "cpu1"], 3),
        ("agent-gpu1", vec!["state", "vcluster:ml"], 0),
        ("agent-gpu1", vec!["verify"], 3),
        ("replica-r1", vec!["status"], 0),
        ("replica-r1", vec!["state", "global"], 3),
    ] {
        let ended = secured.by(who, &args);
        assert_eq!(ended.code, code, "{who} {args:?}: {ended:?}");
    }
    // Lists and the log are cut to what may be seen.
    let json = |who: &str, args: &[&str]| secured.by(who, &[args, &["--json"]].concat()).expect(0);
    let nodes = json("viewer-ml-vera", &["nodes"]).stdout;
    assert!(nodes.contains("gpu1") && nodes.contains("gpu2") && !nodes.contains("cpu1"), "{nodes}");
    let vclusters = json("viewer-ml-vera", &["vclusters"]).stdout;
    assert!(vclusters.contains("\"ml\"") && !vclusters.contains("\"hpc\""), "{vclusters}");
    let log = json("viewer-ml-vera", &["log"]).stdout;
    assert!(log.contains("node:gpu1") && log.contains("global"), "{log}");
    assert!(!log.contains("cpu1") && !log.contains("vcluster:hpc"), "{log}");
    assert!(json("admin-root", &["log"]).stdout.contains("vcluster:hpc"));

    // HTTP on the same port, by a client that checks host names too.
    let get = |who: &str, path: &str| {
        let stem = secured.file(who);
        curl(&[
            "--cacert",
            &secured.file("ca.pem"),
            "--cert",
            &format!("{stem}.pem"),
            "--key",
            &format!("{stem}.key"),
            "-w",
            "%{http_code}",
            &format!("https://localhost:{}{path}", secured.servers[0].clients),
        ])
        .1
    };
    for who in ["admin-root", "viewer-ml-vera", "agent-gpu1", "replica-r1"] {
        assert!(get(who, "/health").ends_with("200"), "{}", get(who, "/health"));
    }
    let metrics = get("viewer-ml-vera", "/metrics");
    assert!(metrics.contains("muster_tls_certificate_expires_seconds"), "{metrics}");
}

#[test]
fn a_replica_joins_under_its_own_name_alone() {
    let mut secured = Secured::start(1);
    let i = secured.configure("r2");
    let config = secured.servers[i].config.display().to_string();
    let text = std::fs::read_to_string(&config).unwrap();
    // An admin's certificate is not a server's; a replica's is no other replica's.
    std::fs::write(&config, text.replace("node_id = \"r2\"", "node_id = \"r3\"")).unwrap();
    assert!(muster(&["join", "--config", &config]).expect(1).stderr.contains("raft.node_id is \"r3\""));
    std::fs::write(&config, &text).unwrap();
    let joined = muster(&["join", "--promote", "--config", &config, "--json"]).expect(0).json();
    assert_eq!(joined["name"], "r2");
    secured.spawn(i);
    eventually("it votes", || {
        let members = secured.by("admin-root", &["members", "list", "--json"]).json();
        members["members"].as_array()?.iter().any(|m| m["name"] == "r2" && m["part"] == "voter").then_some(())
    });
    let audit = secured.by("admin-root", &["audit", "--json"]).expect(0).stdout;
    assert!(audit.contains("system:membership") && audit.contains("admit replica 2 (r2)"), "{audit}");
    // Taking another's place changes the membership, which a replica may not.
    let heir = secured.configure("r4");
    let config = secured.servers[heir].config.display().to_string();
    let ended = muster(&["replace", "--config", &config, "--old", "r2"]).expect(3);
    assert!(ended.stderr.contains("it takes an admin"), "{}", ended.stderr);
    let stem = secured.file("admin-root");
    let keys = [
        "--tls-ca",
        &secured.file("ca.pem"),
        "--tls-cert",
        &format!("{stem}.pem"),
        "--tls-key",
        &format!("{stem}.key"),
    ];
    muster(&[&["replace", "--config", &config, "--old", "r2"][..], &keys[..]].concat()).expect(0);
}

// ---- renewal ----

#[test]
fn renewed_certificates_are_taken_without_a_restart_and_broken_ones_are_not() {
    let secured = Secured::start(1);
    let certificate = secured.file("replica-r1.pem");
    let ends = || {
        let status = secured.by("admin-root", &["status", "--json"]).expect(0).json();
        status["replicas"][0]["certificate_ends"].as_str().unwrap().to_owned()
    };
    let before = ends();
    let good = std::fs::read(&certificate).unwrap();
    std::fs::write(&certificate, "-----BEGIN CERTIFICATE-----\nbroken\n").unwrap();
    eventually("the server says that it does not take it", || {
        secured.log(0).contains("those from before stay in force").then_some(())
    });
    assert_eq!(ends(), before);
    std::fs::write(&certificate, &good).unwrap();
    muster(&["certs", "renew", "--days", "7", &certificate]).expect(0);
    eventually("the server shows the new one", || (ends() != before).then_some(()));
    let text = secured.by("admin-root", &["status"]).expect(0).stdout;
    assert!(text.contains("r1's certificate ends") && text.contains("muster certs renew"), "{text}");
}

#[test]
fn two_replicas_go_on_speaking_over_renewed_certificates() {
    let mut secured = Secured::start(2);
    let files = ["ca.pem", "replica-r1.pem", "replica-r2.pem"].map(|file| secured.file(file));
    for file in &files {
        muster(&["certs", "renew", file]).expect(0);
    }
    // New connections, each proven anew.
    let mut child = secured.servers[1].child.take().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    secured.spawn(1);
    eventually("both take part", || {
        let args = ["commit", "--scope", "global", "kernel:a=1", "-m", "x"];
        (secured.by("admin-root", &args).code == 0).then_some(())
    });
}

#[test]
fn a_context_file_names_servers_and_keys() {
    let secured = Secured::start(1);
    let context = secured.file("context.toml");
    let text = |server: &str| {
        format!(
            "servers = [\"{server}\"]\nca = \"ca.pem\"\ncertificate = \"admin-root.pem\"\nkey = \"admin-root.key\"\n"
        )
    };
    std::fs::write(&context, text(&secured.address(0))).unwrap();
    muster(&["status", "--context", &context]).expect(0);
    muster(&["status", "--context", &secured.file("none.toml")]).expect(1);
    std::fs::write(&context, text("no port:x")).unwrap();
    let ended = muster(&["status", "--context", &context]).expect(1);
    assert!(ended.stderr.contains("context.toml:1: servers:"), "{}", ended.stderr);
    let ended = muster(&["status", "--tls-ca", &secured.file("ca.pem"), "--server", &secured.address(0)]).expect(2);
    assert!(ended.stderr.contains("--tls-cert"), "{}", ended.stderr);
    assert!(Path::new(&context).exists());
}
