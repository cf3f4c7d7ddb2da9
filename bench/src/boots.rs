//! Boots over HTTP (or gRPC, by the client) beside nginx, which serves the same bytes as a static file; many readers that are slow; a storm.
//!
//! One replica, whose process serves; the callers' connections are made here by hand, the same for both sides, so that the client costs
//! as little as it can: a request that is ready, a buffer, the length from the answer's head.

use crate::child::{self, Child};
use crate::load::{Kind, Side, Work};
use crate::muster::{self, Cluster, Size};
use anyhow::{Context as _, Result, bail};
use muster_core::ids::{NodeId, Seq, VClusterId};
use muster_core::journal::command::JournalCommand;
use muster_core::journal::entry::{Change, EntryDraft, EntryType};
use muster_core::journal::key::{Key, Scope, Setting};
use muster_core::journal::policy::Policy;
use muster_core::query::Query;
use muster_core::request::{Command, Freshness, Outcome};
use muster_net::client::{Client, Options};
use muster_net::tls::{KeyFiles, Tls, dial};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// What is booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fleet {
    /// Nodes, each with settings of its own.
    pub(crate) nodes: u32,
    /// Bytes of the overlay, compressed, about.
    pub(crate) overlay_bytes: u32,
    /// Bytes of a delta, about.
    pub(crate) delta_bytes: u32,
}

const VCLUSTER: &str = "bench";

/// Settings of one entry.
const CHANGES: usize = 400;
const VALUE_BYTES: usize = 180;
/// Of text made of 64 letters, so many percent are left when it is compressed.
const COMPRESSED_PERCENT: usize = 77;

/// Letters that do not compress by more than their number says.
pub(crate) fn noise(seed: u64, bytes: usize) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-";
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let letter = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(LETTERS[usize::try_from(state >> 58).unwrap_or(0)])
    };
    (0..bytes).map(letter).collect()
}

pub(crate) fn set(key: &str, value: &str) -> Result<Change> {
    Ok(Change { key: Key::new(key)?, previous: Setting::Unset, next: Setting::Value(value.into()) })
}

pub(crate) fn entry(entry_type: EntryType, scope: Scope, changes: Vec<Change>, parent: Seq) -> Command {
    Command::Journal(JournalCommand::AppendEntry(EntryDraft {
        entry_type,
        scope,
        parent,
        based_on: None,
        changes,
        ttl_seconds: None,
        emergency_reason: None,
        message: Arc::from("boots to be measured"),
        occurred_at: None,
    }))
}

pub(crate) fn node_name(number: u32) -> String {
    format!("b{number:06}")
}

