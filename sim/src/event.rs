//! What happened: one ordered stream of events, hashed as it goes, printable line by line.
//!
//! Two runs are the same if hash and length of their streams are: everything that is sent, written, applied, asked, answered,
//! broken and healed passes through here. Oracles see nothing else.
//!
//! The printed form has time, then the replica, then what happened; ASCII, one line.

use crate::agents::event::{AgentEvent, AgentId};
use bytes::Bytes;
use muster_core::agent::host::BootTime;
use muster_core::boot::{BootPlan, BootRefusal};
use muster_core::codec;
use muster_core::front::View;
use muster_core::ids::{Digest, Index, NodeId, ReplicaId, Seq, Term, Time};
use muster_core::log::{HardState, LogEntryKind, LogRecord};
use muster_core::peer::{Envelope, PeerMessage, RaftMessage, RaftMessageKind};
use muster_core::request::{NotApplied, Outcome, Reply};
use muster_core::storage::SnapshotMeta;
use std::fmt;
use std::sync::Arc;

/// Numbers a replica's processes, from 1.
pub type Run = u64;

/// Which simulated client, from 1.
pub type ClientId = u32;

/// Why a message did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lost {
    /// The link was cut.
    Cut,
    /// The link lost it.
    Loss,
    /// The link's queue was full.
    Queue,
    /// It was damaged, and the checksum caught it.
    Checksum,
    /// Nobody runs there.
    Down,
    /// The sender does not know where the receiver is.
    Unknown,
}

/// Why a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was killed; what it wrote is in the page cache.
    Killed,
    /// The machine lost power.
    PowerLost,
    /// A storage fault stopped it.
    Fault(String),
    /// It ended by itself.
    Ended,
}

/// What is done to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskOp {
    /// Opens a file.
    Open,
    /// Makes or empties a file.
    Create,
    /// Measures a file.
    Length,
    /// Sets a file's length.
    SetLength,
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Makes a file durable.
    Sync,
    /// Makes a directory's names durable.
    SyncDirectory,
    /// Renames.
    Rename,
    /// Removes.
    Remove,
    /// Lists a directory.
    List,
    /// Makes a directory.
    MakeDirectory,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A write that is recorded under this text, which no other write has.
    Write {
        /// The text by which the record is recognised.
        mark: Arc<str>,
    },
    /// A write that must not be applied, whatever becomes of it; its record would be recognised by this text.
    Refusable {
        /// The text.
        mark: Arc<str>,
    },
    /// An exec or shell to be recorded: in the audit log, then as an entry, both recognised by this text.
    Operation {
        /// The text.
        mark: Arc<str>,
    },
    /// A write that makes no record by which it could be recognised.
    OtherWrite {
        /// What.
        what: &'static str,
    },
    /// A linearizable read of the journal's head.
    Read,
    /// A local read of the journal's head.
    LocalRead,
    /// A local read not before a sequence.
    ReadAtLeast {
        /// The sequence.
        sequence: Seq,
    },
    /// A boot of a node, not before a sequence.
    Boot {
        /// The node.
        node: NodeId,
        /// The sequence; 0 for whatever there is.
        at_least: Seq,
    },
    /// The records after a sequence.
    Subscribe {
        /// The sequence.
        after: Seq,
    },
}

