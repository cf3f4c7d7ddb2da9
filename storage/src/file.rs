//! The first sector of every file in a data directory: what it is, of which format, and whose.
//!
//! ```text
//! offset  bytes
//!      0      8  magic: what kind of file
//!      8      4  format
//!     12      4  zero
//!     16     16  cluster
//!     32      8  group
//!     40      8  replica
//!     48     16  incarnation
//!     64      8  number: of a log segment; index of a snapshot; first sequence of a history segment; else zero
//!     72      8  length of the whole file (log segment, snapshot, sealed history segment of format 2); else zero
//!     80      8  where the trailer begins (snapshot); else zero
//!     88    420  zero
//!    508      4  CRC-32 of the bytes before it
//! ```
//! Numbers are little-endian. Magic, format and checksum keep their places in every format to come, so a flipped bit is damage
//! and never mistaken for a newer format. A header is written before its file gets its name, so it is never torn.

use crate::disk::{beside, printed};
use muster_core::ids::{ClusterId, GroupId, Incarnation, ReplicaId};
use muster_core::storage::{Identity, StorageError};
use std::path::Path;

/// The unit in which a disk writes: each is old or new after a crash, never a mixture.
pub(crate) const SECTOR: usize = 512;

/// The newest format of any kind of file. History has it; of the other kinds there has been one so far.
pub const FORMAT: u32 = 2;

const MAGIC: usize = 0;
const VERSION: usize = MAGIC + 8;
const CLUSTER: usize = VERSION + 4 + 4;
const GROUP: usize = CLUSTER + 16;
const REPLICA: usize = GROUP + 8;
const INCARNATION: usize = REPLICA + 8;
const NUMBER: usize = INCARNATION + 16;
const LENGTH: usize = NUMBER + 8;
const TRAILER: usize = LENGTH + 8;
const CHECKSUM: usize = SECTOR - 4;
const _: () = assert!(TRAILER == 80 && TRAILER + 8 <= CHECKSUM && CHECKSUM == 508);

/// What to do when the log or the identity is damaged: the replica's promises may be lost, so it must not come back.
pub(crate) const REPLACE: &str =
    "this replica cannot be trusted again: move the directory aside and take its place with `muster replace`";
/// What to do when something is damaged that can be rebuilt.
pub(crate) const REPAIR: &str = "stop the replica if it runs, then run `muster repair DIR`";
/// What to do when something fetched does not check out.
pub(crate) const FETCH_AGAIN: &str = "it was removed; start the replica again and it is fetched anew";

/// What kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Identity,
    Log,
    Snapshot,
    History,
}

impl FileKind {
    const fn magic(self) -> [u8; 8] {
        match self {
            Self::Identity => *b"MUSTERid",
            Self::Log => *b"MUSTERwl",
            Self::Snapshot => *b"MUSTERsn",
            Self::History => *b"MUSTERhi",
        }
    }
    /// The format that this binary writes, and the newest it reads.
    pub(crate) const fn format(self) -> u32 {
        match self {
            Self::Identity | Self::Log | Self::Snapshot => 1,
            Self::History => FORMAT,
        }
    }
    pub(crate) const fn remedy(self) -> &'static str {
        match self {
            Self::Identity | Self::Log => REPLACE,
            Self::Snapshot | Self::History => REPAIR,
        }
    }
}

/// Whose a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) cluster: ClusterId,
    pub(crate) group: GroupId,
    pub(crate) replica: ReplicaId,
    pub(crate) incarnation: Incarnation,
}

impl Owner {
    pub(crate) const fn of(identity: &Identity) -> Self {
        Self {
            cluster: identity.cluster,
            group: identity.group,
            replica: identity.replica,
            incarnation: identity.incarnation,
        }
    }

    /// What differs, with both values.
    fn difference(&self, here: &Self) -> Option<String> {
        if self.cluster != here.cluster {
            Some(format!("it is of cluster {}, this directory of {}", self.cluster, here.cluster))
        } else if self.group != here.group {
            Some(format!("it is of group {}, this directory of {}", self.group, here.group))
        } else if self.replica != here.replica {
            Some(format!("it is of replica {}, this directory of {}", self.replica, here.replica))
        } else if self.incarnation != here.incarnation {
            Some(format!("it is of incarnation {}, this directory of {}", self.incarnation, here.incarnation))
        } else {
            None
        }
    }
}

