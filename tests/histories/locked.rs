//! Tests a row that another session locks: only the row's entity stops.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use event_outbox::ledger::Rules;
use libtest_mimic::Trial;
use sqlx::{Connection, Executor};

use crate::bed::server;
use lab::kafka::RealKafka;
use lab::{Outbox, trials};

/// The number of rows behind the locked one, many more than a relay reads at a time.
const BEHIND: i64 = 200_000;

/// The time after which a standstill fails the test. A slow machine publishes some events in this time.
const STANDS_FOR: Duration = Duration::from_secs(20);

/// The number of rows of the locked row's entity, which wait behind it.
const WAITING: i64 = 5;

pub(crate) fn trials() -> Vec<Trial> {
    trials! { with_kafka: a_row_that_another_session_locks_stops_no_other_entity; }
}

async fn a_row_that_another_session_locks_stops_no_other_entity(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let postgres = server().await?;
    let outbox = Outbox::on(&postgres, "locked").await?;
    outbox.create_topic(&kafka).await?;
    outbox.write("locked", 1, 1).await?;
    outbox.write_backlog(BEHIND, 1_000).await?;
    outbox.write("locked", 2, WAITING).await?;
    let mut other = outbox.connect().await?;
    let mut lock = other.begin().await?;
    lock.execute("select from event_outbox where entity_id = 'locked' and payload['n'] = '1' for update").await?;

    let relay = outbox.relay(&kafka).start("locked")?;
    publishes_all_others(&outbox).await?;
    let waiting = "select count(*) from event_outbox where status = 'PENDING' and entity_id = 'locked'";
    ensure!(outbox.number(waiting).await? == 1 + WAITING, "a row has overtaken the locked one");

    lock.rollback().await?;
    outbox.until_settled().await;
    ensure!(relay.stop().await? == Some(0));
    outbox.all_published().await?;
    outbox.reconcile(&kafka, Rules::default()).await?;
    postgres.stop().await;
    Ok(())
}

/// Waits until the events of all other entities are published; fails if no event is published for too long.
async fn publishes_all_others(outbox: &Outbox) -> anyhow::Result<()> {
    let sql = "select count(*) from event_outbox where status = 'PENDING' and entity_id <> 'locked'";
    let (mut last, mut moved) = (BEHIND, Instant::now());
    while last > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let pending = outbox.number(sql).await?;
        if pending != last {
            (last, moved) = (pending, Instant::now());
        }
        ensure!(moved.elapsed() < STANDS_FOR, "{last} rows of other entities have not moved for {STANDS_FOR:?}");
    }
    Ok(())
}
