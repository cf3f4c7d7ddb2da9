//! Boots over HTTP, for whoever has curl and a shell.
//!
//! ```text
//! GET /v1/boot/NODE            the overlay, then the delta, in one body
//! GET /v1/boot/NODE/overlay    the overlay alone
//! GET /v1/boot/NODE/delta      the delta alone; with vcluster=NAME&version=N for the overlay the node holds
//!
//!   ?overlay=plain    the overlay as text, not as zstd
//!   ?at_least=SEQ     wait until this replica has got that far
//!   ?insist=yes       from the leader too
//! ```
//! Headers tell what is in the body: `muster-vcluster`, `muster-sequence` (overlay plus delta are right there; follow the journal
//! after it), and of each part its length and SHA-256 (`muster-overlay-length`, `muster-delta-sha256`, …), of the overlay also its
//! version and the BLAKE3 of its stored bytes (`muster-overlay-checksum`).
//!
//! A tag names the bytes: they stay the same until something is declared that concerns the node. So `If-None-Match` asks
//! whether anything changed, and `Range` with `If-Range` goes on where a download broke off; if something changed meanwhile the answer is
//! all of the new.
//!
//! | answer | when |
//! |---|---|
//! | 200, 206, 304 | served |
//! | 400 | the path or a parameter makes no sense |
//! | 401, 403 | who asks may not |
//! | 404 | the node, or its vCluster, was never declared |
//! | 409 | the node holds an overlay newer than this replica, or of another vCluster |
//! | 412 | `at_least` cannot be had here in time |
//! | 416 | the range begins beyond the end; `content-range` says where that is |
//! | 429 | this node asks too often |
//! | 503 | every place is taken, or this replica leads: `retry-after`, `muster-retry-after-ms`, `muster-elsewhere` |

use super::forms::{Checked, Form, header};
use super::{Busy, Desk, Place};
use crate::server::Replica;
use crate::server::connections::Turn;
use crate::server::outgoing::{Outgoing, Parts};
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
    IF_RANGE, RANGE, RETRY_AFTER,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use muster_core::boot::{self, BootPlan, BootRefusal};
use muster_core::front::View;
use muster_core::ids::{NodeId, Seq, VClusterId};
use muster_core::journal::overlay::BootOverlay;
use muster_core::request::{Freshness, NotApplied, Refusal};
use muster_core::state::State;
use muster_core::storage::Library;
use std::fmt::Write as _;
use std::sync::Arc;

/// Where boots are.
pub(in crate::server) const PREFIX: &str = "/v1/boot/";

const VCLUSTER: HeaderName = HeaderName::from_static("muster-vcluster");
const SEQUENCE: HeaderName = HeaderName::from_static("muster-sequence");
const OVERLAY_VERSION: HeaderName = HeaderName::from_static("muster-overlay-version");
const OVERLAY_LENGTH: HeaderName = HeaderName::from_static("muster-overlay-length");
const OVERLAY_ENCODING: HeaderName = HeaderName::from_static("muster-overlay-encoding");
const OVERLAY_SHA256: HeaderName = HeaderName::from_static("muster-overlay-sha256");
const OVERLAY_CHECKSUM: HeaderName = HeaderName::from_static("muster-overlay-checksum");
const DELTA_LENGTH: HeaderName = HeaderName::from_static("muster-delta-length");
const DELTA_SHA256: HeaderName = HeaderName::from_static("muster-delta-sha256");
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("muster-retry-after-ms");
const ELSEWHERE: HeaderName = HeaderName::from_static("muster-elsewhere");

type Answer = Response<Outgoing>;

/// An answer, at once if nothing has to be waited for.
pub(in crate::server) enum Answering {
    Now(Answer),
    Later(BoxFuture<'static, Answer>),
}

/// Which parts are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Both,
    Overlay,
    Delta,
}

/// What is asked for.
struct Ask {
    node: NodeId,
    what: What,
    plain: bool,
    known: Option<(VClusterId, Seq)>,
    at_least: Seq,
    insist: bool,
    head: bool,
    /// The port at which nodes without a certificate are served, if this is one.
    plain_port: Option<u16>,
    conditions: Conditions,
}

