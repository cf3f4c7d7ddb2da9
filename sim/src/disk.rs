//! A machine's disk: a page cache above sectors that survive a loss of power.
//!
//! ```text
//! write, set_length          -> cache              lost, kept or torn by a loss of power, sector by sector
//! sync(file)                 -> cache to sectors   durable
//! create, rename, remove     -> names in cache     lost by a loss of power, but for a first part of them
//! sync_directory             -> names durable
//! ```
//! A killed process leaves the cache behind; its write under way is done in part. A loss of power keeps, for every sector
//! written since the last sync, its newest, an older or its durable bytes; the length is the old or the new one.
//! A failed sync marks pages clean: what was not durable is never written by a later sync, and still read until power is lost.
//!
//! What is assumed: a sector of 512 bytes is written as a whole or not at all; a rename is one change of the names.

mod inode;

use self::inode::Inode;
use crate::agenda::Agenda;
use crate::agents::{self, AgentLife};
use crate::draw::Draw;
use crate::event::{DiskOp, Ending, Event};
use crate::world::{Life, World};
use muster_core::storage::StorageError;
use muster_storage::Disk;
use muster_storage::disk::{Access, allocate_in_steps};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// A sector: written as a whole or not at all.
const SECTOR: usize = 512;

/// Where in its work a process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// Before a batch is written to the log.
    BeforeWrite,
    /// Between the log's write and its sync.
    BeforeSync,
    /// After the log's sync, before anything is sent.
    AfterSync,
    /// While a snapshot is written.
    MidSnapshot,
    /// While a log segment is made or begun.
    MidRoll,
    /// While a fetched snapshot is staged or installed.
    MidInstall,
    /// While history is written: a block, or the head of a segment that is made or sealed.
    History,
    /// While the next process recovers.
    Recovery,
    /// At any disk operation.
    AnyWrite,
}

impl Point {
    /// Every point with its word.
    pub const ALL: [(&'static str, Self); 9] = [
        ("before-write", Self::BeforeWrite),
        ("before-sync", Self::BeforeSync),
        ("after-sync", Self::AfterSync),
        ("mid-snapshot", Self::MidSnapshot),
        ("mid-roll", Self::MidRoll),
        ("mid-install", Self::MidInstall),
        ("history", Self::History),
        ("recovery", Self::Recovery),
        ("any-write", Self::AnyWrite),
    ];

    /// The word used in scenarios.
    #[must_use]
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, point)| *point == self).map_or("", |(word, _)| word)
    }

    /// Whether an operation is such a point, before (or after) it is done.
    fn is_at(self, op: DiskOp, path: &Path, after: bool) -> bool {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        let parent = path.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or("");
        let log = parent == "wal" && path.extension().is_some_and(|ending| ending == "wal");
        let changes = !matches!(op, DiskOp::Open | DiskOp::Length | DiskOp::Read | DiskOp::List);
        match self {
            Self::BeforeWrite => !after && log && op == DiskOp::Write,
            Self::BeforeSync => !after && log && op == DiskOp::Sync,
            Self::AfterSync => after && log && op == DiskOp::Sync,
            Self::MidSnapshot => changes && (parent == "snapshots" || name == "snapshots"),
            Self::MidRoll => {
                changes
                    && ((parent == "wal" && !log)
                        || name == "wal"
                        || (log && op != DiskOp::Write && op != DiskOp::Sync))
            }
            Self::MidInstall => changes && (parent == "staging" || name == "staging"),
            Self::History => changes && (parent == "history" || name == "history"),
            Self::Recovery => !after,
            Self::AnyWrite => changes,
        }
    }
}

