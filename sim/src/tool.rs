//! What the command line does: playing stories at seeds, printing what came of it, comparing processes.
//!
//! Output for people by default, one JSON object per line with `--json`. Exit codes: 0 all is well, 1 a property does not hold,
//! 2 usage or a bad scenario file.

use crate::event::Fingerprint;
use crate::run::{Report, play};
use crate::scenario::{Problem, SECOND, Scenario};
use crate::storm::StormReport;
use crate::verbs;
use clap::{Args, Parser, Subcommand};
use serde_json::json;
use std::collections::{BTreeMap, VecDeque};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};

/// Plays stories of faults against whole clusters of the real code over simulated devices; every run is a number.
#[derive(Parser)]
#[command(name = "muster-sim", version, arg_required_else_help = true)]
struct Line {
    #[command(subcommand)]
    verb: Verb,
    /// One JSON object per line instead of text.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Verb {
    /// Plays scenario files at seeds.
    Run(Run),
    /// Plays one scenario at one seed again, with what happened.
    Replay(Replay),
    /// Plays scenarios in two processes and compares the streams of events.
    Same(Same),
    /// Writes the story that a seed makes of a scenario, every fault written out.
    Draw(One),
    /// Makes a short story of a failure: leaves out faults, operations, replicas and time while the same property fails.
    Shrink(verbs::shrink::Shrink),
    /// Plays random stories at random seeds until told to stop; keeps the smallest failure per property.
    Swarm(verbs::swarm::Swarm),
    /// Puts known bugs back into a copy of the sources and tells how soon they are found.
    Mutants(verbs::mutants::Mutants),
}

#[derive(Args)]
struct Run {
    /// Scenario files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The seed; drawn and printed if neither this nor --seeds is given.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Seeds from A up to, not including, B.
    #[arg(long, value_name = "A..B", value_parser = seeds)]
    seeds: Option<(u64, u64)>,
    /// How many runs at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
}

#[derive(Args)]
struct One {
    /// The scenario file.
    file: PathBuf,
    /// The seed.
    #[arg(long)]
    seed: u64,
}

#[derive(Args)]
struct Same {
    /// Scenario files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The seed; 1 if neither this nor --seeds is given.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Seeds from A up to, not including, B.
    #[arg(long, value_name = "A..B", value_parser = seeds)]
    seeds: Option<(u64, u64)>,
    /// Another build of this program, which plays them the second time.
    #[arg(long, value_name = "BINARY")]
    against: Option<PathBuf>,
}

#[derive(Args)]
struct Replay {
    #[command(flatten)]
    one: One,
    /// Prints every event.
    #[arg(long)]
    trace: bool,
    /// Prints only events whose line contains this, like "r2", "term" or "#17".
    #[arg(long, value_name = "TEXT", requires = "trace")]
    only: Option<String>,
    /// Writes a space-time diagram, one page that needs nothing else.
    #[arg(long, value_name = "FILE", conflicts_with = "trace")]
    html: Option<PathBuf>,
    /// How many events the diagram draws, up to the end.
    #[arg(long, default_value_t = crate::diagram::EVENTS, value_name = "COUNT")]
    events: usize,
}

fn seeds(text: &str) -> Result<(u64, u64), String> {
    let want = || format!("{text:?} is not a range of seeds: expected A..B with A less than B, like 1..100");
    let (from, to) = text.split_once("..").ok_or_else(want)?;
    let (from, to) = (from.parse().map_err(|_| want())?, to.parse().map_err(|_| want())?);
    if from < to { Ok((from, to)) } else { Err(want()) }
}

/// The commit this was built from, where there is a repository.
pub(crate) fn commit() -> String {
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let text = output.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    text.map_or_else(|| "unknown".into(), |text| String::from_utf8_lossy(&text).trim().to_owned())
}

/// A failure as people read it.
#[must_use]
pub fn failure(file: &Path, report: &Report) -> String {
    let Some(found) = &report.found else { return String::new() };
    format!(
        "{file} fails at seed {seed}\n  property: {oracle}\n    source: {source}\n      step: {step} at {time}\n  expected: {expected}\n       \
         saw: {saw}\n    commit: {commit}\n    replay: cargo run -p muster-sim -- replay {file} --seed {seed} --trace\n   \
         diagram: cargo run -p muster-sim -- replay {file} --seed {seed} --html target/muster-sim/{name}-{seed}.html\n    \
         shrink: cargo run -p muster-sim -- shrink {file} --seed {seed} --out target/muster-sim/{name}-short.toml",
        name = report.scenario,
        file = file.display(),
        seed = report.seed,
        oracle = found.oracle,
        source = found.source,
        step = found.step,
        time = found.time,
        expected = found.violation.expected,
        saw = found.violation.saw,
        commit = commit(),
    )
}

