//! Begins the consumers of the demos, which are those of the library crate.

use std::time::Duration;

use event_outbox::Names;
use event_outbox::consumer::{Consumer, Retry};
use rdkafka::ClientConfig;
use sqlx::PgPool;

/// The shortest session timeout that brokers allow by default.
pub(super) const SHORTEST_SESSION: Duration = Duration::from_secs(6);

/// Begins a consumer that needs topics and handlers. Its group is named as the schema, which is the demo's own on any server.
pub(super) fn begin(pool: &PgPool, names: &Names, kafka: &ClientConfig) -> Consumer {
    let consumer = Consumer::new(names.schema_raw(), pool.clone())
        .names(names.clone())
        .kafka("fetch.wait.max.ms", "50")
        .retry(Retry { longest_pause: Duration::from_secs(1), ..Retry::default() });
    kafka.config_map().iter().fold(consumer, |consumer, (name, value)| consumer.kafka(*name, *value))
}
