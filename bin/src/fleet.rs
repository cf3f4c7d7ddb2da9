//! A fleet as an operator writes it down: the TOML that `muster apply` takes.
//!
//! ```toml
//! [global.kernel]                     # every node: [global.DIMENSION]
//! "vm.swappiness" = 10
//!
//! [vcluster.training.policy]          # what is not said keeps its default
//! base_window_seconds = 600
//! [vcluster.training.services]
//! slurmd = "running"
//! telnetd = { absent = true }
//!
//! [[nodes]]
//! names = "gpu[001-064]"              # or a list of such ranges
//! vcluster = "training"
//! [nodes.mounts]                      # what is so on these nodes alone
//! "/scratch" = "mds1@o2ib:/scratch lustre"
//! ```
//!
//! What a file does not mention stays as it is. Several files make one fleet; saying two different things about one key of
//! one scope is a problem that names both places.

use crate::document::{Document, Problem, Problems, Reader, Value, kind};
use crate::{policy_text, ranges};
use muster_core::agent::value;
use muster_core::ids::{NodeId, VClusterId};
use muster_core::journal::key::{Dimension, Key, Scope, Setting, VALUE_BYTES_MAX};
use muster_core::journal::policy::Policy;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use toml::de::DeValue;

/// Where something was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The file.
    pub(crate) file: String,
    /// The line, from 1.
    pub(crate) line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Something said, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said<T> {
    /// What.
    pub(crate) what: T,
    /// Where.
    pub(crate) place: Place,
}

/// What the files say together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fleet {
    /// The vClusters, with the policy where one is given.
    pub(crate) vclusters: BTreeMap<VClusterId, Said<Option<Policy>>>,
    /// Which vCluster a node is in.
    pub(crate) assignments: BTreeMap<NodeId, Said<VClusterId>>,
    /// The settings of each scope.
    pub(crate) scopes: BTreeMap<Scope, BTreeMap<Key, Said<Setting>>>,
}

impl Fleet {
    /// Reads files that make one fleet together. Gives every problem of all of them.
    pub(crate) fn parse<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, Vec<Problems>> {
        let mut fleet = Self::default();
        let mut problems = Vec::new();
        for (file, text) in files {
            let document = Document::new(file, text);
            FileReader { document: &document, file, fleet: &mut fleet }.read();
            problems.extend(document.finish(()).err());
        }
        if problems.is_empty() { Ok(fleet) } else { Err(problems) }
    }

    /// How many nodes it speaks of.
    pub(crate) fn nodes(&self) -> usize {
        let own = self.scopes.keys().filter(|scope| match scope {
            Scope::Node(node) => !self.assignments.contains_key(node),
            Scope::Global | Scope::VCluster(_) => false,
        });
        self.assignments.len() + own.count()
    }

    /// A file with one problem, for what only shows against the journal.
    pub(crate) fn problem(place: &Place, text: String) -> Problems {
        Problems { file: place.file.clone(), list: vec![Problem { line: place.line, text }] }
    }
}

struct FileReader<'d, 'a> {
    document: &'d Document<'a>,
    file: &'a str,
    fleet: &'d mut Fleet,
}

