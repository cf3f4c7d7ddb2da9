//! The spool: events that wait for the journal, in the order in which they happened.
//!
//! ```text
//! file    │ header │ frame 0 │ frame 1 │ …
//! header  8 magic MUSTERas, 4 format, 4 zero, 8 ordinal of the first event that may be in it, 4 zero, 4 CRC-32 of the bytes before
//! frame   4 length, 4 CRC-32 over frame number, length and content; the content: 1 kind, 8 ordinal, then
//!         kind 1  an event: its bytes
//!         kind 2  it is being sent: 16 request id, 8 replicated age at which the id was drawn
//!         kind 3  the journal has it
//! ```
//! Files are `{number:020}.spool`. Numbers are little-endian. Frames are appended and synced; a file that has grown past its bound is followed by another, and is
//! removed once the journal has every event in it, oldest first. So that nothing is sent twice under two names, the id under which
//! an event is sent is in the spool before it is sent.
//!
//! What a crash cuts off was never acknowledged to anybody, and is cut. A frame that is damaged between whole ones is left out,
//! and the file it was in is kept beside under another name.

use crate::disk::{Access, Disk, beside, printed};
use crate::file::{aside, frame, u32_at, u64_at};
use bytes::Bytes;
use muster_core::agent::store::Spooled;
use muster_core::ids::{Age, OneShotId};
use muster_core::storage::StorageError;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"MUSTERas";
const FORMAT: u32 = 1;
const HEADER: usize = 32;

const EVENT: u8 = 1;
const SENDING: u8 = 2;
const FORWARDED: u8 = 3;
/// Kind and ordinal.
const FRAME_HEAD: usize = 1 + 8;

struct Segment {
    path: PathBuf,
    /// Events in it that the journal has not got.
    waiting: u64,
}

pub(super) struct Spool<D: Disk> {
    disk: D,
    file_bytes: u64,
    directory: PathBuf,
    /// Oldest first; the last one is written to.
    segments: Vec<Segment>,
    /// The last segment's file, its length, and how many frames it has.
    open: Option<(D::File, u64, u64)>,
    /// Which segment each waiting event is in, by its place in `segments` plus `removed`.
    places: BTreeMap<u64, u64>,
    removed: u64,
    /// The highest number a file has had.
    files: u64,
    /// The next event's ordinal.
    next: u64,
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_suffix(".spool")?.parse().ok()
}

fn header(first: u64) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[16..24].copy_from_slice(&first.to_le_bytes());
    let checksum = crc32fast::hash(&bytes[..28]);
    bytes[28..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn content(kind: u8, ordinal: u64, rest: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FRAME_HEAD + rest.len());
    bytes.push(kind);
    bytes.extend_from_slice(&ordinal.to_le_bytes());
    bytes.extend_from_slice(rest);
    bytes
}

fn framed(number: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = frame::head(number, content).to_vec();
    bytes.extend_from_slice(content);
    bytes
}

/// A file's whole frames, and what was wrong with it.
struct Scan {
    first: u64,
    frames: Vec<Vec<u8>>,
    /// Where the whole frames end, if only what follows them is bad.
    tail: Option<u64>,
    /// Frames that were left out between whole ones.
    lost: usize,
}

fn scan(path: &Path, bytes: &[u8]) -> Result<Result<Scan, String>, StorageError> {
    if bytes.len() < HEADER || bytes[..8] != MAGIC || crc32fast::hash(&bytes[..28]) != u32_at(bytes, 28) {
        return Ok(Err("its header is damaged".to_owned()));
    }
    let format = u32_at(bytes, 8);
    if format != FORMAT {
        return Err(StorageError::Format { file: printed(path), found: format, known: FORMAT });
    }
    let mut scan = Scan { first: u64_at(bytes, 16), frames: Vec::new(), tail: None, lost: 0 };
    let (mut at, mut number) = (HEADER, 0);
    while at < bytes.len() {
        if let Ok(content) = frame::read(number, &bytes[at..])
            && content.len() >= FRAME_HEAD
        {
            scan.frames.push(content.to_vec());
            at += frame::HEAD + content.len();
            number += 1;
            continue;
        }
        // The next whole frame, if there is one: its number says how many are missing.
        let next = (at + 1..bytes.len()).find_map(|from| {
            (number + 1..number + 65).find_map(|later| {
                let content = frame::read(later, &bytes[from..]).ok()?;
                (content.len() >= FRAME_HEAD).then_some((from, later))
            })
        });
        let Some((from, later)) = next else {
            scan.tail = Some(at as u64);
            break;
        };
        scan.lost += usize::try_from(later - number).unwrap_or(usize::MAX);
        (at, number) = (from, later);
    }
    Ok(Ok(scan))
}