/// What a boot request was answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Booted {
    /// The position of the log it reflects.
    pub applied: Index,
    /// The journal's last sequence there.
    pub sequence: Seq,
    /// The boot, or why there is none.
    pub plan: Result<BootPlan, BootRefusal>,
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// What became of a write.
    Outcome(Outcome),
    /// A read was evaluated on this.
    Head {
        /// Who answered.
        replica: ReplicaId,
        /// In which of its processes.
        run: Run,
        /// The position of the log it reflects.
        applied: Index,
        /// The journal's last sequence.
        sequence: Seq,
        /// The chain's head there.
        head: Digest,
    },
    /// A node has its boot.
    Booted {
        /// Who answered.
        replica: ReplicaId,
        /// What.
        booted: Arc<Booted>,
    },
    /// A subscriber has more records.
    Records {
        /// Who answered.
        replica: ReplicaId,
        /// The records, in order.
        records: Arc<[(Seq, Bytes)]>,
    },
    /// A read came to nothing.
    Nothing(String),
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The run's parts: set-up, faults, healing, end.
    Phase(&'static str),
    /// A process starts on what its disk holds.
    Start {
        /// Whose.
        replica: ReplicaId,
        /// Which.
        run: Run,
        /// The recovered hard state.
        hard_state: HardState,
        /// The log's start.
        log_start: (Index, Term),
        /// The recovered entries' terms, after `log_start`.
        terms: Arc<[Term]>,
        /// The recovered snapshot.
        snapshot: Option<Arc<SnapshotMeta>>,
        /// What of its log is not durable, if anything.
        unsynced: Option<Arc<str>>,
    },
    /// A process ends.
    Stop {
        /// Whose.
        replica: ReplicaId,
        /// Which.
        run: Run,
        /// Why.
        why: Ending,
    },
    /// A message leaves.
    Send {
        /// Names this copy.
        id: u64,
        /// The message.
        envelope: Arc<Envelope>,
        /// Its encoded size and checksum.
        bytes: (u32, u32),
        /// Whether the network sends it, once more: what was true then need not be true now.
        again: bool,
    },
    /// A message arrives.
    Deliver {
        /// Which.
        id: u64,
        /// The message.
        envelope: Arc<Envelope>,
    },
    /// A message does not arrive.
    Drop {
        /// Which.
        id: u64,
        /// The message.
        envelope: Arc<Envelope>,
        /// Why.
        why: Lost,
    },
    /// A message that no replica sent arrives as from one.
    Forged {
        /// Where, whatever its address.
        at: ReplicaId,
        /// The message.
        envelope: Arc<Envelope>,
    },
    /// Records are handed to the log.
    Append {
        /// By whom.
        replica: ReplicaId,
        /// In which process.
        run: Run,
        /// What.
        records: Arc<[LogRecord]>,
    },
    /// They are durable.
    Durable {
        /// Whose.
        replica: ReplicaId,
        /// In which process.
        run: Run,
        /// What.
        records: Arc<[LogRecord]>,
    },
    /// Applied records are handed to the history.
    Records {
        /// By whom.
        replica: ReplicaId,
        /// In which process.
        run: Run,
        /// The first one's sequence.
        first: Seq,
        /// The stored bytes.
        records: Arc<[Bytes]>,
    },
    /// A snapshot is durable.
    Snapshot {
        /// Whose.
        replica: ReplicaId,
        /// In which process.
        run: Run,
        /// Whether it came from a peer.
        installed: bool,
        /// What it is.
        meta: Arc<SnapshotMeta>,
    },
    /// A replica publishes what it is and has.
    View {
        /// Which.
        replica: ReplicaId,
        /// In which process.
        run: Run,
        /// The view.
        view: Arc<View>,
    },
    /// A disk did something.
    Disk {
        /// Whose.
        replica: ReplicaId,
        /// What.
        op: DiskOp,
        /// To which file.
        file: Arc<str>,
        /// Where.
        offset: u64,
        /// How much.
        bytes: u64,
        /// Whether it succeeded.
        good: bool,
    },
    /// A fault begins or ends.
    Fault {
        /// The item's id.
        id: Arc<str>,
        /// Whether it begins.
        begins: bool,
        /// What it does, to whom.
        what: String,
    },
    /// An operator's request, or what became of it.
    Operation {
        /// The item's id.
        id: Arc<str>,
        /// What.
        what: String,
    },
    /// A client asks.
    Call {
        /// Who.
        client: ClientId,
        /// Its how manieth request.
        number: u64,
        /// What.
        ask: Ask,
    },
    /// A client has its answer.
    Answer {
        /// Who.
        client: ClientId,
        /// Its how manieth request.
        number: u64,
        /// What.
        told: Told,
    },
    /// What a replica that says it is a full copy holds, read from its disk when it begins to say so and at the end.
    Kept {
        /// Whose.
        replica: ReplicaId,
        /// The last sequence it must hold.
        upto: Seq,
        /// What it holds, from sequence 1.
        records: Arc<[Bytes]>,
        /// Why it could not be read.
        problem: Option<String>,
    },
    /// What a replica's disk holds when all is over, read without it.
    Inspected {
        /// Whose.
        replica: ReplicaId,
        /// The position before its log's first entry.
        log_start: Index,
        /// Its snapshots, oldest first.
        snapshots: Arc<[Index]>,
        /// What is wrong with it.
        problems: Arc<[String]>,
    },
    /// A log line of a process, `warn` or `error`.
    Log {
        /// Whether it is an error.
        error: bool,
        /// The line.
        line: Arc<str>,
    },
    /// A place in the code was reached for the first time in this run.
    Mark(&'static str),
    /// Something happened to a node with an agent.
    Agent {
        /// Which.
        agent: AgentId,
        /// When, in the node's own time since it booted.
        boot: BootTime,
        /// What.
        what: Arc<AgentEvent>,
    },
}

/// The compact form, for the hash.
struct Out<'a>(&'a mut Vec<u8>);

