//! The library's output: what must be written, what may be sent, what is applied.
//!
//! A promise is a message that must not leave before a write is durable. It waits with the write it rests on, and is let out
//! in order by `release`.

use super::convert::{entry_from_raft, hard_state_from_raft};
use super::{Effects, LogTask, Replica, Unwritten};
use crate::codec;
use crate::ids::{Index, Term, WriteId};
use crate::log::{LogRecord, Write};
use crate::request::{Command, NotApplied, Outcome};
use alloc::vec::Vec;
use raft::eraftpb::EntryType;

impl Replica {
    pub(super) fn next_write_id(&mut self) -> WriteId {
        self.next_write += 1;
        WriteId(self.next_write)
    }

    pub(super) fn on_ready(&mut self, effects: &mut Effects) {
        let mut ready = self.raft.ready();
        assert!(ready.snapshot().is_empty(), "snapshots are installed when they are staged");
        self.on_role();

        let mut records = Vec::new();
        let mut votes = false;
        if let Some(state) = ready.hs() {
            let state = hard_state_from_raft(state);
            // Compared with what was handed out before: only a commit index may go without a sync.
            votes = state.term != self.promised.0 || state.vote != self.promised.1;
            self.promised = (state.term, state.vote);
            records.push(LogRecord::HardState(state));
        }
        if !ready.entries().is_empty() {
            self.raft.mut_store().append(ready.entries());
            records.push(LogRecord::Entries(ready.entries().iter().map(entry_from_raft).collect()));
        }
        let number = ready.number();
        let sync = ready.must_sync();
        let immediate = ready.take_messages();
        let promises = ready.take_persisted_messages();
        for state in ready.take_read_states() {
            self.on_read_state(&state.request_ctx, Index(state.index), effects);
        }
        self.committed.extend(ready.take_committed_entries());
        self.void_lease_before(immediate.iter().chain(&promises));

        if records.is_empty() && self.unwritten.is_empty() {
            self.send_raft(promises, effects);
            self.raft.advance_append_async(ready);
            self.raft.on_persist_ready(number);
        } else {
            let id = self.next_write_id();
            if !records.is_empty() {
                effects.log.push(LogTask::Write(Write { id, sync, records }));
            }
            self.unwritten.push_back(Unwritten {
                id,
                sync,
                done: false,
                votes,
                install: None,
                ready: number,
                promises,
            });
            self.raft.advance_append_async(ready);
        }
        // While a new term or vote is not durable nothing is sent, leader or not: a sole voter wins before its first write.
        match self.unwritten.iter_mut().rev().find(|write| write.votes) {
            Some(write) => write.promises.extend(immediate),
            None => self.send_raft(immediate, effects),
        }
        self.release(effects);
    }

    pub(super) fn on_persisted(&mut self, id: WriteId, effects: &mut Effects) {
        for write in &mut self.unwritten {
            if write.id <= id {
                write.done = true;
            }
        }
        self.release(effects);
    }

    /// Keeps the promises whose writes are durable, in order.
    pub(super) fn release(&mut self, effects: &mut Effects) {
        while self.unwritten.front().is_some_and(|write| write.done || !write.sync) {
            let Some(write) = self.unwritten.pop_front() else { return };
            self.raft.on_persist_ready(write.ready);
            if let Some(index) = write.install {
                self.raft.advance_apply_to(index.0);
                // Only now does the archive rest on it, and can tell what is missing.
                effects.look_for_history = Some(index);
                self.answer_snapshots(effects);
                self.fetch_offered(effects);
            }
            self.send_raft(write.promises, effects);
        }
    }

    pub(super) fn apply_committed(&mut self, effects: &mut Effects) {
        for entry in core::mem::take(&mut self.committed) {
            let index = Index(entry.index);
            assert_eq!(index, self.applied.next(), "entries are applied in order, once");
            let outcome = match entry.get_entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => None,
                EntryType::EntryNormal => {
                    let proposal =
                        codec::decode_proposal(&entry.data).expect("the feature level admits only known formats");
                    if matches!(proposal.write.command, Command::Members(_)) {
                        self.members_told = false;
                    }
                    let (outcome, finished) = self.live.advance(index, |state| state.apply(index, proposal));
                    effects.finished.extend(finished);
                    Some(outcome)
                }
                EntryType::EntryConfChangeV2 => self.apply_membership(index, &entry, effects),
                EntryType::EntryConfChange => unreachable!("only the second version of membership changes is proposed"),
            };
            self.applied = index;
            self.raft.advance_apply_to(index.0);
            if let Some(leadership) = &mut self.leadership
                && leadership.expire.is_some_and(|at| at <= index)
            {
                leadership.expire = None;
            }
            match (self.writes.applied(index, Term(entry.term)), outcome) {
                (Some((key, true)), Some(outcome @ Outcome::NotApplied(_))) => self.finish_copy(key, outcome, effects),
                (Some((key, true)), Some(outcome)) => self.finish_write(key, outcome, effects),
                // Another leader's entry is where ours was: ours can never be.
                (Some((key, _)), _) => self.finish_copy(key, Outcome::NotApplied(NotApplied::Superseded), effects),
                (None, _) => {}
            }
        }
    }
}
