//! Finds records that were removed from a topic before this group had read them.
//!
//! Offsets may have gaps: the markers of transactions and compacted records leave them. So a gap is a loss only if the topic now begins
//! behind the start of the gap.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::{Offset, TopicPartitionList};

use crate::code::Code;
use crate::consumer::runtime::delivery::Delivery;
use crate::consumer::runtime::options::{ConsumerError, Lost};

/// Time limit for a question about a partition. It blocks the polling thread.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A gap of one offset that is not looked at between two records: the marker of a transaction.
const MARKER: i64 = 1;

/// Looks for records that are missing before the first record of a partition since it was assigned. Returns the offset that was committed,
/// if there is one.
pub(super) fn before_first<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    delivery: &Delivery,
    policy: Lost,
) -> Result<Option<i64>, ConsumerError> {
    let mut list = TopicPartitionList::new();
    list.add_partition(&delivery.topic, delivery.partition);
    let committed = consumer.committed_offsets(list, ANSWER_WITHIN).ok();
    let committed =
        committed.and_then(|list| match list.find_partition(&delivery.topic, delivery.partition)?.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        });
    if let Some(committed) = committed {
        look(consumer, delivery, committed, policy)?;
    }
    Ok(committed)
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
    // Without an answer the gap is taken for a harmless one: most are.
    let Ok((first, _)) = consumer.fetch_watermarks(&delivery.topic, delivery.partition, ANSWER_WITHIN) else {
        return Ok(());
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
