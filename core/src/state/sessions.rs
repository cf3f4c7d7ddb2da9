//! What makes a write happen at most once: the replies of sessions and of one-shot requests.
//!
//! A reply is kept until its client acknowledges it (sessions) or for an hour of replicated time (one-shots). A request
//! whose history cannot be known any more is answered *unknown* and never applied. Everything is bounded; at a bound the
//! answer is *busy*, which is not remembered.
//!
//! A session is its holder's: a request of anybody else is refused without a trace, so nobody can read another's replies,
//! acknowledge them away or use its numbers up.

use crate::ids::{Age, Digest, OneShotId, SessionId};
use crate::journal::entry::{Author, Role};
use crate::limits::{
    BUSY_RETRY_MS, ONE_SHOT_SECONDS, ONE_SHOTS_MAX, SESSION_IDLE_SECONDS, SESSION_REPLIES_MAX, SESSIONS_MAX,
};
use crate::request::{NotApplied, Outcome, Refusal, RequestId, UnknownWhy};
use alloc::format;
use alloc::sync::Arc;
use imbl::{OrdMap, OrdSet};

/// An open session.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Session {
    /// Whose it is. Those opened before sessions had holders are anybody's.
    pub(crate) holder: Option<Digest>,
    /// Replies up to this number are not kept.
    pub(crate) acknowledged: u64,
    /// When it was last used.
    pub(crate) used: Age,
    /// How many replies are kept.
    pub(crate) replies: u64,
}

/// A one-shot's reply.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OneShot {
    /// Since when it is kept.
    pub(crate) since: Age,
    /// The reply.
    pub(crate) outcome: Outcome,
}

/// All sessions and one-shots.
#[derive(Clone, Debug)]
pub struct Sessions {
    pub(crate) next: SessionId,
    pub(crate) open: OrdMap<SessionId, Session>,
    /// Shared, as the one-shots are: a leaf of the map that many views hold is copied with every change.
    pub(crate) replies: OrdMap<(SessionId, u64), Arc<Outcome>>,
    pub(crate) one_shots: OrdMap<OneShotId, Arc<OneShot>>,
    /// Each session under when it was last used. Follows from `open`.
    pub(crate) idle: OrdSet<(Age, SessionId)>,
    /// Each one-shot under since when it is kept. Follows from `one_shots`.
    pub(crate) kept: OrdSet<(Age, OneShotId)>,
    /// Whose request came last, and as what they hold sessions: requests of one author come in runs. Follows from the author.
    lately: Option<(Author, Digest)>,
}

const fn busy() -> Outcome {
    Outcome::NotApplied(NotApplied::Busy { retry_after_ms: BUSY_RETRY_MS })
}

impl Sessions {
    pub(crate) fn new() -> Self {
        Self {
            next: SessionId(1),
            open: OrdMap::new(),
            replies: OrdMap::new(),
            one_shots: OrdMap::new(),
            idle: OrdSet::new(),
            kept: OrdSet::new(),
            lately: None,
        }
    }