/// What a disk does wrong at the moment.
#[derive(Clone, Debug)]
pub struct Manners {
    /// Everything takes so many times as long.
    pub slow: u64,
    /// Nothing ends before this is over.
    pub stalled: bool,
    /// There is no room for anything more.
    pub full: bool,
    /// So many reads in a million fail.
    pub read_error_ppm: u32,
    /// So many writes in a million fail.
    pub write_error_ppm: u32,
    /// So many syncs in a million fail.
    pub sync_error_ppm: u32,
    /// So many writes in a million go to another place of the file.
    pub misdirect_ppm: u32,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            slow: 1,
            stalled: false,
            full: false,
            read_error_ppm: 0,
            write_error_ppm: 0,
            sync_error_ppm: 0,
            misdirect_ppm: 0,
        }
    }
}

/// A change of a directory's names, in memory only.
#[derive(Clone)]
enum Change {
    Set(String, u64),
    Unset(String),
    Move(String, String),
}

#[derive(Clone, Default)]
struct Directory {
    names: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    changes: Vec<Change>,
    /// Whether its own name is durable in its parent.
    anchored: bool,
}

impl Directory {
    fn apply(names: &mut BTreeMap<String, u64>, change: &Change) {
        match change {
            Change::Set(name, inode) => {
                names.insert(name.clone(), *inode);
            }
            Change::Unset(name) => {
                names.remove(name);
            }
            Change::Move(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
        }
    }
    fn change(&mut self, change: Change) {
        Self::apply(&mut self.names, &change);
        self.changes.push(change);
    }
    fn sync(&mut self) {
        self.durable.clone_from(&self.names);
        self.changes.clear();
    }
}

/// What a disk holds. An image of it can be kept and put back.
#[derive(Clone, Default)]
pub struct Image {
    directories: BTreeMap<PathBuf, Directory>,
    inodes: BTreeMap<u64, Inode>,
}

struct Content {
    image: Image,
    next_inode: u64,
    manners: Manners,
    draw: Draw,
    trap: Option<Trap>,
    /// Whose traps have sprung.
    sprung: BTreeSet<Arc<str>>,
    /// Writes under way: what a kill may do in part.
    under_way: BTreeMap<u64, (u64, u64, Vec<u8>)>,
    next_write: u64,
    rot: BTreeSet<(u64, usize, u8)>,
    /// Operations that take their time just now.
    at_it: u64,
}

/// Where to kill, in whose name, and after how many such operations.
struct Trap {
    owner: Arc<str>,
    point: Point,
    left: u64,
    ending: Ending,
}

/// One operation that takes its time, for as long as this lives.
struct AtIt(Arc<Store>);

impl AtIt {
    fn new(store: &Arc<Store>) -> Self {
        store.lock().at_it += 1;
        Self(store.clone())
    }
}

impl Drop for AtIt {
    fn drop(&mut self) {
        self.0.lock().at_it -= 1;
    }
}

/// A machine's disk. Outlives processes.
pub struct Store(Mutex<Content>);

impl Store {
    /// An empty disk.
    #[must_use]
    pub fn new(draw: Draw) -> Self {
        Self(Mutex::new(Content {
            image: Image::default(),
            next_inode: 1,
            manners: Manners::default(),
            draw,
            trap: None,
            sprung: BTreeSet::new(),
            under_way: BTreeMap::new(),
            next_write: 0,
            rot: BTreeSet::new(),
            at_it: 0,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().expect("nobody panics holding it")
    }

    /// Changes how it behaves.
    pub fn behave(&self, change: impl FnOnce(&mut Manners)) {
        change(&mut self.lock().manners);
    }

    /// Kills the process at the `nth` operation (from 1) that is at `point`, in a fault's name.
    pub fn set_trap(&self, owner: &Arc<str>, point: Point, nth: u64, ending: Ending) {
        self.lock().trap = Some(Trap { owner: owner.clone(), point, left: nth.max(1), ending });
    }

    /// Takes a fault's trap away if it has not sprung, and nobody else's. Whether it has.
    pub fn clear_trap(&self, owner: &str) -> bool {
        let mut content = self.lock();
        content.trap.take_if(|trap| &*trap.owner == owner);
        content.sprung.contains(owner)
    }

    /// The process is gone: of each write under way a first part may be in the cache.
    pub fn abandon(&self) {
        let mut content = self.lock();
        let content = &mut *content;
        for (inode, offset, bytes) in std::mem::take(&mut content.under_way).into_values() {
            let part = match content.draw.below(3) {
                0 => 0,
                1 => bytes.len(),
                _ => content.draw.place(bytes.len() / SECTOR + 1) * SECTOR,
            };
            if let Some(inode) = content.image.inodes.get_mut(&inode) {
                inode.write(index(offset), &bytes[..part.min(bytes.len())]);
            }
        }
    }

    /// A write under way reaches the cache. False if there is none of that number (any more).
    fn land(&self, number: u64) -> bool {
        let mut content = self.lock();
        let content = &mut *content;
        let Some((number, mut offset, bytes)) = content.under_way.remove(&number) else { return false };
        if content.manners.misdirect_ppm > 0 && content.draw.ppm(content.manners.misdirect_ppm) {
            let length = content.image.inodes.get(&number).map_or(0, |inode| inode.cache().len());
            offset = (content.draw.place(length / SECTOR + 1) * SECTOR) as u64;
        }
        if let Some(inode) = content.image.inodes.get_mut(&number) {
            let written = index(offset)..index(offset) + bytes.len();
            inode.write(written.start, &bytes);
            // A rotten bit stays rotten.
            for (_, at, bit) in content.rot.range((number, 0, 0)..(number + 1, 0, 0)) {
                if written.contains(at) {
                    inode.flip(*at, *bit);
                }
            }
        }
        true
    }

    /// Forgets what was not durable, but for what the disk happened to write by itself.
    pub fn lose_power(&self) {
        let mut content = self.lock();
        let content = &mut *content;
        let draw = &mut content.draw;
        content.image.directories.retain(|_, directory| directory.anchored);
        let mut reachable = BTreeSet::new();
        for directory in content.image.directories.values_mut() {
            let changes = std::mem::take(&mut directory.changes);
            let kept = match draw.below(4) {
                0 | 1 => 0,
                2 => changes.len(),
                _ => draw.place(changes.len() + 1),
            };
            for change in changes.iter().take(kept) {
                Directory::apply(&mut directory.durable, change);
            }
            directory.names.clone_from(&directory.durable);
            reachable.extend(directory.names.values().copied());
        }
        content.image.inodes.retain(|number, _| reachable.contains(number));
        for inode in content.image.inodes.values_mut() {
            inode.lose_power(draw);
        }
        content.rot.retain(|(inode, _, _)| reachable.contains(inode));
    }

    /// Whether it has something to do.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.lock().at_it > 0
    }

    /// Forgets everything.
    pub fn wipe(&self) {
        let mut content = self.lock();
        content.image = Image::default();
        content.rot.clear();
    }

    /// What it holds, as a loss of power at its mildest would leave it.
    #[must_use]
    pub fn image(&self) -> Image {
        self.lock().image.clone()
    }

    /// Puts an earlier image back.
    pub fn restore(&self, image: Image) {
        let mut content = self.lock();
        content.image = image;
        content.rot.clear();
    }

    /// What a loss of power would take away of the files in directories of this name that hold more than their first sector:
    /// bytes, or a name. A file that is only being made holds nothing that counts.
    #[must_use]
    pub fn unsynced(&self, directory_name: &str) -> Option<String> {
        let content = self.lock();
        for (path, directory) in &content.image.directories {
            if path.file_name().is_none_or(|name| name != directory_name) {
                continue;
            }
            for (name, number) in &directory.names {
                let Some(inode) = content.image.inodes.get(number) else { continue };
                if inode.cache().iter().skip(SECTOR).all(|byte| *byte == 0) {
                    continue;
                }
                if directory.durable.get(name) != Some(number) {
                    return Some(format!("the name of {}", path.join(name).display()));
                }
                if !inode.is_durable() {
                    return Some(format!("bytes of {}", path.join(name).display()));
                }
            }
        }
        None
    }

    /// Flips a bit of what is stored, for good, in a file whose path contains `part`: anywhere in what was written to any such
    /// file, or in the last written sector of the last one that has more than a header. Gives file and offset.
    pub fn rot(&self, part: &str, last: bool) -> Option<(String, usize)> {
        let mut content = self.lock();
        let content = &mut *content;
        let mut files = Vec::new();
        for (path, directory) in &content.image.directories {
            for (name, number) in &directory.names {
                let path = path.join(name);
                let length = content.image.inodes.get(number).map_or(0, Inode::durable_length);
                if path.to_string_lossy().contains(part) && length > 0 {
                    files.push((path, *number, length));
                }
            }
        }
        // Preallocated files are zero behind their written part; the written part is the interesting one.
        let written =
            |inode: &Inode, length| inode.durable().iter().rposition(|byte| *byte != 0).map_or(length, |at| at + 1);
        if last {
            let inodes = &content.image.inodes;
            files
                .retain(|(_, number, length)| inodes.get(number).is_some_and(|inode| written(inode, *length) > SECTOR));
            files.sort();
            files.drain(..files.len().saturating_sub(1));
        }
        if files.is_empty() {
            return None;
        }
        let (path, number, length) = files.swap_remove(content.draw.place(files.len()));
        let inode = content.image.inodes.get_mut(&number)?;
        let end = written(inode, length);
        let begin = if last { (end - 1) / SECTOR * SECTOR } else { 0 };
        let at = begin + content.draw.place(end - begin);
        let bit = 1 << content.draw.below(8);
        content.rot.insert((number, at, bit));
        inode.rot(at, bit);
        Some((path.to_string_lossy().into_owned(), at))
    }

    /// Flips a bit in the newest snapshot, if there is an older one too. Gives the file.
    pub fn spoil_newest_snapshot(&self) -> Option<String> {
        let mut content = self.lock();
        let content = &mut *content;
        let mut found = Vec::new();
        for (path, directory) in &content.image.directories {
            for (name, number) in &directory.names {
                let position = name.strip_prefix("snap-").and_then(|rest| rest.split_once('-'));
                let number_of = |text: &str| text.parse::<u64>().ok();
                if let Some((term, at)) = position
                    && let (Some(term), Some(at)) = (number_of(term), number_of(at))
                {
                    found.push((at, term, path.join(name), *number));
                }
            }
        }
        found.sort();
        let (_, _, path, number) = found.pop().filter(|_| !found.is_empty())?;
        // Within the header, which has a checksum of its own.
        content.image.inodes.get_mut(&number)?.rot(SECTOR / 4, 1);
        Some(path.to_string_lossy().into_owned())
    }

    /// Gives the files whose path contains `part` a header of another format, durably, as a newer version would have written it.
    /// The places of format and checksum are the same in every format. Gives the first one's name.
    pub fn change_format(&self, part: &str, change: impl Fn(u32) -> u32) -> Option<String> {
        let mut content = self.lock();
        let content = &mut *content;
        let mut first = None;
        for (path, directory) in &mut content.image.directories {
            let mut is_changed = false;
            for (name, number) in &directory.names {
                let path = path.join(name);
                let Some(inode) = content.image.inodes.get_mut(number) else { continue };
                if !path.to_string_lossy().contains(part) || !inode.cache().starts_with(b"MUSTER") {
                    continue;
                }
                inode.change_first_sector(|bytes| {
                    let format = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
                    bytes[8..12].copy_from_slice(&change(format).to_le_bytes());
                    let sum = crc32fast::hash(&bytes[..SECTOR - 4]);
                    bytes[SECTOR - 4..SECTOR].copy_from_slice(&sum.to_le_bytes());
                });
                first.get_or_insert(path.to_string_lossy().into_owned());
                is_changed = true;
            }
            if is_changed {
                directory.sync();
            }
        }
        first
    }

    /// How many bytes its files have.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.lock().image.inodes.values().map(|inode| inode.cache().len() as u64).sum()
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("files are small here")
}

/// Whose process uses a disk.
#[derive(Clone)]
enum Owner {
    Replica(Arc<Life>),
    Agent(Arc<AgentLife>),
}

impl Owner {
    fn is_over(&self) -> bool {
        match self {
            Self::Replica(life) => life.is_over(),
            Self::Agent(life) => life.is_over(),
        }
    }
}

/// A disk as one process uses it.
#[derive(Clone)]
pub struct SimDisk {
    world: Arc<World>,
    store: Arc<Store>,
    owner: Owner,
}

/// An open file.
#[derive(Clone, Debug)]
pub struct SimFile {
    inode: u64,
    path: Arc<Path>,
    /// Its path below the data directory, as events tell it.
    name: Arc<str>,
}

impl SimFile {
    fn new(inode: u64, path: &Path) -> Self {
        Self { inode, path: path.into(), name: name(path) }
    }
}

fn name(path: &Path) -> Arc<str> {
    path.strip_prefix(ROOT).unwrap_or(path).to_string_lossy().as_ref().into()
}

/// What an operation is about.
#[derive(Clone, Copy)]
enum Target<'a> {
    Path(&'a Path),
    File(&'a SimFile),
}

impl<'a> Target<'a> {
    fn path(self) -> &'a Path {
        match self {
            Self::Path(path) => path,
            Self::File(file) => &file.path,
        }
    }

    fn name(self) -> Arc<str> {
        match self {
            Self::Path(path) => name(path),
            Self::File(file) => file.name.clone(),
        }
    }
}

/// What an operation meets.
enum Meets {
    /// It is done.
    Way,
    /// It fails.
    Error(StorageError),
    /// The process dies before it.
    Death(Ending),
}

impl SimDisk {
    /// The disk for a process.
    #[must_use]
    pub fn new(world: Arc<World>, store: Arc<Store>, life: Arc<Life>) -> Self {
        Self { world, store, owner: Owner::Replica(life) }
    }

    /// The disk for an agent's process.
    #[must_use]
    pub fn of_agent(world: Arc<World>, store: Arc<Store>, life: Arc<AgentLife>) -> Self {
        Self { world, store, owner: Owner::Agent(life) }
    }

    /// A process that is gone waits for ever; its tasks are about to be dropped.
    async fn die(&self, ending: Ending) -> ! {
        match &self.owner {
            Owner::Replica(life) => {
                if let Some(beside) = self.world.beside().filter(|_| ending == Ending::PowerLost) {
                    beside.kill(life.replica, ending.clone());
                }
                self.world.kill(life.replica, ending);
            }
            Owner::Agent(life) => agents::kill(&self.world, life.agent, &ending),
        }
        std::future::pending::<()>().await;
        unreachable!("a killed process is never polled")
    }

    fn tell(&self, op: DiskOp, target: Target<'_>, offset: u64, bytes: u64, good: bool) {
        if matches!(op, DiskOp::Open | DiskOp::Length | DiskOp::List | DiskOp::Read) && good {
            return;
        }
        // What an agent's disk does is told by what it keeps.
        if let Owner::Replica(life) = &self.owner {
            self.world.emit(&Event::Disk { replica: life.replica, op, file: target.name(), offset, bytes, good });
        }
    }

    fn springs(content: &mut Content, op: DiskOp, path: &Path, after: bool) -> Option<Ending> {
        let trap = content.trap.as_mut()?;
        if !trap.point.is_at(op, path, after) {
            return None;
        }
        trap.left -= 1;
        if trap.left > 0 {
            return None;
        }
        let Trap { owner, ending, .. } = content.trap.take()?;
        content.sprung.insert(owner);
        Some(ending)
    }

    fn meet(&self, op: DiskOp, path: &Path) -> Meets {
        let mut content = self.store.lock();
        let content = &mut *content;
        if let Some(ending) = Self::springs(content, op, path, false) {
            return Meets::Death(ending);
        }
        let manners = &content.manners;
        let (ppm, full) = match op {
            DiskOp::Read => (manners.read_error_ppm, false),
            DiskOp::Write | DiskOp::SetLength | DiskOp::Create => (manners.write_error_ppm, manners.full),
            DiskOp::Sync => (manners.sync_error_ppm, false),
            DiskOp::Open
            | DiskOp::Length
            | DiskOp::SyncDirectory
            | DiskOp::Rename
            | DiskOp::Remove
            | DiskOp::List
            | DiskOp::MakeDirectory => (0, false),
        };
        let file = || path.to_string_lossy().into_owned();
        if full {
            return Meets::Error(StorageError::Full { file: file(), operation: word(op) });
        }
        if ppm > 0 && content.draw.ppm(ppm) {
            let problem = "Input/output error".into();
            return Meets::Error(StorageError::Io { file: file(), operation: word(op), problem });
        }
        Meets::Way
    }

    /// How long an operation takes, in nanoseconds; 0 is not waited for.
    fn duration(&self, op: DiskOp) -> u64 {
        let mut content = self.store.lock();
        let content = &mut *content;
        let mean = match op {
            DiskOp::Open | DiskOp::Length | DiskOp::List | DiskOp::Read => 0,
            DiskOp::Write
            | DiskOp::SetLength
            | DiskOp::Create
            | DiskOp::Rename
            | DiskOp::Remove
            | DiskOp::MakeDirectory => 8_000,
            DiskOp::Sync | DiskOp::SyncDirectory => 120_000,
        };
        if mean == 0 {
            return if content.manners.slow > 1 { content.draw.around(5_000) * content.manners.slow } else { 0 };
        }
        (mean / 2 + content.draw.around(mean / 2)) * content.manners.slow
    }

    /// Begins an operation: dies, fails or takes its time.
    async fn begin(&self, op: DiskOp, target: Target<'_>) -> Result<(), StorageError> {
        if self.owner.is_over() {
            std::future::pending::<()>().await;
        }
        match self.meet(op, target.path()) {
            Meets::Way => {}
            Meets::Error(error) => {
                self.tell(op, target, 0, 0, false);
                return Err(error);
            }
            Meets::Death(ending) => self.die(ending).await,
        }
        self.wait(op).await;
        Ok(())
    }

    async fn wait(&self, op: DiskOp) {
        let agenda: &Agenda = &self.world.agenda;
        let mut nanos = self.duration(op);
        if nanos > 0 {
            // Who shares the device shares its time.
            if let (Some(beside), Owner::Replica(life)) = (self.world.beside(), &self.owner)
                && beside.is_disk_busy(life.replica)
            {
                nanos *= 2;
            }
            let _at_it = AtIt::new(&self.store);
            agenda.sleep(nanos).await;
        }
        while self.store.lock().manners.stalled {
            agenda.sleep(1_000_000).await;
        }
    }

    /// Ends an operation: tells of it, and dies after it if that is where the trap is.
    async fn end(&self, op: DiskOp, target: Target<'_>, offset: u64, bytes: u64) {
        self.tell(op, target, offset, bytes, true);
        let springs = Self::springs(&mut self.store.lock(), op, target.path(), true);
        if let Some(ending) = springs {
            self.die(ending).await;
        }
    }

    fn gone(path: &Path, operation: &'static str) -> StorageError {
        let problem = "No such file or directory".into();
        StorageError::Io { file: path.to_string_lossy().into_owned(), operation, problem }
    }
}

/// The data directory on every simulated disk.
pub const ROOT: &str = "/muster";

const fn word(op: DiskOp) -> &'static str {
    match op {
        DiskOp::Open => "open",
        DiskOp::Create => "create",
        DiskOp::Length => "measure",
        DiskOp::SetLength => "set the length of",
        DiskOp::Read => "read",
        DiskOp::Write => "write",
        DiskOp::Sync | DiskOp::SyncDirectory => "sync",
        DiskOp::Rename => "rename",
        DiskOp::Remove => "remove",
        DiskOp::List => "list",
        DiskOp::MakeDirectory => "make",
    }
}

fn split(path: &Path) -> (PathBuf, String) {
    let parent = path.parent().map(Path::to_owned).unwrap_or_default();
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    (parent, name)
}

impl Disk for SimDisk {
    type File = SimFile;

