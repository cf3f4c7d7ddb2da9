//! Muster's decisions: the replicated configuration journal, the Raft replica around it, and the loops that drive it.
//!
//! Nothing here knows a clock, a file, a socket, a thread, a runtime or a source of entropy: time and seeds are passed in,
//! devices stand behind the traits [`storage`], [`network`] and [`clock`]. `no_std` makes the compiler keep that promise.
//!
//! Read in this order: [`ids`], [`journal`], [`state`], [`request`], [`service`].
#![no_std]
#![cfg_attr(not(test), warn(missing_docs))]
extern crate alloc;

pub mod admission;
pub mod agent;
pub mod boot;
pub mod client;
pub mod clock;
pub mod codec;
pub mod driver;
pub mod front;
pub mod ids;
pub mod journal;
pub mod limits;
mod live;
pub mod log;
mod mark;
pub mod members;
pub mod network;
pub mod overlay;
pub mod past;
pub mod peer;
pub mod query;
pub mod replica;
pub mod request;
pub mod service;
pub mod state;
pub mod storage;
