//! Where a log stands: what replaying records one after the other comes to, entries' data apart.
//!
//! A log whose first segments were purged begins where its first batch says that the log stood. What stood there need not have
//! been committed: a later batch may replace entries of segments that are gone. All that is left of those segments then lies
//! before the replacement, and some kept snapshot has it.

use super::batch::BatchHead;
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
    /// Whether the log began earlier, in segments that are gone.
    midway: bool,
    /// What was committed for sure before the batch that is being followed.
    committed: Index,
    /// The entry with which `start` was moved back; the term before it is not known.
    replaced: Option<(Index, Term)>,
}

impl Position {
    /// Where the log stood before a batch, which is the first one that is left.
    pub(crate) fn before(head: &BatchHead) -> Self {
        Self {
            hard_state: head.hard_state,
            start: head.last,
            last: head.last,
            midway: head.before > 0,
            ..Self::default()
        }
    }

    /// The records of another batch follow.
    pub(crate) fn begin_batch(&mut self) {
        self.committed = self.hard_state.commit;
    }

    /// Finds the term of a start that was moved back, among the positions of kept snapshots. Without one there the log begins
    /// after the entry that replaced another: a snapshot beyond it has that.
    pub(crate) fn settle(&mut self, snapshots: &[(Index, Term)]) {
        if let Some(entry) = self.replaced.take() {
            let known = snapshots.iter().find(|(index, _)| *index == self.start.0);
            self.start = known.copied().unwrap_or(entry);
        }
    }

    /// Moves on by a record, or tells why it does not fit.
    pub(crate) fn follow(&mut self, record: &LogRecord) -> Result<(), String> {
        match record {
            LogRecord::HardState(state) => self.hard_state = *state,
            LogRecord::Entries(entries) => {
                for entry in entries {
                    if self.midway && entry.index <= self.start.0 && entry.index > self.committed {
                        self.start = (Index(entry.index.0 - 1), Term(0));
                        self.replaced = Some((entry.index, entry.term));
                    }
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
                (self.midway, self.replaced) = (false, None);
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