fn as_json(file: &Path, report: &Report) -> serde_json::Value {
    json!({
        "file": file.display().to_string(),
        "seed": report.seed,
        "good": report.found.is_none(),
        "hash": report.fingerprint.hash.to_string(),
        "events": report.fingerprint.events,
        "simulated_us": report.simulated.0 / 1_000,
        "asked": report.asked,
        "acknowledged": report.acknowledged,
        "excused": report.excused,
        "marks": report.marks,
        "missed": report.missed,
        "storm": report.storm.as_ref().map(storm_json),
        "failure": report.found.as_ref().map(|found| json!({
            "property": found.oracle,
            "source": found.source,
            "step": found.step,
            "time_us": found.time.0 / 1_000,
            "expected": found.violation.expected,
            "saw": found.violation.saw,
            "commit": commit(),
        })),
    })
}

fn storm_json(storm: &StormReport) -> serde_json::Value {
    let three = |(half, most, longest): (u64, u64, u64), high: &str| json!({"p50": half, high: most, "max": longest});
    json!({
        "nodes": storm.nodes,
        "booted": storm.booted,
        "lasted_us": storm.lasted / 1_000,
        "boot_us": three(storm.boot_micros, "p99"),
        "retries": storm.retries,
        "told_later": storm.told_later,
        "broken": storm.broken,
        "bytes": storm.bytes.iter().map(|(id, bytes)| (id.to_string(), *bytes)).collect::<BTreeMap<_, _>>(),
        "overlay_bytes": storm.overlay_bytes,
        "commit_before_us": three(storm.before_micros, "p90"),
        "commit_during_us": three(storm.during_micros, "p90"),
    })
}

/// A storm as people read it.
fn storm_text(storm: &StormReport) -> String {
    let ms = |micros: u64| format!("{}.{:01} ms", micros / 1_000, micros % 1_000 / 100);
    let three = |(half, most, longest): (u64, u64, u64), high: &str| {
        format!("p50 {}, {high} {}, max {}", ms(half), ms(most), ms(longest))
    };
    let bytes: Vec<String> = storm.bytes.iter().map(|(id, bytes)| format!("r{id} {} MB", bytes / 1_000_000)).collect();
    format!(
        "  boot storm: {} of {} nodes booted in {:.1} s; overlays of {:?} bytes\n    boot time {}\n    {} retries: {} told to \
         come back, {} broken connections\n    sent to nodes: {}\n    commits before: {}\n    commits during: {}",
        storm.booted,
        storm.nodes,
        seconds(storm.lasted),
        storm.overlay_bytes,
        three(storm.boot_micros, "p99"),
        storm.retries,
        storm.told_later,
        storm.broken,
        bytes.join(", "),
        three(storm.before_micros, "p90"),
        three(storm.during_micros, "p90"),
    )
}

/// The most memory this process ever held, where the operating system tells.
fn memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Entry point of the binary.
#[must_use]
pub fn main() -> ExitCode {
    let line = Line::parse();
    let outcome = match &line.verb {
        Verb::Run(run) => run_all(run, line.json),
        Verb::Replay(replay) => replay_one(replay, line.json),
        Verb::Same(these) => same(these, line.json),
        Verb::Draw(one) => read(&one.file).map(|scenario| {
            print(&scenario.drawn(one.seed).to_toml());
            true
        }),
        Verb::Shrink(shrink) => shrink.run(line.json),
        Verb::Swarm(swarm) => swarm.run(line.json),
        Verb::Mutants(mutants) => mutants.run(line.json),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(problems) => {
            for problem in problems {
                complain(&problem.to_string());
            }
            ExitCode::from(2)
        }
    }
}

pub(crate) fn print(text: &str) {
    // Whoever closed the pipe does not want more.
    let _closed_pipe = writeln!(std::io::stdout(), "{text}");
}

pub(crate) fn complain(text: &str) {
    let _closed_pipe = writeln!(std::io::stderr(), "{text}");
}

pub(crate) fn read(file: &Path) -> Result<Scenario, Vec<Problem>> {
    Scenario::read(file)
}

/// A seed nobody chose.
#[must_use]
pub fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    crate::draw::Draw::of(u64::from(std::process::id()), "fresh", now.as_nanos().try_into().unwrap_or(u64::MAX))
        .number()
        >> 16
}

#[derive(Default)]
struct Sum {
    runs: u64,
    failed: u64,
    events: u64,
    simulated: u128,
    acknowledged: u64,
    excused: u64,
    marks: BTreeMap<&'static str, u64>,
    /// By story: how many runs missed each mark it wants, and how many runs there were.
    missed: BTreeMap<PathBuf, (u64, BTreeMap<String, u64>)>,
}

