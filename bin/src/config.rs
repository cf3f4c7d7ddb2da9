//! The configuration of one replica: a TOML file in, [`Config`] out, or every problem of the file at once.
//!
//! The keys of `[raft]` and their defaults are the mission's (SEEDS.md, U5); ports are 9444 between replicas, 9443 for clients, and
//! 9442 for nodes that boot without a certificate, where that is allowed. With the certificates of `[security]` both speak TLS; without, a replica listens on loopback only, unless it is
//! told `insecure`.
//!
//! Never here: touching the directory, the ports or the network. `muster config check` reads a file on any machine.

use crate::context::read_keys;
use crate::document::{Document, Problems, Reader};
use muster_core::admission::BootLimits;
use muster_core::ids::ReplicaName;
use muster_core::replica::{LEASE_DRIFT_PPM_MAX, Timing};
use muster_net::server::{BootOptions, ClientLimits};
use muster_net::tls::KeyFiles;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What `muster config example` prints.
pub(crate) const EXAMPLE: &str = include_str!("example.toml");

/// Where a replica that wants to join asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bootstrap {
    /// The display name, where the file gives one.
    pub(crate) id: Option<ReplicaName>,
    /// `host:port` of its client port.
    pub(crate) addr: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// For programs: one object a line.
    Json,
}

/// One replica's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// The display name, unique in the cluster.
    pub(crate) node_id: ReplicaName,
    /// Everything this replica keeps.
    pub(crate) data_dir: PathBuf,
    /// Heartbeats and elections.
    pub(crate) timing: Timing,
    /// Log entries between two snapshots, at least.
    pub(crate) snapshot_threshold: u64,
    /// The largest chunk in which snapshot pages and history records travel.
    pub(crate) snapshot_chunk_bytes: u64,
    /// The largest request.
    pub(crate) payload_bytes_max: u64,
    /// Whom `join` asks, in order.
    pub(crate) bootstrap: Vec<Bootstrap>,
    /// Where peers are listened for.
    pub(crate) peer_listen: SocketAddr,
    /// Where peers reach this replica.
    pub(crate) peer_address: String,
    /// Where clients are listened for.
    pub(crate) client_listen: SocketAddr,
    /// Where clients reach this replica.
    pub(crate) client_address: String,
    /// Clients' connections at a time.
    pub(crate) connections_max: usize,
    /// How long a client's connection may be silent.
    pub(crate) idle_timeout: Duration,
    /// How boots are served.
    pub(crate) boots: BootOptions,
    /// Where nodes without a certificate are listened for, if anywhere.
    pub(crate) anonymous_listen: SocketAddr,
    /// Whether to listen beyond loopback without TLS.
    pub(crate) insecure: bool,
    /// The certificates with which it speaks TLS, on both ports.
    pub(crate) keys: Option<KeyFiles>,
    /// What is logged, in the syntax of `RUST_LOG`.
    pub(crate) log_level: String,
    /// How it is logged.
    pub(crate) log_format: LogFormat,
}

