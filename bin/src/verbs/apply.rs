//! `muster apply`: declares what files say, and commits only what differs from what is declared already.
//!
//! Policies come first (they make vClusters known), then global, vCluster and node settings. Each scope's difference goes
//! into entries of bounded size, one after the other; scopes go side by side. Every entry carries as parent the scope's head
//! that the difference was computed from, so that a change made meanwhile by somebody else is a conflict and not overwritten.
//! Applying the same files again changes nothing, so an apply that was cut off is simply repeated.

use super::write::draft;
use super::{connect, scope_or_nothing, senseless, show};
use crate::args::ApplyArgs;
use crate::exit::{Failure, written};
use crate::fleet::{Fleet, Said};
use crate::text;
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use muster_core::ids::{NodeId, Seq, VClusterId};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::entry::{Author, Change, EntryDraft, EntryType};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::policy::Policy;
use muster_core::query::Query;
use muster_core::request::{Command, Freshness, Reply};
use muster_net::client::Client;
use serde_json::json as object;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most changes in one entry. Small enough for a steady pace, large enough that most scopes need one entry.
const CHANGES_MAX: usize = 512;
/// Most bytes of keys and values in one entry, well below the smallest payload limit a server may have.
const ENTRY_BYTES_MAX: usize = 48 << 10;
/// Scopes that are asked about or written at once.
const AT_ONCE: usize = 64;

/// What there is to do.
pub(crate) struct Plan {
    policies: Vec<(VClusterId, Policy)>,
    scopes: Vec<ScopePlan>,
    /// Nodes that the files speak of.
    nodes: usize,
}

struct ScopePlan {
    scope: Scope,
    head: Seq,
    changes: Vec<Change>,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Applied {
    /// Policies set.
    pub(crate) policies: usize,
    /// Entries recorded, without those of policies.
    pub(crate) entries: usize,
    /// Settings changed.
    pub(crate) changes: usize,
    /// Nodes spoken of.
    pub(crate) nodes: usize,
    /// The last sequence taken; 0 if nothing changed.
    pub(crate) sequence: Seq,
}

impl Plan {
    fn changes(&self) -> usize {
        self.scopes.iter().map(|scope| scope.changes.len()).sum()
    }

