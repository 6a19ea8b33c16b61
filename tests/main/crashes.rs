//! Tests relays that die: the black-box run by which the project is judged.

use std::sync::Arc;

use anyhow::ensure;
use event_outbox::ledger::Rules;
use libtest_mimic::Trial;

use lab::kafka::RealKafka;
use lab::load::{Load, Plan, WRITERS};
use lab::{Outbox, RelayProcess, TestDatabase, trials};

/// The number of events of the run; the published run has 200000.
const EVENTS: &str = "OUTBOX_RELAY_TEST_EVENTS";
const EVENTS_BY_DEFAULT: i64 = 20_000;

const RELAYS: usize = 4;
const KILLS_OF_EACH: usize = 2;

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            four_relays_killed_twice_each_under_load_lose_nothing_and_keep_every_order,
            rows_in_the_hands_of_a_killed_relay_are_taken_over_at_once;
    }
}

async fn four_relays_killed_twice_each_under_load_lose_nothing_and_keep_every_order(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let events: i64 = std::env::var(EVENTS).ok().map_or(Ok(EVENTS_BY_DEFAULT), |events| events.parse())?;
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let settings = outbox.relay(&kafka);
    let mut relays: Vec<RelayProcess> = Vec::new();
    for index in 0..RELAYS {
        relays.push(settings.start_ready(&format!("relay-{index}")).await?);
    }
    let load = Load::start(&outbox, Plan::new(events, (events / 40).max(WRITERS)));
    let kills = RELAYS * KILLS_OF_EACH;
    for kill in 0..kills {
        // Spreads the kills over the run; the last kill comes well before its end.
        load.until_committed(events * (kill as i64 + 1) / (kills as i64 + 3)).await;
        let victim = relays.remove(0);
        victim.wait_for("ready").await;
        victim.kill()?;
        relays.push(settings.start(&format!("relay-{}-{}", kill % RELAYS, kill / RELAYS + 1))?);
    }
    ensure!(load.committed() < events, "the load had ended before the last kill");
    load.reconcile(&outbox, &kafka, Rules::default()).await?;
    for relay in relays {
        ensure!(relay.stop().await? == Some(0));
    }
    Ok(())
}

/// The locks end with the session, so nobody has to wait for missed heartbeats.
async fn rows_in_the_hands_of_a_killed_relay_are_taken_over_at_once(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox.write_backlog(20_000, 200).await?;
    // Heartbeats of 10 s count as missed after 30 s, the deadline of the wait below.
    let settings = outbox
        .relay(&kafka)
        .with("RELAY_HEARTBEAT_INTERVAL", "10s")
        .with("RELAY_BATCH_SIZE", 200)
        .with("RELAY_WORKERS", 2);
    let victim = settings.start_ready("victim").await?;
    let heir = settings.start_ready("heir").await?;
    heir.wait_for_line("lanes_assigned", |line| line["relays"] == 2).await;
    outbox.until_published(1_000).await;
    victim.kill()?;
    outbox.until_settled().await;
    outbox.all_published().await?;
    ensure!(heir.lines("lanes_assigned").len() == 1, "the heir waited until the heartbeat was missed");
    outbox.reconcile(&kafka, Rules { duplicates_allowed: Some(400), pending_allowed: false }).await
}
