//! A CA and servers that speak TLS by it: real processes, real certificates.

use super::{Ended, MUSTER, eventually, free_ports, muster};
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A CA and servers that speak TLS by it.
pub struct Secured {
    pub dir: TempDir,
    pub servers: Vec<Server>,
}

pub struct Server {
    pub config: PathBuf,
    pub log: PathBuf,
    pub clients: u16,
    pub peers: u16,
    pub child: Option<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl Secured {
    /// A CA of the cluster `prod`.
    pub fn new() -> Self {
        let secured = Self { dir: TempDir::new().unwrap(), servers: Vec::new() };
        muster(&["certs", "init", &secured.at("ca"), "--cluster", "prod"]).expect(0);
        secured
    }

    /// The same with that many replicas that take part.
    pub fn start(replicas: usize) -> Self {
        let mut secured = Self::new();
        secured.issue("admin", "root");
        for i in 0..replicas {
            let i = secured.configure(&format!("r{}", i + 1));
            let config = secured.servers[i].config.display().to_string();
            if i == 0 {
                muster(&["init", "--config", &config]).expect(0);
            } else {
                // Its own certificate is what it takes.
                muster(&["join", "--promote", "--config", &config]).expect(0);
            }
            secured.spawn(i);
            eventually("somebody leads", || {
                let status = secured.by("admin-root", &["status", "--json"]);
                let value: Value = serde_json::from_str(&status.stdout).ok()?;
                value["replicas"].as_array()?.iter().any(|replica| replica["raft"]["role"] == "leader").then_some(())
            });
        }
        secured
    }

    pub fn at(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// The path of a file of the CA's directory.
    pub fn file(&self, name: &str) -> String {
        self.at(&format!("ca/{name}"))
    }

    pub fn issue(&self, role: &str, name: &str) -> String {
        muster(&["certs", "issue", "--dir", &self.at("ca"), "--role", role, name]).expect(0);
        format!("{}-{name}", role.replace(':', "-"))
    }

    pub fn configure(&mut self, name: &str) -> usize {
        let stem = self.issue("replica", name);
        let ports = free_ports(2);
        let nodes: Vec<_> =
            self.servers.iter().map(|server| format!("{{ addr = \"127.0.0.1:{}\" }}", server.clients)).collect();
        let text = format!(
            "[raft]\nnode_id = \"{name}\"\ndata_dir = \"{}\"\nraft_port = {}\n[raft.bootstrap]\nnodes = [{}]\n[client]\nport = {}\n\
             [security]\nca = \"{}\"\ncertificate = \"{}\"\nkey = \"{}\"\n",
            self.at(name),
            ports[0],
            nodes.join(", "),
            ports[1],
            self.file("ca.pem"),
            self.file(&format!("{stem}.pem")),
            self.file(&format!("{stem}.key")),
        );
        let config = self.dir.path().join(format!("{name}.toml"));
        std::fs::write(&config, text).unwrap();
        let log = self.dir.path().join(format!("{name}.log"));
        self.servers.push(Server { config, log, clients: ports[1], peers: ports[0], child: None });
        self.servers.len() - 1
    }

    pub fn spawn(&mut self, i: usize) {
        let server = &mut self.servers[i];
        let log = File::options().create(true).append(true).open(&server.log).unwrap();
        let child = Command::new(MUSTER)
            .args(["server", "--until-stdin-closes", "--config"])
            .arg(&server.config)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        server.child = Some(child);
    }

    pub fn address(&self, i: usize) -> String {
        format!("127.0.0.1:{}", self.servers[i].clients)
    }

    pub fn log(&self, i: usize) -> String {
        std::fs::read_to_string(&self.servers[i].log).unwrap_or_default()
    }

    /// Runs a verb with a certificate of this CA, against all servers.
    pub fn by(&self, who: &str, args: &[&str]) -> Ended {
        let servers: Vec<_> = (0..self.servers.len()).map(|i| self.address(i)).collect();
        with(&self.file("ca.pem"), &self.file(who), &servers.join(","), args)
    }

    /// Two vClusters, and a node in each: `gpu1` in `ml`, `cpu1` in `hpc`.
    pub fn fleet(&self) {
        let file = self.at("fleet.toml");
        let text = "[global.kernel]\n\"vm.swappiness\" = 10\n[vcluster.ml.policy]\nmode = \"enforce\"\n\
                    [vcluster.hpc.policy]\nmode = \"enforce\"\n[[nodes]]\nnames = \"gpu[1-2]\"\nvcluster = \"ml\"\n\
                    [[nodes]]\nnames = \"cpu1\"\nvcluster = \"hpc\"\n";
        std::fs::write(&file, text).unwrap();
        self.by("admin-root", &["apply", &file]).expect(0);
    }
}

/// Runs a verb with any CA and `STEM.pem`, `STEM.key`.
pub fn with(ca: &str, stem: &str, servers: &str, args: &[&str]) -> Ended {
    let (certificate, key) = (format!("{stem}.pem"), format!("{stem}.key"));
    let more = ["--server", servers, "--tls-ca", ca, "--tls-cert", &certificate, "--tls-key", &key, "--timeout", "5"];
    muster(&[args, &more[..]].concat())
}

pub fn curl(args: &[&str]) -> (i32, String) {
    let output = Command::new("curl").args(["-sS", "--max-time", "10"]).args(args).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), text)
}

