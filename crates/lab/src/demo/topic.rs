//! Creates and deletes the demo's topics on a real cluster.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// The longest wait for an answer of the cluster.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The replication factor that makes the cluster use its default.
const REPLICAS_BY_DEFAULT: i32 = -1;

/// The reason why a topic or a group could not be created or deleted.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// The cluster refused the request.
    #[error("the Kafka cluster refuses to create or delete the topic {topic}: {code}")]
    Refused {
        /// The topic.
        topic: String,
        /// The error code of the cluster.
        code: RDKafkaErrorCode,
    },
    /// The cluster refused to delete a consumer group.
    #[error("the Kafka cluster refuses to delete the consumer group {group}: {code}")]
    Group {
        /// The group.
        group: String,
        /// The error code of the cluster.
        code: RDKafkaErrorCode,
    },
    /// The cluster did not answer.
    #[error("the Kafka cluster does not answer within {ANSWER_WITHIN:?}")]
    Unreachable(#[source] KafkaError),
    /// librdkafka refused the settings. Its message is left out, because it may quote a password.
    #[error("librdkafka refuses the combination of the KAFKA_ settings")]
    Client,
}

/// Creates the topic.
pub(super) async fn create(config: &ClientConfig, name: &str, partitions: i32) -> Result<(), TopicError> {
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(REPLICAS_BY_DEFAULT));
    let results = admin(config)?.create_topics([&topic], &options()).await.map_err(TopicError::Unreachable)?;
    results.into_iter().try_for_each(|result| result.map(drop).map_err(refused))
}

/// Deletes the topic, if it exists.
pub(super) async fn delete(config: &ClientConfig, name: &str) -> Result<(), TopicError> {
    let results = admin(config)?.delete_topics(&[name], &options()).await.map_err(TopicError::Unreachable)?;
    results.into_iter().try_for_each(|result| match result {
        Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => Ok(()),
        result => result.map(drop).map_err(refused),
    })
}

/// Deletes consumer groups, if they exist. A static member does not leave its group when it stops, so the group is empty only when the
/// session has expired.
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
