//! The processes of a `dev` cluster: configuration files, `muster server` children, their end.
//!
//! A child's standard input is a pipe that this process holds: when it closes, for whatever reason, the child stops by
//! itself, so nothing is left running. Children are their own process groups: a Ctrl-C reaches only this process, which then
//! stops them in order.

use super::child;
use crate::config::Config;
use crate::exit::Failure;
use crate::lifecycle;
use crate::verbs::certs;
use crate::verbs::cluster::{leader, statuses};
use muster_core::service::Credential;
use muster_net::client::{Client, Options};
use muster_net::tls::authority::Authority;
use muster_net::tls::{KeyFiles, Tls};
use serde_json::json as object;
use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::process::Child;

/// How long a replica may take to come up, or the cluster to be complete.
const PATIENCE: Duration = Duration::from_secs(30);

struct Replica {
    name: &'static str,
    file: PathBuf,
    config: Config,
    child: Option<Child>,
}

pub(super) struct Cluster {
    dir: PathBuf,
    replicas: Vec<Replica>,
    /// The admin's keys.
    tls: Tls,
}

/// How long the certificates of `dev` count: it makes them anew whenever it starts.
const CERTIFICATE_LIFE: Duration = certs::days(90);

impl Cluster {
    /// Writes the configuration files, or reads those that an earlier run left there.
    pub(super) fn prepare(dir: &Path) -> Result<Self, Failure> {
        let mut ports = free_ports(2 * super::REPLICAS.len())?.into_iter();
        let certs = dir.join("certs");
        let authority = if certs.join("ca.pem").exists() {
            Authority::open(&certs)?
        } else {
            Authority::init(&certs, "dev", certs::days(3_650))?
        };
        let mut replicas = Vec::new();
        let mut first = None;
        for name in super::REPLICAS {
            let file = dir.join(format!("{name}.toml"));
            let keys = certify(&authority, "replica", name)?;
            let mut next = || ports.next().expect("two ports were taken for each replica");
            let (peer, client) = (next(), next());
            if !file.exists() {
                let quoted = |path: &Path| toml::Value::String(path.display().to_string());
                let data = quoted(&dir.join(name));
                let (ca, certificate, key) = (quoted(&keys.ca), quoted(&keys.certificate), quoted(&keys.key));
                let bootstrap = first.map_or(String::new(), |port: u16| {
                    format!(
                        "\n[raft.bootstrap]\nnodes = [{{ id = \"{}\", addr = \"127.0.0.1:{port}\" }}]\n",
                        super::REPLICAS[0]
                    )
                });
                let text = format!(
                    "[raft]\nnode_id = \"{name}\"\ndata_dir = {data}\nraft_port = {peer}\n{bootstrap}\n\
                     [client]\nport = {client}\n\n\
                     [security]\nca = {ca}\ncertificate = {certificate}\nkey = {key}\n"
                );
                std::fs::write(&file, text)
                    .map_err(|error| Failure::error(format!("{} cannot be written: {error}", file.display()), ""))?;
            }
            let config = Config::read(&file, false)?;
            first = first.or(Some(config.client_listen.port()));
            replicas.push(Replica { name, file, config, child: None });
        }
        let keys = certify(&authority, "admin", "dev")?;
        let cluster = Self { dir: dir.to_owned(), replicas, tls: Tls::load(keys.clone())? };
        cluster.write_context(&keys)?;
        Ok(cluster)
    }

    /// Writes down whom to talk to and as who, for every verb in another terminal.
    fn write_context(&self, keys: &KeyFiles) -> Result<(), Failure> {
        let file = self.context();
        let text = |value: &dyn std::fmt::Display| toml::Value::String(value.to_string());
        let servers: Vec<_> = self.addresses().iter().map(|address| text(address).to_string()).collect();
        let context = format!(
            "servers = [{}]\nca = {}\ncertificate = {}\nkey = {}\n",
            servers.join(", "),
            text(&keys.ca.display()),
            text(&keys.certificate.display()),
            text(&keys.key.display()),
        );
        std::fs::write(&file, context)
            .map_err(|error| Failure::error(format!("{} cannot be written: {error}", file.display()), ""))
    }

    /// The context file for verbs.
    pub(super) fn context(&self) -> PathBuf {
        self.dir.join("context.toml")
    }

    /// Makes a certificate, or renews the one that an earlier run left.
    pub(super) fn certify(&self, role: &str, name: &str) -> Result<KeyFiles, Failure> {
        certify(&Authority::open(&self.dir.join("certs"))?, role, name)
    }

