//! Keeps the pause between two attempts with one event, and makes sure that only the first attempt is logged.

use std::time::Duration;

use crate::backoff::Backoff;
use crate::consumer::runtime::retry::Retry;

pub(super) struct Pause {
    backoff: Backoff,
    logged: bool,
}

impl Pause {
    pub(super) fn from_retry(retry: &Retry) -> Self {
        Self { backoff: Backoff::new(retry.first_pause, retry.longest_pause), logged: false }
    }

    pub(super) fn next(&mut self) -> Duration {
        self.backoff.pause()
    }

    /// Returns true if an attempt has failed.
    pub(super) fn is_logged(&self) -> bool {
        self.logged
    }

    pub(super) fn log_first(&mut self, log: impl FnOnce()) {
        if !std::mem::replace(&mut self.logged, true) {
            log();
        }
    }
}
