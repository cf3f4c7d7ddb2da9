//! What a voter that forgot may undo: the excuses of a story beyond the budget, entry by entry and term by term.
//!
//! When a voter forgets what it promised (an old image, or an empty disk under its old identity), an entry that it held may be
//! lost if a majority can be made of it and of voters that never had the entry. Only such entries are excused, and only a term
//! in which it may have voted can have two leaders, or one twice. And one that forgot who the voters are may believe an old
//! configuration, in which the forgetful are a quorum by themselves. All else must hold, for as long as nothing excused has
//! really been lost; when it has, replicas may rightly differ, so the run ends there, with the reason.
//!
//! Never excuses a replica of anything else: who merely stops, lags or damages its own copy is no reason.

use crate::event::Event;
use crate::world::Facts;
use muster_core::ids::{Index, ReplicaId, Term};
use muster_core::log::Configuration;
use muster_core::peer::{PeerMessage, RaftMessageKind};
use muster_core::request::RaftRole;
use std::collections::{BTreeMap, BTreeSet};

/// What one voter forgot, all the times it did.
#[derive(Clone, Debug, Default)]
struct Forgotten {
    /// The last term in which it may have voted.
    term: Term,
    /// The terms that it led.
    led: BTreeSet<Term>,
    /// The entries that may be lost, with their terms.
    endangered: BTreeSet<(Index, Term)>,
}

/// Everything that was forgotten so far.
#[derive(Debug, Default)]
pub(crate) struct Amnesia {
    forgotten: BTreeMap<ReplicaId, Forgotten>,
    leaders: BTreeMap<Term, ReplicaId>,
}

/// Whether every majority without the forgetful has somebody who holds the entry, and so has every majority with them.
fn is_safe(
    facts: &Facts,
    forgetful: &BTreeSet<ReplicaId>,
    configuration: &Configuration,
    at: Index,
    term: Term,
) -> bool {
    let holds = |who: &ReplicaId| {
        let durable = facts.replicas.get(who).map(|known| &known.durable);
        !forgetful.contains(who) && durable.is_some_and(|log| log.at(at) == Some(term) || log.start.0 > at)
    };
    let safe = |voters: &Vec<ReplicaId>| {
        let without = voters.iter().filter(|who| !holds(who)).count();
        without <= voters.len() / 2
    };
    // An election needs a majority of both halves, so one half that refuses is enough.
    safe(&configuration.voters) || (!configuration.voters_outgoing.is_empty() && safe(&configuration.voters_outgoing))
}

impl Amnesia {
    /// A replica forgets now what `facts` say was durable on its disk. Gives what that endangers, in words.
    pub(crate) fn forget(&mut self, facts: &Facts, replica: ReplicaId) -> String {
        let mut forgetful: BTreeSet<ReplicaId> = self.forgotten.keys().copied().collect();
        forgetful.insert(replica);
        let configuration = facts.newest_view().map(|view| view.status.configuration.clone()).unwrap_or_default();
        let known = facts.replicas.get(&replica).cloned().unwrap_or_default();
        let mut endangered = BTreeSet::new();
        if configuration.voters.contains(&replica) || configuration.voters_outgoing.contains(&replica) {
            for index in known.durable.start.0.0 + 1..=known.durable.last().0 {
                let Some(term) = known.durable.at(Index(index)) else { continue };
                if !is_safe(facts, &forgetful, &configuration, Index(index), term) {
                    endangered.insert((Index(index), term));
                }
            }
        }
        let words = match (endangered.first(), endangered.last()) {
            (Some((first, _)), Some((last, _))) => {
                format!("r{replica} forgets; entries {first} to {last} need it in some quorum and are excused")
            }
            _ => format!("r{replica} forgets; every entry is held by enough others"),
        };
        let led = self.leaders.iter().filter(|(_, leader)| **leader == replica).map(|(term, _)| *term);
        let forgotten = self.forgotten.entry(replica).or_default();
        forgotten.led.extend(led);
        forgotten.term = forgotten.term.max(known.hard_state.term);
        forgotten.endangered.append(&mut endangered);
        words
    }

    /// Why nothing more can be demanded after an event, if something excused was really lost with it.
    pub(crate) fn look(&mut self, facts: &Facts, event: &Event) -> Option<String> {
        if self.forgotten.is_empty() {
            self.note(event);
            return None;
        }
        let (leader, term) = leads(event)?;
        let first = *self.leaders.entry(term).or_insert(leader);
        if first != leader {
            let twice = self.forgotten.iter().find(|(_, forgotten)| forgotten.term >= term);
            return twice.map(|(who, _)| format!("r{who} forgot its vote, and term {term} has two leaders"));
        }
        if self.forgotten.get(&leader).is_some_and(|forgotten| forgotten.led.contains(&term)) {
            return Some(format!("r{leader} forgot that it led term {term}, and leads it again"));
        }
        let known = facts.replicas.get(&leader)?;
        if let Some(view) = known.view.as_ref().filter(|_| self.forgotten.contains_key(&leader)) {
            let voters = &view.status.configuration.voters;
            let forgetful = voters.iter().filter(|who| self.forgotten.contains_key(who)).count();
            let newest = facts.newest_view().map(|newest| &newest.status.configuration.voters);
            if forgetful > voters.len() / 2 && newest != Some(voters) {
                return Some(format!("r{leader} forgot who the voters are, and leads as in {voters:?}"));
            }
        }
        let log = &known.log;
        for (who, forgotten) in &self.forgotten {
            let lost = forgotten.endangered.iter().find(|(index, entry)| {
                *entry < term
                    && *index > log.start.0
                    && log.at(*index) != Some(*entry)
                    && facts.was_committed(*index, *entry)
            });
            if let Some((index, _)) = lost {
                return Some(format!(
                    "r{who} forgot entry {index}, which a quorum needed it for, and r{leader} leads without it"
                ));
            }
        }
        None
    }

    fn note(&mut self, event: &Event) {
        if let Some((leader, term)) = leads(event) {
            self.leaders.entry(term).or_insert(leader);
        }
    }
}

/// Who shows by an event that it leads which term.
fn leads(event: &Event) -> Option<(ReplicaId, Term)> {
    match event {
        Event::View { replica, view, .. } => {
            (view.status.role == RaftRole::Leader).then_some((*replica, view.status.term))
        }
        Event::Send { envelope, again: false, .. } => match &envelope.message {
            PeerMessage::Raft(raft)
                if matches!(
                    raft.kind,
                    RaftMessageKind::Append | RaftMessageKind::Heartbeat | RaftMessageKind::Snapshot
                ) =>
            {
                Some((envelope.from, raft.term))
            }
            _ => None,
        },
        _ => None,
    }
}
