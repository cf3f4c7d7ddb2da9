//! Boots: as many at a time as `core::admission` lets in, the others told when to come back and who else there is; and overlays
//! built while one is missing: once, however many ask.
//!
//! [`Desk`] knows who is served; [`http`] and [`grpc`] speak with nodes; [`reply`] is what an answer over HTTP is made of; [`forms`]
//! keeps what a shell needs of an overlay.
//!
//! Invariants
//! - a place is held until the boot's last byte is handed to the socket, or its connection is gone; and never for longer than it
//!   may be;
//! - nothing of an overlay is copied for a boot.

mod forms;
pub(super) mod grpc;
pub(super) mod http;
pub(super) mod reply;

use super::Replica;
use super::connections::{Pulse, Turn};
use crate::client::random_id;
use arc_swap::{ArcSwapOption, Guard};
use forms::Forms;
use muster_core::admission::{Admittance, AskRates, BootAdmission, BootLimits, elsewhere};
use muster_core::driver::store_overlay;
use muster_core::front::{Handle, View};
use muster_core::ids::{NodeId, ReplicaId, Seq, Time, VClusterId};
use muster_core::journal::overlay::BootOverlay;
use muster_core::overlay;
use muster_core::request::{Progress, RaftRole, Refusal, WriteRequest};
use muster_core::storage::Library;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::OnceCell;

/// How many overlays that are built but not stored yet are remembered.
const BUILT_MAX: usize = 64;

/// How a replica serves boots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootOptions {
    /// How many, for how long, how often.
    pub limits: BootLimits,
    /// Whether it serves them like any other replica while it leads. If not, it names others, and serves only those who insist.
    pub while_leading: bool,
    /// Whether nodes without a certificate are served, at a listener of their own.
    pub anonymous: bool,
}

type Built = Arc<OnceCell<Result<BootOverlay, Refusal>>>;

/// The overlays that were built here, by vCluster and version.
#[derive(Default)]
struct Builds {
    built: Mutex<BTreeMap<(VClusterId, Seq), Built>>,
}

impl Builds {
    /// The overlay of a vCluster that has none stored, from this view; whoever asks first builds it.
    async fn overlay<L: Library>(
        &self,
        replica: &Replica<L>,
        view: &Arc<View>,
        vcluster: &VClusterId,
    ) -> Result<BootOverlay, Refusal> {
        let Some(known) = view.state.journal.vcluster(vcluster) else {
            return overlay::build(&view.state, vcluster);
        };
        let version = view.state.journal.config_version(known);
        let cell = {
            let mut built = lock(&self.built);
            let key = (vcluster.clone(), version);
            if !built.contains_key(&key) {
                built.retain(|(other, _), _| other != vcluster);
                while built.len() >= BUILT_MAX {
                    built.pop_first();
                }
            }
            built.entry(key).or_default().clone()
        };
        let build = || async {
            let (state, name) = (view.state.clone(), vcluster.clone());
            let overlay = tokio::task::spawn_blocking(move || overlay::build(&state, &name)).await;
            let overlay = overlay.unwrap_or_else(|error| {
                Err(Refusal::Overlay { problem: format!("building it broke: {error}").into() })
            })?;
            replica.desk.built.fetch_add(1, Ordering::Relaxed);
            let write = store_overlay(&view.state, vcluster.clone(), overlay.clone(), random_id().0);
            tokio::spawn(store(replica.handle.clone(), write));
            Ok(overlay)
        };
        cell.get_or_init(build).await.clone()
    }
}

/// Asks the leader to store it. If that fails, the next view without one leads here again.
async fn store(handle: Handle, write: WriteRequest) {
    let outcome = handle.write(write, true).await;
    tracing::debug!(?outcome, "an overlay built on demand was offered for storing");
}

/// Who holds a place.
struct Seat {
    /// Until when it may.
    until: Time,
    pulse: Arc<Pulse>,
}

/// Who is served.
struct Room {
    admission: BootAdmission,
    seats: Vec<Option<Seat>>,
    free: Vec<usize>,
    begun: u64,
    /// Of boots that are over.
    bytes: u64,
    /// Those that had begun when the desk was looked at last.
    begun_before: u64,
}

/// What came of boots so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootCounts {
    /// Under way.
    pub under_way: u32,
    /// How many may be.
    pub places: u32,
    /// Begun.
    pub begun: u64,
    /// The bytes of those that are over, overlays and deltas.
    pub bytes: u64,
    /// Told to come back, because every place was taken.
    pub told_to_wait: u64,
    /// Told to ask another replica, because this one leads.
    pub sent_elsewhere: u64,
    /// Told to come back, because the same node asked too often.
    pub too_often: u64,
    /// Ended with their connection, because they took longer than they may.
    pub stalled: u64,
    /// Overlays that were built because one was missing.
    pub built: u64,
}

