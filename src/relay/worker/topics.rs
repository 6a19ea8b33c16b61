//! Topics: asked about before they are used, held while they cannot be written.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;

use crate::fault::Class;
use crate::lane::hold::{HoldCause, HoldValue};
use crate::observe::code::Code;
use crate::relay::worker::context::{CycleError, WorkerContext};
use crate::relay::worker::lane_assignment::LaneAssignment;
use crate::relay::worker::outcome::{RowOutcome, Sent};
use crate::sink::delivery::Outcome;
use crate::sink::topics::TopicState;

/// How often the causes of holds are looked at again: from memory.
const CAUSES_INTERVAL: Duration = Duration::from_millis(100);

/// How often a topic that is held is asked for.
const TOPIC_INTERVAL: Duration = Duration::from_secs(2);

/// How long a cycle may ask for topics it does not know; events of the others are held until they are known.
const ASKING_TIME: Duration = Duration::from_secs(1);

impl WorkerContext<'_> {
    /// Asks for topics that are held. Outside of any transaction.
    pub(super) async fn ask_for_held_topics(&mut self, assignment: &mut LaneAssignment) -> Result<(), CycleError> {
        if assignment.topics_checked.elapsed() < TOPIC_INTERVAL {
            return Ok(());
        }
        let mut topics: Vec<&str> = held_topics(assignment).collect();
        topics.sort_unstable();
        topics.dedup();
        let began = Instant::now();
        for topic in topics {
            if began.elapsed() >= ASKING_TIME {
                break;
            }
            self.shared.topics.check(&self.shared.broker, topic, true).await?;
        }
        assignment.topics_checked = Instant::now();
        assignment.causes_checked = None;
        Ok(())
    }

    /// Finds out which holds have lost their cause: a walk publishes what they kept. From memory, and for locked events from what this
    /// transaction could lock.
    pub(super) fn refresh_causes(&self, assignment: &mut LaneAssignment, now: Instant) {
        if assignment.causes_checked.is_some_and(|checked| now - checked < CAUSES_INTERVAL) {
            return;
        }
        assignment.causes_checked = Some(now);
        let pauses = &assignment.pauses;
        for (_, held) in assignment.holds.iter_mut() {
            let is_paused = match &held.hold.value {
                HoldValue::Topic(topic) => pauses.blocks_topic(topic),
                HoldValue::Entity { entity_type, entity_id } => {
                    pauses.blocks_entity(entity_type.as_deref(), entity_id)
                }
                HoldValue::Row(_) => false,
            };
            held.is_releasing = !is_paused
                && match (held.hold.cause, &held.hold.value) {
                    (HoldCause::Topic, HoldValue::Topic(topic)) => self.shared.topics.is_known(topic),
                    (HoldCause::Poison, _) => held.hold.released,
                    (HoldCause::Locked, _) => held.is_releasing,
                    (HoldCause::Paused | HoldCause::Topic, _) => true,
                };
            if held.hold.cause == HoldCause::Locked && held.look.is_none() {
                held.look_later(now);
            }
        }
    }

    /// Of the topics of a batch, those that cannot be written, with the reason.
    pub(super) async fn closed_topics(
        &mut self,
        assignment: &LaneAssignment,
        topics: &[String],
    ) -> Result<HashMap<String, String>, CycleError> {
        let began = Instant::now();
        let mut closed = HashMap::new();
        for topic in topics {
            if assignment.pauses.blocks_topic(topic) || self.shared.topics.is_known(topic) {
                // Nothing is sent to a paused topic, so nothing is asked.
            } else if began.elapsed() >= ASKING_TIME {
                closed.insert(topic.clone(), "the cluster has not been asked for it yet".to_owned());
            } else if let TopicState::Closed(why) = self.shared.topics.check(&self.shared.broker, topic, false).await? {
                self.log_closed(topic, &why);
                closed.insert(topic.clone(), why);
            }
        }
        Ok(closed)
    }

    pub(super) fn topic_refused(&self, topic: &str, code: RDKafkaErrorCode) {
        self.shared.topics.refused(topic);
        self.log_closed(topic, &crate::sink::topics::closed(code));
    }

    fn log_closed(&self, topic: &str, why: &str) {
        if self.shared.block(&format!("topic {topic}"), why) {
            self.shared.options.vitals.metrics.failed(Class::Destination, 1);
            tracing::warn!(code = %Code::TopicClosed, topic, reason = why, "topic cannot be written: its events are held");
        }
    }

    /// The end of a topic's incident: something was acknowledged on it.
    pub(super) fn log_reopened(&self, sent: &Sent, reports: &[Outcome]) {
        let mut last = usize::MAX;
        for outcome in &sent.outcomes {
            let RowOutcome::Sent { slot, topic } = *outcome else { continue };
            if topic == last || reports.get(slot) != Some(&Outcome::Acked) {
                continue;
            }
            last = topic;
            let name = &sent.topics[topic];
            self.shared.topics.acknowledged(name);
            if self.shared.unblock(&format!("topic {name}")) {
                tracing::info!(topic = name, "topic can be written again");
            }
        }
    }
}

/// Topics whose events wait for them.
fn held_topics(assignment: &LaneAssignment) -> impl Iterator<Item = &str> {
    assignment.holds.iter().filter_map(|(_, held)| match (&held.hold.value, held.hold.cause) {
        (HoldValue::Topic(topic), HoldCause::Topic) if !held.is_releasing => Some(topic.as_str()),
        _ => None,
    })
}
