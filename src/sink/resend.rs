//! Sends existing records again, unchanged: one batch at a time, in order, each record acknowledged by all in-sync replicas.
//!
//! The producer has the relay's guarantees. After a failure it is dropped with its queue. The caller learns which records of the batch are
//! certainly on their topic; the others may be there as well.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, ThreadedProducer};

use crate::config::KafkaSettings;
use crate::sink::broker::{Broker, BrokerDown};
use crate::sink::client::{ClientSettings, is_debugged};
use crate::sink::delivery::{Context, Deliveries, Outcome, opaque};
use crate::sink::topics::Answer;

/// The most records of a batch, and the bytes of values at which a batch is full.
pub(crate) const BATCH: usize = 500;
pub(crate) const BATCH_BYTES: usize = 8 << 20;

/// The time limit for the acknowledgements of a batch.
const WITHIN: Duration = Duration::from_secs(30);

/// The largest record. The limit is high because the broker decides whether a record is too large for its topic.
const LARGEST: &str = "100000000";

/// The contents of a record, byte for byte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    /// The headers, in the order in which they were sent. A name may occur twice.
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970.
    pub(crate) timestamp: Option<i64>,
}

impl Record {
    pub(crate) fn from_message(message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers().map_or_else(Vec::new, |headers| {
            headers.iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
        });
        Self {
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers,
            timestamp: message.timestamp().to_millis(),
        }
    }

    /// Returns the first header with this name.
    pub(crate) fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(key, _)| key == name)?.1.as_deref()
    }

    /// Sets a header and moves it behind all others. It replaces all headers of the same name.
    pub(crate) fn set_header(&mut self, name: &str, value: &str) {
        self.headers.retain(|(key, _)| key != name);
        self.headers.push((name.to_owned(), Some(value.as_bytes().to_vec())));
    }

    /// Returns the bytes of key, value and headers.
    pub(crate) fn len(&self) -> usize {
        let part = |part: &Option<Vec<u8>>| part.as_ref().map_or(0, Vec::len);
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + part(value)).sum();
        part(&self.key) + part(&self.value) + headers
    }
}

/// A record and its destination.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub(crate) topic: Arc<str>,
    /// The partition; `None` if the configured partitioner decides.
    pub(crate) partition: Option<i32>,
    pub(crate) record: Record,
}

/// The error of a batch that was not acknowledged completely.
#[derive(Debug)]
pub(crate) struct Unacknowledged {
    /// True for each record that is certainly on its topic.
    pub(crate) acked: Vec<bool>,
    /// The index of the first record that was not acknowledged.
    pub(crate) first: usize,
    /// Kafka's error; `None` if it did not answer in time.
    pub(crate) code: Option<RDKafkaErrorCode>,
}

/// The producer, and the client that asks about topics.
pub(crate) struct Resend {
    config: ClientConfig,
    broker: Arc<Broker>,
    producer: Option<ThreadedProducer<Context>>,
    deliveries: Arc<Deliveries>,
}

impl Resend {
    /// # Errors
    /// The error that librdkafka finds in the settings. Its message may quote a setting.
    pub(crate) fn new(kafka: &KafkaSettings) -> Result<Self, KafkaError> {
        let settings = ClientSettings::new(kafka, BATCH, BATCH_BYTES);
        // No task watches the cluster here, because a batch has its own time limit.
        let (broker, _) = Broker::new(&settings)?;
        let mut config = settings.config();
        if config.get("message.max.bytes").is_none() {
            config.set("message.max.bytes", LARGEST);
        }
        Ok(Self { config, broker, producer: None, deliveries: Arc::default() })
    }

    /// Returns the cluster's error for a topic, if there is one.
    ///
    /// # Errors
    /// [`BrokerDown`] if the cluster does not answer.
    pub(crate) async fn topic_error(&self, topic: &str) -> Result<Option<RDKafkaErrorCode>, BrokerDown> {
        self.broker.topic_error(topic).await
    }

    /// Returns the number of partitions of a topic; `None` if the cluster does not tell it.
    pub(crate) async fn partitions(&self, topic: &str) -> Option<i32> {
        let answers = self.broker.describe(vec![topic.to_owned()]).await.ok()?;
        answers.into_iter().find_map(|(_, answer)| match answer {
            Answer::Exists { partitions } => Some(partitions).filter(|partitions| *partitions > 0),
            Answer::Error(_) => None,
        })
    }

    /// Sends a batch. Returns when all of it is acknowledged, or cannot be acknowledged any more.
    ///
    /// # Errors
    /// [`Unacknowledged`]. A record that was not acknowledged is not sent later.
    pub(crate) async fn send(&mut self, batch: &[Outgoing]) -> Result<(), Unacknowledged> {
        let number = self.deliveries.begin(batch.len());
        let queued = self.queue(number, batch);
        let settled = tokio::time::timeout(WITHIN, self.deliveries.all_settled()).await;
        let outcomes = self.deliveries.outcomes();
        let Some(first) = outcomes.iter().position(|outcome| *outcome != Outcome::Acked) else { return Ok(()) };
        let retried = self.deliveries.retried_error();
        // Drops the queue outside the async runtime, because librdkafka joins its threads. Late reports of this batch are ignored from now
        // on.
        if let Some(producer) = self.producer.take() {
            let _ = tokio::task::spawn_blocking(move || drop(producer)).await;
        }
        self.deliveries = Arc::default();
        // The first error is the cause; records purged after it do not count.
        let failed = |outcome: &Outcome| match outcome {
            Outcome::Failed(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight) => None,
            Outcome::Failed(code) => Some(*code),
            _ => None,
        };
        let code = queued.err().or_else(|| outcomes.iter().find_map(failed)).filter(|_| settled.is_ok()).or(retried);
        let acked = outcomes.iter().map(|outcome| *outcome == Outcome::Acked).collect();
        Err(Unacknowledged { acked, first, code })
    }

    fn queue(&mut self, number: u32, batch: &[Outgoing]) -> Result<(), RDKafkaErrorCode> {
        let code = |error: &KafkaError| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        let mut failed = None;
        for (slot, outgoing) in batch.iter().enumerate() {
            if failed.is_none() {
                failed = self.queue_one(opaque(number, slot), outgoing).err().map(|error| code(&error));
            }
            // No record is sent after one that could not be queued.
            if failed.is_some() {
                self.deliveries.refuse(opaque(number, slot), RDKafkaErrorCode::PurgeQueue);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn queue_one(&mut self, opaque: usize, outgoing: &Outgoing) -> Result<(), KafkaError> {
        let producer = match &self.producer {
            Some(producer) => producer,
            None => {
                let deliveries = Arc::clone(&self.deliveries);
                let is_debugged = is_debugged(&self.config);
                let context = Context { deliveries, suspicions: self.broker.suspicions(), is_debugged };
                self.producer.insert(self.config.create_with_context(context)?)
            }
        };
        let Record { key, value, headers, timestamp } = &outgoing.record;
        let mut sent = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&outgoing.topic, opaque);
        sent.partition = outgoing.partition;
        sent.key = key.as_deref();
        sent.payload = value.as_deref();
        sent.timestamp = *timestamp;
        if !headers.is_empty() {
            let own = OwnedHeaders::new_with_capacity(headers.len());
            let all = headers.iter().fold(own, |all, (key, value)| all.insert(Header { key, value: value.as_deref() }));
            sent.headers = Some(all);
        }
        producer.send(sent).map_err(|(error, _)| error)
    }
}
