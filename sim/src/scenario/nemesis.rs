//! Random faults, drawn from the seed as items like those of a file: each run draws which kinds are on, how strong, and when.
//!
//! What is drawn keeps to the story's budget (`atlas.rs`): in the standard one at most a minority of voters is unable at once,
//! the faults that the story itself names included. Only beyond it disks forget.

use super::{Back, Budget, DiskChange, Fault, FaultItem, LinkChange, MS, Pick, SECOND, Scenario, Way};
use crate::disk::Point;
use crate::draw::Draw;

/// Faults drawn from the seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nemesis {
    /// How much may break at once.
    pub budget: Budget,
    /// About how often something breaks; 0: nothing besides what the story names.
    pub every: u64,
}

/// The kinds, so that a run can draw which are on.
const KINDS: u64 = 18;

impl Nemesis {
    /// The faults of a seed.
    #[must_use]
    pub fn faults(&self, seed: u64, story: &Scenario) -> Vec<FaultItem> {
        if self.every == 0 {
            return Vec::new();
        }
        let (mut draw, mut holding) = (Draw::of(seed, "nemesis", 0), Draw::of(seed, "nemesis-holds", 0));
        // Swarm: a run has some kinds and not others, else every run is the same soup.
        let mut on: Vec<u64> = (0..KINDS).filter(|_| draw.percent(45)).collect();
        if on.is_empty() {
            on.push(draw.below(KINDS));
        }
        let every = self.every * draw.between(30, 200) / 100;
        let mut faults = Vec::new();
        let mut at = draw.around(every);
        while at + SECOND / 2 < story.time.run && faults.len() < 200 {
            let kind = on[draw.place(on.len())];
            let lasts = 50 * MS + draw.around(2 * SECOND);
            let lasts = lasts.min(story.time.run - at) / MS * MS;
            let mut fault = draw_fault(&mut draw, kind, story);
            if let Fault::Cut { holds, .. } = &mut fault {
                *holds = holding.percent(15);
            }
            let id = format!("nemesis-{}", faults.len() + 1);
            faults.push(FaultItem { id: id.into(), at: at / MS * MS, lasts: Some(lasts), fault, line: 0 });
            at += draw.around(every) + 10 * MS;
        }
        // What contradicts an earlier one, or would break more than the budget allows, is left out.
        let mut kept: Vec<FaultItem> = story.faults.clone();
        for item in faults {
            if super::check::beside(story, &kept, &item).is_none() {
                kept.push(item);
            }
        }
        let mut kept = kept.split_off(story.faults.len());
        kept.extend(super::agents::drawn(seed, self.every, story));
        if kept.is_empty() {
            // Something always happens, and a clock hurts no budget.
            let fault = Fault::Clock { who: vec![Pick::Leader], step_ms: 3_600_000, drift_ppm: 0, freeze: false };
            kept.push(FaultItem { id: "nemesis-1".into(), at: 0, lasts: Some(SECOND), fault, line: 0 });
        }
        kept
    }
}

fn one(draw: &mut Draw, story: &Scenario) -> Vec<Pick> {
    let all = story.cluster.voters + story.cluster.learners;
    match draw.below(4) {
        0 => vec![Pick::Leader],
        1 => vec![Pick::Follower],
        _ => vec![Pick::Replica(draw.between(1, all))],
    }
}

fn some(draw: &mut Draw, story: &Scenario) -> Vec<Pick> {
    let all = story.cluster.voters + story.cluster.learners;
    let count = draw.between(1, all.saturating_sub(1).max(1));
    let mut picks: Vec<Pick> = (1..=all).map(Pick::Replica).collect();
    while picks.len() as u64 > count {
        picks.swap_remove(draw.place(picks.len()));
    }
    picks
}

