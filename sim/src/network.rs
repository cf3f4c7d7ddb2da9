//! The wire: between replicas, and between clients and replicas.
//!
//! Peers' messages go through the codec and a checksummed frame, and then may be lost, doubled, delayed, overtaken, repeated
//! much later, damaged, or stuck in a queue. Fetches and clients' calls are connections: they break, or do not come about.
//!
//! Directions are cut one by one; how many faults cut one is counted, so overlapping ones heal in any order. A cut that holds
//! loses nothing of what peers send: it is kept back, and arrives in its order when the cut is over.

use crate::draw::Draw;
use crate::event::{Booted, Event, Lost, Run, Told};
use crate::world::{Life, World};
use bytes::Bytes;
use futures_util::future::{Either, select};
use muster_core::admission::{self, Admittance, BootAdmission};
use muster_core::boot::{self, BootRefusal};
use muster_core::codec;
use muster_core::driver;
use muster_core::ids::{Index, NodeId, ReplicaId, Seq, Term, Time};
use muster_core::members::Member;
use muster_core::network::{FetchError, Network};
use muster_core::overlay;
use muster_core::peer::{Envelope, Lane};
use muster_core::request::{AdminOutcome, AdminRequest, Freshness, Outcome, WriteRequest};
use muster_core::service::allow_write;
use muster_core::storage::Library as _;
use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};

/// An end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// A replica.
    Replica(ReplicaId),
    /// All clients and operators.
    Clients,
    /// The agent of a node.
    Agent(u32),
}

/// How a link treats what goes over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quality {
    /// The usual delay, in microseconds; some take up to 16 times as long.
    pub latency_us: u64,
    /// So many in a million are lost.
    pub loss_ppm: u32,
    /// So many in a million arrive twice.
    pub double_ppm: u32,
    /// So many in a million take up to half a second longer.
    pub late_ppm: u32,
    /// So many in a million are damaged.
    pub corrupt_ppm: u32,
    /// For so many in a million, an old message of this link arrives once more.
    pub replay_ppm: u32,
    /// Bytes per second in one direction.
    pub bytes_per_second: u64,
    /// Bytes that may wait in one direction.
    pub queue_bytes: u64,
}

impl Default for Quality {
    fn default() -> Self {
        Self {
            latency_us: 300,
            loss_ppm: 0,
            double_ppm: 0,
            late_ppm: 1_000,
            corrupt_ppm: 0,
            replay_ppm: 0,
            bytes_per_second: 1_250_000_000,
            queue_bytes: 16 << 20,
        }
    }
}

/// Old messages that a link can repeat.
const OLD_MAX: usize = 64;

/// How long a broken connection looks alive, in nanoseconds.
const BREAK_NANOS: u64 = 1_000_000_000;

/// How often somebody who waits for records hears that the connection lives, in nanoseconds.
const SIGN_NANOS: u64 = 2_000_000_000;

#[derive(Default)]
struct Link {
    busy_until: Time,
    old: VecDeque<Frame>,
}

/// How many faults cut a direction: those that lose what is sent, and those that keep it back.
#[derive(Clone, Copy, Default)]
struct Cuts {
    losing: u32,
    holding: u32,
}

/// A message that is kept back.
pub(crate) struct Held {
    id: u64,
    envelope: Arc<Envelope>,
    frame: Frame,
}

/// Messages that are kept back in one direction; more are lost.
const HELD_MAX: usize = 10_000;

/// All links.
pub struct Wire {
    draw: Draw,
    next: u64,
    links: BTreeMap<(ReplicaId, ReplicaId, Lane), Link>,
    cuts: BTreeMap<(End, End), Cuts>,
    held: BTreeMap<(ReplicaId, ReplicaId), VecDeque<Held>>,
    /// The changes in force, by fault; the last one counts.
    changes: BTreeMap<Arc<str>, Quality>,
    quality: Quality,
    /// What each replica sends to nodes.
    boots: BTreeMap<ReplicaId, Outlet>,
    /// What it can send to them, in bytes per second.
    pub(crate) boot_bytes_per_second: u64,
}

