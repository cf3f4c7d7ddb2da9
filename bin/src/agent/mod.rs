//! The node agent: what its decisions in `muster_core::agent` need of a real machine.

pub(crate) mod host;
