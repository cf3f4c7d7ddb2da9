//! Pages of replicated state, formats 1 and 2: what a snapshot holds.
//!
//! ```text
//! page   = version byte, { number from 0, chunk }        at most PAGE_BYTES
//! stream = all chunks, one after the other
//!        = { u32 little endian: length of the item, item } ...
//! items  = Head, Segment*, Scope*, (Stack, Pair*)*, VCluster*, Node*, Member*, Session*, Reply*, OneShot*, End
//! ```
//! Within a kind items ascend by key, so equal states have equal pages. An item may lie across pages. `End` counts the items
//! before it, so a stream that lost some is not taken for a whole one. Indexes that follow from the rest are not stored.
//!
//! Format 2 is written from the feature level on at which sessions have holders, and knows the item that says who it is.

use super::journal::{ConfigState1, Overlay1, Policy1, Scope1, Setting1};
use super::mirror::{
    Age1, ClusterId1, Digest1, Key1, Mirror, NodeId1, OneShotId1, ReplicaId1, Seq1, SessionId1, Text1, VClusterId1,
    WallTime1, mirror_struct,
};
use super::request::{Member1, Outcome1};
use super::{CodecError, decode_body, decode_up_to, encode_as, encode_body, malformed};
use crate::ids::{ClusterId, NodeId, OneShotId, ReplicaId, SessionId, VClusterId};
use crate::journal::key::{Key, Scope};
use crate::journal::live::{Emergency, Journal, Node, VCluster};
use crate::journal::stack::{Dropped, Faded, Pair, Stack, Tombstone};
use crate::limits::{FEATURE_DOOR, PAGE_BYTES, STACK_DEPTH_MAX};
use crate::members::Members;
use crate::state::{OneShot, Session, Sessions, State};
use crate::storage::Segment;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;
use core::ops::Bound;
use imbl::{OrdMap, OrdSet, Vector};
use serde::{Deserialize, Serialize};

const WHAT: &str = "a page of state";

/// The newest format of pages.
pub const FORMAT: u8 = 2;

/// Room for a page's version byte, number and chunk length.
const PAGE_HEADER_BYTES: usize = 16;
/// Items made at a time.
const BATCH: usize = 64;

mirror_struct!(
    /// The form of a segment.
    Segment1 of Segment { first: Seq1, last: Seq1, bytes: u64, before: Digest1, head: Digest1 }
);
mirror_struct!(
    /// The form of a live pair.
    Pair1 of Pair { sequence: Seq1, setting: Setting1, expires_at: Option<Age1> }
);
mirror_struct!(
    /// The form of a rolled-back pair.
    Tombstone1 of Tombstone { pair: Seq1, taken_off_by: Seq1 }
);
mirror_struct!(
    /// The form of forgotten live pairs.
    Dropped1 of Dropped { first: Seq1, last: Seq1 }
);
mirror_struct!(
    /// The form of forgotten rolled-back pairs.
    Faded1 of Faded { first: Seq1, last: Seq1, until: Seq1 }
);
mirror_struct!(
    /// The form of an emergency.
    Emergency1 of Emergency { reason: Text1, before: ConfigState1 }
);

#[derive(Serialize, Deserialize)]
struct Page1 {
    number: u32,
    chunk: Bytes,
}

