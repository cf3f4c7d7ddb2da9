//! The table: what can be asked, and what each role may of it. `docs/security.md` prints it.

use crate::ids::{NodeId, ReplicaName, VClusterId};
use crate::journal::command::JournalCommand;
use crate::journal::entry::{EntryDraft, EntryType};
use crate::journal::key::Scope;
use crate::members::{Admission, MemberCommand, MemberWish};
use crate::query::Query;
use crate::request::Command;
use alloc::string::String;
use core::fmt::Write as _;

/// What a role may of a kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Never.
    No,
    /// Whatever it is about.
    Yes,
    /// What is its own: an operator's and viewer's vCluster and the nodes in it, an agent's node, a replica's name.
    Own,
    /// What counts there: its own, Global, and for an agent its node's vCluster. A question about no scope in particular is
    /// answered with that part of the answer.
    Counts,
    /// Only at the listener that `boot.anonymous` opens.
    WhereSet,
}

impl Rule {
    /// The words used in the table.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::No => "–",
            Self::Yes => "yes",
            Self::Own => "own",
            Self::Counts => "own and global",
            Self::WhereSet => "where set",
        }
    }
}

/// What each role may of one kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Of an admin.
    pub admin: Rule,
    /// Of an operator of a vCluster.
    pub operator: Rule,
    /// Of a viewer of a vCluster.
    pub viewer: Rule,
    /// Of the agent of a node.
    pub agent: Rule,
    /// Of a replica.
    pub replica: Rule,
    /// Of who showed nothing.
    pub nobody: Rule,
    /// Of the cluster itself: what its leader proposes. Nobody outside has this role.
    pub system: Rule,
}

/// Whom an operation concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// The cluster, or no scope in particular.
    Cluster,
    /// A scope.
    Scope(Scope),
    /// A member, or one to be.
    Member(ReplicaName),
}

/// Something that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What.
    pub kind: Kind,
    /// About whom.
    pub about: About,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident $words:literal
        [$admin:ident $operator:ident $viewer:ident $agent:ident $replica:ident $nobody:ident $system:ident])*) => {
        /// The kinds of operation there are, over all interfaces.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind {
            $($(#[$doc])* $name,)*
        }
        impl Kind {
            /// All of them, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// What it is in words that fit after "may".
            #[must_use]
            pub const fn words(self) -> &'static str {
                match self { $(Self::$name => $words,)* }
            }

            /// What each role may of it.
            #[must_use]
            pub const fn row(self) -> Row {
                match self {
                    $(Self::$name => Row {
                        admin: Rule::$admin,
                        operator: Rule::$operator,
                        viewer: Rule::$viewer,
                        agent: Rule::$agent,
                        replica: Rule::$replica,
                        nobody: Rule::$nobody,
                        system: Rule::$system,
                    },)*
                }
            }
        }
    };
}

kinds! {
    //                                                   admin operator viewer agent replica nobody system
    /// Commit, auto-converge and boot-config entries.
    Declare "commit settings"                            [Yes Own No Own No No No]
    /// A boot-config entry that puts a node into a vCluster, or a rollback that takes it out: it changes who rules the node.
    AssignNode "put a node into a vCluster or take it out" [Yes No No No No No No]
    /// Rollback entries.
    RollBack "roll back"                                 [Yes Own No Own No No No]
    /// Drift, capability and service entries, and a node's state.
    Report "report on a node"                            [Yes Own No Own No No No]
    /// The beginning and end of an emergency, as entries.
    Emergency "begin or end an emergency"                [Yes Own No Own No No No]
    /// A vCluster's policy.
    SetPolicy "set a policy"                             [Yes Own No No No No No]
    /// A pre-computed overlay. The cluster builds them by itself; a wrong one would boot wrongly.
    StoreOverlay "store an overlay"                      [Yes No No No No No Yes]
    /// Audit records of commands and shells.
    RecordOperation "record an operation"                [Yes Own No Own No No No]
    /// Opening and closing sessions, without which a client cannot pipeline writes.
    Session "open or close a session"                    [Yes Yes No Yes No No No]
    /// Asking for a place in the cluster.
    Admit "have a replica admitted"                      [Yes No No No Own No Yes]
    /// Adding, promoting, demoting, removing, replacing.
    ChangeMembers "change the membership"                [Yes No No No No No Yes]
    /// Expiry and feature levels.
    Keep "keep the cluster's own house"                  [No No No No No No Yes]
    /// Status, members, replicated time, health, metrics, descriptions of the interface.
    Observe "look at the replicas"                       [Yes Yes Yes Yes Yes No No]
    /// Settings, policy, state and past states of a scope; lists of vClusters and nodes.
    Read "read what is declared"                         [Yes Counts Counts Counts No No No]
    /// The log and subscriptions.
    ReadHistory "read the history"                       [Yes Counts Counts Counts No No No]
    /// Reading and checking the whole chain.
    Verify "verify the chain"                            [Yes Yes Yes No No No No]
    /// A node's boot.
    Boot "boot a node"                                   [Yes Own Own Own No WhereSet No]
    /// How free a replica is to serve boots, and how far behind.
    AskWhoIsFree "ask who is free to serve a boot"       [Yes Yes Yes Yes Yes WhereSet No]
    /// Snapshots and leadership.
    MindReplica "take a snapshot or hand leadership over" [Yes No No No No No No]
    /// Raft messages, snapshots and history between replicas.
    Peer "speak as a peer"                               [No No No No Yes No No]
    /// At a node's agent: drift, window, state, watching.
    LookAtNode "look at a node through its agent"        [Yes Own Own No No No No]
    /// At a node's agent: change something at once.
    SetOnNode "change a node through its agent"          [Yes Own No No No No No]
    /// At a node's agent: stand by the changes.
    CommitOnNode "commit a node's changes through its agent" [Yes Own No No No No No]
    /// At a node's agent: take the changes back.
    RollBackOnNode "roll a node back through its agent"  [Yes Own No No No No No]
    /// At a node's agent: a longer window.
    ExtendWindow "extend a node's window"                [Yes Own No No No No No]
    /// At a node's agent: begin or end an emergency, by force too.
    EmergencyOnNode "begin or end an emergency through the node's agent" [Yes Own No No No No No]
    /// At a node's agent: run a command.
    Exec "run a command on a node"                       [Yes Own No No No No No]
    /// At a node's agent: open a shell.
    Shell "open a shell on a node"                       [Yes Own No No No No No]
}

