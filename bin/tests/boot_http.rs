//! A node boots with what an initramfs has: curl and a shell, from real replicas, over lines that break and change bytes.

mod common;

use common::{Cluster, FLEET, MUSTER, eventually, free_ports, muster};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

fn boot_sh(node: &str, dir: &Path, replicas: &[String]) -> Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/boot.sh");
    let output = Command::new("sh").arg(script).arg(node).arg(dir).args(replicas).env("MUSTER_PATIENCE", "20").output();
    output.unwrap()
}

fn settings(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("settings")).unwrap();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl").args(["-s", "--max-time", "10"]).args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a line does to the answers that pass over it, one after another.
#[derive(Clone, Copy)]
enum Mischief {
    /// Breaks after the head and so many bytes of the body.
    CutAfter(usize),
    /// Changes the last byte.
    Change,
}

/// A line to a replica, with a mischief for each of the first connections. Gives its address and the requests it saw.
fn line_to(replica: &str, mischiefs: &[Mischief]) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let (replica, mischiefs, requests) = (replica.to_owned(), mischiefs.to_vec(), seen.clone());
    let mut mischiefs = mischiefs.into_iter();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if client.read(&mut byte).unwrap_or(0) == 0 {
                    break;
                }
                request.push(byte[0]);
            }
            let text = String::from_utf8_lossy(&request).into_owned();
            let closing = text.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
            requests.lock().unwrap().push(text);
            let Ok(mut server) = TcpStream::connect(&replica) else { continue };
            server.write_all(closing.as_bytes()).unwrap();
            let mut answer = Vec::new();
            server.read_to_end(&mut answer).unwrap();
            let body = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(0) + 4;
            match mischiefs.next() {
                Some(Mischief::CutAfter(bytes)) => answer.truncate(body + bytes),
                Some(Mischief::Change) => *answer.last_mut().unwrap() ^= 1,
                None => {}
            }
            client.write_all(&answer).ok();
        }
    });
    (address, seen)
}

