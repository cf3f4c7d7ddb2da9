//! What the command line says without a server: configuration errors, fleet errors, usage, exit codes.

mod common;

use common::{free_ports, golden, muster};
use tempfile::TempDir;

fn file(dir: &TempDir, name: &str, text: &str) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// What was printed, with the temporary directory left out.
fn plain(dir: &TempDir, text: &str) -> String {
    text.replace(&format!("{}/", dir.path().display()), "")
}

#[test]
fn every_problem_of_a_configuration_is_told_at_once_with_its_line() {
    let dir = TempDir::new().unwrap();
    let path = file(
        &dir,
        "muster.toml",
        r#"[raft]
node_id = "bad name"
data_dir = ""
heartbeat_intervall_ms = 150
heartbeat_interval_ms = 400
election_timeout_min_ms = 500
election_timeout_max_ms = 500
snapshot_threshold = -1
snapshot_max_chunk_size = "1MB"
raft_port = 9443
listen = "0.0.0.0"
max_payload_size = 1
timing = "man"

[raft.bootstrap]
nodes = [{ id = "node-1" }, { addr = "a b" }, "node-3"]

[client]
request_timeout_ms = 5

[log]
level = "loud=="
format = "yaml"

[metrics]
port = 1
"#,
    );
    let ended = muster(&["config", "check", &path]).expect(1);
    golden("config_problems.txt", &plain(&dir, &ended.stderr));
    let json = muster(&["config", "check", "--json", &path]).expect(1).json();
    assert_eq!(json["outcome"], "wrong-file");
    assert_eq!(json["detail"]["problems"][0]["line"], 2);
}

#[test]
fn a_good_configuration_is_shown_with_its_defaults() {
    let dir = TempDir::new().unwrap();
    let path = file(&dir, "muster.toml", "[raft]\nnode_id = \"node-1\"\n");
    let ended = muster(&["config", "check", &path]).expect(0);
    golden("config_defaults.txt", &plain(&dir, &ended.stdout));
}

#[test]
fn a_missing_configuration_is_an_error_that_names_it() {
    let ended = muster(&["server", "--config", "/nowhere/muster.toml"]).expect(1);
    assert!(ended.stderr.contains("/nowhere/muster.toml cannot be read"), "{}", ended.stderr);
}

#[test]
fn every_problem_of_a_fleet_is_told_at_once_with_its_line() {
    let dir = TempDir::new().unwrap();
    file(&dir, "a.toml", "[global.kernel]\n\"vm.swappiness\" = 10\n[global.colour]\nx = 1\n");
    file(
        &dir,
        "b.toml",
        "[global.kernel]\n\"vm.swappiness\" = 20\n[[nodes]]\nnames = \"gpu[9-1]\"\nvcluster = \"t\"\n\
         [vcluster.t.policy]\nmode = \"strict\"\n[vcluster.t.files]\n\"/etc/a b\" = 1\n",
    );
    let ended = muster(&["apply", &dir.path().display().to_string()]).expect(1);
    golden("fleet_problems.txt", &plain(&dir, &ended.stderr));
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    muster(&[]).expect(2);
    muster(&["comit"]).expect(2);
    let ended = muster(&["commit", "gpu017", "kernel:a=1", "-m", "x"]).expect(2);
    assert!(ended.stderr.contains("--scope"), "{}", ended.stderr);
    let ended = muster(&["rollback"]).expect(2);
    assert!(ended.stderr.contains("--scope"), "{}", ended.stderr);
    let ended = muster(&["commit", "--scope", "rack:7", "-m", "x", "kernel:a=1"]).expect(2);
    assert!(ended.stderr.contains("expected global, vcluster:NAME or node:NAME"), "{}", ended.stderr);
    let ended = muster(&["commit", "--scope", "global", "-m", "x", "colour:a=1"]).expect(2);
    assert!(ended.stderr.contains("mounts, files, network, services, kernel, packages, gpu"), "{}", ended.stderr);
    let ended = muster(&["commit", "--scope", "global", "-m", "x"]).expect(2);
    assert!(ended.stderr.contains("nothing to commit"), "{}", ended.stderr);
}

#[test]
fn without_a_server_a_verb_names_every_address_that_was_tried() {
    let ports = free_ports(2);
    let servers = format!("127.0.0.1:{},127.0.0.1:{}", ports[0], ports[1]);
    let ended = muster(&["status", "--timeout", "1", "--server", &servers]).expect(1);
    for port in ports {
        assert!(ended.stderr.contains(&format!("127.0.0.1:{port}")), "{}", ended.stderr);
    }
    assert!(ended.stderr.contains("MUSTER_SERVERS"), "{}", ended.stderr);
}

#[test]
fn completions_know_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let ended = muster(&["completions", shell]).expect(0);
        assert!(ended.stdout.contains("rollback"), "{shell}");
    }
}

#[test]
fn an_empty_directory_stops_the_server_and_names_init_join_and_replace() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("data");
    let ports = free_ports(2);
    let text = format!(
        "[raft]\nnode_id = \"n\"\ndata_dir = \"{}\"\nraft_port = {}\n[client]\nport = {}\n",
        data.display(),
        ports[0],
        ports[1]
    );
    let config = file(&dir, "muster.toml", &text);
    let ended = muster(&["server", "--config", &config]).expect(1);
    for verb in ["muster init", "muster join", "muster replace"] {
        assert!(ended.stderr.contains(verb), "{}", ended.stderr);
    }
}
