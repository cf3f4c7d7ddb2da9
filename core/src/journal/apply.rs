//! How a command changes the journal: first everything is checked against live state, then all of it happens.
//!
//! Checking gives a plan or a refusal and changes nothing; carrying a plan out cannot fail. So a command has one outcome,
//! the same on every replica, and nothing is ever half done.
//!
//! Never reads a past record, a clock or randomness.

use super::check::{self, invalid};
use super::command::{ConfigState, JournalCommand};
use super::document::line_bytes;
use super::entry::{
    AdminOperation, Author, Change, ConfigEntry, EntryDraft, EntryType, OperationDraft, OperationKind, Record,
};
use super::key::{Key, Scope, Setting};
use super::live::{Emergency, Journal, Node, VCluster, is_weighed, weight_of};
use super::stack::{CannotReturn, Pair, Stack};
use crate::codec;
use crate::ids::{Age, Digest, NodeId, Seq, VClusterId, WallTime};
use crate::limits::{DECLARED_BYTES_MAX, FEATURE_BOUND, RECORD_BYTES_MAX, STACK_DEPTH_MAX, TAKES_OFF_MAX};
use crate::request::{Refusal, Reply};
use crate::storage::Segment;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;

/// A record as history stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its place in the journal.
    pub sequence: Seq,
    /// The encoded record, version byte included.
    pub bytes: Bytes,
    /// The chain's head after it: the one before, `chain(&bytes)`.
    pub head: Digest,
}

/// When a command is applied, and where its records go.
pub(crate) struct Moment<'a> {
    pub(crate) age: Age,
    /// The leader's wall clock.
    pub(crate) wall: WallTime,
    pub(crate) finished: &'a mut Vec<Finished>,
}

/// A command that was checked, and what follows from it.
pub(crate) enum Plan {
    Entry(EntryDraft, Effect),
    NodeState(NodeId, ConfigState),
    Policy(VClusterId, super::policy::Policy),
    Overlay { vcluster: VClusterId, overlay: super::overlay::BootOverlay, keep: bool },
    Operation(OperationDraft),
}

impl Plan {
    /// The scope of an entry that moves its node into, out of or between vClusters.
    pub(crate) fn moves_node(&self) -> Option<&Scope> {
        match self {
            Self::Entry(draft, effect) => {
                let touched =
                    effect.delta.iter().map(|change| &change.key).chain(effect.takes_off.iter().map(|(key, _)| key));
                let moves = draft.entry_type.pushes() || draft.entry_type == EntryType::Rollback;
                (moves && touched.into_iter().any(Key::is_vcluster)).then_some(&draft.scope)
            }
            Self::NodeState(..) | Self::Policy(..) | Self::Overlay { .. } | Self::Operation(_) => None,
        }
    }
}

/// What an entry does to its scope's stacks.
#[derive(Debug, Default)]
pub(crate) struct Effect {
    delta: Vec<Change>,
    takes_off: Vec<(Key, Seq)>,
}

fn setting_bytes(setting: &Setting) -> usize {
    match setting {
        Setting::Unset | Setting::Absent => 1,
        Setting::Value(value) => value.len() + 4,
    }
}

impl Effect {
    fn bytes(change: &Change) -> usize {
        change.key.as_str().len() + setting_bytes(&change.previous) + setting_bytes(&change.next)
    }
}

impl Journal {
    /// Checks a command against live state, under a feature level.
    pub(crate) fn plan(&self, command: JournalCommand, level: u32) -> Result<Plan, Refusal> {
        match command {
            JournalCommand::AppendEntry(draft) => {
                check::draft(&draft, level)?;
                let effect = self.effect(&draft)?;
                if level >= FEATURE_BOUND && draft.entry_type.pushes() {
                    self.check_weight(&draft, &effect)?;
                }
                Ok(Plan::Entry(draft, effect))
            }
            JournalCommand::UpdateNodeState { node, state } => {
                self.check_transition(&node, state)?;
                Ok(Plan::NodeState(node, state))
            }
            JournalCommand::SetPolicy { vcluster, policy } => {
                check::policy(&policy)?;
                Ok(Plan::Policy(vcluster, policy))
            }
            JournalCommand::SetOverlay { vcluster, overlay } => {
                check::overlay(&overlay)?;
                self.known(&Scope::VCluster(vcluster.clone()))?;
                let keep = self.keeps_overlay(&vcluster, overlay.version)?;
                Ok(Plan::Overlay { vcluster, overlay, keep })
            }
            JournalCommand::RecordOperation(draft) => {
                check::operation(&draft)?;
                self.known(&draft.scope)?;
                Ok(Plan::Operation(draft))
            }
        }
    }