#[test]
fn a_shell_boots_a_node_over_lines_that_break_and_change_bytes() {
    let cluster = Cluster::start(1, 1);
    let fleet = cluster.write("fleet.toml", FLEET);
    cluster.muster(&["apply", &fleet, "-m", "the fleet"]).expect(0);
    let (leader, learner) = (&cluster.replicas[0].address, &cluster.replicas[1].address);
    let booted = eventually("the learner boots it", || {
        let booted = cluster.muster_on(1, &["boot", "n7", "--json"]);
        (booted.code == 0).then(|| booted.json())
    });
    let mut wanted: Vec<String> = booted["settings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|setting| {
            format!(
                "{}={}",
                setting["key"].as_str().unwrap(),
                setting["setting"].as_str().or(setting["setting"]["value"].as_str()).unwrap()
            )
        })
        .collect();
    wanted.sort();
    assert!(wanted.iter().any(|line| line == "kernel:vm.swappiness=1"), "{wanted:?}");

    // Only the leader is named: it names the learner, as soon as it has looked at who follows.
    let dir = cluster.path("named");
    eventually("the leader leaves the boot to the learner", || {
        let output = boot_sh("n7", &dir, &[format!("http://{leader}")]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(settings(&dir), wanted);
        String::from_utf8_lossy(&output.stderr).contains(&format!("from http://{learner}")).then_some(())
    });
    assert_eq!(std::fs::read_to_string(dir.join("sequence")).unwrap().trim(), booted["sequence"].to_string());

    // A line that breaks twice: what came is kept, and gone on with, unless an overlay was stored meanwhile.
    let mut attempts = 0;
    eventually("what came is gone on with", || {
        attempts += 1;
        let dir = cluster.path(&format!("broken-{attempts}"));
        let (address, seen) = line_to(learner, &[Mischief::CutAfter(100), Mischief::CutAfter(50)]);
        let output = boot_sh("n7", &dir, &[format!("http://{address}")]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(settings(&dir), wanted);
        let requests = seen.lock().unwrap().clone();
        assert!(requests[1].contains("Range: bytes=100-"), "{requests:?}");
        requests[2].contains("Range: bytes=150-").then_some(())
    });

    // One that breaks, and is gone; another replica goes on.
    let (address, _) = line_to(learner, &[Mischief::CutAfter(100)]);
    let dir = cluster.path("elsewhere");
    let output = boot_sh("n7", &dir, &[format!("http://{address}"), format!("http://{learner}")]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("going on at byte 100"), "{output:?}");
    assert_eq!(settings(&dir), wanted);

    // One that changes a byte: nothing of that is believed.
    let (address, _) = line_to(learner, &[Mischief::Change]);
    let dir = cluster.path("changed");
    let output = boot_sh("n7", &dir, &[format!("http://{address}")]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("damaged"), "{output:?}");
    assert_eq!(settings(&dir), wanted);

    // The same port speaks HTTP/2 to whoever wants it.
    let url = format!("http://{learner}/v1/boot/n7/delta");
    assert_eq!(curl(&["--http2-prior-knowledge", &url]), curl(&[&url]));
    let metrics = curl(&[&format!("http://{learner}/metrics")]);
    assert!(
        metrics.lines().any(|line| line.starts_with("muster_boot_begun_total") && !line.ends_with(" 0")),
        "{metrics}"
    );
}

#[test]
fn a_node_boots_with_its_certificate_and_without_one_only_where_that_is_set() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let ca = at("ca");
    muster(&["certs", "init", &ca, "--cluster", "prod"]).expect(0);
    for (role, name) in [("replica", "r1"), ("admin", "root"), ("agent", "n7"), ("agent", "n8")] {
        let host = ["--host", "127.0.0.1"];
        let host = if role == "replica" { &host[..] } else { &[] };
        muster(&[&["certs", "issue", "--dir", &ca, "--role", role], host, &[name]].concat()).expect(0);
    }
    let ports = free_ports(3);
    let config = at("r1.toml");
    let text = format!(
        "[raft]\nnode_id = \"r1\"\ndata_dir = {:?}\nraft_port = {}\n[client]\nport = {}\n[boot]\nanonymous = true\nport = {}\n\
         [security]\nca = \"{ca}/ca.pem\"\ncertificate = \"{ca}/replica-r1.pem\"\nkey = \"{ca}/replica-r1.key\"\n",
        at("data"),
        ports[0],
        ports[1],
        ports[2],
    );
    std::fs::write(&config, text).unwrap();
    muster(&["init", "--config", &config]).expect(0);
    let mut server = Command::new(MUSTER)
        .args(["server", "--until-stdin-closes", "--config", &config])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::fs::write(at("fleet.toml"), FLEET).unwrap();
    let server_at = format!("127.0.0.1:{}", ports[1]);
    let (ca_pem, pem, key) = (format!("{ca}/ca.pem"), format!("{ca}/admin-root.pem"), format!("{ca}/admin-root.key"));
    eventually("the fleet is applied", || {
        let keys = ["--tls-ca", &ca_pem, "--tls-cert", &pem, "--tls-key", &key];
        let fleet = at("fleet.toml");
        let words = [&["apply", &fleet, "-m", "x", "--server", &server_at], &keys[..]].concat();
        (muster(&words).code == 0).then_some(())
    });
    let by = |node: &str, more: &[&str]| {
        let (pem, key) = (format!("{ca}/agent-{node}.pem"), format!("{ca}/agent-{node}.key"));
        curl(&[&["--cacert", &ca_pem, "--cert", &pem, "--key", &key], more].concat())
    };
    let https = format!("https://{server_at}/v1/boot/n7");
    let code = ["-o", "/dev/null", "-w", "%{http_code}"];
    assert_eq!(by("n7", &[&code[..], &[&https]].concat()), "200");
    assert_eq!(by("n7", &[&code[..], &["--http1.1", &https]].concat()), "200");
    assert_eq!(by("n8", &[&code[..], &[&https]].concat()), "403");
    assert!(by("n8", &[&https]).contains("may not boot a node"));
    assert_eq!(curl(&[&["--cacert", &ca_pem], &code[..], &[&https]].concat()), "000", "no certificate, no answer");

    let output = Command::new("sh")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/boot.sh"))
        .args(["n7", &at("booted"), &format!("https://{server_at}")])
        .env("MUSTER_CA", &ca_pem)
        .env("MUSTER_CERT", format!("{ca}/agent-n7.pem"))
        .env("MUSTER_KEY", format!("{ca}/agent-n7.key"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let plain = boot_sh("n7", &dir.path().join("plain"), &[format!("http://127.0.0.1:{}", ports[2])]);
    assert!(plain.status.success(), "{plain:?}");
    assert_eq!(settings(&dir.path().join("booted")), settings(&dir.path().join("plain")));
    assert_eq!(curl(&[&code[..], &[&format!("http://127.0.0.1:{}/metrics", ports[2])]].concat()), "404");
    drop(server.stdin.take());
    assert!(server.wait().unwrap().success());
}
