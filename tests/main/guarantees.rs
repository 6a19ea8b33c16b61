//! Tests the guarantees for every event: published once, byte for byte, in the documented format.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Context, ensure};
use chrono::{DateTime, SecondsFormat, Utc};
use event_outbox::ledger::Rules;
use libtest_mimic::Trial;
use serde_json::Value;
use sqlx::Connection;
use uuid::Uuid;

use lab::kafka::{RealKafka, Record};
use lab::load::{Load, Plan};
use lab::murmur2::java_partition;
use lab::outbox::{data, insert};
use lab::{Outbox, PARTITIONS, Relay, TestDatabase, trials};

/// The rules of a run without faults: no duplicate.
pub(crate) const ONCE: Rules = Rules { duplicates_allowed: Some(0), pending_allowed: false };

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            every_committed_event_is_published_once_and_none_that_was_rolled_back,
            a_record_has_the_key_the_headers_the_timestamp_and_the_value_of_the_contract,
            a_record_is_stamped_with_the_time_by_which_its_topic_may_delete_it,
            a_record_is_where_javas_partitioner_would_put_it,
            jsonb_payloads_keys_and_bytes_arrive_as_postgres_holds_them,
            json_payloads_keep_their_spaces_and_repeated_keys,
            text_payloads_are_not_touched,
            a_clean_stop_under_load_sends_nothing_twice,
            a_second_relay_shares_the_work_and_sends_nothing_twice,
            sessions_without_prepared_statements_publish_the_same;
    }
}

async fn every_committed_event_is_published_once_and_none_that_was_rolled_back(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let load = Load::start(&outbox, Plan::new(2_000, 100));
    let _relay = outbox.relay(&kafka).start("once")?;
    load.reconcile(&outbox, &kafka, ONCE).await
}

/// Two events are eight days old, and one of them was scheduled for an hour ago.
async fn a_record_is_stamped_with_the_time_by_which_its_topic_may_delete_it(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let began = Utc::now().timestamp_millis();
    for timestamp in ["event", "publish"] {
        let sql = format!(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, created_at, available_at) \
             select 'order', '{timestamp}', 'Old', '1', now() - interval '8 days', available \
             from unnest(array[null, now() - interval '1 hour']) available"
        );
        outbox.execute(&sql).await?;
        let relay = outbox.relay(&kafka).with("RELAY_TIMESTAMP", timestamp).start(timestamp)?;
        outbox.until_settled().await;
        ensure!(relay.stop().await? == Some(0));
    }
    let records = kafka.read_topic(&outbox.topic).await?;
    let age_h = |record: &Record| (began - record.timestamp.unwrap_or_default()) / 3_600_000;
    let of = |key: &str| {
        let mut ages: Vec<_> = records.iter().filter(|r| r.key.as_deref() == Some(key.as_bytes())).map(age_h).collect();
        ages.sort_unstable();
        ages
    };
    ensure!(matches!(of("event")[..], [0 | 1, 191 | 192]), "{:?}", of("event"));
    ensure!(of("publish") == [0, 0], "{:?}", of("publish"));
    Ok(())
}

