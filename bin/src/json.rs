//! What programs get: the one place where domain types become JSON.
//!
//! Sequences, indices and ids of replicas are numbers; digests, cluster ids and request ids are text. A setting is an object
//! with exactly one of `value`, `absent`, `unset`, so that the value "absent" and being absent are told apart.

use muster_core::agent::drift::{DriftVector, Explanation};
use muster_core::agent::fleet::Heard;
use muster_core::agent::host::{Consumer, HostError};
use muster_core::agent::ledger::Owner;
use muster_core::agent::operator::{EmergencyReport, Forecast, Report, Returned, WindowReport};
use muster_core::ids::ReplicaId;
use muster_core::journal::entry::{
    AdminOperation, Author, Change, ConfigEntry, OperationKind, Principal, Record, Role,
};
use muster_core::journal::key::{Dimension, Key, Setting};
use muster_core::journal::policy::Policy;
use muster_core::log::Configuration;
use muster_core::members::{Member, MemberWish};
use muster_core::query::{Declared, Effective, NodeSummary, Summary, VClusterSummary};
use muster_core::request::{Progress, ReplicaStatus};
use muster_net::client::Status;
use serde_json::{Map, Value, json};

pub(crate) fn setting(setting: &Setting) -> Value {
    match setting {
        Setting::Unset => json!({ "unset": true }),
        Setting::Absent => json!({ "absent": true }),
        Setting::Value(value) => json!({ "value": &**value }),
    }
}

/// `certificate:…`, `oidc:ISSUER#SUBJECT`, `claimed:…` or `system:…`.
pub(crate) fn principal(principal: &Principal) -> String {
    match principal {
        Principal::Certificate { subject } => format!("certificate:{subject}"),
        Principal::Oidc { issuer, subject } => format!("oidc:{issuer}#{subject}"),
        Principal::Claimed { name } => format!("claimed:{name}"),
        Principal::System { part } => format!("system:{part}"),
    }
}

/// `admin`, `operator:V`, `viewer:V`, `agent:N` or `system`.
pub(crate) fn role(role: &Role) -> String {
    match role {
        Role::Admin => "admin".to_owned(),
        Role::Operator(vcluster) => format!("operator:{vcluster}"),
        Role::Viewer(vcluster) => format!("viewer:{vcluster}"),
        Role::Agent(node) => format!("agent:{node}"),
        Role::System => "system".to_owned(),
    }
}

/// Whose word a claimed principal rests on: the agent's that acted for somebody.
pub(crate) fn witness(author: &Author) -> Option<String> {
    match (&author.principal, &author.role) {
        (Principal::Claimed { .. }, Role::Agent(_)) => Some(role(&author.role)),
        _ => None,
    }
}

fn author(author: &Author) -> Value {
    let mut value = json!({ "principal": principal(&author.principal), "role": role(&author.role) });
    if let Some(witness) = witness(author) {
        value["witness"] = witness.into();
    }
    value
}

fn change(change: &Change) -> Value {
    json!({ "key": change.key.as_str(), "previous": setting(&change.previous), "next": setting(&change.next) })
}

pub(crate) const fn operation_word(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Exec => "exec",
        OperationKind::ShellStart => "shell-start",
        OperationKind::ShellEnd => "shell-end",
        OperationKind::Membership => "membership",
    }
}

pub(crate) fn record(record: &Record) -> Value {
    match record {
        Record::Entry(entry) => config_entry(entry),
        Record::Operation(operation) => admin_operation(operation),
    }
}

fn config_entry(entry: &ConfigEntry) -> Value {
    let takes_off: Vec<_> =
        entry.takes_off.iter().map(|(key, sequence)| json!({ "key": key.as_str(), "sequence": sequence.0 })).collect();
    json!({
        "record": "entry",
        "sequence": entry.sequence.0,
        "recorded_at_ms": entry.recorded_at.0,
        "recorded_at": crate::text::time(entry.recorded_at),
        "occurred_at_ms": entry.occurred_at.map(|time| time.0),
        "type": entry.entry_type.word(),
        "scope": entry.scope.to_string(),
        "author": author(&entry.author),
        "parent": entry.parent.0,
        "based_on": entry.based_on.map(|sequence| sequence.0),
        "delta": entry.delta.iter().map(change).collect::<Vec<_>>(),
        "takes_off": takes_off,
        "policy_ref": entry.policy_ref.map(|sequence| sequence.0),
        "policy": entry.policy.as_ref().map(policy),
        "ttl_seconds": entry.ttl_seconds,
        "emergency_reason": entry.emergency_reason.as_deref(),
        "message": &*entry.message,
    })
}

