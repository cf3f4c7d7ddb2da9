//! A replica's beginnings: `init` makes a cluster, `join` has a replica admitted, `replace` does so in another's place.
//!
//! Each writes the data directory and ends; `muster server` runs it. Nothing happens implicitly: a directory that is a
//! replica's already is refused, and an id once allotted is never taken again.
//!
//! A replica asks for admission under an incarnation that is on disk before it asks. Asked again after a crash in between, it
//! asks under the same one and is given the same id.

use crate::config::Config;
use crate::exit::Failure;
use muster_core::driver::BOOTSTRAP;
use muster_core::ids::{ClusterId, GroupId, Incarnation, ReplicaId};
use muster_core::journal::entry::Author;
use muster_core::limits::FEATURE_LEVEL;
use muster_core::log::Configuration;
use muster_core::members::{Admission, Member, MemberWish};
use muster_core::request::Freshness;
use muster_core::service::Caller;
use muster_core::state::State;
use muster_core::storage::Identity;
use muster_net::client::{Admitted, Client, ClientError, Options};
use muster_net::tls::Tls;
use muster_storage::{Lock, RealDisk, WalOptions, ready};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The journal's group on every host.
const JOURNAL: GroupId = GroupId(1);

/// Random bits for ids. An operating system without randomness is one we cannot run on.
pub(crate) fn draw() -> u128 {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    u128::from_le_bytes(bytes)
}

/// Whether nobody's replica is in a directory.
pub(crate) fn is_empty(dir: &Path) -> Result<bool, Failure> {
    match dir.join("identity").try_exists() {
        Ok(exists) => Ok(!exists),
        Err(error) => {
            Err(Failure::error(format!("{} cannot be read: {error}", dir.display()), "check its permissions"))
        }
    }
}

fn prepare(dir: &Path) -> Result<Lock, Failure> {
    std::fs::create_dir_all(dir).map_err(|error| {
        Failure::error(
            format!("{} cannot be made: {error}", dir.display()),
            "make it writable for this user, or set another raft.data_dir",
        )
    })?;
    Ok(Lock::take(dir)?)
}

/// Makes a new cluster of this replica alone.
pub(crate) fn init(config: &Config) -> Result<Identity, Failure> {
    let _lock = prepare(&config.data_dir)?;
    let identity = Identity {
        cluster: ClusterId(draw()),
        group: JOURNAL,
        replica: ReplicaId(1),
        incarnation: Incarnation(draw()),
        name: config.node_id.clone(),
    };
    let member = Member {
        id: identity.replica,
        name: identity.name.clone(),
        incarnation: identity.incarnation,
        peer_address: Arc::from(config.peer_address.as_str()),
        client_address: Arc::from(config.client_address.as_str()),
        wish: MemberWish::Voter,
        feature_level: FEATURE_LEVEL,
    };
    let state = State::new(identity.cluster, member);
    let (index, term) = BOOTSTRAP;
    let configuration = Configuration { voters: vec![identity.replica], ..Configuration::default() };
    let meta = state.snapshot_meta(index, term, configuration);
    let first = Some((meta, state.layer()));
    ready(muster_storage::init(RealDisk, &config.data_dir, &identity, first, WalOptions::default()))?;
    Ok(identity)
}

/// Has this replica admitted to the cluster that the bootstrap nodes belong to.
pub(crate) async fn join(config: &Config, author: &Author, promote: bool) -> Result<Identity, Failure> {
    let wish = if promote { MemberWish::Voter } else { MemberWish::Learner };
    // A replica's certificate is what it takes to be admitted under the name in it.
    let client = connect(config, own_keys(config)?).await?;
    let lock = prepare(&config.data_dir)?;
    admit(config, &client, author, wish, lock).await
}

/// What `replace` did.
pub(crate) struct Replaced {
    /// The new member.
    pub(crate) identity: Identity,
    /// Whose place it takes.
    pub(crate) old: ReplicaId,
    /// Where the old directory went, if there was one.
    pub(crate) aside: Option<PathBuf>,
}

/// Has this replica admitted in another's place, which takes an admin's keys. What is in its directory is moved aside, not
/// removed.
pub(crate) async fn replace(
    config: &Config,
    keys: Option<Tls>,
    author: &Author,
    old: &str,
) -> Result<Replaced, Failure> {
    let keys = match keys {
        Some(keys) => Some(keys),
        None => own_keys(config)?,
    };
    let client = connect(config, keys).await?;
    let members = crate::verbs::cluster::members(&client, Freshness::Linearizable).await?;
    let old = crate::verbs::cluster::find(&members, old)?;
    let aside = move_aside(&config.data_dir)?;
    let lock = prepare(&config.data_dir)?;
    let identity = admit(config, &client, author, MemberWish::Replacement { of: old }, lock).await?;
    Ok(Replaced { identity, old, aside })
}

