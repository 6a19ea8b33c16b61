//! Tests `outbox-relay explain-route`: what it says beforehand is what is on the topic afterwards.

use std::sync::Arc;

use anyhow::ensure;
use lab::kafka::RealKafka;
use lab::{Outbox, PARTITIONS, Relay, TestDatabase, trials};
use libtest_mimic::Trial;
use serde_json::Value;

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            the_route_of_an_event_is_that_of_its_record;
        with_postgres:
            an_event_without_a_legal_route_is_a_finding,
            the_route_of_an_event_needs_no_brokers;
    }
}

async fn explained(relay: &Relay, arguments: &[&str], code: i32) -> anyhow::Result<Value> {
    let relay = arguments.iter().fold(relay.clone().argument("--json"), |relay, argument| relay.argument(argument));
    let output = relay.output("explain-route").await?;
    ensure!(output.code == Some(code), "{output:?}");
    Ok(serde_json::from_str(&output.stdout)?)
}

async fn the_route_of_an_event_is_that_of_its_record(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let relay = outbox.relay(&kafka).with("RELAY_SOURCE", "/shop");
    outbox
        .execute(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, headers) values \
             ('order', 'o-1', 'Placed', '{}', '{\"correlation-id\": \"c\"}'), ('order', 'é', 'Placed', '{}', '{}'), \
             ('order', 'o-1', 'Placed', '{}', '{\"outbox-partition\": \"4\"}')",
        )
        .await?;
    let mut before = Vec::new();
    for id in 1..=3 {
        before.push(explained(&relay, &[&id.to_string()], 0).await?);
    }
    ensure!(before[2]["partition"]["value"] == 4, "{}", before[2]);
    ensure!(
        before[2]["partition"]["why"].as_str().is_some_and(|why| why.contains("outbox-partition")),
        "{}",
        before[2]
    );
    let thought = explained(&relay, &["--entity-type", "order", "--entity-id", "o-1"], 0).await?;
    ensure!(thought["partition"] == before[0]["partition"] && thought["topic"] == before[0]["topic"], "{thought}");
    let far = ["--entity-type", "order", "--row-topic", &outbox.topic, "--header", "outbox-partition=4711"];
    let refused = explained(&relay, &far, 1).await?;
    let reason = refused["refused"].as_str().unwrap_or_default();
    ensure!(reason.contains(&format!("{PARTITIONS} partitions")), "{refused}");
    let running = relay.start_ready("routed").await?;
    outbox.until_settled().await;
    ensure!(running.stop().await? == Some(0));
    let records = kafka.read_topic(&outbox.topic).await?;
    ensure!(records.len() == 3, "{records:?}");
    for event in &before {
        let sequence = event["id"].to_string();
        let record = records.iter().find(|record| record.header("sequence") == Some(sequence.as_str()));
        let Some(record) = record else { anyhow::bail!("{sequence} is not in {records:?}") };
        ensure!(event["topic"]["value"] == outbox.topic.as_str(), "{event}");
        ensure!(event["partition"]["value"] == record.partition, "{event} {record:?}");
        ensure!(event["key"]["value"].as_str().map(str::as_bytes) == record.key.as_deref(), "{event} {record:?}");
        let headers: Vec<_> = event["headers"].as_array().into_iter().flatten().collect();
        ensure!(headers.len() == record.headers.len(), "{event} {record:?}");
        for header in headers {
            let (name, value) = (header["name"].as_str().unwrap_or_default(), header["value"].as_str());
            ensure!(record.header(name) == value, "{header} {record:?}");
        }
    }
    Ok(())
}

async fn an_event_without_a_legal_route_is_a_finding(database: TestDatabase) -> anyhow::Result<()> {
    let relay = Relay::bare().with("DATABASE_URL", database.url());
    for (arguments, part) in [
        (&["--entity-type", "an order"][..], "bad topic"),
        (&["--entity-type", "order", "--row-topic", "__consumer_offsets"], "internal"),
        (&["--entity-type", "order", "--header", "replay-id=1"], "reserved"),
        (&["--entity-type", "order", "--header", "outbox-partition=-1"], "no partition"),
    ] {
        let explained = explained(&relay, arguments, 1).await?;
        ensure!(explained["refused"].as_str().is_some_and(|refused| refused.contains(part)), "{part}: {explained}");
    }
    let missing = relay.clone().argument("4711").output("explain-route").await?;
    ensure!(missing.code == Some(1) && missing.stderr.contains("no event 4711"), "{missing:?}");
    Ok(())
}

async fn the_route_of_an_event_needs_no_brokers(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.write("e", 1, 1).await?;
    let relay = Relay::bare().with("DATABASE_URL", database.url());
    let id = outbox.number("select max(id) from event_outbox").await?;
    let explained = explained(&relay, &[&id.to_string()], 0).await?;
    ensure!(explained["partition"]["value"].is_null() && explained["key"]["value"] == "e", "{explained}");
    ensure!(explained["topic"]["why"] == "RELAY_TOPIC, {entity_type}-events", "{explained}");
    let explained = self::explained(&relay.with("RELAY_TOPIC_PREFIX", "shadow."), &[&id.to_string()], 0).await?;
    let why = "RELAY_TOPIC, {entity_type}-events, behind RELAY_TOPIC_PREFIX shadow.";
    ensure!(explained["topic"]["why"] == why, "{explained}");
    Ok(())
}
