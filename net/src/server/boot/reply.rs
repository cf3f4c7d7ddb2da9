//! An answer over HTTP, as it is made before it is known who sends it: the quick lane, or the HTTP library.
//!
//! Its head is lines of text from the beginning: nothing looks a header up again, and most of what a boot's head says is the same for
//! every node of a vCluster.

use super::Place;
use super::forms::Form;
use crate::server::outgoing::{Outgoing, Parts};
use crate::server::pages::{Pages, RUN_BYTES_MIN};
use axum::http::header::{CONNECTION, CONTENT_LENGTH};
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;

/// About how long a boot's head is.
const HEAD_BYTES: usize = 1_024;

/// The lines of a head, except for what the sender adds: length, date and connection.
pub(in crate::server) struct Head(String);

impl Head {
    pub(super) fn new() -> Self {
        Self(String::with_capacity(HEAD_BYTES))
    }

    /// One more line. A value that is not plain text is left out: it would end the line.
    pub(super) fn line(&mut self, name: &str, value: &str) {
        if value.bytes().fold(true, |plain, byte| plain & (b' '..0x7f).contains(&byte)) {
            for piece in [name, ": ", value, "\r\n"] {
                self.0.push_str(piece);
            }
        }
    }

    pub(super) fn number(&mut self, name: &str, value: u64) {
        self.line(name, itoa::Buffer::new().format(value));
    }

    /// Lines that were made before.
    pub(super) fn lines(&mut self, lines: &str) {
        self.0.push_str(lines);
    }

    pub(super) fn into_lines(mut self) -> String {
        self.0.shrink_to_fit();
        self.0
    }
}

/// Bytes of an overlay, where whoever else is being sent them has them too.
pub(in crate::server) struct Piece {
    pub(super) form: Arc<Form>,
    pub(super) plain: bool,
    pub(super) run: Range<usize>,
}

impl Piece {
    pub(in crate::server) fn bytes(&self) -> &[u8] {
        &self.form.checked(self.plain).bytes[self.run.clone()]
    }

    pub(in crate::server) fn len(&self) -> usize {
        self.run.len()
    }

    /// A file that holds these bytes, and where they begin; made when it is first asked for. Only the stored form is sent so often that
    /// it is worth one.
    pub(in crate::server) fn file(&self) -> Option<(&Pages, u64)> {
        let pages = (!self.plain && self.len() >= RUN_BYTES_MIN).then(|| self.form.pages())??;
        Some((pages, self.run.start as u64))
    }
}

/// An answer.
pub(in crate::server) struct Answer {
    pub(in crate::server) code: StatusCode,
    pub(super) head: Head,
    /// How many bytes follow the head, or would if they were asked for; none if that is not said.
    pub(super) length: Option<u64>,
    pub(in crate::server) overlay: Option<Piece>,
    /// What follows the overlay.
    pub(in crate::server) rest: Vec<u8>,
    /// The connection is closed after it.
    pub(in crate::server) close: bool,
    /// A boot's place, until its last byte is written.
    pub(in crate::server) place: Option<Place>,
}

impl Answer {
    /// A head, and nothing that could follow.
    pub(super) fn empty(code: StatusCode, head: Head) -> Self {
        Self { code, head, length: None, overlay: None, rest: Vec::new(), close: false, place: None }
    }

    /// A head before so many bytes.
    pub(super) fn of(code: StatusCode, head: Head, length: u64) -> Self {
        Self { length: Some(length), ..Self::empty(code, head) }
    }

    /// A line of text.
    pub(in crate::server) fn words(code: StatusCode, kind: &str, mut text: String) -> Self {
        text.push('\n');
        let mut head = Head::new();
        head.line("content-type", kind);
        let length = text.len() as u64;
        Self { rest: text.into_bytes(), ..Self::of(code, head, length) }
    }

    /// The head as HTTP/1.1 has it. `ends` says that the connection is closed after the answer, `date` what time it is.
    pub(in crate::server) fn head(&self, ends: bool, date: &str) -> Vec<u8> {
        let mut number = itoa::Buffer::new();
        let mut head = Vec::with_capacity(self.head.0.len() + 160);
        let mut add = |piece: &str| head.extend_from_slice(piece.as_bytes());
        add("HTTP/1.1 ");
        add(self.code.as_str());
        add(" ");
        add(self.code.canonical_reason().unwrap_or("-"));
        add("\r\n");
        add(&self.head.0);
        if let Some(length) = self.length {
            add("content-length: ");
            add(number.format(length));
            add("\r\n");
        }
        if ends {
            add("connection: close\r\n");
        }
        add("date: ");
        add(date);
        add("\r\n\r\n");
        head
    }
}

impl Answer {
    /// What is sent of it where the head alone is wanted.
    pub(in crate::server) fn head_alone(self) -> Self {
        Self { overlay: None, rest: Vec::new(), ..self }
    }
}

impl From<Answer> for Response<Outgoing> {
    fn from(answer: Answer) -> Self {
        let Answer { code, head, length, overlay, rest, close, place } = answer;
        if let Some(place) = &place {
            place.is_waited_for();
        }
        let shared = |piece: Piece| piece.form.checked(piece.plain).bytes.slice(piece.run.clone());
        let runs = [overlay.map(shared).unwrap_or_default(), Bytes::from(rest)];
        let mut response = Self::new(Outgoing::shared(Parts::new(runs, place.map(Arc::new))));
        *response.status_mut() = code;
        let headers = response.headers_mut();
        for (name, value) in head.0.lines().filter_map(|line| line.split_once(": ")) {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
                headers.insert(name, value);
            }
        }
        if let Some(length) = length {
            headers.insert(CONTENT_LENGTH, length.into());
        }
        if close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