    /// Does what was planned.
    pub(crate) fn carry_out(&mut self, moment: &mut Moment<'_>, author: Author, plan: Plan) -> Reply {
        match plan {
            Plan::Entry(draft, effect) => {
                Reply::Recorded { sequence: self.append_entry(moment, author, draft, effect) }
            }
            Plan::NodeState(id, state) => {
                if let Some(node) = self.nodes.get_mut(&id)
                    && node.state != state
                {
                    node.state = state;
                    node.since = Seq(0);
                }
                Reply::NodeState { state }
            }
            Plan::Policy(vcluster, policy) => {
                Reply::Recorded { sequence: self.set_policy(moment, author, &vcluster, policy) }
            }
            Plan::Overlay { vcluster, overlay, keep } => {
                let version = overlay.version;
                if !keep && let Some(old) = self.vcluster(&vcluster).cloned() {
                    self.put_vcluster(&vcluster, VCluster { overlay: Some(overlay), ..old });
                }
                Reply::Overlay { version }
            }
            Plan::Operation(draft) => Reply::Recorded { sequence: self.record_operation(moment, author, draft) },
        }
    }

    // ---- entries ----

    fn effect(&self, draft: &EntryDraft) -> Result<Effect, Refusal> {
        let head = self.sequence;
        for sequence in [Some(draft.parent), draft.based_on].into_iter().flatten() {
            if sequence > head {
                return Err(Refusal::FutureParent { parent: sequence, head });
            }
        }
        if let Some(vcluster) = draft.changes.iter().find(|change| change.key.is_vcluster()) {
            if let Setting::Value(name) = &vcluster.next {
                let id = VClusterId::new(name).map_err(|error| invalid("vcluster", format!("{error}")))?;
                self.known(&Scope::VCluster(id))?;
            }
        } else {
            self.known(&draft.scope)?;
        }
        match draft.entry_type {
            EntryType::Commit | EntryType::AutoConverge | EntryType::BootConfig => self.push_effect(draft),
            // What was undone on a node: a record, and the end of its drift.
            EntryType::Rollback if !draft.changes.is_empty() => {
                Ok(Effect { delta: draft.changes.clone(), takes_off: Vec::new() })
            }
            EntryType::Rollback => self.rollback_effect(draft),
            EntryType::EmergencyStart | EntryType::EmergencyEnd => {
                self.check_emergency(draft)?;
                Ok(Effect { delta: draft.changes.clone(), takes_off: Vec::new() })
            }
            EntryType::DriftDetected
            | EntryType::CapabilityChange
            | EntryType::ServiceLifecycle
            | EntryType::PolicyUpdate
            | EntryType::ExecLog
            | EntryType::ShellSession => Ok(Effect { delta: draft.changes.clone(), takes_off: Vec::new() }),
        }
    }

    fn push_effect(&self, draft: &EntryDraft) -> Result<Effect, Refusal> {
        let mut effect = Effect::default();
        let mut bytes = 0;
        for change in &draft.changes {
            let stack = self.stack(&draft.scope, &change.key);
            let previous = stack.map_or(Setting::Unset, Stack::setting);
            if let Some(stack) = stack {
                if stack.last_touch() > draft.parent {
                    return Err(Refusal::Conflict {
                        key: change.key.clone(),
                        theirs: previous,
                        theirs_sequence: stack.last_touch(),
                        yours: change.next.clone(),
                    });
                }
                if !stack.has_room(draft.ttl_seconds.is_some()) {
                    let max = u32::try_from(STACK_DEPTH_MAX).unwrap_or(u32::MAX);
                    return Err(Refusal::TooManyTemporary { key: change.key.clone(), max });
                }
            }
            let change = Change { key: change.key.clone(), previous, next: change.next.clone() };
            bytes += Effect::bytes(&change);
            effect.delta.push(change);
        }
        if bytes > RECORD_BYTES_MAX {
            return Err(invalid(
                "changes",
                format!("what was and what is to be come to {bytes} bytes, at most {RECORD_BYTES_MAX} fit: split it"),
            ));
        }
        Ok(effect)
    }

