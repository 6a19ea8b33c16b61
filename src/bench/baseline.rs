//! What this box can do without one of the two servers, measured in the same run: no relay can be faster than either.
//!
//! - `postgres`: claim and mark, the relay's own statements, without Kafka
//! - `kafka`: produce from memory, with the relay's own client settings, without Postgres

mod kafka;
mod postgres;

use serde::Serialize;

use super::Bench;
use super::failure::BenchError;

/// More events make it no truer, only longer.
const MOST_EVENTS: u64 = 300_000;

/// What each server of the box does alone. No relay runs meanwhile.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Baseline {
    pub(crate) events: u64,
    /// As many sessions, or producers, as a relay has workers.
    pub(crate) workers: usize,
    pub(crate) claim_and_mark_events_per_s: f64,
    /// What the marks themselves write.
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
