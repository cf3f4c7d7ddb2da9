//! `muster-bench`: what Muster costs, and what others cost beside it.
//!
//! ```text
//! commit, read        closed-loop callers against three replicas on loopback, or against running servers
//! boot                boots over HTTP or gRPC from one replica; readers that are slow; a storm; a burst, as it is simulated
//! core                the engine in memory
//! recover             the gap that the leader's death leaves
//! learners            many learners, each serving boots and a subscription
//! overlays            overlays written again and again while others commit
//! snapshot, history   a journal on disk as it grows, without consensus
//! sim                 runs of the simulator: processor time, pace and memory
//! floor               blocking sockets and syncs: what no commit here can be faster than
//! ```
//! A cluster is made for every run and gone with it. With `--against` a peer is started beside it and given the same work, in
//! alternating rounds; medians and ratios are printed. Figures are for the machine they were taken on: nothing here asserts a
//! time.

mod boots;
mod burst;
mod child;
mod engine;
mod etcd;
mod floor;
mod growth;
mod learners;
mod load;
mod machine;
mod muster;
mod overlays;
mod plot;
mod recover;
mod report;
mod simulator;
mod storm;
mod usage;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use engine::Written;
use etcd::Etcd;
use load::{Kind, Side};
use machine::Machine;
use muster::{Cluster, Running};
use muster_core::journal::key::Scope;
use muster_core::request::Freshness;
use report::{Figures, Report};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Places of a replica in a burst, unless told.
const BURST_PLACES: u32 = 16;
/// Bytes of the values that a journal is grown with.
const GROWN_VALUE_BYTES: usize = 64;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Muster, and others beside it.
#[derive(Debug, Parser)]
#[command(name = "muster-bench", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// Print for programs: one JSON object a line
    #[arg(long, global = true)]
    json: bool,
    /// Where the data of what is measured goes; a directory in it is made and removed again
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Whom to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// A three-member cluster of etcd
    Etcd,
    /// nginx with a static file of the same size
    Nginx,
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
        /// How many keys each caller writes in turn; all callers' values together must fit what a scope may declare
        #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
        keys: u32,
        /// For whom: global, vcluster:NAME or node:NAME
        #[arg(long, default_value = "global")]
        scope: Scope,
        /// To a journal that has so many entries already, of a thousand keys; several numbers, ascending, make several clusters
        #[arg(long, value_name = "COUNT", value_delimiter = ',', conflicts_with_all = ["servers", "against"], value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
        entries: Vec<u64>,
    },
    /// Reads of one setting
    Read {
        #[command(flatten)]
        common: Common,
        /// Bytes of the value that is read
        #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        bytes: u32,
        /// Take what the replica has, without asking a quorum
        #[arg(long)]
        local: bool,
        /// Let the leader answer from its lease
        #[arg(long, conflicts_with_all = ["local", "against"])]
        leased: bool,
    },
    /// Boots over HTTP, or gRPC, from a replica that is started
    Boot {
        #[command(flatten)]
        common: Common,
        /// Over gRPC, all callers by one client
        #[arg(long, conflicts_with_all = ["close", "tls", "slow_readers", "storm", "burst", "against"])]
        grpc: bool,
        /// A connection for every boot; kept otherwise
        #[arg(long)]
        close: bool,
        /// Over TLS, with certificates on both ends
        #[arg(long)]
        tls: bool,
        /// So many readers that ask and take nothing; tells what memory they take
        #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        slow_readers: Option<u32>,
        /// `boot.places_max`, in a storm or with slow readers, who then have no deadline; the replica's own default otherwise
        #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        places: Option<u32>,
        /// Every node boots once, from learners, while commits go on; beside nginx if --nginx names it
        #[arg(long)]
        storm: bool,
        /// With a storm: learners that serve
        #[arg(long, value_name = "COUNT", default_value_t = 2, requires = "storm", value_parser = clap::value_parser!(u32).range(1..=32))]
        learners: u32,
        /// With a storm: started with `nice`, whoever serves gives way to others of the machine by so much
        #[arg(long, value_name = "NICE", default_value_t = 0, requires = "storm", value_parser = clap::value_parser!(u8).range(0..=19))]
        nice: u8,
        /// All nodes come within `--within-ms` to so many replicas of `--places` each and do what the client library does; several
        /// numbers make several runs. What the simulator's storm plays too
        #[arg(long, value_name = "REPLICAS", value_delimiter = ',', conflicts_with_all = ["close", "tls", "slow_readers", "storm", "against"], value_parser = clap::value_parser!(u32).range(1..=9))]
        burst: Vec<u32>,
        /// With a burst: within which time all nodes come
        #[arg(long, value_name = "MS", default_value_t = 500, requires = "burst", value_parser = clap::value_parser!(u64).range(1..=600_000))]
        within_ms: u64,
        /// With a burst: how long a boot's bytes are on their way at least
        #[arg(long, value_name = "MS", default_value_t = 100, requires = "burst", value_parser = clap::value_parser!(u64).range(0..=60_000))]
        takes_ms: u64,
        /// With a storm: nodes that boot at the same time
        #[arg(long, value_name = "COUNT", default_value_t = 512, requires = "storm", value_parser = clap::value_parser!(u32).range(1..=100_000))]
        together: u32,
        /// Nodes, each with settings of its own; callers ask for one after another
        #[arg(long, default_value_t = 8_192, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        nodes: u32,
        /// Bytes of the overlay, compressed, about
        #[arg(long, default_value_t = 150 << 10, value_parser = clap::value_parser!(u32).range(1..=16_000_000))]
        overlay: u32,
        /// Bytes of each delta, about
        #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        delta: u32,
        /// Where nginx is, if not on PATH
        #[arg(long, value_name = "FILE")]
        nginx: Option<PathBuf>,
    },
    /// The engine in memory: three replicas in this process, no disk, no network
    Core {
        /// Callers; several numbers make several runs
        #[arg(long, value_delimiter = ',', default_value = "1,64,256,4096", value_parser = clap::value_parser!(u32).range(1..=100_000))]
        callers: Vec<u32>,
        /// How long each run is measured, after a warm-up of a tenth of it
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3_600))]
        seconds: u64,
        /// Real commits of so many bytes, not empty commands
        #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        commits: Option<u32>,
    },
    /// The gap that the leader's death leaves: from `kill -9` to the next acknowledged commit
    Recover {
        #[command(flatten)]
        sides: Sides,
        /// How many leaders die, on each side
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        rounds: u32,
    },
    /// Many learners on this machine: each boots nodes and is followed while commits go on, and tells how far behind it is
    Learners {
        /// The program to measure; the one beside this one if left out
        #[arg(long, value_name = "FILE")]
        muster: Option<PathBuf>,
        /// How many
        #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=64))]
        learners: u32,
        /// Nodes that each of them boots, one after the other
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        nodes: u32,
        /// Commits a second
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        pace: u32,
        /// How long
        #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3_600))]
        seconds: u64,
    },
    /// Eight writers store overlays again and again, each after a commit that makes it stale, while others commit
    Overlays {
        #[command(flatten)]
        sides: Sides,
        /// Bytes of an overlay
        #[arg(long, default_value_t = 150 << 10, value_parser = clap::value_parser!(u32).range(1_000..=3_000_000))]
        bytes: u32,
        /// How many are stored, all writers together
        #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(1..))]
        times: u32,
        /// Commits of others a second
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        pace: u32,
        /// How long the others commit alone before
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
        seconds: u64,
    },
    /// Snapshots: of everything, then three of what changed; and a restart after each
    Snapshot {
        /// Keys that are declared; several numbers make several runs
        #[arg(long, value_delimiter = ',', default_value = "10000,100000", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
        keys: Vec<u64>,
        /// How many of them, spread over all, change between two snapshots
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
        changes: u64,
        /// Bytes of a value
        #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        bytes: u32,
    },
    /// A journal that grows: applying, snapshots, reads of the past, restart, memory
    History {
        /// After how many entries it is looked at, ascending
        #[arg(long, value_delimiter = ',', default_value = "100000,300000,1000000", value_parser = clap::value_parser!(u64).range(2..=100_000_000))]
        entries: Vec<u64>,
        /// Bytes of a value
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        bytes: u32,
    },
    /// Runs of the simulator: processor time, pace and memory
    Sim {
        /// The simulator to measure; the one beside this program if left out
        #[arg(long, value_name = "FILE")]
        simulator: Option<PathBuf>,
        /// How many runs of each story, at the seeds from 1 on
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
        seeds: u64,
        /// Scenario files
        #[arg(value_name = "STORY", default_value = "scenarios/long/five-for-a-minute.toml")]
        stories: Vec<PathBuf>,
    },
    /// The least a three-replica commit can cost here
    Floor {
        /// Bytes of the value
        #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        bytes: u32,
        /// How long it is measured, after a warm-up of a tenth of it
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3_600))]
        seconds: u64,
    },
}