    /// Refuses a push after which its scope would declare more than overlays have room for. What makes a scope lighter is
    /// accepted, however heavy it is.
    fn check_weight(&self, draft: &EntryDraft, effect: &Effect) -> Result<(), Refusal> {
        if !is_weighed(&draft.scope) {
            return Ok(());
        }
        let now = self.weight(&draft.scope);
        let pushed: u64 = effect.delta.iter().map(|change| line_bytes(&change.key, &change.next)).sum();
        // Nearly everything fits even if it replaced nothing.
        if now + pushed <= DECLARED_BYTES_MAX {
            return Ok(());
        }
        let mut then = now;
        for change in &effect.delta {
            let old = self.stack(&draft.scope, &change.key).map_or(0, |stack| weight_of(&change.key, stack));
            let new = line_bytes(&change.key, &change.next);
            // What is temporary comes off again.
            then = then - old + if draft.ttl_seconds.is_some() { new.max(old) } else { new };
        }
        if then <= DECLARED_BYTES_MAX || then <= now {
            return Ok(());
        }
        Err(invalid(
            "changes",
            format!(
                "{} would declare {then} bytes, at most {DECLARED_BYTES_MAX} fit the overlay that its nodes boot from: unset \
                 what is not needed, or keep large content elsewhere and declare where",
                draft.scope
            ),
        ))
    }

    fn rollback_effect(&self, draft: &EntryDraft) -> Result<Effect, Refusal> {
        let target = draft.parent;
        let based_on = draft.based_on.unwrap_or(target);
        let mut effect = Effect::default();
        let mut bytes = 0;
        for (touch, key) in self.touched_after(&draft.scope, target) {
            let Some(stack) = self.stack(&draft.scope, key) else { continue };
            stack.may_return_to(target).map_err(|why| match why {
                CannotReturn::RolledBack(gone) => {
                    Refusal::TargetRolledBack { key: key.clone(), pair: gone.pair, taken_off_by: gone.taken_off_by }
                }
                CannotReturn::TooFarBack { remembered_from } => {
                    Refusal::TooFarBack { key: key.clone(), remembered_from }
                }
            })?;
            let keep = stack.live.partition_point(|pair| pair.sequence <= target);
            if keep == stack.live.len() {
                continue;
            }
            let next = stack.live.iter().take(keep).next_back().map_or(Setting::Unset, |pair| pair.setting.clone());
            if touch > based_on {
                return Err(Refusal::Conflict {
                    key: key.clone(),
                    theirs: stack.setting(),
                    theirs_sequence: touch,
                    yours: next,
                });
            }
            effect.takes_off.extend(stack.live.iter().skip(keep).map(|pair| (key.clone(), pair.sequence)));
            let change = Change { key: key.clone(), previous: stack.setting(), next };
            bytes += Effect::bytes(&change);
            if change.previous != change.next {
                effect.delta.push(change);
            }
            if bytes > RECORD_BYTES_MAX || effect.takes_off.len() > TAKES_OFF_MAX {
                return Err(invalid(
                    "parent",
                    format!("rolling back to {target} does not fit one record: return to a later sequence first"),
                ));
            }
        }
        if effect.takes_off.is_empty() {
            return Err(Refusal::NothingToRollBack);
        }
        effect.takes_off.sort_unstable();
        effect.delta.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(effect)
    }