#[derive(Serialize, Deserialize)]
enum Item1 {
    Head {
        cluster: ClusterId1,
        age: Age1,
        feature_level: u32,
        sequence: Seq1,
        head: Digest1,
        recorded_at: WallTime1,
        global_version: Seq1,
        open: Segment1,
        next_replica: ReplicaId1,
        next_session: SessionId1,
    },
    Segment(Segment1),
    Scope {
        scope: Scope1,
        head: Seq1,
    },
    Stack {
        scope: Scope1,
        key: Key1,
        last_touch: Seq1,
        gone: VecDeque<Tombstone1>,
        dropped: Option<Dropped1>,
        faded: Option<Faded1>,
        /// How many Pair items follow.
        live: u32,
    },
    Pair(Pair1),
    VCluster {
        vcluster: VClusterId1,
        policy_sequence: Seq1,
        policy: Policy1,
        version: Seq1,
        overlay: Option<Overlay1>,
    },
    Node {
        node: NodeId1,
        state: ConfigState1,
        since: Seq1,
        emergency: Option<Emergency1>,
    },
    Member(Member1),
    Session {
        session: SessionId1,
        acknowledged: u64,
        used: Age1,
    },
    Reply {
        session: SessionId1,
        number: u64,
        outcome: Outcome1,
    },
    OneShot {
        id: OneShotId1,
        since: Age1,
        outcome: Outcome1,
    },
    End {
        items: u64,
    },
    HeldSession {
        session: SessionId1,
        acknowledged: u64,
        used: Age1,
        holder: Digest1,
    },
}

/// Where the next items come from.
enum Section {
    Head,
    Segments(usize),
    Scopes(Option<Scope>),
    Stacks(Option<(Scope, Key)>),
    VClusters(Option<VClusterId>),
    Nodes(Option<NodeId>),
    Members(Option<ReplicaId>),
    Sessions(Option<SessionId>),
    Replies(Option<(SessionId, u64)>),
    OneShots(Option<OneShotId>),
    End,
    Done,
}

struct Maker {
    state: State,
    section: Section,
    items: u64,
    /// What was made and is not yet on a page, from `taken` on.
    stream: Vec<u8>,
    taken: usize,
    number: u32,
}

/// The pages of a state.
pub(crate) fn pages(state: State) -> impl Iterator<Item = Bytes> + Send + 'static {
    Maker { state, section: Section::Head, items: 0, stream: Vec::new(), taken: 0, number: 0 }
}

/// The next few of a map, after a key, and the key to go on from.
fn some_after<K: Ord + Clone, V: Clone>(map: &OrdMap<K, V>, after: Option<&K>) -> Vec<(K, V)> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    map.range::<_, K>((from, Bound::Unbounded)).take(BATCH).map(|(key, value)| (key.clone(), value.clone())).collect()
}

impl Maker {
    fn put(&mut self, item: &Item1) {
        let body = encode_body(item);
        let length = u32::try_from(body.len()).expect("an item is far smaller than 4 GiB");
        self.stream.extend_from_slice(&length.to_le_bytes());
        self.stream.extend_from_slice(&body);
        self.items += 1;
    }