fn run_all(run: &Run, json: bool) -> Result<bool, Vec<Problem>> {
    let mut stories = Vec::new();
    let mut problems = Vec::new();
    for file in &run.files {
        match read(file) {
            Ok(story) => stories.push((file.clone(), Arc::new(story))),
            Err(more) => problems.extend(more),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let (from, to) = match (run.seed, run.seeds) {
        (Some(seed), _) => (seed, seed + 1),
        (None, Some(range)) => range,
        (None, None) => {
            let seed = fresh_seed();
            if !json {
                print(&format!("seed {seed}"));
            }
            (seed, seed + 1)
        }
    };
    let mut work: VecDeque<(PathBuf, Arc<Scenario>, u64)> = VecDeque::new();
    for seed in from..to {
        work.extend(stories.iter().map(|(file, story)| (file.clone(), story.clone(), seed)));
    }
    let began = std::time::SystemTime::now();
    let work = Arc::new(Mutex::new(work));
    let sum: Arc<Mutex<Sum>> = Arc::default();
    let workers: Vec<_> = (0..run.jobs)
        .map(|_| {
            let (work, sum) = (work.clone(), sum.clone());
            std::thread::spawn(move || {
                loop {
                    let next = work.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((file, story, seed)) = next else { return };
                    let report = play(&story, seed, None);
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                    sum.runs += 1;
                    sum.events += report.fingerprint.events;
                    sum.simulated += u128::from(report.simulated.0);
                    sum.acknowledged += report.acknowledged;
                    sum.excused += u64::from(report.excused.is_some());
                    for mark in &report.marks {
                        *sum.marks.entry(mark).or_default() += 1;
                    }
                    let missed = sum.missed.entry(file.clone()).or_default();
                    missed.0 += 1;
                    for mark in &report.missed {
                        *missed.1.entry(mark.clone()).or_default() += 1;
                    }
                    if report.found.is_some() {
                        sum.failed += 1;
                    }
                    if let Some(storm) = report.storm.as_ref().filter(|_| !json) {
                        print(&storm_text(storm));
                    }
                    if json {
                        print(&as_json(&file, &report).to_string());
                    } else if report.found.is_some() {
                        keep(&story, seed);
                        print(&failure(&file, &report));
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        drop(worker.join());
    }
    let sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
    if !json {
        let wall = began.elapsed().unwrap_or_default().as_secs_f64().max(1e-6);
        #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = |count: u128| count as f64 / wall;
        print(&format!(
            "{} runs, {} failed, {} excused in {wall:.1} s; {:.2} seeds/s ({:.0} runs/h), {:.0} simulated s/s, {:.0} events/s, {} \
             acknowledged writes{}",
            sum.runs,
            sum.failed,
            sum.excused,
            rate(u128::from(sum.runs)),
            rate(u128::from(sum.runs)) * 3_600.0,
            rate(sum.simulated) / 1e9,
            rate(u128::from(sum.events)),
            sum.acknowledged,
            memory().map_or(String::new(), |bytes| format!(", at most {} MiB of memory", bytes >> 20)),
        ));
        for (mark, count) in &sum.marks {
            print(&format!("  mark {mark}: in {count} of {} runs", sum.runs));
        }
    }
    let mut good = sum.failed == 0;
    for (file, (runs, missed)) in &sum.missed {
        for (mark, times) in missed {
            // One run says little about where luck must help.
            let always = times == runs && *runs > 1;
            good &= !always;
            if always && !json {
                print(&format!("{}: none of {runs} runs reached {mark}, which the story wants", file.display()));
            }
        }
    }
    Ok(good)
}

/// Keeps the drawn story of a failure, for replay and for shrinking.
fn keep(story: &Scenario, seed: u64) {
    let folder = Path::new("target/muster-sim");
    let file = folder.join(format!("{}-{seed}.toml", story.name));
    let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&file, story.drawn(seed).to_toml()));
    match written {
        Ok(()) => complain(&format!("the drawn story is in {}", file.display())),
        Err(error) => complain(&format!("{}: {error}", file.display())),
    }
}

fn replay_one(replay: &Replay, json: bool) -> Result<bool, Vec<Problem>> {
    let story = read(&replay.one.file)?;
    let trace: Option<crate::world::Trace> = replay.trace.then(|| {
        let only = replay.only.clone();
        let trace: crate::world::Trace = Box::new(move |step, time, event| {
            let line = format!("{step:>7} {time} {event}");
            if only.as_ref().is_none_or(|only| line.contains(only)) {
                print(&line);
            }
        });
        trace
    });
    let report = if let Some(html) = &replay.html {
        let command = format!(
            "cargo run -p muster-sim -- replay {} --seed {} --trace",
            replay.one.file.display(),
            replay.one.seed
        );
        let (report, words) = verbs::draw(&story, replay.one.seed, Some(html), replay.events, &command)?;
        if !json {
            print(&format!("{words}\n\n diagram: {}", html.display()));
        }
        report
    } else {
        play(&story, replay.one.seed, trace)
    };
    if json {
        print(&as_json(&replay.one.file, &report).to_string());
    } else if report.found.is_some() {
        print(&failure(&replay.one.file, &report));
    } else {
        print(&format!(
            "{} at seed {}: all is well; {} events in {:.1} simulated s, {} acknowledged writes, hash {}{}",
            replay.one.file.display(),
            report.seed,
            report.fingerprint.events,
            seconds(report.simulated.0),
            report.acknowledged,
            report.fingerprint.hash,
            report.excused.map_or(String::new(), |why| format!("; excused: {why}")),
        ));
    }
    Ok(report.found.is_none())
}

#[allow(clippy::cast_precision_loss, reason = "for people")]
fn seconds(nanos: u64) -> f64 {
    nanos as f64 / SECOND as f64
}

/// Hash and length of a run in a process of its own.
///
/// # Errors
/// What that process said, if it did not answer.
pub fn elsewhere(binary: &Path, file: &Path, seed: u64) -> Result<(String, u64), String> {
    let output = Command::new(binary)
        .args(["--json", "replay"])
        .arg(file)
        .args(["--seed", &seed.to_string()])
        .output()
        .map_err(|error| error.to_string())?;
    let value: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(&output.stderr)))?;
    let hash = value["hash"].as_str().unwrap_or_default().to_owned();
    Ok((hash, value["events"].as_u64().unwrap_or_default()))
}

/// As `elsewhere` gives it.
#[must_use]
pub fn printed(fingerprint: &Fingerprint) -> (String, u64) {
    (fingerprint.hash.to_string(), fingerprint.events)
}

/// What a process of its own makes of every file and seed.
fn all_elsewhere(binary: &Path, files: &[PathBuf], (from, to): (u64, u64)) -> Result<Prints, String> {
    let output = Command::new(binary)
        .args(["--json", "run"])
        .args(files)
        .args(["--seeds", &format!("{from}..{to}")])
        .output()
        .map_err(|error| format!("{}: {error}", binary.display()))?;
    let mut prints = Prints::new();
    for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let value: serde_json::Value = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str| value[key].as_u64().unwrap_or_default();
        prints.insert((text("file"), number("seed")), (text("hash"), number("events")));
    }
    let all = files.len() * usize::try_from(to - from).unwrap_or(usize::MAX);
    if prints.len() == all {
        Ok(prints)
    } else {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(format!("{} tells of {} runs of {all}: {said}", binary.display(), prints.len()))
    }
}

/// By file and seed: hash and length.
type Prints = BTreeMap<(String, u64), (String, u64)>;

fn same(same: &Same, json: bool) -> Result<bool, Vec<Problem>> {
    let mut problems = Vec::new();
    for file in &same.files {
        problems.extend(read(file).err().unwrap_or_default());
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let problem = |problem| vec![Problem { file: "same".into(), line: 0, problem }];
    let me = std::env::current_exe().map_err(|error| problem(error.to_string()))?;
    let other = same.against.as_ref().unwrap_or(&me);
    let seeds = match (same.seed, same.seeds) {
        (_, Some(seeds)) => seeds,
        (seed, None) => (seed.unwrap_or(1), seed.unwrap_or(1) + 1),
    };
    let here = all_elsewhere(&me, &same.files, seeds).map_err(problem)?;
    let there = all_elsewhere(other, &same.files, seeds).map_err(problem)?;
    let mut good = true;
    for ((file, seed), first) in &here {
        let second = there.get(&(file.clone(), *seed));
        let equal = second == Some(first);
        good &= equal;
        if json {
            let line = json!({"file": file, "seed": seed, "same": equal, "first": first, "second": second});
            print(&line.to_string());
        } else if !equal {
            print(&format!("NOT the same: {file} at seed {seed}: {first:?}, then {second:?}"));
        }
    }
    if good && !json {
        if let (1, Some((hash, events))) = (here.len(), here.values().next()) {
            print(&format!("the same twice: {events} events, hash {hash}"));
        } else {
            let events: u64 = here.values().map(|(_, events)| events).sum();
            print(&format!("the same twice: {} runs, {events} events", here.len()));
        }
    }
    Ok(good)
}