    async fn open(&self, path: &Path, _: Access) -> Result<Option<SimFile>, StorageError> {
        self.begin(DiskOp::Open, Target::Path(path)).await?;
        let (parent, name) = split(path);
        let content = self.store.lock();
        let inode = content.image.directories.get(&parent).and_then(|directory| directory.names.get(&name));
        Ok(inode.map(|inode| SimFile::new(*inode, path)))
    }

    async fn create(&self, path: &Path) -> Result<SimFile, StorageError> {
        self.begin(DiskOp::Create, Target::Path(path)).await?;
        let (parent, name) = split(path);
        let number = {
            let mut content = self.store.lock();
            let content = &mut *content;
            let Some(directory) = content.image.directories.get_mut(&parent) else {
                return Err(Self::gone(path, "create"));
            };
            if let Some(inode) = directory.names.get(&name) {
                // Emptied in place; the old bytes may come back with a loss of power.
                let number = *inode;
                if let Some(inode) = content.image.inodes.get_mut(&number) {
                    inode.set_length(0);
                }
                number
            } else {
                let number = content.next_inode;
                content.next_inode += 1;
                directory.change(Change::Set(name, number));
                content.image.inodes.insert(number, Inode::default());
                number
            }
        };
        self.end(DiskOp::Create, Target::Path(path), 0, 0).await;
        Ok(SimFile::new(number, path))
    }