    /// How many sessions are open.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.open.len() as u64
    }

    /// How many one-shot replies are kept.
    #[must_use]
    pub fn one_shot_count(&self) -> u64 {
        self.one_shots.len() as u64
    }

    /// The outcome of a request that must not be applied (again); none if it is to be applied now.
    pub(crate) fn meet(&mut self, age: Age, request: RequestId, author: &Author) -> Option<Outcome> {
        match request {
            RequestId::Session { session, number, acknowledged } => {
                self.foreign(session, author).or_else(|| self.meet_numbered(age, session, number, acknowledged))
            }
            RequestId::OneShot { id, drawn_at } => self.meet_one_shot(age, id, drawn_at),
            RequestId::None => None,
        }
    }

    /// The outcome that is kept of a request that was applied.
    pub(crate) fn kept(&self, request: RequestId) -> Option<Outcome> {
        match request {
            RequestId::Session { session, number, .. } => {
                self.replies.get(&(session, number)).map(|outcome| Outcome::clone(outcome))
            }
            RequestId::OneShot { id, .. } => self.one_shots.get(&id).map(|kept| kept.outcome.clone()),
            RequestId::None => None,
        }
    }

    /// The refusal of a request in a session that is somebody else's.
    fn foreign(&mut self, id: SessionId, author: &Author) -> Option<Outcome> {
        let held_by = self.open.get(&id)?.holder?;
        let holder = match &self.lately {
            Some((lately, holder)) if lately == author => *holder,
            Some(_) | None => self.lately.insert((author.clone(), holder(author))).1,
        };
        (held_by != holder).then(|| {
            let problem = format!("session {id} was opened by somebody else: open one of your own");
            Outcome::Refused(Refusal::Forbidden { problem: Arc::from(problem) })
        })
    }

    fn meet_numbered(&mut self, age: Age, id: SessionId, number: u64, acknowledged: u64) -> Option<Outcome> {
        let Some(session) = self.open.get_mut(&id) else {
            return Some(Outcome::Unknown(UnknownWhy::SessionUnknown));
        };
        if session.used != age {
            self.idle.remove(&(session.used, id));
            self.idle.insert((age, id));
            session.used = age;
        }
        if acknowledged > session.acknowledged {
            session.acknowledged = acknowledged;
            while session.replies > 0
                && let Some((&at, _)) = self.replies.get_next(&(id, 0))
                && at <= (id, acknowledged)
            {
                self.replies.remove(&at);
                session.replies -= 1;
            }
        }
        if number <= session.acknowledged {
            return Some(Outcome::Unknown(UnknownWhy::AlreadyAcknowledged));
        }
        if let Some(outcome) = self.replies.get(&(id, number)) {
            return Some(Outcome::clone(outcome));
        }
        (session.replies >= SESSION_REPLIES_MAX as u64).then(busy)
    }

    fn meet_one_shot(&mut self, age: Age, id: OneShotId, drawn_at: Age) -> Option<Outcome> {
        if let Some(kept) = self.one_shots.get(&id) {
            return Some(kept.outcome.clone());
        }
        // A reply is dropped only when this much age has passed since it was applied, which is no sooner than since it was
        // drawn: a request that was applied and forgotten is always caught here.
        if drawn_at > age || age >= drawn_at.plus_seconds(ONE_SHOT_SECONDS) {
            return Some(Outcome::Unknown(UnknownWhy::OneShotExpired));
        }
        (self.one_shots.len() >= ONE_SHOTS_MAX).then(busy)
    }

    /// Keeps what became of a request that was met as new.
    pub(crate) fn keep(&mut self, age: Age, request: RequestId, outcome: &Outcome) {
        match request {
            RequestId::Session { session: id, number, .. } => {
                // A session that its own request closed keeps nothing.
                if let Some(session) = self.open.get_mut(&id) {
                    session.replies += 1;
                    let before = self.replies.insert((id, number), Arc::new(outcome.clone()));
                    assert!(before.is_none(), "request {number} of session {id} was applied twice");
                }
            }
            RequestId::OneShot { id, .. } => {
                let before = self.one_shots.insert(id, Arc::new(OneShot { since: age, outcome: outcome.clone() }));
                assert!(before.is_none(), "one-shot {id} was applied twice");
                self.kept.insert((age, id));
            }
            RequestId::None => {}
        }
    }

    /// Opens a session; none if there are too many.
    pub(crate) fn open(&mut self, age: Age, holder: Option<Digest>) -> Result<SessionId, Outcome> {
        if self.open.len() >= SESSIONS_MAX {
            return Err(busy());
        }
        let id = self.next;
        self.next = SessionId(id.0 + 1);
        self.open.insert(id, Session { holder, acknowledged: 0, used: age, replies: 0 });
        self.idle.insert((age, id));
        Ok(id)
    }

    /// Closes a session.
    pub(crate) fn close(&mut self, id: SessionId) {
        if let Some(session) = self.open.remove(&id) {
            self.idle.remove(&(session.used, id));
        }
        while let Some((at, _)) = self.replies.range((id, 0)..=(id, u64::MAX)).next() {
            let at = *at;
            self.replies.remove(&at);
        }
    }

    /// When the next thing here is due to expire.
    pub(crate) fn next_due(&self) -> Option<Age> {
        let session = self.idle.get_min().map(|(used, _)| used.plus_seconds(SESSION_IDLE_SECONDS));
        let one_shot = self.kept.get_min().map(|(since, _)| since.plus_seconds(ONE_SHOT_SECONDS));
        session.into_iter().chain(one_shot).min()
    }

    /// Expires at most `most` things that are due; gives how many.
    pub(crate) fn expire(&mut self, age: Age, most: u32) -> u32 {
        let mut count = 0;
        while count < most {
            if let Some((used, id)) = self.idle.get_min().copied()
                && used.plus_seconds(SESSION_IDLE_SECONDS) <= age
            {
                self.close(id);
            } else if let Some((since, id)) = self.kept.get_min().copied()
                && since.plus_seconds(ONE_SHOT_SECONDS) <= age
            {
                self.one_shots.remove(&id);
                self.kept.remove(&(since, id));
            } else {
                break;
            }
            count += 1;
        }
        count
    }
}

/// By whom a session is held: by a principal; by a node's agent whoever it speaks for, since it does so over one connection.
pub(crate) fn holder(author: &Author) -> Digest {
    match &author.role {
        Role::Agent(node) => Digest::of(format!("agent:{node}").as_bytes()),
        Role::Admin | Role::Operator(_) | Role::Viewer(_) | Role::System => {
            Digest::of(format!("principal:{}", author.principal).as_bytes())
        }
    }
}
