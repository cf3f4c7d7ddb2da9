//! What a journal costs on disk as it grows: a replica's state and its archive, on a real disk, without consensus.
//!
//! ```text
//! snapshot    keys are declared, then some of them change, spread over all: what the layer of the changes costs
//! history     few keys change again and again: what applying, snapshots, reads and a restart cost after so many entries
//! ```
//! Records are applied and archived by the same code as in production; what is left out is the log and the network. A journal that was
//! grown so is a replica's data directory as `muster init` would have left it, with a past: [`Grown`] gives clusters of such.

use crate::boots::{entry, noise, set};
use crate::child;
use crate::machine::Machine;
use crate::muster::author;
use crate::report::{Report, mib};
use crate::usage;
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use muster_core::boot;
use muster_core::driver::{BOOTSTRAP, load_state};
use muster_core::ids::{
    ClusterId, GroupId, Incarnation, Index, OneShotId, ReplicaId, ReplicaName, Seq, Term, VClusterId, WallTime,
};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::entry::{Change, EntryType};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::policy::Policy;
use muster_core::limits::FEATURE_LEVEL;
use muster_core::log::{Configuration, HardState, LogEntry, LogEntryKind, LogRecord};
use muster_core::members::{Member, MemberWish};
use muster_core::overlay;
use muster_core::request::{Command, Outcome, RequestId, WriteRequest};
use muster_core::state::{Proposal, State};
use muster_core::storage::{Archive as _, Identity, Library as _, LogStore as _, SnapshotMeta};
use muster_storage::{Opened, RealDisk, WalOptions, init, open, ready};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Keys declared by one entry while a journal is filled.
const KEYS_AN_ENTRY: u64 = 1_000;
/// Entries between two snapshots of the history.
const ENTRIES_A_SNAPSHOT: u64 = 10_000;
/// Boots that are planned to see what one takes.
const BOOTS: u32 = 200_000;
/// Keys of one vCluster, so that it declares no more than a scope may.
const KEYS_A_VCLUSTER: u64 = 10_000;
/// How many keys the entries of a history write in turn.
const HISTORY_KEYS: u64 = 1_000;

/// A replica without consensus.
struct Replica {
    root: PathBuf,
    opened: Opened<RealDisk>,
    state: State,
    index: Index,
    /// The newest snapshot and its view.
    below: (SnapshotMeta, State),
    /// The oldest snapshot that is kept: the log goes on after it.
    oldest: Index,
    value_bytes: usize,
}

/// What a snapshot cost.
struct Saved {
    layers: usize,
    bytes: u64,
    took: Duration,
    cpu: Duration,
}

/// What a restart cost.
struct Taken {
    took: Duration,
    cpu: Duration,
}

fn cpu() -> Duration {
    usage::of(&[std::process::id()]).cpu
}

/// A replica that never hears of another.
const ALONE: (&str, &str, &str) = ("bench", "nowhere:1", "nowhere:2");

impl Replica {
    /// Under this name, to be reached by peers and clients there.
    fn new(root: PathBuf, value_bytes: usize, (name, peer, client): (&str, &str, &str)) -> Result<Self> {
        let identity = Identity {
            cluster: ClusterId(1),
            group: GroupId(1),
            replica: ReplicaId(1),
            incarnation: Incarnation(1),
            name: ReplicaName::new(name)?,
        };
        let member = Member {
            id: identity.replica,
            name: identity.name.clone(),
            incarnation: identity.incarnation,
            peer_address: Arc::from(peer),
            client_address: Arc::from(client),
            wish: MemberWish::Voter,
            feature_level: FEATURE_LEVEL,
        };
        let state = State::new(identity.cluster, member);
        let (index, term) = BOOTSTRAP;
        let meta = state.snapshot_meta(index, term, configuration());
        ready(init(RealDisk, &root, &identity, Some((meta, state.layer())), WalOptions::default()))?;
        Self::open(root, value_bytes)
    }

    fn open(root: PathBuf, value_bytes: usize) -> Result<Self> {
        let opened = ready(open(RealDisk, &root, WalOptions::default()))?;
        let state = ready(load_state(&opened.identity, &opened.recovered, &opened.library))?;
        let meta = opened.recovered.snapshot.clone().context("a replica has a snapshot")?;
        Ok(Self {
            root,
            index: meta.index,
            oldest: meta.index,
            below: (meta, state.clone()),
            opened,
            state,
            value_bytes,
        })
    }

