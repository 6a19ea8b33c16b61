//! Tests replay: retained events are sent again, in order and in the relay's format, and no consumer mistakes them for new events.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use chrono::{DateTime, Utc};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use lab::kafka::{RealKafka, Record};
use lab::relay::Output;
use lab::{Outbox, PARTITIONS, TestDatabase, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            events_go_out_again_as_the_relay_sends_them_in_every_envelope,
            every_filter_replays_its_events_from_table_and_archive,
            dead_events_are_replayed_and_stay_dead,
            an_inbox_skips_what_it_has_seen_and_a_new_group_builds_its_state,
            verify_tells_replayed_records_apart_from_duplicates,
            events_go_to_the_partition_that_their_row_names_or_are_left_out,
            a_replay_that_a_topic_refuses_says_where_to_go_on,
            nothing_is_replayed_without_a_filter_a_yes_or_a_topic;
    }
}

/// An outbox whose events a relay has published, and a target topic for the replay.
struct Field {
    outbox: Outbox,
    kafka: Arc<RealKafka>,
    copy: String,
}

impl Field {
    async fn new(database: &TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<Self> {
        let outbox = Outbox::from_database(database);
        outbox.create_topic(&kafka).await?;
        let copy = format!("{}-copy", outbox.topic);
        kafka.create_topic(&copy, PARTITIONS, &[]).await?;
        Ok(Self { outbox, kafka, copy })
    }

    async fn publish(&self) -> anyhow::Result<()> {
        let relay = self.outbox.relay(&self.kafka).start("replay")?;
        self.outbox.until_settled().await;
        ensure!(relay.stop().await? == Some(0));
        Ok(())
    }

    async fn output(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let relay = self.outbox.relay(&self.kafka);
        arguments.iter().fold(relay, |relay, argument| relay.argument(argument)).output("replay").await
    }

    async fn replay(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let output = self.output(&[arguments, &["--json"]].concat()).await?;
        ensure!(output.code == Some(0), "{arguments:?}: {output:?}");
        Ok(serde_json::from_str(&output.stdout)?)
    }

    async fn copied(&self) -> anyhow::Result<Vec<Record>> {
        self.kafka.read_topic(&self.copy).await
    }

    /// Returns all columns of all rows.
    async fn rows(&self) -> anyhow::Result<Vec<String>> {
        let sql = "select e::text || xmin::text from event_outbox e order by id";
        Ok(sqlx::query_scalar(sql).fetch_all(&mut self.outbox.connect().await?).await?)
    }
}

fn sequences(records: &[Record]) -> Vec<i64> {
    let mut all: Vec<i64> = records.iter().filter_map(|record| record.header("sequence")?.parse().ok()).collect();
    all.sort_unstable();
    all
}

async fn events_go_out_again_as_the_relay_sends_them_in_every_envelope(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    for envelope in ["event", "raw", "debezium", "cloudevents-binary", "cloudevents-structured"] {
        let outbox = Outbox::from_database(&database).seen_by(&format!("{}-{envelope}", database.name()));
        outbox.create_topic(&kafka).await?;
        let field = Field { copy: format!("{}-copy", outbox.topic), kafka: Arc::clone(&kafka), outbox };
        kafka.create_topic(&field.copy, PARTITIONS, &[]).await?;
        field.outbox.execute("delete from event_outbox").await?;
        field.outbox.write_backlog(1_200, 20).await?;
        field
            .outbox
            .execute(
                "insert into event_outbox (entity_type, entity_id, event_type, payload, payload_bytes, headers) values \
                 ('order', 'é😀', 'Odd', '{\"n\": 12345678901234567890.10}', null, '{\"correlation-id\": \"c\", \"replay\": \"x\"}'), \
                 ('order', 'bytes', 'Odd', null, '\\x00ff', '{}'), ('order', 'gone', 'Odd', null, null, '{}'), \
                 ('order', null, 'Odd', '1', null, '{}')",
            )
            .await?;
        let relay = field.outbox.relay(&kafka).with("RELAY_ENVELOPE", envelope).with("RELAY_SOURCE", "/shop");
        let running = relay.start("replay")?;
        field.outbox.until_settled().await;
        ensure!(running.stop().await? == Some(0));
        let rows = field.rows().await?;
        let began = Utc::now().timestamp_millis();
        let replay = ["--all", "--to", &field.copy, "--yes", "--json"];
        let output = replay.iter().fold(relay, |relay, argument| relay.argument(argument)).output("replay").await?;
        ensure!(output.code == Some(0) && output.stderr.is_empty(), "{output:?}");
        let done: Value = serde_json::from_str(&output.stdout)?;
        ensure!((&done["replayed"], &done["matching"]) == (&json!(1_204), &json!(1_204)), "{done}");
        ensure!(field.rows().await? == rows, "rows have changed");

        let by_event = |records: Vec<Record>| -> BTreeMap<i64, Record> {
            let number = |record: &Record| record.header("sequence").and_then(|n| n.parse().ok()).unwrap_or(0);
            records.into_iter().map(|record| (number(&record), record)).collect()
        };
        let copied = field.copied().await?;
        // In order within each key: the records come by partition and offset.
        for partition in 0..PARTITIONS {
            let of_partition: Vec<_> = copied.iter().filter(|record| record.partition == partition).collect();
            let keyed = of_partition.iter().filter(|record| record.key.is_some());
            let ids: Vec<i64> = keyed.filter_map(|record| record.header("sequence")?.parse().ok()).collect();
            ensure!(ids.is_sorted(), "{envelope}: {ids:?}");
        }
        let (sent, copied) = (by_event(kafka.read_topic(&field.outbox.topic).await?), by_event(copied));
        ensure!(sent.len() == 1_204 && copied.len() == 1_204);
        for (id, original) in &sent {
            let copy = &copied[id];
            ensure!((&copy.key, &copy.value) == (&original.key, &original.value), "{envelope}: {copy:?}");
            // A record with the time of an old event would soon be deleted: it has the time of the replay.
            ensure!(copy.timestamp >= Some(began), "{envelope}: {copy:?}");
            let time: DateTime<Utc> = copy.header("event-time").context("no event-time")?.parse()?;
            ensure!(
                Some(time.timestamp_millis().max(1)) == original.timestamp,
                "{envelope}: {copy:?} is not {original:?}"
            );
            ensure!(copy.key.is_none() || copy.partition == original.partition, "{envelope}: {copy:?}");
            ensure!(copy.header("replay-id") == done["replay_id"].as_str(), "{envelope}: {copy:?}");
            let others = |record: &Record| {
                let added = |name: &str| name == "replay-id" || name == "event-time";
                record.headers.iter().filter(|(name, _)| !added(name)).cloned().collect::<Vec<_>>()
            };
            ensure!(others(copy) == others(original), "{envelope}: {copy:?} is not {original:?}");
        }
    }
    Ok(())
}

async fn every_filter_replays_its_events_from_table_and_archive(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    field
        .outbox
        .execute(
            "insert into event_outbox (entity_type, entity_id, event_type, topic, payload, created_at, status, published_at) \
             select case when n <= 4 then 'order' else 'customer' end, 'e' || n % 2, case when n % 3 = 0 then 'Paid' else 'Placed' end, \
               case when n = 8 then 'other' end, jsonb_build_object('n', n), now() - (10 - n) * interval '1 hour', \
               case when n = 7 then 'DEAD' when n = 2 then 'PENDING' else 'PUBLISHED' end, now() from generate_series(1, 8) n",
        )
        .await?;
    let columns: String = sqlx::query_scalar(
        "select string_agg(attname, ', ' order by attnum) from pg_attribute \
         where attrelid = 'event_outbox'::regclass and attnum > 0",
    )
    .fetch_one(&mut field.outbox.connect().await?)
    .await?;
    // 1 and 3 are archived; 4 is in both tables, because it was restored by hand.
    field
        .outbox
        .execute(&format!(
            "insert into event_outbox_archive ({columns}) select {columns} from event_outbox where id in (1, 3, 4)"
        ))
        .await?;
    field.outbox.execute("delete from event_outbox where id in (1, 3)").await?;
    let topic = field.outbox.topic.clone();
    let mut seen = 0;
    for (arguments, ids) in [
        (&["--entity", "e1"][..], &[1, 3, 5][..]),
        (&["--entity", "e0", "--entity-type", "order"], &[4]),
        (&["--type", "Paid"], &[3, 6]),
        (&["--topic", &topic], &[1, 3, 4, 5, 6]),
        (&["--topic", "other"], &[8]),
        (&["--since", "270m"], &[6, 8]),
        (&["--until", "390m"], &[1, 3]),
        (&["--dead"], &[7]),
        (&["--all"], &[1, 3, 4, 5, 6, 8]),
        (&["--all", "--no-archive"], &[4, 5, 6, 8]),
        (&["--all", "--from-id", "4", "--upto-id", "6"], &[4, 5, 6]),
        (&["--entity", "it's \\ nobody"], &[]),
    ] {
        let to = ["--to", &field.copy];
        let dry = field.replay(&[arguments, &to, &["--dry-run"]].concat()).await?;
        ensure!(dry["matching"] == ids.len(), "{arguments:?}: {dry}");
        ensure!(field.copied().await?.len() == seen, "a dry run has sent something");
        let done = field.replay(&[arguments, &to, &["--yes"]].concat()).await?;
        ensure!(ids.is_empty() || done["replayed"] == ids.len(), "{arguments:?}: {done}");
        let id = done["replay_id"].as_str().context("no id")?;
        let copied = field.copied().await?;
        let own: Vec<Record> = copied.iter().filter(|record| record.header("replay-id") == Some(id)).cloned().collect();
        ensure!(sequences(&own) == ids, "{arguments:?}: {:?}", sequences(&own));
        seen = copied.len();
    }
    let audited = "select sum(affected) from event_outbox_audit where command = 'replay'";
    ensure!(field.outbox.number(audited).await? == seen as i64);
    Ok(())
}

async fn dead_events_are_replayed_and_stay_dead(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    field
        .outbox
        .execute(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, headers, status, last_error) values \
             ('order', 'a', 'Placed', '1', '{}', 'DEAD', 'too large'), \
             ('order', 'a', 'Placed', '2', '{\"odd\": 7}', 'DEAD', 'a header'), \
             ('order', 'a', 'Placed', '3', '{}', 'DEAD', 'discarded: too large'), \
             ('order', 'a', 'Placed', '4', '{}', 'PUBLISHED', null)",
        )
        .await?;
    let rows = field.rows().await?;
    let output = field.output(&["--dead", "--to", &field.copy, "--yes", "--reason", "by hand", "--by", "ann"]).await?;
    // The row whose headers are not strings cannot become a record.
    ensure!(output.code == Some(1), "{output:?}");
    ensure!(output.stderr.contains("event 2: ") && output.stderr.contains("headers"), "{output:?}");
    ensure!(output.stdout.contains("1 of 2 events"), "{output:?}");
    ensure!(sequences(&field.copied().await?) == [1]);
    ensure!(field.rows().await? == rows, "rows have changed");
    let audit = "select count(*) from event_outbox_audit where acted_by = 'ann' and reason = 'by hand' \
                 and filter -> 'filter' ->> 'dead' = 'true' and (command, affected) in (('replay started', 0), ('replay', 1))";
    ensure!(field.outbox.number(audit).await? == 2);
    Ok(())
}

