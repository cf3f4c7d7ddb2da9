//! The leader's lease: for how long nobody else can lead, so that a read may be answered without asking.
//!
//! A round of heartbeats that a quorum acknowledged (see [`super::reads`]) leaves one behind. Whoever acknowledged neither campaigns
//! nor votes for the shortest election timeout, and a replica that forgot because it started again keeps quiet for longer than
//! that; every quorum that could elect another has one of them in it. How long that is on the leader's own clock is
//! [`super::Timing::lease_nanos`].
//!
//! Invariants
//! - a lease counts from before its round's heartbeats were sent, and belongs to one term;
//! - a leader that told anybody to campaign at once has none until its term ends: the message may arrive late;
//! - a leased read waits for everything that was committed when it was asked. The clock is read after the question arrived, so a
//!   pause between reading the clock and answering makes no answer stale.
//!
//! Left out: keeping a lease when nobody reads. The first leased read after a while asks a quorum.

use super::Replica;
use crate::ids::{Index, Time};
use crate::mark::mark;
use raft::eraftpb::{Message, MessageType};

/// What a leader knows of its lease in its term.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lease {
    /// Until when nobody else can lead.
    until: Time,
    /// Somebody was told to campaign at once.
    void: bool,
}

impl Replica {
    /// A round that began then was acknowledged by a quorum.
    pub(super) fn extend_lease(&mut self, since: Time) {
        let Some(nanos) = self.settings.timing.lease_nanos() else { return };
        let term = self.raft.raft.term;
        if let Some(leadership) = self.leadership.as_mut().filter(|leadership| leadership.term == term) {
            let until = Time(since.0.saturating_add(nanos));
            leadership.lease.until = leadership.lease.until.max(until);
        }
    }

    /// Looks through what is about to leave.
    pub(super) fn void_lease_before<'a>(&mut self, mut messages: impl Iterator<Item = &'a Message>) {
        if let Some(leadership) = &mut self.leadership
            && messages.any(|message| message.get_msg_type() == MessageType::MsgTimeoutNow)
        {
            leadership.lease.void = true;
        }
    }

    /// Up to where this replica must have applied to answer a read that was just asked, if a lease holds.
    pub(super) fn leased_index(&mut self) -> Option<Index> {
        let nanos = self.settings.timing.lease_nanos()?;
        let raft = &self.raft.raft;
        let leadership = self.leadership.as_ref().filter(|leadership| leadership.term == raft.term)?;
        let lease = leadership.lease;
        let holds = self.is_leader() && !lease.void && raft.lead_transferee.is_none() && self.now < lease.until;
        if !holds || !raft.commit_to_current_term() {
            return None;
        }
        let index = Index(raft.raft_log.committed);
        mark!(read_from_a_lease);
        if self.now.0.saturating_add(nanos / 2) > lease.until.0 {
            self.reads.renew();
        }
        Some(index)
    }
}
