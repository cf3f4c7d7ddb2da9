//! The space-time diagram: one page that needs nothing else, for a run that is to be understood.
//!
//! ```text
//! head      what failed, in words; the story; the command that replays it
//! overview  the whole run on one line per replica and fault: who led, who was down, what was broken
//! detail    the last events, one per row: replicas as columns, messages as arrows, faults at the left, clients at the right
//! ```
//! Drawn with plain formatting; the script on the page only searches, zooms and shows what is pointed at. Draws a bounded number
//! of events and says so on the page.

use crate::chronicle::{Chronicle, Kept, is_heartbeat, since};
use crate::event::{Ending, Event};
use crate::run::Report;
use crate::scenario::{MS, Scenario};
use muster_core::ids::{ReplicaId, Time};
use muster_core::log::LogRecord;
use muster_core::peer::{PeerMessage, RaftMessageKind};
use muster_core::request::RaftRole;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

/// So many events are drawn unless told otherwise.
pub const EVENTS: usize = 700;

const ROW: u64 = 14;
const QUIET_ROW: u64 = 5;
const TOP: u64 = 12;
const TIME_WIDTH: u64 = 84;
const WORLD_WIDTH: u64 = 210;
const COLUMN_WIDTH: u64 = 230;
const CLIENTS_WIDTH: u64 = 330;

/// Text that cannot be taken for markup.
struct Safe<'a>(&'a str);

impl fmt::Display for Safe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// The page.
#[must_use]
pub fn page(scenario: &Scenario, report: &Report, chronicle: &Chronicle, command: &str) -> String {
    let mut out = String::new();
    let _cannot_fail = Page { scenario, report, chronicle, command }.write(&mut out);
    out
}

struct Page<'a> {
    scenario: &'a Scenario,
    report: &'a Report,
    chronicle: &'a Chronicle,
    command: &'a str,
}

/// Where everything is in the detail.
struct Layout {
    replicas: Vec<ReplicaId>,
    rows: Vec<u64>,
    height: u64,
    width: u64,
}

impl Layout {
    fn new(chronicle: &Chronicle) -> Self {
        let replicas: Vec<ReplicaId> = chronicle.lives.keys().copied().collect();
        let mut rows = Vec::with_capacity(chronicle.kept.len());
        let mut y = TOP;
        let mut before: Option<Time> = None;
        for kept in &chronicle.kept {
            y += if is_quiet(&kept.event) { QUIET_ROW } else { ROW };
            // A long silence is a gap, but not as long as it was.
            let silence = before.map_or(0, |before| (kept.time.0 - before.0) / (5 * MS));
            y += silence.min(30);
            before = Some(kept.time);
            rows.push(y);
        }
        let width = TIME_WIDTH + WORLD_WIDTH + COLUMN_WIDTH * replicas.len() as u64 + CLIENTS_WIDTH;
        Self { replicas, rows, height: y + 40, width }
    }

    fn x(&self, replica: ReplicaId) -> u64 {
        let place = self.replicas.iter().position(|id| *id == replica).unwrap_or(0) as u64;
        TIME_WIDTH + WORLD_WIDTH + COLUMN_WIDTH * place + 20
    }

    fn clients(&self) -> u64 {
        TIME_WIDTH + WORLD_WIDTH + COLUMN_WIDTH * self.replicas.len() as u64 + 20
    }
}

/// Whether it says nothing new, and gets little room.
fn is_quiet(event: &Event) -> bool {
    match event {
        Event::Send { envelope, .. } | Event::Deliver { envelope, .. } | Event::Drop { envelope, .. } => {
            is_heartbeat(&envelope.message)
        }
        _ => false,
    }
}

