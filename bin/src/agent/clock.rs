//! The agent's clock: time since the machine booted, suspend included.

use muster_core::agent::driver::BootClock;
use muster_core::agent::host::BootTime;
use muster_core::ids::WallTime;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// A timer does not run while the machine sleeps, so time is looked at least this often while something is waited for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// `CLOCK_BOOTTIME`, and the machine's wall clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Boottime;

impl BootClock for Boottime {
    fn now(&self) -> BootTime {
        let time = clock_gettime(ClockId::Boottime);
        let nanoseconds = i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
        BootTime(u64::try_from(nanoseconds).unwrap_or_default())
    }

    fn wall(&self) -> WallTime {
        crate::verbs::write::wall_time()
    }

    async fn sleep_until(&self, time: BootTime) {
        loop {
            let left = Duration::from_nanos(time.0.saturating_sub(self.now().0));
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LOOK_EVERY)).await;
        }
    }
}
