//! Asks Kafka which topics a consumer group reads. Joins no group.

use std::collections::BTreeSet;

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use crate::config::KafkaSettings;
use crate::sink::login;
use crate::sink::reader::ANSWER_WITHIN;

/// Returns the topics of which the group has committed an offset. Empty for a group that Kafka does not know, or that this user may not
/// describe. Blocks.
///
/// # Errors
/// Any other error of the client.
pub(crate) fn committed_topics(kafka: &KafkaSettings, group: &str) -> Result<BTreeSet<String>, KafkaError> {
    let settings =
        [("client.id", "outbox-relay"), ("enable.auto.commit", "false"), ("allow.auto.create.topics", "false")];
    let mut config = kafka.consumer_config(&settings);
    config.set("group.id", group);
    let consumer = login::consumer(&config, kafka)?;
    let metadata = consumer.fetch_metadata(None, ANSWER_WITHIN)?;
    let mut all = TopicPartitionList::new();
    for topic in metadata.topics() {
        topic.partitions().iter().for_each(|partition| {
            all.add_partition(topic.name(), partition.id());
        });
    }
    let committed = match consumer.committed_offsets(all, ANSWER_WITHIN) {
        Ok(committed) => committed,
        Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed) => {
            return Ok(BTreeSet::new());
        }
        Err(error) => return Err(error),
    };
    let is_committed = |offset| matches!(offset, Offset::Offset(_));
    let elements = committed.elements();
    Ok(elements.iter().filter(|one| is_committed(one.offset())).map(|one| one.topic().to_owned()).collect())
}
