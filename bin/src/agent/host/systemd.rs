//! Services as units of systemd, by `systemctl`.
//!
//! Changes are seen without asking systemd: it keeps a link in `/run/systemd/units` for every unit that runs, which is another
//! with every start, and enabling a unit makes links below `/etc/systemd/system`.

use super::command::{LONG, SHORT, run};
use super::processes;
use muster_core::agent::host::Observed;
use muster_core::agent::value::service::Service;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Whether systemd is what started this machine.
pub(super) fn is_there() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// The unit of a service: its name, with `.service` unless it names another kind.
fn unit(name: &str) -> String {
    const KINDS: [&str; 6] = [".service", ".socket", ".timer", ".target", ".path", ".mount"];
    if KINDS.iter().any(|kind| name.ends_with(kind)) { name.to_owned() } else { format!("{name}.service") }
}

#[derive(Clone, Debug, Default)]
struct Shown {
    load: String,
    active: String,
    file: String,
    group: String,
}

/// One question for many units. The answers come in the order of the question.
fn show(names: &[&str]) -> Result<Vec<Shown>, String> {
    let units: Vec<String> = names.iter().map(|name| unit(name)).collect();
    let mut arguments = vec!["show", "--property=LoadState,ActiveState,UnitFileState,ControlGroup", "--"];
    arguments.extend(units.iter().map(String::as_str));
    let text = run("systemctl", &arguments, SHORT)?;
    let mut all = Vec::new();
    for block in text.split("\n\n") {
        let mut shown = Shown::default();
        for (field, value) in block.lines().filter_map(|line| line.split_once('=')) {
            match field {
                "LoadState" => value.clone_into(&mut shown.load),
                "ActiveState" => value.clone_into(&mut shown.active),
                "UnitFileState" => value.clone_into(&mut shown.file),
                "ControlGroup" => value.clone_into(&mut shown.group),
                _ => {}
            }
        }
        all.push(shown);
    }
    if all.len() == names.len() {
        Ok(all)
    } else {
        Err(format!("systemctl told of {} of {} units", all.len(), names.len()))
    }
}

fn service(shown: &Shown) -> Option<Service> {
    if shown.load == "not-found" {
        return None;
    }
    let enabled = match shown.file.as_str() {
        "enabled" | "enabled-runtime" | "linked" | "linked-runtime" => Some(true),
        "disabled" | "masked" | "masked-runtime" => Some(false),
        // Static, generated, an alias: others decide when it starts.
        _ => None,
    };
    Some(Service {
        running: matches!(shown.active.as_str(), "active" | "activating" | "reloading"),
        enabled,
        command: None,
    })
}

pub(super) fn observe(names: &[&str]) -> BTreeMap<String, Observed> {
    let mut found = BTreeMap::new();
    // A command line has its bounds.
    for some in names.chunks(256) {
        match show(some) {
            Ok(all) => found.extend(some.iter().zip(all).map(|(name, shown)| {
                let observed =
                    service(&shown).map_or(Observed::Absent, |service| Observed::Value(service.to_string().into()));
                ((*name).to_owned(), observed)
            })),
            Err(why) => {
                found.extend(some.iter().map(|name| ((*name).to_owned(), Observed::Unseen(why.as_str().into()))));
            }
        }
    }
    found
}

pub(super) fn check(name: &str, wanted: Option<&Service>) -> Result<(), String> {
    let Some(wanted) = wanted else { return Ok(()) };
    if wanted.command.is_some() {
        return Err("systemd runs the services of this machine; command= is for machines without it".to_owned());
    }
    let shown = show(&[name])?;
    let there = shown.first().and_then(service);
    match there {
        None if wanted.running || wanted.enabled == Some(true) => Err(format!("systemd knows no unit {}", unit(name))),
        Some(there) if wanted.enabled.is_some() && there.enabled.is_none() => {
            Err(format!("{} can be neither enabled nor disabled: other units decide when it starts", unit(name)))
        }
        _ => Ok(()),
    }
}

/// First whether it starts with the machine, then whether it runs; the first is taken back if the second fails.
pub(super) fn change(name: &str, wanted: Option<&Service>) -> Result<(), String> {
    check(name, wanted)?;
    let unit = unit(name);
    let there = show(&[name])?.first().and_then(service);
    let gone = Service { running: false, enabled: Some(false), command: None };
    let (wanted, there) = match (wanted, there) {
        (None, None) => return Ok(()),
        (None, Some(there)) => (&gone, there),
        (Some(wanted), there) => (wanted, there.unwrap_or_else(|| gone.clone())),
    };
    let enable = |on: bool| run("systemctl", &[if on { "enable" } else { "disable" }, "--", &unit], LONG).map(drop);
    let turned = match (wanted.enabled, there.enabled) {
        (Some(on), Some(was)) if on != was => {
            enable(on)?;
            Some(was)
        }
        _ => None,
    };
    let verb = if wanted.running { "start" } else { "stop" };
    run("systemctl", &[verb, "--", &unit], LONG).map(drop).inspect_err(|_| {
        if let Some(was) = turned {
            let _ = enable(was);
        }
    })
}

/// The processes in the unit's control group.
pub(super) fn processes(name: &str) -> Vec<u32> {
    let Ok(shown) = show(&[name]) else { return Vec::new() };
    let Some(group) = shown.first().map(|shown| shown.group.as_str()).filter(|group| !group.is_empty()) else {
        return Vec::new();
    };
    let mut pids = Vec::new();
    for hierarchy in ["/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"] {
        let mut groups = vec![PathBuf::from(format!("{hierarchy}{group}"))];
        while let Some(path) = groups.pop() {
            pids.extend(processes::numbers(&path.join("cgroup.procs")));
            let listing = std::fs::read_dir(&path).into_iter().flatten().flatten();
            groups.extend(
                listing.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
            );
        }
    }
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Changes with every start, stop, enabling and disabling.
pub(super) fn trace(name: &str) -> String {
    let unit = unit(name);
    let run = std::fs::read_link(format!("/run/systemd/units/invocation:{unit}"));
    let mut trace = run.map_or_else(|_| String::new(), |link| link.to_string_lossy().into_owned());
    for directory in ["/etc/systemd/system", "/etc/systemd/system/multi-user.target.wants", "/run/systemd/system"] {
        if let Ok(metadata) = std::fs::metadata(directory) {
            let _ = write!(trace, " {}.{}", metadata.mtime(), metadata.mtime_nsec());
        }
    }
    trace
}
