//! The node agent's decisions: what differs from what is declared, how long an operator may leave it so, and how it is
//! taken back.
//!
//! Nothing here knows a kernel, a file, a process or a clock: the node stands behind the trait [`host`], time is passed in,
//! and the [`machine`] is stepped like the replica: inputs in, effects out, promises withheld until what they rest on is
//! durable.
//!
//! Read in this order: [`value`] (what values mean), [`drift`] (how far, and so how long), [`ledger`] (what survives a crash),
//! [`event`] (what the journal must learn), [`effects`] (the one door), [`operator`] (what people ask), then [`plan`] and
//! [`machine`]. [`rollout`] is the operator's side of a change to many nodes.

pub mod drift;
pub mod driver;
pub mod effects;
pub mod event;
pub mod fleet;
pub mod host;
pub mod journal;
pub mod ledger;
pub mod machine;
pub mod operator;
pub mod plan;
pub mod rollout;
pub mod store;
pub mod value;
