//! An error-level log line, or a replica that stops by itself, that no fault explains fails the run. So does one that talks to
//! itself.

use super::{Oracle, Violation, must};
use crate::event::{Ending, Event};
use crate::fault::NEWER_BY;
use crate::world::Facts;
use muster_storage::FORMAT;

/// What a simulated disk says that fails, and nothing else does.
const IO_ERROR: &str = "Input/output error";

#[derive(Default)]
pub(super) struct Hygiene;

impl Oracle for Hygiene {
    fn name(&self) -> &'static str {
        "every error in the log and every replica that stops is explained by a fault"
    }
    fn source(&self) -> &'static str {
        "style guide: `error` means we stop"
    }
    fn looks_at_traffic(&self) -> bool {
        true
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        match event {
            Event::Log { error: true, line } => {
                let explained = !facts.disk_faults.is_empty() && line.contains("storage failed");
                must(explained, || "no error without a disk fault".into(), || line.to_string())
            }
            // An older version stops on a newer one's files, before it changes any, and says which versions those are: unless its
            // disk stops it first.
            Event::Stop { replica, why: Ending::Fault(problem), .. } if facts.downgraded.contains(replica) => must(
                problem.contains(IO_ERROR)
                    || (1..=FORMAT).any(|known| {
                        problem.contains(&format!("format {}", known + NEWER_BY))
                            && problem.contains(&format!("up to {known}"))
                    }),
                || {
                    format!(
                        "replica {replica} to name a format of its file that is newer by {NEWER_BY}, and the newest that it knows"
                    )
                },
                || format!("it stop: {problem}"),
            ),
            Event::Start { replica, .. } if facts.downgraded.contains(replica) => {
                Err(Violation::new(format!("replica {replica} to refuse a file of a newer format"), "it start on it"))
            }
            Event::Stop { replica, why: Ending::Fault(problem), .. } => must(
                facts.disk_faults.contains_key(replica),
                || format!("replica {replica}, whose disk kept what it was told to keep, to go on"),
                || format!("it stop: {problem}"),
            ),
            Event::Send { envelope, .. } if envelope.from == envelope.to => Err(Violation::new(
                format!("replica {} to talk to others", envelope.from),
                "it send a message to itself",
            )),
            Event::Stop { replica, why: Ending::Ended, .. } => {
                Err(Violation::new(format!("replica {replica} to go on until it is told to stop"), "it end"))
            }
            _ => Ok(()),
        }
    }
}
