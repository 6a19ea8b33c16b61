//! Creates, deletes and reads topics of the real broker.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::RealKafka;

/// The longest wait for an answer of a broker that is up.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The longest time to read a whole topic.
const READ_WITHIN: Duration = Duration::from_secs(120);

/// A record as a consumer sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The partition.
    pub partition: i32,
    /// The offset in its partition.
    pub offset: i64,
    /// The key, if the record has one.
    pub key: Option<Vec<u8>>,
    /// The value, if the record has one.
    pub value: Option<Vec<u8>>,
    /// The headers in the order in which they were sent.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970.
    pub timestamp: Option<i64>,
}

impl Record {
    /// Returns the first header of this name, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let value = self.headers.iter().find(|(key, _)| key == name)?.1.as_deref()?;
        std::str::from_utf8(value).ok()
    }
}

impl RealKafka {
    /// Creates a topic and waits until each partition has a leader.
    pub async fn create_topic(&self, name: &str, partitions: i32, configs: &[(&str, &str)]) -> anyhow::Result<()> {
        self.create_replicated_topic(name, partitions, 1, configs).await
    }

    /// Creates a topic with this number of replicas and waits until each partition has a leader.
    pub async fn create_replicated_topic(
        &self,
        name: &str,
        partitions: i32,
        replicas: i32,
        configs: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        self.create(NewTopic::new(name, partitions, TopicReplication::Fixed(replicas)), configs).await
    }

    /// Creates a topic with the given replicas of each partition, as ids of brokers, and waits until each partition has a leader.
    pub async fn create_placed_topic(
        &self,
        name: &str,
        replicas: &[&[i32]],
        configs: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let partitions = i32::try_from(replicas.len())?;
        self.create(NewTopic::new(name, partitions, TopicReplication::Variable(replicas)), configs).await
    }

    async fn create<'a>(&self, mut topic: NewTopic<'a>, configs: &[(&'a str, &'a str)]) -> anyhow::Result<()> {
        let (name, partitions) = (topic.name, topic.num_partitions);
        for (key, value) in configs {
            topic = topic.set(key, value);
        }
        let results = self.admin()?.create_topics([&topic], &answer_in_time()).await?;
        for result in results {
            result.map_err(|(topic, code)| anyhow::anyhow!("cannot create topic {topic}: {code}"))?;
        }
        self.until(name, move |leaders| leaders.is_some_and(|found| found == partitions)).await
    }

    /// Sets configs of a topic. All other configs go back to their defaults.
    pub async fn alter_topic(&self, name: &str, configs: &[(&str, &str)]) -> anyhow::Result<()> {
        let topic = ResourceSpecifier::Topic(name);
        let change = configs.iter().fold(AlterConfig::new(topic), |change, (key, value)| change.set(key, value));
        for result in self.admin()?.alter_configs([&change], &answer_in_time()).await? {
            result.map_err(|(_, code)| anyhow::anyhow!("cannot alter topic {name}: {code}"))?;
        }
        Ok(())
    }

    /// Raises the number of a topic's partitions, and waits until each has a leader.
    pub async fn add_partitions(&self, name: &str, partitions: i32) -> anyhow::Result<()> {
        let raised = NewPartitions::new(name, usize::try_from(partitions)?);
        for result in self.admin()?.create_partitions([&raised], &answer_in_time()).await? {
            result.map_err(|(topic, code)| anyhow::anyhow!("cannot raise the partitions of {topic}: {code}"))?;
        }
        self.until(name, move |leaders| leaders.is_some_and(|found| found == partitions)).await
    }

    /// Returns the names of all topics.
    pub fn topics(&self) -> anyhow::Result<Vec<String>> {
        let metadata = self.consumer()?.fetch_metadata(None, ANSWER_WITHIN)?;
        Ok(metadata.topics().iter().map(|topic| topic.name().to_owned()).collect())
    }

    /// Deletes a topic and waits until the broker does not know it any more.
    pub async fn delete_topic(&self, name: &str) -> anyhow::Result<()> {
        for result in self.admin()?.delete_topics(&[name], &answer_in_time()).await? {
            result.map_err(|(topic, code)| anyhow::anyhow!("cannot delete topic {topic}: {code}"))?;
        }
        self.until(name, |leaders| leaders.is_none()).await
    }

    /// Reads all records that the topic holds now, by partition and offset. Reads only committed transactions.
    pub async fn read_topic(&self, name: &str) -> anyhow::Result<Vec<Record>> {
        let consumer = self.consumer()?;
        let name = name.to_owned();
        tokio::task::spawn_blocking(move || read_to_end(&consumer, &name)).await?
    }

    fn admin(&self) -> anyhow::Result<AdminClient<DefaultClientContext>> {
        Ok(self.client().create()?)
    }

    fn consumer(&self) -> anyhow::Result<BaseConsumer> {
        let mut config = self.client();
        config
            // A consumer needs a group, although it commits nothing to the group.
            .set("group.id", "outbox-relay-reader")
            .set("enable.auto.commit", "false")
            // The last offsets of a partition may be markers of a transaction, which are never delivered. So its end has to be an event.
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "10")
            .set("fetch.message.max.bytes", "8388608")
            .set("queued.min.messages", "1000000");
        Ok(config.create()?)
    }

    /// Polls the number of partitions with a leader until `reached` is true; the number is `None` for an unknown topic.
    async fn until(&self, topic: &str, reached: impl Fn(Option<i32>) -> bool + Send + 'static) -> anyhow::Result<()> {
        let consumer = self.consumer()?;
        let topic = topic.to_owned();
        tokio::task::spawn_blocking(move || {
            let deadline = Instant::now() + ANSWER_WITHIN;
            while !reached(partitions_with_leader(&consumer, &topic)?) {
                ensure!(Instant::now() < deadline, "topic {topic} has not settled within {ANSWER_WITHIN:?}");
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        })
        .await?
    }
}

