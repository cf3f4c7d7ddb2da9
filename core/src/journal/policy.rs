//! A vCluster's policy: how long its commit windows are, and what may happen inside them.

use super::key::Dimension;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

/// A non-negative decimal with three places, exact on every machine: 2.0 is `Milli(2000)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Milli(pub u32);

impl fmt::Display for Milli {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 1000, self.0 % 1000);
        if rest == 0 {
            return write!(f, "{whole}.0");
        }
        let digits = alloc::format!("{rest:03}");
        write!(f, "{whole}.{}", digits.trim_end_matches('0'))
    }
}

impl core::str::FromStr for Milli {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || alloc::format!("{text:?} is not a number from 0 to 4000000 with at most three decimals");
        let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(rest) || rest.len() > 3 {
            return Err(wrong());
        }
        let whole: u32 = whole.parse().map_err(|_| wrong())?;
        let mut padded = rest.to_string();
        while padded.len() < 3 {
            padded.push('0');
        }
        let rest: u32 = padded.parse().map_err(|_| wrong())?;
        if whole > 4_000_000 {
            return Err(wrong());
        }
        Ok(Self(whole * 1000 + rest))
    }
}

/// What an agent does about drift.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Record it.
    Observe,
    /// Record it and warn.
    Warn,
    /// Open a commit window and roll back when it expires.
    #[default]
    Enforce,
}

/// A vCluster's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Commit window without drift, in seconds. 1 to 864,000. Default 900.
    pub base_window_seconds: u32,
    /// How strongly drift shortens the window. Default 2.0.
    pub sensitivity: Milli,
    /// Weight of each dimension in the drift magnitude, in the order of [`Dimension::ALL`]. 0 ignores one.
    pub weights: [Milli; 7],
    /// Shortest window, in seconds. Default 0: the formula holds.
    pub min_window_seconds: u32,
    /// Whether an emergency may be started. Default true.
    pub emergency_allowed: bool,
    /// The window that replaces the commit window in an emergency, in seconds. 1 to 864,000. Default 14,400.
    pub emergency_window_seconds: u32,
    /// What an agent does about drift.
    pub mode: Mode,
    /// Commands that may be run remotely; empty allows none.
    pub exec_allow: Vec<Arc<str>>,
}

impl Default for Policy {
    fn default() -> Self {
        let weight = |d: Dimension| match d {
            Dimension::Kernel | Dimension::Gpu => Milli(2000),
            Dimension::Mounts | Dimension::Files | Dimension::Network | Dimension::Services | Dimension::Packages => {
                Milli(1000)
            }
        };
        Self {
            base_window_seconds: 900,
            sensitivity: Milli(2000),
            weights: Dimension::ALL.map(weight),
            min_window_seconds: 0,
            emergency_allowed: true,
            emergency_window_seconds: 14_400,
            mode: Mode::Enforce,
            exec_allow: Vec::new(),
        }
    }
}
