//! Threads with a name and a place in the log, and loops that have one to themselves.

use crate::exit::Failure;
use std::thread::JoinHandle;
use tracing::Span;

/// A thread whose log lines carry what `span` says.
pub(crate) fn thread(name: &str, span: &Span, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Failure> {
    let span = span.clone();
    let builder = std::thread::Builder::new().name(format!("muster-{name}"));
    Ok(builder.spawn(move || span.in_scope(work))?)
}

/// Runs a loop on this thread, with timers. Sockets belong to the pool: without them a loop waits on a futex, not on a poll.
pub(crate) fn block_on<F: Future>(work: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime with timers can be made").block_on(work)
}