/// What the request's headers want.
#[derive(Default)]
struct Conditions {
    none_match: Option<String>,
    range: Option<Range>,
    if_range: Option<String>,
}

/// Bytes of the whole that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Range {
    /// From here to there, or to the end.
    From(u64, Option<u64>),
    /// So many at the end.
    Last(u64),
}

impl Range {
    /// A single range. Whatever else is said there may be ignored, and is.
    fn read(text: &str) -> Option<Self> {
        let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
        let number = |text: &str| text.trim().parse::<u64>().ok();
        match (first.trim(), last.trim()) {
            ("", last) => Some(Self::Last(number(last)?)),
            (first, "") => Some(Self::From(number(first)?, None)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::From(first, Some(last)))
            }
        }
    }

    /// The first byte and how many, of so many; none if it begins beyond the end.
    fn of(self, total: u64) -> Option<(u64, u64)> {
        match self {
            Self::From(first, last) if first < total => {
                Some((first, last.unwrap_or(u64::MAX).min(total - 1) - first + 1))
            }
            Self::Last(count) if count > 0 && total > 0 => Some((total - count.min(total), count.min(total))),
            Self::From(..) | Self::Last(_) => None,
        }
    }
}

/// Words for a person, with a status for a program.
pub(in crate::server) fn words(code: StatusCode, text: impl Into<String>) -> Answer {
    let mut text = text.into();
    text.push('\n');
    let mut answer = Response::new(Outgoing::text(text));
    *answer.status_mut() = code;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

impl Ask {
    /// Reads a request, except for who asks.
    fn read(method: &Method, path: &str, query: Option<&str>, headers: &HeaderMap) -> Result<Box<Self>, Box<Answer>> {
        let wrong = |code, problem: String| Box::new(words(code, problem));
        let bad = |problem: String| wrong(StatusCode::BAD_REQUEST, problem);
        if method != Method::GET && method != Method::HEAD {
            return Err(wrong(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{method} does nothing here: expected GET or HEAD"),
            ));
        }
        let path = path.strip_prefix(PREFIX).unwrap_or_default();
        let (node, what) = match path.split_once('/') {
            None => (path, What::Both),
            Some((node, "overlay")) => (node, What::Overlay),
            Some((node, "delta")) => (node, What::Delta),
            Some((_, other)) => {
                let problem = format!("a boot has no part {other:?}: expected {PREFIX}NODE, …/overlay or …/delta");
                return Err(wrong(StatusCode::NOT_FOUND, problem));
            }
        };
        let node = NodeId::new(node).map_err(|error| bad(error.to_string()))?;
        let conditions = if headers.contains_key(RANGE) || headers.contains_key(IF_NONE_MATCH) {
            let said = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
            Conditions {
                none_match: said(IF_NONE_MATCH).map(str::to_owned),
                range: said(RANGE).and_then(Range::read),
                if_range: said(IF_RANGE).map(str::to_owned),
            }
        } else {
            Conditions::default()
        };
        let head = method == Method::HEAD;
        let mut ask = Self {
            node,
            what,
            plain: false,
            known: None,
            at_least: Seq(0),
            insist: false,
            head,
            plain_port: None,
            conditions,
        };
        let (mut vcluster, mut version) = (None, None);
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let sequence =
                |want: &str| value.parse().map(Seq).map_err(|_| bad(format!("{name} is {value:?}: expected {want}")));
            match (name, value) {
                ("overlay", "zstd") => ask.plain = false,
                ("overlay", "plain") => ask.plain = true,
                ("overlay", _) => return Err(bad(format!("overlay is {value:?}: expected zstd or plain"))),
                ("insist", "yes") => ask.insist = true,
                ("insist", "no") => ask.insist = false,
                ("insist", _) => return Err(bad(format!("insist is {value:?}: expected yes or no"))),
                ("at_least", _) => ask.at_least = sequence("a sequence")?,
                ("version", _) if what == What::Delta => version = Some(sequence("an overlay's version")?),
                ("vcluster", _) if what == What::Delta => {
                    vcluster = Some(VClusterId::new(value).map_err(|error| bad(format!("vcluster: {error}")))?);
                }
                _ => {
                    return Err(bad(format!(
                        "there is no parameter {name:?}: expected overlay=plain, at_least=SEQ or insist=yes, and for a \
                         delta vcluster=NAME and version=N"
                    )));
                }
            }
        }
        ask.known = match (vcluster, version) {
            (Some(vcluster), Some(version)) => Some((vcluster, version)),
            (None, None) => None,
            _ => return Err(bad("an overlay that the node holds takes both: vcluster=NAME and version=N".to_owned())),
        };
        Ok(Box::new(ask))
    }
}

