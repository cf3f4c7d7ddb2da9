//! From TOML to nodes with agents, what people do there, and what breaks around them.

use super::super::agents::{MODES, usual_mix};
use super::super::{Act, ActItem, ActOutcome, AgentFault, AgentPick, Agents, Fault, Harm, RolloutAct, SECOND, Work};
use super::{Keys, Page, ReadFault, Value, list, named, shown};
use crate::agents::AgentPoint;
use muster_core::agent::value::check_setting;
use muster_core::journal::key::{Key, Setting};
use muster_core::journal::policy::Mode;
use toml::de::DeValue;

/// The `[agents]` table and the `[[act]]` list.
pub(super) fn agents(page: &mut Page<'_>, table: Option<Value<'_, '_>>, acts: Option<Value<'_, '_>>) -> Option<Agents> {
    let Some(value) = table else {
        if let Some(acts) = acts {
            page.wrong(acts.span().start, "there are acts and no agents: expected an [agents] table");
        }
        return None;
    };
    let line = page.line(value.span().start);
    let mut keys = Keys::of(page, value, "agents")?;
    let count = keys.number(page, "count", 1..=1_000);
    let count = keys.need(page, "count", count);
    let seconds = |page: &mut Page<'_>, keys: &mut Keys<'_, '_>, key, default: u32| {
        keys.number(page, key, 1..=864_000).map_or(default, |seconds| u32::try_from(seconds).unwrap_or(default))
    };
    let base_window_seconds = seconds(page, &mut keys, "base_window", 30);
    let emergency_window_seconds = seconds(page, &mut keys, "emergency_window", 20);
    let emergency_allowed = !keys.has("emergency_allowed") || keys.yes(page, "emergency_allowed");
    let mode = keys.word(page, "mode", &MODES).unwrap_or(Mode::Enforce);
    let grace = keys.span(page, "grace").unwrap_or(10 * SECOND);
    let operators = keys.number(page, "operators", 1..=1_000).unwrap_or(3);
    let rate_milli = rate(page, &mut keys).unwrap_or(0);
    let mut mix = usual_mix();
    if let Some(mut shares) = keys.take("mix").and_then(|value| Keys::of(page, value, "mix")) {
        mix = Work::ALL
            .into_iter()
            .filter_map(|(word, work)| shares.number(page, word, 0..=1_000_000).map(|share| (work, share)))
            .collect();
        if mix.iter().all(|(_, share)| *share == 0) {
            page.wrong(shares.at, "mix asks for nothing: expected at least one share above 0");
        }
        shares.done(page);
    }
    keys.accepted.push("emergency_allowed");
    keys.done(page);
    let acts = list(page, acts, "act", act);
    Some(Agents {
        count: u32::try_from(count?).unwrap_or(1),
        base_window_seconds,
        emergency_window_seconds,
        emergency_allowed,
        mode,
        grace,
        operators,
        rate_milli,
        mix,
        acts,
        line,
    })
}

/// Requests per second, with up to three decimals, in thousandths.
fn rate(page: &mut Page<'_>, keys: &mut Keys<'_, '_>) -> Option<u64> {
    let value = keys.take("rate")?;
    let text = match value.get_ref() {
        DeValue::Integer(number) => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        _ => None,
    };
    let milli = text.and_then(|text| {
        let (whole, rest) = text.split_once('.').unwrap_or((&text, ""));
        let whole: u64 = whole.parse().ok()?;
        let rest: u64 = if rest.len() > 3 { None } else { format!("{rest:0<3}").parse().ok() }?;
        Some(whole * 1_000 + rest).filter(|milli| *milli <= 1_000_000)
    });
    if milli.is_none() {
        let shown = shown(page, value);
        page.wrong(
            value.span().start,
            format!("rate is {shown}: expected a number from 0 to 1000, at most three decimals"),
        );
    }
    milli
}

