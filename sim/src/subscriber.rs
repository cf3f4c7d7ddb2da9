//! A subscriber: follows the journal from its first record, from whichever replica answers, and resumes after what it has.

use crate::client::Crowd;
use crate::draw::Draw;
use crate::event::{Ask, ClientId, Event, Told};
use crate::network;
use crate::scenario::{MS, SECOND};
use crate::world::World;
use futures_util::future::{Either, select};
use muster_core::ids::Seq;
use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How long it waits for one answer before it asks another replica.
const PATIENCE: u64 = 2 * SECOND;

/// A subscriber.
pub struct Subscriber {
    world: Arc<World>,
    id: ClientId,
    draw: Draw,
    number: u64,
    reached: Seq,
    /// How long it pauses after every answer, about.
    pause: u64,
}

impl Subscriber {
    /// A subscriber that has seen nothing.
    #[must_use]
    pub fn new(world: Arc<World>, id: ClientId) -> Self {
        let draw = world.draw("subscriber", u64::from(id));
        Self { world, id, draw, number: 0, reached: Seq(0), pause: MS }
    }

    /// One that takes its time over what it reads, until all is quiet: what waits for it waits on the disk it reads from, and it
    /// goes on where it stopped, however far the journal is by then.
    #[must_use]
    pub fn slow(world: Arc<World>, id: ClientId) -> Self {
        Self { pause: SECOND, ..Self::new(world, id) }
    }

    /// Follows until all is quiet and it has seen everything.
    pub async fn run(mut self, crowd: Arc<Crowd>) {
        crowd.behind.fetch_add(1, Ordering::Relaxed);
        let mut to = None;
        // Who gave nothing is not asked again while there are others: one that lost its disk may give nothing for good.
        let mut shunned = BTreeSet::new();
        while !self.world.is_over() {
            let mut all = self.world.replicas();
            if all.iter().all(|id| shunned.contains(id)) {
                shunned.clear();
            }
            all.retain(|id| !shunned.contains(id));
            let from = *to.get_or_insert_with(|| all[self.draw.place(all.len())]);
            self.number += 1;
            let (client, number) = (self.id, self.number);
            self.world.emit(&Event::Call { client, number, ask: Ask::Subscribe { after: self.reached } });
            let answer = {
                let call = pin!(network::records(&self.world, from, self.reached));
                let late = pin!(self.world.agenda.sleep(PATIENCE));
                match select(call, late).await {
                    Either::Left((Ok(Some(told)), _)) => Some(told),
                    Either::Left((Ok(None) | Err(_), _)) | Either::Right(_) => None,
                }
            };
            if let Some(Told::Records { records, .. }) = &answer
                && let Some((last, _)) = records.last()
            {
                self.reached = *last;
            }
            let good = answer.is_some();
            let told = answer.unwrap_or_else(|| Told::Nothing("no records".into()));
            self.world.emit(&Event::Answer { client, number, told });
            let all = self.world.facts(|facts| facts.committed.sequence());
            if crowd.quiet.load(Ordering::Relaxed) && self.reached >= all {
                break;
            }
            // Another one now and then, and after every failure.
            if !good || self.draw.percent(5) {
                shunned.extend(to.take().filter(|_| !good));
                self.world.agenda.sleep(20 * MS).await;
            }
            // At the end of what there is, what comes meanwhile comes together.
            let pause = if self.reached >= all {
                self.draw.around(100 * MS)
            } else if self.pause > MS && !crowd.quiet.load(Ordering::Relaxed) {
                self.draw.around(self.pause)
            } else {
                MS
            };
            self.world.agenda.sleep(pause).await;
        }
        crowd.behind.fetch_sub(1, Ordering::Relaxed);
    }
}
