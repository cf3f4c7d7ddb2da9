//! The node agent: what its decisions in `muster_core::agent` need of a real machine.
//!
//! [`config`] reads its file, [`host`] is the machine, [`run`] wires it, [`link`] speaks with the journal, [`runner`] runs commands and shells.

mod clock;
pub(crate) mod config;
mod host;
mod link;
pub(crate) mod run;
mod runner;
