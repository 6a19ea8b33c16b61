//! Says that an argument names a topic that does not exist, and which topics there are.

use rdkafka::error::RDKafkaErrorCode;

use super::exit::Failure;
use crate::config::KafkaSettings;
use crate::sink::admission::INTERNAL;
use crate::sink::reader::Reader;
use crate::text;
use event_outbox::code::Code;

/// Returns true for the cluster's answer that a topic does not exist.
pub(super) fn is_meant(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)
}

/// Returns the failure of a command whose `argument` names such a topic.
pub(super) fn named(argument: &str, topic: &str, kafka: &KafkaSettings) -> Failure {
    let brokers = kafka.brokers();
    // Without an answer the hint is the same as without topics.
    let mut topics = Reader::new(kafka).and_then(|reader| reader.topics()).unwrap_or_default();
    topics.retain(|name| !name.starts_with(INTERNAL));
    let hint = match text::alike(topic, topics.iter().map(String::as_str)) {
        Some(alike) => format!("topics there are {alike}"),
        None => "this user sees no topic there; create it, grant DESCRIBE on it, or name other brokers".to_owned(),
    };
    Failure::usage(format!("{argument}: there is no topic {} at {brokers}", text::name(topic)))
        .code(Code::TopicMissing)
        .hint(hint)
}
