//! Answers probes from memory. The relay's tasks write the state and a probe only reads it, so a probe waits for nothing and costs nothing.
//!
//! States: unready (starting) -> ready -> unready (a server is unavailable, a right is missing) or stalled (events wait and none moves) ->
//! ready -> unready (stopping).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::fault::shortened;
use event_outbox::code::Code;

/// Why events do not go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cause {
    /// The relay is starting.
    Starting,
    /// The relay is shutting down.
    Stopping,
    /// A worker's loop does not move.
    Loop,
    /// Postgres is unavailable, or refuses the relay's statements.
    Database,
    /// The relay's user lacks a right.
    Right,
    /// The brokers are unavailable.
    Brokers,
    /// An operator has paused publishing.
    Paused,
    /// Another session has locked rows, lanes or the table.
    Lock,
    /// A topic cannot be written.
    Topic,
    /// An event that was refused holds its entity.
    Held,
    /// The brokers can be reached, but acknowledge nothing.
    Acks,
    /// The cause is none of the others.
    Unknown,
}

impl Cause {
    /// The causes of a stall, for the metric.
    pub(crate) const OF_STALL: [Self; 9] = [
        Self::Database,
        Self::Right,
        Self::Brokers,
        Self::Paused,
        Self::Lock,
        Self::Topic,
        Self::Held,
        Self::Acks,
        Self::Unknown,
    ];

    /// Returns the word that logs, bodies and labels use.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Stopping => "stopping",
            Self::Loop => "loop",
            Self::Database => "database",
            Self::Right => "right",
            Self::Brokers => "brokers",
            Self::Paused => "paused",
            Self::Lock => "lock",
            Self::Topic => "topic",
            Self::Held => "held",
            Self::Acks => "acks",
            Self::Unknown => "unknown",
        }
    }
}

/// A cause with texts for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Reason {
    pub(crate) cause: Cause,
    /// The problem.
    pub(crate) message: String,
    /// The operator's next step.
    pub(crate) next_step: String,
    /// The runbook code, if the cause has its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<Code>,
}

impl Reason {
    pub(crate) fn new(cause: Cause, message: impl AsRef<str>, next_step: impl AsRef<str>) -> Self {
        let [message, next_step] = [message.as_ref(), next_step.as_ref()].map(|text| shortened(text).into_owned());
        Self { cause, message, next_step, code: None }
    }

    /// Sets the runbook code.
    pub(crate) fn coded(self, code: Code) -> Self {
        Self { code: Some(code), ..self }
    }
}

/// The readiness of the relay to claim and produce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    Unready(Reason),
    /// Events wait and none has moved for `RELAY_STALL_AFTER`.
    Stalled(Reason),
}

/// The body of the answer to a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Answer {
    pub(crate) state: &'static str,
    /// The problem; `None` if there is none.
    #[serde(flatten)]
    pub(crate) reason: Option<Reason>,
    /// The seconds for which the state has lasted.
    pub(crate) for_s: u64,
}

impl Answer {
    pub(crate) fn is_fine(&self) -> bool {
        self.reason.is_none()
    }
}

/// The value of `last` while a loop waits for something that may take any time.
const AT_REST: u64 = u64::MAX;

/// The time at which a loop last moved.
#[derive(Debug)]
struct Beat {
    of: String,
    /// The longest time of one round.
    longest: Duration,
    /// The time of the last move, in milliseconds since the start.
    last: AtomicU64,
}

/// The handle with which a loop reports that it moves. After it is dropped, the loop is not expected to move any more.
#[derive(Debug)]
pub(crate) struct Pulse {
    started: Instant,
    beat: Arc<Beat>,
}