impl<D: Disk> Spool<D> {
    pub(super) async fn open(
        disk: D,
        directory: PathBuf,
        file_bytes: u64,
        repairs: &mut Vec<String>,
    ) -> Result<(Self, Vec<Spooled>), StorageError> {
        let names = disk.list(&directory).await?.unwrap_or_default();
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name)).collect();
        numbers.sort_unstable();
        let paths: Vec<PathBuf> = numbers.iter().map(|number| directory.join(format!("{number:020}.spool"))).collect();
        let mut spool = Self {
            disk,
            file_bytes,
            directory,
            segments: Vec::new(),
            open: None,
            places: BTreeMap::new(),
            removed: 0,
            files: numbers.last().copied().unwrap_or(0),
            next: 1,
        };
        let mut waiting: BTreeMap<u64, Spooled> = BTreeMap::new();
        for path in paths {
            let Some(frames) = spool.read(&path, repairs).await? else { continue };
            let place = spool.segments.len() as u64;
            spool.segments.push(Segment { path, waiting: 0 });
            for content in frames {
                spool.replay(place, &content, &mut waiting);
            }
        }
        for place in spool.places.values() {
            spool.segments[usize::try_from(*place).unwrap_or(usize::MAX)].waiting += 1;
        }
        spool.trim().await?;
        Ok((spool, waiting.into_values().collect()))
    }

    /// The whole frames of a file, which is mended first where it must be.
    async fn read(&mut self, path: &Path, repairs: &mut Vec<String>) -> Result<Option<Vec<Vec<u8>>>, StorageError> {
        let Some(bytes) = crate::disk::read_whole(&self.disk, path).await? else { return Ok(None) };
        let scan = match scan(path, &bytes)? {
            Ok(scan) => scan,
            Err(problem) => {
                let kept = aside(path);
                self.disk.rename(path, &kept).await?;
                self.disk.sync_directory(&self.directory).await?;
                repairs.push(format!(
                    "{} cannot be read ({problem}): it was set aside as {}; what was spooled in it is not forwarded",
                    printed(path),
                    printed(&kept)
                ));
                return Ok(None);
            }
        };
        self.next = self.next.max(scan.first);
        if scan.lost > 0 {
            self.rewrite(path, &bytes, &scan).await?;
            repairs.push(format!(
                "{} is damaged: {} of its records cannot be read and are not forwarded; the others were kept, and the file as \
                 it was is {}",
                printed(path),
                scan.lost,
                printed(&aside(path))
            ));
        } else if let Some(end) = scan.tail {
            let file = self.disk.open(path, Access::Write).await?.ok_or_else(|| vanished(path))?;
            self.disk.set_length(&file, end).await?;
            self.disk.sync(&file).await?;
            repairs.push(format!(
                "{} ended in {} bytes that are no whole record: they were cut; what was acknowledged before is kept",
                printed(path),
                bytes.len() as u64 - end
            ));
        }
        Ok(Some(scan.frames))
    }

    /// Keeps a damaged file beside, and what is whole of it under its name.
    async fn rewrite(&self, path: &Path, bytes: &[u8], scan: &Scan) -> Result<(), StorageError> {
        crate::disk::write_whole(&self.disk, &aside(path), bytes).await?;
        let mut whole = header(scan.first).to_vec();
        for (number, content) in scan.frames.iter().enumerate() {
            whole.extend_from_slice(&framed(number as u64, content));
        }
        crate::disk::write_whole(&self.disk, path, &whole).await
    }

    fn replay(&mut self, place: u64, content: &[u8], waiting: &mut BTreeMap<u64, Spooled>) {
        let ordinal = u64_at(content, 1);
        let rest = &content[FRAME_HEAD..];
        match content[0] {
            EVENT => {
                self.next = self.next.max(ordinal + 1);
                self.places.insert(ordinal, place);
                waiting.insert(ordinal, Spooled { ordinal, bytes: Bytes::copy_from_slice(rest), sending: None });
            }
            SENDING if rest.len() == 24 => {
                if let Some(event) = waiting.get_mut(&ordinal) {
                    let id = (u128::from(u64_at(rest, 8)) << 64) | u128::from(u64_at(rest, 0));
                    event.sending = Some((OneShotId(id), Age(u64_at(rest, 16))));
                }
            }
            FORWARDED => {
                waiting.remove(&ordinal);
                self.places.remove(&ordinal);
            }
            // A checksum vouches for the frame: another kind was written by a later version, and is not an event.
            _ => {}
        }
    }

    pub(super) async fn append(&mut self, events: &[Bytes]) -> Result<Vec<u64>, StorageError> {
        let first = self.next;
        let contents: Vec<Vec<u8>> =
            (first..).zip(events).map(|(ordinal, event)| content(EVENT, ordinal, event)).collect();
        self.write(&contents).await?;
        self.next += events.len() as u64;
        let place = self.removed + self.segments.len() as u64 - 1;
        let ordinals: Vec<u64> = (first..self.next).collect();
        for ordinal in &ordinals {
            self.places.insert(*ordinal, place);
        }
        if let Some(segment) = self.segments.last_mut() {
            segment.waiting += events.len() as u64;
        }
        Ok(ordinals)
    }

    pub(super) async fn sending(&mut self, ordinal: u64, id: OneShotId, drawn_at: Age) -> Result<(), StorageError> {
        let mut rest = id.0.to_le_bytes().to_vec();
        rest.extend_from_slice(&drawn_at.0.to_le_bytes());
        self.write(&[content(SENDING, ordinal, &rest)]).await
    }

    pub(super) async fn forwarded(&mut self, ordinal: u64) -> Result<(), StorageError> {
        let Some(place) = self.places.get(&ordinal).copied() else { return Ok(()) };
        self.write(&[content(FORWARDED, ordinal, &[])]).await?;
        self.places.remove(&ordinal);
        let index = usize::try_from(place - self.removed).unwrap_or(usize::MAX);
        if let Some(segment) = self.segments.get_mut(index) {
            segment.waiting -= 1;
        }
        self.trim().await
    }

    /// Removes the oldest files in which nothing waits. The last one stays.
    async fn trim(&mut self) -> Result<(), StorageError> {
        while self.segments.len() > 1 && self.segments[0].waiting == 0 {
            self.disk.remove(&self.segments[0].path).await?;
            self.disk.sync_directory(&self.directory).await?;
            self.segments.remove(0);
            self.removed += 1;
        }
        Ok(())
    }

    /// Appends frames, durably.
    async fn write(&mut self, contents: &[Vec<u8>]) -> Result<(), StorageError> {
        let (file, mut at, mut number) = self.writable().await?;
        let mut bytes = Vec::new();
        let from = at;
        for content in contents {
            let frame = framed(number, content);
            at += frame.len() as u64;
            number += 1;
            bytes.extend_from_slice(&frame);
        }
        self.disk.write(&file, from, &bytes).await?;
        self.disk.sync(&file).await?;
        self.open = Some((file, at, number));
        Ok(())
    }

    /// The file to append to, its length and how many frames it has. Not remembered until the write has succeeded: after a failed
    /// one nothing is known about the file.
    async fn writable(&mut self) -> Result<(D::File, u64, u64), StorageError> {
        if let Some(open) = self.open.take()
            && open.1 < self.file_bytes
        {
            return Ok(open);
        }
        // The first write of a run begins a file of its own, so that no frame is ever numbered by guessing.
        let path = self.directory.join(format!("{:020}.spool", self.files + 1));
        let made = beside(&path);
        let file = self.disk.create(&made).await?;
        self.disk.write(&file, 0, &header(self.next)).await?;
        self.disk.sync(&file).await?;
        self.disk.rename(&made, &path).await?;
        self.disk.sync_directory(&self.directory).await?;
        let file = self.disk.open(&path, Access::Write).await?.ok_or_else(|| vanished(&path))?;
        self.files += 1;
        self.segments.push(Segment { path, waiting: 0 });
        self.trim().await?;
        Ok((file, HEADER as u64, 0))
    }
}

fn vanished(path: &Path) -> StorageError {
    StorageError::Io { file: printed(path), operation: "open", problem: "it vanished while it was used".into() }
}
