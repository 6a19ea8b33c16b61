//! Tests the registry of relays: which relays count as alive, however slow or wrong the clock is, and which relays are removed.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::Value;
use sqlx::{Connection, Executor};

use lab::kafka::RealKafka;
use lab::{Outbox, RelayProcess, SOON, TestDatabase, eventually, trials};

const SHARED_OUT: &str = "lanes_assigned";

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            relays_whose_counts_are_slow_do_not_take_each_other_for_dead,
            the_row_of_a_killed_relay_is_removed_by_those_that_live,
            a_dead_relay_whose_last_heartbeat_lies_in_the_future_keeps_no_lanes;
    }
}

async fn sees_two(relay: &RelayProcess) {
    relay.wait_for_line(SHARED_OUT, |line| line["relays"] == 2).await;
}

/// Counting a locked table takes as long as counting one with many rows.
async fn relays_whose_counts_are_slow_do_not_take_each_other_for_dead(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let settings = outbox.relay(&kafka).with("RELAY_STATUS_INTERVAL", "1s").with("RELAY_HEARTBEAT_INTERVAL", "1s");
    let relays = [settings.start_ready("one").await?, settings.start_ready("two").await?];
    for relay in &relays {
        sees_two(relay).await;
    }
    let before = relays.each_ref().map(|relay| relay.lines(SHARED_OUT).len());
    let mut other = outbox.connect().await?;
    let mut lock = other.begin().await?;
    lock.execute("lock table event_outbox in access exclusive mode").await?;
    // Longer than the allowed gap between two heartbeats, and longer than any statement waits.
    tokio::time::sleep(Duration::from_secs(12)).await;
    lock.rollback().await?;
    for relay in &relays {
        relay.wait_for_line("status", |line| line["pending"] == 0).await;
    }
    for (relay, before) in relays.iter().zip(before) {
        let logged = relay.lines(SHARED_OUT).split_off(before);
        ensure!(logged.is_empty(), "{logged:?}");
    }
    for relay in relays {
        ensure!(relay.stop().await? == Some(0));
    }
    Ok(())
}

async fn the_row_of_a_killed_relay_is_removed_by_those_that_live(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox.relay(&kafka).start_ready("killed").await?.kill()?;
    // A ready relay may not have sent a heartbeat yet.
    outbox.execute("delete from event_outbox_relay").await?;
    outbox
        .execute(
            "insert into event_outbox_relay (protocol, id, name, version, workers, started_at, seen_at) \
             values (2, gen_random_uuid(), 'killed', '0', 2, now() - interval '2 hours', now() - interval '1 hour'), \
             (2, gen_random_uuid(), 'set forward', '0', 2, now() - interval '2 hours', now() + interval '1 hour')",
        )
        .await?;
    let relay = outbox.relay(&kafka).with("RELAY_HEARTBEAT_INTERVAL", "1s").start_ready("lives").await?;
    relay.wait_for(SHARED_OUT).await;
    for name in ["killed", "set forward"] {
        eventually("the row of a dead relay is removed", SOON * 3, || async {
            match outbox.number(&format!("select count(*) from event_outbox_relay where name = '{name}'")).await {
                Ok(0) => Ok(()),
                other => Err((name, other)),
            }
        })
        .await;
    }
    ensure!(outbox.number("select count(*) from event_outbox_relay").await? == 1);
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

/// Waits for the takeover of a dead relay's lanes. With exactly-once delivery, a relay leaves the lanes of a relay that counts as alive
/// alone, because that relay might still be sending. A heartbeat in the future must not keep the dead relay alive.
async fn a_dead_relay_whose_last_heartbeat_lies_in_the_future_keeps_no_lanes(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let settings = outbox
        .relay(&kafka)
        .with("RELAY_DELIVERY", "exactly_once")
        .with("RELAY_PUBLISH_TIMEOUT", "5s")
        .with("RELAY_HEARTBEAT_INTERVAL", "1s");
    let dead = settings.start_ready("dead").await?;
    outbox.write_backlog(200, 100).await?;
    outbox.until_settled().await;
    let alive = settings.start_ready("alive").await?;
    sees_two(&dead).await;
    sees_two(&alive).await;
    outbox.write_backlog(200, 100).await?;
    outbox.until_settled().await;
    dead.kill()?;
    outbox.execute("update event_outbox_relay set seen_at = now() + interval '1 hour' where name = 'dead'").await?;
    outbox.write_backlog(200, 100).await?;
    eventually("the living relay publishes for the dead one", Duration::from_secs(20), || async {
        match outbox.number("select count(*) from event_outbox where status = 'PENDING'").await {
            Ok(0) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let sole = |line: &Value| line["relays"] == 1;
    alive.wait_for_line(SHARED_OUT, sole).await;
    ensure!(alive.stop().await? == Some(0));
    Ok(())
}
