//! Who a data directory belongs to.
//!
//! The file `identity` is a header (`file.rs`) and one frame with the identity (`muster_core::codec::log`). It is written
//! beside before anything else is made and renamed last, so there are three kinds of directories: with `identity`, a
//! replica's; with `identity.tmp` only, half-made, which counts as empty; with neither, empty, or damaged if there is a log.

use crate::disk::{Disk, beside, printed, read_whole};
use crate::file::{FileKind, Header, Owner, REPLACE, SECTOR, damaged, frame};
use muster_core::codec::CodecError;
use muster_core::codec::log::{decode_identity, encode_identity};
use muster_core::storage::{Identity, StorageError};
use std::path::{Path, PathBuf};

/// The file's name.
pub(crate) fn path_of(root: &Path) -> PathBuf {
    root.join("identity")
}

/// Writes the identity beside, durably. The directory counts as half-made until [`commit`].
pub(crate) async fn prepare<D: Disk>(disk: &D, root: &Path, identity: &Identity) -> Result<(), StorageError> {
    let header = Header { kind: FileKind::Identity, owner: Owner::of(identity), number: 0, length: 0, trailer: 0 };
    let encoded = encode_identity(identity);
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(&frame::head(0, &encoded));
    bytes.extend_from_slice(&encoded);
    let file = disk.create(&beside(&path_of(root))).await?;
    disk.write(&file, 0, &bytes).await?;
    disk.sync(&file).await?;
    disk.sync_directory(root).await
}

/// Makes the directory the replica's.
pub(crate) async fn commit<D: Disk>(disk: &D, root: &Path) -> Result<(), StorageError> {
    disk.rename(&beside(&path_of(root)), &path_of(root)).await?;
    disk.sync_directory(root).await
}

/// Reads whose directory it is. None if nobody's: there is nothing in it, or it was not finished.
pub(crate) async fn read<D: Disk>(disk: &D, root: &Path) -> Result<Option<Identity>, StorageError> {
    let path = path_of(root);
    let Some(bytes) = read_whole(disk, &path).await? else {
        let is_half_made = disk.open(&beside(&path), crate::disk::Access::Read).await?.is_some();
        let has_log = !crate::wal::segments(disk, &crate::open::wal_of(root)).await?.is_empty();
        if has_log && !is_half_made {
            return Err(damaged(&path, 0, "it is missing, though there is a log".into(), REPLACE));
        }
        return Ok(None);
    };
    let header = Header::decode(FileKind::Identity, &path, &bytes, None)?;
    let wrong = |problem: String| damaged(&path, SECTOR as u64, problem, REPLACE);
    let encoded = frame::read(0, &bytes[SECTOR..]).map_err(|problem| wrong(problem.into()))?;
    if SECTOR + frame::HEAD + encoded.len() != bytes.len() {
        return Err(wrong("there are bytes after its end".into()));
    }
    let identity = decode_identity(encoded).map_err(|error| match error {
        CodecError::Format { found, known, .. } => {
            StorageError::Format { file: printed(&path), found: found.into(), known: known.into() }
        }
        CodecError::Malformed { .. } => wrong(error.to_string()),
    })?;
    if Owner::of(&identity) != header.owner {
        return Err(wrong("it names another replica than its header".into()));
    }
    Ok(Some(identity))
}