/// Why there is no configuration.
#[derive(Debug)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    Unreadable {
        /// Which.
        file: String,
        /// What the system said.
        problem: String,
    },
    /// The file was read and is wrong.
    Problems(Problems),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { file, problem } => {
                write!(f, "{file} cannot be read: {problem}; give the TOML file with --config FILE")
            }
            Self::Problems(problems) => problems.fmt(f),
        }
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads a file. `insecure` is the command line's word for it.
    pub(crate) fn read(path: &Path, insecure: bool) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&file, &text, insecure).map_err(ConfigError::Problems),
            Err(error) => Err(ConfigError::Unreadable { file, problem: error.to_string() }),
        }
    }

    /// Every key with the value it comes to, as `config check` shows them.
    pub(crate) fn rows(&self) -> Vec<(String, serde_json::Value)> {
        let format = match self.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        let nodes: Vec<_> = self.bootstrap.iter().map(|node| node.addr.clone()).collect();
        let file =
            |file: fn(&KeyFiles) -> &PathBuf| self.keys.as_ref().map(|keys| file(keys).display().to_string()).into();
        let boots = &self.boots;
        let rows: [(&str, serde_json::Value); 33] = [
            ("raft.node_id", self.node_id.as_str().into()),
            ("raft.data_dir", self.data_dir.display().to_string().into()),
            ("raft.heartbeat_interval_ms", self.timing.heartbeat_ms.into()),
            ("raft.election_timeout_min_ms", self.timing.election_ms_min.into()),
            ("raft.election_timeout_max_ms", self.timing.election_ms_max.into()),
            ("raft.lease_clock_drift_ppm", self.timing.lease_drift_ppm.into()),
            ("raft.snapshot_threshold", self.snapshot_threshold.into()),
            ("raft.snapshot_max_chunk_size", self.snapshot_chunk_bytes.into()),
            ("raft.max_payload_size", self.payload_bytes_max.into()),
            ("raft.listen", self.peer_listen.ip().to_string().into()),
            ("raft.raft_port", self.peer_listen.port().into()),
            ("raft.advertise", self.peer_address.as_str().into()),
            ("raft.bootstrap.nodes", nodes.into()),
            ("client.listen", self.client_listen.ip().to_string().into()),
            ("client.port", self.client_listen.port().into()),
            ("client.advertise", self.client_address.as_str().into()),
            ("client.request_timeout_ms", self.timing.request_ms.into()),
            ("client.connections_max", self.connections_max.into()),
            ("client.idle_timeout_ms", u64::try_from(self.idle_timeout.as_millis()).unwrap_or(u64::MAX).into()),
            ("boot.anonymous", boots.anonymous.into()),
            ("boot.listen", self.anonymous_listen.ip().to_string().into()),
            ("boot.port", self.anonymous_listen.port().into()),
            ("boot.while_leading", boots.while_leading.into()),
            ("boot.places_max", boots.limits.streams_max.into()),
            ("boot.patience_ms", boots.limits.patience_ms.into()),
            ("boot.bytes_per_second_min", boots.limits.bytes_per_second_min.into()),
            ("boot.asks_per_second", boots.limits.asks_per_second.into()),
            ("security.ca", file(|keys| &keys.ca)),
            ("security.certificate", file(|keys| &keys.certificate)),
            ("security.key", file(|keys| &keys.key)),
            ("security.insecure", self.insecure.into()),
            ("log.level", self.log_level.as_str().into()),
            ("log.format", format.into()),
        ];
        rows.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    fn parse(file: &str, text: &str, insecure: bool) -> Result<Self, Problems> {
        let document = Document::new(file, text);
        let table = document.parse();
        let mut root = Reader::root(&document, &table);
        let mut raft = root.table("raft");
        let mut client = root.table("client");
        let mut boot = root.table("boot");
        let mut log = root.table("log");
        let mut security = root.table("security");

        let node_id = raft.parsed("node_id", ReplicaName::new).map(|(name, _)| name);
        if raft.value("node_id").is_none() {
            document.problem(raft.span(), "raft.node_id is missing: expected a display name, unique in the cluster");
        }
        let data_dir = raft.text("data_dir").and_then(|(text, span)| {
            if text.is_empty() {
                document.problem(span, "raft.data_dir is empty: expected a directory");
                return None;
            }
            Some(PathBuf::from(text))
        });
        let timing = read_timing(&document, &mut raft, &mut client);
        let snapshot_threshold = raft.number("snapshot_threshold", 1..=1_000_000_000, "entries");
        let chunk = raft.number("snapshot_max_chunk_size", 4_096..=33_554_432, "bytes");
        let payload = raft.number("max_payload_size", 65_536..=67_108_864, "bytes");
        let snapshot_chunk_bytes = chunk.as_ref().map_or(1_048_576, |(bytes, _)| *bytes);
        let payload_bytes_max = payload.as_ref().map_or(4_194_304, |(bytes, _)| *bytes);
        if snapshot_chunk_bytes > payload_bytes_max
            && let Some((_, span)) = chunk.or(payload)
        {
            document.problem(
                span,
                format!(
                    "raft.snapshot_max_chunk_size is {snapshot_chunk_bytes} and does not fit into \
                     raft.max_payload_size, which is {payload_bytes_max}"
                ),
            );
        }

        let insecure = security.boolean("insecure").unwrap_or(false) || insecure;
        let keys = read_keys(&document, &mut security, Path::new(""));
        if keys.is_some() && insecure {
            document.problem(
                security.span(),
                "security has certificates and is insecure too: expected one of them; with certificates everything is TLS",
            );
        }
        let open = insecure || keys.is_some();
        let peer = read_endpoint(&document, &mut raft, "raft_port", 9444, open);
        let peers_at = raft.value("raft_port").map_or_else(|| raft.span(), toml::Spanned::span);
        let served = read_endpoint(&document, &mut client, "port", 9443, open);
        let (here, there) = (peer.listen.ip(), served.listen.ip());
        let overlap = here == there || here.is_unspecified() || there.is_unspecified();
        if overlap && peer.listen.port() == served.listen.port() {
            document.problem(
                peers_at,
                format!("raft.raft_port and client.port are both {}: expected two different ports", peer.listen.port()),
            );
        }
        let defaults = ClientLimits::default();
        let connections = client.number("connections_max", 64..=1_000_000, "connections");
        let idle = client.number("idle_timeout_ms", 1_000..=3_600_000, "ms");
        let (boots, anonymous_listen) = read_boots(&document, &mut boot, served.listen.ip());
        for (name, taken) in [("raft.raft_port", peer.listen), ("client.port", served.listen)] {
            if boots.anonymous && taken.port() == anonymous_listen.port() {
                let problem = format!("boot.port is {} and {name} too: expected a port of its own", taken.port());
                document.problem(boot.span(), problem);
            }
        }
        let bootstrap = read_bootstrap(&document, &mut raft);

        let (log_level, log_format) = read_log(&mut log);

        for table in [raft, client, boot, log, security, root] {
            table.finish();
        }
        let config = Self {
            // A missing name is a problem already; this one is never used.
            node_id: node_id.unwrap_or_else(|| ReplicaName::new("unnamed").expect("a plain word is a name")),
            data_dir: data_dir.unwrap_or_else(|| PathBuf::from("/var/lib/muster/journal")),
            timing,
            snapshot_threshold: snapshot_threshold.map_or(10_000, |(entries, _)| entries),
            snapshot_chunk_bytes,
            payload_bytes_max,
            bootstrap,
            peer_listen: peer.listen,
            peer_address: peer.address,
            client_listen: served.listen,
            client_address: served.address,
            connections_max: connections.map_or(defaults.connections_max, |(count, _)| as_count(count)),
            idle_timeout: idle.map_or(defaults.idle_timeout, |(ms, _)| Duration::from_millis(ms)),
            boots,
            anonymous_listen,
            insecure,
            keys,
            log_level,
            log_format,
        };
        document.finish(config)
    }
}

