//! Random stories: a seed draws the cluster, the load, the budget and what operators do; the nemesis does the rest.
//!
//! A number is a story and its run, so a failure that a swarm found is found again by it. Kept on disk: the smallest failure per
//! property, and a count that grows from day to day. The count of an older format is refused, never guessed.

use crate::draw::Draw;
use crate::run::Report;
use crate::scenario::{Kind, Scenario};
use crate::shrink::items;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The story of a seed.
///
/// # Panics
/// If the drawn story would be refused, which is a mistake here.
#[must_use]
pub fn story(seed: u64) -> Scenario {
    let text = text(seed).expect("text can be written");
    let name = format!("swarm-{seed}");
    match Scenario::parse(&name, &name, &text) {
        Ok(story) => story,
        Err(problems) => panic!("the swarm draws a story that is refused: {problems:?}\n{text}"),
    }
}

fn text(seed: u64) -> Result<String, std::fmt::Error> {
    let mut draw = Draw::of(seed, "swarm", 0);
    let voters = [1, 3, 3, 3, 3, 5, 5][draw.place(7)];
    let learners = draw.below(3);
    let wan = draw.percent(10);
    let mut out = format!("about = \"Drawn by the swarm from seed {seed}.\"\n[cluster]\n");
    writeln!(out, "voters = {voters}\nlearners = {learners}\ntiming = \"{}\"", if wan { "wan" } else { "lan" })?;
    writeln!(out, "snapshot_entries = {}", draw.between(20, 400))?;
    writeln!(out, "snapshot_pause_ms = {}", draw.between(100, 4_000))?;
    writeln!(out, "log_bytes_behind_snapshot = {}", draw.between(0, 40_000))?;
    writeln!(out, "segment_bytes = {}", 4_096_u64 << draw.below(6))?;
    // What is too large is as large as this, and most of a run's time went into moving megabytes that are refused.
    let payload_bytes_max = if draw.percent(4) { 4 << 20 } else { draw.between(40_000, 200_000) };
    writeln!(out, "payload_bytes_max = {payload_bytes_max}")?;
    let value_bytes = if draw.percent(5) { draw.between(1_000, 20_000) } else { draw.between(8, 300) };
    writeln!(out, "[load]\nclients = {}\nrate = {}", draw.between(1, 12), draw.between(5, 120))?;
    writeln!(out, "value_bytes = {value_bytes}\nkeys = {}", draw.between(1, 30))?;
    let shares: Vec<String> = Kind::ALL
        .iter()
        .map(|(word, kind)| {
            let least = u64::from(*kind == Kind::Commit);
            format!("{word} = {}", draw.between(least, 6))
        })
        .collect();
    writeln!(out, "mix = {{ {} }}", shares.join(", "))?;
    writeln!(out, "slow_subscribers = {}", draw.below(3))?;
    if draw.percent(6) {
        let voters = draw.between(1, voters);
        writeln!(out, "[neighbour]\nvoters = {voters}\nclients = {}\nrate = {}", draw.below(3), draw.between(1, 30))?;
    }
    let run = draw.between(4, 24);
    let patience = if wan { 30 } else { 12 };
    writeln!(out, "[time]\nrun = \"{run}s\"\nheal = \"{patience}s\"\n[expect]\nleader_within = \"{patience}s\"")?;
    if draw.percent(40) {
        for number in 1..=draw.between(1, 4) {
            let everybody = voters + learners;
            let who = draw.between(1, everybody);
            let what = match draw.below(8) {
                0 => "snapshot = \"leader\"".into(),
                1 => "snapshot = \"follower\"".into(),
                2 | 3 => "transfer = 0".into(),
                4 => "join = \"learner\"".into(),
                5 => "join = \"voter\"".into(),
                6 => format!("promote = {who}"),
                _ => format!("demote = {who}"),
            };
            let at = draw.between(500, run * 1_000 - 500);
            writeln!(out, "[[operation]]\nid = \"operator-{number}\"\nat = \"{at}ms\"\n{what}")?;
        }
    }
    let budget = match draw.below(100) {
        0..15 => "beyond",
        15..50 => "outage",
        _ => "standard",
    };
    writeln!(out, "[nemesis]\nbudget = \"{budget}\"\nevery = \"{}ms\"", draw.between(200, 4_000))?;
    Ok(out)
}

/// What a swarm did since it last wrote it down.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Runs.
    pub runs: u64,
    /// Runs in which a property did not hold.
    pub failed: u64,
    /// Runs of which not all of the liveness phase was demanded.
    pub excused: u64,
    /// Simulated time, in milliseconds.
    pub simulated_ms: u64,
    /// Acknowledged writes.
    pub acknowledged: u64,
}

