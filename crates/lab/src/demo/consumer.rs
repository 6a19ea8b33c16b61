//! The consumer: reads the topic and applies each event once, by `event_once` in the transaction of its effect.
//!
//! One thread reads; a few appliers, each with a connection, work on partitions of their own, so what is in order in a partition is
//! applied in order. Partitions are assigned rather than shared out by a group: a group's first round of sharing takes seconds.

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

/// Appliers, each with a connection of its own.
pub(super) const APPLIERS: usize = 4;

/// Deliveries that may wait for an applier before the reader waits.
const WAITING: usize = 500;

/// How long the reader may sleep: it ends that much later than it could.
const POLL: Duration = Duration::from_millis(50);

/// For an answer of a broker that is up.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A record as the consumer saw it.
#[derive(Debug, Clone)]
pub(super) struct Sighting {
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) event_id: Option<Uuid>,
    /// Of the key and the payload, which is the member `data` of the value; of the whole value where it has no such member.
    pub(super) fingerprint: Fingerprint,
}

/// All that the consumer saw and did.
#[derive(Debug, Default)]
pub(super) struct Consumed {
    pub(super) sightings: Vec<Sighting>,
    /// Deliveries that `event_once` recognised as repetitions.
    pub(super) duplicates: u64,
}

/// Why the consumer cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    /// Kafka.
    #[error("the demo's consumer cannot read its topic")]
    Kafka(#[from] KafkaError),
    /// Postgres.
    #[error("the demo's consumer cannot apply an event")]
    Database(#[from] sqlx::Error),
    /// The topic has no partitions with a leader.
    #[error("the topic {topic} is not there within {ANSWER_WITHIN:?}")]
    NoTopic {
        /// The topic.
        topic: String,
    },
}

/// The running consumer. Dropping it stops it where it is.
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

    /// Deliveries handled so far: as long as it grows, the consumer is at work.
    pub(super) fn handled(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.handled)
    }

    /// True when it reads no more: if nobody has asked it to, [`Consumer::finish`] says why.
    pub(super) fn has_ended(&self) -> bool {
        self.reading.is_finished()
    }

    /// Reads up to what the topic holds now, applies it and ends. To be called when nobody produces any more.
    pub(super) async fn finish(&mut self) -> Result<Consumed, ConsumerError> {
        self.finish.send_replace(true);
        let read = (&mut self.reading).await;
        let mut duplicates = 0;
        while let Some(applied) = self.appliers.join_next().await {
            duplicates += applied.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?.duplicates;
        }
        // After the appliers: where one of them failed, the reader only knows that nobody listens.
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
    /// Reads until it has been told to finish and has reached the end, or until nobody is there to tell it. Blocks.
    fn run(mut self, finish: &watch::Receiver<bool>) -> Result<Vec<Sighting>, ConsumerError> {
        // Where to stop, once that is known, and where we are: the offset after the last record read.
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

    /// False when the applier has failed; it has the error.
    fn hand_over(&mut self, sighting: Sighting, delivery: Option<Delivery>) -> bool {
        let inbox = &self.inboxes[sighting.partition.unsigned_abs() as usize % self.inboxes.len()];
        self.sightings.push(sighting);
        delivery.is_none_or(|delivery| inbox.blocking_send(delivery).is_ok())
    }

    /// The offset after the last record of each partition.
    fn ends(&self) -> Result<HashMap<i32, i64>, KafkaError> {
        let end = |partition: &i32| {
            let (low, high) = self.consumer.fetch_watermarks(&self.topic, *partition, ANSWER_WITHIN)?;
            Ok((*partition, if high > low { high } else { 0 }))
        };
        self.partitions.iter().map(end).collect()
    }
}

/// A topic that was created a moment ago is not known to every broker yet.
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

/// librdkafka reports a lost connection and goes on by itself.
fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(Code::BrokerTransportFailure | Code::AllBrokersDown | Code::OperationTimedOut | Code::Resolve)
    )
}

/// The default envelope, as far as the ledger compares it.
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
