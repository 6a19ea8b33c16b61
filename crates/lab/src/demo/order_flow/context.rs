//! The context of a service of the order flow: its tables, its brokers, its topics.

use std::time::Duration;

use event_outbox::Names;
use event_outbox::consumer::Consumer;
use rdkafka::ClientConfig;
use sqlx::postgres::PgPool;

use crate::demo::consumer;

/// Holds what a service runs with: its tables, its brokers, its topics.
pub(super) struct ServiceContext {
    pub(super) pool: PgPool,
    pub(super) names: Names,
    pub(super) kafka: ClientConfig,
    pub(super) topics: String,
    pub(super) session_timeout: Duration,
}

impl ServiceContext {
    /// Begins a consumer.
    pub(super) fn consumer(&self) -> Consumer {
        consumer::begin(&self.pool, &self.names, &self.kafka)
            // One instance of a fixed name: when it is killed and starts again within the session, nobody shares out anew.
            .kafka("group.instance.id", self.names.schema_raw())
            .kafka("session.timeout.ms", self.session_timeout.as_millis().to_string())
            .kafka("heartbeat.interval.ms", (self.session_timeout / 5).as_millis().to_string())
            .dead_letter_topic({
                let dead_letters = self.topic(super::DEAD_LETTERS);
                move |_| dead_letters.clone()
            })
    }

    /// Returns the topic of an entity type's events.
    pub(super) fn topic(&self, entity_type: &str) -> String {
        self.topics.replace("{entity_type}", entity_type)
    }
}
