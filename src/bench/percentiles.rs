//! Computes exact percentiles of times: sorted, nearest rank, no buckets.

use serde::Serialize;

/// Percentiles in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) count: usize,
    pub(crate) p50_ms: f64,
    pub(crate) p90_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
}

impl Percentiles {
    /// Computes the percentiles of times in microseconds; returns `None` if there are none.
    pub(crate) fn from_micros(mut micros: Vec<i64>) -> Option<Self> {
        micros.sort_unstable();
        let last = micros.len().checked_sub(1)?;
        // Nearest rank: the smallest value that at least N per mille of all values do not exceed.
        let at = |per_mille: usize| {
            let rank = (micros.len() * per_mille).div_ceil(1000);
            micros[rank.saturating_sub(1).min(last)] as f64 / 1e3
        };
        Some(Self {
            count: micros.len(),
            p50_ms: at(500),
            p90_ms: at(900),
            p99_ms: at(990),
            p999_ms: at(999),
            max_ms: at(1000),
        })
    }
}

/// Returns the median: the middle value, or the mean of the two middle values. Returns zero if there are none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match (values.get(values.len().saturating_sub(1) / 2), values.get(values.len() / 2)) {
        (Some(low), Some(high)) => (low + high) / 2.0,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_the_nearest_ranks() {
        let thousand = Percentiles::from_micros((1..=1000).rev().map(|n| n * 1000).collect()).unwrap();
        let expected =
            Percentiles { count: 1000, p50_ms: 500.0, p90_ms: 900.0, p99_ms: 990.0, p999_ms: 999.0, max_ms: 1000.0 };
        assert_eq!(thousand, expected);
    }

    #[test]
    fn a_few_times_have_percentiles_as_well() {
        assert_eq!(Percentiles::from_micros(Vec::new()), None);
        let one = Percentiles::from_micros(vec![7000]).unwrap();
        assert_eq!((one.p50_ms, one.p999_ms, one.max_ms), (7.0, 7.0, 7.0));
        let two = Percentiles::from_micros(vec![9000, -1000]).unwrap();
        assert_eq!((two.p50_ms, two.p90_ms, two.max_ms), (-1.0, 9.0, 9.0));
    }

    #[test]
    fn one_stall_shows_in_the_maximum_alone() {
        let mut times = vec![1000; 10_000];
        times[17] = 500_000;
        let percentiles = Percentiles::from_micros(times).unwrap();
        assert_eq!((percentiles.p999_ms, percentiles.max_ms), (1.0, 500.0));
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(vec![]), 0.0);
    }
}
