//! `muster exec` and `muster shell`: something runs on a node, recorded before it begins.
//!
//! A command's exit code becomes this process's own; a signal becomes 128 and its number, as a shell says it.

use super::agents::{find, refused_failure, unknown};
use crate::args::{ExecArgs, ShellArgs};
use crate::exit::{Failure, request_id_text};
use bytes::Bytes;
use muster_net::agent::client::{RunBegan, RunIn, RunOut, RunOutput, What, input};
use muster_net::proto::agent::v1::RunInput;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use serde_json::json as object;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// What is read of standard input at once.
const PIECE: usize = 16 << 10;

/// What ran and how it ended, when this process has nothing more to say.
fn ended(code: i32) -> Failure {
    let code = u8::try_from(code & 0xff).unwrap_or(1);
    Failure { code, outcome: "exited", ..Failure::error("", "") }.quiet()
}

type Input = mpsc::Sender<RunInput>;

async fn begin(
    agent: &muster_net::agent::client::AgentClient,
    what: What,
) -> Result<(Option<u64>, Input, RunOutput), Failure> {
    match agent.run(what).await? {
        RunBegan::Runs { sequence, input, output } => Ok((sequence.map(|sequence| sequence.0), input, output)),
        RunBegan::Refused(refused) => Err(refused_failure(&refused)),
        RunBegan::Unknown(request) => Err(unknown(&request_id_text(request))),
    }
}

/// Passes standard input on, from a thread of its own: reading it blocks.
fn feed(to: Input) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; PIECE];
        loop {
            let piece = match std::io::stdin().read(&mut buffer) {
                Ok(0) | Err(_) => RunIn::End,
                Ok(read) => RunIn::Bytes(Bytes::copy_from_slice(&buffer[..read])),
            };
            let over = piece == RunIn::End;
            if to.blocking_send(input(piece)).is_err() || over {
                return;
            }
        }
    });
}

fn put(to_stderr: bool, bytes: &[u8]) -> std::io::Result<()> {
    if to_stderr {
        let mut err = std::io::stderr().lock();
        err.write_all(bytes)?;
        return err.flush();
    }
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

pub(crate) async fn exec(args: ExecArgs, json: bool) -> Result<(), Failure> {
    let agent = find(&args.agent, &args.node).await?;
    let arguments: Vec<Arc<str>> = args.command.iter().map(|argument| Arc::from(argument.as_str())).collect();
    let (sequence, to, mut output) = begin(&agent, What::Command(arguments)).await?;
    // Held until the end: without its input the command is ended.
    let _held = to.clone();
    if args.stdin {
        feed(to);
    } else {
        to.send(input(RunIn::End)).await.ok();
    }
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        let (code, signal) = match output.next().await {
            RunOut::Stdout(bytes) if json => {
                stdout.extend_from_slice(&bytes);
                continue;
            }
            RunOut::Stderr(bytes) if json => {
                stderr.extend_from_slice(&bytes);
                continue;
            }
            RunOut::Stdout(bytes) => {
                put(false, &bytes)?;
                continue;
            }
            RunOut::Stderr(bytes) => {
                put(true, &bytes)?;
                continue;
            }
            RunOut::Exit(code) => (code, None),
            RunOut::Signal(signal) => (128 + signal, Some(signal)),
            RunOut::Failed(problem) => {
                return Err(Failure::error(format!("it is recorded, and did not run to its end: {problem}"), ""));
            }
        };
        if json {
            let value = object!({
                "outcome": "exited",
                "node": args.node.as_str(),
                "sequence": sequence,
                "exit_status": code,
                "signal": signal,
                "stdout": String::from_utf8_lossy(&stdout),
                "stderr": String::from_utf8_lossy(&stderr),
            });
            crate::text::print(&format!("{value}\n"))?;
        }
        return if code == 0 { Ok(()) } else { Err(ended(code)) };
    }
}

/// A terminal that passes every key on; as it was when dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn begin() -> Self {
        let stdin = std::io::stdin();
        if !isatty(&stdin) {
            return Self(None);
        }
        let Ok(before) = tcgetattr(&stdin) else { return Self(None) };
        let mut raw = before.clone();
        raw.make_raw();
        match tcsetattr(&stdin, OptionalActions::Now, &raw) {
            Ok(()) => Self(Some(before)),
            Err(_) => Self(None),
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // A terminal that is gone needs no restoring.
            tcsetattr(std::io::stdin(), OptionalActions::Now, before).ok();
        }
    }
}

/// The terminal's size: rows and columns.
pub(crate) fn terminal_size() -> (u16, u16) {
    match tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
        Ok(_) | Err(_) => (24, 80),
    }
}

pub(crate) async fn shell(args: ShellArgs) -> Result<(), Failure> {
    let agent = find(&args.agent, &args.node).await?;
    let term = std::env::var("TERM").unwrap_or_default();
    let (sequence, to, mut output) = begin(&agent, What::Shell { size: terminal_size(), term }).await?;
    let recorded = sequence
        .map_or_else(|| "recorded on the node".to_owned(), |sequence| format!("recorded as sequence {sequence}"));
    eprintln!("shell on {}, {recorded}; exit ends it", args.node);
    let raw = Raw::begin();
    feed(to.clone());
    let mut resized = signal(SignalKind::window_change())?;
    let code = loop {
        tokio::select! {
            piece = output.next() => match piece {
                RunOut::Stdout(bytes) => put(false, &bytes)?,
                RunOut::Stderr(bytes) => put(true, &bytes)?,
                RunOut::Exit(code) => break Ok(code),
                RunOut::Signal(signal) => break Ok(128 + signal),
                RunOut::Failed(problem) => break Err(problem),
            },
            _ = resized.recv() => {
                let (rows, columns) = terminal_size();
                to.send(input(RunIn::Size(rows, columns))).await.ok();
            }
        }
    };
    drop(raw);
    match code {
        Ok(0) => Ok(()),
        Ok(code) => Err(ended(code)),
        Err(problem) => Err(Failure::error(format!("the shell was lost: {problem}"), "its session is recorded")),
    }
}
