//! The options of a consumer, and the errors it ends with.

use std::time::Duration;

use rdkafka::error::KafkaError;

use crate::consumer::dead_letter::Reason;

/// The attempts of an event after transient errors, and the pauses between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Attempts, the first included. An outage costs none.
    pub attempts: u32,
    /// The pause before the second attempt. Each further pause is twice as long, and is shortened at random by up to half.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
}

impl Default for Retry {
    /// 10 attempts within about half a minute.
    fn default() -> Self {
        Self { attempts: 10, first_pause: Duration::from_millis(100), longest_pause: Duration::from_secs(10) }
    }
}

/// The treatment of an event whose type has no handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownType {
    /// Skips the event: it is for other consumers.
    #[default]
    Ignore,
    /// Lets the policy decide, with [`Reason::UnknownType`].
    Fail,
}

/// The error with which a consumer does not start, or ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumerError {
    /// The consumer was configured wrongly.
    #[error("the consumer cannot start: {0}")]
    Configuration(String),
    /// The database is away, or `outbox-relay migrate` has not been run on it.
    #[error("the inbox cannot be used: is the database migrated?")]
    Inbox(#[source] sqlx::Error),
    /// Kafka reported an error that a retry does not fix.
    #[error("the consumer cannot go on")]
    Kafka(#[from] KafkaError),
    /// The policy stops the consumer. The event is delivered again.
    #[error("stopped at {topic}/{partition} offset {offset} ({reason}): {error}")]
    Stopped {
        /// The topic of the event.
        topic: String,
        /// The partition of the event.
        partition: i32,
        /// The offset of the event.
        offset: i64,
        /// The kind of failure.
        reason: Reason,
        /// The last error.
        error: String,
    },
    /// A bug: a part of the consumer has ended by itself.
    #[error("a task of the consumer has ended by itself")]
    Task,
}
