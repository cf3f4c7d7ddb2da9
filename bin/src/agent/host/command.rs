//! Programs the host runs: found by the usual path, in a plain environment, with an end in time.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a question may take.
pub(super) const SHORT: Duration = Duration::from_secs(20);
/// How long work may take: a package is fetched, a server is asked.
pub(super) const LONG: Duration = Duration::from_mins(10);

/// Runs a program to its end and gives what it printed; its last words if it failed.
pub(super) fn run(program: &str, arguments: &[&str], limit: Duration) -> Result<String, String> {
    let shown = || format!("{program} {}", arguments.join(" "));
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{program} cannot be run: {error}"))?;
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    // Both are read while it runs, so that it never waits for us.
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(stderr) = stderr.as_mut() {
            let _ = stderr.read_to_end(&mut text);
        }
        text
    });
    let output = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(stdout) = stdout.as_mut() {
            let _ = stdout.read_to_end(&mut text);
        }
        text
    });
    let began = Instant::now();
    let mut pause = Duration::from_millis(1);
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if began.elapsed() > limit => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{} did not end within {} s and was stopped", shown(), limit.as_secs()));
            }
            Ok(None) => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            Err(error) => return Err(format!("{}: {error}", shown())),
        }
    };
    let printed = output.join().unwrap_or_default();
    let complaint = reader.join().unwrap_or_default();
    if status.success() {
        return Ok(String::from_utf8_lossy(&printed).into_owned());
    }
    let words = if complaint.is_empty() { printed } else { complaint };
    let words = String::from_utf8_lossy(&words);
    let lines: Vec<&str> = words.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(5)..].join("; ");
    Err(format!("{} ended with {status}: {last}", shown()))
}
