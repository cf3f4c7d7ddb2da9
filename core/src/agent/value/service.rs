//! The value of a `services:` key: `running|stopped [enabled|disabled] [command=COMMAND]`.
//!
//! Where systemd is there, a service is a unit: whether it runs now, and whether it starts with the machine. Elsewhere, and in
//! a directory that an agent was confined to, it is a process the agent keeps alive, and `command=` names it: a program by
//! its absolute path and its arguments, with quotes and backslashes as in a shell, but no expansion of any kind.

use super::Unfit;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

const WANT: &str = "'running' or 'stopped', then optionally 'enabled' or 'disabled', then optionally 'command=/absolute/program ARGUMENTS'";

/// A service, or what of it is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Whether it runs now.
    pub running: bool,
    /// Whether it starts with the machine.
    pub enabled: Option<bool>,
    /// What an agent runs for it; the rest of the value, its words quoted where they must be.
    pub command: Option<Vec<String>>,
}

impl Service {
    /// Reads a value.
    ///
    /// # Errors
    /// [`Unfit`] says what would be accepted.
    pub fn parse(value: &str) -> Result<Self, Unfit> {
        let (state, mut rest) = word(value);
        let running = match state {
            "running" => true,
            "stopped" => false,
            _ => return Err(Unfit::new(format!("{state:?} is no state of a service"), WANT)),
        };
        let enabled = match word(rest) {
            ("enabled", after) => {
                rest = after;
                Some(true)
            }
            ("disabled", after) => {
                rest = after;
                Some(false)
            }
            _ => None,
        };
        let rest = rest.trim();
        let command = match rest.strip_prefix("command=") {
            Some(command) => Some(words(command)?),
            None if rest.is_empty() => None,
            None => return Err(Unfit::new(format!("{rest:?} does not belong here"), WANT)),
        };
        Ok(Self { running, enabled, command })
    }

    /// Whether `found` is everything that is said here. What cannot be found out about a service is not shown, and no drift.
    #[must_use]
    pub fn covers(&self, found: &Self) -> bool {
        let known = |a: Option<bool>, b: Option<bool>| a.is_none() || b.is_none() || a == b;
        // A process that does not run has no command that could be another.
        let command =
            !self.running || self.command.is_none() || found.command.is_none() || self.command == found.command;
        self.running == found.running && known(self.enabled, found.enabled) && command
    }
}

/// Whether an observed service neither runs nor will: a unit cannot be removed by its name, so that is what *absent* means.
pub(crate) fn is_off(found: &str) -> bool {
    Service::parse(found).is_ok_and(|found| !found.running && found.enabled != Some(true))
}

fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    text.split_once(char::is_whitespace).unwrap_or((text, ""))
}

/// Splits a command as a shell would, without expanding anything.
fn words(text: &str) -> Result<Vec<String>, Unfit> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(q), c) if q == c => quote = None,
            (None | Some('"'), '\\') => {
                let next = chars.next().ok_or_else(|| Unfit::new("a command ends with a backslash", WANT))?;
                word.get_or_insert_default().push(next);
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, '\0') => return Err(Unfit::new("a command holds a zero byte", WANT)),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if quote.is_some() {
        return Err(Unfit::new("a quote is not closed in a command", WANT));
    }
    if !words.first().is_some_and(|program| program.starts_with('/')) {
        return Err(Unfit::new("a command does not begin with the absolute path of a program", WANT));
    }
    Ok(words)
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.running { "running" } else { "stopped" })?;
        match self.enabled {
            Some(true) => f.write_str(" enabled")?,
            Some(false) => f.write_str(" disabled")?,
            None => {}
        }
        for (i, word) in self.command.iter().flatten().enumerate() {
            f.write_str(if i == 0 { " command=" } else { " " })?;
            let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
            if !word.is_empty() && word.chars().all(plain) {
                f.write_str(word)?;
            } else {
                write!(f, "'{}'", word.replace('\'', "'\\''"))?;
            }
        }
        Ok(())
    }
}

/// A command as people read it.
#[must_use]
pub fn command_text(words: &[String]) -> String {
    let service = Service { running: true, enabled: None, command: Some(words.to_vec()) };
    service.to_string().trim_start_matches("running command=").to_string()
}