    /// Makes some more items; `Done` after the last.
    fn make(&mut self) {
        let section = core::mem::replace(&mut self.section, Section::Done);
        self.section = match section {
            Section::Head => {
                self.put_head();
                Section::Segments(0)
            }
            Section::Segments(from) => {
                let some: Vec<_> = self.state.journal.sealed.iter().skip(from).take(BATCH).copied().collect();
                for segment in &some {
                    self.put(&Item1::Segment(Segment1::of(segment)));
                }
                if some.is_empty() { Section::Scopes(None) } else { Section::Segments(from + some.len()) }
            }
            Section::Scopes(after) => {
                let some = some_after(&self.state.journal.heads, after.as_ref());
                for (scope, head) in &some {
                    self.put(&Item1::Scope { scope: Mirror::of(scope), head: Mirror::of(head) });
                }
                some.into_iter().next_back().map_or(Section::Stacks(None), |(scope, _)| Section::Scopes(Some(scope)))
            }
            Section::Stacks(after) => {
                let some = some_after(&self.state.journal.stacks, after.as_ref());
                for ((scope, key), stack) in &some {
                    self.put_stack(scope, key, stack);
                }
                some.into_iter().next_back().map_or(Section::VClusters(None), |(at, _)| Section::Stacks(Some(at)))
            }
            Section::VClusters(after) => {
                let some = some_after(&self.state.journal.vclusters, after.as_ref());
                for (id, vcluster) in &some {
                    self.put(&Item1::VCluster {
                        vcluster: Mirror::of(id),
                        policy_sequence: Mirror::of(&vcluster.policy_sequence),
                        policy: Mirror::of(&*vcluster.policy),
                        version: Mirror::of(&vcluster.version),
                        overlay: Mirror::of(&vcluster.overlay),
                    });
                }
                some.into_iter().next_back().map_or(Section::Nodes(None), |(id, _)| Section::VClusters(Some(id)))
            }
            Section::Nodes(after) => {
                let some = some_after(&self.state.journal.nodes, after.as_ref());
                for (id, node) in &some {
                    self.put(&Item1::Node {
                        node: Mirror::of(id),
                        state: Mirror::of(&node.state),
                        since: Mirror::of(&node.since),
                        emergency: Mirror::of(&node.emergency),
                    });
                }
                some.into_iter().next_back().map_or(Section::Members(None), |(id, _)| Section::Nodes(Some(id)))
            }
            Section::Members(after) => {
                let some = some_after(&self.state.members.table, after.as_ref());
                for (_, member) in &some {
                    self.put(&Item1::Member(Member1::of(member)));
                }
                some.into_iter().next_back().map_or(Section::Sessions(None), |(id, _)| Section::Members(Some(id)))
            }
            Section::Sessions(after) => {
                let some = some_after(&self.state.sessions.open, after.as_ref());
                for (id, session) in &some {
                    let (acknowledged, used) = (session.acknowledged, Mirror::of(&session.used));
                    self.put(&match &session.holder {
                        None => Item1::Session { session: Mirror::of(id), acknowledged, used },
                        Some(holder) => {
                            let holder = Mirror::of(holder);
                            Item1::HeldSession { session: Mirror::of(id), acknowledged, used, holder }
                        }
                    });
                }
                some.into_iter().next_back().map_or(Section::Replies(None), |(id, _)| Section::Sessions(Some(id)))
            }
            Section::Replies(after) => {
                let some = some_after(&self.state.sessions.replies, after.as_ref());
                for ((session, number), outcome) in &some {
                    self.put(&Item1::Reply {
                        session: Mirror::of(session),
                        number: *number,
                        outcome: Mirror::of(&**outcome),
                    });
                }
                some.into_iter().next_back().map_or(Section::OneShots(None), |(at, _)| Section::Replies(Some(at)))
            }
            Section::OneShots(after) => {
                let some = some_after(&self.state.sessions.one_shots, after.as_ref());
                for (id, kept) in &some {
                    self.put(&Item1::OneShot {
                        id: Mirror::of(id),
                        since: Mirror::of(&kept.since),
                        outcome: Mirror::of(&kept.outcome),
                    });
                }
                some.into_iter().next_back().map_or(Section::End, |(id, _)| Section::OneShots(Some(id)))
            }
            Section::End => {
                self.put(&Item1::End { items: self.items });
                Section::Done
            }
            Section::Done => Section::Done,
        };
    }

    fn put_head(&mut self) {
        let State { journal, sessions, members, cluster, age, feature_level } = &self.state;
        let head = Item1::Head {
            cluster: Mirror::of(cluster),
            age: Mirror::of(age),
            feature_level: *feature_level,
            sequence: Mirror::of(&journal.sequence),
            head: Mirror::of(&journal.head),
            recorded_at: Mirror::of(&journal.recorded_at),
            global_version: Mirror::of(&journal.global_version),
            open: Mirror::of(&journal.open),
            next_replica: Mirror::of(&members.next),
            next_session: Mirror::of(&sessions.next),
        };
        self.put(&head);
    }