/// What boots need besides the replica.
pub(super) struct Desk {
    options: BootOptions,
    builds: Builds,
    forms: Forms,
    /// How often nodes asked, those that prove who they are and those that claim it: neither uses up what the other may.
    rates: [AskRates; 2],
    /// Nodes that wait until this replica has got as far as they demand.
    waiting: AtomicU32,
    room: Mutex<Room>,
    /// Moves on with every node that is told to wait.
    turn: AtomicU64,
    began: Instant,
    /// Whether boots come one upon the other.
    storm: AtomicBool,
    /// The view that the last boot of a storm was of.
    kept: ArcSwapOption<View>,
    told_to_wait: AtomicU64,
    sent_elsewhere: AtomicU64,
    too_often: AtomicU64,
    stalled: AtomicU64,
    built: AtomicU64,
}

/// A node is to come back, or go elsewhere.
struct Busy {
    after_ms: u64,
    elsewhere: Vec<Arc<str>>,
    why: &'static str,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    pub(super) fn new(options: BootOptions) -> Self {
        let seed = u64::try_from(random_id().0 >> 64).unwrap_or_default();
        let admission = BootAdmission::new(options.limits, seed);
        Self {
            options,
            builds: Builds::default(),
            forms: Forms::default(),
            rates: [seed, seed.rotate_left(32)].map(|seed| AskRates::new(&options.limits, seed)),
            waiting: AtomicU32::new(0),
            room: Mutex::new(Room {
                admission,
                seats: Vec::new(),
                free: Vec::new(),
                begun: 0,
                bytes: 0,
                begun_before: 0,
            }),
            turn: AtomicU64::new(seed),
            began: Instant::now(),
            storm: AtomicBool::new(false),
            kept: ArcSwapOption::empty(),
            told_to_wait: AtomicU64::new(0),
            sent_elsewhere: AtomicU64::new(0),
            too_often: AtomicU64::new(0),
            stalled: AtomicU64::new(0),
            built: AtomicU64::new(0),
        }
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) fn counts(&self) -> BootCounts {
        let room = lock(&self.room);
        let (under_way, begun, bytes) = (room.admission.under_way(), room.begun, room.bytes);
        drop(room);
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BootCounts {
            under_way,
            places: self.options.limits.streams_max,
            begun,
            bytes,
            told_to_wait: value(&self.told_to_wait),
            sent_elsewhere: value(&self.sent_elsewhere),
            too_often: value(&self.too_often),
            stalled: value(&self.stalled),
            built: value(&self.built),
        }
    }

    /// A node asks, or somebody in its name. An error says that it asks too often, and after how many milliseconds it may again.
    fn asked(&self, node: &NodeId, is_proven: bool) -> Result<(), u64> {
        match self.rates[usize::from(is_proven)].ask(node.as_str(), self.now()) {
            None => Ok(()),
            Some(after_ms) => {
                self.too_often.fetch_add(1, Ordering::Relaxed);
                Err(after_ms)
            }
        }
    }

    /// A place for a boot, or when to come back and whom else to ask.
    fn open(self: &Arc<Self>, view: &View, insists: bool, turn: Turn) -> Result<Place, Busy> {
        self.leave(view, insists)?;
        let now = self.now();
        let mut room = lock(&self.room);
        match room.admission.ask() {
            Admittance::Now => {
                let seat = Seat { until: now.plus_ms(self.options.limits.may_take_ms(0)), pulse: turn.pulse().clone() };
                let at = room.free.pop().unwrap_or(room.seats.len());
                if at == room.seats.len() {
                    room.seats.push(Some(seat));
                } else {
                    room.seats[at] = Some(seat);
                }
                room.begun += 1;
                drop(room);
                Ok(Place { desk: self.clone(), seat: at, bytes: 0, _turn: turn })
            }
            Admittance::Later { after_ms } => {
                drop(room);
                self.told_to_wait.fetch_add(1, Ordering::Relaxed);
                let why = "this replica serves as many boots as it can";
                Err(Busy { after_ms, elsewhere: self.elsewhere(view, |_| true), why })
            }
        }
    }

    /// Leave to wait until this replica has got further, or when to come back and whom else to ask. No more wait than are served.
    fn wait(self: &Arc<Self>, view: &View, insists: bool) -> Result<Waiting, Busy> {
        self.leave(view, insists)?;
        let waiting = Waiting(self.clone());
        if self.waiting.fetch_add(1, Ordering::Relaxed) < self.options.limits.streams_max {
            return Ok(waiting);
        }
        self.told_to_wait.fetch_add(1, Ordering::Relaxed);
        let why = "as many nodes as this replica serves wait for it to get further";
        Err(Busy { after_ms: self.options.limits.wait_ms_max, elsewhere: self.elsewhere(view, |_| true), why })
    }

    /// Sends a boot to others if this replica leaves it to them.
    fn leave(&self, view: &View, insists: bool) -> Result<(), Busy> {
        let others = if insists { Vec::new() } else { self.left_to(view) };
        if others.is_empty() {
            return Ok(());
        }
        self.sent_elsewhere.fetch_add(1, Ordering::Relaxed);
        let why = "this replica leads, and leaves boots to the others";
        Err(Busy { after_ms: self.options.limits.wait_ms_max, elsewhere: others, why })
    }

    /// To whom a leader leaves boots: the others that it hears of. Nobody if this one serves them.
    fn left_to(&self, view: &View) -> Vec<Arc<str>> {
        if view.status.role != RaftRole::Leader || self.options.while_leading {
            return Vec::new();
        }
        // Whoever was heard of since the last look, or takes entries as they come: every look at the quorum begins the first anew.
        let hears = |peer: &Progress| peer.recent_active || peer.state == "replicate";
        let peers = &view.status.progress;
        if !peers.iter().any(|peer| peer.replica != view.status.replica && hears(peer)) {
            return Vec::new();
        }
        self.elsewhere(view, |id| peers.iter().any(|peer| hears(peer) && peer.replica == id))
    }

    fn elsewhere(&self, view: &View, serves: impl Fn(ReplicaId) -> bool) -> Vec<Arc<str>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let members = &view.state.members;
        let mut others = elsewhere(members, view.status.replica, turn);
        others.retain(|address| members.all().any(|member| member.client_address == *address && serves(member.id)));
        others
    }

    /// The state as it is. A view has a share in every map, counted where all threads count: while boots come one upon the other they
    /// share one view until the state moves.
    fn view(&self, handle: &Handle) -> Seen {
        let kept = self.kept.load();
        if kept.as_ref().is_some_and(|view| handle.is_newest(view)) {
            return Seen(kept);
        }
        let view = Some(handle.view());
        if self.storm.load(Ordering::Relaxed) {
            self.kept.store(view.clone());
        }
        Seen(Guard::from_inner(view))
    }

    /// Ends boots that take longer than they may, with their connections; and lets go of a view that is kept for nobody. To be called
    /// several times a second.
    pub(super) fn look_after(&self) {
        let now = self.now();
        let mut room = lock(&self.room);
        let is_storm = room.begun - room.begun_before > STORM_BOOTS;
        room.begun_before = room.begun;
        self.storm.store(is_storm, Ordering::Relaxed);
        for seat in room.seats.iter_mut().flatten().filter(|seat| seat.until < now) {
            self.stalled.fetch_add(1, Ordering::Relaxed);
            seat.pulse.cut();
            // Told once: the seat is given up when the connection is gone.
            seat.until = Time(u64::MAX);
        }
        drop(room);
        if !is_storm {
            self.kept.store(None);
        }
    }
}