/// A file's first sector, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: FileKind,
    pub(crate) owner: Owner,
    pub(crate) number: u64,
    pub(crate) length: u64,
    pub(crate) trailer: u64,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        sector[MAGIC..VERSION].copy_from_slice(&self.kind.magic());
        sector[VERSION..VERSION + 4].copy_from_slice(&self.kind.format().to_le_bytes());
        sector[CLUSTER..GROUP].copy_from_slice(&self.owner.cluster.0.to_le_bytes());
        sector[GROUP..REPLICA].copy_from_slice(&self.owner.group.0.to_le_bytes());
        sector[REPLICA..INCARNATION].copy_from_slice(&self.owner.replica.0.to_le_bytes());
        sector[INCARNATION..NUMBER].copy_from_slice(&self.owner.incarnation.0.to_le_bytes());
        sector[NUMBER..LENGTH].copy_from_slice(&self.number.to_le_bytes());
        sector[LENGTH..TRAILER].copy_from_slice(&self.length.to_le_bytes());
        sector[TRAILER..TRAILER + 8].copy_from_slice(&self.trailer.to_le_bytes());
        let checksum = crc32fast::hash(&sector[..CHECKSUM]);
        sector[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        sector
    }

    /// Reads the first sector of a file that must be of this kind, and of this owner if one is given.
    pub(crate) fn decode(
        kind: FileKind,
        path: &Path,
        bytes: &[u8],
        owner: Option<&Owner>,
    ) -> Result<Self, StorageError> {
        let wrong = |problem: &str| damaged(path, 0, problem.into(), kind.remedy());
        if bytes.len() < SECTOR {
            return Err(damaged(
                path,
                bytes.len() as u64,
                format!("it ends after {} bytes, its header alone has {SECTOR}", bytes.len()),
                kind.remedy(),
            ));
        }
        let sector = &bytes[..SECTOR];
        if crc32fast::hash(&sector[..CHECKSUM]) != u32_at(sector, CHECKSUM) {
            return Err(wrong("the header's checksum is wrong"));
        }
        if sector[MAGIC..VERSION] != kind.magic() {
            return Err(wrong("it is another kind of file"));
        }
        let format = u32_at(sector, VERSION);
        if !(1..=kind.format()).contains(&format) {
            return Err(StorageError::Format { file: printed(path), found: format, known: kind.format() });
        }
        let header = Self {
            kind,
            owner: Owner {
                cluster: ClusterId(u128_at(sector, CLUSTER)),
                group: GroupId(u64_at(sector, GROUP)),
                replica: ReplicaId(u64_at(sector, REPLICA)),
                incarnation: Incarnation(u128_at(sector, INCARNATION)),
            },
            number: u64_at(sector, NUMBER),
            length: u64_at(sector, LENGTH),
            trailer: u64_at(sector, TRAILER),
        };
        match owner.and_then(|here| header.owner.difference(here)) {
            Some(problem) => Err(StorageError::Foreign {
                file: printed(path),
                problem: format!("{problem}; nothing was changed: put each file back into the directory it came from"),
            }),
            None => Ok(header),
        }
    }
}

/// The format of a file, by a first sector that was decoded.
pub(crate) fn format_of(sector: &[u8]) -> u32 {
    u32_at(sector, VERSION)
}

/// The error for stored bytes that are not what was written.
pub(crate) fn damaged(path: &Path, offset: u64, problem: String, remedy: &'static str) -> StorageError {
    StorageError::Damaged { file: printed(path), offset, problem, remedy }
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}

fn u128_at(bytes: &[u8], offset: usize) -> u128 {
    u128::from_le_bytes(bytes[offset..offset + 16].try_into().expect("sixteen bytes"))
}

/// Framed bytes: length, checksum, the bytes. The checksum covers also which one it is, so that no frame passes for another.
pub(crate) mod frame {
    use super::u32_at;

    /// What comes before a frame's bytes: length, then CRC-32 over ordinal, length and bytes.
    pub(crate) const HEAD: usize = 4 + 4;

    fn checksum(ordinal: u64, length: u32, bytes: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&ordinal.to_le_bytes());
        hasher.update(&length.to_le_bytes());
        hasher.update(bytes);
        hasher.finalize()
    }

    /// The bytes that come before `bytes`.
    pub(crate) fn head(ordinal: u64, bytes: &[u8]) -> [u8; HEAD] {
        let length = u32::try_from(bytes.len()).expect("a frame holds less than 4 GiB");
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(&length.to_le_bytes());
        head[4..].copy_from_slice(&checksum(ordinal, length, bytes).to_le_bytes());
        head
    }

    /// The bytes of the frame at the start of `bytes`, or what is wrong with it.
    pub(crate) fn read(ordinal: u64, bytes: &[u8]) -> Result<&[u8], &'static str> {
        if bytes.len() < HEAD {
            return Err("it ends within a frame");
        }
        let length = u32_at(bytes, 0);
        let end = HEAD + length as usize;
        let content = bytes.get(HEAD..end).ok_or("it ends within a frame")?;
        if checksum(ordinal, length, content) != u32_at(bytes, 4) {
            return Err("a frame's checksum is wrong");
        }
        Ok(content)
    }
}

/// The name under which damaged files are kept for whoever wants to look.
pub(crate) fn aside(path: &Path) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".damaged");
    debug_assert_ne!(Path::new(&name), beside(path));
    name.into()
}