/// The parts of an answer.
struct Found {
    vcluster: VClusterId,
    sequence: Seq,
    /// Of which overlay, and its bytes unless only the delta is asked for.
    overlay: Option<(Arc<Form>, Checked)>,
    delta: Option<Checked>,
}

/// What is still missing for an answer.
enum Missing {
    Overlay(VClusterId),
    Plain(Arc<Form>),
}

enum Looked {
    Found(Box<Found>),
    Missing(Missing),
    Refused(Box<Answer>),
}

fn refused(code: StatusCode, problem: impl Into<String>) -> Looked {
    Looked::Refused(Box::new(words(code, problem)))
}

fn refusal(refused: &BootRefusal) -> (StatusCode, String) {
    let code = match refused {
        BootRefusal::UnknownNode { .. } | BootRefusal::NoVCluster { .. } => StatusCode::NOT_FOUND,
        BootRefusal::Ahead { .. } => StatusCode::CONFLICT,
        BootRefusal::NoOverlay { .. } => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, refused.to_string())
}

/// Looks at a view for what is asked.
fn look(desk: &Desk, state: &State, ask: &Ask, built: Option<BootOverlay>) -> Looked {
    if let Some((vcluster, version)) = &ask.known {
        return delta_for(state, ask, vcluster, *version);
    }
    let planned = match built {
        None => boot::plan(state, &ask.node),
        Some(overlay) => boot::plan_with(state, &ask.node, overlay),
    };
    let BootPlan { vcluster, overlay, sequence, delta, .. } = match planned {
        Ok(plan) => plan,
        Err(BootRefusal::NoOverlay { vcluster }) => return Looked::Missing(Missing::Overlay(vcluster)),
        Err(why) => {
            let (code, problem) = refusal(&why);
            return refused(code, problem);
        }
    };
    let form = desk.forms.of(&vcluster, &overlay);
    let bytes = match (ask.plain && ask.what != What::Delta, form.plain()) {
        (false, _) => form.stored.clone(),
        (true, Some(Ok(plain))) => plain.clone(),
        (true, Some(Err(problem))) => return refused(StatusCode::NOT_ACCEPTABLE, problem.clone()),
        (true, None) => return Looked::Missing(Missing::Plain(form)),
    };
    let delta = (ask.what != What::Overlay).then(|| Checked::new(delta));
    Looked::Found(Box::new(Found { vcluster, sequence, overlay: Some((form, bytes)), delta }))
}

/// The delta alone, for a node that holds an overlay.
fn delta_for(state: &State, ask: &Ask, vcluster: &VClusterId, version: Seq) -> Looked {
    match boot::delta(state, &ask.node, version) {
        Ok((now, delta)) if now == *vcluster => {
            let delta = Some(Checked::new(delta));
            Looked::Found(Box::new(Found { vcluster: now, sequence: state.sequence(), overlay: None, delta }))
        }
        Ok((now, _)) => refused(
            StatusCode::CONFLICT,
            format!(
                "node {} is in vCluster {now}, the overlay it holds is of {vcluster}: take the whole boot",
                ask.node
            ),
        ),
        Err(BootRefusal::Ahead { version, sequence }) => refused(
            StatusCode::CONFLICT,
            format!(
                "the node holds overlay version {version}, this replica is at sequence {sequence}: it lags, ask another"
            ),
        ),
        Err(why) => {
            let (code, problem) = refusal(&why);
            refused(code, problem)
        }
    }
}

