//! The fault atlas: who is unable when, all kinds of faults together, so that a budget means what it says.
//!
//! At every moment some voter must be able, and reach a majority of able ones both ways: else more than a minority is unable. Who
//! is meant by `leader` and `follower` is looked up in the run, so each such pick counts as one voter more, whichever is worst.
//! A disk that lost something for good counts from then on: no run loses the last good copy.
//!
//! Left out: who becomes a voter or stops being one in the story. The atlas knows the voters of the beginning.

use super::{Back, Budget, Fault, FaultItem, Pick, Scenario};
use std::collections::BTreeSet;

/// A link with so much loss is no link, in a million.
const USELESS_LOSS_PPM: u32 = 500_000;

/// Voters that something happens to.
#[derive(Clone, Debug, Default)]
struct Hit {
    named: BTreeSet<u64>,
    /// Others, each one of whoever is left.
    unnamed: usize,
}

impl Hit {
    fn of(picks: &[Pick], voters: u64) -> Self {
        let mut hit = Self::default();
        for pick in picks {
            match pick {
                Pick::Replica(number) => hit.named.extend((*number <= voters).then_some(*number)),
                Pick::Leader | Pick::Follower => hit.unnamed += 1,
                Pick::All => hit.named.extend(1..=voters),
                Pick::Others | Pick::Clients => {}
            }
        }
        hit
    }

    fn count(&self) -> usize {
        self.named.len() + self.unnamed
    }

    fn add(&mut self, other: &Self) {
        self.named.extend(&other.named);
        self.unnamed += other.unnamed;
    }
}

/// What is broken at a moment.
#[derive(Clone, Debug, Default)]
struct Moment {
    unable: Hit,
    /// Pairs that do not hear each other, at least one way. The smaller number first.
    apart: BTreeSet<(u64, u64)>,
}

fn pair(a: u64, b: u64) -> (u64, u64) {
    (a.min(b), a.max(b))
}

/// Whether a fault makes a disk lose for good what it was told to keep.
pub(super) fn forgets(fault: &Fault) -> bool {
    match fault {
        Fault::Wipe { .. } | Fault::Rewind { .. } | Fault::Rot { .. } => true,
        Fault::Disk { how, .. } => how.misdirect_ppm > 0,
        Fault::Crash { .. }
        | Fault::CrashLoop { .. }
        | Fault::Pause { .. }
        | Fault::SlowProcess { .. }
        | Fault::Cut { .. }
        | Fault::Ring
        | Fault::Link(_)
        | Fault::Clock { .. }
        | Fault::Hostile { .. }
        | Fault::Driver { .. }
        | Fault::Downgrade { .. }
        | Fault::Agent(_) => false,
    }
}

/// Whether a fault makes its victims break promises they do not know of.
pub(super) fn breaks_promises(fault: &Fault) -> bool {
    matches!(fault, Fault::Rewind { .. } | Fault::Wipe { back: Back::Amnesiac, .. })
}

impl Moment {
    fn add(&mut self, story: &Scenario, fault: &Fault) {
        let voters = story.cluster.voters;
        match fault {
            Fault::Crash { who, .. }
            | Fault::CrashLoop { who, .. }
            | Fault::Pause { who }
            | Fault::SlowProcess { who, .. }
            | Fault::Rot { who, .. }
            | Fault::Wipe { who, .. }
            | Fault::Rewind { who, .. }
            | Fault::Downgrade { who, .. } => self.unable.add(&Hit::of(who, voters)),
            Fault::Disk { who, how } => {
                let only_slow = super::DiskChange { slow: how.slow, ..super::DiskChange::default() };
                if *how != only_slow {
                    self.unable.add(&Hit::of(who, voters));
                }
            }
            Fault::Cut { from, to, .. } => self.cut(voters, from, to),
            Fault::Ring => {
                let all = voters + story.cluster.learners;
                for a in 1..=all {
                    for b in a + 1..=all {
                        if b - a > 1 && b - a < all - 1 {
                            self.apart.insert((a, b));
                        }
                    }
                }
            }
            Fault::Link(change) => {
                if change.loss_ppm.is_some_and(|ppm| ppm >= USELESS_LOSS_PPM) {
                    self.unable.named.extend(1..=voters);
                }
            }
            Fault::Clock { .. } | Fault::Hostile { .. } | Fault::Driver { .. } | Fault::Agent(_) => {}
        }
    }

    fn cut(&mut self, voters: u64, from: &[Pick], to: &[Pick]) {
        let (mut one, mut other) = (Hit::of(from, voters), Hit::of(to, voters));
        // Somebody who is not named is on the other side.
        let others = |side: &Hit| Hit {
            named: (1..=voters).filter(|number| !side.named.contains(number)).collect(),
            unnamed: 0,
        };
        if from.contains(&Pick::Others) {
            one = others(&other);
        }
        if to.contains(&Pick::Others) {
            other = others(&one);
        }
        if one.unnamed == 0 && other.unnamed == 0 {
            for a in &one.named {
                self.apart.extend(other.named.iter().filter(|b| *b != a).map(|b| pair(*a, *b)));
            }
            return;
        }
        // Who it is is not known yet: the smaller side cannot go on, whoever that will be.
        let all = usize::try_from(voters).unwrap_or(usize::MAX);
        let rest = |side: &Hit| all.saturating_sub(side.count());
        let smaller = match (from.contains(&Pick::Others), to.contains(&Pick::Others)) {
            (true, _) => other.count().min(rest(&other)),
            (_, true) => one.count().min(rest(&one)),
            _ => one.count().min(other.count()),
        };
        self.unable.unnamed += smaller;
    }

