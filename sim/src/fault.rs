//! Carrying faults out, and taking them back.
//!
//! Who is meant is looked up when a fault begins and kept until it ends, so that what was broken is what is mended. A fault
//! that nothing can be done to (no leader, say) is told and does nothing.

use crate::agents::harm;
use crate::disk::{Image, Point};
use crate::draw::Draw;
use crate::event::{Ending, Event};
use crate::hostile;
use crate::network::{self, End, Quality};
use crate::replica;
use crate::scenario::{Back, DiskChange, Fault, FaultItem, LinkChange, MS, Pick, SECOND, Way};
use crate::world::World;
use muster_core::ids::ReplicaId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Who is spared: healed, while everybody else stays as broken as they are.
pub type Spared = BTreeSet<ReplicaId>;

/// The faults that are on.
pub struct Faults {
    world: Arc<World>,
    active: Mutex<BTreeMap<Arc<str>, Active>>,
    /// What disks were when a rewind that has not begun yet goes back to.
    images: Mutex<BTreeMap<Arc<str>, BTreeMap<ReplicaId, Image>>>,
    draw: Mutex<Draw>,
    /// Nothing breaks any more.
    calm: AtomicBool,
}

/// What one fault did.
struct Active {
    fault: Fault,
    victims: Vec<ReplicaId>,
    directions: Vec<(End, End)>,
    /// Whether the directions are cut at the moment.
    cut: bool,
    /// Whether a crash came to its point.
    reached: bool,
}

/// How much newer the format of what a newer version writes is.
pub const NEWER_BY: u32 = 8;

impl Faults {
    /// No faults yet.
    #[must_use]
    pub fn new(world: Arc<World>) -> Arc<Self> {
        let draw = Mutex::new(world.draw("faults", 0));
        Arc::new(Self { world, active: Mutex::default(), images: Mutex::default(), draw, calm: AtomicBool::new(false) })
    }

    fn draw<T>(&self, from: impl FnOnce(&mut Draw) -> T) -> T {
        from(&mut self.draw.lock().expect("nobody panics holding it"))
    }

    fn active<T>(&self, id: &str, change: impl FnOnce(&mut Active) -> T) -> Option<T> {
        self.active.lock().expect("nobody panics holding it").get_mut(id).map(change)
    }

    /// Puts every item on the agenda.
    pub fn plan(self: &Arc<Self>, items: &[FaultItem]) {
        let began = *self.world.began.lock().expect("nobody panics holding it");
        for item in items {
            // An image must be taken before the disk goes back to it.
            if let Fault::Rewind { by, .. } = &item.fault {
                let (me, id) = (self.clone(), item.id.clone());
                let taken = item.at.saturating_sub(*by);
                self.world.agenda.at(plus(began, taken), move || me.take_images(id));
            }
            let (me, item) = (self.clone(), item.clone());
            self.world.agenda.at(plus(began, item.at), move || me.begin(&item));
        }
    }

