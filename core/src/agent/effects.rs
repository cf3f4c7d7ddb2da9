//! The machine's one door: everything that can happen to an agent, and everything it can ask its driver to do.
//!
//! The driver is boring on purpose: it waits, steps, and carries the effects out. Order *within* each list counts; between
//! lists any order is safe, because the machine withholds a host's change, a journal's request and a reply until the save they
//! rest on was reported.

use super::event::Event;
use super::host::{BootId, BootTime, Consumer, HostError, Observed};
use super::ledger::{Declared, Ledger};
use super::operator::{Reply, Request};
use crate::ids::{Age, Seq, WallTime};
use crate::journal::entry::Author;
use crate::journal::key::{Key, Setting};
use crate::request::{Outcome, WriteRequest};
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// When a step happens. Only `boot` decides anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Time since the machine booted, suspend included.
    pub boot: BootTime,
    /// The wall clock. For people.
    pub wall: WallTime,
}

/// A piece of work for the host; its outcome names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskId(pub u64);

/// A question or request to the journal; its answer names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AskId(pub u64);

/// An operator's request; its reply names it. Chosen by the driver, never used twice in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A save. A report of one covers all before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SaveNumber(pub u64);

/// Everything that can happen to an agent.
#[derive(Clone, Debug)]
pub enum Input {
    /// What the journal declares for the node: at the first contact, and again whenever an entry touched it
    /// ([`Declared::is_touched_by`]). Older than what was given before is harmless.
    Declared(Declared),
    /// Some watched keys may have changed ([`super::host::Host::changed`]) and were looked at. In the order of the host's work.
    Observed(BTreeMap<Key, Observed>),
    /// A piece of work for the host is done.
    Host {
        /// Which.
        task: TaskId,
        /// What came of it.
        done: HostDone,
    },
    /// A save, and all before it, is on disk and survives power loss.
    Saved(SaveNumber),
    /// News of the journal.
    Journal(JournalNews),
    /// An operator asks. Who it is, and that the role allows it, was checked before.
    Asked {
        /// Names the reply.
        ticket: Ticket,
        /// Who.
        author: Author,
        /// What.
        request: Request,
    },
    /// The deadline in [`Effects::wake_at`] has passed. Harmless at any other time.
    Wake,
}

/// What the disk held when the process started: what [`super::machine::Machine::start`] begins from.
#[derive(Clone, Debug)]
pub struct Start {
    /// Which boot this is.
    pub boot: BootId,
    /// The ledger, if there is one that reads.
    pub ledger: Option<Ledger>,
    /// The declared state that the ledger names, if it reads.
    pub declared: Option<Declared>,
    /// The events that the ledger says count, as far as they read, in order.
    pub spool: Vec<Event>,
    /// What did not read and what was done about it, in words, for the journal. A ledger that did not read is none and said
    /// here; then what differs is taken for drift, and nothing is brought back before a window of its own.
    pub repairs: Vec<Arc<str>>,
}

/// What the host's work gave.
#[derive(Clone, Debug)]
pub enum HostDone {
    /// To [`HostWork::Observe`].
    Observed(BTreeMap<Key, Observed>),
    /// To [`HostWork::Check`]: per key the canonical spelling, or what would be accepted.
    Checked(Vec<Result<(Key, Setting), HostError>>),
    /// To [`HostWork::Consumers`].
    Consumers(Vec<Consumer>),
    /// To [`HostWork::Change`].
    Changed(Result<(), HostError>),
}

/// News of the journal.
#[derive(Clone, Debug)]
pub enum JournalNews {
    /// A replica answers; replicated time is at least this. Also the answer to [`JournalTask::Age`].
    Up {
        /// Replicated time.
        age: Age,
    },
    /// Nobody answers, or whoever answers says no.
    Down {
        /// Why, in words.
        why: Arc<str>,
    },
    /// What became of a write. Told within seconds, at worst as unknown.
    Wrote {
        /// Which.
        ask: AskId,
        /// What became of it.
        outcome: Outcome,
    },
    /// What the node's own records said.
    Looked {
        /// Which look.
        ask: AskId,
        /// The event's record, if there is one; an error if nobody could tell.
        found: Result<Option<Seq>, ()>,
    },
}

/// What the driver is asked to do.
#[derive(Debug, Default)]
pub struct Effects {
    /// To be made durable, replacing any earlier save that was not begun (but its events are to be appended too).
    pub save: Option<Save>,
    /// Work for the host, one after the other, in order.
    pub host: Vec<HostTask>,
    /// Requests to the journal. Several may be under way.
    pub journal: Vec<JournalTask>,
    /// Answers for operators.
    pub replies: Vec<(Ticket, Reply)>,
    /// The keys to watch from now on, if they changed.
    pub watch: Option<Vec<Key>>,
    /// Lines for the agent's log.
    pub notices: Vec<Notice>,
    /// Whether [`super::machine::Machine::report`] says something new.
    pub changed: bool,
    /// When to wake the machine, unless something happens before, and why.
    pub wake_at: Option<(BootTime, WakeReason)>,
}

/// What must be on disk. In this order: the events are appended, the declared state is put beside the old one under its
/// sequence, the ledger is replaced; only then may older declared states and delivered events go.
#[derive(Clone, Debug)]
pub struct Save {
    /// Its number.
    pub number: SaveNumber,
    /// Events to append to the spool.
    pub events: Vec<Event>,
    /// A declared state to keep under its sequence.
    pub declared: Option<Arc<Declared>>,
    /// The ledger.
    pub ledger: Arc<Ledger>,
}

/// A piece of work for the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostTask {
    /// Named by the outcome.
    pub task: TaskId,
    /// What to do.
    pub work: HostWork,
}

/// What a host does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostWork {
    /// [`super::host::Host::observe`].
    Observe(Vec<Key>),
    /// [`super::host::Host::check`], for each.
    Check(Vec<(Key, Setting)>),
    /// [`super::host::Host::consumers`].
    Consumers(Vec<Key>),
    /// [`super::host::Host::change`].
    Change {
        /// The key.
        key: Key,
        /// What it is to be; never unset.
        setting: Setting,
    },
}

/// A request to the journal.
#[derive(Clone, Debug)]
pub enum JournalTask {
    /// Tell how old the cluster is: answered by [`JournalNews::Up`] or [`JournalNews::Down`].
    Age,
    /// Write this, under the id it carries, and try for some seconds: answered by [`JournalNews::Wrote`].
    Write {
        /// Names the answer.
        ask: AskId,
        /// The write.
        write: WriteRequest,
    },
    /// Look through the node's own records, linearizably, for an event's ([`Event::is_recorded_by`]): answered by
    /// [`JournalNews::Looked`].
    Look {
        /// Names the answer.
        ask: AskId,
        /// The event.
        event: Event,
    },
}

/// Why the machine wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WakeReason {
    /// The window ends.
    WindowEnds,
    /// The emergency's window ends.
    EmergencyWindowEnds,
    /// A conflict's grace period ends.
    ConflictGraceEnds,
    /// A request to the journal is due to be tried again.
    JournalAgain,
}

/// How much a notice matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// It happened.
    Info,
    /// A human may care.
    Warn,
    /// A human must look: an emergency's window passed, a rollback failed.
    Alert,
}

/// A line for the agent's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// How much it matters.
    pub level: Level,
    /// What happened, in words.
    pub text: Arc<str>,
}
