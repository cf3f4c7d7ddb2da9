//! History files: `{first:020}.seg`, the journal's records of one segment.
//!
//! ```text
//! │ header │ block │ block │ …
//! block    4 length, 4 CRC-32 over the first record's sequence, length and content; the content
//! content  4 how many records, 4 how many bytes they are unpacked; zstd of: 4 length, the record as stored; …
//! ```
//! The header's number is the first sequence; its length is zero while the segment is open. A sealed segment has exactly its
//! records, and its length counts once a snapshot's manifest calls it sealed; the open one may have more than the newest snapshot's
//! manifest says, which the next start cuts and replay writes again. A snapshot begins a block, so that what is cut begins at one. How many records a block has is each replica's own
//! business: a segment is what its records are, not how they are packed. Blocks say how many records they have, so whoever
//! looks for a sequence steps over the others unread.
//!
//! In format 1 a block was one record, not packed: its content the record itself. Such files are read, and replaced when they
//! would be appended to.

use crate::disk::{Access, Disk};
use crate::file::{FileKind, Header, Owner, REPAIR, SECTOR, damaged, format_of, frame, u32_at};
use bytes::Bytes;
use muster_core::ids::Seq;
use muster_core::storage::{Segment, StorageError};
use std::path::{Path, PathBuf};
use zstd::bulk::Compressor;

/// A block is closed when its records have this many bytes.
pub(crate) const BLOCK_BYTES: usize = 128 << 10;
/// How hard blocks are packed: each is packed once and, mostly, never read.
const ZSTD_LEVEL: i32 = 3;
/// How much is read at once.
const READ_BYTES: usize = 128 << 10;
/// What comes before a block's packed records.
const BLOCK_HEAD: usize = 4 + 4;

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

/// The header of a history file; of an open segment if no length is given.
pub(crate) fn header(owner: Owner, first: Seq, length: Option<u64>) -> [u8; SECTOR] {
    Header { kind: FileKind::History, owner, number: first.0, length: length.unwrap_or(0), trailer: 0 }.encode()
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

/// Whether these are the segment's records, no more and no less.
pub(crate) fn is_made_of(segment: &Segment, records: &[Bytes]) -> bool {
    let start = Segment::starting(segment.first, segment.before);
    records.len() as u64 == segment.last.0 + 1 - segment.first.0
        && records.iter().fold(start, |segment, record| grown(segment, record)) == *segment
}

/// Records on their way into a block.
#[derive(Default)]
pub(crate) struct Packer {
    plain: Vec<u8>,
    count: u32,
    /// Kept from block to block: to make one costs as much as to pack a small block.
    zstd: Option<Compressor<'static>>,
}

impl Packer {
    pub(crate) fn put(&mut self, record: &[u8]) {
        let length = u32::try_from(record.len()).expect("a record has less than 4 GiB");
        self.plain.extend_from_slice(&length.to_le_bytes());
        self.plain.extend_from_slice(record);
        self.count += 1;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn is_full(&self) -> bool {
        self.plain.len() >= BLOCK_BYTES
    }

    pub(crate) fn clear(&mut self) {
        self.plain.clear();
        self.count = 0;
    }

    /// The block of these records, of which the first has this sequence. There are none afterwards.
    pub(crate) fn block(&mut self, first: Seq) -> Vec<u8> {
        let plain_bytes = u32::try_from(self.plain.len()).expect("a block has less than 4 GiB");
        let zstd = self.zstd.get_or_insert_with(|| Compressor::new(ZSTD_LEVEL).expect("zstd has this level"));
        let packed = zstd.compress(&self.plain).expect("bytes in memory are packed into memory");
        let mut content = Vec::with_capacity(BLOCK_HEAD + packed.len());
        content.extend_from_slice(&self.count.to_le_bytes());
        content.extend_from_slice(&plain_bytes.to_le_bytes());
        content.extend_from_slice(&packed);
        self.clear();
        let mut block = frame::head(first.0, &content).to_vec();
        block.append(&mut content);
        block
    }
}

/// The bytes of a file with these records.
pub(crate) fn encode(owner: Owner, first: Seq, records: &[Bytes], is_sealed: bool) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR];
    let mut packer = Packer::default();
    let mut begin = first;
    for (record, sequence) in records.iter().zip(first.0..) {
        packer.put(record);
        if packer.is_full() {
            bytes.append(&mut packer.block(begin));
            begin = Seq(sequence + 1);
        }
    }
    if !packer.is_empty() {
        bytes.append(&mut packer.block(begin));
    }
    let length = is_sealed.then_some(bytes.len() as u64);
    bytes[..SECTOR].copy_from_slice(&header(owner, first, length));
    bytes
}

/// A block as it was read, not unpacked.
pub(crate) struct Block {
    pub(crate) first: Seq,
    /// How many records it has.
    pub(crate) count: u64,
    /// Where it begins in its file.
    pub(crate) offset: u64,
    content: Bytes,
    is_packed: bool,
}

