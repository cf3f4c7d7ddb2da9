//! Which part of the machine a key belongs to.

use super::accounts::Accounts;
use super::consumers;
use super::gpus;
use super::links;
use super::mountinfo::Table;
use super::packages;
use super::root::Root;
use super::services::Services;
use super::{HostOptions, files, kernel, mounts};
use muster_core::agent::host::{BootId, Consumer, HostError, Observed};
use muster_core::agent::value;
use muster_core::journal::key::{Dimension, Key, Setting};
use std::collections::BTreeMap;
use std::path::PathBuf;

pub(super) struct Machine {
    pub(super) root: Root,
    pub(super) services: Services,
    boot: BootId,
    own: PathBuf,
}

impl Machine {
    pub(super) fn open(options: &HostOptions) -> Result<Self, String> {
        std::fs::create_dir_all(&options.own)
            .map_err(|error| format!("the agent's directory {} cannot be made: {error}", options.own.display()))?;
        let root = Root::open(options.root.as_deref(), &options.own, &options.excluded)?;
        let boot = kernel::boot_id(&root)?;
        let services = Services::open(root.is_confined(), &options.own, &boot)?;
        Ok(Self { root, services, boot: BootId(boot.into()), own: options.own.clone() })
    }

    /// Read again every time: a directory can be emptied under a running agent, and then its services are those of a former boot.
    pub(super) fn boot_id(&mut self) -> BootId {
        match kernel::boot_id(&self.root) {
            Ok(boot) if boot != *self.boot.0 => {
                match Services::open(self.root.is_confined(), &self.own, &boot) {
                    Ok(services) => self.services = services,
                    Err(why) => tracing::error!(why, "the services of the former boot could not be ended"),
                }
                self.boot = BootId(boot.into());
            }
            Ok(_) => {}
            Err(why) => tracing::warn!(why, "the boot id cannot be read; it is taken to be the same"),
        }
        self.boot.clone()
    }

    pub(super) fn observe(&mut self, keys: &[Key]) -> BTreeMap<Key, Observed> {
        let has = |dimension| keys.iter().any(|key| key.dimension() == Some(dimension));
        let accounts = has(Dimension::Files).then(|| Accounts::read(&self.root));
        let table = has(Dimension::Mounts).then(Table::read);
        let names: Vec<&str> =
            keys.iter().filter(|key| key.dimension() == Some(Dimension::Services)).map(value::name).collect();
        let services = if names.is_empty() { BTreeMap::new() } else { self.services.observe(&names) };
        let network = has(Dimension::Network).then(|| links::read(&self.root));
        let installed = has(Dimension::Packages).then(|| packages::read(&self.root));
        let gpus = has(Dimension::Gpu).then(|| gpus::read(&self.root));
        let unseen = |why: &str| Observed::Unseen(why.into());
        let one = |key: &Key| {
            if let Err(unfit) = value::check_key(key) {
                return unseen(&unfit.to_string());
            }
            let path = || value::path(key).unwrap_or_default();
            let found = match key.dimension() {
                Some(Dimension::Kernel) => Some(kernel::observe(&self.root, key)),
                Some(Dimension::Files) => {
                    accounts.as_ref().map(|accounts| files::observe(&self.root, accounts, &path()))
                }
                Some(Dimension::Mounts) => table.as_ref().map(|table| mounts::observe(&self.root, table, &path())),
                Some(Dimension::Services) => services.get(value::name(key)).cloned(),
                Some(Dimension::Network) => network.as_ref().map(|network| links::observe(network, value::name(key))),
                Some(Dimension::Packages) => {
                    installed.as_ref().map(|installed| packages::observe(installed, value::name(key)))
                }
                Some(Dimension::Gpu) => gpus.as_ref().map(|gpus| gpus::observe(gpus, value::name(key))),
                None => None,
            };
            found.unwrap_or_else(|| unseen("it is nothing of a machine's"))
        };
        keys.iter().map(|key| (key.clone(), one(key))).collect()
    }

    pub(super) fn check(&mut self, key: &Key, setting: &Setting) -> Result<Setting, HostError> {
        let say = |problem: String| HostError { key: key.clone(), problem: problem.into() };
        let canonical = if kernel::may_be_absent(&self.root, key) && *setting == Setting::Absent {
            value::check_key(key).map(|()| Setting::Absent)
        } else {
            value::check_setting(key, setting)
        };
        let canonical = canonical.map_err(|unfit| say(unfit.to_string()))?;
        let wanted = match &canonical {
            Setting::Value(value) => Some(&**value),
            Setting::Absent | Setting::Unset => None,
        };
        let path = || value::path(key).unwrap_or_default();
        let result = match key.dimension() {
            Some(Dimension::Kernel) => kernel::check(&self.root, key),
            Some(Dimension::Files) => files::check(&self.root, &path(), wanted),
            Some(Dimension::Mounts) => mounts::check(&self.root, &path(), wanted),
            Some(Dimension::Services) => self.services.check(value::name(key), wanted),
            Some(Dimension::Network) => links::check(&self.root, value::name(key)),
            Some(Dimension::Packages) => packages::check(&self.root),
            Some(Dimension::Gpu) => Err(gpus::ONLY_OBSERVED.to_owned()),
            None => Err("it is nothing of a machine's".to_owned()),
        };
        result.map(|()| canonical).map_err(say)
    }

    pub(super) fn change(&mut self, key: &Key, setting: &Setting) -> Result<(), HostError> {
        let canonical = self.check(key, setting)?;
        let path = || value::path(key).unwrap_or_default();
        let name = value::name(key);
        let result = match (key.dimension(), &canonical) {
            (_, Setting::Unset) => Err("a key is made what some scope says; unset says nothing".to_owned()),
            (Some(Dimension::Kernel), Setting::Value(value)) => kernel::change(&self.root, key, value),
            (Some(Dimension::Kernel), Setting::Absent) => kernel::remove(&self.root, key),
            (Some(Dimension::Files), Setting::Value(value)) => files::change(&self.root, &path(), value),
            (Some(Dimension::Files), Setting::Absent) => files::remove(&self.root, &path()),
            (Some(Dimension::Mounts), Setting::Value(value)) => mounts::change(&self.root, &path(), value),
            (Some(Dimension::Mounts), Setting::Absent) => mounts::remove(&self.root, &path()),
            (Some(Dimension::Services), Setting::Value(value)) => self.services.change(name, Some(value)),
            (Some(Dimension::Services), Setting::Absent) => self.services.change(name, None),
            (Some(Dimension::Network), Setting::Value(value)) => links::change(name, Some(value)),
            (Some(Dimension::Network), Setting::Absent) => links::change(name, None),
            (Some(Dimension::Packages), Setting::Value(value)) => packages::install(name, value),
            (Some(Dimension::Packages), Setting::Absent) => packages::remove(name),
            (Some(Dimension::Gpu) | None, _) => Err(gpus::ONLY_OBSERVED.to_owned()),
        };
        result.map_err(|problem| HostError { key: key.clone(), problem: problem.into() })
    }

    pub(super) fn consumers(&mut self, keys: &[Key]) -> Vec<Consumer> {
        consumers::of(self, keys)
    }
}
