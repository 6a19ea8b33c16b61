//! Limits the number of rows or records per second.

use std::time::{Duration, Instant};

/// Waits are at least this long. A timer oversleeps by about 0.1 ms, which would be most of the time between two of 30,000 records per
/// second.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);

/// How far it may run behind the rate and make up for it: a sleep that took too long, or slow work.
const BEHIND: Duration = Duration::from_millis(100);

/// Counts rows or records and returns how long to wait.
#[derive(Debug)]
pub(crate) struct Rate {
    per_second: Option<u32>,
    /// When the rows or records counted so far are due to be done.
    due: Instant,
}

impl Rate {
    /// Creates a limit of `per_second`; `None` means no limit.
    pub(crate) fn new(per_second: Option<u32>) -> Self {
        Self { per_second, due: Instant::now() }
    }

    /// Returns the size of a page: at most `rows`, and at most the number for one second.
    pub(crate) fn page(&self, rows: i64) -> i64 {
        self.per_second.map_or(rows, |per_second| rows.min(i64::from(per_second)).max(1))
    }

    /// Counts `count` more rows or records and returns the wait before the next ones.
    pub(crate) fn spend(&mut self, count: i64) -> Duration {
        self.spend_at(count, Instant::now())
    }

    fn spend_at(&mut self, count: i64, now: Instant) -> Duration {
        let Some(per_second) = self.per_second else { return Duration::ZERO };
        let takes = Duration::from_secs_f64(count as f64 / f64::from(per_second));
        // The work itself took a part of the time.
        let earliest = now.checked_sub(takes + BEHIND).unwrap_or(now);
        self.due = self.due.max(earliest) + takes;
        let wait = self.due.saturating_duration_since(now);
        if wait < SHORTEST_WAIT { Duration::ZERO } else { wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets `count` records pass one by one on a clock of its own. Each takes `work`, and each sleep takes `late` longer than asked for.
    fn takes(rate: u32, count: u32, work: Duration, late: Duration) -> Duration {
        let began = Instant::now();
        let (mut rate, mut now) = (Rate { per_second: Some(rate), due: began }, began);
        for _ in 0..count {
            now += work;
            let wait = rate.spend_at(1, now);
            now += if wait.is_zero() { wait } else { wait + late };
        }
        now - began
    }

    #[test]
    fn a_hundred_at_fifty_a_second_take_two_seconds() {
        let mut rate = Rate::new(Some(50));
        assert_eq!(rate.page(1000), 50);
        let began = rate.due;
        let first = rate.spend_at(50, began);
        let second = rate.spend_at(50, began + first);
        assert_eq!((first, second), (Duration::from_secs(1), Duration::from_secs(1)));
        let mut free = Rate::new(None);
        assert_eq!((free.page(1000), free.spend(1_000_000)), (1000, Duration::ZERO));
    }

    #[test]
    fn a_high_rate_is_kept_although_timers_are_late() {
        let (work, late) = (Duration::from_micros(2), Duration::from_millis(1));
        let taken = takes(30_000, 300_000, work, late);
        assert!((Duration::from_millis(9_900)..Duration::from_millis(10_100)).contains(&taken), "{taken:?}");
    }

    #[test]
    fn what_was_lost_to_a_pause_is_not_caught_up_at_once() {
        let began = Instant::now();
        let mut rate = Rate { per_second: Some(1_000), due: began };
        let after_a_minute = began + Duration::from_secs(60);
        let passed = (0..).take_while(|_| rate.spend_at(1, after_a_minute).is_zero()).count();
        assert!((100..120).contains(&passed), "{passed}");
    }
}
