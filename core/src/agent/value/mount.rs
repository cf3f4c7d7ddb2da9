//! The value of a `mounts:` key: what is mounted at a path, as a line of fstab(5) says it: `SOURCE FSTYPE [OPTIONS]`.
//!
//! ```text
//! /dev/nvme0n1p1 xfs noatime,discard       a device
//! tmpfs tmpfs size=64m,mode=1777           a file system without one
//! home.example:/export nfs4 ro,nosuid      over the network
//! /srv/data none bind,ro                   a directory that is visible elsewhere too
//! ```
//! A space, tab, comma in an option or backslash is written `\040`, `\011`, `\054`, `\134`. Options are sorted; `defaults`
//! says nothing and is left out. Of the declared options, those every file system has (`ro`, `nosuid`, …) are compared
//! strictly. The kernel does not show all of a file system's own options, so those drift only when they are shown with
//! another value, or their opposite is.

use super::Unfit;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

const WANT: &str = "SOURCE FSTYPE [OPTIONS] as in fstab(5), such as 'tmpfs tmpfs size=64m', '/dev/sdb1 xfs noatime' or \
     '/srv/data none bind,ro'";

/// An option a host adds to what it observed: another place where the same directory is visible. It means nothing when declared.
pub const ALSO_AT: &str = "x-muster.also-at=";

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The device, the server and path, or the directory of a bind mount.
    pub source: String,
    /// The file system; `none` for a bind mount.
    pub fstype: String,
    /// Options, sorted, each once.
    pub options: Vec<String>,
}

/// Options of every file system: the pair, and whether the second is what holds when neither is shown.
pub const GENERAL: [(&str, &str); 7] = [
    ("ro", "rw"),
    ("nosuid", "suid"),
    ("nodev", "dev"),
    ("noexec", "exec"),
    ("nodiratime", "diratime"),
    ("sync", "async"),
    ("dirsync", "nodirsync"),
];

/// Of these one holds; `strictatime` is what holds when none is shown. `atime` is any but `noatime`.
const TIMES: [&str; 3] = ["noatime", "relatime", "strictatime"];

/// File systems whose source is only a name.
const SOURCELESS: [&str; 16] = [
    "tmpfs",
    "ramfs",
    "proc",
    "sysfs",
    "devpts",
    "devtmpfs",
    "mqueue",
    "hugetlbfs",
    "debugfs",
    "tracefs",
    "bpf",
    "cgroup",
    "cgroup2",
    "securityfs",
    "configfs",
    "efivarfs",
];

/// Options for the tools that mount at boot; the kernel never sees them.
fn is_for_tools(option: &str) -> bool {
    matches!(
        option,
        "auto"
            | "noauto"
            | "nofail"
            | "fail"
            | "_netdev"
            | "user"
            | "nouser"
            | "users"
            | "owner"
            | "group"
            | "loud"
            | "silent"
    ) || option.starts_with("x-")
        || option.starts_with("X-")
        || option.starts_with("comment=")
}

impl Mount {
    /// Reads a value.
    ///
    /// # Errors
    /// [`Unfit`] says what would be accepted.
    pub fn parse(value: &str) -> Result<Self, Unfit> {
        let fields: Vec<&str> = value.split_whitespace().collect();
        let (source, fstype, options) = match fields.as_slice() {
            [source, fstype] => (*source, *fstype, ""),
            [source, fstype, options] => (*source, *fstype, *options),
            _ => return Err(Unfit::new(format!("there are {} words", fields.len()), WANT)),
        };
        let plain = |text: &str| {
            unescaped(text).ok_or_else(|| Unfit::new(format!("a backslash stands for nothing in {text:?}"), WANT))
        };
        let mut list = Vec::new();
        for option in options.split(',').filter(|option| !option.is_empty() && *option != "defaults") {
            list.push(plain(option)?);
        }
        list.sort_unstable();
        list.dedup();
        let mount = Self { source: plain(source)?, fstype: plain(fstype)?, options: list };
        mount.sound()?;
        Ok(mount)
    }

