//! The text that a booting node reads: overlays and deltas, made for shell scripts in an initramfs.
//!
//! ```text
//! muster-boot 1 overlay vcluster=hpc-a version=41
//! muster-boot 1 delta vcluster=hpc-a version=41 sequence=57 node=n017
//! policy sequence=12                     a policy, field by field, if there is one
//! policy base_window_seconds=900
//! kernel:vm.swappiness=10                must be there with this value
//! files:/etc/motd absent                 must not be there
//! mounts:/scratch unset                  delta only: nothing is declared any more
//! end 5                                  how many lines lie between the first and this one
//! ```
//! A delta's sequence is that of the last entry that concerned the node, so what is declared for others does not change its bytes: it has
//! been right since then, and was still right when it was made.
//!
//! A document is one header, its lines, and the end, which tells a whole one from a cut one. A key holds no space and no
//! `=`, so everything after the first `=` is the value. In values `\n`, `\r`, `\t` and `\\` are escaped, and every other
//! control character as `\xNN`, byte by byte.

use super::key::{Dimension, Key, Setting};
use super::policy::{Milli, Mode, Policy};
use crate::ids::{NodeId, Seq, VClusterId};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Write};

/// The format that is written, and the only one that is read.
pub const DOCUMENT_FORMAT: u32 = 1;

/// What a document is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Everything a vCluster's nodes have in common, as of its version.
    Overlay,
    /// What makes an overlay right for one node since a sequence.
    Delta {
        /// The sequence: the last entry of the scopes that count for the node.
        sequence: Seq,
        /// The node.
        node: NodeId,
    },
}

/// A boot document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// What it is.
    pub kind: Kind,
    /// Of which vCluster.
    pub vcluster: VClusterId,
    /// The overlay's version; for a delta that of the overlay it goes with.
    pub version: Seq,
    /// The policy and its `PolicyUpdate` entry. A delta has it only if it is newer than the overlay.
    pub policy: Option<(Seq, Policy)>,
    /// The settings.
    pub settings: BTreeMap<Key, Setting>,
}

/// Text that is not a boot document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, and what would be accepted.
    pub problem: String,
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.problem)
    }
}

impl core::error::Error for DocumentError {}

/// Writes a document.
#[must_use]
pub fn write(document: &Document) -> String {
    let Document { kind, vcluster, version, policy, settings } = document;
    let mut text = String::new();
    let mut writer = Writer::begin(&mut text, kind, vcluster, *version);
    if let Some((sequence, policy)) = policy {
        writer.policy(*sequence, policy);
    }
    for (key, setting) in settings {
        writer.setting(key, setting);
    }
    writer.end();
    text
}

/// Writes a document line by line, after whatever a text holds already.
pub(crate) struct Writer<'a> {
    text: &'a mut String,
    lines: u64,
}

impl<'a> Writer<'a> {
    /// The first line.
    pub(crate) fn begin(text: &'a mut String, kind: &Kind, vcluster: &VClusterId, version: Seq) -> Self {
        let mut number = itoa::Buffer::new();
        *text += "muster-boot ";
        *text += number.format(DOCUMENT_FORMAT);
        *text += match kind {
            Kind::Overlay => " overlay vcluster=",
            Kind::Delta { .. } => " delta vcluster=",
        };
        *text += vcluster.as_str();
        *text += " version=";
        *text += number.format(version.0);
        if let Kind::Delta { sequence, node } = kind {
            *text += " sequence=";
            *text += number.format(sequence.0);
            *text += " node=";
            *text += node.as_str();
        }
        text.push('\n');
        Self { text, lines: 0 }
    }

    /// A policy, field by field.
    pub(crate) fn policy(&mut self, sequence: Seq, policy: &Policy) {
        for line in policy_lines(sequence, policy) {
            *self.text += &line;
            self.end_line();
        }
    }

    /// A setting.
    pub(crate) fn setting(&mut self, key: &Key, setting: &Setting) {
        *self.text += key.as_str();
        match setting {
            Setting::Unset => *self.text += " unset",
            Setting::Absent => *self.text += " absent",
            Setting::Value(value) => {
                self.text.push('=');
                escape(value, self.text);
            }
        }
        self.end_line();
    }

    fn end_line(&mut self) {
        self.text.push('\n');
        self.lines += 1;
    }

    /// The last line.
    pub(crate) fn end(self) {
        *self.text += "end ";
        *self.text += itoa::Buffer::new().format(self.lines);
        self.text.push('\n');
    }
}

