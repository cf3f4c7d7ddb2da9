//! Where paths begin. Every file the host touches for a key is reached through here.
//!
//! Confined to a directory, a path that leaves it through a symbolic link (an absolute one included) is refused by the kernel,
//! component by component (`openat2` with `RESOLVE_BENEATH`), so nobody can win a race against the check. On the machine itself
//! links are followed as ever. Either way the directory that was reached is compared with the excluded ones by its real path.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, open, openat2};
use rustix::io::Errno;
use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Never managed: what the kernel and the device manager make.
const NEVER: [&str; 3] = ["/proc", "/sys", "/dev"];

pub(super) struct Root {
    dir: OwnedFd,
    /// The root's real path: `/`, or the directory of `--root`.
    path: PathBuf,
    confined: bool,
    /// Real paths below which nothing is managed.
    excluded: Vec<PathBuf>,
}

/// A name in a directory that was reached inside the root.
pub(super) struct Place {
    pub(super) dir: OwnedFd,
    pub(super) name: String,
    /// The real path, for messages and for the mount table.
    pub(super) real: PathBuf,
}

/// Why a path was not reached.
#[derive(Debug)]
pub(super) enum Lost {
    /// A directory above it does not exist.
    Missing(String),
    /// It is not to be reached, or not by us.
    Refused(String),
}

impl Lost {
    pub(super) fn text(self) -> String {
        match self {
            Self::Missing(text) | Self::Refused(text) => text,
        }
    }
}

impl Root {
    pub(super) fn open(root: Option<&Path>, own: &Path, excluded: &[String]) -> Result<Self, String> {
        let path = root.unwrap_or(Path::new("/"));
        let path =
            path.canonicalize().map_err(|error| format!("the root {} cannot be opened: {error}", path.display()))?;
        let dir = open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| format!("the root {} is no directory that can be opened: {error}", path.display()))?;
        let own = own.canonicalize().map_err(|error| format!("the agent's directory {}: {error}", own.display()))?;
        let mut never: Vec<PathBuf> =
            NEVER.iter().copied().chain(excluded.iter().map(String::as_str)).map(|text| joined(&path, text)).collect();
        never.push(own);
        Ok(Self { dir, path, confined: root.is_some(), excluded: never })
    }

    /// Whether it is a directory rather than the machine.
    pub(super) fn is_confined(&self) -> bool {
        self.confined
    }

    /// The root's real path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The path as this process would have to spell it.
    pub(super) fn outside(&self, path: &str) -> PathBuf {
        joined(&self.path, path)
    }

    /// A real path as keys spell it, if it lies inside.
    pub(super) fn inside(&self, real: &Path) -> Option<String> {
        let inside = real.strip_prefix(&self.path).ok()?;
        Some(format!("/{}", inside.to_str()?))
    }

    /// Opens what lies at an absolute path inside the root.
    pub(super) fn open_at(&self, path: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let inside = match path.trim_start_matches('/') {
            "" => ".",
            inside => inside,
        };
        let resolve = if self.confined { ResolveFlags::BENEATH } else { ResolveFlags::IN_ROOT };
        loop {
            match openat2(&self.dir, inside, flags | OFlags::CLOEXEC, mode, resolve | ResolveFlags::NO_MAGICLINKS) {
                // The kernel could not rule out that a rename led it astray; it asks for another try.
                Err(Errno::AGAIN) => {}
                result => return result,
            }
        }
    }

    /// A file's text.
    pub(super) fn read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        let fd = self.open_at(path, OFlags::RDONLY, Mode::empty())?;
        read_all(&fd)
    }

    /// In words why a path could not be opened.
    pub(super) fn problem(&self, path: &str, error: Errno) -> String {
        match error {
            Errno::XDEV => format!("{path} leaves the root {} through a symbolic link", self.path.display()),
            Errno::LOOP => format!("{path} leads through a ring of symbolic links, or one the kernel makes"),
            error => format!("{path}: {error}"),
        }
    }

    /// The directory a managed path lies in, made with all above it if `make` says so.
    pub(super) fn place(&self, path: &str, make: bool) -> Result<Place, Lost> {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        // By its spelling first: a directory that is missing inside an excluded one is neither looked for nor made.
        self.refuse_excluded(path, &self.outside(path))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let dir = match self.open_at(above, flags, Mode::empty()) {
            Err(Errno::NOENT) if make => self.make(above)?,
            Err(Errno::NOENT) => return Err(Lost::Missing(format!("there is no directory {}", shown(above)))),
            Err(Errno::NOTDIR) if !make => return Err(Lost::Missing(format!("{} is not a directory", shown(above)))),
            Err(Errno::NOTDIR) => return Err(Lost::Refused(format!("{} is not a directory", shown(above)))),
            Err(error) => return Err(Lost::Refused(self.problem(path, error))),
            Ok(dir) => dir,
        };
        let real = real_path(&dir).map_err(|error| Lost::Refused(format!("{path}: {error}")))?.join(name);
        self.refuse_excluded(path, &real)?;
        Ok(Place { dir, name: name.to_owned(), real })
    }

    /// Makes a directory and all above it.
    pub(super) fn make_directories(&self, path: &str) -> Result<(), String> {
        self.make(path).map(drop).map_err(Lost::text)
    }

    fn make(&self, path: &str) -> Result<OwnedFd, Lost> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let mut reached = String::new();
        let mut dir =
            self.open_at("/", flags, Mode::empty()).map_err(|error| Lost::Refused(self.problem("/", error)))?;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            reached.push('/');
            reached.push_str(part);
            let next = match self.open_at(&reached, flags, Mode::empty()) {
                Err(Errno::NOENT) => {
                    match mkdirat(&dir, part, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => {
                            return Err(Lost::Refused(format!("the directory {reached} cannot be made: {error}")));
                        }
                    }
                    self.open_at(&reached, flags, Mode::empty())
                }
                result => result,
            };
            dir = next.map_err(|error| Lost::Refused(self.problem(&reached, error)))?;
        }
        Ok(dir)
    }

    /// Refuses what lies in an excluded directory, and what an excluded directory lies in: it would take it along.
    fn refuse_excluded(&self, path: &str, real: &Path) -> Result<(), Lost> {
        match self.excluded.iter().find(|never| real.starts_with(never) || never.starts_with(real)) {
            None => Ok(()),
            Some(never) => Err(Lost::Refused(format!(
                "{path} is never managed: {} is the kernel's, the agent's own, or excluded by its configuration",
                never.display()
            ))),
        }
    }
}

fn joined(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn shown(path: &str) -> &str {
    if path.is_empty() { "/" } else { path }
}

/// Where an open descriptor leads.
pub(super) fn real_path(fd: impl AsFd) -> Result<PathBuf, Errno> {
    let link = proc_path(&fd);
    let bytes = rustix::fs::readlink(&link, Vec::new())?.into_bytes();
    Ok(PathBuf::from(OsString::from_vec(bytes)))
}

/// The name under which the kernel shows this process's descriptor: a way to name a file that was reached safely.
pub(super) fn proc_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Everything from the descriptor's position on.
pub(super) fn read_all(fd: impl AsFd) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    let mut chunk = [0_u8; 16 * 1024];
    loop {
        match rustix::io::read(&fd, &mut chunk) {
            Ok(0) => return Ok(bytes),
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}
