//! What an operator sees of a running relay.
//!
//! - `code`: what each warning and error is about; docs/runbook.md has an entry for each
//! - `log`: the lines on stderr
//! - `health`: what the probes answer, from memory
//! - `metrics`: every metric, with its name and what it means
//! - `latency`: the histogram of the way from the insert to the ack
//! - `admin`: the address where probes and metrics are asked for

#[cfg(feature = "relay")]
pub(crate) mod admin;
pub(crate) mod code;
#[cfg(feature = "relay")]
pub(crate) mod health;
#[cfg(feature = "relay")]
mod latency;
#[cfg(feature = "relay")]
pub(crate) mod log;
#[cfg(feature = "relay")]
pub(crate) mod metrics;

#[cfg(feature = "relay")]
use std::sync::Arc;

/// What a relay tells about itself: written by its tasks, read by the admin address.
#[cfg(feature = "relay")]
#[derive(Debug, Default)]
pub(crate) struct Vitals {
    pub(crate) health: health::Health,
    pub(crate) metrics: metrics::Metrics,
}

#[cfg(feature = "relay")]
impl Vitals {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }
}