/// Consumes like a consumer with an inbox: applies the events that `event_once` has not seen.
async fn consume(field: &Field, group: &str) -> anyhow::Result<i64> {
    let mut connection = field.outbox.connect().await?;
    let mut applied = 0;
    for record in field.kafka.read_topic(&field.outbox.topic).await? {
        let event = record.header("event-id").context("no event id")?;
        let sql = "select event_once($1, $2::text::uuid)";
        let first: bool = sqlx::query_scalar(sql).bind(group).bind(event).fetch_one(&mut connection).await?;
        applied += i64::from(first);
    }
    Ok(applied)
}

async fn an_inbox_skips_what_it_has_seen_and_a_new_group_builds_its_state(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    field.outbox.write_backlog(300, 7).await?;
    field.publish().await?;
    ensure!(consume(&field, "billing").await? == 300);
    let output = field.output(&["--all", "--yes"]).await?;
    ensure!(output.code == Some(0), "{output:?}");
    ensure!(output.stderr.contains("warning: "), "{output:?}");
    ensure!(field.kafka.read_topic(&field.outbox.topic).await?.len() == 600);
    ensure!(consume(&field, "billing").await? == 0, "an event was applied twice");
    ensure!(consume(&field, "shipping").await? == 300);
    Ok(())
}

