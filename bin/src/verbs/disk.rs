//! Verbs that work on a data directory without a server: inspect, repair.

use super::show;
use crate::exit::Failure;
use muster_storage::{Lock, RealDisk, ready};
use serde_json::{Value, json as object};
use std::fmt::Write as _;
use std::path::Path;

pub(crate) fn repair(dir: &Path, json: bool) -> Result<(), Failure> {
    let _lock = Lock::take(dir)?;
    let repaired = ready(muster_storage::repair(RealDisk, dir))?;
    let list: Vec<Value> = repaired
        .iter()
        .map(|item| object!({ "file": item.file, "problem": item.problem, "consequence": item.consequence }))
        .collect();
    let mut out = String::new();
    for item in &repaired {
        let _ = writeln!(out, "{}: {}; {}", item.file, item.problem, item.consequence);
    }
    if repaired.is_empty() {
        out = format!("nothing in {} is damaged\n", dir.display());
    }
    show(json, &object!({ "outcome": "repaired", "moved_aside": list }), &out)
}
