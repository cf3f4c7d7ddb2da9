//! Membership: what a member command does to the configuration, and the wishes a leader grants by itself.
//!
//! Changes go one at a time. A repeated request is answered from what is kept and changes nothing a second time.

use super::convert::{change_of_entry, change_to_raft, configuration_from_raft};
use super::{Effects, MemberChangeKind, MemberChanges, RETRY_MS, Replica};
use crate::codec;
use crate::ids::{Index, ReplicaId, Term, Time};
use crate::limits::FEATURE_LEVEL;
use crate::members::{MemberCommand, MemberWish};
use crate::request::{Command, Outcome, Refusal};
use crate::state::Proposal;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use protobuf::Message as _;
use raft::ProgressState;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, Message, MessageType};
use tracing::{info, warn};

impl Replica {
    pub(super) fn apply_membership(&mut self, index: Index, entry: &Entry, effects: &mut Effects) -> Option<Outcome> {
        let change = change_of_entry(entry);
        if entry.context.is_empty() {
            // Leaving a joint configuration.
            self.change_configuration(&change);
            return None;
        }
        let proposal = codec::decode_proposal(&entry.context).expect("the feature level admits only known formats");
        if let Command::Members(MemberCommand::Remove(old) | MemberCommand::Replace { old, .. }) =
            &proposal.write.command
        {
            // It is needed, and must be reached, until a joint configuration is left.
            self.leaving.extend(self.live.look(|state| state.members.get(*old).cloned()));
        }
        let (outcome, finished) = self.live.advance(index, |state| state.apply(index, proposal));
        // A repeated request is answered from what is kept and changes nothing a second time.
        if !finished.is_empty() && matches!(outcome, Outcome::Applied { .. }) {
            self.change_configuration(&change);
        }
        effects.finished.extend(finished);
        Some(outcome)
    }

    pub(super) fn change_configuration(&mut self, change: &ConfChangeV2) {
        match self.raft.apply_conf_change(change) {
            Ok(configuration) => {
                self.configuration = configuration_from_raft(&configuration);
                info!(replica = self.identity.replica.0, configuration = ?self.configuration, "configuration changed");
                if self.is_leader() && !self.configuration.is_voter(self.identity.replica) {
                    // It inherited its own removal. The library does not survive a leader that is not part of its configuration.
                    let term = self.raft.raft.term;
                    self.raft.raft.become_follower(term, 0);
                }
            }
            Err(error) => {
                warn!(replica = self.identity.replica.0, %error, "the configuration change does not fit and is skipped");
            }
        }
        self.members_told = false;
    }

    /// Adds admitted members as learners and promotes those who wish it, one change at a time.
    pub(super) fn try_grant_wish(&mut self) {
        if self.raft.raft.has_pending_conf() || !self.raft.raft.apply_to_current_term() {
            return;
        }
        if self.configuration.is_joint() {
            // The library leaves by itself unless the leader that entered is gone before it applied that.
            let _ = self.raft.propose_conf_change(Vec::new(), ConfChangeV2::default());
            return;
        }
        let everybody = self.configuration.everybody();
        let mut wish = None;
        for member in self.live.look(|state| state.members.clone()).all() {
            if !everybody.contains(&member.id) {
                wish = Some(MemberCommand::AddLearner(member.id));
                break;
            }
            if self.configuration.is_voter(member.id) {
                continue;
            }
            let command = match member.wish {
                MemberWish::Learner => continue,
                MemberWish::Replacement { of } if self.configuration.is_voter(of) && of != self.identity.replica => {
                    MemberCommand::Replace { old: of, new: member.id }
                }
                MemberWish::Replacement { of } if of == self.identity.replica => {
                    // Who is to be replaced cannot lead the change; somebody else will.
                    if self.ready_to_vote(member.id).is_ok() {
                        if let Some(to) = self.furthest_voter() {
                            self.raft.transfer_leader(to.0);
                        }
                        return;
                    }
                    continue;
                }
                MemberWish::Voter | MemberWish::Replacement { .. } => MemberCommand::Promote(member.id),
            };
            if self.ready_to_vote(member.id).is_ok() {
                wish = Some(command);
                break;
            }
        }
        if let Some(command) = wish {
            self.own_write(Command::Members(command));
        }
    }

    /// Proposes the highest feature level that every member supports, once a term.
    pub(super) fn try_raise_level(&mut self) {
        let (supported, has) = self.live.look(|state| (state.members.feature_level(), state.feature_level()));
        let level = supported.min(FEATURE_LEVEL);
        if level <= has || !self.raft.raft.apply_to_current_term() {
            return;
        }
        let Some(leadership) = self.leadership.as_mut().filter(|leadership| leadership.raising < level) else { return };
        leadership.raising = level;
        self.own_write(Command::RaiseFeatureLevel(level));
    }

