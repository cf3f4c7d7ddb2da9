//! Records and what they are made of, format 1.

use super::mirror::{Key1, Milli1, Mirror, NodeId1, Seq1, Text1, VClusterId1, WallTime1, mirror_enum, mirror_struct};
use super::{CodecError, decode, encode, malformed};
use crate::journal::command::ConfigState;
use crate::journal::entry::{
    AdminOperation, Author, Change, ConfigEntry, EntryDraft, EntryType, OperationDraft, OperationKind, Principal,
    Record, Role,
};
use crate::journal::key::{Scope, Setting};
use crate::journal::overlay::BootOverlay;
use crate::journal::policy::{Mode, Policy};
use alloc::vec::Vec;
use bytes::Bytes;

mirror_enum!(
    /// The form of a scope.
    Scope1 of Scope { Global, VCluster(VClusterId1), Node(NodeId1) }
);
mirror_enum!(
    /// The form of a setting.
    Setting1 of Setting { Unset, Absent, Value(Text1) }
);
mirror_enum!(
    /// The form of an entry's kind, in the order of the seed.
    EntryType1 of EntryType {
        Commit, Rollback, AutoConverge, DriftDetected, CapabilityChange, PolicyUpdate, BootConfig, EmergencyStart,
        EmergencyEnd, ExecLog, ShellSession, ServiceLifecycle,
    }
);
mirror_struct!(
    /// The form of a change.
    Change1 of Change { key: Key1, previous: Setting1, next: Setting1 }
);
mirror_enum!(
    /// The form of a principal.
    Principal1 of Principal {
        Certificate { subject: Text1 },
        Oidc { issuer: Text1, subject: Text1 },
        Claimed { name: Text1 },
        System { part: Text1 },
    }
);
mirror_enum!(
    /// The form of a role.
    Role1 of Role { Admin, Operator(VClusterId1), Viewer(VClusterId1), Agent(NodeId1), System }
);
mirror_struct!(
    /// The form of an author.
    Author1 of Author { principal: Principal1, role: Role1 }
);
mirror_enum!(
    /// The form of a node's state.
    ConfigState1 of ConfigState { Committed, Drifted, Converging, Emergency }
);
mirror_enum!(
    /// The form of a policy's mode.
    Mode1 of Mode { Observe, Warn, Enforce }
);

/// The form of the seven weights.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Weights1([u32; 7]);

impl Mirror for Weights1 {
    type Domain = [crate::journal::policy::Milli; 7];
    fn of(value: &Self::Domain) -> Self {
        Self(value.map(|milli| milli.0))
    }
    fn back(self) -> Result<Self::Domain, CodecError> {
        Ok(self.0.map(crate::journal::policy::Milli))
    }
}

mirror_struct!(
    /// The form of a policy.
    Policy1 of Policy {
        base_window_seconds: u32,
        sensitivity: Milli1,
        weights: Weights1,
        min_window_seconds: u32,
        emergency_allowed: bool,
        emergency_window_seconds: u32,
        mode: Mode1,
        exec_allow: Vec<Text1>,
    }
);
mirror_struct!(
    /// The form of a stored overlay.
    Overlay1 of BootOverlay { version: Seq1, checksum: super::mirror::Digest1, data: Bytes, content_bytes: u64 }
);
mirror_struct!(
    /// The form of an entry that is asked for.
    EntryDraft1 of EntryDraft {
        entry_type: EntryType1,
        scope: Scope1,
        parent: Seq1,
        based_on: Option<Seq1>,
        changes: Vec<Change1>,
        ttl_seconds: Option<u32>,
        emergency_reason: Option<Text1>,
        message: Text1,
        occurred_at: Option<WallTime1>,
    }
);
mirror_struct!(
    /// The form of a recorded entry.
    ConfigEntry1 of ConfigEntry {
        sequence: Seq1,
        recorded_at: WallTime1,
        occurred_at: Option<WallTime1>,
        entry_type: EntryType1,
        scope: Scope1,
        author: Author1,
        parent: Seq1,
        based_on: Option<Seq1>,
        delta: Vec<Change1>,
        takes_off: Vec<(Key1, Seq1)>,
        policy_ref: Option<Seq1>,
        policy: Option<Policy1>,
        ttl_seconds: Option<u32>,
        emergency_reason: Option<Text1>,
        message: Text1,
    }
);
mirror_enum!(
    /// The form of an operation's kind.
    OperationKind1 of OperationKind { Exec, ShellStart, ShellEnd, Membership }
);
mirror_struct!(
    /// The form of an operation that is to be recorded.
    OperationDraft1 of OperationDraft {
        kind: OperationKind1,
        scope: Scope1,
        detail: Text1,
        exit_status: Option<i32>,
        occurred_at: Option<WallTime1>,
    }
);
mirror_struct!(
    /// The form of a recorded operation.
    AdminOperation1 of AdminOperation {
        sequence: Seq1,
        recorded_at: WallTime1,
        occurred_at: Option<WallTime1>,
        author: Author1,
        kind: OperationKind1,
        scope: Scope1,
        detail: Text1,
        exit_status: Option<i32>,
    }
);
mirror_enum!(
    /// The form of a record.
    Record1 of Record { Entry(ConfigEntry1), Operation(AdminOperation1) }
);

/// Encodes a record as history stores it and the chain covers it.
#[must_use]
pub fn encode_record(record: &Record) -> Bytes {
    encode(&Record1::of(record))
}

/// Decodes a stored record.
///
/// # Errors
/// [`CodecError`] if the bytes are not a record of a known format.
pub fn decode_record(bytes: &[u8]) -> Result<Record, CodecError> {
    let record = decode::<Record1>("a record", bytes)?.back()?;
    if record.sequence().0 == 0 {
        return Err(malformed("a record", "its sequence is 0, the first is 1"));
    }
    Ok(record)
}
