//! The disk of this machine, through `std::fs`. Calls block; their futures are ready when polled.
//!
//! The one thing that runs on a thread of its own is [`Disk::allocate`], so that a log never waits for its next segment.

use crate::disk::{Access, Disk, allocate_in_steps, printed};
use muster_core::storage::StorageError;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;

/// The disk of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

/// An open file and its name.
#[derive(Clone, Debug)]
pub struct RealFile(Arc<(File, PathBuf)>);

impl RealFile {
    fn new(file: File, path: &Path) -> Self {
        Self(Arc::new((file, path.to_owned())))
    }
    fn file(&self) -> &File {
        &self.0.0
    }
    fn path(&self) -> &Path {
        &self.0.1
    }
}

/// Runs a future that is ready when polled, as all futures over a [`RealDisk`] are.
///
/// # Panics
/// If it is not ready: it waits for something other than a [`RealDisk`].
pub fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a future over a disk that never waits is not ready"),
    }
}

/// The error for what the operating system said.
pub(crate) fn refused(path: &Path, operation: &'static str, error: &io::Error) -> StorageError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StorageError::Full { file: printed(path), operation },
        _ => StorageError::Io { file: printed(path), operation, problem: error.to_string() },
    }
}

fn read_at(file: &File, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    let mut filled = 0;
    while filled < bytes {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}

impl Disk for RealDisk {
    type File = RealFile;

    async fn open(&self, path: &Path, access: Access) -> Result<Option<RealFile>, StorageError> {
        match OpenOptions::new().read(true).write(access == Access::Write).open(path) {
            Ok(file) => Ok(Some(RealFile::new(file, path))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(refused(path, "open", &error)),
        }
    }

    async fn create(&self, path: &Path) -> Result<RealFile, StorageError> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map(|file| RealFile::new(file, path))
            .map_err(|error| refused(path, "create", &error))
    }

    async fn length(&self, file: &RealFile) -> Result<u64, StorageError> {
        file.file().metadata().map(|meta| meta.len()).map_err(|error| refused(file.path(), "measure", &error))
    }

    async fn set_length(&self, file: &RealFile, length: u64) -> Result<(), StorageError> {
        file.file().set_len(length).map_err(|error| refused(file.path(), "set the length of", &error))
    }

    async fn read(&self, file: &RealFile, offset: u64, bytes: usize) -> Result<Vec<u8>, StorageError> {
        read_at(file.file(), offset, bytes).map_err(|error| refused(file.path(), "read", &error))
    }

    async fn write(&self, file: &RealFile, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        file.file().write_all_at(bytes, offset).map_err(|error| refused(file.path(), "write", &error))
    }

    async fn sync(&self, file: &RealFile) -> Result<(), StorageError> {
        file.file().sync_data().map_err(|error| refused(file.path(), "sync", &error))
    }

    async fn sync_directory(&self, path: &Path) -> Result<(), StorageError> {
        File::open(path).and_then(|directory| directory.sync_all()).map_err(|error| refused(path, "sync", &error))
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<(), StorageError> {
        fs::rename(from, to).map_err(|error| refused(from, "rename", &error))
    }

    async fn remove(&self, path: &Path) -> Result<(), StorageError> {
        fs::remove_file(path).map_err(|error| refused(path, "remove", &error))
    }

    async fn list(&self, path: &Path) -> Result<Option<Vec<String>>, StorageError> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(refused(path, "list", &error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| refused(path, "list", &error))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(Some(names))
    }

    async fn make_directory(&self, path: &Path) -> Result<(), StorageError> {
        match fs::create_dir(path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            Err(error) => Err(refused(path, "make", &error)),
        }
    }

    fn allocate(
        self,
        path: PathBuf,
        start: Vec<u8>,
        length: u64,
    ) -> impl Future<Output = Result<RealFile, StorageError>> + Send + 'static {
        let file = path.clone();
        let worker = std::thread::Builder::new()
            .name("muster-allocate".into())
            .spawn(move || ready(allocate_in_steps(self, path, start, length)));
        Allocation(Some(worker.map_err(|error| refused(&file, "allocate", &error))))
    }
}

type Worker = JoinHandle<Result<RealFile, StorageError>>;

/// A file in the making. Dropping it waits, so that nothing is renamed behind the back of whoever opens the directory next.
struct Allocation(Option<Result<Worker, StorageError>>);

impl Future for Allocation {
    type Output = Result<RealFile, StorageError>;
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        let worker = self.0.take().expect("an allocation is polled once");
        Poll::Ready(worker.and_then(|worker| worker.join().expect("allocating does not panic")))
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Some(Ok(worker)) = self.0.take() {
            let _outcome_nobody_waits_for = worker.join();
        }
    }
}
