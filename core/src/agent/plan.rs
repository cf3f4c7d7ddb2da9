//! The order in which keys are brought to what they should be.
//!
//! A plan has one step for each key that is not what it should be, and none for any other. Its order is such that no step
//! needs a later one: services stop before what they stand on goes, mounts go from the deepest up and come from the top
//! down, files come after the mounts that carry them and before the services that read them.
//!
//! Never looks at who uses what: see [`super::machine`], which asks before the first step.

use super::host::Observed;
use super::value::{self, service::Service};
use crate::journal::key::{Dimension, Key, Setting};
use alloc::vec::Vec;

/// One key's way to what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The key.
    pub key: Key,
    /// What it should be; never unset.
    pub setting: Setting,
}

/// The steps that make every key what it should be. A key that cannot be seen has none.
pub fn steps<'a>(keys: impl IntoIterator<Item = (&'a Key, &'a Setting, Option<&'a Observed>)>) -> Vec<Step> {
    let mut steps: Vec<Step> = keys
        .into_iter()
        .filter(|(key, setting, observed)| {
            **setting != Setting::Unset && observed.is_some_and(|observed| !value::agrees(key, setting, observed))
        })
        .map(|(key, setting, _)| Step { key: key.clone(), setting: setting.clone() })
        .collect();
    steps.sort_by(|a, b| place(a).cmp(&place(b)).then_with(|| a.key.cmp(&b.key)));
    steps
}

/// When a step's turn comes: its stage, then its depth.
fn place(step: &Step) -> (u8, isize) {
    let goes = step.setting == Setting::Absent;
    let Some(dimension) = step.key.dimension() else { return (0, 0) };
    let deep = isize::try_from(depth(&step.key)).unwrap_or(isize::MAX);
    match dimension {
        Dimension::Services if goes || stops(&step.setting) => (0, 0),
        Dimension::Mounts if goes => (1, -deep),
        Dimension::Packages => (2, 0),
        Dimension::Kernel => (3, 0),
        Dimension::Mounts => (4, deep),
        Dimension::Files if goes => (5, -deep),
        Dimension::Files => (6, deep),
        Dimension::Network => (7, 0),
        Dimension::Gpu => (8, 0),
        Dimension::Services => (9, 0),
    }
}

/// Whether a service's setting says that it should not run.
fn stops(setting: &Setting) -> bool {
    let Setting::Value(value) = setting else { return false };
    Service::parse(value).is_ok_and(|service| !service.running)
}

/// How many directories lead to a path.
fn depth(key: &Key) -> usize {
    key.as_str().split('/').filter(|part| !part.is_empty()).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::sync::Arc;

    fn value(text: &str) -> Setting {
        Setting::Value(Arc::from(text))
    }

    fn order(wanted: &[(&str, Setting)]) -> Vec<alloc::string::String> {
        let other = Observed::Value(Arc::from("something else"));
        let wanted: Vec<_> =
            wanted.iter().map(|(key, setting)| (Key::new(key).expect("a key"), setting.clone())).collect();
        let steps = steps(wanted.iter().map(|(key, setting)| (key, setting, Some(&other))));
        steps.into_iter().map(|step| step.key.as_str().into()).collect()
    }

    #[test]
    fn services_stop_before_mounts_go_and_start_after_files_are_there() {
        let found = order(&[
            ("services:reader", value("running")),
            ("files:/data/config", value("x")),
            ("mounts:/data", value("/dev/vdb ext4 rw")),
            ("mounts:/old", Setting::Absent),
            ("mounts:/old/inner", Setting::Absent),
            ("services:writer", Setting::Absent),
        ]);
        let want = [
            "services:writer",
            "mounts:/old/inner",
            "mounts:/old",
            "mounts:/data",
            "files:/data/config",
            "services:reader",
        ];
        assert_eq!(found, want);
    }

    #[test]
    fn mounts_and_files_come_from_the_top_and_go_from_the_bottom() {
        let found = order(&[
            ("mounts:/a/b", value("tmpfs")),
            ("mounts:/a", value("tmpfs")),
            ("files:/a/b/gone", Setting::Absent),
            ("files:/a/gone", Setting::Absent),
            ("files:/a/b/c", value("x")),
            ("files:/a/x", value("x")),
        ]);
        let want = ["mounts:/a", "mounts:/a/b", "files:/a/b/gone", "files:/a/gone", "files:/a/x", "files:/a/b/c"];
        assert_eq!(found, want);
    }

    #[test]
    fn what_is_right_or_cannot_be_seen_has_no_step() {
        let key = Key::new("kernel:vm.swappiness").expect("a key");
        let want = value("10");
        let right = Observed::Value(Arc::from("10"));
        let unseen = Observed::Unseen(Arc::from("no such parameter"));
        assert!(steps([(&key, &want, Some(&right))]).is_empty());
        assert!(steps([(&key, &want, Some(&unseen))]).is_empty());
        assert!(steps([(&key, &want, None)]).is_empty());
        assert!(steps([(&key, &Setting::Unset, Some(&right))]).is_empty());
        assert_eq!(steps([(&key, &want, Some(&Observed::Absent))]).len(), 1);
    }
}
