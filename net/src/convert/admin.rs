//! `admin.proto`.

use super::{Malformed, Wire, all, known, many, need, text};
use crate::client::{Admitted, Status};
use crate::proto::v1 as wire;
use muster_core::ids::{GroupId, Index, ReplicaId, Term};
use muster_core::log::Configuration;
use muster_core::request::{AdminOutcome, AdminRequest, Progress, RaftRole, ReplicaStatus};

fn ids(wire: Vec<u64>) -> Vec<ReplicaId> {
    wire.into_iter().map(ReplicaId).collect()
}

fn numbers(ids: &[ReplicaId]) -> Vec<u64> {
    ids.iter().map(|id| id.0).collect()
}

impl Wire for Configuration {
    type Wire = wire::Configuration;
    fn to_wire(&self) -> Self::Wire {
        wire::Configuration {
            voters: numbers(&self.voters),
            voters_outgoing: numbers(&self.voters_outgoing),
            learners: numbers(&self.learners),
            learners_next: numbers(&self.learners_next),
            auto_leave: self.auto_leave,
        }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        Ok(Self {
            voters: ids(wire.voters),
            voters_outgoing: ids(wire.voters_outgoing),
            learners: ids(wire.learners),
            learners_next: ids(wire.learners_next),
            auto_leave: wire.auto_leave,
        })
    }
}

impl Wire for Progress {
    type Wire = wire::Progress;
    fn to_wire(&self) -> Self::Wire {
        let state = match self.state {
            "probe" => wire::ProgressState::Probe,
            "replicate" => wire::ProgressState::Replicate,
            "snapshot" => wire::ProgressState::Snapshot,
            _ => wire::ProgressState::Unspecified,
        };
        wire::Progress {
            replica: self.replica.0,
            match_index: self.match_index.0,
            next_index: self.next_index.0,
            state: state.into(),
            paused: self.paused,
            recent_active: self.recent_active,
            pending_snapshot: self.pending_snapshot.map(|index| index.0),
            full_copy: self.full_copy,
        }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        let want = "PROBE, REPLICATE or SNAPSHOT";
        let state = match known("state", wire.state, want)? {
            wire::ProgressState::Unspecified => return Err(Malformed::new("state", format!("expected {want}"))),
            wire::ProgressState::Probe => "probe",
            wire::ProgressState::Replicate => "replicate",
            wire::ProgressState::Snapshot => "snapshot",
        };
        Ok(Self {
            replica: ReplicaId(wire.replica),
            match_index: Index(wire.match_index),
            next_index: Index(wire.next_index),
            state,
            paused: wire.paused,
            recent_active: wire.recent_active,
            pending_snapshot: wire.pending_snapshot.map(Index),
            full_copy: wire.full_copy,
        })
    }
}

impl Wire for ReplicaStatus {
    type Wire = wire::ReplicaStatus;
    fn to_wire(&self) -> Self::Wire {
        let role = match self.role {
            RaftRole::Leader => wire::RaftRole::Leader,
            RaftRole::Follower => wire::RaftRole::Follower,
            RaftRole::PreCandidate => wire::RaftRole::PreCandidate,
            RaftRole::Candidate => wire::RaftRole::Candidate,
            RaftRole::Learner => wire::RaftRole::Learner,
        };
        wire::ReplicaStatus {
            replica: self.replica.0,
            role: role.into(),
            leader: self.leader.0,
            term: self.term.0,
            vote: self.vote.0,
            commit: self.commit.0,
            applied: self.applied.0,
            persisted: self.persisted.0,
            last: self.last.0,
            first: self.first.0,
            snapshot: self.snapshot.0,
            log_bytes: self.log_bytes,
            full_copy: self.full_copy,
            configuration: Some(self.configuration.to_wire()),
            progress: all(&self.progress),
            refused_messages: self.refused_messages,
            snapshot_digest: self.snapshot_digest.map(|digest| digest.to_string()),
        }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        let want = "one of the five roles";
        let role = match known("role", wire.role, want)? {
            wire::RaftRole::Unspecified => return Err(Malformed::new("role", format!("expected {want}"))),
            wire::RaftRole::Leader => RaftRole::Leader,
            wire::RaftRole::Follower => RaftRole::Follower,
            wire::RaftRole::PreCandidate => RaftRole::PreCandidate,
            wire::RaftRole::Candidate => RaftRole::Candidate,
            wire::RaftRole::Learner => RaftRole::Learner,
        };
        Ok(Self {
            replica: ReplicaId(wire.replica),
            role,
            leader: ReplicaId(wire.leader),
            term: Term(wire.term),
            vote: ReplicaId(wire.vote),
            commit: Index(wire.commit),
            applied: Index(wire.applied),
            persisted: Index(wire.persisted),
            last: Index(wire.last),
            first: Index(wire.first),
            snapshot: Index(wire.snapshot),
            log_bytes: wire.log_bytes,
            full_copy: wire.full_copy,
            configuration: need("configuration", wire.configuration)?,
            progress: many("progress", wire.progress)?,
            refused_messages: wire.refused_messages,
            snapshot_digest: wire.snapshot_digest.map(|digest| text("snapshot_digest", &digest)).transpose()?,
        })
    }
}

