//! One file of a disk: what reads see, and what would be left of it without power.
//!
//! Most sectors are the same on both sides, so only the cache is kept whole; of a sector that is not, its durable bytes are kept
//! beside it.
//!
//! Invariants
//! - a sector that is not kept apart is durable as the cache has it; beyond the durable length, durable bytes are zeros;
//! - a sector is dirty from its first write to the next sync, whether that succeeds or fails.

use super::SECTOR;
use crate::draw::Draw;
use std::collections::BTreeMap;

/// Older bytes of one sector that a loss of power may bring up.
const VERSIONS_MAX: usize = 3;

type Sector = [u8; SECTOR];

/// A sector whose durable bytes may not be those of the cache.
#[derive(Clone)]
struct Apart {
    durable: Box<Sector>,
    /// Whether it was written since the last sync.
    dirty: bool,
    /// What it held since then, before its newest bytes: any of it may have reached the disk.
    versions: Vec<Sector>,
}

/// A file.
#[derive(Clone, Default)]
pub(super) struct Inode {
    cache: Vec<u8>,
    durable_length: usize,
    apart: BTreeMap<usize, Apart>,
}

fn sector_of(bytes: &[u8], sector: usize) -> Box<Sector> {
    let mut out = Box::new([0; SECTOR]);
    let from = (sector * SECTOR).min(bytes.len());
    let to = ((sector + 1) * SECTOR).min(bytes.len());
    out[..to - from].copy_from_slice(&bytes[from..to]);
    out
}

impl Inode {
    /// What reads see.
    pub(super) fn cache(&self) -> &[u8] {
        &self.cache
    }

    /// How long it would be without power.
    pub(super) const fn durable_length(&self) -> usize {
        self.durable_length
    }

    /// What would be left of it, if nothing reached the disk by itself.
    pub(super) fn durable(&self) -> Vec<u8> {
        let mut bytes = self.cache.clone();
        bytes.resize(self.durable_length, 0);
        for (sector, apart) in &self.apart {
            let from = (sector * SECTOR).min(bytes.len());
            let to = ((sector + 1) * SECTOR).min(bytes.len());
            bytes[from..to].copy_from_slice(&apart.durable[..to - from]);
        }
        bytes
    }

    /// Whether a loss of power changes nothing.
    pub(super) fn is_durable(&self) -> bool {
        self.durable_length == self.cache.len()
            && self
                .apart
                .iter()
                .all(|(sector, apart)| !apart.dirty && *apart.durable == *sector_of(&self.cache, *sector))
    }

