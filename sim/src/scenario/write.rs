//! From a story to TOML: what was drawn can be kept, edited and played again.

use super::{Back, Fault, Kind, MS, Operation, Pick, SECOND, Scenario, Way};
use muster_core::members::MemberWish;
use std::fmt::Write as _;

/// A time as the reader takes it.
pub(super) fn time(nanos: u64) -> String {
    if nanos.is_multiple_of(SECOND) {
        format!("{}s", nanos / SECOND)
    } else if nanos.is_multiple_of(MS) {
        format!("{}ms", nanos / MS)
    } else {
        format!("{}us", nanos / 1_000)
    }
}

fn pick(pick: Pick) -> String {
    match pick {
        Pick::Replica(number) => number.to_string(),
        Pick::Leader => "\"leader\"".into(),
        Pick::Follower => "\"follower\"".into(),
        Pick::All => "\"all\"".into(),
        Pick::Others => "\"others\"".into(),
        Pick::Clients => "\"clients\"".into(),
    }
}

fn picks(all: &[Pick]) -> String {
    let all: Vec<String> = all.iter().map(|one| pick(*one)).collect();
    format!("[{}]", all.join(", "))
}

fn percent(ppm: u32) -> String {
    format!("{}.{:04}", ppm / 10_000, ppm % 10_000)
}

/// A fault's kind and table.
pub(crate) fn fault(fault: &Fault) -> String {
    match fault {
        Fault::Crash { who, point, nth, power, may_miss } => {
            let point = point.map_or(String::new(), |point| format!(", point = \"{}\", nth = {nth}", point.word()));
            let power = if *power { ", power = true" } else { "" };
            let may_miss = if *may_miss && !point.is_empty() { ", may_miss = true" } else { "" };
            format!("crash = {{ who = {}{point}{power}{may_miss} }}", picks(who))
        }
        Fault::CrashLoop { who, every, power } => {
            let power = if *power { ", power = true" } else { "" };
            format!("crash_loop = {{ who = {}, every = \"{}\"{power} }}", picks(who), time(*every))
        }
        Fault::Pause { who } => format!("pause = {{ who = {} }}", picks(who)),
        Fault::SlowProcess { who, percent } => {
            format!("slow_process = {{ who = {}, percent = {percent} }}", picks(who))
        }
        Fault::Cut { from, to, way, flap, holds } => {
            let way = match way {
                Way::Both => "both",
                Way::Out => "out",
                Way::In => "in",
            };
            let flap = flap.map_or(String::new(), |every| format!(", flap = \"{}\"", time(every)));
            let holds = if *holds { ", holds = true" } else { "" };
            format!("cut = {{ from = {}, to = {}, way = \"{way}\"{flap}{holds} }}", picks(from), picks(to))
        }
        Fault::Ring => "ring = {}".into(),
        Fault::Link(change) => {
            let mut keys = Vec::new();
            keys.extend(change.latency_us.map(|us| format!("latency = \"{us}us\"")));
            let shares = [
                ("loss", change.loss_ppm),
                ("double", change.double_ppm),
                ("late", change.late_ppm),
                ("corrupt", change.corrupt_ppm),
                ("replay", change.replay_ppm),
            ];
            keys.extend(shares.iter().filter_map(|(key, ppm)| Some(format!("{key} = {}", percent((*ppm)?)))));
            keys.extend(change.bytes_per_second.map(|bytes| format!("bytes_per_second = {bytes}")));
            keys.extend(change.queue_bytes.map(|bytes| format!("queue_bytes = {bytes}")));
            format!("link = {{ {} }}", keys.join(", "))
        }
        Fault::Disk { who, how } => {
            let mut keys = vec![format!("who = {}", picks(who))];
            if how.slow > 0 {
                keys.push(format!("slow = {}", how.slow));
            }
            keys.extend(
                [("stalled", how.stalled), ("full", how.full)]
                    .iter()
                    .filter(|(_, on)| *on)
                    .map(|(key, _)| format!("{key} = true")),
            );
            let shares = [
                ("read_error", how.read_error_ppm),
                ("write_error", how.write_error_ppm),
                ("sync_error", how.sync_error_ppm),
                ("misdirect", how.misdirect_ppm),
            ];
            keys.extend(
                shares.iter().filter(|(_, ppm)| *ppm > 0).map(|(key, ppm)| format!("{key} = {}", percent(*ppm))),
            );
            format!("disk = {{ {} }}", keys.join(", "))
        }
        Fault::Rot { who, file, last } => {
            let last = if *last { ", last = true" } else { "" };
            format!("rot = {{ who = {}, file = {file:?}{last} }}", picks(who))
        }
        Fault::Wipe { who, back } => {
            let back = Back::ALL.iter().find(|(_, other)| other == back).map_or("", |(word, _)| word);
            format!("wipe = {{ who = {}, back = \"{back}\" }}", picks(who))
        }
        Fault::Rewind { who, by } => format!("rewind = {{ who = {}, by = \"{}\" }}", picks(who), time(*by)),
        Fault::Clock { who, step_ms, drift_ppm, freeze } => {
            format!(
                "clock = {{ who = {}, step_ms = {step_ms}, drift_ppm = {drift_ppm}, freeze = {freeze} }}",
                picks(who)
            )
        }
        Fault::Hostile { who, every } => format!("hostile = {{ who = {}, every = \"{}\" }}", picks(who), time(*every)),
        Fault::Driver { who, late, early } => {
            let late = if *late > 0 { format!(", late = \"{}\"", time(*late)) } else { String::new() };
            format!("driver = {{ who = {}{late}, early = {early} }}", picks(who))
        }
        Fault::Agent(fault) => super::agents::fault_text(fault),
        Fault::Downgrade { who, file } => format!("downgrade = {{ who = {}, file = {file:?} }}", picks(who)),
    }
}

