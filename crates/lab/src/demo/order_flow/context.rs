//! The context of a service of the order flow: its tables, its brokers, its topics.

use std::time::Duration;

use event_outbox::Names;
use event_outbox::consumer::{Consumer, Retry};
use rdkafka::ClientConfig;
use sqlx::postgres::PgPool;

/// Holds what a service runs with: its tables, its brokers, its topics.
pub(super) struct ServiceContext {
    pub(super) pool: PgPool,
    pub(super) names: Names,
    pub(super) kafka: ClientConfig,
    pub(super) topics: String,
    pub(super) session_timeout: Duration,
}

impl ServiceContext {
    /// Begins a consumer. Its group is named as the service's schema, which is its own on any server.
    pub(super) fn consumer(&self) -> Consumer {
        let group = self.names.schema_raw();
        let consumer = Consumer::new(group, self.pool.clone())
            .names(self.names.clone())
            // One instance of a fixed name: when it is killed and starts again within the session, nobody shares out anew.
            .kafka("group.instance.id", group)
            .kafka("session.timeout.ms", self.session_timeout.as_millis().to_string())
            .kafka("heartbeat.interval.ms", (self.session_timeout / 5).as_millis().to_string())
            .kafka("fetch.wait.max.ms", "50")
            .retry(Retry { longest_pause: Duration::from_secs(1), ..Retry::default() })
            .dead_letter_topic({
                let dead_letters = self.topic(super::DEAD_LETTERS);
                move |_| dead_letters.clone()
            });
        self.kafka.config_map().iter().fold(consumer, |consumer, (name, value)| consumer.kafka(*name, *value))
    }

    /// Returns the topic of an entity type's events.
    pub(super) fn topic(&self, entity_type: &str) -> String {
        self.topics.replace("{entity_type}", entity_type)
    }
}
