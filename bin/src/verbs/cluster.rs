//! Verbs that mind the replicas: status, members, snapshot, verify.

use super::write::send;
use super::{connect, senseless, show};
use crate::args::{ClientArgs, MemberArgs, MembersVerb, ReadArgs, SnapshotArgs, VerifyArgs};
use crate::exit::{Failure, request_text};
use crate::{json, text};
use futures_util::future::join_all;
use indicatif::{ProgressBar, ProgressStyle};
use muster_core::ids::{ReplicaId, Seq, WallTime};
use muster_core::members::{Member, MemberCommand};
use muster_core::query::{Answer, Query};
use muster_core::request::{AdminOutcome, AdminRequest, Command, Freshness, RaftRole, Reply};
use muster_net::client::{Client, Status};
use serde_json::{Value, json as object};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What each replica says of itself, by address; what kept it from saying so otherwise.
pub(crate) async fn statuses(client: &Client) -> BTreeMap<String, Result<Status, String>> {
    let mut found: BTreeMap<String, Result<Status, String>> = BTreeMap::new();
    loop {
        let mut wanted = client.addresses();
        for status in found.values().flatten() {
            wanted.extend(status.members.iter().map(|member| member.client_address.to_string()));
        }
        wanted.sort();
        wanted.dedup();
        wanted.retain(|address| !found.contains_key(address));
        if wanted.is_empty() {
            return found;
        }
        let answers = join_all(wanted.iter().map(|address| client.status(address))).await;
        found.extend(
            wanted.into_iter().zip(answers.into_iter().map(|answer| answer.map_err(|error| error.to_string()))),
        );
    }
}

pub(crate) async fn status(args: ReadArgs, json: bool) -> Result<(), Failure> {
    let client = connect(&args.client).await?;
    let found = statuses(&client).await;
    let value = status_json(&found);
    show(json, &value, &status_text(&found))
}

/// One object for a whole cluster.
pub(crate) fn status_json(found: &BTreeMap<String, Result<Status, String>>) -> Value {
    let replicas: Vec<Value> = unique(found)
        .into_iter()
        .map(|(address, answer)| match answer {
            Ok(status) => json::status(address, status),
            Err(problem) => object!({ "address": address, "problem": problem }),
        })
        .collect();
    object!({ "replicas": replicas })
}

/// Each replica once, though it may be reachable under several addresses.
fn unique(found: &BTreeMap<String, Result<Status, String>>) -> Vec<(&String, &Result<Status, String>)> {
    let mut seen = std::collections::BTreeSet::new();
    let mut list: Vec<_> = found
        .iter()
        .filter(|(_, answer)| answer.as_ref().map_or(true, |status| seen.insert(status.replica.replica)))
        .collect();
    list.sort_by_key(|(address, answer)| {
        (answer.as_ref().map_or(u64::MAX, |status| status.replica.replica.0), *address)
    });
    list
}

/// The replica that leads in the highest term, of those that answered.
pub(crate) fn leader(found: &BTreeMap<String, Result<Status, String>>) -> Option<(&String, &Status)> {
    let leaders = found.iter().filter_map(|(address, answer)| Some((address, answer.as_ref().ok()?)));
    leaders.filter(|(_, status)| status.replica.role == RaftRole::Leader).max_by_key(|(_, status)| status.replica.term)
}

