//! From TOML to a story: every key is known, every value possible, or an error names file, line, key and what is accepted.

mod agents;

use super::{
    Back, Budget, Cluster, DiskChange, Expect, Fault, FaultItem, Kind, LinkChange, Load, MS, Neighbour, Nemesis,
    Operation, OperationItem, Pick, SECOND, Scenario, Storm, Times, Way,
};
use crate::disk::Point;
use muster_core::admission::BootLimits;
use muster_core::ids::ReplicaId;
use muster_core::limits::FEATURE_LEVEL;
use muster_core::members::MemberWish;
use muster_core::replica::{LEASE_DRIFT_PPM_MAX, Limits, Timing};
use std::fmt;
use std::sync::Arc;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Something wrong with a scenario file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// The line, from 1; 0 if it is about the file as a whole.
    pub line: usize,
    /// What is wrong, and what would be accepted.
    pub problem: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            write!(f, "{}: {}", self.file, self.problem)
        } else {
            write!(f, "{}:{}: {}", self.file, self.line, self.problem)
        }
    }
}

impl std::error::Error for Problem {}

struct Page<'t> {
    file: &'t str,
    text: &'t str,
    problems: Vec<Problem>,
}

impl Page<'_> {
    fn line(&self, at: usize) -> usize {
        self.text.char_indices().take_while(|(place, _)| *place < at).filter(|(_, c)| *c == '\n').count() + 1
    }
    fn wrong(&mut self, at: usize, problem: impl Into<String>) {
        let line = self.line(at);
        self.problems.push(Problem { file: self.file.to_owned(), line, problem: problem.into() });
    }
}

/// A table whose keys are taken one by one; what is left at the end is unknown.
struct Keys<'a, 't> {
    table: &'a DeTable<'t>,
    at: usize,
    accepted: Vec<&'static str>,
}

type Value<'a, 't> = &'a Spanned<DeValue<'t>>;

impl<'a, 't> Keys<'a, 't> {
    fn new(table: &'a DeTable<'t>, at: usize) -> Self {
        Self { table, at, accepted: Vec::new() }
    }

    fn of(page: &mut Page<'_>, value: Value<'a, 't>, what: &str) -> Option<Self> {
        match value.get_ref() {
            DeValue::Table(table) => Some(Self::new(table, value.span().start)),
            other => {
                page.wrong(value.span().start, format!("{what} is {}: expected a table", kind_of(other)));
                None
            }
        }
    }

