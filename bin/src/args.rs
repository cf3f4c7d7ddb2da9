//! The command line: every verb, what it takes and what it is for.

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use muster_core::ids::{Digest, NodeId, Seq, VClusterId};
use muster_core::journal::entry::{Author, EntryType, OperationKind, Principal, Role};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_net::client::OneShot;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A replicated configuration journal for fleets.
#[derive(Debug, Parser)]
#[command(
    name = "muster",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 error, 2 wrong command line, 3 forbidden by policy or role, 4 conflict,\n\
                  5 no quorum and nothing applied, 6 outcome unknown (prints the request id to ask again with),\n\
                  10 rollback blocked: something uses what would change.\n\n\
                  Begin with `muster dev`: a whole cluster on this machine, nothing to configure."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
    /// Print for programs: JSON, one object (or one object a line where a verb streams)
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a whole cluster on this machine: three voters, one learner, the example fleet, two agents
    Dev(DevArgs),
    /// Run one replica
    Server(ServerArgs),
    /// Run the agent of one node: it applies what is declared and opens commit windows
    Agent(AgentRunArgs),
    /// Make a new cluster of this replica alone
    Init(ConfigArgs),
    /// Join the cluster that the file's bootstrap nodes belong to
    Join(JoinArgs),
    /// Take the place of a lost or damaged replica as a new member
    Replace(ReplaceArgs),
    /// Look at configuration files
    #[command(subcommand)]
    Config(ConfigVerb),

    /// Show every replica: role, term, positions, lag
    Status(ReadArgs),
    /// Declare what files say: commit only what differs
    Apply(ApplyArgs),
    /// Change a node at once; a window begins in which to stand by it
    Set(SetArgs),
    /// Show how a node differs from what is declared, by whom, and why its window is as long as it is
    Drift(DriftArgs),
    /// Show how long a node's window runs, or every open one
    Window(WindowArgs),
    /// Stand by a node's changes: declare them; or, with --scope, commit settings for a scope
    Commit(CommitArgs),
    /// Take a node's changes back; or, with --scope, take a scope back to what it declared at a sequence
    Rollback(RollbackArgs),
    /// Move the end of a node's window later
    Extend(ExtendArgs),
    /// Make one change on many nodes: a few first, more when they stay healthy, all back when they do not
    Rollout(RolloutArgs),
    /// Watch the windows of the fleet count down
    Watch(WatchArgs),
    /// Run a command on a node, recorded before it begins
    Exec(ExecArgs),
    /// Open a shell on a node, recorded before it begins
    Shell(ShellArgs),
    /// Show the journal, or follow it
    Log(LogArgs),
    /// Show one record in full
    Show(ShowArgs),
    /// Show what is declared for a scope, or what counts on a node
    State(StateArgs),
    /// Show what differs between two sequences of a scope, or between two scopes
    Diff(DiffArgs),
    /// Show or set a vCluster's policy
    #[command(subcommand)]
    Policy(PolicyVerb),
    /// Begin or end an emergency on a node
    #[command(subcommand)]
    Emergency(EmergencyVerb),
    /// Record an operation in the audit log
    #[command(subcommand)]
    Op(OpVerb),
    /// Show the audit log
    Audit(AuditArgs),
    /// Fetch a node's boot and show what it gets
    Boot(BootArgs),
    /// List the known nodes
    Nodes(NodesArgs),
    /// List the known vClusters and their overlays
    Vclusters(ReadArgs),
    /// List and change the replicas of the cluster
    #[command(subcommand)]
    Members(MembersVerb),
    /// Have a replica take a snapshot
    Snapshot(SnapshotArgs),
    /// Check the journal's hash chain: reads every record there is
    Verify(VerifyArgs),

    /// Make and renew certificates: a small CA in a directory
    #[command(subcommand)]
    Certs(CertsVerb),
    /// Show what a data directory holds, without a running server
    Inspect(DirArgs),
    /// Rebuild what a data directory's other files prove
    Repair(DirArgs),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Whom to ask.
