//! What can be wrong with a story whose every key is known: who is not there, what contradicts, what breaks too much.

use super::{Fault, FaultItem, Operation, Pick, Problem, Scenario};
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
        | Fault::Wipe { who, .. }
        | Fault::Rewind { who, .. }
        | Fault::Clock { who, .. }
        | Fault::Hostile { who, .. }
        | Fault::Driver { who, .. }
        | Fault::Downgrade { who, .. } => who.clone(),
        Fault::Cut { from, to, .. } => from.iter().chain(to).copied().collect(),
        Fault::Ring | Fault::Link(_) | Fault::Agent(_) => Vec::new(),
    }
}

/// What a fault decides alone while it lasts: two at once would contradict each other, and the end of one undo the other.
fn decides(fault: &Fault) -> Vec<&'static str> {
    let which = |all: &[(bool, &'static str)]| all.iter().filter(|(on, _)| *on).map(|(_, what)| *what).collect();
    match fault {
        Fault::Crash { .. }
        | Fault::CrashLoop { .. }
        | Fault::Pause { .. }
        | Fault::SlowProcess { .. }
        | Fault::Wipe { .. }
        | Fault::Rewind { .. }
        | Fault::Downgrade { .. } => vec!["whether it runs"],
        Fault::Disk { how, .. } => which(&[
            (how.slow > 0, "how slow its disk is"),
            (how.stalled, "whether its disk stalls"),
            (how.full, "whether its disk is full"),
            (how.read_error_ppm > 0, "how often its reads fail"),
            (how.write_error_ppm > 0, "how often its writes fail"),
            (how.sync_error_ppm > 0, "how often its syncs fail"),
            (how.misdirect_ppm > 0, "how often its writes go astray"),
        ]),
        Fault::Clock { drift_ppm, freeze, .. } => {
            which(&[(*drift_ppm != 0, "how fast its clock goes"), (*freeze, "whether its clock goes")])
        }
        Fault::Link(_) => vec!["how links are"],
        Fault::Driver { .. } => vec!["how its devices keep the driver's contract"],
        Fault::Hostile { .. } | Fault::Cut { .. } | Fault::Ring | Fault::Rot { .. } | Fault::Agent(_) => Vec::new(),
    }
}

fn overlap(a: &FaultItem, b: &FaultItem) -> bool {
    let end = |item: &FaultItem| item.lasts.map_or(u64::MAX, |lasts| item.at.saturating_add(lasts));
    a.at < end(b) && b.at < end(a)
}

/// How two faults contradict each other, if they do.
fn contradiction(a: &FaultItem, b: &FaultItem) -> Option<String> {
    if !overlap(a, b) {
        return None;
    }
    let line = if a.line > 0 { format!(" (line {})", a.line) } else { String::new() };
    if let (Fault::Agent(ours), Fault::Agent(theirs)) = (&a.fault, &b.fault) {
        let what = super::agents::contradiction(ours, theirs)?;
        return Some(format!(
            "{} and {}{line} both decide {what}, at the same time: expected one after the other",
            b.id, a.id
        ));
    }
    let theirs = decides(&b.fault);
    let what = decides(&a.fault).into_iter().find(|what| theirs.contains(what))?;
    let (ours, theirs) = (whom(&a.fault), whom(&b.fault));
    let both =
        |pick: &&Pick| matches!(pick, Pick::Replica(_)) && (theirs.contains(pick) || theirs.contains(&Pick::All));
    let whose = if matches!(a.fault, Fault::Link(_)) {
        String::new()
    } else if let Some(Pick::Replica(number)) = ours.iter().find(both) {
        format!(" of replica {number}")
    } else if ours.contains(&Pick::All) {
        match theirs.iter().find(|pick| matches!(pick, Pick::Replica(_) | Pick::All))? {
            Pick::Replica(number) => format!(" of replica {number}"),
            Pick::All | Pick::Leader | Pick::Follower | Pick::Others | Pick::Clients => " of everybody".into(),
        }
    } else {
        return None;
    };
    Some(format!(
        "{} and {}{line} both decide{whose} {what}, at the same time: expected one after the other",
        b.id, a.id
    ))
}

/// What is wrong with one more fault beside others.
pub(super) fn beside(story: &Scenario, others: &[FaultItem], item: &FaultItem) -> Option<String> {
    let mut contradictions = others.iter().filter_map(|other| contradiction(other, item));
    contradictions.next().or_else(|| super::atlas::too_much(story, others, item))
}

/// Everything that is wrong.
pub(super) fn problems(file: &str, story: &Scenario) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut wrong = |line: usize, problem: String| problems.push(Problem { file: file.to_owned(), line, problem });
    let joins = story.operations.iter().filter(|item| matches!(item.operation, Operation::Join { .. })).count() as u64;
    let first = story.cluster.voters + story.cluster.learners;
    let everybody = first + joins;
    let run = story.time.run;

    let mut ids: BTreeMap<&str, usize> = BTreeMap::new();
    let items = story.faults.iter().map(|item| (&*item.id, item.at, item.line));
    let acts = story.agents.iter().flat_map(|agents| &agents.acts).map(|item| (&*item.id, 0, item.line));
    for (id, at, line) in items.chain(story.operations.iter().map(|item| (&*item.id, item.at, item.line))).chain(acts) {
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
            | Operation::Snapshot(pick)
            | Operation::Restore(pick) => {
                there(item.line, &item.id, pick);
            }
            Operation::Transfer(0) | Operation::Join { .. } | Operation::Raise(_) => {}
            Operation::Transfer(to) => there(item.line, &item.id, &Pick::Replica(*to)),
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
    if let Some(neighbour) = story.neighbour.filter(|neighbour| neighbour.voters > first) {
        let voters = neighbour.voters;
        wrong(
            neighbour.line,
            format!("the second group has {voters} voters on {first} hosts: expected at most {first}"),
        );
    }
    for (place, item) in story.faults.iter().enumerate() {
        if let Some(problem) = beside(story, &story.faults[..place], item) {
            wrong(item.line, problem);
        }
    }
    problems.extend(super::agents::problems(file, story));
    problems
}

fn time(nanos: u64) -> String {
    super::write::time(nanos)
}
