//! What an agent's driver needs of the journal: the boot, what follows it, writes, and a place for its report.
//!
//! Everything may fail at any time; who implements this tries other replicas first, for some seconds.

use super::fleet::NodeReport;
use super::ledger::Declared;
use crate::ids::{Age, NodeId, Seq};
use crate::journal::entry::Record;
use crate::request::{Outcome, WriteRequest};
use alloc::string::String;
use alloc::vec::Vec;

/// Why a question got no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Away {
    /// No replica answers, or none that knows enough. Ask again.
    Unreachable(String),
    /// The journal answers, and says no: the node is not known, the role does not allow it. A person must act.
    Refused(String),
}

impl Away {
    /// Why, in words.
    #[must_use]
    pub fn problem(self) -> String {
        match self {
            Self::Unreachable(problem) | Self::Refused(problem) => problem,
        }
    }
}

/// The journal, as the agent of one node sees it. Clones share connections.
pub trait Journal: Clone {
    /// A running subscription.
    type Following: Following;

    /// What is declared for the node, right at `at_least` or later.
    fn boot(&self, node: &NodeId, at_least: Seq) -> impl Future<Output = Result<Declared, Away>> + Send;
    /// Every record that concerns the node, after a sequence, without a gap.
    fn follow(&self, node: &NodeId, after: Seq) -> Self::Following;
    /// Replicated time.
    fn age(&self) -> impl Future<Output = Result<Age, Away>> + Send;
    /// Writes under the id that the request carries, and tries for some seconds.
    fn write(&self, write: WriteRequest) -> impl Future<Output = Outcome> + Send;
    /// The node's own records after a sequence, linearizably.
    fn records(&self, node: &NodeId, after: Seq) -> impl Future<Output = Result<Vec<Record>, Away>> + Send;
    /// Tells a replica how the node is. Kept in its memory for a while, and nowhere else.
    fn report(&self, report: &NodeReport) -> impl Future<Output = Result<(), Away>> + Send;
}

/// A subscription. It moves to another replica by itself when one goes away.
pub trait Following {
    /// The next records; none in a sign of life, which comes every few seconds.
    fn next(&mut self) -> impl Future<Output = Result<Vec<Record>, Away>> + Send;
}
