//! `swarm`: random stories at random seeds until told to stop.

use super::about;
use crate::run::{Report, play};
use crate::scenario::Problem;
use crate::swarm::{Nest, Tally, story};
use crate::tool::{complain, fresh_seed, print};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

#[derive(Args)]
pub(crate) struct Swarm {
    /// How long, like 90s, 20m or 1h; until interrupted if absent.
    #[arg(long = "for", value_parser = duration)]
    lasts: Option<Duration>,
    /// At most so many runs.
    #[arg(long)]
    runs: Option<u64>,
    /// How many runs at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// The first seed; the following ones come after it. Drawn and printed if absent.
    #[arg(long)]
    seed: Option<u64>,
    /// Where failures and the count are kept.
    #[arg(long, default_value = "target/muster-sim/swarm")]
    keep: PathBuf,
    /// Only writes out the story of --seed, every fault in it.
    #[arg(long, requires = "seed")]
    draw: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    let want = || format!("{text:?} is not a time: expected a whole number and s, m or h, like 90s, 20m or 1h");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(want)?;
    let number: u64 = text[..digits].parse().map_err(|_| want())?;
    let unit = match &text[digits..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => return Err(want()),
    };
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(want)
}

/// How often the count is written down.
const WRITE_EVERY: Duration = Duration::from_secs(20);

struct State {
    next: u64,
    unwritten: Tally,
    all: Tally,
    written: SystemTime,
    problem: Option<String>,
}

impl Swarm {
    pub(crate) fn run(&self, as_json: bool) -> Result<bool, Vec<Problem>> {
        let first = self.seed.unwrap_or_else(fresh_seed);
        if self.draw {
            print(&story(first).drawn(first).to_toml());
            return Ok(true);
        }
        let nest = Nest::open(&self.keep).map_err(|problem| about(&self.keep, problem))?;
        if !as_json {
            print(&format!("seeds from {first}"));
        }
        let began = SystemTime::now();
        let commit = crate::tool::commit();
        let state =
            State { next: first, unwritten: Tally::default(), all: Tally::default(), written: began, problem: None };
        let state = Mutex::new(state);
        let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
        let over = |state: &State| {
            state.problem.is_some()
                || self.runs.is_some_and(|runs| state.next - first >= runs)
                || self.lasts.is_some_and(|lasts| began.elapsed().unwrap_or_default() >= lasts)
        };
        let write_down = |state: &mut State| {
            let unwritten = std::mem::take(&mut state.unwritten);
            state.written = SystemTime::now();
            if let Err(problem) = nest.add(&commit, &unwritten) {
                state.problem = Some(problem);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.jobs {
                scope.spawn(|| {
                    loop {
                        let seed = {
                            let mut state = lock();
                            if over(&state) {
                                return;
                            }
                            state.next += 1;
                            state.next - 1
                        };
                        let story = story(seed);
                        let report = play(&story, seed, None);
                        let mut state = lock();
                        state.unwritten.take(&report);
                        state.all.take(&report);
                        if report.found.is_some() {
                            self.tell(&report, as_json);
                            match nest.keep(&story.drawn(seed), &report) {
                                Ok(Some(file)) => {
                                    complain(&format!("the smallest of its kind so far: {}", file.display()))
                                }
                                Ok(None) => {}
                                Err(problem) => state.problem = Some(problem),
                            }
                        }
                        if state.written.elapsed().unwrap_or_default() >= WRITE_EVERY {
                            write_down(&mut state);
                        }
                    }
                });
            }
        });
        let mut state = lock();
        write_down(&mut state);
        if let Some(problem) = state.problem.take() {
            return Err(about(&self.keep, problem));
        }
        let count = nest.count().map_err(|problem| about(&self.keep, problem))?;
        let wall = began.elapsed().unwrap_or_default();
        if as_json {
            let done = json!({"runs": state.all.runs, "failed": state.all.failed, "excused": state.all.excused,
                "wall_ms": wall.as_millis(), "first_seed": first, "total": count["total"]});
            print(&done.to_string());
        } else {
            let (all, total) = (&state.all, &count["total"]);
            print(&format!(
                "{} runs in {} s, {} failed, {} excused; on all days {} runs, {} failed",
                all.runs,
                wall.as_secs(),
                all.failed,
                all.excused,
                total["runs"],
                total["failed"]
            ));
        }
        Ok(state.all.failed == 0)
    }

    fn tell(&self, report: &Report, as_json: bool) {
        let Some(found) = &report.found else { return };
        let (seed, oracle) = (report.seed, found.oracle);
        if as_json {
            let line = json!({"seed": seed, "property": oracle, "expected": found.violation.expected,
                "saw": found.violation.saw, "step": found.step});
            return print(&line.to_string());
        }
        let file = self.keep.join(format!("swarm-{seed}.toml"));
        let file = file.display();
        print(&format!(
            "seed {seed} fails at step {}\n  property: {oracle}\n  {}\n    diagram: cargo run -p muster-sim -- swarm --seed \
             {seed} --draw > {file} && cargo run -p muster-sim -- replay {file} --seed {seed} --html {file}.html",
            found.step, found.violation
        ));
    }
}
