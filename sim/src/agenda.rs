//! Simulated time: what happens when.
//!
//! One simulated microsecond is one millisecond of the executor's, because its sleeps last a millisecond at least; nobody but
//! this file knows. All waiting goes through one ordered list. The executor's own timers cannot be taken back, and each one
//! that fires costs a turn of the executor: one is set only when nothing set before fires in time.
//!
//! Invariants
//! - what is due happens in the order of its time, then of its entry;
//! - a sleep that is dropped is gone from the list;
//! - while the list is not empty, some timer fires when its first entry is due, or before.

use madsim::time::TimeHandle;
use muster_core::ids::Time;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
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

#[derive(Default)]
struct List {
    due: BTreeMap<(Time, u64), Happening>,
    next: u64,
    /// Wakes [`Agenda::run`]; none before it runs.
    pump: Option<Waker>,
    /// When timers of the executor's will fire.
    timers: BinaryHeap<Reverse<Time>>,
}

impl List {
    /// Sets a timer for the first entry, unless one fires by then.
    fn arm(&mut self, time: &TimeHandle, now: Time) {
        let (Some(((due, _), _)), Some(pump)) = (self.due.first_key_value(), &self.pump) else { return };
        let due = (*due).max(Time(now.0 + SHORTEST_NANOS));
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
pub struct Appointment(Time, u64);

impl Agenda {
    /// An empty agenda on the current runtime.
    #[must_use]
    pub fn new() -> Self {
        Self { list: Arc::default(), time: TimeHandle::current() }
    }

    /// Simulated time since the run began.
    ///
    /// # Panics
    /// After 584 simulated years.
    #[must_use]
    pub fn now(&self) -> Time {
        Time(u64::try_from(self.time.elapsed().as_nanos()).expect("a run is short") / SCALE)
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().expect("nobody panics holding it")
    }

    fn add(&self, time: Time, happening: Happening) -> Appointment {
        let now = self.now();
        let mut list = self.list();
        list.next += 1;
        let key = (time, list.next);
        list.due.insert(key, happening);
        if time > now {
            list.arm(&self.time, now);
        } else if let Some(pump) = &list.pump {
            pump.wake_by_ref();
        }
        Appointment(key.0, key.1)
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
        let taken = self.list().due.remove(&(appointment.0, appointment.1));
        drop(taken);
    }

    /// Forgets everything that was to happen.
    pub(crate) fn clear(&self) {
        let due = std::mem::take(&mut self.list().due);
        drop(due);
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
                if list.due.first_key_value().is_some_and(|((time, _), _)| *time <= now) {
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
            let mut list = self.list();
            let Some(first) = list.due.first_entry() else { return };
            if first.key().0 > now {
                return;
            }
            let happening = first.remove();
            drop(list);
            match happening {
                Happening::Wake(waker) => waker.wake(),
                Happening::Do(what) => what(),
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
        if let Some(Appointment(time, number)) = self.entry
            && let Some(Happening::Wake(waker)) = self.agenda.list().due.get_mut(&(time, number))
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