    fn put_stack(&mut self, scope: &Scope, key: &Key, stack: &Stack) {
        self.put(&Item1::Stack {
            scope: Mirror::of(scope),
            key: Mirror::of(key),
            last_touch: Mirror::of(&stack.last_touch),
            gone: Mirror::of(&stack.gone),
            dropped: Mirror::of(&stack.dropped),
            faded: Mirror::of(&stack.faded),
            live: u32::try_from(stack.live.len()).expect("a stack is far smaller than 4 G pairs"),
        });
        for pair in &stack.live {
            self.put(&Item1::Pair(Pair1::of(pair)));
        }
    }
}

impl Iterator for Maker {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let chunk_bytes = PAGE_BYTES - PAGE_HEADER_BYTES;
        while self.stream.len() - self.taken < chunk_bytes && !matches!(self.section, Section::Done) {
            self.make();
        }
        let chunk = &self.stream[self.taken..self.stream.len().min(self.taken + chunk_bytes)];
        if chunk.is_empty() {
            return None;
        }
        let format = if self.state.feature_level < FEATURE_DOOR { 1 } else { FORMAT };
        let page = encode_as(format, &Page1 { number: self.number, chunk: Bytes::copy_from_slice(chunk) });
        assert!(page.len() <= PAGE_BYTES, "a page of {} bytes", page.len());
        self.taken += chunk.len();
        self.number += 1;
        if self.taken >= self.stream.len() / 2 {
            self.stream.drain(..self.taken);
            self.taken = 0;
        }
        Some(page)
    }
}

/// Builds a state from its pages, one by one.
#[derive(Debug, Default)]
pub struct StateLoader {
    number: u32,
    stream: Vec<u8>,
    items: u64,
    state: Option<State>,
    /// The stack whose pairs are being read, and how many are to come.
    stack: Option<(Scope, Key, Stack, u32)>,
    ended: bool,
}

