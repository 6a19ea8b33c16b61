//! One idempotent producer. A worker gives it one batch at a time; after any failure the whole producer is dropped, and with it
//! everything queued, so that a new one sends the unacknowledged suffix again in order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, PurgeConfig};

use crate::sink::broker::SuspicionSender;
use crate::sink::client::ClientSettings;
use crate::sink::delivery::{Context, Deliveries, opaque};
use crate::sink::murmur2;
use crate::sink::topics::Topics;
use crate::sink::transactions::{self, Offsets, TransactionError};
use event_outbox::envelope::Envelope;
use event_outbox::event::StoredEvent;

/// Headers of an event without any of its own: room for the usual correlation and trace headers.
const USUAL_HEADERS: usize = 8;

/// How long the thread that reports listens before it looks whether it is still wanted.
const REPORT_WAIT: Duration = Duration::from_millis(100);

/// A batch of so few records is sent without lingering.
const FEW: usize = 16;

/// A generation of a worker's producer: two of librdkafka's, one for small batches and one for large ones. A batch is all of one of them, and
/// over before the next begins, so that the order is the batches'.
pub(crate) struct KafkaProducer {
    patient: Reporting,
    prompt: Option<Reporting>,
    /// The batch is small.
    is_few: bool,
    deliveries: Arc<Deliveries>,
    batch: u32,
    scratch: Vec<u8>,
    in_transaction: bool,
    spread: Spread,
}

impl KafkaProducer {
    /// # Errors
    /// What librdkafka finds wrong with the settings; the message may quote one.
    pub(crate) fn new(
        settings: &ClientSettings,
        suspicions: &SuspicionSender,
        topics: &Arc<Topics>,
    ) -> Result<Self, KafkaError> {
        Self::start(settings.config(), settings.prompt(), suspicions, topics)
    }

    /// One that publishes in transactions under this id, none of which the brokers leave open for longer than `longest`.
    ///
    /// # Errors
    /// What librdkafka finds wrong with the settings; the message may quote one.
    pub(crate) fn transactional(
        settings: &ClientSettings,
        id: &str,
        longest: Duration,
        suspicions: &SuspicionSender,
        topics: &Arc<Topics>,
    ) -> Result<Self, KafkaError> {
        Self::start(&settings.transactional(id, longest), None, suspicions, topics)
    }

    fn start(
        patient: &ClientConfig,
        prompt: Option<ClientConfig>,
        suspicions: &SuspicionSender,
        topics: &Arc<Topics>,
    ) -> Result<Self, KafkaError> {
        let spread = Spread::new(topics, patient);
        let deliveries = Arc::new(Deliveries::default());
        let start = |config: &ClientConfig| Reporting::start(config, &deliveries, suspicions);
        let (patient, prompt) = (start(patient)?, prompt.map(|config| start(&config)).transpose()?);
        let (is_few, batch, scratch, in_transaction) = (false, 0, Vec::new(), false);
        Ok(Self { patient, prompt, is_few, deliveries, batch, scratch, in_transaction, spread })
    }

    /// Returns true when a new generation has to take its place before the next batch: a topic has more partitions.
    pub(crate) fn is_outdated(&self) -> bool {
        self.spread.is_outdated()
    }

    /// Makes this the only producer of its transactional id: what another one has open is rolled back.
    ///
    /// # Errors
    /// Any error of the client. The producer is of no use then.
    pub(crate) async fn init_transactions(&self, within: Duration) -> Result<(), TransactionError> {
        transactions::init(Arc::clone(&self.patient.producer), within).await
    }

