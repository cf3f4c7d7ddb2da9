//! Builds a state from pages: from nothing, or over a view of the same journal that already has most of it.
//!
//! Items replace what is there under their key. What passes is read after everything that lasts: a node's vCluster, and how many
//! nodes a vCluster has, follow from stacks.

use super::problem::problem_of_loaded;
use super::{CHUNK_BYTES_MAX, FORMAT, Gone1, Item1, Page1, Page3, UNCOMPRESSED, WHAT};
use crate::codec::mirror::Mirror;
use crate::codec::{CodecError, DECODE_BYTES_MAX, decode_body, decode_up_to, malformed};
use crate::ids::{ClusterId, SessionId};
use crate::journal::key::{Key, Scope};
use crate::journal::live::{Journal, Node, VCluster, is_weighed, weight_of};
use crate::journal::stack::{Past, Stack};
use crate::limits::STACK_DEPTH_MAX;
use crate::state::{OneShot, Session, Sessions, State};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use imbl::{OrdMap, OrdSet};

/// Builds a state from its pages, one by one.
#[derive(Debug, Default)]
pub struct StateLoader {
    number: u32,
    stream: Vec<u8>,
    /// Items of the part that is being read.
    items: u64,
    state: Option<State>,
    /// The stack whose pairs are being read, and how many are to come.
    stack: Option<(Scope, Key, Stack, u32)>,
    /// Whether the part came to its end.
    ended: bool,
    /// Whether it is one of what passes: only after such a part it can be all.
    passes: bool,
}

impl StateLoader {
    /// One that has seen no page.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One that goes on from what lasts of a view; what passes is read anew.
    #[must_use]
    pub fn over(mut state: State) -> Self {
        state.members.table = OrdMap::new();
        // Ids that were given out stay so: if the view is what the top layer holds, no head says it anew.
        let next_session = state.sessions.next;
        state.sessions = Sessions::new();
        state.sessions.next = next_session;
        let journal = &mut state.journal;
        journal.nodes = OrdMap::new();
        journal.assigned = OrdSet::new();
        let ids: Vec<_> = journal.vclusters.keys().cloned().collect();
        for id in ids {
            if let Some(vcluster) = journal.vclusters.get_mut(&id).filter(|vcluster| vcluster.nodes > 0) {
                Arc::make_mut(vcluster).nodes = 0;
            }
        }
        Self { state: Some(state), ..Self::default() }
    }

    /// Takes the next page.
    ///
    /// # Errors
    /// If it is damaged or not the next one. The loader is of no use afterwards.
    pub fn page(&mut self, bytes: &[u8]) -> Result<(), CodecError> {
        let (number, chunk) = open_page(bytes)?;
        let is_all = bytes.first().is_some_and(|format| *format <= UNCOMPRESSED);
        if self.ended && number == 0 {
            (self.ended, self.passes, self.number, self.items) = (false, true, 0, 0);
        }
        if number != self.number {
            return Err(malformed(WHAT, format!("it is page {number}, expected {}", self.number)));
        }
        self.number += 1;
        let stream = core::mem::take(&mut self.stream);
        self.stream = split_items(stream, &chunk, |item| self.item(item))?;
        self.passes |= is_all;
        Ok(())
    }

    /// Gives the state, after the last page.
    ///
    /// # Errors
    /// If pages are missing, or what they hold is not a state.
    pub fn finish(self) -> Result<State, CodecError> {
        if !self.ended || !self.passes || !self.stream.is_empty() {
            return Err(malformed(WHAT, "there are pages missing after the last one"));
        }
        let state = self.state.ok_or_else(|| malformed(WHAT, "it has no head"))?;
        match problem_of_loaded(&state) {
            Some(problem) => Err(malformed(WHAT, problem)),
            None => Ok(state),
        }
    }

