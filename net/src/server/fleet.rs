//! What agents tell this replica of their nodes: kept in memory, shown to whoever may look.

use crate::convert::{Wire, need, text};
use crate::proto::v1 as wire;
use muster_core::agent::fleet::{Fleet, Heard, NodeReport};
use muster_core::ids::{NodeId, Time};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tonic::Status;

/// What was heard since this process started.
#[derive(Clone)]
pub(super) struct FleetMemory {
    began: Instant,
    fleet: Arc<Mutex<Fleet>>,
}

impl FleetMemory {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), fleet: Arc::default() }
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Takes an agent's word, once `allow` has let it pass.
    pub(super) fn report(
        &self,
        report: Option<wire::NodeReport>,
        allow: impl FnOnce(&NodeId) -> Result<(), Status>,
    ) -> Result<wire::ReportReply, Status> {
        let report: NodeReport = need("report", report)?;
        allow(&report.node)?;
        let mut fleet = self.fleet.lock().unwrap_or_else(PoisonError::into_inner);
        if fleet.take(self.now(), report) {
            Ok(wire::ReportReply {})
        } else {
            Err(Status::resource_exhausted("this replica remembers as many nodes as it can"))
        }
    }

    /// What was heard, as far as `shows` lets it be seen.
    pub(super) fn heard(&self, node: &str, shows: impl Fn(&NodeId) -> bool) -> Result<wire::FleetReply, Status> {
        let now = self.now();
        let one: Option<NodeId> = if node.is_empty() { None } else { Some(text("node", node)?) };
        let mut fleet = self.fleet.lock().unwrap_or_else(PoisonError::into_inner);
        let heard: Vec<Heard> = if let Some(node) = one {
            fleet.node(now, &node).into_iter().collect()
        } else {
            fleet.forget(now);
            fleet.all(now).collect()
        };
        drop(fleet);
        let seen = heard.iter().filter(|heard| shows(&heard.report.node));
        Ok(wire::FleetReply { nodes: seen.map(Wire::to_wire).collect() })
    }
}
