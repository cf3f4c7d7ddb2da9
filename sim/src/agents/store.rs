//! An agent's disk and clock: production's directory over a simulated disk, and time since the node booted.

use super::event::AgentEvent;
use super::{AgentLife, AgentPoint};
use crate::agenda::Agenda;
use crate::clock::SimClock;
use crate::disk::SimDisk;
use crate::world::World;
use muster_core::agent::driver::BootClock;
use muster_core::agent::effects::Save;
use muster_core::agent::host::BootTime;
use muster_core::agent::store::Store;
use muster_core::clock::Clock as _;
use muster_core::ids::{Time, WallTime};
use muster_core::storage::StorageError;
use muster_storage::agent::AgentStore;
use std::sync::Arc;

/// What an agent keeps, watched: what it hands to its disk, and when that is durable, become events.
pub(super) struct WatchedStore {
    pub(super) part: AgentStore<SimDisk>,
    pub(super) world: Arc<World>,
    pub(super) life: Arc<AgentLife>,
}

impl Store for WatchedStore {
    async fn save(&mut self, save: &Save) -> Result<(), StorageError> {
        super::pass(&self.world, &self.life, AgentPoint::BeforeSave).await;
        let (number, ledger) = (save.number.0, save.ledger.clone());
        let events: Arc<[_]> = save.events.clone().into();
        let saving = AgentEvent::Saving { number, ledger: ledger.clone(), events: events.clone() };
        super::tell(&self.world, self.life.agent, saving);
        self.part.save(save).await?;
        super::tell(&self.world, self.life.agent, AgentEvent::Saved { number, ledger, events });
        super::pass(&self.world, &self.life, AgentPoint::AfterSave).await;
        Ok(())
    }
}

/// Time since the node booted, which nothing steps, and its wall clock, which anything may.
#[derive(Clone)]
pub(super) struct NodeClock {
    pub(super) agenda: Agenda,
    pub(super) booted_at: Time,
    pub(super) wall: SimClock,
}

impl BootClock for NodeClock {
    fn now(&self) -> BootTime {
        BootTime(self.agenda.now().0.saturating_sub(self.booted_at.0))
    }

    fn wall(&self) -> WallTime {
        self.wall.wall()
    }

    async fn sleep_until(&self, time: BootTime) {
        // The agenda is exact to the microsecond; who is woken early looks at the clock and sleeps again.
        while self.now() < time {
            let at = Time(self.booted_at.0.saturating_add(time.0));
            self.agenda.sleep_until(at.max(Time(self.agenda.now().0 + 1_000))).await;
        }
    }
}
