//! Verbs for one node, carried out by its agent: set, drift, window, commit, rollback, extend, emergency.

use super::agents::{Found, ask, find, look};
use super::{connect, show};
use crate::args::{
    AgentArgs, CommitArgs, DriftArgs, EmergencyVerb, ExtendArgs, RollbackArgs, SetArgs, WindowArgs, WriteArgs,
};
use crate::exit::{Failure, USAGE};
use crate::{json, text};
use muster_core::agent::drift::DriftVector;
use muster_core::agent::fleet::Heard;
use muster_core::agent::operator::{Consent, Forecast, Phase, Reply, Report, Request, Returned, Which, WindowReport};
use muster_core::agent::value::file::{Content, File, Kind};
use muster_core::ids::NodeId;
use muster_core::journal::key::{Dimension, Key, Setting};
use serde_json::{Value, json as object};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

/// Seconds as people say them: `4 min 7 s`.
pub(crate) fn duration(seconds: u64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s} s"),
        (m, s) if m < 60 => format!("{m} min {s} s"),
        // To the next minute: four hours that have just begun are four hours.
        _ => {
            let minutes = seconds.div_ceil(60);
            format!("{} h {} min", minutes / 60, minutes % 60)
        }
    }
}

/// What differs, in a few words: `2 files, 1 kernel`.
pub(crate) fn drift_words(drift: &DriftVector) -> String {
    let parts: Vec<String> = Dimension::ALL
        .into_iter()
        .filter(|dimension| drift.of(*dimension) > 0)
        .map(|dimension| format!("{} {}", drift.of(dimension), dimension.word()))
        .collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}

fn senseless() -> Failure {
    super::senseless()
}

/// A value that names a file or standard input is replaced by what is in it.
fn contents(key: &Key, setting: Setting) -> Result<Setting, Failure> {
    let Setting::Value(value) = &setting else { return Ok(setting) };
    let from = value
        .strip_prefix('@')
        .filter(|path| ["/", "./", "../"].iter().any(|start| path.starts_with(start)) || *path == "-");
    let Some(path) = from else { return Ok(setting) };
    let cannot = |error: std::io::Error| Failure {
        code: USAGE,
        outcome: "usage",
        ..Failure::error(
            format!("{key}: {path} cannot be read: {error}"),
            "name a file with @/PATH or @./PATH, or @- for standard input",
        )
    };
    let mut bytes = Vec::new();
    if path == "-" {
        std::io::stdin().lock().read_to_end(&mut bytes).map_err(cannot)?;
    } else {
        bytes = std::fs::read(Path::new(path)).map_err(cannot)?;
    }
    let value = if key.dimension() == Some(Dimension::Files) {
        File::of(Kind::File(Some(Content::Bytes(bytes)))).to_string()
    } else {
        String::from_utf8(bytes).map_err(|_| Failure::usage(format!("{key}: {path} is not text"), ""))?
    };
    Ok(Setting::Value(Arc::from(value)))
}

pub(crate) fn changes(settings: Vec<(Key, Setting)>, absent: Vec<Key>) -> Result<Vec<(Key, Setting)>, Failure> {
    let mut changes = Vec::new();
    for (key, setting) in settings {
        let setting = contents(&key, setting)?;
        changes.push((key, setting));
    }
    changes.extend(absent.into_iter().map(|key| (key, Setting::Absent)));
    if changes.is_empty() {
        return Err(Failure::usage("nothing to set", "give KEY=VALUE or --absent KEY"));
    }
    Ok(changes)
}

/// The window a change would have, before it begins.
pub(crate) async fn forecast(
    agent: &muster_net::agent::client::AgentClient,
    request: &Request,
) -> Result<Forecast, Failure> {
    let Request::Set { changes, merge, message, .. } = request else { return Err(senseless()) };
    let tell =
        Request::Set { changes: changes.clone(), consent: Consent::TellOnly, merge: *merge, message: message.clone() };
    match ask(agent, &tell).await? {
        Reply::Forecast(forecast) => Ok(forecast),
        _ => Err(senseless()),
    }
}