impl Operation {
    /// An operation about a scope.
    #[must_use]
    pub const fn on(kind: Kind, scope: Scope) -> Self {
        Self { kind, about: About::Scope(scope) }
    }

    /// An operation about a node.
    #[must_use]
    pub const fn on_node(kind: Kind, node: NodeId) -> Self {
        Self::on(kind, Scope::Node(node))
    }

    /// An operation about the cluster, or no scope in particular.
    #[must_use]
    pub const fn of_cluster(kind: Kind) -> Self {
        Self { kind, about: About::Cluster }
    }

    /// What a write asks for. A rollback that would move a node is found only when it is planned: apply asks again then.
    #[must_use]
    pub fn of_command(command: &Command) -> Self {
        let of_vcluster = |kind, vcluster: &VClusterId| Self::on(kind, Scope::VCluster(vcluster.clone()));
        match command {
            Command::Journal(JournalCommand::AppendEntry(draft)) => Self::on(kind_of(draft), draft.scope.clone()),
            Command::Journal(JournalCommand::UpdateNodeState { node, .. }) => Self::on_node(Kind::Report, node.clone()),
            Command::Journal(JournalCommand::SetPolicy { vcluster, .. }) => of_vcluster(Kind::SetPolicy, vcluster),
            Command::Journal(JournalCommand::SetOverlay { vcluster, .. }) => of_vcluster(Kind::StoreOverlay, vcluster),
            Command::Journal(JournalCommand::RecordOperation(draft)) => {
                Self::on(Kind::RecordOperation, draft.scope.clone())
            }
            Command::Members(MemberCommand::Admit(admission)) => Self::of_admission(admission),
            Command::Members(
                MemberCommand::AddLearner(_)
                | MemberCommand::Promote(_)
                | MemberCommand::Demote(_)
                | MemberCommand::Remove(_)
                | MemberCommand::Replace { .. },
            ) => Self::of_cluster(Kind::ChangeMembers),
            Command::OpenSession | Command::CloseSession => Self::of_cluster(Kind::Session),
            Command::Expire | Command::RaiseFeatureLevel(_) => Self::of_cluster(Kind::Keep),
        }
    }

    /// What asking for admission asks for. One in another's place takes that one out.
    #[must_use]
    pub fn of_admission(admission: &Admission) -> Self {
        let about = About::Member(admission.name.clone());
        match admission.wish {
            MemberWish::Learner | MemberWish::Voter => Self { kind: Kind::Admit, about },
            MemberWish::Replacement { .. } => Self { kind: Kind::ChangeMembers, about },
        }
    }

    /// What a question asks for.
    #[must_use]
    pub fn of_query(query: &Query) -> Self {
        match query {
            Query::Summary | Query::Members => Self::of_cluster(Kind::Observe),
            Query::Scope(scope) => Self::on(Kind::Read, scope.clone()),
            Query::Node(node) => Self::on_node(Kind::Read, node.clone()),
            Query::Policy(vcluster) | Query::Nodes(Some(vcluster)) => {
                Self::on(Kind::Read, Scope::VCluster(vcluster.clone()))
            }
            Query::VClusters | Query::Nodes(None) => Self::of_cluster(Kind::Read),
        }
    }
}

fn kind_of(draft: &EntryDraft) -> Kind {
    match draft.entry_type {
        EntryType::Commit | EntryType::AutoConverge | EntryType::BootConfig => {
            if draft.changes.iter().any(|change| change.key.is_vcluster()) { Kind::AssignNode } else { Kind::Declare }
        }
        EntryType::Rollback => Kind::RollBack,
        EntryType::DriftDetected | EntryType::CapabilityChange | EntryType::ServiceLifecycle => Kind::Report,
        EntryType::EmergencyStart | EntryType::EmergencyEnd => Kind::Emergency,
        // Refused in this form whoever asks; each has a command of its own.
        EntryType::PolicyUpdate => Kind::SetPolicy,
        EntryType::ExecLog | EntryType::ShellSession => Kind::RecordOperation,
    }
}

/// The table as Markdown.
#[must_use]
pub fn table() -> String {
    let mut out = String::from(
        "| may … | admin | operator | viewer | agent | replica | nobody |\n|---|---|---|---|---|---|---|\n",
    );
    for kind in Kind::ALL {
        let row = kind.row();
        let words = [row.admin, row.operator, row.viewer, row.agent, row.replica, row.nobody].map(Rule::words);
        let _ = writeln!(out, "| {} | {} |", kind.words(), words.join(" | "));
    }
    out
}
