//! The bytes of what a data directory holds: log records, snapshot metas, history segments, the identity.
//!
//! A log record is self-delimiting and goes out in pieces, so that a log writes it straight into its sectors. A group of
//! entries is stored entry by entry: replaying them one by one gives the same log.
//!
//! The order of variants and fields below *is* the format. Never change it: a new format gets mirror types of its own.

use super::{CodecError, FORMAT, configuration, decode, decode_up_to, encode, encode_as, malformed};
use crate::ids::{Age, ClusterId, Digest, GroupId, Incarnation, Index, ReplicaId, ReplicaName, Seq, Term};
use crate::log::{Configuration, HardState, LogEntry, LogEntryKind, LogRecord};
use crate::storage::{Identity, Layer, Segment, SnapshotMeta};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use bincode::enc::write::Writer;
use bincode::error::EncodeError;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
enum StoredRecord {
    HardState { term: u64, vote: u64, commit: u64 },
    Entry(StoredEntry),
    Reset { index: u64, term: u64 },
}

#[derive(Serialize, Deserialize)]
struct StoredEntry {
    term: u64,
    index: u64,
    kind: StoredKind,
    data: Bytes,
    context: Bytes,
}

#[derive(Serialize, Deserialize)]
enum StoredKind {
    Normal,
    Membership,
}

#[derive(Serialize, Deserialize)]
struct StoredConfiguration {
    voters: Vec<u64>,
    voters_outgoing: Vec<u64>,
    learners: Vec<u64>,
    learners_next: Vec<u64>,
    auto_leave: bool,
}

#[derive(Serialize, Deserialize)]
struct StoredSegment {
    first: u64,
    last: u64,
    bytes: u64,
    before: [u8; 32],
    head: [u8; 32],
}

/// The format that snapshot metas are written in. Format 1 had no layers: its pages were the state, and its digest theirs.
const META_FORMAT: u8 = 2;

#[derive(Serialize, Deserialize)]
struct StoredLayer {
    index: u64,
    term: u64,
    pages: u32,
    lasting: u32,
    bytes: u64,
    digest: [u8; 32],
}

#[derive(Serialize, Deserialize)]
struct StoredMeta2 {
    index: u64,
    term: u64,
    configuration: StoredConfiguration,
    sequence: u64,
    head: [u8; 32],
    age: u64,
    history: Vec<StoredSegment>,
    layers: Vec<StoredLayer>,
    digest: [u8; 32],
}

#[derive(Serialize, Deserialize)]
struct StoredMeta1 {
    index: u64,
    term: u64,
    configuration: StoredConfiguration,
    sequence: u64,
    head: [u8; 32],
    age: u64,
    history: Vec<StoredSegment>,
    pages: u32,
    bytes: u64,
    digest: [u8; 32],
}

#[derive(Serialize, Deserialize)]
struct StoredIdentity {
    cluster: u128,
    group: u64,
    replica: u64,
    incarnation: u128,
    name: String,
}

impl From<&LogEntry> for StoredEntry {
    fn from(entry: &LogEntry) -> Self {
        Self {
            term: entry.term.0,
            index: entry.index.0,
            kind: match entry.kind {
                LogEntryKind::Normal => StoredKind::Normal,
                LogEntryKind::Membership => StoredKind::Membership,
            },
            data: entry.data.clone(),
            context: entry.context.clone(),
        }
    }
}

impl From<StoredEntry> for LogEntry {
    fn from(entry: StoredEntry) -> Self {
        Self {
            term: Term(entry.term),
            index: Index(entry.index),
            kind: match entry.kind {
                StoredKind::Normal => LogEntryKind::Normal,
                StoredKind::Membership => LogEntryKind::Membership,
            },
            data: entry.data,
            context: entry.context,
        }
    }
}

impl From<&Segment> for StoredSegment {
    fn from(segment: &Segment) -> Self {
        Self {
            first: segment.first.0,
            last: segment.last.0,
            bytes: segment.bytes,
            before: segment.before.0,
            head: segment.head.0,
        }
    }
}