    fn pick(&self, picks: &[Pick]) -> Vec<ReplicaId> {
        let all = self.world.replicas();
        let leader = self.world.leader();
        let mut found = Vec::new();
        for pick in picks {
            match pick {
                Pick::Replica(number) => found.extend(all.contains(&ReplicaId(*number)).then_some(ReplicaId(*number))),
                Pick::Leader => found.extend(leader),
                Pick::Follower => {
                    let others: Vec<ReplicaId> =
                        all.iter().copied().filter(|id| Some(*id) != leader && self.world.is_up(*id)).collect();
                    if !others.is_empty() {
                        found.push(others[self.draw(|draw| draw.place(others.len()))]);
                    }
                }
                Pick::All => found.extend(&all),
                Pick::Others | Pick::Clients => {}
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    fn ends(&self, picks: &[Pick], besides: &[ReplicaId]) -> Vec<End> {
        let mut ends: Vec<End> = self.pick(picks).into_iter().map(End::Replica).collect();
        if picks.contains(&Pick::Others) {
            ends.extend(self.world.replicas().into_iter().filter(|id| !besides.contains(id)).map(End::Replica));
        }
        if picks.contains(&Pick::Clients) {
            ends.push(End::Clients);
        }
        ends.sort_unstable();
        ends.dedup();
        ends
    }

    fn directions(&self, from: &[Pick], to: &[Pick], way: Way) -> Vec<(End, End)> {
        let one = self.pick(from);
        let other = self.pick(to);
        let (left, right) = (self.ends(from, &other), self.ends(to, &one));
        let mut directions = Vec::new();
        for a in &left {
            for b in &right {
                if a == b {
                    continue;
                }
                if way != Way::In {
                    directions.push((*a, *b));
                }
                if way != Way::Out {
                    directions.push((*b, *a));
                }
            }
        }
        directions
    }

    fn ring(&self) -> Vec<(End, End)> {
        let all = self.world.replicas();
        let count = all.len();
        let mut directions = Vec::new();
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                let apart = (i + count - j) % count;
                if apart > 1 && apart < count - 1 {
                    directions.push((End::Replica(*a), End::Replica(*b)));
                }
            }
        }
        directions
    }

    fn begin(self: &Arc<Self>, item: &FaultItem) {
        if self.calm.load(Ordering::Relaxed) || self.world.is_over() {
            return;
        }
        let victims = self.pick(&crate::scenario::whom(&item.fault));
        let mut active =
            Active { fault: item.fault.clone(), victims, directions: Vec::new(), cut: false, reached: false };
        match &item.fault {
            Fault::Cut { from, to, way, .. } => active.directions = self.directions(from, to, *way),
            Fault::Ring => active.directions = self.ring(),
            Fault::Crash { .. }
            | Fault::CrashLoop { .. }
            | Fault::Pause { .. }
            | Fault::SlowProcess { .. }
            | Fault::Link(_)
            | Fault::Disk { .. }
            | Fault::Rot { .. }
            | Fault::Wipe { .. }
            | Fault::Rewind { .. }
            | Fault::Clock { .. }
            | Fault::Hostile { .. }
            | Fault::Driver { .. }
            | Fault::Downgrade { .. }
            | Fault::Agent(_) => {}
        }
        let names: Vec<String> = active.victims.iter().map(|id| format!("r{id}")).collect();
        let names = match &item.fault {
            Fault::Agent(fault) => harm::names(&self.world, &item.id, fault),
            _ => names.join(" "),
        };
        let what = format!("{} on {names}", crate::scenario::fault_text(&item.fault));
        self.world.emit(&Event::Fault { id: item.id.clone(), begins: true, what });
        self.active.lock().expect("nobody panics holding it").insert(item.id.clone(), active);
        self.set(&item.id, true);
        if let Some(lasts) = item.lasts {
            let (me, id) = (self.clone(), item.id.clone());
            self.world.agenda.after(lasts, move || me.end(&id, None));
        }
    }

    /// Ends a fault; for the spared alone, if any are named.
    fn end(self: &Arc<Self>, id: &Arc<str>, spared: Option<&Spared>) {
        // While the others are frozen as they are, nothing ends by itself.
        if spared.is_none() && self.calm.load(Ordering::Relaxed) {
            return;
        }
        self.mend(id, spared);
    }

    fn mend(self: &Arc<Self>, id: &Arc<str>, spared: Option<&Spared>) {
        let whole = self.active(id, |active| match spared {
            None => true,
            Some(spared) => {
                let stays = |end: &End| matches!(end, End::Replica(id) if !spared.contains(id));
                active.victims.iter().all(|id| spared.contains(id))
                    && !active.directions.iter().any(|(a, b)| stays(a) || stays(b))
            }
        });
        let Some(whole) = whole else { return };
        if whole {
            self.set(id, false);
            let ended = self.active.lock().expect("nobody panics holding it").remove(id);
            let missed = ended
                .is_some_and(|active| matches!(active.fault, Fault::Crash { point: Some(_), .. }) && !active.reached);
            let what = if missed { "its point was never reached".into() } else { String::new() };
            self.world.emit(&Event::Fault { id: id.clone(), begins: false, what });
            return;
        }
        // A part of it ends: split it into what is mended and what stays.
        let Some(spared) = spared else { return };
        let mended = self.active(id, |active| {
            let (healed, stay): (Vec<_>, Vec<_>) = active.victims.iter().partition(|id| spared.contains(id));
            let free =
                |end: &End| matches!(end, End::Clients) || matches!(end, End::Replica(id) if spared.contains(id));
            let (open, shut): (Vec<_>, Vec<_>) = active.directions.iter().partition(|(a, b)| free(a) && free(b));
            active.victims = stay;
            active.directions = shut;
            Active { fault: active.fault.clone(), victims: healed, directions: open, cut: active.cut, reached: false }
        });
        let Some(mended) = mended else { return };
        let part: Arc<str> = format!("{id}/healed").into();
        self.active.lock().expect("nobody panics holding it").insert(part.clone(), mended);
        // What holds a machine down is named by the fault's own id.
        let victims = self.active(&part, |active| active.victims.clone()).unwrap_or_default();
        let mut machines = self.world.machines();
        for victim in &victims {
            if let Some(machine) = machines.get_mut(victim)
                && machine.held_down.remove(id)
            {
                machine.held_down.insert(part.clone());
            }
        }
        drop(machines);
        self.set(&part, false);
        let part = self.active.lock().expect("nobody panics holding it").remove(&part);
        if part.is_some_and(|part| part.reached) {
            self.reached(id);
        }
    }

    fn reached(&self, id: &Arc<str>) {
        self.active(id, |active| active.reached = true);
        self.world.note_reached_point(&name_of(id));
    }

    /// Ends everything for these replicas; the others stay as broken as they are, and nothing breaks any more.
    pub fn heal(self: &Arc<Self>, spared: &Spared) {
        self.calm.store(true, Ordering::Relaxed);
        let ids: Vec<Arc<str>> = self.active.lock().expect("nobody panics holding it").keys().cloned().collect();
        for id in ids {
            self.mend(&id, Some(spared));
        }
    }

    /// Takes an image of every disk: whose will go back to it is known when the fault begins.
    fn take_images(&self, id: Arc<str>) {
        let images = self.world.machines().iter().map(|(replica, machine)| (*replica, machine.store.image())).collect();
        self.images.lock().expect("nobody panics holding it").insert(id, images);
    }

    fn rewind(&self, id: &str, victims: &[ReplicaId]) {
        let images = self.images.lock().expect("nobody panics holding it").remove(id);
        let mut images: BTreeMap<ReplicaId, Image> = images.unwrap_or_default();
        for victim in victims {
            let store = self.world.machines().get(victim).map(|machine| machine.store.clone());
            if let (Some(store), Some(image)) = (store, images.remove(victim)) {
                self.world.note_amnesia(*victim, "its disk went back to an old image");
                store.restore(image);
            }
        }
    }

    /// Makes the world as the fault wants it, or as it was.
    fn set(self: &Arc<Self>, id: &Arc<str>, on: bool) {
        let Some((fault, victims)) = self.active(id, |active| (active.fault.clone(), active.victims.clone())) else {
            return;
        };
        match &fault {
            Fault::Crash { point, nth, power, .. } => self.crash(id, &victims, on, *point, *nth, *power),
            Fault::CrashLoop { every, power, .. } => self.crash_loop(id, &victims, on, *every, *power),
            Fault::Pause { .. } => {
                for victim in &victims {
                    self.pause(*victim, on);
                }
            }
            Fault::SlowProcess { percent, .. } => {
                for victim in &victims {
                    self.pause(*victim, on);
                }
                if on {
                    self.slow_process(id, *percent, true);
                }
            }
            Fault::Cut { flap, .. } => {
                self.cut(id, on);
                if let (true, Some(every)) = (on, flap) {
                    self.flap(id, *every);
                }
            }
            Fault::Ring => self.cut(id, on),
            Fault::Link(change) => {
                let now = self.world.now();
                let mut wire = self.world.wire();
                let quality = on.then(|| worse(wire.usual(), change));
                wire.change(id, quality, now);
                drop(wire);
                // The cable is the same.
                if let Some(beside) = self.world.beside() {
                    beside.wire().change(id, quality, now);
                }
            }
            Fault::Disk { how, .. } => {
                for victim in &victims {
                    self.disk(*victim, how, on);
                }
            }
            Fault::Rot { file, last, .. } => {
                if on {
                    for victim in &victims {
                        let store = self.world.machines().get(victim).map(|machine| machine.store.clone());
                        if let Some((file, at)) = store.and_then(|store| store.rot(file, *last)) {
                            self.world.note_loss(*victim, &format!("a bit of {file} at {at} rotted"));
                        }
                    }
                }
            }
            Fault::Wipe { back, .. } => {
                for victim in &victims {
                    if on {
                        self.hold(id, *victim, &Ending::Killed);
                        if *back == Back::Amnesiac {
                            self.world.note_amnesia(*victim, "its disk was wiped");
                        } else {
                            self.world.note_forgets(*victim, "its disk was wiped");
                        }
                        if let Some(machine) = self.world.machines().get_mut(victim) {
                            machine.store.wipe();
                            machine.back = Some(*back);
                            if *back == Back::Stranger {
                                // Another one each time: nobody is a member again by being wiped twice.
                                let incarnation = &mut machine.identity.incarnation.0;
                                *incarnation = incarnation.wrapping_add(1 << 100);
                            }
                        }
                    } else {
                        self.release(id, *victim);
                    }
                }
            }
            Fault::Rewind { .. } => {
                for victim in &victims {
                    if on {
                        self.hold(id, *victim, &Ending::Killed);
                    } else {
                        self.release(id, *victim);
                    }
                }
                if on {
                    self.rewind(id, &victims);
                }
            }
            Fault::Clock { step_ms, drift_ppm, freeze, .. } => {
                let machines = self.world.machines();
                for machine in victims.iter().filter_map(|victim| machines.get(victim)) {
                    machine.oscillator.step(if on { *step_ms } else { -step_ms });
                    machine.oscillator.drift(if on { *drift_ppm } else { 0 });
                    if *freeze {
                        machine.oscillator.freeze(on);
                    }
                }
            }
            Fault::Hostile { every, .. } => {
                if on {
                    self.hostile(id, *every);
                }
            }
            Fault::Driver { late, early, .. } => {
                let machines = self.world.machines();
                for machine in victims.iter().filter_map(|victim| machines.get(victim)) {
                    machine.freedom.set(if on { *late } else { 0 }, if on { *early } else { 0 });
                }
            }
            Fault::Agent(fault) => harm::set(&self.world, id, fault, on),
            Fault::Downgrade { file, .. } => {
                for victim in &victims {
                    self.downgrade(*victim, file, on);
                }
            }
        }
    }

    /// A process dies, and its machine stays down as long as the fault lasts.
    fn hold(&self, id: &Arc<str>, victim: ReplicaId, why: &Ending) {
        // A host that loses power carries the other group's process as well.
        let beside = self.world.beside().filter(|_| *why == Ending::PowerLost);
        for world in [Some(self.world.clone()), beside].into_iter().flatten() {
            if let Some(machine) = world.machines().get_mut(&victim) {
                machine.held_down.insert(id.clone());
            }
            world.kill(victim, why.clone());
        }
    }

    fn release(&self, id: &Arc<str>, victim: ReplicaId) {
        for world in [Some(self.world.clone()), self.world.beside()].into_iter().flatten() {
            if let Some(machine) = world.machines().get_mut(&victim) {
                machine.held_down.remove(id);
            }
            replica::start(&world, victim, None);
        }
    }

    /// Forged messages, until the fault ends.
    fn hostile(self: &Arc<Self>, id: &Arc<str>, every: u64) {
        let (me, id) = (self.clone(), id.clone());
        let pause = self.draw(|draw| draw.around(every));
        self.world.agenda.after(pause.max(MS), move || {
            if me.world.is_over() {
                return;
            }
            if let Some(victims) = me.active(&id, |active| active.victims.clone()) {
                for victim in victims {
                    let forged = me.draw(|draw| hostile::forge(&me.world, draw, victim));
                    if let Some(envelope) = forged {
                        network::forge(&me.world, victim, envelope);
                    }
                }
                me.hostile(&id, every);
            }
        });
    }

    /// Starts a replica on what a newer version left, and again when the newer version is back.
    fn downgrade(self: &Arc<Self>, victim: ReplicaId, file: &str, on: bool) {
        self.world.kill(victim, Ending::Killed);
        let store = self.world.machines().get(&victim).map(|machine| machine.store.clone());
        let Some(store) = store else { return };
        // Another fault may have done it already, or a wiped disk may have got files of today's version meanwhile.
        let found = store.change_format(file, |format| match (on, format > NEWER_BY) {
            (true, false) => format + NEWER_BY,
            (false, true) => format - NEWER_BY,
            (true, true) | (false, false) => format,
        });
        self.world.note_downgrade(victim, on && found.is_some());
        if on && found.is_some() {
            self.world.note_disk_fault(victim, "a newer version wrote its files");
        }
        replica::start(&self.world, victim, None);
    }

    fn crash(
        self: &Arc<Self>,
        id: &Arc<str>,
        victims: &[ReplicaId],
        on: bool,
        point: Option<Point>,
        nth: u64,
        power: bool,
    ) {
        let why = || if power { Ending::PowerLost } else { Ending::Killed };
        for victim in victims {
            let store = self.world.machines().get(victim).map(|machine| machine.store.clone());
            let Some(store) = store else { continue };
            match (on, point) {
                (true, None) => self.hold(id, *victim, &why()),
                (true, Some(Point::Recovery)) => {
                    // Dies now, and again while it recovers.
                    self.world.kill(*victim, why());
                    store.set_trap(&name_of(id), Point::Recovery, nth, why());
                    replica::start(&self.world, *victim, None);
                }
                (true, Some(point)) => store.set_trap(&name_of(id), point, nth, why()),
                (false, _) => {
                    if point.is_some() && store.clear_trap(&name_of(id)) {
                        self.reached(id);
                    }
                    self.release(id, *victim);
                }
            }
        }
    }

    fn crash_loop(self: &Arc<Self>, id: &Arc<str>, victims: &[ReplicaId], on: bool, every: u64, power: bool) {
        for victim in victims {
            if on {
                self.world.kill(*victim, if power { Ending::PowerLost } else { Ending::Killed });
            }
            replica::start(&self.world, *victim, None);
        }
        if on {
            let (me, id) = (self.clone(), id.clone());
            let pause = every / 2 + self.draw(|draw| draw.around(every / 2));
            self.world.agenda.after(pause.max(MS), move || {
                if me.world.is_over() {
                    return;
                }
                if let Some(victims) = me.active(&id, |active| active.victims.clone()) {
                    me.crash_loop(&id, &victims, true, every, power);
                }
            });
        }
    }

    fn pause(&self, victim: ReplicaId, on: bool) {
        for world in [Some(self.world.clone()), self.world.beside()].into_iter().flatten() {
            let node = world.machines().get(&victim).map(|machine| machine.node);
            let Some(node) = node else { continue };
            if on {
                world.runtime.pause(node);
            } else {
                world.runtime.resume(node);
            }
        }
    }

    fn slow_process(self: &Arc<Self>, id: &Arc<str>, percent: u64, paused: bool) {
        let turn = 20 * MS;
        let pause = if paused { turn * (100 - percent) / 100 } else { turn * percent / 100 };
        let (me, id) = (self.clone(), id.clone());
        self.world.agenda.after(pause.max(MS), move || {
            if me.world.is_over() {
                return;
            }
            if let Some(victims) = me.active(&id, |active| active.victims.clone()) {
                for victim in &victims {
                    me.pause(*victim, !paused);
                }
                me.slow_process(&id, percent, !paused);
            }
        });
    }

    fn cut(&self, id: &Arc<str>, on: bool) {
        let changed = self.active(id, |active| {
            if active.cut == on {
                return (Vec::new(), false);
            }
            active.cut = on;
            (active.directions.clone(), matches!(active.fault, Fault::Cut { holds: true, .. }))
        });
        let (directions, holds) = changed.unwrap_or_default();
        for (from, to) in directions {
            if on {
                self.world.wire().cut(from, to, holds);
            } else {
                let held = self.world.wire().mend(from, to, holds);
                network::release(&self.world, held);
            }
        }
    }

    fn flap(self: &Arc<Self>, id: &Arc<str>, every: u64) {
        let (me, id) = (self.clone(), id.clone());
        self.world.agenda.after(every.max(MS), move || {
            if me.world.is_over() {
                return;
            }
            if let Some(cut) = me.active(&id, |active| active.cut) {
                me.cut(&id, !cut);
                me.flap(&id, every);
            }
        });
    }

    fn disk(&self, victim: ReplicaId, how: &DiskChange, on: bool) {
        let store = self.world.machines().get(&victim).map(|machine| machine.store.clone());
        let Some(store) = store else { return };
        let fails = how.full || how.read_error_ppm + how.write_error_ppm + how.sync_error_ppm > 0;
        if on && how.misdirect_ppm > 0 {
            self.world.note_forgets(victim, "its writes went astray");
        } else if on && fails {
            self.world.note_disk_fault(victim, "its disk failed");
        }
        let beside = self.world.beside();
        let beside =
            beside.as_ref().and_then(|beside| beside.machines().get(&victim).map(|machine| machine.store.clone()));
        if let Some(beside) = beside {
            // The device is the same, the directories are not.
            beside.behave(|manners| {
                if how.slow > 0 {
                    manners.slow = if on { how.slow } else { 1 };
                }
                if how.stalled {
                    manners.stalled = on;
                }
            });
        }
        store.behave(|manners| {
            let ppm = |value: u32| if on { value } else { 0 };
            if how.slow > 0 {
                manners.slow = if on { how.slow } else { 1 };
            }
            if how.stalled {
                manners.stalled = on;
            }
            if how.full {
                manners.full = on;
            }
            if how.read_error_ppm > 0 {
                manners.read_error_ppm = ppm(how.read_error_ppm);
            }
            if how.write_error_ppm > 0 {
                manners.write_error_ppm = ppm(how.write_error_ppm);
            }
            if how.sync_error_ppm > 0 {
                manners.sync_error_ppm = ppm(how.sync_error_ppm);
            }
            if how.misdirect_ppm > 0 {
                manners.misdirect_ppm = ppm(how.misdirect_ppm);
            }
        });
        if !on {
            // Whoever stopped because of it starts again.
            replica::start(&self.world, victim, None);
        }
    }
}

/// A fault's name; a part of one that was split has it before the stroke.
fn name_of(id: &str) -> Arc<str> {
    id.split('/').next().unwrap_or(id).into()
}

fn plus(time: muster_core::ids::Time, nanos: u64) -> muster_core::ids::Time {
    muster_core::ids::Time(time.0 + nanos)
}

fn worse(usual: Quality, change: &LinkChange) -> Quality {
    Quality {
        latency_us: change.latency_us.unwrap_or(usual.latency_us),
        loss_ppm: change.loss_ppm.unwrap_or(usual.loss_ppm),
        double_ppm: change.double_ppm.unwrap_or(usual.double_ppm),
        late_ppm: change.late_ppm.unwrap_or(usual.late_ppm),
        corrupt_ppm: change.corrupt_ppm.unwrap_or(usual.corrupt_ppm),
        replay_ppm: change.replay_ppm.unwrap_or(usual.replay_ppm),
        bytes_per_second: change.bytes_per_second.unwrap_or(usual.bytes_per_second),
        queue_bytes: change.queue_bytes.unwrap_or(usual.queue_bytes),
    }
}

/// How long a supervisor waits before it starts a process that ended by itself.
pub const RESTART_NANOS: u64 = SECOND;
