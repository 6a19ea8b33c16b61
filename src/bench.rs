//! `outbox-relay bench`: measures the relay as a process of its own against real servers, in schemas and topics of its own.
//!
//! What is measured
//! - `drain`: a backlog; `variants`: the same with several relays, a hot key, retained rows
//! - `latency`: events at a fixed rate, from their scheduled time to a consumer
//! - `held_snapshot`: the rate while another session holds a snapshot
//! - `idle`: what nothing to do costs
//! - `failover`: SIGKILL to the next publish
//! - `baseline`: what the box can do without one of the two servers
//!
//! With what
//! - `bench_schema`: the schema and the topic of one measurement, and their removal
//! - `payload`, `seed_rows`, `pacer`: events: what is in them, many at once, at a steady rate
//! - `relay_process`: the relay under test
//! - `watermarks`, `receiver`: what is on the topic
//! - `steady`: relays, writer and consumer together
//! - `cost`, `process`: WAL and CPU time
//! - `percentiles`, `environment`, `report`, `table`, `progress`: what is reported

mod baseline;
mod bench_schema;
mod cost;
mod drain;
mod environment;
mod failover;
mod failure;
mod held_snapshot;
mod idle;
mod latency;
mod pacer;
mod percentiles;
mod process;
mod progress;
mod receiver;
mod relay_process;
mod report;
mod seed_rows;
mod steady;
mod table;
mod variants;
mod watermarks;

use lab::payload;
use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Needs, Settings, Sources};
use bench_schema::BenchSchemas;
use drain::Backlog;
use progress::Progress;
use relay_process::Launch;
use seed_rows::Keys;

pub(crate) use failure::BenchError;
pub(crate) use report::Report;

/// Entities of a run that says nothing of them: events of each.
const EVENTS_PER_ENTITY: u64 = 200;

/// Of `latency` and `failover`, in events a second.
const STEADY_RATE: u64 = 1_000;

/// Of `latency` and `idle`.
const STEADY_SECONDS: u64 = 30;

/// Of `held-snapshot`.
const HELD_SECONDS: u64 = 120;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scenario {
    /// How fast a backlog goes out
    Drain,
    /// How long an event takes from its scheduled time to a consumer, at a fixed rate
    Latency,
    /// Drain with one, two and four relays
    Relays,
    /// Drain with half of all events on one entity, beside one without entities
    HotKey,
    /// Drain with published rows in the table, beside one without
    Retained,
    /// Drain while the published rows in the table are removed, beside one in which they stay
    Retention,
    /// The rate over time while another session holds a snapshot
    HeldSnapshot,
    /// What a relay with nothing to do costs
    Idle,
    /// Kill one of two relays, five times: how long until its lanes go on
    Failover,
    /// All of them
    All,
}

/// How much of it, and how.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) scenario: Scenario,
    pub(crate) events: u64,
    /// Published rows of `retained`.
    pub(crate) retained: u64,
    /// Events a second; `None`: each scenario's own.
    pub(crate) rate: Option<u64>,
    /// `None`: each scenario's own.
    pub(crate) seconds: Option<u64>,
    /// Of `held-snapshot`.
    pub(crate) window_s: u64,
    pub(crate) baseline: bool,
    pub(crate) payload_bytes: usize,
    pub(crate) partitions: i32,
    pub(crate) entities: Option<u64>,
}

/// What every measurement works with.
struct Bench {
    plan: Plan,
    settings: Settings,
    schemas: BenchSchemas,
    launch: Launch,
    samples: Vec<String>,
    progress: Progress,
}

/// How a run ended: its metrics or why there are none, and what it could not remove.
pub(crate) struct Ended {
    pub(crate) report: Result<Report, BenchError>,
    pub(crate) left: Vec<(String, BenchError)>,
}

/// Measures. `sources` are those of the bench; the relay under test gets them without `RELAY_*` variables, and
/// `relay_overrides` on top.
///
/// # Errors
/// The relay's configuration is wrong. Everything else is in [`Ended`].
pub(crate) async fn run(
    plan: Plan,
    sources: Sources,
    relay_overrides: Vec<(String, String)>,
    program: PathBuf,
) -> Result<Ended, BenchError> {
    let bench = Bench::new(plan, sources, relay_overrides, program)?;
    let report = tokio::select! {
        biased;
        interrupted = interrupted() => Err(interrupted),
        report = bench.measure() => report,
    };
    bench.progress.end();
    let left = bench.schemas.remove_all().await;
    Ok(Ended { report, left })
}

