//! A replica's clock: it starts at zero with its process, may drift and freeze; its wall clock may also be set.

use crate::agenda::Agenda;
use crate::freedom::Freedom;
use muster_core::clock::Clock;
use muster_core::ids::{Time, WallTime};
use std::sync::{Arc, Mutex};

/// The wall clock at simulated time zero.
const EPOCH_MS: u64 = 1_767_225_600_000;

/// The longest anyone sleeps without looking at the clock again: it may have changed its pace meanwhile.
const LOOK_AGAIN_NANOS: u64 = 20_000_000;

#[derive(Debug)]
struct Pace {
    /// True time and this clock's time when the pace last changed.
    from: (Time, u64),
    drift_ppm: i64,
    frozen: bool,
    wall_offset_ms: i64,
}

/// What a machine's clock does. Outlives the replica's process.
#[derive(Clone)]
pub struct Oscillator {
    pace: Arc<Mutex<Pace>>,
    agenda: Agenda,
}

impl Oscillator {
    /// A good clock.
    #[must_use]
    pub fn new(agenda: Agenda) -> Self {
        let pace = Pace { from: (agenda.now(), 0), drift_ppm: 0, frozen: false, wall_offset_ms: 0 };
        Self { pace: Arc::new(Mutex::new(pace)), agenda }
    }

    fn elapsed(&self, pace: &Pace) -> u64 {
        if pace.frozen {
            return pace.from.1;
        }
        let real = self.agenda.now().0 - pace.from.0.0;
        if pace.drift_ppm == 0 {
            return pace.from.1 + real;
        }
        let real = i128::from(real);
        let local = real + real * i128::from(pace.drift_ppm) / 1_000_000;
        pace.from.1 + u64::try_from(local.max(0)).expect("a run is short")
    }

    fn change(&self, what: impl FnOnce(&mut Pace)) {
        let mut pace = self.pace.lock().expect("nobody panics holding it");
        pace.from = (self.agenda.now(), self.elapsed(&pace));
        what(&mut pace);
    }

    /// From here on it gains (or loses) so much.
    pub fn drift(&self, ppm: i64) {
        self.change(|pace| pace.drift_ppm = ppm);
    }

    /// Stops it, or lets it go on.
    pub fn freeze(&self, frozen: bool) {
        self.change(|pace| pace.frozen = frozen);
    }

    /// Sets the wall clock forward or back.
    pub fn step(&self, ms: i64) {
        self.change(|pace| pace.wall_offset_ms += ms);
    }

    /// Its monotonic reading.
    #[must_use]
    pub fn reading(&self) -> u64 {
        self.elapsed(&self.pace.lock().expect("nobody panics holding it"))
    }

    /// Its wall clock, for whoever counts other time by himself.
    #[must_use]
    pub fn wall(&self, freedom: Arc<Freedom>) -> SimClock {
        SimClock { oscillator: self.clone(), freedom, started: 0 }
    }

    /// The clock of a process that starts now.
    #[must_use]
    pub fn start(&self, freedom: Arc<Freedom>) -> SimClock {
        SimClock { oscillator: self.clone(), freedom, started: self.reading() }
    }
}

/// The clock of one process.
#[derive(Clone)]
pub struct SimClock {
    oscillator: Oscillator,
    freedom: Arc<Freedom>,
    started: u64,
}

impl Clock for SimClock {
    fn now(&self) -> Time {
        Time(self.oscillator.reading() - self.started)
    }

    fn wall(&self) -> WallTime {
        let pace = self.oscillator.pace.lock().expect("nobody panics holding it");
        let ms = (EPOCH_MS + self.oscillator.elapsed(&pace) / 1_000_000).cast_signed() + pace.wall_offset_ms;
        WallTime(ms.max(0).cast_unsigned())
    }

    async fn sleep_until(&self, time: Time) {
        let asked = self.now();
        let time = Time(asked.0 + self.freedom.sleep(time.0.saturating_sub(asked.0)));
        loop {
            let (reading, frozen) = {
                let pace = self.oscillator.pace.lock().expect("nobody panics holding it");
                (self.oscillator.elapsed(&pace), pace.frozen)
            };
            let now = Time(reading - self.started);
            if now >= time {
                return;
            }
            let pause = if frozen { LOOK_AGAIN_NANOS } else { (time.0 - now.0).min(LOOK_AGAIN_NANOS) };
            self.oscillator.agenda.sleep(pause.max(1_000)).await;
        }
    }
}
