//! Implements Kafka's part of exactly-once: the consumer group that stores the lanes' progress, and the fencing of a worker that has lost
//! its lanes. The protocol is in `relay/exactly_once.rs`.
//!
//! Progress is a committed offset of a topic that belongs to the relay, with one partition per lane, in a group of the same name. Nothing
//! is ever written to the topic. It exists because a group commits offsets only of partitions that exist.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, NoCustomPartitioner, Producer, ProducerContext};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::OnceCell;

use crate::fault::{self, Class};
use crate::sink::client::{ClientSettings, log_level};
use crate::sink::login::{self, Quiet};
use crate::sink::progress::Progress;
use crate::sink::reader::Reader;
use event_outbox::notice::Notice;

/// The time limit for an answer of the cluster. A transaction of Postgres is open meanwhile.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The number of times that the relay asks for a new topic until all of its partitions have a leader.
const LEADER_ATTEMPTS: usize = 50;
const LEADER_PAUSE: Duration = Duration::from_millis(100);

/// The most events of a producer that are read after a commit.
const EVENTS_OF_COMMIT: usize = 100;

/// The most events of a consumer that are read after one request has failed.
const EVENTS_LOOKED_AT: usize = 20;

/// The error of Kafka's part of exactly-once.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransactionError {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// Another producer has taken the transactional id. The open transaction of this one was rolled back.
    #[error("another relay has taken over this transactional id")]
    Fenced,
    /// The progress topic does not exist and cannot be created, or it has another number of partitions.
    #[error("the progress topic {topic} {why}")]
    Topic { topic: String, why: String },
}

impl TransactionError {
    /// Returns librdkafka's code, if there is one.
    pub(crate) fn code(&self) -> Option<RDKafkaErrorCode> {
        match self {
            Self::Kafka(error) => error.rdkafka_error_code(),
            Self::Fenced | Self::Topic { .. } => None,
        }
    }

    fn from_kafka(error: KafkaError) -> Self {
        match error.rdkafka_error_code() {
            Some(code) if is_fenced(code) => Self::Fenced,
            _ => Self::Kafka(error),
        }
    }
}

/// Returns true for the errors of a producer whose transactional id another one has taken.
pub(crate) fn is_fenced(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced | RDKafkaErrorCode::InvalidProducerEpoch)
}

/// The progress group of one outbox, shared by its workers.
pub(crate) struct ProgressGroup {
    settings: ClientSettings,
    /// The name of the group and of the topic.
    name: String,
    lanes: u16,
    member: OnceCell<Arc<ConsumerGroupMetadata>>,
    topic_is_there: AtomicBool,
}

/// Returns the name of an outbox's group and topic, which is also the prefix of its transactional ids.
pub(crate) fn name_of(identity: i64) -> String {
    format!("outbox-relay.{identity:015x}")
}

impl ProgressGroup {
    pub(crate) fn new(settings: ClientSettings, identity: i64, lanes: u16) -> Self {
        Self {
            settings,
            name: name_of(identity),
            lanes,
            member: OnceCell::new(),
            topic_is_there: AtomicBool::new(false),
        }
    }

    /// The name of the group and of the topic.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Makes sure that progress can be committed. Creates the topic if it does not exist.
    ///
    /// # Errors
    /// [`TransactionError::Topic`], or any error of the client.
    pub(crate) async fn prepare(&self) -> Result<Arc<ConsumerGroupMetadata>, TransactionError> {
        if !self.topic_is_there.load(Ordering::Relaxed) {
            if !self.is_there().await? {
                self.create_topic().await?;
            }
            self.topic_is_there.store(true, Ordering::Relaxed);
        }
        self.member.get_or_try_init(async || self.join().await).await.cloned()
    }

    /// Looks for the topic again before the next transaction, because it may be gone.
    pub(crate) fn check_topic_again(&self) {
        self.topic_is_there.store(false, Ordering::Relaxed);
    }