async fn a_record_has_the_key_the_headers_the_timestamp_and_the_value_of_the_contract(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    // With the default template the topic is named after the type of the entity.
    kafka.create_topic("parcel-events", 1, &[]).await?;
    let row: (i64, Uuid, DateTime<Utc>) = sqlx::query_as(
        "insert into event_outbox (entity_type, entity_id, event_type, event_version, payload, headers, created_at) \
         values ('parcel', 'p-1', 'ParcelSent', 7, '{\"to\": \"Zürich\"}', \
         '{\"correlation-id\": \"c1\", \"causation-id\": \"c2\", \"traceparent\": \"00-ab-cd-01\", \"x\": \"ü\"}', \
         '2024-02-29 12:34:56.789+00') returning id, event_id, created_at",
    )
    .fetch_one(&mut outbox.connect().await?)
    .await?;
    let relay = Relay::new(&database.url(), &kafka.bootstrap()).with("RELAY_SOURCE", "/depot");
    let _relay = relay.start("format")?;
    outbox.until_settled().await;

    let records = kafka.read_topic("parcel-events").await?;
    ensure!(records.len() == 1, "{records:?}");
    let (record, (id, event_id, created_at)) = (&records[0], row);
    ensure!(record.key.as_deref() == Some(&b"p-1"[..]) && record.timestamp == Some(created_at.timestamp_millis()));
    for (name, value) in [
        ("event-id", event_id.to_string().as_str()),
        ("event-type", "ParcelSent"),
        ("event-version", "7"),
        ("sequence", &id.to_string()),
        ("correlation-id", "c1"),
        ("causation-id", "c2"),
        ("traceparent", "00-ab-cd-01"),
        ("source", "/depot"),
        ("x", "ü"),
    ] {
        let found: Vec<_> = record.headers.iter().filter(|(header, _)| header == name).collect();
        ensure!(found.len() == 1 && record.header(name) == Some(value), "{name}: {:?}", record.headers);
    }
    let value: Value = serde_json::from_slice(record.value.as_deref().context("no value")?)?;
    let timestamp: DateTime<Utc> = value["timestamp"].as_str().context("no timestamp")?.parse()?;
    ensure!(timestamp == created_at, "{timestamp} is not {}", created_at.to_rfc3339_opts(SecondsFormat::Micros, true));
    let expected = serde_json::json!({
        "eventId": event_id, "eventType": "ParcelSent", "timestamp": value["timestamp"], "version": 7,
        "source": "/depot", "correlationId": "c1", "data": {"to": "Zürich"}
    });
    ensure!(value == expected, "{value}");
    Ok(())
}

async fn a_record_is_where_javas_partitioner_would_put_it(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    // Kafka's own test of the partitioner asserts these (UtilsTest.testMurmur2).
    for (key, hash) in [("21", -973_932_308_i32), ("foobar", -790_332_482), ("abc", 479_470_107)] {
        ensure!(java_partition(key.as_bytes(), i32::MAX) == (hash & i32::MAX) % i32::MAX, "{key}");
    }
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let mut keys: Vec<String> = (0..40).map(|n| format!("key-{n}")).collect();
    keys.extend(["🦀", "📦 7", "ключ", "a", "ab", "abc", "\u{1}"].map(str::to_owned));
    let mut connection = outbox.connect().await?;
    for key in &keys {
        insert(&mut connection, key, 0).await?;
    }
    let _relay = outbox.relay(&kafka).start("partitions")?;
    outbox.until_settled().await;
    let records = kafka.read_topic(&outbox.topic).await?;
    ensure!(records.len() == keys.len());
    let partitions: HashSet<i32> = records.iter().map(|record| record.partition).collect();
    ensure!(partitions.len() > 1, "nothing to tell apart");
    for record in records {
        let key = record.key.as_deref().context("no key")?;
        let expected = java_partition(key, PARTITIONS);
        ensure!(record.partition == expected, "{key:?} is in {}, not in {expected}", record.partition);
    }
    Ok(())
}

async fn jsonb_payloads_keys_and_bytes_arrive_as_postgres_holds_them(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox
        .execute(
            r#"insert into event_outbox (entity_type, entity_id, event_type, payload, payload_bytes) values
               ('order', 'digits', 'X', '{"n": 12345678901234567890, "m": 0.10000000000000000000000000001, "e": 1e400}', null),
               ('order', '🦀🔑', 'X', '{"emoji": "🦀", "escaped": "\u00e9\t\"\\", "": ""}', null),
               ('order', '', 'X', '""', null),
               ('order', 'long', 'X', to_jsonb(repeat('ü', 450000)), null),
               ('order', 'null', 'X', 'null', null),
               ('order', 'tombstone', 'X', null, null),
               ('order', null, 'X', '{"keyless": true}', null),
               ('order', null, 'X', null, '\x00ff00'),
               ('order', 'bytes', 'X', null, '\x0001e28682'),
               ('order', 'no bytes', 'X', null, '')"#,
        )
        .await?;
    let _relay = outbox.relay(&kafka).start("bytes")?;
    outbox.until_settled().await;
    outbox.all_published().await?;
    outbox.reconcile(&kafka, ONCE).await?;
    let records = kafka.read_topic(&outbox.topic).await?;
    let value = |key: &str| records.iter().find(|record| record.key.as_deref() == Some(key.as_bytes()));
    ensure!(value("tombstone").context("no tombstone")?.value.is_none());
    ensure!(value("null").context("no null")?.value.as_deref().map(data) == Some(&b"null"[..]));
    ensure!(value("bytes").context("no bytes")?.value.as_deref() == Some(&b"\0\x01\xe2\x86\x82"[..]));
    ensure!(value("").context("no empty key")?.value.as_deref().map(data) == Some(&b"\"\""[..]));
    ensure!(records.iter().filter(|record| record.key.is_none()).count() == 2);
    Ok(())
}

