//! Waits until the demo's events are published and applied. Gives up only when nothing has changed for a while, not after a fixed time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::PgPool;

use crate::demo::relay_process::RelayProcess;
use crate::demo::shop;

/// The longest time without any change. A relay that starts on a busy machine, or claims the lanes of a killed one, takes seconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Counts the shop's events that wait.
pub(super) async fn pending(pool: &PgPool) -> Result<u64, sqlx::Error> {
    let count: i64 =
        sqlx::query_scalar("select count(*) from event_outbox where status = 'PENDING' and headers ->> 'source' = $1")
            .bind(shop::SOURCE)
            .fetch_one(pool)
            .await?;
    Ok(count.unsigned_abs())
}

/// Waits until none of the shop's events waits, and returns true. Returns false if their number has not changed for too long, or the relay
/// has ended.
pub(super) async fn published(pool: &PgPool, relay: &mut RelayProcess) -> Result<bool, sqlx::Error> {
    let mut patience = Patience::new();
    loop {
        let waiting = pending(pool).await?;
        if waiting == 0 {
            return Ok(true);
        }
        if !relay.is_running() || patience.is_over(waiting) {
            return Ok(false);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Returns the result of `work`, or `None` if `progress` has not grown for too long.
pub(super) async fn while_growing<T>(progress: &AtomicU64, work: impl Future<Output = T>) -> Option<T> {
    let stuck = async {
        let mut patience = Patience::new();
        while !patience.is_over(progress.load(Ordering::Relaxed)) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        biased;
        done = work => Some(done),
        () = stuck => None,
    }
}

struct Patience {
    last: Option<u64>,
    since: Instant,
}

impl Patience {
    fn new() -> Self {
        Self { last: None, since: Instant::now() }
    }

    fn is_over(&mut self, now: u64) -> bool {
        if self.last != Some(now) {
            *self = Self { last: Some(now), since: Instant::now() };
        }
        self.since.elapsed() > PATIENCE
    }
}
