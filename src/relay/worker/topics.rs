//! Asks about topics before they are used, and holds their events while the topics cannot be written.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;

use crate::fault::Class;
use crate::lane::hold::{HoldKind, HoldValue};
use crate::relay::health::outage::Component;
use crate::relay::worker::context::WorkerContext;
use crate::relay::worker::lane_assignment::LaneAssignment;
use crate::relay::worker::outcome::{Plan, RowOutcome, Sent};
use crate::sink::delivery::Outcome;
use crate::sink::topics::{self, Closure, TopicState};
use event_outbox::code::Code;
use event_outbox::notice::Notice;

/// The interval between checks of the holds' causes, which are made from memory. With many holds the checks are rarer, so that they take
/// little of the time.
const CAUSES_INTERVAL: Duration = Duration::from_millis(100);
const CAUSE_TIME: Duration = Duration::from_micros(50);

/// The longest time that a cycle waits for the state of topics that it does not know. The cycle is in a transaction meanwhile. Events of
/// topics without an answer are held until there is one.
const ASKING_TIME: Duration = Duration::from_millis(250);

/// The most topics that get their own log line when they are closed at once. More than this share one line.
const LOGGED_EACH: usize = 5;

/// Returns the name of a topic that cannot be written in [the obstacles](crate::relay::obstacles::Obstacles).
pub(crate) fn topic_obstacle(topic: &str) -> String {
    format!("topic {topic}")
}

