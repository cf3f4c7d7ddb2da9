//! `journal.proto`.

use super::{At, Malformed, Wire, all, digest_bytes, known, many, need, required, text};
use crate::proto::v1 as wire;
use muster_core::ids::{Seq, WallTime};
use muster_core::journal::command::ConfigState;
use muster_core::journal::entry::{
    AdminOperation, Author, Change, ConfigEntry, EntryDraft, EntryType, OperationDraft, OperationKind, Principal,
    Record, Role,
};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::overlay::BootOverlay;
use muster_core::journal::policy::{Milli, Mode, Policy};
use std::sync::Arc;

const NOTHING: wire::Nothing = wire::Nothing {};

impl Wire for Scope {
    type Wire = wire::Scope;
    fn to_wire(&self) -> wire::Scope {
        use wire::scope::Scope as W;
        let scope = match self {
            Self::Global => W::Global(NOTHING),
            Self::VCluster(name) => W::Vcluster(name.to_string()),
            Self::Node(name) => W::Node(name.to_string()),
        };
        wire::Scope { scope: Some(scope) }
    }
    fn from_wire(wire: wire::Scope) -> Result<Self, Malformed> {
        use wire::scope::Scope as W;
        Ok(match wire.scope.ok_or_else(|| Malformed::new("", "give one of global, vcluster, node"))? {
            W::Global(wire::Nothing {}) => Self::Global,
            W::Vcluster(name) => Self::VCluster(text("vcluster", &name)?),
            W::Node(name) => Self::Node(text("node", &name)?),
        })
    }
}

impl Wire for Setting {
    type Wire = wire::Setting;
    fn to_wire(&self) -> wire::Setting {
        use wire::setting::Setting as W;
        let setting = match self {
            Self::Unset => W::Unset(NOTHING),
            Self::Absent => W::Absent(NOTHING),
            Self::Value(value) => W::Value(value.to_string()),
        };
        wire::Setting { setting: Some(setting) }
    }
    fn from_wire(wire: wire::Setting) -> Result<Self, Malformed> {
        use wire::setting::Setting as W;
        Ok(match wire.setting {
            None | Some(W::Unset(wire::Nothing {})) => Self::Unset,
            Some(W::Absent(wire::Nothing {})) => Self::Absent,
            Some(W::Value(value)) => Self::Value(value.into()),
        })
    }
}

/// A setting that may be left out.
fn setting(field: &str, wire: Option<wire::Setting>) -> Result<Setting, Malformed> {
    Setting::from_wire(wire.unwrap_or_default()).at(field)
}

impl Wire for Change {
    type Wire = wire::Change;
    fn to_wire(&self) -> wire::Change {
        wire::Change {
            key: self.key.to_string(),
            previous: Some(self.previous.to_wire()),
            next: Some(self.next.to_wire()),
        }
    }
    fn from_wire(wire: wire::Change) -> Result<Self, Malformed> {
        Ok(Self {
            key: text("key", &wire.key)?,
            previous: setting("previous", wire.previous)?,
            next: setting("next", wire.next)?,
        })
    }
}

impl Wire for Principal {
    type Wire = wire::Principal;
    fn to_wire(&self) -> wire::Principal {
        use wire::principal::Principal as W;
        let principal = match self {
            Self::Certificate { subject } => W::Certificate(subject.to_string()),
            Self::Oidc { issuer, subject } => {
                W::Oidc(wire::OidcIdentity { issuer: issuer.to_string(), subject: subject.to_string() })
            }
            Self::Claimed { name } => W::Claimed(name.to_string()),
            Self::System { part } => W::System(part.to_string()),
        };
        wire::Principal { principal: Some(principal) }
    }
    fn from_wire(wire: wire::Principal) -> Result<Self, Malformed> {
        use wire::principal::Principal as W;
        let want = "give one of certificate, oidc, claimed";
        Ok(match wire.principal.ok_or_else(|| Malformed::new("", want))? {
            W::Certificate(subject) => Self::Certificate { subject: subject.into() },
            W::Oidc(identity) => Self::Oidc { issuer: identity.issuer.into(), subject: identity.subject.into() },
            W::Claimed(name) => Self::Claimed { name: name.into() },
            W::System(part) => Self::System { part: part.into() },
        })
    }
}

