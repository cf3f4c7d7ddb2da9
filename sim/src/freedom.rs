//! What the driver's contract leaves open, used: the log and the archive tell late, and in any order between them, what they have
//! done, and begin late what they are to do; the clock wakes its sleeper early.
//!
//! What the contract promises is kept: one batch of the log after the other, told in order; nothing told before it is durable.

use crate::draw::Draw;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// How the devices of one machine use their freedom. None of it, to begin with.
pub struct Freedom {
    late: AtomicU64,
    early: AtomicU64,
    draw: Mutex<Draw>,
}

impl Freedom {
    /// Devices that do everything at once.
    #[must_use]
    pub const fn new(draw: Draw) -> Self {
        Self { late: AtomicU64::new(0), early: AtomicU64::new(0), draw: Mutex::new(draw) }
    }

    /// From here on so many nanoseconds late at most, and so many early wake-ups in a hundred.
    pub fn set(&self, late: u64, early: u64) {
        self.late.store(late, Ordering::Relaxed);
        self.early.store(early, Ordering::Relaxed);
    }

    fn draw<T>(&self, from: impl FnOnce(&mut Draw) -> T) -> T {
        from(&mut self.draw.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How late the next thing is begun or told, in nanoseconds.
    #[must_use]
    pub fn lateness(&self) -> u64 {
        let late = self.late.load(Ordering::Relaxed);
        if late == 0 { 0 } else { self.draw(|draw| draw.below(late)) }
    }

    /// How long a sleep of so many nanoseconds lasts: all of it, or less.
    #[must_use]
    pub fn sleep(&self, nanos: u64) -> u64 {
        let early = self.early.load(Ordering::Relaxed);
        if early > 0 && self.draw(|draw| draw.percent(early)) { self.draw(|draw| draw.below(nanos)) } else { nanos }
    }
}
