//! The agent's link to the journal, through the Rust client: which tries one replica after another, for some seconds.
//!
//! In memory it keeps the overlay of the last boot, so that a boot after a change brings the delta alone.

use muster_core::agent::fleet::NodeReport;
use muster_core::agent::journal::{Away, Following, Journal};
use muster_core::agent::ledger::Declared;
use muster_core::ids::{Age, NodeId, Seq};
use muster_core::journal::document::{self, Document};
use muster_core::journal::entry::{Author, Principal, Record};
use muster_core::journal::key::Scope;
use muster_core::query::Query;
use muster_core::request::{Freshness, NotApplied, Outcome, Refusal, RequestId, UnknownWhy, WriteRequest};
use muster_net::client::{Boot, BootAsk, Client, ClientError, LogFilter, OneShot, Options, Subscription, Topic};
use muster_net::tls::Tls;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How the link behaves: short, because the machine asks again by itself, and an operator may be waiting.
pub(super) fn options(tls: Option<Tls>) -> Options {
    Options {
        tls,
        write_timeout: Duration::from_secs(8),
        read_timeout: Duration::from_secs(5),
        attempt_timeout: Duration::from_secs(6),
        ..Options::default()
    }
}

struct Shared {
    servers: Vec<String>,
    options: Options,
    author: Author,
    client: tokio::sync::Mutex<Option<Client>>,
    overlay: Mutex<Option<Document>>,
}

/// The journal, as this node's agent sees it.
#[derive(Clone)]
pub(super) struct Link(Arc<Shared>);

fn away(error: ClientError) -> Away {
    match error {
        ClientError::Refused(refusal) => Away::Refused(crate::exit::refusal_text(&refusal)),
        ClientError::Invalid { problem } => Away::Refused(problem),
        ClientError::Denied { address, problem } => Away::Refused(format!("{address}: {problem}")),
        other => Away::Unreachable(other.to_string()),
    }
}

impl Link {
    pub(super) fn new(servers: Vec<String>, options: Options, author: Author) -> Self {
        let shared =
            Shared { servers, options, author, client: tokio::sync::Mutex::default(), overlay: Mutex::default() };
        Self(Arc::new(shared))
    }

    /// The client, made when a replica can be reached for the first time.
    async fn client(&self) -> Result<Client, Away> {
        let mut made = self.0.client.lock().await;
        if let Some(client) = &*made {
            return Ok(client.clone());
        }
        let client = Client::connect(self.0.servers.clone(), self.0.options.clone()).await.map_err(away)?;
        *made = Some(client.clone());
        Ok(client)
    }

    fn known(&self) -> Option<Document> {
        self.0.overlay.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What a boot says, after its checksums were found right.
    fn declared(&self, boot: &Boot, known: Option<Document>) -> Result<Declared, String> {
        let overlay = match (&boot.overlay, known) {
            (Some(overlay), _) => {
                muster_core::overlay::open(overlay).map_err(|error| format!("the overlay: {error}"))?
            }
            (None, Some(known)) => known,
            (None, None) => return Err("the overlay was left out, and none is known here".to_owned()),
        };
        let text = std::str::from_utf8(&boot.delta).map_err(|error| format!("the delta: {error}"))?;
        let delta = document::parse(text).map_err(|error| format!("the delta: {error}"))?;
        let declared = Declared::from_boot(&overlay, &delta)?;
        *self.0.overlay.lock().unwrap_or_else(PoisonError::into_inner) = Some(overlay);
        Ok(declared)
    }
}

impl Journal for Link {
    type Following = LinkFollowing;

    async fn boot(&self, node: &NodeId, at_least: Seq) -> Result<Declared, Away> {
        let client = self.client().await?;
        let known = self.known();
        let ask = BootAsk {
            node: node.clone(),
            known: known.as_ref().map(|overlay| (overlay.vcluster.clone(), overlay.version)),
            at_least,
        };
        let boot = client.boot(&ask).await.map_err(away)?;
        if boot.node != *node {
            return Err(Away::Unreachable(format!("{} sent the boot of {}", boot.served_by, boot.node)));
        }
        self.declared(&boot, known)
            .map_err(|problem| Away::Unreachable(format!("the boot from {} does not read: {problem}", boot.served_by)))
    }

