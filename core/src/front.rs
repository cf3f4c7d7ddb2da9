//! The front of a replica: how servers, tasks and tests in the same process talk to its loop.
//!
//! A [`Handle`] is cheap to clone and usable from any thread. Reads take a [`View`] and are evaluated where they were asked;
//! only writes and read-index rounds pass through the loop.
//!
//! Invariants
//! - what an answer rests on is in every view taken after it was given;
//! - the inbox is bounded: beyond it peers' messages are dropped (Raft tolerates loss) and clients are told *busy*.

use crate::ids::Seq;
use crate::live::Live;
use crate::peer::Envelope;
use crate::replica::Input;
use crate::request::{AdminOutcome, AdminRequest, Freshness, NotApplied, Outcome, UnknownWhy, WriteRequest};
use crate::storage::StorageError;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use event_listener::Event as Signal;
use futures_channel::{mpsc, oneshot};

/// Events that may wait for the loop.
const INBOX_MAX: usize = 100_000;

/// A write of a run of many.
#[derive(Clone, Debug)]
pub struct Tagged {
    /// Names it in its outcome.
    pub tag: u64,
    /// The write. Its author must have been checked already.
    pub write: WriteRequest,
    /// Whether to pass it on to the leader.
    pub forward: bool,
}

/// Where the outcomes of many writes arrive, each once and under its tag.
pub type Outcomes = mpsc::UnboundedSender<(u64, Outcome)>;

/// Who waits for the outcome of a tagged write. Dropped unanswered it says that nobody knows: a loop that ended with the request
/// in its inbox may or may not have logged it.
pub(crate) struct Asker {
    tag: u64,
    outcomes: Option<Outcomes>,
}

impl Asker {
    pub(crate) fn answer(mut self, outcome: Outcome) {
        self.tell(outcome);
    }

    fn tell(&mut self, outcome: Outcome) {
        if let Some(outcomes) = self.outcomes.take() {
            // A client that went away does not wait for its outcomes.
            let _ = outcomes.unbounded_send((self.tag, outcome));
        }
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.tell(Outcome::Unknown(UnknownWhy::TimedOut));
    }
}

/// What reaches the loop.
pub(crate) enum Event {
    /// Boxed: the queue moves its elements several times, and most of them are messages.
    Peer(Box<Envelope>),
    Input(Input),
    Write {
        write: WriteRequest,
        forward: bool,
        answer: oneshot::Sender<Outcome>,
    },
    Writes(Vec<(Tagged, Asker)>),
    Read {
        freshness: Freshness,
        answer: oneshot::Sender<Result<(), NotApplied>>,
    },
    Admin {
        request: AdminRequest,
        answer: oneshot::Sender<AdminOutcome>,
    },
    Fault(StorageError),
}

impl Event {
    /// What it counts for in the inbox.
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::Writes(writes) => writes.len(),
            Self::Peer(_)
            | Self::Input(_)
            | Self::Write { .. }
            | Self::Read { .. }
            | Self::Admin { .. }
            | Self::Fault(_) => 1,
        }
    }
}

pub use crate::live::View;

pub(crate) struct Shared {
    pub(crate) inbox: mpsc::UnboundedSender<Event>,
    pub(crate) queued: AtomicUsize,
    pub(crate) dropped: AtomicU64,
    pub(crate) live: Arc<Live>,
    pub(crate) published: Signal,
    pub(crate) recorded: AtomicU64,
    pub(crate) extended: Signal,
    pub(crate) stopped: AtomicBool,
}

impl Shared {
    pub(crate) fn put(&self, event: Event) -> bool {
        self.put_or_back(event).is_none()
    }

    /// Puts an event into the inbox, or gives it back if the loop has ended.
    fn put_or_back(&self, event: Event) -> Option<Event> {
        let count = event.count();
        self.queued.fetch_add(count, Ordering::Relaxed);
        let back = self.inbox.unbounded_send(event).err()?.into_inner();
        self.queued.fetch_sub(count, Ordering::Relaxed);
        Some(back)
    }

    /// Wakes those who wait for a newer view.
    pub(crate) fn announce(&self) {
        self.published.notify(usize::MAX);
    }

    pub(crate) fn record(&self, sequence: Seq) {
        self.recorded.store(sequence.0, Ordering::Release);
        self.extended.notify(usize::MAX);
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.published.notify(usize::MAX);
        self.extended.notify(usize::MAX);
    }
}

/// Talks to a replica's loop.
#[derive(Clone)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
}