/// A replica's way out to the nodes that boot from it.
#[derive(Default)]
struct Outlet {
    busy_until: Time,
    /// Boots under way.
    streams: u64,
    /// What was sent so far.
    bytes: u64,
}

/// What a machine sends at a time before another stream's turn.
const PACKET_BYTES: u64 = 1_500;

/// What a booting node can receive, in bytes per second.
const NODE_BYTES_PER_SECOND: u64 = 125_000_000;

impl Wire {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            draw: Draw::of(seed, "wire", 0),
            next: 0,
            links: BTreeMap::new(),
            cuts: BTreeMap::new(),
            held: BTreeMap::new(),
            changes: BTreeMap::new(),
            quality: Quality::default(),
            boots: BTreeMap::new(),
            boot_bytes_per_second: Quality::default().bytes_per_second,
        }
    }

    /// How long a peer's message waits for the boots' packets between its own.
    fn behind_boots(&self, from: ReplicaId, size: u64) -> u64 {
        let streams = self.boots.get(&from).map_or(0, |outlet| outlet.streams);
        let packets = size.div_ceil(PACKET_BYTES);
        packets * streams * PACKET_BYTES * 1_000_000_000 / self.boot_bytes_per_second.max(1)
    }

    /// When a boot of so many bytes, sent from now on, has arrived.
    fn send_boot(&mut self, from: ReplicaId, bytes: u64, now: Time) -> Time {
        let nanos = bytes * 1_000_000_000 / self.boot_bytes_per_second.max(1);
        let outlet = self.boots.entry(from).or_default();
        outlet.bytes += bytes;
        outlet.busy_until = Time(outlet.busy_until.max(now).0 + nanos);
        outlet.busy_until.max(Time(now.0 + bytes * 1_000_000_000 / NODE_BYTES_PER_SECOND))
    }

    /// What every replica sent to booting nodes, in bytes.
    pub(crate) fn boot_bytes(&self) -> BTreeMap<ReplicaId, u64> {
        self.boots.iter().map(|(id, outlet)| (*id, outlet.bytes)).collect()
    }

    fn quality(&self) -> Quality {
        self.changes.values().next_back().copied().unwrap_or(self.quality)
    }

    /// Sets how links are while no fault changes them.
    pub(crate) fn set_quality(&mut self, quality: Quality) {
        self.quality = quality;
    }

    /// How links are while no fault changes them.
    pub(crate) const fn usual(&self) -> Quality {
        self.quality
    }

    /// A fault changes all links, or lets go of them. What waits in a queue goes on at the new speed.
    pub(crate) fn change(&mut self, id: &Arc<str>, quality: Option<Quality>, now: Time) {
        let before = self.quality().bytes_per_second.max(1);
        match quality {
            Some(quality) => self.changes.insert(id.clone(), quality),
            None => self.changes.remove(id),
        };
        let after = self.quality().bytes_per_second.max(1);
        for link in self.links.values_mut().filter(|link| link.busy_until > now) {
            let waits = u128::from(link.busy_until.0 - now.0) * u128::from(before) / u128::from(after);
            link.busy_until = Time(now.0 + u64::try_from(waits).unwrap_or(u64::MAX / 2));
        }
    }

    /// Cuts a direction once more.
    pub(crate) fn cut(&mut self, from: End, to: End, holds: bool) {
        let cuts = self.cuts.entry((from, to)).or_default();
        if holds {
            cuts.holding += 1;
        } else {
            cuts.losing += 1;
        }
    }

    /// Takes one cut of a direction away; gives what nothing keeps back any more.
    pub(crate) fn mend(&mut self, from: End, to: End, holds: bool) -> VecDeque<Held> {
        let Some(cuts) = self.cuts.get_mut(&(from, to)) else { return VecDeque::new() };
        if holds {
            cuts.holding -= 1;
        } else {
            cuts.losing -= 1;
        }
        let Cuts { losing, holding } = *cuts;
        if losing + holding == 0 {
            self.cuts.remove(&(from, to));
        }
        match (from, to) {
            (End::Replica(from), End::Replica(to)) if holding == 0 => self.held.remove(&(from, to)).unwrap_or_default(),
            _ => VecDeque::new(),
        }
    }

    fn is_cut(&self, from: End, to: End) -> bool {
        self.cuts.contains_key(&(from, to))
    }

    /// Keeps a message of a cut direction back; gives why it is lost instead, if it is.
    fn hold(&mut self, id: u64, envelope: &Arc<Envelope>, frame: Frame) -> Option<Lost> {
        let direction = (End::Replica(envelope.from), End::Replica(envelope.to));
        if self.cuts.get(&direction).is_some_and(|cuts| cuts.losing > 0) {
            return Some(Lost::Cut);
        }
        let held = self.held.entry((envelope.from, envelope.to)).or_default();
        if held.len() >= HELD_MAX {
            return Some(Lost::Queue);
        }
        held.push_back(Held { id, envelope: envelope.clone(), frame });
        None
    }

    /// Whether something is on its way from one replica to another, on either lane.
    pub(crate) fn is_busy(&self, (from, to): (ReplicaId, ReplicaId), now: Time) -> bool {
        let lanes = [Lane::Control, Lane::Bulk];
        lanes.iter().any(|lane| self.links.get(&(from, to, *lane)).is_some_and(|link| link.busy_until > now))
    }

    /// How long it takes to reach somebody who is no replica.
    pub(crate) fn reach(&mut self) -> u64 {
        self.latency()
    }

    fn latency(&mut self) -> u64 {
        let mean = self.quality().latency_us * 1_000;
        mean / 2 + self.draw.around(mean / 2)
    }
}

