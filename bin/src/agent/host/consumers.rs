//! Who uses what a key stands for, read from `/proc`.
//!
//! | key | consumers |
//! |---|---|
//! | file | who has it open, mapped, as program, working directory or root |
//! | mount | who has anything below it open, mapped, or as program, working directory or root; mounts below it included |
//! | service | who is connected to a socket it listens at; for a peer on another machine the service's own process is named |
//! | package | who runs or maps one of its files |
//! | gpu | who has its device open |
//!
//! A file is known by device and inode and a mount by the kernel's number for it, not by how a process spells the path. The agent
//! itself is no consumer, nor are processes of other mount namespaces: they have mounts of their own.

use super::machine::Machine;
use super::mountinfo::Table;
use super::packages;
use super::processes;
use muster_core::agent::host::Consumer;
use muster_core::agent::value;
use muster_core::agent::value::gpu::Which;
use muster_core::journal::key::{Dimension, Key};
use rustix::fs::{AtFlags, CWD, StatxFlags, makedev, statx};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A file: its device and inode.
type Inode = (u64, u64);

/// What is looked for in all processes at once.
#[derive(Default)]
struct Sought {
    files: BTreeMap<Inode, Vec<Key>>,
    /// By the kernel's number of the mount, and by device for what is mapped.
    mounts: BTreeMap<u64, Vec<Key>>,
    mapped: Vec<(u64, PathBuf, Key)>,
    /// Paths of devices.
    devices: Vec<(String, Key)>,
}

pub(super) fn of(machine: &Machine, keys: &[Key]) -> Vec<Consumer> {
    let mut sought = Sought::default();
    let mut found = BTreeSet::new();
    let table = Table::read().ok();
    for key in keys {
        match key.dimension() {
            Some(Dimension::Files) => sought.file(machine, key),
            Some(Dimension::Mounts) => sought.mount(machine, table.as_ref(), key),
            Some(Dimension::Packages) => {
                for path in packages::files(&machine.root, value::name(key)) {
                    sought.path(&path, key);
                }
            }
            Some(Dimension::Gpu) => {
                let devices = match value::gpu::split(value::name(key)) {
                    Ok((Which::One(number), _)) => {
                        vec![format!("/dev/nvidia{number}"), format!("/dev/dri/card{number}")]
                    }
                    Ok((Which::All, _)) => vec!["/dev/nvidia".to_owned(), "/dev/dri/".to_owned()],
                    Err(_) => Vec::new(),
                };
                sought.devices.extend(devices.into_iter().map(|device| (device, key.clone())));
            }
            Some(Dimension::Services) => found.extend(of_service(machine, key)),
            Some(Dimension::Kernel | Dimension::Network) | None => {}
        }
    }
    if !sought.is_empty() {
        let own = std::process::id();
        for pid in processes::all().into_iter().filter(|pid| *pid != own) {
            for (key, path) in sought.in_process(pid) {
                found.insert(consumer(key, pid, &path));
            }
        }
    }
    found.into_iter().collect()
}

fn consumer(key: Key, pid: u32, path: &str) -> Consumer {
    Consumer { key, pid, command: processes::command(pid).into(), path: path.into() }
}

impl Sought {
    fn is_empty(&self) -> bool {
        self.files.is_empty() && self.mounts.is_empty() && self.devices.is_empty()
    }

    fn file(&mut self, machine: &Machine, key: &Key) {
        let Ok(path) = value::path(key) else { return };
        let Ok(place) = machine.root.place(&path, false) else { return };
        let Some(look) = look_at(&place.dir, &place.name, AtFlags::SYMLINK_NOFOLLOW) else { return };
        self.files.entry(look.inode).or_default().push(key.clone());
    }

    fn path(&mut self, path: &Path, key: &Key) {
        if let Some(look) = look_at(CWD, path, AtFlags::SYMLINK_NOFOLLOW).filter(|look| look.is_file) {
            self.files.entry(look.inode).or_default().push(key.clone());
        }
    }

    fn mount(&mut self, machine: &Machine, table: Option<&Table>, key: &Key) {
        let Ok(path) = value::path(key) else { return };
        let Ok(place) = machine.root.place(&path, false) else { return };
        let Some((table, entry)) = table.and_then(|table| Some((table, table.at(&place.real)?))) else { return };
        for entry in table.tree(entry.id) {
            self.mounts.entry(entry.id).or_default().push(key.clone());
            let device = entry
                .device
                .split_once(':')
                .and_then(|(major, minor)| Some(makedev(major.parse().ok()?, minor.parse().ok()?)));
            if let Some(device) = device {
                self.mapped.push((device, entry.at.clone(), key.clone()));
            }
        }
    }

    /// What a process uses of it.
    fn in_process(&self, pid: u32) -> Vec<(Key, String)> {
        let mut uses = Vec::new();
        let mut links: Vec<String> = ["cwd", "root", "exe"].iter().map(|link| format!("/proc/{pid}/{link}")).collect();
        let listing = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        links.extend(listing.filter_map(|entry| Some(format!("/proc/{pid}/fd/{}", entry.file_name().to_str()?))));
        for link in links {
            let Some(look) = look_at(CWD, &link, AtFlags::empty()) else { continue };
            let by_file = self.files.get(&look.inode).into_iter().flatten();
            let by_mount = self.mounts.get(&look.mount).into_iter().flatten();
            let keys: Vec<&Key> = by_file.chain(by_mount).collect();
            if keys.is_empty() && self.devices.is_empty() {
                continue;
            }
            let path = std::fs::read_link(&link).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
            let by_device = self.devices.iter().filter(|(device, _)| {
                path.strip_prefix(device.as_str()).is_some_and(|rest| {
                    rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
                        && (rest.is_empty() || !device.ends_with(|c: char| c.is_ascii_digit()))
                })
            });
            uses.extend(keys.into_iter().chain(by_device.map(|(_, key)| key)).map(|key| (key.clone(), path.clone())));
        }
        uses.extend(self.mapped_by(pid));
        uses
    }