#[derive(Clone, Debug, Args)]
pub(crate) struct ClientArgs {
    /// A replica's client address; may be repeated. 127.0.0.1:9443 if neither this nor a context says it
    #[arg(
        long = "server",
        value_name = "HOST:PORT",
        env = "MUSTER_SERVERS",
        value_delimiter = ',',
        value_parser = |text: &str| crate::config::check_address(text, 9443),
        value_hint = ValueHint::Hostname
    )]
    pub(crate) servers: Vec<String>,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    /// How long to try, in seconds. A write that finds no quorum ends by then: with 5 if it reached no log, else with 6
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

/// As who to speak, over TLS.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct KeyArgs {
    /// A file that names servers and certificates, as `muster dev` makes one
    #[arg(long, value_name = "FILE", env = "MUSTER_CONTEXT", value_hint = ValueHint::FilePath)]
    pub(crate) context: Option<PathBuf>,
    /// The CA that signed the servers' certificates (PEM)
    #[arg(long, value_name = "FILE", env = "MUSTER_TLS_CA", value_hint = ValueHint::FilePath)]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Your certificate (PEM); it says who you are and what you may do
    #[arg(long, value_name = "FILE", env = "MUSTER_TLS_CERT", value_hint = ValueHint::FilePath)]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Your certificate's key (PEM)
    #[arg(long, value_name = "FILE", env = "MUSTER_TLS_KEY", value_hint = ValueHint::FilePath)]
    pub(crate) tls_key: Option<PathBuf>,
}

/// How a read is made.
#[derive(Clone, Debug, Args)]
pub(crate) struct ReadArgs {
    #[command(flatten)]
    pub(crate) client: ClientArgs,
    /// Take what the replica has, without asking a quorum
    #[arg(long)]
    pub(crate) local: bool,
    /// Let the leader answer from its lease, where its servers state how much clocks drift
    #[arg(long, conflicts_with = "local")]
    pub(crate) leased: bool,
}

/// In whose name, and under which request id.
#[derive(Clone, Debug, Args)]
pub(crate) struct WriteArgs {
    #[command(flatten)]
    pub(crate) client: ClientArgs,
    #[command(flatten)]
    pub(crate) author: AuthorArgs,
    /// Ask again for an outcome that was unknown: ID@AGE as it was printed; applied at most once
    #[arg(long, value_name = "ID@AGE", value_parser = crate::exit::parse_request)]
    pub(crate) request_id: Option<OneShot>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct AuthorArgs {
    /// In whose name, where there is no TLS; recorded as claimed:NAME. Over TLS the certificate says it
    #[arg(long = "author", value_name = "NAME", env = "MUSTER_AUTHOR")]
    pub(crate) name: Option<String>,
    /// In which capacity, where there is no TLS: admin, operator:VCLUSTER, viewer:VCLUSTER or agent:NODE
    #[arg(long, value_name = "ROLE", env = "MUSTER_ROLE", default_value = "admin", value_parser = role)]
    pub(crate) role: Role,
}

impl AuthorArgs {
    /// The author of what this process writes.
    pub(crate) fn author(&self) -> Result<Author, crate::exit::Failure> {
        let user = || std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).ok();
        let name = self.name.clone().or_else(user).or_else(account).ok_or_else(|| {
            crate::exit::Failure::usage("it is not known in whose name this is done", "give --author NAME")
        })?;
        Ok(Author { principal: Principal::Claimed { name: Arc::from(name) }, role: self.role.clone() })
    }
}

/// The name of the account this process runs under, for environments that do not tell it (containers, cron).
fn account() -> Option<String> {
    let id = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").ok()?).to_string();
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut names = accounts.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == id).then(|| name.to_owned())
    });
    names.next().or(Some(format!("uid-{id}")))
}

