//! Notices that nothing changes any more, so that a demo gives up then and not after a fixed time.

use std::time::{Duration, Instant};

/// The longest time without any change. A relay that starts on a busy machine, or claims the lanes of a killed one, takes seconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// Watches a state.
#[derive(Debug)]
pub(super) struct Patience<T> {
    limit: Duration,
    last: Option<T>,
    since: Instant,
}

impl<T: PartialEq> Patience<T> {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, last: None, since: Instant::now() }
    }

    /// Returns true if the state has been the same for longer than the limit.
    pub(super) fn is_over(&mut self, now: T) -> bool {
        if self.last.as_ref() != Some(&now) {
            (self.last, self.since) = (Some(now), Instant::now());
        }
        self.since.elapsed() > self.limit
    }
}
