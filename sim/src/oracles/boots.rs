//! What a node boots into is what is declared for it at the boot's sequence: overlay and delta together, policy included, at
//! least as new as it asked for, and from no overlay older than the stored one.

use super::{Oracle, Violation, must};
use crate::event::{Ask, Booted, ClientId, Event, Told};
use crate::world::Facts;
use muster_core::ids::{NodeId, ReplicaId, Seq, VClusterId};
use muster_core::journal::document::{self, Document};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::overlay::BootOverlay;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// An overlay that was found right.
struct Right {
    /// Equal ones: every replica has bytes of its own.
    copies: Vec<BootOverlay>,
    document: Arc<Document>,
    /// At a sequence, the keys of which the overlay says something else than what was declared for the whole vCluster then.
    differs: BTreeMap<Seq, Arc<BTreeSet<Key>>>,
}

/// Overlays that were found right: most boots are given one that others were given too.
#[derive(Default)]
struct Known(BTreeMap<(VClusterId, Seq), Right>);

/// How many overlays are remembered, and for how many sequences of each what differs.
const KNOWN_MAX: usize = 64;

/// How many equal overlays are remembered.
const COPIES_MAX: usize = 16;

impl Known {
    /// Judges an overlay, unless these very bytes were judged before.
    fn right(&mut self, facts: &Facts, vcluster: &VClusterId, overlay: &BootOverlay) -> Result<&mut Right, Violation> {
        let key = (vcluster.clone(), overlay.version);
        let these = |copy: &BootOverlay| {
            (copy.data.as_ptr(), copy.data.len(), copy.checksum, copy.content_bytes)
                == (overlay.data.as_ptr(), overlay.data.len(), overlay.checksum, overlay.content_bytes)
        };
        let judged = self.0.get_mut(&key).is_some_and(|right| {
            right.copies.iter().any(these)
                || (right.copies.first() == Some(overlay) && {
                    if right.copies.len() < COPIES_MAX {
                        right.copies.push(overlay.clone());
                    }
                    true
                })
        });
        if !judged {
            let document = Arc::new(super::overlays::right(facts, vcluster, overlay)?);
            if self.0.len() >= KNOWN_MAX {
                self.0.pop_first();
            }
            let right = Right { copies: vec![overlay.clone()], document, differs: BTreeMap::new() };
            self.0.insert(key.clone(), right);
        }
        Ok(self.0.get_mut(&key).expect("it is there, or was just put there"))
    }
}

impl Right {
    fn differs(&mut self, facts: &Facts, vcluster: &VClusterId, sequence: Seq) -> Arc<BTreeSet<Key>> {
        if let Some(differs) = self.differs.get(&sequence) {
            return differs.clone();
        }
        let (says, common) = (&self.document.settings, facts.committed.declared.common(vcluster, sequence));
        let keys = says.keys().chain(common.keys());
        let differs: Arc<BTreeSet<Key>> =
            Arc::new(keys.filter(|key| says.get(*key) != common.get(*key)).cloned().collect());
        if self.differs.len() >= KNOWN_MAX {
            self.differs.pop_first();
        }
        self.differs.insert(sequence, differs.clone());
        differs
    }
}

#[derive(Default)]
pub(super) struct Boots {
    asked: BTreeMap<(ClientId, u64), (NodeId, Seq)>,
    waiting: Vec<(ReplicaId, NodeId, Arc<Booted>)>,
    known: Known,
}

/// A setting as a person writes it.
fn shown(setting: Option<&Setting>) -> &str {
    match setting {
        Some(Setting::Value(value)) => value,
        Some(Setting::Absent) => "absent",
        Some(Setting::Unset) | None => "nothing",
    }
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
    let right = known.right(facts, &plan.vcluster, &plan.overlay)?;
    let (base, differs) = (right.document.clone(), right.differs(facts, &plan.vcluster, sequence));
    let wrong = |what: &str, error: String| Violation::new(format!("{what} of node {node} to be readable"), error);
    let text = std::str::from_utf8(&plan.delta).map_err(|error| wrong("the delta", error.to_string()))?;
    let delta = document::parse(text).map_err(|error| wrong("the delta", error.to_string()))?;
    // Of every other key, overlay and declaration say the same, and neither the delta nor the node says anything.
    let own = declared.scope(&Scope::Node(node.clone()), sequence);
    for key in differs.iter().chain(delta.settings.keys()).chain(own.keys()) {
        let gets = match delta.settings.get(key).or_else(|| base.settings.get(key)) {
            Some(Setting::Unset) | None => None,
            Some(setting) => Some(setting),
        };
        let wanted = own.get(key).cloned().or_else(|| declared.common_setting(&plan.vcluster, key, sequence));
        must(
            gets == wanted.as_ref(),
            || {
                let version = plan.overlay.version;
                let wanted = shown(wanted.as_ref());
                format!("node {node} to boot into {key} = {wanted} at {sequence} (overlay {version})")
            },
            || format!("replica {replica} give {}", shown(gets)),
        )?;
    }
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
