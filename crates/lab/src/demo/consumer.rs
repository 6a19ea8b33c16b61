//! Consumes the demo's topic and applies each event once, with `event_once` in the transaction of the effect.
//!
//! One thread reads. A few appliers, each with its own connection and its own partitions, apply the records of a partition in order. The
//! partitions are assigned manually, because the first rebalance of a consumer group takes seconds.

mod apply;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use serde::Deserialize;
use serde_json::value::RawValue;
use sqlx::PgPool;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet, block_in_place, spawn_blocking};
use uuid::Uuid;

use apply::{Applied, Delivery};
use event_outbox::ledger::Fingerprint;

/// The number of appliers, each with its own connection.
pub(super) const APPLIERS: usize = 4;

/// The most deliveries that wait for an applier before the reader waits.
const WAITING: usize = 500;

/// The longest wait of the reader for a record. It may end this much later than it could.
const POLL: Duration = Duration::from_millis(50);

/// The longest wait for an answer of a broker that is up.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A record as the consumer saw it.
#[derive(Debug, Clone)]
pub(super) struct Sighting {
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) event_id: Option<Uuid>,
    /// The digest of key and payload. The payload is the member `data` of the value, or the whole value without such a member.
    pub(super) fingerprint: Fingerprint,
}

/// The results of the consumer: all records and the repetitions.
#[derive(Debug, Default)]
pub(super) struct Consumed {
    pub(super) sightings: Vec<Sighting>,
    /// The deliveries that `event_once` recognised as repetitions.
    pub(super) duplicates: u64,
}

/// The reason why the consumer cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    /// Kafka reported an error.
    #[error("the demo's consumer cannot read its topic")]
    Kafka(#[from] KafkaError),
    /// Postgres reported an error.
    #[error("the demo's consumer cannot apply an event")]
    Database(#[from] sqlx::Error),
    /// The topic has no partitions with a leader.
    #[error("the topic {topic} does not exist after {ANSWER_WITHIN:?}")]
    NoTopic {
        /// The topic.
        topic: String,
    },
}

/// The running consumer. Dropping it stops it at once.
#[derive(Debug)]
pub(super) struct Consumer {
    reading: JoinHandle<Result<Vec<Sighting>, ConsumerError>>,
    appliers: JoinSet<Result<Applied, sqlx::Error>>,
    finish: watch::Sender<bool>,
    handled: Arc<AtomicU64>,
}

impl Consumer {
    /// Creates the table of effects and starts to read the topic from its beginning.
    pub(super) async fn start(config: &ClientConfig, topic: &str, pool: &PgPool) -> Result<Self, ConsumerError> {
        apply::create_table(pool).await?;
        let consumer: BaseConsumer = config.create()?;
        let partitions = until_there(&consumer, topic).await?;
        let mut assigned = TopicPartitionList::new();
        for partition in &partitions {
            assigned.add_partition_offset(topic, *partition, Offset::Beginning)?;
        }
        consumer.assign(&assigned)?;

        let handled = Arc::new(AtomicU64::new(0));
        let mut appliers = JoinSet::new();
        let mut inboxes = Vec::new();
        for _ in 0..APPLIERS {
            let (sender, inbox) = mpsc::channel(WAITING);
            inboxes.push(sender);
            appliers.spawn(apply::run(pool.clone(), inbox, Arc::clone(&handled)));
        }
        let (finish, finishing) = watch::channel(false);
        let reader = Reader { consumer, topic: topic.to_owned(), partitions, inboxes, sightings: Vec::new() };
        Ok(Self { reading: spawn_blocking(move || reader.run(&finishing)), appliers, finish, handled })
    }

    /// Returns the number of deliveries handled so far. While it grows, the consumer is at work.
    pub(super) fn handled(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.handled)
    }

    /// Returns true if the consumer no longer reads. If nobody asked it to stop, [`Consumer::finish`] returns the reason.
    pub(super) fn has_ended(&self) -> bool {
        self.reading.is_finished()
    }

    /// Reads and applies all that the topic holds now, and ends. Call it when nothing produces any more.
    pub(super) async fn finish(&mut self) -> Result<Consumed, ConsumerError> {
        self.finish.send_replace(true);
        let read = (&mut self.reading).await;
        let mut duplicates = 0;
        while let Some(applied) = self.appliers.join_next().await {
            duplicates += applied.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?.duplicates;
        }
        // Look at the appliers first: if one failed, the reader only knows that nobody receives any more.
        let sightings = read.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        Ok(Consumed { sightings, duplicates })
    }
}

