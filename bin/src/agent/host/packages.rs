//! Installed packages, by the machine's own package manager: dpkg and apt-get, or rpm and dnf (or yum, or zypper).
//!
//! Confined to a directory, packages are read from the package database in it and never installed or removed.

use super::command::{LONG, SHORT, run};
use super::root::Root;
use muster_core::agent::host::Observed;
use muster_core::agent::value;
use muster_core::journal::key::{Dimension, Key, Setting};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Versions by package.
pub(super) type Installed = BTreeMap<String, String>;

const DPKG: &str = "/var/lib/dpkg";
const RPM: [&str; 3] = ["/var/lib/rpm", "/usr/lib/sysimage/rpm", "/usr/share/rpm"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manager {
    Dpkg,
    Rpm,
}

fn manager(root: &Root) -> Result<Manager, String> {
    if root.outside(DPKG).join("status").exists() {
        Ok(Manager::Dpkg)
    } else if RPM.iter().any(|dir| root.outside(dir).is_dir()) {
        Ok(Manager::Rpm)
    } else {
        Err(format!("there is no package database below {}: neither dpkg's nor rpm's", root.path().display()))
    }
}

pub(super) fn read(root: &Root) -> Result<Installed, String> {
    let text = match manager(root)? {
        Manager::Dpkg => {
            let admin = format!("--admindir={}", root.outside(DPKG).display());
            run("dpkg-query", &[&admin, "-W", "-f", "${db:Status-Status}\t${Package}\t${Version}\n"], SHORT)?
        }
        Manager::Rpm => {
            let path = root.path().display().to_string();
            let format = "installed\t%{NAME}\t%|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}\n";
            run("rpm", &["--root", &path, "-qa", "--qf", format], SHORT)?
        }
    };
    let row = |line: &str| {
        let mut fields = line.split('\t');
        (fields.next() == Some("installed")).then_some(())?;
        Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
    };
    Ok(text.lines().filter_map(row).collect())
}

pub(super) fn observe(installed: &Result<Installed, String>, name: &str) -> Observed {
    match installed {
        Err(why) => Observed::Unseen(why.as_str().into()),
        Ok(installed) => {
            installed.get(name).map_or(Observed::Absent, |version| Observed::Value(version.as_str().into()))
        }
    }
}

pub(super) fn check(root: &Root) -> Result<(), String> {
    if root.is_confined() {
        return Err("packages are observed under --root, never installed or removed".to_owned());
    }
    manager(root).map(drop)
}

/// Changes when a package is installed or removed.
pub(super) fn trace(root: &Root) -> String {
    let mut trace = String::new();
    let files = [format!("{DPKG}/status")].into_iter().chain(
        RPM.iter().flat_map(|dir| ["rpmdb.sqlite", "Packages", "Packages.db"].map(|file| format!("{dir}/{file}"))),
    );
    for file in files {
        if let Ok(metadata) = std::fs::metadata(root.outside(&file)) {
            // A string takes whatever is written to it.
            let _ = write!(trace, "{} {}.{};", metadata.ino(), metadata.mtime(), metadata.mtime_nsec());
        }
    }
    trace
}

/// Whether an installed version is what is wanted, as values are compared.
fn agrees(name: &str, wanted: &str, version: &str) -> bool {
    let key = Key::new(&format!("{}:{name}", Dimension::Packages.word()));
    key.is_ok_and(|key| value::agrees(&key, &Setting::Value(wanted.into()), &Observed::Value(version.into())))
}

/// Only the machine's own packages are changed, never those below a root.
pub(super) fn install(name: &str, wanted: &str) -> Result<(), String> {
    let root = Path::new("/");
    if root.join(DPKG.trim_start_matches('/')).join("status").exists() {
        let mut what = name.to_owned();
        if wanted != "present" {
            what = format!("{name}={}", dpkg_version(name, wanted)?);
        }
        return apt(&["install", "--allow-downgrades", &what]);
    }
    let what = if wanted == "present" { name.to_owned() } else { format!("{name}-{}", rpm_version(wanted)) };
    let program = rpm_program()?;
    // Going back to an older version is a verb of its own there.
    run(&program, &["-y", "install", &what], LONG)
        .or_else(|why| if wanted == "present" { Err(why) } else { run(&program, &["-y", "downgrade", &what], LONG) })?;
    Ok(())
}

pub(super) fn remove(name: &str) -> Result<(), String> {
    if Path::new(DPKG).join("status").exists() {
        return apt(&["remove", name]);
    }
    run(&rpm_program()?, &["-y", "remove", name], LONG).map(drop)
}

fn apt(arguments: &[&str]) -> Result<(), String> {
    let mut all = vec!["-y", "-q", "-o", "Dpkg::Options::=--force-confold", "-o", "DPkg::Lock::Timeout=60"];
    all.extend(arguments);
    run("apt-get", &all, LONG).map(drop)
}

/// The full version that a wanted one stands for, among those that can be had.
fn dpkg_version(name: &str, wanted: &str) -> Result<String, String> {
    let text = run("apt-cache", &["madison", name], SHORT)?;
    let offered: Vec<&str> = text.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim).collect();
    if let Some(version) = offered.iter().find(|version| agrees(name, wanted, version)) {
        return Ok((*version).to_owned());
    }
    let offered = if offered.is_empty() { "none".to_owned() } else { offered.join(", ") };
    Err(format!("{name} {wanted} cannot be had from the configured sources; versions on offer: {offered}"))
}

/// rpm names a version without its epoch.
fn rpm_version(wanted: &str) -> &str {
    wanted.split_once(':').map_or(wanted, |(_, version)| version)
}

fn rpm_program() -> Result<String, String> {
    let there = |name: &str| ["/usr/bin", "/usr/sbin", "/bin"].iter().any(|dir| Path::new(dir).join(name).exists());
    ["dnf", "yum", "zypper"]
        .into_iter()
        .find(|name| there(name))
        .map(str::to_owned)
        .ok_or_else(|| "this machine has rpm's database, but none of dnf, yum and zypper to change it with".to_owned())
}

/// The files of a package, for who uses them.
pub(super) fn files(root: &Root, name: &str) -> Vec<PathBuf> {
    let path = root.path().display().to_string();
    let listing = match manager(root) {
        Ok(Manager::Dpkg) => {
            let admin = format!("--admindir={}", root.outside(DPKG).display());
            run("dpkg-query", &[&admin, "-L", name], SHORT)
        }
        Ok(Manager::Rpm) => run("rpm", &["--root", &path, "-ql", name], SHORT),
        Err(why) => Err(why),
    };
    let listing = listing.unwrap_or_default();
    listing.lines().filter(|line| line.starts_with('/')).map(|line| root.outside(line)).collect()
}
