//! Services as processes the agent keeps alive, where there is no systemd or the host is confined to a directory.
//!
//! A service outlives the agent: its process leads a group of its own, and a note in the agent's directory says which process
//! it is (number and start time) and whether it is to be kept alive. The note is written before the process is started; the
//! process carries the note's path in its environment, so that one whose number was never noted is found again.
//!
//! A process that fails is started again, after 0.1 s at first and up to 30 s; after three failures in a row it counts as
//! stopped in between. One that ends well, or by one of the signals with which people stop things, has been stopped by
//! somebody: it stays so, which is drift for the agent to see.
//!
//! A new boot has no processes of the one before: what is left of it (in a directory that was emptied) is ended.

use super::processes::{self, Life};
use muster_core::agent::host::Observed;
use muster_core::agent::value::service::{Service, command_text};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The variable that leads from a process to its note.
const NOTE: &str = "MUSTER_SERVICE_NOTE";
/// How long a process may take to end before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);
/// A process that fails within this time was not started.
const SETTLING: Duration = Duration::from_millis(150);
/// A process that ran so long has been well.
const WELL: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// So many failures in a row, and the service counts as stopped while it waits.
const FAILURES_MAX: u32 = 3;
/// What a service prints is kept up to this length.
const LOG_BYTES_MAX: u64 = 1 << 20;

pub(super) struct Supervisor {
    dir: PathBuf,
    boot: String,
    services: BTreeMap<String, Supervised>,
}

struct Supervised {
    command: Vec<String>,
    state: State,
    failures: u32,
}

enum State {
    Stopped,
    Runs(Process),
    /// Failed, and is started again then.
    Waits(Instant),
}

struct Process {
    life: Life,
    /// Readable when it has ended.
    watch: OwnedFd,
    /// Only if this run of the agent started it.
    child: Option<Child>,
    since: Instant,
}

impl Process {
    fn ended(&self) -> bool {
        is_readable(self.watch.as_fd(), Duration::ZERO)
    }
}

fn is_readable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let timeout = Timespec::try_from(timeout).unwrap_or_default();
    matches!(poll(&mut fds, Some(&timeout)), Ok(1))
}