fn admin_operation(operation: &AdminOperation) -> Value {
    json!({
        "record": "operation",
        "sequence": operation.sequence.0,
        "recorded_at_ms": operation.recorded_at.0,
        "recorded_at": crate::text::time(operation.recorded_at),
        "occurred_at_ms": operation.occurred_at.map(|time| time.0),
        "author": author(&operation.author),
        "kind": operation_word(operation.kind),
        "scope": operation.scope.to_string(),
        "detail": &*operation.detail,
        "exit_status": operation.exit_status,
    })
}

/// A policy with the fields of `policy set`; numbers where they are whole, decimals as text.
pub(crate) fn policy(policy: &Policy) -> Value {
    let mut fields = Map::new();
    let mut weights = Map::new();
    for (field, text) in crate::policy_text::rows(policy) {
        if let Some(dimension) = field.strip_prefix("weights.") {
            weights.insert(dimension.to_owned(), json!(text));
        } else {
            fields.insert(field, json!(text));
        }
    }
    fields.insert("base_window_seconds".into(), json!(policy.base_window_seconds));
    fields.insert("min_window_seconds".into(), json!(policy.min_window_seconds));
    fields.insert("emergency_window_seconds".into(), json!(policy.emergency_window_seconds));
    fields.insert("emergency_allowed".into(), json!(policy.emergency_allowed));
    fields.insert("exec_allow".into(), policy.exec_allow.iter().map(|command| json!(&**command)).collect());
    fields.insert("weights".into(), Value::Object(weights));
    Value::Object(fields)
}

pub(crate) fn declared(declared: &Declared) -> Value {
    json!({
        "key": declared.key.as_str(),
        "setting": setting(&declared.setting),
        "sequence": declared.sequence.0,
        "expires_at_age": declared.expires_at.map(|age| age.0),
    })
}

pub(crate) fn effective(effective: &Effective) -> Value {
    json!({
        "key": effective.key.as_str(),
        "setting": setting(&effective.setting),
        "scope": effective.scope.to_string(),
        "sequence": effective.sequence.0,
    })
}

pub(crate) fn node(node: &NodeSummary) -> Value {
    json!({
        "node": node.node.as_str(),
        "vcluster": node.vcluster.as_ref().map(muster_core::ids::VClusterId::as_str),
        "state": node.state.word(),
        "since": node.since.0,
        "emergency_reason": node.emergency_reason.as_deref(),
    })
}

pub(crate) fn vcluster(vcluster: &VClusterSummary) -> Value {
    json!({
        "vcluster": vcluster.vcluster.as_str(),
        "policy_sequence": vcluster.policy_sequence.0,
        "config_version": vcluster.config_version.0,
        "overlay_version": vcluster.overlay_version.map(|version| version.0),
        "overlay_bytes": vcluster.overlay_bytes,
        "nodes": vcluster.nodes,
    })
}

pub(crate) fn member(member: &Member) -> Value {
    let wish = match member.wish {
        MemberWish::Learner => json!("learner"),
        MemberWish::Voter => json!("voter"),
        MemberWish::Replacement { of } => json!({ "replacement_of": of.0 }),
    };
    json!({
        "id": member.id.0,
        "name": member.name.as_str(),
        "incarnation": member.incarnation.to_string(),
        "peer_address": &*member.peer_address,
        "client_address": &*member.client_address,
        "wish": wish,
        "feature_level": member.feature_level,
    })
}

