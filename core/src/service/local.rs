//! Who is at the other end of a Unix socket: what the kernel says of the process becomes a role.
//!
//! The kernel's word needs no certificate. Recorded is `claimed:uid:NUMBER@NODE` in the journal's eyes: it is the agent that
//! vouches for it there.

use super::Caller;
use crate::ids::NodeId;
use crate::journal::entry::{Author, Principal, Role};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::sync::Arc;

/// What the kernel says of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its user.
    pub uid: u32,
    /// Its group, and every other group of its user that is known.
    pub gids: alloc::vec::Vec<u32>,
}

/// Which users and groups have which role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRoles {
    /// By user.
    pub users: BTreeMap<u32, Role>,
    /// By group, for users not named above. The first of the process's groups that is named counts.
    pub groups: BTreeMap<u32, Role>,
}

impl Default for LocalRoles {
    /// Root is an admin, nobody else is anything.
    fn default() -> Self {
        Self { users: BTreeMap::from([(0, Role::Admin)]), groups: BTreeMap::new() }
    }
}

/// Who a process on a node is to the door.
#[must_use]
pub fn caller(process: &Process, node: &NodeId, roles: &LocalRoles) -> Caller {
    let by_group = || process.gids.iter().find_map(|gid| roles.groups.get(gid));
    match roles.users.get(&process.uid).or_else(by_group) {
        None | Some(Role::System) => Caller::Nobody,
        Some(role @ (Role::Admin | Role::Operator(_) | Role::Viewer(_) | Role::Agent(_))) => {
            let principal = Principal::Claimed { name: Arc::from(format!("uid:{}@{node}", process.uid)) };
            Caller::Author(Author { principal, role: role.clone() })
        }
    }
}