async fn verify_tells_replayed_records_apart_from_duplicates(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    field.outbox.write_backlog(100, 5).await?;
    field.publish().await?;
    // A row with the status PUBLISHED that was never published. The replay sends it behind later events of its entity.
    field
        .outbox
        .execute(
            "insert into event_outbox (id, entity_type, entity_id, event_type, payload, status, published_at) overriding system value \
             values (-1, 'order', 'e1', 'Counted', '{\"n\": 0}', 'PUBLISHED', now())",
        )
        .await?;
    let verify = async || -> anyhow::Result<Value> {
        let relay = field.outbox.relay(&field.kafka).argument("--json").argument("--exactly-once");
        let output = relay.argument("--topic").argument(&field.outbox.topic).output("verify").await?;
        Ok(serde_json::from_str(&output.stdout)?)
    };
    let before = verify().await?;
    ensure!(before["missing"] == 1 && before["replayed"] == 0, "{before:#}");
    let done = field.replay(&["--all", "--from-id=-5", "--yes"]).await?;
    ensure!(done["replayed"] == 101, "{done}");
    let after = verify().await?;
    ensure!(after["clean"] == true && after["replayed"] == 101 && after["duplicates"] == 0, "{after:#}");
    ensure!(after["missing"] == 0 && after["inversions"] == 0 && after["published"] == 101, "{after:#}");
    // The replay must send the row's current content.
    field.outbox.execute("update event_outbox set payload = '{\"n\": 7777}' where id = -1").await?;
    ensure!(verify().await?["mismatched"] == 1);
    Ok(())
}

