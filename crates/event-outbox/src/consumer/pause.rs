//! The pauses between two attempts with an event, told once.

use std::time::Duration;

use crate::backoff::Backoff;
use crate::consumer::runtime::Retry;

pub(super) struct Pause {
    backoff: Backoff,
    told: bool,
}

impl Pause {
    pub(super) fn of(retry: &Retry) -> Self {
        Self { backoff: Backoff::new(retry.first_pause, retry.longest_pause), told: false }
    }

    pub(super) fn next(&mut self) -> Duration {
        self.backoff.pause()
    }

    pub(super) fn tell_first(&mut self, tell: impl FnOnce()) {
        if !std::mem::replace(&mut self.told, true) {
            tell();
        }
    }
}
