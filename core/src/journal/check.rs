//! What is wrong with a command in itself, whatever the state: missing, misplaced and oversized fields.
//!
//! Never looks at state; what depends on it is in [`super::apply`].

use super::command::JournalCommand;
use super::entry::{Author, EntryDraft, EntryType, OperationDraft, OperationKind, Principal, Role};
use super::key::{Scope, Setting, VALUE_BYTES_MAX};
use super::policy::{Milli, Policy};
use crate::ids::Digest;
use crate::journal::overlay::BootOverlay;
use crate::limits::{
    CHANGES_MAX, EXEC_ALLOW_BYTES_MAX, EXEC_ALLOW_MAX, FACTOR_MAX, FEATURE_UNDONE, MESSAGE_BYTES_MAX,
    OVERLAY_BYTES_MAX, PRINCIPAL_BYTES_MAX, REASON_BYTES_MAX, RECORD_BYTES_MAX, TTL_SECONDS_MAX, TTL_SECONDS_MIN,
    WINDOW_SECONDS_MAX,
};
use crate::request::{Command, Refusal};
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

/// The refusal of a field.
pub(crate) fn invalid(field: &str, problem: impl Into<String>) -> Refusal {
    Refusal::Invalid { field: Arc::from(field), problem: Arc::from(problem.into()) }
}

fn longest(field: &str, text: &str, bytes_max: usize) -> Result<(), Refusal> {
    if text.len() <= bytes_max {
        return Ok(());
    }
    Err(invalid(field, format!("it has {} bytes, at most {bytes_max} are accepted", text.len())))
}

fn within(field: &str, value: u32, from: u32, to: u32) -> Result<(), Refusal> {
    if (from..=to).contains(&value) {
        return Ok(());
    }
    Err(invalid(field, format!("{value} is out of bounds: expected {from} to {to}")))
}

/// Which part of the cluster proposes a command by itself.
#[must_use]
pub(crate) const fn system_part(command: &Command) -> Option<&'static str> {
    match command {
        Command::Expire => Some("expiry"),
        Command::RaiseFeatureLevel(_) => Some("features"),
        Command::Members(_) => Some("membership"),
        Command::Journal(JournalCommand::SetOverlay { .. }) => Some("overlay"),
        Command::Journal(
            JournalCommand::AppendEntry(_)
            | JournalCommand::UpdateNodeState { .. }
            | JournalCommand::SetPolicy { .. }
            | JournalCommand::RecordOperation(_),
        )
        | Command::OpenSession
        | Command::CloseSession => None,
    }
}

/// Checks that an author is named, and is who may give such a command at all.
pub(crate) fn author(author: &Author, command: &Command) -> Result<(), Refusal> {
    let parts: &[(&str, &Arc<str>)] = match &author.principal {
        Principal::Certificate { subject } => &[("author.subject", subject)],
        Principal::Oidc { issuer, subject } => &[("author.issuer", issuer), ("author.subject", subject)],
        Principal::Claimed { name } => &[("author.name", name)],
        Principal::System { part } => &[("author.part", part)],
    };
    for (field, text) in parts {
        if text.trim().is_empty() {
            return Err(invalid(field, format!("it is empty: expected 1 to {PRINCIPAL_BYTES_MAX} bytes")));
        }
        longest(field, text, PRINCIPAL_BYTES_MAX)?;
    }
    let forbidden = |problem: String| Err(Refusal::Forbidden { problem: Arc::from(problem) });
    match (&author.principal, &author.role) {
        (Principal::System { part }, Role::System) => match system_part(command) {
            Some(own) if own == &**part => Ok(()),
            Some(own) => forbidden(format!("system:{part} does not give this command, system:{own} does")),
            None => forbidden(format!("system:{part} does not give this command: expected a person or an agent")),
        },
        (Principal::System { .. }, _) | (_, Role::System) => {
            forbidden("the role system belongs to the cluster itself, and so does every system principal".into())
        }
        _ if matches!(command, Command::Expire | Command::RaiseFeatureLevel(_)) => {
            forbidden("only the cluster itself gives this command".into())
        }
        _ => Ok(()),
    }
}