impl WorkerContext<'_> {
    /// Marks the holds that have lost their cause as releasing: a walk publishes the events that they kept. Works from memory, and for
    /// locked events from what this transaction could lock.
    pub(super) fn refresh_causes(&self, assignment: &mut LaneAssignment, now: Instant) {
        let holds = u32::try_from(assignment.holds.iter().count()).unwrap_or(u32::MAX);
        let interval = CAUSES_INTERVAL.max(CAUSE_TIME.saturating_mul(holds));
        if holds == 0 || assignment.causes_checked.is_some_and(|checked| now - checked < interval) {
            return;
        }
        assignment.causes_checked = Some(now);
        let topics = self.states_of_held_topics(assignment);
        let (pauses, in_doubt, mut other_reasons) = (&assignment.pauses, &assignment.in_doubt, Vec::new());
        for (index, held) in assignment.holds.iter_mut() {
            let is_paused = match &held.hold.value {
                HoldValue::Topic(topic) => pauses.blocks_topic(topic),
                HoldValue::Entity { entity_type, entity_id } => pauses.blocks_entity(entity_type.as_deref(), entity_id),
                HoldValue::Partition { topic, .. } => pauses.blocks_topic(topic),
                HoldValue::Row(_) => false,
            };
            let is_in_doubt = in_doubt.iter().any(|records| records.are_of(held.lane, &held.hold.value));
            let is_over = !is_in_doubt
                && match (held.hold.kind, &held.hold.value) {
                    (HoldKind::Topic, HoldValue::Topic(topic)) => match topics.get(topic) {
                        Some(TopicState::Writable) => true,
                        Some(TopicState::Closed(Closure { why, .. })) if *why != held.hold.reason => {
                            other_reasons.push((index, why.clone()));
                            false
                        }
                        _ => false,
                    },
                    (HoldKind::Poison, _) => held.hold.released,
                    (HoldKind::Locked, _) => held.is_releasing,
                    (HoldKind::Paused | HoldKind::Topic, _) => true,
                };
            held.is_releasing = is_over && !is_paused;
            if held.hold.kind == HoldKind::Locked && held.look.is_none() {
                held.look_later(now);
            }
        }
        for (index, why) in other_reasons {
            if let Some(held) = assignment.holds.get_mut(index) {
                held.hold.reason = why;
            }
        }
    }

    fn states_of_held_topics(&self, assignment: &LaneAssignment) -> HashMap<String, TopicState> {
        let held = assignment.holds.iter().filter_map(|(_, held)| match (&held.hold.value, held.hold.kind) {
            (HoldValue::Topic(topic), HoldKind::Topic) => Some(topic.clone()),
            _ => None,
        });
        let held: BTreeSet<String> = held.collect();
        if held.is_empty() {
            return HashMap::new();
        }
        let states = self.shared.topics.states(&held.into_iter().collect::<Vec<_>>());
        let closed = states.iter().filter_map(|(topic, state)| match state {
            TopicState::Closed(closure) => Some((topic.clone(), closure.clone())),
            TopicState::Writable | TopicState::Unknown => None,
        });
        let mut closed: Vec<_> = closed.collect();
        self.log_closed(&mut closed);
        states
    }

    /// Returns the topics of a batch that cannot be written, with the reason.
    pub(super) async fn closed_topics(
        &mut self,
        assignment: &LaneAssignment,
        topics: &[String],
    ) -> HashMap<String, String> {
        // Nothing is sent to a paused topic, so its state is not asked for.
        let is_open = |topic: &&String| assignment.pauses.blocks_topic(topic) || self.shared.topics.is_known(topic);
        let unknown: Vec<String> = topics.iter().filter(|topic| !is_open(topic)).cloned().collect();
        let mut closed = HashMap::new();
        if unknown.is_empty() {
            return closed;
        }
        let mut newly_closed = Vec::new();
        for (topic, state) in self.shared.topics.resolve(&unknown, ASKING_TIME).await {
            match state {
                TopicState::Writable => {}
                TopicState::Unknown => drop(closed.insert(topic, "the cluster has not answered yet".to_owned())),
                TopicState::Closed(closure) => {
                    closed.insert(topic.clone(), closure.why.clone());
                    newly_closed.push((topic, closure));
                }
            }
        }
        self.log_closed(&mut newly_closed);
        closed
    }

    /// Returns the number of partitions of each topic in which a row of the batch names a partition that the topic does not have.
    pub(super) async fn topics_with_too_few_partitions(
        &self,
        assignment: &LaneAssignment,
        plan: &Plan<'_>,
        closed: &HashMap<String, String>,
    ) -> HashMap<String, i32> {
        let topics = &self.shared.topics;
        let is_sent = |topic: &str| !closed.contains_key(topic) && !assignment.pauses.blocks_topic(topic);
        let is_known = |topic: &str, named: i32| topics.partitions(topic).is_some_and(|count| named < count);
        let doubtful: HashMap<&String, i32> =
            plan.named().filter(|(topic, named)| is_sent(topic) && !is_known(topic, *named)).collect();
        if doubtful.is_empty() {
            return HashMap::new();
        }
        let names: Vec<String> = doubtful.keys().copied().cloned().collect();
        let mut counts = topics.count_again(&names, ASKING_TIME).await;
        counts.retain(|topic, count| doubtful.get(topic).is_some_and(|named| named >= count));
        counts
    }

    pub(super) fn topic_refused(&self, topic: &str, code: RDKafkaErrorCode) {
        self.shared.topics.refused(topic, code);
        self.log_closed(&mut [(topic.to_owned(), topics::closed(code))]);
    }

    /// Logs one line for each topic. If a mistake of the application has named many topics, logs one line for all.
    fn log_closed(&self, closed: &mut [(String, Closure)]) {
        closed.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let blocks = |(topic, closure): &&(String, Closure)| {
            self.shared.obstacles.block_by(Component::Topics, &topic_obstacle(topic), &closure.why, closure.fault)
        };
        let new: Vec<_> = closed.iter().filter(blocks).collect();
        self.shared.options.telemetry.metrics.failed(Class::Destination, new.len() as u64);
        match new.as_slice() {
            [] => {}
            [(topic, Closure { why: reason, .. }), ..] if new.len() > LOGGED_EACH => {
                let topics = new.len();
                let next_step = "look at entity_type and topic of the newest events, and at RELAY_TOPIC";
                tracing::warn!(
                    code = %Code::TopicClosed,
                    notice = %Notice::TopicClosed,
                    topics,
                    topic,
                    reason,
                    consequence = "their events are held",
                    next_step,
                    "many topics cannot be written"
                );
            }
            few => {
                for (topic, Closure { why: reason, fault }) in few {
                    let (code, next_step) = (fault.code, fault.next_step);
                    tracing::warn!(
                        code = %code,
                        notice = %Notice::TopicClosed,
                        topic,
                        reason,
                        consequence = "its events are held",
                        next_step,
                        "a topic cannot be written"
                    );
                }
            }
        }
    }

    /// Logs the end of a topic's incident: a record was acknowledged on the topic.
    pub(super) fn log_reopened(&self, sent: &Sent, reports: &[Outcome]) {
        let mut last = usize::MAX;
        for outcome in &sent.outcomes {
            let RowOutcome::Sent { slot, topic, .. } = *outcome else { continue };
            if topic == last || reports.get(slot) != Some(&Outcome::Acked) {
                continue;
            }
            last = topic;
            let name = &sent.topics[topic];
            self.shared.topics.acknowledged(name);
            if self.shared.obstacles.unblock(Component::Topics, &topic_obstacle(name)) {
                tracing::info!(notice = %Notice::TopicReopened, topic = name, "the topic can be written again");
            }
        }
    }
}
