//! How far a node is from what is declared, and how long it may stay there.
//!
//! Drift is a state, not a count of events: per dimension, the number of keys whose observed value differs from the declared
//! one. Its magnitude is the weighted L2 norm `sqrt(Σ wᵢ·dᵢ²)`; the window is `base / (1 + magnitude · sensitivity)`, whole
//! seconds, never below the policy's minimum.
//!
//! Invariants
//! - the same counts and policy give the same window on every machine: square roots are `libm`'s;
//! - more drift never lengthens a window;
//! - a dimension of weight 0 counts for nothing.

use crate::journal::key::Dimension;
use crate::journal::policy::{Milli, Policy};
use alloc::vec::Vec;
use core::fmt;

/// A window shorter than this, in seconds, is begun only with the operator's explicit consent.
pub const SHORT_WINDOW_SECONDS: u64 = 60;

/// Per dimension, in the order of [`Dimension::ALL`], how many keys differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DriftVector(pub [u32; 7]);

impl DriftVector {
    /// Nothing differs.
    pub const ZERO: Self = Self([0; 7]);

    /// Counts keys by their dimension.
    pub fn count(dimensions: impl IntoIterator<Item = Dimension>) -> Self {
        let mut counts = Self::ZERO;
        for dimension in dimensions {
            let count = &mut counts.0[place(dimension)];
            *count = count.saturating_add(1);
        }
        counts
    }

    /// How many keys of one dimension differ.
    #[must_use]
    pub const fn of(&self, dimension: Dimension) -> u32 {
        self.0[place(dimension)]
    }

    /// Whether nothing differs.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }

    /// The weighted L2 norm.
    #[must_use]
    pub fn magnitude(&self, weights: &[Milli; 7]) -> f64 {
        libm::sqrt(self.terms(weights).map(|term| term.2).sum())
    }

    /// Each dimension with its weight and its term `w·d²` of the sum.
    fn terms(&self, weights: &[Milli; 7]) -> impl Iterator<Item = (Dimension, Milli, f64)> {
        let weights = *weights;
        Dimension::ALL.into_iter().zip(weights).map(|(dimension, weight)| {
            let keys = f64::from(self.of(dimension));
            (dimension, weight, f64::from(weight.0) / 1000.0 * keys * keys)
        })
    }
}

const fn place(dimension: Dimension) -> usize {
    match dimension {
        Dimension::Mounts => 0,
        Dimension::Files => 1,
        Dimension::Network => 2,
        Dimension::Services => 3,
        Dimension::Kernel => 4,
        Dimension::Packages => 5,
        Dimension::Gpu => 6,
    }
}

/// A dimension's weight under a policy.
#[must_use]
pub const fn weight(policy: &Policy, dimension: Dimension) -> Milli {
    policy.weights[place(dimension)]
}

/// How long a node may stay this far from what is declared, in whole seconds.
#[must_use]
pub fn window_seconds(policy: &Policy, magnitude: f64) -> u64 {
    let base = f64::from(policy.base_window_seconds);
    let sensitivity = f64::from(policy.sensitivity.0) / 1000.0;
    let seconds = libm::trunc(base / (1.0 + magnitude * sensitivity));
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a whole number between 0 and base_window_seconds, which is a u32"
    )]
    let seconds = seconds as u64;
    seconds.max(u64::from(policy.min_window_seconds))
}

/// What one dimension adds to a magnitude.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Which.
    pub dimension: Dimension,
    /// How many of its keys differ.
    pub keys: u32,
    /// Its weight.
    pub weight: Milli,
    /// Its part of the magnitude's square, 0 to 1.
    pub part: f64,
}

/// Why a window is as long as it is: told before it starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// The dimensions in which something differs, in order; those of weight 0 have no part.
    pub shares: Vec<Share>,
    /// The weighted L2 norm.
    pub magnitude: f64,
    /// The policy's window without drift, in seconds.
    pub base_seconds: u32,
    /// The policy's sensitivity.
    pub sensitivity: Milli,
    /// The policy's minimum, in seconds.
    pub min_seconds: u32,
    /// The window, in seconds.
    pub seconds: u64,
}