async fn events_go_to_the_partition_that_their_row_names_or_are_left_out(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let small = format!("{}-small", field.outbox.topic);
    field.kafka.create_topic(&small, 3, &[]).await?;
    // Event N names the partition N - 1. All of them have one key.
    field
        .outbox
        .execute(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, headers) \
             select 'order', 'e', 'Placed', '1', jsonb_build_object('outbox-partition', n::text) from generate_series(0, 3) n",
        )
        .await?;
    field.publish().await?;
    ensure!(field.replay(&["--all", "--yes"]).await?["replayed"] == 4);
    let places = |records: Vec<Record>| -> Vec<(i32, Option<i32>)> {
        let mut places: Vec<_> = records
            .iter()
            .map(|record| (record.partition, record.header("sequence").and_then(|sequence| sequence.parse().ok())))
            .collect();
        places.sort_unstable();
        places
    };
    let twice: Vec<_> = (0..4).flat_map(|partition| [(partition, Some(partition + 1)); 2]).collect();
    let found = places(field.kafka.read_topic(&field.outbox.topic).await?);
    ensure!(found == twice, "{found:?}");

    let dry = field.replay(&["--all", "--to", &small, "--dry-run"]).await?;
    ensure!(dry["topics"][0]["highest_named_partition"] == 3, "{dry}");
    let output = field.output(&["--all", "--to", &small, "--yes", "--json"]).await?;
    let told = ["warning: the topic", "has 3 partitions", "error: 1 event left out; event 4: ", "outbox-partition"];
    ensure!(output.code == Some(1) && told.iter().all(|told| output.stderr.contains(told)), "{output:?}");
    let reported: Value = serde_json::from_str(&output.stdout)?;
    ensure!((&reported["replayed"], &reported["skipped"]) == (&json!(3), &json!(1)), "{reported}");
    let found = places(field.kafka.read_topic(&small).await?);
    ensure!(found == [(0, Some(1)), (1, Some(2)), (2, Some(3))], "{found:?}");

    field
        .outbox
        .execute("update event_outbox set status = 'DEAD', headers = '{\"outbox-partition\": \"-1\"}' where id = 4")
        .await?;
    let output = field.output(&["--dead", "--to", &small, "--yes"]).await?;
    ensure!(output.code == Some(1) && output.stderr.contains("no partition"), "{output:?}");
    Ok(())
}

