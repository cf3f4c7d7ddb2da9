//! Appends and linearizable reads of the journal's head have an order that fits real time: whoever starts after another has
//! ended sees at least what that one saw, and nobody sees what was not asked for yet.
//!
//! Sequences are that order, so it only remains to compare it with real time; the check is exact.

use super::{Oracle, Violation, must};
use crate::event::{Ask, ClientId, Event, Told};
use crate::world::Facts;
use muster_core::ids::{Seq, Time};
use muster_core::request::{Outcome, Reply};
use std::collections::BTreeMap;
use std::sync::Arc;

struct Open {
    since: Time,
    /// The highest sequence that anybody knew when this was asked.
    floor: Seq,
    append: Option<Arc<str>>,
    linearizable: bool,
}

#[derive(Default)]
pub(super) struct Linearizable {
    open: BTreeMap<(ClientId, u64), Open>,
    known: Seq,
    /// Which appends took which sequence, as told.
    taken: BTreeMap<Seq, Arc<str>>,
}

impl Oracle for Linearizable {
    fn name(&self) -> &'static str {
        "appends and linearizable reads take effect between question and answer"
    }
    fn source(&self) -> &'static str {
        "Herlihy and Wing 1990; demands U3, U10"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        match event {
            Event::Call { client, number, ask } => {
                let append = match ask {
                    Ask::Write { mark } => Some(mark.clone()),
                    Ask::OtherWrite { .. }
                    | Ask::Refusable { .. }
                    | Ask::Operation { .. }
                    | Ask::Read
                    | Ask::LocalRead
                    | Ask::ReadAtLeast { .. }
                    | Ask::Boot { .. }
                    | Ask::Subscribe { .. } => None,
                };
                let linearizable = append.is_some() || *ask == Ask::Read;
                let open = Open { since: facts.now, floor: self.known, append, linearizable };
                self.open.insert((*client, *number), open);
                Ok(())
            }
            Event::Answer { client, number, told } => {
                let Some(open) = self.open.remove(&(*client, *number)) else { return Ok(()) };
                let sequence = match told {
                    Told::Head { sequence, .. }
                    | Told::Outcome(Outcome::Applied { reply: Reply::Recorded { sequence }, .. }) => *sequence,
                    Told::Outcome(_) | Told::Booted { .. } | Told::Records { .. } | Told::Nothing(_) => return Ok(()),
                };
                if let Some(mark) = open.append {
                    must(
                        sequence > open.floor,
                        || {
                            format!(
                                "{mark}, asked at {}, after sequence {}, which was known then",
                                open.since, open.floor
                            )
                        },
                        || format!("it at {sequence}"),
                    )?;
                    let other = self.taken.insert(sequence, mark.clone());
                    must(
                        other.is_none(),
                        || format!("sequence {sequence} for one write"),
                        || format!("it for {} and {mark}", other.clone().unwrap_or_default()),
                    )?;
                } else if open.linearizable {
                    must(
                        sequence >= open.floor,
                        || {
                            format!(
                                "a read, asked at {}, to see sequence {}, which was known then",
                                open.since, open.floor
                            )
                        },
                        || format!("sequence {sequence}"),
                    )?;
                } else {
                    return Ok(());
                }
                self.known = self.known.max(sequence);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
