//! Refuses events that would mislead others: events for topics that belong to Kafka, to consumers' dead letters or to nobody, and events with
//! headers that only the relay may set.

use crate::config::RelaySettings;
use crate::text;
use event_outbox::envelope::headers;
use event_outbox::event::StoredEvent;

/// The beginning of the names of Kafka's own topics.
pub(crate) const INTERNAL: &str = "__";

/// The end of the names of dead letter topics, which consumers write: `<topic>.<group>.dlq`.
pub(crate) const DEAD_LETTERS: &str = ".dlq";

/// Returns why the event must not be sent; `None` if it may.
pub(crate) fn refusal(event: &StoredEvent<'_>, topic: &str, relay: &RelaySettings) -> Option<String> {
    topic_refusal(topic, relay).or_else(|| {
        let reserved = event.headers.iter().find(|(name, _)| headers::is_reserved(name));
        let reserved =
            reserved.map(|(name, _)| format!("the header {name:?} is reserved: only the relay and consumers set it"));
        reserved.or_else(|| event.partition().err().map(no_partition))
    })
}

/// Returns the reason for refusing an event that names a partition by something else than its number.
pub(crate) fn no_partition(named: &str) -> String {
    format!("the header {:?} has {named:?}, which is no partition", headers::PARTITION)
}

/// Returns the reason for refusing an event that names a partition which its topic does not have.
pub(crate) fn no_such_partition(partition: i32, topic: &str, partitions: i32) -> String {
    format!(
        "the header {:?} has \"{partition}\", and the topic {topic} has {}",
        headers::PARTITION,
        text::counted(partitions, "partition")
    )
}

/// Returns why no event may go to the topic; `None` if events may.
pub(crate) fn topic_refusal(topic: &str, relay: &RelaySettings) -> Option<String> {
    if topic.starts_with(INTERNAL) {
        return Some(format!("the topic {topic} is internal to Kafka: its name begins with {INTERNAL}"));
    }
    if topic.ends_with(DEAD_LETTERS) {
        return Some(format!("the topic {topic} is for dead letters of consumers: its name ends in {DEAD_LETTERS}"));
    }
    // The list names topics without RELAY_TOPIC_PREFIX. Otherwise setting the prefix alone would make every event DEAD.
    let name = relay.topic.without_prefix(topic);
    let is_allowed = relay.topics.as_ref().is_none_or(|allowed| allowed.has(name));
    (!is_allowed).then(|| format!("the topic {name} is not in RELAY_TOPICS"))
}
