//! Simulated time: what happens when.
//!
//! One simulated microsecond is one millisecond of the executor's, because its sleeps last a millisecond at least; nobody but
//! this file knows. All waiting goes through one ordered list. The executor's own timers cannot be taken back, and each one
//! that fires costs a turn of the executor: one is set only when nothing set before fires in time.
//!
//! Invariants
//! - what is due happens in the order of its time, then of its entry;
//! - what is taken off never happens, and frees what it holds at once; only its place in the order stays until its turn;
//! - while the list is not empty, some timer fires when its first entry is due, or before.

use madsim::time::TimeHandle;
use muster_core::ids::Time;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// How many of the executor's nanoseconds one of ours lasts.
const SCALE: u64 = 1_000;

enum Happening {
    Wake(Waker),
    Do(Box<dyn FnOnce() + Send>),
}

/// The executor's shortest sleep, in nanoseconds of ours.
const SHORTEST_NANOS: u64 = 1_000;

/// Where something that is to happen is kept until it does. Used again for something else afterwards.
struct Slot {
    /// Whose it is; 0 for nobody's.
    number: u64,
    happening: Option<Happening>,
}

/// Places in the order that nobody needs any more are swept out when there are more of them than others, and than this.
const STALE_MAX: usize = 1_024;

#[derive(Default)]
struct List {
    /// By time, then by number; with the slot. Stale if the slot is another number's by now.
    order: BinaryHeap<Reverse<(Time, u64, usize)>>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    next: u64,
    /// Wakes [`Agenda::run`]; none before it runs.
    pump: Option<Waker>,
    /// When timers of the executor's will fire.
    timers: BinaryHeap<Reverse<Time>>,
}

impl List {
    fn put(&mut self, time: Time, happening: Happening) -> Appointment {
        self.next += 1;
        let number = self.next;
        let slot = Slot { number, happening: Some(happening) };
        let place = if let Some(place) = self.free.pop() {
            self.slots[place] = slot;
            place
        } else {
            self.slots.push(slot);
            self.slots.len() - 1
        };
        self.order.push(Reverse((time, number, place)));
        Appointment { number, place }
    }

    fn is_live(&self, number: u64, place: usize) -> bool {
        self.slots.get(place).is_some_and(|slot| slot.number == number)
    }

    /// Takes something out; none if it has happened, or was taken out before.
    fn take(&mut self, Appointment { number, place }: Appointment) -> Option<Happening> {
        let slot = self.slots.get_mut(place).filter(|slot| slot.number == number)?;
        slot.number = 0;
        self.free.push(place);
        slot.happening.take()
    }

    /// Takes something out before its time.
    fn cancel(&mut self, appointment: Appointment) -> Option<Happening> {
        let happening = self.take(appointment)?;
        let live = self.slots.len() - self.free.len();
        if self.order.len() > 2 * live + STALE_MAX {
            let slots = &self.slots;
            self.order.retain(|Reverse((_, number, place))| slots[*place].number == *number);
        }
        Some(happening)
    }

    /// Whom something wakes that has not happened yet.
    fn waker(&mut self, Appointment { number, place }: Appointment) -> Option<&mut Waker> {
        let slot = self.slots.get_mut(place).filter(|slot| slot.number == number)?;
        match &mut slot.happening {
            Some(Happening::Wake(waker)) => Some(waker),
            Some(Happening::Do(_)) | None => None,
        }
    }

    /// What comes first, and when.
    fn first(&mut self) -> Option<(Time, Appointment)> {
        loop {
            let Reverse((time, number, place)) = *self.order.peek()?;
            if self.is_live(number, place) {
                return Some((time, Appointment { number, place }));
            }
            self.order.pop();
        }
    }

    /// Takes out what comes first, if it is due.
    fn take_due(&mut self, now: Time) -> Option<Happening> {
        let (_, appointment) = self.first().filter(|(time, _)| *time <= now)?;
        self.order.pop();
        self.take(appointment)
    }

    /// Sets a timer for the first entry, unless one fires by then.
    fn arm(&mut self, time: &TimeHandle, now: Time) {
        let Some((due, _)) = self.first() else { return };
        let Some(pump) = &self.pump else { return };
        let due = due.max(Time(now.0 + SHORTEST_NANOS));
        if self.timers.peek().is_some_and(|Reverse(timer)| *timer <= due) {
            return;
        }
        let sleep = pin!(time.sleep(Duration::from_nanos((due.0 - now.0) * SCALE)));
        let woken_at_once = sleep.poll(&mut Context::from_waker(pump)).is_ready();
        debug_assert!(!woken_at_once, "a sleep of a millisecond at least is over at once");
        self.timers.push(Reverse(due));
    }
}

