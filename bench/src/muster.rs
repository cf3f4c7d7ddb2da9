//! Three voters of Muster on loopback, each a process of its own, and what is asked of them.

use crate::boots::node_name;
use crate::child::{self, Child};
use crate::growth::Grown;
use crate::load::{Kind, Side, Work};
use anyhow::{Context as _, Result, bail};
use muster_core::ids::{NodeId, ReplicaId, Seq};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::entry::{Author, Change, EntryDraft, EntryType, Principal, Role};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::policy::Policy;
use muster_core::query::Query;
use muster_core::request::{Command, Freshness, Outcome, Reply};
use muster_net::client::{BootAsk, Client, Options, Status};
use muster_net::tls::Tls;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Clocks of one machine do not drift against each other; a thousandth is stated. Only leased reads rest on it.
const LEASE: &str = "lease_clock_drift_ppm = 1000\n";

/// How long a cluster may take to come up; one that begins with a long history has to copy it first.
const PATIENCE: Duration = Duration::from_mins(1);
const PATIENCE_WITH_A_PAST: Duration = Duration::from_mins(20);

/// Who measures.
pub(crate) fn author() -> Author {
    Author { principal: Principal::Claimed { name: Arc::from("muster-bench") }, role: Role::Admin }
}

/// A replica's process.
struct Replica {
    config: PathBuf,
    log: PathBuf,
    client_address: String,
    child: Option<Child>,
}

/// What a cluster is made of.
#[derive(Clone, Copy, Default)]
pub(crate) struct Size {
    pub(crate) voters: usize,
    pub(crate) learners: usize,
    /// By how much learners give way to others of the machine.
    pub(crate) learners_nice: u8,
}

impl Size {
    /// Nothing but voters.
    pub(crate) fn of_voters(voters: usize) -> Self {
        Self { voters, ..Self::default() }
    }
}

/// A cluster that was started for a measurement.
pub(crate) struct Cluster {
    program: PathBuf,
    size: Size,
    replicas: Vec<Replica>,
    tls: Option<Tls>,
    patience: Duration,
}

/// The program beside this one, unless another is named.
pub(crate) fn program(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(given) = given {
        return child::find(Some(given), "muster");
    }
    let beside = std::env::current_exe()?.with_file_name("muster");
    if !beside.is_file() {
        bail!(
            "{} is not there: build it with `cargo build --release -p muster`, or name one with --muster",
            beside.display()
        );
    }
    Ok(beside)
}

impl Cluster {
    /// Makes and starts a cluster of `voters` replicas under `dir`.
    pub(crate) async fn start(program: &Path, dir: &Path, voters: usize) -> Result<Self> {
        Self::start_with(program, dir, Size::of_voters(voters), "", None).await
    }

    /// The same with learners too, and `more` added to every replica's configuration; `tls` are the keys of whoever looks at it.
    pub(crate) async fn start_with(
        program: &Path,
        dir: &Path,
        size: Size,
        more: &str,
        tls: Option<Tls>,
    ) -> Result<Self> {
        Self::assemble(program, dir, size, more, tls, None).await
    }

    /// Three voters, of which the first begins with a copy of a journal that was grown, and the others fetch it.
    pub(crate) async fn start_grown(program: &Path, dir: &Path, grown: &Grown) -> Result<Self> {
        Self::assemble(program, dir, Size::of_voters(3), "", None, Some(grown)).await
    }

    async fn assemble(
        program: &Path,
        dir: &Path,
        size: Size,
        more: &str,
        tls: Option<Tls>,
        grown: Option<&Grown>,
    ) -> Result<Self> {
        let Size { voters, learners, .. } = size;
        let mut ports = child::free_ports(2 * (voters + learners))?;
        let patience = if grown.is_some() { PATIENCE_WITH_A_PAST } else { PATIENCE };
        let mut cluster = Self { program: program.to_owned(), size, replicas: Vec::new(), tls, patience };
        if let Some(grown) = grown {
            (ports[0], ports[1]) = (grown.peer_port, grown.client_port);
            grown.copy_to(&dir.join(Grown::NAME))?;
        }
        for place in 0..voters + learners {
            let (peer, client) = (ports[2 * place], ports[2 * place + 1]);
            let name = format!("muster-{}", place + 1);
            let config = dir.join(format!("{name}.toml"));
            let bootstrap = cluster.replicas.first().map_or_else(String::new, |first| {
                format!("\n[raft.bootstrap]\nnodes = [{{ id = \"muster-1\", addr = \"{}\" }}]\n", first.client_address)
            });
            let data = dir.join(&name);
            let text = format!(
                "[raft]\nnode_id = \"{name}\"\ndata_dir = {:?}\nraft_port = {peer}\n{LEASE}{bootstrap}\n[client]\nport = {client}\n{more}",
                data.display().to_string()
            );
            std::fs::write(&config, text)?;
            let verb = match place {
                0 if grown.is_some() => None,
                0 => Some(vec!["init"]),
                voter if voter < voters => Some(vec!["join", "--promote"]),
                _ => Some(vec!["join"]),
            };
            if let Some(verb) = verb {
                let arguments =
                    verb.into_iter().map(str::to_owned).chain(["--config".into(), config.display().to_string()]);
                child::run(program, &arguments.collect::<Vec<_>>())?;
            }
            cluster.replicas.push(Replica {
                config,
                log: dir.join(format!("{name}.log")),
                client_address: format!("127.0.0.1:{client}"),
                child: None,
            });
            cluster.spawn(place)?;
            cluster.wait_for(voters.min(place + 1), (place + 1).saturating_sub(voters)).await?;
        }
        Ok(cluster)
    }