/// When a certificate counts.
#[derive(Clone, Copy)]
pub enum Term {
    InForce,
    Over,
    ToCome,
    /// Until that many seconds after the Unix epoch.
    Until(u64),
}

/// A certificate of the CA with any URI in it, made by openssl.
pub fn openssl_certificate(secured: &Secured, uri: &str, stem: &str, term: Term) {
    let openssl = |args: &[&str]| {
        let output = Command::new("openssl").args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
    };
    let (key, request, certificate, names) =
        (format!("{stem}.key"), format!("{stem}.csr"), format!("{stem}.pem"), format!("{stem}.ext"));
    openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &format!("{stem}.sec1")]);
    openssl(&["pkcs8", "-topk8", "-nocrypt", "-in", &format!("{stem}.sec1"), "-out", &key]);
    openssl(&["req", "-new", "-key", &key, "-subj", "/CN=somebody", "-out", &request]);
    std::fs::write(&names, format!("subjectAltName=URI:{uri}\nextendedKeyUsage=clientAuth,serverAuth\n")).unwrap();
    let (ca, ca_key) = (secured.file("ca.pem"), secured.file("ca.key"));
    // Only the long way lets one choose when a certificate ended.
    std::fs::write(format!("{stem}.index"), "").unwrap();
    std::fs::write(format!("{stem}.serial"), "07\n").unwrap();
    let dir = Path::new(stem).parent().unwrap().display();
    let settings = format!(
        "[ca]\ndefault_ca=d\n[d]\ndatabase={stem}.index\nserial={stem}.serial\nnew_certs_dir={dir}\ndefault_md=sha256\n\
         policy=p\n[p]\ncommonName=supplied\n"
    );
    let config = format!("{stem}.cnf");
    std::fs::write(&config, settings).unwrap();
    let mut args = vec!["ca", "-batch", "-notext", "-config", &config, "-cert", &ca, "-keyfile", &ca_key];
    args.extend(["-in", &request, "-extfile", &names, "-out", &certificate]);
    let (from, until) = match term {
        Term::InForce => ("200101000000Z".to_owned(), "20990101000000Z".to_owned()),
        Term::Over => ("200101000000Z".to_owned(), "200201000000Z".to_owned()),
        Term::ToCome => ("20990101000000Z".to_owned(), "20990201000000Z".to_owned()),
        Term::Until(seconds) => {
            let date = Command::new("date").args(["-u", "-d", &format!("@{seconds}"), "+%Y%m%d%H%M%SZ"]).output();
            ("200101000000Z".to_owned(), String::from_utf8(date.unwrap().stdout).unwrap().trim().to_owned())
        }
    };
    args.extend(["-startdate", &from, "-enddate", &until]);
    openssl(&args);
}
