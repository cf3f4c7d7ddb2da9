//! Proof that the simulator can fail: known bugs, put back as small textual changes, must be found.
//!
//! A mutant is a file under `sim/mutants/`: what it is, where the bug was seen first, which property must catch it, and exact
//! replacements in our sources or in those of the library below. It is applied to a copy of the workspace, never here.
//!
//! Invariants
//! - a replacement's text occurs exactly once, or the mutant is refused: a mutant never silently does nothing;
//! - files of the copy are written only if they differ, so that cargo builds what a mutant changed and nothing else.

use crate::scenario::Problem;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// A known bug.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutant {
    /// The file's name without ending.
    #[serde(skip)]
    pub id: String,
    /// What is wrong, in a sentence.
    pub about: String,
    /// Where such a bug was described.
    pub source: String,
    /// The properties of which one must not hold.
    pub oracles: Vec<String>,
    /// Stories to hunt it with; the usual ones if absent.
    #[serde(default)]
    pub scenarios: Vec<PathBuf>,
    /// The replacements.
    pub change: Vec<Change>,
}

/// An exact replacement.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// A dependency's name, if it is in its source; else it is in ours.
    #[serde(rename = "crate")]
    pub library: Option<String>,
    /// The file, from the workspace's or the dependency's root.
    pub file: PathBuf,
    /// What is there.
    pub before: String,
    /// What is put there.
    pub after: String,
}

impl Change {
    /// The text with the replacement.
    ///
    /// # Errors
    /// If what is to be replaced is not there exactly once.
    pub fn apply(&self, text: &str) -> Result<String, String> {
        match text.matches(&self.before).count() {
            1 => Ok(text.replacen(&self.before, &self.after, 1)),
            count => {
                Err(format!("{} has {count} places like {:?}: expected exactly one", self.file.display(), self.before))
            }
        }
    }
}

/// Every mutant of a folder, by id.
///
/// # Errors
/// Every file that cannot be read as one, with line.
pub fn read_all(folder: &Path) -> Result<Vec<Mutant>, Vec<Problem>> {
    let at = |file: &Path, line: usize, problem: String| Problem { file: file.display().to_string(), line, problem };
    let listing = fs::read_dir(folder).map_err(|error| vec![at(folder, 0, error.to_string())])?;
    let mut files: Vec<PathBuf> = listing.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "toml"));
    files.sort();
    let (mut mutants, mut problems) = (Vec::new(), Vec::new());
    for file in files {
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) => {
                problems.push(at(&file, 0, error.to_string()));
                continue;
            }
        };
        match toml::from_str::<Mutant>(&text) {
            Ok(mut mutant) => {
                mutant.id = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                if mutant.oracles.is_empty() || mutant.change.is_empty() {
                    problems.push(at(&file, 0, "expected at least one property in oracles and one [[change]]".into()));
                }
                mutants.push(mutant);
            }
            Err(error) => {
                let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
                problems.push(at(&file, line, error.message().to_owned()));
            }
        }
    }
    if problems.is_empty() { Ok(mutants) } else { Err(problems) }
}

/// The copy of the workspace in which mutants are built.
#[derive(Clone, Debug)]
pub struct Workshop {
    root: PathBuf,
    folder: PathBuf,
    build: PathBuf,
}

impl Workshop {
    /// A workshop for the workspace at `root`.
    ///
    /// # Errors
    /// If there is no workspace.
    pub fn new(root: &Path, folder: &Path, build: Option<&Path>) -> Result<Self, String> {
        if !root.join("sim/mutants").is_dir() {
            return Err(format!("{}: expected the workspace's root, with sim/mutants", root.display()));
        }
        fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let whole = |path: &Path| path.canonicalize().map_err(|error| format!("{}: {error}", path.display()));
        let folder = whole(folder)?;
        let build = build.map_or_else(|| folder.join("build"), Path::to_owned);
        Ok(Self { root: whole(root)?, folder, build })
    }

