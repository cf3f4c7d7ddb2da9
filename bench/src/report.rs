//! A run as a line of a table, or as JSON.

use crate::load::{Kind, Run};
use anyhow::Result;
use serde_json::json;
use std::io::Write as _;

/// The table's head.
pub(crate) fn heading(kind: &Kind) {
    let what = match kind {
        Kind::Commit { bytes, scope } => format!("commits of {bytes} bytes to {scope}"),
        Kind::Read { local: true } => "local reads".to_owned(),
        Kind::Read { local: false } => "linearizable reads".to_owned(),
        Kind::Boot { node } => format!("boots of {node}"),
    };
    let _ = writeln!(
        std::io::stdout(),
        "{what}\n{:>8} {:>12} {:>9} {:>9} {:>9} {:>9} {:>8}",
        "callers",
        "per second",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
        "failed"
    );
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn ms(micros: u64) -> f64 {
    micros as f64 / 1_000.0
}

/// Prints a run.
#[allow(clippy::cast_precision_loss, reason = "figures for people")]
pub(crate) fn print(run: &Run, as_json: bool) -> Result<()> {
    let per_second = run.latency.len() as f64 / run.seconds;
    let at = |quantile| ms(run.latency.value_at_quantile(quantile));
    let mut out = std::io::stdout();
    if as_json {
        let object = json!({
            "callers": run.callers,
            "seconds": run.seconds,
            "operations": run.latency.len(),
            "per_second": per_second,
            "p50_ms": at(0.5),
            "p99_ms": at(0.99),
            "p999_ms": at(0.999),
            "max_ms": ms(run.latency.max()),
            "failed": run.failed,
            "first_failure": run.first_failure,
        });
        writeln!(out, "{object}")?;
    } else {
        writeln!(
            out,
            "{:>8} {:>12.0} {:>9.3} {:>9.3} {:>9.3} {:>9.3} {:>8}",
            run.callers,
            per_second,
            at(0.5),
            at(0.99),
            at(0.999),
            ms(run.latency.max()),
            run.failed
        )?;
        if let Some(problem) = &run.first_failure {
            writeln!(out, "         the first failure: {problem}")?;
        }
    }
    Ok(())
}
