//! `muster rollout`: one change to many nodes, a few first.
//!
//! Decisions are `muster_core::agent::rollout`'s; here its tasks are carried to the agents, beside one another. On every node the
//! change runs under that node's own window, so if this process dies, the nodes roll back by themselves. What holds on every node of
//! a vCluster is declared for the vCluster, once ([`Together`]); else it is declared node by node.

use super::agents::find;
use super::node::changes;
use super::together::Together;
use super::{connect, senseless, show};
use crate::args::{AgentArgs, RolloutArgs};
use crate::exit::Failure;
use crate::text;
use muster_core::agent::operator::{Consent, Phase, Reply, Report, Request, Returned, Which};
use muster_core::agent::rollout::{Effects, Health, Input, Outcome, Rollout, Settings, Task, Verdict};
use muster_core::agent::value;
use muster_core::ids::{NodeId, Seq, Time, VClusterId};
use muster_core::journal::key::{Key, Setting};
use muster_core::query::{Answer, Query};
use muster_core::request::Freshness;
use muster_net::agent::client::AgentClient;
use serde_json::{Value, json as object};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Stdio;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long a look may take before the node counts as silent for this once.
const LOOK_PATIENCE: Duration = Duration::from_secs(5);

/// How often a node is asked whether it has heard what is declared.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// What every task needs.
struct Shared {
    agents: BTreeMap<NodeId, AgentClient>,
    changes: Vec<(Key, Setting)>,
    message: Arc<str>,
    merge: bool,
    check: Option<String>,
    /// The commit for all, where a whole vCluster is meant.
    together: Option<Together>,
    /// Whether it is to be used: known when the first commit is due.
    all_hold: OnceLock<bool>,
}

fn words(failure: &Failure) -> Arc<str> {
    Arc::from(failure.message.as_str())
}

fn outcome_of(failure: &Failure) -> Outcome {
    if failure.code == crate::exit::UNKNOWN {
        Outcome::Unknown(words(failure))
    } else {
        Outcome::Failed(words(failure))
    }
}

impl Shared {
    fn agent(&self, node: &NodeId) -> &AgentClient {
        &self.agents[node]
    }

    fn keys(&self) -> Which {
        Which::Keys(self.changes.iter().map(|(key, _)| key.clone()).collect())
    }

    async fn set(&self, node: &NodeId) -> Outcome {
        let request = Request::Set {
            changes: self.changes.clone(),
            consent: Consent::Yes,
            merge: self.merge,
            message: self.message.clone(),
        };
        match super::agents::ask(self.agent(node), &request).await {
            Ok(Reply::Set { window, .. }) => Outcome::Done { window_seconds: window.map(|window| window.seconds_left) },
            Ok(Reply::NotSet { errors, .. }) => {
                let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
                Outcome::Failed(errors.join("; ").into())
            }
            Ok(_) => Outcome::Unknown("its agent answered another question".into()),
            Err(failure) => outcome_of(&failure),
        }
    }

    async fn look(&self, node: &NodeId) -> Health {
        let shown = tokio::time::timeout(LOOK_PATIENCE, self.agent(node).show()).await;
        let Ok(Ok(report)) = shown else { return Health::Silent };
        if let Some(why) = self.wrong(&report) {
            return Health::Unhealthy(why.into());
        }
        match &self.check {
            Some(check) => run_check(check, node).await,
            None => Health::Healthy,
        }
    }

    /// What is wrong with a node, by its own report.
    fn wrong(&self, report: &Report) -> Option<String> {
        if report.phase == Phase::Blocked {
            return Some("something on it could not be brought back".to_owned());
        }
        for (key, wanted) in &self.changes {
            // What is there and declared is no difference; what is there and not declared must be what was set.
            if let Some(difference) = report.differences.iter().find(|difference| difference.key == *key) {
                let there = match &difference.observed {
                    Setting::Value(value) => muster_core::agent::host::Observed::Value(value.clone()),
                    Setting::Absent | Setting::Unset => muster_core::agent::host::Observed::Absent,
                };
                if !value::agrees(key, wanted, &there) {
                    return Some(format!("{key} is {}", text::short(&difference.observed.to_string())));
                }
            } else if report.unseen.iter().any(|(unseen, _)| unseen == key) {
                return Some(format!("{key} cannot be seen"));
            }
        }
        None
    }

