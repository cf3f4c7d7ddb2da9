//! What people get: aligned columns, short and without colours, so that it reads the same in a terminal, a pipe and a log.

use muster_core::ids::WallTime;
use muster_core::journal::entry::{Author, Change, ConfigEntry, Record};
use std::fmt::Write as _;
use std::io::{self, Write as _};

/// Prints to standard output.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Aligned columns under their headings; columns of numbers stand to the right.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
    };
    let numeric = |column: usize| {
        let mut cells =
            rows.iter().map(|row| row[column].as_str()).filter(|cell| !matches!(*cell, "" | "-")).peekable();
        cells.peek().is_some() && cells.all(|cell| cell.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
    };
    let columns: Vec<(usize, bool)> = (0..headings.len()).map(|column| (width(column), numeric(column))).collect();
    let mut out = String::new();
    let headings: Vec<String> = headings.iter().map(|heading| (*heading).to_owned()).collect();
    for row in std::iter::once(&headings).chain(rows) {
        let mut line = String::new();
        for (cell, (width, numeric)) in row.iter().zip(&columns) {
            let padding = " ".repeat(width - cell.chars().count());
            let (before, after) = if *numeric { (padding.as_str(), "") } else { ("", padding.as_str()) };
            let _ = write!(line, "{before}{cell}{after}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A wall-clock time as `2026-03-01T12:00:00.123Z`.
pub(crate) fn time(time: WallTime) -> String {
    let (days, ms) = (time.0 / 86_400_000, time.0 % 86_400_000);
    // Days to a date in the Gregorian calendar, counting years from March (Howard Hinnant's civil_from_days).
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{:03}Z", ms % 1_000)
}

/// A number of bytes, short.
pub(crate) fn bytes(bytes: u64) -> String {
    let tenths = |unit: u64| format!("{}.{}", bytes / unit, bytes % unit * 10 / unit);
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{} KiB", tenths(1 << 10)),
        1_048_576..1_073_741_824 => format!("{} MiB", tenths(1 << 20)),
        _ => format!("{} GiB", tenths(1 << 30)),
    }
}

/// One change as `kernel:vm.swappiness 10 -> 20`.
pub(crate) fn change(change: &Change) -> String {
    format!("{} {} -> {}", change.key, short(&change.previous.to_string()), short(&change.next.to_string()))
}

/// A value that fits on a line: its first line, at most 60 characters of it.
pub(crate) fn short(value: &str) -> String {
    let line = value.lines().next().unwrap_or_default();
    if line.len() == value.len() && line.chars().count() <= 60 {
        return line.to_owned();
    }
    format!("{}… ({})", line.chars().take(57).collect::<String>(), bytes(value.len() as u64))
}

/// Who did it in which role; or, where an agent acted for somebody, that it is the agent's word.
fn author_words(author: &Author) -> String {
    let principal = crate::json::principal(&author.principal);
    match crate::json::witness(author) {
        Some(witness) => format!("{principal}, by the word of {witness}"),
        None => format!("{principal} as {}", crate::json::role(&author.role)),
    }
}

/// So many things: `1 key`, `2 keys`.
pub(crate) fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A record as one row: sequence, time, kind, scope, author, what it says.
pub(crate) fn record_row(record: &Record) -> Vec<String> {
    let (recorded_at, kind, author, what) = match record {
        Record::Entry(entry) => (entry.recorded_at, entry.entry_type.word(), &entry.author, entry_what(entry)),
        Record::Operation(operation) => {
            let exit = operation.exit_status.map_or_else(String::new, |status| format!(" (exit {status})"));
            let what = format!("{}{exit}", short(&operation.detail));
            (operation.recorded_at, crate::json::operation_word(operation.kind), &operation.author, what)
        }
    };
    vec![
        record.sequence().to_string(),
        time(recorded_at),
        kind.to_owned(),
        record.scope().to_string(),
        crate::json::witness(author).map_or_else(
            || crate::json::principal(&author.principal),
            |witness| format!("{} via {witness}", crate::json::principal(&author.principal)),
        ),
        what,
    ]
}

fn entry_what(entry: &ConfigEntry) -> String {
    let mut what = match entry.delta.as_slice() {
        [] => String::new(),
        [only] => change(only),
        [first, rest @ ..] => format!("{} and {} more", change(first), rest.len()),
    };
    if let Some(reason) = &entry.emergency_reason {
        what = format!("{} {what}", short(reason));
    }
    if !entry.message.is_empty() {
        what = format!("{what} \"{}\"", short(&entry.message));
    }
    what.trim().to_owned()
}

/// The headings of [`record_row`].
pub(crate) const RECORD_HEADINGS: [&str; 6] = ["SEQ", "RECORDED", "TYPE", "SCOPE", "AUTHOR", "WHAT"];

/// A record in full, a line for each thing there is to say.
pub(crate) fn record(record: &Record) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(out, "{name:<12}{value}");
        }
    };
    match record {
        Record::Entry(entry) => {
            line("sequence", entry.sequence.to_string());
            line("type", entry.entry_type.word().to_owned());
            line("scope", entry.scope.to_string());
            line("author", author_words(&entry.author));
            line("recorded", time(entry.recorded_at));
            line("occurred", entry.occurred_at.map(time).unwrap_or_default());
            line("parent", entry.parent.to_string());
            line("based on", entry.based_on.map(|sequence| sequence.to_string()).unwrap_or_default());
            line("policy", entry.policy_ref.map(|sequence| format!("as of sequence {sequence}")).unwrap_or_default());
            line("expires", entry.ttl_seconds.map(|ttl| format!("after {ttl} s")).unwrap_or_default());
            line("reason", entry.emergency_reason.as_deref().unwrap_or_default().to_owned());
            line("message", entry.message.to_string());
            for change in &entry.delta {
                line("change", format!("{} {} -> {}", change.key, change.previous, change.next));
            }
            for (key, sequence) in &entry.takes_off {
                line("takes off", format!("{key} of sequence {sequence}"));
            }
            for (field, value) in entry.policy.iter().flat_map(crate::policy_text::rows) {
                line("sets", format!("{field}={value}"));
            }
        }
        Record::Operation(operation) => {
            line("sequence", operation.sequence.to_string());
            line("operation", crate::json::operation_word(operation.kind).to_owned());
            line("scope", operation.scope.to_string());
            line("author", author_words(&operation.author));
            line("recorded", time(operation.recorded_at));
            line("occurred", operation.occurred_at.map(time).unwrap_or_default());
            line("detail", operation.detail.to_string());
            line("exit", operation.exit_status.map(|status| status.to_string()).unwrap_or_default());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_as_dates() {
        assert_eq!(time(WallTime(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(WallTime(951_782_400_000)), "2000-02-29T00:00:00.000Z");
        assert_eq!(time(WallTime(1_767_225_599_999)), "2025-12-31T23:59:59.999Z");
    }

    #[test]
    fn columns_line_up_and_numbers_stand_to_the_right() {
        let rows = vec![vec!["a".into(), "5".into()], vec!["long".into(), "12".into()]];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME   N\na      5\nlong  12\n");
    }

    #[test]
    fn sizes_and_long_values_are_short() {
        assert_eq!(bytes(1_023), "1023 B");
        assert_eq!(bytes(1_536), "1.5 KiB");
        assert_eq!(short("a\nb"), "a… (3 B)");
    }
}
