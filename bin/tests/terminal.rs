//! What a person at a terminal sees: a shell on a node, and the fleet's windows counting down.

mod common;

use common::agent::Agent;
use common::terminal::Terminal;
use common::{Cluster, eventually};
use serde_json::Value;

fn journal(policy: &[&str]) -> Cluster {
    let cluster = Cluster::start(1, 0);
    cluster.muster(&[&["policy", "set", "v"], policy].concat()).expect(0);
    cluster
}

/// The node's audit records, oldest first.
fn audit(cluster: &Cluster) -> Vec<Value> {
    let records = cluster.muster(&["log", "--scope", "node:n1", "--json", "--after", "0"]).expect(0).json_lines();
    records.into_iter().filter(|record| record["record"] == "operation").collect()
}

#[test]
fn a_shell_is_recorded_before_it_begins_and_leaves_the_terminal_as_it_was() {
    let cluster = journal(&["exec_allow=shell"]);
    let agent = Agent::start(&cluster, "n1", "v");
    let servers = cluster.servers();
    let mut terminal = Terminal::run(&["shell", "n1", "--server", &servers]);
    terminal.wait_for("recorded as sequence ");
    // Nothing was typed yet.
    let start = audit(&cluster).pop().expect("the record of its beginning");
    assert_eq!((&start["kind"], &start["detail"]), (&"shell-start".into(), &"shell".into()), "{start}");
    assert_eq!(start["author"]["principal"], "claimed:tester", "{start}");
    let shown = terminal.shown();
    let told = shown.split("recorded as sequence ").nth(1).unwrap();
    let told: u64 = told.split(';').next().unwrap().parse().unwrap();
    // An operation takes two sequences: its audit record, then its entry.
    assert_eq!(start["sequence"].as_u64().unwrap() + 1, told, "{shown}");

    terminal.keys("echo it is $((6 * 7)) in $PWD\r");
    terminal.wait_for(&format!("it is 42 in {}", agent.root.display()));
    terminal.resize(33, 99);
    eventually("the shell's terminal has the new size", || {
        terminal.keys("stty size\r");
        terminal.shown().contains("33 99").then_some(())
    });
    assert!(!terminal.is_as_before(), "keys go to the shell one by one");
    terminal.keys("exit 3\r");
    assert_eq!(terminal.ended(), Some(3), "{}", terminal.shown());
    assert!(terminal.is_as_before());
    eventually("its end is recorded", || {
        let end = audit(&cluster).pop()?;
        (end["kind"] == "shell-end" && end["exit_status"] == 3).then_some(())
    });
}

#[test]
fn a_shell_is_refused_to_viewers_and_where_the_policy_does_not_list_it() {
    let cluster = journal(&["exec_allow=shell"]);
    let agent = Agent::start(&cluster, "n1", "v");
    let refused = cluster.muster(&["shell", "n1", "--role", "viewer:v"]).expect(3);
    assert!(refused.stderr.contains("viewer of v may not open a shell on a node"), "{}", refused.stderr);
    cluster.muster(&["shell", "n1", "--role", "operator:w"]).expect(3);
    cluster.muster(&["policy", "set", "v", "exec_allow=echo"]).expect(0);
    eventually("the policy is known on the node", || (cluster.muster(&["shell", "n1"]).code == 3).then_some(()));
    let refused = cluster.muster(&["shell", "n1"]).expect(3);
    assert!(refused.stderr.contains("does not allow \"shell\", only what begins with: echo"), "{}", refused.stderr);
    assert!(
        audit(&cluster).iter().all(|record| record["kind"] != "shell-start" || record["author"]["role"] == "admin")
    );
    drop(agent);
}

#[test]
fn whoever_hangs_up_takes_the_shell_with_them_and_its_end_is_recorded() {
    let cluster = journal(&["exec_allow=shell"]);
    let agent = Agent::start(&cluster, "n1", "v");
    let servers = cluster.servers();
    let terminal = Terminal::run(&["shell", "n1", "--server", &servers]);
    terminal.wait_for("recorded as sequence ");
    terminal.keys("echo $$ > pid; echo writ''ten\r");
    terminal.wait_for("written");
    let pid = agent.read("/pid").unwrap();
    drop(terminal);
    let place = std::path::PathBuf::from(format!("/proc/{}", pid.trim()));
    eventually("the shell is gone", || (!place.exists()).then_some(()));
    eventually("its end is recorded", || (audit(&cluster).pop()?["kind"] == "shell-end").then_some(()));
}

/// The seconds that `watch` shows as left, in the order of its pages.
fn countdown(shown: &str) -> Vec<u64> {
    let pages = shown.split("\x1b[H").filter(|page| page.contains("n1"));
    let left = pages.filter_map(|page| {
        let line = page.lines().find(|line| line.contains("n1") && line.contains("drifted"))?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "min")?;
        let (minutes, seconds): (u64, u64) = (words[at - 1].parse().ok()?, words[at + 1].parse().ok()?);
        Some(minutes * 60 + seconds)
    });
    left.collect()
}

#[test]
fn watch_counts_the_windows_down_and_leaves_the_terminal_clean() {
    let cluster = journal(&[]);
    let agent = Agent::start(&cluster, "n1", "v");
    cluster.muster(&["set", "files:/motd=hello", "--node", "n1"]).expect(0);
    let servers = cluster.servers();
    for (key, code) in [("\x03", 0), ("q", 0)] {
        let mut terminal = Terminal::run(&["watch", "--server", &servers]);
        terminal.wait_for("muster watch: 1 nodes, 1 drifted");
        let seen = eventually("the window counts down", || {
            let seen = countdown(&terminal.shown());
            (seen.iter().collect::<std::collections::BTreeSet<_>>().len() >= 3).then_some(seen)
        });
        assert!(seen.is_sorted_by(|before, after| before >= after), "{seen:?}");
        assert!(seen.iter().all(|left| (240..=300).contains(left)), "{seen:?}");
        terminal.keys(key);
        assert_eq!(terminal.ended(), Some(code), "{}", terminal.shown());
        eventually("its page is gone and the cursor is back", || {
            terminal.shown().ends_with("\x1b[?25h\x1b[?1049l").then_some(())
        });
        assert!(terminal.is_as_before());
    }
    drop(agent);
}
