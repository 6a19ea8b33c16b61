//! Tests relays that delete what they have published (`RELAY_SETTLE=delete`). The kit keeps what they delete, so that the ledger can
//! compare it with the topic. Histories and faults choose the way of settling at random as well.

use std::sync::Arc;

use anyhow::{Context, ensure};
use event_outbox::ledger::Rules;
use libtest_mimic::Trial;
use serde_json::Value;

use lab::kafka::RealKafka;
use lab::load::{Load, Plan};
use lab::{Outbox, Relay, TestDatabase, trials};

const EVENTS: i64 = 6_000;

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            published_events_are_deleted_and_dead_ones_stay,
            killed_relays_that_delete_lose_nothing_and_keep_every_order,
            killed_relays_that_delete_in_transactions_send_nothing_twice,
            without_the_right_to_delete_nothing_is_published,
            commands_say_what_they_cannot_do_with_deleted_events,
            relays_that_settle_in_different_ways_are_reported,
            lanes_without_events_are_written_later;
    }
}

async fn published_events_are_deleted_and_dead_ones_stay(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database).deleting().await?;
    outbox.create_topic(&kafka).await?;
    outbox.write_backlog(500, 20).await?;
    outbox
        .execute(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, headers, available_at) values \
             ('order', 'poison', 'Bad', '{}', '{\"n\": 1}', null), \
             ('order', 'later', 'Due', '{\"n\": 1}', '{}', now() + interval '1 second')",
        )
        .await?;
    let relay = outbox.relay(&kafka).start_ready("deletes").await?;
    outbox.until_settled().await;
    let left: Vec<_> = outbox.row_states("poison").await?.into_iter().map(|row| row.status).collect();
    ensure!(left == ["DEAD"] && outbox.number("select count(*) from event_outbox").await? == 1, "{left:?}");

    // A decided event is settled like any other.
    outbox.execute("update event_outbox set headers = '{}', payload = '{\"n\": 1}'").await?;
    let retry = outbox.relay(&kafka).argument("retry").argument("--entity").argument("poison").argument("--yes");
    let retried = retry.output("dead").await?;
    ensure!(retried.code == Some(0), "{retried:?}");
    outbox.until_none("the table is empty", "true").await;
    outbox.reconcile(&kafka, Rules::default()).await?;
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

async fn killed(outbox: &Outbox, kafka: &RealKafka, settings: Relay, rules: Rules) -> anyhow::Result<()> {
    outbox.create_topic(kafka).await?;
    let mut relays = vec![settings.start_ready("first").await?, settings.start_ready("second").await?];
    let load = Load::start(outbox, Plan::new(EVENTS, EVENTS / 40));
    for kill in 1..=4 {
        load.until_committed(EVENTS * kill / 6).await;
        let victim = relays.remove(0);
        victim.wait_for("ready").await;
        victim.kill()?;
        relays.push(settings.start(&format!("heir-{kill}"))?);
    }
    load.reconcile(outbox, kafka, rules).await?;
    for relay in relays {
        ensure!(relay.stop().await? == Some(0));
    }
    let left = outbox.number("select count(*) from event_outbox").await?;
    ensure!(left == 0, "{left} rows are left");
    Ok(())
}

async fn killed_relays_that_delete_lose_nothing_and_keep_every_order(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database).deleting().await?;
    let settings = outbox.relay(&kafka);
    killed(&outbox, &kafka, settings, Rules::default()).await
}

async fn killed_relays_that_delete_in_transactions_send_nothing_twice(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database).deleting().await?;
    let settings = outbox.relay(&kafka).with("RELAY_DELIVERY", "exactly_once");
    killed(&outbox, &kafka, settings, Rules { duplicates_allowed: Some(0), ..Rules::default() }).await
}