pub(crate) fn status_text(found: &BTreeMap<String, Result<Status, String>>) -> String {
    let replicas = unique(found);
    let commit = replicas.iter().filter_map(|(_, answer)| answer.as_ref().ok()).map(|s| s.replica.commit.0).max();
    let lead = leader(found);
    let mut out = String::new();
    if let Some(status) = replicas.iter().find_map(|(_, answer)| answer.as_ref().ok()) {
        let newest = replicas.iter().filter_map(|(_, answer)| answer.as_ref().ok()).max_by_key(|s| s.summary.sequence);
        let summary = &newest.unwrap_or(status).summary;
        let _ = writeln!(
            out,
            "cluster {}  sequence {}  head {}…  {} vClusters, {} nodes",
            status.cluster,
            summary.sequence,
            &summary.head.to_string()[..16],
            summary.vclusters,
            summary.nodes
        );
    }
    let mut rows = Vec::new();
    for (address, answer) in &replicas {
        let Ok(status) = answer else {
            let mut row = vec![String::from("-"); 11];
            row[2].replace_range(.., "unreachable");
            row.push((*address).clone());
            rows.push(row);
            continue;
        };
        let raft = &status.replica;
        let progress = lead.and_then(|(_, leader)| leader.replica.progress.iter().find(|p| p.replica == raft.replica));
        let (matched, next) =
            progress.map_or(("-".into(), "-".into()), |p| (p.match_index.to_string(), p.next_index.to_string()));
        rows.push(vec![
            raft.replica.to_string(),
            status.name.to_string(),
            raft.role.word().to_owned(),
            raft.term.to_string(),
            raft.commit.to_string(),
            raft.applied.to_string(),
            commit.unwrap_or_default().saturating_sub(raft.applied.0).to_string(),
            matched,
            next,
            raft.snapshot.to_string(),
            text::bytes(status.disk_bytes),
            (*address).clone(),
        ]);
    }
    let headings =
        ["ID", "NAME", "ROLE", "TERM", "COMMIT", "APPLIED", "LAG", "MATCH", "NEXT", "SNAPSHOT", "DISK", "ADDRESS"];
    out.push_str(&text::table(&headings, &rows));
    if lead.is_none() {
        out.push_str("nobody leads: writes wait for a majority of the voters; reads with --local go on\n");
    }
    out.push_str(&certificates_text(&replicas));
    for (address, problem) in replicas.iter().filter_map(|(address, answer)| Some((address, answer.as_ref().err()?))) {
        let _ = writeln!(out, "{address}: {problem}");
    }
    out
}

/// What there is to say of certificates: where there are none, and where they end soon.
fn certificates_text(replicas: &[(&String, &Result<Status, String>)]) -> String {
    let mut out = String::new();
    let mut plain = false;
    let now = super::write::wall_time().0 / 1_000;
    for status in replicas.iter().filter_map(|(_, answer)| answer.as_ref().ok()) {
        match status.certificate_ends {
            None => plain = true,
            Some(ends) if ends < now + 14 * 86_400 => {
                let until = text::time(WallTime(ends * 1_000));
                let _ = writeln!(out, "{}'s certificate ends {until}: renew it with `muster certs renew`", status.name);
            }
            Some(_) => {}
        }
    }
    if plain {
        out.push_str("no TLS: whoever reaches these ports may do everything\n");
    }
    out
}

pub(crate) async fn members(client: &Client, freshness: Freshness) -> Result<Vec<Member>, Failure> {
    let answered = client.query(freshness, &Query::Members).await?;
    let Answer::Members(members) = answered.answer else { return Err(senseless()) };
    Ok(members)
}

/// Finds a member by id or name.
pub(crate) fn find(members: &[Member], text: &str) -> Result<ReplicaId, Failure> {
    let found = members.iter().find(|member| member.name.as_str() == text || member.id.to_string() == text);
    found.map(|member| member.id).ok_or_else(|| {
        let known: Vec<_> = members.iter().map(|member| format!("{} ({})", member.id, member.name)).collect();
        Failure::error(format!("there is no member {text:?}"), format!("the members are {}", known.join(", ")))
    })
}

pub(crate) async fn members_verb(verb: MembersVerb, json: bool) -> Result<(), Failure> {
    match verb {
        MembersVerb::List(read) => list(read, json).await,
        MembersVerb::Add(args) => change(args, json, "is a learner", MemberCommand::AddLearner).await,
        MembersVerb::Promote(args) => change(args, json, "votes", MemberCommand::Promote).await,
        MembersVerb::Demote(args) => change(args, json, "is a learner", MemberCommand::Demote).await,
        MembersVerb::Remove(args) => {
            change(args, json, "is out; stop its process, then its directory can go", MemberCommand::Remove).await
        }
        MembersVerb::Transfer { to, client } => transfer(to, &client, json).await,
    }
}

