//! Verbs that look at the journal: log, show, state, diff, audit, boot, nodes, vClusters.

use super::{connect, record, scope, senseless, show};
use crate::args::{AuditArgs, BootArgs, DiffArgs, LogArgs, LogFilterArgs, NodesArgs, ReadArgs, ShowArgs, StateArgs};
use crate::exit::Failure;
use crate::{json, text};
use muster_core::ids::Seq;
use muster_core::journal::entry::{EntryType, OperationKind, Principal, Record};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::query::{Answer, Declared, Effective, Query, VClusterSummary};
use muster_core::request::Freshness;
use muster_net::client::{BootAsk, Client, LogFilter, Topic};
use serde_json::{Value, json as object};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What the command line says about freshness.
pub(crate) fn freshness(read: &ReadArgs) -> Freshness {
    match (read.local, read.leased) {
        (true, _) => Freshness::Local,
        (false, true) => Freshness::Leased,
        (false, false) => Freshness::Linearizable,
    }
}

/// Prints records as they come: rows under one heading, or an object a line.
struct Printer {
    json: bool,
    /// Width of each column but the last; grows, so that rows that come later still line up.
    widths: Vec<usize>,
}

impl Printer {
    fn new(json: bool) -> Self {
        Self { json, widths: Vec::new() }
    }

    fn print(&mut self, records: &[Record]) -> Result<(), Failure> {
        let mut out = String::new();
        if self.json {
            for record in records {
                let _ = writeln!(out, "{}", json::record(record));
            }
            return Ok(text::print(&out)?);
        }
        let mut rows: Vec<Vec<String>> = records.iter().map(text::record_row).collect();
        if self.widths.is_empty() && !rows.is_empty() {
            self.widths = vec![0; text::RECORD_HEADINGS.len() - 1];
            rows.insert(0, text::RECORD_HEADINGS.map(str::to_owned).to_vec());
        }
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in rows {
            let (last, cells) = row.split_last().expect("a row has columns");
            for (width, cell) in self.widths.iter().zip(cells) {
                let _ = write!(out, "{cell:<width$}  ");
            }
            let _ = writeln!(out, "{last}");
        }
        Ok(text::print(&out)?)
    }
}

/// The records that a filter lets through, the oldest first.
async fn read_log(client: &Client, args: &LogFilterArgs, filter: LogFilter) -> Result<(Vec<Record>, Seq), Failure> {
    let newest_first = args.after.is_none();
    let filter = LogFilter {
        scopes: args.scope.clone(),
        author: args.by.clone(),
        after: args.after.unwrap_or_default(),
        upto: args.upto,
        limit: Some(args.limit),
        newest_first,
        ..filter
    };
    let mut stream = client.log(&filter).await?;
    let sequence = stream.sequence();
    let mut records = Vec::new();
    while let Some(record) = stream.next().await? {
        records.push(record);
    }
    if newest_first {
        records.reverse();
    }
    Ok((records, sequence))
}

pub(crate) async fn log(args: LogArgs, json: bool) -> Result<(), Failure> {
    let client = connect(&args.client).await?;
    let mut printer = Printer::new(json);
    let filter = LogFilter { types: args.types.clone(), ..LogFilter::default() };
    let (records, upto) = read_log(&client, &args.filter, filter).await?;
    printer.print(&records)?;
    if !args.follow {
        return Ok(());
    }
    // A limit may have cut the first part short of the head: then following begins where it was cut.
    let cut = args.filter.after.is_some() && records.len() as u64 == args.filter.limit;
    let after = records.last().filter(|_| cut).map_or(upto, Record::sequence);
    let mut subscription = client.subscribe(Topic::Scopes(args.filter.scope.clone()), after);
    loop {
        let tidings = subscription.next().await?;
        let records: Vec<Record> = tidings
            .records
            .into_iter()
            .filter(|record| is_wanted(record, &args.types, args.filter.by.as_deref()))
            .collect();
        printer.print(&records)?;
    }
}

/// What a subscription does not filter by itself.
fn is_wanted(record: &Record, types: &[EntryType], by: Option<&str>) -> bool {
    let (kind, author) = match record {
        Record::Entry(entry) => (Some(entry.entry_type), &entry.author),
        Record::Operation(operation) => (None, &operation.author),
    };
    let name = match &author.principal {
        Principal::Certificate { subject } | Principal::Oidc { subject, .. } => subject,
        Principal::Claimed { name } => name,
        Principal::System { part } => part,
    };
    let type_fits = types.is_empty() || kind.is_some_and(|kind| types.contains(&kind));
    type_fits && by.is_none_or(|by| by == &**name)
}

