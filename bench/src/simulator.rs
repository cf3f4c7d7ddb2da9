//! The simulator: how long a run of a story takes, in processor time and on the clock, and what memory.
//!
//! `muster-sim` plays in a process of its own, for its build marks what is reached in the engine, and what is measured beside it is
//! built without that.

use crate::child;
use crate::load::histogram;
use crate::machine::Machine;
use crate::report::{Report, mib};
use crate::usage;
use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The simulator beside this program, unless another is named.
pub(crate) fn program(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(given) = given {
        return child::find(Some(given), "muster-sim");
    }
    let beside = std::env::current_exe()?.with_file_name("muster-sim");
    if !beside.is_file() {
        bail!(
            "{} is not there: build it with `cargo build --release -p muster-sim`, or name one with --simulator",
            beside.display()
        );
    }
    Ok(beside)
}

/// What the runs of one story came to.
struct Played {
    wall: Histogram<u64>,
    events: u64,
    simulated: Duration,
    /// Seeds at which a property did not hold.
    failed: Vec<u64>,
    cpu: Duration,
    /// Of the process that played them all, in bytes.
    peak: u64,
}

impl Played {
    fn new() -> Self {
        Self {
            wall: histogram(),
            events: 0,
            simulated: Duration::ZERO,
            failed: Vec::new(),
            cpu: Duration::ZERO,
            peak: 0,
        }
    }

    /// One run, as the simulator tells it, that took so long.
    fn take(&mut self, line: &str, took: Duration) -> Result<()> {
        let run: Value = serde_json::from_str(line).with_context(|| format!("what muster-sim tells: {line}"))?;
        let number = |key: &str| run[key].as_u64().with_context(|| format!("muster-sim tells no {key}: {line}"));
        self.wall.saturating_record(crate::load::micros(took));
        self.events += number("events")?;
        self.simulated += Duration::from_micros(number("simulated_us")?);
        if run["good"] != true {
            self.failed.push(number("seed")?);
        }
        Ok(())
    }
}

fn play(program: &Path, story: &Path, seeds: u64) -> Result<Played> {
    let mut played = Played::new();
    let before = usage::of_children();
    let mut began = Instant::now();
    let mut process = Command::new(program)
        .arg("run")
        .arg(story)
        .args(["--json", "--jobs", "1", "--seeds", &format!("1..{}", seeds + 1)])
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let output = process.stdout.take().context("its output is a pipe")?;
    for line in BufReader::new(output).lines() {
        played.take(&line?, began.elapsed())?;
        began = Instant::now();
        played.peak = played.peak.max(usage::peak_of(process.id()));
    }
    process.wait()?;
    if played.wall.is_empty() {
        bail!("{} played nothing of {}: what it says is above", program.display(), story.display());
    }
    played.cpu = usage::of_children().saturating_sub(before);
    Ok(played)
}

/// Plays each story at the seeds from 1 on.
pub(crate) fn run(program: &Path, stories: &[PathBuf], seeds: u64, dir: &Path, report: &Report) -> Result<()> {
    report.begin(&format!("runs of the simulator, {seeds} of each story, one at a time"), &Machine::look(dir))?;
    report.say(&format!(
        "\n{:<24} {:>5} {:>9} {:>9} {:>9} {:>10} {:>11} {:>12} {:>13} {:>6} {:>6}",
        "story",
        "runs",
        "p50 ms",
        "p99 ms",
        "max ms",
        "CPU ms each",
        "runs/h core",
        "events/CPU s",
        "simulated s/s",
        "MiB",
        "failed"
    ))?;
    for story in stories {
        let played = play(program, story, seeds)?;
        let name = story.file_stem().unwrap_or_default().to_string_lossy();
        let at = |quantile| Duration::from_micros(played.wall.value_at_quantile(quantile)).as_secs_f64() * 1e3;
        #[allow(clippy::cast_precision_loss, reason = "figures for people")]
        let (runs, events) = (played.wall.len() as f64, played.events as f64);
        let cpu = played.cpu.as_secs_f64().max(f64::EPSILON);
        let (each, hourly, paced) = (cpu * 1e3 / runs, 3_600.0 * runs / cpu, events / cpu);
        let faster = played.simulated.as_secs_f64() / cpu;
        report.give(&json!({
            "story": name, "runs": played.wall.len(), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0),
            "cpu_ms": each, "runs_per_hour": hourly, "events_per_cpu_second": paced,
            "simulated_seconds_per_cpu_second": faster, "peak_mib": mib(played.peak), "failed_seeds": played.failed,
        }))?;
        report.say(&format!(
            "{name:<24} {:>5} {:>9.0} {:>9.0} {:>9.0} {each:>10.0} {hourly:>11.0} {paced:>12.0} {faster:>13.0} {:>6.0} {:>6}",
            played.wall.len(),
            at(0.5),
            at(0.99),
            at(1.0),
            mib(played.peak),
            played.failed.len(),
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Played;
    use std::time::Duration;

    #[test]
    fn runs_add_up_and_what_is_no_run_is_an_error() {
        let mut played = Played::new();
        let took = Duration::from_millis(3);
        played.take(r#"{"events": 10, "good": true, "seed": 1, "simulated_us": 2000000}"#, took).unwrap();
        played.take(r#"{"events": 5, "good": false, "seed": 2, "simulated_us": 500000}"#, took).unwrap();
        assert_eq!((played.events, played.simulated, &played.failed[..]), (15, Duration::from_millis(2_500), &[2][..]));
        assert_eq!(played.wall.len(), 2);
        assert!(played.take("all is well", took).unwrap_err().to_string().contains("all is well"));
        assert!(played.take(r#"{"good": true, "seed": 3}"#, took).unwrap_err().to_string().contains("events"));
    }
}
