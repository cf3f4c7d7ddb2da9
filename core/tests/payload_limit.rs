//! What a proposal may come to, and the one command that may come to more: an overlay holds what was declared bit by bit.

#[path = "cluster/stage.rs"]
#[allow(dead_code, reason = "each test file uses its part of the stage")]
mod stage;

use bytes::Bytes;
use muster_core::ids::{Digest, Seq, VClusterId};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::entry::{Change, EntryDraft, EntryType};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::overlay::BootOverlay;
use muster_core::journal::policy::Policy;
use muster_core::limits::OVERLAY_BYTES_MAX;
use muster_core::request::{Command, NotApplied, Outcome, Reply};
use stage::Stage;

/// The limit on proposals, in bytes.
const PAYLOAD_BYTES_MAX: u64 = 20_000;

/// A replica with that limit, and what it says to a command.
struct Limited {
    stage: Stage,
    token: u64,
}

impl Limited {
    fn new() -> Self {
        let mut stage = Stage::new(&[1], &[]);
        stage.limits.payload_bytes_max = PAYLOAD_BYTES_MAX;
        stage.crash(1);
        stage.start(1);
        stage.make_leader(1);
        Self { stage, token: 0 }
    }

    fn ask(&mut self, command: JournalCommand) -> Outcome {
        self.token += 1;
        let write = self.stage.request(1, Command::Journal(command));
        self.stage.write(1, self.token, write, false);
        self.stage.play(100, |_| true);
        self.stage.outcome(1, self.token).expect("it is answered")
    }

    fn vcluster(&mut self) -> (VClusterId, Seq) {
        let vcluster = VClusterId::new("edge").unwrap();
        let outcome = self.ask(JournalCommand::SetPolicy { vcluster: vcluster.clone(), policy: Policy::default() });
        let Outcome::Applied { reply: Reply::Recorded { sequence }, .. } = outcome else { panic!("{outcome:?}") };
        (vcluster, sequence)
    }
}

fn overlay(version: Seq, bytes: usize) -> BootOverlay {
    let data = Bytes::from(vec![7; bytes]);
    BootOverlay { version, checksum: Digest::of(&data), content_bytes: bytes as u64, data }
}

#[test]
fn an_overlay_larger_than_a_proposal_may_be_is_stored_whole() {
    let mut limited = Limited::new();
    let (vcluster, version) = limited.vcluster();
    let large = overlay(version, 150 << 10);
    let outcome = limited.ask(JournalCommand::SetOverlay { vcluster: vcluster.clone(), overlay: large.clone() });
    assert!(matches!(outcome, Outcome::Applied { .. }), "{outcome:?}");
    let state = limited.stage.replica(1).state();
    let stored = state.journal.vcluster(&vcluster).unwrap().overlay.clone();
    assert_eq!(stored, Some(large));
}

#[test]
fn anything_else_larger_than_a_proposal_may_be_is_refused_with_both_sizes() {
    let mut limited = Limited::new();
    let (vcluster, parent) = limited.vcluster();
    let next = Setting::Value("v".repeat(30_000).into());
    let change = Change { key: Key::new("files:/large").unwrap(), previous: Setting::Unset, next };
    let outcome = limited.ask(JournalCommand::AppendEntry(EntryDraft {
        entry_type: EntryType::Commit,
        scope: Scope::VCluster(vcluster),
        parent,
        based_on: None,
        changes: vec![change],
        ttl_seconds: None,
        emergency_reason: None,
        message: "".into(),
        occurred_at: None,
    }));
    let Outcome::NotApplied(NotApplied::TooLarge { bytes, bytes_max }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(bytes_max, PAYLOAD_BYTES_MAX);
    assert!(bytes > 30_000);
}

#[test]
fn an_overlay_larger_than_any_can_be_is_refused() {
    let mut limited = Limited::new();
    let (vcluster, version) = limited.vcluster();
    for more in [1, 1 << 20] {
        let overlay = overlay(version, OVERLAY_BYTES_MAX + more);
        let outcome = limited.ask(JournalCommand::SetOverlay { vcluster: vcluster.clone(), overlay });
        assert!(
            matches!(outcome, Outcome::Refused(_) | Outcome::NotApplied(NotApplied::TooLarge { .. })),
            "{more} bytes more: {outcome:?}"
        );
    }
}