impl Supervisor {
    /// Takes up the services that notes speak of.
    pub(super) fn open(dir: &Path, boot: &str) -> Result<Self, String> {
        fs::create_dir_all(dir).map_err(|error| format!("the directory {} cannot be made: {error}", dir.display()))?;
        let mut supervisor = Self { dir: dir.to_owned(), boot: boot.to_owned(), services: BTreeMap::new() };
        let listing = fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let names =
            listing.filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".json")?.to_owned()));
        for name in names.collect::<Vec<_>>() {
            supervisor.take_up(&name);
        }
        Ok(supervisor)
    }

    fn note_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    fn take_up(&mut self, name: &str) {
        let path = self.note_path(name);
        let note: Option<Value> = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let found = note.as_ref().and_then(|note| {
            let life = Life { pid: u32::try_from(note["pid"].as_u64()?).ok()?, started: note["started"].as_u64()? };
            processes::lives(life).then_some(life)
        });
        let life = found.or_else(|| self.lost_process(name));
        let words = |note: &Value| -> Option<Vec<String>> {
            note["command"].as_array()?.iter().map(|word| word.as_str().map(str::to_owned)).collect()
        };
        let Some((note, command)) = note.as_ref().and_then(|note| Some((note, words(note)?))) else {
            tracing::warn!(path = %path.display(), "a service's note is damaged and was put away; its process, if any, was ended");
            end(life, None);
            let _ = fs::remove_file(&path);
            return;
        };
        let keep = note["keep_alive"] == true;
        if note["boot"] != self.boot.as_str() || !keep {
            end(life, None);
            if note["boot"] != self.boot.as_str() {
                let _ = fs::remove_file(&path);
                return;
            }
        }
        let state = match life.filter(|_| keep).and_then(process) {
            Some(process) => State::Runs(process),
            // It ended while nobody was looking, so how is not known: it is started again.
            None if keep => State::Waits(Instant::now()),
            None => State::Stopped,
        };
        self.services.insert(name.to_owned(), Supervised { command, state, failures: 0 });
    }

    /// A process that was started, but whose number was not noted any more.
    fn lost_process(&self, name: &str) -> Option<Life> {
        let note = self.note_path(name).display().to_string();
        let leads = |pid: &u32| processes::stat(*pid).is_some_and(|stat| stat.group == *pid);
        let pid = processes::all()
            .into_iter()
            .filter(leads)
            .find(|pid| processes::environment(*pid, NOTE).as_ref() == Some(&note))?;
        processes::stat(pid).map(|stat| stat.life)
    }

    fn write_note(&self, name: &str, command: &[String], keep: bool, life: Option<Life>) -> Result<(), String> {
        let note = json!({
            "boot": self.boot,
            "command": command,
            "keep_alive": keep,
            "pid": life.map(|life| life.pid),
            "started": life.map(|life| life.started),
        });
        let path = self.note_path(name);
        let beside = self.dir.join(format!("{name}.json.new"));
        let write = || {
            let mut file = File::create(&beside)?;
            file.write_all(note.to_string().as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|error| format!("{} cannot be written: {error}", path.display()))
    }

    pub(super) fn observe(&self, name: &str) -> Observed {
        let Some(service) = self.services.get(name) else { return Observed::Absent };
        let running = match &service.state {
            State::Runs(process) => !process.ended(),
            State::Waits(_) => service.failures < FAILURES_MAX,
            State::Stopped => false,
        };
        let command = (!service.command.is_empty()).then(|| service.command.clone());
        Observed::Value(Service { running, enabled: None, command }.to_string().into())
    }

    /// The process that leads a service.
    pub(super) fn process(&self, name: &str) -> Option<u32> {
        match &self.services.get(name)?.state {
            State::Runs(process) if !process.ended() => Some(process.life.pid),
            _ => None,
        }
    }

    pub(super) fn check(&self, name: &str, wanted: &Service) -> Result<(), String> {
        if wanted.enabled.is_some() {
            return Err(
                "there is no systemd here: a service is a process that the agent starts at every boot; leave out \
                 enabled and disabled"
                    .to_owned(),
            );
        }
        match (&wanted.command, self.services.get(name)) {
            (Some(command), _) => is_program(&command[0]),
            (None, known) if wanted.running && known.is_none_or(|known| known.command.is_empty()) => Err(format!(
                "there is no systemd here, and nothing says what {name} runs; add command=/path/of/program ARGUMENTS"
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn change(&mut self, name: &str, wanted: &Service) -> Result<(), String> {
        self.check(name, wanted)?;
        let before = self.services.remove(name);
        let old_command = before.as_ref().map_or_else(Vec::new, |before| before.command.clone());
        let command = wanted.command.clone().unwrap_or_else(|| old_command.clone());
        if wanted.running
            && let Some(Supervised { state: State::Runs(process), command: same, .. }) = &before
            && *same == command
            && !process.ended()
        {
            self.services.extend(before.map(|before| (name.to_owned(), before)));
            return Ok(());
        }
        let ran = matches!(before.as_ref().map(|before| &before.state), Some(State::Runs(_) | State::Waits(_)));
        if let Err(why) = self.write_note(name, &command, wanted.running, None) {
            self.services.extend(before.map(|before| (name.to_owned(), before)));
            return Err(why);
        }
        if let Some(Supervised { state: State::Runs(process), .. }) = before {
            end(Some(process.life), process.child);
        }
        let mut service = Supervised { command, state: State::Stopped, failures: 0 };
        let mut result = Ok(());
        if wanted.running {
            match self.start_and_settle(name, &service.command) {
                Ok(process) => service.state = State::Runs(process),
                Err(why) => {
                    result = Err(why);
                    service.command = old_command;
                    if ran {
                        service.state = self
                            .start(name, &service.command)
                            .map_or_else(|_| State::Waits(Instant::now() + PAUSE_MIN), State::Runs);
                    } else {
                        self.write_note(name, &service.command, false, None)?;
                    }
                }
            }
        }
        self.services.insert(name.to_owned(), service);
        result
    }

    /// Ends a service and forgets it.
    pub(super) fn forget(&mut self, name: &str) -> Result<(), String> {
        let Some(service) = self.services.get_mut(name) else { return Ok(()) };
        let state = std::mem::replace(&mut service.state, State::Stopped);
        let command = service.command.clone();
        self.write_note(name, &command, false, None)?;
        if let State::Runs(process) = state {
            end(Some(process.life), process.child);
        }
        let path = self.note_path(name);
        fs::remove_file(&path).map_err(|error| format!("{} cannot be removed: {error}", path.display()))?;
        let _ = fs::remove_file(self.log_path(name));
        self.services.remove(name);
        Ok(())
    }

    /// Starts a process and notes its number.
    fn start(&self, name: &str, command: &[String]) -> Result<Process, String> {
        let shown = command_text(command);
        let problem = |error: std::io::Error| format!("{shown} cannot be started: {error}");
        self.write_note(name, command, true, None)?;
        let log = OpenOptions::new().create(true).append(true).open(self.log_path(name)).map_err(problem)?;
        if log.metadata().map_err(problem)?.len() > LOG_BYTES_MAX {
            log.set_len(0).map_err(problem)?;
        }
        let errors = log.try_clone().map_err(problem)?;
        let child = Command::new(&command[0])
            .args(&command[1..])
            .env(NOTE, self.note_path(name))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(problem)?;
        let pid = child.id();
        let started = |problem: &str| format!("{shown} was started as {pid}, and {problem}");
        let life = Life { pid, started: start_time(pid).ok_or_else(|| started("the kernel does not show it"))? };
        let watch = Pid::from_raw(pid.cast_signed()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let watch = watch.ok_or_else(|| started("cannot be watched"))?;
        let process = Process { life, watch, child: Some(child), since: Instant::now() };
        if let Err(why) = self.write_note(name, command, true, Some(life)) {
            end(Some(life), process.child);
            return Err(why);
        }
        Ok(process)
    }

    /// Starts a process; one that fails at once was not started, and the end of what it printed says why.
    fn start_and_settle(&self, name: &str, command: &[String]) -> Result<Process, String> {
        let printed_before = fs::metadata(self.log_path(name)).map_or(0, |metadata| metadata.len());
        let mut process = self.start(name, command)?;
        if is_readable(process.watch.as_fd(), SETTLING)
            && let Some(status) = process.child.as_mut().and_then(|child| child.wait().ok())
        {
            let log = self.log_path(name);
            let words = last_words(&log, printed_before);
            return Err(format!("{} ended at once ({status}){words}; see {}", command_text(command), log.display()));
        }
        Ok(process)
    }

    pub(super) fn tend(&mut self, now: Instant) -> Vec<String> {
        let mut touched = Vec::new();
        let names: Vec<String> = self.services.keys().cloned().collect();
        for name in names {
            let Some(service) = self.services.get_mut(&name) else { continue };
            match &mut service.state {
                State::Runs(process) if process.ended() => {
                    let status = process.child.as_mut().and_then(|child| child.wait().ok());
                    let well = now.saturating_duration_since(process.since) >= WELL;
                    if status.is_some_and(was_stopped) {
                        service.state = State::Stopped;
                        let command = service.command.clone();
                        if let Err(why) = self.write_note(&name, &command, false, None) {
                            tracing::warn!(
                                service = name,
                                why,
                                "a service was stopped by somebody, and this could not be noted"
                            );
                        }
                    } else {
                        service.failures = if well { 1 } else { service.failures + 1 };
                        let pause = PAUSE_MIN * 2_u32.saturating_pow((service.failures - 1).min(16));
                        service.state = State::Waits(now + pause.min(PAUSE_MAX));
                        let how = status.map_or_else(|| "nobody saw how".to_owned(), |status| status.to_string());
                        tracing::warn!(service = name, how, "a service failed and will be started again");
                    }
                    touched.push(name);
                }
                State::Waits(at) if *at <= now => {
                    let command = service.command.clone();
                    let started = self.start(&name, &command);
                    if let Some(service) = self.services.get_mut(&name) {
                        match started {
                            Ok(process) => service.state = State::Runs(process),
                            Err(why) => {
                                tracing::warn!(service = name, why, "a service could not be started again");
                                service.failures += 1;
                                service.state = State::Waits(now + PAUSE_MAX);
                            }
                        }
                    }
                    touched.push(name);
                }
                State::Runs(_) | State::Waits(_) | State::Stopped => {}
            }
        }
        touched
    }

    pub(super) fn due(&self) -> Option<Instant> {
        let waits = |service: &Supervised| match service.state {
            State::Waits(at) => Some(at),
            State::Runs(_) | State::Stopped => None,
        };
        self.services.values().filter_map(waits).min()
    }

    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        fn watch(service: &Supervised) -> Option<BorrowedFd<'_>> {
            match &service.state {
                State::Runs(process) => Some(process.watch.as_fd()),
                State::Waits(_) | State::Stopped => None,
            }
        }
        self.services.values().filter_map(watch).collect()
    }
}

/// A process that an earlier run of the agent started.
fn process(life: Life) -> Option<Process> {
    let watch = pidfd_open(Pid::from_raw(life.pid.cast_signed())?, PidfdFlags::empty()).ok()?;
    // The number may have gone to another process before the descriptor was opened, not after.
    processes::lives(life).then(|| Process { life, watch, child: None, since: Instant::now() })
}

/// Even a process that has ended already has a start time, until it is waited for.
fn start_time(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Ends a process and its group: asked first, killed when patience ends.
fn end(life: Option<Life>, child: Option<Child>) {
    let Some(life) = life.filter(|life| processes::lives(*life)) else {
        drop(child.map(|mut child| child.wait()));
        return;
    };
    let Some(pid) = Pid::from_raw(life.pid.cast_signed()) else { return };
    let watch = pidfd_open(pid, PidfdFlags::empty());
    let _ = kill_process_group(pid, Signal::TERM);
    let ended = watch.as_ref().is_ok_and(|watch| is_readable(watch.as_fd(), PATIENCE));
    if !ended {
        tracing::warn!(pid = life.pid, "a service did not end when asked and was killed");
    }
    // Whatever of its group is left goes too.
    let _ = kill_process_group(pid, Signal::KILL);
    if let Ok(watch) = &watch {
        is_readable(watch.as_fd(), PATIENCE);
    }
    drop(child.map(|mut child| child.wait()));
    let began = Instant::now();
    while began.elapsed() < PATIENCE && processes::in_group(life.pid).next().is_some() {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether somebody stopped it, rather than that it failed.
fn was_stopped(status: ExitStatus) -> bool {
    let polite = [Signal::TERM, Signal::INT, Signal::HUP, Signal::PIPE].map(Signal::as_raw);
    status.success() || status.signal().is_some_and(|signal| polite.contains(&signal))
}

fn is_program(path: &str) -> Result<(), String> {
    let metadata = fs::metadata(path).map_err(|error| format!("the program {path}: {error}"))?;
    let executable =
        metadata.is_file() && std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o111 != 0;
    if executable { Ok(()) } else { Err(format!("{path} is not a program that can be run")) }
}

fn last_words(log: &Path, from: u64) -> String {
    let mut text = String::new();
    let read = File::open(log).and_then(|mut file| {
        file.seek(SeekFrom::Start(from))?;
        file.take(64 * 1024).read_to_string(&mut text)
    });
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    match (read, lines.last()) {
        (Ok(_), Some(line)) => format!(": {}", line.trim()),
        _ => String::new(),
    }
}