async fn list(read: ReadArgs, json: bool) -> Result<(), Failure> {
    let client = connect(&read.client).await?;
    let members = members(&client, super::read::freshness(&read)).await?;
    let found = statuses(&client).await;
    let configuration = leader(&found)
        .map(|(_, status)| status)
        .or_else(|| found.values().find_map(|answer| answer.as_ref().ok()))
        .map(|status| status.replica.configuration.clone())
        .unwrap_or_default();
    let part = |id: ReplicaId| {
        if configuration.is_voter(id) {
            "voter"
        } else if configuration.learners.contains(&id) {
            "learner"
        } else {
            "admitted"
        }
    };
    let values: Vec<Value> = members
        .iter()
        .map(|member| {
            let mut value = json::member(member);
            value["part"] = part(member.id).into();
            value
        })
        .collect();
    let rows: Vec<_> = members
        .iter()
        .map(|member| {
            vec![
                member.id.to_string(),
                member.name.to_string(),
                part(member.id).to_owned(),
                member.peer_address.to_string(),
                member.client_address.to_string(),
            ]
        })
        .collect();
    let out = text::table(&["ID", "NAME", "PART", "PEERS", "CLIENTS"], &rows);
    show(json, &object!({ "members": values }), &out)
}

async fn change(
    args: MemberArgs,
    json: bool,
    what: &str,
    command: impl FnOnce(ReplicaId) -> MemberCommand,
) -> Result<(), Failure> {
    let client = connect(&args.write.client).await?;
    let id = find(&members(&client, Freshness::Linearizable).await?, &args.member)?;
    let (reply, request) = send(&client, &args.write, Command::Members(command(id))).await?;
    if reply != Reply::Membership {
        return Err(senseless());
    }
    let value = object!({ "outcome": "applied", "member": id.0, "request_id": request_text(request) });
    show(json, &value, &format!("member {id} {what}\n"))
}

async fn transfer(to: Option<String>, args: &ClientArgs, json: bool) -> Result<(), Failure> {
    let client = connect(args).await?;
    let to = match to {
        Some(text) => find(&members(&client, Freshness::Linearizable).await?, &text)?,
        None => ReplicaId(0),
    };
    match client.admin(None, AdminRequest::Transfer { to }).await? {
        AdminOutcome::Transferred { leader } => {
            let value = object!({ "outcome": "applied", "leader": leader.0 });
            show(json, &value, &format!("member {leader} leads\n"))
        }
        AdminOutcome::Failed { problem } => Err(Failure::error(problem, "see `muster status` for who could lead")),
        AdminOutcome::Snapshot { .. } => Err(senseless()),
    }
}

pub(crate) async fn snapshot(args: SnapshotArgs, json: bool) -> Result<(), Failure> {
    let client = connect(&args.client).await?;
    match client.admin(args.on.as_deref(), AdminRequest::Snapshot).await? {
        AdminOutcome::Snapshot { index } => {
            let value = object!({ "outcome": "applied", "index": index.0 });
            show(json, &value, &format!("a snapshot at log position {index} is durable\n"))
        }
        AdminOutcome::Failed { problem } => Err(Failure::error(problem, "see the replica's log for why")),
        AdminOutcome::Transferred { .. } => Err(senseless()),
    }
}

pub(crate) async fn verify(args: VerifyArgs, json: bool) -> Result<(), Failure> {
    let client = connect(&args.client).await?;
    let bar = if json { ProgressBar::hidden() } else { ProgressBar::new(0) };
    let style =
        ProgressStyle::with_template("verifying {bar:40} {pos}/{len} {eta}").expect("the template is well formed");
    bar.set_style(style);
    let result = client
        .verify(args.on.as_deref(), args.head, |progress| {
            bar.set_length(progress.of.0);
            bar.set_position(progress.sequence.0);
        })
        .await;
    bar.finish_and_clear();
    let verified = result?;
    if let Some((sequence, digest)) = args.head
        && !verified.head_matched
    {
        return Err(Failure::error(
            format!("the chain does not pass through {sequence}:{digest}"),
            "this is another history than the one that head was kept of; keep both and compare",
        ));
    }
    let value = object!({
        "outcome": "verified",
        "sequence": verified.sequence.0,
        "head": verified.head.to_string(),
        "head_matched": verified.head_matched,
    });
    let proven = if verified.head_matched {
        "it passes through the head you kept"
    } else {
        "proves that it is consistent with itself; keep this head and pass it with --head to prove more"
    };
    let head = format!("{}:{}", verified.sequence, verified.head);
    show(json, &value, &format!("verified {} records, head {head}\n{proven}\n", Seq(verified.sequence.0)))
}
