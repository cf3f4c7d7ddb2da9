//! The configuration of one agent: a TOML file in, [`AgentConfig`] out, or every problem of the file at once.
//!
//! Never here: touching the directory, the socket or the network.

use crate::config::{ConfigError, LogFormat, check_address};
use crate::context::read_keys;
use crate::document::{Document, Problems, Reader};
use muster_core::agent::machine::CONFLICT_GRACE_SECONDS;
use muster_core::ids::NodeId;
use muster_core::journal::entry::Role;
use muster_core::service::local::LocalRoles;
use muster_net::tls::KeyFiles;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// The port on which agents are asked from elsewhere.
pub(crate) const AGENT_PORT: u16 = 9445;

/// Where an agent's socket is if nothing else is said.
pub(crate) const AGENT_SOCKET: &str = "/run/muster/agent.sock";

/// What `muster agent --example-config` prints.
pub(crate) const EXAMPLE: &str = include_str!("example.toml");

/// One agent's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentConfig {
    /// The node it looks after, as the journal calls it.
    pub(crate) node: NodeId,
    /// Everything the agent keeps.
    pub(crate) data_dir: PathBuf,
    /// Its socket for people on the node.
    pub(crate) socket: PathBuf,
    /// A directory that stands for the machine, for trying out.
    pub(crate) root: Option<PathBuf>,
    /// Paths below which nothing is managed.
    pub(crate) exclude: Vec<String>,
    /// How long a key that was changed here and in the journal stands still.
    pub(crate) conflict_grace_seconds: u64,
    /// Where it is asked from elsewhere; not at all if absent.
    pub(crate) listen: Option<SocketAddr>,
    /// What others are told of that.
    pub(crate) address: String,
    /// The replicas.
    pub(crate) servers: Vec<String>,
    /// The certificates with which it speaks TLS, to replicas and to people elsewhere.
    pub(crate) keys: Option<KeyFiles>,
    /// Who on the node has which role.
    pub(crate) roles: LocalRoles,
    /// What is logged, in the syntax of `RUST_LOG`.
    pub(crate) log_level: String,
    /// How it is logged.
    pub(crate) log_format: LogFormat,
}

impl AgentConfig {
    /// Reads a file. `insecure` is the command line's word for it.
    pub(crate) fn read(path: &Path, insecure: bool) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&file, &text, insecure).map_err(ConfigError::Problems),
            Err(error) => Err(ConfigError::Unreadable { file, problem: error.to_string() }),
        }
    }

    fn parse(file: &str, text: &str, insecure: bool) -> Result<Self, Problems> {
        let document = Document::new(file, text);
        let table = document.parse();
        let mut root = Reader::root(&document, &table);
        let mut agent = root.table("agent");
        let mut journal = root.table("journal");
        let mut security = root.table("security");
        let mut log = root.table("log");

        let node = agent.parsed("node", NodeId::new).map(|(node, _)| node);
        if agent.value("node").is_none() {
            document.problem(agent.span(), "agent.node is missing: expected the node's name, as the journal knows it");
        }
        let data_dir = read_path(&document, &mut agent, "data_dir").unwrap_or_else(|| "/var/lib/muster/agent".into());
        let confined = read_path(&document, &mut agent, "root");
        let socket = read_path(&document, &mut agent, "socket")
            .unwrap_or_else(|| if confined.is_some() { data_dir.join("agent.sock") } else { AGENT_SOCKET.into() });
        let exclude = read_excluded(&document, &mut agent);
        let grace = agent.number("conflict_grace_seconds", 0..=864_000, "seconds");
        let insecure = security.boolean("insecure").unwrap_or(false) || insecure;
        let keys = read_keys(&document, &mut security, Path::new(""));
        let (listen, address) = read_listen(&document, &mut agent, insecure || keys.is_some());
        let servers = read_servers(&document, &mut journal);
        let roles = read_roles(&document, &mut security);
        let (log_level, log_format) = crate::config::read_log(&mut log);

        for table in [agent, journal, security, log, root] {
            table.finish();
        }
        let config = Self {
            // A missing name is a problem already; this one is never used.
            node: node.unwrap_or_else(|| NodeId::new("unnamed").expect("a plain word is a name")),
            data_dir,
            socket,
            root: confined,
            exclude,
            conflict_grace_seconds: grace.map_or(CONFLICT_GRACE_SECONDS, |(seconds, _)| seconds),
            listen,
            address,
            servers,
            keys,
            roles,
            log_level,
            log_format,
        };
        document.finish(config)
    }
}