impl From<StoredSegment> for Segment {
    fn from(segment: StoredSegment) -> Self {
        Self {
            first: Seq(segment.first),
            last: Seq(segment.last),
            bytes: segment.bytes,
            before: Digest(segment.before),
            head: Digest(segment.head),
        }
    }
}

fn numbers(ids: &[ReplicaId]) -> Vec<u64> {
    ids.iter().map(|id| id.0).collect()
}

fn replicas(numbers: Vec<u64>) -> Vec<ReplicaId> {
    numbers.into_iter().map(ReplicaId).collect()
}

impl From<&Configuration> for StoredConfiguration {
    fn from(configuration: &Configuration) -> Self {
        Self {
            voters: numbers(&configuration.voters),
            voters_outgoing: numbers(&configuration.voters_outgoing),
            learners: numbers(&configuration.learners),
            learners_next: numbers(&configuration.learners_next),
            auto_leave: configuration.auto_leave,
        }
    }
}

impl From<StoredConfiguration> for Configuration {
    fn from(configuration: StoredConfiguration) -> Self {
        Self {
            voters: replicas(configuration.voters),
            voters_outgoing: replicas(configuration.voters_outgoing),
            learners: replicas(configuration.learners),
            learners_next: replicas(configuration.learners_next),
            auto_leave: configuration.auto_leave,
        }
    }
}

/// Hands encoded pieces on as they come.
struct Pieces<'a, F: FnMut(&[u8])>(&'a mut F);

impl<F: FnMut(&[u8])> Writer for Pieces<'_, F> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        (self.0)(bytes);
        Ok(())
    }
}

fn put<F: FnMut(&[u8])>(record: &StoredRecord, sink: &mut F) {
    sink(&[FORMAT]);
    bincode::serde::encode_into_writer(record, Pieces(sink), configuration()).expect("mirror types always encode");
}

/// Encodes a log record piece by piece into `sink`. A group of entries becomes one stored record per entry.
pub fn encode_log_record(record: &LogRecord, mut sink: impl FnMut(&[u8])) {
    match record {
        LogRecord::HardState(state) => {
            put(&StoredRecord::HardState { term: state.term.0, vote: state.vote.0, commit: state.commit.0 }, &mut sink);
        }
        LogRecord::Entries(entries) => {
            for entry in entries {
                put(&StoredRecord::Entry(entry.into()), &mut sink);
            }
        }
        LogRecord::Reset { index, term } => put(&StoredRecord::Reset { index: index.0, term: term.0 }, &mut sink),
    }
}

/// Decodes the log record at the start of `bytes` and tells how many bytes it takes. Entries come one by one.
///
/// # Errors
/// An unknown format, or bytes that are no such record.
pub fn decode_log_record(bytes: &[u8]) -> Result<(LogRecord, usize), CodecError> {
    const WHAT: &str = "a log record";
    let (&version, body) = bytes.split_first().ok_or_else(|| malformed(WHAT, "it is empty"))?;
    if version != FORMAT {
        return Err(CodecError::Format { what: WHAT, found: version, known: FORMAT });
    }
    let (record, used): (StoredRecord, usize) =
        bincode::serde::decode_from_slice(body, configuration()).map_err(|error| malformed(WHAT, error))?;
    let record = match record {
        StoredRecord::HardState { term, vote, commit } => {
            LogRecord::HardState(HardState { term: Term(term), vote: ReplicaId(vote), commit: Index(commit) })
        }
        StoredRecord::Entry(entry) => LogRecord::Entries(vec![entry.into()]),
        StoredRecord::Reset { index, term } => LogRecord::Reset { index: Index(index), term: Term(term) },
    };
    Ok((record, used + 1))
}