impl Page<'_> {
    fn write(&self, out: &mut String) -> fmt::Result {
        let Self { report, chronicle, .. } = self;
        let title = format!("{} at seed {}", report.scenario, report.seed);
        write!(out, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">")?;
        write!(
            out,
            "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{}</title>",
            Safe(&title)
        )?;
        write!(out, "<style>{}</style></head><body>\n<header>", include_str!("page.css"))?;
        match &report.found {
            Some(found) => {
                writeln!(out, "<h1 class=\"bad\">{}</h1>", Safe(&title))?;
                write!(out, "<p class=\"verdict\"><b>Does not hold:</b> {}. ", Safe(found.oracle))?;
                write!(out, "<b>Expected</b> {}; ", Safe(&found.violation.expected))?;
                writeln!(
                    out,
                    "<b>saw</b> {}. <small>({})</small></p>",
                    Safe(&found.violation.saw),
                    Safe(found.source)
                )?;
            }
            None => {
                writeln!(out, "<h1>{}</h1>\n<p class=\"verdict\">Every property holds.</p>", Safe(&title))?;
            }
        }
        let story = chronicle.story(self.scenario, report);
        let open = if story.len() < 900 { " open" } else { "" };
        writeln!(out, "<details{open}><summary>The story</summary><p>{}</p></details>", Safe(&story))?;
        writeln!(out, "<p><code>{}</code></p>", Safe(self.command))?;
        self.overview(out)?;
        let layout = Layout::new(chronicle);
        writeln!(out, "</header>")?;
        self.toolbar(out)?;
        writeln!(out, "<main id=\"scroll\">")?;
        heads(out, &layout)?;
        self.detail(out, &layout)?;
        writeln!(out, "</main>\n<aside id=\"about\">Point at something; click to keep it here.</aside>")?;
        writeln!(out, "<script>{}</script></body></html>", include_str!("page.js"))
    }

    fn toolbar(&self, out: &mut String) -> fmt::Result {
        let (kept, all) = (self.chronicle.kept.len() as u64, self.chronicle.drawable);
        write!(
            out,
            "<nav class=\"bar\"><input id=\"find\" type=\"search\" placeholder=\"find: r1, vote, #17, term\">"
        )?;
        write!(
            out,
            "<span id=\"found\"></span><button id=\"prev\">previous</button><button id=\"next\">next</button>"
        )?;
        write!(out, "<button id=\"out\">&minus;</button><button id=\"in\">+</button><button id=\"fit\">fit</button>")?;
        for (class, words) in
            [("quiet", "heartbeats"), ("message", "messages"), ("disk", "log and disk"), ("client", "clients")]
        {
            write!(out, "<label><input type=\"checkbox\" data-class=\"{class}\" checked>{words}</label>")?;
        }
        if self.report.found.is_some() {
            write!(out, "<button id=\"failure\">to the failure</button>")?;
        }
        if kept < all {
            write!(out, "<small>the last {kept} of {all} events are drawn; <code>--events</code> draws more</small>")?;
        } else {
            write!(out, "<small>all {all} events are drawn</small>")?;
        }
        writeln!(out, "</nav>")
    }

    /// Every position is a share of the run, so that the overview fits any window.
    fn overview(&self, out: &mut String) -> fmt::Result {
        let chronicle = self.chronicle;
        let end = chronicle.end.0.max(1);
        let share = |time: Time| {
            let ppm = u64::try_from(u128::from(time.0) * 1_000_000 / u128::from(end)).unwrap_or(0);
            // A tenth is left for names.
            let ppm = 100_000 + ppm * 9 / 10;
            format!("{}.{:04}%", ppm / 10_000, ppm % 10_000)
        };
        let width = |from: Time, to: Time| {
            let ppm = u64::try_from(u128::from(to.0.saturating_sub(from.0)) * 900_000 / u128::from(end)).unwrap_or(0);
            let ppm = ppm.max(1_500);
            format!("{}.{:04}%", ppm / 10_000, ppm % 10_000)
        };
        let faults = chronicle.broken.len().min(FAULT_LANES);
        let height = 16 * (chronicle.lives.len() + faults + 2);
        writeln!(out, "<svg class=\"overview\" width=\"100%\" height=\"{height}\">")?;
        let mut y = 0;
        for (time, name) in &chronicle.phases {
            write!(out, "<line x1=\"{0}\" x2=\"{0}\" y1=\"0\" y2=\"{height}\" class=\"phase\"/>", share(*time))?;
            writeln!(out, "<text x=\"{}\" dx=\"3\" y=\"11\" class=\"dim\">{}</text>", share(*time), Safe(name))?;
        }
        y += 16;
        writeln!(out, "<text x=\"2\" y=\"{}\">leader</text>", y + 11)?;
        for (place, reign) in chronicle.reigns.iter().enumerate() {
            let to = chronicle.reigns.get(place + 1).map_or(chronicle.end, |next| next.from);
            let (x, w) = (share(reign.from), width(reign.from, to));
            let class = if place % 2 == 0 { "reign" } else { "reign odd" };
            write!(out, "<rect x=\"{x}\" y=\"{}\" width=\"{w}\" height=\"13\" class=\"{class}\">", y + 1)?;
            write!(out, "<title>r{} leads term {}</title></rect>", reign.leader, reign.term)?;
            // Short ones have no room for a name.
            if to.0 - reign.from.0 > end / 30 {
                write!(out, "<text x=\"{x}\" dx=\"3\" y=\"{}\">r{} t{}</text>", y + 11, reign.leader, reign.term)?;
            }
            writeln!(out)?;
        }
        for (replica, lives) in &chronicle.lives {
            y += 16;
            write!(out, "<text x=\"2\" y=\"{}\">r{replica}</text>", y + 11)?;
            for life in lives {
                let to = life.to.as_ref().map_or(chronicle.end, |(time, _)| *time);
                let (x, w) = (share(life.from), width(life.from, to));
                writeln!(out, "<rect x=\"{x}\" y=\"{}\" width=\"{w}\" height=\"7\" class=\"up\"/>", y + 4)?;
            }
        }
        for broken in chronicle.broken.iter().rev().take(faults).rev() {
            y += 16;
            let to = broken.to.unwrap_or(chronicle.end);
            let (x, w) = (share(broken.from), width(broken.from, to));
            write!(out, "<text x=\"2\" y=\"{}\" class=\"dim\">{}</text>", y + 11, Safe(&short(&broken.id, 13)))?;
            write!(out, "<rect x=\"{x}\" y=\"{}\" width=\"{w}\" height=\"11\" class=\"broken\">", y + 2)?;
            writeln!(out, "<title>{}: {}</title></rect>", Safe(&broken.id), Safe(&broken.what))?;
        }
        if let Some(found) = &self.report.found {
            let x = share(found.time);
            writeln!(out, "<line x1=\"{x}\" x2=\"{x}\" y1=\"0\" y2=\"{height}\" class=\"failure\"/>")?;
        }
        if let Some(first) = chronicle.kept.front() {
            let (x, w) = (share(first.time), width(first.time, chronicle.end));
            write!(out, "<rect x=\"{x}\" y=\"0\" width=\"{w}\" height=\"{height}\" class=\"window\">")?;
            write!(out, "<title>what is drawn below</title></rect>")?;
        }
        if chronicle.broken.len() > faults {
            let left_out = chronicle.broken.len() - faults;
            write!(out, "<text x=\"2\" y=\"11\" class=\"dim\">{left_out} earlier faults</text>")?;
        }
        writeln!(out, "</svg>")
    }

    fn detail(&self, out: &mut String, layout: &Layout) -> fmt::Result {
        let Layout { width, height, .. } = layout;
        writeln!(out, "<svg id=\"detail\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">")?;
        write!(
            out,
            "<defs><marker id=\"a\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" "
        )?;
        writeln!(out, "orient=\"auto\"><path d=\"M0 0L8 4L0 8z\"/></marker></defs>")?;
        self.fault_bands(out, layout)?;
        self.life_lines(out, layout)?;
        self.messages(out, layout)?;
        let began = self.chronicle.began();
        let mut before: Option<Time> = None;
        for (kept, y) in self.chronicle.kept.iter().zip(&layout.rows) {
            if before.is_none_or(|before| kept.time.0 - before.0 >= MS) && !is_quiet(&kept.event) {
                writeln!(out, "<text x=\"4\" y=\"{}\" class=\"dim\">{}</text>", y + 4, since(kept.time, began))?;
                before = Some(kept.time);
            }
            Self::mark(out, layout, kept, *y)?;
        }
        if let Some(found) = &self.report.found {
            let after = self.chronicle.kept.iter().zip(&layout.rows).rev().find(|(kept, _)| kept.step <= found.step);
            let y = after.map_or(layout.height - 30, |(_, y)| *y) + 8;
            write!(out, "<g id=\"violation\"><line x1=\"0\" x2=\"{width}\" y1=\"{y}\" y2=\"{y}\" class=\"failure\"/>")?;
            write!(out, "<text x=\"{TIME_WIDTH}\" y=\"{}\" class=\"failure\">", y + 14)?;
            writeln!(out, "does not hold: {}</text></g>", Safe(found.oracle))?;
        }
        writeln!(out, "</svg>")
    }

    /// The row at which something happened, for things whose own event may not be drawn any more.
    fn row(&self, layout: &Layout, time: Time) -> u64 {
        let later = self.chronicle.kept.partition_point(|kept| kept.time < time);
        layout.rows.get(later).copied().unwrap_or(layout.height - 20)
    }

    fn fault_bands(&self, out: &mut String, layout: &Layout) -> fmt::Result {
        let Some(first) = self.chronicle.kept.front() else { return Ok(()) };
        for (lane, broken) in
            self.chronicle.broken.iter().filter(|broken| broken.to.is_none_or(|to| to >= first.time)).enumerate()
        {
            let from = if broken.from <= first.time { 0 } else { self.row(layout, broken.from) };
            let to = broken.to.map_or(layout.height, |to| self.row(layout, to));
            let tall = to.saturating_sub(from).max(4);
            let words = format!("fault {}: {}", broken.id, broken.what);
            let x = TIME_WIDTH + 4 + 7 * (lane as u64 % 12);
            write!(out, "<g class=\"e fault\"><title>{}</title>", Safe(&words))?;
            write!(out, "<rect x=\"{x}\" y=\"{from}\" width=\"5\" height=\"{tall}\" class=\"broken\"/>")?;
            for victim in broken.victims.iter().filter(|victim| layout.replicas.contains(victim)) {
                let x = layout.x(*victim) - 12;
                write!(out, "<rect x=\"{x}\" y=\"{from}\" width=\"24\" height=\"{tall}\" class=\"band\"/>")?;
            }
            writeln!(out, "</g>")?;
        }
        Ok(())
    }

    fn life_lines(&self, out: &mut String, layout: &Layout) -> fmt::Result {
        let first = self.chronicle.kept.front().map_or(Time(0), |kept| kept.time);
        for (replica, lives) in &self.chronicle.lives {
            let x = layout.x(*replica);
            let bottom = layout.height;
            writeln!(out, "<line x1=\"{x}\" x2=\"{x}\" y1=\"0\" y2=\"{bottom}\" class=\"gone\"/>")?;
            for life in lives {
                let to = life.to.as_ref().map(|(time, _)| *time);
                if to.is_some_and(|to| to < first) {
                    continue;
                }
                let from = if life.from <= first { 0 } else { self.row(layout, life.from) };
                let to = to.map_or(bottom, |to| self.row(layout, to));
                writeln!(out, "<line x1=\"{x}\" x2=\"{x}\" y1=\"{from}\" y2=\"{to}\" class=\"up\"/>")?;
            }
            self.reigns(out, layout, *replica)?;
        }
        let x = layout.clients();
        writeln!(out, "<line x1=\"{x}\" x2=\"{x}\" y1=\"0\" y2=\"{}\" class=\"gone\"/>", layout.height)
    }

    /// Thick while a replica believes that it leads.
    fn reigns(&self, out: &mut String, layout: &Layout, replica: ReplicaId) -> fmt::Result {
        let mut since_row: Option<u64> = None;
        let x = layout.x(replica);
        let line = |out: &mut String, from: u64, to: u64| {
            writeln!(out, "<line x1=\"{x}\" x2=\"{x}\" y1=\"{from}\" y2=\"{to}\" class=\"leads\"/>")
        };
        // A reign may have begun before what is drawn, and leave no view here.
        let mut first = true;
        for (kept, y) in self.chronicle.kept.iter().zip(&layout.rows) {
            match &kept.event {
                Event::View { replica: who, view, .. } if *who == replica => {
                    let leads = view.status.role == RaftRole::Leader;
                    let reign = self.chronicle.reigns.iter().find(|reign| {
                        reign.leader == replica && reign.term == view.status.term && reign.from < kept.time
                    });
                    if leads && since_row.is_none() {
                        since_row = Some(if first && reign.is_some() { 0 } else { *y });
                    } else if let (false, Some(from)) = (leads, since_row) {
                        line(out, from, *y)?;
                        since_row = None;
                    }
                    first = false;
                }
                Event::Stop { replica: who, .. } if *who == replica => {
                    if let Some(from) = since_row.take() {
                        line(out, from, *y)?;
                    }
                    first = false;
                }
                _ => {}
            }
        }
        since_row.map_or(Ok(()), |from| line(out, from, layout.height))
    }

    fn messages(&self, out: &mut String, layout: &Layout) -> fmt::Result {
        let mut sent: BTreeMap<u64, (u64, &Kept)> = BTreeMap::new();
        let mut arrived: BTreeSet<u64> = BTreeSet::new();
        for (kept, y) in self.chronicle.kept.iter().zip(&layout.rows) {
            match &kept.event {
                Event::Send { id, envelope, .. } => {
                    sent.insert(*id, (*y, kept));
                    if let Some(words) = said(&envelope.message) {
                        let (from, to) = (layout.x(envelope.from), layout.x(envelope.to));
                        let (x, side) = if to > from { (from + 7, "start") } else { (from - 7, "end") };
                        let class = class_of(&envelope.message);
                        write!(out, "<g class=\"e message {class}\"><title>{}</title>", Safe(&full(kept)))?;
                        write!(out, "<text x=\"{x}\" y=\"{}\" text-anchor=\"{side}\">", y + 5)?;
                        writeln!(out, "{}</text></g>", Safe(&words))?;
                    }
                }
                Event::Deliver { id, envelope } => {
                    arrived.insert(*id);
                    let from = sent.get(id).map_or(0, |(y, _)| *y);
                    let (x1, x2) = (layout.x(envelope.from), layout.x(envelope.to));
                    arrow(out, kept, [x1, from, x2, *y], class_of(&envelope.message), "")?;
                }
                Event::Drop { id, envelope, .. } => {
                    arrived.insert(*id);
                    let from = sent.get(id).map_or(0, |(y, _)| *y);
                    let (x1, x2) = (layout.x(envelope.from), layout.x(envelope.to));
                    // A lost message ends short of its goal.
                    let x2 = if x2 > x1 { x2 - 30 } else { x2 + 30 };
                    arrow(out, kept, [x1, from, x2, *y], class_of(&envelope.message), " lost")?;
                    writeln!(out, "<text x=\"{x2}\" y=\"{}\" class=\"cross\">x</text>", y + 4)?;
                }
                _ => {}
            }
        }
        // What is still on its way at the end.
        for (id, (y, kept)) in &sent {
            if let (false, Event::Send { envelope, .. }) = (arrived.contains(id), &kept.event) {
                let (x1, x2) = (layout.x(envelope.from), layout.x(envelope.to));
                let x2 = if x2 > x1 { x1 + 60 } else { x1.saturating_sub(60) };
                arrow(out, kept, [x1, *y, x2, layout.height - 24], class_of(&envelope.message), " lost")?;
            }
        }
        Ok(())
    }

    fn mark(out: &mut String, layout: &Layout, kept: &Kept, y: u64) -> fmt::Result {
        let Some((x, class, label)) = Self::label(layout, &kept.event) else { return Ok(()) };
        write!(out, "<g class=\"e {class}\"><title>{}</title>", Safe(&full(kept)))?;
        if class != "fault" {
            write!(out, "<circle cx=\"{x}\" cy=\"{y}\" r=\"3\"/>")?;
        }
        writeln!(
            out,
            "<text x=\"{}\" y=\"{}\">{}</text></g>",
            x + 7,
            y + 4,
            Safe(&short(&label, if class == "client" { 48 } else { 36 }))
        )
    }

    /// Where an event is written, in which class, with which words; none for what is only an arrow.
    fn label(layout: &Layout, event: &Event) -> Option<(u64, &'static str, String)> {
        let world = TIME_WIDTH + 90;
        let at = |replica: ReplicaId| layout.x(replica);
        Some(match event {
            Event::Phase(name) => (world, "fault", format!("---- {name}")),
            Event::Fault { id, begins, .. } => {
                (world, "fault", format!("{id} {}", if *begins { "begins" } else { "ends" }))
            }
            Event::Operation { id, what } => (world, "fault", format!("{id}: {what}")),
            Event::Mark(name) => (world, "fault dim", (*name).into()),
            Event::Log { error, line } => (world, if *error { "fault bad" } else { "fault dim" }, line.to_string()),
            Event::Start { replica, hard_state, .. } => {
                (at(*replica), "life", format!("starts, term {}", hard_state.term))
            }
            Event::Stop { replica, why, .. } => {
                let why = match why {
                    Ending::Killed => "killed",
                    Ending::PowerLost => "power lost",
                    Ending::Fault(_) => "stops itself",
                    Ending::Ended => "ends",
                };
                (at(*replica), "life bad", why.into())
            }
            Event::Forged { at: to, envelope } => (at(*to), "disk bad", format!("forged, as from r{}", envelope.from)),
            Event::Append { replica, records, .. } => (at(*replica), "disk", format!("append {}", log(records))),
            Event::Durable { replica, records, .. } => (at(*replica), "disk", format!("durable {}", log(records))),
            Event::Snapshot { replica, meta, installed, .. } => {
                let verb = if *installed { "installed" } else { "saved" };
                (at(*replica), "disk", format!("snapshot {verb} {}", meta.index))
            }
            Event::Disk { replica, op, .. } => (at(*replica), "disk bad", format!("{op:?} fails")),
            Event::View { replica, view, .. } => {
                let s = &view.status;
                (at(*replica), "view", format!("t{} {} commit {}", s.term, s.role.word(), s.commit))
            }
            Event::Call { .. } | Event::Answer { .. } | Event::Agent { .. } => {
                (layout.clients(), "client", event.to_string().trim().to_owned())
            }
            Event::Send { .. }
            | Event::Deliver { .. }
            | Event::Drop { .. }
            | Event::Records { .. }
            | Event::Kept { .. }
            | Event::Inspected { .. } => return None,
        })
    }
}