    fn mapped_by(&self, pid: u32) -> Vec<(Key, String)> {
        let mut uses = Vec::new();
        let text = std::fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        for line in text.lines() {
            // range, rights, offset, device, inode, path
            let mut fields = line.split_ascii_whitespace();
            let (Some(device), Some(inode)) = (fields.nth(3), fields.next()) else { continue };
            let Some(path) = line.find('/').map(|at| &line[at..]) else { continue };
            let Some(inode) = inode.parse::<u64>().ok().filter(|inode| *inode != 0) else { continue };
            let number = |text: &str| u32::from_str_radix(text, 16).ok();
            let Some(device) = device.split_once(':').and_then(|(a, b)| Some(makedev(number(a)?, number(b)?))) else {
                continue;
            };
            uses.extend(
                self.files.get(&(device, inode)).into_iter().flatten().map(|key| (key.clone(), path.to_owned())),
            );
            let below = self.mapped.iter().filter(|(known, at, _)| *known == device && Path::new(path).starts_with(at));
            uses.extend(below.map(|(_, _, key)| (key.clone(), path.to_owned())));
        }
        uses
    }
}

struct Look {
    inode: Inode,
    mount: u64,
    is_file: bool,
}

/// What lies there, without asking a server that may not answer.
fn look_at(dir: impl rustix::fd::AsFd, path: impl rustix::path::Arg, flags: AtFlags) -> Option<Look> {
    let flags = flags | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let stat = statx(dir, path, flags, StatxFlags::INO | StatxFlags::TYPE | StatxFlags::MNT_ID).ok()?;
    Some(Look {
        inode: (makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino),
        mount: stat.stx_mnt_id,
        is_file: u32::from(stat.stx_mode) & 0o170_000 == 0o100_000,
    })
}

/// One line of a table of TCP sockets.
struct Socket {
    local: String,
    remote: String,
    listens: bool,
    connected: bool,
    inode: u64,
}

fn sockets() -> Vec<Socket> {
    let mut all = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        all.extend(text.lines().skip(1).filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            Some(Socket {
                local: (*fields.get(1)?).to_owned(),
                remote: (*fields.get(2)?).to_owned(),
                listens: *fields.get(3)? == "0A",
                connected: *fields.get(3)? == "01",
                inode: fields.get(9)?.parse().ok()?,
            })
        }));
    }
    all
}

/// The inodes of a process's sockets.
fn sockets_of(pid: u32) -> BTreeSet<u64> {
    let listing = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = listing.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()).collect()
}

fn of_service(machine: &Machine, key: &Key) -> Vec<Consumer> {
    let members = machine.services.processes(value::name(key));
    let own: BTreeMap<u32, BTreeSet<u64>> = members.iter().map(|pid| (*pid, sockets_of(*pid))).collect();
    let owner = |inode: u64| own.iter().find(|(_, inodes)| inodes.contains(&inode)).map(|(pid, _)| *pid);
    let all = sockets();
    let port = |address: &str| address.rsplit_once(':').map(|(_, port)| port.to_owned());
    let ports: BTreeSet<String> = all
        .iter()
        .filter(|socket| socket.listens && owner(socket.inode).is_some())
        .filter_map(|socket| port(&socket.local))
        .collect();
    let served: Vec<(&Socket, u32)> = all
        .iter()
        .filter(|socket| socket.connected && port(&socket.local).is_some_and(|port| ports.contains(&port)))
        .filter_map(|socket| Some((socket, owner(socket.inode)?)))
        .collect();
    if served.is_empty() {
        return Vec::new();
    }
    let mut owners = BTreeMap::new();
    for pid in processes::all().into_iter().filter(|pid| !members.contains(pid) && *pid != std::process::id()) {
        owners.extend(sockets_of(pid).into_iter().map(|inode| (inode, pid)));
    }
    let within = |socket: &Socket| members.iter().any(|pid| own[pid].contains(&socket.inode));
    let mut found = Vec::new();
    for (socket, server) in served {
        let peer = all.iter().find(|other| other.local == socket.remote && other.remote == socket.local);
        if peer.is_some_and(within) {
            continue;
        }
        let path = format!("a connection from {} to {}", readable(&socket.remote), readable(&socket.local));
        let pid = peer.and_then(|peer| owners.get(&peer.inode).copied());
        found.push(consumer(key.clone(), pid.unwrap_or(server), &path));
    }
    found
}

/// An address of the kernel's tables as people write it.
fn readable(address: &str) -> String {
    let parse = || {
        let (host, port) = address.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let words: Option<Vec<u8>> = (0..host.len() / 8)
            .map(|i| u32::from_str_radix(&host[i * 8..i * 8 + 8], 16).ok().map(u32::to_ne_bytes))
            .collect::<Option<Vec<_>>>()
            .map(|words| words.concat());
        let words = words?;
        let ip = match words.len() {
            4 => std::net::IpAddr::from(<[u8; 4]>::try_from(words).ok()?),
            16 => std::net::IpAddr::from(<[u8; 16]>::try_from(words).ok()?).to_canonical(),
            _ => return None,
        };
        Some(std::net::SocketAddr::new(ip, port).to_string())
    };
    parse().unwrap_or_else(|| address.to_owned())
}
