//! `/metrics`: what Prometheus gets of a replica, computed from its newest view at each scrape.
//!
//! Names begin with `muster_`. Positions are gauges, not counters: a restart or an installed snapshot may move them by leaps.

use muster_core::query::Summary;
use muster_core::request::{Progress, RaftRole, ReplicaStatus};
use muster_net::server::{BootCounts, ConnectionCounts};
use muster_net::tls::TlsCounts;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::fmt;

/// What one scrape tells.
#[derive(Clone, Debug)]
pub(crate) struct Scrape {
    /// The replica's Raft state.
    pub(crate) replica: ReplicaStatus,
    /// Its journal.
    pub(crate) summary: Summary,
    /// vClusters whose stored overlay misses something, so that deltas make up for it.
    pub(crate) overlays_behind: u64,
    /// What its data directory takes on disk, in bytes.
    pub(crate) disk_bytes: u64,
    /// How long the process has run, in seconds.
    pub(crate) uptime_seconds: u64,
    /// What came of boots.
    pub(crate) boots: BootCounts,
    /// What came of clients' connections.
    pub(crate) connections: ConnectionCounts,
    /// Its certificates, if it speaks TLS.
    pub(crate) tls: Option<TlsFigures>,
}

/// What there is to watch of certificates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TlsFigures {
    /// When the replica's own one ends, in seconds since the Unix epoch.
    pub(crate) certificate_expires: u64,
    /// When the CA's ends.
    pub(crate) ca_expires: u64,
    /// What came of handshakes.
    pub(crate) counts: TlsCounts,
}

impl Scrape {
    /// The exposition text.
    pub(crate) fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("muster");
        registry.register_collector(Box::new(self));
        let mut out = String::new();
        prometheus_client::encoding::text::encode(&mut out, &registry)?;
        Ok(out)
    }
}

/// A gauge with a value for each follower: its name, its help and the value.
type Family = (&'static str, &'static str, fn(&Progress) -> u64);

