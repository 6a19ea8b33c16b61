//! Subscribes to the topics of a consumer and to their retry topics, as soon as these exist.
//!
//! `outbox-relay dlq redrive` sends dead letters to `<topic>.<group>.retry`. A group that has no dead letters yet needs no such topic.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaResult;
use rdkafka::types::RDKafkaRespErr;

use crate::code::Code;
use crate::consumer::dead_letter::DeadLetter;
use crate::consumer::runtime::member::Member;
use crate::notice::Notice;
use crate::route::check_topic;

/// The interval between two looks for topics that are missing.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Time limit for a look. It blocks the polling thread.
const LOOK_WITHIN: Duration = Duration::from_secs(1);

pub(super) struct Subscription {
    topics: Vec<String>,
    /// Retry topics that do not exist yet.
    absent: Vec<String>,
    /// Topics that were reported as missing.
    reported: Vec<String>,
    looked_at: Instant,
}

impl Subscription {
    /// Subscribes to the topics that are there. Blocks while Kafka is asked.
    pub(super) fn start(consumer: &BaseConsumer<Member>, group: &str, topics: &[String]) -> KafkaResult<Self> {
        let retry = topics.iter().map(|topic| DeadLetter::retry_topic(topic, group));
        let absent = retry.filter(|topic| check_topic(topic).is_ok() && !topics.contains(topic)).collect();
        let looked_at = Instant::now();
        let mut subscription = Self { topics: topics.to_vec(), absent, reported: Vec::new(), looked_at };
        subscription.look(consumer);
        subscription.subscribe(consumer)?;
        Ok(subscription)
    }

    /// Looks from time to time whether a missing topic exists by now.
    pub(super) fn refresh(&mut self, consumer: &BaseConsumer<Member>) -> KafkaResult<()> {
        let complete = self.absent.is_empty() && self.reported.is_empty();
        if complete || self.looked_at.elapsed() < LOOK_EVERY {
            return Ok(());
        }
        let found = self.look(consumer);
        self.looked_at = Instant::now();
        if found { self.subscribe(consumer) } else { Ok(()) }
    }

    fn subscribe(&self, consumer: &BaseConsumer<Member>) -> KafkaResult<()> {
        consumer.subscribe(&self.topics.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Asks Kafka for each topic once. Reports missing topics by name, once. Returns true if a retry topic is there that was not before.
    fn look(&mut self, consumer: &BaseConsumer<Member>) -> bool {
        let missing = |topic: &String| is_missing(consumer, topic);
        let absent = std::mem::take(&mut self.absent);
        // Without an answer a retry topic counts as absent, because a subscription to a missing topic is reported as an outage.
        let (absent, there): (Vec<_>, Vec<_>) = absent.into_iter().partition(|topic| missing(topic) != Some(false));
        self.absent = absent;
        for topic in &self.topics {
            let reported = self.reported.iter().position(|reported| reported == topic);
            match (missing(topic), reported) {
                (Some(true), None) => {
                    tracing::warn!(
                        code = %Code::SourceMissing,
                        topic,
                        next_step = "create the topic; the consumer reads it within seconds",
                        "a topic does not exist"
                    );
                    self.reported.push(topic.clone());
                }
                (Some(false), Some(reported)) => {
                    tracing::info!(notice = %Notice::Resolved, code = %Code::SourceMissing, topic, "a topic exists now");
                    self.reported.swap_remove(reported);
                }
                _ => {}
            }
        }
        let found = !there.is_empty();
        self.topics.extend(there);
        found
    }
}

/// Returns whether the topic is missing; `None` if Kafka does not say.
pub(super) fn is_missing(consumer: &BaseConsumer<Member>, topic: &str) -> Option<bool> {
    let metadata = consumer.fetch_metadata(Some(topic), LOOK_WITHIN).ok()?;
    let found = metadata.topics().iter().find(|found| found.name() == topic)?;
    match found.error() {
        None => Some(false),
        Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => Some(true),
        Some(_) => None,
    }
}
