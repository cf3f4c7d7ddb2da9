//! Every format as it was first written. What these files hold must be read for ever, and must be what is written while that
//! format is written.
//!
//! One file per stored or sent thing, in hexadecimal. After a change that is meant to be a new format, or to add a thing:
//! `MUSTER_GOLDEN=write cargo test -p muster-core --test golden`, then review the difference as carefully as code: a changed
//! line in an old file is a broken promise.

mod common;

use common::{alice, change, draft, first_member, key, node, vcluster};
use muster_core::agent::drift::DriftVector;
use muster_core::agent::event::{Event, Fact};
use muster_core::agent::host::{BootId, BootTime, Consumer, HostError};
use muster_core::agent::ledger::{
    Attempt, Before, ChangeId, Conflict, Declared, Doing, Emergency, Frozen, Ledger, LocalChange, Owner, PendingCommit,
    Spool, Window,
};
use muster_core::codec::{self, CodecError};
use muster_core::ids::{
    Age, ClusterId, Digest, Incarnation, Index, OneShotId, ReplicaId, ReplicaName, Seq, SessionId, WallTime,
};
use muster_core::journal::command::{ConfigState, JournalCommand};
use muster_core::journal::document;
use muster_core::journal::entry::{
    AdminOperation, Author, ConfigEntry, EntryDraft, EntryType, OperationDraft, OperationKind, Principal, Record, Role,
};
use muster_core::journal::key::{Scope, Setting};
use muster_core::journal::overlay::BootOverlay;
use muster_core::journal::policy::Policy;
use muster_core::members::{Admission, Member, MemberCommand, MemberWish};
use muster_core::request::{Command, NotApplied, Outcome, Refusal, Reply, RequestId, UnknownWhy, WriteRequest};
use muster_core::state::{Proposal, State, StateLoader};
use muster_core::{boot, overlay};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

/// A golden file: what it should hold, and whether bytes decode to the same thing.
struct Golden {
    name: String,
    bytes: Vec<u8>,
    /// Decodes and encodes again.
    again: fn(&[u8]) -> Result<Vec<u8>, CodecError>,
}

fn folder() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    if regenerates() {
        std::fs::create_dir_all(&folder).unwrap();
    }
    folder
}

fn regenerates() -> bool {
    std::env::var("MUSTER_GOLDEN").is_ok_and(|what| what == "write")
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.chunks(32).fold(String::new(), |mut text, line| {
        for byte in line {
            write!(text, "{byte:02x}").unwrap();
        }
        text + "\n"
    })
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|d| u8::try_from(d).unwrap()).collect();
    digits.chunks(2).map(|pair| pair[0] * 16 + pair[1]).collect()
}

fn text(text: &str) -> Arc<str> {
    Arc::from(text)
}

