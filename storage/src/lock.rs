//! That only one process uses a data directory. A device of this machine, like `real.rs`: simulated processes need none.

use crate::disk::printed;
use crate::real::refused;
use muster_core::storage::StorageError;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::Path;

/// The sole use of a data directory, until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    _held: File,
}

impl Lock {
    /// Takes the lock of an existing directory.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if another process has it, [`StorageError::Empty`] if there is no such directory.
    pub fn take(root: &Path) -> Result<Self, StorageError> {
        let path = root.join("lock");
        let file = match OpenOptions::new().write(true).create(true).truncate(false).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(StorageError::Empty { directory: printed(root) });
            }
            Err(error) => return Err(refused(&path, "open", &error)),
        };
        match file.try_lock() {
            Ok(()) => Ok(Self { _held: file }),
            Err(TryLockError::WouldBlock) => Err(StorageError::Locked { directory: printed(root) }),
            Err(TryLockError::Error(error)) => Err(refused(&path, "lock", &error)),
        }
    }
}
