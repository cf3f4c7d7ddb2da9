//! Boots: as many at a time as `core::admission` lets in, the others told when to come back and who else there is; and overlays
//! built while one is missing: once, however many ask.

use super::{Access, Replica};
use crate::client::random_id;
use crate::convert::{Wire, text};
use crate::proto::v1 as wire;
use bytes::Bytes;
use muster_core::admission::{Admittance, BootAdmission, BootLimits, elsewhere};
use muster_core::boot::{BootPlan, BootRefusal, plan, plan_with};
use muster_core::driver::store_overlay;
use muster_core::front::{Handle, View};
use muster_core::ids::{NodeId, Seq, Time, VClusterId};
use muster_core::journal::key::Scope;
use muster_core::journal::overlay::BootOverlay;
use muster_core::overlay;
use muster_core::request::{Freshness, NotApplied, Refusal, WriteRequest};
use muster_core::service::{Kind, Operation};
use muster_core::storage::Library;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::OnceCell;
use tonic::Status;

/// Overlays and deltas are sent in chunks of this size.
const CHUNK_BYTES: usize = 256 << 10;
/// How many overlays that are built but not stored yet are remembered.
const BUILT_MAX: usize = 64;

type Built = Arc<OnceCell<Result<BootOverlay, Refusal>>>;

/// The overlays that were built here, by vCluster and version.
#[derive(Default)]
struct Builds {
    built: Mutex<BTreeMap<(VClusterId, Seq), Built>>,
}

impl Builds {
    /// The overlay of a vCluster that has none stored, from this view; whoever asks first builds it.
    async fn overlay<L: Library>(
        &self,
        replica: &Replica<L>,
        view: &Arc<View>,
        vcluster: &VClusterId,
    ) -> Result<BootOverlay, Refusal> {
        let Some(known) = view.state.journal.vcluster(vcluster) else {
            return overlay::build(&view.state, vcluster);
        };
        let version = view.state.journal.config_version(known);
        let cell = {
            let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
            let key = (vcluster.clone(), version);
            if !built.contains_key(&key) {
                built.retain(|(other, _), _| other != vcluster);
                while built.len() >= BUILT_MAX {
                    built.pop_first();
                }
            }
            built.entry(key).or_default().clone()
        };
        let build = || async {
            let (state, name) = (view.state.clone(), vcluster.clone());
            let overlay = tokio::task::spawn_blocking(move || overlay::build(&state, &name)).await;
            let overlay = overlay.unwrap_or_else(|error| {
                Err(Refusal::Overlay { problem: format!("building it broke: {error}").into() })
            })?;
            let write = store_overlay(&view.state, vcluster.clone(), overlay.clone(), random_id().0);
            tokio::spawn(store(replica.handle.clone(), write));
            Ok(overlay)
        };
        cell.get_or_init(build).await.clone()
    }
}

/// What boots need besides the replica.
pub(super) struct Desk {
    builds: Builds,
    admission: Arc<Mutex<BootAdmission>>,
    /// Moves on with every node that is told to wait.
    turn: AtomicU64,
    began: Instant,
}

impl Default for Desk {
    fn default() -> Self {
        let seed = u64::try_from(random_id().0 >> 64).unwrap_or_default();
        let admission = Arc::new(Mutex::new(BootAdmission::new(BootLimits::default(), seed)));
        Self { builds: Builds::default(), admission, turn: AtomicU64::new(seed), began: Instant::now() }
    }
}

impl Desk {
    /// A stream for a boot, or when to come back, in milliseconds.
    fn open(&self) -> Result<Place, u64> {
        match lock(&self.admission).ask() {
            Admittance::Now => Ok(Place { admission: self.admission.clone(), began: self.began }),
            Admittance::Later { after_ms } => Err(after_ms),
        }
    }

    fn busy(&self, view: &View, after_ms: u64) -> wire::NotApplied {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let elsewhere = elsewhere(&view.state.members, view.status.replica, turn);
        let elsewhere = elsewhere.iter().map(ToString::to_string).collect();
        let busy = wire::Busy { retry_after_ms: after_ms, elsewhere };
        wire::NotApplied { reason: Some(wire::not_applied::Reason::Busy(busy)) }
    }
}

fn lock(admission: &Mutex<BootAdmission>) -> MutexGuard<'_, BootAdmission> {
    admission.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One of the boots that are served; held until its last byte is handed over, or its node is gone.
pub(super) struct Place {
    admission: Arc<Mutex<BootAdmission>>,
    began: Instant,
}

impl Drop for Place {
    fn drop(&mut self) {
        let now = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        lock(&self.admission).end(Time(now));
    }
}

/// Asks the leader to store it. If that fails, the next view without one leads here again.
async fn store(handle: Handle, write: WriteRequest) {
    let outcome = handle.write(write, true).await;
    tracing::debug!(?outcome, "an overlay built on demand was offered for storing");
}

/// What a boot request is answered with: all of it, ready to be sent, and the place to be held meanwhile. Holds the plan's bytes,
/// not the view.
pub(super) async fn answer<L: Library>(
    replica: &Replica<L>,
    desk: &Desk,
    access: &Access,
    request: wire::BootRequest,
) -> Result<(Vec<wire::BootReply>, Option<Place>), Status> {
    use wire::boot_reply::Reply as W;
    let node: NodeId = text("node", &request.node)?;
    let known = request.known.map(|known| Ok((text("known.vcluster", &known.vcluster)?, Seq(known.version))));
    let known: Option<(VClusterId, Seq)> = known.transpose().map_err(|error: crate::convert::Malformed| error)?;
    let freshness = match request.at_least {
        0 => Freshness::Local,
        sequence => Freshness::AtLeast(Seq(sequence)),
    };
    let one = |reply: W| Ok((vec![wire::BootReply { reply: Some(reply) }], None));
    let view = match replica.handle.read(freshness).await {
        Ok(view) => view,
        Err(why) => return one(W::NotAnswered(NotApplied::to_wire(&why))),
    };
    access.may(&Operation::on_node(Kind::Boot, node.clone()), &view.state)?;
    let sequence = view.state.sequence();
    if let Some((_, version)) = &known
        && *version > sequence
    {
        return one(W::Lagging(wire::Lagging { known: version.0, here: sequence.0, sequence: sequence.0 }));
    }
    let place = match desk.open() {
        Ok(place) => place,
        Err(after_ms) => return one(W::NotAnswered(desk.busy(&view, after_ms))),
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
        Ok(plan) => Ok((replies(plan, known.as_ref()), Some(place))),
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
