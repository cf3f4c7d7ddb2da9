//! An agent's link to the journal over the simulated wire: whom to ask and when again is decided by `core::client`, as in the
//! real one.
//!
//! Left out: the node's report, which is soft state of a server and decides nothing.

use super::{AgentLife, AgentPoint};
use crate::event::Told;
use crate::network::{self, Boot, Broken, End};
use crate::scenario::SECOND;
use crate::world::World;
use futures_util::future::{Either, select};
use muster_core::agent::fleet::NodeReport;
use muster_core::agent::journal::{Away, Following, Journal};
use muster_core::agent::ledger::Declared;
use muster_core::client::{Step, Targets, Turn, WriteAttempts};
use muster_core::codec;
use muster_core::ids::{Age, NodeId, ReplicaId, Seq, Time};
use muster_core::journal::document;
use muster_core::journal::entry::Record;
use muster_core::journal::key::Scope;
use muster_core::overlay;
use muster_core::request::{Freshness, Outcome, UnknownWhy, WriteRequest};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

/// How long a read, and a write, is tried: as the real link does.
const READ_NANOS: u64 = 5 * SECOND;
const WRITE_NANOS: u64 = 8 * SECOND;

struct Shared {
    world: Arc<World>,
    life: Arc<AgentLife>,
    targets: Mutex<Targets>,
}

/// The link of one process.
#[derive(Clone)]
pub(super) struct SimLink(Arc<Shared>);

impl SimLink {
    pub(super) fn new(world: Arc<World>, life: Arc<AgentLife>) -> Self {
        let mut draw = world.draw("agent-link", u64::from(life.agent) << 32 | life.run);
        let mut addresses: Vec<Arc<str>> = world.machines().values().map(|machine| machine.address.clone()).collect();
        let turn = draw.place(addresses.len());
        addresses.rotate_left(turn);
        let targets = Mutex::new(Targets::new(addresses, draw.number()));
        Self(Arc::new(Shared { world, life, targets }))
    }

    fn world(&self) -> &Arc<World> {
        &self.0.world
    }

    fn me(&self) -> End {
        End::Agent(self.0.life.agent)
    }

