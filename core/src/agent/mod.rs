//! The node agent's decisions: what differs from what is declared, how long an operator may leave it so, and how it is
//! taken back.
//!
//! Nothing here knows a kernel, a file, a process or a clock: the node stands behind the trait [`host`], time is passed in.

pub mod host;
pub mod store;
