//! The grammar's examples are those of `docs/values.md`.

use super::*;

const DOCUMENT: &str = include_str!("../../../../docs/values.md");

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn value(text: &str) -> Setting {
    Setting::Value(Arc::from(text))
}

fn seen(text: &str) -> Observed {
    Observed::Value(Arc::from(text))
}

/// The lines of the document's blocks of this kind, as key and value.
fn examples(kind: &str) -> Vec<(Key, String)> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in DOCUMENT.lines() {
        match line.strip_prefix("```") {
            Some(word) => inside = word == kind,
            None if inside => {
                let (name, value) = line.split_once('=').unwrap();
                found.push((key(name), value.replace("\\n", "\n")));
            }
            None => {}
        }
    }
    assert!(found.len() > 5, "the document has few {kind} examples");
    found
}

#[test]
fn documented_values_are_accepted_stay_as_they_are_and_agree_with_themselves() {
    for (key, text) in examples("accepted") {
        let canonical = check(&key, &text).unwrap_or_else(|unfit| panic!("{key}={text}: {unfit}"));
        assert_eq!(&*canonical, text, "{key}");
        assert!(agrees(&key, &value(&text), &seen(&text)), "{key}={text}");
        assert!(!agrees(&key, &value(&text), &Observed::Absent), "{key}={text}");
        assert!(agrees(&key, &value(&text), &Observed::Unseen("no permission".into())), "{key}={text}");
    }
}

#[test]
fn documented_spellings_become_the_canonical_one() {
    for (key, line) in examples("rewritten") {
        let (given, canonical) = line.split_once(" => ").unwrap();
        assert_eq!(check(&key, given).as_deref(), Ok(canonical), "{key}");
        assert!(agrees(&key, &value(given), &seen(canonical)), "{key}={given}");
    }
}

#[test]
fn documented_refusals_say_what_would_be_accepted() {
    for (key, text) in examples("refused") {
        let unfit = if text.starts_with("@other") {
            assert!(file::File::parse(&text).is_ok(), "it can be observed");
            check(&key, &text).unwrap_err()
        } else {
            check(&key, &text).expect_err(&format!("{key}={text}"))
        };
        assert!(!unfit.want.is_empty());
    }
}

#[test]
fn every_dimension_has_examples_of_all_kinds() {
    for dimension in Dimension::ALL {
        for kind in ["accepted", "refused"] {
            assert!(
                examples(kind).iter().any(|(key, _)| key.dimension() == Some(dimension)),
                "{kind} {}",
                dimension.word()
            );
        }
    }
}

#[test]
fn what_a_value_does_not_mention_is_not_compared() {
    let found = seen("@file mode=0644 owner=root:root ids=0:0 text=Welcome");
    let motd = key("files:/etc/motd");
    for agreeing in ["Welcome", "@file", "@file mode=0644", "@file ids=0:0 text=Welcome"] {
        assert!(agrees(&motd, &value(agreeing), &found), "{agreeing}");
    }
    for differing in [
        "Welcome\n",
        "@file mode=0600",
        "@file owner=root:adm",
        "@dir",
        "@link to=Welcome",
        "@file ids=0:4 text=Welcome",
    ] {
        assert!(!agrees(&motd, &value(differing), &found), "{differing}");
    }
}

#[test]
fn a_digest_stands_for_its_content() {
    let image = key("files:/opt/image");
    let digest = blake3::hash(b"Welcome").to_string();
    assert!(agrees(&image, &value("Welcome"), &seen(&format!("@file mode=0644 blake3={digest}"))));
    assert!(agrees(&image, &value(&format!("@file blake3={digest}")), &seen("@file mode=0644 text=Welcome")));
    assert!(!agrees(&image, &value("welcome"), &seen(&format!("@file blake3={digest}"))));
}

#[test]
fn kernel_numbers_are_equal_however_they_are_written() {
    let parameter = key("kernel:kernel.shmmax");
    assert!(agrees(&parameter, &value("0x10"), &seen("16")));
    assert!(agrees(&parameter, &value("020"), &seen("16")));
    assert!(agrees(&parameter, &value("1\t 2"), &seen("1 2")));
    assert!(!agrees(&parameter, &value("1 2"), &seen("1 2 3")));
    assert!(!agrees(&parameter, &value("-1"), &seen("1")));
    assert!(agrees(&parameter, &value("18446744073709551615"), &seen("18446744073709551615")));
}

