//! The simulator: plays stories of faults (`scenarios/*.toml`) against whole clusters and checks every promise on the way.
//!
//! Core, driver, log, archive and codec run unchanged; only devices are ours: [`clock`], [`network`], [`disk`]. Everything
//! random is drawn from one seed, so a run is a number.
//!
//! Read in this order: [`scenario`] (what a story is), [`run`] (one run, start to end), [`world`] (what everybody shares),
//! the devices, [`replica`] (a process), [`client`], [`fault`] (carrying faults out), [`oracles`].
//!
//! Invariants
//! - one run is one thread: the executor, what it polls and what the library under it keeps per thread start anew;
//! - all draws come from [`draw::Draw`]s that are children of the run's seed, one per purpose, so that taking one fault out
//!   of a story leaves the draws of the others as they were;
//! - no map here has an order that differs between runs.
#![allow(clippy::missing_panics_doc, reason = "the simulator's own assertions end the run, and that is told")]
#[cfg(not(madsim))]
compile_error!(
    "the simulator needs `--cfg madsim`. The workspace's .cargo/config.toml sets it, but a RUSTFLAGS (or \
     CARGO_ENCODED_RUSTFLAGS) variable overrides that file: unset it, or add `--cfg madsim` to it"
);

/// A run makes and drops some millions of small things.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub mod scenario;

pub mod run;

pub mod chronicle;
pub mod diagram;
pub mod mutants;
pub mod shrink;
pub mod swarm;

pub mod agenda;
pub mod agents;
mod amnesia;
pub mod audit;
pub mod client;
pub mod clock;
pub mod committed;
pub mod declared;
pub mod disk;
pub mod draw;
pub mod event;
pub mod fault;
pub mod freedom;
mod hostile;
pub mod logs;
pub mod network;
pub mod oracles;
mod repair;
pub mod replica;
pub mod storm;
pub mod subscriber;
pub mod tool;
mod verbs;
pub mod watch;
pub mod world;
