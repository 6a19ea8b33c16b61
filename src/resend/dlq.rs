//! Finds dead letters of consumers by cause, on any topic, and sends them again in the order of their keys.
//!
//! A topic is read from its beginning to its end at the start. The reader joins no group and commits no offset. The topic itself holds a
//! log of redriven dead letters ([`redrive_log`]).
//!
//! - [`info`]: reads the headers of a dead letter
//! - [`filter`]: selects dead letters
//! - [`scan`]: reads a topic
//! - [`redrive_log`]: logs which dead letters were redriven
//! - [`spool`]: keeps records on disk
//! - [`redrive`]: sends dead letters again

pub(crate) mod filter;
pub(crate) mod info;
pub(crate) mod redrive;
pub(crate) mod redrive_log;
pub(crate) mod scan;
pub(crate) mod spool;

use std::io;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// The reason why a topic could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DlqError {
    /// librdkafka rejects the settings. Its own text may quote a secret.
    #[error("the Kafka client cannot be made")]
    Client(#[source] KafkaError),
    #[error("a Kafka error")]
    Kafka(#[from] KafkaError),
    #[error("topic {topic}: {code}")]
    Topic { topic: String, code: RDKafkaErrorCode },
    #[error("partitions {0:?} deliver no more records")]
    Stalled(Vec<i32>),
    #[error("a temporary file cannot be written or read")]
    Disk(#[from] io::Error),
}
