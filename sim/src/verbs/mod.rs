//! The verbs that go on from a failure: shrinking it, drawing it, searching for more, and proving that the search can find.

pub(crate) mod mutants;
pub(crate) mod shrink;
pub(crate) mod swarm;

use crate::chronicle::Chronicle;
use crate::diagram;
use crate::run::{Report, play};
use crate::scenario::{Problem, Scenario};
use std::path::Path;
use std::sync::PoisonError;

/// A problem that is about a file as a whole.
pub(crate) fn about(file: &Path, problem: impl ToString) -> Vec<Problem> {
    vec![Problem { file: file.display().to_string(), line: 0, problem: problem.to_string() }]
}

/// Plays a story and writes its diagram; gives what came of it, and the story in words.
pub(crate) fn draw(
    story: &Scenario,
    seed: u64,
    to: Option<&Path>,
    events: usize,
    command: &str,
) -> Result<(Report, String), Vec<Problem>> {
    let (trace, chronicle) = Chronicle::listen(events);
    let drawn = story.drawn(seed);
    let report = play(story, seed, Some(trace));
    let chronicle = chronicle.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(to) = to {
        write(to, &diagram::page(&drawn, &report, &chronicle, command))?;
    }
    Ok((report.clone(), chronicle.story(&drawn, &report)))
}

/// Writes a file, and the folders it is in.
pub(crate) fn write(file: &Path, text: &str) -> Result<(), Vec<Problem>> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(file, text))
        .map_err(|error| about(file, error))
}
