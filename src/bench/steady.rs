//! Runs a steady flow for `latency` and `failover`: warm relays, a writer at a fixed rate, and a consumer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Executor};

use super::Bench;
use super::bench_schema::BenchSchema;
use super::failure::BenchError;
use super::pacer::{Pacer, Schedule};
use super::receiver::Receiver;
use super::relay_process::RelayProcess;

/// The time limit for a relay to start and publish its first event.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// The interval of polling.
pub(crate) const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

pub(crate) struct Steady {
    pub(crate) relays: Vec<RelayProcess>,
    pub(crate) receiver: Receiver,
    schedule: Arc<Mutex<Option<Schedule>>>,
}

impl Steady {
    /// Starts relays and a consumer, and waits until a first event has arrived.
    pub(crate) async fn start(bench: &Bench, schema: &BenchSchema, relays: usize) -> Result<Self, BenchError> {
        let schedule = Arc::default();
        let receiver = Receiver::start(&bench.schemas, schema, Arc::clone(&schedule))?;
        let relays = (0..relays)
            .map(|index| RelayProcess::start(&bench.launch, schema, index))
            .collect::<Result<Vec<_>, _>>()?;
        let mut steady = Self { relays, receiver, schedule };
        steady.one_event(bench, schema).await?;
        Ok(steady)
    }

    /// Writes one event and waits until it arrives.
    async fn one_event(&mut self, bench: &Bench, schema: &BenchSchema) -> Result<(), BenchError> {
        let mut conn = bench.schemas.connect().await?;
        let outbox = schema.names.outbox();
        let sql = format!(
            "insert into {outbox} (entity_type, entity_id, event_type) values ('order', 'order-0', 'OrderPlaced')"
        );
        conn.execute(AssertSqlSafe(sql)).await?;
        let began = Instant::now();
        while self.receiver.records() == 0 {
            self.check()?;
            if began.elapsed() > READY_WITHIN {
                let (what, log) = ("the first event".to_owned(), self.log());
                return Err(BenchError::Stalled { what, within: READY_WITHIN, log });
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        Ok(())
    }

    /// Starts the writer.
    pub(crate) fn write(
        &self,
        bench: &Bench,
        schema: &BenchSchema,
        schedule: Schedule,
        events: Option<u64>,
    ) -> Result<Pacer, BenchError> {
        *self.schedule.lock().unwrap_or_else(PoisonError::into_inner) = Some(schedule);
        Pacer::start(&bench.schemas, schema, &bench.samples, schedule, events)
    }

    /// Returns an error if a relay or the consumer has ended by itself.
    pub(crate) fn check(&mut self) -> Result<(), BenchError> {
        for relay in &mut self.relays {
            relay.check()?;
        }
        self.receiver.check()
    }

    /// Returns the end of the first relay's log, for an error.
    pub(crate) fn log(&self) -> String {
        self.relays.first().map_or_else(String::new, |relay| format!("\n{}", relay.log_tail()))
    }
}
