//! Processes, as `/proc` shows them.

use std::path::Path;

/// Longest command line that is told.
const COMMAND_BYTES_MAX: usize = 200;

/// Every process of this process's namespace.
pub(super) fn all() -> Vec<u32> {
    let Ok(listing) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<u32> = listing.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// What tells a process from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) pid: u32,
    /// When it was started, in the kernel's ticks since the machine was.
    pub(super) started: u64,
}

/// What a process's `stat` says.
pub(super) struct Stat {
    pub(super) life: Life,
    pub(super) group: u32,
    zombie: bool,
}

/// A process that lives; one that only waits to be taken notice of does not.
pub(super) fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    // The second field is the command in brackets, and may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let stat = Stat {
        life: Life { pid, started: fields.get(19)?.parse().ok()? },
        group: fields.get(2)?.parse().ok()?,
        zombie: matches!(*fields.first()?, "Z" | "X"),
    };
    (!stat.zombie).then_some(stat)
}

/// The living processes of a group.
pub(super) fn in_group(group: u32) -> impl Iterator<Item = u32> {
    all().into_iter().filter(move |pid| stat(*pid).is_some_and(|stat| stat.group == group))
}

/// Whether this very process lives.
pub(super) fn lives(life: Life) -> bool {
    stat(life.pid).is_some_and(|stat| stat.life == life)
}

/// A process's command line, or its name in brackets if it has none.
pub(super) fn command(pid: u32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> =
        line.split(|byte| *byte == 0).filter(|word| !word.is_empty()).map(String::from_utf8_lossy).collect();
    let mut text = words.join(" ");
    if text.is_empty() {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        text = format!("[{}]", name.trim());
    }
    let mut end = COMMAND_BYTES_MAX.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text.replace(char::is_control, " ")
}

/// A variable of the environment a process was started with.
pub(super) fn environment(pid: u32, name: &str) -> Option<String> {
    let text = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut entries = text.split(|byte| *byte == 0);
    entries.find_map(|entry| {
        let entry = String::from_utf8_lossy(entry);
        Some(entry.strip_prefix(name)?.strip_prefix('=')?.to_owned())
    })
}

/// The numbers in a file with one a line, such as a control group's processes.
pub(super) fn numbers(path: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| line.trim().parse().ok()).collect()
}
