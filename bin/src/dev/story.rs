//! `muster dev --once`: the whole story of the journal, each step checked and timed, then the end.
//!
//! Elect, apply the fleet, commit, conflict, roll back, boot two nodes, kill the leader, go on, restart it, verify the chain.
//! The first step that does not come out as told ends the story with what was expected.

use super::cluster::Cluster;
use super::{apply_examples, author};
use crate::boot_view::assemble;
use crate::exit::{CONFLICT, Failure, written};
use crate::text;
use crate::verbs::cluster::{leader, statuses};
use crate::verbs::read::list_vclusters as vclusters;
use crate::verbs::scope;
use crate::verbs::write::draft;
use muster_core::ids::{Digest, NodeId, Seq, VClusterId};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::entry::{Change, EntryDraft, EntryType};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::request::{Command, Freshness, Reply};
use muster_net::client::{Boot, BootAsk, Client};
use serde_json::{Value, json as object};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Prints steps as they are done.
struct Teller {
    json: bool,
    began: Instant,
    step: Instant,
    steps: Vec<Value>,
}

impl Teller {
    fn new(json: bool) -> Self {
        let now = Instant::now();
        Self { json, began: now, step: now, steps: Vec::new() }
    }

    /// A step begins.
    fn begin(&mut self) {
        self.step = Instant::now();
    }

    /// The step is done: its name and what came of it.
    fn done(&mut self, name: &str, what: &str, detail: Value) -> Result<(), Failure> {
        let ms = u64::try_from(self.step.elapsed().as_millis()).unwrap_or(u64::MAX);
        if !self.json {
            text::print(&format!("{name:<10} {ms:>6} ms  {what}\n"))?;
        }
        let mut step = object!({ "step": name, "ms": ms, "what": what });
        step["detail"] = detail;
        self.steps.push(step);
        self.begin();
        Ok(())
    }

    fn end(self) -> Result<(), Failure> {
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if self.json {
            text::print(&format!("{}\n", object!({ "outcome": "told", "ms": ms, "steps": self.steps })))?;
        } else {
            text::print(&format!(
                "\nall of it held, in {:.1} s. Stay with a cluster of your own: muster dev\n",
                self.began.elapsed().as_secs_f64()
            ))?;
        }
        Ok(())
    }
}

fn expected(what: impl Into<String>) -> Failure {
    Failure::error(format!("the story does not hold: {}", what.into()), "this is a fault in muster; please report it")
}

fn key(text: &str) -> Key {
    Key::new(text).expect("the story's keys are well formed")
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("the story's names are well formed")
}

async fn commit(client: &Client, scope: &Scope, parent: Seq, what: (&str, &str), why: &str) -> Result<Seq, Failure> {
    let change = Change { key: key(what.0), previous: Setting::Unset, next: Setting::Value(Arc::from(what.1)) };
    let draft = EntryDraft {
        changes: vec![change],
        message: Arc::from(why),
        ..draft(EntryType::Commit, scope.clone(), parent)
    };
    recorded(client, draft).await
}

async fn recorded(client: &Client, draft: EntryDraft) -> Result<Seq, Failure> {
    let outcome = client.write(&author(), Command::Journal(JournalCommand::AppendEntry(draft))).await;
    match written(outcome, None)? {
        Reply::Recorded { sequence } => Ok(sequence),
        other => Err(expected(format!("a commit gave {other:?}"))),
    }
}

async fn head(client: &Client, scope_: &Scope) -> Result<Seq, Failure> {
    Ok(scope(client, Freshness::Linearizable, scope_).await?.0)
}

pub(super) async fn tell(cluster: &mut Cluster, json: bool) -> Result<(), Failure> {
    let mut teller = Teller::new(json);
    if !json {
        text::print(
            "Three voters and one learner, each a process with its own log on disk, on free loopback ports.\n\n",
        )?;
    }
    cluster.start().await?;
    let client = cluster.client().await?;
    let found = statuses(&client).await;
    let (_, lead) = leader(&found).ok_or_else(|| expected("nobody leads"))?;
    let what = format!("{} leads term {}; four replicas take part", lead.name, lead.replica.term);
    teller.done("elect", &what, object!({ "leader": lead.name.as_str(), "term": lead.replica.term.0 }))?;

    apply(&mut teller, &client).await?;
    overlays(&mut teller, &client).await?;
    let training = Scope::VCluster(VClusterId::new("training").expect("a plain word is a name"));
    let before = change_and_conflict(&mut teller, &client, &training).await?;
    roll_back(&mut teller, &client, &training, before).await?;
    boots(&mut teller, cluster, &client).await?;
    let (killed, acknowledged) = kill_the_leader(&mut teller, cluster, &client).await?;
    restart(&mut teller, cluster, &client, killed, &acknowledged).await?;
    verify(&mut teller, cluster, &client).await?;
    client.close().await;
    teller.end()
}

