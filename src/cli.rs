//! Parses the command line and runs a command. Each command has a file; `exit` picks the exit code.

mod adopt;
mod app_table;
#[cfg(feature = "bench")]
mod bench;
mod capture;
mod check;
mod compare;
mod completions;
mod config;
mod confirm;
mod dead;
#[cfg(feature = "demo")]
mod demo;
mod dlq;
mod examples;
mod exit;
mod explain;
mod explain_route;
mod health;
mod import;
mod interrupt;
mod migrate;
mod no_topic;
mod output;
mod pause;
mod prune;
mod reference;
mod reload;
mod replay;
mod run;
mod service;
mod status;
mod tail;
mod target;
mod time_arg;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use nix::sys::resource::{Resource, setrlimit};

use crate::config::{Needs, Settings, Sources};
use crate::observe::print::errln;
use crate::observe::progress;
use exit::Failure;

/// The version, with what is missing from a build by `cargo demo`.
const VERSION: &str = match cfg!(feature = "tls") {
    true => env!("CARGO_PKG_VERSION"),
    false => concat!(env!("CARGO_PKG_VERSION"), " without TLS"),
};

/// Brings the rows of a Postgres outbox to Kafka, in order per entity.
///
/// Settings come from --config, the environment (DATABASE_URL, KAFKA_BOOTSTRAP_SERVERS, RELAY_*, KAFKA_*) and --set. A later source
/// overrides an earlier one. .env.example lists all settings. Logs go to stderr.
#[derive(Debug, Parser)]
#[command(name = "outbox-relay", version = VERSION)]
struct Cli {
    /// A TOML file with settings
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting, for example --set batch_size=500; may be repeated
    #[arg(long = "set", global = true, value_name = "NAME=VALUE")]
    set: Vec<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Publish events until SIGTERM
    Run(run::Run),
    /// Check schema, rights, query plans, brokers and topics for problems; exit 1 if something must be fixed
    Check(check::Check),
    /// Show pending events, what blocks them, which relays are alive, and what to do next
    Status(status::Status),
    /// Ask the relay of this host whether it is ready, or alive; exit 1 if not. Meant for health checks of containers
    Health(health::Health),
    /// Explain what happened to an event or to an entity's events, and why they still wait
    Explain(explain::Explain),
    /// Show topic, key, partition and headers of an event's record, and why; also of an event that is only thought of
    ExplainRoute(explain_route::ExplainRoute),
    /// Follow events as they are written, published and seen on the topic
    Tail(tail::Tail),
    /// Create or update the outbox's tables and functions
    Migrate(migrate::Migrate),
    /// Compare the table with the topics; exit 1 if an event is lost, unknown to the table, changed or out of order
    ///
    /// Only reads, in short transactions; --rate limits the speed. It may run beside relays at any time: pending rows and events
    /// that arrive during the run are left out.
    Verify(verify::Verify),
    /// Compare two topics, whoever wrote them, event by event; exit 1 if they differ
    ///
    /// Only reads. It compares which events there are, their order per key, key, partition, headers, value and, if asked, timestamp. It
    /// needs the brokers and no database.
    Compare(compare::Compare),
    /// Hold back all events, those of a topic or those of an entity; they wait in order and none is lost
    Pause(pause::Pause),
    /// End a pause
    Resume(pause::Resume),
    /// List, show, retry or discard events that could not be sent
    #[command(subcommand)]
    Dead(dead::Dead),
    /// List, show or redrive the dead letters of consumers, on any topic; each key keeps its order
    #[command(subcommand)]
    Dlq(dlq::Dlq),
    /// Publish retained events again, in order, with their event ids, so that a consumer group can rebuild its state
    ///
    /// The table's rows do not change. A consumer with an inbox skips an event that it has applied; one without applies it twice.
    Replay(replay::Replay),
    /// Remove old published events and old rows of the inbox now; relays do this by themselves if RELAY_RETENTION is set
    Prune(prune::Prune),
    /// Take over from another program: read its configuration, and write a trigger and settings
    #[command(subcommand)]
    Import(import::Import),
    /// Turn the changes of a table of the application into events, by triggers; --backfill makes events of the rows that it has
    Capture(capture::Capture),
    /// Hand the table of a home-made polling loop over to the outbox, and back: guess its columns, move the pending rows, set a trigger
    Adopt(adopt::Adopt),
    /// Show the settings in force
    #[command(subcommand)]
    Config(config::Config),
    /// Print the script that completes commands and flags in a shell
    Completions(completions::Completions),
    /// Print a manual page
    Man(completions::Man),
    /// Print a page of docs/reference that is generated from the binary
    #[command(hide = true)]
    Reference(reference::Reference),
    #[cfg(feature = "bench")]
    /// Measure the relay against the configured servers, in a schema and topics of its own; asks first, --yes answers
    Bench(bench::Bench),
    /// Show the relay at work: Postgres, a mock Kafka, a shop that writes orders, a relay that is killed, and a reconciliation at the end
    ///
    /// Nothing has to be installed. With DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS set, the demo asks whether to use those servers instead;
    /// --yes answers. It works in a schema and a topic of its own, and removes them at the end. On a terminal it draws a picture with
    /// counters, and the log goes to a file; elsewhere it prints lines.
    #[cfg(feature = "demo")]
    Demo(demo::Demo),
    #[cfg(feature = "demo")]
    #[command(name = lab::demo::MOCK_BROKER, hide = true)]
    DemoBroker(demo::DemoBroker),
    #[cfg(feature = "demo")]
    #[command(name = lab::demo::SERVICE, hide = true)]
    DemoService(demo::DemoService),
}