fn proposals() -> Vec<(&'static str, WriteRequest)> {
    let one_shot = RequestId::OneShot { id: OneShotId(0xfeed), drawn_at: Age(123_456) };
    let numbered = RequestId::Session { session: SessionId(3), number: 9, acknowledged: 7 };
    let undone = EntryDraft {
        based_on: Some(Seq(299)),
        changes: vec![change(key(0), Setting::Absent)],
        ..draft(EntryType::Rollback, Scope::Node(node(0)), Seq(299))
    };
    let full = EntryDraft {
        based_on: Some(Seq(300)),
        changes: vec![
            change(key(0), Setting::Value(text("10"))),
            change(key(1), Setting::Absent),
            change(key(2), Setting::Unset),
        ],
        ttl_seconds: Some(900),
        emergency_reason: Some(text("fire")),
        occurred_at: Some(WallTime(1_700_000_000_000)),
        ..draft(EntryType::Commit, Scope::VCluster(vcluster(0)), Seq(299))
    };
    let overlay = BootOverlay {
        version: Seq(70_000),
        checksum: Digest([7; 32]),
        data: b"compressed".as_slice().into(),
        content_bytes: 99,
    };
    let operation = OperationDraft {
        kind: OperationKind::ShellStart,
        scope: Scope::Node(node(0)),
        detail: text("bash"),
        exit_status: Some(-1),
        occurred_at: None,
    };
    let admission = Admission {
        name: ReplicaName::new("r2").unwrap(),
        incarnation: Incarnation(1 << 100),
        peer_address: text("10.0.0.2:9444"),
        client_address: text("10.0.0.2:9443"),
        wish: MemberWish::Replacement { of: ReplicaId(1) },
        feature_level: 1,
    };
    let oidc = Author {
        principal: Principal::Oidc { issuer: text("https://id.example"), subject: text("bob") },
        role: Role::Operator(vcluster(1)),
    };
    let agent = Author { principal: Principal::Certificate { subject: text("CN=n0") }, role: Role::Agent(node(0)) };
    let policy = Policy { exec_allow: vec![text("uptime")], ..Policy::default() };
    let journal = Command::Journal;
    let members = Command::Members;
    let (old, new) = (ReplicaId(1), ReplicaId(2));
    [
        ("append-entry", numbered, alice(), journal(JournalCommand::AppendEntry(full))),
        ("append-undone", one_shot, agent.clone(), journal(JournalCommand::AppendEntry(undone))),
        (
            "update-node-state",
            one_shot,
            agent,
            journal(JournalCommand::UpdateNodeState { node: node(0), state: ConfigState::Converging }),
        ),
        ("set-policy", one_shot, oidc, journal(JournalCommand::SetPolicy { vcluster: vcluster(0), policy })),
        (
            "set-overlay",
            RequestId::None,
            Author::system("overlay"),
            journal(JournalCommand::SetOverlay { vcluster: vcluster(0), overlay }),
        ),
        ("record-operation", one_shot, alice(), journal(JournalCommand::RecordOperation(operation))),
        ("admit", one_shot, alice(), members(MemberCommand::Admit(admission))),
        ("add-learner", one_shot, alice(), members(MemberCommand::AddLearner(new))),
        ("promote", one_shot, alice(), members(MemberCommand::Promote(new))),
        ("demote", one_shot, alice(), members(MemberCommand::Demote(new))),
        ("remove", one_shot, alice(), members(MemberCommand::Remove(old))),
        ("replace", one_shot, alice(), members(MemberCommand::Replace { old, new })),
        ("open-session", one_shot, alice(), Command::OpenSession),
        ("close-session", numbered, alice(), Command::CloseSession),
        ("expire", RequestId::None, Author::system("expiry"), Command::Expire),
        ("raise-feature-level", RequestId::None, Author::system("features"), Command::RaiseFeatureLevel(2)),
    ]
    .map(|(name, request, author, command)| (name, WriteRequest { request, author, command }))
    .into()
}

fn records() -> Vec<(String, Record)> {
    let entry = |entry_type| ConfigEntry {
        sequence: Seq(300),
        recorded_at: WallTime(1_700_000_000_000),
        occurred_at: Some(WallTime(1_700_000_000_001)),
        entry_type,
        scope: Scope::Node(node(0)),
        author: alice(),
        parent: Seq(299),
        based_on: Some(Seq(298)),
        delta: vec![change(key(0), Setting::Absent)],
        takes_off: vec![(key(0), Seq(297))],
        policy_ref: Some(Seq(1)),
        policy: (entry_type == EntryType::PolicyUpdate).then(Policy::default),
        ttl_seconds: Some(900),
        emergency_reason: None,
        message: text("because"),
    };
    let operation = |kind| AdminOperation {
        sequence: Seq(301),
        recorded_at: WallTime(1_700_000_000_000),
        occurred_at: None,
        author: alice(),
        kind,
        scope: Scope::Global,
        detail: text("promote replica 4 (node-4)"),
        exit_status: Some(0),
    };
    let kinds = [OperationKind::Exec, OperationKind::ShellStart, OperationKind::ShellEnd, OperationKind::Membership];
    let entries = EntryType::ALL.map(|kind| (kind.word().to_string(), Record::Entry(entry(kind))));
    let operations = kinds.map(|kind| (format!("{kind:?}").to_lowercase(), Record::Operation(operation(kind))));
    entries.into_iter().chain(operations).collect()
}

