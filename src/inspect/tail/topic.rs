//! Reads the records: one thread reads the topics of the events, each topic from the time when its first event was written.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use uuid::Uuid;

use crate::config::KafkaSettings;
use crate::sink::reader::{Reader, header};

/// The wait before a missing topic or unreachable brokers are tried again.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// The place of a record with an event's id, and the time when it was read.
#[derive(Debug, Clone)]
pub(super) struct Sighting {
    pub(super) event_id: Uuid,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) at: SystemTime,
}

/// The handle of the reading thread. The thread ends when the handle is dropped.
pub(super) struct Follower {
    asked: BTreeMap<String, i64>,
    wishes: Sender<(String, i64)>,
    sightings: Receiver<Sighting>,
}

impl Follower {
    pub(super) fn start(kafka: &KafkaSettings) -> Result<Self, KafkaError> {
        let reader = Reader::new(kafka)?;
        let (wishes, wished) = channel();
        let (seen, sightings) = channel();
        std::thread::spawn(move || follow(&reader, &wished, &seen));
        Ok(Self { asked: BTreeMap::new(), wishes, sightings })
    }

    /// Follows a topic from `since_ms` on (milliseconds since 1970), unless the topic is already followed.
    pub(super) fn follow(&mut self, topic: &str, since_ms: i64) {
        if !self.asked.contains_key(topic) {
            self.asked.insert(topic.to_owned(), since_ms);
            // Sending fails only after the thread has ended.
            let _ = self.wishes.send((topic.to_owned(), since_ms));
        }
    }

    pub(super) fn sightings(&self) -> Vec<Sighting> {
        self.sightings.try_iter().collect()
    }
}

fn follow(reader: &Reader, wished: &Receiver<(String, i64)>, seen: &Sender<Sighting>) {
    let (mut open, mut asked_at): (Vec<(String, i64)>, Option<Instant>) = (Vec::new(), None);
    loop {
        match wished.try_recv() {
            Ok(wish) => {
                open.push(wish);
                asked_at = None;
            }
            Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
            Err(std::sync::mpsc::TryRecvError::Empty) => {}
        }
        if !open.is_empty() && asked_at.is_none_or(|at| at.elapsed() > ASK_AGAIN) {
            open.retain(|(topic, since)| begin(reader, topic, *since).is_none());
            asked_at = Some(Instant::now());
        }
        let Some(message) = reader.next(Duration::from_millis(20)) else { continue };
        let Some(event_id) = header(&message, "event-id").and_then(|id| id.parse().ok()) else { continue };
        let (partition, offset, at) = (message.partition(), message.offset(), SystemTime::now());
        if seen.send(Sighting { event_id, partition, offset, at }).is_err() {
            return;
        }
    }
}

/// Begins to read a topic; `None` when this must be tried again.
fn begin(reader: &Reader, topic: &str, since_ms: i64) -> Option<()> {
    let partitions = reader.partitions(topic).ok()?.ok()?;
    let ids: Vec<_> = partitions.iter().map(|partition| partition.id).collect();
    let parts = reader.since(topic, &ids, since_ms.max(1)).ok()?;
    let parts: Vec<_> = parts.iter().map(|part| (topic.to_owned(), part.partition, part.from)).collect();
    reader.follow(&parts).ok()
}