fn policy_lines(sequence: Seq, policy: &Policy) -> Vec<String> {
    let mut lines = alloc::vec![
        format!("policy sequence={sequence}"),
        format!("policy base_window_seconds={}", policy.base_window_seconds),
        format!("policy sensitivity={}", policy.sensitivity),
        format!("policy min_window_seconds={}", policy.min_window_seconds),
        format!("policy emergency_allowed={}", policy.emergency_allowed),
        format!("policy emergency_window_seconds={}", policy.emergency_window_seconds),
        format!("policy mode={}", mode_word(policy.mode)),
    ];
    for (dimension, weight) in Dimension::ALL.iter().zip(policy.weights) {
        lines.push(format!("policy weight.{}={weight}", dimension.word()));
    }
    for command in &policy.exec_allow {
        let mut line = String::from("policy exec_allow=");
        escape(command, &mut line);
        lines.push(line);
    }
    lines
}

const fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Observe => "observe",
        Mode::Warn => "warn",
        Mode::Enforce => "enforce",
    }
}

/// How many bytes a setting has in an overlay: its line, and the line's end.
pub(crate) fn line_bytes(key: &Key, setting: &Setting) -> u64 {
    let key = key.as_str().len();
    let bytes = match setting {
        Setting::Unset => 0,
        Setting::Absent => key + " absent\n".len(),
        Setting::Value(value) => key + "=\n".len() + escaped_bytes(value),
    };
    bytes as u64
}

/// Whether a value is the same once it is escaped. Looks at all of it, so that the compiler may look at many bytes at once.
#[allow(clippy::needless_bitwise_bool, reason = "a lazy operator would have it look at one byte after the other")]
fn is_plain(value: &str) -> bool {
    value.bytes().fold(true, |plain, byte| plain & (0x20..0x7f).contains(&byte) & (byte != b'\\'))
}

/// How long a value is once it is escaped.
fn escaped_bytes(value: &str) -> usize {
    if is_plain(value) {
        return value.len();
    }
    let mut escaped = String::new();
    escape(value, &mut escaped);
    escaped.len()
}

fn escape(value: &str, out: &mut String) {
    if is_plain(value) {
        *out += value;
        return;
    }
    for c in value.chars() {
        match c {
            '\\' => *out += "\\\\",
            '\n' => *out += "\\n",
            '\r' => *out += "\\r",
            '\t' => *out += "\\t",
            c if c.is_control() => {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    let _ = write!(out, "\\x{byte:02x}");
                }
            }
            c => out.push(c),
        }
    }
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte.is_ascii_control() {
            return Err(format!("the control character \\x{byte:02x} is not escaped"));
        }
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match bytes.next() {
            Some(b'\\') => b'\\',
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'x') => {
                let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
                match (digit(), digit()) {
                    (Some(high), Some(low)) => u8::try_from(high * 16 + low).map_err(|error| error.to_string())?,
                    _ => return Err("\\x is not followed by two hexadecimal digits".into()),
                }
            }
            _ => return Err("a backslash is followed by none of \\ n r t x".into()),
        });
    }
    String::from_utf8(out).map_err(|_| "its escapes do not make UTF-8".into())
}

/// Reads a document.
///
/// # Errors
/// [`DocumentError`] names the first line that is wrong.
pub fn parse(text: &str) -> Result<Document, DocumentError> {
    let at = |line: usize| move |problem: String| DocumentError { line, problem };
    let mut lines = text.split_inclusive('\n').enumerate().map(|(number, line)| (number + 1, line));
    let mut next = |after: usize| match lines.next() {
        Some((number, line)) => match line.strip_suffix('\n') {
            Some(line) => Ok((number, line)),
            None => Err(at(number)("the line is cut: expected it to end in a newline".into())),
        },
        None => Err(at(after + 1)("the document is cut: expected \"end COUNT\" as its last line".into())),
    };
    let (_, first) = next(0)?;
    let mut document = header(first).map_err(at(1))?;
    let mut fields = PolicyFields::default();
    let mut number = 1;
    let claimed = loop {
        let (found, line) = next(number)?;
        number = found;
        if let Some(count) = line.strip_prefix("end ") {
            break count;
        } else if let Some(field) = line.strip_prefix("policy ") {
            fields.take(field).map_err(at(number))?;
        } else {
            let (key, setting) = setting(line).map_err(at(number))?;
            if setting == Setting::Unset && document.kind == Kind::Overlay {
                return Err(at(number)(format!("{key} is unset: an overlay only holds what is declared")));
            }
            if let Some((last, _)) = document.settings.last_key_value()
                && *last >= key
            {
                return Err(at(number)(format!("{key} comes after {last}: expected each key once, ascending")));
            }
            document.settings.insert(key, setting);
        }
    };
    if claimed != (number - 2).to_string() {
        return Err(at(number)(format!("the end counts {claimed:?} lines, there are {}", number - 2)));
    }
    if text.lines().count() != number {
        return Err(at(number + 1)("there is text after the end".into()));
    }
    document.policy = fields.finish().map_err(at(number))?;
    Ok(document)
}

