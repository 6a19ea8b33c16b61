//! Finds events that wait and are older than their topic keeps records. Brokers delete by a record's timestamp, which is the event's own time
//! unless `RELAY_TIMESTAMP=publish` is set: the record is gone soon after its acknowledgement.

use std::time::Duration;

use rdkafka::admin::ConfigEntry;
use rdkafka::error::KafkaError;
use sqlx::PgConnection;

use super::finding::Finding;
use super::kafka::{Cluster, value};
use crate::config::{KafkaSettings, RelaySettings, Timestamp};
use crate::inspect::dedup_window::TopicRetention;
use crate::store::activity::span;
use crate::store::routes::{self, Seen};
use event_outbox::Names;
use event_outbox::code::Code;

const FIX: &str = "set RELAY_TIMESTAMP=publish, or raise retention.ms of the topic until the events are published";

/// A topic, and the events that wait for it.
#[derive(Debug)]
pub(crate) struct Expiring {
    pub(crate) topic: String,
    /// The age of the oldest event.
    age: Duration,
    retention: Duration,
}

impl Expiring {
    /// Returns the topic if the oldest of its waiting events is older than the topic keeps records.
    pub(super) fn new(topic: &str, config: &[ConfigEntry], seen: Seen, relay: &RelaySettings) -> Option<Self> {
        let stamps =
            relay.timestamp == Timestamp::Event && value(config, "message.timestamp.type") != Some("LogAppendTime");
        let Some(TopicRetention::For(retention)) = TopicRetention::from_config(config).filter(|_| stamps) else {
            return None;
        };
        let age = Duration::from_secs_f64(seen.oldest_s.max(0.0));
        (age > *retention).then(|| Self { topic: topic.to_owned(), age, retention: *retention })
    }

    pub(super) fn finding(&self) -> Finding {
        let message = format!(
            "The oldest event that waits for the topic {} is {} old, and the topic keeps records for {} (retention.ms): \
             the broker deletes its record soon after it has acknowledged it.",
            self.topic,
            span(self.age.as_secs_f64()),
            span(self.retention.as_secs_f64()),
        );
        Finding::warning(Code::EventsExpire, message, FIX)
    }

    /// Logs the topic.
    pub(crate) fn log(&self) {
        tracing::warn!(
            code = %Code::EventsExpire,
            topic = self.topic,
            oldest_event_s = self.age.as_secs(),
            retention_s = self.retention.as_secs(),
            consequence = "the broker deletes the records soon after it has acknowledged them",
            next_step = FIX,
            "events are older than their topic keeps"
        );
    }
}

/// Returns the topics of events that wait for longer than `at_least` and are older than their topic keeps records.
///
/// # Errors
/// Any error of the database, or of the cluster.
pub(crate) async fn find(
    conn: &mut PgConnection,
    names: &Names,
    relay: &RelaySettings,
    kafka: &KafkaSettings,
    at_least: Duration,
) -> Result<Vec<Expiring>, FindError> {
    let (topics, _) = routes::routes(conn, names, &relay.topic).await?;
    let old: Vec<_> = topics.into_iter().filter(|(_, seen)| seen.oldest_s >= at_least.as_secs_f64()).collect();
    let mut found = Vec::new();
    if old.is_empty() || relay.timestamp == Timestamp::Publish {
        return Ok(found);
    }
    let Ok(cluster) = Cluster::reach(kafka).await? else { return Ok(found) };
    for (topic, seen) in old {
        let config = cluster.topic_config(&topic).await.unwrap_or_default();
        found.extend(Expiring::new(&topic, &config, seen, relay));
    }
    Ok(found)
}

/// The reason why waiting events cannot be compared with their topics.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FindError {
    #[error("a database error")]
    Database(#[from] sqlx::Error),
    #[error("Kafka does not answer")]
    Kafka(#[from] KafkaError),
}