impl Out<'_> {
    fn number(&mut self, mut x: u64) {
        while x >= 0x80 {
            self.0.push((x & 0x7f).to_le_bytes()[0] | 0x80);
            x >>= 7;
        }
        self.0.push(x.to_le_bytes()[0]);
    }
    fn numbers<const N: usize>(&mut self, all: [u64; N]) {
        for x in all {
            self.number(x);
        }
    }
    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }
    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.number(u64::from(crc32fast::hash(bytes)));
    }
    fn hard_state(&mut self, state: HardState) {
        self.numbers([state.term.0, state.vote.0, state.commit.0]);
    }
    fn log(&mut self, records: &[LogRecord]) {
        for record in records {
            match record {
                LogRecord::HardState(state) => {
                    self.number(1);
                    self.hard_state(*state);
                }
                LogRecord::Entries(entries) => {
                    self.number(2);
                    for entry in entries {
                        self.number(entry.index.0);
                        self.number(entry.term.0);
                        self.number(u64::from(entry.kind == LogEntryKind::Membership));
                        self.bytes(&entry.data);
                        self.bytes(&entry.context);
                    }
                }
                LogRecord::Reset { index, term } => {
                    self.number(3);
                    self.number(index.0);
                    self.number(term.0);
                }
            }
        }
    }
}

