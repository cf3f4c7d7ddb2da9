//! The spool: events that wait for the journal, in the order in which they happened.
//!
//! ```text
//! file    │ header │ frame 0 │ frame 1 │ …
//! header  8 magic MUSTERas, 4 format, 4 zero, 12 zero, 4 CRC-32 of the bytes before
//! frame   4 length, 4 CRC-32 over frame number, length and content; the content: 1 kind, 8 event number, then
//!         kind 1  an event: its bytes
//!         kind 2  events after this number did not happen: the ledger that would name them was never written
//! ```
//! Files are `{number:020}.spool`. Numbers are little-endian. Frames are appended and synced; a file that has grown past its bound
//! is followed by another, and is removed once the journal has every event in it, oldest first. Every run begins a file of its own.
//!
//! What a crash cuts off was never acknowledged to anybody, and is cut. A frame that is damaged between whole ones is left out,
//! and the file it was in is kept beside under another name.

use crate::disk::{Access, Disk, beside, printed, read_whole, write_whole};
use crate::file::{aside, frame, u32_at, u64_at};
use bytes::Bytes;
use muster_core::agent::event::Event;
use muster_core::codec::encode_event;
use muster_core::storage::StorageError;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"MUSTERas";
const FORMAT: u32 = 1;
const HEADER: usize = 32;
const CHECKSUM: usize = HEADER - 4;

const EVENT: u8 = 1;
const CUT: u8 = 2;
/// Kind and event number.
const FRAME_HEAD: usize = 1 + 8;

/// A run of damaged frames longer than this ends what is read of a file.
const LOST_MAX: u64 = 64;

struct Segment {
    path: PathBuf,
    /// The highest event number in it.
    last: u64,
}

pub(super) struct Spool<D: Disk> {
    disk: D,
    directory: PathBuf,
    file_bytes: u64,
    /// Oldest first; the last one is written to.
    segments: Vec<Segment>,
    /// The last segment's file, its length, and how many frames it has.
    open: Option<(D::File, u64, u64)>,
    /// The highest number a file has had.
    files: u64,
    /// The events that were there at the start, until they are counted.
    found: BTreeMap<u64, Bytes>,
    /// Events after this number lie in the files but did not happen: to be said before the next one is written.
    cut: Option<u64>,
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_suffix(".spool")?.parse().ok()
}

