//! Clients' connections: how many there may be, and when one is closed that nobody needs.
//!
//! Each connection has a [`Pulse`]; one task looks at all of them several times a second, so that watching costs a request no
//! timer of its own. Every connection begins in the quick lane (`lane`) and goes on with the HTTP library once something else than a
//! boot is asked for; HTTP/1.1 and HTTP/2 share the port: which one it is shows in the first bytes.
//!
//! Invariants
//! - no more connections than [`ClientLimits::connections_max`]; those beyond it are closed at once, and counted;
//! - a connection on which nothing is asked and nothing is under way is closed after [`ClientLimits::idle_timeout`], whether it
//!   never said anything, said half a request, or is done. HTTP/2 has pings for that, so one that answers them may be quiet;
//! - a boot that takes longer than it may ends with its connection;
//! - at the end every connection is told (HTTP/2: GOAWAY), and closed once nothing is under way on it.

use super::api::ClientLimits;
use super::lane::{self, Boots, Over, Rewound};
use super::outgoing::Outgoing;
use crate::tls::accept::Socket;
use axum::http::{Request, Response};
use futures_util::task::AtomicWaker;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

/// How often connections are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The longest head of an HTTP/1.1 request, in bytes.
pub(super) const HEAD_BYTES_MAX: usize = 16 << 10;

/// What a connection is told to do.
const GO_ON: u8 = 0;
const END: u8 = 1;
const CUT: u8 = 2;

/// How a connection is.
pub(super) struct Pulse {
    began: Instant,
    /// Answers that are under way.
    under_way: AtomicU32,
    /// Since when nothing was asked, in milliseconds after `began` of all connections.
    quiet_since: AtomicU64,
    multiplexed: AtomicBool,
    word: AtomicU8,
    waker: AtomicWaker,
}

/// A request and its answer on their way. The connection is not idle while it is held.
pub(super) struct Turn(Arc<Pulse>);

impl Turn {
    pub(super) fn begin(pulse: &Arc<Pulse>) -> Self {
        pulse.under_way.fetch_add(1, Ordering::Relaxed);
        Self(pulse.clone())
    }

    pub(super) fn pulse(&self) -> &Arc<Pulse> {
        &self.0
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.quiet_since.store(self.0.now_ms(), Ordering::Relaxed);
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pulse {
    fn new(began: Instant) -> Arc<Self> {
        let pulse = Self {
            began,
            under_way: AtomicU32::new(0),
            quiet_since: AtomicU64::new(0),
            multiplexed: AtomicBool::new(false),
            word: AtomicU8::new(GO_ON),
            waker: AtomicWaker::new(),
        };
        pulse.quiet_since.store(pulse.now_ms(), Ordering::Relaxed);
        Arc::new(pulse)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// It speaks HTTP/2.
    pub(super) fn speaks_http2(&self) {
        if !self.multiplexed.load(Ordering::Relaxed) {
            self.multiplexed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the end was announced.
    pub(super) fn is_ending(&self) -> bool {
        self.word.load(Ordering::Acquire) != GO_ON
    }

    fn say(&self, word: u8) {
        self.word.fetch_max(word, Ordering::AcqRel);
        self.waker.wake();
    }

    /// Closes the connection at once.
    pub(super) fn cut(&self) {
        self.say(CUT);
    }

    fn is_idle(&self, now_ms: u64, idle: Duration) -> bool {
        !self.multiplexed.load(Ordering::Relaxed)
            && self.under_way.load(Ordering::Relaxed) == 0
            && u128::from(now_ms.saturating_sub(self.quiet_since.load(Ordering::Relaxed))) > idle.as_millis()
    }
}

/// What came of connections so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionCounts {
    /// Open ones.
    pub open: u64,
    /// Closed because there were too many.
    pub turned_away: u64,
    /// Closed because nothing was asked on them.
    pub idle: u64,
}

impl std::ops::Add for ConnectionCounts {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            open: self.open + other.open,
            turned_away: self.turned_away + other.turned_away,
            idle: self.idle + other.idle,
        }
    }
}

/// All connections of one of a replica's ports for clients.
pub(super) struct Watch {
    began: Instant,
    pulses: Mutex<BTreeMap<u64, Arc<Pulse>>>,
    next: AtomicU64,
    turned_away: AtomicU64,
    idle: AtomicU64,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            pulses: Mutex::default(),
            next: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
            idle: AtomicU64::new(0),
        }
    }

