//! Consumes the topic and records the time of each arrival. It polls one record at a time on its own thread, because waiting for
//! a batch would add to the measured latency.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::bench_schema::{BenchSchema, BenchSchemas};
use super::failure::BenchError;
use super::pacer::{HEADER, Schedule};

/// The longest wait of a poll for a record. A stop takes effect only after that wait.
const POLL: Duration = Duration::from_millis(50);

const CONSUMER: &[(&str, &str)] = &[
    ("client.id", "outbox-relay-bench"),
    // librdkafka assigns partitions only to a consumer with a group; the bench never commits offsets to it.
    ("group.id", "outbox-relay-bench"),
    ("enable.auto.commit", "false"),
    // The broker answers as soon as it has one byte.
    ("fetch.min.bytes", "1"),
    ("fetch.wait.max.ms", "100"),
    ("fetch.error.backoff.ms", "1"),
    ("socket.nagle.disable", "true"),
];

/// An arrived event; times are in microseconds after the schedule's epoch. An event that was sent twice arrives twice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received {
    pub(crate) event: u64,
    pub(crate) at_us: i64,
}

#[derive(Default)]
struct Seen {
    /// The number of all records, including those that no pacer wrote.
    records: AtomicUsize,
    events: Mutex<Vec<Received>>,
    stop: AtomicBool,
}

/// The consuming thread. Dropping the value stops the thread.
pub(crate) struct Receiver {
    seen: Arc<Seen>,
    thread: JoinHandle<Result<(), BenchError>>,
}

impl Receiver {
    /// Consumes the schema's topic from its beginning.
    pub(crate) fn start(
        schemas: &BenchSchemas,
        schema: &BenchSchema,
        schedule: Arc<Mutex<Option<Schedule>>>,
    ) -> Result<Self, BenchError> {
        let consumer: BaseConsumer = schemas.kafka().consumer_config(CONSUMER).create()?;
        let mut partitions = TopicPartitionList::new();
        for partition in 0..schema.partitions {
            partitions.add_partition_offset(&schema.name, partition, Offset::Beginning)?;
        }
        consumer.assign(&partitions)?;
        let seen = Arc::new(Seen::default());
        let noted = Arc::clone(&seen);
        let thread = std::thread::Builder::new()
            .name("bench-receiver".to_owned())
            .spawn(move || receive(&consumer, &noted, &schedule))?;
        Ok(Self { seen, thread })
    }

    /// Returns the number of records so far.
    pub(crate) fn records(&self) -> usize {
        self.seen.records.load(Ordering::Relaxed)
    }

    /// Returns an error if the thread has ended.
    pub(crate) fn check(&self) -> Result<(), BenchError> {
        if self.thread.is_finished() { Err(BenchError::Thread) } else { Ok(()) }
    }

    /// Returns the arrived events, from number `first` in the order of arrival.
    pub(crate) fn since(&self, first: usize) -> Vec<Received> {
        let events = self.seen.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.get(first..).unwrap_or_default().to_vec()
    }

    /// Returns the number of arrived events.
    pub(crate) fn events(&self) -> usize {
        self.seen.events.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
    }
}

fn receive(consumer: &BaseConsumer, seen: &Seen, schedule: &Mutex<Option<Schedule>>) -> Result<(), BenchError> {
    while !seen.stop.load(Ordering::Relaxed) {
        // After a lost connection librdkafka reports an error and reconnects by itself. Missing events are counted at the end.
        let Some(Ok(message)) = consumer.poll(POLL) else { continue };
        let schedule = *schedule.lock().unwrap_or_else(PoisonError::into_inner);
        let at_us = schedule.map_or(0, |schedule| schedule.now_us());
        if let Some(event) = number(&message) {
            let mut events = seen.events.lock().unwrap_or_else(PoisonError::into_inner);
            events.push(Received { event, at_us });
        }
        seen.records.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn number(message: &BorrowedMessage<'_>) -> Option<u64> {
    let header = message.headers()?.iter().find(|header| header.key == HEADER)?;
    std::str::from_utf8(header.value?).ok()?.parse().ok()
}
