//! What a certificate says of its holder: one URI among its subject alternative names.
//!
//! ```text
//! muster://CLUSTER/admin/NAME
//! muster://CLUSTER/operator/VCLUSTER/NAME
//! muster://CLUSTER/viewer/VCLUSTER/NAME
//! muster://CLUSTER/agent/NODE
//! muster://CLUSTER/replica/NAME
//! ```
//! The whole URI is the principal. CLUSTER is the name that the certificates of one cluster share; it is not the cluster's
//! random id, because certificates are made before there is a cluster.

use super::Caller;
use crate::ids::{NodeId, ReplicaName, VClusterId};
use crate::journal::entry::{Author, Principal, Role};
use crate::limits::PRINCIPAL_BYTES_MAX;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::fmt;

/// The scheme of our URIs.
pub(crate) const SCHEME: &str = "muster://";

const WANT: &str = "muster://CLUSTER/ followed by admin/NAME, operator/VCLUSTER/NAME, viewer/VCLUSTER/NAME, agent/NODE or \
                    replica/NAME";

/// A text that is no credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialError {
    /// What is wrong and what would be accepted.
    pub problem: String,
}

impl fmt::Display for CredentialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

impl core::error::Error for CredentialError {}

/// What a certificate says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    cluster: Arc<str>,
    uri: Arc<str>,
    caller: Caller,
}

/// Whether a text may stand between two slashes: names of people may be mail addresses.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@' | b'+'))
}

impl Credential {
    /// The credential of a role. `name` is the person's, the node's or the replica's.
    ///
    /// # Errors
    /// If a part does not fit.
    pub fn new(cluster: &str, role: &str, name: &str) -> Result<Self, CredentialError> {
        let path = match role.split_once(':') {
            Some((role, vcluster)) => format!("{role}/{vcluster}/{name}"),
            None => format!("{role}/{name}"),
        };
        format!("{SCHEME}{cluster}/{path}").parse()
    }

    /// The name that the certificates of the cluster share.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The whole URI.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Who that is.
    #[must_use]
    pub const fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The role as the command line gives it: `admin`, `operator:VCLUSTER`, `viewer:VCLUSTER`, `agent` or `replica`.
    #[must_use]
    pub fn role(&self) -> String {
        let path = &self.uri[SCHEME.len() + self.cluster.len() + 1..];
        let mut parts = path.split('/');
        let role = parts.next().unwrap_or_default();
        match (parts.next(), parts.next()) {
            (Some(vcluster), Some(_)) => format!("{role}:{vcluster}"),
            _ => role.to_string(),
        }
    }

    /// The last part: the person's, node's or replica's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.uri.rsplit('/').next().unwrap_or_default()
    }
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl core::str::FromStr for Credential {
    type Err = CredentialError;
    fn from_str(text: &str) -> Result<Self, CredentialError> {
        let wrong =
            |why: &str| CredentialError { problem: format!("{text:?} is not a credential{why}: expected {WANT}") };
        if text.len() > PRINCIPAL_BYTES_MAX {
            return Err(wrong(&format!(" (it is longer than {PRINCIPAL_BYTES_MAX} bytes)")));
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| wrong(""))?;
        let mut parts = rest.split('/');
        let mut next = || parts.next();
        let (Some(cluster), Some(role), Some(first)) = (next(), next(), next()) else { return Err(wrong("")) };
        let (second, more) = (next(), next());
        if more.is_some() || ![Some(cluster), Some(first), second].into_iter().flatten().all(is_plain) {
            return Err(wrong(""));
        }
        let named = |error: crate::ids::InvalidName| wrong(&format!(" ({error})"));
        let author = |role| {
            let principal = Principal::Certificate { subject: Arc::from(text) };
            Caller::Author(Author { principal, role })
        };
        let caller = match (role, second) {
            ("admin", None) => author(Role::Admin),
            ("operator", Some(_)) => author(Role::Operator(VClusterId::new(first).map_err(named)?)),
            ("viewer", Some(_)) => author(Role::Viewer(VClusterId::new(first).map_err(named)?)),
            ("agent", None) => author(Role::Agent(NodeId::new(first).map_err(named)?)),
            ("replica", None) => Caller::Replica(ReplicaName::new(first).map_err(named)?),
            _ => return Err(wrong("")),
        };
        Ok(Self { cluster: Arc::from(cluster), uri: Arc::from(text), caller })
    }
}