impl Pulse {
    /// Reports that a round begins.
    pub(crate) fn beat(&self) {
        self.beat.last.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Reports that the loop waits for something that may take any time.
    pub(crate) fn rest(&self) {
        self.beat.last.store(AT_REST, Ordering::Relaxed);
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.rest();
    }
}

/// The health of one relay.
#[derive(Debug)]
pub(crate) struct Health {
    started: Instant,
    readiness: Mutex<(Readiness, Instant)>,
    beats: Mutex<Vec<Arc<Beat>>>,
}

impl Default for Health {
    fn default() -> Self {
        let started = Instant::now();
        let starting = Reason::new(Cause::Starting, "the relay is starting", "wait; its log shows what it waits for");
        let readiness = Mutex::new((Readiness::Unready(starting), started));
        Self { started, readiness, beats: Mutex::default() }
    }
}

impl Health {
    /// Registers a loop whose rounds take at most `longest` each.
    pub(crate) fn pulse(&self, of: String, longest: Duration) -> Pulse {
        let beat = Arc::new(Beat { of, longest, last: AtomicU64::new(AT_REST) });
        self.beats.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&beat));
        let pulse = Pulse { started: self.started, beat };
        pulse.beat();
        pulse
    }

    fn readiness(&self) -> MutexGuard<'_, (Readiness, Instant)> {
        self.readiness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the answer to probes from now on.
    pub(crate) fn set(&self, readiness: Readiness) {
        let mut current = self.readiness();
        let since = if word(&current.0) == word(&readiness) { current.1 } else { Instant::now() };
        *current = (readiness, since);
    }

    /// Returns the answer to the readiness probe: whether the relay can claim and produce, and does so.
    pub(crate) fn ready(&self) -> Answer {
        let (readiness, since) = self.readiness().clone();
        let state = word(&readiness);
        let reason = match readiness {
            Readiness::Ready => None,
            Readiness::Unready(reason) | Readiness::Stalled(reason) => Some(reason),
        };
        Answer { state, reason, for_s: since.elapsed().as_secs() }
    }

    /// Returns the answer to the liveness probe: whether the loops move. Unavailable servers do not count, because a restart would not
    /// bring them back.
    pub(crate) fn live(&self) -> Answer {
        self.live_after(self.started.elapsed())
    }

    fn live_after(&self, up: Duration) -> Answer {
        let beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        let stuck = beats.iter().find_map(|beat| {
            let last = beat.last.load(Ordering::Relaxed);
            let silent = up.saturating_sub(Duration::from_millis(last));
            (last != AT_REST && silent > beat.longest).then_some((beat, silent))
        });
        match stuck {
            None => Answer { state: "live", reason: None, for_s: up.as_secs() },
            Some((beat, silent)) => {
                let (of, silent, longest) = (&beat.of, silent.as_secs(), beat.longest.as_secs());
                let message = format!("{of} has not moved for {silent} s; a round takes {longest} s at most");
                let reason =
                    Reason::new(Cause::Loop, message, "restart the relay; no event is lost. Report this with the log");
                Answer { state: "stuck", reason: Some(reason), for_s: silent }
            }
        }
    }
}

fn word(readiness: &Readiness) -> &'static str {
    match readiness {
        Readiness::Ready => "ready",
        Readiness::Unready(_) => "unready",
        Readiness::Stalled(_) => "stalled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_loop_that_does_not_move_is_stuck_and_one_that_rests_or_has_ended_is_not() {
        let health = Health::default();
        let (one, two) = (health.pulse("worker 0".to_owned(), MINUTE), health.pulse("worker 1".to_owned(), MINUTE));
        assert!(health.live_after(MINUTE).is_fine());
        two.rest();
        let stuck = health.live_after(3 * MINUTE);
        assert_eq!(stuck.reason.clone().map(|reason| reason.cause), Some(Cause::Loop));
        let json = serde_json::to_string(&stuck).expect("JSON");
        assert!(json.starts_with(r#"{"state":"stuck","cause":"loop","message":"worker 0 has not moved"#), "{json}");
        drop(one);
        assert!(health.live_after(3 * MINUTE).is_fine());
    }

    #[test]
    fn the_code_of_a_reason_is_in_the_body() {
        let health = Health::default();
        let reason = Reason::new(Cause::Acks, "records are not acknowledged", "bring the replicas back");
        health.set(Readiness::Stalled(reason.coded(Code::TopicMinIsr)));
        let json = serde_json::to_string(&health.ready()).expect("JSON");
        assert!(json.contains(r#""next_step":"bring the replicas back","code":"OR-3106""#), "{json}");
    }

    #[test]
    fn a_reason_of_any_length_is_cut_and_stays_text() {
        assert_eq!(shortened("short"), "short");
        let long = Reason::new(Cause::Unknown, "ü".repeat(100_000), "none");
        assert!(long.message.len() <= 603 && long.message.ends_with("ü..."), "{}", long.message);
    }

    #[test]
    fn a_relay_is_unready_until_it_says_otherwise() {
        let health = Health::default();
        assert_eq!(health.ready().reason.map(|reason| reason.cause), Some(Cause::Starting));
        health.set(Readiness::Ready);
        let json = serde_json::to_string(&health.ready()).expect("JSON");
        assert_eq!(json, r#"{"state":"ready","for_s":0}"#);
    }

    #[test]
    fn the_word_of_a_cause_is_the_one_in_json() {
        for cause in Cause::OF_STALL {
            assert_eq!(serde_json::to_string(&cause).expect("JSON"), format!("{:?}", cause.word()));
        }
    }
}
