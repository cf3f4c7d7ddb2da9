//! What holds for every life of a journal, however random.

mod common;

use bytes::Bytes;
use common::{Applied, Player, Step, life, scopes, vcluster};
use muster_core::codec;
use muster_core::ids::{Age, Digest, Seq};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::document;
use muster_core::journal::entry::{Author, ConfigEntry, EntryType, Record};
use muster_core::journal::fold::{Fold, Verifier};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::limits::PAGE_BYTES;
use muster_core::request::{Command, Outcome, Reply, RequestId};
use muster_core::state::{State, StateLoader};
use muster_core::storage::{Page, Pages};
use muster_core::{boot, overlay};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn declared(state: &State, scope: &Scope) -> BTreeMap<Key, (Seq, Setting)> {
    let pairs = state.journal.declared(scope);
    pairs.map(|(key, pair)| (key.clone(), (pair.sequence, pair.setting.clone()))).collect()
}

fn rollback_of(applied: &Applied) -> Option<ConfigEntry> {
    let finished = applied.finished.first()?;
    match codec::decode_record(&finished.bytes).unwrap() {
        Record::Entry(entry) if entry.entry_type == EntryType::Rollback && entry.based_on.is_some() => Some(entry),
        Record::Entry(_) | Record::Operation(_) => None,
    }
}

/// What counted in a scope at `target`, without what expired by `now`. From records alone.
fn counted_at(records: &[Record], scope: &Scope, target: Seq, now: Seq) -> BTreeMap<Key, (Seq, Setting)> {
    let mut stacks: BTreeMap<Key, BTreeMap<Seq, Setting>> = BTreeMap::new();
    for record in records.iter().filter(|record| record.sequence() <= now && record.scope() == scope) {
        let Record::Entry(entry) = record else { continue };
        let expiry = entry.author == Author::system("expiry");
        if entry.sequence <= target && entry.entry_type.pushes() {
            for change in &entry.delta {
                stacks.entry(change.key.clone()).or_default().insert(entry.sequence, change.next.clone());
            }
        }
        if entry.sequence <= target || expiry {
            for (key, pair) in &entry.takes_off {
                if let Some(stack) = stacks.get_mut(key) {
                    stack.remove(pair);
                    if !expiry {
                        stack.retain(|pair, _| *pair <= entry.parent);
                    }
                }
            }
        }
    }
    let tops = stacks.into_iter().filter_map(|(key, mut stack)| Some((key, stack.pop_last()?)));
    tops.filter(|(_, (_, setting))| *setting != Setting::Unset).collect()
}

/// A layer's pages, and the digest it leads to.
fn collect(mut pages: Pages) -> (Vec<Page>, Digest) {
    let mut all = Vec::new();
    while let Some(page) = pages.next_page() {
        all.push(page);
    }
    (all, pages.digest())
}

