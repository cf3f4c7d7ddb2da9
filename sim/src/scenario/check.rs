//! What can be wrong with a story whose every key is known: who is not there, what contradicts, what breaks too much.

use super::{Budget, Fault, FaultItem, Operation, Pick, Problem, Scenario};
use std::collections::BTreeMap;

/// Whom a fault is about.
pub(crate) fn whom(fault: &Fault) -> Vec<Pick> {
    match fault {
        Fault::Crash { who, .. }
        | Fault::CrashLoop { who, .. }
        | Fault::Pause { who }
        | Fault::SlowProcess { who, .. }
        | Fault::Disk { who, .. }
        | Fault::Rot { who, .. }
        | Fault::Wipe { who }
        | Fault::Rewind { who, .. }
        | Fault::Clock { who, .. } => who.clone(),
        Fault::Cut { from, to, .. } => from.iter().chain(to).copied().collect(),
        Fault::Ring | Fault::Link(_) => Vec::new(),
    }
}

/// Whether a fault decides if its victims' processes run.
fn takes_down(fault: &Fault) -> bool {
    match fault {
        Fault::Crash { .. }
        | Fault::CrashLoop { .. }
        | Fault::Pause { .. }
        | Fault::SlowProcess { .. }
        | Fault::Wipe { .. }
        | Fault::Rewind { .. } => true,
        Fault::Cut { .. }
        | Fault::Ring
        | Fault::Link(_)
        | Fault::Disk { .. }
        | Fault::Rot { .. }
        | Fault::Clock { .. } => false,
    }
}

fn overlap(a: &FaultItem, b: &FaultItem) -> bool {
    let end = |item: &FaultItem| item.lasts.map_or(u64::MAX, |lasts| item.at.saturating_add(lasts));
    a.at < end(b) && b.at < end(a)
}

/// Everything that is wrong.
pub(super) fn problems(file: &str, story: &Scenario) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut wrong = |line: usize, problem: String| problems.push(Problem { file: file.to_owned(), line, problem });
    let joins = story.operations.iter().filter(|item| matches!(item.operation, Operation::Join(_))).count() as u64;
    let first = story.cluster.voters + story.cluster.learners;
    let everybody = first + joins;
    let run = story.time.run;

    let mut ids: BTreeMap<&str, usize> = BTreeMap::new();
    let items = story.faults.iter().map(|item| (&*item.id, item.at, item.line));
    for (id, at, line) in items.chain(story.operations.iter().map(|item| (&*item.id, item.at, item.line))) {
        if let Some(other) = ids.insert(id, line) {
            wrong(line, format!("the id {id} is taken by line {other}: expected another one"));
        }
        if at >= run {
            wrong(line, format!("{id} is at {}, after the run's end: expected less than {}", time(at), time(run)));
        }
    }
    let mut there = |line: usize, id: &str, pick: &Pick| {
        if let Pick::Replica(number) = pick
            && *number > everybody
        {
            wrong(line, format!("{id} is about replica {number} of {everybody}: expected 1 to {everybody}"));
        }
    };
    for item in &story.faults {
        for pick in &whom(&item.fault) {
            there(item.line, &item.id, pick);
        }
    }
    for item in &story.operations {
        match &item.operation {
            Operation::Promote(pick)
            | Operation::Demote(pick)
            | Operation::Remove(pick)
            | Operation::Snapshot(pick) => {
                there(item.line, &item.id, pick);
            }
            Operation::Transfer(0) | Operation::Join(_) => {}
            Operation::Transfer(to) => there(item.line, &item.id, &Pick::Replica(*to)),
        }
    }

    for (place, a) in story.faults.iter().enumerate() {
        for b in &story.faults[place + 1..] {
            if !(takes_down(&a.fault) && takes_down(&b.fault) && overlap(a, b)) {
                continue;
            }
            let theirs = whom(&b.fault);
            let both =
                whom(&a.fault).into_iter().find(|pick| matches!(pick, Pick::Replica(_)) && theirs.contains(pick));
            if let Some(Pick::Replica(number)) = both {
                wrong(
                    b.line,
                    format!(
                        "{} and {} (line {}) both decide whether replica {number} runs, at the same time",
                        b.id, a.id, a.line
                    ),
                );
            }
        }
    }

    if let Some(storm) = &story.storm {
        if storm.at + storm.within >= run {
            wrong(
                0,
                format!(
                    "the storm's last node arrives at {}, after the run's end: expected less than {}",
                    time(storm.at + storm.within),
                    time(run)
                ),
            );
        }
        if story.load.clients == 0 {
            wrong(0, "a storm needs clients, whose commits are compared with those before it".to_owned());
        }
    }
    if story.budget() == Budget::Standard {
        for item in &story.faults {
            let forgets = matches!(item.fault, Fault::Wipe { .. } | Fault::Rewind { .. });
            let voters_only = |pick: &Pick| match pick {
                Pick::Replica(number) => *number <= story.cluster.voters,
                Pick::Leader | Pick::Follower | Pick::All | Pick::Others | Pick::Clients => true,
            };
            if forgets && whom(&item.fault).iter().any(voters_only) {
                wrong(
                    item.line,
                    format!(
                        "{} makes a voter forget, which is more than the standard budget allows: expected a learner, or \
                         [nemesis] budget = \"beyond\"",
                        item.id
                    ),
                );
            }
            let rots = matches!(item.fault, Fault::Rot { .. });
            let damaged: usize = story.faults.iter().filter(|item| matches!(item.fault, Fault::Rot { .. })).count();
            let bearable = usize::try_from((story.cluster.voters - 1) / 2).unwrap_or(0);
            if rots && (damaged > bearable || whom(&item.fault).contains(&Pick::All)) {
                wrong(
                    item.line,
                    format!(
                        "{} damages more disks than the standard budget allows: expected at most {bearable}",
                        item.id
                    ),
                );
            }
        }
    }
    problems
}

fn time(nanos: u64) -> String {
    super::write::time(nanos)
}
