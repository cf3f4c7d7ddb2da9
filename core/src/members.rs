//! Who the replicas are: names, addresses, incarnations. Who votes is the Raft configuration's word, not this table's.

use crate::ids::{Incarnation, ReplicaId, ReplicaName};
use crate::journal::check::invalid;
use crate::limits::{ADDRESS_BYTES_MAX, MEMBERS_MAX};
use crate::request::{Refusal, Reply};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use imbl::OrdMap;

/// A replica that was admitted to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id, allotted by the cluster, never used again.
    pub id: ReplicaId,
    /// Its display name, unique among the members.
    pub name: ReplicaName,
    /// The life of its data directory.
    pub incarnation: Incarnation,
    /// Where its peers reach it, `host:port`.
    pub peer_address: Arc<str>,
    /// Where its clients reach it, `host:port`.
    pub client_address: Arc<str>,
    /// What the leader should do once it has caught up.
    pub wish: MemberWish,
    /// The highest feature level it supports.
    pub feature_level: u32,
}

/// What a member is to become once it has caught up and holds the whole history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberWish {
    /// A learner.
    #[default]
    Learner,
    /// A voter.
    Voter,
    /// A voter in the place of another, in one joint change.
    Replacement {
        /// Who leaves.
        of: ReplicaId,
    },
}

/// What a replica tells when it asks to be admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Its display name.
    pub name: ReplicaName,
    /// Drawn for its empty data directory. Asking again with the same one gives the same id.
    pub incarnation: Incarnation,
    /// Where its peers reach it, `host:port`.
    pub peer_address: Arc<str>,
    /// Where its clients reach it, `host:port`.
    pub client_address: Arc<str>,
    /// What it is to become.
    pub wish: MemberWish,
    /// The highest feature level it supports.
    pub feature_level: u32,
}

/// A change of the membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberCommand {
    /// Allots an id and remembers the member. It takes no part until it is added.
    Admit(Admission),
    /// Adds an admitted member as a learner.
    AddLearner(ReplicaId),
    /// Makes a learner a voter. Refused until it has caught up and holds the whole history.
    Promote(ReplicaId),
    /// Makes a voter a learner.
    Demote(ReplicaId),
    /// Takes a member out, for good.
    Remove(ReplicaId),
    /// One joint change: the new one votes, the old one is out.
    Replace {
        /// Who leaves.
        old: ReplicaId,
        /// Who takes its place.
        new: ReplicaId,
    },
}

/// The members, by id.
#[derive(Clone, Debug)]
pub struct Members {
    pub(crate) table: OrdMap<ReplicaId, Member>,
    pub(crate) next: ReplicaId,
}

impl Members {
    /// The first member alone.
    pub(crate) fn new(first: Member) -> Self {
        let next = ReplicaId(first.id.0 + 1);
        Self { table: OrdMap::unit(first.id, first), next }
    }

    /// Nobody: what a replica knows before its first snapshot.
    pub(crate) fn empty() -> Self {
        Self { table: OrdMap::new(), next: ReplicaId(1) }
    }

    /// A member.
    #[must_use]
    pub fn get(&self, id: ReplicaId) -> Option<&Member> {
        self.table.get(&id)
    }

    /// Every member, by id.
    pub fn all(&self) -> impl Iterator<Item = &Member> {
        self.table.values()
    }

    /// The id that the next admission gets. Every id below it was allotted once, and is never allotted again.
    #[must_use]
    pub const fn next_id(&self) -> ReplicaId {
        self.next
    }

    /// The highest feature level that every member supports.
    #[must_use]
    pub fn feature_level(&self) -> u32 {
        self.all().map(|member| member.feature_level).min().unwrap_or(0)
    }

    /// Checks a command against the members there are. Whether the Raft configuration allows it is the leader's to say.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] or [`Refusal::Membership`].
    pub fn check_change(&self, command: &MemberCommand) -> Result<(), Refusal> {
        match command {
            MemberCommand::Admit(admission) => self.check_admission(admission),
            MemberCommand::AddLearner(id) | MemberCommand::Promote(id) | MemberCommand::Demote(id) => {
                self.present(*id).map(|_| ())
            }
            MemberCommand::Remove(id) => {
                self.present(*id)?;
                if self.table.len() == 1 {
                    return refuse(format!("replica {id} is the last one and cannot be removed"));
                }
                Ok(())
            }
            MemberCommand::Replace { old, new } => {
                self.present(*old)?;
                self.present(*new)?;
                if old == new {
                    return refuse(format!("replica {old} cannot take its own place"));
                }
                Ok(())
            }
        }
    }

    fn present(&self, id: ReplicaId) -> Result<&Member, Refusal> {
        self.get(id).ok_or_else(|| {
            let problem = if id.0 > 0 && id < self.next {
                format!("replica {id} was removed; its id is not used again")
            } else {
                format!("there is no replica {id}")
            };
            Refusal::Membership { problem: Arc::from(problem) }
        })
    }

