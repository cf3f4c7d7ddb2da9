//! The value of a `gpu:` key: a setting of one GPU or of all, `gpu:N.SETTING` or `gpu:all.SETTING`.
//!
//! | setting | value |
//! |---|---|
//! | `power_limit` | watts |
//! | `persistence_mode`, `ecc`, `mig` | `on` or `off` |
//! | `compute_mode` | `default`, `exclusive_process` or `prohibited` |
//! | `performance_level` | the driver's word, such as `auto` or `high` |

use super::Unfit;
use alloc::format;
use alloc::string::{String, ToString};

/// Which GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Which {
    /// The one with this number.
    One(u32),
    /// Every one of the machine.
    All,
}

/// What of a GPU is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// The most power it may draw, in watts.
    PowerLimit,
    /// Whether the driver stays loaded without users.
    PersistenceMode,
    /// Whether its memory corrects errors.
    Ecc,
    /// Whether it is cut into slices.
    Mig,
    /// Who may compute on it.
    ComputeMode,
    /// How its clocks are chosen.
    PerformanceLevel,
}

const WHATS: [(&str, What); 6] = [
    ("power_limit", What::PowerLimit),
    ("persistence_mode", What::PersistenceMode),
    ("ecc", What::Ecc),
    ("mig", What::Mig),
    ("compute_mode", What::ComputeMode),
    ("performance_level", What::PerformanceLevel),
];

/// Which GPUs, and which of their settings.
///
/// # Errors
/// [`Unfit`] lists the settings.
pub fn split(name: &str) -> Result<(Which, What), Unfit> {
    let found = name.split_once('.').and_then(|(which, word)| {
        let number = || which.bytes().all(|b| b.is_ascii_digit()).then(|| which.parse().ok()).flatten().map(Which::One);
        let which = if which == "all" { Some(Which::All) } else { number() };
        Some((which?, WHATS.iter().find(|(known, _)| *known == word)?.1))
    });
    found.ok_or_else(|| {
        Unfit::new(
            format!("{name:?} is no setting of a GPU"),
            "N.SETTING or all.SETTING with one of power_limit, persistence_mode, ecc, mig, compute_mode, performance_level",
        )
    })
}

pub(super) fn check(what: What, value: &str) -> Result<String, Unfit> {
    let value = value.trim().to_ascii_lowercase();
    let wrong = |want: &str| Err(Unfit::new(format!("{value:?} does not fit"), want));
    match what {
        What::PowerLimit => match value.parse::<u32>() {
            Ok(watts) if value.bytes().all(|b| b.is_ascii_digit()) => Ok(watts.to_string()),
            _ => wrong("a whole number of watts"),
        },
        What::PersistenceMode | What::Ecc | What::Mig => match value.as_str() {
            "on" | "true" | "enabled" => Ok("on".to_string()),
            "off" | "false" | "disabled" => Ok("off".to_string()),
            _ => wrong("on or off"),
        },
        What::ComputeMode => match value.as_str() {
            "default" | "exclusive_process" | "prohibited" => Ok(value),
            _ => wrong("default, exclusive_process or prohibited"),
        },
        What::PerformanceLevel => {
            let good = !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if good { Ok(value) } else { wrong("one word of the driver's, such as auto or high") }
        }
    }
}