/// The network as one process uses it.
#[derive(Clone)]
pub struct SimNetwork {
    world: Arc<World>,
    life: Arc<Life>,
}

impl SimNetwork {
    /// The network for a process.
    #[must_use]
    pub fn new(world: Arc<World>, life: Arc<Life>) -> Self {
        Self { world, life }
    }
}

/// Puts a frame on its way. The first copy has been announced under `id`.
fn transmit(world: &Arc<World>, id: u64, envelope: &Arc<Envelope>, frame: Frame, again: bool) {
    let now = world.now();
    let lane = envelope.message.lane();
    let key = (envelope.from, envelope.to, lane);
    // Who shares the cable shares what it carries.
    let shared = world.beside().is_some_and(|beside| beside.wire().is_busy((key.0, key.1), now));
    let mut wire = world.wire();
    let quality = wire.quality();
    let size = frame.len() as u64 + 32;
    if wire.is_cut(End::Replica(envelope.from), End::Replica(envelope.to)) {
        let lost = wire.hold(id, envelope, frame);
        drop(wire);
        if let Some(why) = lost {
            world.emit(&Event::Drop { id, envelope: envelope.clone(), why });
        }
        return;
    }
    if wire.draw.ppm(quality.loss_ppm) {
        drop(wire);
        return world.emit(&Event::Drop { id, envelope: envelope.clone(), why: Lost::Loss });
    }
    let nanos = size * 1_000_000_000 * (1 + u64::from(shared)) / quality.bytes_per_second.max(1);
    let queue_nanos = quality.queue_bytes * 1_000_000_000 / quality.bytes_per_second.max(1);
    let link = wire.links.entry(key).or_default();
    let free = link.busy_until.max(now);
    if free.0 - now.0 > queue_nanos {
        drop(wire);
        return world.emit(&Event::Drop { id, envelope: envelope.clone(), why: Lost::Queue });
    }
    link.busy_until = Time(free.0 + nanos);
    let behind = wire.behind_boots(envelope.from, size);
    let mut at = free.0 + nanos + behind + wire.latency();
    if wire.draw.ppm(quality.late_ppm) {
        at += wire.draw.below(500_000_000);
    }
    let doubled = !again && wire.draw.ppm(quality.double_ppm);
    let mut old = None;
    if quality.replay_ppm > 0 && !again {
        let replays = wire.draw.ppm(quality.replay_ppm);
        let place = wire.draw.number();
        let link = wire.links.entry(key).or_default();
        if replays && !link.old.is_empty() {
            let place = usize::try_from(place % link.old.len() as u64).unwrap_or(0);
            old = link.old.get(place).cloned();
        }
        if link.old.len() >= OLD_MAX {
            link.old.pop_front();
        }
        link.old.push_back(frame.clone());
    }
    let copy = doubled.then(|| frame.clone());
    let arrives = if wire.draw.ppm(quality.corrupt_ppm) {
        let place = wire.draw.place(frame.len());
        frame.damaged(place, 1 << wire.draw.below(8))
    } else {
        frame
    };
    drop(wire);
    let to = (world.clone(), envelope.clone());
    world.agenda.at(Time(at), move || arrive(&to.0, id, &to.1, arrives));
    if let Some(copy) = copy {
        announce(world, envelope, copy, true);
    }
    if let Some(old) = old
        && let Ok(envelope) = codec::decode_envelope(&old.body)
    {
        announce(world, &Arc::new(envelope), old, true);
    }
}

