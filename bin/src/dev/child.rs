//! One process of the cluster that `dev` runs: this very program, with another verb.

use crate::exit::Failure;
use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use tokio::process::{Child, Command};

/// Starts `muster VERB --config FILE`. It writes to `log`, and ends when this process does, however that ends.
pub(super) fn spawn(verb: &str, file: &Path, log: &Path) -> Result<Child, Failure> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(log)
        .map_err(|error| Failure::error(format!("{} cannot be written: {error}", log.display()), ""))?;
    let child = Command::new(std::env::current_exe()?)
        .args([verb, "--until-stdin-closes", "--config"])
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    Ok(child)
}
