//! What others see of a replica: its members, its status, its view.

use super::{Effects, HOUSEKEEPING_MS, Publication, Replica};
use crate::ids::{Index, ReplicaId, Term};
use crate::request::{Progress, RaftRole, ReplicaStatus};
use alloc::vec::Vec;
use raft::{ProgressState, StateRole};

impl Replica {
    pub(super) fn tell_members(&mut self, effects: &mut Effects) {
        if !self.members_told {
            let (configuration, table) = (&self.configuration, self.live.look(|state| state.members.clone()));
            self.leaving
                .retain(|member| table.get(member.id).is_none() && configuration.everybody().contains(&member.id));
            let members: Vec<_> = table.all().chain(&self.leaving).cloned().collect();
            self.members_told = true;
            effects.members = Some(members);
        }
    }

    pub(super) fn role(&self) -> RaftRole {
        match self.raft.raft.state {
            StateRole::Leader => RaftRole::Leader,
            StateRole::PreCandidate => RaftRole::PreCandidate,
            StateRole::Candidate => RaftRole::Candidate,
            StateRole::Follower if self.configuration.is_voter(self.identity.replica) => RaftRole::Follower,
            StateRole::Follower => RaftRole::Learner,
        }
    }

    /// Its Raft state, for operators.
    #[must_use]
    pub fn status(&self) -> ReplicaStatus {
        let raft = &self.raft.raft;
        let progress = if self.is_leader() {
            let mut all: Vec<_> = raft
                .prs()
                .iter()
                .filter(|(id, _)| **id != self.identity.replica.0)
                .map(|(id, progress)| Progress {
                    replica: ReplicaId(*id),
                    match_index: Index(progress.matched),
                    next_index: Index(progress.next_idx),
                    state: match progress.state {
                        ProgressState::Probe => "probe",
                        ProgressState::Replicate => "replicate",
                        ProgressState::Snapshot => "snapshot",
                    },
                    paused: progress.is_paused(),
                    recent_active: progress.recent_active,
                    pending_snapshot: (progress.pending_snapshot != 0).then_some(Index(progress.pending_snapshot)),
                    full_copy: self
                        .leadership
                        .as_ref()
                        .and_then(|l| l.reports.get(&ReplicaId(*id)).copied())
                        .unwrap_or(false),
                })
                .collect();
            all.sort_unstable_by_key(|p| p.replica);
            all
        } else {
            Vec::new()
        };
        ReplicaStatus {
            replica: self.identity.replica,
            role: self.role(),
            leader: ReplicaId(raft.leader_id),
            term: Term(raft.term),
            vote: ReplicaId(raft.vote),
            commit: Index(raft.raft_log.committed),
            applied: self.applied,
            persisted: Index(raft.raft_log.persisted),
            last: Index(raft.raft_log.last_index()),
            first: Index(self.raft.store().first()),
            snapshot: self.snapshot_index(),
            log_bytes: self.raft.store().bytes(),
            full_copy: self.full_copy,
            configuration: self.configuration.clone(),
            progress,
            refused_messages: self.refused,
            snapshot_digest: self.snapshot.as_ref().map(|meta| meta.digest),
        }
    }

    pub(super) fn publish(&mut self, effects: &mut Effects) {
        let role = self.role();
        let raft = &self.raft.raft;
        let changed = self.publication.applied != self.applied
            || self.publication.role != Some(role)
            || self.publication.term != raft.term
            || self.publication.leader != raft.leader_id;
        if !changed && self.publication.at.plus_ms(HOUSEKEEPING_MS) > self.now {
            return;
        }
        self.publication = Publication {
            version: self.publication.version + 1,
            at: self.now,
            applied: self.applied,
            role: Some(role),
            term: raft.term,
            leader: raft.leader_id,
        };
        self.live.publish(self.status(), self.publication.version, self.now);
        effects.published = Some(self.publication.version);
    }
}