/// A message as it is on the wire: the encoded envelope behind its checksum.
#[derive(Clone, Debug)]
struct Frame {
    sum: u32,
    body: Bytes,
}

const CHECKSUM_BYTES: usize = 4;

impl Frame {
    fn of(envelope: &Envelope) -> Self {
        let body = codec::encode_envelope(envelope);
        Self { sum: crc32fast::hash(&body), body }
    }

    fn len(&self) -> usize {
        CHECKSUM_BYTES + self.body.len()
    }

    /// The same with one bit of a byte flipped.
    fn damaged(&self, place: usize, bit: u8) -> Self {
        let mut frame = self.clone();
        match place.checked_sub(CHECKSUM_BYTES) {
            Some(place) => {
                let mut body = self.body.to_vec();
                body[place] ^= bit;
                frame.body = body.into();
            }
            None => frame.sum ^= u32::from(bit) << (8 * place),
        }
        frame
    }

    fn is_whole(&self) -> bool {
        crc32fast::hash(&self.body) == self.sum
    }
}

fn announce(world: &Arc<World>, envelope: &Arc<Envelope>, frame: Frame, again: bool) {
    let id = {
        let mut wire = world.wire();
        wire.next += 1;
        wire.next
    };
    let bytes = (u32::try_from(frame.len()).unwrap_or(u32::MAX), frame.sum);
    world.emit(&Event::Send { id, envelope: envelope.clone(), bytes, again });
    transmit(world, id, envelope, frame, again);
}

/// What was kept back goes on its way, one after the other.
pub(crate) fn release(world: &Arc<World>, held: VecDeque<Held>) {
    let mut at = world.now();
    for Held { id, envelope, frame } in held {
        at.0 += world.wire().latency();
        let world_then = world.clone();
        world.agenda.at(at, move || arrive(&world_then, id, &envelope, frame));
    }
}

fn arrive(world: &Arc<World>, id: u64, sent: &Arc<Envelope>, frame: Frame) {
    let lost = |why| world.emit(&Event::Drop { id, envelope: sent.clone(), why });
    {
        let mut wire = world.wire();
        if wire.is_cut(End::Replica(sent.from), End::Replica(sent.to)) {
            let why = wire.hold(id, sent, frame);
            drop(wire);
            return why.into_iter().for_each(lost);
        }
    }
    if !frame.is_whole() {
        return lost(Lost::Checksum);
    }
    let Some((handle, _)) = world.front(sent.to) else { return lost(Lost::Down) };
    match codec::decode_envelope(&frame.body) {
        Ok(envelope) => {
            world.emit(&Event::Deliver { id, envelope: sent.clone() });
            handle.deliver(envelope);
        }
        Err(error) => panic!("a message with a good checksum does not decode: {error}"),
    }
}