/// Whether one of a list of tags is this one.
fn names(list: &str, tag: &str) -> bool {
    list.split(',').map(str::trim).any(|each| each == "*" || each.strip_prefix("W/").unwrap_or(each) == tag)
}

/// An answer of headers and bytes.
fn made(code: StatusCode, headers: HeaderMap, parts: Parts) -> Answer {
    let mut answer = Response::new(Outgoing::shared(parts));
    *answer.status_mut() = code;
    *answer.headers_mut() = headers;
    answer
}

/// Makes the answer.
fn answer(ask: &Ask, found: Found, place: Option<Place>) -> Answer {
    let Found { vcluster, sequence, overlay, delta } = found;
    let mut headers = HeaderMap::with_capacity(16);
    headers.insert(VCLUSTER, HeaderValue::from_str(vcluster.as_str()).expect("a name is letters and digits"));
    headers.insert(SEQUENCE, sequence.0.into());
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    let mut tag = String::with_capacity(40);
    tag.push('"');
    let mut parts = [Bytes::new(), Bytes::new()];
    if let Some((form, bytes)) = &overlay {
        headers.insert(OVERLAY_VERSION, form.version.clone());
        headers.insert(OVERLAY_CHECKSUM, form.checksum.clone());
        tag.push_str(&form.tag);
        if ask.what != What::Delta {
            headers.insert(OVERLAY_ENCODING, HeaderValue::from_static(if ask.plain { "plain" } else { "zstd" }));
            headers.insert(OVERLAY_LENGTH, bytes.bytes.len().into());
            headers.insert(OVERLAY_SHA256, bytes.sha256.clone());
            parts[0] = bytes.bytes.clone();
            tag.push(if ask.plain { 'p' } else { 'z' });
        }
    } else if let Some((_, version)) = &ask.known {
        headers.insert(OVERLAY_VERSION, version.0.into());
    }
    if let Some(Checked { bytes, sha256 }) = delta {
        tag.push('.');
        tag.push_str(&sha256.to_str().unwrap_or_default()[..16]);
        headers.insert(DELTA_LENGTH, bytes.len().into());
        headers.insert(DELTA_SHA256, sha256);
        parts[1] = bytes;
    }
    tag.push('"');
    let Conditions { none_match, range, if_range } = &ask.conditions;
    let unchanged = none_match.as_ref().is_some_and(|list| names(list, &tag));
    let range = range.filter(|_| if_range.as_ref().is_none_or(|wanted| *wanted == tag));
    headers.insert(ETAG, header(tag));
    let nothing = || Parts::new([], None);
    if unchanged {
        return made(StatusCode::NOT_MODIFIED, headers, nothing());
    }
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let total: u64 = parts.iter().map(|part| part.len() as u64).sum();
    let (code, (first, count)) = match range.map(|range| range.of(total)) {
        None => (StatusCode::OK, (0, total)),
        Some(Some((first, count))) => {
            headers.insert(CONTENT_RANGE, header(format!("bytes {first}-{}/{total}", first + count - 1)));
            (StatusCode::PARTIAL_CONTENT, (first, count))
        }
        Some(None) => {
            let problem = format!("the range begins beyond the end: there are {total} bytes");
            let mut beyond = words(StatusCode::RANGE_NOT_SATISFIABLE, problem);
            beyond.headers_mut().insert(CONTENT_RANGE, header(format!("bytes */{total}")));
            return beyond;
        }
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, count.into());
    if ask.head {
        return made(code, headers, nothing());
    }
    if let Some(place) = &place {
        place.takes(count);
        if let (false, Some((form, _))) = (ask.plain, &overlay) {
            place.pulse().lend(|| form.pages());
        }
    }
    let (mut skip, mut left) = (first, count);
    for part in &mut parts {
        let length = part.len() as u64;
        let from = skip.min(length);
        let to = (from + left).min(length);
        (skip, left) = (skip - from, left - (to - from));
        *part = part.slice(usize::try_from(from).unwrap_or(0)..usize::try_from(to).unwrap_or(0));
    }
    made(code, headers, Parts::new(parts, place))
}