/// How many faults the overview has lanes for.
const FAULT_LANES: usize = 14;

fn heads(out: &mut String, layout: &Layout) -> fmt::Result {
    let width = layout.width;
    write!(out, "<svg id=\"heads\" width=\"{width}\" height=\"22\" viewBox=\"0 0 {width} 22\">")?;
    write!(out, "<text x=\"4\" y=\"15\">time</text><text x=\"{}\" y=\"15\">world</text>", TIME_WIDTH + 90)?;
    for replica in &layout.replicas {
        write!(out, "<text x=\"{}\" y=\"15\">r{replica}</text>", layout.x(*replica) - 6)?;
    }
    writeln!(out, "<text x=\"{}\" y=\"15\">clients</text></svg>", layout.clients() - 6)
}

fn arrow(out: &mut String, kept: &Kept, [x1, y1, x2, y2]: [u64; 4], class: &str, more: &str) -> fmt::Result {
    let head = if more.is_empty() { " marker-end=\"url(#a)\"" } else { "" };
    write!(out, "<g class=\"e message {class}{more}\"><title>{}</title>", Safe(&full(kept)))?;
    writeln!(out, "<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"{head}/></g>")
}

fn full(kept: &Kept) -> String {
    format!("{} {} {}", kept.step, kept.time, kept.event)
}

fn class_of(message: &PeerMessage) -> &'static str {
    match message {
        PeerMessage::Raft(raft) => match raft.kind {
            RaftMessageKind::Append | RaftMessageKind::AppendReply => "append",
            RaftMessageKind::Vote
            | RaftMessageKind::VoteReply
            | RaftMessageKind::PreVote
            | RaftMessageKind::PreVoteReply
            | RaftMessageKind::TimeoutNow => "vote",
            RaftMessageKind::Snapshot => "snapshot",
            RaftMessageKind::Heartbeat | RaftMessageKind::HeartbeatReply => "quiet",
        },
        PeerMessage::Report { .. } => "quiet",
        PeerMessage::Forward { .. }
        | PeerMessage::Forwarded { .. }
        | PeerMessage::ReadIndex { .. }
        | PeerMessage::ReadIndexReply { .. } => "ask",
    }
}

