//! What a node's agent keeps on disk, so that a crash breaks no promise.
//!
//! Three things are kept. The *ledger* is small, is replaced as a whole, and is the commit point: what it does not name did
//! not happen. The *declared* state is the journal's word, a cache: lost, it is fetched again. The *spool* holds the events
//! that the journal must learn, appended one by one; the ledger says which of them count.
//!
//! Invariants
//! - a change of the host is begun only after the ledger that holds its owner, the value before it and its deadline was
//!   reported saved;
//! - deadlines are times since boot of the boot that the ledger names, and mean nothing in another boot.
//!
//! Decides nothing: see [`super::machine`].

use super::drift::DriftVector;
use super::host::{BootId, BootTime, Consumer, HostError};
use crate::ids::{Age, NodeId, OneShotId, Seq, VClusterId, WallTime};
use crate::journal::document::Document;
use crate::journal::entry::{Author, ConfigEntry, EntryType};
use crate::journal::key::{Key, Scope, Setting};
use crate::journal::policy::Policy;
use crate::{boot, ids};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// What the journal declares for the node, right at one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// The sequence.
    pub sequence: Seq,
    /// The node's vCluster.
    pub vcluster: VClusterId,
    /// The `PolicyUpdate` in force.
    pub policy_sequence: Seq,
    /// Its policy.
    pub policy: Policy,
    /// What is declared, by key; never [`Setting::Unset`], and without the key that assigns the node.
    pub settings: BTreeMap<Key, Setting>,
}

impl Declared {
    /// What the two documents of a boot say together.
    ///
    /// # Errors
    /// In words, if they do not belong together.
    pub fn from_boot(overlay: &Document, delta: &Document) -> Result<Self, alloc::string::String> {
        use crate::journal::document::Kind;
        use alloc::format;
        let Kind::Delta { sequence, .. } = &delta.kind else {
            return Err("the second document of a boot is no delta".into());
        };
        if overlay.kind != Kind::Overlay {
            return Err("the first document of a boot is no overlay".into());
        }
        if (&overlay.vcluster, overlay.version) != (&delta.vcluster, delta.version) {
            return Err(format!(
                "the delta goes with the overlay of {} at {}, this is the one of {} at {}",
                delta.vcluster, delta.version, overlay.vcluster, overlay.version
            ));
        }
        let policy = delta.policy.as_ref().or(overlay.policy.as_ref());
        let (policy_sequence, policy) = policy.cloned().unwrap_or((ids::Seq(0), Policy::default()));
        let mut settings = boot::assemble(overlay, delta);
        settings.retain(|key, _| !key.is_vcluster());
        Ok(Self { sequence: *sequence, vcluster: delta.vcluster.clone(), policy_sequence, policy, settings })
    }

    /// Whether an entry later than this may change what it says of the node: then the boot is to be read again, at that
    /// entry's sequence or later.
    #[must_use]
    pub fn is_touched_by(&self, node: &NodeId, entry: &ConfigEntry) -> bool {
        let about_us = match &entry.scope {
            Scope::Global => true,
            Scope::VCluster(vcluster) => *vcluster == self.vcluster,
            Scope::Node(of) => of == node,
        };
        let kind = entry.entry_type;
        let moves = kind.pushes() || entry.entry_type == EntryType::PolicyUpdate || !entry.takes_off.is_empty();
        about_us && moves && entry.sequence > self.sequence
    }
}

/// A change of the node that an operator asked for, or that somebody made behind the agent's back. Numbered per node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChangeId(pub u64);

/// Who made a key differ from what is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// An operator, through the agent.
    Operator(Author),
    /// Somebody else, seen when it was done.
    BehindItsBack,
    /// Nobody: the journal declared it, and it could not be brought about.
    NotReached,
}

impl Owner {
    /// Whether the key is this author's own.
    #[must_use]
    pub fn is(&self, author: &Author) -> bool {
        match self {
            Self::Operator(owner) => owner.principal == author.principal,
            Self::BehindItsBack | Self::NotReached => false,
        }
    }
}

/// A key that differs from what is declared, or is about to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalChange {
    /// The change that made it so.
    pub change: ChangeId,
    /// Who.
    pub owner: Owner,
    /// What the key was before, as far as it was seen: what a key that nobody declares returns to.
    pub before: Setting,
    /// What it was when it was last seen.
    pub value: Setting,
    /// What its owner asked for: what a commit declares, as long as it is still there.
    pub asked: Option<Setting>,
    /// When it began, for people.
    pub since: WallTime,
    /// Whether the spool holds this value, or the journal knows it.
    pub reported: bool,
    /// Why it could not be brought back, if that was tried.
    pub problem: Option<Arc<str>>,
}

/// A commit window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Numbered per node.
    pub number: u64,
    /// When it was opened.
    pub opened_at: BootTime,
    /// When it ends. Never moves later, but by an operator's extension or a thaw.
    pub deadline: BootTime,
    /// What differed when the deadline was last computed.
    pub drift: DriftVector,
    /// The frost it lies under, if any: it does not expire.
    pub frozen: Option<Frozen>,
}

