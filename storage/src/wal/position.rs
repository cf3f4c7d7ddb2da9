//! Where a log stands: what replaying records one after the other comes to, entries' data apart.

use muster_core::ids::{Index, Term};
use muster_core::log::{HardState, LogRecord};

/// Where a log stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// The last hard state.
    pub(crate) hard_state: HardState,
    /// The position before the first entry.
    pub(crate) start: (Index, Term),
    /// The last position.
    pub(crate) last: (Index, Term),
    /// What was committed where the log begins: nothing at or before it is written again. What lies between it and `start` was in
    /// segments that are gone, and may be replaced.
    pub(crate) settled: Index,
}

impl Position {
    /// Where a log stands whose first batch says this of what was before it.
    pub(crate) fn beginning(hard_state: HardState, last: (Index, Term)) -> Self {
        Self { hard_state, start: last, last, settled: hard_state.commit.min(last.0) }
    }

    /// Moves on by a record, or tells why it does not fit.
    pub(crate) fn follow(&mut self, record: &LogRecord) -> Result<(), String> {
        match record {
            LogRecord::HardState(state) => self.hard_state = *state,
            LogRecord::Entries(entries) => {
                for entry in entries {
                    if entry.index <= self.start.0 && entry.index > self.settled {
                        self.start = (entry.index, entry.term);
                    } else if entry.index <= self.start.0 || entry.index > self.last.0.next() {
                        return Err(format!(
                            "entry {} does not follow a log that begins after {} and ends at {}",
                            entry.index, self.start.0, self.last.0
                        ));
                    }
                    self.last = (entry.index, entry.term);
                }
            }
            LogRecord::Reset { index, term } => {
                self.start = (*index, *term);
                self.last = (*index, *term);
                self.settled = *index;
            }
        }
        Ok(())
    }
}

/// A segment of the log and the highest entry in it that the log still has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holding {
    pub(super) segment: u64,
    pub(super) highest: Index,
    /// Where the log ended when the segment was begun. A snapshot must be that far before the segments before it may go: entries
    /// in this one may replace some in those, and what precedes them is known from there only.
    pub(super) begins: Index,
}

/// Notes what a record, written to the last of these segments, does to what each of them holds.
pub(super) fn note(holdings: &mut [Holding], record: &LogRecord) {
    let (last, earlier) = holdings.split_last_mut().expect("a log has a segment");
    match record {
        LogRecord::HardState(_) => {}
        LogRecord::Entries(entries) => {
            let (Some(first), Some(highest)) = (entries.iter().map(|entry| entry.index).min(), entries.last()) else {
                return;
            };
            for holding in earlier {
                holding.highest = holding.highest.min(Index(first.0 - 1));
            }
            last.highest = highest.index;
        }
        LogRecord::Reset { .. } => holdings.iter_mut().for_each(|holding| holding.highest = Index(0)),
    }
}
