//! The README's commands, run as they stand there: those for a running cluster against the one that `muster dev` brings up, the
//! others as far as their command line can be judged.

mod common;

use common::{MUSTER, Running};
use std::io::BufRead as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// The `muster` commands of all console blocks, in order.
fn commands() -> Vec<String> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let mut inside = false;
    let mut commands = Vec::new();
    for line in readme.lines() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if let Some(command) = line.strip_prefix("$ ").filter(|line| inside && line.starts_with("muster ")) {
            commands.push(command.to_owned());
        }
    }
    commands
}

#[test]
fn the_commands_of_the_readme_do_what_they_say() {
    let dev =
        Command::new(MUSTER).args(["dev", "--json"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut dev = Running(dev);
    let mut ready = String::new();
    // Held until the end: `dev` stops when nobody reads what it prints.
    let mut output = std::io::BufReader::new(dev.0.stdout.take().unwrap());
    output.read_line(&mut ready).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
    let context = ready["context"].as_str().unwrap();
    let place = Path::new(MUSTER).parent().unwrap().display().to_string();
    let path = format!("{place}:{}", std::env::var("PATH").unwrap());
    let mut broken = Vec::new();
    let commands = commands();
    assert!(commands.len() >= 8, "{commands:?}");
    for command in &commands {
        // What needs the reader's own machine is judged by its command line alone.
        let line = if command.contains("/etc/") {
            format!("{} --help", command.split(" #").next().unwrap())
        } else {
            command.clone()
        };
        let output = Command::new("sh")
            .args(["-c", &line])
            .env("PATH", &path)
            .env("USER", "tester")
            .env("MUSTER_CONTEXT", context)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        if !output.status.success() {
            broken.push(format!("{line}: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    dev.interrupt();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
