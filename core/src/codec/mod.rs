//! Bytes in and out: the only place that knows how anything is stored or sent.
//!
//! Every encoded string starts with one format version byte. Domain types carry no serde; the submodules hold mirror types
//! that do, one submodule per family and format, with explicit conversions. Decoding never panics, never allocates beyond
//! its limit, and refuses trailing bytes.

mod agent;
pub(crate) mod journal;
pub mod log;
pub(crate) mod mirror;
mod peer;
pub(crate) mod request;
pub(crate) mod state;

pub use agent::{decode_declared, decode_event, decode_ledger, encode_declared, encode_event, encode_ledger};
pub use journal::{decode_record, encode_record};
pub use peer::{decode_changes, decode_envelope, encode_changes, encode_envelope};
pub use request::{
    decode_outcome, decode_proposal, decode_write_request, encode_outcome, encode_proposal, encode_write_request,
};

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use bincode::enc::write::{SizeWriter, Writer};
use bincode::error::EncodeError;
use bytes::Bytes;
use core::fmt;
use serde::{Deserialize, Serialize};

/// The format that this binary writes, and the newest it reads, of everything but pages of state and snapshot metas.
pub const FORMAT: u8 = 1;

pub use state::FORMAT as STATE_FORMAT;

/// The largest encoded string that is ever decoded, in bytes.
pub const DECODE_BYTES_MAX: usize = 64 << 20;

/// Bytes that do not decode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CodecError {
    /// The format version is not known.
    Format {
        /// What was being decoded.
        what: &'static str,
        /// The version found.
        found: u8,
        /// The newest known.
        known: u8,
    },
    /// The bytes are not such a thing.
    Malformed {
        /// What was being decoded.
        what: &'static str,
        /// What is wrong.
        problem: String,
    },
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format { what, found, known } => {
                write!(f, "{what} has format {found}, this muster knows up to {known}")
            }
            Self::Malformed { what, problem } => write!(f, "{what} does not decode: {problem}"),
        }
    }
}

impl core::error::Error for CodecError {}

pub(crate) fn malformed(what: &'static str, problem: impl fmt::Display) -> CodecError {
    CodecError::Malformed { what, problem: format!("{problem}") }
}

fn configuration() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<DECODE_BYTES_MAX>()
}

/// Takes encoded pieces into memory that was measured for them.
struct Measured(Vec<u8>);

impl Writer for Measured {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Encodes behind what is in `prefix`, into memory of exactly the size: what is encoded is kept (in the log, in history), and
/// measuring costs less than growing.
fn encode_behind<T: Serialize>(prefix: &[u8], value: &T) -> Vec<u8> {
    const MIRRORS: &str = "mirror types always encode";
    let mut size = SizeWriter::default();
    bincode::serde::encode_into_writer(value, &mut size, configuration()).expect(MIRRORS);
    let mut out = Measured(Vec::with_capacity(prefix.len() + size.bytes_written));
    out.0.extend_from_slice(prefix);
    bincode::serde::encode_into_writer(value, &mut out, configuration()).expect(MIRRORS);
    out.0
}

/// Encodes a mirror type behind the version byte.
pub(crate) fn encode<T: Serialize>(value: &T) -> Bytes {
    encode_as(FORMAT, value)
}

/// [`encode`] for a family that has more formats than one.
pub(crate) fn encode_as<T: Serialize>(format: u8, value: &T) -> Bytes {
    encode_behind(&[format], value).into()
}

/// Encodes a mirror type without a version byte, for a place that has one already.
pub(crate) fn encode_body<T: Serialize>(value: &T) -> Vec<u8> {
    encode_behind(&[], value)
}

/// Decodes a mirror type from behind its version byte.
pub(crate) fn decode<'a, T: Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T, CodecError> {
    decode_up_to(FORMAT, what, bytes)
}

/// [`decode`] for a family that has more formats than one; the caller has seen to it that this one is the mirror type's.
pub(crate) fn decode_up_to<'a, T: Deserialize<'a>>(
    known: u8,
    what: &'static str,
    bytes: &'a [u8],
) -> Result<T, CodecError> {
    let (&version, body) = bytes.split_first().ok_or_else(|| malformed(what, "it is empty"))?;
    if !(1..=known).contains(&version) {
        return Err(CodecError::Format { what, found: version, known });
    }
    decode_body(what, body)
}

/// Decodes a mirror type that has no version byte of its own.
pub(crate) fn decode_body<'a, T: Deserialize<'a>>(what: &'static str, body: &'a [u8]) -> Result<T, CodecError> {
    let (value, used) =
        bincode::serde::borrow_decode_from_slice(body, configuration()).map_err(|error| malformed(what, error))?;
    if used != body.len() {
        return Err(malformed(what, "there are bytes after its end"));
    }
    Ok(value)
}
