//! What operators ask of one replica: a snapshot, a transfer of leadership, a stop.

use super::{Answer, Effects, Replica, Token};
use crate::ids::{ReplicaId, Time};
use crate::request::{AdminOutcome, AdminRequest, NotApplied, Outcome, UnknownWhy};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

impl Replica {
    pub(super) fn on_admin(&mut self, token: Token, request: AdminRequest, effects: &mut Effects) {
        match request {
            AdminRequest::Snapshot => {
                if self.applied <= self.snapshot_index() {
                    let index = self.snapshot_index();
                    effects.answers.push((token, Answer::Admin(AdminOutcome::Snapshot { index })));
                } else {
                    self.snapshot_waiters.push((token, self.applied));
                    self.snapshot_wanted = true;
                }
            }
            AdminRequest::Transfer { to } => {
                let fail = |problem: String| (token, Answer::Admin(AdminOutcome::Failed { problem }));
                if !self.is_leader() {
                    let problem = match self.not_leader() {
                        NotApplied::NotLeader { leader, address } => {
                            format!("replica {leader} at {address} leads; ask it")
                        }
                        _ => String::from("nobody leads"),
                    };
                    return effects.answers.push(fail(problem));
                }
                let to = if to.0 == 0 { self.furthest_voter() } else { Some(to) };
                let Some(to) = to else {
                    return effects.answers.push(fail(String::from("there is no other voter that could take over")));
                };
                if !self.configuration.voters.contains(&to) {
                    return effects.answers.push(fail(format!("replica {to} is not a voter")));
                }
                if to == self.identity.replica {
                    let outcome = AdminOutcome::Transferred { leader: to };
                    return effects.answers.push((token, Answer::Admin(outcome)));
                }
                self.raft.transfer_leader(to.0);
                let deadline = self.now.plus_ms(2 * self.settings.timing.election_ms_max);
                if let Some((before, _, _)) = self.transfer.replace((token, to, deadline)) {
                    let problem = format!("leadership was asked to go to replica {to} instead");
                    effects.answers.push((before, Answer::Admin(AdminOutcome::Failed { problem })));
                }
            }
        }
    }

    pub(super) fn furthest_voter(&self) -> Option<ReplicaId> {
        let prs = self.raft.raft.prs();
        self.configuration
            .voters
            .iter()
            .filter(|id| **id != self.identity.replica)
            .filter_map(|id| prs.get(id.0).filter(|p| p.recent_active).map(|p| (p.matched, *id)))
            .max()
            .map(|(_, id)| id)
    }

    pub(super) fn on_stop(&mut self, effects: &mut Effects) {
        self.stopping = true;
        if self.is_leader()
            && let Some(to) = self.furthest_voter()
        {
            self.raft.transfer_leader(to.0);
        }
        let waiting: Vec<u64> = self.writes.routable(Time(u64::MAX));
        for key in waiting {
            let unlogged = self.writes.get(key).is_some_and(|p| !p.may_be_logged());
            if unlogged {
                self.finish_write(key, Outcome::NotApplied(NotApplied::Stopping), effects);
            }
        }
    }

    /// Ends every request that is still on its way, for a driver that stops.
    pub fn abandon(&mut self) -> Vec<(Token, Answer)> {
        let mut effects = Effects::default();
        for pending in self.writes.drain() {
            let outcome = if pending.may_be_logged() {
                Outcome::Unknown(UnknownWhy::TimedOut)
            } else {
                Outcome::NotApplied(NotApplied::Stopping)
            };
            self.answer_write(&pending, outcome, &mut effects);
        }
        effects.answers
    }
}
