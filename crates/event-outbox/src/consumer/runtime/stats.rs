//! Counts the events that a consumer has handled and measures how far behind it is, for metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use chrono::Utc;

/// The most ignored event types that are counted one by one. A topic may carry any number of types.
const MOST_TYPES: usize = 100;

/// The counters since the consumer was created, and its present state. They can be read while the consumer runs.
#[derive(Debug)]
pub struct Stats {
    pub(super) group: String,
    applied: AtomicU64,
    repeated: AtomicU64,
    ignored: AtomicU64,
    retried: AtomicU64,
    halved: AtomicU64,
    dead: AtomicU64,
    held: AtomicU64,
    assigned: AtomicU64,
    revoked: AtomicU64,
    in_flight: AtomicU64,
    lag: AtomicU64,
    held_keys: AtomicU64,
    retrying_keys: AtomicU64,
    parked: AtomicU64,
    oldest_held_seconds: AtomicU64,
    is_paused: AtomicBool,
    /// The timestamp of the oldest record at work, in milliseconds since 1970; -1 if there is none.
    oldest_ms: AtomicI64,
    ignored_types: Mutex<BTreeMap<String, u64>>,
}

impl Stats {
    pub(super) fn new(group: &str) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            group: group.to_owned(),
            applied: zero(),
            repeated: zero(),
            ignored: zero(),
            retried: zero(),
            halved: zero(),
            dead: zero(),
            held: zero(),
            assigned: zero(),
            revoked: zero(),
            in_flight: zero(),
            lag: zero(),
            held_keys: zero(),
            retrying_keys: zero(),
            parked: zero(),
            oldest_held_seconds: zero(),
            is_paused: AtomicBool::new(false),
            oldest_ms: AtomicI64::new(-1),
            ignored_types: Mutex::default(),
        }
    }
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
    /// Returns the number of batches that failed and were halved.
    halved, add_halved;
    /// Returns the number of acknowledged dead letters.
    dead, add_dead;
    /// Returns the number of events that were set aside: those that caused a hold and those behind them.
    held, add_held;
    /// Returns the number of partitions that were assigned to this member.
    assigned, add_assigned;
    /// Returns the number of partitions that were revoked from this member, except at its end.
    revoked, add_revoked;
}

impl Stats {
    /// Returns the number of handlers at work.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Returns the number of records behind the offsets of this member's partitions that are not finished. Measured every 5 s
    /// (`statistics.interval.ms`). Markers of transactions count as records, so it stays at 1 for each partition behind a transactional
    /// producer that is silent.
    pub fn lag(&self) -> u64 {
        self.lag.load(Ordering::Relaxed)
    }

    /// Returns the age of the oldest record that is handled, by its timestamp; `None` if none is.
    pub fn oldest_seconds(&self) -> Option<u64> {
        let at = Some(self.oldest_ms.load(Ordering::Relaxed)).filter(|at| *at >= 0)?;
        Some((Utc::now().timestamp_millis() - at).max(0).unsigned_abs() / 1000)
    }

    /// Returns true if [`Control`](super::Control) pauses a topic or everything.
    pub fn is_paused(&self) -> bool {
        self.is_paused.load(Ordering::Relaxed)
    }

    /// Returns the number of keys of the group whose first event is tried again by itself. All members see the same number.
    pub fn retrying_keys(&self) -> u64 {
        self.retrying_keys.load(Ordering::Relaxed)
    }

    /// Returns the number of held keys of the group, without those that are retried. All members see the same number.
    pub fn held_keys(&self) -> u64 {
        self.held_keys.load(Ordering::Relaxed)
    }

    /// Returns the number of events of held and retried keys, failed and parked ones. All members see the same number.
    pub fn parked(&self) -> u64 {
        self.parked.load(Ordering::Relaxed)
    }

    /// Returns the time in seconds since the oldest of the events that hold a key was set aside; 0 if no key is held.
    pub fn oldest_held_seconds(&self) -> u64 {
        self.oldest_held_seconds.load(Ordering::Relaxed)
    }

    /// Returns the number of ignored events by type, for the first 100 types.
    pub fn ignored_types(&self) -> BTreeMap<String, u64> {
        self.ignored_types.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts an ignored event. Returns true if it is the first of its type.
    pub(super) fn is_new_type(&self, event_type: &str) -> bool {
        let mut types = self.ignored_types.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = types.get_mut(event_type) {
            *count += 1;
            return false;
        }
        let is_new = types.len() < MOST_TYPES;
        if is_new {
            types.insert(event_type.to_owned(), 1);
        }
        is_new
    }

    /// Counts a handler as at work until the guard is dropped.
    pub(super) fn at_work(&self) -> AtWork<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        AtWork(self)
    }

    pub(super) fn set_lag(&self, lag: u64) {
        self.lag.store(lag, Ordering::Relaxed);
    }

    pub(super) fn set_oldest_ms(&self, oldest: Option<i64>) {
        self.oldest_ms.store(oldest.unwrap_or(-1), Ordering::Relaxed);
    }

    pub(super) fn set_paused(&self, is_paused: bool) {
        self.is_paused.store(is_paused, Ordering::Relaxed);
    }

    pub(super) fn set_keys(&self, held: usize, retrying: usize, parked: u64, oldest_seconds: u64) {
        self.held_keys.store(held as u64, Ordering::Relaxed);
        self.retrying_keys.store(retrying as u64, Ordering::Relaxed);
        self.parked.store(parked, Ordering::Relaxed);
        self.oldest_held_seconds.store(oldest_seconds, Ordering::Relaxed);
    }
}

pub(super) struct AtWork<'a>(&'a Stats);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