/// Who is measured.
#[derive(Clone, Debug, Args)]
struct Sides {
    /// The program to measure; the one beside this one if left out
    #[arg(long, value_name = "FILE")]
    muster: Option<PathBuf>,
    /// Measure this one too, with the same work, in alternating rounds
    #[arg(long, value_name = "PEER")]
    against: Option<Peer>,
    /// Where etcd is, if not on PATH
    #[arg(long, value_name = "FILE")]
    etcd: Option<PathBuf>,
    /// Connections that callers of etcd share
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    connections: u32,
}

/// Whom to load, and how much.
#[derive(Clone, Debug, Args)]
struct Common {
    #[command(flatten)]
    sides: Sides,
    /// Measure servers that run already: a replica's client address; may be repeated
    #[arg(long = "server", value_name = "HOST:PORT", value_delimiter = ',', conflicts_with = "against")]
    servers: Vec<String>,
    /// Callers, each waiting for its answer; several numbers make several runs
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,1000", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    callers: Vec<u32>,
    /// How long each run is measured, after a warm-up of a tenth of it
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Rounds of each number of callers; medians are told
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Draw operations per second over callers into this SVG file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

fn what(kind: &Kind) -> String {
    match kind {
        Kind::Commit { bytes, keys, scope } => {
            format!("commits of {bytes} bytes to {scope}, {keys} keys a caller, three replicas on loopback")
        }
        Kind::Read { bytes, freshness: Freshness::Leased } => format!("leased reads of {bytes} bytes"),
        Kind::Read { bytes, freshness: Freshness::Linearizable } => format!("linearizable reads of {bytes} bytes"),
        Kind::Read { bytes, .. } => format!("local reads of {bytes} bytes (etcd: serializable)"),
        Kind::Boot { nodes } => format!("boots of {nodes} nodes"),
    }
}

/// One side's medians, a row for every number of callers.
struct Medians(Vec<Figures>);

async fn one<S: Side>(
    side: &S,
    common: &Common,
    callers: u32,
    round: u32,
    kind: &Kind,
    report: &Report,
) -> Result<Figures> {
    let figures = Figures::of(&load::run(side, callers, common.seconds, kind).await?);
    report.row(side.name(), Some(round), &figures)?;
    Ok(figures)
}

/// All rounds of one side alone.
async fn alone<S: Side>(side: &S, common: &Common, kind: &Kind, report: &Report) -> Result<Medians> {
    let mut medians = Vec::new();
    for &callers in &common.callers {
        let mut rounds = Vec::new();
        for round in 1..=common.rounds {
            rounds.push(one(side, common, callers, round, kind, report).await?);
        }
        medians.push(Figures::medians(&rounds));
    }
    Ok(Medians(medians))
}

/// Alternating rounds of two sides.
async fn beside<A: Side, B: Side>(
    ours: &A,
    theirs: &B,
    common: &Common,
    kind: &Kind,
    report: &Report,
) -> Result<(Medians, Medians)> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for &callers in &common.callers {
        let (mut rounds_a, mut rounds_b) = (Vec::new(), Vec::new());
        for round in 1..=common.rounds {
            rounds_a.push(one(ours, common, callers, round, kind, report).await?);
            rounds_b.push(one(theirs, common, callers, round, kind, report).await?);
        }
        a.push(Figures::medians(&rounds_a));
        b.push(Figures::medians(&rounds_b));
    }
    Ok((Medians(a), Medians(b)))
}

