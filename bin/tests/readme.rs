//! The README's commands, run as they stand there: those for a running cluster against the one that `muster dev` brings up, the
//! others as far as their command line can be judged; and the recipe for a cluster of one's own, with certificates.

mod common;

use common::{MUSTER, Running, eventually};
use std::io::BufRead as _;
use std::path::Path;
use std::process::{Command, Stdio};

fn readme() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap()
}

/// The `muster` commands of all console blocks of a text, in order, without what is said of them.
fn commands(text: &str) -> Vec<String> {
    let mut inside = false;
    let mut commands = Vec::new();
    for line in text.lines() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if let Some(command) = line.strip_prefix("$ ").filter(|line| inside && line.starts_with("muster ")) {
            commands.push(command.split("  #").next().unwrap().trim_end().to_owned());
        }
    }
    commands
}

/// A shell that finds `muster`.
fn shell(line: &str) -> Command {
    let place = Path::new(MUSTER).parent().unwrap().display().to_string();
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).env("PATH", format!("{place}:{}", std::env::var("PATH").unwrap()));
    shell.env("USER", "tester").stdin(Stdio::null());
    shell
}

/// The TOML block that begins with these words.
fn block(text: &str, begins: &str) -> String {
    let blocks = text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.into_iter().find(|block| block.starts_with(begins)).unwrap().to_owned()
}

/// Three machines of the README's second recipe are three addresses of this one; nothing else of it is changed but directories.
#[test]
fn a_cluster_of_your_own_comes_up_as_the_readme_says() {
    let dir = tempfile::TempDir::new().unwrap();
    let readme = readme();
    let (_, recipe) = readme.split_once("## A cluster of your own").unwrap();
    let recipe = recipe.split("\n## ").next().unwrap();
    let at = dir.path().display().to_string();
    let here = |text: &str, machine: u32| {
        text.replace("/etc/muster/journal.toml", &format!("{at}/journal-{machine}.toml"))
            .replace("/etc/muster", &at)
            .replace("/var/lib/muster", &format!("{at}/var-{machine}"))
            .replace("10.0.0.", "127.77.0.")
    };
    for machine in 1..=3 {
        let lines = block(recipe, "# /etc/muster/journal.toml").lines().fold(String::new(), |lines, line| {
            let own = line.replace("journal-1", &format!("journal-{machine}"));
            let asks = line.starts_with("nodes");
            lines + &(if asks { own } else { own.replace("10.0.0.11", &format!("10.0.0.1{machine}")) }) + "\n"
        });
        std::fs::write(dir.path().join(format!("journal-{machine}.toml")), here(&lines, machine)).unwrap();
    }
    std::fs::write(dir.path().join("alice.toml"), here(&block(recipe, "# /etc/muster/alice.toml"), 0)).unwrap();
    let mut servers = Vec::new();
    let mut run = |command: &str, machine: u32| {
        let line = here(command, machine);
        if command.starts_with("muster server") {
            let mut server = shell(&format!("exec {line}"));
            servers.push(Running(server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()));
            return;
        }
        // What asks others waits for them to come up, as a reader would.
        eventually(&line, || {
            let ended = shell(&line).output().unwrap();
            let said = String::from_utf8_lossy(&ended.stderr).into_owned();
            assert!(
                ended.status.success() || ended.status.code() == Some(1) || ended.status.code() == Some(5),
                "{line}: {said}"
            );
            ended.status.success().then_some(())
        });
    };
    let (on_each, rest): (Vec<_>, Vec<_>) =
        commands(recipe).into_iter().partition(|command| command.contains("/etc/muster/journal.toml"));
    let (first, asked): (Vec<_>, Vec<_>) = rest.into_iter().partition(|command| command.starts_with("muster certs"));
    for command in first {
        run(&command, 0);
    }
    for machine in 1..=3 {
        for verb in ["config", if machine == 1 { "init" } else { "join" }, "server"] {
            let command = on_each.iter().find(|command| command.starts_with(&format!("muster {verb}"))).unwrap();
            run(command, machine);
        }
    }
    assert_eq!((on_each.len(), asked.len()), (4, 3));
    for command in asked {
        run(&command, 0);
    }
    eventually("three voters follow one leader", || {
        let status = shell(&format!("muster status --json --context {at}/alice.toml")).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).ok()?;
        let roles =
            status["replicas"].as_array()?.iter().map(|replica| replica["raft"]["role"].as_str().unwrap_or_default());
        let (leaders, followers) =
            (roles.clone().filter(|role| *role == "leader").count(), roles.filter(|role| *role == "follower").count());
        ((leaders, followers) == (1, 2)).then_some(())
    });
}

#[test]
fn the_commands_of_the_readme_do_what_they_say() {
    let dev =
        Command::new(MUSTER).args(["dev", "--json"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut dev = Running(dev);
    let mut ready = String::new();
    // Held until the end: `dev` stops when nobody reads what it prints.
    let mut output = std::io::BufReader::new(dev.0.stdout.take().unwrap());
    output.read_line(&mut ready).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
    let context = ready["context"].as_str().unwrap();
    let mut broken = Vec::new();
    let commands = commands(&readme());
    assert!(commands.len() >= 8, "{commands:?}");
    for command in &commands {
        // What needs the reader's own machine is judged by its command line alone.
        let line = if command.contains("/etc/") { format!("{command} --help") } else { command.clone() };
        let output = shell(&line).env("MUSTER_CONTEXT", context).output().unwrap();
        if !output.status.success() {
            broken.push(format!("{line}: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    dev.interrupt();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
