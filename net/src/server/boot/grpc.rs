//! Boots over gRPC: the same places, chunk after chunk.

use super::{Busy, Desk, Place};
use crate::convert::{Wire, text};
use crate::proto::v1 as wire;
use crate::server::connections::{Pulse, Turn};
use crate::server::{Access, Replica};
use bytes::Bytes;
use muster_core::boot::{BootPlan, BootRefusal, plan, plan_with};
use muster_core::ids::{NodeId, Seq, VClusterId};
use muster_core::journal::key::Scope;
use muster_core::request::{Freshness, NotApplied, Refusal};
use muster_core::service::{Kind, Operation};
use muster_core::storage::Library;
use std::sync::Arc;
use tonic::Status;

/// Overlays and deltas are sent in chunks of this size. A chunk is copied into its message, so it is what a reader who takes nothing
/// holds in memory.
const CHUNK_BYTES: usize = 64 << 10;

fn busy(busy: &Busy) -> wire::NotApplied {
    let elsewhere = busy.elsewhere.iter().map(ToString::to_string).collect();
    let busy = wire::Busy { retry_after_ms: busy.after_ms, elsewhere };
    wire::NotApplied { reason: Some(wire::not_applied::Reason::Busy(busy)) }
}

/// What a boot request is answered with: all of it, ready to be sent, and the place to be held meanwhile. Holds the plan's bytes,
/// not the view.
pub(in crate::server) async fn answer<L: Library>(
    replica: &Replica<L>,
    access: &Access,
    pulse: &Arc<Pulse>,
    request: wire::BootRequest,
) -> Result<(Vec<wire::BootReply>, Option<Place>), Status> {
    use wire::boot_reply::Reply as W;
    let desk: &Arc<Desk> = &replica.desk;
    let node: NodeId = text("node", &request.node)?;
    let known = request.known.map(|known| Ok((text("known.vcluster", &known.vcluster)?, Seq(known.version))));
    let known: Option<(VClusterId, Seq)> = known.transpose().map_err(|error: crate::convert::Malformed| error)?;
    let freshness = match request.at_least {
        0 => Freshness::Local,
        sequence => Freshness::AtLeast(Seq(sequence)),
    };
    let one = |reply: W| Ok((vec![wire::BootReply { reply: Some(reply) }], None));
    let too_often = |after_ms| Busy { after_ms, elsewhere: Vec::new(), why: "" };
    access.may(&Operation::on_node(Kind::Boot, node.clone()), &replica.handle.view().state)?;
    if let Err(after_ms) = desk.asked(&node, true) {
        return one(W::NotAnswered(busy(&too_often(after_ms))));
    }
    let waiting = match freshness {
        Freshness::Local => None,
        _ => match desk.wait(&replica.handle.view(), request.insist) {
            Ok(waiting) => Some(waiting),
            Err(why) => return one(W::NotAnswered(busy(&why))),
        },
    };
    let view = match replica.handle.read(freshness).await {
        Ok(view) => view,
        Err(why) => return one(W::NotAnswered(NotApplied::to_wire(&why))),
    };
    drop(waiting);
    // Where the node is may have become known only now.
    access.may(&Operation::on_node(Kind::Boot, node.clone()), &view.state)?;
    let sequence = view.state.sequence();
    if let Some((_, version)) = &known
        && *version > sequence
    {
        return one(W::Lagging(wire::Lagging { known: version.0, here: sequence.0, sequence: sequence.0 }));
    }
    let mut place = match desk.open(&view, request.insist, Turn::begin(pulse)) {
        Ok(place) => place,
        Err(why) => return one(W::NotAnswered(busy(&why))),
    };
    let planned = match plan(&view.state, &node) {
        Err(BootRefusal::NoOverlay { vcluster }) => match desk.builds.overlay(replica, &view, &vcluster).await {
            Ok(overlay) => plan_with(&view.state, &node, overlay),
            Err(refusal) => {
                return one(W::Refused(wire::BootRefused { refusal: Some(refusal.to_wire()) }));
            }
        },
        planned => planned,
    };
    match planned {
        Ok(plan) => {
            place.takes((plan.overlay.data.len() + plan.delta.len()) as u64);
            place.is_waited_for();
            Ok((replies(plan, known.as_ref()), Some(place)))
        }
        Err(refused) => {
            let refusal = refusal(&refused);
            one(W::Refused(wire::BootRefused { refusal: Some(refusal.to_wire()) }))
        }
    }
}

fn refusal(refused: &BootRefusal) -> Refusal {
    match refused {
        BootRefusal::UnknownNode { node } | BootRefusal::NoVCluster { node } => Refusal::UnknownScope {
            scope: Scope::Node(node.clone()).to_string().into(),
            hint: refused.to_string().into(),
        },
        BootRefusal::NoOverlay { .. } | BootRefusal::Ahead { .. } => {
            Refusal::Overlay { problem: refused.to_string().into() }
        }
    }
}

fn replies(plan: BootPlan, known: Option<&(VClusterId, Seq)>) -> Vec<wire::BootReply> {
    use wire::boot_reply::Reply as W;
    let skipped =
        known.is_some_and(|(vcluster, version)| *vcluster == plan.vcluster && *version == plan.overlay.version);
    let begin = W::Begin(wire::BootBegin {
        node: plan.node.to_string(),
        vcluster: plan.vcluster.to_string(),
        overlay_version: plan.overlay.version.0,
        overlay_checksum: Bytes::copy_from_slice(&plan.overlay.checksum.0),
        overlay_bytes: plan.overlay.data.len() as u64,
        overlay_content_bytes: plan.overlay.content_bytes,
        overlay_skipped: skipped,
        delta_bytes: plan.delta.len() as u64,
    });
    let overlay = if skipped { Bytes::new() } else { plan.overlay.data };
    let done = W::Done(wire::BootDone { sequence: plan.sequence.0 });
    std::iter::once(begin)
        .chain(chunks(&overlay).map(W::OverlayChunk))
        .chain(chunks(&plan.delta).map(W::DeltaChunk))
        .chain(std::iter::once(done))
        .map(|reply| wire::BootReply { reply: Some(reply) })
        .collect()
}

fn chunks(bytes: &Bytes) -> impl Iterator<Item = Bytes> {
    (0..bytes.len()).step_by(CHUNK_BYTES).map(|start| bytes.slice(start..(start + CHUNK_BYTES).min(bytes.len())))
}
