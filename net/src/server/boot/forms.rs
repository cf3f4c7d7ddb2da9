//! What a shell needs of an overlay, made once: checksums as text, and its plain text where the node has no zstd.

use super::lock;
use crate::server::pages::Pages;
use arc_swap::ArcSwap;
use axum::http::HeaderValue;
use bytes::Bytes;
use muster_core::ids::VClusterId;
use muster_core::journal::overlay::BootOverlay;
use muster_core::overlay;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use tokio::sync::OnceCell;

/// The largest overlay that is unpacked for a node, in bytes. One that is kept for each vCluster takes memory.
const PLAIN_BYTES_MAX: u64 = 64 << 20;

/// How many vClusters' forms are kept.
const FORMS_MAX: usize = 4_096;

/// SHA-256 as lower-case hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let digit = |four: u8| char::from(DIGITS[usize::from(four)]);
    digest.as_ref().iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

pub(super) fn header(text: String) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(text)).expect("digits and letters make a header")
}

/// Bytes, and how a shell checks them.
#[derive(Clone)]
pub(super) struct Checked {
    pub(super) bytes: Bytes,
    pub(super) sha256: HeaderValue,
}

impl Checked {
    pub(super) fn new(bytes: Bytes) -> Self {
        let sha256 = header(sha256(&bytes));
        Self { bytes, sha256 }
    }
}

/// An overlay as nodes are sent it.
pub(super) struct Form {
    overlay: BootOverlay,
    /// The stored bytes.
    pub(super) stored: Checked,
    /// The stored bytes' BLAKE3, which everything else here goes by.
    pub(super) checksum: HeaderValue,
    pub(super) version: HeaderValue,
    /// The beginning of the checksum, which makes a tag.
    pub(super) tag: String,
    plain: OnceCell<Result<Checked, String>>,
    pages: OnceLock<Option<Arc<Pages>>>,
}

impl Form {
    fn new(overlay: BootOverlay) -> Self {
        let checksum = overlay.checksum.to_string();
        Self {
            stored: Checked::new(overlay.data.clone()),
            tag: checksum[..16].to_owned(),
            checksum: header(checksum),
            version: header(overlay.version.to_string()),
            plain: OnceCell::new(),
            pages: OnceLock::new(),
            overlay,
        }
    }

    /// The text, if it was unpacked already.
    pub(super) fn plain(&self) -> Option<&Result<Checked, String>> {
        self.plain.get()
    }

    /// The stored bytes as the kernel sends them, for connections without TLS.
    pub(super) fn pages(&self) -> Option<&Arc<Pages>> {
        self.pages.get_or_init(|| Pages::of(&self.stored.bytes)).as_ref()
    }

    /// Unpacks it; once, however many ask.
    pub(super) async fn unpack(&self) {
        let unpack = || async {
            if self.overlay.content_bytes > PLAIN_BYTES_MAX {
                let bytes = self.overlay.content_bytes;
                return Err(format!(
                    "the overlay is {bytes} bytes of text, more than are unpacked here: take it as zstd"
                ));
            }
            let overlay = self.overlay.clone();
            let made = tokio::task::spawn_blocking(move || {
                let text = overlay::unpack(&overlay).map_err(|error| error.to_string())?;
                Ok(Checked::new(Bytes::from(text)))
            });
            made.await.unwrap_or_else(|error| Err(format!("unpacking the overlay broke: {error}")))
        };
        self.plain.get_or_init(unpack).await;
    }
}

/// The forms of the newest overlay of each vCluster that was asked for.
#[derive(Default)]
pub(super) struct Forms {
    made: ArcSwap<BTreeMap<VClusterId, Arc<Form>>>,
    making: Mutex<()>,
}

impl Forms {
    /// The form of an overlay.
    pub(super) fn of(&self, vcluster: &VClusterId, overlay: &BootOverlay) -> Arc<Form> {
        let find = || {
            let made = self.made.load();
            made.get(vcluster).filter(|form| form.overlay.checksum == overlay.checksum).cloned()
        };
        find().unwrap_or_else(|| {
            // Whoever comes second finds what the first one made.
            let _making = lock(&self.making);
            find().unwrap_or_else(|| {
                let form = Arc::new(Form::new(overlay.clone()));
                let mut made = BTreeMap::clone(&self.made.load());
                made.insert(vcluster.clone(), form.clone());
                if made.len() > FORMS_MAX {
                    made.pop_first();
                }
                self.made.store(Arc::new(made));
                form
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_core::ids::{Digest, Seq};

    #[test]
    fn an_overlay_is_made_ready_once_and_again_when_it_changes() {
        let vcluster = VClusterId::new("v").unwrap();
        let overlay = |text: &'static str, version| BootOverlay {
            version: Seq(version),
            checksum: Digest::of(text.as_bytes()),
            data: Bytes::from_static(text.as_bytes()),
            content_bytes: 3,
        };
        let forms = Forms::default();
        let (first, second) = (overlay("abc", 1), overlay("abd", 2));
        let form = forms.of(&vcluster, &first);
        assert!(Arc::ptr_eq(&form, &forms.of(&vcluster, &first)));
        assert_eq!(form.stored.bytes.as_ptr(), first.data.as_ptr(), "shared, not copied");
        assert_eq!(form.stored.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(forms.of(&vcluster, &second).version, "2");
    }
}