    async fn length(&self, file: &SimFile) -> Result<u64, StorageError> {
        self.begin(DiskOp::Length, Target::File(file)).await?;
        let content = self.store.lock();
        Ok(content.image.inodes.get(&file.inode).map_or(0, |inode| inode.cache().len() as u64))
    }

    async fn set_length(&self, file: &SimFile, length: u64) -> Result<(), StorageError> {
        self.begin(DiskOp::SetLength, Target::File(file)).await?;
        if let Some(inode) = self.store.lock().image.inodes.get_mut(&file.inode) {
            inode.set_length(index(length));
        }
        self.end(DiskOp::SetLength, Target::File(file), length, 0).await;
        Ok(())
    }

    async fn read(&self, file: &SimFile, offset: u64, bytes: usize) -> Result<Vec<u8>, StorageError> {
        self.begin(DiskOp::Read, Target::File(file)).await?;
        let content = self.store.lock();
        let Some(inode) = content.image.inodes.get(&file.inode) else { return Ok(Vec::new()) };
        let from = index(offset).min(inode.cache().len());
        let to = (from + bytes).min(inode.cache().len());
        Ok(inode.cache()[from..to].to_vec())
    }

    async fn write(&self, file: &SimFile, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        let op = DiskOp::Write;
        if self.owner.is_over() {
            std::future::pending::<()>().await;
        }
        match self.meet(op, &file.path) {
            Meets::Way => {}
            Meets::Error(error) => {
                self.tell(op, Target::File(file), offset, bytes.len() as u64, false);
                return Err(error);
            }
            Meets::Death(ending) => self.die(ending).await,
        }
        let number = {
            let mut content = self.store.lock();
            content.next_write += 1;
            let number = content.next_write;
            content.under_way.insert(number, (file.inode, offset, bytes.to_vec()));
            number
        };
        self.wait(op).await;
        if !self.store.land(number) {
            // Whoever killed the process has dealt with the write.
            return std::future::pending().await;
        }
        self.end(op, Target::File(file), offset, bytes.len() as u64).await;
        Ok(())
    }

