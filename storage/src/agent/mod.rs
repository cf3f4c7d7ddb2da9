//! An agent's data directory: its ledger, the declared state it goes with, its spool.
//!
//! ```text
//! DIR/lock                        held while in use
//! DIR/ledger.0, DIR/ledger.1      what the machine must remember: the two newest generations (`whole.rs`)
//! DIR/declared.{sequence:020}     what the journal declares, right at that sequence (`whole.rs`)
//! DIR/spool/{number:020}.spool    events that the journal has not got yet (`spool.rs`)
//! ```
//! A save appends its events, puts its declared state beside the old one, then replaces the ledger, which is the commit point:
//! what it does not name did not happen. Only then do older declared states and delivered events go.
//!
//! Damage is never passed on. A damaged ledger falls back on the generation before it, a damaged declared state is set aside to
//! be fetched anew, of a damaged spool what is whole is kept. Each is told in a sentence that names the file and what was done.
//! Two damaged generations of the ledger are refused: nobody knows then which windows are open.
//!
//! Invariants
//! - a generation of the ledger is written beside, synced and renamed, and never over the newest one;
//! - nothing that the newest two generations name is removed, but events that the newest says are delivered.

mod spool;
mod whole;

use crate::disk::{Disk, directory_of, printed, sweep};
use crate::file::{aside, damaged};
use muster_core::agent::effects::Save;
use muster_core::agent::ledger::{Declared, Ledger};
use muster_core::agent::store::{Store, Stored};
use muster_core::codec::CodecError;
use muster_core::codec::{decode_declared, decode_event, decode_ledger, encode_declared, encode_ledger};
use muster_core::ids::Seq;
use muster_core::storage::StorageError;
use spool::Spool;
use std::path::{Path, PathBuf};
use whole::Kind;

/// What to do when no generation of the ledger can be trusted.
const FORGET: &str = "open windows cannot be known any more: look at the node with care, then move the directory aside and \
     start the agent again; it boots from the journal, and whatever else differs is drift";

/// How an agent's directory is kept.
#[derive(Clone, Copy, Debug)]
pub struct AgentOptions {
    /// A file of the spool that has grown past this many bytes is followed by another. Larger means fewer files; smaller, that
    /// what was delivered is removed sooner. Default 1 MiB.
    pub spool_file_bytes: u64,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self { spool_file_bytes: 1 << 20 }
    }
}

/// An agent's directory, open.
pub struct AgentStore<D: Disk> {
    disk: D,
    directory: PathBuf,
    generation: u64,
    /// The declared states on disk, and those that the newest and the second newest generation name.
    declared: Vec<Seq>,
    named: [Option<Seq>; 2],
    spool: Spool<D>,
}

fn ledger_path(directory: &Path, generation: u64) -> PathBuf {
    directory.join(format!("ledger.{}", generation % 2))
}

fn declared_path(directory: &Path, sequence: Seq) -> PathBuf {
    directory.join(format!("declared.{:020}", sequence.0))
}

fn declared_sequence(name: &str) -> Option<Seq> {
    name.strip_prefix("declared.")?.parse().ok().map(Seq)
}

/// What decoded, or the words for why it did not; a format of the future is an error.
fn readable<T>(path: &Path, decoded: Result<T, CodecError>) -> Result<Result<T, String>, StorageError> {
    match decoded {
        Ok(value) => Ok(Ok(value)),
        Err(CodecError::Format { found, known, .. }) => {
            Err(StorageError::Format { file: printed(path), found: found.into(), known: known.into() })
        }
        Err(error @ CodecError::Malformed { .. }) => Ok(Err(error.to_string())),
    }
}

impl<D: Disk> AgentStore<D> {
    /// Opens a directory, made if it is not there. The caller holds its [`Lock`](crate::Lock).
    ///
    /// # Errors
    /// What the disk says; an unknown format; a ledger of which no generation is whole.
    pub async fn open(disk: D, directory: &Path, options: AgentOptions) -> Result<(Self, Stored), StorageError> {
        disk.make_directory(directory).await?;
        disk.sync_directory(directory_of(directory)).await?;
        let spools = directory.join("spool");
        disk.make_directory(&spools).await?;
        sweep(&disk, directory).await?;
        sweep(&disk, &spools).await?;
        disk.sync_directory(directory).await?;

        let mut repairs = Vec::new();
        let ledgers = read_ledgers(&disk, directory, &mut repairs).await?;
        let names = disk.list(directory).await?.unwrap_or_default();
        let mut store = Self {
            spool: Spool::open(disk.clone(), spools, options.spool_file_bytes, &mut repairs).await?,
            disk,
            directory: directory.to_owned(),
            generation: ledgers.first().map_or(0, |(generation, _)| *generation),
            declared: names.iter().filter_map(|name| declared_sequence(name)).collect(),
            named: [0, 1].map(|nth| ledgers.get(nth).and_then(|(_, ledger): &(u64, Ledger)| ledger.declared)),
        };
        let Some((_, ledger)) = ledgers.into_iter().next() else {
            store.spool.count(0, 0).await?;
            return Ok((store, Stored { repairs, ..Stored::default() }));
        };
        let declared = match ledger.declared {
            Some(sequence) => store.read_declared(sequence, &mut repairs).await?,
            None => None,
        };
        let found = store.spool.count(ledger.spool.delivered, ledger.spool.last).await?;
        let expected = ledger.spool.last - ledger.spool.delivered;
        let mut events = Vec::new();
        for bytes in found {
            match readable(&store.directory.join("spool"), decode_event(&bytes))? {
                Ok(event) => events.push(event),
                Err(problem) => {
                    repairs.push(format!("an event of the spool does not decode ({problem}): it was left out"));
                }
            }
        }
        if repairs.is_empty() && events.len() as u64 != expected {
            repairs.push(format!(
                "{} holds {} of the {expected} events that wait for the journal: the others are lost",
                printed(&store.directory.join("spool")),
                events.len()
            ));
        }
        store.tidy().await?;
        Ok((store, Stored { ledger: Some(ledger), declared, events, repairs }))
    }

