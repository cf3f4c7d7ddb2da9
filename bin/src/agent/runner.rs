//! Commands and shells on the node: processes whose input and output travel.
//!
//! Nothing is begun here that the agent's machine has not had recorded. A command runs without a terminal; a shell gets one. Who
//! goes away takes what runs with them: its process group is hung up, then killed.

use bytes::Bytes;
use muster_net::agent::server::{RunIn, RunOut, Runner, Running, What};
use pty_process::Size;
use rustix::process::{Pid, Signal, kill_process_group};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// How much is read at once.
const PIECE: usize = 16 << 10;
/// Pieces that wait for a slow reader; beyond it the command waits.
const PIECES: usize = 16;
/// How long a hung-up process group may take to end.
const HANG_UP_PATIENCE: Duration = Duration::from_secs(2);

/// Runs commands in a directory.
#[derive(Clone, Debug)]
pub(super) struct NodeRunner {
    /// Where they begin: the agent's root.
    pub(super) directory: PathBuf,
}

impl Runner for NodeRunner {
    fn begin(&self, what: What) -> Running {
        let (input, inputs) = mpsc::channel(PIECES);
        let (outputs, output) = mpsc::channel(PIECES);
        let directory = self.directory.clone();
        tokio::spawn(async move {
            let ended = match what {
                What::Command(arguments) => command(&arguments, directory, inputs, &outputs).await,
                What::Shell { size, term } => shell(size, &term, directory, inputs, &outputs).await,
            };
            outputs.send(ended.unwrap_or_else(RunOut::Failed)).await.ok();
        });
        Running { input, output }
    }
}

/// The environment that what runs here gets: its own, not the agent's.
fn environment() -> [(&'static str, &'static str); 2] {
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("LANG", "C.UTF-8")]
}

fn how(status: ExitStatus) -> RunOut {
    match (status.code(), status.signal()) {
        (Some(code), _) => RunOut::Exit(code),
        (None, Some(signal)) => RunOut::Signal(signal),
        (None, None) => RunOut::Failed("it ended in a way the system does not tell".to_owned()),
    }
}

async fn command(
    arguments: &[Arc<str>],
    directory: PathBuf,
    mut inputs: mpsc::Receiver<RunIn>,
    outputs: &mpsc::Sender<RunOut>,
) -> Result<RunOut, String> {
    let (program, rest) = arguments.split_first().ok_or("there is no command")?;
    let mut child = Command::new(&**program)
        .args(rest.iter().map(|argument| &**argument))
        .current_dir(directory)
        .env_clear()
        .envs(environment())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{program} cannot be run: {error}"))?;
    let mut stdin = child.stdin.take();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr) = stdout.zip(stderr).ok_or("it has no output")?;
    let reading = async {
        tokio::join!(pass(stdout, outputs, RunOut::Stdout), pass(stderr, outputs, RunOut::Stderr));
    };
    let feeding = async {
        while let Some(piece) = inputs.recv().await {
            match piece {
                RunIn::Bytes(bytes) => {
                    if let Some(to) = &mut stdin
                        && to.write_all(&bytes).await.is_err()
                    {
                        stdin = None;
                    }
                }
                RunIn::End => stdin = None,
                RunIn::Size(..) => {}
            }
        }
    };
    let group = child.id();
    tokio::select! {
        () = async { reading.await; } => {}
        () = feeding => {
            hang_up(group, &mut child).await;
            return Ok(RunOut::Signal(Signal::HUP.as_raw()));
        }
    }
    child.wait().await.map(how).map_err(|error| error.to_string())
}

async fn pass(mut from: impl AsyncRead + Unpin, to: &mpsc::Sender<RunOut>, kind: fn(Bytes) -> RunOut) {
    let mut buffer = vec![0; PIECE];
    // A terminal whose last process is gone ends with an error instead of an end.
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if to.send(kind(Bytes::copy_from_slice(&buffer[..read]))).await.is_err() {
            return;
        }
    }
}

/// Ends a process group: politely, then not.
async fn hang_up(group: Option<u32>, child: &mut Child) {
    let Some(group) = group.and_then(|group| i32::try_from(group).ok()).and_then(Pid::from_raw) else { return };
    // A group that is gone needs no signal.
    kill_process_group(group, Signal::HUP).ok();
    if tokio::time::timeout(HANG_UP_PATIENCE, child.wait()).await.is_err() {
        kill_process_group(group, Signal::KILL).ok();
        child.wait().await.ok();
    }
}

async fn shell(
    size: (u16, u16),
    term: &str,
    directory: PathBuf,
    mut inputs: mpsc::Receiver<RunIn>,
    outputs: &mpsc::Sender<RunOut>,
) -> Result<RunOut, String> {
    let failed = |error: pty_process::Error| format!("there is no terminal to be had: {error}");
    let (pty, pts) = pty_process::open().map_err(failed)?;
    pty.resize(Size::new(size.0, size.1)).map_err(failed)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
    let term = if !term.is_empty() && term.len() <= 64 && term.chars().all(plain) { term } else { "dumb" };
    let program = ["/bin/bash", "/bin/sh"].into_iter().find(|program| std::path::Path::new(program).exists());
    let program = program.ok_or("there is no shell: expected /bin/bash or /bin/sh")?;
    let mut child = pty_process::Command::new(program)
        .current_dir(directory)
        .env_clear()
        .envs(environment())
        .env("TERM", term)
        .kill_on_drop(true)
        .spawn(pts)
        .map_err(|error| format!("{program} cannot be run: {error}"))?;
    let (from, mut to) = pty.into_split();
    let group = child.id();
    let reading = pass(from, outputs, RunOut::Stdout);
    let feeding = async {
        while let Some(piece) = inputs.recv().await {
            let written = match piece {
                RunIn::Bytes(bytes) => to.write_all(&bytes).await.is_ok(),
                // What a terminal takes for the end.
                RunIn::End => to.write_all(&[4]).await.is_ok(),
                RunIn::Size(rows, columns) => to.resize(Size::new(rows, columns)).is_ok(),
            };
            if !written {
                // The shell has ended; its output says so.
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = feeding => {
            hang_up(group, &mut child).await;
            return Ok(RunOut::Signal(Signal::HUP.as_raw()));
        }
    }
    child.wait().await.map(how).map_err(|error| error.to_string())
}
