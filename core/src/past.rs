//! What a scope declared at an earlier sequence: the newest snapshot that is not later, then the records after it.
//!
//! So the answer costs the distance to that snapshot, and what of the snapshot lies before the scope's end; not what the journal
//! has grown to. Before the lowest layer that is kept, every record from the first is read. A snapshot that cannot be read, or is
//! gone meanwhile, is done without.
//!
//! Never looks at live state.

use crate::codec::decode_record;
use crate::codec::state::ScopeLoader;
use crate::ids::Seq;
use crate::journal::fold::Fold;
use crate::journal::key::Scope;
use crate::storage::{Library, SnapshotMeta, StorageError};
use alloc::format;
use alloc::string::{String, ToString};
use core::task::Poll;
use tracing::warn;

/// Stored bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PastError {
    /// This record is not here yet: the history is being fetched.
    Missing(Seq),
    /// What is here cannot be read.
    Storage(StorageError),
    /// What is here is not the journal.
    Broken(String),
}

/// What a scope declared right after a sequence that is recorded already.
///
/// # Errors
/// [`PastError`].
pub async fn scope_at<L: Library>(library: &L, scope: &Scope, at: Seq) -> Result<Fold, PastError> {
    let mut fold = begin(library, scope, at).await;
    while fold.sequence() < at {
        let records = library.records(fold.sequence(), at, READ_BYTES).await.map_err(PastError::Storage)?;
        if records.is_empty() {
            return Err(PastError::Missing(fold.sequence().next()));
        }
        for (sequence, bytes) in records {
            let due = fold.sequence().next();
            let record = decode_record(&bytes).map_err(|error| PastError::Broken(error.to_string()))?;
            if sequence != due || record.sequence() != due {
                return Err(PastError::Broken(format!("the history here gives {sequence} where {due} is due")));
            }
            fold.push(&record);
        }
        let_others_go().await;
    }
    Ok(fold)
}

/// Where to go on from: the newest snapshot at or before `at`, or the beginning.
async fn begin<L: Library>(library: &L, scope: &Scope, at: Seq) -> Fold {
    // Format 1 of snapshots knows no parts, and what lasts does not come before what passes.
    let Some(meta) = library.snapshot_at(at).filter(SnapshotMeta::has_digest) else { return Fold::new(scope.clone()) };
    match from_snapshot(library, scope, &meta).await {
        Ok(fold) => fold,
        Err(problem) => {
            warn!(snapshot = %meta.index, problem, "a snapshot cannot be read; the past is read from the first record");
            Fold::new(scope.clone())
        }
    }
}

async fn from_snapshot<L: Library>(library: &L, scope: &Scope, meta: &SnapshotMeta) -> Result<Fold, String> {
    let mut loader = ScopeLoader::new(scope.clone());
    for layer in &meta.layers {
        loader.begin_layer();
        for page in 0..layer.lasting {
            let read = library.page(layer.index, layer.term, page).await.map_err(|error| error.to_string())?;
            let at = || format!("page {page} of the layer at {}", layer.index);
            let bytes = read.ok_or_else(|| format!("{} is gone", at()))?;
            let goes_on = loader.page(&bytes).map_err(|error| format!("{}: {error}", at()))?;
            let_others_go().await;
            if !goes_on {
                break;
            }
        }
    }
    Ok(loader.finish(meta.sequence))
}

/// Gives way once: a real disk's calls are done when they return, and the past may be long.
async fn let_others_go() {
    let mut has_waited = false;
    core::future::poll_fn(|context| {
        if core::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