    fn append_entry(&mut self, moment: &mut Moment<'_>, author: Author, draft: EntryDraft, effect: Effect) -> Seq {
        let sequence = self.sequence.next();
        let scope = draft.scope.clone();
        let kind = draft.entry_type;
        let expires_at = draft.ttl_seconds.map(|seconds| moment.age.plus_seconds(u64::from(seconds)));
        if kind.pushes() {
            for change in &effect.delta {
                let pair = Pair { sequence, setting: change.next.clone(), expires_at };
                self.will_expire(&scope, &change.key, &pair);
                let forgotten = self.with_stack(&scope, &change.key, |stack| stack.push(pair));
                if let Some(pair) = forgotten {
                    self.will_not_expire(&scope, &change.key, &pair);
                }
            }
        }
        let mut off = effect.takes_off.iter().map(|(key, _)| key).collect::<Vec<_>>();
        off.dedup();
        for key in off {
            for pair in self.with_stack(&scope, key, |stack| stack.return_to(draft.parent, sequence)) {
                self.will_not_expire(&scope, key, &pair);
            }
        }
        let moved = effect.delta.iter().any(|change| change.key.is_vcluster());
        self.after_config(kind, &scope, sequence, moved);
        if let Scope::Node(id) = &scope {
            let undone = kind == EntryType::Rollback && effect.takes_off.is_empty();
            self.move_node(id, (kind, undone), sequence, draft.emergency_reason.as_ref());
        }
        let entry = ConfigEntry {
            sequence,
            recorded_at: self.monotone(moment.wall),
            occurred_at: draft.occurred_at,
            entry_type: kind,
            policy_ref: self.policy_ref(&scope),
            scope,
            author,
            parent: draft.parent,
            based_on: draft.based_on,
            delta: effect.delta,
            takes_off: effect.takes_off,
            policy: None,
            ttl_seconds: draft.ttl_seconds,
            emergency_reason: draft.emergency_reason,
            message: draft.message,
        };
        self.record(moment, &Record::Entry(entry));
        sequence
    }

    /// What follows from an entry that changes what is declared.
    fn after_config(&mut self, kind: EntryType, scope: &Scope, sequence: Seq, assignment_moved: bool) {
        if kind.pushes() || matches!(kind, EntryType::Rollback | EntryType::PolicyUpdate) {
            self.overlays_must_contain(scope, sequence);
        }
        if let Scope::Node(id) = scope
            && assignment_moved
        {
            self.assign(id, sequence);
        }
    }

    /// Takes off at most `pairs_max` pairs of the entry that is due first, as a Rollback entry of `system:expiry`. None if
    /// nothing is due; else how many pairs it took off.
    pub(crate) fn expire_next(&mut self, moment: &mut Moment<'_>, pairs_max: usize) -> Option<usize> {
        let (due, expired, scope, _) = self.expiring.get_min().filter(|(due, ..)| *due <= moment.age)?.clone();
        let mut keys = Vec::new();
        let mut bytes = 0;
        for (at, of, _, key) in self.expiring.range((due, expired, Scope::Global, Key::least())..) {
            if (*at, *of) != (due, expired) || keys.len() == pairs_max {
                break;
            }
            if let Some(stack) = self.stack(&scope, key) {
                let (previous, next) = (stack.setting(), stack.setting_without(expired));
                bytes += Effect::bytes(&Change { key: key.clone(), previous, next });
            }
            if bytes > RECORD_BYTES_MAX && !keys.is_empty() {
                break;
            }
            keys.push(key.clone());
        }
        let sequence = self.sequence.next();
        let mut effect = Effect::default();
        for key in keys {
            let (previous, pair, next) = self.with_stack(&scope, &key, |stack| {
                let previous = stack.setting();
                let pair = stack.expire(expired, sequence);
                (previous, pair, stack.setting())
            });
            let pair = pair.unwrap_or_else(|| panic!("{key} of {scope} is due to expire at {expired} but is not live"));
            self.will_not_expire(&scope, &key, &pair);
            effect.takes_off.push((key.clone(), expired));
            if previous != next {
                effect.delta.push(Change { key, previous, next });
            }
        }
        let count = effect.takes_off.len();
        let moved = effect.delta.iter().any(|change| change.key.is_vcluster());
        self.after_config(EntryType::Rollback, &scope, sequence, moved);
        let entry = ConfigEntry {
            sequence,
            recorded_at: self.monotone(moment.wall),
            occurred_at: None,
            entry_type: EntryType::Rollback,
            policy_ref: self.policy_ref(&scope),
            scope,
            author: Author::system("expiry"),
            parent: expired,
            based_on: None,
            delta: effect.delta,
            takes_off: effect.takes_off,
            policy: None,
            ttl_seconds: None,
            emergency_reason: None,
            message: Arc::from(""),
        };
        self.record(moment, &Record::Entry(entry));
        Some(count)
    }