    /// Declares keys of one vCluster in one entry. Gives the bytes of its record.
    fn declare(&mut self, keys: impl Iterator<Item = u64>) -> Result<u64> {
        let mut keys = keys.peekable();
        let vcluster = keys.peek().context("no key is declared")? / KEYS_A_VCLUSTER;
        let vcluster = VClusterId::new(&format!("bench{vcluster}"))?;
        if self.state.journal.vcluster(&vcluster).is_none() {
            let policy = JournalCommand::SetPolicy { vcluster: vcluster.clone(), policy: Policy::default() };
            self.write(Command::Journal(policy))?;
        }
        // Values that do not compress: what a layer takes is what changed.
        let value: Arc<str> = Arc::from(noise(self.index.0, self.value_bytes));
        let changes = keys.map(|key| {
            let key = Key::new(&format!("kernel:bench.{key:09}"))?;
            Ok(Change { key, previous: Setting::Unset, next: Setting::Value(value.clone()) })
        });
        let changes = changes.collect::<Result<_>>()?;
        self.write(entry(EntryType::Commit, Scope::VCluster(vcluster), changes, self.state.sequence()))
    }

    /// Applies a command and archives what it records. Gives the bytes of its records.
    fn write(&mut self, command: Command) -> Result<u64> {
        self.index = Index(self.index.0 + 1);
        let write = WriteRequest {
            request: RequestId::OneShot { id: OneShotId(self.index.0.into()), drawn_at: self.state.age() },
            author: author(),
            command,
        };
        // An hour passes in 36,000 entries, so that what is kept for an hour does not pile up.
        let proposal = Proposal { write, recorded_at: WallTime(self.index.0), elapsed: 100_000 };
        let (outcome, finished) = self.state.apply(self.index, proposal);
        if !matches!(outcome, Outcome::Applied { .. }) {
            bail!("an entry was not applied: {outcome:?}");
        }
        let bytes = finished.iter().map(|finished| finished.bytes.len() as u64).sum();
        ready(self.opened.archive.extend(finished))?;
        if self.state.next_due().is_some_and(|due| due <= self.state.age()) {
            self.expire()?;
        }
        Ok(bytes)
    }

    fn expire(&mut self) -> Result<()> {
        self.index = Index(self.index.0 + 1);
        let principal = muster_core::journal::entry::Principal::System { part: Arc::from("expiry") };
        let author = muster_core::journal::entry::Author { principal, role: muster_core::journal::entry::Role::System };
        let write = WriteRequest { request: RequestId::None, author, command: Command::Expire };
        let (outcome, _) = self.state.apply(self.index, Proposal { write, recorded_at: WallTime(0), elapsed: 0 });
        match outcome {
            Outcome::Applied { .. } => Ok(()),
            other => bail!("nothing expired: {other:?}"),
        }
    }

    /// Makes a vCluster, and a node in it, known.
    fn declare_node(&mut self) -> Result<()> {
        let policy = JournalCommand::SetPolicy { vcluster: "bench0".parse()?, policy: Policy::default() };
        self.write(Command::Journal(policy))?;
        let changes = vec![set("vcluster", "bench0")?, set("files:/bench/own", &noise(1, 600))?];
        let scope = "node:bench".parse()?;
        self.write(entry(EntryType::BootConfig, scope, changes, self.state.sequence()))?;
        Ok(())
    }

    /// The CPU time of planning a boot from an overlay of this moment, mean of many: the system counts it in hundredths of a second.
    fn boot(&self) -> Result<Duration> {
        let built = overlay::build(&self.state, &"bench0".parse()?);
        let built = built.map_err(|refusal| anyhow::anyhow!("the overlay cannot be built: {refusal:?}"))?;
        let (node, before) = ("bench".parse()?, cpu());
        for _ in 0..BOOTS {
            std::hint::black_box(boot::plan_with(&self.state, &node, built.clone())?);
        }
        Ok(cpu().saturating_sub(before) / BOOTS)
    }

    /// Takes a snapshot as the driver does.
    fn save(&mut self) -> Result<Saved> {
        let (began, before) = (Instant::now(), cpu());
        let (below, view) = &self.below;
        let over = below.takes_a_layer();
        let mut pages = if over { self.state.layer_over(view, below.digest) } else { self.state.layer() };
        let layers = if over { below.layers.clone() } else { Vec::new() };
        let meta = self.state.snapshot_meta(self.index, Term(1), configuration());
        let archive = &mut self.opened.archive;
        ready(archive.begin(SnapshotMeta { layers, ..meta }))?;
        while let Some(page) = pages.next_page() {
            ready(archive.write(page))?;
        }
        let (meta, oldest) = ready(archive.finish(pages.digest()))?;
        self.oldest = oldest;
        let bytes = meta.layers.last().map_or(0, |layer| layer.bytes);
        let saved =
            Saved { layers: meta.layers.len(), bytes, took: began.elapsed(), cpu: cpu().saturating_sub(before) };
        self.below = (meta, self.state.clone());
        Ok(saved)
    }

