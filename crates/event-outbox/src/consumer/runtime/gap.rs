//! Finds records that were removed from a topic before this group had read them.
//!
//! Offsets may have gaps: the markers of transactions and compacted records leave them. So a gap is a loss only if the topic now begins
//! behind the start of the gap.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use crate::code::Code;
use crate::consumer::runtime::delivery::Delivery;
use crate::consumer::runtime::options::{ConsumerError, Lost};

/// Time limit for a question about a partition. It blocks the polling thread.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A gap of one offset that is not looked at between two records: the marker of a transaction.
const MARKER: i64 = 1;

/// Looks for records that are missing before the first record of a partition since it was assigned. `known` is the offset that was committed
/// then; Kafka is asked if it is unknown. Returns the offset that was committed, if there is one.
pub(super) fn before_first<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    delivery: &Delivery,
    known: Option<i64>,
    policy: Lost,
) -> Result<Option<i64>, ConsumerError> {
    let committed = match known {
        Some(offset) => Some(offset),
        None => committed(consumer, delivery, policy)?,
    };
    if let Some(committed) = committed {
        look(consumer, delivery, committed, policy)?;
    }
    Ok(committed)
}

fn committed<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    delivery: &Delivery,
    policy: Lost,
) -> Result<Option<i64>, ConsumerError> {
    let mut list = TopicPartitionList::new();
    list.add_partition(&delivery.topic, delivery.partition);
    let list = match consumer.committed_offsets(list, ANSWER_WITHIN) {
        Ok(list) => list,
        Err(error) => return unanswered(error, policy).map(|()| None),
    };
    let found = list.find_partition(&delivery.topic, delivery.partition);
    Ok(found.and_then(|found| match found.offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    }))
}

/// Decides what follows when Kafka does not say whether records are missing. Most gaps are harmless, but a consumer that is to stop at lost
/// events must not apply those behind them.
fn unanswered(error: KafkaError, policy: Lost) -> Result<(), ConsumerError> {
    match policy {
        Lost::GoOn => Ok(()),
        Lost::Stop => Err(error.into()),
    }
}

/// Looks for records that are missing between two records.
pub(super) fn between<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    delivery: &Delivery,
    expected: i64,
    policy: Lost,
) -> Result<(), ConsumerError> {
    if delivery.offset > expected + MARKER { look(consumer, delivery, expected, policy) } else { Ok(()) }
}

fn look<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    delivery: &Delivery,
    expected: i64,
    policy: Lost,
) -> Result<(), ConsumerError> {
    if delivery.offset <= expected {
        return Ok(());
    }
    let first = match consumer.fetch_watermarks(&delivery.topic, delivery.partition, ANSWER_WITHIN) {
        Ok((first, _)) => first,
        Err(error) => return unanswered(error, policy),
    };
    let to = first.min(delivery.offset);
    if to <= expected {
        return Ok(());
    }
    tracing::error!(
        code = %Code::EventsLost,
        topic = delivery.topic,
        partition = delivery.partition,
        from = expected,
        to,
        next_step = format!(
            "outbox-relay replay --topic {} --since TIME --to a topic that this group alone reads; then make retention.ms longer",
            delivery.topic
        ),
        consequence = "the events with offsets from `from` to before `to` were not applied",
        "events were removed before they were read"
    );
    match policy {
        Lost::GoOn => Ok(()),
        Lost::Stop => Err(ConsumerError::Lost {
            topic: delivery.topic.clone(),
            partition: delivery.partition,
            from: expected,
            to,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rdkafka::ClientConfig;
    use rdkafka::consumer::CommitMode;
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;

    #[test]
    fn a_consumer_that_is_to_stop_at_lost_events_stops_if_kafka_does_not_say_whether_there_are_any() {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic("t", 1, 1).expect("a topic");
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", "g");
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let mut three = TopicPartitionList::new();
        three.add_partition_offset("t", 0, Offset::Offset(3)).expect("an offset");
        consumer.commit(&three, CommitMode::Sync).expect("a commit");
        let delivery = Delivery {
            topic: "t".to_owned(),
            partition: 0,
            offset: 5,
            key: None,
            value: None,
            headers: Arc::default(),
            timestamp: None,
            parked: None,
        };
        let before = |known, policy| before_first(&consumer, &delivery, known, policy).ok();
        assert_eq!(before(None, Lost::Stop), Some(Some(3)));
        let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED];
        for (policy, known, expected) in
            [(Lost::Stop, None, None), (Lost::GoOn, None, Some(None)), (Lost::Stop, Some(3), Some(Some(3)))]
        {
            cluster.request_errors(RDKafkaApiKey::OffsetFetch, &refused);
            assert_eq!(before(known, policy), expected, "{policy:?} {known:?}");
            cluster.clear_request_errors(RDKafkaApiKey::OffsetFetch);
        }
        let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED; 4];
        cluster.request_errors(RDKafkaApiKey::ListOffsets, &refused);
        assert_eq!(before(Some(3), Lost::Stop), None);
        assert_eq!(before(Some(3), Lost::GoOn), Some(Some(3)));
    }
}
