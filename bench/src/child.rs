//! Processes that are started for a measurement and end with it.

use anyhow::{Context as _, Result, bail};
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, Stdio};

/// A running process. Ended, at once, when it is dropped.
pub(crate) struct Child {
    process: Process,
    /// Closing it asks a muster server to stop by itself, should this process die without dropping anything.
    _standard_input: Option<std::process::ChildStdin>,
}

impl Child {
    /// Starts a program with everything it prints going to a log, to give way to others of the machine by `nice` of 0 to 19.
    pub(crate) fn spawn(program: &Path, nice: u8, arguments: &[String], log: &Path) -> Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = Command::new(if nice == 0 { program } else { Path::new("nice") });
        if nice != 0 {
            // It becomes the program, under the same number.
            command.args(["-n", &nice.to_string()]).arg(program);
        }
        let mut process = command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let standard_input = process.stdin.take();
        Ok(Self { process, _standard_input: standard_input })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a program to its end; its output is the error if it fails.
pub(crate) fn run(program: &Path, arguments: &[String]) -> Result<()> {
    let output =
        Command::new(program).args(arguments).output().with_context(|| format!("running {}", program.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} {}: {}", program.display(), arguments.join(" "), said.trim());
    }
    Ok(())
}

/// Free loopback ports. All are held until the last is found, so that they differ.
pub(crate) fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// A program: the path that was given, or the one that is found on `PATH`.
pub(crate) fn find(given: Option<&Path>, name: &str) -> Result<PathBuf> {
    if let Some(given) = given {
        return std::path::absolute(given).with_context(|| format!("{} is no path", given.display()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.with_context(|| format!("there is no {name} on PATH: install one, or say where it is (docs/performance.md)"))
}

/// The last lines of a log, to explain why its process ended.
pub(crate) fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
