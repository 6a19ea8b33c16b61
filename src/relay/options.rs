//! What a relay is told: one struct per outbox, no globals.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

use crate::envelope::Envelope;
use crate::route::TopicTemplate;
use crate::sink::client::ClientSettings;
use crate::store::Names;

/// What happens to an event that cannot be sent by its own fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnPoison {
    /// It goes DEAD, its successors go on.
    #[default]
    DeadLetter,
    /// Its entity waits until an operator has retried or discarded it.
    HoldEntity,
}

/// The settings of a relay. Sizes are in events and bytes.
pub struct RelayOptions {
    /// The relay's name in logs and in the register.
    pub name: String,
    /// Where the outbox is.
    pub database: PgConnectOptions,
    /// The outbox's names.
    pub names: Names,
    /// How to reach Kafka.
    pub(crate) kafka: ClientSettings,
    /// How an event becomes a record.
    pub envelope: Envelope,
    /// The topic of an event whose row names none.
    pub topic: TopicTemplate,
    /// The `source` of events whose row names none.
    pub source: Option<String>,
    /// What happens to poison.
    pub on_poison: OnPoison,
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
    /// False behind a pooler that cannot keep prepared statements.
    pub prepared_statements: bool,
}

impl RelayOptions {
    /// How the relay's sessions call themselves in `pg_stat_activity`.
    pub(crate) fn application_name(&self) -> String {
        format!("outbox-relay {}", self.name)
    }

    /// A relay not heard of for this long is gone.
    pub(crate) fn alive_for(&self) -> Duration {
        self.heartbeat_interval * 3
    }
}
