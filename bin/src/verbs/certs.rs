//! `muster certs`: a small certificate authority in a directory, for those who have none. Works on files alone.

use super::show;
use crate::args::CertsVerb;
use crate::exit::Failure;
use crate::text;
use muster_core::ids::WallTime;
use muster_core::service::{Caller, Credential};
use muster_net::tls::authority::{Authority, Described, describe};
use serde_json::{Value, json as object};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long certificates count if nothing is said, in days.
const CA_DAYS: u64 = 3_650;
const MACHINE_DAYS: u64 = 365;
const PERSON_DAYS: u64 = 90;

pub(crate) fn certs(verb: CertsVerb, json: bool) -> Result<(), Failure> {
    match verb {
        CertsVerb::Init { dir, cluster, days } => init(&dir, &cluster, days.unwrap_or(CA_DAYS), json),
        CertsVerb::Issue { name, role, dir, hosts, days, out } => {
            let authority = Authority::open(&dir)?;
            let credential = Credential::new(authority.cluster(), &role, &name).map_err(|error| {
                Failure::usage(error.problem, "roles: admin, operator:VCLUSTER, viewer:VCLUSTER, agent, replica")
            })?;
            issue(&authority, &credential, hosts, days, &out.unwrap_or_else(|| dir.join(stem(&credential))), json)
        }
        CertsVerb::Renew { files, dir, days } => renew(&files, dir.as_deref(), days, json),
        CertsVerb::Show { files } => describe_all(&files, json),
    }
}

fn when(seconds: u64) -> String {
    text::time(WallTime(seconds.saturating_mul(1_000)))
}

fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs())
}

fn init(dir: &Path, cluster: &str, life: u64, json: bool) -> Result<(), Failure> {
    let authority = Authority::init(dir, cluster, days(life))?;
    let certificate = authority.certificate().display().to_string();
    let dir = dir.display();
    let out = format!(
        "{certificate} is the CA of cluster {cluster}; {dir}/ca.key signs for it: keep that one safe and off the servers\n\
         next, a certificate for each replica and for yourself:\n  \
         muster certs issue --dir {dir} --role replica --host HOST journal-1\n  \
         muster certs issue --dir {dir} --role admin NAME\n"
    );
    show(json, &object!({ "outcome": "made", "certificate": certificate, "cluster": cluster }), &out)
}

/// `operator-ml-alice` and the like: one name for each holder there can be.
pub(crate) fn stem(credential: &Credential) -> String {
    format!("{}-{}", credential.role().replace(':', "-"), credential.name())
}

/// The hosts a certificate names besides those that were said: replicas and agents answer on their own machine too.
pub(crate) fn hosts_of(credential: &Credential, said: Vec<String>) -> Vec<String> {
    let mut hosts = said;
    if is_machine(credential) {
        let name = credential.name();
        let is_host = name.parse::<IpAddr>().is_err()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
        hosts.extend(is_host.then(|| name.to_owned()));
        hosts.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    }
    hosts.dedup();
    hosts
}

fn is_machine(credential: &Credential) -> bool {
    match credential.caller() {
        Caller::Replica(_) => true,
        Caller::Author(author) => matches!(author.role, muster_core::journal::entry::Role::Agent(_)),
        Caller::Nobody => false,
    }
}

/// So many days.
pub(crate) const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 86_400)
}

pub(crate) fn days_of(credential: &Credential) -> u64 {
    if is_machine(credential) { MACHINE_DAYS } else { PERSON_DAYS }
}