    /// Changes its first sector, and makes that and all that was written before durable.
    pub(super) fn change_first_sector(&mut self, change: impl FnOnce(&mut [u8])) {
        let Some(first) = self.cache.get_mut(..SECTOR) else { return };
        change(first);
        self.sync();
        self.apart.remove(&0);
    }

    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len();
        for sector in offset / SECTOR..=(end - 1) / SECTOR {
            let now = || sector_of(&self.cache, sector);
            match self.apart.get_mut(&sector) {
                Some(apart) if apart.dirty => {
                    if apart.versions.len() < VERSIONS_MAX {
                        apart.versions.push(*now());
                    }
                }
                Some(apart) => apart.dirty = true,
                None => {
                    let apart = Apart { durable: now(), dirty: true, versions: Vec::new() };
                    self.apart.insert(sector, apart);
                }
            }
        }
        if self.cache.len() < end {
            self.cache.resize(end, 0);
        }
        self.cache[offset..end].copy_from_slice(bytes);
    }

    /// Cuts it or lengthens it by zeros. What is cut off may come back with a loss of power.
    pub(super) fn set_length(&mut self, length: usize) {
        if length < self.cache.len() {
            for sector in length / SECTOR..self.durable_length.min(self.cache.len()).div_ceil(SECTOR) {
                let now = || Apart { durable: sector_of(&self.cache, sector), dirty: false, versions: Vec::new() };
                self.apart.entry(sector).or_insert_with(now);
            }
        }
        self.cache.resize(length, 0);
        let end = length.div_ceil(SECTOR);
        for (_, apart) in self.apart.range_mut(end..) {
            apart.dirty = false;
            apart.versions.clear();
        }
    }

    pub(super) fn sync(&mut self) {
        let length = self.cache.len();
        self.durable_length = length;
        self.apart.retain(|sector, apart| !apart.dirty && sector * SECTOR < length);
        let last = length / SECTOR;
        if let Some(apart) = self.apart.get_mut(&last) {
            apart.durable[length % SECTOR..].fill(0);
        }
    }

    /// The sync fails: any of it may have reached the disk, none of it is tried again.
    pub(super) fn fail_sync(&mut self, draw: &mut Draw) {
        let mut reached = 0;
        self.apart.retain(|sector, apart| {
            if !apart.dirty {
                return true;
            }
            apart.dirty = false;
            apart.versions.clear();
            let arrives = draw.percent(50);
            if arrives {
                reached = (sector + 1) * SECTOR;
            }
            !arrives
        });
        self.durable_length = self.durable_length.max(reached);
    }

    pub(super) fn lose_power(&mut self, draw: &mut Draw) {
        let whole = draw.below(4);
        let length = if draw.percent(50) { self.cache.len() } else { self.durable_length };
        for (sector, mut apart) in std::mem::take(&mut self.apart) {
            let left = match whole {
                _ if !apart.dirty => Some(apart.durable),
                0 => Some(apart.durable),
                1 => None,
                _ if draw.percent(50) => Some(apart.durable),
                _ => {
                    let place = draw.place(apart.versions.len() + 1);
                    (place < apart.versions.len()).then(|| Box::new(apart.versions.swap_remove(place)))
                }
            };
            let Some(bytes) = left else { continue };
            let end = (sector + 1) * SECTOR;
            if self.cache.len() < end {
                self.cache.resize(end, 0);
            }
            self.cache[sector * SECTOR..end].copy_from_slice(&*bytes);
        }
        self.cache.resize(length, 0);
        self.durable_length = length;
    }

    /// Flips a stored bit, and what reads see of it.
    pub(super) fn rot(&mut self, at: usize, bit: u8) {
        let sector = at / SECTOR;
        if at >= self.cache.len() {
            // Reads end before it.
            let now = || Apart { durable: sector_of(&self.cache, sector), dirty: false, versions: Vec::new() };
            self.apart.entry(sector).or_insert_with(now);
        }
        if let Some(apart) = self.apart.get_mut(&sector) {
            apart.durable[at % SECTOR] ^= bit;
        }
        self.flip(at, bit);
    }

    /// Flips a bit of what reads see.
    pub(super) fn flip(&mut self, at: usize, bit: u8) {
        if let Some(byte) = self.cache.get_mut(at) {
            *byte ^= bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same file, both sides kept whole.
    #[derive(Default)]
    struct Plain {
        cache: Vec<u8>,
        durable: Vec<u8>,
        dirty: BTreeMap<usize, Vec<Sector>>,
    }

    impl Plain {
        fn write(&mut self, offset: usize, bytes: &[u8]) {
            let end = offset + bytes.len();
            for sector in offset / SECTOR..=(end - 1) / SECTOR {
                match self.dirty.get_mut(&sector) {
                    Some(versions) if versions.len() < VERSIONS_MAX => versions.push(*sector_of(&self.cache, sector)),
                    Some(_) => {}
                    None => {
                        self.dirty.insert(sector, Vec::new());
                    }
                }
            }
            self.cache.resize(self.cache.len().max(end), 0);
            self.cache[offset..end].copy_from_slice(bytes);
        }

        fn set_length(&mut self, length: usize) {
            self.cache.resize(length, 0);
            self.dirty.retain(|sector, _| *sector < length.div_ceil(SECTOR));
        }

        fn put(&mut self, sector: usize, with: &Sector) {
            let end = (sector + 1) * SECTOR;
            self.durable.resize(self.durable.len().max(end), 0);
            self.durable[sector * SECTOR..end].copy_from_slice(with);
        }

        fn sync(&mut self) {
            self.durable.resize(self.cache.len(), 0);
            for sector in std::mem::take(&mut self.dirty).into_keys() {
                let bytes = sector_of(&self.cache, sector);
                self.put(sector, &bytes);
            }
            self.durable.resize(self.cache.len(), 0);
        }

        fn fail_sync(&mut self, draw: &mut Draw) {
            for sector in std::mem::take(&mut self.dirty).into_keys() {
                if draw.percent(50) {
                    let bytes = sector_of(&self.cache, sector);
                    self.put(sector, &bytes);
                }
            }
        }

        fn lose_power(&mut self, draw: &mut Draw) {
            let whole = draw.below(4);
            let length = if draw.percent(50) { self.cache.len() } else { self.durable.len() };
            for (sector, mut all) in std::mem::take(&mut self.dirty) {
                let newest = *sector_of(&self.cache, sector);
                let kept = match whole {
                    0 => None,
                    1 => Some(newest),
                    _ if draw.percent(50) => None,
                    _ => {
                        all.push(newest);
                        let place = draw.place(all.len());
                        Some(all.swap_remove(place))
                    }
                };
                if let Some(bytes) = kept {
                    self.put(sector, &bytes);
                }
            }
            self.durable.resize(length, 0);
            self.cache.clone_from(&self.durable);
        }
    }

    #[test]
    fn a_first_sector_that_was_changed_outlives_power_whatever_was_not_synced_before() {
        for seed in 0..50 {
            let mut file = Inode::default();
            for byte in 1..4 {
                file.write(0, &[byte; SECTOR]);
            }
            file.change_first_sector(|first| first.fill(9));
            file.lose_power(&mut Draw::new(seed));
            assert_eq!(file.cache(), [9; SECTOR], "seed {seed}");
        }
    }

    #[test]
    fn a_file_kept_once_is_what_it_would_be_kept_twice() {
        for seed in 0..200 {
            let mut draw = Draw::new(seed);
            let (mut file, mut plain) = (Inode::default(), Plain::default());
            for step in 0..200 {
                match draw.below(20) {
                    0 => {
                        let length = draw.place(5_000);
                        file.set_length(length);
                        plain.set_length(length);
                    }
                    1..=3 => {
                        file.sync();
                        plain.sync();
                    }
                    4 => {
                        let mut same = draw.clone();
                        file.fail_sync(&mut draw);
                        plain.fail_sync(&mut same);
                    }
                    5 => {
                        let mut same = draw.clone();
                        file.lose_power(&mut draw);
                        plain.lose_power(&mut same);
                    }
                    6 if !plain.durable.is_empty() => {
                        let at = draw.place(plain.durable.len());
                        file.rot(at, 4);
                        plain.durable[at] ^= 4;
                        if let Some(byte) = plain.cache.get_mut(at) {
                            *byte ^= 4;
                        }
                    }
                    _ => {
                        let bytes: Vec<u8> =
                            (0..draw.between(1, 1_500)).map(|_| draw.number().to_le_bytes()[0]).collect();
                        let offset = draw.place(5_000);
                        file.write(offset, &bytes);
                        plain.write(offset, &bytes);
                    }
                }
                assert_eq!(file.cache(), plain.cache, "seed {seed} step {step}: what reads see");
                assert_eq!(file.durable(), plain.durable, "seed {seed} step {step}: what is durable");
                let is_durable = plain.dirty.is_empty() && plain.cache == plain.durable;
                assert_eq!(file.is_durable(), is_durable, "seed {seed} step {step}: whether it is durable");
            }
        }
    }
}