/// Everybody's list of what is to happen.
#[derive(Clone)]
pub struct Agenda {
    list: Arc<Mutex<List>>,
    time: TimeHandle,
}

/// Names something on the agenda.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appointment {
    number: u64,
    place: usize,
}

impl Agenda {
    /// An empty agenda on the current runtime.
    #[must_use]
    pub fn new() -> Self {
        Self { list: Arc::default(), time: TimeHandle::current() }
    }

    /// Simulated time since the run began.
    #[must_use]
    pub fn now(&self) -> Time {
        let elapsed = self.time.elapsed();
        Time(elapsed.as_secs() * (1_000_000_000 / SCALE) + u64::from(elapsed.subsec_nanos()) / SCALE)
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().expect("nobody panics holding it")
    }

    fn add(&self, time: Time, happening: Happening) -> Appointment {
        let now = self.now();
        let mut list = self.list();
        let appointment = list.put(time, happening);
        if time > now {
            list.arm(&self.time, now);
        } else if let Some(pump) = &list.pump {
            pump.wake_by_ref();
        }
        appointment
    }

    /// Has something done at a time (or as soon as possible, if that has passed).
    pub fn at(&self, time: Time, what: impl FnOnce() + Send + 'static) -> Appointment {
        self.add(time, Happening::Do(Box::new(what)))
    }

    /// Has something done after so many nanoseconds.
    pub fn after(&self, nanos: u64, what: impl FnOnce() + Send + 'static) -> Appointment {
        self.at(Time(self.now().0 + nanos), what)
    }

    /// Takes something off the agenda, if it has not happened yet.
    pub fn cancel(&self, appointment: Appointment) {
        let taken = self.list().cancel(appointment);
        drop(taken);
    }

    /// Forgets everything that was to happen.
    pub(crate) fn clear(&self) {
        let slots = {
            let mut list = self.list();
            list.order.clear();
            list.free.clear();
            std::mem::take(&mut list.slots)
        };
        drop(slots);
    }

    /// Waits until a time.
    pub fn sleep_until(&self, time: Time) -> Sleep {
        Sleep { agenda: self.clone(), time, entry: None }
    }

    /// Waits so many nanoseconds.
    pub fn sleep(&self, nanos: u64) -> Sleep {
        self.sleep_until(Time(self.now().0 + nanos))
    }

    /// Lets everything happen in its time. Runs for ever, on the main node.
    pub async fn run(self) {
        poll_fn(|context| {
            loop {
                self.do_what_is_due();
                let now = self.now();
                let mut list = self.list();
                if list.pump.as_ref().is_none_or(|pump| !pump.will_wake(context.waker())) {
                    list.pump = Some(context.waker().clone());
                }
                while list.timers.peek().is_some_and(|Reverse(timer)| *timer <= now) {
                    list.timers.pop();
                }
                if list.first().is_some_and(|(time, _)| time <= now) {
                    continue;
                }
                list.arm(&self.time, now);
                return Poll::<()>::Pending;
            }
        })
        .await;
    }

    fn do_what_is_due(&self) {
        loop {
            let now = self.now();
            let happening = self.list().take_due(now);
            match happening {
                Some(Happening::Wake(waker)) => waker.wake(),
                Some(Happening::Do(what)) => what(),
                None => return,
            }
        }
    }
}

impl Default for Agenda {
    fn default() -> Self {
        Self::new()
    }
}

/// Waits until a time of the agenda.
#[must_use]
pub struct Sleep {
    agenda: Agenda,
    time: Time,
    entry: Option<Appointment>,
}

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.agenda.now() >= self.time {
            return Poll::Ready(());
        }
        if let Some(appointment) = self.entry
            && let Some(waker) = self.agenda.list().waker(appointment)
        {
            waker.clone_from(context.waker());
            return Poll::Pending;
        }
        let entry = self.agenda.add(self.time, Happening::Wake(context.waker().clone()));
        self.entry = Some(entry);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            self.agenda.cancel(entry);
        }
    }
}