    // ---- nodes ----

    fn check_transition(&self, id: &NodeId, to: ConfigState) -> Result<(), Refusal> {
        use ConfigState::{Committed, Converging, Drifted};
        self.known(&Scope::Node(id.clone()))?;
        let from = self.nodes.get(id).map_or(Committed, |node| node.state);
        let legal = from == to
            || matches!(
                (from, to),
                (Committed | Converging, Drifted) | (Drifted | Converging, Committed) | (Drifted, Converging)
            );
        if legal { Ok(()) } else { Err(Refusal::IllegalTransition { from, to }) }
    }

    fn check_emergency(&self, draft: &EntryDraft) -> Result<(), Refusal> {
        let Scope::Node(id) = &draft.scope else { return Ok(()) };
        let Some(node) = self.nodes.get(id) else { return Ok(()) };
        let starts = draft.entry_type == EntryType::EmergencyStart;
        match (starts, &node.emergency) {
            (true, Some(emergency)) => Err(Refusal::Emergency {
                problem: Arc::from(format!("{id} is in an emergency already: {}", emergency.reason)),
            }),
            (false, None) => Err(Refusal::Emergency {
                problem: Arc::from(format!("{id} is not in an emergency, it is {}", node.state.word())),
            }),
            (true, None) if self.policy_of(node).is_some_and(|policy| !policy.emergency_allowed) => {
                let vcluster = node.vcluster.as_ref().map_or("", |vcluster| vcluster.as_str());
                Err(Refusal::Forbidden {
                    problem: Arc::from(format!("the policy of vcluster:{vcluster} allows no emergency")),
                })
            }
            (true, None) | (false, Some(_)) => Ok(()),
        }
    }

    /// `undone`: the entry records what was undone on the node, which ends no emergency: that is said by an entry of its own.
    fn move_node(&mut self, id: &NodeId, (kind, undone): (EntryType, bool), sequence: Seq, reason: Option<&Arc<str>>) {
        let Some(node) = self.nodes.get(id) else { return };
        let (state, emergency) = match kind {
            EntryType::Rollback if undone && node.emergency.is_some() => return,
            EntryType::Commit | EntryType::Rollback => (ConfigState::Committed, None),
            EntryType::EmergencyStart => {
                let reason = reason.map_or_else(|| Arc::from(""), Arc::clone);
                (ConfigState::Emergency, Some(Emergency { reason, before: node.state }))
            }
            EntryType::EmergencyEnd => (node.emergency.as_ref().map_or(node.state, |emergency| emergency.before), None),
            EntryType::DriftDetected if node.emergency.is_none() => (ConfigState::Drifted, None),
            EntryType::DriftDetected
            | EntryType::AutoConverge
            | EntryType::CapabilityChange
            | EntryType::PolicyUpdate
            | EntryType::BootConfig
            | EntryType::ExecLog
            | EntryType::ShellSession
            | EntryType::ServiceLifecycle => return,
        };
        let since = if node.state == state { node.since } else { sequence };
        let node = Node { vcluster: node.vcluster.clone(), state, since, emergency };
        self.nodes.insert(id.clone(), node);
    }

    // ---- policies and overlays ----