pub(crate) async fn audit(args: AuditArgs, json: bool) -> Result<(), Failure> {
    let client = connect(&args.client).await?;
    // Audit records alone: every entry of a type that is made beside one is left out here.
    let filter = LogFilter { operations: true, types: vec![EntryType::ExecLog], ..LogFilter::default() };
    let limit = args.filter.limit;
    let wide = LogFilterArgs { limit: limit.saturating_mul(2), ..args.filter };
    let (mut records, _) = read_log(&client, &wide, filter).await?;
    records.retain(|record| match record {
        Record::Operation(_) => true,
        Record::Entry(_) => false,
    });
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if wide.after.is_none() {
        records.drain(..records.len().saturating_sub(limit));
    } else {
        records.truncate(limit);
    }
    if json || !records.is_empty() {
        return Printer::new(json).print(&records);
    }
    Ok(text::print(&format!(
        "no operations are recorded; `muster op record {} --node NODE COMMAND` records one\n",
        json::operation_word(OperationKind::Exec)
    ))?)
}

pub(crate) async fn show_record(args: ShowArgs, json: bool) -> Result<(), Failure> {
    let client = connect(&args.client).await?;
    // Sequence 0 stands for "before the first": nothing is recorded there.
    let found = if args.sequence == Seq(0) { None } else { record(&client, args.sequence, false).await? };
    match found {
        Some(record) => show(json, &json::record(&record), &text::record(&record)),
        None => Err(Failure::error(
            format!("there is no sequence {}", args.sequence),
            "the journal begins at 1; `muster log -n 1` shows where it ends",
        )),
    }
}

pub(crate) async fn state(args: StateArgs, json: bool) -> Result<(), Failure> {
    let client = connect(&args.read.client).await?;
    if let Scope::Node(node) = &args.scope
        && !args.own
    {
        if let Some(at) = args.at {
            let settings = effective_at(&client, &args.scope, at).await?;
            let value = object!({
                "scope": args.scope.to_string(),
                "at": at.0,
                "settings": settings.iter().map(json::effective).collect::<Vec<_>>(),
            });
            return show(json, &value, &format!("{} at sequence {at}\n{}", args.scope, effective_table(&settings)));
        }
        let answered = client.query(freshness(&args.read), &Query::Node(node.clone())).await?;
        let Answer::Node { node, settings } = answered.answer else { return Err(senseless()) };
        let value = object!({
            "scope": args.scope.to_string(),
            "at": answered.sequence.0,
            "node": json::node(&node),
            "settings": settings.iter().map(json::effective).collect::<Vec<_>>(),
        });
        let vcluster = node.vcluster.as_ref().map_or("no vCluster".to_owned(), |name| format!("vCluster {name}"));
        let mut out =
            format!("{} in {vcluster}, {}, at sequence {}\n", args.scope, node.state.word(), answered.sequence);
        if let Some(reason) = &node.emergency_reason {
            let _ = writeln!(out, "emergency since {}: {reason}", node.since);
        }
        out.push_str(&effective_table(&settings));
        return show(json, &value, &out);
    }
    let (at, head, settings) = if args.at.is_some() {
        let state = client.state_at(&args.scope, args.at).await?;
        (state.at, state.head, state.settings)
    } else {
        let answered = client.query(freshness(&args.read), &Query::Scope(args.scope.clone())).await?;
        let Answer::Scope { head, settings } = answered.answer else { return Err(senseless()) };
        (answered.sequence, head, settings)
    };
    let value = object!({
        "scope": args.scope.to_string(),
        "at": at.0,
        "head": head.0,
        "settings": settings.iter().map(json::declared).collect::<Vec<_>>(),
    });
    let out = format!("{} at sequence {at}, last changed by {head}\n{}", args.scope, declared_table(&settings));
    show(json, &value, &out)
}

fn declared_table(settings: &[Declared]) -> String {
    let rows: Vec<_> = settings
        .iter()
        .map(|declared| {
            let value = text::short(&declared.setting.to_string());
            let expires =
                declared.expires_at.map_or_else(String::new, |age| format!("expires at age {} s", age.0 / 1_000_000));
            vec![declared.key.to_string(), value, declared.sequence.to_string(), expires]
        })
        .collect();
    if rows.is_empty() {
        "nothing is declared\n".to_owned()
    } else {
        text::table(&["KEY", "SETTING", "SEQ", ""], &rows)
    }
}

