//! Files, directories and symbolic links.
//!
//! New content is written beside the old, synced, and renamed over it, then the directory is synced: a reader sees the old file
//! or the new one, and so does the machine after a power loss. The file beside has a fixed name (`.NAME.muster`), so that what a
//! crash leaves is replaced by the next try. What a value does not mention is taken over from the file that was there, its
//! extended attributes included.
//!
//! Left out: a directory that is not empty is never removed or replaced.

use super::accounts::Accounts;
use super::root::{Lost, Place, Root, proc_path, read_all};
use muster_core::agent::host::Observed;
use muster_core::agent::value::file::{Content, File, Kind};
use muster_core::journal::key::VALUE_BYTES_MAX;
use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid, XattrFlags, chmod, chownat, fchmod, fchown,
    fgetxattr, flistxattr, fsetxattr, fsync, mkdirat, openat, readlinkat, renameat, renameat_with, statat, symlinkat,
    unlinkat,
};
use rustix::io::Errno;

/// The largest content that is compared byte by byte; more is known by its digest. Base64 of it still fits a value.
const CONTENT_BYTES_MAX: u64 = VALUE_BYTES_MAX as u64 / 4 * 3 - 256;

/// What lies at a path.
pub(super) fn observe(root: &Root, accounts: &Accounts, path: &str) -> Observed {
    let unseen = |why: String| Observed::Unseen(why.into());
    let place = match root.place(path, false) {
        Ok(place) => place,
        Err(Lost::Missing(_)) => return Observed::Absent,
        Err(Lost::Refused(why)) => return unseen(why),
    };
    match look(&place, accounts) {
        Ok(Some(file)) => Observed::Value(file.to_string().into()),
        Ok(None) => Observed::Absent,
        Err(error) => unseen(format!("{path}: {error}")),
    }
}

fn stat(place: &Place) -> Result<Option<Stat>, Errno> {
    match statat(&place.dir, place.name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn look(place: &Place, accounts: &Accounts) -> Result<Option<File>, Errno> {
    let Some(stat) = stat(place)? else { return Ok(None) };
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => match content(place, &stat) {
            Ok(content) => Kind::File(Some(content)),
            // It went between the two looks.
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error),
        },
        FileType::Directory => Kind::Directory,
        FileType::Symlink => {
            let target = readlinkat(&place.dir, place.name.as_str(), Vec::new())?;
            Kind::Link(target.to_string_lossy().into_owned())
        }
        FileType::Fifo => Kind::Other("fifo".to_owned()),
        FileType::Socket => Kind::Other("socket".to_owned()),
        FileType::CharacterDevice => Kind::Other("character-device".to_owned()),
        FileType::BlockDevice => Kind::Other("block-device".to_owned()),
        FileType::Unknown => Kind::Other("unknown".to_owned()),
    };
    let mut file = File::of(kind);
    if !matches!(file.kind, Kind::Link(_)) {
        file.mode = Some(stat.st_mode & 0o7777);
    }
    file.ids = Some((stat.st_uid, stat.st_gid));
    file.owner = accounts.names(stat.st_uid, stat.st_gid);
    Ok(Some(file))
}

