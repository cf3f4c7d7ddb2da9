//! `query.proto`.

use super::{At, Malformed, Wire, all, many, need, text};
use crate::proto::v1 as wire;
use muster_core::ids::{Age, Index, Seq, WallTime};
use muster_core::journal::command::ConfigState;
use muster_core::journal::key::{Scope, Setting};
use muster_core::query::{Answer, Declared, Effective, NodeSummary, Query, Summary, VClusterSummary};
use muster_core::request::Freshness;
use std::sync::Arc;

const NOTHING: wire::Nothing = wire::Nothing {};

impl Wire for Freshness {
    type Wire = wire::Freshness;
    fn to_wire(&self) -> wire::Freshness {
        use wire::freshness::Freshness as W;
        let freshness = match self {
            Self::Local => W::Local(NOTHING),
            Self::AtLeast(sequence) => W::AtLeast(sequence.0),
            Self::Leased => W::Leased(NOTHING),
            Self::Linearizable => W::Linearizable(NOTHING),
        };
        wire::Freshness { freshness: Some(freshness) }
    }
    fn from_wire(wire: wire::Freshness) -> Result<Self, Malformed> {
        use wire::freshness::Freshness as W;
        Ok(match wire.freshness {
            None | Some(W::Local(wire::Nothing {})) => Self::Local,
            Some(W::AtLeast(sequence)) => Self::AtLeast(Seq(sequence)),
            Some(W::Leased(wire::Nothing {})) => Self::Leased,
            Some(W::Linearizable(wire::Nothing {})) => Self::Linearizable,
        })
    }
}

impl Wire for Query {
    type Wire = wire::Query;
    fn to_wire(&self) -> wire::Query {
        use wire::query::Query as W;
        let query = match self {
            Self::Summary => W::Summary(NOTHING),
            Self::Scope(scope) => W::Scope(scope.to_wire()),
            Self::Node(node) => W::Node(node.to_string()),
            Self::Policy(vcluster) => W::PolicyOfVcluster(vcluster.to_string()),
            Self::VClusters => W::Vclusters(NOTHING),
            Self::Nodes(vcluster) => W::NodesOfVcluster(vcluster.as_ref().map(ToString::to_string).unwrap_or_default()),
            Self::Members => W::Members(NOTHING),
        };
        wire::Query { query: Some(query) }
    }
    fn from_wire(wire: wire::Query) -> Result<Self, Malformed> {
        use wire::query::Query as W;
        let want = "give one of summary, scope, node, policy_of_vcluster, vclusters, nodes_of_vcluster, members";
        Ok(match wire.query.ok_or_else(|| Malformed::new("", want))? {
            W::Summary(wire::Nothing {}) => Self::Summary,
            W::Scope(scope) => Self::Scope(Scope::from_wire(scope).at("scope")?),
            W::Node(node) => Self::Node(text("node", &node)?),
            W::PolicyOfVcluster(vcluster) => Self::Policy(text("policy_of_vcluster", &vcluster)?),
            W::Vclusters(wire::Nothing {}) => Self::VClusters,
            W::NodesOfVcluster(all) if all.is_empty() => Self::Nodes(None),
            W::NodesOfVcluster(vcluster) => Self::Nodes(Some(text("nodes_of_vcluster", &vcluster)?)),
            W::Members(wire::Nothing {}) => Self::Members,
        })
    }
}

impl Wire for Summary {
    type Wire = wire::Summary;
    fn to_wire(&self) -> wire::Summary {
        wire::Summary {
            sequence: self.sequence.0,
            head: self.head.to_string(),
            applied: self.applied.0,
            age: self.age.0,
            recorded_at_ms: self.recorded_at.0,
            feature_level: self.feature_level,
            vclusters: self.vclusters,
            nodes: self.nodes,
            sessions: self.sessions,
        }
    }
    fn from_wire(wire: wire::Summary) -> Result<Self, Malformed> {
        Ok(Self {
            sequence: Seq(wire.sequence),
            head: text("head", &wire.head)?,
            applied: Index(wire.applied),
            age: Age(wire.age),
            recorded_at: WallTime(wire.recorded_at_ms),
            feature_level: wire.feature_level,
            vclusters: wire.vclusters,
            nodes: wire.nodes,
            sessions: wire.sessions,
        })
    }
}

impl Wire for Declared {
    type Wire = wire::Declared;
    fn to_wire(&self) -> wire::Declared {
        wire::Declared {
            key: self.key.to_string(),
            setting: Some(self.setting.to_wire()),
            sequence: self.sequence.0,
            expires_at: self.expires_at.map(|age| age.0),
        }
    }
    fn from_wire(wire: wire::Declared) -> Result<Self, Malformed> {
        Ok(Self {
            key: text("key", &wire.key)?,
            setting: Setting::from_wire(wire.setting.unwrap_or_default()).at("setting")?,
            sequence: Seq(wire.sequence),
            expires_at: wire.expires_at.map(Age),
        })
    }
}

