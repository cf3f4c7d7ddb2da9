//! Mirror types: what is stored and sent, apart from what is thought with.
//!
//! A mirror's shape is a promise to every past version: fields and variants keep their order, and a change of shape is a new
//! format. The macros write both directions from one list, so a field that a domain type gains does not compile until its
//! mirror has decided what becomes of it.

use super::{CodecError, malformed};
use crate::ids::{
    Age, ClusterId, Digest, Incarnation, Index, NodeId, OneShotId, ReplicaId, ReplicaName, Seq, SessionId, VClusterId,
    WallTime,
};
use crate::journal::key::Key;
use crate::journal::policy::Milli;
use crate::journal::text::Text;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;
use core::fmt;
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A type's stored form.
pub(crate) trait Mirror: Serialize + DeserializeOwned {
    /// What it is the form of.
    type Domain;
    /// The form of a value.
    fn of(value: &Self::Domain) -> Self;
    /// The value again, if it is one.
    fn back(self) -> Result<Self::Domain, CodecError>;
}

macro_rules! itself {
    ($($type:ty),*) => { $(
        impl Mirror for $type {
            type Domain = $type;
            fn of(value: &$type) -> Self { value.clone() }
            fn back(self) -> Result<$type, CodecError> { Ok(self) }
        }
    )* };
}
itself!(bool, u8, u32, u64, u128, i32, Bytes);

/// The form of text. It is read straight into the memory that is shared afterwards.
#[derive(Clone, Debug)]
pub(crate) struct Text1(Arc<str>);

impl Serialize for Text1 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = Text1;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text")
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Text1, E> {
        Ok(Text1(Arc::from(text)))
    }
}

impl<'de> Deserialize<'de> for Text1 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

impl Mirror for Text1 {
    type Domain = Arc<str>;
    fn of(value: &Arc<str>) -> Self {
        Self(value.clone())
    }
    fn back(self) -> Result<Arc<str>, CodecError> {
        Ok(self.0)
    }
}

impl<M: Mirror> Mirror for Option<M> {
    type Domain = Option<M::Domain>;
    fn of(value: &Self::Domain) -> Self {
        value.as_ref().map(M::of)
    }
    fn back(self) -> Result<Self::Domain, CodecError> {
        self.map(M::back).transpose()
    }
}

impl<M: Mirror> Mirror for Vec<M> {
    type Domain = Vec<M::Domain>;
    fn of(value: &Self::Domain) -> Self {
        value.iter().map(M::of).collect()
    }
    fn back(self) -> Result<Self::Domain, CodecError> {
        self.into_iter().map(M::back).collect()
    }
}

impl<M: Mirror> Mirror for VecDeque<M> {
    type Domain = VecDeque<M::Domain>;
    fn of(value: &Self::Domain) -> Self {
        value.iter().map(M::of).collect()
    }
    fn back(self) -> Result<Self::Domain, CodecError> {
        self.into_iter().map(M::back).collect()
    }
}

impl<A: Mirror, B: Mirror> Mirror for (A, B) {
    type Domain = (A::Domain, B::Domain);
    fn of(value: &Self::Domain) -> Self {
        (A::of(&value.0), B::of(&value.1))
    }
    fn back(self) -> Result<Self::Domain, CodecError> {
        Ok((self.0.back()?, self.1.back()?))
    }
}

macro_rules! wraps {
    ($($mirror:ident($inner:ty) of $domain:ident),* $(,)?) => { $(
        #[derive(Clone, Debug, Serialize, Deserialize)]
        #[doc = concat!("The form of a `", stringify!($domain), "`.")]
        pub(crate) struct $mirror($inner);
        impl Mirror for $mirror {
            type Domain = $domain;
            fn of(value: &$domain) -> Self { Self(value.0) }
            fn back(self) -> Result<$domain, CodecError> { Ok($domain(self.0)) }
        }
    )* };
}
wraps!(
    ReplicaId1(u64) of ReplicaId,
    Index1(u64) of Index,
    Seq1(u64) of Seq,
    Age1(u64) of Age,
    WallTime1(u64) of WallTime,
    SessionId1(u64) of SessionId,
    ClusterId1(u128) of ClusterId,
    Incarnation1(u128) of Incarnation,
    OneShotId1(u128) of OneShotId,
    Digest1([u8; 32]) of Digest,
    Milli1(u32) of Milli,
);

/// The form of text that is kept where it is used.
#[derive(Clone, Debug)]
pub(crate) struct Kept1(Text);

