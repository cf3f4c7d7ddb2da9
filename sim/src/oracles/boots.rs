//! What a node boots into is what is declared for it at the boot's sequence: overlay and delta together, policy included, at
//! least as new as it asked for, and from no overlay older than the stored one.

use super::{Oracle, Violation, must};
use crate::event::{Ask, Booted, ClientId, Event, Told};
use crate::world::Facts;
use muster_core::boot::assemble;
use muster_core::ids::{NodeId, ReplicaId, Seq, VClusterId};
use muster_core::journal::document::{self, Document};
use muster_core::journal::overlay::BootOverlay;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Overlays that were found right, with what they hold: most boots are given one that others were given too.
#[derive(Default)]
struct Known(BTreeMap<(VClusterId, Seq), (BootOverlay, Arc<Document>)>);

/// How many overlays are remembered.
const KNOWN_MAX: usize = 64;

impl Known {
    /// Judges an overlay, unless these very bytes were judged before, and opens it.
    fn right(
        &mut self,
        facts: &Facts,
        vcluster: &VClusterId,
        overlay: &BootOverlay,
    ) -> Result<Arc<Document>, Violation> {
        let key = (vcluster.clone(), overlay.version);
        if let Some((same, document)) = self.0.get(&key)
            && same == overlay
        {
            return Ok(document.clone());
        }
        let document = Arc::new(super::overlays::right(facts, vcluster, overlay)?);
        if self.0.len() >= KNOWN_MAX {
            self.0.pop_first();
        }
        self.0.insert(key, (overlay.clone(), document.clone()));
        Ok(document)
    }
}

#[derive(Default)]
pub(super) struct Boots {
    asked: BTreeMap<(ClientId, u64), (NodeId, Seq)>,
    waiting: Vec<(ReplicaId, NodeId, Arc<Booted>)>,
    known: Known,
}

fn judge(
    facts: &Facts,
    known: &mut Known,
    replica: ReplicaId,
    node: &NodeId,
    booted: &Booted,
) -> Result<(), Violation> {
    let declared = &facts.committed.declared;
    let sequence = booted.sequence;
    let vcluster = declared.vcluster_of(node, sequence);
    let plan = match &booted.plan {
        Ok(plan) => plan,
        Err(refusal) => {
            return must(
                vcluster.is_none(),
                || format!("node {node} to boot into {vcluster:?} at {sequence}"),
                || format!("replica {replica} refuse: {refusal}"),
            );
        }
    };
    must(
        vcluster.as_ref() == Some(&plan.vcluster),
        || format!("node {node} in {vcluster:?} at {sequence}"),
        || format!("replica {replica} boot it into {}", plan.vcluster),
    )?;
    let base = known.right(facts, &plan.vcluster, &plan.overlay)?;
    let wrong = |what: &str, error: String| Violation::new(format!("{what} of node {node} to be readable"), error);
    let text = std::str::from_utf8(&plan.delta).map_err(|error| wrong("the delta", error.to_string()))?;
    let delta = document::parse(text).map_err(|error| wrong("the delta", error.to_string()))?;
    let settings = assemble(&base, &delta);
    let wanted = declared.node(node, sequence);
    must(
        settings == wanted,
        || format!("node {node} to boot into {wanted:?} at {sequence} (overlay {})", plan.overlay.version),
        || format!("replica {replica} give {settings:?}"),
    )?;
    let policy = delta.policy.as_ref().or(base.policy.as_ref());
    let wanted = declared.policy(&plan.vcluster, sequence);
    must(policy == wanted, || format!("node {node}'s policy at {sequence}: {wanted:?}"), || format!("{policy:?}"))?;
    let stored = facts.committed.state(booted.applied).and_then(|state| state.journal.vcluster(&plan.vcluster));
    let stored = stored.and_then(|known| known.overlay.as_ref()).map_or(Seq(0), |overlay| overlay.version);
    must(
        plan.overlay.version >= stored,
        || format!("an overlay of {} at {stored} or newer, which is stored", plan.vcluster),
        || format!("replica {replica} serve version {}", plan.overlay.version),
    )
}

impl Oracle for Boots {
    fn name(&self) -> &'static str {
        "a node boots into exactly what is declared for it at the boot's sequence"
    }
    fn source(&self) -> &'static str {
        "the reading \"what a boot is\"; demands P7, P9; design, boot"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        match event {
            Event::Call { client, number, ask: Ask::Boot { node, at_least } } => {
                self.asked.insert((*client, *number), (node.clone(), *at_least));
                return Ok(());
            }
            Event::Answer { client, number, told: Told::Booted { replica, booted } } => {
                let Some((node, at_least)) = self.asked.remove(&(*client, *number)) else { return Ok(()) };
                must(
                    booted.sequence >= at_least,
                    || format!("a boot of {node} at {at_least} or later"),
                    || format!("replica {replica} give one at {}", booted.sequence),
                )?;
                self.waiting.push((*replica, node, booted.clone()));
            }
            Event::View { .. } if !self.waiting.is_empty() => {}
            _ => return Ok(()),
        }
        let (sequence, applied) = (facts.committed.sequence(), facts.committed.applied());
        let known = |booted: &Booted| booted.sequence <= sequence && booted.applied <= applied;
        let (ready, wait) = std::mem::take(&mut self.waiting).into_iter().partition(|(_, _, booted)| known(booted));
        self.waiting = wait;
        let ready: Vec<(ReplicaId, NodeId, Arc<Booted>)> = ready;
        ready.iter().try_for_each(|(replica, node, booted)| judge(facts, &mut self.known, *replica, node, booted))
    }
}
