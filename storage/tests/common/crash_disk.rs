//! A disk that forgets what it may forget.
//!
//! Reads see a cache. Below it is what a power loss leaves: of the sectors, lengths and names that were not synced, any
//! combination survives. A failed sync leaves its sectors in the cache only, marked clean: no later sync writes them, unless
//! they are written again. A call can fail, or be the last before the power goes.

use muster_core::storage::StorageError;
use muster_storage::disk::{Access, Disk};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

pub const SECTOR: usize = 512;

#[derive(Clone, Default)]
struct Inode {
    cache: Vec<u8>,
    stable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

/// A change of names that its directory's sync makes durable.
#[derive(Clone)]
enum Change {
    Set(PathBuf, usize),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, usize),
    Directory(PathBuf),
}

impl Change {
    fn directory(&self) -> &Path {
        let (Self::Set(path, _) | Self::Remove(path) | Self::Rename(path, _, _) | Self::Directory(path)) = self;
        path.parent().unwrap()
    }
}

#[derive(Clone, Default)]
struct Names {
    files: BTreeMap<PathBuf, usize>,
    directories: BTreeSet<PathBuf>,
}

impl Names {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Set(path, inode) => {
                self.files.insert(path.clone(), *inode);
            }
            Change::Remove(path) => {
                self.files.remove(path);
            }
            Change::Rename(from, to, inode) => {
                if self.files.get(from) == Some(inode) {
                    self.files.remove(from);
                }
                self.files.insert(to.clone(), *inode);
            }
            Change::Directory(path) => {
                self.directories.insert(path.clone());
            }
        }
    }
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The power goes: this call and all after it do nothing.
    Stop,
    /// The call fails. A write has written whole sectors up to its half; a sync leaves everything clean and not durable.
    Refuse,
    /// The call fails for want of room.
    Full,
}

#[derive(Clone, Default)]
struct State {
    inodes: Vec<Inode>,
    names: Names,
    stable_names: Names,
    changes: Vec<Change>,
    calls: u64,
    fault: Option<(u64, Fault)>,
}

#[derive(Clone, Default)]
pub struct CrashDisk(Arc<Mutex<State>>);

/// Something that a power loss may keep or drop.
#[derive(Clone, Copy)]
enum Choice {
    Sector(usize, usize),
    Length(usize),
    Name(usize),
}

fn sector(bytes: &[u8], number: usize) -> [u8; SECTOR] {
    let mut content = [0; SECTOR];
    let from = (number * SECTOR).min(bytes.len());
    let to = (from + SECTOR).min(bytes.len());
    content[..to - from].copy_from_slice(&bytes[from..to]);
    content
}

fn put_sector(bytes: &mut [u8], number: usize, content: &[u8; SECTOR]) {
    let from = (number * SECTOR).min(bytes.len());
    let to = (from + SECTOR).min(bytes.len());
    bytes[from..to].copy_from_slice(&content[..to - from]);
}

impl State {
    fn choices(&self) -> Vec<Choice> {
        let mut choices = Vec::new();
        for (number, inode) in self.inodes.iter().enumerate() {
            if inode.cache.len() != inode.stable.len() {
                choices.push(Choice::Length(number));
            }
            for &dirty in &inode.dirty {
                if sector(&inode.cache, dirty) != sector(&inode.stable, dirty) {
                    choices.push(Choice::Sector(number, dirty));
                }
            }
        }
        choices.extend((0..self.changes.len()).map(Choice::Name));
        choices
    }

    fn lose_power(&mut self, choices: &[Choice], keeps: impl Fn(usize) -> bool) {
        let kept: Vec<Choice> =
            choices.iter().enumerate().filter(|(place, _)| keeps(*place)).map(|(_, choice)| *choice).collect();
        // Lengths first: a sector beyond the length that survives is lost.
        for choice in &kept {
            if let Choice::Length(number) = choice {
                let inode = &mut self.inodes[*number];
                inode.stable.resize(inode.cache.len(), 0);
            }
        }
        for choice in &kept {
            match choice {
                Choice::Sector(number, place) => {
                    let inode = &mut self.inodes[*number];
                    let content = sector(&inode.cache, *place);
                    put_sector(&mut inode.stable, *place, &content);
                }
                Choice::Name(place) => self.stable_names.apply(&self.changes[*place]),
                Choice::Length(_) => {}
            }
        }
        self.changes.clear();
        let directories = self.stable_names.directories.clone();
        self.stable_names.files.retain(|path, _| directories.contains(path.parent().unwrap()));
        self.names = self.stable_names.clone();
        for inode in &mut self.inodes {
            inode.cache.clone_from(&inode.stable);
            inode.dirty.clear();
        }
        self.calls = 0;
        self.fault = None;
    }

    /// Counts a call and tells what becomes of it.
    fn call(&mut self) -> Option<Fault> {
        self.calls += 1;
        match self.fault {
            Some((at, Fault::Stop)) if self.calls >= at => Some(Fault::Stop),
            Some((at, fault)) if self.calls == at => Some(fault),
            _ => None,
        }
    }
}