pub(crate) fn role(text: &str) -> Result<Role, String> {
    let wrong = |error: String| format!("{error}: expected admin, operator:VCLUSTER, viewer:VCLUSTER or agent:NODE");
    let vcluster = |name: &str| VClusterId::new(name).map_err(|error| wrong(error.to_string()));
    match text.split_once(':') {
        None if text == "admin" => Ok(Role::Admin),
        Some(("operator", name)) => Ok(Role::Operator(vcluster(name)?)),
        Some(("viewer", name)) => Ok(Role::Viewer(vcluster(name)?)),
        Some(("agent", name)) => Ok(Role::Agent(NodeId::new(name).map_err(|error| wrong(error.to_string()))?)),
        _ => Err(wrong(format!("{text:?} is not a role"))),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a number of seconds from 0.1 to 3600");
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    if (0.1..=3_600.0).contains(&seconds) { Ok(Duration::from_secs_f64(seconds)) } else { Err(wrong()) }
}

pub(crate) fn sequence(text: &str) -> Result<Seq, String> {
    text.parse().map(Seq).map_err(|_| format!("{text:?} is not a sequence: expected a whole number"))
}

pub(crate) fn assignment(text: &str) -> Result<(Key, Setting), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| format!("{text:?} has no '=': expected KEY=VALUE or --absent KEY"))?;
    let key = Key::new(key).map_err(|error| error.to_string())?;
    Ok((key, Setting::Value(Arc::from(value))))
}

fn field(text: &str) -> Result<(String, String), String> {
    let (field, value) = text.split_once('=').ok_or_else(|| format!("{text:?} has no '=': expected FIELD=VALUE"))?;
    Ok((field.to_owned(), value.to_owned()))
}

fn head(text: &str) -> Result<(Seq, Digest), String> {
    let (at, digest) = text.split_once(':').ok_or_else(|| format!("{text:?} is not a head: expected SEQ:DIGEST"))?;
    Ok((sequence(at)?, digest.parse().map_err(|error: muster_core::ids::InvalidName| error.to_string())?))
}

fn known(text: &str) -> Result<(VClusterId, Seq), String> {
    let (name, version) =
        text.split_once('@').ok_or_else(|| format!("{text:?} is not a known overlay: expected VCLUSTER@VERSION"))?;
    Ok((VClusterId::new(name).map_err(|error| error.to_string())?, sequence(version)?))
}

fn entry_type(text: &str) -> Result<EntryType, String> {
    let words = || EntryType::ALL.map(EntryType::word).join(", ");
    EntryType::ALL
        .into_iter()
        .find(|kind| kind.word() == text)
        .ok_or_else(|| format!("{text:?} is not a type: expected one of {}", words()))
}

#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// Where the replicas keep their data; a temporary directory, removed at the end, if not given
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: Option<PathBuf>,
    /// Tell the whole story once, checking each step, and exit
    #[arg(long)]
    pub(crate) once: bool,
    /// How many agents, each with a directory that stands for its node's machine
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=i64::from(crate::dev::agents::AGENTS_MAX)))]
    pub(crate) agents: u8,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The replica's TOML file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: PathBuf,
    /// Listen beyond loopback without TLS
    #[arg(long)]
    pub(crate) insecure: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Stop when standard input closes, for a parent that must not leave servers behind
    #[arg(long)]
    pub(crate) until_stdin_closes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    #[command(flatten)]
    pub(crate) author: AuthorArgs,
    /// Become a voter once caught up; otherwise it stays a learner
    #[arg(long)]
    pub(crate) promote: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReplaceArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    #[command(flatten)]
    pub(crate) author: AuthorArgs,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    /// The lost replica's id or name
    #[arg(long, value_name = "ID")]
    pub(crate) old: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Print a replica's file with every key and what it is for
    Example,
    /// Say everything that is wrong with a file, or what it comes to
    Check {
        /// The replica's TOML file
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Judge it as `muster server --insecure` would
        #[arg(long)]
        insecure: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// TOML files, or directories of them, that make one fleet together
    #[arg(required = true, value_name = "FILE", value_hint = ValueHint::AnyPath)]
    pub(crate) files: Vec<PathBuf>,
    /// Why, in your words
    #[arg(short, long, default_value = "")]
    pub(crate) message: String,
    /// Show what would change, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
    #[command(flatten)]
    pub(crate) author: AuthorArgs,
}

