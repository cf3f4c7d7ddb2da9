//! The configuration journal: what may be declared, and what was.
//!
//! Read [`entry`] first (what is recorded), then [`command`] (how it gets there), [`policy`] and [`overlay`].

pub mod command;
pub mod entry;
pub mod key;
pub mod overlay;
pub mod policy;