fn issue(
    authority: &Authority,
    credential: &Credential,
    hosts: Vec<String>,
    life: Option<u64>,
    stem: &Path,
    json: bool,
) -> Result<(), Failure> {
    if !is_machine(credential) && !hosts.is_empty() {
        return Err(Failure::usage("a person's certificate names no host", "leave --host out"));
    }
    let hosts = hosts_of(credential, hosts);
    let issued = authority.issue(credential, &hosts, days(life.unwrap_or_else(|| days_of(credential))), stem)?;
    let (ca, certificate, key) =
        (authority.certificate().display().to_string(), issued.certificate.display(), issued.key.display());
    let next = if is_machine(credential) {
        format!(
            "in the configuration on its machine:\n  [security]\n  ca = {ca:?}\n  certificate = \"{certificate}\"\n  key = \"{key}\"\n"
        )
    } else {
        format!("to use it:\n  export MUSTER_TLS_CA={ca} MUSTER_TLS_CERT={certificate} MUSTER_TLS_KEY={key}\n")
    };
    let out = format!("{certificate} is {credential}, until {}\n{next}", when(issued.shown.not_after));
    let value = object!({
        "outcome": "made",
        "ca": ca,
        "certificate": certificate.to_string(),
        "key": key.to_string(),
        "subject": credential.uri(),
        "not_after": when(issued.shown.not_after),
    });
    show(json, &value, &out)
}

fn renew(files: &[PathBuf], dir: Option<&Path>, life: Option<u64>, json: bool) -> Result<(), Failure> {
    let mut values: Vec<Value> = Vec::new();
    let mut out = String::new();
    for file in files {
        let beside = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let mut authority = Authority::open(dir.unwrap_or(beside))?;
        let is_ca = describe(file)?.first().is_some_and(|described| described.holder.is_err());
        let not_after = if is_ca {
            if !same_file(file, authority.certificate()) {
                let problem = format!("{} is another CA than {}", file.display(), authority.certificate().display());
                return Err(Failure::error(problem, "renew a CA where its key is"));
            }
            authority.renew_ca(days(life.unwrap_or(CA_DAYS)))?
        } else {
            let credential = describe(file)?.into_iter().find_map(|described| described.holder.ok());
            let usual = credential.as_ref().map_or(PERSON_DAYS, days_of);
            authority.renew(file, days(life.unwrap_or(usual)))?.not_after
        };
        let _ = writeln!(out, "{} counts until {}", file.display(), when(not_after));
        values.push(object!({ "certificate": file.display().to_string(), "not_after": when(not_after) }));
    }
    out.push_str("servers and agents that use them take them within a second, without a restart\n");
    show(json, &object!({ "outcome": "renewed", "certificates": values }), &out)
}

fn same_file(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

fn describe_all(files: &[PathBuf], json: bool) -> Result<(), Failure> {
    let mut values: Vec<Value> = Vec::new();
    let mut out = String::new();
    for file in files {
        for described in describe(file)? {
            let Described { holder, issuer, not_before, not_after, hosts, serial } = described;
            let subject = match &holder {
                Ok(credential) => credential.uri().to_owned(),
                Err(name) => name.clone(),
            };
            let left = not_after.saturating_sub(now()) / 86_400;
            let ended = if not_after <= now() { "ended".to_owned() } else { format!("{left} days left") };
            let _ = writeln!(out, "{}", file.display());
            for (name, value) in [
                ("subject", subject.clone()),
                ("role", holder.as_ref().map_or_else(|_| "the CA".to_owned(), Credential::role)),
                (
                    "cluster",
                    holder.as_ref().map_or_else(|_| String::new(), |credential| credential.cluster().to_owned()),
                ),
                ("hosts", hosts.join(", ")),
                ("issuer", issuer.clone()),
                ("from", when(not_before)),
                ("until", format!("{} ({ended})", when(not_after))),
                ("serial", serial.clone()),
            ] {
                if !value.is_empty() {
                    let _ = writeln!(out, "  {name:<8}{value}");
                }
            }
            values.push(object!({
                "certificate": file.display().to_string(),
                "subject": subject,
                "role": holder.as_ref().map_or_else(|_| "ca".to_owned(), Credential::role),
                "hosts": hosts,
                "issuer": issuer,
                "not_before": when(not_before),
                "not_after": when(not_after),
                "days_left": left,
                "ended": not_after <= now(),
                "serial": serial,
            }));
        }
    }
    show(json, &object!({ "certificates": values }), &out)
}