pub(crate) fn summary(summary: &Summary) -> Value {
    json!({
        "sequence": summary.sequence.0,
        "head": summary.head.to_string(),
        "applied": summary.applied.0,
        "age_us": summary.age.0,
        "recorded_at_ms": summary.recorded_at.0,
        "feature_level": summary.feature_level,
        "vclusters": summary.vclusters,
        "nodes": summary.nodes,
        "sessions": summary.sessions,
    })
}

fn progress(progress: &Progress) -> Value {
    json!({
        "replica": progress.replica.0,
        "match": progress.match_index.0,
        "next": progress.next_index.0,
        "state": progress.state,
        "paused": progress.paused,
        "recent_active": progress.recent_active,
        "pending_snapshot": progress.pending_snapshot.map(|index| index.0),
        "full_copy": progress.full_copy,
    })
}

pub(crate) fn configuration(configuration: &Configuration) -> Value {
    let ids = |ids: &[ReplicaId]| ids.iter().map(|id| id.0).collect::<Vec<_>>();
    json!({
        "voters": ids(&configuration.voters),
        "voters_outgoing": ids(&configuration.voters_outgoing),
        "learners": ids(&configuration.learners),
        "learners_next": ids(&configuration.learners_next),
    })
}

pub(crate) fn replica(status: &ReplicaStatus) -> Value {
    json!({
        "replica": status.replica.0,
        "role": status.role.word(),
        "leader": status.leader.0,
        "term": status.term.0,
        "vote": status.vote.0,
        "commit": status.commit.0,
        "applied": status.applied.0,
        "persisted": status.persisted.0,
        "last": status.last.0,
        "first": status.first.0,
        "snapshot": status.snapshot.0,
        "snapshot_digest": status.snapshot_digest.map(|digest| digest.to_string()),
        "log_bytes": status.log_bytes,
        "full_copy": status.full_copy,
        "configuration": configuration(&status.configuration),
        "progress": status.progress.iter().map(progress).collect::<Vec<_>>(),
        "refused_messages": status.refused_messages,
    })
}

pub(crate) fn status(address: &str, status: &Status) -> Value {
    json!({
        "address": address,
        "cluster": status.cluster.to_string(),
        "group": status.group.0,
        "name": status.name.as_str(),
        "incarnation": status.incarnation.to_string(),
        "version": status.build_version,
        "disk_bytes": status.disk_bytes,
        "tls": status.certificate_ends.is_some(),
        "certificate_ends": status.certificate_ends.map(|ends| crate::text::time(muster_core::ids::WallTime(ends * 1_000))),
        "raft": replica(&status.replica),
        "journal": summary(&status.summary),
        "members": status.members.iter().map(member).collect::<Vec<_>>(),
    })
}

// ---- agents ----

pub(crate) fn drift(drift: &DriftVector) -> Value {
    let fields = Dimension::ALL.iter().map(|dimension| (dimension.word().to_owned(), json!(drift.of(*dimension))));
    Value::Object(fields.collect())
}

pub(crate) fn explanation(explanation: &Explanation) -> Value {
    let shares = explanation.shares.iter().map(|share| {
        json!({
            "dimension": share.dimension.word(),
            "keys": share.keys,
            "weight": share.weight.to_string(),
            "part": share.part,
        })
    });
    json!({
        "shares": shares.collect::<Vec<_>>(),
        "magnitude": explanation.magnitude,
        "base_seconds": explanation.base_seconds,
        "sensitivity": explanation.sensitivity.to_string(),
        "min_seconds": explanation.min_seconds,
        "seconds": explanation.seconds,
        "text": explanation.to_string(),
    })
}

pub(crate) fn forecast(forecast: &Forecast) -> Value {
    json!({
        "explanation": explanation(&forecast.explanation),
        "seconds": forecast.seconds,
        "unguarded": forecast.unguarded.as_deref(),
        "is_short": forecast.is_short,
    })
}

pub(crate) fn consumer(consumer: &Consumer) -> Value {
    json!({
        "key": consumer.key.as_str(),
        "pid": consumer.pid,
        "command": &*consumer.command,
        "path": &*consumer.path,
    })
}

pub(crate) fn host_error(error: &HostError) -> Value {
    json!({ "key": error.key.as_str(), "problem": &*error.problem })
}

