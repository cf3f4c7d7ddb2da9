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
use core::sync::atomic::{AtomicU64, Ordering};
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
    /// How often the state, or what is told of the replica, had moved by then.
    moves: u64,
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
pub(crate) struct Live {
    moving: Mutex<Moving>,
    /// Grows with every move, while the lock is held.
    moves: AtomicU64,
}

impl Live {
    /// Of a replica that is about to tell what it is.
    pub(crate) fn new(state: State, applied: Index) -> Self {
        let status = Arc::default();
        let moving = Moving { state, applied, status, version: 0, published: Time(0), newest: Weak::new() };
        Self { moving: Mutex::new(moving), moves: AtomicU64::new(0) }
    }

    /// Asks something of the state.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.moving.lock().state)
    }

    /// Moves the state to a position.
    pub(crate) fn advance<T>(&self, to: Index, change: impl FnOnce(&mut State) -> T) -> T {
        let mut moving = self.moving.lock();
        self.moves.fetch_add(1, Ordering::Release);
        moving.applied = to;
        change(&mut moving.state)
    }

    /// Tells what the replica is at the moment, under a version that is higher than any before.
    pub(crate) fn publish(&self, status: ReplicaStatus, version: u64, now: Time) {
        let status = Arc::new(status);
        let mut moving = self.moving.lock();
        self.moves.fetch_add(1, Ordering::Release);
        // Entries that leave the state as it is, such as a leader's first, move the position alone.
        moving.applied = status.applied;
        (moving.status, moving.version, moving.published) = (status, version, now);
    }

    /// Whether nothing has moved since a view was made. Takes no lock.
    pub(crate) fn is_newest(&self, view: &View) -> bool {
        view.moves == self.moves.load(Ordering::Acquire)
    }

    pub(crate) fn view(&self) -> Arc<View> {
        let mut moving = self.moving.lock();
        let newest = moving.newest.upgrade();
        let moves = self.moves.load(Ordering::Relaxed);
        if let Some(view) = newest.filter(|view| view.moves == moves) {
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
            moves,
        });
        moving.newest = Arc::downgrade(&view);
        view
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ClusterId;

    #[test]
    fn a_view_is_the_newest_until_something_moves_and_whoever_asks_then_gets_another() {
        let live = Live::new(State::empty(ClusterId(1)), Index(0));
        let first = live.view();
        assert!(live.is_newest(&first));
        assert!(Arc::ptr_eq(&first, &live.view()), "nothing moved");
        live.advance(Index(1), |_| ());
        assert!(!live.is_newest(&first));
        let second = live.view();
        assert_eq!((second.status.applied, live.is_newest(&second)), (Index(1), true));
        live.publish(ReplicaStatus { applied: Index(1), ..ReplicaStatus::default() }, 1, Time(5));
        assert!(!live.is_newest(&second), "what is told of the replica moved");
        assert_eq!(live.view().version, 1);
    }
}
