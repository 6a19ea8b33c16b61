//! Computes the pauses between attempts: each is twice the last one up to a limit, with jitter. A success starts again with the first
//! pause.

use std::time::Duration;

use rand::Rng;

/// The pauses of one caller that tries the same operation again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    /// The next pause, before its jitter.
    next: Duration,
}

impl Backoff {
    /// Creates a back-off whose pauses begin with `first` and stop growing at `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        let first = first.min(longest);
        Self { first, longest, next: first }
    }

    /// Returns the pause before the next attempt: `first`, then twice as long each time. Each pause is shortened at random by up to half,
    /// so that callers that failed together do not try again together.
    pub fn pause(&mut self) -> Duration {
        let pause = rand::rng().random_range(self.next / 2..=self.next);
        self.next = self.next.saturating_mul(2).min(self.longest);
        pause
    }

    /// Starts again with the first pause. Call it after an attempt that succeeded.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(2);

    #[test]
    fn pauses_double_up_to_the_cap_and_a_success_starts_them_over() {
        let mut backoff = Backoff::new(FIRST, LONGEST);
        for round in 0..3 {
            for whole in [100, 200, 400, 800, 1600, 2000, 2000].map(Duration::from_millis) {
                let pause = backoff.pause();
                assert!(whole / 2 <= pause && pause <= whole, "round {round}: {pause:?} of {whole:?}");
            }
            backoff.reset();
        }
    }

    #[test]
    fn callers_that_fail_together_do_not_come_back_together() {
        let pauses = [(); 20].map(|()| Backoff::new(LONGEST, LONGEST).pause());
        assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{pauses:?}");
    }

    #[test]
    fn any_two_durations_make_pauses_that_the_cap_bounds() {
        let lengths = [Duration::ZERO, Duration::from_nanos(1), FIRST, LONGEST, Duration::MAX];
        for (first, longest) in lengths.iter().flat_map(|first| lengths.iter().map(move |longest| (*first, *longest))) {
            let mut backoff = Backoff::new(first, longest);
            assert!((0..100).all(|_| backoff.pause() <= longest), "{first:?}, {longest:?}");
        }
    }
}