/// A table of keys and what they become: text, or false for what must not be there.
fn changes(page: &mut Page<'_>, value: Value<'_, '_>, what: &str) -> Vec<(Key, Setting)> {
    let Some(table) = Keys::of(page, value, what) else { return Vec::new() };
    let mut changes = Vec::new();
    for (name, value) in table.table {
        let setting = match value.get_ref() {
            DeValue::String(text) => Some(Setting::Value(text.as_ref().into())),
            DeValue::Boolean(false) => Some(Setting::Absent),
            _ => None,
        };
        let Some(setting) = setting else {
            let shown = shown(page, value);
            page.wrong(value.span().start, format!("{} is {shown}: expected text, or false", name.get_ref()));
            continue;
        };
        let Ok(key) = Key::new(name.get_ref()) else {
            page.wrong(name.span().start, format!("{} is no key: expected dimension:name", name.get_ref()));
            continue;
        };
        match check_setting(&key, &setting) {
            Ok(setting) => changes.push((key, setting)),
            Err(unfit) => page.wrong(value.span().start, format!("{key}: {unfit}")),
        }
    }
    if changes.is_empty() {
        page.wrong(value.span().start, format!("{what} changes nothing: expected a key and what it becomes"));
    }
    changes.sort();
    changes
}

fn act(page: &mut Page<'_>, value: Value<'_, '_>) -> Option<ActItem> {
    let mut keys = Keys::of(page, value, "act")?;
    let line = page.line(value.span().start);
    let named = named(page, &mut keys);
    let agent = keys.number(page, "agent", 1..=1_000).and_then(|agent| u32::try_from(agent).ok());
    let by = keys.number(page, "by", 1..=1_000).unwrap_or(1);
    let outcome = keys.word(page, "outcome", &ActOutcome::ALL);
    let merge = keys.yes(page, "merge");
    let mut found = Vec::new();
    let whose = [("own", false), ("all", true)];
    if let Some(value) = keys.take("set") {
        found.push(Act::Set { changes: changes(page, value, "set"), merge });
    }
    if let Some(value) = keys.take("behind") {
        found.push(Act::Behind { changes: changes(page, value, "behind") });
    }
    if let Some(value) = keys.take("declare") {
        found.push(Act::Declare { changes: changes(page, value, "declare") });
    }
    found.extend(keys.word(page, "commit", &whose).map(|all| Act::Commit { all }));
    found.extend(keys.word(page, "rollback", &whose).map(|all| Act::Rollback { all }));
    let seconds = keys.number(page, "extend", 1..=864_000).and_then(|seconds| u32::try_from(seconds).ok());
    found.extend(seconds.map(|seconds| Act::Extend { seconds }));
    found.extend(keys.text(page, "emergency").map(|reason| Act::Emergency { reason: reason.as_str().into() }));
    let ends = [("plain", false), ("force", true)];
    found.extend(keys.word(page, "end_emergency", &ends).map(|force| Act::EndEmergency { force }));
    found.extend(keys.text(page, "exec").map(|line| Act::Exec { line }));
    if let Some(mut inner) = keys.take("rollout").and_then(|value| Keys::of(page, value, "rollout")) {
        found.extend(rollout(page, &mut inner).map(Act::Rollout));
        inner.done(page);
    }
    if keys.has("merge") && !keys.has("set") {
        page.wrong(keys.at, "merge is for set");
    }
    if keys.has("outcome") && ["behind", "declare", "rollout"].iter().any(|key| keys.has(key)) {
        page.wrong(keys.at, "outcome is for what an agent answers: not for behind, declare and rollout");
    }
    if found.len() != 1 {
        page.wrong(
            keys.at,
            format!(
                "an act does {} things: expected one of set, behind, declare, commit, rollback, extend, emergency, \
                 end_emergency, exec, rollout",
                found.len()
            ),
        );
    }
    keys.done(page);
    let (id, at) = named?;
    Some(ActItem { id, at, agent, by, act: found.pop()?, outcome, line })
}

fn rollout(page: &mut Page<'_>, keys: &mut Keys<'_, '_>) -> Option<RolloutAct> {
    let set = keys.take("set").map(|value| changes(page, value, "set"));
    let changes = keys.need(page, "set", set)?;
    let first = keys.number(page, "first", 1..=1_000).unwrap_or(1);
    let healthy = keys.span(page, "healthy").unwrap_or(3 * SECOND);
    let unhealthy = numbers(page, keys, "unhealthy").unwrap_or_default();
    let aborts = keys.yes(page, "aborts");
    Some(RolloutAct { changes, first: usize::try_from(first).unwrap_or(1), healthy, unhealthy, aborts })
}

