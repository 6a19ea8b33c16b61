//! Runs `outbox-relay bench`: measures the relay as a separate process against real servers, in schemas and topics of the bench.
//!
//! Measurements
//! - `drain`: a backlog; `variants`: a drain with several relays, a hot key, or retained rows
//! - `latency`: events at a fixed rate, from their scheduled time to a consumer
//! - `held_snapshot`: the rate while another session holds a snapshot
//! - `idle`: the cost of an idle relay
//! - `failover`: the time from SIGKILL to the next publish
//! - `baseline`: the rate of each server without the other one
//!
//! Tools
//! - `bench_schema`: the schema and the topic of one measurement, and their removal
//! - `payload`, `seed_rows`, `pacer`: the content of events, many rows at once, events at a fixed rate
//! - `relay_process`: the relay under test
//! - `watermarks`, `receiver`: the records on the topic
//! - `steady`: relays, a writer and a consumer together
//! - `cost`, `process`: WAL and CPU time
//! - `percentiles`, `environment`, `report`, `table`: the report

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
mod receiver;
mod relay_process;
mod report;
mod seed_rows;
mod steady;
mod table;
mod variants;
mod watermarks;

use lab::demo::is_relay_variable;
use lab::payload;
use std::borrow::Cow;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Needs, Settings, Sources};
use bench_schema::BenchSchemas;
use drain::Backlog;
use relay_process::Launch;
use seed_rows::Keys;

pub(crate) use failure::BenchError;
pub(crate) use report::Report;

/// The events per entity, if the number of entities is not given.
const EVENTS_PER_ENTITY: u64 = 200;

/// The default rate of `latency` and `failover`, in events per second.
const STEADY_RATE: u64 = 1_000;

/// The default duration of `latency` and `idle`.
const STEADY_SECONDS: u64 = 30;

/// The default duration of `held-snapshot`.
const HELD_SECONDS: u64 = 120;

/// The scenario to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scenario {
    /// The rate at which a backlog is published
    Drain,
    /// The time of an event from its scheduled time to a consumer, at a fixed rate
    Latency,
    /// Drain with one, two and four relays
    Relays,
    /// Drain with half of all events on one entity, and a drain without entities
    HotKey,
    /// Drain with published rows in the table, and a drain without
    Retained,
    /// Drain while published rows are removed from the table, and a drain in which they stay
    Retention,
    /// The rate over time while another session holds a snapshot
    HeldSnapshot,
    /// The cost of an idle relay
    Idle,
    /// The time until the lanes of a killed relay go on; kills one of two relays, five times
    Failover,
    /// All scenarios
    All,
}

/// The sizes and options of a run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) scenario: Scenario,
    pub(crate) events: u64,
    /// The number of published rows in `retained` and `retention`.
    pub(crate) retained: u64,
    /// The rate in events per second; `None`: the default of each scenario.
    pub(crate) rate: Option<u64>,
    /// The duration in seconds; `None`: the default of each scenario.
    pub(crate) seconds: Option<u64>,
    /// The length of a window of `held-snapshot`.
    pub(crate) window_s: u64,
    pub(crate) baseline: bool,
    pub(crate) payload_bytes: usize,
    pub(crate) partitions: i32,
    pub(crate) entities: Option<u64>,
    /// True if inserts wake the relay: see [`wake_up_trigger`](event_outbox::schema::wake_up_trigger).
    pub(crate) wake_up_trigger: bool,
}

/// The tools that every measurement uses.
struct Bench {
    plan: Plan,
    settings: Settings,
    schemas: BenchSchemas,
    launch: Launch,
    samples: Vec<String>,
    /// One changing line on stderr, or nothing if stderr is no terminal.
    progress: ProgressBar,
}

/// The result of a run: its metrics or an error, and the schemas and topics that could not be removed.
pub(crate) struct Ended {
    pub(crate) report: Result<Report, BenchError>,
    pub(crate) left: Vec<(String, BenchError)>,
}

/// Runs the measurements. The relay under test gets the bench's `sources` without `RELAY_*` variables, and
/// `relay_overrides` on top.
///
/// # Errors
/// Fails if the relay's configuration is wrong. Every other error is in [`Ended`].
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
    bench.progress.finish_and_clear();
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
        // RELAY_* variables are meant for another relay on this machine. Only the delivery guarantee is taken from them.
        let is_hidden = |name: &str| is_relay_variable(name) && name != "RELAY_DELIVERY";
        let hidden_variables = sources.env.keys().filter(|name| is_hidden(name)).cloned().collect();
        sources.env.retain(|name, _| !is_hidden(name));
        sources.overrides.extend(relay_overrides);
        let launch =
            Launch { program, file: sources.file.clone(), hidden_variables, overrides: sources.overrides.clone() };
        // Read the settings as the relay will, to build the same clients and to report them.
        sources.overrides.extend(relay_process::settings_of("outbox_bench", "bench"));
        let settings = Settings::load(sources, Needs::DatabaseAndKafka)?;
        let kafka = settings.kafka.clone().ok_or(BenchError::Thread)?;
        let samples = payload::samples(payload::SAMPLES, plan.payload_bytes);
        let schemas = BenchSchemas::new(&settings, kafka, plan.partitions, plan.wake_up_trigger);
        Ok(Self { plan, settings, schemas, launch, samples, progress: progress() })
    }

    /// Shows the name of the measurement that begins.
    fn begin(&self, what: impl Into<Cow<'static, str>>) {
        self.progress.set_prefix(what);
        self.progress.set_message("starting");
    }

    async fn measure(&self) -> Result<Report, BenchError> {
        let mut report = Report::new(self).await?;
        if self.plan.baseline {
            report.baseline = Some(baseline::run(self).await?);
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
            self.begin(name.get_name().to_owned());
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
            // The scenarios of `all` are measured one by one.
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

fn progress() -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix}: {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
    ProgressBar::new_spinner().with_style(style)
}
