//! A consumer that notes when each record arrived: on a thread of its own, one record per poll, because a consumer that waits for
//! a batch measures its own patience.

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

/// How long a poll waits for a record that does not come; until then a stop goes unnoticed.
const POLL: Duration = Duration::from_millis(50);

const CONSUMER: &[(&str, &str)] = &[
    ("client.id", "outbox-relay-bench"),
    // A consumer cannot be assigned partitions without; nothing is ever committed to it.
    ("group.id", "outbox-relay-bench"),
    ("enable.auto.commit", "false"),
    // The broker answers with the first byte there is.
    ("fetch.min.bytes", "1"),
    ("fetch.wait.max.ms", "100"),
    ("fetch.error.backoff.ms", "1"),
    ("socket.nagle.disable", "true"),
];

/// An event that arrived, in microseconds after the schedule's epoch. One that was sent twice arrives twice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received {
    pub(crate) event: u64,
    pub(crate) at_us: i64,
}

#[derive(Default)]
struct Seen {
    /// All records, those of no pacer included.
    records: AtomicUsize,
    events: Mutex<Vec<Received>>,
    stop: AtomicBool,
}

/// The consuming thread. Dropping it stops it.
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

    /// Records so far.
    pub(crate) fn records(&self) -> usize {
        self.seen.records.load(Ordering::Relaxed)
    }

    /// An error when the thread has ended.
    pub(crate) fn check(&self) -> Result<(), BenchError> {
        if self.thread.is_finished() { Err(BenchError::Thread) } else { Ok(()) }
    }

    /// Events that arrived from number `first` of their arrival on.
    pub(crate) fn since(&self, first: usize) -> Vec<Received> {
        let events = self.seen.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.get(first..).unwrap_or_default().to_vec()
    }

    /// How many events have arrived.
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
        // librdkafka reports a lost connection and goes on by itself; what never arrives is counted in the end.
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
