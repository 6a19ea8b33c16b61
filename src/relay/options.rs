//! What a relay is told: one struct per outbox, no globals.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

use crate::config::{Delivery, KafkaSettings, OnPoison, RetentionSettings, Settings};
use crate::observe::Telemetry;
use crate::sink::client::ClientSettings;
use crate::store::session::DATABASE_TIMEOUT;
use event_outbox::Names;
use event_outbox::envelope::Envelope;
use event_outbox::route::TopicTemplate;

/// The settings of a relay. Sizes are in events and bytes.
pub struct RelayOptions {
    /// The relay's name in logs and in the registry.
    pub name: String,
    /// Where the outbox is.
    pub database: PgConnectOptions,
    /// The outbox's names.
    pub names: Names,
    /// How to reach Kafka.
    pub(crate) kafka: ClientSettings,
    /// The same, for clients that only look.
    pub(crate) brokers: KafkaSettings,
    /// How an event becomes a record.
    pub envelope: Envelope,
    /// The topic of an event whose row names none.
    pub topic: TopicTemplate,
    /// The `source` of events whose row names none.
    pub source: Option<String>,
    /// How often an event may be on its topic.
    pub delivery: Delivery,
    /// What happens to poison.
    pub on_poison: OnPoison,
    /// How long what is done with is kept.
    pub retention: RetentionSettings,
    /// Tasks that claim, each with a connection and a producer of its own.
    pub workers: usize,
    /// Events per claim.
    pub batch_size: usize,
    /// Payload bytes per claim.
    pub batch_bytes: usize,
    /// Longest pause between polls.
    pub poll_interval: Duration,
    /// How long a batch may wait for its acks.
    pub publish_timeout: Duration,
    /// How long a drain may take.
    pub shutdown_timeout: Duration,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// Between two status lines.
    pub status_interval: Duration,
    /// Between two heartbeats.
    pub heartbeat_interval: Duration,
    /// How long events may wait without any of them moving before it is logged.
    pub stall_after: Duration,
    /// True when somebody may ask for the metrics of the whole outbox.
    pub serves_metrics: bool,
    /// What the relay reports about itself.
    pub(crate) telemetry: Arc<Telemetry>,
    /// False behind a pooler that cannot keep prepared statements.
    pub prepared_statements: bool,
}

impl RelayOptions {
    /// The options of the configured relay; `None` when Kafka's settings were not loaded.
    pub fn new(settings: &Settings) -> Option<Self> {
        let (relay, database, outbox) = (settings.relay.clone(), &settings.database, &settings.outbox);
        // A batch larger than the address space is as good as no bound.
        let batch_bytes = usize::try_from(relay.batch_bytes).unwrap_or(usize::MAX);
        Some(Self {
            kafka: ClientSettings::new(settings.kafka.as_ref()?, relay.batch_size, batch_bytes),
            brokers: settings.kafka.clone()?,
            database: database.connect_options(),
            names: Names::new(&outbox.schema, &outbox.table, &outbox.processed_table),
            connect_timeout: database.connect_timeout,
            prepared_statements: database.prepared_statements,
            name: relay.name,
            envelope: relay.envelope,
            topic: relay.topic,
            source: relay.source,
            delivery: relay.delivery,
            on_poison: relay.on_poison,
            retention: relay.retention,
            workers: relay.workers,
            batch_size: relay.batch_size,
            batch_bytes,
            poll_interval: relay.poll_interval,
            publish_timeout: relay.publish_timeout,
            shutdown_timeout: relay.shutdown_timeout,
            status_interval: relay.status_interval,
            heartbeat_interval: relay.heartbeat_interval,
            stall_after: relay.stall_after,
            serves_metrics: settings.admin.address.is_some(),
            telemetry: Telemetry::new(),
        })
    }

    pub(crate) fn telemetry(&self) -> Arc<Telemetry> {
        Arc::clone(&self.telemetry)
    }

    /// Events are published in transactions.
    pub(crate) fn is_exactly_once(&self) -> bool {
        self.delivery == Delivery::ExactlyOnce
    }

    /// How long a transaction may be open, of Postgres or of Kafka: the brokers' bound, and time for the statements around it.
    pub(crate) fn longest_transaction(&self) -> Duration {
        self.publish_timeout + DATABASE_TIMEOUT
    }

    /// How the relay's sessions call themselves in `pg_stat_activity`.
    pub(crate) fn application_name(&self) -> String {
        format!("outbox-relay {}", self.name)
    }

    /// A relay not heard of for this long is gone.
    pub(crate) fn alive_for(&self) -> Duration {
        self.heartbeat_interval * 3
    }
}
