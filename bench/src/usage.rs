//! What processes take: CPU seconds and resident memory, as the kernel counts them.

use std::time::Duration;

/// The kernel counts CPU time in hundredths of a second, whatever its own clock.
const TICKS_PER_SECOND: u64 = 100;

/// What some processes took together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    /// The largest of them, in bytes.
    pub(crate) resident_max: u64,
}

/// Two neighbouring fields of `/proc/PROCESS/stat`, which are times, together. The command, which may hold anything, is the 2nd.
fn times(process: &str, first: usize) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let fields = after.split_whitespace().skip(first - 3).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND)
}

fn cpu_of(pid: u32) -> Duration {
    // utime and stime.
    times(&pid.to_string(), 14)
}

/// What all ended processes took that this one started and waited for.
pub(crate) fn of_children() -> Duration {
    // cutime and cstime.
    times("self", 16)
}

fn resident_of(pid: u32) -> u64 {
    kibibytes(pid, "VmRSS:")
}

fn kibibytes(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() * 1_024
}

/// The most a process ever had resident, in bytes.
pub(crate) fn peak_of(pid: u32) -> u64 {
    kibibytes(pid, "VmHWM:")
}

/// What these processes have taken so far. One that is gone counts nothing.
pub(crate) fn of(pids: &[u32]) -> Usage {
    Usage {
        cpu: pids.iter().map(|pid| cpu_of(*pid)).sum(),
        resident_max: pids.iter().map(|pid| resident_of(*pid)).max().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_is_seen_working() {
        let me = [std::process::id()];
        let before = of(&me);
        let mut sum = 0_u64;
        while of(&me).cpu < before.cpu + Duration::from_millis(30) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(of(&me).resident_max > 0);
    }
}