    /// Writes the history's entries from one number up to another, with snapshots between. Gives the CPU time of the last entries'
    /// applying and archiving, how many those are, and the last snapshot.
    fn grow(&mut self, from: u64, upto: u64) -> Result<(Duration, u64, Saved)> {
        let (mut written, mut last) = (from, None);
        while written < upto {
            let some = ENTRIES_A_SNAPSHOT.min(upto - written);
            let before = cpu();
            for number in 0..some {
                self.declare(std::iter::once(spread(written + number, HISTORY_KEYS)))?;
            }
            let applying = cpu().saturating_sub(before);
            written += some;
            last = Some((applying, some, self.save()?));
        }
        last.context("each number of entries must be larger than the one before")
    }

    /// The log gets empty entries up to the newest snapshot, as long as it would be.
    fn write_log(&mut self) -> Result<()> {
        let (index, oldest, term) = (self.below.0.index, self.oldest, Term(1));
        let empty = |index| LogEntry {
            term,
            index: Index(index),
            kind: LogEntryKind::Normal,
            data: Bytes::new(),
            context: Bytes::new(),
        };
        let records = [
            LogRecord::Reset { index: oldest, term },
            LogRecord::Entries((oldest.0 + 1..=index.0).map(empty).collect()),
            LogRecord::HardState(HardState { term, vote: ReplicaId(0), commit: index }),
        ];
        Ok(ready(self.opened.wal.append(&records))?)
    }

    /// Stops, and starts from the newest snapshot.
    fn restart(mut self) -> Result<(Self, Taken)> {
        self.write_log()?;
        let Self { root, value_bytes, oldest, .. } = self;
        let (began, before) = (Instant::now(), cpu());
        let again = Self::open(root, value_bytes)?;
        let taken = Taken { took: began.elapsed(), cpu: cpu().saturating_sub(before) };
        Ok((Self { oldest, ..again }, taken))
    }

    fn disk_bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        for part in ["snapshots", "history"] {
            for file in std::fs::read_dir(self.root.join(part))? {
                bytes += file?.metadata()?.len();
            }
        }
        Ok(bytes)
    }
}

/// A journal that grows, and can be had as the data directory of a cluster's first replica.
pub(crate) struct Grown {
    root: PathBuf,
    value_bytes: usize,
    /// Where that replica will be reached: the journal says so.
    pub(crate) peer_port: u16,
    pub(crate) client_port: u16,
    entries: u64,
}

impl Grown {
    /// The name of the replica whose directory it is.
    pub(crate) const NAME: &str = "muster-1";

    /// Nothing is in it yet.
    pub(crate) fn new(dir: &Path, value_bytes: usize) -> Result<Self> {
        let ports = child::free_ports(2)?;
        let grown =
            Self { root: dir.join("grown"), value_bytes, peer_port: ports[0], client_port: ports[1], entries: 0 };
        let address = |port| format!("127.0.0.1:{port}");
        let at = (Self::NAME, &*address(grown.peer_port), &*address(grown.client_port));
        let mut replica = Replica::new(grown.root.clone(), value_bytes, at)?;
        replica.declare_node()?;
        replica.save()?;
        replica.write_log()?;
        Ok(grown)
    }

    /// Writes on until there are so many entries.
    pub(crate) fn grow(&mut self, upto: u64) -> Result<()> {
        let mut replica = Replica::open(self.root.clone(), self.value_bytes)?;
        replica.grow(self.entries, upto)?;
        replica.write_log()?;
        self.entries = upto;
        Ok(())
    }