fn as_count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// How boots are served, and where to those without a certificate. That is plain HTTP wherever it listens: the key that opens it
/// is the word that the network is trusted with what nodes boot.
fn read_boots(document: &Document<'_>, boot: &mut Reader<'_, '_, '_>, clients: IpAddr) -> (BootOptions, SocketAddr) {
    let limits = BootLimits::default();
    let mut number = |key, range, unit| boot.number(key, range, unit).map(|(number, _)| number);
    let small = |number: Option<u64>, default: u32| number.map_or(default, |n| u32::try_from(n).unwrap_or(u32::MAX));
    let limits = BootLimits {
        streams_max: small(number("places_max", 1..=1_000_000, "boots"), limits.streams_max),
        patience_ms: number("patience_ms", 100..=3_600_000, "ms").unwrap_or(limits.patience_ms),
        bytes_per_second_min: number("bytes_per_second_min", 1..=1_000_000_000, "bytes a second")
            .unwrap_or(limits.bytes_per_second_min),
        asks_per_second: small(number("asks_per_second", 1..=1_000_000, "a second"), limits.asks_per_second),
        ..limits
    };
    let port = number("port", 1..=65_535, "").map_or(9442, |port| u16::try_from(port).unwrap_or(9442));
    let listen = boot.parsed("listen", |text| {
        text.parse::<IpAddr>()
            .map_err(|_| format!("{text:?} is not an IP address: expected one such as \"127.0.0.1\" or \"::\""))
    });
    let anonymous = boot.boolean("anonymous").unwrap_or(false);
    if let (false, Some((_, span))) = (anonymous, &listen) {
        let problem = "boot.listen is for nodes without a certificate: expected anonymous = true beside it";
        document.problem(span.clone(), problem);
    }
    let while_leading = boot.boolean("while_leading").unwrap_or(false);
    let listen = SocketAddr::new(listen.map_or(clients, |(ip, _)| ip), port);
    (BootOptions { limits, while_leading, anonymous }, listen)
}

