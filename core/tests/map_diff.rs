//! What snapshots ask of the maps below them: a comparison of two views finds every change, and no other. An earlier version of
//! the library overlooked some after removals.

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use std::collections::BTreeSet;

struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn changed(before: &OrdMap<u64, u64>, after: &OrdMap<u64, u64>) -> BTreeSet<u64> {
    let differs = |one: &OrdMap<u64, u64>, other: &OrdMap<u64, u64>| -> Vec<u64> {
        one.iter().filter(|(key, value)| other.get(*key) != Some(*value)).map(|(key, _)| *key).collect()
    };
    differs(before, after).into_iter().chain(differs(after, before)).collect()
}

#[test]
fn comparing_two_views_finds_every_change_and_no_other() {
    for seed in 1..600_u64 {
        let mut numbers = Numbers(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let mut map = OrdMap::new();
        let span = 50 + numbers.below(3_000);
        for _ in 0..numbers.below(4_000) {
            let key = numbers.below(span);
            if numbers.below(3) == 0 {
                map.remove(&key);
            } else {
                map.insert(key, numbers.below(1 << 40));
            }
        }
        for _ in 0..3 {
            let before = map.clone();
            let (many, how, first) = (numbers.below(400), numbers.below(3), numbers.below(span));
            for place in 0..many {
                let key = if how == 0 { numbers.below(span) } else { first + place };
                if how == 1 || numbers.below(2) == 0 {
                    map.remove(&key);
                } else {
                    map.insert(key, numbers.below(1 << 40));
                }
            }
            let found: BTreeSet<u64> = before
                .diff(&map)
                .map(|item| match item {
                    DiffItem::Add(key, _) | DiffItem::Remove(key, _) | DiffItem::Update { new: (key, _), .. } => *key,
                })
                .collect();
            assert_eq!(found, changed(&before, &map), "seed {seed}");
        }
    }
}
