//! The small numbers and names everything else is made of. A swap of two of them does not compile.
//!
//! Names that people choose are validated once, at the edge, and are cheap to clone and to compare afterwards.

use crate::journal::text::Text;
use alloc::string::{String, ToString};
use core::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number!(
    /// A Raft member, allotted by the cluster, never used twice. 0 is nobody.
    ReplicaId
);
number!(
    /// A Raft term.
    Term
);
number!(
    /// A position in the Raft log. 0 is before the first entry.
    Index
);
number!(
    /// A sequence of the journal: dense over entries and audit records. The first is 1; 0 means "before the first".
    Seq
);
number!(
    /// Replicated elapsed time in microseconds: the sum of every applied proposal's `elapsed`. Only this expires anything.
    Age
);
number!(
    /// Milliseconds since the Unix epoch. For people; decides nothing.
    WallTime
);
number!(
    /// Which of a host's Raft groups a message belongs to. The journal is group 1.
    GroupId
);
number!(
    /// A write handed to storage; completions name it.
    WriteId
);
number!(
    /// A client session, allotted by the cluster.
    SessionId
);

impl Seq {
    /// The next sequence.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Index {
    /// The next position.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Age {
    /// This age plus whole seconds.
    #[must_use]
    pub const fn plus_seconds(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds.saturating_mul(1_000_000)))
    }
}

/// Monotonic time since this replica's process started, in nanoseconds. Never compared between replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

impl Time {
    /// This time plus milliseconds.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1_000_000)))
    }
    /// Microseconds from `earlier` to `self`; 0 if `earlier` is later.
    #[must_use]
    pub const fn micros_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}s", self.0 / 1_000_000_000, self.0 % 1_000_000_000 / 1_000)
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }
        impl core::str::FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                if text.len() != 32 {
                    return Err(InvalidName { what: "an id", text: text.to_string(), want: "32 hexadecimal digits" });
                }
                u128::from_str_radix(text, 16)
                    .map(Self)
                    .map_err(|_| InvalidName { what: "an id", text: text.to_string(), want: "32 hexadecimal digits" })
            }
        }
    };
}

random_id!(
    /// A cluster: drawn once by `init`, carried by every message and every file.
    ClusterId
);
random_id!(
    /// One life of a data directory. A known replica id under a new incarnation is refused.
    Incarnation
);
random_id!(
    /// A one-shot request, drawn by its client.
    OneShotId
);

/// A name somebody chose that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidName {
    /// What was being named.
    pub what: &'static str,
    /// What was given.
    pub text: String,
    /// What would be accepted.
    pub want: &'static str,
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not {}: expected {}", self.text, self.what, self.want)
    }
}

impl core::error::Error for InvalidName {}

/// Longest name of a node, vCluster or replica, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Text);
        impl $name {
            /// Checks and takes a name: 1 to 128 of `A-Z a-z 0-9 . _ -`, starting with a letter or digit.
            ///
            /// # Errors
            /// [`InvalidName`] says what would be accepted.
            pub fn new(text: &str) -> Result<Self, InvalidName> {
                Self::check(text)?;
                Ok(Self(Text::from(text)))
            }
            /// A name of text that is kept already.
            pub(crate) fn from_text(text: Text) -> Result<Self, InvalidName> {
                Self::check(text.as_str())?;
                Ok(Self(text))
            }
            fn check(text: &str) -> Result<(), InvalidName> {
                let good = !text.is_empty()
                    && text.len() <= NAME_BYTES_MAX
                    && text.as_bytes()[0].is_ascii_alphanumeric()
                    && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
                if good {
                    Ok(())
                } else {
                    Err(InvalidName {
                        what: $what,
                        text: text.to_string(),
                        want: "1 to 128 of A-Z a-z 0-9 . _ - starting with a letter or digit",
                    })
                }
            }
            /// A bound below every name, for ranges over maps. Not a name.
            #[allow(dead_code, reason = "only some kinds of name are the second part of a map's key")]
            pub(crate) fn least() -> Self {
                Self(Text::from(""))
            }
            /// The name as it is kept.
            pub(crate) const fn text(&self) -> &Text {
                &self.0
            }
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl core::str::FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }
    };
}

name!(
    /// A managed machine.
    NodeId,
    "a node name"
);
name!(
    /// A virtual cluster: the nodes that share an overlay and a policy.
    VClusterId,
    "a vCluster name"
);
name!(
    /// The display name of a replica, unique in the cluster.
    ReplicaName,
    "a replica name"
);

/// A 32-byte BLAKE3 digest.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
    /// The chain's next head: the digest of this head followed by `bytes`.
    #[must_use]
    pub fn chain(self, bytes: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        hasher.update(bytes);
        Self(*hasher.finalize().as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::str::FromStr for Digest {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let wrong = || InvalidName { what: "a digest", text: text.to_string(), want: "64 hexadecimal digits" };
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}
