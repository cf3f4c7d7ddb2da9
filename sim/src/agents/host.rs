//! A node's machine: what it is, who uses it, and what it does not put up with.
//!
//! Files and packages outlast a boot; kernel parameters, mounts and services are what the machine begins with. A key changes at
//! one moment, for everybody, and that moment is an event. What somebody changes behind the agent's back is noticed within a
//! fraction of a second.
//!
//! Decides nothing about what should be so.

use super::event::{AgentEvent, By};
use super::{AgentId, AgentLife, AgentPoint};
use crate::draw::Draw;
use crate::scenario::{MS, SECOND};
use crate::world::World;
use muster_core::agent::host::{BootId, Consumer, Host, HostError, Observed};
use muster_core::agent::value;
use muster_core::ids::Time;
use muster_core::journal::key::{Dimension, Key, Setting};
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// The most that a number in a kernel parameter may be: more is taken, and becomes this.
const KERNEL_MOST: u64 = 100_000;

/// How long a change behind the agent's back may go unnoticed.
const NOTICED_NANOS: u64 = SECOND / 2;

/// What a key is when the machine has just booted, unless it outlasts a boot.
const FACTORY: [(&str, &str); 3] =
    [("kernel:vm.swappiness", "60"), ("kernel:net.core.somaxconn", "4096"), ("services:web", "stopped")];

struct Inner {
    boot: u64,
    booted_at: Time,
    there: BTreeMap<Key, Setting>,
    users: BTreeMap<Key, Vec<Consumer>>,
    refuse_percent: u64,
    slow_nanos: u64,
    watched: BTreeSet<Key>,
    touched: BTreeSet<Key>,
    waker: Option<Waker>,
    draw: Draw,
    next_pid: u32,
}

/// A machine. Outlives its agent's processes.
pub struct Hardware(Mutex<Inner>);

fn key(text: &str) -> Key {
    Key::new(text).expect("a good key")
}

fn factory() -> BTreeMap<Key, Setting> {
    FACTORY.iter().map(|(name, value)| (key(name), Setting::Value((*value).into()))).collect()
}

/// Whether what a key stands for outlasts a boot of the machine.
fn outlasts(key: &Key) -> bool {
    matches!(key.dimension(), Some(Dimension::Files | Dimension::Packages))
}

impl Inner {
    fn setting(&self, key: &Key) -> Setting {
        let none =
            if key.dimension() == Some(Dimension::Kernel) { Setting::Value("0".into()) } else { Setting::Absent };
        self.there.get(key).cloned().unwrap_or(none)
    }

    fn put(&mut self, key: &Key, setting: &Setting) -> (Setting, Setting) {
        let from = self.setting(key);
        let mut to = value::check_setting(key, setting).unwrap_or_else(|_| setting.clone());
        if let (Some(Dimension::Kernel), Setting::Value(value)) = (key.dimension(), &to)
            && value.parse::<u64>().is_ok_and(|number| number > KERNEL_MOST)
        {
            to = Setting::Value(KERNEL_MOST.to_string().into());
        }
        if to == Setting::Absent {
            self.there.remove(key);
        } else {
            self.there.insert(key.clone(), to.clone());
        }
        (from, to)
    }
}

