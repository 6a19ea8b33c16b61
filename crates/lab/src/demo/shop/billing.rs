//! Applies each event of the shop once: the mark of the event and its effect are in one transaction.

use std::sync::Arc;

use event_outbox::Names;
use event_outbox::consumer::{ConsumerError, Context, Failed, Stats};
use rdkafka::ClientConfig;
use sqlx::{Executor, PgPool};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::clerks::EVENT_TYPES;
use crate::demo::consumer;

/// The table of effects. It has no unique key on the event's id, so that an event that was applied twice would show up.
const TABLE: &str = "create table demo_applied (position bigint generated always as identity, event_id uuid not null, \
                     order_id text, event_type text not null)";

/// The running consumer. Dropping it stops it at once.
#[derive(Debug)]
pub(super) struct Billing {
    running: JoinSet<Result<(), ConsumerError>>,
    stop: Arc<Notify>,
    stats: Arc<Stats>,
}

impl Billing {
    /// Creates the table of effects and starts to consume the topic.
    pub(super) async fn start(
        pool: &PgPool,
        names: &Names,
        kafka: &ClientConfig,
        topic: &str,
    ) -> Result<Self, sqlx::Error> {
        pool.execute(TABLE).await?;
        let consumer = consumer::begin(pool, names, kafka).topic(topic);
        let consumer = EVENT_TYPES.iter().fold(consumer, |consumer, name| consumer.on_raw(name, .., apply));
        let (stats, stop) = (consumer.stats(), Arc::new(Notify::new()));
        let stopping = Arc::clone(&stop);
        let mut running = JoinSet::new();
        running.spawn(consumer.run(async move { stopping.notified().await }));
        Ok(Self { running, stop, stats })
    }

    /// Returns the number of records that are dealt with. While it grows, the consumer is at work.
    pub(super) fn handled(&self) -> u64 {
        self.stats.applied() + self.stats.repeated() + self.stats.ignored() + self.stats.dead()
    }

    /// Returns the number of deliveries that were recognised as repetitions.
    pub(super) fn repeated(&self) -> u64 {
        self.stats.repeated()
    }

    /// Returns the consumer's counters.
    pub(super) fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Waits until the consumer has ended.
    pub(super) async fn ended(&mut self) -> Result<(), ConsumerError> {
        let ended = self.running.join_next().await;
        ended.map_or(Ok(()), |ended| ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())))
    }

    /// Stops the consumer and waits until it has ended.
    pub(super) async fn stop(&mut self) -> Result<(), ConsumerError> {
        self.stop.notify_one();
        self.ended().await
    }
}

async fn apply(mut ctx: Context) -> Result<(), Failed> {
    let event = ctx.event();
    let (event_id, event_type) = (event.event_id.0, event.event_type.clone());
    let order_id = event.key_text().map(str::to_owned);
    sqlx::query("insert into demo_applied (event_id, order_id, event_type) values ($1, $2, $3)")
        .bind(event_id)
        .bind(order_id)
        .bind(event_type)
        .execute(ctx.tx())
        .await?;
    Ok(())
}
