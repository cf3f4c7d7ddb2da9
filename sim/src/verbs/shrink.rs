//! `shrink`: a shorter story that fails the same way, in a file of its own, with its diagram next to it.

use super::{draw, write};
use crate::diagram;
use crate::scenario::Problem;
use crate::shrink::{Effort, items, shrink};
use crate::tool::{complain, print, read};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
pub(crate) struct Shrink {
    /// The scenario file.
    file: PathBuf,
    /// The seed at which it fails.
    #[arg(long)]
    seed: u64,
    /// Where the shorter story goes; its diagram goes next to it, as .html.
    #[arg(long)]
    out: PathBuf,
    /// At most so many runs.
    #[arg(long, default_value_t = 600)]
    runs: u64,
    /// At how many seeds each candidate is tried.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    tries: u64,
}

/// The paragraph as lines of a comment.
fn comment(text: &str) -> String {
    let mut lines = vec![String::from("#")];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is one");
        if line.len() + word.len() > 118 && line.len() > 1 {
            lines.push(format!("# {word}"));
        } else {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.join("\n")
}

impl Shrink {
    pub(crate) fn run(&self, as_json: bool) -> Result<bool, Vec<Problem>> {
        let story = read(&self.file)?;
        let before = items(&story.drawn(self.seed));
        let effort = Effort { runs: self.runs, seeds: self.tries };
        let shrunk = shrink(&story, self.seed, effort, &mut |best| {
            let (left, run) = (best.items(), best.story.time.run / 1_000_000);
            complain(&format!("{} runs: {left} faults and operations left, {run} ms", best.runs));
        });
        let Some(mut shrunk) = shrunk else {
            let words = format!("does not fail at seed {}: there is nothing to shrink", self.seed);
            return Err(super::about(&self.file, words));
        };
        let name = self.out.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let page = self.out.with_extension("html");
        let command =
            format!("cargo run -p muster-sim -- replay {} --seed {} --trace", self.out.display(), shrunk.seed);
        let oracle = shrunk.report.found.as_ref().map_or("", |found| found.oracle);
        shrunk.story.name = name;
        shrunk.story.about = format!("At seed {} this does not hold: {oracle}.", shrunk.seed);
        let (report, words) = draw(&shrunk.story, shrunk.seed, Some(&page), diagram::EVENTS, &command)?;
        write(&self.out, &format!("{}\n#\n# {command}\n{}", comment(&words), shrunk.story.to_toml()))?;
        let after = shrunk.items();
        if as_json {
            let out = json!({
                "file": self.out.display().to_string(),
                "page": page.display().to_string(),
                "seed": shrunk.seed,
                "property": oracle,
                "items_before": before,
                "items": after,
                "runs": shrunk.runs,
                "events": report.fingerprint.events,
                "story": words,
            });
            print(&out.to_string());
        } else {
            print(&words);
            print(&format!(
                "\n{before} faults and operations before, {after} now, after {} runs\n   story: {}\n diagram: {}\n  replay: {command}",
                shrunk.runs,
                self.out.display(),
                page.display(),
            ));
        }
        Ok(true)
    }
}