fn outcomes() -> Vec<Outcome> {
    let problem = || text("it is wrong");
    let (key, state) = (key(0), ConfigState::Drifted);
    let replies = [
        Reply::Recorded { sequence: Seq(300) },
        Reply::NodeState { state },
        Reply::Overlay { version: Seq(300) },
        Reply::Session { session: SessionId(3) },
        Reply::SessionClosed,
        Reply::Admitted { replica: ReplicaId(4) },
        Reply::Membership,
        Reply::Expired { count: 256 },
        Reply::FeatureLevel { level: 2 },
    ];
    let refusals = [
        Refusal::Invalid { field: text("message"), problem: problem() },
        Refusal::UnknownScope { scope: text("node:n9"), hint: problem() },
        Refusal::FutureParent { parent: Seq(9), head: Seq(8) },
        Refusal::Conflict {
            key: key.clone(),
            theirs: Setting::Absent,
            theirs_sequence: Seq(5),
            yours: Setting::Value(text("x")),
        },
        Refusal::TargetRolledBack { key: key.clone(), pair: Seq(3), taken_off_by: Seq(4) },
        Refusal::TooFarBack { key: key.clone(), remembered_from: Seq(3) },
        Refusal::NothingToRollBack,
        Refusal::TooManyTemporary { key, max: 128 },
        Refusal::IllegalTransition { from: state, to: ConfigState::Emergency },
        Refusal::Emergency { problem: problem() },
        Refusal::Forbidden { problem: problem() },
        Refusal::Overlay { problem: problem() },
        Refusal::Membership { problem: problem() },
    ];
    let not_applied = [
        NotApplied::NoQuorum,
        NotApplied::NotLeader { leader: ReplicaId(2), address: text("10.0.0.2:9443") },
        NotApplied::Busy { retry_after_ms: 1_000 },
        NotApplied::TooLarge { bytes: 5 << 20, bytes_max: 4 << 20 },
        NotApplied::Superseded,
        NotApplied::Stopping,
        NotApplied::FeatureLevel { needs: 2, has: 1 },
    ];
    let unknown = [
        UnknownWhy::TimedOut,
        UnknownWhy::ForwardTimedOut,
        UnknownWhy::SessionUnknown,
        UnknownWhy::AlreadyAcknowledged,
        UnknownWhy::OneShotExpired,
        UnknownWhy::ConnectionLost,
    ];
    let applied = replies.map(|reply| Outcome::Applied { index: Index(1_000), reply });
    let refused = refusals.map(Outcome::Refused);
    applied
        .into_iter()
        .chain(refused)
        .chain(not_applied.map(Outcome::NotApplied))
        .chain(unknown.map(Outcome::Unknown))
        .collect()
}

