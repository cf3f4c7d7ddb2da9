//! The log as Raft reads it: a tail in memory, from a compacted start to the end.
//!
//! What is here may not be durable yet; Raft is told separately. Never grows without bound: see `Limits::log_bytes_max`.

use super::queue::Queue;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, StorageError};

/// Bytes an entry counts for.
pub(super) fn entry_bytes(entry: &Entry) -> u64 {
    (entry.data.len() + entry.context.len() + 32) as u64
}

/// The tail of the log.
pub(super) struct MemoryLog {
    start_index: u64,
    start_term: u64,
    entries: Queue<Entry>,
    bytes: u64,
    hard_state: HardState,
    configuration: ConfState,
    /// The newest durable snapshot: what a follower that is too far behind is sent.
    snapshot: Option<(u64, u64, ConfState)>,
    /// Whether somebody needs a snapshot that knows of them, and the newest one does not.
    wanted: AtomicBool,
}

impl MemoryLog {
    pub(super) fn new(
        start: (u64, u64),
        entries: &[Entry],
        hard_state: HardState,
        configuration: ConfState,
        snapshot: Option<(u64, u64, ConfState)>,
    ) -> Self {
        let mut log = Self {
            start_index: start.0,
            start_term: start.1,
            entries: Queue::new(),
            bytes: 0,
            hard_state,
            configuration,
            snapshot,
            wanted: AtomicBool::new(false),
        };
        log.append(entries);
        log
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn first(&self) -> u64 {
        self.start_index + 1
    }

    pub(super) fn last(&self) -> u64 {
        self.start_index + self.entries.len() as u64
    }

    /// Bytes of the entries after `index`.
    pub(super) fn bytes_after(&self, index: u64) -> u64 {
        let skip = usize::try_from(index.saturating_sub(self.start_index)).unwrap_or(usize::MAX);
        (skip..self.entries.len()).filter_map(|place| self.entries.get(place)).map(entry_bytes).sum()
    }

    fn position(&self, index: u64) -> usize {
        usize::try_from(index - self.start_index - 1).expect("an index within the tail")
    }

    /// Appends entries; what was there from the first one's index on goes first.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index > self.start_index,
            "append at {} into what is compacted to {}",
            first.index,
            self.start_index
        );
        assert!(first.index <= self.last() + 1, "append at {} leaves a gap after {}", first.index, self.last());
        let keep = self.position(first.index);
        while self.entries.len() > keep
            && let Some(dropped) = self.entries.pop_back()
        {
            self.bytes -= entry_bytes(&dropped);
        }
        for entry in entries {
            self.bytes += entry_bytes(entry);
            self.entries.push_back(entry.clone());
        }
    }

    /// Forgets entries up to `index`, of which the term is kept.
    pub(super) fn compact(&mut self, index: u64) {
        while self.start_index < index {
            let Some(entry) = self.entries.pop_front() else { return };
            self.bytes -= entry_bytes(&entry);
            self.start_index = entry.index;
            self.start_term = entry.term;
        }
    }

    /// The earliest start that leaves at most `bytes` of entries between it and `index`.
    pub(super) fn start_within(&self, index: u64, bytes: u64) -> u64 {
        let mut start = index.min(self.last());
        let mut total = 0;
        while start > self.start_index {
            total += self.entries.get(self.position(start)).map_or(0, entry_bytes);
            if total > bytes {
                break;
            }
            start -= 1;
        }
        start
    }

    /// Starts over after an installed snapshot.
    pub(super) fn reset(&mut self, index: u64, term: u64) {
        self.entries.clear();
        self.bytes = 0;
        self.start_index = index;
        self.start_term = term;
    }

    /// Whether a newer snapshot was needed since this was last asked.
    pub(super) fn take_wanted(&mut self) -> bool {
        core::mem::take(self.wanted.get_mut())
    }

    pub(super) fn set_snapshot(&mut self, index: u64, term: u64, configuration: ConfState) {
        self.snapshot = Some((index, term, configuration));
    }
}

fn takes_part(configuration: &ConfState, id: u64) -> bool {
    [&configuration.voters, &configuration.voters_outgoing, &configuration.learners].iter().any(|ids| ids.contains(&id))
}

impl raft::Storage for MemoryLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.configuration.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.start_index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last() + 1, "entries up to {high} asked of a log that ends at {}", self.last());
        let max = max_size.into().unwrap_or(u64::MAX);
        let mut total = 0;
        let mut out = Vec::new();
        let places = self.position(low)..self.position(high);
        for entry in places.filter_map(|place| self.entries.get(place)) {
            total += entry_bytes(entry);
            if !out.is_empty() && total > max {
                break;
            }
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.start_index {
            return Ok(self.start_term);
        }
        if index < self.start_index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        match self.entries.get(self.position(index)) {
            Some(entry) => Ok(entry.term),
            None => Err(raft::Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        match &self.snapshot {
            // Who joined after it was taken would refuse it: it is not for them.
            Some((_, _, configuration)) if !takes_part(configuration, to) => {
                self.wanted.store(true, Ordering::Relaxed);
                Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
            Some((index, term, configuration)) if *index >= request_index && *index >= self.start_index => {
                let mut snapshot = Snapshot::default();
                let metadata = snapshot.mut_metadata();
                metadata.index = *index;
                metadata.term = *term;
                metadata.set_conf_state(configuration.clone());
                Ok(snapshot)
            }
            Some(_) | None => Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable)),
        }
    }
}
