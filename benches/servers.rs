//! Starts a durable Postgres and a real Kafka, and runs `outbox-relay bench` against them with the given arguments:
//! `cargo bench --bench servers -- drain --events 1000000`, or `just bench drain`. Both servers are removed afterwards.
//!
//! `--run PROGRAM ARGUMENTS` runs another program instead, with the servers in its environment; benches/compare uses it. The topic
//! `order-events` exists.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use lab::demo::{PostgresOptions, PrivatePostgres};

fn main() -> anyhow::Result<ExitCode> {
    // `cargo bench` adds the argument `--bench`.
    let arguments: Vec<OsString> = std::env::args_os().skip(1).filter(|argument| argument != "--bench").collect();
    eprintln!("starting Kafka and Postgres");
    let kafka = lab::kafka::RealKafka::start(&[])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(kafka.create_topic("order-events", 4, &[]))?;
    let postgres = runtime.block_on(PrivatePostgres::start(postgres_options()))?;
    let status = command(&arguments)
        .env("DATABASE_URL", postgres.url("postgres"))
        .env("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap())
        .status()?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// Returns the command of the bench, or the one after `--run`.
fn command(arguments: &[OsString]) -> Command {
    let (mut command, arguments) = match arguments {
        [run, program, arguments @ ..] if run == "--run" => (Command::new(program), arguments),
        arguments => {
            let mut bench = Command::new(env!("CARGO_BIN_EXE_outbox-relay"));
            bench.args(["bench", "--yes"]);
            (bench, arguments)
        }
    };
    command.args(arguments);
    command
}

/// Returns the options of a production server on a small machine: durable, with memory, and without a checkpoint every few
/// seconds of a drain.
fn postgres_options() -> PostgresOptions {
    let settings = [("shared_buffers", "1GB"), ("max_wal_size", "8GB")];
    PostgresOptions {
        durable: true,
        max_connections: 200,
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        ..PostgresOptions::default()
    }
}