/// Moves a directory that holds anything to a free name beside it. One that only waits for its admission stays.
fn move_aside(dir: &Path) -> Result<Option<PathBuf>, Failure> {
    let unmovable = |error: std::io::Error| {
        Failure::error(format!("{} cannot be moved aside: {error}", dir.display()), "move it by hand, then try again")
    };
    if !dir.exists() || (is_empty(dir)? && pending(dir).exists()) {
        return Ok(None);
    }
    // Held while it is moved, so that no running replica loses its directory. The lock goes with it.
    let _lock = Lock::take(dir)?;
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    for number in 1..=1_000 {
        let aside = dir.with_file_name(format!("{name}.replaced-{number}"));
        if !aside.exists() {
            std::fs::rename(dir, &aside).map_err(unmovable)?;
            return Ok(Some(aside));
        }
    }
    Err(Failure::error(
        format!("{} was moved aside a thousand times", dir.display()),
        "remove what is not needed any more",
    ))
}

/// The replica's own keys, which must be a replica's, under its name.
pub(crate) fn own_keys(config: &Config) -> Result<Option<Tls>, Failure> {
    let Some(files) = &config.keys else { return Ok(None) };
    let tls = Tls::load(files.clone())?;
    let credential = tls.credential();
    match credential.caller() {
        Caller::Replica(name) if *name == config.node_id => Ok(Some(tls)),
        Caller::Replica(_) | Caller::Author(_) | Caller::Nobody => Err(Failure::error(
            format!(
                "{} is of {credential}, raft.node_id is {:?}",
                files.certificate.display(),
                config.node_id.as_str()
            ),
            format!("make one with `muster certs issue --role replica {}`", config.node_id),
        )),
    }
}

/// Reaches the first bootstrap node that answers, in order.
async fn connect(config: &Config, tls: Option<Tls>) -> Result<Client, Failure> {
    if config.bootstrap.is_empty() {
        return Err(Failure::error(
            "the configuration names nobody to ask",
            "add [raft.bootstrap] nodes = [{ addr = \"HOST:9443\" }] with the client address of a running replica",
        ));
    }
    let options = Options {
        write_timeout: Duration::from_millis(config.timing.request_ms.saturating_mul(2)),
        tls,
        ..Options::default()
    };
    let mut tried = Vec::new();
    for node in &config.bootstrap {
        match Client::connect(vec![node.addr.clone()], options.clone()).await {
            Ok(client) => return Ok(client),
            Err(ClientError::Unreachable { tried: problems }) => tried.extend(problems),
            Err(error @ ClientError::Denied { .. }) => return Err(error.into()),
            Err(error) => tried.push((node.addr.clone(), error.to_string())),
        }
    }
    let tried: Vec<_> = tried.iter().map(|(address, problem)| format!("{address} ({problem})")).collect();
    Err(Failure::error(
        format!("no bootstrap node answers: {}", tried.join(", ")),
        "check that one of them runs, and that raft.bootstrap.nodes names client addresses (port 9443, not 9444)",
    ))
}

/// Where the incarnation is kept until the admission is through.
fn pending(dir: &Path) -> PathBuf {
    dir.join("joining")
}

/// The incarnation to ask under: that of an earlier attempt, or a new one, on disk before it is used.
fn incarnation(dir: &Path) -> Result<Incarnation, Failure> {
    let path = pending(dir);
    if let Some(incarnation) = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()) {
        return Ok(incarnation);
    }
    let incarnation = Incarnation(draw());
    let mut file = File::create(&path)?;
    writeln!(file, "{incarnation}")?;
    file.sync_all()?;
    File::open(dir)?.sync_all()?;
    Ok(incarnation)
}

async fn admit(
    config: &Config,
    client: &Client,
    author: &Author,
    wish: MemberWish,
    lock: Lock,
) -> Result<Identity, Failure> {
    let dir = &config.data_dir;
    if !is_empty(dir)? {
        return Err(Failure::error(
            format!("{} is a replica's already", dir.display()),
            "run it with `muster server`; a damaged one is replaced with `muster replace --old ID`",
        ));
    }
    let admission = Admission {
        name: config.node_id.clone(),
        incarnation: incarnation(dir)?,
        peer_address: Arc::from(config.peer_address.as_str()),
        client_address: Arc::from(config.client_address.as_str()),
        wish,
        feature_level: FEATURE_LEVEL,
    };
    let Admitted { cluster, group, replica, .. } = client.admit(&admission, author).await?;
    let identity = Identity { cluster, group, replica, incarnation: admission.incarnation, name: admission.name };
    ready(muster_storage::init(RealDisk, dir, &identity, None, WalOptions::default()))?;
    // The identity is durable: what led to it is not needed any more.
    std::fs::remove_file(pending(dir))?;
    drop(lock);
    Ok(identity)
}
