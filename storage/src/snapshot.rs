//! Snapshot files: `snap-{term}-{index}`, each a layer and what the snapshot is that it completes.
//!
//! ```text
//! │ header │ page 0 │ page 1 │ … │ trailer │
//! page     4 length, 4 CRC-32 over page number, length and bytes; the bytes
//! trailer  framed the same way: 4 length of the meta; the meta (`muster_core::codec::log`); 8 per page: where it begins
//! ```
//! The header's number is the index; it says how long the file is and where the trailer begins, so every byte is checked by
//! something. The meta names the layers below, which are files of the same kind: a file stays for as long as a kept snapshot
//! rests on it. A file is written beside, synced, renamed, and its directory synced: under its name it is complete, and so is
//! what it rests on.

use crate::disk::{Access, Disk, SYNC_STEP_BYTES, beside, directory_of, printed};
use crate::file::{FileKind, Header, Owner, REPAIR, SECTOR, damaged, frame, u32_at, u64_at};
use bytes::Bytes;
use muster_core::codec::CodecError;
use muster_core::codec::log::{decode_snapshot_meta, encode_snapshot_meta};
use muster_core::ids::{Digest, Index, Term};
use muster_core::storage::{Layer, Page, SnapshotMeta, StorageError};
use std::path::{Path, PathBuf};

/// What the trailer's frame is checked as; no page has this number.
const TRAILER: u64 = u64::MAX;

/// A snapshot's file and where its pages are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) path: PathBuf,
    pub(crate) meta: SnapshotMeta,
    /// Where each page's frame begins, and last where the trailer begins.
    offsets: Vec<u64>,
}

/// The name of a snapshot's file.
pub(crate) fn name_of(index: Index, term: Term) -> String {
    format!("snap-{term}-{index}")
}

/// What a file of this name is a snapshot of.
pub(crate) fn position_of(name: &str) -> Option<(Index, Term)> {
    let (term, index) = name.strip_prefix("snap-")?.split_once('-')?;
    let position = (Index(index.parse().ok()?), Term(term.parse().ok()?));
    (name_of(position.0, position.1) == name).then_some(position)
}

/// The positions of the snapshots in a directory, by their names.
pub(crate) async fn positions<D: Disk>(disk: &D, directory: &Path) -> Result<Vec<(Index, Term)>, StorageError> {
    let names = disk.list(directory).await?.unwrap_or_default();
    Ok(names.iter().filter_map(|name| position_of(name)).collect())
}

