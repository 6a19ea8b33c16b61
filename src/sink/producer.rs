//! One idempotent producer. A worker gives it one batch at a time; after any failure the whole producer is dropped, and with it
//! everything queued, so that a new one sends the unacknowledged suffix again in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, PurgeConfig};

use crate::envelope::Envelope;
use crate::event::StoredEvent;
use crate::sink::broker::Suspicions;
use crate::sink::delivery::{Context, Deliveries, opaque};
use crate::sink::transactions::{self, Offsets, TransactionError};

/// Headers of an event without any of its own: room for the usual correlation and trace headers.
const USUAL_HEADERS: usize = 8;

/// How long the thread that reports listens before it looks whether it is still wanted.
const REPORT_WAIT: Duration = Duration::from_millis(100);

/// A generation of a worker's producer.
pub(crate) struct KafkaProducer {
    producer: Arc<BaseProducer<Context>>,
    reporter: Reporter,
    deliveries: Arc<Deliveries>,
    batch: u32,
    scratch: Vec<u8>,
    in_transaction: bool,
}

impl KafkaProducer {
    /// # Errors
    /// What librdkafka finds wrong with the settings; the message may quote one.
    pub(crate) fn new(config: &ClientConfig, suspicions: Suspicions) -> Result<Self, KafkaError> {
        let deliveries = Arc::new(Deliveries::default());
        let context = Context { deliveries: Arc::clone(&deliveries), suspicions };
        let producer: Arc<BaseProducer<Context>> = Arc::new(config.create_with_context(context)?);
        let reporter = Reporter::start(Arc::clone(&producer), Arc::clone(&deliveries))?;
        Ok(Self { producer, reporter, deliveries, batch: 0, scratch: Vec::new(), in_transaction: false })
    }

    /// Makes this the only producer of its transactional id: what another one has open is rolled back.
    ///
    /// # Errors
    /// Any error of the client. The producer is of no use then.
    pub(crate) async fn init_transactions(&self, within: Duration) -> Result<(), TransactionError> {
        transactions::init(Arc::clone(&self.producer), within).await
    }

    /// Begins a transaction unless one is begun. Nothing reaches the brokers before the first record does.
    ///
    /// # Errors
    /// Any error of the client.
    pub(crate) fn begin_transaction(&mut self) -> Result<(), KafkaError> {
        if !self.in_transaction {
            self.producer.begin_transaction()?;
            self.in_transaction = true;
        }
        Ok(())
    }

    /// Commits what was sent since, with the progress.
    ///
    /// # Errors
    /// Any error of the client: it may be committed all the same.
    pub(crate) async fn commit_transaction(
        &mut self,
        offsets: Offsets,
        within: Duration,
    ) -> Result<(), TransactionError> {
        self.in_transaction = false;
        transactions::commit(Arc::clone(&self.producer), offsets, within).await
    }

    /// Begins a batch of `records` records.
    pub(crate) fn begin(&mut self, records: usize) {
        self.batch = self.deliveries.begin(records);
        self.reporter.thread.thread().unpark();
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
        self.reporter.retired.store(true, Ordering::Relaxed);
        // What is dropped is reported, which is soon done: there is no need to wait for the brokers.
        self.producer.purge(PurgeConfig::default().queue().inflight());
        self.reporter.thread.thread().unpark();
        tokio::task::spawn_blocking(move || {
            // It has nothing to tell but that it panicked, which the panic hook has told.
            let _ = self.reporter.thread.join();
            drop(self.producer);
        });
    }
}

/// The thread that takes librdkafka's reports. It sleeps while no record is open: rdkafka spins through the last millisecond of each
/// wait for an event, and its own threaded producer, which waits all the time, takes most of an idle relay's CPU.
struct Reporter {
    retired: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Reporter {
    fn start(producer: Arc<BaseProducer<Context>>, deliveries: Arc<Deliveries>) -> Result<Self, KafkaError> {
        let retired = Arc::new(AtomicBool::new(false));
        let unwanted = Arc::clone(&retired);
        let report = move || {
            while !unwanted.load(Ordering::Relaxed) {
                if deliveries.are_settled() {
                    thread::park();
                } else {
                    producer.poll(REPORT_WAIT);
                }
            }
        };
        let thread = thread::Builder::new().name("kafka reports".to_owned()).spawn(report);
        let thread =
            thread.map_err(|error| KafkaError::ClientCreation(format!("no thread for its reports: {error}")))?;
        Ok(Self { retired, thread })
    }
}