/// Medians as a table, and as a picture if one is asked for.
fn conclude(what: &str, common: &Common, sides: Vec<(&'static str, Medians)>, report: &Report) -> Result<()> {
    if common.rounds > 1 {
        report.say("\nmedians")?;
        report.heading()?;
        for (name, Medians(rows)) in &sides {
            for figures in rows {
                report.row(name, None, figures)?;
            }
        }
    }
    if let [(_, Medians(ours)), (name, Medians(theirs))] = &sides[..] {
        report.say("")?;
        for (ours, theirs) in ours.iter().zip(theirs) {
            report.ratio(ours, theirs, name)?;
        }
    }
    if let Some(file) = &common.svg {
        let sides: Vec<_> = sides.into_iter().map(|(name, Medians(rows))| (name.to_owned(), rows)).collect();
        plot::draw(file, what, &sides)?;
    }
    Ok(())
}

async fn measure(common: &Common, kind: &Kind, dir: &std::path::Path, report: &Report) -> Result<()> {
    let what = what(kind);
    report.begin(&what, &Machine::look(dir))?;
    if !common.servers.is_empty() {
        report.heading()?;
        let running = Running(common.servers.clone());
        let medians = alone(&running, common, kind, report).await?;
        return conclude(&what, common, vec![(running.name(), medians)], report);
    }
    let program = muster::program(common.sides.muster.as_deref())?;
    let cluster = Cluster::start(&program, dir, 3).await?;
    match common.sides.against {
        None => {
            report.heading()?;
            let medians = alone(&cluster, common, kind, report).await?;
            conclude(&what, common, vec![(cluster.name(), medians)], report)
        }
        Some(Peer::Nginx) => bail!("nginx only serves files: compare it with `boot`"),
        Some(Peer::Etcd) => {
            let program = child::find(common.sides.etcd.as_deref(), "etcd")?;
            let etcd = Etcd::start(&program, dir, common.sides.connections).await?;
            report.heading()?;
            let (ours, theirs) = beside(&cluster, &etcd, common, kind, report).await?;
            conclude(&what, common, vec![(cluster.name(), ours), (etcd.name(), theirs)], report)
        }
    }
}

/// Commits to journals that have so many entries already.
async fn grown(common: &Common, kind: &Kind, entries: &[u64], dir: &std::path::Path, report: &Report) -> Result<()> {
    let what = what(kind);
    report.begin(&what, &Machine::look(dir))?;
    let program = muster::program(common.sides.muster.as_deref())?;
    let mut journal = growth::Grown::new(dir, GROWN_VALUE_BYTES)?;
    for &entries in entries {
        journal.grow(entries)?;
        let home = tempfile::tempdir_in(dir)?;
        let began = Instant::now();
        let cluster = Cluster::start_grown(&program, home.path(), &journal).await?;
        let resident: Vec<f64> =
            cluster.pids().iter().map(|pid| report::mib(usage::of(&[*pid]).resident_max)).collect();
        let took = began.elapsed().as_secs_f64();
        report.give(&serde_json::json!({ "entries": entries, "joined_seconds": took, "resident_mib": resident }))?;
        let resident = resident.iter().map(|mib| format!("{mib:.0}")).collect::<Vec<_>>().join(", ");
        report.say(&format!(
            "\n{entries} entries: one replica started and two joined in {took:.1} s; resident MiB then {resident}"
        ))?;
        report.heading()?;
        let medians = alone(&cluster, common, kind, report).await?;
        conclude(&what, common, vec![(cluster.name(), medians)], report)?;
    }
    Ok(())
}

/// How boots over HTTP are measured.
struct Boots {
    fleet: boots::Fleet,
    grpc: bool,
    close: bool,
    tls: bool,
    slow_readers: Option<u32>,
    places: Option<u32>,
    nginx: Option<PathBuf>,
}

async fn boots(common: &Common, how: &Boots, dir: &std::path::Path, report: &Report) -> Result<()> {
    let boots::Fleet { overlay_bytes, delta_bytes, .. } = how.fleet;
    let what = format!(
        "boots over {}{}: an overlay of about {overlay_bytes} bytes and a delta of about {delta_bytes}, {}",
        if how.grpc { "gRPC" } else { "HTTP" },
        if how.tls { " and TLS" } else { "" },
        match (how.grpc, how.close) {
            (true, _) => "one client's connection",
            (false, true) => "a connection each",
            (false, false) => "connections kept",
        },
    );
    report.begin(&what, &Machine::look(dir))?;
    let program = muster::program(common.sides.muster.as_deref())?;
    let keys = how.tls.then(|| boots::Keys::make(&program, dir)).transpose()?;
    if let Some(readers) = how.slow_readers {
        let more = how
            .places
            .map(|places| format!("connections_max = 1000000\n[boot]\nplaces_max = {places}\npatience_ms = 3600000\n"));
        let more = more.unwrap_or_default();
        let served = boots::Served::start(&program, dir, how.fleet, (keys.as_ref(), how.close, &more)).await?;
        let slow = served.slow_readers(readers).await?;
        report.give(&serde_json::json!({
            "readers": readers,
            "resident_before_mib": report::mib(slow.before),
            "resident_mib": report::mib(slow.while_there),
            "boot_ms": slow.boot.as_secs_f64() * 1e3,
            "boot_status": slow.code,
        }))?;
        return report.say(&format!(
            "{readers} readers that take nothing: {:.0} MiB resident, {:.0} before; another boot meanwhile took {:.1} ms (status {})",
            report::mib(slow.while_there),
            report::mib(slow.before),
            slow.boot.as_secs_f64() * 1e3,
            slow.code,
        ));
    }
    let served = boots::Served::start(&program, dir, how.fleet, (keys.as_ref(), how.close, "")).await?;
    if how.grpc {
        report.heading()?;
        let medians = alone(served.cluster(), common, &Kind::Boot { nodes: how.fleet.nodes }, report).await?;
        return conclude(&what, common, vec![(served.name(), medians)], report);
    }
    // What a caller does is each side's own: the kind is not looked at.
    let kind = Kind::Read { bytes: 1, freshness: Freshness::Local };
    match common.sides.against {
        None => {
            report.heading()?;
            let medians = alone(&served, common, &kind, report).await?;
            conclude(&what, common, vec![(served.name(), medians)], report)
        }
        Some(Peer::Nginx) => {
            let program = child::find(how.nginx.as_deref(), "nginx")?;
            let nginx = boots::Nginx::start(&program, dir, served.length(), (keys.as_ref(), how.close), 0).await?;
            report.heading()?;
            let (ours, theirs) = beside(&served, &nginx, common, &kind, report).await?;
            conclude(&what, common, vec![(served.name(), ours), (nginx.name(), theirs)], report)
        }
        Some(Peer::Etcd) => bail!("etcd boots nothing: compare with nginx"),
    }
}

fn core(callers: &[u32], seconds: u64, commits: Option<u32>, dir: &std::path::Path, report: &Report) -> Result<()> {
    let (written, what) = match commits {
        None => (Written::Nothing, "the engine in memory, empty commands".to_owned()),
        Some(bytes) => (
            Written::Commits { bytes: usize::try_from(bytes)? },
            format!("the engine in memory, commits of {bytes} bytes"),
        ),
    };
    report.begin(&what, &Machine::look(dir))?;
    report.heading()?;
    for &callers in callers {
        let run = engine::run(written, callers, seconds)?;
        report.row("muster", None, &Figures::of(&run))?;
    }
    Ok(())
}

fn floor(bytes: u32, seconds: u64, dir: &std::path::Path, report: &Report) -> Result<()> {
    report.begin("the floor of a commit: three blocking sockets and syncs, one caller", &Machine::look(dir))?;
    let latency = floor::run(dir, usize::try_from(bytes)?, seconds)?;
    let at = |quantile| latency.value_at_quantile(quantile);
    report.give(&serde_json::json!({ "p50_us": at(0.5), "p99_us": at(0.99), "operations": latency.len() }))?;
    report.say(&format!("p50 {} µs, p99 {} µs, {} operations", at(0.5), at(0.99), latency.len()))
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let report = Report::new(cli.json);
    let mut home = tempfile::Builder::new();
    home.prefix("muster-bench-");
    let home = match &cli.dir {
        Some(dir) => home.tempdir_in(dir)?,
        None => home.tempdir()?,
    };
    let dir = home.path();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match cli.verb {
        Verb::Commit { common, bytes, keys, scope, entries } => {
            let kind = Kind::Commit { bytes, keys, scope };
            if entries.is_empty() {
                return runtime.block_on(measure(&common, &kind, dir, &report));
            }
            runtime.block_on(grown(&common, &kind, &entries, dir, &report))
        }
        Verb::Read { common, bytes, local, leased } => {
            let freshness = match (local, leased) {
                (true, _) => Freshness::Local,
                (false, true) => Freshness::Leased,
                (false, false) => Freshness::Linearizable,
            };
            runtime.block_on(measure(&common, &Kind::Read { bytes, freshness }, dir, &report))
        }
        Verb::Boot {
            common,
            grpc,
            close,
            tls,
            slow_readers,
            places,
            storm,
            learners,
            nice,
            burst,
            within_ms,
            takes_ms,
            together,
            nodes,
            overlay,
            delta,
            nginx,
        } => {
            let fleet = boots::Fleet { nodes, overlay_bytes: overlay, delta_bytes: delta };
            if !burst.is_empty() {
                let program = muster::program(common.sides.muster.as_deref())?;
                let burst = burst::Burst {
                    fleet,
                    replicas: &burst,
                    places: places.unwrap_or(BURST_PLACES),
                    within: Duration::from_millis(within_ms),
                    takes: Duration::from_millis(takes_ms),
                    program: &program,
                };
                return runtime.block_on(burst::run(&burst, dir, &report));
            }
            if storm {
                let program = muster::program(common.sides.muster.as_deref())?;
                let storm = storm::Storm {
                    fleet,
                    seconds: common.seconds,
                    learners: usize::try_from(learners)?,
                    nice,
                    together,
                    places,
                    program: &program,
                    nginx: nginx.as_deref(),
                };
                return runtime.block_on(storm::run(&storm, dir, &report));
            }
            let how = Boots { fleet, grpc, close, tls, slow_readers, places, nginx };
            runtime.block_on(boots(&common, &how, dir, &report))
        }
        Verb::Core { callers, seconds, commits } => core(&callers, seconds, commits, dir, &report),
        Verb::Recover { sides, rounds } => runtime.block_on(recover::run(&sides, rounds, dir, &report)),
        Verb::Learners { muster, learners, nodes, pace, seconds } => {
            let program = muster::program(muster.as_deref())?;
            let fleet = boots::Fleet { nodes, overlay_bytes: 150 << 10, delta_bytes: 600 };
            let asked = learners::Asked { learners, fleet, pace, seconds };
            runtime.block_on(learners::run(&program, asked, dir, &report))
        }
        Verb::Overlays { sides, bytes, times, pace, seconds } => {
            let how = overlays::Rewriting { bytes, times, pace, seconds };
            runtime.block_on(overlays::run(&sides, how, dir, &report))
        }
        Verb::Snapshot { keys, changes, bytes } => {
            growth::snapshots(&keys, changes, usize::try_from(bytes)?, dir, &report)
        }
        Verb::History { entries, bytes } => growth::history(&entries, usize::try_from(bytes)?, dir, &report),
        Verb::Sim { simulator, seeds, stories } => {
            simulator::run(&simulator::program(simulator.as_deref())?, &stories, seeds, dir, &report)
        }
        Verb::Floor { bytes, seconds } => floor(bytes, seconds, dir, &report),
    }
}
