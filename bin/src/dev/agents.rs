//! The agents of `muster dev`: each looks after a directory that stands for a machine, so that everything can be tried without
//! touching this one.
//!
//! Their nodes make a vCluster of their own, `sandbox`: what the example fleet declares for everybody holds there too, but for the
//! mounts and services that only a real machine can have.

use super::child;
use super::cluster::Cluster;
use crate::exit::{Failure, written};
use crate::verbs::write::draft;
use crate::verbs::{scope, scope_or_nothing};
use muster_core::ids::{NodeId, Seq, VClusterId};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::entry::{Change, EntryDraft, EntryType};
use muster_core::journal::key::{Dimension, Key, Scope, Setting};
use muster_core::journal::policy::Policy;
use muster_core::request::{Command, Freshness};
use muster_net::client::Client;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::process::Child;

/// Most agents at once.
pub(crate) const AGENTS_MAX: u8 = 8;

/// Their nodes.
const NODES: [&str; AGENTS_MAX as usize] = ["box1", "box2", "box3", "box4", "box5", "box6", "box7", "box8"];

/// Their vCluster.
const SANDBOX: &str = "sandbox";

struct Agent {
    node: &'static str,
    file: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

/// The agents, and the directories that stand for their machines.
pub(super) struct Agents {
    agents: Vec<Agent>,
}

fn cannot(path: &Path, error: &std::io::Error) -> Failure {
    Failure::error(format!("{} cannot be written: {error}", path.display()), "")
}

impl Agents {
    /// Writes the configuration files, or takes those that an earlier run left there.
    pub(super) fn prepare(cluster: &Cluster, count: usize) -> Result<Self, Failure> {
        let dir = cluster.dir().join("agents");
        std::fs::create_dir_all(&dir).map_err(|error| cannot(&dir, &error))?;
        let mut agents = Vec::new();
        for node in NODES.into_iter().take(count) {
            let file = dir.join(format!("{node}.toml"));
            let root = dir.join(node).join("root");
            std::fs::create_dir_all(&root).map_err(|error| cannot(&root, &error))?;
            let keys = cluster.certify("agent", node)?;
            if !file.exists() {
                let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
                let quoted = |path: &Path| toml::Value::String(path.display().to_string());
                let servers: Vec<String> =
                    cluster.addresses().into_iter().map(|address| toml::Value::String(address).to_string()).collect();
                let text = format!(
                    "[agent]\nnode = \"{node}\"\nroot = {}\ndata_dir = {}\nport = {port}\n\n[journal]\nservers = [{}]\n\n\
                     [security]\nca = {}\ncertificate = {}\nkey = {}\n",
                    quoted(&root),
                    quoted(&dir.join(node).join("data")),
                    servers.join(", "),
                    quoted(&keys.ca),
                    quoted(&keys.certificate),
                    quoted(&keys.key),
                );
                std::fs::write(&file, text).map_err(|error| cannot(&file, &error))?;
            }
            agents.push(Agent { node, file, log: dir.join(format!("{node}.log")), child: None });
        }
        Ok(Self { agents })
    }

    /// Declares their vCluster and puts their nodes into it, unless an earlier run has.
    pub(super) async fn declare(&self, client: &Client) -> Result<(), Failure> {
        let sandbox = VClusterId::new(SANDBOX).expect("a plain word is a name");
        let append = |draft| Command::Journal(JournalCommand::AppendEntry(draft));
        if crate::verbs::write::policy_of(client, Freshness::Linearizable, &sandbox).await.is_err() {
            let policy = Policy { exec_allow: vec!["uptime".into(), "ls".into(), "shell".into()], ..Policy::default() };
            let set = JournalCommand::SetPolicy { vcluster: sandbox.clone(), policy };
            written(client.write(&super::author(), Command::Journal(set)).await, None)?;
            let (_, everywhere) = scope(client, Freshness::Linearizable, &Scope::Global).await?;
            let real = [Some(Dimension::Mounts), Some(Dimension::Services)];
            let changes: Vec<Change> = everywhere
                .into_iter()
                .filter(|declared| real.contains(&declared.key.dimension()))
                .map(|declared| Change { key: declared.key, previous: Setting::Unset, next: Setting::Absent })
                .collect();
            if !changes.is_empty() {
                let why = Arc::from("a directory has no mounts and no services");
                let draft = draft(EntryType::Commit, Scope::VCluster(sandbox.clone()), Seq(0));
                written(
                    client.write(&super::author(), append(EntryDraft { changes, message: why, ..draft })).await,
                    None,
                )?;
            }
        }
        for agent in &self.agents {
            let own = Scope::Node(NodeId::new(agent.node).expect("a plain word is a name"));
            let (head, _) = scope_or_nothing(client, Freshness::Linearizable, &own).await?;
            if head == Seq(0) {
                let next = Setting::Value(Arc::from(SANDBOX));
                let changes = vec![Change { key: Key::vcluster(), previous: Setting::Unset, next }];
                let draft = draft(EntryType::BootConfig, own, Seq(0));
                written(client.write(&super::author(), append(EntryDraft { changes, ..draft })).await, None)?;
            }
        }
        Ok(())
    }

    /// Starts them.
    pub(super) fn start(&mut self) -> Result<(), Failure> {
        for agent in &mut self.agents {
            agent.child = Some(child::spawn("agent", &agent.file, &agent.log)?);
        }
        Ok(())
    }

    /// Their nodes, and the directories that stand for them.
    pub(super) fn places(&self) -> Vec<(&'static str, PathBuf)> {
        self.agents.iter().map(|agent| (agent.node, agent.file.with_extension("").join("root"))).collect()
    }

    /// Those whose process has ended by itself since it was last asked, and their logs.
    pub(super) fn exited(&mut self) -> Result<Vec<(&'static str, PathBuf)>, Failure> {
        let mut ended = Vec::new();
        for agent in &mut self.agents {
            if let Some(child) = &mut agent.child
                && child.try_wait()?.is_some()
            {
                agent.child = None;
                ended.push((agent.node, agent.log.clone()));
            }
        }
        Ok(ended)
    }

    /// Stops them.
    pub(super) async fn stop(&mut self) {
        for agent in &mut self.agents {
            let Some(mut child) = agent.child.take() else { continue };
            drop(child.stdin.take());
            if tokio::time::timeout(Duration::from_secs(5), child.wait()).await.is_err() {
                // It did not stop by itself; its windows go on from its disk either way.
                let _ = child.kill().await;
            }
        }
    }
}
