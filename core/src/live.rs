//! The replicated state where it lives: one replica moves it, everybody else looks at it.
//!
//! A view is made when somebody asks for one, and shared by all who ask before the state moves on. While nobody holds one, applying
//! changes the state's maps in place; what a held view shares with the state is copied when it is changed, once.
//!
//! Invariants
//! - a view is the state right after one applied position, never half an entry;
//! - nobody sees an older one than somebody saw before;
//! - the lock is held for one entry or one clone, never while anything waits, and nothing that looks takes it again.

use crate::ids::{Index, Time};
use crate::request::ReplicaStatus;
use crate::state::State;
use alloc::sync::{Arc, Weak};
use parking_lot::Mutex;

/// A consistent view of the replicated state at one log position. Taken in O(1), held as long as one likes.
#[derive(Clone, Debug)]
pub struct View {
    /// The state.
    pub state: State,
    /// The replica's Raft state when it was published last; `applied` is the state's own position.
    pub status: Arc<ReplicaStatus>,
    /// Grows with every publication of this run.
    pub version: u64,
    /// When it was published.
    pub published: Time,
}

struct Moving {
    state: State,
    applied: Index,
    status: Arc<ReplicaStatus>,
    version: u64,
    published: Time,
    /// The view that was made last, while somebody holds it.
    newest: Weak<View>,
}

/// A replica's state, as it is shared with those who look at it.
pub(crate) struct Live(Mutex<Moving>);

impl Live {
    /// Of a replica that is about to tell what it is.
    pub(crate) fn new(state: State, applied: Index) -> Self {
        let status = Arc::default();
        Self(Mutex::new(Moving { state, applied, status, version: 0, published: Time(0), newest: Weak::new() }))
    }

    /// Asks something of the state.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.0.lock().state)
    }

    /// Moves the state to a position.
    pub(crate) fn advance<T>(&self, to: Index, change: impl FnOnce(&mut State) -> T) -> T {
        let mut moving = self.0.lock();
        moving.applied = to;
        change(&mut moving.state)
    }

    /// Tells what the replica is at the moment, under a version that is higher than any before.
    pub(crate) fn publish(&self, status: ReplicaStatus, version: u64, now: Time) {
        let status = Arc::new(status);
        let mut moving = self.0.lock();
        (moving.status, moving.version, moving.published) = (status, version, now);
    }

    pub(crate) fn view(&self) -> Arc<View> {
        let mut moving = self.0.lock();
        let newest = moving.newest.upgrade();
        if let Some(view) = newest.filter(|v| v.version == moving.version && v.status.applied == moving.applied) {
            return view;
        }
        // In the middle of a step the state is ahead of what was last told of the replica.
        let status = if moving.status.applied == moving.applied {
            moving.status.clone()
        } else {
            Arc::new(ReplicaStatus { applied: moving.applied, ..ReplicaStatus::clone(&moving.status) })
        };
        let view = Arc::new(View {
            state: moving.state.clone(),
            status,
            version: moving.version,
            published: moving.published,
        });
        moving.newest = Arc::downgrade(&view);
        view
    }
}
