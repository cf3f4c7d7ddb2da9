//! Text that is kept where it is used while it is short.
//!
//! Maps compare keys. A key that lies in the map's own node costs no look elsewhere, and elsewhere is in no cache: that is most of
//! what finding a setting costs.
//!
//! Invariants
//! - text of up to [`HERE_BYTES`] bytes is always kept here, longer text never: equal texts are kept alike;
//! - order and equality are the text's, however it is kept.
//!
//! Never changes once it is made.

use alloc::sync::Arc;
use core::cmp::Ordering;
use core::fmt;
use core::hash::{Hash, Hasher};

/// What is kept here at most: with it a text takes as much as four words. Most names of settings are shorter.
const HERE_BYTES: usize = 30;

/// Text that is compared often.
#[derive(Clone)]
pub(crate) struct Text(Kept);

#[derive(Clone)]
enum Kept {
    Here { length: u8, bytes: [u8; HERE_BYTES] },
    Shared(Arc<str>),
}

impl Text {
    /// The text as bytes, which are in the same order.
    fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Kept::Here { length, bytes } => &bytes[..usize::from(*length)],
            Kept::Shared(text) => text.as_bytes(),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        match &self.0 {
            Kept::Here { .. } => core::str::from_utf8(self.as_bytes()).expect("it was made of text"),
            Kept::Shared(text) => text,
        }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        match u8::try_from(text.len()) {
            Ok(length) if text.len() <= HERE_BYTES => {
                let mut bytes = [0; HERE_BYTES];
                bytes[..text.len()].copy_from_slice(text.as_bytes());
                Self(Kept::Here { length, bytes })
            }
            Ok(_) | Err(_) => Self(Kept::Shared(Arc::from(text))),
        }
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Text {}

impl PartialOrd for Text {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Text {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::Text;
    use alloc::string::String;

    #[test]
    fn texts_of_every_length_are_in_the_order_of_what_they_say() {
        let mut said: alloc::vec::Vec<String> =
            (0..70).map(|length| "files:/é".repeat(9).chars().take(length).collect()).collect();
        said.extend(["z", "a", "zz", "\u{10ffff}"].map(|end| "k".repeat(29) + end));
        for a in &said {
            for b in &said {
                let (left, right) = (Text::from(a.as_str()), Text::from(b.as_str()));
                assert_eq!(left.cmp(&right), a.cmp(b), "{a:?} and {b:?}");
                assert_eq!(left == right, a == b);
                assert_eq!(left.as_str(), a);
            }
        }
    }

    #[test]
    fn a_text_takes_four_words() {
        assert_eq!(size_of::<Text>(), 32);
    }
}