fn header() -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    let checksum = crc32fast::hash(&bytes[..CHECKSUM]);
    bytes[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn framed(frame_number: u64, kind: u8, event: u64, rest: &[u8]) -> Vec<u8> {
    let mut content = Vec::with_capacity(FRAME_HEAD + rest.len());
    content.push(kind);
    content.extend_from_slice(&event.to_le_bytes());
    content.extend_from_slice(rest);
    reframed(frame_number, &content)
}

fn reframed(frame_number: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = frame::head(frame_number, content).to_vec();
    bytes.extend_from_slice(content);
    bytes
}

/// What is whole of a file.
struct Scan {
    frames: Vec<Vec<u8>>,
    /// Where the whole frames end, if what follows them is bad to the end.
    tail: Option<u64>,
    /// How many frames were left out between whole ones.
    lost: u64,
}

fn whole(frame_number: u64, bytes: &[u8]) -> Option<&[u8]> {
    frame::read(frame_number, bytes).ok().filter(|content| content.len() >= FRAME_HEAD)
}

fn scan(path: &Path, bytes: &[u8]) -> Result<Result<Scan, &'static str>, StorageError> {
    if bytes.len() < HEADER || bytes[..8] != MAGIC || crc32fast::hash(&bytes[..CHECKSUM]) != u32_at(bytes, CHECKSUM) {
        return Ok(Err("its header is damaged"));
    }
    let format = u32_at(bytes, 8);
    if format != FORMAT {
        return Err(StorageError::Format { file: printed(path), found: format, known: FORMAT });
    }
    let mut scan = Scan { frames: Vec::new(), tail: None, lost: 0 };
    let (mut at, mut number) = (HEADER, 0);
    while at < bytes.len() {
        if let Some(content) = whole(number, &bytes[at..]) {
            scan.frames.push(content.to_vec());
            at += frame::HEAD + content.len();
            number += 1;
            continue;
        }
        // The next whole frame, if there is one: its number says how many are missing.
        let next = (at + 1..bytes.len()).find_map(|from| {
            (number + 1..=number + LOST_MAX)
                .find(|later| whole(*later, &bytes[from..]).is_some())
                .map(|later| (from, later))
        });
        let Some((from, later)) = next else {
            scan.tail = Some(at as u64);
            break;
        };
        scan.lost += later - number;
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
    ) -> Result<Self, StorageError> {
        let names = disk.list(&directory).await?.unwrap_or_default();
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name)).collect();
        numbers.sort_unstable();
        let mut spool = Self {
            disk,
            directory,
            file_bytes,
            segments: Vec::new(),
            open: None,
            files: numbers.last().copied().unwrap_or(0),
            found: BTreeMap::new(),
            cut: None,
        };
        for number in numbers {
            let path = spool.directory.join(format!("{number:020}.spool"));
            let Some(frames) = spool.read(&path, repairs).await? else { continue };
            let mut last = 0;
            for content in frames {
                let event = u64_at(&content, 1);
                if content[0] == EVENT {
                    last = last.max(event);
                    spool.found.insert(event, Bytes::from(content).slice(FRAME_HEAD..));
                } else if content[0] == CUT {
                    drop(spool.found.split_off(&(event + 1)));
                }
            }
            spool.segments.push(Segment { path, last });
        }
        Ok(spool)
    }

    /// The whole frames of a file, which is mended first where it must be.
    async fn read(&self, path: &Path, repairs: &mut Vec<String>) -> Result<Option<Vec<Vec<u8>>>, StorageError> {
        let Some(bytes) = read_whole(&self.disk, path).await? else { return Ok(None) };
        let kept = aside(path);
        let scan = match scan(path, &bytes)? {
            Ok(scan) => scan,
            Err(problem) => {
                self.disk.rename(path, &kept).await?;
                self.disk.sync_directory(&self.directory).await?;
                repairs.push(format!(
                    "{} cannot be read ({problem}): it was set aside as {}; the journal will not learn what was in it",
                    printed(path),
                    printed(&kept)
                ));
                return Ok(None);
            }
        };
        if scan.lost > 0 {
            // The damaged file stays beside; what is whole of it takes its name.
            write_whole(&self.disk, &kept, &bytes).await?;
            let mut mended = header().to_vec();
            for (number, content) in scan.frames.iter().enumerate() {
                mended.extend_from_slice(&reframed(number as u64, content));
            }
            write_whole(&self.disk, path, &mended).await?;
            repairs.push(format!(
                "{} is damaged: {} of its records cannot be read, and the journal will not learn what was in them; the others \
                 were kept, and the file as it was is {}",
                printed(path),
                scan.lost,
                printed(&kept)
            ));
        } else if let Some(end) = scan.tail {
            let file = self.disk.open(path, Access::Write).await?.ok_or_else(|| vanished(path))?;
            self.disk.set_length(&file, end).await?;
            self.disk.sync(&file).await?;
            repairs.push(format!(
                "{} ended in {} bytes that are no whole record, as a crash leaves them: they were cut",
                printed(path),
                bytes.len() as u64 - end
            ));
        }
        Ok(Some(scan.frames))
    }

    /// The events after `delivered`, up to `last`: those that the ledger says count. The others go.
    pub(super) async fn count(&mut self, delivered: u64, last: u64) -> Result<Vec<Bytes>, StorageError> {
        let found = std::mem::take(&mut self.found);
        if found.keys().next_back().is_some_and(|highest| *highest > last) {
            self.cut = Some(last);
        }
        self.delivered(delivered).await?;
        Ok(found
            .into_iter()
            .filter(|(number, _)| (delivered + 1..=last).contains(number))
            .map(|(_, event)| event)
            .collect())
    }

    pub(super) async fn append(&mut self, events: &[Event]) -> Result<(), StorageError> {
        let Some(last) = events.last().map(|event| event.number) else { return Ok(()) };
        let (file, from, mut number) = self.writable().await?;
        let mut bytes = Vec::new();
        let mut push = |kind, event, rest: &[u8]| {
            bytes.extend_from_slice(&framed(number, kind, event, rest));
            number += 1;
        };
        if let Some(cut) = self.cut {
            push(CUT, cut, &[]);
        }
        for event in events {
            push(EVENT, event.number, &encode_event(event));
        }
        self.disk.write(&file, from, &bytes).await?;
        self.disk.sync(&file).await?;
        self.cut = None;
        if let Some(segment) = self.segments.last_mut() {
            segment.last = last;
        }
        self.open = Some((file, from + bytes.len() as u64, number));
        Ok(())
    }

    /// The journal has everything up to this event: files that hold nothing later go, but for the one that is written to.
    pub(super) async fn delivered(&mut self, upto: u64) -> Result<(), StorageError> {
        while self.segments.len() > 1 && self.segments[0].last <= upto {
            self.disk.remove(&self.segments[0].path).await?;
            self.disk.sync_directory(&self.directory).await?;
            self.segments.remove(0);
        }
        Ok(())
    }

    /// The file to append to, its length and how many frames it has. Forgotten until the write has succeeded: after a failed one
    /// nothing is known about the file.
    async fn writable(&mut self) -> Result<(D::File, u64, u64), StorageError> {
        if let Some(open) = self.open.take()
            && open.1 < self.file_bytes
        {
            return Ok(open);
        }
        let path = self.directory.join(format!("{:020}.spool", self.files + 1));
        let made = beside(&path);
        let file = self.disk.create(&made).await?;
        self.disk.write(&file, 0, &header()).await?;
        self.disk.sync(&file).await?;
        self.disk.rename(&made, &path).await?;
        self.disk.sync_directory(&self.directory).await?;
        let file = self.disk.open(&path, Access::Write).await?.ok_or_else(|| vanished(&path))?;
        self.files += 1;
        self.segments.push(Segment { path, last: 0 });
        Ok((file, HEADER as u64, 0))
    }
}

fn vanished(path: &Path) -> StorageError {
    StorageError::Io { file: printed(path), operation: "open", problem: "it vanished while it was used".into() }
}
