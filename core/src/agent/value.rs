//! What the value of a key may say, dimension by dimension, and whether what was found on a machine agrees with it.
//!
//! Every value has one canonical spelling, which [`check`] gives; what a host observes is spelled the same way, so that an
//! observed value can be committed as it is. A declared value may leave things out (a file's owner, a mount's options):
//! what it does not mention is not compared. `docs/values.md` shows the grammar with examples, which a test here runs.
//!
//! Nothing here looks at a machine: whether a user, a link or a program exists, a host says.

pub mod file;
pub mod gpu;
pub mod link;
pub mod mount;
pub mod service;

use crate::agent::host::Observed;
use crate::ids::VClusterId;
use crate::journal::key::{Dimension, Key, Setting, VALUE_BYTES_MAX};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Write as _};

/// Longest value of a kernel parameter: what one read or write of it moves.
pub const PARAMETER_BYTES_MAX: usize = 4_095;

/// Why a value cannot be given to a key, or a key cannot be managed at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// What is wrong.
    pub problem: Arc<str>,
    /// What would be accepted.
    pub want: Arc<str>,
}

impl Unfit {
    pub(crate) fn new(problem: impl AsRef<str>, want: impl AsRef<str>) -> Self {
        Self { problem: Arc::from(problem.as_ref()), want: Arc::from(want.as_ref()) }
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}", self.problem, self.want)
    }
}

impl core::error::Error for Unfit {}

/// The part of a key after its dimension.
#[must_use]
pub fn name(key: &Key) -> &str {
    key.as_str().split_once(':').map_or("", |(_, name)| name)
}

/// Whether any value fits this key.
///
/// # Errors
/// [`Unfit`] says how such a key is spelled.
pub fn check_key(key: &Key) -> Result<(), Unfit> {
    match key.dimension() {
        Some(Dimension::Kernel) => parameter(key).map(drop),
        Some(Dimension::Files | Dimension::Mounts) => path(key).map(drop),
        Some(Dimension::Network) => link::split(name(key)).map(drop),
        Some(Dimension::Gpu) => gpu::split(name(key)).map(drop),
        Some(Dimension::Services) => plain_name(name(key), "a service", ".@_-:\\"),
        Some(Dimension::Packages) => plain_name(name(key), "a package", ".+_-:~"),
        None => Ok(()),
    }
}

/// The canonical spelling of a value for this key.
///
/// # Errors
/// [`Unfit`] says what would be accepted.
pub fn check(key: &Key, value: &str) -> Result<Arc<str>, Unfit> {
    check_key(key)?;
    if value.len() > VALUE_BYTES_MAX {
        return Err(Unfit::new(
            format!("the value has {} bytes", value.len()),
            format!("at most {VALUE_BYTES_MAX} bytes"),
        ));
    }
    let canonical = match key.dimension() {
        Some(Dimension::Kernel) => parameter_value(value)?,
        Some(Dimension::Files) => file::File::declared(value)?.to_string(),
        Some(Dimension::Mounts) => mount::Mount::parse(value)?.to_string(),
        Some(Dimension::Services) => service::Service::parse(value)?.to_string(),
        Some(Dimension::Network) => link::check(link::split(name(key))?.1, value)?,
        Some(Dimension::Packages) => version(value)?,
        Some(Dimension::Gpu) => gpu::check(gpu::split(name(key))?.1, value)?,
        None => VClusterId::new(value)
            .map_err(|e| Unfit::new(format!("{value:?} is no vCluster's name"), e.want))?
            .to_string(),
    };
    if canonical.len() > VALUE_BYTES_MAX {
        return Err(Unfit::new(
            format!("the value has {} bytes once written out", canonical.len()),
            format!("at most {VALUE_BYTES_MAX} bytes"),
        ));
    }
    Ok(Arc::from(canonical))
}

/// The same for a whole setting: a value in its canonical spelling; *absent* where a thing can be absent.
///
/// # Errors
/// [`Unfit`] says what would be accepted.
pub fn check_setting(key: &Key, setting: &Setting) -> Result<Setting, Unfit> {
    match setting {
        Setting::Value(value) => check(key, value).map(Setting::Value),
        Setting::Unset => check_key(key).map(|()| Setting::Unset),
        Setting::Absent => {
            check_key(key)?;
            let removable = match key.dimension() {
                Some(Dimension::Files | Dimension::Mounts | Dimension::Services | Dimension::Packages) => true,
                Some(Dimension::Network) => link::split(name(key))?.1 == link::What::Address,
                Some(Dimension::Kernel | Dimension::Gpu) | None => false,
            };
            if removable {
                Ok(Setting::Absent)
            } else {
                Err(Unfit::new(format!("{key} always has a value and cannot be absent"), "a value"))
            }
        }
    }
}

/// Whether what was found is what is declared. What the declared value does not mention is not compared, and what cannot be
/// seen is no drift. A declared value that does not fit its key agrees with nothing but itself.
#[must_use]
pub fn agrees(key: &Key, declared: &Setting, observed: &Observed) -> bool {
    match (declared, observed) {
        (Setting::Unset, _) | (_, Observed::Unseen(_)) | (Setting::Absent, Observed::Absent) => true,
        (Setting::Value(_), Observed::Absent) => false,
        (Setting::Absent, Observed::Value(found)) => {
            key.dimension() == Some(Dimension::Services) && service::is_off(found)
        }
        (Setting::Value(declared), Observed::Value(found)) => declared == found || covers(key, declared, found),
    }
}

