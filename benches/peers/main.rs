//! Compares the relay with other systems, on the same rows, Postgres and Kafka, one after the other: `just peers`.
//!
//! - `debezium`: Debezium's Postgres connector with the outbox event router, on Kafka Connect standalone, tuned; `jars` fetches it.
//! - `naive`: the polling loop of most articles, as a separate process.
//! - `relay`: this relay with its defaults.
//!
//! - `outbox`: each system's own database with the same rows; `payload` is the bench's.
//! - `topic`: each system's own topic.
//! - `drain`, `latency`: the measurements; `process`: CPU time and memory.
//! - `report`: a table for people, JSON for programs.
//!
//! No system gets a hidden warm-up. A drain is measured from the start of the process ("cold"), and for Debezium once more in the same
//! JVM ("warm"), because a warm JVM is faster. Latencies are measured in the process that has just drained.

mod debezium;
mod drain;
mod jars;
mod latency;
mod naive;
mod outbox;
mod process;
mod relay;
mod report;
mod topic;

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use lab::demo::{PostgresOptions, PrivatePostgres};

use lab::kafka::RealKafka;
use report::Report;

/// Debezium, the naive loop and this relay on the same rows
#[derive(Debug, Clone, Parser)]
pub(crate) struct Sizes {
    /// Events of a backlog
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    events: u32,
    /// Events of the naive loop's backlog; the loop takes about ten milliseconds per event
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(1..))]
    naive_events: u32,
    /// Events per second when latencies are measured
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,
    /// Events per second of the naive loop, which cannot keep up with more
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    naive_rate: u32,
    /// Seconds for which latencies are measured, after 2 s of warm-up
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// Bytes of an event's payload
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(64..=100_000))]
    payload: u32,
    /// Partitions of the topics
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(i32).range(1..=100))]
    partitions: i32,
    /// Systems to measure
    #[arg(long, value_delimiter = ',', default_values_t = ["debezium".to_owned(), "naive".to_owned(), "relay".to_owned()],
          value_parser = ["debezium", "naive", "relay"])]
    systems: Vec<String>,
    /// Write the metrics as JSON to FILE as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// The servers that every system is measured on.
pub(crate) struct Servers {
    pub(crate) postgres: PrivatePostgres,
    pub(crate) kafka: RealKafka,
    pub(crate) runtime: tokio::runtime::Runtime,
}

fn main() -> anyhow::Result<()> {
    // The naive loop is a separate process, so that its memory and CPU time can be measured separately.
    if std::env::args().nth(1).as_deref() == Some("naive-loop") {
        return naive::run_loop();
    }
    let sizes = Sizes::parse();
    eprintln!("starting Kafka and Postgres");
    let kafka = RealKafka::start(&[])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let postgres = runtime.block_on(PrivatePostgres::start(postgres_options()))?;
    let mut servers = Servers { postgres, kafka, runtime };
    let mut report = Report::default();
    for system in &sizes.systems {
        let measured = match system.as_str() {
            "debezium" => debezium::measure(&mut servers, &sizes),
            "naive" => naive::measure(&mut servers, &sizes),
            _ => relay::measure(&mut servers, &sizes),
        };
        report.systems.extend(measured.with_context(|| system.clone())?);
    }
    print!("{report}");
    if let Some(path) = &sizes.json {
        std::fs::write(path, report.json(&sizes)?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Returns the options of benches/servers.rs, plus the logical WAL that Debezium reads.
fn postgres_options() -> PostgresOptions {
    let settings = [("shared_buffers", "1GB"), ("max_wal_size", "8GB"), ("wal_level", "logical")];
    PostgresOptions {
        durable: true,
        max_connections: 200,
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        ..PostgresOptions::default()
    }
}