fn read_path(document: &Document<'_>, table: &mut Reader<'_, '_, '_>, key: &'static str) -> Option<PathBuf> {
    let (text, span) = table.text(key)?;
    if text.starts_with('/') {
        return Some(PathBuf::from(text));
    }
    let name = table.name(key);
    document.problem(span, format!("{name} is {text:?}: expected an absolute path"));
    None
}

fn read_excluded(document: &Document<'_>, agent: &mut Reader<'_, '_, '_>) -> Vec<String> {
    let mut paths = Vec::new();
    for value in agent.array("exclude", "absolute paths in quotes") {
        match value.get_ref().as_str() {
            Some(path) if path.starts_with('/') => paths.push(path.to_owned()),
            Some(path) => {
                document.problem(value.span(), format!("agent.exclude has {path:?}: expected an absolute path"));
            }
            None => document.problem(value.span(), "agent.exclude: expected absolute paths in quotes"),
        }
    }
    paths
}

/// Where it listens, and what others are told.
fn read_listen(
    document: &Document<'_>,
    agent: &mut Reader<'_, '_, '_>,
    insecure: bool,
) -> (Option<SocketAddr>, String) {
    let port = agent.number("port", 0..=65_535, "");
    let port = port.map_or(AGENT_PORT, |(port, _)| u16::try_from(port).expect("the range was checked"));
    let listen = agent.parsed("listen", |text| {
        if text == "off" {
            return Ok(None);
        }
        text.parse::<IpAddr>().map(Some).map_err(|_| {
            format!("{text:?} is not an IP address: expected one such as \"127.0.0.1\" or \"::\", or \"off\"")
        })
    });
    let span = listen.as_ref().map_or_else(|| agent.span(), |(_, span)| span.clone());
    let ip = listen.map_or(Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), |(ip, _)| ip);
    let advertised = agent.parsed("advertise", |text| check_address(text, port)).map(|(address, _)| address);
    let Some(ip) = ip else { return (None, String::new()) };
    if !ip.is_loopback() && !insecure {
        document.problem(
            span.clone(),
            format!(
                "agent.listen is {ip}: without TLS an agent listens on loopback only; expected \"127.0.0.1\", \"off\", \
                 certificates in [security], or insecure = true there on a network you trust"
            ),
        );
    }
    if ip.is_unspecified() && advertised.is_none() {
        document.problem(
            span,
            format!(
                "agent.listen is {ip}, which others cannot reach: expected agent.advertise beside it, this host's name"
            ),
        );
    }
    let socket = SocketAddr::new(ip, port);
    (Some(socket), advertised.unwrap_or_else(|| socket.to_string()))
}

fn read_servers(document: &Document<'_>, journal: &mut Reader<'_, '_, '_>) -> Vec<String> {
    let mut servers = Vec::new();
    let given = journal.array("servers", "\"host:port\"");
    if given.is_empty() {
        document.problem(
            journal.span(),
            "journal.servers is missing: expected the replicas' client addresses, such as [\"10.0.0.11:9443\"]",
        );
    }
    for value in given {
        match value.get_ref().as_str().map(|text| check_address(text, 9443)) {
            Some(Ok(address)) => servers.push(address),
            Some(Err(problem)) => document.problem(value.span(), format!("journal.servers: {problem}")),
            None => document.problem(value.span(), "journal.servers: expected \"host:port\" in quotes"),
        }
    }
    servers
}

