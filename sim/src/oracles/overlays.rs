//! A stored overlay is right: its checksum is its bytes', its content is what its vCluster's nodes had in common at its version
//! (by the records alone), it never gives way to an older one, and an equal version keeps its bytes.

use super::{Oracle, Violation, must};
use crate::event::Event;
use crate::world::Facts;
use muster_core::ids::{Digest, Index, Seq, VClusterId};
use muster_core::journal::document::Document;
use muster_core::journal::overlay::BootOverlay;
use muster_core::overlay;
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct Overlays {
    /// The newest stored version, and the position where it was first seen.
    newest: BTreeMap<VClusterId, (Index, Seq)>,
    judged: BTreeMap<(VClusterId, Seq), Digest>,
    waiting: Vec<(VClusterId, BootOverlay)>,
}

/// Compares an overlay with what the records up to its version say; gives what it holds.
pub(super) fn right(facts: &Facts, vcluster: &VClusterId, stored: &BootOverlay) -> Result<Document, Violation> {
    let declared = &facts.committed.declared;
    let version = stored.version;
    let document = overlay::open(stored).map_err(|error| {
        Violation::new(format!("an overlay of {vcluster} that opens at version {version}"), error.to_string())
    })?;
    must(
        document.version == version && document.vcluster == *vcluster,
        || format!("the overlay of {vcluster} at {version} to say so"),
        || format!("it say {} at {}", document.vcluster, document.version),
    )?;
    must(
        declared.version(vcluster, version) == version,
        || format!("{vcluster}'s overlay at its last entry up to {version}, {}", declared.version(vcluster, version)),
        || format!("version {version}"),
    )?;
    let policy = declared.policy(vcluster, version);
    must(
        document.policy.as_ref() == policy,
        || format!("{vcluster}'s policy at {version}: {policy:?}"),
        || format!("{:?}", document.policy),
    )?;
    let common = declared.common(vcluster, version);
    must(
        document.settings == common,
        || format!("{vcluster}'s overlay at {version} to hold {common:?}"),
        || format!("{:?}", document.settings),
    )?;
    Ok(document)
}

impl Oracle for Overlays {
    fn name(&self) -> &'static str {
        "a stored overlay is right at its version and never gives way to an older one"
    }
    fn source(&self) -> &'static str {
        "the readings \"overlay version\" and \"overlay checksum\"; demand P9"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        let Event::View { replica, view, .. } = event else { return Ok(()) };
        let applied = view.status.applied;
        for (vcluster, known) in view.state.journal.vclusters() {
            let Some(stored) = &known.overlay else { continue };
            let version = stored.version;
            let newest = self.newest.entry(vcluster.clone()).or_insert((applied, version));
            let (at, before) = *newest;
            let forward = if applied >= at { version >= before } else { version <= before };
            must(
                forward,
                || format!("{vcluster}'s overlay at position {applied} to fit version {before}, stored at {at}"),
                || format!("replica {replica} hold version {version}"),
            )?;
            if applied >= at {
                *newest = (if version > before { applied } else { at }, version);
            }
            match self.judged.insert((vcluster.clone(), version), stored.checksum) {
                None => self.waiting.push((vcluster.clone(), stored.clone())),
                Some(checksum) => must(
                    checksum == stored.checksum,
                    || format!("{vcluster}'s overlay at {version} to stay as it was stored, {checksum}"),
                    || format!("replica {replica} hold {}", stored.checksum),
                )?,
            }
        }
        let reached = facts.committed.sequence();
        let (ready, wait) = std::mem::take(&mut self.waiting).into_iter().partition(|(_, o)| o.version <= reached);
        self.waiting = wait;
        let ready: Vec<(VClusterId, BootOverlay)> = ready;
        ready.iter().try_for_each(|(vcluster, stored)| right(facts, vcluster, stored).map(drop))
    }
}