fn forecast_text(forecast: &Forecast) -> String {
    let window = match (forecast.seconds, &forecast.unguarded) {
        (Some(seconds), _) => format!("window {}", duration(seconds)),
        (None, Some(why)) => format!("no window runs: {why}"),
        (None, None) => "no window runs".to_owned(),
    };
    format!("{}\n{window}\n", forecast.explanation)
}

/// Asks a person. Without a terminal nobody is there to answer.
fn confirmed(question: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    let mut err = std::io::stderr().lock();
    write!(err, "{question} [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

pub(crate) async fn set(args: SetArgs, json: bool) -> Result<(), Failure> {
    let changes = changes(args.settings, args.absent)?;
    let agent = find(&args.agent, &args.node).await?;
    let mut request =
        Request::Set { changes, consent: Consent::UnlessShort, merge: args.merge, message: Arc::from(args.message) };
    let told = forecast(&agent, &request).await?;
    if args.dry_run {
        let value = object!({ "outcome": "forecast", "node": args.node.as_str(), "forecast": json::forecast(&told) });
        return show(json, &value, &forecast_text(&told));
    }
    if !json {
        text::print(&forecast_text(&told))?;
    }
    let go = args.yes
        || !told.is_short
        || confirmed(&format!("the window is only {}: begin?", duration(told.seconds.unwrap_or(0))))?;
    if !go {
        return Err(Failure::error(
            format!("nothing was changed: the window would be only {}", duration(told.seconds.unwrap_or(0))),
            "say --yes to begin all the same",
        )
        .with(object!({ "forecast": json::forecast(&told) })));
    }
    if let Request::Set { consent, .. } = &mut request
        && (args.yes || told.is_short)
    {
        *consent = Consent::Yes;
    }
    let node = &args.node;
    match ask(&agent, &request).await? {
        Reply::Set { change, window, unguarded } => {
            let value = object!({
                "outcome": "set",
                "node": node.as_str(),
                "change": change.0,
                "forecast": json::forecast(&told),
                "window": window.as_ref().map(json::window),
                "unguarded": unguarded.as_deref(),
            });
            let out = match (&window, &unguarded) {
                (Some(window), _) => format!(
                    "set on {node} (change {}). {} left to stand by it: muster commit {node} -m WHY, or muster rollback {node}\n",
                    change.0,
                    duration(window.seconds_left)
                ),
                (None, Some(why)) => format!("set on {node} (change {}); no window runs: {why}\n", change.0),
                (None, None) => format!("set on {node} (change {}): it is what is declared\n", change.0),
            };
            show(json, &value, &out)
        }
        Reply::NotSet { errors, taken_back, window } => {
            let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
            let back = match &taken_back {
                Returned::Done { .. } => "what was done of it was taken back".to_owned(),
                other => format!("taking back the rest did not succeed: {}", returned_words(other)),
            };
            let detail = object!({
                "errors": errors.iter().map(json::host_error).collect::<Vec<_>>(),
                "taken_back": json::returned(&taken_back),
                "window": window.as_ref().map(json::window),
            });
            Err(Failure::error(format!("not set on {node}: {}\n  {back}", lines.join("; ")), "").with(detail))
        }
        // Somebody else changed something meanwhile, and the window became short.
        Reply::Forecast(forecast) => Err(Failure::error(
            format!("nothing was changed: by now the window would be only {}", duration(forecast.seconds.unwrap_or(0))),
            "say --yes to begin all the same",
        )),
        _ => Err(senseless()),
    }
}

fn returned_words(returned: &Returned) -> String {
    match returned {
        Returned::Done { keys } => format!("{} as declared", text::counted(keys.len(), "key")),
        Returned::Blocked { consumers } => consumers.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        Returned::Failed { errors, .. } => errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    }
}

fn window_words(window: &WindowReport) -> String {
    match &window.frozen {
        None => format!("{} left of window {}", duration(window.seconds_left), window.number),
        Some(frozen) => {
            let mut words = format!(
                "window {} stands still with {} left: it could not be rolled back",
                window.number,
                duration(window.seconds_left)
            );
            for line in frozen.consumers.iter().map(ToString::to_string) {
                let _ = write!(words, "\n  {line}");
            }
            for line in frozen.errors.iter().map(ToString::to_string) {
                let _ = write!(words, "\n  {line}");
            }
            words
        }
    }
}

/// How a node is, for people.
pub(crate) fn report_text(report: &Report) -> String {
    let vcluster =
        report.vcluster.as_ref().map_or_else(|| "no vCluster known yet".to_owned(), |name| format!("vCluster {name}"));
    let link = match &report.away {
        Some(why) => format!("; the journal is away: {why}"),
        None if report.connected => String::new(),
        None => "; the journal is away".to_owned(),
    };
    let mut out = format!(
        "{} is {} ({vcluster}, {} keys declared as of sequence {}{link})\n",
        report.node,
        if report.phase == Phase::Emergency { "in an emergency" } else { report.phase.word() },
        report.declared,
        report.sequence
    );
    if let Some(emergency) = &report.emergency {
        let left = if emergency.seconds_left == 0 {
            "its window has passed".to_owned()
        } else {
            format!("{} left", duration(emergency.seconds_left))
        };
        let _ = writeln!(
            out,
            "emergency since {} by {}: {} ({left})",
            text::time(emergency.since),
            emergency.author.principal,
            emergency.reason
        );
    }
    if !report.differences.is_empty() {
        let rows: Vec<Vec<String>> = report
            .differences
            .iter()
            .map(|difference| {
                let declared = if difference.is_declared {
                    text::short(&difference.declared.to_string())
                } else {
                    format!("{} (before; not declared)", text::short(&difference.declared.to_string()))
                };
                vec![
                    difference.key.to_string(),
                    declared,
                    text::short(&difference.observed.to_string()),
                    difference.owner.to_string(),
                    difference.change.0.to_string(),
                ]
            })
            .collect();
        out += &text::table(&["KEY", "DECLARED", "IS", "BY", "CHANGE"], &rows);
        for difference in &report.differences {
            if let Some(seconds) = difference.conflict_seconds {
                let _ = writeln!(
                    out,
                    "{} was changed in the journal too: its value wins in {}; commit or roll back before",
                    difference.key,
                    duration(seconds)
                );
            }
            if let Some(problem) = &difference.problem {
                let _ = writeln!(out, "{} could not be brought back: {problem}", difference.key);
            }
        }
        let _ = writeln!(out, "{}", report.explanation);
    }
    if let Some(window) = &report.window {
        let _ = writeln!(out, "{}", window_words(window));
    }
    let mut unseen: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (key, why) in &report.unseen {
        unseen.entry(why).or_default().push(key.as_str());
    }
    for (why, keys) in unseen {
        let _ = writeln!(out, "cannot be seen here: {} ({why})", keys.join(", "));
    }
    match report.spooled {
        0 => {}
        1 => out += "1 event waits for the journal\n",
        count => {
            let _ = writeln!(out, "{count} events wait for the journal");
        }
    }
    if report.commit_unknown {
        let _ = writeln!(out, "a commit is under way whose outcome is not known yet");
    }
    out
}

pub(crate) async fn drift(args: DriftArgs, json: bool) -> Result<(), Failure> {
    let report = find(&args.agent, &args.node).await?.show().await?;
    show(json, &json::report(&report), &report_text(&report))
}

/// The rows of a fleet, the most urgent first.
pub(crate) fn fleet_rows(heard: &[Heard]) -> Vec<Vec<String>> {
    heard
        .iter()
        .map(|heard| {
            let report = heard.report.clone().after(heard.seconds_ago);
            let left = match (&report.emergency, &report.window) {
                (Some((seconds, _)), _) => format!("emergency {}", duration(*seconds)),
                (None, Some(window)) if window.is_frozen => format!("{} (stands still)", duration(window.seconds_left)),
                (None, Some(window)) => duration(window.seconds_left),
                (None, None) => "-".to_owned(),
            };
            vec![
                report.node.to_string(),
                report.vcluster.as_ref().map_or("-".to_owned(), ToString::to_string),
                report.phase.word().to_owned(),
                drift_words(&report.drift),
                left,
                report.spooled.to_string(),
                format!("{} s ago", heard.seconds_ago),
            ]
        })
        .collect()
}

/// The headings of [`fleet_rows`].
pub(crate) const FLEET_HEADINGS: [&str; 7] = ["NODE", "VCLUSTER", "STATE", "DRIFT", "LEFT", "SPOOLED", "HEARD"];

pub(crate) async fn window(args: WindowArgs, json: bool) -> Result<(), Failure> {
    let Some(node) = &args.node else {
        let client = connect(&args.agent.client).await?;
        let heard: Vec<Heard> = client.fleet(None).await?.into_values().collect();
        let open: Vec<Heard> = heard
            .into_iter()
            .filter(|heard| heard.report.window.is_some() || heard.report.emergency.is_some())
            .collect();
        let value = object!({ "nodes": open.iter().map(json::heard).collect::<Vec<_>>() });
        let out = if open.is_empty() {
            "no window is open anywhere\n".to_owned()
        } else {
            text::table(&FLEET_HEADINGS, &fleet_rows(&open))
        };
        return show(json, &value, &out);
    };
    let report = find(&args.agent, node).await?.show().await?;
    let value = object!({
        "node": node.as_str(),
        "window": report.window.as_ref().map(json::window),
        "emergency": report.emergency.as_ref().map(json::emergency),
        "explanation": json::explanation(&report.explanation),
    });
    let out = match (&report.emergency, &report.window) {
        (Some(emergency), _) => {
            format!("an emergency is on: {} of its window left\n", duration(emergency.seconds_left))
        }
        (None, Some(window)) => format!("{}\n{}\n", window_words(window), report.explanation),
        (None, None) => format!("no window is open on {node}\n"),
    };
    show(json, &value, &out)
}

fn which(all: bool, keys: Vec<Key>) -> Which {
    match (all, keys.is_empty()) {
        (true, _) => Which::All,
        (false, true) => Which::Own,
        (false, false) => Which::Keys(keys.into_iter().collect()),
    }
}

/// `muster commit NODE`: through its agent.
pub(crate) async fn commit(args: CommitArgs, json: bool) -> Result<(), Failure> {
    let [node] = args.what.as_slice() else {
        return Err(Failure::usage(
            "it is not said what is committed",
            "give the NODE whose changes you stand by, or --scope SCOPE and KEY=VALUE",
        ));
    };
    let node = NodeId::new(node)
        .map_err(|error| Failure::usage(error.to_string(), "give a NODE, or --scope SCOPE with KEY=VALUE"))?;
    let agent_args = AgentArgs { agent: args.agent, client: args.write.client, author: args.write.author };
    let agent = find(&agent_args, &node).await?;
    let request =
        Request::Commit { which: which(args.all, args.keys), ttl_seconds: args.ttl, message: Arc::from(args.message) };
    let Reply::Committed { sequence, settings, left, window } = ask(&agent, &request).await? else {
        return Err(senseless());
    };
    let list: Vec<Value> = settings
        .iter()
        .map(|(key, setting)| object!({ "key": key.as_str(), "setting": json::setting(setting) }))
        .collect();
    let value = object!({
        "outcome": "applied",
        "sequence": sequence.0,
        "node": node.as_str(),
        "settings": list,
        "left": json::drift(&left),
        "window": window.as_ref().map(json::window),
    });
    let mut out = format!("sequence {sequence}: commit for node:{node}\n");
    for (key, setting) in &settings {
        let _ = writeln!(out, "  {key} -> {}", text::short(&setting.to_string()));
    }
    if !left.is_zero() {
        let _ = writeln!(out, "still differs: {}", drift_words(&left));
    }
    if let Some(window) = &window {
        let _ = writeln!(out, "{}", window_words(window));
    }
    show(json, &value, &out)
}

/// `muster rollback NODE`: through its agent.
pub(crate) async fn rollback(node: NodeId, args: RollbackArgs, json: bool) -> Result<(), Failure> {
    let agent_args = AgentArgs { agent: args.agent, client: args.write.client, author: args.write.author };
    let agent = find(&agent_args, &node).await?;
    let Reply::Returned(returned) = ask(&agent, &Request::Rollback { which: which(args.all, args.keys) }).await? else {
        return Err(senseless());
    };
    match &returned {
        Returned::Done { keys } => {
            let value = object!({
                "outcome": "rolled-back",
                "node": node.as_str(),
                "keys": keys.iter().map(Key::as_str).collect::<Vec<_>>(),
            });
            let are = if keys.len() == 1 { "is" } else { "are" };
            let keys_back = text::counted(keys.len(), "key");
            let mut out = format!("{node} was looked at again: {keys_back} {are} what is declared\n");
            for key in keys {
                let _ = writeln!(out, "  {key}");
            }
            show(json, &value, &out)
        }
        Returned::Blocked { consumers } => Err(super::agents::blocked(consumers)),
        Returned::Failed { .. } => Err(Failure::error(
            format!("not everything was rolled back on {node}: {}", returned_words(&returned)),
            format!("look with `muster drift {node}`; what could not be brought back still differs"),
        )
        .with(json::returned(&returned))),
    }
}

pub(crate) async fn extend(args: ExtendArgs, json: bool) -> Result<(), Failure> {
    let agent = find(&args.agent, &args.node).await?;
    let Reply::Extended { window } = ask(&agent, &Request::Extend { seconds: args.seconds }).await? else {
        return Err(senseless());
    };
    let value = object!({ "outcome": "extended", "node": args.node.as_str(), "window": json::window(&window) });
    show(json, &value, &format!("{}\n", window_words(&window)))
}

fn agent_args(agent: Option<String>, write: &WriteArgs) -> AgentArgs {
    AgentArgs { agent, client: write.client.clone(), author: write.author.clone() }
}

/// Emergencies: at the node's agent, which holds its rollbacks from then on; or, when told so, in the journal alone.
pub(crate) async fn emergency(verb: EmergencyVerb, json: bool) -> Result<(), Failure> {
    let (EmergencyVerb::Start { node, agent, write, journal_only, .. }
    | EmergencyVerb::End { node, agent, write, journal_only, .. }) = &verb;
    if *journal_only {
        return super::write::emergency(verb, json).await;
    }
    if write.request_id.is_some() {
        return Err(Failure::usage("an agent asks again by itself", "give --request-id with --journal-only"));
    }
    let node = node.clone();
    let agent = match look(&agent_args(agent.clone(), write), &node).await? {
        Found::Agent(agent) => agent,
        Found::NoneKnown => {
            return Err(Failure::error(
                format!("no agent has told the journal of {node} lately: nobody there would heed it"),
                "start it or name it with --agent; or record it all the same with --journal-only",
            ));
        }
    };
    let request = match &verb {
        EmergencyVerb::Start { reason, .. } => Request::EmergencyStart { reason: Arc::from(reason.as_str()) },
        EmergencyVerb::End { force, .. } => Request::EmergencyEnd { force: *force },
    };
    match ask(&agent, &request).await? {
        Reply::EmergencyStarted { sequence, seconds } => {
            let value = object!({
                "outcome": "started",
                "node": node.as_str(),
                "sequence": sequence.map(|sequence| sequence.0),
                "seconds": seconds,
            });
            let recorded = sequence.map_or_else(
                || "on the node's disk; the journal will learn it".to_owned(),
                |sequence| format!("sequence {sequence}"),
            );
            let out = format!(
                "{recorded}: emergency on {node} begins; nothing rolls back by itself. An alert is given in {}\n",
                duration(seconds)
            );
            show(json, &value, &out)
        }
        Reply::EmergencyEnded { window } => {
            let value = object!({
                "outcome": "ended",
                "node": node.as_str(),
                "window": window.as_ref().map(json::window),
            });
            let rest = window.map_or_else(String::new, |window| format!("; {}", window_words(&window)));
            show(json, &value, &format!("emergency on {node} ends{rest}\n"))
        }
        _ => Err(senseless()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_said_as_people_say_them() {
        assert_eq!(duration(59), "59 s");
        assert_eq!(duration(247), "4 min 7 s");
        assert_eq!((duration(14_400), duration(14_399)), ("4 h 0 min".into(), "4 h 0 min".into()));
    }

    #[test]
    fn a_value_is_taken_from_a_file_only_where_a_path_is_named() {
        let key = Key::new("files:/etc/x").unwrap();
        let value = |text: &str| Setting::Value(Arc::from(text));
        assert_eq!(contents(&key, value("@file mode=0600")).unwrap(), value("@file mode=0600"));
        assert!(contents(&key, value("@/nowhere/at/all")).unwrap_err().message.contains("/nowhere/at/all"));
    }
}