fn pages_of(layer: &[Page], lasts: bool) -> Vec<Bytes> {
    layer.iter().filter(|page| page.lasts == lasts).map(|page| page.bytes.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_same_proposals_give_the_same_state_on_every_replica(steps in life(60)) {
        let player = Player::play(&steps);
        let mut other = State::new(player.state.cluster(), common::first_member());
        for applied in &player.log {
            let bytes = codec::encode_proposal(&applied.proposal);
            let proposal = codec::decode_proposal(&bytes).unwrap();
            prop_assert_eq!(&proposal, &applied.proposal);
            let (outcome, finished) = other.apply(applied.index, proposal);
            prop_assert_eq!(&outcome, &applied.outcome);
            prop_assert_eq!(&finished, &applied.finished);
            prop_assert_eq!(&codec::decode_outcome(&codec::encode_outcome(&outcome)).unwrap(), &outcome);
        }
        prop_assert_eq!(other.digest(), player.state.digest());
    }

    #[test]
    fn sequences_are_dense_and_the_chain_covers_every_stored_byte(steps in life(60)) {
        let player = Player::play(&steps);
        let mut verifier = Verifier::new();
        let mut wall = 0;
        for applied in &player.log {
            for finished in &applied.finished {
                prop_assert_eq!(finished.sequence, verifier.sequence().next());
                let record = verifier.push(&finished.bytes).unwrap();
                let recorded_at = match record { Record::Entry(e) => e.recorded_at, Record::Operation(o) => o.recorded_at };
                prop_assert!(recorded_at.0 >= wall, "recorded_at went back");
                wall = recorded_at.0;
            }
            prop_assert_eq!(applied.after.sequence(), verifier.sequence());
            prop_assert_eq!(applied.after.head(), verifier.head());
        }
        let open = *player.state.history().last().unwrap();
        prop_assert_eq!((open.last, open.head), (player.state.sequence(), player.state.head()));
    }

    #[test]
    fn a_state_always_has_its_shape_and_a_view_never_changes(steps in life(40)) {
        let mut player = Player::new();
        let mut seen = Vec::new();
        for step in &steps {
            let before = player.log.len();
            player.play_one(step);
            if player.log.len() > before {
                prop_assert_eq!(player.state.problem(), None);
            }
            seen.push((player.state.clone(), player.state.digest()));
        }
        for (view, digest) in seen {
            prop_assert_eq!(view.digest(), digest);
        }
    }

    #[test]
    fn what_is_declared_is_what_a_fold_of_the_records_declares(steps in life(80)) {
        let player = Player::play(&steps);
        let mut folds: Vec<_> = scopes().into_iter().map(|scope| (Fold::new(scope.clone()), scope)).collect();
        for applied in &player.log {
            for finished in &applied.finished {
                let record = codec::decode_record(&finished.bytes).unwrap();
                for (fold, _) in &mut folds {
                    fold.push(&record);
                }
            }
            for (fold, scope) in &folds {
                prop_assert_eq!(&fold.at(), &declared(&applied.after, scope), "{} after {}", scope, fold.sequence());
            }
        }
    }

    #[test]
    fn an_accepted_rollback_restores_its_target(steps in life(80)) {
        let player = Player::play(&steps);
        let records = player.records();
        for applied in &player.log {
            let Some(entry) = rollback_of(applied) else { continue };
            let was = counted_at(&records, &entry.scope, entry.parent, entry.sequence);
            prop_assert_eq!(declared(&applied.after, &entry.scope), was, "rollback {} to {}", entry.sequence, entry.parent);
            for change in &entry.delta {
                let says = |state: &State| state.journal.stack(&entry.scope, &change.key).unwrap().setting();
                prop_assert_eq!(&says(&applied.before), &change.previous);
                prop_assert_eq!(&says(&applied.after), &change.next);
            }
        }
    }

    #[test]
    fn pages_give_the_same_state_again(steps in life(60)) {
        let player = Player::play(&steps);
        let pages: Vec<_> = player.state.pages().collect();
        prop_assert!(pages.iter().all(|page| page.len() <= PAGE_BYTES));
        let mut loaded = State::from_pages(pages.clone()).unwrap();
        prop_assert_eq!(loaded.digest(), player.state.digest());
        prop_assert!(State::from_pages(pages[1..].to_vec()).is_err());
        // What is loaded goes on like what was saved, indexes included.
        let mut state = player.state.clone();
        let expire = common::Player::expire_after(7_200);
        for n in 1..4 {
            let index = muster_core::ids::Index(1_000_000 + n);
            prop_assert_eq!(loaded.apply(index, expire.clone()), state.apply(index, expire.clone()));
        }
        prop_assert_eq!(overlay::stale(&loaded), overlay::stale(&state));
        prop_assert_eq!(loaded.digest(), state.digest());
    }

    #[test]
    fn layers_give_the_state_from_nothing_and_from_any_state_since_the_lowest(
        steps in life(60), bounds in prop::collection::vec(any::<prop::sample::Index>(), 3), from in any::<prop::sample::Index>(),
    ) {
        let player = Player::play(&steps);
        let mut bounds: Vec<_> = bounds.iter().map(|bound| bound.index(player.log.len())).collect();
        bounds.sort_unstable();
        let states: Vec<_> = bounds.iter().map(|at| player.log[*at].before.clone()).collect();
        let mut layers = vec![collect(states[0].layer())];
        for pair in states.windows(2) {
            layers.push(collect(pair[1].layer_over(&pair[0], layers[layers.len() - 1].1)));
        }
        for ((_, digest), state) in layers.iter().zip(&states) {
            prop_assert_eq!(*digest, state.digest());
        }
        let top = &states[2];
        let from = bounds[0] + from.index(bounds[2] - bounds[0] + 1);
        let views = [None, Some((from, player.log[from].before.clone()))];
        for view in views {
            let lacks = |place: usize| view.as_ref().is_none_or(|(from, _)| bounds[place] > *from);
            let lasting = (0..3).filter(|place| lacks(*place)).flat_map(|place| pages_of(&layers[place].0, true));
            let passing = (0..3).flat_map(|place| pages_of(&layers[place].0, false));
            let pages: Vec<_> = lasting.chain(passing).collect();
            let mut loader = view.map_or_else(StateLoader::new, |(_, state)| StateLoader::over(state));
            for page in pages {
                loader.page(&page).unwrap();
            }
            let mut loaded = loader.finish().unwrap();
            prop_assert_eq!(loaded.problem(), None);
            prop_assert_eq!(loaded.digest(), top.digest());
            // It goes on like the other, indexes included.
            let mut state = top.clone();
            for applied in &player.log[bounds[2]..] {
                prop_assert_eq!(
                    loaded.apply(applied.index, applied.proposal.clone()),
                    state.apply(applied.index, applied.proposal.clone())
                );
            }
            prop_assert_eq!(overlay::stale(&loaded), overlay::stale(&state));
            prop_assert_eq!(loaded.digest(), state.digest());
        }
    }

    #[test]
    fn a_replica_that_starts_from_a_snapshot_ends_up_where_the_others_are(steps in life(50), at in any::<prop::sample::Index>()) {
        let player = Player::play(&steps);
        let at = at.index(player.log.len());
        let mut state = State::from_pages(player.log[at].before.pages()).unwrap();
        for applied in &player.log[at..] {
            let (outcome, finished) = state.apply(applied.index, applied.proposal.clone());
            prop_assert_eq!(&outcome, &applied.outcome);
            prop_assert_eq!(&finished, &applied.finished);
        }
        prop_assert_eq!(state.digest(), player.state.digest());
        prop_assert_eq!(overlay::stale(&state), overlay::stale(&player.state));
        prop_assert_eq!(state.problem(), None);
    }

    #[test]
    fn a_request_that_comes_again_is_not_applied_again(steps in life(60)) {
        let player = Player::play(&steps);
        let mut state = player.state.clone();
        let mut first = BTreeMap::new();
        for applied in &player.log {
            let request = applied.proposal.write.request;
            if request == RequestId::None {
                continue;
            }
            let mut again = applied.proposal.clone();
            again.elapsed = 0;
            let first = first.entry(format!("{request:?}")).or_insert(&applied.outcome);
            let (outcome, finished) = state.apply(applied.index, again);
            prop_assert!(finished.is_empty());
            prop_assert_eq!(state.head(), player.state.head());
            match outcome {
                Outcome::Unknown(_) => {}
                outcome => prop_assert_eq!(&outcome, *first),
            }
        }
    }

    #[test]
    fn a_boot_is_right_whatever_overlay_it_starts_from(steps in life(40)) {
        let player = Player::play(&steps);
        let mut overlays = Vec::new();
        for (n, applied) in player.log.iter().enumerate() {
            let state = &applied.after;
            if n % 5 == 0 {
                for vcluster in (0..3).map(vcluster) {
                    let Ok(built) = overlay::build(state, &vcluster) else { continue };
                    let document = overlay::open(&built).unwrap();
                    prop_assert_eq!((document.version, &document.vcluster), (built.version, &vcluster));
                    overlays.push((vcluster, built, document));
                }
            }
            if n % 7 != 0 && n + 1 != player.log.len() {
                continue;
            }
            for (id, node) in state.journal.nodes() {
                let own = overlays.iter().filter(|(vcluster, ..)| node.vcluster.as_ref() == Some(vcluster));
                for (vcluster, built, document) in own {
                    let plan = boot::plan_with(state, id, built.clone()).unwrap();
                    let delta = document::parse(std::str::from_utf8(&plan.delta).unwrap()).unwrap();
                    prop_assert_eq!(boot::assemble(document, &delta), boot::declared(state, id));
                    let policy = delta.policy.or_else(|| document.policy.clone()).unwrap();
                    let known = state.journal.vcluster(vcluster).unwrap();
                    prop_assert_eq!((policy.0, &policy.1), (known.policy_sequence, &*known.policy));
                }
            }
        }
    }

    #[test]
    fn a_stale_overlay_is_found_and_no_other(steps in life(60)) {
        let player = Player::play(&steps);
        for applied in &player.log {
            let journal = &applied.after.journal;
            let stale: Vec<_> = journal
                .vclusters()
                .filter(|(_, known)| known.overlay.as_ref().is_none_or(|o| o.version < journal.config_version(known)))
                .map(|(id, _)| id.clone())
                .collect();
            prop_assert_eq!(overlay::stale(&applied.after), stale);
        }
    }

    #[test]
    fn things_expire_only_through_expire_and_only_when_due(steps in life(80)) {
        let player = Player::play(&steps);
        let mut due: BTreeMap<Seq, Age> = BTreeMap::new();
        for applied in &player.log {
            let age = applied.after.age();
            let expires = matches!(applied.proposal.write.command, Command::Expire);
            for finished in &applied.finished {
                let Record::Entry(entry) = codec::decode_record(&finished.bytes).unwrap() else { continue };
                if let Some(seconds) = entry.ttl_seconds {
                    due.insert(entry.sequence, age.plus_seconds(u64::from(seconds)));
                }
                let by_expiry = entry.author == Author::system("expiry");
                prop_assert_eq!(by_expiry, expires);
                if by_expiry {
                    prop_assert!(due[&entry.parent] <= age, "{} expired early", entry.parent);
                    prop_assert!(!entry.takes_off.is_empty());
                    prop_assert!(entry.takes_off.iter().all(|(_, pair)| *pair == entry.parent));
                }
            }
            if let Outcome::Applied { reply: Reply::Expired { count }, .. } = applied.outcome && count < 256 {
                prop_assert!(applied.after.next_due().is_none_or(|due| due > age));
            }
            prop_assert!(expires || applied.after.sessions.one_shot_count() >= applied.before.sessions.one_shot_count());
        }
    }

    #[test]
    fn a_refusal_records_nothing_and_is_what_the_check_says(steps in life(60)) {
        let player = Player::play(&steps);
        for applied in &player.log {
            let write = &applied.proposal.write;
            if let Outcome::Refused(_) | Outcome::NotApplied(_) | Outcome::Unknown(_) = applied.outcome {
                prop_assert!(applied.finished.is_empty());
                prop_assert_eq!(applied.after.head(), applied.before.head());
                prop_assert_eq!(applied.after.journal.nodes().collect::<Vec<_>>(), applied.before.journal.nodes().collect::<Vec<_>>());
            }
            let seen = player.log.iter().take_while(|other| other.index < applied.index);
            if write.request != RequestId::None && seen.into_iter().any(|other| other.proposal.write.request == write.request) {
                continue;
            }
            match (&applied.outcome, applied.before.check(write)) {
                (Outcome::Refused(refusal), Err(check)) => prop_assert_eq!(refusal, &check),
                (Outcome::Applied { .. }, Ok(())) | (Outcome::Unknown(_) | Outcome::NotApplied(_), _) => {}
                (outcome, check) => prop_assert!(false, "apply: {:?}, check: {:?}", outcome, check),
            }
        }
    }
}

#[test]
fn most_kinds_of_answer_come_up_in_random_lives() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..60 {
        let steps: Vec<Step> = life(100).new_tree(&mut runner).unwrap().current();
        for applied in Player::play(&steps).log {
            let command = match &applied.proposal.write.command {
                Command::Journal(JournalCommand::AppendEntry(draft)) => draft.entry_type.word().to_string(),
                _ => "other".into(),
            };
            let outcome = format!("{:?}", applied.outcome);
            let word: String = outcome.chars().take_while(|c| !matches!(c, '{' | ':')).collect();
            *seen.entry(format!("{command} {}", word.replace(' ', ""))).or_default() += 1;
        }
    }
    for expected in [
        "commit Refused(Conflict",
        "rollback Applied",
        "rollback Refused(NothingToRollBack)",
        "rollback Refused(TargetRolledBack",
        "rollback Refused(TooFarBack",
        "rollback Refused(Conflict",
        "commit Refused(TooManyTemporary",
        "other Unknown(",
    ] {
        assert!(seen.keys().any(|word| word.starts_with(expected)), "{expected} never came up; there were {seen:#?}");
    }
}
