//! Tests rows that become pending below the ids that a running relay has published: after a truncate that restarts the sequence, after a
//! sequence was set back, and after somebody set a DEAD row PENDING.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use libtest_mimic::Trial;
use tokio::task::JoinSet;
use tokio::time::sleep;
use uuid::Uuid;

use crate::bed::{Bed, server};
use crate::truth::{Outcome, Written, now};
use lab::kafka::RealKafka;
use lab::trials;

/// The number of events. Writing them takes longer than the 5 s between two sweeps, so a relay that misses them publishes some of them late
/// for certain.
const EVENTS: u32 = 32;
const BETWEEN: Duration = Duration::from_millis(200);

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_kafka:
            events_after_a_truncate_that_restarts_the_ids_are_not_late,
            events_after_a_sequence_was_set_back_are_not_late,
            events_after_a_truncate_that_restarts_the_ids_are_in_order,
            dead_rows_that_somebody_sets_pending_are_not_late;
    }
}

async fn events_after_a_truncate_that_restarts_the_ids_are_not_late(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    not_late_after("truncated", "truncate event_outbox restart identity", &kafka).await
}

/// The ids between have not been allocated yet.
async fn events_after_a_sequence_was_set_back_are_not_late(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    not_late_after("set-back", "select setval(pg_get_serial_sequence('event_outbox', 'id'), 100000)", &kafka).await
}

async fn not_late_after(name: &str, sql: &str, kafka: &RealKafka) -> anyhow::Result<()> {
    let postgres = server().await?;
    let bed = Bed::open(&postgres, kafka, name).await?;
    bed.outbox.execute("select setval(pg_get_serial_sequence('event_outbox', 'id'), 1000000)").await?;
    let mut writer = bed.outbox.connect().await?;
    for number in 0..50 {
        bed.insert(&mut writer, &format!("before{}", number % 5)).await?;
    }
    bed.until_settled().await?;
    bed.outbox.execute(sql).await?;
    for number in 0..EVENTS {
        bed.insert(&mut writer, &format!("after{number}")).await?;
        sleep(BETWEEN).await;
    }
    let verdict = bed.close(kafka, Some(Vec::new())).await?;
    eprintln!("{name}: {verdict}");
    postgres.stop().await;
    verdict.ensure_clean()
}

/// The ids reach those from before the truncate while entities go on.
async fn events_after_a_truncate_that_restarts_the_ids_are_in_order(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let postgres = server().await?;
    let bed = Arc::new(Bed::open(&postgres, &kafka, "truncated-order").await?);
    write(&bed, 100).await?;
    bed.until_settled().await?;
    bed.outbox.execute("truncate event_outbox restart identity").await?;
    write(&bed, 400).await?;
    let bed = Arc::into_inner(bed).expect("the writers have ended");
    let verdict = bed.close(&kafka, Some(Vec::new())).await?;
    eprintln!("truncated-order: {verdict}");
    postgres.stop().await;
    verdict.ensure_clean()
}

/// Writes with four connections, each `events` events, in turn for five entities of its own.
async fn write(bed: &Arc<Bed>, events: usize) -> anyhow::Result<()> {
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        let bed = Arc::clone(bed);
        writers.spawn(async move {
            let mut connection = bed.outbox.connect().await?;
            for number in 0..events {
                bed.insert(&mut connection, &format!("w{writer}-{}", number % 5)).await?;
                sleep(Duration::from_millis(3)).await;
            }
            anyhow::Ok(())
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    Ok(())
}

async fn dead_rows_that_somebody_sets_pending_are_not_late(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let postgres = server().await?;
    let bed = Bed::open(&postgres, &kafka, "set-pending").await?;
    let mut connection = bed.outbox.connect().await?;
    let mut dead = Vec::new();
    for number in 0..EVENTS {
        let (entity, event) = (format!("dead{number}"), Uuid::new_v4());
        let sql = "insert into event_outbox (event_id, entity_type, entity_id, event_type, payload, headers) \
                   values ($1, 'order', $2, 'Poison', '{}', '{\"number\": 1}')";
        sqlx::query(sql).bind(event).bind(&entity).execute(&mut connection).await?;
        dead.push(Written { event, n: bed.truth.next(&entity), entity, poison: false });
    }
    bed.until_settled().await?;
    for written in dead {
        let sql = "update event_outbox set status = 'PENDING', headers = '{}' where event_id = $1 and status = 'DEAD'";
        let updated = sqlx::query(sql).bind(written.event).execute(&mut connection).await?.rows_affected();
        ensure!(updated == 1, "the row of {} is not DEAD", written.entity);
        bed.truth.ended(vec![written], Outcome::Committed(now()));
        sleep(BETWEEN).await;
    }
    let verdict = bed.close(&kafka, Some(Vec::new())).await?;
    eprintln!("set-pending: {verdict}");
    postgres.stop().await;
    verdict.ensure_clean()
}
