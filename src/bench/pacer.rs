//! Writes events at a fixed rate, like an application: event `n` is due `n / rate` seconds after the start, even if earlier events
//! are late. A stall therefore counts for every event that was due in it, not for one.
//!
//! The writers are threads and not tasks, because a runtime's timer wakes up to a millisecond late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::bench_schema::{BenchSchema, BenchSchemas};
use super::failure::BenchError;

/// The header with the number of the event.
pub(crate) const HEADER: &str = "bench-sequence";

/// The time between the start and the first event, in which the writers connect.
const LEAD: Duration = Duration::from_millis(500);

/// The most transactions per second of a connection. The rest of its time is slack, so that one slow commit does not delay
/// the next event's insert.
const RATE_OF_A_CONNECTION: u64 = 125;
const MOST_CONNECTIONS: u64 = 32;

/// The schedule of events: the time at which each is due.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    /// The time at which event 0 is due.
    pub(crate) epoch: Instant,
    pub(crate) events_per_s: u64,
    /// The number of different entities.
    pub(crate) entities: u64,
}

impl Schedule {
    pub(crate) fn starting_soon(events_per_s: u64, entities: u64) -> Self {
        Self { epoch: Instant::now() + LEAD, events_per_s: events_per_s.max(1), entities: entities.max(1) }
    }

    /// Returns the microseconds from the epoch to the time at which an event is due.
    pub(crate) fn due_us(&self, event: u64) -> i64 {
        (event as i128 * 1_000_000 / i128::from(self.events_per_s)) as i64
    }

    /// Returns the microseconds since the epoch; negative before it.
    pub(crate) fn now_us(&self) -> i64 {
        let now = Instant::now();
        match now.checked_duration_since(self.epoch) {
            Some(since) => since.as_micros() as i64,
            None => -(self.epoch.duration_since(now).as_micros() as i64),
        }
    }

    /// Returns the entity of an event; consecutive events have different entities.
    pub(crate) fn entity(&self, event: u64) -> String {
        // Fibonacci hashing spreads consecutive numbers.
        let hash = event.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        format!("order-{}", hash % self.entities)
    }

    fn wait_until_due(&self, event: u64) {
        let left = self.due_us(event) - self.now_us();
        if left > 0 {
            std::thread::sleep(Duration::from_micros(left.unsigned_abs()));
        }
    }
}

/// The times of one written event, in microseconds after the epoch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written {
    pub(crate) event: u64,
    pub(crate) started_us: i64,
    pub(crate) committed_us: i64,
}

/// The writing threads. Dropping the value stops them.
pub(crate) struct Pacer {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Vec<Written>, BenchError>>>,
}

impl Pacer {
    /// Starts to write `events` events; [`Pacer::stop`] ends it earlier.
    pub(crate) fn start(
        schemas: &BenchSchemas,
        schema: &BenchSchema,
        samples: &[String],
        schedule: Schedule,
        events: Option<u64>,
    ) -> Result<Self, BenchError> {
        let connections = schedule.events_per_s.div_ceil(RATE_OF_A_CONNECTION).clamp(2, MOST_CONNECTIONS);
        let stop = Arc::new(AtomicBool::new(false));
        let samples: Arc<[String]> = samples.into();
        let mut threads = Vec::new();
        for index in 0..connections {
            let writer = Writer {
                schemas: schemas.clone(),
                insert: insert(schema),
                samples: Arc::clone(&samples),
                schedule,
                numbers: (index..events.unwrap_or(u64::MAX)).step_by(connections as usize),
                stop: Arc::clone(&stop),
            };
            threads.push(std::thread::Builder::new().name("bench-writer".to_owned()).spawn(move || writer.run())?);
        }
        Ok(Self { stop, threads })
    }

    /// Returns true once every thread has ended, with or without an error.
    pub(crate) fn is_done(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Returns true if an error ended a thread. The caller must not wait for the other threads then.
    pub(crate) fn has_lost_a_thread(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Stops writing, and returns the written events in no order.
    pub(crate) fn stop(mut self) -> Result<Vec<Written>, BenchError> {
        self.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    /// Joins the threads, and returns the written events in no order. Call it once [`Pacer::is_done`] returns true.
    pub(crate) fn finish(mut self) -> Result<Vec<Written>, BenchError> {
        self.join()
    }

    fn join(&mut self) -> Result<Vec<Written>, BenchError> {
        let mut all = Vec::new();
        for thread in self.threads.drain(..) {
            all.extend(thread.join().map_err(|_| BenchError::Thread)??);
        }
        Ok(all)
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        // The threads end after their current event. Their times are no longer needed.
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn insert(schema: &BenchSchema) -> String {
    format!(
        "insert into {} (entity_type, entity_id, event_type, payload, headers) \
         values ('order', $1, 'OrderPlaced', $2::text::jsonb, jsonb_build_object('{HEADER}', $3::text))",
        schema.names.outbox()
    )
}

struct Writer {
    schemas: BenchSchemas,
    insert: String,
    samples: Arc<[String]>,
    schedule: Schedule,
    numbers: std::iter::StepBy<std::ops::Range<u64>>,
    stop: Arc<AtomicBool>,
}

impl Writer {
    fn run(self) -> Result<Vec<Written>, BenchError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.write())
    }

    async fn write(self) -> Result<Vec<Written>, BenchError> {
        let mut conn = self.schemas.connect().await?;
        let mut written = Vec::new();
        for event in self.numbers.clone() {
            // Blocking is fine: no other task runs on this thread's runtime.
            self.schedule.wait_until_due(event);
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let started_us = self.schedule.now_us();
            self.write_one(&mut conn, event).await?;
            written.push(Written { event, started_us, committed_us: self.schedule.now_us() });
        }
        conn.close().await?;
        Ok(written)
    }

    /// Writes one event in its own transaction.
    async fn write_one(&self, conn: &mut PgConnection, event: u64) -> Result<(), BenchError> {
        sqlx::query(AssertSqlSafe(self.insert.as_str()))
            .bind(self.schedule.entity(event))
            .bind(&self.samples[event as usize % self.samples.len()])
            .bind(event.to_string())
            .execute(conn)
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_due_at_even_distances_and_never_drift() {
        let schedule = Schedule::starting_soon(3000, 10);
        assert_eq!(schedule.due_us(0), 0);
        assert_eq!(schedule.due_us(1), 333);
        assert_eq!(schedule.due_us(3000), 1_000_000);
        assert_eq!(schedule.due_us(3000 * 3600), 3_600_000_000);
    }

    #[test]
    fn neighbours_are_of_different_entities_and_all_entities_are_used() {
        let schedule = Schedule::starting_soon(1000, 50);
        let mut seen: Vec<_> = (0..2000).map(|event| schedule.entity(event)).collect();
        let same = seen.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!(same < 100, "{same} neighbours are the same");
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 50);
    }
}
