//! Where a worker's time goes while it has work, by stage of a turn: added up per turn, told when the relay stops.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A part of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Begin, own lanes, lock and read the rows. Where turns follow each other the begin is part of the settling before.
    Claim,
    /// Envelopes and routes, and handing the records to the producer.
    Send,
    /// Waiting for the brokers.
    Acks,
    /// Marks and commit.
    Settle,
}

/// Nanoseconds per stage and the number of turns, of all workers together.
#[derive(Debug, Default)]
pub(crate) struct Stages {
    nanoseconds: [AtomicU64; 4],
    turns: AtomicU64,
}

impl Stages {
    /// Adds what has passed since `since`; returns the moment up to which it counted.
    pub(crate) fn add(&self, stage: Stage, since: Instant) -> Instant {
        let now = Instant::now();
        self.nanoseconds[stage as usize].fetch_add((now - since).as_nanos() as u64, Ordering::Relaxed);
        if stage == Stage::Settle {
            self.turns.fetch_add(1, Ordering::Relaxed);
        }
        now
    }

    /// Turns that settled something.
    pub(crate) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Seconds of all workers together.
    pub(crate) fn seconds(&self, stage: Stage) -> f64 {
        self.nanoseconds[stage as usize].load(Ordering::Relaxed) as f64 / 1e9
    }
}
