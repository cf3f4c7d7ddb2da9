//! The fleet's soft state: told to one replica, asked of all.

use super::connections::Connections;
use super::reads::{any_status, ask, ask_one, of_status, read_deadline, senseless};
use super::types::ClientError;
use crate::convert::{Wire, many};
use crate::proto::v1 as wire;
use futures_util::future::join_all;
use muster_core::agent::fleet::{Heard, NodeReport, merge};
use muster_core::ids::NodeId;
use muster_core::journal::entry::Author;
use std::collections::BTreeMap;

pub(super) async fn report(connections: &Connections, author: &Author, report: &NodeReport) -> Result<(), ClientError> {
    let request =
        wire::ReportRequest { author: super::writes::told_author(connections, author), report: Some(report.to_wire()) };
    ask(connections, read_deadline(connections), |address, mut stub| {
        let request = request.clone();
        async move {
            stub.report(request).await.map_err(|status| of_status(&address, &status))?;
            Ok(())
        }
    })
    .await
}

/// Asks every replica; those that do not answer know nothing.
pub(super) async fn fleet(
    connections: &Connections,
    node: Option<&NodeId>,
) -> Result<BTreeMap<NodeId, Heard>, ClientError> {
    // Whoever answers names the others.
    any_status(connections).await?;
    let addresses = connections.targets().addresses().to_vec();
    let asked = addresses.iter().map(|address| async move {
        let mut stub = connections.stub(address)?;
        let request = wire::FleetRequest { node: node.map(ToString::to_string).unwrap_or_default() };
        ask_one(connections, address, read_deadline(connections), async {
            let reply = stub.fleet(request).await.map_err(|status| of_status(address, &status))?.into_inner();
            many::<Heard>("nodes", reply.nodes).map_err(senseless(address))
        })
        .await
    });
    let answers: Vec<Result<Vec<Heard>, ClientError>> = join_all(asked).await;
    let mut heard = Vec::new();
    let mut failed = None;
    let mut answered = false;
    for answer in answers {
        match answer {
            Ok(list) => {
                answered = true;
                heard.extend(list);
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    match failed {
        Some(error) if !answered => Err(error),
        Some(_) | None => Ok(merge(heard)),
    }
}