impl Hardware {
    /// A machine that has just been switched on for the first time.
    #[must_use]
    pub fn new(draw: Draw, now: Time) -> Self {
        Self(Mutex::new(Inner {
            boot: 1,
            booted_at: now,
            there: factory(),
            users: BTreeMap::new(),
            refuse_percent: 0,
            slow_nanos: 0,
            watched: BTreeSet::new(),
            touched: BTreeSet::new(),
            waker: None,
            draw,
            next_pid: 100,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which boot this is.
    #[must_use]
    pub fn boot_id(&self) -> BootId {
        BootId(format!("boot-{}", self.lock().boot).into())
    }

    /// When it booted.
    #[must_use]
    pub fn booted_at(&self) -> Time {
        self.lock().booted_at
    }

    /// What a key is.
    #[must_use]
    pub fn setting(&self, key: &Key) -> Setting {
        self.lock().setting(key)
    }

    /// Boots it anew: whoever ran on it is gone.
    pub fn reboot(&self, now: Time) {
        let mut inner = self.lock();
        inner.boot += 1;
        inner.booted_at = now;
        let kept: Vec<(Key, Setting)> =
            inner.there.iter().filter(|(key, _)| outlasts(key)).map(|(key, is)| (key.clone(), is.clone())).collect();
        inner.there = factory();
        inner.there.extend(kept);
        inner.users.clear();
        inner.watched.clear();
        inner.touched.clear();
    }

    /// How many changes in a hundred it refuses, and how much longer everything takes.
    pub fn behave(&self, change: impl FnOnce(&mut u64, &mut u64)) {
        let inner = &mut *self.lock();
        change(&mut inner.refuse_percent, &mut inner.slow_nanos);
    }

    /// Somebody changes it without its agent: what was, and what is.
    pub fn tamper(&self, key: &Key, setting: &Setting) -> (Setting, Setting) {
        let mut inner = self.lock();
        let (from, to) = inner.put(key, setting);
        if inner.watched.contains(key) {
            inner.touched.insert(key.clone());
            if let Some(waker) = inner.waker.take() {
                waker.wake();
            }
        }
        (from, to)
    }

    /// A process begins to use what a key stands for: its number.
    pub fn hold(&self, key: &Key) -> u32 {
        let mut inner = self.lock();
        inner.next_pid += 1;
        let pid = inner.next_pid;
        let path = key.as_str().split(':').next_back().unwrap_or_default().into();
        let consumer = Consumer { key: key.clone(), pid, command: "tail -f".into(), path };
        inner.users.entry(key.clone()).or_default().push(consumer);
        pid
    }

    /// It ends. False if it was gone already.
    pub fn let_go(&self, key: &Key, pid: u32) -> bool {
        let mut inner = self.lock();
        let Some(users) = inner.users.get_mut(key) else { return false };
        let before = users.len();
        users.retain(|consumer| consumer.pid != pid);
        let gone = users.len() < before;
        if users.is_empty() {
            inner.users.remove(key);
        }
        gone
    }

    /// Nobody uses it any more: the keys that were used.
    pub fn let_all_go(&self) -> Vec<Key> {
        std::mem::take(&mut self.lock().users).into_keys().collect()
    }
}

/// The machine as one process of its agent sees it.
pub struct SimHost {
    world: Arc<World>,
    life: Arc<AgentLife>,
    hardware: Arc<Hardware>,
}

impl SimHost {
    /// The machine for a process.
    #[must_use]
    pub fn new(world: Arc<World>, life: Arc<AgentLife>, hardware: Arc<Hardware>) -> Self {
        Self { world, life, hardware }
    }

    fn agent(&self) -> AgentId {
        self.life.agent
    }

    /// Something is asked of the machine, and takes its time.
    async fn begin(&self) {
        super::pass(&self.world, &self.life, AgentPoint::BeforeHostWork).await;
        let nanos = {
            let mut inner = self.hardware.lock();
            let slow = inner.slow_nanos;
            MS / 10 + inner.draw.around(MS) + if slow > 0 { inner.draw.below(slow) } else { 0 }
        };
        self.world.agenda.sleep(nanos).await;
        if self.life.is_over() {
            std::future::pending::<()>().await;
        }
    }

    async fn end(&self) {
        super::pass(&self.world, &self.life, AgentPoint::AfterHostWork).await;
    }

    fn look(&self, keys: &[Key]) -> BTreeMap<Key, Observed> {
        let inner = self.hardware.lock();
        let seen = |key: &Key| match key.dimension() {
            Some(Dimension::Network | Dimension::Gpu) | None => Observed::Unseen("there is no such device".into()),
            Some(
                Dimension::Mounts | Dimension::Files | Dimension::Services | Dimension::Kernel | Dimension::Packages,
            ) => match inner.setting(key) {
                Setting::Value(value) => Observed::Value(value),
                Setting::Absent | Setting::Unset => Observed::Absent,
            },
        };
        keys.iter().map(|key| (key.clone(), seen(key))).collect()
    }
}

impl Host for SimHost {
    async fn boot_id(&mut self) -> BootId {
        self.hardware.boot_id()
    }

    async fn observe(&mut self, keys: &[Key]) -> BTreeMap<Key, Observed> {
        self.begin().await;
        let seen = self.look(keys);
        self.end().await;
        seen
    }

    async fn change(&mut self, key: &Key, setting: &Setting) -> Result<(), HostError> {
        self.begin().await;
        let refused = {
            let mut inner = self.hardware.lock();
            let percent = inner.refuse_percent;
            percent > 0 && inner.draw.percent(percent)
        };
        let result = if refused {
            let problem: Arc<str> = "Device or resource busy".into();
            super::tell(&self.world, self.agent(), AgentEvent::Refused { key: key.clone(), problem: problem.clone() });
            Err(HostError { key: key.clone(), problem })
        } else {
            let (from, to) = self.hardware.lock().put(key, setting);
            let by = By::Agent;
            super::tell(&self.world, self.agent(), AgentEvent::Changed { key: key.clone(), from, to, by });
            Ok(())
        };
        self.end().await;
        result
    }

    async fn check(&mut self, key: &Key, setting: &Setting) -> Result<Setting, HostError> {
        self.begin().await;
        let checked = value::check_setting(key, setting);
        self.end().await;
        checked.map_err(|unfit| HostError { key: key.clone(), problem: unfit.to_string().into() })
    }

    async fn consumers(&mut self, keys: &[Key]) -> Vec<Consumer> {
        self.begin().await;
        let found: Vec<Consumer> = {
            let inner = self.hardware.lock();
            keys.iter().filter_map(|key| inner.users.get(key)).flatten().cloned().collect()
        };
        let (asked, told) = (keys.into(), found.clone().into());
        super::tell(&self.world, self.agent(), AgentEvent::Consumers { asked, found: told });
        self.end().await;
        found
    }

    fn watch(&mut self, keys: &[Key]) {
        self.hardware.lock().watched = keys.iter().cloned().collect();
    }

    async fn changed(&mut self) -> Vec<Key> {
        loop {
            poll_fn(|context| {
                let mut inner = self.hardware.lock();
                if inner.touched.is_empty() {
                    inner.waker = Some(context.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(())
            })
            .await;
            let nanos = self.hardware.lock().draw.below(NOTICED_NANOS);
            self.world.agenda.sleep(nanos.max(MS)).await;
            let keys: Vec<Key> = std::mem::take(&mut self.hardware.lock().touched).into_iter().collect();
            if !keys.is_empty() {
                return keys;
            }
        }
    }
}
