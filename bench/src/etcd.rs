//! Three members of etcd on loopback, with its own defaults for durability, and the same work asked of them.
//!
//! The client is what etcd's own Rust client is: the stubs of its API over tonic, one call an operation. Callers share a number
//! of connections, because that is how etcd is at its best; all go to the leader, which saves writes the way round.

use crate::child::{self, Child};
use crate::load::{Kind, Side, Work};
use anyhow::{Context as _, Result, bail};
use api::kv_client::KvClient;
use api::maintenance_client::MaintenanceClient;
use bytes::Bytes;
use muster_core::request::Freshness;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

#[allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub, reason = "generated")]
mod api {
    tonic::include_proto!("etcdserverpb");
}

const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster that was started for a measurement.
pub(crate) struct Etcd {
    members: Vec<(String, Child)>,
    connections: u32,
}

async fn connect(address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
    Ok(endpoint.connect().await?)
}

impl Etcd {
    pub(crate) async fn start(program: &Path, dir: &Path, connections: u32) -> Result<Self> {
        let ports = child::free_ports(6)?;
        let peers: Vec<_> = (0..3).map(|i| format!("e{i}=http://127.0.0.1:{}", ports[2 * i])).collect();
        let mut etcd = Self { members: Vec::new(), connections };
        let mut logs: Vec<PathBuf> = Vec::new();
        for i in 0..3 {
            let (peer, client) =
                (format!("http://127.0.0.1:{}", ports[2 * i]), format!("127.0.0.1:{}", ports[2 * i + 1]));
            let arguments = [
                ("--name", format!("e{i}")),
                ("--data-dir", dir.join(format!("etcd-{i}")).display().to_string()),
                ("--listen-peer-urls", peer.clone()),
                ("--initial-advertise-peer-urls", peer),
                ("--listen-client-urls", format!("http://{client}")),
                ("--advertise-client-urls", format!("http://{client}")),
                ("--initial-cluster", peers.join(",")),
                ("--log-level", "error".to_owned()),
            ];
            let arguments: Vec<_> = arguments.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
            let log = dir.join(format!("etcd-{i}.log"));
            etcd.members.push((client, Child::spawn(program, 0, &arguments, &log)?));
            logs.push(log);
        }
        let began = Instant::now();
        while etcd.leader().await.is_err() {
            if let Some(ended) = etcd.members.iter_mut().position(|(_, child)| child.has_ended()) {
                bail!("etcd ended:\n{}", child::last_lines(&logs[ended]));
            }
            if began.elapsed() > PATIENCE {
                bail!("etcd did not come up within {} s", PATIENCE.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(etcd)
    }

    /// Which member leads.
    pub(crate) async fn leader(&self) -> Result<usize> {
        for (place, (address, _)) in self.members.iter().enumerate() {
            let Ok(channel) = connect(address).await else { continue };
            let Ok(status) = MaintenanceClient::new(channel).status(api::StatusRequest {}).await else { continue };
            let status = status.into_inner();
            if status.leader != 0 && status.header.is_some_and(|header| header.member_id == status.leader) {
                return Ok(place);
            }
        }
        bail!("no member of etcd leads")
    }

    /// Ends one member as a power cut would.
    pub(crate) fn kill(&mut self, place: usize) {
        self.members[place].1.kill();
    }

    /// Callers' work over all members: each operation tries the next one until one answers. What the official client's
    /// balancer does, without its pauses.
    pub(crate) async fn balanced(&self, kind: &Kind) -> Result<Balanced> {
        let mut members = Vec::new();
        for (address, _) in &self.members {
            let stubs = vec![KvClient::new(connect(address).await?)];
            members.push(Load { stubs: Arc::from(stubs), kind: kind.clone(), value: value_of(kind)? });
        }
        Ok(Balanced { members: Arc::from(members) })
    }
}

fn value_of(kind: &Kind) -> Result<Bytes> {
    match kind {
        Kind::Commit { bytes, .. } | Kind::Read { bytes, .. } => Ok(Bytes::from("v".repeat(usize::try_from(*bytes)?))),
        Kind::Boot { .. } => bail!("etcd boots nothing"),
    }
}

impl Side for Etcd {
    type Work = Load;

    fn name(&self) -> &'static str {
        "etcd"
    }

    fn pids(&self) -> Vec<u32> {
        self.members.iter().map(|(_, child)| child.pid()).collect()
    }

    async fn prepare(&self, kind: &Kind) -> Result<Load> {
        let address = &self.members[self.leader().await?].0;
        let mut stubs = Vec::new();
        for _ in 0..self.connections {
            stubs.push(KvClient::new(connect(address).await?));
        }
        let load = Load { stubs: Arc::from(stubs), kind: kind.clone(), value: value_of(kind)? };
        if let Kind::Read { .. } = kind {
            load.put(0, READ_KEY.to_owned()).await.map_err(anyhow::Error::msg).context("writing what is read")?;
        }
        Ok(load)
    }
}

const READ_KEY: &str = "kernel:bench.read";

/// Callers' work.
#[derive(Clone)]
pub(crate) struct Load {
    stubs: Arc<[KvClient<Channel>]>,
    kind: Kind,
    value: Bytes,
}

impl Load {
    fn stub(&self, caller: u32) -> KvClient<Channel> {
        self.stubs[caller as usize % self.stubs.len()].clone()
    }

    async fn put(&self, caller: u32, key: String) -> Result<(), String> {
        let request = api::PutRequest { key: key.into_bytes(), value: self.value.to_vec() };
        self.stub(caller).put(request).await.map(|_| ()).map_err(|status| status.to_string())
    }
}

impl Work for Load {
    type Memory = ();

    fn memory(&self) {}

    async fn once(&self, caller: u32, turn: u64, (): &mut ()) -> Result<(), String> {
        match &self.kind {
            Kind::Commit { keys, .. } => {
                self.put(caller, format!("kernel:bench.{caller}.{}", turn % u64::from(*keys))).await
            }
            Kind::Read { freshness, .. } => {
                let serializable = *freshness == Freshness::Local;
                let request = api::RangeRequest { key: READ_KEY.as_bytes().to_vec(), serializable };
                let reply = self.stub(caller).range(request).await.map_err(|status| status.to_string())?;
                match reply.into_inner().kvs.first() {
                    Some(found) if found.value.len() == self.value.len() => Ok(()),
                    Some(_) | None => Err("the value is not the one that was written".to_owned()),
                }
            }
            Kind::Boot { .. } => unreachable!("refused when it was prepared"),
        }
    }

    async fn end(self) {}
}

/// Callers' work over all members.
#[derive(Clone)]
pub(crate) struct Balanced {
    members: Arc<[Load]>,
}

/// How long one member may take before the next is tried: short beside any gap, for a member that has lost its leader keeps
/// its callers waiting.
const ATTEMPT: Duration = Duration::from_millis(100);

impl Work for Balanced {
    /// The member that answered last.
    type Memory = usize;

    fn memory(&self) -> usize {
        0
    }

    async fn once(&self, caller: u32, turn: u64, last: &mut usize) -> Result<(), String> {
        let mut problem = String::new();
        for _ in 0..self.members.len() {
            match tokio::time::timeout(ATTEMPT, self.members[*last].once(caller, turn, &mut ())).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(told)) => problem = told,
                Err(_) => "no answer in time".clone_into(&mut problem),
            }
            *last = (*last + 1) % self.members.len();
        }
        Err(problem)
    }

    async fn end(self) {}
}