    /// Whether a learner has caught up and holds the whole history.
    pub(super) fn ready_to_vote(&self, id: ReplicaId) -> Result<(), String> {
        let Some(progress) = self.raft.raft.prs().get(id.0) else {
            return Err(format!("replica {id} is not part of the configuration"));
        };
        let last = self.raft.raft.raft_log.last_index();
        let behind = last.saturating_sub(progress.matched);
        // After a snapshot an idle follower stays in `probe` until there is something to send: what counts is its position.
        let is_following = progress.state != ProgressState::Snapshot && progress.recent_active;
        if !is_following || behind > 1_000 {
            return Err(format!("replica {id} is {behind} entries behind; wait until it has caught up"));
        }
        let full_copy = self.leadership.as_ref().and_then(|l| l.reports.get(&id).copied()).unwrap_or(false);
        if !full_copy {
            return Err(format!("replica {id} does not hold the whole history yet; wait until it does"));
        }
        Ok(())
    }

    pub(super) fn propose_membership(&mut self, key: u64, effects: &mut Effects) {
        let Some(pending) = self.writes.get(key) else { return };
        let Command::Members(command) = pending.write.command.clone() else { return };
        if let Some(outcome) = self.live.look(|state| state.sessions.kept(pending.write.request)) {
            return self.finish_write(key, outcome, effects);
        }
        let refusal = |problem: String| Outcome::Refused(Refusal::Membership { problem: problem.into() });
        if self.raft.raft.has_pending_conf() || self.configuration.is_joint() || !self.raft.raft.apply_to_current_term()
        {
            // Changes go one at a time; this one waits for the one before, which may be an earlier copy of itself.
            return self.writes.set_waiting(key, self.now.plus_ms(RETRY_MS));
        }
        let changes = match self.membership_changes(&command) {
            Ok(changes) => changes,
            Err(problem) => return self.finish_write(key, refusal(problem), effects),
        };
        let Some(leadership) = &mut self.leadership else { return };
        let elapsed = self.now.micros_since(leadership.stamp);
        let proposal = Proposal { write: pending.write.clone(), recorded_at: self.wall, elapsed };
        let context = codec::encode_proposal(&proposal);
        let index = Index(self.raft.raft.raft_log.last_index() + 1);
        let term = Term(self.raft.raft.term);
        let mut entry = Entry::default();
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        entry.data = change_to_raft(&changes).write_to_bytes().expect("a small message encodes").into();
        entry.context = context;
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.identity.replica.0;
        message.set_entries(Vec::from([entry]).into());
        self.raft.raft.step(message).expect("a leader that hands nothing over takes proposals");
        leadership.stamp = Time(leadership.stamp.0 + elapsed * 1_000);
        self.writes.set_proposed(key, index, term);
    }

    /// What a member command does to the configuration, or why it cannot.
    pub(super) fn membership_changes(&self, command: &MemberCommand) -> Result<MemberChanges, String> {
        use MemberChangeKind::{Learner, Remove, Voter};
        let present = |id: &ReplicaId| self.configuration.everybody().contains(id);
        let voters = &self.configuration.voters;
        let leaves = |id: &ReplicaId| {
            if *id == self.identity.replica {
                return Err(format!("replica {id} leads; hand leadership over first with `muster members transfer`"));
            }
            if voters.contains(id) && voters.len() == 1 {
                return Err(format!("replica {id} is the only voter"));
            }
            Ok(())
        };
        match command {
            MemberCommand::Admit(_) => Ok(Vec::new()),
            MemberCommand::AddLearner(id) => {
                if !self.is_admitted(*id) {
                    return Err(format!("replica {id} was never admitted; run `muster join` on its host"));
                }
                if present(id) {
                    return Err(format!("replica {id} is already part of the cluster"));
                }
                Ok(Vec::from([(Learner, *id)]))
            }
            MemberCommand::Promote(id) => {
                if voters.contains(id) {
                    return Err(format!("replica {id} votes already"));
                }
                self.ready_to_vote(*id)?;
                Ok(Vec::from([(Voter, *id)]))
            }
            MemberCommand::Demote(id) => {
                if !voters.contains(id) {
                    return Err(format!("replica {id} is not a voter"));
                }
                leaves(id)?;
                Ok(Vec::from([(Learner, *id)]))
            }
            MemberCommand::Remove(id) => {
                if !present(id) && !self.is_admitted(*id) {
                    return Err(format!("there is no replica {id}"));
                }
                leaves(id)?;
                Ok(Vec::from([(Remove, *id)]))
            }
            MemberCommand::Replace { old, new } => {
                if !voters.contains(old) {
                    return Err(format!("replica {old} is not a voter"));
                }
                if voters.contains(new) {
                    return Err(format!("replica {new} votes already"));
                }
                leaves(old)?;
                self.ready_to_vote(*new)?;
                Ok(Vec::from([(Voter, *new), (Remove, *old)]))
            }
        }
    }
}
