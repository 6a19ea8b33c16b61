//! Runs `outbox-relay bench`.

use std::path::PathBuf;

use clap::Args;
use lab::demo::is_relay_variable;

use super::confirm::UseServers;
use super::exit::Failure;
use super::{names_and_values, runtime};
use crate::bench::{self, BenchError, Plan, Report, Scenario};
use crate::config::{Needs, Settings, Sources};
use crate::fault;
use crate::observe::print::{errln, out};

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// The scenario to measure
    scenario: Scenario,
    /// Events of a backlog
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    events: u64,
    /// Published rows in the table before the drains of `retained` and `retention`
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    retained: u64,
    /// Events per second of `latency`, `failover` (both 1000 by default) and `held-snapshot` (default: as fast as the relay publishes)
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rate: Option<u64>,
    /// Duration of `latency`, `idle` (both 30 by default) and `held-snapshot` (120) in seconds, without the warm-up
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: Option<u64>,
    /// Seconds of a window of `held-snapshot`
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    window: u64,
    /// Do not measure the baseline: what each server can do alone
    #[arg(long)]
    no_baseline: bool,
    /// Bytes of an event's payload
    #[arg(long, default_value_t = 500, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(64..=500_000))]
    payload: u32,
    /// Partitions of the topic
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(i32).range(1..=1000))]
    partitions: i32,
    /// Number of different entities [default: one per 200 events]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    entities: Option<u64>,
    /// Let inserts wake the relay, as `migrate --wake-up-trigger` does
    #[arg(long)]
    wake_up_trigger: bool,
    /// Write the metrics as JSON to FILE as well; with - the JSON goes to stdout and the table is not printed
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// One setting of the relay under test, for example --relay-set batch_size=500; may be repeated. RELAY_* variables do not
    /// reach that relay
    #[arg(long = "relay-set", value_name = "NAME=VALUE")]
    relay_set: Vec<String>,
    #[command(flatten)]
    own: UseServers,
}

impl Bench {
    pub(crate) fn run(self, sources: Sources) -> Result<(), Failure> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::unexpected("the bench cannot find its own program", error))?;
        let json = self.json.clone();
        let relay_set = names_and_values("--relay-set", self.relay_set.clone())?;
        // RELAY_* variables are of another relay, and may be wrong.
        let mut servers = sources.clone();
        servers.env.retain(|name, _| !is_relay_variable(name));
        let settings = Settings::load(servers, Needs::DatabaseAndKafka)?;
        self.own.ask("Measure at full load, in a schema and topics that are removed at the end,", &settings)?;
        let plan = self.plan();
        let ended = runtime()?.block_on(bench::run(plan, sources, relay_set, program)).map_err(failed)?;
        for (name, error) in &ended.left {
            errln!("warning: schema and topic {name} could not be removed, remove them by hand: {error}");
        }
        let report = ended.report.map_err(failed)?;
        write(&report, json)
    }

    fn plan(self) -> Plan {
        Plan {
            scenario: self.scenario,
            events: self.events,
            retained: self.retained,
            rate: self.rate,
            seconds: self.seconds,
            window_s: self.window,
            baseline: !self.no_baseline,
            payload_bytes: self.payload as usize,
            partitions: self.partitions,
            entities: self.entities,
            wake_up_trigger: self.wake_up_trigger,
        }
    }
}

fn write(report: &Report, json: Option<PathBuf>) -> Result<(), Failure> {
    let Some(path) = json else {
        out!("{report}");
        return Ok(());
    };
    let text = serde_json::to_string_pretty(report)
        .map_err(|error| Failure::unexpected("the metrics cannot be written as JSON", error))?;
    if path.as_os_str() == "-" {
        out!("{text}\n");
        return Ok(());
    }
    out!("{report}");
    std::fs::write(&path, text + "\n")
        .map_err(|error| Failure::finding(format!("cannot write {}", path.display())).because(error))
}

fn failed(error: BenchError) -> Failure {
    let message = "the bench gave no metrics";
    match error {
        BenchError::Config(error) => error.into(),
        BenchError::Database(error) => {
            let fault = fault::classify_database(&error);
            Failure::finding(message).because(error).fault(fault)
        }
        BenchError::Interrupted => Failure::finding("interrupted; the bench's schemas and topics are removed"),
        error => Failure::finding(message).because(error),
    }
}
