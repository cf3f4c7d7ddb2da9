//! The digest of a state: the sum of its parts' digests.
//!
//! A sum does not care for order, and one part of it is replaced for the price of that part: so the digest of a state follows
//! from that of an earlier one and from what changed. It tells replicas that differ and pages that are not what they were. It
//! is no defence against somebody who chooses parts so that their sum comes out: what is stored is chosen by replicas, and
//! whoever can lie as one needs no collision.

use crate::ids::Digest;

/// Four lanes, each summed on its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum([u64; 4]);

fn lanes(digest: &[u8; 32]) -> [u64; 4] {
    core::array::from_fn(|lane| {
        u64::from_le_bytes(digest[8 * lane..8 * lane + 8].try_into().expect("eight bytes of thirty-two"))
    })
}

impl Sum {
    /// The sum that a digest is.
    pub(super) fn of(digest: Digest) -> Self {
        Self(lanes(&digest.0))
    }

    pub(super) fn add(&mut self, part: &[u8]) {
        self.change(part, u64::wrapping_add);
    }

    pub(super) fn take(&mut self, part: &[u8]) {
        self.change(part, u64::wrapping_sub);
    }

    fn change(&mut self, part: &[u8], how: fn(u64, u64) -> u64) {
        let of_part = lanes(blake3::hash(part).as_bytes());
        for (lane, value) in self.0.iter_mut().zip(of_part) {
            *lane = how(*lane, value);
        }
    }

    pub(super) fn digest(self) -> Digest {
        let mut bytes = [0; 32];
        for (place, lane) in bytes.chunks_exact_mut(8).zip(self.0) {
            place.copy_from_slice(&lane.to_le_bytes());
        }
        Digest(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_and_taken_again_leaves_no_trace_and_order_does_not_count() {
        let sum = |parts: &[&[u8]]| {
            let mut sum = Sum::default();
            for part in parts {
                sum.add(part);
            }
            sum
        };
        let mut there_and_back = Sum::of(sum(&[b"a", b"c"]).digest());
        there_and_back.add(b"b");
        there_and_back.take(b"c");
        assert_eq!(there_and_back, sum(&[b"b", b"a"]));
        assert_ne!(sum(&[b"a"]), sum(&[b"b"]));
    }
}