/// A message that nobody sent arrives at a replica, as if from a peer: through the codec, and past every link.
pub(crate) fn forge(world: &Arc<World>, at: ReplicaId, envelope: Envelope) {
    let Some((handle, _)) = world.front(at) else { return };
    let body = codec::encode_envelope(&envelope);
    let envelope = Arc::new(envelope);
    world.emit(&Event::Forged { at, envelope });
    match codec::decode_envelope(&body) {
        Ok(envelope) => handle.deliver(envelope),
        Err(error) => panic!("what was encoded does not decode: {error}"),
    }
    // A member of a newer version may say the same in its own way.
    let mut newer = body.to_vec();
    newer[0] = codec::FORMAT + 1;
    let (found, known) = (newer[0].to_string(), codec::FORMAT.to_string());
    let told = codec::decode_envelope(&newer.into()).map_or_else(|error| error.to_string(), |_| String::new());
    assert!(told.contains(&found) && told.contains(&known), "a message of format {found} is told as {told:?}");
}

impl Network for SimNetwork {
    fn send(&self, envelope: Envelope) {
        // A process that was killed in this very step sends nothing any more.
        if self.life.is_over() {
            return;
        }
        let frame = Frame::of(&envelope);
        announce(&self.world, &Arc::new(envelope), frame, false);
    }

    /// Every link is there from the start; addresses are production's business.
    fn know(&self, _: &[Member]) {}

    async fn fetch_page(&self, from: ReplicaId, index: Index, term: Term, page: u32) -> Result<Bytes, FetchError> {
        let fetched = self.fetch(from, move |library| async move { library.page(index, term, page).await }).await?;
        fetched.ok_or(FetchError::Gone)
    }

    async fn fetch_records(&self, from: ReplicaId, after: Seq, upto: Seq) -> Result<Vec<(Seq, Bytes)>, FetchError> {
        self.fetch(from, move |library| async move { library.records(after, upto, 256 << 10).await }).await
    }
}

type SimLibrary = muster_storage::FileLibrary<crate::disk::SimDisk>;

impl SimNetwork {
    /// Has a peer's process read something of what it keeps.
    async fn fetch<T, F>(
        &self,
        from: ReplicaId,
        read: impl FnOnce(SimLibrary) -> F + Send + 'static,
    ) -> Result<T, FetchError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, muster_core::storage::StorageError>> + Send + 'static,
    {
        let me = End::Replica(self.life.replica);
        let read = move |world: Arc<World>, life: Arc<Life>| async move {
            let library = world.machines().get(&life.replica).and_then(|machine| machine.library.clone());
            match library {
                Some(library) => read(library).await.map_err(|error| error.to_string()),
                None => Err("it does not serve".into()),
            }
        };
        match connect(&self.world, me, from, read).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(problem)) => Err(FetchError::Unreachable { problem }),
            Err(Broken::Unreachable) => Err(FetchError::Unreachable { problem: "no connection".into() }),
            Err(Broken::Lost) => Err(FetchError::Unreachable { problem: "the connection broke".into() }),
        }
    }
}

/// Why a call has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The other side was never reached.
    Unreachable,
    /// The connection broke; the other side may have done what was asked.
    Lost,
}

/// Has the process of a replica do something, over a connection.
async fn connect<T, F>(
    world: &Arc<World>,
    from: End,
    to: ReplicaId,
    serve: impl FnOnce(Arc<World>, Arc<Life>) -> F + Send + 'static,
) -> Result<T, Broken>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let there = End::Replica(to);
    let cut = || {
        let wire = world.wire();
        wire.is_cut(from, there) || wire.is_cut(there, from)
    };
    if cut() {
        world.agenda.sleep(BREAK_NANOS).await;
        return Err(Broken::Unreachable);
    }
    let latency = world.wire().latency();
    world.agenda.sleep(latency).await;
    let Some((_, life)) = world.front(to) else { return Err(Broken::Unreachable) };
    let node = world.machines().get(&to).map(|machine| machine.node);
    let Some(node) = node.and_then(|node| world.runtime.get_node(node)) else { return Err(Broken::Unreachable) };
    let (answer, mut answered) = futures_channel::oneshot::channel();
    let (its_world, its_life) = (world.clone(), life.clone());
    drop(node.spawn(async move {
        let value = serve(its_world, its_life).await;
        drop(answer.send(value));
    }));
    // A cut connection is noticed after a while without a sign of life.
    let mut silent = 0;
    let value = loop {
        let pause = pin!(world.agenda.sleep(BREAK_NANOS));
        match select(&mut answered, pause).await {
            Either::Left((Ok(value), _)) => break value,
            Either::Left((Err(_), _)) => return Err(Broken::Lost),
            Either::Right(_) => {
                silent = if cut() { silent + 1 } else { 0 };
                if silent > 1 {
                    return Err(Broken::Lost);
                }
            }
        }
    };
    if cut() {
        world.agenda.sleep(BREAK_NANOS).await;
        return Err(Broken::Lost);
    }
    let latency = world.wire().latency();
    world.agenda.sleep(latency).await;
    Ok(value)
}

