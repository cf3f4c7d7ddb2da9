//! Bad stories are refused before anything runs, with line, key and what would be accepted.

use muster_sim::scenario::Scenario;

fn problems(text: &str) -> Vec<String> {
    match Scenario::parse("story.toml", "story", text) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

fn refuses(text: &str, line: usize, words: &str) {
    let all = problems(text);
    let place = format!("story.toml:{line}: ");
    assert!(
        all.iter().any(|problem| problem.starts_with(&place) && problem.contains(words)),
        "expected {words:?} at line {line}, got {all:#?}"
    );
}

#[test]
fn a_good_story_is_taken() {
    assert_eq!(problems("about = \"x\"\n"), Vec::<String>::new());
}

#[test]
fn an_unknown_key_is_refused_with_the_known_ones() {
    refuses("about = \"x\"\n[cluster]\nvoter = 3\n", 3, "unknown key voter: expected one of voters, learners");
    refuses("about = \"x\"\ncolour = 1\n", 2, "unknown key colour");
}

#[test]
fn an_impossible_value_is_refused_with_what_is_possible() {
    refuses("about = \"x\"\n[cluster]\nvoters = 12\n", 3, "voters is 12: expected a whole number from 1 to 9");
    refuses("about = \"x\"\n[time]\nrun = \"5 minutes\"\n", 3, "expected a time like \"5s\"");
    refuses("about = \"x\"\n[load]\nmix = { commit = 0 }\n", 3, "mix asks for nothing");
    let text = "about = \"x\"\n[[fault]]\nid = \"a\"\nat = \"1s\"\ncrash = { who = \"boss\" }\n";
    refuses(text, 5, "who is \"boss\": expected a replica's number or one of leader, follower, all");
    refuses("about = \"x\"\n[[fault]]\nid = \"a\"\nat = \"1s\"\nlink = { loss = 101 }\n", 5, "expected percent");
}

#[test]
fn a_crash_of_replica_nine_of_five_is_refused() {
    let text = "about = \"x\"\n[cluster]\nvoters = 5\n[[fault]]\nid = \"a\"\nat = \"1s\"\ncrash = { who = 9 }\ndown = \"1s\"\n";
    refuses(text, 4, "replica 9 of 5: expected 1 to 5");
}

#[test]
fn overlapping_contradictory_faults_are_refused() {
    let one = |id: &str, at: &str, what: &str| format!("[[fault]]\nid = \"{id}\"\nat = \"{at}\"\n{what}\n");
    let text = format!(
        "about = \"x\"\n{}{}",
        one("a", "1s", "crash = { who = 2 }\ndown = \"5s\""),
        one("b", "3s", "pause = { who = 2 }\nfor = \"1s\"")
    );
    refuses(&text, 7, "b and a (line 2) both decide of replica 2 whether it runs, at the same time");
    let both = |a: &str, b: &str, words: &str| {
        let text = format!("about = \"x\"\n{}{}", one("a", "1s", a), one("b", "2s", b));
        refuses(&text, 7, words);
    };
    let (all, two) = ("crash = { who = \"all\" }\ndown = \"5s\"", "crash_loop = { who = 2 }\nfor = \"1s\"");
    both(all, two, "both decide of replica 2 whether it runs");
    let slow = |times: u32| format!("disk = {{ who = 2, slow = {times} }}\nfor = \"5s\"");
    both(&slow(3), &slow(9), "both decide of replica 2 how slow its disk is");
    both("link = { loss = 3 }\nfor = \"5s\"", "link = { late = 3 }\nfor = \"5s\"", "both decide how links are");
}

#[test]
fn more_than_the_budget_allows_is_refused() {
    let fault = "[[fault]]\nid = \"a\"\nat = \"1s\"\nwipe = { who = 1, back = \"amnesiac\" }\ndown = \"1s\"\n";
    refuses(&format!("about = \"x\"\n{fault}"), 2, "a makes a voter forget what it promised");
    refuses(&format!("about = \"x\"\n{fault}[nemesis]\nbudget = \"outage\"\n"), 2, "a makes a voter forget");
    assert_eq!(problems(&format!("about = \"x\"\n{fault}[nemesis]\nbudget = \"beyond\"\n")), Vec::<String>::new());
    let one = |id: &str, what: &str| format!("[[fault]]\nid = \"{id}\"\nat = \"1s\"\n{what}\nfor = \"1s\"\n");
    let two = one("a", "pause = { who = 1 }") + &one("b", "cut = { from = 2, to = \"others\" }");
    let words = "at 1s a and b can leave no voter that reaches more than 1 of 3: the standard budget allows at most 1";
    refuses(&format!("about = \"x\"\n{two}"), 7, words);
    assert_eq!(problems(&format!("about = \"x\"\n[cluster]\nvoters = 5\n{two}")), Vec::<String>::new());
    assert_eq!(problems(&format!("about = \"x\"\n{two}[nemesis]\nbudget = \"outage\"\n")), Vec::<String>::new());
    let wiped =
        |who: u64| format!("[[fault]]\nid = \"w{who}\"\nat = \"{who}s\"\nwipe = {{ who = {who} }}\ndown = \"1s\"\n");
    let (both, outage) = (wiped(1) + &wiped(2), "[nemesis]\nbudget = \"outage\"\n");
    refuses(&format!("about = \"x\"\n{both}{outage}"), 7, "damages one more disk of a voter than the budget allows");
}

#[test]
fn a_second_group_on_hosts_that_are_not_there_is_refused() {
    refuses("about = \"x\"\n[neighbour]\nvoters = 5\n", 2, "5 voters on 3 hosts: expected at most 3");
}

#[test]
fn what_no_rule_can_refuse_is_not_expected_to_be() {
    let text = "about = \"x\"\n[[operation]]\nid = \"a\"\nat = \"1s\"\ntransfer = 2\nrefused = true\n";
    refuses(text, 2, "refused is for join, promote, demote, remove and raise");
}

#[test]
fn an_operation_on_nobody_or_of_no_known_kind_is_refused() {
    let operation = |what: &str| format!("about = \"x\"\n[[operation]]\nid = \"a\"\nat = \"1s\"\n{what}\n");
    refuses(&operation("restore = 9"), 2, "a is about replica 9 of 3: expected 1 to 3");
    refuses(&operation("restore = \"nobody\""), 5, "expected a replica's number or one of leader, follower, all");
    refuses(&operation("rebuild = 1"), 5, "unknown key rebuild");
    refuses(&operation("restore = 1\nsnapshot = 2"), 2, "an operation does 2 things");
    refuses(&operation("restore = 1\nrefused = true"), 2, "the rules refuse nothing else");
    assert_eq!(problems(&operation("restore = \"leader\"")), Vec::<String>::new());
}

#[test]
fn a_cut_either_holds_what_is_sent_or_loses_it() {
    let cut = |what: &str| {
        format!(
            "about = \"x\"\n[[fault]]\nid = \"a\"\nat = \"1s\"\ncut = {{ from = 1, to = 2, {what} }}\nfor = \"1s\"\n"
        )
    };
    refuses(&cut("holds = \"1s\""), 5, "holds is \"1s\": expected true or false");
    assert_eq!(problems(&cut("holds = true")), Vec::<String>::new());
}

#[test]
fn what_is_about_a_point_needs_one() {
    let text = "about = \"x\"\n[[fault]]\nid = \"a\"\nat = \"1s\"\ncrash = { who = 1, nth = 3 }\ndown = \"1s\"\n";
    refuses(text, 5, "nth and may_miss are about a point");
}

#[test]
fn an_item_without_a_name_or_time_or_with_two_kinds_is_refused() {
    refuses("about = \"x\"\n[[fault]]\nat = \"1s\"\nring = {}\n", 2, "id is missing");
    refuses("about = \"x\"\n[[fault]]\nid = \"a\"\nring = {}\n", 2, "at is missing");
    refuses("about = \"x\"\n[[fault]]\nid = \"a\"\nat = \"1s\"\nring = {}\npause = { who = 1 }\n", 2, "has 2 kinds");
    let twice = "about = \"x\"\n[[fault]]\nid = \"a\"\nat = \"1s\"\nring = {}\n[[operation]]\nid = \"a\"\nat = \"1s\"\ntransfer = 0\n";
    refuses(twice, 6, "the id a is taken by line 2");
}

#[test]
fn a_fault_after_the_end_is_refused() {
    refuses(
        "about = \"x\"\n[time]\nrun = \"5s\"\n[[fault]]\nid = \"a\"\nat = \"9s\"\nring = {}\n",
        4,
        "after the run's end",
    );
}

#[test]
fn what_is_not_toml_is_refused_with_its_line() {
    refuses("about = \"x\"\n[cluster\n", 2, "");
}

#[test]
fn an_agent_that_is_not_there_is_refused() {
    let item = |what: &str| format!("[[fault]]\nid = \"a\"\nat = \"1s\"\n{what}\ndown = \"1s\"\n");
    let agents = "about = \"x\"\n[agents]\ncount = 5\n";
    refuses(&format!("{agents}{}", item("agent_crash = { who = 9 }")), 4, "agent 9 of 5: expected 1 to 5");
    let without = format!("about = \"x\"\n{}", item("agent_crash = { who = \"all\" }"));
    refuses(&without, 2, "agent 1 of 0: expected an [agents] table");
    let act = |what: &str| format!("{agents}[[act]]\nid = \"a\"\nat = \"1s\"\n{what}\n");
    refuses(&act("agent = 7\ncommit = \"own\""), 4, "agent 7 of 5: expected 1 to 5");
    let rollout = "rollout = { set = { \"files:/etc/motd\" = \"x\" }, first = 6 }";
    refuses(&act(rollout), 4, "begins with 6 of 5 nodes: expected 1 to 5");
    refuses("about = \"x\"\n[[act]]\nid = \"a\"\nat = \"1s\"\ncommit = \"own\"\n", 2, "expected an [agents] table");
}

#[test]
fn an_act_that_cannot_be_is_refused() {
    let act = |what: &str| format!("about = \"x\"\n[agents]\ncount = 2\n[[act]]\nid = \"a\"\nat = \"1s\"\n{what}\n");
    refuses(&act("set = { \"kernel:../x\" = \"1\" }"), 7, "kernel:../x");
    refuses(&act("set = { \"files:/x\" = 5 }"), 7, "expected text, or false");
    refuses(&act("commit = \"everything\""), 7, "expected one of own, all");
    refuses(&act("commit = \"own\"\nextend = 3"), 4, "an act does 2 things");
    refuses(&act("behind = { \"files:/x\" = \"y\" }\noutcome = \"done\""), 4, "not for behind, declare and rollout");
    let (crash, reboot) =
        ("agent_crash = { who = 2 }\ndown = \"5s\"", "agent_reboot = { who = \"all\" }\ndown = \"1s\"");
    let one = |id: &str, at: &str, what: &str| format!("[[fault]]\nid = \"{id}\"\nat = \"{at}\"\n{what}\n");
    let both = one("a", "1s", crash) + &one("b", "2s", reboot);
    let text = format!("about = \"x\"\n[agents]\ncount = 2\n{both}");
    refuses(&text, 9, "b and a (line 4) both decide of agent 2 whether it runs, at the same time");
}
