//! Makes a layer's pages from an O(1) view: of everything, or of what changed since an earlier view.
//!
//! What changed is found by comparing two views that share most of their structure, so it costs what changed. The digest of
//! the state is carried from one view to the next the same way.

use super::sum::Sum;
use super::{FORMAT, Gone1, Item1, Member1, Page3, Pair1, Segment1};
use crate::codec::mirror::Mirror;
use crate::codec::{encode_as, encode_body};
use crate::ids::{Digest, NodeId, OneShotId, ReplicaId, SessionId, VClusterId};
use crate::journal::key::{Key, Scope};
use crate::journal::live::{Node, VCluster};
use crate::journal::stack::Stack;
use crate::limits::PAGE_BYTES;
use crate::members::Member;
use crate::request::Outcome;
use crate::state::{OneShot, Session, State};
use crate::storage::{Page, PageSource};
use alloc::sync::Arc;
use alloc::vec::{self, Vec};
use core::ops::Bound;
use imbl::OrdMap;
use imbl::ordmap::DiffItem;

/// Items made at a time.
const BATCH: usize = 64;
/// How hard pages are compressed: they are written and read far more often than they are kept.
const ZSTD_LEVEL: i32 = 1;

/// Where the next items come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Head,
    Segments(usize),
    Scopes,
    Stacks,
    VClusters,
    EndOfLasting,
    Nodes,
    Members,
    Sessions,
    Replies,
    OneShots,
    EndOfPassing,
    Done,
}

/// The keys of a map that a layer speaks of.
enum Keys<K> {
    /// Every key after this one.
    All(Option<K>),
    These(vec::IntoIter<K>),
}

impl<K: Ord + Clone> Keys<K> {
    fn of<V: Clone + PartialEq>(map: &OrdMap<K, V>, below: Option<&OrdMap<K, V>>) -> Self {
        let Some(below) = below else { return Self::All(None) };
        let changed = below.diff(map).map(|item| match item {
            DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _) => key.clone(),
        });
        Self::These(changed.collect::<Vec<_>>().into_iter())
    }

    /// The next few; none at the end.
    fn some<V: Clone>(&mut self, map: &OrdMap<K, V>) -> Vec<K> {
        match self {
            Self::All(after) => {
                let from = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
                let range = map.range::<_, K>((from, Bound::Unbounded));
                let keys: Vec<K> = range.take(BATCH).map(|(key, _)| key.clone()).collect();
                *after = keys.last().cloned().or_else(|| after.take());
                keys
            }
            Self::These(keys) => keys.take(BATCH).collect(),
        }
    }
}

/// The keys of every map.
struct AllKeys {
    scopes: Keys<Scope>,
    stacks: Keys<(Scope, Key)>,
    vclusters: Keys<VClusterId>,
    nodes: Keys<NodeId>,
    members: Keys<ReplicaId>,
    sessions: Keys<SessionId>,
    replies: Keys<(SessionId, u64)>,
    one_shots: Keys<OneShotId>,
}

impl AllKeys {
    fn of(state: &State, below: Option<&State>) -> Self {
        let State { journal, sessions, members, .. } = state;
        Self {
            scopes: Keys::of(&journal.heads, below.map(|below| &below.journal.heads)),
            stacks: Keys::of(&journal.stacks, below.map(|below| &below.journal.stacks)),
            vclusters: Keys::of(&journal.vclusters, below.map(|below| &below.journal.vclusters)),
            nodes: Keys::of(&journal.nodes, below.map(|below| &below.journal.nodes)),
            members: Keys::of(&members.table, below.map(|below| &below.members.table)),
            sessions: Keys::of(&sessions.open, below.map(|below| &below.sessions.open)),
            replies: Keys::of(&sessions.replies, below.map(|below| &below.sessions.replies)),
            one_shots: Keys::of(&sessions.one_shots, below.map(|below| &below.sessions.one_shots)),
        }
    }
}

/// Items that belong together, framed: what the state's digest is a sum over.
#[derive(Default, PartialEq, Eq)]
struct Unit {
    bytes: Vec<u8>,
    items: u64,
}

impl Unit {
    fn put(&mut self, item: &Item1) {
        let body = encode_body(item);
        let length = u32::try_from(body.len()).expect("an item is far smaller than 4 GiB");
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(&body);
        self.items += 1;
    }

    fn one(item: &Item1) -> Self {
        let mut unit = Self::default();
        unit.put(item);
        unit
    }
}

fn head(state: &State) -> Unit {
    let State { journal, sessions, members, cluster, age, feature_level } = state;
    Unit::one(&Item1::Head {
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
    })
}

fn stack(at: &(Scope, Key), stack: &Arc<Stack>) -> Unit {
    let mut unit = Unit::one(&Item1::Stack {
        scope: Mirror::of(&at.0),
        key: Mirror::of(&at.1),
        last_touch: Mirror::of(&stack.last_touch),
        gone: Mirror::of(&stack.past().gone),
        dropped: Mirror::of(&stack.past().dropped),
        faded: Mirror::of(&stack.past().faded),
        live: u32::try_from(stack.live.len()).expect("a stack is far smaller than 4 G pairs"),
    });
    for pair in &stack.live {
        unit.put(&Item1::Pair(Pair1::of(pair)));
    }
    unit
}

