//! A change to many nodes: the operator's machine (`core::agent::rollout`) over simulated agents, carried out as its verb does.

use super::event::AgentId;
use super::name;
use super::operators::ask_patiently;
use crate::event::Event;
use crate::oracles::Violation;
use crate::run::STORY;
use crate::scenario::RolloutAct;
use crate::world::World;
use futures_channel::mpsc;
use futures_util::StreamExt as _;
use futures_util::future::{Either, pending, select};
use muster_core::agent::host::Observed;
use muster_core::agent::operator::{Consent, Phase, Reply, Report, Request, Returned, Which};
use muster_core::agent::rollout::{Health, Input, Outcome, Rollout, Settings, Task, Verdict};
use muster_core::agent::value::agrees;
use muster_core::ids::{NodeId, Time};
use muster_core::journal::entry::Author;
use muster_core::journal::key::{Key, Setting};
use std::pin::pin;
use std::sync::Arc;

/// How long a node may be out of reach, in seconds.
const SILENT_SECONDS: u64 = 5;

struct Carrier {
    world: Arc<World>,
    wanted: RolloutAct,
    author: Author,
}

fn agent_of(node: &NodeId) -> AgentId {
    node.as_str().trim_start_matches('a').parse().unwrap_or_default()
}

fn observed(setting: &Setting) -> Observed {
    match setting {
        Setting::Value(value) => Observed::Value(value.clone()),
        Setting::Absent | Setting::Unset => Observed::Absent,
    }
}

impl Carrier {
    async fn ask(&self, node: &NodeId, request: &Request) -> Option<Reply> {
        ask_patiently(&self.world, agent_of(node), &self.author, request).await
    }

    async fn show(&self, node: &NodeId) -> Option<Arc<Report>> {
        match self.ask(node, &Request::Show).await {
            Some(Reply::Report(report)) => Some(report),
            Some(_) | None => None,
        }
    }

    fn keys(&self) -> Which {
        Which::Keys(self.wanted.changes.iter().map(|(key, _)| key.clone()).collect())
    }

    fn differs(&self, report: &Report) -> bool {
        report.differences.iter().any(|d| self.wanted.changes.iter().any(|(key, _)| *key == d.key))
    }

    fn wrong(&self, report: &Report) -> Option<Arc<str>> {
        if report.phase == Phase::Blocked {
            return Some("something on it could not be brought back".into());
        }
        let there = |key: &Key| report.differences.iter().find(|difference| difference.key == *key);
        let wrong = |(key, wanted): &(Key, Setting)| {
            there(key).is_some_and(|difference| !agrees(key, wanted, &observed(&difference.observed)))
        };
        self.wanted.changes.iter().find(|change| wrong(change)).map(|(key, _)| format!("{key} is not as set").into())
    }

    async fn carry_out(&self, task: Task) -> Input {
        let done = Outcome::Done { window_seconds: None };
        let failed = |why: &str| Outcome::Failed(why.into());
        match task {
            Task::Set(node) => {
                let request = Request::Set {
                    changes: self.wanted.changes.clone(),
                    consent: Consent::Yes,
                    merge: false,
                    message: "rollout".into(),
                };
                let outcome = match self.ask(&node, &request).await {
                    Some(Reply::Set { window, .. }) => {
                        Outcome::Done { window_seconds: window.map(|window| window.seconds_left) }
                    }
                    Some(_) => failed("it refused"),
                    None => Outcome::Unknown("no answer".into()),
                };
                Input::Set(node, outcome)
            }
            Task::Look(node) => {
                let ill = self.wanted.unhealthy.contains(&agent_of(&node));
                let health = match self.show(&node).await {
                    None => Health::Silent,
                    Some(_) if ill => Health::Unhealthy("the check failed".into()),
                    Some(report) => self.wrong(&report).map_or(Health::Healthy, Health::Unhealthy),
                };
                Input::Looked(node, health)
            }
            Task::Commit(node) => {
                let request = Request::Commit { which: self.keys(), ttl_seconds: None, message: "rollout".into() };
                let outcome = match self.ask(&node, &request).await {
                    Some(Reply::Committed { .. }) => done,
                    _ => match self.show(&node).await {
                        Some(report)
                            if !self.differs(&report) && self.wrong(&report).is_none() && !report.commit_unknown =>
                        {
                            done
                        }
                        _ => Outcome::Unknown("it is not known".into()),
                    },
                };
                Input::Committed(node, outcome)
            }
            Task::Rollback(node) => {
                let outcome = match self.ask(&node, &Request::Rollback { which: self.keys() }).await {
                    Some(Reply::Returned(Returned::Done { .. })) => done,
                    _ => match self.show(&node).await {
                        Some(report) if !self.differs(&report) => done,
                        _ => failed("it did not say so"),
                    },
                };
                Input::RolledBack(node, outcome)
            }
        }
    }
}