const ROLES: [RaftRole; 5] =
    [RaftRole::Leader, RaftRole::Follower, RaftRole::PreCandidate, RaftRole::Candidate, RaftRole::Learner];

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let raft = &self.replica;
        let mut gauge = |name: &str, help: &str, value: u64| {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
        };
        gauge("replica_id", "The replica's id", raft.replica.0)?;
        gauge("raft_term", "The current term", raft.term.0)?;
        gauge("raft_leader_id", "Who leads, as far as this replica knows; 0 for nobody", raft.leader.0)?;
        gauge("raft_commit_index", "The commit index", raft.commit.0)?;
        gauge("raft_applied_index", "The last position applied", raft.applied.0)?;
        gauge("raft_persisted_index", "The last position on disk", raft.persisted.0)?;
        gauge("raft_last_index", "The last position of the log", raft.last.0)?;
        gauge("raft_snapshot_index", "The newest durable snapshot", raft.snapshot.0)?;
        gauge("raft_log_bytes", "Bytes of log held in memory", raft.log_bytes)?;
        gauge("raft_full_copy", "1 if this replica holds the whole history", u64::from(raft.full_copy))?;
        gauge("raft_voters", "Voters of the configuration in force", raft.configuration.voters.len() as u64)?;
        gauge("raft_learners", "Learners of the configuration in force", raft.configuration.learners.len() as u64)?;
        gauge("journal_sequence", "The journal's last sequence", self.summary.sequence.0)?;
        gauge("journal_age_seconds", "Replicated time", self.summary.age.0 / 1_000_000)?;
        gauge("journal_vclusters", "Known vClusters", self.summary.vclusters)?;
        gauge("journal_nodes", "Known nodes", self.summary.nodes)?;
        gauge("journal_sessions", "Open client sessions", self.summary.sessions)?;
        gauge(
            "journal_overlays_behind",
            "vClusters whose stored overlay is missing or older than what is declared; for more than a moment, see boot.md",
            self.overlays_behind,
        )?;
        gauge("disk_bytes", "What the data directory takes", self.disk_bytes)?;
        gauge("uptime_seconds", "How long the process has run", self.uptime_seconds)?;
        gauge("boot_places", "Boots that may be under way", u64::from(self.boots.places))?;
        gauge("boot_places_taken", "Boots that are under way", u64::from(self.boots.under_way))?;
        gauge("client_connections", "Open connections of clients", self.connections.open)?;
        if let Some(tls) = &self.tls {
            let ends = "When the replica's certificate ends, in seconds since the epoch";
            gauge("tls_certificate_expires_seconds", ends, tls.certificate_expires)?;
            gauge(
                "tls_ca_expires_seconds",
                "When the CA's certificate ends, in seconds since the epoch",
                tls.ca_expires,
            )?;
        }
        let (boots, connections) = (&self.boots, &self.connections);
        let mut counters = vec![
            ("boot_begun", "Boots begun", boots.begun),
            ("boot_bytes", "Bytes of overlays and deltas handed to nodes", boots.bytes),
            ("boot_told_to_wait", "Boots told to come back: every place was taken", boots.told_to_wait),
            ("boot_sent_elsewhere", "Boots told to ask another replica: this one led", boots.sent_elsewhere),
            ("boot_too_often", "Boots told to come back: the same node asked too often", boots.too_often),
            ("boot_stalled", "Boots cut: they took longer than they may", boots.stalled),
            ("boot_overlays_built", "Overlays built because one was missing", boots.built),
            ("client_connections_turned_away", "Connections closed: there were too many", connections.turned_away),
            ("client_connections_idle", "Connections closed: nothing was asked on them", connections.idle),
        ];
        if let Some(TlsFigures { counts, .. }) = self.tls {
            counters.extend([
                (
                    "tls_refused_connections",
                    "Connections refused: no certificate, one not accepted here, or no TLS",
                    counts.refused,
                ),
                (
                    "tls_unfinished_handshakes",
                    "Handshakes not finished in time, or given up for newer ones",
                    counts.given_up,
                ),
            ]);
        }
        for (name, help, value) in counters {
            let mut counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            counter.encode_counter::<prometheus_client::encoding::NoLabelSet, _, u64>(&value, None)?;
        }

        let mut counter = encoder.encode_descriptor(
            "raft_refused_messages",
            "Peer messages refused since the start",
            None,
            MetricType::Counter,
        )?;
        counter.encode_counter::<prometheus_client::encoding::NoLabelSet, _, u64>(&raft.refused_messages, None)?;

        let mut role = encoder.encode_descriptor("raft_role", "1 for the role it has", None, MetricType::Gauge)?;
        for each in ROLES {
            role.encode_family(&[("role", each.word())])?.encode_gauge(&u64::from(raft.role == each))?;
        }
        let families: [Family; 4] = [
            ("raft_match_index", "The highest position known to be on a follower's disk; only on the leader", |p| {
                p.match_index.0
            }),
            ("raft_next_index", "The next position to send to a follower; only on the leader", |p| p.next_index.0),
            ("raft_follower_active", "1 if a follower was heard of lately; only on the leader", |p| {
                u64::from(p.recent_active)
            }),
            ("raft_follower_full_copy", "1 if a follower holds the whole history; only on the leader", |p| {
                u64::from(p.full_copy)
            }),
        ];
        for (name, help, value) in families {
            if raft.progress.is_empty() {
                continue;
            }
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for progress in &raft.progress {
                family.encode_family(&[("replica", progress.replica.0)])?.encode_gauge(&value(progress))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_core::ids::{Age, Digest, Index, ReplicaId, Seq, Term, WallTime};
    use muster_core::log::Configuration;

    #[test]
    fn a_leader_tells_where_its_followers_are() {
        let progress = Progress {
            replica: ReplicaId(2),
            match_index: Index(41),
            next_index: Index(42),
            state: "replicate",
            paused: false,
            recent_active: true,
            pending_snapshot: None,
            full_copy: true,
        };
        let replica = ReplicaStatus {
            replica: ReplicaId(1),
            role: RaftRole::Leader,
            leader: ReplicaId(1),
            term: Term(3),
            vote: ReplicaId(1),
            commit: Index(41),
            applied: Index(41),
            persisted: Index(41),
            last: Index(42),
            first: Index(1),
            snapshot: Index(0),
            log_bytes: 0,
            full_copy: true,
            configuration: Configuration::default(),
            progress: vec![progress],
            refused_messages: 5,
            snapshot_digest: None,
        };
        let summary = Summary {
            sequence: Seq(7),
            head: Digest::default(),
            applied: Index(41),
            age: Age(9_000_000),
            recorded_at: WallTime(0),
            feature_level: 1,
            vclusters: 2,
            nodes: 290,
            sessions: 0,
        };
        let boots = BootCounts { under_way: 3, places: 8, stalled: 2, ..BootCounts::default() };
        let connections = ConnectionCounts::default();
        let scrape = Scrape {
            replica,
            summary,
            overlays_behind: 1,
            disk_bytes: 10,
            uptime_seconds: 1,
            boots,
            connections,
            tls: None,
        };
        let text = scrape.text().unwrap();
        for line in [
            "muster_raft_term 3",
            "muster_raft_role{role=\"leader\"} 1",
            "muster_raft_role{role=\"follower\"} 0",
            "muster_raft_match_index{replica=\"2\"} 41",
            "muster_raft_refused_messages_total 5",
            "muster_journal_age_seconds 9",
            "muster_journal_overlays_behind 1",
            "muster_boot_places_taken 3",
            "muster_boot_stalled_total 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
