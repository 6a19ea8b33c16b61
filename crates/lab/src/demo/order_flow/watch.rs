//! Reads the flow's topics beside the services and without a group, as any observer could.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use super::OrderFlowError;

/// The longest wait of the reader for a record.
const POLL: Duration = Duration::from_millis(50);

/// The longest wait for topics that have just been created.
const THERE_WITHIN: Duration = Duration::from_secs(10);

/// A record of the topics.
#[derive(Debug, Clone, Default)]
pub(super) struct Sighting {
    pub(super) event_id: Uuid,
    pub(super) event_type: String,
    pub(super) version: i32,
    pub(super) order_id: String,
    /// The start of the event's transaction, in milliseconds since 1970.
    pub(super) at: i64,
    /// True for a record on the topic of dead letters.
    pub(super) dead: bool,
}

/// The running reader. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Watch(Arc<AtomicBool>);

impl Watch {
    /// Reads all topics from their beginning. The last one is the topic of dead letters.
    pub(super) fn start(
        config: &ClientConfig,
        topics: &[String],
    ) -> Result<(Self, mpsc::UnboundedReceiver<Sighting>), OrderFlowError> {
        let consumer: BaseConsumer = config.create().map_err(OrderFlowError::Watch)?;
        let assigned = tokio::task::block_in_place(|| partitions(&consumer, topics)).map_err(OrderFlowError::Watch)?;
        consumer.assign(&assigned).map_err(OrderFlowError::Watch)?;
        let ended = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mpsc::unbounded_channel();
        let dead_letters = topics.last().cloned().unwrap_or_default();
        let end = Arc::clone(&ended);
        spawn_blocking(move || {
            while !end.load(Ordering::Relaxed) {
                // librdkafka reports errors and recovers by itself. The reconciliation notices records that never arrive.
                if let Some(Ok(message)) = consumer.poll(POLL)
                    && let Some(sighting) = see(&message, &dead_letters)
                    && sender.send(sighting).is_err()
                {
                    return;
                }
            }
        });
        Ok((Self(ended), receiver))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn partitions(consumer: &BaseConsumer, topics: &[String]) -> Result<TopicPartitionList, KafkaError> {
    let deadline = Instant::now() + THERE_WITHIN;
    let mut assigned = TopicPartitionList::new();
    for topic in topics {
        loop {
            let metadata = consumer.fetch_metadata(Some(topic), THERE_WITHIN)?;
            let there: HashMap<i32, i32> = metadata
                .topics()
                .iter()
                .flat_map(|topic| topic.partitions())
                .map(|partition| (partition.id(), partition.leader()))
                .collect();
            if (!there.is_empty() && there.values().all(|leader| *leader >= 0)) || Instant::now() > deadline {
                for partition in there.keys() {
                    assigned.add_partition_offset(topic, *partition, Offset::Beginning)?;
                }
                break;
            }
            std::thread::sleep(POLL);
        }
    }
    Ok(assigned)
}

/// Reads the event of a record; `None` if it has none.
fn see(message: &BorrowedMessage<'_>, dead_letters: &str) -> Option<Sighting> {
    Some(Sighting {
        event_id: header(message, "event-id")?.parse().ok()?,
        event_type: header(message, "event-type")?.to_owned(),
        version: header(message, "event-version")?.parse().ok()?,
        order_id: String::from_utf8_lossy(message.key()?).into_owned(),
        at: message.timestamp().to_millis()?,
        dead: message.topic() == dead_letters,
    })
}

fn header<'a>(message: &'a BorrowedMessage<'_>, name: &str) -> Option<&'a str> {
    let header = message.headers()?.iter().find(|header| header.key == name)?;
    std::str::from_utf8(header.value?).ok()
}
