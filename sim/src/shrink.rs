//! Shrinking: from a run that fails to a short story that fails the same way.
//!
//! Takes the drawn story, where every fault is an item, and leaves out what is not needed: items (by delta debugging), replicas,
//! clients, kinds of requests, time, and the strength of each fault. A candidate counts if the same property does not hold; it is
//! played at the seed found last and at a few more, since leaving something out shifts what luck meets what.
//!
//! Invariants
//! - every candidate would be accepted as a scenario file;
//! - the same story, seed and options give the same result, however many runs are played at a time;
//! - what is given back was played, and failed, at the seed given with it.

use crate::run::{Report, play};
use crate::scenario::{Fault, FaultItem, MS, OperationItem, SECOND, Scenario};

/// How much to try.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// At most so many runs.
    pub runs: u64,
    /// At so many seeds for each candidate.
    pub seeds: u64,
}

/// A shorter story.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The story.
    pub story: Scenario,
    /// The seed at which it fails.
    pub seed: u64,
    /// How it fails.
    pub report: Report,
    /// How many runs it took.
    pub runs: u64,
}

impl Shrunk {
    /// How many faults and operations are left.
    #[must_use]
    pub fn items(&self) -> usize {
        items(&self.story)
    }
}

/// How many faults and operations a story has.
#[must_use]
pub fn items(story: &Scenario) -> usize {
    story.faults.len() + story.operations.len()
}

#[derive(Clone, Debug)]
enum Item {
    Fault(FaultItem),
    Operation(OperationItem),
}

fn take_apart(story: &Scenario) -> Vec<Item> {
    let faults = story.faults.iter().cloned().map(Item::Fault);
    faults.chain(story.operations.iter().cloned().map(Item::Operation)).collect()
}

fn with_items(story: &Scenario, items: &[Item]) -> Scenario {
    let mut story = story.clone();
    story.faults.clear();
    story.operations.clear();
    for item in items {
        match item {
            Item::Fault(item) => story.faults.push(item.clone()),
            Item::Operation(item) => story.operations.push(item.clone()),
        }
    }
    story
}

struct Search {
    oracle: &'static str,
    effort: Effort,
    best: Shrunk,
}

/// Shortens a story that fails at a seed; none if it does not fail there.
///
/// # Panics
/// If no thread can be started.
#[must_use]
pub fn shrink(story: &Scenario, seed: u64, effort: Effort, tell: &mut dyn FnMut(&Shrunk)) -> Option<Shrunk> {
    let drawn = story.drawn(seed);
    let report = play(&drawn, seed, None);
    let oracle = report.found.as_ref()?.oracle;
    let mut search = Search { oracle, effort, best: Shrunk { story: drawn, seed, report, runs: 1 } };
    loop {
        let before = search.best.story.to_toml();
        search.time();
        search.leave_items_out();
        search.cluster();
        search.load();
        search.weaken();
        search.closer();
        tell(&search.best);
        if search.best.story.to_toml() == before || search.is_spent() {
            return Some(search.best);
        }
    }
}

impl Search {
    fn is_spent(&self) -> bool {
        self.best.runs >= self.effort.runs
    }

    /// Plays a candidate; it becomes the best if it fails as it should.
    fn keeps_failing(&mut self, candidate: &Scenario) -> bool {
        let acceptable = Scenario::parse(&candidate.name, &candidate.name, &candidate.to_toml()).is_ok();
        if self.is_spent() || !acceptable {
            return false;
        }
        let seeds: Vec<u64> = (0..self.effort.seeds.max(1)).map(|more| self.best.seed.wrapping_add(more)).collect();
        for pair in seeds.chunks(RUNS_AT_A_TIME) {
            self.best.runs += pair.len() as u64;
            let reports: Vec<Report> = std::thread::scope(|scope| {
                let threads: Vec<_> = pair.iter().map(|seed| scope.spawn(|| play(candidate, *seed, None))).collect();
                threads.into_iter().map(|thread| thread.join().expect("a run's panics are kept")).collect()
            });
            let fails = |report: &Report| report.found.as_ref().is_some_and(|found| found.oracle == self.oracle);
            if let Some(report) = reports.into_iter().find(fails) {
                let (story, seed, runs) = (candidate.clone(), report.seed, self.best.runs);
                self.best = Shrunk { story, seed, report, runs };
                return true;
            }
        }
        false
    }

    /// The story with something changed, kept if it still fails.
    fn tries(&mut self, change: impl FnOnce(&mut Scenario)) -> bool {
        let mut candidate = self.best.story.clone();
        change(&mut candidate);
        candidate.to_toml() != self.best.story.to_toml() && self.keeps_failing(&candidate)
    }

    /// Ever smaller parts are left out, until no single one can be.
    fn leave_items_out(&mut self) {
        if items(&self.best.story) > 0 && self.tries(|story| *story = with_items(story, &[])) {
            return;
        }
        let mut size = items(&self.best.story).div_ceil(2);
        while size > 0 && !self.is_spent() {
            let mut from = 0;
            while from < items(&self.best.story) {
                let mut rest = take_apart(&self.best.story);
                rest.drain(from..(from + size).min(rest.len()));
                let candidate = with_items(&self.best.story, &rest);
                if !self.keeps_failing(&candidate) {
                    from += size;
                }
            }
            size = if size == 1 { 0 } else { size.div_ceil(2) };
        }
    }