impl StateLoader {
    /// One that has seen no page.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next page.
    ///
    /// # Errors
    /// If it is damaged or not the next one. The loader is of no use afterwards.
    pub fn page(&mut self, bytes: &[u8]) -> Result<(), CodecError> {
        let Page1 { number, chunk } = decode_up_to(FORMAT, WHAT, bytes)?;
        if number != self.number {
            return Err(malformed(WHAT, format!("it is page {number}, expected {}", self.number)));
        }
        self.number += 1;
        self.stream.extend_from_slice(&chunk);
        let stream = core::mem::take(&mut self.stream);
        let mut rest = &stream[..];
        while let Some((length, body)) = rest.split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            if length > super::DECODE_BYTES_MAX {
                return Err(malformed(WHAT, format!("an item claims {length} bytes")));
            }
            let Some((item, after)) = body.split_at_checked(length) else { break };
            self.item(decode_body(WHAT, item)?)?;
            rest = after;
        }
        self.stream = rest.to_vec();
        Ok(())
    }

    /// Gives the state, after the last page.
    ///
    /// # Errors
    /// If pages are missing, or what they hold is not a state.
    pub fn finish(self) -> Result<State, CodecError> {
        if !self.ended || !self.stream.is_empty() {
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
            Item1::Segment(segment) => state.journal.sealed.push_back(segment.back()?),
            Item1::Scope { scope, head } => {
                state.journal.heads.insert(scope.back()?, head.back()?);
            }
            Item1::Stack { scope, key, last_touch, gone, dropped, faded, live } => {
                let (scope, key) = (scope.back()?, key.back()?);
                let stack = Stack {
                    last_touch: last_touch.back()?,
                    live: VecDeque::new(),
                    gone: gone.back()?,
                    dropped: dropped.back()?,
                    faded: faded.back()?,
                };
                match live {
                    0 => put_stack(&mut state.journal, scope, key, stack)?,
                    live if live as usize <= STACK_DEPTH_MAX => self.stack = Some((scope, key, stack, live)),
                    live => return Err(malformed(WHAT, format!("a stack claims {live} pairs"))),
                }
            }
            Item1::VCluster { vcluster, policy_sequence, policy, version, overlay } => {
                let vcluster_state = VCluster {
                    policy_sequence: policy_sequence.back()?,
                    policy: Arc::new(policy.back()?),
                    version: version.back()?,
                    overlay: overlay.back()?,
                    nodes: 0,
                };
                state.journal.put_vcluster(&vcluster.back()?, vcluster_state);
            }
            Item1::Node { node, state: config, since, emergency } => {
                let (id, since) = (node.back()?, since.back()?);
                let emergency = emergency.back()?;
                let node = Node { vcluster: None, state: config.back()?, since, emergency };
                state.journal.nodes.insert(id.clone(), node);
                state.journal.assign(&id, since);
            }
            Item1::Member(member) => {
                let member = member.back()?;
                state.members.table.insert(member.id, member);
            }
            Item1::Session { session, acknowledged, used } => {
                let (id, used) = (session.back()?, used.back()?);
                state.sessions.open.insert(id, Session { holder: None, acknowledged, used, replies: 0 });
                state.sessions.idle.insert((used, id));
            }
            Item1::HeldSession { session, acknowledged, used, holder } => {
                let (id, used) = (session.back()?, used.back()?);
                let holder = Some(holder.back()?);
                state.sessions.open.insert(id, Session { holder, acknowledged, used, replies: 0 });
                state.sessions.idle.insert((used, id));
            }
            Item1::Reply { session, number, outcome } => {
                let id = session.back()?;
                let Some(session) = state.sessions.open.get_mut(&id) else {
                    return Err(malformed(WHAT, format!("a reply is of session {id}, which is not open")));
                };
                session.replies += 1;
                state.sessions.replies.insert((id, number), Arc::new(outcome.back()?));
            }
            Item1::OneShot { id, since, outcome } => {
                let (id, since) = (id.back()?, since.back()?);
                state.sessions.one_shots.insert(id, Arc::new(OneShot { since, outcome: outcome.back()? }));
                state.sessions.kept.insert((since, id));
            }
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
        if self.state.is_some() {
            return Err(malformed(WHAT, "it has two heads"));
        }
        let mut journal = Journal::new();
        journal.sequence = sequence.back()?;
        journal.head = head.back()?;
        journal.recorded_at = recorded_at.back()?;
        journal.global_version = global_version.back()?;
        journal.open = open.back()?;
        let mut sessions = Sessions::new();
        sessions.next = next_session.back()?;
        let members = Members { table: OrdMap::new(), next: next_replica.back()? };
        let (cluster, age): (ClusterId, _) = (cluster.back()?, age.back()?);
        self.state = Some(State { journal, sessions, members, cluster, age, feature_level });
        Ok(())
    }
}

fn put_stack(journal: &mut Journal, scope: Scope, key: Key, stack: Stack) -> Result<(), CodecError> {
    if let Some(problem) = stack.problem() {
        return Err(malformed(WHAT, format!("the stack of {key} in {scope}: {problem}")));
    }
    if stack.last_touch > journal.scope_head(&scope) {
        return Err(malformed(WHAT, format!("{key} in {scope} was touched after the scope's head")));
    }
    for pair in &stack.live {
        journal.will_expire(&scope, &key, pair);
    }
    journal.touched.insert((scope.clone(), stack.last_touch, key.clone()));
    match journal.stacks.insert((scope, key), Arc::new(stack)) {
        Some(_) => Err(malformed(WHAT, "a stack is there twice")),
        None => Ok(()),
    }
}

/// What is wrong with a state whose stacks and their indexes were checked as they were loaded.
fn problem_of_loaded(state: &State) -> Option<String> {
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
    for ((scope, key), stack) in &journal.stacks {
        if let Some(problem) = stack.problem() {
            return Some(format!("the stack of {key} in {scope}: {problem}"));
        }
        if stack.last_touch > journal.scope_head(scope) {
            return Some(format!("{key} in {scope} was touched after the scope's head"));
        }
        touched.insert((scope.clone(), stack.last_touch, key.clone()));
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
