//! Defines the metrics of a run as JSON. Every name ends in its unit; a metric that was not measured is null or absent.

use serde::Serialize;

use super::Bench;
use super::baseline::Baseline;
use super::drain::Drained;
use super::environment::Environment;
use super::failover::Failover;
use super::failure::BenchError;
use super::held_snapshot::HeldSnapshot;
use super::idle::Idle;
use super::latency::Latency;
use super::variants::{HotKey, Pruned, Retained};

/// The version of the format; incremented when a name changes its meaning or is removed.
const FORMAT: u32 = 1;

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    pub(crate) version: u32,
    /// The prefix of the run's schemas and topics.
    pub(crate) run: String,
    pub(crate) measured_at: chrono::DateTime<chrono::Utc>,
    pub(crate) environment: Environment,
    pub(crate) load: Load,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) baseline: Option<Baseline>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) drain: Option<Drained>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) latency: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) relays: Option<Vec<Drained>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hot_key: Option<HotKey>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retained: Option<Retained>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retention: Option<Pruned>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) held_snapshot: Option<HeldSnapshot>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle: Option<Idle>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failover: Option<Failover>,
}

/// The events of the run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Load {
    pub(crate) events: u64,
    pub(crate) entities: u64,
    pub(crate) partitions: i32,
    /// The size of a payload as JSON text, without the envelope.
    pub(crate) payload_bytes: usize,
}

impl Report {
    pub(super) async fn new(bench: &Bench) -> Result<Self, BenchError> {
        let plan = &bench.plan;
        Ok(Self {
            version: FORMAT,
            run: bench.schemas.run().to_owned(),
            measured_at: chrono::Utc::now(),
            environment: Environment::new(bench).await?,
            load: Load {
                events: plan.events,
                entities: bench.entities(),
                partitions: plan.partitions,
                payload_bytes: plan.payload_bytes,
            },
            baseline: None,
            drain: None,
            latency: None,
            relays: None,
            hot_key: None,
            retained: None,
            retention: None,
            held_snapshot: None,
            idle: None,
            failover: None,
        })
    }
}