    /// Returns the group's metadata without joining it: a group without members accepts commits from every client.
    async fn join(&self) -> Result<Arc<ConsumerGroupMetadata>, TransactionError> {
        let (config, kafka) = (self.consumer_config(), self.settings.kafka().clone());
        blocking(move || {
            let consumer = login::consumer(&config, &kafka)?;
            consumer.group_metadata().map(Arc::new).ok_or(KafkaError::Canceled)
        })
        .await
    }

    fn consumer_config(&self) -> rdkafka::ClientConfig {
        let mut config = self.settings.kafka().consumer_config(&[]);
        config
            .set("client.id", "outbox-relay")
            .set("group.id", &self.name)
            .set("enable.auto.commit", "false")
            .set("allow.auto.create.topics", "false")
            // While a transaction with offsets is open, the broker does not answer with the older offsets; the question waits.
            .set("isolation.level", "read_committed")
            .set("log.connection.close", "false");
        config.set_log_level(log_level(&config));
        config
    }

    /// Returns true if the topic exists and each lane has a partition with a leader; false if there is no topic.
    async fn is_there(&self) -> Result<bool, TransactionError> {
        let (kafka, topic) = (self.settings.kafka().clone(), self.name.clone());
        match blocking(move || Reader::new(&kafka)?.partitions(&topic)).await? {
            Ok(partitions) => {
                let led = partitions.iter().filter(|partition| partition.has_leader).count();
                let lanes = usize::from(self.lanes);
                let wrong = || {
                    format!(
                        "has {led} partitions with a leader, but {lanes} lanes need one each; see kafka-topics.sh --alter"
                    )
                };
                if led >= lanes { Ok(true) } else { Err(self.wrong(wrong())) }
            }
            Err(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Ok(false),
            Err(code) => Err(self.wrong(format!("cannot be described ({code:?})"))),
        }
    }

    fn wrong(&self, why: String) -> TransactionError {
        TransactionError::Topic { topic: self.name.clone(), why }
    }

    async fn create_topic(&self) -> Result<(), TransactionError> {
        let Some(admin) = login::admin(&self.consumer_config(), self.settings.kafka())? else {
            return Err(self.wrong(format!(
                "does not exist, and a login with IAM cannot create it; create it with {} partitions",
                self.lanes
            )));
        };
        // -1 is the broker's default replication factor.
        let topic = NewTopic::new(&self.name, i32::from(self.lanes), TopicReplication::Fixed(-1));
        let options = AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT)).operation_timeout(Some(ANSWER_TIMEOUT));
        for created in admin.create_topics([&topic], &options).await? {
            match created {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => {
                    return Err(self.wrong(format!(
                        "does not exist and cannot be created ({code:?}); create it with {} partitions",
                        self.lanes
                    )));
                }
            }
        }
        for _ in 0..LEADER_ATTEMPTS {
            if matches!(self.is_there().await, Ok(true)) {
                tracing::info!(
                    notice = %Notice::ProgressTopicCreated,
                    topic = self.name,
                    partitions = self.lanes,
                    "the progress topic was created"
                );
                return Ok(());
            }
            tokio::time::sleep(LEADER_PAUSE).await;
        }
        Err(self.wrong("was created, but has no leaders yet".to_owned()))
    }

    /// Reads the committed progress of `lanes`. A lane without readable progress is missing from the map. After their owner is fenced,
    /// these lanes have no open transaction.
    ///
    /// # Errors
    /// Any error of the client.
    pub(crate) async fn read(&self, lanes: Vec<i16>) -> Result<BTreeMap<i16, Progress>, TransactionError> {
        let (config, kafka, topic) = (self.consumer_config(), self.settings.kafka().clone(), self.name.clone());
        blocking(move || {
            let consumer = login::consumer(&config, &kafka)?;
            let mut wanted = TopicPartitionList::new();
            for lane in lanes {
                wanted.add_partition(&topic, lane.into());
            }
            let committed = consumer.committed_offsets(wanted, ANSWER_TIMEOUT);
            let committed = committed.map_err(|error| refusal(&consumer).unwrap_or(error))?;
            let mut found = BTreeMap::new();
            for element in committed.elements() {
                // A missing topic means that there is no progress. Other errors are temporary, and the progress they hide must not count as
                // lost.
                match element.error() {
                    Ok(()) => {}
                    Err(error) if error.rdkafka_error_code().is_some_and(is_unknown) => {}
                    Err(error) => return Err(error),
                }
                if let (Offset::Offset(_), Some(progress)) = (element.offset(), Progress::decode(element.metadata())) {
                    found.insert(element.partition() as i16, progress);
                }
            }
            Ok(found)
        })
        .await
    }

    /// Takes a transactional id from the producer that uses it. Its open transaction is rolled back, and it can neither send nor commit any
    /// more.
    ///
    /// # Errors
    /// Any error of the client. The other producer may then not be fenced.
    pub(crate) async fn fence(&self, transactional_id: &str, longest: Duration) -> Result<(), TransactionError> {
        let (config, kafka) = (self.settings.transactional(transactional_id, longest), self.settings.kafka().clone());
        blocking(move || {
            let producer = login::producer(&config, &kafka)?;
            producer.init_transactions(ANSWER_TIMEOUT)
        })
        .await
    }
}

