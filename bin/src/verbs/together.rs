//! A rollout's last step for a whole vCluster: one commit for all of its nodes, instead of one for each.
//!
//! What every node of a vCluster holds and stands well with is what the vCluster is to be: for nodes that join later too, and
//! with nothing left in the nodes' own scopes that would hide what is declared for all of them later. So the change is declared
//! once, and every node finds that it is what is declared.
//!
//! Only if nobody failed: what a node could not bear is not declared for it. And only if no node says something of its own about
//! the keys, which would count more there.

use super::{scope_or_nothing, senseless};
use crate::args::AuthorArgs;
use crate::exit::{Failure, UNKNOWN, written};
use crate::verbs::write::draft;
use muster_core::agent::value;
use muster_core::ids::{NodeId, Seq, VClusterId};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::entry::{Author, Change, EntryDraft, EntryType};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::request::{Command, Freshness, Reply};
use muster_net::client::{Client, OneShot};
use std::sync::Arc;
use tokio::sync::Mutex;

/// The commit for all.
pub(super) struct Together {
    vcluster: VClusterId,
    client: Client,
    author: Author,
    command: Command,
    /// The one request that carries it, and what it was recorded as.
    request: Mutex<(Option<OneShot>, Option<Seq>)>,
}

impl Together {
    /// Looks whether it could be declared, before anything is touched.
    pub(super) async fn prepare(
        client: Client,
        author: &AuthorArgs,
        vcluster: VClusterId,
        nodes: &[NodeId],
        changes: &[(Key, Setting)],
        message: &str,
    ) -> Result<Self, Failure> {
        let mut hidden = Vec::new();
        for node in nodes {
            let (_, own) = scope_or_nothing(&client, Freshness::Local, &Scope::Node(node.clone())).await?;
            let hides = own.iter().filter(|declared| changes.iter().any(|(key, _)| *key == declared.key));
            hidden.extend(hides.map(|declared| (node.clone(), declared.key.clone(), declared.sequence)));
        }
        if let Some((node, key, _)) = hidden.first() {
            let list: Vec<String> =
                hidden.iter().map(|(node, key, sequence)| format!("{node}: {key} (sequence {sequence})")).collect();
            return Err(Failure::error(
                format!(
                    "these nodes say something of their own, which would count more than what {vcluster} says: {}",
                    list.join("; ")
                ),
                format!(
                    "take it off first, `muster commit --scope node:{node} --unset {key} -m WHY`; or name the nodes with --node"
                ),
            ));
        }
        let scope = Scope::VCluster(vcluster.clone());
        let (head, declared) = scope_or_nothing(&client, Freshness::Linearizable, &scope).await?;
        let previous = |key: &Key| {
            let declared = declared.iter().find(|declared| declared.key == *key);
            declared.map_or(Setting::Unset, |declared| declared.setting.clone())
        };
        let mut list = Vec::new();
        for (key, next) in changes {
            let next =
                value::check_setting(key, next).map_err(|unfit| Failure::usage(format!("{key}: {unfit}"), ""))?;
            list.push(Change { key: key.clone(), previous: previous(key), next });
        }
        let draft = EntryDraft { changes: list, message: Arc::from(message), ..draft(EntryType::Commit, scope, head) };
        let command = Command::Journal(JournalCommand::AppendEntry(draft));
        let author = author.author()?;
        Ok(Self { vcluster, client, author, command, request: Mutex::default() })
    }

    /// Declares it, once however often it is asked; asked again after a failure, it is the same request again.
    pub(super) async fn declare(&self) -> Result<Seq, Failure> {
        let mut request = self.request.lock().await;
        if let Some(sequence) = request.1 {
            return Ok(sequence);
        }
        let command = self.command.clone();
        let (outcome, drawn) = if let Some(drawn) = request.0 {
            (self.client.write_again(drawn, &self.author, command).await, drawn)
        } else {
            let drawn = *request.0.insert(self.client.draw().await?);
            (self.client.write_once(drawn, &self.author, command).await, drawn)
        };
        let reply = written(outcome, Some(drawn)).inspect_err(|failure| {
            // What is certainly not recorded may be asked under another id; what may be, under this one alone.
            if failure.code != UNKNOWN {
                request.0 = None;
            }
        })?;
        let Reply::Recorded { sequence } = reply else { return Err(senseless()) };
        request.1 = Some(sequence);
        Ok(sequence)
    }

    /// Where it is declared, if it is.
    pub(super) async fn declared(&self) -> Option<(VClusterId, Seq)> {
        Some((self.vcluster.clone(), self.request.lock().await.1?))
    }
}
