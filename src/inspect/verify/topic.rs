//! Reads the records of a topic with a consumer that is assigned every partition, from the first record to the end at the start. The
//! consumer joins no group and commits nothing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::config::KafkaSettings;
use crate::inspect::verify::VerifyError;
use crate::inspect::verify::fact::{Fact, RecordFact};
use crate::inspect::verify::reading::{self, Reading};
use crate::lane::murmur2::murmur2;
use crate::resend::rate::Rate;
use crate::sink::login::{self, Quiet};
use crate::sink::reader::BACKOFF;
use event_outbox::event::EventId;

/// The time limit of a request to the cluster.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// The longest wait for the next record. A topic that delivers nothing for longer has lost a leader for good.
const PATIENCE: Duration = Duration::from_secs(60);

const POLL: Duration = Duration::from_millis(200);

/// The number of records at the beginning of a truncated partition whose rows are read from the table.
const FIRST_RECORDS: usize = 100;

const CONSUMER: &[(&str, &str)] = &[
    ("client.id", "outbox-relay-verify"),
    // librdkafka requires a group id. The consumer joins no group and commits nothing.
    ("group.id", "outbox-relay-verify"),
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("allow.auto.create.topics", "false"),
    ("auto.offset.reset", "earliest"),
    ("isolation.level", "read_committed"),
    // The last offsets of a partition may be a transaction's markers, which are never delivered.
    ("enable.partition.eof", "true"),
    // Limits of the client's memory.
    ("queued.max.messages.kbytes", "8192"),
    ("queued.min.messages", "5000"),
    BACKOFF,
    ("fetch.max.bytes", "4194304"),
    ("reconnect.backoff.max.ms", "500"),
];

/// Reads topics, one after the other.
pub(crate) struct TopicReader {
    config: ClientConfig,
    kafka: KafkaSettings,
    consumer: BaseConsumer<Quiet>,
    /// `None` for a login that cannot ask for configurations.
    admin: Option<AdminClient<DefaultClientContext>>,
}

/// The partitions and offsets of a topic to read.
#[derive(Debug, Clone)]
pub(crate) struct TopicExtent {
    pub(crate) partitions: i32,
    /// The first offset to read and the offset after the last, by partition. Partitions without records to read are left out.
    bounds: HashMap<i32, (i64, i64)>,
    /// The partitions whose first records are gone.
    pub(crate) truncated: Vec<i32>,
    /// True for a compacted topic; `None` when the user lacks the right to see the configuration.
    pub(crate) compacted: Option<bool>,
}

impl TopicExtent {
    /// Returns the number of offsets to read.
    pub(crate) fn len(&self) -> u64 {
        self.bounds.values().map(|(first, end)| end.abs_diff(*first)).sum()
    }
}

/// The first records of a truncated partition.
#[derive(Debug, Clone, Default)]
pub(crate) struct Beginning {
    /// The ids of their rows, by the header `sequence`.
    pub(crate) sequences: Vec<i64>,
    /// The timestamp of the first record, in microseconds since 1970.
    pub(crate) time: Option<i64>,
}

/// The result of reading a topic.
#[derive(Debug, Default)]
pub(crate) struct Read {
    /// The number of records that consumers with `read_committed` see.
    pub(crate) records: u64,
    /// The first records of each truncated partition.
    pub(crate) beginnings: HashMap<i32, Beginning>,
}

/// A record without a readable event id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nameless {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

impl TopicReader {
    /// # Errors
    /// Returns [`VerifyError::Client`] if librdkafka rejects the settings. Its own message is dropped, because it may quote a secret.
    pub(crate) fn new(kafka: &KafkaSettings) -> Result<Self, VerifyError> {
        let config = kafka.consumer_config(CONSUMER);
        let failed = |_| VerifyError::Client;
        let consumer = login::consumer(&config, kafka).map_err(failed)?;
        let admin = login::admin(&config, kafka).map_err(failed)?;
        Ok(Self { config, kafka: kafka.clone(), consumer, admin })
    }

