//! Counts the time from insert to acknowledgement in a histogram. Unlike the library's histogram it takes a whole batch at once: a batch
//! costs a few additions, however large it is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// The upper bounds in seconds: close together for a relay that keeps up, far apart for one that catches up.
const BOUNDS: [f64; 16] =
    [0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0];

/// The number of events that are read in a batch. Each represents its neighbours, which were inserted at about the same time.
const LOOKED_AT: usize = 16;

/// The counts by bucket. The last bucket has no upper bound.
#[derive(Debug, Default)]
pub(super) struct Latency {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_micros: AtomicU64,
}

impl Latency {
    /// Counts `events` events of a batch, in order. `age` returns the age of one of them when it was acknowledged.
    pub(super) fn observe(&self, events: usize, age: impl Fn(usize) -> Duration) {
        let step = events.div_ceil(LOOKED_AT).max(1);
        for first in (0..events).step_by(step) {
            let stands_for = step.min(events - first) as u64;
            let age = age(first + (stands_for as usize - 1) / 2);
            let bucket = BOUNDS.iter().position(|bound| age.as_secs_f64() <= *bound).unwrap_or(BOUNDS.len());
            self.buckets[bucket].fetch_add(stands_for, Ordering::Relaxed);
            let micros = (age.as_micros() as u64).saturating_mul(stands_for);
            self.sum_micros.fetch_add(micros, Ordering::Relaxed);
        }
    }

    fn counts(&self) -> Vec<(f64, u64)> {
        let bounds = BOUNDS.into_iter().chain([f64::MAX]);
        bounds.zip(&self.buckets).map(|(bound, count)| (bound, count.load(Ordering::Relaxed))).collect()
    }
}

/// A latency in the form that the registry collects.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) latency: std::sync::Arc<Latency>,
}

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let buckets = self.latency.counts();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.latency.sum_micros.load(Ordering::Relaxed) as f64 / 1e6;
        let mut metric = encoder.encode_descriptor(self.name, self.help, None, MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_of_a_batch_counts_and_few_are_looked_at() {
        for events in [0_usize, 1, 2, 15, 16, 17, 100, 2_000, 100_000] {
            let latency = Latency::default();
            let looks = std::cell::Cell::new(0);
            latency.observe(events, |at| {
                assert!(at < events);
                looks.set(looks.get() + 1);
                Duration::from_millis(at as u64)
            });
            assert_eq!(latency.counts().iter().map(|(_, count)| count).sum::<u64>(), events as u64);
            assert!(looks.get() <= LOOKED_AT, "{} looks at {events} events", looks.get());
        }
    }

    #[test]
    fn an_event_falls_into_the_first_bucket_that_is_large_enough() {
        let latency = Latency::default();
        for age in [Duration::ZERO, Duration::from_millis(1), Duration::from_micros(1_001), Duration::from_secs(601)] {
            latency.observe(1, |_| age);
        }
        let counts: Vec<_> = latency.counts().iter().map(|(_, count)| *count).collect();
        assert_eq!((counts[0], counts[1], counts[BOUNDS.len()]), (2, 1, 1));
        assert_eq!(latency.sum_micros.load(Ordering::Relaxed), 1_000 + 1_001 + 601_000_000);
    }
}
