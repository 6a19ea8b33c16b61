//! Between two attempts: ever longer pauses with jitter, told once.

use std::time::Duration;

use rand::Rng;

use crate::consumer::runtime::Retry;

pub(super) struct Pause {
    next: Duration,
    longest: Duration,
    told: bool,
}

impl Pause {
    pub(super) fn of(retry: &Retry) -> Self {
        Self { next: retry.first_pause, longest: retry.longest_pause, told: false }
    }

    pub(super) fn next(&mut self) -> Duration {
        let pause = self.next.mul_f64(rand::rng().random_range(0.5..1.0));
        self.next = (self.next * 2).min(self.longest);
        pause
    }

    pub(super) fn tell_first(&mut self, tell: impl FnOnce()) {
        if !std::mem::replace(&mut self.told, true) {
            tell();
        }
    }
}