fn header(line: &str) -> Result<Document, String> {
    let want = "expected \"muster-boot 1 overlay vcluster=NAME version=N\" or \"muster-boot 1 delta vcluster=NAME \
         version=N sequence=N node=NAME\"";
    let mut words = line.split(' ');
    if words.next() != Some("muster-boot") {
        return Err(format!("this is not a boot document: {want}"));
    }
    let format = words.next().unwrap_or_default();
    if format != DOCUMENT_FORMAT.to_string() {
        return Err(format!("the document has format {format:?}, this muster knows {DOCUMENT_FORMAT}"));
    }
    let kind = words.next().unwrap_or_default();
    let mut field = |name: &str| {
        let word = words.next().unwrap_or_default();
        word.strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('='))
            .ok_or_else(|| format!("{name} is missing: {want}"))
    };
    let vcluster = VClusterId::new(field("vcluster")?).map_err(|error| error.to_string())?;
    let version = Seq(number(field("version")?)?);
    let kind = match kind {
        "overlay" => Kind::Overlay,
        "delta" => {
            let sequence = Seq(number(field("sequence")?)?);
            Kind::Delta { sequence, node: NodeId::new(field("node")?).map_err(|error| error.to_string())? }
        }
        other => return Err(format!("{other:?} is no kind of document: {want}")),
    };
    if words.next().is_some() {
        return Err(format!("there is more than belongs there: {want}"));
    }
    Ok(Document { kind, vcluster, version, policy: None, settings: BTreeMap::new() })
}

fn setting(line: &str) -> Result<(Key, Setting), String> {
    let want = "expected KEY=VALUE, \"KEY absent\" or \"KEY unset\"";
    let (key, setting) = if let Some((key, value)) = line.split_once('=') {
        (key, Setting::Value(Arc::from(unescape(value)?)))
    } else if let Some((key, word)) = line.split_once(' ') {
        let setting = match word {
            "absent" => Setting::Absent,
            "unset" => Setting::Unset,
            other => return Err(format!("{other:?} is no setting: {want}")),
        };
        (key, setting)
    } else {
        return Err(format!("{line:?} is no setting: {want}"));
    };
    Ok((Key::new(key).map_err(|error| error.to_string())?, setting))
}

fn number<T: core::str::FromStr>(text: &str) -> Result<T, String> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten().ok_or_else(|| format!("{text:?} is not a number that fits"))
}

/// A policy's lines, as far as they were read.
#[derive(Default)]
struct PolicyFields {
    single: BTreeMap<String, String>,
    exec_allow: Vec<Arc<str>>,
}

impl PolicyFields {
    const SINGLE: [&'static str; 7] = [
        "sequence",
        "base_window_seconds",
        "sensitivity",
        "min_window_seconds",
        "emergency_allowed",
        "emergency_window_seconds",
        "mode",
    ];

    fn take(&mut self, line: &str) -> Result<(), String> {
        let (name, value) = line.split_once('=').ok_or("expected \"policy FIELD=VALUE\"")?;
        if name == "exec_allow" {
            self.exec_allow.push(Arc::from(unescape(value)?));
            return Ok(());
        }
        let weight = name.strip_prefix("weight.").is_some_and(|word| Dimension::ALL.iter().any(|d| d.word() == word));
        if !weight && !Self::SINGLE.contains(&name) {
            return Err(format!(
                "a policy has no field {name:?}: expected exec_allow, weight.DIMENSION, {}",
                Self::SINGLE.join(", ")
            ));
        }
        if self.single.insert(name.into(), value.into()).is_some() {
            return Err(format!("the policy's field {name} is there twice"));
        }
        Ok(())
    }

    fn finish(self) -> Result<Option<(Seq, Policy)>, String> {
        if self.single.is_empty() && self.exec_allow.is_empty() {
            return Ok(None);
        }
        let field = |name: &str| self.single.get(name).ok_or_else(|| format!("the policy lacks its field {name}"));
        let mut weights = [Milli(0); 7];
        for (dimension, weight) in Dimension::ALL.iter().zip(&mut weights) {
            *weight = field(&format!("weight.{}", dimension.word()))?.parse()?;
        }
        let policy = Policy {
            base_window_seconds: number(field("base_window_seconds")?)?,
            sensitivity: field("sensitivity")?.parse()?,
            weights,
            min_window_seconds: number(field("min_window_seconds")?)?,
            emergency_allowed: match field("emergency_allowed")?.as_str() {
                "true" => true,
                "false" => false,
                other => return Err(format!("emergency_allowed is {other:?}: expected true or false")),
            },
            emergency_window_seconds: number(field("emergency_window_seconds")?)?,
            mode: match field("mode")?.as_str() {
                "observe" => Mode::Observe,
                "warn" => Mode::Warn,
                "enforce" => Mode::Enforce,
                other => return Err(format!("mode is {other:?}: expected observe, warn or enforce")),
            },
            exec_allow: self.exec_allow.clone(),
        };
        Ok(Some((Seq(number(field("sequence")?)?), policy)))
    }
}