/// What is logged, and how.
pub(crate) fn read_log(log: &mut Reader<'_, '_, '_>) -> (String, LogFormat) {
    let level = log.parsed("level", |text| match text.parse::<tracing_subscriber::EnvFilter>() {
        Ok(_) if !text.is_empty() => Ok(text.to_owned()),
        Ok(_) | Err(_) => Err(format!(
            "{text:?} is not a log level: expected error, warn, info, debug or trace, or a list such as \
             \"info,muster_core=debug\""
        )),
    });
    let format = log.choice("format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    (level.map_or_else(|| "info".to_owned(), |(level, _)| level), format.unwrap_or(LogFormat::Text))
}

/// A preset, and what the file says about its parts.
fn read_timing(document: &Document<'_>, raft: &mut Reader<'_, '_, '_>, client: &mut Reader<'_, '_, '_>) -> Timing {
    let preset = raft.choice("timing", &[("lan", Timing::LAN), ("wan", Timing::WAN)]).unwrap_or(Timing::LAN);
    let heartbeat = raft.number("heartbeat_interval_ms", 10..=60_000, "ms");
    let shortest = raft.number("election_timeout_min_ms", 20..=600_000, "ms");
    let longest = raft.number("election_timeout_max_ms", 21..=600_000, "ms");
    let at = |part: &Option<(u64, std::ops::Range<usize>)>, other: &Option<(u64, std::ops::Range<usize>)>| {
        part.as_ref().or(other.as_ref()).map_or(0..0, |(_, span)| span.clone())
    };
    let drift = raft.number("lease_clock_drift_ppm", 0..=u64::from(LEASE_DRIFT_PPM_MAX), "ppm");
    let request = client.number("request_timeout_ms", 100..=600_000, "ms");
    let heartbeat_ms = heartbeat.as_ref().map_or(preset.heartbeat_ms, |(ms, _)| *ms);
    let timing = Timing {
        tick_ms: preset.tick_ms.min(heartbeat_ms),
        heartbeat_ms,
        election_ms_min: shortest.as_ref().map_or(preset.election_ms_min, |(ms, _)| *ms),
        election_ms_max: longest.as_ref().map_or(preset.election_ms_max, |(ms, _)| *ms),
        request_ms: request.as_ref().map_or(preset.request_ms, |(ms, _)| *ms),
        lease_drift_ppm: drift.and_then(|(ppm, _)| u32::try_from(ppm).ok()),
    };
    if timing.request_ms < timing.election_ms_max {
        document.problem(
            at(&request, &longest),
            format!(
                "client.request_timeout_ms is {}: expected at least raft.election_timeout_max_ms, which is {}",
                timing.request_ms, timing.election_ms_max
            ),
        );
    }
    if timing.heartbeat_ms * 2 > timing.election_ms_min {
        document.problem(
            at(&heartbeat, &shortest),
            format!(
                "raft.heartbeat_interval_ms is {}: expected at most {}, half of raft.election_timeout_min_ms, \
                 so that one lost heartbeat deposes nobody",
                timing.heartbeat_ms,
                timing.election_ms_min / 2
            ),
        );
    }
    if timing.election_ms_min >= timing.election_ms_max {
        document.problem(
            at(&longest, &shortest),
            format!(
                "raft.election_timeout_max_ms is {}: expected more than raft.election_timeout_min_ms, which is {}",
                timing.election_ms_max, timing.election_ms_min
            ),
        );
    }
    timing
}

/// Where a port is listened on, and what others are told.
struct Endpoint {
    listen: SocketAddr,
    address: String,
}

fn read_endpoint(
    document: &Document<'_>,
    table: &mut Reader<'_, '_, '_>,
    port_key: &'static str,
    port_default: u16,
    open: bool,
) -> Endpoint {
    let port = table
        .number(port_key, 1..=65_535, "")
        .map_or(port_default, |(port, _)| u16::try_from(port).expect("the range was checked"));
    let listen = table.parsed("listen", |text| {
        text.parse::<IpAddr>()
            .map_err(|_| format!("{text:?} is not an IP address: expected one such as \"127.0.0.1\" or \"::\""))
    });
    let ip = listen.as_ref().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |(ip, _)| *ip);
    let name = table.name("listen");
    if !ip.is_loopback()
        && !open
        && let Some((_, span)) = &listen
    {
        document.problem(
            span.clone(),
            format!(
                "{name} is {ip}: without TLS a replica listens on loopback only; \
                 expected \"127.0.0.1\", or ca, certificate and key in [security], or insecure = true there on a network \
                 you trust"
            ),
        );
    }
    let socket = SocketAddr::new(ip, port);
    let advertised = table.text("advertise").and_then(|(text, span)| match check_address(text, port) {
        Ok(address) => Some(address),
        Err(problem) => {
            let name = table.name("advertise");
            document.problem(span, format!("{name}: {problem}"));
            None
        }
    });
    if advertised.is_none() && ip.is_unspecified() && table.value("advertise").is_none() {
        let at = listen.map_or_else(|| table.span(), |(_, span)| span);
        let advertise = table.name("advertise");
        document.problem(
            at,
            format!("{name} is {ip}, which others cannot reach: expected {advertise} beside it, this host's name"),
        );
    }
    Endpoint { listen: socket, address: advertised.unwrap_or_else(|| socket.to_string()) }
}