/// A small state that holds something of every kind.
fn small_state(feature_level: u32) -> State {
    let mut state = State::new(ClusterId(7), Member { feature_level, ..first_member() });
    let mut index = 0;
    let mut give = |state: &mut State, request, author, command| {
        index += 1;
        let write = WriteRequest { request, author, command };
        state.apply(Index(index), Proposal { write, recorded_at: WallTime(index), elapsed: 1_000 }).0
    };
    let one_shot = |id| RequestId::OneShot { id: OneShotId(id), drawn_at: Age(0) };
    let append = |draft| Command::Journal(JournalCommand::AppendEntry(draft));
    let policy = Policy::default();
    give(
        &mut state,
        one_shot(1),
        alice(),
        Command::Journal(JournalCommand::SetPolicy { vcluster: vcluster(0), policy }),
    );
    let mut assign = draft(EntryType::BootConfig, Scope::Node(node(0)), Seq(1));
    assign.changes = vec![change(muster_core::journal::key::Key::vcluster(), Setting::Value(text("hpc-a")))];
    give(&mut state, one_shot(2), alice(), append(assign));
    give(&mut state, one_shot(3), alice(), Command::OpenSession);
    for n in 0..3 {
        let mut commit = draft(EntryType::Commit, Scope::Global, state.sequence());
        commit.changes = vec![change(key(n), Setting::Value(text("x"))), change(key(4), Setting::Absent)];
        commit.ttl_seconds = (n == 1).then_some(900);
        let number = u64::from(n) + 1;
        let request = RequestId::Session { session: SessionId(1), number, acknowledged: 1.min(number - 1) };
        give(&mut state, request, alice(), append(commit));
    }
    let mut rollback = draft(EntryType::Rollback, Scope::Global, Seq(4));
    rollback.based_on = Some(Seq(5));
    give(&mut state, one_shot(4), alice(), append(rollback));
    let mut emergency = draft(EntryType::EmergencyStart, Scope::Node(node(0)), Seq(6));
    emergency.emergency_reason = Some(text("fire"));
    give(&mut state, one_shot(5), alice(), append(emergency));
    // Not one that was built here: its bytes would change with the compressor.
    let data = bytes::Bytes::from_static(b"compressed");
    let overlay = BootOverlay { version: Seq(3), checksum: Digest::of(&data), data, content_bytes: 99 };
    let command = Command::Journal(JournalCommand::SetOverlay { vcluster: vcluster(0), overlay });
    give(&mut state, RequestId::None, Author::system("overlay"), command);
    assert_eq!(state.problem(), None);
    state
}

/// A ledger that holds something of every kind.
fn ledger() -> Ledger {
    let value = |text: &str| Setting::Value(Arc::from(text));
    let local = |owner, problem| LocalChange {
        change: ChangeId(3),
        owner,
        before: value("60"),
        value: value("10"),
        asked: Some(Setting::Absent),
        since: WallTime(1_700_000_000_000),
        reported: true,
        problem,
    };
    let attempt = Attempt { id: OneShotId(0xfeed), drawn_at: Age(5) };
    let consumer = Consumer { key: key(0), pid: 17, command: text("vi"), path: text("/etc/motd") };
    Ledger {
        boot: BootId(text("a-boot")),
        declared: Some(Seq(40)),
        committed: [(key(1), (Seq(41), Setting::Absent))].into(),
        changes: [
            (key(0), local(Owner::Operator(alice()), None)),
            (key(2), local(Owner::BehindItsBack, Some(text("in use")))),
            (key(3), local(Owner::NotReached, None)),
        ]
        .into(),
        last_change: ChangeId(3),
        window: Some(Window {
            number: 2,
            opened_at: BootTime(1),
            deadline: BootTime(300_000_000_001),
            drift: DriftVector([1, 2, 0, 0, 5, 0, 0]),
            frozen: Some(Frozen {
                at: BootTime(9),
                consumers: vec![consumer],
                errors: vec![HostError { key: key(2), problem: text("read-only") }],
            }),
        }),
        last_window: 2,
        emergency: Some(Emergency {
            author: alice(),
            reason: text("fire"),
            since: WallTime(1),
            deadline: BootTime(2),
            alerted: false,
            event: 5,
            recorded: Some(Seq(39)),
        }),
        conflicts: [(key(0), Conflict { before: Setting::Unset, declared: value("20"), deadline: BootTime(77) })]
            .into(),
        told_drift: true,
        doing: Some(Doing::Setting {
            change: ChangeId(3),
            keys: [(key(0), Before { value: value("60"), change: Some(local(Owner::BehindItsBack, None)) })].into(),
        }),
        commit: Some(PendingCommit {
            attempt,
            author: alice(),
            parent: Seq(40),
            settings: [(key(0), value("10"))].into(),
            ttl_seconds: Some(900),
            message: text("because"),
            occurred_at: WallTime(1_700_000_000_000),
        }),
        spool: Spool { delivered: 6, last: 7, attempt: Some(attempt) },
    }
}

fn declared() -> Declared {
    let settings = [(key(0), Setting::Value(text("60"))), (key(1), Setting::Absent)].into();
    let policy = Policy { exec_allow: vec![text("uptime")], ..Policy::default() };
    Declared { sequence: Seq(40), vcluster: vcluster(0), policy_sequence: Seq(1), policy, settings }
}

