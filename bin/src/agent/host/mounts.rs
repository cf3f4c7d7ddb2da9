//! What is mounted where.
//!
//! A file system is built detached (`fsopen`, `fsconfig`, `fsmount`), where a wrong option or a missing device fails without a
//! trace and the kernel says why, and attached when it is whole; one that is in its place already is reconfigured. What is
//! there in its way is unmounted in between, and only if nobody uses it. File systems whose tools have to talk to a server
//! first (`/sbin/mount.TYPE`) go through mount(8).
//!
//! The mount point is made if it is missing, and stays when the mount goes.

use super::command;
use super::mountinfo::{Entry, Table};
use super::root::{Lost, Place, Root, proc_path};
use muster_core::agent::host::Observed;
use muster_core::agent::value::mount::{GENERAL, Mount};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, mkdirat, openat, statat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_remount, move_mount, open_tree,
    unmount,
};
use std::path::Path;

/// What is mounted at a path.
pub(super) fn observe(root: &Root, table: &Result<Table, String>, path: &str) -> Observed {
    let table = match table {
        Ok(table) => table,
        Err(why) => return Observed::Unseen(why.as_str().into()),
    };
    let place = match root.place(path, false) {
        Ok(place) => place,
        Err(Lost::Missing(_)) => return Observed::Absent,
        Err(Lost::Refused(why)) => return Observed::Unseen(why.into()),
    };
    match table.at(&place.real) {
        None => Observed::Absent,
        Some(entry) => Observed::Value(table.value(entry, |real| root.inside(real)).to_string().into()),
    }
}

/// Whether something could be mounted here, as far as it can be told beforehand.
pub(super) fn check(root: &Root, path: &str, wanted: Option<&str>) -> Result<(), String> {
    match root.place(path, false) {
        Ok(_) | Err(Lost::Missing(_)) => {}
        Err(Lost::Refused(why)) => return Err(why),
    }
    let Some(wanted) = wanted else { return Ok(()) };
    let wanted = Mount::parse(wanted).map_err(|unfit| unfit.to_string())?;
    if wanted.is_bind() {
        return source_of_bind(root, &wanted).map(drop);
    }
    if helper(&wanted.fstype).is_some() {
        return Ok(());
    }
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let known = known.lines().filter_map(|line| line.split('\t').next_back()).any(|name| name == wanted.fstype);
    // A module may have to be loaded first; trying to open it does that.
    if known || open_system(&wanted.fstype).is_ok() {
        Ok(())
    } else {
        Err(format!("this kernel has no file system {:?}", wanted.fstype))
    }
}

/// Unmounts what is mounted at a path, all layers of it.
pub(super) fn remove(root: &Root, path: &str) -> Result<(), String> {
    let place = match root.place(path, false) {
        Ok(place) => place,
        Err(Lost::Missing(_)) => return Ok(()),
        Err(Lost::Refused(why)) => return Err(why),
    };
    loop {
        let table = Table::read()?;
        let Some(entry) = table.at(&place.real) else { return Ok(()) };
        detach(&place, &table, entry)?;
    }
}

/// Mounts what `wanted` says.
pub(super) fn change(root: &Root, path: &str, wanted: &str) -> Result<(), String> {
    let wanted = Mount::parse(wanted).map_err(|unfit| unfit.to_string())?;
    let made = make_point(root, path)?;
    let place = root.place(path, false).map_err(Lost::text)?;
    let result = bring_about(root, &place, &wanted);
    if result.is_err() && made {
        let _ = unlinkat(&place.dir, place.name.as_str(), AtFlags::REMOVEDIR);
    }
    result
}

fn bring_about(root: &Root, place: &Place, wanted: &Mount) -> Result<(), String> {
    let table = Table::read()?;
    let there = table.at(&place.real);
    if let Some(entry) = there {
        let found = table.value(entry, |real| root.inside(real));
        let thing = Mount {
            options: wanted
                .options
                .iter()
                .filter(|option| matches!(option.as_str(), "bind" | "rbind"))
                .cloned()
                .collect(),
            ..wanted.clone()
        };
        if wanted.covers(&found) {
            return Ok(());
        }
        if thing.covers(&found) && reconfigure(place, wanted, &found).is_ok() && settled(root, place, wanted) {
            return Ok(());
        }
    }
    if !wanted.is_bind()
        && let Some(tool) = helper(&wanted.fstype)
    {
        if let Some(entry) = there {
            detach(place, &table, entry)?;
        }
        return by_tool(&tool, place, wanted);
    }
    let new = if wanted.is_bind() { clone_tree(root, wanted)? } else { build(wanted)? };
    if let Some(entry) = there {
        detach(place, &table, entry)?;
    }
    // After what was there has gone, the place is the directory below it.
    let point = open_point(place)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&new, "", &point, "", flags)
        .map_err(|error| format!("{} cannot be attached: {}", place.real.display(), said(error)))?;
    if wanted.is_bind() && !wanted.general().is_empty() {
        // A clone has its original's options until it is attached.
        let flags = MountFlags::BIND | general_flags(wanted);
        if let Err(error) = mount_remount(proc_path(&new), flags, "") {
            let _ = unmount(proc_path(&new), UnmountFlags::DETACH);
            return Err(format!("{} does not take {}: {error}", place.real.display(), wanted.general().join(",")));
        }
    }
    Ok(())
}