impl Event {
    /// Appends the compact form.
    #[expect(clippy::too_many_lines, reason = "one arm for each kind, and nothing else")]
    pub(crate) fn feed(&self, to: &mut Vec<u8>) {
        let mut out = Out(to);
        match self {
            Self::Phase(name) => {
                out.number(1);
                out.text(name);
            }
            Self::Start { replica, run, hard_state, log_start, terms, snapshot, unsynced } => {
                out.numbers([2, replica.0, *run, log_start.0.0, log_start.1.0]);
                out.hard_state(*hard_state);
                for term in terms.iter() {
                    out.number(term.0);
                }
                if let Some(meta) = snapshot {
                    out.0.extend_from_slice(&meta.digest.0);
                }
                out.number(u64::from(unsynced.is_some()));
            }
            Self::Stop { replica, run, why } => {
                out.numbers([3, replica.0, *run]);
                match why {
                    Ending::Killed => out.number(1),
                    Ending::PowerLost => out.number(2),
                    Ending::Fault(problem) => out.text(problem),
                    Ending::Ended => out.number(3),
                }
            }
            Self::Send { id, envelope, bytes, again } => {
                let (size, sum) = (u64::from(bytes.0), u64::from(bytes.1));
                out.numbers([4, *id, envelope.from.0, envelope.to.0, size, sum, u64::from(*again)]);
            }
            Self::Deliver { id, .. } => {
                out.numbers([5, *id]);
            }
            Self::Drop { id, why, .. } => {
                out.numbers([6, *id, *why as u64]);
            }
            Self::Append { replica, run, records } => {
                out.numbers([7, replica.0, *run]);
                out.log(records);
            }
            Self::Durable { replica, run, records } => {
                out.numbers([8, replica.0, *run, records.len() as u64]);
            }
            Self::Records { replica, run, first, records } => {
                out.numbers([9, replica.0, *run, first.0]);
                for record in records.iter() {
                    out.bytes(record);
                }
            }
            Self::Snapshot { replica, run, installed, meta } => {
                out.numbers([10, replica.0, *run, u64::from(*installed), meta.index.0, meta.term.0]);
                out.0.extend_from_slice(&meta.digest.0);
            }
            Self::View { replica, run, view } => {
                let status = &view.status;
                out.numbers([11, replica.0, *run, status.role as u64, status.term.0, status.leader.0, status.commit.0]);
                out.numbers([status.applied.0, status.persisted.0, view.state.age().0]);
                out.0.extend_from_slice(&view.state.head().0);
            }
            Self::Disk { replica, op, file, offset, bytes, good } => {
                out.numbers([12, replica.0, *op as u64, *offset, *bytes, u64::from(*good)]);
                out.text(file);
            }
            Self::Fault { id, begins, what } => {
                out.numbers([13, u64::from(*begins)]);
                out.text(id);
                out.text(what);
            }
            Self::Operation { id, what } => {
                out.number(14);
                out.text(id);
                out.text(what);
            }
            Self::Call { client, number, ask } => {
                out.numbers([15, u64::from(*client), *number]);
                match ask {
                    Ask::Write { mark } => out.text(mark),
                    Ask::Refusable { mark } => {
                        out.number(4);
                        out.text(mark);
                    }
                    Ask::Operation { mark } => {
                        out.number(5);
                        out.text(mark);
                    }
                    Ask::OtherWrite { what } => out.text(what),
                    Ask::Read => out.number(1),
                    Ask::LocalRead => out.number(2),
                    Ask::ReadAtLeast { sequence } => out.number(sequence.0),
                    Ask::Boot { node, at_least } => {
                        out.text(node.as_str());
                        out.number(at_least.0);
                    }
                    Ask::Subscribe { after } => out.numbers([3, after.0]),
                }
            }
            Self::Answer { client, number, told } => {
                out.numbers([16, u64::from(*client), *number]);
                match told {
                    Told::Outcome(outcome) => out.bytes(&codec::encode_outcome(outcome)),
                    Told::Head { replica, run, applied, sequence, head } => {
                        out.numbers([replica.0, *run, applied.0, sequence.0]);
                        out.0.extend_from_slice(&head.0);
                    }
                    Told::Booted { replica, booted } => {
                        out.numbers([replica.0, booted.applied.0, booted.sequence.0]);
                        match &booted.plan {
                            Ok(plan) => {
                                out.0.extend_from_slice(&plan.overlay.checksum.0);
                                out.bytes(&plan.delta);
                            }
                            Err(refusal) => out.text(&refusal.to_string()),
                        }
                    }
                    Told::Records { replica, records } => {
                        out.numbers([replica.0, records.len() as u64]);
                        records.iter().for_each(|(sequence, bytes)| {
                            out.number(sequence.0);
                            out.bytes(bytes);
                        });
                    }
                    Told::Nothing(why) => out.text(why),
                }
            }
            Self::Log { error, line } => {
                out.numbers([17, u64::from(*error)]);
                out.text(line);
            }
            Self::Kept { replica, upto, records, .. } => {
                out.numbers([19, replica.0, upto.0, records.len() as u64]);
            }
            Self::Inspected { replica, log_start, snapshots, problems } => {
                out.numbers([20, replica.0, log_start.0, problems.len() as u64]);
                for index in snapshots.iter() {
                    out.number(index.0);
                }
            }
            Self::Mark(name) => {
                out.number(18);
                out.text(name);
            }
            Self::Forged { at, envelope } => {
                out.numbers([21, at.0]);
                out.bytes(&codec::encode_envelope(envelope));
            }
            Self::Agent { agent, boot, what } => {
                out.numbers([21, u64::from(*agent), boot.0]);
                match &**what {
                    // Told in full when it was handed over.
                    AgentEvent::Saved { number, .. } => out.number(*number),
                    what => out.text(&format!("{what:?}")),
                }
            }
        }
    }