/// The snapshots in a directory, oldest first.
pub(crate) async fn list<D: Disk>(disk: &D, directory: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let names = disk.list(directory).await?.unwrap_or_default();
    let mut found: Vec<_> = names.iter().filter_map(|name| Some((position_of(name)?, directory.join(name)))).collect();
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// A snapshot that is being written.
pub(crate) struct Writer<D: Disk> {
    disk: D,
    file: D::File,
    made: PathBuf,
    offsets: Vec<u64>,
    end: u64,
    synced: u64,
    lasting: u32,
    bytes: u64,
    hasher: blake3::Hasher,
}

impl<D: Disk> Writer<D> {
    pub(crate) async fn begin(disk: D, directory: &Path, index: Index, term: Term) -> Result<Self, StorageError> {
        let made = beside(&directory.join(name_of(index, term)));
        let file = disk.create(&made).await?;
        Ok(Self {
            disk,
            file,
            made,
            offsets: Vec::new(),
            end: SECTOR as u64,
            synced: 0,
            lasting: 0,
            bytes: 0,
            hasher: blake3::Hasher::new(),
        })
    }

    pub(crate) async fn page(&mut self, page: &Page) -> Result<(), StorageError> {
        self.hasher.update(&page.bytes);
        self.bytes += page.bytes.len() as u64;
        self.lasting += u32::from(page.lasts);
        self.offsets.push(self.end);
        self.frame(self.offsets.len() as u64 - 1, &page.bytes).await?;
        if self.end - self.synced >= SYNC_STEP_BYTES {
            self.disk.sync(&self.file).await?;
            self.synced = self.end;
        }
        Ok(())
    }

    async fn frame(&mut self, ordinal: u64, bytes: &[u8]) -> Result<(), StorageError> {
        self.disk.write(&self.file, self.end, &frame::head(ordinal, bytes)).await?;
        self.disk.write(&self.file, self.end + frame::HEAD as u64, bytes).await?;
        self.end += (frame::HEAD + bytes.len()) as u64;
        Ok(())
    }

    /// Gives the snapshot its name, durably. `meta` has the layers below, and the digest of the state.
    pub(crate) async fn finish(mut self, owner: Owner, mut meta: SnapshotMeta) -> Result<Kept, StorageError> {
        meta.layers.push(Layer {
            index: meta.index,
            term: meta.term,
            pages: u32::try_from(self.offsets.len()).expect("a layer has less than 2^32 pages"),
            lasting: self.lasting,
            bytes: self.bytes,
            digest: Digest(*self.hasher.finalize().as_bytes()),
        });
        let trailer = self.end;
        let encoded = encode_snapshot_meta(&meta);
        let mut content = Vec::with_capacity(4 + encoded.len() + 8 * self.offsets.len());
        content.extend_from_slice(&u32::try_from(encoded.len()).expect("a meta is small").to_le_bytes());
        content.extend_from_slice(&encoded);
        for offset in &self.offsets {
            content.extend_from_slice(&offset.to_le_bytes());
        }
        self.frame(TRAILER, &content).await?;
        let header = Header { kind: FileKind::Snapshot, owner, number: meta.index.0, length: self.end, trailer };
        self.disk.write(&self.file, 0, &header.encode()).await?;
        self.disk.sync(&self.file).await?;
        let directory = directory_of(&self.made).to_owned();
        let path = directory.join(name_of(meta.index, meta.term));
        self.disk.rename(&self.made, &path).await?;
        self.disk.sync_directory(&directory).await?;
        self.offsets.push(trailer);
        Ok(Kept { path, meta, offsets: self.offsets })
    }
}

/// Reads a snapshot's header and trailer.
pub(crate) async fn open<D: Disk>(disk: &D, path: &Path, owner: Option<&Owner>) -> Result<Kept, StorageError> {
    let wrong = |offset, problem: &str| damaged(path, offset, problem.into(), REPAIR);
    let file = disk.open(path, Access::Read).await?.ok_or_else(|| wrong(0, "it is missing"))?;
    let length = disk.length(&file).await?;
    let header = Header::decode(FileKind::Snapshot, path, &disk.read(&file, 0, SECTOR).await?, owner)?;
    if header.length != length {
        let problem = format!("it has {length} bytes, it was made with {}", header.length);
        return Err(damaged(path, header.length.min(length), problem, REPAIR));
    }
    let at = header.trailer;
    let bytes = length.checked_sub(at).and_then(|bytes| usize::try_from(bytes).ok());
    let bytes = bytes.ok_or_else(|| wrong(0, "its trailer would begin after its end"))?;
    let trailer = disk.read(&file, at, bytes).await?;
    let content = frame::read(TRAILER, &trailer).map_err(|problem| wrong(at, problem))?;
    if content.len() + frame::HEAD != trailer.len() {
        return Err(wrong(at, "there are bytes after its trailer"));
    }
    if content.len() < 4 {
        return Err(wrong(at, "its trailer is too short"));
    }
    let meta_end = 4 + u32_at(content, 0) as usize;
    let encoded = content.get(4..meta_end).ok_or_else(|| wrong(at, "its trailer is too short"))?;
    let meta = decode_snapshot_meta(encoded).map_err(|error| match error {
        CodecError::Format { found, known, .. } => {
            StorageError::Format { file: printed(path), found: found.into(), known: known.into() }
        }
        CodecError::Malformed { .. } => wrong(at, &error.to_string()),
    })?;
    let own = meta.layers.last().copied().filter(|own| (own.index, own.term) == (meta.index, meta.term));
    let own = own.ok_or_else(|| wrong(at, "it does not name its own layer"))?;
    let mut offsets: Vec<u64> = content[meta_end..].chunks_exact(8).map(|offset| u64_at(offset, 0)).collect();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name_of(meta.index, meta.term) != name || header.number != meta.index.0 {
        return Err(wrong(at, "it is the snapshot of another position than its name says"));
    }
    offsets.push(at);
    let ordered = offsets.first() == Some(&(SECTOR as u64)) && offsets.is_sorted();
    if offsets.len() != own.pages as usize + 1 || !ordered || !(content.len() - meta_end).is_multiple_of(8) {
        return Err(wrong(at, "its trailer does not tell where its pages are"));
    }
    Ok(Kept { path: path.to_owned(), meta, offsets })
}

impl Kept {
    /// Its own layer.
    pub(crate) fn own(&self) -> &Layer {
        self.meta.layers.last().expect("a snapshot that was written or read names its own layer")
    }

    /// Which layer it rests on that is not among these files, or is another there.
    fn lacks<'a>(&self, files: &(impl Iterator<Item = &'a Self> + Clone)) -> Option<&Layer> {
        self.meta.layers.iter().find(|layer| !files.clone().any(|file| file.own() == *layer))
    }

    /// Refuses a snapshot that rests on a layer that is not among these files.
    pub(crate) fn check_layers<'a>(
        &self,
        files: &(impl Iterator<Item = &'a Self> + Clone),
    ) -> Result<(), StorageError> {
        match self.lacks(files) {
            None => Ok(()),
            Some(layer) => {
                let (name, digest) = (name_of(layer.index, layer.term), layer.digest);
                let problem = format!("it rests on {name} with the digest {digest}, which is not here");
                Err(damaged(&self.path, *self.offsets.last().unwrap_or(&0), problem, REPAIR))
            }
        }
    }

    /// Reads a page. None if the file is gone.
    pub(crate) async fn page<D: Disk>(&self, disk: &D, page: u32) -> Result<Option<Bytes>, StorageError> {
        let place = page as usize;
        let (Some(&from), Some(&to)) = (self.offsets.get(place), self.offsets.get(place + 1)) else { return Ok(None) };
        let Some(file) = disk.open(&self.path, Access::Read).await? else { return Ok(None) };
        let bytes = usize::try_from(to - from).expect("a page fits into memory");
        let framed = disk.read(&file, from, bytes).await?;
        let wrong = |problem: &str| damaged(&self.path, from, format!("page {page}: {problem}"), REPAIR);
        let content = frame::read(page.into(), &framed).map_err(wrong)?.len();
        if content + frame::HEAD != bytes {
            return Err(wrong("a frame's length is wrong"));
        }
        Ok(Some(Bytes::from(framed).slice(frame::HEAD..)))
    }

    /// Reads every page of its own layer and checks what they come to.
    pub(crate) async fn verify<D: Disk>(&self, disk: &D) -> Result<(), StorageError> {
        let mut hasher = blake3::Hasher::new();
        let mut bytes = 0;
        let own = self.own();
        for page in 0..own.pages {
            let content = self.page(disk, page).await?;
            let content =
                content.ok_or_else(|| damaged(&self.path, 0, "it vanished while it was read".into(), REPAIR))?;
            hasher.update(&content);
            bytes += content.len() as u64;
        }
        if Digest(*hasher.finalize().as_bytes()) != own.digest || bytes != own.bytes {
            return Err(damaged(
                &self.path,
                SECTOR as u64,
                format!("its pages do not have the digest {}", own.digest),
                REPAIR,
            ));
        }
        Ok(())
    }
}
