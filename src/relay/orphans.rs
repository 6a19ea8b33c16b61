//! Events that wait in lanes of others which nobody works on: the relay that is due them may have died, and its heartbeat takes longer to
//! be missed.
//!
//! A worker has its lanes locked for all of a turn and begins the next turn with the end of the last, but not always; and two that took
//! batches of each other's lanes would go on so for as long as there is a backlog. So lanes are taken when the same event is the
//! first one twice in a row: nobody has moved it in between.

use std::time::{Duration, Instant};

use crate::lane::LaneRange;
use crate::relay::shared::Shared;
use crate::relay::stint::Stint;
use crate::relay::turn::{Turn, TurnError};
use crate::relay::worker::Worker;

/// How often a worker looks at the lanes of others.
const INTERVAL: Duration = Duration::from_millis(500);

/// The same for a worker whose lanes another one has: it also shows that the connection lives.
const INTERVAL_OFF: Duration = Duration::from_secs(10);

/// When it looks again at what it saw waiting.
const SECOND_LOOK: Duration = Duration::from_millis(150);

/// Looking may take this share of the time.
const SHARE: u32 = 20;

const NOTHING: (Option<i64>, bool) = (None, false);

/// The lanes beside those of a worker.
#[derive(Debug)]
pub(super) struct Orphans {
    /// All lanes, its own as well: one look when there is nothing to do, in place of one at its own and two at the others'.
    all: Stint,
    others: Vec<Others>,
    look_at: Instant,
    /// The look that is due is the second one.
    is_second: bool,
}

/// The lanes below a worker's, or above.
#[derive(Debug)]
struct Others {
    stint: Stint,
    /// What waited at the last look: the first event, and whether a scheduled one was due.
    waited: (Option<i64>, bool),
    /// The last turn on them did something.
    is_adopting: bool,
}

impl Orphans {
    /// All of `lanes` lanes but `share`.
    pub(super) fn beside(share: Option<LaneRange>, lanes: u16, now: Instant) -> Self {
        let all = LaneRange { first: 0, last: lanes as i16 - 1 };
        let ranges = match share {
            None => vec![all],
            Some(share) => {
                let below = (share.first > all.first).then(|| LaneRange { first: all.first, last: share.first - 1 });
                let above = (share.last < all.last).then(|| LaneRange { first: share.last + 1, last: all.last });
                below.into_iter().chain(above).collect()
            }
        };
        let others = |range| Others { stint: Stint::new(range, now), waited: NOTHING, is_adopting: false };
        Self {
            all: Stint::new(all, now),
            others: ranges.into_iter().map(others).collect(),
            look_at: now + INTERVAL,
            is_second: false,
        }
    }

    /// `interval`: to the next look, unless a look saw something and looks again.
    fn look_later(&mut self, interval: Duration, began: Instant, sees_something: bool) {
        self.is_second = sees_something && !self.is_second;
        let interval = if self.is_second { SECOND_LOOK } else { interval };
        self.look_at = Instant::now() + interval.max(began.elapsed() * SHARE);
    }
}

impl Others {
    /// True when what waits waited at the last look as well.
    fn is_left(&mut self, waits: (Option<i64>, bool)) -> bool {
        std::mem::replace(&mut self.waited, waits) == waits && waits != NOTHING
    }
}

impl Worker {
    pub(super) fn are_orphans_due(&self) -> bool {
        self.orphans.as_ref().is_some_and(|orphans| !orphans.others.is_empty() && Instant::now() >= orphans.look_at)
    }

    fn look_for_orphans_later(&mut self, began: Instant, sees_something: bool) {
        let is_off = self.stint.is_none() && self.shared.own_lanes().is_some();
        if let Some(orphans) = &mut self.orphans {
            orphans.look_later(if is_off { INTERVAL_OFF } else { INTERVAL }, began, sees_something);
        }
    }

    /// One look at all lanes.
    pub(super) async fn anything_waits(&mut self, shared: &Shared) -> Result<bool, TurnError> {
        let began = Instant::now();
        let Some(mut orphans) = self.orphans.take() else { return Ok(true) };
        let looked = self.hands(shared)?.look(&mut orphans.all).await;
        self.orphans = Some(orphans);
        let looked = looked?;
        let waits = looked.first.is_some() || looked.due || !looked.is_all;
        if !waits {
            self.look_for_orphans_later(began, false);
        }
        Ok(waits)
    }

    /// One batch of events that nobody works on. Where there was one there may be more: looked for again at once.
    pub(super) async fn adopt(&mut self, shared: &Shared, share: Option<LaneRange>) -> Result<Turn, TurnError> {
        let began = Instant::now();
        let Some(mut orphans) = self.orphans.take() else { return Ok(Turn::Idle) };
        let adopted = self.adopt_of(shared, &mut orphans.others).await;
        let sees_something = orphans.others.iter().any(|others| others.waited != NOTHING);
        self.orphans = Some(orphans);
        let adopted = adopted?;
        self.hands(shared)?.let_go_of_lanes(share).await?;
        if adopted == Turn::Idle {
            self.look_for_orphans_later(began, sees_something);
        }
        Ok(adopted)
    }

    async fn adopt_of(&mut self, shared: &Shared, others: &mut [Others]) -> Result<Turn, TurnError> {
        let mut adopted = Turn::Idle;
        for others in others {
            let looked = self.hands(shared)?.look(&mut others.stint).await?;
            let goes_on = std::mem::take(&mut others.is_adopting);
            if !others.is_left((looked.first, looked.due)) && !goes_on {
                continue;
            }
            others.stint.unlearn();
            if self.hands(shared)?.turn(&mut others.stint, false, false, false).await? == Turn::Worked {
                tracing::debug!(worker = self.index, lanes = %others.stint.range, "worked on lanes that nobody had locked");
                others.is_adopting = true;
                adopted = Turn::Worked;
            }
        }
        Ok(adopted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(share: Option<(i16, i16)>) -> Vec<(i16, i16)> {
        let share = share.map(|(first, last)| LaneRange { first, last });
        let orphans = Orphans::beside(share, 16, Instant::now());
        orphans.others.iter().map(|others| (others.stint.range.first, others.stint.range.last)).collect()
    }

    #[test]
    fn the_lanes_of_others_are_those_below_and_above() {
        assert_eq!(ranges(None), [(0, 15)]);
        assert_eq!(ranges(Some((0, 15))), []);
        assert_eq!(ranges(Some((0, 4))), [(5, 15)]);
        assert_eq!(ranges(Some((5, 9))), [(0, 4), (10, 15)]);
    }

    #[test]
    fn lanes_are_left_when_the_same_event_waits_twice_in_a_row() {
        let mut others = Orphans::beside(None, 16, Instant::now()).others.remove(0);
        assert!(!others.is_left(NOTHING), "nothing waits");
        assert!(!others.is_left(NOTHING), "nothing waits");
        assert!(!others.is_left((Some(5), false)), "it may have come just now");
        assert!(!others.is_left((Some(9), false)), "somebody has moved the first one");
        assert!(others.is_left((Some(9), false)));
        assert!(!others.is_left((None, true)), "a scheduled one is due");
        assert!(others.is_left((None, true)));
    }

    #[test]
    fn a_look_that_sees_something_is_followed_by_one_more() {
        let mut orphans = Orphans::beside(None, 16, Instant::now());
        for is_second in [true, false, true] {
            orphans.look_later(INTERVAL, Instant::now(), true);
            assert_eq!(orphans.is_second, is_second);
        }
        orphans.look_later(INTERVAL, Instant::now(), false);
        assert!(!orphans.is_second);
    }
}
