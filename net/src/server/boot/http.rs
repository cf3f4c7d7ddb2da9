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

use super::forms::{Checked, Form, sha256};
use super::reply::{Answer, Head, Piece};
use super::{Busy, Desk, Place, Waiting};
use crate::server::Replica;
use crate::server::connections::Turn;
use axum::http::header::{IF_NONE_MATCH, IF_RANGE, RANGE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use muster_core::boot::{self, BootRefusal};
use muster_core::front::View;
use muster_core::ids::{NodeId, Seq, VClusterId};
use muster_core::journal::overlay::BootOverlay;
use muster_core::request::{Freshness, NotApplied, Refusal};
use muster_core::state::State;
use muster_core::storage::Library;
use std::fmt::Write as _;
use std::sync::Arc;

/// The largest delta, in bytes, for an overlay that a node holds and that is older than the stored one. Larger: fewer nodes fetch an overlay
/// that they nearly have; smaller: less memory for those who ask and take nothing.
const DELTA_BYTES: usize = 256 << 10;

/// Where boots are.
pub(in crate::server) const PREFIX: &str = "/v1/boot/";

/// An answer, at once if nothing has to be waited for.
pub(in crate::server) enum Answering {
    Now(Answer),
    Later(BoxFuture<'static, Answer>),
}

/// Whether who asks may boot a node, as things are in a state.
pub(in crate::server) trait Door: Clone + Send + 'static {
    fn may(&self, node: &NodeId, state: &State) -> Result<(), Box<Answer>>;
}

/// Which parts are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Both,
    Overlay,
    Delta,
}

/// What is asked for.
pub(in crate::server) struct Ask {
    node: NodeId,
    what: What,
    plain: bool,
    known: Option<(VClusterId, Seq)>,
    at_least: Seq,
    insist: bool,
    /// The headers alone.
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

/// The headers of a request that count for a boot, as they are said.
#[derive(Clone, Copy, Default)]
pub(in crate::server) struct Said<'a> {
    pub(in crate::server) none_match: Option<&'a str>,
    pub(in crate::server) range: Option<&'a str>,
    pub(in crate::server) if_range: Option<&'a str>,
}

impl<'a> From<&'a HeaderMap> for Said<'a> {
    fn from(headers: &'a HeaderMap) -> Self {
        let said = |name: HeaderName| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        Self { none_match: said(IF_NONE_MATCH), range: said(RANGE), if_range: said(IF_RANGE) }
    }
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
    Answer::words(code, "text/plain; charset=utf-8", text.into())
}

