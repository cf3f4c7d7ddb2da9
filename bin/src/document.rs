//! Reading TOML that people wrote: every value with its line, every problem at once.
//!
//! A [`Reader`] hands out the values of one table and remembers which keys were asked for; what nobody asked for is a problem
//! that names the keys that exist. Problems are collected in [`Problems`] and never stop the reading, so that one look at the
//! list is enough to mend a file.
//!
//! Never here: what the values mean.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Range, RangeInclusive};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    /// Which line, from 1.
    pub(crate) line: usize,
    /// What is wrong there and what would be accepted.
    pub(crate) text: String,
}

/// Everything that is wrong with a file, by line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problems {
    /// The file's name as the user gave it.
    pub(crate) file: String,
    /// The problems, by line.
    pub(crate) list: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.list.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:{}: {}", self.file, problem.line, problem.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A file that is being read.
pub(crate) struct Document<'a> {
    file: &'a str,
    text: &'a str,
    /// Where each line ends.
    line_ends: Vec<usize>,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Document<'a> {
    pub(crate) fn new(file: &'a str, text: &'a str) -> Self {
        let line_ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect();
        Self { file, text, line_ends, problems: RefCell::default() }
    }

    /// The outermost table. Text that is not TOML gives its problems, and whatever could be read besides.
    pub(crate) fn parse(&self) -> Spanned<DeTable<'a>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let at = error.span().map_or(0, |span| span.start);
            let message = error.message().trim().replace('\n', ", ");
            self.problem(at..at, format!("this is not TOML: {message}"));
        }
        table
    }

    /// Remembers a problem at a place.
    pub(crate) fn problem(&self, at: Range<usize>, text: impl Into<String>) {
        let problem = Problem { line: self.line(at.start), text: text.into() };
        let mut problems = self.problems.borrow_mut();
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }

    /// The line of a byte offset.
    pub(crate) fn line(&self, offset: usize) -> usize {
        self.line_ends.partition_point(|end| *end < offset) + 1
    }

    /// What was found wrong, if anything was.
    pub(crate) fn finish<T>(self, value: T) -> Result<T, Problems> {
        let mut list = self.problems.into_inner();
        if list.is_empty() {
            return Ok(value);
        }
        list.sort();
        Err(Problems { file: self.file.to_owned(), list })
    }
}

/// A value with its place.
pub(crate) type Value<'t, 'a> = &'t Spanned<DeValue<'a>>;

/// One table that is being read.
pub(crate) struct Reader<'d, 't, 'a> {
    document: &'d Document<'a>,
    path: String,
    table: Option<&'t DeTable<'a>>,
    span: Range<usize>,
    known: Vec<&'static str>,
}

impl<'d, 't, 'a> Reader<'d, 't, 'a> {
    pub(crate) fn root(document: &'d Document<'a>, table: &'t Spanned<DeTable<'a>>) -> Self {
        Self { document, path: String::new(), table: Some(table.get_ref()), span: table.span(), known: Vec::new() }
    }

    /// Reads a table that was found as a value.
    pub(crate) fn of(document: &'d Document<'a>, path: String, value: Value<'t, 'a>, want: &str) -> Self {
        let table = value.get_ref().as_table();
        if table.is_none() {
            let found = kind(value.get_ref());
            document.problem(value.span(), format!("{path} is {found}: expected {want}"));
        }
        Self { document, path, table, span: value.span(), known: Vec::new() }
    }

    /// Where the table begins.
    pub(crate) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// The full name of one of its keys.
    pub(crate) fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The value under a key, which is thereby known.
    pub(crate) fn value(&mut self, key: &'static str) -> Option<Value<'t, 'a>> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.table?.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    /// A table under a key; an absent one reads as empty.
    pub(crate) fn table(&mut self, key: &'static str) -> Self {
        let path = self.name(key);
        match self.value(key) {
            Some(value) => Self::of(self.document, path, value, "a table"),
            None => Self { document: self.document, path, table: None, span: self.span(), known: Vec::new() },
        }
    }

    /// Every key of a table whose keys are names that people chose.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'t str, Range<usize>, Value<'t, 'a>)> + use<'t, 'a> {
        let mut entries: Vec<_> = self
            .table
            .into_iter()
            .flat_map(|table| table.iter().map(|(name, value)| (name.get_ref().as_ref(), name.span(), value)))
            .collect();
        entries.sort_by_key(|(_, span, _)| span.start);
        entries.into_iter()
    }

