//! `muster dev`: a whole cluster on this machine. Three voters and one learner, each a process of its own with its own
//! write-ahead log and sockets on free loopback ports, TLS between all of them by a throwaway CA; the example fleet; nothing
//! to configure.
//!
//! [`cluster`] minds the processes, [`agents`] those of nodes whose machines are directories, [`story`] tells `--once`, and without it the cluster stays up with a live status. The
//! replicas are plain `muster server`s: what is shown here is what runs in production.

pub(crate) mod agents;
mod child;
mod cluster;
mod story;

use crate::args::DevArgs;
use crate::exit::Failure;
use crate::fleet::Fleet;
use crate::verbs::apply::{Applied, carry_out, plan};
use crate::verbs::cluster::{leader, status_json, status_text, statuses};
use crate::{examples, text};
use agents::Agents;
use cluster::Cluster;
use indicatif::ProgressBar;
use muster_core::agent::operator::Phase;
use muster_core::journal::entry::{Author, Principal, Role};
use muster_net::client::Client;
use serde_json::json as object;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Everybody but the last becomes a voter.
const REPLICAS: [&str; 4] = ["dev-1", "dev-2", "dev-3", "dev-4"];

/// Where the data is, and whether it goes at the end.
enum Home {
    Kept(PathBuf),
    Temporary(PathBuf),
}

impl Home {
    fn new(dir: Option<PathBuf>) -> Result<Self, Failure> {
        if let Some(dir) = dir {
            std::fs::create_dir_all(&dir)
                .map_err(|error| Failure::error(format!("{} cannot be made: {error}", dir.display()), ""))?;
            return Ok(Self::Kept(std::path::absolute(dir)?));
        }
        let base = std::env::temp_dir();
        for attempt in 0..100 {
            let dir = base.join(format!("muster-dev-{}-{attempt}", std::process::id()));
            match std::fs::create_dir(&dir) {
                Ok(()) => return Ok(Self::Temporary(dir)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(Failure::error(
                        format!("{} cannot be made: {error}", dir.display()),
                        "name a directory with --dir DIR",
                    ));
                }
            }
        }
        Err(Failure::error(format!("{} is full of muster-dev directories", base.display()), "remove them"))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) | Self::Temporary(path) => path,
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Self::Temporary(path) = self {
            // What cannot be removed is small and lies where the system cleans up.
            let _ = std::fs::remove_dir_all(path);
        }
    }
}

/// In whose name `dev` writes. What is recorded is the name in its certificate.
fn author() -> Author {
    Author { principal: Principal::Claimed { name: Arc::from("muster-dev") }, role: Role::Admin }
}

/// Declares the example fleet.
async fn apply_examples(client: &Client) -> Result<Applied, Failure> {
    let fleet = Fleet::parse(examples::FILES)?;
    let plan = plan(client, &fleet).await?;
    carry_out(client, &author(), plan, "the example fleet", &ProgressBar::hidden()).await
}

pub(crate) async fn dev(args: DevArgs, json: bool) -> Result<(), Failure> {
    let home = Home::new(args.dir)?;
    let mut cluster = Cluster::prepare(home.path())?;
    let mut agents = Agents::prepare(&cluster, if args.once { 0 } else { usize::from(args.agents) })?;
    let result = tokio::select! {
        result = run(&mut cluster, &mut agents, args.once, json) => result,
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Failure::from),
    };
    // A failure is explained by the replicas' own words; they are still there at this point.
    let result = result.map_err(|failure| cluster.explain(failure));
    agents.stop().await;
    cluster.stop().await;
    result
}

async fn run(cluster: &mut Cluster, agents: &mut Agents, once: bool, json: bool) -> Result<(), Failure> {
    if once {
        return story::tell(cluster, json).await;
    }
    let began = Instant::now();
    if !json {
        text::print(&format!("starting three voters and one learner in {}\n", cluster.dir().display()))?;
    }
    cluster.start().await?;
    let client = cluster.client().await?;
    let applied = apply_examples(&client).await?;
    if !agents.places().is_empty() {
        agents.declare(&client).await?;
    }
    agents.start()?;
    settled(&client, agents).await?;
    if json {
        let found = statuses(&client).await;
        let mut value = status_json(&found);
        value["servers"] = cluster.addresses().into();
        value["context"] = cluster.context().display().to_string().into();
        value["agents"] = agents
            .places()
            .iter()
            .map(|(node, root)| object!({ "node": node, "root": root.display().to_string() }))
            .collect();
        value["dir"] = cluster.dir().display().to_string().into();
        value["ready_ms"] = object!(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
        text::print(&format!("{value}\n"))?;
    } else {
        text::print(&crate::verbs::apply::applied_text(&applied))?;
        text::print(&what_next(&cluster.context(), &agents.places(), began.elapsed()))?;
    }
    watch(cluster, agents, &client, json).await
}

/// How long the agents may take to apply what is declared.
const AGENTS_PATIENCE: Duration = Duration::from_secs(20);

/// Waits until every agent has told the journal that its node is what is declared. One that is not says why itself, when asked.
async fn settled(client: &Client, agents: &Agents) -> Result<(), Failure> {
    let began = Instant::now();
    while began.elapsed() < AGENTS_PATIENCE {
        let heard = client.fleet(None).await?;
        let booted = heard.values().filter(|heard| heard.report.phase != Phase::Booting).count();
        if booted >= agents.places().len() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eprintln!("muster: not every agent has applied what is declared yet; see `muster watch`");
    Ok(())
}

fn what_next(context: &Path, agents: &[(&'static str, PathBuf)], took: Duration) -> String {
    let mut out = format!(
        "ready after {:.1} s. In another terminal:\n\n  \
         export MUSTER_CONTEXT={}\n  \
         muster status\n  \
         muster boot gpu017\n  \
         muster commit --scope vcluster:training kernel:vm.swappiness=1 -m \"less swapping\"\n  \
         muster log --follow\n",
        took.as_secs_f64(),
        context.display()
    );
    if let Some((node, root)) = agents.first() {
        let _ = write!(
            out,
            "\nAn agent looks after {node}; the directory {} stands for its machine:\n\n  \
             muster set files:/etc/motd=hello --node {node}\n  \
             muster drift {node}\n  \
             muster watch\n  \
             muster commit {node} -m \"a friendly machine\"        # or: muster rollback {node}\n",
            root.display()
        );
    }
    out + "\nCtrl-C stops everything.\n\n"
}

/// Shows the replicas until interrupted: in place on a terminal, else whenever the leader changes.
async fn watch(cluster: &mut Cluster, agents: &mut Agents, client: &Client, json: bool) -> Result<(), Failure> {
    let terminal = std::io::stdout().is_terminal() && !json;
    let mut lines = 0;
    let mut told = None;
    loop {
        for name in cluster.exited()? {
            eprintln!("muster: {name} has ended; its log is {}", cluster.log(&name).display());
        }
        for (node, log) in agents.exited()? {
            eprintln!("muster: the agent of {node} has ended; its log is {}", log.display());
        }
        let found = statuses(client).await;
        if terminal {
            let table = status_text(&found);
            // Cursor up over the last table, then clear to the end of the screen.
            let back = if lines == 0 { String::new() } else { format!("\x1b[{lines}A\x1b[J") };
            lines = table.lines().count();
            text::print(&format!("{back}{table}"))?;
        } else {
            let leads = leader(&found).map(|(_, status)| (status.replica.replica, status.replica.term));
            if leads != told {
                told = leads;
                if json {
                    text::print(&format!("{}\n", status_json(&found)))?;
                } else {
                    text::print(&status_text(&found))?;
                }
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