fn facts() -> Vec<(&'static str, Fact)> {
    let changes = || vec![change(key(0), Setting::Absent)];
    let message = || text("in words");
    vec![
        ("drift", Fact::Drift { changes: changes(), message: message() }),
        ("undone", Fact::Undone { changes: changes(), message: message() }),
        ("emergency-start", Fact::EmergencyStart { reason: text("fire") }),
        ("emergency-end", Fact::EmergencyEnd { message: message() }),
        ("operation", Fact::Operation { kind: OperationKind::ShellEnd, detail: text("shell"), exit_status: Some(-1) }),
        ("state", Fact::State { state: ConfigState::Committed }),
        ("note", Fact::Note { message: message() }),
    ]
}

fn load(pages: &[&[u8]]) -> Result<State, CodecError> {
    let mut loader = StateLoader::new();
    for page in pages {
        loader.page(page)?;
    }
    loader.finish()
}

/// The two pages of a small state: what lasts, what passes.
fn pages() -> [Vec<u8>; 2] {
    let pages: Vec<_> = small_state(2).pages().map(|page| page.to_vec()).collect();
    pages.try_into().expect("a small state has a page of each part")
}

/// What is read and not written any more.
const OLD: [(&str, u32); 2] = [("state", 1), ("state-2", 2)];

fn all() -> Vec<Golden> {
    let mut all = Vec::new();
    for (name, write) in proposals() {
        let proposal = Proposal { write, recorded_at: WallTime(1_700_000_000_000), elapsed: 250 };
        let bytes = codec::encode_proposal(&proposal).to_vec();
        assert_eq!(codec::decode_proposal(&bytes).as_ref(), Ok(&proposal));
        let again = |bytes: &[u8]| Ok(codec::encode_proposal(&codec::decode_proposal(bytes)?).to_vec());
        all.push(Golden { name: format!("proposal-{name}"), bytes, again });
    }
    for (name, record) in records() {
        let bytes = codec::encode_record(&record).to_vec();
        assert_eq!(codec::decode_record(&bytes), Ok(record));
        let again = |bytes: &[u8]| Ok(codec::encode_record(&codec::decode_record(bytes)?).to_vec());
        all.push(Golden { name: format!("record-{name}"), bytes, again });
    }
    for (number, outcome) in outcomes().into_iter().enumerate() {
        let bytes = codec::encode_outcome(&outcome).to_vec();
        assert_eq!(codec::decode_outcome(&bytes), Ok(outcome));
        let again = |bytes: &[u8]| Ok(codec::encode_outcome(&codec::decode_outcome(bytes)?).to_vec());
        all.push(Golden { name: format!("outcome-{number:02}"), bytes, again });
    }
    let [lasting, passing] = pages();
    all.push(Golden {
        name: "state-3-lasting".into(),
        bytes: lasting,
        again: |bytes| Ok(load(&[bytes, &pages()[1]])?.pages().next().unwrap().to_vec()),
    });
    all.push(Golden {
        name: "state-3-passing".into(),
        bytes: passing,
        again: |bytes| Ok(load(&[&pages()[0], bytes])?.pages().last().unwrap().to_vec()),
    });
    all.push(Golden {
        name: "agent-ledger".into(),
        bytes: codec::encode_ledger(&ledger()).to_vec(),
        again: |bytes| Ok(codec::encode_ledger(&codec::decode_ledger(bytes)?).to_vec()),
    });
    assert_eq!(codec::decode_ledger(&codec::encode_ledger(&ledger())), Ok(ledger()));
    all.push(Golden {
        name: "agent-declared".into(),
        bytes: codec::encode_declared(&declared()).to_vec(),
        again: |bytes| Ok(codec::encode_declared(&codec::decode_declared(bytes)?).to_vec()),
    });
    for (name, fact) in facts() {
        let (occurred_at, after) = (WallTime(1_700_000_000_000), Seq(40));
        let event = Event { number: 7, occurred_at, after, author: alice(), fact };
        let bytes = codec::encode_event(&event).to_vec();
        assert_eq!(codec::decode_event(&bytes), Ok(event));
        let again = |bytes: &[u8]| Ok(codec::encode_event(&codec::decode_event(bytes)?).to_vec());
        all.push(Golden { name: format!("agent-event-{name}"), bytes, again });
    }
    all
}

