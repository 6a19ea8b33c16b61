//! The options of a consumer, and the errors it ends with.

use std::time::Duration;

use rdkafka::error::KafkaError;

use crate::consumer::dead_letter::Reason;

/// How often and how soon an event is tried again after a transient error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Attempts, the first included. An outage costs none.
    pub attempts: u32,
    /// Before the second attempt; doubled for each further one, and shortened by up to half at random.
    pub first_pause: Duration,
    /// No pause is longer.
    pub longest_pause: Duration,
}

impl Default for Retry {
    /// 10 attempts within about half a minute.
    fn default() -> Self {
        Self { attempts: 10, first_pause: Duration::from_millis(100), longest_pause: Duration::from_secs(10) }
    }
}

/// What becomes of an event whose type no handler knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownType {
    /// It is for others.
    #[default]
    Ignore,
    /// The policy decides, with [`Reason::UnknownType`].
    Fail,
}

/// Why a consumer does not start, or has ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumerError {
    /// It was built wrongly.
    #[error("the consumer cannot start: {0}")]
    Configuration(String),
    /// The database is away, or `outbox-relay migrate` has not been run on it.
    #[error("the inbox cannot be used: is the database migrated?")]
    Inbox(#[source] sqlx::Error),
    /// Kafka, for good.
    #[error("the consumer cannot go on")]
    Kafka(#[from] KafkaError),
    /// The policy says so. The event is delivered again.
    #[error("stopped at {topic}/{partition} offset {offset} ({reason}): {error}")]
    Stopped {
        /// Where the event is.
        topic: String,
        /// Where the event is.
        partition: i32,
        /// Where the event is.
        offset: i64,
        /// What went wrong.
        reason: Reason,
        /// The last error.
        error: String,
    },
    /// A bug: a part of the consumer has ended by itself.
    #[error("a task of the consumer has ended by itself")]
    Task,
}