fn vcluster(id: &VClusterId, vcluster: &Arc<VCluster>) -> Unit {
    Unit::one(&Item1::VCluster {
        vcluster: Mirror::of(id),
        policy_sequence: Mirror::of(&vcluster.policy_sequence),
        policy: Mirror::of(&*vcluster.policy),
        version: Mirror::of(&vcluster.version),
        overlay: Mirror::of(&vcluster.overlay),
    })
}

fn node(id: &NodeId, node: &Node) -> Unit {
    Unit::one(&Item1::Node {
        node: Mirror::of(id),
        state: Mirror::of(&node.state),
        since: Mirror::of(&node.since),
        emergency: Mirror::of(&node.emergency),
    })
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "all parts of the state are made the same way")]
fn session(id: &SessionId, session: &Session) -> Unit {
    let (acknowledged, used) = (session.acknowledged, Mirror::of(&session.used));
    Unit::one(&match &session.holder {
        None => Item1::Session { session: Mirror::of(id), acknowledged, used },
        Some(holder) => Item1::HeldSession { session: Mirror::of(id), acknowledged, used, holder: Mirror::of(holder) },
    })
}

fn reply(at: &(SessionId, u64), outcome: &Arc<Outcome>) -> Unit {
    Unit::one(&Item1::Reply { session: Mirror::of(&at.0), number: at.1, outcome: Mirror::of(&**outcome) })
}

fn one_shot(id: &OneShotId, kept: &Arc<OneShot>) -> Unit {
    Unit::one(&Item1::OneShot {
        id: Mirror::of(id),
        since: Mirror::of(&kept.since),
        outcome: Mirror::of(&kept.outcome),
    })
}

/// Makes a layer's pages, one by one.
pub(crate) struct Maker {
    state: State,
    below: Option<State>,
    keys: AllKeys,
    section: Section,
    /// Items of the part that is being made.
    items: u64,
    /// What was made and is not yet on a page, from `taken` on.
    stream: Vec<u8>,
    taken: usize,
    /// The next page of the part.
    number: u32,
    lasts: bool,
    /// Whether the part ends with what is in the stream.
    is_closed: bool,
    sum: Sum,
}

impl Maker {
    /// Of everything.
    pub(crate) fn whole(state: State) -> Self {
        Self::new(state, None, Sum::default())
    }

    /// Of what changed since an earlier view of the same journal, which has this digest.
    pub(crate) fn since(state: State, below: State, digest: Digest) -> Self {
        Self::new(state, Some(below), Sum::of(digest))
    }

    fn new(state: State, below: Option<State>, sum: Sum) -> Self {
        Self {
            keys: AllKeys::of(&state, below.as_ref()),
            state,
            below,
            section: Section::Head,
            items: 0,
            stream: Vec::new(),
            taken: 0,
            number: 0,
            lasts: true,
            is_closed: false,
            sum,
        }
    }

    /// The digest of a state: everything is made, and nothing kept.
    pub(crate) fn digest_of(state: &State) -> Digest {
        let mut maker = Self::whole(state.clone());
        while maker.section != Section::Done {
            maker.make();
            maker.stream.clear();
        }
        maker.sum.digest()
    }

    fn put(&mut self, unit: &Unit) {
        self.stream.extend_from_slice(&unit.bytes);
        self.items += unit.items;
    }

    /// Puts what a part of the state is in place of what it was below. A part that is never forgotten has no `gone`.
    fn change(&mut self, before: Option<&Unit>, after: Option<&Unit>, gone: Option<Gone1>) {
        if before == after {
            return;
        }
        if let Some(before) = before {
            self.sum.take(&before.bytes);
        }
        if let Some(after) = after {
            self.sum.add(&after.bytes);
            self.put(after);
        } else {
            let gone = gone.expect("what lasts is never forgotten");
            self.put(&Unit::one(&Item1::Gone(gone)));
        }
    }

    fn change_all<K: Ord + Clone, V: Clone>(
        &mut self,
        keys: Vec<K>,
        map: impl Fn(&State) -> &OrdMap<K, V>,
        unit: impl Fn(&K, &V) -> Unit,
        gone: impl Fn(&K) -> Option<Gone1>,
    ) {
        for key in keys {
            let of = |state: &State| map(state).get(&key).map(|value| unit(&key, value));
            let (before, after) = (self.below.as_ref().and_then(of), of(&self.state));
            self.change(before.as_ref(), after.as_ref(), gone(&key));
        }
    }

