//! Counts the events that a consumer has handled, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters since the consumer was created. They can be read while the consumer runs.
#[derive(Debug, Default)]
pub struct Stats {
    applied: AtomicU64,
    repeated: AtomicU64,
    ignored: AtomicU64,
    retried: AtomicU64,
    dead: AtomicU64,
    held: AtomicU64,
    assigned: AtomicU64,
    revoked: AtomicU64,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $read:ident, $add:ident;)+) => {
        impl Stats {
            $(
                $(#[$doc])*
                pub fn $read(&self) -> u64 {
                    self.$read.load(Ordering::Relaxed)
                }

                pub(super) fn $add(&self, by: usize) {
                    self.$read.fetch_add(by as u64, Ordering::Relaxed);
                }
            )+
        }
    };
}

counters! {
    /// Returns the number of events whose effect is committed.
    applied, add_applied;
    /// Returns the number of deliveries of events that had been applied before.
    repeated, add_repeated;
    /// Returns the number of events whose type no handler takes.
    ignored, add_ignored;
    /// Returns the number of attempts after the first.
    retried, add_retried;
    /// Returns the number of acknowledged dead letters, including those of held keys.
    dead, add_dead;
    /// Returns the number of parked events: those that caused a hold and those behind them.
    held, add_held;
    /// Returns the number of partitions that were assigned to this member.
    assigned, add_assigned;
    /// Returns the number of partitions that were revoked from this member, except at its end.
    revoked, add_revoked;
}