fn read_bootstrap(document: &Document<'_>, raft: &mut Reader<'_, '_, '_>) -> Vec<Bootstrap> {
    let mut table = raft.table("bootstrap");
    let mut nodes = Vec::new();
    for value in table.array("nodes", "{ id = NAME, addr = \"host:port\" }") {
        let path = table.name("nodes");
        let mut node = Reader::of(document, path, value, "{ id = NAME, addr = \"host:port\" }");
        let id = node.parsed("id", ReplicaName::new).map(|(name, _)| name);
        let addr = node.parsed("addr", |text| check_address(text, 9443)).map(|(addr, _)| addr);
        if addr.is_none() && node.value("addr").is_none() && value.get_ref().is_table() {
            document.problem(
                value.span(),
                "raft.bootstrap.nodes: addr is missing: expected \"host:port\", a replica's client port",
            );
        }
        node.finish();
        nodes.extend(addr.map(|addr| Bootstrap { id, addr }));
    }
    table.finish();
    nodes
}

/// Takes `host` or `host:port`.
pub(crate) fn check_address(text: &str, port_default: u16) -> Result<String, String> {
    let wrong = || format!("{text:?} is not an address: expected host or host:port");
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port_default).to_string());
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().map_err(|_| wrong())?),
        None => (text, port_default),
    };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if host.is_empty() || port == 0 || !(plain || bracketed) {
        return Err(wrong());
    }
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse("muster.toml", text, false).map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_name_alone_is_a_configuration_with_the_missions_defaults() {
        let config = parse("[raft]\nnode_id = \"node-1\"\n").unwrap();
        let timing = config.timing;
        assert_eq!((timing.heartbeat_ms, timing.election_ms_min, timing.election_ms_max), (150, 300, 500));
        assert_eq!(config.snapshot_threshold, 10_000);
        assert_eq!(config.snapshot_chunk_bytes, 1_048_576);
        assert_eq!(config.payload_bytes_max, 4_194_304);
        assert_eq!(config.peer_address, "127.0.0.1:9444");
        assert_eq!(config.client_address, "127.0.0.1:9443");
    }

    #[test]
    fn the_missions_own_example_is_read() {
        let config = parse(
            "[raft]\nnode_id = \"node-1\"\ndata_dir = \"/var/lib/univrs/raft\"\nheartbeat_interval_ms = 150\n\
             election_timeout_min_ms = 300\nelection_timeout_max_ms = 500\nsnapshot_threshold = 10000\n\
             snapshot_max_chunk_size = 1048576\nraft_port = 7000\nmax_payload_size = 4194304\n[raft.bootstrap]\n\
             nodes = [\n    { id = \"node-1\", addr = \"192.168.1.10:7000\" },\n    \
             { id = \"node-2\", addr = \"192.168.1.11:7000\" },\n]\n",
        )
        .unwrap();
        assert_eq!(config.peer_listen.port(), 7000);
        assert_eq!(config.bootstrap[1].addr, "192.168.1.11:7000");
    }

    #[test]
    fn the_example_has_every_key_and_what_counts_without_it() {
        let said = parse(EXAMPLE).unwrap();
        let section = |name: &str| EXAMPLE.split("\n[").find(|part| part.starts_with(&format!("{name}]"))).unwrap();
        for (key, _) in said.rows() {
            let (of, name) = key.rsplit_once('.').unwrap();
            let has = |line: &str| line.strip_prefix("# ").unwrap_or(line).starts_with(&format!("{name} = "));
            assert!(section(of).lines().any(has), "{key} is not in the example");
        }
        // Those that stand for a choice say what it would be, not what counts without it.
        let choices = ["insecure", "lease_clock_drift_ppm"];
        let boot_listen = "# listen = \"10.0.0.11\"                      # where";
        let all: String = EXAMPLE
            .lines()
            .filter(|line| {
                !choices.iter().any(|key| line.starts_with(&format!("# {key}"))) && !line.starts_with(boot_listen)
            })
            .map(|line| match line.strip_prefix("# ") {
                Some(key) if key.contains(" = ") => format!("{key}\n"),
                Some(_) | None => format!("{line}\n"),
            })
            .collect();
        assert_eq!(parse(&all).unwrap().rows(), said.rows());
    }

    #[test]
    fn a_preset_is_the_ground_on_which_single_keys_stand() {
        let config = parse("[raft]\nnode_id = \"n\"\ntiming = \"wan\"\nelection_timeout_max_ms = 9000\n").unwrap();
        assert_eq!(config.timing, Timing { election_ms_max: 9_000, ..Timing::WAN });
    }

    #[test]
    fn beyond_loopback_needs_the_word_insecure() {
        let text = "[raft]\nnode_id = \"n\"\nlisten = \"10.0.0.1\"\n";
        assert!(parse(text).unwrap_err().starts_with("muster.toml:3: raft.listen is 10.0.0.1: without TLS"));
        assert_eq!(Config::parse("f", text, true).unwrap().peer_address, "10.0.0.1:9444");
        let wildcard = "[raft]\nnode_id = \"n\"\nlisten = \"0.0.0.0\"\n";
        assert!(Config::parse("f", wildcard, true).unwrap_err().to_string().contains("raft.advertise"));
    }

    #[test]
    fn addresses_may_leave_the_port_to_the_default() {
        assert_eq!(check_address("db-1", 9443).unwrap(), "db-1:9443");
        assert_eq!(check_address("::1", 9443).unwrap(), "[::1]:9443");
        assert_eq!(check_address("[::1]:7", 9443).unwrap(), "[::1]:7");
        assert!(check_address("db 1", 9443).is_err());
        assert!(check_address("db-1:0", 9443).is_err());
    }
}
