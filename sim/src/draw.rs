//! Randomness: a seed, and children of it by purpose.

/// A stream of draws.
#[derive(Clone, Debug)]
pub struct Draw(u64);

/// `SplitMix64`'s output function.
const fn scramble(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Draw {
    /// The draws of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(scramble(seed ^ 0x6d75_7374_6572))
    }

    /// The draws of a seed for one purpose. Other purposes' draws say nothing about them.
    #[must_use]
    pub fn of(seed: u64, purpose: &str, which: u64) -> Self {
        let mut x = scramble(seed);
        for byte in purpose.bytes() {
            x = scramble(x.wrapping_add(u64::from(byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
        Self(scramble(x ^ scramble(which.wrapping_add(0x51))))
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        scramble(self.0)
    }

    /// The next 128 bits.
    pub fn wide(&mut self) -> u128 {
        u128::from(self.number()) << 64 | u128::from(self.number())
    }

    /// A number below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.number() % n }
    }

    /// A number from `low` to `high`, both possible.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// A place in a list of `n`.
    pub fn place(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap_or(0)
    }

    /// True so many times in a million.
    pub fn ppm(&mut self, millionths: u32) -> bool {
        self.below(1_000_000) < u64::from(millionths)
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Around `mean`, exponentially: mostly less, sometimes much more; at most 16 times as much.
    pub fn around(&mut self, mean: u64) -> u64 {
        // -ln(u) by the position of the highest set bit and a linear rest: no floating point, the same everywhere.
        let u = self.number() | 1;
        let zeros = u64::from(u.leading_zeros());
        let rest = (u << zeros << 1) >> 54;
        // ln 2 is 710 of 1024.
        let thousandths = (zeros * 1024 + (1024 - rest)) * 710 / 1024;
        (mean / 1024 * thousandths + mean % 1024 * thousandths / 1024).min(mean.saturating_mul(16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_around_a_mean_have_that_mean() {
        let mut draw = Draw::new(3);
        let sum: u64 = (0..100_000).map(|_| draw.around(1_000)).sum();
        assert!((95_000_000..107_000_000).contains(&sum), "{sum}");
    }

    #[test]
    fn purposes_do_not_share_draws() {
        assert_ne!(Draw::of(1, "disk", 1).number(), Draw::of(1, "disk", 2).number());
        assert_ne!(Draw::of(1, "disk", 1).number(), Draw::of(1, "wire", 1).number());
    }
}
