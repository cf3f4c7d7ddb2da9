//! What a run replays must not reach round its devices: core, driver, service layer and log open no file and no socket, read no
//! clock, spawn no thread and draw no entropy. Here each is tried, and must not get through.
//!
//! Core is `no_std`: offending lines are compiled under the very attributes of its `lib.rs`, and must not compile. Storage needs
//! `std` for paths, so its sources (but for the real disk) and what both crates depend on are read, against lists of what is
//! accepted; the reader is tried on offending lines first. A wall that is taken down makes these tests fail.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One line for each way round a device.
const OFFENCES: [(&str, &str); 12] = [
    ("a monotonic clock", "pub fn f() { let _ = std::time::Instant::now(); }"),
    ("a wall clock", "pub fn f() { let _ = std::time::SystemTime::now(); }"),
    ("a socket", "pub fn f() { let _ = std::net::TcpStream::connect(\"127.0.0.1:1\"); }"),
    ("a listener", "pub fn f() { use std::net::{IpAddr, UdpSocket}; let _ = UdpSocket::bind(\"127.0.0.1:0\"); }"),
    ("a file", "pub fn f() { let _ = std::fs::File::open(\"x\"); }"),
    ("a directory", "pub fn f() { use std as s; let _ = s::fs::read_dir(\".\"); }"),
    ("a thread", "pub fn f() { drop(std::thread::spawn(|| ())); }"),
    ("a pause", "pub fn f() { std::thread::sleep(core::time::Duration::from_secs(1)); }"),
    ("entropy", "pub fn f() { let _ = std::hash::RandomState::new(); }"),
    ("a map of random order", "pub fn f() { let _: std::collections::HashMap<u8, u8> = Default::default(); }"),
    ("the environment", "pub fn f() { let _ = std::env::var(\"X\"); }"),
    ("a process", "pub fn f() { let _ = std::process::id(); }"),
];

/// What storage may use of `std`: values and containers, nothing that acts.
const ACCEPTED: [&str; 14] = [
    "mem::take",
    "cmp::Reverse",
    "path::Path",
    "path::PathBuf",
    "collections::BTreeMap",
    "collections::BTreeSet",
    "collections::VecDeque",
    "sync::Arc",
    "sync::Mutex",
    "sync::MutexGuard",
    "ops::Range",
    "pin::Pin",
    "fmt",
    "fmt::Display",
];

/// Methods of a path that ask the machine's own disk.
const ASKS_THE_DISK: [&str; 9] = [
    ".exists(",
    ".try_exists(",
    ".is_file(",
    ".is_dir(",
    ".metadata(",
    ".symlink_metadata(",
    ".read_dir(",
    ".read_link(",
    ".canonicalize(",
];

/// The files of storage that are a device: the real disk, and the lock on it.
const DEVICES: [&str; 2] = ["real.rs", "lock.rs"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in a workspace").to_owned()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every source file below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("a folder can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(files.len() > 5, "{} has no sources", folder.display());
    files
}

/// The code of a file without its comments, and without its tests, which come last.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Every path below `std` that code names, with what stands in braces taken apart.
fn paths(code: &str) -> Vec<String> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (at, _) in code.match_indices("std") {
        let alone = !code[..at].ends_with(word) && !code[at + 3..].starts_with(word);
        if !alone {
            continue;
        }
        let rest = code[at + 3..].trim_start();
        let Some(rest) = rest.strip_prefix("::") else {
            found.push("all of std".into());
            continue;
        };
        let first: String = rest.chars().take_while(|c| word(*c)).collect();
        let rest = &rest[first.len()..];
        match rest.strip_prefix("::") {
            Some(rest) if rest.starts_with('{') => {
                let inside = rest[1..].split('}').next().unwrap_or_default();
                found.extend(
                    inside
                        .split(',')
                        .map(str::trim)
                        .filter(|name| !name.is_empty())
                        .map(|name| if name == "self" { first.clone() } else { format!("{first}::{name}") }),
                );
            }
            Some(rest) => {
                let second: String = rest.chars().take_while(|c| word(*c)).collect();
                found.push(format!("{first}::{second}"));
            }
            None => found.push(first),
        }
    }
    found
}