impl Handle {
    fn is_full(&self) -> bool {
        self.shared.queued.load(Ordering::Relaxed) >= INBOX_MAX
    }

    /// The state as it is.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.shared.live.view()
    }

    /// Whether a view is what [`Self::view`] would give. Asked by those who keep one while they are asked often: it costs no shared
    /// memory that is written.
    #[must_use]
    pub fn is_newest(&self, view: &View) -> bool {
        self.shared.live.is_newest(view)
    }

    /// Waits until a view newer than `version` is published, or the replica stops; gives the newest view then.
    pub async fn changed(&self, version: u64) -> Arc<View> {
        loop {
            let listener = self.shared.published.listen();
            let view = self.view();
            if view.version > version || self.stopped() {
                return view;
            }
            listener.await;
        }
    }

    /// Waits until the archive can read everything up to `sequence`, or the replica stops.
    pub async fn recorded(&self, sequence: Seq) {
        loop {
            let listener = self.shared.extended.listen();
            if self.shared.recorded.load(Ordering::Acquire) >= sequence.0 || self.stopped() {
                return;
            }
            listener.await;
        }
    }

    /// Asks for a write. The replica answers within its request timeout. The author must have been checked already.
    pub async fn write(&self, write: WriteRequest, forward: bool) -> Outcome {
        if self.is_full() {
            return Outcome::NotApplied(NotApplied::Busy { retry_after_ms: 200 });
        }
        let (answer, outcome) = oneshot::channel();
        if !self.shared.put(Event::Write { write, forward, answer }) {
            return Outcome::NotApplied(NotApplied::Stopping);
        }
        // A loop that ended with the request in its inbox may or may not have logged it.
        outcome.await.unwrap_or(Outcome::Unknown(UnknownWhy::TimedOut))
    }

    /// Asks for many writes at once, in order. Their outcomes go to `outcomes` as they become known.
    pub fn submit(&self, writes: Vec<Tagged>, outcomes: &Outcomes) {
        let refuse = |writes: Vec<(Tagged, Asker)>, why: NotApplied| {
            for (_, asker) in writes {
                asker.answer(Outcome::NotApplied(why.clone()));
            }
        };
        let asker = |tagged: Tagged| {
            let asker = Asker { tag: tagged.tag, outcomes: Some(outcomes.clone()) };
            (tagged, asker)
        };
        let writes: Vec<_> = writes.into_iter().map(asker).collect();
        if self.is_full() {
            refuse(writes, NotApplied::Busy { retry_after_ms: 200 });
        } else if let Some(Event::Writes(writes)) = self.shared.put_or_back(Event::Writes(writes)) {
            refuse(writes, NotApplied::Stopping);
        }
    }

    /// Waits until a read of that freshness may be evaluated; gives the view to evaluate it on.
    ///
    /// # Errors
    /// `NoQuorum` if that was not possible within the request timeout, `Busy`, `Stopping`.
    pub async fn read(&self, freshness: Freshness) -> Result<Arc<View>, NotApplied> {
        if freshness == Freshness::Local {
            return Ok(self.view());
        }
        if self.is_full() {
            return Err(NotApplied::Busy { retry_after_ms: 200 });
        }
        let (answer, outcome) = oneshot::channel();
        if !self.shared.put(Event::Read { freshness, answer }) {
            return Err(NotApplied::Stopping);
        }
        match outcome.await {
            Ok(Ok(())) => Ok(self.view()),
            Ok(Err(why)) => Err(why),
            Err(oneshot::Canceled) => Err(NotApplied::Stopping),
        }
    }

    /// Asks something of this replica.
    pub async fn admin(&self, request: AdminRequest) -> AdminOutcome {
        let (answer, outcome) = oneshot::channel();
        let stopped = || AdminOutcome::Failed { problem: String::from("the replica is stopping") };
        if !self.shared.put(Event::Admin { request, answer }) {
            return stopped();
        }
        outcome.await.unwrap_or_else(|_| stopped())
    }

    /// Hands over a peer's message. Dropped if too many wait.
    pub fn deliver(&self, envelope: Envelope) {
        if self.is_full() {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        } else {
            self.shared.put(Event::Peer(Box::new(envelope)));
        }
    }

    /// Peers' messages dropped because too many waited.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Tells the replica to hand leadership over and stop.
    pub fn stop(&self) {
        self.shared.put(Event::Input(Input::Stop));
    }

    /// Whether the loop has ended.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.shared.stopped.load(Ordering::Acquire)
    }
}
