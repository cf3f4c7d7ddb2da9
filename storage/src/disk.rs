//! The narrow trait through which everything here reaches a disk, so that a test can lose, tear and flip what it likes and a
//! simulator can take its time.
//!
//! Every call is a possible crash point. No call retries; an error names the file and what was tried.
//!
//! Nothing here decides anything: what must be synced before what is the business of the callers.

use muster_core::storage::StorageError;
use std::path::{Path, PathBuf};

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading; works where writing is not permitted.
    Read,
    /// Reading and writing.
    Write,
}

/// A disk: files, directories, and when what is on them is durable.
pub trait Disk: Clone + Send + Sync + 'static {
    /// An open file.
    type File: Clone + Send + Sync + 'static;

    /// Opens a file. None if there is none.
    fn open(
        &self,
        path: &Path,
        access: Access,
    ) -> impl Future<Output = Result<Option<Self::File>, StorageError>> + Send;
    /// Makes an empty file, or empties the one that is there. Its name is durable once its directory was synced.
    fn create(&self, path: &Path) -> impl Future<Output = Result<Self::File, StorageError>> + Send;
    /// How long a file is, in bytes.
    fn length(&self, file: &Self::File) -> impl Future<Output = Result<u64, StorageError>> + Send;
    /// Cuts a file, or makes it longer by zeros.
    fn set_length(&self, file: &Self::File, length: u64) -> impl Future<Output = Result<(), StorageError>> + Send;
    /// Reads up to `bytes` bytes at `offset`; fewer only at the end of the file.
    fn read(
        &self,
        file: &Self::File,
        offset: u64,
        bytes: usize,
    ) -> impl Future<Output = Result<Vec<u8>, StorageError>> + Send;
    /// Writes all of `bytes` at `offset`. Not durable until the file is synced.
    fn write(
        &self,
        file: &Self::File,
        offset: u64,
        bytes: &[u8],
    ) -> impl Future<Output = Result<(), StorageError>> + Send;
    /// Makes a file's bytes and length durable. After an error nothing may be assumed about what was not durable before, not
    /// even that a later sync would tell.
    fn sync(&self, file: &Self::File) -> impl Future<Output = Result<(), StorageError>> + Send;
    /// Makes the names in a directory durable.
    fn sync_directory(&self, path: &Path) -> impl Future<Output = Result<(), StorageError>> + Send;
    /// Gives a file another name, replacing the file that has it: at every moment one of the two is there.
    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = Result<(), StorageError>> + Send;
    /// Removes a file.
    fn remove(&self, path: &Path) -> impl Future<Output = Result<(), StorageError>> + Send;
    /// The names in a directory, sorted. None if there is no such directory.
    fn list(&self, path: &Path) -> impl Future<Output = Result<Option<Vec<String>>, StorageError>> + Send;
    /// Makes a directory, unless it is there.
    fn make_directory(&self, path: &Path) -> impl Future<Output = Result<(), StorageError>> + Send;

    /// Makes a file that begins with `start` and is zero up to `length`, durably and under its name all at once (or not at
    /// all). A disk that can begins at once and goes on beside other calls, whether or not the future is polled.
    fn allocate(
        self,
        path: PathBuf,
        start: Vec<u8>,
        length: u64,
    ) -> impl Future<Output = Result<Self::File, StorageError>> + Send + 'static {
        allocate_in_steps(self, path, start, length)
    }
}

/// Zeros to write from.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// How much is written between two syncs of a long write, so that others' syncs need not wait for all of it.
pub(crate) const SYNC_STEP_BYTES: u64 = 1 << 20;

/// The ending of a file that is being made. Such files mean nothing and are removed at the next start.
pub(crate) const BESIDE: &str = ".tmp";

/// The name under which `path` is made before it is renamed.
pub(crate) fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(BESIDE);
    name.into()
}

/// The directory a path is in.
pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// A path as errors print it.
pub(crate) fn printed(path: &Path) -> String {
    path.display().to_string()
}

/// [`Disk::allocate`] by the other calls, one after the other.
///
/// # Errors
/// What the disk says.
pub async fn allocate_in_steps<D: Disk>(
    disk: D,
    path: PathBuf,
    start: Vec<u8>,
    length: u64,
) -> Result<D::File, StorageError> {
    let made = beside(&path);
    let file = disk.create(&made).await?;
    disk.write(&file, 0, &start).await?;
    let mut from = start.len() as u64;
    while from < length {
        let to = length.min(from + SYNC_STEP_BYTES);
        zero(&disk, &file, from, to).await?;
        if to < length {
            disk.sync(&file).await?;
        }
        from = to;
    }
    disk.sync(&file).await?;
    disk.rename(&made, &path).await?;
    disk.sync_directory(directory_of(&path)).await?;
    disk.open(&path, Access::Write).await?.ok_or_else(|| StorageError::Io {
        file: printed(&path),
        operation: "open",
        problem: "it vanished while it was made".into(),
    })
}

/// Writes zeros from one offset up to another. Not synced.
pub(crate) async fn zero<D: Disk>(disk: &D, file: &D::File, from: u64, to: u64) -> Result<(), StorageError> {
    let mut from = from;
    while from < to {
        let bytes = usize::try_from(to - from).unwrap_or(usize::MAX).min(ZEROS.len());
        disk.write(file, from, &ZEROS[..bytes]).await?;
        from += bytes as u64;
    }
    Ok(())
}

/// Reads a whole file. None if there is none.
pub(crate) async fn read_whole<D: Disk>(disk: &D, path: &Path) -> Result<Option<Vec<u8>>, StorageError> {
    let Some(file) = disk.open(path, Access::Read).await? else { return Ok(None) };
    let length = disk.length(&file).await?;
    let bytes = usize::try_from(length).map_err(|_| StorageError::Io {
        file: printed(path),
        operation: "read",
        problem: format!("its {length} bytes do not fit into memory"),
    })?;
    disk.read(&file, 0, bytes).await.map(Some)
}

/// Makes a file of `bytes` under its name all at once, durably.
pub(crate) async fn write_whole<D: Disk>(disk: &D, path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
    let made = beside(path);
    let file = disk.create(&made).await?;
    disk.write(&file, 0, bytes).await?;
    disk.sync(&file).await?;
    disk.rename(&made, path).await?;
    disk.sync_directory(directory_of(path)).await
}

/// Removes what an interrupted start or write left half-made in a directory.
pub(crate) async fn sweep<D: Disk>(disk: &D, directory: &Path) -> Result<(), StorageError> {
    for name in disk.list(directory).await?.unwrap_or_default() {
        if name.ends_with(BESIDE) {
            disk.remove(&directory.join(name)).await?;
        }
    }
    Ok(())
}
