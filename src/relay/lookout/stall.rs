//! Since when nothing has moved. Pure: what was seen goes in, what has to be told comes out.
//!
//! States: moving -> stalled (rows waited at every look for `RELAY_STALL_AFTER` and none moved) -> moving. A stall that was told
//! ends when nothing waits, or when the row that was first has gone: while others pass by an entity that waits, nothing new is told.

use std::time::{Duration, Instant};

use crate::lane::LaneRange;

/// What a look at the relay's lanes showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// No row waits.
    Nothing,
    /// The lowest id that waits.
    Head(i64),
    /// The table cannot be read: rows have to be assumed.
    Unreadable,
}

/// What has to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turning {
    /// Nothing new.
    None,
    Begun,
    /// After so long.
    Ended(Duration),
}

#[derive(Debug)]
struct Told {
    since: Instant,
    head: Option<i64>,
}

#[derive(Debug)]
pub(super) struct Stall {
    after: Duration,
    published: u64,
    lanes: Option<LaneRange>,
    head: Option<i64>,
    /// Nothing has moved since.
    quiet_since: Instant,
    stalled: bool,
    told: Option<Told>,
}

impl Stall {
    pub(super) fn new(after: Duration, now: Instant) -> Self {
        Self { after, published: 0, lanes: None, head: None, quiet_since: now, stalled: false, told: None }
    }

    /// Takes in what was seen, and how many events this relay had published by then.
    pub(super) fn observe(&mut self, published: u64, lanes: Option<LaneRange>, seen: Seen, now: Instant) -> Turning {
        let head = match seen {
            Seen::Head(head) => Some(head),
            Seen::Nothing | Seen::Unreadable => None,
        };
        // A head that went up has gone, whoever sent it; one that went down is a row that committed late, or was retried.
        let passed = self.head.zip(head).is_some_and(|(before, now)| now > before);
        if seen == Seen::Nothing || published != self.published || passed || lanes != self.lanes {
            self.quiet_since = now;
        }
        (self.published, self.lanes, self.head) = (published, lanes, head.or(self.head));
        self.stalled = seen != Seen::Nothing && now - self.quiet_since >= self.after;
        match &self.told {
            None if self.stalled => {
                self.told = Some(Told { since: self.quiet_since, head });
                Turning::Begun
            }
            Some(told) if !self.stalled && seen != Seen::Unreadable && is_gone(told.head, head) => {
                let lasted = now - told.since;
                self.told = None;
                Turning::Ended(lasted)
            }
            _ => Turning::None,
        }
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }
}

/// True when the row that was first when the stall began does not wait any more.
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

    /// Seconds, events published, what is seen; the answers.
    fn play(script: &[(u64, u64, Seen)]) -> Vec<Turning> {
        let began = Instant::now();
        let mut stall = Stall::new(AFTER, began);
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        stall.observe(0, LANES, Seen::Nothing, began);
        script.iter().map(|(seconds, published, seen)| stall.observe(*published, LANES, *seen, at(*seconds))).collect()
    }

    #[test]
    fn rows_that_wait_while_none_moves_are_a_stall_which_is_told_once_and_ends_once() {
        let turnings = play(&[
            (10, 0, Seen::Head(7)),
            (59, 0, Seen::Head(7)),
            (60, 0, Seen::Head(7)),
            (500, 0, Seen::Head(7)),
            (510, 3, Seen::Head(9)),
            (520, 5, Seen::Nothing),
        ]);
        let ended = Turning::Ended(Duration::from_secs(510));
        assert_eq!(turnings, [Turning::None, Turning::None, Turning::Begun, Turning::None, ended, Turning::None]);
    }

    #[test]
    fn an_idle_outbox_and_one_that_moves_are_not_stalled() {
        assert_eq!(play(&[(100, 0, Seen::Nothing), (200, 0, Seen::Nothing)]), [Turning::None; 2]);
        let moving: Vec<_> = (1..20).map(|n| (n * 50, n, Seen::Head(7))).collect();
        assert_eq!(play(&moving), [Turning::None; 19]);
        // Another relay sends them.
        let passed: Vec<_> = (1..20).map(|n| (n * 50, 0, Seen::Head(n as i64))).collect();
        assert_eq!(play(&passed), [Turning::None; 19]);
    }

    #[test]
    fn an_entity_that_waits_is_not_told_again_each_time_that_others_pass_by() {
        let turnings = play(&[
            (60, 0, Seen::Head(7)),
            (70, 1, Seen::Head(7)),
            (130, 1, Seen::Head(7)),
            (140, 2, Seen::Head(7)),
            (150, 3, Seen::Nothing),
        ]);
        let ended = Turning::Ended(Duration::from_secs(150));
        assert_eq!(turnings, [Turning::Begun, Turning::None, Turning::None, Turning::None, ended]);
    }

    #[test]
    fn a_table_that_cannot_be_read_counts_as_one_with_rows_that_wait() {
        let turnings = play(&[(30, 0, Seen::Unreadable), (60, 0, Seen::Unreadable), (70, 1, Seen::Head(5))]);
        assert_eq!(turnings, [Turning::None, Turning::Begun, Turning::Ended(Duration::from_secs(70))]);
    }
}
