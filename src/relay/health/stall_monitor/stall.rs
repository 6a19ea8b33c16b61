//! Decides since when nothing has moved. Pure: observations go in, changes to log come out.
//!
//! States: moving -> stalled (rows waited at every look for `RELAY_STALL_AFTER` and none moved) -> moving. A logged stall ends when no row
//! waits, or when the row that was first has gone. While other events pass an entity that waits, nothing new is logged.

use std::time::{Duration, Instant};

use crate::lane::LaneRange;

/// The state of the relay's lanes at one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueueState {
    /// No row waits.
    Empty,
    /// The lowest id that waits.
    Head(i64),
    /// The table cannot be read, so waiting rows have to be assumed.
    Unreadable,
}

/// The change that has to be logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StallChange {
    /// Nothing new.
    None,
    Begun,
    /// The stall has ended after this time.
    Ended(Duration),
}

#[derive(Debug)]
struct LoggedStall {
    since: Instant,
    head: Option<i64>,
}

#[derive(Debug)]
pub(super) struct Stall {
    after: Duration,
    published: u64,
    lanes: Option<LaneRange>,
    head: Option<i64>,
    /// The time since which nothing has moved.
    quiet_since: Instant,
    stalled: bool,
    logged: Option<LoggedStall>,
}

impl Stall {
    pub(super) fn new(after: Duration, now: Instant) -> Self {
        Self { after, published: 0, lanes: None, head: None, quiet_since: now, stalled: false, logged: None }
    }

    /// Takes in the state at one look, and how many events this relay had published by then. Returns the change to log.
    pub(super) fn observe(
        &mut self,
        published: u64,
        lanes: Option<LaneRange>,
        seen: QueueState,
        now: Instant,
    ) -> StallChange {
        let head = match seen {
            QueueState::Head(head) => Some(head),
            QueueState::Empty | QueueState::Unreadable => None,
        };
        // If the head went up, the former head has gone, whichever relay sent it. If it went down, a row committed late or was retried.
        let passed = self.head.zip(head).is_some_and(|(before, now)| now > before);
        if seen == QueueState::Empty || published != self.published || passed || lanes != self.lanes {
            self.quiet_since = now;
        }
        (self.published, self.lanes, self.head) = (published, lanes, head.or(self.head));
        self.stalled = seen != QueueState::Empty && now - self.quiet_since >= self.after;
        match &self.logged {
            None if self.stalled => {
                self.logged = Some(LoggedStall { since: self.quiet_since, head });
                StallChange::Begun
            }
            Some(logged) if !self.stalled && seen != QueueState::Unreadable && is_gone(logged.head, head) => {
                let lasted = now - logged.since;
                self.logged = None;
                StallChange::Ended(lasted)
            }
            _ => StallChange::None,
        }
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }
}

/// Returns true when the row that was first at the beginning of the stall no longer waits.
fn is_gone(first: Option<i64>, head: Option<i64>) -> bool {
    match (first, head) {
        (Some(first), Some(head)) => head > first,
        (None, _) | (_, None) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(60);
    const LANES: Option<LaneRange> = Some(LaneRange { first: 0, last: 15 });

    /// Plays a script of (seconds, events published, state of the queue). Returns the changes.
    fn play(script: &[(u64, u64, QueueState)]) -> Vec<StallChange> {
        let began = Instant::now();
        let mut stall = Stall::new(AFTER, began);
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        stall.observe(0, LANES, QueueState::Empty, began);
        script.iter().map(|(seconds, published, seen)| stall.observe(*published, LANES, *seen, at(*seconds))).collect()
    }

    #[test]
    fn rows_that_wait_while_none_moves_are_a_stall_which_is_logged_once_and_ends_once() {
        let changes = play(&[
            (10, 0, QueueState::Head(7)),
            (59, 0, QueueState::Head(7)),
            (60, 0, QueueState::Head(7)),
            (500, 0, QueueState::Head(7)),
            (510, 3, QueueState::Head(9)),
            (520, 5, QueueState::Empty),
        ]);
        let ended = StallChange::Ended(Duration::from_secs(510));
        assert_eq!(
            changes,
            [StallChange::None, StallChange::None, StallChange::Begun, StallChange::None, ended, StallChange::None]
        );
    }

    #[test]
    fn an_idle_outbox_and_one_that_moves_are_not_stalled() {
        assert_eq!(play(&[(100, 0, QueueState::Empty), (200, 0, QueueState::Empty)]), [StallChange::None; 2]);
        let moving: Vec<_> = (1..20).map(|n| (n * 50, n, QueueState::Head(7))).collect();
        assert_eq!(play(&moving), [StallChange::None; 19]);
        // Another relay sends the events.
        let passed: Vec<_> = (1..20).map(|n| (n * 50, 0, QueueState::Head(n as i64))).collect();
        assert_eq!(play(&passed), [StallChange::None; 19]);
    }

    #[test]
    fn an_entity_that_waits_is_not_logged_again_each_time_that_others_pass_by() {
        let changes = play(&[
            (60, 0, QueueState::Head(7)),
            (70, 1, QueueState::Head(7)),
            (130, 1, QueueState::Head(7)),
            (140, 2, QueueState::Head(7)),
            (150, 3, QueueState::Empty),
        ]);
        let ended = StallChange::Ended(Duration::from_secs(150));
        assert_eq!(changes, [StallChange::Begun, StallChange::None, StallChange::None, StallChange::None, ended]);
    }

    #[test]
    fn a_table_that_cannot_be_read_counts_as_one_with_rows_that_wait() {
        let changes =
            play(&[(30, 0, QueueState::Unreadable), (60, 0, QueueState::Unreadable), (70, 1, QueueState::Head(5))]);
        assert_eq!(changes, [StallChange::None, StallChange::Begun, StallChange::Ended(Duration::from_secs(70))]);
    }
}