pub(crate) fn effective_table(settings: &[Effective]) -> String {
    let rows: Vec<_> = settings
        .iter()
        .map(|effective| {
            let value = text::short(&effective.setting.to_string());
            vec![effective.key.to_string(), value, effective.scope.to_string(), effective.sequence.to_string()]
        })
        .collect();
    if rows.is_empty() {
        "nothing counts\n".to_owned()
    } else {
        text::table(&["KEY", "SETTING", "SCOPE", "SEQ"], &rows)
    }
}

/// What counted on a node right after a sequence: node beats vCluster beats global.
async fn effective_at(client: &Client, node: &Scope, at: Seq) -> Result<Vec<Effective>, Failure> {
    let own = client.state_at(node, Some(at)).await?.settings;
    let vcluster =
        own.iter().find(|declared| declared.key.is_vcluster()).and_then(|declared| match &declared.setting {
            Setting::Value(name) => muster_core::ids::VClusterId::new(name).ok(),
            Setting::Unset | Setting::Absent => None,
        });
    let mut settings = BTreeMap::new();
    let mut add = |scope: &Scope, declared: Vec<Declared>| {
        for Declared { key, setting, sequence, .. } in declared {
            if setting != Setting::Unset && !key.is_vcluster() {
                settings.insert(key.clone(), Effective { key, setting, scope: scope.clone(), sequence });
            }
        }
    };
    add(&Scope::Global, client.state_at(&Scope::Global, Some(at)).await?.settings);
    if let Some(vcluster) = vcluster {
        let scope = Scope::VCluster(vcluster);
        let declared = client.state_at(&scope, Some(at)).await?.settings;
        add(&scope, declared);
    }
    add(node, own);
    Ok(settings.into_values().collect())
}

pub(crate) async fn diff(args: DiffArgs, json: bool) -> Result<(), Failure> {
    let client = connect(&args.client).await?;
    let by_key = |settings: Vec<Declared>| -> BTreeMap<Key, Setting> {
        settings.into_iter().map(|declared| (declared.key, declared.setting)).collect()
    };
    let (left_name, left, right_name, right) = match (&args.other, args.from) {
        (Some(other), _) => {
            let (_, left) = scope(&client, Freshness::Linearizable, &args.scope).await?;
            let (_, right) = scope(&client, Freshness::Linearizable, other).await?;
            (args.scope.to_string(), by_key(left), other.to_string(), by_key(right))
        }
        (None, from) => {
            let left = client.state_at(&args.scope, from).await?;
            let right = client.state_at(&args.scope, args.to).await?;
            let name = |at: Seq| format!("{}@{at}", args.scope);
            (name(left.at), by_key(left.settings), name(right.at), by_key(right.settings))
        }
    };
    let keys: std::collections::BTreeSet<&Key> = left.keys().chain(right.keys()).collect();
    let says = |side: &BTreeMap<Key, Setting>, key: &Key| side.get(key).cloned().unwrap_or_default();
    let differences: Vec<(&Key, Setting, Setting)> = keys
        .into_iter()
        .map(|key| (key, says(&left, key), says(&right, key)))
        .filter(|(_, left, right)| left != right)
        .collect();
    let list: Vec<Value> = differences
        .iter()
        .map(|(key, left, right)| {
            object!({ "key": key.as_str(), "left": json::setting(left), "right": json::setting(right) })
        })
        .collect();
    let value = object!({ "left": left_name, "right": right_name, "differences": list });
    let mut out = format!("--- {left_name}\n+++ {right_name}\n");
    for (key, left, right) in &differences {
        if *left != Setting::Unset {
            let _ = writeln!(out, "- {key}={}", text::short(&left.to_string()));
        }
        if *right != Setting::Unset {
            let _ = writeln!(out, "+ {key}={}", text::short(&right.to_string()));
        }
    }
    if differences.is_empty() {
        out = format!("{left_name} and {right_name} say the same\n");
    }
    show(json, &value, &out)
}