/// The feature level that a command needs.
pub(crate) fn level_of(command: &Command) -> u32 {
    match command {
        Command::Journal(JournalCommand::AppendEntry(draft))
            if draft.entry_type == EntryType::Rollback && !draft.changes.is_empty() =>
        {
            FEATURE_UNDONE
        }
        Command::Journal(_)
        | Command::Members(_)
        | Command::OpenSession
        | Command::CloseSession
        | Command::Expire
        | Command::RaiseFeatureLevel(_) => 1,
    }
}

/// Checks a draft's fields against its kind.
pub(crate) fn draft(draft: &EntryDraft, level: u32) -> Result<(), Refusal> {
    let kind = draft.entry_type;
    match kind {
        EntryType::PolicyUpdate => return Err(invalid("entry_type", "policy-update is recorded by SetPolicy")),
        EntryType::ExecLog | EntryType::ShellSession => {
            return Err(invalid("entry_type", format!("{} is recorded by RecordOperation", kind.word())));
        }
        EntryType::DriftDetected | EntryType::EmergencyStart | EntryType::EmergencyEnd => {
            if !matches!(draft.scope, Scope::Node(_)) {
                return Err(invalid(
                    "scope",
                    format!("{} is about one node: expected node:NAME, not {}", kind.word(), draft.scope),
                ));
            }
        }
        EntryType::Commit
        | EntryType::Rollback
        | EntryType::AutoConverge
        | EntryType::BootConfig
        | EntryType::CapabilityChange
        | EntryType::ServiceLifecycle => {}
    }
    longest("message", &draft.message, MESSAGE_BYTES_MAX)?;
    changes(draft, level)?;
    match (kind, &draft.based_on) {
        (EntryType::Rollback, None) => {
            return Err(invalid("based_on", "a rollback needs the scope's head that its author looked at"));
        }
        (EntryType::Rollback, Some(based_on)) if *based_on < draft.parent => {
            return Err(invalid(
                "based_on",
                format!("{based_on} is before {}, the sequence to return to", draft.parent),
            ));
        }
        (EntryType::Rollback, Some(_)) | (_, None) => {}
        (_, Some(_)) => return Err(invalid("based_on", format!("only a rollback has it, not {}", kind.word()))),
    }
    if let Some(seconds) = draft.ttl_seconds {
        if !kind.pushes() {
            return Err(invalid("ttl_seconds", format!("{} sets nothing that could expire", kind.word())));
        }
        within("ttl_seconds", seconds, TTL_SECONDS_MIN, TTL_SECONDS_MAX)?;
    }
    match (kind, &draft.emergency_reason) {
        (EntryType::EmergencyStart, Some(reason)) if !reason.trim().is_empty() => {
            longest("emergency_reason", reason, REASON_BYTES_MAX)
        }
        (EntryType::EmergencyStart, _) => {
            Err(invalid("emergency_reason", format!("an emergency needs a reason of 1 to {REASON_BYTES_MAX} bytes")))
        }
        (_, None) => Ok(()),
        (_, Some(_)) => Err(invalid("emergency_reason", format!("only emergency-start has it, not {}", kind.word()))),
    }
}

