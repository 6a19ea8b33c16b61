//! Decides whether an attempt that failed is followed by another one, and when.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;

use crate::consumer::dead_letter::Reason;
use crate::consumer::runtime::delivery::Event;
use crate::consumer::runtime::failed::{Action, Failed, Kind};

/// The attempts with an event, and the pauses between them.
///
/// ```
/// use std::time::Duration;
/// use event_outbox::consumer::{Action, Retry};
///
/// let retry = Retry {
///     attempts: 20,
///     first_pause: Duration::from_secs(1),
///     longest_pause: Duration::from_secs(600),
///     set_aside: true,
///     then: Some(Action::HoldKey),
/// };
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Attempts, the first included. An outage costs none.
    pub attempts: u32,
    /// The pause before the second attempt. Each further pause is twice as long, and is shortened at random by up to half.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// If true, the key of the event is set aside during the pauses: the event waits in the consumer's database, later events of its key
    /// wait behind it in order, and all other keys go on. If false, the later events of its partition wait as well, or with
    /// [`Consumer::concurrency`](super::Consumer::concurrency) those of its worker. An event without a key is never set aside.
    pub set_aside: bool,
    /// The action after the last attempt. `None` leaves it to the [`Policy`](super::Policy).
    pub then: Option<Action>,
}

impl Default for Retry {
    /// 10 attempts within about half a minute; the partition waits meanwhile.
    fn default() -> Self {
        Self {
            attempts: 10,
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(10),
            set_aside: false,
            then: None,
        }
    }
}

impl Retry {
    /// Makes no second attempt.
    pub fn none() -> Self {
        Self { attempts: 1, ..Self::default() }
    }

    /// Returns the pause after this attempt.
    pub(super) fn pause(&self, attempt: u32) -> Duration {
        let doubled = 1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
        let pause = self.first_pause.saturating_mul(doubled.max(1)).min(self.longest_pause);
        rand::rng().random_range(pause / 2..=pause)
    }
}

type ByError = Arc<dyn Fn(&Event, &Failed) -> Option<Retry> + Send + Sync>;

/// The retries of a consumer: by error, by event type, and the default.
#[derive(Clone, Default)]
pub(super) struct Retries {
    pub(super) default: Retry,
    pub(super) by_type: HashMap<String, Retry>,
    pub(super) by_error: Option<ByError>,
}

/// The step after a failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// Another attempt, as often as it takes.
    Outage,
    /// The event may be the cause.
    Failed(AfterFailure),
}

/// The step after a failed attempt that was no outage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AfterFailure {
    /// Another attempt, after [`Retry::pause`].
    Retry(Retry),
    /// No other attempt. `then` is the action, if the retry has one.
    GiveUp { reason: Reason, then: Option<Action> },
}

impl Retries {
    /// Decides what follows the attempt. The function for errors comes first and may also retry a permanent error or bound an outage.
    pub(super) fn next(&self, event: &Event, failed: &Failed, attempt: u32) -> Next {
        let by_error = self.by_error.as_ref().and_then(|by_error| by_error(event, failed));
        let (retry, reason) = match (by_error, failed.kind) {
            (Some(retry), Kind::Permanent) => (retry, Reason::Permanent),
            (Some(retry), Kind::Outage | Kind::Transient) => (retry, Reason::Exhausted),
            (None, Kind::Outage) => return Next::Outage,
            (None, Kind::Permanent) => {
                return Next::Failed(AfterFailure::GiveUp { reason: Reason::Permanent, then: None });
            }
            (None, Kind::Transient) => {
                (self.by_type.get(&event.event_type).unwrap_or(&self.default).clone(), Reason::Exhausted)
            }
        };
        Next::Failed(if attempt < retry.attempts {
            AfterFailure::Retry(retry)
        } else {
            AfterFailure::GiveUp { reason, then: retry.then }
        })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::event::EventId;

    fn retried(retry: Retry) -> Next {
        Next::Failed(AfterFailure::Retry(retry))
    }

    fn given_up(reason: Reason, then: Option<Action>) -> Next {
        Next::Failed(AfterFailure::GiveUp { reason, then })
    }

    fn event(event_type: &str) -> Event {
        Event {
            event_id: EventId(Uuid::from_u128(1)),
            event_type: event_type.to_owned(),
            event_version: 1,
            sequence: None,
            correlation_id: String::new(),
            key: None,
            topic: "t".to_owned(),
            partition: 0,
            offset: 0,
            headers: Arc::default(),
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_no_attempt_overflows() {
        let retry = Retry { longest_pause: Duration::from_secs(2), ..Retry::default() };
        for (attempt, whole) in [(1, 100), (2, 200), (5, 1_600), (6, 2_000), (33, 2_000), (u32::MAX, 2_000)] {
            let (pause, whole) = (retry.pause(attempt), Duration::from_millis(whole));
            assert!(whole / 2 <= pause && pause <= whole, "attempt {attempt}: {pause:?}");
        }
    }

    #[test]
    fn the_error_wins_over_the_type_and_the_type_over_the_default() {
        let retry = |attempts| Retry { attempts, ..Retry::default() };
        let retries = Retries {
            default: retry(2),
            by_type: [("A".to_owned(), retry(3))].into(),
            by_error: Some(Arc::new(move |_, failed| failed.to_string().contains("busy").then(|| retry(4)))),
        };
        let next = |event_type, failed: Failed| retries.next(&event(event_type), &failed, 1);
        assert_eq!(next("A", Failed::transient("x")), retried(retry(3)));
        assert_eq!(next("B", Failed::transient("x")), retried(retry(2)));
        assert_eq!(next("A", Failed::permanent("x")), given_up(Reason::Permanent, None));
        assert_eq!(next("A", Failed::outage("x")), Next::Outage);
        for failed in [Failed::transient("busy"), Failed::permanent("busy"), Failed::outage("busy")] {
            assert_eq!(next("A", failed), retried(retry(4)));
        }
    }

    #[test]
    fn the_last_attempt_is_followed_by_the_action_of_the_retry() {
        let retry = Retry { attempts: 2, then: Some(Action::HoldKey), ..Retry::default() };
        let retries = Retries { default: retry.clone(), ..Retries::default() };
        let (event, failed) = (event("A"), Failed::transient("x"));
        assert_eq!(retries.next(&event, &failed, 1), retried(retry));
        let over = given_up(Reason::Exhausted, Some(Action::HoldKey));
        assert_eq!(retries.next(&event, &failed, 2), over);
        assert_eq!(retries.next(&event, &failed, 3), over);
    }
}