    fn set_policy(
        &mut self,
        moment: &mut Moment<'_>,
        author: Author,
        id: &VClusterId,
        policy: super::policy::Policy,
    ) -> Seq {
        let sequence = self.sequence.next();
        let scope = Scope::VCluster(id.clone());
        let entry = ConfigEntry {
            sequence,
            recorded_at: self.monotone(moment.wall),
            occurred_at: None,
            entry_type: EntryType::PolicyUpdate,
            scope: scope.clone(),
            author,
            parent: self.scope_head(&scope),
            based_on: None,
            delta: Vec::new(),
            takes_off: Vec::new(),
            policy_ref: self.policy_ref(&scope),
            policy: Some(policy.clone()),
            ttl_seconds: None,
            emergency_reason: None,
            message: Arc::from(""),
        };
        let (overlay, nodes) = self.vclusters.get(id).map_or((None, 0), |old| (old.overlay.clone(), old.nodes));
        let policy = Arc::new(policy);
        self.put_vcluster(id, VCluster { policy_sequence: sequence, policy, version: sequence, overlay, nodes });
        self.record(moment, &Record::Entry(entry));
        sequence
    }

    /// Whether the stored overlay is as new as the one that is offered; refuses one that does not fit.
    fn keeps_overlay(&self, id: &VClusterId, offered: Seq) -> Result<bool, Refusal> {
        let Some(vcluster) = self.vclusters.get(id) else { return Ok(false) };
        let refuse = |problem: alloc::string::String| Err(Refusal::Overlay { problem: Arc::from(problem) });
        let config = self.config_version(vcluster);
        if offered > config {
            return refuse(format!("version {offered} is newer than the configuration of vcluster:{id}, {config}"));
        }
        match &vcluster.overlay {
            Some(stored) if offered < stored.version => {
                refuse(format!("version {offered} is older than the stored one, {}", stored.version))
            }
            Some(stored) => Ok(offered == stored.version),
            None => Ok(false),
        }
    }

    // ---- operations and records ----

    fn record_operation(&mut self, moment: &mut Moment<'_>, author: Author, draft: OperationDraft) -> Seq {
        let parent = self.scope_head(&draft.scope);
        let entry_type = match draft.kind {
            OperationKind::Exec => EntryType::ExecLog,
            OperationKind::ShellStart | OperationKind::ShellEnd => EntryType::ShellSession,
            OperationKind::Membership => unreachable!("refused when it was checked"),
        };
        let (scope, occurred_at, message) = (draft.scope.clone(), draft.occurred_at, Arc::clone(&draft.detail));
        self.record_audit(moment, author.clone(), draft);
        let entry = ConfigEntry {
            sequence: self.sequence.next(),
            recorded_at: self.monotone(moment.wall),
            occurred_at,
            entry_type,
            policy_ref: self.policy_ref(&scope),
            scope,
            author,
            parent,
            based_on: None,
            delta: Vec::new(),
            takes_off: Vec::new(),
            policy: None,
            ttl_seconds: None,
            emergency_reason: None,
            message,
        };
        self.record(moment, &Record::Entry(entry));
        self.sequence
    }

    /// Appends an audit record.
    pub(crate) fn record_audit(&mut self, moment: &mut Moment<'_>, author: Author, draft: OperationDraft) -> Seq {
        let operation = AdminOperation {
            sequence: self.sequence.next(),
            recorded_at: self.monotone(moment.wall),
            occurred_at: draft.occurred_at,
            author,
            kind: draft.kind,
            scope: draft.scope,
            detail: draft.detail,
            exit_status: draft.exit_status,
        };
        self.record(moment, &Record::Operation(operation));
        self.sequence
    }

    fn monotone(&self, wall: WallTime) -> WallTime {
        self.recorded_at.max(wall)
    }

    /// Appends a record to the chain and hands out its bytes: the only place where the sequence moves.
    fn record(&mut self, moment: &mut Moment<'_>, record: &Record) {
        let sequence = self.sequence.next();
        assert_eq!(record.sequence(), sequence, "a record must take the next sequence");
        let bytes = codec::encode_record(record);
        self.sequence = sequence;
        self.recorded_at = self.monotone(moment.wall);
        self.head = self.head.chain(&bytes);
        self.heads.insert(record.scope().clone(), sequence);
        self.open.last = sequence;
        self.open.bytes += bytes.len() as u64;
        self.open.head = self.head;
        if self.open.is_full() {
            self.sealed.push_back(self.open);
            self.open = Segment::starting(sequence.next(), self.head);
        }
        moment.finished.push(Finished { sequence, bytes, head: self.head });
    }
}