/// Which agent, and whom to ask where it is.
#[derive(Clone, Debug, Args)]
pub(crate) struct AgentArgs {
    /// Where the node's agent is: HOST:PORT, or the path of its socket. Else the journal is asked
    #[arg(long, value_name = "PLACE", env = "MUSTER_AGENT")]
    pub(crate) agent: Option<String>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
    #[command(flatten)]
    pub(crate) author: AuthorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct AgentRunArgs {
    /// The agent's TOML file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// Print a file with every key and what it is for
    #[arg(long, conflicts_with = "config")]
    pub(crate) example_config: bool,
    /// Listen beyond loopback without TLS
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Stop when standard input closes, for a parent that must not leave agents behind
    #[arg(long)]
    pub(crate) until_stdin_closes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// What is to be so: DIMENSION:NAME=VALUE; the value @./FILE, @/FILE or @- stands for what is in it
    #[arg(value_name = "KEY=VALUE", value_parser = assignment)]
    pub(crate) settings: Vec<(Key, Setting)>,
    /// What must not be there; may be repeated
    #[arg(long, value_name = "KEY")]
    pub(crate) absent: Vec<Key>,
    /// On which node
    #[arg(long)]
    pub(crate) node: NodeId,
    /// Why, in your words
    #[arg(short, long, default_value = "")]
    pub(crate) message: String,
    /// Begin even if the window is short
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Take over keys that belong to somebody else's open change
    #[arg(long)]
    pub(crate) merge: bool,
    /// Tell the window, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DriftArgs {
    /// Of which node
    pub(crate) node: NodeId,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

#[derive(Debug, Args)]
pub(crate) struct WindowArgs {
    /// Of which node; every open window if left out
    pub(crate) node: Option<NodeId>,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ExtendArgs {
    /// On which node
    pub(crate) node: NodeId,
    /// By how many seconds
    #[arg(value_parser = clap::value_parser!(u32).range(1..=864_000))]
    pub(crate) seconds: u32,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// On which node
    pub(crate) node: NodeId,
    /// The command and its arguments; the policy's list of allowed ones says which
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    pub(crate) stdin: bool,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ShellArgs {
    /// On which node
    pub(crate) node: NodeId,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Only nodes of this vCluster
    #[arg(long, value_name = "NAME")]
    pub(crate) vcluster: Option<VClusterId>,
    /// Show it once and end
    #[arg(long)]
    pub(crate) once: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RolloutArgs {
    /// What is to be so: DIMENSION:NAME=VALUE; the value @./FILE, @/FILE or @- stands for what is in it
    #[arg(value_name = "KEY=VALUE", value_parser = assignment)]
    pub(crate) settings: Vec<(Key, Setting)>,
    /// What must not be there; may be repeated
    #[arg(long, value_name = "KEY")]
    pub(crate) absent: Vec<Key>,
    /// On these nodes, in this order
    #[arg(
        long = "node",
        value_name = "NODE",
        required_unless_present = "vcluster",
        conflicts_with = "vcluster",
        value_delimiter = ','
    )]
    pub(crate) nodes: Vec<NodeId>,
    /// On every node of this vCluster
    #[arg(long, value_name = "NAME")]
    pub(crate) vcluster: Option<VClusterId>,
    /// Why, in your words
    #[arg(short, long)]
    pub(crate) message: String,
    /// How many nodes first
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub(crate) first: usize,
    /// By how much the nodes reached are multiplied with every wave
    #[arg(long, value_name = "FACTOR", default_value_t = 3)]
    pub(crate) widen: usize,
    /// How long every node of a wave must be healthy, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) healthy: u64,
    /// How many nodes may fail without an abort
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub(crate) failures: usize,
    /// How long an agent may be out of reach before its node counts as failed, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) silent: u64,
    /// A command run here for every look at a node, whose name it finds in `MUSTER_NODE`: the node is healthy if it ends with 0
    #[arg(long, value_name = "CMD")]
    pub(crate) check: Option<String>,
    /// Take over keys that belong to somebody else's open change
    #[arg(long)]
    pub(crate) merge: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
    #[command(flatten)]
    pub(crate) author: AuthorArgs,
}

#[derive(Debug, Args)]
#[command(override_usage = "muster commit NODE -m MESSAGE [--all | --key KEY]...\n       \
                      muster commit --scope SCOPE KEY=VALUE... -m MESSAGE")]
pub(crate) struct CommitArgs {
    /// The node whose changes you stand by; with --scope, what is so: DIMENSION:NAME=VALUE
    #[arg(value_name = "NODE | KEY=VALUE")]
    pub(crate) what: Vec<String>,
    /// Of a node's changes: everybody's, not only your own
    #[arg(long, conflicts_with = "scope")]
    pub(crate) all: bool,
    /// Of a node's changes: only this key; may be repeated
    #[arg(long = "key", value_name = "KEY", conflicts_with_all = ["scope", "all"])]
    pub(crate) keys: Vec<Key>,
    /// Where the node's agent is: HOST:PORT, or the path of its socket. Else the journal is asked
    #[arg(long, value_name = "PLACE", env = "MUSTER_AGENT")]
    pub(crate) agent: Option<String>,
    /// Declare for a scope, without touching any node by hand: global, vcluster:NAME or node:NAME
    #[arg(long)]
    pub(crate) scope: Option<Scope>,
    /// What must not be there; may be repeated
    #[arg(long, value_name = "KEY", requires = "scope")]
    pub(crate) absent: Vec<Key>,
    /// About what this scope says nothing any more, so that the wider one counts; may be repeated
    #[arg(long, value_name = "KEY", requires = "scope")]
    pub(crate) unset: Vec<Key>,
    /// Why, in your words
    #[arg(short, long)]
    pub(crate) message: String,
    /// The sequence you last saw of this scope; who changed the same keys since is a conflict
    #[arg(long, value_name = "SEQ", value_parser = sequence, requires = "scope")]
    pub(crate) parent: Option<Seq>,
    /// Expire after this many seconds (900 to 864000)
    #[arg(long, value_name = "SECONDS")]
    pub(crate) ttl: Option<u32>,
    /// Declare it before boot instead of standing by a change; needed to put a node into a vCluster (vcluster=NAME)
    #[arg(long, requires = "scope")]
    pub(crate) boot_config: bool,
    #[command(flatten)]
    pub(crate) write: WriteArgs,
}

#[derive(Debug, Args)]
#[command(override_usage = "muster rollback NODE [--all | --key KEY]...\n       \
                      muster rollback --scope SCOPE --to SEQ -m MESSAGE")]
pub(crate) struct RollbackArgs {
    /// The node whose changes are taken back
    #[arg(value_name = "NODE", required_unless_present = "scope", conflicts_with = "scope")]
    pub(crate) node: Option<NodeId>,
    /// Of a node's changes: everybody's, not only your own
    #[arg(long, conflicts_with = "scope")]
    pub(crate) all: bool,
    /// Of a node's changes: only this key; may be repeated
    #[arg(long = "key", value_name = "KEY", conflicts_with_all = ["scope", "all"])]
    pub(crate) keys: Vec<Key>,
    /// Where the node's agent is: HOST:PORT, or the path of its socket. Else the journal is asked
    #[arg(long, value_name = "PLACE", env = "MUSTER_AGENT")]
    pub(crate) agent: Option<String>,
    /// What is declared is taken back for: global, vcluster:NAME or node:NAME
    #[arg(long, requires = "to", requires = "message")]
    pub(crate) scope: Option<Scope>,
    /// The sequence to return to; everything this scope said later is taken off
    #[arg(long, value_name = "SEQ", value_parser = sequence, requires = "scope")]
    pub(crate) to: Option<Seq>,
    /// Why, in your words
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub(crate) message: String,
    /// The scope's last sequence when you looked; who changed the keys since is a conflict
    #[arg(long, value_name = "SEQ", value_parser = sequence, requires = "scope")]
    pub(crate) based_on: Option<Seq>,
    #[command(flatten)]
    pub(crate) write: WriteArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LogFilterArgs {
    /// Only of this scope; may be repeated
    #[arg(long)]
    pub(crate) scope: Vec<Scope>,
    /// Only by this name
    #[arg(long, value_name = "NAME")]
    pub(crate) by: Option<String>,
    /// Only after this sequence
    #[arg(long, value_name = "SEQ", value_parser = sequence)]
    pub(crate) after: Option<Seq>,
    /// Only up to this sequence
    #[arg(long, value_name = "SEQ", value_parser = sequence)]
    pub(crate) upto: Option<Seq>,
    /// At most this many: the newest, or the first ones after --after
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 50)]
    pub(crate) limit: u64,
}

#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    #[command(flatten)]
    pub(crate) filter: LogFilterArgs,
    /// Only entries of this type; may be repeated
    #[arg(long = "type", value_name = "TYPE", value_parser = entry_type)]
    pub(crate) types: Vec<EntryType>,
    /// Go on with what comes next, until interrupted
    #[arg(short, long, conflicts_with = "upto")]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    pub(crate) filter: LogFilterArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Which
    #[arg(value_name = "SEQ", value_parser = sequence)]
    pub(crate) sequence: Seq,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct StateArgs {
    /// Of whom: global, vcluster:NAME or node:NAME
    pub(crate) scope: Scope,
    /// As it was right after this sequence; takes as long as there are records since the nearest older snapshot
    #[arg(long, value_name = "SEQ", value_parser = sequence)]
    pub(crate) at: Option<Seq>,
    /// For a node: only what it says itself, without its vCluster and global
    #[arg(long)]
    pub(crate) own: bool,
    #[command(flatten)]
    pub(crate) read: ReadArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// Of whom: global, vcluster:NAME or node:NAME
    pub(crate) scope: Scope,
    /// Compare with this other scope
    #[arg(conflicts_with = "from", required_unless_present = "from")]
    pub(crate) other: Option<Scope>,
    /// Compare what the scope said right after this sequence
    #[arg(long, value_name = "SEQ", value_parser = sequence)]
    pub(crate) from: Option<Seq>,
    /// with what it said right after this one; the journal's head if left out
    #[arg(long, value_name = "SEQ", value_parser = sequence, requires = "from")]
    pub(crate) to: Option<Seq>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyVerb {
    /// Show a vCluster's policy
    Get {
        /// Which
        vcluster: VClusterId,
        #[command(flatten)]
        read: ReadArgs,
    },
    /// Set fields of a vCluster's policy; makes the vCluster known
    Set {
        /// Which
        vcluster: VClusterId,
        /// What to set; `muster policy get` shows the fields there are. Nothing gives a new vCluster the defaults
        #[arg(value_name = "FIELD=VALUE", value_parser = field)]
        fields: Vec<(String, String)>,
        #[command(flatten)]
        write: WriteArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum EmergencyVerb {
    /// Begin an emergency: automatic rollback is suspended on the node
    Start {
        /// On which node
        node: NodeId,
        /// Why
        #[arg(short, long)]
        reason: String,
        /// Where the node's agent is: HOST:PORT, or the path of its socket. Else the journal is asked
        #[arg(long, value_name = "PLACE", env = "MUSTER_AGENT")]
        agent: Option<String>,
        /// Record it in the journal and tell no agent: for a node that has none
        #[arg(long, conflicts_with = "agent")]
        journal_only: bool,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// End an emergency
    End {
        /// On which node
        node: NodeId,
        /// How it ended
        #[arg(short, long, default_value = "")]
        message: String,
        /// End it even though something differs: a window begins
        #[arg(long)]
        force: bool,
        /// Where the node's agent is: HOST:PORT, or the path of its socket. Else the journal is asked
        #[arg(long, value_name = "PLACE", env = "MUSTER_AGENT")]
        agent: Option<String>,
        /// Record it in the journal and tell no agent: for a node that has none
        #[arg(long, conflicts_with = "agent")]
        journal_only: bool,
        #[command(flatten)]
        write: WriteArgs,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum OpKind {
    /// A command was run
    Exec,
    /// A shell session began
    ShellStart,
    /// A shell session ended
    ShellEnd,
}

impl From<OpKind> for OperationKind {
    fn from(kind: OpKind) -> Self {
        match kind {
            OpKind::Exec => Self::Exec,
            OpKind::ShellStart => Self::ShellStart,
            OpKind::ShellEnd => Self::ShellEnd,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum OpVerb {
    /// Record an operation that was done on a node
    Record {
        /// What kind
        kind: OpKind,
        /// On which node
        #[arg(long)]
        node: NodeId,
        /// The command line, or what the session was about
        detail: String,
        /// How it exited
        #[arg(long, value_name = "STATUS", allow_hyphen_values = true)]
        exit_status: Option<i32>,
        #[command(flatten)]
        write: WriteArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct BootArgs {
    /// Which node
    pub(crate) node: NodeId,
    /// The overlay it holds already, so that it need not be sent
    #[arg(long, value_name = "VCLUSTER@VERSION", value_parser = known)]
    pub(crate) known: Option<(VClusterId, Seq)>,
    /// Wait until the replica has at least this sequence
    #[arg(long, value_name = "SEQ", default_value = "0", value_parser = sequence)]
    pub(crate) at_least: Seq,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct NodesArgs {
    /// Only of this vCluster
    #[arg(long, value_name = "NAME")]
    pub(crate) vcluster: Option<VClusterId>,
    #[command(flatten)]
    pub(crate) read: ReadArgs,
}

#[derive(Debug, Args)]
pub(crate) struct MemberArgs {
    /// Its id or name
    #[arg(value_name = "ID")]
    pub(crate) member: String,
    #[command(flatten)]
    pub(crate) write: WriteArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MembersVerb {
    /// List the replicas
    List(ReadArgs),
    /// Add an admitted replica as a learner (`muster join` and the leader do so by themselves)
    Add(MemberArgs),
    /// Make a learner a voter
    Promote(MemberArgs),
    /// Make a voter a learner
    Demote(MemberArgs),
    /// Take a replica out, for good: its id is never used again
    Remove(MemberArgs),
    /// Hand leadership to another voter
    Transfer {
        /// To whom, id or name; the one that is furthest if left out
        #[arg(value_name = "ID")]
        to: Option<String>,
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    /// Which replica; the leader if left out
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) on: Option<String>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// A head that was kept elsewhere: the chain must pass through it
    #[arg(long, value_name = "SEQ:DIGEST", value_parser = head)]
    pub(crate) head: Option<(Seq, Digest)>,
    /// Which replica; any if left out
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) on: Option<String>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CertsVerb {
    /// Make a CA in a directory: ca.pem, which everybody needs, and ca.key, which signs
    Init {
        /// Where
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: PathBuf,
        /// What its certificates' cluster is called; those of another name are refused
        #[arg(long, value_name = "NAME", default_value = "muster")]
        cluster: String,
        /// How long it counts; 3650 if not given
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=36_500))]
        days: Option<u64>,
    },
    /// Make a key and a certificate: ROLE-NAME.pem and ROLE-NAME.key beside the CA
    Issue {
        /// Whose: a person's name, a node's or a replica's
        #[arg(value_name = "NAME")]
        name: String,
        /// What it may do: admin, operator:VCLUSTER, viewer:VCLUSTER, agent (of the node NAME) or replica
        #[arg(long, value_name = "ROLE")]
        role: String,
        /// The CA's directory
        #[arg(long, value_name = "DIR", default_value = ".", value_hint = ValueHint::DirPath)]
        dir: PathBuf,
        /// A host name or address under which a replica or agent is reached, for curl; may be repeated
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<String>,
        /// How long it counts; 365 for replicas and agents, 90 for persons if not given
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=36_500))]
        days: Option<u64>,
        /// Another place: PATH.pem and PATH.key
        #[arg(long, value_name = "PATH")]
        out: Option<PathBuf>,
    },
    /// Make certificates anew for the same holders and keys, in place. ca.pem itself too
    Renew {
        /// Which
        #[arg(required = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
        files: Vec<PathBuf>,
        /// The CA's directory; that of the file if not given
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
        /// How long they count from now on
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=36_500))]
        days: Option<u64>,
    },
    /// Show what certificates say: whose they are and until when
    Show {
        /// Which
        #[arg(required = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
        files: Vec<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DirArgs {
    /// A replica's data directory
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_role_names_what_it_is_for() {
        assert_eq!(role("admin").unwrap(), Role::Admin);
        assert_eq!(role("operator:training").unwrap(), Role::Operator(VClusterId::new("training").unwrap()));
        assert!(role("root").unwrap_err().contains("expected admin"));
    }

    #[test]
    fn a_value_may_hold_more_equals_signs() {
        assert_eq!(assignment("mounts:/a=opts=rw").unwrap().1, Setting::Value("opts=rw".into()));
        assert!(assignment("kernel:a").unwrap_err().contains("--absent"));
    }
}