/// When to come back, and whom else to ask. Whoever has no certificate is told the port that needs none: it is the same everywhere.
fn later(code: StatusCode, busy: &Busy, ask: &Ask) -> Answer {
    let mut text = busy.why.to_owned();
    let mut elsewhere = String::new();
    for address in &busy.elsewhere {
        let plain = ask.plain_port.and_then(|port| Some(format!("{}:{port}", address.rsplit_once(':')?.0)));
        let address = plain.as_deref().unwrap_or(address);
        let _ = write!(elsewhere, "{}{address}", if elsewhere.is_empty() { "" } else { ", " });
    }
    if elsewhere.is_empty() {
        let _ = write!(text, ": come back after {} ms", busy.after_ms);
    } else {
        let _ = write!(text, ": ask {elsewhere}, or come back after {} ms", busy.after_ms);
    }
    tracing::trace!(node = %ask.node, after_ms = busy.after_ms, "a boot is told to wait");
    let mut answer = words(code, text);
    let headers = answer.headers_mut();
    headers.insert(RETRY_AFTER, busy.after_ms.div_ceil(1_000).max(1).into());
    headers.insert(RETRY_AFTER_MS, busy.after_ms.into());
    if code == StatusCode::SERVICE_UNAVAILABLE {
        // Who waits, or goes elsewhere, need not hold a connection meanwhile: that is what ten thousand of them would cost.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if !elsewhere.is_empty() {
        headers.insert(ELSEWHERE, header(elsewhere));
    }
    answer
}

/// Serves one request. `door` says whether who asks may boot the node, as things are in a state; `plain_port` that it came to the port
/// for those without a certificate.
pub(in crate::server) fn serve<L: Library, D>(
    replica: &Replica<L>,
    turn: Turn,
    plain_port: Option<u16>,
    door: D,
    (method, path, query, headers): (&Method, &str, Option<&str>, &HeaderMap),
) -> Answering
where
    D: Fn(&NodeId, &State) -> Result<(), Box<Answer>> + Send + 'static,
{
    let ask = match Ask::read(method, path, query, headers) {
        Ok(mut ask) => {
            ask.plain_port = plain_port;
            ask
        }
        Err(answer) => return Answering::Now(*answer),
    };
    let desk = &replica.desk;
    let view = replica.handle.view();
    if let Err(answer) = door(&ask.node, &view.state) {
        return Answering::Now(*answer);
    }
    if let Err(after_ms) = desk.asked(&ask.node) {
        let busy = Busy { after_ms, elsewhere: Vec::new(), why: "this node asks too often" };
        return Answering::Now(later(StatusCode::TOO_MANY_REQUESTS, &busy, &ask));
    }
    if ask.at_least > view.state.sequence() {
        return Answering::Later(wait_for(replica.clone(), turn, door, ask).boxed());
    }
    let place = match take_place(desk, &view, &ask, turn) {
        Ok(place) => place,
        Err(answer) => return Answering::Now(*answer),
    };
    match look(desk, &view.state, &ask, None) {
        Looked::Found(found) => Answering::Now(answer(&ask, *found, place)),
        Looked::Refused(answer) => Answering::Now(*answer),
        Looked::Missing(missing) => Answering::Later(complete(replica.clone(), view, ask, place, missing).boxed()),
    }
}

fn take_place(desk: &Arc<Desk>, view: &View, ask: &Ask, turn: Turn) -> Result<Option<Place>, Box<Answer>> {
    if ask.head {
        return Ok(None);
    }
    match desk.open(view, ask.insist, turn) {
        Ok(place) => Ok(Some(place)),
        Err(busy) => Err(Box::new(later(StatusCode::SERVICE_UNAVAILABLE, &busy, ask))),
    }
}

