//! Tests a snapshot that another session holds: it keeps the index entries of every event published since. The relay walks past them one
//! slice at a time.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use sqlx::{Connection, Executor};

use lab::kafka::RealKafka;
use lab::{Outbox, TestDatabase, trials};

/// The number of published events: several of the slices with which a walk begins.
const PUBLISHED: i64 = 300_000;

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            what_comes_after_all_that_was_published_is_found_and_so_is_what_was_restored_among_it;
    }
}

async fn what_comes_after_all_that_was_published_is_found_and_so_is_what_was_restored_among_it(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let mut other = outbox.connect().await?;
    let mut snapshot = other.begin().await?;
    snapshot.execute("set transaction isolation level repeatable read").await?;
    snapshot.execute("select from event_outbox").await?;
    outbox.write_backlog(PUBLISHED, 100).await?;
    outbox.execute("update event_outbox set status = 'PUBLISHED', published_at = now()").await?;
    outbox.write("late", 1, 3).await?;

    // One worker only: other workers would look at its lanes from the first event on, and would find the rows that it misses.
    let relay = outbox.relay(&kafka).with("RELAY_WORKERS", 1).start("beyond")?;
    outbox.until_settled().await;
    let numbers = outbox.published_numbers(&kafka).await?;
    ensure!(numbers["late"] == [1, 2, 3] && numbers.len() == 1, "{numbers:?}");

    // Changes the row by hand, which nobody should do. No rule of the claim knows of the row; only a sweep finds it.
    let restored = PUBLISHED / 2;
    outbox
        .execute(&format!("update event_outbox set status = 'PENDING', published_at = null where id = {restored}"))
        .await?;
    outbox.until_settled().await;
    let numbers = outbox.published_numbers(&kafka).await?;
    ensure!(numbers.len() == 2 && numbers[&format!("e{}", restored % 100)] == [restored], "{numbers:?}");

    // A new relay starts without any memory of these rows.
    relay.stop().await?;
    outbox.write("late", 4, 1).await?;
    let _relay = outbox.relay(&kafka).with("RELAY_WORKERS", 1).start("anew")?;
    outbox.until_settled().await;
    let numbers = outbox.published_numbers(&kafka).await?;
    ensure!(numbers["late"] == [1, 2, 3, 4], "{numbers:?}");
    Ok(snapshot.rollback().await?)
}
