//! Which watched keys may have changed.
//!
//! | dimension | the kernel reports | compared once a second |
//! |---|---|---|
//! | files | inotify on the directories they lie in | inode, size and change time of each |
//! | kernel | - | the text of each |
//! | mounts | the mount table becomes readable | the text of the table |
//! | services | a process ended | systemd's own traces of a unit |
//! | network | route netlink | - |
//! | packages | - | the package database's file |
//! | gpu | - | every minute what the driver says |
//!
//! Comparing is cheap on purpose: nothing is read whose trace is unchanged, and every directory is reached once a round however
//! many files in it are watched.

use super::machine::Machine;
use super::{files, gpus, kernel, links, netlink, packages};
use muster_core::agent::host::Observed;
use muster_core::agent::value;
use muster_core::journal::key::{Dimension, Key};
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{Mode, OFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

/// How often what the kernel does not report is compared. A round and the agent's look at what it names fit into a second.
const ROUND: Duration = Duration::from_millis(900);
/// How often a GPU's driver is asked.
const SLOW_ROUND: Duration = Duration::from_mins(1);

pub(super) struct Watcher {
    keys: BTreeSet<Key>,
    inotify: OwnedFd,
    /// By the directory's path inside the root: what is watched in it.
    directories: BTreeMap<String, Directory>,
    /// inotify's number of a directory, and the directories that are reached under it.
    numbers: BTreeMap<i32, BTreeSet<String>>,
    parameters: BTreeMap<Key, Observed>,
    mounts: Option<Mounts>,
    services: BTreeMap<String, Option<String>>,
    network: Option<OwnedFd>,
    links: BTreeMap<Key, Observed>,
    packages: Option<String>,
    gpus: BTreeMap<Key, Observed>,
    next: Option<Instant>,
    next_slow: Option<Instant>,
}

#[derive(Default)]
struct Directory {
    names: BTreeMap<String, (Key, Option<files::Trace>)>,
    /// inotify's number, while the directory is there.
    number: Option<i32>,
    /// Whether its path leads anywhere.
    there: bool,
}

struct Mounts {
    file: File,
    text: Vec<u8>,
}

impl Watcher {
    pub(super) fn new() -> Result<Self, String> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(|error| format!("no inotify: {error}"))?;
        Ok(Self {
            keys: BTreeSet::new(),
            inotify,
            directories: BTreeMap::new(),
            numbers: BTreeMap::new(),
            parameters: BTreeMap::new(),
            mounts: None,
            services: BTreeMap::new(),
            network: None,
            links: BTreeMap::new(),
            packages: None,
            gpus: BTreeMap::new(),
            next: None,
            next_slow: None,
        })
    }

    /// Watches these keys and no others. Those that are new are named at once: they may have changed before.
    pub(super) fn watch(&mut self, machine: &mut Machine, keys: Vec<Key>) -> Vec<Key> {
        let keys: BTreeSet<Key> = keys.into_iter().collect();
        let new: Vec<Key> = keys.difference(&self.keys).cloned().collect();
        let gone: Vec<Key> = self.keys.difference(&keys).cloned().collect();
        for key in &gone {
            self.forget(key);
        }
        for key in &new {
            self.begin(machine, key);
        }
        self.keys = keys;
        self.forget_empty();
        let dimensions: BTreeSet<Dimension> = self.keys.iter().filter_map(Key::dimension).collect();
        let has = |dimension| dimensions.contains(&dimension);
        if has(Dimension::Mounts) {
            self.mounts = self.mounts.take().or_else(Mounts::open);
        } else {
            self.mounts = None;
        }
        if has(Dimension::Network) && !machine.root.is_confined() {
            self.network = self.network.take().or_else(|| netlink::listen().ok());
        } else {
            self.network = None;
        }
        let mut changed = new;
        if has(Dimension::Packages) {
            changed.extend(self.look_at_packages(machine));
        } else {
            self.packages = None;
        }
        let now = Instant::now();
        self.next = (!self.keys.is_empty()).then_some(now + ROUND);
        self.next_slow = has(Dimension::Gpu).then_some(now + SLOW_ROUND);
        // From here on every change is seen: the traces are older than what will be observed.
        changed.extend(self.look_at_directories(machine));
        changed.extend(self.look_at_parameters(machine));
        changed.extend(self.look_at_links(machine));
        changed.extend(self.look_at_gpus(machine));
        changed
    }

    fn begin(&mut self, machine: &Machine, key: &Key) {
        match key.dimension() {
            Some(Dimension::Files) => {
                if let Ok(path) = value::path(key)
                    && let Some((above, name)) = path.rsplit_once('/')
                {
                    let directory = self.directories.entry(above.to_owned()).or_default();
                    directory.names.insert(name.to_owned(), (key.clone(), None));
                }
            }
            Some(Dimension::Kernel) => drop(self.parameters.insert(key.clone(), Observed::Absent)),
            Some(Dimension::Services) => {
                let name = value::name(key);
                self.services.insert(name.to_owned(), machine.services.trace(name));
            }
            Some(Dimension::Network) => drop(self.links.insert(key.clone(), Observed::Absent)),
            Some(Dimension::Gpu) => drop(self.gpus.insert(key.clone(), Observed::Absent)),
            Some(Dimension::Mounts | Dimension::Packages) | None => {}
        }
    }

    fn forget(&mut self, key: &Key) {
        self.parameters.remove(key);
        self.links.remove(key);
        self.gpus.remove(key);
        match key.dimension() {
            Some(Dimension::Services) => drop(self.services.remove(value::name(key))),
            Some(Dimension::Files) => {
                if let Ok(path) = value::path(key)
                    && let Some((above, name)) = path.rsplit_once('/')
                    && let Some(directory) = self.directories.get_mut(above)
                {
                    directory.names.remove(name);
                }
            }
            _ => {}
        }
    }

    fn forget_empty(&mut self) {
        let empty: Vec<String> = self
            .directories
            .iter()
            .filter(|(_, directory)| directory.names.is_empty())
            .map(|(path, _)| path.clone())
            .collect();
        for path in empty {
            if let Some(number) = self.directories.remove(&path).and_then(|directory| directory.number) {
                self.leave(number, &path);
            }
        }
    }

    /// One directory less is reached under this number.
    fn leave(&mut self, number: i32, path: &str) {
        if let Some(paths) = self.numbers.get_mut(&number) {
            paths.remove(path);
            if paths.is_empty() {
                self.numbers.remove(&number);
                let _ = inotify::remove_watch(&self.inotify, number);
            }
        }
    }

    /// What wakes the thread.
    pub(super) fn descriptors(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let mut all = vec![(self.inotify.as_fd(), PollFlags::IN)];
        all.extend(self.mounts.as_ref().map(|mounts| (mounts.file.as_fd(), PollFlags::PRI)));
        all.extend(self.network.as_ref().map(|socket| (socket.as_fd(), PollFlags::IN)));
        all
    }

    /// When to look even if nothing is reported.
    pub(super) fn due(&self) -> Option<Instant> {
        [self.next, self.next_slow].into_iter().flatten().min()
    }

    /// The watched keys of services that were touched.
    pub(super) fn of_services(&self, names: &[String]) -> Vec<Key> {
        let watched = |name: &String| Key::new(&format!("{}:{name}", Dimension::Services.word())).ok();
        names.iter().filter_map(watched).filter(|key| self.keys.contains(key)).collect()
    }

    /// The keys that may have changed since the last look.
    pub(super) fn look(&mut self, machine: &mut Machine, now: Instant) -> Vec<Key> {
        let mut changed = self.read_inotify();
        if let Some(mounts) = &mut self.mounts
            && mounts.reported()
            && mounts.differs()
        {
            changed.extend(self.all_of(Dimension::Mounts));
        }
        if self.network.as_ref().is_some_and(netlink::heard) {
            changed.extend(self.look_at_links(machine));
        }
        if self.next.is_some_and(|at| at <= now) {
            self.next = Some(now + ROUND);
            changed.extend(self.look_at_directories(machine));
            changed.extend(self.look_at_parameters(machine));
            if self.mounts.as_mut().is_some_and(Mounts::differs) {
                changed.extend(self.all_of(Dimension::Mounts));
            }
            changed.extend(self.look_at_services(machine));
            changed.extend(self.look_at_packages(machine));
        }
        if self.next_slow.is_some_and(|at| at <= now) {
            self.next_slow = Some(now + SLOW_ROUND);
            changed.extend(self.look_at_gpus(machine));
        }
        changed
    }

    fn all_of(&self, dimension: Dimension) -> Vec<Key> {
        self.keys.iter().filter(|key| key.dimension() == Some(dimension)).cloned().collect()
    }

    fn read_inotify(&mut self) -> Vec<Key> {
        let mut changed = Vec::new();
        let mut moved = Vec::new();
        let mut buffer = [MaybeUninit::<u8>::uninit(); 16 * 1024];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                changed.extend(
                    self.directories
                        .values()
                        .flat_map(|directory| directory.names.values().map(|(key, _)| key.clone())),
                );
                continue;
            }
            let lost = ReadFlags::IGNORED | ReadFlags::MOVE_SELF | ReadFlags::DELETE_SELF | ReadFlags::UNMOUNT;
            if event.events().intersects(lost) {
                moved.push(event.wd());
            }
            let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
            for path in self.numbers.get(&event.wd()).into_iter().flatten() {
                let Some(directory) = self.directories.get(path) else { continue };
                match &name {
                    Some(name) => changed.extend(directory.names.get(name).map(|(key, _)| key.clone())),
                    None => changed.extend(directory.names.values().map(|(key, _)| key.clone())),
                }
            }
        }
        for number in moved {
            // The next round finds the directory again, or another in its place.
            for path in self.numbers.remove(&number).into_iter().flatten() {
                if let Some(directory) = self.directories.get_mut(&path) {
                    directory.number = None;
                }
            }
            let _ = inotify::remove_watch(&self.inotify, number);
        }
        changed
    }

    /// Compares the traces of all watched files, reaching each directory once.
    fn look_at_directories(&mut self, machine: &Machine) -> Vec<Key> {
        let mut changed = Vec::new();
        let mut left = Vec::new();
        for (path, directory) in &mut self.directories {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let Ok(dir) = machine.root.open_at(path, flags, Mode::empty()) else {
                if directory.there {
                    changed.extend(directory.names.values().map(|(key, _)| key.clone()));
                }
                directory.there = false;
                for (_, trace) in directory.names.values_mut() {
                    *trace = None;
                }
                left.extend(directory.number.take().map(|number| (number, path.clone())));
                continue;
            };
            directory.there = true;
            if directory.number.is_none() {
                let events = WatchFlags::ATTRIB
                    | WatchFlags::CLOSE_WRITE
                    | WatchFlags::MODIFY
                    | WatchFlags::CREATE
                    | WatchFlags::DELETE
                    | WatchFlags::MOVE
                    | WatchFlags::DELETE_SELF
                    | WatchFlags::MOVE_SELF;
                // Without one (their number is bounded) the round still sees every change.
                directory.number = inotify::add_watch(&self.inotify, super::root::proc_path(&dir), events).ok();
                if let Some(number) = directory.number {
                    self.numbers.entry(number).or_default().insert(path.clone());
                }
            }
            for (name, (key, trace)) in &mut directory.names {
                let now = files::trace(&dir, name);
                if now != *trace {
                    *trace = now;
                    changed.push(key.clone());
                }
            }
        }
        for (number, path) in left {
            self.leave(number, &path);
        }
        changed
    }

    fn look_at_parameters(&mut self, machine: &Machine) -> Vec<Key> {
        differing(&mut self.parameters, |key| kernel::observe(&machine.root, key))
    }

    fn look_at_links(&mut self, machine: &Machine) -> Vec<Key> {
        if self.links.is_empty() {
            return Vec::new();
        }
        let network = links::read(&machine.root);
        differing(&mut self.links, |key| links::observe(&network, value::name(key)))
    }

    fn look_at_gpus(&mut self, machine: &Machine) -> Vec<Key> {
        if self.gpus.is_empty() {
            return Vec::new();
        }
        let gpus = gpus::read(&machine.root);
        differing(&mut self.gpus, |key| gpus::observe(&gpus, value::name(key)))
    }

    fn look_at_packages(&mut self, machine: &Machine) -> Vec<Key> {
        if !self.keys.iter().any(|key| key.dimension() == Some(Dimension::Packages)) {
            return Vec::new();
        }
        let trace = packages::trace(&machine.root);
        let before = self.packages.replace(trace);
        if before == self.packages { Vec::new() } else { self.all_of(Dimension::Packages) }
    }

    fn look_at_services(&mut self, machine: &Machine) -> Vec<Key> {
        let mut touched = Vec::new();
        for (name, known) in &mut self.services {
            let trace = machine.services.trace(name);
            if trace != *known {
                *known = trace;
                touched.push(name.clone());
            }
        }
        self.of_services(&touched)
    }
}

fn differing(known: &mut BTreeMap<Key, Observed>, look: impl Fn(&Key) -> Observed) -> Vec<Key> {
    let mut changed = Vec::new();
    for (key, was) in known {
        let now = look(key);
        if now != *was {
            *was = now;
            changed.push(key.clone());
        }
    }
    changed
}

impl Mounts {
    fn open() -> Option<Self> {
        let mut mounts = Self { file: File::open("/proc/self/mountinfo").ok()?, text: Vec::new() };
        mounts.differs();
        Some(mounts)
    }

    /// Whether the kernel says that the table changed.
    fn reported(&self) -> bool {
        let mut fds = [rustix::event::PollFd::new(&self.file, PollFlags::PRI)];
        let none = rustix::event::Timespec::default();
        matches!(rustix::event::poll(&mut fds, Some(&none)), Ok(1))
    }

    fn differs(&mut self) -> bool {
        let mut text = Vec::with_capacity(self.text.len() + 1024);
        let read = self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.read_to_end(&mut text));
        let differs = read.is_ok() && text != self.text;
        self.text = text;
        differs
    }
}
