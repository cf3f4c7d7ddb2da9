//! What core needs of a clock. Only the driver's loops hold one; decisions are told the time.

use crate::ids::{Time, WallTime};

/// Time, real or simulated.
pub trait Clock: Clone + Send + Sync + 'static {
    /// Monotonic time since the process started.
    fn now(&self) -> Time;
    /// The wall clock. For people.
    fn wall(&self) -> WallTime;
    /// Waits until `now()` is at least `time`. May come back early: whoever needs the time looks at it.
    fn sleep_until(&self, time: Time) -> impl Future<Output = ()> + Send;
}
