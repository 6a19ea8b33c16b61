//! What an operator sees of a running relay.
//!
//! - `log`: the lines on stderr
//! - `health`: what the probes answer, from memory
//! - `metrics`: every metric, with its name and what it means
//! - `latency`: the histogram of the way from the insert to the ack
//! - `admin`: the address where probes and metrics are asked for

pub(crate) mod admin;
pub(crate) mod health;
mod latency;
pub(crate) mod log;
pub(crate) mod metrics;

use std::sync::Arc;

/// What a relay reports about itself: written by its tasks, read by the admin address.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    pub(crate) health: health::Health,
    pub(crate) metrics: metrics::Metrics,
}

impl Telemetry {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }
}
