//! `mutants`: hunts known bugs, and tells what each cost and which property caught it.

use super::about;
use crate::mutants::{Bag, End, Hunt, Mutant, Workshop, hunt, read_all};
use crate::scenario::Problem;
use crate::tool::{complain, print};
use clap::Args;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

#[derive(Args)]
pub(crate) struct Mutants {
    /// Only this one, or these.
    #[arg(long)]
    only: Vec<String>,
    /// How often each hunt begins anew, at other seeds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    starts: u64,
    /// At most so many runs from each start.
    #[arg(long, default_value_t = 2_000)]
    runs: u64,
    /// So many runs of the clean build, to count false alarms; 0 for none.
    #[arg(long, default_value_t = 200)]
    clean: u64,
    /// How many hunts at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// Stories to hunt with, where a mutant names none.
    #[arg(long = "scenario", default_values = ["sim/mutants/stories/short.toml"])]
    scenarios: Vec<PathBuf>,
    /// The first start's seed; each start has a range of seeds of its own.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seconds one run may take before it counts as stuck.
    #[arg(long, default_value_t = 120)]
    patience: u64,
    /// Where copies and binaries go.
    #[arg(long, default_value = "target/mutants")]
    work: PathBuf,
    /// Where cargo builds; inside --work if absent.
    #[arg(long)]
    build: Option<PathBuf>,
    /// Only lists the mutants, and checks that they fit.
    #[arg(long)]
    list: bool,
}

/// Seeds of different starts never meet.
const SEEDS_APART: u64 = 1_000_000;

/// What the hunts of one mutant came to.
struct Bagged<'a> {
    mutant: Option<&'a Mutant>,
    bags: Vec<Bag>,
}

impl Bagged<'_> {
    fn id(&self) -> &str {
        self.mutant.map_or("(clean build)", |mutant| &mutant.id)
    }

    fn killed(&self) -> Vec<&Bag> {
        self.bags.iter().filter(|bag| matches!(bag.end, End::Killed { .. })).collect()
    }

    /// Properties that fired, and how often.
    fn properties(&self) -> BTreeMap<String, usize> {
        let mut properties = BTreeMap::new();
        for bag in &self.bags {
            let word = match &bag.end {
                End::Killed { property } => property.clone(),
                End::Stuck => "(stuck)".into(),
                End::Survived => continue,
            };
            *properties.entry(word).or_default() += 1;
        }
        properties
    }

    /// Starts that ended with a property the mutant names.
    fn as_expected(&self) -> usize {
        let Some(mutant) = self.mutant else { return 0 };
        let named = |bag: &&Bag| matches!(&bag.end, End::Killed { property } if mutant.oracles.contains(property));
        self.bags.iter().filter(named).count()
    }

    fn as_json(&self) -> serde_json::Value {
        let killed = self.killed();
        let runs: Vec<u64> = killed.iter().map(|bag| bag.runs).collect();
        let time: Vec<u64> = killed.iter().map(|bag| bag.simulated_us / 1_000_000).collect();
        json!({
            "mutant": self.id(),
            "starts": self.bags.len(),
            "killed": killed.len(),
            "as_expected": self.as_expected(),
            "runs": self.bags.iter().map(|bag| bag.runs).sum::<u64>(),
            "runs_to_kill": {"median": rank(runs.clone(), 50), "p95": rank(runs, 95)},
            "simulated_s_to_kill": {"median": rank(time.clone(), 50), "p95": rank(time, 95)},
            "properties": self.properties(),
        })
    }

    fn as_row(&self) -> String {
        let killed = self.killed();
        let runs: Vec<u64> = killed.iter().map(|bag| bag.runs).collect();
        let time: Vec<u64> = killed.iter().map(|bag| bag.simulated_us / 1_000_000).collect();
        let cell = |value: Option<u64>| value.map_or_else(|| "-".into(), |value| value.to_string());
        let fired: Vec<String> =
            self.properties().iter().map(|(property, count)| format!("{property} ({count})")).collect();
        format!(
            "| {} | {}/{} | {} | {} | {} | {} | {}/{} |",
            self.id(),
            killed.len(),
            self.bags.len(),
            cell(rank(runs.clone(), 50)),
            cell(rank(runs, 95)),
            cell(rank(time, 50)),
            if fired.is_empty() { "none".into() } else { fired.join("; ") },
            self.as_expected(),
            killed.len(),
        )
    }
}

