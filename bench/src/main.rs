//! `muster-bench`: closed-loop load on a running cluster, measured from outside through the client.
//!
//! Every caller waits for its answer before it asks again; all callers of one run share one client, as the callers of one
//! process would. Figures are for the machine they were taken on; nothing here asserts a time.

mod load;
mod report;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use load::Kind;
use muster_core::ids::NodeId;
use muster_core::journal::key::Scope;

/// Measures a running Muster cluster.
#[derive(Debug, Parser)]
#[command(name = "muster-bench", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// Print for programs: one JSON object a run
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Commits of one setting each
    Commit {
        #[command(flatten)]
        common: Common,
        /// Bytes of the committed value
        #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        bytes: u32,
        /// For whom: global, vcluster:NAME or node:NAME
        #[arg(long, default_value = "global")]
        scope: Scope,
    },
    /// Reads of one scope's head
    Read {
        #[command(flatten)]
        common: Common,
        /// Take what the replica has, without asking a quorum
        #[arg(long)]
        local: bool,
    },
    /// Complete boots of one node
    Boot {
        #[command(flatten)]
        common: Common,
        /// Which node
        node: NodeId,
    },
}

/// Whom to load, and how much.
#[derive(Clone, Debug, Args)]
struct Common {
    /// A replica's client address; may be repeated
    #[arg(long = "server", value_name = "HOST:PORT", env = "MUSTER_SERVERS", value_delimiter = ',', required = true)]
    servers: Vec<String>,
    /// Callers, each waiting for its answer; several numbers make several runs
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    callers: Vec<u32>,
    /// How long each run is measured, after a warm-up of a tenth of it
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let (common, kind) = match cli.verb {
        Verb::Commit { common, bytes, scope } => (common, Kind::Commit { bytes, scope }),
        Verb::Read { common, local } => (common, Kind::Read { local }),
        Verb::Boot { common, node } => (common, Kind::Boot { node }),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        if !cli.json {
            report::heading(&kind);
        }
        for callers in common.callers {
            let run = load::run(&common.servers, callers, common.seconds, &kind).await?;
            report::print(&run, cli.json)?;
        }
        Ok(())
    })
}