/// Runs a rollout over all nodes, and judges what came of it.
pub(super) async fn run(world: &Arc<World>, id: &Arc<str>, wanted: &RolloutAct, author: &Author) {
    let tell = |what: String| world.emit(&Event::Operation { id: id.clone(), what });
    let carrier = Arc::new(Carrier { world: world.clone(), wanted: wanted.clone(), author: author.clone() });
    let agents = world.fleet.agents();
    let settings = Settings {
        first: wanted.first,
        widen: 2,
        healthy_seconds: wanted.healthy / crate::scenario::SECOND,
        failures_max: 0,
        silent_seconds: SILENT_SECONDS,
    };
    let before: Vec<Setting> = agents.iter().map(|agent| is(world, *agent, &wanted.changes[0].0)).collect();
    let nodes = agents.iter().map(|agent| name(*agent)).collect();
    let (mut rollout, mut effects) = match Rollout::start(settings, nodes, world.now()) {
        Ok(begun) => begun,
        Err(problems) => {
            let saw = problems.join("; ");
            return world.fail(STORY, "its own file", Violation::new("a rollout that can begin", saw));
        }
    };
    let (done_in, mut done) = mpsc::unbounded();
    let verdict = loop {
        effects.told.drain(..).for_each(&tell);
        for task in effects.tasks {
            let (carrier, done) = (carrier.clone(), done_in.clone());
            world.spawn(async move {
                // A rollout that is over needs no more.
                drop(done.unbounded_send(carrier.carry_out(task).await));
            });
        }
        if let Some(verdict) = effects.verdict {
            break verdict;
        }
        let wake_at: Option<Time> = effects.wake_at;
        let wake = pin!(async {
            match wake_at {
                Some(at) => world.agenda.sleep_until(at).await,
                None => pending().await,
            }
        });
        let input = match select(done.next(), wake).await {
            Either::Left((input, _)) => input.unwrap_or(Input::Wake),
            Either::Right(_) => Input::Wake,
        };
        effects = rollout.step(world.now(), input);
    };
    let committed = matches!(&verdict, Verdict::Committed { failed, .. } if failed.is_empty());
    tell(format!("{verdict:?}"));
    if committed == wanted.aborts {
        let expected = if wanted.aborts { "the rollout to be aborted" } else { "the rollout to reach every node" };
        return world.fail(STORY, "its own file", Violation::new(expected, format!("{verdict:?}")));
    }
    for (agent, before) in agents.iter().zip(before) {
        let (key, new) = &wanted.changes[0];
        let expected = if wanted.aborts { before } else { new.clone() };
        let saw = is(world, *agent, key);
        if !agrees(key, &expected, &observed(&saw)) {
            let expected = format!("{key} of a{agent} to be {expected}");
            return world.fail(STORY, "issue \"the node agent\", point 9", Violation::new(expected, saw.to_string()));
        }
    }
}

fn is(world: &World, agent: AgentId, key: &Key) -> Setting {
    world.fleet.hardware(agent).map_or(Setting::Unset, |hardware| hardware.setting(key))
}