impl Block {
    /// The sequence after its last.
    pub(crate) fn next(&self) -> Seq {
        Seq(self.first.0 + self.count)
    }

    /// Its records, or what is wrong with them.
    pub(crate) fn records(&self) -> Result<Vec<Bytes>, String> {
        if !self.is_packed {
            return Ok(vec![self.content.clone()]);
        }
        let plain_bytes = u32_at(&self.content, 4) as usize;
        let plain = zstd::bulk::decompress(&self.content[BLOCK_HEAD..], plain_bytes);
        let plain = Bytes::from(plain.map_err(|error| format!("a block does not unpack: {error}"))?);
        let mut records = Vec::new();
        let mut at = 0;
        while at < plain.len() {
            let end = plain.get(at..at + 4).map(|length| at + 4 + u32_at(length, 0) as usize);
            let end = end.filter(|end| *end <= plain.len()).ok_or("a block ends within a record")?;
            records.push(plain.slice(at + 4..end));
            at = end;
        }
        if records.len() as u64 != self.count {
            return Err(format!("a block has {} records, it says {}", records.len(), self.count));
        }
        Ok(records)
    }
}

/// Reads a file's blocks, one after the other.
pub(crate) struct Blocks<'a, D: Disk> {
    disk: &'a D,
    file: D::File,
    path: PathBuf,
    format: u32,
    length: u64,
    /// The length it was sealed with; zero if it is open.
    sealed: u64,
    next: Seq,
    offset: u64,
    /// What was read, from `offset` on.
    buffer: Bytes,
}

impl<'a, D: Disk> Blocks<'a, D> {
    /// Opens the file of a segment. None if there is none.
    pub(crate) async fn open(
        disk: &'a D,
        directory: &Path,
        owner: Option<&Owner>,
        first: Seq,
    ) -> Result<Option<Self>, StorageError> {
        let path = path_of(directory, first);
        let Some(file) = disk.open(&path, Access::Read).await? else { return Ok(None) };
        let length = disk.length(&file).await?;
        let sector = disk.read(&file, 0, SECTOR).await?;
        let header = Header::decode(FileKind::History, &path, &sector, owner)?;
        let wrong = |offset, problem| Err(damaged(&path, offset, problem, REPAIR));
        if header.number != first.0 {
            return wrong(0, format!("it begins with sequence {}, its name says {first}", header.number));
        }
        Ok(Some(Self {
            disk,
            file,
            path,
            format: format_of(&sector),
            length,
            sealed: header.length,
            next: first,
            offset: SECTOR as u64,
            buffer: Bytes::new(),
        }))
    }

    /// Checks that the file has the length it was sealed with. Only of a segment that a snapshot's manifest calls sealed: until
    /// then the header may be on the disk without the records before it, as everything after the newest snapshot may be.
    fn check_sealed(&self) -> Result<(), StorageError> {
        let (length, sealed) = (self.length, self.sealed);
        if sealed == 0 || sealed == length {
            return Ok(());
        }
        let problem = format!("it has {length} bytes, it was sealed with {sealed}");
        Err(damaged(&self.path, sealed.min(length), problem, REPAIR))
    }

    /// Goes on where a block begins.
    pub(crate) fn go_to(&mut self, next: Seq, offset: u64) {
        (self.next, self.offset, self.buffer) = (next, offset, Bytes::new());
    }

    /// Where the next block begins.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether new blocks can be appended as they are made today.
    pub(crate) fn is_newest(&self) -> bool {
        self.format == FileKind::History.format()
    }

    /// The error for what is wrong here.
    pub(crate) fn wrong(&self, offset: u64, problem: impl std::fmt::Display) -> StorageError {
        damaged(&self.path, offset, format!("from record {}: {problem}", self.next), REPAIR)
    }

    /// The next block, and that it is whole. At the end of the file that is an error.
    pub(crate) async fn next(&mut self) -> Result<Block, StorageError> {
        let left = self.length.saturating_sub(self.offset);
        for wanted in [frame::HEAD, usize::MAX] {
            let whole = match wanted {
                frame::HEAD => frame::HEAD,
                _ => frame::HEAD + u32_at(&self.buffer, 0) as usize,
            };
            if self.buffer.len() < whole && (self.buffer.len() as u64) < left {
                let bytes = READ_BYTES.max(whole.min(usize::try_from(left).unwrap_or(whole)));
                self.buffer = self.disk.read(&self.file, self.offset, bytes).await?.into();
            }
            if self.buffer.len() < frame::HEAD {
                return Err(self.wrong(self.offset, "it ends within a block"));
            }
        }
        let content = frame::read(self.next.0, &self.buffer).map_err(|problem| self.wrong(self.offset, problem))?;
        let bytes = content.len();
        let is_packed = self.format > 1;
        let count = match is_packed {
            true if bytes < BLOCK_HEAD => return Err(self.wrong(self.offset, "a block is too short")),
            true => u64::from(u32_at(content, 0)),
            false => 1,
        };
        if count == 0 {
            return Err(self.wrong(self.offset, "a block has no records"));
        }
        let content = self.buffer.slice(frame::HEAD..frame::HEAD + bytes);
        let block = Block { first: self.next, count, offset: self.offset, content, is_packed };
        self.buffer = self.buffer.slice(frame::HEAD + bytes..);
        self.offset += (frame::HEAD + bytes) as u64;
        self.next = block.next();
        Ok(block)
    }
}