    /// Copies it.
    pub(crate) fn copy_to(&self, dir: &Path) -> Result<()> {
        copy(&self.root, dir)
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

fn configuration() -> Configuration {
    Configuration { voters: vec![ReplicaId(1)], ..Configuration::default() }
}

/// Spreads numbers over `keys`, the same way every time.
fn spread(number: u64, keys: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31) % keys
}

/// What snapshots cost with so many keys and so many changes since the last.
pub(crate) fn snapshots(keys: &[u64], changes: u64, value_bytes: usize, dir: &Path, report: &Report) -> Result<()> {
    report.begin("snapshots: everything, then what changed, and a restart from both", &Machine::look(dir))?;
    report.say(
        "      keys  layers  changed MiB  written MiB      ms   CPU ms  CPU ms a changed MiB  restart ms   CPU ms",
    )?;
    for &keys in keys {
        let dir = tempfile::tempdir_in(dir)?;
        let mut replica = Replica::new(dir.path().join("replica"), value_bytes, ALONE)?;
        let mut declared = 0;
        for first in (0..keys).step_by(usize::try_from(KEYS_AN_ENTRY)?) {
            declared += replica.declare(first..keys.min(first + KEYS_AN_ENTRY))?;
        }
        for round in 0..4 {
            let mut changed = declared;
            if round > 0 {
                changed = 0;
                for number in 0..changes {
                    changed += replica.declare(std::iter::once(spread(round * changes + number, keys)))?;
                }
            }
            let saved = replica.save()?;
            let (again, restart) = replica.restart()?;
            replica = again;
            let per_megabyte = saved.cpu.as_secs_f64() * 1e3 / mib(changed);
            report.give(&serde_json::json!({
                "keys": keys, "layers": saved.layers, "changed_bytes": changed, "written_bytes": saved.bytes,
                "seconds": saved.took.as_secs_f64(), "cpu_seconds": saved.cpu.as_secs_f64(),
                "cpu_ms_per_changed_mib": per_megabyte, "restart_seconds": restart.took.as_secs_f64(),
                "restart_cpu_seconds": restart.cpu.as_secs_f64(),
            }))?;
            report.say(&format!(
                "{keys:>10}  {:>6}  {:>11.1}  {:>11.1}  {:>6.0}  {:>7.0}  {per_megabyte:>20.1}  {:>10.0}  {:>7.0}",
                saved.layers,
                mib(changed),
                mib(saved.bytes),
                saved.took.as_secs_f64() * 1e3,
                saved.cpu.as_secs_f64() * 1e3,
                restart.took.as_secs_f64() * 1e3,
                restart.cpu.as_secs_f64() * 1e3,
            ))?;
        }
    }
    Ok(())
}

/// What a journal costs after so many entries.
pub(crate) fn history(entries: &[u64], value_bytes: usize, dir: &Path, report: &Report) -> Result<()> {
    report.begin("history: a thousand keys, written again and again", &Machine::look(dir))?;
    report.say(
        "   entries  apply and archive µs  snapshot CPU ms  snapshot MiB  read old µs  read new µs  boot µs  restart CPU ms  disk MiB  \
         resident MiB",
    )?;
    let dir = tempfile::tempdir_in(dir)?;
    let mut replica = Replica::new(dir.path().join("replica"), value_bytes, ALONE)?;
    replica.declare_node()?;
    let mut written = 0;
    for &upto in entries {
        // Of the last step, so that figures are of a journal of this size.
        let (applying, last, saved) = replica.grow(written, upto)?;
        written = upto;
        let boot = replica.boot()?;
        let read = |after: Seq| -> Result<Duration> {
            let began = Instant::now();
            let records = ready(replica.opened.library.records(after, replica.state.sequence(), 1))?;
            if records.is_empty() {
                bail!("record {} cannot be read", after.next());
            }
            Ok(began.elapsed())
        };
        let (old, new) = (read(Seq(written / 2))?, read(Seq(replica.state.sequence().0 - 1))?);
        let resident = usage::of(&[std::process::id()]).resident_max;
        let (again, restart) = replica.restart()?;
        replica = again;
        let disk = replica.disk_bytes()?;
        let apply = applying.as_secs_f64() * 1e6 / f64::from(u32::try_from(last.max(1))?);
        report.give(&serde_json::json!({
            "entries": upto, "apply_cpu_us": apply, "snapshot_cpu_seconds": saved.cpu.as_secs_f64(),
            "snapshot_bytes": saved.bytes, "snapshot_layers": saved.layers, "read_old_us": old.as_secs_f64() * 1e6,
            "read_new_us": new.as_secs_f64() * 1e6, "boot_plan_us": boot.as_secs_f64() * 1e6,
            "restart_seconds": restart.took.as_secs_f64(), "restart_cpu_seconds": restart.cpu.as_secs_f64(),
            "disk_bytes": disk, "resident_bytes": resident,
        }))?;
        report.say(&format!(
            "{upto:>10}  {apply:>20.1}  {:>15.0}  {:>12.1}  {:>11.0}  {:>11.0}  {:>7.1}  {:>14.0}  {:>8.1}  {:>12.1}",
            saved.cpu.as_secs_f64() * 1e3,
            mib(saved.bytes),
            old.as_secs_f64() * 1e6,
            new.as_secs_f64() * 1e6,
            boot.as_secs_f64() * 1e6,
            restart.cpu.as_secs_f64() * 1e3,
            mib(disk),
            mib(resident),
        ))?;
    }
    Ok(())
}
