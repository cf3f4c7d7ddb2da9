//! Agents of real processes for tests: each looks after a directory that stands for a machine, unless it is told otherwise.

use super::{Cluster, Ended, MUSTER, eventually, free_ports, muster};
use serde_json::Value;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

pub struct Agent {
    pub node: String,
    pub dir: PathBuf,
    pub root: PathBuf,
    pub config: PathBuf,
    pub address: String,
    pub log: PathBuf,
    child: Option<Child>,
}

impl Agent {
    /// Puts a node into the vCluster and runs its agent.
    pub fn start(cluster: &Cluster, node: &str, vcluster: &str) -> Self {
        let assign = format!("vcluster={vcluster}");
        cluster
            .muster(&["commit", "--scope", &format!("node:{node}"), "--boot-config", &assign, "-m", "new"])
            .expect(0);
        let mut agent = Self::configure(cluster, node, "");
        agent.spawn();
        agent.wait_until_connected();
        eventually("the journal has heard of the agent", || {
            let heard = cluster.muster(&["watch", "--once", "--json"]).expect(0).json();
            heard["nodes"].as_array()?.iter().any(|heard| heard["node"] == node).then_some(())
        });
        agent
    }

    /// Writes an agent's configuration; `more` is TOML added to it.
    pub fn configure(cluster: &Cluster, node: &str, more: &str) -> Self {
        let servers: Vec<String> = cluster.replicas.iter().map(|replica| replica.address.clone()).collect();
        Self::of(cluster.path(&format!("agent-{node}")), node, &servers, more)
    }

    /// The same for an agent that keeps everything in `dir`.
    pub fn of(dir: PathBuf, node: &str, servers: &[String], more: &str) -> Self {
        let root = dir.join("root");
        std::fs::create_dir_all(&root).unwrap();
        let port = free_ports(1)[0];
        let servers: Vec<String> = servers.iter().map(|server| format!("{server:?}")).collect();
        let text = format!(
            "[agent]\nnode = \"{node}\"\nroot = \"{}\"\ndata_dir = \"{}\"\nport = {port}\n[journal]\nservers = [{}]\n{more}",
            root.display(),
            dir.join("data").display(),
            servers.join(", ")
        );
        let config = dir.join("agent.toml");
        std::fs::write(&config, text).unwrap();
        let (address, log) = (format!("127.0.0.1:{port}"), dir.join("log"));
        Self { node: node.to_owned(), dir, root, config, address, log, child: None }
    }

    pub fn spawn(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let child = Command::new(MUSTER)
            .args(["agent", "--until-stdin-closes", "--config"])
            .arg(&self.config)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Ends the process at once, as `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Asks the agent itself, whatever the journal does.
    pub fn muster(&self, args: &[&str]) -> Ended {
        let mut all = args.to_vec();
        let at = all.iter().position(|arg| *arg == "--").unwrap_or(all.len());
        all.splice(at..at, ["--agent", &self.address]);
        muster(&all)
    }

    /// How the node is, by its own word.
    pub fn report(&self) -> Option<Value> {
        let ended = self.muster(&["drift", &self.node, "--json"]);
        (ended.code == 0).then(|| ended.json())
    }

    #[track_caller]
    pub fn wait_until_connected(&self) {
        eventually("the agent has booted and reaches the journal", || {
            let report = self.report()?;
            (report["connected"] == true && report["state"] != "booting").then_some(())
        });
    }

    #[track_caller]
    pub fn wait_for_state(&self, state: &str) -> Value {
        eventually(&format!("{} is {state}\n{}", self.node, self.words()), || {
            self.report().filter(|report| report["state"] == state)
        })
    }

    /// A file of the machine.
    pub fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.root.join(path.trim_start_matches('/'))).ok()
    }

    pub fn write(&self, path: &str, text: &str) {
        std::fs::write(self.root.join(path.trim_start_matches('/')), text).unwrap();
    }

    /// The agent's log.
    pub fn words(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}
