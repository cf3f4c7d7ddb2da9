//! Logs: lines for people or one JSON object a line, to standard error, so that standard output stays the program's.
//!
//! Every line of a server carries the replica; term and index come with the events that have them. Levels mean: `error` we
//! stop, `warn` a human may care, `info` a change of role or membership, `debug` a decision, `trace` a message.

use crate::config::{Config, LogFormat};
use tracing_subscriber::EnvFilter;

/// Starts logging as a replica's file says. `RUST_LOG` beats the file.
pub(crate) fn start(config: &Config) {
    begin(&config.log_level, config.log_format);
}

/// Starts logging.
pub(crate) fn begin(level: &str, format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
