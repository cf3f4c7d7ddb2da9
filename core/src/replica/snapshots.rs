//! Snapshots: offered by a leader, fetched before the library hears of them, installed in one step; taken when they are due.
//!
//! The library is told of a snapshot only when it is here, checked and decoded. Until it is durable no tick reaches the
//! library: a campaign would read entries that the snapshot replaced.

use super::convert::{configuration_to_raft, hard_state_from_raft};
use super::{Answer, Effects, LogTask, Offered, Replica, SNAPSHOT_PATIENCE_MS, Staged, Unwritten};
use crate::ids::{Index, ReplicaId, Term};
use crate::log::{LogRecord, Write};
use crate::mark::mark;
use crate::peer::{RaftMessage, RaftMessageKind};
use crate::request::AdminOutcome;
use crate::state::State;
use crate::storage::SnapshotMeta;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use raft::{ProgressState, SnapshotStatus};
use tracing::info;

impl Replica {
    /// Whether the offered snapshot is ahead of what this replica has; if not, the library answers that by itself.
    pub(super) fn needs_fetch(&self, message: &RaftMessage) -> bool {
        let Some(meta) = &message.snapshot else { return false };
        let raft = &self.raft.raft;
        message.term.0 >= raft.term
            && meta.index.0 > raft.raft_log.committed
            && !raft.raft_log.match_term(meta.index.0, meta.term.0)
            && meta.configuration.everybody().contains(&self.identity.replica)
    }

    /// Whether the snapshot ends where this replica knows another entry to be committed.
    pub(super) fn contradicts(&self, meta: &SnapshotMeta) -> bool {
        let log = &self.raft.raft.raft_log;
        meta.index.0 == log.committed && !log.match_term(meta.index.0, meta.term.0)
    }

    pub(super) fn on_offer(&mut self, from: ReplicaId, message: RaftMessage, effects: &mut Effects) {
        // The term and the leader count at once; the snapshot when it is here.
        let heartbeat = RaftMessage::bare(RaftMessageKind::Heartbeat, message.term);
        self.step_raft(from, &heartbeat);
        let committed = self.raft.raft.raft_log.committed;
        let useful = |old: &SnapshotMeta| old.index.0 > committed;
        match &self.fetching {
            // What is being fetched is brought to its end: on a slow link a newer one would never be finished either.
            Some((_, old)) if old.snapshot.as_ref().is_some_and(useful) => {
                if old.snapshot != message.snapshot {
                    self.offered = Some((from, message));
                }
            }
            // What is being installed takes its pages, and all others, from where fetched ones are put.
            Some(_) | None if self.is_installing() => self.offered = Some((from, message)),
            Some(_) | None => self.begin_fetch(from, message, effects),
        }
    }

    pub(super) fn begin_fetch(&mut self, from: ReplicaId, message: RaftMessage, effects: &mut Effects) {
        let meta = message.snapshot.clone().expect("snapshot messages name one");
        info!(replica = self.identity.replica.0, from = from.0, index = meta.index.0, "fetching a snapshot");
        self.fetching = Some((from, message));
        self.offered = None;
        effects.fetch = Some((from, meta));
    }

    /// Takes up the offer that waited, if it is still of use, once nothing is being installed.
    pub(super) fn fetch_offered(&mut self, effects: &mut Effects) {
        if self.is_installing() {
            return;
        }
        if let Some((from, message)) = self.offered.take()
            && self.needs_fetch(&RaftMessage { term: Term(self.raft.raft.term), ..message.clone() })
        {
            self.begin_fetch(from, message, effects);
        }
    }

