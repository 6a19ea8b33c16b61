//! Reads a demo's topics beside its consumers and without a group, as any observer could.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::task::{JoinHandle, block_in_place, spawn_blocking};
use uuid::Uuid;

use super::patience::{PATIENCE, Patience};
use event_outbox::ledger::Fingerprint;

/// The longest wait of the reader for a record. It may end this much later than it could.
const POLL: Duration = Duration::from_millis(50);

/// The longest wait for an answer of a broker that is up.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A record of the topics.
#[derive(Debug, Clone)]
pub(super) struct Sighting {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) event_id: Option<Uuid>,
    pub(super) event_type: String,
    pub(super) version: i32,
    /// The record's key.
    pub(super) order_id: String,
    /// The start of the event's transaction, in milliseconds since 1970.
    pub(super) at: i64,
    /// The digest of key and payload. The payload is the member `data` of the value, or the whole value without such a member.
    pub(super) fingerprint: Fingerprint,
}

/// The reason why the topics cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Kafka reported an error.
    #[error("the demo's topics cannot be read")]
    Kafka(#[from] KafkaError),
    /// A topic has no partitions with a leader.
    #[error("the topic {topic} does not exist after {ANSWER_WITHIN:?}")]
    NoTopic {
        /// The topic.
        topic: String,
    },
}

/// The running reader. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Watch {
    reading: JoinHandle<Result<(), KafkaError>>,
    finish: watch::Sender<bool>,
    sightings: Arc<Mutex<Vec<Sighting>>>,
}

impl Watch {
    /// Reads the topics from their beginning. Calls `on_record` with each record.
    pub(super) async fn start(
        config: &ClientConfig,
        topics: &[String],
        on_record: impl Fn(&Sighting) + Send + 'static,
    ) -> Result<Self, WatchError> {
        let consumer: BaseConsumer = config.create()?;
        let mut assigned = TopicPartitionList::new();
        for topic in topics {
            for partition in until_there(&consumer, topic).await? {
                assigned.add_partition_offset(topic, partition, Offset::Beginning)?;
            }
        }
        consumer.assign(&assigned)?;
        let sightings = Arc::default();
        let reader = Reader { consumer, assigned, sightings: Arc::clone(&sightings) };
        let (finish, finishing) = watch::channel(false);
        Ok(Self { reading: spawn_blocking(move || reader.run(&finishing, on_record)), finish, sightings })
    }

    /// Returns the records that were read so far.
    pub(super) fn sightings(&self) -> Vec<Sighting> {
        lock(&self.sightings).clone()
    }

    /// Reads all that the topics hold now, and ends. Returns every record. Call it when nothing produces any more. Gives up when no record
    /// comes any more; the ledger shows what is missing.
    pub(super) async fn finish(&mut self) -> Result<Vec<Sighting>, WatchError> {
        self.finish.send_replace(true);
        let mut patience = Patience::new(PATIENCE);
        while !self.reading.is_finished() {
            if patience.is_over(lock(&self.sightings).len()) {
                return Ok(self.sightings());
            }
            tokio::time::sleep(POLL).await;
        }
        (&mut self.reading).await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        Ok(self.sightings())
    }
}

struct Reader {
    consumer: BaseConsumer,
    assigned: TopicPartitionList,
    sightings: Arc<Mutex<Vec<Sighting>>>,
}

impl Reader {
    /// Reads the topics to their ends, once told to finish, or until the watch is dropped. Blocks.
    fn run(self, finish: &watch::Receiver<bool>, on_record: impl Fn(&Sighting)) -> Result<(), KafkaError> {
        // `ends` has the offsets to stop at, once they are known. `positions` has the offsets after the last record read.
        let mut ends: Option<HashMap<(String, i32), i64>> = None;
        let mut positions: HashMap<(String, i32), i64> = HashMap::new();
        while finish.has_changed().is_ok() {
            if ends.is_none() && *finish.borrow() {
                ends = Some(self.ends()?);
            }
            let is_read =
                |(partition, end): (&(String, i32), &i64)| positions.get(partition).copied().unwrap_or(0) >= *end;
            if ends.as_ref().is_some_and(|ends| ends.iter().all(is_read)) {
                break;
            }
            let sighting = match self.consumer.poll(POLL) {
                None => continue,
                Some(Ok(message)) => see(&message),
                Some(Err(error)) if is_passing(&error) => continue,
                Some(Err(error)) => return Err(error),
            };
            positions.insert((sighting.topic.clone(), sighting.partition), sighting.offset + 1);
            on_record(&sighting);
            lock(&self.sightings).push(sighting);
        }
        Ok(())
    }

    /// Returns the offset after the last record of each partition.
    fn ends(&self) -> Result<HashMap<(String, i32), i64>, KafkaError> {
        let elements = self.assigned.elements();
        let end = |(topic, partition): (&str, i32)| {
            let (low, high) = self.consumer.fetch_watermarks(topic, partition, ANSWER_WITHIN)?;
            Ok(((topic.to_owned(), partition), if high > low { high } else { 0 }))
        };
        elements.iter().map(|element| end((element.topic(), element.partition()))).collect()
    }
}

fn lock(sightings: &Mutex<Vec<Sighting>>) -> MutexGuard<'_, Vec<Sighting>> {
    sightings.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until the topic exists, because not every broker knows a new topic at once. Returns its partitions.
async fn until_there(consumer: &BaseConsumer, topic: &str) -> Result<Vec<i32>, WatchError> {
    let deadline = Instant::now() + ANSWER_WITHIN;
    while Instant::now() < deadline {
        let metadata = block_in_place(|| consumer.fetch_metadata(Some(topic), ANSWER_WITHIN))?;
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        let (led, without): (Vec<_>, Vec<_>) = partitions.partition(|partition| partition.leader() >= 0);
        if !led.is_empty() && without.is_empty() {
            return Ok(led.iter().map(|partition| partition.id()).collect());
        }
        tokio::time::sleep(POLL).await;
    }
    Err(WatchError::NoTopic { topic: topic.to_owned() })
}

/// Returns true for a lost connection, which librdkafka reports but recovers from by itself.
fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(Code::BrokerTransportFailure | Code::AllBrokersDown | Code::OperationTimedOut | Code::Resolve)
    )
}

/// The members of the default envelope that the ledger compares.
#[derive(Deserialize)]
struct Value<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
}

fn see(message: &BorrowedMessage<'_>) -> Sighting {
    let key = message.key();
    let data = message.payload().and_then(|value| serde_json::from_slice::<Value<'_>>(value).ok());
    let payload = data.map(|value| value.data.get().as_bytes()).or(message.payload());
    Sighting {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        event_id: header(message, "event-id").and_then(|text| text.parse().ok()),
        event_type: header(message, "event-type").unwrap_or_default().to_owned(),
        version: header(message, "event-version").and_then(|text| text.parse().ok()).unwrap_or_default(),
        order_id: String::from_utf8_lossy(key.unwrap_or_default()).into_owned(),
        at: message.timestamp().to_millis().unwrap_or_default(),
        fingerprint: Fingerprint::from_key_value(key, payload),
    }
}

fn header<'a>(message: &'a BorrowedMessage<'_>, name: &str) -> Option<&'a str> {
    let header = message.headers()?.iter().find(|header| header.key == name)?;
    std::str::from_utf8(header.value?).ok()
}
