//! `mutants`: hunts known bugs, and tells what each cost and which property caught it.

use super::about;
use crate::mutants::{Bag, HEAD, Hunt, Ledger, Mutant, Row, Workshop, hunt, read_all};
use crate::oracles;
use crate::run::{AGENTS_REST, BROKEN, LIVENESS};
use crate::scenario::Problem;
use crate::tool::{complain, print};
use clap::Args;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
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
    /// Keeps what is measured in sim/mutants/hunts.jsonl, and writes it into docs/mutants.md.
    #[arg(long)]
    keep: bool,
}

/// Seeds of different starts never meet.
const SEEDS_APART: u64 = 1_000_000;

/// Where hunts are kept, and the document that shows them.
const LEDGER: &str = "sim/mutants/hunts.jsonl";
const DOCUMENT: &str = "docs/mutants.md";

/// Every property's words.
fn properties() -> Vec<&'static str> {
    let oracles = oracles::all();
    oracles.iter().map(|oracle| oracle.name()).chain([LIVENESS, AGENTS_REST, BROKEN]).collect()
}

impl Mutants {
    pub(crate) fn run(&self, as_json: bool) -> Result<bool, Vec<Problem>> {
        let folder = Path::new("sim/mutants");
        let mut mutants = read_all(folder)?;
        let unknown = self.only.iter().find(|id| mutants.iter().all(|mutant| mutant.id != **id));
        if let Some(id) = unknown {
            let known: Vec<&str> = mutants.iter().map(|mutant| mutant.id.as_str()).collect();
            return Err(about(folder, &format!("no mutant is called {id}: expected one of {}", known.join(", "))));
        }
        if !self.only.is_empty() {
            mutants.retain(|mutant| self.only.contains(&mutant.id));
        }
        let shop = Workshop::new(Path::new("."), &self.work, self.build.as_deref())
            .map_err(|problem| about(&self.work, &problem))?;
        let of = |mutant: &Mutant| folder.join(format!("{}.toml", mutant.id));
        let problems: Vec<Problem> =
            mutants.iter().filter_map(|mutant| Some(about(&of(mutant), &shop.fits(mutant).err()?))).flatten().collect();
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
        let told = |row: &Row| {
            print(&if as_json { json!(row).to_string() } else { row.to_markdown() });
            self.keep(row)
        };
        if self.clean > 0 {
            let bag = self.clean(&shop, &mutants).map_err(|problem| about(&self.work, &problem))?;
            let row = Row::new(None, &[bag]);
            good &= row.killed == 0;
            complain(&format!("clean build: {} runs, {} false alarms", row.runs, row.killed));
            told(&row)?;
        }
        for mutant in &mutants {
            complain(&format!("{}: {}", mutant.id, mutant.about));
            match self.hunts(&shop, mutant) {
                Ok(bags) => {
                    let row = Row::new(Some(mutant), &bags);
                    good &= row.as_expected == row.starts;
                    told(&row)?;
                }
                // The others are hunted all the same.
                Err(problem) => {
                    complain(&format!("{}: {problem}", of(mutant).display()));
                    good = false;
                }
            }
        }
        Ok(good)
    }

    fn hunt(&self, mutant: Option<&Mutant>, start: u64, runs: u64) -> Hunt {
        let own = mutant.filter(|mutant| !mutant.scenarios.is_empty());
        let scenarios = own.map_or_else(|| self.scenarios.clone(), |mutant| mutant.scenarios.clone());
        let seed = self.seed + start * SEEDS_APART;
        Hunt { scenarios, seed, runs, patience: Duration::from_secs(self.patience) }
    }

    /// Plays every story that one of the mutants is hunted with.
    fn clean(&self, shop: &Workshop, mutants: &[Mutant]) -> Result<Bag, String> {
        let all = mutants.iter().flat_map(|mutant| self.hunt(Some(mutant), 0, 1).scenarios);
        let scenarios = all.collect::<BTreeSet<PathBuf>>().into_iter().collect();
        hunt(&shop.build(None)?, &Hunt { scenarios, ..self.hunt(None, 0, self.clean) })
    }

    /// Keeps what was measured, and shows it in the document.
    fn keep(&self, row: &Row) -> Result<(), Vec<Problem>> {
        if !self.keep {
            return Ok(());
        }
        let (file, document) = (Path::new(LEDGER), Path::new(DOCUMENT));
        let mut ledger = Ledger::read(file)?;
        ledger.take(row.clone());
        fs::write(file, ledger.to_lines()).map_err(|error| about(file, &error.to_string()))?;
        let text = fs::read_to_string(document).map_err(|error| about(document, &error.to_string()))?;
        let tables = ledger.to_markdown(properties());
        let text = Ledger::put_into(&text, &tables).map_err(|problem| about(document, &problem))?;
        fs::write(document, text).map_err(|error| about(document, &error.to_string()))
    }

    fn hunts(&self, shop: &Workshop, mutant: &Mutant) -> Result<Vec<Bag>, String> {
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
        bags.into_inner().expect("no worker panics").into_values().collect()
    }
}