fn error(fault: Fault, operation: &'static str) -> StorageError {
    match fault {
        Fault::Full => StorageError::Full { file: "any".into(), operation },
        Fault::Stop | Fault::Refuse => {
            StorageError::Io { file: "any".into(), operation, problem: format!("{fault:?}") }
        }
    }
}

impl CrashDisk {
    pub fn new() -> Self {
        let disk = Self::default();
        let mut state = disk.state();
        state.names.directories.insert("/".into());
        state.stable_names.directories.insert("/".into());
        drop(state);
        disk
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Another disk with the same contents, cache included: what a killed process leaves.
    pub fn after_kill(&self) -> Self {
        let mut state = self.state().clone();
        state.calls = 0;
        state.fault = None;
        Self(Arc::new(Mutex::new(state)))
    }

    /// How many things a power loss may keep or drop.
    pub fn choices(&self) -> usize {
        self.state().choices().len()
    }

    /// Another disk with what a power loss leaves, if of each choice is kept what `keeps` says.
    pub fn after_power_loss(&self, keeps: impl Fn(usize) -> bool) -> Self {
        let mut state = self.state().clone();
        let choices = state.choices();
        state.lose_power(&choices, keeps);
        Self(Arc::new(Mutex::new(state)))
    }

    /// Every disk a power loss may leave. Beyond 2^`bits` of them: the extremes, each single choice kept or dropped, and a
    /// random sample of that many.
    pub fn power_losses(&self, bits: usize, seed: u64) -> Vec<Self> {
        let count = self.choices();
        if count <= bits {
            return (0..1_u64 << count).map(|mask| self.after_power_loss(|place| mask >> place & 1 == 1)).collect();
        }
        let mut disks = vec![self.after_power_loss(|_| false), self.after_power_loss(|_| true)];
        for one in 0..count {
            disks.push(self.after_power_loss(|place| place == one));
            disks.push(self.after_power_loss(|place| place != one));
        }
        for draw in 0..1_u64 << bits {
            disks.push(self.after_power_loss(|place| random(seed ^ draw << 32 ^ place as u64) & 1 == 1));
        }
        disks
    }

    /// What is on disk, as one number.
    pub fn fingerprint(&self) -> u64 {
        let state = self.state();
        let mut hasher = DefaultHasher::new();
        for (path, inode) in &state.names.files {
            (path, &state.inodes[*inode].cache).hash(&mut hasher);
        }
        state.names.directories.hash(&mut hasher);
        hasher.finish()
    }

    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Lets the call with this number, counted from now, run into a fault.
    pub fn fail_at(&self, call: u64, fault: Fault) {
        let mut state = self.state();
        state.calls = 0;
        state.fault = Some((call, fault));
    }

    /// All files and their lengths.
    pub fn files(&self) -> Vec<(PathBuf, usize)> {
        let state = self.state();
        state.names.files.iter().map(|(path, inode)| (path.clone(), state.inodes[*inode].cache.len())).collect()
    }

    /// Flips bits of a byte, on disk and in the cache.
    pub fn flip(&self, path: &Path, offset: usize, bits: u8) {
        let mut state = self.state();
        let inode = state.names.files[path];
        let inode = &mut state.inodes[inode];
        inode.cache[offset] ^= bits;
        inode.stable[offset] ^= bits;
    }

    /// Sets a file's length, on disk and in the cache.
    pub fn resize(&self, path: &Path, length: usize) {
        let mut state = self.state();
        let inode = state.names.files[path];
        let inode = &mut state.inodes[inode];
        inode.cache.resize(length, 0);
        inode.stable.resize(length, 0);
    }

    /// Takes a file away, durably.
    pub fn lose_file(&self, path: &Path) {
        let mut state = self.state();
        state.names.files.remove(path);
        state.stable_names.files.remove(path);
    }

    /// The bytes of a file.
    pub fn contents(&self, path: &Path) -> Vec<u8> {
        let state = self.state();
        state.inodes[state.names.files[path]].cache.clone()
    }
}

/// A number that is as good as random.
pub fn random(seed: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    seed.hash(&mut hasher);
    hasher.finish()
}

impl Disk for CrashDisk {
    type File = usize;

    async fn open(&self, path: &Path, _: Access) -> Result<Option<usize>, StorageError> {
        let mut state = self.state();
        match state.call() {
            Some(fault) => Err(error(fault, "open")),
            None => Ok(state.names.files.get(path).copied()),
        }
    }

    async fn create(&self, path: &Path) -> Result<usize, StorageError> {
        let mut state = self.state();
        if let Some(fault) = state.call() {
            return Err(error(fault, "create"));
        }
        assert!(state.names.directories.contains(path.parent().unwrap()), "no directory for {}", path.display());
        if let Some(&inode) = state.names.files.get(path) {
            let inode_state = &mut state.inodes[inode];
            inode_state.cache.clear();
            inode_state.dirty.clear();
            return Ok(inode);
        }
        state.inodes.push(Inode::default());
        let inode = state.inodes.len() - 1;
        let change = Change::Set(path.to_owned(), inode);
        state.names.apply(&change);
        state.changes.push(change);
        Ok(inode)
    }

