//! The tools around a failure work: a story is made short, drawn, counted; and everything that `docs/simulation.md` shows runs.

use muster_sim::chronicle::Chronicle;
use muster_sim::run::{LIVENESS, play};
use muster_sim::scenario::Scenario;
use muster_sim::shrink::{Effort, items, shrink};
use muster_sim::swarm::{Nest, Tally};
use muster_sim::{diagram, oracles};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A story that fails because of one of its faults: healing is given no time, and everybody is still down then.
const STALLS: &str = r#"
about = "Six faults, of which one matters."
[cluster]
voters = 3
learners = 1
[load]
clients = 3
rate = 20
[time]
run = "4s"
heal = "5s"
[[fault]]
id = "harmless-1"
at = "500ms"
pause = { who = "follower" }
for = "100ms"
[[fault]]
id = "harmless-2"
at = "900ms"
link = { double = 5 }
for = "400ms"
[[fault]]
id = "harmless-3"
at = "1500ms"
crash = { who = "follower" }
down = "100ms"
[[fault]]
id = "harmless-4"
at = "2s"
disk = { who = 2, slow = 3 }
for = "200ms"
[[fault]]
id = "matters"
at = "3s"
crash = { who = "all" }
[[operation]]
id = "harmless-5"
at = "2500ms"
snapshot = "leader"
[nemesis]
budget = "outage"
every = "0s"
[expect]
leader_within = "1ms"
"#;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in a workspace").to_owned()
}

fn stalls() -> Scenario {
    Scenario::parse("stalls", "stalls", STALLS).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

#[test]
fn shrinking_leaves_what_matters_and_gives_the_same_twice() {
    let story = stalls();
    let effort = Effort { runs: 120, seeds: 2 };
    let once = shrink(&story, 5, effort, &mut |_| {}).expect("it fails");
    assert_eq!(once.report.found.as_ref().map(|found| found.oracle), Some(LIVENESS));
    assert!(items(&once.story) <= 1, "left: {}", once.story.to_toml());
    assert!(once.story.cluster.learners == 0, "the learner is not needed");
    let again = play(&once.story, once.seed, None);
    assert_eq!(again.found.map(|found| found.oracle), Some(LIVENESS), "what was given back does not fail");
    let twice = shrink(&story, 5, effort, &mut |_| {}).expect("it fails");
    assert_eq!((once.story.to_toml(), once.seed, once.runs), (twice.story.to_toml(), twice.seed, twice.runs));
}

#[test]
fn a_story_that_holds_is_not_shrunk() {
    let story = Scenario::parse("calm", "calm", "about = \"x\"\n[time]\nrun = \"1s\"\n").expect("it is fine");
    assert!(shrink(&story, 1, Effort { runs: 10, seeds: 1 }, &mut |_| {}).is_none());
}

#[test]
fn the_page_needs_nothing_else_and_tells_what_failed() {
    let story = stalls();
    let (trace, chronicle) = Chronicle::listen(200);
    let report = play(&story, 5, Some(trace));
    let chronicle = chronicle.lock().expect("the run is over");
    let page = diagram::page(&story, &report, &chronicle, "muster-sim replay <x> & y");
    for outside in ["http:", "https:", "src=", "href=", "@import"] {
        assert!(!page.contains(outside), "the page reaches outside: {outside}");
    }
    for inside in [LIVENESS, "the last 200 of ", "harmless-3", "id=\"violation\"", "replay &lt;x&gt; &amp; y"] {
        assert!(page.contains(inside), "the page lacks {inside:?}");
    }
    assert!(page.len() < 300_000, "the page has {} bytes", page.len());
    let words = chronicle.story(&story, &report);
    assert!(words.starts_with("3 voters and 1 learner; 3 clients ask for 20 operations a second."), "{words}");
    assert!(words.contains("everybody (r1, r2, r3, r4) is to die; down until healing"), "{words}");
}

#[test]
fn the_swarm_counts_across_days_and_keeps_the_smallest_failure() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nest");
    drop(std::fs::remove_dir_all(&folder));
    let story = stalls();
    let report = play(&story, 5, None);
    let mut tally = Tally::default();
    tally.take(&report);
    for day in 1..=2_u64 {
        let nest = Nest::open(&folder).expect("a folder can be made");
        let count = nest.add("abc", &tally).expect("it can be written");
        assert_eq!(
            (count["total"]["runs"].as_u64(), count["by_commit"]["abc"]["failed"].as_u64()),
            (Some(day), Some(day))
        );
    }
    let nest = Nest::open(&folder).expect("it is there");
    let kept = nest.keep(&story, &report).expect("it can be written").expect("the first is the smallest");
    assert!(Scenario::read(&kept).is_ok(), "what is kept is a scenario");
    assert_eq!(nest.keep(&story, &report).expect("it can be written"), None, "as large is not smaller");
    let mut smaller = story.clone();
    smaller.operations.clear();
    assert!(nest.keep(&smaller, &report).expect("it can be written").is_some());
    std::fs::write(folder.join("count.json"), "{\"format\": 9}").expect("it can be written");
    assert!(Nest::open(&folder).is_err_and(|why| why.contains("expected 1")), "a count of another format is refused");
}

fn blocks(text: &str, kind: &str) -> Vec<String> {
    let fence = format!("```{kind}\n");
    text.split(&fence).skip(1).filter_map(|rest| rest.split("```").next()).map(str::to_owned).collect()
}

#[test]
fn what_the_document_shows_runs_and_its_table_is_complete() {
    let file = root().join("docs/simulation.md");
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let stories = blocks(&text, "toml");
    assert!(!stories.is_empty(), "the document shows no scenario");
    for story in stories {
        let story =
            Scenario::parse("simulation.md", "shown", &story).unwrap_or_else(|problems| panic!("{problems:#?}"));
        for seed in 1..=2 {
            let report = play(&story, seed, None);
            assert!(report.found.is_none(), "the document's story fails at seed {seed}: {:#?}", report.found);
        }
    }
    let mut commands = 0;
    for line in blocks(&text, "sh").iter().flat_map(|block| block.lines()) {
        let rest = line.strip_prefix("cargo run -p muster-sim -- ").unwrap_or_else(|| panic!("{line}"));
        let words: Vec<&str> = rest.split(' ').map(|word| word.trim_matches('"')).collect();
        let output = Command::new(env!("CARGO_BIN_EXE_muster-sim"))
            .current_dir(root())
            .args(&words)
            .output()
            .unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        commands += 1;
    }
    assert!(commands > 3, "the document shows {commands} commands");
    let rows: Vec<String> =
        oracles::all().iter().map(|oracle| format!("| {} | {} |", oracle.name(), oracle.source())).collect();
    let lacking: Vec<&String> = rows.iter().filter(|row| !text.contains(*row)).collect();
    assert!(lacking.is_empty(), "the document's table should be:\n{}", rows.join("\n"));
}
