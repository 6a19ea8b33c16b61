//! Runs one idempotent producer. A worker gives it one batch at a time. After any failure the whole producer and its queue are dropped, so
//! that a new one sends the unacknowledged records again in order.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, PurgeConfig};

use crate::config::KafkaSettings;
use crate::lane::murmur2;
use crate::sink::broker::SuspicionSender;
use crate::sink::client::{ClientSettings, is_debugged};
use crate::sink::delivery::{Context, Deliveries, opaque};
use crate::sink::login::SERVED_EVERY;
use crate::sink::topics::Topics;
use crate::sink::transactions::{self, Offsets, TransactionError};
use event_outbox::envelope::Envelope;
use event_outbox::event::StoredEvent;

/// The number of envelope headers, with room for the usual correlation and trace headers.
const USUAL_HEADERS: usize = 8;

/// The time after which the report thread checks whether it is still needed.
const REPORT_WAIT: Duration = Duration::from_millis(100);

/// The interval, and the time, in which log lines are taken while no record is open. Otherwise rdkafka keeps them in memory.
const GLANCE_INTERVAL: Duration = Duration::from_secs(60);
const GLANCE: Duration = Duration::from_millis(5);

/// The largest batch, in records, that is sent without lingering.
const FEW: usize = 16;

/// The partition of a record, and the number of partitions that it was chosen from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) partition: i32,
    pub(crate) of: i32,
}

/// Partitions that records without a key stay away from.
pub(crate) type Avoided = HashSet<(String, i32)>;

/// A generation of a worker's producer: two of librdkafka's producers, one for small batches and one for large ones. A batch uses only one
/// of them and ends before the next begins, so the records keep the order of the batches.
pub(crate) struct KafkaProducer {
    patient: Reporting,
    prompt: Option<Reporting>,
    /// True if the batch is small.
    is_few: bool,
    deliveries: Arc<Deliveries>,
    batch: u32,
    scratch: Vec<u8>,
    in_transaction: bool,
    /// True if a connection broke during a commit: see [`KafkaProducer::commit_transaction`].
    may_commit_again: bool,
    spread: Spread,
    kafka: KafkaSettings,
    /// The version of the login that the producer was made with.
    version: u64,
}

impl KafkaProducer {
    /// # Errors
    /// The error that librdkafka finds in the settings. Its message may quote a setting.
    pub(crate) fn new(
        settings: &ClientSettings,
        suspicions: &SuspicionSender,
        topics: &Arc<Topics>,
    ) -> Result<Self, KafkaError> {
        Self::start(settings.kafka(), &settings.config(), settings.prompt(), suspicions, topics)
    }

    /// Creates a producer that publishes in transactions under this id. The brokers roll back a transaction that is open for longer than
    /// `longest`.
    ///
    /// # Errors
    /// The error that librdkafka finds in the settings. Its message may quote a setting.
    pub(crate) fn transactional(
        settings: &ClientSettings,
        id: &str,
        longest: Duration,
        suspicions: &SuspicionSender,
        topics: &Arc<Topics>,
    ) -> Result<Self, KafkaError> {
        Self::start(settings.kafka(), &settings.transactional(id, longest), None, suspicions, topics)
    }

    fn start(
        kafka: &KafkaSettings,
        patient: &ClientConfig,
        prompt: Option<ClientConfig>,
        suspicions: &SuspicionSender,
        topics: &Arc<Topics>,
    ) -> Result<Self, KafkaError> {
        let spread = Spread::new(topics, patient);
        let (kafka, version) = (kafka.clone(), kafka.version());
        let deliveries = Arc::new(Deliveries::default());
        let start = |config: &ClientConfig| Reporting::start(config, &deliveries, suspicions);
        let (patient, prompt) = (start(patient)?, prompt.map(|config| start(&config)).transpose()?);
        Ok(Self {
            patient,
            prompt,
            is_few: false,
            deliveries,
            batch: 0,
            scratch: Vec::new(),
            in_transaction: false,
            may_commit_again: false,
            spread,
            kafka,
            version,
        })
    }

    /// Returns true if a topic has more partitions, if a commit may arrive twice, or if the login has changed. A new generation must then
    /// replace this one before the next batch.
    pub(crate) fn is_outdated(&self) -> bool {
        self.spread.is_outdated() || self.may_commit_again || self.version != self.kafka.version()
    }