fn number(value: Value<'_, '_>) -> Option<u32> {
    match value.get_ref() {
        DeValue::Integer(number) => {
            u32::from_str_radix(number.as_str(), number.radix()).ok().filter(|number| *number > 0)
        }
        _ => None,
    }
}

/// An agent's number, or a list of them.
fn numbers(page: &mut Page<'_>, keys: &mut Keys<'_, '_>, key: &'static str) -> Option<Vec<u32>> {
    let value = keys.take(key)?;
    let found: Option<Vec<u32>> = match value.get_ref() {
        DeValue::Array(array) => array.iter().map(number).collect(),
        _ => number(value).map(|number| vec![number]),
    };
    if found.is_none() {
        let shown = shown(page, value);
        page.wrong(value.span().start, format!("{key} is {shown}: expected an agent's number, or a list of them"));
    }
    found
}

fn who(page: &mut Page<'_>, keys: &mut Keys<'_, '_>) -> Option<AgentPick> {
    let words = [("all", AgentPick::All), ("one", AgentPick::One)];
    let word = keys.table.iter().find(|(name, _)| name.get_ref() == "who").and_then(|(_, value)| {
        let DeValue::String(text) = value.get_ref() else { return None };
        words.iter().find(|(word, _)| *word == text.as_ref())
    });
    if let Some((_, pick)) = word {
        keys.accepted.push("who");
        return Some(pick.clone());
    }
    let Some(value) = keys.take("who") else { return keys.need(page, "who", None) };
    let found: Option<Vec<u32>> = match value.get_ref() {
        DeValue::Array(array) => array.iter().map(number).collect(),
        _ => number(value).map(|number| vec![number]),
    };
    let found = found.filter(|agents| !agents.is_empty());
    if found.is_none() {
        let shown = shown(page, value);
        let problem = format!("who is {shown}: expected an agent's number, a list of them, or one of all, one");
        page.wrong(value.span().start, problem);
    }
    found.map(AgentPick::These)
}

fn agent(page: &mut Page<'_>, keys: &mut Keys<'_, '_>, harm: Option<Harm>) -> Option<Fault> {
    let who = who(page, keys)?;
    Some(Fault::Agent(AgentFault { who, harm: harm? }))
}

/// The kinds of faults around agents.
pub(super) const FAULTS: [(&str, ReadFault); 6] = [
    ("agent_crash", |page, keys| {
        let point = keys.word(page, "point", &AgentPoint::ALL);
        let nth = keys.number(page, "nth", 1..=1_000_000).unwrap_or(1);
        let power = keys.yes(page, "power");
        let may_miss = keys.yes(page, "may_miss");
        if point.is_none() && (keys.has("nth") || keys.has("may_miss")) {
            page.wrong(keys.at, "nth and may_miss are about a point: expected `point` too");
        }
        agent(page, keys, Some(Harm::Crash { point, nth, power, may_miss }))
    }),
    ("agent_reboot", |page, keys| agent(page, keys, Some(Harm::Reboot))),
    ("agent_cut", |page, keys| agent(page, keys, Some(Harm::Cut))),
    ("agent_clock", |page, keys| {
        let step_ms = keys.signed(page, "step_ms", 1_000_000_000_000).unwrap_or(0);
        let drift_ppm = keys.signed(page, "drift_ppm", 500_000).unwrap_or(0);
        agent(page, keys, Some(Harm::Clock { step_ms, drift_ppm }))
    }),
    ("agent_host", |page, keys| {
        let refuse_percent = keys.number(page, "refuse", 0..=100).unwrap_or(0);
        let slow = keys.span(page, "slow").unwrap_or(0);
        if refuse_percent == 0 && slow == 0 {
            page.wrong(keys.at, "the machine does nothing wrong: expected refuse, slow or both");
        }
        agent(page, keys, Some(Harm::Host { refuse_percent, slow }))
    }),
    ("agent_hold", |page, keys| {
        let text = keys.text(page, "key");
        let text = keys.need(page, "key", text);
        let key = text.as_ref().and_then(|text| Key::new(text).ok());
        if let (Some(text), None) = (&text, &key) {
            page.wrong(keys.at, format!("{text} is no key: expected dimension:name"));
        }
        agent(page, keys, key.map(|key| Harm::Hold { key }))
    }),
];