impl<'a> FileReader<'_, 'a> {
    fn read(&mut self) {
        let document = self.document;
        let table = document.parse();
        let mut root = Reader::root(document, &table);
        let mut global = root.table("global");
        self.settings(&mut global, &[Scope::Global]);
        global.finish();
        for (name, span, value) in root.table("vcluster").entries() {
            self.vcluster(name, span, value);
        }
        for value in root.array("nodes", "tables, each headed [[nodes]]") {
            self.nodes(value);
        }
        root.finish();
    }

    fn place(&self, span: &Range<usize>) -> Place {
        Place { file: self.file.to_owned(), line: self.document.line(span.start) }
    }

    fn vcluster(&mut self, name: &str, span: Range<usize>, value: Value<'_, 'a>) {
        let vcluster = match VClusterId::new(name) {
            Ok(vcluster) => vcluster,
            Err(error) => return self.document.problem(span, format!("vcluster: {error}")),
        };
        let mut table = Reader::of(self.document, format!("vcluster.{name}"), value, "a table");
        let policy = table.value("policy").map(|value| {
            let mut policy = Policy::default();
            self.policy(&mut policy, &format!("vcluster.{name}.policy"), value);
            policy
        });
        self.settings(&mut table, &[Scope::VCluster(vcluster.clone())]);
        table.finish();
        let place = self.place(&span);
        match self.fleet.vclusters.get_mut(&vcluster) {
            None => {
                self.fleet.vclusters.insert(vcluster, Said { what: policy, place });
            }
            Some(said) if said.what.is_none() => *said = Said { what: policy, place },
            Some(said) if policy.is_some() && policy != said.what => {
                let problem = format!("vcluster.{name}.policy says something else than {}", said.place);
                self.document.problem(span, problem);
            }
            Some(_) => {}
        }
    }

    fn policy(&self, policy: &mut Policy, path: &str, value: Value<'_, 'a>) {
        let table = Reader::of(self.document, path.to_owned(), value, "a table");
        for (field, span, value) in table.entries() {
            if field == "weights" {
                let weights = Reader::of(self.document, format!("{path}.weights"), value, "a table of dimensions");
                for (dimension, span, value) in weights.entries() {
                    self.policy_field(policy, path, &format!("weights.{dimension}"), span, value);
                }
            } else {
                self.policy_field(policy, path, field, span, value);
            }
        }
    }

    fn policy_field(&self, policy: &mut Policy, path: &str, field: &str, span: Range<usize>, value: Value<'_, 'a>) {
        let text = match value.get_ref() {
            DeValue::Array(items) => items
                .iter()
                .map(|item| item.get_ref().as_str().map(str::to_owned))
                .collect::<Option<Vec<_>>>()
                .map(|items| items.join(",")),
            other => plain(other),
        };
        let result = match text {
            Some(text) => policy_text::set(policy, field, &text),
            None => Err(format!("{} does not fit here", kind(value.get_ref()))),
        };
        if let Err(problem) = result {
            self.document.problem(span, format!("{path}.{field}: {problem}"));
        }
    }

    fn nodes(&mut self, value: Value<'_, 'a>) {
        let mut table = Reader::of(self.document, "nodes".to_owned(), value, "a table headed [[nodes]]");
        let mut scopes = Vec::new();
        let mut nodes = Vec::new();
        let names = table.value("names");
        let texts: Vec<_> = match names.map(|names| (names, names.get_ref())) {
            Some((names, DeValue::String(text))) => vec![(text.as_ref(), names.span())],
            Some((names, DeValue::Array(items))) => items
                .iter()
                .filter_map(|item| {
                    let text = item.get_ref().as_str();
                    if text.is_none() {
                        self.document.problem(names.span(), "nodes.names: expected names or ranges in quotes");
                    }
                    Some((text?, item.span()))
                })
                .collect(),
            Some((names, other)) => {
                let problem = format!("nodes.names is {}: expected \"gpu[001-064]\" or a list of such", kind(other));
                self.document.problem(names.span(), problem);
                Vec::new()
            }
            None => {
                self.document
                    .problem(table.span(), "nodes.names is missing: expected \"gpu[001-064]\" or a list of such");
                Vec::new()
            }
        };
        for (text, span) in texts {
            match ranges::expand(text) {
                Ok(names) => nodes.extend(names),
                Err(problem) => self.document.problem(span, format!("nodes.names: {problem}")),
            }
        }
        if let Some((vcluster, span)) = table.parsed("vcluster", VClusterId::new) {
            let place = self.place(&span);
            for node in &nodes {
                match self.fleet.assignments.get(node) {
                    Some(said) if said.what != vcluster => self.document.problem(
                        span.clone(),
                        format!("{node} is put into vCluster {vcluster}, but into {} at {}", said.what, said.place),
                    ),
                    Some(_) => {}
                    None => {
                        let said = Said { what: vcluster.clone(), place: place.clone() };
                        self.fleet.assignments.insert(node.clone(), said);
                    }
                }
            }
        }
        scopes.extend(nodes.into_iter().map(Scope::Node));
        self.settings(&mut table, &scopes);
        table.finish();
    }

    /// Reads the tables of all dimensions into every one of the scopes.
    fn settings(&mut self, table: &mut Reader<'_, '_, 'a>, scopes: &[Scope]) {
        for dimension in Dimension::ALL {
            let settings = table.table(dimension.word());
            for (name, span, value) in settings.entries() {
                let key = match Key::new(&format!("{}:{name}", dimension.word())) {
                    Ok(key) => key,
                    Err(error) => {
                        self.document.problem(span, error.to_string());
                        continue;
                    }
                };
                // One spelling in the journal, however it is written here.
                let fitting = setting(value).and_then(|setting| match setting {
                    Setting::Unset => Ok(setting),
                    Setting::Value(_) | Setting::Absent => {
                        value::check_setting(&key, &setting).map_err(|unfit| format!("cannot be so: {unfit}"))
                    }
                });
                match fitting {
                    Ok(setting) => self.say(scopes, &key, &setting, &span),
                    Err(problem) => self.document.problem(value.span(), format!("{key} {problem}")),
                }
            }
        }
    }

    fn say(&mut self, scopes: &[Scope], key: &Key, setting: &Setting, span: &Range<usize>) {
        let place = self.place(span);
        for scope in scopes {
            let settings = self.fleet.scopes.entry(scope.clone()).or_default();
            match settings.get(key) {
                Some(said) if said.what != *setting => self.document.problem(
                    span.clone(),
                    format!(
                        "{scope} {key} is {:?}, but {:?} at {}",
                        setting.to_string(),
                        said.what.to_string(),
                        said.place
                    ),
                ),
                Some(_) => {}
                None => {
                    settings.insert(key.clone(), Said { what: setting.clone(), place: place.clone() });
                }
            }
        }
    }
}

