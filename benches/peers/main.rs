//! The relay beside its rivals, on the same rows, the same Postgres and the same Kafka, one after the other: `just peers`.
//!
//! - `debezium`: Debezium's Postgres connector with the outbox event router, on Kafka Connect standalone, tuned; `jars` fetches it.
//! - `naive`: the loop of most articles, as a process of its own.
//! - `relay`: this relay with its defaults.
//!
//! - `outbox`: each system's own database with the same rows; `payload` is the bench's.
//! - `topic`: each system's own topic.
//! - `drain`, `latency`: what is measured; `process`: what it takes.
//! - `report`: a table for people, JSON for the rest.
//!
//! Nobody is warmed up in secret. A drain is measured from the start of the process ("cold"), and Debezium's once more in the same JVM
//! ("warm"), because it gains from that. Latencies are measured in the process that has just drained.

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
    /// Events of the naive loop's backlog: it takes about ten milliseconds for each
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(1..))]
    naive_events: u32,
    /// Events a second when latencies are measured
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,
    /// The same for the naive loop, which cannot keep up with more
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    naive_rate: u32,
    /// How long latencies are measured, after 2 s that do not count
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
    /// Also write the metrics as JSON to FILE
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// The servers everybody is measured on.
pub(crate) struct Servers {
    pub(crate) postgres: PrivatePostgres,
    pub(crate) kafka: RealKafka,
    pub(crate) runtime: tokio::runtime::Runtime,
}

fn main() -> anyhow::Result<()> {
    // The naive loop is a process of its own, so that its memory and CPU time are.
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

/// As benches/servers.rs, and with the WAL that Debezium reads.
fn postgres_options() -> PostgresOptions {
    let settings = [("shared_buffers", "1GB"), ("max_wal_size", "8GB"), ("wal_level", "logical")];
    PostgresOptions {
        durable: true,
        max_connections: 200,
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        ..PostgresOptions::default()
    }
}
