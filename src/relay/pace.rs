//! Computes the pauses between polls when there is nothing to do, and between attempts when a server is away.

use std::time::Duration;

use event_outbox::backoff::Backoff;

/// The shortest pause of a worker that found nothing.
const SHORTEST: Duration = Duration::from_millis(1);

/// The pauses between polls: short while events flow, ever longer when they do not. The pause grows by a quarter with each empty poll, so
/// that it follows the time between events. At ten events a second a poll comes every few dozen milliseconds, not every millisecond.
#[derive(Debug)]
pub(crate) struct Pace {
    pause: Duration,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self { pause: SHORTEST }
    }

    /// Shortens the pause after a poll that found events, because the next ones are probably near.
    pub(crate) fn found(&mut self) {
        self.pause = (self.pause / 4).max(SHORTEST);
    }

    /// Returns the pause after a poll that found nothing, at most `longest`, and makes the next pause longer.
    pub(crate) fn empty(&mut self, longest: Duration) -> Duration {
        let pause = self.pause.min(longest);
        self.pause = (self.pause + self.pause / 4).min(longest);
        pause
    }
}

/// The first and the longest pause of a worker that cannot work, and of a relay that cannot start.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Returns the pauses between attempts to reach a server.
pub(crate) fn backoff() -> Backoff {
    Backoff::new(FIRST_PAUSE, LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_relay_polls_ever_less_and_an_event_brings_it_back() {
        let longest = Duration::from_millis(250);
        let mut pace = Pace::new();
        assert_eq!(pace.empty(longest), SHORTEST);
        for _ in 0..50 {
            assert!(pace.empty(longest) <= longest);
        }
        assert_eq!(pace.empty(longest), longest);
        pace.found();
        assert!(pace.empty(longest) < longest / 2);
        for _ in 0..10 {
            pace.found();
        }
        assert_eq!(pace.empty(longest), SHORTEST);
    }

    #[test]
    fn a_poll_interval_below_the_shortest_pause_is_kept() {
        assert_eq!(Pace::new().empty(Duration::from_micros(10)), Duration::from_micros(10));
    }
}
