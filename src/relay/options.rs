//! Defines the settings of a relay: one struct per outbox, no globals.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;

use crate::config::{DatabaseSettings, Delivery, KafkaSettings, RelaySettings, Settings};
use crate::observe::Telemetry;
use crate::sink::client::ClientSettings;
use crate::store::connect::{self, Purpose};
use crate::store::session::DATABASE_TIMEOUT;
use event_outbox::Names;

/// The settings of a relay, and what is made of them.
pub struct RelayOptions {
    /// How it works.
    pub relay: RelaySettings,
    /// Where the outbox is.
    pub database: DatabaseSettings,
    /// The database at which the relay is woken by writers; `None` if it only polls.
    pub wake_up: Option<DatabaseSettings>,
    /// The outbox's names.
    pub names: Names,
    /// The settings of clients that publish.
    pub(crate) kafka: ClientSettings,
    /// The settings of clients that only read.
    pub(crate) brokers: KafkaSettings,
    /// True when the relay migrates the outbox at its start.
    pub migrates: bool,
    /// True when somebody may ask for the metrics of the whole outbox.
    pub serves_metrics: bool,
    /// The metrics and the health state of this relay.
    pub(crate) telemetry: Arc<Telemetry>,
}

impl RelayOptions {
    /// Builds the options of the configured relay; `None` when Kafka's settings were not loaded.
    pub fn new(settings: &Settings) -> Option<Self> {
        let (relay, outbox, brokers) = (settings.relay.clone(), &settings.outbox, settings.kafka.clone()?);
        Some(Self {
            kafka: ClientSettings::new(&brokers, relay.batch_size, relay.batch_bytes),
            brokers,
            relay,
            database: settings.database.clone(),
            wake_up: settings.wake_up.clone(),
            names: Names::new(&outbox.schema, &outbox.table, &outbox.processed_table),
            migrates: false,
            serves_metrics: settings.admin.address.is_some(),
            telemetry: Telemetry::new(),
        })
    }

    /// Opens a session that calls itself `application` in `pg_stat_activity`.
    pub(crate) async fn connect(&self, application: &str) -> Result<PgConnection, sqlx::Error> {
        connect::connect(&self.database, application, Purpose::Write).await
    }

    pub(crate) fn telemetry(&self) -> Arc<Telemetry> {
        Arc::clone(&self.telemetry)
    }

    /// Returns true when events are published in Kafka transactions.
    pub(crate) fn is_exactly_once(&self) -> bool {
        self.relay.delivery == Delivery::ExactlyOnce
    }

    /// Returns the longest time that a transaction of Postgres or Kafka may be open: the limit for the brokers, and time for the statements
    /// around it.
    pub(crate) fn longest_transaction(&self) -> Duration {
        self.relay.publish_timeout + DATABASE_TIMEOUT
    }

    /// Returns the name of the relay's sessions in `pg_stat_activity`.
    pub(crate) fn application_name(&self) -> String {
        format!("outbox-relay {}", self.relay.name)
    }
}
