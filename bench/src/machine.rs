//! On what and beside what a run was measured: figures without it mean nothing.

use serde_json::{Value, json};
use std::path::Path;

/// The machine in one line, its load, and the file system that the data is on.
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) load: String,
    pub(crate) file_system: String,
}

/// The file system of the mount that a path is on.
fn file_system_of(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let fields = mounts.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let nearest = fields.filter(|(at, _)| path.starts_with(at)).max_by_key(|(at, _)| at.len());
    nearest.map_or_else(|| "unknown".to_owned(), |(_, kind)| kind.to_owned())
}

impl Machine {
    pub(crate) fn look(dir: &Path) -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(": "));
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            processor: name.map_or_else(|| "unknown processor".to_owned(), |(_, name)| name.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            load: load.split_whitespace().next().unwrap_or("unknown").to_owned(),
            file_system: file_system_of(dir),
        }
    }

    /// Whether a sync there costs anything.
    pub(crate) fn forgets(&self) -> bool {
        matches!(self.file_system.as_str(), "tmpfs" | "ramfs")
    }

    pub(crate) fn line(&self) -> String {
        let Self { processor, cores, load, file_system } = self;
        format!("{cores} cores ({processor}), load {load} before the run, data on {file_system}")
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "processor": self.processor,
            "cores": self.cores,
            "load": self.load,
            "file_system": self.file_system,
        })
    }
}
