//! The library's log lines, as tracing events of ours. Its `info` is our `debug`: it tells every step.

use core::fmt::Write as _;
use slog::{Drain, KV, Level, Logger, Never, OwnedKVList, Record, Serializer, o};

struct ToTracing;

struct Pairs(alloc::string::String);

impl Serializer for Pairs {
    fn emit_arguments(&mut self, key: slog::Key, value: &core::fmt::Arguments<'_>) -> slog::Result {
        Ok(write!(self.0, " {key}={value}")?)
    }
}

impl Drain for ToTracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), Never> {
        let enabled = match record.level() {
            Level::Critical | Level::Error => tracing::enabled!(target: "raft", tracing::Level::ERROR),
            Level::Warning => tracing::enabled!(target: "raft", tracing::Level::WARN),
            Level::Info => tracing::enabled!(target: "raft", tracing::Level::DEBUG),
            Level::Debug | Level::Trace => tracing::enabled!(target: "raft", tracing::Level::TRACE),
        };
        if !enabled {
            return Ok(());
        }
        let mut pairs = Pairs(alloc::string::String::new());
        let _ = record.kv().serialize(record, &mut pairs);
        let (message, pairs) = (record.msg(), pairs.0);
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", "{message}{pairs}"),
            Level::Warning => tracing::warn!(target: "raft", "{message}{pairs}"),
            Level::Info => tracing::debug!(target: "raft", "{message}{pairs}"),
            Level::Debug | Level::Trace => tracing::trace!(target: "raft", "{message}{pairs}"),
        }
        Ok(())
    }
}

/// A logger that writes to tracing.
pub(super) fn to_tracing() -> Logger {
    Logger::root(ToTracing, o!())
}
