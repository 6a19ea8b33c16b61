//! One idempotent producer. A worker gives it one batch at a time; after any failure the whole producer is dropped, and with it
//! everything queued, so that a new one sends the unacknowledged suffix again in order.

use std::sync::Arc;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};

use crate::envelope::Envelope;
use crate::event::StoredEvent;
use crate::sink::broker::Suspicions;
use crate::sink::client::ClientSettings;
use crate::sink::delivery::{Context, Deliveries, opaque};

/// Headers of an event without any of its own: room for the usual correlation and trace headers.
const USUAL_HEADERS: usize = 8;

/// A generation of a worker's producer.
pub(crate) struct KafkaProducer {
    producer: ThreadedProducer<Context>,
    deliveries: Arc<Deliveries>,
    batch: u32,
    scratch: Vec<u8>,
}

impl KafkaProducer {
    /// # Errors
    /// What librdkafka finds wrong with the settings; the message may quote one.
    pub(crate) fn new(settings: &ClientSettings, suspicions: Suspicions) -> Result<Self, KafkaError> {
        let deliveries = Arc::new(Deliveries::default());
        let context = Context { deliveries: Arc::clone(&deliveries), suspicions };
        let producer = settings.config().create_with_context(context)?;
        Ok(Self { producer, deliveries, batch: 0, scratch: Vec::new() })
    }

    /// Begins a batch of `records` records.
    pub(crate) fn begin(&mut self, records: usize) {
        self.batch = self.deliveries.begin(records);
    }

    /// Queues record `slot` of the batch.
    ///
    /// # Errors
    /// librdkafka refused it at once, for example because it is too large. The record counts as failed.
    pub(crate) fn send(
        &mut self,
        slot: usize,
        topic: &str,
        event: &StoredEvent<'_>,
        envelope: Envelope,
        source: Option<&str>,
    ) -> Result<(), RDKafkaErrorCode> {
        let mut headers = Some(OwnedHeaders::new_with_capacity(USUAL_HEADERS));
        envelope.headers(event, source, &mut |key, value| {
            headers = headers.take().map(|headers| headers.insert(Header { key, value: Some(value) }));
        });
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, opaque(self.batch, slot))
            // Zero would mean "now", and librdkafka knows no time before 1970.
            .timestamp(event.created_at.timestamp_millis().max(1));
        record.headers = headers;
        record.key = event.entity_id.map(str::as_bytes);
        record.payload = envelope.value(event, source, &mut self.scratch);
        self.producer.send(record).map_err(|(error, record)| {
            let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
            self.deliveries.refuse(record.delivery_opaque, code);
            code
        })
    }

    /// Leaves record `slot` of the batch out.
    pub(crate) fn skip(&self, slot: usize, code: RDKafkaErrorCode) {
        self.deliveries.refuse(opaque(self.batch, slot), code);
    }

    /// The state of the batch.
    pub(crate) fn deliveries(&self) -> &Deliveries {
        &self.deliveries
    }

    /// Why the producer is broken for good, if it is.
    pub(crate) fn fatal(&self) -> Option<RDKafkaErrorCode> {
        self.producer.client().fatal_error().map(|(code, _)| code)
    }

    /// Drops what is queued and in flight, off the runtime: librdkafka joins its threads.
    pub(crate) fn retire(self) {
        tokio::task::spawn_blocking(move || drop(self));
    }
}