/// Splits each NAME=VALUE argument. clap must not parse them: its error would repeat the argument, which may be a URL with a password.
fn names_and_values(flag: &str, overrides: Vec<String>) -> Result<Vec<(String, String)>, Failure> {
    let pair = |text: String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    let pairs: Option<Vec<_>> = overrides.into_iter().map(pair).collect();
    pairs.ok_or_else(|| {
        Failure::usage(format!("{flag} wants NAME=VALUE")).hint(format!("for example {flag} batch_size=500"))
    })
}

/// Returns the whole command line, with the examples of each command.
fn command() -> clap::Command {
    examples::add_to(Cli::command())
}

/// Parses the command line, runs the command and returns its exit code.
pub fn main() -> ExitCode {
    forbid_core_dumps();
    let parsed = command().try_get_matches().and_then(|matches| {
        let name = matches.subcommand_name().unwrap_or_default().to_owned();
        Ok((name, Cli::from_arg_matches(&matches)?))
    });
    let (name, cli) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return exit::usage(error),
    };
    if !cli.command.handles_signals() {
        interrupt::watch_over(name);
    }
    let ended = execute(cli);
    progress::end();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Forbids core dumps of this process, because its memory holds passwords and payloads.
fn forbid_core_dumps() {
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        errln!("warning: core dumps stay possible, and would show passwords: {error}");
    }
}

impl Command {
    /// Returns true for a command that stops by itself after a signal, and shows by itself that it works.
    fn handles_signals(&self) -> bool {
        match self {
            Command::Run(_) => true,
            #[cfg(feature = "bench")]
            Command::Bench(_) => true,
            #[cfg(feature = "demo")]
            Command::Demo(_) | Command::DemoBroker(_) | Command::DemoService(_) => true,
            _ => false,
        }
    }
}

