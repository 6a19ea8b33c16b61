//! Where a worker's time goes while it has work, by stage of a cycle: added up per cycle, logged when the relay stops.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A part of a cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Begin, own lanes, lock and read the rows. Where cycles follow each other the begin is part of the settling before.
    Claim,
    /// Envelopes and routes, and handing the records to the producer.
    Send,
    /// Waiting for the brokers.
    Acks,
    /// Marks and commit.
    Settle,
}

/// Nanoseconds per stage and the number of cycles, of all workers together.
#[derive(Debug, Default)]
pub(crate) struct StageTimes {
    nanoseconds: [AtomicU64; 4],
    cycles: AtomicU64,
}

impl StageTimes {
    /// Adds what has passed since `since`; returns the moment up to which it counted.
    pub(crate) fn add(&self, stage: Stage, since: Instant) -> Instant {
        let now = Instant::now();
        self.nanoseconds[stage as usize].fetch_add((now - since).as_nanos() as u64, Ordering::Relaxed);
        if stage == Stage::Settle {
            self.cycles.fetch_add(1, Ordering::Relaxed);
        }
        now
    }

    /// Cycles that settled something.
    pub(crate) fn cycles(&self) -> u64 {
        self.cycles.load(Ordering::Relaxed)
    }

    /// Seconds of all workers together.
    pub(crate) fn seconds(&self, stage: Stage) -> f64 {
        self.nanoseconds[stage as usize].load(Ordering::Relaxed) as f64 / 1e9
    }
}
