//! Kernel parameters: files below `/proc/sys`.
//!
//! Confined to a directory they are files below its `proc/sys`, made when they are declared: an emptied root is a machine whose
//! parameters nobody has set, and one that nobody had set is taken away again. If the real `/proc/sys` is mounted there, they are
//! the real ones.

use super::root::{Root, read_all};
use muster_core::agent::host::Observed;
use muster_core::agent::value;
use muster_core::journal::key::{Dimension, Key};
use rustix::fs::{AtFlags, Mode, OFlags, unlinkat};
use rustix::io::Errno;

/// What a parameter is now.
pub(super) fn observe(root: &Root, key: &Key) -> Observed {
    let name = match value::parameter(key) {
        Ok(name) => name,
        Err(unfit) => return Observed::Unseen(unfit.to_string().into()),
    };
    let path = format!("/proc/sys/{name}");
    match root.read(&path) {
        Ok(bytes) => value::check(key, &String::from_utf8_lossy(&bytes))
            .map_or_else(|unfit| Observed::Unseen(format!("{path}: {unfit}").into()), Observed::Value),
        Err(Errno::NOENT | Errno::NOTDIR) if root.is_confined() => Observed::Absent,
        Err(error) => Observed::Unseen(problem(root, &path, error).into()),
    }
}

/// Whether a parameter can be written here.
pub(super) fn check(root: &Root, key: &Key) -> Result<(), String> {
    let name = value::parameter(key).map_err(|unfit| unfit.to_string())?;
    let path = format!("/proc/sys/{name}");
    match root.open_at(&path, OFlags::WRONLY, Mode::empty()) {
        Ok(_) => Ok(()),
        Err(Errno::NOENT | Errno::NOTDIR) if root.is_confined() => Ok(()),
        Err(error) => Err(problem(root, &path, error)),
    }
}

/// Writes a parameter, and takes the write back if the kernel made something else of it.
pub(super) fn change(root: &Root, key: &Key, wanted: &str) -> Result<(), String> {
    let name = value::parameter(key).map_err(|unfit| unfit.to_string())?;
    let path = format!("/proc/sys/{name}");
    let before = root.read(&path).ok();
    write(root, &path, wanted)?;
    let found = observe(root, key);
    if value::agrees(key, &muster_core::journal::key::Setting::Value(wanted.into()), &found) {
        return Ok(());
    }
    if let Some(before) = before {
        let _ = write(root, &path, String::from_utf8_lossy(&before).trim_end());
    }
    let shown = match found {
        Observed::Value(found) => format!("shows {found:?}"),
        Observed::Absent => "shows nothing".to_owned(),
        Observed::Unseen(why) => format!("does not show it ({why})"),
    };
    Err(format!("the kernel took {wanted:?} for {path} and {shown}; the value before was put back"))
}

/// Whether a key is a parameter that nobody may have set: one that was made is taken away again then.
pub(super) fn may_be_absent(root: &Root, key: &Key) -> bool {
    root.is_confined() && key.dimension() == Some(Dimension::Kernel)
}

/// Takes away a parameter that was made below a root. A real one stays: the kernel refuses.
pub(super) fn remove(root: &Root, key: &Key) -> Result<(), String> {
    let name = value::parameter(key).map_err(|unfit| unfit.to_string())?;
    let path = format!("/proc/sys/{name}");
    let (directory, file) = path.rsplit_once('/').expect("it has several");
    let opened = root.open_at(directory, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
    match opened.and_then(|opened| unlinkat(opened, file, AtFlags::empty())) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(root.problem(&path, error)),
    }
}

fn write(root: &Root, path: &str, text: &str) -> Result<(), String> {
    let existing = root.open_at(path, OFlags::WRONLY | OFlags::TRUNC, Mode::empty());
    let fd = match existing {
        Err(Errno::NOENT) if root.is_confined() => {
            let above = path.rsplit_once('/').map_or("/", |(above, _)| above);
            root.make_directories(above)?;
            root.open_at(path, OFlags::WRONLY | OFlags::CREATE, Mode::from_raw_mode(0o644))
        }
        result => result,
    };
    let fd = fd.map_err(|error| problem(root, path, error))?;
    // One write: the kernel takes a parameter whole or not at all.
    match rustix::io::write(&fd, format!("{text}\n").as_bytes()) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("the kernel refuses {text:?} for {path}: {error}")),
    }
}

fn problem(root: &Root, path: &str, error: Errno) -> String {
    match error {
        Errno::NOENT | Errno::NOTDIR => format!("there is no kernel parameter {path} on this machine"),
        Errno::ACCESS | Errno::PERM => {
            format!("{path}: {error}; the parameter is read-only, or the agent lacks the right")
        }
        error => root.problem(path, error),
    }
}

/// Which boot this is. Confined to a directory it is a file there, drawn when it is missing: an emptied root is a new boot.
pub(super) fn boot_id(root: &Root) -> Result<String, String> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let read = || {
        let bytes = root.read(PATH).map_err(|error| root.problem(PATH, error))?;
        Ok::<_, String>(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    match root.open_at(PATH, OFlags::RDONLY, Mode::empty()) {
        Err(Errno::NOENT) if root.is_confined() => {
            let drawn = std::fs::File::open("/proc/sys/kernel/random/uuid")
                .map_err(|error| format!("no random id: {error}"))?;
            let drawn = read_all(&drawn).map_err(|error| format!("no random id: {error}"))?;
            write(root, PATH, String::from_utf8_lossy(&drawn).trim())?;
            read()
        }
        _ => read(),
    }
}