    /// Makes some more items; `Done` after the last.
    fn make(&mut self) {
        let from = self.section;
        let at_end = match from {
            Section::Head => {
                let below = self.below.as_ref().map(head);
                let now = head(&self.state);
                self.change(below.as_ref(), Some(&now), None);
                true
            }
            Section::Segments(from) => return self.make_segments(from),
            Section::Scopes => {
                let keys = self.keys.scopes.some(&self.state.journal.heads);
                let at_end = keys.is_empty();
                let unit = |scope: &Scope, head: &_| {
                    Unit::one(&Item1::Scope { scope: Mirror::of(scope), head: Mirror::of(head) })
                };
                self.change_all(keys, |state| &state.journal.heads, unit, |_| None);
                at_end
            }
            Section::Stacks => {
                let keys = self.keys.stacks.some(&self.state.journal.stacks);
                let at_end = keys.is_empty();
                self.change_all(keys, |state| &state.journal.stacks, stack, |_| None);
                at_end
            }
            Section::VClusters => {
                let keys = self.keys.vclusters.some(&self.state.journal.vclusters);
                let at_end = keys.is_empty();
                self.change_all(keys, |state| &state.journal.vclusters, vcluster, |_| None);
                at_end
            }
            Section::Nodes => {
                let keys = self.keys.nodes.some(&self.state.journal.nodes);
                let at_end = keys.is_empty();
                self.change_all(keys, |state| &state.journal.nodes, node, |_| None);
                at_end
            }
            Section::Members => {
                let keys = self.keys.members.some(&self.state.members.table);
                let at_end = keys.is_empty();
                let unit = |_: &ReplicaId, member: &Member| Unit::one(&Item1::Member(Member1::of(member)));
                let gone = |id: &ReplicaId| Some(Gone1::Member(Mirror::of(id)));
                self.change_all(keys, |state| &state.members.table, unit, gone);
                at_end
            }
            Section::Sessions => {
                let keys = self.keys.sessions.some(&self.state.sessions.open);
                let at_end = keys.is_empty();
                let gone = |id: &SessionId| Some(Gone1::Session(Mirror::of(id)));
                self.change_all(keys, |state| &state.sessions.open, session, gone);
                at_end
            }
            Section::Replies => {
                let keys = self.keys.replies.some(&self.state.sessions.replies);
                let at_end = keys.is_empty();
                let gone = |(id, number): &(SessionId, u64)| Some(Gone1::Reply(Mirror::of(id), *number));
                self.change_all(keys, |state| &state.sessions.replies, reply, gone);
                at_end
            }
            Section::OneShots => {
                let keys = self.keys.one_shots.some(&self.state.sessions.one_shots);
                let at_end = keys.is_empty();
                let gone = |id: &OneShotId| Some(Gone1::OneShot(Mirror::of(id)));
                self.change_all(keys, |state| &state.sessions.one_shots, one_shot, gone);
                at_end
            }
            Section::EndOfLasting | Section::EndOfPassing => {
                self.put(&Unit::one(&Item1::End { items: self.items }));
                self.items = 0;
                self.is_closed = true;
                true
            }
            Section::Done => true,
        };
        if at_end {
            self.section = match from {
                Section::Head => Section::Segments(self.below.as_ref().map_or(0, |below| below.journal.sealed.len())),
                Section::Segments(_) => Section::Scopes,
                Section::Scopes => Section::Stacks,
                Section::Stacks => Section::VClusters,
                Section::VClusters => Section::EndOfLasting,
                Section::EndOfLasting => Section::Nodes,
                Section::Nodes => Section::Members,
                Section::Members => Section::Sessions,
                Section::Sessions => Section::Replies,
                Section::Replies => Section::OneShots,
                Section::OneShots => Section::EndOfPassing,
                Section::EndOfPassing | Section::Done => Section::Done,
            };
        }
    }

    /// Sealed segments are only ever added.
    fn make_segments(&mut self, from: usize) {
        let some: Vec<_> = self.state.journal.sealed.iter().skip(from).take(BATCH).copied().collect();
        for segment in &some {
            self.change(None, Some(&Unit::one(&Item1::Segment(Segment1::of(segment)))), None);
        }
        self.section = if some.is_empty() { Section::Scopes } else { Section::Segments(from + some.len()) };
    }

    /// Takes the next page off the stream.
    fn cut(&mut self) -> Page {
        let plain = &self.stream[self.taken..self.stream.len().min(self.taken + PAGE_BYTES)];
        let chunk = zstd::bulk::compress(plain, ZSTD_LEVEL).expect("bytes in memory are compressed into memory");
        let plain_bytes = u32::try_from(plain.len()).expect("a page is far smaller than 4 GiB");
        let page = Page3 { number: self.number, plain_bytes, chunk: chunk.into() };
        let page = Page { bytes: encode_as(FORMAT, &page), lasts: self.lasts };
        self.taken += plain.len();
        self.number += 1;
        if self.taken >= self.stream.len() / 2 {
            self.stream.drain(..self.taken);
            self.taken = 0;
        }
        if self.is_closed && self.stream.is_empty() {
            (self.is_closed, self.lasts, self.number) = (false, false, 0);
        }
        page
    }
}

impl PageSource for Maker {
    fn next_page(&mut self) -> Option<Page> {
        while self.stream.len() - self.taken < PAGE_BYTES && !self.is_closed && self.section != Section::Done {
            self.make();
        }
        (self.stream.len() > self.taken).then(|| self.cut())
    }

    fn digest(&self) -> Digest {
        assert!(self.section == Section::Done, "the digest is known after the last page");
        self.sum.digest()
    }
}
