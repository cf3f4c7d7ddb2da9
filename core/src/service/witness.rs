//! Whom an agent acts for, as the journal records it.
//!
//! People ask a node's agent, and the agent asks the journal. The journal sees the agent's certificate alone: who stood behind it
//! is the agent's word. Both are recorded: the name as a claim (`claimed:NAME`), and the agent as the role under which it was
//! done (`agent:NODE`). What an entry may do follows from the role, so a false name never reaches further than the agent itself
//! could; it can only put the blame on somebody. So a name that the agent's own door could not have let in is marked
//! ([`DOUBTFUL`]): somebody of another cluster, a viewer, another node's user, the operator of a vCluster that the node is not in.
//!
//! Marked and not refused: a node may have been moved while what its operator did there waited for the journal, and nothing that
//! happened is lost.

use super::{Credential, Fleet, Kind, Operation, allow};
use crate::ids::NodeId;
use crate::journal::entry::{Author, Principal, Role};
use crate::limits::PRINCIPAL_BYTES_MAX;
use alloc::format;
use alloc::sync::Arc;

/// Before a name that the agent should not have had to do with.
pub const DOUBTFUL: &str = "doubtful:";

/// In whose name it is recorded what an agent (`witness`) does for somebody. `cluster` is the name that the certificates share.
#[must_use]
pub fn witnessed(witness: &Author, claimed: Arc<str>, cluster: &str, fleet: &impl Fleet) -> Author {
    let Role::Agent(node) = &witness.role else { return witness.clone() };
    let name = if is_credible(&claimed, node, cluster, fleet) {
        claimed
    } else {
        let marked = format!("{DOUBTFUL}{claimed}");
        if marked.len() > PRINCIPAL_BYTES_MAX {
            return witness.clone();
        }
        Arc::from(marked)
    };
    Author { principal: Principal::Claimed { name }, role: witness.role.clone() }
}

/// Whether the agent of a node could have let somebody of this name in.
fn is_credible(name: &str, node: &NodeId, cluster: &str, fleet: &impl Fleet) -> bool {
    match name.parse::<Credential>() {
        Ok(credential) => {
            let changes = Operation::on_node(Kind::SetOnNode, node.clone());
            credential.cluster() == cluster && allow(credential.caller(), &changes, fleet).is_ok()
        }
        // A user at the node's socket, as the kernel names it.
        Err(_) => name
            .strip_prefix("uid:")
            .and_then(|rest| rest.split_once('@'))
            .is_some_and(|(uid, at)| at == node.as_str() && uid.parse::<u32>().is_ok()),
    }
}