    fn item(&mut self, item: Item1) -> Result<(), CodecError> {
        if self.ended {
            return Err(malformed(WHAT, "there are items after the end"));
        }
        if let Item1::End { items } = item {
            if items != self.items || self.stack.is_some() {
                return Err(malformed(WHAT, format!("it has {} items, its end counts {items}", self.items)));
            }
            self.ended = true;
            return Ok(());
        }
        self.items += 1;
        if let Item1::Head { .. } = item {
            return self.head(item);
        }
        let Some(state) = &mut self.state else {
            return Err(malformed(WHAT, "its head does not come first"));
        };
        if let Item1::Pair(pair) = item {
            let Some((_, _, stack, missing)) = &mut self.stack else {
                return Err(malformed(WHAT, "a pair lies outside a stack"));
            };
            stack.live.push_back(pair.back()?);
            *missing -= 1;
            if *missing == 0
                && let Some((scope, key, stack, _)) = self.stack.take()
            {
                return put_stack(&mut state.journal, scope, key, stack);
            }
            return Ok(());
        }
        if self.stack.is_some() {
            return Err(malformed(WHAT, "a stack lacks pairs"));
        }
        match item {
            Item1::Segment(segment) => {
                let segment = segment.back()?;
                // A view may have sealed it already.
                if state.journal.sealed.last().is_none_or(|last| last.first < segment.first) {
                    state.journal.sealed.push_back(segment);
                }
            }
            Item1::Scope { scope, head } => {
                state.journal.heads.insert(scope.back()?, head.back()?);
            }
            Item1::Stack { scope, key, last_touch, gone, dropped, faded, live } => {
                let (scope, key) = (scope.back()?, key.back()?);
                let past = Past { gone: gone.back()?, dropped: dropped.back()?, faded: faded.back()? };
                let room = live as usize;
                if room > STACK_DEPTH_MAX {
                    return Err(malformed(WHAT, format!("a stack claims {live} pairs")));
                }
                let stack = Stack::with_past(last_touch.back()?, room, past);
                if live == 0 {
                    put_stack(&mut state.journal, scope, key, stack)?;
                } else {
                    self.stack = Some((scope, key, stack, live));
                }
            }
            Item1::VCluster { vcluster, policy_sequence, policy, version, overlay } => {
                let id = vcluster.back()?;
                let vcluster_state = VCluster {
                    policy_sequence: policy_sequence.back()?,
                    policy: Arc::new(policy.back()?),
                    version: version.back()?,
                    overlay: overlay.back()?,
                    nodes: state.journal.vcluster(&id).map_or(0, |known| known.nodes),
                };
                state.journal.put_vcluster(&id, vcluster_state);
            }
            Item1::Node { node, state: config, since, emergency } => {
                let (id, since) = (node.back()?, since.back()?);
                let emergency = emergency.back()?;
                let vcluster = state.journal.node(&id).and_then(|known| known.vcluster.clone());
                let node = Node { vcluster, state: config.back()?, since, emergency };
                state.journal.nodes.insert(id.clone(), node);
                state.journal.assign(&id, since);
            }
            Item1::Member(member) => {
                let member = member.back()?;
                state.members.table.insert(member.id, member);
            }
            Item1::Session { session, acknowledged, used } => {
                let (id, used) = (session.back()?, used.back()?);
                put_session(&mut state.sessions, id, Session { holder: None, acknowledged, used, replies: 0 });
            }
            Item1::HeldSession { session, acknowledged, used, holder } => {
                let (id, used) = (session.back()?, used.back()?);
                let holder = Some(holder.back()?);
                put_session(&mut state.sessions, id, Session { holder, acknowledged, used, replies: 0 });
            }
            Item1::Reply { session, number, outcome } => {
                let id = session.back()?;
                let Some(session) = state.sessions.open.get_mut(&id) else {
                    return Err(malformed(WHAT, format!("a reply is of session {id}, which is not open")));
                };
                let before = state.sessions.replies.insert((id, number), Arc::new(outcome.back()?));
                session.replies += u64::from(before.is_none());
            }
            Item1::OneShot { id, since, outcome } => {
                let (id, since) = (id.back()?, since.back()?);
                let kept = Arc::new(OneShot { since, outcome: outcome.back()? });
                if let Some(before) = state.sessions.one_shots.insert(id, kept) {
                    state.sessions.kept.remove(&(before.since, id));
                }
                state.sessions.kept.insert((since, id));
            }
            Item1::Gone(gone) => forget(state, gone)?,
            Item1::Head { .. } | Item1::Pair(_) | Item1::End { .. } => unreachable!("taken above"),
        }
        Ok(())
    }

    fn head(&mut self, item: Item1) -> Result<(), CodecError> {
        let Item1::Head {
            cluster,
            age,
            feature_level,
            sequence,
            head,
            recorded_at,
            global_version,
            open,
            next_replica,
            next_session,
        } = item
        else {
            unreachable!("only called for a head");
        };
        if self.items > 1 {
            return Err(malformed(WHAT, "it has two heads"));
        }
        self.passes = false;
        let cluster: ClusterId = cluster.back()?;
        let state = self.state.get_or_insert_with(|| State::empty(cluster));
        if state.cluster != cluster {
            return Err(malformed(WHAT, format!("it is of cluster {cluster}, not of {}", state.cluster)));
        }
        state.journal.sequence = sequence.back()?;
        state.journal.head = head.back()?;
        state.journal.recorded_at = recorded_at.back()?;
        state.journal.global_version = global_version.back()?;
        state.journal.open = open.back()?;
        state.sessions.next = next_session.back()?;
        state.members.next = next_replica.back()?;
        (state.age, state.feature_level) = (age.back()?, feature_level);
        Ok(())
    }
}