/// Waits until the replica has got as far as is demanded.
async fn wait_for<L: Library, D>(replica: Replica<L>, turn: Turn, door: D, ask: Box<Ask>) -> Answer
where
    D: Fn(&NodeId, &State) -> Result<(), Box<Answer>> + Send + 'static,
{
    let view = match replica.handle.read(Freshness::AtLeast(ask.at_least)).await {
        Ok(view) => view,
        Err(NotApplied::Stopping) => return words(StatusCode::SERVICE_UNAVAILABLE, "this replica is stopping"),
        Err(_) => {
            let here = replica.handle.view().state.sequence();
            let problem = format!("this replica is at sequence {here} and did not get to {} in time", ask.at_least);
            let mut answer = words(StatusCode::PRECONDITION_FAILED, problem);
            answer.headers_mut().insert(SEQUENCE, here.0.into());
            return answer;
        }
    };
    if let Err(answer) = door(&ask.node, &view.state) {
        return *answer;
    }
    let place = match take_place(&replica.desk, &view, &ask, turn) {
        Ok(place) => place,
        Err(answer) => return *answer,
    };
    match look(&replica.desk, &view.state, &ask, None) {
        Looked::Found(found) => answer(&ask, *found, place),
        Looked::Refused(answer) => *answer,
        Looked::Missing(missing) => complete(replica.clone(), view, ask, place, missing).await,
    }
}

/// Makes what is missing, and answers then.
async fn complete<L: Library>(
    replica: Replica<L>,
    view: Arc<View>,
    ask: Box<Ask>,
    place: Option<Place>,
    mut missing: Missing,
) -> Answer {
    let desk = &replica.desk;
    let mut built = None;
    loop {
        match missing {
            Missing::Overlay(vcluster) => match desk.builds.overlay(&replica, &view, &vcluster).await {
                Ok(overlay) => built = Some(overlay),
                Err(Refusal::UnknownScope { scope, hint }) => {
                    let problem = format!("node {} is in {scope}, which has no configuration: {hint}", ask.node);
                    return words(StatusCode::NOT_FOUND, problem);
                }
                Err(refusal) => {
                    let problem = format!("the overlay of {vcluster} cannot be built: {refusal:?}");
                    return words(StatusCode::SERVICE_UNAVAILABLE, problem);
                }
            },
            Missing::Plain(form) => form.unpack().await,
        }
        match look(desk, &view.state, &ask, built.clone()) {
            Looked::Found(found) => return answer(&ask, *found, place),
            Looked::Refused(answer) => return *answer,
            Looked::Missing(next) => missing = next,
        }
    }
}

/// What a replica tells of how free it is, for whoever spreads boots over several.
pub(in crate::server) fn free<L: Library>(replica: &Replica<L>) -> String {
    let view = replica.handle.view();
    let (status, counts) = (&view.status, replica.desk.counts());
    // Without a leader nobody knows.
    let behind = match status.leader.0 {
        0 => "null".to_owned(),
        _ => status.commit.0.saturating_sub(status.applied.0).to_string(),
    };
    format!(
        "{{\"replica\":{},\"role\":\"{}\",\"serves\":{},\"places\":{},\"free\":{},\"sequence\":{},\"behind\":{behind}}}",
        status.replica,
        status.role.word(),
        replica.desk.left_to(&view).is_empty(),
        counts.places,
        counts.places.saturating_sub(counts.under_way),
        view.state.sequence(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says_and_what_is_odd_is_ignored() {
        assert_eq!(Range::read("bytes=0-99"), Some(Range::From(0, Some(99))));
        assert_eq!(Range::read("bytes=100-"), Some(Range::From(100, None)));
        assert_eq!(Range::read("bytes=-5"), Some(Range::Last(5)));
        for odd in
            ["bytes=5-4", "bytes=-", "bytes=0-1,3-4", "lines=0-1", "bytes=a-b", "", "bytes=1-99999999999999999999999"]
        {
            assert_eq!(Range::read(odd), None, "{odd}");
        }
        assert_eq!(Range::From(0, Some(99)).of(50), Some((0, 50)));
        assert_eq!(Range::From(49, None).of(50), Some((49, 1)));
        assert_eq!(Range::From(50, None).of(50), None);
        assert_eq!(Range::Last(60).of(50), Some((0, 50)));
        assert_eq!(Range::Last(0).of(50), None);
    }

    #[test]
    fn tags_are_compared_one_by_one() {
        assert!(names("\"a\", W/\"b\"", "\"b\""));
        assert!(names("*", "\"b\""));
        assert!(!names("\"ab\"", "\"b\""));
    }
}