    fn check_admission(&self, admission: &Admission) -> Result<(), Refusal> {
        address("peer_address", &admission.peer_address)?;
        address("client_address", &admission.client_address)?;
        let known = self.admitted_as(admission.incarnation);
        let replaces = match admission.wish {
            // Asking again after the replacement is done is fine: the wish was granted.
            MemberWish::Replacement { of } if known.is_none() => {
                self.present(of)?;
                Some(of)
            }
            MemberWish::Replacement { of } => Some(of),
            MemberWish::Learner | MemberWish::Voter => None,
        };
        let other = self.all().find(|member| {
            member.name == admission.name && member.incarnation != admission.incarnation && Some(member.id) != replaces
        });
        if let Some(other) = other {
            return refuse(format!(
                "the name {} belongs to replica {}: choose another, or replace that one",
                other.name, other.id
            ));
        }
        if known.is_none() && self.table.len() >= MEMBERS_MAX {
            return refuse(format!("there are {} members, at most {MEMBERS_MAX} are accepted", self.table.len()));
        }
        Ok(())
    }

    fn admitted_as(&self, incarnation: Incarnation) -> Option<&Member> {
        self.all().find(|member| member.incarnation == incarnation)
    }

    /// Carries out a command that was checked; gives what to write into the audit log, if anything changed.
    pub(crate) fn carry_out(&mut self, command: MemberCommand) -> (Reply, Option<String>) {
        let label = |members: &Self, id: ReplicaId| match members.get(id) {
            Some(member) => format!("replica {id} ({})", member.name),
            None => format!("replica {id}"),
        };
        match command {
            MemberCommand::Admit(admission) => self.admit(admission),
            MemberCommand::AddLearner(id) => (Reply::Membership, Some(format!("add {} as a learner", label(self, id)))),
            MemberCommand::Promote(id) => {
                self.wish(id, MemberWish::Voter);
                (Reply::Membership, Some(format!("promote {}", label(self, id))))
            }
            MemberCommand::Demote(id) => {
                self.wish(id, MemberWish::Learner);
                (Reply::Membership, Some(format!("demote {}", label(self, id))))
            }
            MemberCommand::Remove(id) => {
                let detail = format!("remove {}", label(self, id));
                self.forget(id);
                (Reply::Membership, Some(detail))
            }
            MemberCommand::Replace { old, new } => {
                let detail = format!("replace {} by {}", label(self, old), label(self, new));
                self.forget(old);
                self.wish(new, MemberWish::Voter);
                (Reply::Membership, Some(detail))
            }
        }
    }

    /// Admits a replica, or brings what is known of it up to date if its data directory was admitted before. Its wish stays
    /// what the members made of it since.
    fn admit(&mut self, admission: Admission) -> (Reply, Option<String>) {
        let Admission { name, incarnation, peer_address, client_address, wish, feature_level } = admission;
        let known = self.admitted_as(incarnation).cloned();
        let (id, wish) = known.as_ref().map_or((self.next, wish), |known| (known.id, known.wish));
        let member = Member { id, name, incarnation, peer_address, client_address, wish, feature_level };
        let verb = match &known {
            Some(known) if *known == member => return (Reply::Admitted { replica: id }, None),
            Some(_) => "update",
            None => "admit",
        };
        if known.is_none() {
            self.next = ReplicaId(self.next.0 + 1);
        }
        let detail = format!(
            "{verb} replica {id} ({}), peers {}, clients {}",
            member.name, member.peer_address, member.client_address
        );
        self.table.insert(id, member);
        (Reply::Admitted { replica: id }, Some(detail))
    }

    fn wish(&mut self, id: ReplicaId, wish: MemberWish) {
        if let Some(member) = self.table.get_mut(&id) {
            member.wish = wish;
        }
    }

    /// Takes a member out. Whoever was to take its place is to become a voter all the same.
    fn forget(&mut self, id: ReplicaId) {
        self.table.remove(&id);
        let waiting: alloc::vec::Vec<ReplicaId> =
            self.all().filter(|member| member.wish == MemberWish::Replacement { of: id }).map(|m| m.id).collect();
        for heir in waiting {
            self.wish(heir, MemberWish::Voter);
        }
    }
}

fn refuse(problem: String) -> Result<(), Refusal> {
    Err(Refusal::Membership { problem: Arc::from(problem) })
}

fn address(field: &str, text: &str) -> Result<(), Refusal> {
    let good = text.len() <= ADDRESS_BYTES_MAX
        && !text.chars().any(|c| c.is_whitespace() || c.is_control())
        && text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty()
                && port.bytes().all(|b| b.is_ascii_digit())
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
    if good {
        return Ok(());
    }
    Err(invalid(field, format!("{text:?} is not an address: expected host:port of at most {ADDRESS_BYTES_MAX} bytes")))
}