fn draw_fault(draw: &mut Draw, kind: u64, story: &Scenario) -> Fault {
    let who = one(draw, story);
    match kind {
        0 => Fault::Crash { who, point: None, nth: 1, power: draw.percent(50), may_miss: false },
        1 => {
            let point = Point::ALL[draw.place(Point::ALL.len())].1;
            Fault::Crash { who, point: Some(point), nth: draw.between(1, 12), power: draw.percent(50), may_miss: true }
        }
        2 => Fault::Crash { who: vec![Pick::All], point: None, nth: 1, power: draw.percent(50), may_miss: false },
        3 => Fault::CrashLoop { who, every: (100 * MS + draw.around(SECOND)) / MS * MS, power: draw.percent(50) },
        4 => Fault::Pause { who },
        5 => Fault::SlowProcess { who, percent: draw.between(5, 80) },
        6 => {
            let clients = draw.percent(30);
            let mut to = vec![Pick::Others];
            if clients {
                to.push(Pick::Clients);
            }
            Fault::Cut { from: who, to, way: way(draw), flap: flap(draw), holds: false }
        }
        7 => Fault::Cut {
            from: some(draw, story),
            to: vec![Pick::Others],
            way: way(draw),
            flap: flap(draw),
            holds: false,
        },
        8 => Fault::Ring,
        9 | 10 => Fault::Link(LinkChange {
            latency_us: draw.percent(40).then(|| draw.between(50, 40_000)),
            loss_ppm: draw.percent(50).then(|| u32_below(draw, 200_000)),
            double_ppm: draw.percent(50).then(|| u32_below(draw, 300_000)),
            late_ppm: draw.percent(60).then(|| u32_below(draw, 300_000)),
            corrupt_ppm: draw.percent(40).then(|| u32_below(draw, 100_000)),
            replay_ppm: draw.percent(50).then(|| u32_below(draw, 200_000)),
            bytes_per_second: draw.percent(20).then(|| draw.between(20_000, 2_000_000)),
            queue_bytes: draw.percent(20).then(|| draw.between(4_000, 1_000_000)),
        }),
        11 => {
            let mut how = DiskChange { slow: draw.between(2, 300), ..DiskChange::default() };
            how.stalled = draw.percent(15);
            Fault::Disk { who, how }
        }
        12 => {
            let mut how = DiskChange::default();
            match draw.below(4) {
                0 => how.full = true,
                1 => how.sync_error_ppm = u32_below(draw, 100_000) + 1_000,
                2 => how.write_error_ppm = u32_below(draw, 20_000) + 1_000,
                _ => how.read_error_ppm = u32_below(draw, 100_000) + 1_000,
            }
            Fault::Disk { who, how }
        }
        13 => Fault::Hostile { who, every: draw.between(5, 200) * MS },
        14 => Fault::Driver { who, late: draw.between(0, 60) * MS, early: draw.between(1, 60) },
        15 if story.budget() == Budget::Beyond && story.cluster.voters > 1 => {
            let back = [Back::Empty, Back::Stranger, Back::Amnesiac][draw.place(3)];
            if draw.percent(60) {
                Fault::Wipe { who, back }
            } else {
                Fault::Rewind { who, by: draw.between(1, 3_000) * MS }
            }
        }
        15 | 16 => Fault::Downgrade { who, file: ["wal", "snap", "history"][draw.place(3)].into() },
        _ => Fault::Clock {
            who,
            step_ms: draw.between(0, 7_200_000).cast_signed() - 3_600_000,
            drift_ppm: draw.between(0, 40_000).cast_signed() - 20_000,
            freeze: draw.percent(10),
        },
    }
}

fn way(draw: &mut Draw) -> Way {
    [Way::Both, Way::Both, Way::Out, Way::In][draw.place(4)]
}

fn flap(draw: &mut Draw) -> Option<u64> {
    draw.percent(25).then(|| (20 * MS + draw.around(300 * MS)) / MS * MS)
}

fn u32_below(draw: &mut Draw, below: u64) -> u32 {
    u32::try_from(draw.below(below)).unwrap_or(0)
}