    fn follow(&self, node: &NodeId, after: Seq) -> LinkFollowing {
        LinkFollowing { link: self.clone(), node: node.clone(), after, subscription: None }
    }

    async fn age(&self) -> Result<Age, Away> {
        self.client().await?.age().await.map_err(away)
    }

    async fn write(&self, write: WriteRequest) -> Outcome {
        let WriteRequest { request, author, command } = write;
        let RequestId::OneShot { id, drawn_at } = request else {
            return Outcome::Refused(Refusal::Invalid {
                field: "request".into(),
                problem: "an agent's write is a one-shot".into(),
            });
        };
        let Ok(client) = self.client().await else { return Outcome::NotApplied(NotApplied::NoQuorum) };
        let author = self.vouched(author);
        // The client gives up in time by itself; this bounds what it may take on top for connecting.
        let patience = self.0.options.write_timeout + Duration::from_secs(5);
        let writing = client.write_once(OneShot { id, drawn_at }, &author, command);
        let outcome = tokio::time::timeout(patience, writing).await.unwrap_or(Outcome::Unknown(UnknownWhy::TimedOut));
        match outcome {
            // A certificate that ends is refused like everything that is not allowed; but it is renewed, and what was to be
            // recorded is not: it waits.
            Outcome::Refused(Refusal::Forbidden { .. }) if self.certificate_ends() => {
                Outcome::NotApplied(NotApplied::NoQuorum)
            }
            outcome => outcome,
        }
    }

    async fn records(&self, node: &NodeId, after: Seq) -> Result<Vec<Record>, Away> {
        let client = self.client().await?;
        let answered = client.query(Freshness::Linearizable, &Query::Summary).await.map_err(away)?;
        let filter = LogFilter { scopes: vec![Scope::Node(node.clone())], after, ..LogFilter::default() };
        let records = client.log(&filter).await.map_err(away)?;
        if records.sequence() < answered.sequence {
            return Err(Away::Unreachable("the replica that was asked lags".to_owned()));
        }
        records.collect().await.map_err(away)
    }

    async fn report(&self, report: &NodeReport) -> Result<(), Away> {
        self.client().await?.report(&self.0.author, report).await.map_err(away)
    }
}

/// How far apart the clocks of an agent and a replica may be, in seconds, when one of them says that a certificate has ended.
const CLOCKS_APART: u64 = 300;

impl Link {
    /// Whether our certificate has ended, by somebody's clock.
    fn certificate_ends(&self) -> bool {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs());
        self.0.options.tls.as_ref().is_some_and(|tls| tls.shown().not_after <= now + CLOCKS_APART)
    }

    /// In whose name a write goes out. What a certificate or the kernel said to this agent, the journal hears as the agent's word;
    /// over TLS in the agent's role, for its certificate proves no other.
    fn vouched(&self, author: Author) -> Author {
        if author == self.0.author {
            return author;
        }
        let principal = match author.principal {
            claimed @ Principal::Claimed { .. } => claimed,
            Principal::Certificate { subject } | Principal::Oidc { subject, .. } => {
                Principal::Claimed { name: subject }
            }
            Principal::System { .. } => return self.0.author.clone(),
        };
        let role = if self.0.options.tls.is_some() { self.0.author.role.clone() } else { author.role };
        Author { principal, role }
    }
}

/// A subscription to what concerns the node.
pub(super) struct LinkFollowing {
    link: Link,
    node: NodeId,
    after: Seq,
    subscription: Option<Subscription>,
}

impl Following for LinkFollowing {
    async fn next(&mut self) -> Result<Vec<Record>, Away> {
        let subscription = match &mut self.subscription {
            Some(subscription) => subscription,
            none @ None => {
                let client = self.link.client().await?;
                none.insert(client.subscribe(Topic::Node(self.node.clone()), self.after))
            }
        };
        Ok(subscription.next().await.map_err(away)?.records)
    }
}
