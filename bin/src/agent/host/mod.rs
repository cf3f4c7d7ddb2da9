//! The Linux machine an agent manages, behind `muster_core::agent::host::Host`.
//!
//! All of it lives on one thread of its own ([`worker`]): what the kernel makes wait (a network file system that hangs, a
//! package manager at work) makes this thread wait, never the agent's runtime. [`LinuxHost`] passes requests to it.
//!
//! | dimension | file | how |
//! |---|---|---|
//! | kernel | `kernel.rs` | files below `/proc/sys` |
//! | files | `files.rs` | replaced by rename, never written in place |
//! | mounts | `mounts.rs`, `mountinfo.rs` | built detached, attached when whole |
//! | services | `services.rs`, `systemd.rs`, `supervisor.rs` | systemd's units, else processes kept alive |
//! | network | `links.rs`, `netlink.rs` | route netlink |
//! | packages | `packages.rs` | the machine's package manager |
//! | gpu | `gpus.rs` | observed only |
//!
//! Invariants
//! - No path is followed out of the root ([`root`]), and none of the excluded paths is touched.
//! - A change is done, or it failed and what was there before is there again, as far as the kernel allows.
//! - What cannot be seen is `Unseen` with a reason, never a guess.

mod accounts;
mod command;
mod consumers;
mod files;
mod gpus;
mod kernel;
mod links;
mod machine;
mod mountinfo;
mod mounts;
mod netlink;
mod packages;
mod processes;
mod root;
mod services;
mod supervisor;
mod systemd;
#[cfg(test)]
mod tests;
mod watcher;
mod worker;

use muster_core::agent::host::{BootId, Consumer, Host, HostError, Observed};
use muster_core::journal::key::{Key, Setting};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use tokio::sync::{Notify, oneshot};

/// Where a host works.
#[derive(Clone, Debug)]
pub(crate) struct HostOptions {
    /// Everything is confined to this directory; without one, it is the machine itself.
    pub(crate) root: Option<PathBuf>,
    /// The agent's own directory, as this process sees it. The host keeps its notes on supervised services in it, and manages
    /// nothing inside it.
    pub(crate) own: PathBuf,
    /// Further absolute paths below which nothing is managed, as keys name them.
    pub(crate) excluded: Vec<String>,
}

type Answer<T> = oneshot::Sender<T>;

/// What the thread is asked.
enum Request {
    BootId(Answer<BootId>),
    Observe(Vec<Key>, Answer<BTreeMap<Key, Observed>>),
    Change(Key, Setting, Answer<Result<(), HostError>>),
    Check(Key, Setting, Answer<Result<Setting, HostError>>),
    Consumers(Vec<Key>, Answer<Vec<Consumer>>),
    Watch(Vec<Key>),
}

/// Keys that may have changed, from the thread to whoever waits.
#[derive(Default)]
struct Changed {
    keys: Mutex<BTreeSet<Key>>,
    told: Notify,
}

impl Changed {
    fn add(&self, keys: impl IntoIterator<Item = Key>) {
        let mut waiting = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.extend(keys);
        if !waiting.is_empty() {
            self.told.notify_one();
        }
    }

    fn take(&self) -> Vec<Key> {
        let mut waiting = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *waiting).into_iter().collect()
    }
}

/// The real machine. Supervised services outlive it.
pub(crate) struct LinuxHost {
    requests: mpsc::Sender<Request>,
    bell: worker::Bell,
    changed: Arc<Changed>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl LinuxHost {
    /// Opens the root and takes up the services that an earlier run left.
    ///
    /// # Errors
    /// In words: the root is no directory, or the agent's own directory cannot be written.
    pub(crate) fn open(options: &HostOptions) -> Result<Self, String> {
        let machine = machine::Machine::open(options)?;
        let (requests, inbox) = mpsc::channel();
        let changed = Arc::new(Changed::default());
        let (bell, worker) = worker::Worker::new(machine, inbox, Arc::clone(&changed))?;
        let thread = std::thread::Builder::new()
            .name("host".to_owned())
            .spawn(move || worker.run())
            .map_err(|error| format!("no thread for the host: {error}"))?;
        Ok(Self { requests, bell, changed, thread: Some(thread) })
    }

    async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> T {
        let (answer, answered) = oneshot::channel();
        self.send(request(answer));
        answered.await.expect("the host's thread ends only with the host")
    }

    fn send(&self, request: Request) {
        self.requests.send(request).expect("the host's thread ends only with the host");
        self.bell.ring();
    }
}

impl Drop for LinuxHost {
    fn drop(&mut self) {
        // The thread ends when nobody can ask it any more. A machine that hangs is not waited for.
        let (closed, _) = mpsc::channel();
        self.requests = closed;
        self.bell.ring();
        if let Some(thread) = self.thread.take()
            && thread.is_finished()
        {
            drop(thread.join());
        }
    }
}

impl Host for LinuxHost {
    async fn boot_id(&mut self) -> BootId {
        self.ask(Request::BootId).await
    }

    async fn observe(&mut self, keys: &[Key]) -> BTreeMap<Key, Observed> {
        self.ask(|answer| Request::Observe(keys.to_vec(), answer)).await
    }

    async fn change(&mut self, key: &Key, setting: &Setting) -> Result<(), HostError> {
        self.ask(|answer| Request::Change(key.clone(), setting.clone(), answer)).await
    }

    async fn check(&mut self, key: &Key, setting: &Setting) -> Result<Setting, HostError> {
        self.ask(|answer| Request::Check(key.clone(), setting.clone(), answer)).await
    }

    async fn consumers(&mut self, keys: &[Key]) -> Vec<Consumer> {
        self.ask(|answer| Request::Consumers(keys.to_vec(), answer)).await
    }

    fn watch(&mut self, keys: &[Key]) {
        self.send(Request::Watch(keys.to_vec()));
    }

    async fn changed(&mut self) -> Vec<Key> {
        loop {
            let told = self.changed.told.notified();
            let keys = self.changed.take();
            if !keys.is_empty() {
                return keys;
            }
            told.await;
        }
    }
}