/// Whether what is mounted now is what is wanted.
fn settled(root: &Root, place: &Place, wanted: &Mount) -> bool {
    Table::read().is_ok_and(|table| {
        table.at(&place.real).is_some_and(|entry| wanted.covers(&table.value(entry, |real| root.inside(real))))
    })
}

/// Makes the directory something is mounted on; says whether it was missing.
fn make_point(root: &Root, path: &str) -> Result<bool, String> {
    let place = root.place(path, true).map_err(Lost::text)?;
    match mkdirat(&place.dir, place.name.as_str(), Mode::from_raw_mode(0o755)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => {
            let stat = statat(&place.dir, place.name.as_str(), AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
                .map_err(|error| format!("{path}: {error}"))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Ok(false),
                FileType::Symlink => Err(format!("{path} is a symbolic link; name the directory it leads to")),
                _ => Err(format!("{path} is not a directory")),
            }
        }
        Err(error) => Err(format!("the directory {path} cannot be made: {error}")),
    }
}

fn open_point(place: &Place) -> Result<OwnedFd, String> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(&place.dir, place.name.as_str(), flags, Mode::empty())
        .map_err(|error| format!("{}: {error}", place.real.display()))
}

/// Unmounts one layer, if nobody uses it.
fn detach(place: &Place, table: &Table, entry: &Entry) -> Result<(), String> {
    let below: Vec<String> = table
        .tree(entry.id)
        .iter()
        .filter(|other| other.id != entry.id)
        .map(|other| other.at.display().to_string())
        .collect();
    if !below.is_empty() {
        return Err(format!("{} cannot be unmounted: {} is mounted below it", place.real.display(), below.join(", ")));
    }
    // By its name in the directory that was reached: an open descriptor of the mount itself would keep it busy.
    let name = format!("{}/{}", proc_path(&place.dir), place.name);
    unmount(name, UnmountFlags::NOFOLLOW).map_err(|error| match error {
        Errno::BUSY => format!("{} is in use and cannot be unmounted", place.real.display()),
        error => format!("{} cannot be unmounted: {}", place.real.display(), said(error)),
    })
}

fn open_system(fstype: &str) -> Result<OwnedFd, Errno> {
    fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)
}

/// A file system, whole but attached nowhere.
fn build(wanted: &Mount) -> Result<OwnedFd, String> {
    let system = open_system(&wanted.fstype).map_err(|error| match error {
        Errno::NODEV => format!("this kernel has no file system {:?}", wanted.fstype),
        error => format!("{}: {}", wanted.fstype, said(error)),
    })?;
    let why = |what: &str, error: Errno| {
        let reason = reasons(&system);
        let reason = if reason.is_empty() { said(error) } else { format!("{reason} ({error})") };
        format!("the kernel refuses {what} for {}: {reason}", wanted.fstype)
    };
    fsconfig_set_string(&system, "source", wanted.source.as_str()).map_err(|error| why(&wanted.source, error))?;
    for option in wanted.own() {
        let result = match option.split_once('=') {
            Some((name, value)) => fsconfig_set_string(&system, name, value),
            None => fsconfig_set_flag(&system, option),
        };
        result.map_err(|error| why(&format!("the option {option}"), error))?;
    }
    for option in wanted.general() {
        if matches!(option, "ro" | "sync" | "dirsync") {
            fsconfig_set_flag(&system, option).map_err(|error| why(&format!("the option {option}"), error))?;
        }
    }
    fsconfig_create(&system).map_err(|error| why(&wanted.source, error))?;
    fsmount(&system, FsMountFlags::FSMOUNT_CLOEXEC, attributes(wanted)).map_err(|error| why("to be mounted", error))
}

/// What the kernel said about a failed configuration.
fn reasons(system: impl AsFd) -> String {
    let mut lines = Vec::new();
    let mut line = [0_u8; 1024];
    while let Ok(length) = rustix::io::read(&system, &mut line) {
        let text = String::from_utf8_lossy(&line[..length]);
        let text = text.trim();
        lines.push(text.strip_prefix("e ").or_else(|| text.strip_prefix("w ")).unwrap_or(text).to_owned());
        if length == 0 || lines.len() > 8 {
            break;
        }
    }
    lines.join("; ")
}