/// Takes the items that are complete with the next part of their stream; gives what is left of it.
pub(super) fn split_items(
    mut stream: Vec<u8>,
    chunk: &[u8],
    mut take: impl FnMut(Item1) -> Result<(), CodecError>,
) -> Result<Vec<u8>, CodecError> {
    stream.extend_from_slice(chunk);
    let mut rest = &stream[..];
    while let Some((length, body)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        if length > DECODE_BYTES_MAX {
            return Err(malformed(WHAT, format!("an item claims {length} bytes")));
        }
        let Some((item, after)) = body.split_at_checked(length) else { break };
        take(decode_body(WHAT, item)?)?;
        rest = after;
    }
    Ok(rest.to_vec())
}

/// A page's number and the part of the stream that it holds.
pub(super) fn open_page(bytes: &[u8]) -> Result<(u32, Vec<u8>), CodecError> {
    if bytes.first().is_some_and(|format| *format <= UNCOMPRESSED) {
        let Page1 { number, chunk } = decode_up_to(FORMAT, WHAT, bytes)?;
        return Ok((number, chunk.into()));
    }
    let Page3 { number, plain_bytes, chunk } = decode_up_to(FORMAT, WHAT, bytes)?;
    let plain_bytes = plain_bytes as usize;
    if plain_bytes > CHUNK_BYTES_MAX {
        return Err(malformed(WHAT, format!("it claims {plain_bytes} bytes, at most {CHUNK_BYTES_MAX} are on one")));
    }
    let plain = zstd::bulk::decompress(&chunk, plain_bytes).map_err(|error| malformed(WHAT, error))?;
    if plain.len() != plain_bytes {
        return Err(malformed(WHAT, format!("it claims {plain_bytes} bytes and holds {}", plain.len())));
    }
    Ok((number, plain))
}

fn put_session(sessions: &mut Sessions, id: SessionId, mut session: Session) {
    let before = sessions.open.get(&id).map(|known| (known.used, known.replies));
    if let Some((used, replies)) = before {
        sessions.idle.remove(&(used, id));
        session.replies = replies;
    }
    sessions.idle.insert((session.used, id));
    sessions.open.insert(id, session);
}

/// Takes away what an earlier layer put there.
fn forget(state: &mut State, gone: Gone1) -> Result<(), CodecError> {
    let sessions = &mut state.sessions;
    let was_there = match gone {
        Gone1::Member(id) => state.members.table.remove(&id.back()?).is_some(),
        Gone1::Session(id) => {
            let id = id.back()?;
            let session = sessions.open.remove(&id);
            session.is_some_and(|session| sessions.idle.remove(&(session.used, id)).is_some())
        }
        Gone1::Reply(id, number) => {
            let id = id.back()?;
            // Its session may be gone already, and with it the count.
            if let Some(session) = sessions.open.get_mut(&id) {
                session.replies = session.replies.saturating_sub(1);
            }
            sessions.replies.remove(&(id, number)).is_some()
        }
        Gone1::OneShot(id) => {
            let id = id.back()?;
            let kept = sessions.one_shots.remove(&id);
            kept.is_some_and(|kept| sessions.kept.remove(&(kept.since, id)).is_some())
        }
    };
    if was_there { Ok(()) } else { Err(malformed(WHAT, "something goes that was never there")) }
}

fn put_stack(journal: &mut Journal, scope: Scope, key: Key, stack: Stack) -> Result<(), CodecError> {
    if let Some(problem) = stack.problem() {
        return Err(malformed(WHAT, format!("the stack of {key} in {scope}: {problem}")));
    }
    if stack.last_touch > journal.scope_head(&scope) {
        return Err(malformed(WHAT, format!("{key} in {scope} was touched after the scope's head")));
    }
    let mut light = 0;
    if let Some(before) = journal.stacks.get(&(scope.clone(), key.clone())).cloned() {
        light = weight_of(&key, &before);
        for pair in &before.live {
            journal.will_not_expire(&scope, &key, pair);
        }
        journal.touched.remove(&(scope.clone(), before.last_touch, key.clone()));
    }
    for pair in &stack.live {
        journal.will_expire(&scope, &key, pair);
    }
    journal.touched.insert((scope.clone(), stack.last_touch, key.clone()));
    if is_weighed(&scope) {
        journal.reweigh(&scope, light, weight_of(&key, &stack));
    }
    journal.stacks.insert((scope, key), Arc::new(stack));
    Ok(())
}
