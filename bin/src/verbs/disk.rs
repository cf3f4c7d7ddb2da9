//! Verbs that work on a data directory without a server: inspect, repair.
//!
//! `inspect` shows what is there in the seed's words: `vote` and `committed` are parts of the last hard state of the binary log.

use super::show;
use crate::exit::Failure;
use crate::text;
use muster_core::log::LogEntryKind;
use muster_core::storage::{Layer, Segment, SnapshotMeta, StorageError};
use muster_storage::inspect::{HistoryFile, SnapshotFile, WalContent, WalSegment};
use muster_storage::{Inspection, Lock, RealDisk, ready};
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

pub(crate) fn inspect(dir: &Path, json: bool) -> Result<(), Failure> {
    let found = ready(muster_storage::inspect(&RealDisk, dir))?;
    show(json, &inspection(&found), &inspection_text(dir, &found))?;
    if found.problems.is_empty() {
        return Ok(());
    }
    let problems: Vec<_> = found.problems.iter().map(ToString::to_string).collect();
    if found.problems.iter().all(|problem| matches!(problem, StorageError::Format { .. })) {
        // Nothing is damaged, and each says what reads it.
        return Err(Failure::error(problems.join("\n"), ""));
    }
    Err(Failure::error(
        format!("{} is damaged:\n  {}", dir.display(), problems.join("\n  ")),
        format!(
            "with the replica stopped, `muster repair {}` rebuilds what other files prove; for the rest there is \
             `muster replace`",
            dir.display()
        ),
    ))
}

fn inspection(found: &Inspection) -> Value {
    let identity = found.identity.as_ref().map(|identity| {
        object!({
            "cluster": identity.cluster.to_string(),
            "group": identity.group.0,
            "replica": identity.replica.0,
            "incarnation": identity.incarnation.to_string(),
            "name": identity.name.as_str(),
        })
    });
    let problems: Vec<_> = found.problems.iter().map(ToString::to_string).collect();
    object!({
        "identity": identity,
        "vote": { "term": found.hard_state.term.0, "voted_for": found.hard_state.vote.0 },
        "committed": { "index": found.hard_state.commit.0 },
        "log": {
            "after": { "index": found.log_start.0.0, "term": found.log_start.1.0 },
            "last": { "index": found.log_last.0.0, "term": found.log_last.1.0 },
        },
        "wal": found.wal.iter().map(wal_segment).collect::<Vec<_>>(),
        "snapshots": found.snapshots.iter().map(snapshot).collect::<Vec<_>>(),
        "history": found.history.iter().map(history).collect::<Vec<_>>(),
        "problems": problems,
    })
}

fn wal_segment(segment: &WalSegment) -> Value {
    let batches: Vec<Value> = segment
        .batches
        .iter()
        .map(|batch| {
            let records: Vec<Value> =
                batch.records.iter().map(|record| wal_record(record.offset, record.bytes, record.content)).collect();
            object!({
                "number": batch.number,
                "before": batch.before,
                "offset": batch.offset,
                "sectors": batch.sectors,
                "records": records,
            })
        })
        .collect();
    object!({
        "number": segment.number,
        "file": segment.file,
        "bytes": segment.bytes,
        "torn_batch": segment.torn,
        "batches": batches,
    })
}

fn wal_record(offset: u64, bytes: u64, content: WalContent) -> Value {
    match content {
        WalContent::HardState(state) => object!({
            "offset": offset,
            "bytes": bytes,
            "record": "hard-state",
            "term": state.term.0,
            "voted_for": state.vote.0,
            "commit": state.commit.0,
        }),
        WalContent::Entry { index, term, kind, data_bytes } => object!({
            "offset": offset,
            "bytes": bytes,
            "record": "entry",
            "index": index.0,
            "term": term.0,
            "kind": match kind {
                LogEntryKind::Normal => "normal",
                LogEntryKind::Membership => "membership",
            },
            "data_bytes": data_bytes,
        }),
        WalContent::Reset { index, term } => {
            object!({ "offset": offset, "bytes": bytes, "record": "reset", "index": index.0, "term": term.0 })
        }
    }
}

fn segment_json(segment: &Segment) -> Value {
    object!({
        "first": segment.first.0,
        "last": segment.last.0,
        "bytes": segment.bytes,
        "before": segment.before.to_string(),
        "head": segment.head.to_string(),
    })
}

fn snapshot(file: &SnapshotFile) -> Value {
    object!({ "file": file.file, "good": file.is_good, "kept": file.is_kept, "meta": file.meta.as_ref().map(meta) })
}

fn layer(layer: &Layer) -> Value {
    object!({
        "index": layer.index.0,
        "term": layer.term.0,
        "pages": layer.pages,
        "bytes": layer.bytes,
        "digest": layer.digest.to_string(),
    })
}

fn meta(meta: &SnapshotMeta) -> Value {
    object!({
        "index": meta.index.0,
        "term": meta.term.0,
        "configuration": crate::json::configuration(&meta.configuration),
        "sequence": meta.sequence.0,
        "head": meta.head.to_string(),
        "age_us": meta.age.0,
        "history": meta.history.iter().map(segment_json).collect::<Vec<_>>(),
        "layers": meta.layers.iter().map(layer).collect::<Vec<_>>(),
        "pages": meta.pages(),
        "bytes": meta.bytes(),
        "digest": meta.digest.to_string(),
    })
}

fn history(file: &HistoryFile) -> Value {
    object!({
        "file": file.file,
        "bytes": file.bytes,
        "good": file.is_good,
        "segment": file.segment.as_ref().map(segment_json),
    })
}

fn inspection_text(dir: &Path, found: &Inspection) -> String {
    let mut out = format!("{}\n", dir.display());
    if let Some(identity) = &found.identity {
        let _ = writeln!(out, "replica    {} ({}) of cluster {}", identity.replica, identity.name, identity.cluster);
    }
    let state = &found.hard_state;
    let _ = writeln!(out, "vote       term {}, for {}", state.term, state.vote);
    let _ = writeln!(out, "committed  {}", state.commit);
    let _ = writeln!(out, "log        after {} up to {}", found.log_start.0, found.log_last.0);
    for segment in &found.wal {
        let torn = segment.torn.map_or_else(String::new, |batch| format!(", torn batch {batch} at its end"));
        let _ = writeln!(
            out,
            "wal        {} ({} batches, {}{torn})",
            segment.file,
            segment.batches.len(),
            text::bytes(segment.bytes)
        );
    }
    let quality = |good: bool| if good { "good" } else { "DAMAGED" };
    for file in &found.snapshots {
        let bytes = file
            .meta
            .as_ref()
            .map_or_else(String::new, |meta| format!(", sequence {}, {}", meta.sequence, text::bytes(meta.bytes())));
        let _ = writeln!(out, "snapshot   {} ({}{bytes})", file.file, quality(file.is_good));
    }
    for file in &found.history {
        let here = match file.bytes {
            Some(bytes) => format!("{}, {}", quality(file.is_good), text::bytes(bytes)),
            None => "not here yet, to be fetched".to_owned(),
        };
        let _ = writeln!(out, "history    {} ({here})", file.file);
    }
    out
}
