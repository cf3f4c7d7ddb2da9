//! `muster watch`: the fleet's windows counting down.
//!
//! On a terminal a page of its own, redrawn every second, the most urgent node first; q or Ctrl-C ends it. Elsewhere one table
//! whenever something changes, or with `--json` one object a line.

use super::connect;
use super::exec::terminal_size;
use super::node::{FLEET_HEADINGS, fleet_rows};
use crate::args::WatchArgs;
use crate::exit::Failure;
use crate::{json, text};
use muster_core::agent::fleet::Heard;
use muster_core::agent::operator::Phase;
use muster_net::client::Client;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use serde_json::json as object;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Read as _};
use std::time::Duration;
use tokio::sync::mpsc;

/// How often the replicas are asked.
const EVERY: Duration = Duration::from_secs(1);

/// How urgent a node is: what rolls back soonest comes first, what is as declared last.
fn urgency(heard: &Heard) -> (u8, u64) {
    let report = heard.report.clone().after(heard.seconds_ago);
    let rank = match report.phase {
        Phase::Blocked => 0,
        Phase::RollingBack => 1,
        Phase::Drifted => 2,
        Phase::Emergency => 3,
        Phase::Booting => 4,
        Phase::Committed => 5,
    };
    (rank, report.window.map_or(u64::MAX, |window| window.seconds_left))
}

async fn fleet(client: &Client, args: &WatchArgs) -> Result<Vec<Heard>, Failure> {
    let mut heard: Vec<Heard> = client.fleet(None).await?.into_values().collect();
    if let Some(vcluster) = &args.vcluster {
        heard.retain(|heard| heard.report.vcluster.as_ref() == Some(vcluster));
    }
    heard.sort_by(|a, b| urgency(a).cmp(&urgency(b)).then_with(|| a.report.node.cmp(&b.report.node)));
    Ok(heard)
}

fn summary(heard: &[Heard]) -> String {
    let count = |phase: Phase| heard.iter().filter(|heard| heard.report.phase == phase).count();
    let mut parts = vec![format!("{} nodes", heard.len())];
    for phase in [Phase::Blocked, Phase::RollingBack, Phase::Drifted, Phase::Emergency, Phase::Booting] {
        if count(phase) > 0 {
            parts.push(format!("{} {}", count(phase), phase.word()));
        }
    }
    parts.join(", ")
}

/// Keys come one by one and unseen; as it was when dropped.
struct Screen(Option<Termios>);

impl Screen {
    fn begin() -> Result<Self, Failure> {
        let stdin = std::io::stdin();
        let before = if isatty(&stdin) { tcgetattr(&stdin).ok() } else { None };
        if let Some(before) = &before {
            use rustix::termios::LocalModes;
            let mut quiet = before.clone();
            quiet.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
            tcsetattr(&stdin, OptionalActions::Now, &quiet).ok();
        }
        // A page of its own, without a cursor.
        text::print("\x1b[?1049h\x1b[?25l")?;
        Ok(Self(before))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        text::print("\x1b[?25h\x1b[?1049l").ok();
        if let Some(before) = &self.0 {
            tcsetattr(std::io::stdin(), OptionalActions::Now, before).ok();
        }
    }
}

/// Tells when q is pressed.
fn quit_key() -> mpsc::Receiver<()> {
    let (pressed, quit) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut key = [0];
        while let Ok(1) = std::io::stdin().read(&mut key) {
            if matches!(key[0], b'q' | b'Q') {
                pressed.blocking_send(()).ok();
                return;
            }
        }
        // Without a keyboard nothing is ever pressed.
        std::thread::park();
    });
    quit
}

const fn colour(phase: Phase) -> &'static str {
    match phase {
        Phase::Blocked | Phase::RollingBack => "\x1b[31m",
        Phase::Drifted | Phase::Emergency => "\x1b[33m",
        Phase::Booting => "\x1b[36m",
        Phase::Committed => "",
    }
}

fn page(heard: &[Heard], problem: Option<&str>) -> String {
    let (rows, columns) = terminal_size();
    let (rows, columns) = (usize::from(rows), usize::from(columns));
    let mut out = String::from("\x1b[H");
    let mut line = |text: &str, style: &str| {
        let cut: String = text.chars().take(columns).collect();
        let end = if style.is_empty() { "" } else { "\x1b[0m" };
        let _ = write!(out, "{style}{cut}{end}\x1b[K\r\n");
    };
    line(&format!("muster watch: {}   q ends it", summary(heard)), "\x1b[1m");
    line(problem.unwrap_or_default(), "\x1b[31m");
    let table = text::table(&FLEET_HEADINGS, &fleet_rows(heard));
    let room = rows.saturating_sub(4);
    for (nth, row) in table.lines().enumerate().take(room) {
        let style = match nth {
            0 => "\x1b[4m",
            nth => heard.get(nth - 1).map_or("", |heard| colour(heard.report.phase)),
        };
        line(row, style);
    }
    let hidden = (heard.len() + 1).saturating_sub(room);
    if hidden > 0 {
        line(&format!("and {hidden} more"), "");
    }
    out.push_str("\x1b[J");
    out
}

pub(crate) async fn watch(args: WatchArgs, json: bool) -> Result<(), Failure> {
    let client = connect(&args.client).await?;
    if args.once {
        let heard = fleet(&client, &args).await?;
        let value = object!({ "nodes": heard.iter().map(json::heard).collect::<Vec<_>>() });
        return super::show(
            json,
            &value,
            &format!("{}\n{}", text::table(&FLEET_HEADINGS, &fleet_rows(&heard)), summary(&heard) + "\n"),
        );
    }
    if !json && std::io::stdout().is_terminal() {
        return live(&client, &args).await;
    }
    let mut last = None;
    loop {
        let heard = fleet(&client, &args).await?;
        // What only grows older is nothing new.
        let said: Vec<_> = heard.iter().map(|heard| (heard.report.word, heard.report.node.clone())).collect();
        if last.as_ref() != Some(&said) {
            let out = if json {
                format!("{}\n", object!({ "nodes": heard.iter().map(json::heard).collect::<Vec<_>>() }))
            } else {
                format!("{}\n", text::table(&FLEET_HEADINGS, &fleet_rows(&heard)))
            };
            text::print(&out)?;
            last = Some(said);
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn live(client: &Client, args: &WatchArgs) -> Result<(), Failure> {
    let screen = Screen::begin()?;
    let mut quit = quit_key();
    let mut heard = Vec::new();
    let mut since = tokio::time::Instant::now();
    loop {
        let problem = match fleet(client, args).await {
            Ok(new) => {
                heard = new;
                since = tokio::time::Instant::now();
                None
            }
            // The journal is away: what was heard last counts on.
            Err(failure) => Some(failure.message),
        };
        let aged: Vec<Heard> = heard
            .iter()
            .map(|heard| Heard { seconds_ago: heard.seconds_ago + since.elapsed().as_secs(), ..heard.clone() })
            .collect();
        text::print(&page(&aged, problem.as_deref()))?;
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            _ = quit.recv() => break,
            interrupted = tokio::signal::ctrl_c() => { interrupted?; break }
        }
    }
    drop(screen);
    Ok(())
}