    pub(super) fn on_snapshot_staged(&mut self, staged: Staged, effects: &mut Effects) {
        let Some((mut from, mut message)) = self.fetching.take() else { return };
        if message.snapshot.as_ref() != Some(&staged.meta) {
            self.fetching = Some((from, message));
            return;
        }
        // Whatever earlier messages gave goes out first, so that nothing but the snapshot is ready below.
        while self.raft.has_ready() {
            self.on_ready(effects);
        }
        self.apply_committed(effects);
        // What is committed stays so when terms change: whoever leads by then is told that it is here.
        let raft = &self.raft.raft;
        if raft.term > message.term.0 && raft.leader_id != 0 {
            (from, message.term) = (ReplicaId(raft.leader_id), Term(raft.term));
        }
        if from != self.identity.replica && !self.contradicts(&staged.meta) {
            self.step_raft(from, &message);
        }
        let pending = self.raft.snap().map(|snapshot| snapshot.get_metadata().index);
        if pending == Some(staged.meta.index.0) {
            self.install(staged, effects);
        }
        self.fetch_offered(effects);
    }

    /// Installs a snapshot that the library has accepted: log, state and configuration start over behind it.
    pub(super) fn install(&mut self, staged: Staged, effects: &mut Effects) {
        let mut ready = self.raft.ready();
        self.on_role();
        assert_eq!(ready.snapshot().get_metadata().index, staged.meta.index.0, "another snapshot is ready");
        assert!(ready.entries().is_empty(), "entries beside a snapshot");
        let meta = staged.meta;
        let (index, term) = (meta.index, meta.term);
        let mut records = Vec::from([LogRecord::Reset { index, term }]);
        let mut votes = false;
        // The library repeats the hard state only if it changed; behind a reset it is always written.
        let mut hard_state = hard_state_from_raft(&self.raft.raft.hard_state());
        if let Some(state) = ready.hs() {
            hard_state = hard_state_from_raft(state);
            votes = hard_state.term != self.promised.0 || hard_state.vote != self.promised.1;
            self.promised = (hard_state.term, hard_state.vote);
        }
        records.push(LogRecord::HardState(hard_state));
        let id = self.next_write_id();
        effects.log.push(LogTask::Install {
            meta: meta.clone(),
            state: staged.state.clone(),
            open: staged.open,
            write: Write { id, sync: true, records },
        });
        let promises = ready.take_persisted_messages();
        assert!(ready.take_messages().is_empty(), "a leader installs no snapshot");
        let number = ready.number();
        let configuration = configuration_to_raft(&meta.configuration);
        let memory = self.raft.mut_store();
        memory.reset(index.0, term.0);
        memory.set_snapshot(index.0, term.0, configuration);
        self.unwritten.push_back(Unwritten {
            id,
            sync: true,
            done: false,
            votes,
            install: Some(index),
            ready: number,
            promises,
        });
        self.raft.advance_append_async(ready);
        info!(replica = self.identity.replica.0, index = index.0, sequence = meta.sequence.0, "installed a snapshot");
        mark!(snapshot_installed);
        self.live.advance(index, |state| *state = staged.state);
        self.applied = index;
        self.configuration = meta.configuration.clone();
        self.writes.skip_to(index);
        self.snapshot = Some(meta);
        self.snapshot_at = self.now;
        self.full_copy = false;
        self.members_told = false;
        self.report_due = self.now;
        self.installed = index;
    }

    /// A follower that shows no progress under a snapshot is probed again, and so offered one: soon at first, for its fetch may
    /// have come to nothing at once; then less and less often, for it may still be fetching. An offer of what is being fetched
    /// costs next to nothing.
    pub(super) fn watch_snapshots(&mut self) {
        let longest = self.settings.limits.snapshot_patience_ms;
        let now = self.now;
        let Some(leadership) = &mut self.leadership else { return };
        let mut stuck = Vec::new();
        let mut under = BTreeMap::new();
        for (&id, progress) in self.raft.raft.prs().iter() {
            let known = leadership.under_snapshot.get(&ReplicaId(id)).filter(|known| known.matched == progress.matched);
            let is_under = progress.state == ProgressState::Snapshot;
            let fresh =
                Offered { since: now, matched: progress.matched, patience_ms: SNAPSHOT_PATIENCE_MS.min(longest) };
            let offered = match known {
                Some(known) => *known,
                None if is_under => fresh,
                None => continue,
            };
            if is_under && offered.since.plus_ms(offered.patience_ms) <= now {
                stuck.push(id);
                let patience_ms = (2 * offered.patience_ms).min(longest);
                under.insert(ReplicaId(id), Offered { since: now, patience_ms, ..offered });
            } else {
                under.insert(ReplicaId(id), offered);
            }
        }
        leadership.under_snapshot = under;
        for id in stuck {
            self.raft.report_snapshot(id, SnapshotStatus::Failure);
        }
    }

