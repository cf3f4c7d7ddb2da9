//! What an agent keeps on its node's disk, format 1: the ledger, the declared state, the events of the spool.

use super::journal::{Author1, Change1, ConfigState1, OperationKind1, Policy1, Setting1};
use super::mirror::{Age1, Key1, Mirror, OneShotId1, Seq1, Text1, VClusterId1, WallTime1, mirror_enum, mirror_struct};
use super::{CodecError, decode, encode, malformed};
use crate::agent::drift::DriftVector;
use crate::agent::event::{Event, Fact};
use crate::agent::host::{BootId, BootTime, Consumer, HostError};
use crate::agent::ledger::{
    Attempt, Before, Cause, ChangeId, Conflict, Declared, Doing, Emergency, Frozen, Ledger, LocalChange, Owner,
    PendingCommit, Spool, Window,
};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

macro_rules! wraps {
    ($($mirror:ident($inner:ty) of $domain:ident),* $(,)?) => { $(
        #[derive(Clone, Debug, Serialize, Deserialize)]
        #[doc = concat!("The form of a `", stringify!($domain), "`.")]
        pub(crate) struct $mirror($inner);
        impl Mirror for $mirror {
            type Domain = $domain;
            fn of(value: &$domain) -> Self { Self(value.0.clone()) }
            fn back(self) -> Result<$domain, CodecError> { Ok($domain(self.0)) }
        }
    )* };
}
wraps!(
    BootTime1(u64) of BootTime,
    BootId1(Arc<str>) of BootId,
    ChangeId1(u64) of ChangeId,
    DriftVector1([u32; 7]) of DriftVector,
);

/// The form of a map: its pairs, in the order of the keys.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Pairs<K, V>(Vec<(K, V)>);

impl<K: Mirror, V: Mirror> Mirror for Pairs<K, V>
where
    K::Domain: Ord,
{
    type Domain = BTreeMap<K::Domain, V::Domain>;
    fn of(value: &Self::Domain) -> Self {
        Self(value.iter().map(|(key, value)| (K::of(key), V::of(value))).collect())
    }
    fn back(self) -> Result<Self::Domain, CodecError> {
        let mut map = BTreeMap::new();
        for (key, value) in self.0 {
            if map.insert(key.back()?, value.back()?).is_some() {
                return Err(malformed("a map", "a key is there twice"));
            }
        }
        Ok(map)
    }
}

/// The form of a set: its members, in order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Members<K>(Vec<K>);

impl<K: Mirror> Mirror for Members<K>
where
    K::Domain: Ord,
{
    type Domain = BTreeSet<K::Domain>;
    fn of(value: &Self::Domain) -> Self {
        Self(value.iter().map(K::of).collect())
    }
    fn back(self) -> Result<Self::Domain, CodecError> {
        self.0.into_iter().map(K::back).collect()
    }
}