    fn take(&mut self, key: &'static str) -> Option<Value<'a, 't>> {
        self.accepted.push(key);
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    fn has(&self, key: &str) -> bool {
        self.table.iter().any(|(name, _)| name.get_ref() == key)
    }

    fn number(&mut self, page: &mut Page<'_>, key: &'static str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let value = self.take(key)?;
        let number = match value.get_ref() {
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        if number.is_none_or(|number| !range.contains(&number)) {
            let shown = shown(page, value);
            page.wrong(
                value.span().start,
                format!("{key} is {shown}: expected a whole number from {} to {}", range.start(), range.end()),
            );
            return None;
        }
        number
    }

    fn signed(&mut self, page: &mut Page<'_>, key: &'static str, most: i64) -> Option<i64> {
        let value = self.take(key)?;
        let number = match value.get_ref() {
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        if number.is_none_or(|number| number.abs() > most) {
            let shown = shown(page, value);
            page.wrong(value.span().start, format!("{key} is {shown}: expected a whole number from -{most} to {most}"));
            return None;
        }
        number
    }

    /// A share in percent, with up to four decimals, as millionths.
    fn percent(&mut self, page: &mut Page<'_>, key: &'static str) -> Option<u32> {
        let value = self.take(key)?;
        let text = match value.get_ref() {
            DeValue::Integer(number) => Some(number.as_str().to_owned()),
            DeValue::Float(number) => Some(number.as_str().to_owned()),
            _ => None,
        };
        let ppm = text.and_then(|text| {
            let (whole, rest) = text.split_once('.').unwrap_or((&text, ""));
            let whole: u32 = whole.parse().ok()?;
            if rest.len() > 4 {
                return None;
            }
            let rest: u32 = format!("{rest:0<4}").parse().ok()?;
            Some(whole.checked_mul(10_000)?.checked_add(rest)?).filter(|ppm| *ppm <= 1_000_000)
        });
        if ppm.is_none() {
            let shown = shown(page, value);
            page.wrong(
                value.span().start,
                format!("{key} is {shown}: expected percent, 0 to 100, at most four decimals"),
            );
        }
        ppm
    }

    fn yes(&mut self, page: &mut Page<'_>, key: &'static str) -> bool {
        let Some(value) = self.take(key) else { return false };
        if let DeValue::Boolean(yes) = value.get_ref() {
            return *yes;
        }
        let shown = shown(page, value);
        page.wrong(value.span().start, format!("{key} is {shown}: expected true or false"));
        false
    }

    fn text(&mut self, page: &mut Page<'_>, key: &'static str) -> Option<String> {
        let value = self.take(key)?;
        if let DeValue::String(text) = value.get_ref() {
            return Some(text.clone().into_owned());
        }
        let shown = shown(page, value);
        page.wrong(value.span().start, format!("{key} is {shown}: expected text"));
        None
    }

    fn span(&mut self, page: &mut Page<'_>, key: &'static str) -> Option<u64> {
        let value = self.take(key)?;
        let nanos = match value.get_ref() {
            DeValue::String(text) => duration(text),
            _ => None,
        };
        if nanos.is_none() {
            let shown = shown(page, value);
            page.wrong(
                value.span().start,
                format!("{key} is {shown}: expected a time like \"5s\", \"250ms\" or \"80us\", at most \"3600s\""),
            );
        }
        nanos
    }

    fn word<T: Copy>(&mut self, page: &mut Page<'_>, key: &'static str, words: &[(&'static str, T)]) -> Option<T> {
        let value = self.take(key)?;
        if let DeValue::String(text) = value.get_ref()
            && let Some((_, found)) = words.iter().find(|(word, _)| *word == text.as_ref())
        {
            return Some(*found);
        }
        let (shown, all) = (shown(page, value), words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", "));
        page.wrong(value.span().start, format!("{key} is {shown}: expected one of {all}"));
        None
    }

    fn picks(&mut self, page: &mut Page<'_>, key: &'static str, extra: &[(&'static str, Pick)]) -> Option<Vec<Pick>> {
        let value = self.take(key)?;
        let mut picks = Vec::new();
        let values: Vec<Value<'_, '_>> = match value.get_ref() {
            DeValue::Array(array) => array.iter().collect(),
            _ => vec![value],
        };
        if values.is_empty() {
            page.wrong(value.span().start, format!("{key} names nobody"));
        }
        for value in values {
            let pick = match value.get_ref() {
                DeValue::Integer(number) => {
                    u64::from_str_radix(number.as_str(), number.radix()).ok().filter(|n| *n > 0).map(Pick::Replica)
                }
                DeValue::String(text) => {
                    WHO.iter().chain(extra).find(|(word, _)| *word == text.as_ref()).map(|(_, pick)| *pick)
                }
                _ => None,
            };
            if let Some(pick) = pick {
                picks.push(pick);
            } else {
                let words: Vec<&str> = WHO.iter().chain(extra).map(|(word, _)| *word).collect();
                let shown = shown(page, value);
                page.wrong(
                    value.span().start,
                    format!("{key} is {shown}: expected a replica's number or one of {}", words.join(", ")),
                );
            }
        }
        Some(picks)
    }

    fn need<T>(&self, page: &mut Page<'_>, key: &str, value: Option<T>) -> Option<T> {
        if value.is_none() && !self.has(key) {
            page.wrong(self.at, format!("{key} is missing"));
        }
        value
    }

    /// Nothing else may be here.
    fn done(self, page: &mut Page<'_>) {
        for (name, _) in self.table {
            let key = name.get_ref();
            if !self.accepted.contains(&key.as_ref()) {
                page.wrong(
                    name.span().start,
                    format!("unknown key {key}: expected one of {}", self.accepted.join(", ")),
                );
            }
        }
    }
}

const WHO: [(&str, Pick); 3] = [("leader", Pick::Leader), ("follower", Pick::Follower), ("all", Pick::All)];

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn shown(page: &Page<'_>, value: Value<'_, '_>) -> String {
    page.text.get(value.span()).unwrap_or("?").lines().next().unwrap_or("").to_owned()
}

fn duration(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match &text[digits..] {
        "s" => SECOND,
        "ms" => MS,
        "us" => 1_000,
        _ => return None,
    };
    number.checked_mul(unit).filter(|nanos| *nanos <= 3_600 * SECOND)
}

/// Reads a story.
pub(super) fn scenario(file: &str, name: &str, text: &str) -> Result<Scenario, Vec<Problem>> {
    let mut page = Page { file, text, problems: Vec::new() };
    let root = match DeTable::parse(text) {
        Ok(root) => root,
        Err(error) => {
            let at = error.span().map_or(0, |span| span.start);
            page.wrong(at, error.message().to_owned());
            return Err(page.problems);
        }
    };
    let page_ref = &mut page;
    let mut keys = Keys::new(root.get_ref(), 0);
    let about = keys.text(page_ref, "about");
    let about = keys.need(page_ref, "about", about).unwrap_or_default();
    let cluster = cluster(page_ref, keys.take("cluster"));
    let neighbour = keys.take("neighbour").and_then(|value| neighbour(page_ref, value));
    let load = load(page_ref, keys.take("load"));
    let time = times(page_ref, keys.take("time"));
    let faults = list(page_ref, keys.take("fault"), "fault", fault);
    let operations = list(page_ref, keys.take("operation"), "operation", operation);
    let nemesis = keys.take("nemesis").and_then(|value| nemesis(page_ref, value));
    let storm = keys.take("storm").and_then(|value| storm(page_ref, value));
    let (agents_table, acts) = (keys.take("agents"), keys.take("act"));
    let agents = agents::agents(page_ref, agents_table, acts);
    let expect = expect(page_ref, keys.take("expect"));
    keys.done(page_ref);
    if !page.problems.is_empty() {
        page.problems.sort_by_key(|problem| problem.line);
        return Err(page.problems);
    }
    Ok(Scenario {
        name: name.to_owned(),
        about,
        cluster,
        neighbour,
        load,
        time,
        faults,
        operations,
        nemesis,
        storm,
        agents,
        expect,
    })
}

fn list<T>(
    page: &mut Page<'_>,
    value: Option<Value<'_, '_>>,
    what: &str,
    one: impl Fn(&mut Page<'_>, Value<'_, '_>) -> Option<T>,
) -> Vec<T> {
    let Some(value) = value else { return Vec::new() };
    if let DeValue::Array(array) = value.get_ref() {
        array.iter().filter_map(|value| one(page, value)).collect()
    } else {
        page.wrong(value.span().start, format!("{what} is not a list: write [[{what}]]"));
        Vec::new()
    }
}

fn cluster(page: &mut Page<'_>, value: Option<Value<'_, '_>>) -> Cluster {
    // Small enough that a short story sees snapshots, segment rolls and followers that fall behind them.
    let limits = Limits {
        snapshot_entries: 200,
        snapshot_pause_ms: 2_000,
        log_bytes_behind_snapshot: 16_000,
        snapshot_patience_ms: 3_000,
        ..Limits::default()
    };
    let mut cluster = Cluster {
        voters: 3,
        learners: 0,
        timing_name: "lan",
        timing: Timing::LAN,
        limits,
        segment_bytes: 64 << 10,
        feature_level: FEATURE_LEVEL,
    };
    let Some(mut keys) = value.and_then(|value| Keys::of(page, value, "cluster")) else { return cluster };
    if let Some(voters) = keys.number(page, "voters", 1..=9) {
        cluster.voters = voters;
    }
    if let Some(learners) = keys.number(page, "learners", 0..=9) {
        cluster.learners = learners;
    }
    let presets = [("lan", ("lan", Timing::LAN)), ("wan", ("wan", Timing::WAN))];
    if let Some((name, timing)) = keys.word(page, "timing", &presets) {
        (cluster.timing_name, cluster.timing) = (name, timing);
    }
    if let Some(ppm) = keys.number(page, "lease_clock_drift_ppm", 0..=u64::from(LEASE_DRIFT_PPM_MAX)) {
        cluster.timing.lease_drift_ppm = u32::try_from(ppm).ok();
    }
    if let Some(entries) = keys.number(page, "snapshot_entries", 1..=1_000_000) {
        cluster.limits.snapshot_entries = entries;
    }
    if let Some(ms) = keys.number(page, "snapshot_pause_ms", 0..=3_600_000) {
        cluster.limits.snapshot_pause_ms = ms;
    }
    if let Some(bytes) = keys.number(page, "log_bytes_behind_snapshot", 0..=1 << 30) {
        cluster.limits.log_bytes_behind_snapshot = bytes;
    }
    if let Some(bytes) = keys.number(page, "log_bytes_max", 1_000..=1 << 30) {
        cluster.limits.log_bytes_max = bytes;
    }
    if let Some(bytes) = keys.number(page, "payload_bytes_max", 1_000..=16 << 20) {
        cluster.limits.payload_bytes_max = bytes;
    }
    if let Some(bytes) = keys.number(page, "append_bytes_max", 1_000..=16 << 20) {
        cluster.limits.append_bytes_max = bytes;
    }
    if let Some(count) = keys.number(page, "appends_inflight_max", 1..=100_000) {
        cluster.limits.appends_inflight_max = usize::try_from(count).unwrap_or(usize::MAX);
    }
    if let Some(count) = keys.number(page, "writes_waiting_max", 1..=1_000_000) {
        cluster.limits.writes_waiting_max = usize::try_from(count).unwrap_or(usize::MAX);
    }
    if let Some(count) = keys.number(page, "reads_waiting_max", 1..=1_000_000) {
        cluster.limits.reads_waiting_max = usize::try_from(count).unwrap_or(usize::MAX);
    }
    if let Some(bytes) = keys.number(page, "segment_bytes", 4_096..=16 << 20) {
        cluster.segment_bytes = bytes;
    }
    if let Some(level) = keys.number(page, "feature_level", 1..=99) {
        cluster.feature_level = u32::try_from(level).unwrap_or(FEATURE_LEVEL);
    }
    keys.done(page);
    cluster
}

fn neighbour(page: &mut Page<'_>, value: Value<'_, '_>) -> Option<Neighbour> {
    let line = page.line(value.span().start);
    let mut keys = Keys::of(page, value, "neighbour")?;
    let voters = keys.number(page, "voters", 1..=9).unwrap_or(3);
    let clients = keys.number(page, "clients", 0..=1_000).unwrap_or(2);
    let rate = keys.number(page, "rate", 1..=100_000).unwrap_or(20);
    let undisturbed = keys.yes(page, "undisturbed");
    keys.done(page);
    Some(Neighbour { voters, clients: u32::try_from(clients).unwrap_or(u32::MAX), rate, undisturbed, line })
}

/// What is asked if a story does not say.
pub(crate) fn usual_mix() -> Vec<(Kind, u64)> {
    vec![
        (Kind::Commit, 12),
        (Kind::Rollback, 2),
        (Kind::Policy, 1),
        (Kind::Read, 6),
        (Kind::LocalRead, 2),
        (Kind::ReadAtLeast, 2),
        (Kind::Assign, 1),
        (Kind::NodeCommit, 1),
        (Kind::Boot, 3),
    ]
}

fn load(page: &mut Page<'_>, value: Option<Value<'_, '_>>) -> Load {
    let mix = usual_mix();
    let mut load = Load {
        clients: 6,
        together: 1,
        rate: 50,
        mix,
        value_bytes: 40,
        keys: 20,
        patience: 12 * SECOND,
        subscribers: 1,
        slow_subscribers: 0,
        nodes: 4,
    };
    let Some(mut keys) = value.and_then(|value| Keys::of(page, value, "load")) else { return load };
    if let Some(clients) = keys.number(page, "clients", 0..=10_000) {
        load.clients = u32::try_from(clients).unwrap_or(u32::MAX);
    }
    if let Some(count) = keys.number(page, "together", 1..=1_000) {
        load.together = u32::try_from(count).unwrap_or(u32::MAX);
    }
    if let Some(rate) = keys.number(page, "rate", 1..=100_000) {
        load.rate = rate;
    }
    if let Some(bytes) = keys.number(page, "value_bytes", 1..=1_000_000) {
        load.value_bytes = bytes;
    }
    if let Some(count) = keys.number(page, "keys", 1..=1_000_000) {
        load.keys = count;
    }
    if let Some(count) = keys.number(page, "nodes", 1..=1_000_000) {
        load.nodes = count;
    }
    if let Some(count) = keys.number(page, "subscribers", 0..=1_000) {
        load.subscribers = u32::try_from(count).unwrap_or(u32::MAX);
    }
    if let Some(count) = keys.number(page, "slow_subscribers", 0..=1_000) {
        load.slow_subscribers = u32::try_from(count).unwrap_or(u32::MAX);
    }
    if let Some(patience) = keys.span(page, "patience") {
        load.patience = patience;
    }
    if let Some(mut mix) = keys.take("mix").and_then(|value| Keys::of(page, value, "mix")) {
        load.mix = Kind::ALL
            .into_iter()
            .filter_map(|(word, kind)| mix.number(page, word, 0..=1_000_000).map(|share| (kind, share)))
            .collect();
        if load.mix.iter().all(|(_, share)| *share == 0) {
            page.wrong(mix.at, "mix asks for nothing: expected at least one share above 0");
        }
        mix.done(page);
    }
    keys.done(page);
    load
}

fn times(page: &mut Page<'_>, value: Option<Value<'_, '_>>) -> Times {
    let mut times = Times { run: 20 * SECOND, heal: 10 * SECOND };
    let Some(mut keys) = value.and_then(|value| Keys::of(page, value, "time")) else { return times };
    if let Some(run) = keys.span(page, "run") {
        times.run = run;
    }
    if let Some(heal) = keys.span(page, "heal") {
        times.heal = heal;
    }
    keys.done(page);
    times
}

fn expect(page: &mut Page<'_>, value: Option<Value<'_, '_>>) -> Expect {
    let mut expect = Expect { leader_within: 5 * SECOND, marks: Vec::new(), acknowledged: 0, violated: None };
    let Some(mut keys) = value.and_then(|value| Keys::of(page, value, "expect")) else { return expect };
    if let Some(within) = keys.span(page, "leader_within") {
        expect.leader_within = within;
    }
    if let Some(count) = keys.number(page, "acknowledged", 0..=u64::from(u32::MAX)) {
        expect.acknowledged = count;
    }
    if let Some(value) = keys.take("violated") {
        match value.get_ref() {
            DeValue::String(text) => expect.violated = Some(text.clone().into_owned()),
            other => page.wrong(value.span().start, format!("violated is {}: expected text", kind_of(other))),
        }
    }
    if let Some(value) = keys.take("marks") {
        match value.get_ref() {
            DeValue::Array(array) => {
                for mark in array {
                    match mark.get_ref() {
                        DeValue::String(text) => expect.marks.push(text.clone().into_owned()),
                        other => page.wrong(mark.span().start, format!("a mark is {}: expected text", kind_of(other))),
                    }
                }
            }
            other => page.wrong(value.span().start, format!("marks is {}: expected a list of text", kind_of(other))),
        }
    }
    keys.done(page);
    expect
}

const BUDGETS: [(&str, Budget); 3] =
    [("standard", Budget::Standard), ("outage", Budget::Outage), ("beyond", Budget::Beyond)];

fn nemesis(page: &mut Page<'_>, value: Value<'_, '_>) -> Option<Nemesis> {
    let mut keys = Keys::of(page, value, "nemesis")?;
    let budget = keys.word(page, "budget", &BUDGETS).unwrap_or(Budget::Standard);
    let every = keys.span(page, "every").unwrap_or(2 * SECOND);
    keys.done(page);
    Some(Nemesis { budget, every })
}

fn storm(page: &mut Page<'_>, value: Value<'_, '_>) -> Option<Storm> {
    let mut keys = Keys::of(page, value, "storm")?;
    let nodes = keys.number(page, "nodes", 1..=1_000_000);
    let nodes = keys.need(page, "nodes", nodes);
    let at = keys.span(page, "at");
    let at = keys.need(page, "at", at);
    let within = keys.span(page, "within").unwrap_or(SECOND);
    let overlay_bytes = keys.number(page, "overlay_bytes", 1_000..=4_000_000).unwrap_or(150_000);
    let bytes_per_second = keys.number(page, "bytes_per_second", 100_000..=100_000_000_000).unwrap_or(1_250_000_000);
    let streams = keys.number(page, "streams", 1..=1_000_000);
    let streams =
        streams.map_or(BootLimits::default().streams_max, |streams| u32::try_from(streams).unwrap_or(u32::MAX));
    let patience = keys.span(page, "patience").unwrap_or(60 * SECOND);
    let commits_slower = keys.number(page, "commits_slower", 1..=1_000).unwrap_or(4);
    keys.done(page);
    Some(Storm { nodes: nodes?, at: at?, within, overlay_bytes, bytes_per_second, streams, patience, commits_slower })
}

fn named(page: &mut Page<'_>, keys: &mut Keys<'_, '_>) -> Option<(Arc<str>, u64)> {
    let id = keys.text(page, "id");
    let id = keys.need(page, "id", id)?;
    let at = keys.span(page, "at");
    let at = keys.need(page, "at", at)?;
    Some((id.as_str().into(), at))
}

fn fault(page: &mut Page<'_>, value: Value<'_, '_>) -> Option<FaultItem> {
    let mut keys = Keys::of(page, value, "fault")?;
    let line = page.line(value.span().start);
    let named = named(page, &mut keys);
    let down = keys.span(page, "down");
    let lasts = keys.span(page, "for");
    let mut faults = Vec::new();
    for (kind, read) in FAULTS.into_iter().chain(agents::FAULTS) {
        if let Some(value) = keys.take(kind)
            && let Some(mut inner) = Keys::of(page, value, kind)
        {
            faults.extend(read(page, &mut inner));
            inner.done(page);
        }
    }
    let kinds = FAULTS.iter().chain(&agents::FAULTS).filter(|(kind, _)| keys.has(kind)).count();
    if kinds != 1 {
        let all: Vec<&str> = FAULTS.iter().chain(&agents::FAULTS).map(|(kind, _)| *kind).collect();
        page.wrong(keys.at, format!("a fault has {kinds} kinds: expected exactly one of {}", all.join(", ")));
    }
    let fault = faults.pop();
    if let Some(fault) = &fault {
        let dies = fault.is_down();
        if keys.has("down") && !dies {
            page.wrong(keys.at, "down is for crash, wipe, rewind, agent_crash and agent_reboot: expected `for`");
        }
        if keys.has("for") && (dies || matches!(fault, Fault::Rot { .. })) {
            page.wrong(
                keys.at,
                "for is not for crash, wipe, rewind, agent_crash, agent_reboot (write `down`) and rot (it stays)",
            );
        }
    }
    keys.done(page);
    let (id, at) = named?;
    Some(FaultItem { id, at, lasts: down.or(lasts), fault: fault?, line })
}

type ReadFault = fn(&mut Page<'_>, &mut Keys<'_, '_>) -> Option<Fault>;

const FAULTS: [(&str, ReadFault); 15] = [
    ("crash", crash),
    ("crash_loop", crash_loop),
    ("pause", |page, keys| Some(Fault::Pause { who: who(page, keys)? })),
    ("slow_process", |page, keys| {
        let percent = keys.number(page, "percent", 1..=99).unwrap_or(20);
        Some(Fault::SlowProcess { who: who(page, keys)?, percent })
    }),
    ("cut", cut),
    ("ring", |_, _| Some(Fault::Ring)),
    ("link", link),
    ("disk", disk),
    ("rot", |page, keys| {
        let file = keys.text(page, "file").unwrap_or_default();
        let last = keys.yes(page, "last");
        Some(Fault::Rot { who: who(page, keys)?, file, last })
    }),
    ("wipe", |page, keys| {
        let back = keys.word(page, "back", &Back::ALL).unwrap_or(Back::Empty);
        Some(Fault::Wipe { who: who(page, keys)?, back })
    }),
    ("rewind", |page, keys| {
        let by = keys.span(page, "by");
        let by = keys.need(page, "by", by)?;
        Some(Fault::Rewind { who: who(page, keys)?, by })
    }),
    ("clock", |page, keys| {
        let step_ms = keys.signed(page, "step_ms", 1_000_000_000_000).unwrap_or(0);
        let drift_ppm = keys.signed(page, "drift_ppm", 500_000).unwrap_or(0);
        let freeze = keys.yes(page, "freeze");
        Some(Fault::Clock { who: who(page, keys)?, step_ms, drift_ppm, freeze })
    }),
    ("hostile", |page, keys| {
        let every = keys.span(page, "every").unwrap_or(20 * MS);
        Some(Fault::Hostile { who: who(page, keys)?, every: every.max(MS) })
    }),
    ("driver", driver),
    ("downgrade", |page, keys| {
        let file = keys.text(page, "file");
        let file = keys.need(page, "file", file)?;
        Some(Fault::Downgrade { who: who(page, keys)?, file })
    }),
];

fn who(page: &mut Page<'_>, keys: &mut Keys<'_, '_>) -> Option<Vec<Pick>> {
    let who = keys.picks(page, "who", &[]);
    keys.need(page, "who", who)
}

fn crash(page: &mut Page<'_>, keys: &mut Keys<'_, '_>) -> Option<Fault> {
    let point = keys.word(page, "point", &Point::ALL);
    let nth = keys.number(page, "nth", 1..=1_000_000).unwrap_or(1);
    let power = keys.yes(page, "power");
    let may_miss = keys.yes(page, "may_miss");
    if point.is_none() && (keys.has("nth") || keys.has("may_miss")) {
        page.wrong(keys.at, "nth and may_miss are about a point: expected `point` too");
    }
    Some(Fault::Crash { who: who(page, keys)?, point, nth, power, may_miss })
}

fn driver(page: &mut Page<'_>, keys: &mut Keys<'_, '_>) -> Option<Fault> {
    let late = keys.span(page, "late").unwrap_or(0);
    let early = keys.number(page, "early", 0..=100).unwrap_or(0);
    if late == 0 && early == 0 {
        page.wrong(keys.at, "the driver's devices do nothing unusual: expected late, early or both");
    }
    Some(Fault::Driver { who: who(page, keys)?, late, early })
}

fn crash_loop(page: &mut Page<'_>, keys: &mut Keys<'_, '_>) -> Option<Fault> {
    let every = keys.span(page, "every").unwrap_or(SECOND);
    let power = keys.yes(page, "power");
    Some(Fault::CrashLoop { who: who(page, keys)?, every, power })
}

fn cut(page: &mut Page<'_>, keys: &mut Keys<'_, '_>) -> Option<Fault> {
    let sides = [("others", Pick::Others), ("clients", Pick::Clients)];
    let from = keys.picks(page, "from", &sides);
    let from = keys.need(page, "from", from);
    let to = keys.picks(page, "to", &sides);
    let to = keys.need(page, "to", to);
    let ways = [("both", Way::Both), ("out", Way::Out), ("in", Way::In)];
    let way = keys.word(page, "way", &ways).unwrap_or(Way::Both);
    let flap = keys.span(page, "flap");
    let holds = keys.yes(page, "holds");
    Some(Fault::Cut { from: from?, to: to?, way, flap, holds })
}

#[expect(clippy::unnecessary_wraps, reason = "it is one of a table of readers")]
fn link(page: &mut Page<'_>, keys: &mut Keys<'_, '_>) -> Option<Fault> {
    let latency = keys.span(page, "latency").map(|nanos| nanos / 1_000);
    Some(Fault::Link(LinkChange {
        latency_us: latency,
        loss_ppm: keys.percent(page, "loss"),
        double_ppm: keys.percent(page, "double"),
        late_ppm: keys.percent(page, "late"),
        corrupt_ppm: keys.percent(page, "corrupt"),
        replay_ppm: keys.percent(page, "replay"),
        bytes_per_second: keys.number(page, "bytes_per_second", 1_000..=u64::from(u32::MAX)),
        queue_bytes: keys.number(page, "queue_bytes", 1_000..=1 << 30),
    }))
}

fn disk(page: &mut Page<'_>, keys: &mut Keys<'_, '_>) -> Option<Fault> {
    let how = DiskChange {
        slow: keys.number(page, "slow", 2..=100_000).unwrap_or(0),
        stalled: keys.yes(page, "stalled"),
        full: keys.yes(page, "full"),
        read_error_ppm: keys.percent(page, "read_error").unwrap_or(0),
        write_error_ppm: keys.percent(page, "write_error").unwrap_or(0),
        sync_error_ppm: keys.percent(page, "sync_error").unwrap_or(0),
        misdirect_ppm: keys.percent(page, "misdirect").unwrap_or(0),
    };
    if how == DiskChange::default() {
        page.wrong(
            keys.at,
            "the disk does nothing wrong: expected slow, stalled, full, an error's percent or misdirect",
        );
    }
    Some(Fault::Disk { who: who(page, keys)?, how })
}

type Make = fn(Pick) -> Operation;

fn operation(page: &mut Page<'_>, value: Value<'_, '_>) -> Option<OperationItem> {
    let mut keys = Keys::of(page, value, "operation")?;
    let line = page.line(value.span().start);
    let named = named(page, &mut keys);
    let mut found = Vec::new();
    let wishes = [("voter", MemberWish::Voter), ("learner", MemberWish::Learner)];
    if keys.has("join")
        && let Some(value) = keys.take("join")
    {
        if let DeValue::Table(_) = value.get_ref() {
            if let Some(mut inner) = Keys::of(page, value, "join") {
                let level = inner.number(page, "feature_level", 0..=99);
                let feature_level = level.and_then(|level| u32::try_from(level).ok());
                let of = inner.number(page, "replaces", 1..=99);
                let wish = inner.word(page, "as", &wishes);
                match (of, wish) {
                    (Some(of), None) => {
                        let wish = MemberWish::Replacement { of: ReplicaId(of) };
                        found.push(Operation::Join { wish, feature_level });
                    }
                    (None, Some(wish)) => found.push(Operation::Join { wish, feature_level }),
                    (Some(_), Some(_)) | (None, None) => {
                        page.wrong(inner.at, "a join in a table has either `replaces` or `as`");
                    }
                }
                inner.done(page);
            }
        } else {
            let wish = keys.word(page, "join", &wishes);
            found.extend(wish.map(|wish| Operation::Join { wish, feature_level: None }));
        }
    }
    let one: [(&'static str, Make); 5] = [
        ("promote", Operation::Promote),
        ("demote", Operation::Demote),
        ("remove", Operation::Remove),
        ("snapshot", Operation::Snapshot),
        ("restore", Operation::Restore),
    ];
    for (key, make) in one {
        if let Some(picks) = keys.picks(page, key, &[]) {
            found.extend(picks.first().map(|pick| make(*pick)));
        }
    }
    found.extend(keys.number(page, "transfer", 0..=99).map(Operation::Transfer));
    let level = keys.number(page, "raise", 1..=99);
    found.extend(level.and_then(|level| u32::try_from(level).ok()).map(Operation::Raise));
    let refused = keys.has("refused").then(|| keys.yes(page, "refused"));
    if refused.is_some()
        && matches!(found.first(), Some(Operation::Transfer(_) | Operation::Snapshot(_) | Operation::Restore(_)))
    {
        page.wrong(keys.at, "refused is for join, promote, demote, remove and raise: the rules refuse nothing else");
    }
    keys.accepted.extend(["join", "refused"]);
    if found.len() != 1 {
        page.wrong(
            keys.at,
            format!(
                "an operation does {} things: expected one of join, promote, demote, remove, transfer, snapshot, restore, raise",
                found.len()
            ),
        );
    }
    keys.done(page);
    let (id, at) = named?;
    Some(OperationItem { id, at, operation: found.pop()?, refused, line })
}
