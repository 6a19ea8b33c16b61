//! Tests `verify` on real servers: a relay's work is clean, and each kind of violation is found, counted and shown.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;
use sqlx::{Executor, PgConnection};
use uuid::Uuid;

use lab::kafka::{RealKafka, Record};
use lab::murmur2::java_partition;
use lab::{Outbox, PARTITIONS, Relay, SOON, TestDatabase, eventually, trials};

const CLEAN: Option<i32> = Some(0);
const FINDING: Option<i32> = Some(1);
const UNEXPECTED: Option<i32> = Some(70);

const KINDS: [&str; 6] = ["missing", "duplicates", "inversions", "mismatched", "unknown", "wrong_partition"];

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            what_a_relay_published_is_clean_in_every_envelope_and_pending_rows_are_not_missing,
            a_row_marked_without_a_record_is_missing,
            a_record_that_no_row_explains_is_unknown,
            a_record_whose_id_is_another_events_by_now_does_not_count_the_row_twice,
            a_row_that_commits_after_its_page_was_read_is_asked_for_again,
            a_record_sent_twice_is_counted_and_a_violation_only_where_that_is_asked_for,
            an_event_after_a_later_one_of_its_entity_is_an_inversion_unless_an_operator_retried_it,
            a_key_or_a_value_with_another_byte_is_a_mismatch,
            a_record_outside_the_partition_of_its_key_is_reported_with_the_right_one,
            a_role_that_may_only_select_is_enough_and_nothing_is_written,
            the_topic_of_another_system_is_read_by_its_own_header_key_and_payload,
            what_retention_took_on_either_side_is_no_violation,
            one_entity_and_a_window_of_time_can_be_verified_alone,
            what_cannot_be_read_exits_70_or_2_and_says_what_to_do;
    }
}

/// A topic and a table that the tests fill by hand.
struct Sides {
    outbox: Outbox,
    kafka: Arc<RealKafka>,
    producer: BaseProducer,
}

