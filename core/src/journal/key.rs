//! What a configuration entry is about: scopes, keys and settings.

use super::text::Text;
use crate::ids::{InvalidName, NodeId, VClusterId};
use alloc::string::ToString;
use alloc::sync::Arc;
use core::fmt;

/// For whom something is declared. `Node` beats `VCluster` beats `Global`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Every node. Printed `global`.
    Global,
    /// The nodes of one vCluster. Printed `vcluster:NAME`.
    VCluster(VClusterId),
    /// One node. Printed `node:NAME`.
    Node(NodeId),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global => f.write_str("global"),
            Self::VCluster(v) => write!(f, "vcluster:{v}"),
            Self::Node(n) => write!(f, "node:{n}"),
        }
    }
}

impl core::str::FromStr for Scope {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text == "global" {
            Ok(Self::Global)
        } else if let Some(name) = text.strip_prefix("vcluster:") {
            Ok(Self::VCluster(VClusterId::new(name)?))
        } else if let Some(name) = text.strip_prefix("node:") {
            Ok(Self::Node(NodeId::new(name)?))
        } else {
            Err(InvalidName { what: "a scope", text: text.to_string(), want: "global, vcluster:NAME or node:NAME" })
        }
    }
}

/// The seven dimensions in which a node can drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dimension {
    /// Mounted file systems.
    Mounts,
    /// Files and symlinks.
    Files,
    /// Network settings.
    Network,
    /// Services.
    Services,
    /// Kernel parameters.
    Kernel,
    /// Installed packages.
    Packages,
    /// GPU settings.
    Gpu,
}

impl Dimension {
    /// All seven, in the order of the drift vector.
    pub const ALL: [Self; 7] =
        [Self::Mounts, Self::Files, Self::Network, Self::Services, Self::Kernel, Self::Packages, Self::Gpu];

    /// The word used in keys.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Mounts => "mounts",
            Self::Files => "files",
            Self::Network => "network",
            Self::Services => "services",
            Self::Kernel => "kernel",
            Self::Packages => "packages",
            Self::Gpu => "gpu",
        }
    }
}

/// What a setting is called: `dimension:name`, or the one word `vcluster` that assigns a node to its vCluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Text);

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1_024;
/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

const KEY_WANT: &str = "DIMENSION:NAME with one of mounts, files, network, services, kernel, packages, gpu, \
     and a name of 1 to 1000 printable characters without space or '='";

impl Key {
    /// Checks and takes a key.
    ///
    /// # Errors
    /// [`InvalidName`] lists the dimensions that exist.
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        Self::check(text)?;
        Ok(Self(Text::from(text)))
    }

    /// A key of text that is kept already.
    pub(crate) fn from_text(text: Text) -> Result<Self, InvalidName> {
        Self::check(text.as_str())?;
        Ok(Self(text))
    }

    fn check(text: &str) -> Result<(), InvalidName> {
        let wrong = || InvalidName { what: "a key", text: text.to_string(), want: KEY_WANT };
        if text == "vcluster" {
            return Ok(());
        }
        let (dimension, name) = text.split_once(':').ok_or_else(wrong)?;
        let known = Dimension::ALL.iter().any(|d| d.word() == dimension);
        let fits = !name.is_empty() && text.len() <= KEY_BYTES_MAX;
        let plain = if name.is_ascii() {
            // Control characters and every space among them.
            !name.bytes().any(|b| b <= b' ' || b == 0x7f || b == b'=')
        } else {
            !name.chars().any(|c| c.is_control() || c.is_whitespace() || c == '=')
        };
        if known && fits && plain { Ok(()) } else { Err(wrong()) }
    }

    /// The key that assigns a node to its vCluster.
    #[must_use]
    pub fn vcluster() -> Self {
        Self(Text::from("vcluster"))
    }

    /// A bound below every key, for ranges over maps. Not a key.
    #[must_use]
    pub fn least() -> Self {
        Self(Text::from(""))
    }

    /// Whether this is the key that assigns a node to its vCluster.
    #[must_use]
    pub fn is_vcluster(&self) -> bool {
        self.as_str() == "vcluster"
    }

    /// The dimension; none for the assignment key.
    #[must_use]
    pub fn dimension(&self) -> Option<Dimension> {
        let word = self.as_str().split(':').next()?;
        Dimension::ALL.into_iter().find(|d| d.word() == word)
    }

    /// The key as it is kept.
    pub(crate) const fn text(&self) -> &Text {
        &self.0
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl core::str::FromStr for Key {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

/// What a scope says about a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Setting {
    /// This scope says nothing; the wider scope counts.
    #[default]
    Unset,
    /// It must not be there.
    Absent,
    /// It must be there with this value.
    Value(Arc<str>),
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unset => f.write_str("(unset)"),
            Self::Absent => f.write_str("(absent)"),
            Self::Value(value) => f.write_str(value),
        }
    }
}
