//! `muster`: the one binary. Reads the command line, runs one verb, ends with the mission's exit code.
//!
//! Servers run on all cores; verbs that only talk to one use a single thread.

mod agent;
mod args;
mod boot_view;
mod clock;
mod config;
mod context;
mod dev;
mod document;
mod examples;
mod exit;
mod fleet;
mod json;
mod lifecycle;
mod logging;
mod metrics;
mod policy_text;
mod ranges;
mod server;
mod text;
mod threads;
mod verbs;

use args::{Cli, ConfigArgs, ConfigVerb, JoinArgs, ReplaceArgs, Verb};
use clap::{CommandFactory, Parser};
use config::Config;
use exit::Failure;
use muster_core::storage::Identity;
use serde_json::json as object;
use std::fmt::Write as _;
use std::future::Future;
use std::path::Path;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.json;
    match run(cli.verb, json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.code == exit::DONE => ExitCode::SUCCESS,
        Err(failure) => {
            if failure.is_quiet() {
                return ExitCode::from(failure.code);
            }
            if json {
                // A reader that went away needs no answer.
                let _ = text::print(&format!("{}\n", failure.json()));
            }
            eprint!("{}", failure.last_words());
            ExitCode::from(failure.code)
        }
    }
}

fn run(verb: Verb, json: bool) -> Result<(), Failure> {
    match verb {
        Verb::Dev(args) => wait(dev::dev(args, json)),
        Verb::Agent(args) => run_agent(&args),
        Verb::Server(args) => server::run(&read(&args.config)?, args.until_stdin_closes),
        Verb::Init(args) => init(&args, json),
        Verb::Join(args) => wait(join(args, json)),
        Verb::Replace(args) => wait(replace(args, json)),
        Verb::Config(ConfigVerb::Example) => Ok(text::print(config::EXAMPLE)?),
        Verb::Config(ConfigVerb::Check { file, insecure }) => check_config(&file, insecure, json),
        Verb::Status(args) => wait(verbs::cluster::status(args, json)),
        Verb::Apply(args) => wait(verbs::apply::apply(args, json)),
        Verb::Commit(args) if args.scope.is_none() => wait(verbs::node::commit(args, json)),
        Verb::Commit(args) => wait(verbs::write::commit(args, json)),
        Verb::Rollback(args) => match args.node.clone() {
            Some(node) => wait(verbs::node::rollback(node, args, json)),
            None => wait(verbs::write::rollback(args, json)),
        },
        Verb::Set(args) => wait(verbs::node::set(args, json)),
        Verb::Drift(args) => wait(verbs::node::drift(args, json)),
        Verb::Window(args) => wait(verbs::node::window(args, json)),
        Verb::Extend(args) => wait(verbs::node::extend(args, json)),
        Verb::Exec(args) => wait(verbs::exec::exec(args, json)),
        Verb::Shell(args) => wait(verbs::exec::shell(args)),
        Verb::Rollout(args) => wait(verbs::rollout::rollout(args, json)),
        Verb::Watch(args) => wait(verbs::watch::watch(args, json)),
        Verb::Log(args) => wait(verbs::read::log(args, json)),
        Verb::Show(args) => wait(verbs::read::show_record(args, json)),
        Verb::State(args) => wait(verbs::read::state(args, json)),
        Verb::Diff(args) => wait(verbs::read::diff(args, json)),
        Verb::Policy(verb) => wait(verbs::write::policy(verb, json)),
        Verb::Emergency(verb) => wait(verbs::node::emergency(verb, json)),
        Verb::Op(verb) => wait(verbs::write::operation(verb, json)),
        Verb::Audit(args) => wait(verbs::read::audit(args, json)),
        Verb::Boot(args) => wait(verbs::read::boot(args, json)),
        Verb::Nodes(args) => wait(verbs::read::nodes(args, json)),
        Verb::Vclusters(args) => wait(verbs::read::vclusters(args, json)),
        Verb::Members(verb) => wait(verbs::cluster::members_verb(verb, json)),
        Verb::Snapshot(args) => wait(verbs::cluster::snapshot(args, json)),
        Verb::Verify(args) => wait(verbs::cluster::verify(args, json)),
        Verb::Certs(verb) => verbs::certs::certs(verb, json),
        Verb::Inspect(args) => verbs::disk::inspect(&args.dir, json),
        Verb::Repair(args) => verbs::disk::repair(&args.dir, json),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "muster", &mut script);
            Ok(text::print(&String::from_utf8_lossy(&script))?)
        }
    }
}

fn run_agent(args: &args::AgentRunArgs) -> Result<(), Failure> {
    if args.example_config {
        return Ok(text::print(agent::config::EXAMPLE)?);
    }
    let file = args.config.as_deref().ok_or_else(|| {
        Failure::usage("the agent's file is not named", "give --config FILE, or --example-config to see one")
    })?;
    let config = agent::config::AgentConfig::read(file, args.insecure)?;
    agent::run::run(&config, args.until_stdin_closes)
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
        let _ = writeln!(out, "  {key} = {value}");
    }
    verbs::show(json, &object!({ "outcome": "good", "config": value }), &out)
}

fn read(args: &ConfigArgs) -> Result<Config, Failure> {
    Ok(Config::read(&args.config, args.insecure)?)
}

fn member(identity: &Identity) -> serde_json::Value {
    object!({
        "outcome": "applied",
        "cluster": identity.cluster.to_string(),
        "replica": identity.replica.0,
        "name": identity.name.as_str(),
        "incarnation": identity.incarnation.to_string(),
    })
}

fn init(args: &ConfigArgs, json: bool) -> Result<(), Failure> {
    let config = read(args)?;
    let identity = lifecycle::init(&config)?;
    let out = format!(
        "cluster {} made, {} is replica {} of it; run it with\n  muster server --config {}\n",
        identity.cluster,
        identity.name,
        identity.replica,
        args.config.display()
    );
    verbs::show(json, &member(&identity), &out)
}

async fn join(args: JoinArgs, json: bool) -> Result<(), Failure> {
    let config = read(&args.config)?;
    let identity = lifecycle::join(&config, &args.author.author()?, args.promote).await?;
    let part = if args.promote { "voter" } else { "learner" };
    let out = format!(
        "{} is admitted as replica {} of cluster {} and becomes a {part} once it has caught up; run it with\n  \
         muster server --config {}\n",
        identity.name,
        identity.replica,
        identity.cluster,
        args.config.config.display()
    );
    verbs::show(json, &member(&identity), &out)
}

async fn replace(args: ReplaceArgs, json: bool) -> Result<(), Failure> {
    let config = read(&args.config)?;
    let replaced = lifecycle::replace(&config, context::keys(&args.keys)?, &args.author.author()?, &args.old).await?;
    let aside = replaced.aside.as_ref().map(|path| path.display().to_string());
    let mut value = member(&replaced.identity);
    value["replaces"] = replaced.old.0.into();
    value["moved_aside"] = aside.clone().into();
    let moved = aside.map_or_else(String::new, |path| format!("what was in its directory is in {path}\n"));
    let out = format!(
        "{moved}{} is admitted as replica {} and takes the place of {} once it has caught up; run it with\n  \
         muster server --config {}\n",
        replaced.identity.name,
        replaced.identity.replica,
        replaced.old,
        args.config.config.display()
    );
    verbs::show(json, &value, &out)
}
