//! Verbs that change the journal: commit, rollback, policy, emergency, operations.
//!
//! Each is one request under an id of its own, so that an unknown outcome can be asked for again by another process.

use super::{connect, record, scope, scope_or_nothing, senseless, show};
use crate::args::{CommitArgs, EmergencyVerb, OpVerb, PolicyVerb, RollbackArgs, WriteArgs};
use crate::exit::{Failure, request_text, written};
use crate::{json, policy_text, text};
use muster_core::agent::value;
use muster_core::ids::{NodeId, Seq, VClusterId, WallTime};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::entry::{Change, EntryDraft, EntryType, OperationDraft, Record};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::policy::Policy;
use muster_core::query::{Answer, Query};
use muster_core::request::{Command, Freshness, Refusal, Reply};
use muster_net::client::{Client, ClientError, OneShot};
use serde_json::{Value, json as object};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

/// The wall clock of this machine, which an entry carries for people.
pub(crate) fn wall_time() -> WallTime {
    let elapsed = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    WallTime(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

/// Sends one command under the request id that was given, or a new one.
pub(crate) async fn send(client: &Client, args: &WriteArgs, command: Command) -> Result<(Reply, OneShot), Failure> {
    let author = args.author.author()?;
    let (outcome, request) = if let Some(request) = args.request_id {
        (client.write_again(request, &author, command).await, request)
    } else {
        let request = client.draw().await?;
        (client.write_once(request, &author, command).await, request)
    };
    written(outcome, Some(request)).map(|reply| (reply, request))
}

async fn record_sequence(
    client: &Client,
    args: &WriteArgs,
    command: JournalCommand,
) -> Result<(Seq, OneShot), Failure> {
    let (reply, request) = send(client, args, Command::Journal(command)).await?;
    let Reply::Recorded { sequence } = reply else { return Err(senseless()) };
    Ok((sequence, request))
}

fn applied(sequence: Seq, request: OneShot) -> Value {
    object!({ "outcome": "applied", "sequence": sequence.0, "request_id": request_text(request) })
}

/// A draft that says nothing yet.
pub(crate) fn draft(entry_type: EntryType, scope: Scope, parent: Seq) -> EntryDraft {
    EntryDraft {
        entry_type,
        scope,
        parent,
        based_on: None,
        changes: Vec::new(),
        ttl_seconds: None,
        emergency_reason: None,
        message: Arc::from(""),
        occurred_at: Some(wall_time()),
    }
}

pub(crate) async fn commit(args: CommitArgs, json: bool) -> Result<(), Failure> {
    let scope = args.scope.ok_or_else(|| Failure::usage("for whom is not said", "give --scope SCOPE"))?;
    let mut settings = Vec::new();
    for text in &args.what {
        settings.push(crate::args::assignment(text).map_err(|problem| Failure::usage(problem, ""))?);
    }
    settings.extend(args.absent.into_iter().map(|key| (key, Setting::Absent)));
    for (key, setting) in &mut settings {
        // One spelling in the journal, however it was written.
        *setting = value::check_setting(key, setting).map_err(|unfit| Failure::usage(format!("{key}: {unfit}"), ""))?;
    }
    settings.extend(args.unset.into_iter().map(|key| (key, Setting::Unset)));
    check_settings(&settings, args.boot_config)?;
    let client = connect(&args.write.client).await?;
    let (parent, before) = if let Some(parent) = args.parent {
        (parent, None)
    } else {
        let (head, declared) = scope_or_nothing(&client, Freshness::Linearizable, &scope).await?;
        (head, Some(declared))
    };
    let previous = |key: &Key| {
        let declared = before.iter().flatten().find(|declared| declared.key == *key);
        declared.map_or(Setting::Unset, |declared| declared.setting.clone())
    };
    let changes: Vec<Change> =
        settings.into_iter().map(|(key, next)| Change { previous: previous(&key), key, next }).collect();
    let entry_type = if args.boot_config { EntryType::BootConfig } else { EntryType::Commit };
    let command = JournalCommand::AppendEntry(EntryDraft {
        changes: changes.clone(),
        ttl_seconds: args.ttl,
        message: Arc::from(args.message),
        ..draft(entry_type, scope.clone(), parent)
    });
    let (sequence, request) = record_sequence(&client, &args.write, command).await?;
    let mut out = format!("sequence {sequence}: {} for {scope}\n", entry_type.word());
    for change in &changes {
        let line = if before.is_some() { text::change(change) } else { format!("{} -> {}", change.key, change.next) };
        let _ = writeln!(out, "  {line}");
    }
    show(json, &applied(sequence, request), &out)
}

fn check_settings(settings: &[(Key, Setting)], boot_config: bool) -> Result<(), Failure> {
    let how = "give KEY=VALUE, --absent KEY or --unset KEY";
    if settings.is_empty() {
        return Err(Failure::usage("nothing to commit", how));
    }
    let mut seen = BTreeSet::new();
    if let Some((key, _)) = settings.iter().find(|(key, _)| !seen.insert(key)) {
        return Err(Failure::usage(format!("{key} is given twice"), how));
    }
    if !boot_config && settings.iter().any(|(key, _)| key.is_vcluster()) {
        return Err(Failure::usage("a node is put into a vCluster before it boots", "add --boot-config"));
    }
    Ok(())
}

pub(crate) async fn rollback(args: RollbackArgs, json: bool) -> Result<(), Failure> {
    let (Some(of), Some(to)) = (args.scope, args.to) else {
        return Err(Failure::usage("it is not said what is taken back", "give NODE, or --scope SCOPE --to SEQ"));
    };
    let client = connect(&args.write.client).await?;
    let based_on = match args.based_on {
        Some(sequence) => sequence,
        None => scope(&client, Freshness::Linearizable, &of).await?.0,
    };
    if args.based_on.is_none() && based_on < to {
        return Err(Failure::error(
            format!("there is nothing to take off: {of} was last changed by {based_on}, before {to}"),
            format!("see what it said when with `muster log --scope {of}`"),
        ));
    }
    let command = JournalCommand::AppendEntry(EntryDraft {
        based_on: Some(based_on),
        message: Arc::from(args.message),
        ..draft(EntryType::Rollback, of.clone(), to)
    });
    let (sequence, request) = record_sequence(&client, &args.write, command).await?;
    let mut value = applied(sequence, request);
    let mut out = format!("sequence {sequence}: {of} is what it was at {to}\n");
    let recorded = record(&client, sequence, true).await?;
    if let Some(Record::Entry(entry)) = &recorded {
        for change in &entry.delta {
            let _ = writeln!(out, "  {}", text::change(change));
        }
        value["record"] = json::record(&Record::Entry(entry.clone()));
    }
    show(json, &value, &out)
}

pub(crate) async fn policy(verb: PolicyVerb, json: bool) -> Result<(), Failure> {
    match verb {
        PolicyVerb::Get { vcluster, read } => {
            let client = connect(&read.client).await?;
            let (sequence, policy) = policy_of(&client, super::read::freshness(&read), &vcluster).await?;
            let value = object!({
                "vcluster": vcluster.as_str(),
                "sequence": sequence.0,
                "policy": json::policy(&policy),
            });
            let mut out = format!("# vCluster {vcluster}, set by sequence {sequence}\n");
            for (field, value) in policy_text::rows(&policy) {
                let _ = writeln!(out, "{field}={value}");
            }
            show(json, &value, &out)
        }
        PolicyVerb::Set { vcluster, fields, write } => {
            let client = connect(&write.client).await?;
            let mut policy = match policy_of(&client, Freshness::Linearizable, &vcluster).await {
                Ok((_, policy)) => policy,
                Err(failure) if failure.detail["refusal"] == "unknown-scope" => Policy::default(),
                Err(failure) => return Err(failure),
            };
            for (field, value) in &fields {
                policy_text::set(&mut policy, field, value)
                    .map_err(|problem| Failure::usage(format!("{field}: {problem}"), ""))?;
            }
            let command = JournalCommand::SetPolicy { vcluster: vcluster.clone(), policy };
            let (sequence, request) = record_sequence(&client, &write, command).await?;
            let out = format!("sequence {sequence}: policy of vCluster {vcluster} set\n");
            show(json, &applied(sequence, request), &out)
        }
    }
}

/// The policy in force and the entry that set it.
pub(crate) async fn policy_of(
    client: &Client,
    freshness: Freshness,
    vcluster: &VClusterId,
) -> Result<(Seq, Policy), Failure> {
    match client.query(freshness, &Query::Policy(vcluster.clone())).await {
        Ok(answered) => {
            let Answer::Policy { sequence, policy } = answered.answer else { return Err(senseless()) };
            Ok((sequence, policy))
        }
        Err(ClientError::Refused(refusal @ Refusal::UnknownScope { .. })) => {
            let failure = Failure::from(ClientError::Refused(refusal));
            Err(Failure { next: format!("make it known with `muster policy set {vcluster}`"), ..failure })
        }
        Err(error) => Err(error.into()),
    }
}

pub(crate) async fn emergency(verb: EmergencyVerb, json: bool) -> Result<(), Failure> {
    let (entry_type, node, reason, message, write) = match verb {
        EmergencyVerb::Start { node, reason, write, .. } => {
            (EntryType::EmergencyStart, node, Some(Arc::from(reason)), String::new(), write)
        }
        EmergencyVerb::End { node, message, write, .. } => (EntryType::EmergencyEnd, node, None, message, write),
    };
    let client = connect(&write.client).await?;
    let (parent, _) = scope(&client, Freshness::Linearizable, &Scope::Node(node.clone())).await?;
    let command = JournalCommand::AppendEntry(EntryDraft {
        emergency_reason: reason,
        message: Arc::from(message),
        ..draft(entry_type, Scope::Node(node.clone()), parent)
    });
    let (sequence, request) = record_sequence(&client, &write, command).await?;
    let word = if entry_type == EntryType::EmergencyStart { "begins" } else { "ends" };
    let out = format!("sequence {sequence}: emergency on {node} {word}\n");
    show(json, &applied(sequence, request), &out)
}

pub(crate) async fn operation(verb: OpVerb, json: bool) -> Result<(), Failure> {
    let OpVerb::Record { kind, node, detail, exit_status, write } = verb;
    let client = connect(&write.client).await?;
    let command = JournalCommand::RecordOperation(OperationDraft {
        kind: kind.into(),
        scope: Scope::Node(NodeId::clone(&node)),
        detail: Arc::from(detail),
        exit_status,
        occurred_at: Some(wall_time()),
    });
    let (sequence, request) = record_sequence(&client, &write, command).await?;
    let out = format!("sequence {sequence}: recorded for {node}\n");
    show(json, &applied(sequence, request), &out)
}
