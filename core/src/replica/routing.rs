//! Client writes through the replica: to the log if it leads, to the leader if another does, else they wait.
//!
//! Whatever is routed in one step goes to the library as one message.

use super::memory::entry_bytes;
use super::writes::{Origin, Pending, Stage};
use super::{Answer, EXPIRE_PULSE_MICROS, Effects, Replica};
use crate::codec;
use crate::ids::{Index, Term, Time, WallTime};
use crate::journal::check::{level_of, system_part};
use crate::journal::command::JournalCommand;
use crate::journal::entry::{Author, Principal, Role};
use crate::limits::OVERLAY_BYTES_MAX;
use crate::members::MemberCommand;
use crate::peer::PeerMessage;
use crate::request::{Command, NotApplied, Outcome, RequestId, WriteRequest};
use crate::state::{Proposal, State};
use alloc::sync::Arc;
use alloc::vec::Vec;
use raft::eraftpb::{Entry, Message, MessageType};
use tracing::info;

/// What a command may come to whatever the limit on proposals is: an overlay holds what was declared bit by bit, and must be
/// stored whole.
const fn least_room(command: &Command) -> u64 {
    const BESIDE: u64 = 4 << 10;
    match command {
        Command::Journal(JournalCommand::SetOverlay { .. }) => OVERLAY_BYTES_MAX as u64 + BESIDE,
        Command::Journal(_)
        | Command::Members(_)
        | Command::OpenSession
        | Command::CloseSession
        | Command::Expire
        | Command::RaiseFeatureLevel(_) => 0,
    }
}

/// Bytes of a write's proposal, without the times that differ from copy to copy.
fn timeless_bytes(write: &WriteRequest) -> u64 {
    let proposal = Proposal { write: write.clone(), recorded_at: WallTime(0), elapsed: 0 };
    codec::encode_proposal(&proposal).len() as u64
}

impl Replica {
    /// Queues a write in the cluster's own name.
    pub(super) fn own_write(&mut self, command: Command) {
        let part = system_part(&command).expect("the cluster gives only commands of its own");
        let write = WriteRequest {
            request: RequestId::None,
            author: Author { principal: Principal::System { part: Arc::from(part) }, role: Role::System },
            command,
        };
        let deadline = self.now.plus_ms(self.settings.timing.request_ms);
        self.writes.add(Pending::waiting(Origin::Own, write, false, self.now, deadline));
    }

    /// Proposes to expire what is due by replicated time.
    pub(super) fn try_expire(&mut self) {
        let (due, age) = self.live.look(|state| (state.next_due(), state.age()));
        let Some(due) = due else { return };
        let Some(leadership) = &mut self.leadership else { return };
        if leadership.expire.is_some() {
            return;
        }
        let elapsed = self.now.micros_since(leadership.stamp);
        if age.0.saturating_add(elapsed) >= due.0 || elapsed >= EXPIRE_PULSE_MICROS {
            // Nothing is proposed twice meanwhile; the real position replaces this one when it is known.
            leadership.expire = Some(Index(u64::MAX));
            self.own_write(Command::Expire);
        }
    }

    pub(super) fn not_leader(&self) -> NotApplied {
        let leader = self.known_leader;
        let address = self.live.look(|state| state.members.get(leader).map(|member| member.client_address.clone()));
        match address {
            Some(address) if leader != self.identity.replica => NotApplied::NotLeader { leader, address },
            Some(_) | None => NotApplied::NoQuorum,
        }
    }

    pub(super) fn on_write(&mut self, origin: Origin, write: WriteRequest, forward: bool, effects: &mut Effects) {
        let deadline = self.now.plus_ms(self.settings.timing.request_ms);
        let pending = Pending::waiting(origin, write, forward, self.now, deadline);
        if self.stopping {
            return self.answer_write(&pending, Outcome::NotApplied(NotApplied::Stopping), effects);
        }
        // Before its first snapshot a replica knows no level, and passes on what every level takes.
        let (needs, has) = (level_of(&pending.write.command), self.live.look(State::feature_level).max(1));
        if needs > has {
            return self.answer_write(&pending, Outcome::NotApplied(NotApplied::FeatureLevel { needs, has }), effects);
        }
        if self.writes.len() >= self.settings.limits.writes_waiting_max {
            let busy = Outcome::NotApplied(NotApplied::Busy { retry_after_ms: 100 });
            return self.answer_write(&pending, busy, effects);
        }
        self.writes.add(pending);
    }