/// Why a window stands still: what was to be taken back could not be, and is tried again when somebody asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// Since when. What was left of the window then is left when it thaws.
    pub at: BootTime,
    /// Who used what was to be taken back.
    pub consumers: Vec<Consumer>,
    /// What the host refused.
    pub errors: Vec<HostError>,
}

/// An emergency on the node: nothing rolls back by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emergency {
    /// Who declared it.
    pub author: Author,
    /// Why.
    pub reason: Arc<str>,
    /// When, for people.
    pub since: WallTime,
    /// When the emergency's own window ends: then there is an alert, and nothing else.
    pub deadline: BootTime,
    /// Whether that alert was given.
    pub alerted: bool,
    /// The event that tells the journal.
    pub event: u64,
    /// Where the journal recorded it, once it did: only what is recorded later can end it there.
    pub recorded: Option<Seq>,
}

/// A key that was changed here and in the journal: it stands still until somebody decides, or the grace period is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What was declared when the key was changed here; unset if nothing was.
    pub before: Setting,
    /// What is declared.
    pub declared: Setting,
    /// When the journal's value wins.
    pub deadline: BootTime,
}

/// Why something is brought back to what is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The machine booted.
    Boot,
    /// The journal declares something new.
    Declared,
    /// The window expired.
    Expired,
    /// An operator asked.
    Asked(Author),
    /// The journal's value won over a change made here.
    Conflict,
    /// A change was begun and could not be finished.
    Unfinished,
}

/// What the host is being changed for. Saved before the first change, so that after a crash it is finished or taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doing {
    /// An operator's change. After a crash it is taken back: nobody was told that it was done.
    Setting {
        /// Its number.
        change: ChangeId,
        /// The keys it touches, as they were.
        keys: BTreeMap<Key, Before>,
    },
    /// Bringing keys back. After a crash it goes on.
    Returning {
        /// Why.
        cause: Cause,
        /// Which.
        keys: BTreeSet<Key>,
    },
}

/// A key before an operator's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    /// What it was.
    pub value: Setting,
    /// The change it was under already.
    pub change: Option<LocalChange>,
}

/// A one-shot request that is, or may be, on its way to the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Its id.
    pub id: OneShotId,
    /// The age at which it was drawn.
    pub drawn_at: Age,
}

/// A commit that was asked for and whose answer is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingCommit {
    /// The request.
    pub attempt: Attempt,
    /// Who commits.
    pub author: Author,
    /// The sequence it was computed from.
    pub parent: Seq,
    /// What is to be declared for the node.
    pub settings: BTreeMap<Key, Setting>,
    /// Seconds until it expires, if it does.
    pub ttl_seconds: Option<u32>,
    /// Why.
    pub message: Arc<str>,
    /// When it was asked for.
    pub occurred_at: WallTime,
}

/// Which events count: those after `delivered`, up to `last`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spool {
    /// The last event that the journal has, or refused for good.
    pub delivered: u64,
    /// The last event that happened.
    pub last: u64,
    /// The request that carries the event after `delivered`, if it was sent.
    pub attempt: Option<Attempt>,
}

/// Everything the agent must remember across a crash, but for the declared state and the events themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// The boot that its deadlines belong to.
    pub boot: BootId,
    /// The sequence of the declared state that goes with it; none if there never was one.
    pub declared: Option<Seq>,
    /// What was committed from here since that sequence: declared for the node at these sequences.
    pub committed: BTreeMap<Key, (Seq, Setting)>,
    /// Every key that differs from what is declared, and those about to.
    pub changes: BTreeMap<Key, LocalChange>,
    /// The last number given to a change.
    pub last_change: ChangeId,
    /// The open window.
    pub window: Option<Window>,
    /// The last number given to a window.
    pub last_window: u64,
    /// The emergency the node is in.
    pub emergency: Option<Emergency>,
    /// The keys that were changed here and in the journal.
    pub conflicts: BTreeMap<Key, Conflict>,
    /// Whether the journal may take the node for drifted.
    pub told_drift: bool,
    /// What the host is being changed for.
    pub doing: Option<Doing>,
    /// The commit whose answer is not known.
    pub commit: Option<PendingCommit>,
    /// Which events count.
    pub spool: Spool,
}

impl Ledger {
    /// Before anything happened, in this boot.
    #[must_use]
    pub const fn new(boot: BootId) -> Self {
        Self {
            boot,
            declared: None,
            committed: BTreeMap::new(),
            changes: BTreeMap::new(),
            last_change: ChangeId(0),
            window: None,
            last_window: 0,
            emergency: None,
            conflicts: BTreeMap::new(),
            told_drift: false,
            doing: None,
            commit: None,
            spool: Spool { delivered: 0, last: 0, attempt: None },
        }
    }
}
