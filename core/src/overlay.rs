//! Boot overlays: what all nodes of a vCluster have in common, written and compressed once.
//!
//! Built from a view, away from the replica's loop, and stored through `SetOverlay`. Compression happens here and nowhere
//! else; apply only sees the bytes.

use crate::ids::{Digest, VClusterId};
use crate::journal::document::{self, Document, DocumentError, Kind};
use crate::journal::key::{Key, Scope, Setting};
use crate::journal::overlay::BootOverlay;
use crate::journal::policy::Policy;
use crate::limits::OVERLAY_BYTES_MAX;
use crate::request::Refusal;
use crate::state::State;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

/// How hard overlays are compressed.
const ZSTD_LEVEL: i32 = 3;

/// The largest overlay that is ever unpacked, in bytes. One that was built here may be larger only if it compresses a
/// thousandfold.
pub const CONTENT_BYTES_MAX: u64 = 1 << 30;

/// What a vCluster's nodes have in common: its own settings over the Global ones. A key whose top is unset falls through.
#[must_use]
pub fn content(state: &State, vcluster: &VClusterId) -> BTreeMap<Key, Setting> {
    let mut settings = BTreeMap::new();
    for scope in [Scope::Global, Scope::VCluster(vcluster.clone())] {
        settings.extend(state.journal.declared(&scope).map(|(key, pair)| (key.clone(), pair.setting.clone())));
    }
    settings
}

/// Builds a vCluster's overlay at its present version.
///
/// # Errors
/// [`Refusal::UnknownScope`]; [`Refusal::Overlay`] if it is larger than can be stored.
pub fn build(state: &State, vcluster: &VClusterId) -> Result<BootOverlay, Refusal> {
    let scope = Scope::VCluster(vcluster.clone());
    let known = state.journal.known_vcluster(vcluster)?;
    let refuse = |problem: String| Refusal::Overlay { problem: Arc::from(problem) };
    let version = state.journal.config_version(known);
    let text = document::write(&Document {
        kind: Kind::Overlay,
        vcluster: vcluster.clone(),
        version,
        policy: Some((known.policy_sequence, Policy::clone(&known.policy))),
        settings: content(state, vcluster),
    });
    let content_bytes = text.len() as u64;
    let data = zstd::bulk::compress(text.as_bytes(), ZSTD_LEVEL)
        .map_err(|error| refuse(format!("the overlay of {scope} does not compress: {error}")))?;
    if data.len() > OVERLAY_BYTES_MAX || content_bytes > CONTENT_BYTES_MAX {
        return Err(refuse(format!(
            "the overlay of {scope} has {} bytes compressed, {content_bytes} plain; at most {OVERLAY_BYTES_MAX} and \
             {CONTENT_BYTES_MAX} can be stored: declare less for it",
            data.len()
        )));
    }
    Ok(BootOverlay { version, checksum: Digest::of(&data), data: data.into(), content_bytes })
}

/// The vClusters whose overlay is missing or older than their configuration, by name. Costs what there is to find.
#[must_use]
pub fn stale(state: &State) -> Vec<VClusterId> {
    state.journal.stale_overlays()
}

/// Why an overlay cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OverlayError {
    /// Its bytes are not those that were stored.
    Checksum {
        /// Of the bytes.
        found: Digest,
        /// Of what was stored.
        expected: Digest,
    },
    /// It does not decompress to what it says.
    Compression(String),
    /// What it holds is not a boot document.
    Document(DocumentError),
}

impl fmt::Display for OverlayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checksum { found, expected } => write!(f, "the overlay's checksum is {found}, expected {expected}"),
            Self::Compression(problem) => write!(f, "the overlay does not decompress: {problem}"),
            Self::Document(error) => write!(f, "the overlay: {error}"),
        }
    }
}

impl core::error::Error for OverlayError {}

/// Checks, decompresses and reads an overlay.
///
/// # Errors
/// [`OverlayError`] if it is damaged.
pub fn open(overlay: &BootOverlay) -> Result<Document, OverlayError> {
    document::parse(&unpack(overlay)?).map_err(OverlayError::Document)
}

/// Checks and decompresses an overlay: the text of its document.
///
/// # Errors
/// [`OverlayError`] if it is damaged.
pub fn unpack(overlay: &BootOverlay) -> Result<String, OverlayError> {
    let found = Digest::of(&overlay.data);
    if found != overlay.checksum {
        return Err(OverlayError::Checksum { found, expected: overlay.checksum });
    }
    let wrong = |problem: String| OverlayError::Compression(problem);
    let room = overlay.content_bytes.min(CONTENT_BYTES_MAX);
    let room = usize::try_from(room).map_err(|error| wrong(error.to_string()))?;
    let text = zstd::bulk::decompress(&overlay.data, room).map_err(|error| wrong(error.to_string()))?;
    if text.len() as u64 != overlay.content_bytes {
        return Err(wrong(format!("it holds {} bytes, expected {}", text.len(), overlay.content_bytes)));
    }
    String::from_utf8(text).map_err(|error| wrong(error.to_string()))
}