    pub(crate) fn text(&mut self, key: &'static str) -> Option<(&'t str, Range<usize>)> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some((text.as_ref(), value.span())),
            other => {
                let name = self.name(key);
                self.document.problem(value.span(), format!("{name} is {}: expected text in quotes", kind(other)));
                None
            }
        }
    }

    pub(crate) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(*flag),
            other => {
                let name = self.name(key);
                self.document.problem(value.span(), format!("{name} is {}: expected true or false", kind(other)));
                None
            }
        }
    }

    /// A whole number in a range, with a word for what it counts.
    pub(crate) fn number(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        unit: &str,
    ) -> Option<(u64, Range<usize>)> {
        let value = self.value(key)?;
        let (min, max) = (*range.start(), *range.end());
        let number = match value.get_ref() {
            DeValue::Integer(digits) => u64::from_str_radix(digits.as_str(), digits.radix()).ok(),
            DeValue::String(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_)
            | DeValue::Table(_) => None,
        };
        if let Some(number) = number.filter(|number| range.contains(number)) {
            return Some((number, value.span()));
        }
        let name = self.name(key);
        let found = describe(value.get_ref());
        let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
        self.document
            .problem(value.span(), format!("{name} is {found}: expected a whole number from {min} to {max}{unit}"));
        None
    }

    /// One of a few words.
    pub(crate) fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let (text, span) = self.text(key)?;
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == text) {
            return Some(*choice);
        }
        let words = choices.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>().join(" or ");
        let name = self.name(key);
        self.document.problem(span, format!("{name} is {text:?}: expected {words}"));
        None
    }

    /// Text that something else must accept.
    pub(crate) fn parsed<T, E: fmt::Display>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<(T, Range<usize>)> {
        let (text, span) = self.text(key)?;
        match parse(text) {
            Ok(value) => Some((value, span)),
            Err(error) => {
                let name = self.name(key);
                self.document.problem(span, format!("{name}: {error}"));
                None
            }
        }
    }

    /// The elements of an array.
    pub(crate) fn array(&mut self, key: &'static str, want: &str) -> Vec<Value<'t, 'a>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        if let Some(array) = value.get_ref().as_array() {
            return array.iter().collect();
        }
        let name = self.name(key);
        let found = kind(value.get_ref());
        self.document.problem(value.span(), format!("{name} is {found}: expected an array of {want}"));
        Vec::new()
    }

    /// Ends the reading: keys that nobody asked for are problems.
    pub(crate) fn finish(self) {
        for (name, span, _) in self.entries() {
            if self.known.contains(&name) {
                continue;
            }
            let full = self.name(name);
            let close = closest(name, &self.known).map(|word| format!(" did you mean {word:?}?")).unwrap_or_default();
            let words = self.known.join(", ");
            let wider = if self.path.is_empty() { String::new() } else { format!(" in [{}]", self.path) };
            self.document.problem(span, format!("{full} is not a key that exists;{close} accepted{wider}: {words}"));
        }
    }
}

/// What a value is, for people.
pub(crate) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// The value itself where it is short, else what it is.
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(digits) => digits.to_string(),
        DeValue::Float(digits) => digits.as_str().to_owned(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => kind(value).to_owned(),
    }
}

/// The word that was probably meant: at most a third of its letters differ.
pub(crate) fn closest<'w>(text: &str, words: &[&'w str]) -> Option<&'w str> {
    words
        .iter()
        .map(|word| (edits(text, word), *word))
        .filter(|(distance, word)| distance * 3 <= word.chars().count())
        .min()
        .map(|(_, word)| word)
}

/// How many letters must be put in, left out or changed.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let changed = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_counts_what_a_typist_got_wrong() {
        assert_eq!(edits("heartbeat", "heartbeat"), 0);
        assert_eq!(edits("hartbeat", "heartbeat"), 1);
        assert_eq!(edits("abc", "xyz"), 3);
    }

    #[test]
    fn a_far_word_is_not_suggested() {
        assert_eq!(closest("nod_id", &["node_id", "data_dir"]), Some("node_id"));
        assert_eq!(closest("colour", &["node_id", "data_dir"]), None);
    }

    #[test]
    fn all_problems_of_a_file_come_at_once_and_by_line() {
        let text = "a = 1\nb = \"x\"\nd = true\n";
        let document = Document::new("f.toml", text);
        let table = document.parse();
        let mut reader = Reader::root(&document, &table);
        assert_eq!(reader.text("a"), None);
        assert_eq!(reader.number("b", 1..=9, "seconds"), None);
        reader.finish();
        assert_eq!(
            document.finish(()).unwrap_err().to_string(),
            "f.toml:1: a is a number: expected text in quotes\n\
             f.toml:2: b is \"x\": expected a whole number from 1 to 9 seconds\n\
             f.toml:3: d is not a key that exists; accepted: a, b"
        );
    }
}