pub(crate) fn window(window: &WindowReport) -> Value {
    let frozen = window.frozen.as_ref().map(|frozen| {
        json!({
            "consumers": frozen.consumers.iter().map(consumer).collect::<Vec<_>>(),
            "errors": frozen.errors.iter().map(host_error).collect::<Vec<_>>(),
        })
    });
    json!({
        "number": window.number,
        "seconds_left": window.seconds_left,
        "seconds_open": window.seconds_open,
        "drift": drift(&window.drift),
        "frozen": frozen,
    })
}

pub(crate) fn emergency(emergency: &EmergencyReport) -> Value {
    json!({
        "author": author(&emergency.author),
        "reason": &*emergency.reason,
        "since_ms": emergency.since.0,
        "since": crate::text::time(emergency.since),
        "seconds_left": emergency.seconds_left,
    })
}

pub(crate) fn returned(returned: &Returned) -> Value {
    let keys = |keys: &[Key]| keys.iter().map(|key| json!(key.as_str())).collect::<Vec<_>>();
    match returned {
        Returned::Done { keys: done } => json!({ "done": keys(done) }),
        Returned::Blocked { consumers } => {
            json!({ "blocked": consumers.iter().map(consumer).collect::<Vec<_>>() })
        }
        Returned::Failed { keys: done, errors } => {
            json!({ "done": keys(done), "failed": errors.iter().map(host_error).collect::<Vec<_>>() })
        }
    }
}

fn owner(owner: &Owner) -> Value {
    match owner {
        Owner::Operator(by) => json!({ "operator": author(by) }),
        Owner::BehindItsBack => json!("behind-its-back"),
        Owner::NotReached => json!("not-reached"),
    }
}

pub(crate) fn report(report: &Report) -> Value {
    let differences = report.differences.iter().map(|difference| {
        json!({
            "key": difference.key.as_str(),
            "declared": setting(&difference.declared),
            "is_declared": difference.is_declared,
            "observed": setting(&difference.observed),
            "change": difference.change.0,
            "owner": owner(&difference.owner),
            "since_ms": difference.since.0,
            "conflict_seconds": difference.conflict_seconds,
            "problem": difference.problem.as_deref(),
        })
    });
    json!({
        "node": report.node.as_str(),
        "vcluster": report.vcluster.as_ref().map(muster_core::ids::VClusterId::as_str),
        "state": report.phase.word(),
        "mode": crate::policy_text::mode_word(report.mode),
        "connected": report.connected,
        "away": report.away.as_deref(),
        "sequence": report.sequence.0,
        "declared": report.declared,
        "differences": differences.collect::<Vec<_>>(),
        "unseen": report.unseen.iter().map(|(key, why)| json!({ "key": key.as_str(), "why": &**why })).collect::<Vec<_>>(),
        "drift": drift(&report.drift),
        "explanation": explanation(&report.explanation),
        "window": report.window.as_ref().map(window),
        "emergency": report.emergency.as_ref().map(emergency),
        "spooled": report.spooled,
        "commit_unknown": report.commit_unknown,
    })
}

/// A node as a replica last heard of it, with what has passed since taken off.
pub(crate) fn heard(heard: &Heard) -> Value {
    let report = heard.report.clone().after(heard.seconds_ago);
    let window = report.window.map(
        |window| json!({ "number": window.number, "seconds_left": window.seconds_left, "is_frozen": window.is_frozen }),
    );
    json!({
        "node": report.node.as_str(),
        "address": &*report.address,
        "vcluster": report.vcluster.as_ref().map(muster_core::ids::VClusterId::as_str),
        "state": report.phase.word(),
        "mode": crate::policy_text::mode_word(report.mode),
        "sequence": report.sequence.0,
        "drift": drift(&report.drift),
        "window": window,
        "emergency": report.emergency.map(|(seconds, reason)| json!({ "seconds_left": seconds, "reason": &*reason })),
        "spooled": report.spooled,
        "blocked": report.blocked,
        "seconds_ago": heard.seconds_ago,
    })
}
