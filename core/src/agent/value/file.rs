//! The value of a `files:` key: what lies at a path.
//!
//! ```text
//! TEXT                                            a file with this text; nothing is said of mode and owner
//! @file [mode=] [owner=] [ids=] [text=|base64=|blake3=]   a file; text= and base64= take the rest of the value
//! @dir  [mode=] [owner=] [ids=]                   a directory
//! @link [owner=] [ids=] to=TARGET                 a symbolic link; to= takes the rest of the value
//! @other kind=fifo|socket|device …                only ever observed
//! ```
//! Text that begins with `@` is written after `text=`. Content is text if it is UTF-8 without control characters other than
//! tab and line ends, otherwise base64; content too large for a value is known by its digest alone.

use super::Unfit;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use core::fmt;

const WANT: &str = "the file's text, or '@file [mode=0644] [owner=USER:GROUP] [ids=UID:GID] [text=… | base64=… | blake3=…]', \
     '@dir [mode=0755] [owner=…] [ids=…]' or '@link [owner=…] [ids=…] to=TARGET'; text beginning with '@' goes after '@file text='";

/// What lies at a path, or what of it is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// What kind of thing it is.
    pub kind: Kind,
    /// Permission bits, at most `0o7777`. Links have none.
    pub mode: Option<u32>,
    /// Names of the user and group that own it.
    pub owner: Option<(String, String)>,
    /// Numbers of the user and group that own it.
    pub ids: Option<(u32, u32)>,
}

/// The kinds of things at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; `None` says nothing of its content.
    File(Option<Content>),
    /// A directory.
    Directory,
    /// A symbolic link and where it points.
    Link(String),
    /// A fifo, socket or device. Observed, never declared.
    Other(String),
}

/// A file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The bytes.
    Bytes(Vec<u8>),
    /// What is too large for a value, by its BLAKE3 digest.
    Digest([u8; 32]),
}

impl Content {
    fn digest(&self) -> [u8; 32] {
        match self {
            Self::Bytes(bytes) => *blake3::hash(bytes).as_bytes(),
            Self::Digest(digest) => *digest,
        }
    }

    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            _ => self.digest() == other.digest(),
        }
    }
}

impl File {
    /// A thing of this kind, and nothing said of mode or owner.
    #[must_use]
    pub const fn of(kind: Kind) -> Self {
        Self { kind, mode: None, owner: None, ids: None }
    }

    /// Reads a value. What a host observes (`@other`) is read too, though it cannot be declared.
    ///
    /// # Errors
    /// [`Unfit`] says what would be accepted.
    pub fn parse(value: &str) -> Result<Self, Unfit> {
        if !value.starts_with('@') {
            return Ok(Self::of(Kind::File(Some(Content::Bytes(value.as_bytes().to_vec())))));
        }
        let (word, rest) = value.split_once(' ').unwrap_or((value, ""));
        let mut file = match word {
            "@file" => Self::of(Kind::File(None)),
            "@dir" => Self::of(Kind::Directory),
            "@link" => Self::of(Kind::Link(String::new())),
            "@other" => Self::of(Kind::Other(String::new())),
            _ => return Err(Unfit::new(format!("{} is not known", shortened(word)), WANT)),
        };
        file.read_fields(rest)?;
        match &file.kind {
            Kind::Link(target) if target.is_empty() => Err(Unfit::new("a link points nowhere", WANT)),
            Kind::Link(_) if file.mode.is_some() => Err(Unfit::new("a link has no mode", WANT)),
            _ => Ok(file),
        }
    }

    /// Reads a value that is to be declared.
    ///
    /// # Errors
    /// [`Unfit`] says what would be accepted; devices, fifos and sockets are not.
    pub fn declared(value: &str) -> Result<Self, Unfit> {
        let file = Self::parse(value)?;
        if let Kind::Other(kind) = &file.kind {
            return Err(Unfit::new(format!("a {kind} can be observed, not declared"), WANT));
        }
        Ok(file)
    }

