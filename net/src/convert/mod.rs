//! Between the wire's types and core's: one module per protocol file, one pair of functions per type.
//!
//! To the wire never fails. From the wire checks everything that core's types promise (names, keys, digests, numbers of
//! enums), and a failure names the field as a path, so that the sender finds it.

mod admin;
mod agent;
mod fleet;
mod history;
mod journal;
mod members;
mod query;
mod write;

use muster_core::ids::{ClusterId, Digest, Incarnation, InvalidName, OneShotId};
use muster_core::request::Refusal;
use std::fmt;

/// A core type that travels.
pub trait Wire: Sized {
    /// How it looks on the wire.
    type Wire;
    /// To the wire.
    fn to_wire(&self) -> Self::Wire;
    /// From the wire.
    ///
    /// # Errors
    /// [`Malformed`] names the field and what would be accepted.
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed>;
}

/// A field that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The path to the field.
    pub field: String,
    /// What is wrong, and what would be accepted.
    pub problem: String,
}

impl Malformed {
    pub(crate) fn new(field: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self { field: field.into(), problem: problem.to_string() }
    }
    /// The same as the rules would say it.
    #[must_use]
    pub fn into_refusal(self) -> Refusal {
        Refusal::Invalid { field: self.field.into(), problem: self.problem.into() }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            return f.write_str(&self.problem);
        }
        write!(f, "{}: {}", self.field, self.problem)
    }
}

impl std::error::Error for Malformed {}

impl From<InvalidName> for Malformed {
    fn from(error: InvalidName) -> Self {
        Self::new("", error)
    }
}

impl From<Malformed> for tonic::Status {
    fn from(error: Malformed) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// Says in which field it happened.
pub(crate) trait At<T> {
    fn at(self, field: &str) -> Result<T, Malformed>;
}

impl<T, E: Into<Malformed>> At<T> for Result<T, E> {
    fn at(self, field: &str) -> Result<T, Malformed> {
        self.map_err(|error| {
            let mut error = error.into();
            error.field = match error.field.as_str() {
                "" => field.to_owned(),
                rest if rest.starts_with('[') => format!("{field}{rest}"),
                rest => format!("{field}.{rest}"),
            };
            error
        })
    }
}

/// A message that must be there.
pub(crate) fn required<T>(field: &str, value: Option<T>) -> Result<T, Malformed> {
    value.ok_or_else(|| Malformed::new(field, "it is missing"))
}

/// A required message of a core type.
pub(crate) fn need<T: Wire>(field: &str, value: Option<T::Wire>) -> Result<T, Malformed> {
    T::from_wire(required(field, value)?).at(field)
}

/// A repeated field of a core type.
pub(crate) fn many<T: Wire>(field: &str, values: Vec<T::Wire>) -> Result<Vec<T>, Malformed> {
    values
        .into_iter()
        .enumerate()
        .map(|(place, value)| T::from_wire(value).at(&format!("[{place}]")).at(field))
        .collect()
}

/// A repeated field to the wire.
pub(crate) fn all<T: Wire>(values: &[T]) -> Vec<T::Wire> {
    values.iter().map(Wire::to_wire).collect()
}

/// A name, key, digest or id given as text.
pub(crate) fn text<T: std::str::FromStr<Err = InvalidName>>(field: &str, value: &str) -> Result<T, Malformed> {
    value.parse::<T>().at(field)
}

/// A number of an enum that this version knows.
pub(crate) fn known<E: TryFrom<i32>>(field: &str, number: i32, want: &str) -> Result<E, Malformed> {
    E::try_from(number).map_err(|_| Malformed::new(field, format!("{number} is not known here: expected {want}")))
}

macro_rules! travels_as_text {
    ($($name:ident),*) => {$(
        impl Wire for $name {
            type Wire = String;
            fn to_wire(&self) -> String {
                self.to_string()
            }
            fn from_wire(wire: String) -> Result<Self, Malformed> {
                Ok(wire.parse()?)
            }
        }
    )*};
}

travels_as_text!(ClusterId, Incarnation, OneShotId, Digest);

/// A digest given as its bytes.
pub(crate) fn digest_bytes(field: &str, bytes: &[u8]) -> Result<Digest, Malformed> {
    <[u8; 32]>::try_from(bytes)
        .map(Digest)
        .map_err(|_| Malformed::new(field, format!("a digest has 32 bytes, this has {}", bytes.len())))
}