impl Serialize for Kept1 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_str())
    }
}

struct KeptVisitor;

impl Visitor<'_> for KeptVisitor {
    type Value = Kept1;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text")
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Kept1, E> {
        Ok(Kept1(Text::from(text)))
    }
}

impl<'de> Deserialize<'de> for Kept1 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(KeptVisitor)
    }
}

macro_rules! names {
    ($($mirror:ident of $domain:ident),* $(,)?) => { $(
        #[derive(Clone, Debug, Serialize, Deserialize)]
        #[doc = concat!("The form of a `", stringify!($domain), "`; checked when it comes back.")]
        pub(crate) struct $mirror(Kept1);
        impl Mirror for $mirror {
            type Domain = $domain;
            fn of(value: &$domain) -> Self { Self(Kept1(value.text().clone())) }
            fn back(self) -> Result<$domain, CodecError> {
                $domain::from_text(self.0.0).map_err(|error| malformed(stringify!($domain), error))
            }
        }
    )* };
}
names!(NodeId1 of NodeId, VClusterId1 of VClusterId, ReplicaName1 of ReplicaName, Key1 of Key);

/// Declares a mirror struct, its fields in stored order.
macro_rules! mirror_struct {
    ($(#[$doc:meta])* $mirror:ident of $domain:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
        pub(crate) struct $mirror { $($field: $type),* }
        impl $crate::codec::mirror::Mirror for $mirror {
            type Domain = $domain;
            fn of(value: &Self::Domain) -> Self {
                Self { $($field: $crate::codec::mirror::Mirror::of(&value.$field)),* }
            }
            fn back(self) -> Result<Self::Domain, $crate::codec::CodecError> {
                Ok($domain { $($field: $crate::codec::mirror::Mirror::back(self.$field)?),* })
            }
        }
    };
}
pub(crate) use mirror_struct;

/// Declares a mirror enum, its variants in stored order: bare, with one value, or with named fields.
macro_rules! mirror_enum {
    ($(#[$doc:meta])* $mirror:ident of $domain:ident {
        $($variant:ident $(($inner:ty))? $({ $($field:ident: $type:ty),* $(,)? })?),* $(,)?
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
        pub(crate) enum $mirror { $($variant $(($inner))? $({ $($field: $type),* })?),* }
        impl $crate::codec::mirror::Mirror for $mirror {
            type Domain = $domain;
            fn of(value: &Self::Domain) -> Self {
                match value { $(
                    $crate::codec::mirror::pattern!($domain $variant inner $(($inner))? $({ $($field),* })?) =>
                        $crate::codec::mirror::build!(of $mirror $variant inner $(($inner))? $({ $($field),* })?),
                )* }
            }
            fn back(self) -> Result<Self::Domain, $crate::codec::CodecError> {
                Ok(match self { $(
                    $crate::codec::mirror::pattern!($mirror $variant inner $(($inner))? $({ $($field),* })?) =>
                        $crate::codec::mirror::build!(back $domain $variant inner $(($inner))? $({ $($field),* })?),
                )* })
            }
        }
    };
}
pub(crate) use mirror_enum;

/// The pattern of one variant.
macro_rules! pattern {
    ($enum:ident $variant:ident $name:ident) => { $enum::$variant };
    ($enum:ident $variant:ident $name:ident ($inner:ty)) => { $enum::$variant($name) };
    ($enum:ident $variant:ident $name:ident { $($field:ident),* }) => { $enum::$variant { $($field),* } };
}
pub(crate) use pattern;

/// The other side of one variant.
macro_rules! build {
    ($way:ident $enum:ident $variant:ident $name:ident) => { $enum::$variant };
    (of $enum:ident $variant:ident $name:ident ($inner:ty)) => {
        $enum::$variant($crate::codec::mirror::Mirror::of($name))
    };
    (back $enum:ident $variant:ident $name:ident ($inner:ty)) => {
        $enum::$variant($crate::codec::mirror::Mirror::back($name)?)
    };
    (of $enum:ident $variant:ident $name:ident { $($field:ident),* }) => {
        $enum::$variant { $($field: $crate::codec::mirror::Mirror::of($field)),* }
    };
    (back $enum:ident $variant:ident $name:ident { $($field:ident),* }) => {
        $enum::$variant { $($field: $crate::codec::mirror::Mirror::back($field)?),* }
    };
}
pub(crate) use build;