    fn targets<T>(&self, with: impl FnOnce(&mut Targets) -> T) -> T {
        with(&mut self.0.targets.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn current(&self) -> (Arc<str>, ReplicaId) {
        let address = self.targets(|targets| targets.current().expect("an agent knows somebody").clone());
        let machines = self.world().machines();
        let id = machines.iter().find(|(_, machine)| machine.address == address).map(|(id, _)| *id);
        (address, id.unwrap_or_default())
    }

    /// Asks one replica after another until one knows, or the time is over.
    async fn ask<T, F>(&self, call: impl Fn(ReplicaId) -> F + Send + Sync) -> Result<T, Away>
    where
        T: Send,
        F: Future<Output = Result<Option<T>, Broken>> + Send,
    {
        let deadline = Time(self.world().now().0 + READ_NANOS);
        loop {
            let (address, to) = self.current();
            let answer = {
                let call = pin!(call(to));
                let late = pin!(self.world().agenda.sleep_until(deadline));
                match select(call, late).await {
                    Either::Left((answer, _)) => answer,
                    Either::Right(_) => Err(Broken::Lost),
                }
            };
            if let Ok(Some(value)) = answer {
                self.targets(Targets::answered);
                return Ok(value);
            }
            let pause_ms = self.targets(|targets| targets.failed(&address));
            self.world().agenda.sleep(pause_ms.max(1) * 1_000_000).await;
            if self.world().now() >= deadline {
                return Err(Away::Unreachable("no replica answers".into()));
            }
        }
    }

    async fn head(&self, freshness: Freshness) -> Result<(Age, Seq), Away> {
        let (world, me) = (self.world().clone(), self.me());
        self.ask(|to| {
            let world = world.clone();
            async move {
                let answer = network::read(&world, me, to, freshness).await?;
                Ok(answer.ok().map(|(view, _)| (view.state.age(), view.state.sequence())))
            }
        })
        .await
    }

    /// Records after a sequence; none if there are none for a while.
    async fn more(&self, after: Seq) -> Result<Vec<Record>, Away> {
        let (world, me) = (self.world().clone(), self.me());
        let told = self
            .ask(|to| {
                let world = world.clone();
                async move { network::records_or_a_sign(&world, me, to, after).await }
            })
            .await?;
        Ok(told.iter().map(|(_, bytes)| codec::decode_record(bytes).expect("what is kept decodes")).collect())
    }
}

fn declared(told: &Told) -> Result<Declared, Away> {
    let Told::Booted { booted, .. } = told else { return Err(Away::Unreachable("another answer".into())) };
    let plan = booted.plan.as_ref().map_err(|refusal| Away::Refused(refusal.to_string()))?;
    let overlay = overlay::open(&plan.overlay).map_err(|error| Away::Unreachable(format!("the overlay: {error}")))?;
    let text = std::str::from_utf8(&plan.delta).map_err(|error| Away::Unreachable(format!("the delta: {error}")))?;
    let delta = document::parse(text).map_err(|error| Away::Unreachable(format!("the delta: {error}")))?;
    Declared::from_boot(&overlay, &delta).map_err(Away::Unreachable)
}

impl Journal for SimLink {
    type Following = SimFollowing;

    async fn boot(&self, node: &NodeId, at_least: Seq) -> Result<Declared, Away> {
        let (world, me) = (self.world().clone(), self.me());
        let told = self
            .ask(|to| {
                let (world, node) = (world.clone(), node.clone());
                async move {
                    match network::boot(&world, me, to, node, at_least).await? {
                        Ok(Boot::Told(told)) => Ok(Some(told)),
                        Ok(Boot::Later { .. }) | Err(_) => Ok(None),
                    }
                }
            })
            .await?;
        let declared = declared(&told)?;
        super::pass(self.world(), &self.0.life, AgentPoint::Booted).await;
        Ok(declared)
    }

    fn follow(&self, _: &NodeId, after: Seq) -> SimFollowing {
        SimFollowing { link: self.clone(), after }
    }

    async fn age(&self) -> Result<Age, Away> {
        Ok(self.head(Freshness::Local).await?.0)
    }

    async fn write(&self, write: WriteRequest) -> Outcome {
        super::pass(self.world(), &self.0.life, AgentPoint::BeforeWrite).await;
        let deadline = Time(self.world().now().0 + WRITE_NANOS);
        let mut attempts = WriteAttempts::new(deadline, self.world().scenario.cluster.timing.request_ms);
        let outcome = loop {
            let (address, to) = self.current();
            attempts.on_sent();
            let answer = {
                let call = pin!(network::write(self.world(), self.me(), to, write.clone(), true));
                let late = pin!(self.world().agenda.sleep_until(deadline));
                match select(call, late).await {
                    Either::Left((answer, _)) => answer,
                    Either::Right(_) => break attempts.on_deadline(),
                }
            };
            let now = self.world().now();
            let step = match answer {
                Ok(outcome) => {
                    self.targets(Targets::answered);
                    attempts.on_outcome(now, outcome)
                }
                Err(Broken::Unreachable) => attempts.on_unreachable(now),
                Err(Broken::Lost) => attempts.on_lost(now),
            };
            match step {
                Step::Done(outcome) => break outcome,
                Step::Reopen => break Outcome::Unknown(UnknownWhy::SessionUnknown),
                Step::Again { turn, after_ms } => {
                    let mut pause_ms = after_ms;
                    match turn {
                        Turn::Same => {}
                        Turn::Next => pause_ms += self.targets(|targets| targets.failed(&address)),
                        Turn::Leader(leader) => self.targets(|targets| targets.follow(&leader)),
                    }
                    self.world().agenda.sleep(pause_ms.max(1) * 1_000_000).await;
                }
            }
        };
        super::pass(self.world(), &self.0.life, AgentPoint::AfterWrite).await;
        outcome
    }

    async fn records(&self, node: &NodeId, after: Seq) -> Result<Vec<Record>, Away> {
        let (_, upto) = self.head(Freshness::Linearizable).await?;
        let (mut reached, mut found) = (after, Vec::new());
        while reached < upto {
            let more = self.more(reached).await?;
            let Some(last) = more.last().map(Record::sequence) else {
                return Err(Away::Unreachable("the replica that was asked lags".into()));
            };
            reached = last;
            found.extend(more.into_iter().filter(|record| *record.scope() == Scope::Node(node.clone())));
        }
        Ok(found)
    }

    async fn report(&self, _: &NodeReport) -> Result<(), Away> {
        Ok(())
    }
}

/// A subscription: from whichever replica answers, without a gap.
pub(super) struct SimFollowing {
    link: SimLink,
    after: Seq,
}

impl Following for SimFollowing {
    async fn next(&mut self) -> Result<Vec<Record>, Away> {
        let more = self.link.more(self.after).await?;
        if let Some(last) = more.last() {
            self.after = last.sequence();
        }
        Ok(more)
    }
}