    /// How many able voters some able voter reaches both ways, itself included, whoever the unnamed are.
    fn reach(&self, voters: u64) -> usize {
        let able: Vec<u64> = (1..=voters).filter(|number| !self.unable.named.contains(number)).collect();
        let mut worst = usize::MAX;
        // Every choice of the unnamed among the able.
        for choice in 0_u32..1 << able.len() {
            if usize::try_from(choice.count_ones()).is_ok_and(|count| count == self.unable.unnamed.min(able.len())) {
                let left: Vec<u64> =
                    able.iter().enumerate().filter(|(place, _)| choice >> place & 1 == 0).map(|(_, id)| *id).collect();
                let star = |a: &u64| left.iter().filter(|b| *a == **b || !self.apart.contains(&pair(*a, **b))).count();
                worst = worst.min(left.iter().map(star).max().unwrap_or(0));
            }
        }
        worst
    }
}

fn end(item: &FaultItem) -> u64 {
    if forgets(&item.fault) {
        return u64::MAX;
    }
    item.lasts.map_or(u64::MAX, |lasts| item.at.saturating_add(lasts))
}

/// What is wrong with one more fault beside others, for the budget: in words, if anything.
pub(super) fn too_much(story: &Scenario, others: &[FaultItem], item: &FaultItem) -> Option<String> {
    let voters = story.cluster.voters;
    let budget = story.budget();
    if budget == Budget::Beyond {
        return None;
    }
    let bearable = usize::try_from((voters - 1) / 2).unwrap_or(0);
    if breaks_promises(&item.fault) && Hit::of(&super::whom(&item.fault), voters).count() > 0 {
        return Some(format!(
            "{} makes a voter forget what it promised, which is more than any budget but beyond allows: expected a learner, or \
             [nemesis] budget = \"beyond\"",
            item.id
        ));
    }
    if forgets(&item.fault) {
        let mut lost = Hit::default();
        for other in others.iter().chain([item]).filter(|other| forgets(&other.fault)) {
            lost.add(&Hit::of(&super::whom(&other.fault), voters));
        }
        if lost.count() > bearable {
            return Some(format!(
                "{} damages one more disk of a voter than the budget allows, which are at most {bearable}: expected [nemesis] \
                 budget = \"beyond\"",
                item.id
            ));
        }
    }
    if budget == Budget::Outage {
        return None;
    }
    // What is broken changes for the worse only when something begins.
    let mut moments = vec![item.at];
    moments.extend(others.iter().map(|other| other.at).filter(|at| (item.at..end(item)).contains(at)));
    for at in moments {
        let mut moment = Moment::default();
        let mut together = Vec::new();
        for other in others.iter().chain([item]).filter(|other| other.at <= at && at < end(other)) {
            let mut alone = Moment::default();
            alone.add(story, &other.fault);
            if alone.unable.count() > 0 || !alone.apart.is_empty() {
                together.push(&*other.id);
            }
            moment.add(story, &other.fault);
        }
        let reach = moment.reach(voters);
        if reach <= usize::try_from(voters / 2).unwrap_or(0) && together.contains(&&*item.id) {
            return Some(format!(
                "at {} {} can leave no voter that reaches more than {reach} of {voters}: the standard budget allows at most \
                 {bearable} to be unable at once; expected less at once, or [nemesis] budget = \"outage\"",
                super::write::time(at),
                together.join(" and "),
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    fn story(voters: u64, faults: &[(&str, &str)]) -> Result<Scenario, Vec<super::super::Problem>> {
        let mut text = format!("about = \"x\"\n[cluster]\nvoters = {voters}\n");
        for (place, (at, fault)) in faults.iter().enumerate() {
            write!(text, "[[fault]]\nid = \"f{place}\"\nat = \"{at}\"\n{fault}\n").expect("text grows");
        }
        Scenario::parse("story.toml", "story", &text)
    }

    #[test]
    fn a_ring_of_five_leaves_a_quorum_and_a_ring_of_six_does_not() {
        assert!(story(5, &[("1s", "ring = {}")]).is_ok());
        assert!(story(6, &[("1s", "ring = {}")]).is_err());
    }

    #[test]
    fn kinds_count_together() {
        let pause = ("1s", "pause = { who = 1 }\nfor = \"5s\"");
        let cut = ("2s", "cut = { from = 2, to = \"others\" }\nfor = \"1s\"");
        assert!(story(3, &[pause]).is_ok());
        assert!(story(3, &[pause, cut]).is_err());
        assert!(story(5, &[pause, cut]).is_ok());
        let full = ("3s", "disk = { who = 4, full = true }\nfor = \"2s\"");
        assert!(story(5, &[pause, cut, full]).is_ok(), "the cut is over by then");
        let leader = ("2500ms", "crash = { who = \"leader\" }\ndown = \"1s\"");
        assert!(story(5, &[pause, cut, leader]).is_err(), "the leader may be a third one");
    }

    #[test]
    fn a_partial_cut_leaves_who_reaches_both() {
        let partial = ("1s", "cut = { from = 1, to = 2 }\nfor = \"5s\"");
        assert!(story(3, &[partial]).is_ok());
        assert!(story(3, &[partial, ("2s", "crash = { who = 3 }\ndown = \"1s\"")]).is_err());
    }

    #[test]
    fn a_lost_disk_is_lost_for_the_rest_of_the_story() {
        let lost = ("1s", "wipe = { who = 1 }\ndown = \"1s\"");
        let later = ("8s", "crash = { who = 2 }\ndown = \"1s\"");
        assert!(story(3, &[lost]).is_ok());
        assert!(story(3, &[lost, later]).is_err());
        assert!(story(5, &[lost, later]).is_ok());
    }
}