    /// Builds the simulator with a mutant in it; without one: as it is. Gives the binary, which is built only once of the same
    /// sources.
    ///
    /// # Errors
    /// What cargo said, or what the mutant does not fit.
    pub fn build(&self, mutant: Option<&Mutant>) -> Result<PathBuf, String> {
        let tree = self.folder.join("tree");
        let changes = mutant.map_or(&[] as &[Change], |mutant| &mutant.change);
        let print = fingerprint(&self.root, changes).map_err(|error| format!("{}: {error}", self.root.display()))?;
        let id = mutant.map_or("clean", |mutant| &mutant.id);
        let binary = self.folder.join(format!("muster-sim-{id}-{print:016x}"));
        if binary.exists() {
            return Ok(binary);
        }
        copy(&self.root, &tree, &ours(&self.root, changes)?, &|path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name == "target" || (name.starts_with('.') && name != ".cargo")
        })?;
        let mut cargo = Command::new("cargo");
        cargo.current_dir(&tree).args(["build", "--quiet", "--offline", "-p", "muster-sim", "--bin", "muster-sim"]);
        // Nobody looks at line numbers here, and they take a third of the time.
        cargo.env("CARGO_PROFILE_DEV_DEBUG", "0").arg("--target-dir").arg(&self.build);
        for library in changes.iter().filter_map(|change| change.library.as_ref()) {
            let source = self.library(library)?;
            let copied = self.folder.join("libraries").join(library);
            copy(&source, &copied, &theirs(&source, library, changes)?, &|_: &Path| false)?;
            cargo.arg("--config").arg(format!("patch.crates-io.{library}.path={:?}", copied.display().to_string()));
        }
        let mut output = cargo.output().map_err(|error| format!("cargo: {error}"))?;
        if !output.status.success() {
            // What an interrupted build left behind may fit together badly; from nothing it counts.
            drop(fs::remove_dir_all(self.build.join("debug/incremental")));
            output = cargo.output().map_err(|error| format!("cargo: {error}"))?;
        }
        if !output.status.success() {
            return Err(format!("cargo build: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        fs::copy(self.build.join("debug/muster-sim"), &binary)
            .map_err(|error| format!("{}: {error}", binary.display()))?;
        Ok(binary)
    }

    /// Whether a mutant's replacements fit.
    ///
    /// # Errors
    /// Which do not.
    pub fn fits(&self, mutant: &Mutant) -> Result<(), String> {
        ours(&self.root, &mutant.change)?;
        for library in mutant.change.iter().filter_map(|change| change.library.as_ref()) {
            theirs(&self.library(library)?, library, &mutant.change)?;
        }
        Ok(())
    }

    /// Where cargo keeps the source of a dependency.
    fn library(&self, name: &str) -> Result<PathBuf, String> {
        let output = Command::new("cargo")
            .current_dir(&self.root)
            // Only what this machine builds has been downloaded.
            .args(["metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform", &platform()?])
            .output()
            .map_err(|error| format!("cargo metadata: {error}"))?;
        let value: serde_json::Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("cargo metadata: {error}: {}", String::from_utf8_lossy(&output.stderr)))?;
        let packages = value["packages"].as_array().cloned().unwrap_or_default();
        let found = packages.iter().find(|package| package["name"] == name);
        let manifest = found.and_then(|package| package["manifest_path"].as_str());
        let folder = manifest.and_then(|path| Path::new(path).parent());
        folder.map(Path::to_owned).ok_or_else(|| format!("no dependency is called {name}"))
    }
}

/// The platform that is built for.
fn platform() -> Result<String, String> {
    let output = Command::new("rustc").arg("-vV").output().map_err(|error| format!("rustc: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| format!("rustc -vV tells no host: {text}"))
}

/// What a build is made of, in a number.
fn fingerprint(root: &Path, changes: &[Change]) -> std::io::Result<u64> {
    fn walk(path: &Path, hasher: &mut blake3::Hasher) -> std::io::Result<()> {
        if path.is_dir() {
            let mut inside: Vec<PathBuf> = fs::read_dir(path)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
            inside.sort();
            return inside.iter().try_for_each(|path| walk(path, hasher));
        }
        hasher.update(path.to_string_lossy().as_bytes()).update(&fs::read(path)?);
        Ok(())
    }
    let mut hasher = blake3::Hasher::new();
    for part in ["Cargo.toml", "Cargo.lock", ".cargo", "core", "storage", "sim/Cargo.toml", "sim/src"] {
        walk(&root.join(part), &mut hasher)?;
    }
    hasher.update(format!("{changes:?}").as_bytes());
    let bytes = hasher.finalize();
    Ok(u64::from_le_bytes(bytes.as_bytes()[..8].try_into().expect("a digest has more than eight bytes")))
}

/// Changed files by their path, from the workspace's root.
fn ours(root: &Path, changes: &[Change]) -> Result<BTreeMap<PathBuf, String>, String> {
    changed(root, changes.iter().filter(|change| change.library.is_none()))
}

fn theirs(root: &Path, library: &str, changes: &[Change]) -> Result<BTreeMap<PathBuf, String>, String> {
    changed(root, changes.iter().filter(|change| change.library.as_deref() == Some(library)))
}

fn changed<'a>(root: &Path, changes: impl Iterator<Item = &'a Change>) -> Result<BTreeMap<PathBuf, String>, String> {
    let mut texts = BTreeMap::new();
    for change in changes {
        let before = if let Some(text) = texts.remove(&change.file) {
            text
        } else {
            let file = root.join(&change.file);
            fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?
        };
        texts.insert(change.file.clone(), change.apply(&before)?);
    }
    Ok(texts)
}

/// Makes `to` like `from`, but for the changed files; leaves alone what is as it should be.
fn copy(
    from: &Path,
    to: &Path,
    changed: &BTreeMap<PathBuf, String>,
    leave_out: &dyn Fn(&Path) -> bool,
) -> Result<(), String> {
    fn walk(
        [from, to, inside]: [&Path; 3],
        changed: &BTreeMap<PathBuf, String>,
        leave_out: &dyn Fn(&Path) -> bool,
    ) -> std::io::Result<()> {
        fs::create_dir_all(to.join(inside))?;
        let mut wanted = Vec::new();
        for entry in fs::read_dir(from.join(inside))? {
            let entry = entry?;
            let path = inside.join(entry.file_name());
            if leave_out(&path) {
                continue;
            }
            wanted.push(entry.file_name());
            if entry.file_type()?.is_dir() {
                walk([from, to, &path], changed, leave_out)?;
                continue;
            }
            let text = match changed.get(&path) {
                Some(text) => text.as_bytes().to_owned(),
                None => fs::read(entry.path())?,
            };
            if fs::read(to.join(&path)).ok().as_ref() != Some(&text) {
                fs::write(to.join(&path), text)?;
            }
        }
        for entry in fs::read_dir(to.join(inside))? {
            let entry = entry?;
            let stale = !wanted.contains(&entry.file_name()) && !leave_out(&inside.join(entry.file_name()));
            if stale && entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else if stale {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
    walk([from, to, Path::new("")], changed, leave_out).map_err(|error| format!("{}: {error}", to.display()))
}

/// What a hunt is.
#[derive(Clone, Debug)]
pub struct Hunt {
    /// The stories, played in turns.
    pub scenarios: Vec<PathBuf>,
    /// The first seed.
    pub seed: u64,
    /// At most so many runs.
    pub runs: u64,
    /// How long one run may take, in real time.
    pub patience: Duration,
}

/// How a hunt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A property did not hold.
    Killed {
        /// Which.
        property: String,
    },
    /// Every run was fine.
    Survived,
    /// A run did not end.
    Stuck,
}

/// What a hunt cost.
#[derive(Clone, Debug)]
pub struct Bag {
    /// Runs, the last one included.
    pub runs: u64,
    /// Simulated time, in microseconds.
    pub simulated_us: u64,
    /// How it ended.
    pub end: End,
}

/// Plays stories with a binary until a property does not hold.
///
/// # Errors
/// If the binary cannot be run, or says something that is not a run's result.
pub fn hunt(binary: &Path, hunt: &Hunt) -> Result<Bag, String> {
    let stories = hunt.scenarios.len().max(1) as u64;
    let seeds = hunt.runs.div_ceil(stories).max(1);
    let mut child = Command::new(binary)
        .args(["--json", "run"])
        .args(&hunt.scenarios)
        .args(["--seeds", &format!("{}..{}", hunt.seed, hunt.seed + seeds)])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("{}: {error}", binary.display()))?;
    let lines = child.stdout.take().map(BufReader::new).ok_or("a child without output")?;
    let (tell, told) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    let mut bag = Bag { runs: 0, simulated_us: 0, end: End::Survived };
    let mut problem = None;
    while bag.runs < hunt.runs {
        match told.recv_timeout(hunt.patience) {
            Ok(line) => {
                let Ok(value) = serde_json::from_str::<serde_json::Value>(&line) else {
                    problem = Some(format!("{} said {line:?}", binary.display()));
                    break;
                };
                bag.runs += 1;
                bag.simulated_us += value["simulated_us"].as_u64().unwrap_or(0);
                if let Some(property) = value["failure"]["property"].as_str() {
                    bag.end = End::Killed { property: property.to_owned() };
                    break;
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bag.end = End::Stuck;
                break;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                if bag.runs == 0 {
                    problem = Some(format!("{} played nothing", binary.display()));
                }
                break;
            }
        }
    }
    // It may have ended by itself.
    drop(child.kill());
    drop(child.wait());
    drop(told);
    drop(reader.join());
    problem.map_or(Ok(bag), Err)
}

/// What the hunts of one mutant came to, as it is kept and shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The mutant's id; of the clean build: [`CLEAN`].
    pub mutant: String,
    /// How often it was hunted.
    pub starts: usize,
    /// How often it was killed; of the clean build: how many runs failed.
    pub killed: usize,
    /// How often by a property that it names.
    pub as_expected: usize,
    /// Runs of all starts.
    pub runs: u64,
    /// Runs to a kill: median and 95th percentile.
    pub runs_to_kill: Option<(u64, u64)>,
    /// Simulated seconds to a kill: median and 95th percentile.
    pub seconds_to_kill: Option<(u64, u64)>,
    /// Properties that fired, and at how many starts.
    pub properties: BTreeMap<String, usize>,
}

/// What the build without a mutant is called.
pub const CLEAN: &str = "(clean build)";

/// Median and 95th percentile.
fn ranks(mut values: Vec<u64>) -> Option<(u64, u64)> {
    values.sort_unstable();
    let at = |percent: usize| values.get((values.len() * percent).div_ceil(100).checked_sub(1)?).copied();
    Some((at(50)?, at(95)?))
}

impl Row {
    /// Sums hunts up.
    #[must_use]
    pub fn new(mutant: Option<&Mutant>, bags: &[Bag]) -> Self {
        let killed: Vec<&Bag> = bags.iter().filter(|bag| matches!(bag.end, End::Killed { .. })).collect();
        let mut properties = BTreeMap::new();
        let mut as_expected = 0;
        for bag in bags {
            let word = match &bag.end {
                End::Killed { property } => {
                    as_expected += usize::from(mutant.is_some_and(|mutant| mutant.oracles.contains(property)));
                    property.clone()
                }
                End::Stuck => "(stuck)".into(),
                End::Survived => continue,
            };
            *properties.entry(word).or_default() += 1;
        }
        Self {
            mutant: mutant.map_or_else(|| CLEAN.to_owned(), |mutant| mutant.id.clone()),
            starts: bags.len(),
            killed: killed.len(),
            as_expected,
            runs: bags.iter().map(|bag| bag.runs).sum(),
            runs_to_kill: ranks(killed.iter().map(|bag| bag.runs).collect()),
            seconds_to_kill: ranks(killed.iter().map(|bag| bag.simulated_us / 1_000_000).collect()),
            properties,
        }
    }

    /// The row of a table in Markdown.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        let cells = |ranks: Option<(u64, u64)>| match ranks {
            Some((median, most)) => format!("{median} | {most}"),
            None => "- | -".into(),
        };
        let fired: Vec<String> = self.properties.iter().map(|(word, count)| format!("{word} ({count})")).collect();
        let fired = if fired.is_empty() { "none".into() } else { fired.join("; ") };
        if self.mutant == CLEAN {
            return format!(
                "| {} | {} of {} runs | - | - | - | - | {fired} | - |",
                self.mutant, self.killed, self.runs
            );
        }
        format!(
            "| {} | {}/{} | {} | {} | {fired} | {}/{} |",
            self.mutant,
            self.killed,
            self.starts,
            cells(self.runs_to_kill),
            cells(self.seconds_to_kill),
            self.as_expected,
            self.killed,
        )
    }
}

/// The head of the table of rows.
pub const HEAD: &str = "| mutant | killed/starts | runs to kill, median | p95 | simulated s, median | p95 | properties that fired | \
                        one it names |\n|---|---|---|---|---|---|---|---|";

/// What was measured of every mutant, newest hunts only; kept as a line of JSON each.
#[derive(Clone, Debug, Default)]
pub struct Ledger(BTreeMap<String, Row>);

/// Between these lines a document has the tables of the ledger.
const MARKS: [&str; 2] = ["<!-- hunts: written by `muster-sim mutants --keep` -->", "<!-- end of hunts -->"];

impl Ledger {
    /// Reads what was kept; nothing if there is no file.
    ///
    /// # Errors
    /// A line that is not a row.
    pub fn read(file: &Path) -> Result<Self, Vec<Problem>> {
        let Ok(text) = fs::read_to_string(file) else { return Ok(Self::default()) };
        let mut rows = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let row: Row = serde_json::from_str(line).map_err(|error| {
                vec![Problem { file: file.display().to_string(), line: number + 1, problem: error.to_string() }]
            })?;
            rows.insert(row.mutant.clone(), row);
        }
        Ok(Self(rows))
    }

