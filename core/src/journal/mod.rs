//! The configuration journal: what may be declared, and what was.
//!
//! Read [`entry`] first (what is recorded), then [`command`] (how it gets there), [`policy`] and [`overlay`]; then [`stack`]
//! (what counts), [`live`] (all of it) and [`apply`] (how it moves). [`fold`] says the same from records alone, and
//! [`document`] is what a booting node reads.

pub mod apply;
pub(crate) mod check;
pub mod command;
pub mod document;
pub mod entry;
pub mod fold;
pub mod key;
pub mod live;
pub mod overlay;
pub mod policy;
pub mod stack;
pub(crate) mod text;
