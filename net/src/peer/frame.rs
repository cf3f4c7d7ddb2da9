//! Frames between replicas: encoded envelopes with a checksum over all of them.
//!
//! ```text
//! payload  = { length: 4 bytes, little-endian | envelope: length bytes }*
//! checksum = CRC-32 of payload
//! ```
//! A frame is refused whole: after one wrong byte nothing in it, and nothing after it on its stream, can be trusted.

use crate::proto::peer::Frame;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use muster_core::codec::{decode_envelope, encode_envelope};
use muster_core::peer::Envelope;
use std::collections::VecDeque;
use std::fmt;

/// A frame is closed before the message that would bring it over this many bytes. A larger message goes alone.
pub const FRAME_BYTES: usize = 256 << 10;
/// The largest frame that is read. More than any single message that core lets into its log.
pub const FRAME_BYTES_MAX: usize = 48 << 20;

pub(super) const LENGTH_BYTES: usize = 4;

/// Why a frame is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The bytes are not those that were sent.
    Checksum,
    /// The lengths inside do not add up.
    Lengths,
    /// A message does not decode.
    Message {
        /// Why not.
        problem: String,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checksum => f.write_str("a frame's checksum does not match its bytes: they were changed on the way"),
            Self::Lengths => f.write_str("a frame's lengths do not add up to its size"),
            Self::Message { problem } => write!(f, "a frame holds a message that does not decode: {problem}"),
        }
    }
}

impl std::error::Error for FrameError {}

/// Takes as many waiting messages as fit one frame, at least one.
#[must_use]
pub fn take_frame(waiting: &mut VecDeque<Bytes>) -> Option<Frame> {
    let mut bytes = 0;
    let fits = |message: &&Bytes| {
        bytes += LENGTH_BYTES + message.len();
        bytes <= FRAME_BYTES
    };
    let count = waiting.iter().take_while(fits).count().max(1).min(waiting.len());
    if count == 0 {
        return None;
    }
    let bytes = waiting.iter().take(count).map(|message| LENGTH_BYTES + message.len()).sum();
    let mut payload = BytesMut::with_capacity(bytes);
    for message in waiting.drain(..count) {
        payload.put_u32_le(u32::try_from(message.len()).unwrap_or(u32::MAX));
        payload.put_slice(&message);
    }
    let payload = payload.freeze();
    Some(Frame { checksum: crc32fast::hash(&payload), payload })
}

/// How a message waits for its frame.
#[must_use]
pub fn encode(envelope: &Envelope) -> Bytes {
    encode_envelope(envelope)
}

/// The messages of a frame.
///
/// # Errors
/// [`FrameError`]; nothing of the frame may be used then.
pub fn open_frame(frame: Frame) -> Result<Vec<Envelope>, FrameError> {
    let mut payload = frame.payload;
    if crc32fast::hash(&payload) != frame.checksum {
        return Err(FrameError::Checksum);
    }
    let mut envelopes = Vec::new();
    while payload.has_remaining() {
        let length = payload.try_get_u32_le().map_err(|_| FrameError::Lengths)?;
        let length = usize::try_from(length).map_err(|_| FrameError::Lengths)?;
        if length > payload.remaining() {
            return Err(FrameError::Lengths);
        }
        let message = payload.split_to(length);
        let envelope = decode_envelope(&message).map_err(|error| FrameError::Message { problem: error.to_string() })?;
        envelopes.push(envelope);
    }
    Ok(envelopes)
}
