//! A vCluster's policy in words: the fields that `apply` reads from a file and `policy set` from the command line.
//!
//! Both go through [`set`], so that a field means and accepts the same in both places.

use muster_core::journal::key::Dimension;
use muster_core::journal::policy::{Milli, Mode, Policy};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// The fields there are, as people write them.
pub(crate) const FIELDS: [&str; 8] = [
    "base_window_seconds",
    "sensitivity",
    "weights.DIMENSION",
    "min_window_seconds",
    "emergency_allowed",
    "emergency_window_seconds",
    "mode",
    "exec_allow",
];

/// The word for a mode.
pub(crate) const fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Observe => "observe",
        Mode::Warn => "warn",
        Mode::Enforce => "enforce",
    }
}

/// Sets one field from text. `exec_allow` takes commands separated by commas.
pub(crate) fn set(policy: &mut Policy, field: &str, text: &str) -> Result<(), String> {
    match field {
        "base_window_seconds" => policy.base_window_seconds = seconds(text, 1..=864_000)?,
        "min_window_seconds" => policy.min_window_seconds = seconds(text, 0..=864_000)?,
        "emergency_window_seconds" => policy.emergency_window_seconds = seconds(text, 1..=864_000)?,
        "sensitivity" => policy.sensitivity = text.parse::<Milli>()?,
        "emergency_allowed" => {
            policy.emergency_allowed =
                text.parse().map_err(|_| format!("{text:?} is neither: expected true or false"))?;
        }
        "mode" => {
            policy.mode = [Mode::Observe, Mode::Warn, Mode::Enforce]
                .into_iter()
                .find(|mode| mode_word(*mode) == text)
                .ok_or_else(|| format!("{text:?} is not a mode: expected observe, warn or enforce"))?;
        }
        "exec_allow" => {
            policy.exec_allow =
                text.split(',').map(str::trim).filter(|command| !command.is_empty()).map(Arc::from).collect();
        }
        _ => {
            let dimension = field.strip_prefix("weights.");
            let place = dimension.and_then(|word| Dimension::ALL.iter().position(|d| d.word() == word));
            let Some(place) = place else {
                return Err(format!("{field:?} is not a field of a policy: expected one of {}", FIELDS.join(", ")));
            };
            policy.weights[place] = text.parse::<Milli>()?;
        }
    }
    Ok(())
}

fn seconds(text: &str, range: RangeInclusive<u32>) -> Result<u32, String> {
    text.parse().ok().filter(|seconds| range.contains(seconds)).ok_or_else(|| {
        format!("{text:?} does not fit: expected a whole number from {} to {} seconds", range.start(), range.end())
    })
}

/// Every field with its value, in the order of [`FIELDS`].
pub(crate) fn rows(policy: &Policy) -> Vec<(String, String)> {
    let mut rows = vec![
        ("base_window_seconds".to_owned(), policy.base_window_seconds.to_string()),
        ("sensitivity".to_owned(), policy.sensitivity.to_string()),
    ];
    for (dimension, weight) in Dimension::ALL.iter().zip(policy.weights) {
        rows.push((format!("weights.{}", dimension.word()), weight.to_string()));
    }
    rows.extend([
        ("min_window_seconds".to_owned(), policy.min_window_seconds.to_string()),
        ("emergency_allowed".to_owned(), policy.emergency_allowed.to_string()),
        ("emergency_window_seconds".to_owned(), policy.emergency_window_seconds.to_string()),
        ("mode".to_owned(), mode_word(policy.mode).to_owned()),
        ("exec_allow".to_owned(), policy.exec_allow.join(",")),
    ]);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_can_be_set_again() {
        let mut policy = Policy::default();
        for (field, text) in
            [("sensitivity", "5.0"), ("weights.gpu", "0.5"), ("mode", "warn"), ("exec_allow", "dmesg,nvidia-smi")]
        {
            set(&mut policy, field, text).unwrap();
        }
        let mut again = Policy::default();
        for (field, text) in rows(&policy) {
            set(&mut again, &field, &text).unwrap();
        }
        assert_eq!(again, policy);
        assert_eq!(rows(&policy).len(), FIELDS.len() + 6);
    }

    #[test]
    fn an_unknown_field_names_those_that_exist() {
        let problem = set(&mut Policy::default(), "weights.colour", "1").unwrap_err();
        assert!(problem.contains("base_window_seconds"), "{problem}");
    }
}