    async fn read_declared(
        &mut self,
        sequence: Seq,
        repairs: &mut Vec<String>,
    ) -> Result<Option<Declared>, StorageError> {
        let path = declared_path(&self.directory, sequence);
        let problem = match whole::read(&self.disk, Kind::Declared, &path).await? {
            None => {
                repairs.push(format!(
                    "{} is missing: what is declared is fetched from the journal, and until a replica answers nothing is \
                     brought back",
                    printed(&path)
                ));
                return Ok(None);
            }
            Some(Ok((_, bytes))) => match readable(&path, decode_declared(&bytes))? {
                Ok(declared) => return Ok(Some(declared)),
                Err(problem) => problem,
            },
            Some(Err(problem)) => problem,
        };
        self.declared.retain(|there| *there != sequence);
        self.set_aside(&path).await?;
        repairs.push(format!(
            "{} is damaged ({problem}): it was set aside as {}; what is declared is fetched from the journal, and until a \
             replica answers nothing is brought back",
            printed(&path),
            printed(&aside(&path)),
        ));
        Ok(None)
    }

    async fn set_aside(&self, path: &Path) -> Result<(), StorageError> {
        self.disk.rename(path, &aside(path)).await?;
        self.disk.sync_directory(&self.directory).await
    }

    /// Removes declared states that no generation names.
    async fn tidy(&mut self) -> Result<(), StorageError> {
        let named = self.named;
        let (keep, go): (Vec<Seq>, Vec<Seq>) =
            self.declared.iter().partition(|sequence| named.contains(&Some(**sequence)));
        for sequence in go {
            self.disk.remove(&declared_path(&self.directory, sequence)).await?;
        }
        self.declared = keep;
        Ok(())
    }
}

/// The whole generations, newest first.
async fn read_ledgers<D: Disk>(
    disk: &D,
    directory: &Path,
    repairs: &mut Vec<String>,
) -> Result<Vec<(u64, Ledger)>, StorageError> {
    let mut found = Vec::new();
    let mut broken = Vec::new();
    for slot in 0..2 {
        let path = ledger_path(directory, slot);
        match whole::read(disk, Kind::Ledger, &path).await? {
            None => {}
            Some(Ok((generation, bytes))) => match readable(&path, decode_ledger(&bytes))? {
                Ok(ledger) => found.push((generation, ledger)),
                Err(problem) => broken.push((path, problem)),
            },
            Some(Err(problem)) => broken.push((path, problem)),
        }
    }
    found.sort_by_key(|(generation, _)| std::cmp::Reverse(*generation));
    for (path, problem) in broken {
        let Some((generation, _)) = found.first() else { return Err(damaged(&path, 0, problem, FORGET)) };
        disk.rename(&path, &aside(&path)).await?;
        disk.sync_directory(directory).await?;
        repairs.push(format!(
            "{} is damaged ({problem}): it was set aside as {}, and the agent goes on from generation {generation} of its \
             ledger; a window that was opened since is opened anew by what is seen to differ",
            printed(&path),
            printed(&aside(&path)),
        ));
    }
    Ok(found)
}

impl<D: Disk> Store for AgentStore<D> {
    async fn save(&mut self, save: &Save) -> Result<(), StorageError> {
        self.spool.append(&save.events).await?;
        if let Some(declared) = &save.declared {
            let path = declared_path(&self.directory, declared.sequence);
            whole::write(&self.disk, Kind::Declared, &path, 0, &encode_declared(declared)).await?;
            if !self.declared.contains(&declared.sequence) {
                self.declared.push(declared.sequence);
            }
        }
        self.generation += 1;
        let path = ledger_path(&self.directory, self.generation);
        whole::write(&self.disk, Kind::Ledger, &path, self.generation, &encode_ledger(&save.ledger)).await?;
        self.named = [save.ledger.declared, self.named[0]];
        self.spool.delivered(save.ledger.spool.delivered).await?;
        self.tidy().await
    }
}
