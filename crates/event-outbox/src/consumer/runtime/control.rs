//! Pauses a running consumer and bounds its rate, without leaving the group.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use crate::consumer::dead_letter::DeadLetter;

/// The share of a second's events that are handed to a batch handler at once when there is a rate.
const BURSTS_PER_SECOND: f64 = 10.0;

/// The longest pause between two events.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// Pauses a running member and bounds its rate. It stays in its group and keeps its partitions. Clones control the same member.
///
/// All of it is about this member: an application with several members tells each of them. After a restart nothing is paused.
#[derive(Debug, Clone)]
pub struct Control {
    group: String,
    state: Arc<watch::Sender<State>>,
    /// The time at which the next event may begin.
    free_at: Arc<Mutex<Option<Instant>>>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct State {
    everything: bool,
    topics: BTreeSet<String>,
    /// Events a second.
    rate: Option<f64>,
}

impl Control {
    pub(super) fn new(group: &str) -> Self {
        Self { group: group.to_owned(), state: Arc::default(), free_at: Arc::default() }
    }

    /// Begins no further event of the topic, of its retry topic, or of its keys that were set aside. Events at work end.
    pub fn pause(&self, topic: &str) {
        let topics = self.with_retry_topic(topic);
        self.state.send_modify(|state| state.topics.extend(topics));
    }

    /// Begins no further event. Events at work end.
    pub fn pause_all(&self) {
        self.state.send_modify(|state| state.everything = true);
    }

    /// Goes on with the topic, unless everything is paused.
    pub fn resume(&self, topic: &str) {
        let topics = self.with_retry_topic(topic);
        self.state.send_modify(|state| state.topics.retain(|paused| !topics.contains(paused)));
    }

    /// Goes on with everything, topics that were paused by name included.
    pub fn resume_all(&self) {
        self.state.send_modify(|state| {
            state.everything = false;
            state.topics.clear();
        });
    }

    /// Bounds the events that this member begins in a second, over all its partitions, such as `control.rate(50.0)`. Each event counts
    /// once, however many attempts it takes. `None`, or a number that is not positive, removes the bound.
    pub fn rate(&self, per_second: impl Into<Option<f64>>) {
        let rate = per_second.into().filter(|rate| rate.is_finite() && *rate > 0.0);
        self.state.send_modify(|state| state.rate = rate);
    }

    /// Returns true if everything or a topic is paused.
    pub fn is_any_paused(&self) -> bool {
        let state = self.state.borrow();
        state.everything || !state.topics.is_empty()
    }

    /// Returns true if events of the topic are not begun.
    pub fn is_paused(&self, topic: &str) -> bool {
        self.state.borrow().pauses(topic)
    }

    /// Returns the topics that are paused by name; `None` if everything is paused.
    pub(super) fn paused_topics(&self) -> Option<Vec<String>> {
        let state = self.state.borrow();
        (!state.everything).then(|| state.topics.iter().cloned().collect())
    }

    fn with_retry_topic(&self, topic: &str) -> [String; 2] {
        [topic.to_owned(), DeadLetter::retry_topic(topic, &self.group)]
    }

    /// Returns the most events that may begin at once.
    pub(super) fn burst(&self) -> usize {
        self.state.borrow().rate.map_or(usize::MAX, |rate| (rate / BURSTS_PER_SECOND).max(1.0) as usize)
    }

    /// Waits until an event of the topic may begin.
    pub(super) async fn resumed(&self, topic: &str) {
        let mut state = self.state.subscribe();
        // The sender is not gone, because it is in `self`.
        let _ = state.wait_for(|state| !state.pauses(topic)).await;
    }

    /// Waits until so many events may begin by the rate. A new rate holds at once.
    pub(super) async fn admit(&self, events: usize) {
        let mut state = self.state.subscribe();
        if state.borrow_and_update().rate.is_none() {
            return;
        }
        let mut free_at = self.free_at.lock().await;
        loop {
            let rate = state.borrow_and_update().rate;
            let Some(rate) = rate else { break };
            let begun = free_at.unwrap_or_else(Instant::now).max(Instant::now());
            let changed = state.wait_for(|state| state.rate != Some(rate));
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(begun) => {
                    let pause = Duration::try_from_secs_f64(events as f64 / rate).unwrap_or(LONGEST_PAUSE);
                    *free_at = Some(begun + pause.min(LONGEST_PAUSE));
                    return;
                }
                // The pause after the last event was computed with the old rate.
                _ = changed => *free_at = None,
            }
        }
        *free_at = None;
    }
}

impl State {
    fn pauses(&self, topic: &str) -> bool {
        self.everything || self.topics.contains(topic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_paused_with_its_retry_topic_and_resumed_alone_or_with_all() {
        let control = Control::new("g");
        control.pause("a");
        assert!(control.is_paused("a") && control.is_paused("a.g.retry") && !control.is_paused("b"));
        assert_eq!(control.paused_topics(), Some(vec!["a".to_owned(), "a.g.retry".to_owned()]));
        control.pause_all();
        control.resume("a");
        assert!(control.is_paused("a") && control.is_paused("b") && control.paused_topics().is_none());
        control.resume_all();
        assert!(!control.is_any_paused());
        control.pause("a");
        control.resume("a");
        assert!(!control.is_any_paused());
    }

    #[test]
    fn a_rate_that_is_none_does_not_bound() {
        let control = Control::new("g");
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            control.rate(rate);
            assert_eq!(control.burst(), usize::MAX);
        }
        control.rate(50.0);
        assert_eq!(control.burst(), 5);
        control.rate(0.5);
        assert_eq!(control.burst(), 1);
    }

    #[tokio::test]
    async fn events_begin_at_the_rate_and_a_new_rate_holds_at_once() {
        let (control, began) = (Control::new("g"), Instant::now());
        control.rate(200.0);
        for _ in 0..11 {
            control.admit(1).await;
        }
        assert!(began.elapsed() >= Duration::from_millis(50));
        control.rate(0.001);
        control.admit(1).await;
        let waiting = tokio::spawn({
            let control = control.clone();
            async move { control.admit(1).await }
        });
        tokio::task::yield_now().await;
        control.pause("a");
        assert!(!waiting.is_finished());
        control.rate(None);
        waiting.await.expect("no panic");
    }
}