async fn json_payloads_keep_their_spaces_and_repeated_keys(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    another_type_of_payload(&database, &kafka, "json", r#"{"b":1, "a":2,   "b":12345678901234567890}"#).await
}

async fn text_payloads_are_not_touched(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    another_type_of_payload(&database, &kafka, "text", "  not \"json\" at all, \u{1f980} ").await
}

async fn another_type_of_payload(
    database: &TestDatabase,
    kafka: &RealKafka,
    kind: &str,
    payload: &str,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(database);
    outbox.create_topic(kafka).await?;
    outbox.execute(&format!("alter table event_outbox alter column payload type {kind} using payload::{kind}")).await?;
    outbox
        .execute(&format!(
            "insert into event_outbox (entity_type, entity_id, event_type, payload) values ('order', '1', 'X', '{payload}')"
        ))
        .await?;
    let relay = outbox.relay(kafka).with("RELAY_ENVELOPE", "raw").start(kind)?;
    outbox.until_settled().await;
    let records = kafka.read_topic(&outbox.topic).await?;
    ensure!(records.len() == 1 && records[0].value.as_deref() == Some(payload.as_bytes()), "{records:?}");
    outbox.execute("select outbox_emit('order', '1', 'X', '{\"n\": 2}')").await?;
    outbox.until_settled().await;
    drop(relay);
    outbox.reconcile(kafka, ONCE).await
}

async fn a_clean_stop_under_load_sends_nothing_twice(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let relay = outbox.relay(&kafka);
    let load = Load::start(&outbox, Plan::new(4_000, 100));
    for (round, name) in [(1, "first"), (2, "second"), (3, "third")] {
        let running = relay.start_ready(name).await?;
        outbox.until_published(1).await;
        load.until_committed(round * 1_000).await;
        ensure!(running.stop().await? == Some(0), "the {name} relay did not exit with 0");
    }
    let _last = relay.start("last")?;
    load.reconcile(&outbox, &kafka, ONCE).await
}

async fn a_second_relay_shares_the_work_and_sends_nothing_twice(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let relay = outbox.relay(&kafka);
    let load = Load::start(&outbox, Plan::new(4_000, 100));
    let first = relay.start_ready("first").await?;
    let second = relay.start_ready("second").await?;
    for relay in [&first, &second] {
        relay.wait_for_line("lanes_assigned", |line| line["relays"] == 2).await;
    }
    load.until_committed(2_000).await;
    ensure!(first.stop().await? == Some(0));
    second.wait_for_line("lanes_assigned", |line| line["relays"] == 1).await;
    load.reconcile(&outbox, &kafka, ONCE).await
}

async fn sessions_without_prepared_statements_publish_the_same(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let load = Load::start(&outbox, Plan::new(500, 50));
    let _relay = outbox.relay(&kafka).with("RELAY_PREPARED_STATEMENTS", false).start("unprepared")?;
    load.reconcile(&outbox, &kafka, ONCE).await?;
    let mut connection = outbox.connect().await?;
    // The relay leaves no setting behind in a session that it shares with others.
    Ok(connection.ping().await?)
}
