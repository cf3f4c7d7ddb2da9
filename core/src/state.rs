//! The replicated state, and the one function that moves it.
//!
//! [`State::apply`] is a function of its arguments: it reads live state only, never a past record, a clock or randomness,
//! so every replica that applies the same proposals has the same state, down to the digest of its pages. A clone is O(1)
//! and stays what it was.
//!
//! Replicated time (`age`) passes with every proposal, whatever becomes of it; it is all that ever expires anything, and
//! only [`Command::Expire`] does.

mod sessions;

pub use sessions::Sessions;
pub(crate) use sessions::{OneShot, Session};

pub use crate::codec::state::StateLoader;
pub use crate::journal::apply::Finished;
pub use crate::journal::live::Journal;
pub use crate::members::Members;

use crate::codec::state::Maker;
use crate::codec::{self, CodecError};
use crate::ids::{Age, ClusterId, Digest, Index, Seq, Term, WallTime};
use crate::journal::apply::{Moment, Plan};
use crate::journal::check::{self, invalid};
use crate::journal::command::JournalCommand;
use crate::journal::entry::{Author, OperationDraft, OperationKind, Principal};
use crate::journal::key::Scope;
use crate::limits::{EXPIRE_MAX, FEATURE_DOOR, FEATURE_LEVEL, TAKES_OFF_MAX};
use crate::log::Configuration;
use crate::mark::mark;
use crate::members::{Member, MemberCommand};
use crate::request::{Command, Outcome, Refusal, Reply, RequestId, WriteRequest};
use crate::service::{self, Kind, Operation};
use crate::storage::{Pages, Segment, SnapshotMeta};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;

/// What a leader puts into the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The write.
    pub write: WriteRequest,
    /// The leader's wall clock. For people.
    pub recorded_at: WallTime,
    /// Monotonic time, in microseconds, since this leader's previous proposal of this term that entered the log, or since it
    /// became the term's leader.
    pub elapsed: u64,
}

/// The replicated state.
#[derive(Clone, Debug)]
pub struct State {
    /// What is declared.
    pub journal: Journal,
    /// What was asked.
    pub sessions: Sessions,
    /// Who the replicas are.
    pub members: Members,
    pub(crate) cluster: ClusterId,
    pub(crate) age: Age,
    pub(crate) feature_level: u32,
}

const fn _views_are_shared_between_threads() {
    const fn shared<T: Send + Sync>() {}
    shared::<State>();
}

impl State {
    /// What `init` starts from: an empty journal and one member, at log position 0.
    #[must_use]
    pub fn new(cluster: ClusterId, first: Member) -> Self {
        Self {
            journal: Journal::new(),
            sessions: Sessions::new(),
            feature_level: first.feature_level.min(FEATURE_LEVEL),
            members: Members::new(first),
            cluster,
            age: Age(0),
        }
    }

    /// What a replica has before its first snapshot: nothing, and nobody.
    #[must_use]
    pub fn empty(cluster: ClusterId) -> Self {
        Self {
            journal: Journal::new(),
            sessions: Sessions::new(),
            members: Members::empty(),
            cluster,
            age: Age(0),
            feature_level: 0,
        }
    }

    /// Which cluster this is the state of.
    #[must_use]
    pub const fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Replicated time.
    #[must_use]
    pub const fn age(&self) -> Age {
        self.age
    }

    /// The feature level in force.
    #[must_use]
    pub const fn feature_level(&self) -> u32 {
        self.feature_level
    }

    /// The journal's last sequence.
    #[must_use]
    pub const fn sequence(&self) -> Seq {
        self.journal.sequence()
    }

    /// The chain's head at that sequence.
    #[must_use]
    pub const fn head(&self) -> Digest {
        self.journal.head()
    }

    /// The history this state rests on, oldest first; the last segment is the open one, possibly empty.
    #[must_use]
    pub fn history(&self) -> Vec<Segment> {
        self.journal.history()
    }

    /// What a snapshot of this state at a log position is called. Layers and digest are filled in by whoever saves it.
    #[must_use]
    pub fn snapshot_meta(&self, index: Index, term: Term, configuration: Configuration) -> SnapshotMeta {
        SnapshotMeta {
            index,
            term,
            configuration,
            sequence: self.sequence(),
            head: self.head(),
            age: self.age(),
            history: self.history(),
            layers: Vec::new(),
            digest: Digest::default(),
        }
    }