/// Whether a found value says everything a declared one does.
fn covers(key: &Key, declared: &str, found: &str) -> bool {
    match key.dimension() {
        Some(Dimension::Kernel) => parameters_equal(declared, found),
        Some(Dimension::Files) => both(declared, found, file::File::parse, file::File::covers),
        Some(Dimension::Mounts) => both(declared, found, mount::Mount::parse, mount::Mount::covers),
        Some(Dimension::Services) => both(declared, found, service::Service::parse, service::Service::covers),
        Some(Dimension::Packages) => version_covers(declared, found),
        Some(Dimension::Network | Dimension::Gpu) => check(key, declared).is_ok_and(|declared| *declared == *found),
        None => false,
    }
}

fn both<T>(
    declared: &str,
    found: &str,
    parse: impl Fn(&str) -> Result<T, Unfit>,
    covers: impl Fn(&T, &T) -> bool,
) -> bool {
    match (parse(declared), parse(found)) {
        (Ok(declared), Ok(found)) => covers(&declared, &found),
        _ => false,
    }
}

/// The absolute path a file's or mount's key stands for.
///
/// # Errors
/// [`Unfit`] says how a path is spelled in a key.
pub fn path(key: &Key) -> Result<String, Unfit> {
    let text = name(key);
    let wrong = |problem: &str| {
        Unfit::new(
            format!("{problem} in {text:?}"),
            "an absolute path without '.', '..', '//' or a '/' at its end; a space is written %20, '=' %3D and '%' %25",
        )
    };
    let path = percent_decoded(text).ok_or_else(|| wrong("there is a '%' that stands for nothing"))?;
    if percent_encoded(&path) != text {
        return Err(wrong("something is written in a roundabout way"));
    }
    if path.contains('\0') {
        return Err(wrong("there is a zero byte"));
    }
    let Some(inside) = path.strip_prefix('/') else { return Err(wrong("there is no '/' at the beginning")) };
    if inside.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(wrong("a part is empty, '.' or '..'"));
    }
    Ok(path)
}

/// The key of a path.
///
/// # Errors
/// If the path is too long for a key.
pub fn path_key(dimension: Dimension, path: &str) -> Result<Key, crate::ids::InvalidName> {
    Key::new(&format!("{}:{}", dimension.word(), percent_encoded(path)))
}

fn percent_encoded(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c.is_control() || c.is_whitespace() || c == '=' || c == '%' {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                // A string takes whatever is written to it.
                let _ = write!(out, "%{byte:02X}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'%' {
            let digits = after.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
            bytes.push(u8::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

/// Where a kernel parameter lies below `/proc/sys`: dots separate, and a slash in a name stands for a dot in a file's name, as
/// for sysctl(8) (`net.ipv4.conf.eth0/100.forwarding`).
///
/// # Errors
/// [`Unfit`] says how a parameter is spelled.
pub fn parameter(key: &Key) -> Result<String, Unfit> {
    let text = name(key);
    let path: String = text
        .chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        })
        .collect();
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Unfit::new(
            format!("{text:?} is not a kernel parameter's name"),
            "names separated by dots, such as net.ipv4.ip_forward; a dot inside a name is written '/'",
        ));
    }
    Ok(path)
}

/// A parameter's value: its words with single spaces between them, as the kernel separates them with tabs.
fn parameter_value(value: &str) -> Result<String, Unfit> {
    let words: Vec<&str> = value.split_whitespace().collect();
    let text = words.join(" ");
    if text.len() > PARAMETER_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(Unfit::new(
            "the value is no kernel parameter's",
            format!("words on one line, at most {PARAMETER_BYTES_MAX} bytes"),
        ));
    }
    Ok(text)
}

/// Numbers are equal however they are written (`0x10`, `020`, `16`); everything else word by word.
fn parameters_equal(a: &str, b: &str) -> bool {
    let mut left = a.split_whitespace();
    let mut right = b.split_whitespace();
    loop {
        match (left.next(), right.next()) {
            (None, None) => return true,
            (Some(x), Some(y)) if x == y || integer(x).is_some_and(|n| integer(y) == Some(n)) => {}
            _ => return false,
        }
    }
}

/// A number as the kernel reads it: decimal, `0x` hexadecimal, `0` octal.
fn integer(text: &str) -> Option<i128> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let lower = digits.to_ascii_lowercase();
    let number = if let Some(hexadecimal) = lower.strip_prefix("0x") {
        u64::from_str_radix(hexadecimal, 16)
    } else if lower.len() > 1 && lower.starts_with('0') {
        u64::from_str_radix(&lower, 8)
    } else {
        lower.parse()
    };
    number.ok().map(|number| sign * i128::from(number))
}

fn plain_name(text: &str, what: &str, also: &str) -> Result<(), Unfit> {
    let good = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.len() <= 255
        && text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c));
    if good {
        Ok(())
    } else {
        Err(Unfit::new(
            format!("{text:?} is not {what}'s name"),
            format!("up to 255 letters, digits and any of {also}, beginning with a letter or digit"),
        ))
    }
}

/// A package's version, or that it is there in any.
fn version(value: &str) -> Result<String, Unfit> {
    let value = value.trim();
    let good = !value.is_empty()
        && value.len() <= 255
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || b".+-~:_^".contains(&b))
        && value.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if good {
        Ok(value.to_string())
    } else {
        Err(Unfit::new(
            format!("{value:?} is not a package's version"),
            "'present' for any version, or a version such as 1.22.1 or 1:1.22.1-9+deb12u1",
        ))
    }
}

/// A version without its epoch (`1:`) or revision (`-9`) stands for every one that differs in those alone.
fn version_covers(declared: &str, found: &str) -> bool {
    let declared = declared.trim();
    let found = if declared.contains(':') { found } else { found.split_once(':').map_or(found, |(_, rest)| rest) };
    declared == "present" || found.strip_prefix(declared).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

#[cfg(test)]
mod tests;