    /// Returns the current partitions and watermarks of a topic.
    ///
    /// # Errors
    /// Returns an error if the cluster does not answer or does not know the topic.
    pub(crate) fn extent(&self, topic: &str, since_ms: Option<i64>) -> Result<TopicExtent, VerifyError> {
        let metadata = self.consumer.fetch_metadata(Some(topic), ANSWER_WITHIN)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let error = match found {
            Some(found) => found.error().map(RDKafkaErrorCode::from),
            None => Some(RDKafkaErrorCode::UnknownTopicOrPartition),
        };
        if let Some(code) = error {
            return Err(VerifyError::Topic { topic: topic.to_owned(), code });
        }
        let partitions = found.map_or(0, |found| found.partitions().len());
        let partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
        let (mut bounds, mut lows) = (HashMap::new(), Vec::new());
        for partition in 0..partitions {
            let (low, high) = self.consumer.fetch_watermarks(topic, partition, ANSWER_WITHIN)?;
            lows.push((partition, low));
            bounds.insert(partition, (low, high));
        }
        if let Some(since) = since_ms {
            self.skip_to(topic, since, &mut bounds)?;
        }
        // If reading begins after the first retained record, no record to read is lost.
        let begins_at = |partition: i32, low: i64| bounds.get(&partition).is_some_and(|(first, _)| *first == low);
        lows.retain(|(partition, low)| *low > 0 && begins_at(*partition, *low));
        let truncated = lows.into_iter().map(|(partition, _)| partition).collect();
        bounds.retain(|_, (first, end)| first < end);
        Ok(TopicExtent { partitions, bounds, truncated, compacted: None })
    }

    /// Moves the first offset of each partition to the earliest record that is not older than `since`.
    fn skip_to(&self, topic: &str, since: i64, bounds: &mut HashMap<i32, (i64, i64)>) -> Result<(), VerifyError> {
        let mut times = TopicPartitionList::new();
        for partition in bounds.keys() {
            times.add_partition_offset(topic, *partition, Offset::Offset(since))?;
        }
        for found in self.consumer.offsets_for_times(times, ANSWER_WITHIN)?.elements() {
            let Some((first, end)) = bounds.get_mut(&found.partition()) else { continue };
            *first = match found.offset() {
                Offset::Offset(offset) => offset.max(*first),
                _ => *end,
            };
        }
        Ok(())
    }

    /// Returns true for a compacted topic; `None` when the user lacks the right to see the configuration.
    pub(crate) async fn is_compacted(&self, topic: &str) -> Option<bool> {
        let options = AdminOptions::new().request_timeout(Some(ANSWER_WITHIN));
        let asked = self.admin.as_ref()?.describe_configs(&[ResourceSpecifier::Topic(topic)], &options).await.ok()?;
        let config = asked.into_iter().next()?.ok()?;
        let policy = config.get("cleanup.policy")?.value.clone()?;
        Some(policy.split(',').any(|policy| policy.trim() == "compact"))
    }

    /// Reads a topic to the end of its extent. Blocks.
    ///
    /// # Errors
    /// Returns errors of the cluster, missing rights, and any error of `visit`.
    pub(crate) fn read(
        &self,
        topic: (u16, &str),
        extent: &TopicExtent,
        reading: &Reading,
        key: Option<&str>,
        rate: &mut Rate,
        mut visit: impl FnMut(Result<(EventId, Fact), Nameless>) -> Result<(), VerifyError>,
    ) -> Result<Read, VerifyError> {
        let (index, name) = topic;
        let mut read = Read::default();
        each_record(&self.consumer, name, extent, rate, |message| {
            read.records += 1;
            if extent.truncated.contains(&message.partition()) {
                begin(read.beginnings.entry(message.partition()).or_default(), message);
            }
            seen(index, message, reading, key).map_or(Ok(()), &mut visit)
        })?;
        Ok(read)
    }