    pub(super) fn snapshot_index(&self) -> Index {
        self.snapshot.as_ref().map_or(Index(0), |meta| meta.index)
    }

    pub(super) fn try_snapshot(&mut self, effects: &mut Effects) {
        self.snapshot_wanted |= self.raft.mut_store().take_wanted();
        if self.snapshot_saving || self.applied <= self.snapshot_index() || self.applied.0 == 0 {
            return;
        }
        let limits = &self.settings.limits;
        let entries = self.applied.0 - self.snapshot_index().0;
        let paused = self.snapshot_at.plus_ms(limits.snapshot_pause_ms) <= self.now;
        let due = self.snapshot_wanted
            || (entries >= limits.snapshot_entries && paused)
            || (self.raft.store().bytes() >= limits.snapshot_log_bytes
                && self.raft.store().bytes_after(self.snapshot_index().0) >= limits.snapshot_log_bytes);
        if !due {
            return;
        }
        let term = self.raft.raft.raft_log.term(self.applied.0).expect("the applied entry's term is kept");
        let state = self.live.look(State::clone);
        let meta = state.snapshot_meta(self.applied, Term(term), self.configuration.clone());
        self.snapshot_saving = true;
        self.snapshot_wanted = false;
        self.snapshot_at = self.now;
        effects.snapshot = Some((meta, state));
    }

    pub(super) fn on_snapshot_saved(&mut self, meta: SnapshotMeta, oldest: Index, effects: &mut Effects) {
        self.snapshot_saving = false;
        if meta.index > self.snapshot_index() {
            info!(
                replica = self.identity.replica.0,
                index = meta.index.0,
                layers = meta.layers.len(),
                bytes = meta.bytes(),
                "snapshot saved"
            );
            mark!(snapshot_taken);
            if meta.layers.len() > 1 {
                mark!(layer_taken);
            } else if self.snapshot.as_ref().is_some_and(|before| before.layers.len() > 1) {
                mark!(base_renewed);
            }
            let configuration = configuration_to_raft(&meta.configuration);
            self.raft.mut_store().set_snapshot(meta.index.0, meta.term.0, configuration);
            self.snapshot = Some(meta);
            self.compact();
            effects.log.push(LogTask::Purge(oldest));
        }
        self.answer_snapshots(effects);
    }

    /// What was installed is kept in layers of its own, not in those that were offered.
    pub(super) fn on_snapshot_installed(&mut self, meta: SnapshotMeta) {
        if self.snapshot_index() == meta.index {
            self.snapshot = Some(meta);
        }
    }

    /// Answers who asked for a snapshot that the newest durable one covers.
    pub(super) fn answer_snapshots(&mut self, effects: &mut Effects) {
        if self.is_installing() {
            return; // Answered when that one is durable.
        }
        let index = self.snapshot_index();
        let ripe: Vec<_> = self.snapshot_waiters.extract_if(.., |(_, wanted)| *wanted <= index).collect();
        for (token, _) in ripe {
            effects.answers.push((token, Answer::Admin(AdminOutcome::Snapshot { index })));
        }
        self.snapshot_wanted |= !self.snapshot_waiters.is_empty();
    }

    /// Forgets the log in memory that the snapshot covers, but for what active followers still need, within a bound.
    pub(super) fn compact(&mut self) {
        let snapshot = self.snapshot_index().0;
        let mut to = snapshot;
        if self.is_leader() {
            for (_, progress) in self.raft.raft.prs().iter() {
                if progress.recent_active && progress.state != ProgressState::Snapshot {
                    to = to.min(progress.matched);
                }
            }
        }
        let bound = self.raft.store().start_within(snapshot, self.settings.limits.log_bytes_behind_snapshot);
        self.raft.mut_store().compact(to.max(bound));
    }
}