/// Returns at the first Ctrl-C or SIGTERM.
async fn interrupted() -> BenchError {
    let (mut interrupt, mut terminate) = match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
        (Err(error), _) | (_, Err(error)) => return error.into(),
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    BenchError::Interrupted
}

impl Bench {
    fn new(
        plan: Plan,
        mut sources: Sources,
        relay_overrides: Vec<(String, String)>,
        program: PathBuf,
    ) -> Result<Self, BenchError> {
        // What is set for a relay on this machine is not what is to be measured; which of both deliveries is.
        sources.env.retain(|name, _| !name.starts_with("RELAY_") || name == "RELAY_DELIVERY");
        sources.overrides.extend(relay_overrides);
        let launch = Launch {
            program,
            file: sources.file.clone(),
            env: sources.env.clone(),
            overrides: sources.overrides.clone(),
        };
        // As the relay will read them, to make the same clients and to report them.
        sources.overrides.extend(relay_process::settings_of("outbox_bench", "bench"));
        let settings = Settings::load(sources, Needs::DatabaseAndKafka)?;
        let kafka = settings.kafka.clone().ok_or(BenchError::Thread)?;
        let samples = payload::samples(payload::SAMPLES, plan.payload_bytes);
        let schemas = BenchSchemas::new(&settings, kafka, plan.partitions);
        Ok(Self { plan, settings, schemas, launch, samples, progress: Progress::new() })
    }

    async fn measure(&self) -> Result<Report, BenchError> {
        let mut report = Report::new(self).await?;
        if self.plan.baseline {
            report.limits = Some(baseline::run(self).await?);
        }
        match self.plan.scenario {
            Scenario::All => {
                for &scenario in <Scenario as clap::ValueEnum>::value_variants() {
                    self.measure_one(scenario, &mut report).await?;
                }
            }
            scenario => self.measure_one(scenario, &mut report).await?,
        }
        Ok(report)
    }

    async fn measure_one(&self, scenario: Scenario, report: &mut Report) -> Result<(), BenchError> {
        let Plan { rate, seconds, window_s, .. } = self.plan;
        if let Some(name) = clap::ValueEnum::to_possible_value(&scenario) {
            self.progress.begin(name.get_name());
        }
        match scenario {
            Scenario::Drain => report.drain = Some(drain::drain(self, self.backlog()).await?),
            Scenario::Latency => {
                let (rate, seconds) = (rate.unwrap_or(STEADY_RATE), seconds.unwrap_or(STEADY_SECONDS));
                report.latency = Some(latency::latency(self, rate, seconds).await?);
            }
            Scenario::Relays => report.relays = Some(variants::relays(self).await?),
            Scenario::HotKey => report.hot_key = Some(variants::hot_key(self).await?),
            Scenario::Retained => report.retained = Some(variants::retained(self).await?),
            Scenario::Retention => report.retention = Some(variants::retention(self).await?),
            Scenario::HeldSnapshot => {
                let seconds = seconds.unwrap_or(HELD_SECONDS);
                report.held_snapshot = Some(held_snapshot::held_snapshot(self, rate, seconds, window_s).await?);
            }
            Scenario::Idle => report.idle = Some(idle::idle(self, seconds.unwrap_or(STEADY_SECONDS)).await?),
            Scenario::Failover => {
                report.failover = Some(failover::failover(self, rate.unwrap_or(STEADY_RATE)).await?);
            }
            // What it stands for is measured one by one.
            Scenario::All => {}
        }
        Ok(())
    }

    fn backlog(&self) -> Backlog {
        Backlog { events: self.plan.events, keys: Keys::Spread(self.entities()), retained: 0, relays: 1, prunes: false }
    }

    fn entities(&self) -> u64 {
        self.plan.entities.unwrap_or(self.plan.events / EVENTS_PER_ENTITY).max(1)
    }
}