/// Roles by user and group: numbers, or names of this machine.
fn read_roles(document: &Document<'_>, security: &mut Reader<'_, '_, '_>) -> LocalRoles {
    let mut roles = LocalRoles::default();
    for (key, file) in [("users", "/etc/passwd"), ("groups", "/etc/group")] {
        let Some(value) = security.value(key) else { continue };
        let table = Reader::of(document, security.name(key), value, "a table such as { root = \"admin\" }");
        for (name, span, value) in table.entries() {
            let role = match value.get_ref().as_str().map(crate::args::role) {
                Some(Ok(role @ (Role::Admin | Role::Operator(_) | Role::Viewer(_)))) => role,
                Some(Ok(Role::Agent(_) | Role::System)) | None => {
                    let want = "expected \"admin\", \"operator:VCLUSTER\" or \"viewer:VCLUSTER\"";
                    document.problem(value.span(), format!("security.{key}.{name}: {want}"));
                    continue;
                }
                Some(Err(problem)) => {
                    document.problem(value.span(), format!("security.{key}.{name}: {problem}"));
                    continue;
                }
            };
            let Some(id) = name.parse().ok().or_else(|| id_of(file, name)) else {
                document.problem(
                    span,
                    format!("security.{key}.{name}: there is no such name in {file}, and it is no number"),
                );
                continue;
            };
            if key == "users" {
                roles.users.insert(id, role);
            } else {
                roles.groups.insert(id, role);
            }
        }
    }
    roles
}

fn id_of(file: &str, name: &str) -> Option<u32> {
    let accounts = std::fs::read_to_string(file).ok()?;
    let mut fields = accounts.lines().map(|line| line.split(':'));
    fields.find_map(|mut fields| (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AgentConfig, String> {
        AgentConfig::parse("agent.toml", text, false).map_err(|problems| problems.to_string())
    }

    #[test]
    fn the_example_is_good() {
        let config = parse(EXAMPLE).unwrap();
        assert_eq!(config.node.as_str(), "gpu017");
        assert_eq!(config.socket, Path::new(AGENT_SOCKET));
    }

    #[test]
    fn every_problem_is_told_with_its_line() {
        let text = "[agent]\nnode = \"a b\"\nroot = \"here\"\nlisten = \"10.0.0.1\"\nnod = 1\n[journal]\nservers = [\"a b\"]\n\
                    [security.users]\nroot = \"boss\"\nnobody-of-this-name = \"admin\"\n";
        let problems = parse(text).unwrap_err();
        let lines: Vec<&str> = problems.lines().collect();
        let begins = [
            "agent.toml:2: agent.node",
            "agent.toml:3: agent.root",
            "agent.toml:4: agent.listen is 10.0.0.1",
            "agent.toml:5: agent.nod is not a key",
            "agent.toml:7: journal.servers",
            "agent.toml:9: security.users.root",
            "agent.toml:10: security.users.nobody-of-this-name",
        ];
        assert_eq!(lines.len(), begins.len(), "{problems}");
        for (line, begin) in lines.iter().zip(begins) {
            assert!(line.starts_with(begin), "{line} does not begin with {begin}");
        }
    }

    #[test]
    fn under_a_root_the_socket_is_in_the_agents_own_directory() {
        let text = "[agent]\nnode = \"n\"\nroot = \"/tmp/x\"\ndata_dir = \"/tmp/d\"\nlisten = \"off\"\n[journal]\nservers = [\"h\"]\n";
        let config = parse(text).unwrap();
        assert_eq!(config.socket, Path::new("/tmp/d/agent.sock"));
        assert_eq!(config.listen, None);
        assert_eq!(config.servers, ["h:9443"]);
    }
}