fn changes(draft: &EntryDraft, level: u32) -> Result<(), Refusal> {
    let kind = draft.entry_type;
    let count = draft.changes.len();
    if count > CHANGES_MAX {
        return Err(invalid("changes", format!("there are {count}, at most {CHANGES_MAX} fit one entry: split it")));
    }
    if kind.pushes() && count == 0 {
        return Err(invalid("changes", format!("{} needs at least one", kind.word())));
    }
    if kind == EntryType::Rollback && count != 0 {
        if level < FEATURE_UNDONE {
            return Err(invalid("changes", "a rollback has none: what it takes off follows from parent"));
        }
        if !matches!(draft.scope, Scope::Node(_)) {
            return Err(invalid(
                "changes",
                "a rollback has none, what it takes off follows from parent: only for node:NAME they say what was undone there",
            ));
        }
        let bytes = |setting: &Setting| if let Setting::Value(value) = setting { value.len() } else { 0 };
        let total: usize = draft.changes.iter().map(|change| bytes(&change.previous) + bytes(&change.next)).sum();
        if total > RECORD_BYTES_MAX {
            return Err(invalid(
                "changes",
                format!("they have {total} bytes, at most {RECORD_BYTES_MAX} fit: split it"),
            ));
        }
    }
    let mut seen = BTreeSet::new();
    for change in &draft.changes {
        let key = &change.key;
        if count > 1 && !seen.insert(key) {
            return Err(invalid("changes", format!("{key} is there twice")));
        }
        for (side, setting) in [("next", &change.next), ("previous", &change.previous)] {
            if let Setting::Value(value) = setting
                && value.len() > VALUE_BYTES_MAX
            {
                return Err(invalid(
                    side,
                    format!("{key} has {} bytes, at most {VALUE_BYTES_MAX} are accepted", value.len()),
                ));
            }
        }
        if key.is_vcluster() {
            let assigns = kind == EntryType::BootConfig
                && matches!(draft.scope, Scope::Node(_))
                && matches!(change.next, Setting::Value(_));
            if !assigns {
                return Err(invalid(
                    "changes",
                    "the key vcluster assigns a node: expected a boot-config entry of scope node:NAME, with the name of a \
                     known vCluster as its value",
                ));
            }
        }
    }
    Ok(())
}

/// Checks what is to be recorded of an operation.
pub(crate) fn operation(draft: &OperationDraft) -> Result<(), Refusal> {
    match draft.kind {
        OperationKind::Exec | OperationKind::ShellStart | OperationKind::ShellEnd => {}
        OperationKind::Membership => {
            return Err(invalid("kind", "a membership operation is recorded by the membership command itself"));
        }
    }
    if !matches!(draft.scope, Scope::Node(_)) {
        return Err(invalid("scope", format!("an operation is on one node: expected node:NAME, not {}", draft.scope)));
    }
    if draft.detail.trim().is_empty() {
        return Err(invalid("detail", format!("it is empty: expected 1 to {MESSAGE_BYTES_MAX} bytes")));
    }
    longest("detail", &draft.detail, MESSAGE_BYTES_MAX)
}

/// Checks a policy.
pub(crate) fn policy(policy: &Policy) -> Result<(), Refusal> {
    within("base_window_seconds", policy.base_window_seconds, 1, WINDOW_SECONDS_MAX)?;
    within("emergency_window_seconds", policy.emergency_window_seconds, 1, WINDOW_SECONDS_MAX)?;
    within("min_window_seconds", policy.min_window_seconds, 0, policy.base_window_seconds)?;
    let factor = |field: &str, factor: Milli| {
        if factor <= Milli(FACTOR_MAX * 1000) {
            return Ok(());
        }
        Err(invalid(field, format!("{factor} is out of bounds: expected 0.0 to {FACTOR_MAX}.0")))
    };
    factor("sensitivity", policy.sensitivity)?;
    for (dimension, weight) in super::key::Dimension::ALL.iter().zip(policy.weights) {
        factor(&format!("weights.{}", dimension.word()), weight)?;
    }
    if policy.exec_allow.len() > EXEC_ALLOW_MAX {
        let count = policy.exec_allow.len();
        return Err(invalid("exec_allow", format!("there are {count}, at most {EXEC_ALLOW_MAX} are accepted")));
    }
    for command in &policy.exec_allow {
        if command.trim().is_empty() {
            return Err(invalid("exec_allow", "a command is empty"));
        }
        longest("exec_allow", command, EXEC_ALLOW_BYTES_MAX)?;
    }
    Ok(())
}

/// Checks an overlay's bytes against its checksum.
pub(crate) fn overlay(overlay: &BootOverlay) -> Result<(), Refusal> {
    let refuse = |problem: String| Err(Refusal::Overlay { problem: Arc::from(problem) });
    if overlay.data.len() > OVERLAY_BYTES_MAX {
        return refuse(format!("it has {} bytes, at most {OVERLAY_BYTES_MAX} are accepted", overlay.data.len()));
    }
    let found = Digest::of(&overlay.data);
    if found != overlay.checksum {
        return refuse(format!("its bytes have checksum {found}, it says {}", overlay.checksum));
    }
    Ok(())
}
