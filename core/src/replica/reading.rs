//! Reads through the replica: rounds on a leader, questions on a follower, answers once this replica has applied that far.

use super::reads::{Reader, Waiter};
use super::{Answer, Effects, Replica, Token};
use crate::ids::Index;
use crate::peer::PeerMessage;
use crate::request::{Freshness, NotApplied};
use crate::state::State;
use alloc::vec::Vec;

impl Replica {
    pub(super) fn on_read(&mut self, token: Token, freshness: Freshness, effects: &mut Effects) {
        let waiter =
            Waiter { reader: Reader::Client(token), deadline: self.now.plus_ms(self.settings.timing.request_ms) };
        if self.reads.len() + self.minimum_reads.len() >= self.settings.limits.reads_waiting_max {
            let busy = NotApplied::Busy { retry_after_ms: 100 };
            return self.answer_read(waiter.reader, Err(busy), effects);
        }
        match freshness {
            Freshness::Local => self.answer_read(waiter.reader, Ok(()), effects),
            Freshness::AtLeast(sequence) => self.minimum_reads.push((sequence, waiter)),
            Freshness::Leased => match self.leased_index() {
                Some(index) => self.reads.wait_for(index, waiter),
                None => self.reads.add(waiter),
            },
            Freshness::Linearizable => self.reads.add(waiter),
        }
    }

    pub(super) fn start_reads(&mut self, effects: &mut Effects) {
        if !self.reads.has_fresh() {
            return;
        }
        if self.is_leader() {
            if !self.raft.raft.commit_to_current_term() {
                return;
            }
            if let Some(context) = self.reads.start_round(self.now) {
                let mut bytes = self.raft.raft.term.to_be_bytes().to_vec();
                bytes.extend_from_slice(&context.to_be_bytes());
                self.raft.read_index(bytes);
            }
        } else if self.known_leader.0 != 0
            && let Some(token) = self.reads.ask(self.known_leader, self.now)
        {
            self.send(self.known_leader, PeerMessage::ReadIndex { token }, effects);
        }
    }

    pub(super) fn on_read_state(&mut self, context: &[u8], index: Index, effects: &mut Effects) {
        let Some(tail) = context.get(8..16) else { return };
        let Ok(tail) = <[u8; 8]>::try_from(tail) else { return };
        let Some(round) = self.reads.finish_round(u64::from_be_bytes(tail)) else { return };
        self.extend_lease(round.since);
        for waiter in round.waiters {
            match waiter.reader {
                Reader::Client(_) => self.reads.wait_for(index, waiter),
                Reader::Peer { replica, token } => {
                    self.send(replica, PeerMessage::ReadIndexReply { token, index: Some(index) }, effects);
                }
            }
        }
    }

    pub(super) fn answer_reads(&mut self, effects: &mut Effects) {
        for waiter in self.reads.applied(self.applied) {
            self.answer_read(waiter.reader, Ok(()), effects);
        }
        if self.minimum_reads.is_empty() {
            return;
        }
        let sequence = self.live.look(State::sequence);
        let ripe: Vec<_> = self.minimum_reads.extract_if(.., |(wanted, _)| *wanted <= sequence).collect();
        for (_, waiter) in ripe {
            self.answer_read(waiter.reader, Ok(()), effects);
        }
    }

    pub(super) fn answer_read(&self, reader: Reader, answer: Result<(), NotApplied>, effects: &mut Effects) {
        match reader {
            Reader::Client(token) => effects.answers.push((token, Answer::Read(answer))),
            Reader::Peer { replica, token } => {
                self.send(replica, PeerMessage::ReadIndexReply { token, index: None }, effects);
            }
        }
    }
}
