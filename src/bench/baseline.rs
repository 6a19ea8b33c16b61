//! Measures each of the two servers without the other one, in the same run. No relay can be faster than either.
//!
//! - `postgres`: claim and mark by the relay's own statements, without Kafka
//! - `kafka`: produce from memory with the relay's own client settings, without Postgres

mod kafka;
mod postgres;

use serde::Serialize;

use super::Bench;
use super::failure::BenchError;

/// The most events of a baseline. More events would take longer without a better result.
const MOST_EVENTS: u64 = 300_000;

/// The rates of each server alone, measured while no relay runs.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Baseline {
    pub(crate) events: u64,
    /// The number of sessions, or producers: as many as a relay has workers.
    pub(crate) workers: usize,
    pub(crate) claim_and_mark_events_per_s: f64,
    /// The WAL that the marks write.
    pub(crate) claim_and_mark_wal_bytes_per_event: f64,
    pub(crate) produce_events_per_s: f64,
}

pub(crate) async fn run(bench: &Bench) -> Result<Baseline, BenchError> {
    let events = bench.plan.events.min(MOST_EVENTS);
    let workers = bench.settings.relay.workers;
    let schema = bench.schemas.make().await?;
    let claimed = postgres::claim_and_mark(bench, &schema, events, workers).await?;
    let produce_events_per_s = kafka::produce(bench, &schema, events, workers).await?;
    bench.schemas.remove(&schema.name).await?;
    Ok(Baseline {
        events,
        workers,
        claim_and_mark_events_per_s: claimed.events_per_s,
        claim_and_mark_wal_bytes_per_event: claimed.wal_bytes_per_event,
        produce_events_per_s,
    })
}