    /// Whether it is a message or what a disk did: most of what happens.
    #[must_use]
    pub const fn is_traffic(&self) -> bool {
        matches!(
            self,
            Self::Send { .. } | Self::Deliver { .. } | Self::Drop { .. } | Self::Forged { .. } | Self::Disk { .. }
        )
    }

    /// Which replica it happened to, if to one.
    #[must_use]
    pub fn replica(&self) -> Option<ReplicaId> {
        match self {
            Self::Start { replica, .. }
            | Self::Stop { replica, .. }
            | Self::Append { replica, .. }
            | Self::Durable { replica, .. }
            | Self::Records { replica, .. }
            | Self::Snapshot { replica, .. }
            | Self::View { replica, .. }
            | Self::Disk { replica, .. }
            | Self::Kept { replica, .. }
            | Self::Forged { at: replica, .. }
            | Self::Inspected { replica, .. } => Some(*replica),
            Self::Send { envelope, .. } => Some(envelope.from),
            Self::Deliver { envelope, .. } | Self::Drop { envelope, .. } => Some(envelope.to),
            Self::Phase(_)
            | Self::Fault { .. }
            | Self::Operation { .. }
            | Self::Call { .. }
            | Self::Answer { .. }
            | Self::Log { .. }
            | Self::Agent { .. }
            | Self::Mark(_) => None,
        }
    }
}

/// A caller's name: clients by their number, and who else asks by what it is.
struct Caller(ClientId);

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            3_000_000..4_000_000 => write!(f, "subscriber {}", self.0 - 3_000_000),
            client => write!(f, "c{client}"),
        }
    }
}

struct Records<'a>(&'a [LogRecord]);

impl fmt::Display for Records<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for record in self.0 {
            match record {
                LogRecord::HardState(s) => write!(f, " [term {} vote {} commit {}]", s.term, s.vote, s.commit)?,
                LogRecord::Entries(entries) => {
                    if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
                        write!(f, " entries {}..{} t{}", first.index, last.index, last.term)?;
                    }
                }
                LogRecord::Reset { index, term } => write!(f, " reset to {index} t{term}")?,
            }
        }
        Ok(())
    }
}

struct Said<'a>(&'a PeerMessage);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            PeerMessage::Raft(message) => raft(f, message),
            PeerMessage::Forward { token, .. } => write!(f, "forward {token:x}"),
            PeerMessage::Forwarded { token, outcome } => write!(f, "forwarded {token:x} {}", OutcomeText(outcome)),
            PeerMessage::ReadIndex { token } => write!(f, "read-index {token:x}"),
            PeerMessage::ReadIndexReply { token, index } => write!(f, "read-index-reply {token:x} {index:?}"),
            PeerMessage::Report { full_copy, applied, .. } => write!(f, "report applied {applied} full {full_copy}"),
        }
    }
}

fn raft(f: &mut fmt::Formatter<'_>, m: &RaftMessage) -> fmt::Result {
    let kind = match m.kind {
        RaftMessageKind::Append => "append",
        RaftMessageKind::AppendReply => "append-reply",
        RaftMessageKind::Vote => "vote",
        RaftMessageKind::VoteReply => "vote-reply",
        RaftMessageKind::PreVote => "pre-vote",
        RaftMessageKind::PreVoteReply => "pre-vote-reply",
        RaftMessageKind::Heartbeat => "heartbeat",
        RaftMessageKind::HeartbeatReply => "heartbeat-reply",
        RaftMessageKind::Snapshot => "snapshot",
        RaftMessageKind::TimeoutNow => "timeout-now",
    };
    write!(f, "t{} {kind} {} (t{}) commit {}", m.term, m.index, m.log_term, m.commit)?;
    if let (Some(first), Some(last)) = (m.entries.first(), m.entries.last()) {
        write!(f, " entries {}..{}", first.index, last.index)?;
    }
    if m.reject {
        write!(f, " refused, ends at {}", m.reject_hint)?;
    }
    if let Some(meta) = &m.snapshot {
        write!(f, " snapshot {} t{}", meta.index, meta.term)?;
    }
    Ok(())
}