    fn is_empty(&self) -> bool {
        self.policies.is_empty() && self.scopes.is_empty()
    }
}

pub(crate) async fn apply(args: ApplyArgs, json: bool) -> Result<(), Failure> {
    let files = read_files(&args.files)?;
    let fleet = Fleet::parse(files.iter().map(|(name, text)| (name.as_str(), text.as_str())))?;
    let client = connect(&args.client).await?;
    let plan = plan(&client, &fleet).await?;
    if args.dry_run {
        return show(json, &plan_json(&plan), &plan_text(&plan));
    }
    let author = args.author.author()?;
    let bar = progress_bar(json, plan.changes() + plan.policies.len());
    let applied = carry_out(&client, &author, plan, &args.message, &bar).await;
    bar.finish_and_clear();
    let applied = applied?;
    client.close().await;
    let value = object!({
        "outcome": if applied.sequence == Seq(0) { "unchanged" } else { "applied" },
        "policies": applied.policies,
        "entries": applied.entries,
        "changes": applied.changes,
        "nodes": applied.nodes,
        "sequence": (applied.sequence != Seq(0)).then_some(applied.sequence.0),
    });
    show(json, &value, &applied_text(&applied))
}

pub(crate) fn applied_text(applied: &Applied) -> String {
    if applied.sequence == Seq(0) {
        return format!("nothing to do: all of it is declared already ({} nodes)\n", applied.nodes);
    }
    format!(
        "applied: {} policies, {} settings in {} entries for {} nodes, up to sequence {}\n",
        applied.policies, applied.changes, applied.entries, applied.nodes, applied.sequence
    )
}

fn progress_bar(json: bool, length: usize) -> ProgressBar {
    if json {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("applying {bar:40} {pos}/{len} {eta}").expect("the template is well formed");
    ProgressBar::new(length as u64).with_style(style)
}

/// Reads files, and the TOML files of directories, in the order given.
pub(crate) fn read_files(paths: &[PathBuf]) -> Result<Vec<(String, String)>, Failure> {
    let unreadable = |path: &Path, error: &std::io::Error| {
        Failure::error(format!("{} cannot be read: {error}", path.display()), "give TOML files, or directories of them")
    };
    let mut files = Vec::new();
    for path in paths {
        let mut found = vec![path.clone()];
        if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(|error| unreadable(path, &error))?;
            found = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
            found.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
            found.sort();
            if found.is_empty() {
                let message = format!("{} holds no TOML file", path.display());
                return Err(Failure::error(message, "give files whose names end in .toml"));
            }
        }
        for path in found {
            let text = std::fs::read_to_string(&path).map_err(|error| unreadable(&path, &error))?;
            files.push((path.display().to_string(), text));
        }
    }
    Ok(files)
}

/// Compares what the fleet says with what is declared.
pub(crate) async fn plan(client: &Client, fleet: &Fleet) -> Result<Plan, Failure> {
    let known = known_vclusters(client).await?;
    check_assignments(fleet, &known)?;

    let mut policies = Vec::new();
    for (vcluster, said) in &fleet.vclusters {
        let wanted = match &said.what {
            Some(policy) => policy.clone(),
            None if known.contains(vcluster) => continue,
            None => Policy::default(),
        };
        let current = if known.contains(vcluster) {
            Some(super::write::policy_of(client, Freshness::Linearizable, vcluster).await?.1)
        } else {
            None
        };
        if current.as_ref() != Some(&wanted) {
            policies.push((vcluster.clone(), wanted));
        }
    }

    let wanted = wanted_settings(fleet);
    // One quorum read says how far the journal is; everything after it is read from any replica that is at least there.
    let at_least = client.query(Freshness::Linearizable, &Query::Summary).await?.sequence;
    let mut scopes: Vec<ScopePlan> = stream::iter(wanted)
        .map(|(scope, wanted)| async move {
            let (head, declared) = scope_or_nothing(client, Freshness::AtLeast(at_least), &scope).await?;
            let declared: BTreeMap<Key, Setting> =
                declared.into_iter().map(|declared| (declared.key, declared.setting)).collect();
            let changes = wanted
                .into_iter()
                .filter_map(|(key, next)| {
                    let previous = declared.get(&key).cloned().unwrap_or_default();
                    (previous != next).then_some(Change { key, previous, next })
                })
                .collect();
            Ok::<_, Failure>(ScopePlan { scope, head, changes })
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    scopes.retain(|scope| !scope.changes.is_empty());
    Ok(Plan { policies, scopes, nodes: fleet.nodes() })
}

async fn known_vclusters(client: &Client) -> Result<BTreeSet<VClusterId>, Failure> {
    let list = super::read::list_vclusters(client, Freshness::Linearizable).await?;
    Ok(list.into_iter().map(|vcluster| vcluster.vcluster).collect())
}

/// A node can only be put into a vCluster that the files or the journal know.
fn check_assignments(fleet: &Fleet, known: &BTreeSet<VClusterId>) -> Result<(), Failure> {
    let mut problems = Vec::new();
    let mut told = BTreeSet::new();
    for Said { what: vcluster, place } in fleet.assignments.values() {
        if fleet.vclusters.contains_key(vcluster) || known.contains(vcluster) || !told.insert(place.to_string()) {
            continue;
        }
        let text =
            format!("vCluster {vcluster} is not known: expected [vcluster.{vcluster}.policy] in one of the files");
        problems.push(Fleet::problem(place, text));
    }
    if problems.is_empty() { Ok(()) } else { Err(problems.into()) }
}

/// Every scope's settings; a node's assignment among them, first.
fn wanted_settings(fleet: &Fleet) -> BTreeMap<Scope, Vec<(Key, Setting)>> {
    let mut wanted: BTreeMap<Scope, Vec<(Key, Setting)>> = BTreeMap::new();
    for (node, said) in &fleet.assignments {
        let assignment = (Key::vcluster(), Setting::Value(Arc::from(said.what.as_str())));
        wanted.entry(Scope::Node(NodeId::clone(node))).or_default().push(assignment);
    }
    for (scope, settings) in &fleet.scopes {
        let settings = settings.iter().map(|(key, said)| (key.clone(), said.what.clone()));
        wanted.entry(scope.clone()).or_default().extend(settings);
    }
    wanted
}

/// Commits a plan.
pub(crate) async fn carry_out(
    client: &Client,
    author: &Author,
    plan: Plan,
    message: &str,
    bar: &ProgressBar,
) -> Result<Applied, Failure> {
    let mut applied = Applied { nodes: plan.nodes, ..Applied::default() };
    for (vcluster, policy) in plan.policies {
        let sequence = record(client, author, JournalCommand::SetPolicy { vcluster, policy }).await?;
        applied.policies += 1;
        applied.sequence = applied.sequence.max(sequence);
        bar.inc(1);
    }
    let message: Arc<str> = Arc::from(message);
    let (wide, nodes): (Vec<_>, Vec<_>) = plan.scopes.into_iter().partition(|plan| match plan.scope {
        Scope::Global | Scope::VCluster(_) => true,
        Scope::Node(_) => false,
    });
    for plans in [wide, nodes] {
        let mut done = stream::iter(plans)
            .map(|plan| carry_out_scope(client, author, plan, &message, bar))
            .buffer_unordered(AT_ONCE);
        while let Some(scope) = done.try_next().await? {
            applied.entries += scope.entries;
            applied.changes += scope.changes;
            applied.sequence = applied.sequence.max(scope.sequence);
        }
    }
    Ok(applied)
}

async fn carry_out_scope(
    client: &Client,
    author: &Author,
    plan: ScopePlan,
    message: &Arc<str>,
    bar: &ProgressBar,
) -> Result<Applied, Failure> {
    let mut applied = Applied::default();
    let mut parent = plan.head;
    for changes in bounded(plan.changes) {
        let count = changes.len();
        let draft = EntryDraft {
            changes,
            message: Arc::clone(message),
            ..draft(EntryType::BootConfig, plan.scope.clone(), parent)
        };
        parent = record(client, author, JournalCommand::AppendEntry(draft)).await?;
        applied.entries += 1;
        applied.changes += count;
        applied.sequence = parent;
        bar.inc(count as u64);
    }
    Ok(applied)
}

async fn record(client: &Client, author: &Author, command: JournalCommand) -> Result<Seq, Failure> {
    let outcome = client.write(author, Command::Journal(command)).await;
    let reply = written(outcome, None).map_err(|failure| match failure.code {
        crate::exit::UNKNOWN | crate::exit::NO_QUORUM | crate::exit::CONFLICT => {
            Failure { next: "run `muster apply` again: it goes on where it was cut off".to_owned(), ..failure }
        }
        _ => failure,
    })?;
    let Reply::Recorded { sequence } = reply else { return Err(senseless()) };
    Ok(sequence)
}

/// Cuts a scope's changes into entries of bounded size.
fn bounded(changes: Vec<Change>) -> Vec<Vec<Change>> {
    let mut entries: Vec<Vec<Change>> = Vec::new();
    let mut bytes = 0;
    for change in changes {
        let value = |setting: &Setting| match setting {
            Setting::Value(value) => value.len(),
            Setting::Unset | Setting::Absent => 0,
        };
        let size = change.key.as_str().len() + value(&change.previous) + value(&change.next);
        let full = entries.last().is_none_or(|entry| entry.len() >= CHANGES_MAX || bytes + size > ENTRY_BYTES_MAX);
        if full {
            entries.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        entries.last_mut().expect("one was just pushed").push(change);
    }
    entries
}

fn plan_json(plan: &Plan) -> serde_json::Value {
    let policies: Vec<_> = plan
        .policies
        .iter()
        .map(|(vcluster, policy)| object!({ "vcluster": vcluster.as_str(), "policy": crate::json::policy(policy) }))
        .collect();
    let scopes: Vec<_> = plan
        .scopes
        .iter()
        .map(|scope| {
            let changes: Vec<_> = scope
                .changes
                .iter()
                .map(|change| {
                    object!({
                        "key": change.key.as_str(),
                        "previous": crate::json::setting(&change.previous),
                        "next": crate::json::setting(&change.next),
                    })
                })
                .collect();
            object!({ "scope": scope.scope.to_string(), "head": scope.head.0, "changes": changes })
        })
        .collect();
    object!({ "outcome": "planned", "policies": policies, "scopes": scopes, "nodes": plan.nodes })
}

fn plan_text(plan: &Plan) -> String {
    if plan.is_empty() {
        return applied_text(&Applied { nodes: plan.nodes, ..Applied::default() });
    }
    let mut out = String::new();
    for (vcluster, _) in &plan.policies {
        let _ = writeln!(out, "vcluster:{vcluster} policy");
    }
    for scope in &plan.scopes {
        for change in &scope.changes {
            let _ = writeln!(out, "{} {}", scope.scope, text::change(change));
        }
    }
    let _ = writeln!(out, "would change {} settings; run it without --dry-run to commit them", plan.changes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_bounded_in_number_and_in_bytes() {
        let change = |i: usize, bytes: usize| Change {
            key: Key::new(&format!("files:{i}")).unwrap(),
            previous: Setting::Unset,
            next: Setting::Value("x".repeat(bytes).into()),
        };
        let many = bounded((0..=CHANGES_MAX).map(|i| change(i, 1)).collect());
        assert_eq!(many.iter().map(Vec::len).collect::<Vec<_>>(), [CHANGES_MAX, 1]);
        let large = bounded((0..3).map(|i| change(i, ENTRY_BYTES_MAX / 2)).collect());
        assert_eq!(large.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1]);
        assert_eq!(bounded(vec![change(0, ENTRY_BYTES_MAX * 4)]).len(), 1);
        assert!(bounded(Vec::new()).is_empty());
    }
}
