//! Memory stays within its bounds: the log a replica holds, and what the replicated state keeps for clients.

use super::{Oracle, Violation, must};
use crate::event::Event;
use crate::world::Facts;
use muster_core::request::RaftRole;

#[derive(Default)]
pub(super) struct Bounds;

impl Oracle for Bounds {
    fn name(&self) -> &'static str {
        "a replica's memory stays within its limits"
    }
    fn source(&self) -> &'static str {
        "style guide: everything has a bound, named in one `Limits`; core::limits"
    }
    fn on_event(&mut self, facts: &Facts, event: &Event) -> Result<(), Violation> {
        let Event::View { replica, view, .. } = event else { return Ok(()) };
        let limits = &facts.limits;
        // What is under way when the bound is met still arrives: one proposal on a leader, one append on a follower, and the
        // cluster's own entries, which are never told to wait.
        let under_way = match view.status.role {
            RaftRole::Leader => limits.payload_bytes_max,
            RaftRole::Follower | RaftRole::PreCandidate | RaftRole::Candidate | RaftRole::Learner => {
                limits.payload_bytes_max + limits.append_bytes_max * limits.appends_inflight_max as u64
            }
        };
        let most = limits.log_bytes_max + under_way;
        must(
            view.status.log_bytes <= most,
            || format!("replica {replica} to hold at most {most} bytes of log"),
            || format!("{}", view.status.log_bytes),
        )?;
        let sessions = view.state.sessions.count();
        let most = muster_core::limits::SESSIONS_MAX as u64;
        must(sessions <= most, || format!("at most {most} sessions"), || format!("{sessions} on replica {replica}"))
    }
}