impl Wire for Status {
    type Wire = wire::StatusReply;
    fn to_wire(&self) -> Self::Wire {
        wire::StatusReply {
            cluster: self.cluster.to_string(),
            group: self.group.0,
            name: self.name.to_string(),
            incarnation: self.incarnation.to_string(),
            build_version: self.build_version.clone(),
            replica: Some(self.replica.to_wire()),
            summary: Some(self.summary.to_wire()),
            members: all(&self.members),
            disk_bytes: self.disk_bytes,
            certificate_ends: self.certificate_ends,
        }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        Ok(Self {
            cluster: text("cluster", &wire.cluster)?,
            group: GroupId(wire.group),
            name: text("name", &wire.name)?,
            incarnation: text("incarnation", &wire.incarnation)?,
            build_version: wire.build_version,
            replica: need("replica", wire.replica)?,
            summary: need("summary", wire.summary)?,
            members: many("members", wire.members)?,
            disk_bytes: wire.disk_bytes,
            certificate_ends: wire.certificate_ends,
        })
    }
}

impl Wire for AdminRequest {
    type Wire = wire::AdminRequest;
    fn to_wire(&self) -> Self::Wire {
        use wire::admin_request::Request as W;
        let request = match self {
            Self::Snapshot => W::Snapshot(wire::Nothing {}),
            Self::Transfer { to } => W::TransferTo(to.0),
        };
        wire::AdminRequest { request: Some(request) }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        use wire::admin_request::Request as W;
        Ok(match wire.request.ok_or_else(|| Malformed::new("", "give one of snapshot, transfer_to"))? {
            W::Snapshot(wire::Nothing {}) => Self::Snapshot,
            W::TransferTo(to) => Self::Transfer { to: ReplicaId(to) },
        })
    }
}

impl Wire for AdminOutcome {
    type Wire = wire::AdminReply;
    fn to_wire(&self) -> Self::Wire {
        use wire::admin_reply::Outcome as W;
        let outcome = match self {
            Self::Snapshot { index } => W::SnapshotIndex(index.0),
            Self::Transferred { leader } => W::TransferredTo(leader.0),
            Self::Failed { problem } => W::Failed(problem.clone()),
        };
        wire::AdminReply { outcome: Some(outcome) }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        use wire::admin_reply::Outcome as W;
        Ok(match super::required("outcome", wire.outcome)? {
            W::SnapshotIndex(index) => Self::Snapshot { index: Index(index) },
            W::TransferredTo(leader) => Self::Transferred { leader: ReplicaId(leader) },
            W::Failed(problem) => Self::Failed { problem },
        })
    }
}

impl Wire for Admitted {
    type Wire = wire::Admitted;
    fn to_wire(&self) -> Self::Wire {
        wire::Admitted {
            cluster: self.cluster.to_string(),
            group: self.group.0,
            replica: self.replica.0,
            members: all(&self.members),
        }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        Ok(Self {
            cluster: text("cluster", &wire.cluster)?,
            group: GroupId(wire.group),
            replica: ReplicaId(wire.replica),
            members: many("members", wire.members)?,
        })
    }
}