    /// Begins a transaction unless one is begun. Nothing reaches the brokers before the first record does.
    ///
    /// # Errors
    /// Any error of the client.
    pub(crate) fn begin_transaction(&mut self) -> Result<(), KafkaError> {
        if !self.in_transaction {
            self.patient.producer.begin_transaction()?;
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
        transactions::commit(Arc::clone(&self.patient.producer), offsets, within).await
    }

    /// Begins a batch of `records` records.
    pub(crate) fn begin(&mut self, records: usize) {
        self.batch = self.deliveries.begin(records);
        self.is_few = records <= FEW;
        self.current().listen(self.batch);
    }

    fn current(&self) -> &Reporting {
        match (&self.prompt, self.is_few) {
            (Some(prompt), true) => prompt,
            _ => &self.patient,
        }
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
        record.partition = self.spread.partition(topic, record.key);
        let mut scratch = std::mem::take(&mut self.scratch);
        record.payload = envelope.value(event, source, &mut scratch);
        let sent = self.current().producer.send(record).map_err(|(error, record)| {
            let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
            self.deliveries.refuse(record.delivery_opaque, code);
            code
        });
        self.scratch = scratch;
        sent
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
        self.current().producer.client().fatal_error().map(|(code, _)| code)
    }

    /// Drops what is queued and in flight, off the runtime: librdkafka joins its threads.
    pub(crate) fn retire(self) {
        for reporting in self.prompt.into_iter().chain([self.patient]) {
            reporting.retire();
        }
    }
}

/// Which partition a key belongs to, the same for all producers of the relay. Left to itself each producer of librdkafka hears of new
/// partitions when it asks by itself, every 5 minutes, or when a leader moves; until all have, an entity's events would go to two partitions
/// in turn. The counts hold for a generation of producers, and a new one is made between two batches.
struct Spread {
    topics: Arc<Topics>,
    layout: u64,
    /// Of the topics met so far. Empty where librdkafka computes the partition.
    counts: HashMap<String, Option<i32>>,
    is_murmur2: bool,
}

impl Spread {
    fn new(topics: &Arc<Topics>, config: &ClientConfig) -> Self {
        let is_murmur2 = matches!(config.get("partitioner"), Some("murmur2_random" | "murmur2"));
        // Read first: counts that change after this make it outdated.
        Self { layout: topics.layout(), topics: Arc::clone(topics), counts: HashMap::new(), is_murmur2 }
    }

    fn is_outdated(&self) -> bool {
        self.topics.layout() != self.layout
    }

    /// `None`: librdkafka decides, as it does for records without a key.
    fn partition(&mut self, topic: &str, key: Option<&[u8]>) -> Option<i32> {
        let key = key.filter(|_| self.is_murmur2)?;
        let count = match self.counts.get(topic) {
            Some(count) => *count,
            None => *self.counts.entry(topic.to_owned()).or_insert_with(|| self.topics.partitions(topic)),
        };
        Some(murmur2::partition(murmur2::murmur2(key), count?))
    }
}

/// A producer of librdkafka and the thread that takes its reports. The thread sleeps while no record of this producer is open: rdkafka
/// spins through the last millisecond of each wait for an event, and its own threaded producer, which waits all the time, takes most of
/// an idle relay's CPU.
struct Reporting {
    producer: Arc<BaseProducer<Context>>,
    /// The last batch of this producer.
    batch: Arc<AtomicU32>,
    retired: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Reporting {
    fn start(
        config: &ClientConfig,
        deliveries: &Arc<Deliveries>,
        suspicions: &SuspicionSender,
    ) -> Result<Self, KafkaError> {
        let context = Context { deliveries: Arc::clone(deliveries), suspicions: suspicions.clone() };
        let producer: Arc<BaseProducer<Context>> = Arc::new(config.create_with_context(context)?);
        let (batch, retired) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let (reports, current, unwanted) = (Arc::clone(&producer), Arc::clone(&batch), Arc::clone(&retired));
        let deliveries = Arc::clone(deliveries);
        let report = move || {
            while !unwanted.load(Ordering::Relaxed) {
                if deliveries.is_open(current.load(Ordering::Relaxed)) {
                    reports.poll(REPORT_WAIT);
                } else {
                    thread::park();
                }
            }
        };
        let thread = thread::Builder::new().name("kafka reports".to_owned()).spawn(report);
        let thread =
            thread.map_err(|error| KafkaError::ClientCreation(format!("no thread for its reports: {error}")))?;
        Ok(Self { producer, batch, retired, thread })
    }

    /// Takes the reports of a batch that has been begun.
    fn listen(&self, batch: u32) {
        self.batch.store(batch, Ordering::Relaxed);
        self.thread.thread().unpark();
    }

    fn retire(self) {
        self.retired.store(true, Ordering::Relaxed);
        // What is dropped is reported, which is soon done: there is no need to wait for the brokers.
        self.producer.purge(PurgeConfig::default().queue().inflight());
        self.thread.thread().unpark();
        tokio::task::spawn_blocking(move || {
            // It has nothing to report but that it panicked, which the panic hook has logged.
            let _ = self.thread.join();
            drop(self.producer);
        });
    }
}
