//! The host's thread: answers requests, keeps services alive, and looks for changes.
//!
//! It sleeps in one `poll` over everything that can wake it, and wakes by itself once a second only while something is
//! watched that the kernel does not report, or while a service waits to be started again.

use super::machine::Machine;
use super::watcher::Watcher;
use super::{Changed, Request};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

/// Wakes the thread.
pub(super) struct Bell(Arc<OwnedFd>);

impl Bell {
    pub(super) fn ring(&self) {
        // It can only fail when it rang four billion times unheard.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

pub(super) struct Worker {
    machine: Machine,
    watcher: Watcher,
    inbox: Receiver<Request>,
    bell: Arc<OwnedFd>,
    changed: Arc<Changed>,
}

impl Worker {
    pub(super) fn new(
        machine: Machine,
        inbox: Receiver<Request>,
        changed: Arc<Changed>,
    ) -> Result<(Bell, Self), String> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| format!("no eventfd for the host: {error}"))?;
        let bell = Arc::new(bell);
        let watcher = Watcher::new()?;
        Ok((Bell(Arc::clone(&bell)), Self { machine, watcher, inbox, bell, changed }))
    }

    pub(super) fn run(mut self) {
        loop {
            loop {
                match self.inbox.try_recv() {
                    Ok(request) => self.answer(request),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            let now = Instant::now();
            self.tend();
            self.changed.add(self.watcher.look(&mut self.machine, now));
            let next = [self.machine.services.due(), self.watcher.due()].into_iter().flatten().min();
            self.wait(next.map(|at| at.saturating_duration_since(Instant::now())));
        }
    }

    fn tend(&mut self) {
        let touched = self.machine.services.tend(Instant::now());
        self.changed.add(self.watcher.of_services(&touched));
    }

    fn answer(&mut self, request: Request) {
        // Whoever asked may have gone; the work is done all the same.
        match request {
            Request::BootId(answer) => drop(answer.send(self.machine.boot_id())),
            Request::Observe(keys, answer) => {
                // A service that ended a moment ago is one that is started again, or one that somebody stopped.
                self.tend();
                drop(answer.send(self.machine.observe(&keys)));
            }
            Request::Change(key, setting, answer) => drop(answer.send(self.machine.change(&key, &setting))),
            Request::Check(key, setting, answer) => drop(answer.send(self.machine.check(&key, &setting))),
            Request::Consumers(keys, answer) => drop(answer.send(self.machine.consumers(&keys))),
            Request::Watch(keys) => self.changed.add(self.watcher.watch(&mut self.machine, keys)),
        }
    }

    /// Sleeps until something happens.
    fn wait(&self, timeout: Option<Duration>) {
        let mut fds = vec![PollFd::new(&*self.bell, PollFlags::IN)];
        for (fd, flags) in self.watcher.descriptors() {
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        for fd in self.machine.services.descriptors() {
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        }
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        // An interrupted wait is a short one.
        let _ = poll(&mut fds, timeout.as_ref());
        let _ = rustix::io::read(&*self.bell, &mut [0_u8; 8]);
    }
}