async fn a_replay_that_a_topic_refuses_says_where_to_go_on(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let small = format!("{}-small", field.outbox.topic);
    field.kafka.create_topic(&small, 1, &[("max.message.bytes", "2000")]).await?;
    field
        .outbox
        .execute(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, status, published_at) \
             select 'order', 'a', 'Counted', jsonb_build_object('n', n, 'noise', case when n = 3 then \
               (select string_agg(md5(m::text), '') from generate_series(1, 300) m) end), 'PUBLISHED', now() \
             from generate_series(1, 5) n",
        )
        .await?;
    let output = field.output(&["--all", "--to", &small, "--rate", "1", "--yes", "--json"]).await?;
    ensure!(
        output.code == Some(1) && output.stderr.contains(&small) && output.stderr.contains("event 3"),
        "{output:?}"
    );
    let reported: Value = serde_json::from_str(&output.stdout)?;
    ensure!((&reported["replayed"], &reported["next_id"]) == (&json!(2), &json!(3)), "{reported}");
    let id = reported["replay_id"].as_str().context("no id")?;
    ensure!(output.stderr.contains(&format!("--from-id 3 --upto-id 5 --replay-id {id}")), "{output:?}");
    ensure!(field.outbox.number("select sum(affected) from event_outbox_audit where command = 'replay'").await? == 2);
    let go_on = ["--all", "--to", &field.copy, "--from-id", "3", "--upto-id", "5", "--replay-id", id, "--yes"];
    ensure!(field.replay(&go_on).await?["replayed"] == 3);
    ensure!(sequences(&field.copied().await?) == [3, 4, 5]);
    Ok(())
}

async fn nothing_is_replayed_without_a_filter_a_yes_or_a_topic(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    field.outbox.write_backlog(3, 1).await?;
    field.publish().await?;
    for (arguments, code, says) in [
        (&["--yes"][..], 2, "--until or --dead"),
        (&["--all"], 2, "--yes"),
        (&["--all", "--yes", "--to", "no-such-topic-anywhere"], 1, "no-such-topic-anywhere"),
        (&["--since", "yesterday", "--yes"], 2, "yesterday"),
    ] {
        let output = field.output(arguments).await?;
        ensure!(output.code == Some(code) && output.stderr.contains(says), "{arguments:?}: {output:?}");
    }
    field.outbox.execute("alter table event_outbox_audit rename to hidden").await?;
    let output = field.output(&["--all", "--yes"]).await?;
    ensure!(output.code == Some(1) && output.stderr.contains("code: OR-"), "{output:?}");
    ensure!(field.kafka.read_topic(&field.outbox.topic).await?.len() == 3);
    Ok(())
}
