//! Tests large volumes: a backlog, and many events of one entity.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;

use crate::fault::Fault;
use crate::proxied_relay::BATCH;
use crate::stage::Stage;
use lab::kafka::RealKafka;
use lab::seed::size;
use lab::{Outbox, TestDatabase, trials};

const BACKLOG: &str = "OUTBOX_RELAY_TEST_BACKLOG";
const BACKLOG_BY_DEFAULT: u64 = 20_000;

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            a_backlog_drained_under_load_by_relays_that_are_killed,
            a_thousand_events_of_one_entity_through_kills_and_lost_acks;
    }
}

async fn a_backlog_drained_under_load_by_relays_that_are_killed(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let mut stage = Stage::open("backlog", &outbox, &kafka, 2).await?;
    let backlog = size(BACKLOG, BACKLOG_BY_DEFAULT) as i64;
    // No relay may run until the whole backlog exists.
    for relay in &mut stage.relays {
        relay.stop().await?;
    }
    outbox.write_backlog(backlog, 500).await?;
    let pending = outbox.number("select count(*) from event_outbox where status = 'PENDING'").await?;
    ensure!(pending >= backlog, "{pending}");
    for relay in &mut stage.relays {
        relay.revive()?;
        relay.until_ready().await?;
    }
    for _ in 0..2 {
        stage.until_moving().await?;
        Fault::Kill.strike(&mut stage, &kafka).await?;
    }
    stage.close(&kafka).await.map(drop)
}

/// Writes transactions of ten batches and transactions of one event, all in one lane.
async fn a_thousand_events_of_one_entity_through_kills_and_lost_acks(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let mut stage = Stage::open("one entity", &outbox, &kafka, 2).await?;
    for fault in [Fault::Kill, Fault::LoseAck, Fault::CutPostgres, Fault::Kill] {
        outbox.write_backlog(10 * BATCH as i64, 1).await?;
        stage.until_moving().await?;
        fault.strike(&mut stage, &kafka).await?;
    }
    outbox.write("e0", 0, 50).await?;
    stage.close(&kafka).await.map(drop)
}