async fn apply(teller: &mut Teller, client: &Client) -> Result<(), Failure> {
    let applied = apply_examples(client).await?;
    let what = format!(
        "{} nodes, {} policies, {} settings in {} entries, up to sequence {}",
        applied.nodes, applied.policies, applied.changes, applied.entries, applied.sequence
    );
    teller.done("apply", &what, object!({ "entries": applied.entries, "sequence": applied.sequence.0 }))?;
    let again = apply_examples(client).await?;
    if again.sequence != Seq(0) && applied.sequence != Seq(0) {
        return Err(expected("applying the same fleet again changed something"));
    }
    teller.done("again", "the same files once more: nothing to do", Value::Null)
}

/// Waits until the leader has built every overlay anew.
async fn overlays(teller: &mut Teller, client: &Client) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let list = vclusters(client, Freshness::Linearizable).await?;
        if list.iter().all(|vcluster| vcluster.overlay_version == Some(vcluster.config_version)) {
            let sizes: Vec<_> = list
                .iter()
                .map(|vcluster| {
                    format!(
                        "{} version {} ({})",
                        vcluster.vcluster,
                        vcluster.config_version,
                        text::bytes(vcluster.overlay_bytes)
                    )
                })
                .collect();
            let detail = list.iter().map(crate::json::vcluster).collect();
            return teller.done("overlays", &sizes.join(", "), detail);
        }
        if Instant::now() > deadline {
            return Err(expected("the overlays were not rebuilt within 10 s"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Commits for a vCluster, then lets somebody who has not seen it try the same key. Gives the head before both.
async fn change_and_conflict(teller: &mut Teller, client: &Client, training: &Scope) -> Result<Seq, Failure> {
    let before = head(client, training).await?;
    teller.begin();
    let sequence = commit(client, training, before, ("kernel:vm.swappiness", "1"), "less swapping").await?;
    let what = format!("sequence {sequence}: {training} kernel:vm.swappiness=1");
    teller.done("commit", &what, object!({ "sequence": sequence.0 }))?;
    match commit(client, training, before, ("kernel:vm.swappiness", "60"), "more swapping").await {
        Err(failure) if failure.code == CONFLICT => {
            let what = format!("{} (exit {CONFLICT})", failure.message);
            teller.done("conflict", &what, failure.json())?;
        }
        Err(failure) => return Err(failure),
        Ok(sequence) => return Err(expected(format!("a conflicting commit was recorded as {sequence}"))),
    }
    Ok(before)
}

async fn roll_back(teller: &mut Teller, client: &Client, training: &Scope, to: Seq) -> Result<(), Failure> {
    let based_on = head(client, training).await?;
    teller.begin();
    let sequence = recorded(
        client,
        EntryDraft {
            based_on: Some(based_on),
            message: Arc::from("it was better before"),
            ..draft(EntryType::Rollback, training.clone(), to)
        },
    )
    .await?;
    teller.done(
        "rollback",
        &format!("sequence {sequence}: {training} is what it was at {to}"),
        object!({ "sequence": sequence.0 }),
    )?;
    let (_, settings) = scope(client, Freshness::Linearizable, training).await?;
    match settings.iter().find(|declared| declared.key == key("kernel:vm.swappiness")) {
        None => Ok(()),
        Some(declared) => Err(expected(format!("after the rollback {training} still says {}", declared.setting))),
    }
}

/// Boots a node of each vCluster from the learner: one of them right after a commit of its own.
async fn boots(teller: &mut Teller, cluster: &Cluster, client: &Client) -> Result<(), Failure> {
    let own = Scope::Node(node("gpu017"));
    let parent = head(client, &own).await?;
    let sequence = commit(client, &own, parent, ("kernel:vm.nr_hugepages", "8192"), "a large job").await?;
    let learner = cluster.address(super::REPLICAS.len() - 1).to_owned();
    let replica = Client::connect(vec![learner], cluster.options()).await?;
    teller.begin();
    for (name, overridden, value) in
        [("gpu017", "kernel:vm.nr_hugepages", "8192"), ("cpu042", "network:mgmt0.mtu", "1500")]
    {
        let boot = replica.boot(&BootAsk { node: node(name), known: None, at_least: sequence }).await?;
        let settings = assemble(&boot)?.effective;
        if settings.get(&key(overridden)) != Some(&Setting::Value(Arc::from(value))) {
            return Err(expected(format!("{name} boots without {overridden}={value}")));
        }
        if settings.get(&key("kernel:vm.swappiness")) != Some(&Setting::Value(Arc::from("10"))) {
            return Err(expected(format!("{name} does not boot with the site's kernel:vm.swappiness=10")));
        }
        let what = format!("{name}: {}, with its own {overridden}={value}", phases(&boot));
        let detail = object!({ "node": name, "sequence": boot.sequence.0, "settings": settings.len() });
        teller.done("boot", &format!("{what}; {} settings count", settings.len()), detail)?;
    }
    Ok(())
}

fn phases(boot: &Boot) -> String {
    let overlay = boot.overlay.as_ref().map_or(0, |overlay| overlay.data.len() as u64);
    format!(
        "overlay of {} version {} ({}), delta {}",
        boot.vcluster,
        boot.overlay_version,
        text::bytes(overlay),
        text::bytes(boot.delta.len() as u64)
    )
}

/// What was acknowledged after the leader was killed.
struct Acknowledged {
    sequence: Seq,
}

async fn kill_the_leader(
    teller: &mut Teller,
    cluster: &mut Cluster,
    client: &Client,
) -> Result<(usize, Acknowledged), Failure> {
    let found = statuses(client).await;
    let (address, lead) = leader(&found).ok_or_else(|| expected("nobody leads"))?;
    let term = lead.replica.term;
    let killed = cluster.at(address).ok_or_else(|| expected(format!("nobody listens at {address}")))?;
    let own = Scope::Node(node("cpu001"));
    let parent = head(client, &own).await?;
    teller.begin();
    cluster.kill(killed).await?;
    let sequence = commit(client, &own, parent, ("services:tuned", "running"), "goes on without a leader").await?;
    let what = format!("{} is dead (kill -9); the next commit is acknowledged as {sequence}", cluster.name(killed));
    teller.done("kill", &what, object!({ "killed": cluster.name(killed), "sequence": sequence.0 }))?;

    let others: Vec<String> = cluster.addresses().into_iter().filter(|other| other != address).collect();
    let rest = Client::connect(others, cluster.options()).await?;
    let found = statuses(&rest).await;
    let (_, lead) = leader(&found).ok_or_else(|| expected("nobody leads after the leader was killed"))?;
    if lead.replica.term <= term {
        return Err(expected(format!("term {} leads on after its leader was killed", lead.replica.term)));
    }
    let mut last = sequence;
    for value in ["1", "2", "3"] {
        last = commit(&rest, &own, last, ("files:/etc/motd", value), "still going on").await?;
    }
    let what = format!("{} leads term {}; three more commits, up to {last}", lead.name, lead.replica.term);
    teller.done(
        "go on",
        &what,
        object!({ "leader": lead.name.as_str(), "term": lead.replica.term.0, "sequence": last.0 }),
    )?;
    Ok((killed, Acknowledged { sequence: last }))
}

async fn restart(
    teller: &mut Teller,
    cluster: &mut Cluster,
    client: &Client,
    killed: usize,
    acknowledged: &Acknowledged,
) -> Result<(), Failure> {
    teller.begin();
    cluster.spawn(killed)?;
    let address = cluster.address(killed).to_owned();
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        match client.status(&address).await {
            Ok(status) if status.summary.sequence >= acknowledged.sequence => break,
            _ if Instant::now() > deadline => {
                return Err(expected(format!("{} did not catch up within 15 s", cluster.name(killed))));
            }
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    let what =
        format!("{} is back from its own log and has everything up to {}", cluster.name(killed), acknowledged.sequence);
    teller.done("restart", &what, object!({ "sequence": acknowledged.sequence.0 }))
}

/// Every replica checks its own history; all of them must pass through the same head.
async fn verify(teller: &mut Teller, cluster: &Cluster, client: &Client) -> Result<(), Failure> {
    teller.begin();
    let mut kept: Option<(Seq, Digest)> = None;
    for address in cluster.addresses() {
        let verified = client.verify(Some(&address), kept, |_| {}).await?;
        if kept.is_some() && !verified.head_matched {
            return Err(expected(format!("{address} has another history")));
        }
        kept = kept.or(Some((verified.sequence, verified.head)));
    }
    let (sequence, digest) = kept.ok_or_else(|| expected("there is no replica to verify"))?;
    let what = format!("four replicas, one chain: {sequence} records, head {}…", &digest.to_string()[..16]);
    teller.done("verify", &what, object!({ "sequence": sequence.0, "head": digest.to_string() }))
}