    /// Makes this the only producer with its transactional id. The open transaction of another one is rolled back.
    ///
    /// # Errors
    /// Any error of the client. The producer is unusable then.
    pub(crate) async fn init_transactions(&self, within: Duration) -> Result<(), TransactionError> {
        transactions::init(Arc::clone(&self.patient.producer), within).await
    }

    /// Begins a transaction unless one has begun. Nothing reaches the brokers before the first record.
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

    /// Commits the records sent since the transaction began, together with the progress.
    ///
    /// If a connection breaks meanwhile, librdkafka asks for the commit again. The first request may still arrive, during the next
    /// transaction, and would commit that one early (KAFKA-17754). So the producer is outdated then: the next one has another epoch, for which
    /// the late request is refused.
    ///
    /// # Errors
    /// Any error of the client. The transaction may be committed all the same.
    pub(crate) async fn commit_transaction(
        &mut self,
        offsets: Offsets,
        within: Duration,
    ) -> Result<(), TransactionError> {
        self.in_transaction = false;
        let breaks = self.deliveries.breaks();
        let committed = transactions::commit(Arc::clone(&self.patient.producer), offsets, within).await;
        self.may_commit_again |= self.deliveries.breaks() != breaks;
        committed
    }

    /// Begins a batch of `records` records. Those without a key stay away from the partitions `avoided`.
    pub(crate) fn begin(&mut self, records: usize, avoided: Avoided) {
        self.spread.avoided = avoided;
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

    /// Queues record `slot` of the batch. Returns its partition; `None` if librdkafka or the row chooses it.
    ///
    /// # Errors
    /// librdkafka refused it at once, for example because it is too large. The record counts as failed.
    pub(crate) fn send(
        &mut self,
        slot: usize,
        topic: &str,
        event: &StoredEvent<'_>,
        timestamp: i64,
        envelope: Envelope,
        source: Option<&str>,
    ) -> Result<Option<Placement>, RDKafkaErrorCode> {
        let mut headers = Some(OwnedHeaders::new_with_capacity(USUAL_HEADERS));
        envelope.headers(event, source, &mut |key, value| {
            headers = headers.take().map(|headers| headers.insert(Header { key, value: Some(value) }));
        });
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, opaque(self.batch, slot))
            // Zero would mean "now", and librdkafka does not support times before 1970.
            .timestamp(timestamp.max(1));
        record.headers = headers;
        record.key = event.entity_id.map(str::as_bytes);
        // The relay has refused a row whose partition is no number.
        let named = event.partition().unwrap_or_default();
        let placement = match named {
            // A hold of the topic is right for an event whose partition does not follow from its key.
            Some(_) => None,
            None => self.spread.place(topic, record.key, self.batch as usize + slot),
        };
        record.partition = named.or(placement.map(|placement| placement.partition));
        let mut scratch = std::mem::take(&mut self.scratch);
        record.payload = envelope.value(event, source, &mut scratch);
        let sent = self.current().producer.send(record).map_err(|(error, record)| {
            let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
            self.deliveries.refuse(record.delivery_opaque, code);
            code
        });
        self.scratch = scratch;
        sent.map(|()| placement)
    }

    /// Leaves out record `slot` of the batch.
    pub(crate) fn skip(&self, slot: usize, code: RDKafkaErrorCode) {
        self.deliveries.refuse(opaque(self.batch, slot), code);
    }

    /// Returns the outcomes of the batch.
    pub(crate) fn deliveries(&self) -> &Deliveries {
        &self.deliveries
    }

    /// Returns the error that has broken the producer permanently, if there is one.
    pub(crate) fn fatal(&self) -> Option<RDKafkaErrorCode> {
        self.current().producer.client().fatal_error().map(|(code, _)| code)
    }

    /// Drops all queued records and those in flight. Runs outside the async runtime, because librdkafka joins its threads.
    pub(crate) fn retire(self) {
        for reporting in self.prompt.into_iter().chain([self.patient]) {
            reporting.retire();
        }
    }
}

