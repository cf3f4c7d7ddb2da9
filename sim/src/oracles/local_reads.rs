//! Local reads never go back for one client on one process of a replica, nor ever when the request names a sequence.

use super::{Oracle, Violation, must};
use crate::event::{Ask, ClientId, Event, Run, Told};
use crate::world::Facts;
use muster_core::ids::{ReplicaId, Seq};
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct LocalReads {
    seen: BTreeMap<(ClientId, ReplicaId, Run), Seq>,
    asked: BTreeMap<(ClientId, u64), Seq>,
}

impl Oracle for LocalReads {
    fn name(&self) -> &'static str {
        "local reads never go back for one client on one process, nor behind the sequence they name"
    }
    fn source(&self) -> &'static str {
        "the reading \"reads\"; demand U3"
    }
    fn on_event(&mut self, _: &Facts, event: &Event) -> Result<(), Violation> {
        match event {
            Event::Call { client, number, ask: Ask::ReadAtLeast { sequence } } => {
                self.asked.insert((*client, *number), *sequence);
                Ok(())
            }
            Event::Answer { client, number, told: Told::Head { replica, run, sequence, .. } } => {
                if let Some(least) = self.asked.remove(&(*client, *number)) {
                    must(
                        *sequence >= least,
                        || format!("client {client} to see at least the sequence {least} it named"),
                        || format!("sequence {sequence} on replica {replica}"),
                    )?;
                }
                let seen = self.seen.entry((*client, *replica, *run)).or_default();
                let before = *seen;
                *seen = before.max(*sequence);
                must(
                    *sequence >= before,
                    || format!("client {client} to see sequence {before} or later on replica {replica}"),
                    || format!("sequence {sequence}"),
                )
            }
            _ => Ok(()),
        }
    }
}