    /// The earliest age at which [`Command::Expire`] has something to do.
    #[must_use]
    pub fn next_due(&self) -> Option<Age> {
        self.journal.next_due().into_iter().chain(self.sessions.next_due()).min()
    }

    /// The state as a layer's pages, of at most [`crate::limits::PAGE_BYTES`] uncompressed, each made when it is asked for.
    #[must_use]
    pub fn layer(&self) -> Pages {
        Box::new(Maker::whole(self.clone()))
    }

    /// The same, of what changed since an earlier view of the same journal, whose digest is known.
    #[must_use]
    pub fn layer_over(&self, below: &Self, digest: Digest) -> Pages {
        Box::new(Maker::since(self.clone(), below.clone(), digest))
    }

    /// The bytes of all pages of [`State::layer`].
    pub fn pages(&self) -> impl Iterator<Item = Bytes> + Send + 'static {
        let mut pages = self.layer();
        core::iter::from_fn(move || pages.next_page()).map(|page| page.bytes)
    }

    /// The state that pages hold.
    ///
    /// # Errors
    /// If they are not all the pages of one state, in order.
    pub fn from_pages(pages: impl IntoIterator<Item = Bytes>) -> Result<Self, CodecError> {
        let mut loader = StateLoader::new();
        for page in pages {
            loader.page(&page)?;
        }
        loader.finish()
    }

    /// The sum of the digests of all its parts. Equal on replicas that applied the same proposals; that of a later state
    /// follows from it and from what changed.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Maker::digest_of(self)
    }

    /// Whether the rules would refuse a write now. The same code as in [`State::apply`]; what was asked before, and time,
    /// are not looked at.
    ///
    /// # Errors
    /// The refusal.
    pub fn check(&self, write: &WriteRequest) -> Result<(), Refusal> {
        check_envelope(write)?;
        self.ask_the_door(write)?;
        match &write.command {
            Command::Journal(command) => self.plan(&write.author, command.clone()).map(|_| ()),
            Command::Members(command) => self.check_members(command),
            Command::RaiseFeatureLevel(level) => self.check_feature_level(*level),
            Command::OpenSession | Command::CloseSession | Command::Expire => Ok(()),
        }
    }

    /// Applies the proposal at a position of the log; gives what became of it and the records it made.
    ///
    /// # Panics
    /// On a bug of ours only: whatever a decoded proposal holds, it is applied, refused, or told why not.
    pub fn apply(&mut self, index: Index, proposal: Proposal) -> (Outcome, Vec<Finished>) {
        let Proposal { write, recorded_at, elapsed } = proposal;
        self.age = Age(self.age.0.saturating_add(elapsed));
        if let Some(outcome) = self.sessions.meet(self.age, write.request, &write.author) {
            mark!(request_met_again);
            return (outcome, Vec::new());
        }
        let request = write.request;
        let mut finished = Vec::new();
        let mut moment = Moment { age: self.age, wall: recorded_at, finished: &mut finished };
        let outcome = match self.give(&mut moment, write) {
            Ok(reply) => Outcome::Applied { index, reply },
            Err(Stop::Refused(refusal)) => Outcome::Refused(refusal),
            Err(Stop::Busy(outcome)) => return (outcome, Vec::new()),
        };
        assert!(
            matches!(outcome, Outcome::Applied { .. }) || finished.is_empty(),
            "a refused command recorded something"
        );
        self.sessions.keep(self.age, request, &outcome);
        (outcome, finished)
    }

    fn give(&mut self, moment: &mut Moment<'_>, write: WriteRequest) -> Result<Reply, Stop> {
        check_envelope(&write)?;
        self.ask_the_door(&write)?;
        let WriteRequest { request, author, command } = write;
        match command {
            Command::Journal(command) => {
                let plan = self.plan(&author, command)?;
                Ok(self.journal.carry_out(moment, author, plan))
            }
            Command::Members(command) => {
                self.check_members(&command)?;
                Ok(self.change_members(moment, author, command))
            }
            Command::OpenSession => {
                let holder = self.has_door().then(|| sessions::holder(&author));
                let session = self.sessions.open(self.age, holder).map_err(Stop::Busy)?;
                Ok(Reply::Session { session })
            }
            Command::CloseSession => {
                if let RequestId::Session { session, .. } = request {
                    self.sessions.close(session);
                }
                Ok(Reply::SessionClosed)
            }
            Command::Expire => Ok(Reply::Expired { count: self.expire(moment) }),
            Command::RaiseFeatureLevel(level) => {
                self.check_feature_level(level)?;
                self.feature_level = level;
                Ok(Reply::FeatureLevel { level })
            }
        }
    }

    /// Whether apply asks the door. Replicas of a lower level would not, and must come to the same result.
    const fn has_door(&self) -> bool {
        self.feature_level >= FEATURE_DOOR
    }

    fn ask_the_door(&self, write: &WriteRequest) -> Result<(), Refusal> {
        if self.has_door() {
            service::allow_author(&write.author, &Operation::of_command(&write.command), &self.journal)?;
        }
        Ok(())
    }

    /// Plans a command of the journal. That a rollback moves its node to another vCluster is seen only here.
    fn plan(&self, author: &Author, command: JournalCommand) -> Result<Plan, Refusal> {
        let plan = self.journal.plan(command, self.feature_level)?;
        if self.has_door()
            && let Some(scope) = plan.moves_node()
        {
            service::allow_author(author, &Operation::on(Kind::AssignNode, scope.clone()), &self.journal)?;
        }
        Ok(plan)
    }

    fn change_members(&mut self, moment: &mut Moment<'_>, author: Author, command: MemberCommand) -> Reply {
        let (reply, detail) = self.members.carry_out(command);
        if let Some(detail) = detail {
            let kind = OperationKind::Membership;
            let detail: Arc<str> = Arc::from(detail);
            let draft = OperationDraft { kind, scope: Scope::Global, detail, exit_status: None, occurred_at: None };
            self.journal.record_audit(moment, author, draft);
        }
        reply
    }

    /// Expires what is due: entries first, then sessions and one-shots. At most [`EXPIRE_MAX`] things, and no more pairs than
    /// one rollback takes off.
    fn expire(&mut self, moment: &mut Moment<'_>) -> u32 {
        let mut count = 0;
        let mut pairs = 0;
        while count < EXPIRE_MAX && pairs < TAKES_OFF_MAX {
            let Some(taken) = self.journal.expire_next(moment, TAKES_OFF_MAX - pairs) else { break };
            pairs += taken;
            count += 1;
        }
        count + self.sessions.expire(self.age, EXPIRE_MAX - count)
    }

    /// Checks a change of the members against those there are, and an admission against the level in force: a replica that does
    /// not support it would take new commands for old ones.
    fn check_members(&self, command: &MemberCommand) -> Result<(), Refusal> {
        if let MemberCommand::Admit(admission) = command
            && admission.feature_level < self.feature_level
        {
            let (supports, has) = (admission.feature_level, self.feature_level);
            let problem = format!("the cluster is at feature level {has}, and it supports only up to {supports}");
            return Err(invalid("feature_level", format!("{problem}: start a newer muster")));
        }
        self.members.check_change(command)
    }

    fn check_feature_level(&self, level: u32) -> Result<(), Refusal> {
        let (has, supported) = (self.feature_level, self.members.feature_level());
        if level <= has {
            return Err(invalid("feature_level", format!("it is {has} already and only ever rises")));
        }
        if level > supported {
            return Err(invalid("feature_level", format!("not every member supports {level}, only up to {supported}")));
        }
        Ok(())
    }

    /// What is wrong with this state, if anything: the shape that every reachable state has. Costs as much as there is.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        codec::state::problem(self)
    }
}

/// Why a command did not happen.
enum Stop {
    Refused(Refusal),
    /// Not remembered: the client asks again.
    Busy(Outcome),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Checks author and request id against the command, whatever the state.
fn check_envelope(write: &WriteRequest) -> Result<(), Refusal> {
    check::author(&write.author, &write.command)?;
    let own = matches!(write.author.principal, Principal::System { .. });
    match (&write.request, &write.command) {
        (RequestId::None, _) if !own => {
            Err(invalid("request", "it has no id: expected a numbered request of a session, or a one-shot id"))
        }
        (RequestId::Session { .. } | RequestId::None, Command::OpenSession) => {
            Err(invalid("request", "a session is opened by a one-shot request"))
        }
        (RequestId::OneShot { .. } | RequestId::None, Command::CloseSession) => {
            Err(invalid("request", "a session is closed by one of its own requests"))
        }
        _ => Ok(()),
    }
}