    /// Sends every waiting write where it can go now.
    pub(super) fn route_writes(&mut self, effects: &mut Effects) {
        let leads = self.is_leader() && self.raft.raft.lead_transferee.is_none();
        for key in self.writes.routable(self.now) {
            let Some(pending) = self.writes.get(key) else { continue };
            if leads {
                self.proposals.push(key);
            } else if pending.origin == Origin::Own {
                self.finish_write(key, Outcome::NotApplied(self.not_leader()), effects);
            } else if self.known_leader.0 == 0 || self.is_leader() {
                // Nobody leads, or leadership is being handed over: it waits.
            } else if pending.forward {
                let (to, write) = (self.known_leader, pending.write.clone());
                self.writes.set_forwarded(key, to);
                self.send(to, PeerMessage::Forward { token: key, write }, effects);
            } else {
                let outcome = Outcome::NotApplied(self.not_leader());
                self.finish_write(key, outcome, effects);
            }
        }
    }

    /// Puts everything routed here into the log as one message to the library.
    pub(super) fn propose(&mut self, effects: &mut Effects) {
        if self.proposals.is_empty() {
            return;
        }
        let keys = core::mem::take(&mut self.proposals);
        let mut batch: Vec<(u64, Entry)> = Vec::with_capacity(keys.len());
        let mut room = self.settings.limits.log_bytes_max.saturating_sub(self.raft.store().bytes());
        for key in keys {
            let Some(pending) = self.writes.get(key) else { continue };
            if let Command::Members(command) = &pending.write.command
                && !matches!(command, MemberCommand::Admit(_))
            {
                self.propose_batch(&mut batch);
                self.propose_membership(key, effects);
                continue;
            }
            let Some(leadership) = &mut self.leadership else { continue };
            let elapsed = self.now.micros_since(leadership.stamp);
            let proposal = Proposal { write: pending.write.clone(), recorded_at: self.wall, elapsed };
            let data = codec::encode_proposal(&proposal);
            let bytes = data.len() as u64;
            let bytes_max = self.settings.limits.payload_bytes_max.max(least_room(&pending.write.command));
            // The times in a proposal differ from copy to copy and decide nothing: too large is too large for every copy.
            if bytes > bytes_max && timeless_bytes(&pending.write) > bytes_max {
                let outcome = Outcome::NotApplied(NotApplied::TooLarge { bytes, bytes_max });
                self.finish_write(key, outcome, effects);
                continue;
            }
            let mut entry = Entry::default();
            entry.data = data;
            let size = entry_bytes(&entry);
            if size > room {
                self.snapshot_wanted = true;
                let outcome = Outcome::NotApplied(NotApplied::Busy { retry_after_ms: 500 });
                self.finish_write(key, outcome, effects);
                continue;
            }
            room -= size;
            leadership.stamp = Time(leadership.stamp.0 + elapsed * 1_000);
            batch.push((key, entry));
        }
        self.propose_batch(&mut batch);
    }

    pub(super) fn propose_batch(&mut self, batch: &mut Vec<(u64, Entry)>) {
        if batch.is_empty() {
            return;
        }
        let first = self.raft.raft.raft_log.last_index() + 1;
        let term = Term(self.raft.raft.term);
        let (keys, entries): (Vec<u64>, Vec<Entry>) = core::mem::take(batch).into_iter().unzip();
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.identity.replica.0;
        message.set_entries(entries.into());
        // Whether it leads and hands nothing over was looked at in this very step.
        self.raft.raft.step(message).expect("a leader that hands nothing over takes proposals");
        for (offset, key) in keys.into_iter().enumerate() {
            let index = Index(first + offset as u64);
            if let Some(leadership) = &mut self.leadership {
                let expires = self.writes.get(key).is_some_and(|p| p.write.command == Command::Expire);
                if expires {
                    leadership.expire = Some(index);
                }
            }
            self.writes.set_proposed(key, index, term);
        }
    }

    pub(super) fn finish_write(&mut self, key: u64, outcome: Outcome, effects: &mut Effects) {
        if let Some(pending) = self.writes.remove(key) {
            self.answer_write(&pending, outcome, effects);
        }
    }

    /// One copy of a write came to nothing. That is the write's outcome only if there can be no other.
    pub(super) fn finish_copy(&mut self, key: u64, outcome: Outcome, effects: &mut Effects) {
        if self.writes.get(key).is_some_and(|pending| pending.stage == Stage::Proposed && !pending.may_be_logged()) {
            self.finish_write(key, outcome, effects);
        }
    }

    pub(super) fn answer_write(&mut self, pending: &Pending, outcome: Outcome, effects: &mut Effects) {
        match pending.origin {
            Origin::Client(token) => effects.answers.push((token, Answer::Write(outcome))),
            Origin::Peer { replica, token } => self.send(replica, PeerMessage::Forwarded { token, outcome }, effects),
            Origin::Own => {
                if let Some(leadership) = &mut self.leadership
                    && pending.write.command == Command::Expire
                {
                    leadership.expire = None;
                }
                match outcome {
                    Outcome::Applied { .. } => {}
                    Outcome::Refused(_) | Outcome::NotApplied(_) | Outcome::Unknown(_) => {
                        info!(replica = self.identity.replica.0, command = ?pending.write.command, ?outcome, "own write came to nothing");
                    }
                }
            }
        }
    }
}