pub(crate) async fn nodes(args: NodesArgs, json: bool) -> Result<(), Failure> {
    let client = connect(&args.read.client).await?;
    let answered = client.query(freshness(&args.read), &Query::Nodes(args.vcluster)).await?;
    let Answer::Nodes(nodes) = answered.answer else { return Err(senseless()) };
    let value = object!({ "at": answered.sequence.0, "nodes": nodes.iter().map(json::node).collect::<Vec<_>>() });
    let rows: Vec<_> = nodes
        .iter()
        .map(|node| {
            let vcluster = node.vcluster.as_ref().map_or("-".to_owned(), ToString::to_string);
            let reason = node.emergency_reason.as_deref().unwrap_or_default();
            vec![
                node.node.to_string(),
                vcluster,
                node.state.word().to_owned(),
                node.since.to_string(),
                text::short(reason),
            ]
        })
        .collect();
    let out = if rows.is_empty() {
        "no node is known; `muster apply FILE` declares some\n".to_owned()
    } else {
        text::table(&["NODE", "VCLUSTER", "STATE", "SINCE", ""], &rows)
    };
    show(json, &value, &out)
}

pub(crate) async fn list_vclusters(client: &Client, freshness: Freshness) -> Result<Vec<VClusterSummary>, Failure> {
    let answered = client.query(freshness, &Query::VClusters).await?;
    let Answer::VClusters(list) = answered.answer else { return Err(senseless()) };
    Ok(list)
}

pub(crate) async fn vclusters(args: ReadArgs, json: bool) -> Result<(), Failure> {
    let client = connect(&args.client).await?;
    let answered = client.query(freshness(&args), &Query::VClusters).await?;
    let Answer::VClusters(list) = answered.answer else { return Err(senseless()) };
    let value =
        object!({ "at": answered.sequence.0, "vclusters": list.iter().map(json::vcluster).collect::<Vec<_>>() });
    let rows: Vec<_> = list
        .iter()
        .map(|vcluster| {
            vec![
                vcluster.vcluster.to_string(),
                vcluster.nodes.to_string(),
                vcluster.policy_sequence.to_string(),
                vcluster.config_version.to_string(),
                vcluster.overlay_version.map_or("-".to_owned(), |version| version.to_string()),
                text::bytes(vcluster.overlay_bytes),
            ]
        })
        .collect();
    let out = if rows.is_empty() {
        "no vCluster is known; `muster policy set NAME` or `muster apply FILE` makes one known\n".to_owned()
    } else {
        text::table(&["VCLUSTER", "NODES", "POLICY", "VERSION", "OVERLAY", "STORED"], &rows)
    };
    show(json, &value, &out)
}

/// A boot as an operator wants to see it. The client has checked the overlay against its checksum and sizes.
pub(crate) struct BootView {
    pub(crate) value: Value,
    pub(crate) text: String,
}

pub(crate) async fn fetch_boot(client: &Client, ask: &BootAsk) -> Result<BootView, Failure> {
    let boot = client.boot(ask).await?;
    let overlay = boot.overlay.as_ref();
    let stored = overlay.map(|overlay| overlay.data.len() as u64);
    let assembled = crate::boot_view::assemble(&boot)?;
    let value = object!({
        "node": boot.node.as_str(),
        "vcluster": boot.vcluster.as_str(),
        "sequence": boot.sequence.0,
        "served_by": boot.served_by,
        "overlay": {
            "version": boot.overlay_version.0,
            "checksum": boot.overlay_checksum.to_string(),
            "verified": overlay.is_some(),
            "skipped": overlay.is_none(),
            "bytes": stored,
            "content_bytes": overlay.map(|overlay| overlay.content_bytes),
        },
        "delta_bytes": boot.delta.len(),
        "delta": assembled.delta,
        "settings": assembled.settings,
    });
    let phase_one = match (overlay, stored) {
        (Some(overlay), Some(stored)) => format!(
            "version {}, {} (zstd, {} unpacked), checksum {}… verified",
            boot.overlay_version,
            text::bytes(stored),
            text::bytes(overlay.content_bytes),
            &boot.overlay_checksum.to_string()[..16],
        ),
        _ => format!("version {}, held already, not sent", boot.overlay_version),
    };
    let text = format!(
        "{} in vCluster {} at sequence {}, served by {}\noverlay  {phase_one}\ndelta    {} in {}\n{}",
        boot.node,
        boot.vcluster,
        boot.sequence,
        boot.served_by,
        assembled.delta_summary,
        text::bytes(boot.delta.len() as u64),
        assembled.table,
    );
    Ok(BootView { value, text })
}

pub(crate) async fn boot(args: BootArgs, json: bool) -> Result<(), Failure> {
    let client = connect(&args.client).await?;
    let ask = BootAsk { node: args.node, known: args.known, at_least: args.at_least };
    let view = fetch_boot(&client, &ask).await?;
    show(json, &view.value, &view.text)
}
