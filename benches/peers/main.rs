//! Compares the relay with other systems, on the same rows, Postgres and Kafka, one after the other: `just peers`.
//!
//! - `debezium`: Debezium's Postgres connector with the outbox event router, on Kafka Connect standalone, tuned; `jars` fetches it.
//! - `naive`: the polling loop of most articles, as a separate process.
//! - `batches`: a polling loop with franz-go that sends and marks a thousand events at once.
//! - `relay`: this relay with its defaults, on a table with the trigger that wakes it.
//!
//! - `outbox`: each system's own database with the same rows; `payload` is the bench's.
//! - `topic`: each system's own topic.
//! - `drain`, `latency`: the measurements; `process`: CPU time and memory.
//! - `report`: a table for people, JSON for programs; `plot`: the latencies as an SVG.
//!
//! No system gets a hidden warm-up. A drain is measured from the start of the process ("cold"), and for Debezium once more in the same
//! JVM ("warm"), because a warm JVM is faster. Latencies are measured in the process that has just drained.

mod batches;
mod debezium;
mod drain;
mod jars;
mod latency;
mod naive;
mod outbox;
mod plot;
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

const SYSTEMS: [&str; 4] = ["debezium", "naive", "batches", "relay"];

/// Debezium, polling loops and this relay on the same rows
#[derive(Debug, Clone, Parser)]
pub(crate) struct Sizes {
    /// Events of a backlog
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    events: u32,
    /// Events of the naive loop's backlog; the loop takes about ten milliseconds per event
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(1..))]
    naive_events: u32,
    /// Rates at which latencies are measured, in events per second
    #[arg(long, value_delimiter = ',', default_values_t = [0.1, 1.0, 10.0, 100.0, 1_000.0, 5_000.0], value_parser = rate)]
    rates: Vec<f64>,
    /// Seconds for which latencies are measured at each rate, after the warm-up; longer where there would be less than twelve events
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// Bytes of an event's payload
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(64..=100_000))]
    payload: u32,
    /// Partitions of the topics
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(i32).range(1..=100))]
    partitions: i32,
    /// Systems to measure
    #[arg(long, value_delimiter = ',', default_values = SYSTEMS, value_parser = SYSTEMS)]
    systems: Vec<String>,
    /// Write the metrics as JSON to FILE as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the latencies into FILE, an SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
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
            "batches" => batches::measure(&mut servers, &sizes),
            _ => relay::measure(&mut servers, &sizes),
        };
        report.systems.extend(measured.with_context(|| system.clone())?);
    }
    print!("{report}");
    if let Some(path) = &sizes.json {
        std::fs::write(path, report.json(&sizes)?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &sizes.plot {
        plot::draw(path, &report).with_context(|| format!("cannot draw {}", path.display()))?;
    }
    Ok(())
}

fn rate(text: &str) -> Result<f64, String> {
    let is_usual = |rate: &f64| (0.01..=20_000.0).contains(rate);
    text.parse().ok().filter(is_usual).ok_or_else(|| "a number from 0.01 to 20000 is expected".to_owned())
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
