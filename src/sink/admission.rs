//! Refuses events that would mislead others: events for topics that belong to Kafka, to consumers' dead letters or to nobody, and events with
//! headers that only the relay may set.

use crate::config::TopicList;
use event_outbox::envelope::headers;
use event_outbox::event::StoredEvent;

/// The beginning of the names of Kafka's own topics.
const INTERNAL: &str = "__";

/// The end of the names of dead letter topics, which consumers write: `<topic>.<group>.dlq`.
const DEAD_LETTERS: &str = ".dlq";

/// Returns why the event must not be sent; `None` if it may.
pub(crate) fn refusal(event: &StoredEvent<'_>, topic: &str, allowed: Option<&TopicList>) -> Option<String> {
    topic_refusal(topic, allowed).or_else(|| {
        let reserved = event.headers.iter().find(|(name, _)| headers::is_reserved(name));
        reserved.map(|(name, _)| format!("the header {name:?} is reserved: only the relay and consumers set it"))
    })
}

/// Returns why no event may go to the topic; `None` if events may.
pub(crate) fn topic_refusal(topic: &str, allowed: Option<&TopicList>) -> Option<String> {
    if topic.starts_with(INTERNAL) {
        return Some(format!("the topic {topic} is internal to Kafka: its name begins with {INTERNAL}"));
    }
    if topic.ends_with(DEAD_LETTERS) {
        return Some(format!("the topic {topic} is for dead letters of consumers: its name ends in {DEAD_LETTERS}"));
    }
    let is_allowed = allowed.is_none_or(|allowed| allowed.has(topic));
    (!is_allowed).then(|| format!("the topic {topic} is not in RELAY_TOPICS"))
}
