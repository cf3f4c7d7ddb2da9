//! Every story under `scenarios/` is played: at fixed seeds, and at a fresh one that is printed. A sample is played once more in
//! another process, and must be the same, event for event.
//!
//! A story that must fail somewhere is played at more seeds until it does.
//!
//! `MUSTER_FRESH_SEED=N` takes the place of the fresh one: what decides whether a change may land is the same every time.
//!
//! The folder is walked when the test runs, so a story counts from the moment it is there.

use muster_sim::run::play;
use muster_sim::scenario::Scenario;
use muster_sim::tool::{elsewhere, failure, fresh_seed, printed};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Seeds at which every story is always played.
const FIXED: [u64; 2] = [1, 2];
/// Up to which seed a story is played that must fail somewhere, as long as it did not.
const SEARCHED: u64 = 60;
/// Every so manieth story is played in a second process too.
const SAMPLE: usize = 5;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in a workspace")
}

fn stories() -> Vec<PathBuf> {
    let mut folders = vec![root().join("scenarios")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("a folder can be read").path();
            if path.is_dir() {
                // What takes minutes is played by hand, and compared by `.ci/same`.
                if !path.ends_with("long") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|ending| ending == "toml") {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(!files.is_empty(), "there are no stories under scenarios/");
    files
}

#[test]
fn every_story_holds_at_fixed_seeds_and_a_fresh_one() {
    let fresh = match std::env::var("MUSTER_FRESH_SEED") {
        Ok(seed) => seed.parse().expect("MUSTER_FRESH_SEED is a number"),
        Err(_) => fresh_seed(),
    };
    println!("the fresh seed is {fresh}");
    let binary = Path::new(env!("CARGO_BIN_EXE_muster-sim"));
    let work: Mutex<Vec<(usize, PathBuf)>> = Mutex::new(stories().into_iter().enumerate().collect());
    let failures: Mutex<Vec<String>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some((number, file)) = work.lock().expect("no worker panics").pop() else { return };
                    let story = match Scenario::read(&file) {
                        Ok(story) => story,
                        Err(problems) => {
                            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
                            failures.lock().expect("no worker panics").push(lines.join("\n"));
                            continue;
                        }
                    };
                    let mut missed = story.wanted();
                    let searched = story.expect.violated.iter().flat_map(|_| FIXED[1] + 1..=SEARCHED);
                    for (place, seed) in FIXED.into_iter().chain([fresh]).chain(searched).enumerate() {
                        if place > FIXED.len() && missed.is_empty() {
                            break;
                        }
                        let report = play(&story, seed, None);
                        missed.retain(|mark| report.missed.contains(mark));
                        if report.found.is_some() {
                            let from_here = file.strip_prefix(root()).unwrap_or(&file);
                            failures.lock().expect("no worker panics").push(failure(from_here, &report));
                        }
                        if number % SAMPLE == 0 && seed == FIXED[0] {
                            let other = elsewhere(binary, &file, seed);
                            if other != Ok(printed(&report.fingerprint)) {
                                let line = format!(
                                    "{} at seed {seed}: here {:?}, in another process {other:?}",
                                    file.display(),
                                    printed(&report.fingerprint)
                                );
                                failures.lock().expect("no worker panics").push(line);
                            }
                        }
                    }
                    if !missed.is_empty() {
                        let line = format!(
                            "{}: no seed reached {}",
                            file.display(),
                            missed.into_iter().collect::<Vec<_>>().join(", ")
                        );
                        failures.lock().expect("no worker panics").push(line);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no worker panics");
    assert!(failures.is_empty(), "{} failures:\n\n{}", failures.len(), failures.join("\n\n"));
}
