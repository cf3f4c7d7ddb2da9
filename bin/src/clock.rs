//! The real clock. Only the driver's loops hold it.

use muster_core::clock::Clock;
use muster_core::ids::{Time, WallTime};
use std::time::{Duration, Instant};

/// Monotonic time since this value was made, and the machine's wall clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RealClock {
    start: Instant,
}

impl RealClock {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for RealClock {
    fn now(&self) -> Time {
        Time(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn wall(&self) -> WallTime {
        crate::verbs::write::wall_time()
    }

    async fn sleep_until(&self, time: Time) {
        tokio::time::sleep_until((self.start + Duration::from_nanos(time.0)).into()).await;
    }
}