/// Somebody has a replica carry out a write.
///
/// # Errors
/// [`Broken`].
pub async fn write(
    world: &Arc<World>,
    from: End,
    to: ReplicaId,
    write: WriteRequest,
    forward: bool,
) -> Result<Outcome, Broken> {
    connect(world, from, to, move |world, life| async move {
        match world.front(life.replica) {
            Some((handle, _)) => match allow_write(&write, &handle.view().state) {
                Ok(()) => handle.write(write, forward).await,
                Err(why) => Outcome::NotApplied(why),
            },
            None => std::future::pending().await,
        }
    })
    .await
}

/// Somebody reads the journal's head.
///
/// # Errors
/// [`Broken`].
pub async fn read(
    world: &Arc<World>,
    from: End,
    to: ReplicaId,
    freshness: Freshness,
) -> Result<Result<(Arc<muster_core::front::View>, Told), muster_core::request::NotApplied>, Broken> {
    connect(world, from, to, move |world, life| async move {
        let Some((handle, _)) = world.front(life.replica) else { return std::future::pending().await };
        let run: Run = life.run;
        handle.read(freshness).await.map(|view| {
            let told = Told::Head {
                replica: life.replica,
                run,
                applied: view.status.applied,
                sequence: view.state.sequence(),
                head: view.state.head(),
            };
            (view, told)
        })
    })
    .await
}

/// What a booting node is answered.
#[derive(Clone, Debug)]
pub enum Boot {
    /// Its boot, or why there is none.
    Told(Told),
    /// The replica serves as many as it can.
    Later {
        /// When to come back, in milliseconds.
        after_ms: u64,
        /// Who may be less busy.
        elsewhere: Vec<Arc<str>>,
    },
}

/// A boot under way: one of the replica's streams, and a part of its link.
struct Stream {
    world: Arc<World>,
    replica: ReplicaId,
    admission: Arc<Mutex<BootAdmission>>,
}

impl Stream {
    fn open(world: &Arc<World>, replica: ReplicaId) -> Result<Self, Admittance> {
        let admission = world.machines().get(&replica).expect("it was just reached").admission.clone();
        let admittance = lock(&admission).ask();
        match admittance {
            Admittance::Now => {
                world.wire().boots.entry(replica).or_default().streams += 1;
                Ok(Self { world: world.clone(), replica, admission })
            }
            Admittance::Later { .. } => Err(admittance),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        lock(&self.admission).end(self.world.now());
        if let Some(outlet) = self.world.wire().boots.get_mut(&self.replica) {
            outlet.streams -= 1;
        }
    }
}

fn lock(admission: &Mutex<BootAdmission>) -> MutexGuard<'_, BootAdmission> {
    admission.lock().expect("nobody panics holding it")
}

