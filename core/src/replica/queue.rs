//! A queue whose items stay where they are put.
//!
//! One block that doubles would copy a log's tail again and again, into memory that nobody has touched yet.
//!
//! Invariants: pieces between the first and the last are full; no piece is empty.

use alloc::collections::VecDeque;

/// Items of one piece.
const PIECE: usize = 256;

/// A queue of pieces.
pub(super) struct Queue<T> {
    pieces: VecDeque<VecDeque<T>>,
    length: usize,
}

impl<T> Queue<T> {
    pub(super) const fn new() -> Self {
        Self { pieces: VecDeque::new(), length: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.length
    }

    pub(super) fn get(&self, place: usize) -> Option<&T> {
        let first = self.pieces.front()?.len();
        match place.checked_sub(first) {
            None => self.pieces.front()?.get(place),
            Some(beyond) => self.pieces.get(1 + beyond / PIECE)?.get(beyond % PIECE),
        }
    }

    pub(super) fn push_back(&mut self, item: T) {
        match self.pieces.back_mut() {
            Some(piece) if piece.len() < PIECE => piece.push_back(item),
            Some(_) | None => {
                let mut piece = VecDeque::with_capacity(PIECE);
                piece.push_back(item);
                self.pieces.push_back(piece);
            }
        }
        self.length += 1;
    }

    pub(super) fn pop_front(&mut self) -> Option<T> {
        let piece = self.pieces.front_mut()?;
        let item = piece.pop_front();
        if piece.is_empty() {
            self.pieces.pop_front();
        }
        self.length -= 1;
        item
    }

    pub(super) fn pop_back(&mut self) -> Option<T> {
        let piece = self.pieces.back_mut()?;
        let item = piece.pop_back();
        if piece.is_empty() {
            self.pieces.pop_back();
        }
        self.length -= 1;
        item
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use super::{PIECE, Queue};
    use crate::replica::mix;
    use alloc::collections::VecDeque;

    #[test]
    fn it_holds_what_any_queue_would() {
        let (mut queue, mut model) = (Queue::new(), VecDeque::new());
        for round in 0..400_u64 {
            let draw = mix(round);
            // Many of one kind at a time, so that pieces fill, empty and are cut in their middle.
            for item in 0..(draw >> 8) % (2 * PIECE as u64) {
                match draw % 4 {
                    0 => assert_eq!(queue.pop_front(), model.pop_front()),
                    1 => assert_eq!(queue.pop_back(), model.pop_back()),
                    _ => {
                        queue.push_back((round, item));
                        model.push_back((round, item));
                    }
                }
            }
            assert_eq!(queue.len(), model.len());
            for place in [0, 1, PIECE - 1, PIECE, model.len() / 2, model.len().saturating_sub(1), model.len()] {
                assert_eq!(queue.get(place), model.get(place), "round {round}, place {place} of {}", model.len());
            }
        }
        queue.clear();
        assert_eq!((queue.len(), queue.get(0)), (0, None));
    }
}
