//! Names of users and groups, from the root's own `etc/passwd` and `etc/group`.
//!
//! Accounts that live elsewhere (a directory service) have no name here; `ids=` manages files of theirs.

use super::root::Root;
use std::collections::BTreeMap;

/// The accounts of a machine, read once for many files.
pub(super) struct Accounts {
    users: BTreeMap<String, u32>,
    groups: BTreeMap<String, u32>,
}

impl Accounts {
    pub(super) fn read(root: &Root) -> Self {
        Self { users: table(root, "/etc/passwd"), groups: table(root, "/etc/group") }
    }

    /// The numbers behind a pair of names.
    pub(super) fn ids(&self, user: &str, group: &str) -> Result<(u32, u32), String> {
        let find = |table: &BTreeMap<String, u32>, name: &str, what: &str, file: &str| {
            table
                .get(name)
                .copied()
                .ok_or_else(|| format!("{file} knows no {what} {name:?}; give numbers with ids=UID:GID"))
        };
        Ok((find(&self.users, user, "user", "/etc/passwd")?, find(&self.groups, group, "group", "/etc/group")?))
    }

    /// The names of a pair of numbers, if both have one.
    pub(super) fn names(&self, user: u32, group: u32) -> Option<(String, String)> {
        let find = |table: &BTreeMap<String, u32>, id| {
            table.iter().find(|(_, known)| **known == id).map(|(name, _)| name.clone())
        };
        Some((find(&self.users, user)?, find(&self.groups, group)?))
    }
}

fn table(root: &Root, path: &str) -> BTreeMap<String, u32> {
    let text = root.read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let row = |line: &str| {
        let mut fields = line.split(':');
        Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
    };
    text.lines().filter_map(row).collect()
}