fn source_of_bind(root: &Root, wanted: &Mount) -> Result<OwnedFd, String> {
    root.open_at(&wanted.source, OFlags::PATH, Mode::empty()).map_err(|error| root.problem(&wanted.source, error))
}

/// The same directory once more, attached nowhere.
fn clone_tree(root: &Root, wanted: &Mount) -> Result<OwnedFd, String> {
    let source = source_of_bind(root, wanted)?;
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if wanted.has("rbind") {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(&source, "", flags).map_err(|error| format!("{} cannot be bound: {}", wanted.source, said(error)))
}

/// Gives a mount that is in its place already other options.
fn reconfigure(place: &Place, wanted: &Mount, found: &Mount) -> Result<(), String> {
    let point = open_point(place)?;
    // What is not said stays as it is: the call replaces all general options.
    let mut all: Vec<String> =
        found.general().into_iter().map(str::to_owned).filter(|option| !contradicts(wanted, option)).collect();
    all.extend(wanted.general().into_iter().map(str::to_owned));
    let all = Mount { options: all, ..wanted.clone() };
    let target = proc_path(&point);
    let say = |error: Errno| format!("{}: {}", place.real.display(), said(error));
    if wanted.is_bind() {
        return mount_remount(&target, MountFlags::BIND | general_flags(&all), "").map_err(say);
    }
    mount_remount(&target, general_flags(&all), wanted.own().join(",")).map_err(say)
}

fn contradicts(wanted: &Mount, option: &str) -> bool {
    let with = Mount { options: vec![option.to_owned()], ..wanted.clone() };
    let times = ["noatime", "relatime", "strictatime", "atime"];
    GENERAL.iter().any(|(one, other)| (with.has(one) && wanted.has(other)) || (with.has(other) && wanted.has(one)))
        || (times.contains(&option) && times.iter().any(|time| wanted.has(time)))
}

fn general_flags(wanted: &Mount) -> MountFlags {
    let table = [
        ("ro", MountFlags::RDONLY),
        ("nosuid", MountFlags::NOSUID),
        ("nodev", MountFlags::NODEV),
        ("noexec", MountFlags::NOEXEC),
        ("noatime", MountFlags::NOATIME),
        ("nodiratime", MountFlags::NODIRATIME),
        ("relatime", MountFlags::RELATIME),
        ("strictatime", MountFlags::STRICTATIME),
        ("sync", MountFlags::SYNCHRONOUS),
        ("dirsync", MountFlags::DIRSYNC),
    ];
    table
        .into_iter()
        .filter(|(option, _)| wanted.has(option))
        .fold(MountFlags::empty(), |flags, (_, flag)| flags | flag)
}

fn attributes(wanted: &Mount) -> MountAttrFlags {
    let table = [
        ("ro", MountAttrFlags::MOUNT_ATTR_RDONLY),
        ("nosuid", MountAttrFlags::MOUNT_ATTR_NOSUID),
        ("nodev", MountAttrFlags::MOUNT_ATTR_NODEV),
        ("noexec", MountAttrFlags::MOUNT_ATTR_NOEXEC),
        ("noatime", MountAttrFlags::MOUNT_ATTR_NOATIME),
        ("strictatime", MountAttrFlags::MOUNT_ATTR_STRICTATIME),
        ("nodiratime", MountAttrFlags::MOUNT_ATTR_NODIRATIME),
    ];
    table
        .into_iter()
        .filter(|(option, _)| wanted.has(option))
        .fold(MountAttrFlags::empty(), |flags, (_, flag)| flags | flag)
}

/// The program that has to mount such a file system.
fn helper(fstype: &str) -> Option<String> {
    ["/sbin", "/usr/sbin"].iter().map(|dir| format!("{dir}/mount.{fstype}")).find(|path| Path::new(path).exists())
}

fn by_tool(tool: &str, place: &Place, wanted: &Mount) -> Result<(), String> {
    let mut arguments = vec!["-c", "-t", &wanted.fstype];
    let options = wanted.options.join(",");
    if !options.is_empty() {
        arguments.extend(["-o", &options]);
    }
    let point = place.real.to_string_lossy();
    arguments.extend([wanted.source.as_str(), &point]);
    command::run("mount", &arguments, command::LONG).map(drop).map_err(|problem| format!("{problem} (by {tool})"))
}

fn said(error: Errno) -> String {
    match error {
        Errno::PERM | Errno::ACCESS => {
            format!("{error}; mounting needs the right CAP_SYS_ADMIN: run the agent as root")
        }
        error => error.to_string(),
    }
}
