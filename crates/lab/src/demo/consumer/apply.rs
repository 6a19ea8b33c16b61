//! Applying an event once: `event_once` and the effect in one transaction, so that both are there or neither.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::{Executor, PgPool};
use tokio::sync::mpsc;
use uuid::Uuid;

/// The name under which the consumer keeps what it has processed.
const GROUP: &str = "demo-billing";

/// An event, as it was delivered.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) event_id: Uuid,
    /// The record's key.
    pub(super) order_id: Option<String>,
    pub(super) event_type: String,
}

/// What an applier did.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Deliveries of an event that had been applied.
    pub(super) duplicates: u64,
}

/// No key on the event's id: were an event applied twice, the table would show it.
pub(super) async fn create_table(pool: &PgPool) -> Result<(), sqlx::Error> {
    let table = "create table demo_applied (position bigint generated always as identity, event_id uuid not null, \
                 order_id text, event_type text not null)";
    pool.execute(table).await.map(drop)
}

/// Applies what comes in until the reader has ended.
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

/// False when it had been applied before.
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