    async fn length(&self, file: &usize) -> Result<u64, StorageError> {
        let mut state = self.state();
        match state.call() {
            Some(fault) => Err(error(fault, "measure")),
            None => Ok(state.inodes[*file].cache.len() as u64),
        }
    }

    async fn set_length(&self, file: &usize, length: u64) -> Result<(), StorageError> {
        let mut state = self.state();
        if let Some(fault) = state.call() {
            return Err(error(fault, "set the length of"));
        }
        let inode = &mut state.inodes[*file];
        let length = usize::try_from(length).unwrap();
        inode.cache.resize(length, 0);
        inode.dirty.retain(|number| number * SECTOR < length);
        Ok(())
    }

    async fn read(&self, file: &usize, offset: u64, bytes: usize) -> Result<Vec<u8>, StorageError> {
        let mut state = self.state();
        if let Some(fault) = state.call() {
            return Err(error(fault, "read"));
        }
        let cache = &state.inodes[*file].cache;
        let from = usize::try_from(offset).unwrap().min(cache.len());
        Ok(cache[from..from.saturating_add(bytes).min(cache.len())].to_vec())
    }

    async fn write(&self, file: &usize, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        let mut state = self.state();
        let fault = state.call();
        let from = usize::try_from(offset).unwrap();
        let bytes = match fault {
            Some(Fault::Stop) => &[],
            // What a short write leaves out are whole sectors: the kernel copies page by page.
            Some(Fault::Refuse | Fault::Full) => {
                let half = (from + bytes.len() / 2) / SECTOR * SECTOR;
                &bytes[..half.saturating_sub(from)]
            }
            None => bytes,
        };
        let inode = &mut state.inodes[*file];
        let to = from + bytes.len();
        if !bytes.is_empty() {
            inode.cache.resize(inode.cache.len().max(to), 0);
            inode.cache[from..to].copy_from_slice(bytes);
            inode.dirty.extend(from / SECTOR..to.div_ceil(SECTOR));
        }
        fault.map_or(Ok(()), |fault| Err(error(fault, "write")))
    }

    async fn sync(&self, file: &usize) -> Result<(), StorageError> {
        let mut state = self.state();
        let fault = state.call();
        let inode = &mut state.inodes[*file];
        match fault {
            None => {
                let dirty = std::mem::take(&mut inode.dirty);
                inode.stable.resize(inode.cache.len(), 0);
                for number in dirty {
                    let content = sector(&inode.cache, number);
                    put_sector(&mut inode.stable, number, &content);
                }
                Ok(())
            }
            Some(Fault::Stop) => Err(error(Fault::Stop, "sync")),
            Some(fault) => {
                inode.dirty.clear();
                Err(error(fault, "sync"))
            }
        }
    }

    async fn sync_directory(&self, path: &Path) -> Result<(), StorageError> {
        let mut state = self.state();
        if let Some(fault) = state.call() {
            return Err(error(fault, "sync"));
        }
        let changes = std::mem::take(&mut state.changes);
        for change in changes {
            if change.directory() == path {
                state.stable_names.apply(&change);
            } else {
                state.changes.push(change);
            }
        }
        Ok(())
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<(), StorageError> {
        let mut state = self.state();
        if let Some(fault) = state.call() {
            return Err(error(fault, "rename"));
        }
        let inode = state.names.files[from];
        let change = Change::Rename(from.to_owned(), to.to_owned(), inode);
        state.names.apply(&change);
        state.changes.push(change);
        Ok(())
    }

    async fn remove(&self, path: &Path) -> Result<(), StorageError> {
        let mut state = self.state();
        if let Some(fault) = state.call() {
            return Err(error(fault, "remove"));
        }
        assert!(state.names.files.contains_key(path), "there is no {}", path.display());
        let change = Change::Remove(path.to_owned());
        state.names.apply(&change);
        state.changes.push(change);
        Ok(())
    }

    async fn list(&self, path: &Path) -> Result<Option<Vec<String>>, StorageError> {
        let mut state = self.state();
        if let Some(fault) = state.call() {
            return Err(error(fault, "list"));
        }
        if !state.names.directories.contains(path) {
            return Ok(None);
        }
        let within = state.names.files.keys().filter(|file| file.parent() == Some(path));
        Ok(Some(within.map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect()))
    }

    async fn make_directory(&self, path: &Path) -> Result<(), StorageError> {
        let mut state = self.state();
        if let Some(fault) = state.call() {
            return Err(error(fault, "make"));
        }
        if !state.names.directories.contains(path) {
            let change = Change::Directory(path.to_owned());
            state.names.apply(&change);
            state.changes.push(change);
        }
        Ok(())
    }
}
