//! Records that are sent a second time, as they are: a batch at a time, in order, each acknowledged by all in-sync replicas.
//!
//! The producer has the relay's guarantees. After a failure it is dropped with all it holds, and the caller learns which records of
//! the batch are on their topic for sure; the others may be there as well.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, ThreadedProducer};

use crate::config::KafkaSettings;
use crate::sink::broker::{Broker, BrokerDown};
use crate::sink::client::ClientSettings;
use crate::sink::delivery::{Context, Deliveries, Outcome, opaque};

/// Records of a batch, and bytes of their values beyond which it is full.
pub(crate) const BATCH: usize = 500;
pub(crate) const BATCH_BYTES: usize = 8 << 20;

/// How long a batch may wait for its acknowledgements.
const WITHIN: Duration = Duration::from_secs(30);

/// Whether a record is too large for its topic is the broker's to say.
const LARGEST: &str = "100000000";

/// What a record says, byte for byte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    /// In the order in which they were sent; a name may come twice.
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

    /// The first header of that name.
    pub(crate) fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(key, _)| key == name)?.1.as_deref()
    }

    /// The only header of that name from now on, behind all others.
    pub(crate) fn set_header(&mut self, name: &str, value: &str) {
        self.headers.retain(|(key, _)| key != name);
        self.headers.push((name.to_owned(), Some(value.as_bytes().to_vec())));
    }

    /// Bytes of key, value and headers.
    pub(crate) fn len(&self) -> usize {
        let part = |part: &Option<Vec<u8>>| part.as_ref().map_or(0, Vec::len);
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + part(value)).sum();
        part(&self.key) + part(&self.value) + headers
    }
}

/// A record and where it goes.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub(crate) topic: Arc<str>,
    /// By the configured partitioner, if `None`.
    pub(crate) partition: Option<i32>,
    pub(crate) record: Record,
}

/// Not all of a batch was acknowledged.
#[derive(Debug)]
pub(crate) struct Unacknowledged {
    /// Of each record: whether it is on its topic for sure.
    pub(crate) acked: Vec<bool>,
    /// The first that is not.
    pub(crate) first: usize,
    /// What Kafka says against it; `None` when it did not answer in time.
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
    /// What librdkafka finds wrong with the settings; the message may quote one.
    pub(crate) fn new(kafka: &KafkaSettings) -> Result<Self, KafkaError> {
        let settings = ClientSettings::new(kafka, BATCH, BATCH_BYTES);
        // Nobody watches the cluster here: a batch has its own bound.
        let (broker, _) = Broker::new(&settings)?;
        let mut config = settings.config().clone();
        if config.get("message.max.bytes").is_none() {
            config.set("message.max.bytes", LARGEST);
        }
        Ok(Self { config, broker, producer: None, deliveries: Arc::default() })
    }

    /// What the cluster says against writing a topic, if anything.
    ///
    /// # Errors
    /// [`BrokerDown`] when it does not answer.
    pub(crate) async fn topic_error(&self, topic: &str) -> Result<Option<RDKafkaErrorCode>, BrokerDown> {
        self.broker.topic_error(topic).await
    }

    /// Sends a batch. Returns once all of it is acknowledged, or is not going to be.
    ///
    /// # Errors
    /// [`Unacknowledged`]; nothing that was not acknowledged is sent later.
    pub(crate) async fn send(&mut self, batch: &[Outgoing]) -> Result<(), Unacknowledged> {
        let number = self.deliveries.begin(batch.len());
        let queued = self.queue(number, batch);
        let settled = tokio::time::timeout(WITHIN, self.deliveries.all_settled()).await;
        let outcomes = self.deliveries.outcomes();
        let Some(first) = outcomes.iter().position(|outcome| *outcome != Outcome::Acked) else { return Ok(()) };
        // Drops what is queued, off the runtime: librdkafka joins its threads. Late reports of this batch do not count any more.
        if let Some(producer) = self.producer.take() {
            let _ = tokio::task::spawn_blocking(move || drop(producer)).await;
        }
        self.deliveries = Arc::default();
        // The first error is the cause; what was purged after it is not.
        let failed = |outcome: &Outcome| match outcome {
            Outcome::Failed(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight) => None,
            Outcome::Failed(code) => Some(*code),
            _ => None,
        };
        let code = queued.err().or_else(|| outcomes.iter().find_map(failed)).filter(|_| settled.is_ok());
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
            // Nothing goes out behind what did not.
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
                let context = Context { deliveries, suspicions: self.broker.suspicions() };
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