fn content(place: &Place, stat: &Stat) -> Result<Content, Errno> {
    let fd = openat(
        &place.dir,
        place.name.as_str(),
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    if u64::try_from(stat.st_size).unwrap_or(0) > CONTENT_BYTES_MAX {
        return digest(&fd);
    }
    let bytes = read_all(&fd)?;
    if bytes.len() as u64 > CONTENT_BYTES_MAX {
        return Ok(Content::Digest(*blake3::hash(&bytes).as_bytes()));
    }
    Ok(Content::Bytes(bytes))
}

fn digest(fd: &OwnedFd) -> Result<Content, Errno> {
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0_u8; 256 * 1024];
    loop {
        match rustix::io::read(fd, &mut chunk[..]) {
            Ok(0) => return Ok(Content::Digest(*hasher.finalize().as_bytes())),
            Ok(n) => drop(hasher.update(&chunk[..n])),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether a value could be brought about here.
pub(super) fn check(root: &Root, path: &str, wanted: Option<&str>) -> Result<(), String> {
    match root.place(path, false) {
        Ok(_) | Err(Lost::Missing(_)) => {}
        Err(Lost::Refused(why)) => return Err(why),
    }
    if let Some(wanted) = wanted {
        let wanted = File::declared(wanted).map_err(|unfit| unfit.to_string())?;
        if let Some((user, group)) = &wanted.owner {
            Accounts::read(root).ids(user, group)?;
        }
    }
    Ok(())
}

/// Takes away what lies at a path.
pub(super) fn remove(root: &Root, path: &str) -> Result<(), String> {
    let place = match root.place(path, false) {
        Ok(place) => place,
        Err(Lost::Missing(_)) => return Ok(()),
        Err(Lost::Refused(why)) => return Err(why),
    };
    let Some(stat) = stat(&place).map_err(|error| format!("{path}: {error}"))? else { return Ok(()) };
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    match unlinkat(&place.dir, place.name.as_str(), flags) {
        Ok(()) | Err(Errno::NOENT) => sync(&place),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Err(format!("{path} is a directory that is not empty; empty it first")),
        Err(Errno::BUSY) => Err(format!("{path} is a mount point; unmount it first")),
        Err(error) => Err(format!("{path} cannot be removed: {error}")),
    }
}

/// Makes what lies at a path what `wanted` says.
pub(super) fn change(root: &Root, path: &str, wanted: &str) -> Result<(), String> {
    let wanted = File::declared(wanted).map_err(|unfit| unfit.to_string())?;
    let accounts = Accounts::read(root);
    let place = root.place(path, true).map_err(Lost::text)?;
    let say = |error: Errno| format!("{path}: {error}");
    let found = look(&place, &accounts).map_err(say)?;
    let attributes = Attributes::of(&wanted, found.as_ref(), &accounts)?;
    match (&wanted.kind, found.as_ref().map(|found| &found.kind)) {
        (Kind::File(None), Some(Kind::File(_))) | (Kind::Directory, Some(Kind::Directory)) => {
            attributes.put(&place).map_err(|error| format!("{path}: {error}"))
        }
        (Kind::File(None), _) => {
            Err(format!("there is no file {path}, and its value does not say what would be in it; add text="))
        }
        (Kind::File(Some(content)), Some(Kind::File(Some(there)))) if same(content, there) => {
            attributes.put(&place).map_err(|error| format!("{path}: {error}"))
        }
        (Kind::File(Some(Content::Digest(_))), _) => Err(format!(
            "the content of {path} is known by its digest alone, because it is too large for a value; put the file there by other means"
        )),
        (Kind::File(Some(Content::Bytes(bytes))), there) => {
            let old = matches!(there, Some(Kind::File(_)));
            replace(&place, |name| write_file(&place, name, bytes, &attributes, old))
                .map_err(|error| format!("{path}: {error}"))
        }
        (Kind::Link(target), there) => {
            if there == Some(&wanted.kind) {
                return attributes.put(&place).map_err(|error| format!("{path}: {error}"));
            }
            let make = |name: &str| {
                symlinkat(target.as_str(), &place.dir, name)?;
                attributes.put_on_link(&place, name)
            };
            replace(&place, make).map_err(|error| format!("{path}: {error}"))
        }
        (Kind::Directory, _) => {
            let make = |name: &str| {
                mkdirat(&place.dir, name, Mode::from_raw_mode(0o700))?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                attributes.put_on(&openat(&place.dir, name, flags, Mode::empty())?)
            };
            replace(&place, make).map_err(|error| format!("{path}: {error}"))
        }
        (Kind::Other(kind), _) => Err(format!("a {kind} can be observed, not made")),
    }
}

fn same(wanted: &Content, there: &Content) -> bool {
    File::of(Kind::File(Some(wanted.clone()))).covers(&File::of(Kind::File(Some(there.clone()))))
}

/// What a file will have besides its content.
struct Attributes {
    mode: Option<u32>,
    ids: Option<(u32, u32)>,
    /// Whether mode and owner were said, or taken over.
    said: (bool, bool),
}

impl Attributes {
    fn of(wanted: &File, found: Option<&File>, accounts: &Accounts) -> Result<Self, String> {
        let named = wanted.owner.as_ref().map(|(user, group)| accounts.ids(user, group)).transpose()?;
        if let (Some(named), Some(ids)) = (named, wanted.ids)
            && named != ids
        {
            return Err(format!("owner= stands for {}:{} here, and ids= says {}:{}", named.0, named.1, ids.0, ids.1));
        }
        let ids = wanted.ids.or(named);
        // What is not said stays, as long as it is the same kind of thing.
        let kept = found.filter(|found| std::mem::discriminant(&found.kind) == std::mem::discriminant(&wanted.kind));
        let usual = match wanted.kind {
            Kind::File(_) => Some(0o644),
            Kind::Directory => Some(0o755),
            Kind::Link(_) | Kind::Other(_) => None,
        };
        Ok(Self {
            mode: wanted.mode.or_else(|| kept.and_then(|kept| kept.mode)).or(usual),
            ids: ids.or_else(|| kept.and_then(|kept| kept.ids)),
            said: (wanted.mode.is_some(), ids.is_some()),
        })
    }

    fn owner(&self) -> (Option<Uid>, Option<Gid>) {
        (self.ids.map(|(user, _)| Uid::from_raw(user)), self.ids.map(|(_, group)| Gid::from_raw(group)))
    }

    /// On something new, before it takes its name. The mode comes last: a new owner takes set-user-id bits away.
    fn put_on(&self, fd: &OwnedFd) -> Result<(), Errno> {
        let (user, group) = self.owner();
        match fchown(fd, user, group) {
            // Whoever may not give files away leaves what was not asked for.
            Err(Errno::PERM) if !self.said.1 => {}
            result => result?,
        }
        if let Some(mode) = self.mode {
            fchmod(fd, Mode::from_raw_mode(mode))?;
        }
        fsync(fd)
    }

    fn put_on_link(&self, place: &Place, name: &str) -> Result<(), Errno> {
        let (user, group) = self.owner();
        match chownat(&place.dir, name, user, group, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::PERM) if !self.said.1 => Ok(()),
            result => result,
        }
    }

    /// On what is there already: only what was said, and not its content. If the second step fails the first is taken back.
    fn put(&self, place: &Place) -> Result<(), Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&place.dir, place.name.as_str(), flags, Mode::empty())?;
        let before = rustix::fs::fstat(&fd)?;
        if self.said.1 {
            let (user, group) = self.owner();
            chownat(&fd, "", user, group, AtFlags::EMPTY_PATH)?;
        }
        // After a change of owner the mode is set again: the kernel took set-user-id bits away.
        let is_link = FileType::from_raw_mode(before.st_mode) == FileType::Symlink;
        if let Some(mode) = self.mode.filter(|_| !is_link && (self.said.0 || self.said.1))
            && let Err(error) = chmod(proc_path(&fd), Mode::from_raw_mode(mode))
        {
            if self.said.1 {
                let _ = chownat(
                    &fd,
                    "",
                    Some(Uid::from_raw(before.st_uid)),
                    Some(Gid::from_raw(before.st_gid)),
                    AtFlags::EMPTY_PATH,
                );
            }
            return Err(error);
        }
        Ok(())
    }
}

