//! Adds up where the workers' time goes while they have work, by stage of a cycle. The sums are logged when the relay stops.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// One stage of a cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Begins the transaction, owns lanes, locks and reads the rows. Between cycles that follow each other the begin is part of the
    /// previous settle.
    Claim,
    /// Builds envelopes and routes, and hands the records to the producer.
    Send,
    /// Waits for the brokers.
    Acks,
    /// Marks the rows and commits.
    Settle,
}

/// The nanoseconds per stage and the number of cycles, of all workers together.
#[derive(Debug, Default)]
pub(crate) struct StageTimes {
    nanoseconds: [AtomicU64; 4],
    cycles: AtomicU64,
}

impl StageTimes {
    /// Adds the time since `since` to a stage. Returns the time up to which it was counted.
    pub(crate) fn add(&self, stage: Stage, since: Instant) -> Instant {
        let now = Instant::now();
        self.nanoseconds[stage as usize].fetch_add((now - since).as_nanos() as u64, Ordering::Relaxed);
        if stage == Stage::Settle {
            self.cycles.fetch_add(1, Ordering::Relaxed);
        }
        now
    }

    /// Returns the number of cycles that settled something.
    pub(crate) fn cycles(&self) -> u64 {
        self.cycles.load(Ordering::Relaxed)
    }

    /// Returns the seconds that all workers together spent in a stage.
    pub(crate) fn seconds(&self, stage: Stage) -> f64 {
        self.nanoseconds[stage as usize].load(Ordering::Relaxed) as f64 / 1e9
    }
}