struct Reader {
    consumer: BaseConsumer,
    topic: String,
    partitions: Vec<i32>,
    inboxes: Vec<mpsc::Sender<Delivery>>,
    sightings: Vec<Sighting>,
}

impl Reader {
    /// Reads until it was told to finish and has reached the end of the topic, or until its caller is gone. Blocks.
    fn run(mut self, finish: &watch::Receiver<bool>) -> Result<Vec<Sighting>, ConsumerError> {
        // `ends` has the offsets to stop at, once they are known. `positions` has the offsets after the last record read.
        let mut ends: Option<HashMap<i32, i64>> = None;
        let mut positions: HashMap<i32, i64> = HashMap::new();
        while finish.has_changed().is_ok() {
            if ends.is_none() && *finish.borrow() {
                ends = Some(self.ends()?);
            }
            let read_to = |end: (&i32, &i64)| positions.get(end.0).copied().unwrap_or(0) >= *end.1;
            if ends.as_ref().is_some_and(|ends| ends.iter().all(read_to)) {
                break;
            }
            let (sighting, delivery) = match self.consumer.poll(POLL) {
                None => continue,
                Some(Ok(message)) => see(&message),
                Some(Err(error)) if is_passing(&error) => continue,
                Some(Err(error)) => return Err(error.into()),
            };
            positions.insert(sighting.partition, sighting.offset + 1);
            if !self.hand_over(sighting, delivery) {
                break;
            }
        }
        Ok(self.sightings)
    }

    /// Hands a record to its applier. Returns false if the applier has failed; the applier keeps the error.
    fn hand_over(&mut self, sighting: Sighting, delivery: Option<Delivery>) -> bool {
        let inbox = &self.inboxes[sighting.partition.unsigned_abs() as usize % self.inboxes.len()];
        self.sightings.push(sighting);
        delivery.is_none_or(|delivery| inbox.blocking_send(delivery).is_ok())
    }

    /// Returns the offset after the last record of each partition.
    fn ends(&self) -> Result<HashMap<i32, i64>, KafkaError> {
        let end = |partition: &i32| {
            let (low, high) = self.consumer.fetch_watermarks(&self.topic, *partition, ANSWER_WITHIN)?;
            Ok((*partition, if high > low { high } else { 0 }))
        };
        self.partitions.iter().map(end).collect()
    }
}

/// Waits until the topic exists, because not every broker knows a new topic at once.
async fn until_there(consumer: &BaseConsumer, topic: &str) -> Result<Vec<i32>, ConsumerError> {
    let deadline = Instant::now() + ANSWER_WITHIN;
    while Instant::now() < deadline {
        let metadata = block_in_place(|| consumer.fetch_metadata(Some(topic), ANSWER_WITHIN))?;
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        let (led, without): (Vec<_>, Vec<_>) = partitions.partition(|partition| partition.leader() >= 0);
        if !led.is_empty() && without.is_empty() {
            return Ok(led.iter().map(|partition| partition.id()).collect());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(ConsumerError::NoTopic { topic: topic.to_owned() })
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

fn see(message: &BorrowedMessage<'_>) -> (Sighting, Option<Delivery>) {
    let key = message.key();
    let data = message.payload().and_then(|value| serde_json::from_slice::<Value<'_>>(value).ok());
    let payload = data.map(|value| value.data.get().as_bytes()).or(message.payload());
    let sighting = Sighting {
        partition: message.partition(),
        offset: message.offset(),
        event_id: header(message, "event-id").and_then(|text| text.parse().ok()),
        fingerprint: Fingerprint::from_key_value(key, payload),
    };
    let delivery = sighting.event_id.map(|event_id| Delivery {
        event_id,
        order_id: key.map(|key| String::from_utf8_lossy(key).into_owned()),
        event_type: header(message, "event-type").unwrap_or_default().to_owned(),
    });
    (sighting, delivery)
}

fn header<'a>(message: &'a BorrowedMessage<'_>, name: &str) -> Option<&'a str> {
    let header = message.headers()?.iter().find(|header| header.key == name)?;
    std::str::from_utf8(header.value?).ok()
}