/// Makes something under the name beside and gives it its name, or leaves everything as it was.
fn replace(place: &Place, make: impl Fn(&str) -> Result<(), Errno>) -> Result<(), String> {
    let mut name = format!(".{}.muster", place.name);
    while name.len() > 255 {
        name.remove(1);
    }
    remove_beside(place, &name);
    make(&name).inspect_err(|_| remove_beside(place, &name)).map_err(|error| error.to_string())?;
    over(place, &name)
}

fn remove_beside(place: &Place, name: &str) {
    if unlinkat(&place.dir, name, AtFlags::empty()).is_err() {
        let _ = unlinkat(&place.dir, name, AtFlags::REMOVEDIR);
    }
}

fn write_file(place: &Place, name: &str, bytes: &[u8], attributes: &Attributes, old: bool) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(&place.dir, name, flags, Mode::from_raw_mode(0o600))?;
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::io::write(&fd, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    if old {
        take_over_attributes(place, &fd);
    }
    attributes.put_on(&fd)
}

/// Copies extended attributes (labels, access lists) as far as this process may.
fn take_over_attributes(place: &Place, new: &OwnedFd) {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(old) = openat(&place.dir, place.name.as_str(), flags, Mode::empty()) else { return };
    let mut names = vec![0_u8; 64 * 1024];
    let Ok(length) = flistxattr(&old, &mut names[..]) else { return };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0_u8; 64 * 1024];
        if let Ok(length) = fgetxattr(&old, name, &mut value[..]) {
            let _ = fsetxattr(new, name, &value[..length], XattrFlags::empty());
        }
    }
}

