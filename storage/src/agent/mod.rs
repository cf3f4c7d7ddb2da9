//! An agent's data directory: its ledger, its cached boot, its spool.
//!
//! ```text
//! DIR/lock                        held while in use
//! DIR/ledger.0, DIR/ledger.1      what the machine must remember: the two newest generations (`whole.rs`)
//! DIR/boot                        the last boot that was applied (`whole.rs`)
//! DIR/spool/{first:020}.spool     events that the journal has not got yet (`spool.rs`)
//! ```
//! Bytes and nothing else: what they mean is core's business. What comes back from a call is durable.
//!
//! Damage is never passed on. A damaged ledger falls back on the generation before it; a damaged boot is set aside, to be
//! fetched anew; of a damaged spool what is whole is kept. Each is told in a sentence ([`Opened::repairs`]) that names the file
//! and what was done. Two damaged generations of the ledger are refused: nobody knows then which windows are open.

mod spool;
mod whole;

use crate::disk::{Disk, directory_of, printed, sweep};
use crate::file::{aside, damaged};
use bytes::Bytes;
use muster_core::agent::store::{Store, Stored};
use muster_core::ids::{Age, OneShotId};
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
    /// what was forwarded is removed sooner. Default 1 MiB.
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
    spool: Spool<D>,
}

/// What [`AgentStore::open`] gives.
pub struct Opened<D: Disk> {
    /// To write.
    pub store: AgentStore<D>,
    /// What was there.
    pub stored: Stored,
    /// What was damaged and what was done about it, a sentence each.
    pub repairs: Vec<String>,
}

fn ledger_path(directory: &Path, generation: u64) -> PathBuf {
    directory.join(format!("ledger.{}", generation % 2))
}

impl<D: Disk> AgentStore<D> {
    /// Opens a directory, made if it is not there. The caller holds its [`Lock`](crate::Lock).
    ///
    /// # Errors
    /// What the disk says; an unknown format; a ledger of which no generation is whole.
    pub async fn open(disk: D, directory: &Path, options: AgentOptions) -> Result<Opened<D>, StorageError> {
        disk.make_directory(directory).await?;
        disk.sync_directory(directory_of(directory)).await?;
        let spools = directory.join("spool");
        disk.make_directory(&spools).await?;
        sweep(&disk, directory).await?;
        sweep(&disk, &spools).await?;
        disk.sync_directory(directory).await?;

        let mut repairs = Vec::new();
        let (generation, ledger) = read_ledger(&disk, directory, &mut repairs).await?;
        let boot = read_boot(&disk, directory, &mut repairs).await?;
        let (spool, spooled) = Spool::open(disk.clone(), spools, options.spool_file_bytes, &mut repairs).await?;
        let stored = Stored { ledger, boot, spooled };
        Ok(Opened { store: Self { disk, directory: directory.to_owned(), generation, spool }, stored, repairs })
    }
}

/// The newest whole generation.
async fn read_ledger<D: Disk>(
    disk: &D,
    directory: &Path,
    repairs: &mut Vec<String>,
) -> Result<(u64, Option<Bytes>), StorageError> {
    let mut newest: Option<(u64, Bytes)> = None;
    let mut broken = Vec::new();
    for slot in 0..2 {
        let path = ledger_path(directory, slot);
        match whole::read(disk, Kind::Ledger, &path).await? {
            None => {}
            Some(Ok((generation, bytes))) => {
                if newest.as_ref().is_none_or(|(newest, _)| *newest < generation) {
                    newest = Some((generation, bytes));
                }
            }
            Some(Err(problem)) => broken.push((path, problem)),
        }
    }
    match (&newest, broken.first()) {
        (None, Some((path, problem))) => return Err(damaged(path, 0, problem.clone(), FORGET)),
        (Some((generation, _)), Some(_)) => {
            for (path, problem) in broken {
                disk.rename(&path, &aside(&path)).await?;
                disk.sync_directory(directory).await?;
                repairs.push(format!(
                    "{} is damaged ({problem}): it was set aside as {}, and the agent goes on from generation {generation} of \
                     its ledger; a window that was opened since is opened anew by what is seen to differ",
                    printed(&path),
                    printed(&aside(&path)),
                ));
            }
        }
        (_, None) => {}
    }
    Ok(newest.map_or((0, None), |(generation, bytes)| (generation, Some(bytes))))
}

async fn read_boot<D: Disk>(
    disk: &D,
    directory: &Path,
    repairs: &mut Vec<String>,
) -> Result<Option<Bytes>, StorageError> {
    let path = directory.join("boot");
    match whole::read(disk, Kind::Boot, &path).await? {
        None => Ok(None),
        Some(Ok((_, bytes))) => Ok(Some(bytes)),
        Some(Err(problem)) => {
            disk.rename(&path, &aside(&path)).await?;
            disk.sync_directory(directory).await?;
            repairs.push(format!(
                "{} is damaged ({problem}): it was set aside as {}, and the node is booted from the journal; until a replica \
                 answers nothing is applied",
                printed(&path),
                printed(&aside(&path)),
            ));
            Ok(None)
        }
    }
}

impl<D: Disk> Store for AgentStore<D> {
    async fn save_ledger(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.generation += 1;
        let path = ledger_path(&self.directory, self.generation);
        whole::write(&self.disk, Kind::Ledger, &path, self.generation, bytes).await
    }

    async fn save_boot(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        whole::write(&self.disk, Kind::Boot, &self.directory.join("boot"), 0, bytes).await
    }

    async fn spool(&mut self, events: &[Bytes]) -> Result<Vec<u64>, StorageError> {
        self.spool.append(events).await
    }

    async fn sending(&mut self, ordinal: u64, id: OneShotId, drawn_at: Age) -> Result<(), StorageError> {
        self.spool.sending(ordinal, id, drawn_at).await
    }

    async fn forwarded(&mut self, ordinal: u64) -> Result<(), StorageError> {
        self.spool.forwarded(ordinal).await
    }
}