impl Wire for Role {
    type Wire = wire::Role;
    fn to_wire(&self) -> wire::Role {
        use wire::role::Role as W;
        let role = match self {
            Self::Admin => W::Admin(NOTHING),
            Self::Operator(vcluster) => W::OperatorOfVcluster(vcluster.to_string()),
            Self::Viewer(vcluster) => W::ViewerOfVcluster(vcluster.to_string()),
            Self::Agent(node) => W::AgentOfNode(node.to_string()),
            Self::System => W::System(NOTHING),
        };
        wire::Role { role: Some(role) }
    }
    fn from_wire(wire: wire::Role) -> Result<Self, Malformed> {
        use wire::role::Role as W;
        let want = "give one of admin, operator_of_vcluster, viewer_of_vcluster, agent_of_node";
        Ok(match wire.role.ok_or_else(|| Malformed::new("", want))? {
            W::Admin(wire::Nothing {}) => Self::Admin,
            W::OperatorOfVcluster(vcluster) => Self::Operator(text("operator_of_vcluster", &vcluster)?),
            W::ViewerOfVcluster(vcluster) => Self::Viewer(text("viewer_of_vcluster", &vcluster)?),
            W::AgentOfNode(node) => Self::Agent(text("agent_of_node", &node)?),
            W::System(wire::Nothing {}) => Self::System,
        })
    }
}

impl Wire for Author {
    type Wire = wire::Author;
    fn to_wire(&self) -> wire::Author {
        wire::Author { principal: Some(self.principal.to_wire()), role: Some(self.role.to_wire()) }
    }
    fn from_wire(wire: wire::Author) -> Result<Self, Malformed> {
        Ok(Self { principal: need("principal", wire.principal)?, role: need("role", wire.role)? })
    }
}

impl Wire for EntryType {
    type Wire = i32;
    fn to_wire(&self) -> i32 {
        use wire::EntryType as W;
        let kind = match self {
            Self::Commit => W::Commit,
            Self::Rollback => W::Rollback,
            Self::AutoConverge => W::AutoConverge,
            Self::DriftDetected => W::DriftDetected,
            Self::CapabilityChange => W::CapabilityChange,
            Self::PolicyUpdate => W::PolicyUpdate,
            Self::BootConfig => W::BootConfig,
            Self::EmergencyStart => W::EmergencyStart,
            Self::EmergencyEnd => W::EmergencyEnd,
            Self::ExecLog => W::ExecLog,
            Self::ShellSession => W::ShellSession,
            Self::ServiceLifecycle => W::ServiceLifecycle,
        };
        kind.into()
    }
    fn from_wire(wire: i32) -> Result<Self, Malformed> {
        use wire::EntryType as W;
        let want = "one of the twelve entry types";
        Ok(match known("", wire, want)? {
            W::Unspecified => return Err(Malformed::new("", format!("it is missing: expected {want}"))),
            W::Commit => Self::Commit,
            W::Rollback => Self::Rollback,
            W::AutoConverge => Self::AutoConverge,
            W::DriftDetected => Self::DriftDetected,
            W::CapabilityChange => Self::CapabilityChange,
            W::PolicyUpdate => Self::PolicyUpdate,
            W::BootConfig => Self::BootConfig,
            W::EmergencyStart => Self::EmergencyStart,
            W::EmergencyEnd => Self::EmergencyEnd,
            W::ExecLog => Self::ExecLog,
            W::ShellSession => Self::ShellSession,
            W::ServiceLifecycle => Self::ServiceLifecycle,
        })
    }
}

impl Wire for OperationKind {
    type Wire = i32;
    fn to_wire(&self) -> i32 {
        use wire::OperationKind as W;
        let kind = match self {
            Self::Exec => W::Exec,
            Self::ShellStart => W::ShellStart,
            Self::ShellEnd => W::ShellEnd,
            Self::Membership => W::Membership,
        };
        kind.into()
    }
    fn from_wire(wire: i32) -> Result<Self, Malformed> {
        use wire::OperationKind as W;
        let want = "EXEC, SHELL_START or SHELL_END";
        Ok(match known("", wire, want)? {
            W::Unspecified => return Err(Malformed::new("", format!("it is missing: expected {want}"))),
            W::Exec => Self::Exec,
            W::ShellStart => Self::ShellStart,
            W::ShellEnd => Self::ShellEnd,
            W::Membership => Self::Membership,
        })
    }
}

impl Wire for ConfigState {
    type Wire = i32;
    fn to_wire(&self) -> i32 {
        use wire::ConfigState as W;
        let state = match self {
            Self::Committed => W::Committed,
            Self::Drifted => W::Drifted,
            Self::Converging => W::Converging,
            Self::Emergency => W::Emergency,
        };
        state.into()
    }
    fn from_wire(wire: i32) -> Result<Self, Malformed> {
        use wire::ConfigState as W;
        let want = "COMMITTED, DRIFTED, CONVERGING or EMERGENCY";
        Ok(match known("", wire, want)? {
            W::Unspecified => return Err(Malformed::new("", format!("it is missing: expected {want}"))),
            W::Committed => Self::Committed,
            W::Drifted => Self::Drifted,
            W::Converging => Self::Converging,
            W::Emergency => Self::Emergency,
        })
    }
}