    async fn commit(&self, node: &NodeId) -> Outcome {
        if let Some(together) = self.together.as_ref().filter(|_| self.all_hold.get() == Some(&true)) {
            if let Err(failure) = together.declare().await {
                return outcome_of(&failure);
            }
            self.follow(node).await;
            return Outcome::Done { window_seconds: None };
        }
        let request = Request::Commit { which: self.keys(), ttl_seconds: None, message: self.message.clone() };
        match super::agents::ask(self.agent(node), &request).await {
            Ok(Reply::Committed { .. }) => Outcome::Done { window_seconds: None },
            Ok(_) => Outcome::Unknown("its agent answered another question".into()),
            Err(failure) => {
                // A commit that came through leaves nothing to commit: that is as good.
                let shown = self.agent(node).show().await;
                let differs = |report: &Report| {
                    report.differences.iter().any(|d| self.changes.iter().any(|(key, _)| *key == d.key))
                };
                match shown {
                    Ok(report) if !differs(&report) && self.wrong(&report).is_none() && !report.commit_unknown => {
                        Outcome::Done { window_seconds: None }
                    }
                    _ => outcome_of(&failure),
                }
            }
        }
    }

    /// Waits, though not for long, until a node has heard that it is what is declared. One that hears it later becomes so then.
    async fn follow(&self, node: &NodeId) {
        let heard = async {
            loop {
                let differs = |report: &Report| {
                    report.differences.iter().any(|d| self.changes.iter().any(|(key, _)| *key == d.key))
                };
                if self.agent(node).show().await.is_ok_and(|report| !differs(&report)) {
                    return;
                }
                tokio::time::sleep(FOLLOW_EVERY).await;
            }
        };
        // It is declared either way.
        tokio::time::timeout(LOOK_PATIENCE, heard).await.ok();
    }

    async fn roll_back(&self, node: &NodeId) -> Outcome {
        let done = Outcome::Done { window_seconds: None };
        match super::agents::ask(self.agent(node), &Request::Rollback { which: self.keys() }).await {
            Ok(Reply::Returned(Returned::Done { .. })) => done,
            Ok(_) => Outcome::Failed("some of it could not be brought back".into()),
            Err(failure) => match self.agent(node).show().await {
                // Nothing left to bring back: the window did it, or nothing had been set.
                Ok(report) if !report.differences.iter().any(|d| self.changes.iter().any(|(key, _)| *key == d.key)) => {
                    done
                }
                _ => outcome_of(&failure),
            },
        }
    }

    async fn carry_out(self: Arc<Self>, task: Task) -> Input {
        match task {
            Task::Set(node) => {
                let outcome = self.set(&node).await;
                Input::Set(node, outcome)
            }
            Task::Look(node) => {
                let health = self.look(&node).await;
                Input::Looked(node, health)
            }
            Task::Commit(node) => {
                let outcome = self.commit(&node).await;
                Input::Committed(node, outcome)
            }
            Task::Rollback(node) => {
                let outcome = self.roll_back(&node).await;
                Input::RolledBack(node, outcome)
            }
        }
    }
}

/// The operator's own check, run here with the node's name in `MUSTER_NODE`.
async fn run_check(check: &str, node: &NodeId) -> Health {
    let running = tokio::process::Command::new("/bin/sh")
        .args(["-c", check])
        .env("MUSTER_NODE", node.as_str())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(LOOK_PATIENCE, running).await {
        Ok(Ok(output)) if output.status.success() => Health::Healthy,
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Health::Unhealthy(format!("the check ended with {}: {}", output.status, text::short(said.trim())).into())
        }
        Ok(Err(error)) => Health::Unhealthy(format!("the check cannot be run: {error}").into()),
        Err(_) => Health::Unhealthy("the check does not end".into()),
    }
}

/// The nodes that are meant: those named, or every node of the vCluster.
async fn nodes(args: &RolloutArgs) -> Result<Vec<NodeId>, Failure> {
    let Some(vcluster) = &args.vcluster else { return Ok(args.nodes.clone()) };
    let client = connect(&args.client).await?;
    let answered = client.query(Freshness::Linearizable, &Query::Nodes(Some(vcluster.clone()))).await?;
    let Answer::Nodes(nodes) = answered.answer else { return Err(senseless()) };
    Ok(nodes.into_iter().map(|node| node.node).collect())
}

fn agent_args(args: &RolloutArgs) -> AgentArgs {
    AgentArgs { agent: None, client: args.client.clone(), author: args.author.clone() }
}