impl Wire for Effective {
    type Wire = wire::Effective;
    fn to_wire(&self) -> wire::Effective {
        wire::Effective {
            key: self.key.to_string(),
            setting: Some(self.setting.to_wire()),
            scope: Some(self.scope.to_wire()),
            sequence: self.sequence.0,
        }
    }
    fn from_wire(wire: wire::Effective) -> Result<Self, Malformed> {
        Ok(Self {
            key: text("key", &wire.key)?,
            setting: Setting::from_wire(wire.setting.unwrap_or_default()).at("setting")?,
            scope: need("scope", wire.scope)?,
            sequence: Seq(wire.sequence),
        })
    }
}

impl Wire for VClusterSummary {
    type Wire = wire::VClusterSummary;
    fn to_wire(&self) -> wire::VClusterSummary {
        wire::VClusterSummary {
            vcluster: self.vcluster.to_string(),
            policy_sequence: self.policy_sequence.0,
            config_version: self.config_version.0,
            overlay_version: self.overlay_version.map(|version| version.0),
            overlay_bytes: self.overlay_bytes,
            nodes: self.nodes,
        }
    }
    fn from_wire(wire: wire::VClusterSummary) -> Result<Self, Malformed> {
        Ok(Self {
            vcluster: text("vcluster", &wire.vcluster)?,
            policy_sequence: Seq(wire.policy_sequence),
            config_version: Seq(wire.config_version),
            overlay_version: wire.overlay_version.map(Seq),
            overlay_bytes: wire.overlay_bytes,
            nodes: wire.nodes,
        })
    }
}

impl Wire for NodeSummary {
    type Wire = wire::NodeSummary;
    fn to_wire(&self) -> wire::NodeSummary {
        wire::NodeSummary {
            node: self.node.to_string(),
            vcluster: self.vcluster.as_ref().map(ToString::to_string),
            state: self.state.to_wire(),
            since: self.since.0,
            emergency_reason: self.emergency_reason.as_deref().map(str::to_owned),
        }
    }
    fn from_wire(wire: wire::NodeSummary) -> Result<Self, Malformed> {
        Ok(Self {
            node: text("node", &wire.node)?,
            vcluster: wire.vcluster.map(|name| text("vcluster", &name)).transpose()?,
            state: ConfigState::from_wire(wire.state).at("state")?,
            since: Seq(wire.since),
            emergency_reason: wire.emergency_reason.map(Arc::from),
        })
    }
}

impl Wire for Answer {
    type Wire = wire::Answer;
    fn to_wire(&self) -> wire::Answer {
        use wire::answer::Answer as W;
        let answer = match self {
            Self::Summary(summary) => W::Summary(summary.to_wire()),
            Self::Scope { head, settings } => W::Scope(wire::ScopeAnswer { head: head.0, settings: all(settings) }),
            Self::Node { node, settings } => {
                W::Node(wire::NodeAnswer { node: Some(node.to_wire()), settings: all(settings) })
            }
            Self::Policy { sequence, policy } => {
                W::Policy(wire::PolicyAnswer { sequence: sequence.0, policy: Some(policy.to_wire()) })
            }
            Self::VClusters(vclusters) => W::Vclusters(wire::VClustersAnswer { vclusters: all(vclusters) }),
            Self::Nodes(nodes) => W::Nodes(wire::NodesAnswer { nodes: all(nodes) }),
            Self::Members(members) => W::Members(wire::MembersAnswer { members: all(members) }),
        };
        wire::Answer { answer: Some(answer) }
    }
    fn from_wire(wire: wire::Answer) -> Result<Self, Malformed> {
        use wire::answer::Answer as W;
        Ok(match super::required("answer", wire.answer)? {
            W::Summary(summary) => Self::Summary(Summary::from_wire(summary).at("summary")?),
            W::Scope(scope) => {
                Self::Scope { head: Seq(scope.head), settings: many("settings", scope.settings).at("scope")? }
            }
            W::Node(node) => {
                Self::Node { node: need("node.node", node.node)?, settings: many("node.settings", node.settings)? }
            }
            W::Policy(policy) => {
                Self::Policy { sequence: Seq(policy.sequence), policy: need("policy.policy", policy.policy)? }
            }
            W::Vclusters(vclusters) => Self::VClusters(many("vclusters", vclusters.vclusters)?),
            W::Nodes(nodes) => Self::Nodes(many("nodes", nodes.nodes)?),
            W::Members(members) => Self::Members(many("members", members.members)?),
        })
    }
}