fn execute(cli: Cli) -> Result<(), Failure> {
    let (file, overrides) = (cli.config, names_and_values("--set", cli.set)?);
    match cli.command {
        Command::Run(run) => {
            let sources = Sources::from_process(file.clone(), overrides.clone());
            run.run(settings(file, overrides, Needs::DatabaseAndKafka)?, sources)
        }
        Command::Check(check) => check.run(&settings(file, overrides, Needs::DatabaseAndKafka)?),
        Command::Status(status) => {
            let sources = Sources::from_process(file.clone(), overrides.clone());
            let mut settings = settings(file, overrides, Needs::DatabaseOnly)?;
            // Brokers are no condition: the screen says if they are not configured.
            settings.kafka = Settings::load_kafka(&sources).ok().map(|(kafka, _)| kafka);
            status.run(&settings)
        }
        Command::Health(health) => health.run(&settings(file, overrides, Needs::DatabaseOnly)?),
        Command::Explain(explain) => explain.run(&settings(file, overrides, Needs::DatabaseAndKafka)?),
        Command::ExplainRoute(route) => {
            let sources = Sources::from_process(file.clone(), overrides.clone());
            let mut settings = settings(file, overrides, Needs::DatabaseOnly)?;
            // Without brokers, only the partition stays unknown.
            settings.kafka = Settings::load_kafka(&sources).ok().map(|(kafka, _)| kafka);
            route.run(&settings)
        }
        Command::Tail(tail) => tail.run(&settings(file, overrides, Needs::DatabaseAndKafka)?),
        Command::Migrate(migrate) if migrate.print => {
            migrate.print(&Settings::load_names(&Sources::from_process(file, overrides))?);
            Ok(())
        }
        Command::Migrate(migrate) => migrate.run(&settings(file, overrides, Needs::DatabaseOnly)?),
        Command::Verify(verify) => verify.run(&settings(file, overrides, Needs::DatabaseAndKafka)?),
        Command::Compare(compare) => {
            let (kafka, log) = Settings::load_kafka(&Sources::from_process(file, overrides))?;
            crate::observe::log::start(&log);
            compare.run(&kafka)
        }
        Command::Pause(pause) => pause.run(&settings(file, overrides, Needs::DatabaseOnly)?),
        Command::Resume(resume) => resume.run(&settings(file, overrides, Needs::DatabaseOnly)?),
        Command::Dead(dead) => dead.run(&settings(file, overrides, Needs::DatabaseOnly)?),
        Command::Dlq(dlq) => {
            let sources = || Sources::from_process(file.clone(), overrides.clone());
            let (kafka, log) = Settings::load_kafka(&sources())?;
            crate::observe::log::start(&log);
            dlq.run(&kafka, &|| Settings::load(sources(), Needs::DatabaseAndKafka))
        }
        Command::Replay(replay) => replay.run(&settings(file, overrides, Needs::DatabaseAndKafka)?),
        Command::Prune(prune) => {
            let sources = Sources::from_process(file.clone(), overrides.clone());
            prune.run(&settings(file, overrides, Needs::DatabaseOnly)?, sources)
        }
        Command::Import(import) => import.run(&Sources::from_process(file, overrides)),
        Command::Capture(capture) => capture.run(&settings(file, overrides, Needs::DatabaseOnly)?),
        Command::Adopt(adopt) => adopt.run(&settings(file, overrides, Needs::DatabaseOnly)?),
        Command::Config(config::Config::Show(show)) => show.run(&Sources::from_process(file, overrides)),
        Command::Completions(completions) => {
            completions.run();
            Ok(())
        }
        Command::Man(man) => man.run(),
        Command::Reference(reference) => {
            reference.run();
            Ok(())
        }
        #[cfg(feature = "bench")]
        Command::Bench(bench) => bench.run(Sources::from_process(file, overrides)),
        #[cfg(feature = "demo")]
        Command::Demo(_) if file.is_some() || !overrides.is_empty() => {
            Err(Failure::usage("the demo takes no --config and no --set")
                .hint("set DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS in the environment to use servers of yours"))
        }
        #[cfg(feature = "demo")]
        Command::Demo(demo) => demo.run(Sources::from_process(None, Vec::new()).env),
        #[cfg(feature = "demo")]
        Command::DemoBroker(broker) => broker.run(),
        #[cfg(feature = "demo")]
        Command::DemoService(service) => service.run(&settings(file, overrides, Needs::DatabaseAndKafka)?),
    }
}

fn settings(file: Option<PathBuf>, overrides: Vec<(String, String)>, needs: Needs) -> Result<Settings, Failure> {
    let settings = Settings::load(Sources::from_process(file, overrides), needs)?;
    crate::observe::log::start(&settings.log);
    Ok(settings)
}

/// Builds the async runtime that every command uses.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::unexpected("the async runtime cannot be started", error))
}
