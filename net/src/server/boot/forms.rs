//! What a shell needs of an overlay, made once: checksums as text, and its plain text where the node has no zstd.

use super::lock;
use super::reply::Head;
use crate::server::pages::Pages;
use arc_swap::ArcSwap;
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
pub(super) fn sha256(bytes: &[u8]) -> [u8; 64] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let mut text = [b'0'; 64];
    for (two, byte) in text.chunks_exact_mut(2).zip(digest.as_ref()) {
        two.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    text
}

/// An overlay's bytes, and what the head of an answer with them says of them.
pub(super) struct Checked {
    pub(super) bytes: Bytes,
    pub(super) lines: String,
}

impl Checked {
    fn new(bytes: Bytes, encoding: &str) -> Self {
        let mut head = Head::new();
        head.line("muster-overlay-encoding", encoding);
        head.number("muster-overlay-length", bytes.len() as u64);
        head.line("muster-overlay-sha256", std::str::from_utf8(&sha256(&bytes)).unwrap_or_default());
        Self { bytes, lines: head.into_lines() }
    }
}

/// An overlay as nodes are sent it.
pub(super) struct Form {
    overlay: BootOverlay,
    /// The stored bytes.
    stored: Checked,
    /// What the head of every answer with this overlay says: its version, and the stored bytes' BLAKE3, which everything else here
    /// goes by.
    pub(super) lines: String,
    /// The beginning of the checksum, which makes a tag.
    pub(super) tag: String,
    plain: OnceCell<Result<Checked, String>>,
    pages: OnceLock<Option<Pages>>,
}

impl Form {
    fn new(overlay: BootOverlay) -> Self {
        let checksum = overlay.checksum.to_string();
        let mut head = Head::new();
        head.number("muster-overlay-version", overlay.version.0);
        head.line("muster-overlay-checksum", &checksum);
        Self {
            stored: Checked::new(overlay.data.clone(), "zstd"),
            tag: checksum[..16].to_owned(),
            lines: head.into_lines(),
            plain: OnceCell::new(),
            pages: OnceLock::new(),
            overlay,
        }
    }

    /// Whether it is of this overlay.
    pub(super) fn is_of(&self, overlay: &BootOverlay) -> bool {
        self.overlay.checksum == overlay.checksum
    }

    /// The text, if it was unpacked already.
    pub(super) fn plain(&self) -> Option<&Result<Checked, String>> {
        self.plain.get()
    }

    /// The stored bytes, or the text if it is wanted and there.
    pub(super) fn checked(&self, plain: bool) -> &Checked {
        match self.plain() {
            Some(Ok(text)) if plain => text,
            Some(_) | None => &self.stored,
        }
    }

    /// The stored bytes as the kernel sends them, for connections without TLS.
    pub(in crate::server) fn pages(&self) -> Option<&Pages> {
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
                Ok(Checked::new(Bytes::from(text), "plain"))
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
            made.get(vcluster).filter(|form| form.is_of(overlay)).cloned()
        };
        find().unwrap_or_else(|| {
            // Whoever comes second finds what the first one made.
            let _making = lock(&self.making);
            find().unwrap_or_else(|| {
                let form = Arc::new(Form::new(overlay.clone()));
                let mut made = BTreeMap::clone(&self.made.load());
                // Whoever's view is older gets its form for itself.
                if made.get(vcluster).is_none_or(|newer| newer.overlay.version <= overlay.version) {
                    made.insert(vcluster.clone(), form.clone());
                    if made.len() > FORMS_MAX
                        && let Some(other) = made.keys().find(|other| *other != vcluster).cloned()
                    {
                        made.remove(&other);
                    }
                    self.made.store(Arc::new(made));
                }
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
        assert_eq!(
            form.stored.lines,
            "muster-overlay-encoding: zstd\r\nmuster-overlay-length: 3\r\n\
             muster-overlay-sha256: ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\r\n"
        );
        assert!(forms.of(&vcluster, &second).lines.starts_with("muster-overlay-version: 2\r\n"));
    }

    #[test]
    fn what_was_just_made_is_kept_and_nothing_newer_gives_way_to_it() {
        let overlay = |version| BootOverlay {
            version: Seq(version),
            checksum: Digest::of(&version.to_le_bytes()),
            data: Bytes::from_static(b"x"),
            content_bytes: 1,
        };
        let forms = Forms::default();
        for place in 0..=FORMS_MAX {
            forms.of(&VClusterId::new(&format!("v{place}")).unwrap(), &overlay(1));
        }
        // The first of all names, when there are as many as are kept.
        let first = VClusterId::new("a").unwrap();
        let made = forms.of(&first, &overlay(1));
        assert!(Arc::ptr_eq(&made, &forms.of(&first, &overlay(1))));
        assert_eq!(forms.made.load().len(), FORMS_MAX);
        let newer = forms.of(&first, &overlay(2));
        assert!(forms.of(&first, &overlay(1)).is_of(&overlay(1)), "an older view gets what it asks for");
        assert!(Arc::ptr_eq(&newer, &forms.of(&first, &overlay(2))));
    }
}
