//! The options of a consumer, and the errors it ends with.

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use crate::consumer::dead_letter::Reason;
use crate::consumer::runtime::failed::Action;

/// The treatment of an event whose type has no handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownType {
    /// Skips the event, because it is for other consumers. The first event of each type is logged, and [`Stats`](super::Stats) counts them.
    #[default]
    Ignore,
    /// Sends the event to the dead letter topic and goes on with the next one, as [`Action::Skip`].
    DeadLetter,
    /// Holds the key of the event, as [`Action::HoldKey`]. Once all members know the type, a redrive applies the events in order.
    Hold,
    /// Ends the consumer, as [`Action::Stop`].
    Stop,
}

impl UnknownType {
    pub(super) fn action(self) -> Option<Action> {
        match self {
            Self::Ignore => None,
            Self::DeadLetter => Some(Action::Skip),
            Self::Hold => Some(Action::HoldKey),
            Self::Stop => Some(Action::Stop),
        }
    }
}

/// The treatment of events that retention removed from a topic before the group read them. They are logged in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lost {
    /// Goes on with the first event that is there.
    #[default]
    GoOn,
    /// Ends the consumer with [`ConsumerError::Lost`] before it applies a later event of the partition. Ends it with
    /// [`ConsumerError::Kafka`] if Kafka does not say whether events were removed.
    Stop,
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
    /// Retention removed events before they were read, and the consumer is set to stop then.
    #[error("events of {topic}/{partition} from offset {from} to before {to} were removed before they were read")]
    Lost {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The offset of the first event that is missing.
        from: i64,
        /// The offset of the first event that is there.
        to: i64,
    },
    /// The operating system does not let this process listen for signals.
    #[error("signals cannot be listened to")]
    Signals(#[source] std::io::Error),
    /// A bug: a part of the consumer has ended by itself.
    #[error("a task of the consumer has ended by itself")]
    Task,
}

/// Turns an error of librdkafka about its settings into one without their values, which may be secret.
pub(super) fn without_values(error: KafkaError) -> ConsumerError {
    match error {
        KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, _, name, _) => {
            ConsumerError::Configuration(format!("librdkafka knows no property `{name}`"))
        }
        KafkaError::ClientConfig(_, _, name, _) => {
            ConsumerError::Configuration(format!("librdkafka refuses the value of `{name}`"))
        }
        other => ConsumerError::Kafka(other),
    }
}
