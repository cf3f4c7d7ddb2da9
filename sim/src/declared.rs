//! What was declared at any sequence, from records alone: a second account that shares nothing with live state, its stacks and
//! its indexes, but the fold over records.

use bytes::Bytes;
use muster_core::codec;
use muster_core::ids::{Age, NodeId, Seq, VClusterId};
use muster_core::journal::entry::{EntryType, Record};
use muster_core::journal::fold::Fold;
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::policy::Policy;
use std::collections::BTreeMap;

/// What one key of one scope said, from when on. Ascending.
type Line = Vec<(Seq, Option<Setting>)>;

/// Everything that was declared, over time.
#[derive(Debug, Default)]
pub struct Declared {
    folds: BTreeMap<Scope, Fold>,
    lines: BTreeMap<(Scope, Key), Line>,
    policies: BTreeMap<VClusterId, Vec<(Seq, Policy)>>,
    /// The entries that overlays must contain, by their scope.
    versions: BTreeMap<Scope, Vec<Seq>>,
    /// When each entry with a time to live was recorded, and its seconds.
    pub temporary: BTreeMap<Seq, (Age, u32)>,
    /// Which entries were expired, at which age, by which record.
    pub expired: BTreeMap<Seq, Vec<(Age, Seq)>>,
}

fn at<T>(line: &[(Seq, T)], sequence: Seq) -> Option<&(Seq, T)> {
    let after = line.partition_point(|(from, _)| *from <= sequence);
    line.get(after.checked_sub(1)?)
}

impl Declared {
    /// Takes the next record.
    pub(crate) fn take(&mut self, bytes: &Bytes, age: Age) {
        let Ok(record) = codec::decode_record(bytes) else { return };
        let Record::Entry(entry) = &record else { return };
        let sequence = entry.sequence;
        if let Some(seconds) = entry.ttl_seconds {
            self.temporary.insert(sequence, (age, seconds));
        }
        // Expiry is the one rollback that is based on nothing.
        if entry.entry_type == EntryType::Rollback && entry.based_on.is_none() {
            self.expired.entry(entry.parent).or_default().push((age, sequence));
        }
        if let (Scope::VCluster(vcluster), Some(policy)) = (&entry.scope, &entry.policy) {
            self.policies.entry(vcluster.clone()).or_default().push((sequence, policy.clone()));
        }
        let kind = entry.entry_type;
        let common = !matches!(entry.scope, Scope::Node(_));
        if common && (kind.pushes() || matches!(kind, EntryType::Rollback | EntryType::PolicyUpdate)) {
            self.versions.entry(entry.scope.clone()).or_default().push(sequence);
        }
        let fold = self.folds.entry(entry.scope.clone()).or_insert_with(|| Fold::new(entry.scope.clone()));
        fold.push(&record);
        let now = fold.at();
        let keys = entry.delta.iter().map(|change| &change.key).chain(entry.takes_off.iter().map(|(key, _)| key));
        for key in keys {
            let says = now.get(key).map(|(_, setting)| setting.clone());
            let line = self.lines.entry((entry.scope.clone(), key.clone())).or_insert_with(|| Line::with_capacity(1));
            if line.last().is_none_or(|(from, last)| *from < sequence && *last != says) {
                line.push((sequence, says));
            }
        }
    }

    /// What a scope itself said at a sequence.
    #[must_use]
    pub fn scope(&self, scope: &Scope, sequence: Seq) -> BTreeMap<Key, Setting> {
        let says = |line: &Line| at(line, sequence).and_then(|(_, setting)| setting.clone());
        let lines = self.lines.range((scope.clone(), Key::least())..).take_while(|((of, _), _)| of == scope);
        lines.filter_map(|((_, key), line)| Some((key.clone(), says(line)?))).collect()
    }

    /// What all nodes of a vCluster had in common.
    #[must_use]
    pub fn common(&self, vcluster: &VClusterId, sequence: Seq) -> BTreeMap<Key, Setting> {
        let mut settings = self.scope(&Scope::Global, sequence);
        settings.extend(self.scope(&Scope::VCluster(vcluster.clone()), sequence));
        settings
    }

    /// The vCluster that a node was in.
    #[must_use]
    pub fn vcluster_of(&self, node: &NodeId, sequence: Seq) -> Option<VClusterId> {
        let line = self.lines.get(&(Scope::Node(node.clone()), Key::vcluster()))?;
        match at(line, sequence) {
            Some((_, Some(Setting::Value(name)))) => VClusterId::new(name).ok(),
            _ => None,
        }
    }

    /// What all nodes of a vCluster had in common about one key.
    #[must_use]
    pub fn common_setting(&self, vcluster: &VClusterId, key: &Key, sequence: Seq) -> Option<Setting> {
        let says = |scope: Scope| {
            at(self.lines.get(&(scope, key.clone()))?, sequence).and_then(|(_, setting)| setting.clone())
        };
        says(Scope::VCluster(vcluster.clone())).or_else(|| says(Scope::Global))
    }

    /// The policy of a vCluster, and the entry that set it.
    #[must_use]
    pub fn policy(&self, vcluster: &VClusterId, sequence: Seq) -> Option<&(Seq, Policy)> {
        at(self.policies.get(vcluster)?, sequence)
    }

    /// The last entry that a vCluster's overlay had to contain.
    #[must_use]
    pub fn version(&self, vcluster: &VClusterId, sequence: Seq) -> Seq {
        let last = |scope: &Scope| {
            let all = self.versions.get(scope)?;
            all.get(all.partition_point(|version| *version <= sequence).checked_sub(1)?).copied()
        };
        last(&Scope::Global).max(last(&Scope::VCluster(vcluster.clone()))).unwrap_or_default()
    }
}