/// An outcome in a few words.
pub struct OutcomeText<'a>(pub &'a Outcome);

impl fmt::Display for OutcomeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Outcome::Applied { index, reply: Reply::Recorded { sequence } } => {
                write!(f, "applied at {index}, sequence {sequence}")
            }
            Outcome::Applied { index, reply } => write!(f, "applied at {index}, {reply:?}"),
            Outcome::Refused(refusal) => write!(f, "refused: {refusal:?}"),
            Outcome::NotApplied(NotApplied::NotLeader { leader, .. }) => {
                write!(f, "not applied: replica {leader} leads")
            }
            Outcome::NotApplied(why) => write!(f, "not applied: {why:?}"),
            Outcome::Unknown(why) => write!(f, "unknown: {why:?}"),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.replica() {
            Some(replica) => write!(f, "r{replica:<2} ")?,
            None => write!(f, "    ")?,
        }
        match self {
            Self::Phase(name) => write!(f, "---- {name}"),
            Self::Start { run, hard_state: s, log_start, terms, snapshot, unsynced, .. } => {
                let last = log_start.0.0 + terms.len() as u64;
                write!(
                    f,
                    "start run {run} term {} vote {} commit {} log {}..{last}",
                    s.term, s.vote, s.commit, log_start.0
                )?;
                snapshot.as_ref().map_or(Ok(()), |meta| write!(f, " snapshot {}", meta.index))?;
                unsynced.as_ref().map_or(Ok(()), |what| write!(f, ", not durable: {what}"))
            }
            Self::Stop { run, why, .. } => match why {
                Ending::Killed => write!(f, "killed run {run}"),
                Ending::PowerLost => write!(f, "power lost run {run}"),
                Ending::Fault(problem) => write!(f, "stopped run {run}: {problem}"),
                Ending::Ended => write!(f, "ended run {run}"),
            },
            Self::Send { id, envelope, again, .. } => {
                let again = if *again { "once more " } else { "" };
                write!(f, "send #{id} {again}to r{} {}", envelope.to, Said(&envelope.message))
            }
            Self::Deliver { id, envelope } => {
                write!(f, "deliver #{id} from r{} {}", envelope.from, Said(&envelope.message))
            }
            Self::Drop { id, envelope, why } => {
                write!(f, "drop #{id} from r{} ({why:?}) {}", envelope.from, Said(&envelope.message))
            }
            Self::Forged { envelope, .. } => {
                write!(f, "forged, as from r{} {}", envelope.from, Said(&envelope.message))
            }
            Self::Append { records, .. } => write!(f, "append{}", Records(records)),
            Self::Durable { records, .. } => write!(f, "durable{}", Records(records)),
            Self::Records { first, records, .. } => {
                write!(f, "records {first}..{}", first.0 + records.len() as u64 - 1)
            }
            Self::Snapshot { installed, meta, .. } => {
                let verb = if *installed { "installed" } else { "saved" };
                write!(f, "snapshot {verb} {} t{} sequence {}", meta.index, meta.term, meta.sequence)
            }
            Self::View { view, .. } => {
                let s = &view.status;
                write!(
                    f,
                    "t{} {} leader r{} applied {} commit {} sequence {}",
                    s.term,
                    s.role.word(),
                    s.leader,
                    s.applied,
                    s.commit,
                    view.state.sequence()
                )
            }
            Self::Disk { op, file, offset, bytes, good, .. } => {
                let good = if *good { "" } else { " FAILED" };
                write!(f, "disk {op:?} {file} at {offset} bytes {bytes}{good}")
            }
            Self::Fault { id, begins, what } => {
                write!(f, "fault {id} {}: {what}", if *begins { "begins" } else { "ends" })
            }
            Self::Operation { id, what } => write!(f, "operation {id}: {what}"),
            Self::Call { client, number, ask } => {
                write!(f, "{} asks {number}: ", Caller(*client))?;
                match ask {
                    Ask::Write { mark } => write!(f, "write {mark}"),
                    Ask::Refusable { mark } => write!(f, "bad write {mark}"),
                    Ask::Operation { mark } => write!(f, "operation {mark}"),
                    Ask::OtherWrite { what } => write!(f, "{what}"),
                    Ask::Read => write!(f, "read"),
                    Ask::LocalRead => write!(f, "local read"),
                    Ask::ReadAtLeast { sequence } => write!(f, "read at least {sequence}"),
                    Ask::Boot { node, at_least } => write!(f, "boot of {node} at least {at_least}"),
                    Ask::Subscribe { after } => write!(f, "records after {after}"),
                }
            }
            Self::Answer { client, number, told } => {
                write!(f, "{} told {number}: ", Caller(*client))?;
                match told {
                    Told::Outcome(outcome) => write!(f, "{}", OutcomeText(outcome)),
                    Told::Head { replica, applied, sequence, .. } => {
                        write!(f, "r{replica} applied {applied} sequence {sequence}")
                    }
                    Told::Booted { replica, booted } => match &booted.plan {
                        Ok(plan) => write!(
                            f,
                            "r{replica} boots it at {} from {} at {}",
                            booted.sequence, plan.vcluster, plan.overlay.version
                        ),
                        Err(refusal) => write!(f, "r{replica} at {}: {refusal}", booted.sequence),
                    },
                    Told::Records { replica, records } => {
                        let last = records.last().map_or(Seq(0), |(sequence, _)| *sequence);
                        write!(f, "r{replica} {} records up to {last}", records.len())
                    }
                    Told::Nothing(why) => write!(f, "nothing: {why}"),
                }
            }
            Self::Log { error, line } => write!(f, "{} {line}", if *error { "ERROR" } else { "warn" }),
            Self::Kept { upto, records, problem, .. } => {
                write!(f, "keeps {} records of {upto}", records.len())?;
                problem.as_ref().map_or(Ok(()), |problem| write!(f, ", {problem}"))
            }
            Self::Inspected { log_start, snapshots, problems, .. } => {
                let snapshots: Vec<u64> = snapshots.iter().map(|index| index.0).collect();
                write!(f, "on disk: a log after {log_start}, snapshots at {snapshots:?}, {} problems", problems.len())
            }
            Self::Mark(name) => write!(f, "mark {name}"),
            Self::Agent { agent, what, .. } => write!(f, "a{agent} {what}"),
        }
    }
}

/// Hash and length of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// BLAKE3 over the compact form.
    pub hash: Digest,
    /// How many events.
    pub events: u64,
}

/// The stream's hash as it goes.
pub(crate) struct Hash {
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
    pub(crate) events: u64,
}

const BUFFER_BYTES: usize = 64 << 10;

impl Hash {
    pub(crate) fn new() -> Self {
        Self { hasher: blake3::Hasher::new(), buffer: Vec::with_capacity(BUFFER_BYTES + 4096), events: 0 }
    }

    pub(crate) fn take(&mut self, time: Time, event: &Event) {
        self.events += 1;
        Out(&mut self.buffer).number(time.0);
        event.feed(&mut self.buffer);
        if self.buffer.len() >= BUFFER_BYTES {
            self.hasher.update(&self.buffer);
            self.buffer.clear();
        }
    }

    pub(crate) fn fingerprint(&self) -> Fingerprint {
        let mut hasher = self.hasher.clone();
        hasher.update(&self.buffer);
        Fingerprint { hash: Digest(*hasher.finalize().as_bytes()), events: self.events }
    }
}