/// A setting from its value, or what is wrong with it.
fn setting(value: Value<'_, '_>) -> Result<Setting, String> {
    if let Some(text) = plain(value.get_ref()) {
        if text.len() > VALUE_BYTES_MAX {
            return Err(format!("has {} bytes: expected at most {VALUE_BYTES_MAX}", text.len()));
        }
        return Ok(Setting::Value(text.into()));
    }
    let word = value.get_ref().as_table().and_then(|table| {
        let (word, flag) = table.iter().next()?;
        (table.len() == 1 && flag.get_ref().as_bool() == Some(true)).then(|| word.get_ref().as_ref())
    });
    match word {
        Some("absent") => Ok(Setting::Absent),
        Some("unset") => Ok(Setting::Unset),
        _ => {
            let found = kind(value.get_ref());
            Err(format!(
                "is {found}: expected text, a number, true or false, {{ absent = true }} or {{ unset = true }}"
            ))
        }
    }
}

/// A plain value as text, spelled as in the file (numbers in decimal).
fn plain(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(digits) => {
            let number = i64::from_str_radix(digits.as_str(), digits.radix()).ok();
            Some(number.map_or_else(|| digits.to_string(), |number| number.to_string()))
        }
        DeValue::Float(digits) => Some(digits.as_str().to_owned()),
        DeValue::Boolean(flag) => Some(flag.to_string()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[global.kernel]
"vm.swappiness" = 10
[vcluster.training.policy]
base_window_seconds = 600
sensitivity = 2.5
exec_allow = ["dmesg", "nvidia-smi"]
[vcluster.training.policy.weights]
gpu = 4
[vcluster.training.services]
slurmd = "running"
telnetd = { absent = true }
[[nodes]]
names = ["gpu[001-003]", "gpu010"]
vcluster = "training"
[[nodes]]
names = "gpu002"
[nodes.kernel]
"vm.nr_hugepages" = 0x400
"#;

    fn problems(text: &str) -> Vec<String> {
        let problems = Fleet::parse([("fleet.toml", text)]).unwrap_err();
        problems.iter().flat_map(|file| file.to_string().lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn a_fleet_is_read_with_ranges_policies_and_exceptions() {
        let fleet = Fleet::parse([("fleet.toml", GOOD)]).unwrap();
        assert_eq!(fleet.nodes(), 4);
        let training = VClusterId::new("training").unwrap();
        let policy = fleet.vclusters[&training].what.clone().unwrap();
        assert_eq!((policy.base_window_seconds, policy.sensitivity.0, policy.weights[6].0), (600, 2_500, 4_000));
        assert_eq!(policy.exec_allow.len(), 2);
        let node = Scope::Node(NodeId::new("gpu002").unwrap());
        let key = Key::new("kernel:vm.nr_hugepages").unwrap();
        assert_eq!(fleet.scopes[&node][&key].what, Setting::Value("1024".into()));
        assert_eq!(fleet.scopes[&node][&key].place.line, 19);
        let telnetd = Key::new("services:telnetd").unwrap();
        assert_eq!(fleet.scopes[&Scope::VCluster(training)][&telnetd].what, Setting::Absent);
    }

    #[test]
    fn every_problem_has_its_line_and_says_what_is_accepted() {
        let found = problems(
            "[global.kernal]\na = 1\n[vcluster.t.policy]\nmode = \"strict\"\nbase_window = 1\n[vcluster.t.gpu]\n\
             x = [1]\n[[nodes]]\nnames = \"n[3-1]\"\nvcluster = \"a b\"\n[[nodes]]\nvcluster = \"t\"\n",
        );
        assert_eq!(
            found,
            [
                "fleet.toml:1: global.kernal is not a key that exists; did you mean \"kernel\"? accepted in [global]: \
                 mounts, files, network, services, kernel, packages, gpu",
                "fleet.toml:4: vcluster.t.policy.mode: \"strict\" is not a mode: expected observe, warn or enforce",
                "fleet.toml:5: vcluster.t.policy.base_window: \"base_window\" is not a field of a policy: expected one \
                 of base_window_seconds, sensitivity, weights.DIMENSION, min_window_seconds, emergency_allowed, \
                 emergency_window_seconds, mode, exec_allow",
                "fleet.toml:7: gpu:x is an array: expected text, a number, true or false, { absent = true } or \
                 { unset = true }",
                "fleet.toml:9: nodes.names: \"n[3-1]\": the range \"3-1\" runs backwards: expected [1-3]",
                "fleet.toml:10: nodes.vcluster: \"a b\" is not a vCluster name: expected 1 to 128 of A-Z a-z 0-9 . _ - \
                 starting with a letter or digit",
                "fleet.toml:11: nodes.names is missing: expected \"gpu[001-064]\" or a list of such",
            ]
        );
    }

    #[test]
    fn what_no_node_can_be_is_a_problem_of_its_line_and_the_rest_has_one_spelling() {
        assert_eq!(
            problems("[global.services]\nsshd = \"up\"\n[global.kernel]\na = { absent = true }\n")[1],
            "fleet.toml:4: kernel:a cannot be so: kernel:a always has a value and cannot be absent: expected a value"
        );
        let fleet = Fleet::parse([("f", "[global.kernel]\na = \"1   2\"\n[global.services]\nx = { unset = true }\n")]);
        let said = &fleet.unwrap().scopes[&Scope::Global];
        assert_eq!(said[&Key::new("kernel:a").unwrap()].what, Setting::Value("1 2".into()));
        assert_eq!(said[&Key::new("services:x").unwrap()].what, Setting::Unset);
    }

    #[test]
    fn saying_two_things_about_one_key_names_both_places() {
        let text =
            "[[nodes]]\nnames = \"n[1-2]\"\n[nodes.kernel]\na = 1\n[[nodes]]\nnames = \"n2\"\n[nodes.kernel]\na = 2\n";
        assert_eq!(problems(text), ["fleet.toml:8: node:n2 kernel:a is \"2\", but \"1\" at fleet.toml:4"]);
    }

    #[test]
    fn text_that_is_not_toml_is_a_problem_with_its_line() {
        assert!(problems("[global.kernel]\na = \n")[0].starts_with("fleet.toml:2: this is not TOML: "));
    }
}