/// Explains the window of a drift under a policy.
#[must_use]
pub fn explain(policy: &Policy, drift: &DriftVector) -> Explanation {
    let magnitude = drift.magnitude(&policy.weights);
    let square: f64 = drift.terms(&policy.weights).map(|term| term.2).sum();
    let shares = drift.terms(&policy.weights).filter(|(dimension, ..)| drift.of(*dimension) > 0);
    let shares = shares.map(|(dimension, weight, term)| Share {
        dimension,
        keys: drift.of(dimension),
        weight,
        part: if square > 0.0 { term / square } else { 0.0 },
    });
    Explanation {
        shares: shares.collect(),
        magnitude,
        base_seconds: policy.base_window_seconds,
        sensitivity: policy.sensitivity,
        min_seconds: policy.min_window_seconds,
        seconds: window_seconds(policy, magnitude),
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, share) in self.shares.iter().enumerate() {
            let comma = if nth == 0 { "" } else { ", " };
            let keys = if share.keys == 1 { "key" } else { "keys" };
            write!(f, "{comma}{} {keys} of {} (weight {})", share.keys, share.dimension.word(), share.weight)?;
        }
        if self.shares.is_empty() {
            f.write_str("nothing differs")?;
        }
        let (magnitude, base, sensitivity) = (self.magnitude, self.base_seconds, self.sensitivity);
        write!(f, ": magnitude {magnitude:.3}, window {base} / (1 + {magnitude:.3} x {sensitivity})")?;
        write!(f, " = {} s", self.seconds)?;
        if self.seconds == u64::from(self.min_seconds) && self.min_seconds > 0 {
            write!(f, " (the policy's minimum)")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    /// The seed's own table.
    #[test]
    fn windows_are_the_seeds_to_the_second() {
        let policy = Policy::default();
        for (magnitude, seconds) in
            [(0.0, 900), (0.05, 818), (0.15, 692), (0.3, 562), (0.8, 346), (1.0, 300), (5.0, 81)]
        {
            assert_eq!(window_seconds(&policy, magnitude), seconds, "magnitude {magnitude}");
        }
        let touchy = Policy { sensitivity: Milli(5000), ..policy };
        assert_eq!(window_seconds(&touchy, 0.8), 180);
    }

    #[test]
    fn kernel_and_gpu_weigh_double() {
        let policy = Policy::default();
        let kernel = DriftVector::count([Dimension::Kernel]);
        let file = DriftVector::count([Dimension::Files]);
        assert!((kernel.magnitude(&policy.weights) - core::f64::consts::SQRT_2).abs() < 1e-12);
        assert!((file.magnitude(&policy.weights) - 1.0).abs() < 1e-12);
        assert_eq!(explain(&policy, &kernel).seconds, 235);
        assert_eq!(explain(&policy, &file).seconds, 300);
    }

    #[test]
    fn counts_enter_squared_and_dimensions_add_up() {
        let drift = DriftVector::count([Dimension::Files, Dimension::Files, Dimension::Files, Dimension::Mounts]);
        let weights = Policy::default().weights;
        assert!((drift.magnitude(&weights) - libm::sqrt(10.0)).abs() < 1e-12);
    }

    #[test]
    fn a_dimension_of_weight_zero_is_ignored() {
        let mut policy = Policy::default();
        policy.weights[6] = Milli(0);
        let drift = DriftVector::count([Dimension::Gpu]);
        assert!(drift.magnitude(&policy.weights) < 1e-12);
        assert_eq!(explain(&policy, &drift).seconds, 900);
    }

    #[test]
    fn no_window_is_below_the_policys_minimum() {
        let policy = Policy { min_window_seconds: 120, ..Policy::default() };
        assert_eq!(window_seconds(&policy, 1e9), 120);
        assert_eq!(window_seconds(&Policy::default(), 1e9), 0);
    }

    #[test]
    fn a_window_explains_itself() {
        let drift = DriftVector::count([Dimension::Files, Dimension::Kernel]);
        let text = explain(&Policy::default(), &drift).to_string();
        assert_eq!(
            text,
            "1 key of files (weight 1.0), 1 key of kernel (weight 2.0): magnitude 1.732, \
             window 900 / (1 + 1.732 x 2.0) = 201 s"
        );
    }
}