/// The value that so many percent do not exceed.
fn rank(mut values: Vec<u64>, percent: usize) -> Option<u64> {
    values.sort_unstable();
    let place = (values.len() * percent).div_ceil(100).checked_sub(1)?;
    values.get(place).copied()
}

const HEAD: &str = "| mutant | killed/starts | runs to kill, median | p95 | simulated s, median | properties that fired | \
                    a named one |\n|---|---|---|---|---|---|---|";

impl Mutants {
    pub(crate) fn run(&self, as_json: bool) -> Result<bool, Vec<Problem>> {
        let folder = Path::new("sim/mutants");
        let mut mutants = read_all(folder)?;
        let unknown = self.only.iter().find(|id| mutants.iter().all(|mutant| mutant.id != **id));
        if let Some(id) = unknown {
            let known: Vec<&str> = mutants.iter().map(|mutant| mutant.id.as_str()).collect();
            return Err(about(folder, format!("no mutant is called {id}: expected one of {}", known.join(", "))));
        }
        if !self.only.is_empty() {
            mutants.retain(|mutant| self.only.contains(&mutant.id));
        }
        let shop = Workshop::new(Path::new("."), &self.work, self.build.as_deref())
            .map_err(|problem| about(&self.work, problem))?;
        let of = |mutant: &Mutant| folder.join(format!("{}.toml", mutant.id));
        let problems: Vec<Problem> =
            mutants.iter().filter_map(|mutant| Some(about(&of(mutant), shop.fits(mutant).err()?))).flatten().collect();
        if !problems.is_empty() {
            return Err(problems);
        }
        if self.list {
            for mutant in &mutants {
                print(&format!("{}: {} ({})", mutant.id, mutant.about, mutant.source));
            }
            return Ok(true);
        }
        if !as_json {
            print(HEAD);
        }
        let mut good = true;
        if self.clean > 0 {
            let bag = self.clean(&shop).map_err(|problem| about(&self.work, problem))?;
            let clean = Bagged { mutant: None, bags: vec![bag] };
            good &= clean.killed().is_empty();
            print(&if as_json { clean.as_json().to_string() } else { clean.as_row() });
            complain(&format!("clean build: {} runs, {} false alarms", clean.bags[0].runs, clean.killed().len()));
        }
        for mutant in &mutants {
            complain(&format!("{}: {}", mutant.id, mutant.about));
            let result = self.hunts(&shop, mutant).map_err(|problem| about(&of(mutant), problem))?;
            good &= result.as_expected() == result.bags.len();
            print(&if as_json { result.as_json().to_string() } else { result.as_row() });
        }
        Ok(good)
    }

    fn hunt(&self, mutant: Option<&Mutant>, start: u64, runs: u64) -> Hunt {
        let own = mutant.filter(|mutant| !mutant.scenarios.is_empty());
        let scenarios = own.map_or_else(|| self.scenarios.clone(), |mutant| mutant.scenarios.clone());
        let seed = self.seed + start * SEEDS_APART;
        Hunt { scenarios, seed, runs, patience: Duration::from_secs(self.patience) }
    }

    fn clean(&self, shop: &Workshop) -> Result<Bag, String> {
        hunt(&shop.build(None)?, &self.hunt(None, 0, self.clean))
    }

    fn hunts<'a>(&self, shop: &Workshop, mutant: &'a Mutant) -> Result<Bagged<'a>, String> {
        let binary = shop.build(Some(mutant))?;
        let next = Mutex::new(0..self.starts);
        let bags: Mutex<BTreeMap<u64, Result<Bag, String>>> = Mutex::default();
        std::thread::scope(|scope| {
            for _ in 0..self.jobs {
                scope.spawn(|| {
                    loop {
                        let Some(start) = next.lock().expect("no worker panics").next() else { return };
                        let bag = hunt(&binary, &self.hunt(Some(mutant), start, self.runs));
                        if let Ok(bag) = &bag {
                            complain(&format!("  start {start}: {:?} after {} runs", bag.end, bag.runs));
                        }
                        bags.lock().expect("no worker panics").insert(start, bag);
                    }
                });
            }
        });
        let bags = bags.into_inner().expect("no worker panics").into_values().collect::<Result<_, _>>()?;
        Ok(Bagged { mutant: Some(mutant), bags })
    }
}