/// Returns the error with which the group's coordinator refused a request, if it did. librdkafka gives it to a consumer that polls, while a request
/// for offsets times out.
fn refusal(consumer: &BaseConsumer<Quiet>) -> Option<KafkaError> {
    let mut events = (0..EVENTS_LOOKED_AT).map_while(|_| consumer.poll(Duration::ZERO));
    events.find_map(|event| event.err().filter(|error| error.rdkafka_error_code().is_some_and(is_refusal)))
}

fn is_refusal(code: RDKafkaErrorCode) -> bool {
    fault::classify_kafka(code).class == Class::ActionRequired
}

fn is_unknown(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownPartition
    )
}

/// The progress that a producer commits with its records.
pub(crate) struct Offsets {
    pub(crate) topic: String,
    pub(crate) lanes: Vec<(i16, Progress)>,
    pub(crate) member: Arc<ConsumerGroupMetadata>,
}

impl Offsets {
    fn list(&self) -> Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::with_capacity(self.lanes.len());
        for (lane, progress) in &self.lanes {
            // The relay does not use the offset's number. It shows people who look at the group how far the lane is.
            let offset = Offset::Offset(progress.ids.iter().max().map_or(0, |id| (*id).max(0)));
            let mut element = list.add_partition(&self.topic, (*lane).into());
            element.set_offset(offset)?;
            element.set_metadata(progress.encode());
        }
        Ok(list)
    }
}

/// Commits the records sent since the transaction began, together with the progress.
pub(super) async fn commit<C>(
    producer: Arc<BaseProducer<C>>,
    offsets: Offsets,
    within: Duration,
) -> Result<(), TransactionError>
where
    C: ProducerContext<NoCustomPartitioner> + 'static,
{
    blocking(move || {
        producer.send_offsets_to_transaction(&offsets.list()?, &offsets.member, within)?;
        let committed = producer.commit_transaction(within);
        // Serves the log lines and errors of this time. Each call serves one event.
        (0..EVENTS_OF_COMMIT).for_each(|_| producer.poll(Duration::ZERO));
        committed
    })
    .await
}

/// Makes the producer the only one with its transactional id.
pub(super) async fn init<C>(producer: Arc<BaseProducer<C>>, within: Duration) -> Result<(), TransactionError>
where
    C: ProducerContext<NoCustomPartitioner> + 'static,
{
    blocking(move || producer.init_transactions(within)).await
}

/// Runs a librdkafka call on a blocking thread. The call runs to its end even if the caller stops waiting.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, KafkaError> + Send + 'static,
) -> Result<T, TransactionError> {
    let called = tokio::task::spawn_blocking(call).await;
    called.unwrap_or(Err(KafkaError::Canceled)).map_err(TransactionError::from_kafka)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_prefix_and_a_fixed_length() {
        assert_eq!(name_of(1), "outbox-relay.000000000000001");
        assert_eq!(name_of((1 << 60) - 1), "outbox-relay.fffffffffffffff");
    }
}
