//! No more than so many rows or records a second.

use std::time::{Duration, Instant};

/// Counts what was done, and tells how long to wait.
#[derive(Debug)]
pub(crate) struct Rate {
    per_second: Option<u32>,
    began: Instant,
    done: u64,
}

impl Rate {
    /// As fast as it goes, if `None`.
    pub(crate) fn new(per_second: Option<u32>) -> Self {
        Self { per_second, began: Instant::now(), done: 0 }
    }

    /// A page of at most `rows` that does not take more than a second's worth.
    pub(crate) fn page(&self, rows: i64) -> i64 {
        self.per_second.map_or(rows, |per_second| rows.min(i64::from(per_second)).max(1))
    }

    /// `count` more were done; how long to wait before the next.
    pub(crate) fn spend(&mut self, count: i64) -> Duration {
        self.done += count.unsigned_abs();
        let due = self.per_second.map(|per_second| Duration::from_secs_f64(self.done as f64 / f64::from(per_second)));
        due.map_or(Duration::ZERO, |due| due.saturating_sub(self.began.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_at_fifty_a_second_take_two_seconds() {
        let mut rate = Rate::new(Some(50));
        assert_eq!(rate.page(1000), 50);
        let wait = rate.spend(50) + rate.spend(50);
        assert!(wait > Duration::from_secs(2) && wait <= Duration::from_secs(3), "{wait:?}");
        let mut free = Rate::new(None);
        assert_eq!((free.page(1000), free.spend(1_000_000)), (1000, Duration::ZERO));
    }
}