/// Computes the partition of a key, the same for all producers of the relay. Otherwise each librdkafka producer would learn of new
/// partitions at its own time: every 5 minutes, or when a leader moves. Until then an entity's events would go to two partitions
/// alternately. The counts stay fixed for a generation of producers, and a new generation is made between two batches.
struct Spread {
    topics: Arc<Topics>,
    layout: u64,
    /// The number of partitions of the topics used so far. Empty if librdkafka computes the partition.
    counts: HashMap<String, Option<i32>>,
    is_murmur2: bool,
    avoided: Avoided,
}

impl Spread {
    fn new(topics: &Arc<Topics>, config: &ClientConfig) -> Self {
        let is_murmur2 = matches!(config.get("partitioner"), Some("murmur2_random" | "murmur2"));
        // Reads the layout first: counts that change after this make this generation outdated.
        Self {
            layout: topics.layout(),
            topics: Arc::clone(topics),
            counts: HashMap::new(),
            is_murmur2,
            avoided: Avoided::new(),
        }
    }

    fn is_outdated(&self) -> bool {
        self.topics.layout() != self.layout
    }

    /// Returns the partition; `None` if librdkafka decides, because another partitioner is configured or the count is not known. Records
    /// without a key go to one partition after the other.
    fn place(&mut self, topic: &str, key: Option<&[u8]>, turn: usize) -> Option<Placement> {
        if !self.is_murmur2 {
            return None;
        }
        let count = match self.counts.get(topic) {
            Some(count) => *count,
            None => *self.counts.entry(topic.to_owned()).or_insert_with(|| self.topics.partitions(topic)),
        };
        let of = count?;
        let partition = match key {
            Some(key) => murmur2::partition(murmur2::murmur2(key), of),
            None => in_turn(topic, turn, of, &self.avoided),
        };
        Some(Placement { partition, of })
    }
}

/// Returns the next partition that is not avoided. If all are avoided, returns the one whose turn it is.
fn in_turn(topic: &str, turn: usize, of: i32, avoided: &Avoided) -> i32 {
    let first = (turn % of.max(1) as usize) as i32;
    if avoided.is_empty() {
        return first;
    }
    let mut partitions = (0..of).map(|step| (first + step) % of);
    partitions.find(|partition| !avoided.contains(&(topic.to_owned(), *partition))).unwrap_or(first)
}

/// A librdkafka producer and the thread that receives its delivery reports. The thread sleeps while no record of this producer is open, and
/// takes the log lines once a minute. rdkafka spins through the last millisecond of each wait for an event. Its own threaded producer waits
/// all the time, and uses most of an idle relay's CPU.
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
        let is_debugged = is_debugged(config);
        let context = Context { deliveries: Arc::clone(deliveries), suspicions: suspicions.clone(), is_debugged };
        let producer: Arc<BaseProducer<Context>> = Arc::new(config.create_with_context(context)?);
        let (batch, retired) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let (reports, current, unwanted) = (Arc::clone(&producer), Arc::clone(&batch), Arc::clone(&retired));
        let deliveries = Arc::clone(deliveries);
        let glance = if suspicions.login.needs_polls() { SERVED_EVERY } else { GLANCE_INTERVAL };
        let report = move || {
            // A login with IAM asks for its first token.
            reports.poll(GLANCE);
            while !unwanted.load(Ordering::Relaxed) {
                let is_open = || deliveries.is_open(current.load(Ordering::Relaxed));
                if is_open() {
                    reports.poll(REPORT_WAIT);
                } else {
                    thread::park_timeout(glance);
                    if !is_open() {
                        reports.poll(GLANCE);
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("kafka reports".to_owned()).spawn(report);
        let thread =
            thread.map_err(|error| KafkaError::ClientCreation(format!("cannot start the report thread: {error}")))?;
        Ok(Self { producer, batch, retired, thread })
    }

    /// Starts to receive the reports of a batch that has begun.
    fn listen(&self, batch: u32) {
        self.batch.store(batch, Ordering::Relaxed);
        self.thread.thread().unpark();
    }

    fn retire(self) {
        self.retired.store(true, Ordering::Relaxed);
        // Dropped records are reported quickly, so there is no need to wait for the brokers.
        self.producer.purge(PurgeConfig::default().queue().inflight());
        self.thread.thread().unpark();
        tokio::task::spawn_blocking(move || {
            // The thread returns nothing; the panic hook has logged a panic.
            let _ = self.thread.join();
            drop(self.producer);
        });
    }
}
