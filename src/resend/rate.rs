//! Limits the number of rows or records per second.

use std::time::{Duration, Instant};

/// Counts rows or records and returns how long to wait. Time lost by slower work is not made up for.
#[derive(Debug)]
pub(crate) struct Rate {
    per_second: Option<u32>,
    free_at: Instant,
}

impl Rate {
    /// Creates a limit of `per_second`; `None` means no limit.
    pub(crate) fn new(per_second: Option<u32>) -> Self {
        Self { per_second, free_at: Instant::now() }
    }

    /// Returns the size of a page: at most `rows`, and at most the number for one second.
    pub(crate) fn page(&self, rows: i64) -> i64 {
        self.per_second.map_or(rows, |per_second| rows.min(i64::from(per_second)).max(1))
    }

    /// Counts `count` more rows or records and returns the wait before the next ones.
    pub(crate) fn spend(&mut self, count: i64) -> Duration {
        let Some(per_second) = self.per_second else { return Duration::ZERO };
        let now = Instant::now();
        self.free_at = self.free_at.max(now) + Duration::from_secs_f64(count as f64 / f64::from(per_second));
        self.free_at - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_at_fifty_a_second_take_two_seconds() {
        let mut rate = Rate::new(Some(50));
        assert_eq!(rate.page(1000), 50);
        let began = Instant::now();
        rate.spend(50);
        let wait = rate.spend(50);
        let free_at = Instant::now() + wait;
        assert!(free_at >= began + Duration::from_secs(2), "{:?}", free_at - began);
        let mut free = Rate::new(None);
        assert_eq!((free.page(1000), free.spend(1_000_000)), (1000, Duration::ZERO));
    }
}
