//! The kernel's table of mounts, `/proc/self/mountinfo`, and how a line of it is spelled as a value.

use muster_core::agent::value::mount::{ALSO_AT, Mount, unescaped};
use std::path::{Path, PathBuf};

/// At most so many other places of a directory are named.
const PLACES_MAX: usize = 8;

/// One mount.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) id: u64,
    pub(super) parent: u64,
    /// `major:minor` of the file system.
    pub(super) device: String,
    /// Which directory of the file system is visible here.
    pub(super) root: PathBuf,
    pub(super) at: PathBuf,
    options: Vec<String>,
    pub(super) fstype: String,
    source: String,
    super_options: Vec<String>,
}

/// All mounts of this process's mount namespace, later ones above earlier ones.
pub(super) struct Table(pub(super) Vec<Entry>);

impl Table {
    pub(super) fn read() -> Result<Self, String> {
        let text = std::fs::read("/proc/self/mountinfo").map_err(|error| format!("/proc/self/mountinfo: {error}"))?;
        Ok(Self::parse(&String::from_utf8_lossy(&text)))
    }

    pub(super) fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(entry).collect())
    }

    /// What is visible at a real path: the mount on top there.
    pub(super) fn at(&self, real: &Path) -> Option<&Entry> {
        self.0.iter().rfind(|entry| entry.at == real)
    }

    /// This mount and all that are mounted below it.
    pub(super) fn tree(&self, top: u64) -> Vec<&Entry> {
        let mut ids = vec![top];
        let mut from = 0;
        while from < ids.len() {
            let above = ids[from];
            ids.extend(self.0.iter().filter(|entry| entry.parent == above && entry.id != above).map(|entry| entry.id));
            from += 1;
        }
        self.0.iter().filter(|entry| ids.contains(&entry.id)).collect()
    }

    /// A mount as a value. `inside` spells a real path as keys do, if it lies in the root.
    pub(super) fn value(&self, entry: &Entry, inside: impl Fn(&Path) -> Option<String>) -> Mount {
        let mut places = self.other_places(entry, inside);
        let part = entry.root != Path::new("/") && !is_subvolume(entry);
        let (source, fstype) = if part && !places.is_empty() {
            (places.remove(0), "none".to_owned())
        } else {
            (entry.source.clone(), entry.fstype.clone())
        };
        let mut options = entry.all_options();
        if fstype == "none" {
            options.retain(|option| is_of_the_mount(option));
            options.push("bind".to_owned());
        }
        options.extend(places.into_iter().take(PLACES_MAX).map(|place| format!("{ALSO_AT}{place}")));
        options.sort_unstable();
        options.dedup();
        Mount { source, fstype, options }
    }

    /// Where else the directory at a mount is visible, by the mounts of the same file system.
    fn other_places(&self, entry: &Entry, inside: impl Fn(&Path) -> Option<String>) -> Vec<String> {
        let others = self.0.iter().filter(|other| other.device == entry.device && other.id != entry.id);
        let place = |other: &Entry| inside(&other.at.join(entry.root.strip_prefix(&other.root).ok()?));
        let mut places: Vec<String> = others.filter_map(place).map(|place| trimmed(&place).to_owned()).collect();
        places.sort_unstable();
        places.dedup();
        places
    }
}

fn trimmed(path: &str) -> &str {
    if path.len() > 1 { path.trim_end_matches('/') } else { path }
}

impl Entry {
    fn all_options(&self) -> Vec<String> {
        let read_only = self.options.iter().chain(&self.super_options).any(|option| option == "ro");
        let both =
            self.options.iter().chain(&self.super_options).filter(|option| !matches!(option.as_str(), "ro" | "rw"));
        both.cloned().chain([if read_only { "ro" } else { "rw" }.to_owned()]).collect()
    }
}

/// Options that belong to one place where a file system is visible, rather than to the file system.
pub(super) fn is_of_the_mount(option: &str) -> bool {
    matches!(
        option,
        "ro" | "rw" | "nosuid" | "nodev" | "noexec" | "noatime" | "nodiratime" | "relatime" | "nosymfollow"
    )
}

/// A btrfs subvolume shows a root of its own without being a bind mount.
fn is_subvolume(entry: &Entry) -> bool {
    let root = entry.root.to_str().unwrap_or_default();
    entry.super_options.iter().any(|option| option.strip_prefix("subvol=") == Some(root))
}

fn entry(line: &str) -> Option<Entry> {
    let (place, system) = line.split_once(" - ")?;
    let mut place = place.split(' ');
    let mut system = system.split(' ');
    let path = |text: &str| unescaped(text).map(PathBuf::from);
    // A comma escaped inside an option stays escaped until the options are apart.
    let list = |text: &str| -> Vec<String> {
        text.split(',')
            .filter(|option| !option.is_empty())
            .map(|option| unescaped(option).unwrap_or_else(|| option.to_owned()))
            .collect()
    };
    Some(Entry {
        id: place.next()?.parse().ok()?,
        parent: place.next()?.parse().ok()?,
        device: place.next()?.to_owned(),
        root: path(place.next()?)?,
        at: path(place.next()?)?,
        options: list(place.next()?),
        fstype: unescaped(system.next()?)?,
        source: unescaped(system.next()?)?,
        super_options: list(system.next().unwrap_or_default()),
    })
}