    /// Starts one replica's process.
    pub(crate) fn spawn(&mut self, place: usize) -> Result<()> {
        let replica = &mut self.replicas[place];
        let arguments = ["server", "--until-stdin-closes", "--config"].map(str::to_owned).into_iter();
        let arguments: Vec<_> = arguments.chain([replica.config.display().to_string()]).collect();
        let nice = if place < self.size.voters { 0 } else { self.size.learners_nice };
        replica.child = Some(Child::spawn(&self.program, nice, &arguments, &replica.log)?);
        Ok(())
    }

    /// Ends one replica's process as a power cut would.
    pub(crate) fn kill(&mut self, place: usize) {
        self.replicas[place].child = None;
    }

    /// Where replicas listen for clients.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.replicas.iter().map(|replica| replica.client_address.clone()).collect()
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.replicas.iter().filter_map(|replica| replica.child.as_ref()).map(Child::pid).collect()
    }

    async fn statuses(&self) -> Vec<Status> {
        let mut statuses = Vec::new();
        let options = Options { tls: self.tls.clone(), ..Options::default() };
        let Ok(client) = Client::connect(self.addresses(), options).await else { return statuses };
        for replica in self.replicas.iter().filter(|replica| replica.child.is_some()) {
            statuses.extend(client.status(&replica.client_address).await);
        }
        statuses
    }

    /// Waits until so many voters and learners follow one leader.
    pub(crate) async fn wait_for(&mut self, voters: usize, learners: usize) -> Result<()> {
        let began = Instant::now();
        loop {
            for replica in &mut self.replicas {
                if replica.child.as_mut().is_some_and(Child::has_ended) {
                    bail!("a replica ended:\n{}", child::last_lines(&replica.log));
                }
            }
            let statuses = self.statuses().await;
            let up = |status: &Status| {
                let configuration = &status.replica.configuration;
                status.replica.leader != ReplicaId(0)
                    && configuration.voters.len() == voters
                    && configuration.learners.len() == learners
                    && !configuration.is_joint()
            };
            if statuses.len() == voters + learners && statuses.iter().all(up) {
                return Ok(());
            }
            if began.elapsed() > self.patience {
                bail!("the cluster did not come up within {} s", self.patience.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Which of the replicas leads.
    pub(crate) async fn leader(&self) -> Result<usize> {
        let statuses = self.statuses().await;
        let newest = statuses.iter().max_by_key(|status| status.replica.term).context("no replica answers")?;
        let leader = newest.members.iter().find(|member| member.id == newest.replica.leader).context("nobody leads")?;
        let place = self.replicas.iter().position(|replica| *replica.client_address == *leader.client_address);
        place.context("a stranger leads")
    }
}

impl Side for Cluster {
    type Work = Load;

    fn name(&self) -> &'static str {
        "muster"
    }

    fn pids(&self) -> Vec<u32> {
        Self::pids(self)
    }

    async fn prepare(&self, kind: &Kind) -> Result<Load> {
        Load::prepare(self.addresses(), kind).await
    }
}

/// Servers somebody else runs.
pub(crate) struct Running(pub(crate) Vec<String>);

impl Side for Running {
    type Work = Load;

    fn name(&self) -> &'static str {
        "muster"
    }

    fn pids(&self) -> Vec<u32> {
        Vec::new()
    }

    async fn prepare(&self, kind: &Kind) -> Result<Load> {
        Load::prepare(self.0.clone(), kind).await
    }
}

/// Callers' work: all of them share one client, as the callers of one process would.
#[derive(Clone)]
pub(crate) struct Load {
    client: Client,
    kind: Kind,
    author: Author,
    value: Arc<str>,
    /// Whatever an earlier run left was seen.
    seen: Seq,
}

/// What a caller remembers: the newest sequence it knows.
pub(crate) struct Memory {
    seen: Seq,
}

/// Writes one setting of a scope.
fn commit(scope: &Scope, key: Key, value: &Arc<str>, parent: Seq) -> Command {
    let change = Change { key, previous: Setting::Unset, next: Setting::Value(value.clone()) };
    Command::Journal(JournalCommand::AppendEntry(EntryDraft {
        entry_type: EntryType::Commit,
        scope: scope.clone(),
        parent,
        based_on: None,
        changes: vec![change],
        ttl_seconds: None,
        emergency_reason: None,
        message: Arc::from("load"),
        occurred_at: None,
    }))
}

impl Load {
    async fn prepare(servers: Vec<String>, kind: &Kind) -> Result<Self> {
        let client = Client::connect(servers, Options::default()).await?;
        let asked = client.query(Freshness::Linearizable, &Query::Summary).await;
        let seen = asked.context("asking for the journal's head")?.sequence;
        let bytes = match kind {
            Kind::Commit { bytes, .. } | Kind::Read { bytes, .. } => *bytes,
            Kind::Boot { .. } => 0,
        };
        let value: Arc<str> = Arc::from("v".repeat(usize::try_from(bytes)?));
        let load = Self { client, kind: kind.clone(), author: author(), value, seen };
        if let Kind::Read { .. } = kind {
            load.declare_what_is_read().await?;
        }
        Ok(load)
    }

    /// A scope with one setting: what a read gives.
    async fn declare_what_is_read(&self) -> Result<()> {
        let scope = read_scope();
        let Scope::VCluster(vcluster) = &scope else { unreachable!("it is a vCluster") };
        let policy = JournalCommand::SetPolicy { vcluster: vcluster.clone(), policy: Policy::default() };
        self.declare(Command::Journal(policy)).await?;
        let head = self.client.query(Freshness::Linearizable, &Query::Summary).await?.sequence;
        self.declare(commit(&scope, Key::new("kernel:bench.read")?, &self.value, head)).await
    }

    async fn declare(&self, command: Command) -> Result<()> {
        match self.client.write(&self.author, command).await {
            Outcome::Applied { .. } => Ok(()),
            outcome => bail!("declaring what is read: {outcome:?}"),
        }
    }
}

/// Makes a vCluster known.
pub(crate) async fn declare_vcluster(cluster: &Cluster, name: &str) -> Result<()> {
    let client = Client::connect(cluster.addresses(), Options::default()).await?;
    let policy = JournalCommand::SetPolicy { vcluster: name.parse()?, policy: Policy::default() };
    let outcome = client.write(&author(), Command::Journal(policy)).await;
    client.close().await;
    match outcome {
        Outcome::Applied { .. } => Ok(()),
        outcome => bail!("declaring vCluster {name}: {outcome:?}"),
    }
}

fn read_scope() -> Scope {
    "vcluster:bench".parse().expect("it is a scope")
}

impl Work for Load {
    type Memory = Memory;

    fn memory(&self) -> Memory {
        Memory { seen: self.seen }
    }

    async fn once(&self, caller: u32, turn: u64, memory: &mut Memory) -> Result<(), String> {
        match &self.kind {
            Kind::Commit { scope, keys, .. } => {
                let key = Key::new(&format!("kernel:bench.{caller}.{}", turn % u64::from(*keys)));
                let command = commit(scope, key.map_err(|error| error.to_string())?, &self.value, memory.seen);
                match self.client.write(&self.author, command).await {
                    Outcome::Applied { reply: Reply::Recorded { sequence }, .. } => {
                        memory.seen = sequence;
                        Ok(())
                    }
                    other => Err(format!("{other:?}")),
                }
            }
            Kind::Read { freshness, .. } => {
                let asked = self.client.query(*freshness, &Query::Scope(read_scope())).await;
                asked.map(|_| ()).map_err(|error| error.to_string())
            }
            Kind::Boot { nodes } => {
                let at = (u64::from(caller) * 7_919 + turn * 127) % u64::from(*nodes);
                let node =
                    NodeId::new(&node_name(u32::try_from(at).unwrap_or(0))).map_err(|error| error.to_string())?;
                let ask = BootAsk { node, known: None, at_least: Seq(0) };
                self.client.boot(&ask).await.map(|_| ()).map_err(|error| error.to_string())
            }
        }
    }

    async fn end(self) {
        self.client.close().await;
    }
}
