//! Every bound of the replicated state, in one place. What exceeds one is refused, or told to come back; nothing grows
//! without one.
//!
//! These numbers are part of what apply decides, so changing one is a change of meaning and needs a feature level.

/// The highest feature level this binary supports.
///
/// 1 is what there was first. 2: apply asks the authorization door, see [`FEATURE_DOOR`], and a node's Rollback may record
/// that drift was undone on the node, see [`FEATURE_UNDONE`]. 3: what an overlay is made of is bounded, see [`FEATURE_BOUND`].
pub const FEATURE_LEVEL: u32 = 3;
/// From this level on apply asks the authorization door itself, and a session belongs to whoever opened it.
pub const FEATURE_DOOR: u32 = 2;
/// From this level on a Rollback of a node that names changes takes nothing off: it records what was undone there.
pub const FEATURE_UNDONE: u32 = 2;
/// From this level on an entry is refused after which Global, or a vCluster, would declare more than [`DECLARED_BYTES_MAX`].
pub const FEATURE_BOUND: u32 = 3;

/// Longest message of an entry, and longest detail of an operation, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4_096;
/// Longest emergency reason, in bytes.
pub const REASON_BYTES_MAX: usize = 1_024;
/// Longest part of a principal (subject, issuer, name), in bytes.
pub const PRINCIPAL_BYTES_MAX: usize = 256;
/// Longest address of a replica, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 256;
/// Most changes in one entry.
pub const CHANGES_MAX: usize = 4_096;
/// Most bytes of keys and settings that one record holds. A rollback that would hold more is done in steps.
pub const RECORD_BYTES_MAX: usize = 16 << 20;
/// Most pairs that one record takes off. A rollback that would take off more is done in steps.
pub const TAKES_OFF_MAX: usize = 65_536;
/// Shortest time to live of an entry, in seconds.
pub const TTL_SECONDS_MIN: u32 = 900;
/// Longest time to live of an entry, in seconds.
pub const TTL_SECONDS_MAX: u32 = 864_000;

/// Most live pairs on one stack. Beyond it the oldest is forgotten, if a permanent one above hides it for good.
pub const STACK_DEPTH_MAX: usize = 128;
/// Most rolled-back pairs that one stack remembers.
pub const TOMBSTONES_MAX: usize = 128;

/// Longest window of a policy, in seconds.
pub const WINDOW_SECONDS_MAX: u32 = 864_000;
/// Largest sensitivity and weight of a policy.
pub const FACTOR_MAX: u32 = 1_000;
/// Most commands a policy allows.
pub const EXEC_ALLOW_MAX: usize = 256;
/// Longest command a policy allows, in bytes.
pub const EXEC_ALLOW_BYTES_MAX: usize = 1_024;
/// Largest stored overlay, in compressed bytes.
pub const OVERLAY_BYTES_MAX: usize = 16 << 20;
/// Most that Global, or one vCluster, may declare, in bytes of the boot document's text. Both together and the policy fit an
/// overlay even if nothing of them compresses, so whatever is declared can be stored.
pub const DECLARED_BYTES_MAX: u64 = 7 << 20;

/// Most open sessions.
pub const SESSIONS_MAX: usize = 100_000;
/// Most replies kept for one session.
pub const SESSION_REPLIES_MAX: usize = 1_024;
/// A session that was idle for this long is due to expire, in seconds of replicated time.
pub const SESSION_IDLE_SECONDS: u64 = 3_600;
/// Most one-shot replies kept.
pub const ONE_SHOTS_MAX: usize = 100_000;
/// A one-shot reply that was kept for this long is due to expire, in seconds of replicated time.
pub const ONE_SHOT_SECONDS: u64 = 3_600;
/// What a Busy answer asks the client to wait, in milliseconds.
pub const BUSY_RETRY_MS: u64 = 1_000;

/// Most members of a cluster.
pub const MEMBERS_MAX: usize = 256;

/// Most things that one `Expire` expires.
pub const EXPIRE_MAX: u32 = 256;

/// Largest page of a snapshot, in bytes.
pub const PAGE_BYTES: usize = 256 << 10;

const _: () = assert!(RECORD_BYTES_MAX < crate::codec::DECODE_BYTES_MAX, "a record must decode");
const _: () = assert!(OVERLAY_BYTES_MAX < crate::codec::DECODE_BYTES_MAX, "an overlay must decode");
/// More than a policy, a head and an end have in a boot document: a byte that is escaped takes four.
const DOCUMENT_BYTES_BESIDE: u64 = (EXEC_ALLOW_MAX * (4 * EXEC_ALLOW_BYTES_MAX + 64) + (64 << 10)) as u64;
/// zstd adds less than this to what does not compress.
const fn packed_at_worst(bytes: u64) -> u64 {
    bytes + bytes / 128 + 1_024
}
const _: () = assert!(
    packed_at_worst(2 * DECLARED_BYTES_MAX + DOCUMENT_BYTES_BESIDE) <= OVERLAY_BYTES_MAX as u64,
    "what is declared must fit an overlay"
);
const _: () = assert!(2 * crate::journal::key::VALUE_BYTES_MAX < RECORD_BYTES_MAX, "one change must fit a record");
const _: () = assert!(CHANGES_MAX <= TAKES_OFF_MAX, "one entry must fit a step of a rollback");
