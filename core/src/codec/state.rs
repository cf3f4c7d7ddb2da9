//! Pages of replicated state, formats 1 to 3: what a snapshot holds.
//!
//! ```text
//! layer   = part, part                                    what lasts, then what passes
//! part    = page ...
//! page    = version byte, { number in its part, size of the chunk, chunk compressed }
//! stream  = all chunks of a part, one after the other, each of at most PAGE_BYTES
//!         = { u32 little endian: length of the item, item } ...
//! lasting = Head, Segment*, Scope*, (Stack, Pair*)*, VCluster*, End
//! passing = Node*, Member*, Session*, Reply*, OneShot*, Gone*, End
//! ```
//! A layer holds everything, or what changed since the layer below. `End` counts a part's items, so a stream that lost some is
//! not taken for a whole one. Indexes that follow from the rest are not stored.
//!
//! What lasts only ever grows or moves on: whoever has it as it was at any position between a layer and the one below needs
//! nothing but that layer to have it as it is there. What passes comes, goes and comes back, so it is always built from the
//! lowest layer up; it is small.
//!
//! Format 2 knows the item that says whose a session is. Format 3 has parts, layers and compression; in formats 1 and 2 there
//! is one part, of everything, uncompressed: they are read, not written.

mod load;
mod make;
mod problem;
mod scope;
mod sum;

pub use load::StateLoader;
pub(crate) use make::Maker;
pub(crate) use problem::problem;
pub(crate) use scope::ScopeLoader;

use super::journal::{ConfigState1, Overlay1, Policy1, Scope1, Setting1};
use super::mirror::{
    Age1, ClusterId1, Digest1, Key1, NodeId1, OneShotId1, ReplicaId1, Seq1, SessionId1, Text1, VClusterId1, WallTime1,
    mirror_struct,
};
use super::request::{Member1, Outcome1};
use crate::journal::live::Emergency;
use crate::journal::stack::{Dropped, Faded, Pair, Tombstone};
use crate::limits::PAGE_BYTES;
use crate::storage::Segment;
use alloc::collections::VecDeque;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

const WHAT: &str = "a page of state";

/// The newest format of pages.
pub const FORMAT: u8 = 3;
/// The newest format of uncompressed pages.
const UNCOMPRESSED: u8 = 2;
/// More than this is on no page.
const CHUNK_BYTES_MAX: usize = PAGE_BYTES;

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
struct Page3 {
    number: u32,
    plain_bytes: u32,
    chunk: Bytes,
}

/// What is there no more.
#[derive(Serialize, Deserialize)]
enum Gone1 {
    Member(ReplicaId1),
    Session(SessionId1),
    Reply(SessionId1, u64),
    OneShot(OneShotId1),
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
    Gone(Gone1),
}