    /// Takes newer hunts in.
    pub fn take(&mut self, row: Row) {
        self.0.insert(row.mutant.clone(), row);
    }

    /// Which mutants it knows; the clean build is not one.
    pub fn mutants(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str).filter(|id| *id != CLEAN)
    }

    /// Every row, the clean build's first.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.0.values()
    }

    /// The file's text.
    #[must_use]
    pub fn to_lines(&self) -> String {
        self.rows().map(|row| serde_json::to_string(row).expect("a row is plain") + "\n").collect()
    }

    /// Two tables: what each mutant took, and which mutants tripped each of these properties.
    #[must_use]
    pub fn to_markdown<'a>(&self, properties: impl IntoIterator<Item = &'a str>) -> String {
        let mut out = format!("{HEAD}\n");
        for row in self.rows() {
            out += &row.to_markdown();
            out.push('\n');
        }
        out += "\n| property | mutants that tripped it, and at how many starts |\n|---|---|\n";
        for property in properties {
            let tripped: Vec<String> = self
                .rows()
                .filter(|row| row.mutant != CLEAN)
                .filter_map(|row| Some(format!("{} ({})", row.mutant, row.properties.get(property)?)))
                .collect();
            let tripped = if tripped.is_empty() { "none".into() } else { tripped.join(", ") };
            out.extend(["| ", property, " | ", &tripped, " |\n"]);
        }
        out
    }

    /// A document with its tables replaced by these.
    ///
    /// # Errors
    /// If it has no place for them.
    pub fn put_into(document: &str, tables: &str) -> Result<String, String> {
        let place = document.split_once(MARKS[0]).and_then(|(before, rest)| {
            let (_, after) = rest.split_once(MARKS[1])?;
            Some((before, after))
        });
        let Some((before, after)) = place else {
            return Err(format!("expected the lines {:?} and {:?}", MARKS[0], MARKS[1]));
        };
        Ok(format!("{before}{}\n\n{tables}\n{}{after}", MARKS[0], MARKS[1]))
    }
}
