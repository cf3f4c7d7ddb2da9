//! A request is carried out at most once, however often it is in the log: later copies record nothing, and give what the first
//! gave for as long as its reply is kept.

use super::{Oracle, Violation, must};
use crate::event::Event;
use crate::world::Facts;
use muster_core::ids::{Index, OneShotId, SessionId};
use muster_core::request::{Outcome, RequestId};
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct SessionsAtMostOnce {
    numbered: BTreeMap<(SessionId, u64), (Index, Outcome)>,
    one_shots: BTreeMap<OneShotId, (Index, Outcome)>,
}

impl Oracle for SessionsAtMostOnce {
    fn name(&self) -> &'static str {
        "a request is carried out at most once, however often it is asked"
    }
    fn source(&self) -> &'static str {
        "Raft dissertation 6.3; design, sessions"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        if !matches!(event, Event::View { .. }) {
            return Ok(());
        }
        for step in &facts.committed.fresh {
            let (Some(request), Some(outcome)) = (step.request, &step.outcome) else { continue };
            let here = (step.index, outcome.clone());
            let first = match request {
                RequestId::Session { session, number, .. } => {
                    self.numbered.get(&(session, number)).cloned().or_else(|| {
                        // What was not remembered (Busy, unknown) may be asked again.
                        if matches!(outcome, Outcome::Applied { .. } | Outcome::Refused(_)) {
                            self.numbered.insert((session, number), here);
                        }
                        None
                    })
                }
                RequestId::OneShot { id, .. } => self.one_shots.get(&id).cloned().or_else(|| {
                    if matches!(outcome, Outcome::Applied { .. } | Outcome::Refused(_)) {
                        self.one_shots.insert(id, here);
                    }
                    None
                }),
                RequestId::None => None,
            };
            let Some((index, first)) = first else { continue };
            must(
                step.records == 0,
                || format!("{request:?}, carried out at {index}, to record nothing more"),
                || format!("{} records at {}", step.records, step.index),
            )?;
            must(
                *outcome == first || matches!(outcome, Outcome::Unknown(_)),
                || format!("{request:?} to give again what it gave at {index}: {first:?}"),
                || format!("{outcome:?} at {}", step.index),
            )?;
        }
        Ok(())
    }
}