    fn read_fields(&mut self, mut rest: &str) -> Result<(), Unfit> {
        loop {
            rest = rest.trim_start_matches(' ');
            if rest.is_empty() {
                return Ok(());
            }
            let Some((field, after)) = rest.split_once('=') else {
                return Err(Unfit::new(format!("{} is not a field", shortened(rest)), WANT));
            };
            let whole = |problem: &str| Unfit::new(format!("{field}: {problem}"), WANT);
            match (field, &mut self.kind) {
                ("text", Kind::File(content @ None)) => {
                    *content = Some(Content::Bytes(after.as_bytes().to_vec()));
                    return Ok(());
                }
                ("base64", Kind::File(content @ None)) => {
                    let packed: String = after.split_whitespace().collect();
                    let bytes = STANDARD.decode(packed).map_err(|error| whole(&error.to_string()))?;
                    *content = Some(Content::Bytes(bytes));
                    return Ok(());
                }
                ("to", Kind::Link(target)) => {
                    let good = !after.is_empty() && after.len() < 4_096 && !after.contains('\0');
                    if !good {
                        return Err(whole("no target of a link"));
                    }
                    *target = after.to_string();
                    return Ok(());
                }
                _ => {}
            }
            let (word, next) = after.split_once(' ').unwrap_or((after, ""));
            match (field, &mut self.kind) {
                ("mode", _) if self.mode.is_none() => {
                    self.mode = Some(mode(word).ok_or_else(|| whole("not 3 or 4 octal digits"))?);
                }
                ("owner", _) if self.owner.is_none() => {
                    self.owner =
                        Some(owner(word).ok_or_else(|| whole("not USER:GROUP by name; numbers go into ids="))?);
                }
                ("ids", _) if self.ids.is_none() => {
                    let pair = word.split_once(':').and_then(|(u, g)| Some((number(u)?, number(g)?)));
                    self.ids = Some(pair.ok_or_else(|| whole("not UID:GID"))?);
                }
                ("blake3", Kind::File(content @ None)) => {
                    let digest = blake3::Hash::from_hex(word).map_err(|_| whole("not 64 hexadecimal digits"))?;
                    *content = Some(Content::Digest(*digest.as_bytes()));
                }
                ("kind", Kind::Other(kind)) if kind.is_empty() => *kind = word.to_string(),
                _ => return Err(Unfit::new(format!("{} does not belong here", shortened(field)), WANT)),
            }
            rest = next;
        }
    }

    /// Whether `found` is everything that is said here.
    #[must_use]
    pub fn covers(&self, found: &Self) -> bool {
        let kind = match (&self.kind, &found.kind) {
            (Kind::File(None), Kind::File(_)) | (Kind::Directory, Kind::Directory) => true,
            (Kind::File(Some(declared)), Kind::File(Some(found))) => declared.same(found),
            (Kind::Link(declared), Kind::Link(found)) | (Kind::Other(declared), Kind::Other(found)) => {
                declared == found
            }
            _ => false,
        };
        kind && said(self.mode.as_ref(), found.mode.as_ref())
            && said(self.owner.as_ref(), found.owner.as_ref())
            && said(self.ids.as_ref(), found.ids.as_ref())
    }
}

/// What is not declared is not compared.
fn said<T: PartialEq>(declared: Option<&T>, found: Option<&T>) -> bool {
    declared.is_none_or(|declared| Some(declared) == found)
}

fn mode(text: &str) -> Option<u32> {
    let good = (3..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    good.then(|| u32::from_str_radix(text, 8).ok()).flatten()
}

fn number(text: &str) -> Option<u32> {
    let good = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // The highest number means "leave it" to chown.
    good.then(|| text.parse().ok()).flatten().filter(|id| *id != u32::MAX)
}

fn owner(text: &str) -> Option<(String, String)> {
    let (user, group) = text.split_once(':')?;
    let good = |name: &str| {
        !name.is_empty() && name.len() <= 255 && !name.bytes().all(|b| b.is_ascii_digit()) && !name.contains([':', '/'])
    };
    (good(user) && good(group)).then(|| (user.to_string(), group.to_string()))
}

fn shortened(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    format!("{short:?}")
}

/// The content as text, if it reads as such.
fn as_text(bytes: &[u8]) -> Option<&str> {
    let text = core::str::from_utf8(bytes).ok()?;
    (!text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t' | '\r'))).then_some(text)
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bare = self.mode.is_none() && self.owner.is_none() && self.ids.is_none();
        if let Kind::File(Some(Content::Bytes(bytes))) = &self.kind
            && let Some(text) = as_text(bytes)
            && bare
            && !text.starts_with('@')
        {
            return f.write_str(text);
        }
        f.write_str(match &self.kind {
            Kind::File(_) => "@file",
            Kind::Directory => "@dir",
            Kind::Link(_) => "@link",
            Kind::Other(_) => "@other",
        })?;
        if let Kind::Other(kind) = &self.kind {
            write!(f, " kind={kind}")?;
        }
        if let Some(mode) = self.mode {
            write!(f, " mode={mode:04o}")?;
        }
        if let Some((user, group)) = &self.owner {
            write!(f, " owner={user}:{group}")?;
        }
        if let Some((user, group)) = self.ids {
            write!(f, " ids={user}:{group}")?;
        }
        match &self.kind {
            Kind::File(Some(Content::Bytes(bytes))) => match as_text(bytes) {
                Some(text) => write!(f, " text={text}"),
                None => write!(f, " base64={}", STANDARD.encode(bytes)),
            },
            Kind::File(Some(Content::Digest(digest))) => write!(f, " blake3={}", blake3::Hash::from_bytes(*digest)),
            Kind::Link(target) => write!(f, " to={target}"),
            Kind::File(None) | Kind::Directory | Kind::Other(_) => Ok(()),
        }
    }
}
