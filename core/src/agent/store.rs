//! What an agent's driver needs of a disk. Production and simulation run the same implementation (`muster-storage`) over
//! different disks.
//!
//! A save is durable when the call returns, in the order that [`Save`] asks for. A [`StorageError`] ends the agent: it must not
//! go on as if it remembered.

use super::effects::Save;
use super::event::Event;
use super::ledger::{Declared, Ledger};
use crate::storage::StorageError;
use alloc::string::String;
use alloc::vec::Vec;

/// What a disk held at the start.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// The ledger.
    pub ledger: Option<Ledger>,
    /// The declared state that the ledger names.
    pub declared: Option<Declared>,
    /// The events that the ledger says count, in order.
    pub events: Vec<Event>,
    /// What was damaged and what was done about it, a sentence each.
    pub repairs: Vec<String>,
}

/// An agent's disk.
pub trait Store {
    /// Makes a save durable.
    fn save(&mut self, save: &Save) -> impl Future<Output = Result<(), StorageError>> + Send;
}