/// So many boots between two looks are a storm. A view that is held costs whoever applies an entry a copy of what it changes.
const STORM_BOOTS: u64 = 100;

/// A view, held by whoever asked for it or kept for many.
struct Seen(Guard<Option<Arc<View>>>);

impl std::ops::Deref for Seen {
    type Target = Arc<View>;
    fn deref(&self) -> &Arc<View> {
        self.0.as_ref().expect("a view was put there")
    }
}

/// A node that waits.
struct Waiting(Arc<Desk>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One of the boots that are served.
pub(super) struct Place {
    desk: Arc<Desk>,
    seat: usize,
    bytes: u64,
    _turn: Turn,
}

impl Place {
    /// So many bytes are to be sent.
    fn takes(&mut self, bytes: u64) {
        self.bytes = bytes;
    }

    /// They are not taken at once: how long it may be held hangs on how many there are.
    pub(super) fn is_waited_for(&self) {
        let bytes = self.bytes;
        let limits = &self.desk.options.limits;
        let more = limits.may_take_ms(bytes) - limits.may_take_ms(0);
        if more > 0
            && let Some(seat) = &mut lock(&self.desk.room).seats[self.seat]
        {
            seat.until = seat.until.plus_ms(more);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let now = self.desk.now();
        let mut room = lock(&self.desk.room);
        room.admission.end(now);
        room.bytes += self.bytes;
        room.seats[self.seat] = None;
        room.free.push(self.seat);
    }
}
