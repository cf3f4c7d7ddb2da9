//! The shape that every reachable state has: what is wrong with one that has another.

use crate::ids::VClusterId;
use crate::journal::live::{Journal, is_weighed, weight_of};
use crate::state::State;
use crate::storage::Segment;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use imbl::{OrdSet, Vector};

/// What is wrong with a state whose stacks and their indexes were checked as they were loaded.
pub(super) fn problem_of_loaded(state: &State) -> Option<String> {
    history_problem(&state.journal).or_else(|| scopes_problem(&state.journal)).or_else(|| sessions_problem(state))
}

/// What is wrong with a state, if anything.
pub(crate) fn problem(state: &State) -> Option<String> {
    history_problem(&state.journal)
        .or_else(|| stacks_problem(&state.journal))
        .or_else(|| scopes_problem(&state.journal))
        .or_else(|| sessions_problem(state))
}

fn history_problem(journal: &Journal) -> Option<String> {
    if journal.sequence.0 > u64::MAX / 2 {
        return Some(format!("its sequence {} is none that a journal reaches", journal.sequence));
    }
    let mut next = crate::ids::Seq(1);
    let mut head = crate::ids::Digest::default();
    let segments: Vector<Segment> = journal.sealed.iter().copied().chain([journal.open]).collect();
    for segment in &segments {
        if segment.first != next || segment.before != head {
            return Some(format!("the segment from {} does not follow sequence {next} and its head", segment.first));
        }
        if segment.last.0 < segment.first.0 - 1 || segment.last > journal.sequence {
            return Some(format!("the segment from {} ends at {}", segment.first, segment.last));
        }
        (next, head) = (segment.last.next(), segment.head);
    }
    if next != journal.sequence.next() || head != journal.head {
        return Some(format!("history ends before {next}, the journal at {}", journal.sequence));
    }
    if journal.sealed.iter().any(|segment| !segment.is_full()) || journal.open.is_full() {
        return Some("a segment is sealed too early or too late".into());
    }
    None
}

fn stacks_problem(journal: &Journal) -> Option<String> {
    let mut expiring = OrdSet::new();
    let mut touched = OrdSet::new();
    let mut weights: BTreeMap<&crate::journal::key::Scope, u64> = BTreeMap::new();
    for ((scope, key), stack) in &journal.stacks {
        if let Some(problem) = stack.problem() {
            return Some(format!("the stack of {key} in {scope}: {problem}"));
        }
        if stack.last_touch > journal.scope_head(scope) {
            return Some(format!("{key} in {scope} was touched after the scope's head"));
        }
        touched.insert((scope.clone(), stack.last_touch, key.clone()));
        if is_weighed(scope) {
            *weights.entry(scope).or_default() += weight_of(key, stack);
        }
        for pair in &stack.live {
            if let Some(due) = pair.expires_at {
                expiring.insert((due, pair.sequence, scope.clone(), key.clone()));
            }
        }
    }
    if touched != journal.touched {
        return Some("the index of touches does not follow from the stacks".into());
    }
    if expiring != journal.expiring {
        return Some("the index of what expires does not follow from the stacks".into());
    }
    if let Some((scope, weight)) = weights.iter().find(|(scope, weight)| journal.weight(scope) != **weight) {
        return Some(format!("{scope} declares {weight} bytes, its index says {}", journal.weight(scope)));
    }
    None
}

fn scopes_problem(journal: &Journal) -> Option<String> {
    if let Some((scope, head)) = journal.heads.iter().find(|(_, head)| **head > journal.sequence) {
        return Some(format!("the head {head} of {scope} lies beyond the journal's"));
    }
    let mut counts: BTreeMap<&VClusterId, u64> = BTreeMap::new();
    for (id, node) in &journal.nodes {
        if node.since > journal.sequence {
            return Some(format!("{id} is in its state since {}, beyond the journal's head", node.since));
        }
        if (node.state == crate::journal::command::ConfigState::Emergency) != node.emergency.is_some() {
            return Some(format!("{id} is {} and its emergency says otherwise", node.state.word()));
        }
        let Some(vcluster) = &node.vcluster else { continue };
        if !journal.assigned.contains(&(vcluster.clone(), id.clone())) {
            return Some(format!("{id} is missing among the nodes of {vcluster}"));
        }
        *counts.entry(vcluster).or_default() += 1;
    }
    if counts.values().sum::<u64>() != journal.assigned.len() as u64 {
        return Some("the index of assignments does not follow from the nodes".into());
    }
    for (id, vcluster) in &journal.vclusters {
        if counts.remove(id).unwrap_or(0) != vcluster.nodes {
            return Some(format!("{id} miscounts its nodes"));
        }
        let version = vcluster.overlay_version();
        let behind = version < vcluster.version;
        if version > journal.config_version(vcluster) || vcluster.version > journal.sequence {
            return Some(format!("the overlay of {id} is newer than its configuration"));
        }
        if journal.behind.contains(id) != behind || !journal.overlays.contains(&(version, id.clone())) {
            return Some(format!("the index of overlays is wrong about {id}"));
        }
    }
    if journal.overlays.len() != journal.vclusters.len() || !counts.is_empty() {
        return Some("there are overlays or nodes of unknown vClusters".into());
    }
    None
}

fn sessions_problem(state: &State) -> Option<String> {
    let State { sessions, members, age, .. } = state;
    if sessions.idle.len() != sessions.open.len() || sessions.kept.len() != sessions.one_shots.len() {
        return Some("the indexes of sessions do not follow from them".into());
    }
    let replies: u64 = sessions.open.values().map(|session| session.replies).sum();
    if replies != sessions.replies.len() as u64 {
        return Some("the sessions miscount their replies".into());
    }
    for (id, session) in &sessions.open {
        if session.used > *age || *id >= sessions.next || !sessions.idle.contains(&(session.used, *id)) {
            return Some(format!("session {id} was used at {}, or is not in its index", session.used));
        }
    }
    if let Some((id, _)) = members.table.iter().find(|(id, member)| **id >= members.next || member.id != **id) {
        return Some(format!("replica {id} was never admitted"));
    }
    if members.table.is_empty() {
        return Some("it has no members".into());
    }
    None
}