/// Encodes what a snapshot is.
#[must_use]
pub fn encode_snapshot_meta(meta: &SnapshotMeta) -> Bytes {
    let layers = meta.layers.iter().map(|layer| StoredLayer {
        index: layer.index.0,
        term: layer.term.0,
        pages: layer.pages,
        lasting: layer.lasting,
        bytes: layer.bytes,
        digest: layer.digest.0,
    });
    let meta = StoredMeta2 {
        index: meta.index.0,
        term: meta.term.0,
        configuration: (&meta.configuration).into(),
        sequence: meta.sequence.0,
        head: meta.head.0,
        age: meta.age.0,
        history: meta.history.iter().map(Into::into).collect(),
        layers: layers.collect(),
        digest: meta.digest.0,
    };
    encode_as(META_FORMAT, &meta)
}

/// Decodes what a snapshot is.
///
/// # Errors
/// An unknown format, or bytes that are no such thing.
pub fn decode_snapshot_meta(bytes: &[u8]) -> Result<SnapshotMeta, CodecError> {
    const WHAT: &str = "a snapshot's meta";
    if bytes.first() == Some(&1) {
        let meta: StoredMeta1 = decode_up_to(META_FORMAT, WHAT, bytes)?;
        let layer = Layer {
            index: Index(meta.index),
            term: Term(meta.term),
            pages: meta.pages,
            lasting: meta.pages,
            bytes: meta.bytes,
            digest: Digest(meta.digest),
        };
        return Ok(SnapshotMeta {
            index: layer.index,
            term: layer.term,
            configuration: meta.configuration.into(),
            sequence: Seq(meta.sequence),
            head: Digest(meta.head),
            age: Age(meta.age),
            history: meta.history.into_iter().map(Into::into).collect(),
            layers: vec![layer],
            digest: Digest::default(),
        });
    }
    let meta: StoredMeta2 = decode_up_to(META_FORMAT, WHAT, bytes)?;
    let layers = meta.layers.into_iter().map(|layer| Layer {
        index: Index(layer.index),
        term: Term(layer.term),
        pages: layer.pages,
        lasting: layer.lasting,
        bytes: layer.bytes,
        digest: Digest(layer.digest),
    });
    Ok(SnapshotMeta {
        index: Index(meta.index),
        term: Term(meta.term),
        configuration: meta.configuration.into(),
        sequence: Seq(meta.sequence),
        head: Digest(meta.head),
        age: Age(meta.age),
        history: meta.history.into_iter().map(Into::into).collect(),
        layers: layers.collect(),
        digest: Digest(meta.digest),
    })
}

/// Encodes a history segment's place in the manifest.
#[must_use]
pub fn encode_segment(segment: &Segment) -> Bytes {
    encode(&StoredSegment::from(segment))
}

/// Decodes a history segment's place in the manifest.
///
/// # Errors
/// An unknown format, or bytes that are no such thing.
pub fn decode_segment(bytes: &[u8]) -> Result<Segment, CodecError> {
    decode::<StoredSegment>("a history segment", bytes).map(Into::into)
}

/// Encodes who a data directory belongs to.
#[must_use]
pub fn encode_identity(identity: &Identity) -> Bytes {
    encode(&StoredIdentity {
        cluster: identity.cluster.0,
        group: identity.group.0,
        replica: identity.replica.0,
        incarnation: identity.incarnation.0,
        name: identity.name.as_str().to_string(),
    })
}

