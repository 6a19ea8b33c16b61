//! Defines the errors that end a benchmark without metrics.

use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::ConfigError;
use crate::store::settle::SettleError;
use event_outbox::schema::SchemaError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error("the relay cannot run with this configuration")]
    Config(#[from] ConfigError),
    #[error("Postgres")]
    Database(#[from] sqlx::Error),
    #[error("the bench's outbox cannot be made")]
    Schema(#[from] SchemaError),
    #[error("the rows cannot be marked")]
    Settle(#[from] SettleError),
    #[error("Kafka")]
    Kafka(#[from] KafkaError),
    #[error("topic {topic}: {code}")]
    Topic { topic: String, code: RDKafkaErrorCode },
    #[error("a process or a file")]
    System(#[from] std::io::Error),
    #[error("the relay under test failed; its log ends with:\n{log}")]
    RelayEnded { log: String },
    #[error("nothing happened for {within:?} while waiting for {what}{log}")]
    Stalled { what: String, within: Duration, log: String },
    #[error("a thread of the bench ended early")]
    Thread,
    #[error("interrupted")]
    Interrupted,
}