/// Declares what is booted.
pub(crate) async fn declare(client: &Client, fleet: Fleet) -> Result<()> {
    let vcluster = VClusterId::new(VCLUSTER)?;
    let author = muster::author();
    let write = async |command: Command| match client.write(&author, command).await {
        Outcome::Applied { .. } => Ok(()),
        outcome => bail!("declaring what is booted: {outcome:?}"),
    };
    write(Command::Journal(JournalCommand::SetPolicy { vcluster: vcluster.clone(), policy: Policy::default() }))
        .await?;
    let head = async || Ok::<_, anyhow::Error>(client.query(Freshness::Linearizable, &Query::Summary).await?.sequence);
    let values = usize::try_from(fleet.overlay_bytes)? * 100 / COMPRESSED_PERCENT / (VALUE_BYTES + 17) + 1;
    for first in (0..values).step_by(CHANGES) {
        let last = (first + CHANGES).min(values);
        let changes: Result<Vec<_>> =
            (first..last).map(|i| set(&format!("files:/bench/o{i:05}"), &noise(i as u64, VALUE_BYTES))).collect();
        write(entry(EntryType::Commit, Scope::VCluster(vcluster.clone()), changes?, head().await?)).await?;
    }
    let parent = head().await?;
    // About 90 bytes are the document's own.
    let own = usize::try_from(fleet.delta_bytes.saturating_sub(110))? / 52;
    let tasks = (0..256).map(|caller| {
        let (client, author) = (client.clone(), author.clone());
        tokio::spawn(async move {
            for number in (caller..fleet.nodes).step_by(256) {
                let mut changes = vec![set("vcluster", VCLUSTER)?];
                for i in 0..own {
                    let value = noise((u64::from(number) << 8) | i as u64, 32);
                    changes.push(set(&format!("files:/bench/n{i:04}"), &value)?);
                }
                let scope = Scope::Node(NodeId::new(&node_name(number))?);
                match client.write(&author, entry(EntryType::BootConfig, scope, changes, parent)).await {
                    Outcome::Applied { .. } => {}
                    outcome => bail!("declaring {}: {outcome:?}", node_name(number)),
                }
            }
            Ok(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await??;
    }
    Ok(())
}

/// How callers' connections are.
#[derive(Clone)]
pub(crate) struct Way {
    pub(crate) address: String,
    pub(crate) tls: Option<Tls>,
    /// A new connection for every request.
    pub(crate) close: bool,
}

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

impl Way {
    async fn connect(&self, from: Option<Ipv4Addr>) -> Result<Box<dyn Wire>, String> {
        let stream = match from {
            None => TcpStream::connect(&self.address).await,
            Some(from) => self.connect_from(from, None).await,
        };
        let stream = stream.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).ok();
        Ok(match &self.tls {
            None => Box::new(stream),
            Some(tls) => Box::new(dial::over_http1(stream, tls).await.map_err(|error| error.to_string())?),
        })
    }

    /// From an address of this machine; with a receive window of so many bytes, about.
    pub(crate) async fn connect_from(&self, from: Ipv4Addr, window: Option<u32>) -> std::io::Result<TcpStream> {
        let to = self.address.parse().map_err(std::io::Error::other)?;
        let socket = TcpSocket::new_v4()?;
        if let Some(window) = window {
            socket.set_recv_buffer_size(window)?;
        }
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((from, 0)))?;
        socket.connect(to).await
    }

    pub(crate) fn request(&self, path: &str) -> Vec<u8> {
        let close = if self.close { "connection: close\r\n" } else { "" };
        format!("GET {path} HTTP/1.1\r\nhost: {}\r\n{close}\r\n", self.address).into_bytes()
    }
}

/// The address of this machine from which the `number`th of many connects. Whose connection ended holds its port for a minute, and an
/// address has 28,000 of them towards one server: very many need more than one.
pub(crate) fn loopback(number: u32) -> Ipv4Addr {
    let [_, _, high, low] = (number % 16_000).to_be_bytes();
    Ipv4Addr::new(127, 1, high, low.max(1))
}

/// A caller's connection, and where it reads into.
pub(crate) struct Line {
    wire: Option<Box<dyn Wire>>,
    buffer: Vec<u8>,
    /// Where it connects from; the kernel's choice if left out.
    from: Option<Ipv4Addr>,
}

impl Default for Line {
    fn default() -> Self {
        Self { wire: None, buffer: vec![0; 256 << 10], from: None }
    }
}

impl Line {
    pub(crate) fn from(address: Ipv4Addr) -> Self {
        Self { from: Some(address), ..Self::default() }
    }
}

/// What an answer's head says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub(crate) code: u16,
    pub(crate) length: usize,
    pub(crate) retry_after_ms: u64,
    /// Who else may serve.
    pub(crate) elsewhere: Vec<Arc<str>>,
    overlay_length: usize,
    delta_length: usize,
}

pub(crate) fn read_head(text: &str) -> Head {
    let mut lines = text.split("\r\n");
    let code = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
    let mut head = Head { code, ..Head::default() };
    for line in lines {
        let Some((name, value)) = line.split_once(": ") else { continue };
        let number = || value.parse::<usize>().unwrap_or(0);
        if name.eq_ignore_ascii_case("content-length") {
            head.length = number();
        } else if name == "muster-retry-after-ms" {
            head.retry_after_ms = number() as u64;
        } else if name == "muster-elsewhere" {
            head.elsewhere = value.split(", ").map(Arc::from).collect();
        } else if name == "muster-overlay-length" {
            head.overlay_length = number();
        } else if name == "muster-delta-length" {
            head.delta_length = number();
        }
    }
    head
}

impl Line {
    /// Asks and reads the whole answer.
    pub(crate) async fn ask(&mut self, way: &Way, request: &[u8]) -> Result<Head, String> {
        let mut wire = match self.wire.take() {
            Some(wire) => wire,
            None => way.connect(self.from).await?,
        };
        let broke = |error: std::io::Error| error.to_string();
        wire.write_all(request).await.map_err(broke)?;
        wire.flush().await.map_err(broke)?;
        let mut filled = 0;
        let (head, mut rest) = loop {
            let read = wire.read(&mut self.buffer[filled..]).await.map_err(broke)?;
            if read == 0 {
                return Err("the connection ended in the head".to_owned());
            }
            filled += read;
            let found = self.buffer[..filled.min(4_096)].windows(4).position(|window| window == b"\r\n\r\n");
            if let Some(end) = found {
                let head = read_head(std::str::from_utf8(&self.buffer[..end]).map_err(|error| error.to_string())?);
                let rest = head.length.saturating_sub(filled - end - 4);
                break (head, rest);
            }
        };
        while rest > 0 {
            let read = wire.read(&mut self.buffer).await.map_err(broke)?;
            if read == 0 {
                return Err(format!("the connection ended {rest} bytes early"));
            }
            rest = rest.saturating_sub(read);
        }
        if !way.close {
            self.wire = Some(wire);
        }
        Ok(head)
    }
}

/// Callers' work: each asks for one node after another, or for the file.
#[derive(Clone)]
pub(crate) struct Fetch {
    way: Way,
    requests: Arc<[Vec<u8>]>,
    length: usize,
}

impl Work for Fetch {
    type Memory = Line;

    fn memory(&self) -> Line {
        Line::default()
    }

    async fn once(&self, caller: u32, turn: u64, line: &mut Line) -> Result<(), String> {
        let at = (u64::from(caller) * 7_919 + turn * 127) % self.requests.len() as u64;
        let head = line.ask(&self.way, &self.requests[usize::try_from(at).unwrap_or(0)]).await?;
        match head.code {
            200 if head.length.abs_diff(self.length) < 4_096 => Ok(()),
            200 => Err(format!("{} bytes came, {} were expected", head.length, self.length)),
            code => Err(format!("status {code}")),
        }
    }

    async fn end(self) {}
}

/// Certificates that both sides use.
pub(crate) struct Keys {
    dir: PathBuf,
}

impl Keys {
    pub(crate) fn make(program: &Path, dir: &Path) -> Result<Self> {
        let dir = dir.join("ca");
        let at = dir.display().to_string();
        let run = |arguments: &[&str]| {
            child::run(program, &arguments.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
        };
        run(&["certs", "init", &at, "--cluster", "bench"])?;
        run(&["certs", "issue", "--dir", &at, "--role", "replica", "--host", "127.0.0.1", "muster-1"])?;
        run(&["certs", "issue", "--dir", &at, "--role", "admin", "bench"])?;
        Ok(Self { dir })
    }

    fn files(&self, name: &str) -> KeyFiles {
        let at = |end: &str| self.dir.join(format!("{name}{end}"));
        KeyFiles { ca: self.dir.join("ca.pem"), certificate: at(".pem"), key: at(".key") }
    }

    /// The caller's own.
    pub(crate) fn ours(&self) -> Result<Tls> {
        Ok(Tls::load(self.files("admin-bench"))?)
    }

    /// A replica's `[security]`.
    pub(crate) fn security(&self) -> String {
        let KeyFiles { ca, certificate, key } = self.files("replica-muster-1");
        let quoted = |path: &Path| format!("{:?}", path.display().to_string());
        let (ca, certificate, key) = (quoted(&ca), quoted(&certificate), quoted(&key));
        format!("\n[security]\nca = {ca}\ncertificate = {certificate}\nkey = {key}\n")
    }
}

/// One replica that serves.
pub(crate) struct Served {
    cluster: Cluster,
    way: Way,
    requests: Arc<[Vec<u8>]>,
    length: usize,
}

impl Served {
    /// Starts a replica and declares the fleet there. `more` is added to its configuration.
    pub(crate) async fn start(
        program: &Path,
        dir: &Path,
        fleet: Fleet,
        (keys, close, more): (Option<&Keys>, bool, &str),
    ) -> Result<Self> {
        let tls = keys.map(Keys::ours).transpose()?;
        let security = keys.map(Keys::security).unwrap_or_default();
        let cluster =
            Cluster::start_with(program, dir, Size::of_voters(1), &format!("{more}{security}"), tls.clone()).await?;
        let address = cluster.addresses()[0].clone();
        let options = Options { tls: tls.clone(), ..Options::default() };
        let client = Client::connect(cluster.addresses(), options).await?;
        declare(&client, fleet).await?;
        client.close().await;
        let way = Way { address, tls, close };
        let head = ready(&way).await?;
        let requests = (0..fleet.nodes).map(|number| way.request(&format!("/v1/boot/{}", node_name(number)))).collect();
        Ok(Self { cluster, way, requests, length: head.length })
    }
}

/// Waits until a boot is whole: the overlay is stored, and the delta small again.
pub(crate) async fn ready(way: &Way) -> Result<Head> {
    let began = Instant::now();
    loop {
        let head = Line::default().ask(way, &way.request(&format!("/v1/boot/{}", node_name(0)))).await;
        if let Ok(head) = &head
            && head.code == 200
            && head.delta_length < head.overlay_length / 10
        {
            return Ok(head.clone());
        }
        if began.elapsed() > Duration::from_secs(30) {
            bail!("the overlay did not become ready: {head:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

impl Side for Served {
    type Work = Fetch;

    fn name(&self) -> &'static str {
        "muster"
    }

    fn pids(&self) -> Vec<u32> {
        self.cluster.pids()
    }

    async fn prepare(&self, _: &Kind) -> Result<Fetch> {
        Ok(Fetch { way: self.way.clone(), requests: self.requests.clone(), length: self.length })
    }
}

/// nginx with a static file of as many bytes.
pub(crate) struct Nginx {
    child: Child,
    way: Way,
    length: usize,
}

impl Nginx {
    /// How it is asked, for a storm.
    pub(crate) fn way(&self) -> &Way {
        &self.way
    }

    pub(crate) async fn start(
        program: &Path,
        dir: &Path,
        length: usize,
        (keys, close): (Option<&Keys>, bool),
        nice: u8,
    ) -> Result<Self> {
        let port = child::free_ports(1)?[0];
        let home = dir.join("nginx");
        std::fs::create_dir_all(home.join("www"))?;
        std::fs::write(home.join("www/boot"), noise(1, length))?;
        let mut tls = String::new();
        if let Some(keys) = keys {
            let KeyFiles { ca, certificate, key } = keys.files("replica-muster-1");
            write!(
                tls,
                "ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.3; ssl_session_tickets off; ssl_session_cache \
                 off; ssl_client_certificate {}; ssl_verify_client on; ssl_verify_depth 2;",
                certificate.display(),
                key.display(),
                ca.display()
            )?;
        }
        let at = home.display();
        let listen = if keys.is_some() { "ssl" } else { "" };
        // As many workers as cores, sendfile, no log, connections as long as they are wanted: what one would set for this.
        let text = format!(
            "user root; daemon off; worker_processes auto; worker_rlimit_nofile 20000; pid {at}/pid; error_log {at}/error.log crit;\n\
             events {{ worker_connections 20000; multi_accept on; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 1000000000; \
             keepalive_timeout 600; open_file_cache max=100; default_type application/octet-stream; \
             client_body_temp_path {at}/a; proxy_temp_path {at}/b; fastcgi_temp_path {at}/c; uwsgi_temp_path {at}/d; \
             scgi_temp_path {at}/e;\n\
             server {{ listen 127.0.0.1:{port} backlog=4096 {listen}; root {at}/www; {tls} }} }}\n"
        );
        let config = home.join("nginx.conf");
        std::fs::write(&config, text)?;
        let arguments = ["-p", &home.display().to_string(), "-c", &config.display().to_string()].map(str::to_owned);
        let log = home.join("log");
        let mut child = Child::spawn(program, nice, &arguments, &log)?;
        let way = Way { address: format!("127.0.0.1:{port}"), tls: keys.map(Keys::ours).transpose()?, close };
        let began = Instant::now();
        loop {
            match Line::default().ask(&way, &way.request("/boot")).await {
                Ok(head) if head.code == 200 => return Ok(Self { child, way, length }),
                _ if child.has_ended() => bail!("nginx ended:\n{}", child::last_lines(&log)),
                answer if began.elapsed() > Duration::from_secs(10) => bail!("nginx does not serve: {answer:?}"),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // A master that is killed leaves its workers behind. Those that end with it are gone when their turn comes.
        let pids = self.pids().into_iter().map(|pid| pid.to_string());
        std::process::Command::new("kill").args(pids).stderr(std::process::Stdio::null()).status().ok();
    }
}

impl Side for Nginx {
    type Work = Fetch;

    fn name(&self) -> &'static str {
        "nginx"
    }

    fn pids(&self) -> Vec<u32> {
        let master = self.child.pid();
        let workers = std::fs::read_to_string(format!("/proc/{master}/task/{master}/children")).unwrap_or_default();
        std::iter::once(master).chain(workers.split_whitespace().filter_map(|pid| pid.parse().ok())).collect()
    }

    async fn prepare(&self, _: &Kind) -> Result<Fetch> {
        let requests = Arc::from(vec![self.way.request("/boot")]);
        Ok(Fetch { way: self.way.clone(), requests, length: self.length })
    }
}

impl Served {
    /// The replica that serves, for whoever asks it otherwise.
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// What readers that ask and then take nothing cost: the server's resident memory before and while they are there, and how long a
    /// boot takes meanwhile.
    pub(crate) async fn slow_readers(&self, readers: u32) -> Result<Slow> {
        let before = crate::usage::of(&self.pids()).resident_max;
        let mut held = Vec::new();
        for number in 0..readers {
            // A small window, so that the bytes stay with the server.
            let socket = TcpSocket::new_v4()?;
            socket.set_recv_buffer_size(4_096)?;
            let stream = socket.connect(self.way.address.parse()?).await.context("connecting one more slow reader")?;
            let mut wire: Box<dyn Wire> = match &self.way.tls {
                None => Box::new(stream),
                Some(tls) => Box::new(dial::over_http1(stream, tls).await?),
            };
            wire.write_all(&self.requests[number as usize % self.requests.len()]).await?;
            wire.flush().await?;
            held.push(wire);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let while_there = crate::usage::of(&self.pids()).resident_max;
        let began = Instant::now();
        let insist = self.way.request(&format!("/v1/boot/{}?insist=yes", node_name(0)));
        let head = Line::default().ask(&self.way, &insist).await.map_err(anyhow::Error::msg)?;
        Ok(Slow { before, while_there, boot: began.elapsed(), code: head.code })
    }
}

/// What slow readers cost.
pub(crate) struct Slow {
    pub(crate) before: u64,
    pub(crate) while_there: u64,
    pub(crate) boot: Duration,
    pub(crate) code: u16,
}
