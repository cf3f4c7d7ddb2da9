//! Simulated time: what happens when.
//!
//! One simulated microsecond is one millisecond of the executor's, because its sleeps last a millisecond at least; nobody but
//! this file knows. All waiting goes through one ordered list and one timer of the executor's: its own sleeps register a
//! timer whenever they are polled and cannot be taken back.
//!
//! Invariants
//! - what is due happens in the order of its time, then of its entry;
//! - a sleep that is dropped is gone from the list.

use madsim::time::TimeHandle;
use muster_core::ids::Time;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// How many of the executor's nanoseconds one of ours lasts.
const SCALE: u64 = 1_000;

enum Happening {
    Wake(Waker),
    Do(Box<dyn FnOnce() + Send>),
}

#[derive(Default)]
struct List {
    due: BTreeMap<(Time, u64), Happening>,
    next: u64,
    pump: Option<Waker>,
    /// The earliest moment for which the executor's timer is set.
    armed: Option<Time>,
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

    fn add(&self, time: Time, happening: Happening) -> Appointment {
        let mut list = self.list.lock().expect("nobody panics holding it");
        list.next += 1;
        let key = (time, list.next);
        list.due.insert(key, happening);
        if list.armed.is_none_or(|armed| armed > time)
            && let Some(pump) = list.pump.take()
        {
            pump.wake();
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
        let taken = self.list.lock().expect("nobody panics holding it").due.remove(&(appointment.0, appointment.1));
        drop(taken);
    }

    /// Forgets everything that was to happen.
    pub(crate) fn clear(&self) {
        let due = std::mem::take(&mut self.list.lock().expect("nobody panics holding it").due);
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
        let mut timer: Option<Pin<Box<madsim::time::Sleep>>> = None;
        poll_fn(|context| {
            loop {
                self.do_what_is_due();
                let mut list = self.list.lock().expect("nobody panics holding it");
                list.pump = Some(context.waker().clone());
                let Some(((time, _), _)) = list.due.first_key_value() else {
                    list.armed = None;
                    return Poll::<()>::Pending;
                };
                let time = *time;
                let now = self.now();
                if time <= now {
                    continue;
                }
                list.armed = Some(time);
                drop(list);
                let sleep = self.time.sleep(Duration::from_nanos((time.0 - now.0) * SCALE));
                let sleep = timer.insert(Box::pin(sleep));
                if sleep.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await;
    }

    fn do_what_is_due(&self) {
        loop {
            let now = self.now();
            let mut list = self.list.lock().expect("nobody panics holding it");
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
        if let Some(entry) = self.entry.take() {
            self.agenda.cancel(entry);
        }
        if self.agenda.now() >= self.time {
            return Poll::Ready(());
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
