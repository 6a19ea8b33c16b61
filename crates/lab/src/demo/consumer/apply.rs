//! Applies an event once: `event_once` and the effect are in one transaction, so that either both are committed or neither is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::{Executor, PgPool};
use tokio::sync::mpsc;
use uuid::Uuid;

/// The consumer group under which the consumer stores its processed events.
const GROUP: &str = "demo-billing";

/// An event as it was delivered.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) event_id: Uuid,
    /// The record's key.
    pub(super) order_id: Option<String>,
    pub(super) event_type: String,
}

/// The results of an applier.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// The deliveries of events that had been applied before.
    pub(super) duplicates: u64,
}

/// Creates the table of effects. It has no unique key on the event's id, so that an event that was applied twice would show up.
pub(super) async fn create_table(pool: &PgPool) -> Result<(), sqlx::Error> {
    let table = "create table demo_applied (position bigint generated always as identity, event_id uuid not null, \
                 order_id text, event_type text not null)";
    pool.execute(table).await.map(drop)
}

/// Applies deliveries until the reader has ended.
pub(super) async fn run(
    pool: PgPool,
    mut inbox: mpsc::Receiver<Delivery>,
    handled: Arc<AtomicU64>,
) -> Result<Applied, sqlx::Error> {
    let mut applied = Applied::default();
    while let Some(delivery) = inbox.recv().await {
        if !apply(&pool, &delivery).await? {
            applied.duplicates += 1;
        }
        handled.fetch_add(1, Ordering::Relaxed);
    }
    Ok(applied)
}

/// Applies one event. Returns false if it had been applied before.
async fn apply(pool: &PgPool, delivery: &Delivery) -> Result<bool, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let first: bool = sqlx::query_scalar("select event_once($1, $2)")
        .bind(GROUP)
        .bind(delivery.event_id)
        .fetch_one(&mut *transaction)
        .await?;
    if first {
        sqlx::query("insert into demo_applied (event_id, order_id, event_type) values ($1, $2, $3)")
            .bind(delivery.event_id)
            .bind(&delivery.order_id)
            .bind(&delivery.event_type)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(first)
}