/// An operation's key and value.
pub(crate) fn operation(operation: &Operation) -> String {
    match operation {
        Operation::Join { wish, feature_level } => {
            let level = feature_level.map_or(String::new(), |level| format!(", feature_level = {level}"));
            match wish {
                MemberWish::Voter => format!("join = {{ as = \"voter\"{level} }}"),
                MemberWish::Learner => format!("join = {{ as = \"learner\"{level} }}"),
                MemberWish::Replacement { of } => format!("join = {{ replaces = {of}{level} }}"),
            }
        }
        Operation::Promote(who) => format!("promote = {}", pick(*who)),
        Operation::Demote(who) => format!("demote = {}", pick(*who)),
        Operation::Remove(who) => format!("remove = {}", pick(*who)),
        Operation::Transfer(to) => format!("transfer = {to}"),
        Operation::Snapshot(who) => format!("snapshot = {}", pick(*who)),
        Operation::Restore(who) => format!("restore = {}", pick(*who)),
        Operation::Raise(level) => format!("raise = {level}"),
    }
}

impl Scenario {
    /// The story as a file.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        let _cannot_fail = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let Self { about, cluster, load, time: times, expect, .. } = self;
        writeln!(out, "about = {about:?}\n\n[cluster]\nvoters = {}\nlearners = {}", cluster.voters, cluster.learners)?;
        if let Some(ppm) = cluster.timing.lease_drift_ppm {
            writeln!(out, "lease_clock_drift_ppm = {ppm}")?;
        }
        writeln!(out, "timing = \"{}\"\nsnapshot_entries = {}", cluster.timing_name, cluster.limits.snapshot_entries)?;
        writeln!(out, "snapshot_pause_ms = {}", cluster.limits.snapshot_pause_ms)?;
        writeln!(out, "log_bytes_behind_snapshot = {}", cluster.limits.log_bytes_behind_snapshot)?;
        let limits = &cluster.limits;
        writeln!(out, "log_bytes_max = {}\npayload_bytes_max = {}", limits.log_bytes_max, limits.payload_bytes_max)?;
        writeln!(out, "append_bytes_max = {}", limits.append_bytes_max)?;
        writeln!(out, "appends_inflight_max = {}", limits.appends_inflight_max)?;
        writeln!(out, "writes_waiting_max = {}", limits.writes_waiting_max)?;
        writeln!(out, "reads_waiting_max = {}", limits.reads_waiting_max)?;
        writeln!(out, "segment_bytes = {}\nfeature_level = {}\n", cluster.segment_bytes, cluster.feature_level)?;
        if let Some(neighbour) = &self.neighbour {
            writeln!(out, "[neighbour]\nvoters = {}\nclients = {}", neighbour.voters, neighbour.clients)?;
            writeln!(out, "rate = {}\nundisturbed = {}\n", neighbour.rate, neighbour.undisturbed)?;
        }
        writeln!(out, "[load]\nclients = {}\nrate = {}\nvalue_bytes = {}", load.clients, load.rate, load.value_bytes)?;
        let word = |kind: &Kind| Kind::ALL.iter().find(|(_, other)| other == kind).map_or("", |(word, _)| word);
        let mix: Vec<String> = load.mix.iter().map(|(kind, share)| format!("{} = {share}", word(kind))).collect();
        writeln!(out, "together = {}\nnodes = {}\nsubscribers = {}", load.together, load.nodes, load.subscribers)?;
        writeln!(out, "slow_subscribers = {}", load.slow_subscribers)?;
        writeln!(
            out,
            "keys = {}\npatience = \"{}\"\nmix = {{ {} }}\n",
            load.keys,
            time(load.patience),
            mix.join(", ")
        )?;
        writeln!(out, "[time]\nrun = \"{}\"\nheal = \"{}\"", time(times.run), time(times.heal))?;
        for item in &self.faults {
            writeln!(out, "\n[[fault]]\nid = {:?}\nat = \"{}\"\n{}", &*item.id, time(item.at), fault(&item.fault))?;
            if let Some(lasts) = item.lasts {
                writeln!(out, "{} = \"{}\"", if item.fault.is_down() { "down" } else { "for" }, time(lasts))?;
            }
        }
        for item in &self.operations {
            writeln!(out, "\n[[operation]]\nid = {:?}\nat = \"{}\"", &*item.id, time(item.at))?;
            writeln!(out, "{}", operation(&item.operation))?;
            if let Some(refused) = item.refused {
                writeln!(out, "refused = {refused}")?;
            }
        }
        if let Some(agents) = &self.agents {
            super::agents::write(out, agents)?;
        }
        if let Some(nemesis) = &self.nemesis {
            let budget = match nemesis.budget {
                super::Budget::Standard => "standard",
                super::Budget::Outage => "outage",
                super::Budget::Beyond => "beyond",
            };
            writeln!(out, "\n[nemesis]\nbudget = \"{budget}\"\nevery = \"{}\"", time(nemesis.every))?;
        }
        if let Some(storm) = &self.storm {
            writeln!(out, "\n[storm]\nnodes = {}\nat = \"{}\"", storm.nodes, time(storm.at))?;
            writeln!(out, "within = \"{}\"\noverlay_bytes = {}", time(storm.within), storm.overlay_bytes)?;
            writeln!(out, "bytes_per_second = {}\nstreams = {}", storm.bytes_per_second, storm.streams)?;
            writeln!(out, "patience = \"{}\"\ncommits_slower = {}", time(storm.patience), storm.commits_slower)?;
        }
        writeln!(
            out,
            "\n[expect]\nleader_within = \"{}\"\nacknowledged = {}",
            time(expect.leader_within),
            expect.acknowledged
        )?;
        if let Some(property) = &expect.violated {
            writeln!(out, "violated = {property:?}")?;
        }
        writeln!(out, "marks = {:?}", expect.marks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawn_story_reads_back_as_it_was() {
        let text = "about = \"x\"\n[cluster]\nvoters = 5\nlearners = 1\n[nemesis]\nbudget = \"standard\"\n";
        let story = Scenario::parse("x.toml", "x", text).expect("it is fine");
        for seed in 0..50 {
            let drawn = story.drawn(seed);
            let again = Scenario::parse("x.toml", "x", &drawn.to_toml())
                .unwrap_or_else(|all| panic!("{all:?}\n{}", drawn.to_toml()));
            let strip = |story: &Scenario| {
                story
                    .faults
                    .iter()
                    .map(|item| (item.id.clone(), item.at, item.lasts, item.fault.clone()))
                    .collect::<Vec<_>>()
            };
            assert_eq!(strip(&again), strip(&drawn));
            assert!(!drawn.faults.is_empty(), "seed {seed} draws nothing");
        }
    }
}
