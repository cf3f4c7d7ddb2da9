//! What an agent needs of the machine it manages: see what a key is, make it something else, and see who would be hurt.
//!
//! A host decides nothing. It never changes a key it was not told to change, and what it could not do it says, with the
//! reason in words that name the path, parameter or process.

use crate::journal::key::{Key, Setting};
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::future::Future;

/// Time since the machine booted, suspend included, in nanoseconds. Steps of the wall clock do not touch it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(pub u64);

impl BootTime {
    /// This time plus whole seconds.
    #[must_use]
    pub const fn plus_seconds(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds.saturating_mul(1_000_000_000)))
    }

    /// Whole seconds from `earlier` to `self`; 0 if `earlier` is later.
    #[must_use]
    pub const fn seconds_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000_000_000
    }
}

/// One boot of the machine, as its kernel names it. Another id means that the machine restarted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootId(pub Arc<str>);

/// What a key was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// This value, in the canonical spelling of `agent::value`.
    Value(Arc<str>),
    /// It is not there.
    Absent,
    /// It cannot be seen on this machine, and why: no such device, no permission, the path leaves the root. Never drift.
    Unseen(Arc<str>),
}

/// Somebody who uses what a key stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Consumer {
    /// The key that cannot be taken back while it is used.
    pub key: Key,
    /// The process.
    pub pid: u32,
    /// Its command line.
    pub command: Arc<str>,
    /// What it holds: an open or mapped file, its working directory, a mount or a socket.
    pub path: Arc<str>,
}

impl fmt::Display for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} ({}) uses {} of {}", self.pid, self.command, self.path, self.key)
    }
}

/// Why a key was not changed or seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostError {
    /// The key.
    pub key: Key,
    /// What was wrong and what would be accepted, naming the path or parameter.
    pub problem: Arc<str>,
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)
    }
}

impl core::error::Error for HostError {}

/// The machine.
pub trait Host {
    /// Which boot this is.
    fn boot_id(&mut self) -> impl Future<Output = BootId>;

    /// What these keys are now. Every key asked for is in the answer.
    fn observe(&mut self, keys: &[Key]) -> impl Future<Output = BTreeMap<Key, Observed>>;

    /// Makes a key what `setting` says; `Unset` is never asked for. Done when the change has taken effect, and either done or
    /// not begun as far as the kernel allows.
    ///
    /// # Errors
    /// [`HostError`] if the kernel refuses, the value does not fit the key, or the path leaves the root.
    fn change(&mut self, key: &Key, setting: &Setting) -> impl Future<Output = Result<(), HostError>>;

    /// Whether a value could be given to a key here, before anything is changed; the canonical spelling if so.
    ///
    /// # Errors
    /// [`HostError`] says what would be accepted.
    fn check(&mut self, key: &Key, setting: &Setting) -> impl Future<Output = Result<Setting, HostError>>;

    /// Who uses what these keys stand for, by key and process.
    fn consumers(&mut self, keys: &[Key]) -> impl Future<Output = Vec<Consumer>>;

    /// Names the keys to watch from now on; the earlier ones are forgotten.
    fn watch(&mut self, keys: &[Key]);

    /// Waits until some watched keys may have changed, and names them. Cancel-safe. What the kernel cannot tell is compared
    /// from time to time by the host itself, so that a change of any watched key is named within a second.
    fn changed(&mut self) -> impl Future<Output = Vec<Key>>;
}