impl Tally {
    /// Counts a run.
    pub fn take(&mut self, report: &Report) {
        self.runs += 1;
        self.failed += u64::from(report.found.is_some());
        self.excused += u64::from(report.excused.is_some());
        self.simulated_ms += report.simulated.0 / 1_000_000;
        self.acknowledged += report.acknowledged;
    }

    fn keys(&self) -> [(&'static str, u64); 5] {
        [
            ("runs", self.runs),
            ("failed", self.failed),
            ("excused", self.excused),
            ("simulated_ms", self.simulated_ms),
            ("acknowledged", self.acknowledged),
        ]
    }
}

/// Where a swarm keeps what it found.
#[derive(Clone, Debug)]
pub struct Nest {
    folder: PathBuf,
}

const COUNT_FORMAT: u64 = 1;

impl Nest {
    /// Opens a folder, and makes it if need be.
    ///
    /// # Errors
    /// In words, with the path.
    pub fn open(folder: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let nest = Self { folder: folder.to_owned() };
        nest.count()?;
        Ok(nest)
    }

    fn count_file(&self) -> PathBuf {
        self.folder.join("count.json")
    }

    /// What was counted so far, on all days.
    ///
    /// # Errors
    /// If the file is there and cannot be understood.
    pub fn count(&self) -> Result<Value, String> {
        let file = self.count_file();
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(json!({"format": COUNT_FORMAT, "total": {}, "by_commit": {}}));
            }
            Err(error) => return Err(format!("{}: {error}", file.display())),
        };
        let value: Value = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))?;
        if value["format"] == COUNT_FORMAT {
            Ok(value)
        } else {
            Err(format!("{}: format is {}: expected {COUNT_FORMAT}", file.display(), value["format"]))
        }
    }

    /// Adds to what was counted, in the file.
    ///
    /// # Errors
    /// In words, with the path.
    pub fn add(&self, commit: &str, tally: &Tally) -> Result<Value, String> {
        let mut count = self.count()?;
        for (key, more) in tally.keys() {
            let add = |place: &mut Value| *place = json!(place.as_u64().unwrap_or(0) + more);
            add(&mut count["total"][key]);
            add(&mut count["by_commit"][commit][key]);
        }
        let (file, fresh) = (self.count_file(), self.folder.join("count.json.new"));
        std::fs::write(&fresh, format!("{count:#}\n"))
            .and_then(|()| std::fs::rename(&fresh, &file))
            .map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(count)
    }

    /// Keeps a failure if it is the smallest of its property; gives the file then.
    ///
    /// # Errors
    /// In words, with the path.
    pub fn keep(&self, drawn: &Scenario, report: &Report) -> Result<Option<PathBuf>, String> {
        let Some(found) = &report.found else { return Ok(None) };
        let name = slug(found.oracle);
        let (file, about) = (self.folder.join(format!("{name}.toml")), self.folder.join(format!("{name}.json")));
        let size = size(drawn);
        let kept = std::fs::read_to_string(&about).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
        let before = kept.and_then(|kept| Some((kept["items"].as_u64()?, kept["run_ms"].as_u64()?)));
        if before.is_some_and(|before| before <= size) {
            return Ok(None);
        }
        let note = json!({
            "property": found.oracle,
            "seed": report.seed,
            "items": size.0,
            "run_ms": size.1,
            "expected": found.violation.expected,
            "saw": found.violation.saw,
            "step": found.step,
        });
        let seed = report.seed;
        let head = format!("# Fails at seed {seed}: {}\n", found.oracle);
        std::fs::write(&file, head + &drawn.to_toml())
            .and_then(|()| std::fs::write(&about, format!("{note:#}\n")))
            .map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(Some(file))
    }
}

/// How big a failure is: fewer items first, then less time.
fn size(story: &Scenario) -> (u64, u64) {
    (items(story) as u64, story.time.run / 1_000_000)
}

/// A property's words as a file name.
#[must_use]
pub fn slug(words: &str) -> String {
    let mut slug = String::new();
    for c in words.chars() {
        if c.is_ascii_alphanumeric() {
            slug.push(c.to_ascii_lowercase());
        } else if !slug.ends_with('-') {
            slug.push('-');
        }
    }
    slug.truncate(60);
    slug.trim_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_draws_a_story_that_is_accepted_and_can_be_written_out() {
        for seed in 0..300 {
            let drawn = story(seed).drawn(seed);
            let again = Scenario::parse("again", "again", &drawn.to_toml());
            assert!(again.is_ok(), "seed {seed}: {:?}\n{}", again.err(), drawn.to_toml());
        }
    }
}