#[test]
fn mount_options_are_compared_as_far_as_the_kernel_shows_them() {
    let data = key("mounts:/data");
    let found = seen("/dev/sdb1 xfs attr2,logbsize=32k,noatime,nosuid,rw");
    for agreeing in [
        "/dev/sdb1 xfs",
        "/dev/sdb1 xfs defaults",
        "/dev/sdb1 xfs noatime,rw,exec",
        "/dev/sdb1 xfs nofail,_netdev,x-systemd.automount",
        "/dev/sdb1 xfs logbsize=32768",
        "/dev/sdb1 xfs wsync",
    ] {
        assert!(agrees(&data, &value(agreeing), &found), "{agreeing}");
    }
    for differing in [
        "/dev/sdb1 xfs ro",
        "/dev/sdb1 xfs nodev",
        "/dev/sdb1 xfs suid",
        "/dev/sdb1 xfs relatime",
        "/dev/sdb1 xfs noattr2",
        "/dev/sdb1 xfs logbsize=64k",
        "/dev/sdc1 xfs",
        "/dev/sdb1 ext4",
        "/srv none bind",
    ] {
        assert!(!agrees(&data, &value(differing), &found), "{differing}");
    }
}

#[test]
fn a_directory_seen_at_two_places_agrees_with_either_way_of_saying_so() {
    let www = key("mounts:/srv/www");
    let part = seen("/home/www none bind,rw,x-muster.also-at=/mnt/www");
    assert!(agrees(&www, &value("/home/www none bind"), &part));
    assert!(agrees(&www, &value("/mnt/www none bind"), &part));
    assert!(!agrees(&www, &value("/home/ftp none bind"), &part));
    assert!(!agrees(&www, &value("/dev/sdb1 ext4"), &part));
    let whole = seen("/dev/sdb1 ext4 rw,x-muster.also-at=/home");
    assert!(agrees(&www, &value("/dev/sdb1 ext4"), &whole));
    assert!(agrees(&www, &value("/home none bind"), &whole));
}

#[test]
fn an_absent_service_is_one_that_neither_runs_nor_will() {
    let cups = key("services:cups");
    assert!(agrees(&cups, &Setting::Absent, &Observed::Absent));
    assert!(agrees(&cups, &Setting::Absent, &seen("stopped disabled")));
    assert!(!agrees(&cups, &Setting::Absent, &seen("stopped enabled")));
    assert!(!agrees(&cups, &Setting::Absent, &seen("running")));
    assert!(!agrees(&key("files:/etc/motd"), &Setting::Absent, &seen("Welcome")));
}

#[test]
fn a_stopped_service_has_no_other_command() {
    let ticker = key("services:ticker");
    assert!(agrees(&ticker, &value("stopped command=/bin/a"), &seen("stopped enabled")));
    assert!(agrees(&ticker, &value("running"), &seen("running enabled command=/bin/a")));
    assert!(!agrees(&ticker, &value("running command=/bin/b"), &seen("running command=/bin/a")));
}

#[test]
fn a_version_may_leave_out_epoch_and_revision() {
    let nginx = key("packages:nginx");
    let found = seen("1:1.22.1-9+deb12u1");
    for agreeing in ["present", "1.22.1", "1:1.22.1", "1.22.1-9+deb12u1", "1:1.22.1-9+deb12u1"] {
        assert!(agrees(&nginx, &value(agreeing), &found), "{agreeing}");
    }
    for differing in ["1.22", "2:1.22.1", "1.22.1-9+deb12u2"] {
        assert!(!agrees(&nginx, &value(differing), &found), "{differing}");
    }
}

#[test]
fn only_what_can_go_away_can_be_absent() {
    for removable in ["files:/a", "mounts:/a", "services:a", "packages:a", "network:a.address"] {
        assert_eq!(check_setting(&key(removable), &Setting::Absent), Ok(Setting::Absent), "{removable}");
    }
    for lasting in ["kernel:a.b", "network:a.mtu", "gpu:0.ecc"] {
        assert!(check_setting(&key(lasting), &Setting::Absent).is_err(), "{lasting}");
    }
}

#[test]
fn a_path_becomes_a_key_and_comes_back() {
    for path_text in ["/etc/motd", "/a b/c=d", "/100%", "/with\nline", "/ä ö"] {
        let key = path_key(Dimension::Files, path_text).unwrap();
        assert_eq!(path(&key).unwrap(), path_text);
    }
}

#[test]
fn a_value_that_does_not_fit_agrees_only_with_itself() {
    let mtu = key("network:eth0.mtu");
    assert!(!agrees(&mtu, &value("large"), &seen("1500")));
    assert!(agrees(&mtu, &value("large"), &seen("large")));
}

#[test]
fn a_value_larger_than_values_may_be_is_refused() {
    let image = key("files:/opt/image");
    assert!(check(&image, &"x".repeat(VALUE_BYTES_MAX + 1)).unwrap_err().problem.contains("1048577"));
    assert!(check(&image, &"x".repeat(VALUE_BYTES_MAX)).is_ok());
}
