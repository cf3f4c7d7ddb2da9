//! A terminal with a person at it: a verb of the binary runs there, keys are typed, and what it shows is read.

use super::{MUSTER, eventually};
use pty_process::Size;
use pty_process::blocking::{Command, Pty, open};
use rustix::termios::{LocalModes, tcgetattr};
use std::io::{Read as _, Write as _};
use std::process::Child;
use std::sync::{Arc, Mutex};

pub struct Terminal {
    pty: Arc<Pty>,
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Runs a verb on a terminal of 40 rows and 120 columns.
    pub fn run(args: &[&str]) -> Self {
        let (pty, pts) = open().unwrap();
        pty.resize(Size::new(40, 120)).unwrap();
        let pty = Arc::new(pty);
        let mut command = Command::new(MUSTER).args(args).env("USER", "tester").env("TERM", "xterm");
        for name in ["SERVERS", "AUTHOR", "ROLE", "CONTEXT", "AGENT", "TLS_CA", "TLS_CERT", "TLS_KEY"] {
            command = command.env_remove(format!("MUSTER_{name}"));
        }
        let child = command.spawn(pts).unwrap();
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (from, to) = (pty.clone(), shown.clone());
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = (&*from).read(&mut piece) {
                to.lock().unwrap().extend_from_slice(&piece[..read]);
            }
        });
        Self { pty, child, shown }
    }

    /// Everything that was shown so far.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        eventually(&format!("{text:?} is shown"), || self.shown().contains(text).then_some(()));
    }

    pub fn keys(&self, keys: &str) {
        (&*self.pty).write_all(keys.as_bytes()).unwrap();
    }

    pub fn resize(&self, rows: u16, columns: u16) {
        self.pty.resize(Size::new(rows, columns)).unwrap();
    }

    /// Waits for the end; gives the exit code.
    #[track_caller]
    pub fn ended(&mut self) -> Option<i32> {
        let status = eventually("the verb ends", || self.child.try_wait().unwrap());
        status.code()
    }

    /// Whether the terminal shows what is typed and takes it line by line: as a person left it.
    pub fn is_as_before(&self) -> bool {
        tcgetattr(&*self.pty).unwrap().local_modes.contains(LocalModes::ECHO | LocalModes::ICANON)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
