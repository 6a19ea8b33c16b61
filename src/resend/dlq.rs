//! Dead letters of consumers: found by cause on any topic, and sent again in the order of their keys.
//!
//! A topic is read from its beginning to where it ends at the start; no group is joined and no offset committed. What has been redriven is
//! written down in the topic itself ([`redrive_log`]).
//!
//! - [`info`]: what a dead letter says of itself
//! - [`filter`]: which dead letters
//! - [`scan`]: reads a topic
//! - [`redrive_log`]: what has been redriven
//! - [`spool`]: records on disk
//! - [`redrive`]: sends them again

pub(crate) mod filter;
pub(crate) mod info;
pub(crate) mod redrive;
pub(crate) mod redrive_log;
pub(crate) mod scan;
pub(crate) mod spool;

use std::io;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// Why a topic could not be looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DlqError {
    /// The text may quote a setting.
    #[error("the Kafka client cannot be made")]
    Client(#[source] KafkaError),
    #[error("Kafka")]
    Kafka(#[from] KafkaError),
    #[error("topic {topic}: {code}")]
    Topic { topic: String, code: RDKafkaErrorCode },
    #[error("partitions {0:?} give no records any more")]
    Stalled(Vec<i32>),
    #[error("a temporary file cannot be written or read")]
    Disk(#[from] io::Error),
}