/// Decodes who a data directory belongs to.
///
/// # Errors
/// An unknown format, bytes that are no such thing, or a name that is none.
pub fn decode_identity(bytes: &[u8]) -> Result<Identity, CodecError> {
    const WHAT: &str = "an identity";
    let identity: StoredIdentity = decode(WHAT, bytes)?;
    Ok(Identity {
        cluster: ClusterId(identity.cluster),
        group: GroupId(identity.group),
        replica: ReplicaId(identity.replica),
        incarnation: Incarnation(identity.incarnation),
        name: ReplicaName::new(&identity.name).map_err(|error| malformed(WHAT, error))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<LogRecord> {
        let entry = |index: u64, kind| LogEntry {
            term: Term(3),
            index: Index(index),
            kind,
            data: Bytes::from_static(b"data"),
            context: Bytes::from_static(b"context"),
        };
        vec![
            LogRecord::HardState(HardState { term: Term(3), vote: ReplicaId(2), commit: Index(7) }),
            LogRecord::Entries(vec![entry(8, LogEntryKind::Normal)]),
            LogRecord::Entries(vec![entry(9, LogEntryKind::Membership)]),
            LogRecord::Reset { index: Index(40), term: Term(2) },
        ]
    }

    fn meta() -> SnapshotMeta {
        SnapshotMeta {
            index: Index(5),
            term: Term(2),
            configuration: Configuration {
                voters: vec![ReplicaId(1), ReplicaId(2)],
                voters_outgoing: vec![ReplicaId(3)],
                learners: vec![ReplicaId(4)],
                learners_next: vec![ReplicaId(3)],
                auto_leave: true,
            },
            sequence: Seq(9),
            head: Digest::of(b"head"),
            age: Age(1_000),
            history: vec![Segment {
                first: Seq(1),
                last: Seq(9),
                bytes: 900,
                before: Digest::default(),
                head: Digest::of(b"head"),
            }],
            layers: [(12, 2_000), (40, 300)].map(|(index, bytes)| layer(index, bytes)).into(),
            digest: Digest::of(b"state"),
        }
    }

    fn layer(index: u64, bytes: u64) -> Layer {
        let digest = Digest::of(&bytes.to_le_bytes());
        Layer { index: Index(index), term: Term(2), pages: 3, lasting: 2, bytes, digest }
    }

    fn identity() -> Identity {
        Identity {
            cluster: ClusterId(1 << 100),
            group: GroupId(1),
            replica: ReplicaId(2),
            incarnation: Incarnation(7),
            name: ReplicaName::new("host-2").unwrap(),
        }
    }

    #[test]
    fn log_records_come_back_one_by_one() {
        let mut bytes = Vec::new();
        for record in records() {
            encode_log_record(&record, |piece| bytes.extend_from_slice(piece));
        }
        let mut rest = &bytes[..];
        for record in records() {
            let (decoded, used) = decode_log_record(rest).unwrap();
            assert_eq!(decoded, record);
            rest = &rest[used..];
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn a_group_of_entries_is_stored_entry_by_entry() {
        let entries: Vec<LogEntry> = records()
            .into_iter()
            .filter_map(|record| if let LogRecord::Entries(entries) = record { Some(entries) } else { None })
            .flatten()
            .collect();
        let mut together = Vec::new();
        encode_log_record(&LogRecord::Entries(entries.clone()), |piece| together.extend_from_slice(piece));
        let mut apart = Vec::new();
        for entry in entries {
            encode_log_record(&LogRecord::Entries(vec![entry]), |piece| apart.extend_from_slice(piece));
        }
        assert_eq!(together, apart);
    }

    #[test]
    fn every_proper_prefix_is_refused() {
        for record in records() {
            let mut bytes = Vec::new();
            encode_log_record(&record, |piece| bytes.extend_from_slice(piece));
            for end in 0..bytes.len() {
                assert!(decode_log_record(&bytes[..end]).is_err(), "{record:?} cut at {end}");
            }
        }
        let meta_bytes = encode_snapshot_meta(&meta());
        for end in 0..meta_bytes.len() {
            assert!(decode_snapshot_meta(&meta_bytes[..end]).is_err(), "cut at {end}");
        }
        let identity_bytes = encode_identity(&identity());
        for end in 0..identity_bytes.len() {
            assert!(decode_identity(&identity_bytes[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn metas_segments_and_identities_come_back() {
        assert_eq!(decode_snapshot_meta(&encode_snapshot_meta(&meta())).unwrap(), meta());
        assert_eq!(decode_identity(&encode_identity(&identity())).unwrap(), identity());
        let segment = meta().history[0];
        assert_eq!(decode_segment(&encode_segment(&segment)).unwrap(), segment);
    }

    #[test]
    fn an_unknown_format_is_refused_naming_both_versions() {
        let mut bytes = encode_identity(&identity()).to_vec();
        bytes[0] = 9;
        assert_eq!(decode_identity(&bytes), Err(CodecError::Format { what: "an identity", found: 9, known: FORMAT }));
    }
}
