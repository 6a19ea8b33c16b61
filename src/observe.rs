//! Reports the state of a running relay to operators.
//!
//! - `log`: the lines on stderr
//! - `print`: stdout and stderr, without a panic when their reader goes away
//! - `terminal`: colours and widths; `progress`: that a command works
//! - `health`: the answers to probes, from memory
//! - `metrics`: every metric, with its name and its meaning
//! - `latency`: the histogram of the time from insert to acknowledgement
//! - `admin`: the HTTP address of probes and metrics
//! - `service_manager`: messages to systemd

pub(crate) mod admin;
pub(crate) mod health;
mod latency;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod print;
pub(crate) mod progress;
pub(crate) mod service_manager;
pub(crate) mod terminal;
#[cfg(test)]
pub(crate) mod written;

use std::sync::{Arc, Mutex, PoisonError};

/// The state that a relay reports: its tasks write it, and the admin address and the service manager's messages show it.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    pub(crate) health: health::Health,
    pub(crate) metrics: metrics::Metrics,
    /// The last status line, for people.
    status_line: Mutex<Option<String>>,
}

impl Telemetry {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Records the status line as text for people.
    pub(crate) fn set_status_line(&self, line: String) {
        *self.status_line.lock().unwrap_or_else(PoisonError::into_inner) = Some(line);
    }

    /// Returns the last status line; `None` before the first one.
    pub(crate) fn status_line(&self) -> Option<String> {
        self.status_line.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
