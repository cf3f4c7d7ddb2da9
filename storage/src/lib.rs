//! A replica's data directory: write-ahead log, snapshots, history, identity; and an agent's ([`agent`]).
//!
//! Bytes on disk and nothing else: what is written when, and what follows from it, is core's business. All access goes through
//! [`Disk`]; the same code runs on [`RealDisk`] and on simulated ones.
//!
//! Read in this order: [`disk`], `open.rs` (the directory as a whole), `file.rs`, `wal/mod.rs`, `archive.rs`, `library.rs`.
pub mod disk;
mod real;

pub mod agent;
mod archive;
mod file;
mod history;
mod identity;
pub mod inspect;
mod library;
mod lock;
mod open;
mod snapshot;
mod staging;
mod wal;

pub use archive::FileArchive;
pub use disk::Disk;
pub use file::FORMAT;
pub use inspect::{Inspection, inspect};
pub use library::FileLibrary;
pub use lock::Lock;
pub use open::{Opened, Repaired, init, open, repair};
pub use real::{RealDisk, RealFile, ready};
pub use wal::{Wal, WalOptions};