/// A node boots from a replica, as a server answers it: from the stored overlay, or from one built on the spot, which the leader
/// is asked to store; if the replica has a stream for it.
///
/// # Errors
/// [`Broken`].
pub async fn boot(
    world: &Arc<World>,
    from: End,
    to: ReplicaId,
    node: NodeId,
    at_least: Seq,
) -> Result<Result<Boot, muster_core::request::NotApplied>, Broken> {
    let id = world.wire().draw.wide();
    connect(world, from, to, move |world, life| async move {
        let Some((handle, _)) = world.front(life.replica) else { return std::future::pending().await };
        let freshness = if at_least == Seq(0) { Freshness::Local } else { Freshness::AtLeast(at_least) };
        let view = handle.read(freshness).await?;
        let stream = match Stream::open(&world, life.replica) {
            Ok(stream) => stream,
            Err(Admittance::Later { after_ms }) => {
                let turn = world.wire().draw.number();
                let elsewhere = admission::elsewhere(&view.state.members, life.replica, turn);
                return Ok(Boot::Later { after_ms, elsewhere });
            }
            Err(Admittance::Now) => unreachable!("it would have a stream"),
        };
        let plan = match boot::plan(&view.state, &node) {
            Err(BootRefusal::NoOverlay { vcluster }) => match overlay::build(&view.state, &vcluster) {
                Ok(built) => {
                    let store = driver::store_overlay(&view.state, vcluster.clone(), built.clone(), id);
                    drop(madsim::task::spawn(async move { handle.write(store, true).await }));
                    boot::plan_with(&view.state, &node, built)
                }
                Err(_) => Err(BootRefusal::NoOverlay { vcluster }),
            },
            planned => planned,
        };
        let booted = Booted { applied: view.status.applied, sequence: view.state.sequence(), plan };
        drop(view);
        if let Ok(plan) = &booted.plan {
            // The overlay's bytes are shared: what crosses the wire is their number.
            let bytes = (plan.overlay.data.len() + plan.delta.len()) as u64;
            let arrived = world.wire().send_boot(life.replica, bytes, world.now());
            world.agenda.sleep_until(arrived).await;
        }
        drop(stream);
        Ok(Boot::Told(Told::Booted { replica: life.replica, booted: Arc::new(booted) }))
    })
    .await
}

/// A subscriber waits for records after a sequence, as a server answers it.
///
/// # Errors
/// [`Broken`].
pub async fn records(world: &Arc<World>, to: ReplicaId, after: Seq) -> Result<Option<Told>, Broken> {
    connect(world, End::Clients, to, move |world, life| async move {
        let Some((handle, _)) = world.front(life.replica) else { return std::future::pending().await };
        handle.recorded(after.next()).await;
        let upto = handle.view().state.sequence();
        let library = world.machines().get(&life.replica).and_then(|machine| machine.library.clone());
        let records = library?.records(after, upto, 16 << 10).await.ok()?;
        (!records.is_empty()).then(|| Told::Records { replica: life.replica, records: records.into() })
    })
    .await
}

/// An agent waits for records after a sequence, as a server answers it: none are a sign of life.
///
/// # Errors
/// [`Broken`].
pub async fn records_or_a_sign(
    world: &Arc<World>,
    from: End,
    to: ReplicaId,
    after: Seq,
) -> Result<Option<Vec<(Seq, Bytes)>>, Broken> {
    connect(world, from, to, move |world, life| async move {
        let Some((handle, _)) = world.front(life.replica) else { return std::future::pending().await };
        let there = pin!(handle.recorded(after.next()));
        let sign = pin!(world.agenda.sleep(SIGN_NANOS));
        let _first = select(there, sign).await;
        let upto = handle.view().state.sequence();
        if upto <= after {
            return Some(Vec::new());
        }
        let library = world.machines().get(&life.replica).and_then(|machine| machine.library.clone());
        library?.records(after, upto, 16 << 10).await.ok()
    })
    .await
}

/// An operator asks something of a replica.
///
/// # Errors
/// [`Broken`].
pub async fn admin(world: &Arc<World>, to: ReplicaId, request: AdminRequest) -> Result<AdminOutcome, Broken> {
    connect(world, End::Clients, to, move |world, life| async move {
        match world.front(life.replica) {
            Some((handle, _)) => handle.admin(request).await,
            None => std::future::pending().await,
        }
    })
    .await
}
