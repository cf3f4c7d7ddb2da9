//! The text that a booting node reads survives the round trip, and damaged text is refused with its line.

mod common;

use common::{node, vcluster};
use muster_core::ids::Seq;
use muster_core::journal::document::{Document, Kind, parse, write};
use muster_core::journal::key::{Key, Setting};
use muster_core::journal::policy::{Milli, Mode, Policy};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

fn value() -> impl Strategy<Value = Setting> {
    prop_oneof![
        Just(Setting::Absent),
        "\\PC{0,12}".prop_map(|text| Setting::Value(Arc::from(text))),
        prop::collection::vec(any::<char>(), 0..12)
            .prop_map(|text| Setting::Value(Arc::from(text.into_iter().collect::<String>()))),
        prop::collection::vec(
            prop::sample::select(vec!['\\', '\n', '\r', '\t', '=', ' ', 'x', '0', '\u{85}', '\u{7f}']),
            0..8
        )
        .prop_map(|text| Setting::Value(Arc::from(text.into_iter().collect::<String>()))),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    (any::<[u16; 4]>(), any::<[u16; 7]>(), any::<bool>(), 0..3u8, prop::collection::vec("\\PC{1,8}", 0..3)).prop_map(
        |(numbers, weights, emergency_allowed, mode, exec_allow)| Policy {
            base_window_seconds: numbers[0].into(),
            sensitivity: Milli(numbers[1].into()),
            weights: weights.map(|weight| Milli(weight.into())),
            min_window_seconds: numbers[2].into(),
            emergency_allowed,
            emergency_window_seconds: numbers[3].into(),
            mode: [Mode::Observe, Mode::Warn, Mode::Enforce][usize::from(mode)],
            exec_allow: exec_allow.into_iter().map(Arc::from).collect(),
        },
    )
}

fn documents() -> impl Strategy<Value = Document> {
    let key = "(kernel|files|mounts):[!-<>-~]{1,9}".prop_map(|text| Key::new(&text).unwrap());
    let settings = prop::collection::btree_map(key, prop_oneof![4 => value(), 1 => Just(Setting::Unset)], 0..8);
    let policy = prop::option::of((any::<u64>().prop_map(Seq), policy()));
    (any::<u64>(), prop::option::of(any::<u64>()), policy, settings).prop_map(
        |(version, sequence, policy, settings)| {
            let kind = sequence.map_or(Kind::Overlay, |n| Kind::Delta { sequence: Seq(n), node: node(1) });
            let keep = |setting: &Setting| sequence.is_some() || *setting != Setting::Unset;
            let settings: BTreeMap<_, _> = settings.into_iter().filter(|(_, setting)| keep(setting)).collect();
            Document { kind, vcluster: vcluster(0), version: Seq(version), policy, settings }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_reads_back(document in documents()) {
        let text = write(&document);
        prop_assert_eq!(&parse(&text).unwrap(), &document);
        prop_assert!(text.lines().all(|line| !line.chars().any(char::is_control)), "{}", text);
    }

    #[test]
    fn a_cut_document_is_refused_and_a_changed_one_never_panics(document in documents(), at in any::<prop::sample::Index>(), with in any::<char>()) {
        let text = write(&document);
        let chars: Vec<char> = text.chars().collect();
        let at = at.index(chars.len());
        let cut: String = chars[..at].iter().collect();
        prop_assert!(parse(&cut).is_err());
        let mut changed = chars;
        changed[at] = with;
        if let Ok(other) = parse(&changed.into_iter().collect::<String>()) {
            prop_assert_eq!(parse(&write(&other)).unwrap(), other);
        }
    }
}

#[test]
fn a_value_is_one_line_that_a_shell_can_read() {
    let value = Setting::Value(Arc::from("a=b \\ c\nd\re\tf\u{1}\u{85}é"));
    let settings = BTreeMap::from([
        (Key::new("files:/etc/motd").unwrap(), value),
        (Key::new("kernel:gone").unwrap(), Setting::Absent),
        (Key::new("kernel:quiet").unwrap(), Setting::Unset),
    ]);
    let kind = Kind::Delta { sequence: Seq(9), node: node(1) };
    let text = write(&Document { kind, vcluster: vcluster(0), version: Seq(5), policy: None, settings });
    let expected = "muster-boot 1 delta vcluster=hpc-a version=5 sequence=9 node=n1\n\
                    files:/etc/motd=a=b \\\\ c\\nd\\re\\tf\\x01\\xc2\\x85é\n\
                    kernel:gone absent\n\
                    kernel:quiet unset\n\
                    end 3\n";
    assert_eq!(text, expected);
}

#[test]
fn an_error_names_its_line_and_what_would_be_accepted() {
    let head = "muster-boot 1 overlay vcluster=hpc-a version=1\n";
    for (text, line, says) in [
        ("", 1, "cut"),
        ("hello\n", 1, "not a boot document"),
        ("muster-boot 2 overlay vcluster=v version=1\nend 0\n", 1, "format \"2\""),
        ("muster-boot 1 overlay version=1\nend 0\n", 1, "vcluster is missing"),
        (&format!("{head}kernel:a=1\n"), 3, "end COUNT"),
        (&format!("{head}kernel:a=1\nend 1"), 3, "newline"),
        (&format!("{head}kernel:a=1\nend 2\n"), 3, "there are 1"),
        (&format!("{head}kernel:a unset\nend 1\n"), 2, "only holds what is declared"),
        (&format!("{head}kernel:b=1\nkernel:a=1\nend 2\n"), 3, "ascending"),
        (&format!("{head}kernel:a=\\q\nend 1\n"), 2, "backslash"),
        (&format!("{head}kernel:a=\\xff\nend 1\n"), 2, "UTF-8"),
        (&format!("{head}color:a=1\nend 1\n"), 2, "DIMENSION:NAME"),
        (&format!("{head}kernel:a gone\nend 1\n"), 2, "absent"),
        (&format!("{head}policy color=1\nend 1\n"), 2, "no field"),
        (&format!("{head}policy sequence=1\nend 1\n"), 3, "lacks its field"),
        (&format!("{head}end 0\nend 0\n"), 3, "after the end"),
    ] {
        let error = parse(text).expect_err(text);
        assert_eq!(error.line, line, "{text:?}: {error}");
        assert!(error.problem.contains(says), "{text:?}: {error}");
    }
}
