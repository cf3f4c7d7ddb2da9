//! Reads what one scope declares from a snapshot's pages, and keeps nothing else of them.
//!
//! Of every layer, lowest first, the pages that last are read up to where the scope's stacks end: within a layer, scopes' heads
//! come before stacks, and stacks in the order of their scopes and keys. Items put in place what is there under their key.

use super::load::{open_page, split_items};
use super::{Item1, WHAT};
use crate::codec::mirror::Mirror;
use crate::codec::{CodecError, malformed};
use crate::ids::Seq;
use crate::journal::fold::Fold;
use crate::journal::key::{Key, Scope, Setting};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;

/// Reads what one scope declares, page by page.
#[derive(Debug)]
pub(crate) struct ScopeLoader {
    found: Found,
    /// The next page of the layer.
    number: u32,
    stream: Vec<u8>,
}

#[derive(Debug)]
struct Found {
    scope: Scope,
    head: Seq,
    stacks: BTreeMap<Key, Vec<(Seq, Setting)>>,
    /// The scope's key whose pairs are being read.
    key: Option<Key>,
    /// Whether the layer says nothing more about the scope.
    is_over: bool,
}

impl ScopeLoader {
    /// One that has seen no page.
    #[must_use]
    pub(crate) const fn new(scope: Scope) -> Self {
        let found = Found { scope, head: Seq(0), stacks: BTreeMap::new(), key: None, is_over: false };
        Self { found, number: 0, stream: Vec::new() }
    }

    /// Begins with the next layer.
    pub(crate) fn begin_layer(&mut self) {
        (self.number, self.stream) = (0, Vec::new());
        (self.found.key, self.found.is_over) = (None, false);
    }

    /// Takes the layer's next page. Tells whether the pages after it may say more about the scope.
    ///
    /// # Errors
    /// If it is damaged or not the next one. The loader is of no use afterwards.
    pub(crate) fn page(&mut self, bytes: &[u8]) -> Result<bool, CodecError> {
        let (number, chunk) = open_page(bytes)?;
        if number != self.number {
            return Err(malformed(WHAT, format!("it is page {number}, expected {}", self.number)));
        }
        self.number += 1;
        let stream = core::mem::take(&mut self.stream);
        self.stream = split_items(stream, &chunk, |item| self.found.take(item))?;
        Ok(!self.found.is_over)
    }

    /// Gives what the scope declares, at the sequence of the snapshot whose last layer was read.
    #[must_use]
    pub(crate) fn finish(self, sequence: Seq) -> Fold {
        let Found { scope, head, stacks, .. } = self.found;
        Fold::after(scope, sequence, head, stacks)
    }
}

impl Found {
    fn take(&mut self, item: Item1) -> Result<(), CodecError> {
        match item {
            Item1::Scope { scope, head } => {
                if scope.back()? == self.scope {
                    self.head = head.back()?;
                }
            }
            Item1::Stack { scope, key, .. } => {
                let scope = scope.back()?;
                self.is_over |= scope > self.scope;
                self.key = if scope == self.scope { Some(key.back()?) } else { None };
                if let Some(key) = &self.key {
                    self.stacks.insert(key.clone(), Vec::new());
                }
            }
            Item1::Pair(pair) => {
                if let Some(stack) = self.key.as_ref().and_then(|key| self.stacks.get_mut(key)) {
                    let pair = pair.back()?;
                    stack.push((pair.sequence, pair.setting));
                }
            }
            Item1::VCluster { .. } | Item1::End { .. } => self.is_over = true,
            Item1::Head { .. }
            | Item1::Segment(_)
            | Item1::Node { .. }
            | Item1::Member(_)
            | Item1::Session { .. }
            | Item1::HeldSession { .. }
            | Item1::Reply { .. }
            | Item1::OneShot { .. }
            | Item1::Gone(_) => {}
        }
        Ok(())
    }
}
