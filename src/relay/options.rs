//! Defines the settings of a relay: one struct per outbox, no globals.

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
    /// The relay's name in logs and in the registry of relays.
    pub name: String,
    /// The connection to the database with the outbox.
    pub database: PgConnectOptions,
    /// The outbox's names.
    pub names: Names,
    /// The settings of clients that publish.
    pub(crate) kafka: ClientSettings,
    /// The settings of clients that only read.
    pub(crate) brokers: KafkaSettings,
    /// The format in which an event becomes a record.
    pub envelope: Envelope,
    /// The topic of an event whose row names none.
    pub topic: TopicTemplate,
    /// The `source` of events whose row names none.
    pub source: Option<String>,
    /// The delivery guarantee: at least once or exactly once.
    pub delivery: Delivery,
    /// The treatment of events that cannot be sent by their own fault.
    pub on_poison: OnPoison,
    /// The retention of published events and of the inbox.
    pub retention: RetentionSettings,
    /// Worker tasks, each with its own connection and producer.
    pub workers: usize,
    /// The most events per claim.
    pub batch_size: usize,
    /// The most payload bytes per claim.
    pub batch_bytes: usize,
    /// The longest pause between polls.
    pub poll_interval: Duration,
    /// The longest time that a batch may wait for its acknowledgements.
    pub publish_timeout: Duration,
    /// The longest time that a drain may take.
    pub shutdown_timeout: Duration,
    /// The longest time that opening a connection may take.
    pub connect_timeout: Duration,
    /// The interval between two status lines.
    pub status_interval: Duration,
    /// The interval between two heartbeats.
    pub heartbeat_interval: Duration,
    /// The time after which a stall is logged: events wait and none of them has moved.
    pub stall_after: Duration,
    /// True when the admin server may be asked for the metrics of the whole outbox.
    pub serves_metrics: bool,
    /// The metrics and the health state of this relay.
    pub(crate) telemetry: Arc<Telemetry>,
    /// False behind a pooler that cannot keep prepared statements.
    pub prepared_statements: bool,
}

impl RelayOptions {
    /// Builds the options of the configured relay; `None` when Kafka's settings were not loaded.
    pub fn new(settings: &Settings) -> Option<Self> {
        let (relay, database, outbox) = (settings.relay.clone(), &settings.database, &settings.outbox);
        // A limit above the address space is as good as no limit.
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

    /// Returns true when events are published in Kafka transactions.
    pub(crate) fn is_exactly_once(&self) -> bool {
        self.delivery == Delivery::ExactlyOnce
    }

    /// Returns the longest time that a transaction of Postgres or Kafka may be open: the limit for the brokers, and time for the statements
    /// around it.
    pub(crate) fn longest_transaction(&self) -> Duration {
        self.publish_timeout + DATABASE_TIMEOUT
    }

    /// Returns the name of the relay's sessions in `pg_stat_activity`.
    pub(crate) fn application_name(&self) -> String {
        format!("outbox-relay {}", self.name)
    }

    /// Returns the silence after which a relay counts as gone.
    pub(crate) fn alive_for(&self) -> Duration {
        self.heartbeat_interval * 3
    }
}