impl Ask {
    /// Reads a request, except for who asks.
    pub(in crate::server) fn read(
        method: &Method,
        path: &str,
        query: Option<&str>,
        said: Said<'_>,
    ) -> Result<Self, Box<Answer>> {
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
        let conditions = Conditions {
            none_match: said.none_match.map(str::to_owned),
            range: said.range.and_then(Range::read),
            if_range: said.if_range.map(str::to_owned),
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
        Ok(ask)
    }
}

/// The parts of an answer.
struct Found {
    vcluster: VClusterId,
    sequence: Seq,
    /// Of which overlay, and whether as text; none if the node holds one.
    overlay: Option<(Arc<Form>, bool)>,
    delta: Option<String>,
}

/// What is still missing for an answer.
enum Missing {
    Overlay(VClusterId),
    Plain(Arc<Form>),
}

enum Looked {
    Found(Found),
    Missing(Missing),
    Refused(Box<Answer>),
}

fn refused(code: StatusCode, problem: impl Into<String>) -> Looked {
    Looked::Refused(Box::new(words(code, problem)))
}

fn refusal(refused: &BootRefusal) -> Looked {
    let code = match refused {
        BootRefusal::UnknownNode { .. } | BootRefusal::NoVCluster { .. } => StatusCode::NOT_FOUND,
        BootRefusal::Ahead { .. } => StatusCode::CONFLICT,
        BootRefusal::NoOverlay { .. } => StatusCode::SERVICE_UNAVAILABLE,
    };
    self::refused(code, refused.to_string())
}

/// What was made because it was missing: an overlay of which none is stored, and a form with its text.
#[derive(Default)]
struct Made {
    overlay: Option<BootOverlay>,
    form: Option<Arc<Form>>,
}

/// Looks at a view for what is asked.
fn look(desk: &Desk, state: &State, ask: &Ask, made: &Made) -> Looked {
    let vcluster = match boot::vcluster_of(state, &ask.node) {
        Ok(vcluster) => vcluster,
        Err(why) => return refusal(&why),
    };
    if let Some((held, version)) = &ask.known {
        return delta_for(state, ask, (held, vcluster), *version);
    }
    let stored = || state.journal.vcluster(vcluster).and_then(|known| known.overlay.as_ref());
    let Some(overlay) = made.overlay.as_ref().or_else(stored) else {
        return Looked::Missing(Missing::Overlay(vcluster.clone()));
    };
    let delta = if ask.what == What::Overlay {
        None
    } else {
        let mut delta = String::new();
        if let Err(why) = boot::write_delta(state, &ask.node, vcluster, overlay.version, &mut delta) {
            return refusal(&why);
        }
        Some(delta)
    };
    // The one that was unpacked, even if others have asked for another since.
    let made = made.form.as_ref().filter(|form| form.is_of(overlay));
    let form = made.cloned().unwrap_or_else(|| desk.forms.of(vcluster, overlay));
    if ask.plain && ask.what != What::Delta {
        match form.plain() {
            Some(Ok(_)) => {}
            Some(Err(problem)) => return refused(StatusCode::NOT_ACCEPTABLE, problem.clone()),
            None => return Looked::Missing(Missing::Plain(form)),
        }
    }
    let overlay = Some((form, ask.plain));
    Looked::Found(Found { vcluster: vcluster.clone(), sequence: state.sequence(), overlay, delta })
}

/// The delta alone, for a node that holds an overlay of one vCluster and is in another, or the same.
fn delta_for(state: &State, ask: &Ask, (held, now): (&VClusterId, &VClusterId), version: Seq) -> Looked {
    if held != now {
        return refused(
            StatusCode::CONFLICT,
            format!("node {} is in vCluster {now}, the overlay it holds is of {held}: take the whole boot", ask.node),
        );
    }
    let stored = state.journal.vcluster(now).and_then(|known| known.overlay.as_ref());
    let mut delta = String::new();
    match boot::write_delta(state, &ask.node, now, version, &mut delta) {
        // A copy for this node alone, which it may take its time to fetch, of what the stored overlay has for all.
        Ok(()) if delta.len() > DELTA_BYTES && stored.is_some_and(|overlay| version < overlay.version) => {
            let bytes = delta.len();
            let problem = format!("since overlay version {version} {bytes} bytes were declared: take the whole boot");
            refused(StatusCode::CONFLICT, problem)
        }
        Ok(()) => {
            let (vcluster, sequence) = (now.clone(), state.sequence());
            Looked::Found(Found { vcluster, sequence, overlay: None, delta: Some(delta) })
        }
        Err(BootRefusal::Ahead { version, sequence }) => refused(
            StatusCode::CONFLICT,
            format!(
                "the node holds overlay version {version}, this replica is at sequence {sequence}: it lags, ask another"
            ),
        ),
        Err(why) => refusal(&why),
    }
}

/// Whether one of a list of tags is this one.
fn names(list: &str, tag: &str) -> bool {
    list.split(',').map(str::trim).any(|each| each == "*" || each.strip_prefix("W/").unwrap_or(each) == tag)
}

/// Makes the answer.
fn answer(ask: &Ask, found: Found, mut place: Option<Place>) -> Answer {
    let Found { vcluster, sequence, overlay, delta } = found;
    let mut head = Head::new();
    head.line("muster-vcluster", vcluster.as_str());
    head.number("muster-sequence", sequence.0);
    head.line("cache-control", "no-cache");
    let mut tag = String::with_capacity(40);
    tag.push('"');
    let mut in_overlay = 0;
    if let Some((form, plain)) = &overlay {
        head.lines(&form.lines);
        tag.push_str(&form.tag);
        if ask.what != What::Delta {
            let Checked { bytes, lines } = form.checked(*plain);
            head.lines(lines);
            in_overlay = bytes.len() as u64;
            tag.push(if *plain { 'p' } else { 'z' });
        }
    } else if let Some((_, version)) = &ask.known {
        head.number("muster-overlay-version", version.0);
    }
    if let Some(delta) = &delta {
        let sha256 = sha256(delta.as_bytes());
        let sha256 = std::str::from_utf8(&sha256).unwrap_or_default();
        tag.push('.');
        tag.push_str(&sha256[..16]);
        head.number("muster-delta-length", delta.len() as u64);
        head.line("muster-delta-sha256", sha256);
    }
    tag.push('"');
    let Conditions { none_match, range, if_range } = &ask.conditions;
    let unchanged = none_match.as_ref().is_some_and(|list| names(list, &tag));
    let range = range.filter(|_| if_range.as_ref().is_none_or(|wanted| *wanted == tag));
    head.line("etag", &tag);
    if unchanged {
        return Answer::empty(StatusCode::NOT_MODIFIED, head);
    }
    head.line("accept-ranges", "bytes");
    let mut rest = delta.unwrap_or_default().into_bytes();
    let total = in_overlay + rest.len() as u64;
    let (code, (first, count)) = match range.map(|range| range.of(total)) {
        None => (StatusCode::OK, (0, total)),
        Some(Some((first, count))) => {
            head.line("content-range", &format!("bytes {first}-{}/{total}", first + count - 1));
            (StatusCode::PARTIAL_CONTENT, (first, count))
        }
        Some(None) => {
            let problem = format!("the range begins beyond the end: there are {total} bytes");
            let mut beyond = words(StatusCode::RANGE_NOT_SATISFIABLE, problem);
            beyond.head.line("content-range", &format!("bytes */{total}"));
            return beyond;
        }
    };
    head.line("content-type", "application/octet-stream");
    if ask.head {
        return Answer::of(code, head, count);
    }
    if let Some(place) = &mut place {
        place.takes(count);
    }
    let end = first + count;
    let at = |place: u64| usize::try_from(place).unwrap_or(usize::MAX);
    rest.truncate(at(end.saturating_sub(in_overlay)));
    rest.drain(..at(first.saturating_sub(in_overlay)).min(rest.len()));
    let (from, to) = (first.min(in_overlay), end.min(in_overlay));
    let piece = overlay.filter(|_| from < to).map(|(form, plain)| Piece { form, plain, run: at(from)..at(to) });
    Answer { overlay: piece, rest, place, ..Answer::of(code, head, count) }
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
    answer.head.number("retry-after", busy.after_ms.div_ceil(1_000).max(1));
    answer.head.number("muster-retry-after-ms", busy.after_ms);
    // Who waits, or goes elsewhere, need not hold a connection meanwhile: that is what ten thousand of them would cost.
    answer.close = code == StatusCode::SERVICE_UNAVAILABLE;
    if !elsewhere.is_empty() {
        answer.head.line("muster-elsewhere", &elsewhere);
    }
    answer
}

/// Serves one request. `plain_port` says that it came to the port for those without a certificate.
pub(in crate::server) fn serve<L: Library>(
    replica: &Replica<L>,
    turn: Turn,
    plain_port: Option<u16>,
    door: &impl Door,
    ask: Result<Ask, Box<Answer>>,
) -> Answering {
    let mut ask = match ask {
        Ok(ask) => ask,
        Err(answer) => return Answering::Now(*answer),
    };
    ask.plain_port = plain_port;
    let desk = &replica.desk;
    let view = desk.view(&replica.handle);
    if let Err(answer) = door.may(&ask.node, &view.state) {
        return Answering::Now(*answer);
    }
    if let Err(after_ms) = desk.asked(&ask.node, plain_port.is_none()) {
        let busy = Busy { after_ms, elsewhere: Vec::new(), why: "this node asks too often" };
        return Answering::Now(later(StatusCode::TOO_MANY_REQUESTS, &busy, &ask));
    }
    if ask.at_least > view.state.sequence() {
        return match desk.wait(&view, ask.insist) {
            Ok(waiting) => Answering::Later(wait_for(replica.clone(), (turn, waiting), door.clone(), ask).boxed()),
            Err(busy) => Answering::Now(later(StatusCode::SERVICE_UNAVAILABLE, &busy, &ask)),
        };
    }
    let place = match take_place(desk, &view, &ask, turn) {
        Ok(place) => place,
        Err(answer) => return Answering::Now(*answer),
    };
    match look(desk, &view.state, &ask, &Made::default()) {
        Looked::Found(found) => Answering::Now(answer(&ask, found, place)),
        Looked::Refused(answer) => Answering::Now(*answer),
        Looked::Missing(missing) => {
            Answering::Later(complete(replica.clone(), Arc::clone(&view), ask, place, missing).boxed())
        }
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
async fn wait_for<L: Library>(
    replica: Replica<L>,
    (turn, waiting): (Turn, Waiting),
    door: impl Door,
    ask: Ask,
) -> Answer {
    let view = match replica.handle.read(Freshness::AtLeast(ask.at_least)).await {
        Ok(view) => view,
        Err(NotApplied::Stopping) => return words(StatusCode::SERVICE_UNAVAILABLE, "this replica is stopping"),
        Err(_) => {
            let here = replica.handle.view().state.sequence();
            let problem = format!("this replica is at sequence {here} and did not get to {} in time", ask.at_least);
            let mut answer = words(StatusCode::PRECONDITION_FAILED, problem);
            answer.head.number("muster-sequence", here.0);
            return answer;
        }
    };
    drop(waiting);
    if let Err(answer) = door.may(&ask.node, &view.state) {
        return *answer;
    }
    let place = match take_place(&replica.desk, &view, &ask, turn) {
        Ok(place) => place,
        Err(answer) => return *answer,
    };
    match look(&replica.desk, &view.state, &ask, &Made::default()) {
        Looked::Found(found) => answer(&ask, found, place),
        Looked::Refused(answer) => *answer,
        Looked::Missing(missing) => complete(replica.clone(), view, ask, place, missing).await,
    }
}

/// Makes what is missing, and answers then.
async fn complete<L: Library>(
    replica: Replica<L>,
    view: Arc<View>,
    ask: Ask,
    place: Option<Place>,
    mut missing: Missing,
) -> Answer {
    let desk = &replica.desk;
    let mut made = Made::default();
    loop {
        match missing {
            Missing::Overlay(vcluster) => match desk.builds.overlay(&replica, &view, &vcluster).await {
                Ok(overlay) => made.overlay = Some(overlay),
                Err(Refusal::UnknownScope { scope, hint }) => {
                    let problem = format!("node {} is in {scope}, which has no configuration: {hint}", ask.node);
                    return words(StatusCode::NOT_FOUND, problem);
                }
                Err(refusal) => {
                    let problem = format!("the overlay of {vcluster} cannot be built: {refusal:?}");
                    return words(StatusCode::SERVICE_UNAVAILABLE, problem);
                }
            },
            Missing::Plain(form) => {
                form.unpack().await;
                made.form = Some(form);
            }
        }
        match look(desk, &view.state, &ask, &made) {
            Looked::Found(found) => return answer(&ask, found, place),
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