mirror_struct!(
    /// The form of a declared state.
    Declared1 of Declared {
        sequence: Seq1,
        vcluster: VClusterId1,
        policy_sequence: Seq1,
        policy: Policy1,
        settings: Pairs<Key1, Setting1>,
    }
);
mirror_enum!(
    /// The form of an owner.
    Owner1 of Owner { Operator(Author1), BehindItsBack, NotReached }
);
mirror_struct!(
    /// The form of a local change.
    LocalChange1 of LocalChange {
        change: ChangeId1,
        owner: Owner1,
        before: Setting1,
        value: Setting1,
        asked: Option<Setting1>,
        since: WallTime1,
        reported: bool,
        problem: Option<Text1>,
    }
);
mirror_struct!(
    /// The form of a consumer.
    Consumer1 of Consumer { key: Key1, pid: u32, command: Text1, path: Text1 }
);
mirror_struct!(
    /// The form of what a host refused.
    HostError1 of HostError { key: Key1, problem: Text1 }
);
mirror_struct!(
    /// The form of why a window stands still.
    Frozen1 of Frozen { at: BootTime1, consumers: Vec<Consumer1>, errors: Vec<HostError1> }
);
mirror_struct!(
    /// The form of a window.
    Window1 of Window {
        number: u64,
        opened_at: BootTime1,
        deadline: BootTime1,
        drift: DriftVector1,
        frozen: Option<Frozen1>,
    }
);
mirror_struct!(
    /// The form of an emergency.
    Emergency1 of Emergency {
        author: Author1,
        reason: Text1,
        since: WallTime1,
        deadline: BootTime1,
        alerted: bool,
        event: u64,
        recorded: Option<Seq1>,
    }
);
mirror_struct!(
    /// The form of a conflict.
    Conflict1 of Conflict { before: Setting1, declared: Setting1, deadline: BootTime1 }
);
mirror_enum!(
    /// The form of a cause.
    Cause1 of Cause { Boot, Declared, Expired, Asked(Author1), Conflict, Unfinished }
);
mirror_struct!(
    /// The form of a key before a change.
    Before1 of Before { value: Setting1, change: Option<LocalChange1> }
);
mirror_enum!(
    /// The form of what the host is being changed for.
    Doing1 of Doing {
        Setting { change: ChangeId1, keys: Pairs<Key1, Before1> },
        Returning { cause: Cause1, keys: Members<Key1> },
    }
);
mirror_struct!(
    /// The form of an attempt.
    Attempt1 of Attempt { id: OneShotId1, drawn_at: Age1 }
);
mirror_struct!(
    /// The form of a pending commit.
    PendingCommit1 of PendingCommit {
        attempt: Attempt1,
        author: Author1,
        parent: Seq1,
        settings: Pairs<Key1, Setting1>,
        ttl_seconds: Option<u32>,
        message: Text1,
        occurred_at: WallTime1,
    }
);
mirror_struct!(
    /// The form of what counts of a spool.
    Spool1 of Spool { delivered: u64, last: u64, attempt: Option<Attempt1> }
);
mirror_struct!(
    /// The form of a ledger.
    Ledger1 of Ledger {
        boot: BootId1,
        declared: Option<Seq1>,
        committed: Pairs<Key1, (Seq1, Setting1)>,
        changes: Pairs<Key1, LocalChange1>,
        last_change: ChangeId1,
        window: Option<Window1>,
        last_window: u64,
        emergency: Option<Emergency1>,
        conflicts: Pairs<Key1, Conflict1>,
        told_drift: bool,
        doing: Option<Doing1>,
        commit: Option<PendingCommit1>,
        spool: Spool1,
    }
);
mirror_enum!(
    /// The form of a fact.
    Fact1 of Fact {
        Drift { changes: Vec<Change1>, message: Text1 },
        Undone { changes: Vec<Change1>, message: Text1 },
        EmergencyStart { reason: Text1 },
        EmergencyEnd { message: Text1 },
        Operation { kind: OperationKind1, detail: Text1, exit_status: Option<i32> },
        State { state: ConfigState1 },
        Note { message: Text1 },
    }
);
mirror_struct!(
    /// The form of an event.
    Event1 of Event { number: u64, occurred_at: WallTime1, after: Seq1, author: Author1, fact: Fact1 }
);

/// Encodes a ledger.
#[must_use]
pub fn encode_ledger(ledger: &Ledger) -> Bytes {
    encode(&Ledger1::of(ledger))
}

/// Decodes a ledger.
///
/// # Errors
/// [`CodecError`] if the bytes are not one of a known format, or contradict themselves.
pub fn decode_ledger(bytes: &[u8]) -> Result<Ledger, CodecError> {
    let ledger = decode::<Ledger1>("an agent's ledger", bytes)?.back()?;
    if ledger.spool.delivered > ledger.spool.last {
        return Err(malformed("an agent's ledger", "more events were delivered than happened"));
    }
    Ok(ledger)
}

/// Encodes a declared state.
#[must_use]
pub fn encode_declared(declared: &Declared) -> Bytes {
    encode(&Declared1::of(declared))
}

/// Decodes a declared state.
///
/// # Errors
/// [`CodecError`] if the bytes are not one of a known format.
pub fn decode_declared(bytes: &[u8]) -> Result<Declared, CodecError> {
    decode::<Declared1>("a node's declared state", bytes)?.back()
}

/// Encodes an event.
#[must_use]
pub fn encode_event(event: &Event) -> Bytes {
    encode(&Event1::of(event))
}

/// Decodes an event.
///
/// # Errors
/// [`CodecError`] if the bytes are not one of a known format.
pub fn decode_event(bytes: &[u8]) -> Result<Event, CodecError> {
    decode::<Event1>("an event of the spool", bytes)?.back()
}
