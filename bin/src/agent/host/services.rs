//! Services: systemd's units where systemd runs and the host is the machine itself, else processes kept alive.

use super::processes;
use super::supervisor::Supervisor;
use super::systemd;
use muster_core::agent::host::Observed;
use muster_core::agent::value::service::Service;
use rustix::fd::BorrowedFd;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

pub(super) enum Services {
    Units,
    Supervised(Supervisor),
}

impl Services {
    /// `own` is the agent's directory, `boot` the present boot.
    pub(super) fn open(confined: bool, own: &Path, boot: &str) -> Result<Self, String> {
        if !confined && systemd::is_there() {
            Ok(Self::Units)
        } else {
            Supervisor::open(&own.join("services"), boot).map(Self::Supervised)
        }
    }

    pub(super) fn observe(&mut self, names: &[&str]) -> BTreeMap<String, Observed> {
        match self {
            Self::Units => systemd::observe(names),
            Self::Supervised(supervisor) => {
                names.iter().map(|name| ((*name).to_owned(), supervisor.observe(name))).collect()
            }
        }
    }

    pub(super) fn check(&self, name: &str, wanted: Option<&str>) -> Result<(), String> {
        let wanted = wanted.map(parse).transpose()?;
        match self {
            Self::Units => systemd::check(name, wanted.as_ref()),
            Self::Supervised(supervisor) => wanted.map_or(Ok(()), |wanted| supervisor.check(name, &wanted)),
        }
    }

    /// Makes a service what is wanted; `None` is gone.
    pub(super) fn change(&mut self, name: &str, wanted: Option<&str>) -> Result<(), String> {
        let wanted = wanted.map(parse).transpose()?;
        match (self, wanted) {
            (Self::Units, wanted) => systemd::change(name, wanted.as_ref()),
            (Self::Supervised(supervisor), Some(wanted)) => supervisor.change(name, &wanted),
            (Self::Supervised(supervisor), None) => supervisor.forget(name),
        }
    }

    /// The processes of a service.
    pub(super) fn processes(&self, name: &str) -> Vec<u32> {
        match self {
            Self::Units => systemd::processes(name),
            Self::Supervised(supervisor) => {
                supervisor.process(name).map_or_else(Vec::new, |leader| processes::in_group(leader).collect())
            }
        }
    }

    /// What changes when a unit does; nothing for processes, whose end is reported by the kernel.
    pub(super) fn trace(&self, name: &str) -> Option<String> {
        match self {
            Self::Units => Some(systemd::trace(name)),
            Self::Supervised(_) => None,
        }
    }

    /// Takes notice of processes that ended, and starts again those that are due. Names the services that were touched.
    pub(super) fn tend(&mut self, now: Instant) -> Vec<String> {
        match self {
            Self::Units => Vec::new(),
            Self::Supervised(supervisor) => supervisor.tend(now),
        }
    }

    /// When there is something to tend even if nothing happens.
    pub(super) fn due(&self) -> Option<Instant> {
        match self {
            Self::Units => None,
            Self::Supervised(supervisor) => supervisor.due(),
        }
    }

    /// Readable when a process ended.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Units => Vec::new(),
            Self::Supervised(supervisor) => supervisor.descriptors(),
        }
    }
}

fn parse(value: &str) -> Result<Service, String> {
    Service::parse(value).map_err(|unfit| unfit.to_string())
}