/// What a file holds of a segment.
pub(crate) struct Verified {
    /// Where the block begins that comes after the segment's last record; none if that record is not the last of its block.
    pub(crate) end: Option<u64>,
    /// Whether it is of the newest format.
    pub(crate) is_newest: bool,
}

/// Checks that a file begins with this segment's records: header, every block's checksum, and the chain up to the segment's
/// head. Blocks after them are not looked at.
pub(crate) async fn verify<D: Disk>(
    disk: &D,
    directory: &Path,
    owner: Option<&Owner>,
    segment: &Segment,
) -> Result<Verified, StorageError> {
    let missing = || damaged(&path_of(directory, segment.first), 0, "it is missing".into(), REPAIR);
    let mut blocks = Blocks::open(disk, directory, owner, segment.first).await?.ok_or_else(missing)?;
    let mut found = Segment::starting(segment.first, segment.before);
    let mut is_at_end = true;
    while found.last < segment.last {
        let block = blocks.next().await?;
        let records = block.records().map_err(|problem| blocks.wrong(block.offset, problem))?;
        is_at_end = block.next() <= segment.last.next();
        let wanted = usize::try_from(segment.last.0 - found.last.0).unwrap_or(usize::MAX);
        found = records.iter().take(wanted).fold(found, |found, record| grown(found, record));
    }
    if found != *segment {
        let problem = format!(
            "its records up to {} come to the head {}, the snapshot says {}",
            found.last, found.head, segment.head
        );
        return Err(blocks.wrong(SECTOR as u64, problem));
    }
    Ok(Verified { end: is_at_end.then_some(blocks.offset()), is_newest: blocks.is_newest() })
}

/// Checks a sealed segment's file, and that it ends with its last record.
pub(crate) async fn verify_whole<D: Disk>(
    disk: &D,
    directory: &Path,
    owner: Option<&Owner>,
    segment: &Segment,
) -> Result<(), StorageError> {
    let length = match Blocks::open(disk, directory, owner, segment.first).await? {
        Some(blocks) => blocks.check_sealed().map(|()| blocks.length)?,
        None => 0,
    };
    let verified = verify(disk, directory, owner, segment).await?;
    let path = path_of(directory, segment.first);
    match verified.end {
        Some(end) if end == length => Ok(()),
        end => {
            let problem = format!("it has {length} bytes, and goes on after its last record {}", segment.last);
            Err(damaged(&path, end.unwrap_or(length).min(length), problem, REPAIR))
        }
    }
}

/// All records of a segment whose file was checked.
pub(crate) async fn read_all<D: Disk>(
    disk: &D,
    directory: &Path,
    segment: &Segment,
) -> Result<Vec<Bytes>, StorageError> {
    let mut records = Vec::new();
    let Some(mut blocks) = Blocks::open(disk, directory, None, segment.first).await? else { return Ok(records) };
    let wanted = usize::try_from(segment.last.0 + 1 - segment.first.0).unwrap_or(usize::MAX);
    while records.len() < wanted {
        let block = blocks.next().await?;
        records.extend(block.records().map_err(|problem| blocks.wrong(block.offset, problem))?);
    }
    records.truncate(wanted);
    Ok(records)
}

/// Whether a sealed segment's file is here: under its name, with the length it was sealed with.
pub(crate) async fn is_here<D: Disk>(
    disk: &D,
    directory: &Path,
    owner: &Owner,
    segment: &Segment,
) -> Result<bool, StorageError> {
    let Some(blocks) = Blocks::open(disk, directory, Some(owner), segment.first).await? else { return Ok(false) };
    blocks.check_sealed()?;
    // Format 1 knew how long a file is from its records alone.
    let count = segment.last.0 + 1 - segment.first.0;
    let expected = SECTOR as u64 + segment.bytes + count * frame::HEAD as u64;
    if !blocks.is_newest() && blocks.length != expected {
        let problem = format!("it has {} bytes, a segment up to {} has {expected}", blocks.length, segment.last);
        return Err(blocks.wrong(blocks.length.min(expected), problem));
    }
    if blocks.length <= SECTOR as u64 {
        return Err(blocks.wrong(blocks.length, "it has no records"));
    }
    Ok(true)
}