async fn without_the_right_to_delete_nothing_is_published(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let (user, settings) = crate::check::with_user(&database, &outbox, &kafka).await?;
    crate::check::grant(&outbox, &user).await?;
    let settings = settings.with("RELAY_SETTLE", "delete");
    outbox.write("e", 1, 20).await?;
    let relay = settings.start("may not delete")?;
    relay.wait_for("server_refuses").await;
    let checked: Value = serde_json::from_str(&settings.clone().argument("--json").output("check").await?.stdout)?;
    let findings = checked["findings"].as_array().context("no findings")?;
    let missing = findings.iter().find(|finding| finding["id"] == "rights-missing").context("no such finding")?;
    let fix = missing["fix"].as_str().context("no fix")?;
    ensure!(fix.starts_with("grant delete on"), "{missing}");
    let records = kafka.read_topic(&outbox.topic).await?;
    ensure!(records.is_empty(), "{} records of events that cannot be deleted", records.len());
    outbox.execute(fix).await?;
    outbox.until_none("the table is empty", "true").await;
    let numbers = outbox.published_numbers(&kafka).await?;
    ensure!(numbers["e"] == (1..=20).collect::<Vec<_>>(), "{numbers:?}");
    ensure!(kafka.read_topic(&outbox.topic).await?.len() == 20, "records were sent twice");
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

async fn commands_say_what_they_cannot_do_with_deleted_events(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database).deleting().await?;
    outbox.create_topic(&kafka).await?;
    let settings = outbox.relay(&kafka);
    let relay = settings.start_ready("gone").await?;
    outbox.write("e", 1, 20).await?;
    outbox.until_none("the table is empty", "true").await;
    ensure!(relay.stop().await? == Some(0));

    let verified =
        settings.clone().argument("--json").argument("--topic").argument(&outbox.topic).output("verify").await?;
    let verdict: Value = serde_json::from_str(&verified.stdout)?;
    ensure!(verified.code == Some(0) && verified.stdout.contains("20 records without a row any more"), "{verdict:#}");
    let all = settings.clone().argument("--all-retained").argument("--topic").argument(&outbox.topic);
    let doubted = all.output("verify").await?;
    ensure!(doubted.code == Some(1), "records without a row are unknown where rows stay: {doubted:?}");

    let explained = settings.clone().argument("e").output("explain").await?;
    ensure!(explained.code == Some(1) && explained.stderr.contains("RELAY_SETTLE is delete"), "{explained:?}");
    let replayed = settings.clone().argument("--all").argument("--yes").output("replay").await?;
    ensure!(replayed.stderr.contains("RELAY_SETTLE is delete"), "{replayed:?}");
    Ok(())
}

async fn relays_that_settle_in_different_ways_are_reported(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let settings = outbox.relay(&kafka).with("RELAY_HEARTBEAT_INTERVAL", "1s");
    let _marks = settings.start_ready("marks").await?;
    let deletes = settings.with("RELAY_SETTLE", "delete").start_ready("deletes").await?;
    let line = deletes.wait_for("relay_conflict").await;
    ensure!(line["code"] == "OR-5007" && line["reason"].to_string().contains("RELAY_SETTLE"), "{line}");
    Ok(())
}

/// A batch writes only the lanes that had its events. A relay that takes over lanes which lag misses nothing and sends nothing twice.
async fn lanes_without_events_are_written_later(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let relay = outbox.relay(&kafka).start_ready("settles").await?;
    let mut lagged = 0;
    for event in 1..=40 {
        outbox.write("hot", event, 1).await?;
        outbox.until_settled().await;
        lagged += outbox.number("select count(distinct scanned_through) - 1 from event_outbox_lane").await?;
    }
    ensure!(lagged > 0, "every batch has written every lane");
    outbox.until_none("all lanes are written", "id > (select min(scanned_through) from event_outbox_lane)").await;

    // Killed soon after a batch: the next relay begins where the lane that is behind says.
    outbox.write("hot", 41, 2).await?;
    outbox.until_settled().await;
    drop(relay);
    outbox.write_backlog(100, 50).await?;
    let relay = outbox.relay(&kafka).start_ready("takes-over").await?;
    outbox.until_settled().await;
    outbox.reconcile(&kafka, Rules::default()).await?;
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}