fn answer_in_time() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ANSWER_WITHIN)).operation_timeout(Some(ANSWER_WITHIN))
}

fn partitions_with_leader(consumer: &BaseConsumer, topic: &str) -> anyhow::Result<Option<i32>> {
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER_WITHIN)?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return Ok(None);
    };
    if found.partitions().is_empty() {
        return Ok(None);
    }
    let led = found.partitions().iter().filter(|partition| partition.leader() >= 0 && partition.error().is_none());
    Ok(Some(i32::try_from(led.count())?))
}

fn read_to_end(consumer: &BaseConsumer, topic: &str) -> anyhow::Result<Vec<Record>> {
    // The key is the partition, the value the offset after the last record to read.
    let mut unread = ends(consumer, topic)?;
    assign(consumer, topic, unread.keys())?;
    let deadline = Instant::now() + READ_WITHIN;
    let mut records = Vec::new();
    while !unread.is_empty() {
        ensure!(Instant::now() < deadline, "{topic} was not read within {READ_WITHIN:?}, missing {unread:?}");
        match consumer.poll(Duration::from_millis(100)) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(unread.remove(&partition)),
            Some(Err(error)) if is_passing(&error) => {}
            Some(Err(error)) => bail!("reading {topic}: {error}"),
            Some(Ok(message)) => {
                let end = unread.get(&message.partition()).copied().unwrap_or(0);
                if message.offset() < end {
                    records.push(record(&message));
                }
                if message.offset() + 1 >= end {
                    unread.remove(&message.partition());
                }
            }
        }
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    Ok(records)
}

/// Returns the high watermark of every partition that is not empty. A broker that has just started lists its partitions before it leads
/// them, so its refusals are waited out.
fn ends(consumer: &BaseConsumer, topic: &str) -> anyhow::Result<HashMap<i32, i64>> {
    let deadline = Instant::now() + ANSWER_WITHIN;
    loop {
        match ends_now(consumer, topic) {
            Err(error) if error.downcast_ref().is_some_and(is_of_a_start) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            ends => return ends,
        }
    }
}

fn ends_now(consumer: &BaseConsumer, topic: &str) -> anyhow::Result<HashMap<i32, i64>> {
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER_WITHIN)?;
    let found = metadata.topics().first().context("no metadata")?;
    ensure!(!found.partitions().is_empty(), "topic {topic} does not exist");
    let mut ends = HashMap::new();
    for partition in found.partitions() {
        let (low, high) = consumer.fetch_watermarks(topic, partition.id(), ANSWER_WITHIN)?;
        if high > low {
            ends.insert(partition.id(), high);
        }
    }
    Ok(ends)
}

fn assign<'a>(consumer: &BaseConsumer, topic: &str, partitions: impl Iterator<Item = &'a i32>) -> anyhow::Result<()> {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition_offset(topic, *partition, Offset::Beginning)?;
    }
    Ok(consumer.assign(&list)?)
}

/// Returns true for a lost connection, which librdkafka reports but recovers from by itself.
fn is_passing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::OperationTimedOut
        )
    )
}

/// Returns true for an answer that a broker gives while it starts.
fn is_of_a_start(error: &KafkaError) -> bool {
    is_passing(error)
        || matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::NotLeaderForPartition
                    | RDKafkaErrorCode::LeaderNotAvailable
                    | RDKafkaErrorCode::OffsetNotAvailable
                    | RDKafkaErrorCode::UnknownPartition
                    | RDKafkaErrorCode::UnknownTopicOrPartition
            )
        )
}

fn record(message: &BorrowedMessage<'_>) -> Record {
    let headers = message.headers().map_or_else(Vec::new, |headers| {
        headers.iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
    });
    Record {
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers,
        timestamp: message.timestamp().to_millis(),
    }
}