impl Sides {
    async fn new(database: &TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<Self> {
        let outbox = Outbox::from_database(database);
        outbox.create_topic(&kafka).await?;
        let sides = Self { producer: kafka.client().create()?, outbox, kafka };
        // Every trial has a clean event before and after its subject.
        sides.publish("first", 1).await?;
        Ok(sides)
    }

    /// Inserts a row with the status PUBLISHED.
    async fn row(&self, entity: &str, n: i64) -> anyhow::Result<(i64, Uuid)> {
        insert_published(&mut self.outbox.connect().await?, entity, n).await
    }

    async fn record(&self, event: Uuid, entity: &str, n: i64) -> anyhow::Result<()> {
        let partition = java_partition(entity.as_bytes(), PARTITIONS);
        self.send(event, entity, &format!("{{\"n\": {n}}}"), partition).await
    }

    async fn send(&self, event: Uuid, key: &str, value: &str, partition: i32) -> anyhow::Result<()> {
        let id = event.to_string();
        let headers = OwnedHeaders::new().insert(Header { key: "event-id", value: Some(&id) });
        self.send_with(headers, key, value, partition).await
    }

    async fn send_with(&self, headers: OwnedHeaders, key: &str, value: &str, partition: i32) -> anyhow::Result<()> {
        let record = BaseRecord::to(&self.outbox.topic).key(key).payload(value).headers(headers).partition(partition);
        self.producer.send(record).map_err(|(error, _)| error)?;
        Ok(self.producer.flush(Duration::from_secs(30))?)
    }

    async fn publish(&self, entity: &str, n: i64) -> anyhow::Result<(i64, Uuid)> {
        let (id, event) = self.row(entity, n).await?;
        self.record(event, entity, n).await?;
        Ok((id, event))
    }

    async fn records(&self) -> anyhow::Result<Vec<Record>> {
        self.kafka.read_topic(&self.outbox.topic).await
    }

    /// Returns the exit code and the verdict.
    async fn verify(&self, arguments: &[&str]) -> anyhow::Result<(Option<i32>, Value)> {
        let raw = ["--envelope", "raw"];
        verify(self.outbox.relay(&self.kafka), &self.outbox.topic, &[&raw[..], arguments].concat()).await
    }

    /// Fails unless exactly these kinds are found this many times, each with an example that mentions `about`.
    async fn find(&self, arguments: &[&str], found: &[(&str, u64)], about: &str) -> anyhow::Result<Value> {
        let (code, verdict) = self.verify(arguments).await?;
        ensure!(code == FINDING && verdict["clean"] == false, "{code:?} {verdict:#}");
        counted(&verdict, found)?;
        let violations: Vec<_> = found.iter().map(|(kind, _)| *kind).collect();
        ensure!(verdict["violations"] == Value::from(violations), "{verdict:#}");
        for (kind, count) in found {
            let examples = verdict["examples"][kind].as_array().context("no examples")?;
            ensure!(examples.len() as u64 == *count && examples[0].to_string().contains(about), "{verdict:#}");
        }
        Ok(verdict)
    }
}

/// Inserts a row with the status PUBLISHED.
async fn insert_published(connection: &mut PgConnection, entity: &str, n: i64) -> anyhow::Result<(i64, Uuid)> {
    let sql = "insert into event_outbox (entity_type, entity_id, event_type, payload, status, published_at) \
               values ('order', $1, 'Counted', jsonb_build_object('n', $2), 'PUBLISHED', now()) returning id, event_id";
    Ok(sqlx::query_as(sql).bind(entity).bind(n).fetch_one(connection).await?)
}

async fn verify(relay: Relay, topic: &str, arguments: &[&str]) -> anyhow::Result<(Option<i32>, Value)> {
    let relay = relay.argument("--json").argument("--topic").argument(topic);
    let output = arguments.iter().fold(relay, |relay, argument| relay.argument(argument)).output("verify").await?;
    let verdict = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    Ok((output.code, verdict))
}

fn counted(verdict: &Value, found: &[(&str, u64)]) -> anyhow::Result<()> {
    for kind in KINDS {
        let expected = found.iter().find(|(name, _)| *name == kind).map_or(0, |(_, count)| *count);
        ensure!(verdict[kind] == expected, "{kind} is not {expected} in {verdict:#}");
    }
    Ok(())
}

async fn what_a_relay_published_is_clean_in_every_envelope_and_pending_rows_are_not_missing(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    for envelope in ["event", "raw", "debezium", "cloudevents-binary", "cloudevents-structured"] {
        let outbox = Outbox::from_database(&database).seen_by(&format!("{}-{envelope}", database.name()));
        outbox.create_topic(&kafka).await?;
        outbox.execute("delete from event_outbox").await?;
        outbox.write_backlog(2_000, 20).await?;
        outbox
            .execute(
                "insert into event_outbox (entity_type, entity_id, event_type, payload, payload_bytes, headers) values \
                 ('order', null, 'Keyless', '{\"n\": 1.10}', null, '{}'), ('order', 'gone', 'Tombstone', null, null, '{}'), \
                 ('order', 'bytes', 'Bytes', null, '\\x00ff', '{}'), ('order', 'poison', 'Dead', '{}', null, '{\"a\": 1}'), \
                 ('order', 'é😀', 'Text', '\",\\\"data\\\":\"', null, '{}')",
            )
            .await?;
        let relay = outbox.relay(&kafka).with("RELAY_ENVELOPE", envelope);
        let running = relay.start("publisher")?;
        outbox.until_settled().await;
        ensure!(running.stop().await? == CLEAN);
        outbox.write("later", 1, 3).await?;
        // Without --topic: every topic of the table.
        let output = relay.argument("--json").output("verify").await?;
        let verdict: Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
        ensure!(output.code == CLEAN && verdict["clean"] == true, "{envelope}: {verdict:#}");
        counted(&verdict, &[])?;
        let count = |name: &str| verdict[name].as_u64().unwrap_or_default();
        ensure!((count("committed"), count("published")) == (2_008, 2_004), "{envelope}: {verdict:#}");
        ensure!((count("pending"), count("dead"), count("records")) == (3, 1, 2_004), "{envelope}: {verdict:#}");
        ensure!(verdict["topics"] == serde_json::json!([{ "topic": outbox.topic }]), "{verdict:#}");
        for kind in KINDS {
            ensure!(verdict["examples"][kind] == serde_json::json!([]), "{verdict:#}");
        }
    }
    Ok(())
}

async fn a_row_marked_without_a_record_is_missing(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let sides = Sides::new(&database, kafka).await?;
    for n in 1..=25 {
        sides.row("lost", n).await?;
    }
    let (code, verdict) = sides.verify(&[]).await?;
    ensure!(code == FINDING, "{verdict:#}");
    counted(&verdict, &[("missing", 25)])?;
    let examples = verdict["examples"]["missing"].as_array().context("no examples")?;
    ensure!(examples.len() == 20 && examples[0]["entity"] == "order/lost", "{verdict:#}");
    ensure!(examples[0]["id"].is_i64() && examples[0]["event_id"].is_string(), "{verdict:#}");
    // The same for people, without JSON.
    let relay = sides.outbox.relay(&sides.kafka).argument("--topic").argument(&sides.outbox.topic);
    let output = relay.argument("--envelope").argument("raw").output("verify").await?;
    ensure!(
        output.code == FINDING
            && output.stdout.lines().last().is_some_and(|line| line.contains("NOT CLEAN") && line.contains("missing")),
        "{output:?}"
    );
    ensure!(
        output.stderr.starts_with("error: ")
            && output.stderr.contains("missing")
            && output.stderr.contains("code: OR-6002"),
        "{output:?}"
    );
    Ok(())
}

async fn a_record_that_no_row_explains_is_unknown(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let sides = Sides::new(&database, kafka).await?;
    sides.record(Uuid::new_v4(), "phantom", 1).await?;
    sides.send_with(OwnedHeaders::new(), "nameless", "{}", 0).await?;
    sides.publish("last", 1).await?;
    sides.find(&[], &[("unknown", 2)], &sides.outbox.topic).await?;
    Ok(())
}

/// After a failover without the last commits, the ids of lost rows are allocated again. Their records are still on the topic.
async fn a_record_whose_id_is_another_events_by_now_does_not_count_the_row_twice(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let sides = Sides::new(&database, kafka).await?;
    let (id, _) = sides.publish("kept", 1).await?;
    let (lost, sequence) = (Uuid::new_v4().to_string(), id.to_string());
    let headers = OwnedHeaders::new()
        .insert(Header { key: "event-id", value: Some(&lost) })
        .insert(Header { key: "sequence", value: Some(&sequence) });
    sides.send_with(headers, "lost", "{\"n\": 1}", java_partition(b"lost", PARTITIONS)).await?;
    sides.publish("last", 1).await?;
    let (_, verdict) = sides.verify(&[]).await?;
    ensure!(verdict["committed"] == 3 && verdict["published"] == 3, "{verdict:#}");
    counted(&verdict, &[("unknown", 1)])
}

/// Holds the verification at the audit, which it reads after the table and before the topic.
async fn a_row_that_commits_after_its_page_was_read_is_asked_for_again(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let sides = Sides::new(&database, kafka).await?;
    sides.outbox.execute("create table if not exists event_outbox_audit_row (event_id uuid, action text)").await?;
    let mut writer = sides.outbox.connect().await?;
    writer.execute("begin").await?;
    let (id, late) = insert_published(&mut writer, "late", 1).await?;
    sides.publish("last", 1).await?;
    let mut gate = sides.outbox.connect().await?;
    gate.execute("begin; lock table event_outbox_audit_row in access exclusive mode").await?;

    let held = async {
        let waiting = "select count(*) from pg_stat_activity where datname = current_database() \
                       and application_name = 'outbox-relay verify' and wait_event_type = 'Lock'";
        eventually("the verification has read the table", SOON, || async {
            match sides.outbox.number(waiting).await {
                Ok(1) => Ok(()),
                other => Err(other.map_err(|error| error.to_string())),
            }
        })
        .await;
        writer.execute("commit").await?;
        let (event, sequence) = (late.to_string(), id.to_string());
        let headers = OwnedHeaders::new()
            .insert(Header { key: "event-id", value: Some(&event) })
            .insert(Header { key: "sequence", value: Some(&sequence) });
        sides.send_with(headers, "late", "{\"n\": 1}", java_partition(b"late", PARTITIONS)).await?;
        gate.execute("commit").await?;
        anyhow::Ok(())
    };
    let (verified, held) = tokio::join!(sides.verify(&[]), held);
    held?;
    let (code, verdict) = verified?;
    ensure!(code == CLEAN && verdict["committed"] == 3 && verdict["published"] == 3, "{verdict:#}");
    counted(&verdict, &[])
}

async fn a_record_sent_twice_is_counted_and_a_violation_only_where_that_is_asked_for(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let sides = Sides::new(&database, kafka).await?;
    let (_, event) = sides.publish("twice", 1).await?;
    sides.publish("twice", 2).await?;
    // Behind a later record of its entity, as after a crash: no inversion.
    sides.record(event, "twice", 1).await?;
    let (code, verdict) = sides.verify(&[]).await?;
    ensure!(code == CLEAN && verdict["published"] == 3 && verdict["records"] == 4, "{verdict:#}");
    counted(&verdict, &[("duplicates", 1)])?;
    sides.find(&["--exactly-once"], &[("duplicates", 1)], &event.to_string()).await?;
    Ok(())
}

async fn an_event_after_a_later_one_of_its_entity_is_an_inversion_unless_an_operator_retried_it(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let sides = Sides::new(&database, kafka).await?;
    let (_, early) = sides.row("turned", 1).await?;
    let (later, _) = sides.publish("turned", 2).await?;
    sides.record(early, "turned", 1).await?;
    let verdict = sides.find(&[], &[("inversions", 1)], &early.to_string()).await?;
    ensure!(verdict["examples"]["inversions"][0]["note"].as_str().unwrap_or_default().contains(&later.to_string()));
    // The table as the operator's commands create it.
    let audit = "create table event_outbox_audit_row (event_id uuid, action text)";
    sides.outbox.execute(&format!("drop table if exists event_outbox_audit_row; {audit}")).await?;
    let audited = |action| format!("insert into event_outbox_audit_row values ('{early}', '{action}')");
    sides.outbox.execute(&audited("discarded")).await?;
    sides.find(&[], &[("inversions", 1)], &early.to_string()).await?;
    sides.outbox.execute(&audited("retried")).await?;
    let (code, verdict) = sides.verify(&[]).await?;
    ensure!(code == CLEAN, "{verdict:#}");
    counted(&verdict, &[])
}

async fn a_key_or_a_value_with_another_byte_is_a_mismatch(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let sides = Sides::new(&database, kafka).await?;
    let (_, value) = sides.row("bytes", 1).await?;
    sides.send(value, "bytes", "{\"n\":1}", java_partition(b"bytes", PARTITIONS)).await?;
    let (_, key) = sides.row("key", 1).await?;
    sides.send(key, "Key", "{\"n\": 1}", java_partition(b"Key", PARTITIONS)).await?;
    sides.find(&[], &[("mismatched", 2)], "order/").await?;
    Ok(())
}

async fn a_record_outside_the_partition_of_its_key_is_reported_with_the_right_one(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let sides = Sides::new(&database, kafka).await?;
    let (_, event) = sides.row("astray", 1).await?;
    let right = java_partition(b"astray", PARTITIONS);
    sides.send(event, "astray", "{\"n\": 1}", (right + 1) % PARTITIONS).await?;
    sides.find(&[], &[("wrong_partition", 1)], &format!("partition {right}")).await?;
    // If the writer has its own partitioner, the rule is one partition per entity.
    let (code, verdict) = sides.verify(&["--partitioner", "any"]).await?;
    ensure!(code == CLEAN, "{verdict:#}");
    sides.publish("astray", 2).await?;
    sides.find(&["--partitioner", "any"], &[("wrong_partition", 1)], "partition").await?;
    Ok(())
}

async fn a_role_that_may_only_select_is_enough_and_nothing_is_written(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let sides = Sides::new(&database, kafka).await?;
    let role = format!("{}_reader", database.name());
    sides.outbox.execute(&format!("create role {role} login password 'reader'")).await?;
    sides.outbox.execute(&format!("grant select on event_outbox to {role}")).await?;
    let url = database.url();
    let server = url.split_once('@').context("a URL without a user")?.1;
    let reader = Relay::new(&format!("postgres://{role}:reader@{server}"), &sides.kafka.bootstrap())
        .with("RELAY_TOPIC", &sides.outbox.topic);
    let verified = verify(reader, &sides.outbox.topic, &["--envelope", "raw"]).await;
    sides.outbox.execute(&format!("drop owned by {role}; drop role {role}")).await?;
    let (code, verdict) = verified?;
    ensure!(code == CLEAN && verdict["published"] == 1, "{verdict:#}");
    let mut config = sides.kafka.client();
    let consumer: BaseConsumer = config.set("group.id", "outbox-relay-verify").create()?;
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition_range(&sides.outbox.topic, 0, PARTITIONS - 1);
    let committed = consumer.committed_offsets(partitions, Duration::from_secs(30))?;
    ensure!(committed.elements().iter().all(|partition| partition.offset() == Offset::Invalid), "{committed:?}");
    Ok(())
}

/// The topic is written as by Debezium's outbox router with Connect's JSON converter; no row is ever marked.
async fn the_topic_of_another_system_is_read_by_its_own_header_key_and_payload(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let sides = Sides::new(&database, kafka).await?;
    sides.outbox.execute("delete from event_outbox").await?;
    let topic = format!("{}-other", sides.outbox.topic);
    sides.kafka.create_topic(&topic, 2, &[]).await?;
    let sides = Sides { outbox: sides.outbox.seen_by(&topic), ..sides };
    let mut events = Vec::new();
    for n in 1..=3 {
        let (_, event) = sides.row("o-1", n).await?;
        events.push(event);
    }
    sides.outbox.execute("update event_outbox set status = 'PENDING', published_at = null").await?;
    let other = ["--id-header", "id", "--partitioner", "any", "--expect-pending"];
    for (n, event) in (1..).zip(&events).take(2) {
        let id = format!("\"{event}\"");
        let headers = OwnedHeaders::new()
            .insert(Header { key: "id", value: Some(&id) })
            .insert(Header { key: "aggregate", value: Some("o-1") });
        let value = format!("{{\"schema\":{{}},\"payload\":\"{{\\\"n\\\":{n}}}\"}}");
        sides.send_with(headers, "{\"schema\":{},\"payload\":\"o-1\"}", &value, 1).await?;
    }
    let verify = async |more: &[&str]| {
        verify(sides.outbox.relay(&sides.kafka), &sides.outbox.topic, &[&other[..], more].concat()).await
    };
    let (code, verdict) = verify(&["--envelope", "debezium"]).await?;
    ensure!(code == FINDING, "{verdict:#}");
    counted(&verdict, &[("missing", 1)])?;
    let (_, verdict) = verify(&["--envelope", "none", "--key-from", "header:aggregate"]).await?;
    counted(&verdict, &[("missing", 1)])?;
    let (_, verdict) = verify(&["--envelope", "none", "--key-from", "json:/payload"]).await?;
    counted(&verdict, &[("missing", 1), ("mismatched", 2)])
}

async fn what_retention_took_on_either_side_is_no_violation(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let sides = Sides::new(&database, kafka).await?;
    sides.outbox.write_backlog(100, 1).await?;
    let relay = sides.outbox.relay(&sides.kafka).with("RELAY_ENVELOPE", "raw");
    let running = relay.start("publisher")?;
    sides.outbox.until_settled().await;
    ensure!(running.stop().await? == CLEAN);

    // The table's retention: the rows below are gone, their records are there.
    let middle = sides.outbox.number("select max(id) - 50 from event_outbox").await?;
    let deleted = sides.outbox.execute(&format!("delete from event_outbox where id <= {middle}")).await?;
    let (code, verdict) = sides.verify(&[]).await?;
    ensure!(code == CLEAN && verdict["retired"] == deleted && deleted == 51, "{verdict:#}");
    let (code, verdict) = sides.verify(&["--all-retained"]).await?;
    ensure!(code == FINDING && verdict["unknown"] == deleted, "{verdict:#}");

    // The topic's retention: its partition begins with one of the last records, while the rows are there.
    let last = sides.records().await?.into_iter().max_by_key(|record| record.offset).context("no record")?;
    let mut keep = TopicPartitionList::new();
    keep.add_partition_offset(&sides.outbox.topic, last.partition, Offset::Offset(last.offset - 9))?;
    let admin: AdminClient<DefaultClientContext> = sides.kafka.client().create()?;
    admin.delete_records(&keep, &AdminOptions::new()).await?;
    let (code, verdict) = sides.verify(&[]).await?;
    ensure!(code == CLEAN && verdict["expired"] == 40 && verdict["published"] == 10, "{verdict:#}");
    ensure!(verdict["notes"][0].as_str().is_some_and(|note| note.contains(&sides.outbox.topic)), "{verdict:#}");
    // A time window that begins later has lost nothing.
    let (_, verdict) = sides.verify(&["--since", "2100-01-01T00:00:00Z"]).await?;
    ensure!(verdict["notes"] == serde_json::json!([]), "{verdict:#}");

    // Events that are published from then on are checked as usual.
    sides.outbox.execute("update event_outbox set published_at = now() - interval '1 hour'").await?;
    sides.row("lost", 1).await?;
    let lost_there = java_partition(b"lost", PARTITIONS) == last.partition;
    ensure!(!lost_there || sides.verify(&[]).await?.1["missing"] == 1);
    sides.row("e0", 101).await?;
    let (code, verdict) = sides.verify(&[]).await?;
    ensure!(code == FINDING && verdict["missing"] == 2, "{verdict:#}");
    Ok(())
}

async fn one_entity_and_a_window_of_time_can_be_verified_alone(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let sides = Sides::new(&database, kafka).await?;
    sides.row("lost", 1).await?;
    sides.row("old", 1).await?;
    let old = "update event_outbox set created_at = now() - interval '2 days' where entity_id = 'old'";
    sides.outbox.execute(old).await?;
    let (_, verdict) = sides.verify(&["--entity", "first"]).await?;
    ensure!(verdict["committed"] == 1 && verdict["clean"] == true, "{verdict:#}");
    let (_, verdict) = sides.verify(&["--entity", "lost"]).await?;
    ensure!(verdict["committed"] == 1 && verdict["missing"] == 1, "{verdict:#}");
    let (_, verdict) = sides.verify(&["--since", "1d"]).await?;
    ensure!(verdict["committed"] == 2 && verdict["published"] == 1 && verdict["missing"] == 1, "{verdict:#}");
    let (_, verdict) = sides.verify(&["--since", "2100-01-01T00:00:00Z", "--rate", "5"]).await?;
    ensure!(verdict["committed"] == 0 && verdict["clean"] == true, "{verdict:#}");
    Ok(())
}

async fn what_cannot_be_read_exits_70_or_2_and_says_what_to_do(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let of_topic = |topic: &str| outbox.relay(&kafka).argument("--topic").argument(topic);
    let unknown_table = outbox.relay(&kafka).with("RELAY_TABLE", "nowhere");
    let (alike, there_are) = (format!("{}x", outbox.topic), format!("topics there are {}", outbox.topic));
    for (relay, exit, told) in [
        (of_topic(&alike), Some(2), &["--topic: there is no topic", there_are.as_str(), "code: OR-3101"][..]),
        (of_topic("no topic!"), Some(2), &["--topic", "is not allowed in a topic name"]),
        (unknown_table, UNEXPECTED, &["code: OR-2101"]),
    ] {
        let output = relay.output("verify").await?;
        ensure!(output.code == exit && output.stdout.is_empty() && output.stderr.starts_with("error: "), "{output:?}");
        ensure!(told.iter().all(|told| output.stderr.contains(told)), "{told:?}: {output:?}");
    }
    let output = outbox.relay(&kafka).argument("--since").argument("yesterday").output("verify").await?;
    ensure!(output.code == Some(2) && output.stderr.contains("7d"), "{output:?}");
    Ok(())
}