impl Wire for EntryDraft {
    type Wire = wire::EntryDraft;
    fn to_wire(&self) -> wire::EntryDraft {
        wire::EntryDraft {
            entry_type: self.entry_type.to_wire(),
            scope: Some(self.scope.to_wire()),
            parent: self.parent.0,
            based_on: self.based_on.map(|seq| seq.0),
            changes: all(&self.changes),
            ttl_seconds: self.ttl_seconds,
            emergency_reason: self.emergency_reason.as_deref().map(str::to_owned),
            message: self.message.to_string(),
            occurred_at_ms: self.occurred_at.map(|time| time.0),
        }
    }
    fn from_wire(wire: wire::EntryDraft) -> Result<Self, Malformed> {
        Ok(Self {
            entry_type: EntryType::from_wire(wire.entry_type).at("entry_type")?,
            scope: need("scope", wire.scope)?,
            parent: Seq(wire.parent),
            based_on: wire.based_on.map(Seq),
            changes: many("changes", wire.changes)?,
            ttl_seconds: wire.ttl_seconds,
            emergency_reason: wire.emergency_reason.map(Arc::from),
            message: wire.message.into(),
            occurred_at: wire.occurred_at_ms.map(WallTime),
        })
    }
}

impl Wire for OperationDraft {
    type Wire = wire::OperationDraft;
    fn to_wire(&self) -> wire::OperationDraft {
        wire::OperationDraft {
            kind: self.kind.to_wire(),
            scope: Some(self.scope.to_wire()),
            detail: self.detail.to_string(),
            exit_status: self.exit_status,
            occurred_at_ms: self.occurred_at.map(|time| time.0),
        }
    }
    fn from_wire(wire: wire::OperationDraft) -> Result<Self, Malformed> {
        Ok(Self {
            kind: OperationKind::from_wire(wire.kind).at("kind")?,
            scope: need("scope", wire.scope)?,
            detail: wire.detail.into(),
            exit_status: wire.exit_status,
            occurred_at: wire.occurred_at_ms.map(WallTime),
        })
    }
}

impl Wire for (Key, Seq) {
    type Wire = wire::TakenOff;
    fn to_wire(&self) -> wire::TakenOff {
        wire::TakenOff { key: self.0.to_string(), sequence: self.1.0 }
    }
    fn from_wire(wire: wire::TakenOff) -> Result<Self, Malformed> {
        Ok((text("key", &wire.key)?, Seq(wire.sequence)))
    }
}

impl Wire for ConfigEntry {
    type Wire = wire::ConfigEntry;
    fn to_wire(&self) -> wire::ConfigEntry {
        wire::ConfigEntry {
            sequence: self.sequence.0,
            recorded_at_ms: self.recorded_at.0,
            occurred_at_ms: self.occurred_at.map(|time| time.0),
            entry_type: self.entry_type.to_wire(),
            scope: Some(self.scope.to_wire()),
            author: Some(self.author.to_wire()),
            parent: self.parent.0,
            based_on: self.based_on.map(|seq| seq.0),
            delta: all(&self.delta),
            takes_off: all(&self.takes_off),
            policy_ref: self.policy_ref.map(|seq| seq.0),
            policy: self.policy.as_ref().map(Wire::to_wire),
            ttl_seconds: self.ttl_seconds,
            emergency_reason: self.emergency_reason.as_deref().map(str::to_owned),
            message: self.message.to_string(),
        }
    }
    fn from_wire(wire: wire::ConfigEntry) -> Result<Self, Malformed> {
        Ok(Self {
            sequence: Seq(wire.sequence),
            recorded_at: WallTime(wire.recorded_at_ms),
            occurred_at: wire.occurred_at_ms.map(WallTime),
            entry_type: EntryType::from_wire(wire.entry_type).at("entry_type")?,
            scope: need("scope", wire.scope)?,
            author: need("author", wire.author)?,
            parent: Seq(wire.parent),
            based_on: wire.based_on.map(Seq),
            delta: many("delta", wire.delta)?,
            takes_off: many("takes_off", wire.takes_off)?,
            policy_ref: wire.policy_ref.map(Seq),
            policy: wire.policy.map(Policy::from_wire).transpose().at("policy")?,
            ttl_seconds: wire.ttl_seconds,
            emergency_reason: wire.emergency_reason.map(Arc::from),
            message: wire.message.into(),
        })
    }
}