/// Gives the thing beside its name. Something of another kind is exchanged with it first, and put back if it cannot go.
fn over(place: &Place, name: &str) -> Result<(), String> {
    let result = match renameat(&place.dir, name, &place.dir, place.name.as_str()) {
        Err(Errno::ISDIR | Errno::NOTDIR | Errno::EXIST | Errno::NOTEMPTY) => exchange(place, name),
        Err(error) => Err(error.to_string()),
        Ok(()) => Ok(()),
    };
    result.inspect_err(|_| remove_beside(place, name))?;
    sync(place)
}

fn exchange(place: &Place, name: &str) -> Result<(), String> {
    let swap = || renameat_with(&place.dir, name, &place.dir, place.name.as_str(), RenameFlags::EXCHANGE);
    swap().map_err(|error| error.to_string())?;
    let removed = match unlinkat(&place.dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => unlinkat(&place.dir, name, AtFlags::REMOVEDIR),
        result => result,
    };
    removed.map_err(|error| {
        let _ = swap();
        match error {
            Errno::NOTEMPTY | Errno::EXIST => "it is a directory that is not empty; empty it first".to_owned(),
            error => format!("what is there cannot be removed: {error}"),
        }
    })
}

/// Makes the directory's new state durable.
fn sync(place: &Place) -> Result<(), String> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(&place.dir, ".", flags, Mode::empty()).and_then(fsync);
    match dir {
        // Some file systems cannot sync a directory, and say so.
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(error) => {
            Err(format!("{} was changed, but its directory could not be synced: {error}", place.real.display()))
        }
    }
}

/// What of a file changes when it does: enough to see a change without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trace {
    device: u64,
    inode: u64,
    size: i64,
    changed: (i64, i64),
}

/// The trace of a name in a directory; none if nothing is there.
pub(super) fn trace(dir: &OwnedFd, name: &str) -> Option<Trace> {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    // A directory's size and times change with what is in it, which is not compared.
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    Some(if directory {
        Trace {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: i64::from(stat.st_mode),
            changed: (i64::from(stat.st_uid), i64::from(stat.st_gid)),
        }
    } else {
        let nanoseconds = i64::try_from(stat.st_ctime_nsec).unwrap_or(0);
        Trace { device: stat.st_dev, inode: stat.st_ino, size: stat.st_size, changed: (stat.st_ctime, nanoseconds) }
    })
}
