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
}

impl Position {
    /// As [`Position::follow`], for reading a log whose beginning was purged. Its first segment says where the log stood before
    /// it; what of that was not committed may be replaced by what follows. The log begins earlier then, at a term that is not
    /// in it any more. `committed` is what was committed before the record's batch, in which a commit index may come before the
    /// entries that it is about.
    pub(crate) fn follow_stored(&mut self, record: &LogRecord, committed: Index) -> Result<(), String> {
        if let LogRecord::Entries(entries) = record
            && let Some(first) = entries.first()
            && first.index <= self.start.0
            && first.index > committed
        {
            self.start = (Index(first.index.0 - 1), Term(0));
        }
        self.follow(record)
    }

    /// Moves on by a record, or tells why it does not fit.
    pub(crate) fn follow(&mut self, record: &LogRecord) -> Result<(), String> {
        match record {
            LogRecord::HardState(state) => self.hard_state = *state,
            LogRecord::Entries(entries) => {
                for entry in entries {
                    if entry.index <= self.start.0 || entry.index > self.last.0.next() {
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