impl Wire for AdminOperation {
    type Wire = wire::AdminOperation;
    fn to_wire(&self) -> wire::AdminOperation {
        wire::AdminOperation {
            sequence: self.sequence.0,
            recorded_at_ms: self.recorded_at.0,
            occurred_at_ms: self.occurred_at.map(|time| time.0),
            author: Some(self.author.to_wire()),
            kind: self.kind.to_wire(),
            scope: Some(self.scope.to_wire()),
            detail: self.detail.to_string(),
            exit_status: self.exit_status,
        }
    }
    fn from_wire(wire: wire::AdminOperation) -> Result<Self, Malformed> {
        Ok(Self {
            sequence: Seq(wire.sequence),
            recorded_at: WallTime(wire.recorded_at_ms),
            occurred_at: wire.occurred_at_ms.map(WallTime),
            author: need("author", wire.author)?,
            kind: OperationKind::from_wire(wire.kind).at("kind")?,
            scope: need("scope", wire.scope)?,
            detail: wire.detail.into(),
            exit_status: wire.exit_status,
        })
    }
}

impl Wire for Record {
    type Wire = wire::Record;
    fn to_wire(&self) -> wire::Record {
        use wire::record::Record as W;
        let record = match self {
            Self::Entry(entry) => W::Entry(entry.to_wire()),
            Self::Operation(operation) => W::Operation(operation.to_wire()),
        };
        wire::Record { record: Some(record) }
    }
    fn from_wire(wire: wire::Record) -> Result<Self, Malformed> {
        use wire::record::Record as W;
        Ok(match required("record", wire.record)? {
            W::Entry(entry) => Self::Entry(ConfigEntry::from_wire(entry).at("entry")?),
            W::Operation(operation) => Self::Operation(AdminOperation::from_wire(operation).at("operation")?),
        })
    }
}

impl Wire for Policy {
    type Wire = wire::Policy;
    fn to_wire(&self) -> wire::Policy {
        let [mounts, files, network, services, kernel, packages, gpu] = self.weights;
        let mode = match self.mode {
            Mode::Observe => wire::Mode::Observe,
            Mode::Warn => wire::Mode::Warn,
            Mode::Enforce => wire::Mode::Enforce,
        };
        wire::Policy {
            base_window_seconds: Some(self.base_window_seconds),
            sensitivity_milli: Some(self.sensitivity.0),
            weights: Some(wire::DimensionWeights {
                mounts_milli: mounts.0,
                files_milli: files.0,
                network_milli: network.0,
                services_milli: services.0,
                kernel_milli: kernel.0,
                packages_milli: packages.0,
                gpu_milli: gpu.0,
            }),
            min_window_seconds: Some(self.min_window_seconds),
            emergency_allowed: Some(self.emergency_allowed),
            emergency_window_seconds: Some(self.emergency_window_seconds),
            mode: mode.into(),
            exec_allow: self.exec_allow.iter().map(ToString::to_string).collect(),
        }
    }
    fn from_wire(wire: wire::Policy) -> Result<Self, Malformed> {
        let default = Self::default();
        let mode = match known("mode", wire.mode, "OBSERVE, WARN or ENFORCE")? {
            wire::Mode::Unspecified => default.mode,
            wire::Mode::Observe => Mode::Observe,
            wire::Mode::Warn => Mode::Warn,
            wire::Mode::Enforce => Mode::Enforce,
        };
        let weights = wire.weights.map_or(default.weights, |weights| {
            [
                weights.mounts_milli,
                weights.files_milli,
                weights.network_milli,
                weights.services_milli,
                weights.kernel_milli,
                weights.packages_milli,
                weights.gpu_milli,
            ]
            .map(Milli)
        });
        Ok(Self {
            base_window_seconds: wire.base_window_seconds.unwrap_or(default.base_window_seconds),
            sensitivity: wire.sensitivity_milli.map_or(default.sensitivity, Milli),
            weights,
            min_window_seconds: wire.min_window_seconds.unwrap_or(default.min_window_seconds),
            emergency_allowed: wire.emergency_allowed.unwrap_or(default.emergency_allowed),
            emergency_window_seconds: wire.emergency_window_seconds.unwrap_or(default.emergency_window_seconds),
            mode,
            exec_allow: wire.exec_allow.into_iter().map(Arc::from).collect(),
        })
    }
}

impl Wire for BootOverlay {
    type Wire = wire::Overlay;
    fn to_wire(&self) -> wire::Overlay {
        wire::Overlay {
            version: self.version.0,
            checksum: self.checksum.0.to_vec().into(),
            data: self.data.clone(),
            content_bytes: self.content_bytes,
        }
    }
    fn from_wire(wire: wire::Overlay) -> Result<Self, Malformed> {
        Ok(Self {
            version: Seq(wire.version),
            checksum: digest_bytes("checksum", &wire.checksum)?,
            data: wire.data,
            content_bytes: wire.content_bytes,
        })
    }
}
