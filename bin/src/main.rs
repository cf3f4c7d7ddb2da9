//! `muster`: the one binary. Reads the command line, runs one verb, ends with the mission's exit code.
//!
//! Servers run on all cores; verbs that only talk to one use a single thread.

mod args;
mod boot_view;
mod config;
mod document;
mod examples;
mod exit;
mod fleet;
mod json;
mod logging;
mod metrics;
mod policy_text;
mod ranges;
mod text;
mod verbs;

use args::{Cli, ConfigVerb, Verb};
use clap::{CommandFactory, Parser};
use exit::Failure;
use serde_json::json as object;
use std::future::Future;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.json;
    match run(cli.verb, json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if json {
                // A reader that went away needs no answer.
                let _ = text::print(&format!("{}\n", failure.json()));
            }
            eprintln!("muster: {failure}");
            ExitCode::from(failure.code)
        }
    }
}

fn run(verb: Verb, json: bool) -> Result<(), Failure> {
    match verb {
        Verb::Dev(args) => todo!(),
        Verb::Server(args) => todo!(),
        Verb::Init(args) => todo!(),
        Verb::Join(args) => todo!(),
        Verb::Replace(args) => todo!(),
        Verb::Config(ConfigVerb::Check { file, insecure }) => check_config(&file, insecure, json),
        Verb::Status(args) => wait(verbs::cluster::status(args, json)),
        Verb::Apply(args) => wait(verbs::apply::apply(args, json)),
        Verb::Commit(args) => wait(verbs::write::commit(args, json)),
        Verb::Rollback(args) => wait(verbs::write::rollback(args, json)),
        Verb::Log(args) => wait(verbs::read::log(args, json)),
        Verb::Show(args) => wait(verbs::read::show_record(args, json)),
        Verb::State(args) => wait(verbs::read::state(args, json)),
        Verb::Diff(args) => wait(verbs::read::diff(args, json)),
        Verb::Policy(verb) => wait(verbs::write::policy(verb, json)),
        Verb::Emergency(verb) => wait(verbs::write::emergency(verb, json)),
        Verb::Op(verb) => wait(verbs::write::operation(verb, json)),
        Verb::Audit(args) => wait(verbs::read::audit(args, json)),
        Verb::Boot(args) => wait(verbs::read::boot(args, json)),
        Verb::Nodes(args) => wait(verbs::read::nodes(args, json)),
        Verb::Vclusters(args) => wait(verbs::read::vclusters(args, json)),
        Verb::Members(verb) => wait(verbs::cluster::members_verb(verb, json)),
        Verb::Snapshot(args) => wait(verbs::cluster::snapshot(args, json)),
        Verb::Verify(args) => wait(verbs::cluster::verify(args, json)),
        Verb::Inspect(args) => todo!(),
        Verb::Repair(args) => todo!(),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "muster", &mut script);
            Ok(text::print(&String::from_utf8_lossy(&script))?)
        }
    }
}

/// Runs a verb that talks to servers.
fn wait(verb: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(verb)
}

fn check_config(file: &Path, insecure: bool, json: bool) -> Result<(), Failure> {
    let config = config::Config::read(file, insecure)?;
    let rows = config.rows();
    let value: serde_json::Map<_, _> = rows.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    let mut out = format!("{} is good. It comes to:\n", file.display());
    for (key, value) in rows {
        out.push_str(&format!("  {key} = {value}\n"));
    }
    verbs::show(json, &object!({ "outcome": "good", "config": value }), &out)
}
