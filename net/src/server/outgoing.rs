//! What leaves by the clients' port: bytes that are shared with whoever else is being sent them, or what axum's routes say.
//!
//! Invariants
//! - bytes that are handed in by reference stay so down to the socket: several runs of them leave in one vectored write;
//! - what is held with them is let go when the last of them is written, or the connection is gone.

use super::boot::Place;
use super::connections::Turn;
use axum::body::Body as Routed;
use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, SizeHint};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Runs of shared bytes, one after another.
pub(super) struct Parts {
    runs: VecDeque<Bytes>,
    remaining: usize,
    /// A boot's place, until its last byte is written.
    _place: Option<Arc<Place>>,
}

impl Parts {
    /// These runs; the place is given up with the last byte.
    pub(super) fn new(runs: impl IntoIterator<Item = Bytes>, place: Option<Arc<Place>>) -> Self {
        let runs: VecDeque<Bytes> = runs.into_iter().filter(|run| !run.is_empty()).collect();
        let remaining = runs.iter().map(Bytes::len).sum();
        Self { runs, remaining, _place: place }
    }
}

impl Buf for Parts {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.runs.front().map_or(&[], |run| run)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let filled = slices.iter_mut().zip(&self.runs).map(|(slice, run)| *slice = IoSlice::new(run));
        filled.count()
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining, "advanced beyond the last byte");
        self.remaining -= count;
        while let Some(run) = self.runs.front_mut() {
            if count < run.len() {
                run.advance(count);
                return;
            }
            count -= run.len();
            self.runs.pop_front();
        }
    }
}

enum Content {
    Shared(Option<Parts>),
    /// With a boot's place, which is held until the last of it is written.
    Routed(Routed, Option<Arc<Place>>),
}

/// The body of an answer.
pub(super) struct Outgoing {
    content: Content,
    /// The connection is not idle while there is one.
    _turn: Option<Turn>,
}

impl Outgoing {
    /// Shared bytes.
    pub(super) fn shared(parts: Parts) -> Self {
        let parts = Some(parts).filter(|parts| parts.remaining > 0);
        Self { content: Content::Shared(parts), _turn: None }
    }

    /// What one of axum's routes says.
    pub(super) fn routed(body: Routed, place: Option<Arc<Place>>, turn: Turn) -> Self {
        Self { content: Content::Routed(body, place), _turn: Some(turn) }
    }
}

impl Body for Outgoing {
    type Data = Parts;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Parts>, axum::Error>>> {
        match &mut self.get_mut().content {
            Content::Shared(parts) => Poll::Ready(parts.take().map(|parts| Ok(Frame::data(parts)))),
            Content::Routed(body, place) => {
                let of = |bytes| Parts::new([bytes], place.clone());
                let frame = Pin::new(body).poll_frame(context);
                frame.map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(of))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Shared(parts) => parts.is_none(),
            Content::Routed(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Shared(parts) => SizeHint::with_exact(parts.as_ref().map_or(0, |parts| parts.remaining as u64)),
            Content::Routed(body, _) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_leave_in_order_whatever_the_pieces_that_the_socket_takes() {
        let runs = || [Bytes::from_static(b"abc"), Bytes::new(), Bytes::from_static(b"defg")];
        for piece in 1..=7 {
            let mut parts = Parts::new(runs(), None);
            let mut got = Vec::new();
            while parts.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 4];
                let filled = parts.chunks_vectored(&mut slices);
                let all: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
                assert_eq!(all.len(), parts.remaining());
                let take = piece.min(all.len());
                got.extend_from_slice(&all[..take]);
                parts.advance(take);
            }
            assert_eq!(got, b"abcdefg");
        }
    }
}
