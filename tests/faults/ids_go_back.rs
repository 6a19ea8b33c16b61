//! Tests ids that are allocated again under a running relay, after a truncate or after a sequence was set back.

use std::sync::Arc;
use std::time::Instant;

use anyhow::ensure;
use libtest_mimic::Trial;

use crate::failover::every_row_is_published_in_order;
use lab::kafka::RealKafka;
use lab::{Outbox, SOON, TestDatabase, eventually, long, trials};

/// The number of events before the ids go back, and the number after. Each later event must be published before the next one is written.
const BEFORE: i64 = 200;
const AFTER: i64 = 20;

const TRUNCATE: &str = "truncate event_outbox restart identity";
const SET_BACK: &str = "delete from event_outbox; alter table event_outbox alter id restart with 1";

pub(crate) fn trials() -> Vec<Trial> {
    let mut all = trials! {
        with_both:
            events_after_a_truncate_are_published_soon,
            events_after_a_truncate_are_published_exactly_once_by_the_next_relay;
    };
    all.extend(long(trials! {
        with_both:
            events_after_a_sequence_is_set_back_are_published_soon;
    }));
    all
}

async fn events_after_a_truncate_are_published_soon(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    published_soon(&Outbox::from_database(&database), &kafka, TRUNCATE).await
}

async fn events_after_a_sequence_is_set_back_are_published_soon(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    published_soon(&Outbox::from_database(&database), &kafka, SET_BACK).await
}

async fn published_soon(outbox: &Outbox, kafka: &RealKafka, back: &str) -> anyhow::Result<()> {
    outbox.create_topic(kafka).await?;
    let _relay = outbox.relay(kafka).start_ready("back").await?;
    outbox.write_backlog(BEFORE, 20).await?;
    outbox.until_settled().await;
    outbox.execute(back).await?;
    let began = Instant::now();
    for n in 1..=AFTER {
        outbox.write("one", n, 1).await?;
        let published = "select count(*) from event_outbox where status = 'PUBLISHED'";
        eventually(&format!("{n} of {AFTER} events are published"), SOON.saturating_sub(began.elapsed()), || async {
            match outbox.number(published).await {
                Ok(count) if count == n => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }
    eprintln!("{}: {AFTER} events, one after the other, took {:?}", outbox.topic, began.elapsed());
    // Writes many at once as well, because the relay may meet them in any order.
    outbox.write_backlog(BEFORE * 10, 20).await?;
    every_row_is_published_in_order(outbox, kafka).await.map(drop)
}

/// The progress in Kafka names ids that belong to other rows by now.
async fn events_after_a_truncate_are_published_exactly_once_by_the_next_relay(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let settings = outbox.relay(&kafka).with("RELAY_DELIVERY", "exactly_once");
    let first = settings.start_ready("first").await?;
    outbox.write_backlog(BEFORE, 1).await?;
    outbox.until_settled().await;
    first.kill()?;
    outbox.execute(TRUNCATE).await?;
    outbox.write_backlog(BEFORE / 2, 1).await?;
    let _second = settings.start_ready("second").await?;
    let duplicates = every_row_is_published_in_order(&outbox, &kafka).await?;
    ensure!(duplicates == 0, "{duplicates} duplicates");
    Ok(())
}
