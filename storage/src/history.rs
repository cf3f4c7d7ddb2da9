//! History files: `{first:020}.seg`, the journal's records of one segment as stored.
//!
//! ```text
//! │ header │ record │ record │ …
//! record   4 length, 4 CRC-32 over sequence, length and bytes; the bytes
//! ```
//! The header's number is the first sequence. A sealed segment has exactly its records; the open one may have more than the
//! newest snapshot's manifest says, which the next start cuts and replay writes again.

use crate::disk::{Access, Disk, read_whole};
use crate::file::{FileKind, Header, Owner, REPAIR, SECTOR, damaged, frame};
use bytes::Bytes;
use muster_core::ids::Seq;
use muster_core::storage::{Segment, StorageError};
use std::path::{Path, PathBuf};

/// The file of the segment that begins with this sequence.
pub(crate) fn path_of(directory: &Path, first: Seq) -> PathBuf {
    directory.join(format!("{:020}.seg", first.0))
}

/// The first sequence of the segment in a file of this name.
pub(crate) fn first_of(name: &str) -> Option<Seq> {
    let digits = name.strip_suffix(".seg")?;
    (digits.len() == 20).then(|| digits.parse().ok().map(Seq)).flatten()
}

/// The history files in a directory, oldest first.
pub(crate) async fn list<D: Disk>(disk: &D, directory: &Path) -> Result<Vec<Seq>, StorageError> {
    let names = disk.list(directory).await?.unwrap_or_default();
    Ok(names.iter().filter_map(|name| first_of(name)).collect())
}

/// The header of a history file.
pub(crate) fn header(owner: Owner, first: Seq) -> [u8; SECTOR] {
    Header { kind: FileKind::History, owner, number: first.0, length: 0, trailer: 0 }.encode()
}

/// A segment with one more record.
pub(crate) fn grown(segment: Segment, record: &[u8]) -> Segment {
    Segment {
        last: segment.last.next(),
        bytes: segment.bytes + record.len() as u64,
        head: segment.head.chain(record),
        ..segment
    }
}

/// How many records a segment has.
pub(crate) const fn count(segment: &Segment) -> u64 {
    segment.last.0 + 1 - segment.first.0
}

/// How long the file of a segment with exactly its records is.
pub(crate) const fn file_bytes(segment: &Segment) -> u64 {
    SECTOR as u64 + segment.bytes + count(segment) * frame::HEAD as u64
}

/// Whether these are the segment's records, no more and no less.
pub(crate) fn is_made_of(segment: &Segment, records: &[Bytes]) -> bool {
    let start = Segment::starting(segment.first, segment.before);
    records.len() as u64 == count(segment)
        && records.iter().fold(start, |segment, record| grown(segment, record)) == *segment
}

/// The bytes of a file with these records.
pub(crate) fn encode(owner: Owner, first: Seq, records: &[Bytes]) -> Vec<u8> {
    let records_bytes: usize = records.iter().map(|record| record.len() + frame::HEAD).sum();
    let mut bytes = Vec::with_capacity(SECTOR + records_bytes);
    bytes.extend_from_slice(&header(owner, first));
    for (record, sequence) in records.iter().zip(first.0..) {
        bytes.extend_from_slice(&frame::head(sequence, record));
        bytes.extend_from_slice(record);
    }
    bytes
}

/// Checks that a file begins with this segment's records: header, every record's checksum, and the chain up to the segment's
/// head. Bytes after them are not looked at.
pub(crate) async fn verify<D: Disk>(
    disk: &D,
    directory: &Path,
    owner: Option<&Owner>,
    segment: &Segment,
) -> Result<(), StorageError> {
    let path = path_of(directory, segment.first);
    let wrong = |offset: usize, problem: String| damaged(&path, offset as u64, problem, REPAIR);
    let bytes = read_whole(disk, &path).await?.ok_or_else(|| wrong(0, "it is missing".into()))?;
    let header = Header::decode(FileKind::History, &path, &bytes, owner)?;
    if header.number != segment.first.0 {
        return Err(wrong(0, format!("it begins with sequence {}, its name says {}", header.number, segment.first)));
    }
    let mut found = Segment::starting(segment.first, segment.before);
    let mut offset = SECTOR;
    while found.last < segment.last {
        let sequence = found.last.next();
        let record = frame::read(sequence.0, &bytes[offset..])
            .map_err(|problem| wrong(offset, format!("record {sequence}: {problem}")))?;
        found = grown(found, record);
        offset += frame::HEAD + record.len();
    }
    if found != *segment {
        return Err(wrong(
            SECTOR,
            format!(
                "its records up to {} come to the head {}, the snapshot says {}",
                found.last, found.head, segment.head
            ),
        ));
    }
    Ok(())
}

/// Checks a sealed segment's file: its length, and everything in it.
pub(crate) async fn verify_whole<D: Disk>(
    disk: &D,
    directory: &Path,
    owner: Option<&Owner>,
    segment: &Segment,
) -> Result<(), StorageError> {
    let path = path_of(directory, segment.first);
    let wrong = |offset, problem| damaged(&path, offset, problem, REPAIR);
    let file = disk.open(&path, Access::Read).await?.ok_or_else(|| wrong(0, "it is missing".into()))?;
    let (length, expected) = (disk.length(&file).await?, file_bytes(segment));
    if length != expected {
        let problem = format!("it has {length} bytes, a segment up to {} has {expected}", segment.last);
        return Err(wrong(length.min(expected), problem));
    }
    verify(disk, directory, owner, segment).await
}