    /// Counts the records of an extent that belong to aborted or open transactions. `committed` is the number of the other records.
    /// Blocks.
    ///
    /// # Errors
    /// Returns errors of the cluster.
    pub(crate) fn uncommitted(
        &self,
        name: &str,
        extent: &TopicExtent,
        committed: u64,
        rate: &mut Rate,
    ) -> Result<u64, VerifyError> {
        // Offsets without a record are transaction markers, records of aborted transactions, or records removed by compaction.
        if committed >= extent.len() {
            return Ok(0);
        }
        let mut config = self.config.clone();
        config.set("isolation.level", "read_uncommitted");
        let consumer = login::consumer(&config, &self.kafka).map_err(|_| VerifyError::Client)?;
        let mut records = 0_u64;
        each_record(&consumer, name, extent, rate, |_| {
            records += 1;
            Ok(())
        })?;
        // Saturate, because compaction may have run in the meantime.
        Ok(records.saturating_sub(committed))
    }
}

fn each_record(
    consumer: &BaseConsumer<Quiet>,
    name: &str,
    extent: &TopicExtent,
    rate: &mut Rate,
    mut each: impl FnMut(&BorrowedMessage<'_>) -> Result<(), VerifyError>,
) -> Result<(), VerifyError> {
    let mut unread = extent.bounds.clone();
    let mut list = TopicPartitionList::new();
    for (partition, (first, _)) in &unread {
        list.add_partition_offset(name, *partition, Offset::Offset(*first))?;
    }
    consumer.assign(&list)?;
    let mut heard = Instant::now();
    while !unread.is_empty() {
        if heard.elapsed() > PATIENCE {
            return Err(VerifyError::Stalled { topic: name.to_owned(), partitions: unread.into_keys().collect() });
        }
        let message = match consumer.poll(POLL) {
            None => continue,
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                unread.remove(&partition);
                continue;
            }
            Some(Err(error)) if is_passing(&error) => continue,
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(message)) => message,
        };
        heard = Instant::now();
        let (partition, offset) = (message.partition(), message.offset());
        let Some((_, end)) = unread.get(&partition).copied() else { continue };
        if offset < end {
            each(&message)?;
            std::thread::sleep(rate.spend(1));
        }
        if offset + 1 >= end {
            unread.remove(&partition);
        }
    }
    consumer.unassign()?;
    Ok(())
}

fn begin(beginning: &mut Beginning, message: &BorrowedMessage<'_>) {
    if beginning.sequences.len() < FIRST_RECORDS {
        beginning.sequences.extend(reading::sequence(message));
        beginning.time = beginning.time.or(message.timestamp().to_millis().map(|ms| ms.saturating_mul(1000)));
    }
}

/// Returns the facts about a record; `None` for a record of another entity than `only`.
fn seen(
    topic: u16,
    message: &BorrowedMessage<'_>,
    reading: &Reading,
    only: Option<&str>,
) -> Option<Result<(EventId, Fact), Nameless>> {
    let (partition, offset) = (message.partition(), message.offset());
    let key = reading.key(message);
    if only.is_some_and(|only| key.as_deref() != Some(only.as_bytes())) {
        return None;
    }
    let Some(event) = reading.event_id(message) else { return Some(Err(Nameless { partition, offset })) };
    let fact = RecordFact {
        topic,
        partition,
        offset,
        fingerprint: reading.record_fingerprint(key.as_deref(), message.payload()),
        sequence: reading::sequence(message),
        key_hash: message.key().map(murmur2),
        time: message.timestamp().to_millis().map(|ms| ms.saturating_mul(1000)),
        resent: reading::resent(message),
    };
    Some(Ok((event, Fact::Record(fact))))
}

/// Returns true for a lost connection, which librdkafka reports and repairs by itself.
fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, OperationTimedOut, Resolve};
    matches!(error.rdkafka_error_code(), Some(BrokerTransportFailure | AllBrokersDown | OperationTimedOut | Resolve))
}
