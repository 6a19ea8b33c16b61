//! The demo's topic on a real cluster.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// For an answer of the cluster.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

const LOOK_EVERY: Duration = Duration::from_millis(250);

/// As many replicas as the cluster gives by itself.
const REPLICAS_BY_DEFAULT: i32 = -1;

/// Why the topic is not there, or still there.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// The cluster refused.
    #[error("the Kafka cluster refuses to create or delete the topic {topic}: {code}")]
    Refused {
        /// The topic.
        topic: String,
        /// Its answer.
        code: RDKafkaErrorCode,
    },
    /// The cluster keeps a consumer group.
    #[error("the Kafka cluster refuses to delete the consumer group {group}: {code}")]
    Group {
        /// The group.
        group: String,
        /// Its answer.
        code: RDKafkaErrorCode,
    },
    /// No answer.
    #[error("the Kafka cluster does not answer within {ANSWER_WITHIN:?}")]
    Unreachable(#[source] KafkaError),
    /// The settings; librdkafka's words may quote one.
    #[error("librdkafka refuses the combination of the KAFKA_ settings")]
    Client,
}

/// Creates it.
pub(super) async fn create(config: &ClientConfig, name: &str, partitions: i32) -> Result<(), TopicError> {
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(REPLICAS_BY_DEFAULT));
    let results = admin(config)?.create_topics([&topic], &options()).await.map_err(TopicError::Unreachable)?;
    results.into_iter().try_for_each(|result| result.map(drop).map_err(refused))
}

/// Deletes it, if it is there.
pub(super) async fn delete(config: &ClientConfig, name: &str) -> Result<(), TopicError> {
    let results = admin(config)?.delete_topics(&[name], &options()).await.map_err(TopicError::Unreachable)?;
    results.into_iter().try_for_each(|result| match result {
        Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => Ok(()),
        result => result.map(drop).map_err(refused),
    })
}

/// Deletes consumer groups, as far as they are there. A static member does not leave when it stops: its group is empty once its session
/// has run out.
pub(super) async fn delete_groups(config: &ClientConfig, names: &[&str], session: Duration) -> Result<(), TopicError> {
    let admin = admin(config)?;
    let deadline = Instant::now() + session * 2;
    loop {
        let results = admin.delete_groups(names, &options()).await.map_err(TopicError::Unreachable)?;
        let failed = results.into_iter().filter_map(Result::err);
        let mut failed = failed.filter(|(_, code)| *code != RDKafkaErrorCode::GroupIdNotFound);
        match failed.next() {
            None => return Ok(()),
            Some((_, RDKafkaErrorCode::NonEmptyGroup)) if Instant::now() < deadline => {}
            Some((group, code)) => return Err(TopicError::Group { group, code }),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn admin(config: &ClientConfig) -> Result<AdminClient<DefaultClientContext>, TopicError> {
    config.create().map_err(|_| TopicError::Client)
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ANSWER_WITHIN)).operation_timeout(Some(ANSWER_WITHIN))
}

fn refused((topic, code): (String, RDKafkaErrorCode)) -> TopicError {
    TopicError::Refused { topic, code }
}
