//! Tests many missing topics: good events must be published meanwhile.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;

use lab::kafka::RealKafka;
use lab::seed::size;
use lab::{Outbox, SOON, TestDatabase, eventually, long, trials};

/// The number of missing topics, each with one event.
const TOPICS: &str = "OUTBOX_RELAY_TEST_MISSING_TOPICS";
const TOPICS_BY_DEFAULT: u64 = 20_000;

/// The number of missing topics when a relay starts.
const TOPICS_AT_START: i64 = 5_000;

const GOOD: i64 = 500;

pub(crate) fn trials() -> Vec<Trial> {
    let mut all = trials! {
        with_both:
            events_behind_those_of_many_missing_topics_are_published;
    };
    all.extend(long(trials! {
        with_both:
            events_are_published_by_a_relay_that_starts_with_many_held_topics;
    }));
    all
}

async fn events_behind_those_of_many_missing_topics_are_published(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let _relay = outbox.relay(&kafka).start_ready("topics").await?;
    write_to_missing_topics(&outbox, size(TOPICS, TOPICS_BY_DEFAULT) as i64).await?;
    outbox.write_backlog(GOOD, 50).await?;
    until_good_are_published(&outbox, GOOD).await;
    nothing_else_is(&outbox).await
}

/// The first relay leaves its holds to the second relay.
async fn events_are_published_by_a_relay_that_starts_with_many_held_topics(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let first = outbox.relay(&kafka).start_ready("first").await?;
    outbox.write_backlog(GOOD, 50).await?;
    write_to_missing_topics(&outbox, TOPICS_AT_START).await?;
    until_good_are_published(&outbox, GOOD).await;
    ensure!(first.stop().await? == Some(0));
    outbox.write_backlog(GOOD, 50).await?;
    let _second = outbox.relay(&kafka).start_ready("second").await?;
    until_good_are_published(&outbox, 2 * GOOD).await;
    nothing_else_is(&outbox).await
}

async fn write_to_missing_topics(outbox: &Outbox, topics: i64) -> anyhow::Result<()> {
    let sql = format!(
        "insert into event_outbox (entity_type, entity_id, event_type, payload, topic) \
         select 'order', 'm' || n, 'Away', '{{}}', 'missing-' || n || '-{}' from generate_series(1, {topics}) n",
        outbox.topic
    );
    outbox.execute(&sql).await.map(drop)
}

async fn until_good_are_published(outbox: &Outbox, good: i64) {
    let published = "select count(*) from event_outbox where event_type = 'Counted' and status = 'PUBLISHED'";
    eventually(&format!("{good} good events are published"), SOON + SOON / 3, || async {
        match outbox.number(published).await {
            Ok(published) if published == good => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

/// Checks that events of missing topics have cost no attempt and are not DEAD.
async fn nothing_else_is(outbox: &Outbox) -> anyhow::Result<()> {
    let wrong =
        "select count(*) from event_outbox where event_type = 'Away' and (status <> 'PENDING' or attempts <> 0)";
    let wrong = outbox.number(wrong).await?;
    ensure!(wrong == 0, "{wrong} events of missing topics are not PENDING with 0 attempts");
    Ok(())
}