    async fn sync(&self, file: &SimFile) -> Result<(), StorageError> {
        match self.begin(DiskOp::Sync, Target::File(file)).await {
            Ok(()) => {}
            Err(error) => {
                let mut content = self.store.lock();
                let content = &mut *content;
                if let Some(inode) = content.image.inodes.get_mut(&file.inode) {
                    inode.fail_sync(&mut content.draw);
                }
                return Err(error);
            }
        }
        if let Some(inode) = self.store.lock().image.inodes.get_mut(&file.inode) {
            inode.sync();
        }
        self.end(DiskOp::Sync, Target::File(file), 0, 0).await;
        Ok(())
    }

    async fn sync_directory(&self, path: &Path) -> Result<(), StorageError> {
        self.begin(DiskOp::SyncDirectory, Target::Path(path)).await?;
        {
            let mut content = self.store.lock();
            if let Some(directory) = content.image.directories.get_mut(path) {
                directory.sync();
            }
            for (child, directory) in &mut content.image.directories {
                if child.parent() == Some(path) {
                    directory.anchored = true;
                }
            }
        }
        self.end(DiskOp::SyncDirectory, Target::Path(path), 0, 0).await;
        Ok(())
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<(), StorageError> {
        self.begin(DiskOp::Rename, Target::Path(from)).await?;
        {
            let mut content = self.store.lock();
            let ((old_parent, old), (new_parent, new)) = (split(from), split(to));
            let directories = &mut content.image.directories;
            let found = directories.get(&old_parent).and_then(|directory| directory.names.get(&old)).copied();
            let (Some(inode), true) = (found, directories.contains_key(&new_parent)) else {
                return Err(Self::gone(from, "rename"));
            };
            if let (true, Some(directory)) = (old_parent == new_parent, directories.get_mut(&old_parent)) {
                directory.change(Change::Move(old, new));
            } else {
                if let Some(directory) = directories.get_mut(&new_parent) {
                    directory.change(Change::Set(new, inode));
                }
                if let Some(directory) = directories.get_mut(&old_parent) {
                    directory.change(Change::Unset(old));
                }
            }
        }
        self.end(DiskOp::Rename, Target::Path(from), 0, 0).await;
        Ok(())
    }

    async fn remove(&self, path: &Path) -> Result<(), StorageError> {
        self.begin(DiskOp::Remove, Target::Path(path)).await?;
        {
            let (parent, name) = split(path);
            let mut content = self.store.lock();
            match content.image.directories.get_mut(&parent) {
                Some(directory) if directory.names.contains_key(&name) => directory.change(Change::Unset(name)),
                Some(_) | None => return Err(Self::gone(path, "remove")),
            }
        }
        self.end(DiskOp::Remove, Target::Path(path), 0, 0).await;
        Ok(())
    }

    async fn list(&self, path: &Path) -> Result<Option<Vec<String>>, StorageError> {
        self.begin(DiskOp::List, Target::Path(path)).await?;
        let content = self.store.lock();
        let Some(directory) = content.image.directories.get(path) else { return Ok(None) };
        let children = content.image.directories.keys().filter(|child| child.parent() == Some(path));
        let mut names: Vec<String> = children.map(|child| split(child).1).collect();
        names.extend(directory.names.keys().cloned());
        names.sort_unstable();
        Ok(Some(names))
    }

    async fn make_directory(&self, path: &Path) -> Result<(), StorageError> {
        self.begin(DiskOp::MakeDirectory, Target::Path(path)).await?;
        self.store.lock().image.directories.entry(path.to_owned()).or_default();
        self.end(DiskOp::MakeDirectory, Target::Path(path), 0, 0).await;
        Ok(())
    }

    fn allocate(
        self,
        path: PathBuf,
        start: Vec<u8>,
        length: u64,
    ) -> impl Future<Output = Result<SimFile, StorageError>> + Send + 'static {
        // Beside whatever else the process does; dropped with whoever waits for it, or with the process.
        let task = madsim::task::spawn(allocate_in_steps(self, path, start, length)).cancel_on_drop();
        async move {
            match task.await {
                Some(made) => made,
                None => std::future::pending().await,
            }
        }
    }
}
