//! Proposals, writes and their outcomes, format 1.

use super::journal::{Author1, ConfigState1, EntryDraft1, OperationDraft1, Overlay1, Policy1, Setting1};
use super::mirror::{
    Age1, Incarnation1, Index1, Key1, Mirror, NodeId1, OneShotId1, ReplicaId1, ReplicaName1, Seq1, SessionId1, Text1,
    VClusterId1, WallTime1, mirror_enum, mirror_struct,
};
use super::{CodecError, decode, encode};
use crate::journal::command::JournalCommand;
use crate::members::{Admission, Member, MemberCommand, MemberWish};
use crate::request::{Command, NotApplied, Outcome, Refusal, Reply, RequestId, UnknownWhy, WriteRequest};
use crate::state::Proposal;
use bytes::Bytes;

mirror_enum!(
    /// The form of a journal command.
    JournalCommand1 of JournalCommand {
        AppendEntry(EntryDraft1),
        UpdateNodeState { node: NodeId1, state: ConfigState1 },
        SetPolicy { vcluster: VClusterId1, policy: Policy1 },
        SetOverlay { vcluster: VClusterId1, overlay: Overlay1 },
        RecordOperation(OperationDraft1),
    }
);
mirror_enum!(
    /// The form of a member's wish.
    MemberWish1 of MemberWish { Learner, Voter, Replacement { of: ReplicaId1 } }
);
mirror_struct!(
    /// The form of an admission.
    Admission1 of Admission {
        name: ReplicaName1,
        incarnation: Incarnation1,
        peer_address: Text1,
        client_address: Text1,
        wish: MemberWish1,
        feature_level: u32,
    }
);
mirror_struct!(
    /// The form of a member.
    Member1 of Member {
        id: ReplicaId1,
        name: ReplicaName1,
        incarnation: Incarnation1,
        peer_address: Text1,
        client_address: Text1,
        wish: MemberWish1,
        feature_level: u32,
    }
);
mirror_enum!(
    /// The form of a membership command.
    MemberCommand1 of MemberCommand {
        Admit(Admission1),
        AddLearner(ReplicaId1),
        Promote(ReplicaId1),
        Demote(ReplicaId1),
        Remove(ReplicaId1),
        Replace { old: ReplicaId1, new: ReplicaId1 },
    }
);
mirror_enum!(
    /// The form of a command.
    Command1 of Command {
        Journal(JournalCommand1),
        Members(MemberCommand1),
        OpenSession,
        CloseSession,
        Expire,
        RaiseFeatureLevel(u32),
    }
);
mirror_enum!(
    /// The form of a request's id.
    RequestId1 of RequestId {
        Session { session: SessionId1, number: u64, acknowledged: u64 },
        OneShot { id: OneShotId1, drawn_at: Age1 },
        None,
    }
);
mirror_struct!(
    /// The form of a write.
    WriteRequest1 of WriteRequest { request: RequestId1, author: Author1, command: Command1 }
);
mirror_struct!(
    /// The form of a proposal.
    Proposal1 of Proposal { write: WriteRequest1, recorded_at: WallTime1, elapsed: u64 }
);
mirror_enum!(
    /// The form of a reply.
    Reply1 of Reply {
        Recorded { sequence: Seq1 },
        NodeState { state: ConfigState1 },
        Overlay { version: Seq1 },
        Session { session: SessionId1 },
        SessionClosed,
        Admitted { replica: ReplicaId1 },
        Membership,
        Expired { count: u32 },
        FeatureLevel { level: u32 },
    }
);
mirror_enum!(
    /// The form of a refusal.
    Refusal1 of Refusal {
        Invalid { field: Text1, problem: Text1 },
        UnknownScope { scope: Text1, hint: Text1 },
        FutureParent { parent: Seq1, head: Seq1 },
        Conflict { key: Key1, theirs: Setting1, theirs_sequence: Seq1, yours: Setting1 },
        TargetRolledBack { key: Key1, pair: Seq1, taken_off_by: Seq1 },
        TooFarBack { key: Key1, remembered_from: Seq1 },
        NothingToRollBack,
        TooManyTemporary { key: Key1, max: u32 },
        IllegalTransition { from: ConfigState1, to: ConfigState1 },
        Emergency { problem: Text1 },
        Forbidden { problem: Text1 },
        Overlay { problem: Text1 },
        Membership { problem: Text1 },
    }
);
mirror_enum!(
    /// The form of what was certainly not applied.
    NotApplied1 of NotApplied {
        NoQuorum,
        NotLeader { leader: ReplicaId1, address: Text1 },
        Busy { retry_after_ms: u64 },
        TooLarge { bytes: u64, bytes_max: u64 },
        Superseded,
        Stopping,
        FeatureLevel { needs: u32, has: u32 },
        Refused(Refusal1),
    }
);
mirror_enum!(
    /// The form of what nobody knows.
    UnknownWhy1 of UnknownWhy {
        TimedOut, ForwardTimedOut, SessionUnknown, AlreadyAcknowledged, OneShotExpired, ConnectionLost,
    }
);
mirror_enum!(
    /// The form of an outcome.
    Outcome1 of Outcome {
        Applied { index: Index1, reply: Reply1 },
        Refused(Refusal1),
        NotApplied(NotApplied1),
        Unknown(UnknownWhy1),
    }
);

/// Encodes a proposal, as it goes into the log.
#[must_use]
pub fn encode_proposal(proposal: &Proposal) -> Bytes {
    encode(&Proposal1::of(proposal))
}

/// Decodes a proposal.
///
/// # Errors
/// [`CodecError`] if the bytes are not a proposal of a known format.
pub fn decode_proposal(bytes: &[u8]) -> Result<Proposal, CodecError> {
    decode::<Proposal1>("a proposal", bytes)?.back()
}

/// Encodes a write.
#[must_use]
pub fn encode_write_request(write: &WriteRequest) -> Bytes {
    encode(&WriteRequest1::of(write))
}

/// Decodes a write.
///
/// # Errors
/// [`CodecError`] if the bytes are not a write of a known format.
pub fn decode_write_request(bytes: &[u8]) -> Result<WriteRequest, CodecError> {
    decode::<WriteRequest1>("a write", bytes)?.back()
}

/// Encodes an outcome.
#[must_use]
pub fn encode_outcome(outcome: &Outcome) -> Bytes {
    encode(&Outcome1::of(outcome))
}

/// Decodes an outcome.
///
/// # Errors
/// [`CodecError`] if the bytes are not an outcome of a known format.
pub fn decode_outcome(bytes: &[u8]) -> Result<Outcome, CodecError> {
    decode::<Outcome1>("an outcome", bytes)?.back()
}