pub(crate) async fn rollout(args: RolloutArgs, json: bool) -> Result<(), Failure> {
    let changes = changes(args.settings.clone(), args.absent.clone())?;
    let nodes = nodes(&args).await?;
    let settings = Settings {
        first: args.first,
        widen: args.widen,
        healthy_seconds: args.healthy,
        failures_max: args.failures,
        silent_seconds: args.silent,
    };
    let problems = settings.problems(nodes.len());
    if !problems.is_empty() {
        return Err(Failure::usage(problems.join("; "), "see `muster rollout --help`"));
    }
    // Every agent is found before anything is touched.
    let mut agents = BTreeMap::new();
    for node in &nodes {
        agents.insert(node.clone(), find(&agent_args(&args), node).await?);
    }
    let together = match args.vcluster.clone() {
        Some(vcluster) => {
            let client = connect(&args.client).await?;
            Some(Together::prepare(client, &args.author, vcluster, &nodes, &changes, &args.message).await?)
        }
        None => None,
    };
    let shared = Arc::new(Shared {
        agents,
        changes,
        message: Arc::from(args.message),
        merge: args.merge,
        check: args.check,
        together,
        all_hold: OnceLock::new(),
    });
    let began = Instant::now();
    let now = || Time(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
    let (mut rollout, mut effects) =
        Rollout::start(settings, nodes, now()).map_err(|problems| Failure::usage(problems.join("; "), ""))?;
    let (done_in, mut done) = mpsc::unbounded_channel();
    let mut interrupted = false;
    loop {
        tell(&effects, json, began)?;
        let commits = effects.tasks.iter().filter(|task| matches!(task, Task::Commit(_))).count();
        if commits > 0 {
            // All commits are asked for at once; later ones are repetitions.
            shared.all_hold.get_or_init(|| commits == shared.agents.len());
        }
        for task in effects.tasks {
            let (shared, done) = (shared.clone(), done_in.clone());
            tokio::spawn(async move {
                let input = shared.carry_out(task).await;
                // A rollout that is over needs no more.
                done.send(input).ok();
            });
        }
        if let Some(verdict) = effects.verdict {
            let declared = match &shared.together {
                Some(together) => together.declared().await,
                None => None,
            };
            return conclude(&verdict, declared.as_ref(), args.failures, json);
        }
        let wake = async {
            match effects.wake_at {
                Some(at) => tokio::time::sleep(Duration::from_nanos(at.0.saturating_sub(now().0))).await,
                None => std::future::pending().await,
            }
        };
        let input = tokio::select! {
            input = done.recv() => input.unwrap_or(Input::Wake),
            () = wake => Input::Wake,
            _ = tokio::signal::ctrl_c(), if !interrupted => {
                interrupted = true;
                eprintln!("muster: aborting: everything is rolled back");
                Input::Abort
            }
        };
        effects = rollout.step(now(), input);
    }
}

fn tell(effects: &Effects, json: bool, began: Instant) -> Result<(), Failure> {
    for line in &effects.told {
        let seconds = began.elapsed().as_secs();
        let out = if json {
            format!("{}\n", object!({ "seconds": seconds, "told": line }))
        } else {
            format!("{seconds:>4} s  {line}\n")
        };
        text::print(&out)?;
    }
    Ok(())
}

fn list(nodes: &[(NodeId, Arc<str>)]) -> Vec<Value> {
    nodes.iter().map(|(node, why)| object!({ "node": node.as_str(), "why": &**why })).collect()
}

fn conclude(
    verdict: &Verdict,
    declared: Option<&(VClusterId, Seq)>,
    failures_max: usize,
    json: bool,
) -> Result<(), Failure> {
    match verdict {
        Verdict::Committed { nodes, failed } => {
            let mut value = object!({
                "outcome": "committed",
                "nodes": nodes.iter().map(NodeId::as_str).collect::<Vec<_>>(),
                "failed": list(failed),
            });
            let mut out = match declared {
                Some((vcluster, sequence)) => {
                    value["vcluster"] = vcluster.as_str().into();
                    value["sequence"] = sequence.0.into();
                    format!(
                        "sequence {sequence}: declared for vcluster:{vcluster}, as it is on its {}\n",
                        text::counted(nodes.len(), "node")
                    )
                }
                None => format!("committed on {}\n", text::counted(nodes.len(), "node")),
            };
            for (node, why) in failed {
                let _ = writeln!(out, "  {node} failed and was rolled back: {why}");
            }
            if nodes.is_empty() || failed.len() > failures_max {
                let next = "look with `muster watch`; what was committed stays declared";
                return Err(Failure { outcome: "failed", ..Failure::error(out.trim_end(), next) }.with(value));
            }
            show(json, &value, &out)
        }
        Verdict::Aborted { why, failed, unconfirmed } => {
            let mut message = format!("the rollout was aborted: {why}");
            for (node, why) in failed {
                let _ = write!(message, "\n  {node} failed: {why}");
            }
            for (node, why) in unconfirmed {
                let _ = write!(message, "\n  {node} did not confirm its rollback, its window will do it: {why}");
            }
            let next =
                if unconfirmed.is_empty() { "every node is what is declared" } else { "look with `muster watch`" };
            Err(Failure { outcome: "aborted", ..Failure::error(message, next) }
                .with(object!({ "why": &**why, "failed": list(failed), "unconfirmed": list(unconfirmed) })))
        }
    }
}