    /// How its clients behave.
    pub(super) fn options(&self) -> Options {
        Options { tls: Some(self.tls.clone()), ..Options::default() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn addresses(&self) -> Vec<String> {
        self.replicas.iter().map(|replica| replica.config.client_address.clone()).collect()
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    pub(super) async fn client(&self) -> Result<Client, Failure> {
        Ok(Client::connect(self.addresses(), self.options()).await?)
    }

    /// Starts every replica; makes the cluster first where that was not done. Returns when all of them take part.
    pub(super) async fn start(&mut self) -> Result<(), Failure> {
        for i in 0..self.replicas.len() {
            let config = &self.replicas[i].config;
            if lifecycle::is_empty(&config.data_dir)? {
                if i == 0 {
                    lifecycle::init(config)?;
                } else {
                    let promote = i + 1 < self.replicas.len();
                    lifecycle::join(config, &super::author(), promote).await?;
                }
            }
            self.spawn(i)?;
            if i == 0 {
                self.wait("the first replica leads", |found| leader(found).is_some()).await?;
            }
        }
        let voters = self.replicas.len() - 1;
        self.wait("three voters and one learner take part", |found| {
            let Some((_, lead)) = leader(found) else { return false };
            let configuration = &lead.replica.configuration;
            let complete = configuration.voters.len() == voters && configuration.learners.len() == 1;
            let all = found.values().flatten().filter(|status| status.replica.applied >= lead.replica.commit);
            complete && !configuration.is_joint() && all.count() > voters
        })
        .await
    }

    /// Starts one replica's process.
    pub(super) fn spawn(&mut self, i: usize) -> Result<(), Failure> {
        let name = self.replicas[i].name;
        let log = self.log(name);
        let replica = &mut self.replicas[i];
        replica.child = Some(child::spawn("server", &replica.file, &log)?);
        Ok(())
    }

    /// The replica that listens at an address.
    pub(super) fn at(&self, address: &str) -> Option<usize> {
        self.replicas.iter().position(|replica| replica.config.client_address == address)
    }

    pub(super) fn name(&self, i: usize) -> &'static str {
        self.replicas[i].name
    }

    pub(super) fn address(&self, i: usize) -> &str {
        &self.replicas[i].config.client_address
    }

    /// Ends a process as a power cut would: at once, without a word.
    pub(super) async fn kill(&mut self, i: usize) -> Result<(), Failure> {
        if let Some(mut child) = self.replicas[i].child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Those whose process has ended by itself since it was last asked.
    pub(super) fn exited(&mut self) -> Result<Vec<String>, Failure> {
        let mut names = Vec::new();
        for replica in &mut self.replicas {
            if let Some(child) = &mut replica.child
                && child.try_wait()?.is_some()
            {
                replica.child = None;
                names.push(replica.name.to_owned());
            }
        }
        Ok(names)
    }

    /// Asks every replica again and again until they are as wanted.
    pub(super) async fn wait(
        &mut self,
        what: &str,
        is_so: impl Fn(&std::collections::BTreeMap<String, Result<muster_net::client::Status, String>>) -> bool,
    ) -> Result<(), Failure> {
        let began = Instant::now();
        let mut client = None;
        loop {
            if let Some(name) = self.exited()?.first() {
                return Err(Failure::error(
                    format!("{name} ended while waiting until {what}"),
                    format!("its log is {}", self.log(name).display()),
                )
                .with(object!({ "replica": name })));
            }
            if client.is_none() {
                client = self.client().await.ok();
            }
            if let Some(client) = &client
                && is_so(&statuses(client).await)
            {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(Failure::error(
                    format!("waited {} s, but it did not come to pass that {what}", PATIENCE.as_secs()),
                    format!("the replicas' logs are in {}", self.dir.display()),
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Adds the last lines of the replicas' logs to a failure: the directory may be gone when it is read.
    pub(super) fn explain(&self, failure: Failure) -> Failure {
        let mut message = failure.message.clone();
        for replica in &self.replicas {
            let log = std::fs::read_to_string(self.log(replica.name)).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(5)..] {
                let _ = write!(message, "\n  {}: {line}", replica.name);
            }
        }
        Failure { message, ..failure }
    }

    /// Stops every replica in order, learners first, so that leadership is handed over as rarely as possible.
    pub(super) async fn stop(&mut self) {
        for replica in self.replicas.iter_mut().rev() {
            let Some(mut child) = replica.child.take() else { continue };
            drop(child.stdin.take());
            if tokio::time::timeout(Duration::from_secs(5), child.wait()).await.is_err() {
                // It did not stop by itself; nothing that was acknowledged is lost by ending it.
                let _ = child.kill().await;
            }
        }
    }
}

/// Makes a certificate, or makes it anew if an earlier run left it.
fn certify(authority: &Authority, role: &str, name: &str) -> Result<KeyFiles, Failure> {
    let dir = authority.certificate().parent().unwrap_or_else(|| Path::new("."));
    let credential = Credential::new(authority.cluster(), role, name)
        .map_err(|error| Failure::error(error.problem, "this is a fault in muster; please report it"))?;
    let stem = dir.join(certs::stem(&credential));
    let keys = KeyFiles {
        ca: authority.certificate().to_owned(),
        certificate: stem.with_extension("pem"),
        key: stem.with_extension("key"),
    };
    if keys.certificate.exists() {
        authority.renew(&keys.certificate, CERTIFICATE_LIFE)?;
    } else {
        authority.issue(&credential, &certs::hosts_of(&credential, Vec::new()), CERTIFICATE_LIFE, &stem)?;
    }
    Ok(keys)
}

/// Free loopback ports. All are held until the last is found, so that they differ.
fn free_ports(count: usize) -> Result<Vec<u16>, Failure> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}
