//! A cluster of real processes for tests: replicas in a temporary directory on free loopback ports, and the command line.
//!
//! Replicas end with the test, whatever happens: each stops when its standard input closes, and is killed when dropped.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of the harness")]

pub mod agent;
pub mod secured;
pub mod terminal;

use serde_json::Value;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The binary under test.
pub const MUSTER: &str = env!("CARGO_BIN_EXE_muster");

/// A small fleet: settings for all, two vClusters of which one has nodes, and a node with settings of its own.
pub const FLEET: &str = r#"
[global.kernel]
"vm.swappiness" = 10
"vm.dirty_ratio" = 20
[vcluster.batch.policy]
base_window_seconds = 600
[vcluster.batch.services]
slurmd = "running"
[vcluster.idle.policy]
[[nodes]]
names = "n[1-20]"
vcluster = "batch"
[[nodes]]
names = "n7"
[nodes.kernel]
"vm.swappiness" = 1
"#;

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// What it printed, as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    /// The same for a stream of objects.
    pub fn json_lines(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Fails the test unless it ended with this code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }
}

/// Runs the binary with nothing of this process's environment that could change what it does.
pub fn muster(args: &[&str]) -> Ended {
    run(Command::new(MUSTER).args(args))
}

fn run(command: &mut Command) -> Ended {
    let command = command
        .env_remove("MUSTER_SERVERS")
        .env_remove("MUSTER_AUTHOR")
        .env_remove("MUSTER_ROLE")
        .env_remove("MUSTER_CONTEXT")
        .env_remove("MUSTER_AGENT")
        .env_remove("MUSTER_TLS_CA")
        .env_remove("MUSTER_TLS_CERT")
        .env_remove("MUSTER_TLS_KEY")
        .env("USER", "tester");
    let output = command.stdin(Stdio::null()).output().unwrap();
    Ended {
        code: output.status.code().expect("it was not killed"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs a verb against these servers, where it talks to any.
fn muster_at(servers: &str, args: &[&str]) -> Ended {
    let client = !["init", "join", "replace", "server", "inspect", "repair"].contains(&args[0]);
    let mut command = Command::new(MUSTER);
    let mut all = args.to_vec();
    if client {
        // What follows a bare -- belongs to somebody else.
        let at = all.iter().position(|arg| *arg == "--").unwrap_or(all.len());
        all.splice(at..at, ["--server", servers]);
    }
    command.args(all);
    run(&mut command)
}

/// A process that ends with the test, whatever happens: it is interrupted, so that it puts away what it made, and killed if it takes
/// its time.
pub struct Running(pub Child);

impl Running {
    /// Interrupts it, as Ctrl-C does, and waits for its end.
    pub fn interrupt(&mut self) -> std::process::ExitStatus {
        Command::new("kill").args(["-INT", &self.0.id().to_string()]).status().unwrap();
        self.0.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(None)) {
            return;
        }
        Command::new("kill").args(["-INT", &self.0.id().to_string()]).status().ok();
        for _ in 0..250 {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Free loopback ports, all different.
pub fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

/// Tries until it is so, for at most ten seconds.
#[track_caller]
pub fn eventually<T>(what: &str, mut is_so: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = is_so() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "it did not come to pass that {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub struct Replica {
    pub name: String,
    pub config: PathBuf,
    pub data: PathBuf,
    pub log: PathBuf,
    /// `host:port` for clients.
    pub address: String,
    pub peer_address: String,
    child: Option<Child>,
}

pub struct Cluster {
    pub dir: TempDir,
    pub replicas: Vec<Replica>,
}

impl Cluster {
    /// No replica yet.
    pub fn empty() -> Self {
        Self { dir: TempDir::new().unwrap(), replicas: Vec::new() }
    }

    /// A running cluster in which all voters and learners take part.
    pub fn start(voters: usize, learners: usize) -> Self {
        let mut cluster = Self::empty();
        for i in 0..voters + learners {
            let i = cluster.configure(&format!("r{}", i + 1), "");
            if i == 0 {
                cluster.muster(&["init", "--config", &cluster.config(0)]).expect(0);
            } else {
                cluster.join(i, i < voters).expect(0);
            }
            cluster.spawn(i);
            cluster.wait_for_leader();
        }
        eventually("all replicas take part", || {
            let status = cluster.leader_status()?;
            let part = |name: &str| status["raft"]["configuration"][name].as_array().map_or(0, Vec::len);
            let joint = part("voters_outgoing") > 0;
            (part("voters") == voters && part("learners") == learners && !joint).then_some(())
        });
        cluster
    }

    /// Writes the configuration of one more replica; `more` is TOML added to `[raft]`. Gives its place in the list.
    pub fn configure(&mut self, name: &str, more: &str) -> usize {
        let ports = free_ports(2);
        let path = |end: &str| self.dir.path().join(format!("{name}{end}"));
        let (config, data, log) = (path(".toml"), path(""), path(".log"));
        let addresses: Vec<_> =
            self.replicas.iter().map(|replica| format!("{{ addr = \"{}\" }}", replica.address)).collect();
        let text = format!(
            "[raft]\nnode_id = \"{name}\"\ndata_dir = \"{}\"\nraft_port = {}\n{more}\n[raft.bootstrap]\nnodes = [{}]\n\
             [client]\nport = {}\n",
            data.display(),
            ports[0],
            addresses.join(", "),
            ports[1],
        );
        std::fs::write(&config, text).unwrap();
        self.replicas.push(Replica {
            name: name.to_owned(),
            config,
            data,
            log,
            address: format!("127.0.0.1:{}", ports[1]),
            peer_address: format!("127.0.0.1:{}", ports[0]),
            child: None,
        });
        self.replicas.len() - 1
    }

    pub fn config(&self, i: usize) -> String {
        self.replicas[i].config.display().to_string()
    }

    /// Has a configured replica admitted.
    pub fn join(&self, i: usize, promote: bool) -> Ended {
        let config = self.config(i);
        let mut args = vec!["join", "--config", &config];
        args.extend(promote.then_some("--promote"));
        muster(&args)
    }

    /// Starts a replica's process. Its words go to its log.
    pub fn spawn(&mut self, i: usize) {
        let replica = &mut self.replicas[i];
        let log = File::options().create(true).append(true).open(&replica.log).unwrap();
        let child = Command::new(MUSTER)
            .args(["server", "--until-stdin-closes", "--config"])
            .arg(&replica.config)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        replica.child = Some(child);
    }

    /// Ends a process at once, as `kill -9` does.
    pub fn kill(&mut self, i: usize) {
        if let Some(mut child) = self.replicas[i].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Ends all processes at once.
    pub fn kill_all(&mut self) {
        let mut children: Vec<_> = self.replicas.iter_mut().filter_map(|replica| replica.child.take()).collect();
        for child in &mut children {
            child.kill().unwrap();
        }
        for child in &mut children {
            child.wait().unwrap();
        }
    }

    /// Sends SIGTERM and waits for the end; gives the exit code.
    pub fn terminate(&mut self, i: usize) -> Option<i32> {
        let mut child = self.replicas[i].child.take().expect("it runs");
        // Waiting closes standard input, which would be a second word to stop.
        let _stdin = child.stdin.take();
        assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
        child.wait().unwrap().code()
    }

    /// Waits for a process that should end by itself; gives the exit code.
    pub fn ended(&mut self, i: usize) -> Option<i32> {
        let child = self.replicas[i].child.as_mut().expect("it runs");
        let status = eventually("the process ends", || child.try_wait().unwrap());
        self.replicas[i].child = None;
        status.code()
    }

    /// Stops a replica's process and all its threads where they are (SIGSTOP), or lets them go on (SIGCONT).
    pub fn signal(&self, i: usize, signal: &str) {
        let id = self.replicas[i].child.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    pub fn log(&self, i: usize) -> String {
        std::fs::read_to_string(&self.replicas[i].log).unwrap_or_default()
    }

    /// The addresses of all replicas.
    pub fn servers(&self) -> String {
        self.replicas.iter().map(|replica| replica.address.clone()).collect::<Vec<_>>().join(",")
    }

    /// Runs a verb against this cluster.
    pub fn muster(&self, args: &[&str]) -> Ended {
        muster_at(&self.servers(), args)
    }

    /// Runs a verb against one replica.
    pub fn muster_on(&self, i: usize, args: &[&str]) -> Ended {
        muster_at(&self.replicas[i].address, args)
    }

    /// The leader's own status.
    pub fn leader_status(&self) -> Option<Value> {
        let status = self.muster(&["status", "--json"]);
        let value: Value = serde_json::from_str(&status.stdout).ok()?;
        let replicas = value["replicas"].as_array()?;
        let leaders = replicas.iter().filter(|replica| replica["raft"]["role"] == "leader");
        leaders.max_by_key(|replica| replica["raft"]["term"].as_u64()).cloned()
    }

    /// Waits until somebody leads; gives its place in the list.
    pub fn wait_for_leader(&self) -> usize {
        eventually("somebody leads", || {
            let status = self.leader_status()?;
            self.replicas.iter().position(|replica| status["name"] == replica.name.as_str())
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file beside the replicas.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// Compares with a file of `tests/golden`; `MUSTER_GOLDEN=write` writes it anew.
#[track_caller]
pub fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("MUSTER_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{} differs; MUSTER_GOLDEN=write writes it anew", path.display());
}