    fn pulses(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Pulse>>> {
        self.pulses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counts(&self) -> ConnectionCounts {
        ConnectionCounts {
            open: self.pulses().len() as u64,
            turned_away: self.turned_away.load(Ordering::Relaxed),
            idle: self.idle.load(Ordering::Relaxed),
        }
    }

    /// A place for one more connection, if there is one.
    fn enter(self: &Arc<Self>, connections_max: usize) -> Option<Entry> {
        let mut pulses = self.pulses();
        if pulses.len() >= connections_max {
            self.turned_away.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let pulse = Pulse::new(self.began);
        pulses.insert(number, pulse.clone());
        Some(Entry { watch: self.clone(), number, pulse })
    }

    /// Looks after all connections, and whatever else is to be looked after as often, for as long as it is polled.
    pub(super) async fn look_after(&self, idle: Duration, and: impl Fn()) {
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let now_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            for pulse in self.pulses().values().filter(|pulse| pulse.is_idle(now_ms, idle)) {
                self.idle.fetch_add(1, Ordering::Relaxed);
                pulse.cut();
            }
            and();
        }
    }

    /// Tells every connection that the end has come.
    pub(super) fn end(&self) {
        self.pulses().values().for_each(|pulse| pulse.say(END));
    }

    /// Waits until every connection is closed.
    pub(super) async fn empty(&self) {
        while !self.pulses().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A connection's place among all.
struct Entry {
    watch: Arc<Watch>,
    number: u64,
    pulse: Arc<Pulse>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.watch.pulses().remove(&self.number);
    }
}

/// How connections speak.
pub(super) fn speaker(limits: &ClientLimits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // No timer: a timer for every request costs more than looking at all connections now and then.
    builder.http1().keep_alive(true).max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams_max)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .keep_alive_interval(Some(Duration::from_secs(5)))
        .keep_alive_timeout(Duration::from_secs(10));
    builder
}

/// Serves one connection on a task of its own. `front` makes the service that answers what is asked on it.
pub(super) fn serve<S>(
    watch: &Arc<Watch>,
    limits: &ClientLimits,
    speaker: &auto::Builder<TokioExecutor>,
    mut socket: Socket,
    front: impl FnOnce(&Socket, &Arc<Pulse>) -> S,
) where
    S: Boots + Service<Request<Incoming>, Response = Response<Outgoing>, Error = Infallible> + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    let Some(entry) = watch.enter(limits.connections_max) else { return };
    let service = front(&socket, &entry.pulse);
    let speaker = speaker.clone();
    tokio::spawn(async move {
        let pulse = &entry.pulse;
        let served = async {
            match lane::serve(&mut socket, &service, pulse).await {
                Over::Closed => {}
                // Boxed: most connections never need it, and it would be the most of what they hold.
                Over::Other(read) => Box::pin(speak(&speaker, Rewound::new(read, socket), service, pulse)).await,
            }
        };
        let mut served = pin!(served);
        poll_fn(|context| {
            pulse.waker.register(context.waker());
            if pulse.word.load(Ordering::Acquire) == CUT {
                return Poll::Ready(());
            }
            served.as_mut().poll(context)
        })
        .await;
    });
}

/// The rest of a connection, by the HTTP library.
async fn speak<S>(speaker: &auto::Builder<TokioExecutor>, socket: Rewound, service: S, pulse: &Pulse)
where
    S: Service<Request<Incoming>, Response = Response<Outgoing>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
{
    let mut connection = pin!(speaker.serve_connection(TokioIo::new(socket), service));
    let mut told = false;
    let served = poll_fn(|context| {
        if pulse.is_ending() && !told {
            told = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(context)
    });
    if let Err(error) = served.await {
        tracing::debug!(error = %crate::tls::root_cause(&*error), "a client's connection broke");
    }
}