#[test]
fn what_is_written_is_what_format_1_was_and_reads_back() {
    let mut expected: BTreeSet<_> = OLD.iter().map(|(name, _)| folder().join(format!("{name}.hex"))).collect();
    for golden in all() {
        let file = folder().join(format!("{}.hex", golden.name));
        expected.insert(file.clone());
        if regenerates() {
            std::fs::write(&file, to_hex(&golden.bytes)).unwrap();
        }
        let stored = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert_eq!(stored, to_hex(&golden.bytes), "{} is not what is written", file.display());
        assert_eq!((golden.again)(&from_hex(&stored)).unwrap(), golden.bytes, "{}", file.display());
    }
    let found: BTreeSet<_> = std::fs::read_dir(folder()).unwrap().map(|file| file.unwrap().path()).collect();
    let strays: Vec<_> = found.iter().filter(|file| file.extension().is_some_and(|e| e == "hex")).collect();
    assert_eq!(strays, expected.iter().collect::<Vec<_>>(), "files without a test, or the other way round");
}

#[test]
fn pages_of_older_formats_are_read() {
    for (name, feature_level) in OLD {
        let stored = std::fs::read_to_string(folder().join(format!("{name}.hex"))).unwrap();
        let state = load(&[&from_hex(&stored)]).unwrap();
        assert_eq!(state.digest(), small_state(feature_level).digest(), "{name}");
        assert_eq!(state.problem(), None, "{name}");
    }
}

#[test]
fn every_proper_prefix_is_refused_and_so_is_a_longer_one() {
    for golden in all() {
        for length in 0..golden.bytes.len() {
            assert!((golden.again)(&golden.bytes[..length]).is_err(), "{} cut to {length} bytes", golden.name);
        }
        let longer = [&golden.bytes[..], &[0]].concat();
        assert!((golden.again)(&longer).is_err(), "{} with a byte after its end", golden.name);
    }
}

#[test]
fn every_changed_byte_gives_an_error_or_a_value_and_never_a_panic() {
    for golden in all() {
        let mut bytes = golden.bytes.clone();
        for at in 0..bytes.len() {
            for to in [0, 1, 0x7f, 0x80, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff]
                .into_iter()
                .chain((0..8).map(|bit| bytes[at] ^ 1 << bit))
                .collect::<Vec<u8>>()
            {
                let was = std::mem::replace(&mut bytes[at], to);
                let _ = (golden.again)(&bytes);
                bytes[at] = was;
            }
        }
    }
}

#[test]
fn an_unknown_format_is_refused_naming_both() {
    for golden in all() {
        let mut bytes = golden.bytes.clone();
        bytes[0] = 9;
        let newest = if golden.name.starts_with("state") { codec::STATE_FORMAT } else { codec::FORMAT };
        match (golden.again)(&bytes) {
            Err(error @ CodecError::Format { found: 9, known, .. }) if known == newest => {
                let words = format!("format 9, this muster knows up to {newest}");
                assert!(error.to_string().contains(&words), "{error}");
            }
            other => panic!("{}: {other:?}", golden.name),
        }
    }
}

#[test]
fn boot_documents_are_the_text_they_were() {
    let state = small_state(1);
    let built = overlay::build(&state, &vcluster(0)).unwrap();
    let plan = boot::plan_with(&state, &node(0), BootOverlay { version: Seq(2), ..built.clone() }).unwrap();
    let opened = document::write(&overlay::open(&built).unwrap());
    let delta = String::from_utf8(plan.delta.to_vec()).unwrap();
    for (name, text) in [("overlay.txt", opened), ("delta.txt", delta)] {
        let file = folder().join(name);
        if regenerates() {
            std::fs::write(&file, &text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "{}", file.display());
    }
}