    fn cluster(&mut self) {
        if self.best.story.neighbour.is_some() {
            self.tries(|story| story.neighbour = None);
        }
        for learners in 0..self.best.story.cluster.learners {
            if self.tries(|story| story.cluster.learners = learners) {
                break;
            }
        }
        for voters in 1..self.best.story.cluster.voters {
            if self.tries(|story| story.cluster.voters = voters) {
                break;
            }
        }
    }

    fn load(&mut self) {
        // What the story wanted besides has nothing to do with the failure.
        let wants_more = self.best.story.expect.acknowledged > 0 || !self.best.story.expect.marks.is_empty();
        if wants_more {
            self.tries(|story| {
                story.expect.acknowledged = 0;
                story.expect.marks.clear();
            });
        }
        if self.best.story.load.slow_subscribers > 0 {
            self.tries(|story| story.load.slow_subscribers = 0);
        }
        while self.best.story.load.clients > 0 && self.tries(|story| story.load.clients /= 2) {}
        while self.best.story.load.rate > 1 && self.tries(|story| story.load.rate /= 2) {}
        for (kind, share) in self.best.story.load.mix.clone() {
            let others = self.best.story.load.mix.iter().any(|(other, share)| *other != kind && *share > 0);
            if share > 0 && others {
                self.tries(|story| {
                    story.load.mix.iter_mut().filter(|(other, _)| *other == kind).for_each(|(_, share)| *share = 0);
                });
            }
        }
    }

    /// The run ends soon after it failed; if it failed only in the end, soon after its last item.
    fn time(&mut self) {
        let story = &self.best.story;
        let last = story.faults.iter().map(|item| item.at).chain(story.operations.iter().map(|item| item.at)).max();
        let after_last = last.map_or(SECOND, |at| at + SECOND);
        let ends = [after_last, after_last + 4 * SECOND, story.time.run / 2, story.time.run * 3 / 4];
        for run in ends.map(|run| run.div_ceil(100 * MS) * 100 * MS) {
            if run < self.best.story.time.run
                && self.tries(|story| {
                    story.time.run = run;
                    story.faults.retain(|item| item.at < run);
                    story.operations.retain(|item| item.at < run);
                })
            {
                break;
            }
        }
    }

    /// Each fault gets shorter and loses its frills.
    fn weaken(&mut self) {
        let ids: Vec<_> = self.best.story.faults.iter().map(|item| item.id.clone()).collect();
        for id in ids {
            let change = |search: &mut Self, change: &dyn Fn(&mut FaultItem)| {
                search.tries(|story| {
                    story.faults.iter_mut().filter(|item| item.id == id).for_each(change);
                })
            };
            for frill in FRILLS {
                change(self, &|item| frill(&mut item.fault));
            }
            for _ in 0..3 {
                if !change(self, &|item| item.lasts = item.lasts.map(|nanos| (nanos / 2).div_ceil(MS) * MS)) {
                    break;
                }
            }
        }
    }

    /// What follows a long quiet time comes earlier, with all that is after it.
    fn closer(&mut self) {
        let story = &self.best.story;
        let mut times: Vec<u64> = story.faults.iter().map(|item| item.at).collect();
        times.extend(story.operations.iter().map(|item| item.at));
        times.sort_unstable();
        let mut before = 0;
        let mut moved = 0;
        for at in times {
            let gap = at - moved - before;
            if gap > SECOND {
                let by = (gap - SECOND / 2) / MS * MS;
                let from = at - moved;
                if self.tries(|story| {
                    story.faults.iter_mut().filter(|item| item.at >= from).for_each(|item| item.at -= by);
                    story.operations.iter_mut().filter(|item| item.at >= from).for_each(|item| item.at -= by);
                    story.time.run = story.time.run.saturating_sub(by).max(SECOND);
                }) {
                    moved += by;
                }
            }
            before = at - moved;
        }
    }
}

/// Always so many, that the count of runs does not depend on the machine.
const RUNS_AT_A_TIME: usize = 2;

type Frill = fn(&mut Fault);

/// What a fault may do without.
const FRILLS: [Frill; 7] = [
    |fault| {
        if let Fault::Crash { power, .. } | Fault::CrashLoop { power, .. } = fault {
            *power = false;
        }
    },
    |fault| {
        if let Fault::Crash { nth, .. } = fault {
            *nth = 1;
        }
    },
    |fault| {
        if let Fault::Crash { point, nth, .. } = fault {
            (*point, *nth) = (None, 1);
        }
    },
    |fault| {
        if let Fault::Cut { flap, .. } = fault {
            *flap = None;
        }
    },
    |fault| {
        if let Fault::Cut { holds, .. } = fault {
            *holds = false;
        }
    },
    |fault| {
        if let Fault::Clock { drift_ppm, freeze, .. } = fault {
            (*drift_ppm, *freeze) = (0, false);
        }
    },
    |fault| {
        if let Fault::Link(change) = fault {
            (change.bytes_per_second, change.queue_bytes, change.latency_us) = (None, None, None);
        }
    },
];