/// A message in a word or two, unless it says nothing new.
fn said(message: &PeerMessage) -> Option<String> {
    Some(match message {
        PeerMessage::Raft(raft) => match (raft.kind, raft.entries.first(), raft.entries.last()) {
            (RaftMessageKind::Heartbeat | RaftMessageKind::HeartbeatReply, ..) => return None,
            (RaftMessageKind::Append, Some(first), Some(last)) if first.index != last.index => {
                format!("append {}..{}", first.index, last.index)
            }
            (RaftMessageKind::Append, Some(first), _) => format!("append {}", first.index),
            (RaftMessageKind::Append, None, _) => format!("commit {}", raft.commit),
            (RaftMessageKind::AppendReply, ..) if raft.reject => format!("refuses {}", raft.index),
            (RaftMessageKind::AppendReply, ..) => format!("has {}", raft.index),
            (RaftMessageKind::Vote, ..) => format!("vote t{}?", raft.term),
            (RaftMessageKind::PreVote, ..) => format!("would vote t{}?", raft.term),
            (RaftMessageKind::VoteReply | RaftMessageKind::PreVoteReply, ..) => {
                format!("{} t{}", if raft.reject { "no," } else { "yes," }, raft.term)
            }
            (RaftMessageKind::Snapshot, ..) => "snapshot".into(),
            (RaftMessageKind::TimeoutNow, ..) => "take over".into(),
        },
        PeerMessage::Report { .. } => return None,
        PeerMessage::Forward { .. } => "forward".into(),
        PeerMessage::Forwarded { .. } => "forwarded".into(),
        PeerMessage::ReadIndex { .. } => "read index?".into(),
        PeerMessage::ReadIndexReply { .. } => "read index".into(),
    })
}

fn log(records: &[LogRecord]) -> String {
    let words: Vec<String> = records
        .iter()
        .map(|record| match record {
            LogRecord::HardState(state) => format!("t{} v{} c{}", state.term, state.vote, state.commit),
            LogRecord::Entries(entries) => match (entries.first(), entries.last()) {
                (Some(first), Some(last)) if first.index != last.index => format!("{}..{}", first.index, last.index),
                (Some(first), _) => first.index.to_string(),
                (None, _) => String::new(),
            },
            LogRecord::Reset { index, .. } => format!("reset to {index}"),
        })
        .collect();
    words.join(", ")
}

fn short(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(most - 1).collect();
    cut.push('\u{2026}');
    cut
}