/// What in code reaches round the devices.
fn offences(code: &str) -> Vec<String> {
    let mut found: Vec<String> = paths(code).into_iter().filter(|path| !ACCEPTED.contains(&path.as_str())).collect();
    found.extend(ASKS_THE_DISK.iter().filter(|method| code.contains(*method)).map(|method| (*method).to_owned()));
    found
}

/// Compiles a library of a few lines; gives what the compiler said if it did not like it.
fn compile(name: &str, text: &str) -> Result<(), String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, out) = (folder.join(format!("{name}.rs")), folder.join(format!("{name}.rmeta")));
    std::fs::write(&source, text).expect("a file can be written");
    let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let output = Command::new(compiler)
        .args(["--edition", "2024", "--crate-type", "lib", "--crate-name", "offender", "--emit", "metadata", "-o"])
        .args([&out, &source])
        .output()
        .expect("the compiler runs");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[test]
fn nothing_of_the_kind_compiles_in_core() {
    let lib = read(&root().join("core/src/lib.rs"));
    let own = |line: &&str| line.starts_with("#![") || line.starts_with("extern crate");
    let head: Vec<&str> = lib.lines().filter(own).collect();
    let head = head.join("\n");
    let good = format!("{head}\npub fn f() -> alloc::collections::BTreeMap<u8, u8> {{ Default::default() }}");
    compile("accepted", &good).unwrap_or_else(|why| panic!("what core may do does not compile: {why}"));
    for (number, (what, line)) in OFFENCES.iter().enumerate() {
        let refused = compile(&format!("offence-{number}"), &format!("{head}\n{line}"));
        let why = refused.err().unwrap_or_else(|| panic!("core can reach {what}: {line}"));
        assert!(why.contains("std"), "{what} does not compile, but for another reason: {why}");
    }
}

#[test]
fn core_does_not_bring_std_back_in() {
    for file in sources(&root().join("core/src")) {
        if file.file_name().is_some_and(|name| name == "tests.rs") {
            continue;
        }
        let found = paths(&code(&read(&file)));
        assert!(found.is_empty(), "{} names {found:?}", file.display());
    }
}

#[test]
fn the_log_and_all_of_storage_act_through_the_disk_trait_alone() {
    for (what, line) in OFFENCES {
        assert!(!offences(line).is_empty(), "{what} is overlooked: {line}");
    }
    for method in ASKS_THE_DISK {
        assert!(!offences(&format!("if path{method}) {{}}")).is_empty(), "{method} is overlooked");
    }
    for file in sources(&root().join("storage/src")) {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if DEVICES.contains(&name) {
            continue;
        }
        let found = offences(&code(&read(&file)));
        assert!(found.is_empty(), "{} uses {found:?}: only {DEVICES:?} are devices", file.display());
    }
}

/// A dependency can reach whatever it likes, so each was chosen: none of these has a clock, a socket, a file or a thread that we
/// could ask for, but raft-rs its random timeouts, which the replica sets itself. The lock of `parking_lot` reads the clock only where
/// two threads meet at it; in the simulator there is one.
#[test]
fn what_core_and_storage_depend_on_was_chosen() {
    let core = "arc-swap base64 bincode blake3 bytes event-listener futures-channel futures-util imbl itoa libm parking_lot protobuf \
                raft serde slog tracing zstd";
    let storage = "blake3 bytes crc32fast muster-core tracing zstd";
    for (package, chosen) in [("core", core), ("storage", storage)] {
        let manifest: toml::Table = read(&root().join(package).join("Cargo.toml")).parse().expect("a manifest is TOML");
        let has: BTreeSet<&str> =
            manifest["dependencies"].as_table().expect("it depends on something").keys().map(String::as_str).collect();
        let may: BTreeSet<&str> = chosen.split_whitespace().collect();
        assert_eq!(has, may, "{package}: whoever adds one says here that it cannot reach round the devices");
        assert!(!manifest.contains_key("build-dependencies"), "{package} builds with something that runs");
    }
}
