//! What a consumer has done so far; for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the consumer was made. Shared: read them while it runs.
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
    /// Events whose effect is committed.
    applied, add_applied;
    /// Deliveries of events that had been applied before.
    repeated, add_repeated;
    /// Events of types that no handler knows.
    ignored, add_ignored;
    /// Attempts after the first.
    retried, add_retried;
    /// Dead letters that are acknowledged, held ones included.
    dead, add_dead;
    /// Events that are parked because their key is held, or with which their key came to be.
    held, add_held;
    /// Partitions this member was given.
    assigned, add_assigned;
    /// Partitions this member gave back, those at its end not counted.
    revoked, add_revoked;
}
