//! Runs as a table for people, as JSON for programs, and medians and ratios over rounds.

use crate::load::Run;
use crate::machine::Machine;
use anyhow::Result;
use serde_json::{Value, json};
use std::io::Write as _;

/// The figures of a run, or the medians of several.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    pub(crate) callers: u32,
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
    /// CPU microseconds of the servers for one operation.
    pub(crate) server_cpu_us: f64,
    /// CPU microseconds of the client for one operation.
    pub(crate) client_cpu_us: f64,
    /// MiB of the largest server process.
    pub(crate) resident_mib: f64,
    pub(crate) failed: u64,
    pub(crate) first_failure: Option<String>,
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Figures {
    pub(crate) fn of(run: &Run) -> Self {
        let (server_cpu_us, client_cpu_us) = run.cpu_per_operation();
        Self {
            callers: run.callers,
            per_second: run.per_second(),
            p50_ms: run.at(0.5),
            p99_ms: run.at(0.99),
            p999_ms: run.at(0.999),
            max_ms: run.max(),
            server_cpu_us,
            client_cpu_us,
            resident_mib: mib(run.resident),
            failed: run.failed,
            first_failure: run.first_failure.clone(),
        }
    }

    /// Each figure's median; failures add up.
    pub(crate) fn medians(rounds: &[Self]) -> Self {
        let of = |pick: fn(&Self) -> f64| median(rounds.iter().map(pick).collect());
        Self {
            callers: rounds.first().map_or(0, |round| round.callers),
            per_second: of(|f| f.per_second),
            p50_ms: of(|f| f.p50_ms),
            p99_ms: of(|f| f.p99_ms),
            p999_ms: of(|f| f.p999_ms),
            max_ms: of(|f| f.max_ms),
            server_cpu_us: of(|f| f.server_cpu_us),
            client_cpu_us: of(|f| f.client_cpu_us),
            resident_mib: of(|f| f.resident_mib),
            failed: rounds.iter().map(|round| round.failed).sum(),
            first_failure: rounds.iter().find_map(|round| round.first_failure.clone()),
        }
    }

    fn json(&self) -> Value {
        json!({
            "callers": self.callers,
            "per_second": self.per_second,
            "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms,
            "p999_ms": self.p999_ms,
            "max_ms": self.max_ms,
            "server_cpu_us": self.server_cpu_us,
            "client_cpu_us": self.client_cpu_us,
            "resident_mib": self.resident_mib,
            "failed": self.failed,
            "first_failure": self.first_failure,
        })
    }
}

/// The median; 0 of nothing.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[odd / 2],
        even => f64::midpoint(values[even / 2 - 1], values[even / 2]),
    }
}

/// Where results go.
pub(crate) struct Report {
    json: bool,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    fn line(text: &str) -> Result<()> {
        Ok(writeln!(std::io::stdout(), "{text}")?)
    }

    /// A line for people only.
    pub(crate) fn say(&self, text: &str) -> Result<()> {
        if self.json { Ok(()) } else { Self::line(text) }
    }

    /// An object for programs only.
    pub(crate) fn give(&self, value: &Value) -> Result<()> {
        if self.json { Self::line(&value.to_string()) } else { Ok(()) }
    }

    /// What is measured, on what.
    pub(crate) fn begin(&self, what: &str, machine: &Machine) -> Result<()> {
        self.say(&format!("{what}\n{}", machine.line()))?;
        if machine.forgets() {
            self.say(
                "the data is on a file system that forgets everything: syncs cost nothing there, name another --dir",
            )?;
        }
        self.give(&json!({ "what": what, "machine": machine.json() }))
    }

    /// The table's head.
    pub(crate) fn heading(&self) -> Result<()> {
        self.say(&format!(
            "\n{:<8} {:>7} {:>11} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10} {:>8} {:>6}",
            "side",
            "callers",
            "per second",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "max ms",
            "server µs",
            "client µs",
            "MiB",
            "failed"
        ))
    }

    pub(crate) fn row(&self, side: &str, round: Option<u32>, figures: &Figures) -> Result<()> {
        let mut object = figures.json();
        object["side"] = side.into();
        object["round"] = round.into();
        self.give(&object)?;
        self.say(&format!(
            "{side:<8} {:>7} {:>11.0} {:>9.3} {:>9.3} {:>9.3} {:>9.3} {:>10.1} {:>10.1} {:>8.0} {:>6}",
            figures.callers,
            figures.per_second,
            figures.p50_ms,
            figures.p99_ms,
            figures.p999_ms,
            figures.max_ms,
            figures.server_cpu_us,
            figures.client_cpu_us,
            figures.resident_mib,
            figures.failed
        ))?;
        match &figures.first_failure {
            Some(problem) => self.say(&format!("         the first failure: {problem}")),
            None => Ok(()),
        }
    }

    /// One side beside the other: throughput as a multiple, latencies and CPU as fractions.
    pub(crate) fn ratio(&self, ours: &Figures, theirs: &Figures, name: &str) -> Result<()> {
        let over = |a: f64, b: f64| if b > 0.0 { a / b } else { f64::NAN };
        let cpu = |f: &Figures| f.server_cpu_us + f.client_cpu_us;
        let (throughput, p50, p99, cpu) = (
            over(ours.per_second, theirs.per_second),
            over(ours.p50_ms, theirs.p50_ms),
            over(ours.p99_ms, theirs.p99_ms),
            over(cpu(ours), cpu(theirs)),
        );
        self.give(&json!({
            "ratio_to": name, "callers": ours.callers, "per_second": throughput, "p50": p50, "p99": p99, "cpu": cpu,
        }))?;
        self.say(&format!(
            "  at {:>5} callers: {throughput:.2} times {name}'s throughput, {p50:.2} of its p50, {p99:.2} of its p99, \
             {cpu:.2} of its CPU an operation",
            ours.callers
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(Vec::new()).abs() < f64::EPSILON);
    }
}
