//! Waits until the shop's events are published and applied. Gives up when nothing changes any more.

use std::time::Duration;

use sqlx::PgPool;

use super::billing::Billing;
use super::clerks;
use crate::demo::patience::{PATIENCE, Patience};
use crate::demo::program::Program;

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Counts the shop's events that wait.
pub(super) async fn pending(pool: &PgPool) -> Result<u64, sqlx::Error> {
    let count: i64 =
        sqlx::query_scalar("select count(*) from event_outbox where status = 'PENDING' and headers ->> 'source' = $1")
            .bind(clerks::SOURCE)
            .fetch_one(pool)
            .await?;
    Ok(count.unsigned_abs())
}

/// Waits until none of the shop's events waits, and returns true. Returns false if their number has not changed for too long, or the relay
/// has ended.
pub(super) async fn published(pool: &PgPool, relay: &mut Program) -> Result<bool, sqlx::Error> {
    let mut patience = Patience::new(PATIENCE);
    loop {
        let waiting = pending(pool).await?;
        if waiting == 0 {
            return Ok(true);
        }
        if relay.has_ended() || patience.is_over(waiting) {
            return Ok(false);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Waits until the consumer has dealt with this many records, and returns true. Returns false if it is stuck.
pub(super) async fn applied(billing: &Billing, records: u64) -> bool {
    let mut patience = Patience::new(PATIENCE);
    while billing.handled() < records {
        if patience.is_over(billing.handled()) {
            return false;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    true
}