    fn sound(&self) -> Result<(), Unfit> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if self.fstype.is_empty() || !self.fstype.bytes().all(good) {
            return Err(Unfit::new(format!("{:?} is not a file system's type", self.fstype), WANT));
        }
        if self.is_bind() != (self.fstype == "none") {
            return Err(Unfit::new(
                "a bind mount, and nothing else, has the type 'none' and the option 'bind' or 'rbind'",
                WANT,
            ));
        }
        if self.is_bind() && !self.source.starts_with('/') {
            return Err(Unfit::new(format!("{:?} is not the absolute path of a directory", self.source), WANT));
        }
        if ["UUID=", "LABEL=", "PARTUUID=", "PARTLABEL="].iter().any(|tag| self.source.starts_with(tag)) {
            return Err(Unfit::new(
                format!("{} is not shown by the kernel", self.source),
                "the device's path, such as /dev/sdb1 or /dev/disk/by-uuid/…",
            ));
        }
        for (one, other) in GENERAL {
            if self.has(one) && self.has(other) {
                return Err(Unfit::new(format!("{one} and {other} contradict each other"), WANT));
            }
        }
        if TIMES.iter().filter(|time| self.has(time)).count() > 1 || (self.has("atime") && self.has("noatime")) {
            return Err(Unfit::new("more than one of noatime, relatime and strictatime", WANT));
        }
        if ["remount", "move"].iter().any(|verb| self.has(verb)) {
            return Err(Unfit::new("'remount' and 'move' are things to do, not what is mounted", WANT));
        }
        Ok(())
    }

    /// Whether an option is given, word for word.
    #[must_use]
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|given| given == option)
    }

    /// Whether a directory is made visible at a second place.
    #[must_use]
    pub fn is_bind(&self) -> bool {
        self.has("bind") || self.has("rbind")
    }

    /// Whether a general option of the first kind (`ro`, `nosuid`, …) is given.
    #[must_use]
    pub fn general(&self) -> Vec<&str> {
        self.options.iter().map(String::as_str).filter(|option| is_general(option)).collect()
    }

    /// The file system's own options, in the order in which they are written.
    #[must_use]
    pub fn own(&self) -> Vec<&str> {
        let own = |option: &&str| !is_general(option) && !is_for_tools(option) && !matches!(*option, "bind" | "rbind");
        self.options.iter().map(String::as_str).filter(own).collect()
    }

    /// Whether `found` is everything that is said here.
    #[must_use]
    pub fn covers(&self, found: &Self) -> bool {
        let also_at = |path: &str| found.options.iter().any(|option| option.strip_prefix(ALSO_AT) == Some(path));
        let thing = if self.is_bind() {
            (found.is_bind() && found.source == self.source) || also_at(&self.source)
        } else {
            let sourceless = SOURCELESS.contains(&self.fstype.as_str());
            self.fstype == found.fstype && (sourceless || self.source == found.source)
        };
        thing && self.options.iter().all(|option| option_holds(option, found))
    }
}

fn is_general(option: &str) -> bool {
    GENERAL.iter().any(|(one, other)| option == *one || option == *other)
        || TIMES.contains(&option)
        || option == "atime"
}

fn option_holds(option: &str, found: &Mount) -> bool {
    if is_for_tools(option) || matches!(option, "bind" | "rbind") {
        return true;
    }
    for (one, other) in GENERAL {
        if option == one {
            return found.has(one);
        }
        if option == other {
            return !found.has(one);
        }
    }
    match option {
        "noatime" | "relatime" => return found.has(option),
        "strictatime" => return !found.has("noatime") && !found.has("relatime"),
        "atime" => return !found.has("noatime"),
        _ => {}
    }
    if let Some((name, value)) = option.split_once('=') {
        let shown = found.options.iter().find_map(|other| other.strip_prefix(name)?.strip_prefix('='));
        return shown.is_none_or(|shown| {
            shown == value || quantity(name, shown).is_some_and(|n| quantity(name, value) == Some(n))
        });
    }
    let opposite = option.strip_prefix("no").map_or_else(|| format!("no{option}"), ToString::to_string);
    found.has(option) || !found.has(&opposite)
}

/// Sizes and modes are written in several ways: `64m` is shown as `65536k`, `0755` as `755`.
fn quantity(name: &str, text: &str) -> Option<u64> {
    if name == "mode" {
        return u64::from_str_radix(text, 8).ok();
    }
    let lower = text.to_ascii_lowercase();
    let unit = lower.as_bytes().last().copied()?;
    let shift = match unit {
        b'k' => 10,
        b'm' => 20,
        b'g' => 30,
        b't' => 40,
        _ => return lower.parse().ok(),
    };
    lower[..lower.len() - 1].parse::<u64>().ok()?.checked_shl(shift)
}

/// Takes out the octal escapes that fstab(5) and mountinfo use.
#[must_use]
pub fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'\\' {
            let digits = after.get(..3).filter(|digits| digits.iter().all(|d| (b'0'..=b'7').contains(d)))?;
            bytes.push(u8::from_str_radix(core::str::from_utf8(digits).ok()?, 8).ok()?);
            rest = &after[3..];
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

struct Escaped<'a>(&'a str, bool);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '\\' => f.write_str("\\134")?,
                ',' if self.1 => f.write_str("\\054")?,
                c if c.is_whitespace() || c.is_control() => {
                    for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                        write!(f, "\\{byte:03o}")?;
                    }
                }
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", Escaped(&self.source, false), Escaped(&self.fstype, false))?;
        for (i, option) in self.options.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { ' ' } else { ',' }, Escaped(option, true))?;
        }
        Ok(())
    }
}
